/* Symmetric 8-bit rows: what a weight or an embedding row in int8 means. The same arithmetic on every instruction set, and stable: a row made of
 * scale * q gives the same scales and the same q again, so that what was quantised once may be read as float32 and quantised again. */
#ifndef HARMAUG_KERNELS_QUANTIZE_H
#define HARMAUG_KERNELS_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

#define HA_I8_GROUP 64      /* elements of a row that have a scale of their own; the last group of a row may have fewer */

/* q (n,) = round(w / scale), n <= HA_I8_GROUP, and the scale is returned: of 9 significant bits, so that it is stored in 16, and the least such that
 * |q| <= 127. 0, as all q, where |w| < 2^-100; NaN, and q 0, where w has an element that is no finite number. */
float ha_quantize_group_i8(int8_t *q, const float *w, size_t n);

/* w (n,) = scale * q, exact. */
void ha_dequantize_group_i8(float *w, const int8_t *q, float scale, size_t n);

/* Rows of 4 bits, for word embeddings: groups of HA_I4_GROUP elements, each with a scale of float16; q is 0 to 15 and stands for scale * (q - 8). */
#define HA_I4_GROUP 64

/* A row as it is stored. int8: k bytes, then the groups' scales, 16 bits each: those of the float32 below its sign (the other 15 are 0). int4: two elements a byte, the first in the low half, then the groups' scales. Little-endian. */
static inline size_t
ha_i8_row_bytes(size_t k)
{
    return k + (k + HA_I8_GROUP - 1) / HA_I8_GROUP * 2;
}

static inline size_t
ha_i4_row_bytes(size_t k)
{
    return (k + 1) / 2 + (k + HA_I4_GROUP - 1) / HA_I4_GROUP * 2;
}

void ha_store_row_i8(uint8_t *row, const float *w, size_t k);
void ha_load_row_i8(float *w, const uint8_t *row, size_t k);
void ha_store_row_i4(uint8_t *row, const float *w, size_t k);       /* the scales that leave the least squared error of a few that are tried */
void ha_load_row_i4(float *w, const uint8_t *row, size_t k);

/* Rows in groups of HA_GROUP elements, for products: a weight is scale * q of 8 bits, or scale * q + least of 4. A row is its groups one behind the other, each as in
 * ggml's block_q8_0 and block_q4_1 (ggml-common.h): float16 scale; of 4 bits float16 least; then q, int8, or two a byte, the first half of the group in the low
 * nibbles and the second in the high ones. Little-endian. */
#define HA_GROUP 32
#define HA_GROUP_MOST_BYTES (2 + HA_GROUP)

static inline size_t
ha_group_bytes(int bits)
{
    return bits == 4 ? 4 + HA_GROUP / 2 : 2 + HA_GROUP;
}

static inline size_t
ha_group_row_bytes(int bits, size_t k)
{
    return (k + HA_GROUP - 1) / HA_GROUP * ha_group_bytes(bits);
}

/* The group of w[0 .. n) (n > HA_GROUP: the first HA_GROUP of it), rounded. Of 4 bits: from the least and the largest element, then a least-squares scale and least
 * for the q found, as long as that leaves a smaller error. A scale that is no number where w has an element that is none, or beyond float16. */
void ha_store_group(uint8_t *group, int bits, const float *w, size_t n);

#endif
