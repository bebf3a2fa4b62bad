/* Rows of more tokens than the model reads at once, cut into windows as Hugging Face `tokenizers` cuts them (the last ends where the text ends). */
#include <stdlib.h>
#include <string.h>

#include "guard/guard_impl.h"

/* -- pieces -- */

void
ha_windows_free(ha_windows *pieces)
{
    free(pieces->offsets);
    free(pieces->rows);
    free(pieces->ids);
    free(pieces->types);
    *pieces = (ha_windows){0};
}

/* Room for another row of n_tokens. */
static ha_status
reserve(ha_windows *p, size_t n_tokens, ha_error *err)
{
    const size_t tokens = n_tokens < SIZE_MAX / 16 ? p->n_tokens + n_tokens : SIZE_MAX;
    int fits = tokens < SIZE_MAX / 16;
    if (fits && p->n + 2 > p->row_room) {
        const size_t room = 2 * (p->n + 2);
        int64_t *offsets = realloc(p->offsets, room * sizeof(*offsets));
        p->offsets = offsets != NULL ? offsets : p->offsets;
        size_t *rows = realloc(p->rows, room * sizeof(*rows));
        p->rows = rows != NULL ? rows : p->rows;
        fits = offsets != NULL && rows != NULL;
        p->row_room = fits ? room : p->row_room;
    }
    if (fits && tokens > p->token_room) {
        const size_t room = 2 * tokens;
        int32_t *ids = realloc(p->ids, room * sizeof(*ids));
        p->ids = ids != NULL ? ids : p->ids;
        uint8_t *types = realloc(p->types, room);
        p->types = types != NULL ? types : p->types;
        fits = ids != NULL && types != NULL;
        p->token_room = fits ? room : p->token_room;
    }
    return fits ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "guard: out of memory for %zu tokens", tokens);
}

/* Tokens of the row that is being made; there is room. types NULL: all of `type`. */
static void
put(ha_windows *p, const int32_t *ids, const uint8_t *types, uint8_t type, size_t n)
{
    if (n == 0) {
        return;
    }
    memcpy(p->ids + p->n_tokens, ids, n * sizeof(*ids));
    if (types != NULL) {
        memcpy(p->types + p->n_tokens, types, n);
    } else {
        memset(p->types + p->n_tokens, type, n);
    }
    p->n_tokens += n;
}

static void
close_row(ha_windows *p, size_t row)
{
    p->offsets[0] = 0;
    p->rows[p->n++] = row;
    p->offsets[p->n] = (int64_t)p->n_tokens;
}

ha_status
ha_windows_add(ha_windows *p, size_t row, const int32_t *ids, const uint8_t *types, size_t n, ha_error *err)
{
    const ha_status status = reserve(p, n, err);
    if (status == HA_OK) {
        put(p, ids, types, 0, n);
        close_row(p, row);
    }
    return status;
}

/* -- the template -- */

/* Where `part` begins within `ids`, the last place or the first; SIZE_MAX: nowhere. */
static size_t
find(const int32_t *ids, size_t n, const int32_t *part, size_t n_part, int last)
{
    size_t found = SIZE_MAX;
    for (size_t i = 0; n_part > 0 && i + n_part <= n && (last || found == SIZE_MAX); i++) {
        if (memcmp(ids + i, part, n_part * sizeof(*ids)) == 0) {
            found = i;
        }
    }
    return found;
}

ha_status
ha_template_learn(const ha_tokenizer *tokenizer, ha_template *t, ha_error *err)
{
    static const ha_text a = {"a", 1}, b = {"b", 1}, texts[2] = {{"a", 1}, {"b", 1}};
    const ha_encode_options bare = {.max_length = SIZE_MAX, .n_threads = 1}, whole = {.add_special_tokens = 1, .max_length = SIZE_MAX, .n_threads = 1};
    ha_encoding plain = {0};
    ha_status status;
    *t = (ha_template){0};
    if ((status = ha_tokenizer_encode_batch(tokenizer, texts, NULL, 2, &bare, &plain, err)) != HA_OK ||
        (status = ha_tokenizer_encode_batch(tokenizer, &a, NULL, 1, &whole, &t->one, err)) != HA_OK ||
        (status = ha_tokenizer_encode_batch(tokenizer, &a, &b, 1, &whole, &t->two, err)) != HA_OK) {
        goto done;
    }
    const size_t n_a = (size_t)plain.offsets[1], n_b = (size_t)(plain.offsets[2] - plain.offsets[1]);
    const size_t n_one = (size_t)t->one.offsets[1], n_two = (size_t)t->two.offsets[1];
    t->one_begin = find(t->one.ids, n_one, plain.ids, n_a, 0);
    t->a_begin = find(t->two.ids, n_two, plain.ids, n_a, 0);
    t->b_begin = find(t->two.ids, n_two, plain.ids + n_a, n_b, 1);
    if (t->one_begin == SIZE_MAX || t->a_begin == SIZE_MAX || t->b_begin == SIZE_MAX || t->b_begin < t->a_begin + n_a) {
        status = ha_fail(err, HA_ERR_FORMAT, "the tokenizer's special tokens change the text between them: windows over long texts can't be made");
        goto done;
    }
    t->one_end = t->one_begin + n_a;
    t->a_end = t->a_begin + n_a;
    t->b_end = t->b_begin + n_b;
    t->single = n_one - n_a;
    t->pair = n_two - n_a - n_b;
done:
    ha_encoding_free(&plain);
    return status;
}

