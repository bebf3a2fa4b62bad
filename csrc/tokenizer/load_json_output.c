/* tokenizer.json: post-processors and decoders. */
#include <string.h>

#include "tokenizer/load_json.h"

/* ---- post_processor ---- */

static ha_status
push_item(const ha_json_reader *r, ha_template *t, ha_template_kind kind, size_t type_id, int32_t id)
{
    if (t->n == HA_MAX_TEMPLATE) {
        return ha_fail(r->err, HA_ERR_FORMAT, "post_processor: a template of more than %d items", HA_MAX_TEMPLATE);
    }
    t->items[t->n++] = (ha_template_item){kind, (uint8_t)type_id, id};
    return HA_OK;
}

/* {"SpecialToken": {"id": ..., "type_id": ...}}: all ids that "special_tokens" lists for it. */
static ha_status
read_special_item(const ha_json_reader *r, const ha_json_node *special, const ha_json_node *tokens, ha_template *out)
{
    const ha_json_node *name = ha_json_get(r->json, special, "id");
    size_t type_id;
    TRY(ha_json_get_size(r->json, special, "type_id", 0, 0, 255, &type_id, r->err));
    const ha_json_node *entry = name != NULL && name->type == HA_JSON_STRING ? ha_json_get_n(r->json, tokens, name->string, name->length) : NULL;
    const ha_json_node *ids = ha_json_get(r->json, entry, "ids");
    if (ids == NULL || ids->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "TemplateProcessing: special token '%.80s' is not defined", name != NULL && name->type == HA_JSON_STRING ? name->string : "?");
    }
    for (const ha_json_node *item = ha_json_first(r->json, ids); item != NULL; item = ha_json_next(r->json, item)) {
        uint64_t id;
        size_t length;
        if (!ha_json_u64(item, &id) || id > INT32_MAX || ha_vocab_text(&r->tok->vocab, (int32_t)id, &length) == NULL) {
            return ha_fail(r->err, HA_ERR_FORMAT, "TemplateProcessing: special token '%.80s' has an id that is not in the vocabulary", name->string);
        }
        TRY(push_item(r, out, HA_TEMPLATE_SPECIAL, type_id, (int32_t)id));
    }
    return HA_OK;
}

static ha_status
read_template(const ha_json_reader *r, const ha_json_node *node, const char *key, ha_template *out)
{
    const ha_json_node *list = ha_json_get(r->json, node, key), *tokens = ha_json_get(r->json, node, "special_tokens");
    int has_a = 0, has_b = 0;
    out->n = 0;
    if (list == NULL || list->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "TemplateProcessing: \"%s\" is missing or no array", key);
    }
    for (const ha_json_node *item = ha_json_first(r->json, list); item != NULL; item = ha_json_next(r->json, item)) {
        const ha_json_node *special = ha_json_get(r->json, item, "SpecialToken"), *sequence = ha_json_get(r->json, item, "Sequence");
        if (special != NULL) {
            TRY(read_special_item(r, special, tokens, out));
            continue;
        }
        const ha_json_node *id = ha_json_get(r->json, sequence, "id");
        size_t type_id;
        if (!ha_load_is_string(id, "A") && !ha_load_is_string(id, "B")) {
            return ha_fail(r->err, HA_ERR_FORMAT, "TemplateProcessing: an item of \"%s\" is neither a SpecialToken nor Sequence A or B", key);
        }
        const int b = ha_load_is_string(id, "B");
        has_a |= !b, has_b |= b;
        TRY(ha_json_get_size(r->json, sequence, "type_id", 0, 0, 255, &type_id, r->err));
        TRY(push_item(r, out, b ? HA_TEMPLATE_B : HA_TEMPLATE_A, type_id, -1));
    }
    const int pair = strcmp(key, "pair") == 0;
    if (!has_a || has_b != pair) {
        return ha_fail(r->err, HA_ERR_FORMAT, "TemplateProcessing: \"%s\" must use %s", key, pair ? "both sequences" : "sequence A alone");
    }
    return HA_OK;
}

/* The ["text", id] pair of BertProcessing and RobertaProcessing. */
static ha_status
read_token_pair(const ha_json_reader *r, const ha_json_node *node, const char *key, int32_t *id)
{
    const ha_json_node *list = ha_json_get(r->json, node, key);
    const ha_json_node *second = ha_json_next(r->json, ha_json_first(r->json, list));
    uint64_t value;
    size_t length;
    if (list == NULL || list->type != HA_JSON_ARRAY || list->length != 2 || !ha_json_u64(second, &value) || value > INT32_MAX
        || ha_vocab_text(&r->tok->vocab, (int32_t)value, &length) == NULL) {
        return ha_fail(r->err, HA_ERR_FORMAT, "post_processor: \"%s\" must be [token, id] with an id of the vocabulary", key);
    }
    *id = (int32_t)value;
    return HA_OK;
}

static ha_status
read_trim(const ha_json_reader *r, const ha_json_node *node)
{
    ha_post_processor *post = &r->tok->post;
    int trim, prefix;
    TRY(ha_load_bool(r, node, "trim_offsets", 1, &trim));
    TRY(ha_load_bool(r, node, "add_prefix_space", 1, &prefix));
    if (trim && (!r->tok->pre.byte_level || post->trim_offsets)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "post_processor: trim_offsets %s is not supported", post->trim_offsets ? "twice" : "without ByteLevel");
    }
    if (trim) {
        post->trim_offsets = 1;
        post->keep_prefix_space = prefix;
    }
    return HA_OK;
}

