/* config.json of an encoder: read once, checked whole, so that every later product of extents is known to be sane. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "models/activation.h"
#include "models/encoder.h"
#include "models/encoder_layout.h"

/* Far above any published encoder, and small enough that a product of any two stays below 2^48. */
#define MAX_EXTENT ((size_t)1 << 24)
#define MAX_POSITIONS ((size_t)1 << 18)
#define MAX_LABELS 4096
#define MAX_KERNEL 64

ha_status
ha_path_join(const char *folder, const char *name, char *out, size_t size, ha_error *err)
{
    const int n = snprintf(out, size, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= size) {
        return ha_fail(err, HA_ERR_VALUE, "%.200s...: the path is longer than %zu bytes", folder, size - 1);
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
get_size(const reader *r, const char *key, size_t fallback, size_t min, size_t max, size_t *out)
{
    return ha_json_get_size(r->json, r->root, key, fallback, min, max, out, r->err);
}

static ha_status
get_bool(const reader *r, const char *key, int fallback, int *out)
{
    return ha_json_get_bool(r->json, r->root, key, fallback, out, r->err);
}

/* An integer of which every negative value, and 0, means that there is none: 0. */
static ha_status
get_positive_or_none(const reader *r, const char *key, size_t max, size_t *out)
{
    double value;
    const ha_status status = ha_json_get_double(r->json, r->root, key, -1, &value, r->err);
    if (status != HA_OK) {
        return status;
    }
    if (value != floor(value) || value > (double)max) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s must be an integer <= %zu, got %g", r->path, key, max, value);
    }
    *out = value > 0 ? (size_t)value : 0;
    return HA_OK;
}

static ha_status
get_eps(const reader *r, const char *key, double fallback, float *out)
{
    double eps;
    const ha_status status = ha_json_get_double(r->json, r->root, key, fallback, &eps, r->err);
    if (status != HA_OK) {
        return status;
    }
    if (!(eps > 0 && eps < 1)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s must be in (0, 1), got %g", r->path, key, eps);
    }
    *out = (float)eps;
    return HA_OK;
}

static ha_status
get_activation(const reader *r, const char *key, const char *fallback, ha_activation *out)
{
    const char *value;
    const ha_status status = ha_json_get_string(r->json, r->root, key, fallback, &value, r->err);
    return status == HA_OK ? ha_activation_named(r->path, key, value, out, r->err) : status;
}

/* A string member that must have the one value that this library computes. */
static ha_status
expect_string(const reader *r, const char *key, const char *only)
{
    const char *value;
    ha_status status = ha_json_get_string(r->json, r->root, key, only, &value, r->err);
    if (status == HA_OK && strcmp(value, only) != 0) {
        status = ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s '%.60s' is not supported (supported: '%s')", r->path, key, value, only);
    }
    return status;
}

/* The row of the word embedding that torch calls padding_idx. null, or a number without a row: none. */
static ha_status
get_padding(const reader *r, double fallback, ha_encoder_config *c)
{
    const ha_json_node *node = ha_json_get(r->json, r->root, "pad_token_id");
    double value = -1;
    ha_status status = HA_OK;
    if (node == NULL || node->type != HA_JSON_NULL) {
        status = ha_json_get_double(r->json, r->root, "pad_token_id", fallback, &value, r->err);
    }
    c->padding_id = value >= 0 && value < (double)c->vocab_size ? (int32_t)value : -1;
    return status;
}

static ha_status
expect_false(const reader *r, const char *key)
{
    int value;
    ha_status status = get_bool(r, key, 0, &value);
    if (status == HA_OK && value) {
        status = ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s = true is not supported", r->path, key);
    }
    return status;
}

/* A member that transformers knows, of which only the value that it has when it is absent is computed. */
static ha_status
expect_size(const reader *r, const char *key, size_t only)
{
    size_t value;
    ha_status status = get_size(r, key, only, 0, MAX_EXTENT, &value);
    if (status == HA_OK && value != only) {
        status = ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s %zu is not supported (supported: %zu)", r->path, key, value, only);
    }
    return status;
}

/* As transformers does: id2label decides, else num_labels, else 2. */
static ha_status
read_num_labels(const reader *r, size_t *out)
{
    const ha_json_node *labels = ha_json_get(r->json, r->root, "id2label");
    if (labels != NULL && labels->type != HA_JSON_NULL) {
        if (labels->type != HA_JSON_OBJECT || labels->length < 1 || labels->length > MAX_LABELS) {
            return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: id2label must be an object of 1 to %d labels", r->path, MAX_LABELS);
        }
        *out = labels->length;
        return HA_OK;
    }
    return get_size(r, "num_labels", 2, 1, MAX_LABELS, out);
}

/* -- what the families share -- */

/* Keys and defaults of a family, as in transformers' configurations. */
typedef struct shape_keys {
    const char *hidden, *layers, *heads, *intermediate, *act, *eps;
    size_t vocab_size, hidden_size, n_layers, n_heads, intermediate_size, max_positions;
    double eps_value;
} shape_keys;

static ha_status
read_shape(const reader *r, const shape_keys *k, ha_encoder_config *c)
{
    ha_status status;
    if ((status = read_num_labels(r, &c->num_labels)) != HA_OK ||
        (status = get_size(r, "vocab_size", k->vocab_size, 1, MAX_EXTENT, &c->vocab_size)) != HA_OK ||
        (status = get_size(r, k->hidden, k->hidden_size, 1, MAX_EXTENT, &c->hidden_size)) != HA_OK ||
        (status = get_size(r, k->layers, k->n_layers, 1, HA_MAX_LAYERS, &c->n_layers)) != HA_OK ||
        (status = get_size(r, k->heads, k->n_heads, 1, MAX_EXTENT, &c->n_heads)) != HA_OK ||
        (status = get_size(r, k->intermediate, k->intermediate_size, 1, MAX_EXTENT, &c->intermediate_size)) != HA_OK ||
        (status = get_size(r, "max_position_embeddings", k->max_positions, 1, MAX_POSITIONS, &c->max_position_embeddings)) != HA_OK ||
        (status = get_activation(r, k->act, "gelu", &c->hidden_act)) != HA_OK) {
        return status;
    }
    if (c->hidden_size % c->n_heads != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s %zu is not a multiple of %s %zu", r->path, k->hidden, c->hidden_size, k->heads, c->n_heads);
    }
    c->head_dim = c->hidden_size / c->n_heads;
    c->embedding_size = c->hidden_size;
    c->max_tokens = c->max_position_embeddings;
    c->absolute_positions = 1;
    c->pad_id = -1;
    c->layer_norm_eps = (float)k->eps_value;
    return k->eps != NULL ? get_eps(r, k->eps, k->eps_value, &c->layer_norm_eps) : HA_OK;
}

/* What BERT, RoBERTa and ELECTRA have in common. */
static ha_status
read_bert_like(const reader *r, const shape_keys *k, ha_encoder_config *c)
{
    ha_status status;
    if ((status = expect_string(r, "position_embedding_type", "absolute")) != HA_OK ||
        (status = expect_false(r, "is_decoder")) != HA_OK ||
        (status = expect_false(r, "add_cross_attention")) != HA_OK ||
        (status = read_shape(r, k, c)) != HA_OK) {
        return status;
    }
    return get_size(r, "type_vocab_size", 2, 1, 256, &c->type_vocab_size);
}

#define BERT_KEYS "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"

static ha_status
read_bert(const reader *r, ha_encoder_config *c)
{
    static const shape_keys keys = {BERT_KEYS, 30522, 768, 12, 12, 3072, 512, 1e-12};
    c->head_act = HA_ACT_TANH;
    return read_bert_like(r, &keys, c);
}

static ha_status
read_roberta(const reader *r, ha_encoder_config *c)
{
    static const shape_keys keys = {BERT_KEYS, 50265, 768, 12, 12, 3072, 512, 1e-12};
    size_t pad;
    ha_status status;
    c->head_act = HA_ACT_TANH;
    c->drop_head_input = 1;
    if ((status = read_bert_like(r, &keys, c)) != HA_OK ||
        (status = get_size(r, "pad_token_id", 1, 0, MAX_EXTENT, &pad)) != HA_OK) {
        return status;
    }
    if (pad + 1 >= c->max_position_embeddings) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: max_position_embeddings %zu leaves no position behind pad_token_id %zu", r->path,
                       c->max_position_embeddings, pad);
    }
    c->pad_id = (int32_t)pad;
    c->max_tokens = c->max_position_embeddings - pad - 1;
    return HA_OK;
}

