#define _POSIX_C_SOURCE 200809L
#include "program/rows.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/unicode.h"

/* -- reading -- */

/* Whether well-formed text is white space from end to end, as Python's str.isspace has it. */
static int
is_blank(const char *text, size_t length)
{
    for (size_t i = 0, size; i < length; i += size) {
        const uint32_t c = ha_utf8_decode((const uint8_t *)text + i, &size);
        if (!(c >= 0x1C && c <= 0x1F) && !(ha_uc_flags(c) & HA_UC_WHITE_SPACE)) {
            return 0;
        }
    }
    return 1;
}

/* The next line that is not blank, without a byte order mark, checked to be UTF-8. *found 0: there is none. */
static ha_status
next_line(ha_rows *rows, const volatile sig_atomic_t *stop, ha_row *row, int *found, ha_error *err)
{
    *found = 0;
    while (!*stop) {
        errno = 0;
        const ssize_t n = getline(&row->text, &row->room, rows->file);
        if (n < 0) {
            const int reading = ferror(rows->file) || errno == ENOMEM;
            return !reading || *stop ? HA_OK : ha_fail(err, HA_ERR_IO, "%.300s: %s", rows->name, strerror(errno));
        }
        row->length = (size_t)n;
        row->line = ++rows->line;
        if (rows->line == 1 && n >= 3 && memcmp(row->text, "\xEF\xBB\xBF", 3) == 0) {
            row->length -= 3;
            memmove(row->text, row->text + 3, row->length + 1);
        }
        if (rows->line == 1 && row->length >= 2 && memcmp(row->text, "\x1F\x8B", 2) == 0) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s: is gzipped: decompress it first", rows->name);
        }
        const size_t valid = ha_utf8_valid_prefix((const uint8_t *)row->text, row->length);
        if (valid < row->length) {
            return ha_fail(err, HA_ERR_FORMAT, "%.300s, line %zu: not UTF-8: byte 0x%02x at column %zu", rows->name, row->line,
                           (unsigned char)row->text[valid], valid + 1);
        }
        if (!is_blank(row->text, row->length)) {
            *found = 1;
            return HA_OK;
        }
    }
    return HA_OK;
}

/* A column that holds text; absent and null: no data. */
static ha_status
take_text(const ha_rows *rows, const ha_row *row, const char *column, ha_text *out, ha_error *err)
{
    const ha_json_node *node = ha_json_get(row->json, ha_json_root(row->json), column);
    *out = (ha_text){NULL, 0};
    if (node == NULL || node->type == HA_JSON_NULL) {
        return HA_OK;
    }
    if (node->type != HA_JSON_STRING) {
        return ha_fail(err, HA_ERR_FORMAT, "%.300s, line %zu: %s must be text", rows->name, row->line, column);
    }
    *out = (ha_text){node->string, node->length};
    return HA_OK;
}

ha_status
ha_rows_next(ha_rows *rows, const volatile sig_atomic_t *stop, ha_row *row, int *found, ha_error *err)
{
    char place[400];
    ha_status status = next_line(rows, stop, row, found, err);
    if (status != HA_OK || !*found) {
        return status;
    }
    *found = 0;
    snprintf(place, sizeof(place), "%.300s, line %zu", rows->name, row->line);
    const size_t head = strspn(row->text, " \t\r");
    if (row->text[head] != '{') {
        return ha_fail(err, HA_ERR_FORMAT, "%s: expected an object%s", place,
                       row->text[head] == '[' ? ", one a line: a list of rows and CSV are read by the Python package's harmaug score" : "");
    }
    ha_json_free(row->json);
    ha_error inner;
    if ((status = ha_json_parse("wrong JSON", row->text, row->length, &row->json, &inner)) != HA_OK) {
        return ha_fail(err, status, "%s: %.100s", place, inner.message);
    }
    if ((status = take_text(rows, row, "prompt", &row->prompt, err)) != HA_OK || (status = take_text(rows, row, "response", &row->response, err)) != HA_OK) {
        return status;
    }
    if (row->prompt.data == NULL || is_blank(row->prompt.data, row->prompt.length)) {
        return ha_fail(err, HA_ERR_VALUE, "%s: the prompt is %s", place, row->prompt.data == NULL ? "missing" : "empty");
    }
    *found = 1;
    return HA_OK;
}

