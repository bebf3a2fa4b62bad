"""One self-contained HTML page about a run: measures, yield, settings. Row text is hidden until it is clicked on."""
from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harmaug.data import Row, atomic_file

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}pre{background:#f6f6f6;padding:.7rem;overflow:auto}summary{cursor:pointer}
.warning{background:#fff3cd;padding:.6rem .9rem}"""
_NOTICE = ("The rows of this run were invented by a language model and many are harmful. They are for training and testing safety guards; "
           "a guard trained on them is English only, may refuse too much, and is not to be the only safeguard.")


def write_report(path: str | os.PathLike[str], title: str, *, tables: Sequence[tuple[str, Sequence[Sequence[Any]]]], notes: Sequence[str] = (),
                 rows: Sequence[Mapping[str, Any]] = (), info: Mapping[str, Any] | None = None) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    path : path
    title : str
    tables : sequence of (heading, lines)
        The first line of each is its head.
    notes : sequence of str
        Sentences under the title.
    rows : sequence of mapping
        Rows to show on a click.
    info : mapping, optional
        What is shown as JSON at the end.
    """
    out = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title><style>{_STYLE}</style><h1>{_text(title)}</h1>"]
    out += [f"<p>{_text(note)}</p>" for note in notes]
    for heading, lines in tables:
        out.append(f"<h2>{_text(heading)}</h2>{_html_table(lines)}")
    if rows:
        out.append(f"<h2>Rows</h2>{_html_rows(rows)}")
    if info is not None:
        text = msgspec.json.format(msgspec.json.encode(info), indent=1).decode()
        out.append(f"<h2>Settings, versions, costs</h2><details><summary>run.json</summary><pre>{_text(text)}</pre></details>")
    with atomic_file(path) as file:
        file.write("\n".join(out).encode("utf-8", "replace"))


def report_run(folder: str | os.PathLike[str]) -> Path:
    """Write report.html of a run folder from what it holds, and return its path.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If it is not a run folder, or a file in it is damaged.
    """
    from harmaug.runs import RunError

    run = Path(folder)
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: not a run folder: no run.json")
    try:
        info = msgspec.json.decode((run / "run.json").read_bytes())
        metrics = msgspec.json.decode((run / "metrics.json").read_bytes()) if (run / "metrics.json").exists() else {}
    except msgspec.DecodeError as exc:
        raise RunError(f"{run}: run.json or metrics.json is damaged: {exc}") from None
    tables = [(f"Measures: {name}", lines) for name, lines in metrics.get("tables", {}).items()]
    if "datasets" in metrics:
        names = ("n", "base_rate", "f1", "auprc", "auprc_interval", "precision", "recall")
        tables.append(("Measures", [["set", *names], *([name, *(entry.get(key) for key in names)] for name, entry in metrics["datasets"].items())]))
    tables += accounts(info["stages"])
    write_report(run / "report.html", f"harmaug run {run.name}", tables=tables, notes=metrics.get("notes", ()), rows=_sample(run), info=info)
    return run / "report.html"


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
        tables.append(("Rows by category", [["category", "rows"], *([name, ", ".join(found)] for name, found in sorted(categories.items()))]))
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
    """A table that a notebook shows as HTML, and print as aligned text.

    Parameters
    ----------
    lines : sequence of sequences
        The first line is the head.
    notes : sequence of str
        Sentences under it.

    Examples
    --------
    >>> Table([["set", "AUPRC"], ["mine", 0.81234]])
    set   AUPRC
    mine  0.812
    """

    def __init__(self, lines: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
        self._lines, self._notes = [list(line) for line in lines], list(notes)

    def __repr__(self) -> str:
        cells = [[_plain(cell) for cell in line] for line in self._lines]
        widths = [max(map(len, column)) for column in zip(*cells)]
        return "\n".join(["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))) for line in cells]
                         + self._notes)

    def _repr_html_(self) -> str:
        return _html_table(self._lines) + "".join(f"<p>{_text(note)}</p>" for note in self._notes)


class HiddenRows:
    """Rows that a notebook shows on a click only, and whose text no repr tells.

    Parameters
    ----------
    rows : iterable of Row
    limit : int, optional
        Show so many of them, evenly spread.

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
        return _html_rows(_columns(self._rows)) if self._rows else "<p>No rows.</p>"


def _columns(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{"prompt": row.prompt, "response": row.response, "category": row.category, "source": row.source, "label": row.label, "teacher": row.unsafe_score}
            for row in rows]


def _html_table(lines: Sequence[Sequence[Any]]) -> str:
    tags = ("th", *("td" for _ in lines[1:]))
    return "<table>" + "\n".join("<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in line) + "</tr>" for tag, line in zip(tags, lines)) + "</table>"


def _html_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    return (f"<p class=warning>{_text(_NOTICE)}</p><details><summary>Show {len(rows)} rows, harmful ones among them</summary>"
            + _html_table([names, *([row.get(name) for name in names] for row in rows)]) + "</details>")


def _text(value: Any) -> str:
    return html.escape(_plain(value))


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return " .. ".join(map(_plain, value))
    return str(value)
