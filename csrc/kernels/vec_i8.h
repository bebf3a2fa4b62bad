/* Products of 8-bit integers on the instruction set whose vec_*.h was included before. A step along k takes I8_STEP products of each column:
 *
 *   vi                       a vector of VF_LANES int32, a lane for a column of the weight
 *   vi_weight                I8_STEP int8 of each of VF_LANES columns, as vi_load_weight reads them: [column][I8_STEP]
 *   vi_dot(acc, x, w)        acc + the products of w with the word x, I8_STEP elements of one row of the input
 *   vf_store_i8(p, a)        VF_LANES elements of such a row from whole floats, I8_BYTES each, I8_BIAS added
 *   I8_WIDE                  1: the word holds elements of 16 bits. 0: of 8, within -127 .. 127, and the function below is there
 *   vi_add_column(acc, x, w, i)  acc + x * element i of each column of w
 *
 * I8_STEP elements take 4 bytes. The sums of a group are exact: at most 127 * 127 * HA_I8_GROUP, with bias twice that, and what HA_I8_OUTLIERS elements of at
 * most 252 * 2^6 + 127 add. */
#ifndef HARMAUG_KERNELS_VEC_I8_H
#define HARMAUG_KERNELS_VEC_I8_H

#if defined(HARMAUG_KERNELS_VEC_AVX512_H) && defined(__AVX512VNNI__)

#define I8_STEP 4
#define I8_BIAS 128         /* vpdpbusd takes unsigned by signed bytes */
#define I8_WIDE 0
typedef __m512i vi, vi_weight;
static inline vi vi_zero(void) { return _mm512_setzero_si512(); }
static inline vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline vf vi_to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi_weight vi_load_weight(const int8_t *p) { return _mm512_loadu_si512(p); }
static inline vi vi_dot(vi acc, uint32_t x, vi_weight w) { return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32((int)x), w); }

static inline vi
vi_add_column(vi acc, int32_t x, vi_weight w, size_t i)
{
    const __m512i top = _mm512_sll_epi32(w, _mm_cvtsi32_si128(24 - 8 * (int)i));
    return _mm512_add_epi32(acc, _mm512_mullo_epi32(_mm512_set1_epi32(x), _mm512_srai_epi32(top, 24)));
}

static inline void
vf_store_i8(void *p, vf a)
{
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(I8_BIAS))));
}

#elif defined(HARMAUG_KERNELS_VEC_AVX512_H)

#define I8_STEP 2
#define I8_BIAS 0
#define I8_WIDE 1
typedef __m512i vi, vi_weight;
static inline vi vi_zero(void) { return _mm512_setzero_si512(); }
static inline vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline vf vi_to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi_weight vi_load_weight(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }

static inline vi
vi_dot(vi acc, uint32_t x, vi_weight w)
{
    const __m512i products = _mm512_madd_epi16(_mm512_set1_epi32((int)x), w);
    __asm__ volatile("vpaddd %1, %0, %0" : "+v"(acc) : "v"(products));      /* as on AVX2 */
    return acc;
}

static inline void vf_store_i8(void *p, vf a) { _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a))); }

#elif defined(HARMAUG_KERNELS_VEC_AVX2_H)

typedef __m256i vi, vi_weight;
static inline vi vi_zero(void) { return _mm256_setzero_si256(); }
static inline vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vf vi_to_vf(vi a) { return _mm256_cvtepi32_ps(a); }

static inline __m128i
vf_to_i16(vf a)
{
    const __m256i whole = _mm256_cvtps_epi32(a);
    return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}

