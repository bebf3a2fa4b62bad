/* tokenizer.json: normalizers and pre-tokenizers. */
#include <stdio.h>
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

/* {"String": ...} or {"Regex": ...}. */
static ha_status
read_replace(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *pattern = ha_json_get(r->json, node, "pattern");
    const ha_json_node *text = ha_json_get(r->json, pattern, "String"), *regex = ha_json_get(r->json, pattern, "Regex"), *content;
    ha_norm_pattern kind = HA_NORM_TEXT;
    TRY(ha_load_string(r, node, "normalizer 'Replace'", "content", &content));
    if (regex != NULL && regex->type == HA_JSON_STRING && text == NULL) {
        if (!ha_norm_regex(regex->string, regex->length, &kind)) {
            return ha_load_unsupported(r, "normalizer 'Replace' with pattern", regex->string);
        }
    } else if (text == NULL || text->type != HA_JSON_STRING || text->length == 0 || regex != NULL) {
        return ha_load_unsupported(r, "normalizer 'Replace' with pattern", text != NULL && text->type == HA_JSON_STRING ? "" : "(neither String nor Regex)");
    }
    return ha_normalizer_add_replace(&r->tok->normalizer, kind, kind == HA_NORM_TEXT ? text->string : NULL, kind == HA_NORM_TEXT ? text->length : 0,
                                     content->string, content->length, r->err);
}

static ha_status
read_precompiled(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *text;
    ha_charsmap charsmap;
    TRY(ha_load_string(r, node, "normalizer 'Precompiled'", "precompiled_charsmap", &text));
    TRY(ha_charsmap_parse_base64(text->string, text->length, &charsmap, r->err));
    return ha_normalizer_add_precompiled(&r->tok->normalizer, charsmap, r->err);
}

static ha_status
read_strip(const ha_json_reader *r, const ha_json_node *node)
{
    int left, right;
    TRY(ha_load_bool(r, node, "strip_left", 1, &left));
    TRY(ha_load_bool(r, node, "strip_right", 1, &right));
    return ha_normalizer_add_strip(&r->tok->normalizer, left, right, r->err);
}

static ha_status
read_prepend(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *text;
    TRY(ha_load_string(r, node, "normalizer 'Prepend'", "prepend", &text));
    return text->length > 0 ? ha_normalizer_add_prepend(&r->tok->normalizer, text->string, text->length, r->err)
                            : ha_load_unsupported(r, "normalizer 'Prepend' with text", "");
}

ha_status
ha_load_normalizer(const ha_json_reader *r, const ha_json_node *node, const char *type)
{
    static const struct { const char *type; ha_norm_pass pass; } simple[] = {
        {"NFC", HA_NORM_NFC}, {"NFD", HA_NORM_NFD}, {"NFKC", HA_NORM_NFKC}, {"NFKD", HA_NORM_NFKD}, {"Lowercase", HA_NORM_LOWERCASE},
        {"StripAccents", HA_NORM_STRIP_ACCENTS}, {"Nmt", HA_NORM_NMT},
    };
    static const struct { const char *type; ha_status (*read)(const ha_json_reader *r, const ha_json_node *node); } others[] = {
        {"BertNormalizer", read_bert_normalizer}, {"Strip", read_strip}, {"Precompiled", read_precompiled}, {"Replace", read_replace},
        {"Prepend", read_prepend},
    };
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (strcmp(type, others[i].type) == 0) {
            return others[i].read(r, node);
        }
    }
    for (size_t i = 0; i < sizeof(simple) / sizeof(simple[0]); i++) {
        if (strcmp(type, simple[i].type) == 0) {
            return ha_normalizer_add(&r->tok->normalizer, simple[i].pass, r->err);
        }
    }
    return ha_load_unsupported(r, "normalizer", type);
}

/* ---- pre_tokenizer ---- */

/* A word of a closed list; `fallback` when the member is absent. */
static ha_status
read_choice(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *key, const char *const *names, size_t n, size_t fallback, size_t *out)
{
    const ha_json_node *value = ha_json_get(r->json, node, key);
    *out = fallback;
    if (value == NULL) {
        return HA_OK;
    }
    for (*out = 0; *out < n; (*out)++) {
        if (ha_load_is_string(value, names[*out])) {
            return HA_OK;
        }
    }
    return ha_load_unsupported(r, what, value->type == HA_JSON_STRING ? value->string : "(no string)");
}

