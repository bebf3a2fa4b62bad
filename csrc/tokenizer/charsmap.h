/* The precompiled_charsmap of a sentencepiece model: rules that rewrite short strings, as a double-array trie in the units of Darts-clone (Yata 2008) over UTF-8
 * and a block of NUL-terminated replacements. Layout: uint32 little-endian size of the trie in bytes, the units (uint32 each), the replacements. */
#ifndef HARMAUG_TOKENIZER_CHARSMAP_H
#define HARMAUG_TOKENIZER_CHARSMAP_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct ha_charsmap {
    uint32_t *units;
    size_t n_units;
    char *text;                 /* (n_text,) and one NUL more */
    size_t n_text;
} ha_charsmap;

/* From n bytes, which are not kept. Every path of the trie is followed: one that leaves the units, or a replacement that is no whole characters of the text, is
 * HA_ERR_FORMAT. */
ha_status ha_charsmap_parse(const uint8_t *bytes, size_t n, ha_charsmap *out, ha_error *err);
/* The same from base64 (RFC 4648, padded), as tokenizer.json has it. */
ha_status ha_charsmap_parse_base64(const char *text, size_t length, ha_charsmap *out, ha_error *err);
void ha_charsmap_free(ha_charsmap *map);

/* The rule of the shortest, or the longest, prefix of text[0..n) that has one: bytes of the prefix, and its replacement; 0 where there is none. */
size_t ha_charsmap_find(const ha_charsmap *map, int longest, const uint8_t *text, size_t n, const char **replacement, size_t *length);

#endif
