"""Thresholds, calibration and gates: how scores become decisions.

What is fitted here is kept in a guard's thresholds.json (`Guard.set_threshold`, `Guard.save_pretrained`) and used by
`Guard.predict`. Fit on validation rows, never on the rows that are reported.
"""
from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import evaluate

__all__ = ["FittedThreshold", "Gate", "calibrate", "fit_temperature", "fit_threshold", "junit", "log_odds",
           "parse_gates"]

Floats = NDArray[np.float64]

_TARGET = re.compile(r"f1|(fpr|recall)=([0-9.eE+-]+)")
_GATE = re.compile(r"(?:([^:<>=]+):)?([a-z0-9_]+)(>=|<=|>|<)([0-9.eE+-]+)")
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
                  seed: int = 0) -> FittedThreshold:
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

    Raises
    ------
    ValueError
        For an unknown target, rows without the class that it needs, or a false-positive rate that no threshold in
        reach gives: safe rows with the highest score of all, and that score is 1.

    Examples
    --------
    >>> fit_threshold([0, 0, 1, 1], [0.25, 0.5, 0.5, 1.0], "fpr=0", draws=0).threshold
    0.75
    """
    kind, limit = _target(target)
    y, s = evaluate._checked(labels, scores)
    needed = 0 if kind == "fpr" else 1
    if not (y == needed).any():
        raise ValueError(f"{target}: no {('safe', 'unsafe')[needed]} row among the labels")
    tps, fps, values = evaluate._curve(y, s)
    cuts = np.array([_between(np.inf, values[0]), *map(_between, values, [*values[1:], -np.inf])])
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
    """Return log(p / (1 - p)) of probabilities, those of 0 and 1 as half of a float32's step away from them."""
    p = np.clip(np.asarray(scores, dtype=np.float64), 2.0 ** -25, 1 - 2.0 ** -25)
    return np.log(p) - np.log1p(-p)


def fit_temperature(labels: ArrayLike, log_odds: ArrayLike) -> float:
    """Fit the temperature that makes P(unsafe) = sigmoid(log_odds / T) likeliest (Guo et al. 2017, arXiv 1706.04599).

    Parameters
    ----------
    labels : array_like, shape (n,)
    log_odds : array_like, shape (n,)
        `Guard.log_odds`, or `log_odds` of scores.

    Raises
    ------
    ValueError
        When the likelihood has no maximum for T in [0.001, 1000]: the scores separate the rows perfectly, or run
        against the labels.
    """
    y, z = evaluate._checked(labels, log_odds)
    signed = np.where(y == 1, z, -z)

    def slope(log_t: float) -> float:   # of the negative log-likelihood in 1 / T, which is convex
        return float(-np.sum(signed / (1 + np.exp(np.clip(signed * math.exp(-log_t), -700, 700)))))

    low, high = map(math.log, _TEMPERATURES)
    if slope(low) < 0 or slope(high) >= 0:
        why = "separate the rows perfectly" if slope(low) < 0 else "run against the labels"
        raise ValueError(f"the scores {why}: no temperature in [{_TEMPERATURES[0]:g}, {_TEMPERATURES[1]:g}] fits best")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) < 0 else (middle, high)
    return math.exp((low + high) / 2)


def calibrate(scores: ArrayLike, temperature: float) -> Floats:
    """Return probabilities as the temperature has them: sigmoid(log_odds(scores) / temperature)."""
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


def _between(upper: float, lower: float) -> float:
    """A threshold that flags `upper` and not `lower`, as a float32 too, because that is what guards compare."""
    if lower == -np.inf:
        return float(upper)
    if upper == np.inf:     # nothing is flagged
        upper = 1.0 if lower < 1 else np.inf
    middle = float(np.float32((upper + lower) / 2))
    return middle if lower < middle <= upper else float(upper)


# -- gates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition on a report: "auprc>=0.8" of every set, or "xstest:fpr<=0.1" of one."""

    text: str
    dataset: str | None
    metric: str
    compare: str
    bound: float

    def check(self, report: Mapping[str, Any]) -> list[tuple[str, str | None]]:
        """Return (set, what fails or None) for each set that the gate looks at; a metric that is missing fails."""
        sets = {**report["datasets"], **(report["over_refusal"] if self.dataset else {}), "mean": report["mean"]}
        if self.dataset and self.dataset not in sets:
            raise ValueError(f"gate {self.text}: there is no set {self.dataset}; there are {', '.join(sets)}")
        names = [self.dataset] if self.dataset else list(report["datasets"])
        if not names:
            raise ValueError(f"gate {self.text}: over-refusal sets only; name one, as in NAME:{self.text}")
        found = []
        for name in names:
            value = sets[name].get(self.metric)
            good = value is not None and _COMPARE[self.compare](value, self.bound)
            got = "missing" if value is None else f"{value:.4f}"
            found.append((name, None if good else f"{self.metric} is {got}, wanted {self.compare} {self.bound:g}"))
        return found


def parse_gates(text: str) -> list[Gate]:
    """Parse conditions with commas between them; a ValueError names the one that cannot be read."""
    gates = []
    for part in (part.strip() for part in text.split(",")):
        found = _GATE.fullmatch(part.replace(" ", ""))
        try:
            bound = float(found[4]) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or math.isnan(bound) or found[2] not in evaluate.METRICS:
            raise ValueError(f"gate {part!r}: must be METRIC>=X, <=X, >X or <X, or SET:METRIC..., with METRIC one of "
                             f"{', '.join(evaluate.METRICS)}")
        gates.append(Gate(text=part, dataset=found[1], metric=found[2], compare=found[3], bound=bound))
    return gates


def junit(results: Sequence[tuple[Gate, str, str | None]]) -> bytes:
    """Return JUnit XML of (gate, set, what fails or None), as pipelines show it."""
    failures = sum(problem is not None for *_, problem in results)
    suite = ElementTree.Element("testsuite", name="harmaug evaluate", tests=str(len(results)), failures=str(failures),
                                errors="0", skipped="0")
    for gate, name, problem in results:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=gate.text)
        if problem is not None:
            ElementTree.SubElement(case, "failure", message=problem).text = problem
    xml: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return xml
