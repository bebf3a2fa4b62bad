/* IEEE binary16 and bfloat16, one value at a time: widening is exact, narrowing rounds to nearest, ties to even, NaN stays NaN and becomes quiet, as the hardware does.
 * Whole arrays go through the kernel table. */
#ifndef HARMAUG_CORE_FLOAT16_H
#define HARMAUG_CORE_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float
ha_float_of_bits(uint32_t bits)
{
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline uint32_t
ha_bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float
ha_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1Fu, mantissa = h & 0x3FFu;
    if (exponent == 0) {
        return ha_float_of_bits(ha_bits_of_float((float)mantissa * 0x1p-24f) | sign);
    }
    if (exponent == 31) {
        return ha_float_of_bits(sign | 0x7F800000u | (mantissa != 0 ? 0x400000u : 0) | mantissa << 13);
    }
    return ha_float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t
ha_f32_to_f16(float x)
{
    const uint32_t bits = ha_bits_of_float(x), magnitude = bits & 0x7FFFFFFFu;
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    if (magnitude > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    }
    if (magnitude >= 0x477FF000u) {     /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7C00u);
    }
    if (magnitude < 0x38800000u) {      /* below 2^-14: the sum's own rounding leaves the subnormal in the low bits */
        return (uint16_t)(sign | (ha_bits_of_float(ha_float_of_bits(magnitude) + 0.5f) - 0x3F000000u));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1)) >> 13));
}

static inline float
ha_bf16_to_f32(uint16_t b)
{
    return ha_float_of_bits((uint32_t)b << 16);
}

static inline uint16_t
ha_f32_to_bf16(float x)
{
    const uint32_t bits = ha_bits_of_float(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)((bits >> 16) | 0x40u);
    }
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

#endif
