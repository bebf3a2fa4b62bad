#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/json.h"
#include "io/tensor_file.h"
#include "kernels/kernels.h"

#define CHUNK 16384         /* elements converted at a time */
#define DATA_ALIGN 64       /* the header is padded with spaces so that a mapping's data is aligned */

/* -- growing text -- */

typedef struct text {
    char *data;
    size_t length, capacity;
    int failed;
} text;

static void
append(text *t, const char *bytes, size_t n)
{
    if (!t->failed && t->capacity - t->length < n) {
        size_t capacity = t->capacity < 4096 ? 4096 : t->capacity;
        while (capacity - t->length < n && capacity <= SIZE_MAX / 2) {
            capacity *= 2;
        }
        char *data = capacity - t->length < n ? NULL : realloc(t->data, capacity);
        t->failed = data == NULL;
        t->data = data != NULL ? data : t->data;
        t->capacity = data != NULL ? capacity : t->capacity;
    }
    if (!t->failed) {
        memcpy(t->data + t->length, bytes, n);
        t->length += n;
    }
}

static void
append_text(text *t, const char *s)
{
    append(t, s, strlen(s));
}

static void
append_u64(text *t, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof(digits), "%" PRIu64, value);
    append_text(t, digits);
}

static void
append_quoted(text *t, const char *s)
{
    append(t, "\"", 1);
    for (; *s != '\0'; s++) {
        char escape[8];
        if ((unsigned char)*s < 0x20) {
            snprintf(escape, sizeof(escape), "\\u%04x", (unsigned char)*s);
            append_text(t, escape);
        } else {
            append(t, "\\", *s == '"' || *s == '\\');
            append(t, s, 1);
        }
    }
    append(t, "\"", 1);
}

/* -- header -- */

/* A type that is written, its name in the header and its bytes. */
typedef struct dtype_name {
    ha_dtype dtype;
    const char *name;
    size_t item;
} dtype_name;

static const dtype_name *
written(ha_dtype dtype)
{
    static const dtype_name all[] = {{HA_F32, "F32", 4}, {HA_F16, "F16", 2}, {HA_BF16, "BF16", 2}, {HA_I8, "I8", 1}, {HA_U8, "U8", 1}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i].dtype == dtype) {
            return &all[i];
        }
    }
    return NULL;
}

static ha_status
tensor_size(const ha_tensor_out *tensor, size_t *elements, size_t *bytes, ha_error *err)
{
    *elements = 1;
    if (written(tensor->dtype) == NULL) {
        return ha_fail(err, HA_ERR_VALUE, "tensor '%.64s': only F32, F16, BF16, I8 and U8 are written", tensor->name);
    }
    const size_t item = written(tensor->dtype)->item;
    if (tensor->ndim < 0 || tensor->ndim > HA_MAX_DIMS) {
        return ha_fail(err, HA_ERR_VALUE, "tensor '%.64s': %d dimensions, 0 to 8 are written", tensor->name, tensor->ndim);
    }
    int overflow = 0;
    for (int i = 0; i < tensor->ndim; i++) {
        overflow |= __builtin_mul_overflow(*elements, tensor->shape[i], elements);
    }
    if (overflow || __builtin_mul_overflow(*elements, item, bytes)) {
        return ha_fail(err, HA_ERR_VALUE, "tensor '%.64s': shape overflows", tensor->name);
    }
    return HA_OK;
}

static ha_status
append_header(text *t, const ha_tensor_out *tensors, size_t count, const char *metadata_json, ha_error *err)
{
    uint64_t offset = 0;
    append_text(t, "{\"__metadata__\":");
    append_text(t, metadata_json != NULL ? metadata_json : "{\"format\":\"pt\"}");
    for (size_t i = 0; i < count; i++) {
        size_t elements, bytes;
        const ha_status status = tensor_size(&tensors[i], &elements, &bytes, err);
        if (status != HA_OK) {
            return status;
        }
        append_text(t, ",");
        append_quoted(t, tensors[i].name);
        append_text(t, ":{\"dtype\":");
        append_quoted(t, written(tensors[i].dtype)->name);
        append_text(t, ",\"shape\":[");
        for (int d = 0; d < tensors[i].ndim; d++) {
            append_text(t, d > 0 ? "," : "");
            append_u64(t, tensors[i].shape[d]);
        }
        append_text(t, "],\"data_offsets\":[");
        append_u64(t, offset);
        append_text(t, ",");
        if (__builtin_add_overflow(offset, (uint64_t)bytes, &offset)) {
            return ha_fail(err, HA_ERR_VALUE, "the tensors overflow 64 bits");
        }
        append_u64(t, offset);
        append_text(t, "]}");
    }
    append_text(t, "}");
    return HA_OK;
}

