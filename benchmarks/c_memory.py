"""What harmaug-score takes, for a machine that is short of memory.

    python benchmarks/c_memory.py PROGRAM GUARD_FOLDER [--int8] [--embeddings int4] [--tokenizer FOLDER]

Prints the program's size, the weights', and for one row of 32 tokens the peak of resident memory, mapped files included, and the time from the process's start
to its end, the least of five. --int8: of the folder's weights stored in int8, in a folder that is removed afterwards; with --embeddings int4 word embeddings of
4 bits. --tokenizer: where that one's files are (bench_forward.py makes models of random weights that have none).
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("folder", type=Path)
    p.add_argument("--int8", action="store_true")
    p.add_argument("--embeddings", choices=["int4"])
    p.add_argument("--tokenizer", type=Path)
    return p.parse_args()


# What takes memory is done in processes of its own: the peak that the system tells of a program begins with that of the process that started it.

def quantize(source: Path, tokenizer: Path, target: Path, embeddings: str | None) -> None:
    """Write the weights of a folder in int8, as `Guard.save_pretrained` does."""
    from harmaug import _C

    _C.EncoderParams.read(source).write(target / "model.safetensors", dtype="int8", embeddings=embeddings)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"quantization_config": {"quant_method": "harmaug", "version": 2, "weights": "int8", "embeddings": embeddings or "int8"}}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in tokenizer.iterdir():
        if file.suffix not in (".safetensors", ".onnx", ".data") and file.is_file() and file.name != "config.json":
            shutil.copy(file, target)


def row_of_32_tokens(folder: Path) -> tuple[str, int]:
    """Return a text and its number of tokens."""
    from harmaug.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    text = "a"
    while len(tokenizer.encode(text + " a")) <= 32:
        text += " a"
    return text, len(tokenizer.encode(text))


def apart(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def measure(program: str, folder: Path) -> dict[str, Any]:
    """Score one row of 32 tokens five times."""
    text, tokens = apart(row_of_32_tokens, folder)
    row = (json.dumps({"prompt": text}) + "\n").encode()
    times, kib = [], 0
    for _ in range(5):
        begun = time.perf_counter()
        child = subprocess.Popen([program, "--threads", "1", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(row)
        child.stdin.close()
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        if status != 0:
            sys.exit(f"{program}: status {status}")
        times.append(time.perf_counter() - begun)
        kib = max(kib, usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1))
    weights = sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")
    return {"program_bytes": os.path.getsize(program), "weights_mb": round(weights / 1e6, 1), "tokens": tokens,
            "peak_mb": round(kib * 1024 / 1e6, 1), "seconds": round(min(times), 3), "score": json.loads(out)["score"]}


def main() -> None:
    args = parse()
    if not args.int8:
        print(json.dumps(measure(args.program, args.folder)))
        return
    with tempfile.TemporaryDirectory() as target:
        apart(quantize, args.folder, args.tokenizer or args.folder, Path(target), args.embeddings)
        print(json.dumps(measure(args.program, Path(target))))


if __name__ == "__main__":
    main()
