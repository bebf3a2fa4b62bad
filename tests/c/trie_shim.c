/* The trie behind plain functions, for tests/test_trie.py (ctypes). */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/trie.h"

/* Keys i are text[ends[i - 1]..ends[i]) with value i. NULL: `message` (as large as ha_error's) says why. */
ha_trie *
shim_build(const char *text, const uint64_t *ends, size_t n, char *message)
{
    ha_error err;
    ha_trie *trie = calloc(1, sizeof(*trie));
    ha_trie_key *keys = malloc((n + 1) * sizeof(*keys));
    for (size_t i = 0, at = 0; i < n; at = ends[i], i++) {
        keys[i] = (ha_trie_key){text + at, ends[i] - at, (int32_t)i};
    }
    const ha_status status = ha_trie_build(keys, n, trie, &err);
    free(keys);
    if (status != HA_OK) {
        memcpy(message, err.message, sizeof(err.message));
        free(trie);
        return NULL;
    }
    return trie;
}

void
shim_free(ha_trie *trie)
{
    ha_trie_free(trie);
    free(trie);
}

size_t shim_units(const ha_trie *trie) { return trie->n_units; }

/* 1: the array is what the header promises of it, so that no walk leaves it. */
int
shim_check(const ha_trie *trie)
{
    if (trie->n_units % 256 != 0 || trie->n_units > 1 << 24) {
        return 0;
    }
    for (size_t i = 0; i < trie->n_units; i++) {
        if (trie->units[i].link >> 8 >= trie->n_units || trie->units[i].value < -1) {
            return 0;
        }
    }
    return 1;
}

size_t
shim_longest(const ha_trie *trie, const uint8_t *text, size_t n, int32_t *value)
{
    return ha_trie_longest(trie, text, n, value);
}

/* All keys that are prefixes of the text: pairs of length and value; how many. */
size_t
shim_prefixes(const ha_trie *trie, const uint8_t *text, size_t n, int64_t *out)
{
    size_t found = 0;
    ha_trie_walk walk = ha_trie_begin(trie, text, n);
    for (; ha_trie_next(&walk); found++) {
        out[2 * found] = (int64_t)walk.length;
        out[2 * found + 1] = walk.value;
    }
    return ha_trie_next(&walk) ? 0 : found;
}
