/* Files of a cache folder: named by a digest of what they stand for, written aside and renamed, told from damaged ones by a checksum. */
#ifndef HARMAUG_CORE_CACHE_FILE_H
#define HARMAUG_CORE_CACHE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

/* Against damage, not against malice: four lanes of multiplications. */
uint64_t ha_cache_checksum(uint64_t seed, const void *data, size_t length);

/* *out: malloc'ed "folder/<SHA-256 of key, in hexadecimal><suffix>". */
ha_status ha_cache_path(const char *folder, const void *key, size_t length, const char *suffix, char **out, ha_error *err);

/* Writes head and data, mode 0600, so that never a part of them stands under `path`. */
ha_status ha_cache_write(const char *path, const void *head, size_t head_size, const void *data, size_t size, ha_error *err);

#endif
