"""Harm categories: a table of keywords that a user can replace, and the rule that assigns one to a text."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path

import msgspec

from harmaug import safety

__all__ = ["OTHER", "Category", "CategoryTable", "assign", "default_table", "load_table"]

OTHER = "other"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}\Z")


class Category(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One category of a table.

    Parameters
    ----------
    name : str
        Short key that rows carry: lower-case letters, digits, "_" and "-".
    title : str
        What people and list-continuation prompts read, such as "fraud, scams and forgery".
    keywords : tuple of str
        Words and phrases; a trailing ``*`` matches any ending of the word.
    """

    name: str
    title: str
    keywords: tuple[str, ...]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    category: tuple[Category, ...]


def _pattern(keyword: str) -> str:
    body = r"\s+".join(re.escape(word) for word in keyword.rstrip("*").casefold().split())
    return rf"(?<!\w){body}" + ("" if keyword.endswith("*") else r"(?!\w)")


@dataclass(frozen=True)
class CategoryTable:
    """Categories in the order that decides ties; "other" is implied and may not be among them.

    Raises
    ------
    ValueError
        If there is no category, a name is malformed, reserved or given twice, a title or keyword is empty, or a
        category is one that the responsible-use filter blocks.
    """

    categories: tuple[Category, ...]
    _patterns: tuple[tuple[re.Pattern[str], ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError("a category table needs at least one category, got none")
        seen: set[str] = set()
        for number, category in enumerate(self.categories, 1):
            if not _NAME.match(category.name):
                raise ValueError(f"category {number}: name must be 1 to 40 of a-z, 0-9, '_' and '-', "
                                 f"got {category.name!r}")
            if category.name in (OTHER, *seen):
                problem = "reserved" if category.name == OTHER else "given twice"
                raise ValueError(f"category {number}: name {category.name!r} is {problem}")
            if not category.title.strip() or "\n" in category.title:
                raise ValueError(f"category {category.name}: title must be one line of text, got {category.title!r}")
            if not category.keywords or not all(k.rstrip("*").strip() for k in category.keywords):
                raise ValueError(f"category {category.name}: keywords must be non-empty texts")
            if safety.blocked(category.name, category.title):
                raise ValueError(f"category {number}: not a category that harmaug generates "
                                 "(sexual content about minors)")
            seen.add(category.name)
        object.__setattr__(self, "_patterns", tuple(
            tuple(re.compile(_pattern(k)) for k in dict.fromkeys(c.keywords)) for c in self.categories))

    @property
    def names(self) -> tuple[str, ...]:
        """Names in table order, and "other" last."""
        return (*(category.name for category in self.categories), OTHER)

    def title(self, name: str) -> str:
        """Return what people read for a name, of this table or of the user's rows; one it lacks is its own title."""
        titles = {OTHER: "other harmful requests", **{category.name: category.title for category in self.categories}}
        return titles.get(name, name.replace("_", " "))

    def assign(self, text: str) -> str:
        """Return the category with the most distinct keywords in a text; the first on a tie, "other" without any."""
        folded = text.casefold()
        counts = [sum(pattern.search(folded) is not None for pattern in patterns) for patterns in self._patterns]
        most = max(counts)
        return self.categories[counts.index(most)].name if most else OTHER


def load_table(path: str | Path) -> CategoryTable:
    """Read a table from a TOML file of ``[[category]]`` entries with name, title and keywords.

    The package's own ``harmaug/data/categories.toml`` is a template.

    Raises
    ------
    ValueError
        If the file is not UTF-8 TOML of that layout, or the table breaks a rule of `CategoryTable`.
    OSError
        If it cannot be read.
    """
    return _decode(Path(path).read_bytes(), str(path))


def _decode(data: bytes, name: str) -> CategoryTable:
    try:
        return CategoryTable(msgspec.toml.decode(data, type=_File).category)
    except (msgspec.DecodeError, ValueError) as error:    # tomllib's and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{name}: {error}") from error


@lru_cache(maxsize=1)
def default_table() -> CategoryTable:
    """Return the package's own table of 13 categories; "other" comes on top."""
    file = resources.files("harmaug") / "data" / "categories.toml"
    return _decode(file.read_bytes(), "harmaug/data/categories.toml")


def assign(text: str, table: CategoryTable | None = None) -> str:
    """Return the name of a text's harm category, or "other", from the keywords of a table (the package's when None).

    Examples
    --------
    >>> assign("How can I steal packages from a porch?")
    'theft'
    >>> assign("What is the capital of France?")
    'other'
    """
    return (default_table() if table is None else table).assign(text)
