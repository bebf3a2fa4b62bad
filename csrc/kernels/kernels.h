/* The kernel table: one set of function pointers per instruction set, chosen once, by name or by CPU.
 *
 * Rules that hold for every entry: kernels cannot fail and do not allocate; pointers need no alignment; matrices are row-major
 * with a leading dimension in elements; n_threads <= 0 means the library default; and every output element is computed
 * by one thread in an order of operations that depends on the shape's inner extent alone, never on the number of
 * rows, on the row's place in a batch, or on the thread count: a row gives the same bits in any batch. */
#ifndef HARMAUG_KERNELS_KERNELS_H
#define HARMAUG_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

/* Storage of a packed weight. I8: see kernels/quantize.h and linear_i8_impl.h; x is rounded to 8 bits too, row by row. Q8, Q4: groups of 8 and 4 bits (the
 * same header, linear_groups_impl.h); x is rounded to 8 bits in groups. BF16: on a CPU with a bfloat16 dot product both operands are rounded to bfloat16 (nearest even) and
 * accumulated in float32; elsewhere the weight is widened and the activation stays float32. */
typedef enum ha_weight_format { HA_WEIGHT_F32, HA_WEIGHT_BF16, HA_WEIGHT_I8, HA_WEIGHT_Q8, HA_WEIGHT_Q4 } ha_weight_format;

/* Activations between two Linears. GELU: with the error function (Hendrycks & Gimpel 2016, arXiv 1606.08415), x Phi(x), absolute error <= 1e-6;
 * GELU_TANH: its approximation, x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). */
typedef enum ha_activation { HA_ACT_GELU, HA_ACT_GELU_TANH, HA_ACT_RELU, HA_ACT_SILU, HA_ACT_TANH, HA_N_ACTIVATIONS,
                             HA_ACT_NONE = HA_N_ACTIVATIONS } ha_activation;

#define HA_I8_OUTLIERS 16               /* elements of a row of x that may be longer than 8 bits */

#define HA_PANEL 64     /* rows of a packed weight are laid out in panels of this many, on every instruction set */

/* C (m, n) = alpha * A (m, k) * B (k, n) + beta * C. Element (i, p) of A is a[i * a_row + p * a_col], of B (p, j) b[p * b_row + j * b_col],
 * so that transposes are strides. beta == 0 does not read C.
 * bias (n,), or NULL: added to each row, in place of beta * C.
 * bf16: A and B are rounded to bfloat16 (nearest even) while they are packed; their products are summed in float32 as ever, twice as many a cycle on a
 * CPU with a bfloat16 dot product (which takes subnormals for 0), as many elsewhere. */
typedef struct ha_gemm {
    size_t m, n, k;
    float alpha, beta;
    const float *a;
    ptrdiff_t a_row, a_col;
    const float *b;
    ptrdiff_t b_row, b_col;
    float *c;
    size_t ldc;
    const float *bias;
    int bf16;
} ha_gemm;

#define HA_ATTEND_PAD 64

/* One head's attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) of queries [first, first + m) of a row of tokens over its keys
 * [first_key, first_key + n): out = softmax(scale S) V, S_ij = Q_i . K_j and, with r the table's row for the distance i - j, the terms Q_i . key_r and
 * K_j . query_r of disentangled attention (He et al. 2021, arXiv 2006.03654, eq. 4). d columns each. */
typedef struct ha_attend {
    size_t n, m, d, first, first_key;
    const float *q, *k, *v;         /* of query `first` and key `first_key` */
    size_t ldq, ldkv;
    float scale;
    size_t window;                  /* > 0: a query sees keys at most that far away, one of these at least */
    const void *key, *query;        /* projections of table_rows positions, packed as the weight (table_rows, d) of a Linear in float32; NULL: no such term */
    int table_bf16;                 /* the same elements, rounded to bfloat16 */
    size_t table_rows;
    const int32_t *row;             /* row[distance], not falling, within the table; HA_ATTEND_PAD more on both sides than the distances are read */
    float *out;                     /* (m, d) */
    size_t ldo;
} ha_attend;

