"""README, documents and notebooks say what is there: links resolve, commands parse, code runs.

Blocks tagged python, bash and toml run here, in order, on tiny models and settings. What cannot run in a moment (a build, a download, a server that stays) is
tagged sh or py: shown only, though commands of harmaug's in it are parsed.
"""
from __future__ import annotations

import ast
import contextlib
import csv
import doctest
import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_generator
import msgspec
import numpy as np
import pytest
from test_pipeline import write_bert, write_llama

import harmaug
from harmaug import cli, data, models, pipeline, teacher

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "NOTICE")] + sorted((ROOT / "docs").rglob("*.md"))
MODULES = sorted(path.stem for path in (ROOT / "harmaug").glob("*.py") if path.stem != "__main__")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


SMALLER = {"samples = 800": "samples = 24", "benign = 400": "benign = 16", "max_steps = 150": "max_steps = 2", "max_steps=150": "max_steps=2", "max_steps=100": "max_steps=2",
           "samples=64, benign=32": "samples=16, benign=16", "n=1000": "n=8", "--max-length 128 >": "--max-length 128 --count 5 >", "n=4, max_new_tokens=24": "n=2, max_new_tokens=4"}


def blocks(path: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of a document's blocks, those of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if language in languages]


def test_the_first_ten_lines_of_the_readme() -> None:
    lines = README.splitlines()[:10]
    assert "independent implementation" in lines[2] and "not affiliated with the paper's authors" in lines[2]
    assert "`pip install . && harmaug quickstart`" in "\n".join(lines) and "`pip install '.[test]' && pytest -n 2`" in "\n".join(lines)
    assert sum(line.startswith("|") for line in lines) >= 4


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve_and_claims_are_modest(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    assert not re.search(r"\b(?:fastest|world's|state-of-the-art|blazing|best-in-class|revolutionary)\b", text, re.IGNORECASE)


# -- blocks --

@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the documents name, and tiny models in the place of those that they name; RUN is the README's own."""
    folder = tmp_path_factory.mktemp("world")
    bert = write_bert(tmp_path_factory.mktemp("models") / "bert")
    places = {"minilm": bert, "smollm2": write_llama(bert.parent / "tiny.gguf"), "hbseong/HarmAug-Guard": bert}
    rows = [json.dumps(row.to_dict()) + "\n" for row in fake_generator.seed_rows()]
    mild = [{"prompt": f"{'How to harm' if i % 2 else 'How to help'} person {i}", "label": i % 2, "score": i / 40} for i in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(models, "resolve", lambda name, **_: places.get(str(name), Path(name)))
        patch.setattr(models, "fetch", lambda name, **_: {name: places[name]})
        patch.setattr(teacher, "standin_folder", lambda: bert)
        Path("train.jsonl").write_text("".join(rows))
        Path("safe.jsonl").write_text("".join(row for row in rows if '"label":0' in row or '"label": 0' in row) * 4)
        for name in ("test", "rows", "scored"):
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mild))
        for name, columns in (("desk", ("text", "toxic", "answer", "topic")), ("toxic-chat_annotation_test", ("user_input", "toxicity"))):
            with open(f"{name}.csv", "w", newline="") as out:
                csv.writer(out).writerows([columns, *([row["prompt"], *((("no", "yes")[row["label"]], "", "") if name == "desk" else (row["label"],))]
                                                      for row in mild)])
        run_block("toml", next(text for _, text in blocks(ROOT / "README.md", "toml")), {})
        assert cli.main(["run", "mine.toml", "--out", "RUN", "--quiet"]) == 0
        shutil.copytree("RUN/guard", "other-guard")
        scores = harmaug.Guard.from_pretrained("RUN/guard").score([str(row["prompt"]) for row in mild])      # a guard without sense, and a file that it is good at
        labels = (scores > np.median(scores)).astype(int)
        Path("valid.jsonl").write_text("".join(json.dumps(row | {"label": int(label) ^ (i == 3)}) + "\n" for i, (row, label) in enumerate(zip(mild, labels))))
        yield folder


def run_block(language: str, text: str, names: dict[str, object]) -> None:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    if language == "toml":
        Path("mine.toml").write_text(text)
    elif language == "python":
        exec(compile(text, "block", "exec"), names)
    else:
        for words in filter(None, (shlex.split(line, comments=True) for line in text.splitlines())):
            with contextlib.ExitStack() as stack:
                if ">" in words:
                    stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(words[-1], "w"))))
                    words = words[:words.index(">")]
                if words[0] == "harmaug":
                    assert cli.main(words[1:]) in ((0, 1) if "--gate" in words else (0,)), words
                else:
                    assert words[:2] == ["python", "-m"], words
                    patch = stack.enter_context(pytest.MonkeyPatch.context())
                    patch.setattr(sys, "argv", words[2:])
                    patch.delitem(sys.modules, words[2], raising=False)     # another test's; runpy warns of it
                    with pytest.raises(SystemExit, match="^0$"):
                        runpy.run_module(words[2], run_name="__main__")


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path, "python", "bash")], ids=lambda path: path.name)
def test_blocks_run(world: Path, path: Path) -> None:
    names: dict[str, object] = {"guard": harmaug.Guard.from_pretrained("RUN/guard"), "prompts": ["a", "b"], "responses": [None, "c"], "np": np,
                                "tensor": np.ones((2, 8 + 2), np.int8), "k": 8}
    for language, text in blocks(path, "python", "bash", "toml"):
        run_block(language, text, names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_and_commands_are_known(path: Path) -> None:
    for _, text in blocks(path, "toml"):
        tables = msgspec.toml.decode(text.encode())
        tables.pop("sweep", None)       # tests/test_sweep.py has a whole one
        pipeline.Config.from_dict({"data": {"seed": []}, **tables}, path.name)
    for _, text in blocks(path, "bash", "sh"):
        for line in text.splitlines():
            words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
            if words[:1] == ["harmaug"]:
                cli._parser(words[1:]).parse_args(words[1:])


def test_every_page_and_module_is_reached() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in nav] == []
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert [page for page in pages if page.startswith("reference/") and f"({page.removeprefix('reference/')})" not in index + "(index.md)"] == []
    assert [name for name in harmaug.__all__ if f"harmaug.{name}" not in index] == []
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "harmaug").glob("[a-z]*.py") if f"`{path.name}`" not in design] == []


