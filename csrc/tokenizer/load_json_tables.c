/* tokenizer.json: the vocabulary and the merges, taken item by item as the file is parsed. As nodes, 128,000 of each would be tens of megabytes of fresh pages,
 * which is most of the time that such a file takes. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/load_json.h"

/* ---- vocabulary: {"token": id, ...} ---- */

static int
vocab_opens(void *context, ha_json_type type)
{
    (void)context;
    return type == HA_JSON_OBJECT;
}

static ha_status
vocab_item(void *context, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    const ha_json_reader *r = context;
    ha_vocab *vocab = &r->tok->vocab;
    const size_t before = vocab->n_tokens;
    uint64_t id;
    (void)json;
    if (!ha_json_u64(item, &id)) {
        return ha_fail(err, HA_ERR_FORMAT, "vocab: the id of '%.80s' is no non-negative integer", item->key);
    }
    TRY(ha_vocab_add(vocab, item->key, item->key_length, id, r->max_ids, err));
    return vocab->n_tokens > before ? HA_OK : ha_fail(err, HA_ERR_FORMAT, "vocab: '%.80s' stands twice", item->key);
}

ha_status
ha_load_vocab(const ha_json_reader *r, const ha_json_node *model)
{
    const ha_json_node *vocab = ha_json_get(r->json, model, "vocab");
    if (vocab == NULL || vocab->type != HA_JSON_OBJECT) {
        return ha_fail(r->err, HA_ERR_FORMAT, "model: \"vocab\" is missing or no object");
    }
    r->tok->n_model_tokens = r->tok->vocab.n_tokens;
    r->tok->n_model_ids = r->tok->vocab.n_ids;
    return HA_OK;
}

/* ---- merges ---- */

/* Left and right half of a merge, "a b" or ["a", "b"]. */
static int
merge_halves(const ha_json *json, const ha_json_node *item, const char *half[2], size_t length[2])
{
    if (item->type == HA_JSON_STRING) {
        const char *space = memchr(item->string, ' ', item->length);
        if (space == NULL || memchr(space + 1, ' ', item->length - (size_t)(space + 1 - item->string)) != NULL) {
            return 0;
        }
        half[0] = item->string, length[0] = (size_t)(space - item->string);
        half[1] = space + 1, length[1] = item->length - length[0] - 1;
        return 1;
    }
    const ha_json_node *left = item->type == HA_JSON_ARRAY && item->length == 2 ? ha_json_first(json, item) : NULL;
    const ha_json_node *right = left != NULL ? ha_json_next(json, left) : NULL;
    if (right == NULL || left->type != HA_JSON_STRING || right->type != HA_JSON_STRING) {
        return 0;
    }
    half[0] = left->string, length[0] = left->length;
    half[1] = right->string, length[1] = right->length;
    return 1;
}

static ha_status
add_merge(const ha_json_reader *r, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    ha_load_merge_list *list = r->merges;
    const char *half[2];
    size_t length[2];
    if (!merge_halves(json, item, half, length)) {
        return ha_fail(err, HA_ERR_FORMAT, "merges[%zu]: expected \"left right\" or [\"left\", \"right\"]", list->n);
    }
    if (list->n == list->capacity) {
        const size_t capacity = list->capacity * 2 + 1024;
        ha_merge *at = capacity > SIZE_MAX / sizeof(*at) ? NULL : realloc(list->at, capacity * sizeof(*at));
        if (at == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu merges", capacity);
        }
        list->at = at;
        list->capacity = capacity;
    }
    const int32_t guess = list->n > 0 ? list->at[list->n - 1].merged + 1 : -1;
    TRY(ha_merge_find(&r->tok->vocab, list->n, half, length, guess, &list->at[list->n], err));
    list->n++;
    return HA_OK;
}

/* They need the vocabulary: where it stands behind them, they wait as nodes. */
static int
merges_open(void *context, ha_json_type type)
{
    const ha_json_reader *r = context;
    return type == HA_JSON_ARRAY && r->tok->vocab.n_tokens > 0;
}

static ha_status
merges_item(void *context, const ha_json *json, const ha_json_node *item, ha_error *err)
{
    return add_merge(context, json, item, err);
}

ha_status
ha_load_merges(const ha_json_reader *r, const ha_json_node *model)
{
    const ha_json_node *merges = ha_json_get(r->json, model, "merges");
    if (merges == NULL || merges->type != HA_JSON_ARRAY) {
        return ha_fail(r->err, HA_ERR_FORMAT, "BPE: \"merges\" is missing or no array");
    }
    for (const ha_json_node *item = ha_json_first(r->json, merges); item != NULL; item = ha_json_next(r->json, item)) {
        TRY(add_merge(r, r->json, item, r->err));
    }
    TRY(ha_bpe_reserve(&r->tok->bpe, r->merges->n, r->err));
    for (size_t i = 0; i < r->merges->n; i++) {
        const ha_merge merge = r->merges->at[i];
        ha_bpe_add_merge(&r->tok->bpe, merge.left, merge.right, merge.merged);
    }
    return HA_OK;
}

const ha_json_sink ha_load_sinks[HA_LOAD_SINKS] = {
    {"model", "vocab", vocab_opens, vocab_item},
    {"model", "merges", merges_open, merges_item},
};
