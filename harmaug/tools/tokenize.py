"""Texts in, token ids or their number out: ``python -m harmaug.tools.tokenize --model DIR FILE``."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import IO, Any

import msgspec

from harmaug.cli import _message, _Parser
from harmaug.data import DataError, _text_lines, columns_of_stream, unpacked
from harmaug.tokenizer import Tokenizer

_BATCH = 1024       # texts encoded together: what is held in memory


def tokenize_stream(
    tokenizer: Tokenizer, source: IO[bytes], out: IO[bytes], *, name: str = "texts", plain: bool = False, counts: bool = False, text: str = "prompt",
    pair: str | None = None, add_special_tokens: bool = True, max_length: int | None = None, n_threads: int | None = None,
) -> int:
    """Encode texts as they come, one line out for each: a JSON list of ids, or with `counts` their number.

    Parameters
    ----------
    tokenizer : Tokenizer
    source : binary file
        JSONL, a JSON list or CSV with a column `text` and maybe `pair`, or, `plain`, one text a line; gzipped or not.
    out : binary file
    name : str
        What messages call the source.
    add_special_tokens, max_length, n_threads
        See `Tokenizer.encode_batch`.

    Returns
    -------
    int
        Number of texts.

    Raises
    ------
    DataError
        Naming the row; the lines of the blocks before it are written.
    """
    rows = _plain(source, name) if plain else _columns(source, name, text, pair)
    options: dict[str, Any] = {"add_special_tokens": add_special_tokens, "max_length": max_length, "n_threads": n_threads}
    total = 0
    for first in rows:
        block = [first, *islice(rows, _BATCH - 1)]
        try:
            encoding = tokenizer.encode_batch([t for _, t, _ in block], [p for _, _, p in block], **options)
        except ValueError as error:
            for where, t, p in block:       # its message counts from the block's first row
                try:
                    tokenizer.encode_batch([t], [p], **options)
                except ValueError as alone:
                    raise DataError(f"{where}: {alone}") from None
            raise error
        values = encoding.lengths.tolist() if counts else [row.tolist() for row in encoding]
        out.write(b"".join(chain.from_iterable((msgspec.json.encode(value), b"\n") for value in values)))
        out.flush()
        total += len(block)
    return total


def _plain(source: IO[bytes], name: str) -> Iterator[tuple[str, str, None]]:
    for n, line in _text_lines(unpacked(source), name):
        yield f"{name}, line {n}", line.rstrip("\r\n"), None


def _columns(source: IO[bytes], name: str, text: str, pair: str | None) -> Iterator[tuple[str, str, str | None]]:
    for where, columns in columns_of_stream(source, name):
        if not isinstance(columns, dict):
            raise DataError(f"{where}: a row must be an object")
        first, second = columns.get(text), columns.get(pair) if pair is not None else None
        if not isinstance(first, str):
            raise DataError(f"{where}: column {text!r} must be text, got {'nothing' if first is None else type(first).__name__}")
        if second is not None and not isinstance(second, str):
            raise DataError(f"{where}: column {pair!r} must be text, got {type(second).__name__}")
        yield where, first, second


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status, that of the command ``harmaug``."""
    parser = _Parser(prog="python -m harmaug.tools.tokenize", description="Texts in, token ids (a JSON list a line) or their number out, in order.",
                     epilog="Exit status: 0 done; 2 wrong usage or bad input, with one line that names file and row; 130 interrupted.")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or file of a tokenizer, or the name of a fetched model")
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="JSONL, JSON or CSV, or plain text where the name ends in .txt; gzipped or not; "
                        "- is standard input (default)")
    parser.add_argument("--plain", action="store_true", help="FILE is plain text, whatever its name: one text a line")
    parser.add_argument("--counts", action="store_true", help="write the number of tokens, not their ids")
    parser.add_argument("--text", default="prompt", metavar="COLUMN", help="the column of the texts (default: %(default)s)")
    parser.add_argument("--pair", metavar="COLUMN", help="the column of the second texts, for instance response (default: none)")
    parser.add_argument("--no-special-tokens", action="store_true", help="leave out [CLS] and the like")
    parser.add_argument("--max-length", type=int, metavar="N", help="cut rows to N tokens (default: not at all)")
    parser.add_argument("--n-threads", type=int, metavar="N", help="threads (default: as many as the process may use)")
    try:
        args = parser.parse_args(argv)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    name = "standard input" if args.file == "-" else args.file
    plain = args.plain or args.file.lower().removesuffix(".gz").endswith(".txt")
    try:
        tokenizer = Tokenizer.from_pretrained(args.model)
        with sys.stdin.buffer if args.file == "-" else open(args.file, "rb") as source:
            tokenize_stream(tokenizer, source, sys.stdout.buffer, name=name, plain=plain, counts=args.counts, text=args.text, pair=args.pair,
                            add_special_tokens=not args.no_special_tokens, max_length=args.max_length, n_threads=args.n_threads)
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:     # the reader had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (ValueError, OSError, MemoryError) as exc:
        print(f"{parser.prog}: {' '.join(_message(exc).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
