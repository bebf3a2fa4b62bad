"""Training in C: loss and schedule against their equations in float64, ten steps against torch, exact resume."""
import fnmatch
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_bert
from safetensors.numpy import load_file, save_file

from harmaug import _C

RECORDED = np.load(tiny_bert.DATA / "training.npz")
TARGETS = ("query", "value", "attention.output.dense", "output.dense", "pooler.dense")
STEPS, WARMUP, LR = 10, 3, 3e-3
OPTIONS = {"full": {}, "lora": {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": TARGETS},
           "clipped": {"clip_norm": 0.05, "temperature": 2.0}}


# -- loss and schedule --

def kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def softened(p, t):
    return p ** (1 / t) / (p ** (1 / t) + (1 - p) ** (1 / t))


def reference_loss(logits, hard, soft, weights, ce=0.5, kl_weight=0.5, t=1.0):
    """The loss in float64 from the equation; -1 and NaN: the label is absent."""
    d = logits[:, -1].astype(float) - (logits[:, 0] if logits.shape[1] == 2 else 0)
    p, total, weights = 1 / (1 + np.exp(-d)), 0.0, weights.astype(float)
    for i in range(len(d)):
        a, b = (ce if hard[i] >= 0 else 0), (kl_weight if not np.isnan(soft[i]) else 0)
        a, b = (a + kl_weight if a and not b and np.isnan(soft[i]) else a), (b + ce if b and hard[i] < 0 else b)
        row = a * -np.log(p[i] if hard[i] == 1 else 1 - p[i]) if a else 0.0
        if b:
            row += b * t * t * kl(softened(float(soft[i]), t), 1 / (1 + np.exp(-d[i] / t)))
        total += weights[i] * row
    return total / weights.sum()


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("t", [1.0, 2.5])
@pytest.mark.parametrize("ce, kl_weight", [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.3, 0.9)])
def test_loss_is_the_equation_and_its_gradient(labels, t, ce, kl_weight):
    rng = np.random.default_rng(0)
    n = 40
    logits = rng.normal(0, 3, (n, labels)).astype(np.float32)
    hard, soft = rng.integers(-1, 2, n).astype(np.int8), rng.uniform(0.01, 0.99, n).astype(np.float32)
    soft[(np.arange(n) % 4 == 0) & (hard >= 0)] = np.nan
    weights = rng.uniform(0, 2, n).astype(np.float32)
    options = {"ce_weight": ce, "kl_weight": kl_weight, "temperature": t}
    loss, grad = _C.distill_loss(logits, hard, soft, weights, **options)
    assert loss == pytest.approx(reference_loss(logits, hard, soft, weights, ce, kl_weight, t), rel=1e-9)
    step = 1e-3
    for i in range(n):
        for j in range(labels):
            up, down = logits.copy(), logits.copy()
            up[i, j] += step
            down[i, j] -= step
            width = float(up[i, j]) - float(down[i, j])
            slope = (
                reference_loss(up, hard, soft, weights, ce, kl_weight, t)
                - reference_loss(down, hard, soft, weights, ce, kl_weight, t)
            ) / width
            assert grad[i, j] == pytest.approx(slope, abs=2e-6)


def test_loss_of_certain_teachers_and_large_logits_is_finite():
    logits = np.array([[-500, 500], [500, -500], [0, 0]], np.float32)
    loss, grad = _C.distill_loss(logits, np.array([1, 0, 1], np.int8), np.array([1, 0, 1], np.float32))
    assert loss == pytest.approx(np.log(2) / 3) and np.isfinite(grad).all()


def test_unsafe_may_be_the_first_label():
    logits = np.array([[1.0, -2.0]], np.float32)
    one, g1 = _C.distill_loss(logits, np.array([1], np.int8), unsafe_index=0)
    two, g2 = _C.distill_loss(logits[:, ::-1], np.array([1], np.int8), unsafe_index=1)
    assert one == two and np.array_equal(g1, g2[:, ::-1])


