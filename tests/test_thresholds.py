"""Thresholds, temperature and gates: against brute force over every cut, with ties, on nasty scores."""
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sizes import some
from sklearn import metrics as sk

from harmaug import evaluate, thresholds
from harmaug.thresholds import fit_threshold


def sample(seed, n=200, decimals=None):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    s = np.clip(0.35 * y + 0.6 * rng.random(n), 0, 1)
    return y, s if decimals is None else np.round(s, decimals)


def at(y, s, cut):
    return evaluate.metrics(y, s, cut)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize("seed", range(some(4, 2)))
def test_targets_against_every_cut(seed, decimals, kind):
    y, s = sample(seed, decimals=decimals)
    s = s.astype(kind)
    every = [at(y, s, cut) for cut in (*np.unique(s), 1.01)]
    for limit in (0.0, 0.01, 0.05, 0.29, 1.0):
        t = fit_threshold(y, s, f"fpr={limit}", draws=0)
        m = at(y, s, t.threshold)
        assert m["fpr"] == t.value <= limit and m["recall"] == max(m["recall"] for m in every if m["fpr"] <= limit)
    for limit in (0.0, 0.5, 0.95, 1.0):
        t = fit_threshold(y, s, f"recall={limit}", draws=0)
        m = at(y, s, t.threshold)
        assert m["recall"] == t.value >= limit and m["fpr"] == min(m["fpr"] for m in every if m["recall"] >= limit)
    t = fit_threshold(y, s, draws=0)
    assert at(y, s, t.threshold)["f1"] == t.value == max(sk.f1_score(y, s >= c) for c in np.unique(s))


def test_neighbouring_float16_scores_are_parted():
    s = np.array([0.5, 0.50048828125, 0.5009765625], np.float16)
    found = fit_threshold([0, 1, 1], s, "fpr=0", draws=0)
    assert evaluate.metrics([0, 1, 1], s, found.threshold)["fpr"] == found.value == 0


def test_neighbouring_float32_scores_are_parted_as_a_guard_compares_them():
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    s = np.array([low, high], dtype=np.float32)
    t = fit_threshold([0, 1], s, "fpr=0", draws=0).threshold
    assert (s >= np.float32(t)).tolist() == [False, True]


def test_a_tie_that_is_safe_is_not_what_is_fitted():
    """The paper's protocol flags over the threshold: it lies below the lowest flagged score, also between neighbours."""
    high = np.nextafter(np.float32(0.5), np.float32(1))
    for y, s, target in (([0, 1, 1], [0.2, 0.3, 0.9], "recall=1"), ([1, 1], [0.3, 0.9], "f1"), ([0, 1], np.array([0.5, high], np.float32), "f1")):
        found = fit_threshold(y, s, target, draws=0, protocol="harmaug-2024")
        assert evaluate.metrics(y, s, found.threshold, protocol="harmaug-2024")["recall"] == 1 == found.value, target
        assert np.float32(found.threshold) < np.float32(s[-2 if len(s) > 1 and target != "f1" else -1])
    with pytest.raises(ValueError, match="draws must be >= 0, got -3"):
        fit_threshold([0, 1], [0.1, 0.9], draws=-3)


def test_ties_at_the_top_are_never_parted():
    y, s = [0, 1, 1, 0], [0.9, 0.9, 0.2, 0.1]
    t = fit_threshold(y, s, "fpr=0.2", draws=0)
    assert t.value == 0 and 0.9 < t.threshold <= 1 and t.interval is None
    with pytest.raises(ValueError, match="fpr=0.2: no threshold gives it: 1 safe rows share the highest score, 1"):
        fit_threshold(y, [1, 1, 0.2, 0.1], "fpr=0.2")
    for s in ([7.5, 3.2, -1, 2], np.float32([7.5, 7.5, -1, 2]), [1e300, 1e20, -1, 2]):       # over 1 there is always a higher threshold
        for protocol in evaluate.PROTOCOLS:
            t = fit_threshold(y, s, "fpr=0.2", draws=0, protocol=protocol)
            assert t.value == 0 == evaluate.metrics(y, s, t.threshold, protocol=protocol)["fpr"]


@pytest.mark.parametrize("null", [None, float("nan"), type("NAType", (), {})()])
def test_null_labels_count_as_the_protocol_says(null):
    y, s = [0, 1, null, 1, 0], [0.1, 0.7, 0.6, 0.5, 0.2]
    for protocol, filled in (("default", y[:2] + y[3:]), ("harmaug-2024", [0, 1, 0, 1, 0])):
        kept = s[:2] + s[3:] if protocol == "default" else s
        assert fit_threshold(y, s, "fpr=0", draws=9, protocol=protocol) == fit_threshold(filled, kept, "fpr=0", draws=9, protocol=protocol)
    z, y = [-1.0, 2.0, 9.0, -0.5, 0.25], [0, 1, null, 1, 0]
    assert thresholds.fit_temperature(y, z) == thresholds.fit_temperature(y[:2] + y[3:], z[:2] + z[3:])


def test_the_interval_is_that_of_refitting():
    y, s = sample(5, decimals=2)
    for target in ("f1", "fpr=0.1", "recall=0.9"):
        found = fit_threshold(y, s, target, draws=150, seed=3)
        refitted = []
        for counts in evaluate.resamples(len(y), 150, 3):
            for c in counts.astype(int):
                rows = np.repeat(np.arange(len(y)), c)
                refitted.append((y[rows], s[rows]))
        low, high = found.interval
        assert low <= found.threshold <= high
        # a refit cuts at another place of the same gap when the resample lacks a score: same decisions, so same values
        values = [fit_threshold(*rows, target, draws=0).threshold for rows in refitted]
        np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975]), atol=0.03)


