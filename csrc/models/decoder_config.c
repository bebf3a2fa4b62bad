/* Configurations of decoders. Sources: transformers' LlamaConfig and MistralConfig (names, defaults, rope_parameters), the GGUF specification's
 * "Standardized key-value pairs" (llama.*). What is read is bounded here, so that later products of extents cannot overflow. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "io/json.h"
#include "models/decoder_impl.h"

#define MAX_EXTENT ((size_t)1 << 24)    /* of one axis: a thousand times past today's models */
#define MAX_LAYERS 4096

static ha_status
check_config(const char *name, ha_decoder_config *c, ha_error *err)
{
    if (c->n_kv_heads == 0 || c->n_heads % c->n_kv_heads != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: %zu attention heads are no multiple of %zu key-value heads", name, c->n_heads, c->n_kv_heads);
    }
    if (c->head_dim % 2 != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: head size %zu is odd: rotary positions need pairs", name, c->head_dim);
    }
    if (!(c->rms_norm_eps > 0 && c->rms_norm_eps < 1)) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: the norm's epsilon must be in (0, 1), got %g", name, (double)c->rms_norm_eps);
    }
    if (!(c->rope_theta > 1 && isfinite(c->rope_theta))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: the rotary base must be > 1, got %g", name, c->rope_theta);
    }
    if (c->rope_scaling != HA_ROPE_PLAIN && !(c->rope_factor >= 1 && isfinite(c->rope_factor))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: the rotary scaling factor must be >= 1, got %g", name, c->rope_factor);
    }
    if (c->rope_scaling == HA_ROPE_LLAMA3 &&
        !(c->rope_low_freq_factor > 0 && c->rope_high_freq_factor > c->rope_low_freq_factor && c->rope_original_context >= 1 &&
          isfinite(c->rope_high_freq_factor) && isfinite(c->rope_original_context))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: llama3 rotary scaling needs 0 < low_freq_factor < high_freq_factor and "
                       "original_max_position_embeddings >= 1", name);
    }
    return HA_OK;
}

/* -- GGUF -- */

static ha_status
gguf_size(const ha_tensor_file *file, const char *key, size_t fallback, size_t max, size_t *out, ha_error *err)
{
    if (fallback != 0 && !ha_gguf_has(file, key)) {
        *out = fallback;
        return HA_OK;
    }
    uint64_t value = 0;
    ha_status status = ha_gguf_u64(file, key, &value, err);
    if (status == HA_OK && (value < 1 || value > max)) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF key %s must be in 1..%zu, got %llu", key, max, (unsigned long long)value);
    }
    *out = (size_t)value;
    return status;
}

static ha_status
gguf_double(const ha_tensor_file *file, const char *key, double fallback, double *out, ha_error *err)
{
    *out = fallback;
    return ha_gguf_has(file, key) ? ha_gguf_f64(file, key, out, err) : HA_OK;
}

/* Keys that change the arithmetic in ways this decoder does not follow. */
static ha_status
gguf_refuse(const ha_tensor_file *file, ha_error *err)
{
    static const struct { const char *key; double neutral; } scalars[] = {
        {"llama.expert_count", 0}, {"llama.logit_scale", 1}, {"llama.embedding_scale", 1}, {"llama.residual_scale", 1},
        {"llama.attention.scale", 0}, {"llama.attention.clamp_kqv", 0}, {"llama.attention.max_alibi_bias", 0},
        {"llama.attn_logit_softcapping", 0}, {"llama.final_logit_softcapping", 0}, {"llama.rope.scaling.attn_factor", 1},
    };
    for (size_t i = 0; i < sizeof(scalars) / sizeof(scalars[0]); i++) {
        double value = 0;
        ha_status status = gguf_double(file, scalars[i].key, scalars[i].neutral, &value, err);
        if (status != HA_OK) {
            return status;
        }
        if (value != scalars[i].neutral) {
            return ha_fail(err, HA_ERR_FORMAT, "GGUF key %s = %g is not supported", scalars[i].key, value);
        }
    }
    return HA_OK;
}

