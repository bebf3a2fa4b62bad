/* *.tiktoken (the tiktoken library's ranks): a line a token, its bytes in base64 (RFC 4648), a space, its id. The id is the rank too: of all neighbours whose
 * bytes together are a token, those of the lowest id merge first, the leftmost of equals. Pattern and special tokens are the caller's to give. */
#include <stdlib.h>
#include <string.h>

#include "core/base64.h"
#include "core/map_file.h"
#include "tokenizer/pipeline.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

/* The bytes of base64, each written as its byte-level character: at most 2 bytes of UTF-8. `out` has room for 3 bytes a digit, the last third for the bytes
 * themselves. Returns how much was written; 0: not base64, or empty. */
static size_t
decode_characters(const char *text, size_t n, char *out)
{
    uint8_t *bytes = (uint8_t *)out + 2 * n;
    const size_t n_bytes = ha_base64_decode(text, n, bytes);
    size_t written = 0;
    for (size_t i = 0; n_bytes != SIZE_MAX && i < n_bytes; i++) {
        written += ha_utf8_encode(ha_byte_to_char(bytes[i]), (uint8_t *)out + written);
    }
    return written;
}

static ha_status
read_line(ha_tokenizer *tok, const uint8_t *line, size_t length, size_t number, size_t max_ids, char *text, ha_error *err)
{
    const uint8_t *space = memchr(line, ' ', length);
    const size_t n = space != NULL ? (size_t)(space - line) : 0;
    const size_t written = n > 0 ? decode_characters((const char *)line, n, text) : 0;
    uint64_t id = 0;
    size_t i = n + 1;
    for (; space != NULL && i < length && line[i] >= '0' && line[i] <= '9' && id < UINT32_MAX; i++) {
        id = id * 10 + (uint64_t)(line[i] - '0');
    }
    if (written == 0 || i == n + 1 || i != length) {
        return ha_fail(err, HA_ERR_FORMAT, "line %zu: expected a token in base64, a space and its rank", number);
    }
    if (ha_vocab_id(&tok->vocab, text, written) >= 0) {
        return ha_fail(err, HA_ERR_FORMAT, "line %zu: the token of rank %llu has rank %d already", number, (unsigned long long)id,
                       (int)ha_vocab_id(&tok->vocab, text, written));
    }
    return ha_vocab_add(&tok->vocab, text, written, id, max_ids, err);
}

static ha_status
read_lines(ha_tokenizer *tok, const uint8_t *data, size_t size, char *text, ha_error *err)
{
    for (size_t at = 0, number = 1; at < size; number++) {
        const uint8_t *end = memchr(data + at, '\n', size - at);
        const size_t length = end != NULL ? (size_t)(end - (data + at)) : size - at;
        const size_t kept = length - (length > 0 && data[at + length - 1] == '\r');
        if (kept > 0) {
            TRY(read_line(tok, data + at, kept, number, size / 2 + 65536, text, err));
        }
        at += length + 1;
    }
    tok->n_model_tokens = tok->vocab.n_tokens;
    tok->n_model_ids = tok->vocab.n_ids;
    TRY(ha_bpe_read_bytes(&tok->bpe, &tok->vocab, tok->n_model_tokens, (ha_affixes){0}, err));
    for (int byte = 0; byte < 256; byte++) {
        if (tok->bpe.byte_ids[0][byte] < 0) {
            return ha_fail(err, HA_ERR_FORMAT, "byte 0x%02X is no token", (unsigned)byte);
        }
    }
    return HA_OK;
}

typedef struct pair { int32_t left, right, merged; } pair;

/* The two halves of a token at each of its characters: those that are tokens themselves go to out (token->length). Returns how many. */
static size_t
halves(const ha_vocab *vocab, const ha_vocab_token *token, pair *out)
{
    const char *text = vocab->text + token->at;
    size_t n = 0;
    for (size_t k = 1; k < token->length; k++) {
        if (((uint8_t)text[k] & 0xC0) == 0x80) {
            continue;
        }
        const int32_t left = ha_vocab_id(vocab, text, k);
        const int32_t right = left >= 0 ? ha_vocab_id(vocab, text + k, token->length - k) : -1;
        if (right >= 0) {
            out[n++] = (pair){left, right, token->id};
        }
    }
    return n;
}

