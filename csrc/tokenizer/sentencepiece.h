/* sentencepiece's own way from text to ids and back (Kudo and Richardson 2018, arXiv 1808.06226), which differs from what Hugging Face makes of the same model:
 * its normalizer, Unigram (Kudo 2018, arXiv 1804.10959) in single precision, BPE by scores of pieces, byte fallback. */
#ifndef HARMAUG_TOKENIZER_SENTENCEPIECE_H
#define HARMAUG_TOKENIZER_SENTENCEPIECE_H

#include "tokenizer/charsmap.h"
#include "tokenizer/model.h"
#include "tokenizer/spm_model.h"
#include "tokenizer/text_buf.h"

typedef struct ha_sp_rules {
    ha_charsmap charsmap;           /* n_units 0: none */
    int add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces, suffix;
} ha_sp_rules;

typedef struct ha_sentencepiece {
    ha_spm_kind kind;
    int llama;                      /* as llama.cpp reads the same vocabulary from GGUF: added tokens cut the text, every token may come of a merge */
    const ha_vocab *vocab;
    uint8_t *types;                 /* (n,) ha_spm_type of each id */
    float *scores;                  /* (n,) */
    int32_t *ranks;                 /* (n,) BPE: how many scores are higher */
    size_t n;
    ha_trie pieces;                 /* Unigram: normal, user-defined and unused pieces */
    ha_trie symbols;                /* user-defined ones, which nothing changes or cuts */
    float unk_score;
    int has_unused;
    int32_t unk_id;
    int byte_fallback;
    int32_t byte_ids[256];
    ha_sp_rules rules, back;        /* back: what decoding ends with, when it has a charsmap */
    char *unk_surface;
    size_t unk_surface_length;
    int32_t *specials;              /* llama: (n_specials,) added tokens, longest first */
    size_t n_specials;
} ha_sentencepiece;

typedef struct ha_sp_node { float score; int32_t id; uint32_t start, next; } ha_sp_node;
typedef struct ha_sp_symbol { uint32_t begin, length; int32_t prev, next; int frozen; } ha_sp_symbol;
typedef struct ha_sp_fragments {    /* parts of a text; id -1: what is not yet a token */
    struct ha_sp_fragment { uint32_t begin, end; int32_t id; } *at;
    size_t n, capacity;
} ha_sp_fragments;

typedef struct ha_sp_scratch {      /* zeroed by the owner; one per thread */
    ha_sp_node *best;
    size_t cap_best;
    ha_sp_symbol *symbols;
    ha_bpe_entry *heap;             /* (3 * cap_symbols,) */
    size_t cap_symbols;
    uint32_t *splits;               /* (sp->n,) bytes of the left half that an unused piece was merged from */
    ha_sp_fragments fragments, spare;
    ha_pulse *pulse;                /* NULL: never stopped */
} ha_sp_scratch;

void ha_sp_scratch_free(ha_sp_scratch *scratch);
void ha_sentencepiece_free(ha_sentencepiece *sp);

/* From a model whose pieces are `vocab`'s tokens. HA_ERR_FORMAT where sentencepiece refuses it. */
ha_status ha_sentencepiece_build(ha_sentencepiece *sp, const ha_spm_model *model, const ha_vocab *vocab, ha_error *err);
/* From scores and types (n each, copied) of `vocab`'s tokens, as GGUF has them. Needs all byte tokens. */
ha_status ha_sentencepiece_build_llama(ha_sentencepiece *sp, const float *scores, const uint8_t *types, int add_space_prefix, const ha_vocab *vocab, ha_error *err);

/* Appends the tokens of a text (well-formed); their begin and end are bytes of that text. `normal` is scratch; normal->aligned: positions are wanted. */
ha_status ha_sentencepiece_encode(const ha_sentencepiece *sp, const uint8_t *text, size_t length, ha_sp_scratch *scratch, ha_text_buf *normal,
                                  ha_tokens *out, ha_error *err);
/* Appends the text of ids, each of them below sp->n. */
ha_status ha_sentencepiece_decode(const ha_sentencepiece *sp, const int32_t *ids, size_t n, ha_text_buf *out, ha_error *err);

#endif
