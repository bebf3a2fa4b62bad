/* Sums and updates of a training step. */

#define SUM_BLOCK 4096          /* elements summed in float32 lanes before float64 takes over */
#define SUM_PARTS 256           /* partial sums, whatever the thread count */
#define ADAMW_GRAIN 16384

static double
sum_squares_f32(const float *x, size_t n, int n_threads)
{
    double parts[SUM_PARTS];
    const size_t blocks = (n + SUM_BLOCK - 1) / SUM_BLOCK;
    const size_t part = (blocks + SUM_PARTS - 1) / SUM_PARTS * SUM_BLOCK;     /* elements a part, from n alone */
    const ptrdiff_t n_parts = part > 0 ? (ptrdiff_t)((n + part - 1) / part) : 0;
    const int threads = ha_threads_for(n, NORM_GRAIN * 4, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t p = 0; p < n_parts; p++) {
        const size_t first = (size_t)p * part, end = n - first < part ? n : first + part;
        double sum = 0;
        for (size_t b = first; b < end; b += SUM_BLOCK) {
            const size_t stop = end - b < SUM_BLOCK ? end : b + SUM_BLOCK;
            vf acc = vf_set1(0.0f);
            for (size_t i = b; i < stop; i += VF_LANES) {
                const vf v = read_n(x + i, stop - i);
                acc = vf_fma(v, v, acc);
            }
            float lanes[VF_LANES];
            vf_store(lanes, acc);
            for (size_t i = 0; i < VF_LANES; i++) {
                sum += lanes[i];
            }
        }
        parts[p] = sum;
    }
    double sum = 0;
    for (ptrdiff_t p = 0; p < n_parts; p++) {
        sum += parts[p];
    }
    return sum;
}

static void
adamw_f32(float *w, const float *g, float *m, float *v, size_t n, float lr, float beta1, float beta2, float eps,
          float weight_decay, float correction1, float correction2, float grad_scale, int n_threads)
{
    const vf keep = vf_set1(1.0f - lr * weight_decay), veps = vf_set1(eps), scale = vf_set1(grad_scale);
    const vf step = vf_set1(-lr / correction1), root = vf_set1(1.0f / sqrtf(correction2));
    const vf b1 = vf_set1(beta1), c1 = vf_set1(1.0f - beta1), b2 = vf_set1(beta2), c2 = vf_set1(1.0f - beta2);
    const int threads = ha_threads_for(n, ADAMW_GRAIN, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < blocks_of(n); block++) {
        const size_t end = block_end(block, n);
        for (size_t i = (size_t)block * ELEMENTS_BLOCK; i < end; i += VF_LANES) {
            const size_t left = end - i;
            const vf grad = vf_mul(read_n(g + i, left), scale);
            const vf m1 = vf_fma(b1, read_n(m + i, left), vf_mul(c1, grad));
            const vf v1 = vf_fma(b2, read_n(v + i, left), vf_mul(c2, vf_mul(grad, grad)));
            const vf denominator = vf_fma(vf_sqrt(v1), root, veps);
            const vf w1 = vf_fma(step, vf_div(m1, denominator), vf_mul(read_n(w + i, left), keep));
            write_n(m + i, m1, left);
            write_n(v + i, v1, left);
            write_n(w + i, w1, left);
        }
    }
}
