"""What is installed and what it runs on, for bug reports and run records."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import numpy as np

from harmaug import _C


def release(package: str) -> str | None:
    """Return a package's version, or None where it is not installed (built in its source folder)."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the CPU's name as the operating system tells it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model") and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return versions, build, CPU, instruction set and threads, in the order in which `show_versions` prints them."""
    info = _C.build_info()
    threads = str(info["threads"])
    if not info["openmp"]:
        threads = "1: single-threaded, because it was built without OpenMP"
    elif info["threads"] == 1:
        reason = "OMP_NUM_THREADS, " if os.environ.get("OMP_NUM_THREADS") else ""
        threads = f"1: single-threaded, because of {reason}the cores or the CPU quota that this process was given"
    isa = info["cpu_isa"]
    usable = ", ".join(info["cpu_isa_usable"])
    if isa == "scalar":
        why = "this CPU or build has no other" if usable == "scalar" else "it was chosen"
        if os.environ.get("HARMAUG_CPU_ISA"):
            why = "HARMAUG_CPU_ISA"
        isa = f"scalar: no vector instructions are used ({why}); several times slower"
    return {
        "harmaug": release("harmaug") or "not installed (built in its source folder)",
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "numpy": np.__version__,
        "system": platform.platform(),
        "build": f"{info['compiler']}, {'OpenMP' if info['openmp'] else 'no OpenMP'}",
        "CPU": cpu_model(),
        "instruction set": isa,
        "usable": usable,
        "threads": threads,
    }


def show_versions() -> None:
    """Print versions, build, CPU, instruction set and threads; in words when the build is single-threaded or scalar.

    Examples
    --------
    >>> show_versions()  # doctest: +ELLIPSIS
    harmaug: ...
    """
    for name, value in versions().items():
        print(f"{name}: {value}")
