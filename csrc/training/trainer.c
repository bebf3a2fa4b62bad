#include "training/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "kernels/kernels.h"
#include "models/encoder_batch.h"
#include "models/encoder_layout.h"
#include "training/trainer_impl.h"

#define CHUNK 8192          /* elements of one piece of work: four arrays of it stay in L2 */
#define CHUNK_GRAIN 8       /* chunks a thread at least */

/* -- making -- */

/* 1 when `name` matches `pattern`, in which '*' stands for any text. Without recursion: on a mismatch go back to the
 * last star. */
static int
matches(const char *pattern, const char *name)
{
    const char *star = NULL, *again = NULL;
    while (*name != '\0') {
        if (*pattern == '*') {
            star = pattern++;
            again = name;
        } else if (*pattern == *name) {
            pattern++;
            name++;
        } else if (star != NULL) {
            pattern = star + 1;
            name = ++again;
        } else {
            return 0;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return *pattern == '\0';
}

static ha_status
check_config(const ha_trainer_config *config, ha_error *err)
{
    const struct {
        const char *name;
        double value, min, max;
    } bounds[] = {
        {"beta1", config->beta1, 0, 1 - 1e-12},
        {"beta2", config->beta2, 0, 1 - 1e-12},
        {"eps", config->eps, 1e-30, 1},
        {"weight_decay", config->weight_decay, 0, 1e6},
        {"layer_decay", config->layer_decay, 1e-6, 1},
        {"clip_norm", config->clip_norm, 0, 1e30},
        {"dropout", config->dropout.hidden, 0, 0.999},
        {"attention_dropout", config->dropout.attention, 0, 0.999},
        {"classifier_dropout", config->dropout.classifier, 0, 0.999},
    };
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        if (!(bounds[i].value >= bounds[i].min && bounds[i].value <= bounds[i].max)) {
            return ha_fail(err, HA_ERR_VALUE, "trainer: %s must be in [%g, %g], got %g", bounds[i].name, bounds[i].min,
                           bounds[i].max, bounds[i].value);
        }
    }
    return ha_loss_config_check(&config->loss, err);
}

static ha_status
mark_trainable(ha_trainer *t, const ha_trainer_config *config, ha_error *err)
{
    for (size_t i = 0; i < t->params->count; i++) {
        t->trainable[i] = t->params->items[i].size > 0;
    }
    for (size_t p = 0; p < config->n_frozen; p++) {
        int found = 0;
        for (size_t i = 0; i < t->params->count; i++) {
            if (t->params->items[i].size > 0 && matches(config->frozen[p], t->params->items[i].name)) {
                t->trainable[i] = 0;
                found = 1;
            }
        }
        if (!found) {
            return ha_fail(err, HA_ERR_VALUE, "trainer: frozen pattern '%s' matches no parameter", config->frozen[p]);
        }
    }
    memcpy(t->wanted, t->trainable, t->params->count);
    for (size_t i = 0; t->lora != NULL && i < t->lora->count; i++) {
        t->wanted[t->lora->pairs[i].item] = 1;
        t->trainable[t->lora->pairs[i].item] = 0;      /* its factors are trained in its place */
    }
    t->n_trainable = t->lora != NULL ? t->lora->total : 0;
    for (size_t i = 0; i < t->params->count; i++) {
        t->n_trainable += t->trainable[i] ? t->params->items[i].size : 0;
    }
    return t->n_trainable > 0 ? HA_OK : ha_fail(err, HA_ERR_VALUE, "trainer: every parameter is frozen");
}

static void
add_chunks(ha_trainer *t, int lora, size_t item, size_t offset, size_t size, size_t step, double decay)
{
    const ha_encoder_config *c = &t->params->config;
    const double scale = pow(t->config.layer_decay, (double)(c->n_layers + 1 - ha_param_depth(c, item)));
    for (size_t first = 0; first < size; first += step) {
        t->chunks[t->n_chunks++] = (chunk){.lora = lora, .trained = lora || t->trainable[item], .cleared = !lora && t->wanted[item],
                                           .word = !lora && item == HA_EMB_WORD, .decay = (float)decay, .lr_scale = (float)scale, .offset = offset + first,
                                           .size = size - first < step ? size - first : step};
    }
}

static ha_status
make_chunks(ha_trainer *t, double weight_decay)
{
    const ha_encoder_params *params = t->params;
    const size_t n_pairs = t->lora != NULL ? t->lora->count : 0, lora_total = t->lora != NULL ? t->lora->total : 0;
    const size_t hidden = t->word->shape[1];
    const size_t word_step = hidden * (CHUNK / hidden > 0 ? CHUNK / hidden : 1);    /* whole rows */
    const size_t most = params->total / CHUNK + lora_total / CHUNK + 2 * params->count + n_pairs +
                        t->word->size / word_step;
    t->chunks = calloc(most, sizeof(*t->chunks));
    t->partials = calloc(most, sizeof(*t->partials));
    if (t->chunks == NULL || t->partials == NULL) {
        return HA_ERR_NOMEM;
    }
    for (size_t i = 0; i < params->count; i++) {
        const ha_param *item = &params->items[i];
        add_chunks(t, 0, i, item->offset, item->size, item == t->word ? word_step : CHUNK, item->ndim > 1 ? weight_decay : 0);
    }
    for (size_t i = 0; i < n_pairs; i++) {
        const ha_lora_pair *pair = &t->lora->pairs[i];
        add_chunks(t, 1, pair->item, pair->a, t->lora->rank * (pair->rows + pair->cols), CHUNK, weight_decay);
    }
    return HA_OK;
}

static ha_status
allocate(ha_trainer *t, const ha_trainer_config *config, ha_error *err)
{
    const ha_encoder_params *params = t->params;
    if (config->lora_rank > 0) {
        ha_status status = ha_lora_new(params, config->lora_rank, config->lora_alpha, config->lora_targets,
                                       config->n_lora_targets, config->seed, config->n_threads, &t->lora, err);
        if (status != HA_OK) {
            return status;
        }
        t->lora_m = calloc(t->lora->total, sizeof(float));
        t->lora_v = calloc(t->lora->total, sizeof(float));
        if (t->lora_m == NULL || t->lora_v == NULL) {
            return HA_ERR_NOMEM;
        }
    }
    const size_t vocab = t->word->shape[0];
    /* as large as the block, yet memory is taken only where something is written: not for frozen parameters, nor for
     * words never seen */
    t->grads = calloc(params->total, sizeof(float));
    t->m = calloc(params->total, sizeof(float));
    t->v = calloc(params->total, sizeof(float));
    t->trainable = calloc(params->count + 1, 1);
    t->wanted = calloc(params->count + 1, 1);
    t->touched = calloc(vocab + 1, 1);
    t->seen = calloc(vocab + 1, 1);
    t->tape = ha_tape_new(config->bf16);
    return t->grads && t->m && t->v && t->trainable && t->wanted && t->touched && t->seen && t->tape ? HA_OK : HA_ERR_NOMEM;
}

ha_status
ha_trainer_new(ha_encoder_params *params, const ha_trainer_config *config, ha_trainer **out, ha_error *err)
{
    *out = NULL;
    ha_trainer *t = calloc(1, sizeof(*t));
    ha_status status = HA_ERR_NOMEM;
    if (t == NULL) {
        return status;
    }
    t->params = params;
    t->config = *config;
    t->config.loss.num_labels = params->config.num_labels;
    t->config.frozen = t->config.lora_targets = NULL;   /* the caller's; used only here */
    t->kernels = ha_kernels_get();
    t->word = &params->items[HA_EMB_WORD];
    status = check_config(&t->config, err);
    if (status == HA_OK) {
        status = allocate(t, config, err);
    }
    if (status == HA_OK) {
        status = mark_trainable(t, config, err);
    }
    if (status == HA_OK) {
        status = make_chunks(t, config->weight_decay);
    }
    if (status != HA_OK) {
        ha_trainer_free(t);
        return status;
    }
    *out = t;
    return HA_OK;
}

void
ha_trainer_free(ha_trainer *t)
{
    if (t == NULL) {
        return;
    }
    ha_lora_free(t->lora);
    ha_tape_free(t->tape);
    free(t->lora_m);
    free(t->lora_v);
    free(t->grads);
    free(t->m);
    free(t->v);
    free(t->trainable);
    free(t->wanted);
    free(t->touched);
    free(t->seen);
    free(t->chunks);
    free(t->partials);
    free(t->offsets);
    free(t->logits);
    free(t);
}

uint64_t
ha_trainer_steps(const ha_trainer *t)
{
    return t->steps;
}

size_t
ha_trainer_trainable(const ha_trainer *t)
{
    return t->n_trainable;
}

/* -- one chunk -- */

static double
chunk_norm(const ha_trainer *t, const chunk *c)
{
    if (!c->trained) {
        return 0;
    }
    const float *g = (c->lora ? t->lora->g : t->grads) + c->offset;
    if (!c->word) {
        return t->kernels->sum_squares_f32(g, c->size, 1);
    }
    const size_t hidden = t->word->shape[1], first = (c->offset - t->word->offset) / hidden;
    double sum = 0;
    for (size_t r = 0; r < c->size / hidden; r++) {
        sum += t->touched[first + r] ? t->kernels->sum_squares_f32(g + r * hidden, hidden, 1) : 0;
    }
    return sum;
}

static void
adamw(const ha_trainer *t, const chunk *c, const update *u, size_t at, size_t n)
{
    float *w = (c->lora ? t->lora->w : t->params->data) + c->offset + at;
    const float *g = (c->lora ? t->lora->g : t->grads) + c->offset + at;
    float *m = (c->lora ? t->lora_m : t->m) + c->offset + at, *v = (c->lora ? t->lora_v : t->v) + c->offset + at;
    t->kernels->adamw_f32(w, g, m, v, n, u->lr * c->lr_scale, u->beta1, u->beta2, u->eps, c->decay, u->correction1, u->correction2,
                          u->grad_scale, 1);
}

/* Word embedding rows: runs of rows seen so far get AdamW, the others owe their decay. */
static void
update_words(const ha_trainer *t, const chunk *c, const update *u)
{
    const size_t hidden = t->word->shape[1], first = (c->offset - t->word->offset) / hidden, rows = c->size / hidden;
    for (size_t r = 0, end; r < rows; r = end) {
        const uint8_t seen = t->seen[first + r];
        for (end = r + 1; end < rows && t->seen[first + end] == seen; end++) {
        }
        if (seen) {
            adamw(t, c, u, r * hidden, (end - r) * hidden);
        }
    }
}

/* Multiplies a row of the word embedding by every factor that it owes, one after the other, as adamw_f32 would have. */
static void
pay(ha_trainer *t, size_t row)
{
    const size_t hidden = t->word->shape[1];
    float *w = t->params->data + t->word->offset + row * hidden;
    for (size_t i = 0; i < hidden; i += 64) {       /* so many stay in registers */
        const size_t end = hidden - i < 64 ? hidden : i + 64;
        for (size_t k = 0; k < t->n_owed; k++) {
            for (size_t j = i; j < end; j++) {
                w[j] *= t->owed[k];
            }
        }
    }
}

void
ha_trainer_settle(ha_trainer *t)
{
    const int n = ha_threads_for(t->n_owed * t->word->size, CHUNK, t->config.n_threads);
    (void)n;
    HA_PARALLEL_FOR(n)
    for (ptrdiff_t r = 0; r < (ptrdiff_t)t->word->shape[0]; r++) {
        if (t->n_owed > 0 && !t->seen[r]) {
            pay(t, (size_t)r);
        }
    }
    t->n_owed = 0;
}

/* The words of this step are no longer owing: their rows are read now. */
static void
see_words(ha_trainer *t, const ha_batch *batch)
{
    for (int64_t i = 0; i < batch->offsets[batch->n_rows]; i++) {
        const size_t row = (size_t)batch->ids[i];
        if (!t->seen[row]) {
            pay(t, row);
            t->seen[row] = 1;
        }
    }
}

/* Notes the decay of this step for the rows that no batch has held. */
static void
owe(ha_trainer *t, const update *u)
{
    const chunk *c = &t->chunks[0];     /* the word embedding is the first parameter */
    const float keep = 1.0f - u->lr * c->lr_scale * c->decay;     /* as adamw_f32 has it */
    if (!c->trained || keep == 1.0f) {
        return;
    }
    if (t->n_owed == HA_OWED) {
        ha_trainer_settle(t);
    }
    t->owed[t->n_owed++] = keep;
}

static void
clear_chunk(const ha_trainer *t, const chunk *c)
{
    if (!c->cleared) {
        return;
    }
    float *g = t->grads + c->offset;
    if (!c->word) {
        memset(g, 0, c->size * sizeof(float));
        return;
    }
    const size_t hidden = t->word->shape[1], first = (c->offset - t->word->offset) / hidden;
    for (size_t r = 0; r < c->size / hidden; r++) {
        if (t->touched[first + r]) {
            memset(g + r * hidden, 0, hidden * sizeof(float));
        }
    }
}

/* -- a step -- */

static int
threads(const ha_trainer *t)
{
    return ha_threads_for(t->n_chunks, CHUNK_GRAIN, t->config.n_threads);
}

static double
gradient_norm(ha_trainer *t)
{
    const int n = threads(t);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, CHUNK_GRAIN)
#endif
    for (ptrdiff_t i = 0; i < (ptrdiff_t)t->n_chunks; i++) {
        t->partials[i] = chunk_norm(t, &t->chunks[i]);
    }
    double sum = 0;
    for (size_t i = 0; i < t->n_chunks; i++) {
        sum += t->partials[i];
    }
    return sqrt(sum);
}

