/* GGUF versions 2 and 3, little-endian: header, metadata, tensor infos, aligned data. Source: the GGUF specification (ggml, docs/gguf.md);
 * block sizes: ggml's type traits, which the gguf package lists as GGML_QUANT_SIZES (a test compares). */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/tensor_file_impl.h"

#define MAX_NESTING 4       /* of arrays in arrays; no known file has any */
#define MAX_GGML_DIMS 4
#define MIN_ENTRY 13        /* bytes: key length, type, one byte of value */
#define MIN_INFO 24         /* bytes: name length, n_dims, type, offset */

static const struct { const char *name; ha_dtype dtype; uint32_t block, bytes; } ggml_types[] = {
    [0] = {"F32", HA_F32, 1, 4}, [1] = {"F16", HA_F16, 1, 2}, [30] = {"BF16", HA_BF16, 1, 2},
    [2] = {"Q4_0", HA_Q4_0, 32, 18}, [3] = {"Q4_1", HA_Q4_1, 32, 20}, [8] = {"Q8_0", HA_Q8_0, 32, 34},
    [6] = {"Q5_0", HA_OTHER, 32, 22}, [7] = {"Q5_1", HA_OTHER, 32, 24}, [9] = {"Q8_1", HA_OTHER, 32, 40},
    [10] = {"Q2_K", HA_OTHER, 256, 84}, [11] = {"Q3_K", HA_OTHER, 256, 110}, [12] = {"Q4_K", HA_Q4_K, 256, 144},
    [13] = {"Q5_K", HA_OTHER, 256, 176}, [14] = {"Q6_K", HA_Q6_K, 256, 210}, [15] = {"Q8_K", HA_OTHER, 256, 292},
    [16] = {"IQ2_XXS", HA_OTHER, 256, 66}, [17] = {"IQ2_XS", HA_OTHER, 256, 74}, [18] = {"IQ3_XXS", HA_OTHER, 256, 98},
    [19] = {"IQ1_S", HA_OTHER, 256, 50}, [20] = {"IQ4_NL", HA_OTHER, 32, 18}, [21] = {"IQ3_S", HA_OTHER, 256, 110},
    [22] = {"IQ2_S", HA_OTHER, 256, 82}, [23] = {"IQ4_XS", HA_OTHER, 256, 136}, [24] = {"I8", HA_OTHER, 1, 1},
    [25] = {"I16", HA_OTHER, 1, 2}, [26] = {"I32", HA_OTHER, 1, 4}, [27] = {"I64", HA_OTHER, 1, 8}, [28] = {"F64", HA_OTHER, 1, 8},
    [29] = {"IQ1_M", HA_OTHER, 256, 56}, [34] = {"TQ1_0", HA_OTHER, 256, 54}, [35] = {"TQ2_0", HA_OTHER, 256, 66},
    [39] = {"MXFP4", HA_OTHER, 32, 17}, [40] = {"NVFP4", HA_OTHER, 64, 36}, [41] = {"Q1_0", HA_OTHER, 128, 18},
};

/* Bytes of a scalar of each metadata type; 0: string, array. */
static const uint8_t scalar_bytes[HA_GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

typedef struct reader {
    const uint8_t *at, *end;
    const char *path;
    ha_error *err;
} reader;

static size_t
left(const reader *r)
{
    return (size_t)(r->end - r->at);
}

static ha_status
truncated(const reader *r, const char *what)
{
    return ha_fail(r->err, HA_ERR_FORMAT, "%.350s: the file ends inside %s", r->path, what);
}

static ha_status
read_bytes(reader *r, void *out, size_t n, const char *what)
{
    if (left(r) < n) {
        return truncated(r, what);
    }
    memcpy(out, r->at, n);
    r->at += n;
    return HA_OK;
}

/* A string: uint64 length, bytes. Borrowed. */
static ha_status
read_string(reader *r, const uint8_t **out, uint64_t *length, const char *what)
{
    *out = r->at;
    *length = 0;
    const ha_status status = read_bytes(r, length, 8, what);
    if (status != HA_OK) {
        return status;
    }
    if (*length > left(r)) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.350s: %s claims a string of %" PRIu64 " bytes, %zu are left", r->path, what, *length, left(r));
    }
    *out = r->at;
    r->at += *length;
    return HA_OK;
}

/* -- metadata -- */

