/* The forward pass of training: as inference, on the weights as they stand, with dropout and with activations kept. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/encoder_batch.h"
#include "models/encoder_parts.h"
#include "models/encoder_tape.h"

ha_tape *
ha_tape_new(int bf16)
{
    ha_tape *tape = calloc(1, sizeof(*tape));
    if (tape != NULL) {
        tape->bf16 = bf16;
    }
    return tape;
}

void
ha_tape_free(ha_tape *tape)
{
    if (tape != NULL) {
        ha_arena_free(&tape->arena);
        ha_arena_free(&tape->scratch);
        ha_arena_free(&tape->distances);
        free(tape);
    }
}

ha_attention
ha_tape_attention(const ha_tape *tape, const ha_batch *batch, size_t i, ha_relative *relative)
{
    const ha_encoder_config *c = &tape->params->config;
    const ha_layer_tape *l = &tape->layers[i];
    const int terms = 1 + c->c2p + c->p2c;
    *relative = (ha_relative){.key = l->pos_key, .query = l->pos_query, .row = tape->relative_row};
    return (ha_attention){
        .kernels = tape->kernels, .n_rows = batch->n_rows, .n_heads = c->n_heads, .head_dim = c->head_dim,
        .offsets = batch->offsets, .cls_only = l->cls_only, .q = l->q, .k = l->k, .v = l->k + c->hidden_size,
        .ldq = l->ldq, .ldkv = l->ldkv, .scale = 1.0f / sqrtf((float)c->head_dim * (float)terms), .window = c->windowed[i] ? c->window : 0,
        .relative = tape->relative_row != NULL ? relative : NULL,
        .dropout = ha_tape_dropout(tape, tape->dropout.attention, ha_layer_place(i, HA_DROP_PROBABILITY)),
    };
}

ha_affine
ha_position_affine(const ha_encoder_params *params, size_t layer, int which)
{
    const size_t h = params->config.hidden_size, p = ha_layer_param(layer, 0);
    static const size_t own[2][2] = {{HA_POS_KEY_W, HA_POS_KEY_B}, {HA_POS_QUERY_W, HA_POS_QUERY_B}}, shared[2][2] = {{HA_K_W, HA_K_B}, {HA_Q_W, HA_Q_B}};
    const size_t *at = params->config.share_att_key ? shared[which] : own[which];
    return ha_affine_of(params, p + at[0], p + at[1], 0, h, h);
}

void
ha_tape_drop_relative(const ha_tape *tape, size_t i, float *table, int n_threads)
{
    const size_t h = tape->params->config.hidden_size;
    const ha_dropout dropout = ha_tape_dropout(tape, tape->dropout.hidden, ha_layer_place(i, HA_DROP_RELATIVE));
    if (table != tape->relative) {
        memcpy(table, tape->relative, tape->relative_count * h * sizeof(float));
    }
    ha_dropout_rows(&dropout, tape->relative_first, table, tape->relative_count, h, n_threads);
}

/* -- sizes -- */

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* A Linear (n, k) over m rows: its forward product, and those of the gradients of its weight and input. */
static size_t
linear_bytes(const ha_kernels *kernels, size_t m, size_t n, size_t k, int n_threads)
{
    return larger(kernels->gemm_scratch_bytes(m, n, k, n_threads),
                  larger(kernels->gemm_scratch_bytes(n, k, m, n_threads), kernels->gemm_scratch_bytes(m, k, n, n_threads)));
}

static size_t
up_width(const ha_encoder_config *c)
{
    return (c->gated ? 2 : 1) * c->intermediate_size;
}

