#include "models/attend.h"

#include "core/parallel.h"

#define SCORES 65536            /* of a block of queries: they stay in the second-level cache */
#define QUERIES 64              /* a block is a multiple of this */
#define GRAIN ((size_t)1 << 17) /* multiplications a thread */
#define LINE 64

static size_t
length_of(const ha_attend_batch *b, size_t row)
{
    return (size_t)(b->offsets[row + 1] - b->offsets[row]);
}

/* Queries of a block of a row of n. */
static size_t
block_of(const ha_attend_batch *b, size_t n)
{
    const size_t keys = b->window > 0 && n > 2 * b->window + QUERIES ? 2 * b->window + QUERIES : n;
    const size_t block = SCORES / keys / QUERIES * QUERIES;
    return block > QUERIES ? block : QUERIES;
}

/* The part of a row that its queries [first, first + block) see; its tables and tokens are those of head 0. */
static ha_attend
part_of(const ha_attend_batch *b, size_t row, size_t first)
{
    const size_t n = length_of(b, row), queries = b->cls_only ? 1 : n, block = block_of(b, n);
    const size_t m = queries - first < block ? queries - first : block;
    const size_t first_key = b->window > 0 && first > b->window ? first - b->window : 0;
    const size_t end_key = b->window > 0 && n - first - m > b->window ? first + m + b->window : n;
    return (ha_attend){.n = end_key - first_key, .m = m, .d = b->head_dim, .first = first, .first_key = first_key, .ldq = b->ldq, .ldkv = b->ldkv,
                       .scale = b->scale, .window = b->window, .key = b->key, .query = b->query, .table_bf16 = b->table_bf16,
                       .table_rows = b->table_rows, .row = b->row};
}

static int
threads_for(const ha_attend_batch *b, int n_threads)
{
    size_t work = 0;
    for (size_t i = 0; i < b->n_rows; i++) {
        work += length_of(b, i) * (b->cls_only ? 1 : length_of(b, i)) * b->head_dim;
    }
    return ha_threads_for(work * b->n_heads, GRAIN, n_threads);
}

/* Bytes of one thread, whole cache lines. */
static size_t
thread_bytes(const ha_attend_batch *b)
{
    size_t most = 0;
    for (size_t row = 0; row < b->n_rows; row++) {
        const size_t n = length_of(b, row), queries = b->cls_only ? 1 : n, block = block_of(b, n);
        for (size_t i = 0; i < queries && i < 3 * block; i += block) {      /* the first block, one from within, and perhaps the last */
            const ha_attend a = part_of(b, row, i);
            const size_t bytes = b->kernels->attend_scratch_bytes(&a);
            most = bytes > most ? bytes : most;
        }
    }
    return (most + LINE - 1) / LINE * LINE;
}

size_t
ha_attend_batch_scratch_bytes(const ha_attend_batch *batch, int n_threads)
{
    return thread_bytes(batch) * (size_t)threads_for(batch, n_threads);
}

static void
run_head(const ha_attend_batch *b, size_t row, size_t head, float *out, size_t ldo, void *scratch)
{
    const size_t queries = b->cls_only ? 1 : length_of(b, row), block = block_of(b, length_of(b, row));
    const size_t token = (size_t)b->offsets[row], query = b->cls_only ? row : token, at = head * b->head_dim;
    for (size_t i = 0; i < queries; i += block) {
        ha_attend a = part_of(b, row, i);
        a.q = b->q + (query + i) * b->ldq + at;
        a.k = b->k + (token + a.first_key) * b->ldkv + at;
        a.v = b->v + (token + a.first_key) * b->ldkv + at;
        a.key = b->key != NULL ? (const char *)b->key + head * b->table_bytes : NULL;
        a.query = b->query != NULL ? (const char *)b->query + head * b->table_bytes : NULL;
        a.out = out + (query + i) * ldo + at;
        a.ldo = ldo;
        b->kernels->attend_f32(&a, scratch);
    }
}

void
ha_attend_batch_run(const ha_attend_batch *batch, float *out, size_t ldo, void *scratch, int n_threads)
{
    const ha_attend_batch *b = batch;
    const size_t tasks = b->n_rows * b->n_heads, bytes = thread_bytes(b);
    const int n = threads_for(b, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t t = 0; t < (ptrdiff_t)tasks; t++) {
        run_head(b, (size_t)t / b->n_heads, (size_t)t % b->n_heads, out, ldo, (char *)scratch + (size_t)ha_thread_index() * bytes);
    }
}
