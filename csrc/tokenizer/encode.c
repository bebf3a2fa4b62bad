#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/pages.h"
#include "core/parallel.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/unicode.h"
#include "tokenizer/word_cache.h"

#define MAX_WINDOWS ((size_t)1 << 32)
#define CACHE_BYTES (sizeof(ha_word_entry) << HA_CACHE_BITS)

enum { MAX_TEXT = 1 << 28, BLOCK_BYTES = 1 << 15, BLOCK_ROWS = 256, MAX_KEPT = 1 << 22, MAX_WORKERS = 64 };

/* White space at the two ends of a token, which post-processing may take off its span. */
typedef struct margins { uint32_t lead, trail; } margins;

/* What one text came to. Once its spans are wanted and `finish_spans` has run, begin and end are code points of the text. */
typedef struct side {
    size_t n;               /* tokens */
    int plain;              /* 1: their ids are in `ids`, 0: in `tokens`, with places */
    ha_ids ids;
    ha_tokens tokens;
    margins *margins;       /* (n,) with spans and trim_offsets */
    size_t cap_margins;
} side;

/* Everything one thread needs; reused from row to row and, waiting in its tokenizer's pool, from batch to batch. */
typedef struct worker {
    struct worker *next;
    ha_word_entry *cache;      /* NULL: there is no memory for one */
    ha_norm_scratch norm;
    ha_bpe_scratch bpe;
    ha_unigram_scratch unigram;
    ha_sp_scratch sentencepiece;
    ha_text_buf text, spare_text;
    ha_pieces raw, pieces, spare;
    side a, b;
    uint32_t *code_points;      /* code point index of each byte of a text */
    size_t cap_code_points;
    ha_pulse pulse;
} worker;

typedef struct row { size_t end, text; int32_t truncated; } row;      /* end: in the tokens of its block */

/* The encodings of a run of texts. */
typedef struct block {
    int32_t *ids, *spans;
    uint8_t *type_ids;      /* NULL: all are 0 so far */
    size_t n, capacity;
    row *rows;
    size_t n_rows, cap_rows;
    ha_status status;
    ha_error err;
} block;

typedef struct text_run { size_t first, n; } text_run;

struct ha_worker_pool {
    atomic_flag busy;           /* never waited for: who finds it taken does without the pool, in a forked child for ever */
    size_t n;
    worker *first;
};

static void
worker_free(worker *w)
{
    ha_pages_free(w->cache, CACHE_BYTES);
    ha_norm_scratch_free(&w->norm);
    ha_bpe_scratch_free(&w->bpe);
    ha_unigram_scratch_free(&w->unigram);
    ha_sp_scratch_free(&w->sentencepiece);
    ha_text_buf_free(&w->text);
    ha_text_buf_free(&w->spare_text);
    ha_pieces_free(&w->raw);
    ha_pieces_free(&w->pieces);
    ha_pieces_free(&w->spare);
    ha_tokens_free(&w->a.tokens);
    ha_tokens_free(&w->b.tokens);
    ha_ids_free(&w->a.ids);
    ha_ids_free(&w->b.ids);
    free(w->a.margins);
    free(w->b.margins);
    free(w->code_points);
}

/* Whether words come to the same tokens wherever they stand, with places that follow from the tokens' lengths. */
static int
uses_cache(const ha_tokenizer *tok)
{
    return tok->model_kind == HA_MODEL_WORDPIECE || (tok->model_kind == HA_MODEL_BPE && (tok->bpe.all_bytes || tok->bpe.characters));
}

/* NULL when there is no memory. */
static worker *
worker_take(const ha_tokenizer *tok)
{
    ha_worker_pool *pool = tok->pool;
    worker *w = NULL;
    if (!atomic_flag_test_and_set(&pool->busy)) {
        w = pool->first;
        if (w != NULL) {
            pool->first = w->next;
            pool->n--;
        }
        atomic_flag_clear(&pool->busy);
    }
    if (w == NULL && (w = calloc(1, sizeof(*w))) != NULL && uses_cache(tok)) {
        w->cache = ha_pages_alloc(CACHE_BYTES);
    }
    return w;
}

