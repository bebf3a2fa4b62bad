#define _POSIX_C_SOURCE 200809L
#include "core/cache_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/sha256.h"

uint64_t
ha_cache_checksum(uint64_t seed, const void *data, size_t length)
{
    const uint8_t *p = data;
    uint64_t lane[4] = {seed, seed ^ 0x9E3779B97F4A7C15u, seed + 0xC2B2AE3D27D4EB4Fu, ~seed}, last[4] = {0};
    size_t i = 0;
    for (; i + 32 <= length; i += 32) {
        uint64_t w[4];
        memcpy(w, p + i, 32);
        for (int k = 0; k < 4; k++) {
            lane[k] = (lane[k] ^ w[k]) * 0x9FB21C651E98DF25u;
            lane[k] ^= lane[k] >> 29;
        }
    }
    memcpy(last, p + i, length - i);
    uint64_t sum = length;
    for (int k = 0; k < 4; k++) {
        sum = (sum ^ lane[k] ^ last[k] * 0xD6E8FEB86659FD93u) * 0x9FB21C651E98DF25u;
        sum ^= sum >> 32;
    }
    return sum;
}

ha_status
ha_cache_path(const char *folder, const void *key, size_t length, const char *suffix, char **out, ha_error *err)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[32];
    const size_t n = strlen(folder);
    char *path = malloc(n + strlen(suffix) + 66);
    if (path == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    ha_sha256(key, length, digest);
    memcpy(path, folder, n);
    path[n] = '/';
    for (size_t i = 0; i < 32; i++) {
        path[n + 1 + 2 * i] = digits[digest[i] >> 4];
        path[n + 2 + 2 * i] = digits[digest[i] & 15];
    }
    strcpy(path + n + 65, suffix);
    *out = path;
    return HA_OK;
}

static int
write_all(int fd, const void *data, size_t length)
{
    for (const uint8_t *p = data; length > 0;) {
        const ssize_t n = write(fd, p, length);
        if (n < 0 && errno != EINTR) {
            return 0;
        }
        p += n > 0 ? n : 0;
        length -= n > 0 ? (size_t)n : 0;
    }
    return 1;
}

ha_status
ha_cache_write(const char *path, const void *head, size_t head_size, const void *data, size_t size, ha_error *err)
{
    char *aside = malloc(strlen(path) + 32);
    if (aside == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory");
    }
    sprintf(aside, "%s.XXXXXX", path);
    const int fd = mkstemp(aside);          /* mode 0600 */
    int good = fd >= 0 && write_all(fd, head, head_size) && write_all(fd, data, size);
    good &= fd < 0 || close(fd) == 0;
    good = good && rename(aside, path) == 0;
    const ha_status status = good ? HA_OK : ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
    if (!good && fd >= 0) {
        unlink(aside);
    }
    free(aside);
    return status;
}
