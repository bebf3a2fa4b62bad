/* The inference form of an encoder, for the files that make it and run it: weights packed once, in one arena. */
#ifndef HARMAUG_MODELS_ENCODER_IMPL_H
#define HARMAUG_MODELS_ENCODER_IMPL_H

#include "core/arena.h"
#include "core/map_file.h"
#include "kernels/quantize.h"
#include "models/encoder.h"
#include "models/encoder_layout.h"

/* y = x W^T + bias. W is rows [first, first + n) of the matrix that the parameters from `weight` on make one below the other. n 0: there is none. */
typedef struct ha_linear {
    size_t n, k;
    size_t weight, bias_param, first;
    ha_weight_format format;
    void *packed;
    float *bias;                /* (n,) or NULL */
} ha_linear;

/* Layer normalisation over n columns; n 0: there is none. */
typedef struct ha_norm {
    size_t n, param;
    float *weight, *bias;       /* bias: or NULL */
} ha_norm;

/* query+key+value is one product. In the last layer of a model whose head reads the first token alone only that token asks: its query stands alone. */
typedef struct ha_encoder_layer {
    int cls_only;
    ha_linear qkv, q, kv;
    ha_linear out, up, down;
    ha_norm norm1, norm2;
    void *pos_key, *pos_query;  /* projections of the 2 relative_span positions, packed head by head (models/attend.h); or NULL */
} ha_encoder_layer;

struct ha_encoder {
    ha_encoder_config config;
    ha_weight_format format, word_format;   /* of the weights; what word embeddings are rounded to when they are read */
    const ha_kernels *kernels;      /* those that packed the weights */
    ha_checkpoint *checkpoint;      /* where word embedding rows are read, or NULL: */
    float *word;                    /* (vocab_size, embedding_size) */
    ha_map_file cached;             /* the cache file that `arena` lies in, if it does */
    ha_arena arena;                 /* all weights that follow */
    float *position, *type;         /* (positions, embedding_size), (types, embedding_size), or NULL */
    ha_norm norm;
    ha_linear project;
    ha_encoder_layer *layers;       /* allocated by itself, as conv is */
    ha_linear *conv;                /* (conv_groups,): from (kernel, hidden / groups) inputs of a group to its hidden / groups outputs */
    ha_norm conv_norm, final_norm;
    float *inv_freq[2];             /* (head_dim / 2,) of layers that see all tokens, of windowed ones; NULL: not rotary */
    ha_linear pooler, classifier;
    ha_norm head_norm;
};

/* Where weights come from: one of the two. */
typedef struct ha_source {
    const ha_encoder_config *config;
    const ha_checkpoint *checkpoint;
    const ha_encoder_params *params;
} ha_source;

/* Rows [first, first + count) of parameter i as float32: out (count, ha_param_cols). */
ha_status ha_source_rows(const ha_source *from, size_t i, size_t first, size_t count, float *out, ha_error *err);

/* How parameter i is held, and stored, in a model of `format`: what is small, and the head, stays float32. */
ha_weight_format ha_param_format(const ha_encoder_config *config, size_t i, ha_weight_format format);

/* w (rows, k): each element becomes what a weight or an embedding stored in `format` holds. */
void ha_round_rows(const ha_kernels *kernels, ha_weight_format format, float *w, size_t rows, size_t k);
/* Of one head's packed table of positions: whether it stands in bfloat16, as in an int8 model, and its bytes. */
int ha_encoder_table_bf16(const ha_encoder *encoder);
size_t ha_encoder_table_bytes(const ha_encoder *encoder);

#endif
