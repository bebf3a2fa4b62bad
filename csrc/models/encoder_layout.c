#include "models/encoder_layout.h"

#include <stdio.h>
#include <string.h>

/* Extents of a shape, by name. An extent of 0 says that the model lacks the tensor. */
typedef enum extent {
    NONE, VOCAB, POSITIONS, TYPES, EMBEDDING, HIDDEN, QKV, INTERMEDIATE, UP, LABELS,
    EMBEDDING_NORM, PROJECT, PROJECT_BIAS, RELATIVE, RELATIVE_NORM, CONV, CONV_FAN_IN, CONV_KERNEL, POS_KEY, POS_QUERY,
    /* hidden, or 0 where the configuration has none of it */
    FIRST_NORM, FIRST_NORM_BIAS, NORM_BIAS, ATTENTION_BIAS, QKV_BIAS, UP_BIAS, DOWN_BIAS, HEAD_BIAS
} extent;

typedef struct entry {
    const char *name;           /* NULL: the family has no such tensor */
    extent rows, cols, depth;   /* cols NONE: a vector; depth NONE: a matrix */
} entry;

typedef struct family {
    const char *name;           /* in messages */
    const char *prefix;         /* of the base model, before the names in `embeddings` and before `layers` */
    const char *layers;
    const entry *embeddings, *layer, *head;
    const char *bare[5];        /* how names of a bare base model begin */
    const char *ignored[8];     /* beginnings of names, with the prefix */
} family;

/* -- names -- */

static const entry bert_embeddings[HA_EMB_PARAMS] = {
    [HA_EMB_WORD] = {"embeddings.word_embeddings.weight", VOCAB, EMBEDDING, NONE},
    [HA_EMB_POSITION] = {"embeddings.position_embeddings.weight", POSITIONS, EMBEDDING, NONE},
    [HA_EMB_TYPE] = {"embeddings.token_type_embeddings.weight", TYPES, EMBEDDING, NONE},
    [HA_EMB_NORM_W] = {"embeddings.LayerNorm.weight", EMBEDDING_NORM, NONE, NONE},
    [HA_EMB_NORM_B] = {"embeddings.LayerNorm.bias", EMBEDDING_NORM, NONE, NONE},
    [HA_EMB_PROJECT_W] = {"embeddings_project.weight", PROJECT, EMBEDDING, NONE},
    [HA_EMB_PROJECT_B] = {"embeddings_project.bias", PROJECT_BIAS, NONE, NONE},
};
static const entry deberta_embeddings[HA_EMB_PARAMS] = {
    [HA_EMB_WORD] = {"embeddings.word_embeddings.weight", VOCAB, EMBEDDING, NONE},
    [HA_EMB_POSITION] = {"embeddings.position_embeddings.weight", POSITIONS, EMBEDDING, NONE},
    [HA_EMB_TYPE] = {"embeddings.token_type_embeddings.weight", TYPES, EMBEDDING, NONE},
    [HA_EMB_NORM_W] = {"embeddings.LayerNorm.weight", EMBEDDING_NORM, NONE, NONE},
    [HA_EMB_NORM_B] = {"embeddings.LayerNorm.bias", EMBEDDING_NORM, NONE, NONE},
    [HA_EMB_PROJECT_W] = {"embeddings.embed_proj.weight", PROJECT, EMBEDDING, NONE},
    [HA_RELATIVE] = {"encoder.rel_embeddings.weight", RELATIVE, HIDDEN, NONE},
    [HA_RELATIVE_NORM_W] = {"encoder.LayerNorm.weight", RELATIVE_NORM, NONE, NONE},
    [HA_RELATIVE_NORM_B] = {"encoder.LayerNorm.bias", RELATIVE_NORM, NONE, NONE},
    [HA_CONV_W] = {"encoder.conv.conv.weight", CONV, CONV_FAN_IN, CONV_KERNEL},
    [HA_CONV_B] = {"encoder.conv.conv.bias", CONV, NONE, NONE},
    [HA_CONV_NORM_W] = {"encoder.conv.LayerNorm.weight", CONV, NONE, NONE},
    [HA_CONV_NORM_B] = {"encoder.conv.LayerNorm.bias", CONV, NONE, NONE},
};
static const entry modernbert_embeddings[HA_EMB_PARAMS] = {
    [HA_EMB_WORD] = {"embeddings.tok_embeddings.weight", VOCAB, EMBEDDING, NONE},
    [HA_EMB_NORM_W] = {"embeddings.norm.weight", HIDDEN, NONE, NONE},
    [HA_EMB_NORM_B] = {"embeddings.norm.bias", NORM_BIAS, NONE, NONE},
    [HA_FINAL_NORM_W] = {"final_norm.weight", HIDDEN, NONE, NONE},
    [HA_FINAL_NORM_B] = {"final_norm.bias", NORM_BIAS, NONE, NONE},
};