/* Back to the pool, unless it has grown large over a long text or enough are there. */
static void
worker_give(const ha_tokenizer *tok, worker *w)
{
    ha_worker_pool *pool = tok->pool;
    if (w == NULL) {
        return;
    }
    const int small = w->text.capacity + w->spare_text.capacity + w->norm.a.capacity + w->norm.b.capacity + w->pieces.capacity + w->spare.capacity
                      + w->a.tokens.capacity + w->b.tokens.capacity + w->a.ids.capacity + w->b.ids.capacity + w->bpe.cap_symbols + w->cap_code_points < MAX_KEPT;
    if (small && !atomic_flag_test_and_set(&pool->busy)) {
        if (pool->n < MAX_WORKERS) {
            w->next = pool->first;
            pool->first = w;
            pool->n++;
            w = NULL;
        }
        atomic_flag_clear(&pool->busy);
    }
    if (w != NULL) {
        worker_free(w);
        free(w);
    }
}

ha_worker_pool *
ha_worker_pool_new(void)
{
    ha_worker_pool *pool = calloc(1, sizeof(*pool));
    if (pool != NULL) {
        atomic_flag_clear(&pool->busy);
    }
    return pool;
}

void
ha_worker_pool_free(ha_worker_pool *pool)
{
    while (pool != NULL && pool->first != NULL) {
        worker *next = pool->first->next;
        worker_free(pool->first);
        free(pool->first);
        pool->first = next;
    }
    free(pool);
}

/* Added tokens, normalizer and pre-tokenizer, but for a last step that the model's loop takes over: fills w->text and w->pieces. */
static ha_status
cut_text(const ha_tokenizer *tok, ha_text text, const ha_encode_options *options, worker *w, ha_error *err)
{
    const uint8_t *original = (const uint8_t *)text.data;
    w->raw.n = w->pieces.n = 0;
    w->text.length = 0;
    w->text.aligned = options->spans || tok->pre.needs_origin;
    ha_status status = ha_added_tokens_split(&tok->added, 0, options->split_special_tokens, original, 0, text.length, &w->raw, err);
    for (size_t p = 0; p < w->raw.n && status == HA_OK; p++) {
        const ha_piece piece = w->raw.at[p];
        const size_t begin = w->text.length;
        if (piece.added_id >= 0) {
            status = ha_text_buf_append_original(&w->text, original, piece.begin, piece.end, err);
            if (status == HA_OK) {
                status = ha_pieces_push(&w->pieces, begin, w->text.length, piece.added_id, err);
            }
            continue;
        }
        status = ha_normalize(&tok->normalizer, original, piece.begin, piece.end, &w->norm, &w->text, err);
        if (status == HA_OK) {
            status = ha_added_tokens_split(&tok->added, 1, options->split_special_tokens, w->text.text, begin, w->text.length, &w->pieces, err);
        }
    }
    if (status == HA_OK) {
        status = ha_pre_tokenize(&tok->pre, tok->pre.n_steps - (ha_pre_last_cut(&tok->pre) != NULL), &w->text, &w->pieces, &w->spare_text, &w->spare, err);
    }
    return status;
}

static ha_status
run_model(const ha_tokenizer *tok, int spans, worker *w, side *out, ha_error *err)
{
    if (w->text.length == 0) {
        return HA_OK;
    }
    ha_text_buf_close(&w->text);
    out->plain = !spans;
    out->tokens.n = out->ids.n = 0;
    const ha_word_run run = {tok, w->text.text, w->cache, &w->bpe, &w->unigram, &out->tokens, spans ? NULL : &out->ids, &w->pulse};
    const ha_status status = ha_encode_pieces(&run, &w->pieces, ha_pre_last_cut(&tok->pre), err);
    out->n = spans ? out->tokens.n : out->ids.n;
    return status;
}

