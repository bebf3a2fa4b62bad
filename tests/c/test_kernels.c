/* Every kernel of every usable table against its equation in float64, around every lane count, and the rule of the table: an
 * element's bits depend neither on the batch nor on the thread count.
 *
 *     make check | make asan | make neon
 *
 * Prints each failure and "N passed, M failed"; exit status 1 if any failed. */
#include "check.h"
#include "core/float16.h"
#include "core/parallel.h"
#include "kernels/kernels.h"
#include "kernels/quantize.h"

static const ha_kernels *kern;

static const size_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1000};
#define N_SIZES (sizeof(sizes) / sizeof(sizes[0]))
#define EPS 0x1p-24     /* relative rounding error of float32 */

/* -- matrix products -- */

static float
to_bf16(float x)
{
    uint16_t h;
    ha_kernels_scalar.f32_to_bf16(&h, &x, 1);
    ha_kernels_scalar.bf16_to_f32(&x, &h, 1);
    return x;
}

/* |error| of a float32 sum of k products is at most (k + 2) EPS sum |a b| (Higham 2002, section 3.1). */
static void
test_gemm(size_t m, size_t n, size_t k, int ta, int tb, float alpha, float beta, int bf16)
{
    const size_t ldc = n + 3;
    float *a = floats(m * k, 1), *b = floats(k * n, 1), *c = floats(m * ldc, 1), *c0 = copy_of(c, m * ldc), *c2 = copy_of(c, m * ldc);
    ha_gemm g = {.m = m, .n = n, .k = k, .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c, .ldc = ldc,
                 .a_row = ta ? 1 : (ptrdiff_t)k, .a_col = ta ? (ptrdiff_t)m : 1,
                 .b_row = tb ? 1 : (ptrdiff_t)n, .b_col = tb ? (ptrdiff_t)k : 1, .bf16 = bf16};
    if (beta == 0) {
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < n; j++) {
                c[i * ldc + j] = c2[i * ldc + j] = NAN;     /* must not be read */
            }
        }
    }
    void *scratch = bytes(kern->gemm_scratch_bytes(m, n, k, 2));
    kern->gemm_f32(&g, scratch, 1);
    int bad = 0;
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (size_t p = 0; p < k; p++) {
                const float av = a[i * (size_t)g.a_row + p * (size_t)g.a_col], bv = b[p * (size_t)g.b_row + j * (size_t)g.b_col];
                const double t = bf16 ? (double)to_bf16(av) * to_bf16(bv) : (double)av * bv;
                sum += t;
                size += fabs(t);
            }
            const double old = beta != 0 ? beta * c0[i * ldc + j] : 0;
            const double want = alpha * sum + old;
            bad += !(fabs(c[i * ldc + j] - want) <= EPS * ((double)(k + 4) * fabs(alpha) * size + 2 * fabs(old)) + 1e-37);
        }
        bad += memcmp(c + i * ldc + n, c0 + i * ldc + n, 3 * sizeof(float)) != 0;
    }
    CHECK(bad == 0, "%s gemm %zu x %zu x %zu ta %d tb %d bf16 %d: %d elements off", kern->isa, m, n, k, ta, tb, bf16, bad);

    g.c = c2;
    kern->gemm_f32(&g, scratch, 2);
    CHECK(memcmp(c, c2, m * ldc * sizeof(float)) == 0, "%s gemm %zu x %zu x %zu: 1 and 2 threads differ", kern->isa, m, n, k);
    if (m * n * k > 3000000) {
        memcpy(c2, c0, m * ldc * sizeof(float));
        free(scratch);
        scratch = bytes(kern->gemm_scratch_bytes(m, n, k, 7));
        kern->gemm_f32(&g, scratch, 7);
        CHECK(memcmp(c, c2, m * ldc * sizeof(float)) == 0, "%s gemm %zu x %zu x %zu: 1 and 7 threads differ", kern->isa, m, n, k);
    }
    float *bias = floats(n, 1), *biased = copy_of(c0, m * ldc);     /* a bias is what beta = 1 makes of rows that hold it */
    for (size_t i = 0; i < m; i++) {
        memcpy(c2 + i * ldc, bias, n * sizeof(float));
    }
    ha_gemm with_bias = g, onto = g;
    with_bias.bias = bias, with_bias.c = biased, onto.beta = 1;
    kern->gemm_f32(&with_bias, scratch, 2);
    kern->gemm_f32(&onto, scratch, 1);
    bad = 0;
    for (size_t i = 0; i < m; i++) {
        bad += memcmp(biased + i * ldc, c2 + i * ldc, n * sizeof(float)) != 0 || memcmp(biased + i * ldc + n, c0 + i * ldc + n, 3 * sizeof(float)) != 0;
    }
    CHECK(bad == 0, "%s gemm %zu x %zu x %zu: %d rows off with a bias", kern->isa, m, n, k, bad);
    free(bias), free(biased);
    if (m > 0 && beta == 0) {                               /* the last row alone */
        float *row = floats(n, 1);
        g.a += (ptrdiff_t)(m - 1) * g.a_row, g.m = 1, g.c = row, g.ldc = n;
        kern->gemm_f32(&g, scratch, 1);
        CHECK(memcmp(row, c + (m - 1) * ldc, n * sizeof(float)) == 0, "%s gemm %zu x %zu x %zu: a row alone differs", kern->isa, m, n, k);
        free(row);
    }
    free(a), free(b), free(c), free(c0), free(c2), free(scratch);
}

