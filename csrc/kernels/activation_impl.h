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
