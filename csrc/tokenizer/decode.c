#include <stdlib.h>
#include <string.h>

#include "tokenizer/pipeline.h"

void
ha_token_decoder_free(ha_token_decoder *decoder)
{
    for (size_t i = 0; i < decoder->n; i++) {
        free((char *)decoder->steps[i].from);
        free((char *)decoder->steps[i].to);
    }
    decoder->n = 0;
}

ha_status
ha_token_decoder_add(ha_token_decoder *decoder, ha_decoder_step step, ha_error *err)
{
    if (decoder->n == HA_MAX_DECODERS) {
        return ha_fail(err, HA_ERR_FORMAT, "decoder: more than %d steps", HA_MAX_DECODERS);
    }
    step.from = ha_text_copy(step.from != NULL ? step.from : "", step.from_length);
    step.to = ha_text_copy(step.to != NULL ? step.to : "", step.to_length);
    decoder->steps[decoder->n++] = step;
    return step.from != NULL && step.to != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory");
}

ha_status
ha_decoder_set_wordpiece(ha_token_decoder *decoder, const char *prefix, size_t length, int cleanup, ha_error *err)
{
    return ha_token_decoder_add(decoder, (ha_decoder_step){.kind = HA_DECODER_WORDPIECE, .cleanup = cleanup, .from = prefix, .from_length = length}, err);
}

ha_status
ha_token_decoder_add_fallback(ha_token_decoder *decoder, int strip, ha_error *err)
{
    const ha_decoder_step steps[] = {
        {.kind = HA_DECODER_REPLACE, .from = "\xE2\x96\x81", .from_length = 3, .to = " ", .to_length = 1},
        {.kind = HA_DECODER_BYTE_FALLBACK}, {.kind = HA_DECODER_FUSE}, {.kind = HA_DECODER_STRIP, .from = " ", .from_length = 1, .start = 1},
    };
    ha_status status = HA_OK;
    for (int i = 0; i < (strip ? 4 : 3) && status == HA_OK; i++) {
        status = ha_token_decoder_add(decoder, steps[i], err);
    }
    return status;
}

/* ---- lists of tokens ---- */

typedef struct token_list {
    ha_text_buf text;
    size_t *ends;           /* (n,) where each token ends in `text` */
    size_t n, capacity;
} token_list;

static void
list_free(token_list *list)
{
    ha_text_buf_free(&list->text);
    free(list->ends);
}

/* More text for the token that is still open. */
static ha_status
append(token_list *list, const void *text, size_t length, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(&list->text, length, err);
    if (status == HA_OK) {
        memcpy(list->text.text + list->text.length, text, length);
        list->text.length += length;
    }
    return status;
}

/* Closes the open token. */
static ha_status
finish(token_list *list, ha_error *err)
{
    if (list->n == list->capacity) {
        const size_t capacity = list->capacity * 2 + 64;
        size_t *ends = realloc(list->ends, capacity * sizeof(*ends));
        if (ends == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", capacity);
        }
        list->ends = ends;
        list->capacity = capacity;
    }
    list->ends[list->n++] = list->text.length;
    return HA_OK;
}

static const uint8_t *
token_at(const token_list *list, size_t i, size_t *length)
{
    const size_t begin = i > 0 ? list->ends[i - 1] : 0;
    *length = list->ends[i] - begin;
    return list->text.text + begin;
}

/* ---- the steps ---- */

/* Replaces every `from` in text[begin..), left to right, by the shorter or equally long `to`. */
static void
replace_shorter(ha_text_buf *buf, size_t begin, const char *from, const char *to)
{
    const size_t n_from = strlen(from), n_to = strlen(to);
    size_t write = begin, read = begin;
    while (read < buf->length) {
        if (buf->length - read >= n_from && memcmp(buf->text + read, from, n_from) == 0) {
            memcpy(buf->text + write, to, n_to);
            write += n_to;
            read += n_from;
        } else {
            buf->text[write++] = buf->text[read++];
        }
    }
    buf->length = write;
}

