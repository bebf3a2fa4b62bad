"""What is left to say without transformers; the rest is in tests/reference."""
import sys

import numpy as np
import pytest
import tiny_bert

from harmaug import Guard
from harmaug.generator import open_lm
from harmaug.pipeline import GeneratorConfig, LabelConfig
from harmaug.teacher import GuardTeacher


def test_a_model_on_transformers_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"a model on transformers needs torch: pip install 'harmaug\[torch\]'"):
        open_lm(tmp_path, backend="transformers")


def test_backends_are_known_ones(tmp_path):
    for kind in (GeneratorConfig, LabelConfig):
        with pytest.raises(ValueError, match="backend must be one of native, transformers, got 'vllm'"):
            kind(backend="vllm")
    with pytest.raises(ValueError, match='device cuda needs backend "transformers"'):
        open_lm(tmp_path, device="cuda")
    with pytest.raises(ValueError, match='device cuda needs backend "transformers"'):
        GuardTeacher.from_pretrained(tiny_bert.write(tmp_path / "guard"), device="cuda")
    with pytest.raises(ValueError, match="transformers opens Hugging Face folders"):
        open_lm(tmp_path, backend="transformers")


def test_logits_from_a_callable_in_the_encoders_place(tmp_path):
    """Windows and labels stay the guard's; what the callable raises comes through."""
    guard = Guard.from_pretrained(tiny_bert.write(tmp_path / "guard"), max_length=8)
    rows = ["w1 w2", "w3 " * 30, ""]
    want = guard.score_details(rows)
    calls = []
    guard._source = lambda *batch: calls.append(batch) or guard.encoder.logits(*batch)
    got = guard.score_details(rows)
    assert np.array_equal(got.score, want.score) and np.array_equal(got.window, want.window) and len(calls) == 1
    for source, message in ((lambda *_: 1 / 0, "division by zero"), (lambda *_: np.zeros((1, 2)), r"shape \(\d+, 2\)"), (lambda *_: "no", "could not convert")):
        guard._source = source
        with pytest.raises((ZeroDivisionError, ValueError), match=message):
            guard.score(rows)
    guard._source = lambda ids, offsets, types: np.full((len(offsets) - 1, 2), np.nan)
    with pytest.raises(ValueError, match="no finite number"):
        guard.score(rows)
