/* safetensors: 8 bytes of little-endian header length, the header (JSON), the data. Source: the format description of the safetensors
 * project ("Format"), and the layout of sharded checkpoints in Hugging Face's model.safetensors.index.json. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/extent.h"
#include "io/tensor_file_impl.h"

#define MAX_HEADER 100000000u       /* as the reference implementation bounds it */
#define MAX_SHARDS 10000

static const struct { const char *name; ha_dtype dtype; size_t item; } dtypes[] = {
    {"F32", HA_F32, 4}, {"F16", HA_F16, 2}, {"BF16", HA_BF16, 2},
    {"F64", HA_OTHER, 8}, {"I64", HA_OTHER, 8}, {"U64", HA_OTHER, 8}, {"C64", HA_OTHER, 8}, {"I32", HA_OTHER, 4}, {"U32", HA_OTHER, 4},
    {"I16", HA_OTHER, 2}, {"U16", HA_OTHER, 2}, {"I8", HA_I8, 1}, {"U8", HA_U8, 1}, {"BOOL", HA_OTHER, 1},
    {"F8_E4M3", HA_OTHER, 1}, {"F8_E5M2", HA_OTHER, 1}, {"F8_E8M0", HA_OTHER, 1},
};

static ha_status
bad_tensor(const char *path, const ha_json_node *entry, const char *what, ha_error *err)
{
    return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': %s", path, entry->key, what);
}

static ha_status
check_metadata(const char *path, const ha_json *json, const ha_json_node *metadata, ha_error *err)
{
    if (metadata->type != HA_JSON_OBJECT) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: __metadata__ is no object", path);
    }
    for (const ha_json_node *item = ha_json_first(json, metadata); item != NULL; item = ha_json_next(json, item)) {
        if (item->type != HA_JSON_STRING) {
            return ha_fail(err, HA_ERR_FORMAT, "%.350s: __metadata__ '%.64s' is no string", path, item->key);
        }
    }
    return HA_OK;
}

/* {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} */
static ha_status
read_entry(ha_tensor_file *file, const char *path, const ha_json *json, const ha_json_node *entry,
           const uint8_t *data, size_t size, ha_error *err)
{
    ha_tensor tensor = {.name = entry->key};
    uint64_t shape[HA_MAX_DIMS] = {0}, offsets[2] = {0, 0};
    if (entry->type != HA_JSON_OBJECT) {
        return bad_tensor(path, entry, "is no object", err);
    }
    if (memchr(entry->key, 0, entry->key_length) != NULL) {
        return bad_tensor(path, entry, "the name holds a NUL character", err);
    }
    const ha_json_node *dtype = ha_json_get(json, entry, "dtype"), *dims = ha_json_get(json, entry, "shape");
    const ha_json_node *range = ha_json_get(json, entry, "data_offsets");
    if (dtype == NULL || dtype->type != HA_JSON_STRING || dims == NULL || dims->type != HA_JSON_ARRAY ||
        range == NULL || range->type != HA_JSON_ARRAY || range->length != 2) {
        return bad_tensor(path, entry, "needs dtype (a string), shape (an array) and data_offsets (two integers)", err);
    }
    size_t i = 0;
    while (i < sizeof(dtypes) / sizeof(dtypes[0]) && (strlen(dtypes[i].name) != dtype->length || strcmp(dtype->string, dtypes[i].name) != 0)) {
        i++;
    }
    if (i == sizeof(dtypes) / sizeof(dtypes[0])) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': unknown dtype '%.16s'", path, entry->key, dtype->string);
    }
    tensor.dtype = dtypes[i].dtype;
    tensor.type_name = dtypes[i].name;
    if (dims->length > HA_MAX_DIMS) {
        return bad_tensor(path, entry, "has more than 8 dimensions", err);
    }
    for (const ha_json_node *d = ha_json_first(json, dims); d != NULL; d = ha_json_next(json, d)) {
        if (!ha_json_u64(d, &shape[tensor.ndim]) || shape[tensor.ndim] > SIZE_MAX) {
            return bad_tensor(path, entry, "shape must hold non-negative integers", err);
        }
        tensor.shape[tensor.ndim] = (size_t)shape[tensor.ndim];
        tensor.ndim++;
    }
    const ha_json_node *begin = ha_json_first(json, range);
    if (!ha_json_u64(begin, &offsets[0]) || !ha_json_u64(ha_json_next(json, begin), &offsets[1])) {
        return bad_tensor(path, entry, "data_offsets must be non-negative integers", err);
    }
    ha_error why;
    const ha_status status = ha_extent_check(entry->key, shape, tensor.ndim, dtypes[i].item, offsets[0], offsets[1], size, &why);
    if (status != HA_OK) {
        return ha_fail(err, status, "%.250s: %.250s", path, why.message);
    }
    tensor.data = data + offsets[0];
    tensor.n_bytes = (size_t)(offsets[1] - offsets[0]);
    return ha_tensor_file_add(file, &tensor, path, err);
}

