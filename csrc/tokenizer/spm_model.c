#include "tokenizer/spm_model.h"

#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"
#include "io/protobuf.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

void
ha_spm_model_free(ha_spm_model *model)
{
    free(model->pieces);
    memset(model, 0, sizeof(*model));
}

static int
hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int
ha_spm_byte(const char *text, size_t length)
{
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>' || hex_digit(text[3]) < 0 || hex_digit(text[4]) < 0) {
        return -1;
    }
    return hex_digit(text[3]) << 4 | hex_digit(text[4]);
}

int32_t
ha_spm_model_find(const ha_spm_model *model, const char *text, size_t length)
{
    for (size_t i = 0; i < model->n; i++) {
        if (model->pieces[i].piece.length == length && memcmp(model->pieces[i].piece.text, text, length) == 0) {
            return (int32_t)i;
        }
    }
    return -1;
}

/* A field of another wire type than the schema's is an unknown field, and is skipped like any other. */
static int
is(const ha_protobuf_field *field, uint32_t number, ha_protobuf_wire wire)
{
    return field->number == number && field->wire == wire;
}

static ha_spm_text
text_of(const ha_protobuf_field *field)
{
    return (ha_spm_text){(const char *)field->data, field->length};
}

static ha_status
read_piece(ha_spm_model *model, size_t *capacity, ha_protobuf message, ha_error *err)
{
    ha_spm_piece piece = {{"", 0}, 0, HA_SPM_NORMAL};
    ha_protobuf_field field;
    int more;
    for (;;) {
        TRY(ha_protobuf_next(&message, &field, &more, err));
        if (!more) {
            break;
        }
        if (is(&field, 1, HA_PROTOBUF_BYTES)) {
            piece.piece = text_of(&field);
        } else if (is(&field, 2, HA_PROTOBUF_I32)) {
            piece.score = ha_protobuf_float(&field);
        } else if (is(&field, 3, HA_PROTOBUF_VARINT) && field.value >= HA_SPM_NORMAL && field.value <= HA_SPM_BYTE) {
            piece.type = (ha_spm_type)field.value;      /* proto2: a value outside the enumeration is an unknown field */
        }
    }
    if (piece.piece.length == 0 || ha_utf8_valid_prefix((const uint8_t *)piece.piece.text, piece.piece.length) < piece.piece.length) {
        return ha_fail(err, HA_ERR_FORMAT, "piece %zu is %s", model->n, piece.piece.length == 0 ? "empty" : "not UTF-8");
    }
    if (!(piece.score >= -3.4e38F && piece.score <= 3.4e38F)) {
        return ha_fail(err, HA_ERR_FORMAT, "the score of piece %zu is not finite", model->n);
    }
    if (model->n == *capacity) {
        *capacity = *capacity * 2 + 1024;
        ha_spm_piece *pieces = *capacity > INT32_MAX / 8 ? NULL : realloc(model->pieces, *capacity * sizeof(*pieces));
        if (pieces == NULL) {
            return ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu pieces", *capacity);
        }
        model->pieces = pieces;
    }
    model->pieces[model->n++] = piece;
    return HA_OK;
}

static ha_status
read_trainer(ha_spm_model *model, uint64_t *kind, ha_protobuf message, ha_error *err)
{
    ha_protobuf_field field;
    int more;
    for (;;) {
        TRY(ha_protobuf_next(&message, &field, &more, err));
        if (!more) {
            return HA_OK;
        }
        if (is(&field, 3, HA_PROTOBUF_VARINT) && field.value >= 1 && field.value <= 4) {
            *kind = field.value;
        } else if (is(&field, 24, HA_PROTOBUF_VARINT)) {
            model->treat_whitespace_as_suffix = field.value != 0;
        } else if (is(&field, 35, HA_PROTOBUF_VARINT)) {
            model->byte_fallback = field.value != 0;
        } else if (is(&field, 40, HA_PROTOBUF_VARINT)) {
            model->unk_id = (int32_t)(uint32_t)field.value;
        } else if (is(&field, 44, HA_PROTOBUF_BYTES)) {
            model->unk_surface = text_of(&field);
        } else if (is(&field, 45, HA_PROTOBUF_BYTES)) {
            model->unk_piece = text_of(&field);
        }
    }
}

static ha_status
read_rules(ha_spm_rules *rules, ha_protobuf message, ha_error *err)
{
    ha_protobuf_field field;
    int more;
    for (;;) {
        TRY(ha_protobuf_next(&message, &field, &more, err));
        if (!more) {
            return HA_OK;
        }
        if (is(&field, 2, HA_PROTOBUF_BYTES)) {
            rules->charsmap = text_of(&field);
        } else if (is(&field, 3, HA_PROTOBUF_VARINT)) {
            rules->add_dummy_prefix = field.value != 0;
        } else if (is(&field, 4, HA_PROTOBUF_VARINT)) {
            rules->remove_extra_whitespaces = field.value != 0;
        } else if (is(&field, 5, HA_PROTOBUF_VARINT)) {
            rules->escape_whitespaces = field.value != 0;
        }
    }
}

static ha_status
read_model(ha_spm_model *model, ha_protobuf message, ha_error *err)
{
    static const char *const names[] = {"", "UNIGRAM", "BPE", "WORD", "CHAR"};
    uint64_t kind = HA_SPM_UNIGRAM;
    size_t capacity = 0;
    ha_protobuf_field field;
    int more;
    for (;;) {
        TRY(ha_protobuf_next(&message, &field, &more, err));
        if (!more) {
            break;
        }
        if (is(&field, 1, HA_PROTOBUF_BYTES)) {
            TRY(read_piece(model, &capacity, ha_protobuf_message(&message, &field), err));
        } else if (is(&field, 2, HA_PROTOBUF_BYTES)) {
            TRY(read_trainer(model, &kind, ha_protobuf_message(&message, &field), err));
        } else if (is(&field, 3, HA_PROTOBUF_BYTES)) {
            TRY(read_rules(&model->normalizer, ha_protobuf_message(&message, &field), err));
        } else if (is(&field, 5, HA_PROTOBUF_BYTES)) {
            TRY(read_rules(&model->denormalizer, ha_protobuf_message(&message, &field), err));
        }
    }
    if (model->n == 0) {
        return ha_fail(err, HA_ERR_FORMAT, "no sentencepiece model: it has no pieces");
    }
    if (kind > HA_SPM_BPE) {
        return ha_fail(err, HA_ERR_FORMAT, "model_type %s is not supported: only UNIGRAM and BPE are", names[kind]);
    }
    const ha_spm_text texts[] = {model->unk_piece, model->unk_surface};
    for (size_t i = 0; i < 2; i++) {
        if (ha_utf8_valid_prefix((const uint8_t *)texts[i].text, texts[i].length) < texts[i].length) {
            return ha_fail(err, HA_ERR_FORMAT, "trainer_spec: unk_%s is not UTF-8", i == 0 ? "piece" : "surface");
        }
    }
    model->kind = (ha_spm_kind)kind;
    return HA_OK;
}

ha_status
ha_spm_model_parse(const uint8_t *bytes, size_t size, ha_spm_model *out, ha_error *err)
{
    static const ha_spm_rules defaults = {{"", 0}, 1, 1, 1};
    *out = (ha_spm_model){.unk_piece = {"<unk>", 5}, .unk_surface = {" \xE2\x81\x87 ", 5}, .normalizer = defaults, .denormalizer = defaults};
    const ha_status status = read_model(out, (ha_protobuf){bytes, bytes, bytes + size}, err);
    if (status != HA_OK) {
        ha_spm_model_free(out);
    }
    return status;
}
