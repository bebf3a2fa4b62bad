/* One allocation for everything a call needs. The caller lays its buffers out twice with the same function: first over an empty
 * arena, which only counts, then, after ha_arena_commit(), over the memory itself. A kept arena grows and is never shrunk. */
#ifndef HARMAUG_CORE_ARENA_H
#define HARMAUG_CORE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

#define HA_ARENA_ALIGN 64

typedef struct ha_arena {
    uint8_t *base;      /* HA_ARENA_ALIGN-aligned start of the memory, NULL while counting */
    void *block;        /* as malloc gave it */
    size_t capacity;    /* bytes from base */
    size_t used;
    int overflow;       /* a size did not fit size_t */
} ha_arena;             /* zero-initialised: an empty arena */

/* Starts counting: the memory that is there stays, but takes return NULL until the commit. */
void ha_arena_begin(ha_arena *arena);
/* `count` items of `item` bytes, aligned; NULL while counting. Content is not initialised. */
void *ha_arena_take(ha_arena *arena, size_t count, size_t item);
/* Allocates what was counted, or keeps the memory when it is large enough, and starts handing out. HA_ERR_NOMEM. */
ha_status ha_arena_commit(ha_arena *arena, ha_error *err);
void ha_arena_free(ha_arena *arena);   /* safe on a zeroed struct, and twice */

#endif
