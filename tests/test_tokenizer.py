"""The tokenizer's interface, the files it opens and those it refuses; tests/test_tokenizer_exact.py compares ids with `tokenizers`."""
from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizer_cases import GPT2, LLAMA3, QWEN2, TEXTS, difference, stops_midway
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from harmaug import _C, FormatError, Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyzT.,!'?[]-", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "the", "dog", "##ing",
         "caf", "Caf", "é", "##é", "中"]


def bert(**options: bool | None) -> tokenizers.Tokenizer:
    tok = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(**options)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tok.decoder = decoders.WordPiece()
    tok.add_special_tokens(WORDS[:5])
    return tok


def byte_vocab() -> tuple[list[str], list[tuple[str, str]]]:
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("d", "o"), ("Ġ", "Ġ"), ("1", "2"), ("12", "3"), ("Ã", "©")]
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges), "<|endoftext|>", "<|im_start|>", "<tool>"], merges


def byte_level() -> tokenizers.Tokenizer:
    vocab, merges = byte_vocab()
    tok = tokenizers.Tokenizer(models.BPE({v: i for i, v in enumerate(vocab)}, merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False) for t in vocab[-3:-1]])
    tok.add_tokens([AddedToken(vocab[-1], normalized=False)])
    return tok


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bert().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def tok(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


# ---- encodings ----


def test_encoding(tok: Tokenizer) -> None:
    e = tok.encode_batch(["the dog", "a", "", "thing dog the"])
    assert len(e) == 4 and e.ids.dtype == e.truncated.dtype == e.spans.dtype == np.int32 and e.offsets.dtype == np.int64
    assert e.offsets[0] == 0 and e.offsets[-1] == len(e.ids) == len(e.type_ids) == len(e.spans) and e.lengths.tolist() == [4, 3, 2, 7]
    assert e[1].tolist() == tok.encode("a") == [2, 5, 3] and np.shares_memory(e[-1], e.ids) and [len(r) for r in e[1:3]] == [3, 2]
    assert [r.tolist() for r in e] == [tok.encode(t) for t in ("the dog", "a", "", "thing dog the")]
    with pytest.raises(IndexError, match="row 4"):
        e[4]
    assert tok.count_tokens(["the dog", ""]).tolist() == [4, 2]
    assert len(tok.encode_batch([])) == 0 and tok.encode_batch([]).padded()["input_ids"].shape == (0, 0)


def test_pairs(tok: Tokenizer) -> None:
    """None is no pair, "" is an empty one."""
    e = tok.encode_batch(["a", "a", "a"], [None, "", "dog"])
    assert [r.tolist() for r in e] == [tok.encode("a"), [*tok.encode("a"), 3], tok.encode("a", "dog")]
    assert e.type_ids.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1]


def test_padded(tok: Tokenizer) -> None:
    e = tok.encode_batch(["the dog", "a"])
    right, left = e.padded(), e.padded("left", pad_to_multiple_of=8)
    assert right["input_ids"].tolist()[1] == [2, 5, 3, 0] and right["attention_mask"].tolist()[1] == [1, 1, 1, 0]
    assert left["input_ids"].tolist()[1] == [0] * 5 + [2, 5, 3] and all(v.dtype == np.int32 and v.shape == (2, 8) for v in left.values())
    assert e.padded(length=6)["input_ids"].shape == (2, 6)
    wide = e.padded("left", dtype="int64", n_threads=2)
    assert all(v.dtype == np.int64 and v.tolist() == e.padded("left")[k].tolist() for k, v in wide.items())
    for options, match in (({"length": 3}, "at least 4"), ({"side": "up"}, "right"), ({"pad_to_multiple_of": 0}, "at least 1"),
                           ({"dtype": "int8"}, "dtype must be 'int32' or 'int64'")):
        with pytest.raises(ValueError, match=match):
            e.padded(**options)
    with pytest.raises(ValueError, match="length must be at least 4, the longest row, got 3"):
        _C.pad_rows(e.ids, e.offsets, e.type_ids, length=3)
    with pytest.raises(ValueError, match="offsets must rise"):
        _C.pad_rows(e.ids, [0, 99], e.type_ids, length=100)


