/* Models: what turns one piece of text into token ids. WordPiece (Wu et al. 2016, arXiv 1609.08144; longest match first, as in BERT),
 * byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over bytes (Radford et al. 2019, GPT-2), and the unigram language model (Kudo 2018,
 * arXiv 1804.10959). */
#ifndef HARMAUG_TOKENIZER_MODEL_H
#define HARMAUG_TOKENIZER_MODEL_H

#include "tokenizer/pulse.h"
#include "tokenizer/trie.h"

/* Tokens by text and by id. */
typedef struct ha_vocab_token { uint32_t at, length; int32_t id; } ha_vocab_token;      /* its text: ha_vocab.text + at */
typedef struct ha_vocab_slot { uint32_t hash, token; } ha_vocab_slot;                   /* token: index into `tokens` plus 1; 0: a free slot */

typedef struct ha_vocab {           /* zeroed by the owner */
    ha_vocab_token *tokens;         /* (n_tokens,) in the order in which they came */
    size_t n_tokens, cap_tokens;
    int32_t *by_id;                 /* (n_ids,) index into `tokens`, -1: an id without a token */
    size_t n_ids, cap_ids;
    char *text;                     /* every token's, NUL-terminated, below 2^32 bytes; it moves while tokens are added */
    size_t n_text, cap_text;
    ha_vocab_slot *slots;           /* by text: open addressing, a power of two of slots, at most half of them taken */
    size_t n_slots;
    uint64_t hash_key[2];
    int32_t moved_from;             /* the id that the last token to move had before */
} ha_vocab;

void ha_vocab_free(ha_vocab *vocab);

/* Adds a token; the text (well-formed UTF-8) is copied. HA_ERR_FORMAT: the id is not below `max_ids`, or is another token's.
 * A text that is there already moves to the new id, as in the reference. */
ha_status ha_vocab_add(ha_vocab *vocab, const char *text, size_t length, uint64_t id, size_t max_ids, ha_error *err);

/* -1: none. */
int32_t ha_vocab_id(const ha_vocab *vocab, const char *text, size_t length);

