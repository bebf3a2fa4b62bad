"""harmaug distil --from: new rows learnt with and without replay, and what is said of old and new quality."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_bert
from test_distill import rows_of

from harmaug import cli, continual, runs
from harmaug.data import Row, write_rows
from harmaug.distill import DistillConfig, Distiller
from harmaug.report import report_run

CONFIG = """
[data]
seed = ["attacks.jsonl"]
evaluation = { old = "old_test.jsonl" }
[distil]
lr = 1e-2
warmup_steps = 2
batch_size = 16
max_steps = 60
max_length = 24
dropout = 0.0
weight_decay = 0.0
validation_fraction = 0.0
"""


def ciphered(n, seed):
    """New attacks: other words tell the label, and the old words are turned round."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        label = i % 2
        words = [f"w{rng.integers(20, 30) + (0 if label else 10)}" for _ in range(3)] + [f"w{rng.integers(0, 10) + (10 if label else 0)}" for _ in range(2)]
        rows.append(Row(prompt=" ".join(words), label=label))
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A guard that knows the old task, old rows, and new ones."""
    folder = tmp_path_factory.mktemp("continual")
    student = tiny_bert.write(folder / "bert")
    config = DistillConfig(student=str(student), lr=1e-2, warmup_steps=5, batch_size=16, max_steps=150, dropout=0.0, max_length=24, validation_fraction=0.0, weight_decay=0.0)
    Distiller(config).fit(rows_of(300, soft=False), out=folder / "guard", progress=False)
    write_rows(folder / "old.jsonl", rows_of(300, soft=False))
    write_rows(folder / "old_test.jsonl", rows_of(200, seed=1, soft=False))
    write_rows(folder / "attacks.jsonl", ciphered(120, 0))
    (folder / "config.toml").write_text(CONFIG)
    return folder


def test_forgetting_and_replay(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    reports = {}
    for out, options in (("without", ()), ("with", ("--replay", "old.jsonl"))):
        assert cli.main(["distil", "config.toml", "--from", "guard", *options, "--out", out, "--quiet"]) == 0
        printed = capsys.readouterr().out
        assert "new rows" in printed and "before, after" in printed
        reports[out] = json.loads(Path(out, "continual.json").read_text())
        for name, entry in reports[out]["sets"].items():
            found = entry["difference"]["auprc"]
            assert found["difference"] == pytest.approx(entry["after"]["auprc"] - entry["before"]["auprc"]) and found["low"] <= found["high"], name
    assert set(reports["without"]["sets"]) == {"old", "new rows"} and set(reports["with"]["sets"]) == {"old", "new rows", "replayed rows"}
    assert reports["without"]["replayed"] == 0 and reports["with"]["replayed"] == reports["with"]["new"] == 96
    page, entry = report_run("with").read_text(), reports["with"]["sets"]["old"]
    assert "Continual training" in page and f"{entry['difference']['auprc']['difference']:.3f}</td>" in page and f"old,200,{entry['before']['auprc']},{entry['after']['auprc']}," in page
    whole = Path("with/continual.json").read_text()
    Path("with/continual.json").write_text('{"sets": 3}')
    with pytest.raises(runs.RunError, match="continual.json is damaged"):
        report_run("with")
    Path("with/continual.json").write_text(whole)
    old = {name: report["sets"]["old"] for name, report in reports.items()}
    new = {name: report["sets"]["new rows"] for name, report in reports.items()}
    assert old["with"]["before"] == old["without"]["before"]
    # measured: the new rows are learnt either way; without replay the old ones are forgotten
    assert min(new[name]["after"]["auprc"] for name in new) > 0.95 > max(new[name]["before"]["auprc"] for name in new)
    assert old["without"]["after"]["auprc"] < old["without"]["before"]["auprc"] - 0.2
    assert old["with"]["after"]["auprc"] > old["without"]["after"]["auprc"] + 0.2
    print({name: (old[name]["before"]["auprc"], old[name]["after"]["auprc"], new[name]["before"]["auprc"], new[name]["after"]["auprc"]) for name in reports})


def test_a_run_folder_as_replay_and_the_table(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    Path("run").mkdir(exist_ok=True)
    Path("run/labelled.jsonl").write_bytes(Path("old.jsonl").read_bytes())
    shutil.copytree("guard", "fitted")
    Path("fitted/thresholds.json").write_text('{"threshold": 0.93, "temperature": 3.0}')
    Path("t.toml").write_text(CONFIG.replace("max_steps = 60", "max_steps = 2") + '[evaluate]\ndraws = 0\n[continual]\nguard = "fitted"\nreplay = ["run"]\nshare = 0.5\nheld_out = 0.5\n')
    assert cli.main(["run", "t.toml", "--out", "table", "--quiet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["continual", "evaluate"] and report["continual"]["new"] == 60 and report["continual"]["replayed"] == 30
    assert report["evaluate"]["datasets"]["old"]["auprc"] == report["continual"]["sets"]["old"]["after"]["auprc"]
    assert report["continual"]["threshold"] == 0.93 and "at_fitted_threshold" not in report["evaluate"]["datasets"]["old"]
    assert "the threshold 0.93 of fitted was not taken over: fit one anew" in continual.format_continual(report["continual"])
    assert report["evaluate"]["model"] == {"name": "guard", "sha256": runs.sha256("table/guard")}


def test_from_an_adapter(place, monkeypatch):
    monkeypatch.chdir(place)
    Path("lora.toml").write_text(CONFIG.replace("max_steps = 60", "max_steps = 2\nlora_rank = 2").replace("[distil]", '[distil]\nstudent = "bert"'))
    assert cli.main(["distil", "lora.toml", "--out", "lora", "--quiet"]) == 0 and Path("lora/guard/adapter_config.json").exists()
    assert cli.main(["distil", "lora.toml", "--from", "lora/guard", "--out", "lora2", "--quiet"]) == 0
    parts = "| student | guard | unknown |  |\n| student of guard | bert | unknown |  |\n| data of guard | unnamed | unknown | 120 |"
    assert parts in Path("lora2/guard/README.md").read_text()


@pytest.mark.parametrize("options, says", [
    (("--from", "guard", "--replay", "empty"), "no labelled.jsonl: neither a file of rows nor a run folder"), (("--from", "nowhere"), "model 'nowhere' was not found"),
    (("--from", "guard", "--replay", "bare.jsonl"), "bare.jsonl, row 1: neither a label nor an unsafe-score"),
])
def test_errors_name_the_place(place, monkeypatch, capsys, options, says):
    monkeypatch.chdir(place)
    Path("empty").mkdir(exist_ok=True)
    Path("bare.jsonl").write_text('{"prompt": "w1"}\n')
    assert cli.main(["distil", "config.toml", *options, "--out", "r", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_attacks_of_one_class_need_replay(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    write_rows("attacks_only.jsonl", [row for row in ciphered(60, 0) if row.label == 1])
    Path("one.toml").write_text(CONFIG.replace("attacks.jsonl", "attacks_only.jsonl").replace("max_steps = 60", "max_steps = 2"))
    assert cli.main(["distil", "one.toml", "--from", "guard", "--out", "o1", "--quiet"]) == 2 and "one class only, every row is unsafe" in capsys.readouterr().err
    assert cli.main(["distil", "one.toml", "--from", "guard", "--replay", "old.jsonl", "--out", "o2", "--quiet"]) == 0
    entry = json.loads(Path("o2/continual.json").read_text())["sets"]["new rows"]
    assert entry["before"]["auprc"] is None and entry["after"]["recall"] is not None and "-" in capsys.readouterr().out
