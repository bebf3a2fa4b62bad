/* The backward pass of training: every step of encoder_train.c turned round, in reverse order. No sum is split over threads. */
#include <string.h>

#include "core/parallel.h"
#include "models/encoder_batch.h"
#include "models/encoder_parts.h"
#include "models/encoder_tape.h"

#define COLUMNS 64                  /* columns of a task that adds over rows */
#define GRAIN ((size_t)1 << 15)     /* elements a thread */

/* What every step needs. */
typedef struct pass {
    const ha_tape *tape;
    const ha_batch *batch;
    float *grads;
    const uint8_t *wanted;
    int n_threads;
} pass;

/* Whether a gradient within [begin, end) of the block is wanted, parameter i being the first that reaches there. */
static int
is_wanted(const pass *p, size_t i, size_t begin, size_t end)
{
    const ha_encoder_params *params = p->tape->params;
    for (; p->wanted != NULL && i < params->count && params->items[i].offset < end; i++) {
        if (p->wanted[i] && params->items[i].offset + params->items[i].size > begin) {
            return 1;
        }
    }
    return p->wanted == NULL;
}

/* The gradient of parameter i, or NULL where the model lacks it or it is not wanted. */
static float *
grad(const pass *p, size_t i)
{
    const ha_param *item = &p->tape->params->items[i];
    return item->size > 0 && (p->wanted == NULL || p->wanted[i]) ? p->grads + item->offset : NULL;
}

/* db (n,) += sum over rows of dy (m, n), leading dimension ld, in float64, rows in order. */
static void
bias_backward(const pass *p, float *db, const float *dy, size_t ld, size_t m, size_t n)
{
    const size_t blocks = (n + COLUMNS - 1) / COLUMNS;
    const int threads = ha_threads_for(m * n, GRAIN, p->n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < (ptrdiff_t)blocks; block++) {
        const size_t first = (size_t)block * COLUMNS, count = n - first < COLUMNS ? n - first : COLUMNS;
        double sum[COLUMNS] = {0};
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < count; j++) {
                sum[j] += dy[i * ld + first + j];
            }
        }
        for (size_t j = 0; j < count; j++) {
            db[first + j] += (float)sum[j];
        }
    }
}

/* For y = x W^T + b: dW += dy^T x, db += sum of dy. dy (m, n) has leading dimension ld. */
static void
affine_backward_weight(const pass *p, const ha_affine *l, const float *dy, size_t ld, const float *x, size_t m)
{
    const ha_gemm gemm = {.m = l->n, .n = l->k, .k = m, .alpha = 1.0f, .beta = 1.0f, .a = dy, .a_row = 1, .a_col = (ptrdiff_t)ld,
                          .b = x, .b_row = (ptrdiff_t)l->k, .b_col = 1, .c = p->grads + l->weight, .ldc = l->k, .bf16 = p->tape->bf16};
    if (is_wanted(p, l->weight_param, l->weight, l->weight + l->n * l->k)) {
        p->tape->kernels->gemm_f32(&gemm, p->tape->scratch.base, p->n_threads);
    }
    if (l->has_bias && is_wanted(p, l->bias_param, l->bias, l->bias + l->n)) {
        bias_backward(p, p->grads + l->bias, dy, ld, m, l->n);
    }
}

/* dx (m, k) = dy (m, n) W + beta dx */
static void
affine_backward_input(const pass *p, const ha_affine *l, float *dx, float beta, const float *dy, size_t ld, size_t m)
{
    const ha_gemm gemm = {.m = m, .n = l->k, .k = l->n, .alpha = 1.0f, .beta = beta, .a = dy, .a_row = (ptrdiff_t)ld, .a_col = 1,
                          .b = p->tape->params->data + l->weight, .b_row = (ptrdiff_t)l->k, .b_col = 1, .c = dx, .ldc = l->k,
                          .bf16 = p->tape->bf16};
    p->tape->kernels->gemm_f32(&gemm, p->tape->scratch.base, p->n_threads);
}

