"""Training in C beside torch autograd and AdamW, live."""
import contextlib
import os
from pathlib import Path

import encoder_models
import numpy as np
import pytest
import tiny_bert
import torch
import torch_training
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from harmaug import _C
from harmaug.data import Row
from harmaug.distill import DistillConfig, Distiller
from harmaug.guard import Guard

OPTIONS = {"full": {}, "lora": {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": torch_training.TARGETS},
           "clipped": {"clip_norm": 0.05, "temperature": 2.0}}


def steps(params, **options):
    trainer = _C.Trainer(params, dropout=0.0, weight_decay=torch_training.DECAY, **options)
    return trainer, lambda: [
        trainer.step(
            *tiny_bert.batch(s)[:2], *tiny_bert.batch(s)[3:], type_ids=tiny_bert.batch(s)[2],
            lr=torch_training.LR * _C.schedule_factor("linear", s, torch_training.WARMUP, torch_training.STEPS + 2)
        )
        for s in range(torch_training.STEPS)
    ]


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("seed, labels", [(1, 2), (2, 1)])
def test_ten_steps_track_torch(isa, tmp_path, case, seed, labels):
    folder = tiny_bert.write(tmp_path / "bert", seed=seed, num_labels=labels,
                             id2label={str(i): f"l{i}" for i in range(labels)},
                             label2id={f"l{i}": i for i in range(labels)})
    losses, norms, weights, moved = torch_training.run(folder, **torch_training.CASES[case])
    params = _C.EncoderParams.read(folder)
    trainer, go = steps(params, **OPTIONS[case])
    if case == "lora":
        trainer.save(tmp_path / "start.safetensors", False)
        state = load_file(tmp_path / "start.safetensors")
        state["w.lora"] = np.concatenate(
            [f.ravel() for pair in tiny_bert.lora_start(torch_training.TARGETS, 4).values() for f in pair]
        )
        save_file(state, tmp_path / "start.safetensors")
        trainer.load(tmp_path / "start.safetensors", 0, False)
    results = go()
    trainer.settle()
    np.testing.assert_allclose([r["loss"] for r in results], losses, atol=1e-4)
    np.testing.assert_allclose([r["grad_norm"] for r in results], norms, rtol=2e-3)
    for name, want in weights.items():
        if "key.bias" not in name:     # its true gradient is 0: Adam makes steps of the rounding
            assert np.linalg.norm(params.get(name) - want) <= 1e-3 * moved[name] + 1e-7, name


@pytest.mark.parametrize("name, layer_decay", [("deberta-v3", 1.0), ("deberta-v3", 0.7), ("deberta-v2", 1.0), ("deberta-plain", 1.0), ("deberta-biased", 0.8),
                                               ("roberta", 1.0), ("electra", 0.7), ("distilbert", 1.0), ("modernbert", 0.7), ("modernbert-mean", 1.0)])
def test_ten_steps_of_every_family_track_torch(tmp_path, name, layer_decay):
    """Losses within 1e-4, weights within 1e-3 of their update."""
    c = encoder_models.config(name, num_labels=2)
    folder = encoder_models.write(tmp_path / "student", c, encoder_models.weights(c))
    with_types, lr = c.get("type_vocab_size", 0) > 1, 1e-3
    losses, norms, weights, moved = torch_training.run(folder, lr=lr, layer_decay=layer_decay, with_types=with_types)
    params = _C.EncoderParams.read(folder)
    trainer = _C.Trainer(params, dropout=0.0, weight_decay=torch_training.DECAY, layer_decay=layer_decay)
    results = []
    for step in range(torch_training.STEPS):
        ids, offsets, types, hard, soft = tiny_bert.batch(step)
        factor = _C.schedule_factor("linear", step, torch_training.WARMUP, torch_training.STEPS + 2)
        results.append(trainer.step(ids, offsets, hard, soft, type_ids=types if with_types else None, lr=lr * factor))
    trainer.settle()
    np.testing.assert_allclose([r["loss"] for r in results], losses, atol=1e-4)
    np.testing.assert_allclose([r["grad_norm"] for r in results], norms, rtol=2e-3)
    for key, want in weights.items():
        if not key.endswith((".key.bias", "key_proj.bias", ".k_lin.bias")) or ("key_proj" in key and "p2c" in c["pos_att_type"] and "pos_key" not in key):
            assert np.linalg.norm(params.get(key) - want) <= 1e-3 * moved[key] + 1e-7, (key, np.linalg.norm(params.get(key) - want) / moved[key])


# -- products of bfloat16 --

def torch_gradients(model, ids, offsets, types, dlogits, products):
    """Of torch, in the order of the tensors: with these products."""
    model.zero_grad()
    with products:
        logits = model(**torch_training.padded(ids, offsets, types, model.config.pad_token_id or 0)).logits
    (logits * torch.from_numpy(dlogits).to(logits.dtype)).sum().backward()
    return {name: torch.zeros_like(p).numpy() if p.grad is None else p.grad.numpy().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "deberta-v3", "deberta-v2", "deberta-grouped", "deberta-plain", "modernbert",
                                  "modernbert-mean"])
