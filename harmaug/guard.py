"""A guard: a small encoder that gives P(unsafe) for a prompt, or for a prompt and its response."""
from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmaug import _C, adapters, models
from harmaug.checks import one_of
from harmaug.data import read_object, write_json
from harmaug.tokenizer import Encoding, Tokenizer

__all__ = ["Guard", "ScoreDetails"]

_log = logging.getLogger(__name__)

UNSAFE_NAMES = ("unsafe", "harmful", "toxic", "malicious")
"""Labels of id2label, in any case, that mean unsafe."""
SAFE_NAMES = ("safe", "harmless", "unharmful", "benign", "non-toxic", "not_toxic")
LONG = ("windows", "truncate", "error")
_BLOCK_ROWS = 512           # rows tokenized at once: memory stays bounded, Ctrl-C is answered between blocks
_CALL_TOKENS = 16384        # tokens of one call of the encoder

Prompt = str | Sequence[Mapping[str, Any]]
Prompts = Prompt | Iterable[Prompt]
Responses = str | Iterable[str | None] | None
Floats = NDArray[np.float32]
_Piece = tuple[NDArray[np.int32], NDArray[np.uint8]]    # token ids, type ids


@dataclass(frozen=True, kw_only=True)
class ScoreDetails:
    """What a score rests on; each field has one element per row.

    Attributes
    ----------
    score : ndarray of float32
        P(unsafe).
    n_windows, window : ndarray of int32
        Windows that were read (1 where the row fitted), and which one decided, from 0.
    n_tokens, truncated : ndarray of int32
        Tokens of the whole row, special tokens included, and how many were dropped (0 unless ``long="truncate"``).
    """

    score: Floats
    n_windows: NDArray[np.int32]
    window: NDArray[np.int32]
    n_tokens: NDArray[np.int32]
    truncated: NDArray[np.int32]


