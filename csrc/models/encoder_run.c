/* Running an encoder over a ragged batch: chunks of whole rows, one arena a call.
 *
 * BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa (Liu et al. 2019, arXiv 1907.11692), ELECTRA (Clark et al. 2020, arXiv 2003.10555), DistilBERT
 * (Sanh et al. 2019, arXiv 1910.01108), DeBERTa v2 and v3 (He et al. 2021, arXiv 2006.03654, 2111.09543) and ModernBERT (Warner et al. 2024,
 * arXiv 2412.13663) differ in how tokens get their positions, where the norms stand, and in the head. */
#include <math.h>
#include <string.h>

#include "core/parallel.h"
#include "models/attend.h"
#include "models/encoder_batch.h"
#include "models/encoder_impl.h"
#include "models/encoder_parts.h"

/* Rows are taken in chunks of about this many tokens a thread: activations stay bounded and near the cache. */
#define CHUNK_TOKENS 512
#define CHUNK_TOKENS_MOST 8192

/* Buffers of one call, sized for its largest chunk. wide holds what lives within a block: query+key+value and the context; the intermediate
 * activations; the convolution's input. */
typedef struct run {
    const ha_encoder *encoder;
    const ha_batch *batch;
    int n_threads;
    size_t tokens, rows, longest, scratch_bytes;    /* of the largest chunk */
    float *x, *sum, *first, *wide;
    float *embedded;            /* (tokens, hidden): the first layer's input, for the convolution */
    float *cosine[2], *sine[2]; /* (longest, head_dim / 2) by kind of layer */
    int32_t *relative_rows;     /* (2 (longest + HA_ATTEND_PAD) - 1,): the table's row of each distance, or NULL */
    int64_t *offsets;
    void *scratch;
} run;

/* -- sizes -- */

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t
chunk_end(const ha_batch *batch, size_t first, int n_threads)
{
    size_t limit = CHUNK_TOKENS * (size_t)(n_threads > 0 ? n_threads : ha_threads_max()), row = first + 1;
    limit = limit < CHUNK_TOKENS_MOST ? limit : CHUNK_TOKENS_MOST;
    while (row < batch->n_rows && (size_t)(batch->offsets[row + 1] - batch->offsets[first]) <= limit) {
        row++;
    }
    return row;
}

static void
need_linear(run *r, const ha_linear *l, size_t m)
{
    if (l->n > 0 && m > 0) {
        r->scratch_bytes = larger(r->scratch_bytes, r->encoder->kernels->linear_scratch_bytes(l->format, m, l->n, l->k, r->n_threads));
    }
}

static ha_attend_batch
attention_of(const run *r, size_t i, size_t rows, const int64_t *offsets)
{
    const ha_encoder *e = r->encoder;
    const ha_encoder_config *c = &e->config;
    const int terms = 1 + c->c2p + c->p2c;      /* transformers counts them whether the model has relative positions or not */
    return (ha_attend_batch){
        .kernels = e->kernels, .n_rows = rows, .n_heads = c->n_heads, .head_dim = c->head_dim, .offsets = offsets, .cls_only = e->layers[i].cls_only,
        .scale = 1.0f / sqrtf((float)c->head_dim * (float)terms), .window = c->windowed[i] ? c->window : 0,
        .key = e->layers[i].pos_key, .query = e->layers[i].pos_query, .table_rows = 2 * c->relative_span,
        .table_bf16 = ha_encoder_table_bf16(e), .table_bytes = c->relative_span > 0 ? ha_encoder_table_bytes(e) : 0,
        .row = r->relative_rows != NULL ? r->relative_rows + r->longest + HA_ATTEND_PAD - 1 : NULL,
    };
}