ha_status
ha_load_post_processor(const ha_json_reader *r, const ha_json_node *node, const char *type)
{
    ha_post_processor *post = &r->tok->post;
    if (strcmp(type, "ByteLevel") == 0) {
        return read_trim(r, node);
    }
    if (post->has_template) {
        return ha_fail(r->err, HA_ERR_FORMAT, "post_processor '%.100s' after another template is not supported", type);
    }
    post->has_template = 1;
    if (strcmp(type, "TemplateProcessing") == 0) {
        TRY(read_template(r, node, "single", &post->single));
        return read_template(r, node, "pair", &post->pair);
    }
    const int roberta = strcmp(type, "RobertaProcessing") == 0;
    if (!roberta && strcmp(type, "BertProcessing") != 0) {
        return ha_load_unsupported(r, "post_processor", type);
    }
    int32_t cls, sep;
    TRY(read_token_pair(r, node, "cls", &cls));
    TRY(read_token_pair(r, node, "sep", &sep));
    if (roberta) {
        TRY(read_trim(r, node));
    }
    ha_post_processor_bert(post, cls, sep, roberta);
    return HA_OK;
}

/* ---- decoder ---- */

static ha_status
read_replace(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *pattern = ha_json_get(r->json, node, "pattern"), *from = ha_json_get(r->json, pattern, "String"), *to;
    TRY(ha_load_string(r, node, "decoder: Replace", "content", &to));
    if (from == NULL || from->type != HA_JSON_STRING || from->length == 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "decoder: Replace with a pattern that is no String, or an empty one, is not supported");
    }
    return ha_token_decoder_add(&r->tok->decoder, (ha_decoder_step){.kind = HA_DECODER_REPLACE, .from = from->string, .from_length = from->length,
                                                              .to = to->string, .to_length = to->length}, r->err);
}

static ha_status
read_bpe_decoder(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *suffix;
    TRY(ha_load_string(r, node, "decoder: BPEDecoder", "suffix", &suffix));
    if (suffix->length == 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "decoder: BPEDecoder with an empty suffix is not supported");
    }
    return ha_token_decoder_add(&r->tok->decoder, (ha_decoder_step){.kind = HA_DECODER_BPE, .from = suffix->string, .from_length = suffix->length,
                                                              .to = " ", .to_length = 1}, r->err);
}

static ha_status
read_strip(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *content;
    ha_decoder_step step = {.kind = HA_DECODER_STRIP};
    size_t size = 0;
    TRY(ha_load_string(r, node, "decoder: Strip", "content", &content));
    if (content->length > 0) {
        ha_utf8_decode((const uint8_t *)content->string, &size);
    }
    if (size == 0 || size != content->length) {
        return ha_fail(r->err, HA_ERR_FORMAT, "decoder: Strip's \"content\" must be one character");
    }
    step.from = content->string;
    step.from_length = size;
    TRY(ha_json_get_size(r->json, node, "start", 0, 0, SIZE_MAX / 4, &step.start, r->err));
    TRY(ha_json_get_size(r->json, node, "stop", 0, 0, SIZE_MAX / 4, &step.stop, r->err));
    return ha_token_decoder_add(&r->tok->decoder, step, r->err);
}

ha_status
ha_load_decoder(const ha_json_reader *r, const ha_json_node *node, const char *type)
{
    static const struct { const char *type; ha_decoder_kind kind; } simple[] = {
        {"ByteLevel", HA_DECODER_BYTE_LEVEL}, {"ByteFallback", HA_DECODER_BYTE_FALLBACK}, {"Fuse", HA_DECODER_FUSE},
    };
    for (size_t i = 0; i < sizeof(simple) / sizeof(simple[0]); i++) {
        if (strcmp(type, simple[i].type) == 0) {
            return ha_token_decoder_add(&r->tok->decoder, (ha_decoder_step){.kind = simple[i].kind}, r->err);
        }
    }
    if (strcmp(type, "Replace") == 0) {
        return read_replace(r, node);
    }
    if (strcmp(type, "Strip") == 0) {
        return read_strip(r, node);
    }
    if (strcmp(type, "BPEDecoder") == 0) {
        return read_bpe_decoder(r, node);
    }
    if (strcmp(type, "Metaspace") == 0) {
        ha_decoder_step step = {.kind = HA_DECODER_METASPACE};
        TRY(ha_load_metaspace(r, node, &step.metaspace));
        return ha_token_decoder_add(&r->tok->decoder, step, r->err);
    }
    if (strcmp(type, "WordPiece") != 0) {
        return ha_load_unsupported(r, "decoder", type);
    }
    const ha_json_node *prefix;
    int cleanup;
    TRY(ha_load_string(r, node, "decoder: WordPiece", "prefix", &prefix));
    TRY(ha_load_bool(r, node, "cleanup", 1, &cleanup));
    return ha_decoder_set_wordpiece(&r->tok->decoder, prefix->string, prefix->length, cleanup, r->err);
}
