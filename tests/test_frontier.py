"""harmaug distil --student: several students, their costs and worth in one table, and the gate of the int8 export."""
import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import encoder_models
import pytest
from test_distill import student_of
from test_pipeline import write_bert, write_llama

from harmaug import _C, cli, frontier, pipeline
from harmaug.data import DataError
from harmaug.guard import Guard
from harmaug.report import report_run

CONFIG = """
[data]
seed = ["seed.jsonl"]
evaluation = { one = "test.jsonl" }
[distil]
student = "unused"
new_head = true
lr = 1e-3
max_steps = 3
batch_size = 8
max_length = 32
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, n in (("seed", 40), ("test", 12)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"{name} {'how to harm' if i % 2 else 'how to help'} {i}", "label": i % 2}) + "\n" for i in range(n)))
    write_bert(tmp_path / "bert", layers=4)
    Path("config.toml").write_text(CONFIG)
    return tmp_path


def test_a_frontier(folder, monkeypatch, capsys):
    monkeypatch.setattr(frontier, "_free_memory", lambda: 0)
    argv = ["distil", "config.toml", "--student", "bert:2", "--student", "bert:0,1,3", "--teacher", "bert", "--shape", "deberta-v3-large",
            "--shape", "llama-3-8b", "--int8", "--out", "r", "--quiet"]
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert "teacher bert" in text and "computed" in text and "8,030.3 M" in text
    found = json.loads(Path("r/frontier.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["bert", "bert-2", "bert-2-int8", "bert-0.1.3", "bert-0.1.3-int8", "deberta-v3-large", "llama-3-8b"]
    assert rows["bert"]["kind"] == "teacher" and rows["bert"]["gflops_share"] == rows["bert"]["ms_share"] == 1 and rows["bert-2"]["gflops_share"] == pytest.approx(0.5)
    assert rows["bert-0.1.3"]["parameters"] > rows["bert-2"]["parameters"] == rows["bert-2-int8"]["parameters"]
    for row in found["rows"][:5]:
        assert row["ms"] > 0 and row["peak_mb"] > 10 and 0 <= row["auprc"] <= 1 and row["mb"] > 0
    assert rows["bert-2-int8"]["mb"] < rows["bert-2"]["mb"] and rows["llama-3-8b"]["ms"] is None and rows["llama-3-8b"]["note"].startswith("computed")
    table = list(csv.DictReader(Path("r/frontier.csv").read_text().splitlines()))
    assert [line["name"] for line in table] == list(rows) and float(table[1]["ms"]) == pytest.approx(rows["bert-2"]["ms"]) and table[-1]["ms"] == ""
    config = [json.loads(Path("r/students", name, "config.json").read_text())["num_hidden_layers"] for name in ("bert-2", "bert-0.1.3")]
    assert config == [2, 3]
    assert Guard.from_pretrained("r/students/bert-2-int8").encoder.dtype == "int8"
    page = report_run("r").read_text()
    assert "Students: costs and measures" in page and f">{rows['bert-2']['ms']:.3f}</td>" in page and f"bert-2,student,{rows['bert-2']['parameters']}," in page and "llama-3-8b &amp; shape" in page
    for broken in ('{"rows": 3}', "{", '{"rows": [{}], "refused": {}}'):
        Path("damaged").mkdir(exist_ok=True)
        Path("damaged/run.json").write_bytes(Path("r/run.json").read_bytes())
        Path("damaged/frontier.json").write_text(broken)
        with pytest.raises(ValueError, match="frontier.json"):
            report_run("damaged")
    # again: nothing is trained; and a gate that nothing passes
    before = Path("r/students/bert-2/model.safetensors").stat().st_mtime_ns
    Path("config.toml").write_text(CONFIG + '[frontier]\nstudents = ["bert"]\nteacher = "llama-3-8b"\nmax_dp = 0.0\nint8 = true\n')
    assert cli.main(["distil", "config.toml", "--student", "bert:1", "--out", "other", "--quiet"]) == 1
    got = capsys.readouterr()
    assert re.search(r"bert-1-int8 refused: largest change of P\(unsafe\) 0\.\d+ \(bound 0\)", got.err) and not Path("other/students/bert-1-int8").exists()
    assert json.loads(Path("other/frontier.json").read_text())["rows"][0]["note"] == "computed; 16-bit weights"
    Path("config.toml").write_text(CONFIG)
    assert cli.main([*argv[:4], "--out", "r", "--quiet", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["frontier"]["rows"]] == ["bert-2"]
    assert Path("r/students/bert-2/model.safetensors").stat().st_mtime_ns == before


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 90}


@pytest.mark.parametrize("more", [{"model_type": "deberta-v2", "position_buckets": 8}, {"model_type": "llama", "num_key_value_heads": 1}])
def test_a_shape_is_measured_where_it_fits(folder, monkeypatch, more):
    monkeypatch.setattr(frontier, "_free_memory", lambda: 1 << 40)
    measure = frontier._Measure({"one": pipeline.read_rows("test.jsonl")}, 128, Path(), 1, folder, "bert")
    config = {**TINY, **more}
    row, before = measure.shape("tiny", config, "shape"), set(folder.iterdir())
    assert row["note"] == "random weights" and row["ms"] > 0 and row["peak_mb"] > 10 and row["f1"] is None and set(folder.iterdir()) == before
    monkeypatch.setattr(frontier, "_free_memory", lambda: 4 * row["parameters"])
    computed = measure.shape("tiny", config, "shape")
    assert computed["note"].startswith("computed; ") and computed["ms"] is computed["peak_mb"] is None and computed["parameters"] == row["parameters"]
    monkeypatch.setattr(frontier, "_free_memory", lambda: 8 * row["parameters"])
    monkeypatch.setattr(frontier.shutil, "disk_usage", lambda path: SimpleNamespace(free=7 * row["parameters"]))
    assert measure.shape("tiny", config, "shape")["ms"] is None and measure.shape("tiny", {**config, "vocab_size": 80}, "shape")["ms"] is None


def test_every_student_is_looked_at_before_one_is_trained(folder, capsys):
    for bad, says in (("bert:0,9", "student bert:0,9: bert has 4 layers"), ("bert:0", "bert has 4 layers"), ("nowhere", "model 'nowhere' was not found")):
        assert cli.main(["distil", "config.toml", "--student", "bert", "--student", bad, "--out", "r", "--quiet"]) == 2
        assert says in capsys.readouterr().err and not Path("r/students").exists()
    assert frontier.parse_student("bert:4") == ("bert", (0, 1, 2, 3)) and frontier.parse_student("bert:3,1") == ("bert", (3, 1))


def test_a_file_of_scores_is_no_first_row(folder, caplog, capsys):
    rows = [json.loads(line) for line in Path("seed.jsonl").read_text().splitlines()]
    Path("scores.jsonl").write_text("".join(json.dumps({**row, "unsafe-score": 0.5}) + "\n" for row in rows))
    Path("config.toml").write_text(CONFIG.replace("[distil]", '[label]\nteacher = "scores.jsonl"\n[distil]'))
    assert cli.main(["label", "config.toml", "--out", "r", "--quiet"]) == 0
    assert cli.main(["distil", "config.toml", "--student", "bert:1", "--out", "r", "--quiet"]) == 0
    assert "no first row: the teacher of [label], scores.jsonl, is a file of scores" in caplog.text
    assert [row["kind"] for row in json.loads(Path("r/frontier.json").read_text())["rows"]] == ["student"]
    assert cli.main(["distil", "config.toml", "--student", "bert:1", "--teacher", "scores.jsonl", "--out", "r", "--quiet"]) == 2
    assert "teacher: scores.jsonl is a file of scores" in capsys.readouterr().err


def test_a_language_model_in_the_first_row(folder):
    Path("policy.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}Answer:")
    teacher = pipeline.LabelConfig(teacher=str(write_llama(folder / "tiny.gguf")), family="llama-guard-3", template="policy.jinja")
    rows = pipeline.read_rows("test.jsonl")
    row = frontier._Measure({"one": rows}, 128, Path(), 1).teacher(teacher)
    assert row["kind"] == "teacher" and row["ms"] > 0 and row["parameters"] is None and row["mb"] > 0 and set(row["sets"]) == {"one"}


def test_counts_of_shapes(tmp_path):
    """The formulas on small models against what is stored, and the published numbers."""
    place = student_of(tmp_path / "deberta", "deberta-v3")
    settings = json.loads(Path(place, "config.json").read_text())
    params = _C.EncoderParams.read(place)
    assert dict(frontier._tensors(settings)) == {name: params.shape(name) for name in params.names} and frontier.parameters(settings) == params.size
    assert frontier.parameters(frontier.SHAPES["llama-3-8b"]) == 8_030_261_248 and frontier.parameters(frontier.SHAPES["deberta-v3-large"]) == 435_063_810
    assert frontier.parameters(frontier.SHAPES["llama-3.2-1b"]) == 1_235_814_400
    large, llama = (frontier.flops(frontier.SHAPES[name], 128) for name in ("deberta-v3-large", "llama-3-8b"))
    assert 0.02 < large / llama < 0.25 and llama / 128 == pytest.approx(2 * (8.03e9 - 2 * 128256 * 4096), rel=0.02)
    bert = encoder_models.config("bert")
    h, inner, n = bert["hidden_size"], bert["intermediate_size"], bert["num_hidden_layers"]
    assert frontier.flops(bert, 10) == n * 10 * (2 * (4 * h * h + 2 * h * inner) + 40 * h)


@pytest.mark.parametrize("argv, says", [
    (["--student", "bert:9"], "student bert:9: bert has 4 layers"), (["--student", "nowhere"], "model 'nowhere' was not found"),
    (["--student", "bert", "--student", "./bert"], "bert and ./bert share the folder students/bert"), (["--student", "bert", "--shape", "gpt-9"], "neither a config.json nor one of"),
    (["--shape", "llama-3-8b"], "--shape needs --student"), (["--student", "bert", "--from", "bert"], "--from and --student"), (["--replay", "x"], "--replay needs --from"),
    (["--student", "bert", "--shape", "bert/config.json"], "model_type bert; Llama and DeBERTa v3 can be counted"),
])
def test_errors_name_the_place(folder, capsys, argv, says):
    assert cli.main(["distil", "config.toml", *argv, "--out", "r", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_it_needs_what_it_trains_with(folder, capsys):
    Path("config.toml").write_text(CONFIG.replace('evaluation = { one = "test.jsonl" }', ""))
    assert cli.main(["distil", "config.toml", "--student", "bert", "--out", "r", "--quiet"]) == 2 and "needs evaluation sets" in capsys.readouterr().err
    Path("config.toml").write_text(CONFIG.split("[distil]")[0])
    assert cli.main(["distil", "config.toml", "--student", "bert", "--out", "r", "--quiet"]) == 2 and "[frontier] needs the table [distil]" in capsys.readouterr().err
    with pytest.raises(DataError, match="no num_key_value_heads"):
        Path("c.json").write_text(json.dumps({**frontier.SHAPES["deberta-v3-base"], "model_type": "llama"}))
        frontier._shape("c.json")
