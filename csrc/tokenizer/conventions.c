#include "tokenizer/conventions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "core/sha256.h"
#include "core/strmap.h"

/* ---- the files ---- */

const ha_json_node *
ha_conventions_member(const ha_json *json, const char *key)
{
    return json != NULL ? ha_json_get(json, ha_json_root(json), key) : NULL;
}

/* `name` in the folder of the file `path`: *out stays NULL and the digest what it is when it is not there. HA_ERR_FORMAT when it is no object. */
static ha_status
open_beside(const char *path, const char *name, ha_json **out, uint8_t digest[32], ha_error *err)
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
    ha_status status = HA_OK;
    FILE *probe = fopen(beside, "rb");
    if (probe != NULL) {
        ha_map_file file;
        fclose(probe);
        status = ha_map_file_open(beside, &file, err);
        if (status == HA_OK) {
            ha_sha256(file.data, file.size, digest);
            status = ha_json_parse(beside, (const char *)file.data, file.size, out, err);
            ha_map_file_close(&file);
        }
        if (status == HA_OK && ha_json_root(*out)->type != HA_JSON_OBJECT) {
            status = ha_fail(err, HA_ERR_FORMAT, "%.400s: must hold an object", beside);
            ha_json_free(*out);
            *out = NULL;
        }
    }
    free(beside);
    return status;
}

ha_status
ha_conventions_open(const char *path, ha_conventions *out, ha_error *err)
{
    memset(out, 0, sizeof(*out));
    TRY(open_beside(path, "tokenizer_config.json", &out->config, out->digests[0], err));
    TRY(open_beside(path, "config.json", &out->model, out->digests[1], err));
    if (ha_conventions_member(out->config, "added_tokens_decoder") == NULL) {
        TRY(open_beside(path, "special_tokens_map.json", &out->map, out->digests[2], err));
        TRY(open_beside(path, "added_tokens.json", &out->added, out->digests[3], err));
    }
    return HA_OK;
}

void
ha_conventions_close(ha_conventions *c)
{
    ha_json_free(c->config);
    ha_json_free(c->map);
    ha_json_free(c->added);
    ha_json_free(c->model);
    memset(c, 0, sizeof(*c));
}

static ha_status
string_member(const ha_json *json, const char *key, const char **out, ha_error *err)
{
    *out = NULL;
    return json != NULL ? ha_json_get_string(json, ha_json_root(json), key, NULL, out, err) : HA_OK;
}

ha_status
ha_conventions_class(const ha_conventions *c, char out[64], ha_error *err)
{
    static const struct { const char *model_type, *name; } implied[] = {
        {"bert", "BertTokenizer"}, {"distilbert", "DistilBertTokenizer"}, {"electra", "ElectraTokenizer"}, {"gpt2", "GPT2Tokenizer"},
        {"roberta", "RobertaTokenizer"}, {"bart", "BartTokenizer"}, {"longformer", "LongformerTokenizer"}, {"qwen2", "Qwen2Tokenizer"},
        {"qwen3", "Qwen2Tokenizer"},
    };
    const char *name, *type;
    TRY(string_member(c->config, "tokenizer_class", &name, err));
    if (name == NULL) {
        TRY(string_member(c->model, "tokenizer_class", &name, err));
    }
    TRY(string_member(c->model, "model_type", &type, err));
    for (size_t i = 0; name == NULL && type != NULL && i < sizeof(implied) / sizeof(implied[0]); i++) {
        name = strcmp(type, implied[i].model_type) == 0 ? implied[i].name : NULL;
    }
    snprintf(out, 64, "%s", name != NULL ? name : type != NULL ? type : "");
    const size_t n = strlen(out);
    if (n > 4 && strcmp(out + n - 4, "Fast") == 0) {
        out[n - 4] = '\0';
    }
    return HA_OK;
}

ha_status
ha_conventions_bool(const ha_conventions *c, const char *key, int fallback, int *out, ha_error *err)
{
    *out = fallback;
    return c->config != NULL ? ha_json_get_bool(c->config, ha_json_root(c->config), key, fallback, out, err) : HA_OK;
}

/* ---- tokens ---- */

