#define _POSIX_C_SOURCE 200809L
#include "tokenizer/tokenizer.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tokenizer/pipeline.h"
#include "tokenizer/tables.h"
#include "tokenizer/word_table.h"

void
ha_tokenizer_clear(ha_tokenizer *tok)
{
    const char *cache_folder = tok->cache_folder;
    ha_worker_pool *pool = tok->pool;
    ha_tables_release(tok);
    ha_vocab_free(&tok->vocab);
    ha_added_tokens_free(&tok->added);
    ha_wordpiece_free(&tok->wordpiece);
    ha_bpe_free(&tok->bpe);
    ha_word_table_free(&tok->table);
    ha_unigram_free(&tok->unigram);
    ha_normalizer_free(&tok->normalizer);
    ha_sentencepiece_free(&tok->sentencepiece);
    ha_token_decoder_free(&tok->decoder);
    free(tok->raw);
    free(tok->raw_at);
    memset(tok, 0, sizeof(*tok));
    tok->pad_id = -1;
    tok->cache_folder = cache_folder;
    tok->pool = pool;
}

void
ha_tokenizer_free(ha_tokenizer *tok)
{
    if (tok != NULL) {
        ha_tokenizer_clear(tok);
        ha_worker_pool_free(tok->pool);
        free(tok);
    }
}

static size_t
count_characters(const char *text, size_t length)
{
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        n += ((uint8_t)text[i] & 0xC0) != 0x80;
    }
    return n;
}

/* The model's tokens that are whole words, as the model sees text: for a BPE of bytes the raw bytes of those written in byte characters alone, for WordPiece those
 * that are not too long to be known. */
static ha_status
build_words(ha_tokenizer *tok, ha_error *err)
{
    const int wordpiece = tok->model_kind == HA_MODEL_WORDPIECE;
    const ha_vocab *vocab = &tok->vocab;
    size_t n = 0, at = 0, n_short = 0;
    ha_trie_key *keys = malloc((tok->n_model_tokens + 1) * sizeof(*keys));
    uint8_t *bytes = malloc(vocab->n_text + 1);
    ha_status status = keys != NULL && bytes != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", tok->n_model_tokens);
    for (size_t t = 0; t < tok->n_model_tokens && status == HA_OK; t++) {
        const ha_vocab_token token = vocab->tokens[t];
        const char *text = vocab->text + token.at;
        size_t n_bytes = 0, size, i = 0;
        if (token.length == 0 || (size_t)token.id >= tok->n_model_ids) {
            continue;
        }
        if (wordpiece || tok->bpe.characters) {
            if (!wordpiece || count_characters(text, token.length) <= tok->wordpiece.max_chars) {
                keys[n++] = (ha_trie_key){text, token.length, token.id};
            }
            continue;
        }
        for (; i < token.length; i += size) {
            const int byte = ha_char_to_byte(ha_utf8_decode((const uint8_t *)text + i, &size));
            if (byte < 0) {
                break;
            }
            bytes[at + n_bytes++] = (uint8_t)byte;
        }
        if (i == token.length) {
            keys[n++] = (ha_trie_key){(const char *)bytes + at, n_bytes, token.id};
            at += n_bytes;
        }
    }
    if (status == HA_OK) {
        status = ha_word_table_build(&tok->table, keys, n, &n_short, err);
    }
    if (status == HA_OK && !wordpiece) {
        status = ha_trie_build(keys + n_short, n - n_short, &tok->bpe.long_words, err);
    }
    free(keys);
    free(bytes);
    return status;
}

ha_status
ha_tokenizer_finish(ha_tokenizer *tok, ha_error *err)
{
    ha_normalizer_finish(&tok->normalizer);
    ha_status status = ha_added_tokens_build(&tok->added, &tok->normalizer, err);
    for (size_t i = 0; i < tok->added.n && status == HA_OK; i++) {
        ha_added_token *t = &tok->added.at[i];
        size_t length;
        const char *text = ha_added_token_written(&tok->added, t, &length);
        const ha_added_token *same = ha_added_tokens_of_id(&tok->added, ha_vocab_id(&tok->vocab, text, length));
        t->skipped = same != NULL && same->special;
    }
    const int has_words = tok->model_kind == HA_MODEL_WORDPIECE || (tok->model_kind == HA_MODEL_BPE && tok->bpe.ignore_merges);
    if (status == HA_OK && has_words && tok->tables == NULL) {
        status = build_words(tok, err);
    }
    if (status == HA_OK && tok->model_kind == HA_MODEL_UNIGRAM) {
        ha_unigram_find_bounds(&tok->unigram, &tok->vocab, tok->n_model_ids);
    }
    ha_unigram_plan(tok);
    return status == HA_OK && tok->tables == NULL ? ha_tokenizer_build_raw(tok, err) : status;
}

