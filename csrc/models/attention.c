#include "models/attention.h"

#include <math.h>

#include "core/parallel.h"

#define QUERY_BLOCK 64          /* queries whose scores are held at once */
#define GRAIN ((size_t)1 << 17) /* multiplications a thread */
#define ALIGN 64

/* One thread's part of the scratch. */
typedef struct workspace {
    float *scores, *grads, *kept;   /* (QUERY_BLOCK, longest row) each; grads and kept in the backward pass only */
    void *pack;
} workspace;

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
round_up(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Packing bytes of the products over a block of m queries of a row of n keys. */
static size_t
block_pack_bytes(const ha_attention *a, size_t m, size_t n, int backward)
{
    size_t (*bytes)(size_t, size_t, size_t, int) = a->kernels->gemm_scratch_bytes;
    const size_t scores = larger(bytes(m, n, a->head_dim, 1), bytes(m, a->head_dim, n, 1));
    return backward ? larger(scores, bytes(n, a->head_dim, m, 1)) : scores;
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
    return round_up(most);
}

static size_t
scores_bytes(const ha_attention *a)
{
    return round_up(QUERY_BLOCK * longest_row(a) * sizeof(float));
}

static workspace
workspace_of(void *scratch, size_t scores, size_t pack, int backward, int thread)
{
    const size_t each = (backward ? 3 : 1) * scores + pack;
    char *base = (char *)scratch + (size_t)thread * each;
    workspace w = {.scores = (float *)base, .pack = base + each - pack};
    if (backward) {
        w.grads = (float *)(base + scores);
        w.kept = (float *)(base + 2 * scores);
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
    const size_t each = (backward ? 3 : 1) * scores_bytes(attention) + pack_bytes(attention, backward);
    return each * (size_t)threads_for(attention, n_threads);
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

/* scores (m, n) = softmax(Q K^T / sqrt(head_dim)) of queries [first, first + m). */
static void
probabilities(const ha_attention *a, const float *q, const float *k, size_t m, size_t n, const workspace *w)
{
    product(a, m, n, a->head_dim, q, (ptrdiff_t)a->ldq, 1, k, 1, (ptrdiff_t)a->ldkv, 0.0f, w->scores, n, w->pack);
    a->kernels->softmax_f32(w->scores, m, n, n, 1.0f / sqrtf((float)a->head_dim));
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
    for (size_t i = 0; i < queries; i += QUERY_BLOCK) {
        const size_t m = queries - i < QUERY_BLOCK ? queries - i : QUERY_BLOCK, query = first_query + i;
        probabilities(a, a->q + query * a->ldq + head * d, k, m, keys, w);
        if (a->dropout.drop != 0) {
            drop_block(a, query, head, w->scores, w->scores, m, keys);
        }
        product(a, m, d, keys, w->scores, (ptrdiff_t)keys, 1, v, (ptrdiff_t)a->ldkv, 1, 0.0f,
                out + query * ldo + head * d, ldo, w->pack);
    }
}

void
ha_attention_forward(const ha_attention *attention, float *out, size_t ldo, void *scratch, int n_threads)
{
    const ha_attention *a = attention;
    const size_t scores = scores_bytes(a), pack = pack_bytes(a, 0), tasks = a->n_rows * a->n_heads;
    const int n = threads_for(a, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)tasks; t++) {
        const workspace w = workspace_of(scratch, scores, pack, 0, ha_thread_index());
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
        const size_t m = queries - i < QUERY_BLOCK ? queries - i : QUERY_BLOCK, query = first_query + i;
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
        a->kernels->softmax_backward_f32(w->grads, w->grads, w->scores, m, keys, keys, 1.0f / sqrtf((float)d));
        product(a, m, d, keys, w->grads, ld, 1, a->k + kv, ldkv, 1, 0.0f, dq + query * a->ldq + head * d, a->ldq, w->pack);
        product(a, keys, d, m, w->grads, 1, ld, q, ldq, 1, beta, dk + kv, a->ldkv, w->pack);
    }
}

void
ha_attention_backward(const ha_attention *attention, const float *dout, size_t ldo, float *dq, float *dk, float *dv,
                      void *scratch, int n_threads)
{
    const ha_attention *a = attention;
    const size_t scores = scores_bytes(a), pack = pack_bytes(a, 1), tasks = a->n_rows * a->n_heads;
    const int n = threads_for(a, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)tasks; t++) {
        const workspace w = workspace_of(scratch, scores, pack, 1, ha_thread_index());
        backward_row(a, (size_t)t / a->n_heads, (size_t)t % a->n_heads, dout, ldo, dq, dk, dv, &w);
    }
}
