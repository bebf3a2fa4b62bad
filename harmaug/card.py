"""The model card of a distilled guard: what it was made of, under which licences, and what it is not for."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from harmaug.data import Row, atomic_file

_log = logging.getLogger(__name__)


NAME = "README.md"


def parts_of(stages: Mapping[str, Any], rows: Iterable[Row], student: str, licence: str) -> list[dict[str, Any]]:
    """Return role, name, licence and number of rows of each part that went into a guard.

    Parameters
    ----------
    stages : mapping
        Of run.json.
    rows : iterable of Row
        The training rows; those that no generator wrote are counted by source and licence.
    student, licence : str
        The model that was fine-tuned.
    """
    given: Counter[tuple[str, str]] = Counter()
    written: Counter[str] = Counter()
    for row in rows:
        if row.generator is None:
            given[row.source or "unnamed", row.license or "unknown"] += 1
        else:
            written["responder" if row.response else "generator"] += 1
    parts = [{"role": "student", "name": student, "licence": licence, "rows": ""}]
    for role, stage, key in (("generator", "augment", "generator"), ("responder", "respond", "generator"),
                             ("teacher", "label", "teacher")):
        entry = stages.get(stage, {}).get(key)
        if entry is not None:
            parts.append({"role": role, **entry, "rows": str(written.get(role, ""))})
    parts += [{"role": "data", "name": source, "licence": terms, "rows": str(n)}
              for (source, terms), n in sorted(given.items())]
    return parts


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
