#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tensor_file.h"
#include "training/trainer.h"
#include "training/trainer_impl.h"

#define NAME 192

/* The tensors of a file to write: filled one by one, each with room for its name. */
typedef struct tensor_list {
    ha_tensor_out *items;
    char (*names)[NAME];
    size_t count;
} tensor_list;

static int
list_new(tensor_list *list, size_t capacity)
{
    list->items = calloc(capacity, sizeof(*list->items));
    list->names = calloc(capacity, sizeof(*list->names));
    list->count = 0;
    return list->items != NULL && list->names != NULL;
}

static void
list_add(tensor_list *list, ha_dtype dtype, const char *prefix, const char *name, const char *suffix, int ndim,
         const size_t shape[3], const float *data)
{
    char *full = list->names[list->count];
    snprintf(full, NAME, "%s%s%s", prefix, name, suffix);
    list->items[list->count++] =
        (ha_tensor_out){.name = full, .dtype = dtype, .ndim = ndim, .shape = {shape[0], shape[1], shape[2]}, .data = data};
}

static void
list_free(tensor_list *list)
{
    free(list->items);
    free(list->names);
}

/* -- the word embedding's moments: only rows seen so far have any -- */

static size_t
count_seen(const ha_trainer *t)
{
    size_t n = 0;
    for (size_t r = 0; r < t->word->shape[0]; r++) {
        n += t->seen[r];
    }
    return n;
}

static int
words_trained(const ha_trainer *t)
{
    return t->trainable[t->word - t->params->items];
}

/* packed (n_seen, hidden) <- the seen rows of block, or back. */
static void
copy_seen(const ha_trainer *t, float *packed, float *block, int unpack)
{
    const size_t hidden = t->word->shape[1];
    for (size_t r = 0; r < t->word->shape[0]; r++) {
        if (t->seen[r]) {
            float *row = block + t->word->offset + r * hidden;
            memcpy(unpack ? row : packed, unpack ? packed : row, hidden * sizeof(float));
            packed += hidden;
        }
    }
}

ha_status
ha_trainer_save(ha_trainer *t, const char *path, int moments, ha_error *err)
{
    const size_t n_seen = moments && words_trained(t) ? count_seen(t) : 0;
    const size_t hidden = t->word->shape[1], vocab = t->word->shape[0];
    ha_status status = HA_ERR_NOMEM;
    tensor_list list = {0};
    ha_trainer_settle(t);
    float *packed = NULL, *seen = NULL;
    if (!list_new(&list, 3 * t->params->count + 8) ||
        (packed = malloc((2 * n_seen * hidden + 1) * sizeof(float))) == NULL ||
        (seen = malloc((vocab + 1) * sizeof(float))) == NULL) {
        goto done;
    }
    for (size_t i = 0; i < t->params->count; i++) {
        const ha_param *p = &t->params->items[i];
        if (!t->trainable[i]) {
            continue;
        }
        list_add(&list, HA_F32, "w.", p->name, "", p->ndim, p->shape, t->params->data + p->offset);
        if (moments && p != t->word) {
            list_add(&list, HA_F32, "m.", p->name, "", p->ndim, p->shape, t->m + p->offset);
            list_add(&list, HA_F32, "v.", p->name, "", p->ndim, p->shape, t->v + p->offset);
        } else if (moments && n_seen > 0) {
            for (size_t r = 0; r < vocab; r++) {
                seen[r] = t->seen[r];
            }
            copy_seen(t, packed, t->m, 0);
            copy_seen(t, packed + n_seen * hidden, t->v, 0);
            list_add(&list, HA_F32, "seen.", p->name, "", 1, (size_t[3]){vocab}, seen);
            list_add(&list, HA_F32, "m.", p->name, "", 2, (size_t[3]){n_seen, hidden}, packed);
            list_add(&list, HA_F32, "v.", p->name, "", 2, (size_t[3]){n_seen, hidden}, packed + n_seen * hidden);
        }
    }
    if (t->lora != NULL) {
        list_add(&list, HA_F32, "w.", "lora", "", 1, (size_t[3]){t->lora->total}, t->lora->w);
    }
    if (t->lora != NULL && moments) {
        list_add(&list, HA_F32, "m.", "lora", "", 1, (size_t[3]){t->lora->total}, t->lora_m);
        list_add(&list, HA_F32, "v.", "lora", "", 1, (size_t[3]){t->lora->total}, t->lora_v);
    }
    status = ha_safetensors_write(path, list.items, list.count, NULL, err);
done:
    list_free(&list);
    free(packed);
    free(seen);
    return status;
}

/* Reads tensor prefix + name of the given shape into out. */
static ha_status
load(const ha_tensor_file *file, const char *prefix, const char *name, int ndim, const size_t shape[3], float *out,
     ha_error *err)
{
    char full[NAME];
    const ha_tensor *tensor;
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    ha_status status = ha_tensor_file_expect(file, full, ndim, shape, &tensor, err);
    if (status == HA_OK && tensor->dtype != HA_F32) {
        status = ha_fail(err, HA_ERR_FORMAT, "tensor '%s' is %s, a checkpoint holds F32", full, tensor->type_name);
    }
    return status == HA_OK ? ha_tensor_rows_f32(tensor, 0, ndim == 1 ? 1 : shape[0], out, err) : status;
}

