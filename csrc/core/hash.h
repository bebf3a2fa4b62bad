/* SipHash-1-3 (Aumasson & Bernstein 2012, "SipHash: a fast short-input PRF") for tables that are keyed by what a file says:
 * with a key that the file's author cannot know, names can't be chosen to collide. */
#ifndef HARMAUG_CORE_HASH_H
#define HARMAUG_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

static inline void
ha_sip_round(uint64_t v[4])
{
#define HA_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    v[0] += v[1], v[1] = HA_ROTL(v[1], 13) ^ v[0], v[0] = HA_ROTL(v[0], 32);
    v[2] += v[3], v[3] = HA_ROTL(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = HA_ROTL(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = HA_ROTL(v[1], 17) ^ v[2], v[2] = HA_ROTL(v[2], 32);
#undef HA_ROTL
}

static inline uint64_t
ha_siphash(const uint64_t key[2], const void *data, size_t length)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                     key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    const uint8_t *p = (const uint8_t *)data;
    size_t left = length;
    uint64_t word;
    for (; left >= 8; left -= 8, p += 8) {
        memcpy(&word, p, 8);
        v[3] ^= word;
        ha_sip_round(v);
        v[0] ^= word;
    }
    word = (uint64_t)length << 56;
    for (size_t i = 0; i < left; i++) {
        word |= (uint64_t)p[i] << (8 * i);
    }
    v[3] ^= word;
    ha_sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    ha_sip_round(v);
    ha_sip_round(v);
    ha_sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* A key from the clock and the address of `salt` (heap or stack: randomised by the system). Never stored, never part of a result. */
static inline void
ha_hash_key(uint64_t key[2], const void *salt)
{
    struct timespec now = {0, 0};
    timespec_get(&now, TIME_UTC);
    key[0] = ((uint64_t)now.tv_sec << 30) ^ (uint64_t)now.tv_nsec;
    key[1] = (uint64_t)(uintptr_t)salt * 0x9E3779B97F4A7C15u;
}

#endif
