/* A double-array trie over byte strings (Aoe 1989, "An efficient digital search algorithm by using a double-array structure"), with the child of a node at
 * base XOR label, so that the children of a node share one block of 256 slots (Yata 2008, Darts-clone). */
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

typedef struct ha_trie_node {
    uint32_t base, check;   /* check: the parent; UINT32_MAX: a free slot */
    int32_t value;          /* -1: no key ends here */
} ha_trie_node;

typedef struct ha_trie {    /* zeroed: the empty trie */
    ha_trie_node *nodes;
    size_t n_nodes;
} ha_trie;

/* Builds from n keys, which it sorts in place; they are not kept. Empty keys are HA_ERR_FORMAT, and so are equal ones (named in the message). */
ha_status ha_trie_build(ha_trie_key *keys, size_t n, ha_trie *out, ha_error *err);
void ha_trie_free(ha_trie *trie);

/* Length of the longest key that is a prefix of text[0..n), its value in *value; 0 when there is none. */
static inline size_t
ha_trie_longest(const ha_trie *trie, const uint8_t *text, size_t n, int32_t *value)
{
    const ha_trie_node *nodes = trie->nodes;
    size_t found = 0;
    uint32_t at = 0;
    if (nodes == NULL) {
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        const uint32_t next = nodes[at].base ^ text[i];
        if (nodes[next].check != at) {
            break;
        }
        at = next;
        if (nodes[at].value >= 0) {
            found = i + 1;
            *value = nodes[at].value;
        }
    }
    return found;
}

#endif
