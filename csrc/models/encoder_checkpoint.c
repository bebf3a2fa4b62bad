/* A folder's weights seen as the parameters of an encoder: which tensor each one comes from, or how it is made new. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/pages.h"
#include "core/rng.h"
#include "io/tensor_file.h"
#include "models/encoder_layout.h"

#define INIT_STD 0.02   /* BERT's initializer_range (Devlin et al. 2018, arXiv 1810.04805, as in its released configurations) */

struct ha_checkpoint {
    ha_tensor_file *file;
    ha_encoder_config config;       /* of the kept layers and the new head */
    const ha_tensor **tensors;      /* (ha_params_count,); NULL: made new */
    uint64_t seed;
};

static int
file_exists(const char *folder, const char *name)
{
    char path[HA_PATH_MAX];
    FILE *file = ha_path_join(folder, name, path, sizeof(path), NULL) == HA_OK ? fopen(path, "rb") : NULL;
    if (file != NULL) {
        fclose(file);
    }
    return file != NULL;
}

static ha_status
open_file(const char *folder, ha_tensor_file **out, ha_error *err)
{
    if (!file_exists(folder, "model.safetensors") && !file_exists(folder, "model.safetensors.index.json") &&
        file_exists(folder, "pytorch_model.bin")) {
        return ha_fail(err, HA_ERR_FORMAT,
                       "%.200s: pytorch_model.bin is a pickle and is not read; convert it once with transformers: "
                       "AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)", folder);
    }
    return ha_tensor_file_open(folder, out, err);
}

/* Finds the tensor of each parameter of the whole checkpoint (`source`: all its layers). */
static ha_status
map_tensors(const ha_tensor_file *file, const ha_encoder_config *source, int new_head, const ha_tensor **tensors, ha_error *err)
{
    const size_t none = ha_params_count(source);
    char name[256];
    for (size_t i = 0; i < ha_tensor_file_count(file); i++) {
        const ha_tensor *tensor = ha_tensor_file_at(file, i);
        ha_tensor_canonical_name(source, tensor->name, name, sizeof(name));
        if (ha_tensor_is_ignored(source, name)) {
            continue;
        }
        const size_t which = ha_param_index(source, name);
        if (which == none) {
            return ha_fail(err, HA_ERR_FORMAT, "tensor '%.200s' is unexpected in a %s of %zu layers", tensor->name,
                           ha_family_name(source->family), source->n_layers);
        }
        if (new_head && (which == ha_head_param(source, HA_CLS_W) || which == ha_head_param(source, HA_CLS_B))) {
            continue;
        }
        if (tensors[which] != NULL) {
            return ha_fail(err, HA_ERR_FORMAT, "tensor '%.200s' is there twice, as '%.200s' too", tensor->name, tensors[which]->name);
        }
        tensors[which] = tensor;
    }
    return HA_OK;
}

static void
shape_text(char *out, size_t size, int ndim, const size_t *shape)
{
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < ndim && at < size - 24; i++) {
        at += (size_t)snprintf(out + at, size - at, "%s%zu", i > 0 ? ", " : "", shape[i]);
    }
}

static ha_status
check_shape(const ha_tensor *tensor, const ha_param *param, ha_error *err)
{
    int same = tensor->ndim == param->ndim;
    for (int i = 0; i < param->ndim && same; i++) {
        same = tensor->shape[i] == param->shape[i];
    }
    if (same) {
        return HA_OK;
    }
    char got[128], want[128];
    shape_text(got, sizeof(got), tensor->ndim, tensor->shape);
    shape_text(want, sizeof(want), param->ndim, param->shape);
    return ha_fail(err, HA_ERR_FORMAT, "tensor '%.200s' has shape (%s), expected (%s)", tensor->name, got, want);
}

/* The tensors of the kept layers, checked. What stands between the encoder and the labels may be absent, whole, only beside a new head. */
static ha_status
select_tensors(ha_checkpoint *checkpoint, const ha_encoder_config *source, const ha_tensor **all, const size_t *layers,
               int new_head, ha_error *err)
{
    const ha_encoder_config *config = &checkpoint->config;
    const size_t count = ha_params_count(config), first_head = ha_head_param(config, 0);
    int new_pooler = new_head;
    for (size_t i = 0; i < HA_HEAD_PARAMS; i++) {
        new_pooler = new_pooler && all[ha_head_param(source, i)] == NULL;
    }
    for (size_t i = 0; i < count; i++) {
        size_t from = i;
        if (i >= first_head) {
            from = ha_head_param(source, i - first_head);
        } else if (i >= HA_EMB_PARAMS && layers != NULL) {
            from = ha_layer_param(layers[(i - HA_EMB_PARAMS) / HA_LAYER_PARAMS], (i - HA_EMB_PARAMS) % HA_LAYER_PARAMS);
        }
        ha_param param;
        ha_param_describe(config, i, 0, &param);
        if (param.size == 0) {
            continue;
        }
        if (all[from] == NULL) {
            const int label = i == first_head + HA_CLS_W || i == first_head + HA_CLS_B;
            if (i >= first_head && (label ? new_head : new_pooler)) {
                continue;
            }
            ha_param_describe(source, from, 0, &param);
            return ha_fail(err, HA_ERR_FORMAT, "tensor '%s' is missing%s", param.name, i >= first_head && !new_head ?
                           " (a model without a classification head; give it a new one to train it)" : "");
        }
        const ha_status status = check_shape(all[from], &param, err);
        if (status != HA_OK) {
            return status;
        }
        checkpoint->tensors[i] = all[from];
    }
    return HA_OK;
}

