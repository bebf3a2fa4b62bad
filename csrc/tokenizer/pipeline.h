/* The parts of a tokenizer, shared by its loaders and by encoding and decoding. Private to csrc/tokenizer/. */
#ifndef HARMAUG_TOKENIZER_PIPELINE_H
#define HARMAUG_TOKENIZER_PIPELINE_H

#include "tokenizer/model.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/word_cache.h"

/* ---- added tokens: found in the text before the model sees it ---- */

typedef struct ha_added_token {
    int32_t id;
    int single_word, lstrip, rstrip, normalized, special;
    size_t content, length;         /* into ha_added_tokens.text: as the file has it */
    size_t written_at, written;     /* as decoding writes it: into ha_added_tokens.normal when it is normalized, else into .text */
    int skipped;                    /* left out by decoding without special tokens */
} ha_added_token;

typedef struct ha_added_tokens {
    ha_added_token *at;
    size_t n, capacity;
    char *text;
    size_t n_text, cap_text;
    char *normal;
    int32_t *by_id;                 /* (n_by_id,) index into `at` or -1 */
    size_t n_by_id;
    ha_trie raw, normalized;        /* values are indices into `at` */
    uint8_t first_raw[256], first_normalized[256];      /* 1: some token starts with this byte */
    int16_t lone_first[2];          /* of the raw ones and of the normalized: the one byte with which all start, -1: there are several */
} ha_added_tokens;

void ha_added_tokens_free(ha_added_tokens *added);
ha_status ha_added_tokens_add(ha_added_tokens *added, const char *content, ha_added_token token, ha_error *err);
/* Builds the tries; once, when all are there. Normalized tokens are matched by the normal form of their text. */
ha_status ha_added_tokens_build(ha_added_tokens *added, const ha_normalizer *normalizer, ha_error *err);
/* NULL: none. Once built. */
const ha_added_token *ha_added_tokens_of_id(const ha_added_tokens *added, int32_t id);

static inline const char *
ha_added_token_written(const ha_added_tokens *added, const ha_added_token *t, size_t *length)
{
    *length = t->written;
    return (t->normalized ? added->normal : added->text) + t->written_at;
}

/* Cuts bytes [begin, end) of a text at the added tokens of one of the two tries; with skip_special the special ones are text like any other. */
ha_status ha_added_tokens_split(const ha_added_tokens *added, int normalized, int skip_special, const uint8_t *text, size_t begin, size_t end,
                                ha_pieces *out, ha_error *err);

/* ---- post-processor: truncation, template, positions ---- */

typedef enum ha_template_kind { HA_TEMPLATE_A, HA_TEMPLATE_B, HA_TEMPLATE_SPECIAL } ha_template_kind;

typedef struct ha_template_item { ha_template_kind kind; uint8_t type_id; int32_t id; } ha_template_item;

#define HA_MAX_TEMPLATE 64

typedef struct ha_template { ha_template_item items[HA_MAX_TEMPLATE]; size_t n; } ha_template;

typedef struct ha_post_processor {
    ha_template single, pair;
    int has_template;
    int trim_offsets;               /* spans leave out the white space of byte-level tokens ... */
    int keep_prefix_space;          /* ... but not a single one that leads the text (add_prefix_space) */
    int windows_type_0;             /* RoBERTa: windows after the first have type id 0, not 0 and 1 (beside special tokens) */
} ha_post_processor;

/* The template without special tokens, and those of BERT ([CLS] A [SEP] B [SEP]) and RoBERTa (<s> A </s></s> B </s>). */
void ha_post_processor_none(ha_post_processor *post);
void ha_post_processor_bert(ha_post_processor *post, int32_t cls, int32_t sep, int roberta);

/* bos A eos, and for a pair bos A eos bos B eos with `pair_type` from the second bos on; an id of -1 is left out. */
void ha_post_processor_bos_eos(ha_post_processor *post, int32_t bos, int32_t eos, uint8_t pair_type);

/* Tokens that the template adds. */
size_t ha_template_added(const ha_template *t);

