#include "tokenizer/sentencepiece.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SPACE "\xE2\x96\x81"        /* U+2581, which stands for a space in pieces */

#define LARGEST_SUM 100000.0f        /* of scores, as in sentencepiece 0.2.3 */

enum { SPACE_SIZE = 3 };

void
ha_sp_scratch_free(ha_sp_scratch *scratch)
{
    free(scratch->best);
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch->splits);
    free(scratch->fragments.at);
    free(scratch->spare.at);
    memset(scratch, 0, sizeof(*scratch));
}

/* ---- normalizer ---- */

/* What the start of s[0..n), at least one character, becomes; returns how much of it that is. */
static size_t
rewrite(const ha_sp_rules *rules, const ha_trie *symbols, const uint8_t *s, size_t n, const uint8_t **out, size_t *length)
{
    const char *replacement;
    int32_t id;
    size_t size = ha_trie_longest(symbols, s, n, &id);
    if (size == 0 && rules->charsmap.n_units > 0) {
        size = ha_charsmap_find(&rules->charsmap, 1, s, n, &replacement, length);
        if (size > 0) {
            *out = (const uint8_t *)replacement;
            return size;
        }
    }
    if (size == 0) {
        ha_utf8_decode(s, &size);
    }
    *out = s;
    *length = size;
    return size;
}

static void
push_byte(ha_text_buf *out, uint8_t byte, size_t origin)
{
    out->text[out->length] = byte;
    if (out->aligned) {
        out->align[out->length] = (ha_align){(uint32_t)origin, (uint32_t)origin};
    }
    out->length++;
}

/* One byte, or the sign of a space where spaces are escaped. Needs 3 reserved bytes. */
static void
push_escaped(const ha_sp_rules *rules, ha_text_buf *out, uint8_t byte, size_t origin)
{
    if (byte == ' ' && rules->escape_whitespaces) {
        for (size_t i = 0; i < SPACE_SIZE; i++) {
            push_byte(out, (uint8_t)SPACE[i], origin);
        }
    } else {
        push_byte(out, byte, origin);
    }
}

static void
trim_end(const ha_sp_rules *rules, ha_text_buf *out, size_t *end)
{
    const char *space = rules->escape_whitespaces ? SPACE : " ";
    const size_t size = strlen(space);
    while (out->length >= size && memcmp(out->text + out->length - size, space, size) == 0) {
        out->length -= size;
        *end = out->aligned ? out->align[out->length].begin : *end;
    }
}

/* The normal form of s[0..n); *end: the byte of s at which its last character ends. */
static ha_status
normalize(const ha_sp_rules *rules, const ha_trie *symbols, const uint8_t *s, size_t n, ha_text_buf *out, size_t *end, ha_error *err)
{
    const uint8_t *part;
    size_t at = 0, size, length;
    ha_status status = ha_text_buf_reserve(out, n + SPACE_SIZE, err);
    out->length = 0;
    while (rules->remove_extra_whitespaces && at < n) {
        size = rewrite(rules, symbols, s + at, n - at, &part, &length);
        if (length != 1 || part[0] != ' ') {
            break;
        }
        at += size;
    }
    if (status == HA_OK && at < n && rules->add_dummy_prefix && !rules->suffix) {
        push_escaped(rules, out, ' ', at);
    }
    const int any = at < n;
    int after_space = rules->remove_extra_whitespaces;
    while (at < n && status == HA_OK) {
        size = rewrite(rules, symbols, s + at, n - at, &part, &length);
        while (after_space && length > 0 && part[0] == ' ') {
            part++;
            length--;
        }
        status = ha_text_buf_reserve(out, length * SPACE_SIZE + SPACE_SIZE, err);
        for (size_t i = 0; i < length && status == HA_OK; i++) {
            push_escaped(rules, out, part[i], at);
        }
        if (length > 0) {
            after_space = rules->remove_extra_whitespaces && part[length - 1] == ' ';
        }
        at += size;
        if (status == HA_OK && out->length > INT32_MAX / 2) {
            status = ha_fail(err, HA_ERR_VALUE, "the normal form of the text has more than %d bytes", INT32_MAX / 2);
        }
    }
    if (status == HA_OK && rules->remove_extra_whitespaces) {
        trim_end(rules, out, &at);
    }
    if (status == HA_OK && any && rules->add_dummy_prefix && rules->suffix) {
        push_escaped(rules, out, ' ', at);
    }
    *end = at;
    return status;
}

