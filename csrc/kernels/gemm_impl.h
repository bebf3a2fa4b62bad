/* Matrix products: one register tile for every shape.
 *
 * C is computed in tiles of up to GEMM_MR rows by GEMM_NR columns. The inner extent k is cut into blocks whose size depends on k
 * alone; within a block an element is one chain of fused multiply-adds over k in order, then C = alpha * chain + C. A tile of fewer rows
 * runs the same chain, so an element has the same bits whichever tile it falls into.
 * Both operands are packed: A in tiles [k][rows], B in panels [k][GEMM_NR], padded with zeros to GEMM_NR. Where the CPU has a dot product
 * of bfloat16, operands of bfloat16 are packed in pairs along k, and a step of the chain takes two products. */

#define GEMM_NR (GEMM_NV * VF_LANES)
#define GEMM_KC 512             /* k of a block at most: a block of one panel of B and of one tile of A stay in the near caches */
#define GEMM_GRAIN 500000       /* multiply-adds a thread, below which starting a thread costs more */
#define GEMM_GROUP 8            /* row tiles that one task packs and multiplies: they stay in the second-level cache */

_Static_assert(HA_PANEL % GEMM_NR == 0, "a panel of a packed weight is whole panels of the register tile");

static size_t
round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Steps of a block for an inner extent of k steps: the fewest blocks of at most GEMM_KC, of nearly equal length. */
static size_t
gemm_block(size_t k)
{
    const size_t blocks = (k + GEMM_KC - 1) / GEMM_KC;
    return blocks > 1 ? (k + blocks - 1) / blocks : k;
}

/* Tile t of rows 0..m cut into nearly equal tiles of at most GEMM_MR: its first row. */
static size_t
tile_start(size_t t, size_t tiles, size_t m)
{
    return t * (m / tiles) + (t < m % tiles ? t : m % tiles);
}

/* Where a tile of C goes and what happens to it there. */
typedef struct tile_out {
    float *c;
    size_t ldc, cols;           /* cols <= GEMM_NR of them are stored */
    float alpha, beta;          /* c = alpha * product + beta * c, beta 0 does not read c */
    const float *bias;          /* (cols,), instead of beta * c; or NULL */
    /* While the tile is computed, ahead_step bytes from `ahead` on are asked for at each step: a share of the B that comes next, for a weight that
     * is used once comes from memory, and the CPU's own prefetch stops at pages. */
    const char *ahead;
    size_t ahead_step;
} tile_out;

HA_INLINE void
tile_store(vf acc, float *c, const float *bias, size_t cols, const tile_out *out)
{
    vf base = vf_set1(0.0f);
    if (bias != NULL) {
        base = read_n(bias, cols);
    }
    else if (out->beta != 0.0f) {
        base = vf_mul(vf_set1(out->beta), read_n(c, cols));
    }
    write_n(c, vf_fma(vf_set1(out->alpha), acc, base), cols);
}

/* What a step along k holds. */
/* float32; float32 times bfloat16; a pair of bfloat16 times a pair of bfloat16; linear_i8_impl.h; linear_groups_impl.h */
enum { STEP_F32, STEP_BF16, STEP_PAIR, STEP_I8, STEP_GROUP };

/* One step: a (rows,), b (GEMM_NR,) */
HA_INLINE void
tile_step(const size_t rows, const int step, const void *a, const void *b, vf acc[GEMM_MR][GEMM_NV])
{
#if defined(VF_HAS_DOT_BF16)
    if (step == STEP_PAIR) {
#pragma GCC unroll 16
        for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (size_t v = 0; v < GEMM_NV; v++) {
                acc[r][v] = vf_dot_bf16(((const uint32_t *)a)[r], (const uint32_t *)b + v * VF_LANES, acc[r][v]);
            }
        }
        return;
    }
#endif
    vf bv[GEMM_NV];
