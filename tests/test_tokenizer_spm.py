"""sentencepiece: its .model files as transformers 4 converts them and as sentencepiece itself reads them, BPE with byte fallback, and GGUF's "llama" vocabularies."""
from __future__ import annotations

import base64
import functools
import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece_cases import (
    check_characters,
    check_unigram,
    field,
    own_difference,
    piece,
    random_ids_differ,
    rows,
    train,
    write_gguf,
)
from tokenizer_cases import TEXTS, difference, random_text, random_unicode, stops_midway
from tokenizers import decoders, models

from harmaug import _C, FormatError, Tokenizer

DATA = Path(__file__).parent / "data"
MORE = [
    "<s>hi</s> <unk> [MASK] x [UNK]", "<mask>a  <mask>", " <extra_id_3> b<extra_id_0>", "<0x41> <0x0A>", "<start_of_turn>user\n\nhi<end_of_turn>\n", "a   b    c \u2581 \u2581\u2581 d",
    "\ta\nb ", "``quo''te", "1,2 3,", '(a) "b"', "  lead", "trail  ", "   ", "a" * 300, "the" * 100, "\U0001f513" * 5, "x\U0001f513\U0001f513 \U0001f513y\u0301", "<tool>a <tool> b",
    "<new> <new>b <extra>\u2026", "\ufeff \u200b", "\u2026\u00a0\u2026", "a\u24e9\u0301b", "end\n\ufeff",
]


@functools.cache
def texts() -> list[str]:
    r = random.Random(3)
    return TEXTS + MORE + rows()[:60] + random_unicode(300, 3) + [random_text(r) for _ in range(200)]


@functools.cache
def record() -> dict[str, Any]:
    """What tests/data/record_sentencepiece.py recorded."""
    loaded: dict[str, Any] = json.loads(gzip.decompress((DATA / "sentencepiece.json.gz").read_bytes()))
    return loaded


def model_of(name: str) -> bytes:
    return base64.b64decode(record()["models"][name])


CASES = [
    "deberta", "deberta_by_pieces", "deberta_lower_punct", "deberta_table", "deberta_legacy", "xlmr", "t5", "t5_new", "albert", "albert_cased", "llama", "llama_new", "llama_bare",
    "llama_null", "mistral", "gemma", "unigram_llama", "bpe_xlmr",
]


def write_case(name: str, folder: Path) -> dict[str, Any]:
    case: dict[str, Any] = next(c for c in record()["cases"] if c["name"] == name)
    (folder / case["file"]).write_bytes(model_of(case["model"]))
    for file, content in {"tokenizer_config.json": case["config"], **case["others"]}.items():
        if content is not None:
            (folder / file).write_text(json.dumps(content))
    return case


# ---- .model files as transformers 4 converts them ----


def test_every_recorded_case_is_here() -> None:
    assert [c["name"] for c in record()["cases"]] == CASES


@pytest.mark.parametrize("name", CASES)
def test_conversion(name: str, tmp_path: Path) -> None:
    """The .model file, and the tokenizer.json that transformers 4.57.6 made of it: both equal `tokenizers` on that JSON."""
    case = write_case(name, tmp_path)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(case["tokenizer"]))
    pairs = [None if i % 3 == 0 else texts()[-i] for i in range(len(texts()))]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(case["tokenizer"]))
    for path in (tmp_path / case["file"], tmp_path / "other"):
        ours = Tokenizer.from_pretrained(path)
        assert difference(ours, theirs, texts()) == [] and difference(ours, theirs, texts(), pairs, decode=False) == []
        assert {t: ours.token_to_id(t) for t in theirs.get_vocab()} == theirs.get_vocab() and ours.vocab_size == theirs.get_vocab_size()