static void
test_linear(ha_weight_format format, size_t m, size_t n, size_t k, int with_bias)
{
    const int dot16 = format == HA_WEIGHT_BF16 && strcmp(kern->isa, "avx512bf16") == 0;
    const size_t ldx = k + 1, ldy = n + 2, ldw = k + 5;
    float *x = floats(m * ldx, 1), *w = floats(n * ldw, 1), *bias = floats(n, 1), *y = floats(m * ldy, 1), *y2 = copy_of(y, m * ldy);
    void *packed = bytes(kern->linear_packed_bytes(format, n, k));
    for (size_t first = 0; first < n; first += HA_PANEL) {
        const size_t count = n - first < HA_PANEL ? n - first : HA_PANEL;
        kern->linear_pack(packed, format, n, k, first, count, w + first * ldw, ldw);
    }
    void *scratch = bytes(kern->linear_scratch_bytes(format, m, n, k, 2));
    kern->linear_f32(y, ldy, x, ldx, packed, format, with_bias ? bias : NULL, HA_ACT_NONE, m, n, k, scratch, 1);
    int bad = 0;
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double want = with_bias ? bias[j] : 0, size = fabs(want);
            for (size_t p = 0; p < k; p++) {
                const double wv = format == HA_WEIGHT_BF16 ? to_bf16(w[j * ldw + p]) : w[j * ldw + p];
                const double xv = dot16 ? to_bf16(x[i * ldx + p]) : x[i * ldx + p];
                want += wv * xv;
                size += fabs(wv * xv);
            }
            bad += !(fabs(y[i * ldy + j] - want) <= EPS * (double)(k + 4) * size + 1e-37);
        }
    }
    CHECK(bad == 0, "%s linear format %d %zu x %zu x %zu: %d elements off", kern->isa, format, m, n, k, bad);

    kern->linear_f32(y2, ldy, x, ldx, packed, format, with_bias ? bias : NULL, HA_ACT_NONE, m, n, k, scratch, 2);
    CHECK(memcmp(y, y2, m * ldy * sizeof(float)) == 0, "%s linear format %d %zu x %zu x %zu: 1 and 2 threads differ", kern->isa, format, m, n, k);
    if (m * n * k > 1000000) {
        memset(y2, 0, m * ldy * sizeof(float));
        free(scratch);
        scratch = bytes(kern->linear_scratch_bytes(format, m, n, k, 7));
        kern->linear_f32(y2, ldy, x, ldx, packed, format, with_bias ? bias : NULL, HA_ACT_NONE, m, n, k, scratch, 7);
        int bits = 0;
        for (size_t i = 0; i < m; i++) {
            bits += memcmp(y + i * ldy, y2 + i * ldy, n * sizeof(float)) != 0;
        }
        CHECK(bits == 0, "%s linear format %d %zu x %zu x %zu: 1 and 7 threads differ", kern->isa, format, m, n, k);
    }
    kern->linear_f32(y2, ldy, x, ldx, packed, format, with_bias ? bias : NULL, HA_ACT_GELU, m, n, k, scratch, 1);
    int apart = 0;
    for (size_t i = 0; i < m; i++) {
        float *after = copy_of(y + i * ldy, n);
        kern->activate_f32(after, after, HA_ACT_GELU, n, 1);
        apart += memcmp(after, y2 + i * ldy, n * sizeof(float)) != 0;
        free(after);
    }
    CHECK(apart == 0, "%s linear format %d %zu x %zu x %zu: %d rows differ when the activation is apart", kern->isa, format, m, n, k, apart);
    void *scratch1 = bytes(kern->linear_scratch_bytes(format, 1, n, k, 2));
    float *row = floats(n, 1);
    int differ = 0;
    for (size_t i = 0; i < m; i += 1 + m / 17) {
        kern->linear_f32(row, n, x + i * ldx, ldx, packed, format, with_bias ? bias : NULL, HA_ACT_NONE, 1, n, k, scratch1, 1 + (int)(i % 2));
        differ += memcmp(row, y + i * ldy, n * sizeof(float)) != 0;
    }
    CHECK(differ == 0, "%s linear format %d %zu x %zu x %zu: %d rows differ when alone", kern->isa, format, m, n, k, differ);
    free(x), free(w), free(bias), free(y), free(y2), free(packed), free(scratch), free(scratch1), free(row);
}

/* Weights in groups, stored first: the sums of the rounded groups of both sides, one way of packing like the other, and a row's bits in any batch. Every fifth row of w
 * holds the widest values of either sign, which the widest of x meet. */
