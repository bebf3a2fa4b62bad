/* Every weight in one float32 block: read, copied, written. */
#include <stdlib.h>
#include <string.h>

#include "io/tensor_file.h"
#include "models/encoder_layout.h"

/* An empty block of this configuration; total is checked against overflow. */
static ha_status
params_new(const ha_encoder_config *config, ha_encoder_params **out, ha_error *err)
{
    const size_t count = ha_params_count(config);
    ha_encoder_params *params = calloc(1, sizeof(*params));
    *out = params;
    if (params == NULL || (params->items = calloc(count, sizeof(*params->items))) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder parameters: out of memory");
    }
    params->config = *config;
    params->count = count;
    for (size_t i = 0; i < count; i++) {
        ha_param_describe(config, i, params->total, &params->items[i]);
        if (params->items[i].size > SIZE_MAX / sizeof(float) - params->total) {
            return ha_fail(err, HA_ERR_NOMEM, "encoder parameters: out of memory (parameter '%s')", params->items[i].name);
        }
        params->total += params->items[i].size;
    }
    if (params->total > SIZE_MAX / sizeof(float) || (params->data = malloc(params->total * sizeof(float))) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder parameters: out of memory (%zu weights)", params->total);
    }
    return HA_OK;
}

ha_status
ha_encoder_params_read(const char *folder, const size_t *layers, size_t n_kept, size_t new_head, uint64_t seed,
                       ha_encoder_params **out, ha_error *err)
{
    ha_encoder_config config;
    ha_checkpoint *checkpoint = NULL;
    ha_encoder_params *params = NULL;
    *out = NULL;
    ha_status status = ha_encoder_config_read(folder, &config, err);
    if (status != HA_OK ||
        (status = ha_checkpoint_open(folder, &config, layers, n_kept, new_head, seed, &checkpoint, err)) != HA_OK ||
        (status = params_new(&config, &params, err)) != HA_OK) {
        goto done;
    }
    for (size_t i = 0; i < params->count && status == HA_OK; i++) {
        const ha_param *item = &params->items[i];
        if (item->size > 0) {
            status = ha_checkpoint_rows(checkpoint, i, 0, item->size / ha_param_cols(item), params->data + item->offset, err);
        }
    }
done:
    ha_checkpoint_close(checkpoint);
    if (status != HA_OK) {
        ha_encoder_params_free(params);
    } else {
        *out = params;
    }
    return status;
}

ha_status
ha_encoder_params_copy(const ha_encoder_params *params, ha_encoder_params **out, ha_error *err)
{
    const ha_status status = params_new(&params->config, out, err);
    if (status != HA_OK) {
        ha_encoder_params_free(*out);
        *out = NULL;
        return status;
    }
    memcpy((*out)->data, params->data, params->total * sizeof(float));
    return HA_OK;
}

const ha_param *
ha_encoder_params_find(const ha_encoder_params *params, const char *name)
{
    const size_t i = ha_param_index(&params->config, name);
    return i < params->count ? &params->items[i] : NULL;
}

ha_status
ha_encoder_params_write(const ha_encoder_params *params, const char *path, int dtype, ha_error *err)
{
    ha_tensor_out *tensors = calloc(params->count, sizeof(*tensors));
    if (tensors == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "%.200s: out of memory", path);
    }
    size_t count = 0;
    for (size_t i = 0; i < params->count; i++) {
        const ha_param *item = &params->items[i];
        if (item->size > 0) {
            tensors[count++] = (ha_tensor_out){
                .name = item->name, .dtype = (ha_dtype)dtype, .ndim = item->ndim,
                .shape = {item->shape[0], item->shape[1], item->shape[2]}, .data = params->data + item->offset,
            };
        }
    }
    const ha_status status = ha_safetensors_write(path, tensors, count, NULL, err);
    free(tensors);
    return status;
}

void
ha_encoder_params_free(ha_encoder_params *params)
{
    if (params != NULL) {
        free(params->items);
        free(params->data);
        free(params);
    }
}
