"""The Llama decoder against the equations in float64, on every instruction set and from both formats; and its refusals."""
import json
import re
import struct

import gguf
import numpy as np
import pytest
from tiny_llama import Tiny, forward, weights, write_folder, write_gguf

from harmaug import _C, FormatError

Q = gguf.GGMLQuantizationType
IDS = np.random.default_rng(5).integers(0, Tiny().vocab, 70).tolist()      # over two attention tiles
SHAPES = [
    Tiny(),
    Tiny(hidden=60, heads=6, kv_heads=1, head_dim=10, inner=77, vocab=131, layers=2, tied=True),        # odd extents, one key-value head
    Tiny(hidden=48, heads=3, kv_heads=3, head_dim=20, inner=70, vocab=97, layers=1, theta=500000.0),    # heads wider than hidden / n_heads
    Tiny(attention_bias=True, mlp_bias=True),
    Tiny(rope=("linear", 4.0)),
    Tiny(rope=("llama3", 8.0, 1.0, 4.0, 64)),
]


def check(got, want, tolerance=2e-4):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("c", SHAPES, ids=range(len(SHAPES)))
def test_folder_matches_the_equations(tmp_path, isa, c):
    w = weights(c)
    ids = [i % c.vocab for i in IDS]
    lm = _C.CausalLM(write_folder(tmp_path, c, w), dtype="float32")
    check(lm.logits(ids), forward(c, w, ids))


@pytest.mark.parametrize("c", SHAPES, ids=range(len(SHAPES)))
def test_gguf_matches_the_equations(tmp_path, c):
    path = tmp_path / "m.gguf"
    w = write_gguf(path, c, weights(c), vocabulary=False)
    ids = [i % c.vocab for i in IDS]
    check(_C.CausalLM(path, dtype="float32").logits(ids), forward(c, w, ids))


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1], ids=lambda kind: kind.name)
def test_gguf_types_match_their_own_dequantisation(tmp_path, isa, kind):
    c = Tiny()
    types = {name: kind for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head.weight")}
    types["model.embed_tokens.weight"] = Q.Q8_0
    w = write_gguf(tmp_path / "m.gguf", c, weights(c), types=types)
    check(_C.CausalLM(tmp_path / "m.gguf", dtype="float32").logits(IDS), forward(c, w, IDS))


def test_bfloat16_is_near(tmp_path, isa):
    c = Tiny()
    w = weights(c)
    lm = _C.CausalLM(write_folder(tmp_path, c, w), dtype="bfloat16")
    assert lm.dtype == "bfloat16"
    want = forward(c, w, IDS)
    got = lm.logits(IDS)
    # both operands rounded to 8 bits: 2^-9 relative each, growing as the square root of some twenty roundings along the way
    assert np.sqrt(((got - want) ** 2).mean()) < 0.02 * np.sqrt((want ** 2).mean())


def test_default_dtype(tmp_path, isa):
    lm = _C.CausalLM(write_folder(tmp_path, Tiny(), weights(Tiny())))
    assert lm.dtype == ("bfloat16" if isa == "avx512bf16" else "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prefixes_and_threads_change_no_bit(tmp_path, isa, dtype):
    c = Tiny()
    folder = write_folder(tmp_path, c, weights(c))
    one, two = (_C.CausalLM(folder, dtype=dtype, n_threads=n) for n in (1, 2))
    whole = one.logits(IDS)
    np.testing.assert_array_equal(whole, two.logits(IDS))
    for n in (1, 2, 31, 32, 33, 64):
        np.testing.assert_array_equal(whole[:n], one.logits(IDS[:n]))


def test_config(tmp_path):
    c = Tiny()
    folder = write_folder(tmp_path, c, weights(c))
    config = _C.CausalLM(folder).config
    assert config["head_dim"] == 16 and config["num_key_value_heads"] == 2 and config["stop_ids"] == [2] and config["gguf"] is False
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert _C.CausalLM(folder).config["stop_ids"] == [5, 7]


def test_sharded_and_old_checkpoints(tmp_path):
    from safetensors.numpy import save_file
    c = Tiny(layers=1, tied=True)
    w = weights(c)
    folder = write_folder(tmp_path, c, {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
                                        "lm_head.weight": w["model.embed_tokens.weight"]})
    want = _C.CausalLM(folder).logits(IDS)
    (folder / "model.safetensors").unlink()
    names = sorted(w)
    index = {}
    for i in range(2):
        part = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: w[name] for name in names[i::2]}, folder / part)
        index.update({name: part for name in names[i::2]})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    np.testing.assert_array_equal(_C.CausalLM(folder).logits(IDS), want)


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "gpt_neox"}, r"model_type 'gpt_neox' is not supported \(supported: llama, mistral, qwen2, qwen3, gemma, gemma2, gpt2\)"),
    ({"hidden_act": "mish"}, "hidden_act 'mish'"),
    ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rotary scaling 'longrope' is not supported"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 0.5}}, "yarn rotary scaling needs"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}}, "yarn rotary scaling needs"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'full_attention' is not supported"),
    ({"use_bidirectional_attention": True}, "'use_bidirectional_attention' is not supported"),
    ({"layer_types": ["sliding_attention"] * 3}, "layer_types: layer 0 of a llama is not sliding here"),
    ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "layer_types holds 'chunked_attention'"),
    ({"layer_types": ["full_attention"]}, "layer_types must be a list of 3 names"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "llama3 rotary scaling needs"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "scaling factor must be >= 1"),
    ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is not supported"),
    ({"quantization_config": {"bits": 4}}, "'quantization_config' is not supported"),
    ({"num_key_value_heads": 3}, "4 attention heads are no multiple of 3"),
    ({"head_dim": 15}, "head size 15 is odd"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": 1 << 40}, "hidden_size"),
    ({"num_hidden_layers": 4}, "'model.layers.3.input_layernorm.weight' is missing"),
    ({"num_hidden_layers": 2}, "'model.layers.2.*' is unexpected"),
    ({"intermediate_size": 97}, "mlp.gate_proj.weight' has shape"),
    ({"attention_bias": True}, "self_attn.q_proj.bias' is missing"),
    ({"rms_norm_eps": 0.0}, "epsilon must be in"),
    ({"rope_theta": 1.0}, "rotary base must be > 1"),
    ({"eos_token_id": 9999}, "eos_token_id must hold ids below"),
    ({"eos_token_id": "x"}, "eos_token_id must hold ids below"),
])
def test_refuses_by_name(tmp_path, changes, message):
    folder = write_folder(tmp_path, Tiny(), weights(Tiny()), **changes)
    with pytest.raises(FormatError, match=message):
        _C.CausalLM(folder)