static ha_status
read_written(const ha_json *json, const ha_json_node *node, const char *key, ha_written *out, ha_error *err)
{
    const ha_json_node *content = node != NULL && node->type == HA_JSON_OBJECT ? ha_json_get(json, node, "content") : node;
    if (content == NULL || content->type != HA_JSON_STRING) {
        return ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json or special_tokens_map.json: \"%s\" is neither a string nor an object with \"content\"", key);
    }
    *out = (ha_written){json, node, content->string, content->length};
    return HA_OK;
}

/* The node of `key` where it is said last: special_tokens_map.json goes over tokenizer_config.json. */
static const ha_json_node *
say(const ha_conventions *c, const char *key, const ha_json **json)
{
    const ha_json_node *node = ha_conventions_member(c->map, key);
    *json = node != NULL ? c->map : c->config;
    return node != NULL ? node : ha_conventions_member(c->config, key);
}

/* out->text NULL: there is none (null in the file). */
static ha_status
read_special(const ha_conventions *c, const ha_special *special, ha_written *out, ha_error *err)
{
    const ha_json *json;
    const ha_json_node *node = say(c, special->key, &json);
    *out = (ha_written){NULL, NULL, special->fallback, special->fallback != NULL ? strlen(special->fallback) : 0};
    if (node != NULL && node->type == HA_JSON_NULL) {
        *out = (ha_written){0};
        return HA_OK;
    }
    return node != NULL ? read_written(json, node, special->key, out, err) : HA_OK;
}

/* Tokens on their way into a tokenizer. */
typedef struct adder {
    ha_tokenizer *tok;
    ha_strmap special, added;       /* texts: of all special tokens; of what was added */
    ha_error *err;
} adder;

static ha_status
put(ha_strmap *map, ha_written w, int *is_new, ha_error *err)
{
    const ha_strmap_put_result result = map->slots != NULL || ha_strmap_init(map, 16) ? ha_strmap_put(map, w.text, w.length, 0) : HA_STRMAP_NOMEM;
    *is_new = result == HA_STRMAP_ADDED;
    return result != HA_STRMAP_NOMEM ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for added tokens");
}

ha_status
ha_written_options(ha_written w, int normalized, ha_added_token *out, ha_error *err)
{
    const int special = out->special;
    if (w.node == NULL || w.node->type != HA_JSON_OBJECT) {
        return HA_OK;
    }
    TRY(ha_json_get_bool(w.json, w.node, "special", 0, &out->special, err));
    out->special |= special;
    TRY(ha_json_get_bool(w.json, w.node, "single_word", 0, &out->single_word, err));
    TRY(ha_json_get_bool(w.json, w.node, "lstrip", 0, &out->lstrip, err));
    TRY(ha_json_get_bool(w.json, w.node, "rstrip", 0, &out->rstrip, err));
    return ha_json_get_bool(w.json, w.node, "normalized", normalized >= 0 ? normalized : !out->special, &out->normalized, err);
}

/* Adds a token with the options that its object has; one that the vocabulary lacks gets the next id. A token that was added before stays as it is. */
static ha_status
add_token(adder *a, ha_written w, int lstrip, int32_t *out_id)
{
    ha_vocab *vocab = &a->tok->vocab;
    ha_error *err = a->err;
    ha_added_token t = {.lstrip = lstrip, .length = w.length};
    uint32_t unused;
    int is_new;
    t.special = ha_strmap_get(&a->special, w.text, w.length, &unused);
    t.normalized = !t.special;
    TRY(ha_written_options(w, -1, &t, err));
    t.id = ha_vocab_id(vocab, w.text, w.length);
    if (t.id < 0) {
        t.id = (int32_t)vocab->n_ids;
        TRY(ha_vocab_add(vocab, w.text, w.length, (uint64_t)t.id, SIZE_MAX, err));
    }
    *out_id = t.id;
    TRY(put(&a->added, w, &is_new, err));
    return is_new && w.length > 0 ? ha_added_tokens_add(&a->tok->added, w.text, t, err) : HA_OK;
}