@pytest.mark.parametrize("target, message", [("f2", "target must be f1, fpr=X or recall=X"), ("fpr=2", "with X in"), ("fpr", "target must"),
                                             ("fpr=.", "target must"), ("recall=-1", "target must")])
def test_unknown_targets(target, message):
    with pytest.raises(ValueError, match=message):
        fit_threshold([0, 1], [0.1, 0.9], target)


def test_a_class_is_missing():
    with pytest.raises(ValueError, match="f1: no unsafe row"):
        fit_threshold([0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="fpr=0.1: no safe row"):
        fit_threshold([1, 1], [0.1, 0.2], "fpr=0.1")
    assert fit_threshold([1, 1], [0.1, 0.2], "recall=1").threshold == pytest.approx(0.1)


@pytest.mark.parametrize("true", [0.25, 1.0, 4.0])
def test_temperature_maximises_the_likelihood(true):
    rng = np.random.default_rng(0)
    z = rng.normal(scale=3, size=4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-z / true))).astype(int)
    t = thresholds.fit_temperature(y, z)
    best = minimize_scalar(lambda u: np.logaddexp(0, -np.where(y == 1, z, -z) / np.exp(u)).sum(), bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    assert t == pytest.approx(math.exp(best.x), rel=1e-5) and t == pytest.approx(true, rel=0.15)
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(thresholds.calibrate(p, t), 1 / (1 + np.exp(-z / t)), rtol=1e-6)
    np.testing.assert_allclose(thresholds.log_odds(p), z, atol=1e-6)
    assert np.isfinite(thresholds.log_odds([0.0, 1.0])).all()
    assert thresholds.log_odds(np.ones(1, np.float32)) == pytest.approx(25 * math.log(2))


def test_calibration_keeps_the_order_and_refuses_what_is_no_probability():
    y, s = [0, 0, 1, 1], [1e-12, 1e-10, 1e-9, 2e-8]
    for kind in (np.float64, np.float32):
        for t in (1.0, 1.7, 0.6):
            assert evaluate.metrics(y, thresholds.calibrate(np.array(s, kind), t))["auprc"] == 1
    for bad in ([0.5, 5], [0.5, -3], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"row 1: a probability must be in \[0, 1\], got"):
            thresholds.log_odds(bad)
    for t in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be in"):
            thresholds.calibrate([0.5], t)


@pytest.mark.parametrize("y, z, message", [([0, 0, 1], [-2, -1, 3], "separate the rows perfectly"), ([1, 1, 0], [-2, -1, 3], "run against the labels"),
                                           ([0, 1, 0], [2, 2, 2], "are all the same")])
def test_temperature_that_does_not_exist(y, z, message):
    with pytest.raises(ValueError, match=message):
        thresholds.fit_temperature(y, z)


REPORT = {"datasets": {"a": {"f1": 0.8, "auprc": None}, "b": {"f1": 0.6, "auprc": 0.9}}, "over_refusal": {"x": {"fpr": 0.2}}, "mean": {"f1": 0.7}}


@pytest.mark.parametrize("text, failing", [
    ("f1>=0.6", []), ("f1>0.6", ["b"]), ("f1>=0.7, f1<=0.75", ["b", "a"]), ("auprc>=0.1", ["a"]), ("b:auprc>=0.8", []), ("mean:f1>=0.8", ["mean"]),
    ("x:fpr<=0.1", ["x"]), ("x:fpr<0.3", []), ("mean:auprc>0", ["mean"]),
])
def test_gates(text, failing):
    results = [(gate, name, problem) for gate in thresholds.parse_gates(text) for name, problem in gate.check(REPORT)]
    assert [name for _, name, problem in results if problem] == failing
    suite = ElementTree.fromstring(thresholds.junit(results))
    assert suite.get("failures") == str(len(failing)) and suite.get("tests") == str(len(results))
    assert [case.get("classname") for case in suite if case.find("failure") is not None] == failing


def test_gates_hold_for_the_threshold_that_the_guard_uses():
    entries = {name: {"fpr": 0.2, "auprc": 0.9, "threshold": 0.5, "at_fitted_threshold": {"fpr": fpr, "auprc": 0.9, "threshold": 0.75}} for name, fpr in (("my set", 0.02), ("b", 0.08))}
    report = {"datasets": entries, "over_refusal": {}, "mean": {"fpr": 0.2}}
    gate, mean = thresholds.parse_gates("my set: fpr <= 0.01, mean:fpr<=0.05")
    assert thresholds.parse_gates("en:toxic:fpr<=0.1")[0].dataset == "en:toxic"
    assert gate.dataset == "my set" and mean.check(report) == [("mean", None)]
    assert gate.check(report) == [("my set", "fpr at the threshold 0.75 is 0.0200, wanted <= 0.01")]
    assert mean.check(report, fitted=False) == [("mean", "fpr at the threshold 0.5 is 0.2000, wanted <= 0.05")]
    assert ElementTree.fromstring(thresholds.junit([(gate, "a\x01\udce9\u00e4b", "f1 is \x02")]))[0].get("classname") == "a\u00e4b"


def test_gates_that_cannot_be_checked():
    for text in ("f1", "f1>=x", "mcc>=0.5", "f1=>0.5", "", "fpr<=10", "fpr<=1e999", "auprc>=-1"):
        with pytest.raises(ValueError, match="must be METRIC>=X"):
            thresholds.parse_gates(text)
    with pytest.raises(ValueError, match="there is no set nothing; there are a, b, x, mean"):
        thresholds.parse_gates("nothing:f1>=0")[0].check(REPORT)
    with pytest.raises(ValueError, match="over-refusal sets only; name one"):
        thresholds.parse_gates("fpr<=0.1")[0].check({**REPORT, "datasets": {}})
