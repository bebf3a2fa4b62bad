"""The model card of a distilled guard: what it was made of, under which licences, and what it is not for."""
from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from harmaug.data import Row, atomic_file

NAME = "README.md"
_HEAD = "| part | name | licence or terms | rows |"
_log = logging.getLogger(__name__)


def data_of(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Return source, licence and number of the rows that no model wrote; EDA's are the data's that they were made of."""
    given = Counter((row.source or "unnamed", row.license or "unknown") for row in rows if row.generator in (None, "eda"))
    return [{"role": "data", "name": source, "licence": terms, "rows": str(n)} for (source, terms), n in sorted(given.items())]


def parts_of(stages: Mapping[str, Any], rows: Iterable[Row], student: str, licence: str,
             before: Iterable[Mapping[str, str]] = ()) -> list[dict[str, Any]]:
    """Return role, name, licence and number of rows of each part that went into a guard.

    Parameters
    ----------
    stages : mapping
        Of run.json.
    rows : iterable of Row
        The training rows. A generator or teacher that they name, and neither a stage nor `before` does, has the licence
        "unknown".
    student, licence : str
        The model that was fine-tuned.
    before : iterable of mapping
        What that model was made of.
    """
    rows, before = list(rows), list(before)
    known = {(part["role"].split(" of ")[0], part["name"]): part["licence"] for part in before}
    made: dict[str, Counter[str]] = {"generator": Counter(), "responder": Counter(), "teacher": Counter()}
    for row in rows:
        if row.generator not in (None, "eda"):
            made["responder" if row.response else "generator"][str(row.generator)] += 1
        if row.target is not None:
            made["teacher"][str(row.extra.get("teacher", "unnamed"))] += 1
    parts = [{"role": "student", "name": student, "licence": licence, "rows": ""}]
    parts += [{**part, "role": part["role"] if " of " in part["role"] else f"{part['role']} of {student}"} for part in before]
    for role, stage, key in (("generator", "augment", "generator"), ("responder", "respond", "generator"),
                             ("teacher", "label", "teacher")):
        entry = stages.get(stage, {}).get(key)
        if entry is not None:
            parts.append({"role": role, **entry, "rows": str(made[role].pop(entry["name"], ""))})
        parts += [{"role": role, "name": name, "licence": known.get((role, name), "unknown"), "rows": str(n)}
                  for name, n in sorted(made[role].items())]
    return parts + data_of(rows)


def read_parts(folder: Path) -> list[dict[str, str]]:
    """Return the parts that the card in a folder lists; none where there is no card of `write_card`."""
    path = folder / NAME
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if _HEAD not in lines:
        return []
    table = itertools.takewhile(lambda line: line.startswith("| "), lines[lines.index(_HEAD) + 2:])
    return [dict(zip(("role", "name", "licence", "rows"), (cell.strip() for cell in line[1:].split("|")))) for line in table]


def write_card(folder: Path, parts: Iterable[Mapping[str, Any]], **values: Any) -> None:
    """Write README.md beside a guard, and warn of every licence in it that is unknown."""
    # names come from rows: one line, one cell
    parts = [{name: " ".join(str(value).replace("|", "/").split()) for name, value in part.items()} for part in parts]
    unknown = [f"{part['role']} {part['name']}" for part in parts if part["licence"] == "unknown"]
    if unknown:
        _log.warning("%s: licence unknown of %s; the model card says so", folder, ", ".join(unknown))
    source = (resources.files("harmaug") / "data" / "model_card.md.jinja").read_text(encoding="utf-8")
    env = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 (no HTML)
    text = env.from_string(source).render(parts=parts, **values)
    with atomic_file(folder / NAME) as file:
        file.write(text.encode())
