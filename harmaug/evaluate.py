"""How good a guard is: F1, AUPRC and their kin, with bootstrap intervals, paired comparisons and slices.

The positive class is *unsafe*. A figure that the data cannot give (precision without a flagged row, AUPRC with one
class only) is None, never 0. How rows are read and counted is a `Protocol`; "default" is ours, "harmaug-2024" that of
the paper's code, and every report says which.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from os import PathLike, fspath
from os.path import isfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from typing import Protocol as Shape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug.checks import one_of, within

if TYPE_CHECKING:
    from harmaug.data import Row

__all__ = ["METRICS", "PROTOCOLS", "Protocol", "ScoredSet", "Scorer", "bootstrap", "compare", "evaluate_guard",
           "format_table", "intervals", "is_over_refusal", "mcnemar", "metrics", "over_seeds", "paired_difference", "read_scores",
           "score_sets", "summarise"]

SCHEMA_VERSION = 1
METRICS = ("f1", "auprc", "precision", "recall", "accuracy", "fpr", "fnr", "auroc", "brier", "ece")
ECE_BINS = 15                                   # equal widths (Guo et al. 2017, arXiv 1706.04599)
LENGTHS = (0, 100, 300, 1000, 3000)             # first characters of the bins of the column "length"
_BLOCK = 1024                                   # rows handed to a guard at once, between two steps of the progress bar
_CHUNK = 4_000_000                              # elements of a bootstrap block: bounds its memory to some 200 MB
_UNKNOWN = "(none)"

Labels = NDArray[np.int8]
Floats = NDArray[np.float64]


class Scorer(Shape):
    """What is evaluated: anything with a ``score`` method, such as a Guard or a Teacher."""

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,), of n prompts, each with its response or None."""
        ...


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How rows become figures.

    Parameters
    ----------
    name, says : str
        `says` tells in words where it differs from "default".
    null_label : int, optional
        What a row whose label is null (unknown) counts as. None: it is left out, and counted in ``n_unlabelled``.
    tie_unsafe : bool
        Whether a score that equals the threshold is flagged.
    zero_division : float, optional
        Precision, recall and F1 where their denominator is 0.
    max_length : int, optional
        Cut rows to so many tokens. None: read them as the guard does.
    """

    name: str
    says: str
    null_label: int | None = None
    tie_unsafe: bool = True
    zero_division: float | None = None
    max_length: int | None = None

    def flagged(self, scores: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.bool_]:
        """Return which rows are flagged, compared in the dtype of the scores, as a guard compares its float32; float16 as float32."""
        if not math.isfinite(threshold):
            raise ValueError(f"the threshold must be a finite number, got {threshold}")
        scores = scores.astype(np.promote_types(scores.dtype, np.float32), copy=False)
        limit = scores.dtype.type(threshold)
        return np.asarray(scores >= limit if self.tie_unsafe else scores > limit)


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol(name="default", says="a row whose label is null is left out, a score at the threshold is flagged, "
             "what cannot be computed is missing, long rows are read as the guard reads them"),
    Protocol(name="harmaug-2024", says="as the paper's code counts: a null label is safe, a score at the "
             "threshold is not flagged, precision, recall and F1 of 0/0 are 1, rows are cut to 1,024 tokens",
             null_label=0, tie_unsafe=False, zero_division=1.0, max_length=1024),
)}


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoredSet:
    """The labelled rows of one evaluation set and their scores.

    Attributes
    ----------
    name : str
    labels, scores : ndarray, shape (n,)
        Rows without a label are not among them (or count as safe, by the protocol). Scores have the guard's dtype.
    groups : dict
        Column name to the value of each row as text, for slices. Where a guard read a row in more than one window, "windows"
        is how many it was.
    keys : dict
        What tells the rows apart in another set, as far as every row has it: "id" as text, "texts" as `harmaug.data.identity`.
    cohort : dict
        Where the rows come from and how they were read.
    """

    name: str
    labels: Labels
    scores: NDArray[np.floating[Any]]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    keys: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cohort: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Without the rows' text."""
        groups = f", slices by {', '.join(self.groups)}" if self.groups else ""
        return f"ScoredSet({self.name!r}, {len(self.labels)} rows, {int(self.labels.sum())} unsafe{groups})"

    def _repr_html_(self) -> str:
        """Counts and figures at 0.5; no text."""
        from harmaug.report import Table

        found = metrics(self.labels, self.scores)
        names = ("n", "n_unsafe", *METRICS)
        return Table([["set", *names], [self.name, *(found[name] for name in names)]], [found["note"]] if "note" in found else [])._repr_html_()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file that `read_scores` reads, without text."""
        for i, (label, score) in enumerate(zip(self.labels.tolist(), self.scores.tolist())):
            yield {"set": self.name, "label": label, "score": score,
                   **{column: values[i] for column, values in self.groups.items()}}


def metrics(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, *, sample_weight: ArrayLike | None = None,
            protocol: str = "default") -> dict[str, Any]:
    """Classification metrics of P(unsafe) against 0/1 labels; equal to scikit-learn's to the last bit.

    Parameters
    ----------
    labels : array_like, shape (n,)
        1 (or True) unsafe, 0 safe. None, NaN and NA are unknown: the protocol says what they count as.
    scores : array_like, shape (n,)
        P(unsafe); any finite real number does, higher is worse.
    threshold : float, default 0.5
        Finite. A row is flagged when its score >= threshold, compared in the scores' own dtype, float16 in float32.
    sample_weight : array_like, shape (n,), optional
        Finite, >= 0; counted in float64, where scikit-learn keeps float32.
    protocol : {"default", "harmaug-2024"}
        See `Protocol`.

    Returns
    -------
    dict
        ``n``, ``n_unsafe``, ``base_rate``, ``threshold``, ``tp``, ``fp``, ``fn``, ``tn``, ``f1``, ``precision``,
        ``recall``, ``accuracy``, ``fpr``, ``fnr`` (at the threshold), ``auprc`` (average precision), ``auroc``,
        ``brier`` and ``ece`` (expected calibration error over 15 bins of equal width, closed on the right).
        None where undefined: ``auprc`` and ``auroc`` need both classes, ``brier`` and ``ece`` scores in [0, 1];
        ``note`` then says why.

    Raises
    ------
    ValueError
        For an empty set, unequal lengths, a label other than 0 and 1, a score that is not finite, a weight that is
        negative or not finite (the row is named, from 0), a threshold that is not finite.

    Examples
    --------
    >>> m = metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    >>> m["f1"], round(m["auprc"], 4)
    (0.5, 0.8333)
    """
    rules, y, w, (own,), notes = _given(protocol, labels, sample_weight, scores)
    s, flagged = own.astype(np.float64), rules.flagged(own, threshold)
    n, unsafe = len(y), int(y.sum())
    # sums in scikit-learn's order, so that weights round alike
    positives, flags, total = _sum(y == 1, w), _sum(flagged, w), _sum(np.ones(n, bool), w)
    tp, fp, fn, tn = (_sum(rows, w) for rows in ((y == 1) & flagged, (y == 0) & flagged, (y == 1) & ~flagged, (y == 0) & ~flagged))
    wanted, given = tp + (positives - tp), tp + (flags - tp)
    zero = rules.zero_division
    result: dict[str, Any] = {
        "n": n, "n_unsafe": unsafe, "base_rate": _ratio(positives, total), "threshold": float(threshold),
        "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "f1": _ratio(2 * tp, wanted + given, zero), "precision": _ratio(tp, given, zero),
        "recall": _ratio(tp, wanted, zero), "accuracy": _mean(flagged == y, w),
        "fpr": _ratio(fp, fp + tn), "fnr": _ratio(fn, fn + tp),
        "auprc": None, "auroc": None, "brier": None, "ece": None,
    }
    counted = y if w is None else y[w > 0]
    if counted.min() == counted.max():
        which = f"{len(counted)} rows{'' if w is None else ' of any weight'} are {'unsafe' if counted[0] else 'safe'}"
        notes.append(f"one class only: all {which}, so AUPRC and AUROC are undefined")
    else:
        tps, fps, _ = _curve(y, s, w)
        result["auprc"], result["auroc"] = _average_precision(tps, fps), _auroc(tps, fps)
    if s.min() < 0 or s.max() > 1:
        notes.append("scores outside [0, 1], so Brier score and ECE are undefined")
    elif total:
        truth = y.astype(own.dtype)     # scikit-learn's dtype and order of summation
        result["brier"] = _mean(((1 - truth) - (1 - own)) ** 2 + (truth - own) ** 2, w) * 0.5
        gaps = np.bincount(_bin(s), weights=(y - s) * (1 if w is None else w), minlength=ECE_BINS)
        result["ece"] = float(np.abs(gaps).sum() / total)
    return result | ({"note": "; ".join(notes)} if notes else {})


def intervals(labels: ArrayLike, scores: ArrayLike, names: Sequence[str] = METRICS, *, threshold: float = 0.5,
              sample_weight: ArrayLike | None = None, draws: int = 1000, level: float = 0.95, seed: int = 0,
              protocol: str = "default") -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap intervals of metrics over the rows (Efron & Tibshirani 1993, ch. 13).

    Parameters
    ----------
    labels, scores, threshold, sample_weight, protocol
        As for `metrics`.
    names : sequence of str, default METRICS
    draws : int, default 1000
        At least 1.
    level : float, default 0.95
        In (0, 1).
    seed : int, default 0

    Returns
    -------
    dict
        Name to (low, high), or None where the metric itself is. Draws that cannot give a metric are left out of its
        interval.

    Raises
    ------
    ValueError
        As for `metrics`, and for an unknown name, or draws or a level outside their range.
    """
    within(SimpleNamespace(draws=draws, level=level), draws=">= 1", level="in (0, 1)")
    rules, y, w, (s,), _ = _given(protocol, labels, sample_weight, scores)
    point = metrics(y, s, threshold, sample_weight=w, protocol=protocol)
    values = _draw(y, [(s, threshold)], names, w, draws, seed, rules)[0]
    return {name: None if point[name] is None else _percentiles(values[name], level) for name in names}


