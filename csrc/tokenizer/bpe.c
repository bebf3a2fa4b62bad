#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "core/utf8.h"
#include "tokenizer/model.h"
#include "tokenizer/word_cache.h"

enum { SMALL = 24 };        /* up to this many symbols the lowest rank is found by looking at all, above by a heap */

void
ha_bpe_free(ha_bpe *model)
{
    free(model->merges);
    for (int place = 0; place < HA_BPE_PLACES; place++) {
        ha_trie_free(&model->chars[place]);
    }
    ha_trie_free(&model->long_words);
}

void
ha_bpe_scratch_free(ha_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    memset(scratch, 0, sizeof(*scratch));
}

uint32_t
ha_byte_to_char(uint8_t byte)
{
    if ((byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD)) {
        return byte;
    }
    return byte < 0x21 ? 0x100u + byte : byte < 0xA1 ? 0x100u + 0x21 + (byte - 0x7Fu) : 0x143;
}

int
ha_char_to_byte(uint32_t c)
{
    if (c < 0x100) {
        return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c != 0xAD) ? (int)c : -1;
    }
    return c < 0x121 ? (int)(c - 0x100) : c < 0x143 ? (int)(c - 0x121 + 0x7F) : c == 0x143 ? 0xAD : -1;
}

/* ---- symbols of the vocabulary ---- */

/* Of the first n_tokens tokens alone, which are the model's own. */
static int32_t
own_id(const ha_vocab *vocab, size_t n_tokens, const char *text, size_t length)
{
    const int32_t id = ha_vocab_id(vocab, text, length);
    return id >= 0 && (size_t)vocab->by_id[id] < n_tokens ? id : -1;
}

/* How a symbol is written in a place of a word. */
static ha_affixes
affixes_at(ha_affixes affixes, int place)
{
    affixes.prefix_length = (place & HA_BPE_GOES_ON) != 0 ? affixes.prefix_length : 0;
    affixes.suffix_length = (place & HA_BPE_ENDS) != 0 ? affixes.suffix_length : 0;
    return affixes;
}

/* Whether the token is one character between the affixes, which *key then is. */
static int
is_character(const ha_vocab *vocab, ha_vocab_token token, ha_affixes a, ha_trie_key *key)
{
    const char *text = vocab->text + token.at;
    const size_t around = a.prefix_length + a.suffix_length;
    size_t size;
    if (token.length <= around || token.length > around + 4 || (a.prefix_length > 0 && memcmp(text, a.prefix, a.prefix_length) != 0)
        || (a.suffix_length > 0 && memcmp(text + token.length - a.suffix_length, a.suffix, a.suffix_length) != 0)) {
        return 0;
    }
    *key = (ha_trie_key){text + a.prefix_length, token.length - around, token.id};
    ha_utf8_decode((const uint8_t *)key->text, &size);
    return size == key->length;
}

ha_status
ha_bpe_read_bytes(ha_bpe *model, const ha_vocab *vocab, size_t n_tokens, ha_affixes affixes, ha_error *err)
{
    char *text = malloc(affixes.prefix_length + 4 + affixes.suffix_length);
    if (text == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n_tokens);
    }
    model->all_bytes = 1;
    model->affixes = affixes.prefix_length + affixes.suffix_length > 0;
    for (int place = 0; place < (model->affixes ? HA_BPE_PLACES : 1); place++) {
        const ha_affixes a = affixes_at(affixes, place);
        for (unsigned byte = 0; byte < 256; byte++) {
            size_t n = a.prefix_length;
            if (n > 0) {
                memcpy(text, a.prefix, n);
            }
            n += ha_utf8_encode(ha_byte_to_char((uint8_t)byte), (uint8_t *)text + n);
            if (a.suffix_length > 0) {
                memcpy(text + n, a.suffix, a.suffix_length);
            }
            model->byte_ids[place][byte] = own_id(vocab, n_tokens, text, n + a.suffix_length);
            model->all_bytes &= model->byte_ids[place][byte] >= 0;
        }
    }
    free(text);
    return HA_OK;
}

