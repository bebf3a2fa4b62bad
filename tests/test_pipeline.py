"""The whole way over tiny real models: native generator, teacher and student, through the command line."""
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bert_model
import fake_generator
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tiny_llama import SPECIAL, TOKENS, Tiny, weights, write_gguf

from harmaug import card, cli, eda, evaluate, models, pipeline, quickstart, runs, sweep, teacher
from harmaug.data import DataError, Row, read_rows
from harmaug.distill import DistillConfig
from harmaug.guard_families import LanguageModelTeacher
from harmaug.runs import RunFolder

ROWS = ("instructions.jsonl", "rejected.jsonl", "pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl", "scores.jsonl")
CONFIG = """
[data]
seed = ["seed.jsonl"]
evaluation = {{ held_out = "test.jsonl" }}
[generator]
model = "{lm}"
batch_size = {batch_size}
dtype = "float32"
[augment]
samples = 40
benign = 20
max_new_tokens = 30
[respond]
responses = "pairs"
max_new_tokens = 8
limit = 6
[label]
teacher = "{bert}"
[distil]
student = "{bert}"
layers = [0, 2]
new_head = true
lr = 1e-3
warmup_steps = 2
batch_size = 16
max_steps = 12
max_length = 64
validation_fraction = 0.2
[evaluate]
long = "truncate"
draws = 50
"""


def write_llama(path):
    """A model whose samples are letters and spaces: all embeddings share a direction that letters' rows of the head point along."""
    c = Tiny(context=2048)
    w = weights(c)
    rng = np.random.default_rng(3)
    common = rng.normal(0, 0.15, c.hidden).astype(np.float32)
    letters = [i for i, token in enumerate(TOKENS) if i >= len(SPECIAL) and re.fullmatch("[a-z]|\u0120", token)]
    w["model.embed_tokens.weight"] += 20 * common
    w["lm_head.weight"] -= common * 2
    w["lm_head.weight"][letters] += common * 8
    w["lm_head.weight"][TOKENS.index("\u0120")] *= 1.1
    w["lm_head.weight"][TOKENS.index("\u010a")] = w["lm_head.weight"][letters].mean(0) * 1.08    # newline
    write_gguf(path, c, w)
    return path