ha_status
ha_tape_reserve(ha_tape *tape, const ha_batch *batch, int n_threads, ha_error *err)
{
    const ha_encoder_config *c = &tape->params->config;
    const ha_kernels *k = tape->kernels;
    const size_t h = c->hidden_size, tokens = larger(tape->n_tokens, tape->relative_count);
    size_t most = linear_bytes(k, tape->n_rows, larger(c->num_labels, h), h, n_threads);
    most = larger(most, linear_bytes(k, tokens, larger(3 * h, up_width(c)), h, n_threads));
    most = larger(most, linear_bytes(k, tokens, h, larger(c->intermediate_size, c->embedding_size), n_threads));
    if (c->conv_groups > 0) {
        most = larger(most, linear_bytes(k, tokens, h / c->conv_groups, h / c->conv_groups * c->conv_kernel_size, n_threads));
    }
    for (size_t i = 0; i < c->n_layers; i++) {
        if (i > 0 && i + 1 < c->n_layers && c->windowed[i] == c->windowed[i - 1]) {
            continue;
        }
        ha_relative relative;
        const ha_attention a = ha_tape_attention(tape, batch, i, &relative);
        most = larger(most, larger(ha_attention_scratch_bytes(&a, n_threads), ha_attention_backward_scratch_bytes(&a, n_threads)));
    }
    ha_arena_begin(&tape->scratch);
    ha_arena_take(&tape->scratch, most, 1);
    return ha_arena_commit(&tape->scratch, err);
}

/* Activations of layer i, whose input was the output of the one before. */
static void
lay_out_layer(ha_tape *tape, ha_layer_tape *l, size_t i, float *input)
{
    const ha_encoder_config *c = &tape->params->config;
    const size_t h = c->hidden_size, tokens = tape->n_tokens, row = h * sizeof(float);
    ha_arena *arena = &tape->arena;
    *l = (ha_layer_tape){.cls_only = i + 1 == c->n_layers && !c->mean_pooling, .input = input};
    l->n = l->cls_only ? tape->n_rows : tokens;
    if (l->cls_only) {
        l->ldq = h, l->ldkv = 2 * h;
        l->first = ha_arena_take(arena, l->n, row);
        l->q = ha_arena_take(arena, l->n, row);
        l->k = ha_arena_take(arena, tokens, 2 * row);
    } else {
        l->ldq = l->ldkv = 3 * h;
        l->q = ha_arena_take(arena, tokens, 3 * row);
        l->k = l->q != NULL ? l->q + h : NULL;
    }
    if (tape->relative_count > 0) {
        l->pos_key = c->c2p ? ha_arena_take(arena, tape->relative_count, row) : NULL;
        l->pos_query = c->p2c ? ha_arena_take(arena, tape->relative_count, row) : NULL;
    }
    l->context = ha_arena_take(arena, l->n, row);
    l->middle = ha_arena_take(arena, l->n, row);
    l->up = ha_arena_take(arena, l->n, up_width(c) * sizeof(float));
    l->sum = c->pre_norm ? NULL : ha_arena_take(arena, l->n, row);
    l->output = ha_arena_take(arena, l->n, row);
}

static void
lay_out_embedding(ha_tape *tape)
{
    const ha_encoder_config *c = &tape->params->config;
    const size_t tokens = tape->n_tokens, one = sizeof(float), row = c->hidden_size * one;
    const int project = c->embedding_size != c->hidden_size;
    ha_arena *arena = &tape->arena;
    tape->summed = ha_arena_take(arena, tokens, c->embedding_size * one);
    tape->projected = project && c->project_first ? ha_arena_take(arena, tokens, row) : NULL;
    tape->embedded = project && !c->project_first ? ha_arena_take(arena, tokens, c->embedding_size * one) : NULL;
    tape->relative = ha_arena_take(arena, tape->relative_count, row);
    tape->table = ha_arena_take(arena, tape->relative_count, row);
    tape->dtable[0] = ha_arena_take(arena, tape->relative_count, row);
    tape->dtable[1] = ha_arena_take(arena, tape->relative_count, row);
    tape->drelative = ha_arena_take(arena, tape->relative_count, row);
    for (int kind = 0; kind < 2; kind++) {
        tape->cosine[kind] = c->rope_theta[kind] > 0 ? ha_arena_take(arena, tape->longest, c->head_dim / 2 * one) : NULL;
        tape->sine[kind] = c->rope_theta[kind] > 0 ? ha_arena_take(arena, tape->longest, c->head_dim / 2 * one) : NULL;
    }
}