/* A step whose delimiters are single characters, with its "behavior". */
static ha_status
read_delimiters(const ha_json_reader *r, const ha_json_node *node, const char *type, ha_pre_kind kind)
{
    static const char *const behaviors[] = {
        [HA_SPLIT_REMOVED] = "Removed", [HA_SPLIT_ISOLATED] = "Isolated", [HA_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [HA_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext", [HA_SPLIT_CONTIGUOUS] = "Contiguous",
    };
    char what[64];
    size_t behavior;
    snprintf(what, sizeof(what), "pre_tokenizer '%s' with behavior", type);
    TRY(read_choice(r, node, what, "behavior", behaviors, 5, HA_SPLIT_ISOLATED, &behavior));
    return ha_pre_tokenizer_add_step(&r->tok->pre, (ha_pre_step){.kind = kind, .behavior = (ha_split_behavior)behavior}, r->err);
}

static ha_status
read_split(const ha_json_reader *r, const ha_json_node *node)
{
    const ha_json_node *pattern = ha_json_get(r->json, ha_json_get(r->json, node, "pattern"), "Regex");
    const ha_json_node *behavior = ha_json_get(r->json, node, "behavior");
    ha_pre_kind kind;
    int invert;
    TRY(ha_load_bool(r, node, "invert", 0, &invert));
    if (ha_load_is_string(ha_json_get(r->json, ha_json_get(r->json, node, "pattern"), "String"), " ") && behavior != NULL && !invert) {
        return read_delimiters(r, node, "Split", HA_PRE_SPACES);
    }
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
ha_load_metaspace(const ha_json_reader *r, const ha_json_node *node, ha_metaspace *out)
{
    static const char *const schemes[] = {[HA_PREPEND_ALWAYS] = "always", [HA_PREPEND_FIRST] = "first", [HA_PREPEND_NEVER] = "never"};
    const ha_json_node *sign;
    size_t scheme, size;
    int legacy;
    TRY(ha_load_string(r, node, "Metaspace", "replacement", &sign));
    if (sign->length > 0) {
        ha_utf8_decode((const uint8_t *)sign->string, &size);
    }
    if (sign->length == 0 || size != sign->length) {
        return ha_fail(r->err, HA_ERR_FORMAT, "Metaspace: \"replacement\" must be one character, got '%.80s'", sign->string);
    }
    TRY(read_choice(r, node, "Metaspace with prepend_scheme", "prepend_scheme", schemes, 3, HA_PREPEND_ALWAYS, &scheme));
    TRY(ha_load_bool(r, node, "add_prefix_space", 1, &legacy));     /* files from before prepend_scheme */
    if (!legacy && scheme != HA_PREPEND_NEVER) {
        return ha_fail(r->err, HA_ERR_FORMAT, "Metaspace: add_prefix_space false is at odds with prepend_scheme '%s'", schemes[scheme]);
    }
    TRY(ha_load_bool(r, node, "split", 1, &out->split));
    memcpy(out->sign, sign->string, sign->length);
    out->length = (uint32_t)sign->length;
    out->prepend = (ha_prepend)scheme;
    return HA_OK;
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
    if (strcmp(type, "WhitespaceSplit") == 0 || strcmp(type, "Whitespace") == 0) {
        return ha_pre_tokenizer_add(pre, strcmp(type, "Whitespace") == 0 ? HA_PRE_WORDS : HA_PRE_WHITE_SPACE, r->err);
    }
    if (strcmp(type, "Punctuation") == 0) {
        return read_delimiters(r, node, type, HA_PRE_PUNCTUATION);
    }
    if (strcmp(type, "Metaspace") == 0) {
        ha_pre_step step = {.kind = HA_PRE_METASPACE};
        TRY(ha_load_metaspace(r, node, &step.metaspace));
        return ha_pre_tokenizer_add_step(pre, step, r->err);
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
