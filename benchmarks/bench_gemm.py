"""Linear layers and matrix products: harmaug beside NumPy (and PyTorch, if installed), on the same arrays, interleaved in one run.

    python benchmarks/bench_gemm.py [--threads 1] [--seconds 1] [--json out.json]

A linear layer is x (m, k) W (n, k)^T: harmaug with the weight packed beforehand, NumPy as `x @ W.T`, PyTorch as
`torch.nn.functional.linear`. A product is `a @ b` of two arrays that nobody has seen before. The rows named bf16 hold weight (and, where the
CPU multiplies bfloat16, x) in bfloat16; their error is against the float64 product of the unrounded arrays. OPENBLAS_CORETYPE must be unset, or NumPy
runs below its best.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

# (m, n, k): one token, a batch of tokens and a prompt of SmolLM2-135M; short and long batches of MiniLM
LINEAR = [(1, 1536, 576), (1, 49152, 576), (16, 576, 576), (16, 1536, 576), (48, 576, 1536), (48, 49152, 576),
          (32, 384, 384), (128, 1536, 384), (512, 384, 1536), (1024, 1536, 384)]
# (m, n, k, a transposed, b transposed): attention's two products, and a weight gradient
PRODUCTS = [(32, 32, 32, False, True), (128, 128, 32, False, True), (128, 32, 128, False, False), (512, 512, 32, False, True),
            (1536, 384, 1024, True, False)]

# The waiting threads of every library spin for a while after a call, on the cores that the next contender needs: each turn begins with a
# rest and one call that does not count, and holds calls for TURN seconds
REST, TURN = 0.04, 0.01


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seconds", type=float, default=1.0, help="for each shape, all contenders together")
    p.add_argument("--json", help="also write the rows here")
    return p.parse_args()


def linear_contenders(x, w, threads):
    import numpy as np

    from harmaug import _C

    packed, packed16 = _C.Linear(w), _C.Linear(w, dtype="bfloat16")
    yield "harmaug", lambda: packed(x, n_threads=threads)
    yield "numpy", lambda: np.matmul(x, w.T)
    torch = optional_torch(threads)
    if torch is not None:
        tx, tw = torch.from_numpy(x), torch.from_numpy(w)
        yield "torch", lambda: torch.nn.functional.linear(tx, tw).numpy()
    yield "harmaug bf16", lambda: packed16(x, n_threads=threads)
    if torch is not None:
        tx16, tw16 = tx.bfloat16(), tw.bfloat16()
        yield "torch bf16", lambda: torch.nn.functional.linear(tx16, tw16).float().numpy()


def product_contenders(a, b, threads):
    import numpy as np

    from harmaug import _C

    yield "harmaug", lambda: _C.matmul(a, b, n_threads=threads)
    yield "numpy", lambda: np.matmul(a, b)
    torch = optional_torch(threads)
    if torch is not None:
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        yield "torch", lambda: torch.matmul(ta, tb).numpy()


def optional_torch(threads):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    return torch


def measure(what, contenders, exact, flops, seconds):
    """Check every contender's result, then time them in turn; return one row each."""
    import numpy as np

    runs = {name: (fn, []) for name, fn in contenders}
    error = {name: float(np.abs(fn() - exact).max()) for name, (fn, _) in runs.items()}     # also the warm-up
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(runs["harmaug"][1]) < 5:
        for fn, times in runs.values():
            time.sleep(REST)
            fn()
            turn = time.perf_counter() + TURN
            while True:
                start = time.perf_counter()
                fn()
                stop = time.perf_counter()
                times.append(stop - start)
                if stop > turn:
                    break
    rows = []
    for name, (_, times) in runs.items():
        median = statistics.median(times)
        base = statistics.median(runs["harmaug bf16" if name.endswith("bf16") else "harmaug"][1])
        rows.append({"what": what, "name": name, "median_s": median, "min_s": min(times), "gflops": flops / median / 1e9,
                     "ratio": median / base, "error": error[name], "runs": len(times)})
        print(f"{what:32}{name:14}{median * 1e6:11.1f}{min(times) * 1e6:11.1f}{flops / median / 1e9:9.1f}{median / base:9.2f}{error[name]:12.1e}",
              flush=True)
    return rows


def main():
    args = parse()
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = str(args.threads)    # before NumPy is loaded
    import numpy as np

    from harmaug.versions import versions

    machine = {**versions(), "load": os.getloadavg()[0], "threads asked for": args.threads, "date": time.strftime("%Y-%m-%d"),
               "command": " ".join(sys.argv)}
    torch = optional_torch(args.threads)
    machine["torch"] = torch.__version__ if torch is not None else "not installed"
    for key, value in machine.items():
        print(f"{key}: {value}")
    print(f"\n{'':46}{'median us':>11}{'min us':>11}{'GF/s':>9}{'x ours':>9}{'max error':>12}")

    rng = np.random.default_rng(0)
    rows = []
    for m, n, k in LINEAR:
        x, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32) / np.float32(k**0.5)
        exact = x.astype(np.float64) @ w.T.astype(np.float64)
        rows += measure(f"linear {m} x {n} x {k}", linear_contenders(x, w, args.threads), exact, 2.0 * m * n * k, args.seconds)
    for m, n, k, ta, tb in PRODUCTS:
        a = rng.normal(size=(k, m) if ta else (m, k)).astype(np.float32)
        b = rng.normal(size=(n, k) if tb else (k, n)).astype(np.float32)
        a, b = a.T if ta else a, b.T if tb else b
        exact = a.astype(np.float64) @ b.astype(np.float64)
        what = f"product {m} x {n} x {k}{' a^T' if ta else ''}{' b^T' if tb else ''}"
        rows += measure(what, product_contenders(a, b, args.threads), exact, 2.0 * m * n * k, args.seconds)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
