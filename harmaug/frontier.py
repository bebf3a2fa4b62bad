"""What a guard costs beside what it is worth: several students of one teacher, trained, measured and put into one table.

Costs are measured in a process of their own, one text at a time through ``score``: of a shape with random weights where
these fit into the memory that is free, else it is counted from its configuration, and its row says "computed".
"""
from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harmaug import _C, data, evaluate, models, pipeline, runs, students
from harmaug.chat import ChatTemplate
from harmaug.checks import within
from harmaug.data import DataError, Row
from harmaug.distill import DistillConfig
from harmaug.generator import CausalLM
from harmaug.guard import Guard
from harmaug.guard_families import FAMILIES, LanguageModelTeacher
from harmaug.report import Table
from harmaug.respond import spread
from harmaug.teacher import ScoresTeacher
from harmaug.tokenizer import Tokenizer
from harmaug.versions import cpu_model

__all__ = ["SHAPES", "FrontierConfig", "flops", "format_frontier", "frontier", "frontier_table", "parse_student"]

_log = logging.getLogger(__name__)

_DEBERTA = {"model_type": "deberta-v2", "vocab_size": 128100, "position_buckets": 256}
_LAYERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "deberta-v3-xsmall": {**_DEBERTA, **dict(zip(_LAYERS, (384, 12, 6, 1536)))},
    "deberta-v3-small": {**_DEBERTA, **dict(zip(_LAYERS, (768, 6, 12, 3072)))},
    "deberta-v3-base": {**_DEBERTA, **dict(zip(_LAYERS, (768, 12, 12, 3072)))},
    "deberta-v3-large": {**_DEBERTA, **dict(zip(_LAYERS, (1024, 24, 16, 4096)))},
    "llama-3-8b": {**_LLAMA3, **dict(zip(_LAYERS, (4096, 32, 32, 14336)))},
    "llama-3.2-1b": {**_LLAMA3, **dict(zip(_LAYERS, (2048, 16, 32, 8192))), "tie_word_embeddings": True},
}
"""Published shapes whose costs can be had without their weights: DeBERTa v3 with a two-label head, Llama 3."""

_COUNTED = ("model_type", "vocab_size", *_LAYERS, "position_buckets", "num_key_value_heads", "head_dim", "tie_word_embeddings")
_SETTINGS: dict[str, dict[str, Any]] = {
    "deberta-v2": {"architectures": ["DebertaV2ForSequenceClassification"], "max_position_embeddings": 512, "relative_attention": True,
                   "share_att_key": True, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p", "position_biased_input": False,
                   "type_vocab_size": 0, "pooler_hidden_act": "gelu", "layer_norm_eps": 1e-7},
    "llama": {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 5e5},
}
_FREE_SHARE = 0.6       # of the free memory that a shape's weights may take

COLUMNS = ("name", "kind", "parameters", "gflops", "gflops_share", "mb", "f1", "auprc", "ms", "ms_share", "peak_mb", "peak_mb_share", "note")
_SHARES = ("gflops", "ms", "peak_mb")
_TEXTS, _WARM = 40, 3
_SPEC = re.compile(r"(.+):(\d+(?:,\d+)*)")


class FrontierConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The table [frontier].

    Parameters
    ----------
    students : tuple of str
        Models to train with the settings of [distil], each NAME, NAME:COUNT (so many of its layers, evenly spread from
        the first) or NAME:0,2,4 (these layers). Each has a folder of its own under students/.
    teacher : str, optional
        What stands in the first row: a guard's folder or fetched name, "standin", or a shape. None: the teacher of
        [label], where there is that table.
    shapes : tuple of str
        Further rows, measured with random weights or computed: names of SHAPES, or config.json files of such models.
    int8 : bool
        Export each student as int8 too, into NAME-int8, unless it fails the gate.
    max_dp, max_dauprc : float
        The gate: largest change of P(unsafe) of a row, and of a set's AUPRC, against float32.
    tokens : int
        Of the text that FLOPs are counted for.
    """

    students: tuple[str, ...]
    teacher: str | None = None
    shapes: tuple[str, ...] = ()
    int8: bool = False
    max_dp: float = 0.05
    max_dauprc: float = 0.01
    tokens: int = 128

    def __post_init__(self) -> None:
        within(self, max_dp="in [0, 1]", max_dauprc="in [0, 1]", tokens=">= 1")
        if not self.students:
            raise ValueError("students must name a model")


def parse_student(spec: str) -> tuple[str, tuple[int, ...] | None]:
    """Return model and layers of NAME, NAME:COUNT or NAME:0,2,4.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    DataError
        For more layers than the model has.
    """
    found = None if os.path.exists(spec) else _SPEC.fullmatch(spec)
    name = spec if found is None else found[1]
    n = students.n_layers(models.resolve(name))
    if found is None:
        return name, None
    numbers = tuple(int(n) for n in found[2].split(","))
    if max(numbers) >= n + (len(numbers) == 1) or numbers == (0,):
        raise DataError(f"student {spec}: {name} has {n} layers")
    return name, numbers if len(numbers) > 1 else tuple(i * n // numbers[0] for i in range(numbers[0]))


def frontier(run: runs.RunFolder, datasets: Mapping[str, Sequence[Row]], *, config: FrontierConfig, base: DistillConfig,
             rows: Sequence[Row] | None = None, teacher: Any = None, folder: Path = Path(),
             n_threads: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train the students that are not trained yet, measure all, and write frontier.json and frontier.csv.

    Parameters
    ----------
    run : RunFolder
    datasets : mapping
        Evaluation sets; F1 (at 0.5) and AUPRC are means over them, and their rows are what is timed.
    config : FrontierConfig
        Which students, and what stands beside them.
    base : DistillConfig
        Of every student but for `student` and `layers`.
    rows : sequence of Row, optional
        To train on. None: the run's labelled.jsonl.
    teacher : LabelConfig, optional
        What the first row is where the configuration names no teacher.
    folder : path
        Where the teacher's relative file names begin.
    n_threads : int, optional
        Of measuring. None: as many as there are.
    quiet : bool, default False
        No progress bars.

    Returns
    -------
    dict
        "rows" (a dict of COLUMNS each, and "sets"), "refused" (int8 exports that failed the gate, with the reason),
        and what it was measured on.

    Raises
    ------
    DataError
        If two students share a folder, a student or shape is unknown, or there is no evaluation set: before any training.
    """
    if not datasets:
        raise DataError("[frontier] needs evaluation sets: files under [data.evaluation]")
    specs: dict[str, str] = {}
    for spec in config.students:
        slug = _slug(spec)
        if slug in specs:
            raise DataError(f"[frontier] students: {specs[slug]} and {spec} share the folder students/{slug}")
        specs[slug] = spec
    for left in run.path.glob(".shape-*"):      # of a process that was killed
        shutil.rmtree(left)
    chosen = {slug: parse_student(spec) for slug, spec in specs.items()}
    shapes = {name: _shape(name) for name in config.shapes}
    measure = _Measure(datasets, config.tokens, folder, n_threads, run.path, next(iter(chosen.values()))[0])
    table = []
    if config.teacher in SHAPES:
        table.append(measure.shape(config.teacher, SHAPES[config.teacher], "teacher"))
    elif config.teacher is not None:
        table.append(measure.teacher(pipeline.LabelConfig(teacher=config.teacher)))
    elif teacher is not None and teacher.endpoint is None and pipeline.holds_scores(teacher.teacher, folder):
        _log.warning("[frontier] no first row: the teacher of [label], %s, is a file of scores, which costs nothing; --teacher names a model", teacher.teacher)
    elif teacher is not None:
        table.append(measure.teacher(teacher))
    refused = {}
    for slug, (student, layers) in chosen.items():
        own = dataclasses.replace(base, student=student, layers=layers)
        pipeline.distil(run, rows, config=own, name=f"distil_{slug}", folder=f"students/{slug}",
                        models={student: runs.sha256(models.resolve(student))}, quiet=quiet)
        place = run / "students" / slug
        table.append(measure.guard(place, slug, "student"))
        if config.int8:
            reason = _export_int8(place, datasets, config, n_threads)
            if reason is None:
                table.append(measure.guard(place.with_name(f"{slug}-int8"), f"{slug}-int8", "int8"))
            else:
                refused[f"{slug}-int8"] = reason
    table += [measure.shape(name, shapes[name], "shape") for name in config.shapes]
    _add_shares(table)
    here = runs.machine()
    result = {"rows": table, "refused": refused, "tokens": config.tokens, "texts": len(measure.texts), "cpu": cpu_model(), "cpu_isa": here["cpu_isa"],
              "harmaug": here["harmaug"], "n_threads": n_threads, "sets": {name: len(rows) for name, rows in datasets.items()}}
    data.write_json(run / "frontier.json", result, indent=1)
    with data.atomic_file(run / "frontier.csv") as file:
        file.write(Table([COLUMNS, *([row[name] for name in COLUMNS] for row in table)]).to_csv().encode())
    return result


