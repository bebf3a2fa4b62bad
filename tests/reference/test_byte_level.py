"""Byte-level BPE at full size: a vocabulary of 128,000 with Llama-3's expression against `tokenizers`, and ranks of every expression against `tiktoken`.

HARMAUG_TEST_DATA, HARMAUG_TEST_SEED: as in test_tokenizer.py.
"""
from __future__ import annotations

import base64
import functools
import json
import os
import sys
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from harmaug import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_cases import (
    CL100K_TIKTOKEN,
    LLAMA3,
    PATTERNS,
    R50K_TIKTOKEN,
    code_point_lines,
    difference,
    random_unicode,
    sampled,
)

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"]


@functools.cache
def texts() -> list[str]:
    """Every prompt and response, and every nasty line."""
    root = os.environ.get("HARMAUG_TEST_DATA")
    assert root, "set HARMAUG_TEST_DATA (see test_tokenizer.py)"
    rows = [json.loads(line) for path in sorted(Path(root, "data").glob("*.jsonl")) for line in path.read_text(encoding="utf-8").split("\n") if line]
    nasty = [json.loads(line) for line in Path(root, "tokenizers", "stress.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return [row[key] for row in rows for key in ("prompt", "response") if row.get(key)] + nasty


@functools.cache
def llama3() -> str:
    tok = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.train_from_iterator(texts() + random_unicode(40_000, 7), trainers.BpeTrainer(
        vocab_size=128_000, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL, show_progress=False))
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[(SPECIAL[0], 0)])])
    return str(tok.to_str())


def test_llama3_128k(tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    theirs = tokenizers.Tokenizer.from_str(llama3())
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(tmp_path)
    rows = sampled(texts() + random_unicode(50_000, 11), 4)
    record_property("rows", len(rows))
    assert difference(ours, theirs, rows) == []
    assert difference(ours, theirs, rows[:20_000], rows[-20_000:], decode=False) == []
    assert difference(ours, theirs, [f"{a}<|end_of_text|>{b}" for a, b in zip(rows[:2000], rows[-2000:], strict=True)], split=True) == []
    for first in sampled(range(0, 0x110000, 0x8000)):
        assert difference(ours, theirs, code_point_lines(range(first, first + 0x8000)), decode=False) == [], hex(first)


@pytest.mark.parametrize(("prefix", "suffix"), [("##", ""), ("", "</w>"), ("##", "</w>")])
@pytest.mark.parametrize("over_bytes", [False, True])
def test_affixes(prefix: str, suffix: str, over_bytes: bool, tmp_path: Path) -> None:
    """continuing_subword_prefix and end_of_word_suffix at 16,000 tokens, over bytes and over characters, on every text and every code point."""
    theirs = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=prefix == "", continuing_subword_prefix=prefix, end_of_word_suffix=suffix))
    theirs.normalizer = normalizers.NFC()
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel() if over_bytes else pre_tokenizers.BertPreTokenizer()
    theirs.train_from_iterator(texts()[::4], trainers.BpeTrainer(
        vocab_size=16_000, limit_alphabet=3000, special_tokens=["<unk>"], show_progress=False, continuing_subword_prefix=prefix, end_of_word_suffix=suffix))
    theirs.decoder = decoders.BPEDecoder(suffix) if suffix else decoders.WordPiece(prefix)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(tmp_path)
    assert difference(ours, theirs, sampled([*texts(), *random_unicode(10_000, 13)])) == []
    for first in sampled(range(0, 0x110000, 0x8000)):
        assert difference(ours, theirs, code_point_lines(range(first, first + 0x8000)), decode=False) == [], hex(first)


@pytest.mark.parametrize(("name", "pattern"), [*PATTERNS.items(), ("r50k_base", R50K_TIKTOKEN), ("cl100k_base", CL100K_TIKTOKEN)])
def test_tiktoken(name: str, pattern: str, tmp_path: Path) -> None:
    """Ids of plain and special text, and decoding, on every text, every code point and random Unicode."""
    order = sorted(((t, i) for t, i in json.loads(llama3())["model"]["vocab"].items() if t not in SPECIAL), key=lambda item: item[1])
    bytes_of = {chr(c): b for b, c in zip([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)],
                                         [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)], strict=True)}
    bytes_of |= {chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in bytes_of.values())}
    ranks = {bytes(bytes_of[c] for c in token): rank for rank, (token, _) in enumerate(order)}
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    special = {"<|endoftext|>": len(ranks), "<|é|>": len(ranks) + 7}
    ours = Tokenizer.from_pretrained(path, pattern=name, special_tokens=special)
    theirs = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    rows = [*sampled([*texts()[::3], *random_unicode(10_000, 12), *code_point_lines(range(0x30000))]), "a\n  ", "\n \n", " <|endoftext|>x<|é|>", "ab" * 3000]
    assert [r.tolist() for r in ours.encode_batch(rows)] == theirs.encode_batch(rows, allowed_special="all")
    plain = theirs.encode_ordinary_batch(rows)
    assert [r.tolist() for r in ours.encode_batch(rows, split_special_tokens=True)] == plain
    assert [ours.decode(ids) for ids in plain[::50]] == [theirs.decode(ids) for ids in plain[::50]]
