"""harmaug.cli: verbs, streams, and one line with file and row for every error."""
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_generator
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from harmaug import cli, pipeline, runs
from harmaug.guard import Guard
from harmaug.teacher import standin_folder

ROOT = Path(__file__).parent.parent
CONFIG = """
[data]
seed = ["seed.jsonl"]
evaluation = { held_out = "test.jsonl" }
[augment]
samples = 32
benign = 16
[respond]
responses = "pairs"
seed = 1
[label]
teacher = "standin"
"""


class FakeGuard:
    threshold = None

    def score(self, prompts, responses=None):
        return np.array([np.nan if "nan" in prompt else min(len(prompt) / 40, 1) for prompt in prompts], np.float32)


@pytest.fixture
def fakes(monkeypatch):
    """Models without models."""
    monkeypatch.setattr(cli, "_guard", lambda args, **options: FakeGuard())
    monkeypatch.setattr(pipeline, "load_generator", lambda config, **options: fake_generator.FakeGenerator())
    monkeypatch.setattr(pipeline, "load_teacher", lambda config, **options: pipeline.teacher.CallableTeacher(lambda p, r: [len(x) % 10 / 10 for x in p], config.name))
    monkeypatch.setattr(pipeline, "model_path", lambda name: ROOT / "tests" / "fake_generator.py")
    monkeypatch.setattr(pipeline.teacher, "standin_folder", lambda: ROOT / "tests" / "fake_generator.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration and its data, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("seed.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in fake_generator.seed_rows()))
    Path("test.jsonl").write_text('{"prompt": "Tell me a joke about taxes", "label": 0}\n{"prompt": "Tell me how to cheat on taxes", "label": 1}\n')
    Path("config.toml").write_text(CONFIG)
    return tmp_path


def run(capsys, *argv, status=0):
    assert cli.main(list(argv)) == status
    return capsys.readouterr()


def fails(capsys, *argv):
    """The one line on standard error of a command that must end with status 2."""
    err = run(capsys, *argv, status=2).err
    lines = [line for line in err.splitlines() if line.startswith("harmaug")]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_help_needs_no_model_and_comes_within_a_second():
    best = 9.0
    for _ in range(3):
        begun = time.monotonic()
        out = subprocess.run([sys.executable, "-m", "harmaug", "--help"], capture_output=True, check=True).stdout
        best = min(best, time.monotonic() - begun)
    assert b"quickstart" in out and best < 1


def test_version(capsys):
    assert run(capsys, "--version").out.startswith("harmaug ")


@pytest.mark.parametrize("argv, message", [
    ([], "the following arguments are required: VERB"), (["nothing"], "invalid choice: 'nothing'"), (["run"], "required: CONFIG"), (["score"], "required: --model"),
    (["run", "x", "--seed", "a"], "argument --seed: invalid int value: 'a'"), (["run", "x", "--what"], "unrecognized arguments: --what"),
    (["serve", "--model", "m", "--port", "99999"], "--port: must be a number of at most 65535, got 99999"), (["serve", "--model", "m", "--timeout", "nan"], "got nan"),
    (["score", "--model", "m", "--n-threads", "1" + 30 * "0"], "--n-threads: must be a number of at most 2.14748e+09"),
])
def test_wrong_usage(capsys, argv, message):
    assert message in fails(capsys, *argv)


def test_score_keeps_order_and_columns_to_the_byte(capsys, fakes, monkeypatch):
    rows = b"".join(b'{"id": %d, "prompt": "%s", "x": 1.10, "big": 123456789012345678901234567890, "u": "\\u00e4"}\n' % (i, b"a" * (i % 40 + 1)) for i in range(100))
    stdin(monkeypatch, rows)
    lines = run(capsys, "score", "--model", "m", "--batch-size", "7").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(100))
    assert lines[0] == '{"id":0,"prompt":"a","x":1.10,"big":123456789012345678901234567890,"u":"\\u00e4","score":0.025,"flagged":false}'
    assert [json.loads(line)["flagged"] for line in lines] == [(i % 40 + 1) / 40 >= 0.5 for i in range(100)]
    stdin(monkeypatch, b"prompt,label\naa,\n")
    assert run(capsys, "score", "--model", "m").out == '{"prompt":"aa","label":null,"score":0.05,"flagged":false}\n'


