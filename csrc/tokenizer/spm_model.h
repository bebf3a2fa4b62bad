/* The .model file of sentencepiece: its ModelProto (sentencepiece_model.proto), as far as text is concerned. Texts are borrowed from the file's bytes. */
#ifndef HARMAUG_TOKENIZER_SPM_MODEL_H
#define HARMAUG_TOKENIZER_SPM_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef enum ha_spm_type {
    HA_SPM_NORMAL = 1, HA_SPM_UNKNOWN = 2, HA_SPM_CONTROL = 3, HA_SPM_USER_DEFINED = 4, HA_SPM_UNUSED = 5, HA_SPM_BYTE = 6
} ha_spm_type;

typedef enum ha_spm_kind { HA_SPM_UNIGRAM = 1, HA_SPM_BPE = 2 } ha_spm_kind;

typedef struct ha_spm_text { const char *text; size_t length; } ha_spm_text;

typedef struct ha_spm_piece {
    ha_spm_text piece;          /* UTF-8, not empty */
    float score;                /* finite */
    ha_spm_type type;
} ha_spm_piece;

typedef struct ha_spm_rules {   /* NormalizerSpec */
    ha_spm_text charsmap;       /* bytes; length 0: none */
    int add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
} ha_spm_rules;

typedef struct ha_spm_model {
    ha_spm_piece *pieces;       /* (n,) in order of id */
    size_t n;
    ha_spm_kind kind;
    int byte_fallback, treat_whitespace_as_suffix;
    int32_t unk_id;             /* as the trainer was told */
    ha_spm_text unk_piece, unk_surface;
    ha_spm_rules normalizer, denormalizer;
} ha_spm_model;

/* HA_ERR_FORMAT: not this format, no pieces, or a model that is neither Unigram nor BPE. Unknown fields are skipped. */
ha_status ha_spm_model_parse(const uint8_t *bytes, size_t size, ha_spm_model *out, ha_error *err);
void ha_spm_model_free(ha_spm_model *model);

/* The byte that a piece "<0x41>" (upper-case digits, 6 bytes) is for, or -1. */
int ha_spm_byte(const char *text, size_t length);

/* The id of the piece of this text, or -1; looks at each. */
int32_t ha_spm_model_find(const ha_spm_model *model, const char *text, size_t length);

#endif