/* Updates when u is given, and leaves all gradients 0. */
static void
update_and_clear(ha_trainer *t, const update *u)
{
    const int n = threads(t);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(dynamic, CHUNK_GRAIN)
#endif
    for (ptrdiff_t i = 0; i < (ptrdiff_t)t->n_chunks; i++) {
        const chunk *c = &t->chunks[i];
        if (u != NULL && c->trained && c->word) {
            update_words(t, c, u);
        } else if (u != NULL && c->trained) {
            adamw(t, c, u, 0, c->size);
        }
        clear_chunk(t, c);
    }
    memset(t->touched, 0, t->word->shape[0]);
}

static ha_status
reserve(ha_trainer *t, size_t n_rows)
{
    if (n_rows <= t->capacity) {
        return HA_OK;
    }
    const size_t labels = t->config.loss.num_labels;
    if (n_rows > SIZE_MAX / (4 * sizeof(int64_t))) {
        return HA_ERR_NOMEM;
    }
    int64_t *offsets = realloc(t->offsets, (n_rows + 1) * sizeof(*offsets));
    if (offsets == NULL) {
        return HA_ERR_NOMEM;
    }
    t->offsets = offsets;
    float *logits = realloc(t->logits, 2 * n_rows * labels * sizeof(*logits));
    if (logits == NULL) {
        return HA_ERR_NOMEM;
    }
    t->logits = logits;
    t->capacity = n_rows;
    return HA_OK;
}

