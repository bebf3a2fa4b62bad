/* config.json of an encoder: read once, checked whole, so that every later product of extents is known to be sane. */
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "core/map_file.h"
#include "io/json.h"
#include "models/encoder.h"
#include "models/encoder_layout.h"

/* Far above any published encoder, and small enough that a product of any two stays below 2^48. */
#define MAX_EXTENT ((size_t)1 << 24)
#define MAX_POSITIONS ((size_t)1 << 18)
#define MAX_LAYERS 512
#define MAX_LABELS 4096

ha_status
ha_path_join(const char *folder, const char *name, char *out, size_t size, ha_error *err)
{
    const int n = snprintf(out, size, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= size) {
        return ha_fail(err, HA_ERR_VALUE, "%.200s...: the path is longer than %zu bytes", folder, size - 1);
    }
    return HA_OK;
}

/* A string member must be one of the values that this library computes. */
static ha_status
expect_string(const ha_json *json, const char *path, const char *key, const char *fallback, const char *const *known, ha_error *err)
{
    const char *value;
    ha_status status = ha_json_get_string(json, ha_json_root(json), key, fallback, &value, err);
    if (status != HA_OK) {
        return status;
    }
    if (value == NULL) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: %s is missing", path, key);
    }
    for (size_t i = 0; known[i] != NULL; i++) {
        if (strcmp(value, known[i]) == 0) {
            return HA_OK;
        }
    }
    return ha_fail(err, HA_ERR_FORMAT, "%.300s: %s '%.60s' is not supported (supported: '%s')", path, key, value, known[0]);
}

static ha_status
expect_false(const ha_json *json, const char *path, const char *key, ha_error *err)
{
    int value;
    ha_status status = ha_json_get_bool(json, ha_json_root(json), key, 0, &value, err);
    if (status == HA_OK && value) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.300s: %s = true is not supported", path, key);
    }
    return status;
}

/* As transformers does: id2label decides, else num_labels, else 2. */
static ha_status
read_num_labels(const ha_json *json, const char *path, size_t *out, ha_error *err)
{
    const ha_json_node *labels = ha_json_get(json, ha_json_root(json), "id2label");
    if (labels != NULL && labels->type != HA_JSON_NULL) {
        if (labels->type != HA_JSON_OBJECT || labels->length < 1 || labels->length > MAX_LABELS) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: id2label must be an object of 1 to %d labels", path, MAX_LABELS);
        }
        *out = labels->length;
        return HA_OK;
    }
    return ha_json_get_size(json, ha_json_root(json), "num_labels", 2, 1, MAX_LABELS, out, err);
}

static ha_status
config_parse(const ha_json *json, const char *path, ha_encoder_config *out, ha_error *err)
{
    static const char *const types[] = {"bert", NULL}, *const acts[] = {"gelu", NULL}, *const positions[] = {"absolute", NULL};
    const ha_json_node *root = ha_json_root(json);
    const struct { const char *key; size_t fallback, max, *value; } sizes[] = {
        {"vocab_size", 30522, MAX_EXTENT, &out->vocab_size},
        {"hidden_size", 768, MAX_EXTENT, &out->hidden_size},
        {"num_hidden_layers", 12, MAX_LAYERS, &out->n_layers},
        {"num_attention_heads", 12, MAX_EXTENT, &out->n_heads},
        {"intermediate_size", 3072, MAX_EXTENT, &out->intermediate_size},
        {"max_position_embeddings", 512, MAX_POSITIONS, &out->max_position_embeddings},
        {"type_vocab_size", 2, 256, &out->type_vocab_size},
    };
    ha_status status;
    if (root == NULL || root->type != HA_JSON_OBJECT) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: must hold an object", path);
    }
    if ((status = expect_string(json, path, "model_type", NULL, types, err)) != HA_OK ||
        (status = expect_string(json, path, "hidden_act", "gelu", acts, err)) != HA_OK ||
        (status = expect_string(json, path, "position_embedding_type", "absolute", positions, err)) != HA_OK ||
        (status = expect_false(json, path, "is_decoder", err)) != HA_OK ||
        (status = expect_false(json, path, "add_cross_attention", err)) != HA_OK ||
        (status = read_num_labels(json, path, &out->num_labels, err)) != HA_OK) {
        return status;
    }
    strcpy(out->model_type, "bert");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        status = ha_json_get_size(json, root, sizes[i].key, sizes[i].fallback, 1, sizes[i].max, sizes[i].value, err);
        if (status != HA_OK) {
            return status;
        }
    }
    if (out->hidden_size % out->n_heads != 0) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: hidden_size %zu is not a multiple of num_attention_heads %zu", path,
                       out->hidden_size, out->n_heads);
    }
    out->head_dim = out->hidden_size / out->n_heads;
    double eps;
    if ((status = ha_json_get_double(json, root, "layer_norm_eps", 1e-12, &eps, err)) != HA_OK) {
        return status;
    }
    if (!(eps > 0 && eps < 1)) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: layer_norm_eps must be in (0, 1), got %g", path, eps);
    }
    out->layer_norm_eps = (float)eps;
    return HA_OK;
}

ha_status
ha_encoder_config_read(const char *folder, ha_encoder_config *out, ha_error *err)
{
    char path[HA_PATH_MAX];
    ha_map_file file = {0};
    ha_json *json = NULL;
    ha_status status = ha_path_join(folder, "config.json", path, sizeof(path), err);
    if (status != HA_OK) {
        return status;
    }
    *out = (ha_encoder_config){0};
    if ((status = ha_map_file_open(path, &file, err)) != HA_OK) {
        goto done;
    }
    if ((status = ha_json_parse(path, (const char *)file.data, file.size, &json, err)) != HA_OK) {
        goto done;
    }
    status = config_parse(json, path, out, err);
done:
    ha_json_free(json);
    ha_map_file_close(&file);
    return status;
}