static void
need_chunk(run *r, size_t first, size_t last)
{
    const ha_encoder *e = r->encoder;
    const int64_t *offsets = r->batch->offsets;
    const size_t rows = last - first, tokens = (size_t)(offsets[last] - offsets[first]);
    r->tokens = larger(r->tokens, tokens);
    r->rows = larger(r->rows, rows);
    for (size_t i = first; i < last; i++) {
        r->longest = larger(r->longest, (size_t)(offsets[i + 1] - offsets[i]));
    }
    for (size_t i = 0; i < e->config.n_layers; i++) {
        const ha_encoder_layer *l = &e->layers[i];
        const size_t m = l->cls_only ? rows : tokens;
        need_linear(r, &l->qkv, tokens);
        need_linear(r, &l->kv, tokens);
        need_linear(r, &l->q, rows);
        need_linear(r, &l->out, m);
        need_linear(r, &l->up, m);
        need_linear(r, &l->down, m);
        if (i == 0 || i + 1 == e->config.n_layers || e->config.windowed[i] != e->config.windowed[i - 1]) {
            const ha_attend_batch attention = attention_of(r, i, rows, offsets + first);
            r->scratch_bytes = larger(r->scratch_bytes, ha_attend_batch_scratch_bytes(&attention, r->n_threads));
        }
    }
    for (size_t g = 0; g < e->config.conv_groups; g++) {
        need_linear(r, &e->conv[g], e->layers[0].cls_only ? rows : tokens);
    }
    need_linear(r, &e->project, tokens);
    need_linear(r, &e->pooler, rows);
    need_linear(r, &e->classifier, rows);
}

static void
lay_out_run(run *r, ha_arena *arena)
{
    const ha_encoder *e = r->encoder;
    const ha_encoder_config *c = &e->config;
    const size_t h = c->hidden_size, one = sizeof(float);
    size_t wide = larger(4 * h, (c->gated ? 2 : 1) * c->intermediate_size);
    wide = larger(wide, c->embedding_size);
    if (c->conv_groups > 0) {
        wide = larger(wide, h / c->conv_groups * c->conv_kernel_size);
    }
    r->x = ha_arena_take(arena, r->tokens, h * one);
    r->sum = ha_arena_take(arena, r->tokens, h * one);
    r->wide = ha_arena_take(arena, larger(r->tokens * wide, r->tokens * 2 * h + r->rows * 3 * h), one);
    r->embedded = c->conv_groups > 0 ? ha_arena_take(arena, r->tokens, h * one) : NULL;
    r->first = ha_arena_take(arena, r->rows, h * one);
    r->offsets = ha_arena_take(arena, r->rows + 1, sizeof(int64_t));
    r->relative_rows = e->layers[0].pos_key != NULL || e->layers[0].pos_query != NULL ?
                       ha_arena_take(arena, 2 * (r->longest + HA_ATTEND_PAD) - 1, sizeof(int32_t)) : NULL;
    for (int kind = 0; kind < 2; kind++) {
        r->cosine[kind] = e->inv_freq[kind] != NULL ? ha_arena_take(arena, r->longest, c->head_dim / 2 * one) : NULL;
        r->sine[kind] = e->inv_freq[kind] != NULL ? ha_arena_take(arena, r->longest, c->head_dim / 2 * one) : NULL;
    }
    r->scratch = ha_arena_take(arena, r->scratch_bytes, 1);
}

/* -- parts -- */

static void
apply_activated(const run *r, const ha_linear *l, ha_activation act, float *y, size_t ldy, const float *x, size_t ldx, size_t m)
{
    r->encoder->kernels->linear_f32(y, ldy, x, ldx, l->packed, l->format, l->bias, act, m, l->n, l->k, r->scratch, r->n_threads);
}

static void
apply(const run *r, const ha_linear *l, float *y, size_t ldy, const float *x, size_t ldx, size_t m)
{
    apply_activated(r, l, HA_ACT_NONE, y, ldy, x, ldx, m);
}

static void
normalise(const run *r, const ha_norm *norm, float *out, const float *x, size_t m)
{
    r->encoder->kernels->layer_norm_f32(out, x, norm->weight, norm->bias, m, norm->n, r->encoder->config.layer_norm_eps, r->n_threads);
}

/* Word rows, then type and position, norm and projection, into r->x. */
static ha_status
embed(const run *r, size_t first, size_t last, ha_error *err)
{
    const ha_encoder *e = r->encoder;
    const ha_encoder_config *c = &e->config;
    const size_t width = c->embedding_size, base = (size_t)r->batch->offsets[first], tokens = (size_t)r->batch->offsets[last] - base;
    const int project = e->project.n > 0;
    float *x = project ? r->wide : r->x;
    for (size_t t = 0; t < tokens; t++) {
        const size_t id = (size_t)r->batch->ids[base + t];
        if (e->word != NULL) {
            memcpy(x + t * width, e->word + id * width, width * sizeof(float));
            continue;
        }
        const ha_status status = ha_checkpoint_rows(e->checkpoint, HA_EMB_WORD, id, 1, x + t * width, err);
        if (status != HA_OK) {
            return status;
        }
    }
    ha_round_rows(e->kernels, e->word_format, x, tokens, width);
    if (e->position != NULL || e->type != NULL) {
        ha_batch_add_positions(c, r->batch, first, last, e->position, e->type, x, r->n_threads);
    }
    if (project && c->project_first) {
        apply(r, &e->project, r->x, c->hidden_size, x, width, tokens);
        normalise(r, &e->norm, r->x, r->x, tokens);
        return HA_OK;
    }
    normalise(r, &e->norm, x, x, tokens);
    if (project) {
        apply(r, &e->project, r->x, c->hidden_size, x, width, tokens);
    }
    return HA_OK;
}

