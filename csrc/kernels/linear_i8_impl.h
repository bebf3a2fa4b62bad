/* The 8-bit product: weights are rounded row by row (kernels/quantize.h), and so is x when it is multiplied, so that a row's bits depend on nothing but
 * the row. Sums of products are exact integers, the same on every instruction set.
 *
 * The largest element of a row of x gives its step, unless at most HA_I8_OUTLIERS elements are larger than the 2^j-th part of it: then the step is
 * 2^j times finer, and those few are integers of more than 8 bits (after Dettmers et al. 2022, arXiv 2208.07339, section 3.2, who multiply columns of large
 * elements apart; here they are found in each row). Where x is held in 8 bits, what is beyond them is added at the end.
 *
 * Packed: float32 scale of each row, int32 I8_BIAS * sum of its q, then panels [steps][GEMM_NR][I8_STEP]. Rows padded to GEMM_NR. */

#define I8_FINER 6              /* j at most: |x| <= 127 * 2^6 */

/* A tile of x: [steps][rows] words of I8_STEP elements, [rows] steps of the rounding, and unless I8_WIDE [rows] numbers of outliers, their columns
 * [HA_I8_OUTLIERS][rows] and what they have beyond 8 bits [HA_I8_OUTLIERS][rows]. */
#define I8_ROW_WORDS(steps) ((steps) + 1 + (I8_WIDE ? 0 : 1 + 2 * HA_I8_OUTLIERS))

/* Where each part of a packed weight begins, in bytes. */
typedef struct i8_layout {
    size_t rows, steps;         /* rows: padded */
    size_t excess, panels, bytes;
} i8_layout;

static i8_layout
i8_layout_of(size_t n, size_t k)
{
    i8_layout p = {.rows = round_up(n, GEMM_NR), .steps = (k + I8_STEP - 1) / I8_STEP};
    p.excess = round_up(p.rows * sizeof(float), 64);
    p.panels = 2 * p.excess;
    p.bytes = p.panels + p.rows * p.steps * I8_STEP;
    return p;
}

/* Rows of w, cols of them, as one panel that begins at row `first`. */
static void
i8_pack_panel(char *packed, const i8_layout *p, size_t k, size_t first, const float *w, size_t ldw, size_t cols)
{
    enum { SPAN = 256 };        /* of a row, rounded at a time */
    int8_t *panel = (int8_t *)packed + p->panels + first * p->steps * I8_STEP;
    memset(panel, 0, GEMM_NR * p->steps * I8_STEP);
    for (size_t j = 0; j < GEMM_NR; j++) {
        const float scale = j < cols ? ha_row_scale_i8(w + j * ldw, k) : 0.0f;
        int32_t sum = 0;
        for (size_t p0 = 0; j < cols && p0 < k; p0 += SPAN) {
            int8_t q[SPAN];
            const size_t count = k - p0 < SPAN ? k - p0 : SPAN;
            ha_quantize_row_i8(q, w + j * ldw + p0, scale, count);
            for (size_t i = 0; i < count; i++) {
                panel[((p0 + i) / I8_STEP * GEMM_NR + j) * I8_STEP + (p0 + i) % I8_STEP] = q[i];
                sum += q[i];
            }
        }
        ((float *)packed)[first + j] = scale;
        ((int32_t *)(packed + p->excess))[first + j] = I8_BIAS * sum;
    }
}

static void
i8_pack(void *packed, size_t n, size_t k, size_t first, size_t count, const float *w, size_t ldw)
{
    const i8_layout p = i8_layout_of(n, k);
    for (size_t j = 0; j < count; j += GEMM_NR) {
        i8_pack_panel(packed, &p, k, first + j, w + j * ldw, ldw, count - j < GEMM_NR ? count - j : GEMM_NR);
    }
}

/* -- x -- */

/* How many of x (k,) are larger than `limit`: at most k < 2^24, a whole number in any order of summing. */
static size_t
i8_larger(const float *x, size_t k, float limit)
{
    vf count = vf_set1(0.0f);
    for (size_t p = 0; p < k; p += VF_LANES) {
        count = vf_add(count, vf_select(vf_less(vf_set1(limit), vf_abs(read_n(x + p, k - p))), vf_set1(1.0f), vf_set1(0.0f)));
    }
    return (size_t)vf_sum(count);
}

/* The step of a row x (k,): 0 where |x| < 2^-100, NaN where it has an element that is no finite number. *fits: the largest element that 8 bits hold. */
static float
i8_step_of(const float *x, size_t k, float *fits)
{
    vf most = vf_set1(0.0f), wrong = vf_set1(0.0f);
    for (size_t p = 0; p < k; p += VF_LANES) {
        const vf a = read_n(x + p, k - p);
        most = vf_max(vf_abs(a), most);
        wrong = vf_fma(a, vf_set1(0.0f), wrong);
    }
    *fits = vf_max_lanes(most);
    if (vf_sum(wrong) != 0.0f) {        /* NaN */
        return NAN;
    }
    if (*fits < 0x1p-100f) {
        return 0.0f;
    }
    for (int j = 0; j < I8_FINER && i8_larger(x, k, 0.5f * *fits) <= HA_I8_OUTLIERS; j++) {
        *fits *= 0.5f;
    }
    return *fits / 127.0f;
}

/* Elements of row r of the tile that 8 bits do not hold: where they are, and what is beyond. */
static void
i8_pack_outliers(uint32_t *tile, size_t rows, size_t r, const float *x, size_t k, float fits, float to)
{
    uint32_t count = 0;
    for (size_t p = 0; p < k && to != 0.0f; p++) {
        if (x[p] > fits || x[p] < -fits) {
            const int32_t whole = (int32_t)lrintf(x[p] * to);
            tile[(1 + count) * rows + r] = (uint32_t)p;
            tile[(1 + HA_I8_OUTLIERS + count) * rows + r] = (uint32_t)(whole > 0 ? whole - 127 : whole + 127);
            count++;
        }
    }
    tile[r] = count;
}

