#include <stdlib.h>
#include <string.h>

#include "tokenizer/model.h"

enum { CHUNK = 1 << 16 };

typedef struct ha_vocab_chunk {     /* texts don't move: the map borrows them */
    struct ha_vocab_chunk *next;
    size_t used, size;
    char text[];
} ha_vocab_chunk;

void
ha_vocab_free(ha_vocab *vocab)
{
    while (vocab->chunks != NULL) {
        ha_vocab_chunk *next = vocab->chunks->next;
        free(vocab->chunks);
        vocab->chunks = next;
    }
    ha_strmap_free(&vocab->map);
    free(vocab->tokens);
    free(vocab->by_id);
    memset(vocab, 0, sizeof(*vocab));
}

static const char *
keep(ha_vocab *vocab, const char *text, size_t length)
{
    if (vocab->chunks == NULL || vocab->chunks->size - vocab->chunks->used < length + 1) {
        const size_t size = length + 1 > CHUNK ? length + 1 : CHUNK;
        ha_vocab_chunk *chunk = size > SIZE_MAX / 2 ? NULL : malloc(sizeof(*chunk) + size);
        if (chunk == NULL) {
            return NULL;
        }
        *chunk = (ha_vocab_chunk){vocab->chunks, 0, size};
        vocab->chunks = chunk;
    }
    char *kept = vocab->chunks->text + vocab->chunks->used;
    memcpy(kept, text, length);
    kept[length] = '\0';
    vocab->chunks->used += length + 1;
    return kept;
}

static ha_status
grow(ha_vocab *vocab, size_t n_ids, ha_error *err)
{
    if (n_ids > vocab->cap_ids) {
        int32_t *by_id = realloc(vocab->by_id, n_ids * 2 * sizeof(*by_id));
        if (by_id == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n_ids);
        }
        vocab->by_id = by_id;
        vocab->cap_ids = n_ids * 2;
    }
    for (; vocab->n_ids < n_ids; vocab->n_ids++) {
        vocab->by_id[vocab->n_ids] = -1;
    }
    if (vocab->n_tokens == vocab->cap_tokens) {
        const size_t capacity = vocab->cap_tokens * 2 + 256;
        ha_vocab_token *tokens = realloc(vocab->tokens, capacity * sizeof(*tokens));
        if (tokens == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", capacity);
        }
        vocab->tokens = tokens;
        vocab->cap_tokens = capacity;
    }
    if (vocab->map.slots == NULL && !ha_strmap_init(&vocab->map, 1024)) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n_ids);
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
    const ha_status status = grow(vocab, (size_t)id + 1, err);
    if (status != HA_OK) {
        return status;
    }
    uint32_t index;
    if (ha_strmap_get(&vocab->map, text, length, &index)) {
        vocab->by_id[vocab->tokens[index].id] = -1;
    } else {
        index = (uint32_t)vocab->n_tokens;
        const char *kept = keep(vocab, text, length);
        if (kept == NULL || ha_strmap_put(&vocab->map, kept, length, index) == HA_STRMAP_NOMEM) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", vocab->n_tokens);
        }
        vocab->tokens[vocab->n_tokens++] = (ha_vocab_token){kept, length, -1};
    }
    vocab->tokens[index].id = (int32_t)id;
    vocab->by_id[id] = (int32_t)index;
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