/* Which tokens of a and b (n_b SIZE_MAX: no pair) stay: [*a_begin, *a_end), [*b_begin, *b_end). HA_ERR_VALUE when the strategy can't meet the limit. */
typedef struct ha_kept { size_t a_begin, a_end, b_begin, b_end; } ha_kept;
ha_status ha_truncate(const ha_post_processor *post, const ha_encode_options *options, size_t n_a, size_t n_b, ha_kept *kept, ha_error *err);

/* ---- decoder ---- */

/* A step turns a list of tokens into another, as the component of that name does in Hugging Face `tokenizers`; what is left is joined. */
typedef enum ha_decoder_kind {
    HA_DECODER_WORDPIECE,           /* from: the prefix of a token that goes on a word */
    HA_DECODER_BYTE_LEVEL,
    HA_DECODER_METASPACE,           /* a sign is a space, or in the first token nothing unless its prepend is HA_PREPEND_NEVER */
    HA_DECODER_REPLACE,             /* from -> to */
    HA_DECODER_BPE,                 /* the same, but nothing in the last token's place of `from`: a suffix of words and a space */
    HA_DECODER_BYTE_FALLBACK,
    HA_DECODER_FUSE,
    HA_DECODER_STRIP                /* from: one character, up to `start` times at the beginning of a token and `stop` times at its end */
} ha_decoder_kind;

typedef struct ha_decoder_step {
    ha_decoder_kind kind;
    int cleanup;                    /* WORDPIECE */
    size_t start, stop;             /* STRIP */
    const char *from, *to;          /* owned by the decoder */
    size_t from_length, to_length;
    ha_metaspace metaspace;
} ha_decoder_step;

#define HA_MAX_DECODERS 16

typedef struct ha_token_decoder { ha_decoder_step steps[HA_MAX_DECODERS]; size_t n; } ha_token_decoder;     /* n 0: tokens are joined by spaces */

void ha_token_decoder_free(ha_token_decoder *decoder);
/* Adds a step; its texts are copied. HA_ERR_FORMAT when there are too many. */
ha_status ha_token_decoder_add(ha_token_decoder *decoder, ha_decoder_step step, ha_error *err);
ha_status ha_decoder_set_wordpiece(ha_token_decoder *decoder, const char *prefix, size_t length, int cleanup, ha_error *err);
/* Replace(U+2581, " "), ByteFallback, Fuse and, with `strip`, Strip(" ", 1, 0): how Llama-2 and Gemma decode. */
ha_status ha_token_decoder_add_fallback(ha_token_decoder *decoder, int strip, ha_error *err);

/* ---- the whole ---- */

typedef enum ha_model_kind { HA_MODEL_WORDPIECE, HA_MODEL_BPE, HA_MODEL_UNIGRAM, HA_MODEL_SENTENCEPIECE } ha_model_kind;

/* How a Unigram tokenizer's texts are read word by word (unigram_text.c); on 0: not. */
typedef struct ha_word_plan {
    int on, strip_left, strip_right;
    const ha_norm_step *precompiled;    /* NULL: none */
    uint8_t ascii[128];                 /* what each byte is to a word */
    ha_unigram_sign sign;
    int32_t tail[128];                  /* the token of a sign of punctuation that may end a word; -1: none */
    uint64_t joins[128][2];             /* bit b of row a: some token of the vocabulary holds the bytes a b */
} ha_word_plan;

/* What encoding keeps from batch to batch: the only part of a tokenizer that changes. */
typedef struct ha_worker_pool ha_worker_pool;

ha_worker_pool *ha_worker_pool_new(void);               /* NULL: no memory */
void ha_worker_pool_free(ha_worker_pool *pool);

