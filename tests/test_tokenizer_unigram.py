"""Unigram tokenizers, and the normalizers and pre-tokenizers of their files, against Hugging Face `tokenizers`: nothing may differ."""
from __future__ import annotations

import base64
import functools
import json
import random
import struct
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from sizes import code_points, some
from tokenizer_cases import (
    CLUSTERS,
    TEXTS,
    charsmap,
    clusters,
    code_point_lines,
    difference,
    extract,
    random_normalizer,
    random_splitters,
    random_text,
    random_unicode,
)
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from harmaug import Tokenizer

SPACES = ["\t", "\n", "\x0c", "\r", "\u1680", "\u200b", "\u200e", "\u200f", "\u2028", "\u2029", "\u2581", "\ufeff", "\ufffd"]
DROPPED = [chr(c) for c in (*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F)]


@functools.cache
def nmt_nfkc() -> bytes:
    """Rules like those of sentencepiece's nmt_nfkc: NFKC of single characters and of base + mark, white space, control characters."""
    rules = {chr(c): unicodedata.normalize("NFKC", chr(c)) for c in (*range(0xA0, 0x3400), *range(0xF900, 0x10000), *range(0x1D400, 0x1D500))}
    rules |= {unicodedata.normalize("NFD", k): k for k in map(chr, range(0xC0, 0x2000)) if len(unicodedata.normalize("NFD", k)) == 2}
    rules = {k: v for k, v in rules.items() if k != v}
    return charsmap(rules | dict.fromkeys(DROPPED, "") | dict.fromkeys(SPACES, " "))


def two_spaces(content: str = " ") -> normalizers.Normalizer:
    return normalizers.Replace(Regex(" {2,}"), content)


def metaspace(scheme: str = "always", split: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace("▁", scheme, split)


def bert_template(cls: str, sep: str, tok: tokenizers.Tokenizer) -> processors.PostProcessor:
    ids = [(t, tok.token_to_id(t)) for t in (cls, sep)]
    return processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ids)


@functools.cache
def trained() -> str:
    """8,000 pieces of the package's own texts and of every script, in DeBERTa's pipeline."""
    tok = tokenizers.Tokenizer(models.Unigram())
    tok.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Precompiled(nmt_nfkc()), two_spaces()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([metaspace()])
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"<0x{b:02X}>" for b in range(256))]
    other = ["".join(c for c in line if c < "\u0700") for line in random_unicode(1500, 1)]      # every character of the corpus becomes a piece
    r = random.Random(2)
    stems = ["".join(r.choices(["ba", "ko", "ri", "tus", "men", "a", "lo", "ств", "ова", "στη", "é"], k=r.randint(2, 4))) for _ in range(6000)]
    other += [" ".join(r.choice(stems) + r.choice(["", "ing", "s", "ly"]) for _ in range(12)) for _ in range(3000)]
    tok.train_from_iterator(extract() + other, trainers.UnigramTrainer(
        vocab_size=8000, special_tokens=special, unk_token="[UNK]", n_sub_iterations=1, max_piece_length=12, show_progress=False))
    tok.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=False)])
    tok.post_processor = bert_template("[CLS]", "[SEP]", tok)
    tok.decoder = decoders.Metaspace()
    assert tok.get_vocab_size() >= 8000
    return str(tok.to_str())


def family(name: str) -> tokenizers.Tokenizer:
    """The pipelines of the families over the trained vocabulary, as transformers' converters write them."""
    tok = tokenizers.Tokenizer.from_str(trained())
    charmap = normalizers.Precompiled(nmt_nfkc())
    if name == "byte_fallback":
        state = json.loads(trained())
        state["model"]["byte_fallback"] = True
        return tokenizers.Tokenizer.from_str(json.dumps(state))
    if name == "xlm_roberta":
        tok.normalizer = normalizers.Sequence([normalizers.Strip(False, True), charmap, two_spaces("▁")])
        tok.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[(t, tok.token_to_id(t)) for t in ("[CLS]", "[SEP]")])
    elif name == "albert":
        tok.normalizer = normalizers.Sequence([
            normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), charmap,
            two_spaces()])
    elif name == "t5":
        tok.normalizer = normalizers.Sequence([charmap, two_spaces()])
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])
        tok.post_processor = processors.TemplateProcessing(single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", tok.token_to_id("[SEP]"))])
    elif name == "first":
        tok.pre_tokenizer = metaspace("first")
        tok.decoder = decoders.Metaspace(prepend_scheme="first")
    elif name == "never_whole":
        tok.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
        tok.pre_tokenizer = metaspace("never", split=False)
        tok.decoder = decoders.Metaspace(prepend_scheme="never")
    elif name == "v5":      # what transformers 5 rebuilds for DeBERTa
        tok.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(False, True)])
    return tok