static ha_status
read_electra(const reader *r, ha_encoder_config *c)
{
    static const shape_keys keys = {BERT_KEYS, 30522, 256, 12, 4, 1024, 512, 1e-12};
    c->head_act = HA_ACT_GELU;
    c->drop_head_input = 1;
    const ha_status status = read_bert_like(r, &keys, c);
    return status == HA_OK ? get_size(r, "embedding_size", 128, 1, MAX_EXTENT, &c->embedding_size) : status;
}

static ha_status
read_distilbert(const reader *r, ha_encoder_config *c)
{
    static const shape_keys keys = {"dim", "n_layers", "n_heads", "hidden_dim", "activation", NULL, 30522, 768, 6, 12, 4 * 768, 512, 1e-12};
    c->head_act = HA_ACT_RELU;
    return read_shape(r, &keys, c);
}

/* -- DeBERTa -- */

/* One name of a list: of `known`, by number, or HA_ERR_FORMAT. */
static ha_status
name_of_list(const reader *r, const char *key, const char *name, size_t length, const char *const known[2], int found[2])
{
    for (int i = 0; i < 2; i++) {
        if (strlen(known[i]) == length && strncmp(name, known[i], length) == 0) {
            found[i] = 1;
            return HA_OK;
        }
    }
    return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s '%.*s' is not supported (supported: '%s', '%s')", r->path, key,
                   (int)(length < 60 ? length : 60), name, known[0], known[1]);
}