/* How many characters of white space (or the byte-level sign of a space) stand at the ends of a token's written form. */
static margins
margins_of(const ha_tokenizer *tok, const worker *w, ha_token token)
{
    const uint8_t *s;
    size_t length, i = 0, size;
    margins m = {0, 0};
    if (token.added) {
        s = w->text.text + token.begin;
        length = token.end - token.begin;
    } else {
        s = (const uint8_t *)ha_vocab_text(&tok->vocab, token.id, &length);
    }
    const uint32_t sign = ha_byte_to_char(' ');
    for (; i < length; i += size, m.lead++) {
        const uint32_t c = ha_utf8_decode(s + i, &size);
        if (c != sign && (ha_uc_flags(c) & HA_UC_WHITE_SPACE) == 0) {
            break;
        }
    }
    for (i = length; i > 0; m.trail++) {
        i = ha_utf8_back(s, i);
        const uint32_t c = ha_utf8_decode(s + i, &size);
        if (c != sign && (ha_uc_flags(c) & HA_UC_WHITE_SPACE) == 0) {
            break;
        }
    }
    return m;
}

/* Fills w->code_points: for each byte of the text, and for its end, the index of its code point. */
static ha_status
map_code_points(ha_text text, worker *w, ha_error *err)
{
    if (text.length + 1 > w->cap_code_points) {
        uint32_t *grown = realloc(w->code_points, (text.length + 1) * 2 * sizeof(*grown));
        if (grown == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", text.length);
        }
        w->code_points = grown;
        w->cap_code_points = (text.length + 1) * 2;
    }
    uint32_t n = 0;
    for (size_t i = 0; i < text.length; i++) {
        n += ((uint8_t)text.data[i] & 0xC0) != 0x80;
        w->code_points[i] = n - 1;
    }
    w->code_points[text.length] = n;
    return HA_OK;
}

/* Turns begin and end from bytes of w->text into code points of the original. */
static ha_status
finish_spans(const ha_tokenizer *tok, ha_text text, worker *w, side *s, ha_error *err)
{
    const ha_status status = map_code_points(text, w, err);
    if (status != HA_OK) {
        return status;
    }
    if (tok->post.trim_offsets && s->n > s->cap_margins) {
        margins *grown = realloc(s->margins, s->n * 2 * sizeof(*grown));
        if (grown == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", s->n);
        }
        s->margins = grown;
        s->cap_margins = s->n * 2;
    }
    for (size_t t = 0; t < s->n; t++) {
        ha_token *token = &s->tokens.at[t];
        if (tok->post.trim_offsets) {
            s->margins[t] = margins_of(tok, w, *token);
        }
        const uint32_t begin = w->text.align[token->begin].begin, end = w->text.align[token->end - 1].end;
        token->begin = w->code_points[begin];
        token->end = w->code_points[end];
    }
    return HA_OK;
}

static ha_status
check_text(ha_text text, ha_error *err)
{
    if (text.length > MAX_TEXT) {
        return ha_fail(err, HA_ERR_VALUE, "the text has %zu bytes, more than the %d that are possible", text.length, MAX_TEXT);
    }
    const size_t valid = ha_utf8_valid_prefix((const uint8_t *)text.data, text.length);
    return valid == text.length ? HA_OK : ha_fail(err, HA_ERR_VALUE, "the text is not UTF-8: byte %zu", valid);
}

/* sentencepiece works on the whole text, and says where its tokens stand in it. */
static ha_status
encode_sentencepiece(const ha_tokenizer *tok, ha_text text, int spans, worker *w, side *out, ha_error *err)
{
    w->text.aligned = spans;
    ha_status status = ha_sentencepiece_encode(&tok->sentencepiece, (const uint8_t *)text.data, text.length, &w->sentencepiece, &w->text, &out->tokens, err);
    if (status == HA_OK && spans) {
        status = map_code_points(text, w, err);
    }
    out->n = out->tokens.n;
    for (size_t t = 0; t < out->n && status == HA_OK && spans; t++) {
        ha_token *token = &out->tokens.at[t];
        token->begin = w->code_points[token->begin];
        token->end = w->code_points[token->end];
    }
    return status;
}

