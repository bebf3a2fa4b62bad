/* The inference form of an encoder: weights packed once, word embedding rows read from the mapping, one arena a call.
 * BERT (Devlin et al. 2018, arXiv 1810.04805) with post-layer-normalisation and a tanh pooler over the first token. */
#include "models/encoder.h"

#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/parallel.h"
#include "models/attention.h"
#include "models/encoder_batch.h"
#include "models/encoder_layout.h"

/* Rows are taken in chunks of about this many tokens a thread: activations stay bounded and near the cache. */
#define CHUNK_TOKENS 512
#define CHUNK_TOKENS_MOST 8192

typedef struct linear {
    size_t n, k;                /* weight (n, k) */
    ha_weight_format format;
    void *packed;
    float *bias;
} linear;

/* query+key+value is one product. In the last layer only the first token of a row asks, so that its query stands alone. */
typedef struct encoder_layer {
    linear qkv, q, kv;
    linear out, up, down;
    float *norm1_w, *norm1_b, *norm2_w, *norm2_b;
} encoder_layer;

struct ha_encoder {
    ha_encoder_config config;
    const ha_kernels *kernels;      /* those that packed the weights */
    ha_checkpoint *checkpoint;      /* where word embedding rows are read, or NULL: */
    float *word;                    /* (vocab_size, hidden) */
    ha_arena arena;                 /* all that follows */
    float *position, *type, *norm_w, *norm_b;
    encoder_layer *layers;
    linear pooler, classifier;
};

/* Where weights come from: one of the two. */
typedef struct source {
    const ha_checkpoint *checkpoint;
    const ha_encoder_params *params;
} source;

static ha_status
source_rows(const source *from, size_t i, size_t first, size_t count, float *out, ha_error *err)
{
    if (from->checkpoint != NULL) {
        return ha_checkpoint_rows(from->checkpoint, i, first, count, out, err);
    }
    const ha_param *item = &from->params->items[i];
    const size_t cols = item->ndim == 2 ? item->shape[1] : item->size;
    memcpy(out, from->params->data + item->offset + first * cols, count * cols * sizeof(float));
    return HA_OK;
}

/* -- building -- */

static void
take_linear(ha_encoder *e, linear *l, size_t n, size_t k, ha_weight_format format)
{
    l->n = n;
    l->k = k;
    l->format = format;
    l->packed = ha_arena_take(&e->arena, e->kernels->linear_packed_bytes(format, n, k), 1);
    l->bias = ha_arena_take(&e->arena, n, sizeof(float));
}

/* Lays every weight out; run twice, see core/arena.h. */
static void
lay_out(ha_encoder *e, ha_weight_format format)
{
    const ha_encoder_config *c = &e->config;
    const size_t h = c->hidden_size, one = sizeof(float);
    e->layers = ha_arena_take(&e->arena, c->n_layers, sizeof(*e->layers));
    e->position = ha_arena_take(&e->arena, c->max_position_embeddings * h, one);
    e->type = ha_arena_take(&e->arena, c->type_vocab_size * h, one);
    e->norm_w = ha_arena_take(&e->arena, h, one);
    e->norm_b = ha_arena_take(&e->arena, h, one);
    for (size_t i = 0; i < c->n_layers; i++) {
        encoder_layer unused, *l = e->layers != NULL ? &e->layers[i] : &unused;
        memset(l, 0, sizeof(*l));
        if (i + 1 < c->n_layers) {
            take_linear(e, &l->qkv, 3 * h, h, format);
        } else {
            take_linear(e, &l->q, h, h, format);
            take_linear(e, &l->kv, 2 * h, h, format);
        }
        take_linear(e, &l->out, h, h, format);
        take_linear(e, &l->up, c->intermediate_size, h, format);
        take_linear(e, &l->down, h, c->intermediate_size, format);
        l->norm1_w = ha_arena_take(&e->arena, h, one);
        l->norm1_b = ha_arena_take(&e->arena, h, one);
        l->norm2_w = ha_arena_take(&e->arena, h, one);
        l->norm2_b = ha_arena_take(&e->arena, h, one);
    }
    take_linear(e, &e->pooler, h, h, HA_WEIGHT_F32);    /* the head is small: its precision costs nothing */
    take_linear(e, &e->classifier, c->num_labels, h, HA_WEIGHT_F32);
}