/* ---- pieces to tokens ---- */

typedef struct writer {
    const ha_sentencepiece *sp;
    const ha_text_buf *normal;
    size_t offset, end;         /* origins count from `offset`; `end` is that of the end of the text */
    int after_unk;
    ha_tokens *out;
    ha_error *err;
} writer;

static uint32_t
origin(const writer *w, size_t at)
{
    return w->normal->aligned ? (uint32_t)(w->offset + (at < w->normal->length ? w->normal->align[at].begin : w->end)) : 0;
}

/* Piece [begin, end) of the normal form (id -1: it has none); unknown ones are written in bytes, or as one token a run. */
static ha_status
write_piece(writer *w, int32_t id, size_t begin, size_t end)
{
    const ha_sentencepiece *sp = w->sp;
    const int is_unk = id < 0 || (!sp->llama && sp->types[id] == HA_SPM_UNKNOWN), in_bytes = is_unk && sp->byte_fallback;
    const uint32_t from = origin(w, begin), to = origin(w, end);
    const ha_status status = ha_tokens_reserve(w->out, end - begin + 1, w->err);
    if (status != HA_OK) {
        return status;
    }
    if (is_unk && !in_bytes && w->after_unk) {
        w->out->at[w->out->n - 1].end = to;
    } else if (in_bytes) {
        for (size_t i = begin; i < end; i++) {      /* the last byte stands for the character */
            w->out->at[w->out->n++] = (ha_token){sp->byte_ids[w->normal->text[i]], from, i + 1 < end ? from : to, 0};
        }
    } else {
        w->out->at[w->out->n++] = (ha_token){id, from, to, 0};
    }
    w->after_unk = is_unk;
    return HA_OK;
}

/* ---- Unigram ---- */

static void
offer(ha_sp_node *node, float candidate, int32_t id, size_t start)
{
    if (node->id == -1 || candidate > node->score) {
        *node = (ha_sp_node){candidate, id, (uint32_t)start, 0};
    }
}

/* Sums count from `start` from here on, or single precision would no longer tell long texts' paths apart; `reached`: the last byte that a path ends at. */
static void
rebase(ha_sp_node *best, size_t start, size_t reached)
{
    const float here = best[start].score;
    for (size_t i = start; i <= reached; i++) {
        best[i].score -= here;
    }
}

/* The best path to every byte of the text; of equal ones the first that is found, in order of where its last piece begins. */
static ha_status
fill_best(const ha_sentencepiece *sp, const uint8_t *text, size_t n, ha_sp_node *best, ha_pulse *pulse, ha_error *err)
{
    size_t size, reached = 0;
    best[0] = (ha_sp_node){0, -1, 0, 0};
    for (size_t i = 1; i <= n; i++) {
        best[i].id = -1;
        best[i].score = 0;
    }
    for (size_t start = 0; start < n; start += size) {
        if (fabsf(best[start].score) > LARGEST_SUM) {
            rebase(best, start, reached);
        }
        const float here = best[start].score;
        int single = 0;
        ha_utf8_decode(text + start, &size);
        for (ha_trie_walk walk = ha_trie_begin(&sp->pieces, text + start, n - start); ha_trie_next(&walk);) {
            const uint8_t type = sp->types[walk.value];
            if (type == HA_SPM_UNUSED) {
                continue;
            }
            const float score = type == HA_SPM_USER_DEFINED ? (float)(0.1 * (double)(walk.length - 1)) : sp->scores[walk.value];
            offer(&best[start + walk.length], score + here, walk.value, start);
            reached = start + walk.length > reached ? start + walk.length : reached;
            single |= walk.length == size;
        }
        if (!single) {
            offer(&best[start + size], sp->unk_score + here, sp->unk_id, start);
            reached = start + size > reached ? start + size : reached;
        }
        const ha_status status = ha_pulse_beat(pulse, size, err);
        if (status != HA_OK) {
            return status;
        }
    }
    return HA_OK;
}