def write_bert(folder, layers=6, seed=1):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"{mark}{letter}" for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz0123456789"), ".", ",", "?", "'"]
    c = bert_model.config(vocab_size=len(words), max_position_embeddings=512, num_hidden_layers=layers)
    bert_model.write(folder, c, bert_model.weights(c, seed))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return write_llama(folder / "tiny.gguf"), write_bert(folder / "bert")


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    Path("seed.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in fake_generator.seed_rows()))
    Path("test.jsonl").write_text("".join(json.dumps({"prompt": f"{'How to harm' if i % 2 else 'How to help'} person {i}", "label": i % 2}) + "\n" for i in range(20)))
    return tmp_path


def run(tiny, out, *argv, batch_size=8):
    Path("config.toml").write_text(CONFIG.format(lm=tiny[0], bert=tiny[1], batch_size=batch_size))
    assert cli.main(["run", "config.toml", "--out", out, "--quiet", *argv]) == 0
    return {path.name: path.read_bytes() for path in Path(out).glob("*.jsonl")}, json.loads(Path(out, "metrics.json").read_text())


def test_the_whole_way_twice_and_with_other_batches_and_threads(folder, tiny, capsys):
    rows, metrics = run(tiny, "first", "--n-threads", "1")
    assert set(rows) == {*ROWS, "scores.jsonl"} and rows["instructions.jsonl"] and rows["labelled.jsonl"].count(b"\n") > 81
    info = json.loads(Path("first/run.json").read_text())
    assert list(info["stages"]) == list(pipeline.STAGES) and all(stage["done"] for stage in info["stages"].values())
    assert info["stages"]["augment"]["account"]["kept"] >= 5 and info["stages"]["augment"]["made_by"][0]["models"]
    assert info["stages"]["distil"]["account"]["steps"] == 12 and info["stages"]["label"]["teacher"] == {"name": "bert", "licence": "unknown"}
    Draft202012Validator(json.loads((Path(evaluate.__file__).parent / "data" / "metrics.schema.json").read_text())).validate(metrics)
    cohort = metrics["datasets"]["held_out"]["cohort"]
    assert cohort["sha256"] == runs.sha256("test.jsonl") and cohort["contamination"]["exact"] == 0 and cohort["contamination"]["training_rows"] > 80
    part, = evaluate.read_scores("first/scores.jsonl", by=("length",))
    assert evaluate.metrics(part.labels, part.scores)["auprc"] == metrics["datasets"]["held_out"]["auprc"] and set(part.groups["length"]) == {"0-99"}
    assert metrics["datasets"]["held_out"]["n"] == 20 and metrics["schema_version"] == evaluate.SCHEMA_VERSION and metrics["stages"]["augment"]["account"]
    weights_of = Path("first/guard/model.safetensors").read_bytes()
    assert json.loads(Path("first/guard/config.json").read_text())["num_hidden_layers"] == 2
    # the same command again does nothing but measure
    before = Path("first/guard/model.safetensors").stat().st_mtime_ns
    assert run(tiny, "first") == (rows, json.loads(Path("first/metrics.json").read_text())) and Path("first/guard/model.safetensors").stat().st_mtime_ns == before
    # neither batch size nor threads change a byte
    again, measured = run(tiny, "second", "--n-threads", "2", batch_size=32)
    assert again == rows and Path("second/guard/model.safetensors").read_bytes() == weights_of
    assert measured["datasets"] == metrics["datasets"]
    # the guard scores through the command line
    capsys.readouterr()
    assert cli.main(["score", "--model", "first/guard", "test.jsonl"]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in scored] == [row.prompt for row in read_rows("test.jsonl")] and all(0 <= row["score"] <= 1 for row in scored)
    assert cli.main(["evaluate", "--model", "first/guard", "test.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"]["test"]["auprc"] == pytest.approx(metrics["datasets"]["held_out"]["auprc"], abs=1e-6)


def test_the_whole_command_killed_at_random_moments_ends_with_the_same_bytes(folder, tiny):
    rows, metrics = run(tiny, "unbroken")
    rng = random.Random(4)
    command = [sys.executable, "-m", "harmaug", "run", "config.toml", "--out", "killed", "--quiet"]
    kills = 0
    for attempt in range(8):
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}, stdout=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.1, 0.3) + 0.5 * attempt)     # ever longer, so that a slow machine gets there too; short at first for a fast one
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills and subprocess.run(command, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}, stdout=subprocess.DEVNULL).returncode == 0
    assert {path.name: path.read_bytes() for path in Path("killed").glob("*.jsonl")} == rows
    assert Path("killed/guard/model.safetensors").read_bytes() == Path("unbroken/guard/model.safetensors").read_bytes()
    assert json.loads(Path("killed/metrics.json").read_text())["datasets"] == metrics["datasets"]
    assert not [path.name for path in Path("killed").iterdir() if path.name.startswith(".")]


def test_labelled_rows_are_seeds_instructions_and_pairs(folder, tiny):
    rows, _ = run(tiny, "run")
    labelled = read_rows("run/labelled.jsonl")
    seeds, instructions, pairs = labelled[:81], read_rows("run/instructions.jsonl"), read_rows("run/pairs.jsonl") if rows["pairs.jsonl"] else []
    assert [(row.prompt, row.response, row.label) for row in seeds] == [(row.prompt, row.response, row.label) for row in fake_generator.seed_rows()]
    assert [(row.prompt, row.response) for row in labelled[81:]] == [(row.prompt, row.response) for row in instructions + pairs]
    assert all(row.unsafe_score is not None and row.category and row.extra["teacher"] == "bert" for row in labelled)
    assert all(row.label is None for row in labelled[81:])
    scores = teacher.GuardTeacher.from_pretrained(tiny[1]).score([row.prompt for row in labelled], [row.response for row in labelled])
    np.testing.assert_array_equal(np.float32([row.unsafe_score for row in labelled]), scores)


def test_distil_alone_on_labelled_files(folder, tiny):
    """No augmentation: the real-data configuration's shape."""
    config = CONFIG.format(lm="none", bert=tiny[1], batch_size=8)
    Path("config.toml").write_text(config[:config.index("[generator]")] + config[config.index("[distil]"):])
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 0
    assert set(json.loads(Path("r/run.json").read_text())["stages"]) == {"distil", "evaluate"}


