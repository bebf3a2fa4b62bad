"""``python -m harmaug.tools.tokenize``."""
from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from test_guard import write
from test_tokenizer import bert

from harmaug import Guard, Tokenizer, data, evaluate
from harmaug.tools import bench, tokenize, windows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    bert().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_and_counts(model: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    tok = Tokenizer.from_pretrained(model)
    rows = [{"prompt": f"the dog {i}", "response": None if i % 2 else "a"} for i in range(2500)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (model / "rows.jsonl").write_text(lines)
    (model / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (model / "text.txt").write_text("the dog\r\n\na", newline="")

    def run(*argv: str) -> list[object]:
        assert tokenize.main(["--model", str(model), *argv]) == 0
        return [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]

    prompts, responses = [r["prompt"] for r in rows], [r["response"] for r in rows]
    assert run(str(model / "rows.jsonl")) == run(str(model / "rows.jsonl.gz"), "--n-threads", "1") == [r.tolist() for r in tok.encode_batch(prompts)]
    assert run(str(model / "rows.jsonl"), "--pair", "response", "--counts") == tok.count_tokens(prompts, responses).tolist()
    assert run(str(model / "text.txt")) == [tok.encode(t) for t in ("the dog", "", "a")]
    assert run(str(model / "rows.jsonl"), "--text", "response", "--no-special-tokens", "--plain", "--max-length", "2")[0] == tok.encode(lines.splitlines()[0], None, False)[:2]


@pytest.mark.parametrize(("content", "argv", "match"), [
    ('{"prompt": "a"}\n{"prompt": 5}\n', [], r"rows.jsonl, line 2: column 'prompt' must be text, got int"), ('{"prompt": "a"}\n{}\n', [], "line 2: column 'prompt' must be text, got nothing"),
    ('{"prompt": "a", "b": []}', ["--pair", "b"], "line 1: column 'b' must be text, got list"), ('{"prompt"', [], "line 1: wrong JSON"), ("", ["--max-length", "-3"], None),
    ('{"prompt": "a"}', ["--max-length", "-3"], "line 1: max_length must be >= 0"), (b"\xff\n", ["--plain"], "line 1: not UTF-8"), ("", ["--model", "/nowhere"], "nowhere"),
    ("", ["--wrong"], "unrecognized arguments: --wrong"),
])
def test_errors(content: str | bytes, argv: list[str], match: str | None, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = model / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    status = tokenize.main(["--model", str(model), str(file), *argv])
    said = capfd.readouterr().err
    assert status == (0 if match is None else 2) and (match is None or match in said) and said.count("\n") == (match is not None), said


def test_as_a_module(model: Path) -> None:
    command = [sys.executable, "-m", "harmaug.tools.tokenize", "--model", str(model), "--plain", "--counts"]
    done = subprocess.run(command, input="the dog\na\n", capture_output=True, text=True, check=True)
    assert done.stdout == "4\n3\n" and done.stderr == ""
    told = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, check=True).stdout
    assert "--counts" in told and "Exit status" in told


# -- bench --

def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "guard")      # 40 tokens at most: the shapes of 128 are left out
    assert bench.main(["--model", str(folder), "--seconds", "0.01", "--n-threads", "1"]) == 0
    told = capsys.readouterr().out
    assert "1 threads" in told and "1 x 32" in told and "1 x 128" not in told and "peak memory" in told
    assert bench.main(["--model", str(folder), "--seconds", "0.01", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "float32" and found["threads"] >= 1 and [r["name"] for r in found["shapes"]] == ["1 x 32"]
    r = found["shapes"][0]
    assert r["ms_min"] <= r["ms"] and r["texts_per_s"] == pytest.approx(1e3 / r["ms"]) and r["tokens_per_s"] == pytest.approx(32 * r["texts_per_s"])
    assert bench.main(["--model", str(tmp_path / "none")]) == 2 and "none" in capsys.readouterr().err
    assert bench.main([]) == 2


def test_bench_counts_operations(tmp_path: Path) -> None:
    guard = Guard.from_pretrained(write(tmp_path / "guard"))
    h, inner, layers, n = 33, 50, 2, 32     # from the definitions: q, k, v, output, two of the feed-forward net; scores and their sum over values
    assert bench._flops(guard.config, n) == layers * (2 * n * (4 * h * h + 2 * h * inner) + 2 * 2 * n * n * h)


# -- windows --

def test_long_texts_and_their_false_positives(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    guard = Guard.from_pretrained(write(tmp_path / "guard"))
    texts = [" ".join("abcdefg"[i % 7] for _ in range(1 + i % 9)) for i in range(120)]
    made = windows.long_texts(guard, texts, 3, 5)
    assert guard.score_details(made).n_windows.tolist() == [3] * 5 and len(set(made)) == 5
    assert all(set(text.split("\n")) <= set(texts) for text in made)
    with pytest.raises(ValueError, match="120 texts of 591 tokens do not make one of 40 windows"):
        windows.long_texts(guard, texts, 40, 1)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)))
    argv = ["--model", str(tmp_path / "guard"), str(file), "--windows", "1", "2", "4", "--count", "9"]
    assert windows.main(argv) == 0
    (tmp_path / "long.jsonl").write_bytes(capfdbinary.readouterr().out)
    report = evaluate.evaluate_guard(guard, {"long": tmp_path / "long.jsonl"}, draws=0)
    Draft202012Validator(json.loads((Path(evaluate.__file__).parent / "data" / "metrics.schema.json").read_text())).validate(json.loads(json.dumps(report)))
    found = report["over_refusal"]["long"]["slices"]["windows"]
    details = guard.score_details([row.prompt for row in data.read_rows(tmp_path / "long.jsonl")])
    assert list(found) == ["1", "2", "4"]
    for name, entry in found.items():
        flagged = details.score[details.n_windows == int(name)] >= 0.5
        assert (entry["n"], entry["fp"], entry["fpr"]) == (9, flagged.sum(), flagged.mean())
        assert entry["fpr_interval"] == evaluate.wilson(int(flagged.sum()), 9) and entry["fpr_interval"][0] <= entry["fpr"] <= entry["fpr_interval"][1]
    assert "long by windows" in evaluate.format_table(report) and "its 95 % interval" in evaluate.format_table(report)
    # short rows only: no such slice
    assert "windows" not in evaluate.score_sets(guard, {"short": file})[0].groups
    part, = evaluate.score_sets(guard, {"long": tmp_path / "long.jsonl"}, by=("windows",))
    assert set(part.groups["windows"]) == {"1", "2", "4"}
    assert evaluate.wilson(1, 10) == pytest.approx((0.01787621, 0.40415003), abs=1e-6)      # statsmodels, proportion_confint(1, 10, method="wilson")
    assert evaluate.wilson(0, 0) is None
    file.write_text('{"prompt": "a", "label": 1}\n')
    assert windows.main(argv) == 2 and b"rows.jsonl: no row with a safe label" in capfdbinary.readouterr().err
    assert windows.main([*argv, "--count", "0"]) == 2
