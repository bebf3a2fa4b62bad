/* Making the inference form of an encoder: every weight laid out, packed, and whatever does not depend on the input computed once. */
#include "models/encoder.h"

#include <stdlib.h>
#include <string.h>

#include "core/pages.h"
#include "models/encoder_cache.h"
#include "models/encoder_impl.h"
#include "models/encoder_parts.h"

/* -- layout -- */

static size_t
param_size(const ha_encoder *e, size_t i)
{
    ha_param param;
    ha_param_describe(&e->config, i, 0, &param);
    return param.size;
}

/* Rows [first, first + n) of the parameters from `weight` on, whose biases are those from `bias` on. */
static void
take_linear(ha_encoder *e, ha_linear *l, size_t weight, size_t bias, size_t first, size_t n, size_t k, ha_weight_format format)
{
    *l = (ha_linear){.n = n, .k = k, .weight = weight, .bias_param = bias, .first = first, .format = format};
    l->packed = ha_arena_take(&e->arena, e->kernels->linear_packed_bytes(format, n, k), 1);
    l->bias = param_size(e, bias) > 0 ? ha_arena_take(&e->arena, n, sizeof(float)) : NULL;
}

static size_t
table_floats(const ha_encoder *encoder)
{
    return encoder->kernels->linear_packed_bytes(HA_WEIGHT_F32, 2 * encoder->config.relative_span, encoder->config.head_dim) / sizeof(float);
}

int
ha_encoder_table_bf16(const ha_encoder *encoder)
{
    return encoder->format == HA_WEIGHT_I8;
}

size_t
ha_encoder_table_bytes(const ha_encoder *encoder)
{
    return table_floats(encoder) * (ha_encoder_table_bf16(encoder) ? sizeof(uint16_t) : sizeof(float));
}

/* The norm whose weight is `param` and whose bias comes next. */
static void
take_norm(ha_encoder *e, ha_norm *norm, size_t param)
{
    *norm = (ha_norm){.n = param_size(e, param), .param = param};
    norm->weight = norm->n > 0 ? ha_arena_take(&e->arena, norm->n, sizeof(float)) : NULL;
    norm->bias = param_size(e, param + 1) > 0 ? ha_arena_take(&e->arena, norm->n, sizeof(float)) : NULL;
}

static void
lay_out_layer(ha_encoder *e, ha_encoder_layer *l, size_t i, ha_weight_format format)
{
    const ha_encoder_config *c = &e->config;
    const size_t h = c->hidden_size, p = ha_layer_param(i, 0), table = c->n_heads * ha_encoder_table_bytes(e);
    memset(l, 0, sizeof(*l));
    l->cls_only = i + 1 == c->n_layers && !c->mean_pooling;
    if (l->cls_only) {
        take_linear(e, &l->q, p + HA_Q_W, p + HA_Q_B, 0, h, h, format);
        take_linear(e, &l->kv, p + HA_Q_W, p + HA_Q_B, h, 2 * h, h, format);
    } else {
        take_linear(e, &l->qkv, p + HA_Q_W, p + HA_Q_B, 0, 3 * h, h, format);
    }
    take_linear(e, &l->out, p + HA_OUT_W, p + HA_OUT_B, 0, h, h, format);
    take_linear(e, &l->up, p + HA_UP_W, p + HA_UP_B, 0, (c->gated ? 2 : 1) * c->intermediate_size, h, format);
    take_linear(e, &l->down, p + HA_DOWN_W, p + HA_DOWN_B, 0, h, c->intermediate_size, format);
    take_norm(e, &l->norm1, p + HA_NORM1_W);
    take_norm(e, &l->norm2, p + HA_NORM2_W);
    l->pos_key = table > 0 && c->c2p ? ha_arena_take(&e->arena, table, 1) : NULL;
    l->pos_query = table > 0 && c->p2c ? ha_arena_take(&e->arena, table, 1) : NULL;
}

