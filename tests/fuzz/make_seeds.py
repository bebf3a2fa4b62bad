"""Seeds of the fuzz targets, small and made here: ``python make_seeds.py FOLDER``.

FOLDER/<target>/ holds inputs, FOLDER/<target>.dict words of the format, FOLDER/tokenizers/ what fuzz_text opens.
"""
from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import encoder_models
from sentencepiece_cases import train
from test_guard import write as write_guard
from test_tokenizer import WORDS, bert, byte_level, byte_vocab, write_gguf
from tokenizer_cases import TEXTS, random_text, random_tokenizer

root = Path(sys.argv[1])


def put(name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def dictionary(target: str, words: set[str]) -> None:
    lines = ("".join(c if c.isalnum() or c in " _-:{}[],." else f"\\x{b:02x}" for b in w.encode() for c in [chr(b)]) for w in sorted(words))
    put(f"{target}.dict", "".join(f'"{line}"\n' for line in lines).encode())


documents = {"wordpiece": bert().to_str(), "bytes": byte_level().to_str()}
documents |= {f"random{seed}": random_tokenizer(seed)[0].to_str() for seed in range(40)}
for name, text in documents.items():
    put(f"json/{name}", text.encode())
    put(f"tokenizers/{name}.json", text.encode())
dictionary("json", {word for text in documents.values() for word in re.findall(r'"[A-Za-z_]{3,40}"', text)} | {"null", "true", "false", "{}", "[]", "\\u0000"})

put("vocab_txt/words", "\n".join(WORDS).encode())
put("vocab_txt/crlf", "\r\n".join([*WORDS, "", "two words"]).encode())
put("tokenizers/vocab.txt", "\n".join(WORDS).encode())
dictionary("vocab_txt", {"[UNK]", "[CLS]", "[SEP]", "[PAD]", "##"})

for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
    path = root / "tokenizers" / f"{pre}.gguf"
    write_gguf(path, pre)
    put(f"gguf/{pre}", path.read_bytes())
dictionary("gguf", {m.decode() for m in re.findall(rb"[a-z]+\.[a-z_.]+", (root / "gguf" / "gpt-2").read_bytes())})

for model in ("unigram", "bpe"):
    for fallback in (False, True):
        content = train(model_type=model, vocab_size=330 if fallback else 120, byte_fallback=fallback, normalization_rule_name="identity", character_coverage=0.98)
        put(f"spm/{model}{fallback:d}", content)
        put(f"tokenizers/{model}{fallback:d}.model", content)

tokens, merges = byte_vocab()
ordered = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b"do", b"  ", b"12", b"123", "é".encode()]
ranks = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ordered))
put("tiktoken/ranks", ranks)
put("tiktoken/no_newline", ranks[:-1])
merges_txt = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
vocab_json = json.dumps({token: i for i, token in enumerate(tokens)})
put("merges/merges", merges_txt.encode())
put("vocab_json/vocab", vocab_json.encode())
put("beside/vocab.json", vocab_json.encode())
put("beside/merges.txt", merges_txt.encode())

r = random_tokenizer(0)[1]
for i, text in enumerate([*TEXTS, *(random_text(r) for _ in range(200))]):
    put(f"text/{i}", bytes([i, (37 * i) % 256, 3 + i % 20, i % 6, (29 * i) % 256]) + text.encode())

guard = write_guard(root / "guard")
(guard / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 20}))
(guard / "thresholds.json").write_text(json.dumps({"schema_version": 1, "threshold": 0.25, "long": "windows", "max_length": 20}))
for name in ("config", "thresholds", "tokenizer_config"):
    put(f"guard_{name}/own", (guard / f"{name}.json").read_bytes())
    words = set(re.findall(r'"[A-Za-z_]{3,40}"', (guard / f"{name}.json").read_text()))
    dictionary(f"guard_{name}", words | {"null", "true", "false", "{}", "[]", "id2label", '"unsafe"', "1e308", "-1", "model_max_length"})
for name in encoder_models.FAMILIES:
    put(f"guard_config/{name}", json.dumps(encoder_models.config(name)).encode())
