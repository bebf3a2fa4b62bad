"""Rows in and out: JSON, JSONL, CSV and Parquet files, gzipped or not, and exact duplicates.

Messages name the file and the line or row, never the text that stands there.
"""
from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from numbers import Number
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from harmaug._C import FormatError

_Line = tuple[int, str]     # its number, from 1
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "safe": 0, "unsafe": 1, "false": 0, "true": 1, "unharmful": 0,
           "harmful": 1, "benign": 0}
_PROVENANCE: dict[str, Any] = {"source": str, "id": (str, int), "seed": int, "generator": str, "license": str}
COLUMNS = ("prompt", "response", "label", "unsafe-score", "soft_label", "category", *_PROVENANCE)


class DataError(ValueError):
    """Bad input rows; the message names the file and the row."""


class RowError(DataError):
    """What a teacher has against row `row` of those that it was given; who knows the row's name puts that instead."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(row, problem)
        self.row, self.problem = row, problem

    def __str__(self) -> str:
        return f"conversation {self.row}: {self.problem}"


@contextlib.contextmanager
def at_row(row: int) -> Iterator[None]:
    """A ValueError within is a RowError."""
    try:
        yield
    except ValueError as error:
        raise RowError(row, str(error)) from None


class Row(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"unsafe_score": "unsafe-score"}):
    """One labelled or unlabelled prompt, alone or with a response.

    Parameters
    ----------
    prompt : str
        What the user says.
    response : str, optional
        What the assistant answers. None and "" both mean that only the prompt is judged.
    label : int, optional
        0 safe, 1 unsafe.
    unsafe_score : float, optional
        The teacher's P(unsafe) in [0, 1]; the column is spelled "unsafe-score".
    soft_label : float, optional
        A target in [0, 1] that goes before unsafe_score.
    category : str, optional
        Harm category.
    source, id, seed, generator, license : optional
        Where the row comes from.
    extra : dict
        Every other column, in its order.
    """

    prompt: str
    response: str | None = None
    label: int | None = None
    unsafe_score: float | None = None
    soft_label: float | None = None
    category: str | None = None
    source: str | None = None
    id: str | int | None = None
    seed: int | None = None
    generator: str | None = None
    license: str | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def target(self) -> float | None:
        """Target of distillation: soft_label, else unsafe_score."""
        return self.unsafe_score if self.soft_label is None else self.soft_label

    @property
    def unknown(self) -> bool:
        """Whether the label is null, which says that it is unknown, rather than left out."""
        return self.label is None and "label" in self.extra

    @property
    def hard_label(self) -> int | None:
        """Hard label: label, else whether unsafe_score (or soft_label, when it is all there is) is over 0.5."""
        if self.label is not None:
            return self.label
        score = self.soft_label if self.unsafe_score is None else self.unsafe_score
        return None if score is None else int(score > 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a flat dict: the known columns that are set, then the extra ones."""
        columns: dict[str, Any] = msgspec.to_builtins(self)
        columns.pop("extra", None)
        for name, value in self.extra.items():      # a label that was null may have been set since
            columns.setdefault(name, value)
        return columns

    @classmethod
    def from_dict(cls, columns: dict[str, Any], where: str = "row") -> Row:
        """Check and convert one row; None and absent columns mean the same, but for a label (see `unknown` and `is_null`).

        Raises
        ------
        DataError
            If the prompt is missing or empty, or a column holds what it may not. It begins with `where`, such as
            "rows.jsonl, line 12".
        """
        get = _object(columns, where).get
        fields: dict[str, Any] = {"prompt": text_of(get("prompt"), "prompt", where)}
        if not fields["prompt"] or fields["prompt"].isspace():
            problem = "prompt is empty" if "prompt" in columns else "column prompt is missing"
            raise DataError(f"{where}: the {problem}")
        fields["response"] = text_of(get("response"), "response", where) or None
        fields["label"] = parse_label(get("label"), where)
        fields["unsafe_score"] = score_of(get("unsafe-score"), "unsafe-score", where)
        fields["soft_label"] = score_of(get("soft_label"), "soft_label", where)
        fields["category"] = text_of(get("category"), "category", where)
        extra = {}
        for name, value in columns.items():
            kinds = _PROVENANCE.get(name)
            if kinds is not None and (value is None or (isinstance(value, kinds) and not isinstance(value, bool))):
                fields[name] = value
            elif kinds is not None or name not in COLUMNS:
                extra[name] = value
            elif name == "label" and fields["label"] is None:
                extra[name] = None
        return cls(**fields, extra=extra)


