/* The weights of a decoder: names of both formats, checks, and one packed block. Quantised matrices are widened panel by panel, never whole. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/pages.h"
#include "core/parallel.h"
#include "kernels/quantize.h"
#include "models/decoder_impl.h"
#include "models/decoder_layout.h"

#define MAX_PARTS 3
#define MAX_VECTORS 6           /* of a layer: norms' weights and biases */
#define MAX_TENSORS 20          /* of a layer: these, matrices and their biases */
#define PI 3.14159265358979323846
#define ALIGNMENT 64
#define PIECE_BYTES ((size_t)16 << 20)     /* of the file between two requests to forget what was read */

/* The stored matrices that make one packed weight, row after row. */
typedef struct source {
    ha_linear *to;
    size_t n_parts;
    const ha_tensor *parts[MAX_PARTS], *bias[MAX_PARTS];
    size_t rows[MAX_PARTS];
    int pairs[MAX_PARTS];           /* rows stand in GGUF's order of rotary pairs */
    int transposed;                 /* stored as (k, n) */
    size_t offset, bias_offset;     /* bytes in the block */
    size_t first_panel;             /* panels of all sources before this one */
} source;

typedef struct vector {
    const float **to;
    const ha_tensor *tensor;
    size_t offset;
} vector;

typedef struct reader {
    ha_decoder *decoder;
    const ha_decoder_names *names;
    const char *root;               /* before the names */
    source *sources;
    vector *vectors;
    const ha_tensor **claimed;
    size_t n_sources, n_vectors, n_claimed, n_panels, n_bytes;
    ha_error *err;
} reader;

#define NAME_BYTES 160

static const char *
name_of(const reader *r, char out[NAME_BYTES], const char *stem, const char *suffix)
{
    snprintf(out, NAME_BYTES, "%s%s.%s", r->root, stem, suffix);
    return out;
}

static const char *
layer_name(const reader *r, char out[NAME_BYTES], size_t layer, ha_decoder_role role, const char *suffix)
{
    snprintf(out, NAME_BYTES, "%s%s.%zu.%s.%s", r->root, r->names->layer, layer, r->names->roles[role], suffix);
    return out;
}

static ha_status
claim(reader *r, const char *name, int ndim, const size_t *shape, const ha_tensor **out)
{
    ha_status status = ha_tensor_file_expect(r->decoder->file, name, ndim, shape, out, r->err);
    if (status == HA_OK && (*out)->dtype >= HA_I8) {
        return ha_fail(r->err, HA_ERR_FORMAT, "tensor '%.200s': type %.40s is not supported (" HA_READ_DTYPES " are)",
                       name, (*out)->type_name);
    }
    if (status == HA_OK) {
        r->claimed[r->n_claimed++] = *out;
    }
    return status;
}

