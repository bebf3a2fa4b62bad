#include "io/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "core/map_file.h"
#include "io/decimal.h"

#define MAX_DEPTH 256
#define MAX_NODES ((size_t)1 << 31)

/* A member of some object in the one hash table of the document: open addressing, linear probing, node 0 (the root) = empty. */
typedef struct slot {
    uint32_t hash, node, parent;
} slot;

struct ha_json {
    char *name;
    ha_json_node *nodes;
    size_t n_nodes, capacity;
    char *strings;              /* every string and number, NUL-terminated: never longer than the text itself */
    slot *slots;
    size_t n_slots, n_members;  /* n_slots is a power of two */
    uint64_t hash_key[2];
};

typedef struct frame {
    uint32_t node, last_child;
    ha_json_sink *sink;         /* what takes the children, or NULL */
    char *write;                /* with a sink: where the next child's strings begin */
} frame;

typedef struct parser {
    ha_json *json;
    const char *text, *end, *at;
    char *write;                /* next free byte of json->strings */
    ha_json_sink *sinks;
    size_t n_sinks;
    void *context;
    int taken;                  /* inside of a container that a sink takes */
    ha_error *err;
} parser;

static ha_status
fail_at(const parser *p, const char *at, const char *what)
{
    size_t line = 1, column = 1;
    for (const char *c = p->text; c < at; c++) {
        if (*c == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)*c & 0xC0) != 0x80) {    /* columns count characters, not bytes */
            column++;
        }
    }
    return ha_fail(p->err, HA_ERR_FORMAT, "%.350s: line %zu, column %zu: %s", p->json->name, line, column, what);
}

static ha_status
no_memory(const parser *p)
{
    return ha_fail(p->err, HA_ERR_NOMEM, "%.350s: out of memory while parsing JSON", p->json->name);
}

/* -- members -- */

static uint32_t
member_hash(const ha_json *json, uint32_t parent, const char *key, size_t length)
{
    const uint64_t seed[2] = {json->hash_key[0] ^ parent, json->hash_key[1]};
    return (uint32_t)ha_siphash(seed, key, length);
}

/* The slot of this member, or the empty one where it would go. */
static slot *
member_slot(const ha_json *json, uint32_t hash, uint32_t parent, const char *key, size_t length)
{
    for (size_t i = hash & (json->n_slots - 1);; i = (i + 1) & (json->n_slots - 1)) {
        slot *s = &json->slots[i];
        if (s->node == 0) {
            return s;
        }
        const ha_json_node *node = &json->nodes[s->node];
        if (s->hash == hash && s->parent == parent && node->key_length == length && memcmp(node->key, key, length) == 0) {
            return s;
        }
    }
}

static int
grow_slots(ha_json *json)
{
    const size_t n_slots = json->n_slots == 0 ? 64 : 2 * json->n_slots;
    slot *slots = calloc(n_slots, sizeof(*slots));
    if (slots == NULL) {
        return 0;
    }
    for (size_t i = 0; i < json->n_slots; i++) {
        if (json->slots[i].node != 0) {
            size_t j = json->slots[i].hash & (n_slots - 1);
            while (slots[j].node != 0) {
                j = (j + 1) & (n_slots - 1);
            }
            slots[j] = json->slots[i];
        }
    }
    free(json->slots);
    json->slots = slots;
    json->n_slots = n_slots;
    return 1;
}

static ha_status
add_member(parser *p, uint32_t parent, uint32_t child, const char *key_at)
{
    ha_json *json = p->json;
    const ha_json_node *node = &json->nodes[child];
    if (2 * (json->n_members + 1) > json->n_slots && !grow_slots(json)) {
        return no_memory(p);
    }
    const uint32_t hash = member_hash(json, parent, node->key, node->key_length);
    slot *s = member_slot(json, hash, parent, node->key, node->key_length);
    if (s->node != 0) {
        return fail_at(p, key_at, "this key stands twice in its object");
    }
    *s = (slot){hash, child, parent};
    json->n_members++;
    return HA_OK;
}

/* -- scanning -- */

