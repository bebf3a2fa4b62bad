/* tokenizer.json (the format of Hugging Face `tokenizers`, version "1.0"). A component or option that is not honoured exactly is refused by name. */
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "io/json.h"
#include "tokenizer/pipeline.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

typedef struct reader {
    ha_tokenizer *tok;
    const ha_json *json;
    size_t max_ids;         /* what a file of this size can hold */
    ha_error *err;
} reader;

static int
is_null(const ha_json_node *node)
{
    return node == NULL || node->type == HA_JSON_NULL;
}

static int
is_string(const ha_json_node *node, const char *text)
{
    return node != NULL && node->type == HA_JSON_STRING && node->length == strlen(text) && memcmp(node->string, text, node->length) == 0;
}

/* The "type" of a component, which must be an object that has one. */
static ha_status
type_of(const reader *r, const ha_json_node *node, const char *what, const char **type)
{
    *type = NULL;
    if (node->type == HA_JSON_OBJECT) {
        TRY(ha_json_get_string(r->json, node, "type", NULL, type, r->err));
    }
    return *type != NULL ? HA_OK : ha_fail(r->err, HA_ERR_FORMAT, "%s: expected an object with a \"type\"", what);
}

static ha_status
get_bool(const reader *r, const ha_json_node *node, const char *key, int fallback, int *out)
{
    return ha_json_get_bool(r->json, node, key, fallback, out, r->err);
}

static ha_status
unsupported(const reader *r, const char *what, const char *name)
{
    return ha_fail(r->err, HA_ERR_FORMAT, "%s '%.100s' is not supported", what, name);
}

/* ---- normalizer ---- */

static ha_status
read_bert_normalizer(const reader *r, const ha_json_node *node)
{
    int clean, chinese, lower, strip;
    TRY(get_bool(r, node, "clean_text", 1, &clean));
    TRY(get_bool(r, node, "handle_chinese_chars", 1, &chinese));
    TRY(get_bool(r, node, "lowercase", 1, &lower));
    TRY(get_bool(r, node, "strip_accents", lower, &strip));     /* null: as lowercase */
    return ha_normalizer_add_bert(&r->tok->normalizer, clean, chinese, strip, lower, r->err);
}

static ha_status
read_one_normalizer(const reader *r, const ha_json_node *node, const char *type)
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
    return unsupported(r, "normalizer", type);
}

typedef ha_status (*read_component)(const reader *r, const ha_json_node *node, const char *type);

/* One component, or the members of a Sequence (which may not hold another: nothing is lost, and there is no recursion). */
static ha_status
read_sequence(const reader *r, const ha_json_node *node, const char *what, const char *members, read_component read)
{
    const char *type;
    if (is_null(node)) {
        return HA_OK;
    }
    TRY(type_of(r, node, what, &type));
    if (strcmp(type, "Sequence") != 0) {
        return read(r, node, type);
    }
    const ha_json_node *list = ha_json_get(r->json, node, members);
    if (list == NULL || list->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%s: a Sequence without \"%s\"", what, members);
    }
    for (const ha_json_node *item = ha_json_first(r->json, list); item != NULL; item = ha_json_next(r->json, item)) {
        TRY(type_of(r, item, what, &type));
        TRY(read(r, item, type));
    }
    return HA_OK;
}

/* ---- pre_tokenizer ---- */

static ha_status
read_split(const reader *r, const ha_json_node *node)
{
    const ha_json_node *pattern = ha_json_get(r->json, ha_json_get(r->json, node, "pattern"), "Regex");
    const ha_json_node *behavior = ha_json_get(r->json, node, "behavior");
    ha_pre_kind kind;
    int invert;
    TRY(get_bool(r, node, "invert", 0, &invert));
    if (pattern == NULL || pattern->type != HA_JSON_STRING || !ha_pre_pattern(pattern->string, pattern->length, &kind)) {
        return unsupported(r, "pre_tokenizer 'Split' with pattern", pattern != NULL && pattern->type == HA_JSON_STRING ? pattern->string : "(no Regex)");
    }
    /* the known patterns match everywhere, so nothing lies between matches: each match apart, or all but the matches removed, is the same */
    if (!is_string(behavior, "Isolated") && !(is_string(behavior, "Removed") && invert)) {
        return unsupported(r, "pre_tokenizer 'Split' with behavior", behavior != NULL && behavior->type == HA_JSON_STRING ? behavior->string : "(none)");
    }
    return ha_pre_tokenizer_add(&r->tok->pre, kind, r->err);
}