static ha_status
encode_text(const ha_tokenizer *tok, ha_text text, const ha_encode_options *options, worker *w, side *out, ha_error *err)
{
    out->tokens.n = out->n = 0;
    out->plain = 0;
    ha_status status = check_text(text, err);
    if (status == HA_OK && tok->model_kind == HA_MODEL_SENTENCEPIECE) {
        return encode_sentencepiece(tok, text, options->spans, w, out, err);
    }
    if (status == HA_OK && text.length > 0 && !options->spans && tok->words.on) {
        int done;
        status = ha_unigram_encode_text(tok, (const uint8_t *)text.data, text.length, options->split_special_tokens, &w->norm, &w->unigram, &w->raw,
                                        &out->tokens, &done, err);
        out->n = out->tokens.n;
        if (status != HA_OK || done) {
            return status;
        }
    }
    if (status == HA_OK && text.length > 0) {
        status = cut_text(tok, text, options, w, err);
    }
    if (status == HA_OK && text.length > 0) {
        status = run_model(tok, options->spans, w, out, err);
    }
    if (status == HA_OK && options->spans && out->n > 0) {
        status = finish_spans(tok, text, w, out, err);
    }
    return status;
}

static ha_status
block_reserve(block *b, size_t extra, int spans, ha_error *err)
{
    if (extra <= b->capacity - b->n && b->ids != NULL) {
        return HA_OK;
    }
    const size_t capacity = (b->n + extra) * 2 + 1024;
    int32_t *ids = realloc(b->ids, capacity * sizeof(*ids));
    b->ids = ids != NULL ? ids : b->ids;
    uint8_t *type_ids = b->type_ids != NULL ? realloc(b->type_ids, capacity) : NULL;
    const int typed = b->type_ids == NULL || type_ids != NULL;
    b->type_ids = type_ids != NULL ? type_ids : b->type_ids;
    int32_t *span = spans ? realloc(b->spans, capacity * 2 * sizeof(*span)) : NULL;
    b->spans = span != NULL ? span : b->spans;
    if (ids == NULL || !typed || (spans && span == NULL)) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", capacity);
    }
    b->capacity = capacity;
    return HA_OK;
}

/* The type ids of the next n tokens, for which there is room. */
static ha_status
put_types(block *b, size_t n, uint8_t type_id, ha_error *err)
{
    if (b->type_ids == NULL && type_id != 0 && (b->type_ids = calloc(b->capacity, 1)) == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", b->capacity);
    }
    if (b->type_ids != NULL) {
        memset(b->type_ids + b->n, type_id, n);
    }
    return HA_OK;
}

/* The span of token `at` of a text of which [begin, end) stay: what ByteLevel's post-processing does. */
static void
write_span(const ha_tokenizer *tok, const side *s, size_t at, size_t begin, int32_t out[2])
{
    const ha_token token = s->tokens.at[at];
    size_t from = token.begin, to = token.end;
    if (tok->post.trim_offsets) {
        size_t lead = s->margins[at].lead;
        const size_t trail = s->margins[at].trail;
        if (lead == 1 && tok->post.keep_prefix_space && (at == begin || from == 0)) {
            lead = 0;
        }
        from = from + lead < to ? from + lead : to;
        if (trail > 0 && to >= trail) {
            to = to - trail > from ? to - trail : from;
        }
    }
    out[0] = (int32_t)from, out[1] = (int32_t)to;
}

static ha_status
write_side(const ha_tokenizer *tok, const side *s, size_t begin, size_t end, uint8_t type_id, int spans, block *out, ha_error *err)
{
    const ha_status status = put_types(out, end - begin, type_id, err);
    if (s->plain && end > begin) {
        memcpy(out->ids + out->n, s->ids.at + begin, (end - begin) * sizeof(*out->ids));
    }
    for (size_t i = begin; !s->plain && i < end; i++) {
        out->ids[out->n + i - begin] = s->tokens.at[i].id;
    }
    for (size_t i = begin; spans && i < end; i++) {
        write_span(tok, s, i, begin, out->spans + 2 * (out->n + i - begin));
    }
    out->n += end - begin;
    return status;
}

