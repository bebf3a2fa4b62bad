"""Real sentencepiece vocabularies and real texts, whole, against sentencepiece, `tokenizers` and llama.cpp; HARMAUG_TEST_DATA as in test_tokenizer.py."""
from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import sentencepiece

from harmaug import Tokenizer

sys.path.append(str(Path(__file__).parents[1]))
from sentencepiece_cases import (
    check_characters,
    check_unigram,
    own_difference,
    random_ids_differ,
    rows,
    train,
    write_gguf,
)
from test_tokenizer import data, folder, stress
from tokenizer_cases import code_point_lines, random_unicode, sampled

STEP = 0x8000


@functools.cache
def deberta() -> Path:
    return folder("HARMAUG_TEST_DATA") / "tokenizers" / "deberta-v3"


def all_texts() -> list[str]:
    prompts, responses = data()
    return [*prompts, *(r for r in responses if r is not None), *stress()]


def batches() -> Iterator[list[str]]:
    """Every text, every code point in three contexts, 200,000 lines of random Unicode."""
    texts = all_texts()
    for first in range(0, len(texts), STEP):
        yield texts[first:first + STEP]
    for first in sampled(range(0, 0x110000, STEP)):
        yield code_point_lines(range(first, first + STEP))
    for seed in sampled(range(8)):
        yield random_unicode(25_000, 700 + seed)


def test_deberta_from_its_model() -> None:
    """What spm.model gives is what tokenizer.json gives, which test_tokenizer.py compares with `tokenizers`: ids, type ids, spans, decoded text."""
    ours, json = Tokenizer.from_pretrained(deberta() / "spm.model"), Tokenizer.from_pretrained(deberta() / "tokenizer.json")
    for lines in batches():
        got, want = ours.encode_batch(lines, lines[::-1]), json.encode_batch(lines, lines[::-1])
        assert np.array_equal(got.ids, want.ids) and np.array_equal(got.offsets, want.offsets) and np.array_equal(got.type_ids, want.type_ids)
        assert np.array_equal(got.spans, want.spans)
    texts = all_texts()
    got = ours.encode_batch(texts)
    assert ours.decode_batch(got) == json.decode_batch(got) and ours.vocab_size == json.vocab_size == 128_001
    assert [ours.id_to_token(i) for i in range(128_001)] == [json.id_to_token(i) for i in range(128_001)]


def test_deberta_as_sentencepiece() -> None:
    ours = Tokenizer.from_pretrained(deberta() / "spm.model", reference="sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(deberta() / "spm.model"))
    for lines in batches():
        ids = theirs.encode(lines)
        got = ours.encode_batch(lines)
        assert [line for line, a, b in zip(lines, ids, got, strict=True) if a != b.tolist()] == []
    texts = all_texts()[::3] + stress()
    assert own_difference(ours, theirs, texts) == [] and random_ids_differ(ours, theirs, 9) == 0


@pytest.mark.parametrize("options", [
    {"model_type": "unigram", "byte_fallback": True}, {"model_type": "unigram", "user_defined_symbols": ["<tool>", "the", "a b", "("]}, {"model_type": "bpe", "byte_fallback": True},
    {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True, "user_defined_symbols": ["<tool>", "\n", "\u2581\u2581"]},
    {"model_type": "unigram", "treat_whitespace_as_suffix": True, "remove_extra_whitespaces": False},
], ids=str)
def test_trained_as_sentencepiece(options: dict[str, Any], tmp_path: Path) -> None:
    model = train(rows(), vocab_size=8000, **options)
    (tmp_path / "m.model").write_bytes(model)
    ours = Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert own_difference(ours, theirs, all_texts()[::4] + stress() + sampled(random_unicode(10_000, 5))) == []


@pytest.mark.parametrize("changes", [{}, {"prefix": False}, {"symbols": ["<tool>", "the", "\u2581\u2581"], "add_eos": True}], ids=str)
def test_llama_cpp(changes: dict[str, Any], tmp_path: Path) -> None:
    options = {"user_defined_symbols": ["<tool>", "the", "\u2581\u2581"]} if "symbols" in changes else {}
    model = train(rows(), model_type="bpe", vocab_size=8000, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, **options)
    path = write_gguf(tmp_path / "m.gguf", model, **changes)
    ours = Tokenizer.from_pretrained(path)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    chat = ["<s>system\nYou are <tool>helpful</s>\n<s> <unk> <tool><tool> the </s>", "<tool>", "<s></s>", "thethe  the", "<<tool>>", "\u2581\u2581\u2581the", "<0x41>"]
    texts = [t for t in [*all_texts()[::6], *stress(), *chat, *sampled(random_unicode(10_000, 4))] if "\0" not in t and t]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == theirs.tokenize(text.encode(), add_bos=True, special=True), text


def test_many_random_tokenizers(tmp_path: Path) -> None:
    for seed in sampled(range(20_000, 22_000)):
        check_characters(seed, tmp_path / "tokenizer.json")


def test_many_random_unigrams(tmp_path: Path) -> None:
    for seed in sampled(range(1000, 3000)):
        check_unigram(seed, tmp_path / "m.model")
