"""What a student is made of: the weights it starts from, and the settings of its family that training needs."""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harmaug import _C, adapters, data
from harmaug.guard import UNSAFE_NAMES, Guard

if TYPE_CHECKING:
    from harmaug.distill import DistillConfig

# of each model_type: what LoRA adapts where the configuration names nothing
LORA_TARGETS = {
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense", "pooler.dense"),
    "roberta": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense",
                   "output.dense", "pooler.dense"),
    "modernbert": ("Wqkv", "Wi", "Wo"),
}
LORA_TARGETS["xlm-roberta"] = LORA_TARGETS["electra"] = LORA_TARGETS["roberta"]
# settings in config.json, and transformers' defaults: of hidden states, attention, the head
_DROPOUT = {"distilbert": (("dropout", 0.1), ("attention_dropout", 0.1), ("seq_classif_dropout", 0.2)),
            "deberta-v2": (("hidden_dropout_prob", 0.1), ("attention_probs_dropout_prob", 0.1), ("cls_dropout", None)),
            "modernbert": (("mlp_dropout", 0.0), ("attention_dropout", 0.0), ("classifier_dropout", 0.0))}
_OF_OTHERS = (("hidden_dropout_prob", 0.1), ("attention_probs_dropout_prob", 0.1), ("classifier_dropout", None))


def dropouts(folder: Path, kind: str, config: DistillConfig) -> dict[str, float]:
    """Probabilities of dropout as `Trainer` takes them."""
    path = folder / "config.json"
    settings = data.decode_json(path.read_text(), str(path))
    hidden, attention, head = (settings.get(name, default) for name, default in _DROPOUT.get(kind, _OF_OTHERS))
    if config.dropout is not None:
        hidden, attention, head = config.dropout, None, None
    elif settings.get("pooler_dropout") or settings.get("embedding_dropout", hidden) != hidden:
        raise ValueError(f"{path}: a pooler_dropout, or an embedding_dropout that is not mlp_dropout, is not supported; "
                         "give dropout")
    attention = config.attention_dropout if config.attention_dropout is not None else attention
    head = config.classifier_dropout if config.classifier_dropout is not None else head
    return {"dropout": hidden, "attention_dropout": hidden if attention is None else attention,
            "classifier_dropout": hidden if head is None else head}


def dropout_names(kind: str) -> tuple[str, ...]:
    """Names in config.json of what `dropouts` returns, in its order."""
    return tuple(name for name, _ in _DROPOUT.get(kind, _OF_OTHERS))


def base_of(folder: Path) -> Path:
    """Where config.json and the tokenizer of a student are: its folder or, of an adapter, the base model's."""
    if not (folder / adapters.CONFIG).exists():
        return folder
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{folder}: an adapter with a tokenizer of its own; train on what Guard.from_pretrained(folder).save_pretrained(other) writes")
    return adapters.base_folder(folder, False)


def n_layers(folder: Path) -> int:
    """Number of layers of a student, or of an adapter's base model."""
    settings = data.read_object(base_of(folder) / "config.json")
    return int(settings.get("num_hidden_layers") or settings.get("n_layers") or 0)


def unsafe_first(folder: Path) -> bool:
    """Whether a folder's config.json names label 0 of two unsafe."""
    labels = data.read_object(folder / "config.json").get("id2label")
    return isinstance(labels, dict) and len(labels) == 2 and str(labels.get("0")).lower() in UNSAFE_NAMES


def read_student(folder: Path, config: DistillConfig) -> _C.EncoderParams:
    """Weights to start from, an adapter's merged: with the head of the folder, or a new one of two labels."""
    if (folder / adapters.CONFIG).exists():
        with tempfile.TemporaryDirectory(prefix="harmaug-") as merged:
            Guard.from_pretrained(folder).save_pretrained(merged)
            return read_student(Path(merged), config)
    settings = data.decode_json((folder / "config.json").read_text(), str(folder / "config.json"))
    new_head = config.new_head
    if new_head is None:
        new_head = not any("SequenceClassification" in str(name) for name in settings.get("architectures") or [])
    params = _C.EncoderParams.read(folder, layers=config.layers, new_head=2 if new_head else 0, seed=config.seed)
    if not new_head and params.config["num_labels"] == 2 and unsafe_first(folder):      # from here on, as in every guard that is written, 1 is unsafe
        classifier = "classifier.out_proj" if "classifier.out_proj.weight" in params.names else "classifier"
        for name in (f"{classifier}.weight", f"{classifier}.bias"):
            params.set(name, params.get(name)[::-1])
    return params
