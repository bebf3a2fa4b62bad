/* tokenizer.json: models. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/decimal.h"
#include "tokenizer/load_json.h"

/* A member that is absent, null, "", false or 0; anything else is an option that is not honoured. */
static ha_status
expect_off(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *key)
{
    const ha_json_node *value = ha_json_get(r->json, node, key);
    if (ha_load_is_null(value) || value->type == HA_JSON_FALSE || (value->type == HA_JSON_STRING && value->length == 0)
        || (value->type == HA_JSON_NUMBER && value->number == 0)) {
        return HA_OK;
    }
    return ha_fail(r->err, HA_ERR_FORMAT, "%s: option \"%s\" is not supported", what, key);
}

/* The id of the string member `key`: -1 when it is absent or null, HA_ERR_FORMAT when it is not in the vocabulary. */
static ha_status
token_id(const ha_json_reader *r, const ha_json_node *node, const char *key, int32_t *id)
{
    const ha_json_node *value = ha_json_get(r->json, node, key);
    *id = -1;
    if (ha_load_is_null(value)) {
        return HA_OK;
    }
    if (value->type == HA_JSON_STRING) {
        *id = ha_vocab_id(&r->tok->vocab, value->string, value->length);
    }
    return *id >= 0 ? HA_OK : ha_fail(r->err, HA_ERR_FORMAT, "%s '%.80s' is not in the vocabulary", key, value->type == HA_JSON_STRING ? value->string : "?");
}

static ha_status
read_wordpiece(const ha_json_reader *r, const ha_json_node *model)
{
    ha_wordpiece *wp = &r->tok->wordpiece;
    const ha_json_node *prefix = ha_json_get(r->json, model, "continuing_subword_prefix");
    TRY(ha_load_vocab(r, model));
    TRY(token_id(r, model, "unk_token", &wp->unk_id));
    if (wp->unk_id < 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "WordPiece: \"unk_token\" is missing");
    }
    TRY(ha_json_get_size(r->json, model, "max_input_chars_per_word", 100, 0, SIZE_MAX / 8, &wp->max_chars, r->err));
    if (!ha_load_is_null(prefix) && prefix->type != HA_JSON_STRING) {
        return ha_fail(r->err, HA_ERR_FORMAT, "WordPiece: \"continuing_subword_prefix\" is no string");
    }
    return ha_wordpiece_build(&r->tok->vocab, ha_load_is_null(prefix) ? "##" : prefix->string, ha_load_is_null(prefix) ? 2 : prefix->length, wp, r->err);
}

static ha_status
read_bpe(const ha_json_reader *r, const ha_json_node *model)
{
    ha_bpe *bpe = &r->tok->bpe;
    TRY(ha_load_vocab(r, model));
    TRY(expect_off(r, model, "BPE", "dropout"));
    TRY(expect_off(r, model, "BPE", "continuing_subword_prefix"));
    TRY(expect_off(r, model, "BPE", "end_of_word_suffix"));
    TRY(token_id(r, model, "unk_token", &bpe->unk_id));
    TRY(ha_load_bool(r, model, "fuse_unk", 0, &bpe->fuse_unk));
    TRY(ha_load_bool(r, model, "ignore_merges", 0, &bpe->ignore_merges));
    TRY(ha_load_merges(r, model));
    if (!r->tok->pre.byte_level) {
        TRY(ha_load_bool(r, model, "byte_fallback", 0, &bpe->byte_fallback));
        return ha_bpe_read_characters(bpe, &r->tok->vocab, r->err);
    }
    ha_bpe_read_bytes(bpe, &r->tok->vocab);
    if (!bpe->all_bytes) {
        TRY(expect_off(r, model, "BPE", "byte_fallback"));      /* it would matter */
    }
    return HA_OK;
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
        char power[16] = "1e000";
        const long size = labs(exponent);
        if (size > 308) {
            return NAN;
        }
        power[2] = (char)('0' + size / 100), power[3] = (char)('0' + size / 10 % 10), power[4] = (char)('0' + size % 10);
        const double scale = ha_decimal_to_double(power, 5);
        value = exponent < 0 ? value / scale : value * scale;
    }
    return isfinite(value) ? negative ? -value : value : NAN;
}