/* g (m, width of the norm) in place: from the gradient of norm(x) to that of x. */
static void
norm_backward(const pass *p, float *g, const float *x, size_t param, size_t m)
{
    const ha_encoder_params *params = p->tape->params;
    p->tape->kernels->layer_norm_backward_f32(g, grad(p, param), grad(p, param + 1), g, x, ha_weight(params, param), m, params->items[param].size,
                                              params->config.layer_norm_eps, p->n_threads);
}

static void
drop(const pass *p, float probability, uint64_t place, float *g, size_t rows, size_t cols)
{
    const ha_dropout dropout = ha_tape_dropout(p->tape, probability, place);
    ha_dropout_rows(&dropout, 0, g, rows, cols, p->n_threads);
}

/* -- a layer -- */

/* tape->g (n, hidden), the gradient of the layer's output, becomes that of l->middle. */
static void
feed_forward_backward(const pass *p, size_t i)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = c->hidden_size, inter = c->intermediate_size, n = l->n, w = ha_layer_param(i, 0);
    const ha_affine down = ha_affine_of(tape->params, w + HA_DOWN_W, w + HA_DOWN_B, 0, h, inter);
    const ha_affine up = ha_affine_of(tape->params, w + HA_UP_W, w + HA_UP_B, 0, (c->gated ? 2 : 1) * inter, h);
    const size_t norm = w + (c->pre_norm ? HA_NORM2_W : HA_NORM1_W);
    const uint64_t place = ha_layer_place(i, HA_DROP_FEED_FORWARD);
    float *g = tape->g, *t = tape->t, *mid = tape->mid;
    if (!c->pre_norm) {
        norm_backward(p, g, l->sum, w + HA_NORM2_W, n);
    }
    memcpy(t, g, n * h * sizeof(float));
    if (c->gated) {
        tape->kernels->activate_gated_f32(mid, inter, l->up, up.n, c->hidden_act, n, inter, p->n_threads);
        drop(p, tape->dropout.hidden, place, mid, n, inter);
    } else {
        drop(p, tape->dropout.hidden, place, t, n, h);
        tape->kernels->activate_f32(mid, l->up, c->hidden_act, n * inter, p->n_threads);
    }
    affine_backward_weight(p, &down, t, h, mid, n);
    affine_backward_input(p, &down, mid, 0.0f, t, h, n);
    if (c->gated) {
        drop(p, tape->dropout.hidden, place, mid, n, inter);
        tape->kernels->activate_gated_backward_f32(tape->wide, mid, l->up, c->hidden_act, n, inter, p->n_threads);
    } else {
        tape->kernels->activate_backward_f32(tape->wide, mid, l->up, c->hidden_act, n * inter, p->n_threads);
    }
    ha_tape_norm(tape, tape->normed, l->middle, norm, n, p->n_threads);
    affine_backward_weight(p, &up, tape->wide, up.n, tape->normed, n);
    if (c->pre_norm) {
        affine_backward_input(p, &up, t, 0.0f, tape->wide, up.n, n);
        norm_backward(p, t, l->middle, norm, n);
        tape->kernels->add_f32(g, g, t, n * h, p->n_threads);
    } else {
        affine_backward_input(p, &up, g, 1.0f, tape->wide, up.n, n);
        norm_backward(p, g, l->middle, norm, n);
    }
}

