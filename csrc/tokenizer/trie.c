#include "tokenizer/trie.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK = 256, WORDS = BLOCK / 64, MAX_OPEN = 32, MAX_FAILURES = 16, MAX_UNITS = 1 << 24, FEW = 48 };

typedef struct job { uint32_t node; size_t begin, end, depth; } job;     /* keys [begin, end) share `depth` bytes, which lead to `node` */

typedef struct set { uint64_t word[WORDS]; } set;       /* of numbers below 256 */

typedef struct block { set free, bases; uint32_t n_free, failures, start; } block;     /* bases: those in use */

typedef struct builder {
    ha_trie_unit *units;
    size_t n_units, cap_units;
    block open[MAX_OPEN];       /* blocks that may still take children */
    size_t n_open;
} builder;

void
ha_trie_free(ha_trie *trie)
{
    free(trie->units);
    memset(trie, 0, sizeof(*trie));
}

static int
first_of(const set *s)
{
    for (int i = 0; i < WORDS; i++) {
        if (s->word[i] != 0) {
            return 64 * i + __builtin_ctzll(s->word[i]);
        }
    }
    return -1;
}

static void
toggle(set *s, unsigned x)
{
    s->word[x >> 6] ^= (uint64_t)1 << (x & 63);
}

/* {x XOR k: x in w}, for k below 64: one exchange of neighbours for each bit of k. */
static uint64_t
xor_all(uint64_t w, unsigned k)
{
    static const uint64_t even[6] = {0x5555555555555555u, 0x3333333333333333u, 0x0F0F0F0F0F0F0F0Fu,
                                     0x00FF00FF00FF00FFu, 0x0000FFFF0000FFFFu, 0x00000000FFFFFFFFu};
    for (unsigned i = 0; i < 6; i++) {
        if (k >> i & 1) {
            w = (w >> (1u << i) & even[i]) | (w & even[i]) << (1u << i);
        }
    }
    return w;
}

/* A base inside block k that nobody has, with free units for all labels, or -1: all 256 are tried at once. */
static int
fit(const block *k, const uint8_t *labels, size_t n)
{
    set found;
    for (unsigned i = 0; i < WORDS; i++) {
        found.word[i] = ~k->bases.word[i];
    }
    for (size_t c = 0; c < n; c++) {
        uint64_t any = 0;
        for (unsigned i = 0; i < WORDS; i++) {
            any |= found.word[i] &= xor_all(k->free.word[i ^ (labels[c] >> 6)], labels[c] & 63);
        }
        if (any == 0) {
            return -1;
        }
    }
    return first_of(&found);
}

/* Labels what is left of a block such that it is nobody's child: as a child of a base that no node has. There is one, for each base in use has taken a unit. */
static void
close_block(builder *b, size_t at)
{
    block *k = &b->open[at];
    set unused;
    if (k->start == 0) {        /* the root, and the unit kept free for it to find a base other than 0 */
        toggle(&k->free, 0);
        toggle(&k->free, 1);
    }
    for (unsigned i = 0; i < WORDS; i++) {
        unused.word[i] = ~k->bases.word[i];
    }
    const int base = first_of(&unused);
    for (int slot; (slot = first_of(&k->free)) >= 0; toggle(&k->free, (unsigned)slot)) {
        ha_trie_unit *unit = &b->units[k->start + (unsigned)slot];
        unit->link = (unit->link & ~(uint32_t)0xFF) | (uint32_t)(base ^ slot);
    }
    b->open[at] = b->open[--b->n_open];
}

/* Opens 256 free units; the open block that is fullest makes room. */
static ha_status
add_block(builder *b, ha_error *err)
{
    if (b->n_units + BLOCK > MAX_UNITS) {
        return ha_fail(err, HA_ERR_FORMAT, "the vocabulary has more than %d nodes", MAX_UNITS);
    }
    if (b->n_units + BLOCK > b->cap_units) {
        const size_t cap = b->cap_units * 2 + 16 * BLOCK;
        ha_trie_unit *units = realloc(b->units, cap * sizeof(*units));
        if (units == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a vocabulary of %zu nodes", b->n_units);
        }
        b->units = units;
        b->cap_units = cap;
    }
    for (size_t i = 0; i < BLOCK; i++) {
        b->units[b->n_units + i] = (ha_trie_unit){0, -1};
    }
    if (b->n_open == MAX_OPEN) {
        size_t fullest = 0;
        for (size_t i = 1; i < MAX_OPEN; i++) {
            fullest = b->open[i].n_free < b->open[fullest].n_free ? i : fullest;
        }
        close_block(b, fullest);
    }
    block *k = &b->open[b->n_open++];
    *k = (block){{{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}}, {{0}}, BLOCK, 0, (uint32_t)b->n_units};
    if (b->n_units == 0) {      /* base 0 says that a node has no children: it counts as taken, and two units stay free so that close_block finds another */
        toggle(&k->bases, 0);
        toggle(&k->free, 0);
        toggle(&k->free, 1);
        k->n_free -= 2;
    }
    b->n_units += BLOCK;
    return HA_OK;
}

