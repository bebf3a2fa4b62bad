/* vocab.json beside merges.txt, the files of GPT-2's encoder: {"token": id, ...} and, after a "#version" line, one "left right" a line. The conventions that
 * go with them are those of the class that the files beside them name (transformers 4, convert_slow_tokenizer). */
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "tokenizer/conventions.h"

static ha_status
read_vocab(ha_tokenizer *tok, const ha_json *json, size_t max_ids, ha_error *err)
{
    const ha_json_node *root = ha_json_root(json);
    if (root->type != HA_JSON_OBJECT) {
        return ha_fail(err, HA_ERR_FORMAT, "must hold an object");
    }
    for (const ha_json_node *item = ha_json_first(json, root); item != NULL; item = ha_json_next(json, item)) {
        uint64_t id;
        if (!ha_json_u64(item, &id)) {
            return ha_fail(err, HA_ERR_FORMAT, "the id of '%.80s' is no non-negative integer", item->key);
        }
        TRY(ha_vocab_add(&tok->vocab, item->key, item->key_length, id, max_ids, err));
    }
    tok->n_model_tokens = tok->vocab.n_tokens;
    tok->n_model_ids = tok->vocab.n_ids;
    return HA_OK;
}

static ha_status
read_merges(ha_tokenizer *tok, const uint8_t *text, size_t size, ha_error *err)
{
    size_t n_lines = 1, n = 0;
    for (size_t i = 0; i < size; i++) {
        n_lines += text[i] == '\n';
    }
    TRY(ha_bpe_reserve(&tok->bpe, n_lines, err));
    for (size_t at = 0, line = 0; at < size; line++) {
        const char *begin = (const char *)text + at;
        const char *stop = memchr(begin, '\n', size - at);
        size_t length = stop != NULL ? (size_t)(stop - begin) : size - at;
        at += length + 1;
        length -= length > 0 && begin[length - 1] == '\r';
        if (length >= 8 && memcmp(begin, "#version", 8) == 0) {
            continue;
        }
        if (length == 0 && at >= size) {
            break;
        }
        const char *space = memchr(begin, ' ', length);
        if (space == NULL || memchr(space + 1, ' ', length - (size_t)(space + 1 - begin)) != NULL) {
            return ha_fail(err, HA_ERR_FORMAT, "merges.txt: line %zu: expected \"left right\"", line + 1);
        }
        const char *const half[2] = {begin, space + 1};
        const size_t lengths[2] = {(size_t)(space - begin), length - (size_t)(space - begin) - 1};
        TRY(ha_bpe_add_merge_text(&tok->bpe, &tok->vocab, n++, half, lengths, err));
    }
    return HA_OK;
}

enum { BOS, EOS, UNK, SEP, PAD, CLS, MASK, N_SPECIALS };

typedef enum family { GPT2, ROBERTA, QWEN2 } family;

/* Without a name the vocabulary itself says it, or nobody. */
static ha_status
find_family(const ha_tokenizer *tok, const ha_conventions *c, family *out, ha_error *err)
{
    static const struct { const char *name; family family; } known[] = {
        {"GPT2Tokenizer", GPT2}, {"RobertaTokenizer", ROBERTA}, {"BartTokenizer", ROBERTA}, {"LongformerTokenizer", ROBERTA}, {"Qwen2Tokenizer", QWEN2},
    };
    char name[64];
    TRY(ha_conventions_class(c, name, err));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i].name) == 0) {
            *out = known[i].family;
            return HA_OK;
        }
    }
    if (name[0] != '\0') {
        return ha_fail(err, HA_ERR_FORMAT, "tokenizer_class '%s' is not supported with vocab.json and merges.txt", name);
    }
    const int of_gpt2 = ha_vocab_id(&tok->vocab, "<|endoftext|>", 13) >= 0;
    const int of_roberta = ha_vocab_id(&tok->vocab, "<s>", 3) >= 0 && ha_vocab_id(&tok->vocab, "</s>", 4) >= 0 && ha_vocab_id(&tok->vocab, "<mask>", 6) >= 0;
    if (of_gpt2 == of_roberta) {
        return ha_fail(err, HA_ERR_FORMAT, "whose conventions apply is not known: tokenizer_config.json must name its \"tokenizer_class\"");
    }
    *out = of_gpt2 ? GPT2 : ROBERTA;
    return HA_OK;
}

static const ha_special specials_of[][N_SPECIALS] = {
    [GPT2] = {{"bos_token", "<|endoftext|>", 0, 0}, {"eos_token", "<|endoftext|>", 0, 0}, {"unk_token", "<|endoftext|>", 0, 0}, {"sep_token", NULL, 0, 0},
              {"pad_token", NULL, 0, 0}, {"cls_token", NULL, 0, 0}, {"mask_token", NULL, 0, 0}},
    [ROBERTA] = {{"bos_token", "<s>", 0, 0}, {"eos_token", "</s>", 0, 0}, {"unk_token", "<unk>", 0, 0}, {"sep_token", "</s>", 0, 1},
                 {"pad_token", "<pad>", 0, 0}, {"cls_token", "<s>", 0, 1}, {"mask_token", "<mask>", 1, 0}},
    [QWEN2] = {{"bos_token", NULL, 0, 0}, {"eos_token", "<|endoftext|>", 0, 0}, {"unk_token", "<|endoftext|>", 0, 0}, {"sep_token", NULL, 0, 0},
               {"pad_token", "<|endoftext|>", 0, 0}, {"cls_token", NULL, 0, 0}, {"mask_token", NULL, 0, 0}},
};

