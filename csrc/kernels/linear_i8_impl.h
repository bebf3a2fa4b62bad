/* The 8-bit product: x is rounded row by row to 127 steps either side of zero (its largest element gives the step), so that a row's bits
 * depend on nothing but the row; sums of products are exact integers, the same on every instruction set; columns of x that are expected to be far larger
 * than the rest are left out of that and multiplied in float32 (Dettmers et al. 2022, arXiv 2208.07339, section 3.2, with the columns fixed in advance).
 *
 * Packed: ha_i8_head with its factors, float32 scale of each row, int32 I8_BIAS * sum of its q, the outliers' columns in float32 [HA_I8_OUTLIERS][rows], then
 * panels [steps][GEMM_NR][I8_STEP]. Rows padded to GEMM_NR. */

/* A tile of x: [steps][rows] words of I8_STEP elements, [rows] steps of the rounding, [HA_I8_OUTLIERS][rows] outliers. */
#define I8_ROW_WORDS(steps) ((steps) + 1 + HA_I8_OUTLIERS)

/* Where each part of a packed weight begins, in bytes. */
typedef struct i8_layout {
    size_t rows, steps;         /* rows: padded */
    size_t scale, bias, outliers, outlier_ld, panels, bytes;    /* outlier_ld: in floats */
} i8_layout;

static i8_layout
i8_layout_of(size_t n, size_t k)
{
    i8_layout p = {.rows = round_up(n, GEMM_NR), .steps = (k + I8_STEP - 1) / I8_STEP};
    const size_t vector = round_up(p.rows * sizeof(float), 64);
    p.scale = round_up(sizeof(ha_i8_head) + k * sizeof(float), 64);
    p.bias = p.scale + vector;
    p.outliers = p.bias + vector;
    p.outlier_ld = vector / sizeof(float);
    p.panels = p.outliers + HA_I8_OUTLIERS * vector;
    p.bytes = p.panels + p.rows * p.steps * I8_STEP;
    return p;
}

/* Rows of w, cols of them, as one panel that begins at row `first`. */
static void
i8_pack_panel(void *packed, const i8_layout *p, size_t k, size_t first, const float *w, size_t ldw, size_t cols)
{
    enum { SPAN = 256 };        /* a row is rounded whole: its q lie in the panel, a span at a time */
    const ha_i8_head *head = packed;
    int8_t *panel = (int8_t *)packed + p->panels + first * p->steps * I8_STEP;
    memset(panel, 0, GEMM_NR * p->steps * I8_STEP);
    for (size_t j = 0; j < GEMM_NR; j++) {
        int32_t sum = 0;
        float *scale = (float *)((char *)packed + p->scale) + first + j;
        *scale = j < cols ? ha_row_scale_i8(w + j * ldw, head->factors, k) : 0.0f;
        for (size_t p0 = 0; j < cols && p0 < k; p0 += SPAN) {
            int8_t q[SPAN];
            const size_t count = k - p0 < SPAN ? k - p0 : SPAN;
            ha_quantize_row_i8(q, w + j * ldw + p0, *scale, head->factors + p0, count);
            for (size_t i = 0; i < count; i++) {
                panel[((p0 + i) / I8_STEP * GEMM_NR + j) * I8_STEP + (p0 + i) % I8_STEP] = q[i];
                sum += q[i];
            }
        }
        ((int32_t *)((char *)packed + p->bias))[first + j] = I8_BIAS * sum;
        for (size_t o = 0; o < head->n_outliers; o++) {
            ((float *)((char *)packed + p->outliers))[o * p->outlier_ld + first + j] = j < cols ? w[j * ldw + head->outliers[o]] : 0.0f;
        }
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

/* The factor that takes x (k,) times factors to -127 .. 127, and its inverse, or 0 and NaN where x has an element that is no finite number. */
static void
i8_step_of(const float *x, const float *factors, size_t k, float *to, float *from)
{
    vf most = vf_set1(0.0f), wrong = vf_set1(0.0f);
    for (size_t p = 0; p < k; p += VF_LANES) {
        const vf a = read_n(x + p, k - p);
        most = vf_max(vf_abs(vf_mul(a, read_n(factors + p, k - p))), most);
        wrong = vf_fma(a, vf_set1(0.0f), wrong);
    }
    const float max = vf_max_lanes(most);
    *to = max < 0x1p-100f ? 0.0f : 127.0f / max;
    *from = max < 0x1p-100f ? 0.0f : max / 127.0f;
    if (vf_sum(wrong) != 0.0f || !(max <= 0x1.fffffep+127f)) {
        *to = 0.0f;
        *from = NAN;
    }
}

/* Rows of x as a tile. */
static void
i8_pack_rows(uint32_t *tile, size_t rows, const float *x, size_t ldx, const ha_i8_head *head, size_t k)
{
    enum { SPAN = 256 };        /* of one row, rounded at a time */
    const size_t steps = (k + I8_STEP - 1) / I8_STEP;
    float *from = (float *)tile + steps * rows, *outliers = from + rows;
    for (size_t r = 0; r < rows; r++, x += ldx) {
        float to;
        i8_step_of(x, head->factors, k, &to, &from[r]);
        for (size_t p0 = 0; p0 < k; p0 += SPAN) {
            uint32_t words[(SPAN + VF_LANES) / I8_STEP];
            const size_t count = k - p0 < SPAN ? k - p0 : SPAN;
            for (size_t p = 0; p < round_up(count, I8_STEP); p += VF_LANES) {   /* past the end: zeros, which meet weights of zero */
                const vf a = p < count ? vf_mul(read_n(x + p0 + p, count - p), read_n(head->factors + p0 + p, count - p)) : vf_set1(0.0f);
                vf_store_i8((char *)words + p * I8_BYTES, to != 0.0f ? vf_round(vf_mul(a, vf_set1(to))) : vf_set1(0.0f));
            }
            for (size_t s = 0; s * I8_STEP < count; s++) {
                tile[(p0 / I8_STEP + s) * rows + r] = words[s];
            }
        }
        for (size_t o = 0; o < head->n_outliers; o++) {
            outliers[o * rows + r] = x[head->outliers[o]];
        }
    }
}

/* -- a tile of y -- */

typedef struct i8_tile {
    float *y;
    size_t ldy, cols;           /* cols <= GEMM_NR of them are stored */
    size_t steps, n_outliers, outlier_ld;
    const uint32_t *x;
    const int8_t *w;
    const float *scale, *bias, *outliers;   /* bias: or NULL */
    const int32_t *excess;      /* I8_BIAS * sum of q */
} i8_tile;

/* rows is a constant wherever this is inlined, so that acc lives in registers. */
HA_INLINE void
i8_tile_body(const size_t rows, const i8_tile *t)
{
    const uint32_t *x = t->x;
    const int8_t *w = t->w;
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
            __builtin_prefetch(w + PREFETCH_AHEAD + at);
        }
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
    const float *from = (const float *)x, *outliers = from + rows;
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            const size_t j = v * VF_LANES;
            if (j >= t->cols) {
                continue;
            }
            const vf base = t->bias != NULL ? read_n(t->bias + j, t->cols - j) : vf_set1(0.0f);
            vf y = vf_fma(vi_to_vf(vi_sub(acc[r][v], vi_load(t->excess + j))), vf_mul(vf_set1(from[r]), vf_load(t->scale + j)), base);
            for (size_t o = 0; o < t->n_outliers; o++) {
                y = vf_fma(vf_set1(outliers[o * rows + r]), vf_load(t->outliers + o * t->outlier_ld + j), y);
            }
            write_n(t->y + r * t->ldy + j, y, t->cols - j);
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
