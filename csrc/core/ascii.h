/* Classes of the ASCII characters of a text, many bytes at a time: HA_BYTES of them in a register. What is true of a byte stands in bit 7 of it, and |, & and ~ work on
 * registers as on numbers. */
#ifndef HARMAUG_CORE_ASCII_H
#define HARMAUG_CORE_ASCII_H

#include "core/swar.h"

#if defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i ha_bytes;
#else
typedef uint64_t ha_bytes;
#endif

enum { HA_BYTES = sizeof(ha_bytes) };

/* HA_BYTES bytes are read. */
static inline ha_bytes
ha_bytes_load(const uint8_t *text)
{
#if defined(__SSE2__)
    return _mm_loadu_si128((const __m128i *)(const void *)text);
#else
    return ha_load_u64(text);
#endif
}

/* Which bytes are in [low, high], both below 0x80. */
static inline ha_bytes
ha_bytes_between(ha_bytes x, char low, char high)
{
#if defined(__SSE2__)
    const __m128i above = _mm_sub_epi8(x, _mm_set1_epi8(low));
    return _mm_cmpeq_epi8(_mm_min_epu8(above, _mm_set1_epi8((char)(high - low))), above);
#else
    return ha_swar_between(x & HA_EACH(0x7F), (unsigned)low, (unsigned)high) & ~x;
#endif
}

static inline ha_bytes
ha_bytes_letters(ha_bytes x)
{
#if defined(__SSE2__)
    return ha_bytes_between(x | _mm_set1_epi8(0x20), 'a', 'z');
#else
    return ha_bytes_between(x | HA_EACH(0x20), 'a', 'z');
#endif
}

/* Bit i for byte i of which bit 7 is set. */
static inline uint64_t
ha_bytes_bits(ha_bytes x)
{
#if defined(__SSE2__)
    return (uint64_t)(unsigned)_mm_movemask_epi8(x);
#else
    return (x >> 7 & HA_EACH(1)) * 0x0102040810204080u >> 56;
#endif
}

/* The lowest n bits, n <= 64. */
static inline uint64_t
ha_low_bits(size_t n)
{
    return n < 64 ? ((uint64_t)1 << n) - 1 : UINT64_MAX;
}

#endif
