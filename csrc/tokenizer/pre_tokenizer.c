#include "tokenizer/pre_tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer/unicode.h"

void
ha_pieces_free(ha_pieces *pieces)
{
    free(pieces->at);
    memset(pieces, 0, sizeof(*pieces));
}

ha_status
ha_pieces_reserve(ha_pieces *pieces, size_t extra, ha_error *err)
{
    if (pieces->capacity - pieces->n < extra) {
        const size_t capacity = (pieces->n + extra) * 2;
        ha_piece *at = realloc(pieces->at, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces of text", capacity);
        }
        pieces->at = at;
        pieces->capacity = capacity;
    }
    return HA_OK;
}

ha_status
ha_pieces_push(ha_pieces *pieces, size_t begin, size_t end, int32_t added_id, ha_error *err)
{
    if (pieces->n == pieces->capacity) {
        const ha_status status = ha_pieces_reserve(pieces, 32, err);
        if (status != HA_OK) {
            return status;
        }
    }
    pieces->at[pieces->n++] = (ha_piece){(uint32_t)begin, (uint32_t)end, added_id};
    return HA_OK;
}

ha_status
ha_pre_tokenizer_add(ha_pre_tokenizer *pre, ha_pre_kind kind, ha_error *err)
{
    if (pre->n_steps == HA_MAX_PRE) {
        return ha_fail(err, HA_ERR_FORMAT, "pre_tokenizer: more than %d steps", HA_MAX_PRE);
    }
    pre->steps[pre->n_steps++] = kind;
    return HA_OK;
}

/* ---- steps ---- */

static ha_status
cut_bert(const uint8_t *s, size_t begin, size_t end, ha_pieces *out, ha_error *err)
{
    ha_status status = HA_OK;
    size_t word = begin, size;
    for (size_t i = begin; i < end && status == HA_OK; i += size) {
        const unsigned flags = ha_uc_flags_at(s + i, &size);
        if ((flags & (HA_UC_WHITE_SPACE | HA_UC_PUNCT)) == 0) {
            continue;
        }
        if (word < i) {
            status = ha_pieces_push(out, word, i, -1, err);
        }
        if (status == HA_OK && (flags & HA_UC_WHITE_SPACE) == 0) {
            status = ha_pieces_push(out, i, i + size, -1, err);
        }
        word = i + size;
    }
    return word < end && status == HA_OK ? ha_pieces_push(out, word, end, -1, err) : status;
}

static ha_status
cut_digits(const uint8_t *s, size_t begin, size_t end, int individual, ha_pieces *out, ha_error *err)
{
    ha_status status = HA_OK;
    size_t start = begin, size;
    int previous = 0;
    for (size_t i = begin; i < end && status == HA_OK; i += size) {
        const int numeric = (ha_uc_flags(ha_utf8_decode(s + i, &size)) & HA_UC_NUMERIC) != 0;
        if (i > start && (numeric != previous || (individual && numeric))) {
            status = ha_pieces_push(out, start, i, -1, err);
            start = i;
        }
        previous = numeric;
    }
    return start < end && status == HA_OK ? ha_pieces_push(out, start, end, -1, err) : status;
}

/* The new space has the origin of the character before which it stands. */
static ha_status
add_prefix_spaces(const ha_text_buf *text, const ha_pieces *pieces, ha_text_buf *new_text, ha_pieces *out, ha_error *err)
{
    new_text->length = 0;
    new_text->aligned = text->aligned;
    ha_status status = HA_OK;
    for (size_t p = 0; p < pieces->n && status == HA_OK; p++) {
        const ha_piece piece = pieces->at[p];
        const size_t length = piece.end - piece.begin, begin = new_text->length;
        status = ha_text_buf_reserve(new_text, length + 4, err);
        if (status != HA_OK) {
            break;
        }
        if (piece.added_id < 0 && text->text[piece.begin] != ' ') {
            ha_text_buf_push(new_text, ' ', text->aligned ? text->align[piece.begin] : (ha_align){0, 0});
        }
        memcpy(new_text->text + new_text->length, text->text + piece.begin, length);
        if (text->aligned) {
            memcpy(new_text->align + new_text->length, text->align + piece.begin, length * sizeof(ha_align));
        }
        new_text->length += length;
        status = ha_pieces_push(out, begin, new_text->length, piece.added_id, err);
    }
    return status;
}

static ha_status
cut_piece(ha_pre_kind kind, const uint8_t *s, ha_piece piece, ha_pieces *out, ha_error *err)
{
    if (piece.added_id >= 0) {
        return ha_pieces_push(out, piece.begin, piece.end, piece.added_id, err);
    }
    switch (kind) {
    case HA_PRE_BERT: return cut_bert(s, piece.begin, piece.end, out, err);
    case HA_PRE_DIGITS: return cut_digits(s, piece.begin, piece.end, 0, out, err);
    case HA_PRE_DIGITS_INDIVIDUAL: return cut_digits(s, piece.begin, piece.end, 1, out, err);
    default: return ha_pre_cut_pattern(kind, s, piece.begin, piece.end, out, err);
    }
}

ha_status
ha_pre_tokenize(const ha_pre_tokenizer *pre, ha_text_buf *text, ha_pieces *pieces,
                ha_text_buf *spare_text, ha_pieces *spare, ha_error *err)
{
    ha_status status = HA_OK;
    for (size_t i = 0; i < pre->n_steps && status == HA_OK; i++) {
        spare->n = 0;
        if (pre->steps[i] == HA_PRE_PREFIX_SPACE) {
            status = add_prefix_spaces(text, pieces, spare_text, spare, err);
            const ha_text_buf swap = *text;
            *text = *spare_text, *spare_text = swap;
        } else {
            for (size_t p = 0; p < pieces->n && status == HA_OK; p++) {
                status = cut_piece(pre->steps[i], text->text, pieces->at[p], spare, err);
            }
        }
        const ha_pieces swap = *pieces;
        *pieces = *spare, *spare = swap;
    }
    return status;
}