def bootstrap(labels: ArrayLike, scores: ArrayLike, metric: str = "auprc",
              **options: Any) -> tuple[float, float] | None:
    """The interval of one metric.

    Parameters
    ----------
    labels, scores
        As for `metrics`.
    metric : str, default "auprc"
        One of `METRICS`.
    **options
        Those of `intervals`.

    Returns
    -------
    tuple of float or None
        Low and high; None where the metric itself is.

    Raises
    ------
    ValueError
        As for `intervals`.
    """
    return intervals(labels, scores, (metric,), **options)[metric]


def compare(labels: ArrayLike, scores: ArrayLike, baseline: ArrayLike, names: Sequence[str] = ("auprc", "f1"), *,
            threshold: float = 0.5, baseline_threshold: float | None = None, sample_weight: ArrayLike | None = None,
            draws: int = 1000, level: float = 0.95, seed: int = 0, protocol: str = "default") -> dict[str, Any]:
    """The gain of one set of scores over another on the same rows: paired bootstrap and McNemar's test.

    Parameters
    ----------
    labels, scores, names, threshold, sample_weight, level, seed, protocol
        As for `intervals`; every draw takes the same rows for `scores` and `baseline`.
    baseline : array_like, shape (n,)
        The scores to compare with.
    baseline_threshold : float, optional
        Of the baseline. None: `threshold`.
    draws : int, default 1000
        0: no interval, p or verdict.

    Returns
    -------
    dict
        For each metric ``difference`` (scores minus baseline), ``low``, ``high``, ``p`` (two-sided, from the share of
        draws on the far side of 0) and ``within_noise``: whether the interval holds 0. All None where either side is
        undefined. ``mcnemar`` is what `mcnemar` returns; it counts rows, without weights.

    Raises
    ------
    ValueError
        As for `intervals`.
    """
    within(SimpleNamespace(draws=draws, level=level), draws=">= 0", level="in (0, 1)")
    rules, y, w, (a, b), _ = _given(protocol, labels, sample_weight, scores, baseline)
    other = threshold if baseline_threshold is None else baseline_threshold
    of_a, of_b = (metrics(y, s, t, sample_weight=w, protocol=protocol) for s, t in ((a, threshold), (b, other)))
    drawn_a, drawn_b = _draw(y, [(a, threshold), (b, other)], names, w, draws, seed, rules)
    result: dict[str, Any] = {}
    for name in names:
        result[name] = dict.fromkeys(("difference", "low", "high", "p", "within_noise"))
        if of_a[name] is None or of_b[name] is None:
            continue
        result[name]["difference"] = of_a[name] - of_b[name]
        if not draws:
            continue
        gains = drawn_a[name] - drawn_b[name]
        bounds = _percentiles(gains, level)
        gains = gains[~np.isnan(gains)]
        p = min(1.0, 2 * (1 + min((gains <= 0).sum(), (gains >= 0).sum())) / (len(gains) + 1))
        result[name] |= {"low": bounds and bounds[0], "high": bounds and bounds[1], "p": float(p),
                         "within_noise": bounds and bounds[0] <= 0 <= bounds[1]}
    result["mcnemar"] = mcnemar(y, a, b, threshold=threshold, baseline_threshold=other, protocol=protocol)
    return result


