/* Unigram tokenizers whose pipeline is Strip, Precompiled, Replace of runs of spaces, and Metaspace that splits (DeBERTa-v2/v3, XLM-R): without spans a text is
 * read once, word by word, and words that come again are looked up. What the general path does differently from word to word is left to it. */
#include <string.h>

#include "core/swar.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/unicode.h"

enum { IN_WORD, SPACE, OTHER };     /* a byte of ASCII: part of a word as it is, a space once it is normalized, anything else */

static int
class_of(const ha_charsmap *map, uint8_t c)
{
    const char *text = NULL;
    size_t length = 1;
    const int has_rule = map != NULL && ha_charsmap_find(map, 0, &c, 1, &text, &length) > 0;
    if (c > 0x20 && c < 0x7F) {
        return has_rule ? OTHER : IN_WORD;
    }
    return has_rule ? length == 1 && text[0] == ' ' ? SPACE : OTHER : c == ' ' ? SPACE : OTHER;
}

static int
holds(const char *text, size_t length, const uint8_t *part, size_t part_length)
{
    for (size_t i = 0; i + part_length <= length; i++) {
        if (memcmp(text + i, part, part_length) == 0) {
            return 1;
        }
    }
    return 0;
}

/* Where no token holds the last two bytes of a word, its last token is that of its last byte, and the others are those of the word without it. */
static void
plan_tails(ha_tokenizer *tok)
{
    ha_word_plan *plan = &tok->words;
    const ha_unigram *model = &tok->unigram;
    const uint8_t *text = (const uint8_t *)tok->vocab.text;
    uint8_t pairs[1 << 14] = {0};
    size_t length;
    for (size_t i = 1; i < tok->vocab.n_text; i++) {        /* texts end in NUL bytes, which no word holds */
        const unsigned pair = (unsigned)text[i - 1] << 7 | text[i];
        pairs[(text[i - 1] | text[i]) < 128 ? pair : 0] = 1;
    }
    for (unsigned pair = 0; pair < 1 << 14; pair++) {
        plan->joins[pair >> 7][pair >> 6 & 1] |= (uint64_t)pairs[pair] << (pair & 63);
    }
    for (unsigned c = 0; c < 128; c++) {
        const uint8_t byte = (uint8_t)c;
        int32_t id = -1;
        const int is_tail = (ha_uc_flags(c) & HA_UC_PUNCT) && ha_trie_longest(&model->trie, &byte, 1, &id) == 1 && id != model->unk_id;
        plan->tail[c] = is_tail ? id : -1;
    }
    for (size_t i = 0; i < tok->added.n; i++) {
        const char *written = ha_added_token_written(&tok->added, &tok->added.at[i], &length);
        for (size_t k = 0; k < length && tok->added.at[i].normalized; k++) {
            if ((uint8_t)written[k] < 128) {
                plan->tail[(uint8_t)written[k]] = -1;      /* it may belong to that added token */
            }
        }
    }
}

void
ha_unigram_plan(ha_tokenizer *tok)
{
    ha_word_plan *plan = &tok->words;
    const ha_normalizer *normalizer = &tok->normalizer;
    const ha_norm_step *step = normalizer->steps, *end = step + normalizer->n_steps;
    const ha_metaspace *m = &tok->pre.steps[0].metaspace;
    memset(plan, 0, sizeof(*plan));
    if (tok->model_kind != HA_MODEL_UNIGRAM || tok->pre.n_steps != 1 || tok->pre.steps[0].kind != HA_PRE_METASPACE || !m->split
        || m->prepend != HA_PREPEND_ALWAYS || m->length < 2) {
        return;
    }
    if (step < end && step->pass == HA_NORM_STRIP) {
        plan->strip_left = step->left;
        plan->strip_right = step->right;
        step++;
    }
    if (step < end && step->pass == HA_NORM_PRECOMPILED) {
        plan->precompiled = step++;
    }
    if (step + 1 != end || step->pass != HA_NORM_REPLACE || (step->pattern != HA_NORM_TWO_SPACES && step->pattern != HA_NORM_SPACES)
        || !((step->to_length == 1 && step->to[0] == ' ') || (step->to_length == m->length && memcmp(step->to, m->sign, m->length) == 0))) {
        return;
    }
    for (unsigned c = 0; c < 128; c++) {
        plan->ascii[c] = (uint8_t)class_of(plan->precompiled != NULL ? &plan->precompiled->charsmap : NULL, (uint8_t)c);
        if ((c > 0x20 && c < 0x7F && plan->ascii[c] != IN_WORD) || (c == ' ' && plan->ascii[c] != SPACE)) {
            return;
        }
    }
    if (plan->ascii['\n'] != SPACE) {
        plan->ascii['\r'] = OTHER;      /* U+000D U+000A is one cluster: the second is dropped with the first's rule */
    }
    for (size_t i = 0; i < tok->added.n; i++) {
        size_t length;
        const char *text = ha_added_token_written(&tok->added, &tok->added.at[i], &length);
        if (tok->added.at[i].normalized && (memchr(text, ' ', length) != NULL || holds(text, length, m->sign, m->length))) {
            return;     /* such a token may lie across words */
        }
    }
    plan->sign = ha_unigram_find_sign(&tok->unigram, m->sign, m->length);
    plan_tails(tok);
    plan->on = 1;
}

