#include "models/encoder_parts.h"

#include <math.h>
#include <string.h>

#include "core/parallel.h"

#define GRAIN 16384     /* elements a thread */

void
ha_relative_rows(const ha_encoder_config *config, int32_t *rows, size_t longest)
{
    const ptrdiff_t span = (ptrdiff_t)config->relative_span, middle = (ptrdiff_t)(config->position_buckets / 2);
    const float scale = middle > 0 ? (float)log((float)((double)(config->max_relative_positions - 1) / (double)middle)) : 1.0f;
    int32_t *center = rows + (longest - 1);
    ptrdiff_t last = 0;
    for (ptrdiff_t d = 0; d < (ptrdiff_t)longest; d++) {
        ptrdiff_t bucket = d;
        if (middle > 0 && d > middle) {
            bucket = (ptrdiff_t)ceilf((float)log((float)d / (float)middle) / scale * (float)(middle - 1)) + middle;
        }
        last = bucket > last ? bucket : last;
        center[d] = (int32_t)(last + span < 2 * span ? last + span : 2 * span - 1);
        center[-d] = (int32_t)(span - last > 0 ? span - last : 0);
    }
}

void
ha_rotary_frequencies(double theta, size_t head_dim, float *inv_freq)
{
    for (size_t i = 0; i < head_dim / 2; i++) {
        const float exponent = (float)(2 * i) / (float)head_dim;
        inv_freq[i] = 1.0f / (float)pow(theta, (double)exponent);
    }
}

void
ha_rotary_angles(const float *inv_freq, size_t half, size_t positions, float *cosine, float *sine)
{
    for (size_t p = 0; p < positions; p++) {
        for (size_t i = 0; i < half; i++) {
            const float angle = (float)p * inv_freq[i];
            cosine[p * half + i] = cosf(angle);
            sine[p * half + i] = sinf(angle);
        }
    }
}

void
ha_rotary_apply(const ha_encoder_config *config, const float *cosine, const float *sine, int back, float *x, size_t ldx,
                const int64_t *offsets, size_t n_rows, int n_threads)
{
    const size_t half = config->head_dim / 2;
    const float sign = back ? -1.0f : 1.0f;
    const int n = ha_threads_for((size_t)offsets[n_rows] * config->hidden_size, GRAIN, n_threads);
    (void)n;
    HA_PARALLEL_FOR(n)
    for (ptrdiff_t row = 0; row < (ptrdiff_t)n_rows; row++) {
        for (int64_t t = offsets[row]; t < offsets[row + 1]; t++) {
            const float *c = cosine + (size_t)(t - offsets[row]) * half, *s = sine + (size_t)(t - offsets[row]) * half;
            for (size_t head = 0; head < config->n_heads; head++) {
                float *a = x + (size_t)t * ldx + head * config->head_dim, *b = a + half;
                for (size_t i = 0; i < half; i++) {
                    const float u = a[i], v = b[i], w = sign * s[i];
                    a[i] = u * c[i] - v * w;
                    b[i] = v * c[i] + u * w;
                }
            }
        }
    }
}

void
ha_gather_neighbours(const ha_encoder_config *config, float *out, const float *x, size_t group, const int64_t *offsets, size_t n_rows, int cls_only)
{
    const size_t h = config->hidden_size, in = h / config->conv_groups, kernel = config->conv_kernel_size;
    for (size_t row = 0; row < n_rows; row++) {
        const int64_t begin = offsets[row], end = cls_only ? begin + 1 : offsets[row + 1];
        for (int64_t t = begin; t < end; t++) {
            for (size_t j = 0; j < kernel; j++) {
                const int64_t from = t + (int64_t)j - (int64_t)(kernel / 2);
                const int inside = from >= begin && from < offsets[row + 1];
                for (size_t i = 0; i < in; i++) {
                    out[i * kernel + j] = inside ? x[(size_t)from * h + group * in + i] : 0.0f;
                }
            }
            out += in * kernel;
        }
    }
}

void
ha_first_of_rows(float *out, const float *x, const int64_t *offsets, size_t n_rows, size_t cols)
{
    for (size_t row = 0; row < n_rows; row++) {
        memcpy(out + row * cols, x + (size_t)offsets[row] * cols, cols * sizeof(float));
    }
}

void
ha_mean_of_rows(float *out, const float *x, const int64_t *offsets, size_t n_rows, size_t cols)
{
    for (size_t row = 0; row < n_rows; row++) {
        for (size_t j = 0; j < cols; j++) {
            double sum = 0;
            for (int64_t t = offsets[row]; t < offsets[row + 1]; t++) {
                sum += x[(size_t)t * cols + j];
            }
            out[row * cols + j] = (float)(sum / (double)(offsets[row + 1] - offsets[row]));
        }
    }
}
