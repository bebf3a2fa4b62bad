#define _POSIX_C_SOURCE 200809L
#include "io/tensor_file.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "core/sha256.h"
#include "io/tensor_file_impl.h"

#define SETTLED 1       /* s after a change within which a second one may carry the same time */

ha_status
ha_tensor_file_add(ha_tensor_file *file, const ha_tensor *tensor, const char *path, ha_error *err)
{
    size_t bytes = sizeof(float);
    int overflow = 0;
    for (int i = 0; i < tensor->ndim; i++) {
        overflow |= __builtin_mul_overflow(bytes, tensor->shape[i] > 0 ? tensor->shape[i] : 1, &bytes);
    }
    if (overflow || bytes > PTRDIFF_MAX) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': shape overflows", path, tensor->name);
    }
    if (file->count == file->capacity) {
        const size_t capacity = file->capacity == 0 ? 64 : 2 * file->capacity;
        ha_tensor *tensors = capacity > UINT32_MAX ? NULL : realloc(file->tensors, capacity * sizeof(*tensors));
        file->tensors = tensors != NULL ? tensors : file->tensors;
        uint32_t *shards = tensors == NULL ? NULL : realloc(file->shards, capacity * sizeof(*shards));
        if (shards == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory for %zu tensors", path, capacity);
        }
        file->shards = shards;
        file->capacity = capacity;
    }
    file->tensors[file->count] = *tensor;
    file->shards[file->count++] = (uint32_t)(file->n_maps - 1);
    return HA_OK;
}

ha_status
ha_tensor_file_map(ha_tensor_file *file, const char *path, ha_error *err)
{
    ha_map_file *maps = realloc(file->maps, (file->n_maps + 1) * sizeof(*maps));
    file->maps = maps != NULL ? maps : file->maps;
    ha_json **documents = maps == NULL ? NULL : realloc(file->documents, (file->n_maps + 1) * sizeof(*documents));
    if (documents == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
    }
    file->documents = documents;
    documents[file->n_maps] = NULL;
    const ha_status status = ha_map_file_open(path, &maps[file->n_maps], err);
    file->n_maps += status == HA_OK;
    return status;
}

static int
compare_begin(const void *a, const void *b)
{
    const ha_tensor *x = *(const ha_tensor *const *)a, *y = *(const ha_tensor *const *)b;
    if (x->data != y->data) {
        return x->data < y->data ? -1 : 1;
    }
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

ha_status
ha_tensor_file_check_layout(const ha_tensor_file *file, size_t first, const uint8_t *data, size_t size, int dense,
                            const char *path, ha_error *err)
{
    const size_t n = file->count - first;
    ha_status status = HA_OK;
    const ha_tensor **order = malloc((n + 1) * sizeof(*order));
    if (order == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = &file->tensors[first + i];
    }
    qsort(order, n, sizeof(*order), compare_begin);
    const uint8_t *end = data;
    for (size_t i = 0; i < n; i++) {
        if (order[i]->data < end) {
            status = ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s' overlaps '%.64s'", path, order[i]->name, order[i - 1]->name);
            goto done;
        }
        if (dense && order[i]->data > end) {
            status = ha_fail(err, HA_ERR_FORMAT, "%.300s: %zu bytes before tensor '%.64s' belong to no tensor", path,
                             (size_t)(order[i]->data - end), order[i]->name);
            goto done;
        }
        end = order[i]->data + order[i]->n_bytes;
    }
    if (dense && end != data + size) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.350s: %zu bytes at the end belong to no tensor", path, (size_t)(data + size - end));
    }
done:
    free(order);
    return status;
}

ha_status
ha_tensor_file_index(ha_tensor_file *file, const char *path, ha_error *err)
{
    if (!ha_strmap_init(&file->by_name, file->count)) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
    }
    for (size_t i = 0; i < file->count; i++) {
        const char *name = file->tensors[i].name;
        switch (ha_strmap_put(&file->by_name, name, strlen(name), (uint32_t)i)) {
        case HA_STRMAP_NOMEM: return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
        case HA_STRMAP_EXISTS: return ha_fail(err, HA_ERR_FORMAT, "%.350s: tensor '%.64s' stands twice", path, name);
        case HA_STRMAP_ADDED: break;
        }
    }
    return HA_OK;
}

/* Reads the mapped file by what it begins with. */
static ha_status
read_by_content(ha_tensor_file *file, const char *path, ha_error *err)
{
    const ha_map_file map = file->maps[file->n_maps - 1];
    uint64_t header = UINT64_MAX;
    ha_status status;
    if (map.size >= 4 && memcmp(map.data, "GGUF", 4) == 0) {
        status = ha_gguf_read(file, path, err);
        return status != HA_OK ? status : ha_tensor_file_index(file, path, err);
    }
    if (map.size >= 9) {
        memcpy(&header, map.data, 8);
    }
    const int fits = header <= map.size - 8;    /* the text of an index, read as a length, is never that small */
    if (!fits && map.size > 0 && (map.data[0] == '{' || map.data[0] == '\n' || map.data[0] == ' ')) {
        ha_map_file index = map;
        file->n_maps--;
        status = ha_safetensors_read_index(file, path, &index, err);
        ha_map_file_close(&index);
        return status;
    }
    if (map.size >= 9 && map.data[8] == '{') {
        status = ha_safetensors_read(file, path, err);
        return status != HA_OK ? status : ha_tensor_file_index(file, path, err);
    }
    return ha_fail(err, HA_ERR_FORMAT, "%.350s: is neither safetensors nor GGUF (%zu bytes)", path, map.size);
}

/* -- folders -- */

static int
exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

