"""The BERT encoder against its equations in float64 and against recorded outputs of transformers; loading, saving, gradients."""
import itertools
import json
import sys
import threading
from pathlib import Path

import bert_model
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harmaug import _C, FormatError

LENGTHS = [1, 2, 3, 17, 64, 65, 80]
ODD = [{"num_hidden_layers": 1, "num_labels": 1}, {}, {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 129, "num_hidden_layers": 3, "num_labels": 5},
       {"hidden_size": 7, "num_attention_heads": 7, "intermediate_size": 1, "num_labels": 3}, {"type_vocab_size": 1, "num_attention_heads": 1}]
DATA = Path(__file__).resolve().parent / "data"


@pytest.fixture
def model(tmp_path):
    """A folder, its configuration and its weights."""
    c = bert_model.config()
    w = bert_model.weights(c)
    return bert_model.write(tmp_path / "model", c, w), c, w


# -- inference --

@pytest.mark.parametrize("odd", ODD)
def test_logits_of_the_equations(isa, odd, tmp_path):
    c = bert_model.config(**odd)
    w = bert_model.weights(c)
    rows = bert_model.batch(c, LENGTHS)
    want = bert_model.logits(c, w, *rows)
    folder = bert_model.write(tmp_path, c, w)
    got = _C.Encoder(folder).logits(*rows)
    assert got.shape == want.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(_C.Encoder.from_params(_C.EncoderParams.read(folder)).logits(*rows), got)


def test_logits_of_transformers():
    recorded = np.load(DATA / "bert_logits.npz")
    for name in sorted(k[:-len(".logits")] for k in recorded.files if k.endswith(".logits")):
        c = bert_model.config(**json.loads(str(recorded[name + ".config"])))
        params = params_of(c, bert_model.weights(c, seed=1))
        rows = bert_model.batch(c, recorded[name + ".lengths"], seed=1)
        np.testing.assert_allclose(_C.Encoder.from_params(params).logits(*rows), recorded[name + ".logits"], rtol=0, atol=2e-5)


def params_of(c, w):
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        return _C.EncoderParams.read(bert_model.write(Path(folder), c, w))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_the_others(isa, dtype, tmp_path):
    c = bert_model.config(hidden_size=48, num_attention_heads=4)
    encoder = _C.Encoder(bert_model.write(tmp_path, c, bert_model.weights(c)), dtype=dtype)
    lengths = np.random.default_rng(0).integers(1, 81, 60)
    ids, offsets, types = bert_model.batch(c, lengths)
    together = encoder.logits(ids, offsets, types)      # about 2,400 tokens: several chunks
    np.testing.assert_array_equal(encoder.logits(ids, offsets, types, n_threads=2), together)
    np.testing.assert_array_equal(encoder.logits(ids, offsets, types, n_threads=1), together)
    np.testing.assert_array_equal(encoder.logits(ids, offsets, types, n_threads=7), together)
    parts = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    alone = np.concatenate([encoder.logits(ids[p], [0, p.stop - p.start], types[p]) for p in parts])
    np.testing.assert_array_equal(alone, together)
    order = np.random.default_rng(1).permutation(60)
    moved = encoder.logits(np.concatenate([ids[parts[i]] for i in order]), np.concatenate([[0], np.cumsum(lengths[order])]),
                           np.concatenate([types[parts[i]] for i in order]))
    np.testing.assert_array_equal(moved, together[order])


def test_bfloat16_is_near(isa, model):
    folder, c, w = model
    rows = bert_model.batch(c, LENGTHS)
    encoder = _C.Encoder(folder, dtype="bfloat16")
    got, want = encoder.logits(*rows), bert_model.logits(c, w, *rows)
    assert encoder.dtype == "bfloat16"
    assert 0 < np.abs(got - want).max() < 0.15 * np.abs(want).max()     # 8 bits of mantissa through 2 layers of large random weights


def test_no_rows_and_no_types(model):
    folder, c, _ = model
    encoder = _C.Encoder(folder)
    assert encoder.logits([], [0]).shape == (0, 2)
    ids, offsets, _ = bert_model.batch(c, LENGTHS)
    np.testing.assert_array_equal(encoder.logits(ids, offsets), encoder.logits(ids, offsets, np.zeros(len(ids), dtype=bool)))
    np.testing.assert_array_equal(encoder.logits(ids.astype(np.int64), offsets.astype(np.int32)), encoder.logits(ids, offsets))


