/* Attention of one head over one row of tokens, with all of it in the near caches.
 *
 * Scores are held transposed, S^T[key][query], in panels [keys][GEMM_NR] of queries: the softmax of a query is then a walk along one lane, the terms
 * that depend on the key and a distance lie beside each other, and a panel of probabilities is the second operand of the last product as it stands. */

#define ATTEND_BLOCK (60 / GEMM_MR)     /* tiles of keys whose products with the table of positions are held at once, ... */
#define ATTEND_BLOCK_SMALL (12 / GEMM_MR > 0 ? 12 / GEMM_MR : 1)    /* ... for a single panel of queries, whose distances are few */
#define ATTEND_SUM 32                   /* terms of a sum's first level */

_Static_assert(GEMM_NR <= HA_ATTEND_PAD, "a panel's idle lanes read the table of rows past its end");

typedef struct attend_run {
    const ha_attend *a;
    size_t tiles, panels;       /* of keys, of queries */
    float *k_tiles, *v_tiles;   /* keys as row tiles [d][rows]; values transposed, as row tiles [keys][rows of d] */
    float *q_panel;             /* [d][GEMM_NR], and then the same queries as row tiles */
    float *scores;              /* [panels][keys][GEMM_NR] */
    float *positions;           /* products with the table: (block of keys, columns) or (GEMM_NR, columns) */
    float *square;              /* (GEMM_NR, GEMM_NR), twice */
    float *out;                 /* (d, GEMM_NR) */
    float *table;               /* a panel of a table of bfloat16, widened */
} attend_run;

static size_t
attend_width(const ha_attend *a)
{
    return round_up(a->table_rows, GEMM_NR) + GEMM_NR;
}

/* Lays the buffers out from `base` on; returns how many floats they are. */
static size_t
attend_lay_out(const ha_attend *a, attend_run *run, float *base)
{
    const size_t block = ATTEND_BLOCK * GEMM_MR > GEMM_NR ? ATTEND_BLOCK * GEMM_MR : GEMM_NR, d = round_up(a->d, 16);
    size_t used = 0;
    run->a = a;
    run->tiles = (a->n + GEMM_MR - 1) / GEMM_MR;
    run->panels = (a->m + GEMM_NR - 1) / GEMM_NR;
    const size_t sizes[8] = {round_up(a->n, 16) * d, round_up(a->n, 16) * d + 16, 2 * d * GEMM_NR, run->panels * a->n * GEMM_NR,
                             a->key != NULL || a->query != NULL ? block * attend_width(a) : 0, 2 * GEMM_NR * GEMM_NR, d * GEMM_NR,
                             a->table_bf16 ? d * GEMM_NR : 0};
    float **const parts[8] = {&run->k_tiles, &run->v_tiles, &run->q_panel, &run->scores, &run->positions, &run->square, &run->out, &run->table};
    for (size_t i = 0; i < 8; i++) {
        *parts[i] = base != NULL ? base + used : NULL;
        used += round_up(sizes[i], 16);
    }
    return used;
}

static size_t
attend_scratch_bytes(const ha_attend *a)
{
    attend_run run;
    return attend_lay_out(a, &run, NULL) * sizeof(float) + 64;
}

/* Row tiles [first_tile, end_tile) of m rows by one panel b [k][GEMM_NR]; c is the first tile's first row. */
static void
attend_product(const float *tiles_at, size_t m, size_t tiles, size_t first_tile, size_t end_tile, const float *b, size_t k, float *c, size_t ldc)
{
    const size_t block = gemm_block(k), top = tile_start(first_tile, tiles, m);
    tile_out out = {.ldc = ldc, .cols = GEMM_NR, .alpha = 1.0f, .ahead = (const char *)b};
    for (size_t k0 = 0; k0 < k; k0 += block) {
        const size_t kc = k - k0 < block ? k - k0 : block;
        out.beta = k0 == 0 ? 0.0f : 1.0f;
        for (size_t t = first_tile; t < end_tile; t++) {
            const size_t first = tile_start(t, tiles, m), rows = tile_start(t + 1, tiles, m) - first;
            out.c = c + (first - top) * ldc;
            tiles_f32[rows - 1](kc, tiles_at + first * k + k0 * rows, b + k0 * GEMM_NR, &out);
        }
    }
}

static void
attend_pack(float *out, const float *x, ptrdiff_t x_row, ptrdiff_t x_col, size_t rows, size_t cols)
{
    const size_t tiles = (rows + GEMM_MR - 1) / GEMM_MR;
    for (size_t t = 0; t < tiles; t++) {
        const size_t first = tile_start(t, tiles, rows), count = tile_start(t + 1, tiles, rows) - first;
        pack(out + first * cols, count, x + (ptrdiff_t)first * x_row, x_row, x_col, count, cols);
    }
}

