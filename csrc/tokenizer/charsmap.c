#include "tokenizer/charsmap.h"

#include <stdlib.h>
#include <string.h>

#include "core/base64.h"
#include "core/utf8.h"

/* ---- units of Darts-clone: bit 31 marks a value; else bits 0-7 label, 8 "a value lies at the base", 9-30 the base relative to the unit ---- */

#define VALUE_MASK 0x7FFFFFFFu

static int
is_child(uint32_t unit, uint8_t label)
{
    return (unit & 0x800000FFu) == label;
}

static int
has_value(uint32_t unit)
{
    return (int)(unit >> 8 & 1);
}

static size_t
base_of(uint32_t unit)
{
    return (size_t)(unit >> 10) << (unit >> 6 & 8);
}

void
ha_charsmap_free(ha_charsmap *map)
{
    free(map->units);
    free(map->text);
    memset(map, 0, sizeof(*map));
}

/* Whether no unit could lead out of the trie or its value out of the text, reached or not: what sound files come to, in one pass. */
static int
all_sound(const ha_charsmap *map)
{
    int good = 1;
    for (size_t i = 0; i < map->n_units && good; i++) {
        const uint32_t unit = map->units[i];
        const size_t base = i ^ base_of(unit);
        good = unit >> 31 || (base | 0xFF) < map->n_units;      /* a value is no node, unless the root */
        if (good && unit >> 31 == 0 && has_value(unit)) {
            const size_t value = map->units[base] & VALUE_MASK;
            good = value <= map->n_text && (map->text[value] & 0xC0) != 0x80;
        }
    }
    return good && map->units[0] >> 31 == 0;
}

/* Follows every path from the root; a node is seen once, however many lead to it. Labels of a node lie in one block of 256 units, which is checked whole. */
static ha_status
check_trie(const ha_charsmap *map, ha_error *err)
{
    uint8_t *seen = calloc(map->n_units, 1);
    uint32_t *stack = malloc(map->n_units * sizeof(*stack));
    size_t n = 0;
    ha_status status = HA_OK;
    if (seen == NULL || stack == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "out of memory for a precompiled_charsmap of %zu units", map->n_units);
        goto done;
    }
    stack[n++] = 0;
    while (n > 0 && status == HA_OK) {
        const uint32_t node = stack[--n], unit = map->units[node];
        const size_t base = node ^ base_of(unit);
        if (base >= map->n_units || (base | 0xFF) >= map->n_units) {
            status = ha_fail(err, HA_ERR_FORMAT, "precompiled_charsmap: unit %u leads out of the trie of %zu units", node, map->n_units);
            break;
        }
        if (has_value(unit)) {
            const size_t value = map->units[base] & VALUE_MASK;
            if (value > map->n_text || (map->text[value] & 0xC0) == 0x80) {
                status = ha_fail(err, HA_ERR_FORMAT, "precompiled_charsmap: replacement at byte %zu of %zu", value, map->n_text);
            }
        }
        for (unsigned label = 1; label < 256; label++) {
            const size_t child = base ^ label;
            if (is_child(map->units[child], (uint8_t)label) && !seen[child]) {
                seen[child] = 1;
                stack[n++] = (uint32_t)child;
            }
        }
    }
done:
    free(seen);
    free(stack);
    return status;
}

ha_status
ha_charsmap_parse(const uint8_t *bytes, size_t n, ha_charsmap *out, ha_error *err)
{
    memset(out, 0, sizeof(*out));
    const size_t trie_bytes = n < 4 ? 0 : bytes[0] | (size_t)bytes[1] << 8 | (size_t)bytes[2] << 16 | (size_t)bytes[3] << 24;
    const size_t n_units = trie_bytes / 4;
    if (n_units == 0 || n_units > (n - 4) / 4) {
        return ha_fail(err, HA_ERR_FORMAT, "precompiled_charsmap: a trie of %zu bytes in a map of %zu", trie_bytes, n);
    }
    const uint8_t *text = bytes + 4 + 4 * n_units;
    out->n_units = n_units;
    out->n_text = n - 4 - 4 * n_units;
    if (ha_utf8_valid_prefix(text, out->n_text) != out->n_text) {
        return ha_fail(err, HA_ERR_FORMAT, "precompiled_charsmap: the replacements are not UTF-8");
    }
    out->units = malloc(n_units * sizeof(*out->units));
    out->text = malloc(out->n_text + 1);
    ha_status status = HA_OK;
    if (out->units == NULL || out->text == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "out of memory for a precompiled_charsmap of %zu bytes", n);
    } else {
        for (size_t i = 0; i < n_units; i++) {
            const uint8_t *u = bytes + 4 + 4 * i;
            out->units[i] = u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
        }
        memcpy(out->text, text, out->n_text);
        out->text[out->n_text] = '\0';
        status = all_sound(out) ? HA_OK : check_trie(out, err);
    }
    if (status != HA_OK) {
        ha_charsmap_free(out);
    }
    return status;
}

ha_status
ha_charsmap_parse_base64(const char *text, size_t length, ha_charsmap *out, ha_error *err)
{
    memset(out, 0, sizeof(*out));
    uint8_t *bytes = malloc(length / 4 * 3 + 1);
    if (bytes == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for a precompiled_charsmap of %zu bytes", length);
    }
    const size_t n = ha_base64_decode(text, length, bytes);
    const ha_status status = n != SIZE_MAX ? ha_charsmap_parse(bytes, n, out, err) : ha_fail(err, HA_ERR_FORMAT, "precompiled_charsmap: malformed base64");
    free(bytes);
    return status;
}

size_t
ha_charsmap_find(const ha_charsmap *map, int longest, const uint8_t *text, size_t n, const char **replacement, size_t *length)
{
    const uint32_t *units = map->units;
    size_t node = base_of(units[0]), found = 0;
    for (size_t i = 0; i < n && text[i] != 0; i++) {
        node ^= text[i];
        const uint32_t unit = units[node];
        if (!is_child(unit, text[i])) {
            break;
        }
        node ^= base_of(unit);
        if (has_value(unit)) {
            found = i + 1;
            *replacement = map->text + (units[node] & VALUE_MASK);
            if (!longest) {
                break;
            }
        }
    }
    if (found > 0) {
        *length = strlen(*replacement);
    }
    return found;
}
