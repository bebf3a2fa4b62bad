/* Softmax over rows, and its parts for attention over a cache. */

static float
max_f32(const float *x, size_t n)
{
    vf best = vf_set1(x[0]);
    size_t i;
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        best = vf_max(best, vf_load(x + i));
    }
    if (i < n) {
        best = vf_max(best, vf_load_n(x + i, n - i, x[0]));
    }
    return vf_max_lanes(best);
}

static double
exp_sum_f32(float *out, const float *x, float max, float scale, size_t n)
{
    const vf vmax = vf_set1(max), vscale = vf_set1(scale);
    vf acc = vf_set1(0.0f);
    size_t i;
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        const vf e = vf_exp(vf_mul(vscale, vf_sub(vf_load(x + i), vmax)));
        vf_store(out + i, e);
        acc = vf_add(acc, e);
    }
    if (i < n) {
        const vf e = vf_exp(vf_mul(vscale, vf_sub(vf_load_n(x + i, n - i, max), vmax)));
        vf_store_n(out + i, e, n - i);
        acc = vf_add(acc, vf_keep_n(e, n - i));
    }
    float lanes[VF_LANES];
    vf_store(lanes, acc);
    double sum = 0;
    for (i = 0; i < VF_LANES; i++) {
        sum += lanes[i];
    }
    return sum;
}

static void
softmax_f32(float *x, size_t rows, size_t cols, size_t ld, float scale)
{
    for (size_t r = 0; r < rows; r++, x += ld) {
        const double sum = exp_sum_f32(x, x, max_f32(x, cols), scale, cols);
        const vf inverse = vf_set1((float)(1.0 / sum));
        for (size_t i = 0; i < cols; i += VF_LANES) {
            write_n(x + i, vf_mul(read_n(x + i, cols - i), inverse), cols - i);
        }
    }
}

static void
softmax_backward_f32(float *dx, const float *dp, const float *p, size_t rows, size_t cols, size_t ld, float scale)
{
    const vf vscale = vf_set1(scale);
    for (size_t r = 0; r < rows; r++, dx += ld, dp += ld, p += ld) {
        vf acc = vf_set1(0.0f);
        for (size_t i = 0; i < cols; i += VF_LANES) {
            acc = vf_fma(read_n(p + i, cols - i), read_n(dp + i, cols - i), acc);
        }
        const vf dot = vf_set1(vf_sum(acc));
        for (size_t i = 0; i < cols; i += VF_LANES) {
            const vf d = vf_sub(read_n(dp + i, cols - i), dot);
            write_n(dx + i, vf_mul(vf_mul(vscale, read_n(p + i, cols - i)), d), cols - i);
        }
    }
}