def parse_label(value: Any, where: str = "row") -> int | None:
    """Return 0, 1 or None for a label: 0/1 of any kind, "safe"/"unsafe", true/false, "harmful"/"unharmful"; else a DataError."""
    if type(value) is int and 0 <= value <= 1:     # by far the most are
        return value
    if is_null(value):
        return None
    if isinstance(value, (Number, np.bool_)) and value in (0, 1):
        return int(value == 1)
    label = _LABELS.get(value.strip().lower()) if isinstance(value, str) else None
    if label is None:
        got = repr(value)[:24] if isinstance(value, (str, int, float)) else _kind(value)
        raise DataError(f'{where}: unknown label {got}; a label is 0 or 1, "safe" or "unsafe", true or false')
    return label


def is_null(value: Any) -> bool:
    """Tell whether a value says nothing: null, blank text, or NaN and NA, which are pandas' nulls."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, Number) and value != value)


def iter_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Yield the rows of a JSON list, JSONL, CSV or Parquet file, gzipped or not; the layout is told from the content.

    JSONL and CSV are streamed. A column that stands twice is an error in CSV and Parquet; of a JSON object the last counts.

    Raises
    ------
    DataError
        On wrong JSON, text that is not UTF-8, an unknown label, an empty prompt, a score outside [0, 1]: with file
        and line (row, in a JSON list). Also when the file is missing or holds no row.
    """
    found = False
    for where, columns in iter_columns(path):
        if not found and "prompt" not in columns:
            raise DataError(f"{where}: the column prompt is missing{_looks_like(columns)}")
        found = True
        yield Row.from_dict(columns, where)
    if not found:
        raise DataError(f"{path}: the set is empty, no rows")


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Return all rows of a file; see iter_rows."""
    return list(iter_rows(path))


def stem(path: str | os.PathLike[str]) -> str:
    """Return a file's name without folder and suffixes of layout and compression."""
    return re.sub(r"\.(jsonl|ndjson|json|csv|tsv|parquet)$", "", Path(path).name.removesuffix(".gz"))


def iter_columns(path: str | os.PathLike[str], *, needs: str = "prompt") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, columns) of each row as it stands in the file, unchecked but for its syntax; see iter_rows.

    A CSV header must hold the column that `needs` names. An empty cell of CSV is None.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            for where, columns in columns_of_stream(raw, name, needs=needs):
                yield where, _object(columns, where, needs)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None


def read_text(path: str | os.PathLike[str]) -> str:
    """Return a text, gzipped or not, without byte order mark; a DataError names a file that is none."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            return "".join(line for _, line in _text_lines(unpacked(raw), name))
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None


def columns_of_stream(raw: IO[bytes], name: str, *, verbatim: bool = False,
                      needs: str = "prompt") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, columns) from an open binary file or pipe; `name` stands for it in messages.

    With `verbatim` the values of JSON rows are msgspec.Raw: their bytes as they stand in the file.
    """
    stream = unpacked(raw)
    with _damage_named(name):
        parquet = stream.peek(4)[:4] == b"PAR1"
        if parquet and not (stream is raw and raw.seekable()):
            stream = io.BytesIO(stream.read())
    if parquet:
        yield from _parquet_columns(stream, name)
        return
    lines = _text_lines(stream, name)
    first = next(((n, line) for n, line in lines if line.strip()), None)
    if first is None:
        return
    head = first[1].lstrip()[0]
    if head == "[":
        text = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines)
        for i, columns in enumerate(decode_json(text, name, list[dict[str, msgspec.Raw]] if verbatim else Any)):
            yield f"{name}, row {i + 1}", columns
    elif head == "{":
        kind = dict[str, msgspec.Raw] if verbatim else Any
        yield f"{name}, line {first[0]}", decode_json(first[1], f"{name}, line {first[0]}", kind)
        for n, line in lines:
            if line.strip():
                yield f"{name}, line {n}", decode_json(line, f"{name}, line {n}", kind)
    elif name.lower().removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson")):
        raise DataError(f"{name}, line {first[0]}: wrong JSON: expected an object or a list of objects")
    else:
        yield from _csv_columns(first, lines, name, needs)


