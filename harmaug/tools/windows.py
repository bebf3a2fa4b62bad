"""How often a guard flags harmless long texts, by their number of windows: ``python -m harmaug.tools.windows --model DIR FILE...``.

The highest score of a text's windows decides, so that every further window is one more chance of a false alarm. Safe rows, which
are short, are put together to texts of a wanted length.
"""
from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmaug.cli import _message, _Parser, _print_json
from harmaug.data import DataError, read_rows
from harmaug.guard import Guard
from harmaug.teacher import STANDIN, standin_folder

WINDOWS = (1, 2, 4, 8)


def long_texts(guard: Guard, texts: Sequence[str], n_windows: int, count: int, seed: int = 0) -> list[str]:
    """Return `count` texts of `n_windows` windows each, or one more, put together of whole texts drawn without replacement."""
    lengths = guard.tokenizer.count_tokens(texts, add_special_tokens=False)
    special = int(guard.tokenizer.count_tokens([""])[0])
    window = guard.max_length - special
    step = window - min(guard.max_length // 4, window - 1)
    wanted = window + (n_windows - 1) * step - step // 2      # the middle of what takes so many windows
    rng = np.random.default_rng([seed, n_windows])
    made = []
    for _ in range(count):
        order = rng.permutation(len(texts))
        enough = int(np.searchsorted(np.cumsum(lengths[order]), wanted)) + 1
        if enough > len(texts):
            raise ValueError(f"{len(texts)} texts of {int(lengths.sum())} tokens do not make one of {n_windows} windows")
        made.append("\n".join(texts[i] for i in order[:enough]))
    return made


def false_positives_by_windows(guard: Guard, texts: Sequence[str], *, windows: Sequence[int] = WINDOWS, count: int = 100,
                               threshold: float | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Flagged share of harmless texts by number of windows.

    Parameters
    ----------
    guard : Guard
        Reads long texts in windows, whatever its `long`.
    texts : sequence of str
        Harmless ones; `count` long texts are put together of them for each of `windows`.
    threshold : float, optional
        None: the guard's.

    Returns
    -------
    list of dict
        For each number of windows that came out: ``n_windows``, ``n``, ``flagged``, ``fpr``, ``interval`` (95 %, Wilson 1927), and
        ``independent``: what windows that err independently, as often as the single ones did, would give (None without single ones).
    """
    limit = np.float32(guard.threshold if threshold is None else threshold)
    made = [text for k in windows for text in long_texts(guard, texts, k, count, seed)]
    details = guard.score_details(made, long="windows")
    result: list[dict[str, Any]] = []
    for k in np.unique(details.n_windows).tolist():
        flagged = details.score[details.n_windows == k] >= limit
        n, hits = len(flagged), int(flagged.sum())
        first = result[0] if result and result[0]["n_windows"] == 1 else {"fpr": hits / n} if k == 1 else None
        result.append({"n_windows": k, "n": n, "flagged": hits, "fpr": hits / n, "interval": _wilson(hits, n),
                       "independent": None if first is None else 1 - (1 - first["fpr"]) ** k})
    return result


def _wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    share, spread = hits / n, z * z / n
    middle, half = share + spread / 2, z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status, that of the command ``harmaug``."""
    parser = _Parser(prog="python -m harmaug.tools.windows", description="How often harmless long texts are flagged, by their number of windows.",
                     epilog="Exit status: 0 done; 2 wrong usage or bad input, with one line that names file and row; 130 interrupted.")
    parser.add_argument("--model", required=True, metavar="DIR", help='guard folder, fetched name or "standin"')
    parser.add_argument("files", nargs="+", metavar="FILE", help="labelled rows; the safe ones are put together to long texts")
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS), metavar="N", help="numbers of windows (default: 1 2 4 8)")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="texts of each (default: %(default)s)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a window (default: the guard's)")
    parser.add_argument("--threshold", type=float, metavar="P", help="flagged from here on (default: the guard's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    parser.add_argument("--n-threads", type=int, metavar="N", help="threads (default: as many as the process may use)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    try:
        args = parser.parse_args(argv)
        if min(args.windows) < 1 or args.count < 1:
            parser.error("--windows and --count must be >= 1")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    try:
        guard = Guard.from_pretrained(standin_folder() if args.model == STANDIN else args.model, max_length=args.max_length,
                                      n_threads=args.n_threads)
        texts = [row.prompt for file in args.files for row in read_rows(file) if row.hard_label == 0]
        if not texts:
            raise DataError(f"{args.files[0]}: no row with a safe label")
        found = false_positives_by_windows(guard, texts, windows=args.windows, count=args.count, threshold=args.threshold, seed=args.seed)
        if args.json:
            _print_json(found)
            return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError) as exc:
        print(f"{parser.prog}: {' '.join(_message(exc).split())}", file=sys.stderr)
        return 2
    from harmaug.report import Table

    names = ("n_windows", "n", "fpr", "interval", "independent")
    print(Table([["windows", "texts", "FPR", "95 % interval", "if independent"], *([r[k] for k in names] for r in found)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
