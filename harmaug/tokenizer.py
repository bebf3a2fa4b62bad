"""Text to token ids and back, exactly as Hugging Face `tokenizers` does it."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import _C, models

_FILES = (
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "spm.model", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model",
)


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
        Tokens of row i that did not fit ``max_length``.
    """

    __slots__ = ("_again", "_spans", "ids", "offsets", "pad_id", "truncated", "type_ids")

    def __init__(self, parts: tuple[Any, ...], pad_id: int, again: tuple[Any, ...]) -> None:
        self.ids: NDArray[np.int32]
        self.offsets: NDArray[np.int64]
        self.type_ids: NDArray[np.uint8]
        self.truncated: NDArray[np.int32]
        self.ids, self.offsets, self.type_ids, self.truncated, self._spans = parts
        self.pad_id = pad_id
        self._again = again

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

    def __repr__(self) -> str:
        return f"Encoding({len(self)} rows, {len(self.ids)} tokens)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def spans(self) -> NDArray[np.int32]:
        """Begin and end of each token in code points of its own text, shape (total, 2); (0, 0) for tokens that the template adds.

        What `tokenizers` calls offsets. Computed, from the texts, when first asked for.
        """
        if self._spans is None:
            tokenizer, args, options = self._again
            self._spans = tokenizer.encode_batch(*args, **options, spans=True)[4]
        spans: NDArray[np.int32] = self._spans
        return spans

    def padded(self, side: str = "right", *, length: int | None = None, pad_to_multiple_of: int | None = None) -> dict[str, NDArray[np.int32]]:
        """Rectangular arrays, as models of other libraries take them.

        Parameters
        ----------
        side : {"right", "left"}
            Where the padding goes.
        length : int, optional
            Columns; not below the longest row. Default: the longest row.
        pad_to_multiple_of : int, optional
            Rounds the number of columns up.

        Returns
        -------
        dict
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, each int32 of shape (n, columns).
        """
        if side not in ("right", "left"):
            raise ValueError(f"side must be 'right' or 'left', got {side!r}")
        lengths = self.lengths
        columns = int(lengths.max(initial=0))
        if length is not None:
            if length < columns:
                raise ValueError(f"length must be at least {columns}, the longest row, got {length}")
            columns = length
        if pad_to_multiple_of is not None:
            if pad_to_multiple_of < 1:
                raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")
            columns = -(-columns // pad_to_multiple_of) * pad_to_multiple_of
        place = np.arange(columns)
        there = place < lengths[:, None] if side == "right" else place >= columns - lengths[:, None]
        out = {name: np.full(there.shape, fill, dtype=np.int32) for name, fill in
               (("input_ids", self.pad_id), ("attention_mask", 0), ("token_type_ids", 0))}
        out["input_ids"][there] = self.ids
        out["attention_mask"][there] = 1
        out["token_type_ids"][there] = self.type_ids
        return out


class Tokenizer:
    """A tokenizer of a Hugging Face folder or file, of a sentencepiece model, or of a GGUF file.

    WordPiece (BERT), byte-level BPE (GPT-2, Llama-3, Qwen2, SmolLM2), Unigram and BPE of sentencepiece (DeBERTa-v2/v3, XLM-R, T5, ALBERT; Llama-2,
    Mistral, Gemma), read from tokenizer.json, a .model file, vocab.txt or GGUF metadata. Ids, type ids and spans equal those of the `tokenizers` library;
    a file that asks for something else is refused by name.

    Use `from_pretrained` to open one. It is immutable: threads may share it.

    Attributes
    ----------
    path : Path
        Folder or file that it was opened from.
    reference : str
        Whose ids a sentencepiece model gives.
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
        self._options: dict[str, Any] = {} if pattern is None else {"pattern": pattern, "special_tokens": dict(special_tokens or {})}
        self._tokenizer = _C.Tokenizer(self.path, reference=reference, **self._options)
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
        return partial(Tokenizer, reference=self.reference, **self._options), (os.fspath(self.path.absolute()),)

    def __repr__(self) -> str:
        return f"Tokenizer({os.fspath(self.path)!r}, vocab_size={self.vocab_size})"

    def _find_pad(self) -> int:
        """What the files beside say pads, else what the file itself says, else a token of a usual name, else 0."""
        folder = self.path if self.path.is_dir() else self.path.parent
        token: Any = None
        for file in ("tokenizer_config.json", "special_tokens_map.json"):       # the later one wins, unless the first lists the added tokens
            if self.path.suffix != ".gguf" and (folder / file).is_file():
                settings = _C.json_loads((folder / file).read_bytes(), name=str(folder / file))
                if type(settings) is not dict:
                    raise _C.FormatError(f"{folder / file}: must hold an object")
                token = settings.get("pad_token", token)
                if "added_tokens_decoder" in settings:
                    break
        name = token.get("content") if isinstance(token, dict) else token
        found = [self.token_to_id(name)] if isinstance(name, str) else []
        found += [self._tokenizer.pad_id, *map(self.token_to_id, ("[PAD]", "<pad>"))]
        return next((id for id in found if id is not None), 0)

    def encode_batch(
        self, texts: Iterable[str], pairs: Iterable[str | None] | None = None, add_special_tokens: bool = True,
        max_length: int | None = None, truncation: str = "longest_first", padding: bool = False, *,
        truncation_side: str = "right", n_threads: int | None = None, split_special_tokens: bool = False,
    ) -> Encoding:
        """Encode many texts.

        Parameters
        ----------
        texts : iterable of str
        pairs : iterable of str or None, optional
            The second text of each row. None: no second text; an empty string is an empty second text, which has its separator.
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
        n_threads : int, optional
            Default: all that the library uses.
        split_special_tokens : bool, default False
            Special tokens inside the texts ("[SEP]", "<|endoftext|>") are text like any other: nobody who writes a text can put them there. Added tokens
            that are not special are found all the same. What `tokenizers` calls encode_special_tokens.

        Returns
        -------
        Encoding

        Raises
        ------
        ValueError
            Naming the row: a lone surrogate, or a strategy that cannot meet max_length.
        TypeError
            Naming the row that is no str.
        """
        if truncation_side not in ("right", "left"):
            raise ValueError(f"truncation_side must be 'right' or 'left', got {truncation_side!r}")
        args = (_rows(texts, "texts"), None if pairs is None else _rows(pairs, "pairs"))
        options: dict[str, Any] = {
            "add_special_tokens": add_special_tokens, "max_length": max_length, "truncation": truncation,
            "truncate_left": truncation_side == "left", "n_threads": n_threads or 0, "split_special_tokens": split_special_tokens,
        }
        del padding
        return Encoding(self._tokenizer.encode_batch(*args, **options), self.pad_id, (self._tokenizer, args, options))

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
        """Copy the files that the tokenizer was opened from, and those that belong to it, into a folder.

        Returns
        -------
        list of Path
            The files written.

        Raises
        ------
        ValueError
            For a tokenizer from a GGUF file, which holds a whole model.
        """
        if self.path.suffix == ".gguf":
            raise ValueError(f"{self.path}: a tokenizer from GGUF has no files of its own to save")
        source = self.path if self.path.is_dir() else self.path.parent
        names = [name for name in _FILES if (source / name).is_file()]
        if not self.path.is_dir() and self.path.name not in names:
            names = [self.path.name]
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for name in names:
            if (source / name).resolve() != (target / name).resolve():
                shutil.copyfile(source / name, target / name)
            written.append(target / name)
        return written


def _rows(texts: Iterable[Any], what: str) -> Sequence[Any]:
    """A tuple: iterables are read once, and `Encoding.spans` may need the texts again."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{what} must be a sequence of str, got one {type(texts).__name__}: write [text]")
    return tuple(texts)