/* Gradients of the projections of the relative positions, tape->dtable, go to their weights and to tape->drelative. */
static void
relative_backward(const pass *p, size_t i)
{
    const ha_tape *tape = p->tape;
    const size_t h = tape->params->config.hidden_size, count = tape->relative_count;
    const ha_dropout dropout = ha_tape_dropout(tape, tape->dropout.hidden, ha_layer_place(i, HA_DROP_RELATIVE));
    float beta = 0.0f;
    ha_tape_drop_relative(tape, i, tape->table, p->n_threads);
    for (int which = 0; which < 2; which++) {
        if (which == 0 ? tape->layers[i].pos_key != NULL : tape->layers[i].pos_query != NULL) {
            const ha_affine a = ha_position_affine(tape->params, i, which);
            affine_backward_weight(p, &a, tape->dtable[which], h, tape->table, count);
        }
    }
    for (int which = 0; which < 2; which++) {
        if (which == 0 ? tape->layers[i].pos_key != NULL : tape->layers[i].pos_query != NULL) {
            const ha_affine a = ha_position_affine(tape->params, i, which);
            affine_backward_input(p, &a, tape->table, beta, tape->dtable[which], h, count);
            beta = 1.0f;
        }
    }
    ha_dropout_rows(&dropout, tape->relative_first, tape->table, count, h, p->n_threads);
    tape->kernels->add_f32(tape->drelative, tape->drelative, tape->table, count * h, p->n_threads);
}

/* From the gradients of queries (n, hidden) and of keys and values (tokens, 2 hidden), before rotation, to their weights; out (tokens, hidden): that of
 * the layer's input, as it comes through them. x: what they were projected from. */
static void
project_backward(const pass *p, size_t i, float *out, const float *dq, const float *dkv, const float *x)
{
    const ha_tape *tape = p->tape;
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = tape->params->config.hidden_size, w = ha_layer_param(i, 0), tokens = tape->n_tokens;
    if (!l->cls_only) {
        const ha_affine qkv = ha_affine_of(tape->params, w + HA_Q_W, w + HA_Q_B, 0, 3 * h, h);
        affine_backward_weight(p, &qkv, dq, 3 * h, x, tokens);
        affine_backward_input(p, &qkv, out, 0.0f, dq, 3 * h, tokens);
        return;
    }
    const ha_affine q = ha_affine_of(tape->params, w + HA_Q_W, w + HA_Q_B, 0, h, h), kv = ha_affine_of(tape->params, w + HA_Q_W, w + HA_Q_B, h, 2 * h, h);
    ha_first_of_rows(tape->mid, x, p->batch->offsets, l->n, h);
    affine_backward_weight(p, &q, dq, h, tape->mid, l->n);
    affine_backward_weight(p, &kv, dkv, 2 * h, x, tokens);
    affine_backward_input(p, &kv, out, 0.0f, dkv, 2 * h, tokens);
    affine_backward_input(p, &q, tape->mid, 0.0f, dq, h, l->n);
    for (size_t r = 0; r < l->n; r++) {
        tape->kernels->axpy_f32(out + (size_t)p->batch->offsets[r] * h, 1.0f, tape->mid + r * h, h);
    }
}

/* tape->g (n, hidden), the gradient of l->middle, becomes that of the layer's input (tokens, hidden). */
static void
attention_backward(const pass *p, size_t i)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const ha_layer_tape *l = &tape->layers[i];
    const size_t h = c->hidden_size, w = ha_layer_param(i, 0), tokens = tape->n_tokens;
    const int kind = c->windowed[i], norm = c->pre_norm && tape->params->items[w + HA_NORM1_W].size > 0;
    const ha_affine out = ha_affine_of(tape->params, w + HA_OUT_W, w + HA_OUT_B, 0, h, h);
    float *g = tape->g, *t = tape->t, *u = tape->u;
    float *dq = l->cls_only ? t : tape->wide, *dk = l->cls_only ? tape->wide : tape->wide + h;
    ha_relative relative;
    const ha_attention a = ha_tape_attention(tape, p->batch, i, &relative);
    const ha_attention_grads grads = {.dq = dq, .dk = dk, .dv = dk + h, .key = l->pos_key != NULL ? tape->dtable[0] : NULL,
                                      .query = l->pos_query != NULL ? tape->dtable[1] : NULL};
    memcpy(t, g, l->n * h * sizeof(float));
    drop(p, ha_attention_output_dropout(tape), ha_layer_place(i, HA_DROP_ATTENTION), t, l->n, h);
    affine_backward_weight(p, &out, t, h, l->context, l->n);
    affine_backward_input(p, &out, u, 0.0f, t, h, l->n);
    ha_attention_backward(&a, u, h, &grads, tape->scratch.base, p->n_threads);
    if (tape->relative_row != NULL) {
        relative_backward(p, i);
    }
    if (tape->cosine[kind] != NULL) {
        ha_rotary_apply(c, tape->cosine[kind], tape->sine[kind], 1, dk, l->ldkv, p->batch->offsets, p->batch->n_rows, p->n_threads);
        if (!l->cls_only) {
            ha_rotary_apply(c, tape->cosine[kind], tape->sine[kind], 1, dq, l->ldq, p->batch->offsets, p->batch->n_rows, p->n_threads);
        }
    }
    if (norm) {
        ha_tape_norm(tape, tape->normed, l->input, w + HA_NORM1_W, tokens, p->n_threads);
    }
    project_backward(p, i, u, dq, dk, norm ? tape->normed : l->input);
    if (norm) {
        norm_backward(p, u, l->input, w + HA_NORM1_W, tokens);
    }
    if (!l->cls_only) {
        tape->kernels->add_f32(g, g, u, tokens * h, p->n_threads);
        return;
    }
    for (size_t r = 0; r < l->n; r++) {
        tape->kernels->axpy_f32(u + (size_t)p->batch->offsets[r] * h, 1.0f, g + r * h, h);
    }
    memcpy(g, u, tokens * h * sizeof(float));
}

