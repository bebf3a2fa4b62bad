#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/sentencepiece.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

void
ha_sentencepiece_free(ha_sentencepiece *sp)
{
    free(sp->types);
    free(sp->scores);
    free(sp->ranks);
    free(sp->unk_surface);
    free(sp->specials);
    ha_trie_free(&sp->pieces);
    ha_trie_free(&sp->symbols);
    ha_charsmap_free(&sp->rules.charsmap);
    ha_charsmap_free(&sp->back.charsmap);
    memset(sp, 0, sizeof(*sp));
}

static ha_status
allocate(ha_sentencepiece *sp, const ha_vocab *vocab, ha_error *err)
{
    const size_t n = vocab->n_ids;
    sp->vocab = vocab;
    sp->n = n;
    sp->types = malloc(n + 1);
    sp->scores = malloc((n + 1) * sizeof(*sp->scores));
    sp->ranks = malloc((n + 1) * sizeof(*sp->ranks));
    sp->specials = malloc((n + 1) * sizeof(*sp->specials));
    return sp->types != NULL && sp->scores != NULL && sp->ranks != NULL && sp->specials != NULL ? HA_OK
           : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces", n);
}

/* ---- ranks of scores ---- */

typedef struct scored { float score; int32_t id; } scored;

static int
by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    return (x->score < y->score) - (x->score > y->score);
}

static ha_status
rank_scores(ha_sentencepiece *sp, ha_error *err)
{
    scored *order = malloc((sp->n + 1) * sizeof(*order));
    if (order == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces", sp->n);
    }
    for (size_t i = 0; i < sp->n; i++) {
        order[i] = (scored){sp->scores[i], (int32_t)i};
    }
    qsort(order, sp->n, sizeof(*order), by_score);
    for (size_t i = 0; i < sp->n; i++) {
        const int same = i > 0 && order[i].score == order[i - 1].score;
        sp->ranks[order[i].id] = same ? sp->ranks[order[i - 1].id] : (int32_t)i;
    }
    free(order);
    return HA_OK;
}

/* ---- a .model file ---- */

/* What sentencepiece itself checks when it loads a model. */
static ha_status
read_types(ha_sentencepiece *sp, const ha_spm_model *model, ha_error *err)
{
    size_t n_bytes = 0;
    float min_score = FLT_MAX;
    sp->unk_id = -1;
    for (size_t i = 0; i < sp->n; i++) {
        const ha_spm_piece p = model->pieces[i];
        const int byte = ha_spm_byte(p.piece.text, p.piece.length);
        sp->types[i] = (uint8_t)p.type;
        sp->scores[i] = p.score;
        sp->has_unused |= p.type == HA_SPM_UNUSED;
        if (p.type == HA_SPM_UNKNOWN) {
            if (sp->unk_id >= 0) {
                return ha_fail(err, HA_ERR_FORMAT, "pieces %d and %zu are both of type UNKNOWN", (int)sp->unk_id, i);
            }
            sp->unk_id = (int32_t)i;
        } else if (p.type == HA_SPM_BYTE) {
            if (byte < 0 || !model->byte_fallback) {
                return ha_fail(err, HA_ERR_FORMAT, "piece %zu is of type BYTE %s", i, byte < 0 ? "and names none" : "in a model without byte_fallback");
            }
            sp->byte_ids[byte] = (int32_t)i;
            n_bytes++;
        } else if (p.type == HA_SPM_NORMAL) {
            min_score = p.score < min_score ? p.score : min_score;
        }
    }
    sp->unk_score = min_score - 10;
    if (sp->unk_id < 0 || (model->byte_fallback && n_bytes != 256)) {
        return ha_fail(err, HA_ERR_FORMAT, "%s", sp->unk_id < 0 ? "no piece is of type UNKNOWN" : "byte_fallback without the pieces of all bytes");
    }
    return HA_OK;
}

