/* vocab.txt of BERT: one token a line, its id the line's index; tokenizer_config.json beside it says how text is prepared (transformers' BertTokenizer). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "io/json.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/unicode.h"

/* Without the white space at its end, as the reference reads lines. */
static size_t
trimmed(const uint8_t *line, size_t length)
{
    size_t size;
    while (length > 0) {
        const size_t back = ha_utf8_back(line, length);
        if ((ha_uc_flags(ha_utf8_decode(line + back, &size)) & HA_UC_WHITE_SPACE) == 0) {
            break;
        }
        length = back;
    }
    return length;
}

static ha_status
read_lines(ha_tokenizer *tok, const uint8_t *text, size_t size, ha_error *err)
{
    uint64_t id = 0;
    const size_t valid = ha_utf8_valid_prefix(text, size);
    ha_status status = HA_OK;
    for (size_t at = 0; at < size && status == HA_OK; id++) {
        const uint8_t *end = memchr(text + at, '\n', size - at);
        const size_t length = end != NULL ? (size_t)(end - (text + at)) : size - at;
        if (valid < at + length) {
            return ha_fail(err, HA_ERR_FORMAT, "line %llu is not UTF-8", (unsigned long long)id + 1);
        }
        status = ha_vocab_add(&tok->vocab, (const char *)text + at, trimmed(text + at, length), id, SIZE_MAX, err);
        at += length + 1;
    }
    tok->n_model_tokens = tok->vocab.n_tokens;
    tok->n_model_ids = tok->vocab.n_ids;
    return status;
}

/* The text of a special token: the configuration's `key`, a string or an object with "content", else `fallback`. */
static ha_status
special_text(const ha_json *config, const char *key, const char *fallback, const char **text, size_t *length, ha_error *err)
{
    const ha_json_node *node = config != NULL ? ha_json_get(config, ha_json_root(config), key) : NULL;
    if (node != NULL && node->type == HA_JSON_OBJECT) {
        node = ha_json_get(config, node, "content");
    }
    *text = fallback;
    *length = strlen(fallback);
    if (node == NULL || node->type == HA_JSON_NULL) {
        return HA_OK;
    }
    if (node->type != HA_JSON_STRING) {
        return ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json: \"%s\" is no string", key);
    }
    *text = node->string;
    *length = node->length;
    return HA_OK;
}

static int
has_added(const ha_tokenizer *tok, int32_t id)
{
    for (size_t i = 0; i < tok->added.n; i++) {
        if (tok->added.at[i].id == id) {
            return 1;
        }
    }
    return 0;
}

/* "added_tokens_decoder": {"100": {"content": ..., "lstrip": ..., ...}, ...} */
static ha_status
read_decoder_table(ha_tokenizer *tok, const ha_json *config, ha_error *err)
{
    const ha_json_node *table = config != NULL ? ha_json_get(config, ha_json_root(config), "added_tokens_decoder") : NULL;
    ha_status status = HA_OK;
    for (const ha_json_node *item = ha_json_first(config, table); item != NULL && status == HA_OK; item = ha_json_next(config, item)) {
        const ha_json_node *content = ha_json_get(config, item, "content");
        ha_added_token t = {0};
        char *end = NULL;
        const unsigned long long id = item->key != NULL ? strtoull(item->key, &end, 10) : 0;
        if (content == NULL || content->type != HA_JSON_STRING || content->length == 0 || end == item->key || *end != '\0') {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json: \"added_tokens_decoder\" must map ids to objects with \"content\"");
        }
        const struct { const char *key; int *out; int fallback; } options[] = {
            {"single_word", &t.single_word, 0}, {"lstrip", &t.lstrip, 0}, {"rstrip", &t.rstrip, 0}, {"special", &t.special, 0},
            {"normalized", &t.normalized, 1},
        };
        for (size_t i = 0; i < sizeof(options) / sizeof(options[0]) && status == HA_OK; i++) {
            status = ha_json_get_bool(config, item, options[i].key, options[i].fallback, options[i].out, err);
        }
        const int32_t known = ha_vocab_id(&tok->vocab, content->string, content->length);
        if (status == HA_OK && (known >= 0 ? (unsigned long long)known != id : id != tok->vocab.n_ids)) {
            status = ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json: added token '%.80s' is said to have id %llu, which is not its place in the vocabulary",
                             content->string, id);
        }
        if (status == HA_OK) {
            status = ha_vocab_add(&tok->vocab, content->string, content->length, id, SIZE_MAX, err);
        }
        t.id = (int32_t)id;
        t.length = content->length;
        if (status == HA_OK) {
            status = ha_added_tokens_add(&tok->added, content->string, t, err);
        }
    }
    return status;
}

