"""The torch engine beside the native one: losses, checkpoints that move both ways, several processes, what it writes."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_bert
import torch
from safetensors.numpy import load_file
from test_distill import config, rows_of, student_of
from transformers import AutoModelForSequenceClassification

from harmaug import cli, distill
from harmaug.data import write_rows
from harmaug.distill import Distiller
from harmaug.guard import Guard

torch.set_num_threads(1)
FAMILIES = ("bert", "deberta-v3", "deberta-v2", "roberta", "electra", "distilbert", "modernbert")
VARIANTS = {"plain": {}, "layers": {"layer_decay": 0.7, "temperature": 2.0, "micro_tokens": 40, "schedule": "cosine", "clip_norm": 0.3},
            "lora": {"lora_rank": 4, "freeze": ("*.embeddings.*",), "balanced": False}}


def make(folder, family):
    changes = {"type_vocab_size": 2} if family == "roberta" else {}
    return str(tiny_bert.write(folder)) if family == "bert" else student_of(folder, family, **changes)


def fit(student, engine, out=None, rows=120, **changes):
    settings = config(student, **{"dropout": 0.0, "epochs": 2, "engine": engine, **changes})
    return Distiller(settings).fit(rows_of(rows), out=out, progress=False)


def column(history, name):
    return np.array([float(row[name]) for row in history if row.get(name) not in (None, "")])


def logits_of(folder, guard):
    """Those of transformers and of the guard, for rows of text."""
    texts = [row.prompt for row in rows_of(20, seed=3)]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        want = [model(torch.tensor([guard.tokenizer.encode(text)])).logits[0].numpy() for text in texts]
    return guard.logits(texts), np.array(want)


@pytest.mark.parametrize("family, variant", [*((family, "plain") for family in FAMILIES), ("bert", "layers"), ("deberta-v3", "layers"), ("bert", "lora"),
                                             ("deberta-v3", "lora")])
def test_losses_agree_with_the_native_engine(tmp_path, family, variant):
    student = make(tmp_path / "student", family)
    native, other = (fit(student, engine, tmp_path / engine, **VARIANTS[variant]) for engine in ("native", "torch"))
    for name in ("loss", "grad_norm", "validation_loss", "validation_auprc"):
        np.testing.assert_allclose(column(other.history_, name), column(native.history_, name), rtol=1e-3 if name == "grad_norm" else 0,
                                   atol=0 if name == "grad_norm" else 1e-4)
    assert [h["lr"] for h in other.history_] == [h["lr"] for h in native.history_] and other.best_step_ == native.best_step_
    np.testing.assert_allclose(other.validation_scores_, native.validation_scores_, atol=1e-4)
    assert {path.name for path in (tmp_path / "torch").iterdir()} == {path.name for path in (tmp_path / "native").iterdir()}
    opened = Guard.from_pretrained(tmp_path / "torch")
    texts = [row.prompt for row in rows_of(20, seed=3)]
    if variant == "lora":       # an adapter of float16
        np.testing.assert_allclose(opened.score(texts), other.guard_.score(texts), atol=2e-3)
    else:
        np.testing.assert_array_equal(opened.score(texts), other.guard_.score(texts))
        np.testing.assert_allclose(*logits_of(tmp_path / "torch", opened), atol=2e-5)


@pytest.mark.parametrize("family, layers", [("bert", (1,)), ("deberta-v3", (1,)), ("modernbert", (0, 2)), ("distilbert", (0,))])
def test_layer_cuts_open_in_transformers(tmp_path, family, layers):
    student = make(tmp_path / "student", family)
    for engine in ("native", "torch"):
        cut = fit(student, engine, tmp_path / engine, layers=layers, epochs=1)
        np.testing.assert_allclose(*logits_of(tmp_path / engine, cut.guard_), atol=2e-5)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / engine)
        assert model.config.num_hidden_layers == len(layers)


def stop_at(monkeypatch, step):
    whole = distill._Run._step

    def stopping(run):
        if run.state.step == step:
            raise KeyboardInterrupt
        return whole(run)

    monkeypatch.setattr(distill._Run, "_step", stopping)


@pytest.mark.parametrize("first, second", [("native", "torch"), ("torch", "native"), ("torch", "torch")])
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_checkpoints_move_between_engines(tmp_path, monkeypatch, first, second, changes):
    student = make(tmp_path / "student", "bert")
    whole = fit(student, second, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            fit(student, first, tmp_path / "moved", checkpoint_every=6, **changes)
    moved = fit(student, second, tmp_path / "moved", checkpoint_every=6, **changes)
    tolerance = 0 if first == second else 1e-4
    assert [h["step"] for h in moved.history_] == [h["step"] for h in whole.history_]
    np.testing.assert_allclose(column(moved.history_, "loss"), column(whole.history_, "loss"), atol=max(tolerance, 1e-6))     # log.csv has 7 digits
    np.testing.assert_allclose(moved.validation_scores_, whole.validation_scores_, atol=tolerance)
    texts = [row.prompt for row in rows_of(20, seed=3)]
    np.testing.assert_allclose(moved.guard_.score(texts), whole.guard_.score(texts), atol=tolerance)


def test_checkpoints_hold_the_same_tensors(tmp_path, monkeypatch):
    student = make(tmp_path / "student", "deberta-v3")
    stop_at(monkeypatch, 8)
    states = []
    for engine in ("native", "torch"):
        with pytest.raises(KeyboardInterrupt):
            fit(student, engine, tmp_path / engine, checkpoint_every=8, freeze=("deberta.encoder.LayerNorm.*",))
        states.append(load_file(tmp_path / engine / "checkpoint" / "trainer-8.safetensors"))
    native, other = states
    assert {name: tensor.shape for name, tensor in native.items()} == {name: tensor.shape for name, tensor in other.items()}
    for name, want in native.items():
        if "key_proj.bias" not in name:     # its true gradient is near 0: rounding
            assert np.linalg.norm(other[name] - want) <= 1e-3 * np.linalg.norm(want) + 1e-9, name


def test_dropout_is_the_same_after_a_resume(tmp_path, monkeypatch):
    student = make(tmp_path / "student", "bert")
    whole = fit(student, "torch", tmp_path / "whole", dropout=0.2)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            fit(student, "torch", tmp_path / "again", dropout=0.2, checkpoint_every=4)
    again = fit(student, "torch", tmp_path / "again", dropout=0.2)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert again.history_[-1]["loss"] == whole.history_[-1]["loss"] != fit(student, "torch", dropout=0.0).history_[-1]["loss"]


def test_bfloat16_and_gradient_checkpointing(tmp_path):
    student = make(tmp_path / "student", "deberta-v3")
    plain, saving, half = (column(fit(student, "torch", **changes).history_, "loss")
                           for changes in ({}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}))
    np.testing.assert_allclose(saving, plain, atol=1e-6)
    np.testing.assert_allclose(half, plain, atol=0.05)
    assert np.abs(half - plain).max() > 1e-5
    native = column(fit(student, "native", precision="bfloat16").history_, "loss")
    np.testing.assert_allclose(native, half, atol=0.02)
    assert np.abs(native - plain).max() > 1e-5


def test_a_loss_that_explodes_is_told_as_by_the_native_engine(tmp_path):
    student = make(tmp_path / "student", "bert")
    with pytest.raises(ValueError, match=r"distil: step \d+: the .* not finite.*; the last checkpoint is .*trainer-\d"):
        fit(student, "torch", tmp_path / "out", lr=10.0, clip_norm=0, eval_every=1, weight_decay=1e3, warmup_steps=0)


# -- several processes --

TOML = """
[data]
seed = ["rows.jsonl"]
[distil]
student = "{student}"
lr = 1e-3
warmup_steps = 5
batch_size = 8
epochs = 10
max_length = 24
n_threads = 1
dropout = 0.0
micro_tokens = 60
checkpoint_every = 5
"""


def start(folder, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "harmaug",
               "distil", str(folder / "run.toml"), "--out", str(folder / "spread"), "--engine", "torch", "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def children(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def test_two_processes_killed_and_resumed_have_the_native_curve(tmp_path, monkeypatch):
    tiny_bert.write(tmp_path / "student")
    write_rows(tmp_path / "rows.jsonl", rows_of(120))
    (tmp_path / "run.toml").write_text(TOML.format(student=tmp_path / "student"))
    assert cli.main(["distil", str(tmp_path / "run.toml"), "--out", str(tmp_path / "native"), "--quiet"]) == 0
    spread = tmp_path / "spread" / "guard"
    process = start(tmp_path)
    state, end = spread / "checkpoint" / "state.json", time.monotonic() + 300
    while not state.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    errors = process.communicate()[1]
    assert json.loads(state.read_bytes())["step"] < 130, errors
    with start(tmp_path) as process:
        errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    native, other = (list(csv.DictReader((folder / "log.csv").read_text().splitlines())) for folder in (tmp_path / "native" / "guard", spread))
    for name in ("step", "lr", "loss", "validation_loss"):
        np.testing.assert_allclose(column(other, name), column(native, name), atol=1e-4)
    np.testing.assert_allclose(*logits_of(spread, Guard.from_pretrained(spread)), atol=2e-5)
    assert not (spread / "checkpoint").exists() and (spread / "README.md").exists()


SCRIPT = """
import atexit, os, sys
from pathlib import Path


