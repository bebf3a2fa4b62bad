#include "models/attention_impl.h"

#include "core/parallel.h"

/* One thread's part of the scratch. */
typedef struct workspace {
    float *scores;                  /* (HA_QUERY_BLOCK, longest row) */
    float *c2p, *p2c;               /* (HA_QUERY_BLOCK, table rows in use), (longest row, table rows in use): relative positions only */
    void *pack;
} workspace;

/* Floats of each part. */
typedef struct sizes {
    size_t scores, c2p, p2c, pack, total;
} sizes;

/* Packing bytes of the products over a block of m queries of a row of n keys. */
static size_t
block_pack_bytes(const ha_attention *a, size_t m, size_t n)
{
    size_t (*bytes)(size_t, size_t, size_t, int) = a->kernels->gemm_scratch_bytes;
    size_t most = larger(bytes(m, n, a->head_dim, 1), bytes(m, a->head_dim, n, 1));
    if (a->relative != NULL) {
        size_t first;
        const size_t rows = table_rows(a, 1 - (ptrdiff_t)n, (ptrdiff_t)n - 1, &first);
        most = larger(most, larger(bytes(m, rows, a->head_dim, 1), bytes(n, rows, a->head_dim, 1)));
    }
    return most;
}

static size_t
pack_bytes(const ha_attention *a)
{
    size_t most = 0;
    for (size_t i = 0; i < a->n_rows; i++) {
        const size_t keys = length_of(a, i), queries = a->cls_only ? 1 : keys;
        if (queries >= HA_QUERY_BLOCK) {
            most = larger(most, block_pack_bytes(a, HA_QUERY_BLOCK, keys));
        }
        if (queries % HA_QUERY_BLOCK != 0) {
            most = larger(most, block_pack_bytes(a, queries % HA_QUERY_BLOCK, keys));
        }
    }
    return most;
}

static sizes
sizes_of(const ha_attention *a)
{
    const size_t longest = longest_row(a);
    sizes s = {.scores = whole_lines(HA_QUERY_BLOCK * longest), .pack = whole_lines(pack_bytes(a) / sizeof(float) + 1)};
    if (a->relative != NULL) {
        size_t first;
        const size_t rows = table_rows(a, 1 - (ptrdiff_t)longest, (ptrdiff_t)longest - 1, &first);
        s.c2p = whole_lines(HA_QUERY_BLOCK * rows);
        s.p2c = a->cls_only ? 0 : whole_lines(longest * rows);
    }
    s.total = s.scores + s.c2p + s.p2c + s.pack;
    return s;
}

static workspace
workspace_of(void *scratch, const sizes *s, int thread)
{
    float *base = (float *)scratch + (size_t)thread * s->total, *end = base + s->total;
    return (workspace){.scores = base, .pack = end - s->pack, .p2c = end - s->pack - s->p2c, .c2p = end - s->pack - s->p2c - s->c2p};
}

size_t
ha_attention_scratch_bytes(const ha_attention *attention, int n_threads)
{
    return sizes_of(attention).total * sizeof(float) * (size_t)ha_threads_for(attention_work(attention), HA_ATTENTION_GRAIN, n_threads);
}

/* p2c (n, table rows in use) of a row of n keys: K query^T. For one query a row, add_relative multiplies what it needs. */
static void
positions_to_content(const ha_attention *a, const float *k, size_t head, size_t n, const workspace *w)
{
    size_t first;
    const size_t rows = table_rows(a, 1 - (ptrdiff_t)n, (ptrdiff_t)n - 1, &first), width = a->n_heads * a->head_dim;
    product(a, n, rows, a->head_dim, k, (ptrdiff_t)a->ldkv, 1, a->relative->query + first * width + head * a->head_dim, 1, (ptrdiff_t)width,
            0.0f, w->p2c, rows, w->pack);
}

