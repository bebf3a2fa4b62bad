"""Run folders: append-only row files that survive kill -9, run.json, and the lock that keeps a second process out.

Every row of a stage carries its ``key``, counted from 0 without a gap over the stage's files. A row is one write, so a
crash leaves at most one torn last line; opening the stage again cuts it away and goes on with the next key.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from harmaug import data
from harmaug._C import FormatError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
Kind = type | tuple[str, ...]
"""What a column of a journal holds: a type, or one of these values."""

SCHEMA_VERSION = 1
GUARD_FILES = ("model.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer_config.json", "tfidf.json", "log.csv",
               "README.md")
"""What is written into a guard's folder, whole or not at all, under a run's lock alone: not so thresholds.json."""
_WRITTEN = ("NOTICE", "run.json", "metrics.json", "diversity.json", "scores.jsonl", "summary.jsonl", "continual.json", "frontier.json", "frontier.csv")
_SAVE_EVERY = 5.0       # seconds between two rewrites of run.json while a stage runs
_NOTICE = """\
This folder belongs to a run of harmaug. Its rows are instructions and responses to train and to test safety guards with.
MANY OF THEM ARE HARMFUL. Those that name a generator were invented by it, and no person has checked them.

Use them for that purpose only. Do not publish them, follow them or show them to people who did not ask for it, and
delete the folder when it is no longer needed.
"""


class RunError(ValueError):
    """A run folder cannot be used as asked; the message says which and why."""


class RowFile:
    """An append-only JSONL file of one stage, made (mode 0600) when absent; a torn last line is cut away."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size
        end = self._size
        for begin, line in self._lines():
            if not line.endswith(b"\n") or (begin + len(line) == self._size and not _is_object(line)):
                end = begin
        if end != self._size:
            _log.warning("%s: cut away %d bytes of a torn last line", self.path, self._size - end)
            self.cut(end)

    def rows(self, needs: Mapping[str, Kind] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset of its line, row) of every row; a DataError names a line that is damaged or lacks what it needs."""
        for n, (begin, line) in enumerate(self._lines(), 1):
            where = f"{self.path}, line {n}"
            try:
                row = data.decode_json(line.decode("utf-8"), where)
            except UnicodeDecodeError:
                raise data.DataError(f"{where}: not UTF-8") from None
            if not isinstance(row, dict):
                raise data.DataError(f"{where}: wrong JSON: expected an object")
            for name, kind in (needs or {}).items():
                if not (row.get(name) in kind if isinstance(kind, tuple) else isinstance(row.get(name), kind)):
                    raise data.DataError(f"{where}: {name} is missing or wrong; harmaug did not write this row")
            yield begin, row

    def append(self, row: data.Row | Mapping[str, Any]) -> None:
        """Write one row with one system call; when that fails (a full disk), the file ends with the row before."""
        line = data.encode_row(row if isinstance(row, data.Row) else dict(row))
        try:
            written = os.write(self._file, line)
            while written < len(line):      # a nearly full disk takes a part, and says why on the next write
                written += os.write(self._file, line[written:])
        except OSError as exc:
            self.cut(self._size)
            exc.filename = exc.filename or str(self.path)
            raise
        self._size += len(line)

    def cut(self, size: int) -> None:
        """Shorten the file to a size in bytes."""
        os.ftruncate(self._file, size)
        self._size = size

    def close(self) -> None:
        """Close the file; twice does no harm."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        begin = 0
        with open(self.path, "rb") as file:
            for line in file:
                yield begin, line
                begin += len(line)


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The rows of one stage, in two files under one count of keys: those that it keeps, and those that it rejects.

    Parameters
    ----------
    kept, rejected : path
        Keys ascend within each file and together are 0, 1, 2, ... without a gap; rows after a gap (a machine lost power
        and one file's tail) are cut away, to be made again.
    needs : sequence of mapping
        For each of the files what its rows must hold: column to type, or to the values that there are.

    Attributes
    ----------
    next_key : int
        The key of the row to be made next.
    kept_rows, rejected_rows : list of dict
        What was there when the journal was opened.
    """

    def __init__(self, kept: str | os.PathLike[str], rejected: str | os.PathLike[str] | None = None, *,
                 needs: Sequence[Mapping[str, Kind]] = ({}, {})) -> None:
        self._files = [RowFile(path) for path in (kept, rejected) if path is not None]
        try:
            found = sorted((self._key(file, row), i, begin, row)
                           for i, file in enumerate(self._files) for begin, row in file.rows(needs[i]))
        except BaseException:
            self.close()
            raise
        good = next((i for i, (key, *_) in enumerate(found) if key != i), len(found))
        for _, i, begin, _ in reversed(found[good:]):
            self._files[i].cut(begin)
        if good < len(found):
            _log.warning("%s: %d rows after a gap are made again", self._files[0].path, len(found) - good)
        self.next_key = good
        self.kept_rows: list[dict[str, Any]] = [row for _, i, _, row in found[:good] if i == 0]
        self.rejected_rows: list[dict[str, Any]] = [row for _, i, _, row in found[:good] if i == 1]

    @staticmethod
    def _key(file: RowFile, row: dict[str, Any]) -> int:
        key = row.get("key")
        if not isinstance(key, int) or isinstance(key, bool):
            raise RunError(f"{file.path}: a row lacks its key; the file was not written by this stage")
        return key

    def append(self, row: data.Row | Mapping[str, Any], *, kept: bool = True) -> None:
        """Write the row of key `next_key`, which must stand in it."""
        key = row.extra["key"] if isinstance(row, data.Row) else row["key"]
        assert key == self.next_key, (key, self.next_key)
        self._files[0 if kept else 1].append(row)
        self.next_key += 1

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class _Told(msgspec.Struct, kw_only=True):
    """What is relied on in a stage's entry of run.json by who reads about it."""

    done: bool = False
    account: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    seconds: float | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.done and msgspec.UNSET in (self.account, self.seconds):
            raise ValueError("a stage that is done lacks its account or seconds")


class _Entry(_Told, kw_only=True):
    """And by who goes on with it."""

    config: dict[str, Any]
    inputs: dict[str, Any]
    made_by: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]