static void
skip_space(parser *p)
{
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r')) {
        p->at++;
    }
}

/* Length of the well-formed UTF-8 sequence at s (Unicode 15, table 3-7), 0 when it is none. */
static size_t
utf8_sequence(const unsigned char *s, size_t left)
{
    const unsigned char c = s[0];
    const size_t n = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    if (n == 0 || n > left) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    if ((c == 0xE0 && s[1] < 0xA0) || (c == 0xED && s[1] > 0x9F) || (c == 0xF0 && s[1] < 0x90) || (c == 0xF4 && s[1] > 0x8F)) {
        return 0;
    }
    return n;
}

/* Four hex digits at p->at, or -1. */
static int32_t
hex4(parser *p)
{
    int32_t value = 0;
    if (p->end - p->at < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        const char c = p->at[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) {
            return -1;
        }
        value = value * 16 + digit;
    }
    p->at += 4;
    return value;
}

static void
write_utf8(parser *p, uint32_t c)
{
    char *w = p->write;
    if (c < 0x80) {
        *w++ = (char)c;
    } else if (c < 0x800) {
        *w++ = (char)(0xC0 | (c >> 6));
        *w++ = (char)(0x80 | (c & 0x3F));
    } else {
        if (c < 0x10000) {
            *w++ = (char)(0xE0 | (c >> 12));
        } else {
            *w++ = (char)(0xF0 | (c >> 18));
            *w++ = (char)(0x80 | ((c >> 12) & 0x3F));
        }
        *w++ = (char)(0x80 | ((c >> 6) & 0x3F));
        *w++ = (char)(0x80 | (c & 0x3F));
    }
    p->write = w;
}

/* p->at stands behind a backslash. */
static ha_status
parse_escape(parser *p)
{
    const char *start = p->at - 1;
    const char c = p->at < p->end ? *p->at++ : '\0';
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *simple = c != '\0' ? strchr(from, c) : NULL;
    if (simple != NULL) {
        *p->write++ = to[simple - from];
        return HA_OK;
    }
    if (c != 'u') {
        return fail_at(p, start, "unknown escape in a string");
    }
    int32_t unit = hex4(p);
    if (unit < 0) {
        return fail_at(p, start, "\\u needs four hexadecimal digits");
    }
    if (unit >= 0xD800 && unit <= 0xDFFF) {
        const int pair = unit < 0xDC00 && p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u';
        p->at += pair ? 2 : 0;
        const int32_t low = pair ? hex4(p) : -1;
        if (low < 0xDC00 || low > 0xDFFF) {
            return fail_at(p, start, "lone surrogate in a string");
        }
        unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    }
    write_utf8(p, (uint32_t)unit);
    return HA_OK;
}

/* p->at stands on the opening quote. */
static ha_status
parse_string(parser *p, const char **out, size_t *length)
{
    const char *start = p->at++;
    char *begin = p->write;
    for (;;) {
        const char *run = p->at;
        while (p->at < p->end && (unsigned char)*p->at >= 0x20 && (unsigned char)*p->at < 0x80 && *p->at != '"' && *p->at != '\\') {
            p->at++;
        }
        memcpy(p->write, run, (size_t)(p->at - run));
        p->write += p->at - run;
        if (p->at == p->end) {
            return fail_at(p, start, "this string is not closed");
        }
        const unsigned char c = (unsigned char)*p->at;
        if (c == '"') {
            p->at++;
            *out = begin;
            *length = (size_t)(p->write - begin);
            *p->write++ = '\0';
            return HA_OK;
        }
        if (c == '\\') {
            p->at++;
            const ha_status status = parse_escape(p);
            if (status != HA_OK) {
                return status;
            }
            continue;
        }
        if (c < 0x20) {
            return fail_at(p, p->at, "control character in a string");
        }
        const size_t n = utf8_sequence((const unsigned char *)p->at, (size_t)(p->end - p->at));
        if (n == 0) {
            return fail_at(p, p->at, "invalid UTF-8 in a string");
        }
        memcpy(p->write, p->at, n);
        p->write += n;
        p->at += n;
    }
}

