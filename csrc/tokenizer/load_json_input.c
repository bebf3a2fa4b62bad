/* tokenizer.json: normalizers and pre-tokenizers. */
#include <string.h>

#include "tokenizer/load_json.h"

/* ---- normalizer ---- */

static ha_status
read_bert_normalizer(const ha_json_reader *r, const ha_json_node *node)
{
    int clean, chinese, lower, strip;
    TRY(ha_load_bool(r, node, "clean_text", 1, &clean));
    TRY(ha_load_bool(r, node, "handle_chinese_chars", 1, &chinese));
    TRY(ha_load_bool(r, node, "lowercase", 1, &lower));
    TRY(ha_load_bool(r, node, "strip_accents", lower, &strip));     /* null: as lowercase */
    return ha_normalizer_add_bert(&r->tok->normalizer, clean, chinese, strip, lower, r->err);
}

ha_status
ha_load_normalizer(const ha_json_reader *r, const ha_json_node *node, const char *type)
{
    static const struct { const char *type; ha_norm_pass pass; } simple[] = {
        {"NFC", HA_NORM_NFC}, {"NFD", HA_NORM_NFD}, {"Lowercase", HA_NORM_LOWERCASE},
    };
    if (strcmp(type, "BertNormalizer") == 0) {
        return read_bert_normalizer(r, node);
    }
    for (size_t i = 0; i < sizeof(simple) / sizeof(simple[0]); i++) {
        if (strcmp(type, simple[i].type) == 0) {
            return ha_normalizer_add(&r->tok->normalizer, simple[i].pass, r->err);
        }
    }
    return ha_load_unsupported(r, "normalizer", type);
}

/* ---- pre_tokenizer ---- */

static ha_status
read_split(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *pattern = ha_json_get(r->json, ha_json_get(r->json, node, "pattern"), "Regex");
    const ha_json_node *behavior = ha_json_get(r->json, node, "behavior");
    ha_pre_kind kind;
    int invert;
    TRY(ha_load_bool(r, node, "invert", 0, &invert));
    if (pattern == NULL || pattern->type != HA_JSON_STRING || !ha_pre_pattern(pattern->string, pattern->length, &kind)) {
        return ha_load_unsupported(r, "pre_tokenizer 'Split' with pattern", pattern != NULL && pattern->type == HA_JSON_STRING ? pattern->string : "(no Regex)");
    }
    /* the known patterns match everywhere, so nothing lies between matches: each match apart, or all but the matches removed, is the same */
    if (!ha_load_is_string(behavior, "Isolated") && !(ha_load_is_string(behavior, "Removed") && invert)) {
        return ha_load_unsupported(r, "pre_tokenizer 'Split' with behavior", behavior != NULL && behavior->type == HA_JSON_STRING ? behavior->string : "(none)");
    }
    return ha_pre_tokenizer_add(&r->tok->pre, kind, r->err);
}

ha_status
ha_load_pre_tokenizer(const ha_json_reader *r, const ha_json_node *node, const char *type)
{
    ha_pre_tokenizer *pre = &r->tok->pre;
    int on;
    if (pre->byte_level) {
        return ha_fail(r->err, HA_ERR_FORMAT, "pre_tokenizer '%.100s' after 'ByteLevel' is not supported", type);
    }
    if (strcmp(type, "BertPreTokenizer") == 0) {
        return ha_pre_tokenizer_add(pre, HA_PRE_BERT, r->err);
    }
    if (strcmp(type, "Digits") == 0) {
        TRY(ha_load_bool(r, node, "individual_digits", 0, &on));
        return ha_pre_tokenizer_add(pre, on ? HA_PRE_DIGITS_INDIVIDUAL : HA_PRE_DIGITS, r->err);
    }
    if (strcmp(type, "Split") == 0) {
        return read_split(r, node);
    }
    if (strcmp(type, "ByteLevel") != 0) {
        return ha_load_unsupported(r, "pre_tokenizer", type);
    }
    TRY(ha_load_bool(r, node, "add_prefix_space", 1, &on));
    if (on) {
        TRY(ha_pre_tokenizer_add(pre, HA_PRE_PREFIX_SPACE, r->err));
    }
    TRY(ha_load_bool(r, node, "use_regex", 1, &on));
    if (on) {
        TRY(ha_pre_tokenizer_add(pre, HA_PRE_GPT2, r->err));
    }
    pre->byte_level = 1;
    return HA_OK;
}
