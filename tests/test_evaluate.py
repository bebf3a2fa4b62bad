"""Metrics against scikit-learn, bit for bit; the bootstrap against its definition; protocols, cohorts, score files."""
import dataclasses
import json
import os
import threading
from functools import partial

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from harmaug import data, datasets, evaluate, pipeline
from harmaug.data import Row

SK = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score, "accuracy": sk.accuracy_score}
SCHEMA = json.loads((data.Path(evaluate.__file__).parent / "data" / "metrics.schema.json").read_text())


def sample(seed, n=500, decimals=None):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    s = np.clip(0.35 * y + 0.6 * rng.random(n), 0, 1)
    return y, s if decimals is None else np.round(s, decimals)


def weights_of(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    return {None: None, "real": rng.random(n) * 3, "zeros": rng.integers(0, 3, n).astype(float), "tenths": np.full(n, 0.1),
            "far": 10.0 ** rng.integers(-20, 20, n)}[kind]


def ece(y, s, w):
    """The definition, bin by bin."""
    edges = np.linspace(0, 1, 16)
    w = np.ones(len(y)) if w is None else w
    total = 0.0
    for i in range(15):
        inside = (s > edges[i]) & (s <= edges[i + 1]) if i else s <= edges[1]
        if w[inside].sum():
            total += w[inside].sum() / w.sum() * abs(np.average(y[inside], weights=w[inside]) - np.average(s[inside], weights=w[inside]))
    return total


@pytest.mark.parametrize("weighted", [None, "real", "zeros", "tenths", "far"])
@pytest.mark.parametrize("decimals", [None, 2, 1, 0])      # rounding makes ties
@pytest.mark.parametrize("seed", range(6))
def test_equals_scikit_learn(seed, decimals, weighted):
    y, s = sample(seed, n=37 * (seed + 1) ** 2, decimals=decimals)
    w = weights_of(weighted, len(y), seed)
    m = evaluate.metrics(y, s, threshold=0.5, sample_weight=w)
    flagged = s >= 0.5
    assert m["auprc"] == sk.average_precision_score(y, s, sample_weight=w)
    assert m["auroc"] == sk.roc_auc_score(y, s, sample_weight=w)
    assert m["brier"] == sk.brier_score_loss(y, s, sample_weight=w)
    for key, function in SK.items():
        assert m[key] == function(y, flagged, sample_weight=w), key
    tn, fp, fn, tp = sk.confusion_matrix(y, flagged, sample_weight=w).ravel().tolist()
    assert (m["tn"], m["fp"], m["fn"], m["tp"]) == (tn, fp, fn, tp) and (m["fpr"], m["fnr"]) == (fp / (fp + tn), fn / (fn + tp))
    assert m["ece"] == pytest.approx(ece(y, s, w), abs=1e-12)
    assert m["n"] == len(y) and m["base_rate"] == pytest.approx(np.average(y, weights=w), rel=1e-13)
    s = s.astype(np.float32)
    m = evaluate.metrics(y, s, sample_weight=w)
    assert m["auprc"] == sk.average_precision_score(y, s, sample_weight=w) and m["brier"] == sk.brier_score_loss(y, s, sample_weight=w)


def test_ece_has_the_bins_of_scikit_learn():
    y, s = sample(1, decimals=2)
    share, mean = calibration_curve(y, s, n_bins=15)
    sizes = np.unique(evaluate._bin(s), return_counts=True)[1]
    assert evaluate.metrics(y, s)["ece"] == pytest.approx(np.sum(sizes * np.abs(share - mean)) / len(y), abs=1e-12)


def test_what_the_data_cannot_give_is_none():
    m = evaluate.metrics([0, 0, 0], [0.1, 0.2, 0.3])
    assert (m["auprc"], m["auroc"], m["recall"], m["precision"], m["fpr"]) == (None, None, None, None, 0.0)
    assert "one class only: all 3 rows are safe" in m["note"]
    assert evaluate.metrics([1, 1], [0.9, 0.1])["fpr"] is None
    assert evaluate.metrics([0, 1], [0.1, 2.0])["ece"] is None and evaluate.metrics([0, 1], [0.1, 2.0])["auprc"] == 1
    assert evaluate.bootstrap([1, 1], [0.9, 0.1]) is None
    assert evaluate.paired_difference([1, 1], [0.9, 0.1], [0.2, 0.1])["within_noise"] is None
    m = evaluate.metrics([0, 1, 1], [0.1, 0.2, 0.3], sample_weight=[1, 0, 0])
    assert m["auprc"] is None and "all 1 rows of any weight are safe" in m["note"]


def test_weights_that_round():
    m = evaluate.metrics([1, 1, 0, 0], [0.9, 0.1, 0.9, 0.9], sample_weight=[0.1] * 4)
    assert (m["tn"], m["fpr"]) == (0, 1)
    y, s, w = [0, 1, 1], [0.1, 0.2, 0.9], [1e-17, 1, 1]
    m = evaluate.metrics(y, s, sample_weight=w)
    assert (m["auroc"], m["auprc"], m["fpr"]) == (sk.roc_auc_score(y, s, sample_weight=w), sk.average_precision_score(y, s, sample_weight=w), 0)
    assert evaluate.intervals(y, s, ("fpr",), sample_weight=w, draws=50)["fpr"] == (0, 0)


def test_null_labels_count_as_the_protocol_says():
    y, s = [1, None, float("nan"), 0], [0.9, 0.2, 0.6, 0.1]
    ours, paper = evaluate.metrics(y, s), evaluate.metrics(y, s, protocol="harmaug-2024")
    assert ours == {**evaluate.metrics([1, 0], [0.9, 0.1]), "note": "2 rows whose label is null left out"}
    assert paper == evaluate.metrics([1, 0, 0, 0], s, protocol="harmaug-2024") and evaluate.intervals(y, s, ("f1",), draws=9) == {"f1": (1, 1)}
    assert evaluate.metrics(y, s, sample_weight=[1, 5, 5, 2])["base_rate"] == 1 / 3
    with pytest.raises(ValueError, match="one length, got shapes"):
        evaluate.metrics(y, s[:2])
    with pytest.raises(ValueError, match="every label is null"):
        evaluate.metrics([None], [0.5])


def test_a_threshold_is_compared_as_a_guard_compares_it():
    scores = np.array([0.7, 0.3], np.float32)
    assert evaluate.metrics([1, 0], scores, 0.7)["tp"] == (scores >= 0.7).sum() == 1
    assert evaluate.mcnemar([1, 0], scores, [0.1, 0.1], threshold=0.7)["only_this"] == 1
    assert evaluate.intervals([1, 1], scores[[0, 0]], ("recall",), threshold=0.7, draws=9)["recall"] == (1, 1)
    part, = evaluate.score_sets(lambda prompts, responses: scores, {"a": [{"prompt": "a", "label": 1}, {"prompt": "b", "label": 0}]})
    assert evaluate.summarise([part], threshold=0.7, draws=0)["datasets"]["a"]["tp"] == 1


@pytest.mark.parametrize("call", [evaluate.intervals, lambda y, s, **o: evaluate.compare(y, s, s, **o)])
def test_draws_and_level_are_named(call):
    for options, message in (({"draws": -1}, "draws must be >= "), ({"level": 95}, r"level must be in \(0, 1\), got 95")):
        with pytest.raises(ValueError, match=message):
            call([0, 1], [0.1, 0.9], **options)
    with pytest.raises(ValueError, match="draws must be >= 1, got 0"):
        evaluate.intervals([0, 1], [0.1, 0.9], draws=0)


def test_without_draws_a_comparison_has_no_verdict():
    one = evaluate.ScoredSet(name="a", labels=np.int8([0, 1, 0, 1]), scores=np.array([0.1, 0.9, 0.6, 0.4]))
    report = evaluate.summarise([one], baselines={"b": [one]}, draws=0)
    found = report["datasets"]["a"]["baselines"]["b"]["comparison"]["auprc"]
    assert found == {"difference": 0, "low": None, "high": None, "p": None, "within_noise": None}
    assert "a: auprc minus that of b +0.000\n" in evaluate.format_table(report) + "\n" and "noise" not in evaluate.format_table(report)
    weighted = evaluate.compare([0, 1, 1], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9], ("recall",), sample_weight=[1, 3, 1], draws=20)["recall"]
    assert weighted["difference"] == 0.5 and weighted["low"] is not None