@pytest.mark.parametrize(("name", "files"), [("deberta", {}), ("llama", {}), ("gemma", {})])
def test_bare_model(name: str, files: dict[str, Any], tmp_path: Path) -> None:
    """Without a configuration the pieces say which class it is."""
    case = write_case(name, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    theirs = tokenizers.Tokenizer.from_str(json.dumps(case["tokenizer"]))
    assert difference(Tokenizer.from_pretrained(tmp_path), theirs, texts()) == []


def test_folder_and_pickle(tmp_path: Path) -> None:
    case = write_case("deberta", tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    own = Tokenizer.from_pretrained(tmp_path, reference="sentencepiece")
    for tok in (ours, own):
        again = pickle.loads(pickle.dumps(tok))
        assert again.encode("the dog \u2026") == tok.encode("the dog \u2026") and again.reference == tok.reference
    assert ours.encode("a") != own.encode("a") and ours.pad_id == own.pad_id == 0
    assert sorted(p.name for p in ours.save_pretrained(tmp_path / "copy")) == ["spm.model", "tokenizer_config.json"]
    assert Tokenizer.from_pretrained(tmp_path / "copy").encode("the dog") == ours.encode("the dog")
    (tmp_path / "tokenizer.json").write_text(json.dumps(case["tokenizer"]).replace("[CLS]:0", "[CLS]:0"))
    assert Tokenizer.from_pretrained(tmp_path).encode("the dog") == ours.encode("the dog")
    assert Tokenizer.from_pretrained(tmp_path, reference="sentencepiece").encode("the dog") == own.encode("the dog")


def test_token_bytes(tmp_path: Path) -> None:
    write_case("llama", tmp_path)
    text = "the d\u00f6g\n\U0001f513 2<tool>"
    for reference in ("tokenizers", "sentencepiece"):
        tok = Tokenizer.from_pretrained(tmp_path, reference=reference)
        ids = tok.encode(text)
        assert b"".join(map(tok.token_bytes, ids)).decode() == " " + text and tok.token_bytes(1) == b"" and tok.decode(ids) == text


@pytest.mark.parametrize(("model", "config", "match"), [
    ("fairseq", None, "nothing says which tokenizer transformers makes of this"), ("fairseq", {"tokenizer_class": "MBartTokenizer"}, "tokenizer_class 'MBartTokenizer' is not supported"),
    ("deberta", {"tokenizer_class": "PreTrainedTokenizerFast"}, "is not supported for a sentencepiece model"), ("deberta", {"unk_token": 3}, '"unk_token" of the configuration'),
    ("deberta", {"do_lower_case": 1}, "do_lower_case"), ("deberta", {"extra_special_tokens": {"x": "y"}}, "extra_special_tokens"), ("deberta", [], "must hold an object"),
    ("deberta", {"added_tokens_decoder": {"9": {"content": "[MASK]"}}}, r"'\[MASK\]' is said to have id 9"), ("deberta", {"additional_special_tokens": [3]}, "additional_special_tokens"),
    ("llama", {"tokenizer_class": "GemmaTokenizer"}, "unk_piece '<unk>' is no piece"), ("llama", {"bos_token": None}, "add_bos_token without a token"),
    ("t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 3, "additional_special_tokens": ["<extra_id_0>"]}, "3 extra_ids, but 1"),
    ("t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": -1}, "extra_ids"),
])
def test_refused_configuration(model: str, config: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(model_of(model))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=match) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no sentencepiece model there"):
        Tokenizer.from_pretrained(tmp_path, reference="sentencepiece")
    with pytest.raises(OSError, match="no tokenizer there"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="needs a sentencepiece .model"):
        Tokenizer.from_pretrained(tmp_path / "tokenizer.json", reference="sentencepiece")
    with pytest.raises(ValueError, match="reference must be 'tokenizers' or 'sentencepiece', got 'hf'"):
        Tokenizer.from_pretrained(tmp_path, reference="hf")


# ---- as sentencepiece itself ----


OPTIONS: list[dict[str, Any]] = [
    {"model_type": "unigram"}, {"model_type": "unigram", "byte_fallback": True}, {"model_type": "unigram", "normalization_rule_name": "nfkc"},
    {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf", "split_digits": True}, {"model_type": "unigram", "normalization_rule_name": "identity"},
    {"model_type": "unigram", "add_dummy_prefix": False}, {"model_type": "unigram", "remove_extra_whitespaces": False, "byte_fallback": True},
    {"model_type": "unigram", "remove_extra_whitespaces": False, "add_dummy_prefix": False, "normalization_rule_name": "identity"},
    {"model_type": "unigram", "treat_whitespace_as_suffix": True}, {"model_type": "unigram", "treat_whitespace_as_suffix": True, "remove_extra_whitespaces": False},
    {"model_type": "unigram", "user_defined_symbols": ["<tool>", "the", "a b", "\u2026", "(", "\u2581\u2581", "\U0001f513"], "byte_fallback": True},
    {"model_type": "unigram", "control_symbols": ["<tool>", "[SEP]"], "pad_id": 3, "unk_surface": " ?? ", "unk_piece": "[UNK]"},
    {"model_type": "unigram", "split_by_whitespace": False, "split_by_unicode_script": False, "max_sentencepiece_length": 32},
    {"model_type": "bpe"}, {"model_type": "bpe", "byte_fallback": True}, {"model_type": "bpe", "normalization_rule_name": "nfkc_cf", "split_digits": True},
    {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True},
    {"model_type": "bpe", "add_dummy_prefix": False, "allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
    {"model_type": "bpe", "treat_whitespace_as_suffix": True, "byte_fallback": True}, {"model_type": "bpe", "control_symbols": ["<tool>"], "split_by_number": False},
    {"model_type": "bpe", "user_defined_symbols": ["<tool>", "the", "a b", "\u2026", "(", "\u2581\u2581", "\n", "\U0001f513"], "remove_extra_whitespaces": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()))
def test_own_ids(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(train(**options))
    ours = Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert own_difference(ours, theirs, texts()) == [] and random_ids_differ(ours, theirs, 1) == 0
    assert ours.vocab_size == theirs.get_piece_size() and all(ours.id_to_token(i) == theirs.id_to_piece(i) for i in range(ours.vocab_size))


@pytest.mark.parametrize("name", ["deberta", "fairseq", "t5", "albert", "llama", "gemma"])
def test_own_ids_of_recorded_models(name: str, tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(model_of(name))
    ours = Tokenizer.from_pretrained(tmp_path, reference="sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model_of(name))
    assert own_difference(ours, theirs, texts()) == [] and random_ids_differ(ours, theirs, 2) == 0


@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize(("name", "reference"), [("deberta", "tokenizers"), ("deberta", "sentencepiece"), ("llama", "tokenizers"), ("llama", "sentencepiece")])
def test_a_long_text_is_interrupted(name: str, reference: str, spans: bool, tmp_path: Path) -> None:
    write_case(name, tmp_path)
    stops_midway(Tokenizer.from_pretrained(tmp_path, reference=reference), "the garden of the birds, and more of them " * 8000, spans)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_own_ids_of_8000(kind: str, tmp_path: Path) -> None:
    """A vocabulary of 8,000: the rows, other scripts, and random words, for Unigram wants many that come again."""
    r = random.Random(8)
    words = ["".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=r.randint(3, 7))) for _ in range(6000)]
    lines = [" ".join(r.choices(words, k=12)) for _ in range(5000)]
    model = train(rows() + random_unicode(300, 1) + lines, model_type=kind, vocab_size=8000, byte_fallback=True, character_coverage=0.99, hard_vocab_limit=True, max_sentence_length=9000)
    (tmp_path / "m.model").write_bytes(model)
    ours = Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert theirs.get_piece_size() == 8000 and own_difference(ours, theirs, texts() + rows()) == []
    assert own_difference(ours, theirs, ["ab" * 20000, "the " * 10000, "\u4e2d" * 10000], spans=False) == []      # no square of the length


def test_unused_pieces(tmp_path: Path) -> None:
    """BPE cuts an unused piece up again, Unigram goes round it."""
    pieces = [(b"<unk>", 0, 2), *((c.encode(), -9, 1) for c in "abcd\u2581"), (b"ab", -1, 5), (b"cd", -2, 1), (b"abcd", -3, 5), ("\u2581abcd".encode(), -4, 5), (b"dab", -5, 1)]
    for kind in (1, 2):
        model = b"".join(piece(*p) for p in pieces) + field(2, 2, field(3, 0, bytes([kind]))) + field(3, 2, field(4, 0, b"\x00"))
        (tmp_path / "m.model").write_bytes(model)
        ours = Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
        lines = ["abcd", "abcdabcd", "ab cd abcdab", "dabab", "cdab x", "aabbccdd"]
        assert own_difference(ours, sentencepiece.SentencePieceProcessor(model_proto=model), lines) == []


def test_random_unigram(tmp_path: Path) -> None:
    for seed in range(60):
        check_unigram(seed, tmp_path / "m.model")


def test_unknown_fields_are_skipped(tmp_path: Path) -> None:
    """Fields of later versions, of each wire type, in every message; and a known number with another type."""
    unknown = field(15, 0, b"\x96\x01") + field(15, 1, b"12345678") + field(15, 2, b"abc") + field(15, 5, b"1234")
    pieces = [piece(b"<unk>", 0, 2, unknown), piece("\u2581".encode(), -1, 1, field(3, 2, b"x")), piece(b"a", -2, 1, unknown), piece(b"b", -3, 1, field(3, 0, b"\x63"))]
    model = unknown + b"".join(pieces) + field(2, 2, unknown + field(3, 0, b"\x01")) + field(3, 2, unknown) + field(4, 2, unknown)
    (tmp_path / "m.model").write_bytes(model)
    ours = Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
    assert own_difference(ours, sentencepiece.SentencePieceProcessor(model_proto=model), ["ab ba", "aab c"]) == []


# ---- BPE of characters in tokenizer.json ----


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_random_characters(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 50):
        check_characters(seed, tmp_path / "tokenizer.json")


def test_decoders(tmp_path: Path) -> None:
    vocab = {t: i for i, t in enumerate(["<unk>", "a", "aa", "\u2581", "\u2581a", "<0xC3>", "<0xa9>", "<0x41>", "<0xFF>", "<0x+A>", "<0xZZ>", "b\u2581", "  b  ", "\u00e9"])}
    tok = tokenizers.Tokenizer(models.BPE(vocab, []))
    r = random.Random(4)
    fuse, fallback, replace = decoders.Fuse(), decoders.ByteFallback(), decoders.Replace("\u2581", " ")
    for decoder in (fuse, fallback, replace, decoders.Sequence([]), decoders.Sequence([fallback, fuse]), decoders.Sequence([replace, fallback, fuse, decoders.Strip(" ", 1, 0)]),
                    decoders.Sequence([fuse, decoders.Strip("a", 3, 0)]), decoders.Strip("\u2581", 1, 0), decoders.Sequence([decoders.Replace("a", "aa"), decoders.Replace("aa", "b")])):
        tok.decoder = decoder
        tok.save(str(tmp_path / "tokenizer.json"))
        ours = Tokenizer.from_pretrained(tmp_path)
        for _ in range(200):
            ids = [r.randrange(len(vocab)) for _ in range(r.randint(0, 8))]
            assert ours.decode(ids) == tok.decode(ids), (decoder, ids)
    tok.decoder = decoders.Sequence([fuse, decoders.Strip("b", 1, 2)])      # at both ends of a text that is long enough for it
    tok.save(str(tmp_path / "tokenizer.json"))
    ids = [vocab[t] for t in ("b\u2581", "a", "b\u2581", "a")]
    assert Tokenizer.from_pretrained(tmp_path).decode(ids) == tok.decode(ids)


@pytest.mark.parametrize(("decoder", "match"), [
    ({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}, "Replace with a pattern that is no String"), ({"type": "Replace", "pattern": {"String": ""}, "content": "x"}, "Replace"),
    ({"type": "Replace", "pattern": {"String": "x"}}, '"content"'), ({"type": "Strip", "content": "ab", "start": 1, "stop": 0}, "one character"),
    ({"type": "Strip", "content": "a", "start": -1, "stop": 0}, "start"), ({"type": "CTC"}, "decoder 'CTC' is not supported"),
    ({"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": []}]}, "'Sequence'"), ({"type": "Sequence"}, 'without "decoders"'),
    ({"type": "Sequence", "decoders": [{"type": "Fuse"}] * 17}, "more than 16 steps"),
])
def test_refused_decoders(decoder: Any, match: str, tmp_path: Path) -> None:
    document = json.loads(tokenizers.Tokenizer(models.BPE({"a": 0}, [])).to_str())
    document["decoder"] = decoder
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(tmp_path)


# ---- GGUF ----


def test_gguf(tmp_path: Path) -> None:
    """On texts without added tokens its ids are sentencepiece's (tests/reference has llama.cpp itself)."""
    model = model_of("llama")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer.from_pretrained(write_gguf(tmp_path / "m.gguf", model, symbols=["<tool>"]))
    own = [t for t in texts() if not any(s in t for s in ("<s>", "</s>", "<unk>", "<tool>")) and t]
    want = theirs.encode(own)
    got = ours.encode_batch(own)
    assert [r.tolist() for r in got] == [[1, *ids] for ids in want] and [ours.decode(r) for r in got] == [theirs.decode(ids) for ids in want]
    at = [[(0, 0), *theirs.encode(t, return_type="offset_mapping")["offsets"]] for t in own]
    assert [tuple(s) for s in got.spans.tolist()] == [s for row in at for s in row]
    tool = ours.token_to_id("<tool>")
    assert ours.encode("a<tool>b</s>") == [1, *theirs.encode("a"), tool, *theirs.encode("b"), 2] and ours.encode("") == [1]
    bare = Tokenizer.from_pretrained(write_gguf(tmp_path / "b.gguf", model, prefix=False, add_bos=False, add_eos=True))
    assert bare.encode(" the") == [*theirs.encode("the"), 2] and bare.decode(bare.encode(" the")) == " the"


@pytest.mark.parametrize(("changes", "match"), [
    ({"scores": [0.0]}, "tokenizer.ggml.scores has 1 elements"), ({"types": None}, "no tokenizer.ggml.token_type"), ({"scores": None}, "tokenizer.ggml.scores"),
    ({"tokens": [b"a", b"b"], "scores": [0.0, 0.0], "types": [1, 1]}, "no token '<0x00>'"), ({"bos": 9999}, "bos_token_id is 9999"),
    ({"tokens": [b"a"], "scores": [0.0], "types": [9]}, "out of range"), ({"tokens": [b"a"], "scores": [float("nan")], "types": [1]}, "out of range"), ({"kind": "t5"}, "'t5' is not supported"),
    ({"tokens": [b"a", b"<PRE>"], "scores": [0.0, 0.0], "types": [1, 1]}, r"tokens\[1\] '<PRE>' is no control token by its type"), ({"name": "Phi-3 mini"}, "Phi-3's special tokens"),
    ({"name": "My PHI3"}, "Phi-3's special tokens"),
])
def test_refused_gguf(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(write_gguf(tmp_path / "m.gguf", model_of("llama"), **changes))


# ---- hostile files ----


@pytest.mark.parametrize(("content", "match"), [
    (b"", "it has no pieces"), (b"\x0a", "ends inside a number at byte 1"), (b"\x0a\x05ab", "field 1 at byte 0 has 5 bytes, more than its message"), (b"\xff" * 20, "more than 10 bytes"),
    (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than its message"), (b"\x00\x00", "field number 0"), (b"\x0b", "wire type 3 of field 1"), (b"\x0c", "wire type 4"),
    (b"\x80\x80\x80\x80\x80\x01\x00", "field number"), (b"\x0a\x02\x0d\x00", "piece 0 is empty|ends inside"), (field(1, 2, b""), "piece 0 is empty"), (piece(b"\xff"), "piece 0 is not UTF-8"),
    (piece(b"a", float("nan")), "score of piece 0 is not finite"), (piece(b"a", float("inf")), "not finite"), (b"\x0a\x05\x0a\x09abc", "field 1 at byte 2 has 9 bytes"),
    (b"".join(piece(c, 0, 1 + (c == b"a")) for c in (b"a", b"b", b"b", b"c")), "piece 'b' stands twice"), (piece(b"a") * 1 + field(2, 2, field(3, 0, b"\x03")), "model_type WORD"),
    (piece(b"a") + field(2, 2, field(3, 0, b"\x04")), "model_type CHAR"), (piece(b"a", 0, 2) + field(3, 2, field(2, 2, b"\xff\xff\xff\x7f")), "precompiled_charsmap"),
    (piece(b"a", 0, 2) + field(2, 2, b"\xea\x02\x01\xff"), "unk_piece is not UTF-8"),
])
def test_refused_model(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(FormatError, match=match) as caught:
        Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
    assert str(caught.value).startswith(str(tmp_path / "m.model"))


@pytest.mark.parametrize(("pieces", "options", "match"), [
    ([(b"a", 0, 1)], b"", "no piece is of type UNKNOWN"), ([(b"a", 0, 2), (b"b", 0, 2)], b"", "pieces 0 and 1 are both"), ([(b"a", 0, 2), (b"b", 0, 6)], b"", "BYTE and names none"),
    ([(b"a", 0, 2), (b"<0x41>", 0, 6)], b"", "BYTE in a model without byte_fallback"), ([(b"a", 0, 2), (b"<0x41>", 0, 6)], b"\x98\x02\x01", "without the pieces of all bytes"),
])
def test_sentencepiece_refuses_it_too(pieces: Any, options: bytes, match: str, tmp_path: Path) -> None:
    model = b"".join(piece(*p) for p in pieces) + field(2, 2, options)
    (tmp_path / "m.model").write_bytes(model)
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(tmp_path / "m.model", reference="sentencepiece")
    with pytest.raises(Exception):      # noqa: B017, PT011
        sentencepiece.SentencePieceProcessor(model_proto=model)


def test_long_bpe_piece(tmp_path: Path) -> None:
    pieces = [piece(t, 0, k) for t, k in ((b"<unk>", 2), (b"<s>", 3), (b"</s>", 3))]
    long = b"a" * 2000
    body = field(1, 2, b"")[:1] + b"\xd0\x0f" + long
    (tmp_path / "m.model").write_bytes(b"".join(pieces) + b"\x0a\xd3\x0f" + body + field(2, 2, field(3, 0, b"\x02")))
    with pytest.raises(FormatError, match="piece 3 has 2000 bytes, more than the 1024"):
        Tokenizer.from_pretrained(tmp_path / "m.model")


def try_open(path: Path, content: bytes, reference: str) -> bool:
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        tok = _C.Tokenizer(path, reference=reference)
    except FormatError:
        return False
    ids = tok.encode_batch(["the dog \u00e9 [SEP]", "<tool> 123\u2026"], ["a", ""], spans=True)[0]
    tok.decode(ids)
    tok.token_bytes(5)
    return True


@pytest.mark.parametrize("reference", ["tokenizers", "sentencepiece"])
@pytest.mark.parametrize("name", ["deberta", "llama", "gemma", "albert"])
def test_prefixes_and_flips(name: str, reference: str, tmp_path: Path) -> None:
    """Each prefix, and 1,000 files with flipped bytes, open or raise FormatError."""
    path = tmp_path / "spm.model"
    if name == "albert":
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    whole = model_of(name)
    assert try_open(path, whole, reference)
    r = random.Random(1)
    for n in r.sample(range(len(whole)), 600):
        try_open(path, whole[:n], reference)
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(r.choice([1, 1, 2, 8])):
            changed[r.randrange(len(changed))] = r.choice([r.randrange(256), 0, 255, 0x0A, 0x12, 0x80, 0x7F])
        try_open(path, bytes(changed), reference)


def test_gguf_flips(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", model_of("llama"), symbols=["<tool>"]).read_bytes()
    assert try_open(tmp_path / "m.gguf", whole, "tokenizers")
    r = random.Random(2)
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(r.choice([1, 1, 2, 8])):
            changed[r.randrange(len(changed))] = r.choice([r.randrange(256), 0, 255, 0x80, 0x7F])
        try_open(tmp_path / "m.gguf", bytes(changed), "tokenizers")
