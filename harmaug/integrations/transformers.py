"""A harmaug tokenizer where a `transformers` tokenizer is expected."""
from __future__ import annotations

import os
import sys
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmaug.tokenizer import Encoding, Tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
UNLIMITED = int(1e20)       # from here on, transformers takes model_max_length for none
_PAD = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}


class Batch(UserDict[str, Any]):
    """What a call returns: a mapping whose keys are attributes too, with `to` for tensors."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def to(self, device: Any, **options: Any) -> Batch:
        """Move the tensors to a device, in place."""
        self.data = {key: value.to(device, **options) if hasattr(value, "to") else value for key, value in self.data.items()}
        return self


class TransformersTokenizer:
    """The calls of a fast `transformers` tokenizer (5.23's meaning), answered by a `harmaug.Tokenizer`; see `harmaug.tokenizer.as_transformers`.

    Attributes
    ----------
    padding_side, truncation_side : {"right", "left"}
    model_max_length : int
    model_input_names : list of str
        Which arrays a call returns. From tokenizer_config.json; without it there, token_type_ids are among them when a pair has more than one.
    pad_token, pad_token_id, cls_token, cls_token_id, ...
        Of bos, eos, unk, sep, pad, cls and mask, as tokenizer_config.json names them, else ``[CLS]`` and the like where the vocabulary has them; None
        where there is none. They can be set.
    """

    is_fast = True
    pad_token_type_id = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        settings = tokenizer.settings
        self.__dict__["_tokens"] = {}
        for name in _SPECIAL:
            token = settings.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            token = token if isinstance(token, str) else f"[{name[:-6].upper()}]"
            if tokenizer.token_to_id(token) is not None:
                self._tokens[name] = token
        self._tokenizer = tokenizer
        if "pad_token" not in self._tokens:
            self.pad_token_id = tokenizer.pad_id
        self.name_or_path = os.fspath(tokenizer.path)
        self.model_max_length = int(settings.get("model_max_length") or 1e30)
        self.padding_side = settings.get("padding_side") or "right"
        self.truncation_side = settings.get("truncation_side") or "right"
        types = tokenizer.encode_batch(["a"], ["b"]).type_ids
        self.model_input_names = list(settings.get("model_input_names") or ["input_ids", *["token_type_ids"] * bool(types.any()), "attention_mask"])

    @property       # type: ignore[misc]
    def __class__(self) -> type:
        """isinstance(self, PreTrainedTokenizerBase) is what a Trainer asks before it takes DataCollatorWithPadding; nothing here imports transformers."""
        base = sys.modules.get("transformers.tokenization_utils_base")
        return getattr(base, "PreTrainedTokenizerBase", type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._tokenizer, {name: value for name, value in self.__dict__.items() if name != "_tokenizer"})

    def __getattr__(self, name: str) -> Any:
        key = name.removesuffix("_id")
        if key not in _SPECIAL:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        token = self._tokens.get(key)
        return token if key == name or token is None else self._tokenizer.token_to_id(token)

    def __setattr__(self, name: str, value: Any) -> None:
        key = name.removesuffix("_id")
        if key in _SPECIAL:
            self._tokens[key] = self._tokenizer.id_to_token(value) if key != name and value is not None else value
        else:
            self.__dict__[name] = value

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    def __repr__(self) -> str:
        return f"as_transformers({self._tokenizer!r})"

    # -- text to ids --

    def __call__(
        self, text: Any, text_pair: Any = None, *, add_special_tokens: bool = True, padding: Any = False, truncation: Any = None,
        max_length: int | None = None, stride: int = 0, pad_to_multiple_of: int | None = None, padding_side: str | None = None,
        return_tensors: Any = None, return_token_type_ids: bool | None = None, return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False, return_offsets_mapping: bool = False, verbose: bool = True,
    ) -> Batch:
        """Encode one text, or a list of texts, as ``transformers`` does.

        Parameters
        ----------
        text, text_pair : str, or sequence of str
            One text and its pair (an empty one is none), or as many pairs as texts (an empty one is a pair). Texts may be (text, pair) themselves.
        padding : bool, "longest" or "max_length"
        truncation : bool, "longest_first", "only_first", "only_second" or "do_not_truncate"
        max_length : int, optional
            Default: `model_max_length`.
        stride : int
            With return_overflowing_tokens: tokens that a window shares with the one before.
        return_tensors : None, "np" or "pt"
            None: lists of int. Arrays are int64.

        Returns
        -------
        Batch
            input_ids, and token_type_ids, attention_mask as `model_input_names` has them; offset_mapping and overflow_to_sample_mapping where asked for.
        """
        one = isinstance(text, str)
        if one:
            texts, pairs = [text], [text_pair] if text_pair else None
        else:
            texts, pairs = list(text), None if text_pair is None else list(text_pair)
            if pairs is None and texts and all(isinstance(t, (tuple, list)) and len(t) == 2 for t in texts):
                texts, pairs = [t[0] for t in texts], [t[1] for t in texts]
        how, cut, max_length = self._strategies(padding, truncation, max_length)
        encoding = self._tokenizer.encode_batch(
            texts, pairs, add_special_tokens, None if cut == "do_not_truncate" else max_length, "none" if cut == "do_not_truncate" else cut,
            truncation_side=self.truncation_side, stride=stride if return_overflowing_tokens else None)
        wanted = {"token_type_ids": return_token_type_ids, "attention_mask": return_attention_mask}
        names = ["input_ids", *(n for n, asked in wanted.items() if asked or (asked is None and n in self.model_input_names)),
                 *["offset_mapping"] * return_offsets_mapping]
        if how == "do_not_pad" and return_tensors is None:
            arrays = _ragged(encoding, names)
        else:
            if how == "do_not_pad" and len(set(encoding.lengths.tolist())) > 1:
                raise ValueError("rows of different lengths make no tensor: ask for padding=True, and for truncation=True where texts are too long")
            arrays = _rectangles(encoding, names, padding_side or self.padding_side, max_length if how == "max_length" else None,
                                 pad_to_multiple_of if how != "do_not_pad" else None, self.pad_token_id)
        if return_overflowing_tokens:
            arrays["overflow_to_sample_mapping"] = encoding.text_index
        out = _converted(arrays, return_tensors)
        if return_offsets_mapping and return_tensors is None:
            out["offset_mapping"] = [[tuple(span) for span in row] for row in out["offset_mapping"]]
        return Batch({k: v[0] for k, v in out.items()} if one and return_tensors is None and not return_overflowing_tokens else out)

    def _strategies(self, padding: Any, truncation: Any, max_length: int | None) -> tuple[str, str, int | None]:
        """Names of how rows are padded and cut, and to what; transformers' _get_padding_truncation_strategies."""
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        how = {True: "longest", False: "do_not_pad", None: "do_not_pad"}.get(padding) or str(getattr(padding, "value", padding))
        cut = {True: "longest_first", False: "do_not_truncate", None: "do_not_truncate"}.get(truncation) or str(getattr(truncation, "value", truncation))
        for what, value, known in (("padding", how, ("longest", "max_length", "do_not_pad")),
                                   ("truncation", cut, ("longest_first", "only_first", "only_second", "do_not_truncate"))):
            if value not in known:
                raise ValueError(f"{what} must be a bool or one of {', '.join(known)}, got {value!r}")
        if max_length is None and self.model_max_length <= UNLIMITED:
            max_length = self.model_max_length
        elif max_length is None:
            how, cut = how if how == "longest" else "do_not_pad", "do_not_truncate"
        return how, cut, max_length

    def encode(self, text: str, text_pair: str | None = None, **options: Any) -> Any:
        """The input_ids of a call."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        return list(self.convert_ids_to_tokens(self._tokenizer.encode(text, pair, add_special_tokens)))

    def pad(
        self, encoded_inputs: Any, padding: Any = True, max_length: int | None = None, pad_to_multiple_of: int | None = None,
        padding_side: str | None = None, return_attention_mask: bool | None = None, return_tensors: Any = None, verbose: bool = True,
    ) -> Batch:
        """Pad rows that were encoded before: a mapping of lists, or a list of mappings. Keys that are not the tokenizer's (labels) go through."""
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {key: [row[key] for row in encoded_inputs] for key in encoded_inputs[0]}
        columns = {key: _listed(value) for key, value in encoded_inputs.items()}
        if "input_ids" not in columns:
            raise ValueError(f"rows to pad must have input_ids, got {list(columns)}")
        one = bool(columns["input_ids"]) and not isinstance(columns["input_ids"][0], list)
        if one:
            columns = {key: [value] for key, value in columns.items()}
        lengths = [len(row) for row in columns["input_ids"]]
        if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
            columns.setdefault("attention_mask", [[1] * n for n in lengths])
        how, _, max_length = self._strategies(padding, False, max_length)
        if how != "do_not_pad":
            length = max(lengths, default=0) if how == "longest" or max_length is None else max_length
            length = -(-length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
            for key, fill in {**_PAD, "input_ids": self.pad_token_id}.items():
                if key in columns:
                    rest = [[fill] * (length - n) for n in lengths]
                    left = (padding_side or self.padding_side) == "left"
                    columns[key] = [r + row if left else row + r for row, r in zip(columns[key], rest, strict=True)]
        if one:
            columns = {key: value[0] for key, value in columns.items()}
        return Batch(_converted(columns, return_tensors))

    # -- ids to text --

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> Any:
        """The text of one row of ids, or of one id; a list of texts for rows."""
        ids = _listed(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return self.batch_decode(ids, skip_special_tokens)
        return self._tokenizer.decode(np.asarray([ids] if isinstance(ids, int) else ids, dtype=np.int64), skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **_: Any) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or those of a list; of what is no token, that of unk_token."""
        if isinstance(tokens, str):
            id = self._tokenizer.token_to_id(tokens)
            return self.unk_token_id if id is None else id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or those of a list."""
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._tokenizer.id_to_token(int(id)) for id in ids if int(id) not in skipped]

    # -- vocabulary and files --

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys(token for token in self._tokens.values() if token is not None))

    @property
    def all_special_ids(self) -> list[int]:
        return list(self.convert_tokens_to_ids(self.all_special_tokens))

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return {token: id for id in range(len(self)) if (token := self._tokenizer.id_to_token(id)) is not None}

    def get_special_tokens_mask(self, token_ids_0: Sequence[int], token_ids_1: Any = None, already_has_special_tokens: bool = False) -> list[int]:
        """1 where an id is a special token's. Only for rows that have theirs."""
        if not already_has_special_tokens or token_ids_1 is not None:
            raise ValueError("get_special_tokens_mask: only rows that already have their special tokens (already_has_special_tokens=True)")
        special = set(self.all_special_ids)
        return [int(id in special) for id in token_ids_0]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens the template adds to a text, or to a text and its pair."""
        return len(self._tokenizer.encode("", "" if pair else None))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> tuple[str, ...]:
        """`Tokenizer.save_pretrained`."""
        return tuple(os.fspath(path) for path in self._tokenizer.save_pretrained(save_directory))


def _rebuild(tokenizer: Tokenizer, state: dict[str, Any]) -> TransformersTokenizer:
    out = TransformersTokenizer(tokenizer)
    out.__dict__.update(state)
    return out


def _listed(value: Any) -> Any:
    """Arrays and tensors, also inside a list, as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def _ragged(encoding: Encoding, names: Iterable[str]) -> dict[str, Any]:
    """Rows of their own lengths, as lists."""
    flat: dict[str, Any] = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids, "attention_mask": np.ones_like(encoding.ids)}
    if "offset_mapping" in names:
        flat["offset_mapping"] = encoding.spans
    return {name: [row.tolist() for row in np.split(flat[name], encoding.offsets[1:-1])] if len(encoding) else [] for name in names}


def _rectangles(encoding: Encoding, names: Iterable[str], side: str, length: int | None, multiple: int | None, pad_id: int | None) -> dict[str, Any]:
    if pad_id is None:
        raise ValueError("padding needs a pad_token: set it, to eos_token for instance")
    encoding.pad_id = pad_id
    arrays: dict[str, NDArray[Any]] = dict(encoding.padded(side, length=length, pad_to_multiple_of=multiple, dtype="int64"))
    if "offset_mapping" in names:
        arrays["offset_mapping"] = np.zeros((*arrays["input_ids"].shape, 2), dtype=np.int64)
        arrays["offset_mapping"][arrays["attention_mask"] == 1] = encoding.spans
    return {name: arrays[name] for name in names}


def _converted(arrays: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """As lists, numpy arrays or torch tensors."""
    name = getattr(kind, "value", kind)
    if name is None:
        return {key: _listed(value) for key, value in arrays.items()}
    if name == "np":
        return {key: np.asarray(value) for key, value in arrays.items()}
    if name == "pt":
        import torch

        return {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else torch.tensor(v) for key, v in arrays.items()}
    raise ValueError(f"return_tensors must be None, 'np' or 'pt', got {kind!r}")
