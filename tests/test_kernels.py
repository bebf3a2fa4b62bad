"""Matrix products through the binding: against NumPy in float64, same bits in any batch and on any thread count."""
import sys

import numpy as np
import pytest

from harmaug import _C

EPS = 2.0 ** -24


def bfloat16(x):
    """x rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def check(got, a, b, bias=0.0):
    """|error| of a float32 sum of k products is at most (k + 2) eps sum |a b| (Higham 2002, section 3.1)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = (a.shape[1] + 4) * EPS * (np.abs(a) @ np.abs(b) + np.abs(bias)) + 1e-37
    assert got.dtype == np.float32 and np.all(np.abs(got - (a @ b + bias)) <= bound)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 64, 5), (15, 33, 385), (64, 65, 17), (1, 200, 769), (600, 40, 31)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear(isa, dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    x, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k), n))
    linear = _C.Linear(w, bias, dtype=dtype)
    y = linear(x, n_threads=1)
    if dtype == "bfloat16":
        w = bfloat16(w)
        if isa == "avx512bf16":
            x_used = bfloat16(x)
        else:
            x_used = x
        check(y, x_used, w.T, bias)
    else:
        check(y, x, w.T, bias)
    np.testing.assert_array_equal(y, linear(x, n_threads=2))
    for row in range(0, m, 1 + m // 7):
        np.testing.assert_array_equal(y[row], linear(x[row:row + 1])[0])
    np.testing.assert_array_equal(y[m // 2:], linear(x[m // 2:]))


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 9, 800), (32, 32, 32), (130, 70, 64)])
def test_matmul_of_any_view(isa, shape):
    m, n, k = shape
    rng = np.random.default_rng(m)
    a = rng.normal(size=(2 * m, 3 * k)).astype(np.float32)
    b = rng.normal(size=(2 * n, k)).astype(np.float32)
    for view_a in (a[:m, :k], a[::2, ::3], a[m - 1::-1, :k], np.asfortranarray(a[:m, :k])):
        for view_b in (b[:n].T, b[::2].T, b[:n].T.copy(), b[n - 1::-1, ::-1].T):
            got = _C.matmul(view_a, view_b, n_threads=1)
            check(got, view_a, view_b)
            np.testing.assert_array_equal(got, _C.matmul(view_a, view_b, n_threads=2))


def test_no_rows_no_columns_no_products(isa):
    assert _C.matmul(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)
    np.testing.assert_array_equal(_C.matmul(np.ones((2, 0)), np.ones((0, 3))), np.zeros((2, 3)))
    for dtype in ("float32", "bfloat16"):
        assert _C.Linear(np.ones((0, 3)), dtype=dtype)(np.ones((4, 3))).shape == (4, 0)
        np.testing.assert_array_equal(_C.Linear(np.ones((2, 0)), [1, 2], dtype=dtype)(np.ones((3, 0))), [[1, 2]] * 3)


def test_a_weight_keeps_its_instruction_set():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(70, 50)).astype(np.float32), rng.normal(size=(3, 50)).astype(np.float32)
    usable = _C.build_info()["cpu_isa_usable"]
    try:
        for packed_by in usable:
            _C.set_cpu_isa(packed_by)
            linear = _C.Linear(w, dtype="bfloat16")
            before = linear(x)
            for isa in usable:
                _C.set_cpu_isa(isa)
                np.testing.assert_array_equal(linear(x), before)
    finally:
        _C.set_cpu_isa(None)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: _C.Linear(np.ones(3)), "weight must have 2 axes, got 1"),
    (lambda: _C.Linear(np.ones((2, 3)), np.ones(3)), r"bias must have shape \(2,\)"),
    (lambda: _C.Linear(np.ones((2, 3)), dtype="int4"), "dtype must be 'float32', 'bfloat16', 'int8', 'q8' or 'q4', got 'int4'"),
    (lambda: _C.Linear(np.ones((2, 3)))(np.ones((2, 4))), r"x must have shape \(rows, 3\)"),
    (lambda: _C.matmul(np.ones((2, 3)), np.ones((2, 3))), "a has 3 columns and b 2 rows"),
    (lambda: _C.matmul(np.ones(3), np.ones((3, 3))), "a must have 2 axes, got 1"),
    (lambda: _C.set_cpu_isa("z80"), "instruction set 'z80' is unknown"),
])
def test_rejects(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_references_are_returned():
    weight, bias, x = np.ones((5, 4), np.float32), np.ones(5, np.float32), np.ones((2, 4), np.float32)
    counts = [sys.getrefcount(o) for o in (weight, bias, x)]
    for _ in range(200):
        _C.Linear(weight, bias)(x)
        _C.matmul(x, weight.T)
        for bad in (lambda: _C.Linear(weight, x), lambda: _C.Linear(weight)(weight.T), lambda: _C.matmul(weight, weight)):
            with pytest.raises(ValueError):
                bad()
    assert [sys.getrefcount(o) for o in (weight, bias, x)] == counts
