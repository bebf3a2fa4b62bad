"""The tokenizer against Hugging Face `tokenizers`: ids, type ids and spans, on tokenizers trained here."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from harmaug.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog didn't mind; it's 3 o'clock.",
    "Tokenizers turn text into numbers: 12345 67 8.90, (parentheses) [brackets] {braces} — dashes…",
    "Ünïcödé tëxt, naïve café, Ελληνικά, русский язык, 中文字符, 日本語テキスト, 한국어, עברית, العربية",
] * 20
TEXTS = [
    "", " ", "a", "The dog.", "didn't it's WE'LL they'Re", "  two  spaces\t\ttabs\r\n\r\nlines  ", "12345 6 7.8", "naïve café ÉCOLE",
    "中文 mixed with English 日本語", "😀 emoji 👩‍👩‍👧 family", "[CLS] literal [SEP] tokens <|endoftext|> here", "x" * 300, "e\u0301\u0327 a\u030a\u0323",
    "\u0130stanbul \ufb01ne \u1e9e", "\x00 \ufffd \x85 \u00a0 \u2028 \u200b end", "क्षि ญี่ปุ่น e̋̂́",
]


def save(tok: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    tok.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_pretrained(folder)


def train_bert(**options: bool | None) -> tokenizers.Tokenizer:
    tok = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(**options)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tok.decoder = decoders.WordPiece()
    return tok


def train_bytes(pre: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.decoder = decoders.ByteLevel()
    return tok


def assert_same(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: list[str], pairs: list[str | None] | None = None, special: bool = True) -> None:
    got = ours.encode_batch(texts, pairs, special)
    expected = theirs.encode_batch([t if p is None else (t, p) for t, p in zip(texts, pairs or [None] * len(texts))], add_special_tokens=special)
    for i, want in enumerate(expected):
        row = slice(got.offsets[i], got.offsets[i + 1])
        assert got.ids[row].tolist() == want.ids, texts[i]
        assert got.type_ids[row].tolist() == want.type_ids, texts[i]
        assert [tuple(s) for s in got.spans[row].tolist()] == want.offsets, texts[i]


@pytest.mark.parametrize("options", [{}, {"lowercase": False}, {"strip_accents": True, "lowercase": False}, {"clean_text": False},
                                     {"handle_chinese_chars": False, "strip_accents": False}], ids=str)
def test_wordpiece(tmp_path: Path, options: dict[str, bool]) -> None:
    theirs = train_bert(**options)
    ours = save(theirs, tmp_path)
    pairs: list[str | None] = [None, "", *TEXTS[2:]]
    assert_same(ours, theirs, TEXTS)
    assert_same(ours, theirs, TEXTS, pairs)
    assert_same(ours, theirs, TEXTS, pairs, special=False)


@pytest.mark.parametrize("pre", [
    pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
], ids=["gpt2", "prefix", "smollm"])
def test_byte_level(tmp_path: Path, pre: pre_tokenizers.PreTokenizer) -> None:
    theirs = train_bytes(pre)
    ours = save(theirs, tmp_path)
    assert_same(ours, theirs, TEXTS)
    for e in theirs.encode_batch(TEXTS):
        assert ours.decode(e.ids) == theirs.decode(e.ids)


def test_encoding(tmp_path: Path) -> None:
    ours = save(train_bert(), tmp_path)
    e = ours.encode_batch(["the dog", "a", "the quick brown fox"])
    assert len(e) == 3 and e.ids.dtype == np.int32 and e.offsets.dtype == np.int64
    assert e[1].tolist() == ours.encode("a") and e[-1].base is not None
    padded = e.padded()
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (3, int(e.lengths.max()))
    assert padded["input_ids"][1, : len(e[1])].tolist() == e[1].tolist() and padded["input_ids"][1, -1] == 0
    assert e.padded("left")["attention_mask"][1].tolist() == padded["attention_mask"][1, ::-1].tolist()


def test_vocab_txt(tmp_path: Path) -> None:
    theirs = train_bert(lowercase=False)
    ids = sorted(theirs.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in ids), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert_same(Tokenizer.from_pretrained(tmp_path), theirs, TEXTS)


def test_refuses_rows() -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_pretrained("no/such/folder")
