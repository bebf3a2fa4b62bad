/* A whole file, read-only: mapped where the system maps files, else read. */
#ifndef HARMAUG_CORE_MAP_FILE_H
#define HARMAUG_CORE_MAP_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct ha_map_file {
    const uint8_t *data;
    size_t size;
    uint64_t stamp[7];  /* what changes when the file does: device, inode, size, times of change of content and of inode (s, ns each) */
} ha_map_file;

/* HA_ERR_IO "path: cause". An empty file gives size 0 and a non-NULL pointer. A folder or a device is an error. */
ha_status ha_map_file_open(const char *path, ha_map_file *out, ha_error *err);
void ha_map_file_close(ha_map_file *file);     /* safe on a zeroed struct, and twice */

#endif