/* ---- words ---- */

typedef struct reader {
    const ha_tokenizer *tok;
    ha_norm_scratch *norm;
    ha_unigram_scratch *scratch;
    ha_tokens *out;
    ha_error *err;
    int last;           /* of the normalized text so far: 0 nothing, 1 it ends in a word, 2 in a space */
    int given_up;       /* the general path must read this text */
} reader;

static int
holds_added(const ha_added_tokens *added, const uint8_t *text, size_t n)
{
    int32_t index;
    for (size_t i = 0; i < n && added->normalized.units != NULL; i++) {
        if (added->first_normalized[text[i]] && ha_trie_longest(&added->normalized, text + i, n - i, &index) > 0) {
            return 1;
        }
    }
    return 0;
}

/* The tokens of the sign and `n` bytes of a normalized word. */
static ha_status
encode_word(reader *r, const uint8_t *word, size_t n)
{
    const ha_metaspace *m = &r->tok->pre.steps[0].metaspace;
    ha_text_buf *buf = &r->norm->a;
    if (holds_added(&r->tok->added, word, n)) {
        r->given_up = 1;
        return HA_OK;
    }
    ha_status status = ha_tokens_reserve(r->out, n + 1, r->err);
    if (status != HA_OK || (n > 0 && n <= HA_SHORT_WORD && ha_unigram_encode_short(&r->tok->unigram, &r->tok->words.sign, word, n, r->out))) {
        return status;
    }
    buf->length = 0;
    status = ha_text_buf_reserve(buf, n + m->length, r->err);
    if (status != HA_OK) {
        return status;
    }
    memcpy(buf->text, m->sign, m->length);
    memcpy(buf->text + m->length, word, n);
    return ha_unigram_encode(&r->tok->unigram, buf->text, 0, n + m->length, r->scratch, r->out, r->err);
}

/* A word with characters beyond ASCII, normalized on its own: nothing joins it to the spaces beside it. *single: it is one word still. */
static ha_status
encode_unicode_word(reader *r, const uint8_t *word, size_t n, int *single)
{
    const ha_metaspace *m = &r->tok->pre.steps[0].metaspace;
    size_t size;
    *single = 0;
    const unsigned first = ha_uc_grapheme_class(ha_utf8_decode(word, &size));
    const unsigned last = ha_uc_grapheme_class(ha_utf8_decode(word + ha_utf8_back(word, n), &size));
    if ((first & HA_GR_JOIN) || (last & HA_GR_PREPEND)) {
        r->given_up = 1;
        return HA_OK;
    }
    ha_text_buf *in = &r->norm->a, *normal = &r->norm->b;
    in->length = normal->length = 0;
    in->aligned = normal->aligned = 0;
    ha_status status = ha_text_buf_append_original(in, word, 0, n, r->err);
    if (status == HA_OK && r->tok->words.precompiled != NULL) {
        status = ha_norm_precompiled(r->tok->words.precompiled, in, normal, r->err);
    } else if (status == HA_OK) {
        status = ha_text_buf_append_original(normal, word, 0, n, r->err);
    }
    if (status != HA_OK || holds((const char *)normal->text, normal->length, m->sign, m->length)) {
        r->given_up = 1;
        return status;
    }
    size_t n_words = 0, begin = 0;
    for (size_t i = 0; i <= normal->length && status == HA_OK && !r->given_up; i++) {
        if (i < normal->length && normal->text[i] != ' ') {
            continue;
        }
        if (i > begin) {
            status = encode_word(r, normal->text + begin, i - begin);
            n_words++;
            r->last = 1;
        }
        r->last = i < normal->length ? 2 : r->last;
        begin = i + 1;
    }
    *single = n_words == 1 && r->last == 1 && normal->text[0] != ' ';
    return status;
}

