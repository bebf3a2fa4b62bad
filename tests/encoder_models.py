"""Encoders of every family that the library runs: names and shapes of their tensors, their equations in float64, and folders of random weights."""
import itertools
import json
import math

import numpy as np
from bert_model import gelu, layer_norm, softmax
from safetensors.numpy import save_file

SIZE = {"vocab_size": 60, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50, "max_position_embeddings": 90,
        "num_labels": 2}
DISENTANGLED = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 16,
                "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0, "layer_norm_eps": 1e-7}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2},
    "bert-relu": {"model_type": "bert", "type_vocab_size": 1, "hidden_act": "relu", "num_labels": 5},
    "roberta": {"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {"model_type": "xlm-roberta", "type_vocab_size": 2, "pad_token_id": 3, "layer_norm_eps": 1e-5, "num_hidden_layers": 1, "num_labels": 1},
    "electra": {"model_type": "electra", "embedding_size": 21, "type_vocab_size": 2, "hidden_act": "gelu_new"},
    "electra-wide": {"model_type": "electra", "embedding_size": 36, "type_vocab_size": 1},
    "distilbert": {"model_type": "distilbert", "activation": "gelu", "num_labels": 3},
    "deberta-v3": {"model_type": "deberta-v2", **DISENTANGLED},
    "deberta-v2": {"model_type": "deberta-v2", **DISENTANGLED, "conv_kernel_size": 3, "conv_act": "gelu", "num_labels": 3},
    "deberta-grouped": {"model_type": "deberta-v2", **DISENTANGLED, "conv_kernel_size": 5, "conv_groups": 4, "num_hidden_layers": 1, "num_labels": 1},
    "deberta-plain": {"model_type": "deberta-v2", **DISENTANGLED, "position_buckets": -1, "max_relative_positions": 24, "share_att_key": False,
                      "norm_rel_ebd": "none", "pos_att_type": "c2p|p2c"},
    "deberta-c2p": {"model_type": "deberta-v2", **DISENTANGLED, "pos_att_type": ["c2p"], "share_att_key": False, "position_buckets": 7},
    "deberta-p2c": {"model_type": "deberta-v2", **DISENTANGLED, "pos_att_type": ["p2c"], "pooler_hidden_act": "tanh", "norm_rel_ebd": "none"},
    "deberta-biased": {"model_type": "deberta-v2", **DISENTANGLED, "position_biased_input": True, "type_vocab_size": 2, "embedding_size": 20},
    "deberta-absolute": {"model_type": "deberta-v2", **DISENTANGLED, "relative_attention": False, "position_biased_input": True},
    "modernbert": {"model_type": "modernbert", **TOKENS, "num_hidden_layers": 4, "local_attention": 10, "global_attn_every_n_layers": 3},
    "modernbert-mean": {"model_type": "modernbert", **TOKENS, "num_hidden_layers": 3, "local_attention": 6, "classifier_pooling": "mean", "norm_bias": True,
                        "attention_bias": True, "mlp_bias": True, "classifier_bias": True, "hidden_activation": "silu", "num_labels": 4},
}
PREFIX = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "electra": "electra.", "distilbert": "distilbert.", "deberta-v2": "deberta.",
          "modernbert": "model."}


def config(name, **changes):
    """The config.json of a family."""
    c = {**SIZE, **FAMILIES[name], **changes}
    if c["model_type"] == "distilbert":
        for old, new in (("hidden_size", "dim"), ("num_hidden_layers", "n_layers"), ("num_attention_heads", "n_heads"), ("intermediate_size", "hidden_dim")):
            c[new] = c.pop(old)
    return c


