#include "generation/loop.h"

#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "core/rng.h"

#define PROMPT_ROWS 256             /* prompt tokens in one pass, beside the live samples' */
#define WORTH_WAITING 16            /* tokens in common with a prompt of the same pass that make it worth waiting for that one */
#define LOGITS_BYTES ((size_t)32 << 20)     /* bound of the logits buffer, in rows of which there is one at least */

/* One request. Freed when its last sample is taken and it is no longer the one read last. */
typedef struct prompt {
    struct prompt *next;
    uint64_t number, first_index;
    int32_t *ids;
    size_t n_ids, n_samples, n_begun, n_done, n_taken;
    uint8_t *stops;                 /* the strings' bytes, one after another */
    size_t *stop_ends;              /* (n_stops,) */
    size_t n_stops, longest_stop;
    int stop_after_text;
    ha_kv_cache *cache;             /* NULL: not begun, or all samples done; its length: tokens read */
    float *logits;                  /* (vocab_size,) after the last token; NULL: not read to its end, or all samples begun */
} prompt;

typedef struct sample {
    struct sample *next;            /* in (request, sample) order */
    prompt *prompt;
    uint64_t number;
    int done;
    ha_stop_reason reason;
    double logprob;
    int32_t *ids;                   /* (max_new_tokens,) */
    size_t n_ids;
    uint8_t *text;
    size_t text_length, text_capacity, text_begin;      /* text_begin: where stop strings count from; SIZE_MAX: nowhere yet */
    ha_kv_cache *cache;             /* while live */
} sample;

/* A row whose logits a pass must give: a live sample's, or a prompt's last. */
typedef struct wanted {
    size_t row;
    sample *sample;
    prompt *prompt;
    int32_t token;
    double logprob;
    ha_status status;
} wanted;

struct ha_run {
    const ha_decoder *decoder;
    const ha_tokenizer *tokenizer;
    const ha_kernels *kernels;
    size_t vocab_size, context;
    ha_generation_options options;
    int32_t *stop_ids, *banned;
    size_t *banned_ends;
    int32_t *forbidden;                     /* (n_samplers, n_banned + n_stop_ids): what must not come next, one row a thread */
    uint64_t n_requests;
    prompt *first_prompt, *last_prompt;     /* all that are not wholly taken */
    prompt *next_prompt;                    /* the first with samples to begin; NULL: none */
    prompt *read_last;                      /* prompts share with it what they have in common; may have left the list */
    sample *first_sample, *last_sample, *taken;
    sample **live;                          /* (batch_size,), in (request, sample) order */
    size_t n_live, waiting;
    ha_kv_cache **free_caches;              /* (batch_size,) */
    size_t n_free_caches;
    ha_decoder_state *state;
    ha_segment *segments;                   /* (batch_size + PROMPT_ROWS,) */
    wanted *wanted;                         /* the same */
    size_t *rows;                           /* the same */
    float *logits;                          /* (logits_rows, vocab_size) */
    size_t logits_rows;
    ha_sampler **samplers;                  /* one a thread */
    int n_samplers;
    ha_run_totals totals;
};

/* -- life -- */

static void
free_prompt(prompt *p)
{
    if (p != NULL) {
        free(p->ids);
        free(p->stops);
        free(p->stop_ends);
        ha_kv_cache_free(p->cache);
        free(p->logits);
        free(p);
    }
}

static void
free_sample(sample *s)
{
    if (s != NULL) {
        free(s->ids);
        free(s->text);
        ha_kv_cache_free(s->cache);
        free(s);
    }
}

/* Whether a prompt is still reachable from the list of prompts: all but one that only read_last holds. */
static int
is_listed(const prompt *p)
{
    return p->n_taken < p->n_samples;
}

/* A copy of n elements of `size` bytes: never NULL for want of elements. */
static void *
copied(const void *from, size_t n, size_t size)
{
    void *to = calloc(n + 1, size);
    if (to != NULL && n > 0) {
        memcpy(to, from, n * size);
    }
    return to;
}