struct ha_tokenizer {
    ha_vocab vocab;                 /* of the model and of the added tokens */
    ha_added_tokens added;
    ha_normalizer normalizer;
    ha_pre_tokenizer pre;
    ha_model_kind model_kind;
    size_t n_model_tokens, n_model_ids;     /* of the model itself, without added tokens: ids are below n_model_ids */
    ha_wordpiece wordpiece;
    ha_bpe bpe;
    ha_unigram unigram;
    ha_sentencepiece sentencepiece;     /* takes the place of normalizer, pre-tokenizer and added tokens too */
    ha_word_plan words;
    ha_word_table table;            /* of WordPiece, and of BPE with ignore_merges: the tokens of whole words */
    ha_post_processor post;
    ha_token_decoder decoder;
    int added_are_text;             /* byte-level decoding writes added tokens as they are, even where their characters stand for bytes */
    int32_t pad_id;                 /* -1: the file says none */
    ha_worker_pool *pool;
    uint8_t *raw;                   /* raw bytes of every token, see ha_tokenizer_token_bytes */
    size_t *raw_at;                 /* (vocab.n_ids + 1,) */
    struct ha_tables *tables;       /* NULL, or what the large tables were read into and borrow from (tables.h): no token can be added */
    int tables_kind;                /* the ha_model_kind that they are of */
    const char *cache_folder;       /* while opening: where files of tables lie, or NULL */
    ha_error cache_note;            /* why a file of tables was not used or not written; empty: no reason to complain */
};

/* Frees all that is in a tokenizer and zeroes it, but for cache_folder. */
void ha_tokenizer_clear(ha_tokenizer *tok);

/* Loaders: fill a zeroed tokenizer, which the caller frees on failure. Messages start with the path. */
ha_status ha_tokenizer_load_json(ha_tokenizer *tok, const char *path, ha_error *err);
ha_status ha_tokenizer_load_vocab_txt(ha_tokenizer *tok, const char *path, ha_error *err);
ha_status ha_tokenizer_load_vocab_json(ha_tokenizer *tok, const char *path, ha_error *err);      /* ".../vocab.json", with merges.txt beside it */
ha_status ha_tokenizer_load_tiktoken(ha_tokenizer *tok, const char *path, const ha_open_options *options, ha_error *err);
ha_status ha_tokenizer_load_gguf(ha_tokenizer *tok, const char *path, ha_error *err);
ha_status ha_tokenizer_load_spm(ha_tokenizer *tok, const char *path, ha_error *err);         /* as transformers converts it */
ha_status ha_tokenizer_load_spm_own(ha_tokenizer *tok, const char *path, ha_error *err);     /* as sentencepiece reads it */

/* Fills tok->raw and tok->raw_at. */
ha_status ha_tokenizer_build_raw(ha_tokenizer *tok, ha_error *err);

/* What turns the pieces of a text into tokens. */
typedef struct ha_word_run {
    const ha_tokenizer *tok;
    const uint8_t *text;            /* with HA_TEXT_PAD bytes behind it */
    ha_word_entry *cache;           /* NULL: none */
    ha_bpe_scratch *bpe;
    ha_unigram_scratch *unigram;
    ha_tokens *tokens;              /* where they go; with `ids` scratch */
    ha_ids *ids;                    /* NULL: places are wanted */
    ha_pulse *pulse;                /* NULL: never stopped */
} ha_word_run;

/* Appends the tokens of the pieces, which `cut` cuts into words (NULL: they are the words). */
ha_status ha_encode_pieces(const ha_word_run *run, const ha_pieces *pieces, const ha_pre_step *cut, ha_error *err);

/* Sets tok->words; once all parts are there. */
void ha_unigram_plan(ha_tokenizer *tok);
/* The tokens of a text, without their places; *done 0: the text is one for the general path. `pieces` is scratch. */
ha_status ha_unigram_encode_text(const ha_tokenizer *tok, const uint8_t *text, size_t n, int skip_special, ha_norm_scratch *norm,
                                 ha_unigram_scratch *scratch, ha_pieces *pieces, ha_tokens *out, int *done, ha_error *err);

/* What all loaders end with: tries of added tokens, raw bytes, the model's derived tables. */
ha_status ha_tokenizer_finish(ha_tokenizer *tok, ha_error *err);

#endif