def test_baselines_by_one_line(folder, tiny, capsys):
    """TF-IDF and the student without the added rows, trained on the seed rows, measured on the same rows as the guard."""
    Path("config.toml").write_text(CONFIG.format(lm=tiny[0], bert=tiny[1], batch_size=8) + 'baselines = ["plain", "tfidf"]\n')
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 0
    assert "held_out, plain" in capsys.readouterr().out
    info, metrics = (json.loads(Path("r", name).read_text()) for name in ("run.json", "metrics.json"))
    seeds = info["stages"]["label"]["account"]["seed"]
    accounts = {name: info["stages"][name]["account"] for name in ("distil", "distil_plain", "distil_tfidf")}
    assert accounts["distil_tfidf"]["train"] == seeds == accounts["distil_plain"]["train"] + accounts["distil_plain"]["validation"] < accounts["distil"]["train"] + accounts["distil"]["validation"]
    others = metrics["datasets"]["held_out"]["baselines"]
    assert set(others) == {"plain", "tfidf"} and all(found["n"] == 20 and found["comparison"]["mcnemar"]["p"] <= 1 for found in others.values())
    assert Path("r/guard_tfidf/tfidf.json").exists() and cli.main(["evaluate", "--model", "r/guard_tfidf", "test.jsonl", "--gate", "auprc>=0"]) == 0
    Path("alone.toml").write_text('[data]\nseed = ["seed.jsonl"]\nevaluation = { held_out = "test.jsonl" }\n[distil]\nstudent = "tfidf"\n[evaluate]\n')
    assert cli.main(["run", "alone.toml", "--out", "alone", "--quiet"]) == 0
    Path("alone.toml").write_text(Path("alone.toml").read_text() + 'baselines = ["plain"]\n')
    capsys.readouterr()
    assert cli.main(["run", "alone.toml", "--out", "alone", "--quiet"]) == 2 and "the baseline plain is the student itself" in capsys.readouterr().err


def test_what_a_stage_lacks_is_said(folder, tiny, capsys):
    Path("seed.jsonl").write_text("".join(json.dumps({"prompt": "a b", "label": i % 2}) + "\n" for i in range(4)))
    text = '[data]\nseed = ["seed.jsonl"]\nevaluation = { held_out = "test.jsonl" }\n[distil]\nstudent = "tfidf"\n'
    Path("c.toml").write_text(text)
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 2 and "r, rows of stage distil: none of the 4 holds a word of two letters" in capsys.readouterr().err
    Path("c.toml").write_text(f'{text}[label]\nteacher = "{tiny[1]}"\n[evaluate]\n')
    assert cli.main(["evaluate", "c.toml", "--out", "other"]) == 2 and "other: stage label is not run; run `harmaug label" in capsys.readouterr().err


def test_the_baseline_of_changed_words(folder, monkeypatch, capsys):
    """Its table is looked for before anything is trained; variants near an evaluation row are left out."""
    monkeypatch.setattr(eda, "WORDNET", folder / "nowhere")
    seeds = [{"prompt": f"{('bake', 'steal')[i % 2]} a large loaf of bread quickly number {i}", "label": i % 2} for i in range(20)]
    Path("seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seeds))
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seeds[:2]))
    Path("words.json").write_text('{"bread": ["rye"], "quickly": ["rapidly"]}')
    text = '[data]\nseed = ["seed.jsonl"]\nevaluation = { held_out = "test.jsonl" }\n[distil]\nstudent = "tfidf"\n[evaluate]\ndraws = 20\nbaselines = [%s]\n'
    Path("c.toml").write_text(text % '"eda"')
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 2 and "nowhere: no table of synonyms" in capsys.readouterr().err
    assert not Path("r/guard").exists()
    Path("c.toml").write_text(text % '"tfidf", { name = "eda", synonyms = "words.json" }')
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 0
    info, metrics = (json.loads(Path("r", name).read_text()) for name in ("run.json", "metrics.json"))
    rows, seed, table = [Row.from_dict(row) for row in seeds], DistillConfig().seed, {"bread": ["rye"], "quickly": ["rapidly"]}
    added = len(eda.eda_rows(rows, seed, rows[:2], table=table))
    assert info["stages"]["distil_eda"]["account"]["train"] == 20 + added < 20 + len(eda.eda_rows(rows, seed, table=table))
    assert set(metrics["datasets"]["held_out"]["baselines"]) == {"tfidf", "eda"}
    Path("c.toml").write_text(text % '{ name = "plain", synonyms = "words.json" }')
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 2 and "the baseline plain takes no synonyms" in capsys.readouterr().err