def flops(config: Mapping[str, Any], tokens: int) -> float:
    """Return the floating-point operations of the layers of one forward pass.

    2 per weight of a matrix and token, 4 hidden_size tokens^2 a layer for the scores and the sum of attention, and for
    DeBERTa the two products with relative positions. Embeddings, norms, activations, the head and, for a generative
    guard, its policy's prompt are left out.

    Parameters
    ----------
    config : mapping
        Of `Guard.config`, or a config.json with these names.
    tokens : int
        Of the text.
    """
    h, inner, layers = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    if config["model_type"] == "llama":
        width = int(config.get("head_dim") or h // config["num_attention_heads"])
        heads, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
        return float(layers * tokens * (2 * (2 * h * heads + 2 * h * kv + 3 * h * inner) + 4 * tokens * heads))
    matrices = 4 * h * h + (3 if config["model_type"] == "modernbert" else 2) * h * inner
    positions = 2 * min(2 * int(config.get("position_buckets") or 0), 2 * tokens) if config["model_type"] == "deberta-v2" else 0
    return float(layers * tokens * (2 * matrices + 4 * tokens * h + 2 * positions * h))


def parameters(config: Mapping[str, Any]) -> int:
    """Return the number of weights of a Llama, or of a DeBERTa v3 with a pooler and two labels."""
    return sum(math.prod(shape) for _, shape in _tensors(config))


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every weight, under transformers' names."""
    h, inner, layers, vocab = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    if config["model_type"] == "llama":
        width = int(config.get("head_dim") or h // config["num_attention_heads"])
        heads, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
        matrices = {"self_attn.q_proj": (heads, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, heads),
                    "mlp.gate_proj": (inner, h), "mlp.up_proj": (inner, h), "mlp.down_proj": (h, inner)}
        yield "model.embed_tokens.weight", (vocab, h)
        yield "model.norm.weight", (h,)
        if not config.get("tie_word_embeddings"):
            yield "lm_head.weight", (vocab, h)
        for i in range(layers):
            for name, shape in {**matrices, "input_layernorm": (h,), "post_attention_layernorm": (h,)}.items():
                yield f"model.layers.{i}.{name}.weight", shape
        return
    blocks = {**{f"attention.self.{name}_proj": (h, h) for name in ("query", "key", "value")}, "attention.output.dense": (h, h),
              "attention.output.LayerNorm": (h,), "intermediate.dense": (inner, h), "output.dense": (h, inner), "output.LayerNorm": (h,)}
    yield "deberta.embeddings.word_embeddings.weight", (vocab, h)
    yield "deberta.encoder.rel_embeddings.weight", (2 * int(config["position_buckets"]), h)
    pairs = {"deberta.embeddings.LayerNorm": (h,), "deberta.encoder.LayerNorm": (h,), "pooler.dense": (h, h), "classifier": (2, h)}
    pairs |= {f"deberta.encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in blocks.items()}
    for name, shape in pairs.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]


def frontier_table(result: Mapping[str, Any]) -> Table:
    """Return what frontier.json holds as a table of numbers in full, with what must be read beside it."""
    titles = {"name": "model", "gflops": f"GFLOPs ({result['tokens']} tokens)", "mb": "MB", "f1": "F1 at 0.5", "auprc": "AUPRC", "ms": "CPU ms", "peak_mb": "peak MB",
              "gflops_share": "of the teacher's GFLOPs", "ms_share": "of its ms", "peak_mb_share": "of its MB"}
    return Table([[titles.get(name, name) for name in COLUMNS], *([row[name] for name in COLUMNS] for row in result["rows"])], _notes(result))


def format_frontier(result: Mapping[str, Any]) -> str:
    """Return the table as aligned text."""
    head = ["", "parameters", f"GFLOPs ({result['tokens']} tokens)", "MB", "F1 at 0.5", "AUPRC", "CPU ms", "peak MB", "of the teacher's GFLOPs, ms, MB", ""]
    lines = [head]
    for row in result["rows"]:
        shares = ", ".join("-" if row[f"{name}_share"] is None else f"{100 * row[f'{name}_share']:,.1f} %" for name in _SHARES)
        lines.append([f"teacher {row['name']}" if row["kind"] == "teacher" else row["name"],
                      "-" if row["parameters"] is None else f"{row['parameters'] / 1e6:,.1f} M", _number(row["gflops"], ",.2f"), _number(row["mb"], ",.1f"),
                      _number(row["f1"], ".3f"), _number(row["auprc"], ".3f"), _number(row["ms"], ".2f"), _number(row["peak_mb"], ",.0f"), shares, row["note"]])
    return repr(Table(lines, _notes(result)))


def _notes(result: Mapping[str, Any]) -> list[str]:
    return [f"F1 and AUPRC: mean over {', '.join(result['sets'])}. CPU ms: median of {result['texts']} of their rows, one at a time; peak MB: of a process that "
            f"does this alone. {result['cpu']}, {result['cpu_isa']}. A computed row is counted from its shape",
            *(f"{name} refused: {reason}" for name, reason in result["refused"].items())]


class _Measure:
    """Measures models on the same sets and texts."""

    def __init__(self, datasets: Mapping[str, Sequence[Row]], tokens: int, folder: Path, n_threads: int | None, scratch: Path = Path(),
                 student: str = "") -> None:
        self._datasets, self._tokens, self._folder, self._n_threads = datasets, tokens, folder, n_threads
        self._scratch, self._student = scratch, student
        rows = [row for rows in datasets.values() for row in rows]
        self.texts = [[row.prompt, row.response] for row in spread(rows, _TEXTS)]

    def teacher(self, config: pipeline.LabelConfig) -> dict[str, Any]:
        """A row of a teacher that scores here, be it a guard or a language model."""
        if config.endpoint is not None:
            raise DataError("[frontier] teacher: one behind a server cannot be timed here; name a shape or a folder")
        opened: Any = pipeline.open_teacher(config, self._folder, self._options())
        guard = getattr(opened, "guard", None)
        if isinstance(opened, ScoresTeacher):
            raise DataError(f"[frontier] teacher: {config.teacher} is a file of scores, which costs nothing; name a model")
        if guard is not None and not isinstance(guard, Guard):
            raise DataError(f"[frontier] teacher: {config.teacher} is neither an encoder nor a language model")
        path = pipeline.teacher_path(config.teacher, self._folder)
        row = {"name": Path(config.teacher).name, "kind": "teacher", **self._worth(opened), **self._cost({"teacher": msgspec.to_builtins(config), "folder": str(self._folder)})}
        if guard is not None:
            return row | self._size(guard, path)
        settings = data.read_object(path / "config.json") if (path / "config.json").is_file() else {}
        known = settings.get("model_type") == "llama"
        files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        return row | {"parameters": parameters(settings) if known else None, "gflops": flops(settings, self._tokens) / 1e9 if known else None,
                      "mb": sum(file.stat().st_size for file in files) / 1e6, "note": ""}

    def guard(self, folder: Path, name: str, kind: str) -> dict[str, Any]:
        """A row of a guard's folder."""
        guard = Guard.from_pretrained(folder, **self._options())
        return {"name": name, "kind": kind, **self._worth(guard), **self._cost({"guard": str(folder)}), **self._size(guard, folder)}

    def shape(self, name: str, config: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """A row of a shape: timed with random weights where these fit into memory and disk, else computed."""
        row = _computed(name, config, self._tokens, kind)
        student = students.base_of(models.resolve(self._student))
        n_tokens = Tokenizer.from_pretrained(student).vocab_size
        size = 4 * row["parameters"]        # and as much again for packed weights on the disk
        if size > _FREE_SHARE * _free_memory() or 2 * size > shutil.disk_usage(self._scratch).free or n_tokens > config["vocab_size"]:
            return row
        with tempfile.TemporaryDirectory(prefix=".shape-", dir=self._scratch) as scratch:
            _write_shape(Path(scratch), config)
            for texts in (self.texts[:1], self.texts):      # once before, as a guard's packed weights are in the cache when it is measured
                cost = self._cost({"shape": scratch, "student": str(student)}, texts, Path(scratch) / "cache")
        return row | cost | {"note": "random weights"}

    def _options(self) -> dict[str, Any]:
        return {} if self._n_threads is None else {"n_threads": self._n_threads}

    def _worth(self, scorer: Any) -> dict[str, Any]:
        report = evaluate.summarise(evaluate.score_sets(scorer, self._datasets), draws=0)
        sets = {**report["datasets"], **report["over_refusal"]}
        return {"f1": report["mean"].get("f1"), "auprc": report["mean"].get("auprc"),
                "sets": {name: {metric: entry[metric] for metric in ("f1", "auprc", "fpr")} for name, entry in sets.items()}}

    def _size(self, guard: Guard, folder: Path) -> dict[str, Any]:
        weights = guard._weights() if guard.encoder.dtype != "int8" else None
        folders = [folder] if not (folder / "adapter_config.json").exists() else [folder, guard._folder]
        size = sum(file.stat().st_size for place in folders for file in place.glob("*.safetensors")) / 1e6
        return {"parameters": weights.size if weights is not None else None, "gflops": flops(guard.config, self._tokens) / 1e9, "mb": size,
                "note": "8-bit weights" if weights is None else ""}

    def _cost(self, what: Mapping[str, Any], texts: Sequence[Any] | None = None, cache: Path | None = None) -> dict[str, Any]:
        """Median milliseconds of a text and peak memory, of a process of its own; what it caches goes to `cache`, if anything does."""
        job = {**what, "texts": self.texts if texts is None else texts, "options": self._options()}
        own = {} if cache is None or models.cache_folder() is None else {"HARMAUG_CACHE": str(cache)}
        done = subprocess.run([sys.executable, "-m", "harmaug.frontier"], input=msgspec.json.encode(job), capture_output=True, env={**os.environ, **own})
        if done.returncode:
            raise DataError(f"[frontier] measuring {next(iter(what.values()))} failed: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _export_int8(folder: Path, datasets: Mapping[str, Sequence[Row]], config: FrontierConfig, n_threads: int | None) -> str | None:
    """Write the student in int8 beside its folder, or return why it is refused."""
    guard = Guard.from_pretrained(folder, n_threads=n_threads)
    small = guard.to("int8")
    dp = dauprc = 0.0
    for part, other in zip(evaluate.score_sets(guard, datasets), evaluate.score_sets(small, datasets)):
        dp = max(dp, float(np.abs(part.scores - other.scores).max()))
        before, after = (evaluate.metrics(part.labels, scores)["auprc"] for scores in (part.scores, other.scores))
        if before is not None and after is not None:
            dauprc = max(dauprc, abs(after - before))
    if dp > config.max_dp or dauprc > config.max_dauprc:
        return f"largest change of P(unsafe) {dp:.4f} (bound {config.max_dp:g}), of a set's AUPRC {dauprc:.4f} (bound {config.max_dauprc:g})"
    small.save_pretrained(folder.with_name(f"{folder.name}-int8"))
    return None


def _computed(name: str, config: Mapping[str, Any], tokens: int, kind: str) -> dict[str, Any]:
    n, wide = parameters(config), config["model_type"] != "llama"
    return {"name": Path(name).stem if os.path.exists(name) else name, "kind": kind, "parameters": n, "gflops": flops(config, tokens) / 1e9,
            "mb": n * (4 if wide else 2) / 1e6, "f1": None, "auprc": None, "ms": None, "peak_mb": None, "sets": {},
            "note": f"computed; {'32' if wide else '16'}-bit weights"}


def _write_shape(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a model of random weights."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(max(math.prod(shape) for _, shape in _tensors(config)), np.float32)
    weights = {name: np.ones(shape, np.float32) if "norm" in name.lower() and name.endswith("weight") else noise[:math.prod(shape)].reshape(shape)
               for name, shape in _tensors(config)}
    _C.write_safetensors(folder / "model.safetensors", weights, dtype="BF16" if config["model_type"] == "llama" else "F32")
    data.write_json(folder / "config.json", {**_SETTINGS[config["model_type"]], **{name: config[name] for name in _COUNTED if name in config}})


def _open_shape(folder: Path, student: Path, n_threads: int | None = None) -> Any:
    """A guard of such a model, with another one's tokenizer: one of encoders, or a generative one without a policy."""
    settings, tokenizer = data.read_object(folder / "config.json"), Tokenizer.from_pretrained(student)
    if settings["model_type"] != "llama":
        encoder = _C.Encoder(folder, n_threads=n_threads or 0, cache=models.cache_place("weights"))
        return Guard(encoder, tokenizer, settings, folder, max_length=settings["max_position_embeddings"])
    lm = CausalLM(_C.CausalLM(folder, n_threads=n_threads or 0), tokenizer, name=folder.name)
    return LanguageModelTeacher(lm, FAMILIES["llama-guard-2"], template=ChatTemplate(source="{% for m in messages %}{{ m.content }}\n{% endfor %}"))


def _free_memory() -> int:
    """Bytes that are free here, by the system and by the container's limit; 0 where nobody tells."""
    try:
        free = int(re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024
    except (OSError, IndexError):
        return 0
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def _shape(name: str) -> dict[str, Any]:
    if name in SHAPES:
        return SHAPES[name]
    if not os.path.isfile(name):
        raise DataError(f"[frontier] shape {name}: neither a config.json nor one of {', '.join(SHAPES)}")
    config = data.read_object(Path(name))
    kind = config.get("model_type")
    if kind not in ("llama", "deberta-v2"):
        raise DataError(f"[frontier] shape {name}: model_type {kind}; Llama and DeBERTa v3 can be counted")
    needed = (*_LAYERS, "vocab_size", "num_key_value_heads" if kind == "llama" else "position_buckets")
    lacking = next((key for key in needed if key not in config), None)
    if lacking is not None:
        raise DataError(f"[frontier] shape {name}: no {lacking}")
    return config


def _add_shares(table: Sequence[dict[str, Any]]) -> None:
    first = table[0] if table[0]["kind"] == "teacher" else {}
    for row in table:
        if row["kind"] == "int8" and row["parameters"] is None:
            row["parameters"] = next(other["parameters"] for other in table if f"{other['name']}-int8" == row["name"])
        row |= {f"{name}_share": row[name] / first[name] if first.get(name) and row[name] is not None else None for name in _SHARES}


def _slug(spec: str) -> str:
    found = None if os.path.exists(spec) else _SPEC.fullmatch(spec)
    name = Path(found[1]).name + "-" + found[2].replace(",", ".") if found else Path(spec).name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _peak_mb() -> float:
    """Peak resident memory of this process; what getrusage says may be that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _measure_here() -> None:
    """Time the model that standard input names, alone in this process."""
    job = msgspec.json.decode(sys.stdin.buffer.read())
    if "guard" in job:
        scorer: Any = Guard.from_pretrained(job["guard"], **job["options"])
    elif "shape" in job:
        scorer = _open_shape(Path(job["shape"]), Path(job["student"]), **job["options"])
    else:
        scorer = pipeline.open_teacher(msgspec.convert(job["teacher"], pipeline.LabelConfig), Path(job["folder"]), job["options"])
    taken = []
    for prompt, response in [*job["texts"][:_WARM], *job["texts"]]:
        begun = time.perf_counter()
        scorer.score([prompt], [response])
        taken.append(1e3 * (time.perf_counter() - begun))
    print(json.dumps({"ms": float(np.median(taken[min(_WARM, len(job["texts"])):])), "peak_mb": _peak_mb()}))


if __name__ == "__main__":
    _measure_here()