@pytest.mark.parametrize("arguments, message", [
    ({"hard": np.array([2, 0], np.int8)}, "row 0: hard label"),
    ({"soft": np.array([0.5, 1.5], np.float32)}, "row 1: soft label"),
    ({}, "row 0: has neither"),
    ({"hard": np.zeros(2, np.int8), "weights": np.zeros(2)}, "sum to 0"),
    ({"hard": np.zeros(2, np.int8), "weights": [1, -1]}, "row 1: weight"),
    ({"hard": np.zeros(3, np.int8)}, r"hard must have shape \(2,\)"),
    ({"hard": np.zeros(2, np.int8), "temperature": 0.0}, "temperature must be > 0"),
    ({"hard": np.zeros(2, np.int8), "ce_weight": 0.0, "kl_weight": 0.0}, "not both 0"),
])
def test_loss_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.distill_loss(np.zeros((2, 2), np.float32), **arguments)


def test_schedule_is_that_of_transformers():
    # get_linear_schedule_with_warmup(3, 10), get_cosine_schedule_with_warmup(3, 10)
    linear = [0, 1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0]
    assert [_C.schedule_factor("linear", s, 3, 10) for s in range(11)] == pytest.approx(linear)
    cosine = [0, 1 / 3, 2 / 3, *(0.5 * (1 + np.cos(np.pi * k / 7)) for k in range(8))]
    assert [_C.schedule_factor("cosine", s, 3, 10) for s in range(11)] == pytest.approx(cosine)
    assert [_C.schedule_factor("constant", s, 2, 10) for s in range(4)] == [0, 0.5, 1, 1]
    assert _C.schedule_factor("linear", 5, 10, 3) == 0.5 and _C.schedule_factor("linear", 11, 10, 3) == 0
    with pytest.raises(ValueError, match="constant, linear or cosine"):
        _C.schedule_factor("steps", 0, 0, 1)


# -- steps --

def start(folder, **options):
    params = _C.EncoderParams.read(folder)
    return params, _C.Trainer(params, **{"dropout": 0.0, "weight_decay": 0.1, **options})


def steps(trainer, first=0, last=STEPS, **more):
    results = []
    for step in range(first, last):
        ids, offsets, types, hard, soft = tiny_bert.batch(step)
        results.append(
            trainer.step(ids, offsets, hard, soft, type_ids=types,
                         lr=LR * _C.schedule_factor("linear", step, WARMUP, STEPS + 2), **more)
        )
    return results


def weights_of(params, trainer=None):
    if trainer is not None:
        trainer.settle()
    return {name: params.get(name) for name in params.names}


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a)


def set_factors(trainer, folder):
    """The LoRA factors that the recorded run starts from."""
    import_factors = tiny_bert.lora_start(TARGETS, 4)
    trainer.save(folder / "start.safetensors", False)
    state = load_file(folder / "start.safetensors")
    state["w.lora"] = np.concatenate([f.ravel() for pair in import_factors.values() for f in pair])
    save_file(state, folder / "start.safetensors")
    trainer.load(folder / "start.safetensors", 0, False)


@pytest.fixture
def folder(tmp_path):
    return tiny_bert.write(tmp_path / "bert")


@pytest.mark.parametrize("case", OPTIONS)
def test_ten_steps_track_torch(isa, folder, case):
    params, trainer = start(folder, **OPTIONS[case])
    before = tiny_bert.tensors(0)
    if case == "lora":
        set_factors(trainer, folder)
    results = steps(trainer)
    np.testing.assert_allclose([r["loss"] for r in results], RECORDED[f"{case}.losses"], atol=1e-4)
    np.testing.assert_allclose([r["grad_norm"] for r in results], RECORDED[f"{case}.norms"], rtol=2e-3)
    assert [r["step"] for r in results] == list(range(1, STEPS + 1))
    if case != "clipped":
        for name, weight in weights_of(params, trainer).items():
            want = RECORDED[f"{case}.{name}"]
            # Adam's first updates are sign(g): a bias whose true gradient is 0, that of the keys (softmax cancels it),
            # moves by rounding alone
            if "key.bias" not in name:
                assert np.linalg.norm(weight - want) <= 1e-3 * np.linalg.norm(want - before[name]) + 1e-7, name