def test_padded_types_and_pad_id(tok: Tokenizer) -> None:
    """Every side and dtype against rows padded in Python, with pairs, and a pad id that is not 0."""
    e = tok.encode_batch(["the dog", "a", ""] * 50, ["a", None, "dog dog"] * 50)
    e.pad_id = 7
    for side in ("right", "left"):
        for dtype in ("int32", "int64"):
            got = e.padded(side, dtype=dtype, length=12)
            for i in range(len(e)):
                rest, own = 12 - len(e[i]), e.type_ids[e.offsets[i]:e.offsets[i + 1]].tolist()
                for key, row, fill in (("input_ids", e[i].tolist(), 7), ("attention_mask", [1] * len(own), 0), ("token_type_ids", own, 0)):
                    assert got[key][i].tolist() == (row + [fill] * rest if side == "right" else [fill] * rest + row)


def test_pad_id(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "dog"}}))
    assert Tokenizer.from_pretrained(folder).pad_id == WORDS.index("dog")
    (folder / "tokenizer_config.json").unlink()
    theirs = bert()
    theirs.enable_padding(pad_id=7, pad_token="c")
    theirs.enable_truncation(3)
    theirs.save(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(folder)
    assert ours.pad_id == 7 and len(ours.encode("the the the the")) == 6      # the file's truncation and padding are not asked for


@pytest.mark.parametrize(("args", "options", "error", "match"), [
    ((["a", "b\ud800"],), {}, ValueError, r"texts\[1\] holds a lone surrogate"), ((["a", 5],), {}, TypeError, r"texts\[1\] must be str, got <class 'int'>"),
    ((["a", None],), {}, TypeError, r"texts\[1\] must be str"), (("abc",), {}, TypeError, r"texts must be a sequence of str, got one str"),
    ((["a"], ["b", "c"]), {}, ValueError, "pairs must be as many as texts, 1, got 2"), ((["a"], [b"b"]), {}, TypeError, r"pairs\[0\] must be str"),
    ((["a"],), {"max_length": -1}, ValueError, "max_length must be >= 0, got -1"), ((["a"],), {"truncation": "no"}, ValueError, "truncation must be"),
    ((["a"],), {"truncation_side": "top"}, ValueError, "truncation_side must be"), ((["a"],), {"stride": -1}, ValueError, "stride must be >= 0, got -1"),
    ((["a", "a a a a"],), {"max_length": 5, "stride": 3}, ValueError, "row 1: stride must be below 3, the tokens to which the first text is cut, got 3"), ((7,), {}, TypeError, "iterable"),
    ((["a", "the dog dog", "b"],), {"max_length": 4, "truncation": "only_second"}, ValueError, "row 1: truncation 'only_second' needs a pair"),
])
def test_refused_arguments(tok: Tokenizer, args: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tok.encode_batch(*args, **options)


def test_decode(tok: Tokenizer) -> None:
    ids = tok.encode("The dog, thing!")
    assert tok.decode(ids) == "the dog, thing!" and tok.decode(np.array(ids, dtype=np.int32), skip_special_tokens=False) == "[CLS] the dog, thing! [SEP]"
    assert tok.decode_batch(tok.encode_batch(["a dog", ""])) == ["a dog", ""] and tok.decode([]) == ""
    for bad in ([-1], [2, len(WORDS)], [2**40]):
        with pytest.raises(ValueError, match=r"decode: ids\[\d\] = -?\d+ is no token"):
            tok.decode(bad)
    with pytest.raises(TypeError):
        tok.decode([1.5])


def test_vocabulary(tok: Tokenizer) -> None:
    assert tok.vocab_size == len(WORDS) and tok.token_to_id("dog") == WORDS.index("dog") and tok.token_to_id("cat") is None
    assert tok.id_to_token(2) == "[CLS]" and tok.id_to_token(-1) is tok.id_to_token(10**12) is None
    assert tok.token_bytes(2) == b"" and tok.token_bytes(5) == b"a" and tok.token_bytes(10**6) == b""


def test_token_bytes(tmp_path: Path) -> None:
    theirs = byte_level()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(tmp_path)
    text = "the thé \x00\n 123 😀<tool>"
    ids = ours.encode(text)
    assert b"".join(map(ours.token_bytes, ids)) == text.encode() and ours.decode(ids) == text
    assert ours.token_bytes(ours.encode("<|im_start|>")[0]) == b"" and ours.decode(ids[:4] + ids[-3:-1]) == theirs.decode(ids[:4] + ids[-3:-1])


# ---- one object, many users ----


def test_batch_is_single_and_threads_do_not_matter(tok: Tokenizer) -> None:
    texts = [t * (1 + i % 5) for i, t in enumerate(TEXTS * 40)]
    whole = tok.encode_batch(texts, n_threads=2)
    assert [r.tolist() for r in whole] == [tok.encode(t) for t in texts]
    single = tok.encode_batch(texts, n_threads=1)
    assert np.array_equal(whole.ids, single.ids) and np.array_equal(whole.spans, single.spans) and np.array_equal(whole.offsets, single.offsets)


def test_python_threads(tok: Tokenizer) -> None:
    texts = TEXTS * 20
    want = tok.encode_batch(texts).ids.tolist()
    got: list[list[int]] = []
    threads = [threading.Thread(target=lambda: got.append(tok.encode_batch(texts).ids.tolist())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [want] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning", "ignore:.*works single-threaded.*:RuntimeWarning")
def test_child_of_fork(tok: Tokenizer) -> None:
    texts = ["the dog " * 400] * 64
    want = tok.encode_batch(texts, n_threads=2).ids.sum()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(int(tok.encode_batch(texts, n_threads=2).ids.sum() != want))
    assert os.waitpid(pid, 0)[1] == 0


def test_pickle(tok: Tokenizer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The files travel: a pickle opens, saves and is pickled again where the folder is not."""
    for other in (pickle.loads(pickle.dumps(tok)), copy.deepcopy(tok), copy.copy(tok)):
        assert other.encode("the dog") == tok.encode("the dog") and other.path == tok.path and repr(other) == repr(tok)
    data = pickle.dumps(tok)
    assert pickle.loads(data) is pickle.loads(data)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text + " ")
    with pytest.raises(OSError, match=r"tokenizer\.json: has changed since the tokenizer was opened"):
        pickle.dumps(tok)
    (folder / "tokenizer.json").unlink()
    away = pickle.loads(data)
    assert pickle.loads(pickle.dumps(away)).encode("the dog") == tok.encode("the dog")
    target = tmp_path_factory.mktemp("elsewhere")
    assert away.save_pretrained(target) == [target / "tokenizer.json"] and (target / "tokenizer.json").read_text() == text


def test_pickle_of_an_encoding(tok: Tokenizer) -> None:
    e = tok.encode_batch(["the dog", "a"])
    other = pickle.loads(pickle.dumps(e))
    assert other.ids.tolist() == e.ids.tolist() and len(other) == 2 and other.padded()["input_ids"].shape == (2, 4)
    with pytest.raises(ValueError, match="pickled without its texts"):
        other.spans
    assert e.spans.tolist() == pickle.loads(pickle.dumps(e)).spans.tolist()


def test_spawned_workers(tok: Tokenizer) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(tok.encode_batch, [["the dog"], ["a", ""]])
    assert [r.tolist() for part in parts for r in part] == [tok.encode(t) for t in ("the dog", "a", "")]


def test_iterables(tok: Tokenizer) -> None:
    """Whatever yields str; NaN and NA are pandas' None."""
    texts, pairs = ["the dog", "a"], ["dog", None]
    want = tok.encode_batch(texts, pairs).ids.tolist()
    columns = [(iter(texts), iter(pairs)), (np.array(texts), ["dog", float("nan")]), (np.array(texts, dtype=object), np.array(pairs, dtype=object)),
               (dict.fromkeys(texts), (p for p in pairs)), (texts, ["dog", type("NAType", (), {})()])]
    for t, p in columns:
        assert tok.encode_batch(t, p).ids.tolist() == want
    with pytest.raises(TypeError, match=r"pairs\[1\] must be str, got <class 'float'>"):
        tok.encode_batch(texts, ["dog", 1.5])


def test_progress(tok: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["the dog " * 50] * 3000
    assert tok.encode_batch(texts, progress=True).ids.tolist() == tok.encode_batch(texts).ids.tolist()
    assert "3000/3000" in capsys.readouterr().err
    seen: list[int] = []
    tok._tokenizer.encode_batch(texts * 20, progress=seen.append)
    assert seen == sorted(seen) and all(0 < n <= len(texts) * 20 for n in seen)

    def fail(done: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        tok._tokenizer.encode_batch(texts * 40, progress=fail)


def test_interrupt(tok: Tokenizer) -> None:
    """Ctrl-C stops a batch that would take long, and the tokenizer goes on working."""
    texts = ["the dog, thing! " * 1000] * 20_000
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tok.encode_batch(texts)
    assert time.monotonic() - began < 30
    timer.join()
    assert tok.encode("the dog") == tok.encode_batch(["the dog"]).ids.tolist()


def test_nothing_is_left_of_a_text(tmp_path: Path) -> None:
    theirs = byte_level()
    theirs.normalizer = normalizers.BertNormalizer(lowercase=False)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert difference(Tokenizer.from_pretrained(tmp_path), theirs, ["\x01", "", "\x01a", "\x02 \x03"]) == []


@pytest.mark.parametrize("spans", [False, True])
def test_a_long_text_is_interrupted(tok: Tokenizer, tmp_path: Path, spans: bool) -> None:
    stops_midway(tok, "the dog, thing! " * 10_000, spans)
    byte_level().save(str(tmp_path / "bytes.json"))
    stops_midway(Tokenizer.from_pretrained(tmp_path / "bytes.json"), "the dog, thing! " * 10_000, spans)
    word = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))       # the whole text is one word
    word.save(str(tmp_path / "word.json"))
    stops_midway(Tokenizer.from_pretrained(tmp_path / "word.json"), "ab" * 100_000, spans)


def test_save_pretrained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"not ours")
    target = tmp_path_factory.mktemp("saved")
    written = Tokenizer.from_pretrained(folder).save_pretrained(target / "new")
    assert sorted(p.name for p in written) == sorted(p.name for p in (target / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    again = Tokenizer.from_pretrained(target / "new")
    assert again.encode("the dog") == Tokenizer.from_pretrained(folder).encode("the dog") and again.save_pretrained(target / "new") == written
    assert tokenizers.Tokenizer.from_file(str(written[0])).encode("the dog").ids == again.encode("the dog")
    (folder / "tokenizer.json").rename(folder / "mine.json")       # a file of any name is saved under the one that a folder gives it
    assert Tokenizer.from_pretrained(Tokenizer.from_pretrained(folder / "mine.json").save_pretrained(target / "named")[-1].parent).vocab_size == len(WORDS)


def test_memory_is_flat(folder: Path) -> None:
    tok = Tokenizer.from_pretrained(folder)
    broken = folder / "broken.json"
    broken.write_text((folder / "tokenizer.json").read_text()[:-40])
    texts, bad = ["the dog", "é"], ["a", "\ud800"]

    def work() -> None:
        tok.encode_batch(texts, texts).spans  # noqa: B018
        tok.decode([2, 5, 3])
        tok._tokenizer.normalize("É")
        tok._tokenizer.pre_tokenize("a b")
        for fails in (lambda: tok.encode_batch(bad), lambda: tok.encode_batch(texts, [None, 3]), lambda: tok.decode([-1]), lambda: _C.Tokenizer(broken)):
            with pytest.raises((ValueError, TypeError)):
                fails()

    for _ in range(50):
        work()
    gc.collect()
    counts = [sys.getrefcount(x) for x in (*texts, *bad, None)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(500):
        work()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 40_000 and all(abs(a - b) < 5 for a, b in zip(counts, [sys.getrefcount(x) for x in (*texts, *bad, None)], strict=True))


# ---- vocab.txt ----


@pytest.mark.parametrize(("config", "options"), [
    (None, {}), ({"do_lower_case": False}, {"lowercase": False}), ({"strip_accents": False}, {"strip_accents": False}),
    ({"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}, {"lowercase": False, "strip_accents": True, "handle_chinese_chars": False}),
    ({"strip_accents": None, "unk_token": {"content": "[UNK]"}, "cls_token": "[CLS]"}, {}),
], ids=str)
def test_vocab_txt(config: dict[str, Any] | None, options: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{w}\n" for w in WORDS), encoding="utf-8", newline="\r\n" if config else "\n")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    texts = [*TEXTS, "Café Cafe THE the [MASK] 中中 Ça", "the\u3000dog"]
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert difference(Tokenizer.from_pretrained(path), bert(**options), texts, [None, *texts[1:]]) == []


def test_vocab_txt_added_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    new = {"content": "<new>", "lstrip": True, "rstrip": False, "single_word": False, "special": False, "normalized": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {str(len(WORDS)): new}}))
    theirs = bert()
    theirs.add_tokens([AddedToken("<new>", lstrip=True, normalized=False)])
    assert difference(Tokenizer.from_pretrained(tmp_path), theirs, ["the <new> dog", "<new>", " <new><new>", "<NEW>"]) == []
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"7": new}}))
    with pytest.raises(FormatError, match="added token '<new>' is said to have id 7"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(("vocab", "config", "match"), [
    (b"a\n[UNK]\n[SEP]\n", "{}", r"vocab.txt: cls_token '\[CLS\]' is not in the vocabulary"), (b"a\n\xff\n", "{}", "vocab.txt: line 2 is not UTF-8"),
    (b"", "{}", "unk_token"), (b"[UNK]\n[CLS]\n[SEP]\n", "{", "tokenizer_config.json"), (b"[UNK]\n[CLS]\n[SEP]\n", '{"do_lower_case": 1}', "do_lower_case"),
    (b"[UNK]\n[CLS]\n[SEP]\n", '{"sep_token": []}', "sep_token"), (b"[UNK]\n[CLS]\n[SEP]\n", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "added_tokens_decoder"),
])
def test_refused_vocab_txt(vocab: bytes, config: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(vocab)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(tmp_path)


# ---- GGUF ----


def write_gguf(path: Path, pre: str, **changes: Any) -> Path:
    vocab, merges = byte_vocab()
    types = [1] * (len(vocab) - 3) + [3, 3, 4]
    writer = gguf.GGUFWriter(path, "llama")
    for name, add, value in (
            ("model", writer.add_tokenizer_model, "gpt2"), ("pre", writer.add_tokenizer_pre, pre), ("tokens", writer.add_token_list, vocab),
            ("types", writer.add_token_types, types), ("merges", writer.add_token_merges, [f"{a} {b}" for a, b in merges]),
            ("bos", writer.add_bos_token_id, len(vocab) - 3), ("eos", writer.add_eos_token_id, len(vocab) - 2), ("pad", writer.add_pad_token_id, len(vocab) - 1),
            ("add_bos", writer.add_add_bos_token, None), ("add_eos", writer.add_add_eos_token, None)):
        value = changes.get(name, value)
        if value is not None:
            add(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_gguf(pre: str, tmp_path: Path) -> None:
    theirs = byte_level()
    without = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), without]),
        "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), without])}[pre]
    if pre == "qwen2":
        theirs.normalizer = normalizers.NFC()
    if pre == "llama-bpe":
        theirs.model.ignore_merges = True
        bos = theirs.token_to_id("<|endoftext|>")
        theirs.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|>:1 $B:1", special_tokens=[("<|endoftext|>", bos)])
    ours = Tokenizer.from_pretrained(write_gguf(tmp_path / "m.gguf", pre))
    texts = [*TEXTS, "the <|im_start|>the 123<tool> the", "12 123 1234 the\n\nthe's THE'S"]
    assert difference(ours, theirs, texts) == [] and difference(ours, theirs, texts, [None, *texts[1:]]) == []
    assert ours.pad_id == theirs.token_to_id("<tool>") and ours.vocab_size == theirs.get_vocab_size()
    saved = ours.save_pretrained(tmp_path / "copy")
    assert [f.name for f in saved] == ["tokenizer.gguf"] and not _C.TensorFile(saved[0]).names
    for other in (Tokenizer.from_pretrained(tmp_path / "copy"), Tokenizer.from_pretrained(saved[0]), pickle.loads(pickle.dumps(ours))):
        assert [r.tolist() for r in other.encode_batch(texts)] == [r.tolist() for r in ours.encode_batch(texts)] and other.pad_id == ours.pad_id
    assert other.save_pretrained(tmp_path / "again") == [tmp_path / "again" / "tokenizer.gguf"]
    assert (tmp_path / "again" / "tokenizer.gguf").read_bytes() == saved[0].read_bytes()


def test_gguf_bos_and_eos(tmp_path: Path) -> None:
    n = len(byte_vocab()[0])
    ours = Tokenizer.from_pretrained(write_gguf(tmp_path / "m.gguf", "gpt-2", add_bos=True, add_eos=True))
    the = ours.token_to_id("the")
    assert ours.encode("the") == [n - 3, the, n - 2] and ours.encode("the", "the") == [n - 3, the, n - 2, n - 3, the, n - 2]


@pytest.mark.parametrize(("changes", "match"), [
    ({"pre": "chameleon"}, "tokenizer.ggml.pre 'chameleon' is not supported"), ({"model": "llama"}, "'tokenizer.ggml.scores' is missing"),
    ({"types": [1, 1]}, "token_type has 2 elements"), ({"tokens": ["a", "a"], "types": [1, 1]}, r"tokens\[1\] is the same as token 0"),
    ({"merges": ["ab"]}, r"merges\[0\]: expected"), ({"merges": ["t zz"]}, r"merges\[0\]: the right half is not in the vocabulary"),
    ({"merges": ["t t"]}, "the merged token is not"), ({"add_bos": True, "bos": 9999}, "bos_token_id is 9999"), ({"pad": 12345}, "padding_token_id is 12345"),
    ({"tokens": None, "types": None}, "tokenizer.ggml.tokens"),
])
def test_refused_gguf(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=match):
        Tokenizer.from_pretrained(write_gguf(tmp_path / "m.gguf", changes.pop("pre", "gpt-2"), **changes))


# ---- tokenizer.json that is not honoured exactly ----


def put(document: Any, path: str, value: Any) -> None:
    *parents, last = (int(p) if p.isdigit() else p for p in path.split("/"))
    for p in parents:
        document = document[p]
    document[last] = value


SPECIAL = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


@pytest.mark.parametrize(("base", "path", "value", "match"), [
    (bert, "version", "2.0", "version"), (bert, "model", None, '"model" is missing'), (bert, "model/type", "WordLevel", "model 'WordLevel' is not supported"),
    (bert, "model/type", "Unigram", '"vocab" is missing or no array'), (bert, "normalizer", {"type": "ByteLevel"}, "normalizer 'ByteLevel' is not supported"),
    (bert, "normalizer", {"type": "Precompiled"}, '"precompiled_charsmap" is missing'), (bert, "normalizer", {}, 'normalizer: expected an object with a "type"'),
    (bert, "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace"}]}, "normalizer 'Replace'"),
    (bert, "normalizer", {"type": "Sequence"}, 'a Sequence without "normalizers"'), (bert, "normalizer/lowercase", 1, "lowercase"),
    (bert, "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 40}, "more than 32 steps"),
    (bert, "pre_tokenizer", {"type": "Metaspace"}, 'Metaspace: "replacement" is missing'), (bert, "pre_tokenizer", {"type": "UnicodeScripts"}, "pre_tokenizer 'UnicodeScripts'"), (bert, "pre_tokenizer", None, "^ok"),
    (bert, "model/unk_token", "[NONE]", r"unk_token '\[NONE\]' is not in the vocabulary"), (bert, "model/unk_token", None, "unk_token"),
    (bert, "model/vocab/dog", 2, "have the same id 2"), (bert, "model/vocab/dog", -1, "the id of 'dog'"), (bert, "model/vocab/dog", 1.5, "the id of 'dog'"),
    (bert, "model/vocab/dog", 2**31, "token 'dog': id 2147483648 is out of range"), (bert, "model/vocab/dog", 2**70, "the id of 'dog'"), (bert, "model/vocab", [], '"vocab" is missing'),
    (bert, "model/max_input_chars_per_word", -1, "max_input_chars_per_word"), (bert, "model/continuing_subword_prefix", 3, "continuing_subword_prefix"),
    (bert, "added_tokens/0/id", 9, r"'\[PAD\]' is said to have id 9, but its place in the vocabulary is 0"), (bert, "added_tokens/0/content", 9, 'without "content"'),
    (bert, "added_tokens/1/content", "[PAD]", r"'\[PAD\]' is said to have id 1"), (bert, "added_tokens", {}, '"added_tokens" is no array'),
    (bert, "added_tokens/0", {"id": 3, "content": "[SEP]"}, r"'\[SEP\]' stands twice"), (bert, "added_tokens/0/lstrip", "yes", "lstrip"),
    (bert, "added_tokens/0", {"id": len(WORDS), "content": "\x00", "normalized": True}, "empty once it is normalized"),
    (bert, "added_tokens/0", {"id": WORDS.index("T"), "content": "T", "normalized": True}, "^ok"),
    (bert, "post_processor/type", "Other", "post_processor 'Other'"), (bert, "post_processor/single", [A, B], '"single" must use sequence A alone'),
    (bert, "post_processor/pair", [A], '"pair" must use both'), (bert, "post_processor/special_tokens", {}, r"special token '\[CLS\]' is not defined"),
    (bert, "post_processor/special_tokens/[CLS]/ids", [99999], "id that is not in the vocabulary"), (bert, "post_processor/single", [SPECIAL] * 99 + [A], "more than 64 items"),
    (bert, "post_processor/single", [{"Sequence": {"id": "C", "type_id": 0}}], "neither a SpecialToken nor"), (bert, "post_processor/single/0/SpecialToken/type_id", 300, "type_id"),
    (bert, "post_processor", {"type": "BertProcessing", "sep": ["x", 3], "cls": ["y", 777]}, '"cls" must be'),
    (bert, "post_processor", {"type": "RobertaProcessing", "sep": ["x", 3], "cls": ["y", 2], "trim_offsets": True}, "trim_offsets without ByteLevel"),
    (bert, "decoder", {"type": "Metaspace"}, 'Metaspace: "replacement" is missing'), (bert, "decoder", {"type": "CTC"}, "decoder 'CTC'"), (bert, "decoder", {"type": "BPEDecoder", "suffix": ""}, "empty suffix"), (bert, "decoder", {"type": "BPEDecoder"}, "suffix"), (bert, "decoder", {"type": "WordPiece"}, "prefix"), (bert, "padding", {"pad_id": 5000}, "pad_id 5000"),
    (byte_level, "model/dropout", 0.1, 'BPE: option "dropout"'), (byte_level, "model/end_of_word_suffix", 1, '"end_of_word_suffix" is missing or no string'),
    (byte_level, "model/continuing_subword_prefix", "##", r"merges\[0\]: the right half has no room"), (byte_level, "model/merges/0", "t", r"merges\[0\]: expected"),
    (byte_level, "model/merges/0", "t h e", r"merges\[0\]: expected"), (byte_level, "model/merges/0", "t h", "^ok"), (byte_level, "model/merges/0", ["t", "h"], "^ok"),
    (byte_level, "model/merges/1", ["q", "w"], r"merges\[1\]: the merged token"), (byte_level, "model/merges/1", ["zz", "w"], r"merges\[1\]: the left half"),
    (byte_level, "model/merges/1", ["", "w"], r"merges\[1\]"), (byte_level, "model/merges", {}, '"merges" is missing'), (byte_level, "pre_tokenizer", None, "^ok"),
    (byte_level, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]}, "'Digits' after 'ByteLevel'"),
    (byte_level, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}, r"'Split' with pattern '\\w\+' is not supported"),
    (byte_level, "pre_tokenizer", {"type": "Split", "pattern": {"String": "x"}, "behavior": "Isolated", "invert": False}, "no Regex"),
    (byte_level, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "MergedWithNext", "invert": False}, "behavior 'MergedWithNext'"),
    (byte_level, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Removed", "invert": False}, "behavior 'Removed'"),
    (byte_level, "model/byte_fallback", True, "^ok"),
])
def test_refused_by_name(base: Any, path: str, value: Any, match: str, tmp_path: Path) -> None:
    document = json.loads(base().to_str())
    put(document, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    if match == "^ok":
        assert Tokenizer.from_pretrained(tmp_path).encode("the")
        return
    with pytest.raises(FormatError, match=match) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))