#define BERT_BLOCKS \
    [HA_OUT_W] = {"attention.output.dense.weight", HIDDEN, HIDDEN, NONE}, \
    [HA_OUT_B] = {"attention.output.dense.bias", HIDDEN, NONE, NONE}, \
    [HA_NORM1_W] = {"attention.output.LayerNorm.weight", HIDDEN, NONE, NONE}, \
    [HA_NORM1_B] = {"attention.output.LayerNorm.bias", HIDDEN, NONE, NONE}, \
    [HA_UP_W] = {"intermediate.dense.weight", INTERMEDIATE, HIDDEN, NONE}, \
    [HA_UP_B] = {"intermediate.dense.bias", INTERMEDIATE, NONE, NONE}, \
    [HA_DOWN_W] = {"output.dense.weight", HIDDEN, INTERMEDIATE, NONE}, \
    [HA_DOWN_B] = {"output.dense.bias", HIDDEN, NONE, NONE}, \
    [HA_NORM2_W] = {"output.LayerNorm.weight", HIDDEN, NONE, NONE}, \
    [HA_NORM2_B] = {"output.LayerNorm.bias", HIDDEN, NONE, NONE}

static const entry bert_layer[HA_LAYER_PARAMS] = {
    [HA_Q_W] = {"attention.self.query.weight", HIDDEN, HIDDEN, NONE},
    [HA_K_W] = {"attention.self.key.weight", HIDDEN, HIDDEN, NONE},
    [HA_V_W] = {"attention.self.value.weight", HIDDEN, HIDDEN, NONE},
    [HA_Q_B] = {"attention.self.query.bias", HIDDEN, NONE, NONE},
    [HA_K_B] = {"attention.self.key.bias", HIDDEN, NONE, NONE},
    [HA_V_B] = {"attention.self.value.bias", HIDDEN, NONE, NONE},
    BERT_BLOCKS,
};
static const entry deberta_layer[HA_LAYER_PARAMS] = {
    [HA_Q_W] = {"attention.self.query_proj.weight", HIDDEN, HIDDEN, NONE},
    [HA_K_W] = {"attention.self.key_proj.weight", HIDDEN, HIDDEN, NONE},
    [HA_V_W] = {"attention.self.value_proj.weight", HIDDEN, HIDDEN, NONE},
    [HA_Q_B] = {"attention.self.query_proj.bias", HIDDEN, NONE, NONE},
    [HA_K_B] = {"attention.self.key_proj.bias", HIDDEN, NONE, NONE},
    [HA_V_B] = {"attention.self.value_proj.bias", HIDDEN, NONE, NONE},
    [HA_POS_KEY_W] = {"attention.self.pos_key_proj.weight", POS_KEY, HIDDEN, NONE},
    [HA_POS_KEY_B] = {"attention.self.pos_key_proj.bias", POS_KEY, NONE, NONE},
    [HA_POS_QUERY_W] = {"attention.self.pos_query_proj.weight", POS_QUERY, HIDDEN, NONE},
    [HA_POS_QUERY_B] = {"attention.self.pos_query_proj.bias", POS_QUERY, NONE, NONE},
    BERT_BLOCKS,
};
static const entry distilbert_layer[HA_LAYER_PARAMS] = {
    [HA_Q_W] = {"attention.q_lin.weight", HIDDEN, HIDDEN, NONE},
    [HA_K_W] = {"attention.k_lin.weight", HIDDEN, HIDDEN, NONE},
    [HA_V_W] = {"attention.v_lin.weight", HIDDEN, HIDDEN, NONE},
    [HA_Q_B] = {"attention.q_lin.bias", HIDDEN, NONE, NONE},
    [HA_K_B] = {"attention.k_lin.bias", HIDDEN, NONE, NONE},
    [HA_V_B] = {"attention.v_lin.bias", HIDDEN, NONE, NONE},
    [HA_OUT_W] = {"attention.out_lin.weight", HIDDEN, HIDDEN, NONE},
    [HA_OUT_B] = {"attention.out_lin.bias", HIDDEN, NONE, NONE},
    [HA_NORM1_W] = {"sa_layer_norm.weight", HIDDEN, NONE, NONE},
    [HA_NORM1_B] = {"sa_layer_norm.bias", HIDDEN, NONE, NONE},
    [HA_UP_W] = {"ffn.lin1.weight", INTERMEDIATE, HIDDEN, NONE},
    [HA_UP_B] = {"ffn.lin1.bias", INTERMEDIATE, NONE, NONE},
    [HA_DOWN_W] = {"ffn.lin2.weight", HIDDEN, INTERMEDIATE, NONE},
    [HA_DOWN_B] = {"ffn.lin2.bias", HIDDEN, NONE, NONE},
    [HA_NORM2_W] = {"output_layer_norm.weight", HIDDEN, NONE, NONE},
    [HA_NORM2_B] = {"output_layer_norm.bias", HIDDEN, NONE, NONE},
};
static const entry modernbert_layer[HA_LAYER_PARAMS] = {
    [HA_Q_W] = {"attn.Wqkv.weight", QKV, HIDDEN, NONE},
    [HA_Q_B] = {"attn.Wqkv.bias", QKV_BIAS, NONE, NONE},
    [HA_OUT_W] = {"attn.Wo.weight", HIDDEN, HIDDEN, NONE},
    [HA_OUT_B] = {"attn.Wo.bias", ATTENTION_BIAS, NONE, NONE},
    [HA_NORM1_W] = {"attn_norm.weight", FIRST_NORM, NONE, NONE},
    [HA_NORM1_B] = {"attn_norm.bias", FIRST_NORM_BIAS, NONE, NONE},
    [HA_UP_W] = {"mlp.Wi.weight", UP, HIDDEN, NONE},
    [HA_UP_B] = {"mlp.Wi.bias", UP_BIAS, NONE, NONE},
    [HA_DOWN_W] = {"mlp.Wo.weight", HIDDEN, INTERMEDIATE, NONE},
    [HA_DOWN_B] = {"mlp.Wo.bias", DOWN_BIAS, NONE, NONE},
    [HA_NORM2_W] = {"mlp_norm.weight", HIDDEN, NONE, NONE},
    [HA_NORM2_B] = {"mlp_norm.bias", NORM_BIAS, NONE, NONE},
};