/* -- the convolution -- */

/* dx (tokens, hidden) += what dcols, the gradient of one group's windows (see ha_gather_neighbours), holds of each token. */
static void
scatter_neighbours(const pass *p, float *dx, const float *dcols, size_t group, int cls_only)
{
    const ha_encoder_config *c = &p->tape->params->config;
    const int64_t *offsets = p->batch->offsets;
    const size_t h = c->hidden_size, in = h / c->conv_groups, kernel = c->conv_kernel_size;
    for (size_t row = 0; row < p->batch->n_rows; row++) {
        const int64_t begin = offsets[row], end = cls_only ? begin + 1 : offsets[row + 1];
        for (int64_t t = begin; t < end; t++, dcols += in * kernel) {
            for (size_t j = 0; j < kernel; j++) {
                const int64_t to = t + (int64_t)j - (int64_t)(kernel / 2);
                for (size_t i = 0; to >= begin && to < offsets[row + 1] && i < in; i++) {
                    dx[(size_t)to * h + group * in + i] += dcols[i * kernel + j];
                }
            }
        }
    }
}

/* tape->g, the gradient of what leaves the convolution, becomes that of the first layer's output; tape->dembedded that of the embeddings. */
static void
conv_backward(const pass *p)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const ha_layer_tape *l = &tape->layers[0];
    const size_t h = c->hidden_size, n = h / c->conv_groups;
    memset(tape->dembedded, 0, tape->n_tokens * h * sizeof(float));
    norm_backward(p, tape->g, tape->conv_sum, HA_CONV_NORM_W, l->n);
    tape->kernels->activate_backward_f32(tape->t, tape->g, tape->conv, c->conv_act, l->n * h, p->n_threads);
    drop(p, tape->dropout.hidden, HA_DROP_CONV, tape->t, l->n, h);
    for (size_t g = 0; g < c->conv_groups; g++) {
        const ha_affine one = ha_affine_of(tape->params, HA_CONV_W, HA_CONV_B, g * n, n, n * c->conv_kernel_size);
        ha_gather_neighbours(c, tape->wide, l->input, g, p->batch->offsets, p->batch->n_rows, l->cls_only);
        affine_backward_weight(p, &one, tape->t + g * n, h, tape->wide, l->n);
        affine_backward_input(p, &one, tape->wide, 0.0f, tape->t + g * n, h, l->n);
        scatter_neighbours(p, tape->dembedded, tape->wide, g, l->cls_only);
    }
}

/* -- the head -- */

