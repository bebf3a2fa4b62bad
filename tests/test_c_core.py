"""The C core's own tests (tests/c), built with the compiler that builds the package, run once."""
import os
import re
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harmaug import _C

C_TESTS = Path(__file__).parent / "c"
CSRC = Path(__file__).parents[1] / "csrc"
CC = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]


def makefile_flags():
    """The flags of each instruction set, as tests/c/Makefile gives them (a compiler is here, make need not be)."""
    variables = dict(re.findall(r"^(\w+) := *(.*)$", (C_TESTS / "Makefile").read_text(), re.MULTILINE))

    def expand(name):
        return re.sub(r"\$\((\w+)\)", lambda m: expand(m[1]), variables[name])

    flags = {isa: expand(f"ISA_{isa}") for isa in ("avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "neon", "neondot")}
    return {isa: text.split() for isa, text in flags.items()}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Folder with the test programs, of every instruction set that this build has."""
    folder = tmp_path_factory.mktemp("c")
    openmp = ["-fopenmp"] if _C.build_info()["openmp"] else []
    base = ["-std=c11", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", *openmp]
    isas = {isa: flags for isa, flags in makefile_flags().items() if isa in _C.build_info()["cpu_isa_usable"]}
    macros = [f"-DHA_HAVE_{isa.upper()}" for isa in isas]
    core = ["core/parallel.c", "core/status.c", "kernels/kernels.c", "kernels/quantize.c", "kernels/kernels_scalar.c"]
    jobs = [(CSRC / source, []) for source in core] + [(CSRC / f"kernels/kernels_{isa}.c", flags) for isa, flags in isas.items()]

    def compile_one(job):
        source, flags = job
        target = folder / f"{source.stem}.o"
        subprocess.run([*CC, *base, *macros, *flags, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    for test in ("test_kernels", "test_parallel"):
        subprocess.run([*CC, *base, *macros, C_TESTS / f"{test}.c", *objects, "-pthread", "-lm", "-o", folder / test], check=True)
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
