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

float
ha_row_scale_i8(const float *w, size_t k)
{
    int32_t most = 0;           /* as bits: those of a positive float grow with it, and NaN is above infinity */
    for (size_t i = 0; i < k; i++) {
        const int32_t bits = bits_of(w[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    if (most >= bits_of(INFINITY)) {
        return NAN;
    }
    return most < bits_of(0x1p-100f) ? 0.0f : float_of((bits_of(float_of(most) / 127.0f) + 0x7f) & ~0x7f);
}

void
ha_quantize_row_i8(int8_t *q, const float *w, float scale, size_t n)
{
    const float magic = 12582912.0f;    /* 1.5 * 2^23: the sum has no bits left below the unit */
    const float inverse = 1.0f / scale;
    if (!(scale > 0.0f)) {
        memset(q, 0, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)(int32_t)((w[i] * inverse + magic) - magic);
    }
}

void
ha_dequantize_row_i8(float *w, const int8_t *q, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        w[i] = scale * (float)q[i];
    }
}
