"""Decoders of every family that the library runs: config.json, random weights under transformers' names, folders, and the same model as GGUF."""
import json

import gguf
import numpy as np
from safetensors.numpy import save_file

SIZE = {"vocab_size": 97, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 50,
        "max_position_embeddings": 160, "rms_norm_eps": 1e-6, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "vocab_size": 97, "n_embd": 36, "n_layer": 3, "n_head": 3, "n_positions": 160, "eos_token_id": 2, "bos_token_id": 2}
GEMMA2 = {"model_type": "gemma2", "head_dim": 10, "sliding_window": 20, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
CASES = {
    "llama": {"model_type": "llama"},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 14, "tie_word_embeddings": True, "hidden_act": "gelu"},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-llama3": {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "llama-dynamic": {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "llama-yarn": {"model_type": "llama", "head_dim": 24, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                                                "original_max_position_embeddings": 40}},
    "mistral": {"model_type": "mistral", "num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": 23},
    "qwen2": {"model_type": "qwen2", "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 1, "max_window_layers": 1},
    "qwen2-yarn": {"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64, "beta_fast": 20,
                                                           "attention_factor": 1.25, "truncate": False}},
    "qwen3": {"model_type": "qwen3", "head_dim": 10, "tie_word_embeddings": True},
    "qwen3-window": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 40,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma": {"model_type": "gemma", "head_dim": 14, "hidden_act": "gelu"},
    "gemma2": GEMMA2,
    "gemma2-plain": {**GEMMA2, "query_pre_attn_scalar": 7, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 33,
                     "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    "gpt2": GPT2,
    "gpt2-relu": {**GPT2, "n_inner": 55, "activation_function": "relu", "n_head": 4, "tie_word_embeddings": False},
}
AS_GGUF = ["llama", "llama-linear", "llama-yarn", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2"]     # what GGUF can say
ROLES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GEMMA2_ROLES = {**ROLES, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GPT2_ROLES = {"ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
ENDS = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def config(name, **changes):
    """The config.json of a case."""
    c = {**(SIZE if CASES[name]["model_type"] != "gpt2" else {}), **CASES[name], **changes}
    return {key: value for key, value in c.items() if value != "absent"}


def family(c):
    """What sets the tensors of a config's family apart: (tied, q, kv, qkv biases, output bias, MLP bias)."""
    kind = c["model_type"]
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    tied = c.get("tie_word_embeddings", kind in ("gemma", "gemma2"))
    bias = c.get("attention_bias", False)
    return tied, c["num_attention_heads"] * head, c["num_key_value_heads"] * head, bias or kind == "qwen2", bias, c.get("mlp_bias", False)


def shapes(c):
    """{name: shape} as transformers stores them; GPT-2's matrices are (in, out)."""
    kind = c["model_type"]
    if kind == "gpt2":
        h, inner = c["n_embd"], c.get("n_inner") or 4 * c["n_embd"]
        out = {"transformer.wte.weight": (c["vocab_size"], h), "transformer.wpe.weight": (c["n_positions"], h), "transformer.ln_f.weight": (h,),
               "transformer.ln_f.bias": (h,)}
        for i in range(c["n_layer"]):
            for name, k, n in (("attn.c_attn", h, 3 * h), ("attn.c_proj", h, h), ("mlp.c_fc", h, inner), ("mlp.c_proj", inner, h)):
                out |= {f"transformer.h.{i}.{name}.weight": (k, n), f"transformer.h.{i}.{name}.bias": (n,)}
            out |= {f"transformer.h.{i}.{name}.{end}": (h,) for name in ("ln_1", "ln_2") for end in ("weight", "bias")}
        return out | ({} if c.get("tie_word_embeddings", True) else {"lm_head.weight": (c["vocab_size"], h)})
    tied, q, kv, qkv_bias, output_bias, mlp_bias = family(c)
    h, inner = c["hidden_size"], c["intermediate_size"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)} | ({} if tied else {"lm_head.weight": (c["vocab_size"], h)})
    norms = ["input_layernorm", "post_attention_layernorm"] + (["pre_feedforward_layernorm", "post_feedforward_layernorm"] if kind == "gemma2" else [])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, n, k, bias in (("self_attn.q_proj", q, h, qkv_bias), ("self_attn.k_proj", kv, h, qkv_bias), ("self_attn.v_proj", kv, h, qkv_bias),
                                 ("self_attn.o_proj", h, q, output_bias), ("mlp.gate_proj", inner, h, mlp_bias), ("mlp.up_proj", inner, h, mlp_bias),
                                 ("mlp.down_proj", h, inner, mlp_bias)):
            out |= {p + name + ".weight": (n, k)} | ({p + name + ".bias": (n,)} if bias else {})
        out |= {p + name + ".weight": (h,) for name in norms}
        if kind == "qwen3":
            out |= {p + f"self_attn.{x}_norm.weight": (q // c["num_attention_heads"],) for x in "qk"}
    return out


def weights(c, seed=0):
    rng = np.random.default_rng(seed)
    w = {}
    for name, shape in shapes(c).items():
        norm = len(shape) == 1 and name.endswith("weight")
        scale = 0.3 if len(shape) == 1 else 0.5 if "embed_tokens" in name or ".wte" in name or ".wpe" in name else 1.6 / min(shape) ** 0.5
        w[name] = rng.normal(1.0 if norm and not c["model_type"].startswith("gemma") else 0.0, scale, shape).astype(np.float32)
    return w


def write(folder, c, w):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    save_file(w, folder / "model.safetensors")
    return folder


def _names(c, name):
    """GGUF's name of a tensor."""
    stem, end = name.rsplit(".", 1)
    parts = stem.removeprefix("model.").removeprefix("transformer.").split(".", 2)
    if parts[0] not in ("layers", "h"):
        return f"{ENDS[parts[0]]}.{end}"
    roles = {"gpt2": GPT2_ROLES, "gemma2": GEMMA2_ROLES}.get(c["model_type"], ROLES)
    return f"blk.{parts[1]}.{roles[parts[2]]}.{end}"


def gguf_value(c, name, value):
    """A tensor as llama.cpp's converter stores it: rotary pairs side by side (Llama), norms plus one (Gemma), (out, in) (GPT-2)."""
    if c["model_type"] in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
        head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        return value.reshape(-1, 2, head // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if c["model_type"].startswith("gemma") and name.endswith("norm.weight"):
        return value + np.float32(1)
    return value.T if c["model_type"] == "gpt2" and value.ndim == 2 and ".h." in name else value


def write_gguf(path, c, w, kind=gguf.GGMLQuantizationType.F32, extra=None):
    """The same model; `kind` for its matrices, `extra(writer)` adds keys."""
    gpt2 = c["model_type"] == "gpt2"
    out = gguf.GGUFWriter(str(path), "llama" if c["model_type"] == "mistral" else c["model_type"])
    out.add_context_length(c["n_positions" if gpt2 else "max_position_embeddings"])
    out.add_embedding_length(c["n_embd" if gpt2 else "hidden_size"])
    out.add_block_count(c["n_layer" if gpt2 else "num_hidden_layers"])
    out.add_head_count(c["n_head" if gpt2 else "num_attention_heads"])
    if gpt2:
        out.add_feed_forward_length(c.get("n_inner") or 4 * c["n_embd"])
        out.add_layer_norm_eps(1e-5)
    else:
        out.add_feed_forward_length(c["intermediate_size"])
        out.add_head_count_kv(c["num_key_value_heads"])
        out.add_layer_norm_rms_eps(c["rms_norm_eps"])
        head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        out.add_key_length(head)
        out.add_value_length(head)
        out.add_rope_dimension_count(head)
        rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
        out.add_rope_freq_base(rope.get("rope_theta", c.get("rope_theta", 10000.0)))
        if rope.get("rope_type", rope.get("type")) in ("linear", "yarn"):
            out.add_rope_scaling_type(gguf.RopeScalingType(rope.get("rope_type", rope.get("type"))))
            out.add_rope_scaling_factor(rope["factor"])
            if "original_max_position_embeddings" in rope:
                out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if c["model_type"] == "gemma2":
        out.add_sliding_window(c["sliding_window"])
        out.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        out.add_final_logit_softcapping(c["final_logit_softcapping"])
    if extra is not None:
        extra(out)
    for name, value in w.items():
        data = np.ascontiguousarray(gguf_value(c, name, value))
        if kind == gguf.GGMLQuantizationType.F32 or data.ndim == 1:
            out.add_tensor(_names(c, name), data)
        else:
            out.add_tensor(_names(c, name), gguf.quants.quantize(data, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