def threads():
    print("left:", sorted(task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()))


atexit.register(threads)        # called last
from harmaug import cli, distill
from harmaug.data import read_rows

how, student = sys.argv[1:]
if how == "cli":
    sys.exit(cli.main(["distil", "run.toml", "--out", "run", "--engine", "torch", "--quiet"]))
if how == "raise" and os.environ["RANK"] == "1":
    forward = distill._Run._step

    def failing(run):
        if run.state.step == 3:
            run.torch._optimizer.step = lambda: 1 / 0
        return forward(run)

    distill._Run._step = failing
config = distill.DistillConfig(student=student, engine="torch", batch_size=8, epochs=1, max_length=24, n_threads=1, checkpoint_every=1000)
fitted = distill.Distiller(config).fit(list(read_rows("rows.jsonl")), progress=False)
"""


@pytest.mark.parametrize("how", ["fit", "cli", "raise"])
def test_no_thread_of_torch_distributed_outlives_the_interpreter(tmp_path, how):
    """One that does ends the process by SIGABRT now and then; and a process that raises in a step does not wait for the others."""
    student = tiny_bert.write(tmp_path / "student")
    write_rows(tmp_path / "rows.jsonl", rows_of(120))
    (tmp_path / "run.toml").write_text(TOML.format(student=student))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py", how, student]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode == 0) == (how != "raise"), done.stderr
    if how == "raise":
        assert "ZeroDivisionError" in done.stderr
    else:
        assert done.stdout.count("left:") == 2 and "gloo" not in done.stdout, done.stdout
