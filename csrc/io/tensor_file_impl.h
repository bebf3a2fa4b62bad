/* What the readers of io/ share; nobody else includes it. */
#ifndef HARMAUG_IO_TENSOR_FILE_IMPL_H
#define HARMAUG_IO_TENSOR_FILE_IMPL_H

#include "core/map_file.h"
#include "core/strmap.h"
#include "io/json.h"
#include "io/tensor_file.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "harmaug: safetensors and GGUF are read in place, which needs a little-endian CPU"
#endif

typedef struct ha_gguf_entry {
    const char *key;            /* not NUL-terminated */
    size_t key_length;
    ha_gguf_value value;
    uint64_t *offsets;          /* array of strings: where each element begins, from value.data; else NULL */
} ha_gguf_entry;

struct ha_tensor_file {
    ha_map_file *maps;
    ha_json **documents;        /* safetensors: headers, which own the names of the tensors; shard i beside map i */
    size_t n_maps;

    ha_tensor *tensors;
    uint32_t *shards;           /* (count,): the map that tensor i lies in */
    size_t count, capacity;
    ha_strmap by_name;

    int is_gguf;
    uint64_t metadata_end;
    ha_gguf_entry *entries;
    size_t n_entries;
    ha_strmap by_key;
    char *names;                /* GGUF: tensor names, NUL-terminated */
};

/* Appends a tensor of the newest map. HA_ERR_FORMAT when its extents, 0 counted as 1, don't fit an array of float32: who allocates by
 * them need not fear an overflow. */
ha_status ha_tensor_file_add(ha_tensor_file *file, const ha_tensor *tensor, const char *path, ha_error *err);
/* Maps `path` as the newest map (with an empty document slot). */
ha_status ha_tensor_file_map(ha_tensor_file *file, const char *path, ha_error *err);
/* Checks that the tensors [first, count) do not overlap; dense: that they also fill [data, data + size) without a hole. */
ha_status ha_tensor_file_check_layout(const ha_tensor_file *file, size_t first, const uint8_t *data, size_t size, int dense,
                                      const char *path, ha_error *err);

/* Fills by_name: HA_ERR_FORMAT when a name stands twice. Each top-level reader ends with it. */
ha_status ha_tensor_file_index(ha_tensor_file *file, const char *path, ha_error *err);

/* Each reads the newest map. */
ha_status ha_safetensors_read(ha_tensor_file *file, const char *path, ha_error *err);
ha_status ha_gguf_read(ha_tensor_file *file, const char *path, ha_error *err);
/* `path` is the index; it is not kept mapped. */
ha_status ha_safetensors_read_index(ha_tensor_file *file, const char *path, const ha_map_file *index, ha_error *err);

#endif
