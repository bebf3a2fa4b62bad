/* The families of decoders as data: what a family has, the keys and defaults of its config.json, and the names of its tensors in both formats. */
#ifndef HARMAUG_MODELS_DECODER_LAYOUT_H
#define HARMAUG_MODELS_DECODER_LAYOUT_H

#include <stddef.h>

#include "kernels/kernels.h"

/* Options of a family that its files alone need, beside those of decoder.h. */
enum {
    HA_NORM_LESS_ONE = 1 << 8,      /* Hugging Face stores a norm's weight less one */
    HA_CONV1D = 1 << 9,             /* query, key and value are one matrix; Hugging Face stores matrices as (in, out) */
    HA_ROTARY_PAIRS = 1 << 10,      /* GGUF stores rows of queries and keys so that (2i, 2i + 1) rotate together */
    HA_SCALED_EMBEDDING = 1 << 11,  /* by sqrt(hidden_size) */
    HA_TIED = 1 << 12,              /* unless config.json says otherwise */
    HA_QKV_BIAS = 1 << 13, HA_ALL_BIAS = 1 << 14,
    HA_OPTIONAL_BIAS = 1 << 15,     /* attention_bias: all four of attention's matrices */
    HA_OPTIONAL_MLP_BIAS = 1 << 16, /* mlp_bias */
    HA_SLIDE_ALL = 1 << 17,         /* every layer has the sliding window ... */
    HA_SLIDE_LATE = 1 << 18,        /* ... with use_sliding_window, those from max_window_layers on */
    HA_SLIDE_EVEN = 1 << 19,        /* ... every second one, from the first on */
    HA_SOFTCAPS = 1 << 20,          /* query_pre_attn_scalar and logit soft-capping */
    HA_GELU_IS_TANH = 1 << 21,      /* an activation "gelu" means its tanh approximation */
};

/* A layer's tensors. */
typedef enum ha_decoder_role {
    HA_ROLE_ATTENTION_NORM, HA_ROLE_ATTENTION_POST_NORM, HA_ROLE_MLP_NORM, HA_ROLE_MLP_POST_NORM, HA_ROLE_QUERY_NORM, HA_ROLE_KEY_NORM,
    HA_ROLE_QKV, HA_ROLE_QUERY, HA_ROLE_KEY, HA_ROLE_VALUE, HA_ROLE_OUTPUT, HA_ROLE_GATE, HA_ROLE_UP, HA_ROLE_DOWN, HA_N_ROLES
} ha_decoder_role;

/* Names without the ".weight" or ".bias" behind them. */
typedef struct ha_decoder_names {
    const char *root;               /* before all but the head's; a file may leave it out */
    const char *embedding, *positions, *final_norm, *layer;     /* layer: before its number */
    const char *head;
    const char *roles[HA_N_ROLES];  /* behind the layer's number and a point */
} ha_decoder_names;

/* Keys of config.json. */
typedef struct ha_decoder_keys {
    const char *hidden_size, *intermediate_size, *n_layers, *n_heads, *context, *eps, *activation;
} ha_decoder_keys;

typedef struct ha_decoder_family {
    const char *model_type;         /* of config.json */
    const char *architecture;       /* general.architecture of GGUF; NULL: goes as another */
    const ha_decoder_names *names;  /* Hugging Face */
    const ha_decoder_keys *keys;
    unsigned options;
    const char *activation;
    /* where config.json is silent, as in transformers' configuration; 0 means intermediate 4 hidden_size, n_kv_heads n_heads, head_dim hidden_size / n_heads */
    size_t vocab_size, hidden_size, intermediate_size, n_layers, n_heads, n_kv_heads, head_dim, context, window;
    double eps;
} ha_decoder_family;

extern const ha_decoder_names ha_gguf_names;

/* By config.json's name or by GGUF's; NULL: not known. */
const ha_decoder_family *ha_decoder_family_named(const char *name, size_t length, int gguf);

/* "llama, mistral, ..." into out, for messages. */
const char *ha_decoder_families(char out[128], int gguf);

#endif