/* Packs the weight that parameters weight, weight + 1, ... (n_stacked of equal shape) make one below the other, and their biases. */
static ha_status
fill_linear(ha_encoder *e, const source *from, linear *l, size_t weight, size_t bias, size_t n_stacked, ha_error *err)
{
    const size_t each = l->n / n_stacked;
    float *panel = malloc(HA_PANEL * l->k * sizeof(float));
    ha_status status = HA_OK;
    if (panel == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    }
    for (size_t first = 0; first < l->n && status == HA_OK; first += HA_PANEL) {
        const size_t count = l->n - first < HA_PANEL ? l->n - first : HA_PANEL;
        for (size_t r = first; r < first + count && status == HA_OK;) {
            const size_t within = r % each, left = first + count - r, run = each - within < left ? each - within : left;
            status = source_rows(from, weight + r / each, within, run, panel + (r - first) * l->k, err);
            r += run;
        }
        if (status == HA_OK) {
            e->kernels->linear_pack(l->packed, l->format, l->n, l->k, first, count, panel, l->k);
        }
    }
    for (size_t i = 0; i < n_stacked && status == HA_OK; i++) {
        status = source_rows(from, bias + i, 0, 1, l->bias + i * each, err);
    }
    free(panel);
    return status;
}

static ha_status
fill_layer(ha_encoder *e, const source *from, size_t i, ha_error *err)
{
    encoder_layer *l = &e->layers[i];
    const size_t p = ha_layer_param(i, 0);
    ha_status status;
    if (l->qkv.n > 0) {
        status = fill_linear(e, from, &l->qkv, p + HA_Q_W, p + HA_Q_B, 3, err);
    } else if ((status = fill_linear(e, from, &l->q, p + HA_Q_W, p + HA_Q_B, 1, err)) == HA_OK) {
        status = fill_linear(e, from, &l->kv, p + HA_K_W, p + HA_K_B, 2, err);
    }
    if (status != HA_OK ||
        (status = fill_linear(e, from, &l->out, p + HA_OUT_W, p + HA_OUT_B, 1, err)) != HA_OK ||
        (status = fill_linear(e, from, &l->up, p + HA_UP_W, p + HA_UP_B, 1, err)) != HA_OK ||
        (status = fill_linear(e, from, &l->down, p + HA_DOWN_W, p + HA_DOWN_B, 1, err)) != HA_OK ||
        (status = source_rows(from, p + HA_NORM1_W, 0, 1, l->norm1_w, err)) != HA_OK ||
        (status = source_rows(from, p + HA_NORM1_B, 0, 1, l->norm1_b, err)) != HA_OK ||
        (status = source_rows(from, p + HA_NORM2_W, 0, 1, l->norm2_w, err)) != HA_OK) {
        return status;
    }
    return source_rows(from, p + HA_NORM2_B, 0, 1, l->norm2_b, err);
}

static ha_status
fill(ha_encoder *e, const source *from, ha_error *err)
{
    const ha_encoder_config *c = &e->config;
    const size_t p = ha_head_param(c, 0);
    ha_status status;
    if ((status = source_rows(from, HA_EMB_WORD, 0, 1, e->norm_w, err)) != HA_OK ||     /* its type has a reader */
        (status = source_rows(from, HA_EMB_POSITION, 0, c->max_position_embeddings, e->position, err)) != HA_OK ||
        (status = source_rows(from, HA_EMB_TYPE, 0, c->type_vocab_size, e->type, err)) != HA_OK ||
        (status = source_rows(from, HA_EMB_NORM_W, 0, 1, e->norm_w, err)) != HA_OK ||
        (status = source_rows(from, HA_EMB_NORM_B, 0, 1, e->norm_b, err)) != HA_OK ||
        (status = fill_linear(e, from, &e->pooler, p + HA_POOL_W, p + HA_POOL_B, 1, err)) != HA_OK ||
        (status = fill_linear(e, from, &e->classifier, p + HA_CLS_W, p + HA_CLS_B, 1, err)) != HA_OK) {
        return status;
    }
    for (size_t i = 0; i < c->n_layers && status == HA_OK; i++) {
        status = fill_layer(e, from, i, err);
    }
    return status;
}

