#include "models/encoder_layout.h"

#include <stdio.h>
#include <string.h>

/* Extents of a shape, by name. */
typedef enum extent { NONE, VOCAB, POSITIONS, TYPES, HIDDEN, INTERMEDIATE, LABELS } extent;

typedef struct entry {
    const char *name;
    extent rows, cols;      /* cols NONE: a vector */
} entry;

static const entry embeddings[HA_EMB_PARAMS] = {
    [HA_EMB_WORD] = {"bert.embeddings.word_embeddings.weight", VOCAB, HIDDEN},
    [HA_EMB_POSITION] = {"bert.embeddings.position_embeddings.weight", POSITIONS, HIDDEN},
    [HA_EMB_TYPE] = {"bert.embeddings.token_type_embeddings.weight", TYPES, HIDDEN},
    [HA_EMB_NORM_W] = {"bert.embeddings.LayerNorm.weight", HIDDEN, NONE},
    [HA_EMB_NORM_B] = {"bert.embeddings.LayerNorm.bias", HIDDEN, NONE},
};
static const entry layer[HA_LAYER_PARAMS] = {
    [HA_Q_W] = {"attention.self.query.weight", HIDDEN, HIDDEN},
    [HA_K_W] = {"attention.self.key.weight", HIDDEN, HIDDEN},
    [HA_V_W] = {"attention.self.value.weight", HIDDEN, HIDDEN},
    [HA_Q_B] = {"attention.self.query.bias", HIDDEN, NONE},
    [HA_K_B] = {"attention.self.key.bias", HIDDEN, NONE},
    [HA_V_B] = {"attention.self.value.bias", HIDDEN, NONE},
    [HA_OUT_W] = {"attention.output.dense.weight", HIDDEN, HIDDEN},
    [HA_OUT_B] = {"attention.output.dense.bias", HIDDEN, NONE},
    [HA_NORM1_W] = {"attention.output.LayerNorm.weight", HIDDEN, NONE},
    [HA_NORM1_B] = {"attention.output.LayerNorm.bias", HIDDEN, NONE},
    [HA_UP_W] = {"intermediate.dense.weight", INTERMEDIATE, HIDDEN},
    [HA_UP_B] = {"intermediate.dense.bias", INTERMEDIATE, NONE},
    [HA_DOWN_W] = {"output.dense.weight", HIDDEN, INTERMEDIATE},
    [HA_DOWN_B] = {"output.dense.bias", HIDDEN, NONE},
    [HA_NORM2_W] = {"output.LayerNorm.weight", HIDDEN, NONE},
    [HA_NORM2_B] = {"output.LayerNorm.bias", HIDDEN, NONE},
};
static const entry head[HA_HEAD_PARAMS] = {
    [HA_POOL_W] = {"bert.pooler.dense.weight", HIDDEN, HIDDEN},
    [HA_POOL_B] = {"bert.pooler.dense.bias", HIDDEN, NONE},
    [HA_CLS_W] = {"classifier.weight", LABELS, HIDDEN},
    [HA_CLS_B] = {"classifier.bias", LABELS, NONE},
};
static const char layer_prefix[] = "bert.encoder.layer.";

static size_t
extent_of(const ha_encoder_config *config, extent which)
{
    switch (which) {
    case VOCAB: return config->vocab_size;
    case POSITIONS: return config->max_position_embeddings;
    case TYPES: return config->type_vocab_size;
    case HIDDEN: return config->hidden_size;
    case INTERMEDIATE: return config->intermediate_size;
    case LABELS: return config->num_labels;
    default: return 1;
    }
}

void
ha_param_describe(const ha_encoder_config *config, size_t i, size_t offset, ha_param *out)
{
    const size_t first_head = ha_head_param(config, 0);
    const entry *e;
    *out = (ha_param){.offset = offset};
    if (i >= HA_EMB_PARAMS && i < first_head) {
        e = &layer[(i - HA_EMB_PARAMS) % HA_LAYER_PARAMS];
        snprintf(out->name, sizeof(out->name), "%s%zu.%s", layer_prefix, (i - HA_EMB_PARAMS) / HA_LAYER_PARAMS, e->name);
    } else {
        e = i < HA_EMB_PARAMS ? &embeddings[i] : &head[i - first_head];
        snprintf(out->name, sizeof(out->name), "%s", e->name);
    }
    out->ndim = e->cols != NONE ? 2 : 1;
    out->shape[0] = extent_of(config, e->rows);
    out->shape[1] = extent_of(config, e->cols);     /* 1 for a vector */
    out->size = out->shape[0] * out->shape[1];      /* each extent <= 2^24: config.json was checked */
}

static size_t
find_entry(const entry *table, size_t count, const char *name)
{
    size_t i = 0;
    while (i < count && strcmp(table[i].name, name) != 0) {
        i++;
    }
    return i;
}

size_t
ha_param_index(const ha_encoder_config *config, const char *name)
{
    const size_t none = ha_params_count(config), skip = sizeof(layer_prefix) - 1;
    size_t i = find_entry(embeddings, HA_EMB_PARAMS, name);
    if (i < HA_EMB_PARAMS) {
        return i;
    }
    if ((i = find_entry(head, HA_HEAD_PARAMS, name)) < HA_HEAD_PARAMS) {
        return ha_head_param(config, i);
    }
    if (strncmp(name, layer_prefix, skip) != 0) {
        return none;
    }
    size_t number = 0;
    const char *at = name + skip, *digits = at;
    while (*at >= '0' && *at <= '9' && number < config->n_layers) {
        number = number * 10 + (size_t)(*at++ - '0');
    }
    if (at == digits || (*digits == '0' && at != digits + 1) || *at != '.' || number >= config->n_layers) {
        return none;
    }
    i = find_entry(layer, HA_LAYER_PARAMS, at + 1);
    return i < HA_LAYER_PARAMS ? ha_layer_param(number, i) : none;
}
