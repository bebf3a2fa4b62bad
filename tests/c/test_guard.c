/* include/harmaug.h from a C program: a folder is opened and scores, on one thread and on several at once; then again with every allocation failing in turn,
 * where each call must end in HA_ERR_NOMEM with nothing leaked (a cache that does without may also succeed).
 *
 *     make check | make asan
 *
 * Linked with --wrap=malloc, --wrap=calloc and --wrap=realloc. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <unistd.h>

#include "allocations.h"
#include "check.h"
#include "io/tensor_file.h"
#include "models/encoder_layout.h"

/* -- a guard -- */

static const struct { const char *name, *content; } files[] = {
    {"config.json", "{\"model_type\": \"bert\", \"vocab_size\": 9, \"hidden_size\": 12, \"num_hidden_layers\": 2, \"num_attention_heads\": 3, "
                    "\"intermediate_size\": 20, \"max_position_embeddings\": 16, \"type_vocab_size\": 2, \"id2label\": {\"0\": \"Unsafe\", \"1\": \"fine\"}}"},
    {"vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n##d\n"},
    {"tokenizer_config.json", "{\"tokenizer_class\": \"BertTokenizer\", \"model_max_length\": 12}"},
    {"thresholds.json", "{\"threshold\": 0.25, \"long\": \"truncate\", \"max_length\": 12}"},
    {"model.safetensors", NULL},
};
enum { N_FILES = sizeof(files) / sizeof(files[0]) };

