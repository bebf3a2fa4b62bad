"""Every family of encoders against its equations in float64 and against recorded logits of transformers; what is loaded, and what is refused."""
import itertools
import json
from pathlib import Path

import bert_model
import encoder_models
import numpy as np
import pytest
from safetensors.numpy import save_file

from harmaug import _C, FormatError

DATA = Path(__file__).resolve().parent / "data"
LENGTHS = [1, 2, 9, 33, 64, 65, 85]
FAMILIES = list(encoder_models.FAMILIES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name, **changes): folder, configuration, weights of a family; made once."""
    folders = {}

    def make(name, **changes):
        key = json.dumps([name, changes])
        if key not in folders:
            c = encoder_models.config(name, **changes)
            w = encoder_models.weights(c, seed=1)
            folders[key] = encoder_models.write(tmp_path_factory.mktemp("model"), c, w), c, w
        return folders[key]

    return make


# -- inference --

@pytest.mark.parametrize("name", FAMILIES)
def test_logits(isa, made, name):
    """Of transformers in float64, recorded by tests/data/record_encoders.py."""
    folder, c, _ = made(name)
    rows = encoder_models.batch(c, LENGTHS, seed=1)
    got = _C.Encoder(folder).logits(*rows)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.load(DATA / "encoder_logits.npz")[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_equations_are_those_of_transformers(made, name):
    _, c, w = made(name)
    np.testing.assert_allclose(encoder_models.logits(c, w, *encoder_models.batch(c, LENGTHS, seed=1)), np.load(DATA / "encoder_logits.npz")[name],
                               rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, changes, lengths", [
    ("deberta-v3", {"hidden_size": 7, "num_attention_heads": 7, "intermediate_size": 1}, [1, 30]),
    ("deberta-v3", {"hidden_size": 100, "num_attention_heads": 5, "num_hidden_layers": 1, "num_labels": 6}, [70]),
    ("deberta-v3", {"position_buckets": 8, "max_relative_positions": 11}, [1, 5, 150, 300]),       # beyond max_position_embeddings, and beyond the table
    ("deberta-plain", {"max_relative_positions": 5}, [200]),
    ("deberta-v2", {"hidden_size": 30, "conv_groups": 3, "conv_kernel_size": 7, "conv_act": "tanh"}, [1, 2, 3, 130]),
    ("deberta-biased", {"embedding_size": 50}, [90]),
    ("modernbert", {"local_attention": 2, "num_attention_heads": 1}, [1, 2, 3, 200]),
    ("modernbert-mean", {"local_attention": 130, "num_hidden_layers": 2}, [64, 65, 66, 300]),
    ("roberta", {"num_hidden_layers": 1, "hidden_size": 21}, [1, 88]),
    ("electra", {"embedding_size": 3}, [77]),
    ("bert", {"hidden_act": "silu"}, [40]), ("bert", {"hidden_act": "tanh"}, [40]), ("bert", {"hidden_act": "gelu_new"}, [40]),
])
def test_odd_shapes(isa, made, name, changes, lengths):
    folder, c, w = made(name, **changes)
    rows = encoder_models.batch(c, lengths)
    np.testing.assert_allclose(_C.Encoder(folder).logits(*rows), encoder_models.logits(c, w, *rows), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_positions_of_padding_tokens_within_a_row(made, name):
    folder, c, w = made(name)
    ids = np.array([4, c["pad_token_id"], 5, 6, c["pad_token_id"], 7], dtype=np.int32)
    want = encoder_models.logits(c, w, ids, [0, 6], np.zeros(6, dtype=np.uint8))
    np.testing.assert_allclose(_C.Encoder(folder).logits(ids, [0, 6]), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["deberta-v3", "deberta-v2", "deberta-plain", "roberta", "electra", "modernbert", "modernbert-mean"])
def test_a_row_does_not_depend_on_the_others(isa, made, name, dtype):
    folder, c, _ = made(name)
    encoder = _C.Encoder(folder, dtype=dtype)
    lengths = np.random.default_rng(0).integers(1, encoder.config["max_tokens"] % 90 + 1 if encoder.config["max_tokens"] < 90 else 91, 40)
    ids, offsets, types = encoder_models.batch(c, lengths)
    together = encoder.logits(ids, offsets, types)      # about 1,800 tokens: several chunks
    for n_threads in (1, 2, 7):
        np.testing.assert_array_equal(encoder.logits(ids, offsets, types, n_threads=n_threads), together)
    parts = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    order = np.random.default_rng(1).permutation(len(parts))
    moved = encoder.logits(np.concatenate([ids[parts[i]] for i in order]), np.concatenate([[0], np.cumsum(lengths[order])]),
                           np.concatenate([types[parts[i]] for i in order]))
    np.testing.assert_array_equal(moved, together[order])
    for i in range(0, len(parts), 5):
        np.testing.assert_array_equal(encoder.logits(ids[parts[i]], [0, lengths[i]], types[parts[i]])[0], together[i])


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_near(made, name):
    folder, c, _ = made(name)
    rows = encoder_models.batch(c, LENGTHS, seed=1)
    got, want = _C.Encoder(folder, dtype="bfloat16").logits(*rows), np.load(DATA / "encoder_logits.npz")[name]
    assert 0 < np.abs(got - want).max() < 0.1 * np.abs(want).max()      # 8 bits of mantissa


@pytest.mark.parametrize("name, most", [("roberta", 88), ("xlm-roberta", 86), ("electra", 90), ("deberta-biased", 90), ("distilbert", 90), ("deberta-v3", 65536),
                                        ("modernbert", 65536)])
def test_rows_of_at_most_so_many_tokens(made, name, most):
    encoder = _C.Encoder(made(name)[0])
    assert encoder.config["max_tokens"] == most
    if most < 1000:
        assert encoder.logits(np.full(most, 5), [0, most]).shape[0] == 1
    with pytest.raises(ValueError, match=f"row 0 has {most + 1} tokens, the model reads at most {most}"):
        encoder.logits(np.full(most + 1, 5), [0, most + 1])


def test_token_types(made):
    encoder = _C.Encoder(made("deberta-v3")[0])      # has none: what a tokenizer says of pairs is not read
    np.testing.assert_array_equal(encoder.logits([5, 6, 7], [0, 3], [0, 1, 1]), encoder.logits([5, 6, 7], [0, 3]))
    with pytest.raises(ValueError, match="row 0 holds token type 1, the model has 1"):
        _C.Encoder(made("roberta")[0]).logits([5, 6], [0, 2], [0, 1])


# -- weights --

@pytest.mark.parametrize("name", FAMILIES)
def test_parameters(made, name, tmp_path):
    folder, c, w = made(name)
    params = _C.EncoderParams.read(folder)
    assert sorted(params.names) == sorted(w) and params.size == sum(x.size for x in w.values())
    assert params.config["model_type"] == c["model_type"]
    for key, value in w.items():
        assert params.shape(key) == value.shape
        np.testing.assert_array_equal(params.get(key), value)
    rows = encoder_models.batch(c, LENGTHS)
    want = _C.Encoder(folder).logits(*rows)
    np.testing.assert_array_equal(_C.Encoder.from_params(params.copy()).logits(*rows), want)
    again = encoder_models.write(tmp_path, c, {})
    params.write(again / "model.safetensors")
    np.testing.assert_array_equal(_C.Encoder(again).logits(*rows), want)


@pytest.mark.parametrize("name, extra", [
    ("roberta", ["lm_head.dense.weight", "lm_head.bias", "roberta.pooler.dense.weight", "roberta.embeddings.position_ids"]),
    ("electra", ["discriminator_predictions.dense.weight", "electra.embeddings.position_ids"]),
    ("distilbert", ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"]),
    ("deberta-v3", ["lm_predictions.lm_head.dense.weight", "mask_predictions.dense.weight", "deberta.embeddings.position_embeddings.weight", "cls.predictions.bias"]),
    ("modernbert", ["decoder.weight", "decoder.bias"]),
])
def test_heads_of_pretraining_are_not_read(made, name, extra, tmp_path):
    folder, c, w = made(name)
    rows = encoder_models.batch(c, LENGTHS)
    more = encoder_models.write(tmp_path, c, {**w, **{key: np.ones((2, 3), dtype=np.float32) for key in extra}})
    np.testing.assert_array_equal(_C.Encoder(more).logits(*rows), _C.Encoder(folder).logits(*rows))


@pytest.mark.parametrize("name", ["roberta", "electra", "distilbert", "deberta-v2", "modernbert"])
def test_bare_models_and_new_heads(made, name, tmp_path):
    """What AutoModel saves: no prefix, no head. A new head is a function of the seed alone."""
    folder, c, w = made(name)
    prefix = encoder_models.PREFIX[c["model_type"]]
    bare = encoder_models.write(tmp_path, c, {key.removeprefix(prefix): value for key, value in w.items() if key.startswith(prefix)})
    with pytest.raises(FormatError, match="is missing .a model without a classification head; give it a new one"):
        _C.Encoder(bare)
    a, b = _C.EncoderParams.read(bare, new_head=3, seed=1), _C.EncoderParams.read(bare, new_head=3, seed=1)
    dense, classifier = encoder_models.HEADS[c["model_type"]]
    for key in a.names:
        np.testing.assert_array_equal(a.get(key), b.get(key))
        if key.startswith(prefix):
            np.testing.assert_array_equal(a.get(key), w[key])
    assert a.shape(f"{classifier}.weight") == (3, 36) and 0.015 < a.get(f"{dense}.weight").std() < 0.025
    if name == "modernbert":
        np.testing.assert_array_equal(a.get("head.norm.weight"), 1)
    kept = _C.EncoderParams.read(folder, new_head=3, seed=1)
    np.testing.assert_array_equal(kept.get(f"{dense}.weight"), w[f"{dense}.weight"])
    assert np.isfinite(_C.Encoder.from_params(a).logits([5, 6], [0, 2])).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("name", ["deberta-v2", "modernbert-mean"])
def test_half_precision_files(made, name, dtype, tmp_path):
    _, c, w = made(name)
    half = encoder_models.write(tmp_path / "half", c, {})
    _C.write_safetensors(half / "model.safetensors", w, dtype=dtype)
    kept = {key: _C.TensorFile(half / "model.safetensors").read(key) for key in w}
    rows = encoder_models.batch(c, LENGTHS)
    np.testing.assert_array_equal(_C.Encoder(half).logits(*rows), _C.Encoder(encoder_models.write(tmp_path / "wide", c, kept)).logits(*rows))


def test_sharded_files(made, tmp_path):
    folder, c, w = made("deberta-v3")
    sharded = encoder_models.write(tmp_path, c, {})
    (sharded / "model.safetensors").unlink()
    names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    for i, name in enumerate(names):
        save_file(dict(list(w.items())[i::3]), str(sharded / name), metadata={"format": "pt"})
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {key: names[i % 3] for i, key in enumerate(w)}}))
    rows = encoder_models.batch(c, LENGTHS)
    np.testing.assert_array_equal(_C.Encoder(sharded).logits(*rows), _C.Encoder(folder).logits(*rows))


def test_layers_are_selected(made):
    folder, _, w = made("deberta-v2", num_hidden_layers=3)
    params = _C.EncoderParams.read(folder, layers=[0, 2])
    np.testing.assert_array_equal(params.get("deberta.encoder.layer.1.output.dense.weight"), w["deberta.encoder.layer.2.output.dense.weight"])
    folder, c, w = made("modernbert")
    rows = encoder_models.batch(c, [3, 40])
    kept = {key: w[key if ".layers." not in key else key.replace(".layers.1.", ".layers.3.")] for key in w if ".layers.2." not in key and ".layers.3." not in key}
    want = encoder_models.logits({**c, "num_hidden_layers": 2, "global_attn_every_n_layers": 1}, kept, *rows)     # layers 0 and 3 see all tokens
    params = _C.EncoderParams.read(folder, layers=[0, 3])
    np.testing.assert_allclose(_C.Encoder.from_params(params).logits(*rows), want, rtol=0, atol=2e-5)
    assert params.config["layer_types"] == ["full_attention", "full_attention"]
    for layers in ([1, 2], [0, 0]):
        with pytest.raises(ValueError, match="layer 0 of a ModernBERT has no first norm: it must be the first one kept, and no other"):
            _C.EncoderParams.read(folder, layers=layers)


# -- what is refused --

@pytest.mark.parametrize("name, changes, match", [
    ("deberta-v3", {"pos_att_type": ["c2p", "p2p"]}, "pos_att_type 'p2p' is not supported"),
    ("deberta-v3", {"pos_att_type": "c2p | P2P"}, "pos_att_type 'p2p' is not supported"),
    ("deberta-v3", {"pos_att_type": 3}, "pos_att_type must be a string or an array"),
    ("deberta-v3", {"pos_att_type": [3]}, "pos_att_type must hold strings"),
    ("deberta-v3", {"norm_rel_ebd": "rms_norm"}, "norm_rel_ebd 'rms_norm' is not supported"),
    ("deberta-v3", {"position_buckets": 1}, "position_buckets 1 is not supported"),
    ("deberta-v3", {"max_relative_positions": 9}, "position_buckets 16 is not supported: .*max_relative_positions 9"),
    ("deberta-v3", {"position_buckets": 2.5}, "position_buckets must be an integer"),
    ("deberta-v3", {"position_buckets": 32}, r"rel_embeddings.weight' has shape \(32, 36\), expected \(64, 36\)"),
    ("deberta-v3", {"relative_attention": False}, "rel_embeddings.weight' is unexpected in a DeBERTa-v2 of 2 layers"),
    ("deberta-v3", {"share_att_key": False}, "pos_key_proj.weight' is missing"),
    ("deberta-plain", {"share_att_key": True}, "pos_(key|query)_proj.* is unexpected"),
    ("deberta-v3", {"conv_kernel_size": 3}, "encoder.conv.conv.weight' is missing"),
    ("deberta-v2", {"conv_kernel_size": 4}, "conv_kernel_size 4 must be odd"),
    ("deberta-v2", {"conv_groups": 5}, "hidden_size 36 a multiple of conv_groups 5"),
    ("deberta-v2", {"conv_kernel_size": 5}, r"conv.weight' has shape \(36, 36, 3\), expected \(36, 36, 5\)"),
    ("deberta-v2", {"conv_act": "linear"}, "conv_act 'linear' is not supported"),
    ("deberta-v3", {"pooler_hidden_act": "mish"}, "pooler_hidden_act 'mish' is not supported"),
    ("deberta-v3", {"pooler_hidden_size": 35}, "pooler_hidden_size 35 is not supported"),
    ("deberta-v3", {"attention_head_size": 13}, "attention_head_size 13 is not supported"),
    ("deberta-v3", {"position_biased_input": True}, "position_embeddings.weight' is missing"),
    ("deberta-v3", {"type_vocab_size": 2}, "token_type_embeddings.weight' is missing"),
    ("deberta-v3", {"embedding_size": 20}, "word_embeddings.weight' has shape .*, expected .60, 20|embed_proj.weight' is missing"),
    ("deberta-v3", {"model_type": "deberta"}, "model_type 'deberta' is not supported"),
    ("roberta", {"is_decoder": True}, "is_decoder = true"),
    ("roberta", {"pad_token_id": 89}, "max_position_embeddings 90 leaves no position behind pad_token_id 89"),
    ("roberta", {"position_embedding_type": "relative_key_query"}, "position_embedding_type 'relative_key_query'"),
    ("electra", {"embedding_size": 36}, "embeddings_project.* is unexpected"),
    ("distilbert", {"n_heads": 5}, "dim 36 is not a multiple of n_heads 5"),
    ("distilbert", {"activation": "mish"}, "activation 'mish' is not supported"),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}}, "rope_type 'yarn' is not supported"),
    ("modernbert", {"rope_parameters": {"rope_theta": 10000}}, "rope_parameters must be an object by type of layer"),
    ("modernbert", {"rope_scaling": {"type": "linear"}}, "rope_scaling is not supported"),
    ("modernbert", {"local_rope_theta": None}, "local_rope_theta = null is not supported"),
    ("modernbert", {"global_rope_theta": 0.5}, "the rotary base of full_attention must be > 1"),
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types must name the type of each of 4 layers"),
    ("modernbert", {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "layer_types 'chunked_attention' is not supported"),
    ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling 'max' is not supported"),
    ("modernbert", {"num_attention_heads": 4}, "rotary positions need heads of an even size, got 9"),
    ("modernbert", {"head_dim": 6}, "head_dim 6 is not supported"),
    ("modernbert", {"local_attention": 1}, "local_attention"),
    ("modernbert", {"norm_bias": True}, "norm.bias' is missing"),
    ("modernbert-mean", {"attention_bias": False}, "attn.*bias' is unexpected"),
])
def test_rejects_configurations(made, name, changes, match, tmp_path):
    _, c, w = made(name)
    folder = encoder_models.write(tmp_path, {**c, **changes}, w)
    for read in (_C.Encoder, _C.EncoderParams.read):
        with pytest.raises(FormatError, match=match) as caught:
            read(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_rejects_tensors(made, name, tmp_path):
    """Each tensor in turn left out, and misshapen; and one too many."""
    _, c, w = made(name)
    folder = encoder_models.write(tmp_path, c, w)
    for key in w:
        save_file({k: v for k, v in w.items() if k != key}, str(folder / "model.safetensors"))
        with pytest.raises(FormatError, match=f"tensor '{key}' is missing"):
            _C.Encoder(folder)
        save_file({**w, key: w[key][..., None]}, str(folder / "model.safetensors"))
        with pytest.raises(FormatError, match=f"tensor '{key}' has shape"):
            _C.Encoder(folder)
    for key in ("extra.weight", next(k for k in w if ".0." in k).replace(".0.", ".9."), next(k for k in w if ".0." in k).replace(".0.", ".00.")):
        save_file({**w, key: np.ones(3, dtype=np.float32)}, str(folder / "model.safetensors"))
        with pytest.raises(FormatError, match=f"tensor '{key}' is unexpected"):
            _C.Encoder(folder)


def test_damaged_configurations_are_errors(made, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("deberta-v2", "modernbert-mean", "roberta"):
        _, c, w = made(name)
        folder = encoder_models.write(tmp_path / name, c, w)
        text = (folder / "config.json").read_bytes()
        for n in range(len(text)):
            (folder / "config.json").write_bytes(text[:n])
            with pytest.raises(FormatError):
                _C.Encoder(folder)
        for _ in range(500):        # a changed byte may leave a sane file: then it must run, or name the row
            damaged = bytearray(text)
            damaged[rng.integers(len(text))] = rng.integers(256)
            (folder / "config.json").write_bytes(damaged)
            try:
                _C.Encoder(folder).logits(np.arange(4, 30), [0, 20, 26])
            except ValueError:
                pass


# -- training --

def dropper(probabilities, seed, step):
    """Masks of each kind of place at its own probability: (hidden, attention, classifier)."""
    of = [bert_model.dropper(p, seed, step) for p in probabilities]

    def drop(x, place, row, kind, of_attention):
        which = 1 if kind == "probability" or (kind == "attention" and of_attention) else 2 if "head" in kind else 0
        return of[which](x, place, row)

    return drop


def slope(c, w, rows, dlogits, direction, drop=None, e=1e-5):
    """Of sum(dlogits * logits) along a direction {name: array}, in float64."""
    wide = {key: value.astype(np.float64) for key, value in w.items()}
    ends = [np.sum(dlogits * encoder_models.logits(c, {**wide, **{k: wide[k] + sign * e * d for k, d in direction.items()}}, *rows, drop)) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * e)


def gradients(params, w, rows, dlogits, **options):
    logits, flat, words = params.gradients(rows[0], rows[1], dlogits, rows[2], **options)
    ends = np.cumsum([w[key].size for key in params.names])
    return logits, {key: part.reshape(w[key].shape) for key, part in zip(params.names, np.split(flat, ends[:-1]), strict=True)}, words


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_finite_differences(made, name):
    """Of every parameter, in a direction of its own: (L(w + e d) - L(w - e d)) / 2 e = <gradient, d>."""
    folder, c, w = made(name, vocab_size=12)
    rows = encoder_models.batch(c, [1, 14])
    dlogits = np.random.default_rng(0).normal(size=(2, c["num_labels"]))
    _, got, words = gradients(_C.EncoderParams.read(folder), w, rows, dlogits)
    np.testing.assert_array_equal(np.flatnonzero(words), np.unique(rows[0]))
    rng = np.random.default_rng(1)
    for key, gradient in got.items():
        d = rng.normal(size=gradient.shape)
        assert np.sum(gradient * d) == pytest.approx(slope(c, w, rows, dlogits, {key: d}), abs=3e-4 * float(np.linalg.norm(gradient)) + 3e-7), key


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout(made, name):
    """Logits with the masks of each place; and the gradient, along a direction in which each parameter has its share, is that of the same masks."""
    folder, c, w = made(name, vocab_size=12)
    rows = encoder_models.batch(c, [3, 14])
    dlogits = np.random.default_rng(0).normal(size=(2, c["num_labels"]))
    options = {"seed": 7, "step": 2**33 + 5}
    logits, got, _ = gradients(_C.EncoderParams.read(folder), w, rows, dlogits, dropout=0.2, attention_dropout=0.1, classifier_dropout=0.3, **options)
    hidden, attention, classifier = (bert_model.dropper(p, **options) for p in (0.2, 0.1, 0.3))

    def drop(x, place, row, kind):
        of_attention = kind == "probability" or (kind == "attention" and name.startswith("modernbert"))
        return (attention if of_attention else classifier if "head" in kind else hidden)(x, place, row)

    np.testing.assert_allclose(logits, encoder_models.logits(c, w, *rows, drop), rtol=0, atol=2e-5)
    rng = np.random.default_rng(1)
    direction = {key: (rng.choice([-1, 1]) * g + rng.normal(size=g.shape) * np.sqrt(np.mean(g * g))) / (np.linalg.norm(g) + 1e-3) for key, g in got.items()}
    want = slope(c, w, rows, dlogits, direction, drop)
    assert sum(np.sum(g * direction[key]) for key, g in got.items()) == pytest.approx(want, abs=1e-4 * sum(float(np.linalg.norm(g)) for g in got.values()))


@pytest.mark.parametrize("name", ["deberta-v3", "deberta-v2", "deberta-plain", "electra", "modernbert", "modernbert-mean"])
def test_gradients_do_not_depend_on_threads(isa, made, name):
    folder, c, _ = made(name)
    params = _C.EncoderParams.read(folder)
    rows = encoder_models.batch(c, [80, 3, 70, 65, 1, 44])
    runs = [params.gradients(rows[0], rows[1], np.ones((6, c["num_labels"])), rows[2], dropout=0.1, seed=1, n_threads=n) for n in (1, 2, 7)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_forward_is_the_inference_forward(isa, made, name):
    folder, c, _ = made(name)
    rows = encoder_models.batch(c, LENGTHS)
    got, _, _ = _C.EncoderParams.read(folder).gradients(rows[0], rows[1], np.zeros((len(LENGTHS), c["num_labels"])), rows[2])
    np.testing.assert_allclose(got, _C.Encoder(folder).logits(*rows), rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "deberta-v3", "modernbert"])
def test_a_padding_id_inside_a_row_is_not_trained(name, tmp_path):
    """As torch's Embedding(padding_idx=): no gradient for its row, and with RoBERTa none for its position; all else as without padding."""
    pad = {"pad_token_id": 1} if name == "roberta" else {"pad_token_id": 5}
    c = encoder_models.config(name, num_labels=2, **pad)
    w = encoder_models.weights(c)
    ids, offsets, dlogits = np.array([7, 8, pad["pad_token_id"], 9, 10, 11, 6]), [0, 5, 7], np.ones((2, 2)) * [1, -0.5]

    def word_and_position(folder, **changes):
        params = _C.EncoderParams.read(encoder_models.write(folder, {**c, **changes}, w))
        flat, at, found = params.gradients(ids, offsets, dlogits)[1], 0, {}
        for key in params.names:
            found[key] = flat[at:at + np.prod(params.shape(key))].reshape(params.shape(key))
            at += found[key].size
        word = params.names[0]
        position = next((key for key in found if "position_embeddings" in key), None)
        return found.pop(word), found.pop(position) if name == "roberta" else None, found

    word, position, others = word_and_position(tmp_path / "padded")
    assert not word[pad["pad_token_id"]].any() and all(word[i].any() for i in (6, 7, 9))
    if name == "roberta":
        assert not position[1].any() and position[2].any()
        return
    whole, _, same = word_and_position(tmp_path / "plain", pad_token_id=None)
    assert whole[5].any() and np.array_equal(np.delete(whole, 5, axis=0), np.delete(word, 5, axis=0))
    assert all(np.array_equal(others[key], same[key]) for key in others)


