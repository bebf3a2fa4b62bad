/* A bounded reader of the wire format of Protocol Buffers (protobuf.dev/programming-guides/encoding): a cursor over the fields of one message.
 * It knows no schema; an embedded message is read by another cursor over the field's bytes. Nothing is copied. */
#ifndef HARMAUG_IO_PROTOBUF_H
#define HARMAUG_IO_PROTOBUF_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef enum ha_protobuf_wire { HA_PROTOBUF_VARINT = 0, HA_PROTOBUF_I64 = 1, HA_PROTOBUF_BYTES = 2, HA_PROTOBUF_I32 = 5 } ha_protobuf_wire;

typedef struct ha_protobuf {
    const uint8_t *file;        /* where offsets in messages count from */
    const uint8_t *at, *end;
} ha_protobuf;

typedef struct ha_protobuf_field {
    uint32_t number;            /* >= 1 */
    ha_protobuf_wire wire;
    uint64_t value;             /* VARINT, I64, I32 */
    const uint8_t *data;        /* BYTES: `length` bytes, borrowed */
    size_t length;
} ha_protobuf_field;

/* The next field; *more is 0 at the end of the message. HA_ERR_FORMAT, with the byte's offset: a field that runs past the message's end, a varint of more
 * than 10 bytes, a field number of 0 or over 2^29 - 1, a group (deprecated; nothing we read has any). */
ha_status ha_protobuf_next(ha_protobuf *message, ha_protobuf_field *field, int *more, ha_error *err);

/* The cursor over an embedded message. */
ha_protobuf ha_protobuf_message(const ha_protobuf *parent, const ha_protobuf_field *field);

/* An I32 field as a float. */
float ha_protobuf_float(const ha_protobuf_field *field);

#endif
