/* The conventions that stand beside a vocabulary or a sentencepiece model without tokenizer.json: which class prepares the text, its options, its special and added tokens. Read from
 * tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json as transformers (version 4) reads them. */
#ifndef HARMAUG_TOKENIZER_CONVENTIONS_H
#define HARMAUG_TOKENIZER_CONVENTIONS_H

#include "io/json.h"
#include "tokenizer/pipeline.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

typedef struct ha_conventions {     /* each NULL when the file is not there */
    ha_json *config;                /* tokenizer_config.json */
    ha_json *map;                   /* special_tokens_map.json; not read where the configuration lists added tokens itself */
    ha_json *added;                 /* added_tokens.json; likewise */
    ha_json *model;                 /* config.json */
    uint8_t digests[4][32];         /* SHA-256 of the files that were read, else 0 */
} ha_conventions;

/* Reads what lies in the folder of `path`. The caller closes *out (zeroed by open), whatever the outcome. */
ha_status ha_conventions_open(const char *path, ha_conventions *out, ha_error *err);
void ha_conventions_close(ha_conventions *conventions);

/* The class that the configuration names, without "Fast", or what config.json implies; "" when neither says. */
ha_status ha_conventions_class(const ha_conventions *c, char out[64], ha_error *err);

/* An option of tokenizer_config.json. */
ha_status ha_conventions_bool(const ha_conventions *c, const char *key, int fallback, int *out, ha_error *err);

/* A member of the root; NULL: it is not there, or there is no file. */
const ha_json_node *ha_conventions_member(const ha_json *json, const char *key);

/* A token as a file has it: a string, an object with "content", or the key of added_tokens.json (node NULL). */
typedef struct ha_written { const ha_json *json; const ha_json_node *node; const char *text; size_t length; } ha_written;

/* The options that an object has; a token that is special already stays so. `normalized`: what it is when the object does not say, -1: when it is not special. */
ha_status ha_written_options(ha_written w, int normalized, ha_added_token *out, ha_error *err);

typedef struct ha_listed { uint64_t id; ha_written w; } ha_listed;

/* "added_tokens_decoder", which maps ids to tokens, or added_tokens.json, texts to ids: *out (malloc'ed, the caller's whatever the outcome) in order of id. */
ha_status ha_conventions_listed(const ha_conventions *c, ha_listed **out, size_t *n, ha_error *err);
/* HA_ERR_FORMAT: the id is not the token's place in the vocabulary, nor its end. */
ha_status ha_listed_check(const ha_listed *listed, const ha_vocab *vocab, ha_error *err);

/* A special token of the class: its key, its text where no file says (NULL: none), whether a plain string takes the white space before it, whether it
 * must be in the vocabulary already. */
typedef struct ha_special { const char *key, *fallback; int lstrip, required; } ha_special;

/* Adds the listed added tokens, then the class's special tokens (in that order), then the additional ones; what the vocabulary lacks goes to its end.
 * ids (n): of each of the class's, -1 where there is none. */
ha_status ha_conventions_add_tokens(ha_tokenizer *tok, const ha_conventions *c, const ha_special *specials, size_t n, int32_t *ids, ha_error *err);

#endif
