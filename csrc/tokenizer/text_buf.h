/* A growing UTF-8 text whose bytes know which bytes of the original text they came from. */
#ifndef HARMAUG_TOKENIZER_TEXT_BUF_H
#define HARMAUG_TOKENIZER_TEXT_BUF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/status.h"
#include "core/utf8.h"

typedef struct ha_align { uint32_t begin, end; } ha_align;      /* bytes [begin, end) of the original */

enum { HA_TEXT_PAD = 16 };          /* bytes behind the capacity of a text that may be read */

typedef struct ha_text_buf {        /* zeroed by the owner; reused from row to row */
    uint8_t *text;
    ha_align *align;                /* one per byte; kept only when `aligned` */
    size_t length, capacity;
    int aligned;
} ha_text_buf;

void ha_text_buf_free(ha_text_buf *buf);

/* Room for `extra` more bytes. */
ha_status ha_text_buf_reserve(ha_text_buf *buf, size_t extra, ha_error *err);

/* Sets the HA_TEXT_PAD bytes behind the text to zero. */
static inline void
ha_text_buf_close(ha_text_buf *buf)
{
    if (buf->text != NULL) {
        memset(buf->text + buf->length, 0, HA_TEXT_PAD);
    }
}

/* Appends code point c, all of whose bytes came from `from`. Needs 4 reserved bytes. */
static inline void
ha_text_buf_push(ha_text_buf *buf, uint32_t c, ha_align from)
{
    const size_t size = ha_utf8_encode(c, buf->text + buf->length);
    if (buf->aligned) {
        for (size_t i = 0; i < size; i++) {
            buf->align[buf->length + i] = from;
        }
    }
    buf->length += size;
}

/* Appends bytes [begin, end) of the original text, which is well-formed. */
ha_status ha_text_buf_append_original(ha_text_buf *buf, const uint8_t *original, size_t begin, size_t end, ha_error *err);

/* A NUL-terminated copy, malloc'ed; NULL: no memory. */
char *ha_text_copy(const char *text, size_t length);

#endif
