"""What this machine does with a guard: ``python -m harmaug.tools.bench --model DIR``."""
from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harmaug import _C
from harmaug.cli import _message, _Parser, _print_json
from harmaug.guard import Guard
from harmaug.teacher import STANDIN, standin_folder
from harmaug.versions import cpu_model

SHAPES = ((1, 32), (1, 128), (8, 128))
_LENGTHS = "32 texts, 4 to 128 tokens"
_NOTES = ("ms: median of the calls (best in brackets), tokens in, logits out. GFLOP/s: nominal, 2 operations a weight of the layers and token, and "
          "the attention's products; what the engine can leave out counts as done. The last line is a batch of ragged rows, packed.")


def measure(guard: Guard, *, seconds: float = 1.0, n_threads: int | None = None) -> dict[str, Any]:
    """Time the encoder on random tokens.

    Parameters
    ----------
    guard : Guard
    seconds : float, default 1
        For each shape; at least 5 calls are made.
    n_threads : int, optional
        None: the guard's.

    Returns
    -------
    dict
        ``shapes`` (a list of ``name``, ``ms``, ``ms_min``, ``texts_per_s``, ``tokens_per_s``, ``gflops``), and what it was measured on:
        ``peak_rss_mb``, ``cpu``, ``cpu_isa``, ``threads``, ``dtype``, ``load`` (of the last minute; anything over 0 slows).
    """
    rng = np.random.default_rng(0)
    ragged = np.clip(np.exp(rng.normal(np.log(25), 0.8, 32)), 4, 128).astype(int).tolist()
    shapes = [(f"{n} x {length}", [length] * n) for n, length in SHAPES] + [(_LENGTHS, ragged)]
    load = os.getloadavg()[0]
    results = []
    for name, lengths in shapes:
        if max(lengths) > guard.max_length:
            continue
        offsets = np.cumsum([0, *lengths])
        ids = rng.integers(5, guard.config["vocab_size"], offsets[-1])
        times = _times(lambda: guard.encoder.logits(ids, offsets, n_threads=n_threads), seconds)
        middle = statistics.median(times)
        flops = sum(_flops(guard.config, length) for length in lengths)
        results.append({"name": name, "ms": 1e3 * middle, "ms_min": 1e3 * min(times), "texts_per_s": len(lengths) / middle,
                        "tokens_per_s": int(offsets[-1]) / middle, "gflops": flops / middle / 1e9})
    info = _C.build_info()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"shapes": results, "peak_rss_mb": peak, "cpu": cpu_model(), "cpu_isa": info["cpu_isa"],
            "threads": n_threads or guard.encoder.n_threads or info["threads"], "dtype": guard.encoder.dtype, "load": load}


def _times(call: Callable[[], Any], seconds: float) -> list[float]:
    call()      # weights come into memory, threads are started
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return times


def _flops(config: dict[str, Any], length: int) -> float:
    h, inner = config["hidden_size"], config["intermediate_size"]
    matrices = 4 * h * h + (3 if config["model_type"] == "modernbert" else 2) * h * inner
    return float(config["num_hidden_layers"] * length * (2 * matrices + 4 * length * h))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status, that of the command ``harmaug``."""
    parser = _Parser(prog="python -m harmaug.tools.bench", description="How fast this machine runs a guard.",
                     epilog="Exit status: 0 done; 2 wrong usage or no such guard; 130 interrupted.")
    parser.add_argument("--model", required=True, metavar="DIR", help='guard folder, fetched name or "standin"')
    parser.add_argument("--dtype", default="float32", help="storage of the weights (default: %(default)s)")
    parser.add_argument("--n-threads", type=int, metavar="N", help="threads (default: as many as the process may use)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="for each shape (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    try:
        args = parser.parse_args(argv)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    try:
        begun = time.perf_counter()
        guard = Guard.from_pretrained(standin_folder() if args.model == STANDIN else args.model, dtype=args.dtype, n_threads=args.n_threads)
        score = guard.score("How do I bake bread?")
        opened = time.perf_counter() - begun
        found = {"model": args.model, "seconds_to_first_score": opened, **measure(guard, seconds=args.seconds)}
        if args.json:
            _print_json(found)
            return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError) as exc:
        print(f"{parser.prog}: {' '.join(_message(exc).split())}", file=sys.stderr)
        return 2
    from harmaug.report import Table

    assert score.shape == (1,)
    lines = [["rows x tokens", "ms", "texts/s", "tokens/s", "GFLOP/s"]]
    lines += [[r["name"], f"{r['ms']:.2f} ({r['ms_min']:.2f})", *(f"{r[k]:.0f}" for k in ("texts_per_s", "tokens_per_s", "gflops"))] for r in found["shapes"]]
    print(f"{guard!r}\n{found['cpu']}, {found['cpu_isa']}, {found['threads']} threads, load {found['load']:.1f} before; opened and first score in "
          f"{opened:.2f} s; peak memory {found['peak_rss_mb']:.0f} MB")
    print(Table(lines, [_NOTES]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
