/* The decoder, the sampler and the sampling loop as a plain C library: a folder is opened and sampled from; then again with every allocation failing
 * in turn, where each call must end in HA_ERR_NOMEM with nothing leaked, and the samples stay what they were.
 *
 *     make check | make asan
 *
 * Linked with --wrap=malloc, calloc, realloc and aligned_alloc. */
#define _POSIX_C_SOURCE 200809L
#include <unistd.h>

#include "allocations.h"
#include "check.h"
#include "generation/loop.h"
#include "io/tensor_file.h"

/* -- a model: 37 tokens, hidden 18, 2 layers, 3 query heads on 1 key-value head of 6, intermediate 23, biases -- */

static const char config_json[] =
    "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 18, \"num_hidden_layers\": 2, \"num_attention_heads\": 3, \"num_key_value_heads\": 1,"
    " \"intermediate_size\": 23, \"max_position_embeddings\": 90, \"attention_bias\": true, \"mlp_bias\": true, \"eos_token_id\": 3}";

typedef struct shape { const char *name; size_t rows, columns; } shape;     /* columns 0: a vector */

static const shape in_layer[] = {
    {"input_layernorm.weight", 18, 0}, {"post_attention_layernorm.weight", 18, 0}, {"self_attn.q_proj.weight", 18, 18}, {"self_attn.k_proj.weight", 6, 18},
    {"self_attn.v_proj.weight", 6, 18}, {"self_attn.o_proj.weight", 18, 18}, {"mlp.gate_proj.weight", 23, 18}, {"mlp.up_proj.weight", 23, 18},
    {"mlp.down_proj.weight", 18, 23}, {"self_attn.q_proj.bias", 18, 0}, {"self_attn.k_proj.bias", 6, 0}, {"self_attn.v_proj.bias", 6, 0},
    {"self_attn.o_proj.bias", 18, 0}, {"mlp.gate_proj.bias", 23, 0}, {"mlp.up_proj.bias", 23, 0}, {"mlp.down_proj.bias", 18, 0},
};
static const shape outside[] = {{"model.embed_tokens.weight", 37, 18}, {"model.norm.weight", 18, 0}, {"lm_head.weight", 37, 18}};

#define IN_LAYER (sizeof(in_layer) / sizeof(in_layer[0]))
#define COUNT (2 * IN_LAYER + 3)

static void
write_model(const char *folder)
{
    static char names[COUNT][80];
    ha_tensor_out tensors[COUNT];
    char path[512];
    ha_error err;
    seed(3);
    for (size_t i = 0; i < COUNT; i++) {
        const shape *s = i < 3 ? &outside[i] : &in_layer[(i - 3) % IN_LAYER];
        if (i < 3) {
            snprintf(names[i], sizeof(names[i]), "%s", s->name);
        }
        else {
            snprintf(names[i], sizeof(names[i]), "model.layers.%zu.%s", (i - 3) / IN_LAYER, s->name);
        }
        tensors[i] = (ha_tensor_out){.name = names[i], .dtype = HA_F32, .ndim = s->columns > 0 ? 2 : 1, .shape = {s->rows, s->columns},
                                     .data = floats(s->rows * (s->columns > 0 ? s->columns : 1), 0.7f)};
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    CHECK(ha_safetensors_write(path, tensors, COUNT, NULL, &err) == HA_OK, "%s", err.message);
    for (size_t i = 0; i < COUNT; i++) {
        free((void *)(uintptr_t)tensors[i].data);
    }
    snprintf(path, sizeof(path), "%s/config.json", folder);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fputs(config_json, file) >= 0 && fclose(file) == 0, "%s", path);
}

/* -- sampling -- */

#define PROMPTS 4
#define SAMPLES 3
#define NEW 9

static const int32_t tokens[40] = {5, 9, 1, 0, 36, 35, 7, 7, 7, 2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
                                   6, 8, 4, 1, 2, 5};
static const size_t lengths[PROMPTS] = {40, 33, 40, 1};

