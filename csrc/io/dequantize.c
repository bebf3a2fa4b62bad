/* Rows of a stored tensor as float32. Block formats: ggml's block_q8_0, block_q4_0, block_q4_1, block_q4_K and block_q6_K (ggml-common.h); the arithmetic is that of
 * gguf-py's dequantize(), operation by operation, so that the bits agree. */
#include <math.h>
#include <string.h>

#include "core/float16.h"
#include "io/tensor_file.h"
#include "kernels/kernels.h"
#include "kernels/quantize.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF    /* d * q + m rounds twice; gcc does not contract in ISO mode */
#endif

#define BLOCK 32
#define SUPER 256       /* elements of a block of K-quants */
#define CHUNK 1024      /* elements staged at a time */

static float
scale_at(const uint8_t *bytes)
{
    uint16_t h;
    memcpy(&h, bytes, 2);
    return ha_f16_to_f32(h);
}

/* n 16-bit values through a widening kernel, which wants them aligned. */
static void
widen(void (*kernel)(float *, const uint16_t *, size_t), float *out, const uint8_t *data, size_t n)
{
    uint16_t staged[CHUNK];
    if ((uintptr_t)data % sizeof(uint16_t) == 0) {
        kernel(out, (const uint16_t *)(const void *)data, n);
        return;
    }
    for (size_t i = 0; i < n; i += CHUNK) {
        const size_t m = n - i < CHUNK ? n - i : CHUNK;
        memcpy(staged, data + 2 * i, 2 * m);
        kernel(out + i, staged, m);
    }
}

static void
from_q8_0(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i += BLOCK, data += 2 + BLOCK) {
        const float d = scale_at(data);
        const int8_t *q = (const int8_t *)data + 2;
        for (size_t j = 0; j < BLOCK; j++) {
            out[i + j] = (float)q[j] * d;
        }
    }
}

/* Low nibbles are elements 0..15, high ones 16..31. */
static void
from_q4_0(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i += BLOCK, data += 2 + BLOCK / 2) {
        const float d = scale_at(data);
        for (size_t j = 0; j < BLOCK / 2; j++) {
            out[i + j] = d * (float)((data[2 + j] & 0xF) - 8);
            out[i + j + BLOCK / 2] = d * (float)((data[2 + j] >> 4) - 8);
        }
    }
}

static void
from_q4_1(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i += BLOCK, data += 4 + BLOCK / 2) {
        const float d = scale_at(data), m = scale_at(data + 2);
        for (size_t j = 0; j < BLOCK / 2; j++) {
            out[i + j] = d * (float)(data[4 + j] & 0xF) + m;
            out[i + j + BLOCK / 2] = d * (float)(data[4 + j] >> 4) + m;
        }
    }
}

/* A super-block: d, dmin (f16), 12 bytes of eight 6-bit scales and eight 6-bit minima, 128 bytes of nibbles. In each 32 bytes of nibbles the low ones are
 * a sub-block and the high ones the next. Scales and minima 0..3 are the low bits of bytes 0..3 and 4..7; 4..7 are the nibbles of bytes 8..11 below the
 * high bits of those. */
static void
from_q4_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i += SUPER, data += 144) {
        const float d = scale_at(data), dmin = scale_at(data + 2);
        const uint8_t *packed = data + 4, *q = data + 16;
        for (size_t b = 0; b < 8; b++) {
            const size_t j = b % 4;
            const int scale = b < 4 ? packed[j] & 0x3F : (packed[8 + j] & 0xF) | ((packed[j] >> 2) & 0x30);
            const int min = b < 4 ? packed[4 + j] & 0x3F : (packed[8 + j] >> 4) | ((packed[4 + j] >> 2) & 0x30);
            const float step = d * (float)scale, least = dmin * (float)min;
            for (size_t e = 0; e < BLOCK; e++) {
                const int nibble = b % 2 == 0 ? q[b / 2 * BLOCK + e] & 0xF : q[b / 2 * BLOCK + e] >> 4;
                out[i + b * BLOCK + e] = step * (float)nibble - least;
            }
        }
    }
}

/* A super-block: 128 bytes of low nibbles, 64 of high pairs of bits, 16 int8 scales, d (f16). Its halves of 128 elements: four runs of 32, of which the first
 * two have the low nibbles of 64 bytes and the last two the high ones; run r has bits 2r, 2r + 1 of 32 bytes. */