/* The windows of a text of n tokens that is cut to `size`: a later one begins (from the left: ends) `step` tokens after the one before. A text cut to nothing
 * is its own second window, whole. Source: tokenizers, Encoding::truncate. */
typedef struct windows { size_t n, size, step, count; int left; } windows;

static ha_status
plan_windows(const ha_encode_options *options, size_t n, size_t size, const char *which, windows *out, ha_error *err)
{
    *out = (windows){n, size, 0, 1, options->truncate_left};
    if (!options->windows || size >= n) {
        return HA_OK;
    }
    if (size > 0 && options->stride >= size) {
        return ha_fail(err, HA_ERR_VALUE, "stride must be below %zu, the tokens to which the %s text is cut, got %zu", size, which, options->stride);
    }
    out->step = size > 0 ? size - options->stride : 0;
    out->count = size > 0 ? 1 + (n - size + out->step - 1) / out->step : 2;
    return HA_OK;
}

static void
window_at(const windows *w, size_t i, size_t *begin, size_t *end)
{
    if (w->size == 0) {
        *begin = 0;
        *end = i == 0 ? 0 : w->n;
    } else if (w->left) {
        *end = w->n - i * w->step;
        *begin = *end > w->size ? *end - w->size : 0;
    } else {
        *begin = i * w->step;
        *end = w->n - *begin > w->size ? *begin + w->size : w->n;
    }
}

/* Which window of its text each place of a template takes in row `at` of a text's rows, in the order in which tokenizers' Encoding::merge_with lists
 * them: all first windows; then the other windows of the first place, each beside every window of the later places; then its first one beside the rest. */
static void
choose_windows(const size_t *counts, size_t n, size_t n_rows, size_t at, size_t *chosen)
{
    int all_first = 1;
    size_t rest = n_rows, k = at - 1;
    for (size_t i = 0; i < n; i++) {
        rest /= counts[i];
        if (at == 0 || (all_first && k >= (counts[i] - 1) * rest)) {
            chosen[i] = 0;
            k -= (counts[i] - 1) * rest;
        } else {
            chosen[i] = k / rest + (size_t)all_first;
            all_first = 0;
            k %= rest;
        }
    }
}

static ha_status
row_push(block *b, size_t text, size_t truncated, ha_error *err)
{
    if (b->n_rows == b->cap_rows) {
        const size_t capacity = b->cap_rows * 2 + BLOCK_ROWS;
        row *rows = realloc(b->rows, capacity * sizeof(*rows));
        if (rows == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu rows", capacity);
        }
        b->rows = rows;
        b->cap_rows = capacity;
    }
    b->rows[b->n_rows++] = (row){b->n, text, (int32_t)truncated};
    return HA_OK;
}

/* One row: the template around windows [i] of `of` (the first text, its pair) that `chosen` names, one for each place of a text. */
static ha_status
write_row(const ha_tokenizer *tok, const ha_template *template, const ha_encode_options *options, const worker *w, const windows of[2],
          const size_t *chosen, block *out, ha_error *err)
{
    size_t needed = template->n, begin, end, place = 0;
    for (size_t i = 0; i < template->n; i++) {
        if (template->items[i].kind != HA_TEMPLATE_SPECIAL) {
            window_at(&of[template->items[i].kind == HA_TEMPLATE_B], chosen[place++], &begin, &end);
            needed += end - begin;
        }
    }
    ha_status status = block_reserve(out, needed, options->spans, err);
    place = 0;
    for (size_t i = 0; i < template->n && status == HA_OK; i++) {
        const ha_template_item item = template->items[i];
        if (item.kind != HA_TEMPLATE_SPECIAL) {
            const int b = item.kind == HA_TEMPLATE_B;
            /* the reference gives the template's type ids to first windows alone */
            const int type_id = chosen[place] == 0 ? item.type_id : tok->post.windows_type_0 && options->add_special_tokens ? 0 : b;
            window_at(&of[b], chosen[place++], &begin, &end);
            status = write_side(tok, b ? &w->b : &w->a, begin, end, (uint8_t)type_id, options->spans, out, err);
        } else if (options->add_special_tokens) {
            status = put_types(out, 1, item.type_id, err);
            out->ids[out->n] = item.id;
            if (options->spans) {
                out->spans[2 * out->n] = out->spans[2 * out->n + 1] = 0;
            }
            out->n++;
        }
    }
    return status;
}

