/* Text to P(unsafe): tokens, windows, the encoder's logits, and the window that decides. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "core/utf8.h"
#include "guard/guard_impl.h"

#define BLOCK_ROWS 512          /* rows tokenized at once: memory stays bounded */
#define CALL_TOKENS_MIN 512     /* tokens of one call of the encoder: as many as take ... */
#define CALL_TOKENS_MAX 16384
#define CALL_FLOPS 1e11         /* ... this many operations, about a second: the caller's tick comes between calls */

/* A call of ha_guard_score. */
typedef struct scoring {
    const ha_guard *guard;
    const ha_score_options *options;
    int n_threads;
    size_t num_labels;
    double temperature;
    ha_logits_source source;    /* NULL: the guard's encoder */
    void *source_arg;
    float *scores, *logits;     /* each may be NULL */
    ha_score_row *rows;
    ha_error *err;
} scoring;

/* Rows of a block. */
typedef struct block {
    size_t first, n;            /* of the call's rows */
    ha_text prompts[BLOCK_ROWS], responses[BLOCK_ROWS];
    float best[BLOCK_ROWS];
    int32_t n_windows[BLOCK_ROWS], window[BLOCK_ROWS];
} block;

static size_t
row_number(const scoring *s, const block *b, size_t i)
{
    return s->options->first_row + b->first + i;
}

static ha_status
check_tick(const scoring *s, size_t rows_done)
{
    const int stop = s->options->tick != NULL && s->options->tick(s->options->tick_arg, rows_done);
    return stop ? ha_fail(s->err, HA_ERR_VALUE, "scoring was stopped by its caller") : HA_OK;
}

/* -- from logits to a score -- */

/* log(P / (1 - P)) by the softmax, or the sigmoid of a single logit. */
static double
log_odds(const float *logits, size_t n, size_t unsafe_index)
{
    double highest = -INFINITY, sum = 0;
    for (size_t j = 0; j < n; j++) {
        highest = j != unsafe_index && logits[j] > highest ? logits[j] : highest;
    }
    for (size_t j = 0; j < n; j++) {
        sum += j != unsafe_index ? exp(logits[j] - highest) : 0;
    }
    return n == 1 ? (double)logits[0] : logits[unsafe_index] - (highest + log(sum));
}

static float
probability(const float *logits, size_t n, size_t unsafe_index, double temperature)
{
    if (n == 1 || temperature != 1) {
        return (float)(1.0 / (1.0 + exp(-log_odds(logits, n, unsafe_index) / temperature)));
    }
    double highest = logits[0], sum = 0;
    for (size_t j = 1; j < n; j++) {
        highest = logits[j] > highest ? logits[j] : highest;
    }
    for (size_t j = 0; j < n; j++) {
        sum += exp(logits[j] - highest);
    }
    return (float)(exp(logits[unsafe_index] - highest) / sum);
}

/* A window of row i has these logits: it decides if none before it had a higher score. */
static ha_status
take_window(const scoring *s, block *b, size_t i, const float *logits)
{
    for (size_t j = 0; j < s->num_labels; j++) {
        if (!isfinite(logits[j])) {
            return ha_fail(s->err, HA_ERR_VALUE, "row %zu: %.300s gives a score that is no finite number; its weights are damaged", row_number(s, b, i),
                           s->guard->name);
        }
    }
    const float score = probability(logits, s->num_labels, s->guard->unsafe_index, s->temperature);
    if (b->n_windows[i] == 0 || score > b->best[i]) {
        b->best[i] = score;
        b->window[i] = b->n_windows[i];
        if (s->logits != NULL) {
            memcpy(s->logits + (b->first + i) * s->num_labels, logits, s->num_labels * sizeof(*logits));
        }
    }
    b->n_windows[i]++;
    return HA_OK;
}

/* -- the encoder's calls -- */

size_t
ha_guard_call_tokens(const ha_guard *guard)
{
    const ha_encoder_config *c = ha_encoder_config_of(guard->encoder);
    const double tokens = CALL_FLOPS / (24.0 * (double)c->n_layers * (double)c->hidden_size * (double)c->hidden_size);
    return tokens < CALL_TOKENS_MIN ? CALL_TOKENS_MIN : tokens > CALL_TOKENS_MAX ? CALL_TOKENS_MAX : (size_t)tokens;
}

