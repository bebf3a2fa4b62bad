/* harmaug in C: a safety guard's P(unsafe) of prompts and responses, without Python.
 *
 *     #include "harmaug.h"        cc app.c libharmaug.a -lm    (with -fopenmp where the library was built with it)
 *
 * Scores are those of the Python package, which runs this code: on one machine and instruction set equal bit for bit, whatever stands beside a row, and on
 * any number of threads.
 *
 * Threads: an open guard is never changed, so any number of threads may score with it at once; ha_guard_free() needs to be alone with its guard. The
 * library has no other state than the instruction set, which is chosen once.
 * Files are not trusted: a damaged or hostile folder is an error with a text. They must not be shortened while a guard is open: it reads from them.
 * Texts are UTF-8 with their length in bytes; they may hold NUL and need none at the end. */
#ifndef HARMAUG_H
#define HARMAUG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Before 1.0.0 a change of the second number may break callers. ha_version() is that of the library: a program that got another header says so. */
#define HARMAUG_VERSION "0.1.0"
const char *ha_version(void);

/* What a fallible function returns; err->message, where err is not NULL, then holds one line of text. On failure nothing is handed out. */
typedef enum ha_status {
    HA_OK = 0,
    HA_ERR_NOMEM,
    HA_ERR_VALUE,   /* an argument, or a file's content, is out of range */
    HA_ERR_IO,
    HA_ERR_FORMAT   /* a file is damaged, or asks for what this library does not compute */
} ha_status;

/* The caller owns it; one per call, on the stack. */
typedef struct ha_error {
    char message[512];
} ha_error;

typedef struct ha_text { const char *data; size_t length; } ha_text;

/* The instruction set that is used, such as "avx2"; and the choice of another, before the first guard is opened: NULL is the best that this CPU has, which is
 * what ha_guard_open() takes when nobody chose. HA_ERR_VALUE for one that is unknown or that the CPU lacks. */
const char *ha_cpu_isa(void);
ha_status ha_cpu_select(const char *isa, ha_error *err);

typedef struct ha_guard ha_guard;

/* Zeroed: the defaults. */
typedef struct ha_guard_options {
    const char *dtype;      /* storage of the weights, as in Python; NULL: "float32" */
    size_t max_length;      /* tokens read at once; 0: model_max_length of tokenizer_config.json when below 1e6, else max_position_embeddings */
} ha_guard_options;

/* Opens a Hugging Face folder: config.json, model.safetensors (or its shards), a tokenizer, and thresholds.json where a threshold was fitted.
 * `options` may be NULL. *out is the caller's, to be given to ha_guard_free(). A folder with a LoRA adapter is HA_ERR_FORMAT: merge it first. */
ha_status ha_guard_open(const char *folder, const ha_guard_options *options, ha_guard **out, ha_error *err);
void ha_guard_free(ha_guard *guard);        /* NULL is fine */

size_t ha_guard_num_labels(const ha_guard *guard);
size_t ha_guard_unsafe_index(const ha_guard *guard);    /* the label that means unsafe */
size_t ha_guard_max_length(const ha_guard *guard);
double ha_guard_threshold(const ha_guard *guard);       /* a row is flagged when its score is >= (float)this; 0.5 without thresholds.json */

/* What becomes of a row of more than max_length tokens. */
typedef enum ha_long {
    HA_LONG_WINDOWS,        /* windows that overlap by max_length / 4 are read, and the one with the highest P(unsafe) decides. Of a pair, the side that is
                             * longer than half the room slides, while the other stays whole; when both are, the response slides beside the prompt's end and
                             * the prompt beside the response's beginning */
    HA_LONG_TRUNCATE,       /* the end of the longer side is dropped */
    HA_LONG_ERROR           /* HA_ERR_VALUE */
} ha_long;

/* 1, or 0 with the reason in `why` when the guard's threshold was fitted on rows read in another way. */
int ha_guard_threshold_fits(const ha_guard *guard, ha_long long_rows, ha_error *why);

/* Zeroed: the defaults. */
typedef struct ha_score_options {
    ha_long long_rows;
    double temperature;     /* of the softmax: log-odds are divided by it; 0: the guard's own, which thresholds.json gives, else 1 */
    size_t first_row;       /* what messages call the first row, for who scores a file in parts */
    int n_threads;          /* 0: the least of OMP_NUM_THREADS, the cores of this process and its cgroup's quota */
    int (*tick)(void *arg, size_t rows_done);   /* NULL, or called on the calling thread now and then; nonzero stops: HA_ERR_VALUE */
    void *tick_arg;
} ha_score_options;

/* What a score rests on: windows that were read and the one that decided, from 0; tokens of the whole row, special tokens included, and how many were
 * dropped (0 unless HA_LONG_TRUNCATE). */
typedef struct ha_score_row { int32_t n_windows, window, n_tokens, truncated; } ha_score_row;

/* P(unsafe) of n rows: the sigmoid of a single logit, else the softmax at ha_guard_unsafe_index(). Row i is prompts[i], and responses[i] unless `responses` is
 * NULL or the response empty; an empty prompt is legal. scores (n,), logits (n, num_labels) of the deciding window, rows (n,): each may be NULL.
 * HA_ERR_VALUE names the row that is not UTF-8, too long for HA_LONG_ERROR, or that damaged weights give no finite number. */
ha_status ha_guard_score(const ha_guard *guard, const ha_text *prompts, const ha_text *responses, size_t n, const ha_score_options *options,
                         float *scores, float *logits, ha_score_row *rows, ha_error *err);

#ifdef __cplusplus
}
#endif

#endif
