"""What sampled texts are held against: refusal openings and near-duplicates.

Refusals are told by first-person openings only. Word lists that match "illegal" or "unethical" anywhere would throw
away the harmful instructions that are wanted.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harmaug import data
from harmaug.checks import within

_UNABLE = ("(?:not able|unable|not going|not comfortable|not allowed|not permitted|not programmed|not here|"
           "not equipped|not designed|not in a position)")
_CANNOT = (r"(?:can\s?not|can['\u2019]?t|could not|couldn['\u2019]?t|will not|won['\u2019]?t|would not|"
           rf"wouldn['\u2019]?t|do not|don['\u2019]?t|(?:am |['\u2019]m ){_UNABLE}|"
           r"prefer not to|refuse to|(?:must|have to) (?:refuse|decline))")
_DUTY = (r"(?:assist|help|provide|fulfil|create|generate|comply|answer|support|engage|write|offer|discuss|share|give|"
         r"do (?:that|this|so)|participate|recommend|produce|respond|continue|complete|accept|feel comfortable|"
         r"explain|advise|facilitate|endorse|have (?:access|the ability)|be (?:of|able))")

REFUSALS: tuple[str, ...] = (
    r"(?:i['\u2019]m|i am) (?:really |very |so |truly |deeply )?(?:sorry|afraid)\b.{0,40}\b(?:i|that|this|we)\b",
    r"(?:sorry|apologies|my apologies|i apologi[sz]e)[,.!]? (?:but |for )?",
    rf"i(?: (?:really|just|simply|also|still))? ?{_CANNOT}\b(?! help but).{{0,30}}?\b{_DUTY}",
    r"(?:as|being) an? (?:ai|artificial intelligence|language model|large language model|assistant|responsible)\b",
    rf"(?:unfortunately|no|however|regrettably)[,.] i ?{_CANNOT}\b",
    r"(?:this|that|it) (?:request|instruction|question|prompt)? ?(?:is|goes) (?:against|not something (?:i|we))",
    r"i (?:must|have to) (?:decline|refuse|emphasi[sz]e|stress|inform you)",
)
"""First-person openings of a refusal, as regular expressions that match at the start of a text, whatever the case."""

_SENTENCE = re.compile(r"(?:^|[.!?;:,]\s+|\n\s*|\bbut )", re.IGNORECASE)
_DECLINES = re.compile(rf"i(?: (?:really|just|simply|also|still))? ?{_CANNOT}\b.{{0,40}}?\b{_DUTY}|"
                       r"(?:that|this|it)(?: is|['\u2019]s) (?:not|against)|"
                       r"(?:as|being) an? (?:ai|artificial intelligence|language model|assistant)\b|"
                       r"i (?:must|have to) (?:decline|refuse)|we (?:can\s?not|can['\u2019]?t)\b", re.IGNORECASE)
_COMPLIES = re.compile(r"\bhere(?:['\u2019]s| is| are) (?:an?|some|the|how|my|your)\b|"
                       r"(?:^|\n)\s*(?:1[.)]|step 1\b|- |\* )|\bi can (?:certainly|definitely|show you|tell you)\b",
                       re.IGNORECASE)
_OPENING = " \t\n\"'\u201c\u201d\u2018*>-"


class RefusalFilter:
    """Tells refusals from the way a text opens.

    Parameters
    ----------
    patterns : sequence of str, optional
        REFUSALS when None. A ValueError names one that is not a regular expression.

    Examples
    --------
    >>> refused = RefusalFilter()
    >>> refused("I'm sorry, but I can't help with that."), refused("Write an apology that is not sorry at all")
    (True, False)
    """

    def __init__(self, patterns: Sequence[str] | None = None) -> None:
        self._patterns = []
        for pattern in REFUSALS if patterns is None else patterns:
            try:
                self._patterns.append(re.compile(pattern, re.IGNORECASE))
            except re.error as exc:
                raise ValueError(f"refusals: {pattern!r} is not a regular expression: {exc}") from None

    def __call__(self, text: str) -> bool:
        """Return whether the text opens as a refusal."""
        text = text.lstrip(_OPENING)
        return any(pattern.match(text) for pattern in self._patterns)

    def within(self, text: str) -> bool:
        """Return whether any sentence of the text (or what follows a "but") opens as a refusal."""
        return any(self(text[found.end():]) or _DECLINES.match(text, found.end()) for found in _SENTENCE.finditer(text))


def complies(text: str) -> bool:
    """Return whether a text that was to refuse goes on to help: a list, "here is how", step 1."""
    return _COMPLIES.search(text) is not None


def shingles(text: str, width: int = 5) -> NDArray[np.uint64]:
    """Return the distinct character n-grams of the normalised text as sorted 64-bit hashes, shape (n_grams,).

    Letter case and runs of white space do not count. A text shorter than `width` is one gram.
    """
    points = np.frombuffer(data.normalise(text).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    n = max(len(points) - width + 1, 1)
    hashes = np.zeros(n, dtype=np.uint64)
    for i in range(min(width, len(points))):    # a polynomial over 2^64 with an odd random base, then mixed
        hashes = (hashes + points[i:i + n] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def jaccard(a: str, b: str) -> float:
    """Return the Jaccard similarity of two texts' character 5-grams, in [0, 1]."""
    x, y = shingles(a), shingles(b)
    shared = len(np.intersect1d(x, y, assume_unique=True))
    return shared / (len(x) + len(y) - shared)


