"""Decoders of every family against transformers' recorded logits, from folders and from GGUF; bits that nothing may change; refusals."""
import json
from pathlib import Path

import decoder_models
import numpy as np
import pytest

from harmaug import _C, FormatError

RECORDED = np.load(Path(__file__).parent / "data" / "decoder_logits.npz")
IDS, ROWS = RECORDED["ids"], RECORDED["rows"]


def check(got, want):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()


def folder_of(tmp_path, name, **changes):
    c = decoder_models.config(name, **changes)
    return decoder_models.write(tmp_path / name, c, decoder_models.weights(decoder_models.config(name)))


@pytest.mark.parametrize("name", decoder_models.CASES)
def test_folder_matches_transformers(tmp_path, isa, name):
    check(_C.CausalLM(folder_of(tmp_path, name), dtype="float32").logits(IDS)[ROWS], RECORDED[name])


@pytest.mark.parametrize("name", decoder_models.AS_GGUF)
def test_gguf_matches_transformers(tmp_path, name):
    c = decoder_models.config(name)
    path = decoder_models.write_gguf(tmp_path / "m.gguf", c, decoder_models.weights(c))
    check(_C.CausalLM(path, dtype="float32").logits(IDS)[ROWS], RECORDED[name])


def test_the_reference_tells_options_apart(tmp_path):
    """Another window, cap, scale or norm is seen by the tolerance above."""
    for name, changes in (("mistral-window", {"sliding_window": 24}), ("gemma2", {"attn_logit_softcapping": 2.01}), ("gemma2", {"query_pre_attn_scalar": 10.02}),
                          ("gemma2", {"sliding_window": 21}), ("gpt2", {"layer_norm_epsilon": 1e-2}), ("llama-yarn", {"max_position_embeddings": 160,
                           "rope_parameters": {"rope_type": "yarn", "factor": 4.02, "original_max_position_embeddings": 40}})):
        got = _C.CausalLM(folder_of(tmp_path, name, **changes), dtype="float32").logits(IDS)[ROWS]
        assert np.abs(got - RECORDED[name]).max() > 2e-4 * np.abs(RECORDED[name]).max(), (name, changes)


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_batch_threads_and_chunks_change_no_bit(tmp_path, name, dtype):
    folder = folder_of(tmp_path, name)
    one, two = (_C.CausalLM(folder, dtype=dtype, n_threads=n) for n in (1, 2))
    whole = one.logits(IDS)
    np.testing.assert_array_equal(whole, two.logits(IDS))
    for n in (1, 31, 33, 70):
        np.testing.assert_array_equal(whole[:n], one.logits(IDS[:n]))
    prompts = [IDS[:40], IDS[:61], IDS[5:7], IDS[:66], IDS[3:4]]

    def samples(lm, batch_size):
        run = _C.GenerationRun(lm, None, batch_size=batch_size, max_new_tokens=28, seed=7, stop_ids=range(3, 9))
        for i, ids in enumerate(prompts):
            run.add(ids, n=4, first_index=10 * i)
        out = []
        while not run.idle:
            run.step()
            out += run.take()
        return out

    want = samples(one, 8)
    assert len(want) == 20 and samples(two, 8) == want
    for batch_size in (1, 3, 20):
        assert samples(one, batch_size) == want
    off = []
    for request, _, _, ids, logprob, _ in want:         # what was sampled behind shared keys has the log-probability of a fresh pass
        x = one.logits([*prompts[request], *ids])[len(prompts[request]) - 1:-1].astype(np.float64)
        log_p = x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        off.append(abs(log_p[np.arange(len(ids)), ids].sum() - logprob) / len(ids))
    # sums in another order round some of the 8-bit activations to the step beside it
    assert np.median(off) < 1e-5 and max(off) < (1e-2 if dtype.startswith("int") else 1e-3), off


def test_old_checkpoints(tmp_path):
    """Names without "transformer.", causal masks as tensors, 16-bit weights."""
    c = decoder_models.config("gpt2")
    w = decoder_models.weights(c)
    bare = {name.removeprefix("transformer."): value for name, value in w.items()}
    bare |= {f"h.{i}.attn.{x}": np.ones((1, 1, 4, 4), np.float32) for i in range(3) for x in ("bias", "masked_bias")}
    want = _C.CausalLM(decoder_models.write(tmp_path / "a", c, w)).logits(IDS)
    np.testing.assert_array_equal(_C.CausalLM(decoder_models.write(tmp_path / "b", c, bare)).logits(IDS), want)
    half = {name: value.astype(np.float16) for name, value in w.items()}
    wide = {name: value.astype(np.float32) for name, value in half.items()}
    np.testing.assert_array_equal(_C.CausalLM(decoder_models.write(tmp_path / "c", c, half)).logits(IDS),
                                  _C.CausalLM(decoder_models.write(tmp_path / "d", c, wide)).logits(IDS))


