"""The tables of a tokenizer in the cache folder: used, and never trusted."""
import hashlib
import json
import os
import stat

import numpy as np
import pytest
import tokenizers
from sentencepiece_cases import train
from tokenizer_cases import TEXTS, extract

from harmaug import _C, Tokenizer


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Folder -> tokenizer.json of each model, large enough to be kept in a cache."""
    folder = tmp_path_factory.mktemp("large")
    words = sorted({f"{a}{b}{c}" for a in "abcdefghijkl" for b in "aeiouy" for c in ("n", "st", "ing", "tion", "é", "ж")} | {chr(c) for c in range(33, 127)})
    many = words + [f"{w}{i}" for i in range(3) for w in words]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *[[f"▁{w}", -1.0 - i / 7] for i, w in enumerate(many)]], "byte_fallback": False}
    wordpiece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                 "vocab": {t: i for i, t in enumerate(["[UNK]", *many, *("##" + w for w in many)])}}
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(extract(), tokenizers.trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    bpe = json.loads(trained.to_str())["model"]
    files = {}
    for name, model, extra in (("unigram", unigram, {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}}),
                               ("wordpiece", wordpiece, {"pre_tokenizer": {"type": "BertPreTokenizer"}}),
                               ("bpe", {**bpe, "ignore_merges": True}, {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                                                                        "decoder": {"type": "ByteLevel"}})):
        added = [{"id": len(model["vocab"]), "content": "<extra>", "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}]
        files[name] = folder / f"{name}.json"
        # white space makes it large, as an indented file is
        files[name].write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": added, **extra}) + " " * (1 << 20), encoding="utf-8")
    return files


MODELS = ["unigram", "wordpiece", "bpe"]


def cached_file(folder):
    (file,) = folder.iterdir()
    return file


def everything(tok):
    ids, offsets = tok.encode_batch(TEXTS, None)[:2]
    return ids.tolist(), offsets.tolist(), [(tok.id_to_token(i), tok.token_bytes(i)) for i in range(tok.vocab_size)], tok.decode(ids[:50].tolist())


@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokenizer(large, tmp_path, name):
    plain = everything(_C.Tokenizer(large[name]))
    first = _C.Tokenizer(large[name], cache=tmp_path)
    file = cached_file(tmp_path)
    assert file.name == hashlib.sha256(large[name].read_bytes()).hexdigest() + ".tables2" and stat.S_IMODE(file.stat().st_mode) == 0o600
    stamp = file.stat().st_mtime_ns
    again = _C.Tokenizer(large[name], cache=tmp_path)
    assert first.cache_note == again.cache_note == "" and file.stat().st_mtime_ns == stamp
    assert everything(first) == everything(again) == plain
    assert again.token_to_id("<extra>") == first.token_to_id("<extra>") == first.vocab_size - 1


def test_scores_above_zero(tmp_path):
    """What prunes the search for the best tokens of a word is found anew when the scores come from the cache."""
    vocab = [["<unk>", 0.0], ["▁", 3.0], *[[c, 4.0] for c in "abcdef"], ["▁abc", 1.0], ["▁ab", 1.5], ["cd", 9.0], ["▁abcdef", 2.0]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({
        "version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}, "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}}) + " " * (1 << 20), encoding="utf-8")
    cache = tmp_path / "cache"
    cache.mkdir()
    texts = ["abcdef", "abc abcd", "fedcba abcdefa", "ab  abcdefabcdef"]
    expected = [e.ids for e in tokenizers.Tokenizer.from_file(str(path)).encode_batch(texts)]
    for _ in range(2):
        ids, offsets = _C.Tokenizer(path, cache=cache).encode_batch(texts, None)[:2]
        assert [part.tolist() for part in np.split(ids, offsets[1:-1])] == expected


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("##", "</w>")])
def test_bpe_of_characters(prefix, suffix, tmp_path):
    """An added token of one character is none of the model's, read from the cache or not: inside a word it is unknown."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", continuing_subword_prefix=prefix, end_of_word_suffix=suffix))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    theirs.train_from_iterator(extract(), tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>"], show_progress=False, continuing_subword_prefix=prefix, end_of_word_suffix=suffix))
    theirs.add_tokens([tokenizers.AddedToken(t, single_word=True) for t in ("é", "##é", "é</w>")])
    path = tmp_path / "tokenizer.json"
    path.write_text(theirs.to_str() + " " * (1 << 20), encoding="utf-8")
    cache = tmp_path / "cache"
    cache.mkdir()
    texts = ["thén é th", "né", "éa", *extract()[:200]]
    expected = [e.ids for e in theirs.encode_batch(texts)]
    for _ in range(2):
        ids, offsets = _C.Tokenizer(path, cache=cache).encode_batch(texts, None)[:2]
        assert [part.tolist() for part in np.split(ids, offsets[1:-1])] == expected
    cached_file(cache)


@pytest.mark.parametrize(("name", "model", "options"), [
    ("T5Tokenizer", "unigram", {"extra_ids": 7}), ("XLMRobertaTokenizer", "unigram", {}), ("LlamaTokenizer", "bpe", {"add_eos_token": True})])
