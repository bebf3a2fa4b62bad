/* The forward pass of training: as inference, on the weights as they stand, with dropout and with activations kept. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/encoder_batch.h"
#include "models/encoder_tape.h"

ha_tape *
ha_tape_new(void)
{
    return calloc(1, sizeof(ha_tape));
}

void
ha_tape_free(ha_tape *tape)
{
    if (tape != NULL) {
        ha_arena_free(&tape->arena);
        ha_arena_free(&tape->scratch);
        free(tape);
    }
}

ha_status
ha_encoder_check_trainable(const ha_encoder_config *config, ha_error *err)
{
    if (config->family != HA_BERT) {
        return ha_fail(err, HA_ERR_VALUE, "training: model_type '%s' can be run, not trained: that comes with a later version; bert can", config->model_type);
    }
    if (config->hidden_act != HA_ACT_GELU) {
        return ha_fail(err, HA_ERR_VALUE, "training: only hidden_act 'gelu' can be trained; others can be run");
    }
    return HA_OK;
}

ha_attention
ha_tape_attention(const ha_tape *tape, const ha_batch *batch, size_t i)
{
    const ha_encoder_config *c = &tape->params->config;
    const int cls_only = i + 1 == c->n_layers;
    const ha_layer_tape *l = &tape->layers[i];
    return (ha_attention){
        .kernels = tape->kernels, .n_rows = batch->n_rows, .n_heads = c->n_heads, .head_dim = c->head_dim,
        .offsets = batch->offsets, .cls_only = cls_only, .q = l->q, .k = l->kv, .v = l->kv + c->hidden_size,
        .ldq = c->hidden_size, .ldkv = 2 * c->hidden_size, .scale = 1.0f / sqrtf((float)c->head_dim),
        .dropout = ha_tape_dropout(tape, ha_layer_place(i, HA_DROP_PROBABILITY)),
    };
}

/* -- sizes -- */

/* A Linear (n, k) over m rows: its forward product, and those of the gradients of its weight and input. */
static size_t
linear_bytes(const ha_kernels *kernels, size_t most, size_t m, size_t n, size_t k, int n_threads)
{
    const size_t shapes[3][3] = {{m, n, k}, {n, k, m}, {m, k, n}};
    for (size_t i = 0; i < 3; i++) {
        const size_t bytes = kernels->gemm_scratch_bytes(shapes[i][0], shapes[i][1], shapes[i][2], n_threads);
        most = bytes > most ? bytes : most;
    }
    return most;
}

ha_status
ha_tape_reserve(ha_tape *tape, const ha_batch *batch, int n_threads, ha_error *err)
{
    const ha_encoder_config *c = &tape->params->config;
    const ha_kernels *k = tape->kernels;
    const size_t h = c->hidden_size;
    size_t most = linear_bytes(k, 0, tape->n_rows, c->num_labels, h, n_threads);
    for (size_t i = 0; i < 2; i++) {
        const size_t m = i == 0 ? tape->n_tokens : tape->n_rows;
        most = linear_bytes(k, most, m, h, h, n_threads);
        most = linear_bytes(k, most, m, 2 * h, h, n_threads);
        most = linear_bytes(k, most, m, c->intermediate_size, h, n_threads);
        most = linear_bytes(k, most, m, h, c->intermediate_size, n_threads);
    }
    for (size_t i = c->n_layers < 2 ? 0 : c->n_layers - 2; i < c->n_layers; i++) {      /* an ordinary layer and the last one */
        const ha_attention a = ha_tape_attention(tape, batch, i);
        for (int backward = 0; backward < 2; backward++) {
            const size_t bytes = ha_attention_scratch_bytes(&a, backward, n_threads);
            most = bytes > most ? bytes : most;
        }
    }
    ha_arena_begin(&tape->scratch);
    ha_arena_take(&tape->scratch, most, 1);
    return ha_arena_commit(&tape->scratch, err);
}

