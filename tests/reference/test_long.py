"""The tests of which the light tier runs a part (see tests/sizes.py), whole; and what takes too long there."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmaug import models

SIZES = {"some", "code_points", "KILLS", "CUTS"}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(Path(__file__).parents[1].glob("test_*.py"))}
PARTLY = {path: names for path, tree in TREES.items() if (names := [
    f.name for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("test_")
    and any(isinstance(node, ast.Name) and node.id in SIZES for node in ast.walk(f))])}


@pytest.mark.parametrize("path", PARTLY, ids=lambda path: path.stem)
def test_whole(path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"{path}::{name}" for name in PARTLY[path])]
    subprocess.run(command, env={**os.environ, "HARMAUG_TEST_WHOLE": "1"}, check=True)


def test_pip_from_a_temporary_environment(tmp_path, monkeypatch):
    """An environment without pip gets one for the moment."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.delenv("PYTHONPATH", raising=False)     # it may name a folder that holds pip
    monkeypatch.setattr(models.sys, "executable", str(bare / "bin" / "python"))
    (tmp_path / "w").mkdir()
    command = models._pip(tmp_path / "w")
    assert command[0].startswith(str(tmp_path / "w"))
    assert subprocess.run([*command, "--version"], check=True, capture_output=True).stdout.startswith(b"pip ")