static ha_status
build_tries(ha_sentencepiece *sp, const ha_spm_model *model, ha_error *err)
{
    ha_trie_key *keys = malloc((sp->n + 1) * sizeof(*keys));
    ha_status status = keys != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces", sp->n);
    for (int symbols = 0; symbols < 2 && status == HA_OK; symbols++) {
        size_t n = 0;
        for (size_t i = 0; i < sp->n; i++) {
            const uint8_t type = sp->types[i];
            if (type == HA_SPM_USER_DEFINED || (!symbols && sp->kind == HA_SPM_UNIGRAM && (type == HA_SPM_NORMAL || type == HA_SPM_UNUSED))) {
                keys[n++] = (ha_trie_key){model->pieces[i].piece.text, model->pieces[i].piece.length, (int32_t)i};
            }
        }
        status = ha_trie_build(keys, n, symbols ? &sp->symbols : &sp->pieces, err);
    }
    free(keys);
    return status;
}

static ha_status
read_rules(const ha_spm_rules *from, int suffix, ha_sp_rules *rules, ha_error *err)
{
    rules->add_dummy_prefix = from->add_dummy_prefix;
    rules->remove_extra_whitespaces = from->remove_extra_whitespaces;
    rules->escape_whitespaces = from->escape_whitespaces;
    rules->suffix = suffix;
    return from->charsmap.length > 0 ? ha_charsmap_parse((const uint8_t *)from->charsmap.text, from->charsmap.length, &rules->charsmap, err) : HA_OK;
}

ha_status
ha_sentencepiece_build(ha_sentencepiece *sp, const ha_spm_model *model, const ha_vocab *vocab, ha_error *err)
{
    sp->kind = model->kind;
    sp->byte_fallback = model->byte_fallback;
    TRY(allocate(sp, vocab, err));
    TRY(read_types(sp, model, err));
    TRY(build_tries(sp, model, err));
    TRY(rank_scores(sp, err));
    TRY(read_rules(&model->normalizer, model->treat_whitespace_as_suffix, &sp->rules, err));
    TRY(read_rules(&model->denormalizer, 0, &sp->back, err));
    sp->unk_surface_length = model->unk_surface.length;
    sp->unk_surface = malloc(sp->unk_surface_length + 1);
    if (sp->unk_surface == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    memcpy(sp->unk_surface, model->unk_surface.text, sp->unk_surface_length);
    return HA_OK;
}

/* ---- a vocabulary of GGUF ---- */

typedef struct special { size_t length; int32_t id; } special;

static int
by_length(const void *a, const void *b)
{
    const special *x = a, *y = b;
    return x->length != y->length ? (x->length < y->length) - (x->length > y->length) : (x->id > y->id) - (x->id < y->id);
}

static ha_status
sort_specials(ha_sentencepiece *sp, ha_error *err)
{
    special *order = malloc((sp->n + 1) * sizeof(*order));
    if (order == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces", sp->n);
    }
    for (size_t i = 0; i < sp->n; i++) {
        const uint8_t type = sp->types[i];
        size_t length;
        ha_vocab_text(sp->vocab, (int32_t)i, &length);
        if (length > 0 && (type == HA_SPM_CONTROL || type == HA_SPM_USER_DEFINED || type == HA_SPM_UNKNOWN)) {
            order[sp->n_specials++] = (special){length, (int32_t)i};
        }
    }
    qsort(order, sp->n_specials, sizeof(*order), by_length);
    for (size_t i = 0; i < sp->n_specials; i++) {
        sp->specials[i] = order[i].id;
    }
    free(order);
    return HA_OK;
}

ha_status
ha_sentencepiece_build_llama(ha_sentencepiece *sp, const float *scores, const uint8_t *types, int add_space_prefix, const ha_vocab *vocab, ha_error *err)
{
    sp->kind = HA_SPM_BPE;
    sp->llama = sp->byte_fallback = 1;
    sp->rules.escape_whitespaces = 1;
    sp->rules.add_dummy_prefix = add_space_prefix;
    TRY(allocate(sp, vocab, err));
    memcpy(sp->scores, scores, sp->n * sizeof(*scores));
    memcpy(sp->types, types, sp->n);
    for (unsigned byte = 0; byte < 256; byte++) {
        static const char digits[] = "0123456789ABCDEF";
        const char text[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        sp->byte_ids[byte] = ha_vocab_id(vocab, text, sizeof(text));
        if (sp->byte_ids[byte] < 0) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.tokens: no token '%.6s'", text);
        }
    }
    TRY(rank_scores(sp, err));
    return sort_specials(sp, err);
}
