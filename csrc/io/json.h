/* A bounded JSON reader (RFC 8259) for model and tokenizer files: one pass, no recursion, every value a flat node.
 * Strings are unescaped into memory that the document owns and are valid UTF-8 (a lone surrogate becomes an error). */
#ifndef HARMAUG_IO_JSON_H
#define HARMAUG_IO_JSON_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef enum ha_json_type {
    HA_JSON_NULL, HA_JSON_FALSE, HA_JSON_TRUE, HA_JSON_NUMBER, HA_JSON_STRING, HA_JSON_ARRAY, HA_JSON_OBJECT
} ha_json_type;

/* A value. In an object its key stands beside it. Children are a linked list in file order: first_child, next (0 = none,
 * for node 0 is the root and nobody's child). */
typedef struct ha_json_node {
    ha_json_type type;
    const char *key;        /* NUL-terminated, NULL outside an object; it may hold NUL bytes: key_length rules */
    size_t key_length;
    const char *string;     /* STRING: NUL-terminated bytes; NUMBER: its text as written */
    size_t length;          /* STRING, NUMBER: bytes; ARRAY, OBJECT: children */
    double number;          /* NUMBER: nearest double (infinite for 1e999) */
    uint32_t first_child, next;
} ha_json_node;

typedef struct ha_json ha_json;

/* Parses text[0..length). HA_ERR_FORMAT names line and column; nesting over 256, over 2^31 nodes, duplicate keys in one object
 * (the last one wins in most readers: an attack here) and trailing bytes are errors. `name` starts the message (a file's path).
 * *out is owned by the caller; the text is not kept. */
ha_status ha_json_parse(const char *name, const char *text, size_t length, ha_json **out, ha_error *err);

/* What takes the items of one large container, the member `member` of the root's member `object`, as they are read, so that no node is kept for them: of an
 * object its members, of an array its elements (which hold no objects). `opens` says whether it wants this container; if not, it is kept like any other.
 * What an item call is given is gone when it returns, and its error ends the parsing with its message behind the name. A container that was taken has no
 * children afterwards, but its `length`; that no key stands twice in it is for the taker to see to. */
typedef struct ha_json_sink {
    const char *object, *member;
    int (*opens)(void *context, ha_json_type type);
    ha_status (*item)(void *context, const ha_json *json, const ha_json_node *item, ha_error *err);
    size_t begin, end;      /* set by the parser: the bytes of the container that was taken. Given, with end > 0: it stands there and is passed over unread,
                             * its length 0 (for a caller that knows the text by its hash); HA_ERR_FORMAT if it begins elsewhere */
} ha_json_sink;

/* ha_json_parse with n sinks, which share a context. */
ha_status ha_json_parse_with(const char *name, const char *text, size_t length, ha_json_sink *sinks, size_t n_sinks, void *context,
                             ha_json **out, ha_error *err);
/* Parses the file `path`, which must hold an object. `optional`: one that is not there leaves *out NULL. */
ha_status ha_json_open(const char *path, int optional, ha_json **out, ha_error *err);
void ha_json_free(ha_json *json);

const ha_json_node *ha_json_root(const ha_json *json);
/* The member of an object, or NULL when it is absent or `object` is NULL or no object. Hashed: constant time in any object. */
const ha_json_node *ha_json_get(const ha_json *json, const ha_json_node *object, const char *key);
/* The same for a key of `length` bytes that may hold NUL. */
const ha_json_node *ha_json_get_n(const ha_json *json, const ha_json_node *object, const char *key, size_t length);
/* First child and next sibling, NULL at the end (and for NULL). */
const ha_json_node *ha_json_first(const ha_json *json, const ha_json_node *parent);
const ha_json_node *ha_json_next(const ha_json *json, const ha_json_node *node);

/* 1 and *out when the node is a NUMBER that is a non-negative integer below 2^64 (written as digits: exact; with a point or an exponent:
 * integral and below 2^53). 0 otherwise. */
int ha_json_u64(const ha_json_node *node, uint64_t *out);

/* Typed members of an object. An absent or null member gives `fallback`; a member of another type, or outside
 * [min, max], is HA_ERR_FORMAT naming the key. */
ha_status ha_json_get_size(const ha_json *json, const ha_json_node *object, const char *key,
                           size_t fallback, size_t min, size_t max, size_t *out, ha_error *err);
/* A number beyond the range of doubles (1e999) is HA_ERR_FORMAT. */
ha_status ha_json_get_double(const ha_json *json, const ha_json_node *object, const char *key,
                             double fallback, double *out, ha_error *err);
ha_status ha_json_get_bool(const ha_json *json, const ha_json_node *object, const char *key, int fallback, int *out, ha_error *err);
/* *out is borrowed from the document; `fallback` may be NULL. A string that holds a NUL byte is HA_ERR_FORMAT. */
ha_status ha_json_get_string(const ha_json *json, const ha_json_node *object, const char *key,
                             const char *fallback, const char **out, ha_error *err);

#endif