def decode_json(text: str, where: str, kind: Any = Any) -> Any:
    """Decode one JSON value; the DataError of a failure says line and column of a document, column of a line."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as exc:
        if str(exc).startswith("Expected"):
            raise DataError(f"{where}: a row must be an object with a prompt") from None
        problem = str(exc).partition(" - at ")[0].lower()       # number out of range
    except RecursionError:
        raise DataError(f"{where}: wrong JSON: nested too deeply") from None
    except UnicodeError:
        raise DataError(f"{where}: wrong JSON: half of a surrogate pair") from None
    except msgspec.DecodeError as exc:
        problem = str(exc).removeprefix("JSON is malformed: ")
    try:    # the standard library's parser names the place
        json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        place = f"column {exc.colno}" if ", line " in where else f"line {exc.lineno}, column {exc.colno}"
        problem = f"{exc.msg} at {place}"
    except (ValueError, RecursionError) as exc:
        problem = str(exc)
    raise DataError(f"{where}: wrong JSON: {problem}")


def encode_row(row: Row | dict[str, Any]) -> bytes:
    """Return the row as one line of JSONL, newline included."""
    return msgspec.json.encode(row.to_dict() if isinstance(row, Row) else row) + b"\n"


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row | dict[str, Any]]) -> int:
    """Write a JSONL file (gzipped when the name ends in .gz), whole or not at all, and return the number of rows."""
    n = 0
    with atomic_file(path) as file:
        out: Any = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if os.fspath(path).endswith(".gz") else file
        for row in rows:
            out.write(encode_row(row))
            n += 1
        if out is not file:
            out.close()
    return n


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int = 2) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_file(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(value), indent=indent) + b"\n")


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; a FormatError names a file that holds anything else."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: {error}") from None
    if type(value) is not dict:
        raise FormatError(f"{path}: must hold an object")
    return value


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file for writing that takes its name only when the block ends well (mode 0600, same folder)."""
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError as exc:
        if exc.filename in (None, temporary) or temporary is None:     # the name that the user knows
            exc.filename, exc.filename2 = str(path), None
        raise
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def remove_temporaries(folder: Path, names: Iterable[str]) -> None:
    """Remove what kills left half written of files of these names, which nobody may be writing just now."""
    for name in names:
        for left in (*folder.glob(f".{name}.{'[a-z0-9_]' * 8}"), *folder.glob(f"{name}.tmp-[0-9]*")):       # of atomic_file, of the core
            left.unlink()


def normalise(text: str) -> str:
    """Return the text as duplicates are compared: casefolded, runs of white space as one space."""
    return " ".join(text.casefold().split())


def identity(row: Row) -> tuple[str, str]:
    """Return what is the same in duplicate rows: prompt and response, normalised."""
    return normalise(row.prompt), normalise(row.response or "")


def require_labels(rows: Iterable[Row], where: str, *, both: bool = True) -> None:
    """Raise DataError unless every row has a hard label, of 0 or 1 and scores in [0, 1], and (with `both`) both classes occur."""
    classes = set()
    for i, row in enumerate(rows):
        at = f"{where}, row {i + 1}"
        if row.label not in (None, 0, 1):
            raise DataError(f"{at}: a label is 0 or 1, got {repr(row.label)[:24]}")
        score_of(row.unsafe_score, "unsafe-score", at)
        score_of(row.soft_label, "soft_label", at)
        if row.hard_label is None:
            raise DataError(f"{at}: neither a label nor an unsafe-score")
        classes.add(row.hard_label)
    if not both:
        return
    if not classes:
        raise DataError(f"{where}: the set is empty, no rows")
    if len(classes) == 1:
        raise DataError(f"{where}: one class only, every row is {'unsafe' if classes == {1} else 'safe'}")


def unpacked(raw: IO[bytes]) -> Any:
    """Return an open binary file or pipe, or what is gzipped in it."""
    stream: Any = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
    return gzip.GzipFile(fileobj=stream) if stream.peek(2)[:2] == b"\x1f\x8b" else stream


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise DataError(f"{name}: damaged gzip file ({exc})") from None


def _raw_lines(stream: Iterable[bytes], name: str) -> Iterator[bytes]:
    with _damage_named(name):
        yield from stream


def _text_lines(stream: Iterable[bytes], name: str) -> Iterator[_Line]:
    for n, line in enumerate(_raw_lines(stream, name), 1):
        if n == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield n, line.decode("utf-8")
        except UnicodeDecodeError as exc:
            place = f"byte 0x{line[exc.start]:02x} at column {exc.start + 1}"
            raise DataError(f"{name}, line {n}: not UTF-8: {place}") from None


