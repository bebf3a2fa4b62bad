#include "models/decoder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/pages.h"
#include "core/parallel.h"
#include "models/decoder_impl.h"

#define ROW_GRAIN 8             /* rows a thread, below which starting a thread costs more than rotating them */

ha_status
ha_decoder_open(const char *path, ha_weight_format format, int n_threads, ha_decoder **out, ha_error *err)
{
    *out = NULL;
    ha_decoder *d = calloc(1, sizeof(*d));
    if (d == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory while opening a model");
    }
    d->kernels = ha_kernels_get();
    d->format = format;
    ha_status status = ha_tensor_file_open(path, &d->file, err);
    if (status == HA_OK) {
        status = ha_gguf_is(d->file) ? ha_decoder_config_gguf(d->file, &d->config, err) : ha_decoder_config_hf(path, &d->config, err);
    }
    if (status == HA_OK) {
        status = ha_decoder_weights_read(d, n_threads, err);
    }
    if (status != HA_OK) {
        ha_decoder_free(d);
        return status;
    }
    *out = d;
    return HA_OK;
}

void
ha_decoder_free(ha_decoder *d)
{
    if (d != NULL) {
        ha_tensor_file_close(d->file);
        free(d->layers);
        free(d->inv_freq);
        ha_pages_free(d->packed, d->packed_bytes);
        free(d);
    }
}

const ha_decoder_config *
ha_decoder_config_of(const ha_decoder *d)
{
    return &d->config;
}

ha_weight_format
ha_decoder_format(const ha_decoder *d)
{
    return d->format;
}

const ha_kernels *
ha_decoder_kernels(const ha_decoder *d)
{
    return d->kernels;
}

size_t
ha_decoder_weight_bytes(const ha_decoder *d)
{
    return d->packed_bytes;
}

ha_status
ha_decoder_cache_new(const ha_decoder *d, size_t capacity, ha_kv_cache **out, ha_error *err)
{
    return ha_kv_cache_new(d->config.n_layers, d->config.n_kv_heads, d->config.head_dim, capacity, out, err);
}

/* -- state -- */

/* count * width elements of `size` bytes, 64-byte aligned; *ok becomes 0 when it cannot be had. */
static void *
buffer(size_t count, size_t width, size_t size, int *ok)
{
    void *data = NULL;
    if (width == 0 || count <= (SIZE_MAX - 64) / size / width) {
        data = aligned_alloc(64, (count * width * size + 64) / 64 * 64);
    }
    *ok = *ok && data != NULL;
    return data;
}

ha_status
ha_decoder_state_new(const ha_decoder *d, size_t max_rows, int n_threads, ha_decoder_state **out, ha_error *err)
{
    const ha_decoder_config *c = &d->config;
    *out = NULL;
    ha_decoder_state *s = calloc(1, sizeof(*s));
    int ok = s != NULL;
    if (ok) {
        s->max_rows = max_rows;
        s->n_threads = n_threads;
        s->x = buffer(max_rows, c->hidden_size, sizeof(float), &ok);
        s->normed = buffer(max_rows, c->hidden_size, sizeof(float), &ok);
        s->qkv = buffer(max_rows, (c->n_heads + 2 * c->n_kv_heads) * c->head_dim, sizeof(float), &ok);
        s->mixed = buffer(max_rows, c->n_heads * c->head_dim, sizeof(float), &ok);
        s->gate_up = buffer(max_rows, d->layers[0].gate_up.n, sizeof(float), &ok);
        s->gated = buffer(max_rows, c->intermediate_size, sizeof(float), &ok);
        s->cosine = buffer(max_rows, c->head_dim / 2, sizeof(float), &ok);
        s->sine = buffer(max_rows, c->head_dim / 2, sizeof(float), &ok);
        s->rows = buffer(max_rows, 1, sizeof(*s->rows), &ok);
        s->tasks = buffer(max_rows, c->n_kv_heads, sizeof(*s->tasks), &ok);
    }
    if (!ok) {
        ha_decoder_state_free(s);
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: buffers for %zu rows of a forward pass", max_rows);
    }
    *out = s;
    return HA_OK;
}

