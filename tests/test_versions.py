"""What the package says of itself, and what importing it costs and leaves behind."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import harmaug
from harmaug import _C, versions


def python(code, cwd=None, **env):
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "HARMAUG_CPU_ISA")}
    root = str(Path(harmaug.__file__).parents[1])
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, env={**clean, "PYTHONPATH": root, **env}, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout, run.stderr


def test_show_versions_names_everything(capsys):
    harmaug.show_versions()
    out = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(lines) == ["harmaug", "python", "numpy", "system", "build", "CPU", "instruction set", "usable", "threads"]
    assert lines["numpy"] == np.__version__ and all(lines.values())
    assert lines["usable"].split(", ") == _C.build_info()["cpu_isa_usable"]


def test_says_in_words_when_slow(monkeypatch):
    info = {**_C.build_info(), "cpu_isa": "scalar", "cpu_isa_usable": ["scalar"], "openmp": False, "threads": 1}
    monkeypatch.setattr(versions, "_C", type("core", (), {"build_info": staticmethod(lambda: info)}))
    said = versions.versions()
    assert "single-threaded, because it was built without OpenMP" in said["threads"]
    assert "no vector instructions are used (this CPU or build has no other)" in said["instruction set"]
    info.update(openmp=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "single-threaded, because of OMP_NUM_THREADS" in versions.versions()["threads"]


def test_environment_chooses_threads_and_instruction_set():
    code = "from harmaug import _C; info = _C.build_info(); print(info['threads'], info['cpu_isa'])"
    assert python(code, OMP_NUM_THREADS="1", HARMAUG_CPU_ISA="scalar")[1].split() == ["1", "scalar"]
    status, _, error = python("import harmaug", HARMAUG_CPU_ISA="z80")
    assert status == 1 and "HARMAUG_CPU_ISA: instruction set 'z80' is unknown" in error


def test_import_is_light_and_leaves_no_setting():
    code = ("import os, sys, harmaug; print('GOMP_SPINCOUNT' in os.environ, "
            "sorted(m for m in sys.modules if m.startswith('harmaug')), 'msgspec' in sys.modules)")
    assert python(code)[1].strip() == "False ['harmaug', 'harmaug._C'] False"
    assert python("import os, harmaug; print(os.environ['GOMP_SPINCOUNT'])", GOMP_SPINCOUNT="7")[1].strip() == "7"


def test_names_appear_on_first_use():
    assert "Tokenizer" in dir(harmaug) and harmaug.FormatError is _C.FormatError
    assert harmaug.evaluate.__name__ == "harmaug.evaluate"
    with pytest.raises(AttributeError, match="module 'harmaug' has no attribute 'nonsense'"):
        harmaug.nonsense  # noqa: B018


def test_source_folder_without_the_core(tmp_path):
    (tmp_path / "harmaug").mkdir()
    (tmp_path / "harmaug/__init__.py").write_text(Path(harmaug.__file__).read_text())
    status, _, error = python("import harmaug", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert status == 1
    assert error.splitlines()[-1] == "ImportError: harmaug is imported from its source folder; leave it or `pip install -e .`"
