"""python .ci/notebooks.py FOLDER [--write]: the notebooks' outputs against those of a fresh execution in FOLDER.

With --write the fresh outputs are taken over, without progress bars, logs and what names this machine. Else it fails where a cell shows other words: numbers
apart, and of the notebooks whose rows no language model samples, as those depend on the processor.
"""
import json
import os
import platform
import re
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parents[1] / "notebooks"
SAMPLED = ("01_quickstart", "02_augment")
PLACES = {f"{sysconfig.get_paths()[name]}/": "" for name in ("platlib", "purelib")} | {
    sys.prefix: "venv", os.environ.get("HARMAUG_CACHE", "~/.cache/harmaug"): "~/.cache/harmaug", f"{os.path.expanduser('~')}/": "~/", f"{platform.release()}-": ""}
BAR = "application/vnd.jupyter.widget-view+json"


def cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown(cell):
    """What a cell shows on any machine."""
    text = json.dumps([found for found in cell["outputs"] if found.get("name") != "stderr" and BAR not in found.get("data", {})])
    for place, instead in PLACES.items():
        text = text.replace(place, instead)
    return json.loads(text)


def words(cell):
    """The words that a cell shows without a click."""
    texts = ["".join(text) for found in shown(cell) for text in (found.get("text", ""), *found.get("data", {}).values())]
    text = re.sub(r"<details>.*?</details>", "", " ".join(texts), flags=re.DOTALL)
    return set(re.findall(r"[A-Za-z]{2,}", re.sub(r"\d[\d.]*(?:e[-+]?\d+)?", " ", text))) - {"True", "False", "None", "nan"}


def main(folder, *options):
    failed = False
    for path in sorted(HERE.glob("*.ipynb")):
        fresh = cells(folder / path.name)
        if "--write" in options:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            for cell, new in zip((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), fresh, strict=True):
                cell |= {"outputs": shown(new), "execution_count": new["execution_count"]}
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        elif path.stem not in SAMPLED:
            for number, (old, new) in enumerate(zip(cells(path), fresh, strict=True), 1):
                if words(old) != words(new):
                    failed = True
                    print(f"{path.name}, cell {number}: its output is stale: {sorted(words(old) ^ words(new))}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