void
ha_decoder_state_free(ha_decoder_state *s)
{
    if (s != NULL) {
        void *const owned[] = {s->x, s->normed, s->qkv, s->mixed, s->gate_up, s->gated, s->cosine, s->sine, s->linear_scratch, s->rows, s->tasks,
                               s->attention_scratch, s};
        for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) {
            free(owned[i]);
        }
    }
}

static ha_status
grow_linear_scratch(const ha_decoder *d, ha_decoder_state *s, const ha_linear *linear, size_t m, ha_error *err)
{
    const size_t bytes = d->kernels->linear_scratch_bytes(linear->format, m, linear->n, linear->k, s->n_threads);
    if (bytes > s->linear_scratch_bytes) {
        free(s->linear_scratch);
        s->linear_scratch_bytes = 0;
        s->linear_scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (s->linear_scratch == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory: a matrix product needs %zu bytes", bytes);
        }
        s->linear_scratch_bytes = bytes;
    }
    return HA_OK;
}

/* -- forward -- */

/* Row r of a pass: the embedding of its token, and its position as a sum or as rotations. */
static ha_status
embed(const ha_decoder *d, ha_decoder_state *s, size_t r, int32_t id, ha_error *err)
{
    const ha_decoder_config *c = &d->config;
    const size_t half = c->head_dim / 2, position = s->rows[r].position;
    float *x = s->x + r * c->hidden_size;
    ha_status status = ha_tensor_rows_f32(d->embedding, (size_t)id, 1, x, err);
    if (status != HA_OK) {
        return status;
    }
    for (size_t i = 0; c->embedding_scale != 1 && i < c->hidden_size; i++) {
        x[i] *= c->embedding_scale;
    }
    if (d->positions != NULL) {
        status = ha_tensor_rows_f32(d->positions, position, 1, s->normed, err);
        if (status == HA_OK) {
            d->kernels->add_f32(x, x, s->normed, c->hidden_size, 1);
        }
        return status;
    }
    const float scale = c->rope_scaling == HA_ROPE_YARN ? (float)c->rope_attention_factor : 1.0f;
    for (size_t f = 0; f < half; f++) {
        const float angle = (float)position * d->inv_freq[f];   /* rounded to float32, as transformers has it */
        s->cosine[r * half + f] = (float)cos((double)angle) * scale;
        s->sine[r * half + f] = (float)sin((double)angle) * scale;
    }
    return HA_OK;
}

/* Checks the segments, lists their rows, and reads embeddings and rotations. */
static ha_status
begin(const ha_decoder *d, ha_decoder_state *s, const ha_segment *segments, size_t n_segments, ha_error *err)
{
    const ha_decoder_config *c = &d->config;
    s->n_rows = 0;
    for (size_t i = 0; i < n_segments; i++) {
        const ha_segment *segment = &segments[i];
        const size_t shared = segment->prefix != NULL ? segment->prefix->length : 0, first = shared + segment->own->length;
        if (segment->n_ids == 0 || segment->n_ids > s->max_rows - s->n_rows || (segment->prefix != NULL && shared == 0)) {
            return ha_fail(err, HA_ERR_VALUE, "forward pass: segment %zu of %zu tokens does not fit %zu rows", i, segment->n_ids, s->max_rows);
        }
        if (segment->n_ids > segment->own->capacity - segment->own->length) {
            return ha_fail(err, HA_ERR_VALUE, "forward pass: segment %zu of %zu tokens does not fit its cache", i, segment->n_ids);
        }
        if (first > c->max_position_embeddings || segment->n_ids > c->max_position_embeddings - first) {
            return ha_fail(err, HA_ERR_VALUE, "%zu tokens exceed the model's context of %zu", first + segment->n_ids, c->max_position_embeddings);
        }
        for (size_t j = 0; j < segment->n_ids; j++) {
            const int32_t id = segment->ids[j];
            if (id < 0 || (size_t)id >= c->vocab_size) {
                return ha_fail(err, HA_ERR_VALUE, "token %zu: id %ld lies outside the vocabulary of %zu", first + j, (long)id, c->vocab_size);
            }
            const size_t r = s->n_rows++;
            s->rows[r] = (ha_decoder_row){i, first + j};
            ha_status status = embed(d, s, r, id, err);
            if (status != HA_OK) {
                return status;
            }
        }
    }
    return HA_OK;
}

