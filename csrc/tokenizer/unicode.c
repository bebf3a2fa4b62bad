#include "tokenizer/unicode.h"

enum { S_BASE = 0xAC00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11A7, L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = 11172 };

size_t
ha_uc_decompose(uint32_t c, uint32_t out[HA_UC_MAX_NFD])
{
    if (c - S_BASE < S_COUNT) {
        const uint32_t s = c - S_BASE;
        out[0] = L_BASE + s / (V_COUNT * T_COUNT);
        out[1] = V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT;
        out[2] = T_BASE + s % T_COUNT;
        return s % T_COUNT != 0 ? 3 : 2;
    }
    const size_t at = ha_uc_nfd_blocks[(size_t)ha_uc_nfd_index[c >> 8] << 8 | (c & 0xFF)];
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