/* -- a layer -- */

/* x (m, hidden) = norm(x + y), or x + y when the norm stands before its block. */
static void
add_back(const run *r, float *x, float *y, const ha_norm *norm, size_t m)
{
    const ha_kernels *k = r->encoder->kernels;
    const ha_encoder_config *c = &r->encoder->config;
    if (c->pre_norm) {
        k->add_f32(x, x, y, m * c->hidden_size, r->n_threads);
        return;
    }
    k->add_f32(y, y, x, m * c->hidden_size, r->n_threads);
    normalise(r, norm, x, y, m);
}

/* From the context (m, hidden) to the layer's output in x (m, hidden). */
static void
finish_layer(const run *r, const ha_encoder_layer *l, float *x, const float *context, size_t m)
{
    const ha_encoder_config *c = &r->encoder->config;
    const ha_kernels *k = r->encoder->kernels;
    const size_t h = c->hidden_size;
    const float *in = x;
    apply(r, &l->out, r->sum, h, context, h, m);
    add_back(r, x, r->sum, &l->norm1, m);
    if (c->pre_norm) {
        normalise(r, &l->norm2, r->sum, x, m);
        in = r->sum;
    }
    apply_activated(r, &l->up, c->gated ? HA_ACT_NONE : c->hidden_act, r->wide, l->up.n, in, h, m);
    if (c->gated) {
        k->activate_gated_f32(r->wide, l->up.n, r->wide, l->up.n, c->hidden_act, m, c->intermediate_size, r->n_threads);
    }
    apply(r, &l->down, r->sum, h, r->wide, l->up.n, m);
    add_back(r, x, r->sum, &l->norm2, m);
}

/* r->x (tokens, hidden) becomes the layer's output; of a layer whose first tokens alone are wanted, r->first (rows, hidden) does. */
static void
run_layer(const run *r, size_t i, size_t rows, size_t tokens)
{
    const ha_encoder_config *c = &r->encoder->config;
    const ha_encoder_layer *l = &r->encoder->layers[i];
    const int kind = c->windowed[i];
    const size_t h = c->hidden_size;
    const float *in = r->x;
    ha_attend_batch a = attention_of(r, i, rows, r->offsets);
    float *q, *k, *context, *x = l->cls_only ? r->first : r->x;
    if (c->pre_norm && l->norm1.n > 0) {
        normalise(r, &l->norm1, r->sum, r->x, tokens);
        in = r->sum;
    }
    if (l->cls_only) {      /* keys and values of all tokens, then queries, contexts and inputs of the first ones */
        k = r->wide;
        q = k + 2 * h * tokens;
        context = q + h * rows;
        float *first_in = context + h * rows;
        ha_first_of_rows(first_in, in, r->offsets, rows, h);
        ha_first_of_rows(r->first, r->x, r->offsets, rows, h);
        apply(r, &l->kv, r->wide, 2 * h, in, h, tokens);
        apply(r, &l->q, q, h, first_in, h, rows);
        a.ldq = h, a.ldkv = 2 * h;
    } else {
        q = r->wide;
        k = q + h;
        context = q + 3 * h * tokens;
        apply(r, &l->qkv, q, 3 * h, in, h, tokens);
        a.ldq = a.ldkv = 3 * h;
    }
    if (r->cosine[kind] != NULL) {      /* the first token stands at position 0, whose rotation is none */
        ha_rotary_apply(c, r->cosine[kind], r->sine[kind], 0, k, a.ldkv, r->offsets, rows, r->n_threads);
        if (!l->cls_only) {
            ha_rotary_apply(c, r->cosine[kind], r->sine[kind], 0, q, a.ldq, r->offsets, rows, r->n_threads);
        }
    }
    a.q = q, a.k = k, a.v = k + h;
    ha_attend_batch_run(&a, context, h, r->scratch, r->n_threads);
    finish_layer(r, l, x, context, l->cls_only ? rows : tokens);
}