def test_sentencepiece_models(tmp_path, name, model, options):
    """Kept by the model and by what says how it is converted; sentencepiece's own ids are not."""
    special = {"pad_id": 3} if name == "T5Tokenizer" else {}
    data = train(model_type=model, byte_fallback=model == "bpe", **special) + b"\xc2\x3e\x80\x80\x40" + bytes(1 << 20)     # field 1000, which nobody knows
    (tmp_path / "spm.model").write_bytes(data)
    config, added = {"tokenizer_class": name, **options}, {"<new>": None}
    cache = tmp_path / "cache"
    cache.mkdir()

    def opened(**kwargs):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        tok = _C.Tokenizer(tmp_path / "spm.model", **kwargs)
        assert tok.cache_note == ""
        return everything(tok)

    plain = opened()
    assert opened(cache=cache) == opened(cache=cache) == plain and len(list(cache.iterdir())) == 1
    config["added_tokens_decoder"] = {str(len(plain[2])): {"content": next(iter(added)), "lstrip": True}}
    more = opened()
    assert opened(cache=cache) == opened(cache=cache) == more != plain and len(list(cache.iterdir())) == 2
    assert opened(cache=cache, reference="sentencepiece") == opened(reference="sentencepiece") and len(list(cache.iterdir())) == 2
    for file in cache.iterdir():
        file.write_bytes(b"x" * 5000)
    tok = _C.Tokenizer(tmp_path / "spm.model", cache=cache)
    assert "not used" in tok.cache_note and everything(tok) == more


def test_small_sources_and_unwritable_folders(large, tmp_path):
    small = tmp_path / "small.json"
    small.write_text(json.dumps({"model": {"type": "WordPiece", "unk_token": "u", "vocab": {"u": 0}}, "pre_tokenizer": {"type": "BertPreTokenizer"}}), encoding="utf-8")
    cache = tmp_path / "cache"
    cache.mkdir()
    _C.Tokenizer(small, cache=cache)
    assert not list(cache.iterdir())
    tok = _C.Tokenizer(large["bpe"], cache=tmp_path / "missing" / "folder")
    assert "No such file" in tok.cache_note and everything(tok)[0]


