/* Causal grouped-query attention over key-value caches (Vaswani et al. 2017, arXiv 1706.03762, eq. 1; Ainslie et al. 2023, arXiv 2305.13245).
 *
 * Two shapes of work, both cut into tasks of one key-value head and up to HA_KV_TILE rows:
 *   reading a prompt: rows of one tile of positions against the caches' keys up to the tile's end. Probabilities past a row's own position are
 *     exact zeros, so that the sum over values has the tile's extent, wherever a chunk of the prompt begins or ends;
 *   continuing: one row each of several samples with a common prefix. Scores and values of the prefix are matrix products over all of them;
 *     each row's own continuation follows in order.
 * A row's sums therefore run in an order that its position and its prefix's length fix, whoever shares the task. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "models/decoder_impl.h"

#define ALIGN_FLOATS 16

static size_t
round_up(size_t n)
{
    return (n + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

/* What one task touches, in floats, then the products' own scratch. */
typedef struct layout {
    size_t m;                       /* query rows */
    size_t from;                    /* keys before it no row sees: a sliding window is past them. The columns of scores begin here */
    size_t shared, extent, ld;      /* keys in the product; keys that values are summed over in it; row of scores */
    size_t query, out, scores, total;
} layout;

static layout
task_layout(const ha_decoder *d, const ha_decoder_state *state, const ha_segment *segments, const ha_attention_task *task, size_t window)
{
    const ha_decoder_config *c = &d->config;
    const ha_decoder_row *first = &state->rows[task->first], *last = first + task->count - 1;
    const ha_kv_cache *prefix = segments[first->segment].prefix;
    layout l = {.m = task->count * (c->n_heads / c->n_kv_heads)};
    /* like the extents, a function of the tile or of the prefix alone */
    const size_t tile = first->position / HA_KV_TILE * HA_KV_TILE, before = prefix == NULL ? tile : prefix->length - 1;
    if (window > 0 && before + 1 > window) {
        l.from = (before + 1 - window) / HA_KV_TILE * HA_KV_TILE;
    }
    if (prefix == NULL) {
        l.shared = last->position + 1 - l.from;
        l.extent = tile + HA_KV_TILE - l.from;
        l.ld = l.extent;
    }
    else {
        size_t longest = 0;
        for (const ha_decoder_row *row = first; row <= last; row++) {
            longest = row->position + 1 > longest ? row->position + 1 : longest;
        }
        l.shared = l.extent = prefix->length - l.from;
        l.ld = longest - l.from;
    }
    l.ld = round_up(l.ld);
    l.out = round_up(l.m * c->head_dim);
    l.scores = 2 * l.out;
    l.total = l.scores + l.m * l.ld;
    return l;
}

static ha_status
grow_scratch(const ha_decoder *d, ha_decoder_state *state, const ha_segment *segments, ha_error *err)
{
    const size_t hd = d->config.head_dim;
    size_t most = 0;
    for (size_t i = 0; i < state->n_tasks; i += d->config.n_kv_heads) {     /* the heads of one group of rows are alike */
        for (int sliding = 0; sliding <= (d->config.sliding_window > 0); sliding++) {
            const layout l = task_layout(d, state, segments, &state->tasks[i], sliding ? d->config.sliding_window : 0);
            const size_t a = d->kernels->gemm_scratch_bytes(l.m, l.shared, hd, 1), b = d->kernels->gemm_scratch_bytes(l.m, hd, l.extent, 1);
            const size_t bytes = round_up(l.total) * sizeof(float) + (a > b ? a : b);
            most = bytes > most ? bytes : most;
        }
    }
    state->attention_threads = ha_threads_for(state->n_tasks, 1, state->n_threads);
    state->attention_thread_bytes = (most + 63) / 64 * 64;
    const size_t total = state->attention_thread_bytes * (size_t)state->attention_threads;
    if (total > state->attention_scratch_bytes) {
        free(state->attention_scratch);
        state->attention_scratch_bytes = 0;
        state->attention_scratch = aligned_alloc(64, total);
        if (state->attention_scratch == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory: attention needs %zu bytes", total);
        }
        state->attention_scratch_bytes = total;
    }
    return HA_OK;
}

ha_status
ha_attention_plan(const ha_decoder *d, ha_decoder_state *state, const ha_segment *segments, size_t n_segments, ha_error *err)
{
    (void)n_segments;
    state->n_tasks = 0;
    for (size_t first = 0, count = 0; first < state->n_rows; first += count) {
        const ha_decoder_row *row = &state->rows[first];
        const ha_segment *segment = &segments[row->segment];
        for (count = 1; first + count < state->n_rows && count < HA_KV_TILE; count++) {
            const ha_decoder_row *next = &state->rows[first + count];
            if (segment->prefix == NULL ? next->segment != row->segment || next->position % HA_KV_TILE == 0
                                        : segments[next->segment].prefix != segment->prefix) {
                break;
            }
        }
        for (size_t head = 0; head < d->config.n_kv_heads; head++) {
            state->tasks[state->n_tasks++] = (ha_attention_task){first, count, head};
        }
    }
    return grow_scratch(d, state, segments, err);
}

