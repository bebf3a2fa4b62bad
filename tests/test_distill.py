"""Distiller: order and split of rows, best step, resume after kill -9, what it says when it can't."""
import csv
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import encoder_models
import numpy as np
import pytest
import tiny_bert
from safetensors.numpy import load_file

from harmaug import batches, distill, pipeline, runs, students
from harmaug.data import DataError, Row
from harmaug.distill import DistillConfig, Distiller, merge_duplicates, split_validation
from harmaug.guard import Guard

SMALL = {"lr": 3e-3, "warmup_steps": 5, "batch_size": 8, "epochs": 6.0, "dropout": 0.1, "max_length": 24,
         "n_threads": 1, "weight_decay": 0.01}


def rows_of(n, seed=0, soft=True):
    """Rows whose label is told by their words: w0..w9 unsafe, w10..w19 safe, the others say nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        label = int(rng.random() < 0.3)
        words = [f"w{rng.integers(0, 10) + (0 if label else 10)}" for _ in range(2)] + [
            f"w{k}" for k in rng.integers(20, 40, rng.integers(1, 8))
        ]
        rng.shuffle(words)
        rows.append(
            Row(prompt=f"w{40 + i % 15} " + " ".join(words), response=" ".join(words[:2]) if i % 3 == 0 else None,
                label=label, unsafe_score=float(np.clip(label + rng.normal(0, 0.2), 0, 1)) if soft else None)
        )
    return rows


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    return str(tiny_bert.write(tmp_path_factory.mktemp("student") / "bert"))


def config(student, **changes):
    return DistillConfig(student=student, **{**SMALL, **changes})


def student_of(folder, name, **changes):
    """A random student of another family, with the words of tiny_bert."""
    c = encoder_models.config(name, num_labels=2, **changes)
    encoder_models.write(folder, c, encoder_models.weights(c))
    (folder / "vocab.txt").write_text("\n".join(tiny_bert.WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 60}')
    return str(folder)


@pytest.mark.parametrize("name", ["deberta-v3", "deberta-v2", "roberta", "electra", "distilbert", "modernbert"])
def test_students_of_every_family(name, tmp_path):
    student = student_of(tmp_path / "student", name, **({"type_vocab_size": 2} if name == "roberta" else {}))
    fitted = Distiller(config(student, epochs=4, max_length=1024)).fit(rows_of(160), out=tmp_path / "guard", progress=False)
    losses = [h["loss"] for h in fitted.history_]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    test = [r.prompt for r in rows_of(30, seed=1)]
    np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / "guard").score(test), fitted.guard_.score(test))


# -- rows --

def test_duplicates_are_merged():
    merged = merge_duplicates(
        [Row(prompt="Make  a Bomb", label=1, unsafe_score=0.8), Row(prompt="other", label=0),
         Row(prompt="make a bomb", label=0, unsafe_score=0.4), Row(prompt="make a bomb", response="no", label=0),
         Row(prompt="make a bomb", response="", label=1, soft_label=0.9)]
    )
    assert [(r.prompt, r.response, r.hard_label) for r in merged] == [
        ("Make  a Bomb", None, 1), ("other", None, 0), ("make a bomb", "no", 0)
    ]
    assert merged[0].target == pytest.approx(0.7)
    assert merge_duplicates([Row(prompt="a", label=1), Row(prompt="a", label=0)])[0].hard_label == 1


@pytest.mark.parametrize("seed", range(5))
def test_split_is_grouped_by_prompt_and_stratified(seed):
    rng = np.random.default_rng(seed)
    rows = [
        Row(prompt=f"p{k}", response=f"r{j}", label=int(rng.random() < 0.2))
        for k in range(400)
        for j in range(1 if k < 390 else 40)
    ]
    train, held = split_validation(rows, 0.1, seed)
    assert sorted(train + held) == list(range(len(rows)))
    assert not {rows[i].prompt for i in train} & {rows[i].prompt for i in held}
    assert abs(len(held) - 0.1 * len(rows)) <= 20
    share = np.mean([r.label for r in rows])
    assert abs(sum(rows[i].label for i in held) - share * len(held)) <= 8
    assert (train, held) == split_validation(rows, 0.1, seed) != split_validation(rows, 0.1, seed + 1)
    assert split_validation(rows, 0.0, seed)[1] == []


def test_order_is_balanced_and_takes_every_row_before_it_repeats_one():
    hard = np.array([1] * 7 + [0] * 40, np.int8)
    order = batches.DrawOrder(hard, True, 3)
    draws = order.rows(0, 160)
    assert (hard[draws[0::2]] == 0).all() and (hard[draws[1::2]] == 1).all()
    assert sorted(draws[0:80:2]) == list(range(7, 47)) and sorted(draws[1:15:2]) == list(range(7))
    assert list(draws[1:15:2]) != list(draws[15:29:2])
    again = batches.DrawOrder(hard, True, 3)
    assert np.array_equal(again.rows(100, 60), draws[100:160])      # a draw does not depend on those before it
    assert not np.array_equal(batches.DrawOrder(hard, True, 4).rows(0, 160), draws)
    assert sorted(batches.DrawOrder(hard, False, 3).rows(0, 47)) == list(range(47))


@pytest.mark.parametrize(
    "changes, message",
    [({"lr": -1}, "lr must be in"), ({"layers": (-1,)}, "layers must be >= 0, got -1"), ({"layers": (1, 2**64)}, r"layers must be >= 0 and <= 2\*\*53"),
     ({"temperature": 0}, "temperature must be in"),
     ({"batch_size": 0}, "batch_size must be in"), ({"ce_weight": 0, "kl_weight": 0}, "must not both be 0"),
     ({"schedule": "steps"}, "schedule must be"), ({"precision": "bf16"}, "precision must be one of float32, bfloat16, got 'bf16'"), ({"validation_fraction": 1.0}, "validation_fraction")],
)
def test_config_checks_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**changes)


# -- fit --

def test_fit_learns_and_saves_a_guard(student, tmp_path):
    rows = rows_of(200)
    fitted = Distiller(config(student)).fit(rows, out=tmp_path / "guard", progress=False)
    assert (
        fitted.counts_["rows"] == 200
        and fitted.counts_["train"] + fitted.counts_["validation"] == 200 - fitted.counts_["merged"]
    )
    assert fitted.n_steps_ == len(fitted.history_) == np.ceil(6 * fitted.counts_["train"] / 8)
    assert fitted.selected_by_ == "auprc" and 0 < fitted.best_step_ <= fitted.n_steps_
    validations = [h for h in fitted.history_ if "validation_auprc" in h]
    assert max(validations, key=lambda h: h["validation_auprc"])["step"] == fitted.best_step_
    test = rows_of(100, seed=1)
    scores = fitted.guard_.score([r.prompt for r in test], [r.response for r in test])
    assert np.mean((scores > 0.5) == [r.label == 1 for r in test]) > 0.9
    opened = Guard.from_pretrained(tmp_path / "guard")
    assert np.array_equal(opened.score([r.prompt for r in test], [r.response for r in test]), scores)
    assert not (tmp_path / "guard" / "checkpoint").exists()
    log = list(csv.DictReader((tmp_path / "guard" / "log.csv").read_text().splitlines()))
    assert [int(line["step"]) for line in log] == list(range(1, fitted.n_steps_ + 1))
    assert "w1" not in (tmp_path / "guard" / "log.csv").read_text()
    again = Distiller(config(student)).fit(rows, progress=False)
    assert np.array_equal(again.guard_.score([r.prompt for r in test]), opened.score([r.prompt for r in test]))


@pytest.mark.parametrize("name, layers", [("deberta-v2", (0, 1, 3)), ("modernbert", (0, 2, 3)), ("distilbert", (3, 1))])
def test_layers_of_every_family(name, layers, tmp_path):
    student = student_of(tmp_path / "student", name, num_hidden_layers=4)
    fitted = Distiller(config(student, layers=layers, max_steps=2)).fit(rows_of(60), out=tmp_path / "g", progress=False)
    settings = json.loads((tmp_path / "g" / "config.json").read_text())
    assert settings.get("num_hidden_layers", settings.get("n_layers")) == len(layers)
    assert settings.get("layer_types") == (["full_attention", "sliding_attention", "full_attention"] if name == "modernbert" else None)
    np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / "g").score(["w1 w2"]), fitted.guard_.score(["w1 w2"]))


@pytest.mark.parametrize("name, settings, changes, want", [
    ("deberta-v3", {}, {}, (0.1, 0.1, 0.1)), ("deberta-v3", {"cls_dropout": 0.3, "hidden_dropout_prob": 0.2}, {}, (0.2, 0.1, 0.3)),
    ("distilbert", {}, {}, (0.1, 0.1, 0.2)), ("modernbert", {}, {}, (0, 0, 0)), ("roberta", {"classifier_dropout": 0.0}, {}, (0.1, 0.1, 0.0)),
    ("distilbert", {}, {"dropout": 0.0}, (0, 0, 0)), ("bert", {}, {"attention_dropout": 0.0}, (0.1, 0.0, 0.1)),
    ("modernbert", {"mlp_dropout": 0.1}, {"dropout": 0.3, "classifier_dropout": 0.2}, (0.3, 0.3, 0.2)),
])
def test_dropout_is_that_of_the_student(name, settings, changes, want, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    kind = encoder_models.config(name)["model_type"]
    assert tuple(students.dropouts(tmp_path, kind, DistillConfig(**changes)).values()) == want


def test_dropouts_that_are_not_known_are_named(tmp_path):
    for kind, settings in (("deberta-v2", {"pooler_dropout": 0.1}), ("modernbert", {"embedding_dropout": 0.1})):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match="config.json: a pooler_dropout, or an embedding_dropout that is not mlp_dropout, is not supported"):
            students.dropouts(tmp_path, kind, DistillConfig())


def test_the_papers_recipe(student, tmp_path):
    """examples/paper.toml states the defaults, and trains on the reference's file as it is."""
    tables = pipeline.read_config(Path(__file__).parent.parent / "examples" / "paper.toml")
    written, defaults = DistillConfig(**tables["distil"]), DistillConfig()
    assert written == dataclasses.replace(defaults, student=written.student)
    kd = [{"prompt": r.prompt, **({"response": r.response} if r.response else {}), "unsafe-score": r.unsafe_score} for r in rows_of(80)]
    (tmp_path / tables["data"]["seed"][0]).write_text(json.dumps(kd))
    tables["distil"] |= {"student": student, "max_steps": 4}
    with runs.RunFolder(tmp_path / "run") as run:
        outcome = pipeline.run_config(run, tables, data_folder=tmp_path, quiet=True)
    assert outcome["distil"]["steps"] == 4 and (tmp_path / "run" / "guard" / "model.safetensors").exists()
    assert "| teacher | unnamed | unknown | 80 |" in (tmp_path / "run" / "guard" / "README.md").read_text()


