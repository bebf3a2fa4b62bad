#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"
#include "tokenizer/model.h"

void
ha_wordpiece_free(ha_wordpiece *model)
{
    ha_trie_free(&model->first);
    ha_trie_free(&model->rest);
}

ha_status
ha_wordpiece_build(const ha_vocab *vocab, const char *prefix, size_t prefix_length, ha_wordpiece *model, ha_error *err)
{
    ha_trie_key *keys = vocab->n_ids > SIZE_MAX / sizeof(*keys) ? NULL : malloc((vocab->n_ids + 1) * sizeof(*keys));
    if (keys == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", vocab->n_ids);
    }
    size_t n = 0, n_rest = 0, length;
    for (size_t id = 0; id < vocab->n_ids; id++) {
        const char *text = ha_vocab_text(vocab, (int32_t)id, &length);
        if (text != NULL && length > 0) {
            keys[n++] = (ha_trie_key){text, length, (int32_t)id};
        }
    }
    ha_status status = ha_trie_build(keys, n, &model->first, err);
    for (size_t i = 0; i < n; i++) {
        if (keys[i].length > prefix_length && memcmp(keys[i].text, prefix, prefix_length) == 0) {
            keys[n_rest++] = (ha_trie_key){keys[i].text + prefix_length, keys[i].length - prefix_length, keys[i].value};
        }
    }
    if (status == HA_OK) {
        status = ha_trie_build(keys, n_rest, &model->rest, err);
    }
    free(keys);
    return status;
}

static int
longer_than(const uint8_t *text, size_t begin, size_t end, size_t max_chars)
{
    if (end - begin <= max_chars) {
        return 0;
    }
    size_t n = 0;
    for (size_t i = begin; i < end && n <= max_chars; i++) {
        n += (text[i] & 0xC0) != 0x80;
    }
    return n > max_chars;
}

/* The word itself; room is there. */
static void
encode_word(const ha_wordpiece *model, const uint8_t *text, size_t begin, size_t end, ha_tokens *out)
{
    const size_t first = out->n;
    size_t at = longer_than(text, begin, end, model->max_chars) ? SIZE_MAX : begin;
    while (at < end) {
        int32_t id = 0;
        const size_t length = ha_trie_longest(at == begin ? &model->first : &model->rest, text + at, end - at, &id);
        if (length == 0) {
            at = SIZE_MAX;
            break;
        }
        out->at[out->n++] = (ha_token){id, (uint32_t)at, (uint32_t)(at + length), 0};
        at += length;
    }
    if (at == SIZE_MAX) {       /* too long, or a part that is no token: the whole word is unknown */
        out->n = first;
        out->at[out->n++] = (ha_token){model->unk_id, (uint32_t)begin, (uint32_t)end, 0};
    }
}

ha_status
ha_wordpiece_encode(const ha_wordpiece *model, const uint8_t *text, size_t begin, size_t end, ha_tokens *out, ha_error *err)
{
    const ha_status status = ha_tokens_reserve(out, end - begin, err);
    if (status == HA_OK) {
        encode_word(model, text, begin, end, out);
    }
    return status;
}