#pragma GCC unroll 16
    for (size_t v = 0; v < GEMM_NV; v++) {
        bv[v] = step == STEP_BF16 ? vf_load_bf16((const uint16_t *)b + v * VF_LANES) : vf_load((const float *)b + v * VF_LANES);
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
        const vf av = vf_set1(((const float *)a)[r]);
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            acc[r][v] = vf_fma(av, bv[v], acc[r][v]);
        }
    }
}

/* rows and step are constants wherever this is inlined, so that acc lives in registers. */
HA_INLINE void
tile_body(const size_t rows, const int step, size_t kc, const char *a, const char *b, const tile_out *out)
{
    const size_t b_step = GEMM_NR * (step == STEP_BF16 ? sizeof(uint16_t) : sizeof(float));
    const char *ahead = out->ahead;
    const size_t ahead_step = out->ahead_step;
    vf acc[GEMM_MR][GEMM_NV];
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            acc[r][v] = vf_set1(0.0f);
        }
        __builtin_prefetch(out->c + r * out->ldc, 1);       /* C is far away when the tile is done, unless it is asked for now */
        __builtin_prefetch(out->c + r * out->ldc + GEMM_NR - 1, 1);
    }
    for (size_t p = 0; p < kc; p++) {
        for (size_t at = 0; at < b_step; at += 64) {
            __builtin_prefetch(ahead + at, 0, 2);       /* into the second-level cache */
        }
        ahead += ahead_step;
        tile_step(rows, step, a, b, acc);
        a += rows * sizeof(float);
        b += b_step;
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            if (v * VF_LANES < out->cols) {
                tile_store(acc[r][v], out->c + r * out->ldc + v * VF_LANES, out->bias != NULL ? out->bias + v * VF_LANES : NULL,
                           out->cols - v * VF_LANES, out);
            }
        }
    }
}

/* A tile of a fixed number of rows: kc steps of a [kc][rows], whose elements take 4 bytes, and b [kc][GEMM_NR]. */
typedef void (*tile_fn)(size_t kc, const void *a, const void *b, const tile_out *out);

#define TILE(step, rows) \
    static void tile_##step##_##rows(size_t kc, const void *a, const void *b, const tile_out *out) { tile_body(rows, step, kc, a, b, out); }
#define TILES_4(step) TILE(step, 1) TILE(step, 2) TILE(step, 3) TILE(step, 4)
#define NAMES_4(step) tile_##step##_1, tile_##step##_2, tile_##step##_3, tile_##step##_4
#define TILES_6(step) TILES_4(step) TILE(step, 5) TILE(step, 6)
#define NAMES_6(step) NAMES_4(step), tile_##step##_5, tile_##step##_6
#define TILES_14(step) TILES_6(step) TILE(step, 7) TILE(step, 8) TILE(step, 9) TILE(step, 10) TILE(step, 11) TILE(step, 12) TILE(step, 13) TILE(step, 14)
#define NAMES_14(step) NAMES_6(step), tile_##step##_7, tile_##step##_8, tile_##step##_9, tile_##step##_10, tile_##step##_11, tile_##step##_12, \
    tile_##step##_13, tile_##step##_14
#define PASTE(a, b) a##b
#define TILES(rows, step) PASTE(TILES_, rows)(step)
#define NAMES(rows, step) PASTE(NAMES_, rows)(step)

TILES(GEMM_MR, STEP_F32)
TILES(GEMM_MR, STEP_BF16)
static const tile_fn tiles_f32[GEMM_MR] = {NAMES(GEMM_MR, STEP_F32)};
static const tile_fn tiles_bf16[GEMM_MR] = {NAMES(GEMM_MR, STEP_BF16)};
#if defined(VF_HAS_DOT_BF16)
TILES(GEMM_MR, STEP_PAIR)
static const tile_fn tiles_pair[GEMM_MR] = {NAMES(GEMM_MR, STEP_PAIR)};
#endif

