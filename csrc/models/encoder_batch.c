#include "models/encoder_batch.h"

#include "core/parallel.h"

#define GRAIN 16384     /* elements a thread */

ha_status
ha_batch_check(const ha_encoder_config *config, const ha_batch *batch, ha_error *err)
{
    if (batch->offsets[0] != 0) {
        return ha_fail(err, HA_ERR_VALUE, "encoder: offsets must start at 0, got %lld", (long long)batch->offsets[0]);
    }
    for (size_t i = 0; i < batch->n_rows; i++) {
        const int64_t begin = batch->offsets[i], end = batch->offsets[i + 1];
        if (end <= begin) {
            return ha_fail(err, HA_ERR_VALUE, "encoder: row %zu is empty", i);
        }
        if ((uint64_t)(end - begin) > config->max_tokens) {
            return ha_fail(err, HA_ERR_VALUE, "encoder: row %zu has %lld tokens, the model reads at most %zu", i,
                           (long long)(end - begin), config->max_tokens);
        }
        for (int64_t t = begin; t < end; t++) {
            if (batch->ids[t] < 0 || (size_t)batch->ids[t] >= config->vocab_size) {
                return ha_fail(err, HA_ERR_VALUE, "encoder: row %zu holds id %ld, outside the vocabulary of %zu", i,
                               (long)batch->ids[t], config->vocab_size);
            }
            if (batch->type_ids != NULL && config->type_vocab_size > 0 && batch->type_ids[t] >= config->type_vocab_size) {
                return ha_fail(err, HA_ERR_VALUE, "encoder: row %zu holds token type %u, the model has %zu", i,
                               (unsigned)batch->type_ids[t], config->type_vocab_size);
            }
        }
    }
    return HA_OK;
}

static void
add(float *out, const float *x, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        out[j] += x[j];
    }
}

void
ha_batch_add_positions(const ha_encoder_config *config, const ha_batch *batch, size_t first, size_t last,
                       const float *position, const float *type, float *x, int n_threads)
{
    const size_t h = config->embedding_size;
    const int64_t base = batch->offsets[first];
    const int n = ha_threads_for((size_t)(batch->offsets[last] - base) * h, GRAIN, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(static)
#endif
    for (ptrdiff_t row = (ptrdiff_t)first; row < (ptrdiff_t)last; row++) {
        size_t seen = 0;
        for (int64_t t = batch->offsets[row]; t < batch->offsets[row + 1]; t++) {
            const size_t number = ha_batch_position(config, batch->ids[t], &seen);
            float *out = x + (size_t)(t - base) * h;
            if (type != NULL) {
                add(out, type + (batch->type_ids != NULL ? batch->type_ids[t] : 0) * h, h);
            }
            if (position != NULL) {
                add(out, position + number * h, h);
            }
        }
    }
}