def paired_difference(labels: ArrayLike, scores: ArrayLike, baseline: ArrayLike, metric: str = "auprc",
                      **options: Any) -> dict[str, Any]:
    """Return what `compare` says of one metric."""
    return dict(compare(labels, scores, baseline, (metric,), **options)[metric])


def mcnemar(labels: ArrayLike, scores: ArrayLike, baseline: ArrayLike, *, threshold: float = 0.5,
            baseline_threshold: float | None = None, protocol: str = "default") -> dict[str, Any]:
    """McNemar's exact test of two guards' decisions on the same rows.

    Parameters
    ----------
    labels, scores, threshold, protocol
        As for `metrics`.
    baseline, baseline_threshold
        As for `compare`.

    Returns
    -------
    dict
        ``only_this`` and ``only_baseline``: rows that only one of them has right; ``p``: two-sided binomial.

    Raises
    ------
    ValueError
        As for `metrics`.

    Examples
    --------
    >>> mcnemar([1, 1, 1, 1, 1], [.9, .9, .9, .9, .9], [.1, .1, .1, .1, .1])
    {'only_this': 5, 'only_baseline': 0, 'p': 0.0625}
    """
    rules, y, _, (a, b), _ = _given(protocol, labels, None, scores, baseline)
    right = rules.flagged(a, threshold) == y
    other = rules.flagged(b, threshold if baseline_threshold is None else baseline_threshold) == y
    won, lost = int((right & ~other).sum()), int((~right & other).sum())
    n, k = won + lost, min(won, lost)
    i = np.arange(k)
    logs = np.append(0.0, np.cumsum(np.log((n - i) / (i + 1)))) - n * math.log(2)
    return {"only_this": won, "only_baseline": lost, "p": 1.0 if won == lost else min(1.0, 2 * float(np.exp(logs).sum()))}


def over_seeds(reports: Sequence[Mapping[str, Any]], names: Sequence[str] = METRICS) -> dict[str, dict[str, Any]]:
    """Mean and sample standard deviation of each set's metrics over reports, one a seed; over-refusal sets too.

    Parameters
    ----------
    reports : sequence of dict
        What `summarise` returns, of the same sets; a set may be missing in some.
    names : sequence of str, default METRICS

    Returns
    -------
    dict
        Set to metric to ``{"mean", "sd", "n"}``: `n` reports give the metric; mean is None without any, sd below two.

    Raises
    ------
    ValueError
        Without a report.
    """
    if not reports:
        raise ValueError("over_seeds: there is no report")
    entries = [{**report["datasets"], **report.get("over_refusal", {})} for report in reports]
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        result[name] = {}
        for metric in names:
            found = [value for entry in entries if (value := entry.get(name, {}).get(metric)) is not None]
            result[name][metric] = {"mean": float(np.mean(found)) if found else None,
                                    "sd": float(np.std(found, ddof=1)) if len(found) > 1 else None, "n": len(found)}
    return result


# -- sets ---------------------------------------------------------------------------------------------------------


def score_sets(guard: Any, datasets: Mapping[str, str | PathLike[str] | Iterable[Row | dict[str, Any]]], *,
               protocol: str = "default", by: Sequence[str] = (), training: Any = None,
               layout: Any = None) -> list[ScoredSet]:
    """Score the rows of evaluation sets.

    Parameters
    ----------
    guard : Scorer
        Or anything else that `harmaug.teacher.as_teacher` takes: a function, a pipeline of transformers, a folder, an address, a file of scores.
    datasets : mapping
        Name to a file (see `harmaug.data.iter_rows`) or to rows, as Row or dict.
    protocol : {"default", "harmaug-2024"}
    by : sequence of str
        Columns to keep for slices: any column of the rows but their text or, where a layout takes it, of the file, "length", bins of
        characters, and "windows" (see `ScoredSet`).
    training : callable, optional
        What `contamination` returns.
    layout : str or harmaug.datasets.Layout, optional
        Of the files; None: harmaug's own.

    Returns
    -------
    list of ScoredSet

    Raises
    ------
    ValueError
        For a set without a labelled row, a NaN score (set and row are named), a column of `by` that is text or that no row has, or a guard
        that does not read as the protocol asks.
    """
    from harmaug import engines, runs
    from harmaug.data import DataError, identity
    from harmaug.teacher import ScoresTeacher, as_scorer

    guard = as_scorer(guard)
    rules = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)]
    options, reading = _reading(guard, rules)
    sets = []
    read = [(name, *_rows_of(name, source, layout)) for name, source in datasets.items()]
    form = _layout(layout)[0]
    fields = _taken(form)
    check_slices(by, [row for *_, rows in read for row in rows], form)
    for name, where, about, rows in read:
        labels, kept = labels_of(rows, where, rules)
        labelled = [rows[i] for i in kept]
        given = engines.map_rows(partial(_score_block, guard, where, options), labelled, batch_size=_BLOCK)
        found = [pair for _, pair in runs.progress(given, len(labelled), f"score {name}")]
        scores, windows = np.array([score for score, _ in found]), [n for _, n in found]
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            problem = f"{guard.name} has no score for it" if isinstance(guard, ScoresTeacher) else f"the score is not finite: {scores[bad[0]]}"
            raise DataError(f"{where}, row {kept[bad[0]] + 1}: {problem}")
        cohort = {**about, **_nulls_of([row.label for row in rows], kept), "source": _one({row.source for row in labelled}),
                  "licences": sorted({row.license for row in labelled if row.license}), **reading}
        if training is not None:
            cohort["contamination"] = training(labelled)
        groups = {column: [_value(row, column, fields.get(column)) for row in labelled] for column in by}
        if max(windows) > 1 or set(groups.get("windows", ())) == {_UNKNOWN}:
            groups["windows"] = list(map(str, windows))
        keys = _keys([(_value(row, "id"), identity(row)) for row in labelled])
        sets.append(ScoredSet(name=name, labels=labels, scores=scores, groups=groups, keys=keys, cohort=cohort))
    return sets


