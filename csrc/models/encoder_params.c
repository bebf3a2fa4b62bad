/* Every weight in one float32 block: read, copied, written. */
#include <stdlib.h>
#include <string.h>

#include "io/tensor_file.h"
#include "kernels/quantize.h"
#include "models/encoder_impl.h"

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

/* Rows of 8 or 4 bits of parameter i as the tensor `out` and its bytes, which the caller frees. */
static ha_status
quantize_param(const ha_encoder_params *params, size_t i, int four, ha_tensor_out *out, uint8_t **bytes, ha_error *err)
{
    const ha_param *item = &params->items[i];
    const size_t cols = ha_param_cols(item), rows = item->size / cols, width = four ? ha_i4_row_bytes(cols) : ha_i8_row_bytes(cols);
    const float *w = params->data + item->offset;
    if ((*bytes = malloc(rows * width)) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder parameters: out of memory (%zu bytes)", rows * width);
    }
    for (size_t r = 0; r < rows; r++) {
        (four ? ha_store_row_i4 : ha_store_row_i8)(*bytes + r * width, w + r * cols, cols);
    }
    *out = (ha_tensor_out){.name = item->name, .dtype = four ? HA_U8 : HA_I8, .ndim = 2, .shape = {rows, width}, .data = *bytes};
    return HA_OK;
}

ha_status
ha_encoder_params_write(const ha_encoder_params *params, const char *path, int dtype, int words_in_4_bits, ha_error *err)
{
    ha_tensor_out *tensors = calloc(params->count, sizeof(*tensors));
    uint8_t **bytes = calloc(params->count, sizeof(*bytes));
    const ha_weight_format format = dtype == HA_I8 ? HA_WEIGHT_I8 : dtype == HA_BF16 ? HA_WEIGHT_BF16 : HA_WEIGHT_F32;
    ha_status status = tensors != NULL && bytes != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "%.200s: out of memory", path);
    size_t count = 0;
    for (size_t i = 0; i < params->count && status == HA_OK; i++) {
        const ha_param *item = &params->items[i];
        if (item->size == 0) {
            continue;
        }
        const int kept = format != HA_WEIGHT_F32 && ha_param_format(&params->config, i, format) == HA_WEIGHT_F32;
        if (format == HA_WEIGHT_I8 && !kept) {
            status = quantize_param(params, i, words_in_4_bits && i == HA_EMB_WORD, &tensors[count], &bytes[count], err);
        } else {
            tensors[count] = (ha_tensor_out){
                .name = item->name, .dtype = kept ? HA_F32 : (ha_dtype)dtype, .ndim = item->ndim,
                .shape = {item->shape[0], item->shape[1], item->shape[2]}, .data = params->data + item->offset,
            };
        }
        count++;
    }
    if (status == HA_OK) {
        status = ha_safetensors_write(path, tensors, count, NULL, err);
    }
    for (size_t i = 0; i < count && bytes != NULL; i++) {
        free(bytes[i]);
    }
    free(bytes);
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
