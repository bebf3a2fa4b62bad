/* Symmetric 8-bit rows: what a weight or an embedding row in int8 means. The same arithmetic on every instruction set, and stable: a row made of
 * scale * q gives the same scale and the same q again, so that what was quantised once may be read as float32 and quantised again. */
#ifndef HARMAUG_KERNELS_QUANTIZE_H
#define HARMAUG_KERNELS_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

#define HA_I8_MAX_K ((size_t)1 << 17)   /* products of an int8 row: 127 * 127 * k stays below 2^31 */
#define HA_I8_OUTLIERS 16               /* columns of a weight that stay float32, at most */

/* Head of a packed HA_WEIGHT_I8 weight, which the caller writes before the first linear_pack: what becomes of x before it is rounded. Column p is
 * multiplied by factors[p], a power of two, and the weight divided by it. Where factors[p] is 0 the column is an outlier: it is listed in `outliers`
 * and multiplied in float32. */
typedef struct ha_i8_head {
    uint32_t n_outliers, outliers[HA_I8_OUTLIERS];
    float factors[];                    /* (k,) */
} ha_i8_head;

/* The scale of a row w (k,) whose columns are divided by `factors` (NULL: all 1): at most 17 significant bits, so that 127 * scale is exact, and the least
 * such that |q| <= 127. 0 where |w| < 2^-100, NaN where w has an element that is no finite number. */
float ha_row_scale_i8(const float *w, const float *factors, size_t k);

/* q (n,) = round(w / factors / scale) of n elements of such a row, 0 where the factor is 0; all 0 when the scale is 0 or NaN. */
void ha_quantize_row_i8(int8_t *q, const float *w, float scale, const float *factors, size_t n);

/* w (k,) = scale * q * factors, exact; elements whose factor is 0 are left as they are. */
void ha_dequantize_row_i8(float *w, const int8_t *q, float scale, const float *factors, size_t k);

#endif
