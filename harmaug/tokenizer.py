"""Text to token ids and back, exactly as Hugging Face `tokenizers` does it."""
from __future__ import annotations

import functools
import itertools
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import _C, models

_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_VOCABULARIES = ("tokenizer.json", "spm.model", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")
_SAVED_AS = {".json": "tokenizer.json", ".txt": "vocab.txt", ".model": "tokenizer.model"}


_log = logging.getLogger(__name__)


class Encoding:
    """Rows of token ids of different lengths, one after the other.

    Attributes
    ----------
    ids : ndarray, shape (total,), int32
    offsets : ndarray, shape (n + 1,), int64
        Row i is ``ids[offsets[i]:offsets[i + 1]]``; never character positions (see `spans`).
    type_ids : ndarray, shape (total,), uint8
        0 for the first text, 1 for its pair, as the tokenizer's template says.
    truncated : ndarray, shape (n,), int32
        Tokens of row i's text that did not fit ``max_length``; 0 with windows, which lose none.
    text_index : ndarray, shape (n,), int64
        Which text row i is of: i, unless ``stride`` made windows, of which a long text has several.
    pad_id : int
        What `padded` fills with.
    """

    __slots__ = ("_again", "_spans", "ids", "offsets", "pad_id", "text_index", "truncated", "type_ids")

    def __init__(self, parts: tuple[Any, ...], pad_id: int, again: tuple[Any, ...] | None = None) -> None:
        self.ids: NDArray[np.int32]
        self.offsets: NDArray[np.int64]
        self.type_ids: NDArray[np.uint8]
        self.truncated: NDArray[np.int32]
        self.text_index: NDArray[np.int64]
        self.ids, self.offsets, self.type_ids, self.truncated, self.text_index, self._spans = parts
        self.pad_id = pad_id
        self._again = again

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoding, ((self.ids, self.offsets, self.type_ids, self.truncated, self.text_index, self._spans), self.pad_id)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, row: slice) -> list[NDArray[np.int32]]: ...

    def __getitem__(self, row: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        """A view of one row's ids."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        i = row + len(self) if row < 0 else row
        if not 0 <= i < len(self):
            raise IndexError(f"row {row} of an encoding of {len(self)} rows")
        return self.ids[self.offsets[i]:self.offsets[i + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self.ids[begin:end] for begin, end in itertools.pairwise(self.offsets.tolist()))

    def __repr__(self) -> str:
        return f"Encoding({len(self)} rows, {len(self.ids)} tokens)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def spans(self) -> NDArray[np.int32]:
        """Begin and end of each token in code points of its own text, shape (total, 2); (0, 0) for tokens that the template adds.

        What `tokenizers` calls offsets. Computed, from the texts, when first asked for; a pickle carries them when they were, and no texts.
        """
        if self._spans is None:
            if self._again is None:
                raise ValueError("this encoding was pickled without its texts: ask for spans before that")
            tokenizer, args, options = self._again
            self._spans = tokenizer.encode_batch(*args, **options, spans=True)[5]
            self._again = None
        spans: NDArray[np.int32] = self._spans
        return spans

    def padded(
        self, side: str = "right", *, length: int | None = None, pad_to_multiple_of: int | None = None, dtype: str = "int32",
        n_threads: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Rectangular arrays, as models of other libraries take them.

        Parameters
        ----------
        side : {"right", "left"}
            Where the padding goes.
        length : int, optional
            Columns; not below the longest row. Default: the longest row.
        pad_to_multiple_of : int, optional
            Rounds the number of columns up.
        dtype : {"int32", "int64"}
            int64 is what torch.from_numpy should get for an embedding.
        n_threads : int, optional
            Default: all that the library uses.

        Returns
        -------
        dict
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, each of shape (n, columns).
        """
        for name, value, known in (("side", side, ("right", "left")), ("dtype", dtype, ("int32", "int64"))):
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
        ids, mask, types = _C.pad_rows(self.ids, self.offsets, self.type_ids, length=length, multiple=pad_to_multiple_of, pad_id=self.pad_id,
                                       left=side == "left", wide=dtype == "int64", n_threads=n_threads or 0)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


class Tokenizer:
    """A tokenizer of a Hugging Face folder or file, of a sentencepiece model, or of a GGUF file.

    WordPiece (BERT), byte-level BPE (GPT-2, Llama-3, Qwen2, SmolLM2), Unigram and BPE of sentencepiece (DeBERTa-v2/v3, XLM-R, T5, ALBERT; Llama-2,
    Mistral, Gemma), read from tokenizer.json, a .model file, vocab.txt or GGUF metadata. Ids, type ids and spans equal those of the `tokenizers` library;
    a file that asks for something else is refused by name.

    Use `from_pretrained` to open one. It is immutable: threads may share it. A pickle carries the files, so that it opens on another machine too.

    Attributes
    ----------
    path : Path
        Folder or file that it was opened from.
    reference : str
        Whose ids a sentencepiece model gives.
    settings : dict
        What tokenizer_config.json and special_tokens_map.json hold; empty without them.
    pad_id : int
        What `Encoding.padded` fills with.

    Examples
    --------
    >>> tok = Tokenizer.from_pretrained("minilm")                      # doctest: +SKIP
    >>> tok.encode("Hello world")                                      # doctest: +SKIP
    [101, 7592, 2088, 102]
    """

    def __init__(
        self, path: str | os.PathLike[str], *, reference: str = "tokenizers", pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> None:
        if special_tokens and pattern is None:
            raise ValueError("special_tokens go with a .tiktoken file and its pattern; other files have their own")
        self.path = Path(path)
        self.reference = reference
        self._options: dict[str, Any] = {"reference": reference}
        if pattern is not None:
            self._options |= {"pattern": pattern, "special_tokens": dict(special_tokens or {})}
        self._held: dict[str, bytes] | None = None
        self._stamps = {file: _stamp(file) for file in tokenizer_files(self.path).values()}
        self._tokenizer = _C.Tokenizer(_entry(self.path), **self._options, cache=models.cache_place("tokenizers"))
        if self._tokenizer.cache_note:
            _log.info("tokenizer cache: %s", self._tokenizer.cache_note)
        self.settings = self._read_settings()
        self.pad_id = self._find_pad()

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, reference: str = "tokenizers", pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """Open a tokenizer.

        Parameters
        ----------
        path : str or path-like
            A folder with tokenizer.json, a sentencepiece model (spm.model, tokenizer.model, sentencepiece.bpe.model, spiece.model), vocab.txt, or
            vocab.json and merges.txt (what else lies there says whose conventions apply: GPT-2, RoBERTa, BART, Longformer, Qwen2), one of these
            files, a .gguf file, the name of a fetched model (`harmaug.models`), or with `pattern` a .tiktoken file.
        reference : {"tokenizers", "sentencepiece"}
            Whose ids a sentencepiece model gives: those of the fast tokenizer that transformers 4 makes of it for the tokenizer_class that
            tokenizer_config.json names, or those of sentencepiece itself, without special tokens.
        pattern : str, optional
            How text is cut before the ranks of a .tiktoken file apply: "gpt2", "cl100k", "o200k", "llama3", "qwen2", "tekken", or the expression of one of
            them. Ids are then those of the `tiktoken` library.
        special_tokens : mapping of str to int, optional
            The special tokens of a .tiktoken file, which holds none.

        Raises
        ------
        OSError
            If there is none.
        FormatError
            If the file is damaged, or names a component or option that is not supported exactly.
        ValueError
            If a .tiktoken file comes without its pattern, or the pattern is not one of these.
        """
        return cls(models.resolve(path), reference=reference, pattern=pattern, special_tokens=special_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        options = tuple((name, tuple(value.items()) if isinstance(value, dict) else value) for name, value in self._options.items())
        return _unpickled, (os.fspath(self.path), tuple(self._contents().items()), options)

    def __copy__(self) -> Tokenizer:
        return self

    def __deepcopy__(self, memo: Any) -> Tokenizer:
        return self

    def __repr__(self) -> str:
        return f"Tokenizer({os.fspath(self.path)!r}, vocab_size={self.vocab_size})"

    def _contents(self) -> dict[str, bytes]:
        """The files that make this tokenizer, under the names that a folder gives them."""
        if self._held is not None:
            return self._held
        for file, stamp in self._stamps.items():
            if _stamp(file) != stamp:
                raise OSError(f"{file}: has changed since the tokenizer was opened: what it was made from is not there any more")
        return {name: _metadata(file) if file.suffix == ".gguf" else file.read_bytes() for name, file in tokenizer_files(self.path).items()}

    def _read_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):       # the later one wins, unless the first lists the added tokens
            file = tokenizer_files(self.path).get(name)
            if file is not None and "added_tokens_decoder" not in settings:
                read = _C.json_loads(file.read_bytes(), name=str(file))
                if type(read) is not dict:
                    raise _C.FormatError(f"{file}: must hold an object")
                settings |= read
        return settings

    def _find_pad(self) -> int:
        """What the files beside say pads, else what the file itself says, else a token of a usual name, else 0."""
        token = self.settings.get("pad_token")
        names = [token.get("content") if isinstance(token, dict) else token]
        found = [self.token_to_id(name) for name in names if isinstance(name, str)]
        found += [self._tokenizer.pad_id, *map(self.token_to_id, ("[PAD]", "<pad>"))]
        return next((id for id in found if id is not None), 0)

    def encode_batch(
        self, texts: Iterable[str], pairs: Iterable[str | None] | None = None, add_special_tokens: bool = True,
        max_length: int | None = None, truncation: str = "longest_first", padding: bool = False, *,
        truncation_side: str = "right", stride: int | None = None, n_threads: int | None = None, progress: bool = False,
        split_special_tokens: bool = False,
    ) -> Encoding:
        """Encode many texts.

        Parameters
        ----------
        texts : iterable of str
            A list, a generator, a column of numpy or pandas: anything that yields str.
        pairs : iterable of str or None, optional
            The second text of each row. None (NaN, pandas.NA): no second text; an empty string is an empty second text, which has its separator.
        add_special_tokens : bool, default True
            Whether the template's tokens ([CLS], [SEP], ...) are added.
        max_length : int, optional
            Limit of each row in tokens, special ones included. Below the number of special tokens it has no effect, as in `tokenizers`.
        truncation : {"longest_first", "only_first", "only_second", "none"}
            What is cut where a row is too long. Without `max_length` nothing is.
        padding : bool, default False
            Accepted for the sake of callers of other libraries; rows stay ragged, and `Encoding.padded` pads them.
        truncation_side : {"right", "left"}
            The end that is cut.
        stride : int, optional
            None: what is cut off is dropped, and `Encoding.truncated` counts it. A number: a text that is cut goes into several rows, windows of which each
            begins (from the left: ends) with the last `stride` tokens of the one before; `Encoding.text_index` says which text a row is of. The rows of a
            text are those of `tokenizers`, the truncated one and then the overflowing ones; where both texts of a pair are cut, each window of one stands
            beside each of the other.
        n_threads : int, optional
            Default: all that the library uses.
        progress : bool, default False
            Whether a progress bar is shown.
        split_special_tokens : bool, default False
            Special tokens inside the texts ("[SEP]", "<|endoftext|>") are text like any other: nobody who writes a text can put them there. Added tokens
            that are not special are found all the same. What `tokenizers` calls encode_special_tokens.

        Returns
        -------
        Encoding

        Raises
        ------
        ValueError
            Naming the row: a lone surrogate, a strategy that cannot meet max_length, or a stride that is not below the tokens left of a text.
        TypeError
            Naming the row that is no str.
        """
        if truncation_side not in ("right", "left"):
            raise ValueError(f"truncation_side must be 'right' or 'left', got {truncation_side!r}")
        args = (_rows(texts, "texts"), None if pairs is None else _rows(pairs, "pairs"))
        options: dict[str, Any] = {
            "add_special_tokens": add_special_tokens, "max_length": max_length, "truncation": truncation,
            "truncate_left": truncation_side == "left", "stride": stride, "n_threads": n_threads or 0, "split_special_tokens": split_special_tokens,
        }
        del padding
        if not progress:
            return Encoding(self._tokenizer.encode_batch(*args, **options), self.pad_id, (self._tokenizer, args, options))
        from tqdm.auto import tqdm

        with tqdm(total=len(args[0]), desc="tokenize", unit=" texts") as bar:
            parts = self._tokenizer.encode_batch(*args, **options, progress=lambda done: bar.update(done - bar.n))
            bar.update(bar.total - bar.n)
        return Encoding(parts, self.pad_id, (self._tokenizer, args, options))

    def encode(self, text: str, pair: str | None = None, add_special_tokens: bool = True, *, split_special_tokens: bool = False) -> list[int]:
        """Token ids of one text, or of a text and its pair; the options are those of `encode_batch`."""
        ids: list[int] = self._tokenizer.encode_batch(
            (text,), (pair,), add_special_tokens=add_special_tokens, n_threads=1, split_special_tokens=split_special_tokens)[0].tolist()
        return ids

    def count_tokens(self, texts: Iterable[str], pairs: Iterable[str | None] | None = None, add_special_tokens: bool = True) -> NDArray[np.int64]:
        """How many tokens each text comes to, shape (n,)."""
        return self.encode_batch(texts, pairs, add_special_tokens).lengths

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = True) -> str:
        """Text of token ids.

        Raises
        ------
        ValueError
            If an id has no token.
        """
        return self._tokenizer.decode(ids, skip_special_tokens)

    def decode_batch(self, rows: Iterable[ArrayLike], skip_special_tokens: bool = True) -> list[str]:
        """Text of each row of token ids; an `Encoding` is rows."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return self._tokenizer.vocab_size

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id, or None."""
        return self._tokenizer.id_to_token(id)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token decodes to on its own; b"" for special tokens."""
        return self._tokenizer.token_bytes(id)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files that this tokenizer is made of into a folder, which `from_pretrained` opens to the same ids.

        The files stay what they are, and transformers opens those that it knows. Of a GGUF file only the metadata is written, as tokenizer.gguf. A config.json
        that is there already stays.

        Returns
        -------
        list of Path
            The files written.

        Raises
        ------
        OSError
            If the files cannot be read or written, or have changed since they were opened.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for name, content in self._contents().items():
            file = target / name
            if name == "config.json" and file.exists():
                continue        # the model's own
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
            written.append(file)
        return written


def as_transformers(tokenizer: Tokenizer) -> Any:
    """The tokenizer as `transformers` users know one: callable, with ``pad``, ``decode`` and special tokens.

    Where a Trainer, a DataCollatorWithPadding or a pipeline takes a fast tokenizer, it takes this. Same ids, no `tokenizers` inside.

    Parameters
    ----------
    tokenizer : Tokenizer

    Returns
    -------
    harmaug.integrations.transformers.TransformersTokenizer

    Examples
    --------
    >>> tok = as_transformers(Tokenizer.from_pretrained("minilm"))     # doctest: +SKIP
    >>> tok(["one text", "and another"], padding=True, return_tensors="np")["input_ids"].shape     # doctest: +SKIP
    (2, 4)
    """
    from harmaug.integrations.transformers import TransformersTokenizer

    return TransformersTokenizer(tokenizer)


def tokenizer_files(path: Path) -> dict[str, Path]:
    """The files of a tokenizer, under the names that `save_pretrained` gives them."""
    if path.suffix == ".gguf" and path.is_file():
        return {"tokenizer.gguf": path}
    folder = path if path.is_dir() else path.parent
    parts = next(((end, path.name.removesuffix(end)) for end in ("vocab.json", "merges.txt") if path.name.endswith(end)), None)
    if path.is_dir():
        found = {name: folder / name for name in _VOCABULARIES} | {file.name: file for file in folder.glob("*.tiktoken")}
        ggufs = list(folder.glob("*.gguf"))
        if len(ggufs) == 1 and not any(file.is_file() for file in found.values()):
            return {"tokenizer.gguf": ggufs[0]}
    elif parts is not None:
        found = {name: folder / f"{parts[1]}{name}" for name in ("vocab.json", "merges.txt")}
    else:
        found = {path.name if path.name in _VOCABULARIES else _SAVED_AS.get(path.suffix, path.name): path}
    found |= {name: folder / name for name in _COMPANIONS}
    if "tokenizer.json" not in (name for name, file in found.items() if file.is_file()):
        found["config.json"] = folder / "config.json"       # the kind of model says whose conventions a bare vocabulary follows
    return {name: file for name, file in found.items() if file.is_file()}


def _entry(path: Path) -> Path:
    """What the C core opens: the path, or the one GGUF file of a folder without any other vocabulary."""
    return tokenizer_files(path).get("tokenizer.gguf", path)


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _metadata(file: Path) -> bytes:
    """A GGUF file without its tensors: the header with their number zero, and the metadata."""
    end = _C.TensorFile(file).metadata_end
    with open(file, "rb") as f:
        head = f.read(end)
    return head[:8] + bytes(8) + head[16:]


@functools.lru_cache(maxsize=4)     # a worker that gets the same tokenizer with each task opens it once
def _unpickled(path: str, files: tuple[tuple[str, bytes], ...], options: tuple[tuple[str, Any], ...]) -> Tokenizer:
    with tempfile.TemporaryDirectory(prefix="harmaug-") as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        tokenizer = Tokenizer(folder, **dict(options))
    tokenizer.path, tokenizer._held, tokenizer._stamps = Path(path), dict(files), {}
    return tokenizer


def _rows(texts: Iterable[Any], what: str) -> Sequence[Any]:
    """A tuple: iterables are read once, and `Encoding.spans` may need the texts again."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{what} must be a sequence of str, got one {type(texts).__name__}: write [text]")
    return tuple(texts)
