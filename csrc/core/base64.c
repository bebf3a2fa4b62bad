#include "core/base64.h"

static int
value_of(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : c == '/' ? 63 : -1;
}

size_t
ha_base64_decode(const char *text, size_t length, uint8_t *out)
{
    size_t n = 0;
    if (length % 4 != 0) {
        return SIZE_MAX;
    }
    for (size_t i = 0; i < length; i += 4) {
        const int last = i + 4 >= length;
        const int n_pad = last ? (text[length - 1] == '=') + (text[length - 1] == '=' && text[length - 2] == '=') : 0;
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) {
            const int value = k >= 4 - n_pad ? 0 : value_of(text[i + (size_t)k]);
            if (value < 0) {
                return SIZE_MAX;
            }
            bits = bits << 6 | (uint32_t)value;
        }
        if (bits & ((1u << 8 * n_pad) - 1)) {
            return SIZE_MAX;    /* bits beyond the last byte */
        }
        for (int k = 0; k < 3 - n_pad; k++) {
            out[n++] = (uint8_t)(bits >> (16 - 8 * k));
        }
    }
    return n;
}