static ha_status
gguf_rope(const ha_tensor_file *file, ha_decoder_config *c, ha_error *err)
{
    ha_status status = HA_OK;
    const char *type = "none";
    size_t length = 4, rotated = 0;
    if ((status = gguf_double(file, "llama.rope.freq_base", 10000.0, &c->rope_theta, err)) != HA_OK ||
        (status = gguf_size(file, "llama.rope.dimension_count", c->head_dim, MAX_EXTENT, &rotated, err)) != HA_OK) {
        return status;
    }
    if (rotated != c->head_dim) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF key llama.rope.dimension_count = %zu: only whole heads (%zu) rotate here", rotated, c->head_dim);
    }
    if (ha_gguf_has(file, "llama.rope.scaling.type") &&
        (status = ha_gguf_string(file, "llama.rope.scaling.type", &type, &length, err)) != HA_OK) {
        return status;
    }
    c->rope_factor = 1;
    if (length == 6 && memcmp(type, "linear", 6) == 0) {
        c->rope_scaling = HA_ROPE_LINEAR;
        return gguf_double(file, "llama.rope.scaling.factor", 1.0, &c->rope_factor, err);
    }
    if (length != 4 || memcmp(type, "none", 4) != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "rotary scaling '%.*s' is not supported (linear and llama3 are)", (int)(length < 40 ? length : 40), type);
    }
    return HA_OK;
}

static ha_status
gguf_stop_ids(const ha_tensor_file *file, ha_decoder_config *c, ha_error *err)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        uint64_t id = 0;
        if (!ha_gguf_has(file, keys[i])) {
            continue;
        }
        ha_status status = ha_gguf_u64(file, keys[i], &id, err);
        if (status != HA_OK) {
            return status;
        }
        if (id >= c->vocab_size) {
            return ha_fail(err, HA_ERR_FORMAT, "GGUF key %s = %llu lies outside the vocabulary of %zu", keys[i], (unsigned long long)id, c->vocab_size);
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
    size_t length = 0, value_dim = 0, window = 0;
    double eps = 0;
    ha_status status = ha_gguf_string(file, "general.architecture", &name, &length, err);
    if (status != HA_OK) {
        return status;
    }
    if (length != 5 || memcmp(name, "llama", 5) != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF architecture '%.*s' is not supported (llama is)", (int)(length < 40 ? length : 40), name);
    }
    memcpy(c.model_type, "llama", 6);
    const ha_tensor *embedding = ha_tensor_file_find(file, "token_embd.weight");
    if (embedding == NULL || embedding->ndim != 2 || embedding->shape[0] < 1 || embedding->shape[0] > MAX_EXTENT) {
        return ha_fail(err, HA_ERR_FORMAT, "tensor 'token_embd.weight' is missing or no matrix of 1..%zu rows", MAX_EXTENT);
    }
    c.vocab_size = embedding->shape[0];
    if ((status = gguf_size(file, "llama.embedding_length", 0, MAX_EXTENT, &c.hidden_size, err)) != HA_OK ||
        (status = gguf_size(file, "llama.block_count", 0, MAX_LAYERS, &c.n_layers, err)) != HA_OK ||
        (status = gguf_size(file, "llama.context_length", 0, INT32_MAX, &c.max_position_embeddings, err)) != HA_OK ||
        (status = gguf_size(file, "llama.feed_forward_length", 0, MAX_EXTENT, &c.intermediate_size, err)) != HA_OK ||
        (status = gguf_size(file, "llama.attention.head_count", 0, 65536, &c.n_heads, err)) != HA_OK ||
        (status = gguf_size(file, "llama.attention.head_count_kv", c.n_heads, 65536, &c.n_kv_heads, err)) != HA_OK ||
        (status = ha_gguf_f64(file, "llama.attention.layer_norm_rms_epsilon", &eps, err)) != HA_OK ||
        (status = gguf_size(file, "llama.attention.key_length", c.hidden_size / c.n_heads, 65536, &c.head_dim, err)) != HA_OK ||
        (status = gguf_size(file, "llama.attention.value_length", c.head_dim, 65536, &value_dim, err)) != HA_OK ||
        (status = gguf_size(file, "llama.attention.sliding_window", c.max_position_embeddings, INT32_MAX, &window, err)) != HA_OK) {
        return status;
    }
    if (value_dim != c.head_dim || c.head_dim == 0) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF: heads of %zu key and %zu value dimensions are not supported", c.head_dim, value_dim);
    }
    if (window < c.max_position_embeddings) {
        c.max_position_embeddings = window;     /* up to the window's width, a sliding window changes nothing */
    }
    c.rms_norm_eps = (float)eps;
    c.tied = ha_tensor_file_find(file, "output.weight") == NULL;
    if ((status = gguf_refuse(file, err)) != HA_OK || (status = gguf_rope(file, &c, err)) != HA_OK ||
        (status = gguf_stop_ids(file, &c, err)) != HA_OK || (status = check_config("GGUF", &c, err)) != HA_OK) {
        return status;
    }
    *out = c;
    return HA_OK;
}

