/* Large blocks straight from the system, and pages given back to it. */
#ifndef HARMAUG_CORE_PAGES_H
#define HARMAUG_CORE_PAGES_H

#include <stddef.h>

/* A zeroed block for data that lives long and is read whole, again and again: on huge pages where the system grants them, for a pass over
 * hundreds of megabytes otherwise spends its time on address translation. NULL: out of memory. bytes > 0. */
void *ha_pages_alloc(size_t bytes);
void ha_pages_free(void *pages, size_t bytes);      /* the same size; NULL is fine */

/* Tells the system that a part of a read-only file mapping is not needed for now: its pages leave this process's memory and come back from
 * the file when they are read. Advice, nothing more. */
void ha_pages_forget(const void *data, size_t bytes);

#endif