/* x (m, hidden), the first layer's output, becomes norm(x + act(convolution of the embeddings)): DeBERTa v2. */
static void
convolve(const run *r, float *x, size_t rows, size_t tokens)
{
    const ha_encoder *e = r->encoder;
    const ha_encoder_config *c = &e->config;
    const int cls_only = e->layers[0].cls_only;
    const size_t h = c->hidden_size, m = cls_only ? rows : tokens, n = h / c->conv_groups;
    for (size_t g = 0; g < c->conv_groups; g++) {
        ha_gather_neighbours(c, r->wide, r->embedded, g, r->offsets, rows, cls_only);
        apply_activated(r, &e->conv[g], c->conv_act, r->sum + g * n, h, r->wide, e->conv[g].k, m);
    }
    add_back(r, x, r->sum, &e->conv_norm, m);
}

/* -- the head -- */

static void
run_head(const run *r, float *logits, size_t rows, size_t tokens)
{
    const ha_encoder *e = r->encoder;
    const ha_encoder_config *c = &e->config;
    const size_t h = c->hidden_size;
    if (c->mean_pooling) {
        normalise(r, &e->final_norm, r->x, r->x, tokens);
        ha_mean_of_rows(r->first, r->x, r->offsets, rows, h);
    } else if (e->final_norm.n > 0) {
        normalise(r, &e->final_norm, r->first, r->first, rows);
    }
    apply_activated(r, &e->pooler, c->head_act, r->sum, h, r->first, h, rows);
    if (e->head_norm.n > 0) {
        normalise(r, &e->head_norm, r->sum, r->sum, rows);
    }
    apply(r, &e->classifier, logits, c->num_labels, r->sum, h, rows);
}

/* -- the whole -- */

static ha_status
run_chunk(const run *r, size_t first, size_t last, float *logits, ha_error *err)
{
    const ha_encoder *e = r->encoder;
    const size_t rows = last - first, tokens = (size_t)(r->batch->offsets[last] - r->batch->offsets[first]);
    const ha_status status = embed(r, first, last, err);
    if (status != HA_OK) {
        return status;
    }
    for (size_t i = 0; i <= rows; i++) {
        r->offsets[i] = r->batch->offsets[first + i] - r->batch->offsets[first];
    }
    if (r->embedded != NULL) {
        memcpy(r->embedded, r->x, tokens * e->config.hidden_size * sizeof(float));
    }
    for (size_t i = 0; i < e->config.n_layers; i++) {
        run_layer(r, i, rows, tokens);
        if (i == 0 && r->embedded != NULL) {
            convolve(r, e->layers[0].cls_only ? r->first : r->x, rows, tokens);
        }
    }
    run_head(r, logits + first * e->config.num_labels, rows, tokens);
    return HA_OK;
}

ha_status
ha_encoder_logits(const ha_encoder *encoder, const ha_batch *batch, float *logits, int n_threads, ha_error *err)
{
    run r = {.encoder = encoder, .batch = batch, .n_threads = n_threads};
    ha_arena arena = {0};
    ha_status status = ha_batch_check(&encoder->config, batch, err);
    if (status != HA_OK || batch->n_rows == 0) {
        return status;
    }
    for (size_t first = 0, last; first < batch->n_rows; first = last) {
        last = chunk_end(batch, first, n_threads);
        need_chunk(&r, first, last);
    }
    lay_out_run(&r, &arena);
    if ((status = ha_arena_commit(&arena, err)) == HA_OK) {
        lay_out_run(&r, &arena);
        if (r.relative_rows != NULL) {
            ha_relative_rows(&encoder->config, r.relative_rows, r.longest + HA_ATTEND_PAD);
        }
        for (int kind = 0; kind < 2 && r.cosine[kind] != NULL; kind++) {
            ha_rotary_angles(encoder->inv_freq[kind], encoder->config.head_dim / 2, r.longest, r.cosine[kind], r.sine[kind]);
        }
        for (size_t first = 0, last; first < batch->n_rows && status == HA_OK; first = last) {
            last = chunk_end(batch, first, n_threads);
            status = run_chunk(&r, first, last, logits, err);
        }
    }
    ha_arena_free(&arena);
    return status;
}
