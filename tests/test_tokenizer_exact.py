"""The tokenizer against Hugging Face `tokenizers` on the same files: nothing may differ."""
from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizer_cases import (
    PATTERNS,
    TEXTS,
    check_random_tokenizer,
    code_point_lines,
    difference,
    extract,
    random_text,
    random_tokenizer,
    random_unicode,
)
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from harmaug import FormatError, Tokenizer


def save(tok: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    tok.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_pretrained(folder)


def corpus() -> list[str]:
    """The extract, and enough of other scripts to fill a vocabulary of 8,000."""
    return extract() + random_unicode(1500, 1) + TEXTS


@functools.cache
def bert_8000() -> str:
    tok = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=8000, limit_alphabet=1500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tok.decoder = decoders.WordPiece()
    assert tok.get_vocab_size() == 8000
    return str(tok.to_str())


@functools.cache
def bytes_8000() -> str:
    tok = tokenizers.Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_tokens(["  ", "   ", "    "])
    tok.post_processor = processors.ByteLevel()
    tok.decoder = decoders.ByteLevel()
    assert tok.get_vocab_size() >= 8000
    return str(tok.to_str())


AFFIXES = {"prefix": ("##", ""), "suffix": ("", "</w>"), "both": ("##", "</w>"), "both over bytes": ("@@", "</w>")}


@functools.cache
def affixed(name: str) -> str:
    prefix, suffix = AFFIXES[name]
    tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=name == "both", continuing_subword_prefix=prefix, end_of_word_suffix=suffix))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel() if "bytes" in name else pre_tokenizers.BertPreTokenizer()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=3000, limit_alphabet=600, special_tokens=["<unk>", "<|endoftext|>"], show_progress=False,
        continuing_subword_prefix=prefix, end_of_word_suffix=suffix))
    tok.decoder = decoders.BPEDecoder(suffix) if suffix else decoders.WordPiece(prefix)
    return str(tok.to_str())