static ha_status
allocate(ha_run *run, ha_error *err)
{
    ha_generation_options *o = &run->options;
    const size_t rows = o->batch_size + PROMPT_ROWS;
    o->stop_ids = run->stop_ids = copied(o->stop_ids, o->n_stop_ids, sizeof(*run->stop_ids));
    o->banned = run->banned = copied(o->banned, o->n_banned > 0 ? o->banned_ends[o->n_banned - 1] : 0, sizeof(*run->banned));
    o->banned_ends = run->banned_ends = copied(o->banned_ends, o->n_banned, sizeof(*run->banned_ends));
    run->live = calloc(o->batch_size, sizeof(*run->live));
    run->free_caches = calloc(o->batch_size, sizeof(*run->free_caches));
    run->segments = calloc(rows, sizeof(*run->segments));
    run->wanted = calloc(rows, sizeof(*run->wanted));
    run->rows = calloc(rows, sizeof(*run->rows));
    const size_t fit = LOGITS_BYTES / sizeof(float) / run->vocab_size;
    run->logits_rows = fit < 1 ? 1 : fit > rows ? rows : fit;
    run->logits = malloc(run->logits_rows * run->vocab_size * sizeof(float));
    run->n_samplers = ha_threads_for(o->batch_size, 1, o->n_threads);
    run->samplers = calloc((size_t)run->n_samplers, sizeof(*run->samplers));
    run->forbidden = calloc((size_t)run->n_samplers * (o->n_banned + o->n_stop_ids) + 1, sizeof(*run->forbidden));
    if (run->stop_ids == NULL || run->banned == NULL || run->banned_ends == NULL || run->live == NULL || run->free_caches == NULL ||
        run->segments == NULL || run->wanted == NULL || run->rows == NULL || run->logits == NULL || run->samplers == NULL || run->forbidden == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: generation with batch_size %zu", o->batch_size);
    }
    for (int i = 0; i < run->n_samplers; i++) {
        ha_status status = ha_sampler_new(run->vocab_size, &run->samplers[i], err);
        if (status != HA_OK) {
            return status;
        }
    }
    return ha_decoder_state_new(run->decoder, rows, o->n_threads, &run->state, err);
}

/* The options of a run, but for what other modules check. */
static ha_status
check_options(const ha_generation_options *o, const ha_decoder_config *c, ha_error *err)
{
    if (o->batch_size < 1 || o->batch_size > 65536) {
        return ha_fail(err, HA_ERR_VALUE, "batch_size must be in 1..65536, got %zu", o->batch_size);
    }
    if (o->max_new_tokens < 1 || o->max_new_tokens >= c->max_position_embeddings) {
        return ha_fail(err, HA_ERR_VALUE, "max_new_tokens must be in 1..%zu (below the model's context), got %zu",
                       c->max_position_embeddings - 1, o->max_new_tokens);
    }
    if (o->min_new_tokens > o->max_new_tokens) {
        return ha_fail(err, HA_ERR_VALUE, "min_new_tokens must be in 0..max_new_tokens = %zu, got %zu", o->max_new_tokens, o->min_new_tokens);
    }
    for (size_t i = 0, begin = 0; i < o->n_banned; begin = o->banned_ends[i++]) {
        if (o->banned_ends[i] <= begin) {
            return ha_fail(err, HA_ERR_VALUE, "banned run %zu is empty", i);
        }
        for (size_t j = begin; j < o->banned_ends[i]; j++) {
            if (o->banned[j] < 0 || (size_t)o->banned[j] >= c->vocab_size) {
                return ha_fail(err, HA_ERR_VALUE, "banned id %ld lies outside the vocabulary of %zu", (long)o->banned[j], c->vocab_size);
            }
        }
    }
    for (size_t i = 0; o->min_new_tokens > 0 && i < o->n_stop_ids; i++) {
        if (o->stop_ids[i] < 0 || (size_t)o->stop_ids[i] >= c->vocab_size) {
            return ha_fail(err, HA_ERR_VALUE, "stop id %ld lies outside the vocabulary of %zu", (long)o->stop_ids[i], c->vocab_size);
        }
    }
    return HA_OK;
}