@pytest.mark.parametrize("extra, message", [
    (lambda out: out.add_expert_count(8), "llama.expert_count = 8 is not supported"),
    (lambda out: out.add_logit_scale(0.5), "llama.logit_scale = 0.5 is not supported"),
    (lambda out: out.add_rope_dimension_count(8), "llama.rope.dimension_count = 8"),
    (lambda out: out.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "rotary scaling 'longrope'"),
    (lambda out: out.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)), "'blk.0.attn_sinks.weight' is unexpected"),
    (lambda out: out.add_tensor("rope_freqs.weight", np.ones(5, np.float32)), "'rope_freqs.weight' has shape"),
    (lambda out: out.add_tensor("rope_freqs.weight", np.zeros(8, np.float32)), "factor 0 must be > 0"),
    (lambda out: out.add_eot_token_id(12345), "eot_token_id = 12345 lies outside the vocabulary"),
])
def test_gguf_refuses_by_name(tmp_path, extra, message):
    write_gguf(tmp_path / "m.gguf", Tiny(layers=1), weights(Tiny(layers=1)), extra=extra)
    with pytest.raises(FormatError, match=re.escape(message)):
        _C.CausalLM(tmp_path / "m.gguf")


def test_gguf_refuses_other_architectures_and_types(tmp_path):
    c = Tiny(layers=1)
    write_gguf(tmp_path / "a.gguf", c, weights(c), architecture="bloom")
    with pytest.raises(FormatError, match="architecture 'bloom' is not supported"):
        _C.CausalLM(tmp_path / "a.gguf")
    write_gguf(tmp_path / "t.gguf", c, weights(c), types={"q_proj": Q.Q5_0})
    with pytest.raises(FormatError, match="'blk.0.attn_q.weight': type Q5_0 is not supported"):
        _C.CausalLM(tmp_path / "t.gguf")


def test_prefixes_and_flips_of_a_gguf_are_errors(tmp_path):
    c = Tiny(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, inner=32, vocab=16, tied=True)
    whole = tmp_path / "m.gguf"
    write_gguf(whole, c, weights(c), vocabulary=False)
    data = whole.read_bytes()
    broken = tmp_path / "broken.gguf"
    rng = np.random.default_rng(0)
    for n in rng.integers(0, len(data), 300):
        broken.write_bytes(data[:n])
        with pytest.raises((FormatError, OSError)):
            _C.CausalLM(broken)
    for at in rng.integers(0, 1200, 300):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        broken.write_bytes(flipped)
        try:
            _C.CausalLM(broken).logits([1, 2, 3])
        except (FormatError, ValueError, MemoryError):
            pass


def test_hostile_extents_are_errors(tmp_path):
    c = Tiny(layers=1)
    w = weights(c)
    folder = write_folder(tmp_path, c, w, num_attention_heads=65536, num_key_value_heads=65536, head_dim=65536)
    with pytest.raises(FormatError, match="q_proj.weight' has shape"):
        _C.CausalLM(folder)
    header = json.loads((folder / "model.safetensors").read_bytes()[8:8 + struct.unpack("<Q", (folder / "model.safetensors").read_bytes()[:8])[0]])
    assert header["lm_head.weight"]["dtype"] == "F32"


@pytest.mark.parametrize("ids, message", [
    ([], "0 tokens; the model's context takes 1..160"), ([0] * 161, "161 tokens"), ([0, -1], "token 1: id -1 lies outside the vocabulary"),
    ([1 << 40], "id 1099511627776 lies outside"), ([[1, 2]], "one row of token ids"),
])
def test_bad_ids(tmp_path, ids, message):
    lm = _C.CausalLM(write_folder(tmp_path, Tiny(layers=1), weights(Tiny(layers=1))))
    with pytest.raises(ValueError, match=re.escape(message)):
        lm.logits(ids)


def test_bad_arguments(tmp_path):
    folder = write_folder(tmp_path, Tiny(layers=1), weights(Tiny(layers=1)))
    with pytest.raises(ValueError, match="dtype must be None, 'float32', 'bfloat16', 'int8' or 'int4', got 'int3'"):
        _C.CausalLM(folder, dtype="int3")
    with pytest.raises(TypeError):
        _C.CausalLM(folder).logits([0.5])
    with pytest.raises(OSError, match="nowhere"):
        _C.CausalLM(tmp_path / "nowhere")
