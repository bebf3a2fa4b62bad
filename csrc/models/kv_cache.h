/* Keys and values of one run of positions: a prompt (shared by all its samples), or one sample's own continuation. */
#ifndef HARMAUG_MODELS_KV_CACHE_H
#define HARMAUG_MODELS_KV_CACHE_H

#include <stddef.h>

#include "core/status.h"

/* Rows of the attention's query tiles. A cache's capacity is a multiple of it and its rows are zeroed at birth, so that a tile may read to its
 * own end, whatever the length: what a row sums over then depends on its position alone. */
#define HA_KV_TILE 32

typedef struct ha_kv_cache {
    size_t n_layers, n_kv_heads, head_dim;
    size_t capacity, length;        /* positions */
    float *data;                    /* (n_layers, 2, n_kv_heads, capacity, head_dim) float32: keys (rotated), then values */
} ha_kv_cache;

/* A cache of at least `capacity` positions, length 0. HA_ERR_NOMEM. */
ha_status ha_kv_cache_new(size_t n_layers, size_t n_kv_heads, size_t head_dim, size_t capacity, ha_kv_cache **out, ha_error *err);
void ha_kv_cache_free(ha_kv_cache *cache);

/* The first n positions of `from`, n <= from->length and to->capacity; the two have one geometry. to->length becomes n. */
void ha_kv_cache_copy(ha_kv_cache *to, const ha_kv_cache *from, size_t n);

/* (capacity, head_dim) of one layer and head; part 0: keys, 1: values. */
static inline float *
ha_kv_at(const ha_kv_cache *cache, size_t layer, size_t part, size_t head)
{
    return cache->data + ((layer * 2 + part) * cache->n_kv_heads + head) * cache->capacity * cache->head_dim;
}

#endif
