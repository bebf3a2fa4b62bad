#define _POSIX_C_SOURCE 200809L
#include "tokenizer/tables.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cache_file.h"
#include "core/pages.h"
#include "core/utf8.h"
#include "tokenizer/word_table.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

#define MAGIC "HaTable2"        /* the digit is the format's version */

enum { MAX_SINKS = 4, MAX_IDS = INT32_MAX / 4 };

typedef enum section {
    VOCAB_TOKENS, VOCAB_BY_ID, VOCAB_TEXT, VOCAB_SLOTS, BPE_MERGES, WORDS, BPE_LONG_WORDS, UNIGRAM_TRIE, UNIGRAM_SCORES, WORDPIECE_FIRST, WORDPIECE_REST, RAW, RAW_AT, N_SECTIONS
} section;

static const size_t element_size[N_SECTIONS] = {
    sizeof(ha_vocab_token), sizeof(int32_t), 1, sizeof(ha_vocab_slot), sizeof(ha_bpe_merge), sizeof(ha_word_line), sizeof(ha_trie_unit), sizeof(ha_trie_unit),
    sizeof(double), sizeof(ha_trie_unit), sizeof(ha_trie_unit), 1, sizeof(size_t),
};

enum { LINE = 64 };     /* every section begins at a multiple of it */

/* How the file begins; the sections follow one after the other. */
typedef struct header {
    _Alignas(LINE) char magic[8];
    uint64_t checksum;              /* of all that follows it */
    uint32_t order, word;           /* 0x01020304 and sizeof(size_t): a file of another machine is none of ours */
    uint64_t counts[N_SECTIONS];    /* elements */
    uint64_t ranges[MAX_SINKS][2];
    uint64_t n_model_tokens, n_model_ids, n_merges, model_kind;
    uint64_t hash_key[2], seed, words_seed;
    double unk_score;
    int32_t byte_ids[256];          /* Unigram's */
} header;

typedef struct ha_tables {
    header *head;                   /* the file as it is, in pages of its own */
    size_t size;
} ha_tables;

static void
free_tables(ha_tables *tables)
{
    if (tables != NULL) {
        ha_pages_free(tables->head, tables->size);
        free(tables);
    }
}

static uint64_t
checksum_header(const header *head)
{
    const size_t from = offsetof(header, order);
    return ha_cache_checksum(0, (const uint8_t *)head + from, sizeof(*head) - from);
}

static size_t
padded(uint64_t count, size_t size)
{
    return ((size_t)count * size + LINE - 1) / LINE * LINE;
}

ha_status
ha_tables_path(const char *folder, const void *source, size_t length, char **out, ha_error *err)
{
    return ha_cache_path(folder, source, length, ".tables2", out, err);
}

/* ---- checks ---- */

static ha_status
bad(ha_error *err, const char *what)
{
    return ha_fail(err, HA_ERR_FORMAT, "%s", what);
}

static int
is_trie(const ha_trie *trie, size_t n_ids)
{
    int good = trie->n_units % 256 == 0 && trie->n_units <= (size_t)1 << 24;
    for (size_t i = 0; i < trie->n_units && good; i++) {
        good = trie->units[i].link >> 8 < trie->n_units && trie->units[i].value >= -1 && trie->units[i].value < (int64_t)n_ids;
    }
    return good;
}