static ha_status
build(const ha_encoder_config *config, const source *from, ha_weight_format format, ha_encoder **out, ha_error *err)
{
    ha_encoder *e = calloc(1, sizeof(*e));
    *out = e;
    if (e == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    }
    e->config = *config;
    e->kernels = ha_kernels_get();
    ha_arena_begin(&e->arena);
    lay_out(e, format);
    const ha_status status = ha_arena_commit(&e->arena, err);
    if (status != HA_OK) {
        return status;
    }
    lay_out(e, format);
    return fill(e, from, err);
}

ha_status
ha_encoder_open(const char *folder, ha_weight_format format, ha_encoder **out, ha_error *err)
{
    ha_encoder_config config;
    ha_checkpoint *checkpoint = NULL;
    ha_encoder *encoder = NULL;
    *out = NULL;
    ha_status status = ha_encoder_config_read(folder, &config, err);
    if (status != HA_OK || (status = ha_checkpoint_open(folder, &config, NULL, 0, 0, 0, &checkpoint, err)) != HA_OK) {
        return status;
    }
    const source from = {.checkpoint = checkpoint};
    status = build(&config, &from, format, &encoder, err);
    if (status != HA_OK) {
        ha_checkpoint_close(checkpoint);
        ha_encoder_free(encoder);
        return status;
    }
    encoder->checkpoint = checkpoint;
    *out = encoder;
    return HA_OK;
}

ha_status
ha_encoder_from_params(const ha_encoder_params *params, ha_weight_format format, ha_encoder **out, ha_error *err)
{
    const source from = {.params = params};
    const size_t words = params->items[HA_EMB_WORD].size;
    ha_encoder *encoder = NULL;
    *out = NULL;
    ha_status status = build(&params->config, &from, format, &encoder, err);
    if (status == HA_OK && (encoder->word = malloc(words * sizeof(float))) == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory (%zu word embeddings)", words);
    }
    if (status != HA_OK) {
        ha_encoder_free(encoder);
        return status;
    }
    memcpy(encoder->word, params->data + params->items[HA_EMB_WORD].offset, words * sizeof(float));
    *out = encoder;
    return HA_OK;
}

void
ha_encoder_free(ha_encoder *encoder)
{
    if (encoder != NULL) {
        ha_checkpoint_close(encoder->checkpoint);
        free(encoder->word);
        ha_arena_free(&encoder->arena);
        free(encoder);
    }
}

const ha_encoder_config *
ha_encoder_config_of(const ha_encoder *encoder)
{
    return &encoder->config;
}

/* -- running -- */

/* Buffers of one call, sized for its largest chunk. Of wide, query+key+value and the context come first, then the intermediate. */
typedef struct run {
    const ha_encoder *encoder;
    const ha_batch *batch;
    int n_threads;
    size_t tokens, rows, scratch_bytes;     /* of the largest chunk */
    float *x, *sum, *first, *wide;
    int64_t *offsets;
    void *scratch;
} run;

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
need_linear(run *r, const linear *l, size_t m)
{
    if (l->n > 0 && m > 0) {
        const size_t bytes = r->encoder->kernels->linear_scratch_bytes(l->format, m, l->n, l->k, r->n_threads);
        r->scratch_bytes = bytes > r->scratch_bytes ? bytes : r->scratch_bytes;
    }
}

static ha_attention
attention_of(const run *r, size_t rows, const int64_t *offsets, int cls_only)
{
    const ha_encoder *e = r->encoder;
    return (ha_attention){.kernels = e->kernels, .n_rows = rows, .n_heads = e->config.n_heads, .head_dim = e->config.head_dim,
                          .offsets = offsets, .cls_only = cls_only};
}

