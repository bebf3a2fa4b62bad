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
    {"typical_p": 0.9}, {"typical_p": 0.2}, {"typical_p": 1e-9}, {"typical_p": 0.99999}, {"top_k": 40, "typical_p": 0.7}, {"top_p": 0.9, "min_p": 0.01, "typical_p": 0.6},
    {"min_p": 0.05}, {"min_p": 1.0}, {"top_k": 50, "top_p": 0.9}, {"top_k": 50, "min_p": 0.1}, {"top_p": 0.8, "min_p": 0.02}, {"top_k": 20, "top_p": 0.7, "min_p": 0.3},
]


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """(probabilities, distance of the nearest decision from its threshold): the filters in this order, by a full sort."""
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
    if typical_p < 1:
        q = out[order[:keep]]
        log_q = np.log(np.maximum(q, 1e-300))
        far = np.abs(-log_q + (q * log_q).sum())
        near = np.argsort(far, kind="stable")
        mass = np.cumsum(q[near])
        last = min(int(np.searchsorted(mass, typical_p)), keep - 1)
        others = far[np.abs(far - far[near[last]]) > 0]
        margin = min(margin, np.abs(mass - typical_p).min(), np.abs(others - far[near[last]]).min(initial=np.inf) * 1e-2)
        q = np.where(far <= far[near[last]], q, 0)
        out[order[:keep]] = q / q.sum()
    return out, margin


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_keeps_what_the_definition_keeps(isa, name, options, temperature):
    want, margin = reference(LOGITS[name], temperature, **options)
    got = _C.sampler_probabilities(LOGITS[name], temperature=temperature, **options)
    kept, expected = got > 0, want.astype(np.float32) > 0
    if margin < 1e-7 and "typical_p" in options:        # float32 cannot tell on which side this sum lies, or which of two is nearer to the entropy
        assert (kept != expected).sum() <= 0.01 * len(kept) + 1
        return
    if margin < 1e-7:       # the sets may differ by tokens at the threshold
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
    ({"typical_p": 0.0}, r"typical_p must be in \(0, 1\]"), ({"repetition_penalty": 0.0}, "repetition_penalty must be > 0"),
    ({"presence_penalty": float("inf")}, "presence_penalty and frequency_penalty must be finite"), ({"ids": [4]}, "ids: id 4 lies outside the vocabulary of 4"),
    ({"prompt": [-1]}, "id -1 is no token id"), ({"banned": [0, 1, 2, 3]}, "no token can come next: every one is banned"), ({"top_p": 1.5}, "top_p"), ({"min_p": -0.1}, r"min_p must be in \[0, 1\]"), ({"top_k": -1}, "must be in 0..2"),
])
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        _C.sampler_probabilities(np.zeros(4), **options)


def penalised(logits, prompt=(), ids=(), banned=(), repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0):
    """The definition, one token at a time."""
    x = np.float32(logits).astype(np.float64)
    for i in sorted({*prompt, *ids}):
        x[i] = x[i] * repetition_penalty if x[i] < 0 else x[i] / repetition_penalty
    for i in sorted(set(ids)):
        x[i] -= frequency_penalty * list(ids).count(i) + presence_penalty
    x[list(banned)] = -np.inf
    return x


@pytest.mark.parametrize("penalties", [
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"presence_penalty": 0.8}, {"frequency_penalty": 0.4}, {"frequency_penalty": -0.6},
    {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}, {},
], ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 30, "top_p": 0.9}, {"typical_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.0}], ids=str)
def test_penalties_and_bans(isa, penalties, options):
    rng = np.random.default_rng(12)
    logits = rng.normal(0, 3, 500)
    best = np.argsort(-logits)
    prompt, ids, banned = best[[0, 3, 9, 300]].tolist() * 2, best[[1, 3, 3, 2, 3, 400, 1]].tolist(), best[[5, 0, 3, 5, 480]].tolist()
    for history in ({"prompt": prompt}, {"ids": ids}, {"prompt": prompt, "ids": ids, "banned": banned}, {"banned": banned}):
        x = penalised(logits, **history, **penalties)
        got = _C.sampler_probabilities(logits, **history, **penalties, **options)
        if options.get("temperature") == 0:
            assert np.flatnonzero(got).tolist() == [int(np.argmax(x))]
            continue
        want, margin = reference(x, **options)
        if margin > 1e-6:
            np.testing.assert_array_equal(got > 0, want > 1e-30)
            np.testing.assert_allclose(got, want, rtol=3e-5, atol=1e-30)
        token, logprob = _C.sampler_draw(logits, 0.3, **history, **penalties, **options)
        plain = np.float32(logits).astype(np.float64)
        assert abs(logprob - (plain[token] - np.log(np.exp(plain).sum()))) < 1e-5       # of the model, not of the penalties


def test_one_maximum_under_penalty():
    """The block maxima follow what penalties do to them."""
    for n in (1, 64, 65, 200):
        x = np.zeros(n)
        x[n // 2] = 5.0
        got = _C.sampler_probabilities(x, ids=[n // 2], presence_penalty=6.0, top_k=1)
        assert got.argmax() == (0 if n > 1 else n // 2)
        assert _C.sampler_draw(x, 0.5, prompt=[n - 1], repetition_penalty=1e6, temperature=0.0)[0] == n // 2
        assert _C.sampler_draw(x, 0.5, ids=[n - 1], presence_penalty=-9.0, temperature=0.0)[0] == n - 1