@pytest.mark.parametrize("case", ["full", "lora"])
def test_products_of_bfloat16_stay_near(isa, folder, case):
    """Losses of float32 within 0.5 %, weights within 10 % of each update's norm, and neither is the same."""
    runs = []
    for precision in ("float32", "bfloat16"):
        params, trainer = start(folder, precision=precision, **OPTIONS[case])
        runs.append(([r["loss"] for r in steps(trainer)], weights_of(params, trainer)))
    (losses, weights), (others, rounded) = runs
    np.testing.assert_allclose(others, losses, rtol=5e-3)
    assert all(a != b for a, b in zip(losses, others, strict=True))
    for name, before in tiny_bert.tensors(0).items():
        moved, off = np.linalg.norm(weights[name] - before), np.linalg.norm(rounded[name] - weights[name])
        if "key.bias" not in name:
            assert 0 < off < 0.1 * moved, (name, off / moved)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["full", "lora"])
def test_threads_change_no_bit(isa, folder, case, precision):
    runs = []
    for n_threads in (1, 2):
        params, trainer = start(folder, n_threads=n_threads, dropout=0.2, seed=7, precision=precision, **OPTIONS[case])
        runs.append((steps(trainer), weights_of(params, trainer)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("case", ["full", "lora"])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.0}, {"frozen": ("bert.embeddings.*",)}, {"precision": "bfloat16"}])
def test_resumed_run_is_the_unbroken_run(folder, tmp_path, case, more):
    options = {"dropout": 0.1, **OPTIONS[case], **more}
    params, trainer = start(folder, **options)
    whole = steps(trainer)
    _, first = start(folder, **options)
    steps(first, 0, 4)
    first.save(tmp_path / "state.safetensors")
    again, second = start(folder, **options)
    second.load(tmp_path / "state.safetensors", 4)
    assert second.steps == 4
    assert steps(second, 4) == whole[4:]
    assert same(weights_of(params, trainer), weights_of(again, second))


def test_words_in_no_batch_decay_as_all_others(folder):
    """Step by step in float32, as the others: whenever settled, and also beyond what is put off at most."""
    name = "bert.embeddings.word_embeddings.weight"
    want = tiny_bert.tensors(0)[name].copy()
    ids, offsets, types, hard, soft = tiny_bert.batch(0)
    runs = [start(folder) for _ in range(2)]
    rates = [LR * (1 + i % 7) for i in range(600)]
    for i, lr in enumerate(rates):
        for params, trainer in runs if i < 40 else runs[:1]:
            trainer.step(ids, offsets, hard, soft, type_ids=types, lr=lr)
        if i < 40:
            runs[1][1].settle()
            np.testing.assert_array_equal(runs[1][0].get(name)[-20:], want_after(want, rates[:i + 1])[-20:])
        if i == 39:
            runs[0][1].settle()
            np.testing.assert_array_equal(runs[0][0].get(name), runs[1][0].get(name))
    assert not np.array_equal(runs[0][0].get(name)[-20:], want_after(want, rates)[-20:])
    runs[0][1].settle()
    np.testing.assert_array_equal(runs[0][0].get(name)[-20:], want_after(want, rates)[-20:])


def want_after(weights, rates):
    for lr in rates:
        weights = weights * (np.float32(1) - np.float32(lr) * np.float32(0.1))
    return weights