/* g (n, hidden) from dx (rows, hidden), the gradient of the means over each row's tokens. */
static void
mean_backward(const pass *p, float *g, const float *dx)
{
    const size_t h = p->tape->params->config.hidden_size;
    for (size_t row = 0; row < p->batch->n_rows; row++) {
        const float share = 1.0f / (float)(p->batch->offsets[row + 1] - p->batch->offsets[row]);
        for (int64_t t = p->batch->offsets[row]; t < p->batch->offsets[row + 1]; t++) {
            for (size_t j = 0; j < h; j++) {
                g[(size_t)t * h + j] = share * dx[row * h + j];
            }
        }
    }
}

/* From dlogits to the gradient of the last layer's output, in tape->g (n, hidden). */
static void
head_backward(const pass *p, const float *dlogits)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_config *c = &tape->params->config;
    const ha_layer_tape *last = &tape->layers[c->n_layers - 1];
    const size_t h = c->hidden_size, rows = tape->n_rows, w = ha_head_param(c, 0);
    const ha_affine dense = ha_affine_of(tape->params, w + HA_POOL_W, w + HA_POOL_B, 0, h, h);
    const ha_affine classifier = ha_affine_of(tape->params, w + HA_CLS_W, w + HA_CLS_B, 0, c->num_labels, h);
    float *t = tape->t, *dx = c->mean_pooling ? tape->u : tape->g;
    affine_backward_weight(p, &classifier, dlogits, c->num_labels, tape->dropped, rows);
    affine_backward_input(p, &classifier, t, 0.0f, dlogits, c->num_labels, rows);
    drop(p, tape->dropout.classifier, HA_DROP_HEAD, t, rows, h);
    if (c->head_norm) {
        norm_backward(p, t, tape->active, w + HA_HEAD_NORM_W, rows);
    }
    tape->kernels->activate_backward_f32(t, t, tape->dense, c->head_act, rows * h, p->n_threads);
    affine_backward_weight(p, &dense, t, h, tape->pooled, rows);
    affine_backward_input(p, &dense, dx, 0.0f, t, h, rows);
    if (c->drop_head_input) {
        drop(p, tape->dropout.classifier, HA_DROP_HEAD_INPUT, dx, rows, h);
    }
    if (c->mean_pooling) {
        mean_backward(p, tape->g, dx);
    }
    if (tape->params->items[HA_FINAL_NORM_W].size > 0) {
        norm_backward(p, tape->g, last->output, HA_FINAL_NORM_W, last->n);
    }
}

/* -- the embeddings -- */

/* Adds g (tokens, embedding) to the rows of the three tables: each task owns some columns and takes the tokens in order. */
static void
scatter(const pass *p, const float *g)
{
    const ha_batch *batch = p->batch;
    const ha_encoder_config *c = &p->tape->params->config;
    const size_t e = c->embedding_size, blocks = (e + COLUMNS - 1) / COLUMNS;
    float *word = grad(p, HA_EMB_WORD), *position = grad(p, HA_EMB_POSITION), *type = grad(p, HA_EMB_TYPE);
    const int threads = ha_threads_for(p->tape->n_tokens * e, GRAIN, p->n_threads);
    (void)threads;
    HA_PARALLEL_FOR(threads)
    for (ptrdiff_t block = 0; block < (ptrdiff_t)blocks; block++) {
        const size_t first = (size_t)block * COLUMNS, count = e - first < COLUMNS ? e - first : COLUMNS;
        for (size_t row = 0; row < batch->n_rows; row++) {
            size_t seen = 0;
            for (int64_t t = batch->offsets[row]; t < batch->offsets[row + 1]; t++) {
                const float *d = g + (size_t)t * e + first;
                const size_t number = ha_batch_position(c, batch->ids[t], &seen);
                const int padding = batch->ids[t] == c->padding_id;     /* as torch's Embedding(padding_idx=) */
                if (word != NULL && !padding) {
                    p->tape->kernels->axpy_f32(word + (size_t)batch->ids[t] * e + first, 1.0f, d, count);
                }
                if (position != NULL && !(padding && c->pad_id >= 0)) {
                    p->tape->kernels->axpy_f32(position + number * e + first, 1.0f, d, count);
                }
                if (type != NULL) {
                    p->tape->kernels->axpy_f32(type + (batch->type_ids != NULL ? batch->type_ids[t] : 0) * e + first, 1.0f, d, count);
                }
            }
        }
    }
}