static size_t
skip_digits(parser *p)
{
    const char *start = p->at;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9') {
        p->at++;
    }
    return (size_t)(p->at - start);
}

/* Up to 15 digits, perhaps behind a sign: exact. */
static double
small_integer(const char *text, size_t length)
{
    int64_t value = 0;
    for (size_t i = text[0] == '-'; i < length; i++) {
        value = value * 10 + (text[i] - '0');
    }
    return text[0] == '-' ? -(double)value : (double)value;
}

/* RFC 8259, section 6. */
static ha_status
parse_number(parser *p, ha_json_node *node)
{
    const char *start = p->at;
    p->at += *p->at == '-';
    const char *digits = p->at;
    const size_t n_digits = skip_digits(p);
    int valid = n_digits == 1 || (n_digits > 1 && digits[0] != '0');
    if (valid && p->at < p->end && *p->at == '.') {
        p->at++;
        valid = skip_digits(p) > 0;
    }
    if (valid && p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
        p->at++;
        p->at += p->at < p->end && (*p->at == '+' || *p->at == '-');
        valid = skip_digits(p) > 0;
    }
    if (!valid) {
        return fail_at(p, start, "malformed number");
    }
    node->type = HA_JSON_NUMBER;
    node->length = (size_t)(p->at - start);
    node->number = p->at == digits + n_digits && n_digits <= 15 ? small_integer(start, node->length) : ha_decimal_to_double(start, node->length);
    node->string = memcpy(p->write, start, node->length);
    p->write += node->length;
    *p->write++ = '\0';
    return HA_OK;
}

static ha_status
parse_word(parser *p, ha_json_node *node)
{
    static const struct { const char *word; size_t length; ha_json_type type; } words[] = {
        {"true", 4, HA_JSON_TRUE}, {"false", 5, HA_JSON_FALSE}, {"null", 4, HA_JSON_NULL}};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if ((size_t)(p->end - p->at) >= words[i].length && memcmp(p->at, words[i].word, words[i].length) == 0) {
            p->at += words[i].length;
            node->type = words[i].type;
            return HA_OK;
        }
    }
    return fail_at(p, p->at, p->at == p->end ? "the text ends where a value was expected" : "a value was expected");
}

/* A value that is no container, or the opening bracket of one. */
static ha_status
parse_value(parser *p, ha_json_node *node)
{
    const char c = p->at < p->end ? *p->at : '\0';
    if (c == '{' || c == '[') {
        p->at++;
        node->type = c == '{' ? HA_JSON_OBJECT : HA_JSON_ARRAY;
        return HA_OK;
    }
    if (c == '"') {
        node->type = HA_JSON_STRING;
        return parse_string(p, &node->string, &node->length);
    }
    return c == '-' || (c >= '0' && c <= '9') ? parse_number(p, node) : parse_word(p, node);
}

static ha_status
parse_key(parser *p, ha_json_node *node)
{
    skip_space(p);
    if (p->at == p->end || *p->at != '"') {
        return fail_at(p, p->at, "a key in quotes was expected");
    }
    ha_status status = parse_string(p, &node->key, &node->key_length);
    if (status != HA_OK) {
        return status;
    }
    skip_space(p);
    if (p->at == p->end || *p->at != ':') {
        return fail_at(p, p->at, "':' was expected behind a key");
    }
    p->at++;
    return HA_OK;
}

