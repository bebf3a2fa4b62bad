"""Public sets and foreign layouts: how their columns become rows, where they come from, what their licence is.

``harmaug data list`` tells what is known. Only `fetch` uses the network, and only for a file whose sha256 is known.
"""
from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from harmaug import data
from harmaug.checks import one_of, require_network
from harmaug.data import DataError, Row

__all__ = ["MANIFEST", "DataSet", "Layout", "fetch", "guess", "parse_layout", "read", "resolve"]

UNKNOWN = "unknown"
_LARGEST = 1 << 30      # bytes of a download


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which column of a file is what; columns that no field names are kept as they are.

    Those that have the name of a field of `Row` that another column fills are kept as original_NAME.

    Parameters
    ----------
    prompt : str
    response : str
        Absent columns and "" mean: the prompt alone is judged.
    context : str
        A column that is put behind the prompt, after an empty line, where it is not empty.
    label : str
        "": none of the columns.
    unsafe, safe, unknown : tuple of str
        Patterns of the label's values ("*" stands for any text and, alone, for what no other pattern fits; letter case
        does not count); a value that none fits is an error. All empty: the spellings of `data.parse_label`. Null (see
        `data.is_null`) is unknown.
    any_of : tuple of str
        Instead of label: unsafe when one of these columns is 1; unknown when all are missing.
    votes : tuple of str
        Instead of label: labels of several annotators, of which the majority counts; a tie is unknown.
    score : str
        P(unsafe), of a file of scores (`evaluate.read_scores`).
    category, id : str
        A category that is an object or a list is the names that are true in it. A file without the column of `id` may
        have one that is named id.
    only, without : dict
        Keep the rows whose columns have these values, as Python prints them ("" is null); leave them out.
    nested : str
        The file is one JSON object of lists of rows; the column of this name takes the list's name.
    """

    prompt: str = "prompt"
    response: str = "response"
    context: str = ""
    label: str = "label"
    unsafe: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    score: str = "score"
    category: str = "category"
    id: str = "id"
    only: dict[str, str] = {}
    without: dict[str, str] = {}
    nested: str = ""

    def row(self, columns: Mapping[str, Any], where: str, **known: Any) -> Row | None:
        """Convert one row; None when it is left out. `known` are columns that the file does not hold, such as label."""
        if not self.keeps(columns):
            return None
        if self.prompt not in columns:
            raise DataError(f"{where}: the column {self.prompt} is missing")
        return Row.from_dict(self.renamed(columns, where, **known), where)

    def renamed(self, columns: Mapping[str, Any], where: str, **known: Any) -> dict[str, Any]:
        """Return the columns under the names that `Row.from_dict` takes, the prompt None where the file has none."""
        def get(name: str) -> Any:
            return columns.get(name) if name else None

        prompt = get(self.prompt)
        if prompt is not None and get(self.context):
            prompt = f"{prompt}\n\n{get(self.context)}"
        category = get(self.category)
        if isinstance(category, dict):
            category = ", ".join(name for name, true in category.items() if true is True) or None
        elif isinstance(category, list):
            category = ", ".join(map(str, category)) or None
        identity = self.id if self.id and self.id in columns else "id"
        taken = {self.prompt, self.response, self.context, self.category, identity}
        fields = {"prompt": prompt, "response": get(self.response), "category": category, "id": get(identity), **known}
        if "label" not in known and (self.label or self.any_of or self.votes):
            fields["label"] = self.label_of(columns, where)
            taken |= set() if self.any_of or self.votes else {self.label}
        rest = {f"original_{name}" if name in fields or name == "label" else name: value
                for name, value in columns.items() if name not in taken}
        return rest | fields

    def keeps(self, columns: Mapping[str, Any]) -> bool:
        """Whether `only` and `without` let the row in."""
        return (all(_printed(columns.get(name)) == value for name, value in self.only.items())
                and all(_printed(columns.get(name)) != value for name, value in self.without.items()))

    def label_of(self, columns: Mapping[str, Any], where: str) -> int | None:
        """Return the label of one row, None when it is unknown; a DataError when it is missing or none that is known."""
        if self.any_of or self.votes:
            votes = [vote for name in self.any_of or self.votes
                     if (vote := self._value(columns.get(name), where)) is not None]
            if self.any_of:
                return max(votes, default=None)
            unsafe = 2 * sum(votes) - len(votes)
            return None if unsafe == 0 else int(unsafe > 0)
        if self.label not in columns:
            raise DataError(f"{where}: the column {self.label} is missing")
        return self._value(columns[self.label], where)

    def _value(self, value: Any, where: str) -> int | None:
        if not (self.unsafe or self.safe) or data.is_null(value):
            return data.parse_label(value, where)
        text = str(value).strip().lower()
        whole = re.sub(r"(?<=\d)\.0+$", "", text)
        texts = next(((text, *kind) for kind in _SAME if whole in kind), (text, whole))
        rules = [(pattern.lower(), label) for label, patterns in ((None, self.unknown), (1, self.unsafe), (0, self.safe))
                 for pattern in patterns]
        rules.sort(key=lambda rule: rule[0] == "*")
        for pattern, label in rules:
            if pattern == "*" and text in _NULLS:       # any label: an unknown one is none
                continue
            if any(fnmatchcase(text, re.sub(r"[?[]", r"[\g<0>]", pattern)) for text in texts):
                return label
        if text in _NULLS:
            return None
        raise DataError(f"{where}: unknown label {text[:24]!r}; known are {', '.join((*self.unsafe, *self.safe))}")


_SAME = (("1", "true"), ("0", "false"))         # as CSV, JSON and Parquet write one value
_NULLS = ("nan", "none", "null", "na", "n/a", "<na>")       # as CSV files write them


class DataFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a set; `label` is that of all its rows, `sha256` may be "unknown"."""

    name: str
    sha256: str
    label: int | None = None


class DataSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public set: see data/datasets.toml."""

    name: str
    title: str
    url: str
    revision: str
    files: tuple[DataFile, ...]
    rows: int | Literal["unknown"]
    licence: str
    gated: bool = False
    citation: str
    over_refusal: bool = False
    note: str = ""
    layout: Layout

    def address(self, file: DataFile) -> str:
        """Where a file can be downloaded by hand."""
        from urllib.parse import quote

        return self.url.format(revision=self.revision) + quote(file.name)


def _manifest() -> dict[str, DataSet]:
    text = (resources.files("harmaug") / "data" / "datasets.toml").read_bytes()
    return {entry.name: entry for entry in msgspec.toml.decode(text, type=dict[str, list[DataSet]])["dataset"]}


MANIFEST = _manifest()


def _printed(value: Any) -> str:
    return "" if value is None else str(value)


def parse_layout(text: str) -> Layout:
    """Parse "prompt=text,label=toxic,unsafe=yes|maybe": fields of `Layout`, "|" between the items of a list."""
    fields: dict[str, Any] = {}
    kinds = {field: kind for field, kind in Layout.__annotations__.items() if "dict" not in kind}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"columns must read FIELD=COLUMN,..., got {part!r}")
        name = one_of("a column mapping's field", name.strip(), kinds)
        if name in fields:
            raise ValueError(f"columns name the field {name} twice")
        fields[name] = tuple(map(str.strip, value.split("|"))) if "tuple" in kinds[name] else value.strip()
    return Layout(**fields)


def read(path: str | os.PathLike[str], layout: str | Layout | None = None) -> list[Row]:
    """Read the rows of a file in a layout: JSON, JSONL, CSV or Parquet, gzipped or not.

    Parameters
    ----------
    path : path
    layout : str or Layout, optional
        The name of a set in `MANIFEST`, whose licence its rows then carry, or a mapping, as `parse_layout` takes it too.
        None: harmaug's own.

    Raises
    ------
    DataError
        Naming file and row.
    """
    if layout is None:
        return data.read_rows(path)
    if isinstance(layout, str) and "=" in layout:
        layout = parse_layout(layout)
    known = known_of(path, layout) if isinstance(layout, str) else {}
    form = MANIFEST[layout].layout if isinstance(layout, str) else layout
    rows, seen = [], set[str]()
    for where, columns in _columns(path, form):
        seen.update(columns)
        if (row := form.row(columns, where, **known)) is not None:
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: the set is empty, no rows")
    check_columns(path, layout, seen)
    return rows


def check_columns(path: str | os.PathLike[str], layout: str | Layout, seen: Collection[str],
                  fields: Iterable[str] = ("response", "context", "category")) -> None:
    """Raise DataError for columns that a layout names and no row of a file has, `seen` being those that there are.

    A mapping needs all for the label and the `fields`; a set of the manifest needs one column for the label, as its files vary.
    """
    form = MANIFEST[layout].layout if isinstance(layout, str) else layout
    wanted = [*form.any_of, *form.votes]
    if isinstance(layout, str):
        lacking = wanted if not set(wanted) & set(seen) else []
    else:
        wanted += [getattr(form, field) for field in fields if getattr(form, field) not in ("", getattr(Layout(), field))]
        lacking = [name for name in wanted if name not in seen]
    if lacking:
        raise DataError(f"{path}: the layout names what no row has: {', '.join(lacking)}")


def known_of(path: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """Return the columns that the manifest knows of a set's file: source, licence, and the label where the file tells it."""
    entry = MANIFEST[one_of("layout", name, MANIFEST)]
    known: dict[str, Any] = {"source": entry.name, "license": entry.licence}
    labels = {data.stem(file.name): file.label for file in entry.files if file.label is not None}
    if len(set(labels.values())) == 1:
        known["label"] = min(labels.values())
    elif data.stem(path) in labels:
        known["label"] = labels[data.stem(path)]
    elif labels:
        names = ", ".join(Path(file.name).name for file in entry.files)
        raise DataError(f"{path}: the label of {entry.name} is told by the file's name, one of {names}")
    return known