def test_layers_and_new_head(student, tmp_path):
    fitted = Distiller(config(student, layers=(1,), new_head=True, max_steps=2)).fit(
        rows_of(60), out=tmp_path / "g", progress=False
    )
    saved = load_file(tmp_path / "g" / "model.safetensors")
    assert sum(".layer." in n for n in saved) == 16 and not any(".layer.1." in n for n in saved)
    assert json.loads((tmp_path / "g" / "config.json").read_text())["num_hidden_layers"] == 1
    bare = tiny_bert.write(tmp_path / "bare", head=False)
    assert Distiller(config(str(bare), max_steps=2)).fit(rows_of(60), progress=False).guard_.logits(
        ["w1 w2"]
    ).shape == (1, 2)
    assert fitted.n_steps_ == 2


def test_lora_adapter_is_a_guard(student, tmp_path):
    rows = rows_of(120)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "thresholds.json").write_text('{"threshold": 0.93}')      # of an adapter that stood here before
    fitted = Distiller(config(student, lora_rank=4, freeze=("bert.embeddings.*",), epochs=3)).fit(
        rows, out=tmp_path / "adapter", progress=False
    )
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4 and settings["peft_type"] == "LORA" and settings["base_model_name_or_path"] == student
    assert not any((tmp_path / "adapter" / name).exists() for name in ("model.safetensors", "thresholds.json"))
    prompts = [r.prompt for r in rows]
    np.testing.assert_allclose(
        Guard.from_pretrained(tmp_path / "adapter").logits(prompts), fitted.guard_.logits(prompts), atol=2e-2
    )  # stored as float16