def both(tok: tokenizers.Tokenizer, folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Both from the same file: the scores that the reference reads are not those that it wrote."""
    path = folder / "tokenizer.json"
    tok.save(str(path))
    return Tokenizer.from_pretrained(path), tokenizers.Tokenizer.from_file(str(path))


@pytest.mark.parametrize("name", ["deberta", "byte_fallback", "xlm_roberta", "albert", "t5", "first", "never_whole", "v5"])
def test_families(name: str, tmp_path: Path) -> None:
    ours, theirs = both(family(name), tmp_path)
    texts = TEXTS + extract() + random_unicode(1000, 2) + clusters(1000, 3) + ["x [MASK] [UNK]x <0x41>", "[MASK]", "  [SEP] ", "🔓🔓 a🔓"]
    assert difference(ours, theirs, texts) == []
    pairs = [None if i % 3 == 0 else texts[-i] for i in range(len(texts))]
    assert difference(ours, theirs, texts, pairs, decode=False) == []
    assert difference(ours, theirs, texts[::3], pairs[::3], special=False, decode=False) == []
    one_by_one = [ours.encode(t) for t in texts[:300]]
    assert one_by_one == [row.tolist() for row in ours.encode_batch(texts[:300])]
    assert ours.vocab_size == theirs.get_vocab_size(with_added_tokens=True)
    for token, id in theirs.get_vocab(with_added_tokens=True).items():
        assert ours.token_to_id(token) == id and ours.id_to_token(id) == theirs.id_to_token(id)


@pytest.mark.parametrize("name", ["deberta", "albert"])
def test_code_points(name: str, tmp_path: Path) -> None:
    ours, theirs = both(family(name), tmp_path)
    points = [*range(0x3400), *range(0xA000, 0xAC00), *range(0xAC00, 0xD7B0, 13), *range(0xD7B0, 0x12000), *range(0x1D000, 0x20000, 3), *range(0x20000, 0x110000, 499)]
    points = code_points(3, points if name == "deberta" else points[::4])
    assert difference(ours, theirs, code_point_lines(points), decode=False) == []


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation(strategy: str, side: str, tmp_path: Path) -> None:
    ours, theirs = both(family("deberta"), tmp_path)
    rows = [(a, b) for a in (" ".join(extract()[:5]), "a dog", "") for b in (None, " ".join(extract()[5:9]), "a 🔓 dog", "")]
    for length in range(0, 131, 5):
        theirs.enable_truncation(length, strategy=strategy, direction=side)
        for text, pair in rows:
            try:
                want = theirs.encode(text, pair)
            except Exception as error:      # noqa: BLE001
                assert "Truncation error" in str(error)
                with pytest.raises(ValueError, match="row 0: truncation 'only_"):
                    ours.encode_batch([text], [pair], True, length, strategy, truncation_side=side)
                continue
            got = ours.encode_batch([text], [pair], True, length, strategy, truncation_side=side)
            assert got.ids.tolist() == want.ids and got.type_ids.tolist() == want.type_ids and [tuple(s) for s in got.spans.tolist()] == want.offsets


# ---- normalizers and pre-tokenizers on their own ----


def test_normalizers_on_every_code_point(tmp_path: Path) -> None:
    """Code points beside letters and marks. The charsmap makes visible where clusters begin and end."""
    text = "".join(f"a{chr(c)}\u0327{chr(c)} " for c in code_points(13))
    visible = {chr(c): "z" for c in (*range(0x80, 0x3400), *range(0xF900, 0x10000), *range(0x1F000, 0x20000))} | {"a": "y", "\r": "x"}
    for normalizer in (normalizers.Precompiled(charsmap(visible)), normalizers.Precompiled(nmt_nfkc()), normalizers.NFKC(), normalizers.NFKD(),
                       normalizers.StripAccents(), normalizers.Nmt(), normalizers.Replace(Regex(r"\s+"), "")):
        tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        tok.normalizer = normalizer
        assert both(tok, tmp_path)[0]._tokenizer.normalize(text) == normalizer.normalize_str(text), normalizer


def test_clusters_of_every_code_point(tmp_path: Path) -> None:
    """Each of a plane's code points before and after each kind of neighbour."""
    normalizer = normalizers.Precompiled(charsmap({chr(c): "z" for c in (*range(0x80, 0x900), 0x915, 0x94D, 0x1100, 0x1161, 0x11A8, 0x200D)} | {"a": "y"}))
    tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tok.normalizer = normalizer
    ours = both(tok, tmp_path)[0]
    frames = ["a@", "@a", "@\u0301", "@\u0301\u0302", "\u00a9@\u200d\u00a9\u0301", "\u00a9\u200d@\u0301", "@\u200d\u00a9\u0301", "@\u094d\u0915\u0301",
              "\u0915\u094d@\u0301", "\u0915@\u0915\u0301", "\u0915\u094d@\u0915\u0301", *(f"\u0600@{y}" for y in "\u1100\u1161\u11a8가각"),
              *(f"\u0600{y}@" for y in "\u1100\u1161\u11a8가각")]
    points = [c for c in (*range(0x3200), *range(0xA000, 0xAC40), *range(0xD780, 0xD800), *range(0xE000, 0xE010), *range(0xFB00, 0x12000), *range(0x1F000, 0x1FB00),
                          *range(0xE0000, 0xE0200))]
    for frame in frames:
        text = "\n".join(frame.replace("@", chr(c)) for c in points)
        assert ours._tokenizer.normalize(text) == normalizer.normalize_str(text), ascii(frame)


@pytest.mark.parametrize("pre", [
    pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Whitespace(), *(pre_tokenizers.Metaspace("▁", s, split) for s in ("always", "first", "never") for split in (True, False)),
    *(pre_tokenizers.Punctuation(b) for b in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"))], ids=str)
def test_pre_tokenizers(pre: Any, tmp_path: Path) -> None:
    tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre
    ours = both(tok, tmp_path)[0]
    text = "".join(f"a{chr(c)}{chr(c)} {chr(c)}" for c in code_points(7))
    n = some(100_000, 15_000)
    for line in [text[:4 * n], text[4 * n:10 * n], text[-3 * n:], *clusters(200, 5), "..a..b", "▁ a▁▁ b▁", " a", "▁"]:
        assert [tuple(s) for s in ours._tokenizer.pre_tokenize(line).tolist()] == [span for _, span in pre.pre_tokenize_str(line)], ascii(line[:80])


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_random_chains(first: int, tmp_path: Path) -> None:
    """Random chains of normalizers and pre-tokenizers before a model of single characters: every span shows."""
    alphabet = sorted(set("abcxyzé .,▁\u0301") | set("".join(CLUSTERS[:20])))
    for seed in range(first, first + 100):
        r = random.Random(seed)
        tok = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in alphabet)], 0))
        tok.normalizer = random_normalizer(r)
        tok.pre_tokenizer = pre_tokenizers.Sequence(random_splitters(r))
        ours, theirs = both(tok, tmp_path)
        for text in [random_text(r) for _ in range(15)] + clusters(15, seed):
            try:
                theirs.encode(text)
            except BaseException as error:      # noqa: BLE001  a Rust panic
                assert "bad split" in str(error), error
                continue
            assert difference(ours, theirs, [text], decode=False) == [], (seed, text)