/* Decodes the value of this type at *at, which is known to be whole; *at moves behind its header (array) or behind it (else). */
static void
decode(uint32_t type, const uint8_t **at, ha_gguf_value *out)
{
    *out = (ha_gguf_value){.type = type, .count = 1, .data = *at};
    if (type == HA_GGUF_STRING) {
        memcpy(&out->count, *at, 8);
        out->data = *at + 8;
        *at += 8 + out->count;
    } else if (type == HA_GGUF_ARRAY) {
        memcpy(&out->item_type, *at, 4);
        memcpy(&out->count, *at + 4, 8);
        out->data = *at + 12;
        *at += 12;
    } else {
        *at += scalar_bytes[type];
    }
}

static ha_status
check_type(const reader *r, uint32_t type, const char *what)
{
    return type < HA_GGUF_N_TYPES ? HA_OK : ha_fail(r->err, HA_ERR_FORMAT, "%.350s: %s has unknown value type %" PRIu32, r->path, what, type);
}

/* Walks over `count` scalars or strings. */
static ha_status
check_items(reader *r, uint32_t type, uint64_t count, const char *what)
{
    if (type == HA_GGUF_STRING) {
        for (uint64_t i = 0; i < count; i++) {
            const uint8_t *bytes = NULL;
            uint64_t length = 0;
            const ha_status status = read_string(r, &bytes, &length, what);
            if (status != HA_OK) {
                return status;
            }
        }
        return HA_OK;
    }
    if (count > left(r) / scalar_bytes[type]) {
        return truncated(r, what);
    }
    if (type == HA_GGUF_BOOL) {
        for (uint64_t i = 0; i < count; i++) {
            if (r->at[i] > 1) {
                return ha_fail(r->err, HA_ERR_FORMAT, "%.350s: %s has a bool that is neither 0 nor 1", r->path, what);
            }
        }
    }
    r->at += count * scalar_bytes[type];
    return HA_OK;
}

/* Walks over one value, arrays in arrays without recursion: counts left to walk, one per level. */
static ha_status
check_value(reader *r, uint32_t type, const char *what)
{
    struct { uint32_t type; uint64_t remaining; } stack[MAX_NESTING + 1];
    int depth = 0;
    ha_status status = check_type(r, type, what);
    stack[0].type = type;
    stack[0].remaining = 1;
    while (status == HA_OK && depth >= 0) {
        if (stack[depth].type != HA_GGUF_ARRAY) {
            status = check_items(r, stack[depth].type, stack[depth].remaining, what);
            depth--;
            continue;
        }
        if (stack[depth].remaining == 0) {
            depth--;
            continue;
        }
        stack[depth].remaining--;
        if (depth == MAX_NESTING) {
            return ha_fail(r->err, HA_ERR_FORMAT, "%.350s: %s nests arrays deeper than %d", r->path, what, MAX_NESTING);
        }
        depth++;
        status = read_bytes(r, &stack[depth].type, 4, what);
        status = status != HA_OK ? status : read_bytes(r, &stack[depth].remaining, 8, what);
        status = status != HA_OK ? status : check_type(r, stack[depth].type, what);
    }
    return status;
}

/* Where each string of an array begins, so that element i is found at once. */
static ha_status
index_strings(const reader *r, ha_gguf_entry *entry)
{
    const uint64_t count = entry->value.count;
    const uint8_t *at = entry->value.data;
    entry->offsets = malloc(((size_t)count + 1) * sizeof(*entry->offsets));     /* count * 8 <= file size: each has its length */
    if (entry->offsets == NULL) {
        return ha_fail(r->err, HA_ERR_NOMEM, "%.350s: out of memory", r->path);
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t length;
        entry->offsets[i] = (uint64_t)(at - entry->value.data);
        memcpy(&length, at, 8);
        at += 8 + length;
    }
    return HA_OK;
}

