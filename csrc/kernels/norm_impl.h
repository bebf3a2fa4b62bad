/* Layer and root mean square normalization. */

#define NORM_GRAIN 16384        /* elements a thread, below which starting a thread costs more */
#define NORM_ROWS 256           /* rows whose statistics the backward pass holds at once */

typedef struct norm_stats {
    float mean, rstd;
} norm_stats;

#define NORM_CHAINS 4           /* independent sums: one would wait for every addition */

/* sum (x[i] - shift)^power over the row, power 1 or 2 */
HA_INLINE float
row_sum(const float *x, size_t cols, float shift, const int power)
{
    const vf vshift = vf_set1(shift);
    vf acc[NORM_CHAINS];
    for (size_t c = 0; c < NORM_CHAINS; c++) {
        acc[c] = vf_set1(0.0f);
    }
    size_t i = 0;
    for (; i + NORM_CHAINS * VF_LANES <= cols; i += NORM_CHAINS * VF_LANES) {
#pragma GCC unroll 4
        for (size_t c = 0; c < NORM_CHAINS; c++) {
            const vf d = vf_sub(vf_load(x + i + c * VF_LANES), vshift);
            acc[c] = power == 1 ? vf_add(acc[c], d) : vf_fma(d, d, acc[c]);
        }
    }
    for (size_t c = 0; i < cols; i += VF_LANES, c++) {
        const vf v = i + VF_LANES <= cols ? vf_load(x + i) : vf_load_n(x + i, cols - i, shift);
        const vf d = vf_sub(v, vshift);
        acc[c] = power == 1 ? vf_add(acc[c], d) : vf_fma(d, d, acc[c]);
    }
    return vf_sum(vf_add(vf_add(acc[0], acc[1]), vf_add(acc[2], acc[3])));
}

static norm_stats
layer_norm_stats(const float *x, size_t cols, float eps)
{
    const float mean = row_sum(x, cols, 0.0f, 1) / (float)cols;
    return (norm_stats){mean, 1.0f / sqrtf(row_sum(x, cols, mean, 2) / (float)cols + eps)};
}

static void
layer_norm_row(float *out, const float *x, const float *weight, const float *bias, size_t cols, float eps)
{
    const norm_stats stats = layer_norm_stats(x, cols, eps);
    const vf mean = vf_set1(stats.mean), rstd = vf_set1(stats.rstd);
    for (size_t i = 0; i < cols; i += VF_LANES) {
        const vf n = vf_mul(vf_sub(read_n(x + i, cols - i), mean), rstd);
        const vf w = weight != NULL ? read_n(weight + i, cols - i) : vf_set1(1.0f);
        const vf b = bias != NULL ? read_n(bias + i, cols - i) : vf_set1(0.0f);
        write_n(out + i, vf_fma(n, w, b), cols - i);
    }
}

static void
layer_norm_f32(float *out, const float *x, const float *weight, const float *bias,
               size_t rows, size_t cols, float eps, int n_threads)
{
    const int n = ha_threads_for(rows * cols, NORM_GRAIN, n_threads);
    (void)n;
    HA_PARALLEL_FOR(n)
    for (ptrdiff_t r = 0; r < (ptrdiff_t)rows; r++) {
        layer_norm_row(out + (size_t)r * cols, x + (size_t)r * cols, weight, bias, cols, eps);
    }
}

static void
rms_norm_f32(float *out, const float *x, const float *weight, size_t rows, size_t cols, float eps, int n_threads)
{
    const int n = ha_threads_for(rows * cols, NORM_GRAIN, n_threads);
    (void)n;
    HA_PARALLEL_FOR(n)
    for (ptrdiff_t r = 0; r < (ptrdiff_t)rows; r++) {
        const float *row = x + (size_t)r * cols;
        const vf scale = vf_set1(1.0f / sqrtf(row_sum(row, cols, 0.0f, 2) / (float)cols + eps));
        for (size_t i = 0; i < cols; i += VF_LANES) {
            const vf v = vf_mul(read_n(row + i, cols - i), scale);
            write_n(out + (size_t)r * cols + i, vf_mul(v, read_n(weight + i, cols - i)), cols - i);
        }
    }
}