ha_status
ha_run_new(const ha_decoder *decoder, const ha_tokenizer *tokenizer, const ha_generation_options *options, ha_run **out, ha_error *err)
{
    *out = NULL;
    const ha_decoder_config *c = ha_decoder_config_of(decoder);
    ha_status status = ha_sampling_check(&options->sampling, err);
    if (status != HA_OK || (status = check_options(options, c, err)) != HA_OK) {
        return status;
    }
    ha_run *run = calloc(1, sizeof(*run));
    if (run == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    run->decoder = decoder;
    run->tokenizer = tokenizer;
    run->kernels = ha_decoder_kernels(decoder);
    run->vocab_size = c->vocab_size;
    run->context = c->max_position_embeddings;
    run->options = *options;
    status = allocate(run, err);
    if (status != HA_OK) {
        ha_run_free(run);
        return status;
    }
    *out = run;
    return HA_OK;
}

void
ha_run_free(ha_run *run)
{
    if (run == NULL) {
        return;
    }
    if (run->read_last != NULL && !is_listed(run->read_last)) {
        free_prompt(run->read_last);
    }
    for (prompt *p = run->first_prompt, *next; p != NULL; p = next) {
        next = p->next;
        free_prompt(p);
    }
    for (sample *s = run->first_sample, *next; s != NULL; s = next) {
        next = s->next;
        free_sample(s);
    }
    free_sample(run->taken);
    for (size_t i = 0; i < run->n_free_caches; i++) {
        ha_kv_cache_free(run->free_caches[i]);
    }
    for (int i = 0; run->samplers != NULL && i < run->n_samplers; i++) {
        ha_sampler_free(run->samplers[i]);
    }
    ha_decoder_state_free(run->state);
    free(run->stop_ids);
    free(run->banned);
    free(run->banned_ends);
    free(run->forbidden);
    free(run->live);
    free(run->free_caches);
    free(run->segments);
    free(run->wanted);
    free(run->rows);
    free(run->logits);
    free(run->samplers);
    free(run);
}

/* -- requests -- */

static ha_status
copy_stops(prompt *p, const ha_request *request, ha_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < request->n_stops; i++) {
        if (request->stops[i].length == 0 || request->stops[i].length > 4096) {
            return ha_fail(err, HA_ERR_VALUE, "a stop string must have 1..4096 bytes, got %zu", request->stops[i].length);
        }
        total += request->stops[i].length;
    }
    p->stops = malloc(total + 1);
    p->stop_ends = malloc((request->n_stops + 1) * sizeof(*p->stop_ends));
    if (p->stops == NULL || p->stop_ends == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: stop strings");
    }
    total = 0;
    for (size_t i = 0; i < request->n_stops; i++) {
        const size_t length = request->stops[i].length;
        memcpy(p->stops + total, request->stops[i].data, length);
        p->stop_ends[i] = total += length;
        p->longest_stop = length > p->longest_stop ? length : p->longest_stop;
    }
    p->n_stops = request->n_stops;
    return HA_OK;
}

