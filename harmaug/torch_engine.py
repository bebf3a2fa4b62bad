"""Distillation on PyTorch and accelerate: one GPU, or several and several machines under torchrun.

``torchrun --standalone --nproc-per-node 8 -m harmaug distil run.toml --engine torch``, or a script that calls `Distiller.fit` in every
process. Rows, their order, loss, schedule, decay, clipping, validation, checkpoints and what is written are those of the
native engine: a run that one engine began the other goes on with.

What differs. Dropout masks come from torch's generator, seeded by (seed, step, process), so with dropout the two engines
draw different ones; without it their losses agree to rounding. `micro_tokens` counts padding, and holds for each process.
A step's rows are dealt out to the processes, which must be no more than the rows. Sums over processes are not the same
to the bit for another number of them, nor GPU kernels from run to run. Validation scores are computed here too.
"""
from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harmaug import _C, data
from harmaug.batches import Ragged, take
from harmaug.distill import DistillConfig
from harmaug.guard import Guard
from harmaug.torch_processes import accelerator, share

_T = TypeVar("_T")


class TorchTrainer:
    """Steps on PyTorch, with the methods of `_C.Trainer` and files in its layout.

    Parameters
    ----------
    config : DistillConfig
    params : EncoderParams
        What is trained; `settle` brings it up to date.
    folder : Path
        The student's: its config.json and tokenizer.
    native : _C.Trainer
        Made on `params`: says which weights are trained and where LoRA's factors begin.
    lora_targets : sequence of str
    dropouts : mapping
        Settings of config.json to their values.
    """

    def __init__(self, config: DistillConfig, params: _C.EncoderParams, folder: Path, native: _C.Trainer,
                 lora_targets: Sequence[str], dropouts: Mapping[str, float]) -> None:
        self._accelerator = accelerator()
        import torch

        self._torch, self._config, self._params, self._native = torch, config, params, native
        self.main: bool = self._accelerator.is_main_process
        self.steps = 0
        if config.n_threads:
            torch.set_num_threads(config.n_threads)
        self._model = _build(params, folder, dropouts).to(self._accelerator.device)
        if config.gradient_checkpointing:
            self._model.activation_checkpointing_enable({"use_reentrant": False})
        self._trained = self._choose_trained(lora_targets)
        groups: dict[tuple[float, float], list[Any]] = {}
        for name, parameters in self._trained.items():
            for p, level in parameters:
                decay = config.weight_decay if p.ndim > 1 else 0.0
                groups.setdefault((config.layer_decay ** level, decay), []).append(p)
        self._optimizer = torch.optim.AdamW([{"params": parameters, "scale": scale, "weight_decay": decay}
                                             for (scale, decay), parameters in groups.items()])
        self._wrapped = self._accelerator.prepare(self._model)

    def _choose_trained(self, lora_targets: Sequence[str]) -> dict[str, list[tuple[Any, int]]]:
        """The parameters that a checkpoint holds under each name, with their levels below the head; others are frozen."""
        torch, params = self._torch, self._params
        with tempfile.TemporaryDirectory(prefix="harmaug-") as scratch:
            path = Path(scratch) / "start.safetensors"
            self._native.save(path, False)
            file = _C.TensorFile(path)
            names = [name.removeprefix("w.") for name in file.names]
            factors = file.read("w.lora") if "lora" in names else None
        found = dict(self._model.named_parameters())
        missing = [name for name in names if name not in found and name != "lora"]
        if missing:
            raise ValueError(f"the torch engine: transformers' {type(self._model).__name__} has no parameter {missing[0]}")
        for p in self._model.parameters():
            p.requires_grad_(False)
        trained = {name: [(found[name].requires_grad_(), params.depth(name))] for name in names if name != "lora"}
        if factors is None:
            return trained
        trained["lora"], at, rank = [], 0, self._config.lora_rank
        for name in params.names:
            module = name.removesuffix(".weight")
            hit = any(f".{module}".endswith(f".{target}") for target in lora_targets)
            if not hit or module == name or "embeddings." in name or len(params.shape(name)) != 2:
                continue
            rows, columns = params.shape(name)
            for shape in ((rank, columns), (rows, rank)):
                end = at + shape[0] * shape[1]
                factor = torch.nn.Parameter(torch.from_numpy(factors[at:end].reshape(shape)).to(self._accelerator.device))
                trained["lora"].append((factor, params.depth(name)))
                at = end
            (a, _), (b, _) = trained["lora"][-2:]
            _adapt(self._model.get_submodule(module), a, b, self._config.lora_alpha / rank)
        assert at == len(factors)
        return trained

    # -- steps --

    def step(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], hard: NDArray[np.int8], soft: NDArray[np.float32],
             weights: NDArray[np.float32], *, lr: float, type_ids: NDArray[np.uint8]) -> dict[str, Any]:
        """One optimizer step, as `_C.Trainer.step`; each process works on its share of the rows."""
        torch, world, c = self._torch, self._accelerator.num_processes, self._config
        if len(hard) < world:
            raise ValueError(f"a step of {len(hard)} rows cannot be dealt out to {world} processes")
        torch.manual_seed(hash((c.seed, self.steps, self._accelerator.process_index)))
        self._wrapped.train()
        terms, parts = _terms(hard, soft, weights, c), list(self._parts(offsets))
        loss = torch.zeros((), device=self._accelerator.device)
        for rows in parts:
            last = rows is parts[-1]
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._wrapped):
                part = self._loss(self._forward(self._wrapped, take(rows, ids, offsets, type_ids)), terms[:, rows])
                self._accelerator.backward(part * world)      # gradients are averaged over the processes
            loss += part.detach()
        total = float(self._accelerator.reduce(loss, "sum"))
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, c.clip_norm or math.inf))
        for value, what in ((total, f"loss is not finite ({total:g})"), (norm, "gradient is not finite")):
            if not math.isfinite(value):
                self._optimizer.zero_grad()
                raise ValueError(f"step {self.steps + 1}: the {what}: weights are left as after step {self.steps}; "
                                 "a lower learning rate may help")
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        return {"loss": total, "grad_norm": norm, "tokens": int(offsets[-1]), "step": self.steps}

    def logits(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], types: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of rows, which the processes share out."""
        torch = self._torch
        self._model.eval()
        out = torch.zeros((len(offsets) - 1, self._params.config["num_labels"]), device=self._accelerator.device)
        with torch.no_grad():
            for rows in self._parts(offsets):
                out[torch.from_numpy(rows)] = self._forward(self._model, take(rows, ids, offsets, types))
        return self._accelerator.reduce(out, "sum").cpu().numpy()   # type: ignore[no-any-return]

    def _parts(self, offsets: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """This process's rows, the longest first, in parts of at most micro_tokens, padding counted."""
        lengths = np.diff(offsets)
        order = np.argsort(-lengths, kind="stable")[self._accelerator.process_index::self._accelerator.num_processes]
        while len(order):
            fit = max(1, self._config.micro_tokens // int(lengths[order[0]])) if self._config.micro_tokens else len(order)
            yield order[:fit]
            order = order[fit:]

    def _forward(self, model: Any, batch: Ragged) -> Any:
        torch, device = self._torch, self._accelerator.device
        ids, mask, types = (torch.from_numpy(array).to(device) for array in
                            _C.pad_rows(*batch, pad_id=self._model.config.pad_token_id or 0, wide=True))
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._params.config["type_vocab_size"] > 1:
            inputs["token_type_ids"] = types
        with torch.autocast(device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16"):
            return model(**inputs).logits.float()

    def _loss(self, logits: Any, terms: NDArray[np.float32]) -> Any:
        """The sum over rows of what `_terms` gives."""
        torch = self._torch
        ce, kl, sign, teacher, entropy = torch.from_numpy(np.ascontiguousarray(terms)).to(logits.device)
        margin = logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
        soft, softplus = margin / self._config.temperature, torch.nn.functional.softplus
        kl_loss = entropy + teacher * softplus(-soft) + (1 - teacher) * softplus(soft)
        return (ce * softplus(sign * margin) + kl * kl_loss).sum()

    # -- files --

    def save(self, path: Path, moments: bool = True) -> None:
        """Write weights, and moments, as `_C.Trainer.save` does; the first process alone writes."""
        if self.main:
            from safetensors.numpy import save

            with data.atomic_file(path) as file:
                file.write(save(dict(self._tensors(moments))))

    def _tensors(self, moments: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
        word = self._params.names[0]
        for name, parameters in self._trained.items():
            yield f"w.{name}", _flat([p.detach() for p, _ in parameters], name)
            if not moments:
                continue
            m, v = (_flat([self._moment(p, which) for p, _ in parameters], name) for which in ("exp_avg", "exp_avg_sq"))
            if name == word:        # rows that no step has touched have none
                seen = ((m != 0) | (v != 0)).any(axis=1)
                if not seen.any():
                    continue
                yield f"seen.{name}", seen.astype(np.float32)
                m, v = m[seen], v[seen]
            yield f"m.{name}", m
            yield f"v.{name}", v

    def _moment(self, parameter: Any, which: str) -> Any:
        state = self._optimizer.state.get(parameter)
        return state[which] if state else self._torch.zeros_like(parameter)

    def load(self, path: Path, steps: int, moments: bool = True) -> None:
        """Go on from a saved state, of either engine; the first process reads, the others get it from there."""
        from accelerate.utils import broadcast

        if self.main:
            self._native.load(path, steps, moments)      # the checks of everything that is read
        file = _C.TensorFile(path) if self.main else None
        torch = self._torch
        for name, parameters in self._trained.items():
            read = [self._read(file, prefix, name) for prefix in ("w", "m", "v")[:3 if moments else 1]]
            at = 0
            for p, _ in parameters:
                values = []
                for array in read:
                    part = torch.zeros_like(p) if array is None else torch.from_numpy(array.ravel()[at:at + p.numel()]).reshape(p.shape)
                    values.append(broadcast(part.to(p.device).contiguous()))
                at += p.numel()
                p.data.copy_(values[0])
                if moments:
                    self._optimizer.state[p] = {"step": torch.tensor(float(steps)), "exp_avg": values[1], "exp_avg_sq": values[2]}
        self.steps = steps

    def _read(self, file: _C.TensorFile | None, prefix: str, name: str) -> NDArray[np.float32] | None:
        """A tensor of a checkpoint, the word embedding's moments with all rows; None: zeros, or another process's."""
        if file is None:
            return None
        if prefix == "w" or name != self._params.names[0]:
            return file.read(f"{prefix}.{name}")
        if f"seen.{name}" not in file.names:
            return None
        whole = np.zeros(self._params.shape(name), np.float32)
        whole[file.read(f"seen.{name}") != 0] = file.read(f"{prefix}.{name}")
        return whole

    def settle(self) -> None:
        """Bring `params` up to date, in the first process and in the others."""
        with tempfile.TemporaryDirectory(prefix="harmaug-") as scratch:
            path = Path(scratch) / "weights.safetensors"
            from safetensors.numpy import save_file

            save_file(dict(self._tensors(False)), path)
            self._native.load(path, self.steps, False)

    def save_adapter(self, path: Path, dtype: str = "float16") -> None:
        """Write LoRA's factors under PEFT's names, as `_C.Trainer.save_adapter`."""
        self.settle()
        self._native.save_adapter(path, dtype)

    def any(self, flag: bool) -> bool:
        """Whether it is set in any process."""
        if self._accelerator.num_processes == 1:
            return flag
        return bool(self._accelerator.reduce(self._torch.tensor(float(flag), device=self._accelerator.device), "sum") > 0)

    def release(self) -> None:
        """Have accelerate forget the model and the optimizer, which it keeps otherwise."""
        self._accelerator.free_memory()

    def share(self, value: _T) -> _T:
        """Return the first process's value."""
        return share(value)


def _build(params: _C.EncoderParams, folder: Path, dropouts: Mapping[str, float]) -> Any:
    """transformers' model of the weights, with the probabilities of dropout."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    with tempfile.TemporaryDirectory(prefix="harmaug-") as scratch:
        Guard.from_params(params, folder).save_pretrained(scratch)
        config = AutoConfig.from_pretrained(scratch)
        for name, value in dropouts.items():
            setattr(config, name, value)
        for name, value in (("pooler_dropout", 0.0), ("embedding_dropout", next(iter(dropouts.values())))):
            if hasattr(config, name):       # `students.dropouts` refused others
                setattr(config, name, value)
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return AutoModelForSequenceClassification.from_pretrained(scratch, config=config, dtype="float32")
        finally:
            if shown:
                logging.enable_progress_bar()


def _adapt(linear: Any, a: Any, b: Any, scale: float) -> None:
    """Have a Linear compute W x + scale * B A x (Hu et al. 2021, arXiv 2106.09685, eq. 3), the factors its parameters."""
    from torch.nn.functional import linear as product

    linear.register_parameter("lora_A", a)
    linear.register_parameter("lora_B", b)
    linear.register_forward_hook(lambda module, given, out: out + scale * product(product(given[0], module.lora_A), module.lora_B))


def _flat(tensors: Sequence[Any], name: str) -> NDArray[np.float32]:
    """A parameter as it is; LoRA's factors one behind the other."""
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    return np.concatenate([array.ravel() for array in arrays]) if name == "lora" else np.ascontiguousarray(arrays[0])


def _terms(hard: NDArray[np.int8], soft: NDArray[np.float32], weights: NDArray[np.float32], c: DistillConfig) -> NDArray[np.float32]:
    """What the loss of each row is made of, shape (5, n).

    Factors of the hard and of the soft term, the row's share of the weights in them; the hard label's sign; the softened
    teacher's P(unsafe), and its entropy's negative. A row that lacks one label gives the other term the weight of both.
    """
    has_hard, has_soft = hard >= 0, ~np.isnan(soft)
    ce = np.where(has_hard, c.ce_weight + np.where(has_soft | (c.ce_weight == 0), 0, c.kl_weight), 0)
    kl = np.where(has_soft, c.kl_weight + np.where(has_hard | (c.kl_weight == 0), 0, c.ce_weight), 0)
    q = np.where(has_soft, soft, 0.5).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = 1 / (1 + ((1 - q) / q) ** (1 / c.temperature))
        entropy = np.nan_to_num(q * np.log(q)) + np.nan_to_num((1 - q) * np.log1p(-q))
    share_of = weights / weights.sum(dtype=np.float64)
    return np.stack([ce * share_of, kl * share_of * c.temperature**2, np.where(hard == 1, -1, 1), q, entropy]).astype(np.float32)
