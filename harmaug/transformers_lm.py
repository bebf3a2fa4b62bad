"""Causal language models on PyTorch and transformers, for GPUs: generators, and guards to be read as teachers."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import _C, models
from harmaug.chat import ChatTemplate
from harmaug.checks import one_of
from harmaug.generator import CausalLM, Generation, Request, SamplerConfig
from harmaug.guard import Guard
from harmaug.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")


def load(kind: str, folder: os.PathLike[str], device: str | None, dtype: str | None) -> Any:
    """The model of a folder by one of transformers' Auto classes, ready to be asked; an ImportError names the extra."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(f"a model on transformers needs {error.name}: pip install 'harmaug[torch]'") from None
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if found is None else str(found)
    name = one_of("dtype", dtype or ("float32" if device == "cpu" else "bfloat16"), DTYPES)
    try:
        model = getattr(transformers, kind).from_pretrained(folder, dtype=name, local_files_only=True)
        return model.to(device).eval()
    except RuntimeError as error:       # no such device
        raise ValueError(f"{folder} on {device}: {' '.join(str(error).split())[:300]}") from None


class TransformersLM(CausalLM):
    """A causal language model on PyTorch, with the interface of CausalLM.

    Tokens, chat template, sampler and random numbers are CausalLM's own, so a sample is a function of the model, the
    prompt and (seed, index) up to the rounding of the logits, which the batch and the device change: rows that are
    sampled here are recorded, not reproducible to the bit. GGUF files are for CausalLM.

    Attributes
    ----------
    batch_size : int
        Sequences that a teacher reads together.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, *, batch_size: int = 32, **about: Any) -> None:
        self.torch_model, self.batch_size = model, batch_size
        super().__init__(model, tokenizer, **about)
        self._context = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], dtype: str | None = None,
                        n_threads: int | None = None, *, device: str | None = None, batch_size: int = 32,
                        download: bool = False) -> TransformersLM:
        """Open a model.

        Parameters
        ----------
        path : str or path-like
            A Hugging Face folder, or a name that `harmaug.models.resolve` knows.
        dtype : {None, "float32", "bfloat16", "float16"}
            None: bfloat16 on a GPU, float32 on the CPU.
        n_threads : int, optional
            Not looked at: PyTorch's own, on the CPU.
        device : str, optional
            As PyTorch names it. None: its accelerator, where there is one, else the CPU.
        batch_size : int, default 32
        download : bool, default False
            Whether a name may be fetched over the network.
        """
        folder, known = models.resolve(path, download=download), models.known_at(path)
        if not (folder / "config.json").exists():
            raise ValueError(f"{folder}: transformers opens Hugging Face folders, with config.json")
        return cls(load("AutoModelForCausalLM", folder, device, dtype), Tokenizer.from_pretrained(folder), batch_size=batch_size,
                   template=ChatTemplate.read(folder), name=known.name if known else folder.resolve().name,
                   licence=known.licence if known else None)

    @property
    def config(self) -> dict[str, Any]:
        """As config.json has it."""
        return self.torch_model.config.to_dict()    # type: ignore[no-any-return]

    @property
    def dtype(self) -> str:
        """The format of the weights."""
        return str(self.torch_model.dtype).removeprefix("torch.")

    def encode(self, prompt: str) -> list[int]:
        """Return a prompt's ids, see CausalLM.encode; a ValueError if they exceed the model's context."""
        ids = super().encode(prompt)
        if len(ids) > self._context:
            raise ValueError(f"{len(ids)} tokens exceed the context of {self._context}")
        return ids

    def logits(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Next-token logits after each prefix of `ids`, shape (n, vocab_size)."""
        import torch

        row = torch.as_tensor(np.atleast_2d(np.asarray(ids, dtype=np.int64)), device=self.torch_model.device)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.torch_model(input_ids=row, use_cache=False).logits[0].float().cpu().numpy()
        return found

    def rows_reader(self) -> Callable[[Sequence[Sequence[int]]], Iterable[NDArray[np.float32]]]:
        """Return what gives next-token logits after each of several rows of ids, which are read together."""
        return lambda rows: self._read(rows, use_cache=False)[0]

    def stream(self, requests: Iterable[Request], *, batch_size: int = 32, seed: int = 0,
               sampling: SamplerConfig | None = None) -> Iterator[tuple[int, int, Generation]]:
        """Sample for many prompts, see CausalLM.stream; `batch_size` samples are begun together, and ended ones leave."""
        sampling = sampling or SamplerConfig()
        samples = self._samples(requests, sampling)
        while batch := list(islice(samples, batch_size)):
            for sample in self._decode(batch, seed, sampling):
                yield sample.request, sample.number, sample.generation()

    def generate(self, prompt: Any, n: int = 1, *args: Any, stop: str | Sequence[str] | None = None, first_index: int = 0,
                 batch_size: int = 32, **sampling: Any) -> list[Generation]:
        """Sample `n` continuations of one prompt of text: the options of SamplerConfig, by name."""
        if args or not isinstance(prompt, str):
            raise TypeError("generate: a prompt of text, n, and options by name")
        request = Request(prompt=prompt, n=n, first_index=first_index, stop=(stop,) if isinstance(stop, str) else tuple(stop or ()))
        found = self.stream([request], batch_size=batch_size, seed=sampling.get("seed", 0), sampling=SamplerConfig(**sampling))
        return [generation for _, _, generation in sorted(found, key=lambda item: item[1])]

    def _samples(self, requests: Iterable[Request], sampling: SamplerConfig) -> Iterator[_Sample]:
        for at, request in enumerate(requests):
            try:
                ids = self.encode(request.prompt)
                if not ids or len(ids) + sampling.max_new_tokens > self._context:
                    raise ValueError(f"a prompt of {len(ids)} tokens with max_new_tokens {sampling.max_new_tokens} behind it; "
                                     f"1 to {self._context} together are wanted")
            except ValueError as error:
                raise ValueError(f"request {at}: {error}") from None
            stops = [stop.encode() for stop in request.stop]
            yield from (_Sample(at, i, request.first_index + i, ids, stops) for i in range(request.n))

    def _read(self, rows: Sequence[Sequence[int]], use_cache: bool) -> tuple[NDArray[np.float32], Any]:
        """Logits after each row, padded on the left, and the keys and values."""
        longest = max(map(len, rows))
        ids, mask = np.zeros((2, len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, longest - len(row):], mask[i, longest - len(row):] = row, 1
        return self._forward(ids, mask, None, use_cache)

    def _forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: Any, use_cache: bool = True) -> tuple[NDArray[np.float32], Any]:
        import torch

        device = self.torch_model.device
        places = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1]:]
        inputs = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device)
                  for name, array in (("input_ids", ids), ("attention_mask", mask), ("position_ids", places))}
        with torch.inference_mode():
            out = self.torch_model(**inputs, past_key_values=cache, use_cache=use_cache, logits_to_keep=1)
        return out.logits[:, -1].float().cpu().numpy(), out.past_key_values

    def _decode(self, live: list[_Sample], seed: int, sampling: SamplerConfig) -> Iterator[_Sample]:
        """Sample all of a batch; each is yielded when it ends."""
        import torch

        lengths = [len(sample.prompt) for sample in live]
        prompts = list({sample.request: sample.prompt for sample in live}.values())
        of_request = {request: i for i, request in enumerate(dict.fromkeys(sample.request for sample in live))}
        where = [of_request[sample.request] for sample in live]
        logits, cache = self._read(prompts, use_cache=True)     # once for all samples of a prompt
        cache.batch_select_indices(torch.tensor(where, device=self.torch_model.device))
        logits, banned = logits[where], self._banned(sampling)
        mask = np.array([[0] * (max(lengths) - n) + [1] * n for n in lengths], np.int64)
        ends = {*self.stop_ids, *sampling.stop_token_ids}
        while True:
            for sample, row in zip(live, logits):
                self._draw(sample, row, seed, sampling, banned, ends)
            kept = [i for i, sample in enumerate(live) if not sample.reason]
            yield from (sample for sample in live if sample.reason)
            if not kept:
                return
            if len(kept) < len(live):
                live, mask = [live[i] for i in kept], mask[kept]
                cache.batch_select_indices(torch.tensor(kept, device=self.torch_model.device))
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            logits, cache = self._forward(np.array([[sample.ids[-1]] for sample in live], np.int64), mask, cache)

    def _draw(self, sample: _Sample, logits: NDArray[np.float32], seed: int, s: SamplerConfig, banned: Sequence[Sequence[int]],
              ends: set[int]) -> None:
        recent = sample.prompt[-max(map(len, banned), default=0):] + sample.ids if banned else []
        forbidden = [run[-1] for run in banned if len(run) == 1 or recent[1 - len(run):] == list(run[:-1])]
        forbidden += ends if len(sample.ids) < s.min_new_tokens else ()
        uniform = _C.sampler_uniform(seed, sample.index, len(sample.ids))
        token, logprob = _C.sampler_draw(
            logits, uniform, prompt=sample.prompt, ids=sample.ids, banned=forbidden, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p,
            min_p=s.min_p, typical_p=s.typical_p, repetition_penalty=s.repetition_penalty, presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty)
        sample.ids.append(token)
        sample.logprob += logprob
        if token in ends:
            sample.reason = "eos"
            return
        if sample.add(self.tokenizer._tokenizer.token_bytes(token), len(sample.ids) >= s.min_new_tokens):
            sample.reason = "stop"
        elif len(sample.ids) == s.max_new_tokens:
            sample.reason = "length"

    def _find_stop_ids(self) -> tuple[int, ...]:
        found: list[int] = []
        for config in (self.torch_model.generation_config, self.torch_model.config):
            ids = getattr(config, "eos_token_id", None)
            found += [ids] if isinstance(ids, int) else ids or []
        return tuple(dict.fromkeys(found))