/* The header as a reader will see it: what names and metadata must be is checked by parsing it (UTF-8, no name twice, strings only). */
static ha_status
check_header(const char *path, const text *t, ha_error *err)
{
    ha_json *json = NULL;
    ha_status status = ha_json_parse(path, t->data, t->length, &json, err);
    if (status != HA_OK) {
        return status == HA_ERR_FORMAT ? HA_ERR_VALUE : status;
    }
    const ha_json_node *metadata = ha_json_get(json, ha_json_root(json), "__metadata__");
    int strings = metadata->type == HA_JSON_OBJECT;
    for (const ha_json_node *item = ha_json_first(json, metadata); item != NULL && strings; item = ha_json_next(json, item)) {
        strings = item->type == HA_JSON_STRING;
    }
    if (!strings) {
        status = ha_fail(err, HA_ERR_VALUE, "%.350s: the metadata must be an object of strings", path);
    }
    ha_json_free(json);
    return status;
}

/* -- data -- */

static ha_status
write_all(int fd, const char *path, const void *data, size_t n, ha_error *err)
{
    const char *at = data;
    while (n > 0) {
        const ssize_t written = write(fd, at, n < (1u << 30) ? n : (1u << 30));
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written < 0) {
            return ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
        }
        at += written;
        n -= (size_t)written;
    }
    return HA_OK;
}

static ha_status
write_tensor(int fd, const char *path, const ha_tensor_out *tensor, uint16_t *buffer, ha_error *err)
{
    size_t elements = 0, bytes = 0;
    ha_status status = tensor_size(tensor, &elements, &bytes, err);
    if (status != HA_OK || (tensor->dtype != HA_F16 && tensor->dtype != HA_BF16)) {
        return status != HA_OK ? status : write_all(fd, path, tensor->data, bytes, err);
    }
    void (*narrow)(uint16_t *, const float *, size_t) = tensor->dtype == HA_F16 ? ha_kernels_get()->f32_to_f16 : ha_kernels_get()->f32_to_bf16;
    for (size_t i = 0; i < elements && status == HA_OK; i += CHUNK) {
        const size_t n = elements - i < CHUNK ? elements - i : CHUNK;
        narrow(buffer, (const float *)tensor->data + i, n);
        status = write_all(fd, path, buffer, 2 * n, err);
    }
    return status;
}

static ha_status
write_file(int fd, const char *path, const text *header, const ha_tensor_out *tensors, size_t count, ha_error *err)
{
    const uint64_t length = header->length;
    uint16_t *buffer = malloc(CHUNK * sizeof(*buffer));
    ha_status status = buffer != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
    status = status != HA_OK ? status : write_all(fd, path, &length, 8, err);
    status = status != HA_OK ? status : write_all(fd, path, header->data, header->length, err);
    for (size_t i = 0; i < count && status == HA_OK; i++) {
        status = write_tensor(fd, path, &tensors[i], buffer, err);
    }
    if (status == HA_OK && fsync(fd) != 0) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
    }
    free(buffer);
    return status;
}

/* A rename survives a crash only once its folder is on the disk; a file system that can't sync a folder is no reason to fail. */
static void
sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = strdup(slash == path ? "/" : slash != NULL ? path : ".");
    if (folder != NULL && slash != NULL && slash != path) {
        folder[slash - path] = '\0';
    }
    const int fd = folder != NULL ? open(folder, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(folder);
}

ha_status
ha_safetensors_write(const char *path, const ha_tensor_out *tensors, size_t count, const char *metadata_json, ha_error *err)
{
    static const char spaces[DATA_ALIGN + 1] = "                                                                ";
    text header = {0};
    char *temporary = NULL;
    int fd = -1;
    ha_status status = append_header(&header, tensors, count, metadata_json, err);
    if (status != HA_OK) {
        goto done;
    }
    append(&header, spaces, (DATA_ALIGN - (8 + header.length) % DATA_ALIGN) % DATA_ALIGN);
    const size_t size = strlen(path) + 32;
    temporary = malloc(size);
    if (header.failed || temporary == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory", path);
        goto done;
    }
    status = check_header(path, &header, err);
    if (status != HA_OK) {
        goto done;
    }
    snprintf(temporary, size, "%s.tmp-%ld", path, (long)getpid());
    unlink(temporary);      /* of a process that died and had our number */
    fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
        goto done;
    }
    status = write_file(fd, path, &header, tensors, count, err);
    if (close(fd) != 0 && status == HA_OK) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
    }
    if (status == HA_OK && rename(temporary, path) != 0) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
    }
    if (status != HA_OK) {
        unlink(temporary);
    } else {
        sync_folder(path);
    }
done:
    free(temporary);
    free(header.data);
    return status;
}
