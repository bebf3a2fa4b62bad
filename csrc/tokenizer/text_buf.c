#include "tokenizer/text_buf.h"

#include <stdlib.h>
#include <string.h>

void
ha_text_buf_free(ha_text_buf *buf)
{
    free(buf->text);
    free(buf->align);
    memset(buf, 0, sizeof(*buf));
}

ha_status
ha_text_buf_reserve(ha_text_buf *buf, size_t extra, ha_error *err)
{
    if (extra <= buf->capacity - buf->length && (buf->align != NULL || !buf->aligned) && buf->text != NULL) {
        return HA_OK;
    }
    if (extra > SIZE_MAX / 64 || buf->length > SIZE_MAX / 64) {
        return ha_fail(err, HA_ERR_NOMEM, "a text of %zu bytes is too long", extra);
    }
    size_t capacity = buf->capacity > 256 ? buf->capacity : 256;
    while (capacity - buf->length < extra) {
        capacity *= 2;
    }
    uint8_t *text = realloc(buf->text, capacity + HA_TEXT_PAD);
    if (text == NULL) {
        return ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", capacity);
    }
    buf->text = text;
    if (buf->aligned || buf->align != NULL) {       /* both have the same capacity, though a text in between needs no alignment */
        ha_align *align = realloc(buf->align, capacity * sizeof(*align));
        if (align == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for a text of %zu bytes", capacity);
        }
        buf->align = align;
    }
    buf->capacity = capacity;
    return HA_OK;
}

ha_status
ha_text_buf_append_original(ha_text_buf *buf, const uint8_t *original, size_t begin, size_t end, ha_error *err)
{
    const ha_status status = ha_text_buf_reserve(buf, end - begin, err);
    if (status != HA_OK) {
        return status;
    }
    memcpy(buf->text + buf->length, original + begin, end - begin);
    if (buf->aligned) {
        for (size_t i = begin; i < end;) {
            size_t size;
            ha_utf8_decode(original + i, &size);
            for (size_t k = 0; k < size; k++) {
                buf->align[buf->length + (i - begin) + k] = (ha_align){(uint32_t)i, (uint32_t)(i + size)};
            }
            i += size;
        }
    }
    buf->length += end - begin;
    return HA_OK;
}

char *
ha_text_copy(const char *text, size_t length)
{
    char *copy = malloc(length + 1);
    if (copy != NULL) {
        memcpy(copy, text, length);
        copy[length] = '\0';
    }
    return copy;
}
