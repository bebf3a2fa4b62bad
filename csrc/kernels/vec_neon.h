/* vf on AArch64 Advanced SIMD; meanings in vec_scalar.h. Half precision conversion and fused multiply-add are part of every AArch64. */
#ifndef HARMAUG_KERNELS_VEC_NEON_H
#define HARMAUG_KERNELS_VEC_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float32x4_t vf;
typedef uint32x4_t vm;
#define VF_LANES 4
#define GEMM_MR 6
#define GEMM_NV 4

static inline vm
vf_first_n(size_t n)
{
    static const uint32_t lanes[4] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(lanes), vdupq_n_u32((uint32_t)n));
}

static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }

static inline vf
vf_load_n(const float *p, size_t n, float fill)
{
    float lanes[VF_LANES] = {fill, fill, fill, fill};
    memcpy(lanes, p, n * sizeof(*p));
    return vld1q_f32(lanes);
}

static inline void
vf_store_n(float *p, vf a, size_t n)
{
    float lanes[VF_LANES];
    vst1q_f32(lanes, a);
    memcpy(p, lanes, n * sizeof(*p));
}

static inline vf vf_set1(float a) { return vdupq_n_f32(a); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
static inline vm vf_less(vf a, vf b) { return vcltq_f32(a, b); }
static inline vf vf_select(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }     /* vmaxq would return NaN for either */
static inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf vf_abs(vf a) { return vabsq_f32(a); }
static inline vf vf_copysign(vf a, vf s) { return vbslq_f32(vdupq_n_u32(0x80000000u), s, a); }
static inline vf vf_keep_n(vf a, size_t n) { return vbslq_f32(vf_first_n(n), a, vdupq_n_f32(0.0f)); }
static inline vf
vf_pick(const float *p, const int32_t *at, int32_t base)
{
    const float lanes[VF_LANES] = {p[at[0] - base], p[at[1] - base], p[at[2] - base], p[at[3] - base]};
    return vld1q_f32(lanes);
}

static inline float vf_sum(vf a) { return vaddvq_f32(a); }
static inline float vf_max_lanes(vf a) { return vmaxvq_f32(a); }
static inline vf vf_round(vf a) { return vrndnq_f32(a); }

static inline vf
vf_scale2(vf a, vf n)
{
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
    const int32x4_t x = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t y = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return vmulq_f32(vmulq_f32(a, vreinterpretq_f32_s32(x)), vreinterpretq_f32_s32(y));
}

static inline void
vf_transpose_4x4(float *out, size_t out_ld, const float *x, size_t x_ld)
{
    const float32x4_t r0 = vld1q_f32(x), r1 = vld1q_f32(x + x_ld), r2 = vld1q_f32(x + 2 * x_ld), r3 = vld1q_f32(x + 3 * x_ld);
    const float32x4x2_t a = vtrnq_f32(r0, r1), b = vtrnq_f32(r2, r3);
    vst1q_f32(out, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
    vst1q_f32(out + out_ld, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
    vst1q_f32(out + 2 * out_ld, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
    vst1q_f32(out + 3 * out_ld, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
}

static inline vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

static inline void
vf_store_bf16(uint16_t *p, vf a)
{
    const uint32x4_t x = vreinterpretq_u32_f32(a), top = vshrq_n_u32(x, 16), odd = vandq_u32(top, vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(x, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    const uint32x4_t number = vceqq_f32(a, a);
    vst1_u16(p, vmovn_u32(vbslq_u32(number, rounded, vorrq_u32(top, vdupq_n_u32(0x40)))));
}

static inline vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline void vf_store_f16(uint16_t *p, vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }

#endif
