/* The encoder as a plain C library: a folder is read, run and trained; then again with every allocation failing in turn, where each call must end
 * in HA_ERR_NOMEM with nothing leaked; and the arena by itself.
 *
 *     make check | make asan
 *
 * Linked with --wrap=malloc, --wrap=calloc and --wrap=realloc. */
#define _POSIX_C_SOURCE 200809L
#include <sys/stat.h>
#include <unistd.h>

#include "allocations.h"
#include "check.h"
#include "core/arena.h"
#include "core/parallel.h"
#include "io/tensor_file.h"
#include "models/encoder_layout.h"

/* -- models: one of each family, with whatever it may have -- */

#define LABELS 3
#define SIZES "\"vocab_size\": 50, \"hidden_size\": 18, \"num_hidden_layers\": 2, \"num_attention_heads\": 3, \"intermediate_size\": 70, " \
              "\"max_position_embeddings\": 75, \"num_labels\": 3, "
#define DISENTANGLED "\"model_type\": \"deberta-v2\", \"relative_attention\": true, \"position_buckets\": 16, \"type_vocab_size\": 0, "

static const struct { const char *name, *config; } models[] = {
    {"bert", "{" SIZES "\"model_type\": \"bert\", \"type_vocab_size\": 2}"},
    {"roberta", "{" SIZES "\"model_type\": \"roberta\", \"type_vocab_size\": 2, \"pad_token_id\": 1}"},
    {"electra", "{" SIZES "\"model_type\": \"electra\", \"type_vocab_size\": 2, \"embedding_size\": 11, \"hidden_act\": \"gelu_new\"}"},
    {"distilbert", "{\"vocab_size\": 50, \"dim\": 18, \"n_layers\": 2, \"n_heads\": 3, \"hidden_dim\": 70, \"max_position_embeddings\": 70, "
                   "\"num_labels\": 3, \"model_type\": \"distilbert\"}"},
    {"deberta-v3", "{" SIZES DISENTANGLED "\"pos_att_type\": \"p2c|c2p\", \"share_att_key\": true, \"norm_rel_ebd\": \"layer_norm\", "
                   "\"position_biased_input\": false}"},
    {"deberta-v2", "{" SIZES DISENTANGLED "\"pos_att_type\": [\"c2p\", \"p2c\"], \"embedding_size\": 13, \"conv_kernel_size\": 3, \"conv_groups\": 2, "
                   "\"position_biased_input\": true}"},
    {"modernbert", "{" SIZES "\"model_type\": \"modernbert\", \"local_attention\": 8, \"classifier_pooling\": \"mean\", \"norm_bias\": true, "
                   "\"attention_bias\": true, \"mlp_bias\": true, \"pad_token_id\": 0, \"bos_token_id\": 1, \"eos_token_id\": 2, "
                   "\"cls_token_id\": 1, \"sep_token_id\": 2}"},
};
enum { N_MODELS = sizeof(models) / sizeof(models[0]) };

/* Logits of transformers in float64 for these weights and the batch below: tests/c/record_encoders.py. */
static const double recorded[N_MODELS][3 * LABELS] = {
#include "encoder_logits.h"
};

static float *
weights_of(const ha_param *param)
{
    const int norm = param->ndim == 1 && strstr(param->name, "orm") != NULL && strstr(param->name, "weight") != NULL;
    const size_t fan_in = param->ndim > 1 ? param->shape[1] * param->shape[2] : 16;
    float *w = floats(param->size, strstr(param->name, "embeddings.") != NULL ? 0.7f : 2.0f / sqrtf((float)fan_in));
    for (size_t i = 0; norm && i < param->size; i++) {
        w[i] += 1.0f;
    }
    return w;
}

