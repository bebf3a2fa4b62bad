/* What the forward pass of training leaves for the backward pass, and the products that both are made of. */
#ifndef HARMAUG_MODELS_ENCODER_TAPE_H
#define HARMAUG_MODELS_ENCODER_TAPE_H

#include "core/arena.h"
#include "models/attention.h"
#include "models/dropout.h"
#include "models/encoder.h"
#include "models/encoder_layout.h"

/* Activations of one layer. n queries: all tokens, or in the last layer one a row, for the head reads the first token alone. */
typedef struct ha_layer_tape {
    float *input;           /* (tokens, hidden) */
    float *query_input;     /* (n, hidden): input, or its first tokens gathered */
    float *q, *kv;          /* (n, hidden), (tokens, 2 hidden) */
    float *context;         /* (n, hidden) */
    float *sum1, *x1;       /* (n, hidden): before and after the first LayerNorm */
    float *up;              /* (n, intermediate), before GELU */
    float *sum2, *output;   /* (n, hidden): before and after the second LayerNorm */
    size_t n;
} ha_layer_tape;

struct ha_tape {
    ha_arena arena;
    ha_arena scratch;                   /* of the products and of attention: depends on the number of threads, which may differ between the passes */
    const ha_kernels *kernels;
    const ha_encoder_params *params;    /* those of the last forward pass; NULL: there was none */
    size_t n_rows, n_tokens;
    float dropout;
    uint64_t seed, step;
    ha_layer_tape *layers;
    float *embedded;                    /* (tokens, hidden), before LayerNorm */
    float *pooled, *dropped;            /* (rows, hidden): after tanh, after dropout */
    /* the activations of a layer as they are computed, and in the backward pass the gradients */
    float *wide;                        /* (tokens, max(intermediate, 2 hidden)) */
    float *g, *t, *u;                   /* (tokens, hidden) */
};

/* Places of dropout in the model. */
enum { HA_DROP_EMBEDDING = 0, HA_DROP_HEAD = 0xFFFF };
enum { HA_DROP_PROBABILITY = 1, HA_DROP_ATTENTION = 2, HA_DROP_FEED_FORWARD = 3 };

static inline ha_dropout
ha_tape_dropout(const ha_tape *tape, uint64_t place)
{
    return ha_dropout_at(tape->dropout, tape->seed, tape->step, place);
}

static inline uint64_t
ha_layer_place(size_t layer, uint64_t which)
{
    return 4 * (uint64_t)layer + which;
}

static inline const float *
ha_weight(const ha_encoder_params *params, size_t i)
{
    return params->data + params->items[i].offset;
}

/* Makes tape->scratch large enough for either pass over this batch with this many threads. */
ha_status ha_tape_reserve(ha_tape *tape, const ha_batch *batch, int n_threads, ha_error *err);

/* The attention of layer i over this batch. */
ha_attention ha_tape_attention(const ha_tape *tape, const ha_batch *batch, size_t i);

#endif