/* Run twice, see core/arena.h. */
static void
lay_out(ha_tape *tape)
{
    const ha_encoder_config *c = &tape->params->config;
    const size_t h = c->hidden_size, tokens = tape->n_tokens, rows = tape->n_rows, row = h * sizeof(float);
    const size_t windows = c->conv_groups > 0 ? h / c->conv_groups * c->conv_kernel_size : 0;
    ha_arena *arena = &tape->arena;
    tape->layers = ha_arena_take(arena, c->n_layers, sizeof(*tape->layers));
    lay_out_embedding(tape);
    float *input = ha_arena_take(arena, tokens, row);
    for (size_t i = 0; i < c->n_layers; i++) {
        ha_layer_tape unused, *l = tape->layers != NULL ? &tape->layers[i] : &unused;
        lay_out_layer(tape, l, i, input);
        input = l->output;
        if (i == 0 && c->conv_groups > 0) {
            tape->conv = ha_arena_take(arena, l->n, row);
            tape->conv_sum = ha_arena_take(arena, l->n, row);
            tape->dembedded = ha_arena_take(arena, tokens, row);
        }
    }
    tape->pooled = ha_arena_take(arena, rows, row);
    tape->dense = ha_arena_take(arena, rows, row);
    tape->active = ha_arena_take(arena, rows, row);
    tape->dropped = ha_arena_take(arena, rows, row);
    tape->wide = ha_arena_take(arena, tokens, larger(larger(3 * h, up_width(c)), windows) * sizeof(float));
    tape->mid = ha_arena_take(arena, tokens, larger(c->intermediate_size, h) * sizeof(float));
    tape->normed = ha_arena_take(arena, tokens, row);
    tape->g = ha_arena_take(arena, tokens, larger(h, c->embedding_size) * sizeof(float));
    tape->t = ha_arena_take(arena, tokens, larger(h, c->embedding_size) * sizeof(float));
    tape->u = ha_arena_take(arena, tokens, larger(h, c->embedding_size) * sizeof(float));
}

/* The table of distances, which tells how many rows of relative positions this batch uses. */
static ha_status
start_relative(ha_tape *tape, ha_error *err)
{
    const ha_encoder_config *c = &tape->params->config;
    const size_t count = 2 * tape->longest - 1;
    tape->relative_row = NULL;
    tape->relative_first = tape->relative_count = 0;
    if (c->relative_span == 0 || !(c->c2p || c->p2c)) {
        return HA_OK;
    }
    ha_arena_begin(&tape->distances);
    ha_arena_take(&tape->distances, count, sizeof(int32_t));
    const ha_status status = ha_arena_commit(&tape->distances, err);
    if (status != HA_OK) {
        return status;
    }
    int32_t *row = ha_arena_take(&tape->distances, count, sizeof(*row));
    ha_relative_rows(c, row, tape->longest);
    tape->relative_first = (size_t)row[0];
    tape->relative_count = (size_t)(row[count - 1] - row[0]) + 1;
    for (size_t i = 0; i < count; i++) {
        row[i] -= (int32_t)tape->relative_first;
    }
    tape->relative_row = row + (tape->longest - 1);
    return HA_OK;
}

static ha_status
start(ha_tape *tape, const ha_encoder_params *params, const ha_batch *batch, const ha_dropouts *dropout, uint64_t seed, uint64_t step,
      int n_threads, ha_error *err)
{
    const float *const p[3] = {&dropout->hidden, &dropout->attention, &dropout->classifier};
    for (int i = 0; i < 3; i++) {
        if (!(*p[i] >= 0.0f && *p[i] < 1.0f)) {
            return ha_fail(err, HA_ERR_VALUE, "encoder: dropout must be in [0, 1), got %g", (double)*p[i]);
        }
    }
    ha_status status = ha_batch_check(&params->config, batch, err);
    if (status != HA_OK) {
        return status;
    }
    tape->kernels = ha_kernels_get();
    tape->params = params;
    tape->n_rows = batch->n_rows;
    tape->n_tokens = (size_t)batch->offsets[batch->n_rows];
    tape->dropout = *dropout;
    tape->seed = seed;
    tape->step = step;
    tape->longest = 1;
    for (size_t i = 0; i < batch->n_rows; i++) {
        tape->longest = larger(tape->longest, (size_t)(batch->offsets[i + 1] - batch->offsets[i]));
    }
    if (batch->n_rows == 0) {
        return HA_OK;
    }
    if ((status = start_relative(tape, err)) != HA_OK) {
        return status;
    }
    ha_arena_begin(&tape->arena);
    lay_out(tape);
    if ((status = ha_arena_commit(&tape->arena, err)) != HA_OK) {
        return status;
    }
    lay_out(tape);
    return ha_tape_reserve(tape, batch, n_threads, err);
}

/* -- steps -- */

