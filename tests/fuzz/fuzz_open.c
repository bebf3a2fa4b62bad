/* Opens whatever bytes the fuzzer makes as one file of a tokenizer, and uses what opens. Built once per format: HA_FUZZ_FILE names the file, HA_FUZZ_BESIDE
 * another that lies beside it as it is (from the seeds). */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

static const char *const patterns[] = {"gpt2", "cl100k", "o200k", "llama3", "qwen2", "tekken"};
static char folder[256], file[300];

static void
clean(void)
{
    unlink(file);
#if defined(HA_FUZZ_BESIDE)
    char beside[300];
    snprintf(beside, sizeof(beside), "%s/" HA_FUZZ_BESIDE, folder);
    unlink(beside);
#endif
    rmdir(folder);
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof(folder), "%s/harmaug-fuzz-XXXXXX", tmp);
    CHECK(mkdtemp(folder) != NULL);
    snprintf(file, sizeof(file), "%s/" HA_FUZZ_FILE, folder);
    atexit(clean);
#if defined(HA_FUZZ_BESIDE)
    char beside[300];
    static uint8_t data[1 << 20];
    FILE *in = fopen(HA_FUZZ_SEEDS "/" HA_FUZZ_BESIDE, "rb");
    CHECK(in != NULL);
    const size_t n = fread(data, 1, sizeof(data), in);
    fclose(in);
    snprintf(beside, sizeof(beside), "%s/" HA_FUZZ_BESIDE, folder);
    fuzz_write(beside, data, n);
#endif
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ha_tokenizer *tok = NULL;
    ha_error err;
    fuzz_write(file, data, size);
    const ha_open_options how = {.reference = HA_FUZZ_OWN && size % 2 ? HA_REFERENCE_SENTENCEPIECE : HA_REFERENCE_TOKENIZERS,
                                 .pattern = HA_FUZZ_PATTERNS ? patterns[size % 6] : NULL};
    if (ha_tokenizer_open(HA_FUZZ_OPEN_FOLDER ? folder : file, &how, &tok, &err) != HA_OK) {
        CHECK(tok == NULL && memchr(err.message, '\0', sizeof(err.message)) != NULL && err.message[0] != '\0');
        return 0;
    }
    static const char text[] = "The dog, \xc3\xa9\xe2\x80\xa6 didn't  12345 [SEP]<s>\n\xf0\x9f\x98\x80 \xea\xb0\x81";
    const ha_encode_options options = {.add_special_tokens = 1, .max_length = 8, .truncation = HA_TRUNCATE_LONGEST_FIRST, .windows = 1, .spans = 1, .n_threads = 1};
    const ha_encode_options plain = {.max_length = SIZE_MAX, .n_threads = 1};
    use(tok, (ha_text){text, sizeof(text) - 1}, (ha_text){text, 10}, &options);
    use(tok, (ha_text){text, sizeof(text) - 1}, (ha_text){NULL, 0}, &plain);
    ha_tokenizer_free(tok);
    return 0;
}