static void
from_q6_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i += SUPER, data += 210) {
        const float d = scale_at(data + 208);
        const int8_t *scales = (const int8_t *)data + 192;
        for (size_t run = 0; run < 8; run++) {
            const uint8_t *low = data + run / 4 * 64 + run % 2 * 32, *high = data + 128 + run / 4 * 32;
            for (size_t e = 0; e < BLOCK; e++) {
                const int nibble = run % 4 < 2 ? low[e] & 0xF : low[e] >> 4, bits = high[e] >> run % 4 * 2 & 3;
                out[i + run * BLOCK + e] = d * (float)scales[run * 2 + e / 16] * (float)((nibble | bits << 4) - 32);
            }
        }
    }
}

ha_status
ha_tensor_rows_f32(const ha_tensor *tensor, size_t first, size_t count, float *out, ha_error *err)
{
    const size_t rows = tensor->ndim >= 2 ? tensor->shape[0] : 1;
    size_t cols = tensor->ndim == 1 ? tensor->shape[0] : 1, n = 0;
    int overflow = 0;
    for (int i = 1; i < tensor->ndim; i++) {
        overflow |= __builtin_mul_overflow(cols, tensor->shape[i], &cols);
    }
    if (first > rows || count > rows - first) {
        return ha_fail(err, HA_ERR_VALUE, "tensor '%.64s': rows %zu..%zu of %zu", tensor->name, first, first + count, rows);
    }
    if (overflow || __builtin_mul_overflow(cols, count, &n)) {
        return ha_fail(err, HA_ERR_VALUE, "tensor '%.64s': shape overflows", tensor->name);
    }
    if (tensor->dtype >= HA_I8) {
        return ha_fail(err, HA_ERR_FORMAT, "tensor '%.64s' is stored as %s; read are " HA_READ_DTYPES, tensor->name, tensor->type_name);
    }
    if (n == 0) {
        return HA_OK;
    }
    /* blocks lie along the innermost extent, which the reader checked to be whole blocks: a row begins with one */
    switch (tensor->dtype) {
    case HA_F32: memcpy(out, tensor->data + first * cols * 4, n * 4); break;
    case HA_F16: widen(ha_kernels_get()->f16_to_f32, out, tensor->data + first * cols * 2, n); break;
    case HA_BF16: widen(ha_kernels_get()->bf16_to_f32, out, tensor->data + first * cols * 2, n); break;
    case HA_Q8_0: from_q8_0(out, tensor->data + first * (cols / BLOCK) * 34, n); break;
    case HA_Q4_0: from_q4_0(out, tensor->data + first * (cols / BLOCK) * 18, n); break;
    case HA_Q4_1: from_q4_1(out, tensor->data + first * (cols / BLOCK) * 20, n); break;
    case HA_Q4_K: from_q4_k(out, tensor->data + first * (cols / SUPER) * 144, n); break;
    case HA_Q6_K: from_q6_k(out, tensor->data + first * (cols / SUPER) * 210, n); break;
    case HA_I8: case HA_U8: case HA_OTHER: break;
    }
    return HA_OK;
}

int
ha_tensor_row_groups(const ha_tensor *tensor, size_t row, int bits, uint8_t *groups)
{
    const size_t blocks = tensor->shape[1] / BLOCK, size = ha_group_bytes(bits);
    if (tensor->ndim != 2 || (bits == 8 ? tensor->dtype != HA_Q8_0 : tensor->dtype != HA_Q4_0 && tensor->dtype != HA_Q4_1)) {
        return 0;
    }
    if (tensor->dtype != HA_Q4_0) {
        memcpy(groups, tensor->data + row * blocks * size, blocks * size);
        return 1;
    }
    const uint8_t *block = tensor->data + row * blocks * 18;
    for (size_t b = 0; b < blocks; b++) {
        if (!(fabsf(scale_at(block + 18 * b)) < 8188.0f)) {
            return 0;
        }
    }
    for (size_t b = 0; b < blocks; b++, block += 18, groups += size) {
        const uint16_t least = ha_f32_to_f16(-8.0f * scale_at(block));      /* exact */
        memcpy(groups, block, 2);
        groups[2] = (uint8_t)least;
        groups[3] = (uint8_t)(least >> 8);
        memcpy(groups + 4, block + 2, BLOCK / 2);
    }
    return 1;
}
