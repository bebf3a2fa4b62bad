/* Words of up to 15 bytes and what a model made of them: a direct-mapped table, one per thread, that lives as long as its tokenizer and never grows. */
#ifndef HARMAUG_TOKENIZER_WORD_CACHE_H
#define HARMAUG_TOKENIZER_WORD_CACHE_H

#include <stdint.h>
#include <string.h>

#include "core/swar.h"
#include "tokenizer/model.h"

enum { HA_CACHED_BYTES = 15, HA_CACHED_TOKENS = 3, HA_CACHE_BITS = 16 };

/* The bytes, zero-padded, and in the last byte the length: two words are the same when their keys are. */
typedef struct ha_word_key { uint64_t low, high; } ha_word_key;

typedef struct ha_word_entry {     /* half a cache line */
    ha_word_key key;                /* 0, 0: a free slot */
    int32_t ids[HA_CACHED_TOKENS];
    uint16_t lengths;               /* 4 bits a token */
    uint16_t n;
} ha_word_entry;

/* length <= HA_CACHED_BYTES, 0 giving the key of a free slot; 16 bytes of text can be read, whatever they are. */
static inline ha_word_key
ha_word_key_padded(const uint8_t *text, size_t length)
{
#define HA_LOW_BYTES(n) ((n) >= 8 ? UINT64_MAX : ((uint64_t)1 << (8 * (n) % 64)) - 1)
#define HA_MASK(n) {HA_LOW_BYTES(n), (n) > 8 ? HA_LOW_BYTES((n) - 8) : 0}
    static const uint64_t masks[HA_CACHED_BYTES + 1][2] = {
        HA_MASK(0), HA_MASK(1), HA_MASK(2), HA_MASK(3), HA_MASK(4), HA_MASK(5), HA_MASK(6), HA_MASK(7),
        HA_MASK(8), HA_MASK(9), HA_MASK(10), HA_MASK(11), HA_MASK(12), HA_MASK(13), HA_MASK(14), HA_MASK(15),
    };
    return (ha_word_key){ha_load_u64(text) & masks[length][0], (ha_load_u64(text + 8) & masks[length][1]) | (uint64_t)length << 56};
#undef HA_MASK
#undef HA_LOW_BYTES
}

/* The same; nothing outside the word is read. */
static inline ha_word_key
ha_word_key_of(const uint8_t *text, size_t length)
{
    uint8_t bytes[16] = {0};
    memcpy(bytes, text, length);
    return ha_word_key_padded(bytes, length);
}

static inline uint64_t
ha_word_hash(ha_word_key key, uint64_t seed)
{
    const uint64_t low = key.low ^ seed;
    const uint64_t h = (low ^ key.high >> 32) * 0x9E3779B97F4A7C15u ^ (key.high + 1) * 0xC2B2AE3D27D4EB4Fu;
    return (h ^ h >> 29) * 0xD6E8FEB86659FD93u;
}

static inline ha_word_entry *
ha_cache_slot(ha_word_entry *cache, uint64_t hash)
{
    return &cache[hash >> (64 - HA_CACHE_BITS)];
}

static inline int
ha_cache_has(const ha_word_entry *slot, ha_word_key key)
{
    return slot->key.low == key.low && slot->key.high == key.high;
}

/* Appends the tokens of the slot's word, which stands at `begin`; `out` has room for HA_CACHED_TOKENS: what is too much is written over. */
static inline void
ha_cache_get(const ha_word_entry *slot, size_t begin, ha_tokens *out)
{
    ha_token *to = out->at + out->n;
    uint32_t at = (uint32_t)begin, lengths = slot->lengths;
    for (unsigned i = 0; i < HA_CACHED_TOKENS; i++) {
        const uint32_t end = at + (lengths & 15);
        to[i] = (ha_token){slot->ids[i], at, end, 0};
        at = end;
        lengths >>= 4;
    }
    out->n += slot->n;
}

static inline void
ha_cache_put(ha_word_entry *slot, ha_word_key key, const ha_token *tokens, size_t n)
{
    if (n > HA_CACHED_TOKENS) {
        return;
    }
    slot->key = key;
    slot->n = (uint16_t)n;
    slot->lengths = 0;
    for (size_t i = 0; i < n; i++) {
        slot->ids[i] = tokens[i].id;
        slot->lengths |= (uint16_t)((tokens[i].end - tokens[i].begin) << (4 * i));
    }
}

#endif
