/* Opening a guard: its parts, its labels, its threshold. */
#include "guard/guard.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "guard/guard_impl.h"
#include "io/json.h"
#include "kernels/kernels.h"
#include "models/encoder_layout.h"

#define LEAST_TEXT 4        /* tokens of text that a window of a pair must have room for */
#define MAX_SAID 1e6        /* transformers writes 1e30 as model_max_length where there is none */

const char *
ha_version(void)
{
    return HARMAUG_VERSION;
}

/* -- the instruction set -- */

static atomic_int isa_chosen;

static void
choose_isa(void)
{
    if (!isa_chosen) {
        ha_kernels_select(NULL, NULL);      /* the best one: this can't fail */
    }
}

const char *
ha_cpu_isa(void)
{
    return ha_kernels_get()->isa;
}

ha_status
ha_cpu_select(const char *isa, ha_error *err)
{
    const ha_status status = ha_kernels_select(isa, err);
    if (status == HA_OK) {
        isa_chosen = 1;
    }
    return status;
}

/* -- labels -- */

/* In lower case; any case of ASCII is accepted. */
static const char *const unsafe_names[] = {"unsafe", "harmful", "toxic", "malicious", NULL};
static const char *const safe_names[] = {"safe", "harmless", "unharmful", "benign", "non-toxic", "not_toxic", NULL};

static int
is_one_of(const char *label, const char *const *names)
{
    for (; *names != NULL; names++) {
        size_t i = 0;
        while (label[i] != '\0' && (label[i] >= 'A' && label[i] <= 'Z' ? label[i] + 'a' - 'A' : label[i]) == (*names)[i]) {
            i++;
        }
        if (label[i] == '\0' && (*names)[i] == '\0') {
            return 1;
        }
    }
    return 0;
}

ha_status
ha_guard_unsafe_label(const char *const *labels, size_t n, const char *name, size_t *out, ha_error *err)
{
    size_t n_unsafe = 0, at = 0;
    char got[200] = "";
    *out = 0;
    if (n == 1) {
        return HA_OK;
    }
    for (size_t i = 0; labels != NULL && i < n; i++) {
        if (is_one_of(labels[i], unsafe_names)) {
            *out = i;
            n_unsafe++;
        }
        if (at < sizeof(got)) {
            at += (size_t)snprintf(got + at, sizeof(got) - at, "%s'%.40s'", i > 0 ? ", " : "", labels[i]);
        }
    }
    if (n_unsafe == 1) {
        return HA_OK;
    }
    if (n_unsafe == 0 && n == 2 && (labels == NULL || !is_one_of(labels[1], safe_names))) {
        *out = 1;
        return HA_OK;
    }
    return ha_fail(err, HA_ERR_VALUE, "%.150s: id2label of config.json must name exactly one of %zu labels unsafe or harmful or toxic or malicious, got [%s]",
                   name, n, got);
}

/* -- settings -- */

static ha_status
choose_max_length(ha_guard *guard, const ha_guard_parts *parts, ha_error *err)
{
    const ha_encoder_config *config = ha_encoder_config_of(guard->encoder);
    const size_t most = config->max_tokens, least = guard->template.pair + LEAST_TEXT;
    char path[HA_PATH_MAX];
    ha_json *json = NULL;
    if (parts->max_length > 0) {
        guard->max_length = parts->max_length;
        return parts->max_length >= least && parts->max_length <= most ? HA_OK :
               ha_fail(err, HA_ERR_VALUE, "max_length must be from %zu to %zu, the most tokens that the model reads, got %zu", least, most, parts->max_length);
    }
    ha_status status = ha_path_join(parts->tokenizer_folder, "tokenizer_config.json", path, sizeof(path), err);
    if (status != HA_OK || (status = ha_json_open(path, 1, &json, err)) != HA_OK) {
        return status;
    }
    const ha_json_node *said = json != NULL ? ha_json_get(json, ha_json_root(json), "model_max_length") : NULL;
    guard->max_length = config->max_position_embeddings;
    if (said != NULL && said->type == HA_JSON_NUMBER && said->number < MAX_SAID) {
        guard->max_length = said->number >= (double)least ? (size_t)said->number : 0;
    }
    guard->max_length = guard->max_length < most ? guard->max_length : most;
    if (guard->max_length < least) {
        status = guard->max_length > 0 ? ha_fail(err, HA_ERR_FORMAT, "%.200s: the model reads %zu tokens, which leaves no room for text", guard->name, most) :
                 ha_fail(err, HA_ERR_FORMAT, "%.300s: model_max_length %.40s leaves no room for text", path, said->string);
    }
    ha_json_free(json);
    return status;
}

