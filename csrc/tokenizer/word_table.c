#include "tokenizer/word_table.h"

#include "core/hash.h"
#include "core/pages.h"

void
ha_word_table_free(ha_word_table *table)
{
    ha_pages_free(table->lines, table->n_lines * sizeof(*table->lines));
    *table = (ha_word_table){0};
}

ha_status
ha_word_table_build(ha_word_table *table, ha_trie_key *words, size_t n, size_t *n_short, ha_error *err)
{
    size_t taken = 0;
    for (size_t i = 0; i < n; i++) {
        if (words[i].length <= HA_CACHED_BYTES) {
            const ha_trie_key swap = words[i];
            words[i] = words[taken];
            words[taken++] = swap;
        }
    }
    *n_short = taken;
    table->n_lines = taken / 2 + 1;         /* two words a line on average: a third of them are full */
    table->lines = table->n_lines > UINT32_MAX ? NULL : ha_pages_alloc(table->n_lines * sizeof(*table->lines));
    if (table->lines == NULL) {
        table->n_lines = 0;
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n);
    }
    uint64_t seed[2];
    ha_hash_key(seed, table->lines);
    table->seed = seed[0] ^ seed[1];        /* so that a file can't choose words that collide */
    for (size_t i = 0; i < taken; i++) {
        const ha_word_key key = ha_word_key_of((const uint8_t *)words[i].text, words[i].length);
        ha_word_line *line = table->lines + (ha_word_table_line(table, ha_word_hash(key, table->seed)) - table->lines);
        size_t at = 0;
        while (line->high[at] != 0) {
            if (++at == HA_WORDS_PER_LINE) {
                line = line + 1 < table->lines + table->n_lines ? line + 1 : table->lines;
                at = 0;
            }
        }
        line->low[at] = key.low, line->high[at] = key.high, line->ids[at] = words[i].value;
    }
    return HA_OK;
}