/* A node for the child of `parent` (NULL: the root), with its key where the parent is an object. */
static ha_status
add_node(parser *p, frame *parent, uint32_t *out)
{
    ha_json *json = p->json;
    if (json->n_nodes == json->capacity) {
        const size_t capacity = json->capacity == 0 ? 64 : json->capacity + json->capacity / 2;
        ha_json_node *nodes = capacity > SIZE_MAX / sizeof(*nodes) ? NULL : realloc(json->nodes, capacity * sizeof(*nodes));
        if (nodes == NULL) {
            return no_memory(p);
        }
        json->nodes = nodes;
        json->capacity = capacity;
    }
    if (json->n_nodes >= MAX_NODES) {
        return fail_at(p, p->at, "more than 2^31 values");
    }
    const uint32_t index = (uint32_t)json->n_nodes++;
    ha_json_node *node = &json->nodes[index];
    memset(node, 0, sizeof(*node));
    *out = index;
    if (parent == NULL) {
        return HA_OK;
    }
    ha_json_node *container = &json->nodes[parent->node];
    *(parent->last_child == 0 ? &container->first_child : &json->nodes[parent->last_child].next) = index;
    parent->last_child = index;
    container->length++;
    if (container->type != HA_JSON_OBJECT) {
        return HA_OK;
    }
    skip_space(p);
    const char *key_at = p->at;
    const ha_status status = parse_key(p, node);
    return status != HA_OK || parent->sink != NULL ? status : add_member(p, parent->node, index, key_at);
}

/* -- sinks -- */

static int
is_text(const char *text, size_t length, const char *expected)
{
    return strlen(expected) == length && memcmp(text, expected, length) == 0;
}

/* A container has been opened as the value of `node`, in frames stack[0..*depth): gives it a frame, unless a sink passes over it. */
static ha_status
open_container(parser *p, frame *stack, int *depth, uint32_t index)
{
    const ha_json_node *node = &p->json->nodes[index], *parent = *depth == 2 ? &p->json->nodes[stack[1].node] : NULL;
    frame *top = &stack[*depth];
    *top = (frame){index, 0, NULL, NULL};
    for (size_t i = 0; parent != NULL && parent->key != NULL && node->key != NULL && i < p->n_sinks; i++) {
        ha_json_sink *sink = &p->sinks[i];
        const size_t begin = (size_t)(p->at - p->text) - 1;
        if (!is_text(parent->key, parent->key_length, sink->object) || !is_text(node->key, node->key_length, sink->member)) {
            continue;
        }
        if (sink->end > 0) {
            if (sink->begin != begin || sink->end <= begin || sink->end > (size_t)(p->end - p->text)) {
                return fail_at(p, p->at, "what is to be passed over does not begin here");
            }
            p->at = p->text + sink->end;
            return HA_OK;
        }
        if (sink->opens(p->context, node->type)) {
            sink->begin = begin;
            top->sink = sink;
            top->write = p->write;
            p->taken = 1;
        }
    }
    ++*depth;
    return HA_OK;
}

/* The last child of a container with a sink is complete: it is handed over and forgotten. */
static ha_status
hand_over(parser *p, frame *parent)
{
    ha_json *json = p->json;
    ha_error cause;
    const ha_status status = parent->sink->item(p->context, json, &json->nodes[parent->last_child], &cause);
    if (status != HA_OK) {
        return ha_fail(p->err, status, "%.250s: %.250s", json->name, cause.message);
    }
    json->n_nodes = parent->last_child;
    json->nodes[parent->node].first_child = parent->last_child = 0;
    p->write = parent->write;
    return HA_OK;
}

/* Behind a value: closes containers, eats one comma. *depth 0: the document is complete. */
static ha_status
close_containers(parser *p, frame *stack, int *depth)
{
    while (*depth > 0) {
        frame *top = &stack[*depth - 1];
        if (top->sink != NULL && top->last_child != 0) {
            const ha_status status = hand_over(p, top);
            if (status != HA_OK) {
                return status;
            }
        }
        const ha_json_node *container = &p->json->nodes[top->node];
        const int object = container->type == HA_JSON_OBJECT;
        skip_space(p);
        const char c = p->at < p->end ? *p->at : '\0';
        if (c == (object ? '}' : ']')) {
            p->at++;
            --*depth;
            if (top->sink != NULL) {
                top->sink->end = (size_t)(p->at - p->text);
                p->taken = 0;
            }
        } else if (c == ',' && container->length > 0) {
            p->at++;
            return HA_OK;
        } else if (container->length == 0) {
            return HA_OK;       /* the first child follows */
        } else {
            return fail_at(p, p->at, object ? "',' or '}' was expected" : "',' or ']' was expected");
        }
    }
    return HA_OK;
}

