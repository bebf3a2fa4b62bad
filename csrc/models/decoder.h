/* A causal decoder: token embedding, n layers of (norm, grouped-query attention, norm, MLP), norm, head. Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2 and
 * GPT-2 are one program over options that decoder_layout.c lists; read from a Hugging Face folder (config.json, safetensors) or a GGUF file; immutable
 * after opening.
 *
 * One forward pass takes ragged segments: prompts being read and samples being continued, in any mixture, as rows of the same matrix products.
 * Whatever else is in the pass, a row's result depends on its own earlier tokens and its position alone, bit for bit: products are row-wise
 * by the kernels' contract, and attention sums over keys in an order that the row's position (and, for a continuation, the length of
 * its shared prefix) fixes. */
#ifndef HARMAUG_MODELS_DECODER_H
#define HARMAUG_MODELS_DECODER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "kernels/kernels.h"
#include "models/kv_cache.h"

#define HA_MAX_STOP_IDS 16
#define HA_MAX_LAYERS 4096

typedef enum ha_rope_scaling { HA_ROPE_PLAIN, HA_ROPE_LINEAR, HA_ROPE_LLAMA3, HA_ROPE_YARN } ha_rope_scaling;

/* What sets the families of decoders apart, for the program that runs them all. */
enum {
    HA_LAYER_NORM = 1 << 0,         /* norms have a mean and a bias (Ba et al. 2016); else root mean square */
    HA_POST_NORMS = 1 << 1,         /* attention's and the MLP's results are normed before they are added */
    HA_HEAD_NORMS = 1 << 2,         /* each head's query and key are normed before they rotate */
    HA_LEARNED_POSITIONS = 1 << 3,  /* a table beside the token embedding; else rotary */
    HA_UNGATED = 1 << 4,            /* the MLP is act(up); else act(gate) * up */
};

/* Names as in config.json. */
typedef struct ha_decoder_config {
    const struct ha_decoder_family *family;
    unsigned options;
    int gguf;
    size_t vocab_size, hidden_size, n_layers, n_heads, n_kv_heads, head_dim, intermediate_size;
    size_t max_position_embeddings; /* the context: no more positions than this */
    int tied;                       /* the head is the token embedding */
    int attention_bias, output_bias, mlp_bias;  /* query, key and value; output; MLP. Hugging Face: as configured; GGUF: as the tensors are there */
    float norm_eps, embedding_scale;
    ha_activation activation;
    double rope_theta;
    ha_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor, rope_original_context;
    double rope_beta_fast, rope_beta_slow, rope_attention_factor;
    int rope_truncate;              /* yarn: its range ends at whole dimensions */
    double query_scale;             /* scores are query . key times it */
    double attn_softcap, final_softcap;     /* cap * tanh(x / cap) of scores and of logits; 0: none */
    size_t sliding_window;          /* keys that a position sees in a sliding layer, itself included; 0: no layer slides */
    uint8_t slides[HA_MAX_LAYERS / 8];      /* one bit a layer */
    size_t n_stop_ids;              /* end of sequence, end of turn */
    int32_t stop_ids[HA_MAX_STOP_IDS];
} ha_decoder_config;

typedef struct ha_decoder ha_decoder;

/* Opens a .gguf file, or a folder with config.json and safetensors, packing every matrix into `format` once; embedding rows stay in the mapping.
 * An architecture, option or tensor type that is not honoured exactly, and a missing, misshapen or unexpected tensor, is HA_ERR_FORMAT by name. */
ha_status ha_decoder_open(const char *path, ha_weight_format format, int n_threads, ha_decoder **out, ha_error *err);
void ha_decoder_free(ha_decoder *decoder);
const ha_decoder_config *ha_decoder_config_of(const ha_decoder *decoder);
ha_weight_format ha_decoder_format(const ha_decoder *decoder);
const ha_kernels *ha_decoder_kernels(const ha_decoder *decoder);     /* the table that packed the weights */
size_t ha_decoder_weight_bytes(const ha_decoder *decoder);      /* of the packed block */

/* A cache that fits this decoder. */
ha_status ha_decoder_cache_new(const ha_decoder *decoder, size_t capacity, ha_kv_cache **out, ha_error *err);

/* Buffers of forward passes of up to max_rows rows; one per concurrent caller. */
typedef struct ha_decoder_state ha_decoder_state;
ha_status ha_decoder_state_new(const ha_decoder *decoder, size_t max_rows, int n_threads, ha_decoder_state **out, ha_error *err);
void ha_decoder_state_free(ha_decoder_state *state);

/* Consecutive new tokens of one sequence. Their positions begin at (prefix != NULL ? prefix->length : 0) + own->length. */
typedef struct ha_segment {
    const int32_t *ids;
    size_t n_ids;                   /* >= 1 */
    const ha_kv_cache *prefix;      /* read only; segments that share one stand together for speed. NULL: none */
    ha_kv_cache *own;               /* takes the new keys and values; own->length grows by n_ids on success */
} ha_segment;

/* Runs the layers over all segments' tokens; hidden states of the rows, in order, are kept in `state` until the next call.
 * HA_ERR_VALUE: an id outside the vocabulary, a position outside the context, more rows than max_rows, a cache too small. */
ha_status ha_decoder_forward(const ha_decoder *decoder, ha_decoder_state *state, const ha_segment *segments, size_t n_segments, ha_error *err);

/* Next-token logits (n_rows, vocab_size) of the named rows of the last forward pass. n_rows <= max_rows. */
ha_status ha_decoder_head(const ha_decoder *decoder, ha_decoder_state *state, const size_t *rows, size_t n_rows, float *logits, ha_error *err);

#endif