static ha_status
keep_layers(ha_encoder_config *config, const size_t *layers, size_t n_kept, ha_error *err)
{
    if (n_kept == 0 || n_kept > HA_MAX_LAYERS) {
        return ha_fail(err, HA_ERR_VALUE, "layers: 1 to %d layers must be kept, got %zu", HA_MAX_LAYERS, n_kept);
    }
    uint8_t windowed[HA_MAX_LAYERS] = {0};
    for (size_t i = 0; i < n_kept; i++) {
        if (layers[i] >= config->n_layers) {
            return ha_fail(err, HA_ERR_VALUE, "layers: the model has layers 0 to %zu, got %zu", config->n_layers - 1, layers[i]);
        }
        if (config->pre_norm && (layers[i] == 0) != (i == 0)) {
            return ha_fail(err, HA_ERR_VALUE, "layers: layer 0 of a %s has no first norm: it must be the first one kept, and no other", ha_family_name(config->family));
        }
        windowed[i] = config->windowed[layers[i]];
    }
    memcpy(config->windowed, windowed, sizeof(windowed));
    config->n_layers = n_kept;
    return HA_OK;
}

ha_status
ha_checkpoint_open(const char *folder, ha_encoder_config *config, const size_t *layers, size_t n_kept, size_t new_head,
                   uint64_t seed, ha_checkpoint **out, ha_error *err)
{
    const ha_encoder_config source = *config;
    const ha_tensor **all = NULL;
    ha_error inner = {{0}};
    ha_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    ha_status status = HA_OK;
    *out = NULL;
    if (layers != NULL && (status = keep_layers(config, layers, n_kept, err)) != HA_OK) {
        goto done;
    }
    if (new_head > 0) {
        config->num_labels = new_head;
    }
    all = calloc(ha_params_count(&source), sizeof(*all));
    if (checkpoint == NULL || all == NULL || (checkpoint->tensors = calloc(ha_params_count(config), sizeof(*all))) == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "%.200s: out of memory", folder);
        goto done;
    }
    checkpoint->config = *config;
    checkpoint->seed = seed;
    if ((status = open_file(folder, &checkpoint->file, err)) != HA_OK) {
        goto done;
    }
    if ((status = map_tensors(checkpoint->file, &source, new_head > 0, all, &inner)) != HA_OK ||
        (status = select_tensors(checkpoint, &source, all, layers, new_head > 0, &inner)) != HA_OK) {
        ha_fail(err, status, "%.150s: %.350s", folder, inner.message);
    }
done:
    free(all);
    if (status != HA_OK) {
        ha_checkpoint_close(checkpoint);
    } else {
        *out = checkpoint;
    }
    return status;
}

void
ha_checkpoint_close(ha_checkpoint *checkpoint)
{
    if (checkpoint != NULL) {
        ha_tensor_file_close(checkpoint->file);
        free(checkpoint->tensors);
        free(checkpoint);
    }
}

/* Element j of a new weight: normal(0, INIT_STD) by Box and Muller, a function of (seed, parameter, j) alone. */
static float
new_weight(uint64_t seed, uint64_t param, uint64_t j)
{
    const double two_pi = 6.283185307179586;
    const double u = 1.0 - ha_uniform(seed, param, 2 * j), v = ha_uniform(seed, param, 2 * j + 1);
    return (float)(INIT_STD * sqrt(-2.0 * log(u)) * cos(two_pi * v));
}

ha_status
ha_checkpoint_rows(const ha_checkpoint *checkpoint, size_t i, size_t first, size_t count, float *out, ha_error *err)
{
    if (checkpoint->tensors[i] != NULL) {
        return ha_tensor_rows_f32(checkpoint->tensors[i], first, count, out, err);
    }
    ha_param param;
    ha_param_describe(&checkpoint->config, i, 0, &param);
    const size_t from_head = i - ha_head_param(&checkpoint->config, 0);     /* the stream does not depend on the number of layers */
    const size_t n = count * ha_param_cols(&param), begin = first * ha_param_cols(&param);
    for (size_t j = 0; j < n; j++) {
        out[j] = param.ndim == 2 ? new_weight(checkpoint->seed, from_head, begin + j) : from_head == HA_HEAD_NORM_W ? 1.0f : 0.0f;
    }
    return HA_OK;
}

int
ha_checkpoint_stamp(const ha_checkpoint *checkpoint, uint8_t digest[32])
{
    return ha_tensor_file_stamp(checkpoint->file, digest);
}

void
ha_checkpoint_forget(const ha_checkpoint *checkpoint, size_t i)
{
    if (checkpoint->tensors[i] != NULL) {
        ha_pages_forget(checkpoint->tensors[i]->data, checkpoint->tensors[i]->n_bytes);
    }
}