/* ---- the cache: raw words of up to 16 bytes, zero-padded, and up to 3 tokens ---- */

static ha_cached_word *
slot_of(const ha_unigram_scratch *scratch, const uint64_t word[2])
{
    const uint64_t h = (word[0] * 0x9E3779B97F4A7C15u) ^ (word[1] * 0xC2B2AE3D27D4EB4Fu);
    return scratch->cache + ((h ^ h >> 29) * 0xBF58476D1CE4E5B9u >> (64 - HA_WORD_CACHE_BITS)) * HA_WORD_CACHE_WAYS;
}

static int
is_word(const ha_cached_word *slot, const uint64_t word[2])
{
    return slot->word[0] == word[0] && slot->word[1] == word[1];
}

static void
remember(const reader *r, ha_cached_word *slot, const uint64_t word[2], size_t first)
{
    const size_t n = r->out->n - first;
    if (n == 0 || n > HA_CACHED_IDS) {
        return;
    }
    slot[1] = slot[0];
    *slot = (ha_cached_word){{word[0], word[1]}, {0}, (uint32_t)n};
    for (size_t i = 0; i < n; i++) {
        slot->ids[i] = r->out->at[first + i].id;
    }
}

/* ---- the text ---- */

/* Bit 7 of each byte that ends a word (up to U+0020, and U+007F); those above the lowest set one are not exact. */
static uint64_t
stops(uint64_t x)
{
    const uint64_t y = x ^ HA_EACH(0x7F);
    return (((x - HA_EACH(0x21)) & ~x) | ((y - HA_EACH(1)) & ~y)) & HA_EACH(0x80);
}

/* The word at p: its length, and its first 16 bytes zero-padded in `word`. */
static size_t
read_word(const uint8_t *p, const uint8_t *end, uint64_t word[2])
{
    uint8_t tail[16];
    const uint8_t *from = p;
    if ((size_t)(end - p) < 16) {
        memset(tail, 0, sizeof(tail));
        memcpy(tail, p, (size_t)(end - p));
        from = tail;
    }
    word[0] = ha_load_u64(from);
    word[1] = ha_load_u64(from + 8);
    uint64_t stop = stops(word[0]);
    if (stop != 0) {
        const size_t n = ha_swar_lowest(stop);
        word[0] &= ((uint64_t)1 << 8 * n) - 1;
        word[1] = 0;
        return n;
    }
    stop = stops(word[1]);
    if (stop != 0) {
        const size_t n = ha_swar_lowest(stop);
        word[1] &= ((uint64_t)1 << 8 * n) - 1;
        return 8 + n;
    }
    size_t n = 16;
    while (p + n < end && p[n] > 0x20 && p[n] != 0x7F) {
        n++;
    }
    return n;
}

/* How many bytes of an ASCII word stand before its tail; `word` is cut to them. */
static size_t
cut_tail(const ha_word_plan *plan, const uint8_t *p, size_t n, uint64_t word[2])
{
    size_t core = n;
    while (core > 1 && plan->tail[p[core - 1]] >= 0 && (plan->joins[p[core - 2]][p[core - 1] >> 6] >> (p[core - 1] & 63) & 1) == 0) {
        core--;
    }
    if (core < 8) {
        word[0] &= ((uint64_t)1 << 8 * core) - 1;
        word[1] = 0;
    } else if (core < 16) {
        word[1] &= ((uint64_t)1 << 8 * (core - 8)) - 1;
    }
    return core;
}

static ha_status
encode_new_word(reader *r, const uint8_t *p, size_t n, const uint64_t word[2], ha_cached_word *slot)
{
    const size_t first = r->out->n;
    const int ascii = n <= 16 ? ((word[0] | word[1]) & HA_EACH(0x80)) == 0 : ha_utf8_ascii_prefix(p, n) == n;
    int single = 1;
    const ha_status status = ascii ? encode_word(r, p, n) : encode_unicode_word(r, p, n, &single);
    r->last = ascii ? 1 : r->last;
    if (status == HA_OK && slot != NULL && single && !r->given_up) {
        remember(r, slot, word, first);
    }
    return status;
}