/* A token of n bytes costs n look-ups of up to n bytes: bounded, or a file of one long token would take forever. */
enum { MAX_TOKEN = 4096 };

static ha_status
add_merges(ha_tokenizer *tok, ha_error *err)
{
    size_t n = 0, capacity = 0;
    pair *pairs = NULL;
    for (size_t i = 0; i < tok->n_model_tokens; i++) {
        const ha_vocab_token *token = &tok->vocab.tokens[i];
        if (token->length > MAX_TOKEN) {
            free(pairs);
            return ha_fail(err, HA_ERR_FORMAT, "the token of rank %d is longer than %d bytes", (int)token->id, MAX_TOKEN / 2);
        }
        if (n + token->length > capacity) {
            capacity = (n + token->length) * 2 + (1 << 16);
            pair *grown = realloc(pairs, capacity * sizeof(*grown));
            if (grown == NULL) {
                free(pairs);
                return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu merges", capacity);
            }
            pairs = grown;
        }
        n += halves(&tok->vocab, token, pairs + n);
    }
    const ha_status status = ha_bpe_reserve(&tok->bpe, n, err);
    for (size_t i = 0; i < n && status == HA_OK; i++) {
        ha_bpe_add_ranked(&tok->bpe, pairs[i].left, pairs[i].right, pairs[i].merged, pairs[i].merged);
    }
    free(pairs);
    return status;
}

static ha_status
add_specials(ha_tokenizer *tok, const ha_open_options *options, ha_error *err)
{
    for (size_t i = 0; i < options->n_special_tokens; i++) {
        const ha_special_token *t = &options->special_tokens[i];
        if (t->length == 0 || ha_vocab_id(&tok->vocab, t->text, t->length) >= 0) {
            return ha_fail(err, HA_ERR_VALUE, "special_tokens: '%.80s' is %s", t->text, t->length == 0 ? "empty" : "a token already");
        }
        TRY(ha_vocab_add(&tok->vocab, t->text, t->length, t->id, tok->n_model_ids + (1 << 20), err));
        const ha_added_token added = {.id = (int32_t)t->id, .special = 1, .length = t->length};
        TRY(ha_added_tokens_add(&tok->added, t->text, added, err));
    }
    return HA_OK;
}

static ha_status
read_all(ha_tokenizer *tok, const ha_map_file *file, const ha_open_options *options, ha_error *err)
{
    ha_pre_kind kind;
    char *text = NULL;
    if (!ha_pre_pattern_tiktoken(options->pattern, strlen(options->pattern), &kind)) {
        return ha_fail(err, HA_ERR_VALUE, "pattern '%.120s' is not supported", options->pattern);
    }
    tok->model_kind = HA_MODEL_BPE;
    tok->bpe.unk_id = -1;
    tok->bpe.ignore_merges = 1;         /* a piece that is a token is that token */
    tok->pre.byte_level = 1;
    TRY(ha_token_decoder_add(&tok->decoder, (ha_decoder_step){.kind = HA_DECODER_BYTE_LEVEL}, err));
    tok->added_are_text = 1;
    ha_post_processor_none(&tok->post);
    TRY(ha_pre_tokenizer_add(&tok->pre, kind, err));
    text = malloc(file->size * 3 + 8);
    ha_status status = text != NULL ? read_lines(tok, file->data, file->size, text, err) : ha_fail(err, HA_ERR_NOMEM, "out of memory");
    free(text);
    TRY(status);
    TRY(add_merges(tok, err));
    TRY(add_specials(tok, options, err));
    return ha_tokenizer_finish(tok, err);
}

ha_status
ha_tokenizer_load_tiktoken(ha_tokenizer *tok, const char *path, const ha_open_options *options, ha_error *err)
{
    ha_map_file file;
    ha_error cause;
    ha_status status = ha_map_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    status = read_all(tok, &file, options, &cause);
    if (status != HA_OK) {
        ha_fail(err, status, "%.250s: %.250s", path, cause.message);
    }
    ha_map_file_close(&file);
    return status;
}
