/* tokenizer.json: models. */
#include <string.h>

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
    TRY(ha_load_vocab(r, ha_json_get(r->json, model, "vocab"), HA_JSON_OBJECT));
    TRY(token_id(r, model, "unk_token", &wp->unk_id));
    if (wp->unk_id < 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "WordPiece: \"unk_token\" is missing");
    }
    TRY(ha_json_get_size(r->json, model, "max_input_chars_per_word", 100, 0, SIZE_MAX / 8, &wp->max_chars, r->err));
    if (!ha_load_is_null(prefix) && prefix->type != HA_JSON_STRING) {
        return ha_fail(r->err, HA_ERR_FORMAT, "WordPiece: \"continuing_subword_prefix\" is no string");
    }
    return r->tok->tables != NULL ? HA_OK : ha_wordpiece_build(&r->tok->vocab, ha_load_is_null(prefix) ? "##" : prefix->string, ha_load_is_null(prefix) ? 2 : prefix->length, wp, r->err);
}

/* A string member, "" when it is absent or null. */
static ha_status
affix(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *key, const char **text, size_t *length)
{
    const ha_json_node *value = ha_json_get(r->json, node, key);
    *text = "", *length = 0;
    if (!ha_load_is_null(value)) {
        TRY(ha_load_string(r, node, what, key, &value));
        *text = value->string, *length = value->length;
    }
    return HA_OK;
}

static ha_status
read_bpe(const ha_json_reader *r, const ha_json_node *model)
{
    ha_bpe *bpe = &r->tok->bpe;
    ha_affixes affixes = {0};
    TRY(ha_load_vocab(r, ha_json_get(r->json, model, "vocab"), HA_JSON_OBJECT));
    TRY(expect_off(r, model, "BPE", "dropout"));
    TRY(affix(r, model, "BPE", "continuing_subword_prefix", &affixes.prefix, &affixes.prefix_length));
    TRY(affix(r, model, "BPE", "end_of_word_suffix", &affixes.suffix, &affixes.suffix_length));
    TRY(token_id(r, model, "unk_token", &bpe->unk_id));
    TRY(ha_load_bool(r, model, "fuse_unk", 0, &bpe->fuse_unk));
    TRY(ha_load_bool(r, model, "ignore_merges", 0, &bpe->ignore_merges));
    TRY(ha_load_merges(r, model, affixes.prefix_length));
    TRY(ha_load_bool(r, model, "byte_fallback", 0, &bpe->byte_fallback));
    TRY((r->tok->pre.byte_level ? ha_bpe_read_bytes : ha_bpe_read_characters)(bpe, &r->tok->vocab, r->tok->n_model_tokens, affixes, r->err));
    if (bpe->byte_fallback && bpe->affixes && !bpe->all_bytes) {       /* the reference falls back on the bytes of the affixes too, and then its places lie beside the text */
        return ha_fail(r->err, HA_ERR_FORMAT, "BPE: \"byte_fallback\" with \"continuing_subword_prefix\" or \"end_of_word_suffix\" is not supported");
    }
    return bpe->characters || bpe->all_bytes ? HA_OK : expect_off(r, model, "BPE", "byte_fallback");      /* it would matter */
}

static ha_status
read_unigram(const ha_json_reader *r, const ha_json_node *model)
{
    ha_unigram *unigram = &r->tok->unigram;
    const ha_json_node *vocab = ha_json_get(r->json, model, "vocab");
    size_t unk_id;
    TRY(ha_load_vocab(r, vocab, HA_JSON_ARRAY));
    const size_t n = r->tok->n_model_ids;
    if (n == 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "Unigram: \"vocab\" is empty");
    }
    TRY(ha_json_get_size(r->json, model, "unk_id", SIZE_MAX, 0, SIZE_MAX, &unk_id, r->err));
    if (unk_id != SIZE_MAX && unk_id >= n) {
        return ha_fail(r->err, HA_ERR_FORMAT, "Unigram: unk_id %zu is not in the vocabulary of %zu tokens", unk_id, n);
    }
    unigram->unk_id = unk_id != SIZE_MAX ? (int32_t)unk_id : -1;
    TRY(ha_load_bool(r, model, "byte_fallback", 0, &unigram->byte_fallback));
    return r->tok->tables != NULL ? HA_OK : ha_unigram_build(&r->tok->vocab, unigram, r->err);
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
    if (r->tok->tables != NULL && r->tok->tables_kind != (int)r->tok->model_kind) {
        return ha_fail(r->err, HA_ERR_FORMAT, "the tables of another model");
    }
    if (r->tok->model_kind != HA_MODEL_BPE && r->tok->pre.byte_level) {
        return ha_fail(r->err, HA_ERR_FORMAT, "model '%s' with pre_tokenizer 'ByteLevel' is not supported", type);
    }
    return HA_OK;
}
