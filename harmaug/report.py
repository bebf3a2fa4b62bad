"""One self-contained HTML page about a run: measures, yield, settings. Row text is hidden until it is clicked on."""
from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from harmaug.data import DataError, Row, atomic_file, columns_of_stream, read_object

if TYPE_CHECKING:
    from harmaug.plots import Chart

_NOTICE = ("Many of these rows are harmful. They are for training and testing safety guards; a guard trained on them is "
           "English only, may refuse too much, and is not to be the only safeguard.")
_INVENTED = "Rows that name a generator were invented by it. "
_BANDS_TO = 50_000      # rows of a set whose curves get bootstrap bands
_OPEN, _WIDE = 50, 80   # lines of a table of slices, and characters of a value, above which it stands behind a click
_DIVERSITY = {
    "distinct_1": "distinct words", "distinct_2": "distinct pairs of words", "self_bleu": "self-BLEU (lower is more diverse)",
    "nearest_seed": "mean similarity to the nearest seed row (5-gram Jaccard)",
    "nearest_held_out": "mean similarity to the nearest evaluation row", "clusters": "clusters (DBSCAN, cosine 0.5, 5 texts)",
    "noise": "share of texts in no cluster", "clusters_of": "texts that were clustered", "clusters_by": "their encoder",
    "clusters_note": "no clusters"}
