/* Attention of the inference form over ragged rows: each row and head by itself, a block of queries at a time (kernels/attention_impl.h). */
#ifndef HARMAUG_MODELS_ATTEND_H
#define HARMAUG_MODELS_ATTEND_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

typedef struct ha_attend_batch {
    const ha_kernels *kernels;
    size_t n_rows, n_heads, head_dim;
    const int64_t *offsets;         /* (n_rows + 1,): keys of row i are tokens [offsets[i], offsets[i + 1]) */
    int cls_only;                   /* 0: a query for each key. 1: one query a row, that of its first token: query i belongs to row i */
    const float *q, *k, *v;         /* q (queries, n_heads * head_dim), leading dimension ldq; k and v (tokens, same), ldkv */
    size_t ldq, ldkv;
    float scale;
    size_t window;                  /* 0: all keys */
    const void *key, *query;        /* n_heads tables one behind the other, table_bytes each, packed as ha_attend has them; or NULL */
    int table_bf16;
    size_t table_rows, table_bytes;
    const int32_t *row;             /* of ha_attend, for the longest row */
} ha_attend_batch;

/* Scratch bytes of the threads that this batch gets. Of *batch only shapes are read, and which tables are there. */
size_t ha_attend_batch_scratch_bytes(const ha_attend_batch *batch, int n_threads);

/* out (queries, n_heads * head_dim), leading dimension ldo. */
void ha_attend_batch_run(const ha_attend_batch *batch, float *out, size_t ldo, void *scratch, int n_threads);

#endif
