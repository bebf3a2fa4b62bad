#include <stdlib.h>
#include <string.h>

#include "tokenizer/pipeline.h"
#include "tokenizer/unicode.h"

void
ha_added_tokens_free(ha_added_tokens *added)
{
    free(added->at);
    free(added->text);
    free(added->by_id);
    free(added->normal);
    ha_trie_free(&added->raw);
    ha_trie_free(&added->normalized);
    memset(added, 0, sizeof(*added));
}

ha_status
ha_added_tokens_add(ha_added_tokens *added, const char *content, ha_added_token token, ha_error *err)
{
    if (added->n == added->capacity) {
        const size_t capacity = added->capacity * 2 + 16;
        ha_added_token *at = realloc(added->at, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu added tokens", capacity);
        }
        added->at = at;
        added->capacity = capacity;
    }
    if (token.length + 1 > added->cap_text - added->n_text) {
        const size_t capacity = (added->n_text + token.length + 1) * 2;
        char *text = realloc(added->text, capacity);
        if (text == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu added tokens", added->n);
        }
        added->text = text;
        added->cap_text = capacity;
    }
    token.content = added->n_text;
    memcpy(added->text + added->n_text, content, token.length);
    added->text[added->n_text + token.length] = '\0';
    added->n_text += token.length + 1;
    added->at[added->n++] = token;
    return HA_OK;
}

/* One of the two tries. `normal` holds the normal forms one after the other, `ends` where each ends. */
static ha_status
build_trie(ha_added_tokens *added, int normalized, const ha_text_buf *normal, const size_t *ends, ha_error *err)
{
    ha_trie_key *keys = malloc((added->n + 1) * sizeof(*keys));
    if (keys == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu added tokens", added->n);
    }
    uint8_t *first = normalized ? added->first_normalized : added->first_raw;
    size_t n = 0;
    for (size_t i = 0; i < added->n; i++) {
        const ha_added_token *t = &added->at[i];
        const size_t begin = i > 0 ? ends[i - 1] : 0;
        if (t->normalized == normalized) {
            keys[n] = normalized ? (ha_trie_key){(const char *)normal->text + begin, ends[i] - begin, (int32_t)i}
                                 : (ha_trie_key){added->text + t->content, t->length, (int32_t)i};
            if (keys[n].length > 0) {
                first[(uint8_t)keys[n].text[0]] = 1;
            }
            n++;
        }
    }
    int lone = -1, n_first = 0;
    for (int byte = 0; byte < 256; byte++) {
        lone = first[byte] ? byte : lone;
        n_first += first[byte];
    }
    added->lone_first[normalized] = (int16_t)(n_first == 1 ? lone : -1);
    const ha_status status = ha_trie_build(keys, n, normalized ? &added->normalized : &added->raw, err);
    free(keys);
    return status;
}

/* Decoding writes a normalized token in its normal form. */
static ha_status
keep_normal_forms(ha_added_tokens *added, const ha_text_buf *normal, const size_t *ends, ha_error *err)
{
    added->normal = malloc(normal->length + 1);
    if (added->normal == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu added tokens", added->n);
    }
    memcpy(added->normal, normal->text, normal->length);
    for (size_t i = 0; i < added->n; i++) {
        ha_added_token *t = &added->at[i];
        t->written = t->normalized ? (ends[i] - (i > 0 ? ends[i - 1] : 0)) : t->length;
        t->written_at = t->normalized ? (i > 0 ? ends[i - 1] : 0) : t->content;
    }
    return HA_OK;
}