static char *
join(const char *folder, const char *name)
{
    const size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    if (path != NULL) {
        snprintf(path, size, "%s/%s", folder, name);
    }
    return path;
}

/* The only *.gguf of a folder: *out NULL when there is none; HA_ERR_FORMAT when there are several. */
static ha_status
only_gguf(const char *folder, char **out, ha_error *err)
{
    ha_status status = HA_OK;
    DIR *dir = opendir(folder);
    struct dirent *entry;
    *out = NULL;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        const size_t length = strlen(entry->d_name);
        if (length < 6 || entry->d_name[0] == '.' || strcmp(entry->d_name + length - 5, ".gguf") != 0) {
            continue;
        }
        if (*out != NULL) {
            status = ha_fail(err, HA_ERR_FORMAT, "%.350s: holds several .gguf files; name one of them", folder);
            free(*out);
            *out = NULL;
            break;
        }
        *out = join(folder, entry->d_name);
        if (*out == NULL) {
            status = ha_fail(err, HA_ERR_NOMEM, "out of memory");
            break;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return status;
}

/* The file that stands for `path`: itself, or what a folder holds. malloc'ed. */
static ha_status
resolve(const char *path, char **out, ha_error *err)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    struct stat info;
    *out = NULL;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        char *copy = malloc(strlen(path) + 1);
        *out = copy != NULL ? strcpy(copy, path) : NULL;
        return copy != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *candidate = join(path, names[i]);
        if (candidate == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory");
        }
        if (exists(candidate)) {
            *out = candidate;
            return HA_OK;
        }
        free(candidate);
    }
    const ha_status status = only_gguf(path, out, err);
    if (status == HA_OK && *out == NULL) {
        return ha_fail(err, HA_ERR_IO, "%.350s: holds no model.safetensors, model.safetensors.index.json or .gguf", path);
    }
    return status;
}

/* -- public -- */

ha_status
ha_tensor_file_open(const char *path, ha_tensor_file **out, ha_error *err)
{
    ha_tensor_file *file = calloc(1, sizeof(*file));
    char *resolved = NULL;
    ha_status status;
    *out = NULL;
    if (file == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
    }
    status = resolve(path, &resolved, err);
    if (status != HA_OK) {
        goto done;
    }
    status = ha_tensor_file_map(file, resolved, err);
    if (status != HA_OK) {
        goto done;
    }
    status = read_by_content(file, resolved, err);
    if (status != HA_OK) {
        goto done;
    }
    *out = file;
    file = NULL;
done:
    free(resolved);
    ha_tensor_file_close(file);
    return status;
}

void
ha_tensor_file_close(ha_tensor_file *file)
{
    if (file == NULL) {
        return;
    }
    for (size_t i = 0; i < file->n_maps; i++) {
        ha_map_file_close(&file->maps[i]);
        ha_json_free(file->documents[i]);
    }
    for (size_t i = 0; i < file->n_entries; i++) {
        free(file->entries[i].offsets);
    }
    ha_strmap_free(&file->by_name);
    ha_strmap_free(&file->by_key);
    free(file->maps);
    free(file->documents);
    free(file->tensors);
    free(file->shards);
    free(file->entries);
    free(file->names);
    free(file);
}

int
ha_tensor_file_stamp(const ha_tensor_file *file, uint8_t digest[32])
{
    uint8_t chain[32 + sizeof(file->maps[0].stamp)];
    const uint64_t now = (uint64_t)time(NULL);
    int settled = 1;
    memset(digest, 0, 32);
    for (size_t i = 0; i < file->n_maps; i++) {
        memcpy(chain, digest, 32);
        memcpy(chain + 32, file->maps[i].stamp, sizeof(file->maps[i].stamp));
        ha_sha256(chain, sizeof(chain), digest);
        settled = settled && file->maps[i].stamp[5] + SETTLED < now;
    }
    return settled;
}

size_t
ha_tensor_file_count(const ha_tensor_file *file)
{
    return file->count;
}

const ha_tensor *
ha_tensor_file_at(const ha_tensor_file *file, size_t i)
{
    return &file->tensors[i];
}

const ha_tensor *
ha_tensor_file_find(const ha_tensor_file *file, const char *name)
{
    uint32_t i = 0;
    return ha_strmap_get(&file->by_name, name, strlen(name), &i) ? &file->tensors[i] : NULL;
}

/* "(2, 3)" into out, cut where it does not fit. */
static const char *
shape_text(char out[128], int ndim, const size_t *shape)
{
    size_t used = 1;
    out[0] = '(';
    for (int i = 0; i < ndim && used < 100; i++) {
        const int n = snprintf(out + used, 128 - used, i > 0 ? ", %zu" : "%zu", shape[i]);
        used += n > 0 ? (size_t)n : 0;
    }
    snprintf(out + used, 128 - used, ")");
    return out;
}

ha_status
ha_tensor_file_expect(const ha_tensor_file *file, const char *name, int ndim, const size_t *shape, const ha_tensor **out, ha_error *err)
{
    char got[128], wanted[128];
    const ha_tensor *tensor = ha_tensor_file_find(file, name);
    *out = NULL;
    if (tensor == NULL) {
        return ha_fail(err, HA_ERR_FORMAT, "tensor '%.128s' is missing", name);
    }
    int same = tensor->ndim == ndim;
    for (int i = 0; same && i < ndim; i++) {
        same = tensor->shape[i] == shape[i];
    }
    if (!same) {
        return ha_fail(err, HA_ERR_FORMAT, "tensor '%.128s' has shape %s, expected %s", name,
                       shape_text(got, tensor->ndim, tensor->shape), shape_text(wanted, ndim, shape));
    }
    *out = tensor;
    return HA_OK;
}