@pytest.mark.parametrize("labels, scores, weights, message", [
    ([], [], None, "the set is empty"),
    ([0, 1], [0.5], None, "one length"),
    ([0, 1, 1], [0.1, float("nan"), 0.3], None, "row 1: the score is not finite"),
    ([0, 1, 1], [0.1, 0.2, float("inf")], None, "row 2: the score is not finite"),
    ([0, 2], [0.1, 0.2], None, "row 1: the label must be 0 or 1"),
    ([0, 1], [0.1, 0.2], [1, -1], "row 1: the weight must be finite and not negative"),
    ([0, 1], [0.1, 0.2], [float("nan"), 1], "row 0: the weight must be finite"),
    ([0, 1], [0.1, 0.2], [1], "one weight for each of 2 rows"),
    ([0, 1], [0.1, 0.2], [0, 0], "every weight is 0"),
])
def test_rejects(labels, scores, weights, message):
    with pytest.raises(ValueError, match=message):
        evaluate.metrics(labels, scores, sample_weight=weights)


def test_rejects_a_threshold_that_is_no_number():
    with pytest.raises(ValueError, match="the threshold must be a finite number, got nan"):
        evaluate.metrics([0, 1], [0.1, 0.2], float("nan"))


@pytest.mark.parametrize("weighted", [None, "zeros"])
@pytest.mark.parametrize("decimals", [None, 1])
def test_bootstrap_is_the_resampled_metric(decimals, weighted):
    y, s = sample(3, n=200, decimals=decimals)
    w = weights_of(weighted, len(y))
    found = evaluate.intervals(y, s, draws=200, seed=5, sample_weight=w)
    draws = [block for counts in evaluate.resamples(len(y), 200, 5) for block in counts.astype(int)]
    assert len(draws) == 200 and all(counts.sum() == len(y) for counts in draws)
    expected = [evaluate.metrics(y, s, sample_weight=c * (1 if w is None else w)) for c in draws]
    for name in evaluate.METRICS:
        np.testing.assert_allclose(found[name], np.quantile([m[name] for m in expected], [0.025, 0.975]), atol=1e-12, err_msg=name)


