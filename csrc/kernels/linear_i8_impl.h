/* The 8-bit product: weights are rounded in groups of HA_I8_GROUP along a row (kernels/quantize.h), and so is x, row by row, when it is multiplied: a row's bits
 * depend on nothing but the row. The sum of a group's products is an exact integer, the same on every instruction set. What follows is float32: one chain of
 * multiply-adds over the groups in order, sum * scale, then times the step of x, plus the middle of x times the sum of the weight's row, plus the bias.
 *
 * x is held in steps from about the middle between its least and its largest element, of which there are 126 to both sides. Elements larger than the 2^j-th part
 * of the largest are left aside where they are at most HA_I8_OUTLIERS; the steps are finer then, and those few integers of more than
 * 8 bits (after Dettmers et al. 2022, arXiv 2208.07339, section 3.2, who multiply columns of large elements apart; here they are found in each row). Where x is
 * held in 8 bits, what is beyond them is added at the end of their group.
 *
 * Packed: a panel of GEMM_NR rows after the other. Each has float32 sums of the rows [GEMM_NR], then the groups in order: float32 scales [GEMM_NR], with
 * I8_BIAS int32 -I8_BIAS * sum of q [GEMM_NR], then q [steps][GEMM_NR][I8_STEP]. Rows are padded to GEMM_NR, the last group to whole steps. */

#define I8_FINER 6              /* j at most */
#define I8_SUMS (GEMM_NR * sizeof(float))       /* bytes of a panel before its groups */
#define I8_GROUP_STEPS (HA_I8_GROUP / I8_STEP)
#define I8_HEAD (GEMM_NR * (sizeof(float) + (I8_BIAS ? sizeof(int32_t) : 0)))   /* bytes of a group before its q */

_Static_assert(HA_I8_GROUP % I8_STEP == 0, "a group is whole steps");

/* A tile of x: [steps][rows] words of I8_STEP elements, [rows] steps of the rounding, [rows] middles, and unless I8_WIDE [rows] numbers of outliers, their columns
 * [HA_I8_OUTLIERS][rows] and what they have beyond 8 bits [HA_I8_OUTLIERS][rows]. */
#define I8_ROW_WORDS(steps) ((steps) + 2 + (I8_WIDE ? 0 : 1 + 2 * HA_I8_OUTLIERS))

static size_t
i8_panel_bytes(size_t k)
{
    return I8_SUMS + (k + HA_I8_GROUP - 1) / HA_I8_GROUP * I8_HEAD + (k + I8_STEP - 1) / I8_STEP * GEMM_NR * I8_STEP;
}

/* Rows of w, cols of them, as one panel. */
static void
i8_pack_panel(int8_t *panel, size_t k, const float *w, size_t ldw, size_t cols)
{
    double sums[GEMM_NR] = {0};
    float *const out = (float *)panel;
    memset(panel, 0, i8_panel_bytes(k));
    panel += I8_SUMS;
    for (size_t p0 = 0; p0 < k; p0 += HA_I8_GROUP) {
        const size_t count = k - p0 < HA_I8_GROUP ? k - p0 : HA_I8_GROUP;
        for (size_t j = 0; j < cols; j++) {
            int8_t q[HA_I8_GROUP];
            int32_t sum = 0;
            const float scale = ha_quantize_group_i8(q, w + j * ldw + p0, count);
            for (size_t i = 0; i < count; i++) {
                panel[I8_HEAD + (i / I8_STEP * GEMM_NR + j) * I8_STEP + i % I8_STEP] = q[i];
                sum += q[i];
            }
            memcpy(panel + j * sizeof(scale), &scale, sizeof(scale));
            if (I8_BIAS) {
                const int32_t excess = -I8_BIAS * sum;
                memcpy(panel + (GEMM_NR + j) * sizeof(excess), &excess, sizeof(excess));
            }
            sums[j] += (double)scale * sum;
        }
        panel += I8_HEAD + I8_GROUP_STEPS * GEMM_NR * I8_STEP;
    }
    for (size_t j = 0; j < cols; j++) {
        out[j] = (float)sums[j];
    }
}

