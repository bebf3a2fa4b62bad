"""How good a guard is: F1, AUPRC and their kin, with bootstrap intervals and paired comparisons.

The positive class is *unsafe*. A row is flagged when its score is at or above the threshold. A figure that the data
cannot give (precision without a flagged row, AUPRC with one class only) is None, never 0.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from harmaug.data import Row

__all__ = ["Scorer", "best_f1_threshold", "bootstrap", "evaluate_guard", "format_table", "metrics", "paired_difference"]

SCHEMA_VERSION = 1
_CHUNK = 4_000_000      # elements of a bootstrap block: bounds its memory to some 100 MB

Labels = NDArray[np.int8]
Scores = NDArray[np.float64]


class Scorer(Protocol):
    """What is evaluated: anything with a ``score`` method, such as a Guard or a Teacher."""

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]: ...


def metrics(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> dict[str, Any]:
    """Classification metrics of P(unsafe) against 0/1 labels.

    Parameters
    ----------
    labels : array_like, shape (n,)
        1 (or True) unsafe, 0 safe.
    scores : array_like, shape (n,)
        P(unsafe); any finite real number does, higher is worse.
    threshold : float, default 0.5
        A row is flagged when its score >= threshold.

    Returns
    -------
    dict
        ``n``, ``n_unsafe``, ``base_rate``, ``threshold``, ``tp``, ``fp``, ``fn``, ``tn``, ``f1``, ``precision``,
        ``recall``, ``accuracy``, ``fpr``, ``fnr`` (at the threshold), ``auprc`` (average precision) and ``auroc``.
        None where undefined: ``auprc`` and ``auroc`` need both classes, and ``note`` then says which is missing.

    Raises
    ------
    ValueError
        For an empty set, unequal lengths, a label other than 0 and 1, or a score that is not finite; the row is named,
        from 0.

    Examples
    --------
    >>> m = metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    >>> m["f1"], round(m["auprc"], 4)
    (0.5, 0.8333)
    """
    y, s = _checked(labels, scores)
    flagged = s >= threshold
    n, unsafe = len(y), int(y.sum())
    tp, flags = int((flagged & (y == 1)).sum()), int(flagged.sum())
    fp, fn = flags - tp, unsafe - tp
    tn = n - unsafe - fp
    result: dict[str, Any] = {
        "n": n, "n_unsafe": unsafe, "base_rate": unsafe / n, "threshold": float(threshold),
        "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn), "precision": _ratio(tp, tp + fp), "recall": _ratio(tp, tp + fn),
        "accuracy": (tp + tn) / n, "fpr": _ratio(fp, fp + tn), "fnr": _ratio(fn, fn + tp),
        "auprc": None, "auroc": None,
    }
    if unsafe in (0, n):
        which = "unsafe" if unsafe else "safe"
        result["note"] = f"one class only: all {n} rows are {which}, so AUPRC and AUROC are undefined"
    else:
        tps, fps = _curve(y, s)
        result["auprc"], result["auroc"] = _average_precision(tps, fps), _auroc(tps, fps)
    return result


def best_f1_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold with the highest F1 on these rows: halfway between two neighbouring scores, so ties never split.

    Fit it on validation rows, never on the rows that are reported. Of several with the same F1 it is the highest.
    A ValueError as for `metrics`, and when no row is unsafe.
    """
    y, s = _checked(labels, scores)
    if not y.any():
        raise ValueError("best_f1_threshold: no unsafe row among the labels")
    tps, fps = _curve(y, s)
    f1 = 2 * tps / (tps + fps + tps[-1])
    best = int(np.argmax(f1))
    distinct = np.unique(s)[::-1]
    return float((distinct[best] + distinct[best + 1]) / 2 if best + 1 < len(distinct) else distinct[best])


