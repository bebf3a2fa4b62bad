/* Reading, writing and elementary functions over vf. */

/* The vector at p of which n >= 1 elements remain; the lanes past them are 0. */
HA_INLINE vf
read_n(const float *p, size_t n)
{
    return n >= VF_LANES ? vf_load(p) : vf_load_n(p, n, 0.0f);
}

HA_INLINE void
write_n(float *p, vf a, size_t n)
{
    if (n >= VF_LANES) {
        vf_store(p, a);
    }
    else {
        vf_store_n(p, a, n);
    }
}

/* exp(x), relative error below 2 ulp where the result is normal; gradual underflow, infinity above 88.73, NaN for NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7, whose remainder is 5e-9. ln 2 is split so that n times its first part is exact. */
HA_INLINE vf
vf_exp(vf x)
{
    x = vf_min(vf_set1(90.0f), vf_max(vf_set1(-105.0f), x));
    const vf n = vf_round(vf_mul(x, vf_set1(0x1.715476p+0f)));
    vf r = vf_fma(n, vf_set1(-0x1.63p-1f), x);
    r = vf_fma(n, vf_set1(0x1.bd0106p-13f), r);
    vf p = vf_set1(1.0f / 5040);
    p = vf_fma(p, r, vf_set1(1.0f / 720));
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, vf_mul(r, r), r);
    return vf_scale2(vf_add(p, vf_set1(1.0f)), n);
}

/* Phi(x), the normal distribution function, and *density, its derivative. With z = |x| / sqrt 2, Phi(-|x|) = erfc(z) / 2 and
 * erfc(z) = exp(-z^2) (a1 t + ... + a5 t^5), t = 1 / (1 + p z), |error| <= 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26; Hastings 1955). */
HA_INLINE vf
vf_normal_cdf(vf x, vf *density)
{
    const vf ax = vf_abs(x);
    const vf e = vf_exp(vf_mul(vf_mul(x, x), vf_set1(-0.5f)));
    const vf t = vf_div(vf_set1(1.0f), vf_fma(ax, vf_set1(0.3275911f * 0.70710678118654752f), vf_set1(1.0f)));
    vf p = vf_set1(0.5f * 1.061405429f);
    p = vf_fma(p, t, vf_set1(0.5f * -1.453152027f));
    p = vf_fma(p, t, vf_set1(0.5f * 1.421413741f));
    p = vf_fma(p, t, vf_set1(0.5f * -0.284496736f));
    p = vf_fma(p, t, vf_set1(0.5f * 0.254829592f));
    const vf lower = vf_mul(vf_mul(p, t), e);
    *density = vf_mul(e, vf_set1(0.39894228040143268f));    /* 1 / sqrt(2 pi) */
    return vf_select(vf_less(x, vf_set1(0.0f)), lower, vf_sub(vf_set1(1.0f), lower));
}

/* tanh: for |x| < 0.55 its continued fraction x / (1 + x^2 / (3 + x^2 / (5 + x^2 / (7 + x^2 / 9)))), beyond 1 - 2 / (exp(2|x|) + 1). */
HA_INLINE vf
vf_tanh(vf x)
{
    const vf ax = vf_abs(x), s = vf_mul(x, x), one = vf_set1(1.0f);
    /* the fraction with its denominators cleared: x (945 + 105 s + s^2) / (945 + 420 s + 15 s^2) */
    const vf top = vf_fma(vf_add(s, vf_set1(105.0f)), s, vf_set1(945.0f));
    const vf bottom = vf_fma(vf_fma(s, vf_set1(15.0f), vf_set1(420.0f)), s, vf_set1(945.0f));
    const vf small = vf_mul(x, vf_div(top, bottom));
    const vf e = vf_exp(vf_add(ax, ax));
    const vf large = vf_sub(one, vf_div(vf_set1(2.0f), vf_add(e, one)));
    return vf_select(vf_less(ax, vf_set1(0.55f)), small, vf_copysign(large, x));
}