class Guard:
    """A text classifier that gives P(unsafe); `from_pretrained` opens one.

    Scores do not depend on batch size, order or thread count. A row is a prompt, or a prompt and a response; ``None``
    and ``""`` as response both mean that there is none. An empty prompt is legal.

    Attributes
    ----------
    config : dict
        Extents of the model under their names in BERT's config.json, its class in transformers ("architecture"), and
        the most tokens that it reads ("max_tokens").
    max_length : int
        Tokens that the model reads at once, special tokens included.
    long : str
        What becomes of a longer row: "windows", "truncate" or "error".
    threshold : float
        A row is flagged when its score is at least this. From thresholds.json, else 0.5.
    unsafe_index : int
        The logit that means unsafe.
    """

    def __init__(self, encoder: _C.Encoder, tokenizer: Tokenizer, settings: Mapping[str, Any], folder: Path, *,
                 adapter: Path | None = None, params: _C.EncoderParams | None = None, max_length: int | None = None,
                 long: str = "windows") -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.config: dict[str, Any] = encoder.config
        self._settings, self._folder, self._adapter, self._params = dict(settings), folder, adapter, params
        source = adapter or folder
        n_labels, n_tokens = self.config["num_labels"], self.config["vocab_size"]
        self.unsafe_index = _unsafe_index(self._settings.get("id2label"), n_labels, source)
        self.long = one_of("long", long, LONG)
        if tokenizer.vocab_size > n_tokens:
            raise _C.FormatError(f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, the model {n_tokens}")
        self._template = _Template(tokenizer)
        self.max_length = self._max_length(max_length)
        fitted = source / "thresholds.json"
        self.thresholds: dict[str, Any] = read_object(fitted) if fitted.exists() else {}
        self.threshold = _threshold(self.thresholds, fitted)

    @classmethod
    def from_pretrained(cls, folder_or_name: str | os.PathLike[str], dtype: str = "float32",
                        n_threads: int | None = None, *, download: bool = False, max_length: int | None = None,
                        long: str = "windows") -> Guard:
        """Open a guard.

        Parameters
        ----------
        folder_or_name : str or path-like
            A Hugging Face folder (config.json, model.safetensors, a tokenizer), a folder with a LoRA adapter in PEFT's
            format, whose base model is found by its name or beside it, or the name of a fetched model.
        dtype : str, default "float32"
            Storage of the weights: "float32" or "bfloat16".
        n_threads : int, optional
            None: the library's default.
        download : bool, default False
            Whether the network may be used for a name that is not here.
        max_length : int, optional
            Tokens read at once. None: model_max_length of tokenizer_config.json when it is below 1e6, else
            max_position_embeddings.
        long : str, default "windows"
            What becomes of a row of more tokens. "windows": windows of max_length tokens that overlap by
            max_length // 4 are read, and the one with the highest P(unsafe) decides. Of a pair, the side that is longer
            than half the room slides, while the other stays whole; when both are, each slides beside the first half of
            the other, so that every token is read. "truncate": the end of the longer side is dropped. "error":
            ValueError.

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
        options: dict[str, Any] = {"max_length": max_length, "long": long}
        if not (folder / "adapter_config.json").exists():
            encoder = _C.Encoder(folder, dtype=dtype, n_threads=threads, cache=models.cache_place("weights"))
            if encoder.cache_note:
                _log.info("weights cache: %s", encoder.cache_note)
            settings = read_object(folder / "config.json")
            return cls(encoder, Tokenizer.from_pretrained(folder), settings, folder, **options)
        base = adapters.base_folder(folder, download)
        params = adapters.merge(folder, base)
        settings = read_object(base / "config.json")
        if (folder / "config.json").exists():
            settings |= read_object(folder / "config.json")
        elif len(settings.get("id2label") or ()) != params.config["num_labels"]:
            settings["id2label"] = _labels(params.config["num_labels"])
        own = any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt"))
        encoder = _C.Encoder.from_params(params, dtype=dtype, n_threads=threads)
        tokenizer = Tokenizer.from_pretrained(folder if own else base)
        return cls(encoder, tokenizer, settings, base, adapter=folder, **options)

    @classmethod
    def from_params(cls, params: _C.EncoderParams, folder: str | os.PathLike[str], dtype: str = "float32",
                    n_threads: int | None = None, *, max_length: int | None = None, long: str = "windows") -> Guard:
        """Make a guard of weights in memory.

        Parameters
        ----------
        params : EncoderParams
            Copied where the encoder needs them, and kept for `save_pretrained`.
        folder : str or path-like
            Where config.json and the tokenizer come from. With two labels, 0 is safe and 1 unsafe.
        dtype, n_threads, max_length, long
            As for `from_pretrained`.
        """
        folder = Path(folder)
        encoder = _C.Encoder.from_params(params, dtype=dtype, n_threads=_thread_count(n_threads))
        settings = read_object(folder / "config.json") | {"id2label": _labels(encoder.config["num_labels"])}
        tokenizer = Tokenizer.from_pretrained(folder)
        return cls(encoder, tokenizer, settings, folder, params=params, max_length=max_length, long=long)

    def __repr__(self) -> str:
        c = self.config
        return (f"Guard({os.fspath(self._adapter or self._folder)!r}, {c['model_type']}, {c['num_hidden_layers']} "
                f"layers of {c['hidden_size']}, {c['num_labels']} labels, {self.encoder.dtype}, "
                f"max_length={self.max_length}, long={self.long!r})")

    # -- scoring --

    def logits(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Floats:
        """Class scores of each row; of a long row, those of the window with the highest P(unsafe).

        Parameters
        ----------
        prompts : str, conversation, or iterable of these
            A conversation is a list of ``{"role": ..., "content": ...}``: its last message, when the assistant's, is
            the response, the contents before it, one a line, are the prompt. One str or one conversation is one row.
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

    def score(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Floats:
        """P(unsafe) of each row, shape (n,): the sigmoid of a single logit, else the softmax at `unsafe_index`.

        The parameters, here and below, are those of `logits`.
        """
        return self._probability(self._run(prompts, responses, long)[0])

    def score_details(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> ScoreDetails:
        """P(unsafe) of each row and what it rests on."""
        logits, about = self._run(prompts, responses, long)
        n_windows, window, n_tokens, truncated = about.T
        return ScoreDetails(score=self._probability(logits), n_windows=n_windows, window=window, n_tokens=n_tokens,
                            truncated=truncated)

    def predict_proba(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Floats:
        """P(safe) and P(unsafe) of each row, shape (n, 2)."""
        unsafe = self.score(prompts, responses, long=long)
        return np.stack([1 - unsafe, unsafe], axis=1)

    def predict(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> NDArray[np.int64]:
        """1 for each row whose score is at least `threshold`, else 0; shape (n,).

        Warns when the threshold was fitted on rows read in another way (another `long` or `max_length`).
        """
        mode = self.long if long is None else long
        for name, value in (("long", mode), ("max_length", self.max_length)):
            fitted = self.thresholds.get(name, value)
            if fitted != value:
                warnings.warn(f"the threshold {self.threshold:g} was fitted with {name}={fitted!r}, not {value!r}",
                              stacklevel=2)
        return (self.score(prompts, responses, long=long) >= np.float32(self.threshold)).astype(np.int64)

    def set_threshold(self, threshold: float, **about: Any) -> None:
        """Set the threshold, in [0, 1], that `predict` uses and `save_pretrained` writes to thresholds.json.

        The mode it was fitted in stands beside it, and what `about` says, for example ``metric="f1"``.
        """
        self.thresholds = {"schema_version": 1, "threshold": float(threshold), "long": self.long,
                           "max_length": self.max_length, **about}
        self.threshold = _threshold(self.thresholds, Path("thresholds.json"))

    def _probability(self, logits: Floats) -> Floats:
        wide = logits.astype(np.float64)
        if wide.shape[1] == 1:
            return np.asarray(np.exp(-np.logaddexp(0, -wide[:, 0])), dtype=np.float32)
        wide -= wide.max(axis=1, keepdims=True, initial=-np.inf)
        unsafe: NDArray[np.float64] = np.exp(wide[:, self.unsafe_index]) / np.exp(wide).sum(axis=1)
        return unsafe.astype(np.float32)

    def _run(self, prompts: Any, responses: Any, long: str | None) -> tuple[Floats, NDArray[np.int32]]:
        """Logits of each row, and (windows, deciding window, tokens, dropped tokens) of each row."""
        mode = self.long if long is None else one_of("long", long, LONG)
        rows = _rows(prompts, responses)
        logits = np.zeros((len(rows), self.config["num_labels"]), dtype=np.float32)
        about = np.zeros((len(rows), 4), dtype=np.int32)
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = slice(first, min(first + _BLOCK_ROWS, len(rows)))
            self._run_block(rows[block], first, mode, logits[block], about[block])
            bad = np.flatnonzero(~np.isfinite(logits[block]).all(axis=1))
            if bad.size:
                raise ValueError(f"row {first + bad[0]}: {self._adapter or self._folder} gives a score that is no "
                                 "finite number; its weights are damaged")
        return logits, about

    def _run_block(self, rows: list[tuple[str, str | None]], first: int, mode: str, logits: Floats,
                   about: NDArray[np.int32]) -> None:
        encoded = self._encode(rows, first, self.max_length if mode == "truncate" else None)
        ids, offsets, types = encoded.ids, encoded.offsets, encoded.type_ids
        lengths = np.diff(offsets)
        about[:, 0], about[:, 2], about[:, 3] = 1, lengths + encoded.truncated, encoded.truncated
        long_rows = np.flatnonzero(lengths > self.max_length)
        if long_rows.size == 0:
            self._encoder_logits(ids, offsets, types, logits)
            return
        if mode == "error":
            row = int(long_rows[0])
            raise ValueError(f"row {first + row} has {lengths[row]} tokens, the guard reads at most {self.max_length}; "
                             "long='windows' or 'truncate' reads it")
        pieces = [[(ids[begin:end], types[begin:end])] for begin, end in zip(offsets, offsets[1:])]
        for i in long_rows.tolist():
            pieces[i] = list(self._windows(*rows[i]))
        flat = [piece for own in pieces for piece in own]
        each = np.empty((len(flat), logits.shape[1]), dtype=np.float32)
        starts = np.cumsum([0, *(len(p) for p, _ in flat)], dtype=np.int64)
        self._encoder_logits(np.concatenate([p for p, _ in flat]), starts, np.concatenate([t for _, t in flat]), each)
        scores = self._probability(each)
        bounds = np.cumsum([0, *map(len, pieces)])
        for i in range(len(rows)):
            deciding = int(np.argmax(scores[bounds[i]:bounds[i + 1]]))
            logits[i] = each[bounds[i] + deciding]
            about[i, :2] = len(pieces[i]), deciding

    def _encode(self, rows: list[tuple[str, str | None]], first: int, max_length: int | None) -> Encoding:
        prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
        try:
            return self.tokenizer.encode_batch(prompts, responses, max_length=max_length,
                                               n_threads=self.encoder.n_threads)
        except ValueError as error:
            if len(rows) == 1:
                raise ValueError(f"row {first}: {error}") from None
            for i, row in enumerate(rows):      # its message counts from the block's first row
                self._encode([row], first + i, max_length)
            raise

    def _encoder_logits(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], types: NDArray[np.uint8],
                        out: Floats) -> None:
        """Logits of a ragged batch in calls of bounded size: Ctrl-C is answered between them."""
        n, first = len(offsets) - 1, 0
        while first < n:
            fit = int(np.searchsorted(offsets, offsets[first] + _CALL_TOKENS, side="right")) - 1
            last = max(first + 1, min(n, fit))
            part = slice(int(offsets[first]), int(offsets[last]))
            out[first:last] = self.encoder.logits(ids[part], offsets[first:last + 1] - offsets[first], types[part])
            first = last

    def _windows(self, prompt: str, response: str | None) -> Iterator[_Piece]:
        """The windows of a row that does not fit; see `from_pretrained`."""
        stride = self.max_length // 4
        template = self._template
        a = self._plain(prompt)
        if response is None:
            for begin, end in _spans(len(a), self.max_length - template.single, stride):
                yield template.build(a[begin:end], None)
            return
        b = self._plain(response)
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
                raise ValueError(f"max_length must be from {least} to {most}, the most tokens that the model reads, "
                                 f"got {asked}")
            return int(asked)
        path = self.tokenizer.path / "tokenizer_config.json"
        said = read_object(path).get("model_max_length") if path.exists() else None
        if isinstance(said, (int, float)) and not isinstance(said, bool) and said < 1e6:
            if said < least:
                raise _C.FormatError(f"{path}: model_max_length {said} leaves no room for text")
            return min(int(said), most)
        return min(int(self.config["max_position_embeddings"]), most)

    # -- saving --

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: str = "float32") -> None:
        """Write a Hugging Face folder that transformers loads too; an OSError names the file.

        Parameters
        ----------
        folder : str or path-like
            Made when it does not exist. config.json, model.safetensors, the tokenizer's files, and thresholds.json when
            a threshold was fitted.
        dtype : str, default "float32"
            "float32" or "float16".
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        params = self._params
        if params is None:
            base, adapter = self._folder, self._adapter
            params = _C.EncoderParams.read(base) if adapter is None else adapters.merge(adapter, base)
        params.write(target / "model.safetensors", dtype=dtype)
        names = self._label_names()
        drop = ("_name_or_path", "transformers_version", "torch_dtype", "num_labels", "_num_labels")
        config = {k: v for k, v in self._settings.items() if k not in drop}
        kind = self.config["model_type"]
        config |= {"n_layers" if kind == "distilbert" else "num_hidden_layers": self.config["num_hidden_layers"],
                   "architectures": [self.config["architecture"]], "dtype": dtype,
                   "id2label": {str(i): name for i, name in enumerate(names)},
                   "label2id": {name: i for i, name in enumerate(names)}}
        self.tokenizer.save_pretrained(target)      # first: it may be made from the files that are written here
        write_json(target / "config.json", config)
        path = target / "tokenizer_config.json"
        about = read_object(path) if path.exists() else {"tokenizer_class": "BertTokenizer"} if kind == "bert" else {}
        write_json(path, {**about, "model_max_length": self.max_length})
        if self.thresholds:
            write_json(target / "thresholds.json", self.thresholds)

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
        plain = tokenizer.encode_batch(["a", "b"], add_special_tokens=False)
        x, y = plain[0], plain[1]
        one, two = tokenizer.encode_batch(["a"]), tokenizer.encode_batch(["a"], ["b"])
        at, a, b = _find(one[0], x), _find(two[0], x), _find(two[0], y, last=True)

        def part(encoding: Encoding, begin: int, end: int | None) -> _Piece:
            return encoding[0][begin:end], encoding.type_ids[begin:end]

        self._around_one = part(one, 0, at), part(one, at + len(x), None)
        self._around_two = part(two, 0, a), part(two, a + len(x), b), part(two, b + len(y), None)
        self._types = int(one.type_ids[at]), int(two.type_ids[a]), int(two.type_ids[b])
        self.single = len(one[0]) - len(x)
        self.pair = len(two[0]) - len(x) - len(y)

    def build(self, a: NDArray[np.int32], b: NDArray[np.int32] | None) -> _Piece:
        """Ids and type ids of one text, or of a pair."""
        def typed(ids: NDArray[np.int32], which: int) -> _Piece:
            return ids, np.full(len(ids), self._types[which], dtype=np.uint8)

        if b is None:
            before, after = self._around_one
            parts = [before, typed(a, 0), after]
        else:
            before, between, after = self._around_two
            parts = [before, typed(a, 1), between, typed(b, 2), after]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([types for _, types in parts])


def _find(ids: NDArray[np.int32], part: NDArray[np.int32], *, last: bool = False) -> int:
    """Where `part` begins within `ids`."""
    places = [i for i in range(len(ids) - len(part) + 1) if np.array_equal(ids[i:i + len(part)], part)]
    if not places or len(part) == 0:
        raise _C.FormatError("the tokenizer's special tokens change the text between them: windows over long texts "
                             "can't be made")
    return places[-1 if last else 0]


def _spans(n: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Begin and end of windows over n tokens that overlap by `stride`, as tokenizers cuts them: the last ends at n."""
    step = window - min(stride, window - 1)
    for begin in range(0, max(n - window, 0) + step, step):
        yield begin, min(begin + window, n)


# -- rows --

def _rows(prompts: Any, responses: Any) -> list[tuple[str, str | None]]:
    """One (prompt, response) for each row; an empty response is None."""
    if isinstance(prompts, str) or _is_conversation(prompts):
        prompts = [prompts]
    if isinstance(prompts, Mapping):
        raise TypeError("prompts must be a str, a list of messages, or an iterable of these, got one mapping: "
                        "write [message]")
    asked = list(prompts)
    if responses is None:
        responses = [None] * len(asked)
    given = [responses] if isinstance(responses, str) else list(responses)
    if len(given) != len(asked):
        raise ValueError(f"{len(asked)} prompts but {len(given)} responses")
    return [_row(i, prompt, response) for i, (prompt, response) in enumerate(zip(asked, given))]


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
    contents = [m["content"] for m in messages]
    response = contents.pop() if messages[-1]["role"] == "assistant" else None
    return "\n".join(contents), response or None


# -- settings --

def _thread_count(n_threads: int | None) -> int:
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be >= 1, got {n_threads}")
    return n_threads or 0


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
    raise ValueError(f"{folder}: id2label of config.json must name exactly one of {n} labels "
                     f"{' or '.join(UNSAFE_NAMES)}, got {list(names.values())}")
