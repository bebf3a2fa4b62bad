"""The encoder and the guard against transformers, torch's autograd and peft. Real weights: HARMAUG_MODELS, filled by `harmaug models fetch`."""
import os
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from harmaug import _C
from harmaug.guard import Guard

TEXTS = ["How do I bake bread?", "", "naïve café, 北京 and\ttabs\nlines", "what is the boiling point of water at 2,000 m?", "hello " * 300, "ok"]
REPLIES = [None, "I can't help with that.", "Sure: " + "step, " * 120, "", None, "a b c " * 400]
ODD = [
    {"hidden_size": 33, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 50, "num_labels": 1},
    {"hidden_size": 51, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 130, "num_labels": 2},
    {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 256, "num_labels": 3, "type_vocab_size": 1},
    {"hidden_size": 100, "num_attention_heads": 10, "num_hidden_layers": 2, "intermediate_size": 17, "num_labels": 4, "layer_norm_eps": 1e-5},
    {"hidden_size": 13, "num_attention_heads": 1, "num_hidden_layers": 4, "intermediate_size": 13, "num_labels": 5},
]


@pytest.fixture(autouse=True)
def no_progress():
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def minilm():
    assert os.environ.get("HARMAUG_MODELS"), "set HARMAUG_MODELS to a folder filled by `harmaug models fetch minilm smollm2`"
    return Path(os.environ["HARMAUG_MODELS"]) / "minilm"


def bert(seed=0, **changes):
    torch.manual_seed(seed)
    config = transformers.BertConfig(**{"vocab_size": 100, "max_position_embeddings": 512, "initializer_range": 0.2, **changes})
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():       # biases and norms that are not 0 and 1
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p += 0.2 * torch.randn_like(p)
    return model