static ha_status
encode_segment(reader *r, const uint8_t *text, size_t n)
{
    const ha_word_plan *plan = &r->tok->words;
    const uint8_t *p = text, *end = text + n;
    size_t size;
    while (plan->strip_left && p < end && (ha_uc_flags(ha_utf8_decode(p, &size)) & HA_UC_WHITE_SPACE)) {
        p += size;
    }
    while (plan->strip_right && end > p) {
        const size_t back = ha_utf8_back(p, (size_t)(end - p));
        if ((ha_uc_flags(ha_utf8_decode(p + back, &size)) & HA_UC_WHITE_SPACE) == 0) {
            break;
        }
        end = p + back;
    }
    r->last = 0;
    ha_status status = ha_tokens_reserve(r->out, (size_t)(end - p) / 2 + 8, r->err);
    while (p < end && status == HA_OK && !r->given_up) {
        uint64_t word[2];
        const size_t length = read_word(p, end, word);
        if (length == 0) {
            r->given_up = plan->ascii[*p++] != SPACE;
            r->last = 2;
            continue;
        }
        const int is_short = length <= 16, ascii = ((word[0] | word[1]) & HA_EACH(0x80)) == 0;
        const size_t core = is_short && ascii && plan->tail[p[length - 1]] >= 0 ? cut_tail(plan, p, length, word) : length;
        ha_cached_word *slot = is_short && r->scratch->cache != NULL ? slot_of(r->scratch, word) : NULL;
        if (slot != NULL && !is_word(slot, word) && is_word(slot + 1, word)) {
            const ha_cached_word swap = slot[0];
            slot[0] = slot[1], slot[1] = swap;
        }
        if (slot != NULL && is_word(slot, word)) {      /* a free slot is all zero, which no word is */
            if (r->out->capacity - r->out->n < HA_CACHED_IDS + 16) {
                status = ha_tokens_reserve(r->out, (size_t)(end - p) / 2 + HA_CACHED_IDS + 16, r->err);
                continue;
            }
            ha_token *out = r->out->at + r->out->n;
            for (size_t i = 0; i < HA_CACHED_IDS; i++) {
                out[i] = (ha_token){.id = slot->ids[i]};
            }
            r->out->n += slot->n;
            r->last = 1;
        } else {
            status = encode_new_word(r, p, core, word, slot);
            status = status == HA_OK ? ha_tokens_reserve(r->out, 16, r->err) : status;
        }
        for (size_t i = core; i < length && status == HA_OK; i++) {
            r->out->at[r->out->n++] = (ha_token){.id = plan->tail[p[i]]};
        }
        p += length;
        status = status == HA_OK ? ha_pulse_beat(r->scratch->pulse, length, r->err) : status;
    }
    return status == HA_OK && r->last == 2 && !r->given_up ? encode_word(r, p, 0) : status;
}

ha_status
ha_unigram_encode_text(const ha_tokenizer *tok, const uint8_t *text, size_t n, int skip_special, ha_norm_scratch *norm,
                       ha_unigram_scratch *scratch, ha_pieces *pieces, ha_tokens *out, int *done, ha_error *err)
{
    reader r = {tok, norm, scratch, out, err, 0, 0};
    *done = 0;
    pieces->n = out->n = 0;
    norm->a.aligned = norm->b.aligned = 0;
    ha_unigram_scratch_use_cache(scratch);
    ha_status status = ha_added_tokens_split(&tok->added, 0, skip_special, text, 0, n, pieces, err);
    for (size_t i = 0; i < pieces->n && status == HA_OK && !r.given_up; i++) {
        const ha_piece piece = pieces->at[i];
        if (piece.added_id < 0) {
            status = encode_segment(&r, text + piece.begin, piece.end - piece.begin);
            continue;
        }
        status = ha_tokens_reserve(out, 1, err);
        if (status == HA_OK) {
            out->at[out->n++] = (ha_token){.id = piece.added_id, .added = 1};
        }
    }
    *done = status == HA_OK && !r.given_up;
    return status;
}