def test_seeds_and_sets_in_columns_of_their_own(folder, monkeypatch, capsys):
    monkeypatch.setenv("HARMAUG_DATA", str(folder / "sets"))
    rows = [(f"{('bake', 'steal')[i % 2]} thing {i}", ("no", "yes")[i % 2]) for i in range(24)]
    Path("desk.csv").write_text("text,toxic\n" + "".join(f"{text},{label}\n" for text, label in rows))
    Path("sets").mkdir()
    Path("sets/xstest.jsonl").write_text("".join(json.dumps({"prompt": f"kill process {i}", "label": i % 2}) + "\n" for i in range(6)))
    entry = '{ file = "desk.csv", layout = "prompt=text,label=toxic,unsafe=yes,safe=no" }'
    Path("c.toml").write_text(f'[data]\nseed = ["xstest", {entry}]\nevaluation = {{ desk = {entry} }}\n[distil]\nstudent = "tfidf"\n[evaluate]\ndraws = 0\n')
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 0
    assert json.loads(Path("r/run.json").read_text())["stages"]["distil"]["account"]["train"] == 30
    cohort = json.loads(Path("r/metrics.json").read_text())["datasets"]["desk"]["cohort"]
    assert cohort["layout"] == {"prompt": "text", "label": "toxic", "unsafe": ["yes"], "safe": ["no"]} and cohort["rows"] == 24 and cohort["file"].endswith("desk.csv")
    mapped = ["--layout", "prompt=text,label=toxic,unsafe=yes,safe=no"]
    for training in (["desk.csv", "--training-layout", mapped[1]], ["xstest"]):
        capsys.readouterr()
        assert cli.main(["evaluate", "--model", "r/guard", "desk.csv", *mapped, "--training", *training, "--draws", "0", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["datasets"]["desk"]["cohort"]["contamination"]["exact"] == (24 if len(training) > 1 else 0)
    assert cli.main(["evaluate", "--model", "r/guard", "desk.csv", *mapped, "--training-layout", mapped[1]]) == 2
    Path("c.toml").write_text(Path("c.toml").read_text().replace("{ desk", "{ mean"))
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 2 and "c.toml: [data.evaluation] names a set mean" in capsys.readouterr().err
    Path("c.toml").write_text(Path("c.toml").read_text().replace("{ mean", "{ desk") + 'by = ["sorce"]\n')
    assert cli.main(["run", "c.toml", "--out", "new", "--quiet"]) == 2        # before anything is trained
    assert "c.toml: [evaluate] by: slices by sorce: no row has this column" in capsys.readouterr().err and not Path("new/guard").exists()


def test_evaluation_rows_among_the_seeds_are_said(folder, tiny, caplog):
    Path("test.jsonl").write_text(Path("test.jsonl").read_text() + json.dumps({"prompt": "tell  me how to MISUSE a lamp", "response": "I can't help with that.", "label": 0}) + "\n")
    Path("config.toml").write_text(CONFIG.format(lm="none", bert=tiny[1], batch_size=8).split("[generator]")[0] + f'[distil]\nstudent = "{tiny[1]}"\nmax_steps = 1\n[evaluate]\ndraws = 0\n')
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 0
    assert "config.toml: 1 rows of the evaluation set held_out stand among the seed rows" in caplog.text


@pytest.mark.parametrize("rows, message", [
    ([{"prompt": f"row {i}", "label": 1} for i in range(30)], "one class only"), ([{"prompt": "a row", "label": 1}, {"prompt": "another row"}], "row 2: neither a label nor an unsafe-score"),
])
def test_sets_that_cannot_be_learnt_are_one_line(folder, tiny, capsys, rows, message):
    Path("seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("config.toml").write_text(f'[data]\nseed = ["seed.jsonl"]\n[distil]\nstudent = "{tiny[1]}"\n')
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("harmaug: ") and message in line and "\n" not in line


@pytest.mark.parametrize("table, settings, message", [
    ("continual", {"guard": "g", "seed": 2**64}, r"seed must be in \[0, 9e18\], got 18446744073709551616"), ("label", {"batch_size": 10**20}, r"batch_size must be >= 1 and"),
    ("continual", {"guard": "g", "share": float("inf")}, r"share must be >= 0 and <= 2\*\*53, got inf"), ("frontier", {"students": ["s"], "tokens": 10**400}, "tokens must be >="),
    ("evaluate", {"max_length": 10**20}, r"max_length must be >= 1 and <= 2\*\*53, got 1"), ("data", {"seed": [{"file": "a", "limit": -3}]}, "limit must be >= 0, got -3"),
])
def test_numbers_that_no_stage_can_take_are_refused_before_any_work(table, settings, message):
    with pytest.raises(DataError, match=rf"c.toml: \[{table}\] {message}"):
        pipeline.Config.from_dict({"data": {"seed": []}, table: settings}, "c.toml")


def test_toml_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "c.toml").write_text("[a]\nb = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(DataError, match="c.toml: wrong TOML: nested too deeply"):
        pipeline.read_config(tmp_path / "c.toml")


def test_damaged_and_missing_models_are_one_line(folder, tiny, capsys):
    (folder / "cut.gguf").write_bytes(tiny[0].read_bytes()[:5000])
    for model, message in ((folder / "cut.gguf", "cut.gguf"), ("nowhere/at-all-here", "nowhere/at-all-here")):
        Path("config.toml").write_text(CONFIG.format(lm=model, bert=tiny[1], batch_size=8))
        assert cli.main(["augment", "config.toml", "--out", "r", "--quiet"]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("harmaug: ") and message in line and "\n" not in line


def test_evaluation_rows_and_blocked_seeds_stay_out(folder):
    seeds = [*fake_generator.seed_rows(), Row(prompt="Describe naked kids", label=1, category="fraud")]
    with RunFolder(folder / "run") as run:
        account = pipeline.label(run, lambda prompts, responses: [0.5] * len(prompts), seeds, quiet=True)
        assert account["seed"] == 81 and account["seeds_blocked"] == 1
        assert b"naked" not in (run / "labelled.jsonl").read_bytes()


# -- quick start --


def test_quickstart(folder, tiny, monkeypatch, capsys):
    """On tiny models: every stage, the table, the files; the same command again changes nothing and is quick."""
    places = {"minilm": tiny[1], "smollm2": tiny[0]}
    monkeypatch.setattr(models, "resolve", lambda name, **options: places.get(str(name), Path(name)))
    monkeypatch.setattr(teacher, "standin_folder", lambda: tiny[1])
    argv = ["quickstart", "--samples", "48", "--benign", "32", "--responses", "8", "--steps", "5", "--offline"]
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("harmaug quickstart: ") and lines[1].startswith("download nothing") and "minutes" in lines[2]
    table = "\n".join(lines)
    for words in ("stand-in teacher", "student with augmentation", "student without augmentation", "95 % interval", "F1 at fitted", "base rate", "GFLOPs"):
        assert words in table
    metrics = json.loads(Path("harmaug-quickstart/metrics.json").read_text())
    assert metrics["schema_version"] == 1 and set(metrics["systems"]) == {"teacher", "student with", "student without"}
    assert ("difference within noise" in table) == metrics["comparison"]["within_noise"]
    stages = metrics["stages"]
    assert stages["augment"]["account"]["asked"] == 80 and stages["distil"]["account"]["steps"] == stages["distil_without"]["account"]["steps"] == 5
    assert stages["distil"]["account"]["train"] > stages["distil_without"]["account"]["train"] and stages["distil"]["account"]["validation"] == stages["distil_without"]["account"]["validation"]
    assert metrics["systems"]["student with"]["mb"] < metrics["systems"]["teacher"]["mb"]
    assert metrics["systems"]["student with"]["gflops"] < metrics["systems"]["teacher"]["gflops"]
    page = Path("harmaug-quickstart/report.html").read_text()
    assert "Diversity of the kept instructions" in page and json.loads(Path("harmaug-quickstart/run.json").read_text())["stages"]["augment"]["diversity"]["clusters_by"] == "minilm"
    assert "student with augmentation" in page and "<details" in page and "http" not in page.replace("http-equiv", "")
    assert cli.main([*argv, "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["comparison"] == metrics["comparison"] and again["stages"]["augment"] == metrics["stages"]["augment"]


def test_quickstart_offline_without_models_says_how_to_fetch(folder, monkeypatch, capsys):
    monkeypatch.setenv("HARMAUG_MODELS", str(folder))
    monkeypatch.setenv("HARMAUG_CACHE", str(folder / "cache"))
    assert cli.main(["quickstart", "--offline"]) == 2
    got = capsys.readouterr()
    assert "download nothing" in got.out and "harmaug models fetch" in got.err and not Path("harmaug-quickstart").exists()


@pytest.mark.parametrize(("old", "new", "message"), [
    ('teacher = "{bert}"', 'teacher = "nope"', r"\[label\] teacher: model 'nope' was not found"), ('student = "{bert}"', 'student = "nope"', r"\[distil\] student: model 'nope'"),
    ("layers = [0, 2]", "layers = [0, 99]", r"\[distil\] student: layers 0, 99: \S+ has 6 layers"),
    ("[evaluate]", '[frontier]\nstudents = ["{bert}:99"]\n[evaluate]', r"\[frontier\] students: student \S+:99"), ('model = "{lm}"', 'model = "nope"', r"\[generator\] model: model 'nope'"),
])
def test_models_are_looked_for_before_the_first_stage(folder, tiny, capsys, old, new, message):
    assert old in CONFIG
    Path("config.toml").write_text(CONFIG.replace(old, new).format(lm=tiny[0], bert=tiny[1], batch_size=8))
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 2
    assert re.search(f"config.toml: {message}", capsys.readouterr().err) and not runs.read_info(Path("r"))["stages"]


def test_sizes_are_checked(capsys):
    assert cli.main(["quickstart", "--samples", "0"]) == 2
    assert "samples must be >= 1, got 0" in capsys.readouterr().err


def test_flops_of_bert():
    """all-MiniLM-L6-v2 on 64 tokens, each matrix product by itself."""
    hidden, inner, tokens = 384, 1536, 64
    layer = 2 * tokens * (4 * hidden * hidden + 2 * hidden * inner) + 2 * (2 * tokens * tokens * hidden)
    head = 2 * hidden * hidden + 2 * hidden * 2
    assert quickstart.bert_flops({"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 6}) == 6 * layer + head


def test_the_threshold_of_more_unsafe_validation_rows_than_a_byte_counts():
    labels = np.repeat([0, 1], 130).astype(np.int8)
    distiller = SimpleNamespace(validation_labels_=labels, validation_scores_=np.where(labels, 0.75, 0.25), counts_={}, n_steps_=1, best_step_=1,
                                selected_by_="auprc", config=DistillConfig(student="bert"))
    assert pipeline.summary(distiller)["validation_threshold"] == 0.5


def test_examples_are_valid():
    names = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
    assert len(names) >= 2
    for path in names:
        tables = pipeline.read_config(path)
        if "sweep" in tables:
            assert len(sweep.plan_of(tables, path.name)[1]) > 1
        else:
            pipeline.Config.from_dict(tables, path.name)


def test_the_generators_format_is_recorded_and_kept(folder, tiny, capsys):
    text = CONFIG.format(lm=tiny[0], bert=tiny[1], batch_size=8)
    Path("config.toml").write_text(text.replace('dtype = "float32"', 'dtype = "int4"'))
    assert cli.main(["augment", "config.toml", "--out", "r", "--quiet"]) == 0
    info = json.loads(Path("r/run.json").read_text())["stages"]["augment"]
    assert info["generator"]["dtype"] == "int4" and list(info["made_by"][0]["models"]) == [f"{tiny[0]} in int4"]
    info["done"] = False
    whole = json.loads(Path("r/run.json").read_text())
    Path("r/run.json").write_text(json.dumps({**whole, "stages": {"augment": info}}))
    Path("config.toml").write_text(text)
    capsys.readouterr()
    assert cli.main(["augment", "config.toml", "--out", "r", "--quiet"]) == 2
    assert "stage augment was begun with another models" in capsys.readouterr().err


def test_a_language_model_as_teacher_and_what_the_guard_was_made_of(folder, tiny, caplog, capsys):
    Path("policy.jinja").write_text("Judge:\n{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}Answer:")
    text = CONFIG.format(lm=tiny[0], bert=tiny[1], batch_size=8).replace(
        f'teacher = "{tiny[1]}"', f'teacher = "{tiny[0]}"\nfamily = "llama-guard-3"\ntemplate = "policy.jinja"\nlicence = "llama3.1"')
    Path("config.toml").write_text(text)
    Path("seed.jsonl").write_text(Path("seed.jsonl").read_text() + '{"prompt": "how to harm one more", "label": 1, "source": "mine", "license": "CC-X"}\n')
    assert cli.main(["run", "config.toml", "--out", "r"]) == 0
    rows = read_rows("r/labelled.jsonl")
    audit = teacher.audit(rows)
    assert teacher.describe_audit(audit) in capsys.readouterr().out and audit["n"] == 82
    by_hand = LanguageModelTeacher.from_pretrained(tiny[0], family="llama-guard-3", template="policy.jinja")
    assert [row.unsafe_score for row in rows] == pytest.approx(by_hand.score([r.prompt for r in rows], [r.response for r in rows]), abs=1e-7)
    stages = json.loads(Path("r/run.json").read_text())["stages"]
    assert stages["label"]["teacher"] == {"name": "tiny.gguf", "licence": "llama3.1"} and stages["augment"]["generator"]["licence"] == "unknown"
    assert stages["label"]["config"]["family"] == "llama-guard-3" and stages["label"]["audit"]["n"] == sum(row.label is not None for row in rows)
    text_of = Path("r/guard/README.md").read_text()
    assert "| teacher | tiny.gguf | llama3.1 |" in text_of and "| generator | tiny.gguf | unknown |" in text_of and "\n\n\n" not in text_of
    mine = {"role": "data", "name": "mine", "licence": "CC-X", "rows": "1"}
    assert mine in stages["label"]["data"] and mine in stages["distil"]["parts"] and "| data | mine | CC-X | 1 |" in text_of
    assert "licence unknown of student" in caplog.text
    # another reading is another teacher: the stage does not go on, and its scores are not taken from the cache
    Path("config.toml").write_text(text.replace("[distil]", "temperature = 3.0\n[distil]"))
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 2
    assert cli.main(["run", "config.toml", "--out", "r2", "--quiet"]) == 0
    assert [row.unsafe_score for row in read_rows("r2/labelled.jsonl")] != [row.unsafe_score for row in rows]
    # the first reading again, from the cache
    Path("config.toml").write_text(text)
    assert cli.main(["run", "config.toml", "--out", "r3", "--quiet"]) == 0
    account = json.loads(Path("r3/run.json").read_text())["stages"]["label"]["account"]
    assert account["cached"] == account["rows"] and Path("r3/labelled.jsonl").read_bytes() == Path("r/labelled.jsonl").read_bytes()
    # another policy in the file of the same name is another teacher too
    Path("policy.jinja").write_text("Think again.\n" + Path("policy.jinja").read_text())
    capsys.readouterr()
    assert cli.main(["label", "config.toml", "--out", "r", "--quiet"]) == 2 and "begun with another template_sha256" in capsys.readouterr().err
    label = pipeline.LabelConfig(teacher=str(tiny[0]), family="llama-guard-3", template="policy.jinja")
    scorer = pipeline.load_teacher(label, models=stages["label"]["made_by"][0]["models"])
    scorer.score([rows[0].prompt])
    assert scorer.account == {"cached": 0}


class Paid:
    """Counts its requests, one for each row; fails at the third."""

    name, licence, score = "paid", "MIT", None

    def __init__(self):
        self.account = {"requests": 0, "cost": 0.0}

    def score_each(self, prompts, responses=None):
        for _ in prompts:
            self.account["requests"] += 1
            self.account["cost"] += 0.5
            if self.account["requests"] == 3:
                raise ValueError("no more")
            yield 0.25


def test_what_earlier_calls_cost_is_in_the_account(tmp_path):
    rows = [Row(prompt=f"p{i}", label=0) for i in range(5)]
    for done in (2, 4):
        with RunFolder(tmp_path / "r") as run, pytest.raises(ValueError, match="no more"):
            pipeline.label(run, Paid(), rows, quiet=True)
        assert runs.read_info(tmp_path / "r")["stages"]["label"]["account"]["done"] == done
    with RunFolder(tmp_path / "r") as run:
        account = pipeline.label(run, Paid(), rows, quiet=True)
        assert (account["done"], account["requests"], account["cost"]) == (5, 7, 3.5)
        run.info["stages"]["label"]["done"] = False     # killed before the closing: nothing is asked
        assert pipeline.label(run, Paid(), rows, quiet=True)["cost"] == 3.5


def test_labels_of_one_class_and_a_card_that_fails(folder, tiny, monkeypatch):
    rows = [Row(prompt=f"how to {'harm' if i % 2 else 'help'} {i}", label=1 if i % 2 else None) for i in range(20)]
    config = DistillConfig(student=str(tiny[1]), max_steps=1, new_head=True, validation_fraction=0.0)
    with RunFolder("r") as run:
        pipeline.label(run, lambda prompts, responses: [0.9 if "harm" in prompt else 0.1 for prompt in prompts], rows, quiet=True)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
            patch.setattr(pipeline.card, "write_card", lambda *args, **values: (_ for _ in ()).throw(OSError("full")))
            pipeline.distil(run, config=config, quiet=True)
        before = Path("r/guard/model.safetensors").stat().st_mtime_ns
        assert pipeline.distil(run, config=config, quiet=True)["steps"] == 1 and Path("r/guard/model.safetensors").stat().st_mtime_ns == before
    assert "10 human labels: kappa -, AUPRC -." in Path("r/guard/README.md").read_text()


def test_parts_of_a_guard_that_goes_on_from_another(tmp_path, caplog):
    rows = [Row(prompt="a", label=1, source="mine", license="CC-X"), Row(prompt="b", unsafe_score=0.5, extra={"teacher": "big"}),
            Row(prompt="c", generator="lm|1", soft_label=1), Row(prompt="d", response="e", generator="rm", label=0),
            Row(prompt="f", generator="eda", source="eda:swap", license="CC-X")]
    stages = {"augment": {"generator": {"name": "lm|1", "licence": "MIT", "dtype": "int8"}}}
    data = [("data", "eda:swap", "CC-X", "1"), ("data", "mine", "CC-X", "1"), ("data", "unnamed", "unknown", "1")]
    made = [("generator", "lm/1", "MIT", "1"), ("responder", "rm", "unknown", "1"), ("teacher", "big", "unknown", "1"),
            ("teacher", "unnamed", "unknown", "1"), *data]
    counts = {"rows": 5, "merged": 0, "train": 5, "validation": 0, "steps": 1}
    card.write_card(tmp_path, card.parts_of(stages, rows, "bert", "apache-2.0"), title="g", version="1", audit={}, counts=counts)
    before = card.read_parts(tmp_path)
    assert [tuple(part.values()) for part in before] == [("student", "bert", "apache-2.0", ""), *made]
    assert "licence unknown of responder rm, teacher big, teacher unnamed, data unnamed" in caplog.text
    before[3]["licence"] = "llama3"
    again = card.parts_of({}, rows[1:2], "g", "unknown", before)
    assert [tuple(part.values()) for part in again[:3]] == [("student", "g", "unknown", ""), ("student of g", "bert", "apache-2.0", ""),
                                                           ("generator of g", "lm/1", "MIT", "1")]
    assert [tuple(part.values()) for part in again[-2:]] == [("teacher", "big", "llama3", "1"), ("data", "unnamed", "unknown", "1")]
    assert {part["role"] for part in card.parts_of({}, [], "h", "unknown", again)[2:]} >= {"teacher of g", "data of h"}
    assert card.read_parts(tmp_path / "none") == []


@pytest.mark.parametrize("change, message", [
    ('family = "llama-guard-3"', r"a classifier takes no family"),
    ('guidelines_response = ["no"]', r"a classifier takes no guidelines_response"), ('definition = "odd"', "definition must be one of"),
    ("[label.endpoint]\nurl = 'http://x'\nmodel = 'm'", "an endpoint needs family"), ("[label.endpoint]\nurl = 'http://x'\nmode = 'm'", "unknown field `mode`"),
    ("top_logprobs = 5", "top_logprobs needs an endpoint"),
])
def test_wrong_teacher_settings_are_one_line(folder, tiny, capsys, change, message):
    text = CONFIG.format(lm=tiny[0], bert=tiny[1], batch_size=8)
    Path("config.toml").write_text(text.replace("[distil]", change + "\n[distil]"))
    assert cli.main(["run", "config.toml", "--out", "r", "--quiet"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_stage_in_one_line():
    assert pipeline.describe("evaluate", {"datasets": {"a": {}, "b": {}}, "over_refusal": {"c": {}}}) == "3 sets"
    assert pipeline.describe("evaluate", {"datasets": {"a": {}}, "over_refusal": {}}) == "1 set" and pipeline.describe("frontier", {"rows": [1]}) == "1 model"
    assert pipeline.describe("continual", {"sets": {"a": {}}, "steps": 2}) == "1 set, 2 steps"
