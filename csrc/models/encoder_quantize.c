/* What becomes of weights that are stored in fewer than 32 bits. */
#include <stdlib.h>
#include <string.h>

#include "models/encoder_impl.h"

ha_status
ha_source_rows(const ha_source *from, size_t i, size_t first, size_t count, float *out, ha_error *err)
{
    if (from->checkpoint != NULL) {
        return ha_checkpoint_rows(from->checkpoint, i, first, count, out, err);
    }
    const ha_param *item = &from->params->items[i];
    const size_t cols = ha_param_cols(item);
    memcpy(out, from->params->data + item->offset + first * cols, count * cols * sizeof(float));
    return HA_OK;
}

ha_weight_format
ha_param_format(const ha_encoder_config *config, size_t i, ha_weight_format format)
{
    ha_param param;
    ha_param_describe(config, i, 0, &param);
    const int in_layer = i >= HA_EMB_PARAMS && i < ha_head_param(config, 0), word_or_conv = i == HA_EMB_WORD || i == HA_CONV_W;
    const int kept = param.ndim > 1 && (in_layer || word_or_conv || (i == HA_EMB_PROJECT_W && format == HA_WEIGHT_BF16));
    return kept ? format : HA_WEIGHT_F32;
}

void
ha_round_rows(const ha_kernels *kernels, ha_weight_format format, float *w, size_t rows, size_t k)
{
    for (size_t r = 0; r < rows && format != HA_WEIGHT_F32; r++, w += k) {
        for (size_t p = 0; p < k; p += HA_I8_GROUP) {
            const size_t n = k - p < HA_I8_GROUP ? k - p : HA_I8_GROUP;
            uint16_t narrow[HA_I8_GROUP];
            int8_t q[HA_I8_GROUP];
            if (format == HA_WEIGHT_BF16) {
                kernels->f32_to_bf16(narrow, w + p, n);
                kernels->bf16_to_f32(w + p, narrow, n);
            } else {
                const float scale = ha_quantize_group_i8(q, w + p, n);
                ha_dequantize_group_i8(w + p, q, scale, n);
            }
        }
    }
}
