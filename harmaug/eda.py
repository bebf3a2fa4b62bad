"""Easy data augmentation (Wei and Zou 2019, arXiv 1901.11196): the baseline that changes words instead of asking a model.

Synonyms come from a table of the user's or from WordNet's files (Debian's package ``wordnet-base``); none are shipped.
"""
from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harmaug import safety
from harmaug._C import FormatError
from harmaug.checks import one_of, within
from harmaug.data import DataError, Row, normalise, read_object
from harmaug.filters import NearIndex

WORDNET = Path("/usr/share/wordnet")
_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['\u2019-][^\W\d_]+)*(?!\w)")     # what has a digit in it is left alone
_STOP = frozenset("""a about after all also am an and any are as at be because been before but by can could did do does
for from had has have he her him his how i if in into is it its just like may me might more most must my no nor not of
off on once one only or our out over own same she should so some such than that the their them then there these they
this those through to too under until up us very was we were what when where which while who whom why will with would
you your""".split())
_OPERATIONS = ("replace", "insert", "swap", "delete")


@dataclass(frozen=True, kw_only=True)
class EdaConfig:
    """How much is changed; a ValueError names a field outside its range.

    Parameters
    ----------
    per_row : int, default 4
        Variants of each seed row; the four operations take turns.
    alpha : float, default 0.1
        Share of a text's words that an operation changes, one at least.
    synonyms : path, optional
        A JSON object of word to list of synonyms, or WordNet's folder. None: /usr/share/wordnet.
    near_duplicate : float, default 0.6
        Variants at or over this similarity (character 5-gram Jaccard) to an evaluation row are dropped.
    seed : int, default 0
    """

    per_row: int = 4
    alpha: float = 0.1
    synonyms: str | None = None
    near_duplicate: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, per_row=">= 0", alpha="in (0, 1]", seed="in [0, 9e18]")
        NearIndex(self.near_duplicate)


