/* Normalizers: a chain of passes over a text. What a pass does is what the component of that name does in Hugging Face `tokenizers`,
 * positions included. */
#ifndef HARMAUG_TOKENIZER_NORMALIZER_H
#define HARMAUG_TOKENIZER_NORMALIZER_H

#include "tokenizer/charsmap.h"
#include "tokenizer/text_buf.h"

typedef enum ha_norm_pass {
    HA_NORM_CLEAN,          /* BertNormalizer clean_text: drops control characters, white space becomes U+0020 */
    HA_NORM_CJK,            /* BertNormalizer handle_chinese_chars: a space on either side */
    HA_NORM_DROP_MN,        /* the second half of BertNormalizer's strip_accents */
    HA_NORM_STRIP_ACCENTS,  /* StripAccents: drops every mark */
    HA_NORM_NMT,            /* Nmt: drops some control characters, some white space becomes U+0020 */
    HA_NORM_LOWERCASE,
    HA_NORM_LAST_LOCAL = HA_NORM_LOWERCASE,     /* those up to here look at one character at a time */
    HA_NORM_NFD,
    HA_NORM_NFC,
    HA_NORM_NFKD,
    HA_NORM_NFKC,
    HA_NORM_STRIP,          /* white space off the ends */
    HA_NORM_PRECOMPILED,    /* a charsmap, by grapheme clusters */
    HA_NORM_REPLACE,
    HA_NORM_PREPEND         /* to a text that is not empty */
} ha_norm_pass;

/* What Replace looks for: a text, or one of these regular expressions. */
typedef enum ha_norm_pattern {
    HA_NORM_TEXT,
    HA_NORM_SPACES,         /* " +" */
    HA_NORM_TWO_SPACES,     /* " {2,}" */
    HA_NORM_BLANKS,         /* "\\s+" */
    HA_NORM_TWO_BLANKS,     /* "\\s{2,}" */
    HA_NORM_TWO_BLANKS_OR_LINE      /* "\\s{2,}|[\\n\\r\\t]" */
} ha_norm_pattern;

typedef struct ha_norm_step {
    ha_norm_pass pass;
    int left, right;            /* STRIP */
    ha_norm_pattern pattern;    /* REPLACE */
    char *from, *to;            /* REPLACE with TEXT: from; REPLACE, PREPEND: to. Owned */
    size_t from_length, to_length;
    ha_charsmap charsmap;       /* PRECOMPILED */
} ha_norm_step;

#define HA_MAX_NORM_STEPS 32

typedef enum ha_printable { HA_PRINTABLE_OTHER, HA_PRINTABLE_SAME, HA_PRINTABLE_LOWER } ha_printable;

typedef struct ha_normalizer {
    ha_norm_step steps[HA_MAX_NORM_STEPS];
    size_t n_steps;
    int local;              /* every step makes at most one character of an ASCII character, whatever stands beside it */
    uint8_t ascii[128];     /* with `local`: what all make of one in ASCII text; HA_NORM_DROPPED: nothing */
    ha_printable printable; /* what that is for U+0020 to U+007E */
} ha_normalizer;

#define HA_NORM_DROPPED 0x80

typedef struct ha_norm_char { uint32_t c; int32_t change; uint32_t ccc; } ha_norm_char;

typedef struct ha_norm_scratch {    /* zeroed by the owner; one per thread */
    ha_text_buf a, b;
    ha_norm_char *chars, *composed;
    size_t cap_chars, cap_composed;
} ha_norm_scratch;

void ha_norm_scratch_free(ha_norm_scratch *scratch);

void ha_normalizer_free(ha_normalizer *normalizer);

/* Adds a pass without parameters; HA_ERR_FORMAT when there are too many. */
ha_status ha_normalizer_add(ha_normalizer *normalizer, ha_norm_pass pass, ha_error *err);
ha_status ha_normalizer_add_strip(ha_normalizer *normalizer, int left, int right, ha_error *err);
/* Takes the charsmap over, also when it fails. */
ha_status ha_normalizer_add_precompiled(ha_normalizer *normalizer, ha_charsmap charsmap, ha_error *err);
/* Texts (UTF-8) are copied; `from` is read with HA_NORM_TEXT alone, and is not empty. */
ha_status ha_normalizer_add_replace(ha_normalizer *normalizer, ha_norm_pattern pattern, const char *from, size_t from_length,
                                    const char *to, size_t to_length, ha_error *err);
ha_status ha_normalizer_add_prepend(ha_normalizer *normalizer, const char *text, size_t length, ha_error *err);
/* The pattern of a regular expression, and 1 when it is one of those known. */
int ha_norm_regex(const char *regex, size_t length, ha_norm_pattern *out);

/* The passes of a BertNormalizer. */
ha_status ha_normalizer_add_bert(ha_normalizer *normalizer, int clean_text, int chinese, int strip_accents, int lowercase, ha_error *err);

/* Fills `ascii`; once, after the last step was added. */
void ha_normalizer_finish(ha_normalizer *normalizer);

/* The step of a charsmap alone: appends to `out`. */
ha_status ha_norm_precompiled(const ha_norm_step *step, const ha_text_buf *in, ha_text_buf *out, ha_error *err);

/* Appends the normal form of bytes [begin, end) of the original (well-formed) to `out`, with alignment when out->aligned. */
ha_status ha_normalize(const ha_normalizer *normalizer, const uint8_t *original, size_t begin, size_t end,
                       ha_norm_scratch *scratch, ha_text_buf *out, ha_error *err);

#endif
