#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#include "models/encoder_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cache_file.h"
#include "core/sha256.h"

#define MAGIC "HaWeigh4"        /* the digit is the version of the format, of the layout and of what is packed */

/* How the file begins; the weights follow. A page, so that they are aligned. */
typedef union header {
    struct {
        char magic[8];
        uint64_t checksum;      /* of the weights and what follows here */
        uint32_t order, word;   /* 0x01020304 and sizeof(size_t): a file of another machine is none of ours */
        uint64_t size;          /* bytes of the weights */
        uint8_t stamp[32];
    };
    uint8_t page[4096];
} header;

ha_status
ha_encoder_cache_name(const char *cache_folder, const char *folder, const ha_encoder *encoder, ha_weight_format format,
                      const ha_checkpoint *checkpoint, char **path, uint8_t stamp[32], int *settled, ha_error *err)
{
    char name[HA_PATH_MAX + 64] = {0}, config[HA_PATH_MAX];
    uint8_t both[64];
    ha_map_file file = {0};
    char *full = realpath(folder, NULL);
    *path = NULL;
    if (full == NULL || strlen(full) >= HA_PATH_MAX) {
        free(full);
        return ha_fail(err, HA_ERR_IO, "%.300s: has no full path", folder);
    }
    const int length = snprintf(name, sizeof(name), "%s %s %d", encoder->kernels->isa, full, (int)format);
    free(full);
    ha_status status = ha_path_join(folder, "config.json", config, sizeof(config), err);
    if (status != HA_OK || (status = ha_map_file_open(config, &file, err)) != HA_OK) {
        return status;
    }
    ha_sha256(file.data, file.size, both);
    ha_map_file_close(&file);
    *settled = ha_checkpoint_stamp(checkpoint, both + 32);
    ha_sha256(both, sizeof(both), stamp);
    return ha_cache_path(cache_folder, name, (size_t)length, ".weights", path, err);
}

static uint64_t
checksum(const header *head, const uint8_t *weights, size_t size)
{
    const size_t from = offsetof(header, order);
    return ha_cache_checksum(ha_cache_checksum(0, head->page + from, sizeof(*head) - from), weights, size);
}

ha_status
ha_encoder_cache_open(const char *path, const uint8_t stamp[32], size_t size, ha_map_file *map, uint8_t **weights, ha_error *err)
{
    struct stat info;
    ha_status status = ha_map_file_open(path, map, err);
    if (status != HA_OK) {
        return status;
    }
    const header *head = (const header *)map->data;
    const char *why = NULL;
    if (stat(path, &info) != 0 || (uint64_t)info.st_ino != map->stamp[1] || info.st_uid != geteuid() || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        why = "it is not this user's alone";
    } else if (map->size < sizeof(*head) || map->size - sizeof(*head) != size || head->size != size) {
        why = "its size is wrong";
    } else if (memcmp(head->magic, MAGIC, sizeof(head->magic)) != 0 || head->order != 0x01020304 || head->word != sizeof(size_t)) {
        why = "it is of another version or machine";
    } else if (memcmp(head->stamp, stamp, sizeof(head->stamp)) != 0) {
        why = "the model has changed since";
    } else if (head->checksum != checksum(head, map->data + sizeof(*head), size)) {
        why = "the checksum is wrong";
    }
    if (why != NULL) {
        ha_map_file_close(map);
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: not used: %s", path, why);
    }
    *weights = (uint8_t *)(uintptr_t)(map->data + sizeof(*head));   /* read only, all the same */
    return HA_OK;
}

ha_status
ha_encoder_cache_write(const char *path, const uint8_t stamp[32], const uint8_t *weights, size_t size, ha_error *err)
{
    header head = {.magic = MAGIC};
    head.order = 0x01020304;
    head.word = sizeof(size_t);
    head.size = size;
    memcpy(head.stamp, stamp, sizeof(head.stamp));
    head.checksum = checksum(&head, weights, size);
    return ha_cache_write(path, &head, sizeof(head), weights, size, err);
}
