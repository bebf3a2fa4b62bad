/* The sampling loop: many samples behind each of many prompts, decoded together.
 *
 * A prompt is read once; its keys and values are shared by all its samples, and the part that it has in common with the prompt read before it
 * is copied, not computed. Up to batch_size samples are live, of one prompt or of several; each step is one forward pass over a token of every live
 * sample and over the next prompts' tokens, so that a finished sample's place is taken at once, in index order. Sample i of a request draws its
 * j-th token with the random number (seed, first_index + i, j): what it says depends on neither batch_size, order nor threads. */
#ifndef HARMAUG_GENERATION_LOOP_H
#define HARMAUG_GENERATION_LOOP_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "generation/sampler.h"
#include "models/decoder.h"
#include "tokenizer/tokenizer.h"

typedef enum ha_stop_reason { HA_STOP_EOS, HA_STOP_STRING, HA_STOP_LENGTH } ha_stop_reason;

typedef struct ha_generation_options {
    size_t batch_size;              /* >= 1 live samples */
    size_t max_new_tokens;          /* >= 1; the end token counts */
    uint64_t seed;
    ha_sampling sampling;
    const int32_t *stop_ids;        /* copied */
    size_t n_stop_ids;
    size_t min_new_tokens;          /* before so many, no stop id is drawn and no stop string counts; <= max_new_tokens */
    /* Copied: runs of tokens whose last never follows the others, in prompt and continuation; run i is banned[banned_ends[i - 1] .. banned_ends[i]),
     * one token at least. */
    const int32_t *banned;
    const size_t *banned_ends;
    size_t n_banned;
    int n_threads;
} ha_generation_options;

typedef struct ha_request {
    const int32_t *ids;             /* copied; n_ids >= 1, n_ids + max_new_tokens within the context */
    size_t n_ids, n_samples;
    uint64_t first_index;
    const ha_text *stops;           /* copied; byte strings that end a sample; the text stops before them */
    size_t n_stops;
    int stop_after_text;            /* a stop string before the first byte that is no white space does not count */
} ha_request;

/* A finished sample. Borrowed: valid until the next call on the run. */
typedef struct ha_generated {
    uint64_t request;               /* in order of ha_run_add, from 0 */
    uint64_t sample;                /* 0 .. n_samples - 1 */
    const int32_t *ids;             /* with the end token, or the tokens that completed the stop string */
    size_t n_ids;
    const uint8_t *text;            /* raw bytes of the tokens, without special tokens and stop string; not always whole UTF-8 */
    size_t text_length;
    double logprob;                 /* sum over ids, temperature 1, unfiltered, without penalties */
    ha_stop_reason reason;
} ha_generated;

typedef struct ha_run ha_run;

/* The decoder and the tokenizer (NULL: no text, no stop strings) must outlive the run. One thread at a time. */
ha_status ha_run_new(const ha_decoder *decoder, const ha_tokenizer *tokenizer, const ha_generation_options *options, ha_run **out, ha_error *err);
void ha_run_free(ha_run *run);

/* HA_ERR_VALUE: an empty prompt, an id outside the vocabulary, a prompt that leaves no room for max_new_tokens in the context. */
ha_status ha_run_add(ha_run *run, const ha_request *request, ha_error *err);

/* Samples added and not yet begun: a caller that streams requests keeps this at batch_size or more. */
size_t ha_run_waiting(const ha_run *run);
/* No sample is live or waiting; finished ones may still have to be taken. */
int ha_run_idle(const ha_run *run);

/* One forward pass and one token for each live sample. After an error the run can only be freed. */
ha_status ha_run_step(ha_run *run, ha_error *err);

/* Takes the next finished sample in (request, sample) order: 1, or 0 when that one is not finished. */
int ha_run_next(ha_run *run, ha_generated *out);

/* Work so far, for accounts. */
typedef struct ha_run_totals {
    uint64_t prompt_tokens, prompt_tokens_computed, new_tokens, steps;
} ha_run_totals;
void ha_run_totals_get(const ha_run *run, ha_run_totals *out);

#endif