static ha_status
read_one_pre_tokenizer(const reader *r, const ha_json_node *node, const char *type)
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
        TRY(get_bool(r, node, "individual_digits", 0, &on));
        return ha_pre_tokenizer_add(pre, on ? HA_PRE_DIGITS_INDIVIDUAL : HA_PRE_DIGITS, r->err);
    }
    if (strcmp(type, "Split") == 0) {
        return read_split(r, node);
    }
    if (strcmp(type, "ByteLevel") != 0) {
        return unsupported(r, "pre_tokenizer", type);
    }
    TRY(get_bool(r, node, "add_prefix_space", 1, &on));
    if (on) {
        TRY(ha_pre_tokenizer_add(pre, HA_PRE_PREFIX_SPACE, r->err));
    }
    TRY(get_bool(r, node, "use_regex", 1, &on));
    if (on) {
        TRY(ha_pre_tokenizer_add(pre, HA_PRE_GPT2, r->err));
    }
    pre->byte_level = 1;
    return HA_OK;
}

/* ---- model ---- */

static ha_status
read_vocab(const reader *r, const ha_json_node *model)
{
    const ha_json_node *vocab = ha_json_get(r->json, model, "vocab");
    if (vocab == NULL || vocab->type != HA_JSON_OBJECT) {
        return ha_fail(r->err, HA_ERR_FORMAT, "model: \"vocab\" is missing or no object");
    }
    for (const ha_json_node *item = ha_json_first(r->json, vocab); item != NULL; item = ha_json_next(r->json, item)) {
        uint64_t id;
        if (!ha_json_u64(item, &id)) {
            return ha_fail(r->err, HA_ERR_FORMAT, "vocab: the id of '%.80s' is no non-negative integer", item->key);
        }
        TRY(ha_vocab_add(&r->tok->vocab, item->key, item->key_length, id, r->max_ids, r->err));
    }
    r->tok->n_model_tokens = r->tok->vocab.n_tokens;
    r->tok->n_model_ids = r->tok->vocab.n_ids;
    return HA_OK;
}

/* A member that is absent, null, "", false or 0; anything else is an option that is not honoured. */
static ha_status
expect_off(const reader *r, const ha_json_node *node, const char *what, const char *key)
{
    const ha_json_node *value = ha_json_get(r->json, node, key);
    if (is_null(value) || value->type == HA_JSON_FALSE || (value->type == HA_JSON_STRING && value->length == 0)
        || (value->type == HA_JSON_NUMBER && value->number == 0)) {
        return HA_OK;
    }
    return ha_fail(r->err, HA_ERR_FORMAT, "%s: option \"%s\" is not supported", what, key);
}

/* The id of the string member `key`: -1 when it is absent or null, HA_ERR_FORMAT when it is not in the vocabulary. */
static ha_status
token_id(const reader *r, const ha_json_node *node, const char *key, int32_t *id)
{
    const ha_json_node *value = ha_json_get(r->json, node, key);
    *id = -1;
    if (is_null(value)) {
        return HA_OK;
    }
    if (value->type == HA_JSON_STRING) {
        *id = ha_vocab_id(&r->tok->vocab, value->string, value->length);
    }
    return *id >= 0 ? HA_OK : ha_fail(r->err, HA_ERR_FORMAT, "%s '%.80s' is not in the vocabulary", key, value->type == HA_JSON_STRING ? value->string : "?");
}