typedef struct outcome {
    size_t n;
    struct { uint64_t request, sample; size_t n_ids; int32_t ids[NEW]; double logprob; ha_stop_reason reason; } items[PROMPTS * SAMPLES];
} outcome;

static ha_status
sample(const ha_decoder *decoder, size_t batch_size, int n_threads, const ha_sampling *sampling, outcome *out, ha_error *err)
{
    static const int32_t stop_ids[] = {3, 4}, banned[] = {9, 5, 6};
    static const size_t banned_ends[] = {1, 3};
    const ha_generation_options options = {.batch_size = batch_size, .max_new_tokens = NEW, .min_new_tokens = 1, .seed = 5, .sampling = *sampling,
                                           .stop_ids = stop_ids, .n_stop_ids = 2, .banned = banned, .banned_ends = banned_ends, .n_banned = 2,
                                           .n_threads = n_threads};
    ha_run *run = NULL;
    ha_generated g;
    out->n = 0;
    ha_status status = ha_run_new(decoder, NULL, &options, &run, err);
    for (size_t i = 0; status == HA_OK && i < PROMPTS; i++) {
        const ha_request request = {.ids = tokens, .n_ids = lengths[i], .n_samples = SAMPLES, .first_index = 10 * i};
        status = ha_run_add(run, &request, err);
    }
    while (status == HA_OK && !ha_run_idle(run)) {
        status = ha_run_step(run, err);
        while (status == HA_OK && ha_run_next(run, &g)) {
            out->items[out->n].request = g.request;
            out->items[out->n].sample = g.sample;
            out->items[out->n].n_ids = g.n_ids;
            memcpy(out->items[out->n].ids, g.ids, g.n_ids * sizeof(*g.ids));
            out->items[out->n].logprob = g.logprob;
            out->items[out->n++].reason = g.reason;
        }
    }
    ha_run_free(run);
    return status;
}

static int
same(const outcome *a, const outcome *b)
{
    int equal = a->n == b->n;
    for (size_t i = 0; equal && i < a->n; i++) {
        equal = a->items[i].request == b->items[i].request && a->items[i].sample == b->items[i].sample && a->items[i].n_ids == b->items[i].n_ids &&
                memcmp(a->items[i].ids, b->items[i].ids, a->items[i].n_ids * sizeof(int32_t)) == 0 && a->items[i].reason == b->items[i].reason &&
                memcmp(&a->items[i].logprob, &b->items[i].logprob, sizeof(double)) == 0;
    }
    return equal;
}

static ha_status
open_and_sample(const char *folder, ha_weight_format format, const ha_sampling *sampling, outcome *out, ha_error *err)
{
    ha_decoder *decoder = NULL;
    ha_status status = ha_decoder_open(folder, format, 1, &decoder, err);
    if (status == HA_OK) {
        status = sample(decoder, 5, 1, sampling, out, err);
    }
    ha_decoder_free(decoder);
    return status;
}

static void
test_samples(const char *folder, ha_weight_format format)
{
    static const ha_sampling samplings[] = {{1, 0, 1, 0, 1, 1, 0, 0}, {0, 0, 1, 0, 1, 1, 0, 0}, {0.8, 7, 0.9, 0.05, 1, 1, 0, 0},
                                          {1.3, 0, 0.9, 0, 0.8, 1.2, 0.1, 0.2}};
    static outcome first, again;
    ha_decoder *decoder = NULL;
    ha_error err;
    CHECK(ha_decoder_open(folder, format, 2, &decoder, &err) == HA_OK, "%s", err.message);
    for (size_t s = 0; decoder != NULL && s < sizeof(samplings) / sizeof(samplings[0]); s++) {
        CHECK(sample(decoder, 5, 1, &samplings[s], &first, &err) == HA_OK && first.n == PROMPTS * SAMPLES, "%zu of %d", first.n, PROMPTS * SAMPLES);
        for (size_t batch_size = 1; batch_size <= 16; batch_size *= 2) {
            for (int n_threads = 1; n_threads <= 2; n_threads++) {
                CHECK(sample(decoder, batch_size, n_threads, &samplings[s], &again, &err) == HA_OK && same(&first, &again),
                      "sampling %zu differs at batch_size %zu, %d threads", s, batch_size, n_threads);
            }
        }
    }
    ha_decoder_free(decoder);
}