def run_on(guard: Guard, device: str | None = None, dtype: str | None = None) -> None:
    """Have a guard take its logits from transformers' model of its folder, on `device`; windows and labels stay its own."""
    if guard._adapter is not None:
        raise ValueError(f"{guard._adapter}: an adapter does not run on transformers; save the merged guard first (guard.save_pretrained)")
    model = load("AutoModelForSequenceClassification", guard._folder, device, dtype)
    import torch

    with_types = guard.config["type_vocab_size"] > 1

    def logits(*rows: NDArray[Any]) -> NDArray[np.float32]:
        arrays = _C.pad_rows(*rows, pad_id=model.config.pad_token_id or 0, wide=True)
        names = ("input_ids", "attention_mask", "token_type_ids")[:3 if with_types else 2]
        with torch.inference_mode():
            out = model(**{name: torch.from_numpy(array).to(model.device) for name, array in zip(names, arrays)})
        return out.logits.float().cpu().numpy()     # type: ignore[no-any-return]

    guard._source = logits


@dataclass(slots=True)
class _Sample:
    """A sample on its way."""

    request: int
    number: int
    index: int      # of its random numbers
    prompt: list[int]
    stops: list[bytes]
    ids: list[int] = field(default_factory=list)
    text: bytes = b""
    logprob: float = 0.0
    reason: str = ""

    def add(self, token: bytes, counts: bool) -> bool:
        """Lengthen the text; end it before the first stop string that this completes behind the first character that is no white space."""
        overlap = max(map(len, self.stops), default=1) - 1
        begin = len(self.text) - overlap
        self.text += token
        begin = max(begin, len(self.text) - len(self.text.lstrip()))
        found = [at for stop in self.stops if counts and (at := self.text.find(stop, begin)) >= 0]
        if found and begin < len(self.text):
            self.text = self.text[:min(found)]
            return True
        return False

    def generation(self) -> Generation:
        return Generation(text=self.text.decode(errors="replace"), ids=tuple(self.ids), logprob=self.logprob, stop_reason=self.reason)