/* -- Hugging Face -- */

/* folder/name parsed; *out NULL when an optional file is absent. */
static ha_status
read_json(const char *folder, const char *name, int optional, char path[4096], ha_json **out, ha_error *err)
{
    ha_map_file file = {0};
    *out = NULL;
    const int n = snprintf(path, 4096, "%s/%s", folder, name);
    if (n < 0 || n >= 4096) {
        return ha_fail(err, HA_ERR_VALUE, "path is too long: %.200s...", folder);
    }
    if (optional) {
        FILE *probe = fopen(path, "rb");
        if (probe == NULL) {
            return HA_OK;
        }
        fclose(probe);
    }
    ha_status status = ha_map_file_open(path, &file, err);
    if (status == HA_OK) {
        status = ha_json_parse(path, (const char *)file.data, file.size, out, err);
    }
    ha_map_file_close(&file);
    return status;
}

/* A member that must be absent, null, or equal to `neutral` (a number). */
static ha_status
refuse_unless(const ha_json *json, const ha_json_node *object, const char *path, const char *key, double neutral, ha_error *err)
{
    const ha_json_node *node = ha_json_get(json, object, key);
    if (node == NULL || node->type == HA_JSON_NULL || (node->type == HA_JSON_NUMBER && node->number == neutral)) {
        return HA_OK;
    }
    return ha_fail(err, HA_ERR_FORMAT, "%.300s: '%s' is not supported", path, key);
}

/* rope_parameters (transformers 5), or rope_theta beside rope_scaling (before). */
static ha_status
hf_rope(const ha_json *json, const char *path, ha_decoder_config *c, ha_error *err)
{
    const ha_json_node *root = ha_json_root(json);
    const ha_json_node *params = ha_json_get(json, root, "rope_parameters");
    if (params == NULL || params->type == HA_JSON_NULL) {
        params = ha_json_get(json, root, "rope_scaling");
    }
    if (params != NULL && params->type == HA_JSON_NULL) {
        params = NULL;
    }
    ha_status status = HA_OK;
    const char *type = "default";
    if ((status = ha_json_get_double(json, root, "rope_theta", 10000.0, &c->rope_theta, err)) != HA_OK ||
        (status = ha_json_get_double(json, params, "rope_theta", c->rope_theta, &c->rope_theta, err)) != HA_OK ||
        (status = ha_json_get_string(json, params, "type", type, &type, err)) != HA_OK ||
        (status = ha_json_get_string(json, params, "rope_type", type, &type, err)) != HA_OK ||
        (status = ha_json_get_double(json, params, "factor", 1.0, &c->rope_factor, err)) != HA_OK ||
        (status = ha_json_get_double(json, params, "low_freq_factor", 0.0, &c->rope_low_freq_factor, err)) != HA_OK ||
        (status = ha_json_get_double(json, params, "high_freq_factor", 0.0, &c->rope_high_freq_factor, err)) != HA_OK ||
        (status = ha_json_get_double(json, params, "original_max_position_embeddings", 0.0, &c->rope_original_context, err)) != HA_OK ||
        (status = refuse_unless(json, params, path, "partial_rotary_factor", 1.0, err)) != HA_OK) {
        return status;
    }
    if (strcmp(type, "linear") == 0) {
        c->rope_scaling = HA_ROPE_LINEAR;
    }
    else if (strcmp(type, "llama3") == 0) {
        c->rope_scaling = HA_ROPE_LLAMA3;
    }
    else if (strcmp(type, "default") != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: rotary scaling '%.40s' is not supported (linear and llama3 are)", path, type);
    }
    return HA_OK;
}

