#include "models/attention.h"

#include <string.h>

#include "core/parallel.h"

#define QUERY_BLOCK 64          /* queries whose scores are held at once */
#define GRAIN ((size_t)1 << 17) /* multiplications a thread */
#define ALIGN 64

/* One thread's part of the scratch. */
typedef struct workspace {
    float *scores, *grads, *kept;   /* (QUERY_BLOCK, longest row) each; grads and kept in the backward pass only */
    float *c2p, *p2c;               /* (QUERY_BLOCK, table rows in use), (longest row, table rows in use): relative positions only */
    void *pack;
} workspace;

/* Floats of each part. */
typedef struct sizes {
    size_t scores, c2p, p2c, pack, total;
} sizes;

static size_t
length_of(const ha_attention *a, size_t row)
{
    return (size_t)(a->offsets[row + 1] - a->offsets[row]);
}

static size_t
longest_row(const ha_attention *a)
{
    size_t longest = 1;
    for (size_t i = 0; i < a->n_rows; i++) {
        longest = length_of(a, i) > longest ? length_of(a, i) : longest;
    }
    return longest;
}

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t
smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The keys that queries [i, i + m) of a row of n see. */
static void
keys_of(const ha_attention *a, size_t i, size_t m, size_t n, size_t *first, size_t *end)
{
    *first = a->window > 0 && i > a->window ? i - a->window : 0;
    *end = a->window > 0 ? smaller(n, i + m + a->window) : n;
}

/* The table's rows that distances from `least` to `most` use: the first, and how many. */
static size_t
table_rows(const ha_attention *a, ptrdiff_t least, ptrdiff_t most, size_t *first)
{
    *first = (size_t)a->relative->row[least];
    return (size_t)a->relative->row[most] - *first + 1;
}

/* Packing bytes of the products over a block of m queries of a row of n keys. */
static size_t
block_pack_bytes(const ha_attention *a, size_t m, size_t n, int backward)
{
    size_t (*bytes)(size_t, size_t, size_t, int) = a->kernels->gemm_scratch_bytes;
    size_t most = larger(bytes(m, n, a->head_dim, 1), bytes(m, a->head_dim, n, 1));
    if (a->relative != NULL) {
        size_t first;
        const size_t rows = table_rows(a, 1 - (ptrdiff_t)n, (ptrdiff_t)n - 1, &first);
        most = larger(most, larger(bytes(m, rows, a->head_dim, 1), bytes(n, rows, a->head_dim, 1)));
    }
    return backward ? larger(most, bytes(n, a->head_dim, m, 1)) : most;
}

static size_t
pack_bytes(const ha_attention *a, int backward)
{
    size_t most = 0;
    for (size_t i = 0; i < a->n_rows; i++) {
        const size_t keys = length_of(a, i), queries = a->cls_only ? 1 : keys;
        if (queries >= QUERY_BLOCK) {
            most = larger(most, block_pack_bytes(a, QUERY_BLOCK, keys, backward));
        }
        if (queries % QUERY_BLOCK != 0) {
            most = larger(most, block_pack_bytes(a, queries % QUERY_BLOCK, keys, backward));
        }
    }
    return most;
}

static size_t
whole_lines(size_t floats)
{
    return (floats + ALIGN / sizeof(float) - 1) / (ALIGN / sizeof(float)) * (ALIGN / sizeof(float));
}

static sizes
sizes_of(const ha_attention *a, int backward)
{
    const size_t longest = longest_row(a);
    sizes s = {.scores = whole_lines(QUERY_BLOCK * longest), .pack = whole_lines(pack_bytes(a, backward) / sizeof(float) + 1)};
    if (a->relative != NULL) {
        size_t first;
        const size_t rows = table_rows(a, 1 - (ptrdiff_t)longest, (ptrdiff_t)longest - 1, &first);
        s.c2p = whole_lines(QUERY_BLOCK * rows);
        s.p2c = a->cls_only ? 0 : whole_lines(longest * rows);
    }
    s.total = (backward ? 3 : 1) * s.scores + s.c2p + s.p2c + s.pack;
    return s;
}