static ha_status
load_words(ha_trainer *t, const ha_tensor_file *file, ha_error *err)
{
    const ha_param *p = t->word;
    const size_t vocab = p->shape[0], hidden = p->shape[1];
    char name[NAME];
    memset(t->seen, 0, vocab);
    snprintf(name, sizeof(name), "seen.%s", p->name);
    if (ha_tensor_file_find(file, name) == NULL) {
        return HA_OK;   /* saved before the first step */
    }
    float *buffer = malloc((vocab > p->size ? vocab : p->size) * sizeof(float));
    if (buffer == NULL) {
        return HA_ERR_NOMEM;
    }
    ha_status status = load(file, "seen.", p->name, 1, (size_t[3]){vocab}, buffer, err);
    for (size_t r = 0; status == HA_OK && r < vocab; r++) {
        t->seen[r] = buffer[r] != 0;
    }
    const size_t n_seen = count_seen(t);
    for (int which = 0; status == HA_OK && which < 2; which++) {
        status = load(file, which ? "v." : "m.", p->name, 2, (size_t[3]){n_seen, hidden}, buffer, err);
        if (status == HA_OK) {
            copy_seen(t, buffer, which ? t->v : t->m, 1);
        }
    }
    free(buffer);
    return status;
}

ha_status
ha_trainer_load(ha_trainer *t, const char *path, uint64_t steps, int moments, ha_error *err)
{
    ha_tensor_file *file = NULL;
    ha_status status = ha_tensor_file_open(path, &file, err);
    for (size_t i = 0; status == HA_OK && i < t->params->count; i++) {
        const ha_param *p = &t->params->items[i];
        if (!t->trainable[i]) {
            continue;
        }
        status = load(file, "w.", p->name, p->ndim, p->shape, t->params->data + p->offset, err);
        if (status == HA_OK && moments && p == t->word) {
            status = load_words(t, file, err);
        } else if (status == HA_OK && moments) {
            status = load(file, "m.", p->name, p->ndim, p->shape, t->m + p->offset, err);
            if (status == HA_OK) {
                status = load(file, "v.", p->name, p->ndim, p->shape, t->v + p->offset, err);
            }
        }
    }
    float *const lora[3] = {t->lora != NULL ? t->lora->w : NULL, t->lora_m, t->lora_v};
    const char *const prefix[3] = {"w.", "m.", "v."};
    for (int i = 0; status == HA_OK && t->lora != NULL && i < (moments ? 3 : 1); i++) {
        status = load(file, prefix[i], "lora", 1, (size_t[3]){t->lora->total}, lora[i], err);
    }
    if (status == HA_OK && t->lora != NULL) {
        ha_lora_apply(t->lora, t->params);
    }
    if (status == HA_OK) {
        t->steps = steps;
        t->n_owed = 0;
    }
    ha_tensor_file_close(file);
    return status;
}

/* 1 when the parameter is the bias of a module that LoRA adapts: PEFT wraps such a module, and calls what was there
 * "base_layer". */
static int
is_wrapped_bias(const ha_trainer *t, const ha_param *param)
{
    const size_t n = strlen(param->name) - strlen("bias");
    for (size_t i = 0; i < t->lora->count; i++) {
        const char *weight = t->params->items[t->lora->pairs[i].item].name;
        if (strlen(weight) == n + strlen("weight") && memcmp(weight, param->name, n) == 0 &&
            strcmp(param->name + n, "bias") == 0) {
            return 1;
        }
    }
    return 0;
}

ha_status
ha_trainer_save_adapter(ha_trainer *t, const char *path, int dtype, ha_error *err)
{
    if (t->lora == NULL) {
        return ha_fail(err, HA_ERR_VALUE, "save_adapter: this trainer has no LoRA");
    }
    tensor_list list = {0};
    ha_status status = HA_ERR_NOMEM;
    ha_trainer_settle(t);
    const char *const prefix = "base_model.model.";
    if (!list_new(&list, 2 * t->lora->count + t->params->count + 1)) {
        goto done;
    }
    for (size_t i = 0; i < t->lora->count; i++) {
        const ha_lora_pair *pair = &t->lora->pairs[i];
        char module[NAME];
        snprintf(module, sizeof(module), "%s", t->params->items[pair->item].name);
        module[strlen(module) - strlen(".weight")] = '\0';
        list_add(&list, (ha_dtype)dtype, prefix, module, ".lora_A.weight", 2, (size_t[3]){t->lora->rank, pair->cols},
                 t->lora->w + pair->a);
        list_add(&list, (ha_dtype)dtype, prefix, module, ".lora_B.weight", 2, (size_t[3]){pair->rows, t->lora->rank},
                 t->lora->w + pair->b);
    }
    for (size_t i = 0; i < t->params->count; i++) {
        const ha_param *p = &t->params->items[i];
        if (!t->trainable[i]) {
            continue;
        }
        char name[NAME];
        snprintf(name, sizeof(name), "%s", p->name);
        if (is_wrapped_bias(t, p)) {
            snprintf(name + strlen(name) - strlen("bias"), sizeof("base_layer.bias"), "base_layer.bias");
        }
        list_add(&list, (ha_dtype)dtype, prefix, name, "", p->ndim, p->shape,
                 t->params->data + p->offset);
    }
    status = ha_safetensors_write(path, list.items, list.count, NULL, err);
done:
    list_free(&list);
    return status;
}
