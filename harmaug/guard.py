"""A guard: a small encoder that gives P(unsafe) for a prompt, or for a prompt and its response."""
from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from harmaug import _C, adapters, models
from harmaug.checks import one_of, within
from harmaug.data import read_object, write_json
from harmaug.inputs import Pair, Prompt, Prompts, Responses, rows_of
from harmaug.tokenizer import Tokenizer

if TYPE_CHECKING:
    from harmaug.explain import Explanation

__all__ = ["Guard", "ScoreDetails"]

_log = logging.getLogger(__name__)

UNSAFE_NAMES = ("unsafe", "harmful", "toxic", "malicious")
"""Labels of id2label, in any case, that mean unsafe."""
LONG = ("windows", "truncate", "error")
_BLOCK_ROWS = 512           # rows read ahead: memory stays bounded

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]
_Block = tuple[Floats, Floats, NDArray[np.int32]]       # P(unsafe), logits, (windows, deciding window, tokens, dropped tokens)


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

    def _repr_html_(self) -> str:
        """The first 20 rows as a table; it holds no text."""
        from harmaug.report import Table

        columns = (self.score, self.n_windows, self.window, self.n_tokens, self.truncated)
        lines = [[i, *values] for i, values in enumerate(zip(*(column[:20].tolist() for column in columns)))]
        more = [f"the first 20 of {len(self.score)} rows"] if len(self.score) > 20 else []
        return Table([["row", "P(unsafe)", "windows", "the one that decided", "tokens", "dropped"], *lines], more)._repr_html_()


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
        A row is flagged when its score is at least this. From thresholds.json, else 0.5. May be set, which `save_pretrained` keeps.
    temperature : float
        Divides the log-odds that scores are made of. From thresholds.json, else 1. May be set.
    unsafe_index : int
        The logit that means unsafe.
    """

    _source: Callable[..., Floats] | None = None      # of logits, in the encoder's place

    def __init__(self, encoder: _C.Encoder, tokenizer: Tokenizer, settings: Mapping[str, Any], folder: Path, *,
                 adapter: Path | None = None, params: _C.EncoderParams | None = None, max_length: int | None = None,
                 long: str = "windows") -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.config: dict[str, Any] = encoder.config
        self._settings, self._folder, self._adapter, self._params = dict(settings), folder, adapter, params
        source = adapter or folder
        self.long = one_of("long", long, LONG)
        self.core = self._core(max_length)
        self.unsafe_index = self.core.unsafe_index
        fitted = source / "thresholds.json"
        # a threshold of the folder that new weights were made from says nothing of these
        self.thresholds: dict[str, Any] = read_object(fitted) if params is None and fitted.exists() else {}
        _check_thresholds(self.thresholds, fitted)

    @property
    def threshold(self) -> float:
        """A row is flagged when its score is at least this; may be set, see `set_threshold`."""
        return float(self.thresholds.get("threshold", 0.5))

    @threshold.setter
    def threshold(self, value: float) -> None:
        self.set_threshold(value)

    @property
    def temperature(self) -> float:
        """Divides the log-odds that scores are made of; may be set, see `set_threshold`."""
        return float(self.thresholds.get("temperature", 1))

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.set_threshold(self.threshold, temperature=value)

    def _core(self, max_length: int | None) -> _C.GuardCore:
        within(SimpleNamespace(max_length=max_length), max_length=">= 1")
        return _C.GuardCore(self.encoder, self.tokenizer._tokenizer, name=self._adapter or self._folder,
                            tokenizer_folder=self.tokenizer.path, labels=self._labels_given(), max_length=max_length or 0)

    @property
    def max_length(self) -> int:
        """Tokens read at once; may be set."""
        return self.core.max_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self.core = self._core(value)

    # what scikit-learn asks of a fitted classifier; it never loads it
    _estimator_type = "classifier"

    @property
    def classes_(self) -> NDArray[np.int64]:
        """0 safe, 1 unsafe: the columns of `predict_proba`."""
        return np.array([0, 1])

    def fit(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: `harmaug.Distiller` trains guards. For scikit-learn, ``FrozenEstimator(guard)`` is one that is trained."""
        raise TypeError("a Guard is trained already; harmaug.Distiller trains one, and sklearn.frozen.FrozenEstimator(guard)"
                        " goes where scikit-learn would fit")

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(),
                    input_tags=InputTags(two_d_array=False, string=True), requires_fit=False)

    @classmethod
    def from_pretrained(cls, folder_or_name: str | os.PathLike[str], dtype: str | None = None,
                        n_threads: int | None = None, *, download: bool = False, max_length: int | None = None,
                        long: str = "windows") -> Guard:
        """Open a guard.

        Parameters
        ----------
        folder_or_name : str or path-like
            A Hugging Face folder (config.json, model.safetensors, a tokenizer), a folder with a LoRA adapter in PEFT's
            format, whose base model is found by its name or beside it, or the name of a fetched model.
        dtype : str, optional
            Storage of the weights: "float32", "bfloat16" or "int8", see `to`. None: "int8" where the folder holds such
            weights, else "float32".
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
            than half the room slides, while the other stays whole; when both are, the response slides beside the end of
            the prompt and the prompt beside the beginning of the response, so that every token is read. "truncate": the
            end of the longer side is dropped. "error": ValueError.

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
        if not (folder / adapters.CONFIG).exists():
            settings = read_object(folder / "config.json")
            dtype = dtype or ("int8" if settings.get("quantization_config") else "float32")
            encoder = _open_encoder(folder, dtype, threads)
            return cls(encoder, Tokenizer.from_pretrained(folder), settings, folder, **options)
        base = adapters.base_folder(folder, download)
        params = adapters.merge(folder, base)
        settings = read_object(base / "config.json")
        if (folder / "config.json").exists():
            settings |= read_object(folder / "config.json")
        elif len(settings.get("id2label") or ()) != params.config["num_labels"]:
            settings["id2label"] = _labels(params.config["num_labels"])
        own = any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt"))
        encoder = _C.Encoder.from_params(params, dtype=dtype or "float32", n_threads=threads)
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
            Where config.json and the tokenizer come from, but no threshold. With two labels, 0 is safe and 1 unsafe.
        dtype, n_threads, max_length, long
            As for `from_pretrained`.
        """
        folder = Path(folder)
        encoder = _C.Encoder.from_params(params, dtype=dtype, n_threads=_thread_count(n_threads))
        settings = read_object(folder / "config.json") | {"id2label": _labels(encoder.config["num_labels"])}
        tokenizer = Tokenizer.from_pretrained(folder)
        return cls(encoder, tokenizer, settings, folder, params=params, max_length=max_length, long=long)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds no weights: it is opened anew from the same folder."""
        if self._params is not None:
            raise TypeError("a guard whose weights are in memory cannot be pickled; open the folder of its save_pretrained")
        state = {"thresholds": self.thresholds}
        options: dict[str, Any] = {"dtype": self.encoder.dtype, "n_threads": self.encoder.n_threads or None, "max_length": self.max_length,
                   "long": self.long}
        return partial(self.from_pretrained, os.path.abspath(self._adapter or self._folder), **options), (), state

    def __repr__(self) -> str:
        c = self.config
        return (f"Guard({os.fspath(self._adapter or self._folder)!r}, {c['model_type']}, {c['num_hidden_layers']} "
                f"layers of {c['hidden_size']}, {c['num_labels']} labels, {self.encoder.dtype}, "
                f"max_length={self.max_length}, long={self.long!r})")

    def _repr_html_(self) -> str:
        from harmaug.report import Table, shortest

        c = self.config
        fitted = f"fitted for {self.thresholds['target']}" if "target" in self.thresholds else "not fitted"
        return Table([["guard", os.fspath(self._adapter or self._folder)],
                      ["model", f"{c['model_type']}, {c['num_hidden_layers']} layers of {c['hidden_size']}, {c['num_labels']} labels"],
                      ["weights", self.encoder.dtype], ["reads", f"{self.max_length} tokens at once; of longer rows: {self.long}"],
                      ["flags from", f"{shortest(self.threshold)} on ({fitted})"], ["temperature", f"{self.temperature:.4g}"]])._repr_html_()

    # -- scoring --

    def logits(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Floats:
        """Class scores of each row; of a long row, those of the window with the highest P(unsafe).

        Parameters
        ----------
        prompts : str, conversation, iterable of these, or table
            A list, an array, a column of a data frame, a generator (read 512 rows ahead). One str or one conversation
            is one row. A conversation is a list of ``{"role": ..., "content": ...}``: its last message, when the
            assistant's, is the response; the contents before it, the user's last turn among them, one a line, are the
            prompt. A data frame is read by its columns prompt and, where there is one, response.
        responses : str or iterable of (str or None), optional
            As many as prompts, taken in order (indices of pandas play no part); None, NaN, NA and "" mean none.
        long : str, optional
            None: that of the guard.

        Returns
        -------
        ndarray, shape (n, num_labels), float32
            In the order of the rows.

        Raises
        ------
        ValueError, TypeError
            Naming the row.
        """
        return self._run(prompts, responses, long)[1]

    def score(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Floats:
        """P(unsafe) of each row, shape (n,): the sigmoid of a single logit, else the softmax at `unsafe_index`.

        With a fitted temperature, the sigmoid of `log_odds` divided by it. The parameters, here and below, are those of `logits`.
        """
        return self._run(prompts, responses, long)[0]

    def score_iter(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None,
                   block_rows: int = _BLOCK_ROWS) -> Iterator[float]:
        """P(unsafe) of each row, one by one and in order, of an iterable that may have no end.

        Parameters
        ----------
        prompts, responses, long
            As for `logits`.
        block_rows : int, default 512
            Rows that are read and scored together, which is all that is held; changes no score.

        Examples
        --------
        >>> scores = guard.score_iter(line for line in open("prompts.txt"))     # doctest: +SKIP
        """
        if block_rows < 1:
            raise ValueError(f"block_rows must be >= 1, got {block_rows}")
        mode = self.long if long is None else one_of("long", long, LONG)
        blocks = self._blocks(rows_of(prompts, responses), mode, block_rows)
        return (score for scores, _, _ in blocks for score in scores.tolist())

    def score_details(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> ScoreDetails:
        """P(unsafe) of each row and what it rests on."""
        score, _, about = self._run(prompts, responses, long)
        n_windows, window, n_tokens, truncated = about.T
        return ScoreDetails(score=score, n_windows=n_windows, window=window, n_tokens=n_tokens, truncated=truncated)

    def log_odds(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Wide:
        """log(P / (1 - P)) of each row as the model gives it, before any temperature; float64, shape (n,)."""
        return self._log_odds(self._run(prompts, responses, long)[1])

    def predict_proba(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> Floats:
        """P(safe) and P(unsafe) of each row, shape (n, 2), the columns as in `classes_`."""
        unsafe = self.score(prompts, responses, long=long)
        return np.stack([1 - unsafe, unsafe], axis=1)

    def predict(self, prompts: Prompts, responses: Responses = None, *, long: str | None = None) -> NDArray[np.int64]:
        """1 for each row whose score is at least `threshold`, else 0; shape (n,).

        Warns when the threshold was fitted on rows read in another way (another `long` or `max_length`).
        """
        self.check_threshold(long, stacklevel=3)
        return (self.score(prompts, responses, long=long) >= np.float32(self.threshold)).astype(np.int64)

    def check_threshold(self, long: str | None = None, *, stacklevel: int = 2) -> None:
        """Warn when the threshold was fitted on rows read in another way than `long` (None: the guard's) and `max_length`."""
        for name, value in (("long", self.long if long is None else long), ("max_length", self.max_length)):
            fitted = self.thresholds.get(name, value)
            if fitted != value:
                warnings.warn(f"the threshold {self.threshold:g} was fitted with {name}={fitted!r}, not {value!r}",
                              stacklevel=stacklevel)

    def explain(self, prompt: Prompt, response: str | None = None, *, method: str = "occlusion") -> Explanation:
        """Say which tokens a row's score hangs on.

        Parameters
        ----------
        prompt, response
            One row, as for `logits`, that fits max_length.
        method : {"occlusion"}
            Each token in turn is replaced by the mask token (left out, where the tokenizer has none), and its contribution
            is by how much the log-odds of P(unsafe) fall. As many rows as tokens are scored, packed into few calls.

        Returns
        -------
        Explanation
            tokens, spans, contributions; a notebook shows it as coloured text on a click. No proof of a cause.

        Raises
        ------
        ValueError
            For a row of more tokens than max_length, or an unknown method.

        Examples
        --------
        >>> guard.explain("How do I kill a Python process?")      # doctest: +SKIP
        <explanation of 8 tokens, P(unsafe) 0.213, text hidden>
        """
        from harmaug.explain import explain

        return explain(self, prompt, response, method)

    def set_threshold(self, threshold: float, *, temperature: float | None = None, **about: Any) -> None:
        """Set the threshold that `predict` uses and `save_pretrained` writes to thresholds.json.

        The guard's `long` and `max_length` are written beside it.

        Parameters
        ----------
        threshold : float
            In [0, 1], of scores at `temperature`.
        temperature : float, optional
            In [0.001, 1000]. None: that of the guard.
        **about
            What else thresholds.json says, for example ``target="f1"``.

        Raises
        ------
        ValueError
            For a number outside its range.
        """
        values = {"threshold": threshold, "temperature": self.temperature if temperature is None else temperature}
        _check_thresholds(values, "a guard")
        self.thresholds = {"schema_version": 1, **{name: float(value) for name, value in values.items()}, "long": self.long,
                           "max_length": self.max_length, **about}

    def _log_odds(self, logits: Floats) -> Wide:
        wide = logits.astype(np.float64)
        others = np.delete(wide, self.unsafe_index, axis=1)
        unsafe = wide[:, self.unsafe_index]
        return unsafe - np.logaddexp.reduce(others, axis=1) if others.shape[1] else unsafe

    def _run(self, prompts: Any, responses: Any, long: str | None) -> _Block:
        """P(unsafe) and logits of each row, and what they rest on."""
        mode = self.long if long is None else one_of("long", long, LONG)
        blocks = list(self._blocks(rows_of(prompts, responses), mode)) or [self.core.score([], [], long=mode)]
        scores, logits, about = (np.concatenate(parts) for parts in zip(*blocks))
        return scores, logits, about

    def _blocks(self, rows: Iterator[Pair], mode: str, size: int = _BLOCK_ROWS) -> Iterator[_Block]:
        """What `_run` returns, block by block; no more than `size` rows are held."""
        first = 0
        while block := list(islice(rows, size)):
            prompts, responses = zip(*block)
            yield self.core.score(prompts, responses, long=mode, first_row=first, temperature=self.temperature, logits=self._source)
            first += len(block)

    def _labels_given(self) -> list[str] | None:
        """The names that id2label gives, by index; None: it gives none."""
        given = self._settings.get("id2label")
        if not isinstance(given, dict):
            return None
        names = {str(k): v for k, v in given.items() if isinstance(v, str)}
        return [names.get(str(i), "") for i in range(self.config["num_labels"])]

    # -- saving --

    def to(self, dtype: str) -> Guard:
        """The same guard with its weights stored as "float32", "bfloat16" or "int8".

        "int8" rounds weights and word embeddings to 8 bits, with a scale for each 64 of a row; activations are rounded row by row while
        they are multiplied. Embeddings of positions, norms, softmax and the classification head stay float32. From
        weights that are stored in fewer bits "float32" gives those weights, not the ones that they were made of.

        Examples
        --------
        >>> guard.to("int8").save_pretrained("guard-int8")                  # doctest: +SKIP
        """
        threads = self.encoder.n_threads
        if self._params is None and self._adapter is None:
            encoder = _open_encoder(self._folder, dtype, threads)
        else:
            encoder = _C.Encoder.from_params(self._weights(), dtype=dtype, n_threads=threads)
        other = type(self)(encoder, self.tokenizer, self._settings, self._folder, adapter=self._adapter,
                           params=self._params, max_length=self.max_length, long=self.long)
        other.thresholds = dict(self.thresholds)
        return other

    def _weights(self) -> _C.EncoderParams:
        if self._params is not None:
            return self._params
        base, adapter = self._folder, self._adapter
        return _C.EncoderParams.read(base) if adapter is None else adapters.merge(adapter, base)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: str | None = None,
                        embeddings: str | None = None) -> None:
        """Write a Hugging Face folder; an OSError names the file.

        Parameters
        ----------
        folder : str or path-like
            Made when it does not exist. config.json, model.safetensors, the tokenizer's files, and thresholds.json when
            a threshold was fitted. An adapter and a thresholds.json that were there before are removed: they would be
            opened in place of this guard's.
        dtype : str, optional
            "float32", "float16", "bfloat16" or "int8"; None: that of the guard. Transformers loads all but "int8", which
            it refuses for its shapes. Opened with the same dtype, a folder of "bfloat16" or "int8" gives the scores of a
            guard of that dtype, bit for bit.
        embeddings : str, optional
            "int4" with "int8": word embeddings of 4 bits with a scale for each 64, half the size. The scores differ then
            from those of ``to("int8")``.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        dtype = dtype or self.encoder.dtype
        stored = self._settings.get("quantization_config") if self._params is None and self._adapter is None else None
        if dtype == "int8" and stored and embeddings is None:
            if target.resolve() != self._folder.resolve():
                shutil.copyfile(self._folder / "model.safetensors", target / "model.safetensors")
        else:
            self._weights().write(target / "model.safetensors", dtype=dtype, embeddings=embeddings)
            stored = {"quant_method": "harmaug", "version": 2, "weights": dtype, "embeddings": embeddings or dtype}
        names = self._label_names()
        drop = ("_name_or_path", "transformers_version", "torch_dtype", "num_labels", "_num_labels", "quantization_config")
        config = {k: v for k, v in self._settings.items() if k not in drop}
        if dtype == "int8":
            config["quantization_config"] = stored
        kind = self.config["model_type"]
        config |= {"n_layers" if kind == "distilbert" else "num_hidden_layers": self.config["num_hidden_layers"],
                   "architectures": [self.config["architecture"]], "dtype": "float32" if dtype == "int8" else dtype,
                   "id2label": {str(i): name for i, name in enumerate(names)},
                   "label2id": {name: i for i, name in enumerate(names)}}
        if "layer_types" in self.config:
            config["layer_types"] = self.config["layer_types"]
        self.tokenizer.save_pretrained(target)      # first: it may be made from the files that are written here
        write_json(target / "config.json", config)
        path = target / "tokenizer_config.json"
        about = read_object(path) if path.exists() else {"tokenizer_class": "BertTokenizer"} if kind == "bert" else {}
        write_json(path, {**about, "model_max_length": self.max_length})
        for name in (adapters.CONFIG, adapters.WEIGHTS):
            (target / name).unlink(missing_ok=True)
        write_thresholds(target, self.thresholds)

    def _label_names(self) -> list[str]:
        """Names of the labels, so that `unsafe_index` can be told from them alone."""
        n = self.config["num_labels"]
        names = [name or f"LABEL_{i}" for i, name in enumerate(self._labels_given() or [""] * n)]
        if names[self.unsafe_index].lower() not in UNSAFE_NAMES:
            names = ["safe", "unsafe"] if n == 2 else ["unsafe"]
        return names


# -- settings --

def write_thresholds(folder: Path, thresholds: Mapping[str, Any]) -> None:
    """Write thresholds.json for whoever may read the weights; without a threshold, remove the one of weights before these."""
    path = folder / "thresholds.json"
    if not thresholds:
        path.unlink(missing_ok=True)
        return
    write_json(path, thresholds)
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(weights, path)


def _open_encoder(folder: Path, dtype: str, n_threads: int) -> _C.Encoder:
    encoder = _C.Encoder(folder, dtype=dtype, n_threads=n_threads, cache=models.cache_place("weights"))
    if encoder.cache_note:
        _log.info("weights cache: %s", encoder.cache_note)
    return encoder


def _thread_count(n_threads: int | None) -> int:
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be >= 1, got {n_threads}")
    return n_threads or 0


def _check_thresholds(thresholds: Mapping[str, Any], where: Path | str) -> None:
    if thresholds.get("schema_version", 1) != 1:
        raise ValueError(f"{where}: schema_version must be 1, got {thresholds['schema_version']!r}: a newer harmaug wrote it")
    for name, low, high in (("threshold", 0, 1), ("temperature", 1e-3, 1e3)):
        value = thresholds.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
            raise ValueError(f"{where}: {name} must be in [{low:g}, {high:g}], got {value!r}")


def _labels(n: int) -> dict[str, str]:
    return {"0": "unsafe"} if n == 1 else {"0": "safe", "1": "unsafe"} if n == 2 else {}
