"""Every family of encoders against transformers, live: logits on odd shapes, and folders written by the one and read by the other."""
import json

import numpy as np
import pytest
import torch
import transformers

from harmaug import _C
from harmaug.guard import Guard

DISENTANGLED = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 256,
                "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig, "xlm-roberta": transformers.XLMRobertaConfig,
           "electra": transformers.ElectraConfig, "distilbert": transformers.DistilBertConfig, "deberta": transformers.DebertaV2Config,
           "modernbert": transformers.ModernBertConfig}
# hidden, heads, layers, intermediate, labels
SHAPES = [(33, 3, 1, 50, 1), (51, 3, 2, 130, 2), (64, 4, 3, 256, 3), (100, 10, 2, 17, 4), (12, 1, 4, 13, 5)]
EVEN = [(36, 3, 1, 50, 1), (54, 3, 2, 130, 2), (64, 4, 3, 256, 3), (100, 10, 2, 17, 4), (12, 1, 4, 13, 5)]     # rotary heads have an even size
VARIANTS = {
    "bert": [{}, {"hidden_act": "relu", "type_vocab_size": 1}],
    "roberta": [{"type_vocab_size": 1}, {"pad_token_id": 5, "hidden_act": "gelu_new"}],
    "xlm-roberta": [{"type_vocab_size": 1}],
    "electra": [{"embedding_size": 20}, {"embedding_size": 64}],
    "distilbert": [{}, {"activation": "relu"}],
    "deberta": [
        DISENTANGLED,
        {**DISENTANGLED, "position_buckets": 32, "share_att_key": False, "pos_att_type": "c2p|p2c"},
        {**DISENTANGLED, "position_buckets": -1, "max_relative_positions": 64, "norm_rel_ebd": "none", "pos_att_type": ["c2p"], "share_att_key": False},
        {**DISENTANGLED, "pos_att_type": ["p2c"], "conv_kernel_size": 3, "conv_act": "gelu", "pooler_hidden_act": "tanh"},
        {**DISENTANGLED, "position_biased_input": True, "type_vocab_size": 2, "embedding_size": 24, "pos_att_type": []},
        {"relative_attention": False, "pos_att_type": ["c2p", "p2c"]},
    ],
    "modernbert": [
        {**TOKENS, "local_attention": 128},
        {**TOKENS, "local_attention": 16, "classifier_pooling": "mean", "norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        {**TOKENS, "local_attention": 32, "hidden_activation": "silu", "classifier_activation": "relu",
         "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 700.0}}},
    ],
}
CASES = [pytest.param(family, variant, shape, id=f"{family}-{v}-{s}") for family, variants in VARIANTS.items() for v, variant in enumerate(variants)
         for s, shape in enumerate(EVEN if family == "modernbert" else SHAPES)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60)), *"abcdefghij"]


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity_warning()