def _parquet_columns(raw: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(f"{name}: Parquet files need pyarrow: pip install 'harmaug[parquet]'") from None
    n = 0
    try:
        file = parquet.ParquetFile(raw)
        _refuse_twice(file.schema_arrow.names, f"{name}: the Parquet file")
        for batch in file.iter_batches(batch_size=1024):
            for columns in _objects(batch, name):
                n += 1
                yield f"{name}, row {n}", columns
    except (ArrowException, OSError) as exc:
        raise DataError(f"{name}: damaged Parquet file ({str(exc).splitlines()[0]})") from None


def _objects(batch: Any, name: str) -> list[dict[str, Any]]:
    """The rows of a batch; a column with a time that Python has no kind for, such as the year 146138, comes as text."""
    from pyarrow import ArrowException

    columns = []
    for column, array in zip(batch.schema.names, batch.columns):
        kind = _in_microseconds(array.type)
        try:
            columns.append((array if kind == array.type else array.cast(kind, safe=False)).to_pylist())
        except (ValueError, OverflowError):
            try:
                columns.append(array.cast("string").to_pylist())
            except ArrowException as exc:
                raise DataError(f"{name}: column {column}: {str(exc).splitlines()[0]}") from None
    return [dict(zip(batch.schema.names, values)) for values in zip(*columns)]


def _in_microseconds(kind: Any) -> Any:
    """The type without nanoseconds, which neither the standard library nor JSON has a kind for."""
    import pyarrow

    types = pyarrow.types
    if getattr(kind, "unit", "") == "ns":
        return (pyarrow.timestamp("us", kind.tz) if types.is_timestamp(kind) else pyarrow.duration("us") if types.is_duration(kind)
                else pyarrow.time64("us"))
    if types.is_list(kind) or types.is_large_list(kind):
        return (pyarrow.list_ if types.is_list(kind) else pyarrow.large_list)(_in_microseconds(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    return kind


def _csv_columns(first: _Line, lines: Iterator[_Line], name: str,
                 needs: str) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = "\t" if "\t" in first[1] and "," not in first[1] else ","
    offset = first[0] - 1
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 28))  # of all readers; texts are longer than the module's 128 KiB
    try:
        reader = csv.reader((line for part in ([first], lines) for _, line in part), delimiter=delimiter, strict=True)
        header = [column.strip() for column in next(reader)]
        if needs not in header:
            raise DataError(f"{name}, line {first[0]}: neither JSON nor a CSV header with the column {needs}"
                            f"{_looks_like(header)}")
        _refuse_twice(header, f"{name}, line {first[0]}: the CSV header")
        start = reader.line_num + 1
        for cells in reader:
            where = f"{name}, line {offset + start}"
            start = reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} cells under a header of {len(header)}")
            yield where, {column: cell or None for column, cell in zip(header, cells) if column or cell}
    except csv.Error as exc:
        raise DataError(f"{name}, line {offset + reader.line_num}: wrong CSV: {exc}") from None


def _refuse_twice(names: list[str], what: str) -> None:
    twice = next((column for column in names if column and names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{what} has the column {twice} twice")


def _looks_like(names: Iterable[str]) -> str:
    from harmaug.datasets import guess

    found = guess(names)
    return f"; these look like columns of {found}: read it with layout {found}" if found else ""


def _object(columns: Any, where: str, needs: str = "prompt") -> dict[str, Any]:
    if not isinstance(columns, dict):
        raise DataError(f"{where}: a row must be an object with a {needs}, got {_kind(columns)}")
    return columns


def text_of(value: Any, name: str, where: str) -> str | None:
    """Return a column's text, None for a null that is no text (see `is_null`); a DataError for anything else."""
    if isinstance(value, str):
        return value
    if not is_null(value):
        raise DataError(f"{where}: {name} must be text, got {_kind(value)}")
    return None


def number_of(value: Any) -> float:
    """Return the number that a cell holds, as number or text; NaN for what is none."""
    try:
        return math.nan if isinstance(value, bool) or (isinstance(value, str) and "_" in value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def score_of(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    score = number_of(value)
    if not 0 <= score <= 1:
        got = repr(value)[:24] if isinstance(value, (str, bool, int, float)) else _kind(value)
        raise DataError(f"{where}: {name} must be a number in [0, 1], got {got}")
    return score


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, Number) else type(value).__name__)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