def test_the_last_fit_into_a_folder_is_what_opens(student, tmp_path):
    """Adapter after weights, weights after an adapter, another student's tokenizer and a threshold before both."""
    rows, out = rows_of(60), tmp_path / "guard"
    other = Path(student_of(tmp_path / "other", "roberta", type_vocab_size=2))
    (other / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(54, -1, -1))]))
    for name, changes in ((str(other), {}), (student, {"lora_rank": 2}), (student, {}), (student, {"lora_rank": 2}), (str(other), {})):
        fitted = Distiller(config(name, max_steps=2, **changes)).fit(rows, out=out, progress=False)
        opened = Guard.from_pretrained(out)
        np.testing.assert_allclose(opened.score(["w1 w2", "w11 w12"]), fitted.guard_.score(["w1 w2", "w11 w12"]), atol=1e-3)
        assert (out / "adapter_config.json").exists() == bool(changes) and opened.thresholds == {}
        (out / "thresholds.json").write_text('{"threshold": 0.125}')


def test_an_adapter_is_a_student(student, tmp_path):
    rows, adapter = rows_of(60), tmp_path / "adapter"
    Distiller(config(student, lora_rank=2, max_steps=20, lr=1e-2)).fit(rows, out=adapter, progress=False)
    (adapter / "thresholds.json").write_text('{"threshold": 0.125}')
    fitted = Distiller(config(str(adapter), lora_rank=2, max_steps=1, lr=0.0)).fit(rows, out=tmp_path / "guard", progress=False)
    test = [row.prompt for row in rows]
    np.testing.assert_allclose(fitted.guard_.score(test), Guard.from_pretrained(adapter).score(test), atol=1e-6)
    assert np.abs(fitted.guard_.score(test) - Guard.from_pretrained(student).score(test)).max() > 0.01
    assert not (tmp_path / "guard" / "adapter_config.json").exists() and fitted.guard_.threshold == Guard.from_pretrained(tmp_path / "guard").threshold == 0.5
    assert Distiller(config(str(adapter), layers=(1,), max_steps=1)).fit(rows, progress=False).guard_.config["num_hidden_layers"] == 1
    (adapter / "vocab.txt").write_text("own")
    with pytest.raises(ValueError, match="adapter: an adapter with a tokenizer of its own"):
        Distiller(config(str(adapter), max_steps=1)).fit(rows, progress=False)