def full(c):
    """Every setting that the equations read, under one name."""
    defaults = {"hidden_act": c.get("activation", c.get("hidden_activation", "gelu")), "layer_norm_eps": c.get("norm_eps", 1e-12), "type_vocab_size": 0,
                "share_att_key": False, "norm_rel_ebd": "none", "relative_attention": False, "conv_kernel_size": 0, "conv_groups": 1, "conv_act": "tanh",
                "position_buckets": -1, "max_relative_positions": -1, "pooler_hidden_act": "gelu", "norm_bias": False, "attention_bias": False,
                "mlp_bias": False, "classifier_bias": False, "classifier_pooling": "cls", "classifier_activation": "gelu", "pos_att_type": [],
                "position_biased_input": True, "global_attn_every_n_layers": 3}
    if c["model_type"] == "modernbert":
        defaults |= {"layer_norm_eps": 1e-5}
    c = {**defaults, **{old: c[new] for old, new in (("hidden_size", "dim"), ("num_hidden_layers", "n_layers"), ("num_attention_heads", "n_heads"),
                                                      ("intermediate_size", "hidden_dim")) if new in c}, **c}
    c.setdefault("embedding_size", c["hidden_size"])
    if isinstance(c["pos_att_type"], str):
        c["pos_att_type"] = c["pos_att_type"].split("|")
    c["span"] = c["position_buckets"] if c["position_buckets"] > 0 else reach(c)
    return c


def reach(c):
    return c["max_relative_positions"] if c["max_relative_positions"] > 0 else c["max_position_embeddings"]


# -- names and shapes, in the order of EncoderParams --

def shapes(c):
    c = full(c)
    return list(_modernbert_shapes(c) if c["model_type"] == "modernbert" else _bert_shapes(c))


def _pair(name, rows, *more):
    yield f"{name}.weight", (rows, *more)
    yield f"{name}.bias", (rows,)


