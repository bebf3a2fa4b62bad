/* Multi-head attention over ragged rows (Vaswani et al. 2017, arXiv 1706.03762, eq. 1): out = softmax(scale S) V with S = Q K^T, for each row and head by
 * itself, so that nothing depends on the rest of the batch. Scores are held for a block of queries at a time.
 *
 * S may also hold the terms of disentangled attention (He et al. 2021, arXiv 2006.03654, eq. 4): with r the table's row for the
 * distance i - j, S_ij = Q_i . K_j + Q_i . key_r + K_j . query_r. And queries may see a window only: keys at most that far away. */
#ifndef HARMAUG_MODELS_ATTENTION_H
#define HARMAUG_MODELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "models/dropout.h"

/* Projections of the relative positions, made when the model is loaded. Only the rows that the distances of a row of tokens use are multiplied. */
typedef struct ha_relative {
    const float *key, *query;       /* (table rows, n_heads * head_dim) each; NULL: that term is left out */
    const int32_t *row;             /* row[d] of distance d, 1 - longest row <= d < longest row: not falling with d */
} ha_relative;

typedef struct ha_attention {
    const ha_kernels *kernels;
    size_t n_rows, n_heads, head_dim;
    const int64_t *offsets;         /* (n_rows + 1,): keys of row i are tokens [offsets[i], offsets[i + 1]) */
    int cls_only;                   /* 0: a query for each key. 1: one query a row, that of its first token: query i belongs to row i */
    const float *q, *k, *v;         /* q (queries, n_heads * head_dim), leading dimension ldq; k and v (tokens, same), ldkv */
    size_t ldq, ldkv;
    float scale;
    size_t window;                  /* 0: all keys */
    const ha_relative *relative;    /* or NULL */
    ha_dropout dropout;             /* of the probabilities; row of an element: query * n_heads + head */
} ha_attention;

/* Scratch bytes of the threads that this batch gets: scores and packing buffers of each. Only the shapes of *attention are read. */
size_t ha_attention_scratch_bytes(const ha_attention *attention, int n_threads);

/* out (queries, n_heads * head_dim), leading dimension ldo. */
void ha_attention_forward(const ha_attention *attention, float *out, size_t ldo, void *scratch, int n_threads);

/* -- gradients (attention_backward.c) -- */

/* Written: dq, dk, dv, laid out as q, k, v with the same leading dimensions; key and query (table rows, n_heads * head_dim), up to the last row of the
 * table that a distance of the batch uses, where attention->relative has them. */
typedef struct ha_attention_grads {
    float *dq, *dk, *dv;
    float *key, *query;
} ha_attention_grads;

size_t ha_attention_backward_scratch_bytes(const ha_attention *attention, int n_threads);

/* dout as out. Probabilities are computed again; with relative positions relative->row[1 - longest row] must be 0. */
void ha_attention_backward(const ha_attention *attention, const float *dout, size_t ldo, const ha_attention_grads *grads,
                           void *scratch, int n_threads);

#endif
