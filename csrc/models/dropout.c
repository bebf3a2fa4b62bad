#include "models/dropout.h"

#include "core/parallel.h"
#include "core/rng.h"

#define GRAIN 8192      /* elements a thread */

ha_dropout
ha_dropout_at(float probability, uint64_t seed, uint64_t step, uint64_t place)
{
    const uint32_t drop = (uint32_t)(probability * 65536.0f + 0.5f);
    return (ha_dropout){.seed = seed, .stream = (step << 16) | place, .drop = drop, .scale = 65536.0f / (float)(65536 - drop)};
}

void
ha_dropout_row(const ha_dropout *dropout, uint64_t row, size_t first, float *out, const float *x, size_t n)
{
    for (size_t j = 0; j < n; j += 8) {
        uint32_t draw[4];
        ha_philox4x32(dropout->seed, dropout->stream, (row << 20) | ((first + j) / 8), draw);
        const size_t m = n - j < 8 ? n - j : 8;
        for (size_t i = 0; i < m; i++) {
            const uint32_t bits = (draw[i / 2] >> (16 * (i % 2))) & 0xFFFFu;
            out[j + i] = bits < dropout->drop ? 0.0f : x[j + i] * dropout->scale;
        }
    }
}

void
ha_dropout_rows(const ha_dropout *dropout, uint64_t first_row, float *x, size_t rows, size_t cols, int n_threads)
{
    if (dropout->drop == 0) {
        return;
    }
    const int n = ha_threads_for(rows * cols, GRAIN, n_threads);
    (void)n;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(n)) if (n > 1) schedule(static)
#endif
    for (ptrdiff_t r = 0; r < (ptrdiff_t)rows; r++) {
        ha_dropout_row(dropout, first_row + (uint64_t)r, 0, x + (size_t)r * cols, x + (size_t)r * cols, cols);
    }
}
