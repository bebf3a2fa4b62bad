"""Teachers: whatever gives P(unsafe) for a prompt, alone or with a response."""
from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import engines, models
from harmaug.checks import one_of
from harmaug.data import DataError, Row, RowError, identity, read_object, read_rows, score_of
from harmaug.evaluate import metrics
from harmaug.generator import BACKENDS

_log = logging.getLogger(__name__)

STANDIN = "standin"
"""The teacher that ships with the package: a small model trained on public labels, for want of a large guard."""
_SCORES = "teacher_scores.sqlite"


class Teacher(Protocol):
    """What labels rows; rows record its name, and run.json the licence of its outputs or weights ("unknown" else).

    One that scores row by row has ``score_each`` besides, with the parameters of ``score``, which yields floats in order:
    what it has yielded is kept when the next one fails.
    """

    name: str
    licence: str

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""


class GuardTeacher:
    """A guard, or anything with ``score(prompts, responses)``, as a teacher."""

    def __init__(self, guard: Any, name: str, licence: str = "unknown") -> None:
        self.guard, self.name, self.licence = guard, name, licence

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, backend: str = "native", device: str | None = None,
                        **options: Any) -> GuardTeacher:
        """Open a guard folder, a fetched name or "standin"; options are those of Guard.from_pretrained.

        With the backend "transformers" a folder's logits come from PyTorch, on `device`, in the options' dtype.
        """
        from harmaug.guard import Guard

        path = standin_folder() if os.fspath(folder) == STANDIN else Path(folder)
        if (path / "tfidf.json").exists():
            if backend != "native":
                raise ValueError(f"{path}: a TF-IDF guard is no model of transformers")
            for name in ("dtype", "max_length"):
                if options.get(name) is not None:
                    raise ValueError(f"{path}: {name} makes no sense for a TF-IDF guard, which reads whole texts")
            from harmaug.integrations.sklearn import TfidfGuard

            return cls(TfidfGuard.from_pretrained(path), path.name)
        if one_of("backend", backend, BACKENDS) == "native" and device is not None:
            raise ValueError(f'device {device} needs backend "transformers"')
        dtype = options.pop("dtype", None) if backend == "transformers" else None
        guard = Guard.from_pretrained(path if path.exists() else os.fspath(folder), **options)
        if backend == "transformers":
            from harmaug.transformers_lm import run_on

            run_on(guard, device, dtype)
        return cls(guard, STANDIN if os.fspath(folder) == STANDIN else path.name, licence_of(path))

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""
        return np.asarray(self.guard.score(prompts, responses), dtype=np.float32)


def as_array(scores: Any) -> NDArray[Any]:
    """The array of scores, those of a tensor of PyTorch too: numpy takes none that has a gradient, and has no bfloat16."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu()
        scores = scores.float() if str(scores.dtype) == "torch.bfloat16" else scores
    return np.asarray(scores)


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
        found = self._function(prompts, answers)
        try:
            return np.asarray(as_array(found), dtype=np.float32)
        except (TypeError, ValueError):
            raise DataError(f"{self.name} must return P(unsafe) of each row, {len(prompts)} numbers") from None


class ScoresTeacher:
    """A file of scores as a teacher: rows with an "unsafe-score" (else "score"), looked up by prompt and response.

    The column score, which ``harmaug score`` writes, is taken where no row has an unsafe-score. A row that stands there in
    other letter case or spacing only is taken where all such rows have one score. A DataError names a row without a score,
    or with another one than an earlier row of the same texts.
    """

    def __init__(self, path: str | os.PathLike[str], *, licence: str = "unknown") -> None:
        self.name, self.licence = Path(path).name, licence
        rows = read_rows(path)
        plain = all(row.unsafe_score is None for row in rows) and any("score" in row.extra for row in rows)
        self._scores: dict[tuple[str, str], float | None] = {}
        self._alike: dict[tuple[str, str], set[float | None]] = {}
        for i, row in enumerate(rows, 1):
            where, column = f"{os.fspath(path)}, row {i}", "score" if plain else "unsafe-score"
            score = score_of(row.extra.get("score"), "score", where) if plain else row.unsafe_score
            if score is None:
                raise DataError(f"{where}: no {column}")
            if self._scores.setdefault((row.prompt, row.response or ""), score) != score:
                raise DataError(f"{where}: another {column} than an earlier row of the same texts")
            self._alike.setdefault(identity(row), set()).add(score)

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,), NaN for a row that the file lacks."""
        answers = [None] * len(prompts) if responses is None else responses
        scores = np.full(len(prompts), np.nan, dtype=np.float32)
        for i, (prompt, answer) in enumerate(zip(prompts, answers)):
            alike = self._alike.get(identity(Row(prompt=prompt, response=answer)), set())
            exact = self._scores.get((prompt, answer or ""))
            if exact is None and len(alike) > 1:
                raise RowError(i, f"{self.name} has it in other letter case or spacing only, with {len(alike)} different scores")
            scores[i] = next(iter(alike), np.nan) if exact is None else exact
        return scores


