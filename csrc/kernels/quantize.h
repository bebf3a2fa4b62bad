/* Symmetric 8-bit rows: what a weight or an embedding row in int8 means. The same arithmetic on every instruction set, and stable: a row made of
 * scale * q gives the same scale and the same q again, so that what was quantised once may be read as float32 and quantised again. */
#ifndef HARMAUG_KERNELS_QUANTIZE_H
#define HARMAUG_KERNELS_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

/* The scale of a row w (k,): at most 17 significant bits, so that 127 * scale is exact, and the least such that |q| <= 127. 0 where |w| < 2^-100, NaN where w
 * has an element that is no finite number. */
float ha_row_scale_i8(const float *w, size_t k);

/* q (n,) = round(w / scale) of n elements of such a row; all 0 when the scale is 0 or NaN. */
void ha_quantize_row_i8(int8_t *q, const float *w, float scale, size_t n);

/* w (n,) = scale * q, exact. */
void ha_dequantize_row_i8(float *w, const int8_t *q, float scale, size_t n);

#endif