static ha_status
encode_unigram(writer *w, ha_sp_scratch *scratch)
{
    const size_t n = w->normal->length;
    if (n + 1 > scratch->cap_best) {
        const size_t capacity = (n + 1) * 2;
        ha_sp_node *best = realloc(scratch->best, capacity * sizeof(*best));
        if (best == NULL) {
            return ha_fail(w->err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", n);
        }
        scratch->best = best;
        scratch->cap_best = capacity;
    }
    ha_sp_node *best = scratch->best;
    ha_status status = fill_best(w->sp, w->normal->text, n, best, scratch->pulse, w->err);
    for (size_t at = n; at > 0 && status == HA_OK; at = best[at].start) {
        best[best[at].start].next = (uint32_t)at;
    }
    for (size_t begin = 0; begin < n && status == HA_OK; begin = best[begin].next) {
        status = write_piece(w, best[best[begin].next].id, begin, best[begin].next);
    }
    return status;
}

/* ---- BPE ---- */

/* The piece of this text that a merge may make, or -1. */
static int32_t
mergeable(const ha_sentencepiece *sp, const uint8_t *text, size_t length)
{
    const int32_t id = ha_vocab_id(sp->vocab, (const char *)text, length);
    const int type = id >= 0 ? sp->types[id] : 0;
    return sp->llama || type == HA_SPM_NORMAL || type == HA_SPM_USER_DEFINED || type == HA_SPM_UNUSED ? id : -1;
}

static ha_status
push_fragment(ha_sp_fragments *list, size_t begin, size_t end, int32_t id, ha_error *err)
{
    if (list->n == list->capacity) {
        const size_t capacity = list->capacity * 2 + 64;
        struct ha_sp_fragment *at = realloc(list->at, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu parts of a text", capacity);
        }
        list->at = at;
        list->capacity = capacity;
    }
    list->at[list->n++] = (struct ha_sp_fragment){(uint32_t)begin, (uint32_t)end, id};
    return HA_OK;
}

static ha_status
make_room(const ha_sentencepiece *sp, ha_sp_scratch *scratch, size_t n, ha_error *err)
{
    if (n > scratch->cap_symbols) {
        free(scratch->symbols);
        free(scratch->heap);
        scratch->symbols = malloc(n * 2 * sizeof(*scratch->symbols));
        scratch->heap = malloc(n * 6 * sizeof(*scratch->heap));
        scratch->cap_symbols = scratch->symbols != NULL && scratch->heap != NULL ? n * 2 : 0;
    }
    if (sp->has_unused && scratch->splits == NULL) {
        scratch->splits = malloc(sp->n * sizeof(*scratch->splits));
    }
    return scratch->cap_symbols >= n && (!sp->has_unused || scratch->splits != NULL) ? HA_OK
           : ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", n);
}

static size_t
first_symbols(const ha_sentencepiece *sp, const uint8_t *text, size_t begin, size_t end, ha_sp_symbol *s)
{
    size_t n = 0, size;
    for (size_t i = begin; i < end; i += size, n++) {
        int32_t id;
        size = ha_trie_longest(&sp->symbols, text + i, end - i, &id);
        const int frozen = size > 0;
        if (!frozen) {
            ha_utf8_decode(text + i, &size);
        }
        s[n] = (ha_sp_symbol){(uint32_t)i, (uint32_t)size, (int32_t)n - 1, i + size < end ? (int32_t)n + 1 : -1, frozen};
    }
    return n;
}

static void
offer_pair(const ha_sentencepiece *sp, const uint8_t *text, ha_sp_scratch *scratch, size_t *n_heap, int32_t left, int32_t right)
{
    const ha_sp_symbol *s = scratch->symbols;
    if (left < 0 || right < 0 || s[left].frozen || s[right].frozen) {
        return;
    }
    const int32_t id = mergeable(sp, text + s[left].begin, (size_t)s[left].length + s[right].length);
    if (id < 0) {
        return;
    }
    ha_bpe_heap_push(scratch->heap, n_heap, (ha_bpe_entry){sp->ranks[id], (uint32_t)left, id});
    if (scratch->splits != NULL && sp->types[id] == HA_SPM_UNUSED) {
        scratch->splits[id] = s[left].length;
    }
}

/* A symbol that is left, as a token; an unused piece as the two that made it, and so on. Without a piece it is unknown. */
static ha_status
write_symbol(writer *w, ha_sp_scratch *scratch, size_t begin, size_t end)
{
    const ha_sentencepiece *sp = w->sp;
    const uint8_t *text = w->normal->text;
    scratch->spare.n = 0;
    ha_status status = push_fragment(&scratch->spare, begin, end, -1, w->err);
    while (status == HA_OK && scratch->spare.n > 0) {
        const struct ha_sp_fragment part = scratch->spare.at[--scratch->spare.n];
        const int32_t id = ha_vocab_id(sp->vocab, (const char *)text + part.begin, part.end - part.begin);
        size_t size;
        ha_utf8_decode(text + part.begin, &size);
        if (id >= 0 && !sp->llama && sp->types[id] == HA_SPM_UNUSED && part.end - part.begin > size) {
            const size_t middle = part.begin + scratch->splits[id];
            status = push_fragment(&scratch->spare, middle, part.end, -1, w->err);
            status = status == HA_OK ? push_fragment(&scratch->spare, part.begin, middle, -1, w->err) : status;
        } else {
            status = write_piece(w, id >= 0 || sp->llama ? id : sp->unk_id, part.begin, part.end);
        }
    }
    return status;
}

/* Bytes [begin, end) of the normal form: again and again the leftmost pair whose piece has the highest score. */
static ha_status
encode_bpe(writer *w, ha_sp_scratch *scratch, size_t begin, size_t end)
{
    const ha_sentencepiece *sp = w->sp;
    const uint8_t *text = w->normal->text;
    ha_status status = make_room(sp, scratch, end - begin + 1, w->err);
    if (status != HA_OK || begin == end) {
        return status;
    }
    ha_sp_symbol *s = scratch->symbols;
    const size_t n = first_symbols(sp, text, begin, end, s);
    size_t n_heap = 0, length;
    for (size_t i = 1; i < n; i++) {
        offer_pair(sp, text, scratch, &n_heap, (int32_t)i - 1, (int32_t)i);
    }
    while (n_heap > 0) {
        status = ha_pulse_beat(scratch->pulse, 1, w->err);
        if (status != HA_OK) {
            return status;
        }
        const ha_bpe_entry top = ha_bpe_heap_pop(scratch->heap, &n_heap);
        ha_sp_symbol *left = &s[top.at];
        ha_vocab_text(sp->vocab, top.id, &length);
        if (left->length == 0 || left->next < 0 || (size_t)left->length + s[left->next].length != length) {
            continue;           /* one of the two has been merged since */
        }
        ha_sp_symbol *right = &s[left->next];
        left->length += right->length;
        right->length = 0;
        left->next = right->next;
        if (left->next >= 0) {
            s[left->next].prev = (int32_t)top.at;
        }
        offer_pair(sp, text, scratch, &n_heap, left->prev, (int32_t)top.at);
        offer_pair(sp, text, scratch, &n_heap, (int32_t)top.at, left->next);
    }
    for (int32_t i = 0; i >= 0 && status == HA_OK; i = s[i].next) {
        status = write_symbol(w, scratch, s[i].begin, s[i].begin + s[i].length);
    }
    return status;
}

/* ---- as llama.cpp cuts a text: the longest added token first, wherever it stands, then the next in what is left ---- */

static ha_status
cut_at(const ha_sentencepiece *sp, const uint8_t *text, int32_t special, ha_sp_scratch *scratch, ha_error *err)
{
    size_t length;
    const char *wanted = ha_vocab_text(sp->vocab, special, &length);
    ha_sp_fragments *out = &scratch->spare;
    ha_status status = HA_OK;
    out->n = 0;
    for (size_t f = 0; f < scratch->fragments.n && status == HA_OK; f++) {
        const struct ha_sp_fragment part = scratch->fragments.at[f];
        size_t done = part.begin;
        for (size_t i = part.begin; part.id < 0 && i + length <= part.end && status == HA_OK;) {
            const uint8_t *found = memchr(text + i, (uint8_t)wanted[0], part.end - i - length + 1);
            i = found != NULL ? (size_t)(found - text) : part.end;
            if (found == NULL || memcmp(found, wanted, length) != 0) {
                i++;
                continue;
            }
            if (done < i) {
                status = push_fragment(out, done, i, -1, err);
            }
            if (status == HA_OK) {
                status = push_fragment(out, i, i + length, special, err);
            }
            i += length;
            done = i;
        }
        if (done < part.end && status == HA_OK) {
            status = push_fragment(out, done, part.end, part.id, err);
        }
    }
    const ha_sp_fragments swap = scratch->fragments;
    scratch->fragments = *out, *out = swap;
    return status;
}

static ha_status
encode_llama(writer *w, const uint8_t *text, size_t n, ha_sp_scratch *scratch, ha_text_buf *normal)
{
    const ha_sentencepiece *sp = w->sp;
    int prefix = 1;
    scratch->fragments.n = 0;
    ha_status status = n > 0 ? push_fragment(&scratch->fragments, 0, n, -1, w->err) : HA_OK;
    for (size_t i = 0; i < sp->n_specials && status == HA_OK; i++) {
        status = cut_at(sp, text, sp->specials[i], scratch, w->err);
    }
    for (size_t f = 0; f < scratch->fragments.n && status == HA_OK; f++) {
        const struct ha_sp_fragment part = scratch->fragments.at[f];
        if (part.id >= 0) {
            status = ha_tokens_reserve(w->out, 1, w->err);
            if (status == HA_OK) {
                w->out->at[w->out->n++] = (ha_token){part.id, part.begin, part.end, 1};
            }
            prefix = 1;
            continue;
        }
        ha_sp_rules rules = sp->rules;
        rules.add_dummy_prefix &= prefix;
        status = normalize(&rules, &sp->symbols, text + part.begin, part.end - part.begin, normal, &w->end, w->err);
        w->offset = part.begin;
        if (status == HA_OK) {
            status = encode_bpe(w, scratch, 0, normal->length);
        }
        prefix = 0;
    }
    return status;
}

ha_status
ha_sentencepiece_encode(const ha_sentencepiece *sp, const uint8_t *text, size_t length, ha_sp_scratch *scratch, ha_text_buf *normal,
                        ha_tokens *out, ha_error *err)
{
    writer w = {sp, normal, 0, 0, 0, out, err};
    if (sp->llama) {
        return encode_llama(&w, text, length, scratch, normal);
    }
    const ha_status status = normalize(&sp->rules, &sp->symbols, text, length, normal, &w.end, err);
    if (status != HA_OK || normal->length == 0) {
        return status;
    }
    return sp->kind == HA_SPM_UNIGRAM ? encode_unigram(&w, scratch) : encode_bpe(&w, scratch, 0, normal->length);
}

/* ---- ids to text ---- */

static ha_status
append(ha_text_buf *out, const void *text, size_t length, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(out, length + 1, err);
    if (status == HA_OK) {
        memcpy(out->text + out->length, text, length);
        out->length += length;
    }
    return status;
}

/* A run of byte tokens, of which out[begin..) holds the bytes: each that starts no character becomes U+FFFD. */
static ha_status
close_bytes(ha_text_buf *out, size_t begin, ha_error *err)
{
    const size_t length = out->length - begin;
    if (ha_utf8_valid_prefix(out->text + begin, length) == length) {
        return HA_OK;
    }
    uint8_t *bytes = malloc(length);
    if (bytes == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu bytes", length);
    }
    memcpy(bytes, out->text + begin, length);
    out->length = begin;
    ha_status status = HA_OK;
    for (size_t i = 0; i < length && status == HA_OK;) {
        size_t size = 1;
        while (size <= 4 && i + size <= length && ha_utf8_valid_prefix(bytes + i, size) < size) {
            size++;
        }
        const int valid = size <= 4 && i + size <= length;
        status = valid ? append(out, bytes + i, size, err) : append(out, "\xEF\xBF\xBD", 3, err);
        i += valid ? size : 1;
    }
    free(bytes);
    return status;
}

/* One piece that is no byte; `first`: nothing but white space that is dropped came before it. *dropped: it began with such. */
static ha_status
write_text(const ha_sentencepiece *sp, int32_t id, int first, int *dropped, ha_text_buf *out, ha_error *err)
{
    size_t length;
    const char *text = ha_vocab_text(sp->vocab, id, &length);
    ha_status status = HA_OK;
    *dropped = 0;
    if (sp->types[id] == HA_SPM_CONTROL) {
        return HA_OK;
    }
    if (sp->types[id] == HA_SPM_UNKNOWN) {
        return append(out, sp->unk_surface, sp->unk_surface_length, err);
    }
    if (first && (sp->rules.add_dummy_prefix || sp->rules.remove_extra_whitespaces) && length >= SPACE_SIZE && memcmp(text, SPACE, SPACE_SIZE) == 0) {
        text += SPACE_SIZE;
        length -= SPACE_SIZE;
        *dropped = !sp->rules.remove_extra_whitespaces;     /* else all white space at the start is */
    }
    while (length > 0 && status == HA_OK) {
        const int space = length >= SPACE_SIZE && memcmp(text, SPACE, SPACE_SIZE) == 0;
        const size_t size = space ? SPACE_SIZE : 1;
        status = append(out, space ? " " : text, 1, err);
        text += size;
        length -= size;
    }
    return status;
}

ha_status
ha_sentencepiece_decode(const ha_sentencepiece *sp, const int32_t *ids, size_t n, ha_text_buf *out, ha_error *err)
{
    int first = 1, dropped = 0;
    ha_status status = ha_text_buf_reserve(out, 1, err);
    size_t bytes_at = out->length, end;
    for (size_t i = 0; i <= n && status == HA_OK; i++) {
        if (i < n && sp->types[ids[i]] == HA_SPM_BYTE) {
            size_t length;
            const uint8_t byte = (uint8_t)ha_spm_byte(ha_vocab_text(sp->vocab, ids[i], &length), 6);
            status = append(out, &byte, 1, err);
            continue;
        }
        status = close_bytes(out, bytes_at, err);
        first &= !dropped && out->length == 0;
        if (i < n && status == HA_OK) {
            status = write_text(sp, ids[i], first, &dropped, out, err);
        }
        bytes_at = out->length;
    }
    if (status == HA_OK && sp->back.charsmap.n_units > 0) {
        ha_text_buf normal = {0};
        const ha_trie none = {0};
        status = normalize(&sp->back, &none, out->text, out->length, &normal, &end, err);
        const ha_text_buf swap = *out;
        *out = normal, normal = swap;
        ha_text_buf_free(&normal);
    }
    return status;
}
