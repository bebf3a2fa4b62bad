/* tokenizer.json (the format of Hugging Face `tokenizers`, version "1.0"). A component or option that is not honoured exactly is refused by name. */
#include "tokenizer/load_json.h"

#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "tokenizer/tables.h"

int
ha_load_is_null(const ha_json_node *node)
{
    return node == NULL || node->type == HA_JSON_NULL;
}

int
ha_load_is_string(const ha_json_node *node, const char *text)
{
    return node != NULL && node->type == HA_JSON_STRING && node->length == strlen(text) && memcmp(node->string, text, node->length) == 0;
}

ha_status
ha_load_type(const ha_json_reader *r, const ha_json_node *node, const char *what, const char **type)
{
    *type = NULL;
    if (node->type == HA_JSON_OBJECT) {
        TRY(ha_json_get_string(r->json, node, "type", NULL, type, r->err));
    }
    return *type != NULL ? HA_OK : ha_fail(r->err, HA_ERR_FORMAT, "%s: expected an object with a \"type\"", what);
}

ha_status
ha_load_bool(const ha_json_reader *r, const ha_json_node *node, const char *key, int fallback, int *out)
{
    return ha_json_get_bool(r->json, node, key, fallback, out, r->err);
}

ha_status
ha_load_string(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *key, const ha_json_node **out)
{
    *out = ha_json_get(r->json, node, key);
    return *out != NULL && (*out)->type == HA_JSON_STRING ? HA_OK : ha_fail(r->err, HA_ERR_FORMAT, "%s: \"%s\" is missing or no string", what, key);
}

ha_status
ha_load_unsupported(const ha_json_reader *r, const char *what, const char *name)
{
    return ha_fail(r->err, HA_ERR_FORMAT, "%s '%.100s' is not supported", what, name);
}

ha_status
ha_load_sequence(const ha_json_reader *r, const ha_json_node *node, const char *what, const char *members, ha_load_component read)
{
    const char *type;
    if (ha_load_is_null(node)) {
        return HA_OK;
    }
    TRY(ha_load_type(r, node, what, &type));
    if (strcmp(type, "Sequence") != 0) {
        return read(r, node, type);
    }
    const ha_json_node *list = ha_json_get(r->json, node, members);
    if (list == NULL || list->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%s: a Sequence without \"%s\"", what, members);
    }
    for (const ha_json_node *item = ha_json_first(r->json, list); item != NULL; item = ha_json_next(r->json, item)) {
        TRY(ha_load_type(r, item, what, &type));
        TRY(read(r, item, type));
    }
    return HA_OK;
}

/* ---- added tokens ---- */

/* The reference gives a token the id that its text has already, else the next free one, whatever the file says; where the two differ the file
 * is at odds with itself. */
