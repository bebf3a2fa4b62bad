/* Byte-level BPE or a sentencepiece vocabulary from the metadata of a GGUF file ("tokenizer.ggml.*"). Ids of the first are those of the Hugging Face tokenizer that
 * the file was made from: tokenizer.ggml.pre names its pre-tokenizer, tokens of type control (3) and user-defined (4) are its added tokens. */
#include <stdlib.h>
#include <string.h>

#include "io/tensor_file.h"
#include "tokenizer/pipeline.h"

#define TRY(call) do { const ha_status status_ = (call); if (status_ != HA_OK) { return status_; } } while (0)

enum { TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };

static ha_status
read_pre(ha_tokenizer *tok, const ha_tensor_file *file, ha_error *err)
{
    /* llama.cpp's names (llama-vocab.cpp) with the pipelines of the models that they come from. A name whose model has more than GGUF can hold (the [MASK] of
     * RoBERTa and ModernBERT), or a normalizer that is not known for sure, is left out though the expression be one of ours. */
    static const struct { const char *name; ha_pre_kind steps[2]; int n, nfc, ignore_merges, add_bos; } known[] = {
        {"gpt-2", {HA_PRE_GPT2}, 1, 0, 0, 0},
        {"gpt2", {HA_PRE_GPT2}, 1, 0, 0, 0},
        {"phi-2", {HA_PRE_GPT2}, 1, 0, 0, 0},
        {"olmo", {HA_PRE_GPT2}, 1, 1, 0, 0},
        {"mpt", {HA_PRE_GPT2}, 1, 1, 0, 0},
        {"smollm", {HA_PRE_DIGITS_INDIVIDUAL, HA_PRE_GPT2}, 2, 0, 0, 0},
        {"starcoder", {HA_PRE_DIGITS_INDIVIDUAL, HA_PRE_GPT2}, 2, 0, 0, 0},
        {"refact", {HA_PRE_DIGITS_INDIVIDUAL, HA_PRE_GPT2}, 2, 0, 0, 0},
        {"command-r", {HA_PRE_DIGITS_INDIVIDUAL, HA_PRE_GPT2}, 2, 1, 0, 0},
        {"llama-bpe", {HA_PRE_LLAMA3}, 1, 0, 1, 1},
        {"llama3", {HA_PRE_LLAMA3}, 1, 0, 1, 1},
        {"llama-v3", {HA_PRE_LLAMA3}, 1, 0, 1, 1},
        {"dbrx", {HA_PRE_LLAMA3}, 1, 0, 0, 0},
        {"qwen2", {HA_PRE_QWEN2}, 1, 1, 0, 0},
        {"gpt-4o", {HA_PRE_O200K}, 1, 0, 0, 0},
        {"llama4", {HA_PRE_O200K}, 1, 0, 0, 0},
        {"tekken", {HA_PRE_TEKKEN}, 1, 0, 1, 1},
    };
    const char *name;
    size_t length;
    TRY(ha_gguf_string(file, "tokenizer.ggml.pre", &name, &length, err));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strlen(known[i].name) != length || memcmp(known[i].name, name, length) != 0) {
            continue;
        }
        for (int k = 0; k < known[i].n; k++) {
            TRY(ha_pre_tokenizer_add(&tok->pre, known[i].steps[k], err));
        }
        if (known[i].nfc) {
            TRY(ha_normalizer_add(&tok->normalizer, HA_NORM_NFC, err));
        }
        tok->bpe.ignore_merges = known[i].ignore_merges;
        tok->pre.byte_level = 1;
        tok->post.has_template = known[i].add_bos;      /* until the file's own flags are read */
        return HA_OK;
    }
    return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.pre '%.*s' is not supported", (int)(length < 60 ? length : 60), name);
}

static ha_status
read_tokens(ha_tokenizer *tok, const ha_tensor_file *file, ha_error *err)
{
    size_t n, n_types = 0;
    TRY(ha_gguf_array_length(file, "tokenizer.ggml.tokens", &n, err));
    if (ha_gguf_has(file, "tokenizer.ggml.token_type")) {
        TRY(ha_gguf_array_length(file, "tokenizer.ggml.token_type", &n_types, err));
        if (n_types != n) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.token_type has %zu elements, tokenizer.ggml.tokens %zu", n_types, n);
        }
    }
    for (size_t i = 0; i < n; i++) {
        const char *text;
        size_t length;
        double type = 1;
        TRY(ha_gguf_array_string(file, "tokenizer.ggml.tokens", i, &text, &length, err));
        if (ha_utf8_valid_prefix((const uint8_t *)text, length) < length) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.tokens[%zu] is not UTF-8", i);
        }
        if (ha_vocab_id(&tok->vocab, text, length) >= 0) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.tokens[%zu] is the same as token %d", i, (int)ha_vocab_id(&tok->vocab, text, length));
        }
        TRY(ha_vocab_add(&tok->vocab, text, length, i, n, err));
        if (n_types > 0) {
            TRY(ha_gguf_array_f64(file, "tokenizer.ggml.token_type", i, &type, err));
        }
        if ((type == TYPE_CONTROL || type == TYPE_USER_DEFINED) && length > 0) {
            TRY(ha_added_tokens_add(&tok->added, text, (ha_added_token){.id = (int32_t)i, .special = type == TYPE_CONTROL, .length = length}, err));
        }
    }
    tok->n_model_tokens = tok->vocab.n_tokens;
    tok->n_model_ids = tok->vocab.n_ids;
    return HA_OK;
}

