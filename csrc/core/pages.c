#define _DEFAULT_SOURCE         /* madvise, MAP_ANONYMOUS */
#define _DARWIN_C_SOURCE
#include "core/pages.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

void *
ha_pages_alloc(size_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        return NULL;
    }
#if defined(MADV_HUGEPAGE)
    madvise(pages, bytes, MADV_HUGEPAGE);
#endif
    return pages;
}

void
ha_pages_free(void *pages, size_t bytes)
{
    if (pages != NULL) {
        munmap(pages, bytes);
    }
}

void
ha_pages_forget(const void *data, size_t bytes)
{
    const long page = sysconf(_SC_PAGESIZE);
    if (page <= 0) {
        return;
    }
    const uintptr_t size = (uintptr_t)page, begin = ((uintptr_t)data + size - 1) / size * size, end = ((uintptr_t)data + bytes) / size * size;
    if (begin < end) {
        madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}
