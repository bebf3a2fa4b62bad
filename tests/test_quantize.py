"""Weights of 8 bits and bfloat16: what they hold, how they are stored, and that a stored model gives the same bits again."""
import json

import encoder_models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_guard import PROMPTS, RESPONSES, write

from harmaug import _C, FormatError
from harmaug.guard import Guard

LENGTHS = [7, 1, 33, 12]
METHOD = {"quant_method": "harmaug", "version": 2}


def stored(folder, c, params, dtype, **options):
    """A folder with the parameters in this dtype."""
    encoder_models.write(folder, {**c, "quantization_config": METHOD} if dtype == "int8" else c, {})
    params.write(folder / "model.safetensors", dtype=dtype, **options)
    return folder


def model(name, folder, **changes):
    c = encoder_models.config(name, **changes)
    return encoder_models.write(folder, c, encoder_models.weights(c)), c


# -- rows --

GROUP = 64


def rounded(rows):
    """Rows of 8 bits as they are defined: (q, scales of the groups)."""
    groups = -(-rows.shape[1] // GROUP)
    padded = np.zeros((len(rows), groups * GROUP), dtype=np.float32)
    padded[:, :rows.shape[1]] = rows
    padded = padded.reshape(len(rows), groups, GROUP)
    most = np.abs(padded).max(axis=2, initial=0)
    bits = (most / np.float32(127)).view(np.uint32)
    scale = np.where(most < 2.0 ** -100, 0, ((bits + 0x7FFF) & ~np.uint32(0x7FFF)).view(np.float32)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    q = np.rint(padded * inverse[:, :, None]).astype(np.int8)
    return q.reshape(len(rows), -1)[:, :rows.shape[1]], scale


def whole_steps(x):
    """A row of activations as it is held: (integers, step, what an integer of 0 stands for)."""
    most = np.abs(x).max()
    for _ in range(6):
        if (np.abs(x) > most / 2).sum() > 16:
            break
        most /= 2
    low, high = max(x.min(), -most), min(x.max(), most)
    step = max(high - low, most) / np.float32(252)
    zero = np.rint(np.float32(0.5) * (low + high) / step)
    return np.rint(x * (np.float32(1) / step)).astype(np.int64) - np.int64(zero), step, zero * step


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 64, 5), (15, 33, 385), (64, 65, 17), (1, 200, 769), (600, 40, 31), (7, 20, 128)])
def test_products_are_exact_integers(isa, shape):
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    x, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k), n))
    x[::2, :min(k, 9):3] *= 200                             # few are far larger than the rest: integers of more than 8 bits
    x[1::3] = np.abs(x[1::3]) - np.float32(0.1)             # to one side, as after a GELU
    linear = _C.Linear(w, bias, dtype="int8")
    y = linear(x, n_threads=1)
    q, scale = rounded(w)
    wide = q * np.repeat(scale.astype(np.float64), GROUP, axis=1)[:, :k]
    want = np.empty((m, n))
    for i in range(m):
        whole, step, middle = whole_steps(x[i])
        want[i] = wide @ whole * np.float64(step) + np.float64(middle) * wide.sum(axis=1) + bias
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    np.testing.assert_array_equal(y, linear(x, n_threads=2))
    for row in range(0, m, 1 + m // 7):
        np.testing.assert_array_equal(y[row], linear(x[row:row + 1])[0])


@pytest.mark.parametrize("embeddings", [None, "int4"])
def test_rows_on_disk(tmp_path, embeddings):
    folder, c = model("deberta-v3", tmp_path / "a", vocab_size=70, hidden_size=150, num_attention_heads=3)
    w, params = load_file(folder / "model.safetensors"), _C.EncoderParams.read(folder)
    file = load_file(stored(tmp_path / "b", c, params, "int8", embeddings=embeddings) / "model.safetensors")
    assert sorted(file) == sorted(w)
    words = "deberta.embeddings.word_embeddings.weight"
    for name, tensor in file.items():
        small = ".layer." in name and tensor.ndim == 2 or name == words
        assert tensor.dtype == (np.float32 if not small else np.uint8 if name == words and embeddings else np.int8)
        if not small:
            np.testing.assert_array_equal(tensor, w[name])
        elif tensor.dtype == np.int8:
            q, scale = rounded(w[name])
            k = q.shape[1]
            np.testing.assert_array_equal(tensor[:, :k], q)
            stored_scales = np.ascontiguousarray(tensor[:, k:]).view("<u2").astype(np.uint32) << 15
            np.testing.assert_array_equal(stored_scales.view(np.float32), scale)
        else:
            assert tensor.shape == (70, 75 + 3 * 2)
            scales = np.repeat(np.ascontiguousarray(tensor[:, 75:]).view("<f2").astype(np.float32), 64, axis=1)[:, :150]
            got = (np.stack([tensor[:, :75] & 15, tensor[:, :75] >> 4], axis=2).reshape(70, 150).astype(np.float32) - 8) * scales
            most = np.abs(w[name]).max()
            assert np.abs(got - w[name]).max() < most / 5 and np.square(got - w[name]).mean() < (most / 7.5) ** 2 / 12
            np.testing.assert_array_equal(_C.EncoderParams.read(tmp_path / "b").get(name), got)


# -- models --

@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["bert", "electra", "distilbert", "deberta-v2", "deberta-grouped", "deberta-plain", "deberta-biased", "modernbert-mean"])
def test_a_stored_model_gives_the_same_bits(isa, name, dtype, tmp_path):
    folder, c = model(name, tmp_path / "a")
    ids, offsets, types = encoder_models.batch(c, LENGTHS)
    exact = _C.Encoder(folder).logits(ids, offsets, types)
    encoder = _C.Encoder(folder, dtype=dtype)
    logits = encoder.logits(ids, offsets, types, n_threads=1)
    assert encoder.dtype == dtype and 0 < np.abs(logits - exact).max() < 0.04 * np.abs(exact).max()
    params = _C.EncoderParams.read(folder)
    again = _C.Encoder(stored(tmp_path / "b", c, params, dtype), dtype=dtype)
    for other in (_C.Encoder.from_params(params, dtype=dtype), again):
        np.testing.assert_array_equal(other.logits(ids, offsets, types, n_threads=2), logits)
    for i, (begin, end) in enumerate(zip(offsets, offsets[1:])):
        np.testing.assert_array_equal(encoder.logits(ids[begin:end], [0, end - begin], types[begin:end])[0], logits[i])


