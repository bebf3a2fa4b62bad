#define _POSIX_C_SOURCE 200809L
#if defined(_WIN32)
#error "harmaug: Windows is not supported yet (core/map_file.c needs POSIX mmap)"
#endif
#include "core/map_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__APPLE__)
#define HA_MTIME(info) (info).st_mtimespec
#define HA_CTIME(info) (info).st_ctimespec
#else
#define HA_MTIME(info) (info).st_mtim
#define HA_CTIME(info) (info).st_ctim
#endif

static const uint8_t nothing[1] = {0};      /* what an empty file maps to: mmap refuses length 0 */

ha_status
ha_map_file_open(const char *path, ha_map_file *out, ha_error *err)
{
    struct stat info;
    ha_status status = HA_OK;
    out->data = NULL;
    out->size = 0;
    /* O_NONBLOCK: a FIFO must not hang us before fstat() can refuse it */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: is %s, not a file", path, S_ISDIR(info.st_mode) ? "a folder" : "a device or a pipe");
        goto done;
    }
    if ((uint64_t)info.st_size > PTRDIFF_MAX) {
        status = ha_fail(err, HA_ERR_IO, "%.350s: too large for this address space", path);
        goto done;
    }
    const uint64_t stamp[7] = {(uint64_t)info.st_dev, (uint64_t)info.st_ino, (uint64_t)info.st_size, (uint64_t)HA_MTIME(info).tv_sec,
                               (uint64_t)HA_MTIME(info).tv_nsec, (uint64_t)HA_CTIME(info).tv_sec, (uint64_t)HA_CTIME(info).tv_nsec};
    memcpy(out->stamp, stamp, sizeof(stamp));
    if (info.st_size == 0) {
        out->data = nothing;
        goto done;
    }
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        status = ha_fail(err, errno == ENOMEM ? HA_ERR_NOMEM : HA_ERR_IO, "%.350s: %s", path, strerror(errno));
        goto done;
    }
    out->data = data;
    out->size = (size_t)info.st_size;
done:
    close(fd);
    return status;
}

void
ha_map_file_close(ha_map_file *file)
{
    if (file->data != NULL && file->data != nothing) {
        munmap((void *)(uintptr_t)file->data, file->size);
    }
    file->data = NULL;
    file->size = 0;
}