ha_status
ha_bpe_read_characters(ha_bpe *model, const ha_vocab *vocab, size_t n_tokens, ha_affixes affixes, ha_error *err)
{
    static const char digits[] = "0123456789ABCDEF";
    ha_trie_key *keys = malloc((n_tokens + 1) * sizeof(*keys));
    ha_status status = keys != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n_tokens);
    model->characters = 1;
    model->affixes = affixes.prefix_length + affixes.suffix_length > 0;
    for (int place = 0; place < (model->affixes ? HA_BPE_PLACES : 1) && status == HA_OK; place++) {
        size_t n = 0;
        for (size_t i = 0; i < n_tokens && i < vocab->n_tokens; i++) {
            n += (size_t)is_character(vocab, vocab->tokens[i], affixes_at(affixes, place), &keys[n]);
        }
        status = ha_trie_build(keys, n, &model->chars[place], err);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        const char text[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        model->byte_ids[0][byte] = own_id(vocab, n_tokens, text, sizeof(text));
    }
    free(keys);
    return status;
}

/* ---- merges ---- */

static uint64_t
pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t
slot_of(const ha_bpe *model, uint64_t pair)
{
    uint64_t h = (pair ^ model->seed) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    return (size_t)(h * 0xD6E8FEB86659FD93u >> 20) & (model->n_slots - 1);
}

static const ha_bpe_merge *
find(const ha_bpe *model, int32_t left, int32_t right)
{
    if (model->n_slots == 0) {
        return NULL;
    }
    const uint64_t pair = pair_of(left, right);
    for (size_t i = slot_of(model, pair);; i = (i + 1) & (model->n_slots - 1)) {
        const ha_bpe_merge *m = &model->merges[i];
        if (m->rank < 0) {
            return NULL;
        }
        if (m->pair == pair) {
            return m;
        }
    }
}

ha_status
ha_bpe_reserve(ha_bpe *model, size_t n, ha_error *err)
{
    size_t slots = 64;
    while (slots < n * 2 && slots < SIZE_MAX / 64) {
        slots *= 2;
    }
    model->merges = n > INT32_MAX / 4 ? NULL : malloc(slots * sizeof(*model->merges));
    if (model->merges == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu merges", n);
    }
    for (size_t i = 0; i < slots; i++) {
        model->merges[i].rank = -1;
    }
    model->n_slots = slots;
    model->n_merges = 0;
    uint64_t key[2];
    ha_hash_key(key, model->merges);
    model->seed = key[0] ^ key[1];
    return HA_OK;
}

void
ha_bpe_add_ranked(ha_bpe *model, int32_t left, int32_t right, int32_t rank, int32_t merged)
{
    const uint64_t pair = pair_of(left, right);
    size_t i = slot_of(model, pair);
    while (model->merges[i].rank >= 0 && model->merges[i].pair != pair) {
        i = (i + 1) & (model->n_slots - 1);
    }
    model->merges[i] = (ha_bpe_merge){pair, rank, merged};
    model->n_merges++;
}

void
ha_bpe_add_merge(ha_bpe *model, int32_t left, int32_t right, int32_t merged)
{
    ha_bpe_add_ranked(model, left, right, (int32_t)model->n_merges, merged);
}

/* *id: what the two texts make together, looked for at id `guess` first. */
static ha_status
find_joined(const ha_vocab *vocab, const char *const half[2], const size_t length[2], int32_t guess, int32_t *id, ha_error *err)
{
    char small[256], *both = small;
    const size_t total = length[0] + length[1];
    if (total > sizeof(small) && (both = malloc(total)) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for a merge");
    }
    memcpy(both, half[0], length[0]);
    memcpy(both + length[0], half[1], length[1]);
    size_t guessed_length;
    const char *guessed = ha_vocab_text(vocab, guess, &guessed_length);
    const int known = guessed != NULL && guessed_length == total && memcmp(guessed, both, total) == 0;
    *id = known ? guess : ha_vocab_id(vocab, both, total);
    if (both != small) {
        free(both);
    }
    return HA_OK;
}