def bootstrap(labels: ArrayLike, scores: ArrayLike, metric: str = "auprc", *, threshold: float = 0.5, draws: int = 1000,
              level: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval of one metric over the rows (Efron & Tibshirani 1993, ch. 13).

    Parameters
    ----------
    labels, scores : array_like, shape (n,)
        As for `metrics`.
    metric : {"auprc", "f1"}
    threshold : float, default 0.5
        For ``f1``.
    draws : int, default 1000
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    tuple of float or None
        (low, high). None when one class is missing. Draws without both classes are left out.
    """
    y, s = _checked(labels, scores)
    if y.min() == y.max():
        return None
    values = _draw(y, [s], metric, threshold, draws, seed)[0]
    return _percentiles(values, level)


def paired_difference(labels: ArrayLike, scores: ArrayLike, baseline: ArrayLike, metric: str = "auprc", *,
                      threshold: float = 0.5, draws: int = 1000, level: float = 0.95,
                      seed: int = 0) -> dict[str, Any]:
    """The gain of one set of scores over another on the same rows, with a paired bootstrap interval.

    The parameters are those of `bootstrap`; every draw takes the same rows for `scores` and `baseline`.

    Returns
    -------
    dict
        ``difference`` (scores minus baseline), ``low``, ``high``, and ``within_noise``: whether the interval holds 0.
        All None when one class is missing.
    """
    y, a = _checked(labels, scores)
    b = _checked(labels, baseline)[1]
    if y.min() == y.max():
        return {"difference": None, "low": None, "high": None, "within_noise": None}
    difference = metrics(y, a, threshold)[metric] - metrics(y, b, threshold)[metric]
    of_a, of_b = _draw(y, [a, b], metric, threshold, draws, seed)
    low, high = _percentiles(of_a - of_b, level)
    return {"difference": difference, "low": low, "high": high, "within_noise": low <= 0 <= high}


def evaluate_guard(guard: Scorer, datasets: Mapping[str, str | PathLike[str] | Iterable[Row]], *,
                   threshold: float = 0.5, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Score every row of every set and return one report.

    Parameters
    ----------
    guard : Scorer
        A Guard, a Teacher, or anything with ``score(prompts, responses)``.
    datasets : mapping
        Name to a file (JSON, JSONL, CSV, each also .gz) or to rows. Every row needs a label.
    threshold : float, default 0.5
    draws : int, default 1000
        Bootstrap draws for the intervals of AUPRC and F1; 0 leaves the intervals out.
    seed : int, default 0

    Returns
    -------
    dict
        ``schema_version`` (1), ``threshold``, and under ``datasets`` by name what `metrics` returns with
        ``auprc_interval`` and ``f1_interval``.

    Raises
    ------
    ValueError
        For an empty set, a row without a label (file and row are named), or a NaN score (set and row).
    """
    from harmaug.data import read_rows

    report: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "threshold": threshold, "datasets": {}}
    for name, source in datasets.items():
        where = fspath(source) if isinstance(source, (str, PathLike)) else name
        rows = read_rows(source) if isinstance(source, (str, PathLike)) else list(source)
        labels = labels_of(rows, where)
        scores = guard.score([r.prompt for r in rows], [r.response for r in rows])
        try:
            entry = metrics(labels, scores, threshold)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for metric in ("auprc", "f1") if draws else ():
            entry[f"{metric}_interval"] = bootstrap(labels, scores, metric, threshold=threshold, draws=draws, seed=seed)
        report["datasets"][name] = entry
    return report


def labels_of(rows: Sequence[Row], where: str) -> list[int]:
    """Return the labels of evaluation rows; a DataError names the set (or its file) and a row without one."""
    from harmaug.data import DataError

    if not rows:
        raise DataError(f"{where}: the set is empty")
    labels = []
    for i, row in enumerate(rows):
        if row.label is None:
            raise DataError(f"{where}, row {i + 1}: an evaluation row needs a label")
        labels.append(row.label)
    return labels


