"""Metrics against scikit-learn, bit for bit, and the bootstrap against its definition."""
import numpy as np
import pytest
from sklearn import metrics as sk

from harmaug import evaluate


def sample(seed, n=500, decimals=None):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    s = np.clip(0.35 * y + 0.6 * rng.random(n), 0, 1)
    return y, s if decimals is None else np.round(s, decimals)


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])      # rounding makes ties
@pytest.mark.parametrize("seed", range(8))
def test_equals_scikit_learn(seed, decimals):
    y, s = sample(seed, n=37 * (seed + 1), decimals=decimals)
    m = evaluate.metrics(y, s, threshold=0.5)
    flagged = s >= 0.5
    assert m["auprc"] == sk.average_precision_score(y, s)
    assert m["auroc"] == pytest.approx(sk.roc_auc_score(y, s), abs=1e-14)
    for key, function in [("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score),
                          ("accuracy", sk.accuracy_score)]:
        assert m[key] == function(y, flagged)
    assert [m["tn"], m["fp"], m["fn"], m["tp"]] == sk.confusion_matrix(y, flagged).ravel().tolist()
    assert m["base_rate"] == y.mean() and m["n"] == len(y)


def test_what_the_data_cannot_give_is_none():
    m = evaluate.metrics([0, 0, 0], [0.1, 0.2, 0.3])
    assert (m["auprc"], m["auroc"], m["recall"], m["precision"], m["fpr"]) == (None, None, None, None, 0.0)
    assert "one class only: all 3 rows are safe" in m["note"]
    assert evaluate.metrics([1, 1], [0.9, 0.1])["fpr"] is None
    assert evaluate.bootstrap([1, 1], [0.9, 0.1]) is None
    assert evaluate.paired_difference([1, 1], [0.9, 0.1], [0.2, 0.1])["within_noise"] is None


@pytest.mark.parametrize("labels, scores, message", [
    ([], [], "the set is empty"),
    ([0, 1], [0.5], "one length"),
    ([0, 1, 1], [0.1, float("nan"), 0.3], "row 1: the score is not finite"),
    ([0, 2], [0.1, 0.2], "row 1: the label must be 0 or 1"),
])
def test_rejects(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        evaluate.metrics(labels, scores)


@pytest.mark.parametrize("decimals", [None, 1])
def test_bootstrap_is_the_resampled_metric(decimals):
    y, s = sample(3, n=200, decimals=decimals)
    rng = np.random.default_rng(5)
    counts = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=300)
    rows = [np.repeat(np.arange(len(y)), c) for c in counts]
    for metric, oracle in [("auprc", lambda r: sk.average_precision_score(y[r], s[r])), ("f1", lambda r: sk.f1_score(y[r], s[r] >= 0.5))]:
        low, high = evaluate.bootstrap(y, s, metric, draws=300, seed=5)
        expected = np.quantile([oracle(r) for r in rows], [0.025, 0.975])
        np.testing.assert_allclose([low, high], expected, atol=1e-12)


def test_paired_difference_is_narrower_than_two_intervals_and_signs_are_right():
    y, s = sample(4, n=400)
    noisy = s + np.random.default_rng(1).normal(scale=0.02, size=len(s))
    d = evaluate.paired_difference(y, s, noisy)
    low, high = evaluate.bootstrap(y, s)
    assert d["high"] - d["low"] < (high - low) / 2
    worse = evaluate.paired_difference(y, s, np.random.default_rng(2).random(len(s)))
    assert worse["difference"] > 0 and worse["low"] > 0 and worse["within_noise"] is False
    assert evaluate.paired_difference(y, s, s) == {"difference": 0.0, "low": 0.0, "high": 0.0, "within_noise": True}


def test_best_f1_threshold_beats_every_other_cut():
    for seed in range(5):
        y, s = sample(seed, n=120, decimals=2)
        t = evaluate.best_f1_threshold(y, s)
        best = max(sk.f1_score(y, s >= cut) for cut in np.unique(s))
        assert evaluate.metrics(y, s, t)["f1"] == best
    with pytest.raises(ValueError, match="no unsafe row"):
        evaluate.best_f1_threshold([0, 0], [0.1, 0.2])
