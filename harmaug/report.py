"""One self-contained HTML page about a run: measures, yield, settings. Row text is hidden until it is clicked on."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from harmaug.data import Row, atomic_file, read_object

_NOTICE = ("The rows of this run were invented by a language model and many are harmful. They are for training and "
           "testing safety guards; a guard trained on them is English only, may refuse too much, and is not to be the "
           "only safeguard.")


def write_report(path: str | os.PathLike[str], title: str, *, tables: Sequence[tuple[str, Sequence[Sequence[Any]]]],
                 notes: Sequence[str] = (), rows: Sequence[Mapping[str, Any]] = (),
                 info: Mapping[str, Any] | None = None) -> None:
    """Write the page, whole or not at all.

    Each of `tables` is (heading, lines), and the first line its head; `notes` are sentences under the title; `rows` are
    shown on a click; `info` is shown as JSON at the end.
    """
    shown = None if info is None else msgspec.json.format(msgspec.json.encode(info), indent=1).decode()
    page = _templates().page(title, tables, notes, _lines(rows), shown)
    with atomic_file(path) as file:
        file.write(page.encode("utf-8", "replace"))


@lru_cache(maxsize=1)
def _templates() -> Any:
    """The macros of the page, with everything that they show escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = _plain
    source = (resources.files("harmaug") / "data" / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source, globals={"notice": _NOTICE}).module


def report_run(folder: str | os.PathLike[str]) -> Path:
    """Write report.html of a run folder from what it holds, and return its path.

    A ValueError if it is not a run folder, or a file in it is damaged.
    """
    from harmaug.runs import RunError, read_info

    run = Path(folder)
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: not a run folder: no run.json")
    info = read_info(run)
    metrics = read_object(run / "metrics.json") if (run / "metrics.json").exists() else {}
    try:
        tables = [*_measures(metrics), *accounts(info["stages"])]
    except (AttributeError, TypeError, ValueError):
        raise RunError(f"{run}: run.json or metrics.json is damaged: not what a run writes") from None
    write_report(run / "report.html", f"harmaug run {run.name}", tables=tables, notes=metrics.get("notes", ()),
                 rows=_sample(run), info=info)
    return run / "report.html"


def measures_table(report: Mapping[str, Any]) -> Table:
    """The report of `evaluate.evaluate_guard` as a table, one line a set; over-refusal sets apart, after the mean."""
    columns = [("rows", "n"), ("unsafe", "base_rate"), ("F1", "f1"), ("AUPRC", "auprc"),
               ("95 % interval", "auprc_interval"), ("precision", "precision"), ("recall", "recall"), ("FPR", "fpr"),
               ("ECE", "ece")]
    lines: list[list[Any]] = [["set", *(title for title, _ in columns)]]
    notes = [f"F1, precision, recall and FPR at P(unsafe) {'>=' if report['protocol']['tie_unsafe'] else '>'} "
             f"{report['threshold']:g}; protocol {report['protocol']['name']}: {report['protocol']['says']}"]
    parts = [*report["datasets"].items()]
    if len(parts) > 1:
        parts.append(("mean", report["mean"]))
    parts += [(f"over-refusal: {name}", entry) for name, entry in report["over_refusal"].items()]
    for name, entry in parts:
        lines.append([name, *(entry.get(key) for _, key in columns)])
        notes += [f"{name}: {entry['note']}"] if "note" in entry else []
        cohort = entry.get("cohort", {})
        notes += [f"{name}: {cohort['n_unlabelled']} rows without a label left out"] * bool(cohort.get("n_unlabelled"))
        found = cohort.get("contamination") or {}
        if found.get("exact") or found.get("near"):
            notes.append(f"{name}: {found['exact']} rows are among the training rows and {found['near']} near one, so "
                         "its figures flatter")
        for other, found in entry.get("baselines", {}).items():
            lines.append([f"{name}, {other}", *(found.get(key) for _, key in columns)])
            for metric, gain in found["comparison"].items():
                if gain.get("difference") is not None:
                    verdict = "within noise" if gain["within_noise"] else "beyond noise"
                    notes.append(f"{name}: {metric} minus that of {other} {gain['difference']:+.3f} "
                                 f"({gain['low']:+.3f} .. {gain['high']:+.3f}, p {gain['p']:.3g}): {verdict}")
    return Table(lines, notes)


def _measures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, list[list[Any]]]]:
    for name, lines in metrics.get("tables", {}).items():
        yield f"Measures: {name}", lines
    if "datasets" in metrics:
        yield "Measures", measures_table(metrics).lines


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
    tables = [("Yield and cost", lines)]
    if categories:
        found = [[name, ", ".join(counts)] for name, counts in sorted(categories.items())]
        tables.append(("Rows by category", [["category", "rows"], *found]))
    return tables


def _sample(run: Path, limit: int = 24) -> list[dict[str, Any]]:
    """Some rows of the run's last row stage, evenly spread."""
    from harmaug.data import read_rows
    from harmaug.respond import spread

    for name in ("labelled.jsonl", "instructions.jsonl"):
        if (run / name).exists() and (run / name).stat().st_size:
            return _columns(spread(read_rows(run / name), limit))
    return []


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
        cells = [[_plain(cell) for cell in line] for line in self.lines]
        widths = [max(map(len, column)) for column in zip(*cells)]
        text = ["  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in cells]
        return "\n".join(text + self.notes)

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
        return str(_templates().hidden(_lines(_columns(self._rows)))) if self._rows else "<p>No rows.</p>"


def _columns(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{"prompt": row.prompt, "response": row.response, "category": row.category, "source": row.source,
             "label": row.label, "teacher": row.unsafe_score} for row in rows]


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return rows of the same columns as the lines of a table, or none."""
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return " .. ".join(map(_plain, value))
    return str(value)