/* Values transposed. A whole vector is stored where a tile has fewer rows: what runs over is written again by what comes next. */
static void
attend_pack_values(float *out, const ha_attend *a)
{
    const size_t tiles = (a->d + GEMM_MR - 1) / GEMM_MR;
    for (size_t t = 0; t < tiles; t++) {
        const size_t first = tile_start(t, tiles, a->d), rows = tile_start(t + 1, tiles, a->d) - first;
        for (size_t j = 0; j < a->n; j++, out += rows) {
            for (size_t r = 0; r < rows; r += VF_LANES) {
                const float *v = a->v + j * a->ldkv + first + r;
                if (first + r + VF_LANES <= a->d) {
                    vf_store(out + r, vf_load(v));
                } else {
                    write_n(out + r, read_n(v, rows - r), rows - r);
                }
            }
        }
    }
}

static size_t
attend_cols(const ha_attend *a, size_t panel)
{
    return a->m - panel * GEMM_NR < GEMM_NR ? a->m - panel * GEMM_NR : GEMM_NR;
}

/* The row of the table that a whole panel begins with, so that distances from `least` to `most` lie within the returned number of panels. */
static size_t
attend_table_panels(const ha_attend *a, ptrdiff_t least, ptrdiff_t most, size_t *first)
{
    *first = (size_t)a->row[least] / GEMM_NR;
    return (size_t)a->row[most] / GEMM_NR - *first + 1;
}

/* A panel of a table in float32. */
static const float *
attend_table_panel(const attend_run *run, const void *table, size_t panel)
{
    const size_t n = run->a->d * GEMM_NR;
    if (!run->a->table_bf16) {
        return (const float *)table + panel * n;
    }
    for (size_t i = 0; i < n; i += VF_LANES) {
        vf_store(run->table + i, vf_load_bf16((const uint16_t *)table + panel * n + i));
    }
    return run->table;
}

/* S^T[key][query] += K_key . query_r, r the row of the distance of the two, for all queries, a block of keys at a time. */
static void
attend_add_p2c(const attend_run *run)
{
    const ha_attend *a = run->a;
    const size_t step = run->panels > 1 ? ATTEND_BLOCK : ATTEND_BLOCK_SMALL;
    for (size_t t = 0; t < run->tiles; t += step) {
        const size_t end_tile = run->tiles - t < step ? run->tiles : t + step;
        const size_t j0 = tile_start(t, run->tiles, a->n), j1 = tile_start(end_tile, run->tiles, a->n);
        const ptrdiff_t nearest = (ptrdiff_t)a->first - (ptrdiff_t)a->first_key;
        size_t first;
        const size_t panels = attend_table_panels(a, nearest - (ptrdiff_t)(j1 - 1), nearest + (ptrdiff_t)(run->panels * GEMM_NR - 1) - (ptrdiff_t)j0, &first);
        const size_t ld = panels * GEMM_NR;
        for (size_t p = 0; p < panels; p++) {
            attend_product(run->k_tiles, a->n, run->tiles, t, end_tile, attend_table_panel(run, a->query, first + p), a->d, run->positions + p * GEMM_NR, ld);
        }
        for (size_t panel = 0; panel < run->panels; panel++) {
            for (size_t j = j0; j < j1; j++) {
                float *s = run->scores + (panel * a->n + j) * GEMM_NR;
                const float *products = run->positions + (j - j0) * ld;
                const int32_t *row = a->row + (nearest + (ptrdiff_t)(panel * GEMM_NR) - (ptrdiff_t)j);
                for (size_t v = 0; v < GEMM_NR; v += VF_LANES) {
                    vf_store(s + v, vf_add(vf_load(s + v), vf_pick(products, row + v, (int32_t)(first * GEMM_NR))));
                }
            }
        }
    }
}

/* S^T[key][query] += Q_query . key_r for one panel of queries. */
static void
attend_add_c2p(const attend_run *run, size_t panel, const float *q_tiles)
{
    const ha_attend *a = run->a;
    const size_t cols = attend_cols(a, panel), tiles = (cols + GEMM_MR - 1) / GEMM_MR;
    const ptrdiff_t nearest = (ptrdiff_t)(a->first + panel * GEMM_NR) - (ptrdiff_t)a->first_key;
    size_t first;
    const size_t panels = attend_table_panels(a, nearest - (ptrdiff_t)(round_up(a->n, GEMM_NR) - 1), nearest + (ptrdiff_t)cols - 1, &first);
    const size_t ld = panels * GEMM_NR;
    float *square = run->square, *turned = run->square + GEMM_NR * GEMM_NR;
    for (size_t p = 0; p < panels; p++) {
        attend_product(q_tiles, cols, tiles, 0, tiles, attend_table_panel(run, a->key, first + p), a->d, run->positions + p * GEMM_NR, ld);
    }
    memset(square, 0, GEMM_NR * GEMM_NR * sizeof(*square));     /* idle lanes */
    for (size_t j0 = 0; j0 < a->n; j0 += GEMM_NR) {     /* distances rise while keys fall: element e of a row of the square is key j0 + GEMM_NR - 1 - e */
        for (size_t r = 0; r < cols; r++) {
            const int32_t *row = a->row + (nearest + (ptrdiff_t)r - (ptrdiff_t)(j0 + GEMM_NR - 1));
            for (size_t v = 0; v < GEMM_NR; v += VF_LANES) {
                vf_store(square + r * GEMM_NR + v, vf_pick(run->positions + r * ld, row + v, (int32_t)(first * GEMM_NR)));
            }
        }
        pack_transposed(turned, GEMM_NR, square, GEMM_NR, GEMM_NR, GEMM_NR);
        for (size_t e = j0 + GEMM_NR > a->n ? j0 + GEMM_NR - a->n : 0; e < GEMM_NR; e++) {
            float *s = run->scores + (panel * a->n + j0 + GEMM_NR - 1 - e) * GEMM_NR;
            for (size_t v = 0; v < GEMM_NR; v += VF_LANES) {
                vf_store(s + v, vf_add(vf_load(s + v), vf_load(turned + e * GEMM_NR + v)));
            }
        }
    }
}