#define HEAD(pool, classifier) { \
    [HA_POOL_W] = {pool ".weight", HIDDEN, HIDDEN, NONE}, \
    [HA_POOL_B] = {pool ".bias", HIDDEN, NONE, NONE}, \
    [HA_CLS_W] = {classifier ".weight", LABELS, HIDDEN, NONE}, \
    [HA_CLS_B] = {classifier ".bias", LABELS, NONE, NONE}, \
}
static const entry bert_head[HA_HEAD_PARAMS] = HEAD("bert.pooler.dense", "classifier");
static const entry roberta_head[HA_HEAD_PARAMS] = HEAD("classifier.dense", "classifier.out_proj");     /* ELECTRA's too */
static const entry distilbert_head[HA_HEAD_PARAMS] = HEAD("pre_classifier", "classifier");
static const entry deberta_head[HA_HEAD_PARAMS] = HEAD("pooler.dense", "classifier");
static const entry modernbert_head[HA_HEAD_PARAMS] = {
    [HA_POOL_W] = {"head.dense.weight", HIDDEN, HIDDEN, NONE},
    [HA_POOL_B] = {"head.dense.bias", HEAD_BIAS, NONE, NONE},
    [HA_CLS_W] = {"classifier.weight", LABELS, HIDDEN, NONE},
    [HA_CLS_B] = {"classifier.bias", LABELS, NONE, NONE},
    [HA_HEAD_NORM_W] = {"head.norm.weight", HIDDEN, NONE, NONE},
    [HA_HEAD_NORM_B] = {"head.norm.bias", NORM_BIAS, NONE, NONE},
};

