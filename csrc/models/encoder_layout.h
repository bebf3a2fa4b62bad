/* Where each tensor of an encoder stands: one list of names and shapes that reading, writing, inference and training share. */
#ifndef HARMAUG_MODELS_ENCODER_LAYOUT_H
#define HARMAUG_MODELS_ENCODER_LAYOUT_H

#include <stddef.h>

#include "core/status.h"
#include "models/encoder.h"

#define HA_PATH_MAX 4096

/* Index of a parameter: the embeddings' first (with all that stands outside the layers), then HA_LAYER_PARAMS for each layer, then the head's.
 * The list is that of all families together: what a model lacks has size 0. The three projection weights, and their biases, stand back
 * to back so that query+key+value is one (3 hidden, hidden) matrix and key+value one (2 hidden, hidden). */
enum {
    HA_EMB_WORD, HA_EMB_POSITION, HA_EMB_TYPE, HA_EMB_NORM_W, HA_EMB_NORM_B,
    HA_EMB_PROJECT_W, HA_EMB_PROJECT_B,
    HA_RELATIVE, HA_RELATIVE_NORM_W, HA_RELATIVE_NORM_B,            /* DeBERTa's table of relative positions */
    HA_CONV_W, HA_CONV_B, HA_CONV_NORM_W, HA_CONV_NORM_B,           /* DeBERTa v2's convolution beside the first layer */
    HA_FINAL_NORM_W, HA_FINAL_NORM_B,
    HA_EMB_PARAMS
};
enum {
    HA_Q_W, HA_K_W, HA_V_W, HA_Q_B, HA_K_B, HA_V_B, HA_OUT_W, HA_OUT_B, HA_NORM1_W, HA_NORM1_B,     /* ModernBERT: Q_W is all three */
    HA_UP_W, HA_UP_B, HA_DOWN_W, HA_DOWN_B, HA_NORM2_W, HA_NORM2_B,
    HA_POS_KEY_W, HA_POS_KEY_B, HA_POS_QUERY_W, HA_POS_QUERY_B,
    HA_LAYER_PARAMS
};
enum {
    HA_POOL_W, HA_POOL_B, HA_CLS_W, HA_CLS_B, HA_HEAD_NORM_W, HA_HEAD_NORM_B,
    HA_HEAD_PARAMS
};

static inline size_t
ha_layer_param(size_t layer, size_t which)
{
    return HA_EMB_PARAMS + layer * HA_LAYER_PARAMS + which;
}

static inline size_t
ha_head_param(const ha_encoder_config *config, size_t which)
{
    return HA_EMB_PARAMS + config->n_layers * HA_LAYER_PARAMS + which;
}

static inline size_t
ha_params_count(const ha_encoder_config *config)
{
    return HA_EMB_PARAMS + config->n_layers * HA_LAYER_PARAMS + HA_HEAD_PARAMS;
}

/* How far a parameter stands from the embeddings: 0 for them (relative positions and the convolution beside the first layer included), 1 .. n_layers for
 * the layers, n_layers + 1 for what follows them. */
static inline size_t
ha_param_depth(const ha_encoder_config *config, size_t i)
{
    const size_t head = ha_head_param(config, 0);
    if (i >= head || i == HA_FINAL_NORM_W || i == HA_FINAL_NORM_B) {
        return config->n_layers + 1;
    }
    return i < HA_EMB_PARAMS ? 0 : 1 + (i - HA_EMB_PARAMS) / HA_LAYER_PARAMS;
}

/* Elements of a row: a matrix (rows, ...) is read by rows, a vector is one row. */
static inline size_t
ha_param_cols(const ha_param *param)
{
    return param->ndim > 1 ? param->shape[1] * param->shape[2] : param->shape[0];
}

const char *ha_family_name(ha_encoder_family family);   /* for messages */

/* Name, shape, offset and size of parameter i; `offset` comes from the caller's running total. Size 0, and no name: the model lacks it. */
void ha_param_describe(const ha_encoder_config *config, size_t i, size_t offset, ha_param *out);

/* The parameter of that name, or ha_params_count(config). */
size_t ha_param_index(const ha_encoder_config *config, const char *name);

/* Whether a tensor of a checkpoint, by its canonical name, is known to play no part in classification: buffers, the heads of pretraining. */
int ha_tensor_is_ignored(const ha_encoder_config *config, const char *name);

/* The name in this library of a tensor of a checkpoint: with its prefix ("bert.") where a bare model's names lack it, LayerNorm's old
 * gamma and beta (checkpoints converted from TensorFlow) as weight and bias. */
void ha_tensor_canonical_name(const ha_encoder_config *config, const char *name, char *out, size_t size);

/* A checkpoint opened and checked against a configuration: which tensor of the file each parameter comes from. */
typedef struct ha_checkpoint ha_checkpoint;

/* config: as read from the folder; *config becomes that of the kept layers and the new head. The arguments are those of ha_encoder_params_read. */
ha_status ha_checkpoint_open(const char *folder, ha_encoder_config *config, const size_t *layers, size_t n_kept, size_t new_head,
                             uint64_t seed, ha_checkpoint **out, ha_error *err);
void ha_checkpoint_close(ha_checkpoint *checkpoint);
/* Rows [first, first + count) of parameter i (a vector is one row) as float32: out (count, ha_param_cols). */
ha_status ha_checkpoint_rows(const ha_checkpoint *checkpoint, size_t i, size_t first, size_t count, float *out, ha_error *err);
int ha_checkpoint_stamp(const ha_checkpoint *checkpoint, uint8_t digest[32]);     /* of its files: ha_tensor_file_stamp */
void ha_checkpoint_forget(const ha_checkpoint *checkpoint, size_t i);              /* the pages of parameter i are not needed for now */

/* folder/name into out (size bytes); HA_ERR_VALUE when it does not fit. */
ha_status ha_path_join(const char *folder, const char *name, char *out, size_t size, ha_error *err);

#endif