#if defined(__AVXVNNI__)
#define I8_STEP 4
#define I8_BIAS 128
#define I8_WIDE 0
static inline vi_weight vi_load_weight(const int8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vi vi_dot(vi acc, uint32_t x, vi_weight w) { return _mm256_dpbusd_avx_epi32(acc, _mm256_set1_epi32((int)x), w); }

static inline vi
vi_add_column(vi acc, int32_t x, vi_weight w, size_t i)
{
    const __m256i top = _mm256_sll_epi32(w, _mm_cvtsi32_si128(24 - 8 * (int)i));
    return _mm256_add_epi32(acc, _mm256_mullo_epi32(_mm256_set1_epi32(x), _mm256_srai_epi32(top, 24)));
}

static inline void
vf_store_i8(void *p, vf a)
{
    const __m128i words = _mm_add_epi16(vf_to_i16(a), _mm_set1_epi16(I8_BIAS));
    _mm_storel_epi64(p, _mm_packus_epi16(words, words));
}
#else       /* vpmaddubsw would saturate, or cost a bit of x: products of 16-bit integers instead, which are as many a cycle */
#define I8_STEP 2
#define I8_BIAS 0
#define I8_WIDE 1
static inline vi_weight vi_load_weight(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

static inline vi
vi_dot(vi acc, uint32_t x, vi_weight w)
{
    const __m256i products = _mm256_madd_epi16(_mm256_set1_epi32((int)x), w);
    /* in order: all products of a step at once would need more registers than there are; in place: compilers copy each sum, which costs a sixth of the time */
    __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc) : "x"(products));
    return acc;
}

static inline void vf_store_i8(void *p, vf a) { _mm_storeu_si128(p, vf_to_i16(a)); }
#endif

#elif defined(HARMAUG_KERNELS_VEC_NEON_H)

#define I8_BIAS 0
#define I8_WIDE 0
typedef int32x4_t vi;
static inline vi vi_zero(void) { return vdupq_n_s32(0); }
static inline vi vi_load(const int32_t *p) { return vld1q_s32(p); }
static inline vf vi_to_vf(vi a) { return vcvtq_f32_s32(a); }
#if defined(__ARM_FEATURE_DOTPROD)
#define I8_STEP 4
typedef int8x16_t vi_weight;
static inline vi_weight vi_load_weight(const int8_t *p) { return vld1q_s8(p); }
static inline vi vi_dot(vi acc, uint32_t x, vi_weight w) { return vdotq_s32(acc, vreinterpretq_s8_u32(vdupq_n_u32(x)), w); }

static inline vi
vi_add_column(vi acc, int32_t x, vi_weight w, size_t i)
{
    const int32x4_t top = vshlq_s32(vreinterpretq_s32_s8(w), vdupq_n_s32(24 - 8 * (int32_t)i));
    return vmlaq_n_s32(acc, vshrq_n_s32(top, 24), x);
}

static inline void
vf_store_i8(void *p, vf a)
{
    const int16x4_t words = vmovn_s32(vcvtq_s32_f32(a));
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    memcpy(p, &bytes, sizeof(bytes));
}
#else
#define I8_STEP 2
typedef int16x8_t vi_weight;
static inline vi_weight vi_load_weight(const int8_t *p) { return vmovl_s8(vld1_s8(p)); }

static inline vi
vi_dot(vi acc, uint32_t x, vi_weight w)
{
    const int16x8_t pairs = vreinterpretq_s16_u32(vdupq_n_u32(x));
    return vpadalq_s16(acc, vmulq_s16(pairs, w));       /* |x w| <= 127 * 127 */
}

static inline vi
vi_add_column(vi acc, int32_t x, vi_weight w, size_t i)
{
    const int32x4_t top = vshlq_s32(vreinterpretq_s32_s16(w), vdupq_n_s32(16 - 16 * (int32_t)i));
    return vmlaq_n_s32(acc, vshrq_n_s32(top, 16), x);
}

static inline void vf_store_i8(void *p, vf a) { vst1_s16(p, vmovn_s32(vcvtq_s32_f32(a))); }
#endif

#else

#define I8_STEP 2
#define I8_BIAS 0
#define I8_WIDE 1
typedef int32_t vi;
typedef const int8_t *vi_weight;
static inline vi vi_zero(void) { return 0; }
static inline vi vi_load(const int32_t *p) { return *p; }
static inline vf vi_to_vf(vi a) { return (float)a; }
static inline vi_weight vi_load_weight(const int8_t *p) { return p; }

static inline vi
vi_dot(vi acc, uint32_t x, vi_weight w)
{
    int16_t pair[I8_STEP];
    memcpy(pair, &x, sizeof(x));
    return acc + pair[0] * w[0] + pair[1] * w[1];
}

static inline void
vf_store_i8(void *p, vf a)
{
    const int16_t whole = (int16_t)a;
    memcpy(p, &whole, sizeof(whole));
}

#endif

#define I8_BYTES (4 / I8_STEP)      /* of an element of x */

#endif
