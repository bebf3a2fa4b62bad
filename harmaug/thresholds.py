"""Thresholds, calibration and gates: how scores become decisions.

What is fitted here is kept in a guard's thresholds.json (`Guard.set_threshold`, `Guard.save_pretrained`) and used by
`Guard.predict`. Fit on validation rows, never on the rows that are reported.
"""
from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import evaluate
from harmaug.checks import within

__all__ = ["FittedThreshold", "Gate", "calibrate", "fit_temperature", "fit_threshold", "junit", "log_odds",
           "parse_gates"]

Floats = NDArray[np.float64]

_TARGET = re.compile(r"f1|(fpr|recall)=([0-9.eE+-]+)")
_GATE = re.compile(r"(?:(.*\S)\s*:)?\s*([a-z0-9_]+)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)")
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")     # XML 1.0, section 2.2
_AT_THRESHOLD = ("f1", "precision", "recall", "accuracy", "fpr", "fnr")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_TEMPERATURES = (1e-3, 1e3)


@dataclass(frozen=True, kw_only=True)
class FittedThreshold:
    """A threshold, what it was fitted for, and on what.

    Attributes
    ----------
    threshold : float
    target : str
        "f1", "fpr=..." or "recall=...".
    value : float
        The metric that the target names, at the threshold, on these rows.
    interval : tuple of float or None
        95 % bootstrap interval of the threshold; None without draws.
    n, n_unsafe : int
    """

    threshold: float
    target: str
    value: float
    interval: tuple[float, float] | None
    n: int
    n_unsafe: int


def fit_threshold(labels: ArrayLike, scores: ArrayLike, target: str = "f1", *, draws: int = 1000,
                  seed: int = 0, protocol: str = "default") -> FittedThreshold:
    """Fit a threshold, halfway between two neighbouring scores, so that equal scores are never parted.

    Parameters
    ----------
    labels, scores : array_like, shape (n,)
        As for `evaluate.metrics`.
    target : str
        "fpr=0.05": the lowest threshold whose false-positive rate is at most that. "recall=0.95": the highest whose
        recall is at least that. "f1": the highest of those with the best F1.
    draws, seed : int
        Bootstrap draws of the interval (0: none), and their seed.
    protocol : {"default", "harmaug-2024"}
        Whether a score at the threshold is flagged, and what a null label counts as.

    Raises
    ------
    ValueError
        For an unknown target, negative draws, rows without the class that it needs, or a false-positive rate that no
        threshold in reach gives: safe rows with the highest score of all, and that score is 1.

    Examples
    --------
    >>> fit_threshold([0, 0, 1, 1], [0.25, 0.5, 0.5, 1.0], "fpr=0", draws=0).threshold
    0.75
    """
    kind, limit = _target(target)
    within(SimpleNamespace(draws=draws), draws=">= 0")
    rules, y, _, (own,), _ = evaluate._given(protocol, labels, None, scores)
    s = own.astype(np.float64)
    needed = 0 if kind == "fpr" else 1
    if not (y == needed).any():
        raise ValueError(f"{target}: no {('safe', 'unsafe')[needed]} row among the labels")
    tps, fps, values = evaluate._curve(y, s)
    with np.errstate(over="ignore"):    # of scores that no float32 holds
        cuts = np.array([_between(*pair, rules.tie_unsafe) for pair in zip([np.inf, *values], [*values, -np.inf])])
    # cuts[i] flags the i highest distinct scores
    tps, fps = np.append(0.0, tps), np.append(0.0, fps)
    best = int(_best(tps[None], fps[None], kind, limit)[0])
    if not math.isfinite(cuts[best]):
        raise ValueError(f"{target}: no threshold gives it: {int(fps[1])} safe rows share the highest score, {values[0]:g}")
    interval = None
    if draws:
        order = np.argsort(-s, kind="stable")
        ends = evaluate._ends_of_ties(s[order])
        found = []
        for counts in evaluate.resamples(len(y), draws, seed):
            seen = [np.cumsum(counts[:, order] * (y[order] == label), axis=1)[:, ends] for label in (1, 0)]
            drawn = [np.pad(part, ((0, 0), (1, 0))) for part in seen]
            usable = drawn[1 - needed][:, -1] > 0
            found.append(cuts[_best(drawn[0], drawn[1], kind, limit)[usable]])
        kept = np.concatenate(found)
        interval = evaluate._percentiles(np.where(np.isfinite(kept), kept, values[0]), 0.95)
    value = {"f1": 2 * tps / np.maximum(tps + fps + tps[-1], 1e-300), "recall": tps / (tps[-1] or 1), "fpr": fps / (fps[-1] or 1)}
    return FittedThreshold(threshold=float(cuts[best]), target=target, value=float(value[kind][best]),
                           interval=interval, n=len(y), n_unsafe=int(y.sum()))


