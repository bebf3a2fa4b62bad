/* Elementwise kernels: threads take blocks of ELEMENTS_BLOCK, so that a block's tail is the array's tail. */

#define ELEMENTS_BLOCK 8192
#define ELEMENTS_GRAIN 32768    /* elements a thread, below which starting a thread costs more */

static ptrdiff_t
blocks_of(size_t n)
{
    return (ptrdiff_t)((n + ELEMENTS_BLOCK - 1) / ELEMENTS_BLOCK);
}

static size_t
block_end(ptrdiff_t block, size_t n)
{
    const size_t end = ((size_t)block + 1) * ELEMENTS_BLOCK;
    return end < n ? end : n;
}

static void
add_f32(float *out, const float *a, const float *b, size_t n, int n_threads)
{
    const int threads = ha_threads_for(n, ELEMENTS_GRAIN, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < blocks_of(n); block++) {
        const size_t end = block_end(block, n);
        for (size_t i = (size_t)block * ELEMENTS_BLOCK; i < end; i += VF_LANES) {
            write_n(out + i, vf_add(read_n(a + i, end - i), read_n(b + i, end - i)), end - i);
        }
    }
}

static void
silu_mul_f32(float *out, const float *gate, const float *up, size_t n, int n_threads)
{
    const int threads = ha_threads_for(n, ELEMENTS_GRAIN / 4, n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < blocks_of(n); block++) {
        const size_t end = block_end(block, n);
        for (size_t i = (size_t)block * ELEMENTS_BLOCK; i < end; i += VF_LANES) {
            const vf g = read_n(gate + i, end - i);
            const vf d = vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_set1(0.0f), g)));
            write_n(out + i, vf_mul(vf_div(g, d), read_n(up + i, end - i)), end - i);
        }
    }
}
