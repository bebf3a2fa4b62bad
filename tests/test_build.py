"""The build's own errors: one line, with the package to install."""
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(tmp_path, cc, **env):
    """Run build_ext with a compiler that refuses something; return (status, output)."""
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", tmp_path / "temp", "--build-lib", tmp_path / "lib"],
        cwd=ROOT, env={**os.environ, "CC": str(cc), **env}, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def compiler_without(tmp_path, word):
    """A compiler that fails on a source or an option that holds `word`, and on every real source, so that no test builds the package."""
    script = tmp_path / "cc"
    script.write_text(f"""#!/bin/sh
for arg in "$@"; do
    case "$arg" in {word}) exit 1 ;; csrc/*.c) exit 1 ;; *.c) grep -q '{word}' "$arg" && exit 1 ;; esac
done
exec {shutil.which("gcc") or shutil.which("cc")} "$@"
""")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def line_with(output, word):
    lines = [line for line in output.splitlines() if word in line]
    assert len(lines) == 1, output
    return lines[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the packages are named for Linux distributions")
class TestOneLineErrors:
    def test_no_compiler(self, tmp_path):
        status, output = build(tmp_path, "/nonexistent/cc")
        assert status == 1
        line = line_with(output, "error:")
        assert "no working C compiler (tried /nonexistent/cc)" in line
        assert "apt install gcc libc6-dev" in line and "dnf install gcc" in line

    def test_no_python_headers(self, tmp_path):
        status, output = build(tmp_path, compiler_without(tmp_path, "Python.h"))
        assert status == 1
        line = line_with(output, "error:")
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        assert f"Python.h of Python {version} not found" in line and f"apt install python{version}-dev" in line and "python3-devel" in line

    def test_no_openmp_is_a_warning(self, tmp_path):
        status, output = build(tmp_path, compiler_without(tmp_path, "-fopenmp"))
        assert status == 1  # the real sources were refused; the probe was before them
        line = line_with(output, "warning: no OpenMP")
        assert "single-threaded" in line and "libgomp1" in line

    def test_openmp_switched_off_is_silent(self, tmp_path):
        _, output = build(tmp_path, compiler_without(tmp_path, "-fopenmp"), HARMAUG_OPENMP="0")
        assert "no OpenMP" not in output