int
ha_long_named(const char *name, ha_long *out)
{
    static const char *const names[] = {"windows", "truncate", "error"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (ha_long)i;
            return 1;
        }
    }
    return 0;
}

/* A number of thresholds.json in [low, high]; *out stays where it is absent. */
static ha_status
read_number(const ha_json *json, const char *path, const char *name, double low, double high, double *out, ha_error *err)
{
    const ha_json_node *node = ha_json_get(json, ha_json_root(json), name);
    if (node == NULL) {
        return HA_OK;
    }
    if (!(node->type == HA_JSON_NUMBER && node->number >= low && node->number <= high)) {
        return ha_fail(err, HA_ERR_VALUE, "%.300s: %s must be in [%g, %g], got %.60s", path, name, low, high,
                       node->type == HA_JSON_NUMBER ? node->string : "something else");
    }
    *out = node->number;
    return HA_OK;
}

ha_status
ha_guard_read_thresholds(ha_guard *guard, const char *folder, ha_error *err)
{
    char path[HA_PATH_MAX];
    ha_json *json = NULL;
    const char *mode;
    ha_status status = ha_path_join(folder, "thresholds.json", path, sizeof(path), err);
    if (status != HA_OK || (status = ha_json_open(path, 1, &json, err)) != HA_OK || json == NULL) {
        return status;
    }
    const ha_json_node *root = ha_json_root(json);
    if ((status = read_number(json, path, "threshold", 0, 1, &guard->threshold, err)) != HA_OK ||
        (status = read_number(json, path, "temperature", 1e-3, 1e3, &guard->temperature, err)) != HA_OK) {
        goto done;
    }
    if ((status = ha_json_get_string(json, root, "long", NULL, &mode, err)) != HA_OK ||
        (status = ha_json_get_size(json, root, "max_length", 0, 1, SIZE_MAX, &guard->fitted_length, err)) != HA_OK) {
        goto done;
    }
    guard->has_fitted_length = guard->fitted_length > 0;
    guard->has_fitted_long = mode != NULL;
    if (mode != NULL && !ha_long_named(mode, &guard->fitted_long)) {
        status = ha_fail(err, HA_ERR_VALUE, "%.300s: long must be one of windows, truncate, error, got '%.60s'", path, mode);
    }
done:
    ha_json_free(json);
    return status;
}

int
ha_guard_threshold_fits(const ha_guard *guard, ha_long long_rows, ha_error *why)
{
    static const char *const names[] = {"windows", "truncate", "error"};
    if (guard->has_fitted_long && guard->fitted_long != long_rows) {
        ha_fail(why, HA_OK, "the threshold %g was fitted with long='%s', not '%s'", guard->threshold, names[guard->fitted_long], names[long_rows]);
        return 0;
    }
    if (guard->has_fitted_length && guard->fitted_length != guard->max_length) {
        ha_fail(why, HA_OK, "the threshold %g was fitted with max_length=%zu, not %zu", guard->threshold, guard->fitted_length, guard->max_length);
        return 0;
    }
    return 1;
}

/* -- the whole -- */

ha_status
ha_guard_compose(const ha_guard_parts *parts, ha_guard **out, ha_error *err)
{
    const ha_encoder_config *config = ha_encoder_config_of(parts->encoder);
    const size_t n_tokens = ha_tokenizer_vocab_size(parts->tokenizer);
    ha_status status = HA_OK;
    *out = NULL;
    if (n_tokens > config->vocab_size) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: the tokenizer has %zu tokens, the model %zu", parts->name, n_tokens, config->vocab_size);
    }
    ha_guard *guard = calloc(1, sizeof(*guard));
    if (guard == NULL || (guard->name = malloc(strlen(parts->name) + 1)) == NULL) {
        free(guard);
        return ha_fail(err, HA_ERR_NOMEM, "guard: out of memory");
    }
    strcpy(guard->name, parts->name);
    guard->encoder = parts->encoder;
    guard->tokenizer = parts->tokenizer;
    guard->threshold = 0.5;
    guard->temperature = 1;
    if ((status = ha_guard_unsafe_label(parts->labels, config->num_labels, parts->name, &guard->unsafe_index, err)) != HA_OK ||
        (status = ha_template_learn(parts->tokenizer, &guard->template, err)) != HA_OK ||
        (status = choose_max_length(guard, parts, err)) != HA_OK) {
        ha_guard_free(guard);
        return status;
    }
    *out = guard;
    return HA_OK;
}