/* The sizes of rows [first, last) join those of the run. Layers share their shapes; only the last one differs. */
static void
need_chunk(run *r, size_t first, size_t last)
{
    const ha_encoder *e = r->encoder;
    const size_t rows = last - first, tokens = (size_t)(r->batch->offsets[last] - r->batch->offsets[first]);
    const encoder_layer *last_layer = &e->layers[e->config.n_layers - 1];
    const ha_attention attention = attention_of(r, rows, r->batch->offsets + first, 0);
    const ha_attention cls = attention_of(r, rows, r->batch->offsets + first, 1);
    const size_t whole = ha_attention_scratch_bytes(&attention, 0, r->n_threads);
    const size_t last_one = ha_attention_scratch_bytes(&cls, 0, r->n_threads);
    r->tokens = tokens > r->tokens ? tokens : r->tokens;
    r->rows = rows > r->rows ? rows : r->rows;
    r->scratch_bytes = whole > r->scratch_bytes ? whole : r->scratch_bytes;
    r->scratch_bytes = last_one > r->scratch_bytes ? last_one : r->scratch_bytes;
    for (size_t i = 0; i < 2; i++) {
        const encoder_layer *l = i == 0 ? &e->layers[0] : last_layer;
        const size_t m = i == 0 ? tokens : rows;
        need_linear(r, &l->qkv, tokens);
        need_linear(r, &l->kv, tokens);
        need_linear(r, &l->q, rows);
        need_linear(r, &l->out, m);
        need_linear(r, &l->up, m);
        need_linear(r, &l->down, m);
    }
    need_linear(r, &e->pooler, rows);
    need_linear(r, &e->classifier, rows);
}

static void
lay_out_run(run *r, ha_arena *arena)
{
    const ha_encoder_config *c = &r->encoder->config;
    const size_t h = c->hidden_size, wide = 4 * h > c->intermediate_size ? 4 * h : c->intermediate_size;
    r->x = ha_arena_take(arena, r->tokens, h * sizeof(float));
    r->sum = ha_arena_take(arena, r->tokens, h * sizeof(float));
    r->wide = ha_arena_take(arena, r->tokens, wide * sizeof(float));
    r->first = ha_arena_take(arena, r->rows, h * sizeof(float));
    r->offsets = ha_arena_take(arena, r->rows + 1, sizeof(int64_t));
    r->scratch = ha_arena_take(arena, r->scratch_bytes, 1);
}

static void
apply(const run *r, const linear *l, float *y, const float *x, size_t m)
{
    r->encoder->kernels->linear_f32(y, l->n, x, l->k, l->packed, l->format, l->bias, m, l->n, l->k, r->scratch, r->n_threads);
}

/* Word rows, then type and position, then LayerNorm, into r->x. */
static ha_status
embed(const run *r, size_t first, size_t last, ha_error *err)
{
    const ha_encoder *e = r->encoder;
    const size_t h = e->config.hidden_size, base = (size_t)r->batch->offsets[first];
    const size_t tokens = (size_t)r->batch->offsets[last] - base;
    for (size_t t = 0; t < tokens; t++) {
        const size_t id = (size_t)r->batch->ids[base + t];
        if (e->word != NULL) {
            memcpy(r->x + t * h, e->word + id * h, h * sizeof(float));
            continue;
        }
        const ha_status status = ha_checkpoint_rows(e->checkpoint, HA_EMB_WORD, id, 1, r->x + t * h, err);
        if (status != HA_OK) {
            return status;
        }
    }
    ha_batch_add_positions(&e->config, r->batch, first, last, e->position, e->type, r->x, r->n_threads);
    e->kernels->layer_norm_f32(r->x, r->x, e->norm_w, e->norm_b, tokens, h, e->config.layer_norm_eps, r->n_threads);
    return HA_OK;
}

