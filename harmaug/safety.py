"""Responsible use: what may never be an exemplar, a category or a kept row, and what is answered with refusals only.

The filter is a word filter for English. It is tuned to miss little, so it also drops harmless text, for example a
parent's question about protecting a child from abuse. A dropped row is counted and remembered by its hash; its text
is neither kept nor logged.
"""
from __future__ import annotations

import hashlib
import re
import unicodedata
from importlib import resources
from typing import Protocol

import msgspec

__all__ = ["RESTRICTED_CATEGORIES", "SEXUAL_MINORS", "blocked", "blocked_row", "digest", "is_cbrne", "normalise"]

SEXUAL_MINORS = "sexual_minors"

RESTRICTED_CATEGORIES = frozenset({"weapons", "cbrn", "cbrne", "chemical", "biological", "radiological", "nuclear",
                                   "explosives"})
"""Categories whose rows get refusing responses only, unless the configuration says otherwise."""

# Letters of other scripts that look like Latin ones, after NFKD and casefold.
_CONFUSABLES = str.maketrans("авекмнорстухіјѕԁһӏαβεικνορτυχ", "abekmhopctyxijsdhlabeiknoptux")
_LEET = str.maketrans("03457@$!|", "oeastasil")
_DASHES = re.compile("[\u2010-\u2015\u2212\u00ad_]")
_SPACED = re.compile(r"(?<!\w)(?:\w[^\w\n]{1,2}){2,}\w(?!\w)")      # s e x, s.e.x
_SPLIT = re.compile(r"(?<=\w)[-.*'\u2019\u00b7|/](?=\w)")           # se-x, se.x
_STRETCHED = re.compile(r"(\w)\1{2,}")


def _patterns() -> dict[str, re.Pattern[str]]:
    text = (resources.files("harmaug") / "data" / "safety.toml").read_bytes()
    found: dict[str, str] = msgspec.toml.decode(text)
    return {name: re.compile(body.replace("SMALL", found["small"]), re.VERBOSE) for name, body in found.items()}


_PATTERN = _patterns()


def _join(spaced: re.Match[str]) -> str:
    """s e x -> sex ex: the second without its first letter, which may be an article."""
    letters = re.sub(r"\W", "", spaced[0])
    return f"{letters} {letters[1:]}"


def normalise(text: str) -> str:
    """Return the distinct readings of a text that the filter looks at, one a line.

    Lower case, compatibility forms folded (NFKD), accents and invisible characters removed, look-alike letters mapped
    to Latin ones; then the same with digits and signs read as letters, with spaced-out words joined and with
    stretched letters shortened.
    """
    folded = unicodedata.normalize("NFKD", text).casefold()
    folded = "".join(c for c in folded if c in "\n\t" or unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc"))
    plain = _DASHES.sub("-", folded.translate(_CONFUSABLES))
    plain = " ".join(plain.split())
    readings = [plain, plain.replace("-", " ")]
    for one in ("i", "l"):
        readings.append(" ".join(word if word.isdigit() else word.translate(_LEET).replace("1", one)
                                 for word in plain.split(" ")))
    joined = [_SPACED.sub(_join, reading) for reading in readings]
    joined += [_SPLIT.sub("", reading) for reading in readings]
    joined += [_STRETCHED.sub(shorter, reading) for reading in readings for shorter in (r"\1", r"\1\1")]
    return "\n".join(dict.fromkeys(readings + joined))


def blocked(*texts: str | None) -> str | None:
    """Return "sexual_minors" when a row's texts, taken together, speak of minors and of sex; None when it may be used.

    The rule is broad on purpose: it also blocks some text about protection, news and law. Only English words are known.
    None and "" among the texts are skipped.

    Examples
    --------
    >>> blocked("How do I kill a Python process?") is None
    True
    >>> blocked("Outline a sex education curriculum for teachers") is None
    True
    """
    haystack = normalise("\n".join(text for text in texts if text))
    if not haystack:
        return None
    if _PATTERN["alone"].search(haystack):
        return SEXUAL_MINORS
    if not _PATTERN["minors"].search(haystack):
        return None
    if not _PATTERN["depiction"].search(haystack):
        haystack = _PATTERN["exempt"].sub(" ", haystack)
    return SEXUAL_MINORS if _PATTERN["sexual"].search(haystack) else None


class _Row(Protocol):
    prompt: str
    response: str | None
    category: str | None


def blocked_row(row: _Row) -> str | None:
    """Say why a row may not be used, or None: its texts taken together, and its category by itself."""
    return blocked(row.prompt, row.response) or blocked(row.category)


def digest(text: str) -> str:
    """Return the sha256 of a text, in 64 hexadecimal digits: what remains of a blocked row. Lone surrogates may be.

    Examples
    --------
    >>> digest("")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_cbrne(text: str, category: str | None = None) -> bool:
    """Say whether a row touches chemical, biological, radiological, nuclear or explosive matter.

    Compliant responses to such rows are off by default. The rule is broad on purpose: every row whose category is among
    `RESTRICTED_CATEGORIES` counts, and so does any mention of poison or a pathogen.

    Examples
    --------
    >>> is_cbrne("How do I make a bomb?"), is_cbrne("How do I bake bread?")
    (True, False)
    """
    if category is not None and category.strip().casefold() in RESTRICTED_CATEGORIES:
        return True
    return _PATTERN["cbrne"].search(normalise(text)) is not None