static const char *
in_folder(const char *folder, const char *name)
{
    static char path[1024];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void
write_weights(const char *folder)
{
    ha_encoder_config shape;
    ha_tensor_out tensors[80];
    ha_param params[80];
    ha_error err = {{0}};
    size_t n = 0;
    CHECK(ha_encoder_config_read(folder, &shape, &err) == HA_OK && ha_params_count(&shape) <= 80, "%s", err.message);
    for (size_t i = 0; i < ha_params_count(&shape); i++) {
        ha_param *p = &params[n];
        ha_param_describe(&shape, i, 0, p);
        if (p->size > 0) {
            tensors[n++] = (ha_tensor_out){.name = p->name, .dtype = HA_F32, .ndim = p->ndim, .shape = {p->shape[0], p->shape[1]}, .data = floats(p->size, 1.0f)};
        }
    }
    CHECK(ha_safetensors_write(in_folder(folder, "model.safetensors"), tensors, n, NULL, &err) == HA_OK, "%s", err.message);
    for (size_t i = 0; i < n; i++) {
        free((void *)tensors[i].data);
    }
}

static void
write_folder(const char *folder)
{
    for (size_t i = 0; i < N_FILES; i++) {
        FILE *file = files[i].content != NULL ? fopen(in_folder(folder, files[i].name), "wb") : NULL;
        if (files[i].content == NULL) {
            write_weights(folder);
        } else {
            CHECK(file != NULL && fputs(files[i].content, file) >= 0 && fclose(file) == 0, "%s", files[i].name);
        }
    }
}

/* -- scores -- */

enum { ROWS = 5 };
static const ha_text prompts[ROWS] = {{"a b", 3}, {"", 0}, {"a b c ad bd cd a b c ad a b c", 29}, {"a b c a b c a b c", 17}, {"c\0b", 3}};
static const ha_text responses[ROWS] = {{"c", 1}, {NULL, 0}, {NULL, 0}, {"b c b c b c b c b c", 19}, {NULL, 0}};

/* Opens, scores and frees. */
static ha_status
everything(const char *folder, float *scores, ha_score_row *rows, ha_error *err)
{
    const ha_score_options options = {.n_threads = 1};
    ha_guard *guard;
    ha_status status = ha_guard_open(folder, NULL, &guard, err);
    if (status == HA_OK) {
        status = ha_guard_score(guard, prompts, responses, ROWS, &options, scores, NULL, rows, err);
        ha_guard_free(guard);
    }
    return status;
}

static void
test_guard(const char *folder, float *scores)
{
    static const int32_t windows[ROWS] = {1, 1, 2, 6, 1};
    ha_guard *guard;
    ha_score_row rows[ROWS];
    float logits[2 * ROWS], again;
    ha_error err = {{0}};
    CHECK(ha_guard_open(folder, NULL, &guard, &err) == HA_OK, "%s", err.message);
    CHECK(ha_guard_num_labels(guard) == 2 && ha_guard_unsafe_index(guard) == 0 && ha_guard_max_length(guard) == 12, "%zu", ha_guard_max_length(guard));
    CHECK(ha_guard_threshold(guard) == 0.25 && ha_guard_threshold_fits(guard, HA_LONG_TRUNCATE, NULL), "%g", ha_guard_threshold(guard));
    CHECK(!ha_guard_threshold_fits(guard, HA_LONG_WINDOWS, &err) && strstr(err.message, "fitted with long='truncate'") != NULL, "%s", err.message);
    CHECK(ha_guard_score(guard, prompts, responses, ROWS, NULL, scores, logits, rows, &err) == HA_OK, "%s", err.message);
    for (size_t i = 0; i < ROWS; i++) {
        const double want = 1 / (1 + exp((double)logits[2 * i + 1] - logits[2 * i]));
        CHECK(fabs(scores[i] - want) < 1e-6 && rows[i].n_windows == windows[i] && rows[i].window < windows[i], "row %zu: %g, %g, %d windows", i, scores[i],
              want, (int)rows[i].n_windows);
        CHECK(ha_guard_score(guard, &prompts[i], &responses[i], 1, NULL, &again, NULL, NULL, &err) == HA_OK && again == scores[i], "row %zu alone: %g", i, again);
    }
    const ha_text bad[2] = {{"a", 1}, {"a\xff", 2}}, none = {NULL, 3};
    const ha_score_options strict = {.long_rows = HA_LONG_ERROR, .first_row = 7};
    CHECK(ha_guard_score(guard, bad, NULL, 2, NULL, scores, NULL, NULL, &err) == HA_ERR_VALUE && strstr(err.message, "row 1: the prompt is not UTF-8 at byte 1"),
          "%s", err.message);
    CHECK(ha_guard_score(guard, &none, NULL, 1, NULL, scores, NULL, NULL, &err) == HA_ERR_VALUE && strstr(err.message, "3 bytes but no data"), "%s", err.message);
    CHECK(ha_guard_score(guard, prompts, responses, ROWS, &strict, NULL, NULL, NULL, &err) == HA_ERR_VALUE && strstr(err.message, "row 9 has 19 tokens"),
          "%s", err.message);
    CHECK(ha_guard_score(guard, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL) == HA_OK, "no rows");
    CHECK(ha_guard_score(guard, prompts, responses, ROWS, NULL, scores, NULL, NULL, &err) == HA_OK, "%s", err.message);
    ha_guard_free(guard);
}

typedef struct job { const ha_guard *guard; const float *want; int wrong; } job;

static void *
score_often(void *arg)
{
    job *j = arg;
    float scores[ROWS];
    for (int i = 0; i < 50; i++) {
        j->wrong += ha_guard_score(j->guard, prompts, responses, ROWS, NULL, scores, NULL, NULL, NULL) != HA_OK;
        j->wrong += memcmp(scores, j->want, sizeof(scores)) != 0;
    }
    return NULL;
}

static void
test_threads(const char *folder, const float *scores)
{
    ha_guard *guard;
    pthread_t threads[4];
    job jobs[4];
    CHECK(ha_guard_open(folder, NULL, &guard, NULL) == HA_OK, "open");
    for (int i = 0; i < 4; i++) {
        jobs[i] = (job){guard, scores, 0};
        CHECK(pthread_create(&threads[i], NULL, score_often, &jobs[i]) == 0, "thread %d", i);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(jobs[i].wrong == 0, "thread %d: %d wrong", i, jobs[i].wrong);
    }
    ha_guard_free(guard);
}

static void
test_out_of_memory(const char *folder, const float *want)
{
    float scores[ROWS];
    ha_score_row rows[ROWS];
    long fails = 0;
    for (int ran_out = 1; ran_out; fails++) {
        ha_error err = {{0}};
        allocations_left = fails;
        const ha_status status = everything(folder, scores, rows, &err);
        ran_out = allocations_left == 0;
        allocations_left = -1;
        CHECK(status == HA_ERR_NOMEM || (status == HA_OK && memcmp(scores, want, sizeof(scores)) == 0), "allocation %ld: status %d, %s", fails, (int)status,
              err.message);
    }
    CHECK(fails > 100, "%ld allocations", fails);
}

int
main(void)
{
    char folder[] = "/tmp/harmaug-guard-XXXXXX";
    float scores[ROWS];
    ha_error err = {{0}};
    CHECK(strcmp(ha_version(), HARMAUG_VERSION) == 0, "%s", ha_version());
    CHECK(ha_cpu_select("none", &err) == HA_ERR_VALUE && ha_cpu_select(NULL, &err) == HA_OK, "%s", err.message);
    CHECK(mkdtemp(folder) != NULL, "%s", folder);
    write_folder(folder);
    test_guard(folder, scores);
    test_threads(folder, scores);
    test_out_of_memory(folder, scores);
    for (size_t i = 0; i < N_FILES; i++) {
        unlink(in_folder(folder, files[i].name));
    }
    rmdir(folder);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