def log_odds(scores: ArrayLike) -> Floats:
    """log(p / (1 - p)) of probabilities.

    Parameters
    ----------
    scores : array_like, shape (n,)
        In [0, 1]. 0 counts as 2 ** -54, 1 as half a step of its dtype below: 1 - 2 ** -25 of float32, 1 - 2 ** -54 of float64.

    Returns
    -------
    ndarray, shape (n,), float64

    Raises
    ------
    ValueError
        For a score outside [0, 1], by its row from 0.
    """
    p = np.asarray(scores)
    p = p if p.dtype.kind == "f" else p.astype(np.float64)
    half = float(np.finfo(p.dtype).epsneg) / 2
    p = p.astype(np.float64)
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if len(bad):
        raise ValueError(f"row {bad[0]}: a probability must be in [0, 1], got {p.flat[bad[0]]}")
    return np.asarray(np.log(np.maximum(p, 2.0 ** -54)) - np.log(np.maximum(1 - p, half)))


def fit_temperature(labels: ArrayLike, log_odds: ArrayLike) -> float:
    """Fit the temperature that makes P(unsafe) = sigmoid(log_odds / T) likeliest (Guo et al. 2017, arXiv 1706.04599).

    Parameters
    ----------
    labels : array_like, shape (n,)
        As for `evaluate.metrics`; rows whose label is null are left out.
    log_odds : array_like, shape (n,)
        `Guard.log_odds`, or `log_odds` of scores.

    Raises
    ------
    ValueError
        When the likelihood has no maximum for T in [0.001, 1000]: the scores separate the rows perfectly, run against
        the labels, or are all the same.
    """
    _, y, _, (own,), _ = evaluate._given("default", labels, None, log_odds)
    z = own.astype(np.float64)
    signed = np.where(y == 1, z, -z)

    def slope(log_t: float) -> float:   # of the negative log-likelihood in 1 / T, which is convex
        return float(-np.sum(signed / (1 + np.exp(np.clip(signed * math.exp(-log_t), -700, 700)))))

    low, high = map(math.log, _TEMPERATURES)
    if slope(low) < 0 or slope(high) >= 0:
        why = "separate the rows perfectly" if slope(low) < 0 else "run against the labels" if np.ptp(z) else "are all the same"
        raise ValueError(f"the scores {why}: no temperature in [{_TEMPERATURES[0]:g}, {_TEMPERATURES[1]:g}] fits best")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) < 0 else (middle, high)
    return math.exp((low + high) / 2)