static ha_status
read_wordpiece(const reader *r, const ha_json_node *model)
{
    ha_wordpiece *wp = &r->tok->wordpiece;
    const ha_json_node *prefix = ha_json_get(r->json, model, "continuing_subword_prefix");
    TRY(read_vocab(r, model));
    TRY(token_id(r, model, "unk_token", &wp->unk_id));
    if (wp->unk_id < 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "WordPiece: \"unk_token\" is missing");
    }
    TRY(ha_json_get_size(r->json, model, "max_input_chars_per_word", 100, 0, SIZE_MAX / 8, &wp->max_chars, r->err));
    if (!is_null(prefix) && prefix->type != HA_JSON_STRING) {
        return ha_fail(r->err, HA_ERR_FORMAT, "WordPiece: \"continuing_subword_prefix\" is no string");
    }
    return ha_wordpiece_build(&r->tok->vocab, is_null(prefix) ? "##" : prefix->string, is_null(prefix) ? 2 : prefix->length, wp, r->err);
}

/* Left and right half of a merge, "a b" or ["a", "b"]. */
static int
merge_halves(const reader *r, const ha_json_node *item, const char *half[2], size_t length[2])
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
    const ha_json_node *left = item->type == HA_JSON_ARRAY && item->length == 2 ? ha_json_first(r->json, item) : NULL;
    const ha_json_node *right = left != NULL ? ha_json_next(r->json, left) : NULL;
    if (right == NULL || left->type != HA_JSON_STRING || right->type != HA_JSON_STRING) {
        return 0;
    }
    half[0] = left->string, length[0] = left->length;
    half[1] = right->string, length[1] = right->length;
    return 1;
}

static ha_status
read_merges(const reader *r, const ha_json_node *model)
{
    const ha_json_node *merges = ha_json_get(r->json, model, "merges");
    if (merges == NULL || merges->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "BPE: \"merges\" is missing or no array");
    }
    TRY(ha_bpe_reserve(&r->tok->bpe, merges->length, r->err));
    size_t i = 0;
    for (const ha_json_node *item = ha_json_first(r->json, merges); item != NULL; item = ha_json_next(r->json, item), i++) {
        const char *half[2];
        size_t length[2];
        if (!merge_halves(r, item, half, length)) {
            return ha_fail(r->err, HA_ERR_FORMAT, "merges[%zu]: expected \"left right\" or [\"left\", \"right\"]", i);
        }
        TRY(ha_bpe_add_merge_text(&r->tok->bpe, &r->tok->vocab, i, half, length, r->err));
    }
    return HA_OK;
}

static ha_status
read_bpe(const reader *r, const ha_json_node *model)
{
    ha_bpe *bpe = &r->tok->bpe;
    TRY(read_vocab(r, model));
    TRY(expect_off(r, model, "BPE", "dropout"));
    TRY(expect_off(r, model, "BPE", "continuing_subword_prefix"));
    TRY(expect_off(r, model, "BPE", "end_of_word_suffix"));
    TRY(token_id(r, model, "unk_token", &bpe->unk_id));
    TRY(get_bool(r, model, "fuse_unk", 0, &bpe->fuse_unk));
    TRY(get_bool(r, model, "ignore_merges", 0, &bpe->ignore_merges));
    TRY(read_merges(r, model));
    ha_bpe_read_bytes(bpe, &r->tok->vocab);
    if (!bpe->all_bytes) {
        TRY(expect_off(r, model, "BPE", "byte_fallback"));      /* it would matter */
    }
    return HA_OK;
}

static ha_status
read_model(const reader *r, const ha_json_node *model)
{
    const char *type;
    if (is_null(model)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "\"model\" is missing");
    }
    if (model->type == HA_JSON_OBJECT && ha_json_get(r->json, model, "type") == NULL && ha_json_get(r->json, model, "merges") != NULL) {
        type = "BPE";       /* files from before the type was written */
    } else {
        TRY(type_of(r, model, "model", &type));
    }
    if (strcmp(type, "WordPiece") == 0) {
        r->tok->model_kind = HA_MODEL_WORDPIECE;
        TRY(read_wordpiece(r, model));
    } else if (strcmp(type, "BPE") == 0) {
        r->tok->model_kind = HA_MODEL_BPE;
        TRY(read_bpe(r, model));
    } else {
        return unsupported(r, "model", type);
    }
    if ((r->tok->model_kind == HA_MODEL_BPE) != r->tok->pre.byte_level) {
        return ha_fail(r->err, HA_ERR_FORMAT, "model '%s' %s pre_tokenizer 'ByteLevel' is not supported", type, r->tok->pre.byte_level ? "with" : "without");
    }
    return HA_OK;
}