/* Rotary positions (Su et al. 2021, arXiv 2104.09864) of one head, halves (i, i + head_dim / 2) as pairs. */
static void
rotate(float *x, const float *cosine, const float *sine, size_t half)
{
    for (size_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

/* Norms and rotates the heads of one row's query or key, in place. */
static void
place_heads(const ha_decoder *d, const ha_decoder_state *s, size_t row, float *heads, size_t n_heads, const float *norm)
{
    const ha_decoder_config *c = &d->config;
    const size_t hd = c->head_dim, half = hd / 2;
    if (norm != NULL) {
        d->kernels->rms_norm_f32(heads, heads, norm, n_heads, hd, c->norm_eps, 1);
    }
    for (size_t h = 0; d->positions == NULL && h < n_heads; h++) {
        rotate(heads + h * hd, s->cosine + row * half, s->sine + row * half, half);
    }
}

/* Brings queries and keys to their positions; keys and values into the caches. */
static void
place_and_store(const ha_decoder *d, ha_decoder_state *s, const ha_segment *segments, size_t layer)
{
    const ha_decoder_config *c = &d->config;
    const size_t hd = c->head_dim, width = (c->n_heads + 2 * c->n_kv_heads) * hd;
    const int threads = ha_threads_for(s->n_rows, ROW_GRAIN, s->n_threads);
    (void)threads;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(threads)) if (threads > 1) schedule(static)
#endif
    for (ptrdiff_t i = 0; i < (ptrdiff_t)s->n_rows; i++) {
        const size_t r = (size_t)i;
        const ha_segment *segment = &segments[s->rows[r].segment];
        const size_t at = s->rows[r].position - (segment->prefix != NULL ? segment->prefix->length : 0);
        float *query = s->qkv + r * width, *key = query + c->n_heads * hd, *value = key + c->n_kv_heads * hd;
        place_heads(d, s, r, query, c->n_heads, d->layers[layer].query_norm);
        place_heads(d, s, r, key, c->n_kv_heads, d->layers[layer].key_norm);
        for (size_t h = 0; h < c->n_kv_heads; h++) {
            memcpy(ha_kv_at(segment->own, layer, 0, h) + at * hd, key + h * hd, hd * sizeof(float));
            memcpy(ha_kv_at(segment->own, layer, 1, h) + at * hd, value + h * hd, hd * sizeof(float));
        }
    }
}

static void
norm(const ha_decoder *d, float *out, const float *x, const ha_norm *norm, size_t rows, int n_threads)
{
    const ha_decoder_config *c = &d->config;
    if (c->options & HA_LAYER_NORM) {
        d->kernels->layer_norm_f32(out, x, norm->weight, norm->bias, rows, c->hidden_size, c->norm_eps, n_threads);
    }
    else {
        d->kernels->rms_norm_f32(out, x, norm->weight, rows, c->hidden_size, c->norm_eps, n_threads);
    }
}

static void
apply(const ha_decoder *d, const ha_decoder_state *s, const ha_linear *linear, const float *x, float *y, size_t m)
{
    d->kernels->linear_f32(y, linear->n, x, linear->k, linear->packed, linear->format, linear->bias, HA_ACT_NONE, m, linear->n, linear->k,
                           s->linear_scratch, s->n_threads);
}

/* state->gated from state->gate_up. */
static void
activate(const ha_decoder *d, ha_decoder_state *s)
{
    const size_t width = d->config.intermediate_size;
    if (d->config.options & HA_UNGATED) {
        d->kernels->activate_f32(s->gated, s->gate_up, d->config.activation, s->n_rows * width, s->n_threads);
    }
    else {
        d->kernels->activate_gated_f32(s->gated, width, s->gate_up, 2 * width, d->config.activation, s->n_rows, width, s->n_threads);
    }
}

/* x += branch, which a post-norm goes over first. branch is overwritten. */
static void
add_branch(const ha_decoder *d, ha_decoder_state *s, float *branch, const ha_norm *post)
{
    if (d->config.options & HA_POST_NORMS) {
        norm(d, branch, branch, post, s->n_rows, s->n_threads);
    }
    d->kernels->add_f32(s->x, s->x, branch, s->n_rows * d->config.hidden_size, s->n_threads);
}

ha_status
ha_decoder_forward(const ha_decoder *d, ha_decoder_state *s, const ha_segment *segments, size_t n_segments, ha_error *err)
{
    ha_status status = begin(d, s, segments, n_segments, err);
    if (status != HA_OK || (status = ha_attention_plan(d, s, segments, n_segments, err)) != HA_OK) {
        return status;
    }
    const ha_linear *const shapes[] = {&d->layers[0].qkv, &d->layers[0].output, &d->layers[0].gate_up, &d->layers[0].down};
    for (size_t i = 0; i < 4; i++) {
        if ((status = grow_linear_scratch(d, s, shapes[i], s->n_rows, err)) != HA_OK) {
            return status;
        }
    }
    const size_t m = s->n_rows;
    for (size_t i = 0; i < d->config.n_layers; i++) {
        const ha_decoder_layer *layer = &d->layers[i];
        norm(d, s->normed, s->x, &layer->attention_norm, m, s->n_threads);
        apply(d, s, &layer->qkv, s->normed, s->qkv, m);
        place_and_store(d, s, segments, i);
        ha_attention_run(d, s, segments, i);
        apply(d, s, &layer->output, s->mixed, s->normed, m);
        add_branch(d, s, s->normed, &layer->attention_post_norm);
        norm(d, s->normed, s->x, &layer->mlp_norm, m, s->n_threads);
        apply(d, s, &layer->gate_up, s->normed, s->gate_up, m);
        activate(d, s);
        apply(d, s, &layer->down, s->gated, s->normed, m);
        add_branch(d, s, s->normed, &layer->mlp_post_norm);
    }
    for (size_t i = 0; i < n_segments; i++) {
        segments[i].own->length += segments[i].n_ids;
    }
    return HA_OK;
}

void
ha_softcap(const ha_kernels *k, float *x, float scale, float cap, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = x[i] * scale / cap;
    }
    k->activate_f32(x, x, HA_ACT_TANH, n, 1);
    for (size_t i = 0; i < n; i++) {
        x[i] *= cap;
    }
}