static void
embed_backward(const pass *p)
{
    const ha_tape *tape = p->tape;
    const ha_encoder_params *params = tape->params;
    const ha_encoder_config *c = &params->config;
    const size_t h = c->hidden_size, tokens = tape->n_tokens, width = params->items[HA_EMB_NORM_W].size;
    const ha_affine project = ha_affine_of(params, HA_EMB_PROJECT_W, HA_EMB_PROJECT_B, 0, h, c->embedding_size);
    float *g = tape->g;
    if (tape->embedded != NULL) {
        affine_backward_weight(p, &project, g, h, tape->embedded, tokens);
        affine_backward_input(p, &project, tape->t, 0.0f, g, h, tokens);
        g = tape->t;
    }
    drop(p, tape->dropout.hidden, HA_DROP_EMBEDDING, g, tokens, width);
    norm_backward(p, g, tape->projected != NULL ? tape->projected : tape->summed, HA_EMB_NORM_W, tokens);
    if (tape->projected != NULL) {
        affine_backward_weight(p, &project, g, h, tape->summed, tokens);
        affine_backward_input(p, &project, tape->t, 0.0f, g, h, tokens);
        g = tape->t;
    }
    scatter(p, g);
    if (tape->relative_row != NULL) {
        const size_t at = tape->relative_first * h, n = tape->relative_count * h;
        if (c->norm_rel_ebd) {
            norm_backward(p, tape->drelative, ha_weight(params, HA_RELATIVE) + at, HA_RELATIVE_NORM_W, tape->relative_count);
        }
        float *table = grad(p, HA_RELATIVE);
        if (table != NULL) {
            tape->kernels->add_f32(table + at, table + at, tape->drelative, n, p->n_threads);
        }
    }
}

/* The least depth (see ha_param_depth) of which a gradient is wanted. */
static size_t
lowest_depth(const pass *p)
{
    const ha_encoder_params *params = p->tape->params;
    size_t lowest = params->config.n_layers + 1;
    for (size_t i = 0; i < params->count; i++) {
        const size_t depth = ha_param_depth(&params->config, i);
        if ((p->wanted == NULL || p->wanted[i]) && params->items[i].size > 0 && depth < lowest) {
            lowest = depth;
        }
    }
    return lowest;
}

ha_status
ha_encoder_train_backward(const ha_encoder_params *params, const ha_batch *batch, ha_tape *tape, const float *dlogits,
                          float *grads, const uint8_t *wanted, uint8_t *word_rows, int n_threads, ha_error *err)
{
    const pass p = {.tape = tape, .batch = batch, .grads = grads, .wanted = wanted, .n_threads = n_threads};
    const ha_encoder_config *c = &params->config;
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
    memset(tape->drelative, 0, tape->relative_count * c->hidden_size * sizeof(float));
    const size_t lowest = lowest_depth(&p);
    head_backward(&p, dlogits);
    for (size_t i = c->n_layers; i-- > 0 && i + 1 >= lowest;) {
        if (i == 0 && c->conv_groups > 0) {
            conv_backward(&p);
        }
        feed_forward_backward(&p, i);
        attention_backward(&p, i);
    }
    if (lowest == 0 && c->conv_groups > 0) {
        tape->kernels->add_f32(tape->g, tape->g, tape->dembedded, tape->n_tokens * c->hidden_size, n_threads);
    }
    if (lowest == 0) {
        embed_backward(&p);
    }
    for (size_t t = 0; word_rows != NULL && t < tape->n_tokens; t++) {
        word_rows[batch->ids[t]] = 1;
    }
    return HA_OK;
}
