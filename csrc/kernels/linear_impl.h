/* y = x W^T + bias over a weight packed once: panels [k][GEMM_NR] of the register tile, all of k for one panel, then the next. */

#define LINEAR_ROWS 504         /* rows of x packed at once: bounds the scratch */

static size_t
weight_bytes(ha_weight_format format)
{
    return format == HA_WEIGHT_BF16 ? sizeof(uint16_t) : sizeof(float);
}

static size_t
linear_packed_bytes(ha_weight_format format, size_t n, size_t k)
{
    return round_up(n, GEMM_NR) * k * weight_bytes(format);
}

static void
linear_pack(void *packed, ha_weight_format format, size_t n, size_t k, size_t first, size_t count, const float *w, size_t ldw)
{
    (void)n;
    for (size_t j0 = 0; j0 < count; j0 += GEMM_NR) {
        const size_t cols = count - j0 < GEMM_NR ? count - j0 : GEMM_NR;
        const size_t at = (first + j0) * k;
        if (format == HA_WEIGHT_F32) {
            pack_b((float *)packed + at, w + j0 * ldw, 1, (ptrdiff_t)ldw, k, cols);
            continue;
        }
        uint16_t *panel = (uint16_t *)packed + at;
        for (size_t p = 0; p < k; p++) {
            float row[GEMM_NR] = {0};
            for (size_t j = 0; j < cols; j++) {
                row[j] = w[(j0 + j) * ldw + p];
            }
            f32_to_bf16(panel + p * GEMM_NR, row, GEMM_NR);
        }
    }
}

static size_t
linear_scratch_bytes(ha_weight_format format, size_t m, size_t n, size_t k, int n_threads)
{
    (void)format, (void)n, (void)n_threads;
    return m > 1 ? (m < LINEAR_ROWS ? m : LINEAR_ROWS) * k * sizeof(float) + 64 : 0;
}

typedef struct linear_run {
    float *y;
    size_t ldy;
    const float *x;
    size_t ldx;
    const void *packed;
    ha_weight_format format;
    const float *bias;
    size_t m, n, k;
    float *packed_x;
    task_counter counter;
} linear_run;

/* Row tiles of the chunk that starts at row m0, for one panel. A tile's rows lie in packed_x as [k][rows]. */
static void
linear_tile_task(const linear_run *run, size_t m0, size_t rows_here, size_t tiles, size_t panel)
{
    const size_t col = panel * GEMM_NR, block = gemm_block(run->k);
    const tile_fn *tile = run->format == HA_WEIGHT_BF16 ? tiles_bf16 : tiles_f32;
    const char *w = (const char *)run->packed + col * run->k * weight_bytes(run->format);
    tile_out out = {.ldc = run->ldy, .cols = run->n - col < GEMM_NR ? run->n - col : GEMM_NR, .alpha = 1.0f};
    size_t k0 = 0;
    do {
        const size_t kc = run->k - k0 < block ? run->k - k0 : block;
        out.beta = k0 == 0 ? 0.0f : 1.0f;
        out.bias = k0 == 0 && run->bias != NULL ? run->bias + col : NULL;
        for (size_t t = 0; t < tiles; t++) {
            const size_t first = tile_start(t, tiles, rows_here), rows = tile_start(t + 1, tiles, rows_here) - first;
            out.c = run->y + (m0 + first) * run->ldy + col;
            tile[rows - 1](kc, run->packed_x + first * run->k + k0 * rows, w + k0 * GEMM_NR * weight_bytes(run->format), &out);
        }
        k0 += kc;
    } while (k0 < run->k);
}

static void
linear_body(void *arg, int thread, int n_threads)
{
    linear_run *run = arg;
    const size_t panels = (run->n + GEMM_NR - 1) / GEMM_NR;
    (void)thread;
    size_t base = 0;
    for (size_t m0 = 0; m0 < run->m; m0 += LINEAR_ROWS) {
        const size_t rows_here = run->m - m0 < LINEAR_ROWS ? run->m - m0 : LINEAR_ROWS;
        const size_t tiles = (rows_here + GEMM_MR - 1) / GEMM_MR;
        size_t task;
        if (run->m > 1) {
            while ((task = task_take(&run->counter) - base) < tiles) {
                const size_t first = tile_start(task, tiles, rows_here), end = tile_start(task + 1, tiles, rows_here);
                pack_a(run->packed_x + first * run->k, run->x + (m0 + first) * run->ldx, (ptrdiff_t)run->ldx, 1, end - first, run->k);
            }
            base += tiles + (size_t)n_threads;
            ha_parallel_barrier(n_threads);
        }
        while ((task = task_take(&run->counter) - base) < panels) {
            linear_tile_task(run, m0, rows_here, tiles, task);
        }
        base += panels + (size_t)n_threads;
        ha_parallel_barrier(n_threads);
    }
}

static void
linear_f32(float *y, size_t ldy, const float *x, size_t ldx, const void *packed, ha_weight_format format,
           const float *bias, size_t m, size_t n, size_t k, void *scratch, int n_threads)
{
    if (m == 0 || n == 0) {
        return;
    }
    linear_run run = {.y = y, .ldy = ldy, .x = x, .ldx = ldx, .packed = packed, .format = format, .bias = bias, .m = m, .n = n, .k = k};
    /* one row is its own packed tile; it is only read */
    union { const float *in; float *out; } row = {.in = x};
    run.packed_x = m > 1 ? align_64(scratch) : row.out;
    atomic_init(&run.counter.next, 0);
    ha_parallel_run(ha_threads_for(m * n * k, GEMM_GRAIN, n_threads), linear_body, &run);
}