ha_status
ha_added_tokens_build(ha_added_tokens *added, const ha_normalizer *normalizer, ha_error *err)
{
    ha_norm_scratch scratch = {0};
    ha_text_buf normal = {0};
    size_t *ends = malloc((added->n + 1) * sizeof(*ends));
    ha_status status = ends != NULL ? ha_text_buf_reserve(&normal, 1, err) : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu added tokens", added->n);
    int32_t max_id = -1;
    for (size_t i = 0; i < added->n && status == HA_OK; i++) {
        const ha_added_token *t = &added->at[i];
        if (t->normalized) {
            status = ha_normalize(normalizer, (const uint8_t *)added->text + t->content, 0, t->length, &scratch, &normal, err);
        }
        ends[i] = normal.length;
        max_id = t->id > max_id ? t->id : max_id;
    }
    if (status == HA_OK) {
        added->n_by_id = (size_t)(max_id + 1);
        added->by_id = malloc((added->n_by_id + 1) * sizeof(*added->by_id));
        status = added->by_id != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu added tokens", added->n);
    }
    if (status == HA_OK) {
        memset(added->by_id, 0xFF, added->n_by_id * sizeof(*added->by_id));
        for (size_t i = 0; i < added->n && status == HA_OK; i++) {
            if (added->by_id[added->at[i].id] >= 0) {
                status = ha_fail(err, HA_ERR_FORMAT, "added token '%.80s' stands twice", added->text + added->at[i].content);
            }
            added->by_id[added->at[i].id] = (int32_t)i;
        }
    }
    if (status == HA_OK) {
        status = keep_normal_forms(added, &normal, ends, err);
    }
    if (status == HA_OK) {
        status = build_trie(added, 0, &normal, ends, err);
    }
    if (status == HA_OK) {
        status = build_trie(added, 1, &normal, ends, err);
    }
    free(ends);
    ha_text_buf_free(&normal);
    ha_norm_scratch_free(&scratch);
    return status;
}

const ha_added_token *
ha_added_tokens_of_id(const ha_added_tokens *added, int32_t id)
{
    return id >= 0 && (size_t)id < added->n_by_id && added->by_id[id] >= 0 ? &added->at[added->by_id[id]] : NULL;
}

static int
is_word(const uint8_t *text, size_t at)
{
    size_t size;
    return (ha_uc_flags(ha_utf8_decode(text + at, &size)) & HA_UC_WORD) != 0;
}

/* Where the next byte stands with which some token begins, or `end`. */
static inline size_t
next_first(const ha_added_tokens *added, int normalized, const uint8_t *text, size_t i, size_t end)
{
    if (added->lone_first[normalized] >= 0) {
        const uint8_t *found = i < end ? memchr(text + i, added->lone_first[normalized], end - i) : NULL;
        return found != NULL ? (size_t)(found - text) : end;
    }
    const uint8_t *first = normalized ? added->first_normalized : added->first_raw;
    while (i < end && !first[text[i]]) {
        i++;
    }
    return i;
}

ha_status
ha_added_tokens_split(const ha_added_tokens *added, int normalized, int skip_special, const uint8_t *text, size_t begin, size_t end,
                      ha_pieces *out, ha_error *err)
{
    const ha_trie *trie = normalized ? &added->normalized : &added->raw;
    const uint8_t *first = normalized ? added->first_normalized : added->first_raw;
    size_t done = begin, size;
    ha_status status = HA_OK;
    for (size_t i = begin; trie->units != NULL && i < end && status == HA_OK;) {
        int32_t index = -1;
        const size_t length = first[text[i]] ? ha_trie_longest(trie, text + i, end - i, &index) : 0;
        if (length == 0) {
            i = next_first(added, normalized, text, i + 1, end);
            continue;
        }
        const ha_added_token *t = &added->at[index];
        size_t start = i, stop = i + length;
        i = stop;       /* whatever becomes of this match, the next begins after it: its own end, not that of the white space it takes */
        if (skip_special && t->special) {
            continue;
        }
        if (t->single_word && ((start > begin && is_word(text, ha_utf8_back(text, start))) || (stop < end && is_word(text, stop)))) {
            continue;
        }
        while (t->lstrip && start > done && start > begin) {
            const size_t back = ha_utf8_back(text, start);
            if ((ha_uc_flags(ha_utf8_decode(text + back, &size)) & HA_UC_WHITE_SPACE) == 0) {
                break;
            }
            start = back;
        }
        start = t->lstrip && start < done ? done : start;       /* white space that the token before has taken is not taken twice */
        while (t->rstrip && stop < end && (ha_uc_flags(ha_utf8_decode(text + stop, &size)) & HA_UC_WHITE_SPACE)) {
            stop += size;
        }
        if (done < start) {
            status = ha_pieces_push(out, done, start, -1, err);
        }
        if (status == HA_OK && start < stop) {
            status = ha_pieces_push(out, start, stop, t->id, err);
        }
        done = stop;
    }
    return done < end && status == HA_OK ? ha_pieces_push(out, done, end, -1, err) : status;
}