def test_integers_do_not_depend_on_the_instruction_set(tmp_path):
    """What is left is the rounding of float32, which a rounding to 8 bits may turn into one step of an activation here and there."""
    folder, c = model("deberta-v3", tmp_path)
    rows, found = encoder_models.batch(c, LENGTHS), []
    try:
        for name in _C.build_info()["cpu_isa_usable"]:
            _C.set_cpu_isa(name)
            found.append(_C.Encoder(folder, dtype="int8").logits(*rows))
    finally:
        _C.set_cpu_isa(None)
    for logits in found:
        np.testing.assert_allclose(logits, found[0], rtol=0, atol=2e-3 * np.abs(found[0]).max())


@pytest.mark.parametrize("loud", [0, 4])
def test_outlier_channels(tmp_path, loud):
    """Some hidden channels thirty times the others, as large models have them: int8 stays as near to float32 as without."""
    c = encoder_models.config("deberta-v3", hidden_size=192, num_attention_heads=3, intermediate_size=384, num_hidden_layers=3, vocab_size=100)
    w = encoder_models.weights(c)
    for key in w:
        if key.endswith("LayerNorm.weight"):
            w[key][5:5 + 40 * loud:40] *= 30
    folder = encoder_models.write(tmp_path, c, w)
    rows = encoder_models.batch(c, [30] * 20)
    exact, small = (_C.Encoder(folder, dtype=dtype).logits(*rows) for dtype in ("float32", "int8"))
    spread = (exact - exact.mean(axis=0)).std()
    assert np.sqrt(np.square(small - exact).mean()) < 0.06 * spread


# -- guards --

@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_guards(tmp_path, dtype):
    guard = Guard.from_pretrained(write(tmp_path / "guard"))
    guard.set_threshold(0.3)
    small = guard.to(dtype)
    assert small.encoder.dtype == dtype and guard.encoder.dtype == "float32" and small.threshold == 0.3
    want = small.logits(PROMPTS, RESPONSES)
    assert 0 < np.abs(want - guard.logits(PROMPTS, RESPONSES)).max() < 0.1
    small.save_pretrained(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config.get("quantization_config") == ({**METHOD, "weights": "int8", "embeddings": "int8"} if dtype == "int8" else None)
    for again in (Guard.from_pretrained(tmp_path / "small", dtype=dtype), guard.to(dtype).to(dtype)):
        np.testing.assert_array_equal(again.logits(PROMPTS, RESPONSES), want)
    opened = Guard.from_pretrained(tmp_path / "small")
    assert opened.threshold == 0.3 and opened.encoder.dtype == ("int8" if dtype == "int8" else "float32")
    opened.save_pretrained(tmp_path / "copy", dtype=dtype)
    np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / "copy", dtype=dtype).logits(PROMPTS, RESPONSES), want)
    opened.to("float32").save_pretrained(tmp_path / "wide")
    assert "quantization_config" not in json.loads((tmp_path / "wide" / "config.json").read_text())
    np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / "wide", dtype=dtype).logits(PROMPTS, RESPONSES), want)