static void
test_linear_groups(ha_weight_format format, size_t m, size_t n, size_t k)
{
    const int bits = format == HA_WEIGHT_Q4 ? 4 : 8;
    const size_t groups = (k + HA_GROUP - 1) / HA_GROUP, size = ha_group_bytes(bits), ldy = n + 2;
    float *x = floats(m * k, 4), *w = floats(n * k, 1), *bias = floats(n, 1), *y = floats(m * ldy, 1), *y2 = copy_of(y, m * ldy), *row = floats(n, 1);
    uint8_t *stored = bytes(n * groups * size);
    for (size_t i = 0; i < m * k; i++) {
        x[i] = i / k % 4 == 1 ? (i % 2 ? -3.0f : 3.0f) : x[i];
    }
    for (size_t j = 0; j < n; j++) {
        for (size_t p = 0; p < k; p++) {
            w[j * k + p] = j % 5 == 1 ? (p % 2 ? -1.0f : 1.0f) : w[j * k + p];
        }
        for (size_t g = 0; g < groups; g++) {
            ha_store_group(stored + (j * groups + g) * size, bits, w + j * k + g * HA_GROUP, k - g * HA_GROUP);
        }
        if (bits == 8 && k > 0 && j % 7 == 2) {
            memset(stored + j * groups * size + 2, 0x80, HA_GROUP);     /* -128, which only a file has */
        }
    }
    const size_t packed_bytes = kern->linear_packed_bytes(format, n, k);
    void *packed = bytes(packed_bytes), *other = bytes(packed_bytes);
    for (size_t first = 0; first < n; first += HA_PANEL) {
        const size_t count = n - first < HA_PANEL ? n - first : HA_PANEL;
        kern->linear_pack_groups(packed, format, k, first, count, stored + first * groups * size);
        kern->linear_pack(other, format, n, k, first, count, w + first * k, k);
    }
    CHECK((bits == 8 && n > 2) || memcmp(packed, other, packed_bytes) == 0, "%s groups of %d bits %zu x %zu: packed in two ways", kern->isa, bits, n, k);
    void *scratch = bytes(kern->linear_scratch_bytes(format, m, n, k, 2));
    kern->linear_f32(y, ldy, x, k, packed, format, bias, HA_ACT_NONE, m, n, k, scratch, 1);
    kern->linear_f32(y2, ldy, x, k, packed, format, bias, HA_ACT_NONE, m, n, k, scratch, 2);
    CHECK(memcmp(y, y2, m * ldy * sizeof(float)) == 0, "%s groups of %d bits %zu x %zu x %zu: 1 and 2 threads differ", kern->isa, bits, m, n, k);
    int bad = 0, differ = 0;
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double want = bias[j], sum = fabs(want);
            for (size_t g = 0; g < groups; g++) {
                const uint8_t *group = stored + (j * groups + g) * size, *q = group + (bits == 4 ? 4 : 2);
                const float *xs = x + i * k + g * HA_GROUP;
                const size_t count = k - g * HA_GROUP < HA_GROUP ? k - g * HA_GROUP : HA_GROUP;
                float most = 0;
                for (size_t p = 0; p < count; p++) {
                    most = fmaxf(most, fabsf(xs[p]));
                }
                for (size_t p = 0; p < count; p++) {
                    const double xq = (double)rintf(xs[p] * (127.0f / most)) * (most / 127.0f);
                    const double d = ha_f16_to_f32((uint16_t)(group[0] | group[1] << 8));
                    const double least = bits == 4 ? ha_f16_to_f32((uint16_t)(group[2] | group[3] << 8)) : 0;
                    const double wq = bits == 8 ? d * (int8_t)q[p] : d * (q[p % 16] >> p / 16 * 4 & 15) + least;
                    want += xq * wq;
                    sum += fabs(xq) * (fabs(wq) + 2 * fabs(least));
                }
            }
            bad += !(fabs(y[i * ldy + j] - want) <= EPS * (double)(2 * groups + 8) * sum + 1e-37);
        }
        kern->linear_f32(row, n, x + i * k, k, packed, format, bias, HA_ACT_NONE, 1, n, k, scratch, 1);
        differ += memcmp(row, y + i * ldy, n * sizeof(float)) != 0;
    }
    CHECK(bad == 0, "%s groups of %d bits %zu x %zu x %zu: %d elements off", kern->isa, bits, m, n, k, bad);
    CHECK(differ == 0, "%s groups of %d bits %zu x %zu x %zu: %d rows differ when alone", kern->isa, bits, m, n, k, differ);
    free(x), free(w), free(bias), free(y), free(y2), free(row), free(stored), free(packed), free(other), free(scratch);
}

/* The 8-bit product as it is defined, from the definition of its roundings: exact sums of the groups; what is left is the rounding of a few float32
 * operations. Row i has i % 20 elements that are up to 300 times larger than the rest; every third row lies to one side of 0. */
static void
test_linear_i8(size_t m, size_t n, size_t k)
{
    const size_t ldx = k + 1, ldy = n + 2, ldw = k + 3, groups = (k + HA_I8_GROUP - 1) / HA_I8_GROUP;
    float *x = floats(m * ldx, 4), *w = floats(n * ldw, 1), *bias = floats(n, 1), *y = floats(m * ldy, 1), *y2 = copy_of(y, m * ldy), *row = floats(n, 1);
    void *packed = bytes(kern->linear_packed_bytes(HA_WEIGHT_I8, n, k));
    int8_t *qw = bytes(n * k);
    int16_t *qx = bytes(k * sizeof(*qx));
    float *scale = floats(n * groups, 1);
    for (size_t i = 0; i < m; i++) {
        for (size_t p = 0; p < k && i % 3 == 1; p++) {
            x[i * ldx + p] = fabsf(x[i * ldx + p]) - 0.1f;
        }
        for (size_t o = 0; k > 0 && o < i % 20; o++) {
            x[i * ldx + (o * 37 + i) % k] = 4 * uniform() * (1 + 299 * fabsf(uniform()));
        }
    }
    for (size_t first = 0; first < n; first += HA_PANEL) {
        kern->linear_pack(packed, HA_WEIGHT_I8, n, k, first, n - first < HA_PANEL ? n - first : HA_PANEL, w + first * ldw, ldw);
    }
    for (size_t j = 0; j < n; j++) {
        for (size_t g = 0; g < groups; g++) {
            const size_t p = g * HA_I8_GROUP;
            scale[j * groups + g] = ha_quantize_group_i8(qw + j * k + p, w + j * ldw + p, k - p < HA_I8_GROUP ? k - p : HA_I8_GROUP);
        }
    }
    void *scratch = bytes(kern->linear_scratch_bytes(HA_WEIGHT_I8, m, n, k, 2)), *scratch1 = bytes(kern->linear_scratch_bytes(HA_WEIGHT_I8, 1, n, k, 1));
    kern->linear_f32(y, ldy, x, ldx, packed, HA_WEIGHT_I8, bias, HA_ACT_NONE, m, n, k, scratch, 1);
    kern->linear_f32(y2, ldy, x, ldx, packed, HA_WEIGHT_I8, bias, HA_ACT_NONE, m, n, k, scratch, 2);
    CHECK(memcmp(y, y2, m * ldy * sizeof(float)) == 0, "%s int8 linear %zu x %zu x %zu: 1 and 2 threads differ", kern->isa, m, n, k);
    int bad = 0, differ = 0;
    for (size_t i = 0; i < m; i++) {
        float most = 0, low = k > 0 ? x[i * ldx] : 0, high = low;
        for (size_t p = 0; p < k; p++) {
            most = fmaxf(most, fabsf(x[i * ldx + p]));
            low = fminf(low, x[i * ldx + p]);
            high = fmaxf(high, x[i * ldx + p]);
        }
        for (int j = 0; j < 6 && most > 0; j++) {
            size_t larger = 0;
            for (size_t p = 0; p < k; p++) {
                larger += fabsf(x[i * ldx + p]) > most / 2;
            }
            if (larger > HA_I8_OUTLIERS) {
                break;
            }
            most /= 2;
        }
        low = fmaxf(low, -most), high = fminf(high, most);
        const float step = fmaxf(high - low, most) / 252.0f, to = most > 0 ? 1.0f / step : 0, zero = most > 0 ? rintf(0.5f * (low + high) / step) : 0;
        const float middle = zero * step;
        for (size_t p = 0; p < k; p++) {
            qx[p] = (int16_t)(rintf(x[i * ldx + p] * to) - zero);
        }
        for (size_t j = 0; j < n; j++) {
            double product = 0, sum = 0, size = fabs(bias[j]);
            for (size_t p = 0; p < k; p++) {
                const double weight = (double)scale[j * groups + p / HA_I8_GROUP] * qw[j * k + p];
                product += weight * qx[p];
                sum += weight;
                size += fabs(weight * qx[p]) * step;
            }
            const double want = product * step + sum * middle + bias[j];
            bad += !(fabs(y[i * ldy + j] - want) <= EPS * (4 + (double)groups) * (size + fabs(sum * middle)) + 1e-37);
        }
        kern->linear_f32(row, n, x + i * ldx, ldx, packed, HA_WEIGHT_I8, bias, HA_ACT_NONE, 1, n, k, scratch1, 1);
        differ += memcmp(row, y + i * ldy, n * sizeof(float)) != 0;
    }
    CHECK(bad == 0, "%s int8 linear %zu x %zu x %zu: %d elements off", kern->isa, m, n, k, bad);
    CHECK(differ == 0, "%s int8 linear %zu x %zu x %zu: %d rows differ when alone", kern->isa, m, n, k, differ);
    if (m > 1 && n > 0 && k > 1) {      /* a row that holds no number, and one of zeros */
        x[k - 1] = m % 2 ? NAN : INFINITY;
        memset(x + ldx, 0, k * sizeof(float));
        kern->linear_f32(y2, ldy, x, ldx, packed, HA_WEIGHT_I8, bias, HA_ACT_NONE, m, n, k, scratch, 1);
        int finite = 0, off = 0;
        for (size_t j = 0; j < n; j++) {
            finite += isfinite(y2[j]);
            off += y2[ldy + j] != bias[j];
        }
        CHECK(finite == 0 && off == 0, "%s int8 linear %zu x %zu x %zu: %d of NaN, %d of 0", kern->isa, m, n, k, finite, off);
    }
    free(x), free(w), free(bias), free(y), free(y2), free(row), free(packed), free(qw), free(qx), free(scale), free(scratch), free(scratch1);
}

