/* The configuration of a decoder in a Hugging Face folder: transformers' configuration classes (names, defaults, rope_parameters). What is read is
 * bounded here, so that later products of extents cannot overflow. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "io/json.h"
#include "models/decoder_impl.h"
#include "models/decoder_layout.h"

ha_status
ha_decoder_config_check(const char *name, const ha_decoder_config *c, ha_error *err)
{
    if (c->n_kv_heads == 0 || c->n_heads % c->n_kv_heads != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: %zu attention heads are no multiple of %zu key-value heads", name, c->n_heads, c->n_kv_heads);
    }
    if (!(c->norm_eps > 0 && c->norm_eps < 1)) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: the norm's epsilon must be in (0, 1), got %g", name, (double)c->norm_eps);
    }
    if (!(c->query_scale > 0 && isfinite(c->query_scale))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: query_pre_attn_scalar must be > 0", name);
    }
    if (!(c->attn_softcap >= 0 && c->final_softcap >= 0 && isfinite(c->attn_softcap) && isfinite(c->final_softcap))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: logit soft-capping must be >= 0, got %g and %g", name, c->attn_softcap, c->final_softcap);
    }
    if (c->options & HA_LEARNED_POSITIONS) {
        return HA_OK;
    }
    if (c->head_dim % 2 != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: head size %zu is odd: rotary positions need pairs", name, c->head_dim);
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
    if (c->rope_scaling == HA_ROPE_YARN &&
        !(c->rope_beta_slow > 0 && c->rope_beta_fast >= c->rope_beta_slow && c->rope_original_context >= 1 && c->rope_attention_factor > 0 &&
          isfinite(c->rope_beta_fast) && isfinite(c->rope_original_context) && isfinite(c->rope_attention_factor))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: yarn rotary scaling needs 0 < beta_slow <= beta_fast, attention_factor > 0 and "
                       "original_max_position_embeddings >= 1", name);
    }
    return HA_OK;
}

/* config.json being read. */
typedef struct reader {
    const ha_json *json;
    const ha_json_node *root;
    const char *path;
    ha_error *err;
} reader;

static ha_status
get_size(const reader *r, const char *key, size_t fallback, size_t max, size_t *out)
{
    return ha_json_get_size(r->json, r->root, key, fallback, 1, max, out, r->err);
}

/* `fallback` when the member is absent, 0 when it is null. */
static ha_status
get_optional(const reader *r, const char *key, double fallback, double *out)
{
    const ha_json_node *node = ha_json_get(r->json, r->root, key);
    return ha_json_get_double(r->json, r->root, key, node == NULL ? fallback : 0, out, r->err);
}

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

/* A member that must be absent, null, or equal to `neutral` (a number, or a bool as 0 or 1). */
static ha_status
refuse_unless(const reader *r, const ha_json_node *object, const char *key, double neutral)
{
    const ha_json_node *node = ha_json_get(r->json, object, key);
    if (node == NULL || node->type == HA_JSON_NULL || (node->type == HA_JSON_NUMBER && node->number == neutral) ||
        (node->type == HA_JSON_TRUE && neutral == 1) || (node->type == HA_JSON_FALSE && neutral == 0)) {
        return HA_OK;
    }
    return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: '%s' is not supported", r->path, key);
}

