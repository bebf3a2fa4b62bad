#include "tokenizer/trie.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK = 256, MAX_OPEN = 32, MAX_FAILURES = 4 };

typedef struct job { uint32_t node; size_t begin, end, depth; } job;     /* keys [begin, end) share `depth` bytes, which lead to `node` */

typedef struct block { uint64_t free[4]; uint32_t n_free, failures, start; } block;

typedef struct builder {
    ha_trie_node *nodes;
    size_t n_nodes, cap_nodes;
    block open[MAX_OPEN];       /* blocks that may still take children */
    size_t n_open;
} builder;

void
ha_trie_free(ha_trie *trie)
{
    free(trie->nodes);
    memset(trie, 0, sizeof(*trie));
}

static int
compare(const void *a, const void *b)
{
    const ha_trie_key *x = a, *y = b;
    const int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    return order != 0 ? order : (x->length > y->length) - (x->length < y->length);
}

static int
is_free(const block *b, unsigned slot)
{
    return (int)(b->free[slot >> 6] >> (slot & 63) & 1);
}

/* Adds 256 free slots and opens them; the open block that failed most often makes room. */
static ha_status
add_block(builder *b, ha_error *err)
{
    if (b->n_nodes + BLOCK > b->cap_nodes) {
        const size_t cap = b->cap_nodes * 2 + 16 * BLOCK;
        ha_trie_node *nodes = cap > UINT32_MAX / 2 ? NULL : realloc(b->nodes, cap * sizeof(*nodes));
        if (nodes == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a vocabulary of %zu nodes", b->n_nodes);
        }
        b->nodes = nodes;
        b->cap_nodes = cap;
    }
    for (size_t i = 0; i < BLOCK; i++) {
        b->nodes[b->n_nodes + i] = (ha_trie_node){0, UINT32_MAX, -1};
    }
    size_t at = b->n_open;
    if (at == MAX_OPEN) {
        at = 0;
        for (size_t i = 1; i < MAX_OPEN; i++) {
            at = b->open[i].n_free < b->open[at].n_free ? i : at;
        }
    } else {
        b->n_open++;
    }
    b->open[at] = (block){{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}, BLOCK, 0, (uint32_t)b->n_nodes};
    b->n_nodes += BLOCK;
    return HA_OK;
}

/* A base inside block k such that the slots of all labels are free, or -1. */
static int
fit(const block *k, const uint8_t *labels, size_t n)
{
    for (unsigned word = 0; word < 4; word++) {
        for (uint64_t bits = k->free[word]; bits != 0; bits &= bits - 1) {
            unsigned low = 0;
            for (uint64_t b = bits & (~bits + 1); b > 1; b >>= 1) {
                low++;
            }
            const unsigned base = (word * 64 + low) ^ labels[0];
            size_t i = 1;
            while (i < n && is_free(k, base ^ labels[i])) {
                i++;
            }
            if (i == n) {
                return (int)base;
            }
        }
    }
    return -1;
}

/* Finds a base for these labels, takes their slots for children of `parent`. */
static ha_status
place(builder *b, uint32_t parent, const uint8_t *labels, size_t n, ha_error *err)
{
    for (;;) {
        for (size_t i = b->n_open; i-- > 0;) {
            block *k = &b->open[i];
            const int base = k->n_free >= n ? fit(k, labels, n) : -1;
            if (base < 0) {
                if (k->n_free == 0 || (n < 4 && ++k->failures > MAX_FAILURES)) {
                    b->open[i] = b->open[--b->n_open];
                }
                continue;
            }
            b->nodes[parent].base = k->start + (uint32_t)base;
            for (size_t c = 0; c < n; c++) {
                const unsigned slot = (unsigned)base ^ labels[c];
                k->free[slot >> 6] &= ~((uint64_t)1 << (slot & 63));
                b->nodes[k->start + slot].check = parent;
            }
            k->n_free -= (uint32_t)n;
            return HA_OK;
        }
        const ha_status status = add_block(b, err);
        if (status != HA_OK) {
            return status;
        }
    }
}

/* Gives `node` its children and pushes one job for each; the stack holds at most 256 jobs a level of the longest key. */
static ha_status
expand(builder *b, const ha_trie_key *keys, job now, job **stack, size_t *n_stack, size_t *cap_stack, ha_error *err)
{
    uint8_t labels[BLOCK];
    size_t starts[BLOCK + 1], n = 0;
    for (size_t i = now.begin; i < now.end; i++) {
        if (keys[i].length == now.depth) {
            b->nodes[now.node].value = keys[i].value;       /* sorted: the key that ends here comes first */
            continue;
        }
        const uint8_t label = (uint8_t)keys[i].text[now.depth];
        if (n == 0 || labels[n - 1] != label) {
            labels[n] = label;
            starts[n++] = i;
        }
    }
    if (n == 0) {
        return HA_OK;
    }
    starts[n] = now.end;
    const ha_status status = place(b, now.node, labels, n, err);
    if (status != HA_OK) {
        return status;
    }
    if (*n_stack + n > *cap_stack) {
        job *grown = realloc(*stack, (*n_stack + n) * 2 * sizeof(job));
        if (grown == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a vocabulary");
        }
        *stack = grown;
        *cap_stack = (*n_stack + n) * 2;
    }
    for (size_t c = 0; c < n; c++) {
        (*stack)[(*n_stack)++] = (job){b->nodes[now.node].base ^ labels[c], starts[c], starts[c + 1], now.depth + 1};
    }
    return HA_OK;
}

ha_status
ha_trie_build(ha_trie_key *keys, size_t n, ha_trie *out, ha_error *err)
{
    builder b = {0};
    job *stack = NULL;
    size_t n_stack = 0, cap_stack = 0;
    memset(out, 0, sizeof(*out));
    if (n == 0) {
        return HA_OK;
    }
    qsort(keys, n, sizeof(*keys), compare);
    for (size_t i = 0; i < n; i++) {
        if (keys[i].length == 0) {
            return ha_fail(err, HA_ERR_FORMAT, "a token is empty once it is normalized");
        }
        if (i > 0 && compare(&keys[i - 1], &keys[i]) == 0) {
            return ha_fail(err, HA_ERR_FORMAT, "two tokens are both matched as '%.*s'", (int)(keys[i].length < 80 ? keys[i].length : 80),
                           keys[i].text);
        }
    }
    ha_status status = add_block(&b, err);
    if (status == HA_OK) {
        b.nodes[0].check = 0x7FFFFFFF;      /* the root: taken, and nobody's child */
        b.open[0].free[0] &= ~(uint64_t)1;
        b.open[0].n_free--;
        status = expand(&b, keys, (job){0, 0, n, 0}, &stack, &n_stack, &cap_stack, err);
    }
    while (status == HA_OK && n_stack > 0) {
        status = expand(&b, keys, stack[--n_stack], &stack, &n_stack, &cap_stack, err);
    }
    free(stack);
    if (status != HA_OK) {
        free(b.nodes);
        return status;
    }
    ha_trie_node *fitted = realloc(b.nodes, b.n_nodes * sizeof(*fitted));
    out->nodes = fitted != NULL ? fitted : b.nodes;
    out->n_nodes = b.n_nodes;
    return HA_OK;
}
