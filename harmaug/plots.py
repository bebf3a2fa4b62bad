"""The plots of a report: each is a function that returns a matplotlib figure, and a chart that draws itself as SVG.

``pr_curve(labels, scores)`` needs the extra ``plot``; ``pr_curve.chart(labels, scores)`` needs nothing, shows itself in a
notebook, and is what the HTML report holds. Lines differ in dashes as well as in colour.
"""
from __future__ import annotations

import inspect
import math
import numbers
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import evaluate
from harmaug.checks import one_of

__all__ = ["Chart", "Plot", "Series", "calibration", "distribution", "diversity_map", "funnel", "pr_curve", "roc_curve", "threshold_curves"]

Floats = NDArray[np.float64]

COLOURS = ("#0b5fa5", "#b3470b", "#1a7f4b", "#7b3294")
DASHES = ("", "7 3", "2 3", "8 3 2 3")
# matplotlib's name of a marker, and its outline as an SVG path from its middle
MARKERS = {"o": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0", "s": "m-3-3h6v6h-6z", "^": "m0-4l4 7h-8z", "D": "m0-4l4 4l-4 4l-4-4z",
           "P": "m-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z", "v": "m0 4l4-7h-8z", "X": "m-3-3l6 6m0-6l-6 6", "*": "m0-4l1 3h3l-2 2l1 3l-3-2l-3 2l1-3l-2-2h3z",
           ".": "m-1-1h2v2h-2z"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 420, 300, 52, 12, 12, 44
_GRID = np.arange(101) / 100     # each the double nearest to it, as a recall of k / 100 and a score of two decimals are
_BAR = 26       # height of a bar of a bar chart, with its gap
_NAME, _VALUE = 200, 76     # width of the longest name that stands left of a bar whole, and of the count right of it


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart: its points, and the band around it."""

    name: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    dots: bool = False
    marker: str = ""        # of MARKERS: points and no line


@dataclass(frozen=True, kw_only=True, repr=False)
class Chart:
    """Lines over two axes, or bars with names; both axes begin at 0.

    Attributes
    ----------
    title, x_label, y_label : str
    series : sequence of Series
    bars : sequence of (str, float)
        Instead of series.
    diagonal : bool
        Draw what chance, or perfect calibration, gives.
    marks : mapping
        Name to a place on the x axis.
    top : float
        Where the y axis ends.
    says : str
        What the chart shows, for those who do not see it.

    Raises
    ------
    ValueError
        A bar that is not a finite number of 0 or more, a mark that is not finite, or a top that is not above 0.
    """

    title: str
    x_label: str = ""
    y_label: str = ""
    series: Sequence[Series] = ()
    bars: Sequence[tuple[str, float]] = ()
    diagonal: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    top: float = 1.0
    says: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.top < math.inf:
            raise ValueError(f"{self.title}: top must be a finite number above 0, got {self.top!r}")
        for least, pairs in ((0, self.bars), (-math.inf, self.marks.items())):
            for name, value in pairs:
                if not isinstance(value, numbers.Real) or not math.isfinite(value) or value < least:
                    raise ValueError(f"{self.title}: {name} must be a finite number{'' if least else ' >= 0'}, got {value!r}")

    def shapes(self) -> dict[str, Any]:
        """Return what the SVG template draws, in its pixels."""
        if self.bars:
            most, height = max((value for _, value in self.bars), default=0) or 1, len(self.bars) * _BAR + 8
            left = max(_pixels(_short(name)) for name, _ in self.bars) + 8
            wide = _WIDTH - left - _VALUE
            bars = [{"name": _short(name), "value": _count(value), "y": 4 + i * _BAR, "width": round(wide * (value / most), 1)}
                    for i, (name, value) in enumerate(self.bars)]
            return {"title": self.title, "says": self._told(), "width": _WIDTH, "height": height, "left": left, "bars": bars}
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

        def points(x: Floats, y: Floats) -> str:
            xs = _LEFT + np.clip(x, 0, 1) * wide
            ys = _TOP + high - np.clip(y / self.top, 0, 1) * high
            return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys))

        lines = []
        for i, one in enumerate(self.series):
            bands = []
            if one.low is not None and one.high is not None:
                bands = [f"{points(one.x[part], one.high[part])} {points(one.x[part][::-1], one.low[part][::-1])}" for part in _known(one.x, one.low, one.high)]
            paths = [points(one.x[part], one.y[part]) for part in _known(one.x, one.y)]
            places = " ".join(paths).split()
            marks_at = "".join(f"M{p.replace(',', ' ')}{MARKERS[one.marker]}" for p in places) if one.marker else None
            lines.append({"name": one.name, "paths": paths, "bands": bands, "colour": COLOURS[i % len(COLOURS)],
                          "dash": DASHES[i % len(DASHES)], "dots": [p.split(",") for p in places] if one.dots else (),
                          "legend": 14 * i, "markers": marks_at, "marker": MARKERS.get(one.marker)})
        ticks = [{"x": round(_LEFT + t * wide, 1), "y": round(_TOP + high - t * high, 1), "text": f"{t:g}",
                  "value": f"{t * self.top:.2g}"} for t in (0, 0.25, 0.5, 0.75, 1)]
        marks = [{"x": round(_LEFT + place * wide, 1), "text": name, "right": place > 0.6, "y": _TOP + 12 + 13 * i}
                 for i, (name, place) in enumerate(self.marks.items())]
        return {"title": self.title, "says": self._told(), "width": _WIDTH, "height": _HEIGHT + 14 * len(lines), "lines": lines, "ticks": ticks,
                "marks": marks, "x_label": self.x_label, "y_label": self.y_label, "left": _LEFT, "top": _TOP,
                "right": _LEFT + wide, "bottom": _TOP + high, "legend": _HEIGHT + 4,
                "diagonal": points(np.array([0.0, 1.0]), np.array([0.0, self.top])) if self.diagonal else None}

    def _told(self) -> str:
        named = [f"{name} {_count(value)}" for name, value in (*self.bars, *self.marks.items())]
        return ", ".join(filter(None, [self.title, self.says, *named]))

    def figure(self) -> Any:
        """Return a matplotlib Figure."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("a figure needs matplotlib: pip install 'harmaug[plot]'") from None
        figure = Figure(figsize=(5.2, 4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(_literal(self.title))
        if self.bars:
            shown = axes.barh(range(len(self.bars)), [value for _, value in self.bars], color="#9db8cf", edgecolor="black")
            axes.set_yticks(range(len(self.bars)), [_literal(_short(name)) for name, _ in self.bars])
            axes.bar_label(shown, labels=[_count(value) for _, value in self.bars], padding=3)
            axes.invert_yaxis()
            return figure
        for i, one in enumerate(self.series):
            dash = DASHES[i % len(DASHES)]
            style: Any = (0, tuple(map(float, dash.split()))) if dash else "solid"
            colour = COLOURS[i % len(COLOURS)]
            if one.marker:
                axes.scatter(one.x, one.y, label=_literal(one.name), color=colour, marker=one.marker, s=18, alpha=0.7)
                continue
            axes.plot(one.x, one.y, label=_literal(one.name), color=colour, linestyle=style, marker="o" if one.dots else None)
            if one.low is not None and one.high is not None:
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
        if self.diagonal:
            axes.plot([0, 1], [0, self.top], color="grey", linewidth=0.8)
        for name, place in self.marks.items():
            axes.axvline(place, color="black", linewidth=0.8)
            axes.annotate(_literal(name), (place, self.top), rotation=90, va="top", ha="right", fontsize="small")
        axes.set(xlabel=_literal(self.x_label), ylabel=_literal(self.y_label), xlim=(0, 1), ylim=(0, self.top))
        if any(one.marker for one in self.series):     # no corner is free of points
            figure.legend(fontsize="small", loc="outside lower center", ncols=3)
        else:
            axes.legend(fontsize="small")
        return figure

    def __repr__(self) -> str:
        return f"<chart {self.title}>"

    def _repr_html_(self) -> str:
        from harmaug.report import chart_svg

        return f'<div style="max-width: 30em; background: #fff; color: #222">{chart_svg(self)}</div>'      # an SVG takes all the width that it gets


class Plot:
    """A plot: called, it returns a matplotlib Figure; `chart`, of the same parameters, returns the Chart that draws itself without matplotlib.

    Called, it raises ImportError without matplotlib.
    """

    def __init__(self, build: Callable[..., Chart]) -> None:
        self.chart, self.__doc__, self.__name__ = build, build.__doc__, build.__name__
        self.__signature__ = inspect.signature(build).replace(return_annotation="matplotlib.figure.Figure")

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.chart(*args, **options).figure()


@Plot
def pr_curve(labels: ArrayLike, scores: ArrayLike, *, draws: int = 200, seed: int = 0) -> Chart:
    """Precision over recall, at each recall the best of those with as much or more, with a pointwise 95 % bootstrap band.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        0 safe, 1 unsafe.
    scores : array-like of float, shape (n,)
        Higher is more unsafe; any finite numbers.
    draws : int, default 200
        Bootstrap draws of rows; 0: no band.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        Of no rows, rows of one class only, not of one length, a label other than 0 and 1, or a score that is not finite.
    """
    def curve(tps: Floats, fps: Floats) -> Floats:
        best = np.maximum.accumulate((tps / np.maximum(tps + fps, 1e-300))[::-1])[::-1]
        return np.asarray(best[np.searchsorted(tps / tps[-1], _GRID)])

    y, series, says = _curves(labels, scores, curve, draws, seed)
    return Chart(title="Precision and recall", says=f"AUPRC {says['auprc']:.3f}", x_label="recall", y_label="precision (at this recall or more)",
                 series=[series, Series(name="base rate", x=_GRID, y=np.full(len(_GRID), y.mean()))])


@Plot
def roc_curve(labels: ArrayLike, scores: ArrayLike, *, draws: int = 200, seed: int = 0) -> Chart:
    """Recall over the false-positive rate with a pointwise 95 % bootstrap band.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        0 safe, 1 unsafe.
    scores : array-like of float, shape (n,)
        Higher is more unsafe; any finite numbers.
    draws : int, default 200
        Bootstrap draws of rows; 0: no band.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        Of no rows, rows of one class only, not of one length, a label other than 0 and 1, or a score that is not finite.
    """
    def curve(tps: Floats, fps: Floats) -> Floats:
        tps, fps = np.append(0.0, tps), np.append(0.0, fps)
        return np.asarray(tps[np.searchsorted(fps / fps[-1], _GRID, side="right") - 1] / tps[-1])

    _, series, says = _curves(labels, scores, curve, draws, seed)
    return Chart(title="ROC", says=f"AUROC {says['auroc']:.3f}", x_label="false-positive rate", y_label="recall", series=[series], diagonal=True)


@Plot
def distribution(labels: ArrayLike, scores: ArrayLike) -> Chart:
    """How the scores of safe and of unsafe rows are spread: shares of each class in 20 bins.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        0 safe, 1 unsafe.
    scores : array-like of float, shape (n,)
        P(unsafe), in [0, 1].

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        No rows, not of one length, a label other than 0 and 1, or a score outside [0, 1]; the message names the row.
    """
    y, s = _shares(labels, scores)
    edges = np.linspace(0, 1, 21)
    series = []
    for label, name in ((0, "safe"), (1, "unsafe")):
        n = int((y == label).sum())
        if n:
            shares = np.histogram(s[y == label], edges)[0] / n
            series.append(Series(name=f"{name} ({n} rows)", x=np.repeat(edges, 2)[1:-1], y=np.repeat(shares, 2)))
    return Chart(title="Scores by label", says=", ".join(one.name for one in series), x_label="P(unsafe)", y_label="share of the class", series=series,
                 top=next(top for top in (0.1, 0.2, 0.4, 0.6, 0.8, 1) if top >= max(float(one.y.max()) for one in series)))


@Plot
def calibration(labels: ArrayLike, scores: ArrayLike) -> Chart:
    """Share of unsafe rows over the mean score, in the bins of the ECE, with 95 % Wilson intervals.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        0 safe, 1 unsafe.
    scores : array-like of float, shape (n,)
        P(unsafe), in [0, 1].

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        No rows, not of one length, a label other than 0 and 1, or a score outside [0, 1]; the message names the row.
    """
    y, s = _shares(labels, scores)
    bins = evaluate._bin(s)
    n = np.bincount(bins, minlength=evaluate.ECE_BINS)
    kept = n > 0
    n = n[kept]
    share, mean = (np.bincount(bins, weights=values, minlength=evaluate.ECE_BINS)[kept] / n for values in (y, s))
    z = 1.959964
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return Chart(title="Calibration", says=f"ECE {np.sum(n * np.abs(share - mean)) / np.sum(n):.3f}", x_label="mean P(unsafe) of the bin", y_label="share of unsafe rows",
                 series=[Series(name="bins that hold rows", x=mean, y=share, low=low, high=high, dots=True)], diagonal=True)


@Plot
def threshold_curves(labels: ArrayLike, scores: ArrayLike, *, marks: Mapping[str, float] | None = None, protocol: str = "default") -> Chart:
    """Precision, recall, F1 and false-positive rate over the threshold, which scores are compared with in their own dtype.

    Recall and F1 are left out where no row is unsafe and the protocol does not say what 0/0 is, the false-positive rate
    where none is safe.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        0 safe, 1 unsafe.
    scores : array-like of float, shape (n,)
        P(unsafe), in [0, 1].
    marks : mapping of str to float, optional
        Thresholds in use, by name; finite.
    protocol : {"default", "harmaug-2024"}
        Whether a score at the threshold is flagged, and what 0/0 is; see `evaluate.Protocol`.

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        No rows, not of one length, a label other than 0 and 1, a score outside [0, 1] (the message names the row), a mark that is not finite, or an unknown protocol.
    """
    rules = evaluate.PROTOCOLS[one_of("protocol", protocol, evaluate.PROTOCOLS)]
    y, wide = _shares(labels, scores)
    own = np.asarray(scores)
    s = own if own.dtype.kind == "f" else wide
    tp, fp = np.array([[np.sum(rules.flagged(s[y == label], cut)) for cut in _GRID] for label in (1, 0)], dtype=np.float64)
    unsafe, safe = (int(np.sum(y == label)) for label in (1, 0))
    none = math.nan if rules.zero_division is None else rules.zero_division

    def ratio(part: Floats, whole: Floats, of_zero: float = none) -> Floats:
        return np.asarray(np.divide(part, whole, out=np.full(len(part), of_zero), where=whole > 0))

    lines = {"recall": ratio(tp, np.full(len(tp), unsafe)), "precision": ratio(tp, tp + fp), "F1": ratio(2 * tp, tp + fp + (unsafe or 0 * none)),      # 0, or NaN: left out
             "FPR": ratio(fp, np.full(len(fp), safe), math.nan)}
    known = {name: ~np.isnan(values) for name, values in lines.items()}
    series = [Series(name=name, x=_GRID[here], y=lines[name][here]) for name, here in known.items() if here.any()]
    return Chart(title="Thresholds", x_label="threshold", y_label="", series=series, marks=marks or {})


@Plot
def funnel(counts: Mapping[str, float], title: str = "Yield") -> Chart:
    """Named counts as bars, in their order.

    Parameters
    ----------
    counts : mapping of str to number
    title : str, default "Yield"

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        There are none, or one is not a finite number of 0 or more.
    """
    if not counts:
        raise ValueError("funnel: no counts")
    return Chart(title=title, bars=list(counts.items()))


@Plot
def diversity_map(x: ArrayLike, y: ArrayLike, cluster: ArrayLike, share: Sequence[float] = (), *, most: int = 2000) -> Chart:
    """Texts on a plane (see diversity.clusters), the largest clusters by a marker of their own.

    Both axes run from the smallest value to the largest.

    Parameters
    ----------
    x, y : array-like of float, shape (n,)
    cluster : array-like of int, shape (n,)
        The cluster of each text; -1: in none.
    share : sequence of float, optional
        What part of the variance each axis holds, for its label.
    most : int, default 2000
        Texts that are drawn at most, evenly spread.

    Returns
    -------
    matplotlib.figure.Figure
        Of `chart`, a Chart.

    Raises
    ------
    ValueError
        No texts, not of one length, a place that is not finite, a cluster that is not a whole number, or `most` below 1.
    """
    groups = np.asarray(cluster)
    places = [np.asarray(values, dtype=np.float64) for values in (x, y)]
    if groups.ndim != 1 or not len(groups) or any(values.shape != groups.shape for values in places):
        shapes_of = ", ".join(str(values.shape) for values in (*places, groups))
        raise ValueError(f"diversity_map: x, y and cluster must be of one length, at least 1; their shapes are {shapes_of}")
    if not all(np.isfinite(values).all() for values in places):
        raise ValueError("diversity_map: a place is not finite")
    if groups.dtype.kind not in "iuf" or not (groups == np.trunc(groups)).all() or not np.isfinite(groups).all():
        raise ValueError("diversity_map: a cluster is not a whole number")
    if most < 1:
        raise ValueError(f"diversity_map: most must be >= 1, got {most}")
    places = [(values - values.min()) / max(float(np.ptp(values)), 1e-12) for values in (half / 2 for half in places)]      # no overflow
    shown = np.zeros(len(groups), dtype=np.bool_)
    shown[np.arange(0, len(groups), max(1, -(-len(groups) // most)))] = True
    found, sizes = np.unique(groups[groups >= 0], return_counts=True)
    largest, shapes = np.argsort(-sizes, kind="stable")[:len(MARKERS) - 2], list(MARKERS)
    named = found[largest]
    parts = [(f"cluster {i + 1} ({size} texts)", groups == n) for i, (n, size) in enumerate(zip(named, sizes[largest]))]
    parts += [("smaller clusters", (groups >= 0) & ~np.isin(groups, named)), ("in none", groups < 0)]
    markers = [*shapes[:len(parts) - 2], *shapes[-2:]]
    series = [Series(name=name, x=places[0][here & shown], y=places[1][here & shown], marker=marker)
              for (name, here), marker in zip(parts, markers) if here.any()]
    labels = [f"principal component {i + 1}" + (f" ({100 * value:.0f} % of the variance)" if value is not None else "")
              for i, value in enumerate([*share, None, None][:2])]
    return Chart(title="Diversity map", says=", ".join(one.name for one in series), x_label=labels[0], y_label=labels[1], series=series)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"


def _pixels(text: str) -> int:
    """A bound of the width of a text in the SVG's font, whichever that is."""
    return sum(12 if char in "MWmw@%…" or unicodedata.east_asian_width(char) in "WF" else 8 if char.isupper() else 7 for char in text)


def _short(text: str) -> str:
    if _pixels(text) <= _NAME:
        return text
    return next(text[:n] + "…" for n in range(len(text), -1, -1) if _pixels(text[:n] + "…") <= _NAME)


def _known(*values: Floats) -> list[slice]:
    """The longest stretches without a NaN."""
    whole = ~np.isnan(values).any(axis=0)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], whole, [0]])))
    return [slice(*pair) for pair in ends.reshape(-1, 2).tolist()]


def _literal(text: str) -> str:
    """A text as matplotlib shows it without taking it for a formula."""
    return text.replace("$", r"\$")


def _shares(labels: ArrayLike, scores: ArrayLike) -> tuple[evaluate.Labels, Floats]:
    """Labels, and scores that are probabilities."""
    y, s = evaluate._checked(labels, scores)
    outside = np.flatnonzero((s < 0) | (s > 1))
    if len(outside):
        raise ValueError(f"row {outside[0]}: score {s[outside[0]]:g} is not in [0, 1]")
    return y, s


def _curves(labels: ArrayLike, scores: ArrayLike, curve: Callable[[Floats, Floats], Floats], draws: int,
            seed: int) -> tuple[evaluate.Labels, Series, dict[str, float]]:
    y, s = evaluate._checked(labels, scores)
    if y.min() == y.max():
        raise ValueError(f"a curve needs both classes: all {len(y)} rows are {'unsafe' if y[0] else 'safe'}")
    order = np.argsort(-s, kind="stable")
    ends = evaluate._ends_of_ties(s[order])
    found = []
    for counts in evaluate.resamples(len(y), draws, seed):
        for weights in counts[:, order]:
            tps, fps = np.cumsum(weights * y[order])[ends], np.cumsum(weights * (1 - y[order]))[ends]
            if tps[-1] and fps[-1]:
                found.append(curve(tps, fps))
    low, high = np.quantile(found, [0.025, 0.975], axis=0) if found else (None, None)
    tps, fps, _ = evaluate._curve(y, s)
    says = {"auprc": evaluate._average_precision(tps, fps), "auroc": evaluate._auroc(tps, fps)}
    return y, Series(name="guard, 95 % band" if found else "guard", x=_GRID, y=curve(tps, fps), low=low, high=high), says