def read_scores(path: str | PathLike[str], *, protocol: str = "default", by: Sequence[str] = (),
                layout: Any = None) -> list[ScoredSet]:
    """Read a file of scores, without a model: JSON, JSONL, CSV or Parquet with the columns label and score.

    A column "set" parts it into several sets; otherwise the set is named after the file. What ``harmaug score`` writes
    for labelled rows is such a file, and so is the scores.jsonl of a run.

    Parameters
    ----------
    path : path
    protocol, by
        As for `score_sets`; columns of `by` may be missing, none may be text.
    layout : str or harmaug.datasets.Layout, optional
        Names the score's column and reads the others as `harmaug.datasets.read` does; of a file's label its name may tell.

    Returns
    -------
    list of ScoredSet

    Raises
    ------
    harmaug.data.DataError
        Naming file and row, for a label or a score that is missing or wrong. An empty cell below a header is a null label.
    """
    from harmaug import data, datasets

    rules = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)]
    form, said = _layout(layout)
    for column in by:
        check_column(column, form=form)
    known = datasets.known_of(path, said) if isinstance(said, str) else {}
    if not (form.label or form.any_of or form.votes or "label" in known):
        raise data.DataError(f"{path}: the layout names no column for the label")
    parts: dict[str, tuple[list[int | None], list[float], dict[str, list[str]], list[tuple[str, Any]], set[Any]]] = {}
    stem, n, seen = data.stem(path), 0, set[str]()
    own = said is None and not {"category", "label"} & set(by)     # the columns have their names already
    for n, (where, columns) in enumerate(datasets._columns(path, form, needs=form.score), 1):
        if not own:
            seen.update(columns)
            if not form.keeps(columns):
                continue
        value = data.number_of(columns.get(form.score))
        if not math.isfinite(value):
            raise data.DataError(f"{where}: {form.score} must be a finite number")
        name = stem if columns.get("set") is None else str(columns["set"])
        if name not in parts:
            parts[name] = [], [], {column: [] for column in by}, [], set()
        labels, scores, groups, keys, sources = parts[name]
        row = columns if own else form.renamed(columns, where, **known)
        labels.append(form.label_of(columns, where) if own else row["label"])
        scores.append(value)
        prompt, response = row.get("prompt"), row.get("response")
        known_by: Any = _UNKNOWN
        if isinstance(prompt, str) and (response is None or isinstance(response, str)):
            known_by = data.identity(data.Row(prompt=prompt, response=response))
        keys.append((_shown(row.get("id")), known_by))
        sources.add(str(row.get("source") or ""))
        for column in by:
            if column == "length" and column not in columns:
                texts = [data.text_of(row.get(side), side, where) for side in ("prompt", "response")]
                groups[column].append(_UNKNOWN if texts[0] is None else _length(sum(map(len, filter(None, texts)))))
            else:
                groups[column].append(_shown(row.get(column, columns.get(column))))
    if not parts:
        raise data.DataError(f"{path}: the set is empty, no rows")
    if not own:
        datasets.check_columns(path, said if isinstance(said, str) else form, seen, {"category"} & set(by))
    about = {"file": fspath(path), "sha256": sha256_of(path), "layout": said, "rows": n}
    sets = []
    for name, (found, scores, groups, keys, sources) in parts.items():
        labels_, kept = _known(found, f"{path}, set {name}", rules)
        sets.append(ScoredSet(name=name, labels=labels_, scores=np.array(scores)[kept],
                              groups={column: [values[i] for i in kept] for column, values in groups.items()},
                              keys=_keys([keys[i] for i in kept]),
                              cohort={**about, **_nulls_of(found, kept), "source": _one(sources)}))
    return sets


def _keys(rows: Iterable[tuple[str, Any]]) -> dict[str, Sequence[Any]]:
    """The ids and the texts of rows, each where no row lacks it."""
    return {kind: keys for kind, keys in zip(("id", "texts"), zip(*rows)) if _UNKNOWN not in keys}


def check_column(name: str, values: Iterable[str] = ("",), form: Any = None) -> None:
    """Raise ValueError for a column to slice by that no row has, or that holds the rows' text, in the layout `form` too.

    `values` are those of all rows, where they are known.
    """
    from harmaug.data import COLUMNS

    texts = ("prompt", "response", "context")
    if name.removeprefix("original_") in (*texts, *(getattr(form, text, None) for text in texts)):
        raise ValueError(f"slices by {name}: it is the rows' text, which no report shows")
    if name not in (*COLUMNS, "length") and all(value == _UNKNOWN for value in values):
        raise ValueError(f"slices by {name}: no row has this column")


def _taken(form: Any) -> dict[str, str]:
    """The columns that a layout takes, each with the field of a row that has what stood there."""
    return {getattr(form, name): name for name in ("prompt", "response", "id", "label", "category")}