static void
softcap_rows(const ha_decoder *d, const ha_decoder_state *s, float *logits, size_t n_rows)
{
    const size_t vocab = d->config.vocab_size;
    const int threads = ha_threads_for(n_rows, 1, s->n_threads);
    (void)threads;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(threads)) if (threads > 1) schedule(static)
#endif
    for (ptrdiff_t r = 0; r < (ptrdiff_t)n_rows; r++) {
        ha_softcap(d->kernels, logits + (size_t)r * vocab, 1.0f, (float)d->config.final_softcap, vocab);
    }
}

ha_status
ha_decoder_head(const ha_decoder *d, ha_decoder_state *s, const size_t *rows, size_t n_rows, float *logits, ha_error *err)
{
    const size_t hidden = d->config.hidden_size;
    ha_status status = grow_linear_scratch(d, s, &d->head, n_rows, err);
    if (status != HA_OK) {
        return status;
    }
    for (size_t i = 0; i < n_rows; i++) {
        memcpy(s->normed + i * hidden, s->x + rows[i] * hidden, hidden * sizeof(float));
    }
    norm(d, s->normed, s->normed, &d->final_norm, n_rows, s->n_threads);
    apply(d, s, &d->head, s->normed, logits, n_rows);
    if (d->config.final_softcap > 0) {
        softcap_rows(d, s, logits, n_rows);
    }
    return HA_OK;
}
