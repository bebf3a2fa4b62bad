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
    enum { SPAN = 256 };
    for (size_t r = 0; r < rows && format != HA_WEIGHT_F32; r++, w += k) {
        const float scale = format == HA_WEIGHT_I8 ? ha_row_scale_i8(w, k) : 0.0f;
        for (size_t p = 0; p < k; p += SPAN) {
            const size_t n = k - p < SPAN ? k - p : SPAN;
            uint16_t narrow[SPAN];
            int8_t q[SPAN];
            if (format == HA_WEIGHT_BF16) {
                kernels->f32_to_bf16(narrow, w + p, n);
                kernels->bf16_to_f32(w + p, narrow, n);
            } else {
                ha_quantize_row_i8(q, w + p, scale, n);
                ha_dequantize_row_i8(w + p, q, scale, n);
            }
        }
    }
}