static ha_status
read_entry(ha_tensor_file *file, reader *r, ha_error *err)
{
    ha_gguf_entry *entry = &file->entries[file->n_entries];
    const uint8_t *key = NULL;
    uint64_t key_length = 0;
    uint32_t type = 0;
    char what[96] = "metadata '";
    ha_status status = read_string(r, &key, &key_length, "the key of a metadata entry");
    if (status != HA_OK) {
        return status;
    }
    const size_t shown = key_length < 64 ? (size_t)key_length : 64;
    for (size_t i = 0; i < shown; i++) {
        what[10 + i] = key[i] >= 0x20 && key[i] < 0x7F ? (char)key[i] : '?';
    }
    what[10 + shown] = '\'';
    status = read_bytes(r, &type, 4, what);
    if (status != HA_OK) {
        return status;
    }
    const uint8_t *at = r->at;
    status = check_value(r, type, what);
    if (status != HA_OK) {
        return status;
    }
    *entry = (ha_gguf_entry){.key = (const char *)key, .key_length = (size_t)key_length};
    decode(type, &at, &entry->value);
    file->n_entries++;      /* from here on close() frees its offsets */
    if (type == HA_GGUF_ARRAY && entry->value.item_type == HA_GGUF_STRING) {
        status = index_strings(r, entry);
        if (status != HA_OK) {
            return status;
        }
    }
    const ha_strmap_put_result put = ha_strmap_put(&file->by_key, entry->key, entry->key_length, (uint32_t)(file->n_entries - 1));
    if (put != HA_STRMAP_ADDED) {
        return ha_fail(err, put == HA_STRMAP_NOMEM ? HA_ERR_NOMEM : HA_ERR_FORMAT, "%.350s: %s %s", r->path, what,
                       put == HA_STRMAP_NOMEM ? "does not fit into memory" : "stands twice");
    }
    return HA_OK;
}

/* -- tensors -- */

/* Bytes of a tensor of these dimensions (innermost first); 0 dimensions: a scalar. */
static ha_status
tensor_bytes(const reader *r, const char *name, uint32_t type, const uint64_t *dims, uint32_t n_dims, uint64_t *out)
{
    uint64_t blocks = (n_dims > 0 ? dims[0] : 1) / ggml_types[type].block;
    if ((n_dims > 0 ? dims[0] : 1) % ggml_types[type].block != 0) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': rows of %" PRIu64 " elements are no multiple of the %s block (%" PRIu32 ")",
                       r->path, name, n_dims > 0 ? dims[0] : 1, ggml_types[type].name, ggml_types[type].block);
    }
    int overflow = __builtin_mul_overflow(blocks, (uint64_t)ggml_types[type].bytes, &blocks);
    for (uint32_t i = 1; i < n_dims; i++) {
        overflow |= __builtin_mul_overflow(blocks, dims[i], &blocks);
    }
    if (overflow) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': shape overflows 64 bits", r->path, name);
    }
    *out = blocks;
    return HA_OK;
}

/* Bytes that the names of the next n tensor infos take with a NUL each. */
static ha_status
measure_names(reader r, uint64_t n, size_t *out)
{
    *out = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint8_t *name = NULL;
        uint64_t length = 0;
        uint32_t n_dims = 0;
        ha_status status = read_string(&r, &name, &length, "the name of a tensor");
        status = status != HA_OK ? status : read_bytes(&r, &n_dims, 4, "a tensor info");
        if (status != HA_OK) {
            return status;
        }
        *out += (size_t)length + 1;
        if (n_dims > MAX_GGML_DIMS) {
            return HA_OK;       /* read_info() names this tensor and stops there */
        }
        if (left(&r) < 8 * (size_t)n_dims + 12) {
            return truncated(&r, "a tensor info");
        }
        r.at += 8 * (size_t)n_dims + 12;
    }
    return HA_OK;
}

