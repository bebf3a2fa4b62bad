/* Words of up to 15 bytes and what a model made of them: a direct-mapped table, one per thread, that lives as long as its tokenizer and never grows. */
#ifndef HARMAUG_TOKENIZER_WORD_CACHE_H
#define HARMAUG_TOKENIZER_WORD_CACHE_H

#include <stdint.h>
#include <string.h>

#include "tokenizer/model.h"

enum { HA_CACHED_BYTES = 15, HA_CACHED_TOKENS = 3, HA_CACHE_BITS = 16 };

/* The bytes, zero-padded, and in the last byte the length: two words are the same when their keys are. */
typedef struct ha_word_key { uint64_t low, high; } ha_word_key;

/* A slot of a BPE model's table of whole words; key 0, 0: free. */
typedef struct ha_bpe_word { ha_word_key key; int32_t id; } ha_bpe_word;

typedef struct ha_word_entry {     /* half a cache line */
    ha_word_key key;                /* 0, 0: a free slot */
    int32_t ids[HA_CACHED_TOKENS];
    uint16_t lengths;               /* 4 bits a token */
    uint16_t n;
} ha_word_entry;

static inline uint64_t
ha_load_u64(const uint8_t *text)
{
    uint64_t word;
    memcpy(&word, text, sizeof(word));
    return word;
}

/* 1 <= length <= HA_CACHED_BYTES. Nothing outside the word is read. */
static inline ha_word_key
ha_word_key_of(const uint8_t *text, size_t length)
{
    ha_word_key key = {0, (uint64_t)length << 56};
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    uint8_t bytes[16] = {0};
    memcpy(bytes, text, length);
    key.low = ha_load_u64(bytes);
    key.high = ha_load_u64(bytes + 8) | (uint64_t)length;
#else
    if (length >= 8) {
        key.low = ha_load_u64(text);
        key.high |= length > 8 ? ha_load_u64(text + length - 8) >> (8 * (16 - length)) : 0;
    } else if (length >= 4) {
        uint32_t first, last;
        memcpy(&first, text, 4);
        memcpy(&last, text + length - 4, 4);
        key.low = first | (uint64_t)last << (8 * (length - 4));
    } else {
        key.low = text[0] | (uint64_t)text[length / 2] << (8 * (length / 2)) | (uint64_t)text[length - 1] << (8 * (length - 1));
    }
#endif
    return key;
}

static inline uint64_t
ha_word_hash(ha_word_key key)
{
    const uint64_t h = (key.low ^ key.high >> 32) * 0x9E3779B97F4A7C15u ^ (key.high + 1) * 0xC2B2AE3D27D4EB4Fu;
    return (h ^ h >> 29) * 0xD6E8FEB86659FD93u;
}

static inline ha_word_entry *
ha_cache_slot(ha_word_entry *cache, ha_word_key key)
{
    return &cache[ha_word_hash(key) >> (64 - HA_CACHE_BITS)];
}

/* Asks for the word's slot, which lies far from the processor more often than not. */
static inline void
ha_cache_ask(ha_word_entry *cache, const uint8_t *text, size_t length)
{
    if (length - 1 < HA_CACHED_BYTES) {
        __builtin_prefetch(ha_cache_slot(cache, ha_word_key_of(text, length)));
    }
}

/* Appends the word's tokens, when it is there; `out` has room. */
static inline int
ha_cache_get(const ha_word_entry *slot, ha_word_key key, size_t begin, ha_tokens *out)
{
    if (slot->key.low != key.low || slot->key.high != key.high) {
        return 0;
    }
    ha_token *to = out->at + out->n;
    uint32_t at = (uint32_t)begin, lengths = slot->lengths;
    for (unsigned i = 0; i < HA_CACHED_TOKENS; i++) {       /* room is there for all; what is too much is written over */
        const uint32_t end = at + (lengths & 15);
        to[i] = (ha_token){slot->ids[i], at, end, 0};
        at = end;
        lengths >>= 4;
    }
    out->n += slot->n;
    return 1;
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
