"""The core as a C library: harmaug-score writes what the package writes, and refuses what it refuses.

HARMAUG_SCORE names another build of the program to test, such as "qemu-aarch64 build/harmaug-score"; it is held to the package's scores bit for bit where
it runs the same instruction set, else within 2e-5.
"""
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import c_build
import encoder_models
import numpy as np
import pytest
from test_guard import LONG, PROMPTS, RESPONSES, WORDS, write

from harmaug import _C
from harmaug.data import DataError
from harmaug.guard import UNSAFE_NAMES, Guard
from harmaug.score import score_stream

ROOT = Path(__file__).parents[1]
LAYERS = ("core", "kernels", "io", "tokenizer", "models", "guard")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Objects of the C library, built as csrc/Makefile builds them but for the optimisation."""
    sources = [f"{layer}/{path.name}" for layer in LAYERS for path in sorted((c_build.CSRC / layer).glob("*.c"))
               if not path.name.startswith("kernels_") or path.name == "kernels_scalar.c"]
    return c_build.objects(tmp_path_factory.mktemp("c"), sources)[0]


@pytest.fixture(scope="module")
def program(request, tmp_path_factory):
    """The command."""
    if os.environ.get("HARMAUG_SCORE"):
        return shlex.split(os.environ["HARMAUG_SCORE"])
    target = tmp_path_factory.mktemp("program") / "harmaug-score"
    sources = sorted((c_build.CSRC / "program").glob("*.c"))
    subprocess.run([*c_build.CC, *c_build.FLAGS, *sources, *request.getfixturevalue("library"), "-pthread", "-lm", "-o", target], check=True)
    return [str(target)]


@pytest.fixture(scope="module")
def exact(program):
    """Whether the program computes what the package computes, to the bit."""
    said = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("harmaug-score ")
    return f"({_C.build_info()['cpu_isa']})" in said


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "guard")


def run(program, *args, text=b""):
    done = subprocess.run([*program, *map(str, args)], input=text, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def package(guard, text, **options):
    """What the package writes, and what it says where it fails."""
    out = io.BytesIO()
    try:
        score_stream(guard, io.BytesIO(text), out, name="standard input", **options)
    except DataError as error:
        return out.getvalue(), str(error)
    return out.getvalue(), ""


def check_rows(got, want, exact):
    if exact:
        assert got == want
        return
    near = r'"score":[^,]*,"flagged":(?:true|false)'
    assert re.sub(near, "", got.decode()) == re.sub(near, "", want.decode())
    scores = [[json.loads(line)["score"] for line in text.splitlines()] for text in (got, want)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=2e-5)


def jsonl(rows):
    return "".join(json.dumps({"prompt": prompt or "x", "response": response}) + "\n" for prompt, response in rows).encode()


ODD = '''\ufeff{"prompt":"a b"}

 { "prompt" : "c\\u0064" , "x" : [1, {"a":"}]\\\\\\""}] ,"k\\u00e9\\t\\u0001/\\/\\u007f\\"\\\\" : 1.50e5, "response":null, "":{} }
\u2028
{"prompt":"d e","response":"","score":7,"id":12345678901234567890}
{"flagged":"old","prompt":"é \\ud83d\\ude00 \\u0000","n":-0.0,"score":null,"t":true}
{"prompt":"last"}'''.encode()


def test_rows_are_the_package_s(program, exact, folder):
    guard = Guard.from_pretrained(folder)
    text = jsonl([*zip(PROMPTS, RESPONSES, strict=True), *LONG] * 3) + ODD.removeprefix(b"\xef\xbb\xbf")      # 54 rows: two batches
    status, out, err = run(program, folder, text=text)
    assert (status, err) == (0, "")
    check_rows(out, package(guard, text)[0], exact)
    check_rows(run(program, folder, "-", text=ODD)[1], package(guard, ODD)[0], exact)
    (folder / "rows.jsonl").write_bytes(ODD)
    assert run(program, "--threads=1", folder, folder / "rows.jsonl")[1] == run(program, folder, text=ODD)[1]


@pytest.mark.parametrize("long", ["windows", "truncate"])
def test_long_rows(program, exact, folder, long):
    text = jsonl(LONG)
    for max_length in (None, 7, 19, 33):
        options = [] if max_length is None else ["--max-length", max_length]
        guard = Guard.from_pretrained(folder, max_length=max_length, long=long)
        status, out, err = run(program, folder, f"--long={long}", *options, text=text)
        assert (status, err) == (0, "")
        check_rows(out, package(guard, text)[0], exact)


@pytest.mark.parametrize("name", ["deberta-v3", "roberta", "distilbert", "modernbert"])
def test_families(program, exact, tmp_path, name):
    c = encoder_models.config(name, num_labels=2, max_position_embeddings=70)
    folder = encoder_models.write(tmp_path, c, encoder_models.weights(c))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 50}')
    text = jsonl([(p, r if c.get("type_vocab_size") != 1 else None) for p, r in [*zip(PROMPTS, RESPONSES, strict=True), *LONG]])
    status, out, err = run(program, folder, text=text)
    assert (status, err) == (0, "")
    check_rows(out, package(Guard.from_pretrained(folder), text)[0], exact)


@pytest.mark.parametrize("labels", [["safe", "unsafe"], ["Unsafe", "Safe"], ["LABEL_0", "LABEL_1"], ["a", "b", "TOXIC"], ["anything"]])
def test_labels(program, exact, tmp_path, labels):
    folder = write(tmp_path, id2label={str(i): name for i, name in enumerate(labels)})
    text = jsonl(zip(PROMPTS, RESPONSES, strict=True))
    check_rows(run(program, folder, text=text)[1], package(Guard.from_pretrained(folder), text)[0], exact)


def test_every_name_of_the_unsafe_label(folder):
    guard = Guard.from_pretrained(folder)
    for name in UNSAFE_NAMES:
        for labels, index in (([name.upper(), "other"], 0), (["other", name], 1)):
            assert _C.GuardCore(guard.encoder, guard.tokenizer._tokenizer, name="g", tokenizer_folder=folder, labels=labels).unsafe_index == index


def test_thresholds(program, exact, folder, tmp_path):
    guard = Guard.from_pretrained(folder)
    text = jsonl(zip(PROMPTS, RESPONSES, strict=True))
    for threshold in (float(np.sort(guard.score(PROMPTS, RESPONSES))[2]), 0.0, 1.0):
        guard.set_threshold(threshold)
        guard.save_pretrained(tmp_path / "saved")
        status, out, err = run(program, tmp_path / "saved", text=text)
        assert (status, err) == (0, "")
        check_rows(out, package(guard, text)[0], exact)
    flags = [json.loads(line)["flagged"] for line in run(program, folder, "--threshold", "0.25", text=text)[1].splitlines()]
    assert flags == [bool(score >= np.float32(0.25)) for score in guard.score([prompt or "x" for prompt in PROMPTS], RESPONSES)]
    status, _, err = run(program, tmp_path / "saved", "--long", "truncate", text=text)
    assert status == 0 and err == "harmaug-score: warning: the threshold 1 was fitted with long='windows', not 'truncate'\n"
    assert "max_length=40, not 20" in run(program, tmp_path / "saved", "--max-length=20", text=text)[2]


# -- what is refused --

@pytest.mark.parametrize("line, match", [
    (b'{"prompt": "a",}', "wrong JSON: line 1, column 16"), (b"{", "wrong JSON"), (b"[1]", "one a line"), (b"prompt,label", "expected an object"),
    (b'{"response": "a"}', "the prompt is missing"), (b'{"prompt": null}', "the prompt is missing"), (b'{"prompt": " \\u2003\\u001c"}', "the prompt is empty"),
    (b'{"prompt": 3}', "prompt must be text"), (b'{"prompt": "a", "response": []}', "response must be text"), (b'{"prompt": "a", "prompt": "b"}', "stands twice"),
    (b'{"prompt": "\\ud800"}', "surrogate"), (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff at column 13"), (b'{"prompt": "a"} {}', "wrong JSON"),
    (b'{"prompt": "a\0"}', "wrong JSON"), (b'{"prompt": "a", "x": ' + b"[" * 1000, "wrong JSON"),
])
def test_rejects_rows(program, folder, line, match):
    text = b'\n{"prompt":"one"}\n\n' + line + b'\n{"prompt":"three"}\n'
    status, out, err = run(program, folder, text=text)
    assert status == 2 and out.count(b"\n") == 1 and out.startswith(b'{"prompt":"one","score":')
    assert err.startswith("harmaug-score: standard input, line 4: ") and match in err and err.count("\n") == 1


def test_rejects_long_rows_by_line(program, folder):
    status, out, err = run(program, folder, "--long", "error", text=jsonl([("a", None)] * 40 + [("a " * 60, None), ("b", None)]))
    assert (status, out.count(b"\n")) == (2, 40)
    assert err == ("harmaug-score: standard input, line 41: row 40 has 62 tokens, the guard reads at most 40; long='windows' or 'truncate' reads it\n")


def test_rejects_files(program, folder, tmp_path):
    assert run(program, folder, tmp_path / "none") == (2, b"", f"harmaug-score: {tmp_path}/none: No such file or directory\n")
    assert run(program, folder, text=b"\n \n") == (2, b"", "harmaug-score: standard input: the set is empty, no rows\n")
    assert "is gzipped" in run(program, folder, text=b"\x1f\x8b\x08\0")[2]
    assert "config.json" in run(program, tmp_path)[2]
    (folder / "adapter_config.json").write_text("{}")
    status, _, err = run(program, folder)
    assert status == 2 and "a LoRA adapter, which the C library does not merge" in err


@pytest.mark.parametrize("args, match", [
    ([], "MODEL_DIR is missing"), (["m", "f", "g"], "more than one FILE"), (["m", "--what"], "unknown option --what"), (["m", "-x"], "unknown option -x"),
    (["m", "--threshold"], "--threshold needs a value"), (["m", "--threshold=1.5"], "must be in [0, 1], got 1.5"), (["m", "--threshold", "nan"], "must be in"),
    (["m", "--threads", "0"], "must be from 1 to 1024"), (["m", "--max-length=-3"], "must be a number >= 1, got -3"), (["m", "--long=cut"], "windows, truncate or error"),
    (["m", "--dtype", "int3"], "got 'int3'"),
])
def test_rejects_usage(program, args, match):
    status, out, err = run(program, *args)
    assert (status, out) == (2, b"") and match in err and err.count("\n") == 1


def test_help(program):
    status, out, err = run(program, "--help")
    assert (status, err) == (0, "") and out.startswith(b"usage: harmaug-score") and b"--threshold" in out


@pytest.mark.parametrize("name, content, match", [
    ("thresholds.json", '{"threshold": 2}', "threshold must be in [0, 1], got 2"), ("thresholds.json", '{"threshold": null}', "threshold must be in [0, 1]"),
    ("thresholds.json", '{"threshold": 0.5, "long": "cut"}', "long must be one of"), ("thresholds.json", '{"max_length": -1}', "max_length"),
    ("thresholds.json", "[]", "must hold an object"), ("tokenizer_config.json", '{"model_max_length": 2}', "model_max_length 2 leaves no room"),
    ("tokenizer_config.json", '{"model_max_length": -1e300}', "leaves no room"), ("tokenizer_config.json", "{", "tokenizer_config.json"),
    ("config.json", '{"model_type": "bert", "id2label": []}', "id2label"), ("vocab.txt", "\n".join([*WORDS, "more"]), "61 tokens, the model 60"),
])
def test_rejects_settings(program, folder, name, content, match):
    (folder / name).write_text(content)
    status, out, err = run(program, folder)
    assert (status, out) == (2, b"") and match in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["config.json", "thresholds.json", "tokenizer_config.json"])
def test_damaged_settings_are_errors(program, folder, name):
    """A sample of the prefixes and of flipped bytes: an error or a guard, never a signal."""
    guard = Guard.from_pretrained(folder)
    guard.set_threshold(0.25)
    guard.save_pretrained(folder)
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    for i in range(60):
        content = bytearray(whole[:int(rng.integers(len(whole)))] if i % 2 else whole)
        for at in rng.integers(0, len(content), 1 + i % 3) if content else ():
            content[at] = rng.integers(256)
        (folder / name).write_bytes(content)
        status, _, err = run(program, folder, text=b'{"prompt":"a"}')
        assert status == 2 and err.startswith("harmaug-score: ") or status == 0, (status, err, bytes(content))


def test_interrupt(program, folder):
    with subprocess.Popen([*program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdin.write(b'{"prompt":"a"}\n' * 40)
        child.stdin.flush()
        assert child.stdout.readline().startswith(b'{"prompt":"a","score":')      # the first 32 are written; it waits for more
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == b"harmaug-score: interrupted\n" and child.wait(10) == 130


# -- the header --

def test_version_is_the_package_s():
    version = re.search(r'^version = "([\d.]+?)\.?(?:dev\d+)?"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f'#define HARMAUG_VERSION "{version}"' in (c_build.CSRC / "include" / "harmaug.h").read_text()


def test_header_stands_alone(tmp_path):
    for language, compiler in (("c", c_build.CC[0]), ("c++", shutil.which("g++") or shutil.which("clang++"))):
        if compiler is not None:
            source = tmp_path / "use.c"
            source.write_text('#include "harmaug.h"\nconst char *version(void);\nconst char *version(void) { return ha_version(); }\n')
            subprocess.run([compiler, "-x", language, "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{c_build.CSRC / 'include'}", "-fsyntax-only", source],
                           check=True)


def test_the_example(library, folder, tmp_path):
    target = tmp_path / "embed"
    flags = [*c_build.FLAGS, f"-I{c_build.CSRC / 'include'}"]
    subprocess.run([*c_build.CC, *flags, ROOT / "examples" / "embed.c", *library, "-pthread", "-lm", "-o", target], check=True)
    status, out, err = run([str(target)], folder, "a b c " * 30, "d e")
    details = Guard.from_pretrained(folder).score_details(["a b c " * 30] * 2, [None, "d e"])
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.decode().splitlines()]
    assert [np.float32(line[0]) for line in lines] == details.score.tolist()
    assert [(int(line[2]), int(line[5])) for line in lines] == list(zip(details.n_tokens, details.n_windows, strict=True))
