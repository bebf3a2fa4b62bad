/* Drawing the next token. Penalties and bans change single logits; then filters apply in this order: temperature, top_k, top_p, min_p, typical_p; ranks are by
 * probability, ties by the lower id. No sort of the vocabulary: maxima of blocks bound the candidates, and a partial selection finds where the kept
 * set ends. */
#ifndef HARMAUG_GENERATION_SAMPLER_H
#define HARMAUG_GENERATION_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "kernels/kernels.h"

typedef struct ha_sampling {
    double temperature;             /* below 1e-4: argmax, the lowest id on ties */
    size_t top_k;                   /* 0: all */
    double top_p;                   /* smallest set of at least this mass (Holtzman et al. 2020, arXiv 1904.09751); 1: all */
    double min_p;                   /* drop what is less probable than min_p times the most probable (Nguyen et al. 2024, arXiv 2407.01082) */
    double typical_p;               /* the tokens whose information is nearest to the entropy, of at least this mass, with ties (Meister et al. 2022,
                                     * arXiv 2202.00666); 1: all */
    double repetition_penalty;      /* logits of tokens in prompt and continuation: divided by it when > 0, else multiplied (Keskar et al. 2019,
                                     * arXiv 1909.05858); 1: none */
    double presence_penalty;        /* subtracted once from logits of tokens in the continuation ... */
    double frequency_penalty;       /* ... and this for each time that they stand there; 0: none */
} ha_sampling;

extern const ha_sampling ha_sampling_plain;     /* temperature 1, nothing else */

/* What stands before the token. Ids lie within the vocabulary. */
typedef struct ha_history {
    const int32_t *prompt, *ids;    /* the prompt; the continuation so far */
    size_t n_prompt, n_ids;
    const int32_t *banned;          /* tokens that must not come next */
    size_t n_banned;
} ha_history;

/* HA_ERR_VALUE naming the field that is out of range. */
ha_status ha_sampling_check(const ha_sampling *sampling, ha_error *err);

/* One thread's scratch for a vocabulary. */
typedef struct ha_sampler ha_sampler;
ha_status ha_sampler_new(size_t vocab_size, ha_sampler **out, ha_error *err);
void ha_sampler_free(ha_sampler *sampler);

/* logits (vocab_size,): changed on the way, what they were on return. uniform in [0, 1) decides: tokens stand in id order, each as wide as its filtered
 * probability. *logprob is the token's log-probability under the unfiltered softmax at temperature 1, without penalties, nats. history NULL: none.
 * HA_ERR_VALUE when the logits hold NaN or no finite maximum, or every token is banned. */
ha_status ha_sampler_draw(ha_sampler *sampler, const ha_kernels *kernels, const ha_sampling *sampling, const ha_history *history, float *logits,
                          double uniform, int32_t *token, double *logprob, ha_error *err);

/* The distribution that ha_sampler_draw draws from: out (vocab_size,) sums to 1, exact zeros outside the kept set. */
ha_status ha_sampler_probabilities(ha_sampler *sampler, const ha_kernels *kernels, const ha_sampling *sampling, const ha_history *history, float *logits,
                                   float *out, ha_error *err);

#endif
