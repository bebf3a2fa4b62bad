/* A causal decoder of the Llama family: token embedding, n layers of (RMSNorm, grouped-query attention with rotary positions, RMSNorm, SwiGLU),
 * RMSNorm, head. Read from a Hugging Face folder (config.json, safetensors) or a GGUF file; immutable after opening.
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

typedef enum ha_rope_scaling { HA_ROPE_PLAIN, HA_ROPE_LINEAR, HA_ROPE_LLAMA3 } ha_rope_scaling;

/* Names as in config.json. */
typedef struct ha_decoder_config {
    char model_type[32];            /* "llama", "mistral" */
    int gguf;                       /* query and key rows stand in GGUF's order: pairs (2i, 2i + 1) rotate together */
    size_t vocab_size, hidden_size, n_layers, n_heads, n_kv_heads, head_dim, intermediate_size;
    size_t max_position_embeddings; /* the context: no more positions than this; a sliding window narrower than it bounds it */
    float rms_norm_eps;
    double rope_theta;
    ha_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor, rope_original_context;
    int attention_bias, mlp_bias;   /* Hugging Face: as configured; GGUF: as the tensors are there */
    int tied;                       /* the head is the token embedding */
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
