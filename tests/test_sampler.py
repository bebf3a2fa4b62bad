"""The sampler against its definition in float64: kept sets, distributions, ties, and the random numbers behind them."""
import numpy as np
import pytest

from harmaug import _C

RNG = np.random.default_rng(11)
LOGITS = {
    "peaked": RNG.normal(0, 6, 5003),
    "flat": RNG.normal(0, 0.5, 2000),
    "one block": RNG.normal(0, 3, 40),
    "two tokens": np.array([0.3, -0.2]),
    "one token": np.array([4.0]),
    "spike": np.r_[np.full(1000, -5.0) + RNG.normal(0, 1e-3, 1000), 20.0, np.full(500, -6.0) + RNG.normal(0, 1e-3, 500)],
}
FILTERS = [
    {}, {"top_k": 1}, {"top_k": 7}, {"top_k": 400}, {"top_k": 10**6}, {"top_p": 0.95}, {"top_p": 0.1}, {"top_p": 1e-9}, {"top_p": 0.999999},
    {"min_p": 0.05}, {"min_p": 1.0}, {"top_k": 50, "top_p": 0.9}, {"top_k": 50, "min_p": 0.1}, {"top_p": 0.8, "min_p": 0.02}, {"top_k": 20, "top_p": 0.7, "min_p": 0.3},
]


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """(probabilities, distance of the nearest decision from its threshold): temperature, top_k, top_p, min_p, in this order, by a full sort."""
    x = np.float32(logits).astype(np.float64) / temperature
    order = np.lexsort((np.arange(len(x)), -x))
    p = np.exp(x[order] - x.max())
    keep, margin = len(p), np.inf
    if top_k:
        keep = min(keep, top_k)
    if top_p < 1:
        mass = np.cumsum(p[:keep]) / p[:keep].sum()
        margin = np.abs(mass - top_p).min()
        keep = min(keep, int(np.searchsorted(mass, top_p)) + 1)
    if min_p > 0:
        margin = min(margin, np.abs(p / p[0] - min_p)[1:].min(initial=np.inf))
        keep = min(keep, int((p >= min_p * p[0]).sum()))
    out = np.zeros(len(p))
    out[order[:keep]] = p[:keep] / p[:keep].sum()
    return out, margin


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_keeps_what_the_definition_keeps(isa, name, options, temperature):
    want, margin = reference(LOGITS[name], temperature, **options)
    got = _C.sampler_probabilities(LOGITS[name], temperature=temperature, **options)
    kept, expected = got > 0, want.astype(np.float32) > 0
    if margin < 1e-7:       # float32 cannot tell on which side this sum lies: the sets may differ by tokens at the threshold
        assert np.abs(want[kept != expected]).sum() < 1e-6 and np.array_equal(np.sort(LOGITS[name])[::-1][:kept.sum()], np.sort(LOGITS[name][kept])[::-1])
        return
    np.testing.assert_array_equal(kept, expected)
    # p = exp((x - max) / t) in float32: relative error of the exponent times its size, 2^-24 * 40, and of the function
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-30)


def test_ties_go_to_the_lower_id(isa):
    x = np.zeros(300)
    x[[5, 70, 200]] = 1.0
    assert np.flatnonzero(_C.sampler_probabilities(x, top_k=2)).tolist() == [5, 70]
    assert np.flatnonzero(_C.sampler_probabilities(np.zeros(300), top_k=3)).tolist() == [0, 1, 2]
    assert np.flatnonzero(_C.sampler_probabilities(np.zeros(4), top_p=0.5)).tolist() == [0, 1]
    assert np.flatnonzero(_C.sampler_probabilities(np.zeros(100000), top_p=0.25)).size == 25000
    assert _C.sampler_draw(x, 0.999, temperature=0.0)[0] == 5


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_k": 8}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 1.4, "top_k": 12, "top_p": 0.8}],
                         ids=str)
def test_draws_are_the_inverse_of_the_distribution_function(options):
    """Token i takes the uniform numbers between the sums of probabilities before and after it, in id order."""
    x = np.random.default_rng(2).normal(0, 2, 700)
    p = reference(x, **options)[0]
    edge = np.r_[0, np.cumsum(p)]
    for i in np.flatnonzero(p > 1e-4)[:60]:
        width = edge[i + 1] - edge[i]
        assert _C.sampler_draw(x, edge[i] + 0.001 * width + 1e-9, **options)[0] == i
        assert _C.sampler_draw(x, edge[i] + 0.999 * width - 1e-9, **options)[0] == i
    assert _C.sampler_draw(x, 0.0, **options)[0] == np.flatnonzero(p)[0]
    assert p[_C.sampler_draw(x, 1 - 2.0 ** -53, **options)[0]] > 0


def test_frequencies_follow_the_probabilities():
    """Pearson's chi-square with fixed numbers: 20,000 draws over 12 tokens, 0.999 quantile of 11 degrees of freedom 31.3."""
    x = np.random.default_rng(3).normal(0, 1, 12)
    p = reference(x, temperature=0.8)[0]
    u = np.random.default_rng(4).random(20000)
    count = np.bincount([_C.sampler_draw(x, v, temperature=0.8)[0] for v in u], minlength=12)
    assert ((count - 20000 * p) ** 2 / (20000 * p)).sum() < 31.3


def test_logprob_is_of_the_unfiltered_model(isa):
    x = np.random.default_rng(6).normal(0, 3, 1000).astype(np.float32)
    want = x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum())
    for options in ({}, {"top_k": 3}, {"temperature": 0.0}, {"temperature": 3.0, "top_p": 0.5}):
        token, logprob = _C.sampler_draw(x, 0.4, **options)
        assert abs(logprob - want[token]) < 1e-5


def test_banned_tokens_are_never_drawn():
    x = np.full(200, -np.inf)
    x[[17, 120]] = [0.5, 0.0]
    assert np.flatnonzero(_C.sampler_probabilities(x)).tolist() == [17, 120]
    assert {_C.sampler_draw(x, u, top_p=0.99)[0] for u in np.linspace(0, 0.999, 50)} == {17, 120}


@pytest.mark.parametrize("bad", [np.full(10, np.nan), np.r_[np.zeros(70), np.nan, np.zeros(70)], np.r_[0, np.inf], np.full(4, -np.inf)])
def test_logits_that_are_no_numbers_are_an_error(isa, bad):
    with pytest.raises(ValueError, match="logits are not finite"):
        _C.sampler_draw(bad, 0.5)
    with pytest.raises(ValueError, match="logits are not finite"):
        _C.sampler_probabilities(bad, top_p=0.9)


@pytest.mark.parametrize("options, message", [
    ({"temperature": -1.0}, "temperature must be >= 0, got -1"), ({"temperature": float("nan")}, "temperature"), ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
    ({"top_p": 1.5}, "top_p"), ({"min_p": -0.1}, r"min_p must be in \[0, 1\]"), ({"top_k": -1}, "must be in 0..2"),
])
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        _C.sampler_probabilities(np.zeros(4), **options)