/* Forward and backward over rows [first, end): adds to the gradients and to *loss. */
static ha_status
micro_step(ha_trainer *t, const ha_batch *batch, const ha_targets *targets, size_t first, size_t end, uint64_t place,
           double scale, double *loss, ha_error *err)
{
    const size_t n = end - first, labels = t->config.loss.num_labels;
    const int64_t begin = batch->offsets[first];
    for (size_t i = 0; i <= n; i++) {
        t->offsets[i] = batch->offsets[first + i] - begin;
    }
    const ha_batch part = {.n_rows = n, .offsets = t->offsets, .ids = batch->ids + begin,
                           .type_ids = batch->type_ids != NULL ? batch->type_ids + begin : NULL};
    const ha_targets want = {.hard = targets->hard != NULL ? targets->hard + first : NULL,
                             .soft = targets->soft != NULL ? targets->soft + first : NULL,
                             .weight = targets->weight != NULL ? targets->weight + first : NULL};
    float *dlogits = t->logits + n * labels;
    ha_status status = ha_encoder_train_forward(t->params, &part, &t->config.dropout, t->config.seed, place, t->tape,
                                                t->logits, t->config.n_threads, err);
    if (status != HA_OK) {
        return status;
    }
    *loss += ha_distill_loss(&t->config.loss, &want, n, t->logits, scale, dlogits);
    if (!isfinite(*loss)) {
        return ha_fail(err, HA_ERR_VALUE,
                       "step %llu: the loss is not finite (%g): weights are left as after step %llu; a lower learning "
                       "rate may help",
                       (unsigned long long)t->steps + 1, *loss, (unsigned long long)t->steps);
    }
    return ha_encoder_train_backward(t->params, &part, t->tape, dlogits, t->grads, t->wanted, t->touched,
                                     t->config.n_threads, err);
}

