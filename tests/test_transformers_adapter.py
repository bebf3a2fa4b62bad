"""`as_transformers` without transformers: its own contract. tests/reference/test_transformers_adapter.py holds it beside the original."""
from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from test_tokenizer import WORDS, bert

from harmaug import Tokenizer
from harmaug.tokenizer import as_transformers

TEXTS = ["the dog", "a", "", "thing dog the"]


@pytest.fixture
def tok(tmp_path: Path) -> Any:
    bert().save(str(tmp_path / "tokenizer.json"))
    settings = {"model_max_length": 6, "pad_token": "[PAD]", "mask_token": {"content": "[MASK]"}, "eos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return as_transformers(Tokenizer.from_pretrained(tmp_path))


def theirs(length: int | None = None, **options: Any) -> tokenizers.Tokenizer:
    out = bert()
    if length is not None:
        out.enable_truncation(length, **options)
    return out


def test_lists(tok: Any) -> None:
    got = tok(TEXTS)
    want = theirs().encode_batch(TEXTS)
    assert list(got) == ["input_ids", "token_type_ids", "attention_mask"] and got.input_ids == got["input_ids"] == [e.ids for e in want]
    assert got.token_type_ids == [e.type_ids for e in want] and got.attention_mask == [e.attention_mask for e in want]
    one = tok("the dog", "a", return_offsets_mapping=True)
    pair = theirs().encode("the dog", "a")
    assert (one.input_ids, one.token_type_ids, one.offset_mapping) == (pair.ids, pair.type_ids, pair.offsets)
    assert tok("a", "").input_ids == tok("a").input_ids and tok(["a"], [""]).input_ids == [theirs().encode("a", "").ids]
    assert tok([("a", "dog"), ["a", ""]]).input_ids == tok(["a", "a"], ["dog", ""]).input_ids
    assert tok("the dog", add_special_tokens=False, return_token_type_ids=False, return_attention_mask=False).data == {"input_ids": pair.ids[1:3]}
    assert tok.encode("a") == tok("a").input_ids and tok([]).data == {"input_ids": [], "token_type_ids": [], "attention_mask": []}


def test_truncation_and_padding(tok: Any) -> None:
    long = ["the dog a the dog a the dog", "a dog"]
    for options, length in (({"truncation": True}, 6), ({"truncation": "longest_first", "max_length": 4}, 4), ({"max_length": 5}, 5), ({"truncation": False, "max_length": 5}, None)):
        assert tok(long, **options).input_ids == [e.ids for e in theirs(length).encode_batch(long)]
    got = tok(long, padding="max_length", truncation=True, max_length=8, return_tensors="np", return_offsets_mapping=True)
    assert all(v.dtype == np.int64 and v.shape[:2] == (2, 8) for v in got.values()) and got.attention_mask.sum(axis=1).tolist() == [8, 4]
    assert got.offset_mapping[1].tolist() == [list(s) for s in theirs().encode("a dog").offsets] + [[0, 0]] * 4
    left = tok(long, padding=True, truncation=True, padding_side="left", pad_to_multiple_of=8)
    assert left.input_ids[1] == [0] * 4 + theirs().encode("a dog").ids
    windows = tok(long, truncation=True, stride=1, return_overflowing_tokens=True, padding=True)
    want = theirs(6, stride=1).encode_batch(long)
    assert windows.overflow_to_sample_mapping == [0] * (1 + len(want[0].overflowing)) + [1]
    assert [ids[:sum(m)] for ids, m in zip(windows.input_ids, windows.attention_mask, strict=True)] == [e.ids for w in want for e in (w, *w.overflowing)]
    with pytest.raises(ValueError, match="rows of different lengths make no tensor"):
        tok(long, return_tensors="np")
    with pytest.raises(ValueError, match="padding must be a bool or one of"):
        tok(long, padding="up")
    with pytest.raises(ValueError, match="return_tensors must be None, 'np' or 'pt', got 'tf'"):
        tok("a", return_tensors="tf")


def test_pad(tok: Any) -> None:
    rows = [{"input_ids": [2, 5, 3], "labels": 1.0}, {"input_ids": np.array([2, 3]), "labels": 0.0}]
    got = tok.pad(rows, return_tensors="np")
    assert got.input_ids.tolist() == [[2, 5, 3], [2, 3, 0]] and got.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]] and got.labels.tolist() == [1.0, 0.0]
    assert tok.pad({"input_ids": [[2], [2, 3]], "token_type_ids": [[1], [1, 1]]}, padding="max_length", pad_to_multiple_of=4, padding_side="left").token_type_ids == [
        [0] * 7 + [1], [0] * 6 + [1, 1]]
    assert tok.pad({"input_ids": [2, 3]}, padding="max_length", max_length=3).data == {"input_ids": [2, 3, 0], "attention_mask": [1, 1, 0]}
    with pytest.raises(ValueError, match="rows to pad must have input_ids"):
        tok.pad([{"labels": 1}])


def test_tokens_and_text(tok: Any, tmp_path: Path) -> None:
    ids = tok("The dog, thing!").input_ids
    assert tok.decode(ids) == "[CLS] the dog, thing! [SEP]" and tok.decode(np.array(ids), skip_special_tokens=True) == "the dog, thing!" and tok.decode(5) == "a"
    assert tok.batch_decode([ids, [5]]) == tok.decode([ids, [5]]) == [tok.decode(ids), "a"]
    assert tok.tokenize("the dog") == ["the", "dog"] == tok.convert_ids_to_tokens(tok("the dog").input_ids, skip_special_tokens=True)
    assert tok.convert_tokens_to_ids(["the", "nowhere"]) == [WORDS.index("the"), 1] and tok.convert_tokens_to_ids("dog") == WORDS.index("dog") and tok.convert_ids_to_tokens(5) == "a"
    assert (tok.pad_token_id, tok.cls_token, tok.mask_token_id, tok.eos_token, tok.bos_token_id) == (0, "[CLS]", 4, None, None)
    assert tok.all_special_ids == [1, 3, 0, 2, 4] and tok.get_special_tokens_mask([2, 5, 3], already_has_special_tokens=True) == [1, 0, 1]
    assert len(tok) == tok.vocab_size == len(WORDS) and tok.get_vocab()["dog"] == WORDS.index("dog")
    assert (tok.num_special_tokens_to_add(), tok.num_special_tokens_to_add(True)) == (2, 3) and tok.model_max_length == 6
    assert [Path(p).name for p in tok.save_pretrained(tmp_path / "new")] == ["tokenizer.json", "tokenizer_config.json"]


def test_copies_and_settings(tok: Any) -> None:
    tok.pad_token, tok.padding_side = "dog", "left"
    for other in (copy.deepcopy(tok), pickle.loads(pickle.dumps(tok)), tok):
        assert other(["a", "the dog"], padding=True).input_ids[0] == [WORDS.index("dog"), 2, 5, 3] and other.pad_token_id == WORDS.index("dog")
    tok.pad_token = None
    with pytest.raises(ValueError, match="padding needs a pad_token"):
        tok(["a"], padding=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tok.nothing
