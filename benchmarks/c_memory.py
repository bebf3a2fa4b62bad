"""What harmaug-score takes: ``python c_memory.py PROGRAM GUARD_FOLDER``, for a machine that is short of memory.

The program's size, the weights', and for one row of 32 tokens the peak of resident memory, mapped files included, and the time from the process's start to
its end, the least of five.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from harmaug.tokenizer import Tokenizer

program, folder = sys.argv[1], Path(sys.argv[2])
tokenizer = Tokenizer.from_pretrained(folder)
text = "a"
while len(tokenizer.encode(text + " a")) <= 32:
    text += " a"
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
print(json.dumps({"program_bytes": os.path.getsize(program), "weights_mb": round(weights / 1e6, 1), "tokens": len(tokenizer.encode(text)),
                  "peak_mb": round(kib * 1024 / 1e6, 1), "seconds": round(min(times), 3), "score": json.loads(out)["score"]}))