/* One tensor info. Where its data lies is set once the data section is known. */
static ha_status
read_info(ha_tensor_file *file, reader *r, char **name_at, uint64_t *offset, ha_error *err)
{
    ha_tensor tensor = {0};
    const uint8_t *name = NULL;
    uint64_t name_length = 0, dims[MAX_GGML_DIMS] = {0}, bytes = 0;
    uint32_t n_dims = 0, type = 0;
    ha_status status = read_string(r, &name, &name_length, "the name of a tensor");
    if (status != HA_OK) {
        return status;
    }
    if (memchr(name, 0, (size_t)name_length) != NULL) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: the name of tensor %zu holds a NUL byte", r->path, file->count);
    }
    tensor.name = memcpy(*name_at, name, (size_t)name_length);
    (*name_at)[name_length] = '\0';
    *name_at += name_length + 1;
    status = read_bytes(r, &n_dims, 4, "a tensor info");
    if (status != HA_OK) {
        return status;
    }
    if (n_dims > MAX_GGML_DIMS) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s' has %" PRIu32 " dimensions, at most 4 are defined", r->path, tensor.name, n_dims);
    }
    status = read_bytes(r, dims, 8 * (size_t)n_dims, "a tensor info");
    status = status != HA_OK ? status : read_bytes(r, &type, 4, "a tensor info");
    status = status != HA_OK ? status : read_bytes(r, offset, 8, "a tensor info");
    if (status != HA_OK) {
        return status;
    }
    if (type >= sizeof(ggml_types) / sizeof(ggml_types[0]) || ggml_types[type].name == NULL) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s' has unknown type %" PRIu32, r->path, tensor.name, type);
    }
    status = tensor_bytes(r, tensor.name, type, dims, n_dims, &bytes);
    if (status != HA_OK) {
        return status;
    }
    tensor.dtype = ggml_types[type].dtype;
    tensor.type_name = ggml_types[type].name;
    tensor.ndim = (int)n_dims;
    for (uint32_t i = 0; i < n_dims; i++) {
        if (dims[i] > SIZE_MAX) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': shape overflows", r->path, tensor.name);
        }
        tensor.shape[n_dims - 1 - i] = (size_t)dims[i];
    }
    if (bytes > SIZE_MAX) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s' is too large", r->path, tensor.name);
    }
    tensor.n_bytes = (size_t)bytes;
    return ha_tensor_file_add(file, &tensor, r->path, err);
}

static ha_status
data_alignment(const ha_tensor_file *file, const char *path, uint64_t *out, ha_error *err)
{
    *out = 32;
    if (!ha_gguf_has(file, "general.alignment")) {
        return HA_OK;
    }
    const ha_status status = ha_gguf_u64(file, "general.alignment", out, err);
    if (status == HA_OK && (*out == 0 || (*out & (*out - 1)) != 0 || *out > (1u << 30))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: general.alignment must be a power of two, got %" PRIu64, path, *out);
    }
    return status;
}

/* Points the tensors into the data section, which begins at the next multiple of the alignment. */
static ha_status
place_tensors(ha_tensor_file *file, const reader *r, const uint64_t *offsets, ha_error *err)
{
    const ha_map_file map = file->maps[file->n_maps - 1];
    uint64_t alignment = 0;
    ha_status status = data_alignment(file, r->path, &alignment, err);
    if (status != HA_OK) {
        return status;
    }
    const uint64_t begin = ((uint64_t)(r->at - map.data) + alignment - 1) & ~(alignment - 1);
    const uint64_t size = begin <= map.size ? map.size - begin : 0;
    for (size_t i = 0; i < file->count; i++) {
        ha_tensor *tensor = &file->tensors[i];
        if (offsets[i] % alignment != 0) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: tensor '%.64s': offset %" PRIu64 " is no multiple of the alignment %" PRIu64,
                           r->path, tensor->name, offsets[i], alignment);
        }
        if (offsets[i] > size || tensor->n_bytes > size - offsets[i]) {
            return ha_fail(err, HA_ERR_FORMAT, "%.250s: tensor '%.64s': %zu bytes at offset %" PRIu64 " lie outside the %" PRIu64 "-byte data section",
                           r->path, tensor->name, tensor->n_bytes, offsets[i], size);
        }
        tensor->data = begin <= map.size ? map.data + begin + offsets[i] : r->end;
    }
    return ha_tensor_file_check_layout(file, 0, begin <= map.size ? map.data + begin : r->end, (size_t)size, 0, r->path, err);
}

static ha_status
read_header(reader *r, uint64_t *n_tensors, uint64_t *n_entries)
{
    uint32_t version = 0;
    r->at += 4;     /* "GGUF", which brought us here */
    ha_status status = read_bytes(r, &version, 4, "the header");
    if (status != HA_OK) {
        return status;
    }
    if (version != 2 && version != 3) {
        const int swapped = version != 0 && (version & 0xFFFF) == 0;
        return ha_fail(r->err, HA_ERR_FORMAT, "%.350s: GGUF version %" PRIu32 " is not read (2 and 3 are)%s", r->path, version,
                       swapped ? "; the file is big-endian" : "");
    }
    status = read_bytes(r, n_tensors, 8, "the header");
    status = status != HA_OK ? status : read_bytes(r, n_entries, 8, "the header");
    if (status != HA_OK) {
        return status;
    }
    /* before anything is allocated */
    if (*n_entries > left(r) / MIN_ENTRY || *n_tensors > left(r) / MIN_INFO) {
        return ha_fail(r->err, HA_ERR_FORMAT, "%.300s: %" PRIu64 " metadata entries and %" PRIu64 " tensors do not fit into %zu bytes",
                       r->path, *n_entries, *n_tensors, left(r));
    }
    return HA_OK;
}