def test_an_adapter_on_a_base_whose_label_0_is_unsafe(tmp_path):
    base = tiny_bert.write(tmp_path / "base", id2label={"0": "unsafe", "1": "safe"})
    fitted = Distiller(config(str(base), lora_rank=2, max_steps=2)).fit(rows_of(60), out=tmp_path / "adapter", progress=False)
    np.testing.assert_allclose(Guard.from_pretrained(tmp_path / "adapter").score(["w1 w2"]), fitted.guard_.score(["w1 w2"]), atol=1e-3)


def test_rows_of_weight_0_teach_nothing(student):
    rows = rows_of(160)
    wrong = [Row(prompt=f"w50 {r.prompt}", label=1 - r.label) for r in rows]
    weights = [1.0] * len(rows) + [0.0] * len(wrong)
    test = rows_of(60, seed=1)
    options = config(student, validation_fraction=0, epochs=20, balanced=False)
    scores = [
        Distiller(options)
        .fit(rows + wrong, progress=False, sample_weight=w)
        .guard_.score([r.prompt for r in test], [r.response for r in test])
        for w in (weights, None)
    ]
    right = [np.mean((s > 0.5) == [r.label == 1 for r in test]) for s in scores]
    assert right[0] > 0.9 > right[1]
    with pytest.raises(ValueError, match="one number for each of 320 rows, got 3"):
        Distiller(options).fit(rows + wrong, sample_weight=[1, 2, 3])


def test_one_validation_class_is_said(student, caplog):
    rows = rows_of(60)
    with caplog.at_level(logging.WARNING, "harmaug.distill"):
        fitted = Distiller(config(student, epochs=2)).fit(rows, [Row(prompt="w1 w2", label=1)], progress=False)
    assert fitted.selected_by_ == "loss" and "one class only" in caplog.text
    with caplog.at_level(logging.WARNING, "harmaug.distill"):
        last = Distiller(config(student, epochs=1, validation_fraction=0)).fit(rows, progress=False)
    assert last.selected_by_ == "last step" and last.best_step_ == last.n_steps_ and "no validation rows" in caplog.text