/* Runs the pieces of a block; rows NULL: piece i is row i. */
static ha_status
run_pieces(const scoring *s, block *b, const ha_batch *pieces, const size_t *rows)
{
    const size_t most = s->source != NULL ? CALL_TOKENS_MAX : ha_guard_call_tokens(s->guard), room = pieces->n_rows < most ? pieces->n_rows : most;
    int64_t *offsets = malloc((room + 1) * sizeof(*offsets));
    float *logits = malloc(room * s->num_labels * sizeof(*logits));     /* of at most 4,096 labels */
    ha_status status = offsets != NULL && logits != NULL ? HA_OK : ha_fail(s->err, HA_ERR_NOMEM, "guard: out of memory for %zu rows", room);
    for (size_t first = 0, last; first < pieces->n_rows && status == HA_OK; first = last) {
        const int64_t begin = pieces->offsets[first];
        last = first;
        do {
            offsets[last - first] = pieces->offsets[last] - begin;
            last++;
        } while (last < pieces->n_rows && pieces->offsets[last + 1] - begin <= (int64_t)most && last - first < room);
        offsets[last - first] = pieces->offsets[last] - begin;
        const ha_batch part = {.n_rows = last - first, .offsets = offsets, .ids = pieces->ids + begin, .type_ids = pieces->type_ids + begin};
        ha_error inner;
        status = s->source != NULL ? s->source(s->source_arg, &part, logits, &inner)
                                   : ha_encoder_logits(s->guard->encoder, &part, logits, s->n_threads, &inner);
        if (status != HA_OK) {
            const size_t from = rows != NULL ? rows[first] : first, to = rows != NULL ? rows[last - 1] : last - 1;
            ha_fail(s->err, status, "of rows %zu to %zu: %.400s", row_number(s, b, from), row_number(s, b, to), inner.message);
        }
        for (size_t i = first; i < last && status == HA_OK; i++) {
            status = take_window(s, b, rows != NULL ? rows[i] : i, logits + (i - first) * s->num_labels);
        }
        if (status == HA_OK) {
            status = check_tick(s, b->first + (rows != NULL ? rows[last - 1] : last - 1));
        }
    }
    free(logits);
    free(offsets);
    return status;
}

/* -- blocks -- */

static ha_status
check_text(const scoring *s, const block *b, size_t i, const char *what, ha_text *text)
{
    if (text->length == 0) {
        text->data = "";
        return HA_OK;
    }
    if (text->data == NULL) {
        return ha_fail(s->err, HA_ERR_VALUE, "row %zu: the %s has %zu bytes but no data", row_number(s, b, i), what, text->length);
    }
    const size_t valid = ha_utf8_valid_prefix((const uint8_t *)text->data, text->length);
    return valid == text->length ? HA_OK : ha_fail(s->err, HA_ERR_VALUE, "row %zu: the %s is not UTF-8 at byte %zu", row_number(s, b, i), what, valid);
}

static ha_status
take_texts(const scoring *s, block *b, const ha_text *prompts, const ha_text *responses)
{
    static const ha_text none = {NULL, 0};
    ha_status status = HA_OK;
    for (size_t i = 0; i < b->n && status == HA_OK; i++) {
        b->prompts[i] = prompts[i];
        b->responses[i] = responses != NULL && responses[i].length > 0 ? responses[i] : none;
        b->n_windows[i] = 0;
        status = check_text(s, b, i, "prompt", &b->prompts[i]);
        if (status == HA_OK && b->responses[i].length > 0) {
            status = check_text(s, b, i, "response", &b->responses[i]);
        }
    }
    return status;
}

typedef struct block_tick { const scoring *s; size_t first; } block_tick;

static int
encode_tick(void *arg, size_t texts_done)
{
    (void)texts_done;
    const block_tick *t = arg;
    return t->s->options->tick(t->s->options->tick_arg, t->first);
}

static size_t
length_of(const ha_encoding *e, size_t i)
{
    return (size_t)(e->offsets[i + 1] - e->offsets[i]);
}

