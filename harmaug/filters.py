"""What sampled texts are held against: refusal openings and near-duplicates.

Refusals are told by first-person openings only. Word lists that match "illegal" or "unethical" anywhere would throw
away the harmful instructions that are wanted.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

from harmaug import _C, data

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


def jaccard(a: str, b: str) -> float:
    """Return the Jaccard similarity of two texts' character 5-grams, in [0, 1]: what NearIndex finds texts by.

    Letter case and runs of white space do not count. A text of less than 5 characters is one gram.

    Examples
    --------
    >>> jaccard("How do I bake bread?", "how do I  bake bread"), jaccard("one text", "another")
    (0.9375, 0.0)
    """
    x, y = ({text[i:i + 5] for i in range(max(len(text) - 4, 1))} for text in (data.normalise(a), data.normalise(b)))
    return len(x & y) / len(x | y)


class NearIndex:
    """Finds the indexed text whose character 5-grams are nearest to a text's, exactly.

    Texts are near from a Jaccard similarity of `threshold`, in (0, 1], on. Letter case and runs of white space do not
    count. A text shorter than five characters is one gram.
    """

    def __init__(self, threshold: float = 0.6) -> None:
        self._index = _C.NearIndex(threshold)
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._index)

    def add(self, text: str, identity: str) -> None:
        """Index a text under the name that `find` returns."""
        self._index.add(data.normalise(text))
        self._names.append(identity)

    def find(self, text: str) -> tuple[str, float] | None:
        """Return (identity, similarity) of the nearest text at or over the threshold, the earlier on a tie, or None."""
        found = self._index.find(data.normalise(text))
        return None if found is None else (self._names[found[0]], found[1])
