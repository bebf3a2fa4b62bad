"""Small random Llama models, written as GGUF and as Hugging Face folders, and their forward pass in float64 from the equations."""
import json
from dataclasses import dataclass

import gguf
import numpy as np
from safetensors.numpy import save_file

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def byte_alphabet():
    """GPT-2's printable stand-in of every byte (Radford et al. 2019, encoder.py's bytes_to_unicode)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(other)) for b in range(256)]


MERGES = ["t h", "th e", "Ġ the", "i n", "e r"]
TOKENS = SPECIAL + byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]


@dataclass(frozen=True)
class Tiny:
    vocab: int = len(TOKENS)
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 96
    context: int = 160
    eps: float = 1e-5
    theta: float = 10000.0
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: tuple = ()        # () | ("linear", factor) | ("llama3", factor, low, high, original)


def weights(c, seed=0, scale=0.08):
    """Tensors under their names in a Hugging Face checkpoint, float32."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=scale):
        return rng.normal(0, scale, shape).astype(np.float32)

    w = {"model.embed_tokens.weight": normal(c.vocab, c.hidden, scale=1.0), "model.norm.weight": 1 + normal(c.hidden)}
    if not c.tied:
        w["lm_head.weight"] = normal(c.vocab, c.hidden, scale=0.3)
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for i in range(c.layers):
        for name, n, k, bias in [("self_attn.q_proj", q, c.hidden, c.attention_bias), ("self_attn.k_proj", kv, c.hidden, c.attention_bias),
                                 ("self_attn.v_proj", kv, c.hidden, c.attention_bias), ("self_attn.o_proj", c.hidden, q, c.attention_bias),
                                 ("mlp.gate_proj", c.inner, c.hidden, c.mlp_bias), ("mlp.up_proj", c.inner, c.hidden, c.mlp_bias),
                                 ("mlp.down_proj", c.hidden, c.inner, c.mlp_bias)]:
            w[f"model.layers.{i}.{name}.weight"] = normal(n, k, scale=1.6 / k ** 0.5)
            if bias:
                w[f"model.layers.{i}.{name}.bias"] = normal(n, scale=0.3)
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[f"model.layers.{i}.{name}.weight"] = 1 + normal(c.hidden)
    return w


def frequencies(c):
    freq = c.theta ** -(np.arange(0, c.head_dim, 2) / c.head_dim)
    if c.rope and c.rope[0] == "linear":
        return freq / c.rope[1]
    if c.rope and c.rope[0] == "llama3":      # Llama 3.1's reference code, apply_scaling()
        _, factor, low, high, old = c.rope
        wave = 2 * np.pi / freq
        smooth = (old / wave - low) / (high - low)
        scaled = np.where(wave > old / low, freq / factor, (1 - smooth) * freq / factor + smooth * freq)
        return np.where(wave < old / high, freq, scaled)
    return freq


