"""Weights of 8 and 4 bits in groups of 32: products against NumPy, decoders against the equations, files that keep their own groups, and memory."""
import subprocess
import sys

import gguf
import numpy as np
import pytest
from tiny_llama import Tiny, forward, weights, write_folder, write_gguf

from harmaug import _C

GROUP = 32
Q = gguf.GGMLQuantizationType
IDS = np.random.default_rng(5).integers(0, Tiny().vocab, 70).tolist()
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def grouped(x):
    """x (rows, k) as (rows, groups, 32), zeros past its end."""
    rows, k = x.shape
    return np.pad(x, ((0, 0), (0, -k % GROUP))).reshape(rows, -1, GROUP)


def rounded(x):
    """Rows of x as every product takes them: 8 bits, a scale for each group."""
    g = grouped(x.astype(np.float32))
    most = np.abs(g).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return (np.rint(g * inverse) * (most / np.float32(127)).astype(np.float64)).reshape(len(x), -1)[:, :x.shape[1]]


def rounded_weight(w):
    """Rows of w in 8 bits: scales of float16."""
    g = grouped(w)
    scale = (np.abs(g).max(-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.clip(np.rint(g * inverse), -127, 127) * scale.astype(np.float64)).reshape(len(w), -1)[:, :w.shape[1]]


def held(linear, k):
    """The weight that a Linear holds: rows of x with a single 127 are not rounded."""
    return (linear(127 * np.eye(k, dtype=np.float32)).astype(np.float64) / 127).T


def assert_mostly_equal(got, want):
    """Rows of logits: an input near the middle between two steps falls to either side where sums differ by a rounding, and all behind it differs then."""
    error = np.abs(np.subtract(got, want)).max(-1) / np.abs(want).max(-1)
    assert (error < 2e-5).mean() > 0.6 and error.max() < 0.05


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 64, 5), (15, 33, 385), (64, 65, 17), (1, 200, 769), (600, 40, 32), (7, 16, 96)])
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_products(isa, dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    x, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k), n))
    x[::2, :min(k, 9):3] *= 200
    w[::3] += 2                                             # rows whose elements are of one sign
    linear = _C.Linear(w, bias, dtype=dtype)
    y, kept = linear(x, n_threads=1), held(_C.Linear(w, dtype=dtype), k)
    if dtype == "q8":
        np.testing.assert_allclose(kept, rounded_weight(w), rtol=1e-6, atol=1e-9)
    want, size = rounded(x) @ kept.T + bias, np.abs(rounded(x)) @ np.abs(kept).T
    assert np.all(np.abs(y - want) <= 4e-6 * (size + np.abs(rounded(x)) @ np.full_like(kept.T, np.abs(w).max()) + np.abs(bias)))
    np.testing.assert_array_equal(y, linear(x, n_threads=2))
    for row in range(0, m, 1 + m // 7):
        np.testing.assert_array_equal(y[row], linear(x[row:row + 1])[0])


def test_four_bits_are_well_chosen():
    """No group is further from its weights than between its least and its largest element, as ggml rounds; all together are nearer by a tenth."""
    w = np.random.default_rng(3).normal(size=(64, 256)).astype(np.float32)
    w[0, :GROUP], w[1, :GROUP], w[2, 5] = 0, -0.75, 30      # nothing, one number, one far from the others
    plain = gguf.quants.dequantize(gguf.quants.quantize(w, Q.Q4_1), Q.Q4_1)
    ours, theirs = (np.square(grouped(v - w)).sum(-1) for v in (held(_C.Linear(w, dtype="q4"), 256), plain))
    assert np.all(ours <= theirs * 1.001 + 1e-9) and ours.sum() < 0.9 * theirs.sum()


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_extremes(isa, dtype):
    w = np.random.default_rng(0).normal(size=(17, 64)).astype(np.float32)
    linear = _C.Linear(w, dtype=dtype)
    np.testing.assert_array_equal(linear(np.zeros((2, 64))), np.zeros((2, 17)))
    assert np.all(np.abs(linear(np.full((1, 64), 1e30)) / 1e30 - w.sum(1)) < 10)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((3, 64), np.float32)
        x[1, 40] = bad
        np.testing.assert_array_equal(np.isnan(linear(x)), np.repeat([[False], [True], [False]], 17, 1))
        v = w.copy()
        v[3, 7] = bad if np.isnan(bad) else 1e6                 # beyond float16
        assert np.isnan(_C.Linear(v, dtype=dtype)(np.ones((1, 64)))[0, 3])
    ends = np.tile(np.array([1, -1], np.float32), (16, 32))     # all products of one sign and of the largest size
    np.testing.assert_allclose(_C.Linear(ends, dtype=dtype)(ends)[0], np.full(16, 64), rtol=1e-3)
    assert _C.Linear(np.ones((0, 3)), dtype=dtype)(np.ones((4, 3))).shape == (4, 0)
    np.testing.assert_array_equal(_C.Linear(np.ones((2, 0)), [1, 2], dtype=dtype)(np.ones((3, 0))), [[1, 2]] * 3)


@pytest.mark.parametrize(("dtype", "kind"), [("int8", Q.Q8_0), ("int4", Q.Q4_0), ("int4", Q.Q4_1)], ids=lambda v: getattr(v, "name", v))
def test_files_keep_their_groups(tmp_path, isa, dtype, kind):
    """A decoder is what the equations say of the file's own values, with the inputs of its matrices rounded; the head keeps 8 bits."""
    c = Tiny(hidden=64, inner=96)
    w = write_gguf(tmp_path / "m.gguf", c, weights(c), types=dict.fromkeys(MATRICES, kind) | {"lm_head.weight": Q.Q8_0})
    lm = _C.CausalLM(tmp_path / "m.gguf", dtype=dtype)
    assert lm.dtype == dtype
    assert_mostly_equal([lm.logits([i])[0] for i in IDS[:30]], [forward(c, w, [i], rounded)[0] for i in IDS[:30]])
    got = lm.logits(IDS)
    np.testing.assert_array_equal(got, _C.CausalLM(tmp_path / "m.gguf", dtype=dtype, n_threads=2).logits(IDS))


@pytest.mark.parametrize(("dtype", "share", "bound"), [("int8", 0.27, 0.05), ("int4", 0.18, 0.45)])
def test_rounded_decoders_are_near(tmp_path, isa, dtype, share, bound):
    c = Tiny(tied=True, layers=2, inner=256)
    folder = write_folder(tmp_path, c, weights(c))
    lm, exact = _C.CausalLM(folder, dtype=dtype), _C.CausalLM(folder, dtype="float32")
    assert lm.weight_bytes < share * exact.weight_bytes
    got, want = lm.logits(IDS), exact.logits(IDS)
    assert np.sqrt(np.square(got - want).mean()) < bound * np.sqrt(np.square(want).mean())
    np.testing.assert_array_equal(got[:33], lm.logits(IDS[:33]))


def test_instruction_sets_agree(tmp_path):
    c = Tiny()
    folder, found = write_folder(tmp_path, c, weights(c)), {}
    try:
        for name in _C.build_info()["cpu_isa_usable"]:
            _C.set_cpu_isa(name)
            for dtype in ("int8", "int4"):
                lm = _C.CausalLM(folder, dtype=dtype)
                found.setdefault(dtype, []).append([lm.logits([i])[0] for i in IDS[:30]])
    finally:
        _C.set_cpu_isa(None)
    for logits in found.values():
        for other in logits:
            assert_mostly_equal(other, logits[0])


PEAK = """
import sys
from harmaug import _C
lm = _C.CausalLM(sys.argv[1], dtype=sys.argv[2], n_threads=2)
run = _C.GenerationRun(lm, None, batch_size=32, max_new_tokens=5, top_p=0.9)
run.add([i % 1000 for i in range(100)], n=40)
while not run.idle:
    run.step()
c = lm.config
kv = 2 * 4 * c["num_hidden_layers"] * c["num_key_value_heads"] * c["head_dim"] * (128 + 32 * 32)
peak = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
print(peak, lm.weight_bytes, kv)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_peak_memory(tmp_path_factory, dtype):
    """Weights in their format, keys and values, and 100 MB for everything else, of which the interpreter takes half: neither the file nor float32 copies."""
    path = tmp_path_factory.getbasetemp() / "peak.gguf"
    if not path.exists():
        c = Tiny(vocab=16000, hidden=512, layers=5, heads=8, kv_heads=8, head_dim=64, inner=1408, context=512)
        names = dict.fromkeys(MATRICES, Q.F16) | {"lm_head.weight": Q.F16, "model.embed_tokens.weight": Q.F16}
        w = weights(Tiny(**{**c.__dict__, "layers": 1}))
        w |= {name.replace(".0.", f".{i}."): value for name, value in w.items() if ".0." in name for i in range(1, c.layers)}
        write_gguf(path, c, w, types=names, vocabulary=False)
    out = subprocess.run([sys.executable, "-c", PEAK, path, dtype], capture_output=True, text=True, check=True).stdout
    peak, weight_bytes, kv = map(int, out.split())
    assert path.stat().st_size > 6e7 and weight_bytes > (9e7 if dtype == "float32" else 1.5e7)
    assert peak <= weight_bytes + kv + 100e6