/* Lays every weight out; run twice, see core/arena.h. */
static void
lay_out(ha_encoder *e, ha_weight_format format)
{
    const ha_encoder_config *c = &e->config;
    const size_t h = c->hidden_size, p = ha_head_param(c, 0), one = sizeof(float);
    const size_t positions = param_size(e, HA_EMB_POSITION), types = param_size(e, HA_EMB_TYPE);
    e->position = positions > 0 ? ha_arena_take(&e->arena, positions, one) : NULL;
    e->type = types > 0 ? ha_arena_take(&e->arena, types, one) : NULL;
    take_norm(e, &e->norm, HA_EMB_NORM_W);
    if (param_size(e, HA_EMB_PROJECT_W) > 0) {
        take_linear(e, &e->project, HA_EMB_PROJECT_W, HA_EMB_PROJECT_B, 0, h, c->embedding_size, ha_param_format(c, HA_EMB_PROJECT_W, format));
    }
    for (size_t i = 0; i < c->n_layers; i++) {
        lay_out_layer(e, &e->layers[i], i, format);
    }
    for (size_t g = 0; g < c->conv_groups; g++) {
        const size_t n = h / c->conv_groups;
        take_linear(e, &e->conv[g], HA_CONV_W, HA_CONV_B, g * n, n, n * c->conv_kernel_size, format);
    }
    take_norm(e, &e->conv_norm, HA_CONV_NORM_W);
    take_norm(e, &e->final_norm, HA_FINAL_NORM_W);
    for (int kind = 0; kind < 2; kind++) {
        e->inv_freq[kind] = c->rope_theta[kind] > 0 ? ha_arena_take(&e->arena, c->head_dim / 2, one) : NULL;
    }
    take_linear(e, &e->pooler, p + HA_POOL_W, p + HA_POOL_B, 0, h, h, HA_WEIGHT_F32);    /* the head is small: its precision costs nothing */
    take_linear(e, &e->classifier, p + HA_CLS_W, p + HA_CLS_B, 0, c->num_labels, h, HA_WEIGHT_F32);
    take_norm(e, &e->head_norm, p + HA_HEAD_NORM_W);
}

/* -- weights -- */

/* Rows [first, first + count) of the parameters from i on, one below the other. */
static ha_status
stacked_rows(const ha_source *from, size_t i, size_t first, size_t count, float *out, ha_error *err)
{
    ha_status status = HA_OK;
    for (; count > 0 && status == HA_OK; i++) {
        ha_param param;
        ha_param_describe(from->config, i, 0, &param);
        if (first >= param.shape[0]) {
            first -= param.shape[0];
            continue;
        }
        const size_t run = param.shape[0] - first < count ? param.shape[0] - first : count;
        status = ha_source_rows(from, i, first, run, out, err);
        out += run * ha_param_cols(&param);
        count -= run;
        first = 0;
    }
    return status;
}

/* Elements [first, first + count) of the vectors from i on, one behind the other. */
static ha_status
stacked_elements(const ha_source *from, size_t i, size_t first, size_t count, float *out, ha_error *err)
{
    ha_status status = HA_OK;
    for (; count > 0 && status == HA_OK; i++) {
        ha_param param;
        ha_param_describe(from->config, i, 0, &param);
        if (first >= param.size) {
            first -= param.size;
            continue;
        }
        const size_t run = param.size - first < count ? param.size - first : count;
        float *whole = malloc(param.size * sizeof(float));
        if (whole == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
        }
        if ((status = ha_source_rows(from, i, 0, 1, whole, err)) == HA_OK) {
            memcpy(out, whole + first, run * sizeof(float));
        }
        free(whole);
        out += run;
        count -= run;
        first = 0;
    }
    return status;
}

static ha_status
fill_linear(ha_encoder *e, const ha_source *from, ha_linear *l, ha_error *err)
{
    float *panel = malloc((HA_PANEL * l->k + 1) * sizeof(float));
    ha_status status = HA_OK;
    if (panel == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    }
    for (size_t first = 0; first < l->n && status == HA_OK; first += HA_PANEL) {
        const size_t count = l->n - first < HA_PANEL ? l->n - first : HA_PANEL;
        if ((status = stacked_rows(from, l->weight, l->first + first, count, panel, err)) == HA_OK) {
            e->kernels->linear_pack(l->packed, l->format, l->n, l->k, first, count, panel, l->k);
        }
    }
    free(panel);
    if (from->checkpoint != NULL && l->n > 0) {     /* a copy is enough */
        for (size_t rows = 0, i = l->weight; rows < l->first + l->n; i++) {
            ha_param param;
            ha_param_describe(from->config, i, 0, &param);
            rows += param.shape[0];
            ha_checkpoint_forget(from->checkpoint, i);
        }
    }
    return status == HA_OK && l->bias != NULL ? stacked_elements(from, l->bias_param, l->first, l->n, l->bias, err) : status;
}

static ha_status
fill_norm(const ha_source *from, ha_norm *norm, ha_error *err)
{
    const ha_status status = norm->n > 0 ? ha_source_rows(from, norm->param, 0, 1, norm->weight, err) : HA_OK;
    return status == HA_OK && norm->bias != NULL ? ha_source_rows(from, norm->param + 1, 0, 1, norm->bias, err) : status;
}