/* ---- opening ---- */

static int
ends_with(const char *path, const char *suffix)
{
    const size_t n = strlen(path), k = strlen(suffix);
    return n >= k && strcmp(path + n - k, suffix) == 0;
}

/* *out: a malloc'ed "folder/name". */
static ha_status
join_path(const char *folder, const char *name, char **out, ha_error *err)
{
    const size_t n = strlen(folder);
    *out = malloc(n + strlen(name) + 2);
    if (*out == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    memcpy(*out, folder, n);
    strcpy(*out + n, n > 0 && folder[n - 1] == '/' ? "" : "/");
    strcat(*out, name);
    return HA_OK;
}

/* Loads `folder`/`name` when it is there: *found says so. A file that is there and can't be read is an error. */
static ha_status
load_from_folder(ha_tokenizer *tok, const char *folder, const char *name, ha_status (*loader)(ha_tokenizer *, const char *, ha_error *),
                 int *found, ha_error *err)
{
    char *path = NULL;
    ha_status status = join_path(folder, name, &path, err);
    FILE *file = status == HA_OK ? fopen(path, "rb") : NULL;
    *found = file != NULL;
    if (file != NULL) {
        fclose(file);
        status = loader(tok, path, err);
    }
    free(path);
    return status;
}

/* The first of the usual names of a sentencepiece model that the folder has. */
static ha_status
load_spm_from_folder(ha_tokenizer *tok, const char *folder, int own, int *found, ha_error *err)
{
    static const char *const names[] = {"spm.model", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model"};
    ha_status status = HA_OK;
    *found = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && status == HA_OK && !*found; i++) {
        status = load_from_folder(tok, folder, names[i], own ? ha_tokenizer_load_spm_own : ha_tokenizer_load_spm, found, err);
    }
    return status;
}

/* The one file of `folder` whose name ends with ".tiktoken", malloc'ed; *out NULL: there is none, or more than one. */
static ha_status
find_tiktoken(const char *folder, char **out, ha_error *err)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    size_t n = 0;
    ha_status status = HA_OK;
    *out = NULL;
    while (dir != NULL && status == HA_OK && (entry = readdir(dir)) != NULL) {
        if (ends_with(entry->d_name, ".tiktoken") && n++ == 0) {
            status = join_path(folder, entry->d_name, out, err);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    if (n != 1) {
        free(*out);
        *out = NULL;
    }
    return status;
}

static ha_status
load_with_pattern(ha_tokenizer *tok, const char *path, const ha_open_options *options, ha_error *err)
{
    char *inside = NULL;
    struct stat info;
    const int is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    ha_status status = is_folder ? find_tiktoken(path, &inside, err) : HA_OK;
    if (status == HA_OK && is_folder && inside == NULL) {
        status = join_path(path, "tokenizer.model", &inside, err);
    }
    if (status == HA_OK) {
        status = ha_tokenizer_load_tiktoken(tok, inside != NULL ? inside : path, options, err);
    }
    free(inside);
    return status;
}

static ha_status
load_file(ha_tokenizer *tok, const char *path, const char magic[4], int own, ha_error *err)
{
    const int is_model = ends_with(path, ".model");
    if (own && !is_model) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: reference \"sentencepiece\" needs a sentencepiece .model", path);
    }
    if (memcmp(magic, "GGUF", 4) == 0) {
        return ha_tokenizer_load_gguf(tok, path, err);
    }
    if (ends_with(path, ".tiktoken")) {
        return ha_fail(err, HA_ERR_VALUE, "%.300s: a .tiktoken file does not say how text is cut: give its pattern", path);
    }
    if (ends_with(path, "merges.txt")) {
        return ha_fail(err, HA_ERR_VALUE, "%.300s: open its folder, or the vocab.json beside it", path);
    }
    return is_model ? (own ? ha_tokenizer_load_spm_own : ha_tokenizer_load_spm)(tok, path, err)
           : ends_with(path, ".txt") ? ha_tokenizer_load_vocab_txt(tok, path, err)
           : ends_with(path, "vocab.json") ? ha_tokenizer_load_vocab_json(tok, path, err) : ha_tokenizer_load_json(tok, path, err);
}