def test_missing_byte_and_byte_fallback(tmp_path: Path) -> None:
    document = json.loads(byte_level().to_str())
    del document["model"]["vocab"]["!"]
    document["model"]["byte_fallback"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match="byte_fallback"):
        Tokenizer.from_pretrained(tmp_path)


def test_not_there(tmp_path: Path) -> None:
    for path, match in ((tmp_path / "none", "was not found"), (tmp_path, "no tokenizer there: expected a folder with tokenizer.json, a sentencepiece model, vocab.txt or vocab.json")):
        with pytest.raises(OSError, match=match):
            Tokenizer.from_pretrained(path)


# ---- hostile files ----


def try_open(path: Path, content: bytes) -> bool:
    path.unlink(missing_ok=True)        # a new file each time: some file systems flush one that is cut and rewritten
    path.write_bytes(content)
    try:
        tok = _C.Tokenizer(path)
    except FormatError:
        return False
    ids = tok.encode_batch(["the dog é [SEP]", "<|im_start|> 123"], ["a", ""], spans=True)[0]
    tok.decode(ids)
    return True


@pytest.mark.parametrize("kind", ["wordpiece.json", "bpe.json", "m.gguf"])
def test_prefixes_and_flips(kind: str, tmp_path: Path) -> None:
    """Each prefix (of the JSON files; 1,000 of GGUF) and 1,500 files with flipped bytes open or raise FormatError."""
    path = tmp_path / kind
    if kind == "m.gguf":
        write_gguf(path, "llama-bpe")
    else:
        path.write_text((bert() if kind == "wordpiece.json" else byte_level()).to_str())
    whole = path.read_bytes()
    assert try_open(path, whole)
    r = random.Random(1)
    lengths = range(len(whole)) if kind != "m.gguf" else r.sample(range(len(whole)), 1000)
    assert sum(try_open(path, whole[:n]) for n in lengths) <= (1 if kind != "m.gguf" else 40)      # GGUF: all but the last padding
    for _ in range(1500):
        changed = bytearray(whole)
        for _ in range(r.choice([1, 1, 2, 8])):
            changed[r.randrange(len(changed))] = r.choice([r.randrange(256), 0, 255, 0x22, 0x5C, 0x7B, 0x39])
        try_open(path, bytes(changed))


def test_deep_and_large(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    assert not try_open(path, b'{"normalizer":' * 100_000) and not try_open(path, b"[" * 300 + b"]" * 300)
    nested: dict[str, Any] = {"type": "NFC"}
    for _ in range(100):
        nested = {"type": "Sequence", "normalizers": [nested]}
    document = json.loads(bert().to_str())
    document["normalizer"] = nested
    assert not try_open(path, json.dumps(document).encode())
    document = json.loads(bert().to_str())
    document["model"]["vocab"]["x" * 300_000] = len(WORDS)
    document["model"]["max_input_chars_per_word"] = 2**40
    assert try_open(path, json.dumps(document).encode())