def test_bootstrap_covers_and_keeps_its_seed():
    y, s = sample(3)
    assert evaluate.bootstrap(y, s, "f1", seed=1) == evaluate.bootstrap(y, s, "f1", seed=1) != evaluate.bootstrap(y, s, "f1", seed=2)
    low, high = evaluate.bootstrap(y, s, "f1")
    assert low < evaluate.metrics(y, s)["f1"] < high
    with pytest.raises(ValueError, match="metric must be one of f1, auprc"):
        evaluate.bootstrap(y, s, "mcc")


def test_compare_is_narrower_than_two_intervals_and_signs_are_right():
    y, s = sample(4, n=400)
    noisy = s + np.random.default_rng(1).normal(scale=0.02, size=len(s))
    d = evaluate.paired_difference(y, s, noisy)
    low, high = evaluate.bootstrap(y, s)
    assert d["high"] - d["low"] < (high - low) / 2
    worse = evaluate.compare(y, s, np.random.default_rng(2).random(len(s)), evaluate.METRICS[:8])
    assert worse["auprc"]["difference"] > 0 and worse["auprc"]["low"] > 0 and worse["auprc"]["p"] < 0.01 and worse["auprc"]["within_noise"] is False
    assert worse["mcnemar"]["p"] < 0.01
    same = evaluate.compare(y, s, s)
    assert same["f1"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "within_noise": True} and same["mcnemar"]["p"] == 1


@pytest.mark.parametrize("won, lost", [(0, 0), (3, 3), (5, 0), (7, 2), (40, 61), (1200, 1391)])
def test_mcnemar_is_the_exact_binomial(won, lost):
    right, wrong = [0.9], [0.1]
    a, b = right * won + wrong * lost + right * 4, wrong * won + right * lost + right * 4
    found = evaluate.mcnemar([1] * len(a), a, b)
    p = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert (found["only_this"], found["only_baseline"]) == (won, lost) and found["p"] == pytest.approx(p, rel=1e-9)


def test_over_seeds():
    reports = [{"datasets": {"a": {"f1": f1, "auprc": None}}} for f1 in (0.5, 0.7, None)]
    found = evaluate.over_seeds(reports, ("f1", "auprc"))["a"]
    assert found["f1"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(np.std([0.5, 0.7], ddof=1)), "n": 2}
    assert found["auprc"] == {"mean": None, "sd": None, "n": 0}
    reports[0] |= {"over_refusal": {"x": {"fpr": 0.25}}}
    assert evaluate.over_seeds(reports, ("fpr",))["x"]["fpr"] == {"mean": 0.25, "sd": None, "n": 1}
    with pytest.raises(ValueError, match="there is no report"):
        evaluate.over_seeds([])


