"""Teachers: whatever gives P(unsafe) for a prompt, alone or with a response."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import engines
from harmaug.data import DataError, Row

STANDIN = "standin"
"""The teacher that ships with the package: a small model trained on public labels, for want of a large guard."""


class Teacher(Protocol):
    """What labels rows; rows record its name, and run.json the licence of its outputs or weights ("unknown" else)."""

    name: str
    licence: str

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""


class GuardTeacher:
    """A guard, or anything with ``score(prompts, responses)``, as a teacher."""

    def __init__(self, guard: Any, name: str, licence: str = "unknown") -> None:
        self.guard, self.name, self.licence = guard, name, licence

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> GuardTeacher:
        """Open a guard folder, a fetched name or "standin"; options are those of Guard.from_pretrained."""
        from harmaug.guard import Guard

        path = standin_folder() if os.fspath(folder) == STANDIN else Path(folder)
        if (path / "tfidf.json").exists():
            from harmaug.integrations.sklearn import TfidfGuard

            return cls(TfidfGuard.from_pretrained(path), path.name)
        guard = Guard.from_pretrained(path if path.exists() else os.fspath(folder), **options)
        return cls(guard, STANDIN if os.fspath(folder) == STANDIN else path.name, _licence(path))

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""
        return np.asarray(self.guard.score(prompts, responses), dtype=np.float32)


class CallableTeacher:
    """A function as a teacher.

    It takes (prompts, responses), two lists of equal length, and returns P(unsafe) for each. Its own name is the
    teacher's when none is given.
    """

    def __init__(self, function: Callable[[Sequence[str], Sequence[str | None]], ArrayLike], name: str | None = None,
                 licence: str = "unknown") -> None:
        self._function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.licence = licence

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""
        answers = [None] * len(prompts) if responses is None else responses
        return np.asarray(self._function(prompts, answers), dtype=np.float32)


def as_teacher(teacher: Any) -> Teacher:
    """Return a Teacher for a folder, "standin", a Guard, a function or a Teacher."""
    if isinstance(teacher, (str, os.PathLike)):
        return GuardTeacher.from_pretrained(teacher)
    if hasattr(teacher, "score"):
        whole = hasattr(teacher, "name") and hasattr(teacher, "licence")
        return teacher if whole else GuardTeacher(teacher, type(teacher).__name__)
    if callable(teacher):
        return CallableTeacher(teacher)
    raise TypeError(f"a teacher must be a folder, a guard or a callable, got {type(teacher).__name__}")


def standin_folder() -> Path:
    """Return the folder of the stand-in teacher."""
    return Path(str(resources.files("harmaug") / "data" / "standin_teacher"))


def label_rows(teacher: Teacher, rows: Sequence[tuple[str, Row]], *, batch_size: int = 256,
               engine: str = "local") -> Iterator[tuple[str, Row, float]]:
    """Yield (where, row, P(unsafe)) in order; `where` names a row in messages, such as "instructions.jsonl, row 3".

    The teacher gets `batch_size` rows at once; `engine` is that of engines.map_rows. A DataError names the row whose
    score is NaN or outside [0, 1], or the batch that did not get one for each row.
    """

    def score(batch: Sequence[tuple[str, Row]]) -> list[float]:
        given = teacher.score([row.prompt for _, row in batch], [row.response for _, row in batch])
        scores = np.asarray(given, dtype=np.float32)
        if scores.shape != (len(batch),):
            raise DataError(f"teacher {teacher.name}: scores of shape {scores.shape} for {len(batch)} rows "
                            f"from {batch[0][0]} on")
        for (where, _), value in zip(batch, scores.tolist()):
            if not 0 <= value <= 1:
                raise DataError(f"{where}: the score of teacher {teacher.name} must be in [0, 1], got {value}")
        # the shortest decimal that is the same float32: 0.1 rather than 0.10000000149
        return [float(str(value)) for value in scores]

    for (where, row), value in engines.map_rows(score, rows, engine=engine, batch_size=batch_size):
        yield where, row, value


def describe(teacher: Teacher) -> Mapping[str, str]:
    """Return name and licence, as run.json records them."""
    return {"name": teacher.name, "licence": teacher.licence}


def _licence(folder: Path) -> str:
    """Read the licence out of a model card's front matter."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.split(":", 1)[1].strip() or "unknown"
    return "unknown"