def make(family, variant, shape, seed=0, **changes):
    """A model with weights that keep the size of what they multiply, so that attention is no average and no activation saturates."""
    hidden, heads, layers, intermediate, labels = shape
    names = ("dim", "n_heads", "n_layers", "hidden_dim") if family == "distilbert" else ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    size = dict(zip(names, (hidden, heads, layers, intermediate), strict=True))
    config = CONFIGS[family](**{"vocab_size": 100, "max_position_embeddings": 530, **size, **variant, "num_labels": labels, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p += 0.2 * torch.randn_like(p)
            else:
                p.copy_(torch.randn_like(p) * (0.4 if "embeddings" in name else 1.2 / p[0].numel() ** 0.5))
    return model


def batch(model, lengths, seed=0):
    rng = np.random.default_rng(seed)
    types = 0 if model.config.model_type in ("distilbert", "modernbert") else getattr(model.config, "type_vocab_size", 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return rng.integers(6, 100, offsets[-1]), offsets, rng.integers(0, types, offsets[-1]) if types else None


def rows(ids, offsets, types):
    for a, b in zip(offsets[:-1], offsets[1:]):     # noqa: RUF007
        given = {} if types is None else {"token_type_ids": torch.tensor(types[a:b], dtype=torch.long)[None]}
        yield {"input_ids": torch.tensor(ids[a:b], dtype=torch.long)[None], **given}


def logits(model, ids, offsets, types):
    with torch.no_grad():
        return np.stack([model(**row).logits[0].double().numpy() for row in rows(ids, offsets, types)])


def lengths_of(model):
    longest = [1024] if model.config.model_type == "modernbert" or not getattr(model.config, "position_biased_input", True) else []
    return [1, 2, 3, 16, 63, 64, 65, 129, 512, *longest]


@pytest.mark.parametrize("family, variant, shape", CASES)
def test_logits(isa, family, variant, shape, tmp_path):
    """Within 2e-5 of float32, or of float64 where float32's own error is larger than that."""
    model = make(family, variant, shape)
    model.save_pretrained(tmp_path)
    given = batch(model, lengths_of(model))
    got, want = _C.Encoder(tmp_path).logits(*given), logits(model, *given)
    if np.abs(got - want).max() > 2e-5:
        exact = logits(model.double(), *given)
        assert np.abs(got - exact).max() < max(2e-5, np.abs(want - exact).max())


@pytest.mark.parametrize("family, variant, shape", CASES)
def test_gradients(family, variant, shape, tmp_path):
    """Of every parameter, against autograd in float64; a padding id inside a row has an embedding that is not trained."""
    model = make(family, variant, shape)
    model.save_pretrained(tmp_path)
    params = _C.EncoderParams.read(tmp_path)
    ids, offsets, types = given = batch(model, [1, 2, 7, 64, 65, 130])
    if model.config.pad_token_id is not None:
        ids[[offsets[2] + 3, offsets[4] + 10]] = model.config.pad_token_id
    dlogits = np.random.default_rng(1).normal(size=(6, shape[4])).astype(np.float32)
    got_logits, flat, words = params.gradients(ids, offsets, dlogits, types)
    model.double()
    want_logits = torch.cat([model(**row).logits for row in rows(*given)])
    (want_logits * torch.tensor(dlogits)).sum().backward()
    np.testing.assert_allclose(got_logits, want_logits.detach(), rtol=0, atol=5e-5)
    np.testing.assert_array_equal(np.flatnonzero(words), np.unique(ids))
    wanted, at = dict(model.named_parameters()), 0
    for name in params.names:
        want = wanted[name].grad
        want = np.zeros(params.shape(name)) if want is None else want.numpy()     # a table of positions that no setting reads
        got = flat[at:at + want.size].reshape(want.shape)
        at += want.size
        scale = np.linalg.norm(want)
        if name.endswith((".key.bias", "key_proj.bias", ".k_lin.bias")):    # moves all scores of a query alike: 0 but for rounding, where no p2c is
            query = name.replace("pos_key", "key").replace("key", "query").replace("k_lin", "q_lin")
            scale = max(scale, float(wanted[query].grad.norm()))
        assert np.linalg.norm(got - want) <= 1e-4 * scale, (name, np.linalg.norm(got - want), scale)
    assert at == params.size


@pytest.mark.parametrize("family", VARIANTS)
def test_padding_makes_no_difference_to_transformers(family, tmp_path):
    """What padded batches of transformers give is what our unpadded rows give."""
    model = make(family, VARIANTS[family][0], EVEN[1])
    model.save_pretrained(tmp_path)
    lengths = [3, 17, 64, 1]
    ids, offsets, types = batch(model, lengths)
    padded, mask, kinds = (torch.full((4, 64), fill, dtype=torch.long) for fill in (model.config.pad_token_id, 0, 0))
    for i, n in enumerate(lengths):
        row = slice(offsets[i], offsets[i + 1])
        padded[i, :n], mask[i, :n] = torch.tensor(ids[row]), 1
        kinds[i, :n] = torch.tensor(types[row]) if types is not None else 0
    with torch.no_grad():
        want = model(input_ids=padded, attention_mask=mask, **({} if types is None else {"token_type_ids": kinds})).logits.numpy()
    np.testing.assert_allclose(_C.Encoder(tmp_path).logits(ids, offsets, types), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_transformers_writes(family, dtype, tmp_path):
    """Whole and in shards, in every precision."""
    model = make(family, VARIANTS[family][0], EVEN[2]).to(dtype)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    given = batch(model, [1, 40, 100])
    same = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()   # ModernBERT's angles as they were
    want = logits(same, *given)
    for folder in ("whole", "shards"):
        np.testing.assert_allclose(_C.Encoder(tmp_path / folder).logits(*given), want, rtol=0, atol=2e-5)


def with_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", VARIANTS)
@pytest.mark.parametrize("v", [0, -1])
def test_what_we_write(family, v, tmp_path):
    """A folder of transformers, opened and saved as a guard, opens in transformers: the same model, its labels named."""
    model = make(family, VARIANTS[family][v], EVEN[1])
    model.save_pretrained(tmp_path / "theirs")
    guard = Guard.from_pretrained(with_tokenizer(tmp_path / "theirs"))
    guard.save_pretrained(tmp_path / "ours")
    back, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(model) and not info["missing_keys"] and not info["unexpected_keys"]
    assert back.config.id2label == {0: "safe", 1: "unsafe"}
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    given = batch(model, [1, 40, 100])
    np.testing.assert_allclose(logits(back.eval(), *given), logits(model, *given), rtol=0, atol=5e-6)    # its products depend on where weights lie in memory
    texts = ["w1 w2 w3", "", "a w5 " * 100]
    again = Guard.from_pretrained(tmp_path / "ours")
    assert again.max_length == guard.max_length
    np.testing.assert_array_equal(again.score(texts), guard.score(texts))


def test_the_layout_of_the_papers_student(tmp_path):
    """hbseong/HarmAug-Guard: DeBERTa-v3-large's settings as Microsoft's config.json has them, no id2label, index 1 = unsafe (here in small)."""
    model = make("deberta", {**DISENTANGLED, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p"}, EVEN[2][:4] + (2,), max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    settings = {
        "_name_or_path": "microsoft/deberta-v3-large", "architectures": ["DebertaV2ForSequenceClassification"], "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 256, "layer_norm_eps": 1e-07,
        "max_position_embeddings": 512, "max_relative_positions": -1, "model_type": "deberta-v2", "norm_rel_ebd": "layer_norm", "num_attention_heads": 4,
        "num_hidden_layers": 3, "pad_token_id": 0, "pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 64, "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False, "position_buckets": 256, "relative_attention": True, "share_att_key": True, "torch_dtype": "float32",
        "transformers_version": "4.44.2", "type_vocab_size": 0, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    guard = Guard.from_pretrained(with_tokenizer(tmp_path))
    assert guard.unsafe_index == 1 and guard.max_length == 512
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    for prompt, response in (("w1 w2", None), ("w1 a b", "w9 w8")):
        with torch.no_grad():
            given = tokenizer(prompt, response, return_tensors="pt")
            want = torch.softmax(model(**given).logits[0], dim=0)[1]
        assert guard.score([prompt], [response])[0] == pytest.approx(float(want), abs=2e-5)
