"""Distillation: rows with labels and a teacher's scores in, a small guard out.

The loss of a row is ``ce_weight * CE(hard label) + kl_weight * T^2 * KL(soft label || student)`` (Lee et al. 2025,
arXiv 2410.01524). All arithmetic is in C, or with the engine "torch" in PyTorch; this module decides which row is learnt
when, and keeps a run that can be killed at any moment.
"""
from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from harmaug import _C, adapters, data, evaluate, models, runs, students
from harmaug.batches import DrawOrder, TokenRows
from harmaug.checks import one_of, within
from harmaug.data import Row
from harmaug.engines import TRAINERS
from harmaug.guard import Guard, write_thresholds
from harmaug.tokenizer import Tokenizer, tokenizer_files

if TYPE_CHECKING:
    from harmaug.torch_engine import TorchTrainer

__all__ = ["DistillConfig", "Distiller", "merge_duplicates", "split_validation"]

_log = logging.getLogger(__name__)

_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "examples_per_second", "validation_loss", "validation_auprc")
_TRAINER = ("ce_weight", "kl_weight", "temperature", "weight_decay", "layer_decay", "clip_norm", "seed",
            "micro_tokens", "n_threads", "lora_rank", "lora_alpha", "precision")
_RANGES = {
    "ce_weight": "in [0, 1e6]", "kl_weight": "in [0, 1e6]", "temperature": "in [1e-3, 1e3]", "lr": "in [0, 10]",
    "warmup_steps": "in [0, 1e12]", "weight_decay": "in [0, 1e3]", "clip_norm": "in [0, 1e12]",
    "dropout": "in [0, 0.99]", "attention_dropout": "in [0, 0.99]", "classifier_dropout": "in [0, 0.99]",
    "layer_decay": "in (0, 1]", "batch_size": "in [1, 1e7]", "micro_tokens": "in [0, 1e9]", "epochs": "in [1e-9, 1e9]",
    "max_steps": "in [1, 1e12]", "max_length": "in [3, 1e6]", "validation_fraction": "in [0, 0.9]",
    "eval_every": "in [1, 1e12]", "patience": "in [1, 1e9]", "checkpoint_every": "in [1, 1e12]",
    "lora_rank": "in [0, 1e5]", "lora_alpha": "in [1e-6, 1e6]", "seed": "in [0, 9e18]", "n_threads": "in [0, 4096]",
}
ENGINE = ("engine", "gradient_checkpointing", "n_threads")
"""What of a configuration says where it is trained, not what: a checkpoint moves between these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student is trained; the defaults are the paper's (`examples/paper.toml` is the whole of its recipe).

    Parameters
    ----------
    student : str
        Folder or fetched name of the model to start from; an adapter is merged into its base model.
    layers : tuple of int, optional
        Encoder layers of it to keep, such as (0, 2, 4). None: all.
    new_head : bool, optional
        Start from a new two-label head. None: where the model has none.
    ce_weight, kl_weight : float
        Weights of the hard and the soft term. A row without a soft label gives the hard term the weight of both.
    temperature : float
        Softens both sides of the soft term, which is then scaled by its square.
    lr : float
        Highest learning rate: it rises from 0 over warmup_steps, then follows the schedule.
    warmup_steps : int
    schedule : {"linear", "cosine", "constant"}
    weight_decay : float
        Of matrices; biases and LayerNorm have none.
    clip_norm : float
        Largest global gradient norm; 0: no clipping.
    layer_decay : float
        The learning rate of what stands d levels below the head (the last layer 1, the embeddings the number of layers
        and 1) is multiplied by layer_decay**d.
    dropout, attention_dropout, classifier_dropout : float, optional
        Probabilities on hidden states, on attention's, in the head, where transformers' model of the family has its
        dropout layers. None: the two last are as dropout where that is given; otherwise the student's config.json says.
    batch_size : int
        Rows a step, at most as many as there are.
    micro_tokens : int
        Tokens worked on together: bounds memory, changes no result but by rounding.
    epochs, max_steps : float, int
        Passes over the rows (an epoch is as many draws as there are rows), or steps instead.
    max_length : int
        Tokens of a row, at most the model's. Longer rows are cut, and counted.
    balanced : bool
        Draw safe and unsafe rows in turn, each class by itself without repetition until it is used up.
    validation_fraction : float
        Share of the rows held out, stratified by label and grouped by prompt; 0: none, and the last step is kept.
    eval_every : int, optional
        Steps between validations. None: once an epoch.
    patience : int, optional
        Stop after so many validations in a row without a better one. None: never.
    checkpoint_every : int
        Steps between checkpoints, beside one at each validation.
    lora_rank, lora_alpha : int, float
        Rank 0: train all weights. Otherwise train, in place of the matrices that lora_targets names, factors whose
        product is scaled by lora_alpha / lora_rank.
    lora_targets : tuple of str, optional
        Ends of module names, as PEFT's target_modules. None: the matrices of the layers, and a pooler (`harmaug.students.LORA_TARGETS`).
    freeze : tuple of str
        Patterns of parameter names that are not trained; "*" stands for any text ("bert.embeddings.*").
    seed : int
        Of split, drawing order, dropout, new weights.
    n_threads : int
        0: the library default. Changes no result.
    engine : {"native", "torch"}
        "torch": PyTorch and accelerate, for GPUs and, under torchrun, for several of them; see `harmaug.torch_engine`.
    precision : {"float32", "bfloat16"}
        "bfloat16": mixed precision, the operands of products rounded to bfloat16; weights, moments and the loss stay
        float32. With engine "torch" this is autocast; natively it is finer, and gains speed where the CPU multiplies
        bfloat16 (AVX512-BF16) alone: see docs/distillation.md.
    gradient_checkpointing : bool
        With engine "torch": activations are computed again in the backward pass, for memory.
    """

    student: str = "minilm"
    layers: tuple[int, ...] | None = None
    new_head: bool | None = None
    ce_weight: float = 0.5
    kl_weight: float = 0.5
    temperature: float = 1.0
    lr: float = 3e-5
    schedule: str = "linear"
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    dropout: float | None = None
    attention_dropout: float | None = None
    classifier_dropout: float | None = None
    batch_size: int = 256
    micro_tokens: int = 4096
    epochs: float = 3.0
    max_steps: int | None = None
    max_length: int = 1024
    balanced: bool = True
    validation_fraction: float = 0.1
    eval_every: int | None = None
    patience: int | None = None
    checkpoint_every: int = 500
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] | None = None
    freeze: tuple[str, ...] = ()
    seed: int = 42
    n_threads: int = 0
    engine: str = "native"
    precision: str = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "lora_targets", "freeze"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        within(self, **_RANGES)
        for layer in self.layers or ():
            within(SimpleNamespace(layers=layer), layers=">= 0")
        one_of("schedule", self.schedule, ("linear", "cosine", "constant"))
        one_of("engine", self.engine, TRAINERS)
        one_of("precision", self.precision, ("float32", "bfloat16"))
        if self.engine == "native" and self.gradient_checkpointing:
            raise ValueError('gradient_checkpointing needs engine "torch"')
        if self.ce_weight + self.kl_weight == 0:
            raise ValueError("ce_weight and kl_weight must not both be 0")


