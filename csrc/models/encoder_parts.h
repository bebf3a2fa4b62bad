/* What inference and training of an encoder compute alike: relative and rotary positions, the convolution's windows, rows picked and averaged. */
#ifndef HARMAUG_MODELS_ENCODER_PARTS_H
#define HARMAUG_MODELS_ENCODER_PARTS_H

#include "models/encoder.h"

/* The row of the table of relative positions for each distance of which rows of at most `longest` tokens have two: rows (2 longest - 1,), that of
 * distance d at rows[longest - 1 + d]. Logarithmic buckets beyond half of them (He et al. 2021, arXiv 2111.09543, and transformers' rounding, step by
 * step in float32), or the distance itself; the last rows stand for all that is beyond. Never falls with d. */
void ha_relative_rows(const ha_encoder_config *config, int32_t *rows, size_t longest);

/* inv_freq (head_dim / 2,) of a rotary base; cosine and sine (positions, half) of them. Rounded to float32 step by step, as transformers has it. */
void ha_rotary_frequencies(double theta, size_t head_dim, float *inv_freq);
void ha_rotary_angles(const float *inv_freq, size_t half, size_t positions, float *cosine, float *sine);
/* Rotates the heads that stand side by side in x (tokens, n_heads head_dim), leading dimension ldx, each by its token's position in its row: halves
 * (i, i + head_dim / 2) are pairs. back: by the opposite angle, which is the gradient's way. */
void ha_rotary_apply(const ha_encoder_config *config, const float *cosine, const float *sine, int back, float *x, size_t ldx,
                     const int64_t *offsets, size_t n_rows, int n_threads);

/* out (tokens, or rows where cls_only, in kernel): the tokens around each one of x (tokens, hidden) as columns of one group's kernel (in, kernel), in =
 * hidden / groups; 0 beyond a row's ends. */
void ha_gather_neighbours(const ha_encoder_config *config, float *out, const float *x, size_t group, const int64_t *offsets, size_t n_rows,
                          int cls_only);

/* out (rows, cols): of each row of tokens of x (tokens, cols) the first, or the mean (accumulated in float64). */
void ha_first_of_rows(float *out, const float *x, const int64_t *offsets, size_t n_rows, size_t cols);
void ha_mean_of_rows(float *out, const float *x, const int64_t *offsets, size_t n_rows, size_t cols);

#endif