def test_the_papers_protocol():
    y, s = [1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1]
    ours, paper = evaluate.metrics(y, s), evaluate.metrics(y, s, protocol="harmaug-2024")
    assert (ours["tp"], ours["fp"]) == (2, 1) and (paper["tp"], paper["fp"]) == (1, 0)
    nothing = evaluate.metrics([0, 0], [0.1, 0.2], protocol="harmaug-2024")
    assert (nothing["f1"], nothing["precision"], nothing["recall"]) == (1.0, 1.0, 1.0)
    flagged = np.array(s) > 0.5
    assert paper["f1"] == sk.f1_score(y, flagged, zero_division=1.0)
    assert evaluate.intervals([0, 0, 1], [0.1, 0.2, 0.9], ("precision",), protocol="harmaug-2024")["precision"] == (1.0, 1.0)
    with pytest.raises(ValueError, match="protocol must be one of default, harmaug-2024"):
        evaluate.metrics(y, s, protocol="x")


class Lengths:
    """A scorer that is no Guard."""

    def score(self, prompts, responses=None):
        return np.array([min(len(p) / 100, 1.0) for p in prompts])


ROWS = [Row(prompt="x" * n, label=label, category=category, license="MIT", extra={"language": "en"})
        for n, label, category in [(10, 0, "a"), (90, 1, "a"), (95, 1, "b"), (20, 0, None), (60, 0, "b"), (30, None, "b"), (300, 1, "b")]]
ROWS[5].extra["label"] = None    # unknown, rather than forgotten


class FakeGuard(Lengths):
    long, max_length, config = "windows", 512, {"max_tokens": 2048}

    def score(self, prompts, responses=None, *, long=None):
        self.asked = long
        return super().score(prompts)


def test_a_report_says_where_its_rows_come_from(tmp_path):
    safe = [Row(prompt="y" * n, label=0) for n in (10, 60)]
    file = tmp_path / "mine.jsonl.gz"
    data.write_rows(file, ROWS)
    training = [ROWS[0], Row(prompt="x" * 89)]
    report = evaluate.evaluate_guard(FakeGuard(), {"mine": file, "safe": safe, "other": ROWS[:4]}, draws=50, by=("category", "language", "length"),
                                     over_refusal=("other",), training=training)
    assert set(report["datasets"]) == {"mine"} and set(report["over_refusal"]) == {"safe", "other"}
    assert report["mean"]["auprc"] == report["datasets"]["mine"]["auprc"]
    entry = report["datasets"]["mine"]
    assert entry["n"] == 6 and entry["cohort"]["n_unlabelled"] == 1 and len(entry["cohort"]["sha256"]) == 64 and entry["cohort"]["licences"] == ["MIT"]
    assert entry["cohort"]["long"] == "windows" and entry["cohort"]["max_length"] == 512
    assert entry["cohort"]["contamination"] == {"training_rows": 2, "exact": 1, "near": 5}      # "xxxxx" is all that they are made of
    assert {name: part["n"] for name, part in entry["slices"]["category"].items()} == {"a": 2, "b": 3, "(none)": 1}
    assert list(entry["slices"]["length"]) == ["0-99", "300-999"] and entry["slices"]["language"]["en"]["n"] == 6
    assert report["over_refusal"]["safe"]["fpr"] == 0.5 and report["over_refusal"]["safe"]["auprc_interval"] is None
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report)))
    text = evaluate.format_table(report)
    assert "mine: 1 rows whose label is null left out" in text and "over-refusal: safe" in text and "1 rows are among the training rows" in text
    two = evaluate.evaluate_guard(Lengths(), {"a": ROWS, "b": ROWS[1:4]}, draws=0)
    assert two["mean"]["f1"] == (two["datasets"]["a"]["f1"] + two["datasets"]["b"]["f1"]) / 2 and "\nmean" in evaluate.format_table(two)
    (tmp_path / "v2.csv").write_text("id,type,prompt\n1,homonyms,abc\n2,contrast_homonyms,abd\n")
    other = evaluate.score_sets(Lengths(), {"v2": tmp_path / "v2.csv"}, layout="xstest")
    found = evaluate.evaluate_guard(Lengths(), {"v2": tmp_path / "v2.csv"}, layout="xstest", fitted=0.01, baselines={"b": other}, draws=0)["over_refusal"]["v2"]
    assert found["at_fitted_threshold"]["threshold"] == 0.01 and found["cohort"]["layout"] == "xstest" and found["baselines"]["b"]["n"] == 2
    with pytest.raises(ValueError, match="over_refusal: there is no set nothing"):
        evaluate.evaluate_guard(Lengths(), {"mine": file}, over_refusal=("nothing",))