@pytest.mark.parametrize("content", ['[{"prompt": "aaaa", "response": "b"}]', "prompt,response\naaaa,b\n", '{"prompt": "aaaa", "response": "b"}\n'])
def test_score_reads_every_layout(capsys, fakes, tmp_path, content):
    for name, data in (("rows", content.encode()), ("rows.gz", gzip.compress(content.encode()))):
        (tmp_path / name).write_bytes(data)
        out = run(capsys, "score", "--model", "m", "--threshold", "0.1", str(tmp_path / name)).out
        assert json.loads(out) == {"prompt": "aaaa", "response": "b", "score": 0.1, "flagged": True}


@pytest.mark.parametrize("content, message, written", [
    (b'{"prompt": "a"}\n{"prompt": "b", ]\n', "standard input, line 2: wrong JSON", 1), (b'{"prompt": "a"}\n{"prompt": ""}\n', "standard input, line 2: the prompt is empty", 1),
    (b"prompt,label\na,1\n,0\n", "standard input, line 3: the prompt is empty", 1),
    (b'{"prompt": "a"}\n\n[1]\n', "standard input, line 3: a row must be an object", 1), (b'{"text": "a"}\n', "standard input, line 1: the prompt is missing", 0),
    (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "standard input, line 2: not UTF-8: byte 0xff at column 13", 1), (b"", "standard input: the set is empty", 0),
    (b'{"prompt": 3}\n', "standard input, line 1: prompt must be text", 0), (b'{"prompt": "a", "response": []}\n', "standard input, line 1: response must be text", 0),
    (b'{"prompt": "a"}\n{"prompt": "nan"}\n', "standard input, line 2: the guard's score is nan", 1), (b'{"prompt": "\\ud800"}\n', "standard input, line 1", 0),
    (b"nonsense\n", "standard input, line 1: neither JSON nor a CSV header", 0), (b"\x1f\x8b\x08\x00", "standard input", 0),
])
def test_score_errors_name_the_line_and_keep_what_was_scored(capsys, fakes, monkeypatch, content, message, written):
    stdin(monkeypatch, content)
    assert cli.main(["score", "--model", "m"]) == 2
    got = capsys.readouterr()
    assert message in got.err and len(got.err.splitlines()) == 1 and len(got.out.splitlines()) == written


def test_score_options_are_checked(capsys, fakes, tmp_path):
    assert "--threshold must be in [0, 1], got 2.0" in fails(capsys, "score", "--model", "m", "--threshold", "2")
    assert "unrecognized arguments: --out --seed 1" in fails(capsys, "score", "--model", "m", "--out", "x", "--seed", "1")
    assert "--batch-size must be >= 1, got 0" in fails(capsys, "score", "--model", "m", "--batch-size", "0")
    assert f"{tmp_path / 'none'}: no such file" in fails(capsys, "score", "--model", "m", str(tmp_path / "none"))


def test_score_stops_quietly_when_its_reader_does(tmp_path):
    code = ("import sys, numpy as np\nfrom harmaug import cli\n"
            "class G:\n    threshold = None\n    def score(self, p, r): return np.zeros(len(p), np.float32)\n"
            "cli._guard = lambda args: G()\nsys.exit(cli.main(['score', '--model', 'm', sys.argv[1]]))")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n' * 20_000)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "rows.jsonl")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize(("closed", "argv", "status"), [("1", ["models", "list"], 0), ("2", ["run", "none.toml"], 2), ("012", ["models", "list"], 0)])
def test_closed_streams(tmp_path, closed, argv, status):
    command = f"exec {sys.executable} -m harmaug {' '.join(argv)} {' '.join(f'{fd}>&-' for fd in closed)}"
    got = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (got.returncode, got.stdout, got.stderr) == (status, "", "")