/* Yu et al. 2023, arXiv 2309.00071; what is absent as in transformers' _compute_yarn_parameters. */
static ha_status
get_yarn(const reader *r, const ha_json_node *params, ha_decoder_config *c)
{
    ha_status status = HA_OK;
    double mscale = 0, mscale_all_dim = 0;
    c->rope_scaling = HA_ROPE_YARN;
    if ((status = ha_json_get_double(r->json, params, "beta_fast", 32, &c->rope_beta_fast, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "beta_slow", 1, &c->rope_beta_slow, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "mscale", 0, &mscale, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "mscale_all_dim", 0, &mscale_all_dim, r->err)) != HA_OK ||
        (status = ha_json_get_bool(r->json, params, "truncate", 1, &c->rope_truncate, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "factor", (double)c->max_position_embeddings / c->rope_original_context, &c->rope_factor,
                                     r->err)) != HA_OK) {
        return status;
    }
    const double stretch = c->rope_factor > 1 ? 0.1 * log(c->rope_factor) : 0;
    const double usual = mscale != 0 && mscale_all_dim != 0 ? (mscale * stretch + 1) / (mscale_all_dim * stretch + 1) : stretch + 1;
    return ha_json_get_double(r->json, params, "attention_factor", usual, &c->rope_attention_factor, r->err);
}

/* rope_parameters (transformers 5), or rope_theta beside rope_scaling (before). */
static ha_status
get_rope(const reader *r, ha_decoder_config *c)
{
    const ha_json_node *params = ha_json_get(r->json, r->root, "rope_parameters");
    if (params == NULL || params->type == HA_JSON_NULL) {
        params = ha_json_get(r->json, r->root, "rope_scaling");
    }
    if (params != NULL && params->type == HA_JSON_NULL) {
        params = NULL;
    }
    ha_status status = HA_OK;
    const char *type = "default";
    double original = 0;
    if ((status = ha_json_get_double(r->json, r->root, "rope_theta", 10000.0, &c->rope_theta, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "rope_theta", c->rope_theta, &c->rope_theta, r->err)) != HA_OK ||
        (status = ha_json_get_string(r->json, params, "type", type, &type, r->err)) != HA_OK ||
        (status = ha_json_get_string(r->json, params, "rope_type", type, &type, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "factor", 1.0, &c->rope_factor, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "low_freq_factor", 0.0, &c->rope_low_freq_factor, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "high_freq_factor", 0.0, &c->rope_high_freq_factor, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "original_max_position_embeddings", (double)c->max_position_embeddings, &original,
                                     r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, r->root, "original_max_position_embeddings", original, &c->rope_original_context, r->err)) != HA_OK ||
        (status = refuse_unless(r, params, "partial_rotary_factor", 1)) != HA_OK || (status = refuse_unless(r, params, "full_attention", 0)) != HA_OK ||
        (status = refuse_unless(r, params, "sliding_attention", 0)) != HA_OK) {
        return status;
    }
    if (strcmp(type, "linear") == 0) {
        c->rope_scaling = HA_ROPE_LINEAR;
    }
    else if (strcmp(type, "llama3") == 0) {
        c->rope_scaling = HA_ROPE_LLAMA3;
    }
    else if (strcmp(type, "yarn") == 0) {
        return get_yarn(r, params, c);
    }
    else if (strcmp(type, "default") != 0 && strcmp(type, "dynamic") != 0) {    /* dynamic begins to scale behind the context, where this decoder ends */
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: rotary scaling '%.40s' is not supported (linear, dynamic, yarn and llama3 are)", r->path, type);
    }
    return HA_OK;
}

static int
slides(const ha_decoder_config *c, size_t layer)
{
    return c->slides[layer / 8] >> layer % 8 & 1;
}

/* layer_types: what the family says without it, or what it says itself where the family listens to it. */
static ha_status
get_layer_types(const reader *r, ha_decoder_config *c)
{
    const ha_json_node *list = ha_json_get(r->json, r->root, "layer_types");
    if (list == NULL || list->type == HA_JSON_NULL) {
        return HA_OK;
    }
    if (list->type != HA_JSON_ARRAY || list->length != c->n_layers) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: layer_types must be a list of %zu names", r->path, c->n_layers);
    }
    size_t i = 0;
    for (const ha_json_node *item = ha_json_first(r->json, list); item != NULL; item = ha_json_next(r->json, item), i++) {
        const int sliding = item->type == HA_JSON_STRING && strcmp(item->string, "sliding_attention") == 0;
        if (!sliding && (item->type != HA_JSON_STRING || strcmp(item->string, "full_attention") != 0)) {
            return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: layer_types holds '%.40s' (supported: full_attention, sliding_attention)", r->path,
                           item->type == HA_JSON_STRING ? item->string : "what is no name");
        }
        if (sliding != slides(c, i) && (!(c->options & (HA_SLIDE_LATE | HA_SLIDE_EVEN)) || (sliding && c->sliding_window == 0))) {
            return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: layer_types: layer %zu of a %s is %s here", r->path, i, c->family->model_type,
                           sliding ? "not sliding" : "sliding");
        }
        c->slides[i / 8] = (uint8_t)((c->slides[i / 8] & ~(1u << i % 8)) | (unsigned)sliding << i % 8);
    }
    return HA_OK;
}

