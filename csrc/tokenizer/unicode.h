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
    HA_UC_UPPER = 1 << 13,          /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}] of the regular expressions: */
    HA_UC_LOWER = 1 << 14           /* what may begin a capitalised word, and what may go on with it */
};

extern const uint8_t ha_uc_class_index[4352], ha_uc_class_blocks[];
extern const uint16_t ha_uc_class_flags[];
extern const uint8_t ha_uc_class_ccc[];
extern const uint8_t ha_uc_lower_index[4352], ha_uc_lower_blocks[];
extern const int32_t ha_uc_lower_deltas[];
extern const uint8_t ha_uc_nfd_index[4352];
extern const uint16_t ha_uc_nfd_blocks[];
extern const uint32_t ha_uc_nfd_pool[];
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

/* Full canonical decomposition of c into out; returns how many code points (1: itself). */
#define HA_UC_MAX_NFD 4
size_t ha_uc_decompose(uint32_t c, uint32_t out[HA_UC_MAX_NFD]);

/* The canonical composite of first + second, or 0. */
uint32_t ha_uc_compose(uint32_t first, uint32_t second);

#endif
