#include "tokenizer/pre_tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/ascii.h"
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
ha_pre_tokenizer_add_step(ha_pre_tokenizer *pre, ha_pre_step step, ha_error *err)
{
    if (pre->n_steps == HA_MAX_PRE) {
        return ha_fail(err, HA_ERR_FORMAT, "pre_tokenizer: more than %d steps", HA_MAX_PRE);
    }
    pre->steps[pre->n_steps++] = step;
    pre->needs_origin |= step.kind == HA_PRE_METASPACE && step.metaspace.prepend == HA_PREPEND_FIRST;
    return HA_OK;
}

ha_status
ha_pre_tokenizer_add(ha_pre_tokenizer *pre, ha_pre_kind kind, ha_error *err)
{
    return ha_pre_tokenizer_add_step(pre, (ha_pre_step){.kind = kind}, err);
}

/* ---- steps ---- */

/* Where the word at s[i] ends; before `end` the separator there is of `size` bytes and those flags. */
static inline size_t
end_of_word(const uint8_t *s, size_t i, size_t end, unsigned *flags, size_t *size)
{
    while ((i = ha_swar_run(s, i, end, 1)) < end) {
        if (s[i] == ' ') {      /* what ends most words */
            *flags = HA_UC_WHITE_SPACE;
            *size = 1;
            break;
        }
        *flags = ha_uc_flags_at(s + i, size);
        if ((*flags & (HA_UC_WHITE_SPACE | HA_UC_PUNCT)) != 0) {
            break;
        }
        i += *size;
    }
    return i;
}

/* Of s[i..end), but no more than 64 bytes, as bits: the ASCII characters in words and the signs of punctuation of all pieces that are seen whole; *next is where
 * the first one that is not begins. What is not ASCII ends the view. */
static void
view_ascii(const uint8_t *s, size_t i, size_t end, uint64_t *words, uint64_t *signs, size_t *next)
{
    const size_t left = end - i < 64 ? end - i : 64;
    uint64_t space = 0, other = 0, sign = 0;
    for (size_t k = 0; k < left && other == 0; k += HA_BYTES) {
        const ha_bytes x = ha_bytes_load(s + i + k);
        sign |= ha_bytes_bits(ha_bytes_between(x, '!', '~') & ~(ha_bytes_letters(x) | ha_bytes_between(x, '0', '9'))) << k;
        space |= ha_bytes_bits(ha_bytes_between(x, ' ', ' ') | ha_bytes_between(x, '\t', '\r')) << k;
        other |= ha_bytes_bits(x) << k;
    }
    other &= ha_low_bits(left);
    const size_t seen = other != 0 ? ha_lowest_bit(other) : left;
    *words = ~(sign | space) & ha_low_bits(seen);
    *signs = sign & ha_low_bits(seen);
    *next = i + seen;
    if (seen > 0 && i + seen < end && *words >> (seen - 1) != 0) {       /* a word that may go on */
        const uint64_t breaks = ~*words & ha_low_bits(seen);
        size_t begin = seen;
        while (begin > 0 && (breaks >> (begin - 1) & 1) == 0) {
            begin--;
        }
        *words &= ha_low_bits(begin);
        *next = i + begin;
    }
}

size_t
ha_pre_cut_bert(const uint8_t *s, size_t *at, size_t end, ha_piece *out, size_t room)
{
    size_t n = 0, i = *at, size = 0, next;
    unsigned flags = 0;
    while (i < end && n < room) {
        uint64_t words, signs;
        view_ascii(s, i, end, &words, &signs, &next);
        uint64_t begins = (words & ~(words << 1)) | signs, ends = (words & ~(words >> 1)) | signs;
        for (; begins != 0 && n < room; begins &= begins - 1, ends &= ends - 1) {
            out[n++] = (ha_piece){(uint32_t)(i + ha_lowest_bit(begins)), (uint32_t)(i + ha_lowest_bit(ends) + 1), -1};
        }
        if (begins != 0 || next > i) {
            i = begins != 0 ? i + ha_lowest_bit(begins) : next;
            continue;
        }
        const size_t begin = i;     /* a long word, or one that is not of ASCII alone */
        i = end_of_word(s, begin, end, &flags, &size);
        if (i > begin) {
            out[n++] = (ha_piece){(uint32_t)begin, (uint32_t)i, -1};
        }
        if (i < end && (flags & HA_UC_WHITE_SPACE) != 0) {
            i += size;
        } else if (i < end && n < room) {
            out[n++] = (ha_piece){(uint32_t)i, (uint32_t)(i + size), -1};
            i += size;
        }
    }
    *at = i;
    return n;
}