def test_a_set_shows_no_text():
    part, = evaluate.score_sets(Lengths(), {"mine": ROWS})
    assert part.keys["texts"]
    for shown in (repr(part), part._repr_html_()):
        assert "mine" in shown and not any(text.casefold() in shown.casefold() for row in ROWS for text in (row.prompt, row.response) if text)


def test_a_pipe_has_no_sha256(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"label": 1, "score": 0.5}\n',))
    thread.start()
    part, = evaluate.read_scores(tmp_path / "pipe")
    thread.join()
    assert part.cohort["sha256"] is None and part.cohort["rows"] == 1


def test_the_schema_refuses_what_is_no_report():
    validator = Draft202012Validator(SCHEMA)
    Draft202012Validator.check_schema(SCHEMA)
    report = json.loads(json.dumps(evaluate.evaluate_guard(Lengths(), {"a": ROWS}, draws=2)))
    assert report["datasets"]["a"]["cohort"]["rows"] == 7 and report["datasets"]["a"]["cohort"]["n_null"] == 1
    perfect = evaluate.ScoredSet(name="a", labels=np.int8([1] * 20 + [0]), scores=np.linspace(1, 0, 21), cohort=report["datasets"]["a"]["cohort"])
    rounded = evaluate.summarise([perfect], draws=0)
    assert rounded["datasets"]["a"]["auprc"] > 1 and validator.is_valid(json.loads(json.dumps(rounded)))
    for break_it in (lambda r: r.pop("schema_version"), lambda r: r["datasets"]["a"].update(f1=2), lambda r: r["datasets"]["a"].pop("n"),
                     lambda r: r["datasets"]["a"].update(auprc_interval=[0.1]), lambda r: r["datasets"]["a"].update(f1_interval=[-5, 9]),
                     lambda r: r.update(dataset=r.pop("datasets")), lambda r: r["mean"].update(f1=7), lambda r: r["mean"].update(other=0.5),
                     lambda r: r["datasets"]["a"]["cohort"].pop("rows"), lambda r: r["datasets"]["a"]["cohort"].update(n_unlabelled=-1),
                     lambda r: r["datasets"]["a"]["cohort"].update(contamination={"training_rows": "a", "exact": -1, "near": None}),
                     lambda r: r.update(fitted={"threshold": "x", "temperature": 1, "target": "f1", "value": 1, "interval": None, "n": 1, "n_unsafe": 1, "fitted_on": []}),
                     lambda r: r.update(versions={}), lambda r: r["protocol"].update(says=5)):
        broken = json.loads(json.dumps(report))
        break_it(broken)
        assert not validator.is_valid(broken)


def test_the_protocol_decides_over_nulls_and_length():
    guard = FakeGuard()
    with pytest.raises(ValueError, match="cuts rows to 1024 tokens: open the guard with max_length=1024, it has 512"):
        evaluate.score_sets(guard, {"mine": ROWS}, protocol="harmaug-2024")
    evaluate.set_length(guard, "harmaug-2024")
    part, = evaluate.score_sets(guard, {"mine": ROWS}, protocol="harmaug-2024")
    assert guard.asked == "truncate" and part.cohort["max_length"] == 1024 and len(part.labels) == 7 and part.labels[5] == 0
    guard.config = {"max_tokens": 128}
    evaluate.set_length(guard, "harmaug-2024")
    assert guard.max_length == 128
    assert len(evaluate.score_sets(guard, {"mine": ROWS})[0].labels) == 6 and guard.asked is None


def test_scores_that_are_none(tmp_path):
    class Broken:
        def score(self, prompts, responses=None):
            return np.array([0.5] * 5 + [np.nan])

    with pytest.raises(ValueError, match="set mine, row 7: the score is not finite".replace("set ", "")):
        evaluate.evaluate_guard(Broken(), {"mine": ROWS})
    with pytest.raises(ValueError, match="mine: the set is empty"):
        evaluate.evaluate_guard(Lengths(), {"mine": []})
    with pytest.raises(ValueError, match=r"mine, row 2: an evaluation row needs a label \(null: unknown\)"):
        evaluate.evaluate_guard(Lengths(), {"mine": [ROWS[0], Row(prompt="a")]})
    with pytest.raises(ValueError, match="mine: every label is null"):
        evaluate.evaluate_guard(Lengths(), {"mine": [Row.from_dict({"prompt": "a", "label": None})]})
    with pytest.raises(ValueError, match=r"mine: scores of shape \(5,\) for 6 rows"):
        evaluate.evaluate_guard(type("Short", (), {"score": lambda self, p, r: np.zeros(5)})(), {"mine": ROWS})