class CachedTeacher:
    """Keeps a teacher's scores in the user's cache, by content, for whatever run asks for them again.

    The cache holds digests and scores, no text. Where caching is switched off (``HARMAUG_CACHE`` empty), its folder
    cannot be written or its file is damaged, every row is scored.

    Parameters
    ----------
    teacher : Teacher
    fingerprint : str
        What the scores depend on besides the row: the model's sha256 and how it is read.

    Attributes
    ----------
    account : dict
        The teacher's own, and "cached": rows that were not scored again.
    """

    def __init__(self, teacher: Teacher, fingerprint: str) -> None:
        self.teacher, self.name, self.licence = teacher, teacher.name, teacher.licence
        self._fingerprint = hashlib.sha256(fingerprint.encode()).digest()
        self._cached = 0
        self._database = self._open()

    @property
    def account(self) -> dict[str, Any]:  # noqa: D102 (told above)
        return {**getattr(self.teacher, "account", {}), "cached": self._cached}

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""
        return np.fromiter(self.score_each(prompts, responses), np.float32, len(prompts))

    def score_each(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> Iterator[float]:
        """Yield what `score` returns, new scores as the teacher gives them."""
        answers = [None] * len(prompts) if responses is None else responses
        keys = [self._key(prompt, answer) for prompt, answer in zip(prompts, answers)]
        scores = [self._get(key) for key in keys]
        new = [i for i, score in enumerate(scores) if np.isnan(score)]
        found = self._score_new([keys[i] for i in new], [prompts[i] for i in new], [answers[i] for i in new])
        try:
            for score in scores:
                self._cached += not np.isnan(score)
                yield next(found) if np.isnan(score) else score
        except RowError as error:
            raise RowError(new[error.row], error.problem) from None

    def _score_new(self, keys: Sequence[bytes], prompts: Sequence[str], answers: Sequence[str | None]) -> Iterator[float]:
        """Score rows and keep the scores: of a batch at once, else once a second and at the end, whatever ends it."""
        found = _scores_of(self.teacher, prompts, answers)
        if not hasattr(self.teacher, "score_each"):
            scored = list(zip(keys, found))
            self._put(scored)
            yield from (score for _, score in scored)
            return
        fresh: list[tuple[bytes, float]] = []
        kept_at = time.monotonic()
        try:
            for key, score in zip(keys, found):
                fresh.append((key, score))
                if time.monotonic() - kept_at > 1:
                    self._put(fresh)
                    fresh, kept_at = [], time.monotonic()
                yield score
        finally:
            self._put(fresh)

    def find(self, rows: Iterable[Row]) -> dict[int, float]:
        """Return the scores that are kept, by the place of their row."""
        kept = ((i, self._get(self._key(row.prompt, row.response))) for i, row in enumerate(rows))
        found = {i: _shortest(np.float32(score)) for i, score in kept if not np.isnan(score)}
        self._cached += len(found)
        return found

    def keep(self, scored: Sequence[tuple[Row, float]]) -> None:
        """Keep the scores of rows."""
        self._put([(self._key(row.prompt, row.response), score) for row, score in scored])

    def _put(self, entries: Sequence[tuple[bytes, float]]) -> None:
        try:
            if self._database is not None:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)",
                                               [entry for entry in entries if 0 <= entry[1] <= 1])
        except sqlite3.Error as error:
            self._give_up(error)

    def _key(self, prompt: str, response: str | None) -> bytes:
        parts = (self._fingerprint, prompt.encode("utf-8", "surrogatepass"),
                 (response or "").encode("utf-8", "surrogatepass"))
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()

    def _get(self, key: bytes) -> float:
        found = None
        try:
            if self._database is not None:
                found = self._database.execute("SELECT score FROM scores WHERE key = ? AND score BETWEEN 0 AND 1", (key,)).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
        return float("nan") if found is None else float(found[0])

    def _give_up(self, error: sqlite3.Error) -> None:
        """A full disk or a damaged file must not stop a run."""
        _log.warning("%s/%s: teacher scores are no longer cached: %s", models.cache_folder(), _SCORES, error)
        self._database = None

    @staticmethod
    def _open() -> sqlite3.Connection | None:
        cache = models.cache_folder()
        if cache is None:
            return None
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = cache / _SCORES
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(path, timeout=60, check_same_thread=False)
            database.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
            return database
        except (OSError, sqlite3.Error) as error:
            _log.info("teacher scores are not cached: %s", error)
            return None


