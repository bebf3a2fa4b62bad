"""LoRA adapters in PEFT's format: the weights of a base model with an adapter's update."""
from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from harmaug import _C, models
from harmaug.data import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_CLASSIFIERS = ("classifier", "classifier.out_proj")
BEFORE_CLASSIFIER = ("pooler.dense.weight", "classifier.dense.weight", "pre_classifier.weight", "head.dense.weight")
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "use_qalora", "alora_invocation_tokens", "megatron_config",
                "layer_replication", "lora_bias")


def base_folder(adapter: Path, download: bool) -> Path:
    """Find the base model's folder, beside the adapter or by its name."""
    path = adapter / CONFIG
    name = read_object(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise _C.FormatError(f"{path}: base_model_name_or_path is missing")
    beside = adapter / name
    try:
        base = beside if beside.is_dir() else models.resolve(name, download=download)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{adapter}: its base model is not here: {error}") from None
    if not base.is_dir():
        raise NotADirectoryError(f"{adapter}: its base model {base} is not a folder")
    return base


def merge(adapter: Path, base: Path) -> _C.EncoderParams:
    """Return W + alpha / r * B A for the matrices that were adapted, and the tensors that were trained whole."""
    scale = _scale(adapter / CONFIG)
    path = adapter / WEIGHTS
    file = _C.TensorFile(path)
    whole, pairs = _tensors(path, file)
    heads = [name for name in _CLASSIFIERS if f"{name}.weight" in whole and f"{name}.bias" in whole]
    params = _C.EncoderParams.read(base, new_head=file.info(whole[f"{heads[0]}.weight"])[1][0] if heads else 0)
    before = [name for name in params.names if name.endswith(BEFORE_CLASSIFIER)]
    if heads and not any(name.endswith(BEFORE_CLASSIFIER) for name in (*whole, *_C.TensorFile(base).names)):
        raise _C.FormatError(f"{path}: neither the adapter nor its base model {base} holds '{before[0]}'")
    try:
        for key, name in whole.items():
            params.set(key, file.read(name))
        for module, pair in pairs.items():
            if len(pair) != 2:
                raise _C.FormatError(f"{path}: module '{module}' lacks lora_{'B' if 'A' in pair else 'A'}")
            params.add_low_rank(f"{module}.weight", file.read(pair["B"]), file.read(pair["A"]), scale(module))
    except KeyError as error:
        raise _C.FormatError(f"{path}: the base model has no parameter {error}") from None
    except _C.FormatError:
        raise
    except ValueError as error:
        raise _C.FormatError(f"{path}: {error}") from None
    return params


def _scale(path: Path) -> Callable[[str], float]:
    """Return alpha / r of a module; a setting that changes the meaning of the weights must be known."""
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise _C.FormatError(f"{path}: peft_type must be LORA, got {config.get('peft_type')!r}")
    for name in _UNSUPPORTED:
        if config.get(name):
            raise _C.FormatError(f"{path}: {name} is not supported")
    for name in ("rank_pattern", "alpha_pattern"):
        values = config.get(name) or {}
        if not isinstance(values, dict) or any(re.search(r"[^\w.]", key) for key in values):
            raise _C.FormatError(f"{path}: {name} must map names of modules to numbers")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise _C.FormatError(f"{path}: {name} must be a number > 0, got {value!r}")

    def value_of(name: str, pattern: str, module: str) -> float:
        for key, value in (config.get(pattern) or {}).items():
            if f".{module}".endswith(f".{key}"):    # regular expressions to PEFT; here plain ends of module names
                return float(value)
        return float(config[name])

    def scale(module: str) -> float:
        rank, alpha = value_of("r", "rank_pattern", module), value_of("lora_alpha", "alpha_pattern", module)
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return scale


def _tensors(path: Path, file: _C.TensorFile) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Name the tensors that replace a parameter, and the factors A and B of each adapted module."""
    whole: dict[str, str] = {}
    pairs: dict[str, dict[str, str]] = {}
    for name in file.names:
        if not name.startswith(_PREFIX):
            raise _C.FormatError(f"{path}: tensor '{name}' does not begin with {_PREFIX}")
        key = name[len(_PREFIX):].replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if ".original_module." in key:      # before training; peft writes it with bias="all"
            continue
        module, _, part = key.rpartition(".lora_")
        if not module:
            whole[key] = name
        elif part in ("A.weight", "B.weight"):
            pairs.setdefault(module, {})[part[0]] = name
        else:
            raise _C.FormatError(f"{path}: tensor '{name}' is not supported")
    return whole, pairs