static workspace
workspace_of(void *scratch, const sizes *s, int backward, int thread)
{
    float *base = (float *)scratch + (size_t)thread * s->total, *end = base + s->total;
    workspace w = {.scores = base, .pack = end - s->pack, .p2c = end - s->pack - s->p2c, .c2p = end - s->pack - s->p2c - s->c2p};
    if (backward) {
        w.grads = base + s->scores;
        w.kept = base + 2 * s->scores;
    }
    return w;
}

static int
threads_for(const ha_attention *a, int n_threads)
{
    size_t work = 0;
    for (size_t i = 0; i < a->n_rows; i++) {
        work += length_of(a, i) * (a->cls_only ? 1 : length_of(a, i)) * a->head_dim;
    }
    return ha_threads_for(work * a->n_heads, GRAIN, n_threads);
}

size_t
ha_attention_scratch_bytes(const ha_attention *attention, int backward, int n_threads)
{
    return sizes_of(attention, backward).total * sizeof(float) * (size_t)threads_for(attention, n_threads);
}

/* C (m, n) = A B + beta C by strides, on this thread. */
static void
product(const ha_attention *a, size_t m, size_t n, size_t k, const float *x, ptrdiff_t x_row, ptrdiff_t x_col,
        const float *y, ptrdiff_t y_row, ptrdiff_t y_col, float beta, float *out, size_t ldo, void *pack)
{
    const ha_gemm gemm = {.m = m, .n = n, .k = k, .alpha = 1.0f, .beta = beta, .a = x, .a_row = x_row, .a_col = x_col,
                          .b = y, .b_row = y_row, .b_col = y_col, .c = out, .ldc = ldo};
    a->kernels->gemm_f32(&gemm, pack, 1);
}