def batch(vocab, lengths, types=2, seed=0):
    """Id 0 is left out: torch gives the padding row no gradient."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return rng.integers(1, vocab, offsets[-1]), offsets, np.concatenate([np.arange(n) > n // 2 for n in lengths]).astype(int) % types


def rows(ids, offsets, types):
    for a, b in zip(offsets[:-1], offsets[1:]):     # noqa: RUF007
        yield {"input_ids": torch.tensor(ids[a:b], dtype=torch.long)[None], "token_type_ids": torch.tensor(types[a:b], dtype=torch.long)[None]}


# -- inference --

@pytest.mark.parametrize("odd", ODD)
def test_logits(odd, tmp_path):
    model = bert(**odd)
    model.save_pretrained(tmp_path)
    given = batch(100, [1, 2, 3, 16, 63, 64, 65, 129, 511, 512], odd.get("type_vocab_size", 2))
    with torch.no_grad():
        want = np.concatenate([model(**row).logits.numpy() for row in rows(*given)])
    np.testing.assert_allclose(_C.Encoder(tmp_path).logits(*given), want, rtol=0, atol=2e-5)


def test_logits_of_minilm(minilm, tmp_path):
    """Real weights with a new head; transformers in float64 is the truth that both float32 results are held to."""
    params = _C.EncoderParams.read(minilm, new_head=2, seed=1)
    guard = Guard.from_params(params, minilm)
    guard.save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert model.config.id2label == {0: "safe", 1: "unsafe"}
    given = batch(30522, [1, 7, 33, 128, 256, 512])
    with torch.no_grad():
        exact = np.concatenate([model(**row).logits.numpy() for row in rows(*given)])
    np.testing.assert_allclose(guard.encoder.logits(*given), exact, rtol=0, atol=5e-6)
    near = Guard.from_pretrained(tmp_path, dtype="bfloat16").encoder.logits(*given)
    assert np.abs(near - exact).max() < 0.02 * max(1.0, np.abs(exact).max())


# -- gradients --

@pytest.mark.parametrize("odd", ODD)
def test_gradients(odd, tmp_path):
    model = bert(**odd)
    model.save_pretrained(tmp_path)
    params = _C.EncoderParams.read(tmp_path)
    given = batch(100, [1, 2, 7, 64, 65, 200], odd.get("type_vocab_size", 2))
    dlogits = np.random.default_rng(1).normal(size=(6, odd["num_labels"])).astype(np.float32)
    logits, flat, _ = params.gradients(given[0], given[1], dlogits, given[2])
    model.double()
    want = torch.cat([model(**row).logits for row in rows(*given)])
    (want * torch.tensor(dlogits)).sum().backward()
    np.testing.assert_allclose(logits, want.detach().numpy(), rtol=0, atol=2e-5)
    gradients, at = dict(model.named_parameters()), 0
    for name in params.names:
        want_one = gradients[name].grad.numpy()
        got = flat[at:at + want_one.size].reshape(want_one.shape)
        at += want_one.size
        # a key's bias moves all scores of a query alike: its gradient is 0 but for rounding, so the query's bias gives the scale
        scale = gradients[name.replace("key.bias", "query.bias")].grad.norm()
        assert np.linalg.norm(got - want_one) <= 1e-4 * scale, name
    assert at == params.size


def test_gradients_of_minilm(minilm, tmp_path):
    params = _C.EncoderParams.read(minilm, new_head=2, seed=1, layers=[0, 2, 5])
    Guard.from_params(params, minilm).save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    given = batch(30522, [5, 40, 128])
    dlogits = np.array([[1, -1], [-0.5, 0.5], [0.25, -0.25]], dtype=np.float32)
    _, flat, words = params.gradients(given[0], given[1], dlogits, given[2])
    (torch.cat([model(**row).logits for row in rows(*given)]) * torch.tensor(dlogits)).sum().backward()
    gradients, at = dict(model.named_parameters()), 0
    for name in params.names:
        want = gradients[name].grad.numpy()
        got = flat[at:at + want.size].reshape(want.shape)
        at += want.size
        assert np.linalg.norm(got - want) <= 1e-4 * gradients[name.replace("key.bias", "query.bias")].grad.norm(), name
        if "word_embeddings" in name:
            np.testing.assert_array_equal(np.flatnonzero(np.abs(want).sum(axis=1)), np.flatnonzero(words))


# -- guards --

def theirs(folder, max_length, model=None):
    """transformers' own way from texts to logits, truncating."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = model or transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    out = []
    for text, reply in zip(TEXTS, REPLIES):
        given = tokenizer(text, reply or None, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            out.append(model(**given).logits.numpy()[0])
    return np.stack(out)


def test_saved_guards_in_transformers(minilm, tmp_path):
    guard = Guard.from_params(_C.EncoderParams.read(minilm, new_head=2, seed=3, layers=[0, 1]), minilm, long="truncate")
    guard.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).model_max_length == guard.max_length == 512
    np.testing.assert_allclose(guard.logits(TEXTS, REPLIES), theirs(tmp_path, 512), rtol=0, atol=2e-5)
    pipe = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None)
    for text, score in zip(TEXTS[:1], guard.score(TEXTS[:1])):
        assert {row["label"]: row["score"] for row in pipe([text])[0]}["unsafe"] == pytest.approx(float(score), abs=2e-5)


def test_guards_of_transformers(minilm, tmp_path):
    """The other way round: a folder that transformers wrote, in half precision too."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2, id2label={0: "SAFE", 1: "UNSAFE"},
                                                                            label2id={"SAFE": 0, "UNSAFE": 1}).eval()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        model.to(dtype).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
        same = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        guard = Guard.from_pretrained(folder, long="truncate")
        np.testing.assert_allclose(guard.logits(TEXTS, REPLIES), theirs(folder, 512, same), rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")     # peft's use of transformers
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "r": 3}, {"bias": "all"}, {"rank_pattern": {"value": 2}, "alpha_pattern": {"layer.0.attention.self.query": 5}}])
def test_adapters_of_peft(minilm, tmp_path, options):
    torch.manual_seed(0)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", **{"r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "intermediate.dense"], **options})
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():       # an untrained B is 0
        for name, p in model.named_parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn_like(p)
    model.save_pretrained(tmp_path)
    guard = Guard.from_pretrained(tmp_path, long="truncate")
    np.testing.assert_allclose(guard.logits(TEXTS, REPLIES), theirs(minilm, 512, model), rtol=0, atol=5e-5)
    guard.save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(theirs(tmp_path / "merged", 512), guard.logits(TEXTS, REPLIES), rtol=0, atol=2e-5)