static ha_status
parse_document(parser *p)
{
    frame stack[MAX_DEPTH];
    int depth = 0;
    do {
        frame *parent = depth > 0 ? &stack[depth - 1] : NULL;
        uint32_t index = 0;
        ha_status status = add_node(p, parent, &index);
        if (status != HA_OK) {
            return status;
        }
        skip_space(p);
        const char *start = p->at;
        status = parse_value(p, &p->json->nodes[index]);
        if (status != HA_OK) {
            return status;
        }
        if (p->json->nodes[index].type >= HA_JSON_ARRAY) {
            if (depth == MAX_DEPTH) {
                return fail_at(p, start, "nested deeper than 256");
            }
            if (p->taken && p->json->nodes[index].type == HA_JSON_OBJECT) {
                return fail_at(p, start, "no object was expected here");
            }
            status = open_container(p, stack, &depth, index);
            if (status != HA_OK) {
                return status;
            }
        }
        status = close_containers(p, stack, &depth);
        if (status != HA_OK) {
            return status;
        }
    } while (depth > 0);
    skip_space(p);
    return p->at == p->end ? HA_OK : fail_at(p, p->at, "bytes behind the end of the document");
}

ha_status
ha_json_parse(const char *name, const char *text, size_t length, ha_json **out, ha_error *err)
{
    return ha_json_parse_with(name, text, length, NULL, 0, NULL, out, err);
}

ha_status
ha_json_parse_with(const char *name, const char *text, size_t length, ha_json_sink *sinks, size_t n_sinks, void *context, ha_json **out,
                   ha_error *err)
{
    ha_json *json = calloc(1, sizeof(*json));
    parser p = {.json = json, .text = text, .end = text + length, .at = text, .sinks = sinks, .n_sinks = n_sinks, .context = context, .err = err};
    ha_status status = HA_ERR_NOMEM;
    *out = NULL;
    if (json == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory while parsing JSON", name);
    }
    const size_t name_size = strlen(name) + 1;
    json->name = malloc(name_size);
    json->strings = p.write = malloc(length + 1);
    if (json->name == NULL || json->strings == NULL) {
        status = ha_fail(err, HA_ERR_NOMEM, "%.350s: out of memory while parsing JSON", name);
        goto done;
    }
    memcpy(json->name, name, name_size);
    ha_hash_key(json->hash_key, json->strings);
    if (length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) {
        status = fail_at(&p, text, "the text begins with a byte order mark");
        goto done;
    }
    status = parse_document(&p);
done:
    if (status != HA_OK) {
        ha_json_free(json);
        return status;
    }
    *out = json;
    return HA_OK;
}

ha_status
ha_json_open(const char *path, int optional, ha_json **out, ha_error *err)
{
    ha_map_file file = {0};
    *out = NULL;
    if (optional) {
        FILE *probe = fopen(path, "rb");
        if (probe == NULL && (errno == ENOENT || errno == ENOTDIR)) {
            return HA_OK;
        }
        if (probe != NULL) {
            fclose(probe);
        }
    }
    ha_status status = ha_map_file_open(path, &file, err);
    if (status == HA_OK) {
        status = ha_json_parse(path, (const char *)file.data, file.size, out, err);
        ha_map_file_close(&file);
    }
    if (status == HA_OK && ha_json_root(*out)->type != HA_JSON_OBJECT) {
        status = ha_fail(err, HA_ERR_FORMAT, "%.400s: must hold an object", path);
        ha_json_free(*out);
        *out = NULL;
    }
    return status;
}

void
ha_json_free(ha_json *json)
{
    if (json != NULL) {
        free(json->name);
        free(json->nodes);
        free(json->strings);
        free(json->slots);
        free(json);
    }
}

/* -- access -- */

const ha_json_node *
ha_json_root(const ha_json *json)
{
    return &json->nodes[0];
}

const ha_json_node *
ha_json_get_n(const ha_json *json, const ha_json_node *object, const char *key, size_t length)
{
    if (object == NULL || object->type != HA_JSON_OBJECT || object->length == 0) {
        return NULL;
    }
    const uint32_t parent = (uint32_t)(object - json->nodes);
    const slot *s = member_slot(json, member_hash(json, parent, key, length), parent, key, length);
    return s->node != 0 ? &json->nodes[s->node] : NULL;
}