def check_slices(by: Iterable[str], rows: Sequence[Row], form: Any = None) -> None:
    """check_column for each column to slice by over rows that are read, "windows" apart, which guards tell."""
    fields = {} if form is None else _taken(form)
    for column in set(by) - {"windows"}:
        check_column(column, (_value(row, column, fields.get(column)) for row in rows), form)


def set_length(guard: Any, protocol: str) -> None:
    """Have a Guard read as many tokens as the protocol cuts rows to, as far as its model can; other scorers are let be."""
    asked = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)].max_length
    if asked is not None and hasattr(guard, "max_length"):
        guard.max_length = min(asked, int(guard.config["max_tokens"]))


def labels_of(rows: Sequence[Row], where: str, rules: Protocol) -> tuple[Labels, list[int]]:
    """Return the labels that count and the rows they belong to.

    A DataError names the set (or its file) that has none, and a row without a label; null is unknown, and no error.
    """
    from harmaug.data import DataError

    if not rows:
        raise DataError(f"{where}: the set is empty")
    for i, row in enumerate(rows):
        if row.label is None and not row.unknown:
            raise DataError(f"{where}, row {i + 1}: an evaluation row needs a label (null: unknown)")
    return _known([row.label for row in rows], where, rules)


def _known(labels: Sequence[int | None], where: str, rules: Protocol) -> tuple[Labels, list[int]]:
    from harmaug.data import DataError

    filled = [rules.null_label if label is None else label for label in labels]
    kept = [i for i, label in enumerate(filled) if label is not None]
    if not kept:
        raise DataError(f"{where}: every label is null")
    return np.array([filled[i] for i in kept], dtype=np.int8), kept


def _nulls_of(labels: Sequence[int | None], kept: Sequence[int]) -> dict[str, int]:
    return {"n_null": sum(label is None for label in labels), "n_unlabelled": len(labels) - len(kept)}


def _one(values: set[Any]) -> str | None:
    """The only value, if there is one."""
    return (values.pop() or None) if len(values) == 1 else None


def contamination(training: Iterable[Row | dict[str, Any]], near: float = 0.6) -> Any:
    """Return a function of evaluation rows that counts those among the distinct training rows, and those near one.

    Near is a Jaccard similarity of the prompts' character 5-grams of at least `near`.
    """
    from harmaug.data import Row, identity
    from harmaug.filters import NearIndex

    known = {identity(row if isinstance(row, Row) else Row.from_dict(row, f"training, row {i}")) for i, row in enumerate(training, 1)}
    index = NearIndex(near)
    for prompt in {prompt for prompt, _ in known}:
        index.add(prompt, "")

    def count(rows: Iterable[Row]) -> dict[str, int]:
        keys = [identity(row) for row in rows]
        return {"training_rows": len(known), "exact": sum(key in known for key in keys),
                "near": sum(key not in known and index.find(key[0]) is not None for key in keys)}

    return count


def summarise(sets: Sequence[ScoredSet], *, threshold: float = 0.5, fitted: float | None = None, draws: int = 1000,
              seed: int = 0, protocol: str = "default", over_refusal: Sequence[str] | None = None,
              baselines: Mapping[str, Sequence[ScoredSet]] | None = None) -> dict[str, Any]:
    """Return one report of scored sets.

    Parameters
    ----------
    sets : sequence of ScoredSet
    threshold : float, default 0.5
    fitted : float, optional
        A threshold fitted on other rows; figures at it stand in ``at_fitted_threshold``.
    draws, seed : int
        Bootstrap draws of the intervals (0 leaves them out) and their seed.
    protocol : {"default", "harmaug-2024"}
    over_refusal : sequence of str, optional
        Sets that measure needless refusals. They, and any set of safe rows only, stand under ``over_refusal`` and are
        never part of ``mean``. None: those that `is_over_refusal` tells; an empty sequence: no set but those of safe rows.
    baselines : mapping, optional
        Name to sets of the same names and rows, scored by another guard, paired by ids, else by texts, else as they stand
        (see ``keys`` of `ScoredSet`): each set then carries its ``baselines``, by name what `metrics` returns with
        ``comparison``, what `compare` says (without intervals when `draws` is 0).

    Returns
    -------
    dict
        ``schema_version``, ``protocol``, ``threshold``, ``versions``; under ``datasets`` and ``over_refusal`` by name
        what `metrics` returns with ``<metric>_interval``, ``cohort`` and ``slices`` (those by "windows" with the Wilson
        interval of their ``fpr``); under ``mean`` the plain means over
        ``datasets`` of the metrics that every set gives. The schema is data/metrics.schema.json of the package.

    Raises
    ------
    ValueError
        For two sets of one name, one that is named mean, a name in `over_refusal` that no set has, or a baseline without the
        rows of a set.
    """
    from harmaug.runs import machine

    rules = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)]
    named, others = _by_name(sets), {name: _by_name(parts) for name, parts in (baselines or {}).items()}
    apart = [part.name for part in sets if is_over_refusal(part)] if over_refusal is None else over_refusal
    missing = [name for name in apart if name not in named]
    if missing:
        raise ValueError(f"over_refusal: there is no set {missing[0]}; there are {', '.join(named)}")
    here = machine()
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "protocol": asdict(rules), "threshold": threshold,
        "versions": {name: here[name] for name in ("harmaug", "numpy", "python")}, "datasets": {}, "over_refusal": {}}
    options: dict[str, Any] = {"threshold": threshold, "protocol": protocol}
    for part in sets:
        y, s = part.labels, part.scores
        entry = metrics(y, s, **options)
        if draws:
            found = intervals(y, s, draws=draws, seed=seed, **options)
            entry |= {f"{name}_interval": interval for name, interval in found.items()}
        if fitted is not None:
            entry["at_fitted_threshold"] = metrics(y, s, fitted, protocol=protocol)
        entry["cohort"] = {**part.cohort, "n": len(y), "labels": {"0": "safe", "1": "unsafe"}}
        entry["slices"] = {column: slices(y, s, values, **options) for column, values in part.groups.items()}
        for found in entry["slices"].get("windows", {}).values():
            found["fpr_interval"] = wilson(found["fp"], found["fp"] + found["tn"])
        for name, parts in others.items():
            if part.name not in parts:
                raise ValueError(f"{name}: no scores of the set {part.name}")
            other = _aligned(part, parts[part.name], name)
            entry.setdefault("baselines", {})[name] = {
                **metrics(y, other, **options), "comparison": compare(y, s, other, draws=draws, seed=seed, **options)}
        report["over_refusal" if part.name in apart or not y.any() else "datasets"][part.name] = entry
    report["mean"] = means(list(report["datasets"].values()))
    return report


