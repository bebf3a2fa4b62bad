/* Allocations that fail on purpose, for programs linked with --wrap=malloc, --wrap=calloc, --wrap=realloc and --wrap=aligned_alloc. */
#ifndef HARMAUG_TESTS_ALLOCATIONS_H
#define HARMAUG_TESTS_ALLOCATIONS_H

#include <stddef.h>

static long allocations_left = -1;      /* -1: all succeed */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);

static int
refused(void)
{
    return allocations_left == 0 || (allocations_left > 0 && allocations_left-- == 0);
}

void *__wrap_malloc(size_t n) { return refused() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return refused() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return refused() ? NULL : __real_realloc(p, n); }
void *__wrap_aligned_alloc(size_t alignment, size_t n) { return refused() ? NULL : __real_aligned_alloc(alignment, n); }

#endif
