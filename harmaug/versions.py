"""What is installed and what it runs on, for bug reports and run records."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import numpy as np

from harmaug import _C


def cpu_model() -> str:
    """Return the CPU's name as the operating system tells it.

    Returns
    -------
    str
        For example ``"AMD EPYC 9R14"``; the architecture where the system names no model.
    """
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
    """Return versions, build, CPU and threads, as `show_versions` prints them.

    Returns
    -------
    dict of str to str
        In the order of printing.

    Examples
    --------
    >>> sorted(versions())[:3]
    ['CPU', 'build', 'harmaug']
    """
    info = _C.build_info()
    try:
        release = importlib.metadata.version("harmaug")
    except importlib.metadata.PackageNotFoundError:
        release = "not installed (built in its source folder)"
    if not info["openmp"]:
        threads = "1: single-threaded, because it was built without OpenMP"
    elif info["threads"] == 1:
        reason = "OMP_NUM_THREADS, " if os.environ.get("OMP_NUM_THREADS") else ""
        threads = f"1: single-threaded, because of {reason}the cores or the CPU quota that this process was given"
    else:
        threads = str(info["threads"])
    isa = info["cpu_isa"]
    usable = ", ".join(info["cpu_isa_usable"])
    if isa == "scalar":
        why = "HARMAUG_CPU_ISA" if os.environ.get("HARMAUG_CPU_ISA") else "this CPU or build has no other" if usable == "scalar" else "it was chosen"
        isa = f"scalar: no vector instructions are used ({why}); several times slower"
    return {
        "harmaug": release,
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
    """Print versions, build, CPU, instruction set and threads.

    Says in words when the build is single-threaded or no vector instructions are used.

    Examples
    --------
    >>> show_versions()  # doctest: +ELLIPSIS
    harmaug: ...
    """
    for name, value in versions().items():
        print(f"{name}: {value}")
