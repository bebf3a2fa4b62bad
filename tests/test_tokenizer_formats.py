"""Vocabularies without tokenizer.json: vocab.txt, vocab.json with merges.txt, *.tiktoken, and the files beside them that say whose conventions apply."""
from __future__ import annotations

import base64
import copy
import functools
import json
import pickle
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from sizes import some
from tokenizer_cases import CL100K_TIKTOKEN, PATTERNS, QWEN2, TEXTS, difference, random_text, random_unicode
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from harmaug import FormatError, Tokenizer

BASE = ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>"]
MORE = ["", "the <mask> end", " <mask><mask>  </s>x<s>", "<|endoftext|> a<|endoftext|>", "<|im_start|>the<|im_end|>", "  <pad> <unk>", "a<new>b <new> c", "NEW new"]


@functools.cache
def trained(pattern: str = QWEN2) -> str:
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.train_from_iterator(random_unicode(1500, 1) + TEXTS * 3, trainers.BpeTrainer(
        vocab_size=8000, special_tokens=BASE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert tok.get_vocab_size() == 8000
    return str(tok.to_str())


def model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    parts = json.loads(trained())["model"]
    return parts["vocab"], [tuple(m) for m in parts["merges"]]


def write_gpt2(folder: Path, drop: str = "", **files: Any) -> None:
    vocab, merges = model()
    vocab = {t: i for t, i in vocab.items() if t != drop}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def pipeline(kind: str, prefix: bool = False, trim: bool = True, bos: bool = False) -> tokenizers.Tokenizer:
    """What transformers 4 makes of the two files (convert_slow_tokenizer): GPT2Converter, RobertaConverter, Qwen2Converter."""
    vocab, merges = model()
    tok = tokenizers.Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind == "roberta":
        tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix, trim_offsets=trim)
    elif kind == "qwen2":
        tok.normalizer = normalizers.NFC()
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])
    elif bos:
        tok.post_processor = processors.TemplateProcessing(
            single="<|endoftext|>:0 $A:0", pair="<|endoftext|>:0 $A:0 $B:1", special_tokens=[("<|endoftext|>", 4)])
    return tok


def check(folder: Path, theirs: tokenizers.Tokenizer, path: Path | None = None) -> Tokenizer:
    ours = Tokenizer.from_pretrained(path or folder)
    r = random.Random(1)
    texts = TEXTS + MORE + random_unicode(200, 2) + [random_text(r) for _ in range(200)]
    assert difference(ours, theirs, texts) == [] and difference(ours, theirs, texts, [None, *texts[1:]]) == []
    assert difference(ours, theirs, texts, split=True) == []
    for token, id in theirs.get_vocab(with_added_tokens=True).items():
        assert ours.token_to_id(token) == id
    return ours


ROBERTA = [AddedToken(t, normalized=False) for t in ("<s>", "</s>", "<unk>", "<pad>")] + [AddedToken("<mask>", lstrip=True, normalized=False)]


@pytest.mark.parametrize(("config", "kind", "options", "special"), [
    ({"tokenizer_class": "GPT2Tokenizer"}, "gpt2", {}, ["<|endoftext|>"]),
    ({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True, "add_bos_token": True}, "gpt2", {"prefix": True, "bos": True}, ["<|endoftext|>"]),
    ({"tokenizer_class": "GPT2Tokenizer", "pad_token": "<pad>", "unk_token": {"content": "<unk>", "lstrip": True}, "bos_token": None}, "gpt2", {},
     ["<|endoftext|>", AddedToken("<unk>", lstrip=True, normalized=False), "<pad>"]),
    ({"tokenizer_class": "GPT2Tokenizer", "additional_special_tokens": ["<|im_start|>", "<new>"]}, "gpt2", {}, ["<|endoftext|>", "<|im_start|>", "<new>"]),
    ({"tokenizer_class": "RobertaTokenizer"}, "roberta", {}, ROBERTA),
    ({"tokenizer_class": "BartTokenizerFast", "add_prefix_space": True}, "roberta", {"prefix": True}, ROBERTA),
    ({"tokenizer_class": "LongformerTokenizer", "trim_offsets": False, "mask_token": "<mask>"}, "roberta", {"trim": False}, ROBERTA),
    ({"tokenizer_class": "RobertaTokenizer", "mask_token": {"content": "<mask>", "rstrip": True}}, "roberta", {},
     [*ROBERTA[:4], AddedToken("<mask>", rstrip=True, normalized=False)]),
    ({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}, "qwen2", {}, ["<|im_end|>", "<|endoftext|>"]),
], ids=str)
def test_vocab_json(config: dict[str, Any], kind: str, options: dict[str, bool], special: list[Any], tmp_path: Path) -> None:
    write_gpt2(tmp_path, tokenizer_config=config)
    theirs = pipeline(kind, **options)
    theirs.add_special_tokens(special)
    ours = check(tmp_path, theirs)
    check(tmp_path, theirs, tmp_path / "vocab.json")
    target = tmp_path / "saved"
    ours.save_pretrained(target)
    assert difference(Tokenizer.from_pretrained(target), theirs, TEXTS + MORE) == []


