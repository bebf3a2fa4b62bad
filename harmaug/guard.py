"""A guard: a small encoder that gives P(unsafe) for a prompt, or for a prompt and its response."""
from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harmaug import _C, models
from harmaug.tokenizer import Encoding, Tokenizer

__all__ = ["Guard", "ScoreDetails"]

UNSAFE_NAMES = ("unsafe", "harmful", "toxic", "malicious")
"""Labels of id2label, in any case, that mean unsafe."""
SAFE_NAMES = ("safe", "harmless", "unharmful", "benign", "non-toxic", "not_toxic")
LONG = ("windows", "truncate", "error")
_BLOCK_ROWS = 512           # rows tokenized at once: memory stays bounded, Ctrl-C is answered between blocks
_CALL_TOKENS = 16384        # tokens of one call of the encoder
_ADAPTER_PREFIX = "base_model.model."

Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ScoreDetails:
    """What a score rests on; each field has one element per row.

    Attributes
    ----------
    score : ndarray of float32
        P(unsafe).
    n_windows : ndarray of int32
        Windows that were read; 1 where the row fitted.
    window : ndarray of int32
        The window that decided, from 0.
    n_tokens : ndarray of int32
        Tokens of the whole row, special tokens included.
    truncated : ndarray of int32
        Tokens that were dropped; 0 unless ``long="truncate"``.
    """

    score: NDArray[np.float32]
    n_windows: NDArray[np.int32]
    window: NDArray[np.int32]
    n_tokens: NDArray[np.int32]
    truncated: NDArray[np.int32]


