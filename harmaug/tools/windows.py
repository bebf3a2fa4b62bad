"""Harmless long texts, to see how often a guard flags them: ``python -m harmaug.tools.windows --model DIR FILE... > long.jsonl``.

The highest score of a text's windows decides, so that every further window is one more chance of a false alarm. Safe rows, which
are short, are put together to texts of a wanted number of windows; ``harmaug evaluate --model DIR long.jsonl`` measures them.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from harmaug.cli import _message, _Parser
from harmaug.data import DataError, Row, encode_row, read_rows
from harmaug.guard import Guard
from harmaug.teacher import STANDIN, standin_folder

WINDOWS = (1, 2, 4, 8)


def long_texts(guard: Guard, texts: Sequence[str], n_windows: int, count: int, seed: int = 0) -> list[str]:
    """Return `count` texts of `n_windows` windows each, put together of whole texts drawn without replacement.

    What stands between them, a new line, is no token to most tokenizers; to others the last texts may need a window more.
    """
    lengths = guard.tokenizer.count_tokens(texts, add_special_tokens=False).tolist()
    window = guard.max_length - int(guard.tokenizer.count_tokens([""])[0])
    step = window - min(guard.max_length // 4, window - 1)
    most = window + (n_windows - 1) * step
    rng = np.random.default_rng([seed, n_windows])
    made = []
    for _ in range(count):
        chosen, total = list[str](), 0
        for i in rng.permutation(len(texts)).tolist():
            if total + lengths[i] <= most:
                chosen.append(texts[i])
                total += lengths[i]
            if total > most - step // 2:
                break
        else:
            raise ValueError(f"{len(texts)} texts of {sum(lengths)} tokens do not make one of {n_windows} windows")
        made.append("\n".join(chosen))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status, that of the command ``harmaug``."""
    parser = _Parser(prog="python -m harmaug.tools.windows", description="Write harmless long texts, put together of short safe rows.",
                     epilog="Exit status: 0 done; 2 wrong usage or bad input, with one line that names file and row; 130 interrupted.")
    parser.add_argument("--model", required=True, metavar="DIR", help='guard folder, fetched name or "standin": whose windows are counted')
    parser.add_argument("files", nargs="+", metavar="FILE", help="labelled rows; the safe ones are put together")
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS), metavar="N", help="numbers of windows (default: 1 2 4 8)")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="texts of each (default: %(default)s)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a window (default: the guard's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    try:
        args = parser.parse_args(argv)
        if min(args.windows) < 1 or args.count < 1:
            parser.error("--windows and --count must be >= 1")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    try:
        guard = Guard.from_pretrained(standin_folder() if args.model == STANDIN else args.model, max_length=args.max_length)
        texts = [row.prompt for file in args.files for row in read_rows(file) if row.hard_label == 0]
        if not texts:
            raise DataError(f"{args.files[0]}: no row with a safe label")
        for n in args.windows:
            for text in long_texts(guard, texts, n, args.count, args.seed):
                sys.stdout.buffer.write(encode_row(Row(prompt=text, label=0)))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError) as exc:
        print(f"{parser.prog}: {' '.join(_message(exc).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
