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

static void
store_half(uint8_t *out, float x)
{
    const uint16_t half = ha_f32_to_f16(x);
    out[0] = (uint8_t)half;
    out[1] = (uint8_t)(half >> 8);
}

/* q (HA_GROUP,) in 0 .. 15 for scale and least; the squared error that it leaves. */
static float
quantize_between(float *q, const float *w, float scale, float least)
{
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    float errors[8] = {0};      /* lanes: additions need not wait for one another */
    for (size_t i = 0; i < HA_GROUP; i++) {
        const float whole = ((w[i] - least) * inverse + MAGIC) - MAGIC, off = whole > 15.0f ? 15.0f : whole < 0.0f ? 0.0f : whole;
        const float error = scale * off + least - w[i];
        q[i] = off;
        errors[i % 8] += error * error;
    }
    return ((errors[0] + errors[4]) + (errors[1] + errors[5])) + ((errors[2] + errors[6]) + (errors[3] + errors[7]));
}

/* scale and least of the line through (q, w) with the least squared error; 0 when q is one number. */
static int
fit_line(const float *q, const float *w, float *scale, float *least)
{
    float n = 0, sq = 0, sqq = 0, sw = 0, sqw = 0;
    for (size_t i = 0; i < HA_GROUP; i++) {
        n += 1;
        sq += q[i];
        sqq += q[i] * q[i];
        sw += w[i];
        sqw += q[i] * w[i];
    }
    const float spread = n * sqq - sq * sq;     /* whole numbers */
    if (!(spread > 0)) {
        return 0;
    }
    *scale = (n * sqw - sq * sw) / spread;
    *least = (sw - *scale * sq) / n;
    return *scale > 0;
}

static float
through_half(float x)
{
    return ha_f16_to_f32(ha_f32_to_f16(x));
}

static void
store_group_4(uint8_t *group, const float *w)
{
    enum { TRIES = 4 };
    float low = w[0], high = w[0], q[HA_GROUP], best[HA_GROUP] = {0}, least_error = INFINITY, scale, least;
    for (size_t i = 1; i < HA_GROUP; i++) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    scale = (high - low) / 15.0f;
    least = low;
    for (int t = 0; t < TRIES; t++) {
        scale = through_half(scale);
        least = through_half(least);
        const float error = quantize_between(q, w, scale, least);
        if (!(error < least_error)) {
            break;
        }
        least_error = error;
        memcpy(best, q, sizeof(q));
        store_half(group, scale);
        store_half(group + 2, least);
        if (!fit_line(q, w, &scale, &least)) {
            break;
        }
    }
    for (size_t i = 0; i < HA_GROUP / 2; i++) {
        group[4 + i] = (uint8_t)((unsigned)best[i] | (unsigned)best[i + HA_GROUP / 2] << 4);
    }
}

void
ha_store_group(uint8_t *group, int bits, const float *w, size_t n)
{
    float padded[HA_GROUP], largest = 0.0f;
    int finite = 1;
    n = n < HA_GROUP ? n : HA_GROUP;
    for (size_t i = 0; i < HA_GROUP; i++) {
        padded[i] = w[i < n ? i : n - 1];       /* what stands past the end meets an x of 0 */
        const float size = fabsf(padded[i]);
        finite &= size <= 65504.0f;
        largest = size > largest ? size : largest;
    }
    memset(group, 0, ha_group_bytes(bits));
    if (!finite) {
        store_half(group, NAN);
    }
    else if (bits == 4) {
        store_group_4(group, padded);
    }
    else {
        const float scale = through_half(largest / 127.0f), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        store_half(group, scale);
        for (size_t i = 0; i < HA_GROUP; i++) {
            const float whole = (padded[i] * inverse + MAGIC) - MAGIC;
            group[2 + i] = (uint8_t)(int8_t)(whole > 127.0f ? 127.0f : whole < -127.0f ? -127.0f : whole);
        }
    }
}