def test_score_files_need_no_model(tmp_path):
    part, = evaluate.score_sets(Lengths(), {"mine": ROWS}, by=("category", "length"))
    file = tmp_path / "s.jsonl"
    data.write_rows(file, part.lines())
    again, = evaluate.read_scores(file, by=("category", "length"))
    np.testing.assert_array_equal(again.scores, part.scores)
    np.testing.assert_array_equal(again.labels, part.labels)
    assert again.groups == part.groups and again.name == "mine" and again.cohort["sha256"]
    file = tmp_path / "other.csv"
    file.write_text("label,score,set\nunsafe,0.75,b\nsafe,0.25,a\n1,1e-3,a\n")
    b, a = evaluate.read_scores(file)
    assert (a.name, b.name) == ("a", "b") and a.scores.tolist() == [0.25, 0.001]
    file.write_text('[{"label": null, "score": 1}, {"label": 1, "score": 1}]')
    assert evaluate.read_scores(file)[0].cohort["n_unlabelled"] == 1
    for line, message in ((",0.5,a", "set a: every label is null"), ("1,x,a", "line 2: score must be a finite number"), ("1,nan,a", "line 2: score"), ("2,0.5,a", "line 2: unknown label")):
        file.write_text("label,score,set\n" + line + "\n")
        with pytest.raises(data.DataError, match=message):
            evaluate.read_scores(file)
    file.write_text("label,value\n1,0.5\n")
    with pytest.raises(data.DataError, match="nor a CSV header with the column score"):
        evaluate.read_scores(file)


def test_a_baseline_must_have_the_same_rows():
    one, = evaluate.score_sets(Lengths(), {"mine": ROWS})
    other, = evaluate.score_sets(Lengths(), {"mine": ROWS[:4]})
    report = evaluate.summarise([one], baselines={"itself": [one]}, draws=20)
    assert report["datasets"]["mine"]["baselines"]["itself"]["comparison"]["auprc"]["difference"] == 0
    assert "minus that of itself +0.000" in evaluate.format_table(report)
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report)))
    with pytest.raises(ValueError, match="mine: the rows of b are not the same: labelled row 5 of mine, by its texts, is 1 times in mine and 0 times in b"):
        evaluate.summarise([one], baselines={"b": [other]})


def test_a_baseline_is_paired_by_its_rows(tmp_path):
    """By id, else by texts, in whatever order; by place only where a side has neither."""
    def read(name, rows, *columns):
        (tmp_path / f"{name}.json").write_text(json.dumps([{column: row[column] for column in ("label", "score", *columns)} for row in rows]))
        part, = evaluate.read_scores(tmp_path / f"{name}.json")
        return dataclasses.replace(part, name="mine")

    def won(one, other):
        found = evaluate.summarise([one], baselines={"b": [other]}, draws=0)
        return (found["datasets"] or found["over_refusal"])["mine"]["baselines"]["b"]["comparison"]["mcnemar"]["only_this"]

    for labels in ([0, 0, 0], [0, 1, 1]):
        rows = [{"id": i, "prompt": f"p{i}", "response": None, "label": label, "score": score} for i, (label, score) in enumerate(zip(labels, (0.9, 0.1, 0.6)))]
        shuffled = [{**rows[i], "id": str(i)} for i in (2, 0, 1)]
        for columns in (("id",), ("prompt",), ("prompt", "response", "id")):
            assert won(read("a", rows, *columns), read("b", shuffled, *columns)) == 0
    assert won(read("a", rows, "id", "prompt"), read("b", shuffled, "prompt")) == 0
    assert won(read("a", rows), read("b", [rows[0], rows[2], rows[1]], "id")) == 1
    for changed, column, message in (
            (rows[:2] + [{**rows[2], "id": 7}], "id", "the id '2' is 1 times in mine and 0 times in b"),
            (rows + [{**rows[2], "id": 7}], "id", "the id '7' is 0 times in mine and 1 times in b"),
            (shuffled[:2] + [{**rows[1], "prompt": "p2 "}], "prompt", "labelled row 2 of mine, by its texts, is 1 times in mine and 0 times in b"),
            (shuffled[:2] + [{**rows[1], "label": 0}], "id", "the label of labelled row 2 of mine is another there"), (rows[:2], None, "2 labels against 3")):
        with pytest.raises(ValueError, match=f"mine: the rows of b are not the same: {message}"):
            columns = (column,) if column else ()
            won(read("a", rows, *columns), read("b", changed, *columns))


