/* The pieces of a text through the model, in batches: the words of a batch are cut, hashed and asked for in the table of whole words and in the cache before the
 * first of them is looked at, so that their lines of memory arrive while the others are worked on. */
#include "tokenizer/pipeline.h"
#include "tokenizer/word_table.h"

enum { BATCH = 64 };

/* A word that neither the table nor the cache has: appends to r->tokens. */
static ha_status
encode_word(const ha_word_run *r, ha_piece piece, ha_error *err)
{
    const ha_tokenizer *tok = r->tok;
    switch (tok->model_kind) {
    case HA_MODEL_WORDPIECE: return ha_wordpiece_encode(&tok->wordpiece, r->text, piece.begin, piece.end, r->tokens, err);
    case HA_MODEL_UNIGRAM: return ha_unigram_encode(&tok->unigram, r->text, piece.begin, piece.end, r->unigram, r->tokens, err);
    default: return ha_bpe_encode(&tok->bpe, r->text, piece.begin, piece.end, r->bpe, r->tokens, err);
    }
}

/* Room for what a batch takes without a word encoded anew. */
static ha_status
reserve(const ha_word_run *r, ha_error *err)
{
    enum { ROOM = BATCH * HA_CACHED_TOKENS };
    return r->ids != NULL ? ha_ids_reserve(r->ids, ROOM, err) : ha_tokens_reserve(r->tokens, ROOM, err);
}

static ha_status
encode_new_word(const ha_word_run *r, ha_piece piece, ha_word_entry *slot, ha_word_key key, ha_error *err)
{
    ha_tokens *tokens = r->tokens;
    if (r->ids != NULL) {
        tokens->n = 0;
    }
    const size_t first = tokens->n;
    ha_status status = encode_word(r, piece, err);
    const size_t n = tokens->n - first;
    if (status == HA_OK && slot != NULL) {
        ha_cache_put(slot, key, tokens->at + first, n);
    }
    if (status == HA_OK && r->ids != NULL) {
        status = ha_ids_reserve(r->ids, n, err);
        for (size_t i = 0; i < n && status == HA_OK; i++) {
            r->ids->at[r->ids->n++] = tokens->at[i].id;
        }
    }
    return status == HA_OK ? reserve(r, err) : status;
}

/* What became of a batch's words in the table (ids, -1: not there) and where they would be in the cache. */
typedef struct asked {
    int32_t ids[BATCH];
    ha_word_key keys[BATCH];
    uint64_t hashes[BATCH];
} asked;

/* The word's slot in the cache, which may be another's; NULL: it has none. */
static ha_word_entry *
slot_of(const ha_word_run *r, const asked *a, size_t k)
{
    return r->cache != NULL && a->keys[k].high != 0 ? ha_cache_slot(r->cache, a->hashes[k]) : NULL;
}

static ha_status
put_ids(const ha_word_run *r, const ha_piece *pieces, const asked *a, size_t n, ha_error *err)
{
    ha_ids *ids = r->ids;
    int32_t *to = ids->at + ids->n;
    ha_status status = HA_OK;
    for (size_t k = 0; k < n && status == HA_OK; k++) {
        if (a->ids[k] >= 0) {
            *to++ = a->ids[k];
            continue;
        }
        ha_word_entry *slot = slot_of(r, a, k);
        if (slot != NULL && ha_cache_has(slot, a->keys[k])) {
            memcpy(to, slot->ids, sizeof(slot->ids));       /* what is too much is written over */
            to += slot->n;
            continue;
        }
        ids->n = (size_t)(to - ids->at);
        status = encode_new_word(r, pieces[k], slot, a->keys[k], err);
        to = ids->at + ids->n;
    }
    ids->n = (size_t)(to - ids->at);
    return status;
}

static ha_status
put_tokens(const ha_word_run *r, const ha_piece *pieces, const asked *a, size_t n, ha_error *err)
{
    ha_tokens *tokens = r->tokens;
    ha_status status = HA_OK;
    for (size_t k = 0; k < n && status == HA_OK; k++) {
        ha_word_entry *slot = slot_of(r, a, k);
        if (a->ids[k] >= 0) {
            tokens->at[tokens->n++] = (ha_token){a->ids[k], pieces[k].begin, pieces[k].end, 0};
        } else if (slot != NULL && ha_cache_has(slot, a->keys[k])) {
            ha_cache_get(slot, pieces[k].begin, tokens);
        } else {
            status = encode_new_word(r, pieces[k], slot, a->keys[k], err);
        }
    }
    return status;
}

/* Up to BATCH pieces, none an added token. */
static ha_status
encode_batch(const ha_word_run *r, const ha_piece *pieces, size_t n, ha_error *err)
{
    const ha_word_table *table = &r->tok->table;
    const int has_table = table->n_lines > 0;
    asked a;
    for (size_t k = 0; k < n; k++) {
        const size_t length = pieces[k].end - pieces[k].begin;
        a.keys[k] = ha_word_key_padded(r->text + pieces[k].begin, length <= HA_CACHED_BYTES ? length : 0);
        a.hashes[k] = ha_word_hash(a.keys[k], table->seed);
        if (has_table) {
            __builtin_prefetch(ha_word_table_line(table, a.hashes[k]));
        } else if (r->cache != NULL) {
            __builtin_prefetch(ha_cache_slot(r->cache, a.hashes[k]));
        }
    }
    for (size_t k = 0; k < n; k++) {
        a.ids[k] = has_table && a.keys[k].high != 0 ? ha_word_table_find(table, ha_word_table_line(table, a.hashes[k]), a.keys[k]) : -1;
        if (has_table && a.ids[k] < 0 && r->cache != NULL) {
            __builtin_prefetch(ha_cache_slot(r->cache, a.hashes[k]));
        }
    }
    const ha_status status = reserve(r, err);
    return status != HA_OK ? status : r->ids != NULL ? put_ids(r, pieces, &a, n, err) : put_tokens(r, pieces, &a, n, err);
}

static ha_status
put_added(const ha_word_run *r, ha_piece piece, ha_error *err)
{
    const ha_status status = r->ids != NULL ? ha_ids_reserve(r->ids, 1, err) : ha_tokens_reserve(r->tokens, 1, err);
    if (status == HA_OK && r->ids != NULL) {
        r->ids->at[r->ids->n++] = piece.added_id;
    } else if (status == HA_OK) {
        r->tokens->at[r->tokens->n++] = (ha_token){piece.added_id, piece.begin, piece.end, 1};
    }
    return status;
}

ha_status
ha_encode_pieces(const ha_word_run *r, const ha_pieces *pieces, const ha_pre_step *cut, ha_error *err)
{
    ha_piece batch[BATCH];
    size_t n = 0;
    ha_status status = HA_OK;
    for (size_t p = 0; p < pieces->n && status == HA_OK; p++) {
        const ha_piece piece = pieces->at[p];
        if (piece.added_id >= 0) {
            status = encode_batch(r, batch, n, err);
            n = 0;
            status = status == HA_OK ? put_added(r, piece, err) : status;
            continue;
        }
        size_t at = piece.begin;
        do {
            const size_t before = at;
            if (cut != NULL) {
                n += ha_pre_cut(cut, r->text, &at, piece.end, batch + n, BATCH - n);
            } else {
                batch[n++] = piece;
                at = piece.end;
            }
            if (n == BATCH) {
                status = encode_batch(r, batch, n, err);
                n = 0;
            }
            status = status == HA_OK ? ha_pulse_beat(r->pulse, at - before, err) : status;
        } while (at < piece.end && status == HA_OK);
    }
    return status == HA_OK ? encode_batch(r, batch, n, err) : status;
}
