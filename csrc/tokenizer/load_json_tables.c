/* tokenizer.json: the vocabulary and the merges, taken item by item as the file is parsed. As nodes, 128,000 of each would be tens of megabytes of fresh pages,
 * which is most of the time that such a file takes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/decimal.h"
#include "tokenizer/load_json.h"

/* ---- vocabulary: {"token": id, ...}, or for Unigram [["token", score], ...] ---- */

static int
vocab_opens(void *context, ha_json_type type)
{
    (void)context;
    (void)type;
    return 1;
}

static ha_status
add_token(const ha_json_reader *r, const ha_json_node *item, ha_error *err)
{
    ha_vocab *vocab = &r->tok->vocab;
    const size_t before = vocab->n_tokens;
    uint64_t id;
    if (!ha_json_u64(item, &id)) {
        return ha_fail(err, HA_ERR_FORMAT, "vocab: the id of '%.80s' is no non-negative integer", item->key);
    }
    TRY(ha_vocab_add(vocab, item->key, item->key_length, id, r->max_ids, err));
    return vocab->n_tokens > before ? HA_OK : ha_fail(err, HA_ERR_FORMAT, "vocab: '%.80s' stands twice", item->key);
}

/* A number of JSON as the reference reads it: the first digits that fit 64 bits, then one multiplication or division by a power of ten, both rounded (serde_json
 * without its feature float_roundtrip). A quarter of the scores of a real file differ from the nearest double in their last bit, which decides between ways
 * to write a text that cost the same. NaN: beyond the range of doubles, which the reference refuses. */
