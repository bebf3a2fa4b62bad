"""Real vocabularies and real texts, whole: the tokenizer against `tokenizers` and llama.cpp.

HARMAUG_TEST_DATA: a folder with data/*.jsonl (rows with prompt and response), tokenizers/stress.jsonl and tokenizers/<name>/tokenizer.json.
HARMAUG_MODELS: a folder filled by `harmaug models fetch`.
HARMAUG_TEST_SEED: a number that draws a sample of all this (tokenizer_cases.sampled); without it everything is compared.
"""
from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import gguf
import llama_cpp
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from harmaug import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_cases import (
    PATTERNS,
    check_random_tokenizer,
    clusters,
    code_point_lines,
    difference,
    random_unicode,
    sampled,
)

NAMES = ["bert-base-uncased", "gpt2", "modernbert", "minilm", "minilm/vocab.txt", "smollm2", "deberta-v3"]
STEP = 20_000


def folder(variable: str) -> Path:
    assert os.environ.get(variable), f"set {variable} (see the docstring)"
    return Path(os.environ[variable])


@functools.cache
def data() -> tuple[list[str], list[str | None]]:
    """Every prompt, and its response or None."""
    prompts, responses = [], []
    for path in sorted((folder("HARMAUG_TEST_DATA") / "data").glob("*.jsonl")):
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            row = json.loads(line)
            prompts.append(row["prompt"])
            responses.append(row.get("response"))
    assert len(prompts) > 10_000
    rows = sampled(list(zip(prompts, responses, strict=True)), 4)
    return [p for p, _ in rows], [r for _, r in rows]


@functools.cache
def stress() -> list[str]:
    path = folder("HARMAUG_TEST_DATA") / "tokenizers" / "stress.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def of_gguf(path: Path) -> tokenizers.Tokenizer:
    """The Hugging Face pipeline of SmolLM2, from the vocabulary of a GGUF file."""
    fields = gguf.GGUFReader(path).fields
    vocab, merges, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type"))
    tok = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, [tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False) for t, kind in zip(vocab, types, strict=True) if kind == 3])
    return tok


