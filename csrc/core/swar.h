/* Eight bytes of text in a register: runs of ASCII classes without a branch a byte. */
#ifndef HARMAUG_CORE_SWAR_H
#define HARMAUG_CORE_SWAR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HA_EACH(byte) ((uint64_t)0x0101010101010101u * (byte))

/* Eight bytes, the first the lowest. */
static inline uint64_t
ha_load_u64(const uint8_t *text)
{
    uint64_t word;
    memcpy(&word, text, sizeof(word));
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The lowest bit of mask, not 0. */
static inline size_t
ha_lowest_bit(uint64_t mask)
{
#if defined(__GNUC__)
    return (size_t)__builtin_ctzll(mask);
#else
    size_t n = 0;
    for (; (mask & 1) == 0; mask >>= 1) {
        n++;
    }
    return n;
#endif
}

/* Which byte the lowest bit of mask, not 0, is in. */
static inline size_t
ha_swar_lowest(uint64_t mask)
{
    return ha_lowest_bit(mask) >> 3;
}

/* Bit 7 of each byte, of bytes below 0x80, that is in [low, high]. */
static inline uint64_t
ha_swar_between(uint64_t x, unsigned low, unsigned high)
{
    return (x + HA_EACH(0x80 - low)) & ~(x + HA_EACH(0x7F - high)) & HA_EACH(0x80);
}

/* Where the run of ASCII letters, or of letters and digits, that begins at text[i] ends, at most at `end`. 8 bytes behind `end` can be read. */
static inline size_t
ha_swar_run(const uint8_t *text, size_t i, size_t end, int digits)
{
    for (; i < end; i += 8) {
        const uint64_t x = ha_load_u64(text + i), low = x & HA_EACH(0x7F);
        uint64_t in = ha_swar_between(low | HA_EACH(0x20), 'a', 'z');
        if (digits) {
            in |= ha_swar_between(low, '0', '9');
        }
        const uint64_t stop = ~(in & ~x) & HA_EACH(0x80);
        if (stop != 0) {
            i += ha_swar_lowest(stop);
            break;
        }
    }
    return i < end ? i : end;
}

#endif