/* Names between '|', in any case, as one string; or an array of names. */
static ha_status
get_names(const reader *r, const char *key, const char *const known[2], int found[2])
{
    const ha_json_node *node = ha_json_get(r->json, r->root, key);
    ha_status status = HA_OK;
    char text[128];
    found[0] = found[1] = 0;
    if (node == NULL || node->type == HA_JSON_NULL) {
        return HA_OK;
    }
    if (node->type == HA_JSON_ARRAY) {
        for (const ha_json_node *item = ha_json_first(r->json, node); item != NULL && status == HA_OK; item = ha_json_next(r->json, item)) {
            status = item->type == HA_JSON_STRING ? name_of_list(r, key, item->string, item->length, known, found)
                                                  : ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s must hold strings", r->path, key);
        }
        return status;
    }
    if (node->type != HA_JSON_STRING || node->length >= sizeof(text)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s must be a string or an array of strings", r->path, key);
    }
    for (size_t i = 0; i <= node->length; i++) {
        text[i] = (char)tolower((unsigned char)node->string[i]);
    }
    for (const char *at = text, *end; at != NULL && status == HA_OK; at = *end == '|' ? end + 1 : NULL) {
        end = at + strcspn(at, "|");
        const char *last = end;
        while (at < last && isspace((unsigned char)*at)) {
            at++;
        }
        while (last > at && isspace((unsigned char)last[-1])) {
            last--;
        }
        if (last > at) {
            status = name_of_list(r, key, at, (size_t)(last - at), known, found);
        }
    }
    return status;
}