@functools.cache
def pair(name: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    if name == "smollm2":
        path = next((folder("HARMAUG_MODELS") / "smollm2").glob("*.gguf"))
        return Tokenizer.from_pretrained(path), of_gguf(path)
    root = folder("HARMAUG_MODELS") / "minilm" if name.startswith("minilm") else folder("HARMAUG_TEST_DATA") / "tokenizers" / name
    theirs = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    return Tokenizer.from_pretrained(root / "vocab.txt" if name.endswith(".txt") else root), theirs


def count(name: str, texts: list[str], pairs: list[str | None] | None = None, decode: bool = True) -> int:
    ours, theirs = pair(name)
    return sum(len(difference(ours, theirs, texts[i:i + STEP], None if pairs is None else pairs[i:i + STEP], decode=decode)) for i in range(0, len(texts), STEP))


@pytest.mark.parametrize("name", NAMES)
def test_real_texts(name: str, record_property: pytest.RecordProperty) -> None:
    """Every prompt, every response, every pair, every nasty line: none differs in ids, type ids, spans or decoded text."""
    prompts, responses = data()
    record_property("rows", 2 * len(prompts) + len(stress()))
    assert count(name, [t for t in (*prompts, *responses) if t is not None]) == 0
    assert count(name, prompts, responses, decode=False) == 0
    assert count(name, stress()) == 0
    assert count(name, stress(), list(reversed(stress()))) == 0


@pytest.mark.parametrize("name", ["bert-base-uncased", "modernbert", "smollm2", "deberta-v3"])
def test_every_code_point(name: str) -> None:
    """1,112,064 lines, a code point in three contexts each."""
    for first in sampled(range(0, 0x110000, 0x8000)):
        assert count(name, code_point_lines(range(first, first + 0x8000)), decode=first % 0x40000 == 0) == 0, hex(first)


@pytest.mark.parametrize("name", ["bert-base-uncased", "gpt2", "modernbert", "smollm2", "deberta-v3"])
def test_random_unicode(name: str) -> None:
    """50,000 lines each, and 10,000 of what grapheme clusters are made of."""
    assert count(name, sampled(random_unicode(50_000, NAMES.index(name))), decode=False) == 0
    assert count(name, sampled(clusters(10_000, NAMES.index(name))), decode=False) == 0


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_patterns_on_every_code_point(pattern: str, tmp_path: Path) -> None:
    tok = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tok.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(tmp_path)
    for first in sampled(range(0, 0x110000, 0x8000)):
        text = "".join(f"a{chr(c)}{chr(c)} {chr(c)}" for c in range(first, first + 0x8000) if not 0xD800 <= c < 0xE000)
        assert [tuple(s) for s in ours._tokenizer.pre_tokenize(text).tolist()] == [s for _, s in tok.pre_tokenizer.pre_tokenize_str(text)], hex(first)


@pytest.mark.parametrize("name", ["bert-base-uncased", "modernbert", "deberta-v3"])
@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_truncated_pairs(name: str, strategy: str) -> None:
    """602 pairs of real texts at every length from 0 to 130, either side: the same ids, or an error where the reference has one."""
    ours, theirs = pair(name)
    prompts, responses = data()
    rows = [(p, r) for p, r in zip(prompts, responses, strict=True) if r is not None][::7][:602]
    r = random.Random(0)
    try:
        for length in sampled(range(131)):
            side = r.choice(["left", "right"])
            theirs.enable_truncation(length, strategy=strategy, direction=side)
            for text, second in r.sample(rows, 40):
                try:
                    want = theirs.encode(text, second).ids
                except Exception as error:      # noqa: BLE001
                    assert "Truncation error" in str(error)
                    with pytest.raises(ValueError, match="truncation 'only_"):
                        ours.encode_batch([text], [second], True, length, strategy, truncation_side=side)
                    continue
                assert ours.encode_batch([text], [second], True, length, strategy, truncation_side=side).ids.tolist() == want
    finally:
        theirs.no_truncation()


@pytest.mark.parametrize("name", NAMES)
def test_windows(name: str) -> None:
    """Overflowing rows of real texts and pairs, and the padded arrays of a batch of them, for each strategy and side."""
    ours, theirs = pair(name)
    prompts, responses = data()
    r = random.Random(5)
    rows = r.sample(list(zip(prompts, responses, strict=True)), 400)
    try:
        for i, (text, second) in enumerate(rows):
            strategy, side = ("longest_first", "only_first", "only_second")[i % 3 if second is not None else 0], ("right", "left")[i % 2]
            length, stride = r.randint(12, 300), r.randint(0, 9)
            theirs.enable_truncation(length, stride=stride, strategy=strategy, direction=side)
            try:
                want = theirs.encode(text, second)
            except BaseException as error:      # noqa: BLE001
                assert "Truncation error" in str(error) or "`stride` must be" in str(error)
                with pytest.raises(ValueError, match="row 0: (truncation|stride)"):
                    ours.encode_batch([text], [second], True, length, strategy, truncation_side=side, stride=stride)
                continue
            got = ours.encode_batch([text], [second], True, length, strategy, truncation_side=side, stride=stride)
            wanted = [want, *want.overflowing]
            assert [row.tolist() for row in got] == [e.ids for e in wanted] and got.type_ids.tolist() == [t for e in wanted for t in e.type_ids]
            assert [tuple(s) for s in got.spans.tolist()] == [s for e in wanted for s in e.offsets]
        theirs.enable_truncation(96)
        theirs.enable_padding(pad_id=ours.pad_id)
        want = theirs.encode_batch([p if s is None else (p, s) for p, s in rows])
        arrays = ours.encode_batch(*zip(*rows, strict=True), max_length=96).padded()
        assert [row.tolist() for row in arrays["input_ids"]] == [e.ids for e in want] and arrays["attention_mask"].tolist() == [e.attention_mask for e in want]
        assert arrays["token_type_ids"].tolist() == [e.type_ids for e in want]
    finally:
        theirs.no_truncation()
        theirs.no_padding()


def test_many_random_tokenizers(tmp_path: Path) -> None:
    for seed in sampled(range(10_000, 12_000)):
        check_random_tokenizer(seed, tmp_path / "tokenizer.json")


def test_llama_cpp() -> None:
    """SmolLM2's ids are llama.cpp's too, on every text of assigned characters (unassigned ones it cuts in its own way), chat tokens included."""
    path = next((folder("HARMAUG_MODELS") / "smollm2").glob("*.gguf"))
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = pair("smollm2")[0]
    chat = ["<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi 12<|im_end|>\n", " <|im_start|> <|endoftext|>x"]
    texts = [t for t in [*data()[0][::5], *stress(), *chat] if "\0" not in t]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == theirs.tokenize(text.encode(), add_bos=True, special=True)


def test_unicode_tables_are_what_the_generator_writes() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, root / "csrc" / "tokenizer" / "make_unicode_tables.py", "--check"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_normal_forms_of_random_sequences() -> None:
    """Marks in any order: where tables of another Unicode version show."""
    ours, theirs = pair("modernbert")
    assert isinstance(theirs.normalizer, normalizers.NFC)
    for line in sampled(random_unicode(20_000, 99)):
        assert ours._tokenizer.normalize(line) == theirs.normalizer.normalize_str(line)