static ha_status
fill_layer(ha_encoder *e, const ha_source *from, size_t i, ha_error *err)
{
    ha_encoder_layer *l = &e->layers[i];
    ha_linear *const linears[] = {&l->qkv, &l->q, &l->kv, &l->out, &l->up, &l->down};
    ha_status status = HA_OK;
    for (size_t j = 0; j < sizeof(linears) / sizeof(linears[0]) && status == HA_OK; j++) {
        status = fill_linear(e, from, linears[j], err);
    }
    if (status != HA_OK || (status = fill_norm(from, &l->norm1, err)) != HA_OK) {
        return status;
    }
    return fill_norm(from, &l->norm2, err);
}

/* -- relative positions: their projections do not depend on the text (where dropout is off) -- */

/* out: table (rows, hidden) W^T + b, packed head by head */
static ha_status
project_table(const ha_encoder *e, const ha_source *from, const float *table, size_t weight, size_t bias, void *out, ha_error *err)
{
    const size_t h = e->config.hidden_size, rows = 2 * e->config.relative_span;
    const size_t d = e->config.head_dim, floats = table_floats(e);
    const int narrow = ha_encoder_table_bf16(e);
    float *w = malloc(h * h * sizeof(float)), *plain = malloc(rows * h * sizeof(float)), *wide = calloc(narrow ? floats : 1, sizeof(float));
    void *scratch = malloc(e->kernels->gemm_scratch_bytes(rows, h, h, 0));
    ha_status status = w != NULL && plain != NULL && wide != NULL && scratch != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    if (status == HA_OK && (status = ha_source_rows(from, weight, 0, h, w, err)) == HA_OK && (status = ha_source_rows(from, bias, 0, 1, plain, err)) == HA_OK) {
        ha_round_rows(e->kernels, e->format, w, h, h);
        for (size_t i = 1; i < rows; i++) {
            memcpy(plain + i * h, plain, h * sizeof(float));
        }
        const ha_gemm gemm = {.m = rows, .n = h, .k = h, .alpha = 1.0f, .beta = 1.0f, .a = table, .a_row = (ptrdiff_t)h, .a_col = 1,
                              .b = w, .b_row = 1, .b_col = (ptrdiff_t)h, .c = plain, .ldc = h};
        e->kernels->gemm_f32(&gemm, scratch, 0);
        if (from->checkpoint != NULL) {
            ha_checkpoint_forget(from->checkpoint, weight);
        }
        for (size_t head = 0; head < e->config.n_heads; head++) {
            char *at = (char *)out + head * ha_encoder_table_bytes(e);
            for (size_t first = 0; first < rows; first += HA_PANEL) {
                e->kernels->linear_pack(narrow ? (void *)wide : at, HA_WEIGHT_F32, rows, d, first, rows - first < HA_PANEL ? rows - first : HA_PANEL,
                                        plain + first * h + head * d, h);
            }
            if (narrow) {
                e->kernels->f32_to_bf16((uint16_t *)(void *)at, wide, floats);
            }
        }
    }
    free(plain);
    free(scratch);
    free(wide);
    free(w);
    return status;
}

static ha_status
fill_relative(ha_encoder *e, const ha_source *from, ha_error *err)
{
    const ha_encoder_config *c = &e->config;
    const size_t h = c->hidden_size, rows = 2 * c->relative_span;
    float *table = malloc((rows + 2) * h * sizeof(float)), *norm = table + rows * h;
    ha_status status = table != NULL ? ha_source_rows(from, HA_RELATIVE, 0, rows, table, err) : ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    if (status == HA_OK && c->norm_rel_ebd && (status = ha_source_rows(from, HA_RELATIVE_NORM_W, 0, 1, norm, err)) == HA_OK &&
        (status = ha_source_rows(from, HA_RELATIVE_NORM_B, 0, 1, norm + h, err)) == HA_OK) {
        e->kernels->layer_norm_f32(table, table, norm, norm + h, rows, h, c->layer_norm_eps, 0);
    }
    for (size_t i = 0; i < c->n_layers && status == HA_OK; i++) {
        const ha_encoder_layer *l = &e->layers[i];
        const size_t p = ha_layer_param(i, 0), key = p + (c->share_att_key ? HA_K_W : HA_POS_KEY_W), query = p + (c->share_att_key ? HA_Q_W : HA_POS_QUERY_W);
        const size_t key_bias = p + (c->share_att_key ? HA_K_B : HA_POS_KEY_B), query_bias = p + (c->share_att_key ? HA_Q_B : HA_POS_QUERY_B);
        if (l->pos_key != NULL) {
            status = project_table(e, from, table, key, key_bias, l->pos_key, err);
        }
        if (status == HA_OK && l->pos_query != NULL) {
            status = project_table(e, from, table, query, query_bias, l->pos_query, err);
        }
        for (size_t w = 0; w < 2 && from->checkpoint != NULL; w++) {
            ha_checkpoint_forget(from->checkpoint, w == 0 ? key : query);
        }
    }
    free(table);
    return status;
}