class _State(msgspec.Struct):
    """What stands in checkpoint/state.json beside the tensors that it names."""

    step: int
    of: dict[str, Any]
    trainer: str
    best_step: int | None = None
    best_value: float | None = None
    best: str | None = None
    stale: int = 0


def _settings(config: DistillConfig) -> dict[str, Any]:
    """What a checkpoint's weights depend on of a configuration, as JSON gives it back."""
    keeps = (*ENGINE, "checkpoint_every", "student")
    settings = {f"config.{k}": v for k, v in dataclasses.asdict(config).items() if k not in keeps}
    return msgspec.json.decode(msgspec.json.encode(settings))  # type: ignore[no-any-return]


def merge_duplicates(rows: Iterable[Row]) -> list[Row]:
    """Merge rows with the same prompt and response, letter case and spacing aside, in order of first appearance.

    Of merged rows the soft target is the mean, the label that of the majority (unsafe on a tie).
    """
    rows = list(rows)
    merged = []
    for group in ([rows[i] for i in numbers] for numbers in _duplicates(rows)):
        row = group[0]
        if len(group) > 1:
            soft = [r.target for r in group if r.target is not None]
            hard = [r.hard_label for r in group if r.hard_label is not None]
            row = msgspec.structs.replace(row, soft_label=sum(soft) / len(soft) if soft else None,
                                          label=int(2 * sum(hard) >= len(hard)) if hard else None)
        merged.append(row)
    return merged