ha_status
ha_run_add(ha_run *run, const ha_request *request, ha_error *err)
{
    if (request->n_ids == 0) {
        return ha_fail(err, HA_ERR_VALUE, "the prompt is empty: it needs one token at least");
    }
    if (request->n_ids > run->context || run->options.max_new_tokens > run->context - request->n_ids) {
        return ha_fail(err, HA_ERR_VALUE, "a prompt of %zu tokens and max_new_tokens = %zu exceed the model's context of %zu",
                       request->n_ids, run->options.max_new_tokens, run->context);
    }
    if (request->n_samples == 0 || request->n_samples > SIZE_MAX / 2 - run->waiting) {
        return ha_fail(err, HA_ERR_VALUE, "the number of samples must be >= 1, got %zu", request->n_samples);
    }
    if (request->n_stops > 0 && run->tokenizer == NULL) {
        return ha_fail(err, HA_ERR_VALUE, "stop strings need a tokenizer, and this model has none");
    }
    for (size_t i = 0; i < request->n_ids; i++) {
        if (request->ids[i] < 0 || (size_t)request->ids[i] >= run->vocab_size) {
            return ha_fail(err, HA_ERR_VALUE, "token %zu: id %ld lies outside the vocabulary of %zu", i, (long)request->ids[i], run->vocab_size);
        }
    }
    prompt *p = calloc(1, sizeof(*p));
    int32_t *ids = malloc(request->n_ids * sizeof(*ids));
    ha_status status = p != NULL && ids != NULL ? copy_stops(p, request, err)
                                                : ha_fail(err, HA_ERR_NOMEM, "out of memory: a prompt of %zu tokens", request->n_ids);
    if (status != HA_OK) {
        free(ids);
        free_prompt(p);
        return status;
    }
    memcpy(ids, request->ids, request->n_ids * sizeof(*ids));
    p->ids = ids;
    p->n_ids = request->n_ids;
    p->n_samples = request->n_samples;
    p->first_index = request->first_index;
    p->stop_after_text = request->stop_after_text;
    p->number = run->n_requests++;
    if (run->last_prompt != NULL) {
        run->last_prompt->next = p;
    }
    else {
        run->first_prompt = p;
    }
    run->last_prompt = p;
    if (run->next_prompt == NULL) {
        run->next_prompt = p;
    }
    run->waiting += p->n_samples;
    return HA_OK;
}

size_t
ha_run_waiting(const ha_run *run)
{
    return run->waiting;
}

int
ha_run_idle(const ha_run *run)
{
    return run->waiting == 0 && run->n_live == 0;
}

void
ha_run_totals_get(const ha_run *run, ha_run_totals *out)
{
    *out = run->totals;
}

/* -- a sample's tokens -- */

