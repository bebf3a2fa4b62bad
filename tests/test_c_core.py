"""The C core's own tests (tests/c), built with the compiler that builds the package, run once."""
import re
import subprocess
from pathlib import Path

import c_build
import pytest

from harmaug import _C

C_TESTS = Path(__file__).parent / "c"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Folder with the test programs, of every instruction set that this build has."""
    folder = tmp_path_factory.mktemp("c")
    objects, macros = c_build.objects(folder, ["core/parallel.c", "core/status.c", "kernels/kernels.c", "kernels/kernels_scalar.c"])
    for test in ("test_kernels", "test_parallel"):
        subprocess.run([*c_build.CC, *c_build.FLAGS, *macros, C_TESTS / f"{test}.c", *objects, "-pthread", "-lm", "-o", folder / test], check=True)
    return folder


def test_every_kernel_of_every_instruction_set(programs):
    run = subprocess.run([programs / "test_kernels"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    lines = run.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == _C.build_info()["cpu_isa_usable"]
    assert all(int(line.split()[1]) > 1000 for line in lines[:-1]) and lines[-1].endswith(" 0 failed")


def test_threads_quota_and_fork(programs):
    run = subprocess.run([programs / "test_parallel"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert re.search(r"^\d+ passed, 0 failed$", run.stdout, re.MULTILINE)
