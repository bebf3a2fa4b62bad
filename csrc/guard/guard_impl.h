/* A guard from the inside. Private to csrc/guard/. */
#ifndef HARMAUG_GUARD_GUARD_IMPL_H
#define HARMAUG_GUARD_GUARD_IMPL_H

#include "guard/guard.h"

/* Rows for the encoder, back to back, that grow at the end. Zeroed at first. */
typedef struct ha_windows {
    size_t n, n_tokens, row_room, token_room;
    int64_t *offsets;           /* (n + 1,) */
    size_t *rows;               /* (n,) the row of the block that each is of */
    int32_t *ids;               /* (n_tokens,) */
    uint8_t *types;
} ha_windows;

void ha_windows_free(ha_windows *pieces);
/* A whole row, as the tokenizer made it. */
ha_status ha_windows_add(ha_windows *pieces, size_t row, const int32_t *ids, const uint8_t *types, size_t n, ha_error *err);

/* The special tokens around one text and around a pair, learnt from the tokenizer by one probe of each. */
typedef struct ha_template {
    ha_encoding one, two;       /* of "a", and of "a" with "b" */
    size_t one_begin, one_end;  /* where its text stands in the probe */
    size_t a_begin, a_end, b_begin, b_end;
    size_t single, pair;        /* special tokens of one text, of a pair */
} ha_template;

ha_status ha_template_learn(const ha_tokenizer *tokenizer, ha_template *out, ha_error *err);
void ha_template_free(ha_template *t);

struct ha_guard {
    const ha_encoder *encoder;
    const ha_tokenizer *tokenizer;
    ha_encoder *own_encoder;    /* those of ha_guard_open */
    ha_tokenizer *own_tokenizer;
    char *name;
    size_t unsafe_index, max_length;
    double threshold, temperature;
    int has_fitted_long, has_fitted_length;     /* what thresholds.json says of how its threshold was fitted */
    ha_long fitted_long;
    size_t fitted_length;
    ha_template template;
};

/* The windows of a row that does not fit, see ha_long, added to `pieces`. A response without data is none. */
ha_status ha_guard_windows(const ha_guard *guard, size_t row, ha_text prompt, ha_text response, ha_windows *pieces, ha_error *err);

/* The label that means unsafe: the only one, the one that is named so, else the second of two. */
ha_status ha_guard_unsafe_label(const char *const *labels, size_t n, const char *name, size_t *out, ha_error *err);
/* Reads thresholds.json of a folder, where it is there, into the guard. */
ha_status ha_guard_read_thresholds(ha_guard *guard, const char *folder, ha_error *err);

#endif