void
ha_row_clear(ha_row *row)
{
    ha_json_free(row->json);
    row->json = NULL;
}

void
ha_row_free(ha_row *row)
{
    ha_row_clear(row);
    free(row->text);
}

/* -- writing -- */

/* A line that ha_json_parse has accepted is walked again, for where each value of the outer object stands: there is nothing left to check. */

static const char *
skip_space(const char *at)
{
    return at + strspn(at, " \n\t\r");
}

/* Behind the string that begins at `at`. */
static const char *
skip_string(const char *at)
{
    for (at++; *at != '"'; at++) {
        at += *at == '\\';
    }
    return at + 1;
}

static const char *
skip_value(const char *at)
{
    size_t depth = 0;
    do {
        if (*at == '"') {
            at = skip_string(at);
            continue;
        }
        depth += *at == '{' || *at == '[';
        depth -= *at == '}' || *at == ']';
        at++;
    } while (depth > 0 || strchr(",}] \n\t\r", *at) == NULL);
    return at;
}

static void
write_key(const char *key, size_t length, FILE *out)
{
    static const char short_names[] = "btn\vfr";     /* of U+0008 to U+000D; U+000B has none */
    putc('"', out);
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)key[i];
        if (c == '"' || c == '\\') {
            fprintf(out, "\\%c", c);
        } else if (c >= 8 && c <= 13 && c != 11) {
            fprintf(out, "\\%c", short_names[c - 8]);
        } else if (c < 0x20) {
            fprintf(out, "\\u%04x", c);
        } else {
            putc(c, out);
        }
    }
    putc('"', out);
}

/* The shortest decimal that reads back as the same float32; plain from 1e-5 on. 0 <= score <= 1. */
static void
write_score(float score, FILE *out)
{
    char digits[24];
    for (int precision = 0; precision < 9; precision++) {
        snprintf(digits, sizeof(digits), "%.*e", precision, (double)score);
        if (strtof(digits, NULL) == score) {
            break;
        }
    }
    char *mark = strchr(digits, 'e');
    const int exponent = atoi(mark + 1);
    *mark = '\0';
    if (exponent < -5) {
        fprintf(out, "%se%d", digits, exponent);
    } else if (exponent < 0) {
        fprintf(out, "0.%.*s%c%s", -exponent - 1, "0000", digits[0], digits[1] == '.' ? digits + 2 : "");
    } else {
        fprintf(out, "%c.0", digits[0]);        /* 0 or 1 */
    }
}

static void
write_column(const char *name, float score, int flagged, FILE *out)
{
    fprintf(out, "\"%s\":", name);
    if (name[0] == 's') {
        write_score(score, out);
    } else {
        fputs(flagged ? "true" : "false", out);
    }
}

int
ha_row_write(const ha_row *row, float score, int flagged, FILE *out)
{
    static const char *const ours[2] = {"score", "flagged"};
    const ha_json_node *root = ha_json_root(row->json);
    const char *at = strchr(row->text, '{') + 1;
    int written[2] = {0, 0};
    char separator = '{';
    for (const ha_json_node *column = ha_json_first(row->json, root); column != NULL; column = ha_json_next(row->json, column), separator = ',') {
        const char *value = skip_space(skip_space(skip_string(skip_space(at))) + 1);
        const char *end = skip_value(value);
        int own = -1;
        for (int i = 0; i < 2; i++) {
            own = column->key_length == strlen(ours[i]) && memcmp(column->key, ours[i], column->key_length) == 0 ? i : own;
        }
        putc(separator, out);
        if (own >= 0) {
            write_column(ours[own], score, flagged, out);
            written[own] = 1;
        } else {
            write_key(column->key, column->key_length, out);
            putc(':', out);
            fwrite(value, 1, (size_t)(end - value), out);
        }
        at = skip_space(end) + 1;
    }
    for (int i = 0; i < 2; i++) {
        if (!written[i]) {
            putc(separator, out);
            write_column(ours[i], score, flagged, out);
        }
    }
    fputs("}\n", out);
    return !ferror(out);
}