@pytest.mark.parametrize("ids, offsets, types, match", [
    ([1, 2], [0, 0, 2], None, "row 0 is empty"),
    ([1] * 81, [0, 81], None, "row 0 has 81 tokens, the model reads at most 80"),
    ([1, 60], [0, 1, 2], None, "row 1 holds id 60, outside the vocabulary of 60"),
    ([-1], [0, 1], None, "row 0 holds id -1"),
    ([1, 2], [0, 2], [0, 2], "row 0 holds token type 2"),
    ([1, 2], [0, 2], [0], "1 type_ids for 2 ids"),
    ([1, 2], [0, 3], None, "offsets must rise from 0 to the number of ids, 2"),
    ([1, 2], [0, 2, 1, 2], None, "offsets must rise"),
    ([1, 2], [1, 2], None, "offsets must rise"),
    ([1, 2], [], None, "offsets must rise"),
    ([2**40], [0, 1], None, "ids holds 1099511627776"),
    ([1], [0, 1], [-1], "type_ids holds -1"),
    ([[1]], [0, 1], None, "ids must be a vector"),
])
def test_rejects_rows(model, ids, offsets, types, match):
    encoder = _C.Encoder(model[0])
    with pytest.raises(ValueError, match=match):
        encoder.logits(np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64), types)


def test_rejects_floats(model):
    with pytest.raises(TypeError):
        _C.Encoder(model[0]).logits(np.array([1.5]), [0, 1])


def test_serves_many_threads(model):
    encoder = _C.Encoder(model[0])
    rows = bert_model.batch(model[1], LENGTHS)
    want, got = encoder.logits(*rows), [None] * 8

    def work(i):
        for _ in range(5):
            got[i] = encoder.logits(*rows)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(got))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for each in got:
        np.testing.assert_array_equal(each, want)


def test_references_are_returned(model):
    folder, c, _w = model
    encoder, params = _C.Encoder(folder), _C.EncoderParams.read(folder)
    ids, offsets, types = bert_model.batch(c, [3, 4])
    dlogits = np.ones((2, 2), dtype=np.float32)
    before = [sys.getrefcount(x) for x in (ids, offsets, types, dlogits, encoder, params)]
    for _ in range(50):
        encoder.logits(ids, offsets, types)
        params.gradients(ids, offsets, dlogits, types)
        params.copy()
        for call in (lambda: encoder.logits(ids, offsets[:-1], types), lambda: encoder.logits(ids, offsets, types[:1]),
                     lambda: params.gradients(ids, offsets, dlogits[:1], types), lambda: params.set("classifier.bias", ids),
                     lambda: params.gradients(ids, offsets, dlogits, types, dropout=1)):
            with pytest.raises(ValueError):
                call()
    assert [sys.getrefcount(x) for x in (ids, offsets, types, dlogits, encoder, params)] == before


# -- loading --

def test_names_without_prefix_and_old_names(model, tmp_path):
    folder, c, w = model
    rows = bert_model.batch(c, LENGTHS)
    want = _C.Encoder(folder).logits(*rows)
    bare = {name.removeprefix("bert."): value for name, value in w.items()}
    bare["embeddings.position_ids"] = np.arange(80).reshape(1, 80)
    bare["cls.predictions.bias"] = np.zeros(60, dtype=np.float32)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in bare.items()}
    for i, tensors in enumerate((bare, old)):
        np.testing.assert_array_equal(_C.Encoder(bert_model.write(tmp_path / str(i), c, tensors)).logits(*rows), want)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_files(model, tmp_path, dtype):
    _folder, c, w = model
    half = tmp_path / "half"
    bert_model.write(half, c, w)
    _C.write_safetensors(half / "model.safetensors", w, dtype=dtype)
    kept = {name: _C.TensorFile(half / "model.safetensors").read(name) for name in w}
    rows = bert_model.batch(c, LENGTHS)
    got = _C.Encoder(half).logits(*rows)
    np.testing.assert_array_equal(got, _C.Encoder(bert_model.write(tmp_path / "wide", c, kept)).logits(*rows))
    np.testing.assert_array_equal(got, _C.Encoder.from_params(_C.EncoderParams.read(half)).logits(*rows))