def count(path: str | os.PathLike[str], layout: Layout) -> int:
    """Return the number of a file's rows, with those that the layout leaves out."""
    return sum(1 for _ in _columns(path, layout))


def guess(names: Iterable[str]) -> str | None:
    """Return the set that files with these columns seem to be of, or None."""
    found, best = set(names), (0, "")
    for entry in MANIFEST.values():
        form = entry.layout
        own = {form.prompt, form.response, form.context, form.label, form.category, form.id, *form.any_of, *form.votes}
        own -= {"", *Row.__struct_fields__}
        if own and own <= found:
            best = max(best, (len(own), entry.name))
    return best[1] or None


def folder() -> Path:
    """Return the folder of fetched sets: HARMAUG_DATA, else in the user's cache folder."""
    from harmaug.models import cache_folder, expanded

    chosen = os.environ.get("HARMAUG_DATA")
    cache = cache_folder()
    if not chosen and cache is None:
        raise DataError("no folder for data sets: HARMAUG_CACHE is empty; set HARMAUG_DATA")
    return expanded(chosen, "HARMAUG_DATA") if chosen else cache / "data"      # type: ignore[operator]


def resolve(name: str | os.PathLike[str]) -> Path:
    """Return the file of a path, or of a fetched set by its name."""
    path = Path(name)
    if path.is_file() or os.fspath(name) not in MANIFEST:
        return path
    fetched = folder() / f"{name}.jsonl"
    if not fetched.exists():
        raise DataError(f"{name}: no such file; the set of this name is not here: harmaug data fetch {name}")
    return fetched


