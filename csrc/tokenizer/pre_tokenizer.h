/* Pre-tokenizers: what cuts a normalized text into the pieces that the model sees one by one. */
#ifndef HARMAUG_TOKENIZER_PRE_TOKENIZER_H
#define HARMAUG_TOKENIZER_PRE_TOKENIZER_H

#include "tokenizer/text_buf.h"

/* A part of a text; added_id >= 0: it is that added token and no component touches it. */
typedef struct ha_piece {
    uint32_t begin, end;
    int32_t added_id;
} ha_piece;

typedef struct ha_pieces {      /* zeroed by the owner; reused */
    ha_piece *at;
    size_t n, capacity;
} ha_pieces;

void ha_pieces_free(ha_pieces *pieces);
ha_status ha_pieces_reserve(ha_pieces *pieces, size_t extra, ha_error *err);
ha_status ha_pieces_push(ha_pieces *pieces, size_t begin, size_t end, int32_t added_id, ha_error *err);

typedef enum ha_pre_kind {
    HA_PRE_BERT,                    /* white space removed, punctuation isolated */
    HA_PRE_DIGITS,                  /* runs of numeric characters apart */
    HA_PRE_DIGITS_INDIVIDUAL,       /* each of them */
    HA_PRE_WHITE_SPACE,             /* WhitespaceSplit: white space removed */
    HA_PRE_WORDS,                   /* Whitespace: runs of \\w and of what is neither \\w nor white space */
    HA_PRE_PUNCTUATION,
    HA_PRE_SPACES,                  /* Split at " " */
    HA_PRE_METASPACE,
    HA_PRE_PREFIX_SPACE,            /* ByteLevel add_prefix_space: a space before each piece that has none */
    HA_PRE_GPT2,                    /* the regular expressions of these models, every match a piece */
    HA_PRE_LLAMA3,
    HA_PRE_QWEN2,
    HA_PRE_CL100K,                  /* as HA_PRE_LLAMA3, but white space that ends the text is one piece, line ends or not */
    HA_PRE_O200K,
    HA_PRE_TEKKEN
} ha_pre_kind;

/* What becomes of a delimiter. */
typedef enum ha_split_behavior {
    HA_SPLIT_REMOVED,
    HA_SPLIT_ISOLATED,              /* each a piece */
    HA_SPLIT_MERGED_WITH_PREVIOUS,  /* part of the piece before it, or after it; a piece where that is a delimiter too */
    HA_SPLIT_MERGED_WITH_NEXT,
    HA_SPLIT_CONTIGUOUS             /* runs are one piece */
} ha_split_behavior;

/* Metaspace: the replacement is prepended to each piece that does not begin with it, or to the one at the beginning of the original text, or to none. */
typedef enum ha_prepend { HA_PREPEND_ALWAYS, HA_PREPEND_FIRST, HA_PREPEND_NEVER } ha_prepend;

typedef struct ha_metaspace {
    uint8_t sign[4];                /* UTF-8 of the replacement */
    uint32_t length;
    ha_prepend prepend;
    int split;                      /* cut before each sign */
} ha_metaspace;

/* The text that `length` bytes of a token stand for, written to `out` (of `length` bytes); `first`: it is the first of its text. Returns its length. */
size_t ha_metaspace_decode(const ha_metaspace *metaspace, int first, const char *text, size_t length, char *out);

typedef struct ha_pre_step {
    ha_pre_kind kind;
    ha_split_behavior behavior;     /* PUNCTUATION, SPACES */
    ha_metaspace metaspace;
} ha_pre_step;

#define HA_MAX_PRE 16

typedef struct ha_pre_tokenizer {
    ha_pre_step steps[HA_MAX_PRE];
    size_t n_steps;
    int needs_origin;               /* some step asks where a piece stands in the original text: texts must be aligned */
    int byte_level;                 /* the model sees bytes, not characters */
} ha_pre_tokenizer;

/* A step without parameters, or with them. */
ha_status ha_pre_tokenizer_add(ha_pre_tokenizer *pre, ha_pre_kind kind, ha_error *err);
ha_status ha_pre_tokenizer_add_step(ha_pre_tokenizer *pre, ha_pre_step step, ha_error *err);

/* The step whose regular expression is `pattern` as HF files write it (Oniguruma's syntax); 1 when there is one. */
int ha_pre_pattern(const char *pattern, size_t length, ha_pre_kind *out);
/* The step of a pattern of the tiktoken library (Rust's syntax), by expression or by name: gpt2, r50k_base, p50k_base, cl100k, cl100k_base, o200k,
 * o200k_base, o200k_harmony, llama3, qwen2, tekken; 1 when there is one. */
int ha_pre_pattern_tiktoken(const char *pattern, size_t length, ha_pre_kind *out);

/* Cuts the next pieces, at most `room` of them, off bytes [*at, end) of s and moves *at behind them; 0 pieces: nothing is left. HA_TEXT_PAD bytes behind `end` can
 * be read. For a step of BERT, and for one of a regular expression, which has a match at every position. */
size_t ha_pre_cut_bert(const uint8_t *s, size_t *at, size_t end, ha_piece *out, size_t room);
size_t ha_pre_cut_pattern(ha_pre_kind kind, const uint8_t *s, size_t *at, size_t end, ha_piece *out, size_t room);

/* The last step when it is such a one, else NULL: pieces can be asked for as they are needed. */
const ha_pre_step *ha_pre_last_cut(const ha_pre_tokenizer *pre);
static inline size_t
ha_pre_cut(const ha_pre_step *step, const uint8_t *s, size_t *at, size_t end, ha_piece *out, size_t room)
{
    return step->kind == HA_PRE_BERT ? ha_pre_cut_bert(s, at, end, out, room) : ha_pre_cut_pattern(step->kind, s, at, end, out, room);
}

/* Cuts *pieces of *text in place by the first n_steps steps. `spare_text` and `spare` are scratch: contents are swapped with them. */
ha_status ha_pre_tokenize(const ha_pre_tokenizer *pre, size_t n_steps, ha_text_buf *text, ha_pieces *pieces,
                          ha_text_buf *spare_text, ha_pieces *spare, ha_error *err);

#endif