ha_status
ha_merge_find(const ha_vocab *vocab, size_t i, const char *const half[2], const size_t length[2], int32_t guess, ha_merge *out, ha_error *err)
{
    const int32_t left = ha_vocab_id(vocab, half[0], length[0]), right = ha_vocab_id(vocab, half[1], length[1]);
    *out = (ha_merge){left, right, -1};
    if (left < 0 || right < 0 || length[0] == 0 || length[1] == 0) {
        return ha_fail(err, HA_ERR_FORMAT, "merges[%zu]: the %s half is not in the vocabulary", i, left < 0 || length[0] == 0 ? "left" : "right");
    }
    return find_joined(vocab, half, length, guess, &out->merged, err);
}

ha_status
ha_merge_without_prefix(const ha_vocab *vocab, size_t i, size_t prefix_length, ha_merge *merge, ha_error *err)
{
    size_t length[2];
    const char *half[2] = {ha_vocab_text(vocab, merge->left, &length[0]), ha_vocab_text(vocab, merge->right, &length[1])};
    if (length[1] < prefix_length || ((uint8_t)half[1][prefix_length] & 0xC0) == 0x80) {
        return ha_fail(err, HA_ERR_FORMAT, "merges[%zu]: the right half has no room for continuing_subword_prefix", i);
    }
    half[1] += prefix_length, length[1] -= prefix_length;
    return find_joined(vocab, half, length, -1, &merge->merged, err);
}

ha_status
ha_bpe_add_found(ha_bpe *model, size_t i, ha_merge merge, ha_error *err)
{
    if (merge.merged < 0) {
        return ha_fail(err, HA_ERR_FORMAT, "merges[%zu]: the merged token is not in the vocabulary", i);
    }
    ha_bpe_add_merge(model, merge.left, merge.right, merge.merged);
    return HA_OK;
}

ha_status
ha_bpe_add_merge_text(ha_bpe *model, const ha_vocab *vocab, size_t i, const char *const half[2], const size_t length[2], ha_error *err)
{
    ha_merge merge;
    const ha_status status = ha_merge_find(vocab, i, half, length, -1, &merge, err);
    return status == HA_OK ? ha_bpe_add_found(model, i, merge, err) : status;
}

/* ---- one word ---- */

/* Few symbols: again and again the leftmost pair of the lowest rank. Returns how many symbols are left. */
static size_t
merge_small(const ha_bpe *model, ha_bpe_symbol *s, size_t n)
{
    int32_t ranks[SMALL], ids[SMALL];
    for (size_t i = 0; i + 1 < n; i++) {
        const ha_bpe_merge *m = find(model, s[i].id, s[i + 1].id);
        ranks[i] = m != NULL ? m->rank : INT32_MAX;
        ids[i] = m != NULL ? m->id : -1;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == INT32_MAX) {
            break;
        }
        s[best].id = ids[best];
        s[best].length += s[best + 1].length;
        for (size_t i = best + 1; i + 1 < n; i++) {
            s[i] = s[i + 1];
            ranks[i - 1] = ranks[i];
            ids[i - 1] = ids[i];
        }
        n--;
        for (size_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const ha_bpe_merge *m = find(model, s[i].id, s[i + 1].id);
            ranks[i] = m != NULL ? m->rank : INT32_MAX;
            ids[i] = m != NULL ? m->id : -1;
        }
    }
    return n;
}