def as_teacher(teacher: Any) -> Teacher:
    """Return a Teacher for whatever gives scores.

    Parameters
    ----------
    teacher : object
        A Teacher; a Guard, or anything with ``score``; a text-classification pipeline of transformers; a function (see
        CallableTeacher); a guard's folder or fetched name, "standin", a moderations endpoint's address, or a file of
        scores (see ScoresTeacher).
    """
    if isinstance(teacher, str) and teacher.startswith(("http://", "https://")):
        from harmaug.endpoint import EndpointConfig
        from harmaug.integrations.scorers import ModerationEndpoint

        return GuardTeacher(ModerationEndpoint(EndpointConfig(url=teacher, model="")), teacher)
    if isinstance(teacher, (str, os.PathLike)):
        scores = Path(teacher).is_file() and Path(teacher).suffix != ".gguf"
        return ScoresTeacher(teacher) if scores else GuardTeacher.from_pretrained(teacher)
    if hasattr(teacher, "score"):
        whole = hasattr(teacher, "name") and hasattr(teacher, "licence")
        return teacher if whole else GuardTeacher(teacher, type(teacher).__name__)
    if any(kind.__module__.startswith("transformers.pipelines") for kind in type(teacher).__mro__):
        from harmaug.integrations.scorers import PipelineScorer

        return GuardTeacher(PipelineScorer(teacher), type(teacher).__name__)
    if callable(teacher):
        return CallableTeacher(teacher)
    raise TypeError("a scorer must be a guard, a pipeline of transformers, a function, a folder, an address or a file of "
                    f"scores, got {type(teacher).__name__}")


def as_scorer(scorer: Any) -> Any:
    """Return what has a ``score`` for what `as_teacher` takes; a guard is itself."""
    if hasattr(scorer, "score"):
        return scorer
    made = as_teacher(scorer)
    return made.guard if isinstance(made, GuardTeacher) else made


def standin_folder() -> Path:
    """Return the folder of the stand-in teacher."""
    return Path(str(resources.files("harmaug") / "data" / "standin_teacher"))


def is_language_model(path: Path) -> bool:
    """Whether a model is a generative one: a .gguf, or a folder whose architecture is a causal language model's."""
    if path.is_dir() and (path / "config.json").is_file():
        names = read_object(path / "config.json").get("architectures") or [""]
        return str(names[0]).endswith(("ForCausalLM", "LMHeadModel"))
    return path.suffix == ".gguf" or any(path.glob("*.gguf"))


def _scores_of(teacher: Teacher, prompts: Sequence[str], responses: Sequence[str | None]) -> Iterator[float]:
    """Yield a teacher's scores, each as soon as it gives it; a RowError unless there is one for each row."""
    each = getattr(teacher, "score_each", None)
    if each is not None:
        yield from each(prompts, responses)
        return
    scores = np.asarray(teacher.score(prompts, responses), dtype=np.float32)
    if scores.shape != (len(prompts),):
        raise RowError(0, f"teacher {teacher.name} gave scores of shape {scores.shape} for {len(prompts)} rows from here on")
    yield from scores.tolist()


def label_rows(teacher: Teacher, rows: Sequence[tuple[str, Row]], *, batch_size: int = 256,
               engine: str = "local") -> Iterator[tuple[str, Row, float]]:
    """Yield (where, row, P(unsafe)) in order; `where` names a row in messages, such as "instructions.jsonl, row 3".

    The teacher gets `batch_size` rows at once; `engine` is that of engines.map_rows. A DataError names the row whose
    score is NaN or outside [0, 1], or that the teacher cannot score, or the batch that did not get one for each row.
    """
    if engine != "local" and isinstance(teacher, CachedTeacher):
        yield from _label_elsewhere(teacher, rows, batch_size, engine)
        return

    def each(batch: Sequence[tuple[str, Row]]) -> Iterator[float]:
        scores = _scores_of(teacher, [row.prompt for _, row in batch], [row.response for _, row in batch])
        try:
            for i, value in enumerate(scores):
                if not 0 <= value <= 1:
                    raise RowError(i, f"the score of teacher {teacher.name} must be in [0, 1], got {value}")
                yield _shortest(np.float32(value))
        except RowError as error:
            raise DataError(f"{batch[error.row][0]}: {error.problem}") from None

    def score(batch: Sequence[tuple[str, Row]]) -> Iterable[float]:
        return each(batch) if engine == "local" or hasattr(teacher, "score_each") else list(each(batch))

    for (where, row), value in engines.map_rows(score, rows, engine=engine, batch_size=batch_size):
        yield where, row, value


