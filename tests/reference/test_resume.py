"""A SmolLM2 run of 200 rows, killed with SIGKILL at random moments and begun again, ends with the unbroken run's bytes.

HARMAUG_MODELS: filled by `harmaug models fetch smollm2`. HARMAUG_KILLS: how often (6 here; 100 take half an hour on one
core: `HARMAUG_KILLS=100 taskset -c 0 pytest -s tests/reference/test_resume.py`). HARMAUG_TEST_SEED: which moments.
"""
import json
import os
import random
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

from harmaug.runs import sha256

FILES = ("instructions.jsonl", "rejected.jsonl", "pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl")
CONFIG = """
[data]
seed = [{{ file = "{data}/seed.jsonl", limit = 120 }}]
evaluation = {{ held_out = "{data}/eval.jsonl" }}
[generator]
batch_size = 16
[augment]
samples = 128
benign = 72
rows_per_draw = 4
max_new_tokens = 24
[respond]
responses = "pairs"
max_new_tokens = 16
limit = 40
[label]
cache = false
batch_size = 16
"""


def start(folder):
    command = [sys.executable, "-m", "harmaug", "run", "config.toml", "--out", folder.name, "--quiet", "--offline", "--n-threads", "1"]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.DEVNULL)


def killed(process, folder, rng, most):
    """Kill it at some moment: half the time any, half the time when it has written up to `most` bytes more. False if it ended first."""
    def size():
        return sum((folder / name).stat().st_size for name in FILES if (folder / name).exists())

    before, more = size(), rng.choice((0, rng.uniform(1, most)))
    ends = time.monotonic() + (rng.uniform(0.05, 8) if not more else 600)
    while time.monotonic() < ends and process.poll() is None and not (more and size() > before + more):
        time.sleep(0.003)
    time.sleep(rng.uniform(0, 0.3) if more else 0)
    process.kill()
    return process.wait() < 0


def hashes(folder):
    return {name: sha256(folder / name) for name in FILES}


def test_killed_at_random_moments(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG.format(data=resources.files("harmaug") / "data"))
    assert start(tmp_path / "unbroken").wait() == 0
    whole, wanted = {name: (tmp_path / "unbroken" / name).read_bytes() for name in FILES}, hashes(tmp_path / "unbroken")
    assert whole["instructions.jsonl"].count(b"\n") + whole["rejected.jsonl"].count(b"\n") == 200
    rng = random.Random(int(os.environ.get("HARMAUG_TEST_SEED", "6")))
    total, kills, runs, process, stages = int(os.environ.get("HARMAUG_KILLS", "6")), 0, 0, None, {}
    while kills < total or runs == 0:
        folder = tmp_path / f"killed{runs}"
        while kills < total and killed(process := start(folder), folder, rng, 900_000 / total):
            kills += 1
            done = json.loads((folder / "run.json").read_text())["stages"] if (folder / "run.json").exists() else {}
            at = next((name for name, entry in done.items() if not entry.get("done")), "between stages" if done else "start")
            stages[at] = stages.get(at, 0) + 1
            for name in FILES:      # what is there is a beginning of what comes, but for a torn line
                content = (folder / name).read_bytes() if (folder / name).exists() else b""
                assert whole[name].startswith(content[:content.rfind(b"\n") + 1])
        assert (process.returncode if kills < total else start(folder).wait()) == 0 and hashes(folder) == wanted
        runs += 1
        print(time.strftime("%H:%M:%S"), f"{kills} kills so far, {stages}; run {runs} ended with the same sha256", flush=True)
    assert not [path.name for path in Path(folder).iterdir() if path.name.startswith(".")]
