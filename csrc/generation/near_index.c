#include "generation/near_index.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"

#define WIDTH 5
#define NONE UINT32_MAX
#define FIRST_COUNT 256

/* Five code points of 21 bits and how many there are. */
typedef struct gram {
    uint64_t low, high;
} gram;

typedef struct posting {
    uint32_t text, next;        /* the one posted before it, or NONE */
} posting;

struct ha_near_index {
    double threshold;
    uint64_t hash_key[2];
    /* grams by number, in the order in which they were first seen */
    gram *grams;
    uint32_t *count;            /* texts that held it at the last count; 0: it is newer */
    uint32_t *head;             /* its newest posting, or NONE */
    uint32_t *mark;             /* the last call that its query held it in */
    size_t n_grams, room_grams;
    uint32_t *slots;            /* gram number + 1, 0: empty; a power of two of them, at most half full */
    size_t n_slots;
    /* texts: the numbers of i are held[begins[i]] to held[begins[i + 1]] */
    uint32_t *held;
    size_t n_held, room_held;
    size_t *begins;
    uint32_t *seen;             /* the last call that looked at it */
    size_t n_texts, room_texts, count_next;
    posting *postings;
    size_t n_postings, room_postings;
    uint32_t call;
    /* the grams of the text at hand */
    gram *query;
    uint32_t *numbers;
    size_t room_query;
};

/* 1, or 0 when there is no memory or the count no longer fits: *items then stays as it was. */
static int
reserve(void *items, size_t *room, size_t wanted, size_t size)
{
    void **at = items, *larger;
    size_t n = *room < 64 ? 64 : *room;
    while (n < wanted) {
        n *= 2;
    }
    if (wanted >= NONE || n > SIZE_MAX / size) {
        return 0;
    }
    if (n > *room) {
        if ((larger = realloc(*at, n * size)) == NULL) {
            return 0;
        }
        *at = larger;
        *room = n;
    }
    return 1;
}

ha_status
ha_near_index_new(double threshold, ha_near_index **out, ha_error *err)
{
    *out = NULL;
    if (!(threshold > 0 && threshold <= 1)) {
        return ha_fail(err, HA_ERR_VALUE, "threshold must be in (0, 1], got %g", threshold);
    }
    ha_near_index *index = calloc(1, sizeof(*index));
    if (index == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    index->threshold = threshold;
    index->count_next = FIRST_COUNT;
    ha_hash_key(index->hash_key, index);
    *out = index;
    return HA_OK;
}

void
ha_near_index_free(ha_near_index *index)
{
    if (index != NULL) {
        void *const parts[] = {index->grams, index->count, index->head, index->mark, index->slots, index->held, index->begins, index->seen,
                               index->postings, index->query, index->numbers};
        for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
            free(parts[i]);
        }
        free(index);
    }
}

size_t
ha_near_index_size(const ha_near_index *index)
{
    return index->n_texts;
}

/* -- grams -- */

static int
compare_grams(const void *a, const void *b)
{
    const gram *x = a, *y = b;
    return x->high != y->high ? (x->high > y->high) - (x->high < y->high) : (x->low > y->low) - (x->low < y->low);
}

/* The distinct grams of a text into index->query; 0: out of memory. */
static size_t
take_grams(ha_near_index *index, const uint32_t *points, size_t n)
{
    const size_t n_all = n > WIDTH ? n - WIDTH + 1 : 1, width = n < WIDTH ? n : WIDTH;
    size_t room = index->room_query, n_distinct = 0;
    if (!reserve(&index->query, &room, n_all, sizeof(gram)) || !reserve(&index->numbers, &index->room_query, n_all, sizeof(uint32_t))) {
        return 0;
    }
    for (size_t i = 0; i < n_all; i++) {
        gram g = {0, (uint64_t)width << 42};
        for (size_t j = 0; j < width; j++) {
            const uint64_t point = points[i + j] & 0x1FFFFF;
            *(j < 3 ? &g.low : &g.high) |= point << (21 * (j % 3));
        }
        index->query[i] = g;
    }
    qsort(index->query, n_all, sizeof(gram), compare_grams);
    for (size_t i = 0; i < n_all; i++) {
        if (i == 0 || compare_grams(&index->query[i], &index->query[i - 1]) != 0) {
            index->query[n_distinct++] = index->query[i];
        }
    }
    return n_distinct;
}