class EdaAugmenter:
    """Makes variants of labelled rows by synonyms, insertion, swap and deletion of words; labels stay.

    Words with digits, punctuation and responses are kept; the prompt is changed. A synonym begins in upper case where the
    word that it replaces does; words that are swapped, or stand first after a deletion, keep the case that they have.

    Parameters
    ----------
    config : EdaConfig, optional
    synonyms : mapping, optional
        Lower-case word to its synonyms, before ``config.synonyms``.

    Attributes
    ----------
    account_ : dict
        asked, unchanged, duplicate, blocked, contaminated, kept.

    Examples
    --------
    >>> table = {"bake": ["roast"], "bread": ["loaf"]}
    >>> rows = EdaAugmenter(EdaConfig(per_row=1), synonyms=table).run([Row(prompt="How do I bake bread?", label=0)])
    >>> [row.prompt for row in rows]
    ['How do I bake loaf?']
    """

    def __init__(self, config: EdaConfig | None = None, *, synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        self.config = config or EdaConfig()
        self._synonyms = load_synonyms(self.config.synonyms) if synonyms is None else synonyms
        self.account_: dict[str, int] = {}

    def run(self, seed_rows: Iterable[Row], evaluation_rows: Iterable[Row] = ()) -> Iterator[Row]:
        """Yield the kept variants, those of a row together, in the order of the rows.

        Variant k of row i depends on the text, (seed, i, k) and the synonyms only.
        """
        config = self.config
        account = self.account_ = dict.fromkeys(("asked", "unchanged", "duplicate", "blocked", "contaminated", "kept"), 0)
        evaluation = NearIndex(config.near_duplicate)
        for i, row in enumerate(evaluation_rows):
            evaluation.add(row.prompt, str(i))
        seeds = [row for row in seed_rows if not safety.blocked_row(row)]
        seen = {(normalise(row.prompt), row.response) for row in seeds}
        for i, row in enumerate(seeds):
            for k in range(config.per_row):
                account["asked"] += 1
                operation = _OPERATIONS[k % len(_OPERATIONS)]
                text = self.vary(row.prompt, operation, random.Random(f"{config.seed}/{i}/{k}"))
                known = normalise(text), row.response
                reason = ("unchanged" if text == row.prompt else "duplicate" if known in seen else
                          "blocked" if safety.blocked(text, row.response or "") else
                          "contaminated" if evaluation.find(text) is not None else "kept")
                account[reason] += 1
                if reason == "kept":
                    seen.add(known)
                    yield msgspec.structs.replace(row, prompt=text, source=f"eda:{operation}", id=f"eda:{i}:{k}",
                                                  seed=config.seed, generator="eda",
                                                  extra={**row.extra, "from": row.id if row.id is not None else i})

    def vary(self, text: str, operation: str, rng: random.Random) -> str:
        """Return the text with `alpha` of its words replaced, inserted, swapped or deleted; the text if none can be.

        `operation` is "replace", "insert", "swap" or "delete".
        """
        one_of("operation", operation, _OPERATIONS)
        words = list(_WORD.finditer(text))
        n = max(1, round(self.config.alpha * len(words)))
        if operation == "swap":
            return self._swap(text, words, n, rng)
        if operation == "delete":
            gone = rng.sample(words, min(n, len(words) - 1)) if len(words) > 1 else []
            return re.sub(" {2,}", " ", _put(text, {match.span(): "" for match in gone})).strip()
        known = [match for match in words if match[0].lower() not in _STOP and self._synonyms.get(match[0].lower())]
        changes: dict[tuple[int, int], str] = {}
        chosen = rng.sample(known, min(n, len(known)))
        for match, before in zip(chosen, rng.sample(words, len(chosen))):
            synonym = rng.choice(self._synonyms[match[0].lower()])
            if operation == "replace":
                changes[match.span()] = synonym[:1].upper() + synonym[1:] if match[0][0].isupper() else synonym
            else:
                changes[before.start(), before.start()] = synonym + " "
        return _put(text, changes)

    @staticmethod
    def _swap(text: str, words: Sequence[re.Match[str]], n: int, rng: random.Random) -> str:
        changes: dict[tuple[int, int], str] = {}
        free = list(words)
        for _ in range(n):
            if len(free) < 2:
                break
            a, b = rng.sample(free, 2)
            changes[a.span()], changes[b.span()] = b[0], a[0]
            free = [match for match in free if match not in (a, b)]
        return _put(text, changes)


def _put(text: str, changes: Mapping[tuple[int, int], str]) -> str:
    for (begin, end), word in sorted(changes.items(), reverse=True):
        text = text[:begin] + word + text[end:]
    return text


def load_synonyms(path: str | os.PathLike[str] | None = None) -> dict[str, list[str]]:
    """Read a JSON object of word to synonyms, or WordNet's data files (wndb(5WN)).

    Raises
    ------
    DataError
        If there is no such file or folder, or it holds something else.
    """
    place = Path(path) if path is not None else WORDNET
    if place.is_dir() and (place / "data.noun").is_file():
        return _wordnet(place)
    if not place.is_file():
        raise DataError(f"{place}: no table of synonyms; install WordNet's files (`apt install wordnet-base`) or give a "
                        "JSON object of word to list of synonyms")
    table: dict[str, list[str]] = {}
    try:
        found = read_object(place)
    except FormatError as error:
        raise DataError(str(error)) from None
    for word, others in found.items():
        if not isinstance(others, list) or not all(isinstance(other, str) and other for other in others):
            raise DataError(f"{place}: the synonyms of {word!r} must be a list of words")
        table[word.lower()] = others
    return table


def _wordnet(folder: Path) -> dict[str, list[str]]:
    """Each word's companions in its synsets, the ones that it meets in most synsets first, then by alphabet."""
    met: dict[str, Counter[str]] = {}
    for kind in ("noun", "verb", "adj", "adv"):
        name = folder / f"data.{kind}"
        for n, line in enumerate(name.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("  "):       # the licence
                continue
            fields = line.split(" ")
            try:
                words = fields[4:4 + 2 * int(fields[3], 16):2]
            except (IndexError, ValueError):
                raise DataError(f"{name}, line {n}: not a synset of WordNet") from None
            plain = [re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in words]
            single = [word for word in plain if _WORD.fullmatch(word)]
            for word in single:
                met.setdefault(word.lower(), Counter()).update(x for x in single if x.lower() != word.lower())
    return {word: [other for other, _ in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
            for word, others in met.items() if others}


def eda_rows(rows: Sequence[Row], seed: int, evaluation_rows: Iterable[Row] = (), *,
             table: Mapping[str, Sequence[str]] | None = None, **settings: Any) -> list[Row]:
    """Return the variants of rows, for a baseline; `table` holds the synonyms, the settings are those of EdaConfig."""
    return list(EdaAugmenter(EdaConfig(seed=seed, **settings), synonyms=table).run(rows, evaluation_rows))
