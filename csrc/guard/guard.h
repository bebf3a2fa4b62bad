/* A guard made of parts: an encoder and its tokenizer, with the rules that turn text into P(unsafe). include/harmaug.h is the way in for who has a folder. */
#ifndef HARMAUG_GUARD_GUARD_H
#define HARMAUG_GUARD_GUARD_H

#include "models/encoder.h"
#include "tokenizer/tokenizer.h"

typedef struct ha_guard_parts {
    const ha_encoder *encoder;          /* both are borrowed: the caller keeps them until the guard is freed */
    const ha_tokenizer *tokenizer;
    const char *name;                   /* what messages call the guard; copied */
    const char *tokenizer_folder;       /* where tokenizer_config.json may lie */
    const char *const *labels;          /* (num_labels,) of id2label, "" where it names none; NULL: it names none at all */
    size_t max_length;                  /* as in ha_guard_options */
} ha_guard_parts;

/* HA_ERR_FORMAT for a tokenizer that the model does not fit, HA_ERR_VALUE for a max_length out of range or labels that do not tell which is unsafe. The
 * threshold is 0.5. */
ha_status ha_guard_compose(const ha_guard_parts *parts, ha_guard **out, ha_error *err);

/* ha_guard_score() with the logits of `rows` (n_rows, num_labels) from somewhere else, such as a GPU; a failure's message follows the rows it is of. */
typedef ha_status (*ha_logits_source)(void *arg, const ha_batch *rows, float *logits, ha_error *err);
ha_status ha_guard_score_by(const ha_guard *guard, const ha_text *prompts, const ha_text *responses, size_t n, const ha_score_options *options,
                            ha_logits_source source, void *arg, float *scores, float *logits, ha_score_row *rows, ha_error *err);

/* Tokens that one call of the encoder should hold so that it takes about a second. */
size_t ha_guard_call_tokens(const ha_guard *guard);

/* "windows", "truncate" or "error"; 0: none of them. */
int ha_long_named(const char *name, ha_long *out);

#endif