/* Writes models[which] into an existing folder. */
static void
write_model(const char *folder, size_t which)
{
    ha_encoder_config shape;
    char path[1024];
    ha_error err = {{0}};
    snprintf(path, sizeof(path), "%s/config.json", folder);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fputs(models[which].config, file) >= 0 && fclose(file) == 0, "%s", path);
    CHECK(ha_encoder_config_read(folder, &shape, &err) == HA_OK, "%s", err.message);
    const size_t count = ha_params_count(&shape);
    ha_tensor_out *tensors = bytes(count * sizeof(*tensors));
    ha_param *params = bytes(count * sizeof(*params));
    size_t n = 0;
    seed(1);
    for (size_t i = 0; i < count; i++) {
        ha_param_describe(&shape, i, 0, &params[i]);
        if (params[i].size > 0) {
            tensors[n++] = (ha_tensor_out){.name = params[i].name, .dtype = HA_F32, .ndim = params[i].ndim,
                                           .shape = {params[i].shape[0], params[i].shape[1], params[i].shape[2]}, .data = weights_of(&params[i])};
        }
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    CHECK(ha_safetensors_write(path, tensors, n, NULL, &err) == HA_OK, "%s", err.message);
    for (size_t i = 0; i < n; i++) {
        free((void *)tensors[i].data);
    }
    free(tensors);
    free(params);
}

static const int64_t offsets[] = {0, 1, 6, 76};
static int32_t ids[76];
static uint8_t types[76];
static const ha_batch batch = {.n_rows = 3, .offsets = offsets, .ids = ids, .type_ids = types};

/* Everything once. What it made is freed whether it ended well or not. logits (2, 3, LABELS): of the file and of the parameters; grads (total,). */
static ha_status
everything(const char *folder, float *logits, float *grads, size_t *total, ha_error *err)
{
    static const size_t kept[2][2] = {{1, 0}, {0, 1}};
    const int modernbert = strstr(folder, "modernbert") != NULL;    /* its layer 0 stays the first */
    ha_encoder *a = NULL, *b = NULL;
    ha_encoder_params *params = NULL, *copy = NULL, *short_one = NULL;
    ha_tape *tape = NULL;
    uint8_t words[50] = {0};
    const ha_dropouts dropout = {0.1f, 0.2f, 0.3f};
    float again[3 * LABELS];
    ha_status status;
    if ((status = ha_encoder_open(folder, HA_WEIGHT_F32, &a, err)) != HA_OK ||
        (status = ha_encoder_logits(a, &batch, logits, 2, err)) != HA_OK ||
        (status = ha_encoder_params_read(folder, NULL, 0, 0, 0, &params, err)) != HA_OK ||
        (status = ha_encoder_params_read(folder, kept[modernbert], 2, 5, 7, &short_one, err)) != HA_OK ||
        (status = ha_encoder_params_copy(params, &copy, err)) != HA_OK ||
        (status = ha_encoder_from_params(copy, HA_WEIGHT_F32, &b, err)) != HA_OK ||
        (status = ha_encoder_logits(b, &batch, logits + 3 * LABELS, 1, err)) != HA_OK) {
        goto done;
    }
    *total = params->total;
    tape = ha_tape_new(0);
    if (tape == NULL) {
        status = HA_ERR_NOMEM;
        goto done;
    }
    if ((status = ha_encoder_train_forward(params, &batch, &dropout, 1, 2, tape, again, 1, err)) == HA_OK && grads != NULL) {
        status = ha_encoder_train_backward(params, &batch, tape, again, grads, NULL, words, 2, err);     /* more threads: the scratch grows */
    }
done:
    ha_tape_free(tape);
    ha_encoder_free(a);
    ha_encoder_free(b);
    ha_encoder_params_free(params);
    ha_encoder_params_free(copy);
    ha_encoder_params_free(short_one);
    return status;
}

