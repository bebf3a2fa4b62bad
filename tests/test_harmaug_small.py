"""The experiment of benchmarks/harmaug_small.py, whole over tiny models: it goes on from its lines, and the confirming run waits for a committed plan."""
import ast
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_pipeline import write_bert, write_llama

from harmaug import eda
from harmaug.data import Row
from harmaug.report import Table

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PLAN = """
[models]
student = "{bert}"
generator = "{llama}"
[pool]
prompts = ["prompts.jsonl"]
pairs = ["pairs.jsonl"]
teacher_share = 0.4
held_out = 20
pairs_share = 0.25
[sets]
mean = {{ one = "one.jsonl", two = "two.jsonl" }}
over_refusal = ["one"]
max_length = 64
[seeds]
explore = [0, 1]
confirm = [7]
init = [0]
sizes = [32]
validation = 0.25
[teacher]
new_head = true
layers = [0]
batch_size = 16
max_steps = 4
[training]
new_head = true
layers = [0]
batch_size = 8
max_steps = 2
max_length = 64
[generation.list]
augment = {{ samples = 40, benign = 20, max_new_tokens = 30 }}
respond = {{ responses = "pairs", max_new_tokens = 4 }}
[arms.B]
says = "base"
[arms.C]
says = "words changed"
eda = 12
[arms.E]
says = "generated"
generation = "list"
harmful = 3
benign = 2
pairs = 2
balanced = true
by_construction = true
distil = {{ temperature = 2.0 }}
[arms.F]
says = "real"
real = 16
confirm = false
[arms.G]
says = "more real"
real = 24
confirm = false
[arms.H]
base = "C"
says = "rows of another program"
file = "other.jsonl"
harmful = 5
confirm = false
[curves]
rows = {{ real = ["F", "G"], generated = ["E"] }}
[test]
metric = "auprc"
differences = [["E", "B"], ["C", "B"]]
recovered = ["E"]
bound = "F"
goal = 0.04
"""