static ha_status
load(ha_tokenizer *tok, const char *path, const ha_open_options *options, ha_error *err)
{
    const int own = options != NULL && options->reference == HA_REFERENCE_SENTENCEPIECE;
    if (options != NULL && options->pattern != NULL) {
        return load_with_pattern(tok, path, options, err);
    }
    char magic[4] = {0};
    FILE *file = fopen(path, "rb");
    const int is_file = file != NULL && (fread(magic, 1, 4, file) > 0 || ends_with(path, ".json") || ends_with(path, ".txt") || ends_with(path, ".model"));
    if (file != NULL) {
        fclose(file);
    }
    if (is_file) {
        return load_file(tok, path, magic, own, err);
    }
    int found = 0;
    ha_status status = own ? HA_OK : load_from_folder(tok, path, "tokenizer.json", ha_tokenizer_load_json, &found, err);
    if (status == HA_OK && !found) {
        status = load_spm_from_folder(tok, path, own, &found, err);
    }
    if (status == HA_OK && !found && !own) {
        status = load_from_folder(tok, path, "vocab.txt", ha_tokenizer_load_vocab_txt, &found, err);
    }
    if (status == HA_OK && !found && !own) {
        status = load_from_folder(tok, path, "vocab.json", ha_tokenizer_load_vocab_json, &found, err);
    }
    if (status == HA_OK && !found) {
        status = own ? ha_fail(err, HA_ERR_IO, "%.300s: no sentencepiece model there: expected a .model file, or a folder that has one", path)
                 : ha_fail(err, HA_ERR_IO, "%.300s: no tokenizer there: expected a folder with tokenizer.json, a sentencepiece model, vocab.txt or vocab.json "
                           "and merges.txt, one of these files, a .gguf, or with a pattern a .tiktoken", path);
    }
    return status;
}

ha_status
ha_tokenizer_open(const char *path, const ha_open_options *options, ha_tokenizer **out, ha_error *err)
{
    *out = NULL;
    ha_tokenizer *tok = calloc(1, sizeof(*tok));
    if (tok == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    tok->pad_id = -1;
    tok->cache_folder = options != NULL ? options->cache_folder : NULL;
    tok->pool = ha_worker_pool_new();
    ha_status status = tok->pool != NULL ? load(tok, path, options, err) : ha_fail(err, HA_ERR_NOMEM, "out of memory");
    if (status != HA_OK) {
        ha_tokenizer_free(tok);
        return status;
    }
    tok->cache_folder = NULL;
    *out = tok;
    return HA_OK;
}

const char *
ha_tokenizer_cache_note(const ha_tokenizer *tok)
{
    return tok->cache_note.message;
}

/* ---- the vocabulary ---- */

size_t
ha_tokenizer_vocab_size(const ha_tokenizer *tok)
{
    return tok->vocab.n_ids;
}

int32_t
ha_tokenizer_pad_id(const ha_tokenizer *tok)
{
    return tok->pad_id;
}

int32_t
ha_tokenizer_token_to_id(const ha_tokenizer *tok, const char *token, size_t length)
{
    return ha_vocab_id(&tok->vocab, token, length);
}

const char *
ha_tokenizer_id_to_token(const ha_tokenizer *tok, int32_t id, size_t *length)
{
    const ha_added_token *t = ha_added_tokens_of_id(&tok->added, id);
    return t != NULL ? ha_added_token_written(&tok->added, t, length) : ha_vocab_text(&tok->vocab, id, length);
}

const uint8_t *
ha_tokenizer_token_bytes(const ha_tokenizer *tok, int32_t id, size_t *length)
{
    const ha_added_token *t = ha_added_tokens_of_id(&tok->added, id);
    *length = 0;
    if (id < 0 || (size_t)id >= tok->vocab.n_ids || (t != NULL && t->special)) {
        return tok->raw;
    }
    *length = tok->raw_at[id + 1] - tok->raw_at[id];
    return tok->raw + tok->raw_at[id];
}