/* With n = (x - mean) rstd and g = dout weight: dx = rstd (g - mean(g) - n mean(g n)), the derivative of Ba et al., eq. 4. */
static void
layer_norm_backward_row(float *dx, const float *dout, const float *x, const float *weight, size_t cols, norm_stats stats)
{
    const vf mean = vf_set1(stats.mean), rstd = vf_set1(stats.rstd), one = vf_set1(1.0f);
    vf sum_g = vf_set1(0.0f), sum_gn = vf_set1(0.0f);
    for (size_t i = 0; i < cols; i += VF_LANES) {
        const vf w = weight != NULL ? read_n(weight + i, cols - i) : one;
        const vf g = vf_mul(read_n(dout + i, cols - i), w);
        sum_g = vf_add(sum_g, g);
        sum_gn = vf_fma(g, vf_mul(vf_sub(read_n(x + i, cols - i), mean), rstd), sum_gn);
    }
    const vf mean_g = vf_set1(vf_sum(sum_g) / (float)cols), minus_gn = vf_set1(-vf_sum(sum_gn) / (float)cols);
    for (size_t i = 0; i < cols; i += VF_LANES) {
        const vf w = weight != NULL ? read_n(weight + i, cols - i) : one;
        const vf g = vf_mul(read_n(dout + i, cols - i), w);
        const vf n = vf_mul(vf_sub(read_n(x + i, cols - i), mean), rstd);
        write_n(dx + i, vf_mul(rstd, vf_fma(n, minus_gn, vf_sub(g, mean_g))), cols - i);
    }
}

/* One vector of columns, over the rows of a block in their order: no thread ever shares a column. */
static void
layer_norm_backward_columns(float *dweight, float *dbias, const float *dout, const float *x, const norm_stats *stats,
                            size_t rows, size_t cols, size_t left)
{
    vf sum_w = vf_set1(0.0f), sum_b = vf_set1(0.0f);
    for (size_t r = 0; r < rows; r++) {
        const vf d = read_n(dout + r * cols, left);
        const vf n = vf_mul(vf_sub(read_n(x + r * cols, left), vf_set1(stats[r].mean)), vf_set1(stats[r].rstd));
        sum_w = vf_fma(d, n, sum_w);
        sum_b = vf_add(sum_b, d);
    }
    if (dweight != NULL) {
        write_n(dweight, vf_add(read_n(dweight, left), sum_w), left);
    }
    if (dbias != NULL) {
        write_n(dbias, vf_add(read_n(dbias, left), sum_b), left);
    }
}

static void
layer_norm_backward_f32(float *dx, float *dweight, float *dbias, const float *dout, const float *x,
                        const float *weight, size_t rows, size_t cols, float eps, int n_threads)
{
    norm_stats stats[NORM_ROWS];
    const ptrdiff_t column_groups = (ptrdiff_t)((cols + VF_LANES - 1) / VF_LANES);
    for (size_t first = 0; first < rows; first += NORM_ROWS) {
        const size_t count = rows - first < NORM_ROWS ? rows - first : NORM_ROWS;
        const float *x0 = x + first * cols, *dout0 = dout + first * cols;
        const int n = ha_threads_for(count * cols, NORM_GRAIN, n_threads);
        (void)n;
        HA_PARALLEL_FOR(n)
        for (ptrdiff_t r = 0; r < (ptrdiff_t)count; r++) {
            stats[r] = layer_norm_stats(x0 + (size_t)r * cols, cols, eps);
        }
        if (dweight != NULL || dbias != NULL) {
            HA_PARALLEL_FOR(n)
            for (ptrdiff_t g = 0; g < column_groups; g++) {
                const size_t c = (size_t)g * VF_LANES;
                layer_norm_backward_columns(dweight != NULL ? dweight + c : NULL, dbias != NULL ? dbias + c : NULL,
                                            dout0 + c, x0 + c, stats, count, cols, cols - c);
            }
        }
        HA_PARALLEL_FOR(n)
        for (ptrdiff_t r = 0; r < (ptrdiff_t)count; r++) {
            const size_t at = (size_t)r * cols;
            layer_norm_backward_row(dx + first * cols + at, dout0 + at, x0 + at, weight, cols, stats[r]);
        }
    }
}
