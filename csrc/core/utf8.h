/* UTF-8 (RFC 3629): decoding, encoding and validation. */
#ifndef HARMAUG_CORE_UTF8_H
#define HARMAUG_CORE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes before the first byte that is not well-formed UTF-8 (overlong forms, surrogates and values over U+10FFFF are not);
 * `length` when all are. */
size_t ha_utf8_valid_prefix(const uint8_t *text, size_t length);

/* Bytes of the longest prefix that holds only bytes below 0x80. */
size_t ha_utf8_ascii_prefix(const uint8_t *text, size_t length);

/* Length of `text` with each maximal ill-formed part replaced by U+FFFD (Unicode 15, section 3.9, "U+FFFD substitution of maximal
 * subparts"; what Rust's from_utf8_lossy and Python's errors="replace" do), written to `out` unless it is NULL. */
size_t ha_utf8_lossy(const uint8_t *text, size_t length, char *out);

/* The code point that starts at text[0], which must be well-formed, and its length in *size. */
static inline uint32_t
ha_utf8_decode(const uint8_t *text, size_t *size)
{
    const uint32_t a = text[0];
    if (a < 0x80) {
        *size = 1;
        return a;
    }
    if (a < 0xE0) {
        *size = 2;
        return (a & 0x1F) << 6 | (text[1] & 0x3Fu);
    }
    if (a < 0xF0) {
        *size = 3;
        return (a & 0x0F) << 12 | (text[1] & 0x3Fu) << 6 | (text[2] & 0x3Fu);
    }
    *size = 4;
    return (a & 0x07) << 18 | (text[1] & 0x3Fu) << 12 | (text[2] & 0x3Fu) << 6 | (text[3] & 0x3Fu);
}

/* Start of the code point that ends before text[at]; at > 0. */
static inline size_t
ha_utf8_back(const uint8_t *text, size_t at)
{
    do {
        at--;
    } while (at > 0 && (text[at] & 0xC0) == 0x80);
    return at;
}

/* Writes code point c (a scalar value); returns its length, 1 to 4. */
static inline size_t
ha_utf8_encode(uint32_t c, uint8_t *out)
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xC0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xE0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (c & 0x3F));
    return 4;
}

#endif