static ha_status
get_window(const reader *r, ha_decoder_config *c)
{
    ha_status status = HA_OK;
    int use = !(c->options & HA_SLIDE_LATE);
    double window = 0, first = 0;
    if (!(c->options & (HA_SLIDE_ALL | HA_SLIDE_LATE | HA_SLIDE_EVEN))) {
        return get_layer_types(r, c);
    }
    if ((status = ha_json_get_bool(r->json, r->root, "use_sliding_window", use, &use, r->err)) != HA_OK ||
        (status = get_optional(r, "sliding_window", (double)c->family->window, &window)) != HA_OK ||
        (c->options & HA_SLIDE_LATE && (status = ha_json_get_double(r->json, r->root, "max_window_layers", 28, &first, r->err)) != HA_OK)) {
        return status;
    }
    if (!(window >= 0 && window <= INT32_MAX && window == floor(window))) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: sliding_window must be an integer in 0..%d, got %g", r->path, INT32_MAX, window);
    }
    c->sliding_window = use ? (size_t)window : 0;
    for (size_t i = 0; i < c->n_layers && c->sliding_window > 0; i++) {
        const int slides_here = !(c->options & HA_SLIDE_EVEN && i % 2 != 0) && (double)i >= first;
        c->slides[i / 8] |= (uint8_t)((unsigned)slides_here << i % 8);
    }
    return get_layer_types(r, c);
}

static ha_status
get_sizes(const reader *r, ha_decoder_config *c)
{
    const ha_decoder_family *f = c->family;
    const ha_decoder_keys *k = f->keys;
    ha_status status = HA_OK;
    double eps = 0;
    if ((status = get_size(r, "vocab_size", f->vocab_size, HA_MAX_EXTENT, &c->vocab_size)) != HA_OK ||
        (status = get_size(r, k->hidden_size, f->hidden_size, HA_MAX_EXTENT, &c->hidden_size)) != HA_OK ||
        (status = get_size(r, k->intermediate_size, f->intermediate_size > 0 ? f->intermediate_size : 4 * c->hidden_size, HA_MAX_EXTENT,
                           &c->intermediate_size)) != HA_OK ||
        (status = get_size(r, k->n_layers, f->n_layers, HA_MAX_LAYERS, &c->n_layers)) != HA_OK ||
        (status = get_size(r, k->n_heads, f->n_heads, HA_MAX_HEADS, &c->n_heads)) != HA_OK ||
        (status = get_size(r, "num_key_value_heads", f->n_kv_heads > 0 ? f->n_kv_heads : c->n_heads, HA_MAX_HEADS, &c->n_kv_heads)) != HA_OK ||
        (status = get_size(r, "head_dim", f->head_dim > 0 ? f->head_dim : c->hidden_size / c->n_heads, HA_MAX_HEADS, &c->head_dim)) != HA_OK ||
        (status = get_size(r, k->context, f->context, INT32_MAX, &c->max_position_embeddings)) != HA_OK ||
        (status = ha_json_get_double(r->json, r->root, k->eps, f->eps, &eps, r->err)) != HA_OK ||
        (status = ha_json_get_bool(r->json, r->root, "tie_word_embeddings", (c->options & HA_TIED) != 0, &c->tied, r->err)) != HA_OK) {
        return status;
    }
    if (c->head_dim == 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s %zu is less than %zu heads", r->path, k->hidden_size, c->hidden_size, c->n_heads);
    }
    c->norm_eps = (float)eps;
    c->embedding_scale = c->options & HA_SCALED_EMBEDDING ? (float)sqrt((double)c->hidden_size) : 1;
    return HA_OK;
}

