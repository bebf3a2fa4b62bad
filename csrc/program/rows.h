/* Rows of JSONL: read as they come, and written with a score behind. What `harmaug score` does to the same rows (harmaug/score.py). */
#ifndef HARMAUG_PROGRAM_ROWS_H
#define HARMAUG_PROGRAM_ROWS_H

#include <signal.h>
#include <stdio.h>

#include "io/json.h"

typedef struct ha_rows {
    FILE *file;
    const char *name;       /* what messages call it */
    size_t line;            /* lines that were read */
} ha_rows;

typedef struct ha_row {
    char *text;             /* its line, kept between rows */
    size_t room, length;
    size_t line;            /* from 1 */
    ha_json *json;
    ha_text prompt, response;
} ha_row;

/* The next row. *found 0: there is none, or `stop` was set while reading. The error names the file and the line. */
ha_status ha_rows_next(ha_rows *rows, const volatile sig_atomic_t *stop, ha_row *out, int *found, ha_error *err);

/* The row's columns in their order, their values as they stand to the byte, then score and flagged (in place where a column has that name). 0: writing failed. */
int ha_row_write(const ha_row *row, float score, int flagged, FILE *out);

void ha_row_clear(ha_row *row);     /* for another row */
void ha_row_free(ha_row *row);

#endif
