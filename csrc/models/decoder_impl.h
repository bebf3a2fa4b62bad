/* What the files of the decoder share; nobody else includes it. */
#ifndef HARMAUG_MODELS_DECODER_IMPL_H
#define HARMAUG_MODELS_DECODER_IMPL_H

#include "io/tensor_file.h"
#include "models/activation.h"
#include "models/decoder.h"

#define HA_MAX_EXTENT ((size_t)1 << 24)     /* of one axis: a thousand times past today's models */
#define HA_MAX_HEADS 65536

/* A packed weight; several stored matrices may stand in it one after another (query, key, value; gate, up). */
typedef struct ha_linear {
    size_t n, k;                    /* out_features, in_features */
    ha_weight_format format;
    const void *packed;
    const float *bias;              /* (n,) or NULL */
} ha_linear;

typedef struct ha_norm {
    const float *weight, *bias;     /* (hidden_size,); bias NULL: none */
} ha_norm;

typedef struct ha_decoder_layer {
    size_t window;                  /* keys that a position sees, itself included; 0: all before it */
    ha_norm attention_norm, mlp_norm, attention_post_norm, mlp_post_norm;
    const float *query_norm, *key_norm;     /* (head_dim,) */
    ha_linear qkv;                  /* ((n_heads + 2 n_kv_heads) head_dim, hidden_size) */
    ha_linear output;               /* (hidden_size, n_heads head_dim) */
    ha_linear gate_up;              /* (2 intermediate_size, hidden_size); ungated: the upper half alone */
    ha_linear down;                 /* (hidden_size, intermediate_size) */
} ha_decoder_layer;

struct ha_decoder {
    ha_decoder_config config;
    const ha_kernels *kernels;      /* the table that packed the weights */
    ha_weight_format format;
    ha_tensor_file *file;
    const ha_tensor *embedding;     /* (vocab_size, hidden_size), in the mapping */
    const ha_tensor *positions;     /* (max_position_embeddings, hidden_size), in the mapping; NULL: rotary */
    ha_decoder_layer *layers;
    ha_norm final_norm;
    ha_linear head;                 /* (vocab_size, hidden_size) */
    float *inv_freq;                /* (head_dim / 2,) radians a position */
    uint8_t *packed;                /* one block: packed matrices, then float32 vectors */
    size_t packed_bytes;
};

/* Reads the configuration of an open file (GGUF metadata) or of the config.json (and generation_config.json) in `folder`. */
ha_status ha_decoder_config_gguf(const ha_tensor_file *file, ha_decoder_config *out, ha_error *err);
ha_status ha_decoder_config_hf(const char *folder, ha_decoder_config *out, ha_error *err);

/* What both must keep. `name` begins the message. */
ha_status ha_decoder_config_check(const char *name, const ha_decoder_config *config, ha_error *err);

/* Finds, checks and packs every tensor of decoder->file as decoder->config says. */
ha_status ha_decoder_weights_read(ha_decoder *decoder, int n_threads, ha_error *err);

/* A row of a pass: one token. */
typedef struct ha_decoder_row {
    size_t segment, position;       /* position: absolute */
} ha_decoder_row;

/* One thread's work in attention: rows [first, first + count) that share their keys, for one key-value head. */
typedef struct ha_attention_task {
    size_t first, count, head;
} ha_attention_task;

struct ha_decoder_state {
    size_t max_rows, n_rows;
    int n_threads;
    float *x, *normed, *qkv, *mixed, *gate_up, *gated;      /* (max_rows, ...) */
    float *cosine, *sine;           /* (max_rows, head_dim / 2) */
    void *linear_scratch;           /* grown by need */
    size_t linear_scratch_bytes;
    ha_decoder_row *rows;           /* (max_rows,) */
    ha_attention_task *tasks;       /* (max_rows n_kv_heads,) */
    size_t n_tasks;
    uint8_t *attention_scratch;     /* per thread */
    size_t attention_scratch_bytes, attention_thread_bytes;
    int attention_threads;
};

/* Splits the pass into tasks and grows the scratch: once a pass. */
ha_status ha_attention_plan(const ha_decoder *decoder, ha_decoder_state *state, const ha_segment *segments, size_t n_segments, ha_error *err);
/* state->mixed (rows, n_heads head_dim) from state->qkv and the caches, which already hold this pass's keys and values. */
void ha_attention_run(const ha_decoder *decoder, ha_decoder_state *state, const ha_segment *segments, size_t layer);

/* x[i] = cap tanh(scale x[i] / cap) (Gemma 2, arXiv 2408.00118, section 2). */
void ha_softcap(const ha_kernels *kernels, float *x, float scale, float cap, size_t n);

#endif