# -- training with products of bfloat16 --

MIXED = ["bert", "electra", "distilbert", "deberta-v3", "deberta-v2", "deberta-grouped", "modernbert"]


def narrow(x):
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


def mixed_logits(monkeypatch, c, w, rows):
    """The equations in float64 with the operands of every Linear and of the convolution rounded."""
    convolution, kernel = encoder_models._convolution, "deberta.encoder.conv.conv.weight"
    with monkeypatch.context() as patch:
        patch.setattr(encoder_models, "_linear", lambda w, name, x: narrow(x) @ narrow(w[name + ".weight"]).T + w.get(name + ".bias", 0))
        patch.setattr(encoder_models, "_convolution", lambda c, w, x, place: convolution(c, {**w, kernel: narrow(w[kernel])}, narrow(x), place))
        return encoder_models.logits(c, w, *rows)


@pytest.mark.parametrize("name", MIXED)
def test_bfloat16_forward(isa, made, name, monkeypatch):
    """Rows agree to the error of float32, but for one in which a number falls to the other side of a rounding."""
    folder, c, w = made(name)
    rows = encoder_models.batch(c, [1, 2, 3, 5, 9], seed=1)
    got, _, _ = gradients(_C.EncoderParams.read(folder), w, rows, np.zeros((5, c["num_labels"])), precision="bfloat16")
    off = np.abs(got - mixed_logits(monkeypatch, c, w, rows)).max(axis=1)
    assert np.median(off) < 2e-6 and off.max() < 2e-2
    assert np.median(np.abs(got - encoder_models.logits(c, w, *rows)).max(axis=1)) > 1e-4


