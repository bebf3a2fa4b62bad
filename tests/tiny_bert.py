"""A small random BERT classifier as a checkpoint folder, the same on every machine: for tests of training."""
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 60, "hidden_size": 16,
          "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24,
          "type_vocab_size": 2, "num_labels": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
          "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
          "id2label": {"0": "safe", "1": "unsafe"}, "label2id": {"safe": 0, "unsafe": 1}}
DATA = Path(__file__).resolve().parent / "data"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(55))]


def shapes(config=CONFIG, head=True):
    """Names and shapes of the checkpoint's tensors, in its order."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    yield "bert.embeddings.word_embeddings.weight", (config["vocab_size"], hidden)
    yield "bert.embeddings.position_embeddings.weight", (config["max_position_embeddings"], hidden)
    yield "bert.embeddings.token_type_embeddings.weight", (config["type_vocab_size"], hidden)
    yield "bert.embeddings.LayerNorm.weight", (hidden,)
    yield "bert.embeddings.LayerNorm.bias", (hidden,)
    for i in range(config["num_hidden_layers"]):
        for name, rows, cols in [("attention.self.query", hidden, hidden), ("attention.self.key", hidden, hidden),
                                 ("attention.self.value", hidden, hidden), ("attention.output.dense", hidden, hidden),
                                 ("attention.output.LayerNorm", hidden, None), ("intermediate.dense", inter, hidden),
                                 ("output.dense", hidden, inter), ("output.LayerNorm", hidden, None)]:
            yield f"bert.encoder.layer.{i}.{name}.weight", (rows,) if cols is None else (rows, cols)
            yield f"bert.encoder.layer.{i}.{name}.bias", (rows,)
    yield "bert.pooler.dense.weight", (hidden, hidden)
    yield "bert.pooler.dense.bias", (hidden,)
    if head:
        yield "classifier.weight", (config["num_labels"], hidden)
        yield "classifier.bias", (config["num_labels"],)


def tensors(seed, config=CONFIG, head=True):
    rng = np.random.Generator(np.random.Philox(key=seed))
    draw = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes(config, head)}
    return {name: 1 + 0.5 * w if "LayerNorm.weight" in name else w for name, w in draw.items()}


def write(folder, seed=0, head=True, **changes):
    """Write config.json, model.safetensors and a word-level vocab.txt into folder, and return it."""
    config = {**CONFIG, **changes}
    if not head:
        config["architectures"] = ["BertModel"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS[: config["vocab_size"]]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 24})
    )
    save_file(tensors(seed, config, head), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def batch(seed, rows=6, config=CONFIG):
    """A ragged batch with targets: ids, offsets, types, hard, soft, weights."""
    rng = np.random.Generator(np.random.Philox(key=1000 + seed))
    lengths = rng.integers(2, config["max_position_embeddings"] + 1, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(4, config["vocab_size"] - 20, offsets[-1]).astype(
        np.int32
    )  # the last 20 words occur in no batch
    types = np.concatenate([np.arange(n) > n // 2 for n in lengths]).astype(np.uint8)
    hard = rng.integers(0, 2, rows).astype(np.int8)
    soft = rng.uniform(0, 1, rows).astype(np.float32)
    return ids, offsets, types, hard, soft


def lora_start(targets, rank, seed=3):
    """Factors A and B of each module that a target names, in the checkpoint's order.

    B is not 0, so that both have gradients from the first step.
    """
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and "embeddings." not in name and any(module.endswith("." + t) for t in targets):
            out[module] = (rng.normal(0, 0.1, (rank, shape[1])).astype(np.float32),
                           rng.normal(0, 0.1, (shape[0], rank)).astype(np.float32))
    return out