class Guard:
    """A text classifier that gives P(unsafe); `from_pretrained` opens one.

    Scores do not depend on batch size, order or thread count. A row is a prompt, or a prompt and a response; ``None`` and ``""`` as
    response both mean that there is none. An empty prompt is legal.

    Attributes
    ----------
    config : dict
        Extents of the model under their names in BERT's config.json, its class in transformers ("architecture"), and the most tokens that it reads
        ("max_tokens").
    max_length : int
        Tokens that the model reads at once, special tokens included.
    long : str
        What becomes of a longer row: "windows", "truncate" or "error".
    threshold : float
        A row is flagged when its score is at least this. From thresholds.json, else 0.5.
    unsafe_index : int
        The logit that means unsafe.
    """

    def __init__(self, encoder: _C.Encoder, tokenizer: Tokenizer, settings: Mapping[str, Any], folder: Path, *, adapter: Path | None = None,
                 params: _C.EncoderParams | None = None, max_length: int | None = None, long: str = "windows") -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.config: dict[str, Any] = encoder.config
        self._settings, self._folder, self._adapter, self._params = dict(settings), folder, adapter, params
        source = adapter or folder
        self.unsafe_index = _unsafe_index(self._settings.get("id2label"), self.config["num_labels"], source)
        self.long = _one_of("long", long, LONG)
        if tokenizer.vocab_size > self.config["vocab_size"]:
            raise _C.FormatError(f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, the model {self.config['vocab_size']}")
        self._template = _Template(tokenizer)
        self.max_length = self._max_length(max_length)
        self.thresholds: dict[str, Any] = _read_json(source / "thresholds.json") if (source / "thresholds.json").exists() else {}
        self.threshold = _threshold(self.thresholds, source / "thresholds.json")

    @classmethod
    def from_pretrained(cls, folder_or_name: str | os.PathLike[str], dtype: str = "float32", n_threads: int | None = None, *,
                        download: bool = False, max_length: int | None = None, long: str = "windows") -> Guard:
        """Open a guard.

        Parameters
        ----------
        folder_or_name : str or path-like
            A Hugging Face folder (config.json, model.safetensors, a tokenizer), a folder with a LoRA adapter in PEFT's format, whose base model
            is found by its name or beside it, or the name of a fetched model.
        dtype : str, default "float32"
            Storage of the weights: "float32" or "bfloat16".
        n_threads : int, optional
            None: the library's default.
        download : bool, default False
            Whether the network may be used for a name that is not here.
        max_length : int, optional
            Tokens read at once. None: model_max_length of tokenizer_config.json when it is below 1e6, else max_position_embeddings.
        long : str, default "windows"
            What becomes of a row of more tokens. "windows": windows of max_length tokens that overlap by max_length // 4 are read, and the one with the
            highest P(unsafe) decides. Of a pair, the side that is longer than half the room slides, while the other stays whole; when both are, each slides
            beside the first half of the other, so that every token is read. "truncate": the end of the longer side is dropped. "error": ValueError.

        Returns
        -------
        Guard

        Raises
        ------
        FileNotFoundError
            No such folder or fetched model.
        harmaug.FormatError
            A damaged file, or a model that is not supported, by name.
        ValueError
            An argument outside its range, or labels of which none can be told to mean unsafe.

        Examples
        --------
        >>> guard = Guard.from_pretrained("guard")          # doctest: +SKIP
        >>> guard.score(["How do I bake bread?"])           # doctest: +SKIP
        array([0.0123], dtype=float32)
        """
        folder = models.resolve(folder_or_name, download=download)
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: a guard is a folder with config.json and model.safetensors")
        threads = _thread_count(n_threads)
        if (folder / "adapter_config.json").exists():
            return cls._from_adapter(folder, dtype, threads, download=download, max_length=max_length, long=long)
        encoder = _C.Encoder(folder, dtype=dtype, n_threads=threads)
        return cls(encoder, Tokenizer.from_pretrained(folder), _read_json(folder / "config.json"), folder, max_length=max_length, long=long)

    @classmethod
    def from_params(cls, params: _C.EncoderParams, folder: str | os.PathLike[str], dtype: str = "float32", n_threads: int | None = None, *,
                    max_length: int | None = None, long: str = "windows") -> Guard:
        """Make a guard of weights in memory.

        Parameters
        ----------
        params : EncoderParams
            Copied where the encoder needs them, and kept for `save_pretrained`.
        folder : str or path-like
            Where config.json and the tokenizer come from. With two labels, 0 is safe and 1 unsafe.
        dtype, n_threads, max_length, long
            As for `from_pretrained`.

        Returns
        -------
        Guard
        """
        folder = Path(folder)
        encoder = _C.Encoder.from_params(params, dtype=dtype, n_threads=_thread_count(n_threads))
        settings = {**_read_json(folder / "config.json"), "id2label": _labels(encoder.config["num_labels"])}
        return cls(encoder, Tokenizer.from_pretrained(folder), settings, folder, params=params, max_length=max_length, long=long)

    @classmethod
    def _from_adapter(cls, adapter: Path, dtype: str, n_threads: int, *, download: bool, max_length: int | None, long: str) -> Guard:
        base = _adapter_base(adapter, download)
        params = _merge_adapter(adapter, base)
        settings = _read_json(base / "config.json")
        if (adapter / "config.json").exists():
            settings |= _read_json(adapter / "config.json")
        elif len(settings.get("id2label") or ()) != params.config["num_labels"]:
            settings["id2label"] = _labels(params.config["num_labels"])
        own = any((adapter / name).exists() for name in ("tokenizer.json", "vocab.txt"))
        return cls(_C.Encoder.from_params(params, dtype=dtype, n_threads=n_threads), Tokenizer.from_pretrained(adapter if own else base),
                   settings, base, adapter=adapter, max_length=max_length, long=long)

    def __repr__(self) -> str:
        c = self.config
        return (f"Guard({os.fspath(self._adapter or self._folder)!r}, {c['model_type']}, {c['num_hidden_layers']} layers of {c['hidden_size']}, "
                f"{c['num_labels']} labels, {self.encoder.dtype}, max_length={self.max_length}, long={self.long!r})")

    # -- scoring --

    def logits(self, prompts: Prompt | Iterable[Prompt], responses: str | Iterable[str | None] | None = None, *, long: str | None = None) -> NDArray[np.float32]:
        """Class scores of each row; of a long row, those of the window with the highest P(unsafe).

        Parameters
        ----------
        prompts : str, conversation, or iterable of these
            A conversation is a list of ``{"role": ..., "content": ...}``: its last message, when the assistant's, is the response, the contents before
            it, one a line, are the prompt. One str or one conversation is one row.
        responses : str or iterable of (str or None), optional
            As many as prompts.
        long : str, optional
            None: that of the guard.

        Returns
        -------
        ndarray, shape (n, num_labels), float32

        Raises
        ------
        ValueError, TypeError
            Naming the row.
        """
        return self._run(prompts, responses, long)[0]

    def score(self, prompts: Prompt | Iterable[Prompt], responses: str | Iterable[str | None] | None = None, *, long: str | None = None) -> NDArray[np.float32]:
        """P(unsafe) of each row: the sigmoid of a single logit, else the softmax at `unsafe_index`.

        Parameters
        ----------
        prompts, responses, long
            As for `logits`.

        Returns
        -------
        ndarray, shape (n,), float32
        """
        return self._probability(self._run(prompts, responses, long)[0])

    def score_details(self, prompts: Prompt | Iterable[Prompt], responses: str | Iterable[str | None] | None = None, *, long: str | None = None) -> ScoreDetails:
        """P(unsafe) of each row and what it rests on.

        Parameters
        ----------
        prompts, responses, long
            As for `logits`.

        Returns
        -------
        ScoreDetails
        """
        logits, about = self._run(prompts, responses, long)
        return ScoreDetails(score=self._probability(logits), n_windows=about[:, 0], window=about[:, 1], n_tokens=about[:, 2], truncated=about[:, 3])

    def predict_proba(self, prompts: Prompt | Iterable[Prompt], responses: str | Iterable[str | None] | None = None, *, long: str | None = None) -> NDArray[np.float32]:
        """P(safe) and P(unsafe) of each row.

        Parameters
        ----------
        prompts, responses, long
            As for `logits`.

        Returns
        -------
        ndarray, shape (n, 2), float32
        """
        unsafe = self.score(prompts, responses, long=long)
        return np.stack([1 - unsafe, unsafe], axis=1)

    def predict(self, prompts: Prompt | Iterable[Prompt], responses: str | Iterable[str | None] | None = None, *, long: str | None = None) -> NDArray[np.int64]:
        """1 for each row whose score is at least `threshold`, else 0.

        Warns when the threshold was fitted on rows read in another way (another `long` or `max_length`).

        Parameters
        ----------
        prompts, responses, long
            As for `logits`.

        Returns
        -------
        ndarray, shape (n,), int64
        """
        mode = self.long if long is None else long
        for name, value in (("long", mode), ("max_length", self.max_length)):
            fitted = self.thresholds.get(name, value)
            if fitted != value:
                warnings.warn(f"the threshold {self.threshold:g} was fitted with {name}={fitted!r}, not {value!r}", stacklevel=2)
        return (self.score(prompts, responses, long=long) >= np.float32(self.threshold)).astype(np.int64)

    def set_threshold(self, threshold: float, **about: Any) -> None:
        """Set the threshold that `predict` uses and that `save_pretrained` writes to thresholds.json, with the mode it was fitted in.

        Parameters
        ----------
        threshold : float
            In [0, 1].
        **about
            More to record, for example ``metric="f1"``.
        """
        self.thresholds = {"schema_version": 1, "threshold": float(threshold), "long": self.long, "max_length": self.max_length, **about}
        self.threshold = _threshold(self.thresholds, Path("thresholds.json"))

    def _probability(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        wide = logits.astype(np.float64)
        if wide.shape[1] == 1:
            return np.asarray(np.exp(-np.logaddexp(0, -wide[:, 0])), dtype=np.float32)
        wide -= wide.max(axis=1, keepdims=True, initial=-np.inf)
        unsafe: NDArray[np.float64] = np.exp(wide[:, self.unsafe_index]) / np.exp(wide).sum(axis=1)
        return unsafe.astype(np.float32)

    def _run(self, prompts: Any, responses: Any, long: str | None) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Logits of each row, and (windows, deciding window, tokens, dropped tokens) of each row."""
        mode = self.long if long is None else _one_of("long", long, LONG)
        rows = _rows(prompts, responses)
        logits = np.zeros((len(rows), self.config["num_labels"]), dtype=np.float32)
        about = np.zeros((len(rows), 4), dtype=np.int32)
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = slice(first, min(first + _BLOCK_ROWS, len(rows)))
            self._run_block(rows[block], first, mode, logits[block], about[block])
            bad = np.flatnonzero(~np.isfinite(logits[block]).all(axis=1))
            if bad.size:
                raise ValueError(f"row {first + bad[0]}: {self._adapter or self._folder} gives a score that is no finite number; its weights are damaged")
        return logits, about

    def _run_block(self, rows: list[tuple[str, str | None]], first: int, mode: str, logits: NDArray[np.float32], about: NDArray[np.int32]) -> None:
        encoded = self._encode(rows, first, self.max_length if mode == "truncate" else None)
        ids, offsets, types = encoded.ids, encoded.offsets, encoded.type_ids
        lengths = np.diff(offsets)
        about[:] = np.stack([np.ones_like(lengths), np.zeros_like(lengths), lengths + encoded.truncated, encoded.truncated], axis=1)
        long_rows = np.flatnonzero(lengths > self.max_length)
        if long_rows.size == 0:
            self._encoder_logits(ids, offsets, types, logits)
            return
        if mode == "error":
            row = int(long_rows[0])
            raise ValueError(f"row {first + row} has {lengths[row]} tokens, the guard reads at most {self.max_length}; long='windows' or 'truncate' reads it")
        pieces: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
        owners: list[int] = []
        is_long = set(long_rows.tolist())
        for i, (prompt, response) in enumerate(rows):
            own = list(self._windows(prompt, response)) if i in is_long else [(ids[offsets[i]:offsets[i + 1]], types[offsets[i]:offsets[i + 1]])]
            pieces += own
            owners += [i] * len(own)
        each = np.empty((len(pieces), logits.shape[1]), dtype=np.float32)
        starts = np.concatenate([[0], np.cumsum([len(p) for p, _ in pieces])]).astype(np.int64)
        self._encoder_logits(np.concatenate([p for p, _ in pieces]), starts, np.concatenate([t for _, t in pieces]), each)
        scores = self._probability(each)
        bounds = np.searchsorted(owners, np.arange(len(rows) + 1))
        for i in range(len(rows)):
            deciding = int(np.argmax(scores[bounds[i]:bounds[i + 1]]))
            logits[i] = each[bounds[i] + deciding]
            about[i, :2] = bounds[i + 1] - bounds[i], deciding

    def _encode(self, rows: list[tuple[str, str | None]], first: int, max_length: int | None) -> Encoding:
        try:
            return self.tokenizer.encode_batch([p for p, _ in rows], [r for _, r in rows], max_length=max_length, n_threads=self.encoder.n_threads)
        except ValueError as error:
            if len(rows) == 1:
                raise ValueError(f"row {first}: {error}") from None
            for i, row in enumerate(rows):      # its message counts from the block's first row
                self._encode([row], first + i, max_length)
            raise

    def _encoder_logits(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], types: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Logits of a ragged batch in calls of bounded size: Ctrl-C is answered between them."""
        n = len(offsets) - 1
        first = 0
        while first < n:
            last = max(first + 1, min(n, int(np.searchsorted(offsets, offsets[first] + _CALL_TOKENS, side="right")) - 1))
            part = slice(int(offsets[first]), int(offsets[last]))
            out[first:last] = self.encoder.logits(ids[part], offsets[first:last + 1] - offsets[first], types[part])
            first = last

    def _windows(self, prompt: str, response: str | None) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
        """The windows of a row that does not fit; see `from_pretrained`."""
        stride = self.max_length // 4
        template = self._template
        if response is None:
            a = self._plain(prompt)
            for begin, end in _spans(len(a), self.max_length - template.single, stride):
                yield template.build(a[begin:end], None)
            return
        a, b = self._plain(prompt), self._plain(response)
        room = self.max_length - template.pair
        half = room // 2
        if len(b) > half:       # the response slides beside the prompt, or beside its first half
            kept = a if len(a) <= room - half else a[:half]
            for begin, end in _spans(len(b), room - len(kept), stride):
                yield template.build(kept, b[begin:end])
        if len(a) > room - half or len(b) <= half:      # the prompt slides likewise
            kept = b[:half]
            for i, (begin, end) in enumerate(_spans(len(a), room - len(kept), stride)):
                if i > 0 or len(b) <= half:             # its first window beside a long response was read above
                    yield template.build(a[begin:end], kept)

    def _plain(self, text: str) -> NDArray[np.int32]:
        return self.tokenizer.encode_batch([text], add_special_tokens=False)[0]

    # -- settings --

    def _max_length(self, asked: int | None) -> int:
        most, least = int(self.config["max_tokens"]), self._template.pair + 4
        if asked is not None:
            if not least <= asked <= most:
                raise ValueError(f"max_length must be from {least} to {most}, the most tokens that the model reads, got {asked}")
            return int(asked)
        path = self.tokenizer.path / "tokenizer_config.json"
        said = _read_json(path).get("model_max_length") if path.exists() else None
        if isinstance(said, (int, float)) and not isinstance(said, bool) and said < 1e6:
            if said < least:
                raise _C.FormatError(f"{path}: model_max_length {said} leaves no room for text")
            return min(int(said), most)
        return min(int(self.config["max_position_embeddings"]), most)

    # -- saving --

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: str = "float32") -> None:
        """Write a Hugging Face folder that transformers loads too.

        Parameters
        ----------
        folder : str or path-like
            Made when it does not exist. config.json, model.safetensors, the tokenizer's files, and thresholds.json when a threshold was fitted.
        dtype : str, default "float32"
            "float32" or "float16".

        Raises
        ------
        OSError
            Naming the file.
        """
        from harmaug.data import atomic_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        params = self._params or (_C.EncoderParams.read(self._folder) if self._adapter is None else _merge_adapter(self._adapter, self._folder))
        params.write(target / "model.safetensors", dtype=dtype)
        names = self._label_names()
        kind = self.config["model_type"]
        layers = "n_layers" if kind == "distilbert" else "num_hidden_layers"
        drop = ("_name_or_path", "transformers_version", "torch_dtype", "num_labels", "_num_labels")
        config = {**{k: v for k, v in self._settings.items() if k not in drop}, layers: self.config["num_hidden_layers"],
                  "architectures": [self.config["architecture"]], "dtype": dtype, "id2label": {str(i): name for i, name in enumerate(names)},
                  "label2id": {name: i for i, name in enumerate(names)}}
        self.tokenizer.save_pretrained(target)
        path = target / "tokenizer_config.json"
        about = _read_json(path) if path.exists() else {"tokenizer_class": "BertTokenizer"} if kind == "bert" else {}
        files: dict[str, Mapping[str, Any]] = {"config.json": config, path.name: {**about, "model_max_length": self.max_length}}
        if self.thresholds:
            files["thresholds.json"] = self.thresholds
        for name, value in files.items():
            with atomic_file(target / name) as file:
                file.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")

    def _label_names(self) -> list[str]:
        """Names of the labels, so that `unsafe_index` can be told from them alone."""
        n = self.config["num_labels"]
        given = {str(k): str(v) for k, v in (self._settings.get("id2label") or {}).items()}
        names = [given.get(str(i), f"LABEL_{i}") for i in range(n)]
        if names[self.unsafe_index].lower() not in UNSAFE_NAMES:
            names = ["safe", "unsafe"] if n == 2 else ["unsafe"]
        return names


class _Template:
    """The special tokens around one text and around a pair, learnt from the tokenizer by one probe of each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        probe = tokenizer.encode_batch(["a", "b"], add_special_tokens=False)
        one, two = tokenizer.encode_batch(["a"]), tokenizer.encode_batch(["a"], ["b"])
        at, a, b = _find(one[0], probe[0]), _find(two[0], probe[0]), _find(two[0], probe[1], last=True)
        self._single = self._parts(one, at, at + len(probe[0]))
        self._prefix = self._parts(two, a, a + len(probe[0]))[0]
        self._middle = (two[0][a + len(probe[0]):b], two.type_ids[a + len(probe[0]):b])
        self._suffix = self._parts(two, b, b + len(probe[1]))[1]
        self._types = int(one.type_ids[at]), int(two.type_ids[a]), int(two.type_ids[b])
        self.single = len(one[0]) - len(probe[0])
        self.pair = len(two[0]) - len(probe[0]) - len(probe[1])

    @staticmethod
    def _parts(encoded: Any, begin: int, end: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        return (encoded[0][:begin], encoded.type_ids[:begin]), (encoded[0][end:], encoded.type_ids[end:])

    def build(self, a: NDArray[np.int32], b: NDArray[np.int32] | None) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Ids and type ids of one text, or of a pair."""
        def typed(ids: NDArray[np.int32], which: int) -> tuple[Any, Any]:
            return ids, np.full(len(ids), self._types[which], dtype=np.uint8)

        parts = [self._single[0], typed(a, 0), self._single[1]] if b is None else [self._prefix, typed(a, 1), self._middle, typed(b, 2), self._suffix]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([types for _, types in parts])


def _find(ids: NDArray[np.int32], part: NDArray[np.int32], *, last: bool = False) -> int:
    """Where `part` begins within `ids`."""
    places = [i for i in range(len(ids) - len(part) + 1) if np.array_equal(ids[i:i + len(part)], part)]
    if not places or len(part) == 0:
        raise _C.FormatError("the tokenizer's special tokens change the text between them: windows over long texts can't be made")
    return places[-1 if last else 0]


def _spans(n: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Begin and end of windows over n tokens that overlap by `stride`, as tokenizers cuts them: the last one ends at n."""
    step = window - min(stride, window - 1)
    begin = 0
    while True:
        yield begin, min(begin + window, n)
        if begin + window >= n:
            return
        begin += step


# -- rows --

def _rows(prompts: Any, responses: Any) -> list[tuple[str, str | None]]:
    """One (prompt, response) for each row; an empty response is None."""
    if isinstance(prompts, str) or _is_conversation(prompts):
        prompts = [prompts]
        responses = [responses] if responses is None or isinstance(responses, str) else responses
    if isinstance(prompts, Mapping):
        raise TypeError("prompts must be a str, a list of messages, or an iterable of these, got one mapping: write [message]")
    asked = list(prompts)
    given = [None] * len(asked) if responses is None else [responses] if isinstance(responses, str) else list(responses)
    if len(given) != len(asked):
        raise ValueError(f"{len(asked)} prompts but {len(given)} responses")
    return [_row(i, prompt, response) for i, (prompt, response) in enumerate(zip(asked, given, strict=True))]


def _row(i: int, prompt: Any, response: Any) -> tuple[str, str | None]:
    if isinstance(response, float) and math.isnan(response):     # how pandas says None
        response = None
    if response is not None and not isinstance(response, str):
        raise TypeError(f"row {i}: the response must be a str or None, got {type(response).__name__}")
    if _is_conversation(prompt):
        if response:
            raise ValueError(f"row {i}: a conversation carries its own response")
        return _conversation(i, prompt)
    if not isinstance(prompt, str):
        raise TypeError(f"row {i}: the prompt must be a str or a list of messages, got {type(prompt).__name__}")
    return prompt, response or None


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(m, Mapping) for m in value)


def _conversation(i: int, messages: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    for m in messages:
        if not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str):
            raise TypeError(f"row {i}: a message needs a role and a content, both str")
    answered = messages[-1]["role"] == "assistant"
    return "\n".join(m["content"] for m in (messages[:-1] if answered else messages)), (messages[-1]["content"] or None) if answered else None


# -- settings --

def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _thread_count(n_threads: int | None) -> int:
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be >= 1, got {n_threads}")
    return n_threads or 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _C.FormatError(f"{path}: {error}") from None
    if type(value) is not dict:
        raise _C.FormatError(f"{path}: must hold an object")
    return value


def _threshold(thresholds: Mapping[str, Any], path: Path) -> float:
    value = thresholds.get("threshold", 0.5)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{path}: threshold must be in [0, 1], got {value!r}")
    return float(value)


def _labels(n: int) -> dict[str, str]:
    return {"0": "unsafe"} if n == 1 else {"0": "safe", "1": "unsafe"} if n == 2 else {}


def _unsafe_index(id2label: Any, n: int, folder: Path) -> int:
    """The label that means unsafe: the only one, the one that is named so, else the second of two."""
    if n == 1:
        return 0
    names = {str(k): str(v).lower() for k, v in id2label.items()} if isinstance(id2label, dict) else {}
    named = [i for i in range(n) if names.get(str(i)) in UNSAFE_NAMES]
    if len(named) == 1:
        return named[0]
    if not named and n == 2 and names.get("1") not in SAFE_NAMES:
        return 1
    raise ValueError(f"{folder}: id2label of config.json must name exactly one of {n} labels {' or '.join(UNSAFE_NAMES)}, got {list(names.values())}")


# -- LoRA adapters in PEFT's format --

def _adapter_base(adapter: Path, download: bool) -> Path:
    name = _read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise _C.FormatError(f"{adapter / 'adapter_config.json'}: base_model_name_or_path is missing")
    beside = adapter / name
    try:
        base = beside if beside.is_dir() else models.resolve(name, download=download)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{adapter}: its base model is not here: {error}") from None
    if not base.is_dir():
        raise NotADirectoryError(f"{adapter}: its base model {base} is not a folder")
    return base


def _adapter_scale(path: Path) -> Callable[[str], float]:
    """alpha / r of a module. The adapter's settings are checked: what changes the meaning of its weights must be known."""
    config = _read_json(path)
    if config.get("peft_type") != "LORA":
        raise _C.FormatError(f"{path}: peft_type must be LORA, got {config.get('peft_type')!r}")
    for name in ("use_dora", "fan_in_fan_out", "use_qalora", "alora_invocation_tokens", "megatron_config", "layer_replication", "lora_bias"):
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
        for key, value in (config.get(pattern) or {}).items():     # keys are regular expressions to PEFT: here, plain ends of module names
            if module == key or module.endswith(f".{key}"):
                return float(value)
        return float(config[name])

    def scale(module: str) -> float:
        rank, alpha = value_of("r", "rank_pattern", module), value_of("lora_alpha", "alpha_pattern", module)
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return scale


def _merge_adapter(adapter: Path, base: Path) -> _C.EncoderParams:
    """Weights of the base model with the adapter's update: W + alpha / r * B A, and the tensors that were trained whole."""
    scale = _adapter_scale(adapter / "adapter_config.json")
    path = adapter / "adapter_model.safetensors"
    file = _C.TensorFile(path)
    whole: dict[str, str] = {}
    pairs: dict[str, dict[str, str]] = {}
    for name in file.names:
        if not name.startswith(_ADAPTER_PREFIX):
            raise _C.FormatError(f"{path}: tensor '{name}' does not begin with {_ADAPTER_PREFIX}")
        key = name[len(_ADAPTER_PREFIX):].replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if ".original_module." in key:      # what a module of modules_to_save was before: peft writes its bias with bias="all"
            continue
        module, _, part = key.rpartition(".lora_")
        if not module:
            whole[key] = name
        elif part in ("A.weight", "B.weight"):
            pairs.setdefault(module, {})[part[0]] = name
        else:
            raise _C.FormatError(f"{path}: tensor '{name}' is not supported")
    head = "classifier.weight" in whole and "classifier.bias" in whole
    params = _C.EncoderParams.read(base, new_head=file.info(whole["classifier.weight"])[1][0] if head else 0)
    if head and "bert.pooler.dense.weight" not in whole and not any(n.endswith("pooler.dense.weight") for n in _C.TensorFile(base).names):
        raise _C.FormatError(f"{path}: neither the adapter nor its base model {base} holds 'bert.pooler.dense.weight'")
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