static ha_status
hf_sizes(const ha_json *json, const char *path, ha_decoder_config *c, ha_error *err)
{
    const ha_json_node *root = ha_json_root(json);
    ha_status status = HA_OK;
    size_t window = 0;
    double eps = 0;
    const int mistral = strcmp(c->model_type, "mistral") == 0;
    if ((status = ha_json_get_size(json, root, "vocab_size", 32000, 1, MAX_EXTENT, &c->vocab_size, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "hidden_size", 4096, 1, MAX_EXTENT, &c->hidden_size, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "intermediate_size", mistral ? 14336 : 11008, 1, MAX_EXTENT, &c->intermediate_size, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "num_hidden_layers", 32, 1, MAX_LAYERS, &c->n_layers, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "num_attention_heads", 32, 1, 65536, &c->n_heads, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "num_key_value_heads", mistral ? 8 : c->n_heads, 1, 65536, &c->n_kv_heads, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "head_dim", c->hidden_size / c->n_heads, 1, 65536, &c->head_dim, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "max_position_embeddings", mistral ? 4096 * 32 : 2048, 1, INT32_MAX,
                                   &c->max_position_embeddings, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "sliding_window", c->max_position_embeddings, 1, INT32_MAX, &window, err)) != HA_OK ||
        (status = ha_json_get_double(json, root, "rms_norm_eps", 1e-6, &eps, err)) != HA_OK ||
        (status = ha_json_get_bool(json, root, "attention_bias", 0, &c->attention_bias, err)) != HA_OK ||
        (status = ha_json_get_bool(json, root, "mlp_bias", 0, &c->mlp_bias, err)) != HA_OK ||
        (status = ha_json_get_bool(json, root, "tie_word_embeddings", 0, &c->tied, err)) != HA_OK) {
        return status;
    }
    if (c->head_dim == 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: hidden_size %zu is less than %zu heads", path, c->hidden_size, c->n_heads);
    }
    if (mistral && window < c->max_position_embeddings) {
        c->max_position_embeddings = window;    /* up to the window's width, a sliding window changes nothing */
    }
    c->rms_norm_eps = (float)eps;
    return HA_OK;
}

/* eos_token_id: a number or a list of them. */
static ha_status
hf_stop_ids(const ha_json *json, const char *path, ha_decoder_config *c, ha_error *err)
{
    const ha_json_node *node = ha_json_get(json, ha_json_root(json), "eos_token_id");
    if (node == NULL || node->type == HA_JSON_NULL) {
        return HA_OK;
    }
    c->n_stop_ids = 0;
    const int list = node->type == HA_JSON_ARRAY;
    for (const ha_json_node *id = list ? ha_json_first(json, node) : node; id != NULL; id = list ? ha_json_next(json, id) : NULL) {
        if (id->type != HA_JSON_NUMBER || !(id->number >= 0 && id->number < (double)c->vocab_size) || id->number != floor(id->number)) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: eos_token_id must hold ids below %zu", path, c->vocab_size);
        }
        if (c->n_stop_ids == HA_MAX_STOP_IDS) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: eos_token_id holds more than %d ids", path, HA_MAX_STOP_IDS);
        }
        c->stop_ids[c->n_stop_ids++] = (int32_t)id->number;
    }
    return HA_OK;
}

ha_status
ha_decoder_config_hf(const char *folder, ha_decoder_config *out, ha_error *err)
{
    ha_decoder_config c = {0};
    ha_json *json = NULL, *generation = NULL;
    char path[4096];
    const char *type = NULL, *activation = NULL;
    ha_status status = read_json(folder, "config.json", 0, path, &json, err);
    if (status != HA_OK) {
        goto done;
    }
    const ha_json_node *root = ha_json_root(json);
    if ((status = ha_json_get_string(json, root, "model_type", "", &type, err)) != HA_OK ||
        (status = ha_json_get_string(json, root, "hidden_act", "silu", &activation, err)) != HA_OK) {
        goto done;
    }
    if (strcmp(type, "llama") != 0 && strcmp(type, "mistral") != 0) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.300s: model_type '%.40s' is not supported (llama and mistral are)", path, type);
        goto done;
    }
    if (strcmp(activation, "silu") != 0) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.300s: hidden_act '%.40s' is not supported (silu is)", path, activation);
        goto done;
    }
    memcpy(c.model_type, type, strlen(type) + 1);
    if ((status = hf_sizes(json, path, &c, err)) != HA_OK || (status = hf_rope(json, path, &c, err)) != HA_OK ||
        (status = refuse_unless(json, root, path, "quantization_config", 0, err)) != HA_OK ||
        (status = refuse_unless(json, root, path, "partial_rotary_factor", 1, err)) != HA_OK ||
        (status = hf_stop_ids(json, path, &c, err)) != HA_OK || (status = check_config(path, &c, err)) != HA_OK) {
        goto done;
    }
    status = read_json(folder, "generation_config.json", 1, path, &generation, err);    /* its ids stand before config.json's */
    if (status == HA_OK && generation != NULL) {
        status = hf_stop_ids(generation, path, &c, err);
    }
    *out = c;
done:
    ha_json_free(json);
    ha_json_free(generation);
    return status;
}