def test_a_word_met_late_has_decayed_before(folder):
    """Its row is made up for before the forward pass reads it: as of a run that was settled at every step."""
    runs = [start(folder) for _ in range(2)]
    for i in range(12):
        ids, offsets, types, hard, soft = tiny_bert.batch(i)
        ids = np.where(np.arange(len(ids)) % 5 == 0, 40 + i, ids).astype(np.int32)
        outcomes = []
        for params, trainer in runs:
            outcomes.append(trainer.step(ids, offsets, hard, soft, type_ids=types, lr=0.1))
        runs[1][1].settle()
        assert outcomes[0] == outcomes[1]
    assert same(weights_of(*runs[0]), weights_of(*runs[1]))


def test_layer_decay_is_a_learning_rate_for_each_depth(folder):
    """Adam's first update has the size of the learning rate; two layers: embeddings stand 3 below the head."""
    before = tiny_bert.tensors(0)
    params, trainer = start(folder, layer_decay=0.5, weight_decay=0.0)
    ids, offsets, types, hard, soft = tiny_bert.batch(0)
    trainer.step(ids, offsets, hard, soft, type_ids=types, lr=1e-3)
    for name, depth in (("classifier.weight", 0), ("bert.pooler.dense.weight", 0), ("bert.encoder.layer.1.output.dense.weight", 1),
                        ("bert.encoder.layer.0.attention.self.value.weight", 2), ("bert.embeddings.LayerNorm.weight", 3)):
        assert np.median(np.abs(params.get(name) - before[name])) == pytest.approx(1e-3 * 0.5**depth, rel=0.02), name
    _, adapted = start(folder, layer_decay=0.5, weight_decay=0.0, frozen=("*LayerNorm*", "*bias", "*embeddings*", "classifier*"), **OPTIONS["lora"])
    adapted.step(ids, offsets, hard, soft, type_ids=types, lr=1e-3)


def test_what_is_frozen_costs_no_gradient_of_the_others(folder):
    """The first update of what is trained is that of a trainer of everything, bit for bit."""
    ids, offsets, types, hard, soft = tiny_bert.batch(0)
    whole, all_of_it = start(folder, clip_norm=0.0)
    all_of_it.step(ids, offsets, hard, soft, type_ids=types, lr=1e-3)
    for frozen in (("bert.embeddings.*",), ("bert.e*",), ("bert.*",), ("*bias", "*layer.0.*"), ("*query*", "*LayerNorm*", "classifier*")):
        params, trainer = start(folder, clip_norm=0.0, frozen=frozen)
        trainer.step(ids, offsets, hard, soft, type_ids=types, lr=1e-3)
        trainer.settle()
        all_of_it.settle()
        for name, before in tiny_bert.tensors(0).items():
            kept = any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen)
            np.testing.assert_array_equal(params.get(name), before if kept else whole.get(name), err_msg=name)


def test_micro_batches_change_rounding_only(folder):
    runs = []
    for micro_tokens in (0, 1, 30):
        params, trainer = start(folder, micro_tokens=micro_tokens)
        runs.append(([r["loss"] for r in steps(trainer)], weights_of(params, trainer)))
    for losses, weights in runs[1:]:
        np.testing.assert_allclose(losses, runs[0][0], atol=1e-5)
        np.testing.assert_allclose(weights["classifier.weight"], runs[0][1]["classifier.weight"], atol=1e-4)


def test_frozen_parameters_stay(folder):
    before = tiny_bert.tensors(0)
    params, trainer = start(folder, frozen=("bert.embeddings.*", "*layer.0.*"))
    steps(trainer)
    for name, weight in weights_of(params, trainer).items():
        assert np.array_equal(weight, before[name]) == name.startswith(("bert.embeddings", "bert.encoder.layer.0.")), (
            name
        )
    assert trainer.trainable == sum(
        w.size for n, w in before.items() if not n.startswith(("bert.embeddings", "bert.encoder.layer.0."))
    )