/* The rows that fit as they are, the others in windows. */
static ha_status
cut(const scoring *s, const block *b, const ha_encoding *whole, ha_windows *pieces)
{
    ha_status status = HA_OK;
    for (size_t i = 0; i < b->n && status == HA_OK; i++) {
        const size_t n = length_of(whole, i);
        if (n <= s->guard->max_length) {
            status = ha_windows_add(pieces, i, whole->ids + whole->offsets[i], whole->type_ids + whole->offsets[i], n, s->err);
        } else if (s->options->long_rows == HA_LONG_WINDOWS) {
            status = ha_guard_windows(s->guard, i, b->prompts[i], b->responses[i], pieces, s->err);
        } else {
            status = ha_fail(s->err, HA_ERR_VALUE, "row %zu has %zu tokens, the guard reads at most %zu; long='windows' or 'truncate' reads it",
                             row_number(s, b, i), n, s->guard->max_length);
        }
    }
    return status;
}

static void
hand_out(const scoring *s, const block *b, const ha_encoding *whole)
{
    for (size_t i = 0; i < b->n; i++) {
        if (s->scores != NULL) {
            s->scores[b->first + i] = b->best[i];
        }
        if (s->rows != NULL) {
            s->rows[b->first + i] = (ha_score_row){.n_windows = b->n_windows[i], .window = b->window[i], .truncated = whole->truncated[i],
                                                   .n_tokens = (int32_t)length_of(whole, i) + whole->truncated[i]};
        }
    }
}

static ha_status
score_block(const scoring *s, block *b)
{
    block_tick ticker = {s, b->first};
    const ha_encode_options options = {.add_special_tokens = 1, .truncation = HA_TRUNCATE_LONGEST_FIRST, .n_threads = s->n_threads,
                                       .max_length = s->options->long_rows == HA_LONG_TRUNCATE ? s->guard->max_length : SIZE_MAX,
                                       .tick = s->options->tick != NULL ? encode_tick : NULL, .tick_arg = &ticker};
    ha_encoding whole = {0};
    ha_windows pieces = {0};
    size_t longest = 0;
    ha_status status = ha_tokenizer_encode_batch(s->guard->tokenizer, b->prompts, b->responses, b->n, &options, &whole, s->err);
    for (size_t i = 0; i < b->n && status == HA_OK; i++) {
        longest = length_of(&whole, i) > longest ? length_of(&whole, i) : longest;
    }
    if (status == HA_OK && longest <= s->guard->max_length) {
        const ha_batch batch = {.n_rows = b->n, .offsets = whole.offsets, .ids = whole.ids, .type_ids = whole.type_ids};
        status = run_pieces(s, b, &batch, NULL);
    } else if (status == HA_OK && (status = cut(s, b, &whole, &pieces)) == HA_OK) {
        const ha_batch batch = {.n_rows = pieces.n, .offsets = pieces.offsets, .ids = pieces.ids, .type_ids = pieces.types};
        status = run_pieces(s, b, &batch, pieces.rows);
    }
    if (status == HA_OK) {
        hand_out(s, b, &whole);
    }
    ha_windows_free(&pieces);
    ha_encoding_free(&whole);
    return status;
}

ha_status
ha_guard_score(const ha_guard *guard, const ha_text *prompts, const ha_text *responses, size_t n, const ha_score_options *options,
               float *scores, float *logits, ha_score_row *rows, ha_error *err)
{
    return ha_guard_score_by(guard, prompts, responses, n, options, NULL, NULL, scores, logits, rows, err);
}

ha_status
ha_guard_score_by(const ha_guard *guard, const ha_text *prompts, const ha_text *responses, size_t n, const ha_score_options *options,
                  ha_logits_source source, void *arg, float *scores, float *logits, ha_score_row *rows, ha_error *err)
{
    static const ha_score_options defaults = {0};
    const ha_score_options *o = options != NULL ? options : &defaults;
    const scoring s = {guard, o, o->n_threads > 0 ? o->n_threads : ha_threads_now(), ha_guard_num_labels(guard),
                       o->temperature > 0 ? o->temperature : guard->temperature, source, arg, scores, logits, rows, err};
    block *b = n > 0 ? malloc(sizeof(*b)) : NULL;
    ha_status status = n > 0 && b == NULL ? ha_fail(err, HA_ERR_NOMEM, "guard: out of memory") : HA_OK;
    for (size_t first = 0; first < n && status == HA_OK; first += BLOCK_ROWS) {
        b->first = first;
        b->n = n - first < BLOCK_ROWS ? n - first : BLOCK_ROWS;
        status = take_texts(&s, b, prompts + first, responses != NULL ? responses + first : NULL);
        if (status == HA_OK) {
            status = score_block(&s, b);
        }
    }
    free(b);
    return status;
}
