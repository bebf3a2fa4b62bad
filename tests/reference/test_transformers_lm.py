"""Generators and teachers on transformers beside the native ones: the same tokens, scores within rounding."""
import json
from pathlib import Path

import decoder_models
import numpy as np
import pytest
import tiny_bert
import tiny_llama
import tokenizers
import torch
from test_distill import rows_of, student_of
from test_guard_families import ROWS, TEMPLATES

from harmaug import CausalLM
from harmaug.chat import ChatTemplate
from harmaug.generator import Request, SamplerConfig, open_lm
from harmaug.guard_families import FAMILIES, LabelReading, LanguageModelTeacher
from harmaug.pipeline import GeneratorConfig, LabelConfig, load_generator, load_teacher
from harmaug.teacher import GuardTeacher

CASES = ("llama", "mistral-window", "qwen2", "qwen3", "gemma", "gemma2", "gpt2")


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    """A random model with a byte-level tokenizer and a chat template."""
    context = {"n_positions" if request.param == "gpt2" else "max_position_embeddings": 700}
    c = decoder_models.config(request.param, vocab_size=len(tiny_llama.TOKENS), **context)
    c["architectures"] = [{"gpt2": "GPT2LMHeadModel"}.get(request.param, "LlamaForCausalLM")]      # told by model_type
    path = decoder_models.write(tmp_path_factory.mktemp("lm") / "model", c, decoder_models.weights(c, 4))
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tiny_llama.TOKENS)}, [tuple(merge.split()) for merge in tiny_llama.MERGES]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(tiny_llama.SPECIAL)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tiny_llama.TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def both(folder):
    torch.set_num_threads(1)
    return CausalLM.from_pretrained(folder, dtype="float32"), open_lm(folder, backend="transformers", device="cpu", batch_size=3)


def test_logits_and_stop_ids(both):
    native, other = both
    ids = native.encode("the other thing, in there")
    np.testing.assert_allclose(other.logits(ids), native.logits(ids), atol=2e-4 * np.abs(native.logits(ids)).max())
    assert other.stop_ids == native.stop_ids and other.dtype == "float32"
    rows = [ids[:5], ids, ids[:9], ids[:1]]
    for got, row in zip(other.rows_reader()(rows), rows):
        np.testing.assert_allclose(got, native.reader().next_logits(row), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_of_every_family_are_the_native_ones(both, name):
    options = {"template": ChatTemplate(source=TEMPLATES[name]), "guidelines": ["No rude words.", "Be careful."] if FAMILIES[name].variables else []}
    for reading in (LabelReading(temperature=2.5), LabelReading(definition="full")):
        native, other = (LanguageModelTeacher(lm, FAMILIES[name], reading=reading, **options).score(*zip(*ROWS)) for lm in both)
        np.testing.assert_allclose(other, native, atol=1e-4)
        assert len(set(other.tolist())) > 1


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_p": 0.9, "repetition_penalty": 1.2}, {"top_k": 9, "bad_words": ("the", "in there"), "min_new_tokens": 6},
                                      {"typical_p": 0.8, "presence_penalty": 0.5, "banned_ids": (5, 7)}])
def test_samples_are_the_native_ones(both, sampling):
    """The same random numbers: a token could differ only where rounding moves it over a border."""
    native, other = both
    prompts = [lm.chat_prompt([{"role": "user", "content": "go on"}], "Sure: ") for lm in both]
    assert prompts[0] == prompts[1]
    requests = [Request(prompt=prompts[0], n=5, stop=(*"abcdefghijklmnopqrst", "\n")), Request(prompt="in the", n=3, first_index=40), Request(prompt="x", n=2, stop=("q",))]
    options = {"seed": 11, "sampling": SamplerConfig(max_new_tokens=16, **sampling)}
    want = {(at, i): generation for at, i, generation in native.stream(requests, batch_size=4, **options)}
    for batch_size in (3, 32):
        got = {(at, i): generation for at, i, generation in other.stream(requests, batch_size=batch_size, **options)}
        assert got.keys() == want.keys()
        for key, generation in got.items():
            assert (generation.text, generation.ids, generation.stop_reason) == (want[key].text, want[key].ids, want[key].stop_reason)
            assert generation.logprob == pytest.approx(want[key].logprob, abs=1e-3)
    assert "top_p" not in sampling or "stop" in {generation.stop_reason for generation in want.values()}


def test_errors_name_the_place(both):
    _, other = both
    with pytest.raises(ValueError, match="request 1: a prompt of 690 tokens with max_new_tokens 64 behind it; 1 to 700"):
        list(other.stream([Request(prompt="a"), Request(prompt="x" * 690)]))
    guard = LanguageModelTeacher(other, FAMILIES["llama-guard-2"], template=ChatTemplate(source=TEMPLATES["llama-guard-2"]))
    with pytest.raises(ValueError, match=r"conversation 1: \d+ tokens exceed the context of 700"):
        guard.score(["short", "long " * 400])


def test_settings_of_a_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", "")
    (tmp_path / "policy.jinja").write_text(TEMPLATES["wildguard"])
    scores = []
    for backend in ("native", "transformers"):
        config = LabelConfig(teacher=str(folder), family="wildguard", template="policy.jinja", backend=backend, dtype="float32")
        scores.append(load_teacher(config, models={}, folder=tmp_path).score(*zip(*ROWS)))
        generator = load_generator(GeneratorConfig(model=str(folder), backend=backend, dtype="float32"))
        assert generator.generate("in the", n=2, max_new_tokens=8, seed=3)[1].stop_reason in ("eos", "length")
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    with pytest.raises(ValueError, match="nosuch"):
        load_generator(GeneratorConfig(model=str(folder), backend="transformers", device="nosuch"))


# -- classifiers --

@pytest.mark.parametrize("family", ["bert", "deberta-v3", "roberta", "modernbert"])
def test_classifiers_on_transformers_have_the_native_scores(tmp_path, family):
    """Windows of long rows included."""
    student = tiny_bert.write(tmp_path / "guard") if family == "bert" else Path(student_of(tmp_path / "guard", family, **({"type_vocab_size": 2} if family == "roberta" else {})))
    rows = [(row.prompt, row.response) for row in rows_of(30)] + [("w1 w2 " * 40, None), ("w3 " * 30, "w4 w5 " * 30), ("", None)]
    native = GuardTeacher.from_pretrained(student, max_length=20)
    other = GuardTeacher.from_pretrained(student, max_length=20, backend="transformers", device="cpu")
    np.testing.assert_allclose(other.score(*zip(*rows)), native.score(*zip(*rows)), atol=1e-4)
    details = other.guard.score_details(*zip(*rows))
    assert details.n_windows.max() > 2 and details.n_windows.tolist() == native.guard.score_details(*zip(*rows)).n_windows.tolist()
    config = LabelConfig(teacher=str(student), backend="transformers", cache=False)
    assert load_teacher(config, models={}).score(["w1 w2"]) == pytest.approx(GuardTeacher.from_pretrained(student).score(["w1 w2"]), abs=1e-4)
    other.guard._source = lambda *_: np.zeros((1, 3))
    with pytest.raises(ValueError, match=r"logits must return an array of shape \(2, 2\)"):
        other.score(["a", "b"])
