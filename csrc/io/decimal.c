/* Three ways, each exact, by size (the idea of Clinger 1990, "How to read floating point numbers accurately"):
 * up to 15 digits and a power up to 22, one float64 operation on exact operands; up to 19 digits and a power up to 19, one 128-bit
 * product or quotient; the rest by multi-precision long division to 66 bits and a sticky bit. */
#include "io/decimal.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

__extension__ typedef unsigned __int128 uint128;

/* A finite double needs at most 767 significant decimal digits to be told from its neighbours' midpoint; what lies behind them
 * matters only as "not zero". */
#define MAX_DIGITS 768
#define MAX_LIMBS 128       /* 10^(768 + 345) has 3698 bits, aligned to 66 bits more: 118 limbs */

typedef struct decimal {
    uint8_t digits[MAX_DIGITS + 1];     /* significant digits; the last one stands for a non-zero tail */
    int n_digits;
    int64_t exponent;                   /* value = digits * 10^exponent */
    uint64_t head;                      /* the digits as an integer while n_digits <= 19 */
    int negative;
} decimal;

static void
decimal_parse(decimal *d, const char *text, size_t length)
{
    size_t i = 0;
    int point = 0, tail = 0;
    d->n_digits = 0;
    d->exponent = 0;
    d->head = 0;
    d->negative = length > 0 && text[0] == '-';
    for (i = (size_t)d->negative; i < length && text[i] != 'e' && text[i] != 'E'; i++) {
        if (text[i] == '.') {
            point = 1;
            continue;
        }
        const uint8_t digit = (uint8_t)(text[i] - '0');
        if (d->n_digits == MAX_DIGITS) {
            tail |= digit != 0;
            d->exponent += !point;
            continue;
        }
        if (digit != 0 || d->n_digits > 0) {
            d->head = d->n_digits < 19 ? d->head * 10 + digit : d->head;
            d->digits[d->n_digits++] = digit;
        }
        d->exponent -= point;
    }
    if (tail) {
        d->digits[d->n_digits++] = 1;
        d->exponent--;
    }
    if (i < length) {
        int64_t exponent = 0;
        const int negative = text[i + 1] == '-';
        for (i += 1 + (text[i + 1] == '-' || text[i + 1] == '+'); i < length; i++) {
            exponent = exponent < 1000000000000 ? exponent * 10 + (text[i] - '0') : exponent;
        }
        d->exponent += negative ? -exponent : exponent;
    }
}

static int
bit_length(uint128 x)
{
    const uint64_t high = (uint64_t)(x >> 64), low = (uint64_t)x;
    return high != 0 ? 128 - __builtin_clzll(high) : low != 0 ? 64 - __builtin_clzll(low) : 0;
}

/* The double nearest to (q + sticky * epsilon) * 2^exponent; q has over 54 bits wherever sticky may be set. */
static double
round_to_double(uint128 q, int sticky, int exponent)
{
    const int bits = bit_length(q);
    const int top = bits - 1 + exponent;                            /* 2^top <= value */
    const int precision = top >= -1022 ? 53 : 53 + top + 1022;      /* fewer bits below the normal range */
    if (bits == 0 || precision < 0) {
        return 0;
    }
    if (top > 1023) {
        return (double)INFINITY;
    }
    const int drop = bits - precision;
    if (drop <= 0) {
        return ldexp((double)(uint64_t)q, exponent);
    }
    uint64_t mantissa = (uint64_t)(drop == 128 ? 0 : q >> drop);
    const uint128 half = (uint128)1 << (drop - 1), rest = q & ((half << 1) - 1);
    if (rest > half || (rest == half && (sticky || (mantissa & 1)))) {
        mantissa++;
    }
    return ldexp((double)mantissa, exponent + drop);
}

static const uint64_t pow10_u64[20] = {
    1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u, 10000000000u, 100000000000u, 1000000000000u,
    10000000000000u, 100000000000000u, 1000000000000000u, 10000000000000000u, 100000000000000000u, 1000000000000000000u, 10000000000000000000u,
};

/* -- multi-precision, little-endian limbs -- */

typedef struct big {
    uint32_t limb[MAX_LIMBS];
    int n;
} big;

static void
big_multiply_add(big *a, uint32_t factor, uint32_t addend)
{
    uint64_t carry = addend;
    for (int i = 0; i < a->n; i++) {
        carry += (uint64_t)a->limb[i] * factor;
        a->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry != 0) {
        a->limb[a->n++] = (uint32_t)carry;
    }
}

