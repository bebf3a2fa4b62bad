#include "core/utf8.h"

#include <string.h>

size_t
ha_utf8_ascii_prefix(const uint8_t *text, size_t length)
{
    size_t i = 0;
    for (; length - i >= 8; i += 8) {
        uint64_t word;
        memcpy(&word, text + i, 8);
        if ((word & 0x8080808080808080u) != 0) {
            break;
        }
    }
    while (i < length && text[i] < 0x80) {
        i++;
    }
    return i;
}

/* Length of the well-formed sequence at text[0] (1 to 4), or 0 with *bad = bytes of the maximal ill-formed part (Unicode 15, table 3-7). */
static size_t
sequence(const uint8_t *text, size_t length, size_t *bad)
{
    const uint8_t a = text[0];
    uint8_t low = 0x80, high = 0xBF;
    size_t need;
    *bad = 1;
    if (a < 0x80) {
        return 1;
    }
    if (a >= 0xC2 && a <= 0xDF) {
        need = 2;
    } else if (a >= 0xE0 && a <= 0xEF) {
        need = 3;
        low = a == 0xE0 ? 0xA0 : low;
        high = a == 0xED ? 0x9F : high;
    } else if (a >= 0xF0 && a <= 0xF4) {
        need = 4;
        low = a == 0xF0 ? 0x90 : low;
        high = a == 0xF4 ? 0x8F : high;
    } else {
        return 0;
    }
    for (size_t i = 1; i < need; i++) {
        if (i >= length || text[i] < low || text[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80, high = 0xBF;
    }
    return need;
}

size_t
ha_utf8_valid_prefix(const uint8_t *text, size_t length)
{
    size_t i = 0, bad;
    while (i < length) {
        i += ha_utf8_ascii_prefix(text + i, length - i);
        if (i >= length) {
            break;
        }
        const size_t size = sequence(text + i, length - i, &bad);
        if (size == 0) {
            break;
        }
        i += size;
    }
    return i;
}

size_t
ha_utf8_lossy(const uint8_t *text, size_t length, char *out)
{
    size_t n = 0, bad;
    for (size_t i = 0; i < length;) {
        const size_t size = sequence(text + i, length - i, &bad);
        if (out != NULL) {
            memcpy(out + n, size > 0 ? (const char *)text + i : "\xEF\xBF\xBD", size > 0 ? size : 3);
        }
        n += size > 0 ? size : 3;
        i += size > 0 ? size : bad;
    }
    return n;
}