def test_words_of_4_bits(tmp_path):
    guard = Guard.from_pretrained(write(tmp_path / "guard"))
    guard.to("int8").save_pretrained(tmp_path / "small", embeddings="int4")
    small = Guard.from_pretrained(tmp_path / "small")
    assert 0 < np.abs(small.logits(PROMPTS) - guard.logits(PROMPTS)).max() < 0.3
    small.save_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(Guard.from_pretrained(tmp_path / "copy").logits(PROMPTS), small.logits(PROMPTS))
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["quantization_config"]["embeddings"] == "int4"
    with pytest.raises(ValueError, match="embeddings must be None, or 'int4' with dtype int8, got 'int4' with float32"):
        guard.save_pretrained(tmp_path / "no", embeddings="int4")
    with pytest.raises(ValueError, match="dtype must be float32, float16, bfloat16 or int8, got 'int4'"):
        guard.save_pretrained(tmp_path / "no", dtype="int4")


# -- files --

@pytest.mark.parametrize("config, match", [
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "only quant_method 'harmaug' is supported, got 'bitsandbytes'"),
    ({"quantization_config": []}, "only quant_method 'harmaug' is supported, got 'none'"),
    ({"quantization_config": {**METHOD, "version": 1}}, "version must be 2; save the guard as int8 again"),
    ({}, r"word_embeddings.weight' has shape \(60, 38\), expected \(60, 36\)"),
])
def test_rejects_configurations(tmp_path, config, match):
    folder, c = model("deberta-v3", tmp_path / "a")
    stored(tmp_path / "b", c, _C.EncoderParams.read(folder), "int8")
    encoder_models.write(tmp_path / "c", {**c, **config}, {})
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "c" / "model.safetensors")
    for read in (_C.Encoder, _C.EncoderParams.read):
        with pytest.raises(FormatError, match=match):
            read(tmp_path / "c")


def test_rejects_files(tmp_path):
    folder, c = model("bert", tmp_path / "a", num_hidden_layers=1)
    bad = stored(tmp_path / "b", c, _C.EncoderParams.read(folder), "int8") / "model.safetensors"
    whole, good = bad.read_bytes(), load_file(bad)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    for tensor, match in (
        (good[name][:, :-1].copy(), r"dense.weight' has shape \(50, 37\), expected \(50, 38\)"),
        (good[name].view(np.uint8), r"dense.weight' has shape \(50, 38\), expected \(50, 20\)"),
        (good[name][:-1].copy(), r"has shape \(49, 38\)"),
        (good[name].reshape(-1), r"has shape \(1900\)"),
        (good[name].astype(np.int16), r"has shape \(50, 38\), expected \(50, 36\)"),
    ):
        save_file({**good, name: tensor}, bad)
        with pytest.raises(FormatError, match=match):
            _C.Encoder(bad.parent, dtype="int8")
    bias = "bert.encoder.layer.0.intermediate.dense.bias"
    save_file({**good, bias: np.zeros(50, dtype=np.int8)}, bad)
    with pytest.raises(FormatError, match="dense.bias' is stored as I8; read are F32"):
        _C.Encoder(bad.parent, dtype="int8")
    rng = np.random.default_rng(0)
    rows = encoder_models.batch(c, [5, 3])
    for cut in [*range(0, 400, 7), *rng.integers(400, len(whole), 60)]:
        bad.write_bytes(whole[:cut])
        with pytest.raises((FormatError, OSError)):
            _C.Encoder(bad.parent, dtype="int8")
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        bad.write_bytes(damaged)
        try:
            _C.Encoder(bad.parent, dtype="int8").logits(*rows)
        except (FormatError, OSError):
            pass


def test_weights_that_are_no_numbers_are_told(tmp_path):
    folder = write(tmp_path / "guard")
    w = load_file(folder / "model.safetensors")
    w["bert.encoder.layer.0.output.dense.weight"][3, 7] = np.inf
    save_file(w, folder / "model.safetensors")
    with pytest.raises(ValueError, match="gives a score that is no finite number"):
        Guard.from_pretrained(folder, dtype="int8").score(PROMPTS)