/* x (m, hidden) = LayerNorm(x + y) */
static void
add_norm(const run *r, float *x, float *y, const float *weight, const float *bias, size_t m)
{
    const ha_kernels *k = r->encoder->kernels;
    const ha_encoder_config *c = &r->encoder->config;
    k->add_f32(y, y, x, m * c->hidden_size, r->n_threads);
    k->layer_norm_f32(x, y, weight, bias, m, c->hidden_size, c->layer_norm_eps, r->n_threads);
}

/* From the context (m, hidden) to the layer's output in x (m, hidden). */
static void
finish_layer(const run *r, const encoder_layer *l, float *x, const float *context, size_t m)
{
    apply(r, &l->out, r->sum, context, m);
    add_norm(r, x, r->sum, l->norm1_w, l->norm1_b, m);
    apply(r, &l->up, r->wide, x, m);
    r->encoder->kernels->gelu_f32(r->wide, r->wide, m * l->up.n, r->n_threads);
    apply(r, &l->down, r->sum, r->wide, m);
    add_norm(r, x, r->sum, l->norm2_w, l->norm2_b, m);
}

static void
run_layer(const run *r, const encoder_layer *l, size_t rows, size_t tokens)
{
    const size_t h = r->encoder->config.hidden_size;
    float *context = r->wide + 3 * h * tokens;
    ha_attention a = attention_of(r, rows, r->offsets, 0);
    apply(r, &l->qkv, r->wide, r->x, tokens);
    a.q = r->wide, a.k = r->wide + h, a.v = r->wide + 2 * h;
    a.ldq = a.ldkv = 3 * h;
    ha_attention_forward(&a, context, h, r->scratch, r->n_threads);
    finish_layer(r, l, r->x, context, tokens);
}

/* The head reads the first token alone: so does all of the last layer but its keys and values. Leaves it in r->first (rows, hidden). */
static void
run_last_layer(const run *r, const encoder_layer *l, size_t rows, size_t tokens)
{
    const size_t h = r->encoder->config.hidden_size;
    float *q = r->wide + 2 * h * tokens, *context = q + h * rows;
    ha_attention a = attention_of(r, rows, r->offsets, 1);
    for (size_t i = 0; i < rows; i++) {
        memcpy(r->first + i * h, r->x + (size_t)r->offsets[i] * h, h * sizeof(float));
    }
    apply(r, &l->kv, r->wide, r->x, tokens);
    apply(r, &l->q, q, r->first, rows);
    a.q = q, a.k = r->wide, a.v = r->wide + h;
    a.ldq = h, a.ldkv = 2 * h;
    ha_attention_forward(&a, context, h, r->scratch, r->n_threads);
    finish_layer(r, l, r->first, context, rows);
}

static ha_status
run_chunk(const run *r, size_t first, size_t last, float *logits, ha_error *err)
{
    const ha_encoder *e = r->encoder;
    const size_t rows = last - first, tokens = (size_t)(r->batch->offsets[last] - r->batch->offsets[first]);
    const size_t h = e->config.hidden_size, n_layers = e->config.n_layers;
    const ha_status status = embed(r, first, last, err);
    if (status != HA_OK) {
        return status;
    }
    for (size_t i = 0; i <= rows; i++) {
        r->offsets[i] = r->batch->offsets[first + i] - r->batch->offsets[first];
    }
    for (size_t i = 0; i + 1 < n_layers; i++) {
        run_layer(r, &e->layers[i], rows, tokens);
    }
    run_last_layer(r, &e->layers[n_layers - 1], rows, tokens);
    apply(r, &e->pooler, r->sum, r->first, rows);
    for (size_t i = 0; i < rows; i++) {
        e->kernels->tanh_f32(r->sum + i * h, r->sum + i * h, h);
    }
    apply(r, &e->classifier, logits + first * e->config.num_labels, r->sum, rows);
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
        for (size_t first = 0, last; first < batch->n_rows && status == HA_OK; first = last) {
            last = chunk_end(batch, first, n_threads);
            status = run_chunk(&r, first, last, logits, err);
        }
    }
    ha_arena_free(&arena);
    return status;
}