/* -- the whole -- */

static const char *const format_names[] = {[HA_WEIGHT_F32] = "float32", [HA_WEIGHT_BF16] = "bfloat16", [HA_WEIGHT_I8] = "int8"};

const char *
ha_weight_format_name(ha_weight_format format)
{
    return format_names[format];
}

ha_status
ha_weight_format_named(const char *dtype, ha_weight_format *out, ha_error *err)
{
    for (size_t i = 0; i < sizeof(format_names) / sizeof(format_names[0]); i++) {
        if (strcmp(dtype, format_names[i]) == 0) {
            *out = (ha_weight_format)i;
            return HA_OK;
        }
    }
    return ha_fail(err, HA_ERR_VALUE, "dtype must be float32, bfloat16 or int8, got '%.60s'", dtype);
}

static ha_status
fill(ha_encoder *e, const ha_source *from, ha_error *err)
{
    const ha_encoder_config *c = &e->config;
    ha_linear *const linears[] = {&e->project, &e->pooler, &e->classifier};
    ha_norm *const norms[] = {&e->norm, &e->conv_norm, &e->final_norm, &e->head_norm};
    ha_status status = HA_OK;
    if (e->position != NULL) {
        status = ha_source_rows(from, HA_EMB_POSITION, 0, c->max_position_embeddings, e->position, err);
    }
    if (status == HA_OK && e->type != NULL) {
        status = ha_source_rows(from, HA_EMB_TYPE, 0, c->type_vocab_size, e->type, err);
    }
    for (size_t i = 0; i < sizeof(linears) / sizeof(linears[0]) && status == HA_OK; i++) {
        status = fill_linear(e, from, linears[i], err);
    }
    for (size_t i = 0; i < sizeof(norms) / sizeof(norms[0]) && status == HA_OK; i++) {
        status = fill_norm(from, norms[i], err);
    }
    for (size_t i = 0; i < c->conv_groups && status == HA_OK; i++) {
        status = fill_linear(e, from, &e->conv[i], err);
    }
    for (size_t i = 0; i < c->n_layers && status == HA_OK; i++) {
        status = fill_layer(e, from, i, err);
    }
    if (status == HA_OK && c->relative_span > 0 && (c->c2p || c->p2c)) {
        status = fill_relative(e, from, err);
    }
    for (int kind = 0; kind < 2 && e->inv_freq[kind] != NULL; kind++) {
        ha_rotary_frequencies(c->rope_theta[kind], c->head_dim, e->inv_freq[kind]);
    }
    return status;
}

/* An encoder whose weights are counted, and stand nowhere yet. */
static ha_status
begin(const ha_encoder_config *config, ha_weight_format format, ha_encoder **out, ha_error *err)
{
    ha_encoder *e = calloc(1, sizeof(*e));
    *out = e;
    if (e == NULL || (e->layers = calloc(config->n_layers, sizeof(*e->layers))) == NULL ||
        (e->conv = calloc(config->conv_groups + 1, sizeof(*e->conv))) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    }
    e->config = *config;
    e->format = format;
    e->word_format = format;
    e->kernels = ha_kernels_get();
    ha_arena_begin(&e->arena);
    lay_out(e, format);
    return HA_OK;
}

/* Packs the weights of an encoder that was begun. */
static ha_status
build(ha_encoder *e, const ha_source *from, ha_weight_format format, ha_error *err)
{
    const ha_encoder_config *config = &e->config;
    ha_status status = ha_arena_commit(&e->arena, err);
    if (status != HA_OK) {
        return status;
    }
    lay_out(e, format);
    /* what is read with a row at hand is known to have a reader from the start */
    float *word = malloc(config->embedding_size * sizeof(float));
    status = word != NULL ? ha_source_rows(from, HA_EMB_WORD, 0, 1, word, err) : ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory");
    free(word);
    return status == HA_OK ? fill(e, from, err) : status;
}