/* Token by token, as in the reference: a replacement never reaches over the border of two tokens. */
static ha_status
write_wordpiece(const ha_decoder_step *step, const uint8_t *text, size_t length, int is_first, token_list *out, ha_error *err)
{
    static const char *const rules[][2] = {
        {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
        {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    const size_t begin = out->text.length;
    ha_status status = HA_OK;
    if (!is_first && length >= step->from_length && memcmp(text, step->from, step->from_length) == 0) {
        text += step->from_length;
        length -= step->from_length;
    } else if (!is_first) {
        status = append(out, " ", 1, err);
    }
    if (status == HA_OK) {
        status = append(out, text, length, err);
    }
    for (size_t i = 0; step->cleanup && i < sizeof(rules) / sizeof(rules[0]) && status == HA_OK; i++) {
        replace_shorter(&out->text, begin, rules[i][0], rules[i][1]);
    }
    return status;
}

/* The bytes that a token's characters stand for when all stand for bytes, else its UTF-8. */
static ha_status
write_byte_level(const uint8_t *text, size_t length, ha_text_buf *out, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(out, length, err);
    size_t n = out->length, size;
    for (size_t i = 0; i < length && status == HA_OK; i += size) {
        const int byte = ha_char_to_byte(ha_utf8_decode(text + i, &size));
        if (byte < 0) {
            memcpy(out->text + out->length, text, length);
            n = out->length + length;
            break;
        }
        out->text[n++] = (uint8_t)byte;
    }
    out->length = n;
    return status;
}

/* Replaces the text of out[begin..) by its valid form, each ill-formed part as U+FFFD. */
static ha_status
make_valid(ha_text_buf *out, size_t begin, ha_error *err)
{
    const size_t length = out->length - begin;
    if (ha_utf8_valid_prefix(out->text + begin, length) == length) {
        return HA_OK;
    }
    char *bytes = ha_text_copy((const char *)out->text + begin, length);
    if (bytes == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", length);
    }
    const size_t valid = ha_utf8_lossy((const uint8_t *)bytes, length, NULL);
    const ha_status status = ha_text_buf_reserve(out, valid, err);
    if (status == HA_OK) {
        ha_utf8_lossy((const uint8_t *)bytes, length, (char *)out->text + begin);
        out->length = begin + valid;
    }
    free(bytes);
    return status;
}

static ha_status
write_replaced(const ha_decoder_step *step, const uint8_t *text, size_t length, ha_text_buf *out, ha_error *err)
{
    ha_status status = HA_OK;
    for (size_t i = 0; i < length && status == HA_OK;) {
        const int match = length - i >= step->from_length && memcmp(text + i, step->from, step->from_length) == 0;
        status = ha_text_buf_reserve(out, step->to_length + 1, err);
        if (status == HA_OK && match) {
            memcpy(out->text + out->length, step->to, step->to_length);
            out->length += step->to_length;
            i += step->from_length;
        } else if (status == HA_OK) {
            out->text[out->length++] = text[i++];
        }
    }
    return status;
}

static ha_status
write_metaspace(const ha_decoder_step *step, const uint8_t *text, size_t length, int is_first, ha_text_buf *out, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(out, length, err);
    if (status == HA_OK) {
        out->length += ha_metaspace_decode(&step->metaspace, is_first, (const char *)text, length, (char *)out->text + out->length);
    }
    return status;
}

static int
hex_digit(uint8_t c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
}

/* The byte of a token "<0x41>" (or "<0x+A>", which the reference reads too), or -1. */
static int
fallback_byte(const uint8_t *text, size_t length)
{
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    const int high = text[3] == '+' ? 0 : hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* Runs of byte tokens become one token, or one U+FFFD a byte when they are not UTF-8. */
static ha_status
byte_fallback(const token_list *in, token_list *out, ha_error *err)
{
    size_t begin = 0, length = 0;       /* begin: of the open run in out->text */
    ha_status status = HA_OK;
    for (size_t i = 0; i <= in->n && status == HA_OK; i++) {
        const uint8_t *text = i < in->n ? token_at(in, i, &length) : NULL;
        const int byte = text != NULL ? fallback_byte(text, length) : -1;
        if (byte >= 0) {
            const uint8_t b = (uint8_t)byte;
            status = append(out, &b, 1, err);
            continue;
        }
        const size_t run = out->text.length - begin;
        if (run > 0 && ha_utf8_valid_prefix(out->text.text + begin, run) == run) {
            status = finish(out, err);
        } else {
            out->text.length = begin;
            for (size_t k = 0; k < run && status == HA_OK; k++) {
                status = append(out, "\xEF\xBF\xBD", 3, err);
                status = status == HA_OK ? finish(out, err) : status;
            }
        }
        if (status == HA_OK && text != NULL) {
            status = append(out, text, length, err);
            status = status == HA_OK ? finish(out, err) : status;
        }
        begin = out->text.length;
    }
    return status;
}

static ha_status
write_stripped(const ha_decoder_step *step, const uint8_t *text, size_t length, token_list *out, ha_error *err)
{
    const size_t size = step->from_length;
    for (size_t k = 0; k < step->start && length >= size && memcmp(text, step->from, size) == 0; k++) {
        text += size;
        length -= size;
    }
    for (size_t k = 0; k < step->stop && length >= size && memcmp(text + length - size, step->from, size) == 0; k++) {
        length -= size;
    }
    return append(out, text, length, err);
}

static ha_status
run_step(const ha_decoder_step *step, const token_list *in, token_list *out, ha_error *err)
{
    size_t length;
    ha_status status = ha_text_buf_reserve(&out->text, 1, err);
    out->text.length = out->n = 0;
    if (step->kind == HA_DECODER_BYTE_FALLBACK) {
        return status == HA_OK ? byte_fallback(in, out, err) : status;
    }
    ha_decoder_step last = *step;
    last.to_length = step->kind == HA_DECODER_BPE ? 0 : step->to_length;
    const int joins = step->kind == HA_DECODER_FUSE || step->kind == HA_DECODER_BYTE_LEVEL;
    for (size_t i = 0; i < in->n && status == HA_OK; i++) {
        const uint8_t *text = token_at(in, i, &length);
        switch (step->kind) {
        case HA_DECODER_WORDPIECE: status = write_wordpiece(step, text, length, i == 0, out, err); break;
        case HA_DECODER_BYTE_LEVEL: status = write_byte_level(text, length, &out->text, err); break;
        case HA_DECODER_METASPACE: status = write_metaspace(step, text, length, i == 0, &out->text, err); break;
        case HA_DECODER_REPLACE:
        case HA_DECODER_BPE: status = write_replaced(i + 1 < in->n ? step : &last, text, length, &out->text, err); break;
        case HA_DECODER_STRIP: status = write_stripped(step, text, length, out, err); break;
        default: status = append(out, text, length, err); break;
        }
        status = status == HA_OK && !joins ? finish(out, err) : status;
    }
    if (status == HA_OK && step->kind == HA_DECODER_BYTE_LEVEL) {
        status = make_valid(&out->text, 0, err);
    }
    return status == HA_OK && joins ? finish(out, err) : status;
}

/* The bytes that a token stands for wherever it stands in a text, in *now; *next is scratch. */
static ha_status
token_bytes(const ha_token_decoder *decoder, const char *text, size_t length, ha_text_buf *now, ha_text_buf *next, ha_error *err)
{
    now->length = 0;
    ha_status status = ha_text_buf_reserve(now, length + 1, err);
    if (status != HA_OK) {
        return status;
    }
    memcpy(now->text, text, length);
    now->length = length;
    for (size_t i = 0; i < decoder->n && status == HA_OK; i++) {
        const ha_decoder_step *step = &decoder->steps[i];
        const int byte = step->kind == HA_DECODER_BYTE_FALLBACK ? fallback_byte(now->text, now->length) : -1;
        if (byte >= 0) {
            now->text[0] = (uint8_t)byte;
            now->length = 1;
            break;
        }
        next->length = 0;
        switch (step->kind) {
        case HA_DECODER_BYTE_LEVEL: status = write_byte_level(now->text, now->length, next, err); break;
        case HA_DECODER_METASPACE: status = write_metaspace(step, now->text, now->length, 0, next, err); break;
        case HA_DECODER_REPLACE:
        case HA_DECODER_BPE: status = write_replaced(step, now->text, now->length, next, err); break;
        default: continue;
        }
        const ha_text_buf swap = *now;
        *now = *next, *next = swap;
    }
    return status;
}

/* Byte-level decoding writes this token as it is, whatever bytes its characters stand for. */
static int
is_text(const ha_tokenizer *tok, int32_t id)
{
    return tok->added_are_text && ha_added_tokens_of_id(&tok->added, id) != NULL;
}

ha_status
ha_tokenizer_build_raw(ha_tokenizer *tok, ha_error *err)
{
    ha_text_buf all = {0}, now = {0}, next = {0};
    tok->raw_at = malloc((tok->vocab.n_ids + 1) * sizeof(*tok->raw_at));
    ha_status status = tok->raw_at != NULL ? ha_text_buf_reserve(&all, 1, err)
                       : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", tok->vocab.n_ids);
    for (size_t id = 0; id < tok->vocab.n_ids && status == HA_OK; id++) {
        size_t length;
        const char *text = ha_tokenizer_id_to_token(tok, (int32_t)id, &length);
        tok->raw_at[id] = all.length;
        if (tok->model_kind == HA_MODEL_SENTENCEPIECE && tok->sentencepiece.types[id] == HA_SPM_CONTROL) {
            length = 0;         /* stands for no text */
        }
        if (length > 0) {
            static const ha_token_decoder none = {.n = 0};
            status = token_bytes(is_text(tok, (int32_t)id) ? &none : &tok->decoder, text, length, &now, &next, err);
            status = status == HA_OK ? ha_text_buf_reserve(&all, now.length, err) : status;
        }
        if (status == HA_OK && length > 0 && now.length > 0) {
            memcpy(all.text + all.length, now.text, now.length);
            all.length += now.length;
        }
    }
    if (status == HA_OK) {
        tok->raw_at[tok->vocab.n_ids] = all.length;
    }
    tok->raw = all.text;
    ha_text_buf_free(&now);
    ha_text_buf_free(&next);
    return status;
}

/* What sentencepiece makes of the ids. */
static ha_status
decode_own(const ha_tokenizer *tok, const int32_t *ids, size_t n, ha_text_buf *out, ha_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= tok->sentencepiece.n) {
            return ha_fail(err, HA_ERR_VALUE, "decode: ids[%zu] = %ld is no token, the vocabulary has ids below %zu", i, (long)ids[i], tok->sentencepiece.n);
        }
    }
    return ha_sentencepiece_decode(&tok->sentencepiece, ids, n, out, err);
}

/* What byte-level decoding makes `text` of. */
static ha_status
append_mapped(token_list *out, const char *text, size_t length, ha_error *err)
{
    ha_status status = HA_OK;
    for (size_t i = 0; i < length && status == HA_OK; i++) {
        uint8_t c[4];
        const size_t size = ha_utf8_encode(ha_byte_to_char((uint8_t)text[i]), c);
        status = append(out, (const char *)c, size, err);
    }
    return status;
}

/* The tokens of the ids. */
static ha_status
gather(const ha_tokenizer *tok, const int32_t *ids, size_t n, int skip_special_tokens, token_list *out, ha_error *err)
{
    ha_status status = ha_text_buf_reserve(&out->text, 1, err);
    for (size_t i = 0; i < n && status == HA_OK; i++) {
        size_t length;
        const char *text = ha_tokenizer_id_to_token(tok, ids[i], &length);
        if (text == NULL) {
            return ha_fail(err, HA_ERR_VALUE, "decode: ids[%zu] = %ld is no token, the vocabulary has ids below %zu",
                           i, (long)ids[i], tok->vocab.n_ids);
        }
        const ha_added_token *t = ha_added_tokens_of_id(&tok->added, ids[i]);
        if (skip_special_tokens && t != NULL && t->skipped) {
            continue;
        }
        if (tok->decoder.n == 0 && out->n > 0) {
            status = append(out, " ", 1, err);
        }
        status = status != HA_OK ? status : is_text(tok, ids[i]) ? append_mapped(out, text, length, err) : append(out, text, length, err);
        status = status == HA_OK ? finish(out, err) : status;
    }
    return status;
}

ha_status
ha_tokenizer_decode(const ha_tokenizer *tok, const int32_t *ids, size_t n, int skip_special_tokens,
                    char **out_text, size_t *out_length, ha_error *err)
{
    token_list now = {0}, next = {0};
    const int own = tok->model_kind == HA_MODEL_SENTENCEPIECE && !tok->sentencepiece.llama;
    ha_status status = own ? decode_own(tok, ids, n, &now.text, err) : gather(tok, ids, n, skip_special_tokens, &now, err);
    *out_text = NULL;
    for (size_t i = 0; !own && i < tok->decoder.n && status == HA_OK; i++) {
        status = run_step(&tok->decoder.steps[i], &now, &next, err);
        const token_list swap = now;
        now = next, next = swap;
    }
    if (status == HA_OK) {
        status = ha_text_buf_reserve(&now.text, 1, err);
    }
    if (status == HA_OK) {
        *out_length = now.text.length;
        *out_text = (char *)now.text.text;
        now.text.text[now.text.length] = '\0';
        now.text.text = NULL;
    }
    list_free(&now);
    list_free(&next);
    return status;
}
