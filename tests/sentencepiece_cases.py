"""What the tests of sentencepiece share: trained models, comparison with sentencepiece, random BPE tokenizers of characters, GGUF files."""
from __future__ import annotations

import functools
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import tokenizers
from tokenizer_cases import add_random_template, add_random_tokens, difference, random_text
from tokenizers import decoders, models, normalizers, pre_tokenizers

from harmaug import Tokenizer

SEED = Path(__file__).parents[1] / "harmaug" / "data"


@functools.cache
def rows() -> list[str]:
    """The package's own rows (Apache-2.0): prompts and responses."""
    found = [json.loads(line) for name in ("eval.jsonl", "seed.jsonl") for line in (SEED / name).read_text(encoding="utf-8").splitlines()]
    return [row[key] for row in found for key in ("prompt", "response") if row.get(key)]


def train(lines: list[str] | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    settings = {"vocab_size": 400, "hard_vocab_limit": False, "character_coverage": 0.99, "minloglevel": 2, "num_threads": 1, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines or rows()[:200]), model_writer=out, **settings)
    return out.getvalue()


def field(number: int, wire: int, payload: bytes) -> bytes:
    return bytes([number << 3 | wire]) + (bytes([len(payload)]) if wire == 2 else b"") + payload


def piece(text: bytes, score: float = 0.0, kind: int = 1, more: bytes = b"") -> bytes:
    return field(1, 2, field(1, 2, text) + field(2, 5, struct.pack("<f", score)) + field(3, 0, bytes([kind])) + more)


def own_difference(ours: Tokenizer, theirs: Any, lines: list[str], spans: bool = True) -> list[str]:
    """Lines in which ids, spans or decoded text are not sentencepiece's."""
    got = ours.encode_batch(lines)
    bad = []
    for i, line in enumerate(lines):
        want = theirs.encode(line, return_type="offset_mapping")
        same = got[i].tolist() == want["ids"] and (
            not spans or [tuple(s) for s in got.spans[got.offsets[i]:got.offsets[i + 1]].tolist()] == want["offsets"])
        if not same or ours.decode(want["ids"]) != theirs.decode(want["ids"]):
            bad.append(line)
    return bad


def random_ids_differ(ours: Tokenizer, theirs: Any, seed: int) -> int:
    r = random.Random(seed)
    bad = 0
    for _ in range(300):
        ids = [r.randrange(theirs.get_piece_size()) for _ in range(r.randint(0, 12))]
        bad += ours.decode(ids) != theirs.decode(ids)
    return bad


def check_unigram(seed: int, path: Path) -> None:
    """Pieces of few letters, so that paths meet, some of them user-defined; texts whose scores add up to sums far beyond what single precision tells apart."""
    r = random.Random(seed)
    scale = r.choice([1, 1, 30, 1000, 40_000, -300])
    symbols = {"".join(r.choices("abcd", k=r.randint(1, 9))) for _ in range(r.randint(0, 4))}
    normal = {"".join(r.choices("abcd", k=r.randint(1, 6))) for _ in range(30)} - symbols
    pieces = [piece(b"<unk>", 0, 2), *(piece(text.encode(), 0, 4) for text in sorted(symbols)),
              *(piece(text.encode(), -scale * r.choice([10 * r.random(), round(10 * r.random(), 1), r.randint(1, 10)]) * r.choice([1, 1, 1, len(text)])) for text in sorted(normal))]
    model = b"".join(pieces) + field(2, 2, field(3, 0, b"\x01")) + field(3, 2, field(3, 0, b"\x00"))
    path.write_bytes(model)
    ours = Tokenizer.from_pretrained(path, reference="sentencepiece")
    lines = ["".join(r.choices("abcd" * 8 + "e", k=k)) for k in (20, 300, 300, 3000, 3000, 20_000)]
    assert own_difference(ours, sentencepiece.SentencePieceProcessor(model_proto=model), lines) == [], seed


def random_decoder(r: random.Random) -> Any:
    llama = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    steps = [decoders.Replace("a", ""), decoders.Replace("ab", "\u00e9\u00e9"), decoders.Strip(" ", 1, 0), decoders.Strip("a", 2, 0), decoders.Metaspace(prepend_scheme="never"),
             decoders.ByteLevel(), decoders.WordPiece("a"), *llama]
    return r.choice([None, decoders.Sequence(llama), decoders.Sequence([*llama, decoders.Strip(" ", 1, 0)]), decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse(),
                     decoders.Sequence(r.choices(steps, k=r.randint(0, 4)))])


