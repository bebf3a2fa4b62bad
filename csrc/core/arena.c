#include "core/arena.h"

#include <assert.h>
#include <stdlib.h>

void
ha_arena_begin(ha_arena *arena)
{
    arena->base = NULL;
    arena->used = 0;
    arena->overflow = 0;
}

void *
ha_arena_take(ha_arena *arena, size_t count, size_t item)
{
    const size_t limit = SIZE_MAX - 2 * HA_ARENA_ALIGN;
    if (item != 0 && count > limit / item) {
        arena->overflow = 1;
        return NULL;
    }
    const size_t bytes = (count * item + HA_ARENA_ALIGN - 1) / HA_ARENA_ALIGN * HA_ARENA_ALIGN;
    if (bytes > limit - arena->used) {
        arena->overflow = 1;
        return NULL;
    }
    const size_t begin = arena->used;
    arena->used += bytes;
    assert(arena->base == NULL || arena->used <= arena->capacity);
    return arena->base != NULL ? arena->base + begin : NULL;
}

ha_status
ha_arena_commit(ha_arena *arena, ha_error *err)
{
    if (arena->overflow) {
        return ha_fail(err, HA_ERR_NOMEM, "arena: the size of the buffers overflows");
    }
    if (arena->block == NULL || arena->used > arena->capacity) {
        free(arena->block);
        arena->capacity = 0;
        arena->block = malloc(arena->used + HA_ARENA_ALIGN);
        if (arena->block == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "arena: out of memory (%zu bytes)", arena->used);
        }
        arena->capacity = arena->used;
    }
    const uintptr_t address = (uintptr_t)arena->block;
    arena->base = (uint8_t *)arena->block + (HA_ARENA_ALIGN - address % HA_ARENA_ALIGN) % HA_ARENA_ALIGN;
    arena->used = 0;
    return HA_OK;
}

void
ha_arena_free(ha_arena *arena)
{
    free(arena->block);
    *arena = (ha_arena){0};
}
