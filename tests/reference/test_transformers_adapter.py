"""`as_transformers` in the place of transformers' own tokenizer: the same answers, and a Trainer, a collator and a pipeline that take it.

HARMAUG_TEST_DATA, HARMAUG_MODELS: see test_tokenizer.py.
"""
from __future__ import annotations

import copy
import functools
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from harmaug import Tokenizer
from harmaug.teacher import as_array
from harmaug.tokenizer import as_transformers

sys.path.insert(0, str(Path(__file__).parent))
from test_tokenizer import data, folder, stress

pytestmark = pytest.mark.filterwarnings("ignore")       # transformers' and torch's own


@functools.cache
def pair() -> tuple[Any, Any]:
    root = folder("HARMAUG_MODELS") / "minilm"
    return as_transformers(Tokenizer.from_pretrained(root)), AutoTokenizer.from_pretrained(root)


def same(got: Any, want: Any) -> None:
    assert set(got) == set(want), (set(got), set(want))
    for key in want:
        g, w = got[key], want[key]
        assert type(g) is type(w), key
        if isinstance(w, (np.ndarray, torch.Tensor)):
            assert g.dtype == w.dtype and g.shape == w.shape and bool((g == w).all()), key
        else:
            assert g == w, key


@functools.cache
def texts() -> tuple[list[str], list[str]]:
    prompts, responses = data()
    rows = [(p, r or "") for p, r in zip(prompts, responses, strict=True)] + [(t, t[::-1]) for t in stress()]
    random.Random(3).shuffle(rows)
    return [p for p, _ in rows], [r for _, r in rows]


def test_every_prompt() -> None:
    ours, theirs = pair()
    prompts, _ = texts()
    for first in range(0, len(prompts), 2000):
        part = prompts[first:first + 2000]
        same(ours(part, return_offsets_mapping=True), theirs(part, return_offsets_mapping=True))


@pytest.mark.parametrize("options", [
    {"padding": True, "truncation": True, "return_tensors": "np"}, {"padding": True, "truncation": True, "return_tensors": "pt", "max_length": 48},
    {"padding": "max_length", "truncation": "only_second", "max_length": 700}, {"max_length": 32}, {"padding": True, "pad_to_multiple_of": 8, "return_offsets_mapping": True},
    {"padding": "longest", "truncation": "longest_first", "max_length": 64, "padding_side": "left", "return_tensors": "np", "return_offsets_mapping": True},
    {"truncation": True, "max_length": 24, "stride": 5, "return_overflowing_tokens": True, "return_offsets_mapping": True},
    {"truncation": True, "max_length": 24, "stride": 3, "return_overflowing_tokens": True, "padding": True, "return_tensors": "pt"},
    {"add_special_tokens": False, "return_token_type_ids": False}, {"truncation": False, "max_length": 5, "return_attention_mask": False},
], ids=str)
def test_options(options: dict[str, Any]) -> None:
    ours, theirs = pair()
    prompts, responses = (column[:300] for column in texts())
    if options.get("truncation") == "only_second":      # which needs a pair, and a first text that leaves it room
        prompts, responses = ([column[i] for i, p in enumerate(prompts) if len(p) < 1000] for column in (prompts, responses))
    else:
        same(ours(prompts, **options), theirs(prompts, **options))
    same(ours(prompts, responses, **options), theirs(prompts, responses, **options))
    for p, r in zip(prompts[:20], responses[:20], strict=True):
        same(ours(p, r, **options), theirs(p, r, **options))