static int
before(ha_bpe_entry a, ha_bpe_entry b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

void
ha_bpe_heap_push(ha_bpe_entry *heap, size_t *n, ha_bpe_entry entry)
{
    size_t i = (*n)++;
    for (; i > 0 && before(entry, heap[(i - 1) / 2]); i = (i - 1) / 2) {
        heap[i] = heap[(i - 1) / 2];
    }
    heap[i] = entry;
}

ha_bpe_entry
ha_bpe_heap_pop(ha_bpe_entry *heap, size_t *n)
{
    const ha_bpe_entry top = heap[0], moved = heap[--*n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= *n) {
            break;
        }
        child += child + 1 < *n && before(heap[child + 1], heap[child]);
        if (!before(heap[child], moved)) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
    return top;
}

static void
offer(const ha_bpe *model, const ha_bpe_symbol *s, ha_bpe_entry *heap, size_t *n_heap, int32_t left, int32_t right)
{
    if (left >= 0 && right >= 0) {
        const ha_bpe_merge *m = find(model, s[left].id, s[right].id);
        if (m != NULL) {
            ha_bpe_heap_push(heap, n_heap, (ha_bpe_entry){m->rank, (uint32_t)left, m->id});
        }
    }
}

/* Many symbols: a linked list and a heap of candidate pairs; each merge adds at most two, so 3n entries suffice. */
static ha_status
merge_large(const ha_bpe *model, ha_bpe_scratch *scratch, size_t *n_symbols, ha_error *err)
{
    ha_bpe_symbol *s = scratch->symbols;
    ha_bpe_entry *heap = scratch->heap;
    const size_t n = *n_symbols;
    size_t n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        s[i].prev = (int32_t)i - 1;
        s[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < n; i++) {
        offer(model, s, heap, &n_heap, (int32_t)i, (int32_t)i + 1);
    }
    while (n_heap > 0) {
        const ha_status status = ha_pulse_beat(scratch->pulse, 1, err);
        if (status != HA_OK) {
            return status;
        }
        const ha_bpe_entry top = ha_bpe_heap_pop(heap, &n_heap);
        ha_bpe_symbol *left = &s[top.at];
        if (left->length == 0 || left->next < 0) {
            continue;
        }
        ha_bpe_symbol *right = &s[left->next];
        const ha_bpe_merge *m = find(model, left->id, right->id);
        if (m == NULL || m->id != top.id) {
            continue;           /* one of the two has been merged since */
        }
        left->id = top.id;
        left->length += right->length;
        right->length = 0;
        left->next = right->next;
        if (left->next >= 0) {
            s[left->next].prev = (int32_t)top.at;
        }
        offer(model, s, heap, &n_heap, left->prev, (int32_t)top.at);
        offer(model, s, heap, &n_heap, (int32_t)top.at, left->next);
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i].length > 0) {
            s[kept++] = s[i];
        }
    }
    *n_symbols = kept;
    return HA_OK;
}

static ha_status
make_room(ha_bpe_scratch *scratch, size_t n, ha_error *err)
{
    if (n > scratch->cap_symbols) {
        const size_t capacity = n * 2;
        ha_bpe_symbol *symbols = realloc(scratch->symbols, capacity * sizeof(*symbols));
        if (symbols == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a word of %zu bytes", n);
        }
        scratch->symbols = symbols;
        scratch->cap_symbols = capacity;
    }
    if (n > SMALL && n * 3 > scratch->cap_heap) {
        const size_t capacity = n * 3;
        ha_bpe_entry *heap = realloc(scratch->heap, capacity * sizeof(*heap));
        if (heap == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a word of %zu bytes", n);
        }
        scratch->heap = heap;
        scratch->cap_heap = capacity;
    }
    return HA_OK;
}

static size_t
mapped_size(uint8_t byte)
{
    return ha_byte_to_char(byte) < 0x80 ? 1 : 2;
}

/* The place of the symbol of bytes [at, next) in its word, when places matter. */
static int
place_of(const ha_bpe *model, size_t begin, size_t at, size_t next, size_t end)
{
    return model->affixes ? (at > begin ? HA_BPE_GOES_ON : 0) | (next == end ? HA_BPE_ENDS : 0) : 0;
}

/* One symbol a byte. Lengths are those of the mapped characters when a byte may be missing (HA_BPE lengths then need `unmap`), else 1. */
static size_t
first_symbols(const ha_bpe *model, const uint8_t *text, size_t begin, size_t end, ha_bpe_symbol *s)
{
    size_t n = 0, unk = 0;      /* unk: mapped bytes of the unknown symbol that is still open */
    for (size_t i = begin; i < end; i++) {
        const int32_t id = model->byte_ids[place_of(model, begin, i, i + 1, end)][text[i]];
        const uint32_t length = model->all_bytes ? 1 : (uint32_t)mapped_size(text[i]);
        if (id < 0 && model->unk_id < 0) {
            continue;           /* as in the reference: no symbol at all */
        }
        if (unk > 0 && (id >= 0 || !model->fuse_unk)) {
            s[n++] = (ha_bpe_symbol){model->unk_id, 0, 0, (uint32_t)unk};
            unk = 0;
        }
        if (id >= 0) {
            s[n++] = (ha_bpe_symbol){id, 0, 0, length};
        } else {
            unk += length;
        }
    }
    if (unk > 0) {
        s[n++] = (ha_bpe_symbol){model->unk_id, 0, 0, (uint32_t)unk};
    }
    return n;
}

