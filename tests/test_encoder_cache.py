"""Packed weights in the cache folder: used, and never trusted."""
import json
import os
import shutil
import stat
import time

import encoder_models
import numpy as np
import pytest

from harmaug import _C, models

ROWS = np.arange(60, dtype=np.int32) % 40 + 5, np.array([0, 1, 20, 60])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model whose weights take more than 16 MB, old enough that a change of it shows."""
    c = encoder_models.config("deberta-v3", hidden_size=320, intermediate_size=1280, num_attention_heads=5, num_hidden_layers=7)
    folder = encoder_models.write(tmp_path_factory.mktemp("model"), c, encoder_models.weights(c, seed=1))
    time.sleep(2.1)
    return folder, _C.Encoder(folder).logits(*ROWS)


def opened(folder, cache, **options):
    encoder = _C.Encoder(folder, cache=cache, **options)
    return encoder.logits(*ROWS), encoder.cache_note


@pytest.fixture
def cached(made, tmp_path):
    logits, note = opened(made[0], tmp_path)
    assert note == ""
    np.testing.assert_array_equal(logits, made[1])
    (file,) = tmp_path.iterdir()
    return file


def test_used(made, cached, tmp_path):
    assert stat.S_IMODE(cached.stat().st_mode) == 0o600
    before = cached.stat().st_ino
    logits, note = opened(made[0], tmp_path)
    assert note == "" and cached.stat().st_ino == before
    np.testing.assert_array_equal(logits, made[1])


def test_mapped_weights_give_the_bits_of_packed_ones(isa, made, tmp_path):
    for dtype in ("float32", "bfloat16"):
        want = _C.Encoder(made[0], dtype=dtype).logits(*ROWS)
        for _ in range(2):
            logits, note = opened(made[0], tmp_path, dtype=dtype)
            assert note == ""
            np.testing.assert_array_equal(logits, want)
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_is_told_and_mended(made, cached, tmp_path):
    whole = cached.read_bytes()
    rng = np.random.default_rng(0)
    places = [0, 7, 8, 15, 16, 20, 24, 31, 32, 63, 64, 4095, 4096, len(whole) - 1, *rng.integers(0, len(whole), 6).tolist()]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        cached.write_bytes(data)
        logits, note = opened(made[0], tmp_path)
        assert str(cached) in note and "not used" in note, place
        np.testing.assert_array_equal(logits, made[1])
        assert cached.read_bytes() == whole
    for length in (0, 1, 100, 4095, 4096, 5000, len(whole) - 1, len(whole) + 1):
        cached.write_bytes((whole + b"x")[:length])
        logits, note = opened(made[0], tmp_path)
        assert "its size is wrong" in note, length
        np.testing.assert_array_equal(logits, made[1])
    assert opened(made[0], tmp_path)[1] == ""


def test_a_file_that_others_may_write_is_not_used(made, cached, tmp_path):
    cached.chmod(0o620)
    assert "not this user's alone" in opened(made[0], tmp_path)[1]
    assert opened(made[0], tmp_path)[1] == ""


def test_a_model_that_changed(made, tmp_path):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(made[0], folder)
    cache.mkdir()
    time.sleep(2.1)
    opened(folder, cache)
    (file,) = cache.iterdir()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-2}))
    logits, note = opened(folder, cache)
    assert "has changed" in note and np.abs(logits - made[1]).max() > 1e-4
    weights = folder / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-4:] = np.float32(3).tobytes()
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))      # the same size and time: the inode tells
    logits, note = opened(folder, cache)
    assert "has changed" in note
    np.testing.assert_array_equal(logits, _C.Encoder(folder).logits(*ROWS))
    assert list(cache.iterdir()) == [file]


def test_a_model_written_moments_ago_is_not_kept(made, tmp_path):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(made[0], folder)
    cache.mkdir()
    assert opened(folder, cache)[1] == "" and not list(cache.iterdir())


def test_a_folder_that_is_not_there(made, tmp_path):
    logits, note = opened(made[0], tmp_path / "none")
    assert str(tmp_path / "none") in note
    np.testing.assert_array_equal(logits, made[1])


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path / "cache"))
    place = models.cache_place("weights")
    assert place == tmp_path / "cache/weights" / _C.build_info()["cpu_isa"]
    assert all(stat.S_IMODE(part.stat().st_mode) == 0o700 for part in (place, place.parent, place.parent.parent))
    for nowhere in ("", "/proc/no/such/place"):
        monkeypatch.setenv("HARMAUG_CACHE", nowhere)
        assert models.cache_place("weights") is None
