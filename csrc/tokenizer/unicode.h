/* What a code point is to the components of a tokenizer: tables read off the behaviour of Hugging Face `tokenizers`, whose parts carry different
 * Unicode versions (make_unicode_tables.py). Canonical forms: UAX #15; Hangul by arithmetic (Unicode 15, section 3.12). */
#ifndef HARMAUG_TOKENIZER_UNICODE_H
#define HARMAUG_TOKENIZER_UNICODE_H

#include <stddef.h>
#include <stdint.h>

#include "core/utf8.h"

enum {
    HA_UC_L = 1 << 0,               /* \p{L}, \p{N}, \s of the regular expressions (Oniguruma) */
    HA_UC_N = 1 << 1,
    HA_UC_S = 1 << 2,
    HA_UC_WHITE_SPACE = 1 << 3,     /* char::is_whitespace */
    HA_UC_NUMERIC = 1 << 4,         /* char::is_numeric (Digits) */
    HA_UC_PUNCT = 1 << 5,           /* BertPreTokenizer's punctuation */
    HA_UC_CONTROL = 1 << 6,         /* removed by BertNormalizer's clean_text */
    HA_UC_MN = 1 << 7,              /* removed by BertNormalizer's strip_accents */
    HA_UC_CJK = 1 << 8,             /* set apart by BertNormalizer's handle_chinese_chars */
    HA_UC_WORD = 1 << 9,            /* \w beside an added token of single_word */
    HA_UC_SECOND = 1 << 10,         /* may be the second of a canonical composition */
    HA_UC_NFD_NO = 1 << 11,         /* has a canonical decomposition */
    HA_UC_NFC_NO = 1 << 12,         /* has one that does not compose to it again */
    HA_UC_MARK = 1 << 13,           /* removed by StripAccents */
    HA_UC_UPPER = 1 << 14,          /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}] of the regular expressions: */
    HA_UC_LOWER = 1 << 15           /* what may begin a capitalised word, and what may go on with it */
};

/* Grapheme clusters (UAX #29, extended). */
enum {
    HA_GR_CONTROL = 1 << 0,         /* Control, CR, LF */
    HA_GR_JOIN = 1 << 1,            /* Extend, ZWJ, SpacingMark: joins what stands before it */
    HA_GR_EXTEND = 1 << 2,
    HA_GR_PREPEND = 1 << 3,
    HA_GR_PICT = 1 << 4,            /* Extended_Pictographic */
    HA_GR_CONSONANT = 1 << 5,       /* Indic_Conjunct_Break */
    HA_GR_LINKER = 1 << 6,
    HA_GR_INCB_EXTEND = 1 << 7,
    HA_GR_BEFORE_L = 1 << 8,        /* Hangul: L; V or LV; T or LVT as the first of a pair */
    HA_GR_BEFORE_V = 1 << 9,
    HA_GR_BEFORE_T = 1 << 10,
    HA_GR_AFTER_L = 1 << 11,        /* L, LV or LVT; V; T as the second */
    HA_GR_AFTER_V = 1 << 12,
    HA_GR_AFTER_T = 1 << 13
};

extern const uint8_t ha_uc_class_index[4352], ha_uc_class_blocks[];
extern const uint16_t ha_uc_class_flags[];
extern const uint8_t ha_uc_class_ccc[];
extern const uint8_t ha_uc_lower_index[4352], ha_uc_lower_blocks[];
extern const int32_t ha_uc_lower_deltas[];
extern const uint8_t ha_uc_nfd_index[4352];
extern const uint16_t ha_uc_nfd_blocks[];
extern const uint32_t ha_uc_nfd_pool[];
extern const uint8_t ha_uc_nfkd_index[4352];
extern const uint16_t ha_uc_nfkd_blocks[];
extern const uint8_t ha_uc_grapheme_index[4352], ha_uc_grapheme_blocks[];
extern const uint16_t ha_uc_grapheme_flags[];
extern const uint32_t ha_uc_pairs[];        /* (first, second, composed), sorted */
extern const size_t ha_uc_n_pairs;

static inline size_t
ha_uc_class(uint32_t c)
{
    return ha_uc_class_blocks[(size_t)ha_uc_class_index[c >> 8] << 8 | (c & 0xFF)];
}

static inline unsigned
ha_uc_flags(uint32_t c)
{
    return ha_uc_class_flags[ha_uc_class(c)];
}

/* The flags of the character that starts at text[0] (well-formed), its length in *size. */
static inline unsigned
ha_uc_flags_at(const uint8_t *text, size_t *size)
{
    if (text[0] < 0x80) {
        *size = 1;
        return ha_uc_class_flags[ha_uc_class_blocks[(size_t)ha_uc_class_index[0] << 8 | text[0]]];
    }
    return ha_uc_flags(ha_utf8_decode(text, size));
}

/* Canonical combining class. */
static inline unsigned
ha_uc_ccc(uint32_t c)
{
    return ha_uc_class_ccc[ha_uc_class(c)];
}

/* Lower case of c; U+0130 alone grows, to "i" + U+0307, and the caller appends the second. */
#define HA_UC_DOTTED_I 0x130
static inline uint32_t
ha_uc_lower(uint32_t c)
{
    const size_t delta = ha_uc_lower_blocks[(size_t)ha_uc_lower_index[c >> 8] << 8 | (c & 0xFF)];
    return c == HA_UC_DOTTED_I ? 'i' : c + (uint32_t)ha_uc_lower_deltas[delta];
}

/* Whether the compatibility decomposition of c differs from the canonical one. */
static inline int
ha_uc_is_compatibility(uint32_t c)
{
    return ha_uc_nfkd_blocks[(size_t)ha_uc_nfkd_index[c >> 8] << 8 | (c & 0xFF)] != ha_uc_nfd_blocks[(size_t)ha_uc_nfd_index[c >> 8] << 8 | (c & 0xFF)];
}

/* Full canonical, or compatibility, decomposition of c into out; returns how many code points (1: itself). */
#define HA_UC_MAX_PARTS 18
size_t ha_uc_decompose(uint32_t c, int compatibility, uint32_t out[HA_UC_MAX_PARTS]);

/* The canonical composite of first + second, or 0. */
uint32_t ha_uc_compose(uint32_t first, uint32_t second);

static inline unsigned
ha_uc_grapheme_class(uint32_t c)
{
    return ha_uc_grapheme_flags[ha_uc_grapheme_blocks[(size_t)ha_uc_grapheme_index[c >> 8] << 8 | (c & 0xFF)]];
}

/* Bytes of the extended grapheme cluster at text[begin], begin < end; `state` is zeroed before the first of a text. Pairs of regional indicators are not told
 * apart from others: the Precompiled normalizer, whose clusters these are, does the same to both. */
typedef struct ha_grapheme_state { unsigned conjunct; } ha_grapheme_state;
size_t ha_uc_grapheme(const uint8_t *text, size_t begin, size_t end, ha_grapheme_state *state);

#endif