def _duplicates(rows: Iterable[Row]) -> list[list[int]]:
    """Row numbers of each set of equal rows, in order of first appearance."""
    return list(_grouped(map(data.identity, rows)).values())


def _grouped(keys: Iterable[Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups


def split_validation(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows so that no prompt stands on both sides and both have about the same share of unsafe rows.

    Returns the ascending row numbers of those to train on, and of the `fraction` that is held out for validation; the
    seed chooses among equal splits.
    """
    groups = _grouped(data.normalise(row.prompt) for row in rows)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 1 << 63], np.uint64)))
    names = list(groups)
    wanted = np.array([sum(r.hard_label == c for r in rows) * fraction for c in (0, 1)])
    held: list[int] = []
    got = np.zeros(2)
    for name in (names[i] for i in generator.permutation(len(names))):
        counts = np.array([sum(rows[i].hard_label == c for i in groups[name]) for c in (0, 1)])
        if np.abs(got + counts - wanted).sum() < np.abs(got - wanted).sum():
            held += groups[name]
            got += counts
    chosen = set(held)
    return [i for i in range(len(rows)) if i not in chosen], sorted(held)


class Distiller:
    """Train a student guard on rows.

    Parameters
    ----------
    config : DistillConfig, optional

    Attributes
    ----------
    guard_, best_step_ : Guard, int
        The student at its best step, and after which step that was.
    selected_by_ : str
        What chose it: "auprc" (on the validation rows), "loss" (they have one class only) or "last step" (no rows).
    n_steps_ : int
        Steps made.
    history_ : list of dict
        For each step the loss, learning rate, gradient norm and rows a second; after validations also validation_loss
        and validation_auprc.
    counts_ : dict
        Rows given, merged, trained on, validated on, cut to max_length.
    validation_labels_, validation_scores_ : ndarray
        Hard labels of the validation rows and the best student's P(unsafe) for them; empty without validation rows.
    """

    guard_: Guard
    best_step_: int
    selected_by_: str
    n_steps_: int
    history_: list[dict[str, Any]]
    counts_: dict[str, int]
    validation_labels_: NDArray[np.int8]
    validation_scores_: NDArray[np.float64]

    def __init__(self, config: DistillConfig | None = None) -> None:
        self.config = config if config is not None else DistillConfig()

    def fit(self, rows: Iterable[Row], validation_rows: Iterable[Row] | None = None,
            out: str | os.PathLike[str] | None = None, progress: bool | None = None,
            sample_weight: Sequence[float] | None = None, allow_mixed: bool = False) -> Distiller:
        """Train on rows.

        Parameters
        ----------
        rows : iterable of Row
            Each with a label or a score. Exact duplicates are merged.
        validation_rows : iterable of Row, optional
            Choose the best step. None: validation_fraction of the rows.
        out : path, optional
            Folder for the guard (with LoRA, a PEFT adapter, unless `layers`, or a student that is an adapter itself,
            leaves it no base), log.csv, and, while it runs, checkpoints: the same call after a crash goes on from the
            last one and ends with the same weights. What a guard before left there is removed.
        progress : bool, optional
            Show a progress bar. None: on a terminal or in a notebook.
        sample_weight : sequence of float, optional
            How much each row counts in the loss, 1 by default; of merged rows the largest. Rows of weight 0 are left
            out.
        allow_mixed : bool, default False
            Go on from a checkpoint of another version or instruction set.

        Raises
        ------
        DataError
            If a row of either kind has no label, or one that is not 0 or 1, or a score outside [0, 1]; if there are no
            rows, or all of one class.
        ValueError
            If the loss is not finite (the last checkpoint stays), or out holds the checkpoint of another run.
        """
        held_out = None if validation_rows is None else list(validation_rows)
        job = self.config, list(rows), held_out, out, sample_weight
        if self.config.engine == "torch":
            from harmaug.torch_processes import share

            job = share(job)
        return self.fit_job(*job, progress=runs.shows_bars() if progress is None else progress, allow_mixed=allow_mixed)

    def fit_job(self, config: DistillConfig, rows: list[Row], held_out: list[Row] | None,
                out: str | os.PathLike[str] | None, sample_weight: Sequence[float] | None, *, progress: bool,
                allow_mixed: bool = False) -> Distiller:
        """`fit`, with what all processes of a run have in common."""
        self.config = config
        scratch: Any = tempfile.TemporaryDirectory(prefix="harmaug-") if out is None else contextlib.nullcontext(out)
        with scratch as folder:
            run = _Run(config, rows, held_out, Path(folder), out is not None, sample_weight, allow_mixed)
            run.train(progress and run.main)
            self.counts_, self.history_ = run.counts, run.log.rows
            self.n_steps_, self.best_step_, self.selected_by_ = run.state.step, run.finish(), run.selected_by
            self.validation_labels_, self.validation_scores_ = run.validation.hard, run.scores()
            self.guard_ = run.guard()
            if out is not None:
                run.save(self.guard_)
            if run.torch is not None:
                run.torch.release()
        return self


class _Log:
    """log.csv: one line a step. Opening it cuts the lines of steps after the checkpoint away."""

    def __init__(self, path: Path | None, step: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file = None
        if path is None:
            return
        if step > 0 and path.exists():
            with open(path, newline="") as old:
                whole = (line for line in csv.DictReader(old) if None not in line.values() and line["step"].isdigit())
                lines = [line for line in whole if int(line["step"]) <= step]
            self.rows = [{k: int(v) if k == "step" else float(v) for k, v in line.items() if k in _COLUMNS and v}
                         for line in lines]
        with data.atomic_file(path) as new:
            new.write((",".join(_COLUMNS) + "\n" + "".join(map(self._line, self.rows))).encode())
        self._file = open(path, "a")    # noqa: SIM115 -- lives as long as the run

    @staticmethod
    def _line(row: dict[str, Any]) -> str:
        cells = ("" if row.get(c) is None else format(row[c], "" if c == "step" else ".7g") for c in _COLUMNS)
        return ",".join(cells) + "\n"

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._file is not None:
            self._file.write(self._line(row))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Interrupt:
    """Holds the first Ctrl-C back until the step is whole; the second breaks in at once."""

    def __init__(self) -> None:
        self.caught = False
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._ours = ours and threading.current_thread() is threading.main_thread()
        if self._ours:
            signal.signal(signal.SIGINT, self._catch)

    def _catch(self, number: int, frame: Any) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = True

    def release(self) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Run:
    """One call of fit."""

    def __init__(self, config: DistillConfig, rows: list[Row], validation_rows: list[Row] | None, out: Path, keep: bool,
                 sample_weight: Sequence[float] | None, allow_mixed: bool) -> None:
        self.config, self.out, self.keep, self.allow_mixed = config, out, keep, allow_mixed
        data.require_labels(rows, "training rows")
        data.require_labels(validation_rows or (), "validation rows", both=False)
        if sample_weight is not None and len(sample_weight) != len(rows):
            raise ValueError(f"sample_weight must have one number for each of {len(rows)} rows, "
                             f"got {len(sample_weight)}")
        merged = merge_duplicates(rows)
        same = _duplicates(rows)
        given = np.ones(len(rows), np.float32) if sample_weight is None else np.asarray(sample_weight, np.float32)
        weights = np.array([given[group].max() for group in same], np.float32)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("sample_weight must be finite and >= 0")
        merged, weights = [row for row, weight in zip(merged, weights) if weight > 0], weights[weights > 0]
        kept: Sequence[int] = range(len(merged))
        if validation_rows is not None:
            train, validation = merged, merge_duplicates(validation_rows)
        else:
            kept, held = split_validation(merged, config.validation_fraction, config.seed)
            train, validation = [merged[i] for i in kept], [merged[i] for i in held]
        data.require_labels(train, "training rows without those held out for validation")
        self.source = models.resolve(config.student)
        self.folder = students.base_of(self.source)
        self.tokenizer = Tokenizer.from_pretrained(self.folder)
        self.params = students.read_student(self.source, config)
        max_length = min(config.max_length, self.params.config["max_tokens"])
        self.train_set, self.validation = (TokenRows(train, self.tokenizer, max_length),
                                           TokenRows(validation, self.tokenizer, max_length))
        self.train_set.weights = weights[list(kept)]
        self.counts = {"rows": len(rows), "merged": len(rows) - len(same), "train": len(train),
                       "validation": len(validation), "cut": self.train_set.n_cut + self.validation.n_cut}
        if self.counts["cut"]:
            _log.warning("%d rows are longer than max_length %d and were cut", self.counts["cut"], max_length)
        self.selected_by = self._selection()
        self.batch_size = min(config.batch_size, len(train))
        self.total = config.max_steps or math.ceil(config.epochs * len(train) / self.batch_size)
        self.eval_every = config.eval_every or math.ceil(len(train) / self.batch_size)
        self.order = DrawOrder(self.train_set.hard, config.balanced, config.seed)
        kind = self.params.config["model_type"]
        self.lora_targets = config.lora_targets if config.lora_targets is not None else students.LORA_TARGETS[kind]
        dropouts = students.dropouts(self.folder, kind, config)
        settings: dict[str, Any] = {**dropouts, **{name: getattr(config, name) for name in _TRAINER}}
        native = _C.Trainer(self.params, frozen=config.freeze, lora_targets=self.lora_targets if config.lora_rank else (), **settings)
        self.trainer, self.torch = self._engine(native, dropouts)
        self.main = self.torch is None or self.torch.main
        self.work = out / "checkpoint"
        self.work.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state = self._resume()
        self.log = _Log(out / "log.csv" if keep and self.main else None, self.state.step)
        self.best_scores: NDArray[np.float64] | None = None

    def _engine(self, native: _C.Trainer, dropouts: dict[str, float]) -> tuple[Any, TorchTrainer | None]:
        if self.config.engine == "native":
            return native, None
        from harmaug.torch_engine import TorchTrainer

        names = students.dropout_names(self.params.config["model_type"])
        trainer = TorchTrainer(self.config, self.params, self.folder, native, self.lora_targets, dict(zip(names, dropouts.values())))
        return trainer, trainer

    def _selection(self) -> str:
        n = len(self.validation)
        if n == 0:
            _log.warning("no validation rows: the last step is kept")
            return "last step"
        if len(set(self.validation.hard.tolist())) == 1:
            _log.warning("the %d validation rows have one class only: the step of the lowest loss is kept, "
                         "not of the highest AUPRC", n)
            return "loss"
        return "auprc"

    def train(self, progress: bool) -> None:
        """Make the steps that are left."""
        config, state, total = self.config, self.state, self.total
        bar = tqdm(total=total, initial=min(state.step, total), unit="step", desc="distil", disable=not progress)
        said = started = time.monotonic()
        drawn = 0
        interrupt = _Interrupt()
        try:
            while state.step < total and not (config.patience and state.stale >= config.patience):
                if interrupt.caught if self.torch is None else self.torch.any(interrupt.caught):
                    self._checkpoint()
                    raise KeyboardInterrupt
                row = self._step()
                drawn += self.batch_size
                row["examples_per_second"] = drawn / max(time.monotonic() - started, 1e-9)
                if state.step % self.eval_every == 0 or state.step == total:
                    row |= self._validate()
                self.log.add(row)
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.4f}", lr=f"{row['lr']:.2e}",
                                examples_s=f"{row['examples_per_second']:.0f}")
                if self.main and not progress and (time.monotonic() - said > 30 or "validation_loss" in row):
                    said = time.monotonic()
                    _log.info("step %d of %d: %s", state.step, total,
                              ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "step" and v is not None))
                if state.step < total and ("validation_loss" in row or state.step % config.checkpoint_every == 0):
                    self._checkpoint()
        finally:
            interrupt.release()
            bar.close()
            self.log.close()

    def _step(self) -> dict[str, Any]:
        config, state = self.config, self.state
        rows = self.order.rows(state.step * self.batch_size, self.batch_size)
        ids, offsets, types = self.train_set.take(rows)
        lr = config.lr * _C.schedule_factor(config.schedule, state.step, config.warmup_steps, self.total)
        try:
            train = self.train_set
            done = self.trainer.step(ids, offsets, train.hard[rows], train.soft[rows], train.weights[rows], lr=lr,
                                     type_ids=types)
        except ValueError as exc:
            raise self._stopped(str(exc)) from None
        state.step += 1
        return {"step": state.step, "epoch": state.step * self.batch_size / len(self.train_set), "loss": done["loss"],
                "lr": lr, "grad_norm": done["grad_norm"]}

    def _stopped(self, why: str) -> ValueError:
        where = f"; the last checkpoint is {self.work / self.state.trainer}" if self.keep and self.state.trainer else ""
        return ValueError(f"distil: {why}{where}")

    def _validate(self) -> dict[str, Any]:
        if not len(self.validation):
            self.state.best_step = self.state.step
            return {}
        state = self.state
        logits = self._logits()
        if not np.isfinite(logits).all():
            raise self._stopped(f"step {state.step}: the model's scores are not finite any more; "
                                "a lower learning rate may help")
        scores = _unsafe(logits)
        loss, _ = _C.distill_loss(logits, self.validation.hard, self.validation.soft, ce_weight=self.config.ce_weight,
                                  kl_weight=self.config.kl_weight, temperature=self.config.temperature)
        auprc = evaluate.metrics(self.validation.hard, scores)["auprc"]
        value = auprc if self.selected_by == "auprc" else -loss
        state.stale += 1
        if state.best_value is None or value > state.best_value:
            state.best_step, state.best_value, state.stale, self.best_scores = state.step, value, 0, scores
            if state.step < self.total:     # else the weights stand in memory
                state.best = f"best-{state.step}.safetensors"
                self.trainer.save(self.work / state.best, False)
        return {"validation_loss": loss, "validation_auprc": auprc}

    def _logits(self) -> NDArray[np.float32]:
        v = self.validation
        if self.torch is not None:
            return self.torch.logits(v.ids, v.offsets, v.types)
        self.trainer.settle()
        encoder = _C.Encoder.from_params(self.params)
        return encoder.logits(v.ids, v.offsets, v.types, n_threads=self.config.n_threads)

    def _of(self) -> dict[str, Any]:
        """What a checkpoint belongs to: everything that the weights depend on."""
        here = runs.machine()
        return {**_settings(self.config), "rows": self.train_set.digest(), "validation rows": self.validation.digest(),
                "student": " ".join(map(runs.sha256, dict.fromkeys((self.source, self.folder)))), "version": here["harmaug"],
                "instruction set": here["cpu_isa"] if self.torch is None else None}

    def _resume(self) -> _State:
        """The state to go on from, whose tensors the trainer has then."""
        state = self._read_state() if self.main else None
        state = state if self.torch is None else self.torch.share(state)
        assert state is not None
        if state.step > 0:
            self.trainer.load(self.work / state.trainer, state.step)
            _log.info("going on from the checkpoint of step %d in %s", state.step, self.work)
        return state

    def _read_state(self) -> _State:
        of = self._of() if self.keep else {}
        path = self.work / "state.json"
        if not self.keep or not path.exists():
            return _State(step=0, of=of, trainer="")
        try:
            state = msgspec.json.decode(path.read_bytes(), type=_State)
        except msgspec.DecodeError as exc:
            raise ValueError(f"{path}: damaged checkpoint ({exc}); remove {self.work} to start again") from None
        if any(Path(name).name != name for name in (state.trainer, state.best or "")):
            raise ValueError(f"{path}: damaged checkpoint (it names files outside its folder); "
                             f"remove {self.work} to start again")
        before = {**_settings(DistillConfig()), **state.of}     # an older version did not know some settings
        differing = sorted(k for k in of.keys() | before.keys() if of.get(k) != before.get(k))
        if self.allow_mixed:
            differing = [k for k in differing if k not in ("version", "instruction set")]
        if {of["instruction set"], state.of.get("instruction set")} >= {None}:      # to or from PyTorch
            differing = [k for k in differing if k != "instruction set"]
        if differing:
            raise ValueError(f"{self.work}: holds the checkpoint of another run (other {', '.join(differing)}); "
                             "remove it, or choose another folder")
        lacking = next((name for name in (state.trainer, state.best) if name is not None and not (self.work / name).is_file()), None)
        if lacking is not None:     # nothing can go on from what is left of it
            _log.warning("%s: %s, which state.json names, is missing; the training begins anew", self.work, lacking)
            return _State(step=0, of=of, trainer="")
        return msgspec.structs.replace(state, of=of)

    def _checkpoint(self) -> None:
        if not (self.keep and self.main) or self.state.step == 0:
            return
        self.state.trainer = f"trainer-{self.state.step}.safetensors"
        self.trainer.save(self.work / self.state.trainer)
        with data.atomic_file(self.work / "state.json") as file:     # from here on the new files are the checkpoint
            file.write(msgspec.json.encode(self.state))
        for path in self.work.iterdir():
            if path.name not in ("state.json", self.state.trainer, self.state.best):
                path.unlink()

    def finish(self) -> int:
        """Go back to the best step and return it."""
        state = self.state
        if state.best_step is None or not len(self.validation):
            return state.step
        if state.best_step != state.step and state.best is not None:
            self.trainer.load(self.work / state.best, state.step, False)
        return state.best_step

    def scores(self) -> NDArray[np.float64]:
        """P(unsafe) of the validation rows at the best step."""
        if self.best_scores is None:
            self.best_scores = _unsafe(self._logits()) if len(self.validation) else np.zeros(0)
        return self.best_scores

    def guard(self) -> Guard:
        """Return the trained student as a Guard."""
        self.trainer.settle()
        return Guard.from_params(self.params, self.folder)

    def save(self, guard: Guard) -> None:
        """Write the guard, or the adapter, and then drop the checkpoint."""
        if self.main:
            self._write(guard)
        if self.torch is not None:
            self.torch.share(None)      # nobody returns before it is written

    def _write(self, guard: Guard) -> None:
        if self.out.resolve() not in (self.source.resolve(), self.folder.resolve()):
            for name in ("config.json", "model.safetensors", *tokenizer_files(self.out)):      # an earlier guard's would be opened with this one
                (self.out / name).unlink(missing_ok=True)
        data.remove_temporaries(self.out, (*runs.GUARD_FILES, "thresholds.json"))
        if self.config.lora_rank and self.config.layers is None and self.folder == self.source:
            self.trainer.save_adapter(self.out / adapters.WEIGHTS, "float16")
            data.write_json(self.out / adapters.CONFIG, self._adapter_config())
            if students.unsafe_first(self.folder):      # the adapter's head has 1 unsafe, whatever its base says
                names = {"id2label": {"0": "safe", "1": "unsafe"}, "label2id": {"safe": 0, "unsafe": 1}}
                data.write_json(self.out / "config.json", {**data.read_object(self.folder / "config.json"), **names})
            write_thresholds(self.out, guard.thresholds)
        else:
            guard.save_pretrained(self.out)
        (self.work / "state.json").unlink(missing_ok=True)      # first: without it the rest is no checkpoint
        shutil.rmtree(self.work)

    def _adapter_config(self) -> dict[str, Any]:
        """What PEFT reads; trained biases stand in the adapter's file, and modules_to_save names whole modules."""
        config = self.config
        student = os.path.abspath(config.student) if os.path.exists(config.student) else config.student
        return {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": student, "r": config.lora_rank,
                "lora_alpha": config.lora_alpha, "lora_dropout": 0.0, "target_modules": list(self.lora_targets),
                "modules_to_save": ["classifier"], "bias": "all", "fan_in_fan_out": False,
                "inference_mode": True}


def _unsafe(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """P(unsafe) of one or two logits."""
    margin = logits[:, -1].astype(np.float64) - (logits[:, 0] if logits.shape[1] == 2 else 0.0)
    return np.asarray(np.exp(-np.logaddexp(0.0, -margin)))