def calibrate(scores: ArrayLike, temperature: float) -> Floats:
    """Probabilities as the temperature has them: sigmoid(log_odds(scores) / temperature).

    Parameters
    ----------
    scores : array_like, shape (n,)
        In [0, 1].
    temperature : float
        Over 0; over 1 draws the scores towards 0.5.

    Returns
    -------
    ndarray, shape (n,), float64

    Raises
    ------
    ValueError
        For a score outside [0, 1], or a temperature that is not finite and over 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be in (0, inf), got {temperature}")
    return np.asarray(np.exp(-np.logaddexp(0, -log_odds(scores) / temperature)))


def _target(target: str) -> tuple[str, float]:
    found = _TARGET.fullmatch(target)
    limit = math.nan
    if found is not None:
        try:
            limit = float(found[2] or 0)
        except ValueError:
            pass
    if found is None or not 0 <= limit <= 1:
        raise ValueError(f"target must be f1, fpr=X or recall=X with X in [0, 1], got {target!r}")
    return found[1] or "f1", limit


def _best(tps: Floats, fps: Floats, kind: str, limit: float) -> NDArray[np.intp]:
    """Of each row of counts at ascending numbers of flagged scores, the place that the target wants."""
    positives, negatives = tps[:, -1:], fps[:, -1:]
    if kind == "fpr":
        return np.asarray((fps / np.maximum(negatives, 1e-300) <= limit).sum(1) - 1)
    if kind == "recall":
        return np.asarray(np.argmax(tps / np.maximum(positives, 1e-300) >= limit, axis=1))
    return np.asarray(np.argmax(2 * tps / np.maximum(tps + fps + positives, 1e-300), axis=1))


def _between(upper: float, lower: float, tie_unsafe: bool) -> float:
    """A threshold that flags `upper` and not `lower`, as a float32 too, because that is what guards compare."""
    if lower == -np.inf:
        return float(upper) if tie_unsafe else float(np.nextafter(np.float32(upper), np.float32(-np.inf)))
    if upper == np.inf:     # nothing is flagged
        upper = 1.0 if lower < 1 else 2 * lower if lower > 1 else np.inf
    middle = float(np.float32((upper + lower) / 2))
    return middle if lower < middle < upper else float(upper if tie_unsafe else lower)


# -- gates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition on a report: "auprc>=0.8" of every set but those of over-refusal, or "xstest:fpr<=0.1" of one."""

    text: str
    dataset: str | None
    metric: str
    compare: str
    bound: float

    def check_name(self, names: Collection[str]) -> None:
        """Raise ValueError when the gate's set is none of these."""
        if self.dataset and self.dataset not in names:
            raise ValueError(f"gate {self.text}: there is no set {self.dataset}; there are {', '.join(names)}")

    def check(self, report: Mapping[str, Any], *, fitted: bool = True) -> list[tuple[str, str | None]]:
        """Return (set, what fails or None) for each set that the gate looks at; a metric that is missing fails.

        With `fitted`, figures at a threshold are those at the fitted one, which the guard decides by, where there is one.
        """
        sets = {**report["datasets"], **(report["over_refusal"] if self.dataset else {})}
        if fitted:
            sets = {name: entry.get("at_fitted_threshold", entry) for name, entry in sets.items()}
        names = [self.dataset] if self.dataset else list(report["datasets"])
        threshold = next((entry.get("threshold") for entry in sets.values()), None)
        at = f" at the threshold {threshold:.6g}" if threshold is not None and self.metric in _AT_THRESHOLD else ""
        sets["mean"] = evaluate.means([sets[name] for name in report["datasets"]])
        self.check_name(sets)
        if not names:
            raise ValueError(f"gate {self.text}: over-refusal sets only; name one, as in NAME:{self.text}")
        found = []
        for name in names:
            value = sets[name].get(self.metric)
            good = value is not None and _COMPARE[self.compare](value, self.bound)
            got = "missing" if value is None else f"{value:.4f}"
            found.append((name, None if good else f"{self.metric}{at} is {got}, wanted {self.compare} {self.bound:g}"))
        return found


def parse_gates(text: str) -> list[Gate]:
    """Parse conditions.

    Parameters
    ----------
    text : str
        "METRIC>=X", also <=, > and <, or "SET:METRIC>=X", with commas between them; X in [0, 1].

    Returns
    -------
    list of Gate

    Raises
    ------
    ValueError
        Naming the condition that cannot be read.
    """
    gates = []
    for part in (part.strip() for part in text.split(",")):
        found = _GATE.fullmatch(part)
        try:
            bound = float(found[4]) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or not 0 <= bound <= 1 or found[2] not in evaluate.METRICS:
            raise ValueError(f"gate {part!r}: must be METRIC>=X, <=X, >X or <X, or SET:METRIC..., with X in [0, 1] and METRIC one of "
                             f"{', '.join(evaluate.METRICS)}")
        gates.append(Gate(text=part, dataset=found[1], metric=found[2], compare=found[3], bound=bound))
    return gates


def junit(results: Sequence[tuple[Gate, str, str | None]]) -> bytes:
    """JUnit XML, as pipelines show it.

    Parameters
    ----------
    results : sequence of (Gate, str, str or None)
        A gate, a set, and what fails.

    Returns
    -------
    bytes
        Without the characters that XML forbids.
    """
    failures = sum(problem is not None for *_, problem in results)
    suite = ElementTree.Element("testsuite", name="harmaug evaluate", tests=str(len(results)), failures=str(failures),
                                errors="0", skipped="0")
    for gate, name, problem in results:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=gate.text)
        if problem is not None:
            ElementTree.SubElement(case, "failure", message=problem).text = problem
    text = _NO_XML.sub("", ElementTree.tostring(suite, encoding="unicode"))
    return b"<?xml version='1.0' encoding='utf-8'?>\n" + text.encode()
