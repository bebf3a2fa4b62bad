#include "tokenizer/hf_config.h"

#include <stdlib.h>
#include <string.h>

ha_status
ha_hf_open(const char *path, const char *name, ha_json **out, ha_error *err)
{
    const char *slash = strrchr(path, '/');
    const size_t n = slash != NULL ? (size_t)(slash - path) + 1 : 0;
    char *beside = malloc(n + strlen(name) + 1);
    *out = NULL;
    if (beside == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    memcpy(beside, path, n);
    strcpy(beside + n, name);
    const ha_status status = ha_json_open(beside, 1, out, err);
    free(beside);
    return status;
}

ha_status
ha_hf_token_options(const ha_json *json, const ha_json_node *node, int normalized, ha_added_token *out, ha_error *err)
{
    const struct { const char *key; int *out; int fallback; } options[] = {
        {"single_word", &out->single_word, 0}, {"lstrip", &out->lstrip, 0}, {"rstrip", &out->rstrip, 0}, {"special", &out->special, 0},
        {"normalized", &out->normalized, normalized},
    };
    ha_status status = HA_OK;
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]) && status == HA_OK; i++) {
        status = ha_json_get_bool(json, node, options[i].key, options[i].fallback, options[i].out, err);
    }
    return status;
}

ha_status
ha_hf_add_token(ha_tokenizer *tok, const char *text, ha_added_token token, int replace, ha_error *err)
{
    token.id = ha_vocab_id(&tok->vocab, text, token.length);
    for (size_t i = 0; token.id >= 0 && i < tok->added.n; i++) {
        ha_added_token *there = &tok->added.at[i];
        if (there->id == token.id) {
            if (replace) {
                token.content = there->content;
                token.special |= there->special;
                *there = token;
            }
            return HA_OK;
        }
    }
    if (token.id < 0) {
        const ha_status status = ha_vocab_add(&tok->vocab, text, token.length, tok->vocab.n_ids, SIZE_MAX, err);
        if (status != HA_OK) {
            return status;
        }
        token.id = (int32_t)tok->vocab.n_ids - 1;
    }
    return ha_added_tokens_add(&tok->added, text, token, err);
}

ha_status
ha_hf_added_tokens(ha_tokenizer *tok, const ha_json *config, ha_error *err)
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
        t.length = content->length;
        status = ha_hf_token_options(config, item, 1, &t, err);
        const int32_t known = ha_vocab_id(&tok->vocab, content->string, content->length);
        if (status == HA_OK && (known >= 0 ? (unsigned long long)known != id : id != tok->vocab.n_ids)) {
            status = ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json: added token '%.80s' is said to have id %llu, which is not its place in the vocabulary",
                             content->string, id);
        }
        if (status == HA_OK) {
            status = ha_hf_add_token(tok, content->string, t, 1, err);
        }
    }
    return status;
}
