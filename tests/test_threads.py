"""How many threads a process uses: chosen when a call begins, serial in a fork whose parent ran threads, and said so once."""
import os
import subprocess
import sys

import pytest
from test_guard import write

from harmaug import _C

HEAD = """
import os, sys, warnings
warnings.simplefilter("always")
import numpy as np
from harmaug import _C
from harmaug.guard import Guard
guard = Guard.from_pretrained(sys.argv[1], n_threads=None)
prompts = ["a b c " * (i % 9) for i in range(3000)]

def in_child(body):
    pid = os.fork()
    if pid == 0:
        import signal
        signal.alarm(60)
        try:
            body()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 1
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0

def caught(call):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in said if issubclass(w.category, RuntimeWarning) and "harmaug" in str(w.message)]
"""
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(folder, code, **environment):
    done = subprocess.run([sys.executable, "-c", HEAD + code, str(folder)], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("threads") / "guard")


@forks
def test_a_fork_before_the_first_score_has_all_threads(folder):
    out = run(folder, """
threads = _C.build_info()["threads"]
def child():
    scores, said = caught(lambda: guard.score(prompts))
    assert said == [] and _C.build_info()["threads"] == threads, said
    np.save(sys.argv[1] + "/child.npy", scores)
in_child(child)
assert (np.load(sys.argv[1] + "/child.npy") == guard.score(prompts)).all()
print("ok")
""")
    assert out == "ok\n"


@forks
def test_a_fork_after_a_score_is_serial_and_says_so_once(folder):
    out = run(folder, """
_C.matmul(np.ones((512, 512)), np.ones((512, 512)), n_threads=2)      # a region, also where one core is ours
want = guard.score(prompts)
def child():
    scores, said = caught(lambda: (guard.score(prompts), guard.score(prompts))[1])
    assert (scores == want).all()
    if _C.build_info()["openmp"]:
        assert len(said) == 1 and "forked after its parent had run threads, so it works single-threaded" in said[0], said
        assert _C.build_info()["threads"] == 1
    assert caught(lambda: guard.score("a"))[1] == []
in_child(child)
def asked_for_one():
    assert caught(lambda: guard.encoder.logits([1, 2], [0, 2], n_threads=1))[1] == []
in_child(asked_for_one)
print("ok")
""")
    assert out == "ok\n"


@forks
def test_a_pool_of_another_user_of_openmp_does_not_hang_a_child(folder):
    """torch, or anything that shares libgomp, ran a region before the fork; this package did not."""
    out = run(folder, """
import ctypes
try:
    gomp = ctypes.CDLL("libgomp.so.1")
except OSError:
    print("ok"), sys.exit()
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda arg: None)
gomp.GOMP_parallel(body, None, 4, 0)
want = guard.score(["a"] * 3)
in_child(lambda: guard.score(prompts))
in_child(lambda: _C.matmul(np.ones((512, 512)), np.ones((512, 512)), n_threads=2))
gomp.GOMP_parallel(body, None, 4, 0)
print("ok")
""")
    assert out == "ok\n"


def test_the_default_follows_affinity_and_environment_and_leaves_openmp_alone(folder):
    out = run(folder, """
import ctypes
mine = sorted(os.sched_getaffinity(0))
threads = _C.build_info()["threads"]
assert 1 <= threads <= len(mine)
try:
    gomp = ctypes.CDLL("libgomp.so.1")
    before = gomp.omp_get_max_threads()
except OSError:
    gomp = None
guard.score(prompts)
os.sched_setaffinity(0, mine[:1])
assert _C.build_info()["threads"] == 1
guard.score(prompts)
os.sched_setaffinity(0, mine)
assert _C.build_info()["threads"] == threads
assert gomp is None or gomp.omp_get_max_threads() == before
print("ok")
""") if hasattr(os, "sched_setaffinity") else "ok\n"
    assert out == "ok\n"
    assert run(folder, "print(_C.build_info()['threads'])", OMP_NUM_THREADS="1") == "1\n"
    assert run(folder, "print(_C.build_info()['threads'])", OMP_NUM_THREADS="4096,2") == f"{_C.build_info()['threads']}\n"