/* Rows of x as a tile. */
static void
i8_pack_rows(uint32_t *tile, size_t rows, const float *x, size_t ldx, size_t k)
{
    enum { SPAN = 256 };        /* of a row, rounded at a time */
    const size_t steps = (k + I8_STEP - 1) / I8_STEP;
    const vf most = vf_set1(I8_WIDE ? 127 << I8_FINER : 127), least = vf_sub(vf_set1(0.0f), most);
    for (size_t r = 0; r < rows; r++, x += ldx) {
        float fits, from = i8_step_of(x, k, &fits);
        const float to = from > 0.0f ? 127.0f / fits : 0.0f;
        memcpy(tile + steps * rows + r, &from, sizeof(from));
        for (size_t p0 = 0; p0 < k; p0 += SPAN) {
            uint32_t words[(SPAN + VF_LANES) / I8_STEP];
            const size_t count = k - p0 < SPAN ? k - p0 : SPAN;
            for (size_t p = 0; p < round_up(count, I8_STEP); p += VF_LANES) {   /* past the end: zeros, which meet weights of zero */
                const vf a = p < count && to > 0.0f ? vf_round(vf_mul(read_n(x + p0 + p, count - p), vf_set1(to))) : vf_set1(0.0f);
                vf_store_i8((char *)words + p * I8_BYTES, vf_max(least, vf_min(most, a)));
            }
            for (size_t s = 0; s * I8_STEP < count; s++) {
                tile[(p0 / I8_STEP + s) * rows + r] = words[s];
            }
        }
        if (!I8_WIDE) {         /* few rows have any */
            i8_pack_outliers(tile + (steps + 1) * rows, rows, r, x, k, fits, to);
        }
    }
}

/* -- a tile of y -- */

typedef struct i8_tile {
    float *y;
    size_t ldy, cols;           /* cols <= GEMM_NR of them are stored */
    size_t steps;
    const uint32_t *x;
    const int8_t *w, *ahead;    /* while the tile is computed, ahead_step bytes from `ahead` on are asked for at each step */
    size_t ahead_step;
    const float *scale, *bias;  /* bias: or NULL */
    const int32_t *excess;      /* I8_BIAS * sum of q */
} i8_tile;

#if !I8_WIDE
/* Adds what the outliers of row r have beyond 8 bits. */
HA_INLINE void
i8_add_outliers(vi acc[GEMM_NV], const i8_tile *t, const uint32_t *outliers, size_t rows, size_t r)
{
    for (size_t o = 0; o < outliers[r]; o++) {
        const size_t p = outliers[(1 + o) * rows + r];
        const int8_t *w = t->w + p / I8_STEP * GEMM_NR * I8_STEP;
        const int32_t x = (int32_t)outliers[(1 + HA_I8_OUTLIERS + o) * rows + r];
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            acc[v] = vi_add_column(acc[v], x, vi_load_weight(w + v * VF_LANES * I8_STEP), p % I8_STEP);
        }
    }
}
#endif

/* rows is a constant wherever this is inlined, so that acc lives in registers. */
HA_INLINE void
i8_tile_body(const size_t rows, const i8_tile *t)
{
    const uint32_t *x = t->x;
    const int8_t *w = t->w, *ahead = t->ahead;
    const size_t ahead_step = t->ahead_step;
    vi acc[GEMM_MR][GEMM_NV];
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            acc[r][v] = vi_zero();
        }
        __builtin_prefetch(t->y + r * t->ldy, 1);
        __builtin_prefetch(t->y + r * t->ldy + GEMM_NR - 1, 1);
    }
    for (size_t s = 0; s < t->steps; s++) {
        vi_weight b[GEMM_NV];
        for (size_t at = 0; at < GEMM_NR * I8_STEP; at += 64) {
            __builtin_prefetch(ahead + at, 0, 2);
        }
        ahead += ahead_step;
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            b[v] = vi_load_weight(w + v * VF_LANES * I8_STEP);
        }
#pragma GCC unroll 16
        for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (size_t v = 0; v < GEMM_NV; v++) {
                acc[r][v] = vi_dot(acc[r][v], x[r], b[v]);
            }
        }
        x += rows;
        w += GEMM_NR * I8_STEP;
    }
#if !I8_WIDE
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
        i8_add_outliers(acc[r], t, x + rows, rows, r);
    }
#endif
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            const size_t j = v * VF_LANES;
            if (j >= t->cols) {
                continue;
            }
            const vf base = t->bias != NULL ? read_n(t->bias + j, t->cols - j) : vf_set1(0.0f);
            const vi sum = vi_sub(acc[r][v], vi_load(t->excess + j));
            float from;
            memcpy(&from, x + r, sizeof(from));
            write_n(t->y + r * t->ldy + j, vf_fma(vi_to_vf(sum), vf_mul(vf_set1(from), vf_load(t->scale + j)), base), t->cols - j);
        }
    }
}

static void
i8_tile_run(size_t rows, const i8_tile *t)
{
    switch (rows) {
#define I8_CASE(n) case n: i8_tile_body(n <= GEMM_MR ? n : 1, t); break;
    I8_CASE(1) I8_CASE(2) I8_CASE(3) I8_CASE(4)
#if GEMM_MR > 4
    I8_CASE(5) I8_CASE(6)
#endif
#if GEMM_MR > 6
    I8_CASE(7) I8_CASE(8) I8_CASE(9) I8_CASE(10) I8_CASE(11) I8_CASE(12) I8_CASE(13) I8_CASE(14)
#endif
#undef I8_CASE
    }
}