def means(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the plain means of the metrics that every set gives."""
    return {name: float(np.mean([entry[name] for entry in entries])) for name in METRICS
            if entries and all(entry.get(name) is not None for entry in entries)}


def is_over_refusal(part: ScoredSet) -> bool:
    """Whether a set measures needless refusals: `harmaug.datasets.MANIFEST` says so of its name or its rows' source.

    Rows that were read in a layout of the manifest have its name as their source.
    """
    from harmaug.datasets import MANIFEST

    return any(name in MANIFEST and MANIFEST[name].over_refusal for name in (part.name, part.cohort.get("source")))


def _aligned(part: ScoredSet, other: ScoredSet, name: str) -> NDArray[np.floating[Any]]:
    """The scores of a baseline in the order of a set's rows: by id or by texts, whichever tells more rows apart, else as they stand."""
    problem = f"{part.name}: the rows of {name} are not the same:"
    order = np.arange(len(other.labels))
    kind = max((kind for kind in part.keys if kind in other.keys), key=lambda kind: len(set(part.keys[kind])), default=None)
    if kind is not None and part.keys[kind] != other.keys[kind]:
        (here, n), (there, m) = ((side.keys[kind], Counter(side.keys[kind])) for side in (part, other))
        odd = next((key for key in (*here, *there) if (n[key], m[key]) != (1, 1)), None)
        if odd is not None:
            of, keys = (part.name, here) if odd in n else (name, there)
            what = f"the id {odd[:40]!r}" if kind == "id" else f"labelled row {keys.index(odd) + 1} of {of}, by its texts,"
            raise ValueError(f"{problem} {what} is {n[odd]} times in {part.name} and {m[odd]} times in {name}")
        places = {key: i for i, key in enumerate(there)}
        order = np.array([places[key] for key in here])
    if len(order) != len(part.labels):
        raise ValueError(f"{problem} {len(order)} labels against {len(part.labels)}")
    strange = np.flatnonzero(other.labels[order] != part.labels)
    if len(strange):
        raise ValueError(f"{problem} the label of labelled row {strange[0] + 1} of {part.name} is another there")
    return other.scores[order]


def _by_name(sets: Sequence[ScoredSet]) -> dict[str, ScoredSet]:
    found: dict[str, ScoredSet] = {}
    for part in sets:
        if part.name in found:
            raise ValueError(f"two sets are named {part.name}")
        if part.name == "mean":
            raise ValueError("a set is named mean, as the average of the sets is: give it, or its file, another name")
        found[part.name] = part
    return found


def evaluate_guard(guard: Any, datasets: Mapping[str, str | PathLike[str] | Iterable[Row | dict[str, Any]]], *,
                   threshold: float = 0.5, fitted: float | None = None, draws: int = 1000, seed: int = 0, protocol: str = "default",
                   by: Sequence[str] = (), over_refusal: Sequence[str] | None = None, training: Iterable[Row] | None = None,
                   layout: Any = None, baselines: Mapping[str, Sequence[ScoredSet]] | None = None) -> dict[str, Any]:
    """Score every row of every set and return one report.

    Parameters are those of `score_sets` and `summarise`; `training` are rows that the guard was trained on, whose
    copies and near-copies among the evaluation rows are counted, and `fitted` is None for the guard's own threshold.

    Returns
    -------
    dict
        What `summarise` returns.
    """
    from harmaug.teacher import as_scorer

    guard = as_scorer(guard)
    found = None if training is None else contamination(training)
    sets = score_sets(guard, datasets, protocol=protocol, by=by, training=found, layout=layout)
    if fitted is None and getattr(guard, "thresholds", None):
        fitted = guard.threshold
    return summarise(sets, threshold=threshold, fitted=fitted, draws=draws, seed=seed, protocol=protocol,
                     over_refusal=over_refusal, baselines=baselines)


def slices(labels: Labels, scores: NDArray[np.floating[Any]], values: Sequence[str], **options: Any) -> dict[str, dict[str, Any]]:
    """The metrics of each group of rows with one value.

    Parameters
    ----------
    labels, scores : ndarray, shape (n,)
    values : sequence of str
        Of each row.
    **options
        Of `metrics`.

    Returns
    -------
    dict
        Value to metrics, in the order of the values; numbers and bins as numbers, "(none)" last.
    """
    codes: dict[str, int] = {}
    places = np.array([codes.setdefault(value, len(codes)) for value in map(str, values)])
    groups = {name: places == codes[name] for name in sorted(codes, key=_natural)}
    return {name: metrics(labels[rows], scores[rows], **options) for name, rows in groups.items()}


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float] | None:
    """The interval of a share, 95 % unless `z` says otherwise (Wilson 1927); None of nothing."""
    if not n:
        return None
    share, spread = hits / n, z * z / n
    middle, half = share + spread / 2, z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def format_table(report: Mapping[str, Any]) -> str:
    """The report as aligned text.

    Parameters
    ----------
    report : dict
        What `summarise` and `evaluate_guard` return.

    Returns
    -------
    str
        One line a set with its notes, and a table for each kind of slice.
    """
    from harmaug.report import measures_table, slices_tables

    parts = {**report["datasets"], **report["over_refusal"]}
    tables = [measures_table(report), *(table for name, entry in parts.items() for table in slices_tables(name, entry))]
    return "\n\n".join(map(repr, tables))