/* Rows as they are stored: no q beyond 127, an error of at most half a step of the group, and the same again from what they stand for. */
static void
test_quantize(size_t k)
{
    static const float sizes_of_w[] = {1, 1e-20f, 3e30f, 0, 1e-31f};
    for (size_t s = 0; s < sizeof(sizes_of_w) / sizeof(sizes_of_w[0]); s++) {
        float *w = floats(k, sizes_of_w[s]), *back = copy_of(w, k);
        const size_t row_bytes = ha_i8_row_bytes(k);
        uint8_t *row = bytes(row_bytes), *again = bytes(row_bytes);
        ha_store_row_i8(row, w, k);
        ha_load_row_i8(back, row, k);
        ha_store_row_i8(again, back, k);
        int bad = 0;
        for (size_t p = 0; p < k; p++) {
            const size_t first = p / HA_I8_GROUP * HA_I8_GROUP;
            float most = 0;
            for (size_t i = first; i < k && i < first + HA_I8_GROUP; i++) {
                most = fmaxf(most, fabsf(w[i]));
            }
            bad += !(fabsf(back[p] - w[p]) <= 0.5025f / 127 * most + 0x1p-100f) || (int8_t)row[p] == -128;
        }
        CHECK(bad == 0 && memcmp(row, again, row_bytes) == 0, "row of %zu up to %g: %d off", k, (double)sizes_of_w[s], bad);
        if (k > 0) {
            w[k - 1] = -INFINITY;
            ha_store_row_i8(row, w, k);
            ha_load_row_i8(back, row, k);
            CHECK(isnan(back[k - 1]), "row of %zu with infinity: %g", k, (double)back[k - 1]);
        }
        free(w), free(back), free(row), free(again);
    }
    int short_of = 0;       /* of 127: then the same scale would not come again */
    for (int i = 0; i < 1 << 16; i++) {
        const float w = 1 + (float)i * 0x1p-16f;
        int8_t q, q2;
        float back;
        const float scale = ha_quantize_group_i8(&q, &w, 1);
        ha_dequantize_group_i8(&back, &q, scale, 1);
        short_of += q != 127 || ha_quantize_group_i8(&q2, &back, 1) != scale || q2 != 127;
    }
    CHECK(short_of == 0, "%d groups of one element are not held by 127", short_of);
}