class _Begun(msgspec.Struct, kw_only=True):
    """What `pipeline.run_config` writes of its configuration."""

    tables: dict[str, dict[str, Any]]
    where: str
    data: str
    seed: int | None


class _Info(msgspec.Struct, kw_only=True):
    schema_version: int
    stages: Mapping[str, _Told]
    config: _Begun | None = None


class _Resumable(_Info, kw_only=True):
    stages: Mapping[str, _Entry]


class Stage:
    """One stage's entry in run.json; made by `RunFolder.stage`."""

    def __init__(self, run: RunFolder, entry: dict[str, Any], stamp: dict[str, Any]) -> None:
        self._run, self.entry, self.stamp = run, entry, stamp
        self._begun, self._before = time.monotonic(), float(entry.get("seconds", 0.0))
        self._saved = self._begun

    @property
    def done(self) -> bool:
        """Whether the stage ran to its end."""
        return bool(self.entry.get("done"))

    def account(self, account: Mapping[str, Any], *, done: bool = False) -> None:
        """Set the stage's yield account; run.json is rewritten now and then, and when the stage is done."""
        now = time.monotonic()
        self.entry["account"] = dict(account)
        self.entry["seconds"] = round(self._before + now - self._begun, 3)
        self.entry["done"] = done
        if done or now - self._saved >= _SAVE_EVERY:
            self._saved = now
            self._run.save()


