/* The backward pass of training: every step of encoder_train.c turned round, in reverse order. No sum is split over threads. */
#include <string.h>

#include "core/parallel.h"
#include "models/encoder_tape.h"

#define COLUMNS 64                  /* columns of a task that adds over rows */
#define GRAIN ((size_t)1 << 15)     /* elements a thread */

/* What every step needs. */
typedef struct pass {
    const ha_tape *tape;
    const ha_batch *batch;
    float *grads;
    int n_threads;
} pass;

static float *
grad(const pass *p, size_t i)
{
    return p->grads + p->tape->params->items[i].offset;
}

/* db (n,) += sum over rows of dy (m, n), in float64, rows in order. */
static void
bias_backward(const pass *p, float *db, const float *dy, size_t m, size_t n)
{
    const size_t blocks = (n + COLUMNS - 1) / COLUMNS;
    const int threads = ha_threads_for(m * n, GRAIN, p->n_threads);
    (void)threads;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(threads)) if (threads > 1) schedule(static)
#endif
    for (ptrdiff_t block = 0; block < (ptrdiff_t)blocks; block++) {
        const size_t first = (size_t)block * COLUMNS, count = n - first < COLUMNS ? n - first : COLUMNS;
        double sum[COLUMNS] = {0};
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < count; j++) {
                sum[j] += dy[i * n + first + j];
            }
        }
        for (size_t j = 0; j < count; j++) {
            db[first + j] += (float)sum[j];
        }
    }
}

/* For y = x W^T + b: dW += dy^T x, db += sum of dy. */
static void
linear_backward_weight(const pass *p, const float *dy, const float *x, size_t weight, size_t bias, size_t m, size_t n, size_t k)
{
    const ha_gemm gemm = {.m = n, .n = k, .k = m, .alpha = 1.0f, .beta = 1.0f, .a = dy, .a_row = 1, .a_col = (ptrdiff_t)n,
                          .b = x, .b_row = (ptrdiff_t)k, .b_col = 1, .c = grad(p, weight), .ldc = k};
    p->tape->kernels->gemm_f32(&gemm, p->tape->scratch.base, p->n_threads);
    bias_backward(p, grad(p, bias), dy, m, n);
}

/* dx (m, k) = dy (m, n) W + beta dx */
static void
linear_backward_input(const pass *p, float *dx, float beta, const float *dy, size_t weight, size_t m, size_t n, size_t k)
{
    const ha_gemm gemm = {.m = m, .n = k, .k = n, .alpha = 1.0f, .beta = beta, .a = dy, .a_row = (ptrdiff_t)n, .a_col = 1,
                          .b = ha_weight(p->tape->params, weight), .b_row = (ptrdiff_t)k, .b_col = 1, .c = dx, .ldc = k};
    p->tape->kernels->gemm_f32(&gemm, p->tape->scratch.base, p->n_threads);
}

/* g (n, hidden), the gradient of LayerNorm(dropout(y) + residual), becomes that of the residual; branch that of y. */
static void
residual_norm_backward(const pass *p, float *g, float *branch, const float *sum, uint64_t place, size_t norm, size_t n)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const ha_dropout dropout = ha_tape_dropout(tape, place);
    tape->kernels->layer_norm_backward_f32(g, grad(p, norm), grad(p, norm + 1), g, sum, ha_weight(tape->params, norm),
                                           n, c->hidden_size, c->layer_norm_eps, p->n_threads);
    memcpy(branch, g, n * c->hidden_size * sizeof(float));
    ha_dropout_rows(&dropout, branch, n, c->hidden_size, p->n_threads);
}

/* tape->g holds the gradient of the layer's output (n, hidden), then that of its input (tokens, hidden). */
static void
layer_backward(const pass *p, size_t i)
{
    const ha_tape *tape = p->tape;
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = tape->params->config.hidden_size, wide = tape->params->config.intermediate_size, w = ha_layer_param(i, 0);
    const size_t tokens = tape->n_tokens;
    const ha_attention a = ha_tape_attention(tape, p->batch, i);
    float *g = tape->g, *t = tape->t, *u = tape->u, *mid = tape->wide, *dkv = tape->wide;

    residual_norm_backward(p, g, t, l->sum2, ha_layer_place(i, HA_DROP_FEED_FORWARD), w + HA_NORM2_W, l->n);
    tape->kernels->gelu_f32(mid, l->up, l->n * wide, p->n_threads);
    linear_backward_weight(p, t, mid, w + HA_DOWN_W, w + HA_DOWN_B, l->n, h, wide);
    linear_backward_input(p, mid, 0.0f, t, w + HA_DOWN_W, l->n, h, wide);
    tape->kernels->gelu_backward_f32(mid, mid, l->up, l->n * wide, p->n_threads);
    linear_backward_weight(p, mid, l->x1, w + HA_UP_W, w + HA_UP_B, l->n, wide, h);
    linear_backward_input(p, g, 1.0f, mid, w + HA_UP_W, l->n, wide, h);

    residual_norm_backward(p, g, t, l->sum1, ha_layer_place(i, HA_DROP_ATTENTION), w + HA_NORM1_W, l->n);
    linear_backward_weight(p, t, l->context, w + HA_OUT_W, w + HA_OUT_B, l->n, h, h);
    linear_backward_input(p, u, 0.0f, t, w + HA_OUT_W, l->n, h, h);
    ha_attention_backward(&a, u, h, t, dkv, dkv + h, tape->scratch.base, p->n_threads);
    linear_backward_weight(p, t, l->query_input, w + HA_Q_W, w + HA_Q_B, l->n, h, h);
    linear_backward_weight(p, dkv, l->input, w + HA_K_W, w + HA_K_B, tokens, 2 * h, h);
    linear_backward_input(p, g, 1.0f, t, w + HA_Q_W, l->n, h, h);
    if (!a.cls_only) {
        linear_backward_input(p, g, 1.0f, dkv, w + HA_K_W, tokens, 2 * h, h);
        return;
    }
    linear_backward_input(p, u, 0.0f, dkv, w + HA_K_W, tokens, 2 * h, h);
    for (size_t r = 0; r < p->batch->n_rows; r++) {
        tape->kernels->axpy_f32(u + (size_t)p->batch->offsets[r] * h, 1.0f, g + r * h, h);
    }
    memcpy(g, u, tokens * h * sizeof(float));
}

