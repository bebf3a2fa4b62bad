/* What the two passes of attention share: which keys and which relative positions a block of queries sees. */
#ifndef HARMAUG_MODELS_ATTENTION_IMPL_H
#define HARMAUG_MODELS_ATTENTION_IMPL_H

#include <string.h>

#include "models/attention.h"

#define HA_QUERY_BLOCK 64       /* queries whose scores are held at once */
#define HA_ATTENTION_GRAIN ((size_t)1 << 17)    /* multiplications a thread */

static inline size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static inline size_t
smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t
length_of(const ha_attention *a, size_t row)
{
    return (size_t)(a->offsets[row + 1] - a->offsets[row]);
}

static inline size_t
longest_row(const ha_attention *a)
{
    size_t longest = 1;
    for (size_t i = 0; i < a->n_rows; i++) {
        longest = larger(longest, length_of(a, i));
    }
    return longest;
}

/* Multiplications of the scores. */
static inline size_t
attention_work(const ha_attention *a)
{
    size_t work = 0;
    for (size_t i = 0; i < a->n_rows; i++) {
        work += length_of(a, i) * (a->cls_only ? 1 : length_of(a, i)) * a->head_dim;
    }
    return work * a->n_heads;
}

/* The keys that queries [i, i + m) of a row of n see, and up to 7 before them: dropout draws its masks for 8 elements at a time. */
static inline void
keys_of(const ha_attention *a, size_t i, size_t m, size_t n, size_t *first, size_t *end)
{
    *first = a->window > 0 && i > a->window ? (i - a->window) / 8 * 8 : 0;
    *end = a->window > 0 ? smaller(n, i + m + a->window) : n;
}

/* The table's rows that distances from `least` to `most` use: the first, and how many. */
static inline size_t
table_rows(const ha_attention *a, ptrdiff_t least, ptrdiff_t most, size_t *first)
{
    *first = (size_t)a->relative->row[least];
    return (size_t)a->relative->row[most] - *first + 1;
}

static inline size_t
whole_lines(size_t floats)
{
    return (floats + 15) / 16 * 16;     /* of a cache line */
}

/* C (m, n) = A B + beta C by strides, on this thread. */
static inline void
product(const ha_attention *a, size_t m, size_t n, size_t k, const float *x, ptrdiff_t x_row, ptrdiff_t x_col,
        const float *y, ptrdiff_t y_row, ptrdiff_t y_col, float beta, float *out, size_t ldo, void *pack)
{
    const ha_gemm gemm = {.m = m, .n = n, .k = k, .alpha = 1.0f, .beta = beta, .a = x, .a_row = x_row, .a_col = x_col,
                          .b = y, .b_row = y_row, .b_col = y_col, .c = out, .ldc = ldo};
    a->kernels->gemm_f32(&gemm, pack, 1);
}

/* Softmax of each query's scores (m, n) over the keys that it sees; 0 elsewhere. Query r of the block is query i + r of its row, key 0 of the block
 * key first of the row. */
static inline void
softmax_of_block(const ha_attention *a, float *scores, size_t i, size_t m, size_t first, size_t n)
{
    if (a->window == 0) {
        a->kernels->softmax_f32(scores, m, n, n, a->scale);
        return;
    }
    for (size_t r = 0; r < m; r++, scores += n) {
        const size_t begin = i + r > first + a->window ? i + r - a->window - first : 0, end = smaller(n, i + r + 1 + a->window - first);
        a->kernels->softmax_f32(scores + begin, 1, end - begin, n, a->scale);
        memset(scores, 0, begin * sizeof(*scores));
        memset(scores + end, 0, (n - end) * sizeof(*scores));
    }
}

/* Dropout of a block of probabilities, or of their gradients: of queries from `query` on, keys from `first` of the row on. */
static inline void
drop_block(const ha_attention *a, size_t query, size_t head, size_t first, float *out, const float *x, size_t m, size_t n)
{
    for (size_t i = 0; i < m; i++) {
        ha_dropout_row(&a->dropout, (uint64_t)(query + i) * a->n_heads + head, first, out + i * n, x + i * n, n);
    }
}

#endif
