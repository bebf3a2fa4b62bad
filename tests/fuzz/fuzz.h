/* What the fuzz targets share: files, and a tokenizer is used, and what it answers is held against its header. */
#ifndef HARMAUG_FUZZ_H
#define HARMAUG_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer.h"

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);     \
            abort();                                                                    \
        }                                                                               \
    } while (0)

static inline void
fuzz_write(const char *path, const uint8_t *data, size_t size)
{
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL && fwrite(data, 1, size, out) == size && fclose(out) == 0);
}

static inline size_t
code_points(ha_text text)
{
    size_t n = 0;
    for (size_t i = 0; i < text.length; i++) {
        n += ((uint8_t)text.data[i] & 0xC0) != 0x80;
    }
    return n;
}

/* Encodes, checks the rows, decodes each, and encodes again as the second of a batch: the rows must be the same. */
static inline void
use(const ha_tokenizer *tok, ha_text text, ha_text pair, const ha_encode_options *options)
{
    ha_encoding e = {0}, again = {0};
    ha_error err;
    if (ha_tokenizer_encode_batch(tok, &text, &pair, 1, options, &e, &err) != HA_OK) {
        CHECK(e.ids == NULL && err.message[0] != '\0');
        return;
    }
    const size_t longest = code_points(text) > code_points(pair) ? code_points(text) : code_points(pair);
    CHECK(e.n_rows >= 1 && e.offsets[0] == 0);
    for (size_t i = 0; i < e.n_rows; i++) {
        CHECK(e.offsets[i + 1] >= e.offsets[i] && e.texts[i] == 0 && e.truncated[i] >= 0);
        const size_t n = (size_t)(e.offsets[i + 1] - e.offsets[i]);
        const int32_t *ids = e.ids + e.offsets[i];
        for (size_t k = 0; k < n; k++) {
            CHECK(ids[k] >= 0 && (size_t)ids[k] < ha_tokenizer_vocab_size(tok));
        }
        for (int64_t k = e.offsets[i]; options->spans && k < e.offsets[i + 1]; k++) {
            CHECK(e.spans[2 * k] >= 0 && e.spans[2 * k] <= e.spans[2 * k + 1] && (size_t)e.spans[2 * k + 1] <= longest);
        }
        for (int skip = 0; skip < 2 && i < 4; skip++) {
            char *out = NULL;
            size_t length = 0;
            CHECK(ha_tokenizer_decode(tok, ids, n, skip, &out, &length, &err) == HA_OK && strlen(out) <= length);
            free(out);
        }
    }
    const ha_text texts[2] = {{"x", 1}, text}, pairs[2] = {{NULL, 0}, pair};
    if (ha_tokenizer_encode_batch(tok, texts, pairs, 2, options, &again, &err) == HA_OK) {
        size_t first = 0;
        while (again.texts[first] == 0) {
            first++;
        }
        const int64_t total = e.offsets[e.n_rows];
        CHECK(again.n_rows - first == e.n_rows && again.offsets[again.n_rows] - again.offsets[first] == total);
        CHECK(total == 0 || memcmp(again.ids + again.offsets[first], e.ids, (size_t)total * sizeof(*e.ids)) == 0);
        ha_encoding_free(&again);
    }
    ha_encoding_free(&e);
}

#endif
