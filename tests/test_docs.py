"""README, documents and notebooks say what is there: commands and settings exist, links resolve, code compiles."""
from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shlex
from pathlib import Path

import msgspec
import pytest

import harmaug
from harmaug import cli, pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "NOTICE")] + sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_first_ten_lines_of_the_readme() -> None:
    lines = README.splitlines()[:10]
    assert "independent implementation" in lines[2] and "not affiliated with the paper's authors" in lines[2]
    assert "`pip install . && harmaug quickstart`" in "\n".join(lines) and "`pip install '.[test]' && pytest`" in "\n".join(lines)
    assert sum(line.startswith("|") for line in lines) >= 4


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve_and_claims_are_modest(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    assert not re.search(r"\b(?:fastest|world's|state-of-the-art|blazing|best-in-class|revolutionary)\b", text, re.IGNORECASE)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme(code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "harmaug":
            assert node.attr in harmaug.__all__, node.attr
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            source = (ROOT / (node.module.replace(".", "/") + ".py"))
            if source.exists():
                names = {n.name for n in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
                assert {alias.name for alias in node.names} <= names


def test_settings_of_the_readme() -> None:
    for text in blocks("toml"):
        tables = msgspec.toml.decode(text.encode())
        assert set(tables) <= {"data", "generator", *pipeline.STAGES}
        pipeline.Config.from_dict(tables, "README.md")


def test_commands_of_the_readme() -> None:
    commands = [line.split("#")[0].strip() for text in blocks("bash") for line in text.splitlines()]
    commands = [re.sub(r"^(?:\w+=\S+ )+", "", command) for command in commands]
    ours = [shlex.split(command)[1:] for command in commands if command.startswith("harmaug ")]
    assert len(ours) >= 4
    for argv in ours:
        cli._parser(argv).parse_args(argv)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_clean_and_hold_no_functions(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            tree = ast.parse("".join(cell["source"]))
            assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(tree))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "harmaug").glob("*.py") if path.stem != "__main__"))
def test_examples_of_the_docstrings(name: str) -> None:
    module = harmaug if name == "__init__" else importlib.import_module(f"harmaug.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_citation_names_the_paper_and_the_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "arXiv:2410.01524" in text and text.count("family-names:") == 9
    version = re.search(r'^version = "([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None and f"version: {version[1].rstrip('.')}" in text