static void
test_model(const char *folder)
{
    float logits[2][3 * LABELS];
    size_t total = 0;
    ha_error err = {{0}};
    ha_status status = everything(folder, &logits[0][0], NULL, &total, &err);
    CHECK(status == HA_OK, "%s", err.message);
    CHECK(memcmp(logits[0], logits[1], sizeof(logits[0])) == 0, "the file's and the parameters' logits differ");
    float *grads = floats(total, 0.0f);
    long fails = 0;
    do {
        allocations_left = fails++;
        err.message[0] = '\0';
        status = everything(folder, &logits[0][0], grads, &total, &err);
        const int ran_out = allocations_left == 0;
        allocations_left = -1;
        CHECK(status == HA_OK || status == HA_ERR_NOMEM || (status == HA_ERR_IO && ran_out), "allocation %ld: status %d: %s", fails - 1, (int)status, err.message);
    } while (status != HA_OK && fails < 100000);
    CHECK(status == HA_OK && fails > 20, "%ld allocations", fails);
    double norm = 0;
    for (size_t i = 0; i < total; i++) {
        norm += (double)grads[i] * grads[i];
    }
    CHECK(isfinite(norm) && norm > 0, "gradient's norm %g", norm);
    free(grads);
}

static void
test_backward_needs_its_forward(const char *folder)
{
    ha_encoder_params *params = NULL, *other = NULL;
    ha_error err;
    float logits[3 * LABELS];
    const ha_batch shorter = {.n_rows = 2, .offsets = offsets, .ids = ids};
    const ha_dropouts none = {0}, all = {.classifier = 1.0f};
    ha_tape *tape = ha_tape_new(0);
    CHECK(ha_encoder_params_read(folder, NULL, 0, 0, 0, &params, &err) == HA_OK && ha_encoder_params_copy(params, &other, &err) == HA_OK, "%s", err.message);
    float *grads = floats(params->total, 0.0f);
    CHECK(ha_encoder_train_backward(params, &batch, tape, logits, grads, NULL, NULL, 1, &err) == HA_ERR_VALUE, "without a forward pass");
    CHECK(ha_encoder_train_forward(params, &batch, &none, 0, 0, tape, logits, 1, &err) == HA_OK, "%s", err.message);
    CHECK(ha_encoder_train_backward(other, &batch, tape, logits, grads, NULL, NULL, 1, &err) == HA_ERR_VALUE, "other parameters");
    CHECK(ha_encoder_train_backward(params, &shorter, tape, logits, grads, NULL, NULL, 1, &err) == HA_ERR_VALUE, "another batch");
    CHECK(ha_encoder_train_backward(params, &batch, tape, logits, grads, NULL, NULL, 1, &err) == HA_OK, "%s", err.message);
    CHECK(ha_encoder_train_forward(params, &batch, &all, 0, 0, tape, logits, 1, &err) == HA_ERR_VALUE, "dropout of 1");
    CHECK(ha_encoder_train_backward(params, &batch, tape, logits, grads, NULL, NULL, 1, &err) == HA_ERR_VALUE, "after a forward pass that failed");
    free(grads);
    ha_tape_free(tape);
    ha_encoder_params_free(params);
    ha_encoder_params_free(other);
}

/* On every instruction set, against transformers. */
static void
test_logits(const char *folder, size_t which)
{
    const ha_kernels *kernels;
    for (int i = 0; (kernels = ha_kernels_at(i)) != NULL; i++) {
        ha_encoder *encoder = NULL;
        ha_error err = {{0}};
        float logits[3 * LABELS] = {0};
        double worst = 0;
        CHECK(ha_kernels_select(kernels->isa, &err) == HA_OK && ha_encoder_open(folder, HA_WEIGHT_F32, &encoder, &err) == HA_OK &&
              ha_encoder_logits(encoder, &batch, logits, 2, &err) == HA_OK, "%s", err.message);
        ha_encoder_free(encoder);
        for (size_t j = 0; j < 3 * LABELS; j++) {
            worst = fmax(worst, fabs(logits[j] - recorded[which][j]));
        }
        CHECK(worst < 2e-5, "%s on %s: largest difference to transformers %g", models[which].name, kernels->isa, worst);
        printf("%s on %s: largest difference to transformers %.1e\n", models[which].name, kernels->isa, worst);
    }
    ha_kernels_select(NULL, NULL);
}

