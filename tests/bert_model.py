"""BERT for sequence classification written from its equations in float64, and folders of random weights for it."""
import itertools
import json
import math

import numpy as np
from safetensors.numpy import save_file

SHAPE = {"vocab_size": 60, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50, "max_position_embeddings": 80,
             "type_vocab_size": 2, "num_labels": 2}


def config(**changes):
    return {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "position_embedding_type": "absolute", "pad_token_id": 0, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, **SHAPE, **changes}


def shapes(c):
    """Names and shapes in the order of EncoderParams."""
    h, i, e = c["hidden_size"], c["intermediate_size"], "bert.embeddings."
    yield e + "word_embeddings.weight", (c["vocab_size"], h)
    yield e + "position_embeddings.weight", (c["max_position_embeddings"], h)
    yield e + "token_type_embeddings.weight", (c["type_vocab_size"], h)
    yield e + "LayerNorm.weight", (h,)
    yield e + "LayerNorm.bias", (h,)
    for n in range(c["num_hidden_layers"]):
        at = f"bert.encoder.layer.{n}."
        for part in ("weight", "bias"):
            for name in ("query", "key", "value"):
                yield f"{at}attention.self.{name}.{part}", (h, h) if part == "weight" else (h,)
        for name, rows, cols in (("attention.output.dense", h, h), ("attention.output.LayerNorm", h, 0), ("intermediate.dense", i, h),
                                 ("output.dense", h, i), ("output.LayerNorm", h, 0)):
            yield f"{at}{name}.weight", (rows, cols) if cols else (rows,)
            yield f"{at}{name}.bias", (rows,)
    yield "bert.pooler.dense.weight", (h, h)
    yield "bert.pooler.dense.bias", (h,)
    yield "classifier.weight", (c["num_labels"], h)
    yield "classifier.bias", (c["num_labels"],)


def weights(c, seed=0):
    rng = np.random.default_rng(seed)
    return {name: ((1 if name.endswith("LayerNorm.weight") else 0) + rng.normal(0, 0.3, shape)).astype(np.float32) for name, shape in shapes(c)}


def write(folder, c, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def batch(c, lengths, seed=0):
    """ids, offsets, type ids. Id 0 is left out: a padding row has no gradient."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    types = np.concatenate([np.arange(n) > n // 2 for n in lengths]).astype(np.uint8) % c["type_vocab_size"]
    return rng.integers(1, c["vocab_size"], offsets[-1]).astype(np.int32), offsets, types


# -- the model --

def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def row_logits(c, w, ids, types, drop=lambda x, place, row: x, first=0, index=0):
    """Logits of one row. drop(x, place, row): dropout of x (n, cols), its first row being `row` of the place; first: the row's first token
    in the batch, index: its number. The last layer's masks are of first tokens alone, counted by row."""
    heads, d = c["num_attention_heads"], c["hidden_size"] // c["num_attention_heads"]
    e, eps, n, last = "bert.embeddings.", c["layer_norm_eps"], len(ids), c["num_hidden_layers"] - 1
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][:n] + w[e + "token_type_embeddings.weight"][types]
    x = drop(layer_norm(x, w[e + "LayerNorm.weight"], w[e + "LayerNorm.bias"], eps), 0xFFFC, first)
    for i in range(last + 1):
        at = f"bert.encoder.layer.{i}."

        def linear(name, y, at=at):
            return y @ w[f"{at}{name}.weight"].T + w[f"{at}{name}.bias"]

        asking, begin = (x[:1], index) if i == last else (x, first)
        q, k, v = linear("attention.self.query", asking), linear("attention.self.key", x), linear("attention.self.value", x)
        context = np.empty_like(asking)
        for head in range(heads):
            part = slice(head * d, head * d + d)
            p = softmax(q[:, part] @ k[:, part].T / math.sqrt(d))
            p = np.concatenate([drop(p[r:r + 1], 4 * i + 1, (begin + r) * heads + head) for r in range(len(p))])
            context[:, part] = p @ v[:, part]
        y = drop(linear("attention.output.dense", context), 4 * i + 2, begin) + asking
        y = layer_norm(y, w[at + "attention.output.LayerNorm.weight"], w[at + "attention.output.LayerNorm.bias"], eps)
        z = drop(linear("output.dense", gelu(linear("intermediate.dense", y))), 4 * i + 3, begin) + y
        x = layer_norm(z, w[at + "output.LayerNorm.weight"], w[at + "output.LayerNorm.bias"], eps)
    pooled = drop(np.tanh(x[:1] @ w["bert.pooler.dense.weight"].T + w["bert.pooler.dense.bias"]), 0xFFFF, index)
    return (pooled @ w["classifier.weight"].T + w["classifier.bias"])[0]


def logits(c, w, ids, offsets, types, drop=lambda x, place, row: x):
    w = {name: value.astype(np.float64) for name, value in w.items()}
    return np.stack([row_logits(c, w, ids[a:b], types[a:b], drop, a, i) for i, (a, b) in enumerate(itertools.pairwise(offsets))])


# -- dropout masks: Philox4x32-10 (Salmon et al. 2011), 16 bits an element --

def philox(seed, stream, counter):
    counter = np.asarray(counter, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    c = [counter & low, counter >> np.uint64(32), np.full_like(counter, stream & 0xFFFFFFFF), np.full_like(counter, stream >> 32)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=-1)


def dropper(probability, seed, step):
    limit = int(probability * 65536 + 0.5)

    def drop(x, place, row):
        blocks = np.arange(-(-x.shape[1] // 8), dtype=np.uint64)
        rows = (np.arange(row, row + len(x), dtype=np.uint64) << np.uint64(20))[:, None]
        draws = philox(seed, step << 16 | place, rows | blocks)
        bits = np.stack([draws & np.uint64(0xFFFF), draws >> np.uint64(16)], axis=-1).reshape(len(x), -1)[:, :x.shape[1]]
        return np.where(bits < limit, 0, x * 65536 / (65536 - limit))

    return drop