def test_bfloat16_gradients(isa, tmp_path, name):
    """Of six batches, each tensor beside autograd in float64 over products whose operands are rounded: within 4 % of its norm in every batch and 1e-5 in one (a
    number that falls to the other side of a rounding moves what comes after it). The six together: within 5 % of torch.autocast, and nearer to the true
    gradients than autocast comes on the mean of the tensors."""
    c = encoder_models.config(name)
    folder = encoder_models.write(tmp_path / "model", c, encoder_models.weights(c, seed=1))
    params = _C.EncoderParams.read(folder)
    single, double = (AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", dtype=kind).eval()
                      for kind in (torch.float32, torch.float64))
    nearest, squares = dict.fromkeys(params.names, 1.0), {key: np.zeros(4) for key in params.names}
    for seed in range(6):
        ids, offsets, types = encoder_models.batch(c, [4, 5], seed=seed)
        given = ids, offsets, types if c.get("type_vocab_size", 0) > 1 else None
        dlogits = np.random.default_rng(seed).normal(size=(2, c["num_labels"])).astype(np.float32)
        _, flat, _ = params.gradients(ids, offsets, dlogits, types, precision="bfloat16")
        ends = np.cumsum([np.prod(params.shape(key), dtype=int) for key in params.names])
        got = {key: part.reshape(params.shape(key)) for key, part in zip(params.names, np.split(flat, ends[:-1]), strict=True)}
        rounded = torch_gradients(double, *given, dlogits, torch_training.Rounded())
        exact = torch_gradients(double, *given, dlogits, contextlib.nullcontext())
        cast = torch_gradients(single, *given, dlogits, torch.autocast("cpu", torch.bfloat16))
        most = max(np.linalg.norm(g) for g in exact.values())
        for key, true in exact.items():
            size = np.linalg.norm(true)
            if size < 1e-4 * most:      # a key's bias: 0 but for rounding
                nearest.pop(key, None)
                continue
            off = np.linalg.norm(got[key] - rounded[key]) / size
            nearest[key] = min(nearest[key], off)
            assert off < 0.04, key
            squares[key] += [size**2, *(np.sum((a[key].astype(float) - b[key])**2) for a, b in ((got, cast), (got, exact), (cast, exact)))]
    assert len(nearest) > 10 and max(nearest.values()) < 1e-5, nearest
    beside_cast, ours, autocast = np.sqrt([squares[key][1:] / squares[key][0] for key in nearest]).T
    assert 1e-3 < ours.mean() < autocast.mean()
    if name != "distilbert":            # whose head is a relu, of which autocast turns one over: 15 % off the true gradients
        assert beside_cast.max() < 0.05


@pytest.mark.parametrize("name", ["bert", "deberta-v3", "modernbert"])
def test_ten_steps_of_bfloat16_track_autocast(tmp_path, name):
    """Losses within 4 %."""
    c = encoder_models.config(name, num_labels=2)
    folder = encoder_models.write(tmp_path / "student", c, encoder_models.weights(c))
    with_types, lr = c.get("type_vocab_size", 0) > 1, 1e-3
    losses, _, _, _ = torch_training.run(folder, lr=lr, with_types=with_types, autocast=True)
    trainer = _C.Trainer(_C.EncoderParams.read(folder), dropout=0.0, weight_decay=torch_training.DECAY, precision="bfloat16")
    got = []
    for step in range(torch_training.STEPS):
        ids, offsets, types, hard, soft = tiny_bert.batch(step)
        factor = _C.schedule_factor("linear", step, torch_training.WARMUP, torch_training.STEPS + 2)
        got.append(trainer.step(ids, offsets, hard, soft, type_ids=types if with_types else None, lr=lr * factor)["loss"])
    np.testing.assert_allclose(got, losses, rtol=0.04)