static void
test_products(void)
{
    static const size_t small[] = {0, 1, 2, 5, 8, 13, 15, 17, 29, 33, 64, 67};
    const size_t n_small = sizeof(small) / sizeof(small[0]);
    for (size_t i = 0; i < n_small; i++) {
        for (size_t j = 0; j < n_small; j++) {
            const size_t m = small[i], n = small[j], k = small[(i * 5 + j * 3) % n_small];
            const int t = (int)(i + 2 * j);
            test_gemm(m, n, k, t & 1, (t >> 1) & 1, i % 3 == 0 ? 0.5f : 1, j % 3 == 0 ? 0 : j % 3 == 1 ? 1 : -0.25f, (int)(i + j) % 4 > 1);
            test_linear(j % 2 ? HA_WEIGHT_BF16 : HA_WEIGHT_F32, m, n, k, (int)(i % 2));
            test_linear_i8(m, n, k);
            test_linear_groups(i % 2 ? HA_WEIGHT_Q8 : HA_WEIGHT_Q4, m, n, k);
        }
    }
    for (int t = 0; t < 8; t++) {
        test_gemm(130, 97, 801, t & 1, (t >> 1) & 1, 1, 0, t >> 2);
        test_gemm(47, 200, 385, t & 1, (t >> 1) & 1, -2, 1, t >> 2);
    }
    test_linear_groups(HA_WEIGHT_Q4, 37, 200, 769);
    test_linear_groups(HA_WEIGHT_Q8, 45, 130, 640);
    test_linear_i8(1, 576, 1537);
    test_linear_i8(37, 200, 769);
    test_linear_i8(1030, 70, 50);
    for (int format = 0; format < 2; format++) {
        test_linear((ha_weight_format)format, 1, 576, 1537, 0);
        test_linear((ha_weight_format)format, 37, 200, 769, 1);
        test_linear((ha_weight_format)format, 1030, 70, 50, 1);
    }
}

/* -- elementwise -- */

static void
test_elementwise(size_t n)
{
    float *a = floats(n, 6), *b = floats(n, 3), *out = floats(n, 1);
    double worst[2] = {0};
    kern->add_f32(out, a, b, n, 1);
    for (size_t i = 0; i < n; i++) {
        worst[0] += out[i] != a[i] + b[i];
    }
    memcpy(out, b, n * sizeof(float));
    kern->axpy_f32(out, 0.75f, a, n);
    for (size_t i = 0; i < n; i++) {
        worst[1] = fmax(worst[1], fabs(out[i] - (b[i] + 0.75 * a[i])));
    }
    CHECK(worst[0] == 0 && worst[1] <= 9 * 2 * EPS, "%s add, axpy %zu: %g", kern->isa, n, worst[1]);
    free(a), free(b), free(out);
}

static double
activation(ha_activation which, double x)
{
    switch (which) {
    case HA_ACT_GELU: return 0.5 * x * erfc(-x / sqrt(2));
    case HA_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case HA_ACT_RELU: return x > 0 ? x : 0;
    case HA_ACT_SILU: return x / (1 + exp(-x));
    default: return tanh(x);
    }
}

static double
activation_slope(ha_activation which, double x)
{
    const double k = sqrt(2 / acos(-1)), t = tanh(k * (x + 0.044715 * x * x * x)), s = 1 / (1 + exp(-x));
    switch (which) {
    case HA_ACT_GELU: return 0.5 * erfc(-x / sqrt(2)) + x * exp(-0.5 * x * x) / sqrt(2 * acos(-1));
    case HA_ACT_GELU_TANH: return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    case HA_ACT_RELU: return x > 0;
    case HA_ACT_SILU: return s * (1 + x * (1 - s));
    default: return 1 - tanh(x) * tanh(x);
    }
}

/* dx = dout * act'(x), dout within 1, in place too; and of gated rows. */
static void
test_activations_backward(size_t rows, size_t cols)
{
    const size_t n = rows * 2 * cols, ld = 2 * cols;
    float *x = floats(n, 9), *dout = floats(n, 1), *dx = floats(n, 0);
    for (int which = 0; which < HA_N_ACTIVATIONS; which++) {
        const ha_activation act = (ha_activation)which;
        float *same = copy_of(dout, n);
        double worst[2] = {0};
        int differ = 0;
        kern->activate_backward_f32(dx, dout, x, act, n, 2);
        kern->activate_backward_f32(same, same, x, act, n, 1);
        for (size_t i = 0; i < n; i++) {
            worst[0] = fmax(worst[0], fabs(dx[i] - dout[i] * activation_slope(act, x[i])));
        }
        differ = memcmp(dx, same, n * sizeof(float));
        kern->activate_gated_backward_f32(dx, dout, x, act, rows, cols, 2);
        for (size_t i = 0; i < rows * cols; i++) {
            const size_t at = i / cols * ld + i % cols;
            worst[1] = fmax(worst[1], fabs(dx[at] - dout[i] * activation_slope(act, x[at]) * x[at + cols]));
            worst[1] = fmax(worst[1], fabs(dx[at + cols] - dout[i] * activation(act, x[at])));
        }
        CHECK(worst[0] <= 2e-6, "%s activation %d backward of %zu: %g", kern->isa, which, n, worst[0]);
        CHECK(worst[1] <= 2e-5, "%s gated activation %d backward of (%zu, %zu): %g", kern->isa, which, rows, cols, worst[1]);
        CHECK(differ == 0, "%s activation %d backward of %zu: differs in place or on two threads", kern->isa, which, n);
        free(same);
    }
    free(x), free(dout), free(dx);
}

/* out = act(x), and rows of act(first half) * second half, in place too. |x| < 9: the tolerance is 1e-6 and some roundings of 9 * 9. */
static void
test_activations(size_t rows, size_t cols)
{
    const size_t n = rows * 2 * cols, ld = 2 * cols;
    float *x = floats(n, 9), *out = floats(n, 0), *gated = floats(rows * cols, 0);
    for (int which = 0; which < HA_N_ACTIVATIONS; which++) {
        float *both = copy_of(x, n);
        double worst[2] = {0};
        int differ = 0;
        kern->activate_f32(out, x, (ha_activation)which, n, 2);
        kern->activate_gated_f32(gated, cols, x, ld, (ha_activation)which, rows, cols, 1);
        kern->activate_gated_f32(both, ld, both, ld, (ha_activation)which, rows, cols, 2);
        for (size_t i = 0; i < n; i++) {
            float alone;
            kern->activate_f32(&alone, x + i, (ha_activation)which, 1, 1);
            worst[0] = fmax(worst[0], fabs(out[i] - activation((ha_activation)which, x[i])));
            differ += memcmp(&alone, out + i, sizeof(float)) != 0;
        }
        for (size_t i = 0; i < rows * cols; i++) {
            const size_t r = i / cols, c = i % cols;
            worst[1] = fmax(worst[1], fabs(gated[i] - activation((ha_activation)which, x[r * ld + c]) * x[r * ld + cols + c]));
            differ += memcmp(gated + i, both + r * ld + c, sizeof(float)) != 0;
        }
        CHECK(worst[0] <= 1e-6 + 9 * 8 * EPS, "%s activation %d of %zu: %g", kern->isa, which, n, worst[0]);
        CHECK(worst[1] <= 9e-6 + 81 * 8 * EPS, "%s gated activation %d of (%zu, %zu): %g", kern->isa, which, rows, cols, worst[1]);
        CHECK(differ == 0, "%s activation %d of (%zu, %zu): %d elements differ alone or in place", kern->isa, which, rows, cols, differ);
        free(both);
    }
    free(x), free(out), free(gated);
}

