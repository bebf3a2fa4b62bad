#include "models/kv_cache.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

ha_status
ha_kv_cache_new(size_t n_layers, size_t n_kv_heads, size_t head_dim, size_t capacity, ha_kv_cache **out, ha_error *err)
{
    *out = NULL;
    size_t total = 2 * sizeof(float);
    const size_t extents[] = {n_layers, n_kv_heads, head_dim, (capacity + HA_KV_TILE - 1) / HA_KV_TILE * HA_KV_TILE};
    for (size_t i = 0; i < 4; i++) {
        if (extents[i] != 0 && total > SIZE_MAX / extents[i]) {
            return ha_fail(err, HA_ERR_NOMEM, "key-value cache of %zu positions overflows the address space", capacity);
        }
        total *= extents[i];
    }
    ha_kv_cache *cache = calloc(1, sizeof(*cache));
    float *data = calloc(1, total > 0 ? total : 1);     /* large blocks come as untouched zero pages */
    if (cache == NULL || data == NULL) {
        free(cache);
        free(data);
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: key-value cache of %zu positions needs %zu bytes", capacity, total);
    }
    *cache = (ha_kv_cache){n_layers, n_kv_heads, head_dim, extents[3], 0, data};
    *out = cache;
    return HA_OK;
}

void
ha_kv_cache_free(ha_kv_cache *cache)
{
    if (cache != NULL) {
        free(cache->data);
        free(cache);
    }
}

void
ha_kv_cache_copy(ha_kv_cache *to, const ha_kv_cache *from, size_t n)
{
    for (size_t layer = 0; layer < from->n_layers; layer++) {
        for (size_t part = 0; part < 2; part++) {
            for (size_t head = 0; head < from->n_kv_heads; head++) {
                memcpy(ha_kv_at(to, layer, part, head), ha_kv_at(from, layer, part, head), n * from->head_dim * sizeof(float));
            }
        }
    }
    to->length = n;
}
