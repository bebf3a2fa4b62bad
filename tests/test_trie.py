"""The trie of csrc/tokenizer against a dict of bytes."""
import ctypes
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from sizes import some

CSRC = Path(__file__).parents[1] / "csrc"
CC = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    target = tmp_path_factory.mktemp("trie") / "trie.so"
    sources = [Path(__file__).parent / "c/trie_shim.c", CSRC / "tokenizer/trie.c", CSRC / "core/status.c"]
    subprocess.run([*CC, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{CSRC}", *sources, "-o", target], check=True)
    lib = ctypes.CDLL(str(target))
    lib.shim_build.restype = ctypes.c_void_p
    for name in ("shim_units", "shim_longest", "shim_prefixes"):
        getattr(lib, name).restype = ctypes.c_size_t
    return lib


class Trie:
    def __init__(self, lib, keys):
        self.lib, self.keys = lib, {key: i for i, key in enumerate(keys)}
        message = ctypes.create_string_buffer(512)
        ends = np.cumsum([len(k) for k in keys], dtype=np.uint64)
        self.at = ctypes.c_void_p(lib.shim_build(b"".join(keys), ends.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(keys)), message))
        if not self.at:
            raise ValueError(message.value.decode(errors="replace"))
        self.longest_key = max(map(len, keys), default=0)

    def __del__(self):
        if self.at:
            self.lib.shim_free(self.at)

    def prefixes(self, text):
        out = np.empty((len(text) + 1, 2), np.int64)
        n = self.lib.shim_prefixes(self.at, text, ctypes.c_size_t(len(text)), out.ctypes.data_as(ctypes.c_void_p))
        return [tuple(row) for row in out[:n].tolist()]

    def longest(self, text):
        value = ctypes.c_int32(-1)
        return self.lib.shim_longest(self.at, text, ctypes.c_size_t(len(text)), ctypes.byref(value)), value.value

    def check(self, texts):
        assert self.lib.shim_check(self.at)
        for text in texts:
            expected = [(n, self.keys[text[:n]]) for n in range(1, min(len(text), self.longest_key) + 1) if text[:n] in self.keys]
            assert self.prefixes(text) == expected, text
            assert self.longest(text) == (expected[-1] if expected else (0, -1)), text


def random_keys(rng, n, alphabet, longest):
    return sorted({bytes(rng.choice(alphabet, rng.integers(1, longest + 1)).astype(np.uint8)) for _ in range(n)}, key=lambda k: (k[::-1], k))


BYTES = bytes(range(256))


@pytest.mark.parametrize("keys", [
    [], [b"\0"], [b"\xff"], [b"a"], [b"abc"], [b"\0\0\0", b"\0"], [b"abc", b"ab", b"a", b"abcd"], [b"x" * n for n in range(1, 400)],
    [bytes([b]) for b in BYTES], [bytes([b]) for b in BYTES[::-1]], [bytes([a, b]) for a in BYTES for b in BYTES], [bytes([b]) + b"tail" for b in BYTES],
    [bytes([b]) for b in BYTES[:254]], [bytes([b]) for b in BYTES[:255]], [b"q" + bytes([b]) for b in BYTES[1:]] + [b"q"], [b"\1" * some(70_000, 20_000)],
], ids=lambda keys: f"{len(keys)} keys")
def test_shapes(lib, keys):
    trie = Trie(lib, keys)
    trie.check([*keys[:3000], *(k + b"\0" for k in keys[:300]), *(k[:-1] for k in keys[:300]), *(bytes([b]) for b in BYTES), b"", BYTES, BYTES[::-1]])


@pytest.mark.parametrize(("alphabet", "longest"), [(256, 3), (256, 12), (2, 14), (7, 9), (1, 200), (96, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_random_keys(lib, alphabet, longest, seed):
    rng = np.random.default_rng([seed, alphabet, longest])
    letters = rng.permutation(256)[:alphabet]
    for n in (1, 5, 200, 4000):
        keys = random_keys(rng, n, letters, longest)
        texts = random_keys(rng, 500, letters, longest + 4) + random_keys(rng, 200, 256, longest)
        Trie(lib, keys).check([*keys[:1000], *(k + t for k, t in zip(keys, texts, strict=False)), *texts])


def test_large_vocabulary(lib):
    """Many words; the array is nearly full."""
    n = some(128_000, 32_000)
    rng = np.random.default_rng(5)
    parts = random_keys(rng, 3000, 1 + rng.permutation(255)[:60], 5)
    keys = list(dict.fromkeys(b"".join(parts[i] for i in rng.zipf(1.3, rng.integers(1, 5)) % len(parts)) for _ in range(4 * n)))[:n]
    assert len(keys) == n
    trie = Trie(lib, keys)
    nodes = len({key[:n] for key in keys for n in range(1, len(key) + 1)}) + 1
    assert lib.shim_units(trie.at) < 1.1 * nodes + 256
    trie.check([*keys[::10], *(a + b for a, b in zip(keys[:3000], keys[3000:6000], strict=True)), *random_keys(rng, 3000, 256, 8)])


def test_refused(lib):
    with pytest.raises(ValueError, match="empty"):
        Trie(lib, [b"a", b""])
    with pytest.raises(ValueError, match="both matched as 'abc'"):
        Trie(lib, [b"abc", b"ab", b"x", b"abc"])
    with pytest.raises(ValueError, match="both matched"):
        Trie(lib, [b"z" * 5000, b"z" * 5000])
    with pytest.raises(ValueError, match="more than 16777216 nodes"):
        Trie(lib, [b"y" * (1 << 24)])