/* out[p * out_ld + r] = x[r * x_ld + p] for r < rows, p < cols. What is left of four rows or columns is taken with the ones before it. */
static void
pack_transposed(float *out, size_t out_ld, const float *x, size_t x_ld, size_t rows, size_t cols)
{
    for (size_t r0 = 0; r0 < rows && rows >= 4 && cols >= 4; r0 += 4) {
        const size_t r = rows - r0 < 4 ? rows - 4 : r0;
        for (size_t p0 = 0; p0 < cols; p0 += 4) {
            const size_t p = cols - p0 < 4 ? cols - 4 : p0;
            vf_transpose_4x4(out + p * out_ld + r, out_ld, x + r * x_ld + p, x_ld);
        }
    }
    for (size_t r = 0; r < rows && (rows < 4 || cols < 4); r++) {
        for (size_t p = 0; p < cols; p++) {
            out[p * out_ld + r] = x[r * x_ld + p];
        }
    }
}

/* out[p * out_ld + r] = x[p * x_ld + r] for r < rows, p < cols */
HA_INLINE void
pack_few(float *out, size_t out_ld, const float *x, ptrdiff_t x_ld, const size_t rows, size_t cols)
{
    for (size_t p = 0; p < cols; p++) {
        memcpy(out + p * out_ld, x + (ptrdiff_t)p * x_ld, rows * sizeof(*out));
    }
}

static void
pack_copied(float *out, size_t out_ld, const float *x, ptrdiff_t x_ld, size_t rows, size_t cols)
{
    switch (rows) {     /* a tile of few rows: copies of a constant size */
    case 4: pack_few(out, out_ld, x, x_ld, 4, cols); return;
    case 5: pack_few(out, out_ld, x, x_ld, 5, cols); return;
    case 6: pack_few(out, out_ld, x, x_ld, 6, cols); return;
    default: break;
    }
    for (size_t p = 0; p < cols; p++) {
        for (size_t r = 0; r < rows; r += VF_LANES) {
            write_n(out + p * out_ld + r, read_n(x + (ptrdiff_t)p * x_ld + (ptrdiff_t)r, rows - r), rows - r);
        }
    }
}

/* out[p * out_ld + r] = x[r * x_row + p * x_col] for r < rows, p < cols */
static void
pack(float *out, size_t out_ld, const float *x, ptrdiff_t x_row, ptrdiff_t x_col, size_t rows, size_t cols)
{
    if (x_col == 1 && x_row >= 0) {
        pack_transposed(out, out_ld, x, (size_t)x_row, rows, cols);
        return;
    }
    if (x_row == 1) {
        pack_copied(out, out_ld, x, x_col, rows, cols);
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t p = 0; p < cols; p++) {
            out[p * out_ld + r] = x[(ptrdiff_t)r * x_row + (ptrdiff_t)p * x_col];
        }
    }
}

/* Columns of B as one panel [kc][GEMM_NR]. */
static void
pack_panel(float *panel, const float *b, ptrdiff_t b_row, ptrdiff_t b_col, size_t kc, size_t cols)
{
    if (cols < GEMM_NR) {
        memset(panel, 0, kc * GEMM_NR * sizeof(*panel));
    }
    pack(panel, GEMM_NR, b, b_col, b_row, cols, kc);
}

/* x [kc][ld], packed, rounded to bfloat16 in place; where the CPU has their dot product they become pairs [(kc + 1) / 2][ld], the second of the last pair
 * of an odd kc a zero. */
static void
pack_bf16(float *x, size_t ld, size_t kc)
{
#if defined(VF_HAS_DOT_BF16)
    for (size_t p = 0; p < kc; p += 2) {        /* what is written lies before what is still to be read */
        for (size_t r = 0; r < ld; r += VF_LANES) {
            const float *at = x + p * ld + r;
            const vf second = p + 1 < kc ? read_n(at + ld, ld - r) : vf_set1(0.0f);
            write_n(x + p / 2 * ld + r, vf_pair_bf16(read_n(at, ld - r), second), ld - r);
        }
    }
#else
    for (size_t i = 0; i < kc * ld; i += VF_LANES) {
        uint16_t narrow[VF_LANES];
        vf_store_bf16(narrow, read_n(x + i, kc * ld - i));
        write_n(x + i, vf_load_bf16(narrow), kc * ld - i);
    }
#endif
}