/* ---- added tokens ---- */

/* The reference gives a token the id that its text has already, else the next free one, whatever the file says; where the two differ the file
 * is at odds with itself. */
static ha_status
read_added_tokens(const reader *r, const ha_json_node *list)
{
    ha_tokenizer *tok = r->tok;
    if (is_null(list)) {
        return HA_OK;
    }
    if (list->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "\"added_tokens\" is no array");
    }
    uint64_t next = tok->n_model_tokens;
    for (const ha_json_node *item = ha_json_first(r->json, list); item != NULL; item = ha_json_next(r->json, item)) {
        const ha_json_node *content = ha_json_get(r->json, item, "content");
        size_t stated;
        ha_added_token t = {0};
        if (content == NULL || content->type != HA_JSON_STRING) {
            return ha_fail(r->err, HA_ERR_FORMAT, "added_tokens: a token without \"content\"");
        }
        if (content->length == 0) {
            continue;
        }
        TRY(ha_json_get_size(r->json, item, "id", SIZE_MAX, 0, SIZE_MAX / 4, &stated, r->err));
        TRY(get_bool(r, item, "single_word", 0, &t.single_word));
        TRY(get_bool(r, item, "lstrip", 0, &t.lstrip));
        TRY(get_bool(r, item, "rstrip", 0, &t.rstrip));
        TRY(get_bool(r, item, "special", 0, &t.special));
        TRY(get_bool(r, item, "normalized", !t.special, &t.normalized));
        t.id = ha_vocab_id(&tok->vocab, content->string, content->length);
        const uint64_t id = t.id >= 0 ? (uint64_t)t.id : next++;
        if (stated != id) {
            return ha_fail(r->err, HA_ERR_FORMAT, "added_tokens: '%.80s' is said to have id %zu, but its place in the vocabulary is %llu",
                           content->string, stated, (unsigned long long)id);
        }
        TRY(ha_vocab_add(&tok->vocab, content->string, content->length, id, r->max_ids, r->err));
        t.id = (int32_t)id;
        t.length = content->length;
        TRY(ha_added_tokens_add(&tok->added, content->string, t, r->err));
    }
    return HA_OK;
}

/* ---- post_processor ---- */

static ha_status
push_item(const reader *r, ha_template *t, ha_template_kind kind, size_t type_id, int32_t id)
{
    if (t->n == HA_MAX_TEMPLATE) {
        return ha_fail(r->err, HA_ERR_FORMAT, "post_processor: a template of more than %d items", HA_MAX_TEMPLATE);
    }
    t->items[t->n++] = (ha_template_item){kind, (uint8_t)type_id, id};
    return HA_OK;
}

/* {"SpecialToken": {"id": ..., "type_id": ...}}: all ids that "special_tokens" lists for it. */
static ha_status
read_special_item(const reader *r, const ha_json_node *special, const ha_json_node *tokens, ha_template *out)
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
read_template(const reader *r, const ha_json_node *node, const char *key, ha_template *out)
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
        if (!is_string(id, "A") && !is_string(id, "B")) {
            return ha_fail(r->err, HA_ERR_FORMAT, "TemplateProcessing: an item of \"%s\" is neither a SpecialToken nor Sequence A or B", key);
        }
        const int b = is_string(id, "B");
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
read_token_pair(const reader *r, const ha_json_node *node, const char *key, int32_t *id)
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
read_trim(const reader *r, const ha_json_node *node)
{
    ha_post_processor *post = &r->tok->post;
    int trim, prefix;
    TRY(get_bool(r, node, "trim_offsets", 1, &trim));
    TRY(get_bool(r, node, "add_prefix_space", 1, &prefix));
    if (trim && (!r->tok->pre.byte_level || post->trim_offsets)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "post_processor: trim_offsets %s is not supported", post->trim_offsets ? "twice" : "without ByteLevel");
    }
    if (trim) {
        post->trim_offsets = 1;
        post->keep_prefix_space = prefix;
    }
    return HA_OK;
}