void
ha_affine_forward(const ha_tape *tape, const ha_affine *l, float *y, size_t ldy, const float *x, size_t m, int n_threads)
{
    const float *data = tape->params->data;
    const ha_gemm gemm = {.m = m, .n = l->n, .k = l->k, .alpha = 1.0f, .a = x, .a_row = (ptrdiff_t)l->k, .a_col = 1, .b = data + l->weight, .b_row = 1,
                          .b_col = (ptrdiff_t)l->k, .c = y, .ldc = ldy, .bias = l->has_bias ? data + l->bias : NULL, .bf16 = tape->bf16};
    tape->kernels->gemm_f32(&gemm, tape->scratch.base, n_threads);
}

void
ha_tape_norm(const ha_tape *tape, float *out, const float *x, size_t param, size_t m, int n_threads)
{
    const ha_encoder_params *p = tape->params;
    tape->kernels->layer_norm_f32(out, x, ha_weight(p, param), ha_weight(p, param + 1), m, p->items[param].size, p->config.layer_norm_eps, n_threads);
}

static void
drop(const ha_tape *tape, float probability, uint64_t place, float *x, size_t rows, size_t cols, int n_threads)
{
    const ha_dropout dropout = ha_tape_dropout(tape, probability, place);
    ha_dropout_rows(&dropout, 0, x, rows, cols, n_threads);
}

static void
embed_forward(const ha_tape *tape, const ha_batch *batch, int n_threads)
{
    const ha_encoder_params *p = tape->params;
    const ha_encoder_config *c = &p->config;
    const size_t e = c->embedding_size, h = c->hidden_size, tokens = tape->n_tokens;
    const ha_affine project = ha_affine_of(p, HA_EMB_PROJECT_W, HA_EMB_PROJECT_B, 0, h, e);
    float *out = tape->layers[0].input, *normed = tape->embedded != NULL ? tape->embedded : out;
    const float *in = tape->summed;
    for (size_t t = 0; t < tokens; t++) {
        memcpy(tape->summed + t * e, ha_weight(p, HA_EMB_WORD) + (size_t)batch->ids[t] * e, e * sizeof(float));
    }
    ha_batch_add_positions(c, batch, 0, batch->n_rows, ha_weight(p, HA_EMB_POSITION), ha_weight(p, HA_EMB_TYPE), tape->summed, n_threads);
    if (tape->projected != NULL) {
        ha_affine_forward(tape, &project, tape->projected, h, tape->summed, tokens, n_threads);
        in = tape->projected;
    }
    ha_tape_norm(tape, normed, in, HA_EMB_NORM_W, tokens, n_threads);
    drop(tape, tape->dropout.hidden, HA_DROP_EMBEDDING, normed, tokens, p->items[HA_EMB_NORM_W].size, n_threads);
    if (tape->embedded != NULL) {
        ha_affine_forward(tape, &project, out, h, tape->embedded, tokens, n_threads);
    }
    if (tape->relative_row != NULL) {
        const float *table = ha_weight(p, HA_RELATIVE) + tape->relative_first * h;
        if (c->norm_rel_ebd) {
            ha_tape_norm(tape, tape->relative, table, HA_RELATIVE_NORM_W, tape->relative_count, n_threads);
        } else {
            memcpy(tape->relative, table, tape->relative_count * h * sizeof(float));
        }
    }
    for (int kind = 0; kind < 2 && tape->cosine[kind] != NULL; kind++) {
        ha_rotary_frequencies(c->rope_theta[kind], c->head_dim, tape->wide);
        ha_rotary_angles(tape->wide, c->head_dim / 2, tape->longest, tape->cosine[kind], tape->sine[kind]);
    }
}

