#include "tokenizer/unicode.h"

#include "core/utf8.h"

enum { S_BASE = 0xAC00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11A7, L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = 11172 };

size_t
ha_uc_decompose(uint32_t c, int compatibility, uint32_t out[HA_UC_MAX_PARTS])
{
    if (c - S_BASE < S_COUNT) {
        const uint32_t s = c - S_BASE;
        out[0] = L_BASE + s / (V_COUNT * T_COUNT);
        out[1] = V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT;
        out[2] = T_BASE + s % T_COUNT;
        return s % T_COUNT != 0 ? 3 : 2;
    }
    const size_t at = compatibility ? ha_uc_nfkd_blocks[(size_t)ha_uc_nfkd_index[c >> 8] << 8 | (c & 0xFF)]
                                    : ha_uc_nfd_blocks[(size_t)ha_uc_nfd_index[c >> 8] << 8 | (c & 0xFF)];
    if (at == 0) {
        out[0] = c;
        return 1;
    }
    const size_t n = ha_uc_nfd_pool[at];
    for (size_t i = 0; i < n; i++) {
        out[i] = ha_uc_nfd_pool[at + 1 + i];
    }
    return n;
}

uint32_t
ha_uc_compose(uint32_t first, uint32_t second)
{
    if ((ha_uc_flags(second) & HA_UC_SECOND) == 0) {
        return 0;
    }
    if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT) {
        return S_BASE + ((first - L_BASE) * V_COUNT + (second - V_BASE)) * T_COUNT;
    }
    if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 && second > T_BASE && second < T_BASE + T_COUNT) {
        return first + (second - T_BASE);
    }
    size_t low = 0, high = ha_uc_n_pairs;
    while (low < high) {
        const size_t mid = (low + high) / 2;
        const uint32_t *p = ha_uc_pairs + 3 * mid;
        if (p[0] == first && p[1] == second) {
            return p[2];
        }
        if (p[0] < first || (p[0] == first && p[1] < second)) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return 0;
}

/* ---- grapheme clusters ---- */

enum { ZWJ = 0x200D };

/* Whether the characters a, b with these flags stay together: rules GB3 to GB11 in the order of UAX #29. conjunct 2: a consonant and a linker stand before b
 * (GB9c); pictograph 2: a pictograph and U+200D (GB11). */
static int
joined(uint32_t a, uint32_t b, unsigned fa, unsigned fb, unsigned conjunct, unsigned pictograph)
{
    if ((fa | fb) & HA_GR_CONTROL) {
        return a == '\r' && b == '\n';
    }
    return ((fa & HA_GR_BEFORE_L) && (fb & (HA_GR_AFTER_L | HA_GR_AFTER_V))) || ((fa & HA_GR_BEFORE_V) && (fb & (HA_GR_AFTER_V | HA_GR_AFTER_T)))
           || ((fa & HA_GR_BEFORE_T) && (fb & HA_GR_AFTER_T)) || (fb & HA_GR_JOIN) || (fa & HA_GR_PREPEND)
           || ((fb & HA_GR_CONSONANT) && conjunct == 2) || ((fb & HA_GR_PICT) && pictograph == 2);
}

size_t
ha_uc_grapheme(const uint8_t *text, size_t begin, size_t end, ha_grapheme_state *state)
{
    size_t size;
    unsigned pictograph = 0;
    uint32_t c = ha_utf8_decode(text + begin, &size);
    unsigned flags = ha_uc_grapheme_class(c);
    size_t at = begin + size;
    for (;;) {
        state->conjunct = flags & HA_GR_CONSONANT ? 1 : flags & HA_GR_LINKER ? state->conjunct * 2 : flags & HA_GR_INCB_EXTEND ? state->conjunct : 0;
        state->conjunct = state->conjunct > 2 ? 2 : state->conjunct;
        pictograph = flags & HA_GR_PICT ? 1 : c == ZWJ && pictograph == 1 ? 2 : flags & HA_GR_EXTEND && pictograph == 1 ? 1 : 0;
        if (at == end) {
            return at - begin;
        }
        const uint32_t next = ha_utf8_decode(text + at, &size);
        const unsigned next_flags = ha_uc_grapheme_class(next);
        if (!joined(c, next, flags, next_flags, state->conjunct, pictograph)) {
            return at - begin;
        }
        c = next, flags = next_flags, at += size;
    }
}
