/* Named tensors in a read-only mapping: one view over safetensors (single or sharded by an index) and GGUF. */
#ifndef HARMAUG_IO_TENSOR_FILE_H
#define HARMAUG_IO_TENSOR_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

#define HA_MAX_DIMS 8

typedef enum ha_dtype {
    HA_F32, HA_F16, HA_BF16, HA_Q8_0, HA_Q4_0, HA_Q4_1, HA_Q4_K, HA_Q6_K,
    HA_I8, HA_U8, HA_OTHER      /* stored, listed, but no reader: ha_tensor_rows_f32 names `type_name` in its error */
} ha_dtype;

#define HA_READ_DTYPES "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K"     /* for messages */

typedef struct ha_tensor {
    const char *name;
    ha_dtype dtype;
    const char *type_name;          /* as the file's format calls it: "F32", "I64", "Q5_K" ... */
    int ndim;
    size_t shape[HA_MAX_DIMS];      /* row-major as in PyTorch: for GGUF the file's dimensions reversed */
    const uint8_t *data;            /* borrowed from the mapping, checked to hold the whole tensor; may be unaligned */
    size_t n_bytes;
} ha_tensor;

typedef struct ha_tensor_file ha_tensor_file;

struct ha_json;
struct ha_json_node;

/* Opens a .safetensors, a .safetensors.index.json, a .gguf (by content, not by name), or a folder that holds
 * model.safetensors, model.safetensors.index.json or exactly one .gguf. HA_ERR_IO when it can't be opened, HA_ERR_FORMAT otherwise.
 * The file must not be shortened while it is open: the system answers a read behind its end with SIGBUS. */
ha_status ha_tensor_file_open(const char *path, ha_tensor_file **out, ha_error *err);
void ha_tensor_file_close(ha_tensor_file *file);

size_t ha_tensor_file_count(const ha_tensor_file *file);
const ha_tensor *ha_tensor_file_at(const ha_tensor_file *file, size_t i);              /* in file order */
const ha_tensor *ha_tensor_file_find(const ha_tensor_file *file, const char *name);    /* NULL: no such tensor */

/* A digest of the state in which the files were when they were opened: as long as it is the same, so is their content (device, inode, size and times,
 * of which the time of the inode's change can't be set). Returns 0 when a change is so young that the next one might not show. */
int ha_tensor_file_stamp(const ha_tensor_file *file, uint8_t digest[32]);

/* Dequantised rows [first, first + count) of a tensor seen as (shape[0], rest): out (count, rest) float32.
 * A 1-D tensor is one row. HA_ERR_VALUE for rows outside it, HA_ERR_FORMAT for a type without a reader.
 * Values equal gguf-py's dequantize() and an exact widening of F16/BF16, bit for bit. */
ha_status ha_tensor_rows_f32(const ha_tensor *tensor, size_t first, size_t count, float *out, ha_error *err);

/* The row of a matrix in groups of 8 or 4 bits (kernels/quantize.h) with the file's own values, not a bit of which changes: Q8_0 of 8, Q4_0 and Q4_1 of 4.
 * 0, and nothing is written: another type, or (Q4_0) a least element beyond float16. */
int ha_tensor_row_groups(const ha_tensor *tensor, size_t row, int bits, uint8_t *groups);

/* Finds `name` and checks its shape (ndim extents): HA_ERR_FORMAT "tensor 'x' is missing" / "has shape (..), expected (..)". */
ha_status ha_tensor_file_expect(const ha_tensor_file *file, const char *name, int ndim, const size_t *shape,
                                const ha_tensor **out, ha_error *err);

/* One tensor to write. */
typedef struct ha_tensor_out {
    const char *name;
    ha_dtype dtype;                 /* HA_F32, HA_F16 or HA_BF16: converted from float32; HA_I8 or HA_U8: as they are */
    int ndim;
    size_t shape[HA_MAX_DIMS];
    const void *data;               /* float32, int8 or uint8 */
} ha_tensor_out;

/* Writes a safetensors file: to `path`.tmp-<pid>, fsync, rename, so that a partial file never stands under `path`.
 * metadata_json: the "__metadata__" object's text, or NULL for {"format":"pt"}. HA_ERR_IO names the path and the cause (disk full). */
ha_status ha_safetensors_write(const char *path, const ha_tensor_out *tensors, size_t count, const char *metadata_json, ha_error *err);

/* The "__metadata__" object of a safetensors file (of the first shard), an object whose members are all strings, and the document
 * that holds it; NULL when there is none. */
const struct ha_json_node *ha_safetensors_metadata(const ha_tensor_file *file, const struct ha_json **document);

/* GGUF metadata. Each getter: HA_ERR_FORMAT when the key is missing or of another type. Borrowed pointers live as long as the file. */
int ha_gguf_is(const ha_tensor_file *file);
int ha_gguf_has(const ha_tensor_file *file, const char *key);
ha_status ha_gguf_u64(const ha_tensor_file *file, const char *key, uint64_t *out, ha_error *err);   /* any non-negative integer type */
ha_status ha_gguf_f64(const ha_tensor_file *file, const char *key, double *out, ha_error *err);
ha_status ha_gguf_bool(const ha_tensor_file *file, const char *key, int *out, ha_error *err);
ha_status ha_gguf_string(const ha_tensor_file *file, const char *key, const char **out, size_t *length, ha_error *err);
/* Arrays: element count, then elements by index. */
ha_status ha_gguf_array_length(const ha_tensor_file *file, const char *key, size_t *out, ha_error *err);
ha_status ha_gguf_array_string(const ha_tensor_file *file, const char *key, size_t i, const char **out, size_t *length, ha_error *err);
ha_status ha_gguf_array_f64(const ha_tensor_file *file, const char *key, size_t i, double *out, ha_error *err);   /* any number type */

/* All of it, in file order, for whoever lists it. Types as in the GGUF specification. */
enum { HA_GGUF_U8, HA_GGUF_I8, HA_GGUF_U16, HA_GGUF_I16, HA_GGUF_U32, HA_GGUF_I32, HA_GGUF_F32, HA_GGUF_BOOL,
       HA_GGUF_STRING, HA_GGUF_ARRAY, HA_GGUF_U64, HA_GGUF_I64, HA_GGUF_F64, HA_GGUF_N_TYPES };

typedef struct ha_gguf_value {
    uint32_t type, item_type;   /* item_type: of an array */
    uint64_t count;             /* STRING: bytes; ARRAY: elements; else 1 */
    const uint8_t *data;        /* scalar: little-endian; STRING: bytes; ARRAY: its first element. Unaligned */
} ha_gguf_value;

uint64_t ha_gguf_metadata_end(const ha_tensor_file *file);    /* bytes of header and metadata; 0: not GGUF */
size_t ha_gguf_count(const ha_tensor_file *file);
void ha_gguf_at(const ha_tensor_file *file, size_t i, const char **key, size_t *key_length, ha_gguf_value *out);
/* The element of an array at *at (begin with array->data, at most array->count times); *at moves behind it. */
void ha_gguf_next(const ha_gguf_value *array, const uint8_t **at, ha_gguf_value *out);
/* A scalar as the number it is: 1 = negative or signed type in *i, 2 = unsigned (and bool) in *u, 3 = floating in *f, 0 = no scalar. */
int ha_gguf_scalar(const ha_gguf_value *value, int64_t *i, uint64_t *u, double *f);

#endif