/* Tasks handed out one by one to the threads of a region, phase after phase with a barrier between. Every thread draws one number past the
 * end of each phase, so the next phase starts at the known number `base`. */
typedef struct task_counter {
    atomic_size_t next;
} task_counter;

static size_t
task_take(task_counter *counter)
{
    return atomic_fetch_add_explicit(&counter->next, 1, memory_order_relaxed);
}

typedef struct gemm_run {
    const ha_gemm *g;
    const tile_fn *tiles;
    size_t step;                /* of k that a step of the tiles takes */
    float *packed_b;            /* all panels of a block of k */
    float *packed_a;            /* for each thread, the rows of one group for a block of k */
    task_counter counter;
} gemm_run;

/* Floats of packed_a for one thread. */
static size_t
gemm_group_floats(size_t m, size_t k)
{
    const size_t rows = GEMM_GROUP * GEMM_MR;
    return (m < rows ? m : rows) * gemm_block(k);
}

static void
gemm_pack_panel(const gemm_run *run, size_t panel, size_t k0, size_t kc)
{
    const ha_gemm *g = run->g;
    const size_t col = panel * GEMM_NR;
    float *packed = run->packed_b + col * kc;
    pack_panel(packed, g->b + (ptrdiff_t)k0 * g->b_row + (ptrdiff_t)col * g->b_col, g->b_row, g->b_col, kc, g->n - col < GEMM_NR ? g->n - col : GEMM_NR);
    if (g->bf16) {
        pack_bf16(packed, GEMM_NR, kc);
    }
}

/* Row tiles [first_tile, end_tile), packed by this thread into `a`, times the panels [first_panel, end_panel). */
static void
gemm_group_task(const gemm_run *run, float *a, size_t first_tile, size_t end_tile, size_t tiles,
                size_t first_panel, size_t end_panel, size_t k0, size_t kc)
{
    const ha_gemm *g = run->g;
    const size_t first_row = tile_start(first_tile, tiles, g->m);
    tile_out out = {.ldc = g->ldc, .alpha = g->alpha, .beta = k0 == 0 ? g->beta : 1.0f, .ahead = (const char *)run->packed_b};
    for (size_t t = first_tile; t < end_tile; t++) {
        const size_t row = tile_start(t, tiles, g->m), rows = tile_start(t + 1, tiles, g->m) - row;
        pack(a + (row - first_row) * kc, rows, g->a + (ptrdiff_t)row * g->a_row + (ptrdiff_t)k0 * g->a_col, g->a_row, g->a_col, rows, kc);
        if (g->bf16) {
            pack_bf16(a + (row - first_row) * kc, rows, kc);
        }
    }
    for (size_t panel = first_panel; panel < end_panel; panel++) {
        const size_t col = panel * GEMM_NR;
        out.cols = g->n - col < GEMM_NR ? g->n - col : GEMM_NR;
        out.bias = g->bias != NULL && k0 == 0 ? g->bias + col : NULL;
        for (size_t t = first_tile; t < end_tile; t++) {
            const size_t row = tile_start(t, tiles, g->m), rows = tile_start(t + 1, tiles, g->m) - row;
            out.c = g->c + row * g->ldc + col;
            run->tiles[rows - 1]((kc + run->step - 1) / run->step, a + (row - first_row) * kc, run->packed_b + col * kc, &out);
        }
    }
}