static void
test_softmax(size_t rows, size_t cols)
{
    const size_t ld = cols + 1;
    float *x = floats(rows * ld, 30), *p = copy_of(x, rows * ld), *dp = floats(rows * ld, 1), *dx = floats(rows * ld, 1);
    kern->softmax_f32(p, rows, cols, ld, 0.7f);
    kern->softmax_backward_f32(dx, dp, p, rows, cols, ld, 0.7f);
    double worst = 0, worst_back = 0;
    for (size_t r = 0; r < rows; r++) {
        const float *xr = x + r * ld, *pr = p + r * ld;
        double max = -INFINITY, sum = 0, dot = 0;
        for (size_t i = 0; i < cols; i++) {
            max = fmax(max, xr[i]);
            dot += (double)pr[i] * dp[r * ld + i];
        }
        for (size_t i = 0; i < cols; i++) {
            sum += exp(0.7f * (xr[i] - max));
        }
        for (size_t i = 0; i < cols; i++) {
            worst = fmax(worst, fabs(pr[i] - exp(0.7f * (xr[i] - max)) / sum));
            worst_back = fmax(worst_back, fabs(dx[r * ld + i] - 0.7f * pr[i] * (dp[r * ld + i] - dot)));
        }
    }
    /* |scale x| <= 42: the rounding of the argument is the relative error of the exponential */
    CHECK(worst <= 60 * EPS && worst_back <= 40 * EPS, "%s softmax %zu x %zu: %g, backward %g", kern->isa, rows, cols, worst, worst_back);

    const float max = kern->max_f32(x, cols);
    double sum = kern->exp_sum_f32(dx, x, max, 0.7f, cols), want = 0, plain = -INFINITY;
    for (size_t i = 0; i < cols; i++) {
        plain = fmax(plain, x[i]);
        want += exp(0.7f * ((double)x[i] - max));
    }
    CHECK(max == (float)plain && fabs(sum - want) <= 200 * EPS * want, "%s exp_sum %zu: %g for %g", kern->isa, cols, sum, want);
    free(x), free(p), free(dp), free(dx);
}

/* The argument runs over all of exp's range; results below the normal range are compared absolutely. */
static void
test_exp(void)
{
    enum { N = 20000 };
    float *x = bytes(N * sizeof(float)), *out = bytes(N * sizeof(float));
    double worst = 0, tiny = 0;
    for (int i = 0; i < N; i++) {
        x[i] = -110 + 200 * (float)i / N;
    }
    kern->exp_sum_f32(out, x, 0, 1, N);
    for (int i = 0; i < N; i++) {
        const double want = exp(x[i]);
        if (want > 3.4e38) {
            tiny += !isinf(out[i]) && out[i] < 3.3e38f;
        }
        else if (want < 0x1p-126) {
            tiny += fabs(out[i] - want) > 0x1p-149 + 4 * EPS * want;
        }
        else {
            worst = fmax(worst, fabs(out[i] - want) / want);
        }
    }
    CHECK(worst <= 4 * EPS && tiny == 0, "%s exp: relative error %g, %g bad at the ends", kern->isa, worst, tiny);
    x[0] = NAN, x[1] = INFINITY, x[2] = -INFINITY;
    kern->exp_sum_f32(out, x, 0, 1, 3);
    CHECK(isnan(out[0]) && isinf(out[1]) && out[2] == 0, "%s exp: NaN, inf, -inf give %g %g %g", kern->isa, out[0], out[1], out[2]);
    free(x), free(out);
}

/* -- normalisation -- */