def test_a_failed_gate_counts_when_nobody_reads(folder):
    Path("scores.jsonl").write_text("".join(f'{{"label": {i % 2}, "score": 0.{i % 7}}}\n' for i in range(20)))
    for argv, status in ((["--gate", "auprc>=0.99"], 1), ([], 0)):
        read, write = os.pipe()
        os.close(read)
        got = subprocess.run([sys.executable, "-m", "harmaug", "evaluate", "--scores", "scores.jsonl", "--draws", "0", *argv], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert got.returncode == status and got.stderr.count("gate auprc>=0.99 failed") == status and "Error" not in got.stderr


def test_a_run_goes_on_when_nobody_reads(fakes, folder, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["run", "config.toml", "--out", "r"]) == 0
    assert runs.read_info(Path("r"))["stages"]["label"]["done"] and Path("r/report.html").exists()


def test_offline_asks_no_server(capsys, fakes, folder, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    Path("t.jinja").write_text("{{ messages[0].content }}")
    Path("config.toml").write_text(CONFIG.replace("[augment]", '[generator]\ntemplate = "t.jinja"\n[generator.endpoint]\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\n[augment]'))
    assert "the server http://127.0.0.1:9/v1 needs the network, which --offline (or HARMAUG_OFFLINE) forbids" in fails(capsys, "augment", "config.toml", "--offline", "--out", "r")
    assert "HARMAUG_OFFLINE" not in os.environ


def test_run_stages_and_report(capsys, fakes, folder):
    out = run(capsys, "run", "config.toml").out
    assert all(f"{stage}: " in out for stage in ("augment", "respond", "label")) and "report runs/config/report.html" in out
    whole = {path.name: path.read_bytes() for path in (folder / "runs" / "config").glob("*.jsonl")}
    assert set(whole) == {"instructions.jsonl", "rejected.jsonl", "pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl"} and all(whole.values())
    page = (folder / "runs" / "config" / "report.html").read_text()
    row = json.loads(whole["instructions.jsonl"].splitlines()[0])["prompt"]
    assert "<details>" in page and page.index("<details>") < (page.index(row) if row in page else len(page))
    assert "augment" not in run(capsys, "run", "config.toml", "--json").err     # done already, and quick
    # the stages one by one; only the first needs the configuration
    run(capsys, "augment", "config.toml", "--out", "steps")
    run(capsys, "respond", "--out", "steps", "--quiet")
    accounts = json.loads(run(capsys, "label", "--run", "steps", "--json").out)
    assert accounts["label"]["rows"] == whole["labelled.jsonl"].count(b"\n")
    assert {path.name: path.read_bytes() for path in (folder / "steps").glob("*.jsonl")} == whole
    assert run(capsys, "report", "steps").out == "steps/report.html\n"


def test_seed_option_changes_the_rows(capsys, fakes, folder):
    run(capsys, "augment", "config.toml", "--out", "a", "--quiet")
    run(capsys, "augment", "config.toml", "--out", "b", "--seed", "1", "--quiet")
    assert Path("a/instructions.jsonl").read_bytes() != Path("b/instructions.jsonl").read_bytes()
    run(capsys, "respond", "--out", "b", "--quiet")
    assert json.loads(Path("b/run.json").read_text())["stages"]["respond"]["config"]["seed"] == 1


@pytest.mark.parametrize("change, message", [
    (("[augment]", "[augmentation]"), "config.toml: unknown table [augmentation]; there are data, generator, augment"),
    (("samples = 32", "sampels = 32"), "config.toml: [augment] has no setting sampels; it has benign, exemplars"),
    (("samples = 32", "samples = -2"), "config.toml: [augment] samples must be >= 0, got -2"),
    (("samples = 32", 'samples = "many"'), "config.toml: [augment] Expected `int`, got `str`"),
    (("samples = 32", "samples = "), "config.toml: wrong TOML: Invalid value (at line 6"),
    (('responses = "pairs"', 'responses = "all"'), "config.toml: [respond] responses must be one of none, refusal, pairs, got 'all'"),
    (('responses = "pairs"', 'responses = "pairs"\nmax_new_tokens = 97'), "config.toml: [respond] max_new_tokens must be <= 96 for compliant responses, got 97"),
    (("seed.jsonl", "none.jsonl"), "none.jsonl: no such file"), (("[data]\nseed = [\"seed.jsonl\"]", "[data]"), "config.toml: [data] Object missing required field `seed`"),
    (("[data]", "x = 1\n[data]"), "config.toml: x stands outside a table"),
    (("[augment]", "[generator]\nbatch_size = 0\n[augment]"), "config.toml: [generator] batch_size must be in [1, 65536], got 0"),
    (("[label]", "[evaluate]\nlong = 'x'\n[label]"), "config.toml: [evaluate] long must be one of windows, truncate, error, got 'x'"),
    (("[label]", "[evaluate]\nthreshold = 5.0\n[label]"), "config.toml: [evaluate] threshold must be in [0, 1], got 5.0"),
])
def test_configuration_errors(capsys, fakes, folder, change, message):
    assert change[0] in CONFIG
    Path("config.toml").write_text(CONFIG.replace(*change))
    assert message in fails(capsys, "run", "config.toml")


@pytest.mark.parametrize("content, message", [
    ('{"prompt": "secret words", "label": "dangerous"}\n', "seed.jsonl, line 2: unknown label 'dangerous'"), ('{"prompt": "secret words", \n', "seed.jsonl, line 2: wrong JSON"),
    ('{"prompt": "secret words", "unsafe-score": "nan"}\n', "seed.jsonl, line 2: unsafe-score must be a number in [0, 1], got 'nan'"),
])
def test_data_errors_name_file_and_line_but_no_text(capsys, fakes, folder, content, message):
    Path("seed.jsonl").write_text('{"prompt": "fine", "label": 0}\n' + content)
    line = fails(capsys, "run", "config.toml")
    assert message in line and "secret" not in line


def test_stage_order_and_folder_errors(capsys, fakes, folder):
    assert "respond needs CONFIG, or --out RUN of a run that was begun" in fails(capsys, "respond")
    assert "nowhere: not a run folder: no run.json; name a CONFIG" in fails(capsys, "respond", "--out", "nowhere")
    assert "stage augment is not run; run `harmaug augment --out other` first" in fails(capsys, "respond", "config.toml", "--out", "other")
    assert "config.toml: the table [distil] is missing" in fails(capsys, "distil", "config.toml", "--out", "other")
    assert "missing.toml: no such file" in fails(capsys, "run", "missing.toml")
    assert "nowhere: not a run folder" in fails(capsys, "report", "nowhere")
    run(capsys, "augment", "config.toml", "--out", "other", "--quiet")
    Path("config.toml").write_text(CONFIG.replace("samples = 32", "samples = 33"))
    assert "stage augment was begun with another samples (then 32, now 33)" in fails(capsys, "augment", "config.toml", "--out", "other")


def test_torchruns_processes_read_the_engine_of_the_run(capsys, fakes, folder, monkeypatch):
    from harmaug import torch_processes

    helped = []
    monkeypatch.setattr(torch_processes, "help_first", lambda: helped.append(True))
    Path("config.toml").write_text(CONFIG + '[distil]\nengine = "torch"\n')
    run(capsys, "augment", "config.toml", "--out", "r", "--quiet")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    before = Path("r/run.json").read_bytes()
    run(capsys, "distil", "--out", "r")
    run(capsys, "distil", "--out", "not on this machine", "--engine", "torch")
    assert helped == [True] * 2 and Path("r/run.json").read_bytes() == before


def test_nan_teacher_names_the_row(capsys, fakes, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "load_teacher", lambda config, **options: pipeline.teacher.CallableTeacher(lambda p, r: [0.5] * (len(p) - 1) + [np.nan], config.name))
    line = fails(capsys, "run", "config.toml", "--out", "r")
    n = Path("r/pairs.jsonl").read_bytes().count(b"\n")
    assert f"r/pairs.jsonl, row {n}: the score of teacher standin must be in [0, 1], got nan" in line


def test_ctrl_c_says_how_to_go_on(capsys, fakes, folder, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "load_generator", stop)
    got = run(capsys, "run", "config.toml", "--seed", "3", status=130)
    assert "interrupted, nothing is lost; to go on: harmaug run config.toml --seed 3 --out runs/config" in got.err
    monkeypatch.setattr(cli, "_parser", stop)       # a verb's imports, which take a while
    assert "interrupted" in run(capsys, "evaluate", status=130).err


def test_evaluate_files_of_another_guard(capsys, fakes, folder):
    Path("more.csv").write_text("prompt,label\nshort,0\na much longer prompt than that,1\n")
    report = json.loads(run(capsys, "evaluate", "--model", "m", "test.jsonl", "more.csv", "--json").out)
    assert report["schema_version"] == 1 and set(report["datasets"]) == {"test", "more"} and report["datasets"]["more"]["auprc"] == 1
    assert "AUPRC" in run(capsys, "evaluate", "--model", "m", "more.csv").out
    assert "needs a labelled FILE" in fails(capsys, "evaluate", "--model", "m")
    Path("more.csv").write_text("prompt,label\nshort,\n")
    assert "more.csv: every label is null" in fails(capsys, "evaluate", "--model", "m", "more.csv")
    Path("more.csv").write_text("prompt\nshort\n")
    assert "row 1: an evaluation row needs a label" in fails(capsys, "evaluate", "--model", "m", "more.csv")


def test_gates_thresholds_and_baselines(capsys, fakes, folder):
    """Status 1 and JUnit XML when a gate fails; what was fitted is told; scores stand for a model."""
    Path("more.csv").write_text("prompt,label\n" + "".join(f"{'p' * n},{n > 20:d}\n" for n in (5, 10, 15, 22, 25, 30, 18, 35)))
    out = run(capsys, "evaluate", "--model", "m", "more.csv", "--gate", "auprc>=0.9,fpr<=0.5", "--junit", "j.xml", "--draws", "20").out
    assert "AUPRC" in out and 'failures="0"' in Path("j.xml").read_text()
    assert "--out is for the evaluation of a run" in fails(capsys, "evaluate", "--model", "m", "more.csv", "--out", "r")
    err = run(capsys, "evaluate", "--model", "m", "more.csv", "--gate", "precision>1,fpr<=0.5", "--junit", "j.xml", "--draws", "0", status=1).err
    assert "gate precision>1 failed for more: precision at the threshold 0.5 is 1.0000, wanted > 1" in err
    assert 'failures="1"' in Path("j.xml").read_text()
    report = json.loads(run(capsys, "evaluate", "--model", "m", "more.csv", "--fit-threshold", "fpr=0", "--by", "length", "--baseline", "other", "--json", "--draws", "20").out)
    assert 18 / 40 < report["fitted"]["threshold"] < 22 / 40 and "flatter" in report["fitted"]["note"] and report["datasets"]["more"]["at_fitted_threshold"]["f1"] == 1
    assert report["datasets"]["more"]["baselines"]["other"]["comparison"]["mcnemar"]["p"] == 1 and report["datasets"]["more"]["slices"]["length"]["0-99"]["n"] == 8
    out = run(capsys, "evaluate", "--model", "m", "more.csv", "test.jsonl", "--fit-threshold", "fpr=0", "--by", "length", "--draws", "20").out
    assert "fitted for fpr=0 on 10 rows: threshold" in out and "flatter" in out and "(fitted)" in out
    scored = run(capsys, "score", "--model", "m", "more.csv").out
    Path("scored.jsonl").write_text(scored)
    again = json.loads(run(capsys, "evaluate", "--scores", "scored.jsonl", "--baseline", "scored.jsonl", "--json", "--draws", "20").out)
    assert again["datasets"]["scored"]["auprc"] == report["datasets"]["more"]["auprc"]
    assert "--junit needs --gate" in fails(capsys, "evaluate", "--scores", "scored.jsonl", "--junit", "j.xml")
    assert "--save needs --model" in fails(capsys, "evaluate", "--model", "nowhere", "more.csv", "--save", "--calibrate")
    assert "--fit-threshold needs --model or --scores" in fails(capsys, "evaluate", "config.toml", "--fit-threshold", "f1")
    assert "with --long truncate" in fails(capsys, "evaluate", "--model", "m", "more.csv", "--fit-threshold", "f1", "--protocol", "harmaug-2024")
    assert "--protocol must be one of default, harmaug-2024" in fails(capsys, "evaluate", "--model", "m", "more.csv", "--protocol", "x")
    assert "--threshold must be in [0, 1]" in fails(capsys, "evaluate", "--model", "m", "more.csv", "--threshold", "2")
    assert "target must be f1, fpr=X or recall=X" in fails(capsys, "evaluate", "--model", "m", "more.csv", "--fit-threshold", "x")


def test_options_that_are_given_twice_all_count(capsys, folder):
    for name, low in (("a", 0.1), ("b", 0.9)):
        Path(f"{name}.jsonl").write_text(f'{{"label": 0, "score": {low}}}\n{{"label": 1, "score": 0.8}}\n')
    Path("safe.jsonl").write_text('{"label": 0, "score": 0.9}\n')
    argv = ["evaluate", "--scores", "a.jsonl", "--draws", "0"]
    report = json.loads(run(capsys, *argv, "--baseline", "b.jsonl", "--baseline", "a.jsonl", "--json").out)
    assert list(report["datasets"]["a"]["baselines"]) == ["b.jsonl", "a.jsonl"]
    assert set(json.loads(run(capsys, *argv, "--scores", "b.jsonl", "--json").out)["datasets"]) == {"a", "b"}
    assert "gate fpr<=0.5 failed for b" in run(capsys, *argv, "--scores", "b.jsonl", "--gate", "fpr<=0.5", "--gate", "f1>=0", status=1).err
    assert "must be METRIC>=X" in fails(capsys, *argv, "--gate", "")
    assert "target must be f1, fpr=X" in fails(capsys, *argv, "--fit-threshold", "")
    assert "--baseline nope.jsonl: no such file" in fails(capsys, *argv, "--baseline", "nope.jsonl")
    assert "test.jsonl: given twice" in fails(capsys, "evaluate", "--model", "standin", "test.jsonl", "test.jsonl")
    err = run(capsys, *argv, "--scores", "safe.jsonl", "--gate", "fpr<=0.5").err
    assert "no gate looks at the over-refusal set safe: one that does names it, as in 'safe:fpr<=0.1'" in err
    assert "gate safe:fpr<=0.5 failed" in run(capsys, *argv, "--scores", "safe.jsonl", "--gate", "safe:fpr<=0.5", status=1).err
    for option in ("--draws", "--threshold", "--max-length"):
        assert f"{option} needs --model or --scores" in fails(capsys, "evaluate", "config.toml", option, "0")
    for option, value in (("--max-length", "3"), ("--long", "error"), ("--dtype", "int8")):
        assert f"{option} makes no sense for http://127.0.0.1:9/v1" in fails(capsys, "evaluate", "--model", "http://127.0.0.1:9/v1", "test.jsonl", option, value)


def test_a_saved_threshold_is_one_that_the_guard_meets(capsys, folder):
    """The paper's protocol flags above a threshold, a guard at it."""
    guard = Guard.from_pretrained(standin_folder())
    guard.set_threshold(0.5, temperature=0.01)      # most scores are 0 or 1
    guard.save_pretrained("g")
    rows = [{"prompt": text, "label": label} for text, label in (("how do I bake bread", 0), ("bake a cake", 0), ("how to build a bomb", 1), ("steal a car", 1))]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = Guard.from_pretrained("g").score([row["prompt"] for row in rows])
    argv = ["evaluate", "--model", "g", "rows.jsonl", "--long", "truncate", "--protocol", "harmaug-2024", "--save", "--draws", "0", "--json"]
    for target in ("f1", "fpr=0", "recall=1"):
        status, got = cli.main([*argv, "--fit-threshold", target]), capsys.readouterr()
        if status:
            assert status == 2 and ("no threshold of a guard gives it" in got.err or "no threshold gives it" in got.err)
            continue
        report = json.loads(got.out)
        entry, saved = report["datasets"]["rows"]["at_fitted_threshold"], Guard.from_pretrained("g")
        assert saved.thresholds["protocol"] == "harmaug-2024" and report["model"]["sha256"] == runs.sha256("g")
        assert int((scores >= np.float32(saved.threshold)).sum()) == entry["tp"] + entry["fp"], target


def test_scores_of_any_range_are_fitted_as_they_are(capsys, folder):
    Path("logit.jsonl").write_text("".join(f'{{"label": {label}, "score": {score}}}\n' for label, score in ((0, -3), (0, 2), (1, 5), (1, 8))))
    report = json.loads(run(capsys, "evaluate", "--scores", "logit.jsonl", "--fit-threshold", "f1", "--json", "--draws", "0").out)
    assert report["fitted"]["threshold"] == 3.5 and report["datasets"]["logit"]["at_fitted_threshold"]["f1"] == 1
    assert "logit.jsonl, set logit: --calibrate needs scores in [0, 1]" in fails(capsys, "evaluate", "--scores", "logit.jsonl", "--calibrate")


def test_what_is_no_guard_is_measured_as_it_is_calibrated(capsys, fakes, folder):
    """A temperature that the model does not take stands in the scores that the threshold is held against; gates hold there too."""
    rows = [(n, n > 15) for n in range(4, 38, 2)] + [(30, False), (8, True)]
    Path("more.csv").write_text("prompt,label\n" + "".join(f"{'p' * n},{label:d}\n" for n, label in rows))
    argv = ["evaluate", "--model", "m", "more.csv", "--calibrate", "--fit-threshold", "fpr=0.1", "--draws", "0"]
    report = json.loads(run(capsys, *argv, "--json").out)
    entry = report["datasets"]["more"]
    assert report["fitted"]["temperature"] != 1 and entry["at_fitted_threshold"]["fpr"] == report["fitted"]["value"] <= 0.1 < entry["fpr"]
    assert run(capsys, *argv, "--gate", "fpr<=0.1")
    assert "fpr at the threshold 0.5 is" in run(capsys, *argv, "--gate", "fpr<=0.1", "--threshold", "0.5", status=1).err
    Path("scored.jsonl").write_text(run(capsys, "score", "--model", "m", "more.csv").out)
    again = json.loads(run(capsys, "evaluate", "--scores", "scored.jsonl", *argv[4:], "--json").out)
    assert again["datasets"]["scored"]["at_fitted_threshold"]["fpr"] == entry["at_fitted_threshold"]["fpr"]


def test_evaluate_records_what_it_read(capsys, fakes, folder, monkeypatch):
    Path("odd.csv").write_text("text,toxic\nshort,no\na much longer prompt than that,yes\n")
    Path("model").mkdir()
    Path("model/weights").write_text("x")
    report = json.loads(run(capsys, "evaluate", "--model", "model", "odd.csv", "--layout", "prompt=text,label=toxic,unsafe=yes,safe=no", "--training", "test.jsonl",
                            "--json", "--draws", "0").out)
    Draft202012Validator(json.loads((ROOT / "harmaug" / "data" / "metrics.schema.json").read_text())).validate(report)
    cohort = report["datasets"]["odd"]["cohort"]
    assert cohort["layout"] == {"prompt": "text", "label": "toxic", "unsafe": ["yes"], "safe": ["no"]} and (cohort["rows"], cohort["n_null"]) == (2, 0)
    assert report["model"] == {"name": "model", "sha256": runs.sha256("model")} and report["training"] == {"file": "test.jsonl", "sha256": runs.sha256("test.jsonl"), "rows": 2}


@pytest.mark.parametrize("argv, message", [
    (["--long", "error"], "--long makes no sense beside --scores"), (["--max-length", "3"], "--max-length makes no sense beside --scores"), (["--fit-on", "x"], "--fit-on needs --fit-threshold or --calibrate"),
    (["--threshold", "inf"], "--threshold must be a finite number, got inf"), (["--by", "categroy"], "slices by categroy: no row has this column"),
    (["--junit", "j.xml"], "--junit needs --gate"), (["--gate", "foo>=1"], "must be METRIC>=X"), (["--layout", "nosuch"], "layout must be one of"),
])
def test_scores_refuse_what_they_cannot_follow(capsys, folder, argv, message):
    Path("s.csv").write_text("label,score\n1,0.9\n0,0.2\n")
    assert message in fails(capsys, "evaluate", "--scores", "s.csv", *argv)


def test_gates_are_read_before_anything_is_scored(capsys, folder, monkeypatch):
    monkeypatch.setattr(cli, "_guard", None)
    assert "must be METRIC>=X" in fails(capsys, "evaluate", "--model", "m", "test.jsonl", "--gate", "foo>=1")
    assert "--junit needs --gate" in fails(capsys, "evaluate", "config.toml", "--junit", "j.xml")


def test_unexpected_errors_show_no_text(capsys, fakes, folder, monkeypatch):
    def broken(*args, **options):
        raise KeyError("secret words")

    monkeypatch.setattr(pipeline, "run_config", broken)
    assert fails(capsys, "run", "config.toml") == "harmaug: internal error KeyError; --debug shows where. Please report it"
    with pytest.raises(KeyError):
        cli.main(["run", "config.toml", "--debug"])


def test_ctrl_c_of_a_real_process(folder):
    """The whole command, stopped by a signal: status 130 and the command that goes on."""
    code = ("import sys, time\nsys.path.insert(0, sys.argv.pop(1))\nimport test_cli, fake_generator\nfrom pathlib import Path\nfrom harmaug import cli, pipeline\n"
            "pipeline.load_generator = lambda config, **o: fake_generator.FakeGenerator(slow=0.05)\n"
            "pipeline.model_path = lambda name: Path(fake_generator.__file__)\nsys.exit(cli.main(sys.argv[1:]))")
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT / "tests"), "run", "config.toml", "--out", "r"], stderr=subprocess.PIPE, text=True)
    while not Path("r/instructions.jsonl").exists() or not Path("r/instructions.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and err == "harmaug: interrupted, nothing is lost; to go on: harmaug run config.toml --out r\n"


def test_rows_without_a_label_are_named_by_file_before_anything_runs(capsys, fakes, folder):
    """A run that trains or measures reads its files whole at the start: nobody waits for hours to hear of row 2."""
    bare = '{"prompt": "a row", "label": 1}\n{"prompt": "another row"}\n'
    Path("test.jsonl").write_text(bare)
    Path("config.toml").write_text(CONFIG + "[evaluate]\n")
    assert "test.jsonl, row 2: an evaluation row needs a label" in fails(capsys, "run", "config.toml")
    assert "test.jsonl, row 2: an evaluation row needs a label" in fails(capsys, "evaluate", "--model", "m", "test.jsonl")
    assert not list(Path("runs/config").glob("*.jsonl"))
    Path("seed.jsonl").write_text(bare)
    Path("config.toml").write_text('[data]\nseed = ["seed.jsonl"]\n[distil]\n')
    assert "seed.jsonl, row 2: neither a label nor an unsafe-score" in fails(capsys, "run", "config.toml", "--out", "r")
    Path("seed.jsonl").write_text(bare.splitlines()[0])
    assert "config.toml: the rows of [data] seed: one class only, every row is unsafe" in fails(capsys, "run", "config.toml", "--out", "r")


def test_a_folder_instead_of_a_file_is_said(capsys, fakes, folder):
    Path("rows").mkdir()
    assert "rows: Is a directory" in fails(capsys, "score", "--model", "m", "rows")


def test_settings_of_a_stage_that_made_nothing_yet_may_change(capsys, fakes, folder, monkeypatch):
    """A typing error that only the model sees does not cost the run folder."""
    def broken(config, **options):
        raise ValueError("no such dtype")

    with monkeypatch.context() as m:
        m.setattr(pipeline, "load_generator", broken)
        assert "no such dtype" in fails(capsys, "run", "config.toml", "--out", "r")
    Path("config.toml").write_text(CONFIG.replace("samples = 32", "samples = 16"))
    run(capsys, "augment", "config.toml", "--out", "r", "--quiet")
    Path("config.toml").write_text(CONFIG.replace("samples = 32", "samples = 8"))
    assert "was begun with another samples (then 16, now 8)" in fails(capsys, "augment", "config.toml", "--out", "r")