static void
big_multiply_pow10(big *a, int64_t power)
{
    for (; power >= 9; power -= 9) {
        big_multiply_add(a, 1000000000u, 0);
    }
    big_multiply_add(a, (uint32_t)pow10_u64[power], 0);
}

static int
big_bits(const big *a)
{
    return a->n == 0 ? 0 : 32 * a->n - __builtin_clz(a->limb[a->n - 1]);
}

static void
big_shift_left(big *a, int bits)
{
    const int words = bits / 32, rest = bits % 32;
    if (a->n == 0 || bits == 0) {
        return;
    }
    a->limb[a->n] = 0;
    for (int i = a->n; i >= 0; i--) {
        const uint32_t low = i > 0 && rest > 0 ? a->limb[i - 1] >> (32 - rest) : 0;
        a->limb[i + words] = (a->limb[i] << rest) | low;
    }
    memset(a->limb, 0, (size_t)words * sizeof(a->limb[0]));
    a->n += words + 1;
    a->n -= a->limb[a->n - 1] == 0;
}

static void
big_shift_right_1(big *a)
{
    for (int i = 0; i < a->n; i++) {
        a->limb[i] = (a->limb[i] >> 1) | (i + 1 < a->n ? a->limb[i + 1] << 31 : 0);
    }
    a->n -= a->n > 0 && a->limb[a->n - 1] == 0;
}

/* a -= b when a >= b; returns whether it did. */
static int
big_subtract_if_ge(big *a, const big *b)
{
    if (a->n != b->n) {
        if (a->n < b->n) {
            return 0;
        }
    } else {
        for (int i = a->n - 1; i >= 0; i--) {
            if (a->limb[i] != b->limb[i]) {
                if (a->limb[i] < b->limb[i]) {
                    return 0;
                }
                break;
            }
        }
    }
    uint64_t borrow = 0;
    for (int i = 0; i < a->n; i++) {
        const uint64_t next = (uint64_t)a->limb[i] - (i < b->n ? b->limb[i] : 0) - borrow;
        a->limb[i] = (uint32_t)next;
        borrow = next >> 63;
    }
    while (a->n > 0 && a->limb[a->n - 1] == 0) {
        a->n--;
    }
    return 1;
}

static double
divide_exactly(const decimal *d)
{
    big numerator = {.n = 0}, denominator = {.limb = {1}, .n = 1};
    for (int i = 0; i < d->n_digits; i++) {
        big_multiply_add(&numerator, 10, d->digits[i]);
    }
    big_multiply_pow10(d->exponent >= 0 ? &numerator : &denominator, d->exponent >= 0 ? d->exponent : -d->exponent);
    /* scale by a power of two so that the quotient lies in [2^65, 2^67) */
    const int shift = big_bits(&denominator) + 66 - big_bits(&numerator);
    big_shift_left(shift >= 0 ? &numerator : &denominator, shift >= 0 ? shift : -shift);
    big_shift_left(&denominator, 66);
    uint128 quotient = 0;
    for (int i = 66; i >= 0; i--) {
        quotient = (quotient << 1) | (uint128)big_subtract_if_ge(&numerator, &denominator);
        big_shift_right_1(&denominator);
    }
    return round_to_double(quotient, numerator.n > 0, -shift);
}

double
ha_decimal_to_double(const char *text, size_t length)
{
    static const double exact_pow10[23] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                           1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    decimal d;
    double value;
    decimal_parse(&d, text, length);
    const int64_t e = d.exponent;
    if (d.n_digits == 0 || e + d.n_digits < -326) {
        value = 0;
    } else if (e + d.n_digits > 310) {
        value = (double)INFINITY;
    } else if (d.n_digits <= 15 && e >= -22 && e <= 22) {
        value = e >= 0 ? (double)d.head * exact_pow10[e] : (double)d.head / exact_pow10[-e];
    } else if (d.n_digits <= 19 && e >= 0 && e <= 19) {
        value = round_to_double((uint128)d.head * pow10_u64[e], 0, 0);
    } else if (d.n_digits <= 19 && e < 0 && e >= -19) {
        const int shift = __builtin_clzll(d.head) + 63;
        const uint128 numerator = (uint128)d.head << shift;
        const uint64_t denominator = pow10_u64[-e];
        value = round_to_double(numerator / denominator, numerator % denominator != 0, -shift);
    } else {
        value = divide_exactly(&d);
    }
    return d.negative ? -value : value;
}