def test_class_by_other_means(tmp_path: Path) -> None:
    """config.json, then the vocabulary itself; a class that is not known is named, and so is the doubt."""
    theirs = pipeline("roberta")
    theirs.add_special_tokens(ROBERTA)
    write_gpt2(tmp_path, config={"model_type": "roberta"})
    check(tmp_path, theirs)
    write_gpt2(tmp_path, config={"model_type": "roberta"}, tokenizer_config={"tokenizer_class": "CLIPTokenizer"})
    with pytest.raises(FormatError, match="vocab.json: tokenizer_class 'CLIPTokenizer' is not supported with vocab.json and merges.txt"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").unlink()
    theirs = pipeline("gpt2")
    theirs.add_special_tokens(["<|endoftext|>"])
    check(tmp_path, theirs)
    write_gpt2(tmp_path, drop="<|endoftext|>")
    with pytest.raises(FormatError, match='must name its "tokenizer_class"'):
        Tokenizer.from_pretrained(tmp_path)


def test_added_tokens(tmp_path: Path) -> None:
    """added_tokens_decoder goes over the two older files, which go over tokenizer_config.json."""
    older = {"added_tokens": {"<new>": 8001, "<|im_start|>": 8000}, "special_tokens_map": {"pad_token": {"content": "<|im_start|>", "rstrip": True}}}
    write_gpt2(tmp_path, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<pad>"}, **older)
    theirs = pipeline("qwen2")
    theirs.add_special_tokens([AddedToken("<|im_start|>", normalized=False)])
    theirs.add_tokens([AddedToken("<new>", normalized=True)])
    theirs.add_special_tokens(["<|endoftext|>"])
    assert check(tmp_path, theirs).pad_id == 8000
    table = {"8001": {"content": "new", "single_word": True, "lstrip": False, "rstrip": True, "special": False, "normalized": True},
             "8000": {"content": "<|im_start|>", "special": True}, "4": {"content": "<|endoftext|>", "special": False}}
    write_gpt2(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": table}, **older)
    theirs = pipeline("gpt2")
    theirs.add_special_tokens([AddedToken("<|endoftext|>", normalized=False), AddedToken("<|im_start|>", normalized=False)])
    theirs.add_tokens([AddedToken("new", single_word=True, rstrip=True, normalized=True)])
    check(tmp_path, theirs)


@pytest.mark.parametrize(("files", "match"), [
    ({"tokenizer_config": []}, "tokenizer_config.json: must hold an object"), ({"tokenizer_config": {"tokenizer_class": 5}}, "tokenizer_class"),
    ({"tokenizer_config": {"add_prefix_space": "yes"}}, "add_prefix_space"), ({"special_tokens_map": {"pad_token": 7}}, '"pad_token" is neither'),
    ({"added_tokens": {"<new>": 9000}}, "'<new>' is said to have id 9000"), ({"added_tokens": {"<new>": "x"}}, "must map tokens to ids"),
    ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "must map ids to objects"),
    ({"tokenizer_config": {"additional_special_tokens": [3]}}, '"additional_special_tokens" is neither'),
    ({"tokenizer_config": {"tokenizer_class": "RobertaTokenizer", "cls_token": "[CLS]"}}, r"cls_token '\[CLS\]' is not in the vocabulary"),
    ({"tokenizer_config": {"add_bos_token": True, "bos_token": None}}, 'without a "bos_token"'),
    ({"vocab": []}, "must hold an object"), ({"vocab": {"a": -1}}, "the id of 'a'"), ({"vocab": {"a": 1, "b": 1}}, "same id 1"),
])
def test_refused(files: dict[str, Any], match: str, tmp_path: Path) -> None:
    write_gpt2(tmp_path, **files)
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(("merges", "match"), [
    ("{}\nx\n", "merges.txt: line 2: expected"), ("#version\nt h e\n", "line 2: expected"), ("t zz\n", r"merges\[0\]: the right half"), ("{}\n\n{}\n", "line 2"),
    ("\udcff a\n", "merges.txt: not UTF-8"),
])
def test_refused_merges(merges: str, match: str, tmp_path: Path) -> None:
    write_gpt2(tmp_path)
    (tmp_path / "merges.txt").write_bytes(merges.replace("{}", " ".join(model()[1][0])).encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="open its folder"):
        Tokenizer.from_pretrained(tmp_path / "merges.txt")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(OSError, match="merges.txt"):
        Tokenizer.from_pretrained(tmp_path)


def test_vocab_txt_files_beside(tmp_path: Path) -> None:
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "##b", "new"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    theirs = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    theirs.normalizer, theirs.pre_tokenizer, theirs.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    theirs.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    theirs.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])       # the two that the file lacks, at its end
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    assert check(tmp_path, theirs).pad_id == 7
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 7}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ElectraTokenizer", "pad_token": "<x>", "mask_token": None}))
    (tmp_path / "special_tokens_map.json").unlink()
    assert Tokenizer.from_pretrained(tmp_path).encode("a<x>") == [1, 3, 7, 2]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MPNetTokenizer"}))
    with pytest.raises(FormatError, match="tokenizer_class 'MPNetTokenizer' is not supported with vocab.txt"):
        Tokenizer.from_pretrained(tmp_path)