/* Takes the weights from the cache file: 1 when it could be used. */
static int
map_cached(ha_encoder *e, ha_weight_format format, const char *path, const uint8_t stamp[32], ha_error *note)
{
    uint8_t *weights;
    const size_t size = e->arena.used;
    const ha_status status = ha_encoder_cache_open(path, stamp, size, &e->cached, &weights, note);
    if (status != HA_OK) {
        note->message[0] = status == HA_ERR_IO ? '\0' : note->message[0];      /* there is none: nothing to tell */
        return 0;
    }
    e->arena = (ha_arena){.base = weights, .capacity = size};
    lay_out(e, format);
    for (size_t i = 0; i < e->config.n_layers; i++) {       /* the checksum read them whole; a short row uses few */
        const size_t bytes = e->config.n_heads * ha_encoder_table_bytes(e);
        void *const tables[2] = {e->layers[i].pos_key, e->layers[i].pos_query};
        for (size_t j = 0; j < 2 && tables[j] != NULL; j++) {
            ha_pages_forget(tables[j], bytes);
        }
    }
    return 1;
}

static ha_status
fill_or_map(ha_encoder *e, const ha_source *from, ha_weight_format format, const char *folder, const char *cache_folder, ha_error *note, ha_error *err)
{
    char *path = NULL;
    uint8_t stamp[32];
    int settled = 0;
    const size_t size = e->arena.used;
    const int cache = cache_folder != NULL && !e->arena.overflow && size >= HA_ENCODER_CACHE_LEAST &&
                      ha_encoder_cache_name(cache_folder, folder, e, format, from->checkpoint, &path, stamp, &settled, note) == HA_OK;
    ha_status status = HA_OK;
    if (!cache || !map_cached(e, format, path, stamp, note)) {
        status = build(e, from, format, err);
        if (status == HA_OK && cache && settled) {
            ha_encoder_cache_write(path, stamp, e->arena.base, size, note);
        }
    }
    free(path);
    return status;
}

ha_status
ha_encoder_open(const char *folder, ha_weight_format format, ha_encoder **out, ha_error *err)
{
    ha_error note;
    return ha_encoder_open_cached(folder, format, NULL, out, &note, err);
}

ha_status
ha_encoder_open_cached(const char *folder, ha_weight_format format, const char *cache_folder, ha_encoder **out, ha_error *note, ha_error *err)
{
    ha_encoder_config config;
    ha_checkpoint *checkpoint = NULL;
    ha_encoder *encoder = NULL;
    *out = NULL;
    note->message[0] = '\0';
    ha_status status = ha_encoder_config_read(folder, &config, err);
    if (status != HA_OK || (status = ha_checkpoint_open(folder, &config, NULL, 0, 0, 0, &checkpoint, err)) != HA_OK) {
        return status;
    }
    const ha_source from = {.config = &config, .checkpoint = checkpoint};
    if ((status = begin(&config, format, &encoder, err)) == HA_OK) {
        if (ha_checkpoint_is_quantized(checkpoint, HA_EMB_WORD)) {      /* what is stored in few bits is what it is */
            encoder->word_format = HA_WEIGHT_F32;
        }
        status = fill_or_map(encoder, &from, format, folder, cache_folder, note, err);
    }
    if (status != HA_OK) {
        ha_checkpoint_close(checkpoint);
        ha_encoder_free(encoder);
        return status;
    }
    encoder->checkpoint = checkpoint;
    *out = encoder;
    return HA_OK;
}

ha_status
ha_encoder_from_params(const ha_encoder_params *params, ha_weight_format format, ha_encoder **out, ha_error *err)
{
    const ha_source from = {.config = &params->config, .params = params};
    const size_t words = params->items[HA_EMB_WORD].size;
    ha_encoder *encoder = NULL;
    *out = NULL;
    ha_status status = begin(&params->config, format, &encoder, err);
    if (status == HA_OK) {
        status = build(encoder, &from, format, err);
    }
    if (status == HA_OK && (encoder->word = malloc(words * sizeof(float))) == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "encoder: out of memory (%zu word embeddings)", words);
    }
    if (status != HA_OK) {
        ha_encoder_free(encoder);
        return status;
    }
    memcpy(encoder->word, params->data + params->items[HA_EMB_WORD].offset, words * sizeof(float));
    *out = encoder;
    return HA_OK;
}

void
ha_encoder_free(ha_encoder *encoder)
{
    if (encoder != NULL) {
        ha_checkpoint_close(encoder->checkpoint);
        free(encoder->word);
        free(encoder->layers);
        free(encoder->conv);
        ha_arena_free(&encoder->arena);
        ha_map_file_close(&encoder->cached);
        free(encoder);
    }
}

const ha_encoder_config *
ha_encoder_config_of(const ha_encoder *encoder)
{
    return &encoder->config;
}