/* From dlogits to the gradient of the last layer's output, in tape->g (rows, hidden). */
static void
head_backward(const pass *p, const float *dlogits)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const size_t h = c->hidden_size, rows = tape->n_rows, w = ha_head_param(c, 0);
    const ha_dropout dropout = ha_tape_dropout(tape, HA_DROP_HEAD);
    linear_backward_weight(p, dlogits, tape->dropped, w + HA_CLS_W, w + HA_CLS_B, rows, c->num_labels, h);
    linear_backward_input(p, tape->t, 0.0f, dlogits, w + HA_CLS_W, rows, c->num_labels, h);
    ha_dropout_rows(&dropout, tape->t, rows, h, p->n_threads);
    for (size_t i = 0; i < rows * h; i++) {
        tape->t[i] *= 1.0f - tape->pooled[i] * tape->pooled[i];     /* tanh' = 1 - tanh^2 */
    }
    linear_backward_weight(p, tape->t, tape->layers[c->n_layers - 1].output, w + HA_POOL_W, w + HA_POOL_B, rows, h, h);
    linear_backward_input(p, tape->g, 0.0f, tape->t, w + HA_POOL_W, rows, h, h);
}

/* Adds g (tokens, hidden) to the rows of the three tables: each task owns some columns and takes the tokens in order. */
static void
scatter(const pass *p, const float *g)
{
    const ha_batch *batch = p->batch;
    const size_t h = p->tape->params->config.hidden_size, blocks = (h + COLUMNS - 1) / COLUMNS;
    float *word = grad(p, HA_EMB_WORD), *position = grad(p, HA_EMB_POSITION), *type = grad(p, HA_EMB_TYPE);
    const int threads = ha_threads_for(p->tape->n_tokens * h, GRAIN, p->n_threads);
    (void)threads;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(threads)) if (threads > 1) schedule(static)
#endif
    for (ptrdiff_t block = 0; block < (ptrdiff_t)blocks; block++) {
        const size_t first = (size_t)block * COLUMNS, last = h - first < COLUMNS ? h : first + COLUMNS;
        for (size_t row = 0; row < batch->n_rows; row++) {
            for (int64_t t = batch->offsets[row]; t < batch->offsets[row + 1]; t++) {
                float *w = word + (size_t)batch->ids[t] * h, *q = position + (size_t)(t - batch->offsets[row]) * h;
                float *s = type + (batch->type_ids != NULL ? batch->type_ids[t] : 0) * h;
                for (size_t j = first; j < last; j++) {
                    const float d = g[(size_t)t * h + j];
                    w[j] += d;
                    q[j] += d;
                    s[j] += d;
                }
            }
        }
    }
}

static void
embed_backward(const pass *p)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const ha_dropout dropout = ha_tape_dropout(tape, HA_DROP_EMBEDDING);
    ha_dropout_rows(&dropout, tape->g, tape->n_tokens, c->hidden_size, p->n_threads);
    tape->kernels->layer_norm_backward_f32(tape->g, grad(p, HA_EMB_NORM_W), grad(p, HA_EMB_NORM_B), tape->g, tape->embedded,
                                           ha_weight(tape->params, HA_EMB_NORM_W), tape->n_tokens, c->hidden_size, c->layer_norm_eps, p->n_threads);
    scatter(p, tape->g);
}

ha_status
ha_encoder_train_backward(const ha_encoder_params *params, const ha_batch *batch, ha_tape *tape, const float *dlogits,
                          float *grads, uint8_t *word_rows, int n_threads, ha_error *err)
{
    const pass p = {.tape = tape, .batch = batch, .grads = grads, .n_threads = n_threads};
    if (tape->params != params || tape->n_rows != batch->n_rows || tape->n_tokens != (size_t)batch->offsets[batch->n_rows]) {
        return ha_fail(err, HA_ERR_VALUE, "encoder: the backward pass needs the tape of a forward pass over the same parameters and batch");
    }
    if (batch->n_rows == 0) {
        return HA_OK;
    }
    const ha_status status = ha_tape_reserve(tape, batch, n_threads, err);
    if (status != HA_OK) {
        return status;
    }
    head_backward(&p, dlogits);
    for (size_t i = params->config.n_layers; i-- > 0;) {
        layer_backward(&p, i);
    }
    embed_backward(&p);
    for (size_t t = 0; word_rows != NULL && t < tape->n_tokens; t++) {
        word_rows[batch->ids[t]] = 1;
    }
    return HA_OK;
}