/* bos A B */
static ha_status
begin_with(ha_tokenizer *tok, int32_t bos, ha_error *err)
{
    const ha_template_item first = {HA_TEMPLATE_SPECIAL, 0, bos};
    if (bos < 0) {
        return ha_fail(err, HA_ERR_FORMAT, "tokenizer_config.json: \"add_bos_token\" without a \"bos_token\"");
    }
    tok->post.single = (ha_template){{first, {HA_TEMPLATE_A, 0, -1}}, 2};
    tok->post.pair = (ha_template){{first, {HA_TEMPLATE_A, 0, -1}, {HA_TEMPLATE_B, 1, -1}}, 3};
    tok->post.has_template = 1;
    return HA_OK;
}

static ha_status
configure(ha_tokenizer *tok, const ha_conventions *c, ha_error *err)
{
    ha_post_processor *post = &tok->post;
    family family = GPT2;
    int32_t ids[N_SPECIALS];
    int prefix, add_bos;
    TRY(find_family(tok, c, &family, err));
    TRY(ha_conventions_bool(c, "add_prefix_space", 0, &prefix, err));
    TRY(ha_conventions_bool(c, "add_bos_token", 0, &add_bos, err));
    TRY(ha_conventions_add_tokens(tok, c, specials_of[family], N_SPECIALS, ids, err));
    if (family == QWEN2) {
        TRY(ha_normalizer_add(&tok->normalizer, HA_NORM_NFC, err));
        TRY(ha_pre_tokenizer_add(&tok->pre, HA_PRE_QWEN2, err));
    }
    if (prefix) {
        TRY(ha_pre_tokenizer_add(&tok->pre, HA_PRE_PREFIX_SPACE, err));
    }
    if (family != QWEN2) {
        TRY(ha_pre_tokenizer_add(&tok->pre, HA_PRE_GPT2, err));
    }
    ha_post_processor_none(post);
    if (family == ROBERTA) {
        TRY(ha_conventions_bool(c, "trim_offsets", 1, &post->trim_offsets, err));
        post->keep_prefix_space = prefix;
        post->has_template = 1;
        ha_post_processor_bert(post, ids[CLS], ids[SEP], 1);
    } else if (family == GPT2 && add_bos) {
        TRY(begin_with(tok, ids[BOS], err));
    }
    tok->pre.byte_level = 1;
    tok->pad_id = ids[PAD];
    TRY(ha_token_decoder_add(&tok->decoder, (ha_decoder_step){.kind = HA_DECODER_BYTE_LEVEL}, err));
    return HA_OK;
}

/* "folder/merges.txt" for "folder/vocab.json", malloc'ed. */
static char *
merges_beside(const char *path)
{
    const size_t n = strlen(path) - strlen("vocab.json");
    char *name = malloc(n + sizeof("merges.txt"));
    if (name != NULL) {
        memcpy(name, path, n);
        strcpy(name + n, "merges.txt");
    }
    return name;
}

static ha_status
read_all(ha_tokenizer *tok, const ha_json *json, size_t size, const ha_map_file *merges, const ha_conventions *c, ha_error *err)
{
    tok->model_kind = HA_MODEL_BPE;
    tok->bpe.unk_id = -1;
    TRY(read_vocab(tok, json, size / 2 + 65536, err));      /* a token takes 6 bytes or more, see load_json.c */
    if (ha_utf8_valid_prefix(merges->data, merges->size) < merges->size) {
        return ha_fail(err, HA_ERR_FORMAT, "merges.txt: not UTF-8");
    }
    TRY(read_merges(tok, merges->data, merges->size, err));
    TRY(ha_bpe_read_bytes(&tok->bpe, &tok->vocab, tok->n_model_tokens, (ha_affixes){0}, err));
    TRY(configure(tok, c, err));
    return ha_tokenizer_finish(tok, err);
}

ha_status
ha_tokenizer_load_vocab_json(ha_tokenizer *tok, const char *path, ha_error *err)
{
    ha_map_file file = {0}, merges = {0};
    ha_conventions conventions = {0};
    ha_json *json = NULL;
    ha_error cause;
    char *merges_path = merges_beside(path);
    ha_status status = merges_path != NULL ? ha_map_file_open(path, &file, err) : ha_fail(err, HA_ERR_NOMEM, "out of memory");
    if (status == HA_OK) {
        status = ha_map_file_open(merges_path, &merges, err);
    }
    if (status == HA_OK) {
        status = ha_json_parse(path, (const char *)file.data, file.size, &json, err);
    }
    if (status == HA_OK) {
        status = ha_conventions_open(path, &conventions, err);
    }
    if (status == HA_OK) {
        status = read_all(tok, json, file.size, &merges, &conventions, &cause);
        if (status != HA_OK) {
            ha_fail(err, status, "%.250s: %.250s", path, cause.message);
        }
    }
    ha_conventions_close(&conventions);
    ha_json_free(json);
    ha_map_file_close(&merges);
    ha_map_file_close(&file);
    free(merges_path);
    return status;
}