static ha_status
read_relative(const reader *r, ha_encoder_config *c)
{
    static const char *const kinds[2] = {"c2p", "p2c"}, *const norms[2] = {"none", "layer_norm"};
    int relative, kind[2], norm[2];
    ha_status status;
    if ((status = get_bool(r, "relative_attention", 0, &relative)) != HA_OK ||
        (status = get_bool(r, "share_att_key", 0, &c->share_att_key)) != HA_OK ||
        (status = get_names(r, "pos_att_type", kinds, kind)) != HA_OK ||
        (status = get_names(r, "norm_rel_ebd", norms, norm)) != HA_OK ||
        (status = get_positive_or_none(r, "max_relative_positions", MAX_POSITIONS, &c->max_relative_positions)) != HA_OK ||
        (status = get_positive_or_none(r, "position_buckets", MAX_POSITIONS, &c->position_buckets)) != HA_OK) {
        return status;
    }
    c->c2p = kind[0];
    c->p2c = kind[1];
    c->norm_rel_ebd = norm[1];
    if (!relative) {
        c->position_buckets = 0;
        return HA_OK;
    }
    if (c->max_relative_positions == 0) {
        c->max_relative_positions = c->max_position_embeddings;
    }
    c->relative_span = c->position_buckets > 0 ? c->position_buckets : c->max_relative_positions;
    if (c->position_buckets == 1 || (c->position_buckets > 0 && c->max_relative_positions <= c->position_buckets / 2 + 1)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: position_buckets %zu is not supported: buckets of a logarithmic width need at least 2, "
                       "and more than half as many positions (max_relative_positions %zu)", r->path, c->position_buckets, c->max_relative_positions);
    }
    return HA_OK;
}

static ha_status
read_conv(const reader *r, ha_encoder_config *c)
{
    ha_status status = get_positive_or_none(r, "conv_kernel_size", MAX_KERNEL, &c->conv_kernel_size);
    if (status != HA_OK || c->conv_kernel_size == 0) {
        return status;
    }
    if ((status = get_size(r, "conv_groups", 1, 1, c->hidden_size, &c->conv_groups)) != HA_OK ||
        (status = get_activation(r, "conv_act", "tanh", &c->conv_act)) != HA_OK) {
        return status;
    }
    if (c->conv_kernel_size % 2 == 0 || c->hidden_size % c->conv_groups != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: conv_kernel_size %zu must be odd, and hidden_size %zu a multiple of conv_groups %zu", r->path,
                       c->conv_kernel_size, c->hidden_size, c->conv_groups);
    }
    return HA_OK;
}

static ha_status
read_deberta(const reader *r, ha_encoder_config *c)
{
    static const shape_keys keys = {BERT_KEYS, 128100, 1536, 24, 24, 6144, 512, 1e-7};
    ha_status status;
    if ((status = read_shape(r, &keys, c)) != HA_OK ||
        (status = get_size(r, "type_vocab_size", 0, 0, 256, &c->type_vocab_size)) != HA_OK ||
        (status = get_size(r, "embedding_size", c->hidden_size, 1, MAX_EXTENT, &c->embedding_size)) != HA_OK ||
        (status = get_bool(r, "position_biased_input", 1, &c->absolute_positions)) != HA_OK ||
        (status = get_activation(r, "pooler_hidden_act", "gelu", &c->head_act)) != HA_OK ||
        (status = expect_size(r, "pooler_hidden_size", c->hidden_size)) != HA_OK ||
        (status = expect_size(r, "attention_head_size", c->head_dim)) != HA_OK ||
        (status = read_relative(r, c)) != HA_OK || (status = read_conv(r, c)) != HA_OK) {
        return status;
    }
    c->project_first = 1;
    c->max_tokens = c->absolute_positions ? c->max_position_embeddings : HA_MAX_TOKENS;
    return HA_OK;
}

/* -- ModernBERT -- */

/* The rotary base of one kind of layer: rope_parameters (transformers 5), or a key of its own (before). */
static ha_status
read_theta(const reader *r, const char *kind, const char *old_key, double fallback, double *out)
{
    const ha_json_node *params = ha_json_get(r->json, ha_json_get(r->json, r->root, "rope_parameters"), kind);
    const ha_json_node *old = ha_json_get(r->json, r->root, old_key);
    const char *type;
    ha_status status;
    if (old != NULL && old->type == HA_JSON_NULL) {     /* what it means changed between versions of transformers */
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %s = null is not supported", r->path, old_key);
    }
    if ((status = ha_json_get_string(r->json, params, "rope_type", "default", &type, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, r->root, old_key, fallback, out, r->err)) != HA_OK ||
        (status = ha_json_get_double(r->json, params, "rope_theta", *out, out, r->err)) != HA_OK) {
        return status;
    }
    if (strcmp(type, "default") != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: rope_type '%.60s' is not supported (supported: 'default')", r->path, type);
    }
    if (!(*out > 1 && isfinite(*out))) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: the rotary base of %s must be > 1, got %g", r->path, kind, *out);
    }
    return HA_OK;
}