@pytest.mark.parametrize("content, message", [
    ("[1, 2]", "row 1: a row must be an object with a score"), ('{"label": 1, "score": 0.5}\n[1]\n', "line 2: a row must be an object"),
    ('{"label": 1, "score": 1%s}' % ("0" * 400), "line 1: score must be a finite number"), ('{"score": 0.5}', "line 1: the column label is missing"),
    ('{"label": 1, "score": 0.5, "prompt": 5}', "line 1: prompt must be text, got a number"),
])
def test_score_files_that_are_wrong_name_the_row(tmp_path, content, message):
    file = tmp_path / "s.jsonl"
    file.write_text(content)
    with pytest.raises(data.DataError, match=message):
        evaluate.read_scores(file, by=("length",))


def test_score_files_as_others_write_them(tmp_path):
    file = tmp_path / "s.csv"
    file.write_text("label,score\n1.0,0.9\n0.0,0.2\n,0.3\n")
    ours, paper = (evaluate.read_scores(file, protocol=name)[0] for name in evaluate.PROTOCOLS)
    assert ours.labels.tolist() == [1, 0] and paper.labels.tolist() == [1, 0, 0]
    assert "1 rows whose label is null count as safe" in evaluate.format_table(evaluate.summarise([paper], draws=0, protocol="harmaug-2024"))
    assert (ours.cohort["n_null"], ours.cohort["n_unlabelled"]) == (1, 1) and (paper.cohort["n_null"], paper.cohort["n_unlabelled"]) == (1, 0)
    file.write_text("y,p,kind\nyes,0.9,a\nno,0.2,a\nno,0.4,b\n")
    layout = datasets.Layout(label="y", score="p", unsafe=("yes",), safe=("no",), without={"kind": "b"})
    part, = evaluate.read_scores(file, layout=layout)
    assert part.labels.tolist() == [1, 0] and part.scores.tolist() == [0.9, 0.2]
    assert part.cohort["rows"] == 3 and part.cohort["layout"] == {"label": "y", "score": "p", "unsafe": ("yes",), "safe": ("no",), "without": {"kind": "b"}}
    file = tmp_path / "null.jsonl"
    file.write_text('{"label": 1, "score": 0.5, "set": null}\n{"label": 0, "score": 0.4, "prompt": "a"}\n')
    part, = evaluate.read_scores(file, by=("length",))
    assert part.name == "null" and part.groups["length"] == ["(none)", "0-99"]


def test_score_files_in_a_layout_are_read_as_rows_are(tmp_path):
    """Slices by the category that the rows would have, nested files, labels that the file's name tells."""
    def of(name, rows, layout, **options):
        (tmp_path / name).write_text(json.dumps(rows))
        part, = evaluate.read_scores(tmp_path / name, layout=layout, **options)
        return part.labels.tolist(), part.groups

    kinds = [{"y": 1, "p": 0.1, "topic": "a"}, {"y": 0, "p": 0.2, "topic": "b"}]
    assert of("s.json", kinds, "label=y,score=p,category=topic", by=("category", "topic")) == ([1, 0], {"category": ["a", "b"], "topic": ["a", "b"]})
    harms = [{"category": {"a": True, "b": True, "c": False}, "is_safe": False, "score": 0.9}, {"category": {"a": False}, "is_safe": True, "score": 0.1}]
    assert of("b.json", harms, "beavertails", by=("category",)) == ([1, 0], {"category": ["a, b", "(none)"]})
    votes = {f"human_{i}": int(i < 2) for i in range(3)}
    nested = {"b1": [{**votes, "score": 0.9}], "b2": [{**votes, "score": 0.8}]}
    assert of("h.json", nested, "harmbench", by=("category",)) == ([1, 1], {"category": ["b1", "b2"]})
    assert of("benign-behaviors.json", [{"Goal": "a", "score": 0.5}], "jailbreakbench")[0] == [0]
    with pytest.raises(data.DataError, match="o.json: the label of jailbreakbench is told by the file's name"):
        of("o.json", [{"Goal": "a", "score": 0.5}], "jailbreakbench")
    with pytest.raises(data.DataError, match="s.json: the layout names no column for the label"):
        of("s.json", kinds, "label=,score=p")


