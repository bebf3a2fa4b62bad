"""Tokenized rows, and which of them a step of training takes."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmaug.data import Row

Ragged = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]]


def take(rows: NDArray[np.int64], ids: NDArray[np.int32], offsets: NDArray[np.int64], types: NDArray[np.uint8]) -> Ragged:
    """Ids, offsets and type ids of some rows of a ragged batch."""
    starts, ends = offsets[rows], offsets[rows + 1]
    taken = np.concatenate([[0], np.cumsum(ends - starts)])
    where = np.arange(taken[-1]) + np.repeat(starts - taken[:-1], ends - starts)
    return ids[where], taken, types[where]


class TokenRows:
    """Tokenized rows: ragged arrays, and what is to be learnt."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> None:
        pairs = [r.response or None for r in rows]
        encoding = tokenizer.encode_batch([r.prompt for r in rows], pairs, max_length=max_length)
        self.ids: NDArray[np.int32] = encoding.ids
        self.offsets: NDArray[np.int64] = encoding.offsets
        self.types: NDArray[np.uint8] = encoding.type_ids
        self.n_cut = int(np.count_nonzero(encoding.truncated))
        self.hard = np.array([-1 if r.hard_label is None else r.hard_label for r in rows], np.int8)
        self.soft = np.array([math.nan if r.target is None else r.target for r in rows], np.float32)
        self.weights = np.ones(len(rows), np.float32)

    def __len__(self) -> int:
        return len(self.hard)

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Ids, offsets and type ids of some rows."""
        return take(rows, self.ids, self.offsets, self.types)

    def digest(self) -> str:
        """Hash of all that training reads."""
        total = hashlib.sha256()
        for array in (self.ids, self.offsets, self.types, self.hard, self.soft, self.weights):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


class DrawOrder:
    """Which row each draw takes: a function of (seed, draw) alone.

    A class is gone through in one random order after another, so that a row comes again only when all of its class
    have come.
    """

    def __init__(self, hard: NDArray[np.int8], balanced: bool, seed: int) -> None:
        self._groups = [np.flatnonzero(hard == c) for c in (0, 1)] if balanced else [np.arange(len(hard))]
        self._seed = seed
        self._kept: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def rows(self, first: int, count: int) -> NDArray[np.int64]:
        """Rows of the draws [first, first + count)."""
        return np.array([self._row(k) for k in range(first, first + count)], np.int64)

    def _row(self, draw: int) -> int:
        turn, g = divmod(draw, len(self._groups))
        group = self._groups[g]
        cycle, place = divmod(turn, len(group))
        if g not in self._kept or self._kept[g][0] != cycle:
            # a key of its own for each order: (seed, class, cycle)
            generator = np.random.Generator(np.random.Philox(key=np.array([self._seed, (g << 48) + cycle], np.uint64)))
            self._kept[g] = cycle, group[generator.permutation(len(group))]
        return int(self._kept[g][1][place])
