"""Writes sentencepiece.json.gz: small sentencepiece models, the configuration beside each, and the fast tokenizer that transformers 4.57.6 makes of them.

    pip install transformers==4.57.6 sentencepiece==0.2.3 protobuf && python tests/data/record_sentencepiece.py
"""
import base64
import gzip
import io
import json
import os
import tempfile
from pathlib import Path

import sentencepiece as spm

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import AutoTokenizer

HERE = Path(__file__).parent
ROWS = [json.loads(line) for line in (HERE.parents[1] / "harmaug" / "data" / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
LINES = [row[key] for row in ROWS for key in ("prompt", "response") if row.get(key)]
RULES = {"\u2026": "...", "\u00a0": " ", "\u3000": " ", "\ufb01": "fi", "\uff41": "a", "e\u0301": "\u00e9", "\u200b": "", "\u24e9": "z", "\uff76\uff9e": "\u30ac",
         "\u1112\u1161\u11ab": "\ud55c", "\t": " ", "\n": " ", "\r": " ", "\ufeff": ""}
PIECES = {
    "deberta": {"vocab_size": 480, "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]",
                "unk_piece": "[UNK]", "byte_fallback": True},
    "fairseq": {"vocab_size": 200},
    "t5": {"vocab_size": 200, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "albert": {"vocab_size": 200, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]",
               "user_defined_symbols": ["(", ")", '"', "1,", "a,"]},
    "llama": {"vocab_size": 480, "model_type": "bpe", "byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False, "user_defined_symbols": "<tool>"},
    "gemma": {"vocab_size": 480, "model_type": "bpe", "byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False, "add_dummy_prefix": False,
              "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>", "allow_whitespace_only_pieces": True,
              "user_defined_symbols": ["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581"]},
}
TOKEN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
CASES = [      # name, model, file name, tokenizer_config.json, other files
    ("deberta", "deberta", "spm.model", {"tokenizer_class": "DebertaV2Tokenizer"}, {}),
    ("deberta_by_pieces", "deberta", "spm.model", None, {"config.json": {"model_type": "deberta-v2"}}),
    ("deberta_lower_punct", "deberta", "spm.model", {"tokenizer_class": "DebertaV2TokenizerFast", "do_lower_case": True, "split_by_punct": True}, {}),
    ("deberta_table", "deberta", "spm.model", {
        "tokenizer_class": "DebertaV2Tokenizer", "mask_token": "[MASK]", "added_tokens_decoder": {
            "3": {"content": "[UNK]", **TOKEN, "special": True, "normalized": True}, "480": {"content": "[MASK]", **TOKEN, "special": True, "lstrip": True},
            "481": {"content": "<new>", **TOKEN, "rstrip": True}}}, {}),
    ("deberta_legacy", "deberta", "spm.model", {"tokenizer_class": "DebertaV2Tokenizer"}, {
        "added_tokens.json": {"[MASK]": 480, "<extra>": 481},
        "special_tokens_map.json": {"mask_token": "[MASK]", "unk_token": {"content": "[UNK]", **TOKEN, "normalized": True}, "additional_special_tokens": ["<extra>"]}}),
    ("xlmr", "fairseq", "sentencepiece.bpe.model", {"tokenizer_class": "XLMRobertaTokenizer"}, {}),
    ("t5", "t5", "spiece.model", {"tokenizer_class": "T5Tokenizer", "extra_ids": 20}, {}),
    ("t5_new", "t5", "spiece.model", {"tokenizer_class": "T5Tokenizer", "legacy": False, "extra_ids": 2,
                                      "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<more>"]}, {}),
    ("albert", "albert", "spiece.model", {"tokenizer_class": "AlbertTokenizer"}, {}),
    ("albert_cased", "albert", "spiece.model", {"tokenizer_class": "AlbertTokenizer", "do_lower_case": False, "keep_accents": True}, {}),
    ("llama", "llama", "tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}, {}),
    ("llama_new", "llama", "tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_eos_token": True, "pad_token": "<tool>"}, {}),
    ("llama_bare", "llama", "tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "add_bos_token": False}, {}),
    ("llama_null", "llama", "tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": None, "legacy": None}, {}),
    ("mistral", "llama", "tokenizer.model", {"bos_token": {"content": "<s>", **TOKEN, "lstrip": True, "__type": "AddedToken"}},
     {"config.json": {"model_type": "mistral"}}),
    ("gemma", "gemma", "tokenizer.model", {"tokenizer_class": "GemmaTokenizer"}, {}),
    ("unigram_llama", "fairseq", "tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "legacy": False}, {}),
    ("bpe_xlmr", "llama", "sentencepiece.bpe.model", {"tokenizer_class": "XLMRobertaTokenizer"}, {}),
]


def train(options: dict) -> bytes:
    """A model with a small charsmap of its own: the usual one has 240 kB."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        if options.get("model_type") != "bpe":
            for source, target in RULES.items():
                rules.write("\t".join(" ".join(f"{ord(c):X}" for c in part) for part in (source, target)) + "\n")
            rules.flush()
            options = {**options, "normalization_rule_tsv": rules.name}
        else:
            options = {**options, "normalization_rule_name": "identity"}
        out = io.BytesIO()
        spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, minloglevel=2, num_threads=1, character_coverage=0.99, hard_vocab_limit=False, **options)
    return out.getvalue()


def convert(folder: Path, model: bytes, file: str, config: dict | None, others: dict) -> str:
    (folder / file).write_bytes(model)
    for name, content in {"tokenizer_config.json": config, **others}.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer.to_str()


def main() -> None:
    models = {name: train(options) for name, options in PIECES.items()}
    cases = []
    for name, model, file, config, others in CASES:
        with tempfile.TemporaryDirectory() as folder:
            made = convert(Path(folder), models[model], file, config, others)
        cases.append({"name": name, "model": model, "file": file, "config": config, "others": others, "tokenizer": json.loads(made)})
        print(name, len(made))
    record = {"models": {name: base64.b64encode(model).decode() for name, model in models.items()}, "cases": cases}
    with gzip.GzipFile(HERE / "sentencepiece.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(record, ensure_ascii=True).encode())


if __name__ == "__main__":
    main()