/* Adds the terms of the relative positions to the scores (m, n) of queries [i, i + m) of a row of n keys. */
static void
add_relative(const ha_attention *a, const float *q, const float *k, size_t head, size_t i, size_t m, size_t n, const workspace *w)
{
    const ha_relative *rel = a->relative;
    const size_t width = a->n_heads * a->head_dim, at = head * a->head_dim;
    size_t first, all_first;
    const size_t rows = table_rows(a, (ptrdiff_t)i - (ptrdiff_t)(n - 1), (ptrdiff_t)(i + m - 1), &first);
    const size_t all_rows = table_rows(a, 1 - (ptrdiff_t)n, (ptrdiff_t)n - 1, &all_first);
    if (rel->key != NULL) {
        product(a, m, rows, a->head_dim, q, (ptrdiff_t)a->ldq, 1, rel->key + first * width + at, 1, (ptrdiff_t)width, 0.0f, w->c2p, rows, w->pack);
    }
    for (size_t r = 0; r < m; r++) {
        float *scores = w->scores + r * n;
        const int32_t *row = rel->row + (i + r);    /* of key j: row[-j] */
        for (size_t j = 0; rel->key != NULL && j < n; j++) {
            scores[j] += w->c2p[r * rows + (size_t)row[-(ptrdiff_t)j] - first];
        }
        for (size_t j = 0; rel->query != NULL && j < n; j++) {
            const size_t t = (size_t)row[-(ptrdiff_t)j];
            scores[j] += a->cls_only ? a->kernels->dot_f32(k + j * a->ldkv, rel->query + t * width + at, a->head_dim)
                                     : w->p2c[j * all_rows + t - all_first];
        }
    }
}

static void
forward_row(const ha_attention *a, size_t row, size_t head, float *out, size_t ldo, const workspace *w)
{
    const size_t keys = length_of(a, row), queries = a->cls_only ? 1 : keys;
    const size_t first_key = (size_t)a->offsets[row], first_query = a->cls_only ? row : first_key, d = a->head_dim;
    const float *k = a->k + first_key * a->ldkv + head * d, *v = a->v + first_key * a->ldkv + head * d;
    if (a->relative != NULL && a->relative->query != NULL && !a->cls_only) {
        positions_to_content(a, k, head, keys, w);
    }
    for (size_t i = 0; i < queries; i += HA_QUERY_BLOCK) {
        const size_t m = smaller(queries - i, HA_QUERY_BLOCK), query = first_query + i;
        const float *q = a->q + query * a->ldq + head * d;
        size_t first, end;
        keys_of(a, i, m, keys, &first, &end);
        const size_t n = end - first;
        product(a, m, n, d, q, (ptrdiff_t)a->ldq, 1, k + first * a->ldkv, 1, (ptrdiff_t)a->ldkv, 0.0f, w->scores, n, w->pack);
        if (a->relative != NULL) {
            add_relative(a, q, k, head, i, m, n, w);
        }
        softmax_of_block(a, w->scores, i, m, first, n);
        if (a->dropout.drop != 0) {
            drop_block(a, query, head, first, w->scores, w->scores, m, n);
        }
        product(a, m, d, n, w->scores, (ptrdiff_t)n, 1, v + first * a->ldkv, (ptrdiff_t)a->ldkv, 1, 0.0f, out + query * ldo + head * d, ldo, w->pack);
    }
}

void
ha_attention_forward(const ha_attention *attention, float *out, size_t ldo, void *scratch, int n_threads)
{
    const ha_attention *a = attention;
    const sizes s = sizes_of(a);
    const size_t tasks = a->n_rows * a->n_heads;
    const int n = ha_threads_for(attention_work(a), HA_ATTENTION_GRAIN, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)tasks; t++) {
        const workspace w = workspace_of(scratch, &s, ha_thread_index());
        forward_row(a, (size_t)t / a->n_heads, (size_t)t % a->n_heads, out, ldo, &w);
    }
}