static void
test_failing_allocations(const char *folder)
{
    static const ha_sampling sampling = {0.9, 0, 0.95, 0, 0.9, 1.1, 0.1, 0};
    static outcome want, got;
    ha_error err;
    CHECK(open_and_sample(folder, HA_WEIGHT_BF16, &sampling, &want, &err) == HA_OK, "%s", err.message);
    ha_status status = HA_ERR_NOMEM;
    long n = 0;
    for (; status == HA_ERR_NOMEM && n < 100000; n++) {
        allocations_left = n;
        status = open_and_sample(folder, HA_WEIGHT_BF16, &sampling, &got, &err);
        allocations_left = -1;
    }
    CHECK(status == HA_OK && n > 100 && same(&want, &got), "allocation %ld: status %d, %s", n, (int)status, err.message);
}

static void
test_refusals(const char *folder)
{
    static outcome out;
    ha_decoder *decoder = NULL;
    ha_decoder_state *state = NULL;
    ha_kv_cache *cache = NULL;
    ha_error err;
    CHECK(ha_decoder_open(folder, HA_WEIGHT_F32, 1, &decoder, &err) == HA_OK, "%s", err.message);
    CHECK(ha_decoder_state_new(decoder, 4, 1, &state, &err) == HA_OK && ha_decoder_cache_new(decoder, 90, &cache, &err) == HA_OK, "%s", err.message);
    const ha_segment wide = {tokens, 5, NULL, cache}, none = {tokens, 0, NULL, cache};
    const int32_t outside_vocabulary[] = {1, 37};
    const ha_segment strange = {outside_vocabulary, 2, NULL, cache};
    CHECK(ha_decoder_forward(decoder, state, &wide, 1, &err) == HA_ERR_VALUE, "5 rows where 4 fit");
    CHECK(ha_decoder_forward(decoder, state, &none, 1, &err) == HA_ERR_VALUE, "an empty segment");
    CHECK(ha_decoder_forward(decoder, state, &strange, 1, &err) == HA_ERR_VALUE, "an id outside the vocabulary");
    cache->length = 88;
    const ha_segment late = {tokens, 3, NULL, cache};
    CHECK(ha_decoder_forward(decoder, state, &late, 1, &err) == HA_ERR_VALUE, "a position outside the context");
    CHECK(cache->length == 88, "a refused pass moved the cache");
    const ha_sampling bad = {1, 0, 1.5, 0, 1, 1, 0, 0};
    CHECK(sample(decoder, 5, 1, &bad, &out, &err) == HA_ERR_VALUE, "top_p 1.5");
    const ha_sampling good = ha_sampling_plain;
    CHECK(sample(decoder, 0, 1, &good, &out, &err) == HA_ERR_VALUE, "batch_size 0");
    ha_kv_cache_free(cache);
    ha_decoder_state_free(state);
    ha_decoder_free(decoder);
}

int
main(void)
{
    char folder[] = "/tmp/harmaug-decoder-XXXXXX", path[512];
    ha_error err;
    CHECK(mkdtemp(folder) != NULL, "mkdtemp");
    write_model(folder);
    for (int i = 0; ha_kernels_at(i) != NULL; i++) {
        CHECK(ha_kernels_select(ha_kernels_at(i)->isa, &err) == HA_OK, "%s", err.message);
        test_samples(folder, HA_WEIGHT_F32);
        test_samples(folder, HA_WEIGHT_BF16);
    }
    CHECK(ha_kernels_select(NULL, &err) == HA_OK, "%s", err.message);
    test_failing_allocations(folder);
    test_refusals(folder);
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    unlink(path);
    snprintf(path, sizeof(path), "%s/config.json", folder);
    unlink(path);
    rmdir(folder);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
