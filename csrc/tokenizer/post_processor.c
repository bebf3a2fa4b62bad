#include "tokenizer/pipeline.h"

void
ha_post_processor_none(ha_post_processor *post)
{
    post->single = (ha_template){{{HA_TEMPLATE_A, 0, -1}}, 1};
    post->pair = (ha_template){{{HA_TEMPLATE_A, 0, -1}, {HA_TEMPLATE_B, 1, -1}}, 2};
}

void
ha_post_processor_bert(ha_post_processor *post, int32_t cls, int32_t sep, int roberta)
{
    const ha_template_item first = {HA_TEMPLATE_SPECIAL, 0, cls}, last = {HA_TEMPLATE_SPECIAL, 0, sep};
    const ha_template_item a = {HA_TEMPLATE_A, 0, -1};
    post->single = (ha_template){{first, a, last}, 3};
    post->windows_type_0 = roberta;
    if (roberta) {
        post->pair = (ha_template){{first, a, last, last, {HA_TEMPLATE_B, 0, -1}, last}, 6};
    } else {
        post->pair = (ha_template){{first, a, last, {HA_TEMPLATE_B, 1, -1}, {HA_TEMPLATE_SPECIAL, 1, sep}}, 5};
    }
}

void
ha_post_processor_bos_eos(ha_post_processor *post, int32_t bos, int32_t eos, uint8_t pair_type)
{
    ha_template *single = &post->single, *pair = &post->pair;
    single->n = pair->n = 0;
    for (int b = 0; b < 2; b++) {
        const uint8_t type = b ? pair_type : 0;
        const ha_template_item items[3] = {{HA_TEMPLATE_SPECIAL, type, bos}, {b ? HA_TEMPLATE_B : HA_TEMPLATE_A, type, -1}, {HA_TEMPLATE_SPECIAL, type, eos}};
        for (int k = 0; k < 3; k++) {
            if (items[k].kind == HA_TEMPLATE_SPECIAL && items[k].id < 0) {
                continue;
            }
            pair->items[pair->n++] = items[k];
            if (!b) {
                single->items[single->n++] = items[k];
            }
        }
    }
}

size_t
ha_template_added(const ha_template *t)
{
    size_t n = 0;
    for (size_t i = 0; i < t->n; i++) {
        n += t->items[i].kind == HA_TEMPLATE_SPECIAL;
    }
    return n;
}

static void
keep(size_t n, size_t wanted, int left, size_t *begin, size_t *end)
{
    const size_t drop = wanted < n ? n - wanted : 0;
    *begin = left ? drop : 0;
    *end = left ? n : n - drop;
}

/* The lengths to which longest_first cuts (tokenizers, utils/truncation.rs): the shorter text stays whole when the other then fits in the rest, else half each,
 * the odd token to the longer. */
static void
longest_first(size_t n_a, size_t n_b, size_t limit, size_t *a, size_t *b)
{
    size_t shorter = n_a < n_b ? n_a : n_b, longer;
    if (shorter > limit) {
        longer = shorter;
    } else {
        longer = shorter > limit - shorter ? shorter : limit - shorter;
    }
    if (shorter + longer > limit) {
        shorter = limit / 2;
        longer = shorter + limit % 2;
    }
    *a = n_a > n_b ? longer : shorter;
    *b = n_a > n_b ? shorter : longer;
}

ha_status
ha_truncate(const ha_post_processor *post, const ha_encode_options *options, size_t n_a, size_t n_b, ha_kept *kept, ha_error *err)
{
    const int pair = n_b != SIZE_MAX;
    const size_t total = n_a + (pair ? n_b : 0);
    *kept = (ha_kept){0, n_a, 0, pair ? n_b : 0};
    if (options->truncation == HA_TRUNCATE_NONE || options->max_length == SIZE_MAX) {
        return HA_OK;
    }
    size_t limit = options->max_length;
    if (options->add_special_tokens) {
        const size_t added = ha_template_added(pair ? &post->pair : &post->single);
        if (limit < added) {
            return HA_OK;       /* as in the reference, where the difference wraps around: no limit */
        }
        limit -= added;
    }
    if (limit == 0) {
        *kept = (ha_kept){0, 0, 0, 0};
        return HA_OK;
    }
    if (total <= limit) {
        return HA_OK;
    }
    size_t a = n_a, b = pair ? n_b : 0;
    if (options->truncation == HA_TRUNCATE_LONGEST_FIRST) {
        if (pair) {
            longest_first(n_a, n_b, limit, &a, &b);
        } else {
            a = limit;
        }
    } else {
        const int second = options->truncation == HA_TRUNCATE_ONLY_SECOND;
        if (second && !pair) {
            return ha_fail(err, HA_ERR_VALUE, "truncation 'only_second' needs a pair: the text has %zu tokens, over the limit of %zu", n_a, limit);
        }
        size_t *target = second ? &b : &a;
        if (*target <= total - limit) {
            return ha_fail(err, HA_ERR_VALUE, "truncation '%s' can't meet max_length %zu: %zu tokens would have to go from a text of %zu",
                           second ? "only_second" : "only_first", options->max_length, total - limit, *target);
        }
        *target -= total - limit;
    }
    keep(n_a, a, options->truncate_left, &kept->a_begin, &kept->a_end);
    keep(pair ? n_b : 0, b, options->truncate_left, &kept->b_begin, &kept->b_end);
    return HA_OK;
}