/* Adds `bytes` to the block at an aligned offset. The tensors exist, so the sum is bounded by the file's own size, widened. */
static size_t
reserve(reader *r, size_t bytes)
{
    const size_t at = (r->n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    r->n_bytes = at + bytes;
    return at;
}

static ha_status
add_vector(reader *r, const char *name, size_t n, const float **to)
{
    vector *v = &r->vectors[r->n_vectors];
    ha_status status = claim(r, name, 1, &n, &v->tensor);
    if (status == HA_OK) {
        v->to = to;
        v->offset = reserve(r, n * sizeof(float));
        r->n_vectors++;
    }
    return status;
}

/* A layer's norm of `n` elements. */
static ha_status
add_norm(reader *r, size_t layer, ha_decoder_role role, size_t n, ha_norm *to)
{
    char name[NAME_BYTES];
    ha_status status = add_vector(r, layer_name(r, name, layer, role, "weight"), n, &to->weight);
    return status != HA_OK || !(r->decoder->config.options & HA_LAYER_NORM) ? status
                                                                            : add_vector(r, layer_name(r, name, layer, role, "bias"), n, &to->bias);
}

/* Begins a packed weight of k columns; parts follow; close_source ends it. */
static source *
open_source(reader *r, ha_linear *to, size_t k)
{
    source *s = &r->sources[r->n_sources++];
    memset(s, 0, sizeof(*s));
    s->to = to;
    *to = (ha_linear){0, k, r->decoder->format, NULL, NULL};
    return s;
}

static void
close_source(reader *r, source *s)
{
    s->first_panel = r->n_panels;
    r->n_panels += (s->to->n + HA_PANEL - 1) / HA_PANEL;
    s->offset = reserve(r, r->decoder->kernels->linear_packed_bytes(s->to->format, s->to->n, s->to->k));
    for (size_t i = 0; i < s->n_parts; i++) {
        if (s->bias[i] != NULL) {
            s->bias_offset = reserve(r, s->to->n * sizeof(float));
            break;
        }
    }
}

/* One stored matrix (n, k) and its bias: demanded when `bias`, else taken when a GGUF file has it. */
static ha_status
add_part(reader *r, source *s, size_t layer, ha_decoder_role role, size_t n, int bias)
{
    const ha_decoder_config *c = &r->decoder->config;
    char name[NAME_BYTES];
    const size_t i = s->n_parts++, k = s->to->k;
    s->transposed = !c->gguf && c->options & HA_CONV1D;
    const size_t shape[2] = {s->transposed ? k : n, s->transposed ? n : k};
    ha_status status = claim(r, layer_name(r, name, layer, role, "weight"), 2, shape, &s->parts[i]);
    layer_name(r, name, layer, role, "bias");
    if (status == HA_OK && (bias || (c->gguf && ha_tensor_file_find(r->decoder->file, name) != NULL))) {
        status = claim(r, name, 1, &n, &s->bias[i]);
    }
    s->rows[i] = n;
    s->pairs[i] = c->gguf && c->options & HA_ROTARY_PAIRS && (role == HA_ROLE_QUERY || role == HA_ROLE_KEY);
    s->to->n += n;
    return status;
}

static ha_status
add_attention(reader *r, size_t i, ha_decoder_layer *layer)
{
    const ha_decoder_config *c = &r->decoder->config;
    const size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    ha_status status = HA_OK;
    source *s = open_source(r, &layer->qkv, c->hidden_size);
    if (c->options & HA_CONV1D) {
        status = add_part(r, s, i, HA_ROLE_QKV, q + 2 * kv, c->attention_bias);
    }
    else if ((status = add_part(r, s, i, HA_ROLE_QUERY, q, c->attention_bias)) == HA_OK &&
             (status = add_part(r, s, i, HA_ROLE_KEY, kv, c->attention_bias)) == HA_OK) {
        status = add_part(r, s, i, HA_ROLE_VALUE, kv, c->attention_bias);
    }
    if (status != HA_OK) {
        return status;
    }
    close_source(r, s);
    s = open_source(r, &layer->output, q);
    if ((status = add_part(r, s, i, HA_ROLE_OUTPUT, c->hidden_size, c->output_bias)) == HA_OK) {
        close_source(r, s);
    }
    return status;
}

static ha_status
add_mlp(reader *r, size_t i, ha_decoder_layer *layer)
{
    const ha_decoder_config *c = &r->decoder->config;
    ha_status status = HA_OK;
    source *s = open_source(r, &layer->gate_up, c->hidden_size);
    if ((!(c->options & HA_UNGATED) && (status = add_part(r, s, i, HA_ROLE_GATE, c->intermediate_size, c->mlp_bias)) != HA_OK) ||
        (status = add_part(r, s, i, HA_ROLE_UP, c->intermediate_size, c->mlp_bias)) != HA_OK) {
        return status;
    }
    close_source(r, s);
    s = open_source(r, &layer->down, c->intermediate_size);
    if ((status = add_part(r, s, i, HA_ROLE_DOWN, c->hidden_size, c->mlp_bias)) == HA_OK) {
        close_source(r, s);
    }
    return status;
}

static ha_status
add_layer(reader *r, size_t i)
{
    const ha_decoder_config *c = &r->decoder->config;
    ha_decoder_layer *layer = &r->decoder->layers[i];
    ha_status status = HA_OK;
    char name[NAME_BYTES];
    layer->window = c->slides[i / 8] >> i % 8 & 1 ? c->sliding_window : 0;
    if ((status = add_norm(r, i, HA_ROLE_ATTENTION_NORM, c->hidden_size, &layer->attention_norm)) != HA_OK ||
        (status = add_norm(r, i, HA_ROLE_MLP_NORM, c->hidden_size, &layer->mlp_norm)) != HA_OK) {
        return status;
    }
    if (c->options & HA_POST_NORMS &&
        ((status = add_norm(r, i, HA_ROLE_ATTENTION_POST_NORM, c->hidden_size, &layer->attention_post_norm)) != HA_OK ||
         (status = add_norm(r, i, HA_ROLE_MLP_POST_NORM, c->hidden_size, &layer->mlp_post_norm)) != HA_OK)) {
        return status;
    }
    if (c->options & HA_HEAD_NORMS &&
        ((status = add_vector(r, layer_name(r, name, i, HA_ROLE_QUERY_NORM, "weight"), c->head_dim, &layer->query_norm)) != HA_OK ||
         (status = add_vector(r, layer_name(r, name, i, HA_ROLE_KEY_NORM, "weight"), c->head_dim, &layer->key_norm)) != HA_OK)) {
        return status;
    }
    status = add_attention(r, i, layer);
    return status == HA_OK ? add_mlp(r, i, layer) : status;
}

static ha_status
add_ends(reader *r)
{
    ha_decoder *d = r->decoder;
    const ha_decoder_config *c = &d->config;
    const size_t shape[2] = {c->vocab_size, c->hidden_size}, places[2] = {c->max_position_embeddings, c->hidden_size};
    char name[NAME_BYTES];
    ha_status status = HA_OK;
    if ((status = claim(r, name_of(r, name, r->names->embedding, "weight"), 2, shape, &d->embedding)) != HA_OK ||
        (c->options & HA_LEARNED_POSITIONS && (status = claim(r, name_of(r, name, r->names->positions, "weight"), 2, places, &d->positions)) != HA_OK) ||
        (status = add_vector(r, name_of(r, name, r->names->final_norm, "weight"), c->hidden_size, &d->final_norm.weight)) != HA_OK ||
        (c->options & HA_LAYER_NORM &&
         (status = add_vector(r, name_of(r, name, r->names->final_norm, "bias"), c->hidden_size, &d->final_norm.bias)) != HA_OK)) {
        return status;
    }
    source *s = open_source(r, &d->head, c->hidden_size);
    s->to->format = d->format == HA_WEIGHT_Q4 ? HA_WEIGHT_Q8 : d->format;
    s->n_parts = 1;
    s->rows[0] = s->to->n = c->vocab_size;
    s->parts[0] = d->embedding;
    snprintf(name, sizeof(name), "%s.weight", r->names->head);
    if (!c->tied && (status = claim(r, name, 2, shape, &s->parts[0])) != HA_OK) {
        return status;
    }
    close_source(r, s);
    return HA_OK;
}

static int
ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* What old checkpoints store beside weights: frequencies that the configuration says, causal masks. */
static int
is_ignored(const ha_decoder_config *c, const char *name)
{
    return !c->gguf && (ends_with(name, "rotary_emb.inv_freq") || (c->tied && strcmp(name, "lm_head.weight") == 0) ||
                        (c->options & HA_CONV1D && (ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias"))));
}

static ha_status
check_unexpected(const reader *r)
{
    const ha_tensor_file *file = r->decoder->file;
    if (ha_tensor_file_count(file) == r->n_claimed) {
        return HA_OK;
    }
    for (size_t i = 0; i < ha_tensor_file_count(file); i++) {
        const ha_tensor *tensor = ha_tensor_file_at(file, i);
        size_t j = 0;
        while (j < r->n_claimed && r->claimed[j] != tensor) {
            j++;
        }
        if (j == r->n_claimed && !is_ignored(&r->decoder->config, tensor->name)) {
            return ha_fail(r->err, HA_ERR_FORMAT, "tensor '%.200s' is unexpected in a %s of %zu layers", tensor->name,
                           r->decoder->config.family->model_type, r->decoder->config.n_layers);
        }
    }
    return HA_OK;
}

/* Where a row of one part, in the order that this library computes in, stands in the file: for rotary pairs, row j (head_dim / 2) + i of a head as row 2 i + j. */
static size_t
stored_row(const ha_decoder_config *c, int pairs, size_t row)
{
    const size_t half = c->head_dim / 2, in = row % c->head_dim;
    return pairs ? row - in + 2 * (in % half) + in / half : row;
}

/* Rows [first, first + count) of one part. */
static ha_status
part_rows(const ha_decoder_config *c, const ha_tensor *tensor, int pairs, size_t first, size_t count, float *out, ha_error *err)
{
    if (!pairs) {
        return ha_tensor_rows_f32(tensor, first, count, out, err);
    }
    const size_t k = tensor->ndim == 2 ? tensor->shape[1] : 1;
    for (size_t row = first; row < first + count; row++) {
        ha_status status = ha_tensor_rows_f32(tensor, stored_row(c, 1, row), 1, out + (row - first) * k, err);
        if (status != HA_OK) {
            return status;
        }
    }
    return HA_OK;
}

/* Columns [first, first + count) of a matrix (k, n) as rows of out (count, k). line (count,) is scratch. Its type is float32 or of 16 bits:
 * Hugging Face's transposed matrices are not quantised. */
static ha_status
part_columns(const ha_tensor *tensor, size_t first, size_t count, float *line, float *out, ha_error *err)
{
    const size_t k = tensor->shape[0], n = tensor->shape[1], size = tensor->dtype == HA_F32 ? 4 : 2;
    ha_tensor piece = *tensor;
    piece.ndim = 1;
    piece.shape[0] = count;
    for (size_t p = 0; p < k; p++) {
        piece.data = tensor->data + (p * n + first) * size;
        ha_status status = ha_tensor_rows_f32(&piece, 0, 1, line, err);
        if (status != HA_OK) {
            return status;
        }
        for (size_t j = 0; j < count; j++) {
            out[j * k + p] = line[j];
        }
    }
    return HA_OK;
}

/* Rows [first, first + count) of one part as groups: the file's own where they have the width, else rounded. line (k,) is scratch. */
static ha_status
part_groups(const ha_decoder_config *c, const source *s, size_t part, size_t first, size_t count, int bits, float *line, uint8_t *out, ha_error *err)
{
    const ha_tensor *tensor = s->parts[part];
    const size_t k = s->to->k, size = ha_group_bytes(bits);
    for (size_t row = first; row < first + count; row++) {
        if (!s->transposed && ha_tensor_row_groups(tensor, stored_row(c, s->pairs[part], row), bits, out)) {
            out += ha_group_row_bytes(bits, k);
            continue;
        }
        float unused;
        ha_status status = s->transposed ? part_columns(tensor, row, 1, &unused, line, err) : part_rows(c, tensor, s->pairs[part], row, 1, line, err);
        if (status != HA_OK) {
            return status;
        }
        for (size_t p = 0; p < k; p += HA_GROUP, out += size) {
            ha_store_group(out, bits, line + p, k - p);
        }
    }
    return HA_OK;
}

/* Scratch floats of pack_panel for rows of k elements at most: one panel, or one row and a panel of groups. */
static size_t
panel_floats(size_t k)
{
    return HA_PANEL * (k + HA_GROUP) + HA_GROUP;
}

/* Widens or rounds, and packs, one panel of one source. */
static ha_status
pack_panel(const ha_decoder *d, const source *s, size_t panel, float *scratch, ha_error *err)
{
    const int bits = s->to->format == HA_WEIGHT_Q8 ? 8 : s->to->format == HA_WEIGHT_Q4 ? 4 : 0;
    uint8_t *groups = (uint8_t *)(scratch + s->to->k);
    const size_t n = s->to->n, k = s->to->k, first = panel * HA_PANEL, count = n - first < HA_PANEL ? n - first : HA_PANEL;
    size_t begin = 0;
    for (size_t i = 0; i < s->n_parts; i++) {
        const size_t end = begin + s->rows[i];
        const size_t from = first > begin ? first : begin, to = first + count < end ? first + count : end;
        if (from < to) {
            float line[HA_PANEL], *out = scratch + (from - first) * k;
            ha_status status = bits > 0 ? part_groups(&d->config, s, i, from - begin, to - from, bits, scratch,
                                                      groups + (from - first) * ha_group_row_bytes(bits, k), err)
                               : s->transposed ? part_columns(s->parts[i], from - begin, to - from, line, out, err)
                                               : part_rows(&d->config, s->parts[i], s->pairs[i], from - begin, to - from, out, err);
            if (status != HA_OK) {
                return status;
            }
        }
        begin = end;
    }
    if (bits > 0) {
        d->kernels->linear_pack_groups(d->packed + s->offset, s->to->format, k, first, count, groups);
    }
    else {
        d->kernels->linear_pack(d->packed + s->offset, s->to->format, n, k, first, count, scratch, k);
    }
    return HA_OK;
}

/* Panels [begin, end) of all sources. */
static ha_status
pack_range(const reader *r, size_t begin, size_t end, size_t widest, int n_threads)
{
    const ha_decoder *d = r->decoder;
    const int threads = ha_threads_for(end - begin, 8, n_threads);
    ha_status result = HA_OK;
#if defined(_OPENMP)
#pragma omp parallel num_threads(ha_team(threads)) if (threads > 1)
#endif
    {
        ha_error err;
        float *scratch = malloc(panel_floats(widest) * sizeof(float));
        ha_status status = scratch != NULL ? HA_OK : ha_fail(&err, HA_ERR_NOMEM, "out of memory while packing weights");
        size_t s = 0;
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
        for (ptrdiff_t panel = (ptrdiff_t)begin; panel < (ptrdiff_t)end; panel++) {
            while (s + 1 < r->n_sources && (size_t)panel >= r->sources[s + 1].first_panel) {
                s++;
            }
            if (status == HA_OK) {
                status = pack_panel(d, &r->sources[s], (size_t)panel - r->sources[s].first_panel, scratch, &err);
            }
        }
        if (status != HA_OK) {
#if defined(_OPENMP)
#pragma omp critical(ha_decoder_pack)
#endif
            {
                result = ha_fail(r->err, status, "%s", err.message);
            }
        }
        free(scratch);
    }
    (void)threads;
    return result;
}

/* Everything, a piece at a time: after each, the pieces of the file that were read leave memory again, so that the peak is the packed
 * weights and not these and the file. */
static ha_status
pack_all(const reader *r, int n_threads)
{
    size_t widest = 0;
    for (size_t i = 0; i < r->n_sources; i++) {
        widest = r->sources[i].to->k > widest ? r->sources[i].to->k : widest;
    }
    for (size_t first = 0, last = 0; first < r->n_sources; first = last) {
        size_t bytes = 0;
        for (; last < r->n_sources && bytes < PIECE_BYTES; last++) {
            for (size_t i = 0; i < r->sources[last].n_parts; i++) {
                bytes += r->sources[last].parts[i]->n_bytes;
            }
        }
        const size_t end = last < r->n_sources ? r->sources[last].first_panel : r->n_panels;
        ha_status status = pack_range(r, r->sources[first].first_panel, end, widest, n_threads);
        if (status != HA_OK) {
            return status;
        }
        for (size_t s = first; s < last; s++) {
            for (size_t i = 0; i < r->sources[s].n_parts; i++) {
                ha_pages_forget(r->sources[s].parts[i]->data, r->sources[s].parts[i]->n_bytes);
            }
        }
    }
    return HA_OK;
}

/* The float32 vectors: norms and biases. */
static ha_status
read_vectors(const reader *r)
{
    ha_decoder *d = r->decoder;
    for (size_t i = 0; i < r->n_vectors; i++) {
        float *out = (float *)(void *)(d->packed + r->vectors[i].offset);
        ha_status status = ha_tensor_rows_f32(r->vectors[i].tensor, 0, 1, out, r->err);
        if (status != HA_OK) {
            return status;
        }
        for (size_t j = 0; d->config.options & HA_NORM_LESS_ONE && j < r->vectors[i].tensor->shape[0]; j++) {
            out[j] += 1.0f;
        }
        *r->vectors[i].to = out;
    }
    for (size_t i = 0; i < r->n_sources; i++) {
        const source *s = &r->sources[i];
        s->to->packed = d->packed + s->offset;
        float *bias = s->bias_offset > 0 ? (float *)(void *)(d->packed + s->bias_offset) : NULL;
        s->to->bias = bias;
        for (size_t part = 0, row = 0; bias != NULL && part < s->n_parts; row += s->rows[part++]) {
            memset(bias + row, 0, s->rows[part] * sizeof(float));
            if (s->bias[part] == NULL) {
                continue;
            }
            ha_status status = ha_tensor_rows_f32(s->bias[part], 0, 1, bias + row, r->err);
            if (status != HA_OK) {
                return status;
            }
        }
    }
    return HA_OK;
}

/* A bias of rotary pairs is permuted like its matrix's rows. */
static ha_status
permute_biases(const reader *r)
{
    const size_t head_dim = r->decoder->config.head_dim, half = head_dim / 2;
    float *copy = malloc(head_dim * sizeof(float));
    if (copy == NULL) {
        return ha_fail(r->err, HA_ERR_NOMEM, "out of memory while reading biases");
    }
    for (size_t i = 0; i < r->n_sources; i++) {
        const source *s = &r->sources[i];
        float *bias = s->bias_offset > 0 ? (float *)(void *)(r->decoder->packed + s->bias_offset) : NULL;
        for (size_t part = 0; bias != NULL && part < s->n_parts; bias += s->rows[part++]) {
            for (size_t first = 0; s->pairs[part] && first < s->rows[part]; first += head_dim) {
                memcpy(copy, bias + first, head_dim * sizeof(float));
                for (size_t j = 0; j < head_dim; j++) {
                    bias[first + j] = copy[2 * (j % half) + j / half];
                }
            }
        }
    }
    free(copy);
    return HA_OK;
}

/* yarn: the share of dimension pair i that keeps its frequency, as transformers' _compute_yarn_parameters has it. */
static double
yarn_share(const ha_decoder_config *c, size_t i)
{
    const double dim = (double)c->head_dim, span = c->rope_original_context / (2 * PI), base = 2 * log(c->rope_theta);
    double low = dim * log(span / c->rope_beta_fast) / base, high = dim * log(span / c->rope_beta_slow) / base;
    if (c->rope_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = low > 0 ? low : 0;
    high = high < dim - 1 ? high : dim - 1;
    const double ramp = ((double)i - low) / (high != low ? high - low : 0.001);
    return 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
}

/* llama3: the same share. 0: scaled whole, 1: not at all. */
static double
llama3_share(const ha_decoder_config *c, float inv_freq)
{
    const double wave = 2 * PI / inv_freq;
    const double smooth = (c->rope_original_context / wave - c->rope_low_freq_factor) / (c->rope_high_freq_factor - c->rope_low_freq_factor);
    return smooth < 0 ? 0 : smooth > 1 ? 1 : smooth;
}

/* Inverse frequencies in float32, as transformers computes them (modeling_rope_utils: default, linear, llama3, yarn), or with the factors that a
 * GGUF file stores as rope_freqs.weight. */
static ha_status
read_frequencies(reader *r)
{
    ha_decoder *d = r->decoder;
    const ha_decoder_config *c = &d->config;
    const size_t half = c->head_dim / 2;
    const ha_tensor *factors = NULL;
    ha_status status = HA_OK;
    d->inv_freq = malloc((2 * half + 1) * sizeof(float));
    if (d->inv_freq == NULL) {
        return ha_fail(r->err, HA_ERR_NOMEM, "out of memory while reading the model");
    }
    float *factor = d->inv_freq + half;
    for (size_t i = 0; i < half; i++) {
        d->inv_freq[i] = 1.0f / (float)pow(c->rope_theta, (double)((float)(2 * i) / (float)c->head_dim));
        factor[i] = 1.0f;
        if (c->rope_scaling != HA_ROPE_PLAIN) {
            const double share = c->rope_scaling == HA_ROPE_LLAMA3 ? llama3_share(c, d->inv_freq[i]) : c->rope_scaling == HA_ROPE_YARN ? yarn_share(c, i) : 0;
            factor[i] = (float)(1.0 / ((1 - share) / c->rope_factor + share));
        }
    }
    if (c->gguf && ha_tensor_file_find(d->file, "rope_freqs.weight") != NULL) {
        if ((status = claim(r, "rope_freqs.weight", 1, &half, &factors)) != HA_OK ||
            (status = ha_tensor_rows_f32(factors, 0, 1, factor, r->err)) != HA_OK) {
            return status;
        }
    }
    for (size_t i = 0; i < half; i++) {
        if (!(factor[i] > 0)) {
            return ha_fail(r->err, HA_ERR_FORMAT, "tensor 'rope_freqs.weight': factor %zu must be > 0", i);
        }
        d->inv_freq[i] /= factor[i];
    }
    return HA_OK;
}

ha_status
ha_decoder_weights_read(ha_decoder *d, int n_threads, ha_error *err)
{
    const size_t n_layers = d->config.n_layers;
    const ha_decoder_names *names = d->config.gguf ? &ha_gguf_names : d->config.family->names;
    reader r = {.decoder = d, .names = names, .root = names->root, .err = err};
    char name[NAME_BYTES];
    ha_status status = HA_OK;
    d->layers = calloc(n_layers, sizeof(*d->layers));
    r.sources = calloc(4 * n_layers + 1, sizeof(*r.sources));
    r.vectors = calloc(MAX_VECTORS * n_layers + 2, sizeof(*r.vectors));
    r.claimed = calloc(MAX_TENSORS * n_layers + 6, sizeof(*r.claimed));
    if (d->layers == NULL || r.sources == NULL || r.vectors == NULL || r.claimed == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "out of memory while reading a model of %zu layers", n_layers);
        goto done;
    }
    snprintf(name, sizeof(name), "%s.weight", names->embedding);
    if (ha_tensor_file_find(d->file, name) != NULL) {
        r.root = "";
    }
    if ((status = add_ends(&r)) != HA_OK) {
        goto done;
    }
    for (size_t i = 0; i < n_layers; i++) {
        if ((status = add_layer(&r, i)) != HA_OK) {
            goto done;
        }
    }
    if ((!(d->config.options & HA_LEARNED_POSITIONS) && (status = read_frequencies(&r)) != HA_OK) || (status = check_unexpected(&r)) != HA_OK) {
        goto done;
    }
    d->packed_bytes = (r.n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    d->packed = ha_pages_alloc(d->packed_bytes);
    if (d->packed == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "out of memory: the weights need %zu bytes", d->packed_bytes);
        goto done;
    }
    if ((status = pack_all(&r, n_threads)) != HA_OK || (status = read_vectors(&r)) != HA_OK) {
        goto done;
    }
    status = permute_biases(&r);
done:
    free(r.sources);
    free(r.vectors);
    free(r.claimed);
    return status;
}