def test_sets_of_needless_refusals_are_known(tmp_path):
    """By name, by layout, by the rows' source; never part of a mean, unless one says that there are none."""
    other = [Row(prompt="y", label=0), Row(prompt="x" * 90, label=1)]
    rows = [Row(prompt=row.prompt, label=row.label, source="xstest") for row in other]
    (tmp_path / "v2.csv").write_text("id,type,prompt\n1,homonyms,abc\n2,contrast_homonyms,abd\n")
    for sets, layout in (({"xstest": other}, None), ({"mine": rows}, None), ({"mine": tmp_path / "v2.csv"}, "xstest")):
        found = evaluate.score_sets(Lengths(), sets, layout=layout)
        assert [*evaluate.summarise(found, draws=0)["over_refusal"]] == [*sets] and not evaluate.summarise(found, draws=0)["mean"]
        assert [*evaluate.summarise(found, draws=0, over_refusal=())["datasets"]] == [*sets]
    part, = evaluate.score_sets(Lengths(), {"mine": tmp_path / "v2.csv"}, layout="xstest", by=("type", "id"))       # a column that the layout takes
    assert part.groups == {"type": ["homonyms", "contrast_homonyms"], "id": ["1", "2"]}
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(f'{{"set": "{name}", "label": {label}, "score": 0.5}}\n' for name in ("xstest", "other") for label in (0, 1)))
    assert [*evaluate.summarise(evaluate.read_scores(file), draws=0)["datasets"]] == ["other"]
    file.write_text('{"type": "homonyms", "score": 0.5}\n{"type": "contrast_homonyms", "score": 0.5}\n')
    assert [*evaluate.summarise(evaluate.read_scores(file, layout="xstest"), draws=0)["over_refusal"]] == ["scores"]


def test_sets_are_told_apart_by_name():
    a, b = (evaluate.ScoredSet(name=name, labels=np.int8([0, 1]), scores=np.array(scores)) for name, scores in (("a", [0.1, 0.9]), ("b", [0.9, 0.1])))
    report = evaluate.summarise([a, b], baselines={"x": [b, a]}, draws=0)
    assert all(entry["baselines"]["x"]["comparison"]["auprc"]["difference"] == 0 for entry in report["datasets"].values())
    with pytest.raises(ValueError, match="x: no scores of the set b"):
        evaluate.summarise([a, b], baselines={"x": [a]})
    with pytest.raises(ValueError, match="two sets are named a"):
        evaluate.summarise([a, a])
    with pytest.raises(ValueError, match="a set is named mean, as the average of the sets is"):
        evaluate.summarise([dataclasses.replace(a, name="mean")])


def test_columns_to_slice_by():
    rows = [{"prompt": "a", "label": i, "unsafe-score": 0.5} for i in (0, 1)]
    part, = evaluate.score_sets(Lengths(), {"a": rows}, by=("unsafe-score", "category", "windows"))
    assert part.groups == {"unsafe-score": ["0.5", "0.5"], "category": ["(none)", "(none)"], "windows": ["1", "1"]}
    part, = evaluate.score_sets(Lengths(), {"a": [{"prompt": "a", "label": 0, "source": 1, "seed": "x"}]}, by=("source", "seed"))
    assert part.groups == {"source": ["1"], "seed": ["x"]}
    with pytest.raises(ValueError, match="slices by categroy: no row has this column"):
        evaluate.score_sets(Lengths(), {"a": rows}, by=("categroy",))
    for refuses in (partial(evaluate.score_sets, Lengths(), {"a": rows}), partial(evaluate.read_scores, "no.jsonl"), pipeline.EvaluateConfig):
        with pytest.raises(ValueError, match="slices by original_prompt: it is the rows' text"):
            refuses(by=("category", "original_prompt"))
    with pytest.raises(ValueError, match="slices by question: it is the rows' text"):
        evaluate.score_sets(Lengths(), {"a": rows}, by=("question",), layout=datasets.Layout(prompt="question"))
    with pytest.raises(data.DataError, match="a, row 1: the column prompt is missing"):
        evaluate.score_sets(Lengths(), {"a": [{"label": 1}]})
    with pytest.raises(data.DataError, match="must return P.unsafe. of each row, 2 numbers"):
        evaluate.score_sets(lambda prompts, responses: [{"label": "safe"}], {"a": rows})
