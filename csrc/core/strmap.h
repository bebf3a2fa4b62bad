/* Byte strings to uint32 values. Keys are borrowed: they must outlive the map. Keyed hashing (core/hash.h). */
#ifndef HARMAUG_CORE_STRMAP_H
#define HARMAUG_CORE_STRMAP_H

#include <stddef.h>
#include <stdint.h>

typedef struct ha_strmap_slot {
    const char *key;            /* NULL: empty */
    size_t length;
    uint32_t hash, value;
} ha_strmap_slot;

typedef struct ha_strmap {
    ha_strmap_slot *slots;      /* a power of two of them, at most half full */
    size_t n_slots, count;
    uint64_t hash_key[2];
} ha_strmap;

/* Room for `expected` keys (it grows beyond). 0: out of memory. */
int ha_strmap_init(ha_strmap *map, size_t expected);
void ha_strmap_free(ha_strmap *map);        /* safe on a zeroed struct */

typedef enum ha_strmap_put_result { HA_STRMAP_NOMEM = -1, HA_STRMAP_EXISTS = 0, HA_STRMAP_ADDED = 1 } ha_strmap_put_result;

/* A key that is there already keeps its value (HA_STRMAP_EXISTS). */
ha_strmap_put_result ha_strmap_put(ha_strmap *map, const char *key, size_t length, uint32_t value);
/* 1 and *value, or 0. Safe on a zeroed struct. */
int ha_strmap_get(const ha_strmap *map, const char *key, size_t length, uint32_t *value);

#endif
