#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"
#include "tokenizer/model.h"

#define UNK_PENALTY 10.0        /* below the lowest score of the vocabulary, as in sentencepiece */

void
ha_unigram_free(ha_unigram *model)
{
    ha_trie_free(&model->trie);
    free(model->scores);
    model->scores = NULL;
}

void
ha_unigram_scratch_free(ha_unigram_scratch *scratch)
{
    free(scratch->nodes);
    free(scratch->cache);
    memset(scratch, 0, sizeof(*scratch));
}

ha_status
ha_unigram_scratch_use_cache(ha_unigram_scratch *scratch, ha_error *err)
{
    if (scratch->cache == NULL) {
        scratch->cache = calloc((size_t)1 << HA_WORD_CACHE_BITS, sizeof(*scratch->cache));
    }
    return scratch->cache != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for the words of a tokenizer");
}

ha_status
ha_unigram_build(const ha_vocab *vocab, ha_unigram *model, ha_error *err)
{
    ha_trie_key *keys = vocab->n_ids > SIZE_MAX / sizeof(*keys) ? NULL : malloc((vocab->n_ids + 1) * sizeof(*keys));
    if (keys == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", vocab->n_ids);
    }
    size_t n = 0, length;
    double lowest = model->scores[0];
    for (size_t id = 0; id < vocab->n_ids; id++) {
        const char *text = ha_vocab_text(vocab, (int32_t)id, &length);
        lowest = model->scores[id] < lowest ? model->scores[id] : lowest;
        if (length > 0 && ha_vocab_id(vocab, text, length) == (int32_t)id) {
            keys[n++] = (ha_trie_key){text, length, (int32_t)id};
        }
    }
    model->unk_score = lowest - UNK_PENALTY;
    const ha_status status = ha_trie_build(keys, n, &model->trie, err);
    free(keys);
    for (unsigned byte = 0; byte < 256; byte++) {
        static const char digits[] = "0123456789ABCDEF";
        const char text[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        model->byte_ids[byte] = ha_vocab_id(vocab, text, sizeof(text));
    }
    return status;
}

/* The best way to write text[0..n) as tokens (Viterbi): scratch->nodes[e] is the last token of the best way that ends at byte e. */
static ha_status
find_path(const ha_unigram *model, const uint8_t *text, size_t n, ha_unigram_node *nodes, ha_error *err)
{
    for (size_t i = 0; i <= n; i++) {
        nodes[i] = (ha_unigram_node){.id = HA_UNIGRAM_NONE};
    }
    size_t size;
    for (size_t at = 0; at < n; at += size) {
        const double before = nodes[at].score;
        int single = 0;
        ha_utf8_decode(text + at, &size);
        for (ha_trie_walk walk = ha_trie_begin(&model->trie, text + at, n - at); ha_trie_next(&walk);) {
            ha_unigram_node *node = &nodes[at + walk.length];
            const double score = model->scores[walk.value] + before;
            if (node->id == HA_UNIGRAM_NONE || score > node->score) {
                *node = (ha_unigram_node){.score = score, .begin = (uint32_t)at, .id = walk.value};
            }
            single |= walk.length == size;
        }
        ha_unigram_node *node = &nodes[at + size];
        const double score = model->unk_score + before;
        if (!single && (node->id == HA_UNIGRAM_NONE || score > node->score)) {
            if (model->unk_id < 0) {
                return ha_fail(err, HA_ERR_VALUE, "a character is not in the vocabulary, and the model has no unk_id");
            }
            *node = (ha_unigram_node){.score = score, .begin = (uint32_t)at, .id = model->unk_id};
        }
    }
    return HA_OK;
}

/* A run of unknown characters (and of unk's own text) is one token: the one of that very text, else one for each of its bytes when all have one, else unk. */
static void
push_unknown(const ha_unigram *model, const uint8_t *text, size_t begin, size_t end, ha_tokens *out)
{
    int32_t id = model->unk_id, value = -1;
    int bytes = model->byte_fallback;
    if (ha_trie_longest(&model->trie, text + begin, end - begin, &value) == end - begin) {
        id = value;
        bytes = 0;
    }
    for (size_t i = begin; i < end && bytes; i++) {
        bytes = model->byte_ids[text[i]] >= 0;
    }
    for (size_t i = begin; i < end && bytes; i++) {
        out->at[out->n++] = (ha_token){model->byte_ids[text[i]], (uint32_t)begin, (uint32_t)end, 0};
    }
    if (!bytes) {
        out->at[out->n++] = (ha_token){id, (uint32_t)begin, (uint32_t)end, 0};
    }
}

ha_status
ha_unigram_encode(const ha_unigram *model, const uint8_t *text, size_t begin, size_t end, ha_unigram_scratch *scratch, ha_tokens *out, ha_error *err)
{
    const size_t n = end - begin;
    ha_status status = ha_tokens_reserve(out, n, err);
    if (status == HA_OK && n + 1 > scratch->capacity) {
        const size_t capacity = 2 * n + 64;
        ha_unigram_node *nodes = realloc(scratch->nodes, capacity * sizeof(*nodes));
        if (nodes == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a word of %zu bytes", n);
        }
        scratch->nodes = nodes;
        scratch->capacity = capacity;
    }
    ha_unigram_node *nodes = scratch->nodes;
    if (status == HA_OK) {
        status = find_path(model, text + begin, n, nodes, err);
    }
    if (status != HA_OK) {
        return status;
    }
    /* the path is known from its end: turned round, nodes[i].end and .token are the token that begins at i */
    for (size_t at = n; at > 0; at = nodes[at].begin) {
        nodes[nodes[at].begin].end = (uint32_t)at;
        nodes[nodes[at].begin].token = nodes[at].id;
    }
    for (size_t at = 0; at < n;) {
        size_t stop = nodes[at].end;
        if (nodes[at].token != model->unk_id) {
            out->at[out->n++] = (ha_token){nodes[at].token, (uint32_t)(begin + at), (uint32_t)(begin + stop), 0};
        } else {
            while (stop < n && nodes[stop].token == model->unk_id) {
                stop = nodes[stop].end;
            }
            push_unknown(model, text, begin + at, begin + stop, out);
        }
        at = stop;
    }
    return HA_OK;
}
