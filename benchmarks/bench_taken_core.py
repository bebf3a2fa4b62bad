"""Two threads while another program takes a core: no slower than one thread alone would be.

    python benchmarks/bench_taken_core.py MODEL_DIR [--shape 8 128] [--dtype float32] [--repeat 15]

A process that only counts is tied to one CPU; the encoder is called with one thread and with two in turns, with and without it. The ratio to be looked at is the
last one, two threads over one while the core is taken: above 1 a thread waits for the other that has no core.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from harmaug import _C


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--shape", type=int, nargs=2, default=(8, 128), metavar=("ROWS", "TOKENS"))
    p.add_argument("--dtype", default="float32")
    p.add_argument("--repeat", type=int, default=15)
    return p.parse_args()


def burn(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    while True:
        pass


def tell(says: str, call: Callable[[int], object], repeat: int) -> None:
    """Print the median time of a call with one thread and with two, taken in turns."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeat):
        for n, taken in times.items():
            start = time.perf_counter()
            call(n)
            taken.append(time.perf_counter() - start)
    one, two = (statistics.median(taken) for taken in times.values())
    print(f"{says:16} 1 thread {one * 1e3:8.1f}   2 threads {two * 1e3:8.1f}   2 over 1: {two / one:.2f}", flush=True)


def main() -> None:
    a = parse()
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise SystemExit("one CPU only: there is nothing to compare")
    os.sched_setaffinity(0, cpus)
    encoder = _C.Encoder(a.model, dtype=a.dtype)
    rows, tokens = a.shape
    ids = np.random.default_rng(0).integers(5, 1000, rows * tokens).astype(np.int32)
    offsets = np.arange(rows + 1, dtype=np.int64) * tokens

    def call(n_threads: int) -> object:
        return encoder.logits(ids, offsets, n_threads=n_threads)

    call(2)
    print(f"{a.model}, {rows}x{tokens}, {a.dtype}; median ms of {a.repeat}")
    tell("both cores free", call, a.repeat)
    other = multiprocessing.get_context("spawn").Process(target=burn, args=(cpus[0],), daemon=True)
    other.start()
    time.sleep(1.0)
    tell("one core taken", call, a.repeat)
    other.kill()


if __name__ == "__main__":
    main()
