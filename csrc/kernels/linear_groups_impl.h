/* The products of weights in groups (kernels/quantize.h) of 8 or 4 bits. A row of x is rounded too, HA_GROUP elements at a time with a scale of their own,
 * so that a row's bits depend on nothing but the row. Sums within a group are exact integers; groups are added in order, in float32.
 *
 * Packed: panels [groups] of float16 scales [GEMM_NR], of 4 bits float16 minima [GEMM_NR] too, then bytes [steps][GEMM_NR][4]: of 8 bits eight steps of q +
 * GROUP_BIAS, of 4 bits four, whose low nibbles are the first half of the group and the high ones the second. Columns padded to GEMM_NR.
 * A tile of x: for each group scales [rows], what corrects for the bias or the minima [rows], and eight steps [rows] of four int8. */

#define GROUP_STEPS (HA_GROUP / 4)
#define GROUP_WORDS (GROUP_STEPS + 2)       /* of a row of x and a group */

static size_t
group_bytes(int bits)
{
    return bits == 4 ? 2 * GEMM_NR * sizeof(uint16_t) + GEMM_NR * HA_GROUP / 2 : GEMM_NR * sizeof(uint16_t) + GEMM_NR * HA_GROUP;
}

/* One group of column `col` of a panel, as it is stored in a row. */
static void
group_place(uint8_t *panel_group, int bits, size_t col, const uint8_t *stored)
{
    memcpy(panel_group + 2 * col, stored, 2);
    stored += 2;
    panel_group += 2 * GEMM_NR;
    if (bits == 4) {
        memcpy(panel_group + 2 * col, stored, 2);
        stored += 2;
        panel_group += 2 * GEMM_NR;
    }
    for (size_t s = 0; s < GROUP_STEPS / (bits == 4 ? 2 : 1); s++) {
        for (size_t i = 0; i < 4; i++) {
            panel_group[(s * GEMM_NR + col) * 4 + i] = (uint8_t)(stored[4 * s + i] + (bits == 4 ? 0 : GROUP_BIAS));
        }
    }
}

/* Rows [first, first + count) of n, each of ha_group_row_bytes(format, k) bytes, or from floats. */
static void
group_pack(void *packed, int bits, size_t k, size_t first, size_t count, const uint8_t *rows, const float *w, size_t ldw)
{
    const size_t groups = (k + HA_GROUP - 1) / HA_GROUP, size = group_bytes(bits), stored = ha_group_bytes(bits);
    uint8_t *out = (uint8_t *)packed + first / GEMM_NR * groups * size;
    for (size_t j = 0; j < round_up(count, GEMM_NR); j++) {
        for (size_t g = 0; g < groups; g++) {
            uint8_t made[HA_GROUP_MOST_BYTES] = {0};
            if (w != NULL && j < count) {
                ha_store_group(made, bits, w + j * ldw + g * HA_GROUP, k - g * HA_GROUP);
            }
            group_place(out + (j / GEMM_NR * groups + g) * size, bits, j % GEMM_NR, rows != NULL && j < count ? rows + (j * groups + g) * stored : made);
        }
    }
}

/* -- x -- */

/* One group of a row, n elements of which are left, into words of a tile of `rows` rows. */
static void
group_round(uint32_t *tile, size_t rows, int bits, const float *x, size_t n)
{
    vf most = vf_set1(0.0f), wrong = vf_set1(0.0f), a[HA_GROUP / VF_LANES];
    int8_t bytes[HA_GROUP];
    for (size_t i = 0; i < HA_GROUP / VF_LANES; i++) {
        const size_t p = i * VF_LANES;
        a[i] = p < n ? read_n(x + p, n - p) : vf_set1(0.0f);
        most = vf_max(vf_abs(a[i]), most);
        wrong = vf_fma(a[i], vf_set1(0.0f), wrong);
    }
    float largest = vf_max_lanes(most), scale = largest / 127.0f, other = 0.0f;
    const int finite = vf_sum(wrong) == 0.0f, small = !(largest >= 0x1p-100f);
    const float to = finite && !small ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    for (size_t i = 0; i < HA_GROUP / VF_LANES; i++) {
        vf_store_s8(bytes + i * VF_LANES, to > 0.0f ? vf_round(vf_mul(a[i], vf_set1(to))) : vf_set1(0.0f));
    }
    for (size_t i = 0; i < HA_GROUP; i++) {
        sum += bytes[i];
    }
    scale = !finite ? NAN : small ? 0.0f : scale;
    memcpy(tile, &scale, sizeof(scale));
    if (bits == 4) {
        other = scale * (float)sum;
        memcpy(tile + rows, &other, sizeof(other));
    }
    else {
        tile[rows] = (uint32_t)(-GROUP_BIAS * sum);
    }
    for (size_t s = 0; s < GROUP_STEPS; s++) {
        memcpy(tile + (2 + s) * rows, bytes + 4 * s, 4);
    }
}