ha_status
ha_gguf_read(ha_tensor_file *file, const char *path, ha_error *err)
{
    const ha_map_file map = file->maps[file->n_maps - 1];
    reader r = {map.data, map.data + map.size, path, err};
    uint64_t n_tensors = 0, n_entries = 0, *offsets = NULL;
    ha_status status = read_header(&r, &n_tensors, &n_entries);
    if (status != HA_OK) {
        return status;
    }
    file->is_gguf = 1;
    file->entries = calloc((size_t)n_entries + 1, sizeof(*file->entries));
    if (file->entries == NULL || !ha_strmap_init(&file->by_key, 64)) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
    }
    for (uint64_t i = 0; i < n_entries; i++) {
        status = read_entry(file, &r, err);
        if (status != HA_OK) {
            return status;
        }
    }
    file->metadata_end = (uint64_t)(r.at - map.data);
    if (n_tensors > left(&r) / MIN_INFO) {
        return truncated(&r, "the tensor infos");
    }
    size_t names_size = 0;
    status = measure_names(r, n_tensors, &names_size);
    if (status != HA_OK) {
        return status;
    }
    offsets = calloc((size_t)n_tensors + 1, sizeof(*offsets));
    file->names = malloc(names_size + 1);
    if (offsets == NULL || file->names == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
        goto done;
    }
    char *name_at = file->names;
    for (uint64_t i = 0; i < n_tensors; i++) {
        status = read_info(file, &r, &name_at, &offsets[i], err);
        if (status != HA_OK) {
            goto done;
        }
    }
    status = place_tensors(file, &r, offsets, err);
done:
    free(offsets);
    return status;
}

/* -- access -- */

int
ha_gguf_is(const ha_tensor_file *file)
{
    return file->is_gguf;
}

uint64_t
ha_gguf_metadata_end(const ha_tensor_file *file)
{
    return file->metadata_end;
}

size_t
ha_gguf_count(const ha_tensor_file *file)
{
    return file->n_entries;
}

void
ha_gguf_at(const ha_tensor_file *file, size_t i, const char **key, size_t *key_length, ha_gguf_value *out)
{
    *key = file->entries[i].key;
    *key_length = file->entries[i].key_length;
    *out = file->entries[i].value;
}

void
ha_gguf_next(const ha_gguf_value *array, const uint8_t **at, ha_gguf_value *out)
{
    decode(array->item_type, at, out);
    if (array->item_type == HA_GGUF_ARRAY) {        /* an inner array is left behind at its end */
        const uint8_t *inner = out->data;
        ha_gguf_value item;
        if (scalar_bytes[out->item_type] > 0) {
            inner += out->count * scalar_bytes[out->item_type];
        } else {
            for (uint64_t i = 0; i < out->count; i++) {
                ha_gguf_next(out, &inner, &item);       /* at most MAX_NESTING deep */
            }
        }
        *at = inner;
    }
}

int
ha_gguf_scalar(const ha_gguf_value *value, int64_t *i, uint64_t *u, double *f)
{
    int8_t i8;
    int16_t i16;
    int32_t i32;
    float f32;
    *u = 0;
    switch (value->type) {
    case HA_GGUF_I8: memcpy(&i8, value->data, 1), *i = i8; return 1;
    case HA_GGUF_I16: memcpy(&i16, value->data, 2), *i = i16; return 1;
    case HA_GGUF_I32: memcpy(&i32, value->data, 4), *i = i32; return 1;
    case HA_GGUF_I64: memcpy(i, value->data, 8); return 1;
    case HA_GGUF_BOOL:
    case HA_GGUF_U8:
    case HA_GGUF_U16:
    case HA_GGUF_U32:
    case HA_GGUF_U64: memcpy(u, value->data, scalar_bytes[value->type]); return 2;
    case HA_GGUF_F32: memcpy(&f32, value->data, 4), *f = f32; return 3;
    case HA_GGUF_F64: memcpy(f, value->data, 8); return 3;
    default: return 0;
    }
}

