/* A double-array trie over byte strings (Aoe 1989, "An efficient digital search algorithm by using a double-array structure") in units of 8 bytes. The child of
 * a node lies at base XOR label, so that the children of a node share one block of 256 units, and a unit carries its label instead of its parent (Yata 2008,
 * Darts-clone): no two nodes have the same base, hence the label alone tells whether a unit is one's child. */
#ifndef HARMAUG_TOKENIZER_TRIE_H
#define HARMAUG_TOKENIZER_TRIE_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct ha_trie_key {
    const char *text;
    size_t length;
    int32_t value;          /* >= 0 */
} ha_trie_key;

typedef struct ha_trie_unit {
    uint32_t link;          /* base << 8 | label; base 0: no children, and nothing lies at 0 XOR any byte */
    int32_t value;          /* -1: no key ends here */
} ha_trie_unit;

/* Zeroed: the empty trie. The root is unit 0. n_units is a multiple of 256 and at most 2^24, and every base is below it: no step leaves the units. */
typedef struct ha_trie {
    ha_trie_unit *units;
    size_t n_units;
} ha_trie;

/* Builds from n keys, which it reorders; they are not kept. An empty key and equal ones (named in the message) are HA_ERR_FORMAT, and so are keys of more
 * than about 16 million different prefixes. Time is linear in the bytes of the keys: 128,000 words take some 20 ms. */
ha_status ha_trie_build(ha_trie_key *keys, size_t n, ha_trie *out, ha_error *err);
void ha_trie_free(ha_trie *trie);

/* A walk: link of the root (the trie is not empty), then one step a byte. A step is 1 and moves *link to the child, whose value is in *value (-1: a prefix of
 * keys only), or 0: no key goes on so. */
static inline uint32_t
ha_trie_root(const ha_trie *trie)
{
    return trie->units[0].link;
}

static inline int
ha_trie_step(const ha_trie *trie, uint32_t *link, uint8_t byte, int32_t *value)
{
    const ha_trie_unit unit = trie->units[(*link >> 8) ^ byte];
    *link = unit.link;
    *value = unit.value;
    return (uint8_t)unit.link == byte;
}

/* Every key that is a prefix of text[0..n), shorter ones first: ha_trie_next is 1 and sets .length and .value to the next one's, or 0 at the end. */
typedef struct ha_trie_walk {
    const ha_trie *trie;
    const uint8_t *text;
    size_t n, length;
    uint32_t link;
    int32_t value;
} ha_trie_walk;

static inline ha_trie_walk
ha_trie_begin(const ha_trie *trie, const uint8_t *text, size_t n)
{
    return trie->units == NULL ? (ha_trie_walk){trie, text, 0, 0, 0, -1} : (ha_trie_walk){trie, text, n, 0, ha_trie_root(trie), -1};
}

static inline int
ha_trie_next(ha_trie_walk *walk)
{
    while (walk->length < walk->n && ha_trie_step(walk->trie, &walk->link, walk->text[walk->length], &walk->value)) {
        walk->length++;
        if (walk->value >= 0) {
            return 1;
        }
    }
    walk->n = walk->length;     /* asked again, it still is the end */
    return 0;
}

/* Length of the longest key that is a prefix of text[0..n), its value in *value; 0 when there is none. */
static inline size_t
ha_trie_longest(const ha_trie *trie, const uint8_t *text, size_t n, int32_t *value)
{
    size_t found = 0;
    for (ha_trie_walk walk = ha_trie_begin(trie, text, n); ha_trie_next(&walk);) {
        found = walk.length;
        *value = walk.value;
    }
    return found;
}

#endif