def _score_block(guard: Any, where: str, options: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[tuple[float, int]]:
    """Score and number of windows of each row; 1 where the guard does not tell."""
    from harmaug.data import DataError
    from harmaug.teacher import as_array

    detailed = hasattr(guard, "score_details")
    given = (guard.score_details if detailed else guard.score)([row.prompt for row in rows], [row.response for row in rows], **options)
    scores = as_array(given.score if detailed else given)
    if scores.dtype.kind not in "biuf":
        raise DataError(f"{where}: {type(guard).__name__} gives no scores")
    if scores.shape != (len(rows),):
        raise DataError(f"{where}: scores of shape {scores.shape} for {len(rows)} rows")
    return zip(scores if scores.dtype.kind == "f" else scores.astype(np.float64), given.n_windows.tolist() if detailed else [1] * len(rows))


def _rows_of(name: str, source: Any, layout: Any) -> tuple[str, dict[str, Any], list[Row]]:
    """What messages call a set, where its rows come from, and the rows."""
    from harmaug import datasets
    from harmaug.data import Row

    if not isinstance(source, (str, PathLike)):
        rows = [row if isinstance(row, Row) else Row.from_dict(row, f"{name}, row {i}") for i, row in enumerate(source, 1)]
        return name, {"file": None, "sha256": None, "rows": len(rows)}, rows
    path = datasets.resolve(source)
    rows = datasets.read(path, layout)
    return fspath(path), about_file(path, layout, len(rows)), rows


def about_file(path: str | PathLike[str], layout: Any, n: int) -> dict[str, Any]:
    """Return what a cohort says of the file whose `n` rows were read in a layout."""
    from harmaug import datasets

    form, said = _layout(layout)
    return {"file": fspath(path), "sha256": sha256_of(path), "layout": said,
            "rows": datasets.count(path, form) if form.only or form.without else n}


def sha256_of(path: str | PathLike[str]) -> str | None:
    """Of a file; None of what cannot be read twice, such as a pipe."""
    from harmaug import runs

    return runs.sha256(path) if isfile(path) else None


def _layout(layout: Any) -> tuple[Any, Any]:
    """A layout, and its name or mapping for the record."""
    import msgspec

    from harmaug.datasets import MANIFEST, Layout, parse_layout

    if isinstance(layout, str) and "=" not in layout:
        return MANIFEST[one_of("layout", layout, MANIFEST)].layout, layout
    layout = parse_layout(layout) if isinstance(layout, str) else layout
    return layout or Layout(), layout and msgspec.to_builtins(layout)


def _reading(guard: Any, rules: Protocol) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to tell the guard's `score`, and how it reads long rows."""
    known = hasattr(guard, "long") and hasattr(guard, "max_length")
    if rules.max_length is None or not known:
        return {}, {"long": guard.long, "max_length": guard.max_length} if known else {"long": None, "max_length": None}
    wanted = min(rules.max_length, int(guard.config["max_tokens"]))
    if guard.max_length != wanted:
        raise ValueError(f"protocol {rules.name} cuts rows to {wanted} tokens: open the guard with max_length={wanted}, "
                         f"it has {guard.max_length}")
    return {"long": "truncate"}, {"long": "truncate", "max_length": wanted}


def _value(row: Row, column: str, field: str | None = None) -> str:
    """What a slice shows of a row; `field` holds the column where a layout has taken it."""
    if column == "length":
        return _length(len(row.prompt) + len(row.response or ""))
    from harmaug.data import COLUMNS

    value = getattr(row, column.replace("-", "_")) if column in COLUMNS else None
    shown = _shown(row.extra.get(column) if value is None else value)
    return _value(row, field) if field and shown == _UNKNOWN else shown


def _shown(value: Any) -> str:
    return _UNKNOWN if value is None or value == "" else str(value)


def _length(size: int) -> str:
    i = int(np.searchsorted(LENGTHS, size, side="right"))
    return f"{LENGTHS[i - 1]}-{LENGTHS[i] - 1}" if i < len(LENGTHS) else f"{LENGTHS[-1]}+"


def _natural(name: str) -> tuple[bool, float, str]:
    head = name.split("-")[0].rstrip("+")
    return name == _UNKNOWN, float(head) if head.isdecimal() else math.inf, name


# -- figures ------------------------------------------------------------------------------------------------------


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Labels, Floats]:
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


def _given(protocol: str, labels: ArrayLike, weights: ArrayLike | None, *scores: ArrayLike,
           ) -> tuple[Protocol, Labels, Floats | None, list[NDArray[np.floating[Any]]], list[str]]:
    """The protocol, what counts of labels, weights and scores (in their own dtype), and what to say of null labels."""
    rules = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)]
    null = _nulls(labels)
    filled = np.where(null, rules.null_label or 0, labels) if null.any() else labels
    checked = [_checked(filled, given) for given in scores]
    own = [given if given.dtype.kind == "f" else wide for given, (_, wide) in zip(map(np.asarray, scores), checked)]
    y = checked[0][0]
    w = _weights(weights, len(y))
    if rules.null_label is not None or not null.any():
        return rules, y, w, own, []
    if null.all():
        raise ValueError("every label is null")
    w = None if w is None else _weights(w[~null], int((~null).sum()))
    return rules, y[~null], w, [given[~null] for given in own], [f"{int(null.sum())} rows whose label is null left out"]


def _nulls(labels: ArrayLike) -> NDArray[np.bool_]:
    """Which labels are None, NaN or NA, as pandas says None."""
    y = np.asarray(labels)
    if y.dtype.kind == "O":
        return np.array([value is None or type(value).__name__ == "NAType" or value != value for value in y.ravel()], dtype=bool)
    return np.isnan(y) if y.dtype.kind == "f" else np.zeros(y.shape, dtype=bool)


def _weights(weights: ArrayLike | None, n: int) -> Floats | None:
    if weights is None:
        return None
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise ValueError(f"sample_weight must have one weight for each of {n} rows, got shape {w.shape}")
    bad = np.flatnonzero(~(np.isfinite(w) & (w >= 0)))
    if len(bad):
        raise ValueError(f"row {bad[0]}: the weight must be finite and not negative, got {w[bad[0]]}")
    if not w.any():
        raise ValueError("every weight is 0")
    return w


