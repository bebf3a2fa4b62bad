/* Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W = W0 + scale * B A, with A (rank, in) and B (out, rank)
 * trained in W's place.
 *
 * The encoder knows nothing of it: W stands in the parameter block as any weight, and its full gradient gives the
 * factors' exactly,
 *     dB = scale * dW A^T,   dA = scale * B^T dW,
 * at the cost of two thin products a step. A starts uniform in +-1/sqrt(in) and B at 0 (Kaiming with a = sqrt(5), as
 * PEFT does), so that W = W0 at first. There is no dropout on the adapter's input. */
#ifndef HARMAUG_TRAINING_LORA_H
#define HARMAUG_TRAINING_LORA_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "models/encoder.h"

typedef struct ha_lora_pair {
    size_t item;                    /* index into params->items */
    size_t rows, cols;              /* of W: (out, in) */
    size_t a, b;                    /* offsets of A (rank, cols) and B (rows, rank) within `w` and `g` */
    size_t base;                    /* offset of W0 within `base` */
} ha_lora_pair;

typedef struct ha_lora {
    size_t rank, count, total;      /* total: elements of w */
    float scale;                    /* alpha / rank */
    ha_lora_pair *pairs;
    float *w, *g;                   /* (total,) factors and their gradients */
    float *base;                    /* the frozen matrices */
    const ha_kernels *kernels;      /* the table, and the thread count, that scratch is sized for */
    int n_threads;
    void *scratch;
} ha_lora;

/* 1 when `target` names the module whose weight param is ("….query.weight"): it equals the module's name, or the name
 * ends in ".target", as with PEFT's target_modules. Embeddings and LayerNorm weights are no targets. */
int ha_lora_matches(const ha_param *param, const char *target);

/* Adapts every matrix of params that a target names; a target that names none is HA_ERR_VALUE. Copies W0 out. */
ha_status ha_lora_new(const ha_encoder_params *params, size_t rank, float alpha, const char *const *targets,
                      size_t n_targets, uint64_t seed, int n_threads, ha_lora **out, ha_error *err);
void ha_lora_free(ha_lora *lora);

/* Writes lora->g from the gradients of the full matrices. */
void ha_lora_gradients(ha_lora *lora, const ha_encoder_params *params, const float *grads);
/* Writes W = W0 + scale * B A into params. */
void ha_lora_apply(const ha_lora *lora, ha_encoder_params *params);

#endif