static double
reference_number(const char *text, size_t length)
{
    const int negative = length > 0 && text[0] == '-';
    uint64_t digits = 0;
    long exponent = 0, stated = 0;
    size_t i = (size_t)negative;
    for (int point = 0, full = 0; i < length && text[i] != 'e' && text[i] != 'E'; i++) {
        if (text[i] == '.') {
            point = 1;
            continue;
        }
        const unsigned digit = (unsigned)(text[i] - '0');
        full |= digits > UINT64_MAX / 10 || digits * 10 > UINT64_MAX - digit;
        digits = full ? digits : digits * 10 + digit;
        exponent += full ? !point : -point;
    }
    if (i < length) {
        const int down = text[i + 1] == '-';
        for (i += 1 + (size_t)(text[i + 1] == '-' || text[i + 1] == '+'); i < length; i++) {
            stated = stated < 100000 ? stated * 10 + (text[i] - '0') : stated;
        }
        exponent += down ? -stated : stated;
    }
    double value = (double)digits;
    for (; exponent < -308 && value != 0; exponent += 308) {
        value /= 1e308;
    }
    if (value != 0) {
        static const double exact[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
        char power[16] = "1e000";
        const long size = labs(exponent);
        if (size > 308) {
            return NAN;
        }
        power[2] = (char)('0' + size / 100), power[3] = (char)('0' + size / 10 % 10), power[4] = (char)('0' + size % 10);
        const double scale = size <= 22 ? exact[size] : ha_decimal_to_double(power, 5);
        value = exponent < 0 ? value / scale : value * scale;
    }
    return isfinite(value) ? negative ? -value : value : NAN;
}

/* The place of a token is its id. A text that stands twice has the later id, and both ids have the text, as in the reference. */
static ha_status
add_piece(const ha_json_reader *r, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    ha_vocab *vocab = &r->tok->vocab;
    ha_load_tables *tables = r->tables;
    const size_t i = vocab->n_ids;
    const ha_json_node *text = item->type == HA_JSON_ARRAY && item->length == 2 ? ha_json_first(json, item) : NULL;
    const ha_json_node *score = ha_json_next(json, text);
    if (text == NULL || text->type != HA_JSON_STRING || score->type != HA_JSON_NUMBER) {
        return ha_fail(err, HA_ERR_FORMAT, "vocab[%zu]: expected [\"token\", score]", i);
    }
    if (i == tables->cap_scores) {
        const size_t capacity = i * 2 + 1024;
        double *scores = capacity > SIZE_MAX / sizeof(*scores) ? NULL : realloc(r->tok->unigram.scores, capacity * sizeof(*scores));
        if (scores == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", capacity);
        }
        r->tok->unigram.scores = scores;
        tables->cap_scores = capacity;
    }
    const double value = reference_number(score->string, score->length);
    if (isnan(value)) {
        return ha_fail(err, HA_ERR_FORMAT, "vocab[%zu]: the score %.40s of '%.80s' is out of range", i, score->string, text->string);
    }
    r->tok->unigram.scores[i] = value;
    vocab->moved_from = -1;
    TRY(ha_vocab_add(vocab, text->string, text->length, i, r->max_ids, err));
    if (vocab->moved_from >= 0) {
        vocab->by_id[vocab->moved_from] = vocab->by_id[i];
    }
    return HA_OK;
}

static ha_status
vocab_item(void *context, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    return item->key != NULL ? add_token(context, item, err) : add_piece(context, json, item, err);
}

ha_status
ha_load_vocab(const ha_json_reader *r, const ha_json_node *vocab, ha_json_type type)
{
    if (vocab == NULL || vocab->type != type) {
        return ha_fail(r->err, HA_ERR_FORMAT, type == HA_JSON_OBJECT ? "model: \"vocab\" is missing or no object" : "Unigram: \"vocab\" is missing or no array");
    }
    if (r->tok->tables == NULL) {       /* else they are known, and those of added tokens are in the vocabulary too */
        r->tok->n_model_ids = r->tok->vocab.n_ids;
        r->tok->n_model_tokens = type == HA_JSON_OBJECT ? r->tok->vocab.n_tokens : r->tok->vocab.n_ids;
    }
    return HA_OK;
}

/* ---- merges ---- */

/* Left and right half of a merge, "a b" or ["a", "b"]. */
static int
merge_halves(const ha_json *json, const ha_json_node *item, const char *half[2], size_t length[2])
{
    if (item->type == HA_JSON_STRING) {
        const char *space = memchr(item->string, ' ', item->length);
        if (space == NULL || memchr(space + 1, ' ', item->length - (size_t)(space + 1 - item->string)) != NULL) {
            return 0;
        }
        half[0] = item->string, length[0] = (size_t)(space - item->string);
        half[1] = space + 1, length[1] = item->length - length[0] - 1;
        return 1;
    }
    const ha_json_node *left = item->type == HA_JSON_ARRAY && item->length == 2 ? ha_json_first(json, item) : NULL;
    const ha_json_node *right = left != NULL ? ha_json_next(json, left) : NULL;
    if (right == NULL || left->type != HA_JSON_STRING || right->type != HA_JSON_STRING) {
        return 0;
    }
    half[0] = left->string, length[0] = left->length;
    half[1] = right->string, length[1] = right->length;
    return 1;
}

static ha_status
add_merge(const ha_json_reader *r, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    ha_load_tables *list = r->tables;
    const char *half[2];
    size_t length[2];
    if (!merge_halves(json, item, half, length)) {
        return ha_fail(err, HA_ERR_FORMAT, "merges[%zu]: expected \"left right\" or [\"left\", \"right\"]", list->n_merges);
    }
    if (list->n_merges == list->cap_merges) {
        const size_t capacity = list->cap_merges * 2 + 1024;
        ha_merge *at = capacity > SIZE_MAX / sizeof(*at) ? NULL : realloc(list->merges, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu merges", capacity);
        }
        list->merges = at;
        list->cap_merges = capacity;
    }
    const int32_t guess = list->n_merges > 0 ? list->merges[list->n_merges - 1].merged + 1 : -1;
    TRY(ha_merge_find(&r->tok->vocab, list->n_merges, half, length, guess, &list->merges[list->n_merges], err));
    list->n_merges++;
    return HA_OK;
}

/* They need the vocabulary: where it stands behind them, they wait as nodes. */
static int
merges_open(void *context, ha_json_type type)
{
    const ha_json_reader *r = context;
    return type == HA_JSON_ARRAY && r->tok->vocab.n_tokens > 0;
}

static ha_status
merges_item(void *context, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    return add_merge(context, json, item, err);
}

ha_status
ha_load_merges(const ha_json_reader *r, const ha_json_node *model, size_t prefix_length)
{
    const ha_json_node *merges = ha_json_get(r->json, model, "merges");
    if (merges == NULL || merges->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "BPE: \"merges\" is missing or no array");
    }
    if (r->tok->tables != NULL) {
        return HA_OK;
    }
    for (const ha_json_node *item = ha_json_first(r->json, merges); item != NULL; item = ha_json_next(r->json, item)) {
        TRY(add_merge(r, r->json, item, r->err));
    }
    TRY(ha_bpe_reserve(&r->tok->bpe, r->tables->n_merges, r->err));
    for (size_t i = 0; i < r->tables->n_merges; i++) {
        if (prefix_length > 0) {
            TRY(ha_merge_without_prefix(&r->tok->vocab, i, prefix_length, &r->tables->merges[i], r->err));
        }
        TRY(ha_bpe_add_found(&r->tok->bpe, i, r->tables->merges[i], r->err));
    }
    return HA_OK;
}

void
ha_load_sinks(ha_json_sink sinks[HA_LOAD_SINKS])
{
    sinks[0] = (ha_json_sink){"model", "vocab", vocab_opens, vocab_item, 0, 0};
    sinks[1] = (ha_json_sink){"model", "merges", merges_open, merges_item, 0, 0};
}