def fetch(name: str, source: str | os.PathLike[str] | None = None, *,
          tell: Callable[[str], None] = lambda line: None) -> Path:
    """Convert a set into rows that every command reads, and return their file.

    Parameters
    ----------
    name : str
    source : path, optional
        A folder with the set's files, under their whole names or the last part. None: download them.
    tell : callable
        Gets lines that a person reads: source, licence, the files' sha256, counts.

    Raises
    ------
    DataError
        For a download whose sha256 is not known or not met, a file that is missing, or another number of rows than the
        set has.
    """
    entry = MANIFEST[one_of("data set", name, MANIFEST)]
    if source is not None and not Path(source).is_dir():
        raise DataError(f"{source}: not a folder")
    tell(f"{entry.name}: {entry.title}; {entry.url.format(revision=entry.revision)}")
    tell(f"licence {entry.licence}; cite {entry.citation}")
    target = folder() / f"{name}.jsonl"
    with tempfile.TemporaryDirectory(prefix="harmaug-data-") as temporary:
        paths = [_find(entry, file, Path(source)) if source is not None else _download(entry, file, Path(temporary))
                 for file in entry.files]
        digests = {file.name: _sha256(path) for file, path in zip(entry.files, paths)}
        for file in entry.files:
            known = "as on record" if file.sha256 != UNKNOWN else "none is on record to compare it with"
            tell(f"{file.name}: sha256 {digests[file.name]}, {known}")
        n = sum(count(path, entry.layout) for path in paths)
        if entry.rows not in (UNKNOWN, n):
            raise DataError(f"{', '.join(map(str, paths))}: {n} rows, {name} has {entry.rows}")
        rows = [row for path in paths for row in read(path, name)]
        about = {"name": name, "licence": entry.licence, "citation": entry.citation, "revision": entry.revision,
                 "files": digests, "rows": len(rows),
                 "left_out": n - len(rows), "unsafe": sum(row.label == 1 for row in rows),
                 "unknown": sum(row.label is None for row in rows)}
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data.write_rows(target, rows)
    data.write_json(target.with_suffix(".about.json"), about)
    tell(f"{len(rows)} rows, {about['unsafe']} unsafe, {about['unknown']} unknown, {about['left_out']} left out: {target}")
    return target


def _columns(path: str | os.PathLike[str], layout: Layout, needs: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if not layout.nested:
        yield from data.iter_columns(path, needs=needs or layout.prompt)
        return
    lists = data.decode_json(data.read_text(path), os.fspath(path))
    if not isinstance(lists, dict):
        raise DataError(f"{path}: must hold one object of lists of rows")
    for name, rows in lists.items():
        for i, row in enumerate(rows if isinstance(rows, list) else [rows]):
            where = f"{path}, {name}, row {i + 1}"
            if not isinstance(row, dict):
                raise DataError(f"{where}: a row must be an object")
            yield where, {**row, layout.nested: name}


def _find(entry: DataSet, file: DataFile, source: Path) -> Path:
    for path in (source / file.name, source / Path(file.name).name):
        if path.is_file():
            if file.sha256 not in (UNKNOWN, _sha256(path)):
                raise DataError(f"{path}: sha256 {_sha256(path)}, {entry.name} has {file.sha256}")
            return path
    raise DataError(f"{source}: has no {Path(file.name).name}; it comes from {entry.address(file)}")


def _download(entry: DataSet, file: DataFile, target: Path) -> Path:
    from http.client import HTTPException
    from urllib.request import urlopen

    by_hand = f"download {entry.address(file)} by hand, then: harmaug data fetch {entry.name} --from DIR"
    if entry.gated:
        raise DataError(f"{entry.name}: its owner asks to accept terms first; {by_hand}")
    if file.sha256 == UNKNOWN:
        raise DataError(f"{entry.name}: no sha256 is on record to check a download against; {by_hand}")
    require_network(f"the download of {entry.name}")
    path, digest, size = target / Path(file.name).name, hashlib.sha256(), 0
    try:
        with urlopen(entry.address(file), timeout=60) as stream, open(path, "wb") as out:
            while block := stream.read(1 << 20):
                size += len(block)
                if size > _LARGEST:
                    raise DataError(f"{entry.address(file)}: more than {_LARGEST} bytes")
                digest.update(block)
                out.write(block)
    except (OSError, HTTPException) as error:
        raise DataError(f"{entry.name}: the download failed ({error}); {by_hand}") from None
    if digest.hexdigest() != file.sha256:
        raise DataError(f"{entry.address(file)}: sha256 {digest.hexdigest()}, expected {file.sha256}")
    return path


def _sha256(path: Path) -> str:
    from harmaug.runs import sha256

    return sha256(path)