/* Queries, keys and values of layer i, and the projections of its relative positions. */
static void
project_forward(const ha_tape *tape, const ha_batch *batch, size_t i, int n_threads)
{
    const ha_encoder_params *p = tape->params;
    const ha_encoder_config *c = &p->config;
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = c->hidden_size, w = ha_layer_param(i, 0), tokens = tape->n_tokens;
    const int kind = c->windowed[i], norm = c->pre_norm && p->items[w + HA_NORM1_W].size > 0;
    const float *x = norm ? tape->normed : l->input;
    if (norm) {
        ha_tape_norm(tape, tape->normed, l->input, w + HA_NORM1_W, tokens, n_threads);
    }
    if (l->cls_only) {
        const ha_affine q = ha_affine_of(p, w + HA_Q_W, w + HA_Q_B, 0, h, h), kv = ha_affine_of(p, w + HA_Q_W, w + HA_Q_B, h, 2 * h, h);
        ha_first_of_rows(l->first, l->input, batch->offsets, l->n, h);
        ha_first_of_rows(tape->t, x, batch->offsets, l->n, h);
        ha_affine_forward(tape, &q, l->q, l->ldq, tape->t, l->n, n_threads);
        ha_affine_forward(tape, &kv, l->k, l->ldkv, x, tokens, n_threads);
    } else {
        const ha_affine qkv = ha_affine_of(p, w + HA_Q_W, w + HA_Q_B, 0, 3 * h, h);
        ha_affine_forward(tape, &qkv, l->q, l->ldq, x, tokens, n_threads);
    }
    if (tape->cosine[kind] != NULL) {       /* a first token stands at position 0, whose rotation is none */
        ha_rotary_apply(c, tape->cosine[kind], tape->sine[kind], 0, l->k, l->ldkv, batch->offsets, batch->n_rows, n_threads);
        if (!l->cls_only) {
            ha_rotary_apply(c, tape->cosine[kind], tape->sine[kind], 0, l->q, l->ldq, batch->offsets, batch->n_rows, n_threads);
        }
    }
    if (tape->relative_row != NULL) {
        ha_tape_drop_relative(tape, i, tape->table, n_threads);
        for (int which = 0; which < 2; which++) {
            const ha_affine a = ha_position_affine(p, i, which);
            float *out = which == 0 ? l->pos_key : l->pos_query;
            if (out != NULL) {
                ha_affine_forward(tape, &a, out, h, tape->table, tape->relative_count, n_threads);
            }
        }
    }
}

static void
layer_forward(const ha_tape *tape, const ha_batch *batch, size_t i, int n_threads)
{
    const ha_encoder_params *p = tape->params;
    const ha_encoder_config *c = &p->config;
    const ha_kernels *k = tape->kernels;
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = c->hidden_size, n = l->n, w = ha_layer_param(i, 0), inter = c->intermediate_size;
    const ha_affine out = ha_affine_of(p, w + HA_OUT_W, w + HA_OUT_B, 0, h, h), up = ha_affine_of(p, w + HA_UP_W, w + HA_UP_B, 0, up_width(c), h);
    const ha_affine down = ha_affine_of(p, w + HA_DOWN_W, w + HA_DOWN_B, 0, h, inter);
    float *sum = c->pre_norm ? l->output : l->sum;
    ha_relative relative;
    project_forward(tape, batch, i, n_threads);
    const ha_attention a = ha_tape_attention(tape, batch, i, &relative);
    ha_attention_forward(&a, l->context, h, tape->scratch.base, n_threads);
    ha_affine_forward(tape, &out, l->middle, h, l->context, n, n_threads);
    drop(tape, ha_attention_output_dropout(tape), ha_layer_place(i, HA_DROP_ATTENTION), l->middle, n, h, n_threads);
    k->add_f32(l->middle, l->middle, l->cls_only ? l->first : l->input, n * h, n_threads);

    ha_tape_norm(tape, tape->normed, l->middle, w + (c->pre_norm ? HA_NORM2_W : HA_NORM1_W), n, n_threads);
    ha_affine_forward(tape, &up, l->up, up.n, tape->normed, n, n_threads);
    if (c->gated) {
        k->activate_gated_f32(tape->mid, inter, l->up, up.n, c->hidden_act, n, inter, n_threads);
        drop(tape, tape->dropout.hidden, ha_layer_place(i, HA_DROP_FEED_FORWARD), tape->mid, n, inter, n_threads);
    } else {
        k->activate_f32(tape->mid, l->up, c->hidden_act, n * inter, n_threads);
    }
    ha_affine_forward(tape, &down, sum, h, tape->mid, n, n_threads);
    if (!c->gated) {
        drop(tape, tape->dropout.hidden, ha_layer_place(i, HA_DROP_FEED_FORWARD), sum, n, h, n_threads);
    }
    k->add_f32(sum, sum, c->pre_norm ? l->middle : tape->normed, n * h, n_threads);
    if (!c->pre_norm) {
        ha_tape_norm(tape, l->output, sum, w + HA_NORM2_W, n, n_threads);
    }
}