def test_num_labels_and_defaults(tmp_path):
    c = bert_model.config(num_labels=3)
    folder = bert_model.write(tmp_path, c, bert_model.weights(c))
    assert _C.EncoderParams.read(folder).config["num_labels"] == 3
    (folder / "config.json").write_text(json.dumps({**c, "num_labels": 7, "id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert _C.Encoder(folder).config["num_labels"] == 3
    (folder / "config.json").write_text(json.dumps({k: v for k, v in c.items() if k not in ("num_labels", "hidden_act", "layer_norm_eps", "position_embedding_type")}))
    with pytest.raises(FormatError, match=r"'classifier.weight' has shape \(3, 33\), expected \(2, 33\)"):
        _C.Encoder(folder)


@pytest.mark.parametrize("changes, match", [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
    ({"model_type": None}, "model_type is missing"),
    ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ({"is_decoder": True}, "is_decoder = true"),
    ({"num_attention_heads": 5}, "hidden_size 33 is not a multiple of num_attention_heads 5"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"hidden_size": 2**40}, "hidden_size"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"vocab_size": "many"}, "vocab_size"),
    ({"layer_norm_eps": 0}, "layer_norm_eps must be in"),
    ({"id2label": {}}, "id2label"),
    ({"id2label": ["safe", "unsafe"]}, "id2label"),
    ({"num_hidden_layers": 3}, "'bert.encoder.layer.2.attention.self.query.weight' is missing"),
    ({"num_hidden_layers": 1}, "'bert.encoder.layer.1.*' is unexpected in a BERT of 1 layers"),
    ({"intermediate_size": 51}, r"'bert.encoder.layer.0.intermediate.dense.weight' has shape \(50, 33\), expected \(51, 33\)"),
    ({"max_position_embeddings": 2**18}, "position_embeddings.weight' has shape"),
])
def test_rejects_configurations(model, changes, match):
    folder, c, _ = model
    (folder / "config.json").write_text(json.dumps({**c, **changes}))
    for read in (_C.Encoder, _C.EncoderParams.read):
        with pytest.raises(FormatError, match=match) as caught:
            read(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("change, match", [
    (lambda w: w.pop("bert.encoder.layer.1.output.dense.bias"), "'bert.encoder.layer.1.output.dense.bias' is missing"),
    (lambda w: w.pop("bert.pooler.dense.weight"), "'bert.pooler.dense.weight' is missing"),
    (lambda w: w.pop("classifier.weight"), "'classifier.weight' is missing .a model without a classification head"),
    (lambda w: w.update({"bert.encoder.layer.0.adapter.weight": np.zeros(3, dtype=np.float32)}), "adapter.weight' is unexpected"),
    (lambda w: w.update({"bert.encoder.layer.00.output.dense.bias": np.zeros(33, dtype=np.float32)}), "is unexpected"),
    (lambda w: w.update({"embeddings.LayerNorm.bias": np.zeros(33, dtype=np.float32)}), "is there twice"),
    (lambda w: w.update({"classifier.bias": np.zeros((2, 1), dtype=np.float32)}), r"has shape \(2, 1\), expected \(2\)"),
    (lambda w: w.update({"classifier.bias": np.zeros(2, dtype=np.int64)}), "I64"),
    (lambda w: w.update({"bert.embeddings.word_embeddings.weight": np.zeros((60, 33), dtype=np.int8)}), "I8"),
])
def test_rejects_tensors(model, change, match):
    folder, _c, w = model
    change(w)
    save_file(w, str(folder / "model.safetensors"))
    for read in (_C.Encoder, _C.EncoderParams.read):
        with pytest.raises(FormatError, match=match):
            read(folder)


def test_rejects_files(model, tmp_path):
    folder, _, _ = model
    with pytest.raises(OSError, match="config.json"):
        _C.Encoder(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match="pytorch_model.bin is a pickle and is not read; convert it"):
        _C.Encoder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(OSError):
        _C.Encoder(folder)
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or int8, got 'f8'"):
        _C.Encoder(folder, dtype="f8")
    with pytest.raises(ValueError):
        _C.Encoder(str(folder) + "\0")
    with pytest.raises(ValueError, match="path is longer"):
        _C.Encoder("a" * 5000)


def test_damaged_files_are_errors(model):
    folder, _c, _ = model
    text = (folder / "config.json").read_bytes()
    for n in range(len(text)):
        (folder / "config.json").write_bytes(text[:n])
        with pytest.raises(FormatError):
            _C.Encoder(folder)
    rng = np.random.default_rng(0)
    for _ in range(500):        # a changed byte may leave a sane file: then it must run, or name the row
        damaged = bytearray(text)
        damaged[rng.integers(len(text))] = rng.integers(256)
        (folder / "config.json").write_bytes(damaged)
        try:
            _C.Encoder(folder).logits([1, 2], [0, 2])
        except ValueError:
            pass
    (folder / "config.json").write_bytes(text)
    data = (folder / "model.safetensors").read_bytes()
    for n in rng.integers(len(data), size=200):
        (folder / "model.safetensors").write_bytes(data[:n])
        with pytest.raises(FormatError):
            _C.EncoderParams.read(folder)


# -- parameters --

def test_parameters_by_name(model):
    folder, c, w = model
    params = _C.EncoderParams.read(folder)
    assert params.names == [name for name, _ in bert_model.shapes(c)]
    assert params.size == sum(x.size for x in w.values())
    assert {k: v for k, v in params.config.items() if k in bert_model.SHAPE} == bert_model.SHAPE
    for name, value in w.items():
        assert params.shape(name) == value.shape
        np.testing.assert_array_equal(params.get(name), value)
    other = params.copy()
    other.set("classifier.weight", np.arange(66).reshape(2, 33))
    np.testing.assert_array_equal(other.get("classifier.weight"), np.arange(66).reshape(2, 33))
    np.testing.assert_array_equal(params.get("classifier.weight"), w["classifier.weight"])
    for name in ("classifier", "bert.encoder.layer.2.output.dense.bias", "embeddings.LayerNorm.bias", "", "a\0b"):
        with pytest.raises(KeyError):
            params.get(name)
    with pytest.raises(ValueError, match=r"'classifier.bias' must have shape \(2,\), got \(3,\)"):
        params.set("classifier.bias", np.zeros(3))
    with pytest.raises(ValueError, match=r"must have shape \(2, 33\), got \(66,\)"):
        params.set("classifier.weight", np.zeros(66))
    with pytest.raises(TypeError):
        params.get(3)
    with pytest.raises(TypeError):
        _C.EncoderParams()
    with pytest.raises(TypeError, match="EncoderParams"):
        _C.Encoder.from_params("x")


def test_low_rank_update(model):
    params = _C.EncoderParams.read(model[0])
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    rng = np.random.default_rng(0)
    b, a, before = rng.normal(size=(50, 4)), rng.normal(size=(4, 33)), params.get(name)
    params.add_low_rank(name, b, a, 0.25)
    np.testing.assert_allclose(params.get(name), before + 0.25 * b @ a, rtol=0, atol=4e-6)
    with pytest.raises(ValueError, match=r"B of '.*' must have shape \(50, rank\)"):
        params.add_low_rank(name, a, b, 1)
    with pytest.raises(ValueError, match=r"A of: '.*' must have shape \(4, 33\)"):
        params.add_low_rank(name, b, a[:3], 1)
    with pytest.raises(ValueError, match="is a vector"):
        params.add_low_rank("classifier.bias", b, a, 1)


def test_written_files_are_read_back(model, tmp_path):
    folder, _c, w = model
    params = _C.EncoderParams.read(folder)
    params.write(tmp_path / "all.safetensors")
    back = load_file(str(tmp_path / "all.safetensors"))
    assert back.keys() == w.keys()
    for name, value in w.items():
        np.testing.assert_array_equal(back[name], value)
    params.write(tmp_path / "half.safetensors", dtype="float16")
    half = load_file(str(tmp_path / "half.safetensors"))
    for name, value in w.items():
        np.testing.assert_array_equal(half[name], value.astype(np.float16))
    with pytest.raises(ValueError, match="float32, float16, bfloat16 or int8, got 'int4'"):
        params.write(tmp_path / "x", dtype="int4")
    with pytest.raises(OSError):
        params.write(tmp_path / "none" / "x")


def test_layers_are_selected(model, tmp_path):
    folder, _c, w = model
    params = _C.EncoderParams.read(folder, layers=[1, 1, 0])
    assert params.config["num_hidden_layers"] == 3
    for new, old in enumerate([1, 1, 0]):
        name = "bert.encoder.layer.{}.output.dense.weight"
        np.testing.assert_array_equal(params.get(name.format(new)), w[name.format(old)])
    with pytest.raises(ValueError, match="the model has layers 0 to 1, got 2"):
        _C.EncoderParams.read(folder, layers=[0, 2])
    with pytest.raises(ValueError, match="1 to 512 layers must be kept"):
        _C.EncoderParams.read(folder, layers=[])
    with pytest.raises((ValueError, OverflowError)):
        _C.EncoderParams.read(folder, layers=[-1])


def test_new_head(model):
    folder, _c, w = model
    a, b = (_C.EncoderParams.read(folder, new_head=3, seed=5, layers=layers) for layers in (None, [1]))
    assert a.shape("classifier.weight") == (3, 33)
    np.testing.assert_array_equal(a.get("classifier.weight"), b.get("classifier.weight"))     # of the seed alone
    np.testing.assert_array_equal(a.get("classifier.bias"), 0)
    np.testing.assert_array_equal(a.get("bert.pooler.dense.weight"), w["bert.pooler.dense.weight"])
    assert np.any(a.get("classifier.weight") != _C.EncoderParams.read(folder, new_head=3, seed=6).get("classifier.weight"))
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"):
        del w[name]
    save_file(w, str(folder / "model.safetensors"))
    pooler = _C.EncoderParams.read(folder, new_head=1).get("bert.pooler.dense.weight")
    assert abs(pooler.mean()) < 0.02 * 4 / 33 and 0.018 < pooler.std() < 0.022     # normal(0, 0.02), 1,089 draws
    assert np.abs(np.sort(pooler.ravel())[[272, 816]] / 0.02).mean() == pytest.approx(0.674, abs=0.15)
    with pytest.raises(ValueError, match="new_head must be from 0 to 4096"):
        _C.EncoderParams.read(folder, new_head=-1)


# -- training --

def gradients(c, params, rows, dlogits, **options):
    logits, flat, words = params.gradients(rows[0], rows[1], dlogits, rows[2], **options)
    ends = np.cumsum([np.prod(shape, dtype=int) for _, shape in bert_model.shapes(c)])
    return logits, {name: part.reshape(shape) for (name, shape), part in zip(bert_model.shapes(c), np.split(flat, ends[:-1]), strict=True)}, words


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("odd", [{}, {"num_hidden_layers": 1, "num_labels": 3}, {"hidden_size": 16, "num_attention_heads": 2}])
def test_gradients_of_finite_differences(odd, dropout):
    """In each parameter's own direction: (L(w + e d) - L(w - e d)) / 2 e = <gradient, d>, L in float64."""
    c = bert_model.config(vocab_size=12, max_position_embeddings=9, **odd)
    w = bert_model.weights(c)
    rows = bert_model.batch(c, [1, 5, 9])
    dlogits = np.random.default_rng(0).normal(size=(3, c["num_labels"]))
    logits, got, words = gradients(c, params_of(c, w), rows, dlogits, dropout=dropout, seed=7, step=2**33 + 5)
    drop = bert_model.dropper(dropout, 7, 2**33 + 5)
    np.testing.assert_allclose(logits, bert_model.logits(c, w, *rows, drop), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(np.flatnonzero(words), np.unique(rows[0]))
    assert not got["bert.embeddings.word_embeddings.weight"][~words].any()
    wide = {name: value.astype(np.float64) for name, value in w.items()}
    rng = np.random.default_rng(1)
    for name in w:
        direction, e = rng.normal(size=w[name].shape), 1e-5
        ends = [np.sum(dlogits * bert_model.logits(c, {**wide, name: wide[name] + sign * e * direction}, *rows, drop)) for sign in (1, -1)]
        want = (ends[0] - ends[1]) / (2 * e)
        assert np.sum(got[name] * direction) == pytest.approx(want, rel=2e-4, abs=2e-4), name


def test_gradients_do_not_depend_on_threads(isa):
    c = bert_model.config(hidden_size=48, num_attention_heads=4, intermediate_size=200)
    params = params_of(c, bert_model.weights(c))
    rows = bert_model.batch(c, [80, 3, 70, 65, 1, 44])
    dlogits = np.ones((6, 2))
    want = params.gradients(rows[0], rows[1], dlogits, rows[2], dropout=0.1, seed=1, n_threads=1)
    for n_threads in (2, 3, 7):
        for a, b in zip(want, params.gradients(rows[0], rows[1], dlogits, rows[2], dropout=0.1, seed=1, n_threads=n_threads), strict=True):
            np.testing.assert_array_equal(a, b)


def test_training_forward_is_the_inference_forward(model):
    folder, c, _ = model
    rows = bert_model.batch(c, LENGTHS)
    logits, _, _ = _C.EncoderParams.read(folder).gradients(rows[0], rows[1], np.zeros((7, 2)), rows[2])
    np.testing.assert_allclose(logits, _C.Encoder(folder).logits(*rows), rtol=0, atol=2e-6)


def test_rejects_training_batches(model):
    params = _C.EncoderParams.read(model[0])
    assert params.gradients([], [0], np.zeros((0, 2)))[0].shape == (0, 2)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        params.gradients([1], [0, 1], np.zeros((1, 2)), dropout=1.0)
    with pytest.raises(ValueError, match="row 0 holds id 99"):
        params.gradients([99], [0, 1], np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"'dlogits' must have shape \(1, 2\), got \(2, 1\)"):
        params.gradients([1], [0, 1], np.zeros((2, 1)))