/* Run twice, see core/arena.h. A layer's output is the next one's input. */
static void
lay_out(ha_tape *tape)
{
    const ha_encoder_config *c = &tape->params->config;
    const size_t h = c->hidden_size, tokens = tape->n_tokens, rows = tape->n_rows, row = h * sizeof(float);
    const size_t wide = 2 * h > c->intermediate_size ? 2 * h : c->intermediate_size;
    ha_arena *arena = &tape->arena;
    tape->layers = ha_arena_take(arena, c->n_layers, sizeof(*tape->layers));
    tape->embedded = ha_arena_take(arena, tokens, row);
    float *input = ha_arena_take(arena, tokens, row);
    for (size_t i = 0; i < c->n_layers; i++) {
        ha_layer_tape unused, *l = tape->layers != NULL ? &tape->layers[i] : &unused;
        const int cls_only = i + 1 == c->n_layers;
        l->n = cls_only ? rows : tokens;
        l->input = input;
        l->query_input = cls_only ? ha_arena_take(arena, rows, row) : input;
        l->q = ha_arena_take(arena, l->n, row);
        l->kv = ha_arena_take(arena, tokens, 2 * row);
        l->context = ha_arena_take(arena, l->n, row);
        l->sum1 = ha_arena_take(arena, l->n, row);
        l->x1 = ha_arena_take(arena, l->n, row);
        l->up = ha_arena_take(arena, l->n, c->intermediate_size * sizeof(float));
        l->sum2 = ha_arena_take(arena, l->n, row);
        l->output = ha_arena_take(arena, l->n, row);
        input = l->output;
    }
    tape->pooled = ha_arena_take(arena, rows, row);
    tape->dropped = ha_arena_take(arena, rows, row);
    tape->wide = ha_arena_take(arena, tokens, wide * sizeof(float));
    tape->g = ha_arena_take(arena, tokens, row);
    tape->t = ha_arena_take(arena, tokens, row);
    tape->u = ha_arena_take(arena, tokens, row);
}

static ha_status
start(ha_tape *tape, const ha_encoder_params *params, const ha_batch *batch, float dropout, uint64_t seed, uint64_t step,
      int n_threads, ha_error *err)
{
    if (!(dropout >= 0.0f && dropout < 1.0f)) {
        return ha_fail(err, HA_ERR_VALUE, "encoder: dropout must be in [0, 1), got %g", (double)dropout);
    }
    ha_status status = ha_encoder_check_trainable(&params->config, err);
    if (status != HA_OK || (status = ha_batch_check(&params->config, batch, err)) != HA_OK) {
        return status;
    }
    tape->kernels = ha_kernels_get();
    tape->params = params;
    tape->n_rows = batch->n_rows;
    tape->n_tokens = (size_t)batch->offsets[batch->n_rows];
    tape->dropout = dropout;
    tape->seed = seed;
    tape->step = step;
    if (batch->n_rows == 0) {
        return HA_OK;
    }
    ha_arena_begin(&tape->arena);
    lay_out(tape);
    const ha_status committed = ha_arena_commit(&tape->arena, err);
    if (committed != HA_OK) {
        return committed;
    }
    lay_out(tape);
    return ha_tape_reserve(tape, batch, n_threads, err);
}

/* -- steps -- */

/* y (m, n) = x (m, k) W^T + b, W and b being parameters `weight` and `bias` and those stacked below them up to n rows. */
static void
linear_forward(const ha_tape *tape, float *y, const float *x, size_t weight, size_t bias, size_t m, size_t n, size_t k, int n_threads)
{
    const float *b = ha_weight(tape->params, bias);
    for (size_t i = 0; i < m; i++) {
        memcpy(y + i * n, b, n * sizeof(float));
    }
    const ha_gemm gemm = {.m = m, .n = n, .k = k, .alpha = 1.0f, .beta = 1.0f, .a = x, .a_row = (ptrdiff_t)k, .a_col = 1,
                          .b = ha_weight(tape->params, weight), .b_row = 1, .b_col = (ptrdiff_t)k, .c = y, .ldc = n};
    tape->kernels->gemm_f32(&gemm, tape->scratch.base, n_threads);
}

static void
embed_forward(const ha_tape *tape, const ha_batch *batch, float *out, int n_threads)
{
    const ha_encoder_params *p = tape->params;
    const ha_encoder_config *c = &p->config;
    const size_t h = c->hidden_size;
    const ha_dropout dropout = ha_tape_dropout(tape, HA_DROP_EMBEDDING);
    for (size_t t = 0; t < tape->n_tokens; t++) {
        memcpy(tape->embedded + t * h, ha_weight(p, HA_EMB_WORD) + (size_t)batch->ids[t] * h, h * sizeof(float));
    }
    ha_batch_add_positions(c, batch, 0, batch->n_rows, ha_weight(p, HA_EMB_POSITION), ha_weight(p, HA_EMB_TYPE), tape->embedded, n_threads);
    tape->kernels->layer_norm_f32(out, tape->embedded, ha_weight(p, HA_EMB_NORM_W), ha_weight(p, HA_EMB_NORM_B),
                                  tape->n_tokens, h, c->layer_norm_eps, n_threads);
    ha_dropout_rows(&dropout, out, tape->n_tokens, h, n_threads);
}