static ha_status
read_added_tokens(const ha_json_reader *r, const ha_json_node *list)
{
    ha_tokenizer *tok = r->tok;
    if (ha_load_is_null(list)) {
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
        TRY(ha_load_bool(r, item, "single_word", 0, &t.single_word));
        TRY(ha_load_bool(r, item, "lstrip", 0, &t.lstrip));
        TRY(ha_load_bool(r, item, "rstrip", 0, &t.rstrip));
        TRY(ha_load_bool(r, item, "special", 0, &t.special));
        TRY(ha_load_bool(r, item, "normalized", !t.special, &t.normalized));
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

/* ---- the file ---- */

/* Of "padding" only which token pads; how far is the caller's to say. */
static ha_status
read_pad(const ha_json_reader *r, const ha_json_node *padding)
{
    size_t id, length;
    if (ha_load_is_null(padding)) {
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
read_root(const ha_json_reader *r)
{
    const ha_json_node *root = ha_json_root(r->json);
    const ha_json_node *version = ha_json_get(r->json, root, "version");
    if (root == NULL || root->type != HA_JSON_OBJECT) {
        return ha_fail(r->err, HA_ERR_FORMAT, "expected an object");
    }
    if (version != NULL && !ha_load_is_string(version, "1.0")) {
        return ha_fail(r->err, HA_ERR_FORMAT, "\"version\" must be \"1.0\"");
    }
    ha_post_processor_none(&r->tok->post);
    TRY(ha_load_sequence(r, ha_json_get(r->json, root, "normalizer"), "normalizer", "normalizers", ha_load_normalizer));
    TRY(ha_load_sequence(r, ha_json_get(r->json, root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers", ha_load_pre_tokenizer));
    TRY(ha_load_model(r, ha_json_get(r->json, root, "model")));
    TRY(read_added_tokens(r, ha_json_get(r->json, root, "added_tokens")));
    TRY(ha_load_sequence(r, ha_json_get(r->json, root, "post_processor"), "post_processor", "processors", ha_load_post_processor));
    TRY(read_pad(r, ha_json_get(r->json, root, "padding")));
    const ha_json_node *decoder = ha_json_get(r->json, root, "decoder");
    TRY(ha_load_sequence(r, decoder, "decoder", "decoders", ha_load_decoder));
    if (!ha_load_is_null(decoder) && r->tok->decoder.n == 0) {     /* an empty Sequence: no spaces between tokens */
        return ha_token_decoder_add(&r->tok->decoder, (ha_decoder_step){.kind = HA_DECODER_FUSE}, r->err);
    }
    return HA_OK;
}

/* `cache`: path of a file of tables, to be read (`*cached` then says that it was) or else to be written; or NULL. */
static ha_status
load_mapped(ha_tokenizer *tok, const char *path, const ha_map_file *file, const char *cache, int *cached, ha_error *err)
{
    ha_json *json = NULL;
    ha_error cause;
    ha_json_sink sinks[HA_LOAD_SINKS];
    ha_load_tables tables = {0};
    /* a token takes at least 6 bytes of the file ("":0,), so an id far above that count is no dense vocabulary's */
    ha_json_reader r = {tok, NULL, &tables, file->size / 2 + 65536, &cause};
    ha_load_sinks(sinks);
    ha_status status = *cached && cache != NULL ? ha_tables_read(cache, tok, sinks, HA_LOAD_SINKS, &tok->cache_note) : HA_ERR_IO;
    *cached = status == HA_OK;
    if (status == HA_ERR_IO) {      /* there is none */
        tok->cache_note.message[0] = '\0';
    }
    status = ha_json_parse_with(path, (const char *)file->data, file->size, sinks, HA_LOAD_SINKS, &r, &json, err);
    if (status == HA_OK) {
        r.json = json;
        status = read_root(&r);
        if (status == HA_OK) {
            status = ha_tokenizer_finish(tok, &cause);
        }
        if (status != HA_OK) {
            ha_fail(err, status, "%.250s: %.250s", path, cause.message);
        }
    }
    if (status == HA_OK && cache != NULL && !*cached) {
        ha_tables_write(cache, tok, sinks, HA_LOAD_SINKS, &tok->cache_note);
    }
    free(tables.merges);
    ha_json_free(json);
    return status;
}

ha_status
ha_tokenizer_load_json(ha_tokenizer *tok, const char *path, ha_error *err)
{
    ha_map_file file;
    char *cache = NULL;
    int cached = 1;
    ha_status status = ha_map_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    if (tok->cache_folder != NULL && file.size >= HA_TABLES_MIN_SOURCE) {
        status = ha_tables_path(tok->cache_folder, file.data, file.size, &cache, err);
    }
    if (status == HA_OK) {
        status = load_mapped(tok, path, &file, cache, &cached, err);
    }
    if (status != HA_OK && cached && cache != NULL) {      /* tables that are sound and yet not this file's: as if there were none */
        ha_tokenizer_clear(tok);
        cached = 0;
        const ha_error why = *err;
        status = load_mapped(tok, path, &file, cache, &cached, err);
        ha_fail(&tok->cache_note, HA_ERR_FORMAT, "%.200s: not used: %.250s", cache, why.message);
    }
    free(cache);
    ha_map_file_close(&file);
    return status;
}
