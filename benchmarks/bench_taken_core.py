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


def medians(call: Callable[[int], object], repeat: int) -> dict[int, float]:
    """Seconds of a call by its number of threads, in turns."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeat):
        for n, taken in times.items():
            start = time.perf_counter()
            call(n)
            taken.append(time.perf_counter() - start)
    return {n: statistics.median(taken) for n, taken in times.items()}


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
    for says in ("both cores free", "one core taken"):
        other = multiprocessing.get_context("spawn").Process(target=burn, args=(cpus[0],), daemon=True) if says == "one core taken" else None
        if other is not None:
            other.start()
            time.sleep(1.0)
        found = medians(call, a.repeat)
        if other is not None:
            other.kill()
            other.join()
        print(f"{says:16} 1 thread {found[1] * 1e3:8.1f}   2 threads {found[2] * 1e3:8.1f}   2 over 1: {found[2] / found[1]:.2f}")


if __name__ == "__main__":
    main()
