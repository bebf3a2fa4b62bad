#include <math.h>
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

void
ha_unigram_scratch_use_cache(ha_unigram_scratch *scratch)
{
    if (scratch->cache == NULL) {
        scratch->cache = calloc((size_t)HA_WORD_CACHE_WAYS << HA_WORD_CACHE_BITS, sizeof(*scratch->cache));
    }
}

/* No score is above 0 in a vocabulary of logarithms: then the rest of a word adds at most what its best first token can add. */
void
ha_unigram_find_bounds(ha_unigram *model, const ha_vocab *vocab, size_t n_ids)
{
    int known = 1;
    for (size_t byte = 0; byte < 256; byte++) {
        model->bound[byte] = model->unk_score;
    }
    for (size_t id = 0; id < n_ids; id++) {
        size_t length;
        const char *text = ha_vocab_text(vocab, (int32_t)id, &length);
        double *bound = &model->bound[length > 0 ? (uint8_t)text[0] : 0];
        *bound = model->scores[id] > *bound ? model->scores[id] : *bound;
        known &= model->scores[id] <= 0 && model->scores[id] > -1e6;
    }
    for (size_t byte = 0; byte < 256 && !known; byte++) {
        model->bound[byte] = HUGE_VAL;
    }
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
        if (length > 0 && vocab->tokens[vocab->by_id[id]].id == (int32_t)id) {       /* else a later id has this text too */
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
find_path(const ha_unigram *model, const uint8_t *text, size_t n, ha_unigram_node *nodes, ha_pulse *pulse, ha_error *err)
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
        const ha_status status = ha_pulse_beat(pulse, size, err);
        if (status != HA_OK) {
            return status;
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
        status = find_path(model, text + begin, n, nodes, scratch->pulse, err);
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

/* ---- short words ---- */

ha_unigram_sign
ha_unigram_find_sign(const ha_unigram *model, const uint8_t *sign, size_t length)
{
    ha_unigram_sign found = {0, -1, model->trie.units != NULL};
    found.link = found.found ? ha_trie_root(&model->trie) : 0;
    for (size_t i = 0; i < length && found.found; i++) {
        found.found = ha_trie_step(&model->trie, &found.link, sign[i], &found.id);
    }
    found.id = found.found ? found.id : -1;
    return found;
}

/* The best paths to the bytes of a short word; byte i stands in bit i of `reached`. */
typedef struct short_paths {
    uint64_t reached;
    double score[HA_SHORT_WORD + 1];
    int32_t id[HA_SHORT_WORD + 1];
    uint8_t begin[HA_SHORT_WORD + 1];   /* of the last token; FROM_SIGN: it begins with the sign */
} short_paths;

enum { FROM_SIGN = 255 };

/* Rounding never makes a path that is this much worse the better one: sums of at most 63 scores above -1e6. */
#define MARGIN 1e-6

static void
reach(short_paths *paths, size_t end, double score, int32_t id, uint8_t begin)
{
    if ((paths->reached >> end & 1) == 0 || score > paths->score[end]) {
        paths->reached |= (uint64_t)1 << end;
        paths->score[end] = score;
        paths->id[end] = id;
        paths->begin[end] = begin;
    }
}

/* The score of the path that takes the longest token each time, from `at` on, where its score is known; -HUGE_VAL: it ends in an unknown character. */
static double
greedy_score(const ha_unigram *model, const uint8_t *word, size_t n, size_t at, double score)
{
    while (at < n) {
        int32_t id = -1;
        const size_t length = ha_trie_longest(&model->trie, word + at, n - at, &id);
        if (length == 0) {
            return -HUGE_VAL;
        }
        score += model->scores[id];
        at += length;
    }
    return score;
}

/* All tokens from byte `at` on; 0: the character there is none. */
static int
extend(const ha_unigram *model, const uint8_t *word, size_t n, size_t at, short_paths *paths)
{
    const double before = paths->score[at];
    size_t size;
    int single = 0;
    ha_utf8_decode(word + at, &size);
    for (ha_trie_walk walk = ha_trie_begin(&model->trie, word + at, n - at); ha_trie_next(&walk);) {
        reach(paths, at + walk.length, model->scores[walk.value] + before, walk.value, (uint8_t)at);
        single |= walk.length == size;
    }
    return single;
}

/* Viterbi as in find_path, but a path is followed only while it can still beat the greedy one. */
int
ha_unigram_encode_short(const ha_unigram *model, const ha_unigram_sign *sign, const uint8_t *word, size_t n, ha_tokens *out)
{
    short_paths paths;
    uint32_t link = sign->link;
    int32_t value;
    size_t longest = 0;
    if (sign->id < 0) {
        return 0;
    }
    paths.reached = 0;
    reach(&paths, 0, model->scores[sign->id], sign->id, FROM_SIGN);
    for (size_t i = 0; i < n && ha_trie_step(&model->trie, &link, word[i], &value); i++) {
        if (value >= 0) {
            longest = i + 1;
            reach(&paths, longest, model->scores[value], value, FROM_SIGN);
        }
    }
    const double enough = greedy_score(model, word, n, longest, paths.score[longest]) - MARGIN;
    for (size_t at = 0; at < n; at++) {
        if ((paths.reached >> at & 1) == 0 || paths.score[at] + model->bound[word[at]] < enough) {
            continue;
        }
        if (!extend(model, word, n, at, &paths)) {
            return 0;
        }
    }
    size_t n_ids = 0, at = n;
    for (size_t i = n; i != FROM_SIGN; i = paths.begin[i]) {
        n_ids++;
    }
    for (size_t k = n_ids; k > 0; k--, at = paths.begin[at]) {
        if (paths.id[at] == model->unk_id) {
            return 0;
        }
        out->at[out->n + k - 1] = (ha_token){.id = paths.id[at]};
    }
    out->n += n_ids;
    return 1;
}
