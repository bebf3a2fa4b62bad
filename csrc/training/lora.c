#include "training/lora.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "kernels/kernels.h"

#define LORA_STREAM UINT64_C(0x4c6f5241)    /* "LoRA": keeps its draws apart from every other use of the seed */

static int
ends_with(const char *text, size_t length, const char *tail)
{
    const size_t n = strlen(tail);
    return length >= n && memcmp(text + length - n, tail, n) == 0;
}

int
ha_lora_matches(const ha_param *param, const char *target)
{
    size_t length = strlen(param->name);
    if (param->ndim != 2 || !ends_with(param->name, length, ".weight") || strstr(param->name, "embeddings.") != NULL) {
        return 0;
    }
    length -= strlen(".weight");
    const size_t n = strlen(target);
    return n > 0 && ends_with(param->name, length, target) && (length == n || param->name[length - n - 1] == '.');
}

static ha_status
find_pairs(ha_lora *lora, const ha_encoder_params *params, const char *const *targets, size_t n_targets,
           size_t *base_total, ha_error *err)
{
    for (size_t t = 0; t < n_targets; t++) {
        int found = 0;
        for (size_t i = 0; i < params->count && !found; i++) {
            found = ha_lora_matches(&params->items[i], targets[t]);
        }
        if (!found) {
            return ha_fail(err, HA_ERR_VALUE, "lora: target '%s' names no matrix of the model", targets[t]);
        }
    }
    for (size_t i = 0; i < params->count; i++) {
        const ha_param *param = &params->items[i];
        int hit = 0;
        for (size_t t = 0; t < n_targets && !hit; t++) {
            hit = ha_lora_matches(param, targets[t]);
        }
        if (!hit) {
            continue;
        }
        const size_t rows = param->shape[0], cols = param->shape[1];
        if (lora->rank > rows || lora->rank > cols) {
            return ha_fail(err, HA_ERR_VALUE, "lora: rank %zu is over the extents of %s (%zu, %zu)", lora->rank,
                           param->name, rows, cols);
        }
        lora->pairs[lora->count++] = (ha_lora_pair){.item = i, .rows = rows, .cols = cols, .a = lora->total,
                                                    .b = lora->total + lora->rank * cols, .base = *base_total};
        /* rank <= min(rows, cols): at most 2 rows * cols, and a parameter's size did not overflow */
        lora->total += lora->rank * (rows + cols);
        *base_total += param->size;
    }
    if (lora->count == 0) {
        return ha_fail(err, HA_ERR_VALUE, "lora: no targets given");
    }
    return HA_OK;
}

static size_t
scratch_bytes(const ha_lora *lora, int n_threads)
{
    const ha_kernels *k = lora->kernels;
    size_t most = 0;
    for (size_t i = 0; i < lora->count; i++) {
        const ha_lora_pair *p = &lora->pairs[i];
        const size_t need[3] = {k->gemm_scratch_bytes(p->rows, lora->rank, p->cols, n_threads),
                                k->gemm_scratch_bytes(lora->rank, p->cols, p->rows, n_threads),
                                k->gemm_scratch_bytes(p->rows, p->cols, lora->rank, n_threads)};
        for (int j = 0; j < 3; j++) {
            most = need[j] > most ? need[j] : most;
        }
    }
    return most;
}

static void
draw_a(ha_lora *lora, uint64_t seed)
{
    for (size_t i = 0; i < lora->count; i++) {
        const ha_lora_pair *p = &lora->pairs[i];
        const double bound = 1 / sqrt((double)p->cols);
        for (size_t j = 0; j < lora->rank * p->cols; j++) {
            lora->w[p->a + j] = (float)(bound * (2 * ha_uniform(seed, LORA_STREAM + ((uint64_t)i << 32), j) - 1));
        }
    }
}

