/* Dropout (Srivastava et al. 2014) whose mask is a function of (seed, step, place, element): nothing is stored, the backward pass draws it again. */
#ifndef HARMAUG_MODELS_DROPOUT_H
#define HARMAUG_MODELS_DROPOUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct ha_dropout {
    uint64_t seed, stream;  /* stream: the step and the place in the model */
    uint32_t drop;          /* an element is dropped when its 16 random bits are below this; 0: dropout is off */
    float scale;            /* 1 / (1 - drop / 65536) */
} ha_dropout;

/* probability in [0, 1), rounded to 1/65536; place < 65536. */
ha_dropout ha_dropout_at(float probability, uint64_t seed, uint64_t step, uint64_t place);

/* out[j] = kept(row, first + j) ? x[j] * scale : 0 for j < n; element i of row `row` takes bits (i % 8) of the draw
 * with counter row * 2^20 + i / 8. first: a multiple of 8; first + n <= 2^23. out may be x. The gradient is the same function of the gradient. */
void ha_dropout_row(const ha_dropout *dropout, uint64_t row, size_t first, float *out, const float *x, size_t n);

/* In place over (rows, cols), the first of them being row `first_row` of the place. */
void ha_dropout_rows(const ha_dropout *dropout, uint64_t first_row, float *x, size_t rows, size_t cols, int n_threads);

#endif
