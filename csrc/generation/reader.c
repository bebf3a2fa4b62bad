#include "generation/reader.h"

#include <stdlib.h>
#include <string.h>

#define ROWS 256        /* tokens a forward pass */

struct ha_reader {
    const ha_decoder *decoder;
    ha_decoder_state *state;
    ha_kv_cache *cache;
    int32_t *ids;           /* (cache->capacity,); the first cache->length of them are in the cache */
    uint64_t computed;
};

ha_status
ha_reader_new(const ha_decoder *decoder, int n_threads, ha_reader **out, ha_error *err)
{
    *out = NULL;
    ha_reader *r = calloc(1, sizeof(*r));
    if (r == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    r->decoder = decoder;
    ha_status status = ha_decoder_state_new(decoder, ROWS, n_threads, &r->state, err);
    if (status != HA_OK) {
        ha_reader_free(r);
        return status;
    }
    *out = r;
    return HA_OK;
}

void
ha_reader_free(ha_reader *r)
{
    if (r != NULL) {
        ha_decoder_state_free(r->state);
        ha_kv_cache_free(r->cache);
        free(r->ids);
        free(r);
    }
}

/* Room for n positions, the ones that are read kept. */
static ha_status
grow(ha_reader *r, size_t n, ha_error *err)
{
    if (r->cache != NULL && n <= r->cache->capacity) {
        return HA_OK;
    }
    const size_t context = ha_decoder_config_of(r->decoder)->max_position_embeddings, doubled = r->cache != NULL ? 2 * r->cache->capacity : 0;
    const size_t wanted = doubled > n && doubled <= context ? doubled : n;
    ha_kv_cache *cache = NULL;
    ha_status status = ha_decoder_cache_new(r->decoder, wanted, &cache, err);
    if (status != HA_OK) {
        return status;
    }
    int32_t *ids = realloc(r->ids, cache->capacity * sizeof(*ids));
    if (ids == NULL) {
        ha_kv_cache_free(cache);
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: a sequence of %zu tokens", n);
    }
    if (r->cache != NULL) {
        ha_kv_cache_copy(cache, r->cache, r->cache->length);
        ha_kv_cache_free(r->cache);
    }
    r->cache = cache;
    r->ids = ids;
    return HA_OK;
}

ha_status
ha_reader_next(ha_reader *r, const int32_t *ids, size_t n_ids, float *logits, ha_error *err)
{
    const size_t context = ha_decoder_config_of(r->decoder)->max_position_embeddings;
    if (n_ids == 0 || n_ids > context) {
        return ha_fail(err, HA_ERR_VALUE, "%zu tokens; the model's context takes 1..%zu", n_ids, context);
    }
    ha_status status = HA_OK;
    size_t common = 0;
    while (r->cache != NULL && common < r->cache->length && common + 1 < n_ids && ids[common] == r->ids[common]) {
        common++;       /* the last token is read again in any case: its hidden state gives the logits */
    }
    if (r->cache != NULL) {
        r->cache->length = common;
    }
    if ((status = grow(r, n_ids, err)) != HA_OK) {
        return status;
    }
    size_t last = 0;
    while (common < n_ids) {
        const size_t count = n_ids - common < ROWS ? n_ids - common : ROWS;
        const ha_segment segment = {ids + common, count, NULL, r->cache};
        if ((status = ha_decoder_forward(r->decoder, r->state, &segment, 1, err)) != HA_OK) {
            return status;
        }
        memcpy(r->ids + common, ids + common, count * sizeof(*ids));
        common += count;
        r->computed += count;
        last = count - 1;
    }
    return ha_decoder_head(r->decoder, r->state, &last, 1, logits, err);
}

uint64_t
ha_reader_computed(const ha_reader *r)
{
    return r->computed;
}
