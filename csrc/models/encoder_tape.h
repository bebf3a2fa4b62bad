/* What the forward pass of training leaves for the backward pass, and the products that both are made of. */
#ifndef HARMAUG_MODELS_ENCODER_TAPE_H
#define HARMAUG_MODELS_ENCODER_TAPE_H

#include "core/arena.h"
#include "models/attention.h"
#include "models/dropout.h"
#include "models/encoder.h"
#include "models/encoder_layout.h"

/* Activations of one layer. n queries: all tokens, or one a row in a last layer of which the head reads first tokens alone (cls_only). */
typedef struct ha_layer_tape {
    int cls_only;
    size_t n, ldq, ldkv;
    float *input;           /* (tokens, hidden) */
    float *first;           /* (rows, hidden): its first tokens; cls_only */
    float *q, *k;           /* (n, hidden), (tokens, 2 hidden: keys and values), rotated where positions are rotary */
    float *pos_key, *pos_query;     /* (relative_count, hidden), or NULL */
    float *context;         /* (n, hidden) */
    float *middle;          /* (n, hidden): the input with attention's output added; its norm is what the feed forward reads */
    float *up;              /* (n, intermediate, or twice that), before the activation */
    float *sum;             /* (n, hidden): before the last norm; NULL where norms stand before their blocks */
    float *output;          /* (n, hidden); of the first layer of a model with a convolution, after it */
} ha_layer_tape;

struct ha_tape {
    ha_arena arena;
    ha_arena scratch;                   /* of the products and of attention: depends on the number of threads, which may differ between the passes */
    ha_arena distances;
    const ha_kernels *kernels;
    int bf16;                           /* see ha_tape_new() */
    const ha_encoder_params *params;    /* those of the last forward pass; NULL: there was none */
    size_t n_rows, n_tokens, longest;
    ha_dropouts dropout;
    uint64_t seed, step;
    ha_layer_tape *layers;
    float *summed;                      /* (tokens, embedding): words, positions and types added up */
    float *projected;                   /* (tokens, hidden): that projected, where the projection comes before the norm */
    float *embedded;                    /* (tokens, embedding): after norm and dropout, where the projection comes behind them */
    const int32_t *relative_row;        /* of each distance, counted from relative_first; NULL: no relative positions */
    size_t relative_first, relative_count;  /* the rows of their table that this batch uses */
    float *relative;                    /* (relative_count, hidden): those rows, normalised */
    float *cosine[2], *sine[2];         /* (longest, head_dim / 2) by kind of layer, or NULL */
    float *conv, *conv_sum;             /* (n of layer 0, hidden): before its activation; before its norm */
    float *pooled;                      /* (rows, hidden): what the head reads, after its dropout */
    float *dense, *active, *dropped;    /* (rows, hidden): the head before its activation, after it, as the classifier reads it */
    /* the activations of a layer as they are computed, and in the backward pass the gradients */
    float *wide;                        /* (tokens, the widest of a layer) */
    float *mid;                         /* (tokens, max(intermediate, hidden)) */
    float *normed;                      /* (tokens, hidden): a norm computed again */
    float *g, *t, *u;                   /* (tokens, max(hidden, embedding)) */
    float *table, *dtable[2], *drelative;   /* (relative_count, hidden): the table after dropout; gradients of its projections, of it */
    float *dembedded;                   /* (tokens, hidden): the gradient that comes through the convolution */
};

/* Places of dropout in the model; of a layer: 4 * layer + one of the second list. */
enum { HA_DROP_EMBEDDING = 0xFFFC, HA_DROP_CONV, HA_DROP_HEAD_INPUT, HA_DROP_HEAD };
enum { HA_DROP_RELATIVE, HA_DROP_PROBABILITY, HA_DROP_ATTENTION, HA_DROP_FEED_FORWARD };

static inline ha_dropout
ha_tape_dropout(const ha_tape *tape, float probability, uint64_t place)
{
    return ha_dropout_at(probability, tape->seed, tape->step, place);
}

static inline uint64_t
ha_layer_place(size_t layer, uint64_t which)
{
    return 4 * (uint64_t)layer + which;
}

/* Of attention's output, by the family: ModernBERT's is that of the probabilities, DistilBERT has none. */
static inline float
ha_attention_output_dropout(const ha_tape *tape)
{
    const ha_encoder_config *c = &tape->params->config;
    return c->family == HA_DISTILBERT ? 0.0f : c->pre_norm ? tape->dropout.attention : tape->dropout.hidden;
}

/* Parameter i, or NULL where the model lacks it. */
static inline const float *
ha_weight(const ha_encoder_params *params, size_t i)
{
    return params->items[i].size > 0 ? params->data + params->items[i].offset : NULL;
}

/* A Linear: rows [first, first + n) of the matrices that stand one below the other from one parameter on, and of their biases. Offsets in the block. */
typedef struct ha_affine {
    size_t n, k, weight, bias;
    int has_bias;
    size_t weight_param, bias_param;    /* the first of the parameters that hold them */
} ha_affine;

static inline ha_affine
ha_affine_of(const ha_encoder_params *params, size_t weight, size_t bias, size_t first, size_t n, size_t k)
{
    return (ha_affine){.n = n, .k = k, .weight = params->items[weight].offset + first * k, .bias = params->items[bias].offset + first,
                       .has_bias = params->items[bias].size > 0, .weight_param = weight, .bias_param = bias};
}

/* The projection of a layer's relative positions to keys (which 0) or queries (1). */
ha_affine ha_position_affine(const ha_encoder_params *params, size_t layer, int which);

/* y (m, n), leading dimension ldy, = x (m, k) W^T + b */
void ha_affine_forward(const ha_tape *tape, const ha_affine *l, float *y, size_t ldy, const float *x, size_t m, int n_threads);
/* out (m, width of the norm `param`) */
void ha_tape_norm(const ha_tape *tape, float *out, const float *x, size_t param, size_t m, int n_threads);

/* Makes tape->scratch large enough for either pass over this batch with this many threads. */
ha_status ha_tape_reserve(ha_tape *tape, const ha_batch *batch, int n_threads, ha_error *err);

/* The attention of layer i over this batch; relative: filled where the model has relative positions. */
ha_attention ha_tape_attention(const ha_tape *tape, const ha_batch *batch, size_t i, ha_relative *relative);

/* tape->table: the normalised rows of relative positions as layer i sees them, after dropout. */
void ha_tape_drop_relative(const ha_tape *tape, size_t i, float *table, int n_threads);

#endif