static ha_status
read_merges(ha_tokenizer *tok, const ha_tensor_file *file, ha_error *err)
{
    size_t n;
    TRY(ha_gguf_array_length(file, "tokenizer.ggml.merges", &n, err));
    TRY(ha_bpe_reserve(&tok->bpe, n, err));
    for (size_t i = 0; i < n; i++) {
        const char *text;
        size_t length;
        TRY(ha_gguf_array_string(file, "tokenizer.ggml.merges", i, &text, &length, err));
        const char *space = memchr(text, ' ', length);
        if (space == NULL) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.merges[%zu]: expected \"left right\"", i);
        }
        const char *const half[2] = {text, space + 1};
        const size_t lengths[2] = {(size_t)(space - text), length - (size_t)(space - text) - 1};
        TRY(ha_bpe_add_merge_text(&tok->bpe, &tok->vocab, i, half, lengths, err));
    }
    return HA_OK;
}

/* The id under `id_key`, when the flag under `flag_key` (where that is NULL or absent: `fallback`) asks for it; else -1. */
static ha_status
read_special(const ha_tokenizer *tok, const ha_tensor_file *file, const char *flag_key, int fallback, const char *id_key, int32_t *out, ha_error *err)
{
    int on = fallback;
    uint64_t id;
    *out = -1;
    if (flag_key != NULL && ha_gguf_has(file, flag_key)) {
        TRY(ha_gguf_bool(file, flag_key, &on, err));
    }
    if (!on) {
        return HA_OK;
    }
    TRY(ha_gguf_u64(file, id_key, &id, err));
    if (id >= tok->vocab.n_ids) {
        return ha_fail(err, HA_ERR_FORMAT, "%s is %llu, the vocabulary has %zu tokens", id_key, (unsigned long long)id, tok->vocab.n_ids);
    }
    *out = (int32_t)id;
    return HA_OK;
}

/* bos A eos, and for a pair bos A eos bos B eos with type 1 from the second bos, as Llama-3's own template has it. */
static ha_status
read_template(ha_tokenizer *tok, const ha_tensor_file *file, ha_error *err)
{
    int32_t ids[2];
    TRY(read_special(tok, file, "tokenizer.ggml.add_bos_token", tok->post.has_template, "tokenizer.ggml.bos_token_id", &ids[0], err));
    TRY(read_special(tok, file, "tokenizer.ggml.add_eos_token", 0, "tokenizer.ggml.eos_token_id", &ids[1], err));
    ha_post_processor_bos_eos(&tok->post, ids[0], ids[1], 1);
    return HA_OK;
}

/* What llama.cpp (that of llama-cpp-python 0.3.36) does by names alone: ordinary tokens of these texts are special to it, and special tokens of Phi-3 take the white space
 * behind them. Such a file is refused, for which of the names it takes depends on the order of a hash table. */
static ha_status
check_names(const ha_tokenizer *tok, const ha_tensor_file *file, const uint8_t *types, ha_error *err)
{
    static const char *const special[] = {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>",
        "<end_of_utterance>", "<|eom_id|>", "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>",
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>",
        "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>",
        "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>", "<eos>", "<|return|>", "<|call|>", "<|calls|>", "<|message|>", "<|channel|>", "<|start|>",
        "<turn|>", "<|tool_response>", "[e~[",
    };
    for (size_t i = 0; i < sizeof(special) / sizeof(special[0]); i++) {
        const int32_t id = ha_vocab_id(&tok->vocab, special[i], strlen(special[i]));
        if (id >= 0 && (types[id] == HA_SPM_NORMAL || types[id] == HA_SPM_UNUSED || types[id] == HA_SPM_BYTE)) {
            return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.tokens[%d] '%s' is no control token by its type, but one by its name: not supported", (int)id, special[i]);
        }
    }
    const char *name = "";
    size_t length = 0;
    if (ha_gguf_has(file, "general.name")) {
        TRY(ha_gguf_string(file, "general.name", &name, &length, err));
    }
    for (size_t i = 0; i + 4 <= length; i++) {
        const char *p = name + i;
        const int phi = (p[0] | 0x20) == 'p' && (p[1] | 0x20) == 'h' && (p[2] | 0x20) == 'i' && (p[3] == '3' || (p[3] == '-' && i + 4 < length && p[4] == '3'));
        if (phi) {
            return ha_fail(err, HA_ERR_FORMAT, "general.name '%.*s': the white space behind Phi-3's special tokens is not supported", (int)(length < 60 ? length : 60), name);
        }
    }
    return HA_OK;
}