static void
test_norms(size_t rows, size_t cols, int affine)
{
    const size_t size = rows * cols;
    const float eps = 1e-5f;
    float *x = floats(size, 2), *w = floats(cols, 1), *b = floats(cols, 1), *d = floats(size, 1), *out = floats(size, 1), *rms = floats(size, 1);
    float *dx = copy_of(d, size), *dw = floats(cols, 1), *db = floats(cols, 1), *dw0 = copy_of(dw, cols), *db0 = copy_of(db, cols);
    double *want_dw = bytes(2 * cols * sizeof(double)), *want_db = want_dw + cols;
    memset(want_dw, 0, 2 * cols * sizeof(double));
    kern->layer_norm_f32(out, x, affine ? w : NULL, affine ? b : NULL, rows, cols, eps, 1);
    kern->rms_norm_f32(rms, x, w, rows, cols, eps, 1);
    kern->layer_norm_backward_f32(dx, dw, db, dx, x, affine ? w : NULL, rows, cols, eps, 1);    /* dx in place of dout */
    double worst = 0, worst_rms = 0, worst_dx = 0, worst_dw = 0;
    for (size_t r = 0; r < rows; r++) {
        const float *xr = x + r * cols, *dr = d + r * cols;
        double mean = 0, var = 0, square = 0, sum_g = 0, sum_gn = 0;
        for (size_t i = 0; i < cols; i++) {
            mean += xr[i] / (double)cols;
            square += (double)xr[i] * xr[i] / (double)cols;
        }
        for (size_t i = 0; i < cols; i++) {
            var += (xr[i] - mean) * (xr[i] - mean) / (double)cols;
        }
        const double rstd = 1 / sqrt(var + eps);
        for (size_t i = 0; i < cols; i++) {
            const double n = (xr[i] - mean) * rstd, g = dr[i] * (affine ? w[i] : 1.0);
            sum_g += g / (double)cols;
            sum_gn += g * n / (double)cols;
            want_dw[i] += dr[i] * n;
            want_db[i] += dr[i];
            worst = fmax(worst, fabs(out[r * cols + i] - (n * (affine ? w[i] : 1.0) + (affine ? b[i] : 0.0))));
            worst_rms = fmax(worst_rms, fabs(rms[r * cols + i] - xr[i] / sqrt(square + eps) * w[i]));
        }
        for (size_t i = 0; i < cols; i++) {
            const double n = (xr[i] - mean) * rstd, g = dr[i] * (affine ? w[i] : 1.0);
            worst_dx = fmax(worst_dx, fabs(dx[r * cols + i] - rstd * (g - sum_g - n * sum_gn)) / rstd);
        }
    }
    for (size_t i = 0; i < cols; i++) {
        worst_dw = fmax(worst_dw, fmax(fabs(dw[i] - dw0[i] - want_dw[i]), fabs(db[i] - db0[i] - want_db[i])));
    }
    /* float32 means of n terms: error grows as sqrt(n) EPS; values to about 4, 16x head-room; small variances magnify by rstd <= 316 */
    const double root = sqrt((double)cols + 1);
    CHECK(worst <= 64 * EPS * root * (cols < 4 ? 300 : 1) && worst_rms <= 64 * EPS * root, "%s norms %zu x %zu: %g, rms %g", kern->isa, rows, cols, worst, worst_rms);
    CHECK(worst_dx <= 64 * EPS * root * (cols < 4 ? 300 : 1), "%s layer_norm_backward %zu x %zu: dx %g", kern->isa, rows, cols, worst_dx);
    CHECK(worst_dw <= 64 * EPS * (double)(rows + 1) * (cols < 4 ? 300 : 1), "%s layer_norm_backward %zu x %zu: dweight %g", kern->isa, rows, cols, worst_dw);

    float *out2 = floats(size, 1), *dx2 = floats(size, 1), *dw2 = copy_of(dw0, cols), *db2 = copy_of(db0, cols);
    kern->layer_norm_f32(out2, x, affine ? w : NULL, affine ? b : NULL, rows, cols, eps, 2);
    kern->layer_norm_backward_f32(dx2, dw2, db2, d, x, affine ? w : NULL, rows, cols, eps, 2);
    const int same = memcmp(out, out2, size * 4) == 0 && memcmp(dx, dx2, size * 4) == 0 && memcmp(dw, dw2, cols * 4) == 0 && memcmp(db, db2, cols * 4) == 0;
    CHECK(same, "%s layer_norm %zu x %zu: 1 and 2 threads differ", kern->isa, rows, cols);
    kern->layer_norm_backward_f32(dx2, NULL, NULL, d, x, affine ? w : NULL, rows, cols, eps, 1);
    CHECK(memcmp(dx, dx2, size * 4) == 0, "%s layer_norm_backward %zu x %zu: dx depends on dweight", kern->isa, rows, cols);
    free(x), free(w), free(b), free(d), free(out), free(rms), free(dx), free(dw), free(db), free(dw0), free(db0), free(want_dw);
    free(out2), free(dx2), free(dw2), free(db2);
}

/* -- storage formats: all 65,536 patterns, and the scalar table as the meaning of narrowing -- */

static void
test_formats(void)
{
    enum { N = 65536 };
    uint16_t *h = bytes(N * 2), *back = bytes(N * 2), *want = bytes(N * 2);
    float *f = bytes(N * 4);
    int bad = 0;
    for (int i = 0; i < N; i++) {
        h[i] = (uint16_t)i;
    }
    kern->f16_to_f32(f, h, N);
    for (int i = 0; i < N; i++) {
        const int exponent = (i >> 10) & 31, fraction = i & 0x3ff;
        const double size = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        const double value = i & 0x8000 ? -size : size;
        bad += isnan(value) ? !isnan(f[i]) : f[i] != value || !signbit(f[i]) != !(i >> 15);
    }
    kern->f32_to_f16(back, f, N);
    for (int i = 0; i < N; i++) {
        bad += (i & 0x7fff) <= 0x7c00 ? back[i] != i : (back[i] & 0x7fff) <= 0x7c00;
    }
    CHECK(bad == 0, "%s float16: %d patterns wrong", kern->isa, bad);

    bad = 0;
    kern->bf16_to_f32(f, h, N);
    kern->f32_to_bf16(back, f, N);
    for (int i = 0; i < N; i++) {
        uint32_t bits;
        memcpy(&bits, f + i, 4);
        bad += bits != (uint32_t)i << 16;
        bad += (i & 0x7fff) <= 0x7f80 ? back[i] != i : (back[i] & 0x7fff) <= 0x7f80;
    }
    CHECK(bad == 0, "%s bfloat16: %d patterns wrong", kern->isa, bad);

    bad = 0;
    seed(7);
    for (int i = 0; i < N; i++) {       /* every exponent, ties and their neighbours among them */
        uint32_t bits = ((uint32_t)i << 16) | (i % 5 == 0 ? 0x8000 : i % 5 == 1 ? 0x7fff : i % 5 == 2 ? 0x8001 : (uint32_t)(uniform() * 0x7fff + 0x8000));
        bits = i % 3 == 0 ? (bits & 0xffffe000) | 0x1000 : bits;
        memcpy(f + i, &bits, 4);
        f[i] = isnan(f[i]) ? 1.0f : f[i];
    }
    kern->f32_to_f16(back, f, N);
    for (int i = 0; i < N; i++) {
        float value;
        kern->f16_to_f32(&value, back + i, 1);
        const double size = fabs(f[i]), unit = size < 0x1p-14 ? 0x1p-24 : ldexp(1, ilogb(size) - 10);
        const double want16 = size >= 65520 ? INFINITY : rint(size / unit) * unit;
        bad += fabs(value) != want16 || !signbit(value) != !signbit(f[i]);
    }
    CHECK(bad == 0, "%s f32_to_f16: %d values not rounded to nearest even", kern->isa, bad);
    bad = 0;
    kern->f32_to_bf16(back, f, N);
    for (int i = 0; i < N; i++) {
        float value;
        kern->bf16_to_f32(&value, back + i, 1);
        const double size = fabs(f[i]), unit = size < 0x1p-126 ? 0x1p-133 : isinf(size) ? 1 : ldexp(1, ilogb(size) - 7);
        double want16 = isinf(size) ? INFINITY : rint(size / unit) * unit;
        want16 = want16 >= 0x1p128 ? INFINITY : want16;
        bad += fabs(value) != want16 || !signbit(value) != !signbit(f[i]);
    }
    CHECK(bad == 0, "%s f32_to_bf16: %d values not rounded to nearest even", kern->isa, bad);
    for (size_t s = 0; s < N_SIZES; s++) {
        const size_t n = sizes[s];
        uint16_t *few = bytes(n * 2);
        float *wide = bytes(n * 4);
        kern->f32_to_f16(few, f, n);
        kern->f16_to_f32(wide, few, n);
        kern->f32_to_f16(want, f, N);
        CHECK(memcmp(few, want, n * 2) == 0, "%s f32_to_f16 %zu: differs from the longer call", kern->isa, n);
        kern->f32_to_bf16(few, f, n);
        kern->bf16_to_f32(wide, few, n);
        CHECK(memcmp(few, back, n * 2) == 0, "%s f32_to_bf16 %zu: differs from the longer call", kern->isa, n);
        free(few), free(wide);
    }
    free(h), free(back), free(want), free(f);
}

