"""Building the C core outside the package, with the compiler that built it."""
import os
import re
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harmaug import _C

CSRC = Path(__file__).parents[1] / "csrc"
CC = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
OPENMP = ["-fopenmp"] if _C.build_info()["openmp"] else []
FLAGS = ["-std=c11", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", *OPENMP]


def isa_flags():
    """The flags of each instruction set that this build and this CPU share, as csrc/isas.mk gives them (a compiler is here, make need not be)."""
    variables = dict(re.findall(r"^(\w+) := *(.*)$", (CSRC / "isas.mk").read_text(), re.MULTILINE))

    def expand(name):
        return re.sub(r"\$\((\w+)\)", lambda m: expand(m[1]), variables[name])

    return {isa: expand(f"ISA_{isa}").split() for isa in _C.build_info()["cpu_isa_usable"] if isa != "scalar"}


_BUILT = {}


def objects(folder, sources):
    """Compile sources, named from csrc/, and the kernels of every instruction set; return the objects and the macros that went in.

    What an earlier call in this process compiled is taken from its folder.
    """
    isas = isa_flags()
    macros = [f"-DHA_HAVE_{isa.upper()}" for isa in isas]
    jobs = [(source, []) for source in sources] + [(f"kernels/kernels_{isa}.c", flags) for isa, flags in isas.items()]

    def compile_one(job):
        source, flags = job
        if source in _BUILT:
            return _BUILT[source]
        target = folder / (source.replace("/", "_") + ".o")
        subprocess.run([*CC, *FLAGS, *macros, *flags, "-c", CSRC / source, "-o", target], check=True)
        _BUILT[source] = target
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, jobs)), macros