/* A vocabulary of sentencepiece: scores and types in place of merges. Ids are llama.cpp's, which finds tokens of the types control, user-defined and unknown in the text. */
static ha_status
read_llama(ha_tokenizer *tok, const ha_tensor_file *file, ha_error *err)
{
    size_t n;
    int prefix = 1;
    const size_t n_ids = tok->vocab.n_ids;
    TRY(ha_gguf_array_length(file, "tokenizer.ggml.scores", &n, err));
    if (n != n_ids || !ha_gguf_has(file, "tokenizer.ggml.token_type")) {
        return ha_fail(err, HA_ERR_FORMAT, n != n_ids ? "tokenizer.ggml.scores has %zu elements, tokenizer.ggml.tokens %zu" : "no tokenizer.ggml.token_type", n, n_ids);
    }
    if (ha_gguf_has(file, "tokenizer.ggml.add_space_prefix")) {
        TRY(ha_gguf_bool(file, "tokenizer.ggml.add_space_prefix", &prefix, err));
    }
    float *scores = malloc((n_ids + 1) * sizeof(*scores));
    uint8_t *types = malloc(n_ids + 1);
    ha_status status = scores != NULL && types != NULL ? HA_OK : ha_fail(err, HA_ERR_NOMEM, "out of memory for %zu tokens", n_ids);
    for (size_t i = 0; i < n_ids && status == HA_OK; i++) {
        double score, type;
        status = ha_gguf_array_f64(file, "tokenizer.ggml.scores", i, &score, err);
        status = status == HA_OK ? ha_gguf_array_f64(file, "tokenizer.ggml.token_type", i, &type, err) : status;
        if (status == HA_OK && !(score >= -3.4e38 && score <= 3.4e38 && type >= HA_SPM_NORMAL && type <= HA_SPM_BYTE)) {
            status = ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.scores[%zu] or its token_type is out of range", i);
        }
        if (status == HA_OK) {
            scores[i] = (float)score;
            types[i] = (uint8_t)type;
        }
    }
    if (status == HA_OK) {
        status = check_names(tok, file, types, err);
    }
    if (status == HA_OK) {
        status = ha_sentencepiece_build_llama(&tok->sentencepiece, scores, types, prefix, &tok->vocab, err);
    }
    free(scores);
    free(types);
    tok->post.has_template = 1;         /* until the file's own flags are read */
    return status == HA_OK ? ha_token_decoder_add_fallback(&tok->decoder, prefix, err) : status;
}

static ha_status
read_all(ha_tokenizer *tok, const ha_tensor_file *file, ha_error *err)
{
    const char *model;
    size_t length;
    TRY(ha_gguf_string(file, "tokenizer.ggml.model", &model, &length, err));
    const int llama = length == 5 && memcmp(model, "llama", 5) == 0;
    if (!llama && (length != 4 || memcmp(model, "gpt2", 4) != 0)) {
        return ha_fail(err, HA_ERR_FORMAT, "tokenizer.ggml.model '%.*s' is not supported", (int)(length < 60 ? length : 60), model);
    }
    if (llama) {
        tok->model_kind = HA_MODEL_SENTENCEPIECE;
        TRY(read_tokens(tok, file, err));
        TRY(read_llama(tok, file, err));
    } else {
        tok->model_kind = HA_MODEL_BPE;
        tok->bpe.unk_id = -1;
        TRY(ha_token_decoder_add(&tok->decoder, (ha_decoder_step){.kind = HA_DECODER_BYTE_LEVEL}, err));
        TRY(read_pre(tok, file, err));
        TRY(read_tokens(tok, file, err));
        TRY(read_merges(tok, file, err));
        TRY(ha_bpe_read_bytes(&tok->bpe, &tok->vocab, tok->n_model_tokens, (ha_affixes){0}, err));
    }
    const int has_pad = ha_gguf_has(file, "tokenizer.ggml.padding_token_id");
    TRY(read_special(tok, file, NULL, has_pad, "tokenizer.ggml.padding_token_id", &tok->pad_id, err));
    return read_template(tok, file, err);
}

ha_status
ha_tokenizer_load_gguf(ha_tokenizer *tok, const char *path, ha_error *err)
{
    ha_tensor_file *file = NULL;
    ha_error cause;
    ha_status status = ha_tensor_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    status = ha_gguf_is(file) ? read_all(tok, file, &cause) : ha_fail(&cause, HA_ERR_FORMAT, "not a GGUF file");
    if (status == HA_OK) {
        status = ha_tokenizer_finish(tok, &cause);
    }
    if (status != HA_OK) {
        ha_fail(err, status, "%.250s: %.250s", path, cause.message);
    }
    ha_tensor_file_close(file);
    return status;
}