static const family families[HA_N_FAMILIES] = {
    [HA_BERT] = {"BERT", "bert.", "encoder.layer.", bert_embeddings, bert_layer, bert_head,
                 {"embeddings.", "encoder.", "pooler."}, {"cls."}},
    [HA_ROBERTA] = {"RoBERTa", "roberta.", "encoder.layer.", bert_embeddings, bert_layer, roberta_head,
                    {"embeddings.", "encoder.", "pooler."}, {"lm_head.", "roberta.pooler."}},
    [HA_ELECTRA] = {"ELECTRA", "electra.", "encoder.layer.", bert_embeddings, bert_layer, roberta_head,
                    {"embeddings.", "embeddings_project.", "encoder."},
                    {"discriminator_predictions.", "generator_predictions.", "generator_lm_head."}},
    [HA_DISTILBERT] = {"DistilBERT", "distilbert.", "transformer.layer.", bert_embeddings, distilbert_layer, distilbert_head,
                       {"embeddings.", "transformer."}, {"vocab_transform.", "vocab_layer_norm.", "vocab_projector."}},
    /* DeBERTa's own files hold a table of positions whether the model reads it or not */
    [HA_DEBERTA_V2] = {"DeBERTa-v2", "deberta.", "encoder.layer.", deberta_embeddings, deberta_layer, deberta_head,
                       {"embeddings.", "encoder."},
                       {"cls.", "lm_predictions.", "mask_predictions.", "deberta.embeddings.position_embeddings."}},
    [HA_MODERNBERT] = {"ModernBERT", "model.", "layers.", modernbert_embeddings, modernbert_layer, modernbert_head,
                       {"embeddings.", "layers.", "final_norm."}, {"decoder."}},
};

const char *
ha_family_name(ha_encoder_family which)
{
    return families[which].name;
}

/* -- shapes -- */

static size_t
extent_of(const ha_encoder_config *c, extent which, size_t layer)
{
    const size_t h = c->hidden_size;
    switch (which) {
    case NONE: return 1;
    case VOCAB: return c->vocab_size;
    case POSITIONS: return c->absolute_positions ? c->max_position_embeddings : 0;
    case TYPES: return c->type_vocab_size;
    case EMBEDDING: return c->embedding_size;
    case HIDDEN: return h;
    case QKV: return 3 * h;
    case INTERMEDIATE: return c->intermediate_size;
    case UP: return c->gated ? 2 * c->intermediate_size : c->intermediate_size;
    case LABELS: return c->num_labels;
    case EMBEDDING_NORM: return c->project_first ? h : c->embedding_size;
    case PROJECT: return c->embedding_size != h ? h : 0;
    case PROJECT_BIAS: return c->embedding_size != h && !c->project_first ? h : 0;
    case RELATIVE: return 2 * c->relative_span;
    case RELATIVE_NORM: return c->norm_rel_ebd ? h : 0;
    case CONV: return c->conv_kernel_size > 0 ? h : 0;
    case CONV_FAN_IN: return c->conv_groups > 0 ? h / c->conv_groups : 0;
    case CONV_KERNEL: return c->conv_kernel_size;
    case POS_KEY: return c->relative_span > 0 && c->c2p && !c->share_att_key ? h : 0;
    case POS_QUERY: return c->relative_span > 0 && c->p2c && !c->share_att_key ? h : 0;
    case FIRST_NORM: return layer > 0 ? h : 0;
    case FIRST_NORM_BIAS: return layer > 0 && c->norm_bias ? h : 0;
    case NORM_BIAS: return c->norm_bias ? h : 0;
    case ATTENTION_BIAS: return c->attention_bias ? h : 0;
    case QKV_BIAS: return c->attention_bias ? 3 * h : 0;
    case UP_BIAS: return c->mlp_bias ? 2 * c->intermediate_size : 0;
    case DOWN_BIAS: return c->mlp_bias ? h : 0;
    case HEAD_BIAS: return c->head_bias ? h : 0;
    }
    return 0;
}