@pytest.mark.parametrize("name, changes, message", [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is not supported"),
    ("gpt2", {"scale_attn_weights": False}, "'scale_attn_weights' is not supported"),
    ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' is not supported"),
    ("gpt2", {"n_positions": 161}, "transformer.wpe.weight' has shape"),
    ("gpt2", {"n_head": 37}, "n_embd 36 is less than 37 heads"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be > 0"),
    ("gemma2", {"attn_logit_softcapping": -1.0}, "logit soft-capping must be >= 0"),
    ("gemma2", {"sliding_window": 1.5}, "sliding_window must be an integer"),
    ("gemma2", {"sliding_window": None, "layer_types": ["sliding_attention"] * 3}, "layer 0 of a gemma2 is not sliding here"),
    ("mistral-window", {"layer_types": ["full_attention"] * 3}, "layer 0 of a mistral is sliding here"),
    ("mistral", {"sliding_window": -3}, "sliding_window must be an integer"),
    ("qwen2", {"use_mrope": True}, "'use_mrope' is not supported"),
    ("qwen3", {"head_dim": 12}, "self_attn.*' has shape"),
    ("gemma", {"model_type": "gemma3_text"}, "model_type 'gemma3_text' is not supported"),
])
def test_refuses_by_name(tmp_path, name, changes, message):
    with pytest.raises(FormatError, match=message):
        _C.CausalLM(folder_of(tmp_path, name, **changes))


@pytest.mark.parametrize("name, extra, message", [
    ("qwen2", lambda out: out.add_attn_logit_softcapping(5.0), "qwen2.attn_logit_softcapping = 5 is not supported"),
    ("gemma2", lambda out: out.add_tensor("rope_freqs.weight", np.zeros(5, np.float32)), "factor 0 must be > 0"),
    ("llama-yarn", lambda out: out.add_float32("llama.rope.scaling.yarn_attn_factor", 2.0), "llama.rope.scaling.yarn_attn_factor = 2 is not supported"),
    ("gpt2", lambda out: out.add_expert_count(2), "gpt2.expert_count = 2 is not supported"),
])
def test_gguf_refuses_by_name(tmp_path, name, extra, message):
    c = decoder_models.config(name)
    decoder_models.write_gguf(tmp_path / "m.gguf", c, decoder_models.weights(c), extra=extra)
    with pytest.raises(FormatError, match=message):
        _C.CausalLM(tmp_path / "m.gguf")


def test_a_window_of_a_llama_gguf_bounds_its_context(tmp_path):
    """llama.cpp reads no window for this architecture: where the two readings part, there is an error."""
    c = decoder_models.config("llama")
    path = decoder_models.write_gguf(tmp_path / "m.gguf", c, decoder_models.weights(c), extra=lambda out: out.add_sliding_window(48))
    lm = _C.CausalLM(path)
    assert lm.config["max_position_embeddings"] == 48 and lm.config["sliding_window"] == 0
    with pytest.raises(ValueError, match="49 tokens; the model's context takes 1..48"):
        lm.logits(IDS[:49])


@pytest.mark.parametrize("name", ["llama-llama3", "llama-yarn", "mistral-window", "qwen2-window", "qwen3-window", "gemma", "gemma2", "gpt2"])
def test_damaged_configurations_are_errors(tmp_path, name):
    """Every member, in turn, replaced by what it should not be: opened as something that computes numbers, or refused by name."""
    folder = folder_of(tmp_path, name)
    c = decoder_models.config(name)
    keys = [(key,) for key in c] + [(outer, key) for outer in c if isinstance(c[outer], dict) for key in c[outer]]
    opened = 0
    for path in keys:
        for value in (None, -1, 0, 3, 2 ** 40, 1e300, 0.5, "x", [1], True):
            damaged = json.loads(json.dumps(c))
            (damaged if len(path) == 1 else damaged[path[0]])[path[-1]] = value
            (folder / "config.json").write_text(json.dumps(damaged))
            try:
                lm = _C.CausalLM(folder, dtype="float32")
            except FormatError as error:
                assert "config.json" in str(error) or "tensor" in str(error) or path[-1] in str(error)
                continue
            opened += 1
            n = min(5, lm.config["max_position_embeddings"])
            assert lm.logits(IDS[:n] % lm.config["vocab_size"]).shape[0] == n
    assert opened > 0