def load(path):
    spec = importlib.util.spec_from_file_location("harmaug_small", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["harmaug_small"] = module     # where its annotations are looked up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with the program and a plan, and data beside it."""
    monkeypatch.setenv("HARMAUG_CACHE", "")
    (tmp_path / "synonyms.json").write_text(json.dumps({"number": ["figure"], "please": ["kindly"], "tell": ["say"]}))
    monkeypatch.setattr(eda, "WORDNET", tmp_path / "synonyms.json")
    (tmp_path / "bench").mkdir()
    shutil.copy(BENCHMARKS / "harmaug_small.py", tmp_path / "bench")
    plan = PLAN.format(bert=write_bert(tmp_path / "bert", layers=1), llama=write_llama(tmp_path / "tiny.gguf"))
    (tmp_path / "bench" / "harmaug_small.toml").write_text(plan)

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("prompts.jsonl", [{"prompt": f"please tell me to {'harm' if i % 2 else 'help'} person number {'abcdefghij'[i % 10]}{i}", "label": i % 2} for i in range(200)])
    write("pairs.jsonl", [{"prompt": f"tell me about thing {i % 16}", "response": f"it is {'bad' if i % 2 else 'good'} {i}", "label": i % 2} for i in range(80)])
    for name in ("one", "two"):
        write(f"{name}.jsonl", [{"prompt": f"{name} {'harm' if i % 2 else 'help'} {i}", "label": i % 2} for i in range(12)])
    return tmp_path


def test_the_whole_experiment(place, capsys):
    bench = place / "bench"
    module = load(bench / "harmaug_small.py")

    def call(*argv, status=0):
        beside = ("--data", str(place), "--work", str(place / "work")) if argv[0] != "analyse" else ()
        assert module.main([*argv, *beside]) == status, capsys.readouterr().err
        return capsys.readouterr()

    def lines(kind="run"):
        found = [json.loads(line) for line in (bench / "harmaug_small.jsonl").read_text().splitlines()]
        return [line for line in found if line["kind"] == kind]

    assert "no teacher; run `harmaug_small.py prepare` first" in call("explore", status=2).err
    call("prepare")
    shutil.copy(place / "one.jsonl", place / "work" / "other.jsonl")
    assert len(lines("teacher")) == 1
    call("explore", "--shard", "1/2", "--arms", "B", "C", "--inits", "0")
    assert {(line["arm"], line["data_seed"]) for line in lines()} == {("B", 1), ("C", 1)}
    first = lines()
    assert "2 runs, 1 done" in call("explore", "--arms", "B").out
    # a torn last line is cut away and its run made again, with the same figures
    text = (bench / "harmaug_small.jsonl").read_bytes()
    (bench / "harmaug_small.jsonl").write_bytes(text[:-20])
    call("explore")
    assert len(lines()) == 12 and lines()[:2] == first and len(lines("generation")) == 2
    assert "12 runs, 12 done" in call("explore").out and len(lines()) == 12
    of = {(line["arm"], line["data_seed"]): line for line in lines()}
    assert [of[name, 0]["rows"] - of["B", 0]["rows"] for name in "BCEFGH"] == [0, 12, 7, 16, 24, 5]
    assert set(of["B", 0]["sets"]) == {"one", "two"} and 0 <= of["B", 0]["held_out"]["auprc"] <= 1
    # the page, and the plan before the confirming run
    call("analyse")
    page = (bench / "harmaug_small.md").read_text()
    assert (bench / "harmaug_small.toml").read_text() in page and "12 of 12 runs" in page and "E (7 rows added) recovers" in page and "of the gain of F (16)" in page and "Holm over 2 " in page and "Goal: E - B" in page
    assert page.count(" (over C) |") == 1
    assert "| rows added | generated | 7 | E | 2 |" in page and "| rows added | real | 24 | G | 2 |" in page
    assert "harmaug_small-explore-32.svg" in page and "mean auprc minus B" in (bench / "harmaug_small-explore-32.svg").read_text()
    git = ["git", "-C", str(bench), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert "not committed as it stands; the plan comes before the confirming run" in call("confirm", status=2).err
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "plan"], check=True)
    plan = bench / "harmaug_small.toml"
    written = plan.read_text()
    plan.write_text(written.replace("max_steps = 2", "max_steps = 3"))
    assert "does not show the plan" in call("confirm", status=2).err
    plan.write_text(written)
    call("confirm", "--arms", "B", "E")
    assert {(line["arm"], line["data_seed"]) for line in lines() if line["phase"] == "confirm"} == {("B", 7), ("E", 7)}
    # other settings: nothing of the old runs is shown, and what was confirmed is not begun again
    plan.write_text(written.replace("max_steps = 2", "max_steps = 3"))
    call("analyse")
    assert "14 recorded runs have other settings" in (bench / "harmaug_small.md").read_text()
    subprocess.run([*git, "commit", "-qam", "another plan"], check=True)
    assert "the confirming run was begun under another plan" in call("confirm", status=2).err