static int
by_id(const void *a, const void *b)
{
    const ha_listed *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

ha_status
ha_conventions_listed(const ha_conventions *c, ha_listed **out, size_t *n, ha_error *err)
{
    const ha_json *json = c->added != NULL ? c->added : c->config;
    const ha_json_node *table = c->added != NULL ? ha_json_root(c->added) : ha_conventions_member(c->config, "added_tokens_decoder");
    *n = 0;
    *out = malloc(((table != NULL ? table->length : 0) + 1) * sizeof(**out));
    if (*out == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for added tokens");
    }
    for (const ha_json_node *item = ha_json_first(json, table); item != NULL; item = ha_json_next(json, item)) {
        ha_listed *l = &(*out)[(*n)++];
        if (c->added != NULL) {
            l->w = (ha_written){json, NULL, item->key, item->key_length};
            if (!ha_json_u64(item, &l->id) || item->key_length == 0) {
                return ha_fail(err, HA_ERR_FORMAT, "added_tokens.json: must map tokens to ids, '%.80s' is none", item->key);
            }
            continue;
        }
        char *end = NULL;
        l->id = item->key != NULL ? strtoull(item->key, &end, 10) : 0;
        if (item->key == NULL || end == item->key || *end != '\0' || item->type != HA_JSON_OBJECT) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json: \"added_tokens_decoder\" must map ids to objects with \"content\"");
        }
        TRY(read_written(json, item, "added_tokens_decoder", &l->w, err));
    }
    qsort(*out, *n, sizeof(**out), by_id);
    return HA_OK;
}

ha_status
ha_listed_check(const ha_listed *listed, const ha_vocab *vocab, ha_error *err)
{
    const int32_t known = ha_vocab_id(vocab, listed->w.text, listed->w.length);
    return listed->id == (known >= 0 ? (uint64_t)known : vocab->n_ids) ? HA_OK
           : ha_fail(err, HA_ERR_FORMAT, "added token '%.80s' is said to have id %llu, which is not its place in the vocabulary", listed->w.text,
                     (unsigned long long)listed->id);
}

static ha_status
add_listed(adder *a, const ha_listed *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t id;
        TRY(ha_listed_check(&list[i], &a->tok->vocab, a->err));
        TRY(add_token(a, list[i].w, 0, &id));
    }
    return HA_OK;
}

/* Calls add_token for each of "additional_special_tokens" or, with `note`, marks them special. */
static ha_status
additional(adder *a, const ha_conventions *c, int note)
{
    const ha_json *json;
    const ha_json_node *list = say(c, "additional_special_tokens", &json);
    for (const ha_json_node *item = ha_json_first(json, list); item != NULL; item = ha_json_next(json, item)) {
        ha_written w;
        int is_new;
        int32_t id;
        TRY(read_written(json, item, "additional_special_tokens", &w, a->err));
        TRY(note ? put(&a->special, w, &is_new, a->err) : add_token(a, w, 0, &id));
    }
    return HA_OK;
}

static ha_status
add_all(adder *a, const ha_conventions *c, const ha_special *specials, size_t n, const ha_listed *list, size_t n_listed, int32_t *ids)
{
    ha_written w;
    int is_new;
    for (size_t i = 0; i < n; i++) {
        TRY(read_special(c, &specials[i], &w, a->err));
        if (specials[i].required && (w.text == NULL || ha_vocab_id(&a->tok->vocab, w.text, w.length) < 0)) {
            return ha_fail(a->err, HA_ERR_FORMAT, "%s '%.80s' is not in the vocabulary", specials[i].key, w.text != NULL ? w.text : "null");
        }
        if (w.text != NULL) {
            TRY(put(&a->special, w, &is_new, a->err));
        }
    }
    TRY(additional(a, c, 1));
    TRY(add_listed(a, list, n_listed));
    for (size_t i = 0; i < n; i++) {
        ids[i] = -1;
        TRY(read_special(c, &specials[i], &w, a->err));
        if (w.text != NULL) {
            TRY(add_token(a, w, specials[i].lstrip, &ids[i]));
        }
    }
    return additional(a, c, 0);
}

ha_status
ha_conventions_add_tokens(ha_tokenizer *tok, const ha_conventions *c, const ha_special *specials, size_t n, int32_t *ids, ha_error *err)
{
    adder a = {.tok = tok, .err = err};
    ha_listed *list = NULL;
    size_t n_listed = 0;
    ha_status status = ha_conventions_listed(c, &list, &n_listed, err);
    if (status == HA_OK) {
        status = add_all(&a, c, specials, n, list, n_listed, ids);
    }
    free(list);
    ha_strmap_free(&a.special);
    ha_strmap_free(&a.added);
    return status;
}