class RunFolder(contextlib.AbstractContextManager["RunFolder"]):
    """A run folder, held under a lock while it is open.

    Parameters
    ----------
    path : path
        Made (mode 0700, with a NOTICE) when absent. An existing folder that is not empty must be a run folder.
    allow_mixed : bool, default False
        Go on with a stage that another instruction set, version or model began; each row then carries which.

    Raises
    ------
    RunError
        If another process holds it, or it is something else.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_mixed: bool = False) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = {}
        self.allow_mixed = allow_mixed
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: not a folder")
        fresh = not self.path.is_dir() or not os.listdir(self.path)
        if not fresh and not {"run.json", "lock"} & set(os.listdir(self.path)):
            raise RunError(f"{self.path}: not a run folder: it has files but no run.json")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if fresh:
            self.path.chmod(0o700)
        self._lock = self._take_lock()
        try:
            data.remove_temporaries(self.path, _WRITTEN)
            for guard in (*self.path.glob("guard*"), *self.path.glob("students/*")):
                data.remove_temporaries(guard, GUARD_FILES)
            if not (self.path / "NOTICE").exists():
                with data.atomic_file(self.path / "NOTICE") as file:
                    file.write(_NOTICE.encode())
            begun = (self.path / "run.json").exists()
            new = {"schema_version": SCHEMA_VERSION, "machine": machine(), "stages": {}}
            self.info = read_info(self.path, _Resumable) if begun else new
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        stages = (f"{name}{'' if entry.get('done') else ' (not finished)'}" for name, entry in self.info["stages"].items())
        return f"<run folder {os.fspath(self.path)}: {', '.join(stages) or 'no stage yet'}>"

    def _repr_html_(self) -> str:
        from harmaug.report import Table, costs

        return Table(costs(self.info["stages"]), [repr(self).strip("<>")])._repr_html_()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write run.json once more and give up the lock."""
        if self._lock >= 0:
            try:
                if self.info:
                    self.save()
            except OSError:
                if sys.exc_info()[0] is None:
                    raise
            finally:
                os.close(self._lock)
                self._lock = -1

    def accounts(self) -> dict[str, Any]:
        """Return seconds and yield account of each stage."""
        return {name: {"seconds": entry.get("seconds"), "account": entry.get("account")}
                for name, entry in self.info["stages"].items()}

    def save(self) -> None:
        """Rewrite run.json, whole or not at all."""
        data.write_json(self.path / "run.json", self.info, indent=1)

    def stage(self, name: str, *, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None,
              models: Mapping[str, str] | None = None, restart: bool = False, makes: Iterable[str] = (),
              defaults: Mapping[str, Any] | None = None) -> Stage:
        """Begin or resume a stage.

        Parameters
        ----------
        name : str
            Its key in run.json.
        config : mapping
            The settings that decide the rows; a stage cannot go on under others.
        inputs, models : mapping, optional
            Name to sha256.
        restart : bool, default False
            Forget an earlier entry: the stage is done anew each time.
        makes : iterable of str
            Files of the run folder. While all are absent or empty, the stage may begin anew with other settings.
        defaults : mapping, optional
            What settings were that a recorded configuration lacks, since an older version did not know them.

        Raises
        ------
        RunError
            If the stage was begun with other settings or inputs, or, unless allow_mixed, by another instruction set,
            version or model.
        """
        here = machine()
        now: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"config": config, "inputs": inputs or {}, "defaults": defaults or {}}))
        older = now.pop("defaults")
        made_by = {"harmaug": here["harmaug"], "cpu_isa": here["cpu_isa"], "models": dict(models or {})}
        files = [self.path / file for file in makes]
        entry = self.info["stages"].get(name, {})
        nothing_made = files and not entry.get("done") and not any(p.exists() and p.stat().st_size for p in files)
        if restart or nothing_made:
            self.info["stages"].pop(name, None)
        entry = self.info["stages"].setdefault(name, {**now, "made_by": [made_by], "done": False})
        for part, before in (("config", {**older, **entry["config"]}), ("inputs", entry["inputs"])):
            changed = changes(before, now[part])
            if changed:
                raise RunError(f"{self.path}: stage {name} was begun with another {changed}; "
                               "take them back or use another run folder")
        if made_by not in entry["made_by"] and not entry["done"]:
            if not self.allow_mixed:
                changed = changes(entry["made_by"][-1], made_by)
                raise RunError(f"{self.path}: stage {name} was begun with another {changed}, so its rows would not be "
                               "one machine's; --allow-mixed goes on all the same and marks each row")
            entry["made_by"].append(made_by)
        self.save()
        mixed = len(entry["made_by"]) > 1
        return Stage(self, entry, {"made_by": {**made_by, "models": list(made_by["models"].values())}} if mixed else {})

    def _take_lock(self) -> int:
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
                os.close(lock)
                which = f" (pid {holder})" if holder else ""
                raise RunError(f"{self.path}: in use by another process{which}") from None
            _log.warning("%s: this file system has no locks; see to it that no second process writes here", self.path)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock


def read_info(folder: Path, kind: type[_Info] = _Info) -> dict[str, Any]:
    """Return what run.json of a folder holds; a RunError names it when it is damaged."""
    path = folder / "run.json"
    try:
        info = data.read_object(path)
        version = info.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise RunError(f"{path}: schema_version {version}, this version reads {SCHEMA_VERSION}")
        msgspec.convert(info, kind)
    except FormatError:
        raise RunError(f"{path}: damaged; the rows beside it are whole") from None
    except msgspec.ValidationError as error:
        raise RunError(f"{path}: damaged ({error}); the rows beside it are whole") from None
    return info


def machine() -> dict[str, Any]:
    """Return what decides whether rows can be made again bit for bit, and what a reader of run.json wants to know."""
    from harmaug import _C, versions

    packages = {name: versions.release(name) or "source" for name in ("harmaug", "numpy", "msgspec")}
    return {**packages, "python": platform.python_version(), "platform": platform.platform(),
            "cpu_isa": _C.build_info()["cpu_isa"]}


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, or of a folder: that of the names and sha256 of its files."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    else:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def shows_bars() -> bool:
    """Return whether somebody sees a progress bar: on a terminal, in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(items: Iterable[_T], total: int, title: str, *, begun: int = 0, quiet: bool = False) -> Iterator[_T]:
    """Yield the items behind a progress bar where one is seen, with a log line now and then elsewhere."""
    if not quiet and shows_bars():
        from tqdm.auto import tqdm

        yield from tqdm(items, total=total, initial=begun, desc=title, unit=" rows", mininterval=0.3)
        return
    last = time.monotonic()
    for n, item in enumerate(items, begun + 1):
        yield item
        if time.monotonic() - last > 30:
            last = time.monotonic()
            _log.info("%s: %d of %d", title, n, total)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def changes(before: Any, after: Any) -> str:
    """Name what differs, with short values."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]

    def short(value: Any) -> str:
        return value[:12] if isinstance(value, str) else str(value)[:40]

    return ", ".join(f"{name} (then {short(before.get(name))}, now {short(after.get(name))})" for name in names)