def written(state: dict[str, Any], folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder / "tokenizer.json"


def opened(text: str, folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    theirs = tokenizers.Tokenizer.from_str(text)
    return save(theirs, folder), theirs


@pytest.mark.parametrize("trained", [bert_8000, bytes_8000], ids=["wordpiece", "bpe"])
def test_trained(trained: Any, tmp_path: Path) -> None:
    ours, theirs = opened(trained(), tmp_path)
    texts = TEXTS + extract() + random_unicode(2000, 2)
    assert difference(ours, theirs, texts) == []
    pairs = [None if i % 3 == 0 else texts[-i] for i in range(len(texts))]
    assert difference(ours, theirs, texts, pairs, decode=False) == []
    assert difference(ours, theirs, texts, pairs, special=False, decode=False) == []
    assert ours.vocab_size == theirs.get_vocab_size(with_added_tokens=True)
    for token, id in theirs.get_vocab(with_added_tokens=True).items():
        assert ours.token_to_id(token) == id and ours.id_to_token(id) == theirs.id_to_token(id)


@pytest.mark.parametrize("name", AFFIXES)
def test_affixes(name: str, tmp_path: Path) -> None:
    """BPE with continuing_subword_prefix and end_of_word_suffix; the option may stand behind the merges too."""
    ours, theirs = opened(affixed(name), tmp_path)
    texts = TEXTS + extract() + random_unicode(500, 2) + code_point_lines(range(0x600))
    assert difference(ours, theirs, texts) == []
    state = json.loads(affixed(name))
    model = state["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        model[key] = model.pop(key)
    assert Tokenizer.from_pretrained(written(state, tmp_path)).encode_batch(texts).ids.tolist() == ours.encode_batch(texts).ids.tolist()
    model["byte_fallback"] = True       # of which the reference makes spans beside the text
    with pytest.raises(FormatError, match='"byte_fallback" with "continuing_subword_prefix" or "end_of_word_suffix"'):
        Tokenizer.from_pretrained(written(state, tmp_path))


@pytest.mark.parametrize("trained", [bert_8000, bytes_8000], ids=["wordpiece", "bpe"])
def test_code_points(trained: Any, tmp_path: Path) -> None:
    """All of the first two planes but their ideographs and syllables, and a sample of the rest: tests/reference has every one."""
    ours, theirs = opened(trained(), tmp_path)
    points = [*range(0x3400), *range(0x4E00, 0x9FFF, 97), *range(0xA000, 0xAC00), *range(0xAC00, 0xD7B0, 13), *range(0xD7B0, 0x13000),
              *range(0x16000, 0x17000, 31), *range(0x1B000, 0x20000, 3), *range(0x20000, 0x110000, 499), *range(0xE0000, 0xE0200)]
    assert difference(ours, theirs, code_point_lines(points), decode=False) == []


def test_normalizers_on_every_code_point(tmp_path: Path) -> None:
    """1,112,064 code points, alone and beside a letter and a mark, through every normalizer."""
    text = "".join(f"a{chr(c)}\u0327{chr(c)} " for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    vocab = {"[UNK]": 0}
    for normalizer in (normalizers.BertNormalizer(), normalizers.BertNormalizer(strip_accents=False), normalizers.NFC(), normalizers.NFD()):
        tok = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tok.normalizer = normalizer
        assert save(tok, tmp_path)._tokenizer.normalize(text) == normalizer.normalize_str(text), normalizer


@pytest.mark.parametrize("pre", [
    pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Digits(individual_digits=False),
    *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS.values()),
], ids=["bert", "digits", "digit runs", *PATTERNS])
def test_pre_tokenizers(pre: Any, tmp_path: Path) -> None:
    """The planes that have characters, and a sample of the rest: tests/reference has every code point."""
    tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre
    ours = save(tok, tmp_path)
    points = [*range(0x3500), *range(0x4D00, 0x4F00), *range(0x9F00, 0xAD00), *range(0xD700, 0x20100), *range(0x20100, 0xE0000, 97), *range(0xE0000, 0xE0200),
              *range(0xE0200, 0x110000, 97)]
    for first in range(0, len(points), 0x4000):
        text = "".join(f"a{chr(c)}{chr(c)} {chr(c)}" for c in points[first:first + 0x4000] if not 0xD800 <= c < 0xE000)
        assert [tuple(s) for s in ours._tokenizer.pre_tokenize(text).tolist()] == [span for _, span in pre.pre_tokenize_str(text)], hex(first)


@pytest.mark.parametrize("pre", [pre_tokenizers.BertPreTokenizer(), *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS.values())], ids=["bert", *PATTERNS])
def test_borders_of_64_bytes(pre: Any, tmp_path: Path) -> None:
    """Texts are looked at 64 bytes at a time: words, signs and what is not ASCII at each place around such a border, and texts that end there."""
    tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre
    ours = save(tok, tmp_path)
    r = random.Random(3)
    for n in range(140):
        for middle in ("", " ", "é", " é", "'s", "  b", "\n", ".", "(c", "12", "A", "\u00a0x", "\x7f", " '"):
            for text in ("a" * n + middle, "ab " * (n // 3) + "c" * (n % 3) + middle + "d e" * 9,
                         "".join(r.choice(["word", " and", " x", ".", " I'm", "\t", "7"]) for _ in range(n // 3)) + middle + "end"):
                got = [tuple(s) for s in ours._tokenizer.pre_tokenize(text).tolist()]
                assert got == [span for _, span in pre.pre_tokenize_str(text)], repr(text)


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_random_tokenizers(first: int, tmp_path: Path) -> None:
    """Tokenizers of random options: vocabularies with missing bytes, unknown tokens, added tokens of every kind, every template."""
    for seed in range(first, first + 50):
        check_random_tokenizer(seed, tmp_path / "tokenizer.json")


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation(strategy: str, side: str, tmp_path: Path) -> None:
    """Every length from 0 to 130, with and without pairs and special tokens: the same rows, and errors where the reference has them."""
    ours, theirs = opened(bert_8000(), tmp_path)
    long, middle, short = " ".join(extract()[:8]), " ".join(extract()[8:10]), "a dog"
    rows = [(a, b) for a in (long, middle, short, "") for b in (None, long, middle, short, "")]
    for length in range(131):
        theirs.enable_truncation(length, strategy=strategy, direction=side)
        for special in (True, False):
            for text, pair in rows:
                try:
                    want = theirs.encode(text, pair, add_special_tokens=special)
                except Exception as error:      # noqa: BLE001
                    assert "Truncation error" in str(error)
                    with pytest.raises(ValueError, match="row 0: truncation 'only_"):
                        ours.encode_batch([text], [pair], special, length, strategy, truncation_side=side)
                    continue
                got = ours.encode_batch([text], [pair], special, length, strategy, truncation_side=side)
                assert got.ids.tolist() == want.ids and got.type_ids.tolist() == want.type_ids
                assert [tuple(s) for s in got.spans.tolist()] == want.offsets
                assert len(got.ids) + got.truncated[0] == len(ours.encode_batch([text], [pair], special).ids)


def test_windows(tmp_path: Path) -> None:
    """The overflowing rows of the reference, in its order: random tokenizers (every kind of template), pairs, strategies, sides, strides."""
    rows = several = 0
    for seed in range(20_000, 20_250):
        theirs, r = random_tokenizer(seed)
        theirs.save(str(tmp_path / "tokenizer.json"))
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ours = Tokenizer.from_pretrained(tmp_path)
        for _ in range(20):
            text, pair, special = random_text(r), r.choice([None, random_text(r)]), r.random() < 0.7
            side, strategy = r.choice(["right", "left"]), r.choice(["longest_first", "only_first", "only_second"])
            length, stride = r.choice([r.randint(0, 12), r.randint(5, 40)]), r.choice([0, 0, 1, 2, 5])
            try:
                theirs.enable_truncation(length, stride=stride, strategy=strategy, direction=side)
                want = theirs.encode(text, pair, add_special_tokens=special)
            except BaseException as error:      # noqa: BLE001
                if "bad split" not in str(error) and "subtract with overflow" not in str(error) and "stride set to" not in str(error):
                    assert "Truncation error" in str(error) or "stride" in str(error), error
                    with pytest.raises(ValueError, match="row 0: (truncation|stride)"):
                        ours.encode_batch([text], [pair], special, length, strategy, truncation_side=side, stride=stride)
                continue
            got = ours.encode_batch([text], [pair], special, length, strategy, truncation_side=side, stride=stride)
            wanted = [want, *want.overflowing]
            case = (seed, text, pair, special, side, strategy, length, stride)
            assert [row.tolist() for row in got] == [e.ids for e in wanted], case
            assert got.type_ids.tolist() == [i for e in wanted for i in e.type_ids], case
            assert [tuple(s) for s in got.spans.tolist()] == [s for e in wanted for s in e.offsets], case
            assert not got.text_index.any() and not got.truncated.any()
            rows += len(wanted)
            several += len(wanted) > 2
    assert rows > 5000 and several > 500


def test_windows_of_a_batch(tmp_path: Path) -> None:
    """text_index says which text a row is of, whatever the threads; without a text that is too long nothing changes."""
    ours, _ = opened(bert_8000(), tmp_path)
    texts = [t * (1 + i % 7) for i, t in enumerate(extract()[:400])]
    whole = ours.encode_batch(texts, None, True, 16, stride=4, n_threads=2)
    parts = [ours.encode_batch([t], None, True, 16, stride=4) for t in texts]
    assert whole.ids.tolist() == [i for p in parts for i in p.ids.tolist()] and whole.text_index.tolist() == [i for i, p in enumerate(parts) for _ in range(len(p))]
    assert whole.lengths.max() == 16 and len(whole) > 1000
    again = np.concatenate([whole[i][1:-1] if i == 0 or whole.text_index[i] != whole.text_index[i - 1] else whole[i][5:-1] for i in range(len(whole))])
    assert again.tolist() == ours.encode_batch(texts, add_special_tokens=False).ids.tolist()      # windows without their overlap are the texts
    assert ours.encode_batch(texts, stride=4).text_index.tolist() == list(range(400))
    assert ours.encode_batch(texts, None, True, 16).truncated.sum() == ours.count_tokens(texts).sum() - ours.encode_batch(texts, None, True, 16).lengths.sum()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_padding(side: str, multiple: int | None, tmp_path: Path) -> None:
    ours, theirs = opened(bert_8000(), tmp_path)
    theirs.enable_padding(direction=side, pad_to_multiple_of=multiple, pad_id=0, pad_token="[PAD]")
    want = theirs.encode_batch(extract()[:50])
    got = ours.encode_batch(extract()[:50], padding=True).padded(side, pad_to_multiple_of=multiple)
    assert got["input_ids"].tolist() == [e.ids for e in want] and got["attention_mask"].tolist() == [e.attention_mask for e in want]
    assert got["token_type_ids"].tolist() == [e.type_ids for e in want]


def test_long_words(tmp_path: Path) -> None:
    """64 KB without a break go through the heap, not through a square."""
    ours, theirs = opened(bytes_8000(), tmp_path)
    assert difference(ours, theirs, ["ab" * 32768, "the" * 20000, "é" * 30000, "x" * 65536 + " y"]) == []


@pytest.mark.parametrize("chain", [
    normalizers.BertNormalizer(), normalizers.BertNormalizer(lowercase=False), normalizers.NFC(), normalizers.NFKC(), normalizers.NFD(), normalizers.Lowercase(),
    normalizers.Sequence([normalizers.Nmt(), normalizers.NFC()]), normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase()]),
    normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
], ids=str)
def test_runs_of_ascii_beside_marks(chain: Any, tmp_path: Path) -> None:
    """Long runs of ASCII are normalized by themselves: marks on their last letter, characters that are dropped between the two, runs that are dropped whole."""
    tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tok.normalizer = chain
    ours = save(tok, tmp_path)
    r = random.Random(1)
    marks = [*"\u0301\x01\x00\u200bé\u0130\u212a…“中\u0344\u00ad\ufeff\tﬁ\u0f73Å", "e\u0327\u0301", "\uac00\u11a8", "\u1100\u1161", "\x01" * 18]
    for _ in range(3000):
        line = "".join(letter for _ in range(r.randint(1, 6)) for letter in [
            *r.choices("abcXYZ 019.,\x01\x7f\t", k=r.choice([0, 1, 3, 15, 16, 17, 18, 30])), *r.choices(marks, k=r.randint(0, 4))])
        assert ours._tokenizer.normalize(line) == chain.normalize_str(line), repr(line)