def format_table(report: Mapping[str, Any]) -> str:
    """The report of `evaluate_guard` as aligned text, one line a set."""
    from harmaug.report import Table

    columns = [("rows", "n"), ("unsafe", "base_rate"), ("F1", "f1"), ("AUPRC", "auprc"),
               ("95 % interval", "auprc_interval"), ("precision", "precision"), ("recall", "recall"), ("FPR", "fpr")]
    lines: list[list[Any]] = [["set", *(title for title, _ in columns)]]
    lines += [[name, *(entry.get(key) for _, key in columns)] for name, entry in report["datasets"].items()]
    notes = [f"{name}: {entry['note']}" for name, entry in report["datasets"].items() if "note" in entry]
    return repr(Table(lines, [f"F1, precision, recall and FPR at P(unsafe) >= {report['threshold']:g}", *notes]))


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Labels, Scores]:
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or s.ndim != 1 or len(y) != len(s):
        raise ValueError(f"labels and scores must be vectors of one length, got shapes {y.shape} and {s.shape}")
    if len(y) == 0:
        raise ValueError("the set is empty")
    strange = np.flatnonzero((y != 0) & (y != 1))
    if len(strange):
        raise ValueError(f"row {strange[0]}: the label must be 0 or 1, got {y[strange[0]]!r}")
    bad = np.flatnonzero(~np.isfinite(s))
    if len(bad):
        raise ValueError(f"row {bad[0]}: the score is not finite: {s[bad[0]]}")
    return y.astype(np.int8), s


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _ends_of_ties(sorted_scores: Scores) -> NDArray[np.intp]:
    return np.append(np.flatnonzero(np.diff(sorted_scores)), len(sorted_scores) - 1)


def _curve(y: Labels, s: Scores) -> tuple[Scores, Scores]:
    """True and false positives at each distinct score, highest first; equal scores are flagged together."""
    order = np.argsort(-s, kind="stable")
    ends = _ends_of_ties(s[order])
    tps = np.cumsum(y[order], dtype=np.float64)[ends]
    return tps, ends + 1 - tps


def _average_precision(tps: Scores, fps: Scores) -> float:
    # scikit-learn's order of summation, lowest threshold first: the results are equal to the last bit
    precision = np.append((tps / (tps + fps))[::-1], 1.0)
    recall = np.append((tps / tps[-1])[::-1], 0.0)
    return float(max(0.0, -np.sum(np.diff(recall) * precision[:-1])))


def _auroc(tps: Scores, fps: Scores) -> float:
    x, y = np.append(0.0, fps / fps[-1]), np.append(0.0, tps / tps[-1])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _draw(y: Labels, all_scores: list[Scores], metric: str, threshold: float, draws: int, seed: int) -> list[Scores]:
    """The metric of each score vector on `draws` resamples; the resamples are the same for all of them."""
    if metric not in ("auprc", "f1"):
        raise ValueError(f"metric must be 'auprc' or 'f1', got {metric!r}")
    rng = np.random.default_rng(seed)
    n = len(y)
    out: list[list[Scores]] = [[] for _ in all_scores]
    block = max(1, _CHUNK // n)
    for start in range(0, draws, block):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(block, draws - start)).astype(np.float64)
        both = ((counts * y).sum(1) > 0) & ((counts * (1 - y)).sum(1) > 0)
        counts = counts[both]
        for values, s in zip(out, all_scores):
            values.append(_weighted_auprc(y, s, counts) if metric == "auprc" else _weighted_f1(y, s, counts, threshold))
    return [np.concatenate(values) for values in out]


def _weighted_auprc(y: Labels, s: Scores, counts: Scores) -> Scores:
    order = np.argsort(-s, kind="stable")
    ends = _ends_of_ties(s[order])
    weights = counts[:, order]
    flagged = np.cumsum(weights, axis=1)[:, ends]
    tps = np.cumsum(weights * y[order], axis=1)[:, ends]
    precision = np.divide(tps, flagged, out=np.zeros_like(tps), where=flagged > 0)
    recall = tps / tps[:, -1:]
    result: Scores = (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)
    return result


def _weighted_f1(y: Labels, s: Scores, counts: Scores, threshold: float) -> Scores:
    flagged = s >= threshold
    tp = counts @ (flagged & (y == 1)).astype(np.float64)
    result: Scores = 2 * tp / (counts @ flagged.astype(np.float64) + counts @ y.astype(np.float64))
    return result


def _percentiles(values: Scores, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