typedef struct ha_kernels {
    const char *isa;

    /* -- matrix products -- */

    /* Scratch bytes that gemm_f32 needs for this shape and thread count (packing buffers); enough for every smaller shape too. */
    size_t (*gemm_scratch_bytes)(size_t m, size_t n, size_t k, int n_threads);
    void (*gemm_f32)(const ha_gemm *gemm, void *scratch, int n_threads);

    /* A Linear's weight W (n, k) = (out_features, in_features), packed once: linear_pack is called for rows [first, first + count) with
     * first a multiple of HA_PANEL and count HA_PANEL (less only for the last rows), w (count, k) float32 with leading
     * dimension ldw, so that a quantised matrix is packed without ever being held whole in float32. */
    size_t (*linear_packed_bytes)(ha_weight_format format, size_t n, size_t k);
    void (*linear_pack)(void *packed, ha_weight_format format, size_t n, size_t k,
                        size_t first, size_t count, const float *w, size_t ldw);
    /* The same for Q8 and Q4 from rows that are groups already, ha_group_row_bytes each, one behind the other: not a bit of them changes. */
    void (*linear_pack_groups)(void *packed, ha_weight_format format, size_t k, size_t first, size_t count, const uint8_t *rows);
    /* y (m, n) = act(x (m, k) W^T + bias (n,)), no bias when NULL. y must not overlap x. m == 1 is a matrix-vector product. */
    size_t (*linear_scratch_bytes)(ha_weight_format format, size_t m, size_t n, size_t k, int n_threads);
    void (*linear_f32)(float *y, size_t ldy, const float *x, size_t ldx, const void *packed, ha_weight_format format,
                       const float *bias, ha_activation act, size_t m, size_t n, size_t k, void *scratch, int n_threads);

    /* sum a[i] b[i], float32 lanes; and y[i] += alpha x[i]. */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    void (*axpy_f32)(float *y, float alpha, const float *x, size_t n);

    /* -- normalisation -- */

    /* Layer normalization over the last axis (Ba et al. 2016, arXiv 1607.06450, eq. 4).
     *   out (rows, cols), x (rows, cols): row-major float32; out may be x.
     *   weight (cols,), bias (cols,): float32, or NULL for 1 and 0.
     *   eps: added to the variance; DeBERTa-v3 uses 1e-7.
     * Mean and variance are accumulated in lanes of float32, then summed. n_threads <= 0: default. */
    void (*layer_norm_f32)(float *out, const float *x, const float *weight, const float *bias,
                           size_t rows, size_t cols, float eps, int n_threads);
    /* dx (rows, cols) is written (dx may be dout); dweight, dbias (cols,) are added to, or skipped when NULL. Statistics are recomputed from x. */
    void (*layer_norm_backward_f32)(float *dx, float *dweight, float *dbias, const float *dout, const float *x,
                                    const float *weight, size_t rows, size_t cols, float eps, int n_threads);
    /* Root mean square normalization (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4): x / sqrt(mean(x^2) + eps) * weight. */
    void (*rms_norm_f32)(float *out, const float *x, const float *weight, size_t rows, size_t cols, float eps, int n_threads);

    /* -- elementwise, over n elements; out may be an input -- */

    void (*add_f32)(float *out, const float *a, const float *b, size_t n, int n_threads);
    void (*activate_f32)(float *out, const float *x, ha_activation which, size_t n, int n_threads);
    /* A gated MLP's middle (Shazeer 2020, arXiv 2002.05202). Each row of out (rows, cols), leading dimension ldo: act(first half) * second half of a
     * row of x (rows, 2 cols), ldx. out may be x. */
    void (*activate_gated_f32)(float *out, size_t ldo, const float *x, size_t ldx, ha_activation which, size_t rows, size_t cols, int n_threads);
    /* dx = dout * act'(x); dx may be dout. Relu's slope at 0 is 0. */
    void (*activate_backward_f32)(float *dx, const float *dout, const float *x, ha_activation which, size_t n, int n_threads);
    /* Of activate_gated_f32 without gaps between rows: dx, x (rows, 2 cols), dout (rows, cols). */
    void (*activate_gated_backward_f32)(float *dx, const float *dout, const float *x, ha_activation which, size_t rows, size_t cols, int n_threads);

    /* -- softmax over rows of (rows, cols) with leading dimension ld, in place: softmax(scale * x). cols >= 1 -- */
    void (*softmax_f32)(float *x, size_t rows, size_t cols, size_t ld, float scale);
    /* dx = scale * p * (dp - sum_j p_j dp_j) per row; p the softmax's output; dx may be dp. */
    void (*softmax_backward_f32)(float *dx, const float *dp, const float *p, size_t rows, size_t cols, size_t ld, float scale);
    /* -- attention: on this thread; an element's bits depend on its row of tokens and on the block of queries alone -- */
    size_t (*attend_scratch_bytes)(const ha_attend *a);     /* reads n, m, d, table_rows, table_bf16 and whether key and query are there */
    void (*attend_f32)(const ha_attend *a, void *scratch);
    /* max of x, n >= 1; and out[i] = exp(scale * (x[i] - max)), returning the sum in float64 accumulated in float32 lanes of a fixed width. */
    float (*max_f32)(const float *x, size_t n);
    double (*exp_sum_f32)(float *out, const float *x, float max, float scale, size_t n);

    /* -- storage formats; exact for widening, nearest-even for bf16/f16 narrowing -- */

    void (*f16_to_f32)(float *out, const uint16_t *x, size_t n);
    void (*bf16_to_f32)(float *out, const uint16_t *x, size_t n);
    void (*f32_to_f16)(uint16_t *out, const float *x, size_t n);
    void (*f32_to_bf16)(uint16_t *out, const float *x, size_t n);

    /* -- training -- */

    /* sum x[i]^2 in float64, in a fixed order. */
    double (*sum_squares_f32)(const float *x, size_t n, int n_threads);
    /* AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, alg. 2), torch's order of operations: w -= lr * weight_decay * w, then
     * m, v moments of g * grad_scale, then w -= lr * (m / correction1) / (sqrt(v / correction2) + eps). */
    void (*adamw_f32)(float *w, const float *g, float *m, float *v, size_t n, float lr, float beta1, float beta2, float eps,
                      float weight_decay, float correction1, float correction2, float grad_scale, int n_threads);
} ha_kernels;