def test_ids_and_text() -> None:
    ours, theirs = pair()
    rows = theirs(texts()[0][:2000])["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(rows, skip_special_tokens=skip) == theirs.batch_decode(rows, skip_special_tokens=skip)
    assert ours.decode(torch.tensor(rows[0])) == theirs.decode(torch.tensor(rows[0])) and ours.decode(rows[:3]) == theirs.decode(rows[:3])
    assert ours.convert_ids_to_tokens(rows[0]) == theirs.convert_ids_to_tokens(rows[0]) and ours.tokenize("a neat text") == theirs.tokenize("a neat text")
    tokens = [*theirs.convert_ids_to_tokens(rows[0]), "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for name in ("model_max_length", "padding_side", "truncation_side", "pad_token", "pad_token_id", "cls_token_id", "sep_token", "mask_token_id", "unk_token_id", "bos_token",
                 "eos_token_id", "model_input_names", "is_fast", "vocab_size", "pad_token_type_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs) and sorted(ours.all_special_ids) == sorted(theirs.all_special_ids) and ours.get_vocab() == theirs.get_vocab()
    features = [{"input_ids": row, "labels": i / 2} for i, row in enumerate(rows[:50])]
    for options in ({}, {"padding": "max_length", "max_length": 600}, {"pad_to_multiple_of": 16, "padding_side": "left"}, {"padding": False}):
        same(ours.pad([dict(f) for f in features], **options), theirs.pad([dict(f) for f in features], **options))
    same(ours.pad(features, return_tensors="pt"), theirs.pad(features, return_tensors="pt"))
    assert ours.num_special_tokens_to_add(True) == theirs.num_special_tokens_to_add(True)


@functools.cache
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2,
                                                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).eval()


def train(tokenizer: Any, out: Path) -> list[float]:
    rows = [{**tokenizer(text, truncation=True, max_length=40), "labels": i % 2} for i, text in enumerate(texts()[0][:64])]
    arguments = TrainingArguments(out, per_device_train_batch_size=8, max_steps=6, logging_steps=1, save_steps=6, report_to=[], use_cpu=True, seed=1, dataloader_num_workers=1)
    trainer = Trainer(model=copy.deepcopy(model()), args=arguments, train_dataset=rows, eval_dataset=rows[:16], processing_class=tokenizer)
    assert isinstance(trainer.data_collator, DataCollatorWithPadding)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] + [trainer.evaluate()["eval_loss"]]


def test_trainer(tmp_path: Path) -> None:
    """Training is the same to the last bit, and what it saves opens in transformers."""
    ours, theirs = pair()
    losses = train(ours, tmp_path / "ours")
    assert losses == train(theirs, tmp_path / "theirs") and len(losses) == 7
    saved = AutoTokenizer.from_pretrained(tmp_path / "ours" / "checkpoint-6")
    assert saved(texts()[0][:100])["input_ids"] == ours(texts()[0][:100])["input_ids"]


def test_collators_and_loader() -> None:
    ours, theirs = pair()
    rows = [ours(text, truncation=True, max_length=60) for text in texts()[0][:40]]
    for options in ({}, {"padding": "max_length", "max_length": 64}, {"pad_to_multiple_of": 8}, {"return_tensors": "np"}):
        same(DataCollatorWithPadding(ours, **options)([dict(r) for r in rows]), DataCollatorWithPadding(theirs, **options)([dict(r) for r in rows]))
    for collator in (DataCollatorForLanguageModeling(ours, mlm=True, seed=5), DataCollatorForLanguageModeling(ours, mlm=False)):
        other = DataCollatorForLanguageModeling(theirs, mlm=collator.mlm, seed=5)
        same(collator([dict(r) for r in rows]), other([dict(r) for r in rows]))
    loader = DataLoader(rows, batch_size=8, collate_fn=DataCollatorWithPadding(ours), num_workers=2, multiprocessing_context="spawn")
    for batch, first in zip(loader, range(0, 40, 8), strict=True):
        same(batch, theirs.pad([dict(r) for r in rows[first:first + 8]], return_tensors="pt"))


def test_pipeline() -> None:
    ours, theirs = pair()
    prompts = texts()[0][:40]
    for options in ({"batch_size": 1}, {"batch_size": 8}):
        answers = [pipeline("text-classification", model=model(), tokenizer=tok, device="cpu")(prompts, truncation=True, max_length=64, **options) for tok in (ours, theirs)]
        assert answers[0] == answers[1] and len(answers[0]) == 40
    assert isinstance(ours, transformers.PreTrainedTokenizerBase) and os.environ.get("HARMAUG_TEST_DATA")


def test_scores_of_a_tensor_keep_their_dtype():
    for dtype, kept in ((torch.float64, np.float64), (torch.float32, np.float32), (torch.float16, np.float16), (torch.bfloat16, np.float32)):
        tensor = torch.tensor([0.1, 1 / 3], dtype=dtype, requires_grad=True)
        scores = as_array(tensor)
        assert scores.dtype == kept and scores.tolist() == tensor.tolist()