/* What the family leaves to config.json beside sizes and positions. */
static ha_status
get_options(const reader *r, ha_decoder_config *c)
{
    static const struct { const char *key; double neutral; } refused[] = {
        {"quantization_config", 0}, {"partial_rotary_factor", 1}, {"use_bidirectional_attention", 0}, {"use_mrope", 0},
        {"scale_attn_by_inverse_layer_idx", 0}, {"scale_attn_weights", 1}, {"add_cross_attention", 0},
    };
    const ha_decoder_family *f = c->family;
    const char *activation = NULL;
    double query = (double)c->head_dim;
    ha_status status = HA_OK;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        if ((status = refuse_unless(r, r->root, refused[i].key, refused[i].neutral)) != HA_OK) {
            return status;
        }
    }
    c->attention_bias = (c->options & (HA_QKV_BIAS | HA_ALL_BIAS)) != 0;
    c->output_bias = c->mlp_bias = (c->options & HA_ALL_BIAS) != 0;
    if (c->options & HA_OPTIONAL_BIAS) {
        status = ha_json_get_bool(r->json, r->root, "attention_bias", 0, &c->attention_bias, r->err);
        c->output_bias = c->attention_bias;
    }
    if (status == HA_OK && c->options & HA_OPTIONAL_MLP_BIAS) {
        status = ha_json_get_bool(r->json, r->root, "mlp_bias", 0, &c->mlp_bias, r->err);
    }
    if (status == HA_OK && c->options & HA_SOFTCAPS &&
        (status = ha_json_get_double(r->json, r->root, "query_pre_attn_scalar", 256, &query, r->err)) == HA_OK &&
        (status = get_optional(r, "attn_logit_softcapping", 50, &c->attn_softcap)) == HA_OK) {
        status = get_optional(r, "final_logit_softcapping", 30, &c->final_softcap);
    }
    c->query_scale = 1 / sqrt(query);
    if (status != HA_OK || (status = ha_json_get_string(r->json, r->root, f->keys->activation, f->activation, &activation, r->err)) != HA_OK) {
        return status;
    }
    if (c->options & HA_GELU_IS_TANH && strcmp(activation, "gelu") == 0) {
        activation = f->activation;
    }
    return ha_activation_named(r->path, f->keys->activation, activation, &c->activation, r->err);
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
    char path[4096], known[128];
    const char *type = NULL;
    ha_status status = read_json(folder, "config.json", 0, path, &json, err);
    if (status != HA_OK) {
        goto done;
    }
    const reader r = {json, ha_json_root(json), path, err};
    if ((status = ha_json_get_string(json, r.root, "model_type", "", &type, err)) != HA_OK) {
        goto done;
    }
    c.family = ha_decoder_family_named(type, strlen(type), 0);
    if (c.family == NULL) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.300s: model_type '%.40s' is not supported (supported: %s)", path, type, ha_decoder_families(known, 0));
        goto done;
    }
    c.options = c.family->options;
    if ((status = get_sizes(&r, &c)) != HA_OK || (status = get_options(&r, &c)) != HA_OK || (status = get_window(&r, &c)) != HA_OK ||
        (!(c.options & HA_LEARNED_POSITIONS) && (status = get_rope(&r, &c)) != HA_OK) ||
        (status = hf_stop_ids(json, path, &c, err)) != HA_OK || (status = ha_decoder_config_check(path, &c, err)) != HA_OK) {
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