/* One symbol a character, or one a byte where a character falls back on its bytes. */
static size_t
first_characters(const ha_bpe *model, const uint8_t *text, size_t begin, size_t end, ha_bpe_symbol *s)
{
    size_t n = 0, unk = 0, size;        /* unk: bytes of the unknown symbol that is still open */
    for (size_t i = begin; i < end; i += size) {
        int32_t id = -1;
        ha_utf8_decode(text + i, &size);
        int fallback = ha_trie_longest(&model->chars[place_of(model, begin, i, i + size, end)], text + i, size, &id) == 0 && model->byte_fallback;
        for (size_t k = 0; k < size && fallback; k++) {
            fallback = model->byte_ids[0][text[i + k]] >= 0;
        }
        if (fallback) {         /* as in the reference: before an unknown symbol that is open, not after it */
            for (size_t k = 0; k < size; k++) {
                s[n++] = (ha_bpe_symbol){model->byte_ids[0][text[i + k]], 0, 0, 1};
            }
            continue;
        }
        if (id < 0 && model->unk_id < 0) {
            continue;
        }
        if (unk > 0 && (id >= 0 || !model->fuse_unk)) {
            s[n++] = (ha_bpe_symbol){model->unk_id, 0, 0, (uint32_t)unk};
            unk = 0;
        }
        if (id >= 0) {
            s[n++] = (ha_bpe_symbol){id, 0, 0, (uint32_t)size};
        } else {
            unk += size;
        }
    }
    if (unk > 0) {
        s[n++] = (ha_bpe_symbol){model->unk_id, 0, 0, (uint32_t)unk};
    }
    return n;
}

/* The byte of the word whose mapped character holds mapped byte `at`; *cursor and *mapped walk forward. */
static size_t
unmap(const uint8_t *text, size_t end, size_t at, size_t *cursor, size_t *mapped)
{
    while (*cursor < end && *mapped + mapped_size(text[*cursor]) <= at) {
        *mapped += mapped_size(text[*cursor]);
        (*cursor)++;
    }
    return *cursor;
}

/* The word itself; room is there. */
static ha_status
encode_word(const ha_bpe *model, const uint8_t *text, size_t begin, size_t end, ha_bpe_scratch *scratch, ha_tokens *out, ha_error *err)
{
    int32_t whole = -1;
    if (end - begin > HA_CACHED_BYTES && ha_trie_longest(&model->long_words, text + begin, end - begin, &whole) == end - begin) {
        out->at[out->n++] = (ha_token){whole, (uint32_t)begin, (uint32_t)end, 0};
        return HA_OK;
    }
    ha_bpe_symbol *s = scratch->symbols;
    size_t n = model->characters ? first_characters(model, text, begin, end, s) : first_symbols(model, text, begin, end, s);
    const int mapped_lengths = !model->all_bytes && !model->characters;
    if (n <= SMALL) {
        n = merge_small(model, s, n);
    } else {
        const ha_status status = merge_large(model, scratch, &n, err);
        if (status != HA_OK) {
            return status;
        }
    }
    size_t at = begin, cursor = begin, mapped = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        size_t from = at, to = at + s[i].length;
        at = to;
        if (mapped_lengths) {
            from = unmap(text, end, sum, &cursor, &mapped);
            sum += s[i].length;
            to = unmap(text, end, sum - 1, &cursor, &mapped) + 1;
        }
        out->at[out->n++] = (ha_token){s[i].id, (uint32_t)from, (uint32_t)(to < end ? to : end), 0};
    }
    return HA_OK;
}

ha_status
ha_bpe_encode(const ha_bpe *model, const uint8_t *text, size_t begin, size_t end, ha_bpe_scratch *scratch, ha_tokens *out, ha_error *err)
{
    ha_status status = ha_tokens_reserve(out, end - begin, err);
    if (status == HA_OK) {
        status = make_room(scratch, end - begin + 1, err);
    }
    return status == HA_OK ? encode_word(model, text, begin, end, scratch, out, err) : status;
}
