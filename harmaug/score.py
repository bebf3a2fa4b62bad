"""Rows in, the same rows with a score out: what ``harmaug score`` does."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, Any

import msgspec
import numpy as np

from harmaug import engines
from harmaug.data import DataError, columns_of_stream, decode_json, text_of


def score_stream(guard: Any, source: IO[bytes], out: IO[bytes], *, name: str = "rows", threshold: float | None = None,
                 batch_size: int = 32, engine: str = "local") -> int:
    """Score rows as they come and return how many there were.

    Parameters
    ----------
    guard : Guard
        Anything with ``score(prompts, responses)``.
    source, out : binary file
        JSONL, a JSON list, CSV or Parquet, gzipped or not; and one JSON object a row, in order: the row's columns as they stand
        (numbers and escapes to the byte), then score and flagged.
    name : str
        What messages call the source.
    threshold : float, optional
        A row is flagged when its score is at or over it. None: the guard's, else 0.5.
    batch_size : int, default 32
        Rows scored together. Changes no score.
    engine : str, default "local"
        See engines.map_rows.

    Raises
    ------
    DataError
        On a row without a prompt, wrong JSON, or a NaN score; the rows before it are written.
    """
    if threshold is None:
        own = getattr(guard, "threshold", None)
        threshold = 0.5 if own is None else float(own)      # 0 flags every row
        if hasattr(guard, "check_threshold"):
            guard.check_threshold()
    rows = columns_of_stream(source, name, verbatim=True)
    total = 0
    failure: DataError | None = None
    read: deque[tuple[str, dict[str, Any]]] = deque()

    def texts() -> Iterator[tuple[str, str | None]]:
        nonlocal failure
        try:
            for where, columns in rows:
                pair = _texts(where, columns)
                read.append((where, columns))
                yield pair
        except DataError as exc:
            failure = exc

    scored = engines.map_rows(partial(_scores, guard), texts(), engine=engine, batch_size=batch_size)
    for total, (_, score) in enumerate(scored, 1):
        where, columns = read.popleft()
        if not 0 <= score <= 1:
            raise DataError(f"{where}: the guard's score is {score}")
        columns.update(score=float(str(score)), flagged=bool(score >= threshold))
        out.write(msgspec.json.encode(columns) + b"\n")
        out.flush()
    if failure is not None:
        raise failure
    if not total:
        raise DataError(f"{name}: the set is empty, no rows")
    return total


def _scores(guard: Any, pairs: Sequence[tuple[str, str | None]]) -> list[np.float32]:
    return list(np.asarray(guard.score(*map(list, zip(*pairs))), dtype=np.float32))


def _texts(where: str, columns: dict[str, Any]) -> tuple[str, str | None]:
    texts = []
    for column in ("prompt", "response"):
        value = columns.get(column)
        if isinstance(value, msgspec.Raw):
            value = decode_json(bytes(value).decode(), f"{where}: {column}")
        texts.append(text_of(value, column, where))
    if not texts[0] or texts[0].isspace():
        raise DataError(f"{where}: the prompt is {'empty' if 'prompt' in columns else 'missing'}")
    return texts[0], texts[1] or None