_NOT_DROPPED = ("done", "tokens", "kept", "refusal", "compliance", "seeds_blocked")      # counts of an account; what is kept has kinds, and seeds were not asked for
_TURNS = {code: f"[U+{code:X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}     # Unicode's explicit bidirectional formatting
_LATEX = {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
          '"': "''"}       # of OT1 as of T1
_BOOKTABS = r"% needs \usepackage{booktabs}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: sentences, charts, tables, texts behind a click, and row texts behind a click and a warning.

    Tables of `folded` stand behind a click.
    """

    heading: str
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Sequence[Sequence[Any]]] = ()
    folded: Sequence[Sequence[Sequence[Any]]] = ()
    files: Sequence[tuple[str, str]] = ()
    rows: Sequence[Mapping[str, Any]] = ()


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section], *, notes: Sequence[str] = (),
                 rows: Sequence[Mapping[str, Any]] = (), info: Mapping[str, Any] | None = None) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    path : path
    title : str
    sections : sequence of Section
        In the order of the page.
    notes : sequence of str
        Sentences under the title.
    rows : sequence of dict
        Rows whose texts are shown on a click; those with a "generator" are said to be invented.
    info : dict, optional
        Shown as JSON at the end; numpy's numbers and arrays too.

    Raises
    ------
    OSError
        Naming the file.
    """
    shown = None if info is None else msgspec.json.format(msgspec.json.encode(info, enc_hook=_builtin), indent=1).decode()
    parts = [{"heading": part.heading, "notes": part.notes, "charts": [chart.shapes() for chart in part.charts],
              "tables": part.tables, "folded": part.folded, "files": part.files, "rows": _hidden(part.rows)} for part in sections]
    page = _templates().page(title, notes, parts, _hidden(rows), shown)
    with atomic_file(path) as file:
        file.write(page.encode("utf-8", "replace"))


def chart_svg(chart: Chart) -> str:
    """Return a chart as SVG."""
    return str(_templates().svg(chart.shapes()))


@lru_cache(maxsize=1)
def _templates() -> Any:
    """The macros of the page, with everything that they show escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     finalize=lambda value: value.translate(_TURNS) if type(value) is str else value)
    environment.filters["plain"] = _plain
    source = (resources.files("harmaug") / "data" / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).module


def report_run(folder: str | os.PathLike[str]) -> Path:
    """Write report.html of a run folder from what it holds, and return its path.

    A torn last line, of a run that was killed or is still at work, is left out. A RunError if it is not a run folder; a
    RunError or DataError names the file in it that is damaged.
    """
    from harmaug.runs import RunError, read_info

    run = Path(folder)
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: not a run folder: no run.json")
    info = read_info(run)
    metrics = read_object(run / "metrics.json") if (run / "metrics.json").exists() else {}
    try:
        notes = list(metrics.get("notes", ()))
        sections = [*_measures(metrics), *_further(run), *_sets(run, metrics), *_yield(info["stages"]), *_diversity(run, info["stages"]), *_label_noise(run)]
    except DataError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RunError(f"{run}: run.json, metrics.json, diversity.json, frontier.json or continual.json is damaged: not what a run writes") from None
    write_report(run / "report.html", f"harmaug run {run.resolve().name}", sections, notes=notes,
                 rows=_sample(run), info=info)
    return run / "report.html"


def measures_table(report: Mapping[str, Any]) -> Table:
    """The report of `evaluate.evaluate_guard` as a table, one line a set; over-refusal sets apart, after the mean."""
    columns = [("rows", "n"), ("unsafe", "base_rate"), ("F1", "f1"), ("AUPRC", "auprc"),
               ("95 % interval", "auprc_interval"), ("precision", "precision"), ("recall", "recall"), ("FPR", "fpr"),
               ("ECE", "ece")]
    lines: list[list[Any]] = [["set", *(title for title, _ in columns)]]
    told = partial(shortest, protocol=report["protocol"]["name"])
    notes = [f"F1, precision, recall and FPR at P(unsafe) {'>=' if report['protocol']['tie_unsafe'] else '>'} "
             f"{told(report['threshold'])}; protocol {report['protocol']['name']}: {report['protocol']['says']}"]
    if "fitted" in report:
        found = report["fitted"]
        low, high = (told(float(np.float32(bound))) for bound in found["interval"]) if found["interval"] else "--"
        notes.append(f"fitted for {found['target']} on {found['n']} rows: threshold {told(found['threshold'])} "
                     f"({low} .. {high}), temperature {found['temperature']:.3f}"
                     + (f"; {found['note']}" if "note" in found else ""))
    parts = [*report["datasets"].items()]
    if len(parts) > 1:
        parts.append(("mean", report["mean"]))
    parts += [(f"over-refusal: {name}", entry) for name, entry in report["over_refusal"].items()]
    for name, entry in parts:
        lines.append([name, *(entry.get(key) for _, key in columns)])
        fitted = entry.get("at_fitted_threshold")
        if fitted:
            lines.append([f"{name}, at {told(fitted['threshold'])} (fitted)", *(fitted.get(key) for _, key in columns)])
        notes += [f"{name}: {entry['note']}"] if "note" in entry else []
        cohort = entry.get("cohort", {})
        if cohort.get("n_unlabelled"):
            notes.append(f"{name}: {cohort['n_unlabelled']} rows whose label is null left out")
        elif cohort.get("n_null"):
            notes.append(f"{name}: {cohort['n_null']} rows whose label is null count as safe")
        found = cohort.get("contamination") or {}
        if found.get("exact") or found.get("near"):
            notes.append(f"{name}: {found['exact']} rows are among the training rows and {found['near']} near one, so "
                         "its figures flatter")
        for other, found in entry.get("baselines", {}).items():
            lines.append([f"{name}, {other}", *(found.get(key) for _, key in columns)])
            for metric, gain in found["comparison"].items():
                if gain.get("difference") is not None:
                    verdict = "" if gain["low"] is None else (f" ({gain['low']:+.3f} .. {gain['high']:+.3f}, p {gain['p']:.3g}): "
                                                              f"{'within' if gain['within_noise'] else 'beyond'} noise")
                    notes.append(f"{name}: {metric} minus that of {other} {gain['difference']:+.3f}{verdict}")
    return Table(lines, notes)


def slices_tables(name: str, entry: Mapping[str, Any]) -> list[Table]:
    """The slices of a set as tables, one a column that parts it."""
    shown = [("rows", "n"), ("unsafe", "base_rate"), ("F1", "f1"), ("AUPRC", "auprc"), ("recall", "recall"), ("FPR", "fpr")]
    tables = []
    for column, parts in entry.get("slices", {}).items():
        if len(parts) > 1:
            also = [("its 95 % interval", "fpr_interval")] if column == "windows" else []
            tables.append(Table([[f"{name} by {column}".strip(), *(title for title, _ in shown + also)],
                                 *([value, *(found.get(key) for _, key in shown + also)] for value, found in parts.items())]))
    return tables


def _measures(metrics: Mapping[str, Any]) -> Iterator[Section]:
    tables = [(f"Measures: {name}", Table(lines)) for name, lines in metrics.get("tables", {}).items()]
    tables += [("Measures", measures_table(metrics))] if "datasets" in metrics else []
    for heading, table in tables:
        yield Section(heading=heading, notes=table.notes, tables=[table.lines], files=_files(table))


def _further(run: Path) -> Iterator[Section]:
    """The tables of students that were compared, and of a guard that went on learning."""
    tables = []
    if (run / "frontier.json").exists():
        from harmaug.frontier import frontier_table

        tables.append(("Students: costs and measures", frontier_table(read_object(run / "frontier.json"))))
    if (run / "continual.json").exists():
        from harmaug.continual import continual_table

        tables.append(("Continual training: before and after", continual_table(read_object(run / "continual.json"))))
    for heading, table in tables:
        yield Section(heading=heading, notes=table.notes, tables=[table.lines], files=_files(table))


def _files(table: Table) -> list[tuple[str, str]]:
    return [("This table as CSV", table.to_csv()), ("This table as LaTeX", table.to_latex())]


def shortest(threshold: float, scores: Any = None, protocol: str = "default") -> str:
    """Return a threshold in the fewest digits, from three on, that flag the same scores as float32 and as float64; None: any of its own dtype."""
    from harmaug.evaluate import PROTOCOLS

    over = np.greater_equal if PROTOCOLS[protocol].tie_unsafe else np.greater
    texts = (f"{threshold:.{n}g}" for n in range(3, 18))
    with np.errstate(over="ignore"):        # scores of any range
        if scores is None:
            own = np.float32(threshold) if float(np.float32(threshold)) == threshold else np.float64(threshold)
            scores = np.array([np.nextafter(own, -np.inf), own, np.nextafter(own, np.inf)])
        both: list[Any] = [np.asarray(scores, dtype) for dtype in (np.float32, np.float64)]
        return next(text for text in texts if all(np.array_equal(over(s, s.dtype.type(text)), over(s, s.dtype.type(threshold))) for s in both))


def _sets(run: Path, metrics: Mapping[str, Any]) -> Iterator[Section]:
    """Charts, thresholds and slices of each set in scores.jsonl, which are flagged as the run flags them."""
    from harmaug import evaluate, plots
    from harmaug.thresholds import fit_threshold

    path, protocol = run / "scores.jsonl", metrics.get("protocol", {}).get("name", "default")
    for part in evaluate.read_scores(path, protocol=protocol) if path.exists() and path.stat().st_size else ():
        y, s = part.labels, _own(part.scores)
        entry = {**metrics.get("datasets", {}), **metrics.get("over_refusal", {}), **metrics.get("systems", {})}.get(part.name, {})
        within, both = s.min() >= 0 and s.max() <= 1, y.min() != y.max()
        draws = 200 if len(y) <= _BANDS_TO else 0
        marks = {name: found["threshold"] for name, found in (("in use", entry), ("fitted", entry.get("at_fitted_threshold")))
                 if found}
        charts = [plots.distribution.chart(y, s), plots.threshold_curves.chart(y, s, marks=marks, protocol=protocol),
                  plots.calibration.chart(y, s)] if within else []
        charts += [plots.pr_curve.chart(y, s, draws=draws), plots.roc_curve.chart(y, s, draws=draws)] if both else []
        lines: list[list[Any]] = [["target", "threshold", "95 % interval", "recall", "precision", "FPR", "F1"]]
        notes = ["What thresholds would do on these rows. Fit yours on validation rows: harmaug evaluate --fit-threshold."
                 if both else f"all {len(y)} rows are {'unsafe' if y[0] else 'safe'}"]
        for target in ("f1", "fpr=0.01", "fpr=0.05", "recall=0.9", "recall=0.95") if both else ():
            try:
                fitted = fit_threshold(y, s, target, draws=draws, protocol=protocol)
            except ValueError as error:
                notes.append(str(error))
                continue
            at = evaluate.metrics(y, s, fitted.threshold, protocol=protocol)
            interval = " .. ".join(shortest(bound, s, protocol) for bound in fitted.interval) if fitted.interval else None
            lines.append([target, shortest(fitted.threshold, s, protocol), interval, *(at[name] for name in ("recall", "precision", "fpr", "f1"))])
        tables: list[list[list[Any]]] = [lines] if len(lines) > 1 else []
        files = _files(Table(lines)) if tables else []
        folded: list[list[list[Any]]] = []
        for table in slices_tables("", entry):
            long = len(table.lines) > _OPEN or max(len(line[0]) for line in table.lines) > _WIDE
            (folded if long else tables).append(table.lines)
        yield Section(heading=f"{part.name}: scores, thresholds, slices", notes=notes, charts=charts, tables=tables, folded=folded, files=files)


def _own(scores: Any) -> Any:
    """Scores in the dtype that they had before they were written: float32, as a guard's, where each is such a number."""
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    return narrow if np.array_equal(narrow, scores) else scores


def _yield(stages: Mapping[str, Any]) -> Iterator[Section]:
    """What the stages were asked for, dropped and kept, and what it cost."""
    from harmaug.plots import funnel

    charts: list[Chart] = []
    for name, stage in stages.items():
        account = stage.get("account") or {}
        counts = {what: n for what, n in account.items() if type(n) is int and n and what not in _NOT_DROPPED}
        if "asked" in account and "kept" in account:
            charts.append(funnel.chart({**counts, "kept": account["kept"]}, f"{name}: asked, dropped, kept"))
    if not stages:
        yield Section(heading="Yield and cost", notes=["No stage has run yet."])
        return
    yield Section(heading="Yield and cost", charts=charts, tables=[costs(stages), *(lines for _, lines in accounts(stages))])


def costs(stages: Mapping[str, Any]) -> list[list[Any]]:
    """Return the table of what each stage of a run cost, as run.json tells it."""
    lines: list[list[Any]] = [["stage", "seconds", "rows kept", "seconds per 1,000 kept", "tokens"]]
    for name, stage in stages.items():
        account = stage.get("account") or {}
        kept, seconds = account.get("kept", account.get("done")), stage.get("seconds")
        lines.append([name, seconds, kept, 1000 * seconds / kept if kept and seconds else None, account.get("tokens")])
    return lines


def _diversity(run: Path, stages: Mapping[str, Any]) -> Iterator[Section]:
    """The account of how different the kept instructions are, and their map."""
    from harmaug.plots import diversity_map

    account = stages.get("augment", {}).get("diversity")
    if not account:
        return
    shown = read_object(run / "diversity.json") if (run / "diversity.json").exists() else {}
    lines = [["measure", "value"], *([_DIVERSITY.get(name, name), value] for name, value in account.items())]
    yield Section(heading="Diversity of the kept instructions", tables=[lines],
                  charts=[diversity_map.chart(**shown)] if shown else ())


def _label_noise(run: Path, limit: int = 24) -> Iterator[Section]:
    """Rows whose own label contradicts the teacher's score, the most confident first."""
    rows = _whole_rows(run / "labelled.jsonl")
    judged = [(row.unsafe_score, row.label, row) for row in rows if row.label is not None and row.unsafe_score is not None]
    doubtful = [(abs(score - label), row) for score, label, row in judged if (score >= 0.5) != label]       # as teacher.audit counts
    doubtful.sort(key=lambda pair: -pair[0])
    if judged:
        note = f"The teacher contradicts {len(doubtful)} of {len(judged)} labels that rows brought along; the most confident first."
        yield Section(heading="Labels in doubt", notes=[note], rows=_columns(row for _, row in doubtful[:limit]))


def accounts(stages: Mapping[str, Any]) -> list[tuple[str, list[list[Any]]]]:
    """Return the tables of the stages' accounts, and of rows by category."""
    lines: list[list[Any]] = [["stage", "what", "count"]]
    categories: dict[str, list[Any]] = {}
    for name, stage in stages.items():
        account = stage.get("account") or {}
        lines += [[name, what, value] for what, value in account.items() if isinstance(value, (int, float))]
        lines.append([name, "seconds", stage.get("seconds")])
        for category, n in account.get("categories", {}).items():
            categories.setdefault(category, []).append(f"{name} {n}")
    tables = [("Yield", lines)]
    if categories:
        found = [[name, ", ".join(counts)] for name, counts in sorted(categories.items())]
        tables.append(("Rows by category", [["category", "rows"], *found]))
    return tables


def _sample(run: Path, limit: int = 24) -> list[dict[str, Any]]:
    """Some rows of the run's last row stage, evenly spread."""
    from harmaug.respond import spread

    for name in ("labelled.jsonl", "instructions.jsonl"):
        rows = _whole_rows(run / name)
        if rows:
            return _columns(spread(rows, limit))
    return []


def _whole_rows(path: Path) -> list[Row]:
    """The rows of a stage's file, none where it is not there, without a torn last line."""
    whole, end, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    return [Row.from_dict(columns, where) for where, columns in columns_of_stream(io.BytesIO(whole + end), str(path))]


class Table:
    """A table that a notebook shows as HTML, and print as aligned text: the first line is its head, notes follow it.

    Examples
    --------
    >>> Table([["set", "AUPRC"], ["mine", 0.81234]])
    set   AUPRC
    mine  0.812
    """

    def __init__(self, lines: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
        self.lines, self.notes = [list(line) for line in lines], list(notes)

    def __repr__(self) -> str:
        cells = [[_visible(_plain(cell)) for cell in line] for line in self.lines]
        widths = [max(map(len, column)) for column in zip(*cells)]
        text = ["  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in cells]
        return "\n".join([*text, *map(_visible, self.notes)])

    def to_csv(self) -> str:
        """Return the cells as CSV, numbers in full; an interval takes one cell, of three decimals.

        A text that a spreadsheet would take for a formula has a ' in front.
        """
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([["" if cell is None else str(cell) if isinstance(cell, (float, np.floating)) else
                                                         _harmless(cell) if isinstance(cell, str) else _plain(cell) for cell in line] for line in self.lines])
        return out.getvalue()

    def to_latex(self) -> str:
        """Return a tabular environment with the rules of booktabs."""
        if not self.lines:
            return "\n".join([_BOOKTABS, r"\begin{tabular}{l}", r"\end{tabular}", ""])
        texts = (" & ".join(_latex(_plain(cell)) for cell in line) + r" \\" for line in self.lines)
        head, *body = ("{}" + text if text.startswith(("[", "*")) else text for text in texts)      # else an option of the rule or line above
        columns = "l" + "r" * (len(self.lines[0]) - 1)
        return "\n".join([_BOOKTABS, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                          r"\end{tabular}", ""])

    def _repr_html_(self) -> str:
        return str(_templates().table(self.lines)) + str(_templates().paragraphs(self.notes))


class HiddenRows:
    """Rows that a notebook shows on a click only, and whose text no repr tells; of `limit`, so many evenly spread.

    Examples
    --------
    >>> HiddenRows([Row(prompt="How do I bake bread?", label=0)])
    <1 row, text hidden>
    """

    def __init__(self, rows: Iterable[Row], limit: int | None = None) -> None:
        from harmaug.respond import spread

        self._rows = spread(list(rows), limit)

    def __repr__(self) -> str:
        return f"<{len(self._rows)} row{'' if len(self._rows) == 1 else 's'}, text hidden>"

    def _repr_html_(self) -> str:
        return str(_templates().hidden(_hidden(_columns(self._rows)))) if self._rows else "<p>No rows.</p>"


def _columns(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{"prompt": row.prompt, "response": row.response, "category": row.category, "source": row.source, "generator": row.generator,
             "label": row.label, "teacher": row.unsafe_score} for row in rows]


def _hidden(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows of the same columns as the lines of a table with what is said above it, or None."""
    if not rows:
        return None
    invented = any(row.get("generator") for row in rows)
    return {"notice": _INVENTED * invented + _NOTICE, "lines": [list(rows[0]), *(list(row.values()) for row in rows)]}


def _builtin(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _harmless(text: str) -> str:
    """A cell of CSV that no spreadsheet takes for a formula."""
    if text == "-" or not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def _latex(text: str) -> str:
    text = re.sub(r"[\x00-\x1f\x7f]", "", " ".join(text.split()))
    return re.sub(r'[&%$#_{}~^\\<>|"]', lambda found: _LATEX.get(found[0], "\\" + found[0]), text)


def _visible(text: str) -> str:
    """The text with escapes for what a terminal would act on."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (float, np.floating)):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return " .. ".join(map(_plain, value))
    return str(value)