const ha_pre_step *
ha_pre_last_cut(const ha_pre_tokenizer *pre)
{
    const ha_pre_step *last = pre->n_steps > 0 ? &pre->steps[pre->n_steps - 1] : NULL;
    return last != NULL && (last->kind == HA_PRE_BERT || last->kind >= HA_PRE_GPT2) ? last : NULL;
}

/* All pieces of such a step. */
static ha_status
cut_all(const ha_pre_step *step, const uint8_t *s, size_t begin, size_t end, ha_pieces *out, ha_error *err)
{
    enum { ROOM = 64 };
    for (size_t n = 1; n > 0;) {
        const ha_status status = ha_pieces_reserve(out, ROOM, err);
        if (status != HA_OK) {
            return status;
        }
        n = ha_pre_cut(step, s, &begin, end, out->at + out->n, ROOM);
        out->n += n;
    }
    return HA_OK;
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

/* Runs of characters of one kind: white space is removed, words (with `words`) and the rest are pieces. */
static ha_status
cut_runs(const uint8_t *s, size_t begin, size_t end, int words, ha_pieces *out, ha_error *err)
{
    ha_status status = HA_OK;
    size_t start = begin, size;
    unsigned previous = HA_UC_WHITE_SPACE;
    for (size_t i = begin; i < end && status == HA_OK; i += size) {
        const unsigned flags = ha_uc_flags(ha_utf8_decode(s + i, &size));
        const unsigned kind = flags & HA_UC_WHITE_SPACE ? HA_UC_WHITE_SPACE : words ? flags & HA_UC_WORD : 0;
        if (kind != previous) {
            status = previous != HA_UC_WHITE_SPACE ? ha_pieces_push(out, start, i, -1, err) : HA_OK;
            start = i;
        }
        previous = kind;
    }
    return previous != HA_UC_WHITE_SPACE && status == HA_OK ? ha_pieces_push(out, start, end, -1, err) : status;
}

/* Delimiters are single characters: punctuation, or U+0020. */
static ha_status
cut_delimiters(const uint8_t *s, size_t begin, size_t end, int spaces, ha_split_behavior behavior, ha_pieces *out, ha_error *err)
{
    ha_status status = HA_OK;
    size_t start = begin, size;
    int previous = -1;      /* whether the character before is a delimiter */
    for (size_t i = begin; i < end && status == HA_OK; i += size) {
        const uint32_t c = ha_utf8_decode(s + i, &size);
        const int now = spaces ? c == ' ' : (ha_uc_flags(c) & HA_UC_PUNCT) != 0;
        const int cut = behavior == HA_SPLIT_CONTIGUOUS ? now != previous
                        : behavior == HA_SPLIT_MERGED_WITH_PREVIOUS ? previous == 1
                        : behavior == HA_SPLIT_MERGED_WITH_NEXT ? now : now || previous == 1;
        if (cut && i > start) {
            status = behavior == HA_SPLIT_REMOVED && previous == 1 ? HA_OK : ha_pieces_push(out, start, i, -1, err);
            start = i;
        }
        previous = now;
    }
    const int drop = start == end || (behavior == HA_SPLIT_REMOVED && previous == 1);
    return drop || status != HA_OK ? status : ha_pieces_push(out, start, end, -1, err);
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

/* Needs `length` reserved bytes. */
static void
push_bytes(ha_text_buf *out, const uint8_t *bytes, size_t length, const ha_text_buf *text, size_t at)
{
    memcpy(out->text + out->length, bytes, length);
    for (size_t i = 0; out->aligned && i < length; i++) {
        out->align[out->length + i] = text->align[at];
    }
    out->length += length;
}

/* A sign has the origin of the space that it replaces, a new one that of the character before which it stands. */
static ha_status
metaspace_piece(const ha_metaspace *m, const ha_text_buf *text, ha_piece piece, ha_text_buf *new_text, ha_pieces *out, ha_error *err)
{
    const uint8_t *s = text->text;
    size_t start = new_text->length, size;
    const size_t left = piece.end - piece.begin;
    ha_status status = left < UINT32_MAX / 8 && start < UINT32_MAX / 2 ? ha_text_buf_reserve(new_text, 4 * left + 4, err)
                                                                    : ha_fail(err, HA_ERR_VALUE, "the text is too long once it is normalized");
    const int begins = s[piece.begin] == ' ' || (left >= m->length && memcmp(s + piece.begin, m->sign, m->length) == 0);
    if (status == HA_OK && !begins && (m->prepend == HA_PREPEND_ALWAYS || (m->prepend == HA_PREPEND_FIRST && text->align[piece.begin].begin == 0))) {
        push_bytes(new_text, m->sign, m->length, text, piece.begin);
    }
    for (size_t i = piece.begin; i < piece.end && status == HA_OK; i += size) {
        ha_utf8_decode(s + i, &size);
        const int sign = s[i] == ' ' || (size == m->length && memcmp(s + i, m->sign, size) == 0);
        if (sign && m->split && i > piece.begin) {
            status = ha_pieces_push(out, start, new_text->length, -1, err);
            start = new_text->length;
        }
        push_bytes(new_text, sign ? m->sign : s + i, sign ? m->length : size, text, i);
    }
    return status == HA_OK ? ha_pieces_push(out, start, new_text->length, -1, err) : status;
}

static ha_status
cut_metaspace(const ha_metaspace *m, const ha_text_buf *text, const ha_pieces *pieces, ha_text_buf *new_text, ha_pieces *out, ha_error *err)
{
    new_text->length = 0;
    new_text->aligned = text->aligned;
    ha_status status = HA_OK;
    for (size_t p = 0; p < pieces->n && status == HA_OK; p++) {
        const ha_piece piece = pieces->at[p];
        if (piece.added_id < 0) {
            status = metaspace_piece(m, text, piece, new_text, out, err);
            continue;
        }
        const size_t begin = new_text->length, length = piece.end - piece.begin;
        status = ha_text_buf_reserve(new_text, length + 1, err);
        if (status == HA_OK) {
            memcpy(new_text->text + begin, text->text + piece.begin, length);
            if (text->aligned) {
                memcpy(new_text->align + begin, text->align + piece.begin, length * sizeof(ha_align));
            }
            new_text->length += length;
            status = ha_pieces_push(out, begin, new_text->length, piece.added_id, err);
        }
    }
    return status;
}

size_t
ha_metaspace_decode(const ha_metaspace *metaspace, int first, const char *text, size_t length, char *out)
{
    size_t n = 0, size;
    for (size_t i = 0; i < length; i += size) {
        ha_utf8_decode((const uint8_t *)text + i, &size);
        if (size != metaspace->length || memcmp(text + i, metaspace->sign, size) != 0) {
            memcpy(out + n, text + i, size);
            n += size;
        } else if (!first || metaspace->prepend == HA_PREPEND_NEVER) {
            out[n++] = ' ';
        }
    }
    return n;
}

static ha_status
cut_piece(const ha_pre_step *step, const uint8_t *s, ha_piece piece, ha_pieces *out, ha_error *err)
{
    if (piece.added_id >= 0) {
        return ha_pieces_push(out, piece.begin, piece.end, piece.added_id, err);
    }
    switch (step->kind) {
    case HA_PRE_DIGITS: return cut_digits(s, piece.begin, piece.end, 0, out, err);
    case HA_PRE_DIGITS_INDIVIDUAL: return cut_digits(s, piece.begin, piece.end, 1, out, err);
    case HA_PRE_WHITE_SPACE: return cut_runs(s, piece.begin, piece.end, 0, out, err);
    case HA_PRE_WORDS: return cut_runs(s, piece.begin, piece.end, 1, out, err);
    case HA_PRE_PUNCTUATION:
    case HA_PRE_SPACES: return cut_delimiters(s, piece.begin, piece.end, step->kind == HA_PRE_SPACES, step->behavior, out, err);
    default: return cut_all(step, s, piece.begin, piece.end, out, err);
    }
}

ha_status
ha_pre_tokenize(const ha_pre_tokenizer *pre, size_t n_steps, ha_text_buf *text, ha_pieces *pieces,
                ha_text_buf *spare_text, ha_pieces *spare, ha_error *err)
{
    ha_status status = HA_OK;
    for (size_t i = 0; i < n_steps && status == HA_OK; i++) {
        const ha_pre_step *step = &pre->steps[i];
        spare->n = 0;
        ha_text_buf_close(text);
        if (step->kind == HA_PRE_PREFIX_SPACE || step->kind == HA_PRE_METASPACE) {
            status = step->kind == HA_PRE_METASPACE ? cut_metaspace(&step->metaspace, text, pieces, spare_text, spare, err)
                                                    : add_prefix_spaces(text, pieces, spare_text, spare, err);
            const ha_text_buf swap = *text;
            *text = *spare_text, *spare_text = swap;
        } else {
            for (size_t p = 0; p < pieces->n && status == HA_OK; p++) {
                status = cut_piece(step, text->text, pieces->at[p], spare, err);
            }
        }
        const ha_pieces swap = *pieces;
        *pieces = *spare, *spare = swap;
    }
    return status;
}