/* NULL (and length 0): none. NUL-terminated; valid until another token is added. */
static inline const char *
ha_vocab_text(const ha_vocab *vocab, int32_t id, size_t *length)
{
    if (id < 0 || (size_t)id >= vocab->n_ids || vocab->by_id[id] < 0) {
        *length = 0;
        return NULL;
    }
    const ha_vocab_token *token = &vocab->tokens[vocab->by_id[id]];
    *length = token->length;
    return vocab->text + token->at;
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

/* Ids alone, where nobody asks for places. */
typedef struct ha_ids {         /* zeroed by the owner; reused */
    int32_t *at;
    size_t n, capacity;
} ha_ids;

void ha_ids_free(ha_ids *ids);
ha_status ha_ids_reserve(ha_ids *ids, size_t extra, ha_error *err);

/* What a word of a piece of text is asked of first (word_table.h). Zeroed: no words. */
typedef struct ha_word_table {
    struct ha_word_line *lines;
    size_t n_lines;
    uint64_t seed;
} ha_word_table;

typedef struct ha_wordpiece {
    ha_trie first, rest;        /* tokens as they are; tokens with the prefix, without it */
    int32_t unk_id;
    size_t max_chars;           /* a longer word is unk */
} ha_wordpiece;

/* Tries over the vocabulary. HA_ERR_FORMAT when unk_id is none. */
ha_status ha_wordpiece_build(const ha_vocab *vocab, const char *prefix, size_t prefix_length, ha_wordpiece *model, ha_error *err);
void ha_wordpiece_free(ha_wordpiece *model);
ha_status ha_wordpiece_encode(const ha_wordpiece *model, const uint8_t *text, size_t begin, size_t end, ha_tokens *out, ha_error *err);

typedef struct ha_merge { int32_t left, right, merged; } ha_merge;      /* merged -1: what the two make is not in the vocabulary */
typedef struct ha_bpe_merge { uint64_t pair; int32_t rank, id; } ha_bpe_merge;      /* rank -1: a free slot */

/* Where a symbol stands in its word: bits, so 3 is the last of several. */
enum { HA_BPE_GOES_ON = 1, HA_BPE_ENDS = 2, HA_BPE_PLACES = 4 };

/* How tokens are written that go on a word, and those that end one (continuing_subword_prefix, end_of_word_suffix). Zeroed: like any other. */
typedef struct ha_affixes { const char *prefix, *suffix; size_t prefix_length, suffix_length; } ha_affixes;

typedef struct ha_bpe {
    ha_bpe_merge *merges;       /* hash table; n_slots is a power of two */
    size_t n_slots, n_merges;
    uint64_t seed;
    int characters;             /* symbols begin as characters of the text, else as bytes */
    int affixes;                /* tokens that go on a word or end it are written with a prefix or suffix: a symbol's token depends on its place */
    ha_trie chars[HA_BPE_PLACES];           /* with characters: the tokens of one character, without affixes [0] alone */
    int byte_fallback;          /* with characters and no affixes: one without a token is the tokens of its bytes, when all of them have one */
    int32_t byte_ids[HA_BPE_PLACES][256];   /* the token of one byte, without affixes [0] alone (with characters: "<0x41>" in [0]); -1: none */
    int all_bytes;              /* without characters: none is missing, unk never happens */
    int32_t unk_id;             /* -1: a byte or character without a token is dropped */
    int fuse_unk;
    int ignore_merges;          /* a whole word that is a token is that token */
    ha_trie long_words;         /* with ignore_merges: the tokens that are too long for a word table, as the text has them */
} ha_bpe;

typedef struct ha_bpe_symbol { int32_t id; int32_t prev, next; uint32_t length; } ha_bpe_symbol;
typedef struct ha_bpe_entry { int32_t rank; uint32_t at; int32_t id; } ha_bpe_entry;

typedef struct ha_bpe_scratch {     /* zeroed by the owner; one per thread */
    ha_bpe_symbol *symbols;
    size_t cap_symbols;
    ha_bpe_entry *heap;
    size_t cap_heap;
    ha_pulse *pulse;                /* NULL: never stopped */
} ha_bpe_scratch;

/* A heap of n entries, the lowest rank on top, of equal ones the leftmost. The caller has the room. */
void ha_bpe_heap_push(ha_bpe_entry *heap, size_t *n, ha_bpe_entry entry);
ha_bpe_entry ha_bpe_heap_pop(ha_bpe_entry *heap, size_t *n);

void ha_bpe_scratch_free(ha_bpe_scratch *scratch);

/* Room for n merges, then n times ha_bpe_add_merge in order of rank. Equal pairs keep the later rank, as in the reference. */
ha_status ha_bpe_reserve(ha_bpe *model, size_t n, ha_error *err);
void ha_bpe_add_merge(ha_bpe *model, int32_t left, int32_t right, int32_t merged);
/* The same with a rank of the caller's, which several pairs may share. */
void ha_bpe_add_ranked(ha_bpe *model, int32_t left, int32_t right, int32_t rank, int32_t merged);
/* The ids of merge i, by text: HA_ERR_FORMAT "merges[i]: ..." when a half is not in the vocabulary. The merged token is looked for at id `guess` first (-1: no
 * guess): files have them in order. */
ha_status ha_merge_find(const ha_vocab *vocab, size_t i, const char *const half[2], const size_t length[2], int32_t guess, ha_merge *out, ha_error *err);
/* Finds the merged token of two halves of which the right one is written with a prefix of so many bytes. HA_ERR_FORMAT when it is shorter. */
ha_status ha_merge_without_prefix(const ha_vocab *vocab, size_t i, size_t prefix_length, ha_merge *merge, ha_error *err);
/* Adds a merge whose token must be there. */
ha_status ha_bpe_add_found(ha_bpe *model, size_t i, ha_merge merge, ha_error *err);
/* ha_merge_find and ha_bpe_add_found. */
ha_status ha_bpe_add_merge_text(ha_bpe *model, const ha_vocab *vocab, size_t i, const char *const half[2], const size_t length[2], ha_error *err);
/* Reads the tokens of single bytes from the first n_tokens tokens of the vocabulary: those of byte-level characters, or for a model of characters those of one
 * character and "<0x00>" to "<0xFF>". */
ha_status ha_bpe_read_bytes(ha_bpe *model, const ha_vocab *vocab, size_t n_tokens, ha_affixes affixes, ha_error *err);
ha_status ha_bpe_read_characters(ha_bpe *model, const ha_vocab *vocab, size_t n_tokens, ha_affixes affixes, ha_error *err);
void ha_bpe_free(ha_bpe *model);
/* Of a word that no word table has. */
ha_status ha_bpe_encode(const ha_bpe *model, const uint8_t *text, size_t begin, size_t end, ha_bpe_scratch *scratch, ha_tokens *out, ha_error *err);

typedef struct ha_unigram {
    ha_trie trie;               /* every token, byte tokens and special ones too, as in the reference */
    double *scores;             /* (vocab.n_ids,) logarithms of probabilities, all finite; owned */
    double unk_score;
    int32_t unk_id;             /* -1: a character that is no token is an error */
    int byte_fallback;          /* an unknown run is the tokens "<0x41>" of its bytes, when all of them have one */
    int32_t byte_ids[256];      /* -1: none */
    double bound[256];          /* what the rest of a word can at most add to a path when it begins with this byte; HUGE_VAL: no bound is known */
} ha_unigram;

enum { HA_UNIGRAM_NONE = -1 };

typedef struct ha_unigram_node {
    double score;               /* of the best path to this byte */
    uint32_t begin;             /* its last token */
    int32_t id;
    uint32_t end;               /* the token of the best path that begins here */
    int32_t token;
} ha_unigram_node;

/* A raw word and what it came to (unigram_text.c). */
enum { HA_CACHED_IDS = 3, HA_WORD_CACHE_BITS = 14, HA_WORD_CACHE_WAYS = 2 };
typedef struct ha_cached_word {
    uint64_t word[2];           /* its bytes, zero-padded */
    int32_t ids[HA_CACHED_IDS];
    uint32_t n;                 /* 0: a free slot */
} ha_cached_word;

typedef struct ha_unigram_scratch {     /* zeroed by the owner; one per thread */
    ha_unigram_node *nodes;
    size_t capacity;
    ha_cached_word *cache;      /* (1 << HA_WORD_CACHE_BITS, HA_WORD_CACHE_WAYS), the word last seen first; NULL: none */
    ha_pulse *pulse;            /* NULL: never stopped */
} ha_unigram_scratch;

void ha_unigram_scratch_free(ha_unigram_scratch *scratch);
/* Asks for a cache; without the memory for it there is none. */
void ha_unigram_scratch_use_cache(ha_unigram_scratch *scratch);
/* The trie and byte tokens of a vocabulary without gaps whose scores are in the model. */
ha_status ha_unigram_build(const ha_vocab *vocab, ha_unigram *model, ha_error *err);
/* Sets model->bound, from the scores of the first n_ids ids; once, when scores and unk_score are there. */
void ha_unigram_find_bounds(ha_unigram *model, const ha_vocab *vocab, size_t n_ids);
void ha_unigram_free(ha_unigram *model);
/* The tokens of one word of 1 to HA_SHORT_WORD bytes behind a sign of its own, which is not part of `word`; their places are not set. Room for n + 1 of them is
 * reserved. 0: some of it is unknown, and ha_unigram_encode must do it. */
enum { HA_SHORT_WORD = 62 };
typedef struct ha_unigram_sign { uint32_t link; int32_t id; int found; } ha_unigram_sign;    /* where the trie stands behind it; the token that it is, or -1 */
ha_unigram_sign ha_unigram_find_sign(const ha_unigram *model, const uint8_t *sign, size_t length);
int ha_unigram_encode_short(const ha_unigram *model, const ha_unigram_sign *sign, const uint8_t *word, size_t n, ha_tokens *out);
ha_status ha_unigram_encode(const ha_unigram *model, const uint8_t *text, size_t begin, size_t end, ha_unigram_scratch *scratch, ha_tokens *out, ha_error *err);

/* GPT-2's map between bytes and printable characters (bytes_to_unicode of its encoder.py): a byte's code point, and a code point's byte or -1. */
uint32_t ha_byte_to_char(uint8_t byte);
int ha_char_to_byte(uint32_t c);

#endif
