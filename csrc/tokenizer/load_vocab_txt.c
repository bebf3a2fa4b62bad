/* vocab.txt of BERT: one token a line, its id the line's index; the files beside it say how text is prepared (transformers' BertTokenizer). */
#include <string.h>

#include "core/map_file.h"
#include "tokenizer/conventions.h"
#include "tokenizer/unicode.h"

/* Without the white space at its end, as the reference reads lines. */
static size_t
trimmed(const uint8_t *line, size_t length)
{
    size_t size;
    while (length > 0) {
        const size_t back = ha_utf8_back(line, length);
        if ((ha_uc_flags(ha_utf8_decode(line + back, &size)) & HA_UC_WHITE_SPACE) == 0) {
            break;
        }
        length = back;
    }
    return length;
}

static ha_status
read_lines(ha_tokenizer *tok, const uint8_t *text, size_t size, ha_error *err)
{
    uint64_t id = 0;
    const size_t valid = ha_utf8_valid_prefix(text, size);
    ha_status status = HA_OK;
    for (size_t at = 0; at < size && status == HA_OK; id++) {
        const uint8_t *end = memchr(text + at, '\n', size - at);
        const size_t length = end != NULL ? (size_t)(end - (text + at)) : size - at;
        if (valid < at + length) {
            return ha_fail(err, HA_ERR_FORMAT, "line %llu is not UTF-8", (unsigned long long)id + 1);
        }
        status = ha_vocab_add(&tok->vocab, (const char *)text + at, trimmed(text + at, length), id, SIZE_MAX, err);
        at += length + 1;
    }
    tok->n_model_tokens = tok->vocab.n_tokens;
    tok->n_model_ids = tok->vocab.n_ids;
    return status;
}

/* What differs between the classes of this file is not what the tokenizer does, or they are refused. */
static ha_status
check_class(const ha_conventions *c, ha_error *err)
{
    static const char *const known[] = {
        "", "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer", "LayoutLMTokenizer",
        "SqueezeBertTokenizer", "LxmertTokenizer", "PreTrainedTokenizer",
    };
    char name[64];
    TRY(ha_conventions_class(c, name, err));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i]) == 0) {
            return HA_OK;
        }
    }
    return ha_fail(err, HA_ERR_FORMAT, "tokenizer_class '%s' is not supported with vocab.txt", name);
}

static ha_status
configure(ha_tokenizer *tok, const ha_conventions *c, ha_error *err)
{
    static const ha_special specials[] = {
        {"unk_token", "[UNK]", 0, 1}, {"sep_token", "[SEP]", 0, 1}, {"pad_token", "[PAD]", 0, 0}, {"cls_token", "[CLS]", 0, 1},
        {"mask_token", "[MASK]", 0, 0},
    };
    int lower, chinese, strip;
    int32_t ids[5];
    TRY(check_class(c, err));
    TRY(ha_conventions_bool(c, "do_lower_case", 1, &lower, err));
    TRY(ha_conventions_bool(c, "tokenize_chinese_chars", 1, &chinese, err));
    TRY(ha_conventions_bool(c, "strip_accents", lower, &strip, err));
    TRY(ha_normalizer_add_bert(&tok->normalizer, 1, chinese, strip, lower, err));
    TRY(ha_pre_tokenizer_add(&tok->pre, HA_PRE_BERT, err));
    TRY(ha_conventions_add_tokens(tok, c, specials, 5, ids, err));
    tok->wordpiece.unk_id = ids[0];
    tok->pad_id = ids[2];
    ha_post_processor_bert(&tok->post, ids[3], ids[1], 0);
    TRY(ha_decoder_set_wordpiece(&tok->decoder, "##", 2, 1, err));
    tok->model_kind = HA_MODEL_WORDPIECE;
    tok->wordpiece.max_chars = 100;
    return HA_OK;
}

ha_status
ha_tokenizer_load_vocab_txt(ha_tokenizer *tok, const char *path, ha_error *err)
{
    ha_map_file file;
    ha_conventions conventions;
    ha_error cause;
    ha_status status = ha_map_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    status = ha_conventions_open(path, &conventions, err);
    if (status == HA_OK) {
        status = read_lines(tok, file.data, file.size, &cause);
        if (status == HA_OK) {      /* the model first: added tokens are none of its */
            status = ha_wordpiece_build(&tok->vocab, "##", 2, &tok->wordpiece, &cause);
        }
        if (status == HA_OK) {
            status = configure(tok, &conventions, &cause);
        }
        if (status == HA_OK) {
            status = ha_tokenizer_finish(tok, &cause);
        }
        if (status != HA_OK) {
            ha_fail(err, status, "%.250s: %.250s", path, cause.message);
        }
    }
    ha_conventions_close(&conventions);
    ha_map_file_close(&file);
    return status;
}