static void
group_pack_rows(uint32_t *tile, size_t rows, int bits, const float *x, size_t ldx, size_t k)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t p = 0; p < k; p += HA_GROUP) {
            group_round(tile + p / HA_GROUP * GROUP_WORDS * rows + r, rows, bits, x + r * ldx + p, k - p);
        }
    }
}

/* -- a tile of y -- */

typedef struct group_tile {
    float *y;
    size_t ldy, cols;           /* cols <= GEMM_NR of them are stored */
    size_t groups;
    const uint32_t *x;
    const uint8_t *w, *ahead;   /* while the tile is computed, ahead_step bytes from `ahead` on are asked for with each group */
    size_t ahead_step;
    const float *bias;          /* or NULL */
} group_tile;

/* Steps [first, first + 4) of a group; w points to their bytes. */
HA_INLINE void
group_steps(const size_t rows, const int bits, const int high, const uint32_t *x, const uint8_t *w, va acc[GEMM_MR][GEMM_NV])
{
#pragma GCC unroll 4
    for (size_t s = 0; s < 4; s++) {
        vg b[GEMM_NV];
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            const vg bytes = vg_load(w + (s * GEMM_NR + v * VF_LANES) * 4);
            b[v] = bits == 8 ? bytes : high ? vg_high(bytes) : vg_low(bytes);
        }
#pragma GCC unroll 16
        for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (size_t v = 0; v < GEMM_NV; v++) {
                acc[r][v] = bits == 8 ? va_dot8(acc[r][v], x[s * rows + r], b[v]) : va_dot4(acc[r][v], x[s * rows + r], b[v]);
            }
        }
    }
}

HA_INLINE float
float_at(const uint32_t *word)
{
    float f;
    memcpy(&f, word, sizeof(f));
    return f;
}

/* rows and bits are constants wherever this is inlined, so that acc lives in registers. */
HA_INLINE void
group_tile_body(const size_t rows, const int bits, const group_tile *t)
{
    const size_t size = group_bytes(bits), header = (bits == 4 ? 2 : 1) * GEMM_NR * sizeof(uint16_t);
    const uint32_t *x = t->x;
    const uint8_t *w = t->w, *ahead = t->ahead;
    vf sum[GEMM_MR][GEMM_NV];
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            sum[r][v] = vf_set1(0.0f);
        }
        __builtin_prefetch(t->y + r * t->ldy, 1);
        __builtin_prefetch(t->y + r * t->ldy + GEMM_NR - 1, 1);
    }
    for (size_t g = 0; g < t->groups; g++, x += GROUP_WORDS * rows, w += size, ahead += t->ahead_step) {
        va acc[GEMM_MR][GEMM_NV];
        for (size_t at = 0; at < t->ahead_step; at += 64) {
            __builtin_prefetch(ahead + at, 0, 2);
        }
#pragma GCC unroll 16
        for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (size_t v = 0; v < GEMM_NV; v++) {
                acc[r][v] = bits == 8 ? va_begin8((int32_t)x[rows + r]) : va_begin4();
            }
        }
        group_steps(rows, bits, 0, x + 2 * rows, w + header, acc);
        group_steps(rows, bits, 1, x + 6 * rows, w + header + (bits == 8 ? 4 * GEMM_NR * 4 : 0), acc);
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            const vf scale = vf_load_f16((const uint16_t *)(const void *)w + v * VF_LANES);
            const vf least = bits == 4 ? vf_load_f16((const uint16_t *)(const void *)w + GEMM_NR + v * VF_LANES) : scale;
#pragma GCC unroll 16
            for (size_t r = 0; r < rows; r++) {
                const vf total = bits == 8 ? va_total8(acc[r][v]) : va_total4(acc[r][v]);
                sum[r][v] = vf_fma(total, vf_mul(vf_set1(float_at(x + r)), scale), sum[r][v]);
                if (bits == 4) {
                    sum[r][v] = vf_fma(vf_set1(float_at(x + rows + r)), least, sum[r][v]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (size_t v = 0; v < GEMM_NV; v++) {
            const size_t j = v * VF_LANES;
            if (j < t->cols) {
                const vf base = t->bias != NULL ? read_n(t->bias + j, t->cols - j) : vf_set1(0.0f);
                write_n(t->y + r * t->ldy + j, vf_add(sum[r][v], base), t->cols - j);
            }
        }
    }
}

typedef void (*group_fn)(const group_tile *t);
enum { GROUPS_8, GROUPS_4 };
#ifdef HA_GUARD_ONLY      /* a build without decoders, which alone have weights of these formats */
static const group_fn tiles_groups[2][GEMM_MR];
#else
#undef TILE
#define TILE(bits, rows) static void tile_##bits##_##rows(const group_tile *t) { group_tile_body(rows, bits == GROUPS_4 ? 4 : 8, t); }
TILES(GEMM_MR, GROUPS_8)
TILES(GEMM_MR, GROUPS_4)
static const group_fn tiles_groups[2][GEMM_MR] = {{NAMES(GEMM_MR, GROUPS_8)}, {NAMES(GEMM_MR, GROUPS_4)}};
#endif