/* DeBERTa v2: the first layer's output becomes norm(output + act(convolution of the embeddings)). */
static void
conv_forward(const ha_tape *tape, const ha_batch *batch, int n_threads)
{
    const ha_encoder_config *c = &tape->params->config;
    const ha_layer_tape *l = &tape->layers[0];
    const size_t h = c->hidden_size, n = h / c->conv_groups;
    for (size_t g = 0; g < c->conv_groups; g++) {
        const ha_affine one = ha_affine_of(tape->params, HA_CONV_W, HA_CONV_B, g * n, n, n * c->conv_kernel_size);
        ha_gather_neighbours(c, tape->wide, l->input, g, batch->offsets, batch->n_rows, l->cls_only);
        ha_affine_forward(tape, &one, tape->conv + g * n, h, tape->wide, l->n, n_threads);
    }
    drop(tape, tape->dropout.hidden, HA_DROP_CONV, tape->conv, l->n, h, n_threads);
    tape->kernels->activate_f32(tape->conv_sum, tape->conv, c->conv_act, l->n * h, n_threads);
    tape->kernels->add_f32(tape->conv_sum, tape->conv_sum, l->output, l->n * h, n_threads);
    ha_tape_norm(tape, l->output, tape->conv_sum, HA_CONV_NORM_W, l->n, n_threads);
}

static void
head_forward(const ha_tape *tape, const ha_batch *batch, float *logits, int n_threads)
{
    const ha_encoder_params *params = tape->params;
    const ha_encoder_config *c = &params->config;
    const size_t h = c->hidden_size, rows = tape->n_rows, p = ha_head_param(c, 0);
    const ha_layer_tape *last = &tape->layers[c->n_layers - 1];
    const ha_affine dense = ha_affine_of(params, p + HA_POOL_W, p + HA_POOL_B, 0, h, h);
    const ha_affine classifier = ha_affine_of(params, p + HA_CLS_W, p + HA_CLS_B, 0, c->num_labels, h);
    const float *x = last->output;
    if (params->items[HA_FINAL_NORM_W].size > 0) {
        ha_tape_norm(tape, tape->normed, x, HA_FINAL_NORM_W, last->n, n_threads);
        x = tape->normed;
    }
    if (c->mean_pooling) {
        ha_mean_of_rows(tape->pooled, x, batch->offsets, rows, h);
    } else {
        memcpy(tape->pooled, x, rows * h * sizeof(float));
    }
    if (c->drop_head_input) {
        drop(tape, tape->dropout.classifier, HA_DROP_HEAD_INPUT, tape->pooled, rows, h, n_threads);
    }
    ha_affine_forward(tape, &dense, tape->dense, h, tape->pooled, rows, n_threads);
    tape->kernels->activate_f32(tape->active, tape->dense, c->head_act, rows * h, n_threads);
    if (c->head_norm) {
        ha_tape_norm(tape, tape->dropped, tape->active, p + HA_HEAD_NORM_W, rows, n_threads);
    } else {
        memcpy(tape->dropped, tape->active, rows * h * sizeof(float));
    }
    drop(tape, tape->dropout.classifier, HA_DROP_HEAD, tape->dropped, rows, h, n_threads);
    ha_affine_forward(tape, &classifier, logits, c->num_labels, tape->dropped, rows, n_threads);
}

ha_status
ha_encoder_train_forward(const ha_encoder_params *params, const ha_batch *batch, const ha_dropouts *dropout, uint64_t seed, uint64_t step,
                         ha_tape *tape, float *logits, int n_threads, ha_error *err)
{
    tape->params = NULL;
    const ha_status status = start(tape, params, batch, dropout, seed, step, n_threads, err);
    if (status != HA_OK || batch->n_rows == 0) {
        tape->params = status == HA_OK ? params : NULL;
        return status;
    }
    embed_forward(tape, batch, n_threads);
    for (size_t i = 0; i < params->config.n_layers; i++) {
        layer_forward(tape, batch, i, n_threads);
        if (i == 0 && params->config.conv_groups > 0) {
            conv_forward(tape, batch, n_threads);
        }
    }
    head_forward(tape, batch, logits, n_threads);
    return HA_OK;
}