static ha_status
read_one_post_processor(const reader *r, const ha_json_node *node, const char *type)
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
        return unsupported(r, "post_processor", type);
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
read_decoder(const reader *r, const ha_json_node *node)
{
    ha_decoder *decoder = &r->tok->decoder;
    const char *type;
    if (is_null(node)) {
        return HA_OK;
    }
    TRY(type_of(r, node, "decoder", &type));
    if (strcmp(type, "ByteLevel") == 0) {
        decoder->kind = HA_DECODER_BYTE_LEVEL;
        return HA_OK;
    }
    if (strcmp(type, "WordPiece") != 0) {
        return unsupported(r, "decoder", type);
    }
    const ha_json_node *prefix = ha_json_get(r->json, node, "prefix");
    if (prefix == NULL || prefix->type != HA_JSON_STRING) {
        return ha_fail(r->err, HA_ERR_FORMAT, "decoder: WordPiece without \"prefix\"");
    }
    TRY(get_bool(r, node, "cleanup", 1, &decoder->cleanup));
    return ha_decoder_set_wordpiece(decoder, prefix->string, prefix->length, decoder->cleanup, r->err);
}

/* ---- the file ---- */

/* Of "padding" only which token pads; how far is the caller's to say. */
static ha_status
read_pad(const reader *r, const ha_json_node *padding)
{
    size_t id, length;
    if (is_null(padding)) {
        return HA_OK;
    }
    TRY(ha_json_get_size(r->json, padding, "pad_id", SIZE_MAX, 0, INT32_MAX, &id, r->err));
    if (id != SIZE_MAX && ha_vocab_text(&r->tok->vocab, (int32_t)id, &length) == NULL) {
        return ha_fail(r->err, HA_ERR_FORMAT, "padding: pad_id %zu is not in the vocabulary", id);
    }
    r->tok->pad_id = id != SIZE_MAX ? (int32_t)id : -1;
    return HA_OK;
}

static ha_status
read_root(const reader *r)
{
    const ha_json_node *root = ha_json_root(r->json);
    const ha_json_node *version = ha_json_get(r->json, root, "version");
    if (root == NULL || root->type != HA_JSON_OBJECT) {
        return ha_fail(r->err, HA_ERR_FORMAT, "expected an object");
    }
    if (version != NULL && !is_string(version, "1.0")) {
        return ha_fail(r->err, HA_ERR_FORMAT, "\"version\" must be \"1.0\"");
    }
    ha_post_processor_none(&r->tok->post);
    TRY(read_sequence(r, ha_json_get(r->json, root, "normalizer"), "normalizer", "normalizers", read_one_normalizer));
    TRY(read_sequence(r, ha_json_get(r->json, root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers", read_one_pre_tokenizer));
    TRY(read_model(r, ha_json_get(r->json, root, "model")));
    TRY(read_added_tokens(r, ha_json_get(r->json, root, "added_tokens")));
    TRY(read_sequence(r, ha_json_get(r->json, root, "post_processor"), "post_processor", "processors", read_one_post_processor));
    TRY(read_pad(r, ha_json_get(r->json, root, "padding")));
    return read_decoder(r, ha_json_get(r->json, root, "decoder"));
}

ha_status
ha_tokenizer_load_json(ha_tokenizer *tok, const char *path, ha_error *err)
{
    ha_map_file file;
    ha_json *json = NULL;
    ha_error cause;
    ha_status status = ha_map_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    status = ha_json_parse(path, (const char *)file.data, file.size, &json, err);
    if (status == HA_OK) {
        /* a token takes at least 6 bytes of the file ("":0,), so an id far above that count is no dense vocabulary's */
        const reader r = {tok, json, file.size / 2 + 65536, &cause};
        status = read_root(&r);
        if (status == HA_OK) {
            status = ha_tokenizer_finish(tok, &cause);
        }
        if (status != HA_OK) {
            ha_fail(err, status, "%.250s: %.250s", path, cause.message);
        }
    }
    ha_json_free(json);
    ha_map_file_close(&file);
    return status;
}