/* One text and its pair: its row, or the rows of its windows. */
static ha_status
encode_row(const ha_tokenizer *tok, size_t text_index, ha_text text, ha_text pair, const ha_encode_options *options, worker *w, block *out, ha_error *err)
{
    const int has_pair = pair.data != NULL;
    ha_kept kept;
    windows of[2] = {{0}, {0}};
    ha_status status = encode_text(tok, text, options, w, &w->a, err);
    if (status == HA_OK && has_pair) {
        status = encode_text(tok, pair, options, w, &w->b, err);
    }
    const size_t n_a = w->a.n, n_b = has_pair ? w->b.n : 0;
    if (status == HA_OK) {
        status = ha_truncate(&tok->post, options, n_a, has_pair ? n_b : SIZE_MAX, &kept, err);
    }
    if (status == HA_OK) {
        status = plan_windows(options, n_a, kept.a_end - kept.a_begin, "first", &of[0], err);
    }
    if (status == HA_OK) {
        status = plan_windows(options, n_b, kept.b_end - kept.b_begin, "second", &of[1], err);
    }
    const ha_template *template = has_pair ? &tok->post.pair : &tok->post.single;
    size_t counts[HA_MAX_TEMPLATE], chosen[HA_MAX_TEMPLATE], n_places = 0, n_rows = 1;
    for (size_t i = 0; i < template->n && status == HA_OK; i++) {
        if (template->items[i].kind != HA_TEMPLATE_SPECIAL) {
            counts[n_places] = of[template->items[i].kind == HA_TEMPLATE_B].count;
            if (counts[n_places] > MAX_WINDOWS / n_rows) {
                status = ha_fail(err, HA_ERR_VALUE, "the text has more than %zu windows", MAX_WINDOWS);
                break;
            }
            n_rows *= counts[n_places++];
        }
    }
    const size_t dropped = status != HA_OK || options->windows ? 0 : n_a + n_b - of[0].size - of[1].size;
    for (size_t i = 0; i < n_rows && status == HA_OK; i++) {
        choose_windows(counts, n_places, n_rows, i, chosen);
        status = write_row(tok, template, options, w, of, chosen, out, err);
        if (status == HA_OK) {
            status = row_push(out, text_index, dropped, err);
        }
    }
    return status;
}

/* Stops at the first text that fails. */
static void
encode_texts(const ha_tokenizer *tok, const ha_text *texts, const ha_text *pairs, text_run run, const ha_encode_options *options, worker *w, block *b)
{
    if (w == NULL) {
        b->status = ha_fail(&b->err, HA_ERR_NOMEM, "out of memory");
    }
    for (size_t i = run.first; i < run.first + run.n && b->status == HA_OK; i++) {
        const ha_text pair = pairs != NULL ? pairs[i] : (ha_text){NULL, 0};
        ha_error cause;
        b->status = encode_row(tok, i, texts[i], pair, options, w, b, &cause);
        if (b->status != HA_OK) {
            ha_fail(&b->err, b->status, "row %zu: %.440s", i, cause.message);
        }
    }
}

/* Runs of texts of about BLOCK_BYTES: a long text is one of its own. Returns how many; `runs` may be NULL to count. */
static size_t
plan(const ha_text *texts, const ha_text *pairs, size_t n, text_run *runs)
{
    size_t n_runs = 0, first = 0, bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += texts[i].length + (pairs != NULL ? pairs[i].length : 0);
        if (bytes >= BLOCK_BYTES || i + 1 - first == BLOCK_ROWS || i + 1 == n) {
            if (runs != NULL) {
                runs[n_runs] = (text_run){first, i + 1 - first};
            }
            n_runs++;
            first = i + 1;
            bytes = 0;
        }
    }
    return n_runs;
}