def _bert_shapes(c):
    kind, p, h, e, i = c["model_type"], PREFIX[c["model_type"]], c["hidden_size"], c["embedding_size"], c["intermediate_size"]
    deberta, distil = kind == "deberta-v2", kind == "distilbert"
    yield f"{p}embeddings.word_embeddings.weight", (c["vocab_size"], e)
    if c["position_biased_input"]:
        yield f"{p}embeddings.position_embeddings.weight", (c["max_position_embeddings"], e)
    if c["type_vocab_size"]:
        yield f"{p}embeddings.token_type_embeddings.weight", (c["type_vocab_size"], e)
    yield from _pair(f"{p}embeddings.LayerNorm", h if deberta else e)
    if e != h and deberta:
        yield f"{p}embeddings.embed_proj.weight", (h, e)
    elif e != h:
        yield from _pair(f"{p}embeddings_project", h, e)
    if c["relative_attention"]:
        yield f"{p}encoder.rel_embeddings.weight", (2 * c["span"], h)
    if c["norm_rel_ebd"] == "layer_norm":
        yield from _pair(f"{p}encoder.LayerNorm", h)
    if c["conv_kernel_size"]:
        yield from _pair(f"{p}encoder.conv.conv", h, h // c["conv_groups"], c["conv_kernel_size"])
        yield from _pair(f"{p}encoder.conv.LayerNorm", h)
    for n in range(c["num_hidden_layers"]):
        at = f"{p}transformer.layer.{n}." if distil else f"{p}encoder.layer.{n}."
        names = [f"attention.{x}_lin" for x in "qkv"] if distil else [f"attention.self.{x}{'_proj' if deberta else ''}" for x in ("query", "key", "value")]
        for part in ("weight", "bias"):
            for name in names:
                yield f"{at}{name}.{part}", (h, h) if part == "weight" else (h,)
        blocks = ("attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm") if distil else (
            "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
        for name, shape in zip(blocks, [(h, h), (h,), (i, h), (h, i), (h,)], strict=True):
            yield from _pair(at + name, *shape)
        if c["relative_attention"] and not c["share_att_key"]:
            for key, name in (("c2p", "key"), ("p2c", "query")):
                if key in c["pos_att_type"]:
                    yield from _pair(f"{at}attention.self.pos_{name}_proj", h, h)
    yield from _pair(HEADS[kind][0], h, h)
    yield from _pair(HEADS[kind][1], c["num_labels"], h)


HEADS = {"bert": ("bert.pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj"),
         "xlm-roberta": ("classifier.dense", "classifier.out_proj"), "electra": ("classifier.dense", "classifier.out_proj"),
         "distilbert": ("pre_classifier", "classifier"), "deberta-v2": ("pooler.dense", "classifier"), "modernbert": ("head.dense", "classifier")}


def _modernbert_shapes(c):
    h, i = c["hidden_size"], c["intermediate_size"]

    def with_bias(name, setting, rows, *more):
        yield from itertools.islice(_pair(name, rows, *more), 2 if c[setting] else 1)

    yield "model.embeddings.tok_embeddings.weight", (c["vocab_size"], h)
    yield from with_bias("model.embeddings.norm", "norm_bias", h)
    yield from with_bias("model.final_norm", "norm_bias", h)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}."
        yield from with_bias(at + "attn.Wqkv", "attention_bias", 3 * h, h)
        yield from with_bias(at + "attn.Wo", "attention_bias", h, h)
        if n > 0:
            yield from with_bias(at + "attn_norm", "norm_bias", h)
        yield from with_bias(at + "mlp.Wi", "mlp_bias", 2 * i, h)
        yield from with_bias(at + "mlp.Wo", "mlp_bias", h, i)
        yield from with_bias(at + "mlp_norm", "norm_bias", h)
    yield from with_bias("head.dense", "classifier_bias", h, h)
    yield from _pair("classifier", c["num_labels"], h)
    yield from with_bias("head.norm", "norm_bias", h)


def weights(c, seed=0):
    """Random float32 tensors by name: products keep the size of their input, so that no activation saturates and every term of attention counts."""
    out = {}
    for k, (name, shape) in enumerate(shapes(c)):
        rng = np.random.default_rng([seed, k])
        scale = 1.2 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 and "embeddings" not in name else 0.4 if len(shape) > 1 else 0.2
        norm = len(shape) == 1 and name.endswith("weight")
        out[name] = (norm + rng.normal(0, scale, shape)).astype(np.float32)
    return out


def write(folder, c, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def batch(c, lengths, seed=0):
    """ids, offsets, type ids."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    types = np.concatenate([np.arange(n) > n // 2 for n in lengths]).astype(np.uint8) % max(1, c.get("type_vocab_size", 0))
    return rng.integers(4, c["vocab_size"], offsets[-1]).astype(np.int32), offsets, types


# -- the equations --

ACT = {"gelu": gelu, "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "silu": lambda x: x / (1 + np.exp(-x)),
       "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))}


def table_rows(c, n):
    """(n, n): the row of the table of relative positions for query i and key j."""
    d = np.arange(n)[:, None] - np.arange(n)[None]
    if c["position_buckets"] > 0:
        mid = c["position_buckets"] // 2
        far = np.maximum(np.abs(d), mid)
        log = np.ceil(np.log(far / mid) / np.log((reach(c) - 1) / mid) * (mid - 1)) + mid
        d = np.where(np.abs(d) <= mid, d, np.sign(d) * log).astype(int)
    return np.clip(d + c["span"], 0, 2 * c["span"] - 1)


def rotated(x, theta):
    n, d = x.shape
    inverse = (1 / np.float32(theta) ** (np.arange(0, d, 2, dtype=np.float32) / np.float32(d))).astype(np.float32)
    angle = (np.arange(n, dtype=np.float32)[:, None] * inverse).astype(np.float64)       # in float32, as transformers has it
    a, b = x[:, :d // 2], x[:, d // 2:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)


class Places:
    """Dropout of one row by place in the model: place(kind, x, layer) of the kinds below, each at its own probability.

    drop(x, place, row, kind): of bert_model.dropper, x (n, cols) being rows `row`, `row` + 1 … of the place. first: the row's first token in the batch,
    index: its number. Masks of a last layer whose head reads first tokens alone are counted by row.
    """

    LAYER = {"relative": 0, "probability": 1, "attention": 2, "feed forward": 3}
    MODEL = {"embedding": 0xFFFC, "conv": 0xFFFD, "head input": 0xFFFE, "head": 0xFFFF}

    def __init__(self, drop, first=0, index=0):
        self.drop, self.first, self.index, self.cls_only = drop, first, index, False

    def __call__(self, kind, x, layer=0, row=None):
        if self.drop is None:
            return x
        row = row if row is not None else self.index if self.cls_only or "head" in kind else self.first
        return self.drop(x, 4 * layer + self.LAYER[kind] if kind in self.LAYER else self.MODEL[kind], row, kind)


def row_logits(c, w, ids, types, place):
    return (_modernbert_row if c["model_type"] == "modernbert" else _bert_row)(c, w, ids, types, place)


def _linear(w, name, x):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)


def _norm(c, w, name, x):
    return layer_norm(x, w[name + ".weight"], w.get(name + ".bias", 0), c["layer_norm_eps"])


def _attention(c, q, k, v, place, layer, bias=lambda head: 0, terms=1, theta=None, window=None):
    """Context of each query; q may be that of the first token alone."""
    heads = np.split(np.arange(q.shape[1]), c["num_attention_heads"])
    out = np.empty_like(q)
    for i, part in enumerate(heads):
        a, b = (rotated(x[:, part], theta) if theta else x[:, part] for x in (q, k))
        scores = (a @ b.T + bias(i)) / math.sqrt(len(part) * terms)
        if window is not None:
            scores = np.where(np.abs(np.arange(len(q))[:, None] - np.arange(len(k))) <= window, scores, -np.inf)
        begin, p = (place.index if place.cls_only else place.first), softmax(scores)
        p = np.concatenate([place("probability", p[r:r + 1], layer, (begin + r) * len(heads) + i) for r in range(len(p))])
        out[:, part] = p @ v[:, part]
    return out


def _relative_bias(c, w, at, q, k, place, layer):
    """Of each head: Q_i . key_r + K_j . query_r, r the table's row of i - j."""
    table, rows, share = w["deberta.encoder.rel_embeddings.weight"], table_rows(c, len(k))[:len(q)], c["share_att_key"]
    if c["norm_rel_ebd"] == "layer_norm":
        table = _norm(c, w, "deberta.encoder.LayerNorm", table)
    table = place("relative", table, layer, 0)
    heads = np.split(np.arange(q.shape[1]), c["num_attention_heads"])
    key = _linear(w, at + ("attention.self.key_proj" if share else "attention.self.pos_key_proj"), table) if "c2p" in c["pos_att_type"] else None
    query = _linear(w, at + ("attention.self.query_proj" if share else "attention.self.pos_query_proj"), table) if "p2c" in c["pos_att_type"] else None

    def bias(head):
        part, j = heads[head], np.arange(len(k))
        c2p = 0 if key is None else np.take_along_axis(q[:, part] @ key[:, part].T, rows, axis=1)
        return c2p + (0 if query is None else (k[:, part] @ query[:, part].T)[j[None], rows])

    return bias


def _convolution(c, w, x, place):
    kernel, groups = c["conv_kernel_size"], c["conv_groups"]
    padded = np.pad(x, ((kernel // 2, kernel // 2), (0, 0)))
    weight, each = w["deberta.encoder.conv.conv.weight"], x.shape[1] // groups
    out = np.zeros_like(x) + w["deberta.encoder.conv.conv.bias"]
    for g, j in itertools.product(range(groups), range(kernel)):
        part = slice(g * each, g * each + each)
        out[:, part] += padded[j:j + len(x), part] @ weight[part, :, j].T
    return ACT[c["conv_act"]](place("conv", out[:1] if place.cls_only else out))


def _bert_row(c, w, ids, types, place):
    kind, p, n = c["model_type"], PREFIX[c["model_type"]], len(ids)
    deberta, distil = kind == "deberta-v2", kind == "distilbert"
    x = w[f"{p}embeddings.word_embeddings.weight"][ids]
    if c["position_biased_input"]:
        position = np.arange(n)
        if "roberta" in kind:
            real = ids != c["pad_token_id"]
            position = np.cumsum(real) * real + c["pad_token_id"]
        x = x + w[f"{p}embeddings.position_embeddings.weight"][position]
    if c["type_vocab_size"]:
        x = x + w[f"{p}embeddings.token_type_embeddings.weight"][types]
    if deberta and c["embedding_size"] != c["hidden_size"]:
        x = _linear(w, f"{p}embeddings.embed_proj", x)
    x = embedded = place("embedding", _norm(c, w, f"{p}embeddings.LayerNorm", x))
    if not deberta and c["embedding_size"] != c["hidden_size"]:
        x = _linear(w, f"{p}embeddings_project", x)
    for i in range(c["num_hidden_layers"]):
        at = f"{p}transformer.layer.{i}." if distil else f"{p}encoder.layer.{i}."
        names = [f"attention.{x}_lin" for x in "qkv"] if distil else [f"attention.self.{x}{'_proj' if deberta else ''}" for x in ("query", "key", "value")]
        place.cls_only = i + 1 == c["num_hidden_layers"]
        asking = x[:1] if place.cls_only else x
        q, k, v = (_linear(w, at + name, y) for name, y in zip(names, (asking, x, x), strict=True))
        bias = _relative_bias(c, w, at, q, k, place, i) if c["relative_attention"] else lambda head: 0
        y = _attention(c, q, k, v, place, i, bias, terms=1 + len(c["pos_att_type"]))
        out, norm1, up, down, norm2 = ("attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm") if distil else (
            "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
        y = _linear(w, at + out, y)
        x = _norm(c, w, at + norm1, (y if distil else place("attention", y, i)) + asking)
        x = _norm(c, w, at + norm2, place("feed forward", _linear(w, at + down, ACT[c["hidden_act"]](_linear(w, at + up, x))), i) + x)
        if i == 0 and c["conv_kernel_size"]:
            x = _norm(c, w, f"{p}encoder.conv.LayerNorm", x + _convolution(c, w, embedded, place))
    act = {"electra": "gelu", "distilbert": "relu", "deberta-v2": c["pooler_hidden_act"]}.get(kind, "tanh")
    x = place("head input", x) if "roberta" in kind or kind == "electra" else x
    return _linear(w, HEADS[kind][1], place("head", ACT[act](_linear(w, HEADS[kind][0], x))))[0]


def _modernbert_row(c, w, ids, _types, place):
    x = place("embedding", _norm(c, w, "model.embeddings.norm", w["model.embeddings.tok_embeddings.weight"][ids]))
    for i in range(c["num_hidden_layers"]):
        at, local = f"model.layers.{i}.", i % c["global_attn_every_n_layers"] != 0
        y = _norm(c, w, at + "attn_norm", x) if i else x
        q, k, v = np.split(_linear(w, at + "attn.Wqkv", y), 3, axis=1)
        place.cls_only = i + 1 == c["num_hidden_layers"] and c["classifier_pooling"] == "cls"
        if place.cls_only:
            q, x = q[:1], x[:1]
        y = _attention(c, q, k, v, place, i, theta=10_000 if local else 160_000, window=c["local_attention"] // 2 if local else None)
        x = x + place("attention", _linear(w, at + "attn.Wo", y), i)
        a, b = np.split(_linear(w, at + "mlp.Wi", _norm(c, w, at + "mlp_norm", x)), 2, axis=1)
        x = x + _linear(w, at + "mlp.Wo", place("feed forward", ACT[c["hidden_act"]](a) * b, i))
    x = _norm(c, w, "model.final_norm", x)
    x = x.mean(axis=0, keepdims=True) if c["classifier_pooling"] == "mean" else x[:1]
    return _linear(w, "classifier", place("head", _norm(c, w, "head.norm", ACT[c["classifier_activation"]](_linear(w, "head.dense", x)))))[0]


def logits(c, w, ids, offsets, types, drop=None):
    c, w = full(c), {name: value.astype(np.float64) for name, value in w.items()}
    return np.stack([row_logits(c, w, ids[a:b], types[a:b], Places(drop, a, i)) for i, (a, b) in enumerate(itertools.pairwise(offsets))])
