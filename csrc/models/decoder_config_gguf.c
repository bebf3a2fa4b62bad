/* The configuration of a decoder in a GGUF file: the specification's "Standardized key-value pairs", and what llama.cpp takes where a key is absent. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/decoder_impl.h"
#include "models/decoder_layout.h"

/* A file and its architecture, before whose keys the architecture's name stands. */
typedef struct reader {
    const ha_tensor_file *file;
    const char *name;
    ha_error *err;
    char key[128];
} reader;

static const char *
key_of(reader *r, const char *suffix)
{
    snprintf(r->key, sizeof(r->key), "%s.%s", r->name, suffix);
    return r->key;
}

/* fallback 0: the key must be there */
static ha_status
get_size(reader *r, const char *suffix, size_t fallback, size_t max, size_t *out)
{
    const char *key = key_of(r, suffix);
    if (fallback != 0 && !ha_gguf_has(r->file, key)) {
        *out = fallback;
        return HA_OK;
    }
    uint64_t value = 0;
    ha_status status = ha_gguf_u64(r->file, key, &value, r->err);
    if (status == HA_OK && (value < 1 || value > max)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "GGUF key %s must be in 1..%zu, got %llu", key, max, (unsigned long long)value);
    }
    *out = (size_t)value;
    return status;
}

static ha_status
get_double(reader *r, const char *suffix, double fallback, double *out)
{
    const char *key = key_of(r, suffix);
    *out = fallback;
    return ha_gguf_has(r->file, key) ? ha_gguf_f64(r->file, key, out, r->err) : HA_OK;
}

/* Keys that change the arithmetic in ways this decoder does not follow. */
static ha_status
refuse(reader *r, unsigned options)
{
    static const struct { const char *suffix; double neutral; } scalars[] = {
        {"expert_count", 0}, {"logit_scale", 1}, {"embedding_scale", 1}, {"residual_scale", 1},
        {"attention.scale", 0}, {"attention.clamp_kqv", 0}, {"attention.max_alibi_bias", 0},
        {"rope.scaling.attn_factor", 1}, {"rope.scaling.yarn_ext_factor", 1}, {"rope.scaling.yarn_attn_factor", 1}, {"rope.scale_linear", 1},
        {"attn_logit_softcapping", 0}, {"final_logit_softcapping", 0},
    };
    const size_t n = sizeof(scalars) / sizeof(scalars[0]) - (options & HA_SOFTCAPS ? 2 : 0);
    for (size_t i = 0; i < n; i++) {
        double value = 0;
        ha_status status = get_double(r, scalars[i].suffix, scalars[i].neutral, &value);
        if (status != HA_OK) {
            return status;
        }
        if (value != scalars[i].neutral) {
            return ha_fail(r->err, HA_ERR_FORMAT, "GGUF key %s = %g is not supported", r->key, value);
        }
    }
    return HA_OK;
}

static ha_status
get_rope(reader *r, ha_decoder_config *c)
{
    ha_status status = HA_OK;
    const char *type = "linear";
    size_t length = 6, rotated = 0;
    if ((status = get_double(r, "rope.freq_base", 10000.0, &c->rope_theta)) != HA_OK ||
        (status = get_size(r, "rope.dimension_count", c->head_dim, HA_MAX_EXTENT, &rotated)) != HA_OK) {
        return status;
    }
    if (rotated != c->head_dim) {
        return ha_fail(r->err, HA_ERR_FORMAT, "GGUF key %s = %zu: only whole heads (%zu) rotate here", r->key, rotated, c->head_dim);
    }
    if (ha_gguf_has(r->file, key_of(r, "rope.scaling.type")) && (status = ha_gguf_string(r->file, r->key, &type, &length, r->err)) != HA_OK) {
        return status;
    }
    c->rope_factor = 1;
    if (length == 4 && memcmp(type, "none", 4) == 0) {
        return HA_OK;
    }
    if ((status = get_double(r, "rope.scaling.factor", 1.0, &c->rope_factor)) != HA_OK) {
        return status;
    }
    if (length == 6 && memcmp(type, "linear", 6) == 0) {
        c->rope_scaling = c->rope_factor != 1 ? HA_ROPE_LINEAR : HA_ROPE_PLAIN;
        return HA_OK;
    }
    if (length != 4 || memcmp(type, "yarn", 4) != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "rotary scaling '%.*s' is not supported (linear, yarn and llama3 are)", (int)(length < 40 ? length : 40), type);
    }
    c->rope_scaling = HA_ROPE_YARN;
    c->rope_truncate = 1;
    if ((status = get_double(r, "rope.scaling.original_context_length", (double)c->max_position_embeddings, &c->rope_original_context)) != HA_OK ||
        (status = get_double(r, "rope.scaling.yarn_beta_fast", 32, &c->rope_beta_fast)) != HA_OK ||
        (status = get_double(r, "rope.scaling.yarn_beta_slow", 1, &c->rope_beta_slow)) != HA_OK) {
        return status;
    }
    c->rope_attention_factor = 1 + 0.1 * log(c->rope_factor);
    return HA_OK;
}