/* scores (m, n) = softmax(scale Q K^T) of queries [first, first + m). */
static void
probabilities(const ha_attention *a, const float *q, const float *k, size_t m, size_t n, const workspace *w)
{
    product(a, m, n, a->head_dim, q, (ptrdiff_t)a->ldq, 1, k, 1, (ptrdiff_t)a->ldkv, 0.0f, w->scores, n, w->pack);
    a->kernels->softmax_f32(w->scores, m, n, n, a->scale);
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

/* Softmax of each query's scores (m, n) over the keys that it sees; 0 elsewhere. Query r of the block is query i + r of its row, key 0 of the block
 * key first of the row. */
static void
windowed_softmax(const ha_attention *a, float *scores, size_t i, size_t m, size_t first, size_t n)
{
    for (size_t r = 0; r < m; r++, scores += n) {
        size_t begin, end;
        keys_of(a, i + r, 1, first + n, &begin, &end);
        begin -= first;
        end -= first;
        a->kernels->softmax_f32(scores + begin, 1, end - begin, n, a->scale);
        memset(scores, 0, begin * sizeof(*scores));
        memset(scores + end, 0, (n - end) * sizeof(*scores));
    }
}

static void
drop_block(const ha_attention *a, size_t query, size_t head, float *out, const float *x, size_t m, size_t n)
{
    for (size_t i = 0; i < m; i++) {
        ha_dropout_row(&a->dropout, (uint64_t)(query + i) * a->n_heads + head, out + i * n, x + i * n, n);
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
    for (size_t i = 0; i < queries; i += QUERY_BLOCK) {
        const size_t m = smaller(queries - i, QUERY_BLOCK), query = first_query + i;
        const float *q = a->q + query * a->ldq + head * d;
        size_t first, end;
        keys_of(a, i, m, keys, &first, &end);
        const size_t n = end - first;
        product(a, m, n, d, q, (ptrdiff_t)a->ldq, 1, k + first * a->ldkv, 1, (ptrdiff_t)a->ldkv, 0.0f, w->scores, n, w->pack);
        if (a->relative != NULL) {
            add_relative(a, q, k, head, i, m, n, w);
        }
        if (a->window > 0) {
            windowed_softmax(a, w->scores, i, m, first, n);
        } else {
            a->kernels->softmax_f32(w->scores, m, n, n, a->scale);
        }
        if (a->dropout.drop != 0) {
            drop_block(a, query, head, w->scores, w->scores, m, n);
        }
        product(a, m, d, n, w->scores, (ptrdiff_t)n, 1, v + first * a->ldkv, (ptrdiff_t)a->ldkv, 1, 0.0f, out + query * ldo + head * d, ldo, w->pack);
    }
}

void
ha_attention_forward(const ha_attention *attention, float *out, size_t ldo, void *scratch, int n_threads)
{
    const ha_attention *a = attention;
    const sizes s = sizes_of(a, 0);
    const size_t tasks = a->n_rows * a->n_heads;
    const int n = threads_for(a, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)tasks; t++) {
        const workspace w = workspace_of(scratch, &s, 0, ha_thread_index());
        forward_row(a, (size_t)t / a->n_heads, (size_t)t % a->n_heads, out, ldo, &w);
    }
}

/* With P the probabilities, M the dropout mask with its scale and R = P * M: dV = R^T dO, dP = (dO V^T) * M,
 * dS = softmax_backward(P, dP), dQ = dS K, dK = dS^T Q. dK and dV add up over the blocks in their order. */
static void
backward_row(const ha_attention *a, size_t row, size_t head, const float *dout, size_t ldo, float *dq, float *dk, float *dv,
             const workspace *w)
{
    const size_t keys = length_of(a, row), queries = a->cls_only ? 1 : keys;
    const size_t first_key = (size_t)a->offsets[row], first_query = a->cls_only ? row : first_key, d = a->head_dim;
    const size_t kv = first_key * a->ldkv + head * d;
    const ptrdiff_t ld = (ptrdiff_t)keys, ldq = (ptrdiff_t)a->ldq, ldkv = (ptrdiff_t)a->ldkv;
    for (size_t i = 0; i < queries; i += QUERY_BLOCK) {
        const size_t m = smaller(queries - i, QUERY_BLOCK), query = first_query + i;
        const float *q = a->q + query * a->ldq + head * d, *g = dout + query * ldo + head * d, *used = w->scores;
        const float beta = i > 0 ? 1.0f : 0.0f;
        probabilities(a, q, a->k + kv, m, keys, w);
        product(a, m, keys, d, g, (ptrdiff_t)ldo, 1, a->v + kv, 1, ldkv, 0.0f, w->grads, keys, w->pack);
        if (a->dropout.drop != 0) {
            drop_block(a, query, head, w->kept, w->scores, m, keys);
            drop_block(a, query, head, w->grads, w->grads, m, keys);
            used = w->kept;
        }
        product(a, keys, d, m, used, 1, ld, g, (ptrdiff_t)ldo, 1, beta, dv + kv, a->ldkv, w->pack);
        a->kernels->softmax_backward_f32(w->grads, w->grads, w->scores, m, keys, keys, a->scale);
        product(a, m, d, keys, w->grads, ld, 1, a->k + kv, ldkv, 1, 0.0f, dq + query * a->ldq + head * d, a->ldq, w->pack);
        product(a, keys, d, m, w->grads, 1, ld, q, ldq, 1, beta, dk + kv, a->ldkv, w->pack);
    }
}

void
ha_attention_backward(const ha_attention *attention, const float *dout, size_t ldo, float *dq, float *dk, float *dv,
                      void *scratch, int n_threads)
{
    const ha_attention *a = attention;
    const sizes s = sizes_of(a, 1);
    const size_t tasks = a->n_rows * a->n_heads;
    const int n = threads_for(a, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)tasks; t++) {
        const workspace w = workspace_of(scratch, &s, 1, ha_thread_index());
        backward_row(a, (size_t)t / a->n_heads, (size_t)t % a->n_heads, dout, ldo, dq, dk, dv, &w);
    }
}