def test_patience_stops_early(student):
    fitted = Distiller(config(student, eval_every=2, patience=2, epochs=50, lr=1e-9)).fit(rows_of(80), progress=False)
    assert fitted.n_steps_ < 20 and fitted.best_step_ <= fitted.n_steps_ - 4


@pytest.mark.parametrize("rows, message", [
    ([], "training rows: the set is empty"),
    ([Row(prompt="a", label=1)] * 3, "one class only, every row is unsafe"),
    ([Row(prompt="a", label=1), Row(prompt="b")], "training rows, row 2: neither a label nor an unsafe-score"),
    ([Row(prompt="a", unsafe_score=float("nan"))], "training rows, row 1: unsafe-score must be a number in .0, 1., got nan"),
])
def test_sets_that_cannot_be_learnt(student, rows, message):
    with pytest.raises(DataError, match=message):
        Distiller(config(student)).fit(rows)
    with pytest.raises(DataError, match="validation rows, row 2: neither a label"):
        Distiller(config(student)).fit(rows_of(8), [Row(prompt="a", label=1), Row(prompt="b")])


def test_loss_that_explodes_names_step_and_checkpoint(student, tmp_path):
    with pytest.raises(ValueError, match=r"distil: step \d+: the .* not finite.*; the last checkpoint is .*trainer-\d"):
        Distiller(config(student, lr=10.0, clip_norm=0, eval_every=1, weight_decay=1e3, warmup_steps=0)).fit(
            rows_of(80), out=tmp_path / "g", progress=False
        )


# -- resume --

SCRIPT = """
import sys
from test_distill import Distiller, config, rows_of
settings = config(sys.argv[1], checkpoint_every=3, lora_rank=int(sys.argv[3]))
Distiller(settings).fit(rows_of(200), out=sys.argv[2], progress=False)
"""


def run_script(student, out, rank):
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen([sys.executable, "-c", SCRIPT, student, str(out), str(rank)],
                            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)


def wait_for_log(out, lines, process):
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if (out / "log.csv").exists() and (out / "log.csv").read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)
    pytest.fail(f"no {lines} lines in the log" + (process.stderr.read() if process.poll() else ""))


@pytest.mark.parametrize("how, rank, family", [(signal.SIGKILL, 0, "bert"), (signal.SIGINT, 4, "bert"), (signal.SIGKILL, 0, "deberta-v3"),
                                               (signal.SIGKILL, 4, "deberta-v3")])
def test_killed_run_resumes_to_the_same_weights(student, tmp_path, how, rank, family):
    if family != "bert":
        student = student_of(tmp_path / "student", family)
    whole = Distiller(config(student, lora_rank=rank)).fit(rows_of(200), out=tmp_path / "whole", progress=False)
    out = tmp_path / "killed"
    for lines in (20, 70):
        with run_script(student, out, rank) as process:
            wait_for_log(out, lines, process)
            process.send_signal(how)
            assert process.wait() in (-how, 1, 130)
        assert json.loads((out / "checkpoint" / "state.json").read_bytes())["step"] > 0
    fitted = Distiller(config(student, checkpoint_every=3, lora_rank=rank, n_threads=2)).fit(
        rows_of(200), out=out, progress=False
    )
    name = "adapter_model.safetensors" if rank else "model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert fitted.best_step_ == whole.best_step_ and np.array_equal(fitted.validation_scores_, whole.validation_scores_)
    assert [h["loss"] for h in fitted.history_] == pytest.approx([h["loss"] for h in whole.history_], rel=1e-6)
    assert [h["step"] for h in fitted.history_] == [h["step"] for h in whole.history_]


