/* What AVX2 and AVX-512 share: 128-bit work. Meanings in vec_scalar.h. */
#ifndef HARMAUG_KERNELS_VEC_X86_H
#define HARMAUG_KERNELS_VEC_X86_H

#include <immintrin.h>
#include <stddef.h>

static inline void
vf_transpose_4x4(float *out, size_t out_ld, const float *x, size_t x_ld)
{
    __m128 r0 = _mm_loadu_ps(x), r1 = _mm_loadu_ps(x + x_ld), r2 = _mm_loadu_ps(x + 2 * x_ld), r3 = _mm_loadu_ps(x + 3 * x_ld);
    _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
    _mm_storeu_ps(out, r0);
    _mm_storeu_ps(out + out_ld, r1);
    _mm_storeu_ps(out + 2 * out_ld, r2);
    _mm_storeu_ps(out + 3 * out_ld, r3);
}

#endif