def test_every_block_has_a_known_tag() -> None:
    found = {language for path in DOCUMENTS for language in re.findall(r"^```([^\n]*)\n.*?^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)}
    assert found <= {"", "bash", "bibtex", "c", "json", "py", "python", "sh", "toml"}
    assert len(blocks(ROOT / "README.md", "python", "bash")) >= 8


# -- notebooks --

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_were_run_whole_and_show_harmful_text_on_a_click_only(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and path.stat().st_size < 200_000
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    harmful = {row.prompt for name in ("seed", "eval") for row in data.read_rows(ROOT / "harmaug" / "data" / f"{name}.jsonl") if row.label}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(tree))
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result") and output.get("name") != "stderr"
            shown = {kind: "".join(text) for kind, text in {**output.get("data", {}), "stream": output.get("text", "")}.items()}
            shown["text/html"] = re.sub(r"<details>.*?</details>", "", shown.get("text/html", ""), flags=re.DOTALL)
            for text in shown.values():
                assert not any(prompt in text for prompt in harmful) and not re.search(r"/(?:tmp|root|home|work)/", text)


def documented(found: object) -> dict[str, str]:
    """Name to type of each parameter that a docstring tells, if it has a section of them."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}|\Z)", inspect.getdoc(found) or "", re.DOTALL | re.MULTILINE)
    lines = [line.partition(" : ") for line in section[1].splitlines() if line[:1].strip()] if section else []
    return {name.strip("*"): kind for names, _, kind in lines for name in re.split(r",\s*", names)}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_tell_every_parameter(name: str) -> None:
    module = harmaug if name == "__init__" else importlib.import_module(f"harmaug.{name}")
    own = {key: found for key, found in vars(module).items() if not key.startswith("_") and getattr(found, "__module__", "") == module.__name__}
    own |= {f"{key}.{method}": getattr(found, method) for key, found in own.items() if inspect.isclass(found) for method in vars(found) if not method.startswith("_")}
    for key, found in own.items():
        told = documented(found)
        if not told or not callable(found):
            continue
        known = {name: one for name, one in inspect.signature(found).parameters.items() if name not in ("self", "cls")}
        assert {name for name, one in known.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)} <= set(told) <= set(known), key
        assert [name for name, kind in told.items() if re.search(r"optional|default", kind) and known[name].default is inspect.Parameter.empty] == [], key


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings(name: str) -> None:
    module = harmaug if name == "__init__" else importlib.import_module(f"harmaug.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_citation_names_the_paper_and_the_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "arXiv:2410.01524" in text and text.count("family-names:") == 9
    version = re.search(r'^version = "([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None and f"version: {version[1].rstrip('.')}" in text