def test_checkpoint_of_another_run_is_refused(student, tmp_path, monkeypatch):
    monkeypatch.setattr(distill._Run, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    rows = rows_of(60)
    with pytest.raises(KeyboardInterrupt):
        Distiller(config(student, epochs=2, checkpoint_every=1)).fit(rows, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint of another run \(other config.lr\)"):
        Distiller(config(student, epochs=2, lr=1e-3)).fit(rows, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="other rows"):
        Distiller(config(student, epochs=2)).fit(rows[1:], out=tmp_path, progress=False)
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_bytes())
    # of another version, which did not know patience: mixed, it goes on
    older = {key: value for key, value in state["of"].items() if key != "config.patience"} | {"version": "0", "instruction set": "other"}
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps({**state, "of": older}))
    with pytest.raises(ValueError, match=r"another run \(other instruction set, version\)"):
        Distiller(config(student, epochs=2)).fit(rows, out=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        Distiller(config(student, epochs=2)).fit(rows, out=tmp_path, progress=False, allow_mixed=True)
    with pytest.raises(ValueError, match=r"another run \(other config.patience, instruction set, version\)"):
        Distiller(config(student, epochs=2, patience=1)).fit(rows, out=tmp_path, progress=False)
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps({**state, "trainer": "../../x"}))
    with pytest.raises(ValueError, match="names files outside its folder"):
        Distiller(config(student, epochs=2)).fit(rows, out=tmp_path, progress=False)
    (tmp_path / "checkpoint" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="state.json: damaged checkpoint"):
        Distiller(config(student, epochs=2)).fit(rows, out=tmp_path, progress=False)


def test_a_checkpoint_that_was_being_removed_is_none(student, tmp_path, monkeypatch, caplog):
    rows, settings = rows_of(60), config(student, epochs=2, checkpoint_every=1)
    left = {tmp_path / name for name in ("model.safetensors.tmp-77", ".config.json.a0_bcdef")}
    mine = {tmp_path / name for name in (".config.json.mine", "notes.tmp-7")}

    def killed(work):
        assert not (work / "state.json").exists()
        raise KeyboardInterrupt

    for path in left | mine:
        path.write_text("")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distill.shutil, "rmtree", killed)
        Distiller(settings).fit(rows, out=tmp_path, progress=False)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert not any(path.exists() for path in left) and all(path.exists() for path in mine)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distill._Run, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        Distiller(settings).fit(rows, out=tmp_path, progress=False)
    next((tmp_path / "checkpoint").glob("trainer-*")).unlink()
    Distiller(settings).fit(rows, out=tmp_path, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == weights and not (tmp_path / "checkpoint").exists()
    assert "which state.json names, is missing; the training begins anew" in caplog.text


def test_bfloat16_run_goes_on_as_bfloat16(student, tmp_path, monkeypatch):
    rows, mixed = rows_of(120), {"epochs": 2, "checkpoint_every": 4, "precision": "bfloat16"}
    whole, single = (Distiller(config(student, **{**mixed, "precision": p})).fit(rows, out=tmp_path / p, progress=False) for p in ("bfloat16", "float32"))
    losses, others = ([row["loss"] for row in fitted.history_] for fitted in (whole, single))
    np.testing.assert_allclose(losses, others, rtol=0.05)
    assert losses != others
    step = distill._Run._step
    with monkeypatch.context() as patch:
        patch.setattr(distill._Run, "_step", lambda run: step(run) if run.state.step < 10 else (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Distiller(config(student, **mixed)).fit(rows, out=tmp_path / "again", progress=False)
    with pytest.raises(ValueError, match=r"checkpoint of another run \(other config.precision\)"):
        Distiller(config(student, **{**mixed, "precision": "float32"})).fit(rows, out=tmp_path / "again", progress=False)
    Distiller(config(student, **{**mixed, "n_threads": 2})).fit(rows, out=tmp_path / "again", progress=False)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "bfloat16" / "model.safetensors").read_bytes()


# -- the torch engine; what it computes is tested in tests/reference --

def test_what_needs_the_torch_engine_says_so(student, monkeypatch):
    with pytest.raises(ValueError, match='gradient_checkpointing needs engine "torch"'):
        DistillConfig(gradient_checkpointing=True)
    with pytest.raises(ValueError, match="engine must be one of native, torch, got 'jax'"):
        DistillConfig(engine="jax")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"the torch engine needs accelerate: pip install 'harmaug\[torch\]'"):
        Distiller(config(student, engine="torch")).fit(rows_of(60), progress=False)