/* A row of scores becomes probabilities, zeros outside [begin, n) of [0, extent). */
static void
probabilities(const ha_decoder *d, float *s, size_t begin, size_t n, size_t extent)
{
    float scale = (float)d->config.query_scale;
    if (d->config.attn_softcap > 0) {
        ha_softcap(d->kernels, s + begin, scale, (float)d->config.attn_softcap, n - begin);
        scale = 1;
    }
    const float inverse = (float)(1.0 / d->kernels->exp_sum_f32(s + begin, s + begin, d->kernels->max_f32(s + begin, n - begin), scale, n - begin));
    for (size_t j = begin; j < n; j++) {
        s[j] *= inverse;
    }
    for (size_t j = 0; j < begin; j++) {
        s[j] = 0;
    }
    for (size_t j = n; j < extent; j++) {
        s[j] = 0;
    }
}

static void
attend(const ha_decoder *d, const ha_decoder_state *state, const ha_segment *segments, const ha_attention_task *task, size_t layer, float *scratch)
{
    const ha_decoder_config *c = &d->config;
    const ha_kernels *k = d->kernels;
    const size_t hd = c->head_dim, group = c->n_heads / c->n_kv_heads, width = (c->n_heads + 2 * c->n_kv_heads) * hd, window = d->layers[layer].window;
    const layout l = task_layout(d, state, segments, task, window);
    const ha_segment *first = &segments[state->rows[task->first].segment];
    const ha_kv_cache *shared = first->prefix != NULL ? first->prefix : first->own;
    float *query = scratch, *out = scratch + l.out, *scores = scratch + l.scores;
    void *gemm_scratch = scratch + round_up(l.total);

    for (size_t i = 0; i < task->count; i++) {
        memcpy(query + i * group * hd, state->qkv + (task->first + i) * width + task->head * group * hd, group * hd * sizeof(float));
    }
    const ha_gemm qk = {.m = l.m, .n = l.shared, .k = hd, .alpha = 1, .a = query, .a_row = (ptrdiff_t)hd, .a_col = 1,
                        .b = ha_kv_at(shared, layer, 0, task->head) + l.from * hd, .b_row = 1, .b_col = (ptrdiff_t)hd, .c = scores, .ldc = l.ld};
    k->gemm_f32(&qk, gemm_scratch, 1);
    for (size_t i = 0; i < l.m; i++) {
        const ha_decoder_row *row = &state->rows[task->first + i / group];
        const size_t n = row->position + 1, begin = window > 0 && n > window ? n - window : 0;
        float *s = scores + i * l.ld;
        if (first->prefix != NULL) {        /* keys of its own, behind those that the rows share */
            const float *keys = ha_kv_at(segments[row->segment].own, layer, 0, task->head);
            for (size_t j = begin > first->prefix->length ? begin : first->prefix->length; j < n; j++) {
                s[j - l.from] = k->dot_f32(query + i * hd, keys + (j - first->prefix->length) * hd, hd);
            }
        }
        probabilities(d, s, begin > l.from ? begin - l.from : 0, n - l.from, l.extent);
    }
    const ha_gemm pv = {.m = l.m, .n = hd, .k = l.extent, .alpha = 1, .a = scores, .a_row = (ptrdiff_t)l.ld, .a_col = 1,
                        .b = ha_kv_at(shared, layer, 1, task->head) + l.from * hd, .b_row = (ptrdiff_t)hd, .b_col = 1, .c = out, .ldc = hd};
    k->gemm_f32(&pv, gemm_scratch, 1);
    for (size_t i = 0; i < l.m; i++) {
        const ha_decoder_row *row = &state->rows[task->first + i / group];
        const size_t n = row->position + 1, begin = window > 0 && n > window ? n - window : 0;
        const float *values = first->prefix != NULL ? ha_kv_at(segments[row->segment].own, layer, 1, task->head) : NULL;
        for (size_t j = values != NULL ? begin > first->prefix->length ? begin : first->prefix->length : n; j < n; j++) {
            k->axpy_f32(out + i * hd, scores[i * l.ld + j - l.from], values + (j - first->prefix->length) * hd, hd);
        }
    }
    for (size_t i = 0; i < task->count; i++) {
        memcpy(state->mixed + (task->first + i) * c->n_heads * hd + task->head * group * hd, out + i * group * hd, group * hd * sizeof(float));
    }
}

void
ha_attention_run(const ha_decoder *d, ha_decoder_state *state, const ha_segment *segments, size_t layer)
{
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(state->attention_threads)) if (state->attention_threads > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t i = 0; i < (ptrdiff_t)state->n_tasks; i++) {
        uint8_t *scratch = state->attention_scratch + (size_t)ha_thread_index() * state->attention_thread_bytes;
        attend(d, state, segments, &state->tasks[i], layer, (float *)(void *)scratch);
    }
}