# -- real weights; adapters --

def test_five_steps_of_minilm_track_torch():
    folder = Path(os.environ["HARMAUG_MODELS"]) / "minilm"
    params = _C.EncoderParams.read(folder, new_head=2, seed=0)
    model = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    before = {n: params.get(n) for n in params.names}
    model.load_state_dict({n: torch.from_numpy(w.copy()) for n, w in before.items()}, strict=False)
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW([{"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
                                   {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}], lr=1e-4)
    trainer = _C.Trainer(params, dropout=0.0, weight_decay=0.1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        lengths = rng.integers(5, 60, 8)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids, types = rng.integers(999, 5000, offsets[-1]).astype(np.int32), np.zeros(offsets[-1], np.uint8)
        hard, soft = rng.integers(0, 2, 8).astype(np.int8), rng.uniform(0.01, 0.99, 8).astype(np.float32)
        loss = torch_training.loss_of(model(**torch_training.padded(ids, offsets, types)).logits, hard, soft)
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(trained, 1.0))
        optimizer.step()
        result = trainer.step(ids, offsets, hard, soft, type_ids=types, lr=1e-4)
        assert result["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        assert result["grad_norm"] == pytest.approx(norm, rel=2e-3)
    trainer.settle()
    for name, want in model.named_parameters():
        got, want = params.get(name), want.detach().numpy()
        if "key.bias" not in name:
            # where a gradient is near 0 Adam's update is rounding; over a whole tensor that stays a few thousandths
            assert np.linalg.norm(got - want) <= 1e-2 * np.linalg.norm(want - before[name]), name


@pytest.mark.filterwarnings("ignore::FutureWarning")     # transformers warns of itself when peft wraps a model
@pytest.mark.parametrize("name", ["deberta-v3", "deberta-plain", "roberta", "electra", "distilbert", "modernbert"])
def test_adapters_of_every_family_open_in_peft(tmp_path, name):
    c = encoder_models.config(name, num_labels=2, **({"type_vocab_size": 2} if name == "roberta" else {}))
    base = encoder_models.write(tmp_path / "student", c, encoder_models.weights(c))
    (base / "vocab.txt").write_text("\n".join(tiny_bert.WORDS) + "\n")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    rows = [Row(prompt=f"w{i % 20} w{i % 7}", label=int(i % 20 < 10)) for i in range(140)]
    config = DistillConfig(student=str(base), lora_rank=4, lora_alpha=8.0, lr=3e-3, warmup_steps=0, batch_size=16, max_length=24, weight_decay=0.0)
    Distiller(config).fit(rows, out=tmp_path / "adapter", progress=False)
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path / "adapter").eval()
    ids, offsets, types, _, _ = tiny_bert.batch(0)
    types = types if c.get("type_vocab_size", 0) > 1 else None
    with torch.no_grad():
        want = model(**torch_training.padded(ids, offsets, types, c.get("pad_token_id", 0))).logits.numpy()
    got = Guard.from_pretrained(tmp_path / "adapter").encoder.logits(ids, offsets, types)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.abs(got - _C.Encoder(base).logits(ids, offsets, types)).max() > 0.05


@pytest.mark.filterwarnings("ignore::FutureWarning")     # transformers warns of itself when peft wraps a model
def test_adapter_opens_in_peft(tmp_path):
    base = tiny_bert.write(tmp_path / "bert")
    rows = [Row(prompt=f"w{i % 20} w{i % 7}", label=int(i % 20 < 10)) for i in range(140)]
    config = DistillConfig(student=str(base), lora_rank=4, lora_alpha=8.0, freeze=("bert.embeddings.word*",), lr=3e-3,
                           warmup_steps=0, batch_size=16, max_length=24)
    Distiller(config).fit(rows, out=tmp_path / "adapter", progress=False)
    model = PeftModel.from_pretrained(
        BertForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path / "adapter"
    ).eval()
    ids, offsets, types, _, _ = tiny_bert.batch(0)
    with torch.no_grad():
        want = model(**torch_training.padded(ids, offsets, types)).logits.numpy()
    got = Guard.from_pretrained(tmp_path / "adapter").encoder.logits(ids, offsets, types)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - _C.Encoder(base).logits(ids, offsets, types)).max() > 0.05
