/* Encodes and decodes whatever bytes the fuzzer makes, with each of the seeds' tokenizers. Bytes 0 to 4 choose tokenizer and options. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <stdint.h>

#include "fuzz.h"

static ha_tokenizer *tokenizers[64];
static size_t n_tokenizers;

static int
by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    char *names[64], path[600];
    size_t n = 0;
    DIR *dir = opendir(HA_FUZZ_SEEDS);
    CHECK(dir != NULL);
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL && n < 64;) {
        if (entry->d_name[0] != '.') {
            CHECK((names[n++] = strdup(entry->d_name)) != NULL);
        }
    }
    closedir(dir);
    qsort(names, n, sizeof(*names), by_name);
    for (size_t i = 0; i < n; i++) {
        ha_error err;
        snprintf(path, sizeof(path), "%s/%s", HA_FUZZ_SEEDS, names[i]);
        if (ha_tokenizer_open(path, NULL, &tokenizers[n_tokenizers], &err) == HA_OK) {
            n_tokenizers++;
        } else {
            fprintf(stderr, "%s\n", err.message);
        }
        free(names[i]);
    }
    CHECK(n_tokenizers > 0);
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 6) {
        return -1;
    }
    const ha_tokenizer *tok = tokenizers[data[0] % n_tokenizers];
    const ha_encode_options options = {
        .add_special_tokens = data[1] & 1, .truncate_left = (data[1] >> 1) & 1, .windows = (data[1] >> 2) & (size < 400),     /* their number is a square */
        .spans = (data[1] >> 3) & 1,
        .truncation = (ha_truncation)((data[1] >> 4) & 3), .max_length = data[2] < 200 ? data[2] : SIZE_MAX, .stride = data[3] % 16, .n_threads = 1,
    };
    char *bytes = malloc(size - 5);
    CHECK(bytes != NULL);
    memcpy(bytes, data + 5, size - 5);
    const size_t cut = data[4] < 128 ? (size - 5) * data[4] / 128 : size - 5;
    const ha_text text = {bytes, cut}, pair = {data[4] < 128 ? bytes + cut : NULL, size - 5 - cut};
    use(tok, text, pair, &options);
    char *out = NULL;
    size_t length = 0, n = (size - 5) / sizeof(int32_t);
    int32_t *ids = malloc((n + 1) * sizeof(*ids));
    CHECK(ids != NULL);
    memcpy(ids, data + 5, n * sizeof(*ids));
    for (size_t i = 0; i < n && (data[1] & 64); i++) {
        ids[i] = (int32_t)((uint32_t)ids[i] % ha_tokenizer_vocab_size(tok));
    }
    ha_error err;
    if (ha_tokenizer_decode(tok, ids, n, data[1] >> 7, &out, &length, &err) == HA_OK) {
        free(out);
    }
    if (ha_tokenizer_normalize(tok, text, &out, &length, &err) == HA_OK) {
        free(out);
    }
    int32_t *spans = NULL;
    if (ha_tokenizer_pre_tokenize(tok, text, &spans, &n, &err) == HA_OK) {
        free(spans);
    }
    free(ids);
    free(bytes);
    return 0;
}