static void
gemm_body(void *arg, int thread, int n_threads)
{
    gemm_run *run = arg;
    const ha_gemm *g = run->g;
    const size_t tiles = (g->m + GEMM_MR - 1) / GEMM_MR, panels = (g->n + GEMM_NR - 1) / GEMM_NR;
    const size_t groups = (tiles + GEMM_GROUP - 1) / GEMM_GROUP, block = gemm_block(g->k);
    /* few rows: the panels are shared out too, each share packing its group again */
    size_t shares = n_threads > 1 ? (4 * (size_t)n_threads + groups - 1) / groups : 1;
    shares = shares < panels ? shares : panels;
    float *a = run->packed_a + (size_t)thread * gemm_group_floats(g->m, g->k);
    size_t base = 0, k0 = 0;
    do {
        const size_t kc = g->k - k0 < block ? g->k - k0 : block;
        size_t task;
        while ((task = task_take(&run->counter) - base) < panels) {
            gemm_pack_panel(run, task, k0, kc);
        }
        base += panels + (size_t)n_threads;
        ha_parallel_barrier(n_threads);
        while ((task = task_take(&run->counter) - base) < groups * shares) {
            const size_t first = task / shares * GEMM_GROUP, share = task % shares;
            gemm_group_task(run, a, first, tiles - first < GEMM_GROUP ? tiles : first + GEMM_GROUP, tiles,
                            share * panels / shares, (share + 1) * panels / shares, k0, kc);
        }
        base += groups * shares + (size_t)n_threads;
        ha_parallel_barrier(n_threads);
        k0 += kc;
    } while (k0 < g->k);
}

static size_t
gemm_scratch_bytes(size_t m, size_t n, size_t k, int n_threads)
{
    const size_t threads = n_threads > 0 ? (size_t)n_threads : (size_t)ha_threads_max();
    const size_t block = k < GEMM_KC ? k : GEMM_KC, rows = m < GEMM_GROUP * GEMM_MR ? m : GEMM_GROUP * GEMM_MR;     /* gemm_block(k) or more */
    return (threads * rows + round_up(n, GEMM_NR)) * block * sizeof(float) + 64;
}

static float *
align_64(void *p)
{
    return (float *)(((uintptr_t)p + 63) & ~(uintptr_t)63);
}

static void
gemm_f32(const ha_gemm *gemm, void *scratch, int n_threads)
{
    if (gemm->m == 0 || gemm->n == 0) {
        return;
    }
    gemm_run run = {.g = gemm, .tiles = tiles_f32, .step = 1};
#if defined(VF_HAS_DOT_BF16)
    if (gemm->bf16) {
        run.tiles = tiles_pair, run.step = 2;
    }
#endif
    run.packed_b = align_64(scratch);
    run.packed_a = run.packed_b + round_up(gemm->n, GEMM_NR) * gemm_block(gemm->k);
    atomic_init(&run.counter.next, 0);
    ha_parallel_run(ha_threads_for(gemm->m * gemm->n * gemm->k, GEMM_GRAIN, n_threads), gemm_body, &run);
}

#define DOT_CHAINS 4

static float
dot_f32(const float *a, const float *b, size_t n)
{
    vf acc[DOT_CHAINS];
    for (size_t c = 0; c < DOT_CHAINS; c++) {
        acc[c] = vf_set1(0.0f);
    }
    size_t i;
    for (i = 0; i + DOT_CHAINS * VF_LANES <= n; i += DOT_CHAINS * VF_LANES) {
        for (size_t c = 0; c < DOT_CHAINS; c++) {
            acc[c] = vf_fma(vf_load(a + i + c * VF_LANES), vf_load(b + i + c * VF_LANES), acc[c]);
        }
    }
    for (size_t c = 0; i < n; i += VF_LANES, c++) {
        acc[c] = vf_fma(read_n(a + i, n - i), read_n(b + i, n - i), acc[c]);
    }
    return vf_sum(vf_add(vf_add(acc[0], acc[1]), vf_add(acc[2], acc[3])));
}

static void
axpy_f32(float *y, float alpha, const float *x, size_t n)
{
    const vf a = vf_set1(alpha);
    for (size_t i = 0; i < n; i += VF_LANES) {
        write_n(y + i, vf_fma(a, read_n(x + i, n - i), read_n(y + i, n - i)), n - i);
    }
}