def _shortest(value: np.float32) -> float:
    """The shortest decimal that is the same float32: 0.1 rather than 0.10000000149."""
    return float(str(value))


def _label_elsewhere(teacher: CachedTeacher, rows: Sequence[tuple[str, Row]], batch_size: int,
                     engine: str) -> Iterator[tuple[str, Row, float]]:
    """The cache is this machine's: what it lacks is scored by the workers."""
    known = teacher.find(row for _, row in rows)
    new = [row for i, row in enumerate(rows) if i not in known]
    scored = label_rows(teacher.teacher, new, batch_size=batch_size, engine=engine)
    fresh: list[tuple[Row, float]] = []
    try:
        for i, (where, row) in enumerate(rows):
            if i not in known:
                fresh.append((row, next(scored)[2]))
            yield where, row, known[i] if i in known else fresh[-1][1]
            if len(fresh) >= batch_size:
                teacher.keep(fresh)
                fresh = []
    finally:
        teacher.keep(fresh)


def audit(rows: Iterable[Row], *, worst: int = 20) -> dict[str, Any]:
    """Return how a teacher's scores agree with human labels.

    Parameters
    ----------
    rows : iterable of Row
        Those that have both a label and an unsafe-score count.
    worst : int, default 20
        Confident disagreements to list: they are label noise as likely as errors of the teacher.

    Returns
    -------
    dict
        What evaluate.metrics returns at 0.5, "kappa" (Cohen 1960; None where chance agreement is 1) and
        "disagreements": the `worst` of {"row" (from 1, in `rows`), "id", "label", "score"} on the wrong side of 0.5,
        the most confident first. Empty where no row has both.
    """
    judged = [(i + 1, row) for i, row in enumerate(rows) if row.label is not None and row.unsafe_score is not None]
    if not judged:
        return {}
    labels = np.array([row.label for _, row in judged])
    scores = np.array([row.unsafe_score for _, row in judged], dtype=np.float64)
    flagged = scores >= 0.5
    chance = labels.mean() * flagged.mean() + (1 - labels.mean()) * (1 - flagged.mean())
    kappa = None if chance == 1 else float(((labels == flagged).mean() - chance) / (1 - chance))
    wrong = sorted(np.flatnonzero(labels != flagged), key=lambda i: (-abs(scores[i] - labels[i]), i))[:worst]
    return {**metrics(labels, scores), "kappa": kappa,
            "disagreements": [{"row": judged[i][0], "id": judged[i][1].id, "label": int(labels[i]),
                               "score": float(scores[i])} for i in wrong]}


def describe_audit(audit: Mapping[str, Any]) -> str:
    """Return what `audit` found in one line, without a row's text."""
    kappa = "-" if audit["kappa"] is None else f"{audit['kappa']:.3f}"
    return (f"the teacher against {audit['n']} human labels: kappa {kappa}, accuracy {audit['accuracy']:.3f}; it contradicts "
            f"{int(audit['fp'] + audit['fn'])}, label noise as likely as its errors: the report shows them behind a click, the most confident first")


def describe(teacher: Teacher) -> Mapping[str, str]:
    """Return name and licence, as run.json records them."""
    return {"name": teacher.name, "licence": teacher.licence}


def licence_of(folder: Path) -> str:
    """Read the licence out of a model card's front matter: of "other" its license_name, of a list all, "unknown" without one."""
    path, found, name = folder / "README.md", {"license": "", "license_name": ""}, ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    end = lines.index("---", 1) if "---" in lines[1:] else 40
    for line in lines[:end]:
        item = line.strip().removeprefix("- ") if line.lstrip().startswith("- ") else None
        if item is None:
            name, _, item = line.partition(":")
        if name in found:
            found[name] += f",{item.split(' #')[0].strip(' []')}"
    licences, names = ([part.strip(" \"'") for part in text.split(",") if part.strip(" \"'")] for text in found.values())
    return ", ".join((names if licences == ["other"] else licences) or licences) or "unknown"