/* Finds a base for these labels and takes their units for the children of `parent`. */
static ha_status
place(builder *b, uint32_t parent, const uint8_t *labels, size_t n, ha_error *err)
{
    for (;;) {
        for (size_t i = b->n_open; i-- > 0;) {
            block *k = &b->open[i];
            const int base = k->n_free >= n ? fit(k, labels, n) : -1;
            if (base < 0) {
                if (k->n_free == 0 || (n < 4 && ++k->failures > MAX_FAILURES)) {
                    close_block(b, i);
                }
                continue;
            }
            toggle(&k->bases, (unsigned)base);
            b->units[parent].link |= (k->start + (uint32_t)base) << 8;
            for (size_t c = 0; c < n; c++) {
                const unsigned slot = (unsigned)base ^ labels[c];
                toggle(&k->free, slot);
                b->units[k->start + slot].link = labels[c];
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

static void
swap(ha_trie_key *a, ha_trie_key *b)
{
    const ha_trie_key t = *a;
    *a = *b;
    *b = t;
}

static void
sort_few(ha_trie_key *keys, size_t n, size_t depth)
{
    for (size_t i = 1; i < n; i++) {
        const ha_trie_key key = keys[i];
        size_t k = i;
        for (; k > 0 && (uint8_t)keys[k - 1].text[depth] > (uint8_t)key.text[depth]; k--) {
            keys[k] = keys[k - 1];
        }
        keys[k] = key;
    }
}

/* Sorts keys, all longer than `depth`, by the byte there: each is moved to its bucket (McIlroy, Bostic & McIlroy 1993, "Engineering radix sort"). */
static void
sort_many(ha_trie_key *keys, size_t n, size_t depth)
{
    size_t next[BLOCK] = {0}, end[BLOCK], at = 0;
    for (size_t i = 0; i < n; i++) {
        next[(uint8_t)keys[i].text[depth]]++;
    }
    for (size_t c = 0; c < BLOCK; c++) {
        const size_t count = next[c];
        next[c] = at;
        end[c] = at += count;
    }
    for (size_t c = 0; c < BLOCK; c++) {
        while (next[c] < end[c]) {
            const uint8_t label = (uint8_t)keys[next[c]].text[depth];
            if (label == c) {
                next[c]++;
            } else {
                swap(&keys[next[c]], &keys[next[label]++]);
            }
        }
    }
}

/* Gives the node of job `now` its value and its children, and pushes one job for each. */
static ha_status
expand(builder *b, ha_trie_key *keys, job now, job *stack, size_t *n_stack, ha_error *err)
{
    uint8_t labels[BLOCK];
    size_t starts[BLOCK + 1], n = 0;
    for (size_t i = now.begin; i < now.end; i++) {
        if (keys[i].length > now.depth) {
            continue;
        }
        if (b->units[now.node].value >= 0) {
            return ha_fail(err, HA_ERR_FORMAT, "two tokens are both matched as '%.*s'", (int)(keys[i].length < 80 ? keys[i].length : 80), keys[i].text);
        }
        b->units[now.node].value = keys[i].value;
        swap(&keys[now.begin++], &keys[i]);
    }
    (now.end - now.begin <= FEW ? sort_few : sort_many)(keys + now.begin, now.end - now.begin, now.depth);
    for (size_t i = now.begin; i < now.end; i++) {
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
    for (size_t c = 0; c < n; c++) {
        stack[(*n_stack)++] = (job){(b->units[now.node].link >> 8) ^ labels[c], starts[c], starts[c + 1], now.depth + 1};
    }
    return HA_OK;
}

ha_status
ha_trie_build(ha_trie_key *keys, size_t n, ha_trie *out, ha_error *err)
{
    builder b = {0};
    memset(out, 0, sizeof(*out));
    if (n == 0) {
        return HA_OK;
    }
    for (size_t i = 0; i < n; i++) {
        if (keys[i].length == 0) {
            return ha_fail(err, HA_ERR_FORMAT, "a token is empty once it is normalized");
        }
    }
    job *stack = n > SIZE_MAX / sizeof(*stack) - 1 ? NULL : malloc((n + 1) * sizeof(*stack));    /* jobs that wait have no key in common: at most n */
    ha_status status = stack == NULL ? ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n) : add_block(&b, err);
    size_t n_stack = 0;
    if (status == HA_OK) {
        stack[n_stack++] = (job){0, 0, n, 0};
    }
    while (status == HA_OK && n_stack > 0) {
        n_stack--;
        status = expand(&b, keys, stack[n_stack], stack, &n_stack, err);
    }
    free(stack);
    if (status != HA_OK) {
        free(b.units);
        return status;
    }
    while (b.n_open > 0) {
        close_block(&b, b.n_open - 1);
    }
    ha_trie_unit *fitted = realloc(b.units, b.n_units * sizeof(*fitted));
    out->units = fitted != NULL ? fitted : b.units;
    out->n_units = b.n_units;
    return HA_OK;
}
