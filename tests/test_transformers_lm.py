"""What is left to say without transformers; the rest is in tests/reference."""
import sys

import pytest

from harmaug.generator import open_lm
from harmaug.pipeline import GeneratorConfig, LabelConfig


def test_a_model_on_transformers_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"a model on transformers needs torch: pip install 'harmaug\[torch\]'"):
        open_lm(tmp_path, engine="transformers")


def test_engines_are_known_ones(tmp_path):
    for kind in (GeneratorConfig, LabelConfig):
        with pytest.raises(ValueError, match="engine must be one of native, transformers, got 'vllm'"):
            kind(engine="vllm")
    with pytest.raises(ValueError, match='device cuda needs engine "transformers"'):
        open_lm(tmp_path, device="cuda")
    with pytest.raises(ValueError, match="transformers opens Hugging Face folders"):
        open_lm(tmp_path, engine="transformers")