def _sum(mask: NDArray[np.bool_], weights: Floats | None) -> Any:
    if weights is None:
        return int(mask.sum())
    return float(np.bincount(mask, weights=weights, minlength=2)[1])


def _mean(values: NDArray[Any], weights: Floats | None) -> float:
    return float(np.average(values, weights=weights))


def _ratio(part: float, whole: float, zero: float | None = None) -> float | None:
    return part / whole if whole else zero


def _bin(scores: Floats) -> NDArray[np.intp]:
    """The ECE bin of each score, closed on the right as scikit-learn's calibration_curve has them."""
    return np.searchsorted(np.linspace(0, 1, ECE_BINS + 1)[1:-1], scores)


def _ends_of_ties(sorted_scores: Floats) -> NDArray[np.intp]:
    return np.append(np.flatnonzero(np.diff(sorted_scores)), len(sorted_scores) - 1)


def _curve(y: Labels, s: Floats, weights: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    """True and false positives at each distinct score, highest first, and the scores; ties are flagged together."""
    if weights is not None:
        y, s, weights = (values[weights != 0] for values in (y, s, weights))
    order = np.argsort(-s, kind="stable")
    ends = _ends_of_ties(s[order])
    if weights is None:
        tps = np.cumsum(y[order], dtype=np.float64)[ends]
        return tps, ends + 1 - tps, s[order][ends]
    w = weights[order]
    return np.cumsum(y[order] * w)[ends], np.cumsum((1 - y[order]) * w)[ends], s[order][ends]


def _average_precision(tps: Floats, fps: Floats) -> float:
    # scikit-learn's order of summation, lowest threshold first: the results are equal to the last bit
    precision = np.append((tps / (tps + fps))[::-1], 1.0)
    recall = np.append((tps / tps[-1])[::-1], 0.0)
    return float(max(0.0, -np.sum(np.diff(recall) * precision[:-1])))


def _auroc(tps: Floats, fps: Floats) -> float:
    if len(fps) > 2:    # points on a straight line are left out, as scikit-learn does
        corner = np.concatenate([[True], (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0), [True]])
        tps, fps = tps[corner], fps[corner]
    x, y = np.append(0.0, fps) / fps[-1], np.append(0.0, tps) / tps[-1]
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2.0))


# -- bootstrap ----------------------------------------------------------------------------------------------------


def resamples(n: int, draws: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of how often each of n rows is drawn, float64 of shape (draws of the block, n)."""
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK // n)
    for start in range(0, draws, block):
        b = min(block, draws - start)
        rows = rng.integers(0, n, size=(b, n)) + np.arange(b)[:, None] * n
        yield np.bincount(rows.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)


def _draw(y: Labels, guards: Sequence[tuple[NDArray[np.floating[Any]], float]], names: Sequence[str], weights: Floats | None, draws: int,
          seed: int, rules: Protocol) -> list[dict[str, Floats]]:
    """The metrics of each (scores, threshold) on `draws` resamples, the same for all; NaN where undefined."""
    for name in names:
        one_of("metric", name, METRICS)
    out: list[dict[str, list[Floats]]] = [{name: [] for name in names} for _ in guards]
    for counts in resamples(len(y), draws, seed):
        if weights is not None:
            counts *= weights
        for values, (s, threshold) in zip(out, guards):
            for name, block in _weighted(y, s.astype(np.float64), counts, names, rules.flagged(s, threshold), rules).items():
                values[name].append(block)
    return [{name: np.concatenate([np.zeros(0), *blocks]) for name, blocks in values.items()} for values in out]


def _weighted(y: Labels, s: Floats, counts: Floats, names: Sequence[str], flagged: NDArray[np.bool_],
              rules: Protocol) -> dict[str, Floats]:
    """Each metric for every row of `counts`."""
    columns = np.stack([(y == 1) & flagged, y == 1, (y == 0) & flagged, y == 0], axis=1).astype(np.float64)
    tp, positives, fp, negatives = (counts @ columns).T
    total, zero = positives + negatives, math.nan if rules.zero_division is None else rules.zero_division

    def ratio(part: Floats, whole: Floats, otherwise: float = math.nan) -> Floats:
        return np.asarray(np.divide(part, whole, out=np.full(len(part), otherwise), where=whole > 0))

    result = {}
    for name in names:
        if name in ("auprc", "auroc"):
            continue
        result[name] = {
            "f1": lambda: ratio(2 * tp, positives + tp + fp, zero), "precision": lambda: ratio(tp, tp + fp, zero),
            "recall": lambda: ratio(tp, positives, zero), "fpr": lambda: ratio(fp, negatives),
            "fnr": lambda: ratio(positives - tp, positives),
            "accuracy": lambda: ratio(negatives - fp + tp, total),
            "brier": lambda: ratio(counts @ (y - s) ** 2, total),
            "ece": lambda: ratio(np.abs(counts @ ((_bin(s)[:, None] == np.arange(ECE_BINS)) * (y - s)[:, None])).sum(1),
                                 total),
        }[name]()
    if "auprc" in names or "auroc" in names:
        order = np.argsort(-s, kind="stable")
        ends = _ends_of_ties(s[order])
        drawn = counts[:, order]
        tps = np.cumsum(drawn * y[order], axis=1)[:, ends]
        seen = np.cumsum(drawn, axis=1, out=drawn)[:, ends]
        both = (positives > 0) & (negatives > 0)
        steps = np.diff(tps, axis=1, prepend=0.0)
        if "auprc" in names:
            precision = np.divide(tps, seen, out=np.zeros_like(tps), where=seen > 0)
            result["auprc"] = np.where(both, ratio((steps * precision).sum(1), positives), math.nan)
        if "auroc" in names:    # of all pairs, those in which the safe row scores lower, ties by half
            fps = seen - tps
            below = negatives[:, None] - fps + np.diff(fps, axis=1, prepend=0.0) / 2
            result["auroc"] = np.where(both, ratio((steps * below).sum(1), positives * negatives), math.nan)
    return result


def _percentiles(values: Floats, level: float) -> tuple[float, float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
