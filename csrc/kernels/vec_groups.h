/* Products of weights of 8 and 4 bits with x of 8, four elements of k a step, on the instruction set whose vec_*.h was included before:
 *
 *   vg                       weights: 4 bytes of each of VF_LANES columns
 *   vg_low(w), vg_high(w)    the nibbles of such bytes, each in a byte of its own
 *   va                       sums of the columns of one vector over a group of HA_GROUP elements
 *   va_dot8(acc, x, w)       acc + the products of four int8 of x and the bytes of w less GROUP_BIAS; va_begin8(b): zero, or with a bias b
 *   va_dot4(acc, x, w)       the same where w holds 0 .. 15
 *   va_total8/4(acc)         the sums as floats, exact: below 2^24
 *   vf_store_s8(p, a)        VF_LANES whole floats, at most 127 in size, as bytes */
#ifndef HARMAUG_KERNELS_VEC_GROUPS_H
#define HARMAUG_KERNELS_VEC_GROUPS_H

#if defined(HARMAUG_KERNELS_VEC_AVX512_H)

typedef __m512i vg, va;
static inline vg vg_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
static inline vg vg_low(vg w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static inline vg vg_high(vg w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
static inline void vf_store_s8(int8_t *p, vf a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))); }

#if defined(__AVX512VNNI__)
#define GROUP_BIAS 128      /* vpdpbusd takes unsigned by signed bytes */
static inline va va_begin8(int32_t b) { return _mm512_set1_epi32(b); }
static inline va va_begin4(void) { return _mm512_setzero_si512(); }
static inline va va_dot8(va acc, uint32_t x, vg w) { return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32((int)x)); }
static inline va va_dot4(va acc, uint32_t x, vg w) { return va_dot8(acc, x, w); }
static inline vf va_total8(va acc) { return _mm512_cvtepi32_ps(acc); }
static inline vf va_total4(va acc) { return _mm512_cvtepi32_ps(acc); }
#else
#define GROUP_BIAS 0
static inline va va_begin8(int32_t b) { (void)b; return _mm512_setzero_si512(); }
static inline va va_begin4(void) { return _mm512_setzero_si512(); }

static inline va
va_dot8(va acc, uint32_t x, vg w)
{
    const __m512i all = _mm512_set1_epi32((int)x), same = _mm512_mask_sub_epi8(all, _mm512_movepi8_mask(w), _mm512_setzero_si512(), all);
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(w), same), _mm512_set1_epi16(1)));
    __asm__ volatile("" : "+v"(acc));   /* as on AVX2 */
    return acc;
}

static inline va
va_dot4(va acc, uint32_t x, vg w)
{
    acc = _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, _mm512_set1_epi32((int)x)));
    __asm__ volatile("" : "+v"(acc));
    return acc;
}

static inline vf va_total8(va acc) { return _mm512_cvtepi32_ps(acc); }
static inline vf va_total4(va acc) { return _mm512_cvtepi32_ps(_mm512_madd_epi16(acc, _mm512_set1_epi16(1))); }
#endif

#elif defined(HARMAUG_KERNELS_VEC_AVX2_H)

typedef __m256i vg, va;
static inline vg vg_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vg vg_low(vg w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static inline vg vg_high(vg w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }

static inline void
vf_store_s8(int8_t *p, vf a)
{
    const __m128i words = vf_to_i16(a);
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}

#if defined(__AVXVNNI__)
#define GROUP_BIAS 128
static inline va va_begin8(int32_t b) { return _mm256_set1_epi32(b); }
static inline va va_begin4(void) { return _mm256_setzero_si256(); }
static inline va va_dot8(va acc, uint32_t x, vg w) { return _mm256_dpbusd_avx_epi32(acc, w, _mm256_set1_epi32((int)x)); }
static inline va va_dot4(va acc, uint32_t x, vg w) { return va_dot8(acc, x, w); }
static inline vf va_total8(va acc) { return _mm256_cvtepi32_ps(acc); }
static inline vf va_total4(va acc) { return _mm256_cvtepi32_ps(acc); }
#else
#define GROUP_BIAS 0
static inline va va_begin8(int32_t b) { (void)b; return _mm256_setzero_si256(); }
static inline va va_begin4(void) { return _mm256_setzero_si256(); }

/* |w| times x with the sign of w: pairs reach 2 * 128 * 127 and stay below 2^15 */
static inline va
va_dot8(va acc, uint32_t x, vg w)
{
    const __m256i same = _mm256_sign_epi8(_mm256_set1_epi32((int)x), w);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), same), _mm256_set1_epi16(1)));
    __asm__ volatile("" : "+x"(acc));   /* all products of a step at once would need more registers than there are */
    return acc;
}

/* a group's 16 products of 15 * 127 in each half of a column's lane stay below 2^15 */
static inline va
va_dot4(va acc, uint32_t x, vg w)
{
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, _mm256_set1_epi32((int)x)));
    __asm__ volatile("" : "+x"(acc));
    return acc;
}

static inline vf va_total8(va acc) { return _mm256_cvtepi32_ps(acc); }
static inline vf va_total4(va acc) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(acc, _mm256_set1_epi16(1))); }
#endif

#elif defined(HARMAUG_KERNELS_VEC_NEON_H)

#define GROUP_BIAS 0
typedef uint8x16_t vg;
typedef int32x4_t va;
static inline vg vg_load(const uint8_t *p) { return vld1q_u8(p); }
static inline vg vg_low(vg w) { return vandq_u8(w, vdupq_n_u8(15)); }
static inline vg vg_high(vg w) { return vshrq_n_u8(w, 4); }
static inline va va_begin8(int32_t b) { return vdupq_n_s32(b); }
static inline va va_begin4(void) { return vdupq_n_s32(0); }

static inline va
va_dot8(va acc, uint32_t x, vg w)
{
    const int8x16_t a = vreinterpretq_s8_u32(vdupq_n_u32(x)), b = vreinterpretq_s8_u8(w);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

static inline va va_dot4(va acc, uint32_t x, vg w) { return va_dot8(acc, x, w); }
static inline vf va_total8(va acc) { return vcvtq_f32_s32(acc); }
static inline vf va_total4(va acc) { return vcvtq_f32_s32(acc); }

static inline void
vf_store_s8(int8_t *p, vf a)
{
    const int16x4_t words = vmovn_s32(vcvtq_s32_f32(a));
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    memcpy(p, &bytes, sizeof(bytes));
}

#else

#define GROUP_BIAS 0
typedef uint32_t vg;
typedef int32_t va;

static inline vg
vg_load(const uint8_t *p)
{
    uint32_t w;
    memcpy(&w, p, sizeof(w));
    return w;
}

static inline vg vg_low(vg w) { return w & 0x0F0F0F0Fu; }
static inline vg vg_high(vg w) { return w >> 4 & 0x0F0F0F0Fu; }
static inline va va_begin8(int32_t b) { return b; }
static inline va va_begin4(void) { return 0; }

static inline va
va_dot8(va acc, uint32_t x, vg w)
{
    int8_t a[4], b[4];
    memcpy(a, &x, sizeof(x));
    memcpy(b, &w, sizeof(w));
    return acc + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

static inline va va_dot4(va acc, uint32_t x, vg w) { return va_dot8(acc, x, w); }
static inline vf va_total8(va acc) { return (float)acc; }
static inline vf va_total4(va acc) { return (float)acc; }
static inline void vf_store_s8(int8_t *p, vf a) { *p = (int8_t)a; }

#endif

#endif