ha_status
ha_lora_new(const ha_encoder_params *params, size_t rank, float alpha, const char *const *targets, size_t n_targets,
            uint64_t seed, int n_threads, ha_lora **out, ha_error *err)
{
    *out = NULL;
    if (rank == 0 || !(alpha > 0 && isfinite(alpha))) {
        return ha_fail(err, HA_ERR_VALUE, "lora: rank and alpha must be > 0, got %zu and %g", rank, (double)alpha);
    }
    ha_status status = HA_ERR_NOMEM;
    size_t base_total = 0;
    ha_lora *lora = calloc(1, sizeof(*lora));
    if (lora == NULL || (lora->pairs = calloc(params->count + 1, sizeof(*lora->pairs))) == NULL) {
        goto done;
    }
    lora->rank = rank;
    lora->scale = alpha / (float)rank;
    lora->kernels = ha_kernels_get();
    lora->n_threads = n_threads;
    status = find_pairs(lora, params, targets, n_targets, &base_total, err);
    if (status != HA_OK) {
        goto done;
    }
    status = HA_ERR_NOMEM;
    lora->w = calloc(lora->total, sizeof(float));
    lora->g = calloc(lora->total, sizeof(float));
    lora->base = malloc(base_total * sizeof(float));    /* a part of params->data: no overflow */
    lora->scratch = malloc(scratch_bytes(lora, n_threads) + 1);
    if (lora->w == NULL || lora->g == NULL || lora->base == NULL || lora->scratch == NULL) {
        goto done;
    }
    for (size_t i = 0; i < lora->count; i++) {
        const ha_param *param = &params->items[lora->pairs[i].item];
        memcpy(lora->base + lora->pairs[i].base, params->data + param->offset, param->size * sizeof(float));
    }
    draw_a(lora, seed);
    *out = lora;
    lora = NULL;
    status = HA_OK;
done:
    ha_lora_free(lora);
    return status;
}

void
ha_lora_free(ha_lora *lora)
{
    if (lora == NULL) {
        return;
    }
    free(lora->pairs);
    free(lora->w);
    free(lora->g);
    free(lora->base);
    free(lora->scratch);
    free(lora);
}

void
ha_lora_gradients(ha_lora *lora, const ha_encoder_params *params, const float *grads)
{
    const ha_kernels *k = lora->kernels;
    const ptrdiff_t rank = (ptrdiff_t)lora->rank;
    for (size_t i = 0; i < lora->count; i++) {
        const ha_lora_pair *p = &lora->pairs[i];
        const float *dw = grads + params->items[p->item].offset;
        const ptrdiff_t cols = (ptrdiff_t)p->cols;
        const ha_gemm db = {.m = p->rows, .n = lora->rank, .k = p->cols, .alpha = lora->scale, .beta = 0,
                            .a = dw, .a_row = cols, .a_col = 1, .b = lora->w + p->a, .b_row = 1, .b_col = cols,
                            .c = lora->g + p->b, .ldc = lora->rank};
        const ha_gemm da = {.m = lora->rank, .n = p->cols, .k = p->rows, .alpha = lora->scale, .beta = 0,
                            .a = lora->w + p->b, .a_row = 1, .a_col = rank, .b = dw, .b_row = cols, .b_col = 1,
                            .c = lora->g + p->a, .ldc = p->cols};
        k->gemm_f32(&db, lora->scratch, lora->n_threads);
        k->gemm_f32(&da, lora->scratch, lora->n_threads);
    }
}

void
ha_lora_apply(const ha_lora *lora, ha_encoder_params *params)
{
    const ha_kernels *k = lora->kernels;
    for (size_t i = 0; i < lora->count; i++) {
        const ha_lora_pair *p = &lora->pairs[i];
        const ha_param *param = &params->items[p->item];
        float *w = params->data + param->offset;
        memcpy(w, lora->base + p->base, param->size * sizeof(float));
        const ha_gemm gemm = {.m = p->rows, .n = p->cols, .k = lora->rank, .alpha = lora->scale, .beta = 1,
                              .a = lora->w + p->b, .a_row = (ptrdiff_t)lora->rank, .a_col = 1,
                              .b = lora->w + p->a, .b_row = (ptrdiff_t)p->cols, .b_col = 1, .c = w, .ldc = p->cols};
        k->gemm_f32(&gemm, lora->scratch, lora->n_threads);
    }
}