extern const ha_kernels ha_kernels_scalar;
#if defined(HA_HAVE_AVX2)
extern const ha_kernels ha_kernels_avx2;
#endif
#if defined(HA_HAVE_AVXVNNI)
extern const ha_kernels ha_kernels_avxvnni;
#endif
#if defined(HA_HAVE_AVX512)
extern const ha_kernels ha_kernels_avx512;
#endif
#if defined(HA_HAVE_AVX512VNNI)
extern const ha_kernels ha_kernels_avx512vnni;
#endif
#if defined(HA_HAVE_AVX512BF16)
extern const ha_kernels ha_kernels_avx512bf16;
#endif
#if defined(HA_HAVE_NEON)
extern const ha_kernels ha_kernels_neon;
#endif
#if defined(HA_HAVE_NEONDOT)
extern const ha_kernels ha_kernels_neondot;
#endif

/* The table in use. Borrowed, never NULL after ha_kernels_select(). A model keeps the table that packed its weights. */
const ha_kernels *ha_kernels_get(void);

/* isa == NULL picks the widest set that this CPU and OS run. Otherwise the named one, or HA_ERR_VALUE. */
ha_status ha_kernels_select(const char *isa, ha_error *err);

/* The i-th usable table, widest first; NULL past the end. */
const ha_kernels *ha_kernels_at(int i);

#endif
