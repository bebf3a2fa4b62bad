/* Opens a guard of which one JSON file is whatever bytes the fuzzer makes, and scores with what opens. HA_FUZZ_FILE names the file; the others are those of
 * the seeds. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdint.h>
#include <unistd.h>

#include "fuzz.h"

static const char *const others[] = {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "thresholds.json"};
enum { N_OTHERS = sizeof(others) / sizeof(others[0]) };
static char folder[256], path[320];

static const char *
in_folder(const char *name)
{
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void
clean(void)
{
    for (size_t i = 0; i < N_OTHERS; i++) {
        unlink(in_folder(others[i]));
    }
    rmdir(folder);
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static uint8_t data[1 << 18];
    (void)argc, (void)argv;
    snprintf(folder, sizeof(folder), "%s/harmaug-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(folder) != NULL);
    atexit(clean);
    for (size_t i = 0; i < N_OTHERS; i++) {
        char from[1024];
        snprintf(from, sizeof(from), "%s/%s", HA_FUZZ_SEEDS, others[i]);
        FILE *in = fopen(from, "rb");
        CHECK(in != NULL);
        const size_t n = fread(data, 1, sizeof(data), in);
        fclose(in);
        fuzz_write(in_folder(others[i]), data, n);
    }
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ha_text prompts[2] = {{"a b c, the dog?", 15}, {"x y z x y z x y z x y z x y z x y z x y z x y z", 47}}, responses[2] = {{NULL, 0}, {"no. no", 6}};
    const ha_score_options options = {.n_threads = 1};
    ha_guard *guard = NULL;
    ha_error err;
    fuzz_write(in_folder(HA_FUZZ_FILE), data, size);
    if (ha_guard_open(folder, NULL, &guard, &err) != HA_OK) {
        CHECK(guard == NULL && memchr(err.message, '\0', sizeof(err.message)) != NULL && err.message[0] != '\0');
        return 0;
    }
    float scores[2];
    ha_score_row rows[2];
    CHECK(ha_guard_threshold(guard) >= 0 && ha_guard_threshold(guard) <= 1 && ha_guard_unsafe_index(guard) < ha_guard_num_labels(guard));
    if (ha_guard_score(guard, prompts, responses, 2, &options, scores, NULL, rows, &err) == HA_OK) {
        for (size_t i = 0; i < 2; i++) {
            CHECK(scores[i] >= 0 && scores[i] <= 1 && rows[i].window < rows[i].n_windows && rows[i].n_tokens > 0 && rows[i].truncated == 0);
        }
    }
    ha_guard_free(guard);
    return 0;
}