# ---- the model ----


def unigram(vocab: list[tuple[str, float]], unk: int | None = 0, byte_fallback: bool = False) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.Unigram(vocab, unk, byte_fallback))


@pytest.mark.parametrize(("vocab", "unk", "fallback"), [
    ([("<unk>", 0.0), ("a", -1.0), ("aa", -2.0), ("aaa", -3.0), ("aaaa", -4.0)], 0, False),             # ties everywhere
    ([("a", 50.0), ("b", 60.0), ("cd", 41.0), ("<unk>", 45.0)], 3, False),                              # two unknown characters beat the piece that they are
    ([("<unk>", 0.0), ("a", -1.0), ("b", -9.0), ("a", -5.0), ("ab", -7.0)], 0, False),                  # a text that stands twice
    ([("<unk>", 0.0), ("", 5.0), ("a", -1.0)], 0, False), ([("only", 0.0)], 0, True),
    ([("<unk>", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(256)), ("a", -1.0)], 0, True),
    ([("<unk>", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(200)), ("a", -1.0)], 0, True),             # some bytes have no token
])
def test_models(vocab: Any, unk: int, fallback: bool, tmp_path: Path) -> None:
    ours, theirs = both(unigram(vocab, unk, fallback), tmp_path)
    texts = ["a" * n for n in range(20)] + ["cd", "acdb", "ccdd", "ab", "bab", "<unk>", "x<unk>y", "a<unk>a", "<0x41>", "é🔓", "a🔓🔓a", "\x7f", "only", "onlyonl"]
    assert difference(ours, theirs, texts) == []
    assert [ours.id_to_token(i) for i in range(len(vocab))] == [theirs.id_to_token(i) for i in range(len(vocab))]
    assert [ours.token_to_id(t) for t, _ in vocab] == [theirs.token_to_id(t) for t, _ in vocab] and ours.vocab_size == theirs.get_vocab_size()


