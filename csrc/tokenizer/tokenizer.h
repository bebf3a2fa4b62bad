/* Text to token ids and back: normalizer -> pre_tokenizer -> model -> post_processor, and a decoder, as in a Hugging Face tokenizer.json.
 * A tokenizer is immutable after opening: one object serves many threads. */
#ifndef HARMAUG_TOKENIZER_TOKENIZER_H
#define HARMAUG_TOKENIZER_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct ha_tokenizer ha_tokenizer;

/* Whose ids a sentencepiece model gives. */
typedef enum ha_reference { HA_REFERENCE_TOKENIZERS, HA_REFERENCE_SENTENCEPIECE } ha_reference;

typedef struct ha_special_token { const char *text; size_t length; uint64_t id; } ha_special_token;

typedef struct ha_open_options {                /* zeroed: the defaults */
    ha_reference reference;
    const char *pattern;                        /* of a *.tiktoken file, see ha_pre_pattern_tiktoken; NULL: the file is none */
    const ha_special_token *special_tokens;     /* of that file */
    size_t n_special_tokens;
    const char *cache_folder;                   /* where the large tables of a tokenizer.json are kept between runs (tables.h); NULL: nowhere */
} ha_open_options;

/* Opens a folder (tokenizer.json, else a sentencepiece model, else vocab.txt, else vocab.json and merges.txt), one of these files or a .gguf; for
 * HA_REFERENCE_SENTENCEPIECE a .model or a folder that has one; with a pattern a *.tiktoken, or the only one of a folder, else its tokenizer.model. A component
 * or expression that this library does not honour exactly is HA_ERR_FORMAT by name. `options` may be NULL. */
ha_status ha_tokenizer_open(const char *path, const ha_open_options *options, ha_tokenizer **out, ha_error *err);
/* Why a file in the cache folder was not used or could not be written; "" when there is nothing to tell. */
const char *ha_tokenizer_cache_note(const ha_tokenizer *tokenizer);
void ha_tokenizer_free(ha_tokenizer *tokenizer);

typedef enum ha_truncation { HA_TRUNCATE_NONE, HA_TRUNCATE_LONGEST_FIRST, HA_TRUNCATE_ONLY_FIRST, HA_TRUNCATE_ONLY_SECOND } ha_truncation;

typedef struct ha_encode_options {
    int add_special_tokens;
    int split_special_tokens;       /* special tokens in the texts are text like any other */
    size_t max_length;              /* SIZE_MAX: no limit; counts special tokens */
    ha_truncation truncation;
    int truncate_left;              /* 0: drop from the right */
    int windows;                    /* 1: what is cut off goes into further rows, see ha_encoding.texts */
    size_t stride;                  /* tokens that a window shares with the one before; below its length */
    int spans;                      /* also compute spans */
    int n_threads;
    int (*tick)(void *arg, size_t texts_done);      /* NULL, or called on the calling thread between blocks of texts; nonzero stops: HA_ERR_VALUE */
    void *tick_arg;
} ha_encode_options;

/* Ragged rows: one for each text, or with windows one or more, in the order of the texts. Those of a text are, as in tokenizers, its truncated row and then
 * the overflowing ones, for a pair every window of one text beside every window of the other. The struct is zeroed by the caller, filled by encode and
 * released by ha_encoding_free. */
typedef struct ha_encoding {
    size_t n_rows;
    int64_t *offsets;               /* (n_rows + 1,) */
    int32_t *ids;                   /* (total,) */
    uint8_t *type_ids;              /* (total,) */
    int32_t *spans;                 /* (total, 2) code points of the token's own text, or NULL */
    int32_t *truncated;             /* (n_rows,) tokens that truncation dropped; 0 with windows */
    int64_t *texts;                 /* (n_rows,) the text that the row is of */
} ha_encoding;

/* texts (n), pairs (n) or NULL; a pair whose data is NULL is none. Invalid UTF-8 is HA_ERR_VALUE naming the row. Rows of a text are the same whatever else is in the batch. */
ha_status ha_tokenizer_encode_batch(const ha_tokenizer *tokenizer, const ha_text *texts, const ha_text *pairs, size_t n,
                                    const ha_encode_options *options, ha_encoding *out, ha_error *err);
void ha_encoding_free(ha_encoding *encoding);

/* Ragged rows as rectangles (n, columns) of int32 or, `wide`, int64; columns >= the longest row. The three arrays come zeroed; mask is 1 where a token is. */
typedef struct ha_pad_options { size_t columns; int32_t pad_id; int left, wide, n_threads; } ha_pad_options;
void ha_encoding_pad(size_t n, const int64_t *offsets, const int32_t *ids, const uint8_t *type_ids, const ha_pad_options *options,
                     void *out_ids, void *out_mask, void *out_types);

/* UTF-8 text of ids, malloc'ed into *out (NUL-terminated). An id outside the vocabulary is HA_ERR_VALUE. */
ha_status ha_tokenizer_decode(const ha_tokenizer *tokenizer, const int32_t *ids, size_t n, int skip_special_tokens,
                              char **out, size_t *out_length, ha_error *err);

/* The normalizer alone (no added tokens): malloc'ed UTF-8. */
ha_status ha_tokenizer_normalize(const ha_tokenizer *tokenizer, ha_text text, char **out, size_t *out_length, ha_error *err);
/* The pre-tokenizer alone (no normalizer, no added tokens): *out (n, 2), malloc'ed, begin and end of each piece in code points of the text. */
ha_status ha_tokenizer_pre_tokenize(const ha_tokenizer *tokenizer, ha_text text, int32_t **out, size_t *n, ha_error *err);

size_t ha_tokenizer_vocab_size(const ha_tokenizer *tokenizer);              /* with added tokens: ids are below it, some may have no token */
int32_t ha_tokenizer_pad_id(const ha_tokenizer *tokenizer);                 /* what the file pads with; -1: it does not say */
int32_t ha_tokenizer_token_to_id(const ha_tokenizer *tokenizer, const char *token, size_t length);     /* -1: none */
const char *ha_tokenizer_id_to_token(const ha_tokenizer *tokenizer, int32_t id, size_t *length);       /* NULL: none */
/* The raw bytes that byte-level decoding gives for one token (what a stop string is matched against); special tokens give none (length 0). */
const uint8_t *ha_tokenizer_token_bytes(const ha_tokenizer *tokenizer, int32_t id, size_t *length);

#endif
