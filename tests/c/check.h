/* The C tests' few tools: counted checks, seeded numbers, guarded buffers. */
#ifndef HARMAUG_TESTS_CHECK_H
#define HARMAUG_TESTS_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int n_passed, n_failed;

/* One check, counted; a failed one prints where and what. */
#define CHECK(condition, ...) \
    do { \
        if (condition) { \
            n_passed++; \
        } \
        else { \
            n_failed++; \
            printf("%s:%d: ", __FILE__, __LINE__); \
            printf(__VA_ARGS__); \
            printf("\n"); \
        } \
    } while (0)

static uint64_t random_state = 1;

static inline void
seed(uint64_t value)
{
    random_state = value * 0x9e3779b97f4a7c15u + 1;
}

/* Uniform in [-1, 1): splitmix64 (Steele et al. 2014). */
static inline float
uniform(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (float)((double)(z >> 40) * 0x1p-23 - 1.0);
}

/* n floats in a block of exactly that size, so that AddressSanitizer sees the first read past it; pointers are not aligned beyond 4 bytes. */
static inline float *
floats(size_t n, float scale)
{
    float *p = calloc(n + (n == 0), sizeof(float));
    if (p == NULL) {
        abort();
    }
    for (size_t i = 0; i < n; i++) {
        p[i] = scale * uniform();
    }
    return p;
}

static inline void *
bytes(size_t n)
{
    void *p = calloc(n > 0 ? n : 1, 1);
    if (p == NULL) {
        abort();
    }
    return p;
}

static inline float *
copy_of(const float *x, size_t n)
{
    float *p = bytes(n * sizeof(float));
    memcpy(p, x, n * sizeof(float));
    return p;
}

#endif
