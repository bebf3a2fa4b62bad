/* Normalizers: a chain of passes over a text. What a pass does is what the component of that name does in Hugging Face `tokenizers`,
 * positions included. */
#ifndef HARMAUG_TOKENIZER_NORMALIZER_H
#define HARMAUG_TOKENIZER_NORMALIZER_H

#include "tokenizer/text_buf.h"

typedef enum ha_norm_pass {
    HA_NORM_CLEAN,          /* BertNormalizer clean_text: drops control characters, white space becomes U+0020 */
    HA_NORM_CJK,            /* BertNormalizer handle_chinese_chars: a space on either side */
    HA_NORM_NFD,
    HA_NORM_NFC,
    HA_NORM_DROP_MN,        /* the second half of BertNormalizer's strip_accents */
    HA_NORM_LOWERCASE
} ha_norm_pass;

#define HA_MAX_NORM_PASSES 32

typedef struct ha_normalizer {
    ha_norm_pass passes[HA_MAX_NORM_PASSES];
    size_t n_passes;
    uint8_t ascii[128];     /* what all passes together make of one ASCII character in ASCII text; HA_NORM_DROPPED: nothing */
} ha_normalizer;

#define HA_NORM_DROPPED 0x80

typedef struct ha_norm_char { uint32_t c; int32_t change; uint32_t ccc; } ha_norm_char;

typedef struct ha_norm_scratch {    /* zeroed by the owner; one per thread */
    ha_text_buf a, b;
    ha_norm_char *chars, *composed;
    size_t cap_chars, cap_composed;
} ha_norm_scratch;

void ha_norm_scratch_free(ha_norm_scratch *scratch);

/* Adds a pass; HA_ERR_FORMAT when there are too many. */
ha_status ha_normalizer_add(ha_normalizer *normalizer, ha_norm_pass pass, ha_error *err);

/* The passes of a BertNormalizer. */
ha_status ha_normalizer_add_bert(ha_normalizer *normalizer, int clean_text, int chinese, int strip_accents, int lowercase, ha_error *err);

/* Fills `ascii`; once, after the last pass was added. */
void ha_normalizer_finish(ha_normalizer *normalizer);

/* Appends the normal form of bytes [begin, end) of the original (well-formed) to `out`, with alignment when out->aligned. */
ha_status ha_normalize(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end,
                       ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err);

#endif