/* Puts the blocks' rows one after the other into `out`; what a single block has it gives away. */
static ha_status
gather(block *blocks, size_t n_blocks, int spans, ha_encoding *out, ha_error *err)
{
    size_t total = 0, n_rows = 0, at = 0;
    for (size_t k = 0; k < n_blocks; k++) {
        total += blocks[k].n;
        n_rows += blocks[k].n_rows;
    }
    const int single = n_blocks == 1 && blocks[0].ids != NULL;
    out->offsets = malloc((n_rows + 1) * sizeof(*out->offsets));
    out->truncated = malloc((n_rows + 1) * sizeof(*out->truncated));
    out->texts = malloc((n_rows + 1) * sizeof(*out->texts));
    if (single) {
        block *b = &blocks[0];
        out->ids = realloc(b->ids, (total + 1) * sizeof(*out->ids));
        out->ids = out->ids != NULL ? out->ids : b->ids;        /* it only gets smaller */
        out->type_ids = b->type_ids, out->spans = b->spans;
        b->ids = NULL, b->type_ids = NULL, b->spans = NULL;
    } else {
        out->ids = malloc((total + 1) * sizeof(*out->ids));
        out->spans = spans ? malloc((total + 1) * 2 * sizeof(*out->spans)) : NULL;
    }
    if (out->type_ids == NULL) {
        out->type_ids = calloc(total + 1, 1);
    }
    if (out->offsets == NULL || out->truncated == NULL || out->texts == NULL || out->ids == NULL || out->type_ids == NULL ||
        (spans && out->spans == NULL)) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", total);
    }
    out->offsets[0] = 0;
    for (size_t k = 0; k < n_blocks; at += blocks[k].n, k++) {
        const block *b = &blocks[k];
        for (size_t i = 0; i < b->n_rows; i++, out->n_rows++) {
            out->offsets[out->n_rows + 1] = (int64_t)(at + b->rows[i].end);
            out->truncated[out->n_rows] = b->rows[i].truncated;
            out->texts[out->n_rows] = (int64_t)b->rows[i].text;
        }
        if (b->n > 0 && !single) {
            memcpy(out->ids + at, b->ids, b->n * sizeof(*out->ids));
        }
        if (b->type_ids != NULL) {
            memcpy(out->type_ids + at, b->type_ids, b->n);
        }
        if (spans && b->n > 0 && !single) {
            memcpy(out->spans + 2 * at, b->spans, b->n * 2 * sizeof(*out->spans));
        }
    }
    return HA_OK;
}

/* All runs, on as many threads as pay: one thread puts them all into one block, several each into its own. The calling thread reports to options->tick; 1 when
 * that said to stop. */
static int
encode_runs(const ha_tokenizer *tok, const ha_text *texts, const ha_text *pairs, const ha_encode_options *options,
            const text_run *runs, size_t n_runs, block *blocks, int n_threads)
{
    atomic_int stop = 0;
    atomic_size_t done = 0;
#if defined(_OPENMP)
#pragma omp parallel num_threads(ha_team(n_threads)) if (n_threads > 1)
#endif
    {
        worker *w = worker_take(tok);
        const int asks = ha_thread_index() == 0;
        if (w != NULL) {
            w->pulse = (ha_pulse){&stop, asks ? options->tick : NULL, options->tick_arg, 0, 0};
            w->bpe.pulse = w->unigram.pulse = w->sentencepiece.pulse = &w->pulse;
        }
#if defined(_OPENMP)
#pragma omp for schedule(dynamic, 1)
#endif
        for (size_t k = 0; k < n_runs; k++) {
            if (!stop) {
                encode_texts(tok, texts, pairs, runs[k], options, w, &blocks[n_threads > 1 ? k : 0]);
                done += runs[k].n;
                if (w != NULL) {
                    w->pulse.texts_done = done;
                    ha_pulse_stops(&w->pulse);
                }
            }
        }
        worker_give(tok, w);
    }
    return stop;
}