static int
is_space(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Where the first stop string begins in text[from..), or SIZE_MAX. */
static size_t
find_stop(const prompt *p, const uint8_t *text, size_t length, size_t from)
{
    for (size_t at = from; at < length; at++) {
        for (size_t i = 0, begin = 0; i < p->n_stops; begin = p->stop_ends[i++]) {
            const size_t n = p->stop_ends[i] - begin;
            if (n <= length - at && memcmp(text + at, p->stops + begin, n) == 0) {
                return at;
            }
        }
    }
    return SIZE_MAX;
}

/* Adds a token's bytes, and looks for stop strings that it completes. */
static ha_status
append_text(const ha_run *run, sample *s, int32_t token, ha_error *err)
{
    size_t n = 0;
    const uint8_t *bytes = run->tokenizer != NULL ? ha_tokenizer_token_bytes(run->tokenizer, token, &n) : NULL;
    if (bytes == NULL || n == 0) {
        return HA_OK;
    }
    if (s->text_capacity - s->text_length < n) {
        const size_t capacity = 2 * s->text_capacity + n + 64;
        uint8_t *text = realloc(s->text, capacity);
        if (text == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory: a sample's text");
        }
        s->text = text;
        s->text_capacity = capacity;
    }
    const size_t old = s->text_length;
    memcpy(s->text + old, bytes, n);
    s->text_length += n;
    for (size_t i = old; s->text_begin == SIZE_MAX && i < s->text_length; i++) {
        s->text_begin = is_space(s->text[i]) ? SIZE_MAX : i;
    }
    if (s->prompt->n_stops > 0 && s->text_begin != SIZE_MAX && s->n_ids >= run->options.min_new_tokens) {
        const size_t overlap = s->prompt->longest_stop - 1, first = old > overlap ? old - overlap : 0;
        const size_t at = find_stop(s->prompt, s->text, s->text_length, first > s->text_begin ? first : s->text_begin);
        if (at != SIZE_MAX) {
            s->text_length = at;
            s->reason = HA_STOP_STRING;
            s->done = 1;
        }
    }
    return HA_OK;
}

static ha_status
append_token(ha_run *run, sample *s, int32_t token, double logprob, ha_error *err)
{
    s->ids[s->n_ids++] = token;
    s->logprob += logprob;
    run->totals.new_tokens++;
    for (size_t i = 0; i < run->options.n_stop_ids; i++) {
        if (run->stop_ids[i] == token) {
            s->reason = HA_STOP_EOS;
            s->done = 1;
            return HA_OK;
        }
    }
    ha_status status = append_text(run, s, token, err);
    if (status == HA_OK && !s->done && s->n_ids == run->options.max_new_tokens) {
        s->reason = HA_STOP_LENGTH;
        s->done = 1;
    }
    return status;
}

/* Whether prompt and continuation end with the n ids before a banned run's last. */
static int
ends_with(const sample *s, const int32_t *ids, size_t n)
{
    const prompt *p = s->prompt;
    if (n > p->n_ids + s->n_ids) {
        return 0;
    }
    for (size_t i = 0; i < n; i++) {        /* from the end */
        const int32_t id = i < s->n_ids ? s->ids[s->n_ids - 1 - i] : p->ids[p->n_ids - 1 - (i - s->n_ids)];
        if (id != ids[n - 1 - i]) {
            return 0;
        }
    }
    return 1;
}

/* Draws a sample's next token. */
static ha_status
draw_token(const ha_run *run, const sample *s, int thread, float *logits, int32_t *token, double *logprob, ha_error *err)
{
    const ha_generation_options *o = &run->options;
    int32_t *forbidden = run->forbidden + (size_t)thread * (o->n_banned + o->n_stop_ids);
    size_t n = 0;
    for (size_t i = 0, begin = 0; i < o->n_banned; begin = o->banned_ends[i++]) {
        const size_t last = o->banned_ends[i] - 1;
        if (ends_with(s, o->banned + begin, last - begin)) {
            forbidden[n++] = o->banned[last];
        }
    }
    for (size_t i = 0; s->n_ids < o->min_new_tokens && i < o->n_stop_ids; i++) {
        forbidden[n++] = o->stop_ids[i];
    }
    const ha_history history = {s->prompt->ids, s->ids, s->prompt->n_ids, s->n_ids, forbidden, n};
    return ha_sampler_draw(run->samplers[thread], run->kernels, &o->sampling, &history, logits,
                           ha_uniform(o->seed, s->prompt->first_index + s->number, s->n_ids), token, logprob, err);
}

/* -- a step -- */

/* Notes that one more sample of a prompt is done: after the last, nobody reads its keys and values but the prompts read next. */
static void
count_done(const ha_run *run, prompt *p, size_t n)
{
    p->n_done += n;
    if (p->n_done == p->n_samples && p != run->read_last) {
        ha_kv_cache_free(p->cache);
        p->cache = NULL;
    }
}

/* Begins the next sample of a prompt that is read: its first token comes from the prompt's logits. */
static ha_status
begin_sample(ha_run *run, prompt *p, ha_error *err)
{
    sample *s = calloc(1, sizeof(*s));
    if (s == NULL || (s->ids = malloc(run->options.max_new_tokens * sizeof(*s->ids))) == NULL) {
        free(s);
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: a sample");
    }
    s->prompt = p;
    s->number = p->n_begun++;
    s->text_begin = p->stop_after_text ? SIZE_MAX : 0;
    if (run->last_sample != NULL) {
        run->last_sample->next = s;
    }
    else {
        run->first_sample = s;
    }
    run->last_sample = s;
    run->waiting--;
    int32_t token = 0;
    double logprob = 0;
    ha_status status = draw_token(run, s, 0, p->logits, &token, &logprob, err);
    if (status == HA_OK) {
        status = append_token(run, s, token, logprob, err);
    }
    if (s->done) {
        count_done(run, p, 1);
    }
    if (status != HA_OK || s->done) {
        return status;
    }
    if (run->n_free_caches > 0) {
        s->cache = run->free_caches[--run->n_free_caches];
        s->cache->length = 0;
    }
    else {
        status = ha_decoder_cache_new(run->decoder, run->options.max_new_tokens, &s->cache, err);
    }
    run->live[run->n_live++] = s;
    return status;
}

/* Fills free places, in order, as far as prompts are read. */
static ha_status
refill(ha_run *run, ha_error *err)
{
    while (run->n_live < run->options.batch_size && run->next_prompt != NULL && run->next_prompt->logits != NULL) {
        prompt *p = run->next_prompt;
        ha_status status = begin_sample(run, p, err);
        if (status != HA_OK) {
            return status;
        }
        if (p->n_begun == p->n_samples) {
            free(p->logits);
            p->logits = NULL;
            run->next_prompt = p->next;
        }
    }
    return HA_OK;
}

static size_t
common_length(const prompt *a, const prompt *b)
{
    size_t n = 0;
    while (n < a->n_ids && n < b->n_ids && a->ids[n] == b->ids[n]) {
        n++;
    }
    return n;
}

/* Opens a prompt's cache, with what it has in common with the prompt read last. One token at least is left to read: it gives the logits. */
static ha_status
open_prompt(ha_run *run, prompt *p, ha_error *err)
{
    ha_status status = ha_decoder_cache_new(run->decoder, p->n_ids, &p->cache, err);
    if (status == HA_OK && run->read_last != NULL) {
        const size_t common = common_length(run->read_last, p);
        ha_kv_cache_copy(p->cache, run->read_last->cache, common < p->n_ids ? common : p->n_ids - 1);
    }
    if (status == HA_OK) {
        run->totals.prompt_tokens += p->n_ids;
        run->totals.prompt_tokens_computed += p->n_ids - p->cache->length;
    }
    return status;
}

/* Adds segments of prompts whose samples come next: enough for the free places, and some ahead so that places are never empty for long. */
static ha_status
plan_prompts(ha_run *run, size_t *n_segments, size_t *n_wanted, size_t *n_rows, ha_error *err)
{
    const size_t batch = run->options.batch_size, ahead = batch - run->n_live + batch / 8 + 1;
    size_t room = PROMPT_ROWS, samples = 0;
    prompt *reading = NULL;         /* the prompt before, if it is in this same pass */
    for (prompt *p = run->next_prompt; p != NULL && room > 0 && samples < ahead; p = p->next) {
        samples += p->n_samples - p->n_begun;
        if (p->logits != NULL) {
            continue;
        }
        if (p->cache == NULL) {
            const size_t saved = run->read_last != NULL ? common_length(run->read_last, p) : 0;
            if (reading != NULL && common_length(reading, p) >= saved + WORTH_WAITING) {
                break;
            }
            ha_status status = open_prompt(run, p, err);
            if (status != HA_OK) {
                return status;
            }
        }
        const size_t left = p->n_ids - p->cache->length, n = left < room ? left : room;
        run->segments[(*n_segments)++] = (ha_segment){p->ids + p->cache->length, n, NULL, p->cache};
        *n_rows += n;
        room -= n;
        reading = p;
        if (n == left) {
            run->wanted[(*n_wanted)++] = (wanted){.row = *n_rows - 1, .prompt = p};
        }
    }
    return HA_OK;
}

/* Notes that a prompt is read: its logits are kept for its samples, its keys for the next prompt. */
static ha_status
finish_prompt(ha_run *run, prompt *p, const float *logits, ha_error *err)
{
    p->logits = malloc(run->vocab_size * sizeof(float));
    if (p->logits == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory: a prompt's logits");
    }
    memcpy(p->logits, logits, run->vocab_size * sizeof(float));
    prompt *before = run->read_last;
    run->read_last = p;
    if (before != NULL && !is_listed(before)) {
        free_prompt(before);
    }
    else if (before != NULL) {
        count_done(run, before, 0);
    }
    return HA_OK;
}

/* Draws for rows [0, n) of the logits buffer. */
static ha_status
draw(ha_run *run, wanted *rows, size_t n, ha_error *err)
{
    int threads = ha_threads_for(n, 1, run->options.n_threads);
    threads = threads < run->n_samplers ? threads : run->n_samplers;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(ha_team(threads)) if (threads > 1) schedule(dynamic, 1)
#endif
    for (ptrdiff_t i = 0; i < (ptrdiff_t)n; i++) {
        wanted *w = &rows[i];
        if (w->sample != NULL) {
            w->status = draw_token(run, w->sample, ha_thread_index(), run->logits + (size_t)i * run->vocab_size, &w->token, &w->logprob, NULL);
        }
    }
    for (size_t i = 0; i < n; i++) {
        wanted *w = &rows[i];
        ha_status status = HA_OK;
        if (w->prompt != NULL) {
            status = finish_prompt(run, w->prompt, run->logits + i * run->vocab_size, err);
        }
        else if (w->status != HA_OK) {
            status = draw_token(run, w->sample, 0, run->logits + i * run->vocab_size, &w->token, &w->logprob, err);     /* again, for its message */
        }
        else {
            status = append_token(run, w->sample, w->token, w->logprob, err);
        }
        if (status != HA_OK) {
            return status;
        }
    }
    return HA_OK;
}

/* Takes finished samples from the live ones, keeping the order, and their caches back. */
static void
retire(ha_run *run)
{
    size_t n = 0;
    for (size_t i = 0; i < run->n_live; i++) {
        sample *s = run->live[i];
        if (s->done) {
            run->free_caches[run->n_free_caches++] = s->cache;
            s->cache = NULL;
            count_done(run, s->prompt, 1);
        }
        else {
            run->live[n++] = s;
        }
    }
    run->n_live = n;
}

ha_status
ha_run_step(ha_run *run, ha_error *err)
{
    size_t n_segments = 0, n_wanted = 0, n_rows = 0;
    ha_status status = refill(run, err);
    if (status != HA_OK) {
        return status;
    }
    for (size_t i = 0; i < run->n_live; i++) {
        sample *s = run->live[i];
        run->segments[n_segments++] = (ha_segment){s->ids + s->n_ids - 1, 1, s->prompt->cache, s->cache};
        run->wanted[n_wanted++] = (wanted){.row = n_rows++, .sample = s};
    }
    status = plan_prompts(run, &n_segments, &n_wanted, &n_rows, err);
    if (status != HA_OK || n_segments == 0) {
        return status;
    }
    status = ha_decoder_forward(run->decoder, run->state, run->segments, n_segments, err);
    for (size_t first = 0; status == HA_OK && first < n_wanted; first += run->logits_rows) {
        const size_t n = n_wanted - first < run->logits_rows ? n_wanted - first : run->logits_rows;
        for (size_t i = 0; i < n; i++) {
            run->rows[i] = run->wanted[first + i].row;
        }
        status = ha_decoder_head(run->decoder, run->state, run->rows, n, run->logits, err);
        if (status == HA_OK) {
            status = draw(run, run->wanted + first, n, err);
        }
    }
    if (status == HA_OK) {
        run->totals.steps++;
        retire(run);
    }
    return status;
}

int
ha_run_next(ha_run *run, ha_generated *out)
{
    static const uint8_t nothing[1] = {0};
    sample *s = run->first_sample;
    free_sample(run->taken);
    run->taken = NULL;
    if (s == NULL || !s->done) {
        return 0;
    }
    run->first_sample = s->next;
    if (run->last_sample == s) {
        run->last_sample = NULL;
    }
    *out = (ha_generated){s->prompt->number, s->number, s->ids, s->n_ids, s->text != NULL ? s->text : nothing, s->text_length, s->logprob, s->reason};
    run->taken = s;
    prompt *p = s->prompt;          /* the head of the list: samples are taken in order */
    if (++p->n_taken == p->n_samples) {
        run->first_prompt = p->next;
        if (run->last_prompt == p) {
            run->last_prompt = NULL;
        }
        if (run->read_last != p) {
            free_prompt(p);
        }
    }
    return 1;
}