void
ha_guard_free(ha_guard *guard)
{
    if (guard != NULL) {
        ha_template_free(&guard->template);
        ha_encoder_free(guard->own_encoder);
        ha_tokenizer_free(guard->own_tokenizer);
        free(guard->name);
        free(guard);
    }
}

/* The names that config.json gives the labels, (n,) borrowed from `json`; *out NULL: none. */
static ha_status
read_labels(const ha_json *json, size_t n, const char ***out, ha_error *err)
{
    const ha_json_node *table = ha_json_get(json, ha_json_root(json), "id2label");
    *out = NULL;
    if (table == NULL || table->type != HA_JSON_OBJECT) {
        return HA_OK;
    }
    if ((*out = malloc(n * sizeof(**out))) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "guard: out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        char key[24];
        snprintf(key, sizeof(key), "%zu", i);
        const ha_json_node *label = ha_json_get(json, table, key);
        (*out)[i] = label != NULL && label->type == HA_JSON_STRING ? label->string : "";
    }
    return HA_OK;
}

static ha_status
refuse_adapter(const char *folder, ha_error *err)
{
    char path[HA_PATH_MAX];
    ha_status status = ha_path_join(folder, "adapter_config.json", path, sizeof(path), err);
    FILE *file = status == HA_OK ? fopen(path, "rb") : NULL;
    if (file != NULL) {
        fclose(file);
        status = ha_fail(err, HA_ERR_FORMAT, "%.150s: a LoRA adapter, which the C library does not merge; save the whole guard once with Python: "
                         "Guard.from_pretrained(folder).save_pretrained(new_folder)", folder);
    }
    return status;
}

ha_status
ha_guard_open(const char *folder, const ha_guard_options *options, ha_guard **out, ha_error *err)
{
    ha_guard_parts parts = {.name = folder, .tokenizer_folder = folder, .max_length = options != NULL ? options->max_length : 0};
    ha_encoder *encoder = NULL;
    ha_tokenizer *tokenizer = NULL;
    ha_json *config = NULL;
    const char **labels = NULL;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char path[HA_PATH_MAX];
    ha_weight_format format;
    *out = NULL;
    ha_parallel_init();
    pthread_once(&once, choose_isa);
    ha_status status = ha_weight_format_named(options != NULL && options->dtype != NULL ? options->dtype : "float32", &format, err);
    if (status != HA_OK || (status = refuse_adapter(folder, err)) != HA_OK ||
        (status = ha_path_join(folder, "config.json", path, sizeof(path), err)) != HA_OK ||
        (status = ha_encoder_open(folder, format, &encoder, err)) != HA_OK || (status = ha_tokenizer_open(folder, NULL, &tokenizer, err)) != HA_OK ||
        (status = ha_json_open(path, 0, &config, err)) != HA_OK ||
        (status = read_labels(config, ha_encoder_config_of(encoder)->num_labels, &labels, err)) != HA_OK) {
        goto done;
    }
    parts.encoder = encoder;
    parts.tokenizer = tokenizer;
    parts.labels = labels;
    status = ha_guard_compose(&parts, out, err);
    if (status == HA_OK && (status = ha_guard_read_thresholds(*out, folder, err)) != HA_OK) {
        ha_guard_free(*out);
        *out = NULL;
    }
done:
    free(labels);
    ha_json_free(config);
    if (status != HA_OK) {
        ha_encoder_free(encoder);
        ha_tokenizer_free(tokenizer);
    } else {
        (*out)->own_encoder = encoder;
        (*out)->own_tokenizer = tokenizer;
    }
    return status;
}

size_t
ha_guard_num_labels(const ha_guard *guard)
{
    return ha_encoder_config_of(guard->encoder)->num_labels;
}

size_t
ha_guard_unsafe_index(const ha_guard *guard)
{
    return guard->unsafe_index;
}

size_t
ha_guard_max_length(const ha_guard *guard)
{
    return guard->max_length;
}

double
ha_guard_threshold(const ha_guard *guard)
{
    return guard->threshold;
}
