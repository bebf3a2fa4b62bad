"""The one seam to many machines: a function of rows, mapped in order."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_rows(fn: Callable[[Sequence[_T]], Iterable[_R]], rows: Iterable[_T], *, engine: str = "local",
             batch_size: int = 64) -> Iterator[tuple[_T, _R]]:
    """Yield (row, result) in the order of the rows.

    Resuming is the caller's: it records each result under its row's key and leaves the done rows out when it calls
    again. `fn` must give a row's result independently of the rows beside it.

    Parameters
    ----------
    fn : callable
        Takes a batch of rows and returns (or yields, early ones early) one result for each, in order; a RuntimeError
        else.
    rows : iterable
        Read as far as it is needed.
    engine : {"local"}, default "local"
        Where fn runs; "local" is this process.
    batch_size : int, default 64

    Examples
    --------
    >>> list(map_rows(lambda batch: [x * x for x in batch], [1, 2, 3], batch_size=2))
    [(1, 1), (2, 4), (3, 9)]
    """
    if engine != "local":
        raise ValueError(f"engine must be 'local', got {engine!r}: this version has no other (ray is planned)")
    iterator = iter(rows)
    while batch := list(islice(iterator, batch_size)):
        n = 0
        for n, result in enumerate(fn(batch), 1):
            if n > len(batch):
                break
            yield batch[n - 1], result
        if n != len(batch):
            gave = f"more than {len(batch)}" if n > len(batch) else n
            raise RuntimeError(f"the mapped function gave {gave} results for {len(batch)} rows")