/* layer_types, or every n-th layer sees all tokens. */
static ha_status
read_layer_types(const reader *r, ha_encoder_config *c)
{
    const ha_json_node *types = ha_json_get(r->json, r->root, "layer_types");
    size_t every, i = 0;
    if (types == NULL || types->type == HA_JSON_NULL) {
        const ha_status status = get_size(r, "global_attn_every_n_layers", 3, 1, MAX_EXTENT, &every);
        for (i = 0; status == HA_OK && i < c->n_layers; i++) {
            c->windowed[i] = i % every != 0;
        }
        return status;
    }
    if (types->type != HA_JSON_ARRAY || types->length != c->n_layers) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: layer_types must name the type of each of %zu layers", r->path, c->n_layers);
    }
    for (const ha_json_node *item = ha_json_first(r->json, types); item != NULL; item = ha_json_next(r->json, item), i++) {
        const char *name = item->type == HA_JSON_STRING ? item->string : "";
        c->windowed[i] = strcmp(name, "sliding_attention") == 0;
        if (!c->windowed[i] && strcmp(name, "full_attention") != 0) {
            return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: layer_types '%.60s' is not supported (supported: 'full_attention', 'sliding_attention')",
                           r->path, name);
        }
    }
    return HA_OK;
}

static ha_status
read_modernbert(const reader *r, ha_encoder_config *c)
{
    static const shape_keys keys = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_activation", "norm_eps",
                                    50368, 768, 22, 12, 1152, 8192, 1e-5};
    const ha_json_node *scaling = ha_json_get(r->json, r->root, "rope_scaling"), *rope = ha_json_get(r->json, r->root, "rope_parameters");
    const char *pooling;
    size_t window;
    ha_status status;
    if ((status = read_shape(r, &keys, c)) != HA_OK ||
        (status = get_bool(r, "norm_bias", 0, &c->norm_bias)) != HA_OK ||
        (status = get_bool(r, "attention_bias", 0, &c->attention_bias)) != HA_OK ||
        (status = get_bool(r, "mlp_bias", 0, &c->mlp_bias)) != HA_OK ||
        (status = get_bool(r, "classifier_bias", 0, &c->head_bias)) != HA_OK ||
        (status = get_activation(r, "classifier_activation", "gelu", &c->head_act)) != HA_OK ||
        (status = ha_json_get_string(r->json, r->root, "classifier_pooling", "cls", &pooling, r->err)) != HA_OK ||
        (status = get_size(r, "local_attention", 128, 2, MAX_EXTENT, &window)) != HA_OK ||
        (status = read_theta(r, "full_attention", "global_rope_theta", 160000, &c->rope_theta[0])) != HA_OK ||
        (status = read_theta(r, "sliding_attention", "local_rope_theta", 10000, &c->rope_theta[1])) != HA_OK ||
        (status = expect_size(r, "head_dim", c->head_dim)) != HA_OK || (status = read_layer_types(r, c)) != HA_OK) {
        return status;
    }
    if (scaling != NULL && scaling->type != HA_JSON_NULL) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: rope_scaling is not supported", r->path);
    }
    if (rope != NULL && rope->type != HA_JSON_NULL && (rope->type != HA_JSON_OBJECT || ha_json_get(r->json, rope, "rope_theta") != NULL)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: rope_parameters must be an object by type of layer", r->path);
    }
    c->mean_pooling = strcmp(pooling, "mean") == 0;
    if (!c->mean_pooling && strcmp(pooling, "cls") != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: classifier_pooling '%.60s' is not supported (supported: 'cls', 'mean')", r->path, pooling);
    }
    if (c->head_dim % 2 != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: rotary positions need heads of an even size, got %zu", r->path, c->head_dim);
    }
    c->window = window / 2;
    c->pre_norm = c->gated = c->head_norm = 1;
    c->absolute_positions = 0;
    c->max_tokens = HA_MAX_TOKENS;
    return HA_OK;
}