/* Scores of keys that a query does not see become -infinity. */
static void
attend_hide(const attend_run *run, size_t panel)
{
    const ha_attend *a = run->a;
    const size_t i0 = a->first + panel * GEMM_NR;
    for (size_t j = 0; j < a->n; j++) {
        const size_t key = a->first_key + j;
        if (key + a->window >= i0 + GEMM_NR - 1 && key <= i0 + a->window) {
            continue;
        }
        for (size_t lane = 0; lane < GEMM_NR; lane++) {
            if (key + a->window < i0 + lane || key > i0 + lane + a->window) {
                run->scores[(panel * a->n + j) * GEMM_NR + lane] = -INFINITY;
            }
        }
    }
}

/* S^T becomes exp(scale (S - max)), the lane's sum of which is returned in `sum` (GEMM_NR,). */
static void
attend_exp(float *scores, size_t n, float scale, float *sum)
{
    for (size_t v = 0; v < GEMM_NR; v += VF_LANES) {
        vf most = vf_load(scores + v), total = vf_set1(0.0f);
        for (size_t j = 1; j < n; j++) {
            most = vf_max(most, vf_load(scores + j * GEMM_NR + v));
        }
        for (size_t j0 = 0; j0 < n; j0 += ATTEND_SUM) {
            const size_t end = n - j0 < ATTEND_SUM ? n : j0 + ATTEND_SUM;
            vf part = vf_set1(0.0f);
            for (size_t j = j0; j < end; j++) {
                const vf e = vf_exp(vf_mul(vf_set1(scale), vf_sub(vf_load(scores + j * GEMM_NR + v), most)));
                vf_store(scores + j * GEMM_NR + v, e);
                part = vf_add(part, e);
            }
            total = vf_add(total, part);
        }
        vf_store(sum + v, total);
    }
}

static void
attend_f32(const ha_attend *a, void *scratch)
{
    attend_run run;
    float sum[GEMM_NR];
    const size_t d = a->d, d_tiles = (d + GEMM_MR - 1) / GEMM_MR;
    attend_lay_out(a, &run, align_64(scratch));
    attend_pack(run.k_tiles, a->k, (ptrdiff_t)a->ldkv, 1, a->n, d);
    attend_pack_values(run.v_tiles, a);
    float *q_tiles = run.q_panel + round_up(d, 16) * GEMM_NR;
    for (size_t panel = 0; panel < run.panels; panel++) {
        const float *q = a->q + panel * GEMM_NR * a->ldq;
        pack_panel(run.q_panel, q, 1, (ptrdiff_t)a->ldq, d, attend_cols(a, panel));
        attend_product(run.k_tiles, a->n, run.tiles, 0, run.tiles, run.q_panel, d, run.scores + panel * a->n * GEMM_NR, GEMM_NR);
        if (a->key != NULL) {
            attend_pack(q_tiles, q, (ptrdiff_t)a->ldq, 1, attend_cols(a, panel), d);
            attend_add_c2p(&run, panel, q_tiles);
        }
    }
    if (a->query != NULL) {
        attend_add_p2c(&run);
    }
    for (size_t panel = 0; panel < run.panels; panel++) {
        float *scores = run.scores + panel * a->n * GEMM_NR;
        if (a->window > 0) {
            attend_hide(&run, panel);
        }
        attend_exp(scores, a->n, a->scale, sum);
        attend_product(run.v_tiles, d, d_tiles, 0, d_tiles, scores, a->n, run.out, GEMM_NR);
        for (size_t v = 0; v < GEMM_NR; v += VF_LANES) {
            const vf inverse = vf_div(vf_set1(1.0f), vf_load(sum + v));
            for (size_t r = 0; r < d; r++) {
                vf_store(run.out + r * GEMM_NR + v, vf_mul(vf_load(run.out + r * GEMM_NR + v), inverse));
            }
        }
        pack_transposed(a->out + panel * GEMM_NR * a->ldo, a->ldo, run.out, GEMM_NR, d, attend_cols(a, panel));
    }
}