void
ha_param_describe(const ha_encoder_config *config, size_t i, size_t offset, ha_param *out)
{
    const family *f = &families[config->family];
    const size_t first_head = ha_head_param(config, 0);
    const int in_layer = i >= HA_EMB_PARAMS && i < first_head;
    const size_t layer = in_layer ? (i - HA_EMB_PARAMS) / HA_LAYER_PARAMS : 0;
    const entry *e = in_layer ? &f->layer[(i - HA_EMB_PARAMS) % HA_LAYER_PARAMS] : i < HA_EMB_PARAMS ? &f->embeddings[i] : &f->head[i - first_head];
    *out = (ha_param){.offset = offset};
    if (e->name == NULL || extent_of(config, e->rows, layer) == 0) {
        return;
    }
    if (in_layer) {
        snprintf(out->name, sizeof(out->name), "%s%s%zu.%s", f->prefix, f->layers, layer, e->name);
    } else {
        snprintf(out->name, sizeof(out->name), "%s%s", i < HA_EMB_PARAMS ? f->prefix : "", e->name);
    }
    out->ndim = e->depth != NONE ? 3 : e->cols != NONE ? 2 : 1;
    out->shape[0] = extent_of(config, e->rows, layer);
    out->shape[1] = extent_of(config, e->cols, layer);
    out->shape[2] = extent_of(config, e->depth, layer);
    out->size = out->shape[0] * out->shape[1] * out->shape[2];      /* config.json was checked: no product comes near 2^64 */
}

/* -- names to parameters -- */

static int
starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static int
starts_with_one_of(const char *text, const char *const *prefixes, size_t most)
{
    for (size_t i = 0; i < most && prefixes[i] != NULL; i++) {
        if (starts_with(text, prefixes[i])) {
            return 1;
        }
    }
    return 0;
}

static int
ends_with(const char *text, const char *suffix)
{
    const size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

static size_t
find_entry(const entry *table, size_t count, const char *name)
{
    size_t i = 0;
    while (i < count && (table[i].name == NULL || strcmp(table[i].name, name) != 0)) {
        i++;
    }
    return i;
}

/* The index that the tables give, whether this model has the parameter or not. */
static size_t
index_of_name(const ha_encoder_config *config, const char *name)
{
    const family *f = &families[config->family];
    const size_t none = ha_params_count(config);
    size_t i = find_entry(f->head, HA_HEAD_PARAMS, name);
    if (i < HA_HEAD_PARAMS) {
        return ha_head_param(config, i);
    }
    if (!starts_with(name, f->prefix)) {
        return none;
    }
    name += strlen(f->prefix);
    if ((i = find_entry(f->embeddings, HA_EMB_PARAMS, name)) < HA_EMB_PARAMS) {
        return i;
    }
    if (!starts_with(name, f->layers)) {
        return none;
    }
    size_t number = 0;
    const char *digits = name + strlen(f->layers), *at = digits;
    while (*at >= '0' && *at <= '9' && number < config->n_layers) {
        number = number * 10 + (size_t)(*at++ - '0');
    }
    if (at == digits || (*digits == '0' && at != digits + 1) || *at != '.' || number >= config->n_layers) {
        return none;
    }
    i = find_entry(f->layer, HA_LAYER_PARAMS, at + 1);
    return i < HA_LAYER_PARAMS ? ha_layer_param(number, i) : none;
}

size_t
ha_param_index(const ha_encoder_config *config, const char *name)
{
    const size_t i = index_of_name(config, name), none = ha_params_count(config);
    ha_param param = {0};
    if (i < none) {
        ha_param_describe(config, i, 0, &param);
    }
    return param.size > 0 ? i : none;
}

int
ha_tensor_is_ignored(const ha_encoder_config *config, const char *name)
{
    const family *f = &families[config->family];
    return ends_with(name, "position_ids") || (starts_with_one_of(name, f->ignored, 8) && ha_param_index(config, name) == ha_params_count(config));
}

void
ha_tensor_canonical_name(const ha_encoder_config *config, const char *name, char *out, size_t size)
{
    const family *f = &families[config->family];
    snprintf(out, size, "%s%s", starts_with_one_of(name, f->bare, 5) ? f->prefix : "", name);
    char *dot = strrchr(out, '.');
    if (dot != NULL && (size_t)(dot - out) + sizeof(".weight") <= size && ends_with(name, "LayerNorm.gamma")) {
        strcpy(dot, ".weight");
    } else if (dot != NULL && ends_with(name, "LayerNorm.beta")) {
        strcpy(dot, ".bias");
    }
}
