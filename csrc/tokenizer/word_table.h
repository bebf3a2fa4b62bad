/* The tokens that are whole words of up to 15 bytes: what most words of a text are. Lines of 64 bytes of three words each, so that a word costs one line of memory;
 * a word whose line is full goes into the next that is not. */
#ifndef HARMAUG_TOKENIZER_WORD_TABLE_H
#define HARMAUG_TOKENIZER_WORD_TABLE_H

#include "tokenizer/model.h"
#include "tokenizer/word_cache.h"

enum { HA_WORDS_PER_LINE = 3 };

typedef struct ha_word_line {
    uint64_t low[HA_WORDS_PER_LINE], high[HA_WORDS_PER_LINE];      /* ha_word_key; taken from the first on, high 0: free */
    int32_t ids[HA_WORDS_PER_LINE];
    uint32_t zero;
} ha_word_line;

/* Words (their bytes are read while building alone): those of more than 15 bytes, which are moved to the end, are not taken; *n_short says how many are. */
ha_status ha_word_table_build(ha_word_table *table, ha_trie_key *words, size_t n, size_t *n_short, ha_error *err);
void ha_word_table_free(ha_word_table *table);

/* Which line the word begins its search in. The table is not empty. */
static inline const ha_word_line *
ha_word_table_line(const ha_word_table *table, uint64_t hash)
{
    return &table->lines[(hash >> 32) * table->n_lines >> 32];
}

/* The word's id, or -1; `line` from above. Some line of every table has a free place, which ends the search. */
static inline int32_t
ha_word_table_find(const ha_word_table *table, const ha_word_line *line, ha_word_key key)
{
    for (;;) {
        int32_t id = -1;        /* without a branch for each: which of them it is cannot be foretold */
        for (int i = 0; i < HA_WORDS_PER_LINE; i++) {
            id = ((line->low[i] ^ key.low) | (line->high[i] ^ key.high)) == 0 ? line->ids[i] : id;
        }
        if (id >= 0 || line->high[HA_WORDS_PER_LINE - 1] == 0) {
            return id;
        }
        line = line + 1 < table->lines + table->n_lines ? line + 1 : table->lines;
    }
}

#endif