/* [["text", score], ...]: the place of a token is its id. A text that stands twice has the later id, and both ids have the text, as in the reference. */
static ha_status
read_pieces(const ha_json_reader *r, const ha_json_node *list)
{
    ha_vocab *vocab = &r->tok->vocab;
    double *scores = malloc((list->length + 1) * sizeof(*scores));
    if (scores == NULL) {
        return ha_fail(r->err, HA_ERR_NOMEM, "out of memory for %zu tokens", list->length);
    }
    r->tok->unigram.scores = scores;
    size_t i = 0;
    for (const ha_json_node *item = ha_json_first(r->json, list); item != NULL; item = ha_json_next(r->json, item), i++) {
        const ha_json_node *text = item->type == HA_JSON_ARRAY && item->length == 2 ? ha_json_first(r->json, item) : NULL;
        const ha_json_node *score = ha_json_next(r->json, text);
        if (text == NULL || text->type != HA_JSON_STRING || score->type != HA_JSON_NUMBER) {
            return ha_fail(r->err, HA_ERR_FORMAT, "vocab[%zu]: expected [\"token\", score]", i);
        }
        scores[i] = reference_number(score->string, score->length);
        if (isnan(scores[i])) {
            return ha_fail(r->err, HA_ERR_FORMAT, "vocab[%zu]: the score %.40s of '%.80s' is out of range", i, score->string, text->string);
        }
        const int32_t before = ha_vocab_id(vocab, text->string, text->length);
        TRY(ha_vocab_add(vocab, text->string, text->length, i, r->max_ids, r->err));
        if (before >= 0) {
            vocab->by_id[before] = vocab->by_id[i];
        }
    }
    r->tok->n_model_tokens = r->tok->n_model_ids = i;
    return HA_OK;
}

static ha_status
read_unigram(const ha_json_reader *r, const ha_json_node *model)
{
    ha_unigram *unigram = &r->tok->unigram;
    const ha_json_node *vocab = ha_json_get(r->json, model, "vocab");
    size_t unk_id;
    if (vocab == NULL || vocab->type != HA_JSON_ARRAY || vocab->length == 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "Unigram: \"vocab\" is missing, empty or no array");
    }
    TRY(ha_json_get_size(r->json, model, "unk_id", SIZE_MAX, 0, SIZE_MAX, &unk_id, r->err));
    if (unk_id != SIZE_MAX && unk_id >= vocab->length) {
        return ha_fail(r->err, HA_ERR_FORMAT, "Unigram: unk_id %zu is not in the vocabulary of %zu tokens", unk_id, vocab->length);
    }
    unigram->unk_id = unk_id != SIZE_MAX ? (int32_t)unk_id : -1;
    TRY(ha_load_bool(r, model, "byte_fallback", 0, &unigram->byte_fallback));
    TRY(read_pieces(r, vocab));
    return ha_unigram_build(&r->tok->vocab, unigram, r->err);
}

ha_status
ha_load_model(const ha_json_reader *r, const ha_json_node *model)
{
    const char *type;
    if (ha_load_is_null(model)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "\"model\" is missing");
    }
    if (model->type == HA_JSON_OBJECT && ha_json_get(r->json, model, "type") == NULL && ha_json_get(r->json, model, "merges") != NULL) {
        type = "BPE";       /* files from before the type was written */
    } else {
        TRY(ha_load_type(r, model, "model", &type));
    }
    if (strcmp(type, "WordPiece") == 0) {
        r->tok->model_kind = HA_MODEL_WORDPIECE;
        TRY(read_wordpiece(r, model));
    } else if (strcmp(type, "BPE") == 0) {
        r->tok->model_kind = HA_MODEL_BPE;
        TRY(read_bpe(r, model));
    } else if (strcmp(type, "Unigram") == 0) {
        r->tok->model_kind = HA_MODEL_UNIGRAM;
        TRY(read_unigram(r, model));
    } else {
        return ha_load_unsupported(r, "model", type);
    }
    if (r->tok->model_kind != HA_MODEL_BPE && r->tok->pre.byte_level) {
        return ha_fail(r->err, HA_ERR_FORMAT, "model '%s' with pre_tokenizer 'ByteLevel' is not supported", type);
    }
    return HA_OK;
}
