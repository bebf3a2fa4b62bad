/* Compiled once, with the baseline flags: every operation is exact or correctly rounded, and means the same on every CPU. */
#include "kernels/quantize.h"

#include <math.h>
#include <string.h>

#include "core/float16.h"

#define MAGIC 12582912.0f       /* 1.5 * 2^23: a sum with it has no bits left below the unit */

/* The scale of a group, see ha_quantize_group_i8. */
static float
group_scale(const float *w, size_t n)
{
    uint32_t most = 0;          /* as bits: those of a positive float grow with it, and NaN is above infinity */
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = ha_bits_of_float(w[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    if (most >= ha_bits_of_float(INFINITY)) {
        return NAN;
    }
    return most < ha_bits_of_float(0x1p-100f) ? 0.0f : ha_float_of_bits((ha_bits_of_float(ha_float_of_bits(most) / 127.0f) + 0x7fff) & ~0x7fffu);
}

float
ha_quantize_group_i8(int8_t *q, const float *w, size_t n)
{
    const float scale = group_scale(w, n), inverse = 1.0f / scale;
    if (!(scale > 0.0f)) {
        memset(q, 0, n);
        return scale;
    }
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)(int32_t)((w[i] * inverse + MAGIC) - MAGIC);
    }
    return scale;
}

void
ha_dequantize_group_i8(float *w, const int8_t *q, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        w[i] = scale * (float)q[i];
    }
}

void
ha_store_row_i8(uint8_t *row, const float *w, size_t k)
{
    uint8_t *scales = row + k;
    for (size_t first = 0; first < k; first += HA_I8_GROUP, scales += 2) {
        const float scale = ha_quantize_group_i8((int8_t *)row + first, w + first, k - first < HA_I8_GROUP ? k - first : HA_I8_GROUP);
        scales[0] = (uint8_t)(ha_bits_of_float(scale) >> 15);
        scales[1] = (uint8_t)(ha_bits_of_float(scale) >> 23);
    }
}

void
ha_load_row_i8(float *w, const uint8_t *row, size_t k)
{
    const uint8_t *scales = row + k;
    for (size_t first = 0; first < k; first += HA_I8_GROUP, scales += 2) {
        const float scale = ha_float_of_bits((uint32_t)scales[0] << 15 | (uint32_t)scales[1] << 23);
        ha_dequantize_group_i8(w + first, (const int8_t *)row + first, scale, k - first < HA_I8_GROUP ? k - first : HA_I8_GROUP);
    }
}

/* q (n,) of a group with this scale; the squared error that it leaves. */
static double
quantize_group(uint8_t *q, const float *w, float scale, size_t n)
{
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    double error = 0;
    for (size_t i = 0; i < n; i++) {
        float whole = (w[i] * inverse + MAGIC) - MAGIC;
        whole = whole > 7.0f ? 7.0f : whole < -8.0f ? -8.0f : whole;
        q[i] = (uint8_t)(whole + 8.0f);
        const double off = (double)w[i] - (double)scale * (double)whole;
        error += off * off;
    }
    return error;
}

void
ha_store_row_i4(uint8_t *row, const float *w, size_t k)
{
    enum { TRIES = 13 };        /* the element of the largest size becomes -8, or comes to lie up to a third beyond it */
    uint8_t *scales = row + (k + 1) / 2;
    memset(row, 0, ha_i4_row_bytes(k));
    for (size_t first = 0; first < k; first += HA_I4_GROUP) {
        const size_t n = k - first < HA_I4_GROUP ? k - first : HA_I4_GROUP;
        uint8_t q[HA_I4_GROUP], best[HA_I4_GROUP];
        double least = INFINITY;
        float most = 0.0f;
        uint16_t kept;
        memset(best, 9, sizeof(best));
        for (size_t i = 0; i < n; i++) {
            most = !(fabsf(w[first + i]) <= fabsf(most)) ? w[first + i] : most;
        }
        const int fits = fabsf(most) < 400000.0f;       /* else no number, or beyond float16: then the row is no number either */
        kept = fits ? 0 : 0x7E00;
        for (int t = 0; t < TRIES && fits; t++) {
            const uint16_t half = ha_f32_to_f16(most / -(7.5f + 0.25f * (float)t));
            const double error = quantize_group(q, w + first, ha_f16_to_f32(half), n);
            if (t == 0 || error < least) {
                least = error;
                kept = half;
                memcpy(best, q, n);
            }
        }
        for (size_t i = 0; i < n; i++) {
            row[(first + i) / 2] |= (uint8_t)(best[i] << (4 * ((first + i) % 2)));
        }
        scales[first / HA_I4_GROUP * 2] = (uint8_t)kept;
        scales[first / HA_I4_GROUP * 2 + 1] = (uint8_t)(kept >> 8);
    }
}

void
ha_load_row_i4(float *w, const uint8_t *row, size_t k)
{
    const uint8_t *scales = row + (k + 1) / 2;
    for (size_t i = 0; i < k; i++) {
        const uint8_t *s = scales + i / HA_I4_GROUP * 2;
        w[i] = ha_f16_to_f32((uint16_t)(s[0] | s[1] << 8)) * (float)((row[i / 2] >> (4 * (i % 2)) & 15) - 8);
    }
}
