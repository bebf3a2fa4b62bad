#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "tokenizer/model.h"

void
ha_vocab_free(ha_vocab *vocab)
{
    free(vocab->tokens);
    free(vocab->by_id);
    free(vocab->text);
    free(vocab->slots);
    memset(vocab, 0, sizeof(*vocab));
}

/* The slot of the text, or the free one where it would go. */
static ha_vocab_slot *
find(const ha_vocab *vocab, const char *text, size_t length, uint32_t hash)
{
    for (size_t i = hash & (vocab->n_slots - 1);; i = (i + 1) & (vocab->n_slots - 1)) {
        ha_vocab_slot *slot = &vocab->slots[i];
        if (slot->token == 0) {
            return slot;
        }
        const ha_vocab_token *token = &vocab->tokens[slot->token - 1];
        if (slot->hash == hash && token->length == length && memcmp(vocab->text + token->at, text, length) == 0) {
            return slot;
        }
    }
}

int32_t
ha_vocab_id(const ha_vocab *vocab, const char *text, size_t length)
{
    if (vocab->n_slots == 0) {
        return -1;
    }
    const ha_vocab_slot *slot = find(vocab, text, length, (uint32_t)ha_siphash(vocab->hash_key, text, length));
    return slot->token != 0 ? vocab->tokens[slot->token - 1].id : -1;
}

static int
grow_slots(ha_vocab *vocab)
{
    const size_t n_slots = vocab->n_slots == 0 ? 2048 : 2 * vocab->n_slots;
    ha_vocab_slot *slots = n_slots > UINT32_MAX ? NULL : calloc(n_slots, sizeof(*slots));
    if (slots == NULL) {
        return 0;
    }
    if (vocab->n_slots == 0) {
        ha_hash_key(vocab->hash_key, slots);
    }
    for (size_t i = 0; i < vocab->n_slots; i++) {
        if (vocab->slots[i].token != 0) {
            size_t j = vocab->slots[i].hash & (n_slots - 1);
            while (slots[j].token != 0) {
                j = (j + 1) & (n_slots - 1);
            }
            slots[j] = vocab->slots[i];
        }
    }
    free(vocab->slots);
    vocab->slots = slots;
    vocab->n_slots = n_slots;
    return 1;
}

/* *array with room for `needed` elements; *capacity says for how many there is. */
static int
grow_array(void **array, size_t *capacity, size_t needed, size_t size)
{
    if (needed > *capacity) {
        const size_t wanted = needed + needed / 2 + 256;
        void *grown = wanted > SIZE_MAX / size ? NULL : realloc(*array, wanted * size);
        if (grown == NULL) {
            return 0;
        }
        *array = grown;
        *capacity = wanted;
    }
    return 1;
}

/* Room for one more token of `length` bytes and for the ids below n_ids. */
static ha_status
reserve(ha_vocab *vocab, size_t length, size_t n_ids, ha_error *err)
{
    void *tokens = vocab->tokens, *by_id = vocab->by_id, *text = vocab->text;
    if (vocab->n_tokens > 0 && vocab->cap_tokens == 0) {
        return ha_fail(err, HA_ERR_FORMAT, "a token that the tables in the cache do not have");      /* its arrays are not its own */
    }
    if (length >= UINT32_MAX - vocab->n_text) {
        return ha_fail(err, HA_ERR_FORMAT, "the vocabulary has more than 4 GB of text");
    }
    const int grown = grow_array(&tokens, &vocab->cap_tokens, vocab->n_tokens + 1, sizeof(*vocab->tokens))
                      && grow_array(&by_id, &vocab->cap_ids, n_ids, sizeof(*vocab->by_id))
                      && grow_array(&text, &vocab->cap_text, vocab->n_text + length + 1, 1);
    vocab->tokens = tokens, vocab->by_id = by_id, vocab->text = text;
    if (!grown || (2 * (vocab->n_tokens + 1) > vocab->n_slots && !grow_slots(vocab))) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n_ids);
    }
    for (; vocab->n_ids < n_ids; vocab->n_ids++) {
        vocab->by_id[vocab->n_ids] = -1;
    }
    return HA_OK;
}

ha_status
ha_vocab_add(ha_vocab *vocab, const char *text, size_t length, uint64_t id, size_t max_ids, ha_error *err)
{
    size_t other_length;
    if (id >= max_ids || id >= INT32_MAX / 4) {
        return ha_fail(err, HA_ERR_FORMAT, "token '%.*s': id %llu is out of range for a vocabulary of this size",
                       (int)(length < 80 ? length : 80), text, (unsigned long long)id);
    }
    const char *other = ha_vocab_text(vocab, (int32_t)id, &other_length);
    if (other != NULL) {
        if (other_length == length && memcmp(other, text, length) == 0) {
            return HA_OK;
        }
        return ha_fail(err, HA_ERR_FORMAT, "tokens '%.80s' and '%.*s' have the same id %llu", other,
                       (int)(length < 80 ? length : 80), text, (unsigned long long)id);
    }
    const ha_status status = reserve(vocab, length, (size_t)id + 1, err);
    if (status != HA_OK) {
        return status;
    }
    const uint32_t hash = (uint32_t)ha_siphash(vocab->hash_key, text, length);
    ha_vocab_slot *slot = find(vocab, text, length, hash);
    if (slot->token != 0) {
        vocab->moved_from = vocab->tokens[slot->token - 1].id;
        vocab->by_id[vocab->moved_from] = -1;
    } else {
        vocab->tokens[vocab->n_tokens++] = (ha_vocab_token){(uint32_t)vocab->n_text, (uint32_t)length, -1};
        *slot = (ha_vocab_slot){hash, (uint32_t)vocab->n_tokens};
        memcpy(vocab->text + vocab->n_text, text, length);
        vocab->text[vocab->n_text + length] = '\0';
        vocab->n_text += length + 1;
    }
    vocab->tokens[slot->token - 1].id = (int32_t)id;
    vocab->by_id[id] = (int32_t)slot->token - 1;
    return HA_OK;
}

void
ha_tokens_free(ha_tokens *tokens)
{
    free(tokens->at);
    memset(tokens, 0, sizeof(*tokens));
}

ha_status
ha_tokens_reserve(ha_tokens *tokens, size_t extra, ha_error *err)
{
    if (extra > tokens->capacity - tokens->n) {
        const size_t capacity = (tokens->n + extra) * 2 + 64;
        ha_token *at = capacity > SIZE_MAX / sizeof(*at) ? NULL : realloc(tokens->at, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", capacity);
        }
        tokens->at = at;
        tokens->capacity = capacity;
    }
    return HA_OK;
}

void
ha_ids_free(ha_ids *ids)
{
    free(ids->at);
    memset(ids, 0, sizeof(*ids));
}

ha_status
ha_ids_reserve(ha_ids *ids, size_t extra, ha_error *err)
{
    if (ids->capacity - ids->n < extra) {
        const size_t capacity = (ids->n + extra) * 2;
        int32_t *at = realloc(ids->at, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", capacity);
        }
        ids->at = at;
        ids->capacity = capacity;
    }
    return HA_OK;
}
