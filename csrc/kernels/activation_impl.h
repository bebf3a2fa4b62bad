/* Activations by name. `which` is a constant wherever vf_activate is inlined. */

HA_INLINE vf
vf_activate(const ha_activation which, vf x)
{
    const vf zero = vf_set1(0.0f), one = vf_set1(1.0f);
    vf density;
    switch (which) {
    case HA_ACT_GELU:
        return vf_mul(x, vf_normal_cdf(x, &density));
    case HA_ACT_GELU_TANH: {
        const vf inner = vf_mul(vf_fma(vf_mul(vf_mul(x, x), x), vf_set1(0.044715f), x), vf_set1(0.79788456080286536f));
        return vf_mul(vf_mul(vf_set1(0.5f), x), vf_add(one, vf_tanh(inner)));
    }
    case HA_ACT_RELU:
        return vf_max(zero, x);     /* x when it is NaN */
    case HA_ACT_SILU:
        return vf_div(x, vf_add(one, vf_exp(vf_sub(zero, x))));
    default:
        return vf_tanh(x);
    }
}

/* act'(x), and act(x) in *value */
HA_INLINE vf
vf_slope(const ha_activation which, vf x, vf *value)
{
    const vf zero = vf_set1(0.0f), one = vf_set1(1.0f), half = vf_set1(0.5f);
    vf density;
    switch (which) {
    case HA_ACT_GELU: {
        const vf cdf = vf_normal_cdf(x, &density);
        *value = vf_mul(x, cdf);
        return vf_fma(x, density, cdf);
    }
    case HA_ACT_GELU_TANH: {
        const vf s = vf_mul(x, x), k = vf_set1(0.79788456080286536f);
        const vf t = vf_tanh(vf_mul(vf_fma(vf_mul(s, x), vf_set1(0.044715f), x), k));
        const vf inner = vf_mul(k, vf_fma(s, vf_set1(3 * 0.044715f), one)), share = vf_mul(half, vf_add(one, t));
        *value = vf_mul(x, share);
        return vf_fma(vf_mul(vf_mul(half, x), vf_sub(one, vf_mul(t, t))), inner, share);
    }
    case HA_ACT_RELU:
        *value = vf_max(zero, x);
        return vf_select(vf_less(zero, x), one, zero);
    case HA_ACT_SILU: {
        const vf s = vf_div(one, vf_add(one, vf_exp(vf_sub(zero, x))));
        *value = vf_mul(x, s);
        return vf_fma(*value, vf_sub(one, s), s);
    }
    default:
        *value = vf_tanh(x);
        return vf_sub(one, vf_mul(*value, *value));
    }
}

/* dx = dout * act'(x); of a gated activation act(x) * times, dtimes = dout * act(x) too. */
HA_INLINE void
slope_run(const ha_activation which, float *dx, float *dtimes, const float *dout, const float *x, const float *times, size_t n)
{
    for (size_t i = 0; i < n; i += VF_LANES) {
        vf value;
        const vf d = read_n(dout + i, n - i), slope = vf_mul(d, vf_slope(which, read_n(x + i, n - i), &value));
        write_n(dx + i, times != NULL ? vf_mul(slope, read_n(times + i, n - i)) : slope, n - i);
        if (times != NULL) {
            write_n(dtimes + i, vf_mul(d, value), n - i);
        }
    }
}

static void
activate_back(ha_activation which, float *dx, float *dtimes, const float *dout, const float *x, const float *times, size_t n)
{
    switch (which) {
    case HA_ACT_GELU: slope_run(HA_ACT_GELU, dx, dtimes, dout, x, times, n); break;
    case HA_ACT_GELU_TANH: slope_run(HA_ACT_GELU_TANH, dx, dtimes, dout, x, times, n); break;
    case HA_ACT_RELU: slope_run(HA_ACT_RELU, dx, dtimes, dout, x, times, n); break;
    case HA_ACT_SILU: slope_run(HA_ACT_SILU, dx, dtimes, dout, x, times, n); break;
    default: slope_run(HA_ACT_TANH, dx, dtimes, dout, x, times, n);
    }
}

HA_INLINE void
activate_run(const ha_activation which, float *out, const float *x, const float *times, size_t n)
{
    for (size_t i = 0; i < n; i += VF_LANES) {
        const vf a = vf_activate(which, read_n(x + i, n - i));
        write_n(out + i, times != NULL ? vf_mul(a, read_n(times + i, n - i)) : a, n - i);
    }
}

/* out (n,) = act(x) * times, or act(x) when times is NULL */
static void
activate(ha_activation which, float *out, const float *x, const float *times, size_t n)
{
    switch (which) {
    case HA_ACT_GELU: activate_run(HA_ACT_GELU, out, x, times, n); break;
    case HA_ACT_GELU_TANH: activate_run(HA_ACT_GELU_TANH, out, x, times, n); break;
    case HA_ACT_RELU: activate_run(HA_ACT_RELU, out, x, times, n); break;
    case HA_ACT_SILU: activate_run(HA_ACT_SILU, out, x, times, n); break;
    default: activate_run(HA_ACT_TANH, out, x, times, n);
    }
}

static void
activate_f32(float *out, const float *x, ha_activation which, size_t n, int n_threads)
{
    const int threads = ha_threads_for(n, ELEMENTS_GRAIN / 4, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < blocks_of(n); block++) {
        const size_t first = (size_t)block * ELEMENTS_BLOCK;
        activate(which, out + first, x + first, NULL, block_end(block, n) - first);
    }
}

static void
activate_gated_f32(float *out, size_t ldo, const float *x, size_t ldx, ha_activation which, size_t rows, size_t cols, int n_threads)
{
    const int threads = ha_threads_for(rows * cols, ELEMENTS_GRAIN / 4, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t r = 0; r < (ptrdiff_t)rows; r++) {
        const float *row = x + (size_t)r * ldx;
        activate(which, out + (size_t)r * ldo, row, row + cols, cols);
    }
}

static void
activate_backward_f32(float *dx, const float *dout, const float *x, ha_activation which, size_t n, int n_threads)
{
    const int threads = ha_threads_for(n, ELEMENTS_GRAIN / 4, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < blocks_of(n); block++) {
        const size_t first = (size_t)block * ELEMENTS_BLOCK;
        activate_back(which, dx + first, NULL, dout + first, x + first, NULL, block_end(block, n) - first);
    }
}

static void
activate_gated_backward_f32(float *dx, const float *dout, const float *x, ha_activation which, size_t rows, size_t cols, int n_threads)
{
    const int threads = ha_threads_for(rows * cols, ELEMENTS_GRAIN / 4, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t r = 0; r < (ptrdiff_t)rows; r++) {
        const size_t at = 2 * (size_t)r * cols;
        activate_back(which, dx + at, dx + at + cols, dout + (size_t)r * cols, x + at, x + at + cols, cols);
    }
}