@pytest.mark.parametrize("name", MODELS)
def test_damage_is_told_and_the_source_is_read(large, tmp_path, name):
    plain = everything(_C.Tokenizer(large[name], cache=tmp_path))
    file = cached_file(tmp_path)
    good = file.read_bytes()
    rng = np.random.default_rng(3)
    cuts = [0, 1, 7, 8, 16, 100, len(good) // 2, len(good) - 1, *rng.integers(0, len(good), 12)]
    damaged = [good[:n] for n in cuts] + [good + b"\0", b"", b"\0" * len(good), b"x" * 5000]
    for at in rng.integers(0, len(good), 30):
        damaged.append(good[:at] + bytes([good[at] ^ 1 << rng.integers(8)]) + good[at + 1:])
    for data in damaged:
        file.write_bytes(data)
        tok = _C.Tokenizer(large[name], cache=tmp_path)
        assert "not used" in tok.cache_note, len(data)
        assert file.read_bytes()[:8] == good[:8] and len(file.read_bytes()) == len(good)     # and the file is written anew
    assert everything(tok) == plain
    file.unlink()
    file.mkdir()        # what is no file at all
    assert everything(_C.Tokenizer(large[name], cache=tmp_path)) == plain


def checksummed(data):
    """The file with its checksum made right: what a hostile writer does (csrc/tokenizer/tables.c)."""
    mask, prime = (1 << 64) - 1, 0x9FB21C651E98DF25

    def mix(x, shift):
        x = x * prime & mask
        return x ^ x >> shift

    def checksum(seed, part):
        lanes = [seed, seed ^ 0x9E3779B97F4A7C15, seed + 0xC2B2AE3D27D4EB4F & mask, ~seed & mask]
        whole = len(part) // 32 * 32
        words = np.frombuffer(part[:whole], np.uint64).reshape(-1, 4).tolist()
        for row in words:
            lanes = [mix(lane ^ w, 29) for lane, w in zip(lanes, row, strict=True)]
        last = np.frombuffer(part[whole:].ljust(32, b"\0"), np.uint64).tolist()
        total = len(part)
        for lane, w in zip(lanes, last, strict=True):
            total = mix(total ^ lane ^ (w * 0xD6E8FEB86659FD93 & mask), 32)
        return total

    return data[:8] + checksum(checksum(0, data[16:HEADER]), data[HEADER:]).to_bytes(8, "little") + data[HEADER:0] + data[16:]


SIZES = [12, 4, 1, 8, 16, 64, 8, 8, 8, 8, 8, 1, 8]     # of the elements of each section
FIELDS = 16 + 8 + len(SIZES) * 8 + 4 * 16 + 4 * 8 + 4 * 8 + 8 + 256 * 4
HEADER = -(-FIELDS // 64) * 64


def test_checksum_as_written(large, tmp_path):
    _C.Tokenizer(large["wordpiece"], cache=tmp_path)
    good = cached_file(tmp_path).read_bytes()
    assert checksummed(good) == good


@pytest.mark.parametrize("name", MODELS)
def test_hostile_tables(large, tmp_path, name):
    """With a checksum that is right: each field of the header and random places of each table, at their extremes. It may give other ids, never a crash."""
    _C.Tokenizer(large[name], cache=tmp_path)
    file = cached_file(tmp_path)
    good = file.read_bytes()
    counts = np.frombuffer(good[24:24 + 8 * len(SIZES)], np.uint64).astype(int).tolist()
    starts = HEADER + np.cumsum([0] + [-(-n * s // 64) * 64 for n, s in zip(counts, SIZES, strict=True)])
    rng = np.random.default_rng(11)
    places = [(at, 8) for at in range(16, FIELDS - 1024, 8)] + [(FIELDS - 1024 + 4 * int(i), 4) for i in rng.integers(0, 256, 4)]
    for start, n, size in zip(starts, counts, SIZES, strict=False):
        places += [(int(start) + int(i) * min(size, 4), min(size, 4)) for i in rng.integers(0, max(n * size // min(size, 4), 1), 6) if n > 0]
    used = tried = 0
    for at, size in places:
        values = [b"\xff" * size, b"\0" * size, b"\xff" * (size - 1) + b"\x7f", b"\1" + b"\0" * (size - 1), rng.bytes(size)]
        for value in values if at < 256 else [values[i] for i in rng.permutation(5)[:2]]:
            file.write_bytes(checksummed(good[:at] + value + good[at + size:]))
            tok = _C.Tokenizer(large[name], cache=tmp_path)
            used += tok.cache_note == ""
            tried += 1
            everything(tok) if rng.integers(8) == 0 else tok.encode_batch(TEXTS, None)
    assert 0 < used < tried


def test_where_it_lies(large, tmp_path, monkeypatch):
    """HARMAUG_CACHE, folders of mode 0700; empty: nowhere; a folder that can't be made: none."""
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path / "cache"))
    ids = Tokenizer.from_pretrained(large["bpe"]).encode("The dog.")
    (file,) = (tmp_path / "cache").rglob("*.tables2")
    assert file.parent == tmp_path / "cache/tokenizers" / _C.build_info()["cpu_isa"]
    assert all(stat.S_IMODE(part.stat().st_mode) == 0o700 for part in list(file.parents)[:3])
    assert Tokenizer.from_pretrained(large["bpe"]).encode("The dog.") == ids
    file.unlink()
    for place in ("", "/proc/no/such/place"):
        monkeypatch.setenv("HARMAUG_CACHE", place)
        assert Tokenizer.from_pretrained(large["bpe"]).encode("The dog.") == ids
    assert not list((tmp_path / "cache").rglob("*.tables2"))


def test_no_temporary_files_stay(large, tmp_path):
    for name in MODELS:
        _C.Tokenizer(large[name], cache=tmp_path)
    assert sorted(f.suffix for f in tmp_path.iterdir()) == [".tables2"] * 3
    assert len(os.listdir(tmp_path)) == 3


def test_members_in_any_order(tmp_path):
    """Vocabulary and merges are taken while the file is parsed, and merges that come first wait; what stands twice or is no token is still refused."""
    path = tmp_path / "tokenizer.json"
    vocab = {**{chr(c): c - 97 for c in range(97, 101)}, "ab": 4, "abc": 5}
    rest = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"}}

    def opened(text):
        path.write_text(json.dumps(rest)[:-1] + ', "model": {"type": "BPE", ' + text + "}}", encoding="utf-8")
        return _C.Tokenizer(path).encode_batch(["abcd", "ab"], None)[0].tolist()

    whole = json.dumps(vocab)
    for merges in ('["a b", "ab c"]', '[["a", "b"], ["ab", "c"]]'):
        assert opened(f'"vocab": {whole}, "merges": {merges}') == opened(f'"merges": {merges}, "vocab": {whole}') == [5, 3, 4]
    for text, message in [('"vocab": {"a": 0, "a": 0}, "merges": []', "'a' stands twice"), ('"vocab": {"a": 0, "b": 0}, "merges": []', "the same id 0"),
                          (f'"vocab": {whole}, "merges": [{{"a": "b"}}]', "no object was expected"), (f'"vocab": {whole}, "merges": ["a b", 5]', r"merges\[1\]"),
                          (f'"vocab": {whole}, "merges": ["a b", ["x", "y"]]', r"merges\[1\]: the left half"), ('"vocab": {"a": [0]}, "merges": []', "id of 'a'"),
                          (f'"vocab": {whole}, "vocab": {{}}, "merges": []', "stands twice"), (f'"vocab": {whole}, "merges": ["a b",]', "a value was expected"),
                          (f'"vocab": {whole}, "merges": [["a", "b"]', "expected"), ('"vocab": [["a", 0.5]], "merges": []', "vocab")]:
        with pytest.raises(_C.FormatError, match=message):
            opened(text)