ha_status
ha_safetensors_read(ha_tensor_file *file, const char *path, ha_error *err)
{
    const ha_map_file map = file->maps[file->n_maps - 1];
    uint64_t header = 0;
    if (map.size < 8) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: %zu bytes are no safetensors file", path, map.size);
    }
    memcpy(&header, map.data, 8);
    if (header > MAX_HEADER || header > map.size - 8) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: header of %" PRIu64 " bytes in a file of %zu", path, header, map.size);
    }
    const uint8_t *data = map.data + 8 + header;
    const size_t size = map.size - 8 - (size_t)header, first = file->count;
    ha_json **json = &file->documents[file->n_maps - 1];
    ha_status status = ha_json_parse(path, (const char *)map.data + 8, (size_t)header, json, err);
    if (status != HA_OK) {
        return status;
    }
    const ha_json_node *root = ha_json_root(*json);
    if (root->type != HA_JSON_OBJECT) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: the header is no object", path);
    }
    for (const ha_json_node *entry = ha_json_first(*json, root); entry != NULL; entry = ha_json_next(*json, entry)) {
        const int metadata = entry->key_length == 12 && memcmp(entry->key, "__metadata__", 12) == 0;
        status = metadata ? check_metadata(path, *json, entry, err) : read_entry(file, path, *json, entry, data, size, err);
        if (status != HA_OK) {
            return status;
        }
    }
    return ha_tensor_file_check_layout(file, first, data, size, 1, path, err);
}

const ha_json_node *
ha_safetensors_metadata(const ha_tensor_file *file, const ha_json **document)
{
    const ha_json *json = file->n_maps > 0 ? file->documents[0] : NULL;
    *document = json;
    return json != NULL ? ha_json_get(json, ha_json_root(json), "__metadata__") : NULL;
}

/* -- sharded -- */

/* A plain file name: what an index may name lies in its own folder. */
static int
plain_name(const ha_json_node *shard)
{
    return shard->type == HA_JSON_STRING && shard->length > 0 && shard->length <= 255 && shard->string[0] != '.' &&
           memchr(shard->string, 0, shard->length) == NULL && strpbrk(shard->string, "/\\:") == NULL;
}

/* Reads the shard beside the index: `folder` is the index's path up to and with its last '/'. */
static ha_status
read_shard(ha_tensor_file *file, const char *index_path, const char *name, ha_error *err)
{
    const char *slash = strrchr(index_path, '/');
    const size_t folder = slash != NULL ? (size_t)(slash - index_path) + 1 : 0, size = folder + strlen(name) + 1;
    char *path = malloc(size);
    if (path == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", index_path);
    }
    memcpy(path, index_path, folder);
    memcpy(path + folder, name, size - folder);
    ha_status status = ha_tensor_file_map(file, path, err);
    if (status == HA_OK) {
        status = ha_safetensors_read(file, path, err);
    }
    free(path);
    return status;
}

/* Every name of the map lies in the shard that the map says. */
static ha_status
check_weight_map(const ha_tensor_file *file, const char *path, const ha_json *json, const ha_json_node *weights,
                 const ha_strmap *shards, ha_error *err)
{
    for (const ha_json_node *w = ha_json_first(json, weights); w != NULL; w = ha_json_next(json, w)) {
        uint32_t tensor = 0, shard = 0;
        if (!ha_strmap_get(shards, w->string, w->length, &shard) || !ha_strmap_get(&file->by_name, w->key, w->key_length, &tensor) ||
            file->shards[tensor] != shard) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s' is not in '%.64s'", path, w->key, w->string);
        }
    }
    return HA_OK;
}

ha_status
ha_safetensors_read_index(ha_tensor_file *file, const char *path, const ha_map_file *index, ha_error *err)
{
    ha_json *json = NULL;
    ha_strmap shards = {0};
    ha_status status;
    if (index->size > MAX_HEADER) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: an index of %zu bytes", path, index->size);
    }
    status = ha_json_parse(path, (const char *)index->data, index->size, &json, err);
    if (status != HA_OK) {
        goto done;
    }
    const ha_json_node *weights = ha_json_get(json, ha_json_root(json), "weight_map");
    if (weights == NULL || weights->type != HA_JSON_OBJECT) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.350s: no weight_map: neither a safetensors file nor an index of shards", path);
        goto done;
    }
    if (!ha_strmap_init(&shards, 16)) {
        status = ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
        goto done;
    }
    for (const ha_json_node *w = ha_json_first(json, weights); w != NULL; w = ha_json_next(json, w)) {
        if (!plain_name(w)) {
            status = ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': the shard must be the name of a file in the same folder", path, w->key);
            goto done;
        }
        const ha_strmap_put_result put = ha_strmap_put(&shards, w->string, w->length, (uint32_t)file->n_maps);
        if (put == HA_STRMAP_EXISTS) {
            continue;
        }
        if (put == HA_STRMAP_NOMEM || file->n_maps == MAX_SHARDS) {
            status = ha_fail(err, put == HA_STRMAP_NOMEM ? HA_ERR_NOMEM : HA_ERR_FORMAT, "%.350s: too many shards", path);
            goto done;
        }
        status = read_shard(file, path, w->string, err);
        if (status != HA_OK) {
            goto done;
        }
    }
    status = ha_tensor_file_index(file, path, err);
    if (status == HA_OK) {
        status = check_weight_map(file, path, json, weights, &shards, err);
    }
done:
    ha_strmap_free(&shards);
    ha_json_free(json);
    return status;
}