const ha_json_node *
ha_json_get(const ha_json *json, const ha_json_node *object, const char *key)
{
    return ha_json_get_n(json, object, key, strlen(key));
}

const ha_json_node *
ha_json_first(const ha_json *json, const ha_json_node *parent)
{
    return parent != NULL && parent->first_child != 0 ? &json->nodes[parent->first_child] : NULL;
}

const ha_json_node *
ha_json_next(const ha_json *json, const ha_json_node *node)
{
    return node != NULL && node->next != 0 ? &json->nodes[node->next] : NULL;
}

int
ha_json_u64(const ha_json_node *node, uint64_t *out)
{
    if (node == NULL || node->type != HA_JSON_NUMBER) {
        return 0;
    }
    uint64_t value = 0;
    size_t i = 0;
    for (; i < node->length && node->string[i] >= '0' && node->string[i] <= '9'; i++) {
        const uint64_t digit = (uint64_t)(node->string[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            return 0;
        }
        value = value * 10 + digit;
    }
    if (i < node->length) {
        if (!(node->number >= 0 && node->number < 0x1p53) || node->number != floor(node->number)) {
            return 0;
        }
        value = (uint64_t)node->number;
    }
    *out = value;
    return 1;
}

/* The member, or NULL when it is absent or null. */
static const ha_json_node *
present(const ha_json *json, const ha_json_node *object, const char *key)
{
    const ha_json_node *node = ha_json_get(json, object, key);
    return node != NULL && node->type != HA_JSON_NULL ? node : NULL;
}

static const char *
type_name(const ha_json_node *node)
{
    static const char *const names[] = {"null", "false", "true", "a number", "a string", "an array", "an object"};
    return names[node->type];
}

ha_status
ha_json_get_size(const ha_json *json, const ha_json_node *object, const char *key,
                 size_t fallback, size_t min, size_t max, size_t *out, ha_error *err)
{
    const ha_json_node *node = present(json, object, key);
    uint64_t value = fallback;
    if (node != NULL && (!ha_json_u64(node, &value) || value < min || value > max)) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: '%.64s' must be an integer from %zu to %zu, got %.40s", json->name, key, min, max,
                       node->type == HA_JSON_NUMBER ? node->string : type_name(node));
    }
    *out = (size_t)value;
    return HA_OK;
}

ha_status
ha_json_get_double(const ha_json *json, const ha_json_node *object, const char *key, double fallback, double *out, ha_error *err)
{
    const ha_json_node *node = present(json, object, key);
    if (node != NULL && (node->type != HA_JSON_NUMBER || !isfinite(node->number))) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: '%.64s' must be a finite number, got %.40s", json->name, key,
                       node->type == HA_JSON_NUMBER ? node->string : type_name(node));
    }
    *out = node != NULL ? node->number : fallback;
    return HA_OK;
}

ha_status
ha_json_get_bool(const ha_json *json, const ha_json_node *object, const char *key, int fallback, int *out, ha_error *err)
{
    const ha_json_node *node = present(json, object, key);
    if (node != NULL && node->type != HA_JSON_TRUE && node->type != HA_JSON_FALSE) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: '%.64s' must be true or false, got %s", json->name, key, type_name(node));
    }
    *out = node != NULL ? node->type == HA_JSON_TRUE : fallback;
    return HA_OK;
}

ha_status
ha_json_get_string(const ha_json *json, const ha_json_node *object, const char *key, const char *fallback, const char **out, ha_error *err)
{
    const ha_json_node *node = present(json, object, key);
    if (node != NULL && node->type != HA_JSON_STRING) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: '%.64s' must be a string, got %s", json->name, key, type_name(node));
    }
    if (node != NULL && memchr(node->string, 0, node->length) != NULL) {
        return ha_fail(err, HA_ERR_FORMAT, "%.350s: '%.64s' holds a NUL character", json->name, key);
    }
    *out = node != NULL ? node->string : fallback;
    return HA_OK;
}
