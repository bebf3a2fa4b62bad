#include "io/protobuf.h"

#include <string.h>

static ha_status
read_varint(ha_protobuf *message, uint64_t *out, ha_error *err)
{
    const uint8_t *start = message->at;
    *out = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (message->at == message->end) {
            return ha_fail(err, HA_ERR_FORMAT, "protobuf: the message ends inside a number at byte %zu", (size_t)(start - message->file));
        }
        const uint64_t byte = *message->at++;
        *out |= shift < 64 ? (byte & 0x7F) << shift : 0;
        if (byte < 0x80) {
            return HA_OK;
        }
    }
    return ha_fail(err, HA_ERR_FORMAT, "protobuf: a number of more than 10 bytes at byte %zu", (size_t)(start - message->file));
}

/* Little-endian, `size` bytes. */
static ha_status
read_fixed(ha_protobuf *message, size_t size, uint64_t *out, ha_error *err)
{
    if ((size_t)(message->end - message->at) < size) {
        return ha_fail(err, HA_ERR_FORMAT, "protobuf: the message ends inside a number at byte %zu", (size_t)(message->at - message->file));
    }
    *out = 0;
    for (size_t i = 0; i < size; i++) {
        *out |= (uint64_t)message->at[i] << (8 * i);
    }
    message->at += size;
    return HA_OK;
}

ha_status
ha_protobuf_next(ha_protobuf *message, ha_protobuf_field *field, int *more, ha_error *err)
{
    const size_t offset = (size_t)(message->at - message->file);
    uint64_t tag, length;
    *more = message->at < message->end;
    if (!*more) {
        return HA_OK;
    }
    ha_status status = read_varint(message, &tag, err);
    if (status != HA_OK) {
        return status;
    }
    if (tag >> 3 == 0 || tag > UINT32_MAX) {
        return ha_fail(err, HA_ERR_FORMAT, "protobuf: field number %llu at byte %zu", (unsigned long long)(tag >> 3), offset);
    }
    *field = (ha_protobuf_field){.number = (uint32_t)(tag >> 3), .wire = (ha_protobuf_wire)(tag & 7)};
    switch (tag & 7) {
    case HA_PROTOBUF_VARINT: return read_varint(message, &field->value, err);
    case HA_PROTOBUF_I64: return read_fixed(message, 8, &field->value, err);
    case HA_PROTOBUF_I32: return read_fixed(message, 4, &field->value, err);
    case HA_PROTOBUF_BYTES: break;
    default:
        return ha_fail(err, HA_ERR_FORMAT, "protobuf: wire type %u of field %u at byte %zu is not supported", (unsigned)(tag & 7), (unsigned)(tag >> 3), offset);
    }
    status = read_varint(message, &length, err);
    if (status != HA_OK) {
        return status;
    }
    if (length > (uint64_t)(message->end - message->at)) {
        return ha_fail(err, HA_ERR_FORMAT, "protobuf: field %u at byte %zu has %llu bytes, more than its message", (unsigned)field->number, offset,
                       (unsigned long long)length);
    }
    field->data = message->at;
    field->length = (size_t)length;
    message->at += length;
    return HA_OK;
}

ha_protobuf
ha_protobuf_message(const ha_protobuf *parent, const ha_protobuf_field *field)
{
    return (ha_protobuf){parent->file, field->data, field->data + field->length};
}

float
ha_protobuf_float(const ha_protobuf_field *field)
{
    const uint32_t bits = (uint32_t)field->value;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