static void
i8_pack(void *packed, size_t k, size_t first, size_t count, const float *w, size_t ldw)
{
    for (size_t j = 0; j < count; j += GEMM_NR) {
        i8_pack_panel((int8_t *)packed + (first + j) / GEMM_NR * i8_panel_bytes(k), k, w + j * ldw, ldw, count - j < GEMM_NR ? count - j : GEMM_NR);
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

/* How a row of x is rounded: element p is step * (zero + a whole number), so that 0 is exact, as are the many that an activation or a row's edge makes 0. */
typedef struct i8_range {
    float most, step, zero;     /* |x| <= most but for the outliers; the whole numbers of the others are within -127 .. 127 */
} i8_range;

/* step 0 where |x| < 2^-100, NaN where x (k,) has an element that is no finite number. A step is at least most / 252, so that an outlier, |x| <= 2^I8_FINER * most,
 * is at most 252 * 2^I8_FINER + 127 steps from zero. */
static i8_range
i8_range_of(const float *x, size_t k)
{
    vf low = vf_set1(0.0f), high = low, wrong = low;
    for (size_t p = 0; p < k; p += VF_LANES) {
        const vf a = k - p >= VF_LANES ? vf_load(x + p) : vf_load_n(x + p, k - p, x[0]);
        high = p == 0 ? a : vf_max(a, high);
        low = p == 0 ? vf_sub(vf_set1(0.0f), a) : vf_max(vf_sub(vf_set1(0.0f), a), low);
        wrong = vf_fma(a, vf_set1(0.0f), wrong);
    }
    const float top = vf_max_lanes(high), bottom = -vf_max_lanes(low);
    i8_range range = {.most = fmaxf(top, -bottom)};
    if (vf_sum(wrong) != 0.0f) {        /* NaN */
        return (i8_range){0.0f, NAN, 0.0f};
    }
    if (range.most < 0x1p-100f) {
        return (i8_range){0};
    }
    for (int j = 0; j < I8_FINER && i8_larger(x, k, 0.5f * range.most) <= HA_I8_OUTLIERS; j++) {
        range.most *= 0.5f;
    }
    const float from = fmaxf(bottom, -range.most), to = fminf(top, range.most);
    range.step = fmaxf(to - from, range.most) / 252.0f;     /* 126 to both sides, and a half each for the rounding of zero and of x */
    range.zero = rintf(0.5f * (from + to) / range.step);
    return range;
}

/* Elements of row r of the tile that 8 bits do not hold: where they are, and what is beyond. */
static void
i8_pack_outliers(uint32_t *tile, size_t rows, size_t r, const float *x, size_t k, i8_range range, float to)
{
    uint32_t count = 0;
    for (size_t p = 0; p < k && to != 0.0f; p++) {
        if (x[p] > range.most || x[p] < -range.most) {
            const int32_t whole = (int32_t)(rintf(x[p] * to) - range.zero);
            tile[(1 + count) * rows + r] = (uint32_t)p;
            tile[(1 + HA_I8_OUTLIERS + count) * rows + r] = (uint32_t)(whole - (whole > 127 ? 127 : whole < -127 ? -127 : whole));
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
    const vf most = vf_set1(I8_WIDE ? 32767 : 127), least = vf_sub(vf_set1(0.0f), most);
    for (size_t r = 0; r < rows; r++, x += ldx) {
        const i8_range range = i8_range_of(x, k);
        const float to = range.step > 0.0f ? 1.0f / range.step : 0.0f, middle = range.zero * range.step;
        memcpy(tile + steps * rows + r, &range.step, sizeof(range.step));
        memcpy(tile + (steps + 1) * rows + r, &middle, sizeof(middle));
        for (size_t p0 = 0; p0 < k; p0 += SPAN) {
            uint32_t words[(SPAN + VF_LANES) / I8_STEP];
            const size_t count = k - p0 < SPAN ? k - p0 : SPAN;
            for (size_t p = 0; p < round_up(count, I8_STEP); p += VF_LANES) {   /* past the end: anything, for it meets weights of zero */
                const vf a = p < count && to > 0.0f ? vf_round(vf_mul(read_n(x + p0 + p, count - p), vf_set1(to))) : vf_set1(0.0f);
                vf_store_i8((char *)words + p * I8_BYTES, vf_max(least, vf_min(most, vf_sub(a, vf_set1(range.zero)))));
            }
            for (size_t s = 0; s * I8_STEP < count; s++) {
                tile[(p0 / I8_STEP + s) * rows + r] = words[s];
            }
        }
        if (!I8_WIDE) {         /* few rows have any */
            i8_pack_outliers(tile + (steps + 2) * rows, rows, r, x, k, range, to);
        }
    }
}

/* -- a tile of y -- */

typedef struct i8_tile {
    float *y;
    size_t ldy, cols;           /* cols <= GEMM_NR of them are stored */
    size_t steps;
    const uint32_t *x;
    const int8_t *w, *ahead;    /* the panel; while the tile is computed, ahead_step bytes a step are asked for from `ahead` on, at the start of each group */
    size_t ahead_step;
    const float *bias;          /* or NULL */
} i8_tile;

#if !I8_WIDE
/* Adds what the outliers of row r from number `o` on, those in columns below `end`, have beyond 8 bits; returns the number of the next one.
 * w: the q of the group that begins at column p0. */
HA_INLINE uint32_t
i8_add_outliers(vi acc[GEMM_NV], const int8_t *w, size_t p0, size_t end, const uint32_t *outliers, size_t rows, size_t r, uint32_t o)
{
    for (; o < outliers[r] && outliers[(1 + o) * rows + r] < end; o++) {
        const size_t p = outliers[(1 + o) * rows + r] - p0;
        const int32_t x = (int32_t)outliers[(1 + HA_I8_OUTLIERS + o) * rows + r];
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            acc[v] = vi_add_column(acc[v], x, vi_load_weight(w + (p / I8_STEP * GEMM_NR + v * VF_LANES) * I8_STEP), p % I8_STEP);
        }
    }
    return o;
}
#endif

/* rows is a constant wherever this is inlined, so that acc lives in registers; sum does not. */
HA_INLINE void
i8_tile_body(const size_t rows, const i8_tile *t)
{
    const uint32_t *x = t->x;
    const int8_t *w = t->w + I8_SUMS, *ahead = t->ahead;
    const size_t ahead_step = t->ahead_step;
    vf sum[GEMM_MR][GEMM_NV];
#if !I8_WIDE
    const uint32_t *outliers = x + (t->steps + 2) * rows;
    uint32_t next[GEMM_MR] = {0};
#endif
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            sum[r][v] = vf_set1(0.0f);
        }
        __builtin_prefetch(t->y + r * t->ldy, 1);
        __builtin_prefetch(t->y + r * t->ldy + GEMM_NR - 1, 1);
    }
    for (size_t s0 = 0; s0 < t->steps; s0 += I8_GROUP_STEPS) {
        const size_t steps = t->steps - s0 < I8_GROUP_STEPS ? t->steps - s0 : I8_GROUP_STEPS;
        const float *scale = (const float *)w;
        vi acc[GEMM_MR][GEMM_NV];
#pragma GCC unroll 16
        for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (size_t v = 0; v < GEMM_NV; v++) {
                acc[r][v] = I8_BIAS ? vi_load((const int32_t *)w + GEMM_NR + v * VF_LANES) : vi_zero();
            }
        }
        w += I8_HEAD;
        for (const int8_t *end = ahead + ahead_step * steps; ahead < end; ahead += 64) {
            __builtin_prefetch(ahead, 0, 2);
        }
        for (size_t s = 0; s < steps; s++) {
            vi_weight b[GEMM_NV];
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
#pragma GCC unroll 16
        for (size_t r = 0; r < rows; r++) {
#if !I8_WIDE
            next[r] = i8_add_outliers(acc[r], w - steps * GEMM_NR * I8_STEP, s0 * I8_STEP, (s0 + steps) * I8_STEP, outliers, rows, r, next[r]);
#endif
#pragma GCC unroll 16
            for (size_t v = 0; v < GEMM_NV; v++) {
                sum[r][v] = vf_fma(vi_to_vf(acc[r][v]), vf_load(scale + v * VF_LANES), sum[r][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
        float from, middle;
        memcpy(&from, x + r, sizeof(from));
        memcpy(&middle, x + rows + r, sizeof(middle));
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            const size_t j = v * VF_LANES;
            if (j < t->cols) {
                const vf base = t->bias != NULL ? read_n(t->bias + j, t->cols - j) : vf_set1(0.0f);
                const vf rest = vf_fma(vf_set1(middle), vf_load((const float *)t->w + j), base);
                write_n(t->y + r * t->ldy + j, vf_fma(sum[r][v], vf_set1(from), rest), t->cols - j);
            }
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