static const ha_gguf_entry *
find_entry(const ha_tensor_file *file, const char *key)
{
    uint32_t i = 0;
    return ha_strmap_get(&file->by_key, key, strlen(key), &i) ? &file->entries[i] : NULL;
}

int
ha_gguf_has(const ha_tensor_file *file, const char *key)
{
    return find_entry(file, key) != NULL;
}

static ha_status
wrong(const ha_gguf_entry *entry, const char *key, const char *wanted, ha_error *err)
{
    return entry == NULL ? ha_fail(err, HA_ERR_FORMAT, "GGUF metadata '%.128s' is missing", key)
                         : ha_fail(err, HA_ERR_FORMAT, "GGUF metadata '%.128s' is not %s", key, wanted);
}

ha_status
ha_gguf_u64(const ha_tensor_file *file, const char *key, uint64_t *out, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    int64_t i = 0;
    double f;
    const int kind = entry != NULL && entry->value.type != HA_GGUF_BOOL ? ha_gguf_scalar(&entry->value, &i, out, &f) : 0;
    if (kind == 2) {
        return HA_OK;
    }
    *out = (uint64_t)i;
    return kind == 1 && i >= 0 ? HA_OK : wrong(entry, key, "a non-negative integer", err);
}

static int
as_f64(const ha_gguf_value *value, double *out)
{
    int64_t i = 0;
    uint64_t u = 0;
    const int kind = value->type != HA_GGUF_BOOL ? ha_gguf_scalar(value, &i, &u, out) : 0;
    *out = kind == 1 ? (double)i : kind == 2 ? (double)u : *out;
    return kind != 0;
}

ha_status
ha_gguf_f64(const ha_tensor_file *file, const char *key, double *out, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    return entry != NULL && as_f64(&entry->value, out) ? HA_OK : wrong(entry, key, "a number", err);
}

ha_status
ha_gguf_bool(const ha_tensor_file *file, const char *key, int *out, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    if (entry == NULL || entry->value.type != HA_GGUF_BOOL) {
        return wrong(entry, key, "a bool", err);
    }
    *out = entry->value.data[0];
    return HA_OK;
}

ha_status
ha_gguf_string(const ha_tensor_file *file, const char *key, const char **out, size_t *length, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    if (entry == NULL || entry->value.type != HA_GGUF_STRING) {
        return wrong(entry, key, "a string", err);
    }
    *out = (const char *)entry->value.data;
    *length = (size_t)entry->value.count;
    return HA_OK;
}

ha_status
ha_gguf_array_length(const ha_tensor_file *file, const char *key, size_t *out, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    if (entry == NULL || entry->value.type != HA_GGUF_ARRAY) {
        return wrong(entry, key, "an array", err);
    }
    *out = (size_t)entry->value.count;
    return HA_OK;
}

ha_status
ha_gguf_array_string(const ha_tensor_file *file, const char *key, size_t i, const char **out, size_t *length, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    if (entry == NULL || entry->offsets == NULL) {
        return wrong(entry, key, "an array of strings", err);
    }
    if (i >= entry->value.count) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF metadata '%.128s' has %" PRIu64 " elements, element %zu was wanted", key, entry->value.count, i);
    }
    const uint8_t *at = entry->value.data + entry->offsets[i];
    ha_gguf_value item;
    decode(HA_GGUF_STRING, &at, &item);
    *out = (const char *)item.data;
    *length = (size_t)item.count;
    return HA_OK;
}

ha_status
ha_gguf_array_f64(const ha_tensor_file *file, const char *key, size_t i, double *out, ha_error *err)
{
    const ha_gguf_entry *entry = find_entry(file, key);
    if (entry == NULL || entry->value.type != HA_GGUF_ARRAY || scalar_bytes[entry->value.item_type] == 0) {
        return wrong(entry, key, "an array of numbers", err);
    }
    if (i >= entry->value.count) {
        return ha_fail(err, HA_ERR_FORMAT, "GGUF metadata '%.128s' has %" PRIu64 " elements, element %zu was wanted", key, entry->value.count, i);
    }
    const ha_gguf_value item = {.type = entry->value.item_type, .count = 1, .data = entry->value.data + i * scalar_bytes[entry->value.item_type]};
    return as_f64(&item, out) ? HA_OK : wrong(entry, key, "an array of numbers", err);
}