static ha_status
read_specials(ha_tokenizer *tok, const ha_json *config, ha_error *err)
{
    static const char *const specials[][2] = {
        {"unk_token", "[UNK]"}, {"cls_token", "[CLS]"}, {"sep_token", "[SEP]"}, {"pad_token", "[PAD]"}, {"mask_token", "[MASK]"},
    };
    int32_t ids[5];
    for (size_t i = 0; i < 5; i++) {
        const char *text;
        size_t length;
        ha_status status = special_text(config, specials[i][0], specials[i][1], &text, &length, err);
        if (status != HA_OK) {
            return status;
        }
        ids[i] = ha_vocab_id(&tok->vocab, text, length);
        if (ids[i] < 0 && i < 3) {
            return ha_fail(err, HA_ERR_FORMAT, "%s '%.80s' is not in the vocabulary", specials[i][0], text);
        }
        if (ids[i] >= 0 && !has_added(tok, ids[i])) {
            status = ha_added_tokens_add(&tok->added, text, (ha_added_token){.id = ids[i], .special = 1, .length = length}, err);
            if (status != HA_OK) {
                return status;
            }
        }
    }
    tok->wordpiece.unk_id = ids[0];
    tok->pad_id = ids[3];
    ha_post_processor_bert(&tok->post, ids[1], ids[2], 0);
    return HA_OK;
}

static ha_status
configure(ha_tokenizer *tok, const ha_json *config, ha_error *err)
{
    int lower = 1, chinese = 1, strip = 1;
    ha_status status = HA_OK;
    if (config != NULL) {
        const ha_json_node *root = ha_json_root(config);
        status = ha_json_get_bool(config, root, "do_lower_case", 1, &lower, err);
        if (status == HA_OK) {
            status = ha_json_get_bool(config, root, "tokenize_chinese_chars", 1, &chinese, err);
        }
        strip = lower;
        if (status == HA_OK) {
            status = ha_json_get_bool(config, root, "strip_accents", lower, &strip, err);
        }
    }
    if (status == HA_OK) {
        status = ha_normalizer_add_bert(&tok->normalizer, 1, chinese, strip, lower, err);
    }
    if (status == HA_OK) {
        status = ha_pre_tokenizer_add(&tok->pre, HA_PRE_BERT, err);
    }
    if (status == HA_OK) {
        status = read_decoder_table(tok, config, err);
    }
    if (status == HA_OK) {
        status = read_specials(tok, config, err);
    }
    if (status == HA_OK) {
        status = ha_decoder_set_wordpiece(&tok->decoder, "##", 2, 1, err);
    }
    tok->model_kind = HA_MODEL_WORDPIECE;
    tok->wordpiece.max_chars = 100;
    return status == HA_OK ? ha_wordpiece_build(&tok->vocab, "##", 2, &tok->wordpiece, err) : status;
}

/* tokenizer_config.json in the folder of `path`: *config stays NULL when there is none. */
static ha_status
open_config(const char *path, ha_json **config, ha_error *err)
{
    const char *slash = strrchr(path, '/');
    const size_t n = slash != NULL ? (size_t)(slash - path) + 1 : 0;
    char *name = malloc(n + sizeof("tokenizer_config.json"));
    if (name == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    memcpy(name, path, n);
    strcpy(name + n, "tokenizer_config.json");
    ha_status status = HA_OK;
    FILE *probe = fopen(name, "rb");
    if (probe != NULL) {
        ha_map_file file;
        fclose(probe);
        status = ha_map_file_open(name, &file, err);
        if (status == HA_OK) {
            status = ha_json_parse(name, (const char *)file.data, file.size, config, err);
            ha_map_file_close(&file);
        }
    }
    free(name);
    return status;
}

ha_status
ha_tokenizer_load_vocab_txt(ha_tokenizer *tok, const char *path, ha_error *err)
{
    ha_map_file file;
    ha_json *config = NULL;
    ha_error cause;
    ha_status status = ha_map_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    status = open_config(path, &config, err);
    if (status == HA_OK) {
        status = read_lines(tok, file.data, file.size, &cause);
        if (status == HA_OK) {
            status = configure(tok, config, &cause);
        }
        if (status == HA_OK) {
            status = ha_tokenizer_finish(tok, &cause);
        }
        if (status != HA_OK) {
            ha_fail(err, status, "%.250s: %.250s", path, cause.message);
        }
    }
    ha_json_free(config);
    ha_map_file_close(&file);
    return status;
}