ha_status
ha_tokenizer_encode_batch(const ha_tokenizer *tok, const ha_text *texts, const ha_text *pairs, size_t n,
                          const ha_encode_options *options, ha_encoding *out, ha_error *err)
{
    const size_t n_runs = plan(texts, pairs, n, NULL);
    const int n_threads = ha_threads_for(n_runs, 1, options->n_threads);
    const size_t n_blocks = n_threads > 1 ? n_runs : 1;
    text_run *runs = malloc((n_runs + 1) * sizeof(*runs));
    block *blocks = calloc(n_blocks, sizeof(*blocks));
    ha_status status = runs != NULL && blocks != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu texts", n);
    if (status == HA_OK) {
        plan(texts, pairs, n, runs);
        status = encode_runs(tok, texts, pairs, options, runs, n_runs, blocks, n_threads) ? ha_fail(err, HA_ERR_VALUE, "interrupted") : HA_OK;
    }
    for (size_t k = 0; k < n_blocks && status == HA_OK; k++) {
        if (blocks[k].status != HA_OK) {
            status = ha_fail(err, blocks[k].status, "%s", blocks[k].err.message);
        }
    }
    if (status == HA_OK) {
        status = gather(blocks, n_blocks, options->spans, out, err);
    }
    for (size_t k = 0; blocks != NULL && k < n_blocks; k++) {
        free(blocks[k].ids);
        free(blocks[k].type_ids);
        free(blocks[k].spans);
        free(blocks[k].rows);
    }
    free(blocks);
    free(runs);
    if (status != HA_OK) {
        ha_encoding_free(out);
    }
    return status;
}

void
ha_encoding_free(ha_encoding *encoding)
{
    free(encoding->offsets);
    free(encoding->ids);
    free(encoding->type_ids);
    free(encoding->spans);
    free(encoding->truncated);
    free(encoding->texts);
    memset(encoding, 0, sizeof(*encoding));
}

/* ---- parts of the pipeline on their own ---- */

ha_status
ha_tokenizer_normalize(const ha_tokenizer *tok, ha_text text, char **out, size_t *out_length, ha_error *err)
{
    ha_norm_scratch scratch = {0};
    ha_text_buf normal = {0};
    ha_status status = check_text(text, err);
    if (status == HA_OK) {
        status = ha_text_buf_reserve(&normal, 1, err);
    }
    if (status == HA_OK && text.length > 0) {
        status = ha_normalize(&tok->normalizer, (const uint8_t *)text.data, 0, text.length, &scratch, &normal, err);
    }
    ha_norm_scratch_free(&scratch);
    if (status != HA_OK) {
        ha_text_buf_free(&normal);
        return status;
    }
    *out = (char *)normal.text;
    *out_length = normal.length;
    return HA_OK;
}

ha_status
ha_tokenizer_pre_tokenize(const ha_tokenizer *tok, ha_text text, int32_t **out, size_t *n, ha_error *err)
{
    worker w;
    memset(&w, 0, sizeof(w));
    w.text.aligned = 1;
    *out = NULL;
    ha_status status = check_text(text, err);
    if (status == HA_OK && text.length > 0) {
        status = ha_text_buf_append_original(&w.text, (const uint8_t *)text.data, 0, text.length, err);
        if (status == HA_OK) {
            status = ha_pieces_push(&w.pieces, 0, text.length, -1, err);
        }
        if (status == HA_OK) {
            status = ha_pre_tokenize(&tok->pre, tok->pre.n_steps, &w.text, &w.pieces, &w.spare_text, &w.spare, err);
        }
    }
    if (status == HA_OK) {
        status = map_code_points(text, &w, err);
    }
    if (status == HA_OK && (*out = malloc((w.pieces.n + 1) * 2 * sizeof(**out))) == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces", w.pieces.n);
    }
    for (size_t i = 0; status == HA_OK && i < w.pieces.n; i++) {
        (*out)[2 * i] = (int32_t)w.code_points[w.text.align[w.pieces.at[i].begin].begin];
        (*out)[2 * i + 1] = (int32_t)w.code_points[w.text.align[w.pieces.at[i].end - 1].end];
    }
    *n = w.pieces.n;
    worker_free(&w);
    return status;
}