class NearIndex:
    """Finds the indexed text whose character 5-grams are nearest to a text's, exactly.

    Texts are near from a Jaccard similarity of `threshold`, in (0, 1], on. Two such texts share one of their rarest
    grams: those that are left when as many as must be shared, less one, are set aside (prefix filtering, Chaudhuri et
    al. 2006). Only these are indexed and looked up. What is rare is counted anew whenever the index has doubled.
    """

    def __init__(self, threshold: float = 0.6) -> None:
        self.threshold = threshold
        within(self, threshold="in (0, 1]")
        self._names: list[str] = []
        self._grams: list[NDArray[np.int64]] = []       # of each text, by their numbers
        self._numbers: dict[int, int] = {}              # gram -> its number, in the order in which they were first seen
        self._counts = np.zeros(0, dtype=np.int64)      # by number: texts that held it at the last count; later ones 0
        self._marks = np.zeros(0, dtype=np.bool_)       # by number: all False between two calls
        self._postings: dict[int, list[int]] = {}       # number -> texts that it is one of the rarest of
        self._count_next = 256

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: str, identity: str) -> None:
        """Index a text under the name that `find` returns."""
        numbers = self._numbers
        self._names.append(identity)
        self._grams.append(np.array([numbers.setdefault(gram, len(numbers)) for gram in shingles(text).tolist()]))
        if len(self._names) < self._count_next:
            self._post(len(self._names) - 1)
            return
        self._count_next *= 2
        self._counts = np.bincount(np.concatenate(self._grams), minlength=len(numbers))
        self._postings = {}
        for i in range(len(self._names)):
            self._post(i)

    def find(self, text: str) -> tuple[str, float] | None:
        """Return (identity, similarity) of the nearest text at or over the threshold, the earlier on a tie, or None."""
        grams = shingles(text).tolist()
        known = np.array([self._numbers[gram] for gram in grams if gram in self._numbers], dtype=np.int64)
        near: set[int] = set()
        for number in self._rarest(known, len(grams)):
            near.update(self._postings.get(number, ()))
        if not near:
            return None
        places = sorted(near)
        others = [self._grams[i] for i in places]
        lengths = np.fromiter(map(len, others), dtype=np.int64, count=len(others))
        if len(self._marks) < len(self._numbers):
            self._marks = np.zeros(2 * len(self._numbers), dtype=np.bool_)
        self._marks[known] = True
        shared = np.add.reduceat(self._marks[np.concatenate(others)], np.cumsum(lengths) - lengths, dtype=np.int64)
        self._marks[known] = False
        similarity = shared / (len(grams) + lengths - shared)
        best = int(np.argmax(similarity))
        return (self._names[places[best]], float(similarity[best])) if similarity[best] >= self.threshold else None

    def _post(self, i: int) -> None:
        for number in self._rarest(self._grams[i], len(self._grams[i])):
            self._postings.setdefault(number, []).append(i)

    def _rarest(self, numbers: NDArray[np.int64], n_grams: int) -> list[int]:
        """Of a text of n_grams, those of its grams in the index that a near text holds one of."""
        shared = math.ceil(self.threshold * n_grams - 1e-9)     # by a text that is near
        counts = np.zeros(len(numbers), dtype=np.int64)
        counted = numbers < len(self._counts)
        counts[counted] = self._counts[numbers[counted]]
        return numbers[np.lexsort((numbers, counts))[:n_grams - shared + 1]].tolist()   # type: ignore[no-any-return]