/* -- training -- */

static void
test_training(size_t n)
{
    float *w = floats(n, 1), *g = floats(n, 1), *m = floats(n, 0.1f), *v = floats(n, 0.1f);
    for (size_t i = 0; i < n; i++) {
        v[i] = fabsf(v[i]);
    }
    float *w1 = copy_of(w, n), *m1 = copy_of(m, n), *v1 = copy_of(v, n), *w2 = copy_of(w, n), *m2 = copy_of(m, n), *v2 = copy_of(v, n);
    const float lr = 1e-3f, b1 = 0.9f, b2 = 0.999f, eps = 1e-8f, decay = 0.01f, k1 = 1 - b1 * b1, k2 = 1 - b2 * b2, scale = 0.5f;
    kern->adamw_f32(w1, g, m1, v1, n, lr, b1, b2, eps, decay, k1, k2, scale, 1);
    kern->adamw_f32(w2, g, m2, v2, n, lr, b1, b2, eps, decay, k1, k2, scale, 2);
    double worst = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double grad = (double)g[i] * scale, mm = b1 * (double)m[i] + (1 - (double)b1) * grad, vv = b2 * (double)v[i] + (1 - (double)b2) * grad * grad;
        const double want = w[i] * (1 - (double)lr * decay) - lr * (mm / k1) / (sqrt(vv / k2) + eps);
        worst = fmax(worst, fabs(w1[i] - want));
        worst = fmax(worst, fmax(fabs(m1[i] - mm), fabs(v1[i] - vv)));
        sum += (double)g[i] * g[i];
    }
    /* the step is up to lr |m| / k1 / sqrt(v / k2): 1e-3 * .1 / .19 / (sqrt(b2 v / k2)), v >= 1e-8 almost surely, so its own rounding stays below 1e-6 */
    CHECK(worst <= 1e-6, "%s adamw %zu: %g", kern->isa, n, worst);
    CHECK(memcmp(w1, w2, n * 4) == 0 && memcmp(m1, m2, n * 4) == 0 && memcmp(v1, v2, n * 4) == 0, "%s adamw %zu: 1 and 2 threads differ", kern->isa, n);
    const double one = kern->sum_squares_f32(g, n, 1), two = kern->sum_squares_f32(g, n, 2);
    CHECK(fabs(one - sum) <= 300 * EPS * sum && one == two, "%s sum_squares %zu: %.9g, %.9g for %.9g", kern->isa, n, one, two, sum);
    double dot = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        dot += (double)w[i] * g[i];
        size += fabs((double)w[i] * g[i]);
    }
    const double got = kern->dot_f32(w, g, n);
    CHECK(fabs(got - dot) <= ((double)n / 4 + 20) * EPS * size, "%s dot %zu: %g for %g", kern->isa, n, got, dot);
    free(w), free(g), free(m), free(v), free(w1), free(m1), free(v1), free(w2), free(m2), free(v2);
}

int
main(void)
{
    ha_parallel_set_adaptive(0);    /* two threads are to be two, whoever else has the cores */
    for (int i = 0; (kern = ha_kernels_at(i)) != NULL; i++) {
        const int passed = n_passed, failed = n_failed;
        seed(42);
        test_products();
        for (size_t s = 0; s < N_SIZES; s++) {
            test_elementwise(sizes[s]);
            test_training(sizes[s]);
            test_activations(3, sizes[s]);
            test_activations_backward(3, sizes[s]);
            if (sizes[s] > 0) {
                test_softmax(3, sizes[s]);
                test_norms(5, sizes[s], (int)(s % 2));
            }
        }
        test_training(300000);
        test_elementwise(70001);
        test_activations(70, 1001);
        test_activations_backward(70, 1001);
        test_norms(600, 96, 1);
        test_exp();
        test_formats();
        printf("%s: %d passed, %d failed\n", kern->isa, n_passed - passed, n_failed - failed);
    }
    for (size_t s = 0; s < N_SIZES; s++) {
        test_quantize(sizes[s]);
    }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