static ha_status
get_attention(reader *r, ha_decoder_config *c)
{
    size_t value_dim = 0, window = 0;
    ha_status status = HA_OK;
    if ((status = get_size(r, "attention.head_count", 0, HA_MAX_HEADS, &c->n_heads)) != HA_OK ||
        (status = get_size(r, "attention.head_count_kv", c->n_heads, HA_MAX_HEADS, &c->n_kv_heads)) != HA_OK ||
        (status = get_size(r, "attention.key_length", c->hidden_size / c->n_heads, HA_MAX_HEADS, &c->head_dim)) != HA_OK ||
        (status = get_size(r, "attention.value_length", c->head_dim, HA_MAX_HEADS, &value_dim)) != HA_OK ||
        (status = get_size(r, "attention.sliding_window", c->family->window > 0 && c->options & HA_SLIDE_EVEN ? c->family->window : INT32_MAX, INT32_MAX,
                           &window)) != HA_OK) {
        return status;
    }
    if (value_dim != c->head_dim || c->head_dim == 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "GGUF: heads of %zu key and %zu value dimensions are not supported", c->head_dim, value_dim);
    }
    if (c->options & HA_SLIDE_EVEN) {
        c->sliding_window = window;
        for (size_t i = 0; i < c->n_layers; i += 2) {
            c->slides[i / 8] |= (uint8_t)(1u << i % 8);
        }
    }
    else if (window < c->max_position_embeddings) {
        c->max_position_embeddings = window;    /* readers differ in whether it slides: up to its width it changes nothing */
    }
    c->query_scale = 1 / sqrt((double)c->head_dim);
    if (c->options & HA_SOFTCAPS) {
        if (c->n_layers == 46) {                /* Gemma 2 of 27 B has query_pre_attn_scalar 144, which no key says */
            c->query_scale = 1 / sqrt((double)c->hidden_size / (double)c->n_heads);
        }
        if ((status = get_double(r, "attn_logit_softcapping", 50, &c->attn_softcap)) != HA_OK ||
            (status = get_double(r, "final_logit_softcapping", 30, &c->final_softcap)) != HA_OK) {
            return status;
        }
    }
    return HA_OK;
}

static ha_status
get_stop_ids(reader *r, ha_decoder_config *c)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        uint64_t id = 0;
        if (!ha_gguf_has(r->file, keys[i])) {
            continue;
        }
        ha_status status = ha_gguf_u64(r->file, keys[i], &id, r->err);
        if (status != HA_OK) {
            return status;
        }
        if (id >= c->vocab_size) {
            return ha_fail(r->err, HA_ERR_FORMAT, "GGUF key %s = %llu lies outside the vocabulary of %zu", keys[i], (unsigned long long)id, c->vocab_size);
        }
        c->stop_ids[c->n_stop_ids++] = (int32_t)id;
    }
    return HA_OK;
}

ha_status
ha_decoder_config_gguf(const ha_tensor_file *file, ha_decoder_config *out, ha_error *err)
{
    ha_decoder_config c = {.gguf = 1};
    const char *name = NULL;
    char known[128];
    size_t length = 0;
    double eps = 0;
    ha_status status = ha_gguf_string(file, "general.architecture", &name, &length, err);
    if (status != HA_OK) {
        return status;
    }
    c.family = ha_decoder_family_named(name, length, 1);
    if (c.family == NULL) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF architecture '%.*s' is not supported (supported: %s)", (int)(length < 40 ? length : 40), name,
                       ha_decoder_families(known, 1));
    }
    reader r = {.file = file, .name = c.family->architecture, .err = err};
    c.options = c.family->options & ~(unsigned)HA_NORM_LESS_ONE;       /* GGUF stores the sum */
    const ha_tensor *embedding = ha_tensor_file_find(file, "token_embd.weight");
    if (embedding == NULL || embedding->ndim != 2 || embedding->shape[0] < 1 || embedding->shape[0] > HA_MAX_EXTENT) {
        return ha_fail(err, HA_ERR_FORMAT, "tensor 'token_embd.weight' is missing or no matrix of 1..%zu rows", HA_MAX_EXTENT);
    }
    c.vocab_size = embedding->shape[0];
    if ((status = get_size(&r, "embedding_length", 0, HA_MAX_EXTENT, &c.hidden_size)) != HA_OK ||
        (status = get_size(&r, "block_count", 0, HA_MAX_LAYERS, &c.n_layers)) != HA_OK ||
        (status = get_size(&r, "context_length", 0, INT32_MAX, &c.max_position_embeddings)) != HA_OK ||
        (status = get_size(&r, "feed_forward_length", 0, HA_MAX_EXTENT, &c.intermediate_size)) != HA_OK ||
        (status = ha_gguf_f64(file, key_of(&r, c.options & HA_LAYER_NORM ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"), &eps,
                              err)) != HA_OK ||
        (status = get_attention(&r, &c)) != HA_OK || (status = refuse(&r, c.options)) != HA_OK ||
        (!(c.options & HA_LEARNED_POSITIONS) && (status = get_rope(&r, &c)) != HA_OK) ||
        (status = ha_activation_named("GGUF", "activation", c.family->activation, &c.activation, err)) != HA_OK) {
        return status;
    }
    c.norm_eps = (float)eps;
    c.embedding_scale = c.options & HA_SCALED_EMBEDDING ? (float)sqrt((double)c.hidden_size) : 1;
    c.tied = ha_tensor_file_find(file, "output.weight") == NULL;
    if ((status = get_stop_ids(&r, &c)) != HA_OK || (status = ha_decoder_config_check("GGUF", &c, err)) != HA_OK) {
        return status;
    }
    *out = c;
    return HA_OK;
}