static int
is_power_of_two(size_t n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

static ha_status
check_vocab(const ha_vocab *v, ha_error *err)
{
    size_t taken = 0;
    if (v->n_tokens == 0 || v->n_ids == 0 || v->n_ids > MAX_IDS || v->n_text == 0 || v->n_text > UINT32_MAX || v->text[v->n_text - 1] != '\0'
        || ha_utf8_valid_prefix((const uint8_t *)v->text, v->n_text) < v->n_text) {
        return bad(err, "the vocabulary's texts");
    }
    for (size_t i = 0; i < v->n_tokens; i++) {
        const ha_vocab_token t = v->tokens[i];
        if (t.id < 0 || (size_t)t.id >= v->n_ids || t.at >= v->n_text || t.length >= v->n_text - t.at || v->text[t.at + t.length] != '\0'
            || (t.at > 0 && v->text[t.at - 1] != '\0')) {
            return bad(err, "the vocabulary's tokens");
        }
    }
    for (size_t i = 0; i < v->n_ids; i++) {
        if (v->by_id[i] < -1 || v->by_id[i] >= (int64_t)v->n_tokens) {
            return bad(err, "the vocabulary's ids");
        }
    }
    for (size_t i = 0; i < v->n_slots; i++) {
        taken += v->slots[i].token != 0;
        if (v->slots[i].token > v->n_tokens) {
            return bad(err, "the vocabulary's slots");
        }
    }
    return is_power_of_two(v->n_slots) && taken <= v->n_slots / 2 ? HA_OK : bad(err, "the vocabulary's slots");     /* a search ends at a free one */
}

static ha_status
check_bpe(const ha_bpe *bpe, size_t n_ids, ha_error *err)
{
    size_t taken = 0;
    for (size_t i = 0; i < bpe->n_slots; i++) {
        const ha_bpe_merge m = bpe->merges[i];
        taken += m.rank >= 0;
        if (m.rank < -1 || m.rank == INT32_MAX || (m.rank >= 0 && (m.id < 0 || (size_t)m.id >= n_ids))) {
            return bad(err, "the merges");
        }
    }
    if (bpe->n_slots > 0 && (!is_power_of_two(bpe->n_slots) || taken > bpe->n_slots / 2)) {
        return bad(err, "the merges");
    }
    return is_trie(&bpe->long_words, n_ids) ? HA_OK : bad(err, "the long words of a BPE model");
}

static ha_status
check_words(const ha_word_table *table, size_t n_ids, ha_error *err)
{
    size_t full = 0;        /* a search ends at a line that is not */
    int good = 1;
    for (size_t i = 0; i < table->n_lines; i++) {
        const ha_word_line *line = &table->lines[i];
        full += line->high[HA_WORDS_PER_LINE - 1] != 0;
        for (int k = 0; k < HA_WORDS_PER_LINE; k++) {
            good &= line->ids[k] >= 0 && (size_t)line->ids[k] < n_ids;
        }
    }
    return good && table->n_lines <= UINT32_MAX && (table->n_lines == 0 || full < table->n_lines) ? HA_OK : bad(err, "the whole words");
}

static ha_status
check_unigram(const ha_unigram *unigram, size_t n_scores, size_t n_ids, ha_error *err)
{
    for (size_t i = 0; i < n_scores; i++) {
        if (!isfinite(unigram->scores[i])) {
            return bad(err, "the scores");
        }
    }
    for (size_t i = 0; i < 256; i++) {
        if (unigram->byte_ids[i] < -1 || unigram->byte_ids[i] >= (int64_t)n_ids) {
            return bad(err, "the byte tokens");
        }
    }
    return isfinite(unigram->unk_score) && is_trie(&unigram->trie, n_scores) ? HA_OK : bad(err, "the trie of a Unigram model");
}

static ha_status
check(const ha_tokenizer *tok, const header *head, ha_error *err)
{
    const size_t n_ids = tok->vocab.n_ids;
    TRY(check_vocab(&tok->vocab, err));
    TRY(check_bpe(&tok->bpe, n_ids, err));
    TRY(check_words(&tok->table, n_ids, err));
    TRY(check_unigram(&tok->unigram, head->counts[UNIGRAM_SCORES], n_ids, err));
    if (!is_trie(&tok->wordpiece.first, n_ids) || !is_trie(&tok->wordpiece.rest, n_ids)) {
        return bad(err, "the tries of a WordPiece model");
    }
    if (head->n_model_ids > n_ids || head->n_model_tokens > MAX_IDS || head->n_merges > INT32_MAX / 4
        || (head->model_kind == HA_MODEL_UNIGRAM && head->counts[UNIGRAM_SCORES] < head->n_model_ids)) {
        return bad(err, "the counts");
    }
    int good = head->counts[RAW_AT] == n_ids + 1 && tok->raw_at[n_ids] == head->counts[RAW];
    for (size_t i = 0; i < n_ids && good; i++) {
        good = tok->raw_at[i] <= tok->raw_at[i + 1];
    }
    return good ? HA_OK : bad(err, "the raw bytes");
}

/* ---- reading ---- */

static void
borrow(ha_tables *tables, ha_tokenizer *tok)
{
    const header *head = tables->head;
    void *at[N_SECTIONS];
    uint8_t *next = (uint8_t *)(tables->head + 1);
    for (int i = 0; i < N_SECTIONS; i++) {
        at[i] = head->counts[i] > 0 ? next : NULL;
        next += padded(head->counts[i], element_size[i]);
    }
    tok->vocab = (ha_vocab){.tokens = at[VOCAB_TOKENS], .n_tokens = head->counts[VOCAB_TOKENS], .by_id = at[VOCAB_BY_ID], .n_ids = head->counts[VOCAB_BY_ID],
                            .text = at[VOCAB_TEXT], .n_text = head->counts[VOCAB_TEXT], .slots = at[VOCAB_SLOTS], .n_slots = head->counts[VOCAB_SLOTS],
                            .hash_key = {head->hash_key[0], head->hash_key[1]}};
    tok->bpe.merges = at[BPE_MERGES], tok->bpe.n_slots = head->counts[BPE_MERGES];
    tok->bpe.n_merges = head->n_merges, tok->bpe.seed = head->seed;
    tok->table = (ha_word_table){at[WORDS], head->counts[WORDS], head->words_seed};
    tok->bpe.long_words = (ha_trie){at[BPE_LONG_WORDS], head->counts[BPE_LONG_WORDS]};
    tok->unigram.trie = (ha_trie){at[UNIGRAM_TRIE], head->counts[UNIGRAM_TRIE]};
    tok->unigram.scores = at[UNIGRAM_SCORES];
    tok->unigram.unk_score = head->unk_score;
    memcpy(tok->unigram.byte_ids, head->byte_ids, sizeof(head->byte_ids));
    tok->wordpiece.first = (ha_trie){at[WORDPIECE_FIRST], head->counts[WORDPIECE_FIRST]};
    tok->wordpiece.rest = (ha_trie){at[WORDPIECE_REST], head->counts[WORDPIECE_REST]};
    tok->raw = at[RAW], tok->raw_at = at[RAW_AT];
    tok->n_model_tokens = head->n_model_tokens, tok->n_model_ids = head->n_model_ids;
    tok->tables_kind = (int)head->model_kind;
    tok->tables = tables;
}

void
ha_tables_release(ha_tokenizer *tok)
{
    if (tok->tables != NULL) {
        memset(&tok->vocab, 0, sizeof(tok->vocab));
        tok->bpe.merges = NULL, tok->bpe.long_words.units = NULL;
        tok->table.lines = NULL;
        tok->unigram.trie.units = NULL, tok->unigram.scores = NULL;
        tok->wordpiece.first.units = tok->wordpiece.rest.units = NULL;
        tok->raw = NULL, tok->raw_at = NULL;
        free_tables(tok->tables);
        tok->tables = NULL;
    }
}

/* The whole file; the header's sizes agree with the file's, and the checksum is right. */
static ha_status
read_file(int fd, ha_tables **out, ha_error *err)
{
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || (uint64_t)info.st_size < sizeof(header) || (uint64_t)info.st_size > PTRDIFF_MAX) {
        return bad(err, "no file of tables");
    }
    const size_t size = (size_t)info.st_size;
    ha_tables *tables = calloc(1, sizeof(*tables));
    *out = tables;
    if (tables == NULL || (tables->head = ha_pages_alloc(size)) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu bytes of tables", size);
    }
    tables->size = size;
    for (size_t done = 0; done < size;) {
        const ssize_t n = read(fd, (uint8_t *)tables->head + done, size - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return bad(err, "the file can't be read whole");
        }
        done += (size_t)n;
    }
    const header *head = tables->head;
    size_t left = size - sizeof(*head);
    if (memcmp(head->magic, MAGIC, sizeof(head->magic)) != 0 || head->order != 0x01020304 || head->word != sizeof(size_t)) {
        return bad(err, "a file of another version or machine");
    }
    for (int i = 0; i < N_SECTIONS; i++) {
        if (head->counts[i] > left / element_size[i] || padded(head->counts[i], element_size[i]) > left) {
            return bad(err, "it is shorter than it says");
        }
        left -= padded(head->counts[i], element_size[i]);
    }
    return left == 0 && head->checksum == ha_cache_checksum(checksum_header(head), head + 1, size - sizeof(*head)) ? HA_OK : bad(err, "the checksum is wrong");
}

