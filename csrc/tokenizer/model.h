/* Models: what turns one piece of text into token ids. WordPiece (Wu et al. 2016, arXiv 1609.08144; longest match first, as in BERT) and
 * byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over bytes (Radford et al. 2019, GPT-2). */
#ifndef HARMAUG_TOKENIZER_MODEL_H
#define HARMAUG_TOKENIZER_MODEL_H

#include "core/strmap.h"
#include "tokenizer/trie.h"

struct ha_cached_word;

/* Tokens by text and by id. */
typedef struct ha_vocab_token { const char *text; size_t length; int32_t id; } ha_vocab_token;

typedef struct ha_vocab {           /* zeroed by the owner */
    ha_vocab_token *tokens;         /* (n_tokens,) in the order in which they came */
    size_t n_tokens, cap_tokens;
    int32_t *by_id;                 /* (n_ids,) index into `tokens`, -1: an id without a token */
    size_t n_ids, cap_ids;
    ha_strmap map;                  /* text -> index into `tokens` */
    struct ha_vocab_chunk *chunks;  /* where the texts lie */
} ha_vocab;

void ha_vocab_free(ha_vocab *vocab);

/* Adds a token; the text (well-formed UTF-8) is copied. HA_ERR_FORMAT: the id is not below `max_ids`, or is another token's.
 * A text that is there already moves to the new id, as in the reference. */
ha_status ha_vocab_add(ha_vocab *vocab, const char *text, size_t length, uint64_t id, size_t max_ids, ha_error *err);

/* -1: none. */
static inline int32_t
ha_vocab_id(const ha_vocab *vocab, const char *text, size_t length)
{
    uint32_t index;
    return ha_strmap_get(&vocab->map, text, length, &index) ? vocab->tokens[index].id : -1;
}

/* NULL (and length 0): none. NUL-terminated. */
static inline const char *
ha_vocab_text(const ha_vocab *vocab, int32_t id, size_t *length)
{
    if (id < 0 || (size_t)id >= vocab->n_ids || vocab->by_id[id] < 0) {
        *length = 0;
        return NULL;
    }
    *length = vocab->tokens[vocab->by_id[id]].length;
    return vocab->tokens[vocab->by_id[id]].text;
}

/* One token of a text: bytes [begin, end) of the normalized text. */
typedef struct ha_token {
    int32_t id;
    uint32_t begin, end;
    int32_t added;              /* 1: an added token */
} ha_token;

typedef struct ha_tokens {      /* zeroed by the owner; reused */
    ha_token *at;
    size_t n, capacity;
} ha_tokens;

void ha_tokens_free(ha_tokens *tokens);
ha_status ha_tokens_reserve(ha_tokens *tokens, size_t extra, ha_error *err);

typedef struct ha_wordpiece {
    ha_trie first, rest;        /* tokens as they are; tokens with the prefix, without it */
    int32_t unk_id;
    size_t max_chars;           /* a longer word is unk */
} ha_wordpiece;

/* Tries over the vocabulary. HA_ERR_FORMAT when unk_id is none. */
ha_status ha_wordpiece_build(const ha_vocab *vocab, const char *prefix, size_t prefix_length, ha_wordpiece *model, ha_error *err);
void ha_wordpiece_free(ha_wordpiece *model);
ha_status ha_wordpiece_encode(const ha_wordpiece *model, const uint8_t *text, size_t begin, size_t end, struct ha_cached_word *cache,
                              ha_tokens *out, ha_error *err);

typedef struct ha_bpe_merge { uint64_t pair; int32_t rank, id; } ha_bpe_merge;      /* rank -1: a free slot */

typedef struct ha_bpe {
    ha_bpe_merge *merges;       /* hash table; n_slots is a power of two */
    size_t n_slots, n_merges;
    uint64_t seed;
    int32_t byte_ids[256];      /* the token of one byte; -1: none */
    int all_bytes;              /* none is missing: unk never happens */
    int32_t unk_id;             /* -1: a byte without a token is dropped */
    int fuse_unk;
    int ignore_merges;          /* a whole word that is a token is that token */
    struct ha_bpe_word *words;  /* with ignore_merges: raw bytes of every token, the short ones in a hash table (n_word_slots, a power of two or 0) */
    size_t n_word_slots;
    ha_trie long_words;         /* and the others */
} ha_bpe;

typedef struct ha_bpe_symbol { int32_t id; int32_t prev, next; uint32_t length; } ha_bpe_symbol;
typedef struct ha_bpe_entry { int32_t rank; uint32_t at; int32_t id; } ha_bpe_entry;

typedef struct ha_bpe_scratch {     /* zeroed by the owner; one per thread */
    ha_bpe_symbol *symbols;
    size_t cap_symbols;
    ha_bpe_entry *heap;
    size_t cap_heap;
} ha_bpe_scratch;

void ha_bpe_scratch_free(ha_bpe_scratch *scratch);

/* Room for n merges, then n times ha_bpe_add_merge in order of rank. Equal pairs keep the later rank, as in the reference. */
ha_status ha_bpe_reserve(ha_bpe *model, size_t n, ha_error *err);
void ha_bpe_add_merge(ha_bpe *model, int32_t left, int32_t right, int32_t merged);
/* The same with a rank of the caller's, which several pairs may share. */
void ha_bpe_add_ranked(ha_bpe *model, int32_t left, int32_t right, int32_t rank, int32_t merged);
/* The same by text: HA_ERR_FORMAT "merges[i]: ..." when a half or what they make together is not in the vocabulary. */
ha_status ha_bpe_add_merge_text(ha_bpe *model, const ha_vocab *vocab, size_t i, const char *const half[2], const size_t length[2], ha_error *err);
void ha_bpe_free(ha_bpe *model);
/* With ignore_merges: the tokens of whole words, which it sorts in place. Once. */
ha_status ha_bpe_build_words(ha_bpe *model, ha_trie_key *words, size_t n, ha_error *err);
/* `cache` (see word_cache.h) may be NULL. */
ha_status ha_bpe_encode(const ha_bpe *model, const uint8_t *text, size_t begin, size_t end, struct ha_cached_word *cache, ha_bpe_scratch *scratch,
                        ha_tokens *out, ha_error *err);

/* GPT-2's map between bytes and printable characters (bytes_to_unicode of its encoder.py): a byte's code point, and a code point's byte or -1. */
uint32_t ha_byte_to_char(uint8_t byte);
int ha_char_to_byte(uint32_t c);

#endif