def test_no_unk_id(tmp_path: Path) -> None:
    ours, theirs = both(unigram([("a", -1.0), ("ab", -2.0), ("abc", -30.0)], None), tmp_path)
    assert difference(ours, theirs, ["", "a", "ab", "aab", "abab", "abc"]) == []     # `abc` costs less than an unknown character
    for text in ("b", "ax", "abcb"):
        with pytest.raises(Exception, match="unk_id"):
            theirs.encode(text)
        with pytest.raises(ValueError, match="row 0: a character is not in the vocabulary, and the model has no unk_id"):
            ours.encode(text)


def test_scores_are_read_as_the_reference_reads_them(tmp_path: Path) -> None:
    """`ab` against `a` `b`, whose scores differ in the last places: serde_json's rounding decides."""
    r = random.Random(0)
    vocab: list[list[Any]] = [["<unk>", "-50"], ["a", "0"]]
    for i in range(2000):
        digits = r.choice("123456789") + "".join(r.choices("0123456789", k=r.choice([1, 14, 15, 16, 17, 18, 21, 39])))
        number = f"-{digits[0]}.{digits[1:]}" if r.random() < 0.8 else f"-{digits}e-{len(digits) - r.randint(0, 2)}"
        near = repr(float(number)) if r.random() < 0.5 else number + r.choice(["", "0", "1", "00000000000000000001"])
        vocab += [[chr(0x4E00 + i), number], ["a" + chr(0x4E00 + i), near]]
    literal = "[" + ",".join(f"[{json.dumps(t)},{s}]" for t, s in vocab) + "]"
    text = unigram([("<unk>", 0.0)]).to_str().replace(json.dumps([["<unk>", 0.0]], separators=(",", ":")), literal)
    assert len(text) > 50_000
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    ours, theirs = Tokenizer.from_pretrained(tmp_path), tokenizers.Tokenizer.from_str(text)
    lines = ["a" + chr(0x4E00 + i) for i in range(2000)]
    assert difference(ours, theirs, lines) == []
    assert {len(e.ids) for e in theirs.encode_batch(lines)} == {1, 2}


def test_long_words(tmp_path: Path) -> None:
    ours, theirs = both(family("deberta"), tmp_path)
    assert difference(ours, theirs, ["ab" * 30000, "é" * 20000, "🔓" * 20000, "a\u0301" * 20000, " " * 50000 + "x", "\u0301" * 50000], decode=False) == []


# ---- hostile files ----


def broken(change: Any) -> str:
    state = json.loads(unigram([("<unk>", 0.0), ("a", -1.0)]).to_str())
    change(state)
    return json.dumps(state)


def precompiled(map_: bytes | str) -> Any:
    text = map_ if isinstance(map_, str) else base64.b64encode(map_).decode()
    return lambda s: s.update(normalizer={"type": "Precompiled", "precompiled_charsmap": text})


def unit(index: int, value: int) -> bytes:
    """A small charsmap with one unit of its trie changed."""
    whole = charsmap({"a": "b", "é": "xyz"})
    return whole[:4 + 4 * index] + struct.pack("<I", value) + whole[8 + 4 * index:]


def with_model(**members: Any) -> Any:
    return lambda s: s["model"].update(members)