# ---- tiktoken ----


def ranks() -> dict[bytes, int]:
    """The trained tokens, bytes first, as ranks."""
    table = {c: b for b, c in enumerate(byte_characters())}
    tokens = [t for t, _ in sorted(model()[0].items(), key=lambda item: item[1]) if t not in BASE]
    return {bytes(table[c] for c in t): i for i, t in enumerate(tokens)}


def byte_characters() -> str:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(b if b in printable else next(others)) for b in range(256))


def write_tiktoken(path: Path, table: Mapping[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in table.items()))
    return path


def merged(piece: bytes, table: Mapping[bytes, int]) -> list[int]:
    """tiktoken's rule, as its README states it: whole pieces, else the neighbours of the lowest rank, the leftmost first."""
    parts = [piece] if piece in table else [piece[i:i + 1] for i in range(len(piece))]
    while True:
        found = [(table[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in table]
        if not found:
            return [table[p] for p in parts]
        i = min(found)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("name", PATTERNS)
def test_tiktoken(name: str, tmp_path: Path) -> None:
    """Pieces by `tokenizers`, merges by the rule; tests/reference compares with the library itself."""
    table = ranks()
    path = write_tiktoken(tmp_path / "x.tiktoken", table)
    ours = Tokenizer.from_pretrained(path, pattern=name)
    cut = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    r = random.Random(1)
    for text in TEXTS + random_unicode(300, 5) + [random_text(r) for _ in range(300)] + ["abab" * 50]:
        want = [id for piece, _ in cut.pre_tokenize_str(text) for id in merged(piece.encode(), table)]
        assert ours.encode(text) == want, text
        assert ours.decode(want) == text
    for other in (Tokenizer.from_pretrained(tmp_path, pattern=PATTERNS[name]), pickle.loads(pickle.dumps(ours)), copy.copy(ours)):
        assert other.encode("the 1234") == ours.encode("the 1234")


def test_tiktoken_cl100k(tmp_path: Path) -> None:
    """White space that ends a text is one piece, unlike in the expression that tokenizer.json files have for it."""
    table = {bytes([i]): i for i in range(256)}
    table |= {token: 256 + i for i, token in enumerate([b"  ", b"\n ", b"\n  ", b"a\n", b"\n\n", b"\n\n "])}
    path = write_tiktoken(tmp_path / "x.tiktoken", table)
    ours, theirs = (Tokenizer.from_pretrained(path, pattern=name) for name in ("cl100k", "llama3"))
    assert ours.encode("a\n  ") == [97, table[b"\n  "]] and theirs.encode("a\n  ") == [97, 10, table[b"  "]]
    assert ours.encode("\n\n b") == theirs.encode("\n\n b") == [table[b"\n\n"], 32, 98]
    assert Tokenizer.from_pretrained(path, pattern=CL100K_TIKTOKEN).encode("a\n  ") == ours.encode("a\n  ")


def test_tiktoken_ties(tmp_path: Path) -> None:
    """Two overlapping pairs that make the same token: the leftmost wins, whichever way its halves were made."""
    table = {bytes([i]): i for i in range(256)} | {b"ab": 256, b"ba": 257, b"aba": 258}
    ours = Tokenizer.from_pretrained(write_tiktoken(tmp_path / "x.tiktoken", table), pattern="gpt2")
    for text in ("abaab", "ababa", "baaba", "abab" * 30, "baba" * 9):
        assert ours.encode(text) == merged(text.encode(), table)


def test_tiktoken_special_tokens(tmp_path: Path) -> None:
    table = ranks()
    path = write_tiktoken(tmp_path / "x.tiktoken", table)
    n = len(table)
    ours = Tokenizer.from_pretrained(path, pattern="o200k", special_tokens={"<|endoftext|>": n + 5, "<|é|>": n})
    text = "a<|endoftext|><|é|> b"
    assert ours.encode(text) == [table[b"a"], n + 5, n, table[b" b"]] and ours.vocab_size == n + 6
    assert ours.decode(ours.encode(text), False) == text and ours.decode(ours.encode(text)) == "a b"
    plain = Tokenizer.from_pretrained(path, pattern="o200k")
    assert ours.encode(text, split_special_tokens=True) == plain.encode(text) and n + 5 not in plain.encode(text)
    assert pickle.loads(pickle.dumps(ours)).encode(text) == ours.encode(text)
    for special, match in (({"a": n}, "'a' is a token already"), ({"": n}, "empty"), ({"<x>": -1}, "must be >= 0"), ({"<x>": 5}, "same id 5"),
                           ({"<x>": 2**40}, "out of range")):
        with pytest.raises(ValueError, match=match):
            Tokenizer.from_pretrained(path, pattern="o200k", special_tokens=special)
    with pytest.raises(ValueError, match="special_tokens go with a .tiktoken"):
        Tokenizer.from_pretrained(path, special_tokens={"<x>": n})


@pytest.mark.parametrize(("change", "match"), [
    (b"!!!! 300\n", "line 257: expected"), (b"YWI= x\n", "line 257: expected"), (b"YWI=\n", "line 257: expected"), (b"YWI= 300 \n", "line 257: expected"),
    (b"YWJ= 300\n", "line 257: expected"), (b"YWI 300\n", "line 257: expected"), (b" 300\n", "line 257: expected"), (b"YWI= -1\n", "line 257: expected"),
    (b"YQ== 300\n", "has rank 97 already"), (b"YWI= 97\n", "same id 97"), (b"YWI= 4000000000\n", "out of range"), (b"YWI= 99999999999999999999\n", "line 257"),
    (base64.b64encode(b"x" * 5000) + b" 300\n", "longer than"), (None, "byte 0xFF is no token"),
])
def test_refused_tiktoken(change: bytes | None, match: str, tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / "x.tiktoken", {bytes([i]): i for i in range(256 if change else 255)})
    path.write_bytes(path.read_bytes() + (change or b""))
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(path, pattern="gpt2")


def test_tiktoken_arguments(tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / "x.tiktoken", {bytes([i]): i for i in range(256)})
    for options, match in (({}, "give its pattern"), ({"pattern": r"\w+"}, re.escape(r"pattern '\w+' is not supported"))):
        with pytest.raises(ValueError, match=match):
            Tokenizer.from_pretrained(path, **options)
    with pytest.raises(OSError, match="no tokenizer there"):
        Tokenizer.from_pretrained(tmp_path)
    path.rename(tmp_path / "tokenizer.model")       # Llama-3's name for it
    assert Tokenizer.from_pretrained(tmp_path, pattern="llama3").encode("a\r\n") == [97, 13, 10]
    path.write_bytes((tmp_path / "tokenizer.model").read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert Tokenizer.from_pretrained(tmp_path, pattern="llama3").encode("a") == [97]


# ---- hostile files ----


def try_open(path: Path, file: Path, content: bytes, **options: Any) -> bool:
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    try:
        tok = Tokenizer(path, **options)
    except FormatError:
        return False
    tok.decode(tok.encode_batch(["the dog é <s>", "<|endoftext|> 123"], ["a", ""], split_special_tokens=len(content) % 2 == 0).ids)
    return True


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "x.tiktoken"])
def test_prefixes_and_flips(name: str, tmp_path: Path) -> None:
    """Each prefix of a small file and files with flipped bytes open or raise FormatError."""
    alphabet = [*BASE, *byte_characters(), "th", "the"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(alphabet)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    n = len(alphabet)
    new = {"content": "<new>", "lstrip": True, "rstrip": False, "single_word": False, "special": False, "normalized": False}
    if name == "tokenizer_config.json":
        (tmp_path / name).write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "added_tokens_decoder": {str(n): new}}))
    else:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": new, "additional_special_tokens": ["<x>", new]}))
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": n, "<y>": n + 1}))
    options, path = {}, tmp_path
    if name == "x.tiktoken":
        options, path = {"pattern": "cl100k"}, write_tiktoken(tmp_path / name, {bytes([i]): i for i in range(256)} | {b"th": 256, b"the": 257})
    whole = (tmp_path / name).read_bytes()
    assert try_open(path, tmp_path / name, whole, **options)
    for length in range(len(whole)):
        try_open(path, tmp_path / name, whole[:length], **options)
    r = random.Random(1)
    for _ in range(some(1000, 200)):
        changed = bytearray(whole)
        for _ in range(r.choice([1, 1, 2, 8])):
            changed[r.randrange(len(changed))] = r.choice([r.randrange(256), 0, 255, 0x22, 0x5C, 0x7B, 0x39, 0x20, 0x0A])
        try_open(path, tmp_path / name, bytes(changed), **options)
