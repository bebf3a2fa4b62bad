/* A ragged batch on its way into the model: checked, and its position and token type embeddings. */
#ifndef HARMAUG_MODELS_ENCODER_BATCH_H
#define HARMAUG_MODELS_ENCODER_BATCH_H

#include "core/status.h"
#include "models/encoder.h"

/* HA_ERR_VALUE names the first row that is empty, too long, or holds an id or a token type outside its table. */
ha_status ha_batch_check(const ha_encoder_config *config, const ha_batch *batch, ha_error *err);

/* The position of a row's next token, of which *seen before it are no padding. */
static inline size_t
ha_batch_position(const ha_encoder_config *config, int32_t id, size_t *seen)
{
    const int padding = id == config->pad_id;
    const size_t number = config->pad_id < 0 ? *seen : (size_t)config->pad_id + (padding ? 0 : *seen + 1);
    *seen += !padding;
    return number;
}

/* x (tokens of rows [first, last), embedding_size) += type row, then += position row; position (positions, embedding_size), type (types, same);
 * either may be NULL. */
void ha_batch_add_positions(const ha_encoder_config *config, const ha_batch *batch, size_t first, size_t last,
                            const float *position, const float *type, float *x, int n_threads);

#endif