static void
test_arena(void)
{
    ha_arena arena = {0};
    ha_error err;
    ha_arena_begin(&arena);
    CHECK(ha_arena_take(&arena, 3, 5) == NULL && ha_arena_take(&arena, 0, 8) == NULL && ha_arena_take(&arena, 1, 1) == NULL, "counting hands out nothing");
    CHECK(ha_arena_commit(&arena, &err) == HA_OK, "%s", err.message);
    uint8_t *a = ha_arena_take(&arena, 3, 5), *empty = ha_arena_take(&arena, 0, 8), *b = ha_arena_take(&arena, 1, 1);
    CHECK((uintptr_t)a % HA_ARENA_ALIGN == 0 && (uintptr_t)b % HA_ARENA_ALIGN == 0 && empty != NULL && b >= a + 15, "aligned, apart");
    memset(a, 1, 15);
    *b = 2;
    const size_t capacity = arena.capacity;
    ha_arena_begin(&arena);
    ha_arena_take(&arena, 1, 1);
    CHECK(ha_arena_commit(&arena, &err) == HA_OK && arena.capacity == capacity && ha_arena_take(&arena, 1, 1) == a, "smaller: the memory is kept");
    const struct { size_t count, item; } huge[] = {{SIZE_MAX, 1}, {SIZE_MAX, SIZE_MAX}, {SIZE_MAX / 2, 3}, {SIZE_MAX - 64, 1}};
    for (size_t i = 0; i < sizeof(huge) / sizeof(huge[0]); i++) {
        ha_arena_begin(&arena);
        ha_arena_take(&arena, 100, 1);
        ha_arena_take(&arena, huge[i].count, huge[i].item);
        CHECK(ha_arena_commit(&arena, &err) == HA_ERR_NOMEM, "overflow %zu", i);
    }
    ha_arena_begin(&arena);
    for (int i = 0; i < 3; i++) {
        ha_arena_take(&arena, SIZE_MAX / 2, 1);     /* each fits, their sum does not */
    }
    CHECK(ha_arena_commit(&arena, &err) == HA_ERR_NOMEM, "the sum overflows");
    ha_arena_begin(&arena);
    ha_arena_take(&arena, 1 << 20, 1);
    allocations_left = 0;
    const ha_status status = ha_arena_commit(&arena, &err);
    allocations_left = -1;
    CHECK(status == HA_ERR_NOMEM && ha_arena_commit(&arena, &err) == HA_OK, "a failed commit can be tried again");
    ha_arena_free(&arena);
    ha_arena_free(&arena);
}

static void
remove_model(const char *folder)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    unlink(path);
    snprintf(path, sizeof(path), "%s/config.json", folder);
    unlink(path);
    rmdir(folder);
}

/* With a folder as argument: writes the models there, for record_encoders.py, and no test runs. */
int
main(int argc, char **argv)
{
    char base[] = "/tmp/harmaug-encoder-XXXXXX", folder[512];
    ha_parallel_init();
    if (ha_kernels_select(NULL, NULL) != HA_OK || (argc < 2 && mkdtemp(base) == NULL)) {
        return 2;
    }
    for (size_t i = 0; i < 76; i++) {
        ids[i] = (int32_t)(i * 7 % 50);
        types[i] = i % 3 == 0;
    }
    if (argc < 2) {
        test_arena();
    }
    for (size_t i = 0; i < N_MODELS; i++) {
        snprintf(folder, sizeof(folder), "%s/%s", argc > 1 ? argv[1] : base, models[i].name);
        mkdir(folder, 0700);
        write_model(folder, i);
        if (argc > 1) {
            continue;
        }
        test_logits(folder, i);
        test_model(folder);
        if (i == 0) {
            test_backward_needs_its_forward(folder);
        }
        remove_model(folder);
    }
    if (argc < 2) {
        rmdir(base);
        printf("%d passed, %d failed\n", n_passed, n_failed);
    }
    return n_failed != 0;
}