/* The slot that holds a gram, or the empty one where it belongs. */
static size_t
slot_of(const ha_near_index *index, const gram *g)
{
    size_t slot = (size_t)ha_siphash(index->hash_key, g, sizeof(*g)) & (index->n_slots - 1);
    while (index->slots[slot] != 0 && compare_grams(&index->grams[index->slots[slot] - 1], g) != 0) {
        slot = (slot + 1) & (index->n_slots - 1);
    }
    return slot;
}

/* Room for n more grams. */
static int
reserve_grams(ha_near_index *index, size_t n)
{
    const size_t wanted = index->n_grams + n;
    size_t rooms[3] = {index->room_grams, index->room_grams, index->room_grams}, n_slots = index->n_slots > 0 ? index->n_slots : 256;
    if (!reserve(&index->grams, &rooms[0], wanted, sizeof(gram)) || !reserve(&index->count, &rooms[1], wanted, sizeof(uint32_t)) ||
        !reserve(&index->head, &rooms[2], wanted, sizeof(uint32_t)) || !reserve(&index->mark, &index->room_grams, wanted, sizeof(uint32_t))) {
        return 0;
    }
    while (n_slots < 2 * wanted) {
        n_slots *= 2;
    }
    if (n_slots != index->n_slots) {
        uint32_t *slots = calloc(n_slots, sizeof(*slots));
        if (slots == NULL) {
            return 0;
        }
        free(index->slots);
        index->slots = slots;
        index->n_slots = n_slots;
        for (size_t i = 0; i < index->n_grams; i++) {
            slots[slot_of(index, &index->grams[i])] = (uint32_t)i + 1;
        }
    }
    return 1;
}

/* -- rare ones first -- */

static int
before(const ha_near_index *index, uint32_t a, uint32_t b)
{
    return index->count[a] != index->count[b] ? index->count[a] < index->count[b] : a < b;
}

static void
sift(const ha_near_index *index, uint32_t *numbers, size_t i, size_t n)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && before(index, numbers[child], numbers[child + 1]);
        if (!before(index, numbers[i], numbers[child])) {
            return;
        }
        const uint32_t moved = numbers[i];
        numbers[i] = numbers[child];
        numbers[child] = moved;
    }
}

static void
sort_by_rarity(const ha_near_index *index, uint32_t *numbers, size_t n)
{
    for (size_t i = n / 2; i-- > 0;) {
        sift(index, numbers, i, n);
    }
    for (size_t last = n; last-- > 1;) {
        const uint32_t moved = numbers[0];
        numbers[0] = numbers[last];
        numbers[last] = moved;
        sift(index, numbers, 0, last);
    }
}

/* How many of the rarest grams of a text of n, a near text holds one of. */
static size_t
prefix(const ha_near_index *index, size_t n)
{
    const size_t shared = (size_t)ceil(index->threshold * (double)n - 1e-9);     /* by a text that is near */
    return n - (shared > 0 ? shared : 1) + 1;
}

/* Post the text's rarest grams, of which there is room for; its numbers are put in the order of their rarity. */
static void
post(ha_near_index *index, size_t text)
{
    uint32_t *numbers = index->held + index->begins[text];
    const size_t n = index->begins[text + 1] - index->begins[text], n_posted = prefix(index, n);
    sort_by_rarity(index, numbers, n);
    for (size_t i = 0; i < n_posted; i++) {
        index->postings[index->n_postings] = (posting){(uint32_t)text, index->head[numbers[i]]};
        index->head[numbers[i]] = (uint32_t)index->n_postings++;
    }
}

static void
count_anew(ha_near_index *index)
{
    memset(index->count, 0, index->n_grams * sizeof(uint32_t));
    memset(index->head, 0xFF, index->n_grams * sizeof(uint32_t));
    for (size_t i = 0; i < index->n_held; i++) {
        index->count[index->held[i]]++;
    }
    index->n_postings = 0;
    for (size_t i = 0; i < index->n_texts; i++) {
        post(index, i);
    }
}