def forward(c, w, ids, rounded=lambda x: x):
    """Logits (n, vocab) in float64. rounded(x) goes over the input of every matrix."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    n, half = len(ids), c.head_dim // 2
    x = w["model.embed_tokens.weight"][np.asarray(ids)]
    angle = np.arange(n)[:, None] * frequencies(c)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.eps) * w[name]

    def linear(x, name):
        return rounded(x) @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def rotate(x):
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    for i in range(c.layers):
        p = f"model.layers.{i}."
        h = norm(x, p + "input_layernorm.weight")
        q = rotate(linear(h, p + "self_attn.q_proj").reshape(n, c.heads, c.head_dim))
        k = rotate(linear(h, p + "self_attn.k_proj").reshape(n, c.kv_heads, c.head_dim)).repeat(c.heads // c.kv_heads, 1)
        v = linear(h, p + "self_attn.v_proj").reshape(n, c.kv_heads, c.head_dim).repeat(c.heads // c.kv_heads, 1)
        score = np.einsum("ihd,jhd->hij", q, k) / c.head_dim ** 0.5
        score = np.where(np.tril(np.ones((n, n), bool)), score, -np.inf)
        score = np.exp(score - score.max(-1, keepdims=True))
        x = x + linear(np.einsum("hij,jhd->ihd", score / score.sum(-1, keepdims=True), v).reshape(n, -1), p + "self_attn.o_proj")
        h = norm(x, p + "post_attention_layernorm.weight")
        gate = linear(h, p + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
    return rounded(norm(x, "model.norm.weight")) @ w["model.embed_tokens.weight" if c.tied else "lm_head.weight"].T


def _pairs(c, w):
    """Rows of a head as (2i, 2i + 1) pairs, as llama.cpp's converter stores queries and keys."""
    return w.reshape(-1, 2, c.head_dim // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, c, w, types=(), extra=None, vocabulary=True, architecture="llama"):
    """Writes the model; returns the weights as stored. types: {Hugging Face suffix: GGMLQuantizationType}, F32 else. extra(writer) adds keys."""
    out = gguf.GGUFWriter(str(path), architecture)
    out.add_context_length(c.context)
    out.add_embedding_length(c.hidden)
    out.add_block_count(c.layers)
    out.add_feed_forward_length(c.inner)
    out.add_head_count(c.heads)
    out.add_head_count_kv(c.kv_heads)
    out.add_layer_norm_rms_eps(c.eps)
    out.add_rope_freq_base(c.theta)
    if c.head_dim * c.heads != c.hidden:
        out.add_key_length(c.head_dim)
        out.add_value_length(c.head_dim)
    if c.rope and c.rope[0] == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(c.rope[1])
    if c.rope and c.rope[0] == "llama3":
        plain = Tiny(**{**c.__dict__, "rope": ()})
        out.add_tensor("rope_freqs.weight", (frequencies(plain) / frequencies(c)).astype(np.float32))
    if vocabulary:
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("smollm")
        out.add_token_list(TOKENS)
        out.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL)))
        out.add_token_merges(MERGES)
        out.add_eos_token_id(2)
        out.add_bos_token_id(1)
        out.add_add_bos_token(False)
        out.add_chat_template(TEMPLATE)
    if extra is not None:
        extra(out)
    stored = {}
    for name, value in w.items():
        suffix = name.rsplit(".", 2)[-2] if ".layers." in name else name
        kind = dict(types).get(suffix, gguf.GGMLQuantizationType.F32) if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        if name.startswith("model.layers."):
            _, _, i, rest = name.split(".", 3)
            stem, end = rest.rsplit(".", 1)
            target = f"blk.{i}.{NAMES[stem]}.{end}"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[name]
        rotary = "q_proj" in name or "k_proj" in name
        data = _pairs(c, value) if rotary else value
        if kind == gguf.GGMLQuantizationType.F32:
            stored[name] = value
            out.add_tensor(target, np.ascontiguousarray(data))
            continue
        packed = gguf.quants.quantize(np.ascontiguousarray(data), kind)
        out.add_tensor(target, packed, raw_dtype=kind)
        back = gguf.quants.dequantize(packed, kind).astype(np.float32)
        if rotary:
            back = back.reshape(-1, c.head_dim // 2, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
        stored[name] = back
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return stored


def config_json(c, **changes):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab, "hidden_size": c.hidden, "num_hidden_layers": c.layers,
              "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "intermediate_size": c.inner,
              "max_position_embeddings": c.context, "rms_norm_eps": c.eps, "rope_theta": c.theta, "hidden_act": "silu", "tie_word_embeddings": c.tied,
              "attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias, "eos_token_id": 2}
    if c.rope and c.rope[0] == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": c.rope[1]}
    if c.rope and c.rope[0] == "llama3":
        config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": config.pop("rope_theta"), "factor": c.rope[1], "low_freq_factor": c.rope[2],
                                     "high_freq_factor": c.rope[3], "original_max_position_embeddings": c.rope[4]}
    config.update(changes)
    return {key: value for key, value in config.items() if value != "absent"}


def write_folder(folder, c, w, **changes):
    """A Hugging Face folder; `changes` to config.json ("absent" removes a key)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(c, **changes)))
    save_file(w, folder / "model.safetensors")
    return folder