@pytest.mark.parametrize("name", MIXED)
def test_bfloat16_gradients_of_weights(isa, made, name):
    """A row of one token: the gradient of a Linear's weight is an outer product, of numbers of 8 bits each, so that it has 16."""
    folder, c, w = made(name)
    params, rows, dlogits = _C.EncoderParams.read(folder), encoder_models.batch(c, [1], seed=1), np.random.default_rng(0).normal(size=(1, c["num_labels"]))
    for precision in ("bfloat16", "float32"):
        _, got, _ = gradients(params, w, rows, dlogits, precision=precision)
        found = {key: not (g.view(np.uint32) & 0xFF).any() for key, g in got.items() if g.ndim > 1 and g.any() and "embeddings." not in key}
        assert len(found) > 5 and set(found.values()) == {precision == "bfloat16"}, found


def test_bfloat16_gradients_of_inputs(isa, made):
    """DistilBERT's head, a relu between two Linears: the first one's bias has the gradient of the second one's input, or 0."""
    folder, c, w = made("distilbert")
    dlogits = np.random.default_rng(0).normal(size=(1, c["num_labels"])).astype(np.float32)
    _, got, _ = gradients(_C.EncoderParams.read(folder), w, encoder_models.batch(c, [7]), dlogits, precision="bfloat16")
    g = got["pre_classifier.bias"]
    want = (narrow(dlogits) @ narrow(w["classifier.weight"]))[0]
    assert (g != 0).sum() > 5 and np.allclose(g[g != 0], want[g != 0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(g[g != 0], (dlogits @ w["classifier.weight"])[0][g != 0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", MIXED)
def test_bfloat16_gradients_are_near(isa, made, name):
    """Each tensor's within 6 % of its norm of float32's and not the same, on any number of threads to the bit; what bfloat16 has no part in, not off at all."""
    folder, c, w = made(name)
    params, rows = _C.EncoderParams.read(folder), encoder_models.batch(c, [2, 9, 33, 64], seed=1)
    dlogits = np.random.default_rng(0).normal(size=(4, c["num_labels"]))
    _, want, _ = gradients(params, w, rows, dlogits)
    _, got, _ = gradients(params, w, rows, dlogits, precision="bfloat16", n_threads=1)
    _, again, _ = gradients(params, w, rows, dlogits, precision="bfloat16", n_threads=2)
    most = max(float(np.linalg.norm(g)) for g in want.values())
    for key, g in want.items():
        off, size = float(np.linalg.norm(got[key] - g)), float(np.linalg.norm(g))
        np.testing.assert_array_equal(got[key], again[key], err_msg=key)
        if key in ("classifier.bias", "classifier.out_proj.bias"):
            assert off == 0
        elif size > 1e-4 * most:        # else its true gradient is 0, as that of a key's bias
            assert 1e-4 * size < off < 0.06 * size, (key, off / size)


def test_precision_is_one_of_two(made):
    folder, _, _ = made("bert")
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'bf16'"):
        _C.EncoderParams.read(folder).gradients([1], [0, 1], np.zeros((1, 2)), precision="bf16")
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'float16'"):
        _C.Trainer(_C.EncoderParams.read(folder), precision="float16")