static ha_status
accumulate(ha_trainer *t, const ha_batch *batch, const ha_targets *targets, double *loss, ha_error *err)
{
    double total;
    ha_status status = ha_targets_check(targets, batch->n_rows, &total, err);
    uint64_t place = t->steps << 20;    /* of the dropout masks: a number for each micro-batch of each step */
    for (size_t first = 0, end; status == HA_OK && first < batch->n_rows; first = end) {
        for (end = first + 1; end < batch->n_rows; end++) {
            if (t->config.micro_tokens > 0 &&
                (uint64_t)(batch->offsets[end + 1] - batch->offsets[first]) > t->config.micro_tokens) {
                break;
            }
        }
        status = micro_step(t, batch, targets, first, end, place++, 1 / total, loss, err);
    }
    return status;
}

ha_status
ha_trainer_step(ha_trainer *t, const ha_batch *batch, const ha_targets *targets, double lr, ha_step *out, ha_error *err)
{
    if (!(lr >= 0 && isfinite(lr))) {
        return ha_fail(err, HA_ERR_VALUE, "trainer: lr must be finite and >= 0, got %g", lr);
    }
    if (batch->n_rows == 0) {
        return ha_fail(err, HA_ERR_VALUE, "trainer: a step needs at least one row");
    }
    double loss = 0, norm = 0;
    /* the whole batch before its first part: rows are named by their number in it */
    ha_status status = ha_batch_check(&t->params->config, batch, err);
    if (status != HA_OK || (status = reserve(t, batch->n_rows)) != HA_OK) {
        return status;
    }
    see_words(t, batch);
    status = accumulate(t, batch, targets, &loss, err);
    if (status == HA_OK) {
        if (t->lora != NULL) {
            ha_lora_gradients(t->lora, t->params, t->grads);
        }
        norm = gradient_norm(t);
        if (!isfinite(norm)) {
            status = ha_fail(err, HA_ERR_VALUE,
                             "step %llu: the gradient is not finite: weights are left as after step %llu; a lower "
                             "learning rate may help",
                             (unsigned long long)t->steps + 1, (unsigned long long)t->steps);
        }
    }
    if (status != HA_OK) {
        update_and_clear(t, NULL);
        return status;
    }
    t->steps++;
    const double clip = t->config.clip_norm, ratio = clip / (norm + 1e-6);      /* torch.nn.utils.clip_grad_norm_ */
    const update u = {.lr = (float)lr, .beta1 = (float)t->config.beta1, .beta2 = (float)t->config.beta2,
                      .eps = (float)t->config.eps,
                      .correction1 = (float)(1 - pow(t->config.beta1, (double)t->steps)),
                      .correction2 = (float)(1 - pow(t->config.beta2, (double)t->steps)),
                      .grad_scale = clip > 0 && ratio < 1 ? (float)ratio : 1.0f};
    update_and_clear(t, &u);
    owe(t, &u);
    if (t->lora != NULL) {
        ha_lora_apply(t->lora, t->params);
    }
    *out = (ha_step){.loss = loss, .grad_norm = norm, .n_tokens = (size_t)batch->offsets[batch->n_rows]};
    return HA_OK;
}