def test_weights_count_as_repeated_rows(folder):
    ids, offsets, types, hard, soft = tiny_bert.batch(0, rows=3)
    _, one = start(folder)
    _, two = start(folder)
    rows = [0, 1, 1, 2]
    repeated = np.concatenate([ids[offsets[r]:offsets[r + 1]] for r in rows])
    ends = np.concatenate([[0], np.cumsum(np.diff(offsets)[rows])])
    types2 = np.concatenate([types[offsets[r]:offsets[r + 1]] for r in rows])
    a = one.step(ids, offsets, hard, soft, np.array([1, 2, 1]), type_ids=types, lr=1e-3)
    b = two.step(repeated, ends, hard[rows], soft[rows], type_ids=types2, lr=1e-3)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_one_label(tmp_path):
    folder = tiny_bert.write(tmp_path / "one", num_labels=1, id2label={"0": "unsafe"}, label2id={"unsafe": 0})
    _, trainer = start(folder, kl_weight=0.0)
    ids, offsets, types, hard, _ = tiny_bert.batch(0)
    losses = [trainer.step(ids, offsets, hard, type_ids=types, lr=1e-2)["loss"] for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]


def test_lora_adapter_file(folder, tmp_path):
    params, trainer = start(folder, frozen=("bert.embeddings.*", "*LayerNorm*", "*bias"), **OPTIONS["lora"])
    steps(trainer)
    trainer.save_adapter(tmp_path / "adapter_model.safetensors", "float32")
    adapter, before = load_file(tmp_path / "adapter_model.safetensors"), tiny_bert.tensors(0)
    prefix = "base_model.model."
    modules = {n.removesuffix(".lora_A.weight") for n in adapter if n.endswith(".lora_A.weight")}
    assert len(modules) == 4 * 2 + 1
    for module in modules:
        name = module.removeprefix(prefix) + ".weight"
        merged = before[name] + 2.0 * adapter[module + ".lora_B.weight"] @ adapter[module + ".lora_A.weight"]
        np.testing.assert_allclose(params.get(name), merged, atol=1e-6)
    assert sorted(n for n in adapter if ".lora_" not in n) == sorted(
        prefix + n
        for n in before
        if n.endswith("weight")
        and "embeddings" not in n
        and "LayerNorm" not in n
        and f"{prefix}{n.removesuffix('.weight')}" not in modules
    )


@pytest.mark.parametrize("options, message", [
    ({"frozen": ("nothing",)}, "frozen pattern 'nothing' matches no parameter"),
    ({"frozen": ("*",)}, "every parameter is frozen"),
    ({"lora_rank": 2}, "no targets"),
    ({"lora_rank": 2, "lora_targets": ("quer",)}, "target 'quer' names no matrix"),
    ({"lora_rank": 99, "lora_targets": ("query",)}, "rank 99 is over the extents"),
    ({"lora_rank": -1}, "must be >= 0"),
    ({"weight_decay": float("nan")}, "weight_decay must be in"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"attention_dropout": -0.1}, "attention_dropout must be in"),
    ({"classifier_dropout": 1.0}, "classifier_dropout must be in"),
    ({"layer_decay": 0.0}, "layer_decay must be in"),
    ({"layer_decay": 1.1}, "layer_decay must be in"),
    ({"beta2": 1.0}, "beta2 must be in"),
    ({"unsafe_index": 2}, "unsafe at index 2"),
])
def test_trainer_rejects(folder, options, message):
    with pytest.raises(ValueError, match=message):
        start(folder, **options)