@pytest.mark.parametrize("old, new, says", [
    ("sizes = [32]", "sizes = [32]\nsize = 1", r"\[seeds\] no setting size|unknown field `size`"),
    ('base = "C"', 'base = "X"', r"\[arms.H\] base: there is no arm X"),
    ("eda = 12", "edda = 12", "edda"), ("[arms.E]\n", "[arms.E]\nconfirm = 3\n", "arms"), ("confirm = [7]", "confirm = [1]", "share a data seed"),
    ("max_steps = 2", "max_step = 2", r"\[arms.B\] distil: no setting max_step"), ('generation = "list"', 'generation = "lists"', "generation lists is not in the plan"),
    ('bound = "F"', 'bound = "I"', r"\[test\] there is no arm I"), ("[test]", "[tests]", r"the table \[tests\] is unknown"),
    ('["F", "G"]', '["F", "I"]', r"\[curves.rows\] there is no arm I"), ("rows = {", "row = {", r"\[curves\] row is none of rows, temperature, exemplars"),
    ("samples = 40", "samples = -1", r"\[generation.list\] augment samples must be >= 0"), ("real = 24", "real = 2400", "prompts are wanted"),
    ("harmful = 3", "harmful = 300", "ask for more in"), ("harmful = 5", "harmful = 13", "12 rows, arm H wants 13"),
])
def test_errors_name_the_place(place, capsys, old, new, says):
    module = load(place / "bench" / "harmaug_small.py")
    plan = place / "bench" / "harmaug_small.toml"
    plan.write_text(plan.read_text().replace(old, new))
    (place / "work").mkdir()
    shutil.copy(place / "one.jsonl", place / "work" / "other.jsonl")
    late = any(word in says for word in ("wanted", "ask for", "wants"))
    if late:
        assert module.main(["prepare", "--data", str(place), "--work", str(place / "work")]) == 0
        capsys.readouterr()
    assert module.main(["explore", "--data", str(place), "--work", str(place / "work")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    import re
    assert re.search(says, err), err


def test_responses_of_which_half_are_flagged():
    module = load(BENCHMARKS / "harmaug_small.py")
    rows = [Row(prompt=f"ask {i}", id=f"i{i}", unsafe_score=0.9, extra={"kind": "harmful"}) for i in range(10)]
    rows += [Row(prompt=f"ask {i}", response="so", unsafe_score=0.9 if i < 3 else 0.1, extra={"instruction": f"i{i}"}) for i in range(10)]
    arm = module.Arm(says="", generation="list", harmful=10, pairs=4, balanced=True)
    assert [sum(row.hard_label for row in module.chosen(rows, module.msgspec.structs.replace(arm, pairs=n), "")[10:]) for n in (4, 8, 10)] == [2, 3, 3]
    assert [len(module.chosen(rows, module.msgspec.structs.replace(arm, pairs=n), "")) for n in (4, 8, 10)] == [14, 18, 20]


def test_statistics():
    module = load(BENCHMARKS / "harmaug_small.py")
    rng = np.random.default_rng(0)
    x = rng.normal(0.05, 0.02, 6)
    mean, low, high, p = module.t_test(x)
    known = stats.ttest_1samp(x, 0)
    assert (low, high) == pytest.approx(tuple(known.confidence_interval())) and p == pytest.approx(known.pvalue) and mean == x.mean()
    assert module.holm([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.06, 0.06]) and module.holm([0.01, 0.04], 4) == pytest.approx([0.04, 0.12])
    # Fieller covers the ratio of the means about as often as it says
    hits, draws = 0, 400
    for _ in range(draws):
        y = rng.normal(0.06, 0.02, 6)
        _, low, high = module.ratio_interval(0.8 * y + rng.normal(0, 0.01, 6), y)
        hits += low <= 0.8 <= high
    assert 0.91 < hits / draws < 0.99
    assert module.ratio_interval([1.0, 2.0, 3.0], [0.1, -0.1, 0.01])[1:] == (-math.inf, math.inf)


def test_rows_of_equal_worth(place):
    """The place of an arm's gain on the curve of real rows that the plan names; none without two points of it."""
    module = load(BENCHMARKS / "harmaug_small.py")
    plan = module.Plan(place / "bench" / "harmaug_small.toml")

    def results(**gains):
        lines = [{"phase": "explore", "size": 32, "arm": arm, "data_seed": seed, "init_seed": 0, "sets": {"one": {"auprc": 0.5 + gain + seed / 100}}}
                 for arm, gain in {"B": 0.0, **gains}.items() for seed in range(3)]
        return module.Results(plan, lines, "explore", 32)

    assert module.equal_rows(results(E=0.15, F=0.1, G=0.2), "E", "auprc") == pytest.approx((20, 20, 20, 3))
    assert module.equal_rows(results(E=0.3, F=0.1, G=0.2), "E", "auprc") == (math.inf, math.inf, math.inf, 3)
    assert module.equal_rows(results(E=0.05, F=0.1), "E", "auprc")[3] == 0


def test_the_notebook_shows_what_is_recorded(monkeypatch):
    notebook = BENCHMARKS.parent / "notebooks" / "07_experiment.ipynb"
    cell = next(cell for cell in json.loads(notebook.read_text())["cells"] if "harmaug_small.Plan" in "".join(cell["source"]))
    monkeypatch.chdir(notebook.parent)
    *body, last = ast.parse("".join(cell["source"])).body
    names = {"Table": Table, "np": np}
    exec(compile(ast.Module(body, []), notebook.name, "exec"), names)
    assert repr(eval(compile(ast.Expression(last.value), notebook.name, "eval"), names)) == "".join(cell["outputs"][0]["data"]["text/plain"])