void
ha_template_free(ha_template *t)
{
    ha_encoding_free(&t->one);
    ha_encoding_free(&t->two);
}

/* Part of the tokens of a text. */
typedef struct run {
    const int32_t *ids;
    size_t n;
} run;

static void
put_probe(ha_windows *p, const ha_encoding *probe, size_t begin, size_t end)
{
    put(p, probe->ids + begin, probe->type_ids + begin, 0, end - begin);
}

static ha_status
add_one(const ha_template *t, ha_windows *p, size_t row, run a, ha_error *err)
{
    const ha_status status = reserve(p, t->single + a.n, err);
    if (status == HA_OK) {
        put_probe(p, &t->one, 0, t->one_begin);
        put(p, a.ids, NULL, t->one.type_ids[t->one_begin], a.n);
        put_probe(p, &t->one, t->one_end, (size_t)t->one.offsets[1]);
        close_row(p, row);
    }
    return status;
}

static ha_status
add_pair(const ha_template *t, ha_windows *p, size_t row, run a, run b, ha_error *err)
{
    const ha_status status = reserve(p, t->pair + a.n + b.n, err);
    if (status == HA_OK) {
        put_probe(p, &t->two, 0, t->a_begin);
        put(p, a.ids, NULL, t->two.type_ids[t->a_begin], a.n);
        put_probe(p, &t->two, t->a_end, t->b_begin);
        put(p, b.ids, NULL, t->two.type_ids[t->b_begin], b.n);
        put_probe(p, &t->two, t->b_end, (size_t)t->two.offsets[1]);
        close_row(p, row);
    }
    return status;
}

/* -- windows -- */

/* Windows over n tokens that share `stride` of them. */
typedef struct slide {
    size_t n, window, stride, next;
    int last;           /* this window ends at n */
    run at;
} slide;

static int
slide_next(slide *s, const int32_t *ids)
{
    const size_t step = s->window - (s->stride < s->window ? s->stride : s->window - 1);
    if (s->last) {
        return 0;
    }
    s->last = s->n - s->next <= s->window;
    s->at.ids = ids + s->next;
    s->at.n = s->last ? s->n - s->next : s->window;
    s->next += step;
    return 1;
}

static ha_status
pair_windows(const ha_guard *guard, ha_windows *p, size_t row, run a, run b, ha_error *err)
{
    const ha_template *t = &guard->template;
    const size_t room = guard->max_length - t->pair, half = room / 2, stride = guard->max_length / 4;
    ha_status status = HA_OK;
    if (b.n > half) {       /* the response slides beside the prompt, or beside its end, which it answers */
        const size_t n = a.n <= room - half ? a.n : half;
        const run kept = {a.ids + (a.n - n), n};
        slide s = {.n = b.n, .window = room - n, .stride = stride};
        while (status == HA_OK && slide_next(&s, b.ids)) {
            status = add_pair(t, p, row, kept, s.at, err);
        }
    }
    if (a.n > room - half || b.n <= half) {     /* the prompt slides beside the response, or beside its beginning; its end was read above */
        const run kept = {b.ids, b.n < half ? b.n : half};
        slide s = {.n = a.n, .window = room - kept.n, .stride = stride};
        while (status == HA_OK && slide_next(&s, a.ids) && !(s.last && b.n > half)) {
            status = add_pair(t, p, row, s.at, kept, err);
        }
    }
    return status;
}

ha_status
ha_guard_windows(const ha_guard *guard, size_t row, ha_text prompt, ha_text response, ha_windows *pieces, ha_error *err)
{
    const ha_encode_options bare = {.max_length = SIZE_MAX, .n_threads = 1};
    const ha_text texts[2] = {prompt, response};
    ha_encoding plain = {0};
    ha_status status = ha_tokenizer_encode_batch(guard->tokenizer, texts, NULL, response.data != NULL ? 2 : 1, &bare, &plain, err);
    if (status == HA_OK && response.data != NULL) {
        const run a = {plain.ids, (size_t)plain.offsets[1]}, b = {plain.ids + a.n, (size_t)(plain.offsets[2] - plain.offsets[1])};
        status = pair_windows(guard, pieces, row, a, b, err);
    } else if (status == HA_OK) {
        slide s = {.n = (size_t)plain.offsets[1], .window = guard->max_length - guard->template.single, .stride = guard->max_length / 4};
        while (status == HA_OK && slide_next(&s, plain.ids)) {
            status = add_one(&guard->template, pieces, row, s.at, err);
        }
    }
    ha_encoding_free(&plain);
    return status;
}
