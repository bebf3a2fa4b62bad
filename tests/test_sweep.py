"""harmaug run --sweep: points, what they share, going on after an interruption, the table."""
import json
import re
import shutil
from pathlib import Path

import fake_generator
import numpy as np
import pytest
from test_pipeline import write_bert

from harmaug import cli, pipeline, runs, sweep
from harmaug.data import DataError

CONFIG = """
[data]
seed = ["seed.jsonl"]
evaluation = {{ one = "one.jsonl", two = "two.jsonl" }}
[augment]
[label]
cache = false
[distil]
student = "{bert}"
max_steps = 2
batch_size = 8
max_length = 32
[evaluate]
draws = 0
[sweep]
seeds = [3, 4]
[sweep.augment]
"samples,benign" = [[16, 8]]
[sweep.distil]
temperature = [1.0, 2.0]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bert = write_bert(tmp_path / "bert", layers=1)
    calls = []

    def generator(config, **options):
        calls.append(config.model)
        return fake_generator.FakeGenerator()

    monkeypatch.setattr(pipeline, "load_generator", generator)
    monkeypatch.setattr(pipeline, "load_teacher", lambda config, **o: pipeline.teacher.CallableTeacher(lambda p, r: [len(x) % 10 / 10 for x in p], "lengths"))
    monkeypatch.setattr(pipeline.teacher, "standin_folder", lambda: bert)
    real = pipeline.model_path
    monkeypatch.setattr(pipeline, "model_path", lambda name: bert if name in ("smollm2", "other") else real(name))
    Path("seed.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in fake_generator.seed_rows()))
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"{name} {'how to harm' if i % 2 else 'how to help'} {i}", "label": i % 2}) + "\n" for i in range(8)))
    Path("sweep.toml").write_text(CONFIG.format(bert=bert))
    return calls


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "shared")} for row in rows]


def test_a_sweep_and_one_that_was_interrupted(folder, monkeypatch, capsys):
    assert cli.main(["run", "sweep.toml", "--sweep", "--out", "whole", "--quiet"]) == 0
    out = capsys.readouterr().out
    rows = lines("whole/sweep.jsonl")
    assert len(rows) == 4 and len(folder) == 2      # instructions were sampled once for each mix and seed, whatever the temperature
    assert [row["shared"] for row in rows] == [[], [], ["augment", "label"], ["augment", "label"]]
    assert rows[0]["point"] == {"augment.samples,benign": [16, 8], "distil.temperature": 1.0, "seed": 3} and set(rows[0]["measures"]) == {"mean", "one", "two"}
    table = lines("whole/summary.jsonl")
    assert [entry["n"] for entry in table] == [2, 2] and "±" in out and "distil.temperature" in out
    first = [row["measures"]["mean"]["auprc"] for row in rows[:2]]
    assert table[0]["mean"]["auprc"] == {"mean": pytest.approx(np.mean(first)), "sd": pytest.approx(np.std(first, ddof=1)), "n": 2}
    shared = json.loads(Path("whole/points", rows[2]["name"], "run.json").read_text())["stages"]
    assert shared["label"]["shared_from"] == rows[0]["name"] and "shared_from" not in shared["distil"]
    # interrupted in the middle of a point, and a line torn: it goes on, and ends alike
    distil, n = pipeline.distil, []

    def interrupted(*args, **kwargs):
        n.append(1)
        if len(n) == 4:
            raise KeyboardInterrupt
        return distil(*args, **kwargs)

    monkeypatch.setattr(pipeline, "distil", interrupted)
    assert cli.main(["run", "sweep.toml", "--sweep", "--out", "broken", "--quiet"]) == 130
    assert "to go on: harmaug run sweep.toml --sweep --out broken" in capsys.readouterr().err and len(lines("broken/sweep.jsonl")) == 3
    Path("broken/sweep.jsonl").write_bytes(Path("broken/sweep.jsonl").read_bytes()[:-9])
    assert cli.main(["run", "sweep.toml", "--sweep", "--out", "broken", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == table
    assert without_seconds(lines("broken/sweep.jsonl")) == without_seconds(rows)
    # a point more costs that point only
    done = len(n)
    Path("sweep.toml").write_text(Path("sweep.toml").read_text().replace("seeds = [3, 4]", "seeds = [3, 4, 5]").replace("[1.0, 2.0]", "[1.0]"))
    assert cli.main(["run", "sweep.toml", "--sweep", "--out", "broken", "--quiet"]) == 0
    assert len(n) == done + 1 and len(lines("broken/sweep.jsonl")) == 5
    # a line of something else
    before = Path("broken/sweep.jsonl").read_text()
    Path("broken/sweep.jsonl").write_text(before + '{"a": 1}\n')
    assert cli.main(["run", "sweep.toml", "--sweep", "--out", "broken", "--quiet"]) == 2 and "broken/sweep.jsonl, line 6: name is missing" in capsys.readouterr().err
    Path("broken/sweep.jsonl").write_text(before)
    # other rows or another model: what is done was not made of them, unless its line, of an older version, does not tell
    argv = ["run", "sweep.toml", "--sweep", "--out", "broken", "--quiet"]
    for path in (Path("one.jsonl"), Path("bert/vocab.txt")):
        before = Path("broken/sweep.jsonl").read_text()
        path.write_text(path.read_text() + "\n")
        assert cli.main(argv) == 2 and re.search(rf"broken: point \S+ was made of another .*{path.parts[0]} \(then \w+, now \w+\)", capsys.readouterr().err)
        assert cli.main([*argv, "--allow-mixed"]) == 0 and Path("broken/sweep.jsonl").read_text() == before
        older = [{key: value for key, value in row.items() if key != "inputs"} for row in lines("broken/sweep.jsonl")]
        Path("broken/sweep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in older))
        assert cli.main(argv) == 0
        Path("broken/sweep.jsonl").write_text(before)


def test_a_fetched_set_is_an_input_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.datasets, "folder", lambda: tmp_path)
    (tmp_path / "xstest.jsonl").write_text('{"prompt": "a", "label": 0}\n')
    (tmp_path / "own.jsonl").write_text('{"prompt": "b", "label": 1}\n')
    tables = {"data": {"seed": [{"file": "xstest"}, "own.jsonl"]}}
    found = sweep._inputs(tables, "x", tmp_path, {})
    assert found == {"xstest": runs.sha256(tmp_path / "xstest.jsonl"), "own.jsonl": runs.sha256(tmp_path / "own.jsonl")}


def test_all_files_of_a_configuration_are_inputs(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "model_path", lambda name: tmp_path / name)
    for name in ("old.jsonl", f"run/{pipeline.LABELLED}", "words.json", "guard", "new.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"prompt": "{name}", "label": 0}}\n')
    tables = {"data": {"seed": ["new.jsonl"]}, "continual": {"guard": "guard", "replay": ["old.jsonl", "run"]},
              "evaluate": {"baselines": ["tfidf", {"name": "eda", "synonyms": "words.json"}]}}
    found = sweep._inputs(tables, "x", tmp_path, {})
    assert found == {name: runs.sha256(tmp_path / file) for name, file in (("new.jsonl",) * 2, ("guard",) * 2, ("old.jsonl",) * 2,
                                                                          ("run", f"run/{pipeline.LABELLED}"), ("words.json",) * 2)}


def test_points():
    tables = {"augment": {}, "distil": {}, "evaluate": {}, "sweep": {"mode": "each", "seeds": [1, 2], "augment": {"prefix": ["Sure:", ""]}, "generator": {"model": ["a", "b"]}}}
    axes, mode = sweep.axes_of(tables, "x")
    points = list(sweep.points_of(axes, mode))
    assert points[:3] == [{"seed": 1}, {"seed": 2}, {"augment.prefix": "Sure:", "seed": 1}] and len(points) == 10
    settings = {"augment": {}, "distil": {"lr": 1.0}}
    for axis, value in zip(axes, (7, "", "b")):
        axis.apply(settings, value)
    assert settings == {"augment": {"seed": 7, "prefix": ""}, "distil": {"lr": 1.0, "seed": 7}, "generator": {"model": "b"}}
    table = sweep.summary([{"point": {"a.b": 1}, "rows": 3, "measures": {"mean": {"auprc": None, "f1": 0.5}}}], ["a.b"])
    assert table[0]["mean"] == {"auprc": {"mean": None, "sd": None, "n": 0}, "f1": {"mean": 0.5, "sd": None, "n": 1}}
    assert "0.500" in sweep.format_summary(table) and "±" not in sweep.format_summary(table).splitlines()[1]


@pytest.mark.parametrize("old, new, says", [
    ("temperature = [1.0, 2.0]", "temperature = 1.0", r"\[sweep.distil\] temperature: must be a list of values"),
    ("temperature = [1.0, 2.0]", "temperature = [1.0, 1.0]", "a value stands there twice"), ("[1.0, 2.0]", "[1.0, -2.0]", r"point .*temperature=-2.0.*\[distil\] temperature must be in"),
    ("temperature = [1.0, 2.0]", "temprature = [1.0]", "no setting temprature"), ("temperature = [1.0, 2.0]", "seed = [1]", r"varies seed of \[distil\] twice"),
    ("[[16, 8]]", "[[16, 0], [16]]", "each value must be a list of 2"), ("[sweep.distil]", "[sweep.respond]", r"varies a table that is missing, \[respond\]"),
    ("seeds = [3, 4]", 'seeds = [3, 4]\nmode = "all"', r"\[sweep\] mode must be one of grid, each"), ("seeds = [3, 4]", "seds = [3, 4]", r"\[sweep\] has no setting seds"),
    ("two = ", "rows = ", r"\[data.evaluation\] rows: a column of a sweep's table has this name"),
    ("[evaluate]\ndraws = 0", "", r"needs the table \[evaluate\]"),
])
def test_errors_name_the_place(folder, capsys, old, new, says):
    Path("sweep.toml").write_text(Path("sweep.toml").read_text().replace(old, new))
    assert cli.main(["run", "sweep.toml", "--sweep", "--out", "r", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("harmaug: sweep.toml") and err.count("\n") == 1 and re.search(says, err), err
    assert not Path("r").exists()


def test_with_and_without_the_table(folder, monkeypatch, capsys):
    assert cli.main(["run", "sweep.toml", "--out", "r", "--quiet"]) == 2 and "run it with `harmaug run --sweep`" in capsys.readouterr().err
    assert cli.main(["run", "sweep.toml", "--sweep", "--seed", "1", "--out", "r", "--quiet"]) == 2 and "the seeds stand in [sweep]" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"the table \[sweep\] is missing"):
        sweep.axes_of({"data": {}}, "x")
    assert cli.main(["run", "sweep.toml", "--sweep", "--dry-run", "--out", "r"]) == 2 and "--sweep goes without --dry-run" in capsys.readouterr().err
    assert cli.main(["run", "sweep.toml", "--sweep", "--engine", "odd", "--out", "s"]) == 2 and "engine must be one of local, ray" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["run", "sweep.toml", "--sweep", "--engine", "torch", "--out", "s"]) == 2 and "--sweep goes without torchrun" in capsys.readouterr().err
    assert not Path("s").exists()
    shutil.rmtree("r", ignore_errors=True)


def test_the_engine_trains_every_point(folder, monkeypatch):
    engines = []

    def run_config(place, settings, *, engine, **options):
        engines.append(engine)
        return {"evaluate": {"mean": {}, "datasets": {}, "stages": {}}}

    monkeypatch.setattr(pipeline, "run_config", run_config)
    assert cli.main(["run", "sweep.toml", "--sweep", "--engine", "torch", "--out", "r", "--quiet"]) == 0 and engines == ["torch"] * 4
