/* Compiled once, with the baseline flags: every operation is exact or correctly rounded, and means the same on every CPU. */
#include "kernels/quantize.h"

#include <math.h>
#include <string.h>

static int32_t
bits_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static float
float_of(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

#define BLOCK 256

/* out (n,) = w / factors, for n <= BLOCK: exact, for the factors are powers of two */
static void
divided(float *out, const float *w, const float *factors, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = factors == NULL ? w[i] : factors[i] == 0.0f ? 0.0f : w[i] / factors[i];
    }
}

float
ha_row_scale_i8(const float *w, const float *factors, size_t k)
{
    float block[BLOCK];
    int32_t most = 0;           /* as bits: those of a positive float grow with it, and NaN is above infinity */
    for (size_t first = 0; first < k; first += BLOCK) {
        const size_t n = k - first < BLOCK ? k - first : BLOCK;
        divided(block, w + first, factors != NULL ? factors + first : NULL, n);
        for (size_t i = 0; i < n; i++) {
            const int32_t bits = bits_of(block[i]) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
    }
    if (most >= bits_of(INFINITY)) {
        return NAN;
    }
    return most < bits_of(0x1p-100f) ? 0.0f : float_of((bits_of(float_of(most) / 127.0f) + 0x7f) & ~0x7f);
}

void
ha_quantize_row_i8(int8_t *q, const float *w, float scale, const float *factors, size_t n)
{
    const float magic = 12582912.0f;    /* 1.5 * 2^23: the sum has no bits left below the unit */
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    float block[BLOCK];
    for (size_t first = 0; first < n; first += BLOCK) {
        const size_t count = n - first < BLOCK ? n - first : BLOCK;
        divided(block, w + first, factors != NULL ? factors + first : NULL, count);
        for (size_t i = 0; i < count; i++) {
            q[first + i] = inverse > 0.0f ? (int8_t)(int32_t)((block[i] * inverse + magic) - magic) : 0;
        }
    }
}

void
ha_dequantize_row_i8(float *w, const int8_t *q, float scale, const float *factors, size_t k)
{
    for (size_t i = 0; i < k; i++) {
        if (factors == NULL) {
            w[i] = scale * (float)q[i];
        } else if (factors[i] != 0.0f) {
            w[i] = scale * (float)q[i] * factors[i];
        }
    }
}
