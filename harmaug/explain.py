"""What a guard's score hangs on, token by token."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harmaug.checks import one_of
from harmaug.inputs import Prompt, rows_of

if TYPE_CHECKING:
    from harmaug.guard import Guard

_NOTE = ("Red raises P(unsafe), blue lowers it: by how much the log-odds change when the token alone is {how}. This shows what the "
         "model reacts to. It is no proof of a cause: words that act together may each show little, and a text with a token "
         "missing is one that the model was not trained on.")
_RED, _BLUE = "214, 39, 40", "31, 119, 180"


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation:
    """Contributions of the tokens of one row; a notebook shows them as coloured text, on a click.

    Attributes
    ----------
    tokens : list of str
        The text that each token stands for, "" for one of several tokens of one character.
    spans : ndarray of int32, shape (n, 2)
        Begin and end of each token in code points of its own text, the prompt or the response.
    in_response : ndarray of bool, shape (n,)
    contributions : ndarray of float32, shape (n,)
        Log-odds of P(unsafe) with the token minus without it: positive where it raises the score. No proof of a cause.
    score, logit : float
        P(unsafe) of the row and its log-odds.
    replaced_by : str or None
        The token that took each one's place; None: it was left out, for want of a mask token.
    prompt : str
    response : str or None
    """

    tokens: list[str]
    spans: NDArray[np.int32]
    in_response: NDArray[np.bool_]
    contributions: NDArray[np.float32]
    score: float
    logit: float
    replaced_by: str | None
    prompt: str
    response: str | None

    def __repr__(self) -> str:
        return f"<explanation of {len(self.tokens)} tokens, P(unsafe) {self.score:.3f}, text hidden>"

    def _repr_html_(self) -> str:
        from harmaug.report import _templates

        how = f"replaced by {self.replaced_by}" if self.replaced_by else "left out"
        parts = [("prompt", list(self._pieces(self.prompt, ~self.in_response)))]
        if self.response is not None:
            parts.append(("response", list(self._pieces(self.response, self.in_response))))
        return str(_templates().explanation(f"{self.score:.3f}", parts, _NOTE.format(how=how)))

    def _pieces(self, text: str, own: NDArray[np.bool_]) -> Iterator[tuple[str, str, str]]:
        """(text, colour, contribution) of the whole text, from begin to end; tokens of one character count together."""
        most = float(np.abs(self.contributions).max(initial=0)) or 1.0
        at = 0
        spans, values = self.spans[own], self.contributions[own]
        ends, first = np.unique(spans[:, 1], return_inverse=True)
        begins = np.full(len(ends), len(text))
        np.minimum.at(begins, first, spans[:, 0])
        for begin, end, value in zip(begins.tolist(), ends.tolist(), np.bincount(first, values, len(ends)).tolist()):
            begin = max(begin, at)
            if end > begin:
                if begin > at:
                    yield text[at:begin], "", ""
                colour = f"rgba({_RED if value > 0 else _BLUE}, {min(abs(value) / most, 1) * 0.6:.3f})"
                yield text[begin:end], colour, f"{value:+.3f}"
                at = end
        if at < len(text):
            yield text[at:], "", ""


def explain(guard: Guard, prompt: Prompt, response: str | None = None, method: str = "occlusion") -> Explanation:
    """See `Guard.explain`."""
    one_of("method", method, ("occlusion",))
    rows = list(rows_of([prompt], [response]))
    first, second = rows[0]
    encoded = guard.tokenizer.encode_batch([first], [second])
    ids, types = encoded.ids, encoded.type_ids
    if len(ids) > guard.max_length:
        raise ValueError(f"the row has {len(ids)} tokens, explain reads at most {guard.max_length}: explain a part of it")
    plain = guard.tokenizer.encode_batch([first, second or ""], add_special_tokens=False)
    a, b = _place(ids, plain[0]), _place(ids, plain[1], last=True)
    at = np.concatenate([a, b])
    mask = _mask_token(guard)
    shown = [encoded.spans[at], np.arange(len(at)) >= len(a)]
    logits = np.concatenate([_log_odds(guard, *batch) for batch in _occluded(guard, ids, types, at, mask)])
    texts = [first] * len(a) + [second or ""] * len(b)
    tokens = [text[begin:end] for text, (begin, end) in zip(texts, shown[0].tolist())]
    whole = float(logits[0])
    return Explanation(tokens=tokens, spans=shown[0], in_response=shown[1],
                       contributions=(whole - logits[1:]).astype(np.float32), score=float(guard.score(first, second)[0]),
                       logit=whole, replaced_by=mask, prompt=first, response=second)


def _mask_token(guard: Guard) -> str | None:
    named = guard.tokenizer.settings.get("mask_token")
    named = named.get("content") if isinstance(named, dict) else named
    return next((t for t in (named, "[MASK]", "<mask>") if isinstance(t, str) and guard.tokenizer.token_to_id(t) is not None), None)


def _place(ids: NDArray[np.int32], part: NDArray[np.int32], *, last: bool = False) -> NDArray[np.intp]:
    """Positions of `part` within `ids`, where the tokenizer's template put it."""
    if len(part) == 0:
        return np.zeros(0, dtype=np.intp)
    found = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(ids, len(part)) == part).all(axis=1))
    if len(found) == 0:
        raise ValueError("the tokenizer's special tokens change the text between them: it can't be explained")
    return np.arange(len(part)) + int(found[-1 if last else 0])


def _occluded(guard: Guard, ids: NDArray[np.int32], types: NDArray[np.uint8], at: NDArray[np.intp],
              mask: str | None) -> Iterator[tuple[Any, ...]]:
    """The row itself, then the row without each of its tokens `at`, in batches of bounded size."""
    n = len(ids)
    yield ids, types, np.array([0, n])
    token = guard.tokenizer.token_to_id(mask) if mask is not None else None
    step = max(1, guard.core.call_tokens // n)
    for begin in range(0, len(at), step):
        places = at[begin:begin + step]
        many, kinds = np.tile(ids, (len(places), 1)), np.tile(types, (len(places), 1))
        if token is not None:
            many[np.arange(len(places)), places] = token
            yield many.ravel(), kinds.ravel(), np.arange(len(places) + 1) * n
        else:
            kept = np.arange(n) != places[:, None]
            yield many[kept], kinds[kept], np.arange(len(places) + 1) * (n - 1)


def _log_odds(guard: Guard, ids: NDArray[np.int32], types: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    logits: NDArray[np.float64] = guard.encoder.logits(ids, offsets, types).astype(np.float64)
    if logits.shape[1] == 1:
        return logits[:, 0]
    others = np.delete(logits, guard.unsafe_index, axis=1)
    odds: NDArray[np.float64] = logits[:, guard.unsafe_index] - np.logaddexp.reduce(others, axis=1)
    return odds