@pytest.mark.parametrize(("change", "match"), [
    (with_model(vocab=[]), "Unigram: \"vocab\" is empty"), (with_model(vocab={"a": 0}), "missing or no array"),
    (with_model(vocab=[["a"]]), r"vocab\[0\]: expected \[\"token\", score\]"), (with_model(vocab=[["a", -1], ["b", "NaN"]]), r"vocab\[1\]: expected"),
    (with_model(vocab=[["a", None]]), r"vocab\[0\]: expected"), (with_model(vocab=[[3, 4]]), r"vocab\[0\]: expected"), (with_model(vocab=["a", -1]), r"vocab\[0\]: expected"),
    (with_model(vocab=[["a", -1], ["b", 0, 0]]), r"vocab\[1\]: expected"), (with_model(unk_id=2), "unk_id 2 is not in the vocabulary of 2 tokens"),
    (with_model(unk_id=2**40), "unk_id"), (with_model(unk_id=-1), "unk_id"), (with_model(unk_id="a"), "unk_id"), (with_model(byte_fallback=3), "byte_fallback"),
    (precompiled(""), "precompiled_charsmap: a trie of 0 bytes"), (precompiled("abc"), "malformed base64"), (precompiled("ab=="), "malformed base64"),
    (precompiled("!!!!"), "malformed base64"), (precompiled(b"\x00\x00\x01\x00abc"), "a trie of 65536 bytes in a map of 7"),
    (precompiled(b"\xff\xff\xff\xff" + bytes(64)), "a trie of 4294967295 bytes"), (precompiled(charsmap({"a": "b"}) + b"\xff"), "replacements are not UTF-8"),
    (precompiled(struct.pack("<5I", 16, 0, 0, 0, 0)), "leads out of the trie"), (precompiled(unit(0, 0x7FFFFC00)), "unit 0 leads out of the trie of 512 units"),
    (lambda s: s.update(normalizer={"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}), r"'Replace' with pattern 'a\+' is not supported"),
    (lambda s: s.update(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": ""}), "'Replace' with pattern '' is not supported"),
    (lambda s: s.update(normalizer={"type": "Replace", "pattern": {"String": "a"}}), "\"content\" is missing"),
    (lambda s: s.update(normalizer={"type": "Prepend", "prepend": ""}), "'Prepend' with text '' is not supported"),
    (lambda s: s.update(normalizer={"type": "Nothing"}), "normalizer 'Nothing' is not supported"),
    (lambda s: s.update(normalizer={"type": "Sequence", "normalizers": [{"type": "Nmt"}] * 33}), "more than 32 steps"),
    (lambda s: s.update(pre_tokenizer={"type": "Metaspace", "replacement": ""}), "must be one character"),
    (lambda s: s.update(pre_tokenizer={"type": "Metaspace", "replacement": "ab"}), "must be one character"),
    (lambda s: s.update(pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"}), "prepend_scheme 'last' is not supported"),
    (lambda s: s.update(pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "add_prefix_space": False}), "at odds"),
    (lambda s: s.update(pre_tokenizer={"type": "Punctuation", "behavior": "Merged"}), "behavior 'Merged' is not supported"),
    (lambda s: s.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}), "model 'Unigram' with pre_tokenizer"),
])
def test_refused_files(change: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(broken(change), encoding="utf-8")
    with pytest.raises(ValueError, match=match):
        Tokenizer.from_pretrained(tmp_path)


def test_scores_out_of_range(tmp_path: Path) -> None:
    for literal, match in (("1e999", "out of range"), ("-1e400", "out of range"), ("1" * 400, "out of range"), ("NaN", "column"), ("-Infinity", "column")):
        (tmp_path / "tokenizer.json").write_text(broken(lambda s: None).replace('["a", -1.0]', f'["a", {literal}]'), encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            Tokenizer.from_pretrained(tmp_path)


def test_damaged_charsmaps(tmp_path: Path) -> None:
    """Every prefix of a map, and seeded flips of its bytes: refused by name, or read and used within its bounds."""
    whole = charsmap({"a": "b", "é": "xyz", "e\u0301": "é", "中": "", "\r": " "})
    r = random.Random(0)
    maps = [whole[:n] for n in range(0, len(whole), 7)]
    for _ in range(400):
        flipped = bytearray(whole)
        for _ in range(r.randint(1, 4)):
            flipped[r.randrange(len(flipped))] ^= 1 << r.randrange(8)
        maps.append(bytes(flipped))
    path = tmp_path / "tokenizer.json"
    for map_ in maps:
        path.write_text(broken(precompiled(map_)), encoding="utf-8")
        try:
            ours = Tokenizer.from_pretrained(path)
        except ValueError as error:
            assert "precompiled_charsmap" in str(error)
            continue
        for text in ("a e\u0301 é\r\n中x", "".join(CLUSTERS)):
            ours.encode(text)