/* -- the file -- */

static ha_status
config_parse(const reader *r, ha_encoder_config *out)
{
    static const struct {
        const char *name, *architecture;
        ha_encoder_family family;
        ha_status (*read)(const reader *, ha_encoder_config *);
        double padding;     /* where pad_token_id is not given */
    } known[] = {
        {"bert", "BertForSequenceClassification", HA_BERT, read_bert, 0},
        {"roberta", "RobertaForSequenceClassification", HA_ROBERTA, read_roberta, 1},
        {"xlm-roberta", "XLMRobertaForSequenceClassification", HA_ROBERTA, read_roberta, 1},
        {"electra", "ElectraForSequenceClassification", HA_ELECTRA, read_electra, 0},
        {"distilbert", "DistilBertForSequenceClassification", HA_DISTILBERT, read_distilbert, 0},
        {"deberta-v2", "DebertaV2ForSequenceClassification", HA_DEBERTA_V2, read_deberta, 0},
        {"modernbert", "ModernBertForSequenceClassification", HA_MODERNBERT, read_modernbert, 50283},
    };
    const char *type;
    const ha_status status = ha_json_get_string(r->json, r->root, "model_type", NULL, &type, r->err);
    if (status != HA_OK) {
        return status;
    }
    if (type == NULL) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: model_type is missing", r->path);
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(type, known[i].name) == 0) {
            strcpy(out->model_type, known[i].name);
            out->architecture = known[i].architecture;
            out->family = known[i].family;
            out->norm_bias = out->attention_bias = out->mlp_bias = out->head_bias = 1;
            const ha_status done = known[i].read(r, out);
            return done == HA_OK ? get_padding(r, known[i].padding, out) : done;
        }
    }
    return ha_fail(r->err, HA_ERR_FORMAT, "%.250s: model_type '%.60s' is not supported (supported: bert, roberta, xlm-roberta, electra, distilbert, "
                   "deberta-v2, modernbert)", r->path, type);
}

/* Weights of fewer bits are read as this library writes them. */
static ha_status
read_quantization(const reader *r, ha_encoder_config *out)
{
    const ha_json_node *node = ha_json_get(r->json, r->root, "quantization_config");
    if (node == NULL || node->type == HA_JSON_NULL) {
        return HA_OK;
    }
    const ha_json_node *method = ha_json_get(r->json, node, "quant_method"), *version = ha_json_get(r->json, node, "version");
    if (method == NULL || method->type != HA_JSON_STRING || strcmp(method->string, "harmaug") != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: quantization_config: only quant_method 'harmaug' is supported, got '%.60s'", r->path,
                       method != NULL && method->type == HA_JSON_STRING ? method->string : "none");
    }
    uint64_t number = 0;
    if (version == NULL || !ha_json_u64(version, &number) || number != 2) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: quantization_config: version must be 2; save the guard as int8 again, or read it with another harmaug", r->path);
    }
    out->quantized = 1;
    return HA_OK;
}

ha_status
ha_encoder_config_read(const char *folder, ha_encoder_config *out, ha_error *err)
{
    char path[HA_PATH_MAX];
    ha_json *json = NULL;
    ha_status status = ha_path_join(folder, "config.json", path, sizeof(path), err);
    *out = (ha_encoder_config){0};
    if (status == HA_OK && (status = ha_json_open(path, 0, &json, err)) == HA_OK) {
        const reader r = {json, ha_json_root(json), path, err};
        if ((status = config_parse(&r, out)) == HA_OK) {
            status = read_quantization(&r, out);
        }
    }
    ha_json_free(json);
    return status;
}