ha_status
ha_near_index_add(ha_near_index *index, const uint32_t *points, size_t n_points, ha_error *err)
{
    const size_t n = take_grams(index, points, n_points);
    size_t room = index->room_texts;
    /* as many postings as grams: enough whatever is counted */
    if (n == 0 || !reserve_grams(index, n) || !reserve(&index->held, &index->room_held, index->n_held + n, sizeof(uint32_t)) ||
        !reserve(&index->postings, &index->room_postings, index->n_held + n, sizeof(posting)) ||
        !reserve(&index->begins, &room, index->n_texts + 2, sizeof(size_t)) ||
        !reserve(&index->seen, &index->room_texts, index->n_texts + 2, sizeof(uint32_t))) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu texts", index->n_texts + 1);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t slot = slot_of(index, &index->query[i]);
        if (index->slots[slot] == 0) {
            const size_t number = index->n_grams++;
            index->grams[number] = index->query[i];
            index->count[number] = index->mark[number] = 0;
            index->head[number] = NONE;
            index->slots[slot] = (uint32_t)number + 1;
        }
        index->held[index->n_held + i] = index->slots[slot] - 1;
    }
    index->begins[index->n_texts] = index->n_held;
    index->n_held += n;
    index->seen[index->n_texts] = 0;
    index->begins[++index->n_texts] = index->n_held;
    if (index->n_texts < index->count_next) {
        post(index, index->n_texts - 1);
        return HA_OK;
    }
    index->count_next *= 2;
    count_anew(index);
    return HA_OK;
}

/* -- the nearest -- */

/* Grams that a text shares with the marked ones, or 0 when they are fewer than `least`. */
static size_t
shared_grams(const ha_near_index *index, size_t text, size_t least)
{
    const size_t begin = index->begins[text], n = index->begins[text + 1] - begin;
    size_t missing = 0;
    for (size_t i = 0; i < n; i++) {
        missing += index->mark[index->held[begin + i]] != index->call;
        if (missing + least > n) {
            return 0;
        }
    }
    return n - missing;
}

/* What texts of n and m grams share at least when their similarity is `similarity`, give or take its rounding. */
static size_t
least_shared(double similarity, size_t n, size_t m)
{
    const double least = ceil(similarity / (1 + similarity) * (double)(n + m) - 1e-6);
    return least > 1 ? (size_t)least : 1;
}

ha_status
ha_near_index_find(ha_near_index *index, const uint32_t *points, size_t n_points, size_t *place, double *similarity, ha_error *err)
{
    const size_t n = take_grams(index, points, n_points);
    size_t n_known = 0;
    *place = SIZE_MAX;
    *similarity = 0;
    if (n == 0) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu characters", n_points);
    }
    if (++index->call == 0) {       /* 2^32 calls: what is marked is forgotten */
        memset(index->mark, 0, index->n_grams * sizeof(uint32_t));
        memset(index->seen, 0, index->n_texts * sizeof(uint32_t));
        index->call = 1;
    }
    for (size_t i = 0; i < n && index->n_slots > 0; i++) {
        const uint32_t number = index->slots[slot_of(index, &index->query[i])];
        if (number != 0) {
            index->numbers[n_known++] = number - 1;
            index->mark[number - 1] = index->call;
        }
    }
    const size_t unknown = n - n_known, rarest = prefix(index, n);     /* the unknown ones are the rarest, and posted nowhere */
    sort_by_rarity(index, index->numbers, n_known);
    for (size_t i = 0; i + unknown < rarest && i < n_known; i++) {
        for (uint32_t at = index->head[index->numbers[i]]; at != NONE; at = index->postings[at].next) {
            const size_t text = index->postings[at].text, m = index->begins[text + 1] - index->begins[text];
            if (index->seen[text] == index->call) {
                continue;
            }
            index->seen[text] = index->call;
            const size_t shared = shared_grams(index, text, least_shared(*similarity > 0 ? *similarity : index->threshold, n, m));
            const double found = (double)shared / (double)(n + m - shared);
            if (found >= index->threshold && (found > *similarity || (found == *similarity && text < *place))) {
                *similarity = found;
                *place = text;
            }
        }
    }
    return HA_OK;
}
