#include "core/strmap.h"

#include <stdlib.h>
#include <string.h>

#include "core/hash.h"

int
ha_strmap_init(ha_strmap *map, size_t expected)
{
    size_t n_slots = 16;
    memset(map, 0, sizeof(*map));
    while (n_slots / 2 < expected) {
        if (n_slots > SIZE_MAX / 4) {
            return 0;
        }
        n_slots *= 2;
    }
    map->slots = calloc(n_slots, sizeof(*map->slots));
    map->n_slots = map->slots != NULL ? n_slots : 0;
    ha_hash_key(map->hash_key, map->slots);
    return map->slots != NULL;
}

void
ha_strmap_free(ha_strmap *map)
{
    free(map->slots);
    memset(map, 0, sizeof(*map));
}

/* The slot of the key, or the empty one where it would go. */
static ha_strmap_slot *
find(const ha_strmap *map, const char *key, size_t length, uint32_t hash)
{
    for (size_t i = hash & (map->n_slots - 1);; i = (i + 1) & (map->n_slots - 1)) {
        ha_strmap_slot *slot = &map->slots[i];
        if (slot->key == NULL || (slot->hash == hash && slot->length == length && memcmp(slot->key, key, length) == 0)) {
            return slot;
        }
    }
}

static int
grow(ha_strmap *map)
{
    const size_t n_slots = 2 * map->n_slots;
    ha_strmap_slot *slots = n_slots > SIZE_MAX / 4 ? NULL : calloc(n_slots, sizeof(*slots));
    if (slots == NULL) {
        return 0;
    }
    for (size_t i = 0; i < map->n_slots; i++) {
        if (map->slots[i].key != NULL) {
            size_t j = map->slots[i].hash & (n_slots - 1);
            while (slots[j].key != NULL) {
                j = (j + 1) & (n_slots - 1);
            }
            slots[j] = map->slots[i];
        }
    }
    free(map->slots);
    map->slots = slots;
    map->n_slots = n_slots;
    return 1;
}

ha_strmap_put_result
ha_strmap_put(ha_strmap *map, const char *key, size_t length, uint32_t value)
{
    const uint32_t hash = (uint32_t)ha_siphash(map->hash_key, key, length);
    ha_strmap_slot *slot = find(map, key, length, hash);
    if (slot->key != NULL) {
        return HA_STRMAP_EXISTS;
    }
    if (2 * (map->count + 1) > map->n_slots) {
        if (!grow(map)) {
            return HA_STRMAP_NOMEM;
        }
        slot = find(map, key, length, hash);
    }
    *slot = (ha_strmap_slot){key, length, hash, value};
    map->count++;
    return HA_STRMAP_ADDED;
}

int
ha_strmap_get(const ha_strmap *map, const char *key, size_t length, uint32_t *value)
{
    if (map->n_slots == 0) {
        return 0;
    }
    const ha_strmap_slot *slot = find(map, key, length, (uint32_t)ha_siphash(map->hash_key, key, length));
    if (slot->key == NULL) {
        return 0;
    }
    *value = slot->value;
    return 1;
}