ha_status
ha_tables_read(const char *path, ha_tokenizer *tok, ha_json_sink *sinks, size_t n, ha_error *err)
{
    ha_tables *tables = NULL;
    ha_error cause = {{0}};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
    }
    ha_status status = read_file(fd, &tables, &cause);
    close(fd);
    if (status == HA_OK) {
        borrow(tables, tok);
        tables = NULL;
        status = check(tok, tok->tables->head, &cause);
    }
    for (size_t i = 0; i < n && i < MAX_SINKS && status == HA_OK; i++) {
        sinks[i].begin = (size_t)tok->tables->head->ranges[i][0];
        sinks[i].end = (size_t)tok->tables->head->ranges[i][1];
    }
    free_tables(tables);
    if (status != HA_OK) {
        ha_tables_release(tok);
        return ha_fail(err, status, "%.300s: not used: %.150s", path, cause.message);
    }
    return HA_OK;
}

/* ---- writing ---- */

static void
describe(const ha_tokenizer *tok, const ha_json_sink *sinks, size_t n, header *head, const void *at[N_SECTIONS])
{
    const ha_vocab *v = &tok->vocab;
    const size_t n_scores = tok->unigram.scores != NULL ? tok->n_model_ids : 0;
    const void *const data[N_SECTIONS] = {v->tokens, v->by_id, v->text, v->slots, tok->bpe.merges, tok->table.lines, tok->bpe.long_words.units, tok->unigram.trie.units,
                                          tok->unigram.scores, tok->wordpiece.first.units, tok->wordpiece.rest.units, tok->raw, tok->raw_at};
    const size_t counts[N_SECTIONS] = {v->n_tokens, v->n_ids, v->n_text, v->n_slots, tok->bpe.n_slots, tok->table.n_lines, tok->bpe.long_words.n_units, tok->unigram.trie.n_units,
                                       n_scores, tok->wordpiece.first.n_units, tok->wordpiece.rest.n_units, tok->raw_at[v->n_ids], v->n_ids + 1};
    memset(head, 0, sizeof(*head));
    memcpy(head->magic, MAGIC, sizeof(head->magic));
    head->order = 0x01020304;
    head->word = sizeof(size_t);
    for (int i = 0; i < N_SECTIONS; i++) {
        head->counts[i] = counts[i];
        at[i] = data[i];
    }
    for (size_t i = 0; i < n && i < MAX_SINKS; i++) {
        head->ranges[i][0] = sinks[i].begin;
        head->ranges[i][1] = sinks[i].end;
    }
    head->n_model_tokens = tok->n_model_tokens, head->n_model_ids = tok->n_model_ids, head->n_merges = tok->bpe.n_merges;
    head->model_kind = (uint64_t)tok->model_kind;
    memcpy(head->hash_key, v->hash_key, sizeof(head->hash_key));
    head->seed = tok->bpe.seed;
    head->words_seed = tok->table.seed;
    head->unk_score = tok->unigram.unk_score;
    memcpy(head->byte_ids, tok->unigram.byte_ids, sizeof(head->byte_ids));
}

ha_status
ha_tables_write(const char *path, const ha_tokenizer *tok, const ha_json_sink *sinks, size_t n, ha_error *err)
{
    header head;
    const void *at[N_SECTIONS];
    size_t size = 0;
    describe(tok, sinks, n, &head, at);
    for (int i = 0; i < N_SECTIONS; i++) {
        size += padded(head.counts[i], element_size[i]);
    }
    uint8_t *data = calloc(size + 1, 1);
    if (data == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu bytes of tables", size);
    }
    for (size_t i = 0, done = 0; i < N_SECTIONS; i++) {
        if (head.counts[i] > 0) {
            memcpy(data + done, at[i], (size_t)head.counts[i] * element_size[i]);
        }
        done += padded(head.counts[i], element_size[i]);
    }
    head.checksum = ha_cache_checksum(checksum_header(&head), data, size);
    const ha_status status = ha_cache_write(path, &head, sizeof(head), data, size, err);
    free(data);
    return status;
}