/* sum (n, hidden) = dropout(sum) + residual; out = LayerNorm(sum) */
static void
residual_norm_forward(const ha_tape *tape, float *out, float *sum, const float *residual, uint64_t place, size_t norm, size_t n, int n_threads)
{
    const ha_encoder_config *c = &tape->params->config;
    const ha_dropout dropout = ha_tape_dropout(tape, place);
    ha_dropout_rows(&dropout, sum, n, c->hidden_size, n_threads);
    tape->kernels->add_f32(sum, sum, residual, n * c->hidden_size, n_threads);
    tape->kernels->layer_norm_f32(out, sum, ha_weight(tape->params, norm), ha_weight(tape->params, norm + 1),
                                  n, c->hidden_size, c->layer_norm_eps, n_threads);
}

static void
layer_forward(const ha_tape *tape, const ha_batch *batch, size_t i, int n_threads)
{
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = tape->params->config.hidden_size, wide = tape->params->config.intermediate_size, p = ha_layer_param(i, 0);
    const ha_attention a = ha_tape_attention(tape, batch, i);
    if (a.cls_only) {
        for (size_t r = 0; r < batch->n_rows; r++) {
            memcpy(l->query_input + r * h, l->input + (size_t)batch->offsets[r] * h, h * sizeof(float));
        }
    }
    linear_forward(tape, l->q, l->query_input, p + HA_Q_W, p + HA_Q_B, l->n, h, h, n_threads);
    linear_forward(tape, l->kv, l->input, p + HA_K_W, p + HA_K_B, tape->n_tokens, 2 * h, h, n_threads);
    ha_attention_forward(&a, l->context, h, tape->scratch.base, n_threads);
    linear_forward(tape, l->sum1, l->context, p + HA_OUT_W, p + HA_OUT_B, l->n, h, h, n_threads);
    residual_norm_forward(tape, l->x1, l->sum1, l->query_input, ha_layer_place(i, HA_DROP_ATTENTION), p + HA_NORM1_W, l->n, n_threads);
    linear_forward(tape, l->up, l->x1, p + HA_UP_W, p + HA_UP_B, l->n, wide, h, n_threads);
    tape->kernels->gelu_f32(tape->wide, l->up, l->n * wide, n_threads);
    linear_forward(tape, l->sum2, tape->wide, p + HA_DOWN_W, p + HA_DOWN_B, l->n, h, wide, n_threads);
    residual_norm_forward(tape, l->output, l->sum2, l->x1, ha_layer_place(i, HA_DROP_FEED_FORWARD), p + HA_NORM2_W, l->n, n_threads);
}

static void
head_forward(const ha_tape *tape, float *logits, int n_threads)
{
    const ha_encoder_config *c = &tape->params->config;
    const size_t h = c->hidden_size, rows = tape->n_rows, p = ha_head_param(c, 0);
    const ha_dropout dropout = ha_tape_dropout(tape, HA_DROP_HEAD);
    linear_forward(tape, tape->pooled, tape->layers[c->n_layers - 1].output, p + HA_POOL_W, p + HA_POOL_B, rows, h, h, n_threads);
    tape->kernels->tanh_f32(tape->pooled, tape->pooled, rows * h);
    memcpy(tape->dropped, tape->pooled, rows * h * sizeof(float));
    ha_dropout_rows(&dropout, tape->dropped, rows, h, n_threads);
    linear_forward(tape, logits, tape->dropped, p + HA_CLS_W, p + HA_CLS_B, rows, c->num_labels, h, n_threads);
}

ha_status
ha_encoder_train_forward(const ha_encoder_params *params, const ha_batch *batch, float dropout, uint64_t seed, uint64_t step,
                         ha_tape *tape, float *logits, int n_threads, ha_error *err)
{
    tape->params = NULL;
    const ha_status status = start(tape, params, batch, dropout, seed, step, n_threads, err);
    if (status != HA_OK || batch->n_rows == 0) {
        tape->params = status == HA_OK ? params : NULL;
        return status;
    }
    embed_forward(tape, batch, tape->layers[0].input, n_threads);
    for (size_t i = 0; i < params->config.n_layers; i++) {
        layer_forward(tape, batch, i, n_threads);
    }
    head_forward(tape, logits, n_threads);
    return HA_OK;
}