def test_bad_steps_change_nothing(folder):
    params, trainer = start(folder)
    ids, offsets, _, hard, soft = tiny_bert.batch(0)
    before = weights_of(params)
    long = np.full(25, 5, np.int32)
    for arguments, message in [
        ((ids, offsets[:-1], hard[:-1], soft[:-1]), "offsets must start at 0"),
        ((ids, offsets, hard[:-1], soft), "hard must have shape"),
        ((np.where(ids == ids[-1], 60, ids), offsets, hard, soft), "id 60, outside the vocabulary of 60"),
        ((long, [0, 25], hard[:1], soft[:1]), "row 0 has 25 tokens"),
        ((long[:3], [0, 3, 3], hard[:2], soft[:2]), "row 1 is empty"),
        ((ids[:0], [0], hard[:0], soft[:0]), "needs at least one row"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.step(*arguments, lr=1e-3)
    with pytest.raises(ValueError, match="lr must be finite"):
        trainer.step(ids, offsets, hard, soft)
    assert trainer.steps == 0 and same(before, weights_of(params))
    _, fresh = start(folder)
    assert steps(trainer) == steps(fresh)       # nothing is left in the gradients


def test_loss_that_is_not_finite_stops_before_the_weights_change(folder, tmp_path):
    params, trainer = start(folder)
    steps(trainer, 0, 2)
    trainer.save(tmp_path / "state.safetensors")
    state = load_file(tmp_path / "state.safetensors")
    state["w.classifier.bias"][0] = np.inf
    save_file(state, tmp_path / "state.safetensors")
    trainer.load(tmp_path / "state.safetensors", 2)
    before = weights_of(params)
    with pytest.raises(ValueError, match="step 3: the loss is not finite"):
        steps(trainer, 2, 3)
    assert trainer.steps == 2 and same(before, weights_of(params))


def test_damaged_state_is_named(folder, tmp_path):
    _, trainer = start(folder)
    steps(trainer, 0, 1)
    trainer.save(tmp_path / "state.safetensors")
    state = load_file(tmp_path / "state.safetensors")
    cases = {"missing": {k: v for k, v in state.items() if k != "m.classifier.weight"},
             "shape": {**state, "v.classifier.weight": np.zeros((2, 2), np.float32)},
             "F16": {**state, "w.classifier.bias": state["w.classifier.bias"].astype(np.float16)},
             "shape ": {k: v[:3] if k.startswith("m.bert.embeddings.word") else v for k, v in state.items()}}
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "bad.safetensors")
        _, fresh = start(folder)
        with pytest.raises(_C.FormatError, match=message):
            fresh.load(tmp_path / "bad.safetensors", 1)
    with pytest.raises(OSError):
        start(folder)[1].load(tmp_path / "nothing.safetensors", 1)


def resident_kilobytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_and_references_stay_flat(folder, tmp_path):
    params, trainer = start(folder, lora_rank=2, lora_targets=("query",))
    ids, offsets, types, hard, soft = tiny_bert.batch(0)
    for i in range(1300):
        if i == 300:
            memory, references = resident_kilobytes(), sys.getrefcount(params)
        _C.Trainer(params, frozen=("bert.embeddings.*",), lora_rank=2, lora_targets=("query", "key"))
        trainer.step(ids, offsets, hard, soft, type_ids=types, lr=1e-6)
        for bad in ({"lora_rank": 2}, {"frozen": ("none",)}, {"frozen": (1,)}, {"dropout": 2.0}):
            with pytest.raises((ValueError, TypeError)):
                _C.Trainer(params, **bad)
        with pytest.raises(ValueError, match="hard"):
            trainer.step(ids, offsets, hard[:-1], lr=1.0)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            trainer.step(ids + 100, offsets, hard, lr=1.0)
        with pytest.raises(OSError):
            trainer.save(tmp_path / "none" / "state")
    assert resident_kilobytes() - memory < 512
    assert sys.getrefcount(params) == references


def test_one_trainer_is_one_threads(folder):
    _, trainer = start(folder)
    ids, offsets, types, hard, soft = tiny_bert.batch(0, rows=400)
    outcomes = []

    def work():
        for _ in range(5):
            try:
                outcomes.append(trainer.step(ids, offsets, hard, soft, type_ids=types, lr=0.0)["loss"])
            except RuntimeError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {o for o in outcomes if isinstance(o, str)} <= {"Trainer: in use by another thread"}
    assert (
        len({o for o in outcomes if isinstance(o, float)}) == 1
    )  # dropout and lr are 0: every step that was made saw the same weights
    assert trainer.steps == sum(isinstance(o, float) for o in outcomes)
