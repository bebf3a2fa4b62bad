#include <stdlib.h>
#include <string.h>

#include "tokenizer/pipeline.h"

ha_status
ha_decoder_set_wordpiece(ha_decoder *decoder, const char *prefix, size_t length, int cleanup, ha_error *err)
{
    decoder->kind = HA_DECODER_WORDPIECE;
    decoder->cleanup = cleanup;
    decoder->prefix = malloc(length + 1);
    if (decoder->prefix == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    memcpy(decoder->prefix, prefix, length);
    decoder->prefix[length] = '\0';
    decoder->prefix_length = length;
    return HA_OK;
}

typedef struct text_out { char *text; size_t n, capacity; } text_out;

static ha_status
make_room(text_out *out, size_t length, ha_error *err)
{
    if (length + 1 > out->capacity - out->n) {
        const size_t capacity = (out->n + length + 1) * 2 + 256;
        char *grown = realloc(out->text, capacity);
        if (grown == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", capacity);
        }
        out->text = grown;
        out->capacity = capacity;
    }
    return HA_OK;
}

static ha_status
append(text_out *out, const char *text, size_t length, ha_error *err)
{
    const ha_status status = make_room(out, length, err);
    if (status == HA_OK) {
        memcpy(out->text + out->n, text, length);
        out->n += length;
        out->text[out->n] = '\0';
    }
    return status;
}

/* Replaces every `from` in out[begin..), left to right, by the shorter or equally long `to`. */
static void
replace(text_out *out, size_t begin, const char *from, const char *to)
{
    const size_t n_from = strlen(from), n_to = strlen(to);
    size_t write = begin, read = begin;
    while (read < out->n) {
        if (out->n - read >= n_from && memcmp(out->text + read, from, n_from) == 0) {
            memcpy(out->text + write, to, n_to);
            write += n_to;
            read += n_from;
        } else {
            out->text[write++] = out->text[read++];
        }
    }
    out->n = write;
    out->text[out->n] = '\0';
}

/* Token by token, as in the reference: a replacement never reaches over the border of two tokens. */
static void
cleanup(text_out *out, size_t begin)
{
    static const char *const rules[][2] = {
        {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
        {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    if (out->n > begin) {
        for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
            replace(out, begin, rules[i][0], rules[i][1]);
        }
    }
}

static ha_status
write_token(const ha_tokenizer *tok, int32_t id, int is_first, text_out *out, ha_error *err)
{
    const ha_decoder *decoder = &tok->decoder;
    size_t length;
    const char *text = ha_tokenizer_id_to_token(tok, id, &length);
    const size_t begin = out->n;
    ha_status status = HA_OK;
    switch (decoder->kind) {
    case HA_DECODER_BYTE_LEVEL:
        return append(out, (const char *)tok->raw + tok->raw_at[id], tok->raw_at[id + 1] - tok->raw_at[id], err);
    case HA_DECODER_METASPACE:
        status = make_room(out, length, err);
        if (status == HA_OK) {
            out->n += ha_metaspace_decode(&decoder->metaspace, is_first, text, length, out->text + out->n);
            out->text[out->n] = '\0';
        }
        return status;
    case HA_DECODER_WORDPIECE:
        if (!is_first && length >= decoder->prefix_length && memcmp(text, decoder->prefix, decoder->prefix_length) == 0) {
            text += decoder->prefix_length;
            length -= decoder->prefix_length;
        } else if (!is_first) {
            status = append(out, " ", 1, err);
        }
        if (status == HA_OK) {
            status = append(out, text, length, err);
        }
        if (status == HA_OK && decoder->cleanup) {
            cleanup(out, begin);
        }
        return status;
    default:
        if (!is_first) {
            status = append(out, " ", 1, err);
        }
        return status == HA_OK ? append(out, text, length, err) : status;
    }
}

ha_status
ha_tokenizer_decode(const ha_tokenizer *tok, const int32_t *ids, size_t n, int skip_special_tokens,
                    char **out_text, size_t *out_length, ha_error *err)
{
    text_out out = {0};
    int is_first = 1;
    ha_status status = append(&out, "", 0, err);
    *out_text = NULL;
    for (size_t i = 0; i < n && status == HA_OK; i++) {
        size_t length;
        if (ha_tokenizer_id_to_token(tok, ids[i], &length) == NULL) {
            status = ha_fail(err, HA_ERR_VALUE, "decode: ids[%zu] = %ld is no token, the vocabulary has ids below %zu",
                             i, (long)ids[i], tok->vocab.n_ids);
            break;
        }
        const ha_added_token *t = ha_added_tokens_of_id(&tok->added, ids[i]);
        if (skip_special_tokens && t != NULL && t->skipped) {
            continue;
        }
        status = write_token(tok, ids[i], is_first, &out, err);
        is_first = 0;
    }
    if (status == HA_OK && tok->decoder.kind == HA_DECODER_BYTE_LEVEL
        && ha_utf8_valid_prefix((const uint8_t *)out.text, out.n) < out.n) {
        const size_t length = ha_utf8_lossy((const uint8_t *)out.text, out.n, NULL);
        char *text = malloc(length + 1);
        if (text == NULL) {
            status = ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", length);
        } else {
            ha_utf8_lossy((const uint8_t *)out.text, out.n, text);
            text[length] = '\0';
            free(out.text);
            out = (text_out){text, length, length + 1};
        }
    }
    if (status != HA_OK) {
        free(out.text);
        return status;
    }
    *out_text = out.text;
    *out_length = out.n;
    return HA_OK;
}