def random_characters(seed: int) -> tuple[tokenizers.Tokenizer, random.Random]:
    """BPE over characters: some in the vocabulary, some bytes, unknown tokens fused or not, Llama's and Gemma's normalizers and Metaspace."""
    r = random.Random(seed)
    letters = [c for c in "aabbcdABsSrReltT12 .,'\u2581\u2581\u00e9\u4e2d\n\ud55c\u1112\u0301" if r.random() < 0.8] or ["a"]
    parts, merges, vocab = list(letters), [], {}
    if r.random() < 0.7:
        vocab = {f"<0x{b:02X}>": b for b in range(256) if r.random() < r.choice([1, 1, 0.9])}
        vocab = {t: i for i, t in enumerate(vocab)}
    unk = r.random() < 0.6
    if unk:
        vocab["<unk>"] = len(vocab)
        parts += ["<unk>"] * (r.random() < 0.2)
    if r.random() < 0.2:
        parts += [t for t in ("<0x0A>", "<0xC3>") if t in vocab]
    for c in letters:
        vocab.setdefault(c, len(vocab))
    for _ in range(r.randint(0, 60)):
        left, right = r.choice(parts), r.choice(parts)
        if len(left + right) <= 12:
            merges.append((left, right))
            vocab.setdefault(left + right, len(vocab))
            parts.append(left + right)
    tok = tokenizers.Tokenizer(models.BPE(
        vocab, merges, unk_token="<unk>" if unk else None, fuse_unk=r.random() < 0.5, byte_fallback=r.random() < 0.7, ignore_merges=r.random() < 0.3))
    replace = normalizers.Replace(" ", "\u2581")
    tok.normalizer = r.choice([None, None, replace, normalizers.Sequence([normalizers.Prepend("\u2581"), replace])])
    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    tok.pre_tokenizer = r.choice([
        None, pre_tokenizers.Metaspace(prepend_scheme=r.choice(["first", "always", "never"]), split=r.random() < 0.5), pre_tokenizers.Split(" ", r.choice(behaviors))])
    tok.decoder = random_decoder(r)
    add_random_tokens(tok, r)
    add_random_template(tok, r)
    return tok, r


def check_characters(seed: int, path: Path) -> None:
    theirs, r = random_characters(seed)
    theirs.save(str(path))
    ours, theirs = Tokenizer.from_pretrained(path), tokenizers.Tokenizer.from_file(str(path))
    for _ in range(12):
        text, second = random_text(r), r.choice([None, random_text(r)])
        try:
            theirs.encode(text, second)
        except BaseException as error:      # noqa: BLE001  a Rust panic
            assert "bad split" in str(error), error
            continue
        assert difference(ours, theirs, [text], [second]) == [], (seed, text, second)


def write_gguf(path: Path, model: bytes, **changes: Any) -> Path:
    """The vocabulary of a BPE model as llama.cpp's converters write it."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    n = theirs.get_piece_size()
    types = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 5 if theirs.is_unused(i) else 1 for i in range(n)]
    symbols = changes.pop("symbols", [])
    values = {"kind": "llama", "tokens": [theirs.id_to_piece(i).encode() for i in range(n)], "scores": [theirs.get_score(i) for i in range(n)],
              "types": [4 if theirs.id_to_piece(i) in symbols else t for i, t in enumerate(types)], "bos": 1, "eos": 2, "unk": 0, "prefix": None, "name": None, "add_bos": None, "add_eos": None, **changes}
    writer = gguf.GGUFWriter(path, "llama")
    for name, add in (("kind", writer.add_tokenizer_model), ("tokens", writer.add_token_list), ("scores", writer.add_token_scores), ("types", writer.add_token_types),
                      ("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unk", writer.add_unk_token_id), ("prefix", writer.add_add_space_prefix),
                      ("add_bos", writer.add_add_bos_token), ("name", writer.add_name), ("add_eos", writer.add_add_eos_token)):
        if values[name] is not None:
            add(values[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
