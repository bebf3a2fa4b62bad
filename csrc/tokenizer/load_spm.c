/* A sentencepiece .model file. By default its text becomes ids as in the fast tokenizer that transformers 4 makes of it (convert_slow_tokenizer), which depends on
 * the class that tokenizer_config.json or config.json names, else on the pieces; with reference "sentencepiece" as in sentencepiece itself. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/map_file.h"
#include "core/sha256.h"
#include "tokenizer/conventions.h"
#include "tokenizer/spm_model.h"
#include "tokenizer/tables.h"
#include "tokenizer/unicode.h"

#define SPACE "\xE2\x96\x81"

enum { MAX_EXTRA_IDS = 1 << 16, MAX_BPE_PIECE = 1024 };

typedef enum special_kind { BOS, EOS, UNK, SEP, PAD, CLS, MASK, N_SPECIALS } special_kind;     /* in the order in which transformers adds them */

static const char *const special_keys[N_SPECIALS] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

/* What a class makes of a special token that is given as a string: OWN, it has options of its own; else the options of a piece of this text stand. */
enum { OWN = 1, LSTRIP = 2, NORMALIZED = 4 };

typedef enum class_kind { DEBERTA_V2, XLM_ROBERTA, T5, ALBERT, LLAMA, GEMMA } class_kind;

typedef struct class_rules {
    class_kind kind;
    const char *name;               /* tokenizer_class, without "Fast" */
    const char *model_types[5];     /* of config.json */
    struct { const char *text; int flags; } specials[N_SPECIALS];
} class_rules;

static const class_rules classes[] = {
    {DEBERTA_V2, "DebertaV2Tokenizer", {"deberta-v2"},
     {{"[CLS]", 0}, {"[SEP]", 0}, {"[UNK]", OWN | NORMALIZED}, {"[SEP]", 0}, {"[PAD]", 0}, {"[CLS]", 0}, {"[MASK]", 0}}},
    {XLM_ROBERTA, "XLMRobertaTokenizer", {"xlm-roberta"},
     {{"<s>", 0}, {"</s>", 0}, {"<unk>", 0}, {"</s>", 0}, {"<pad>", 0}, {"<s>", 0}, {"<mask>", OWN | LSTRIP}}},
    {T5, "T5Tokenizer", {"t5"}, {{NULL, 0}, {"</s>", OWN}, {"<unk>", OWN}, {NULL, 0}, {"<pad>", OWN}, {NULL, 0}, {NULL, 0}}},
    {ALBERT, "AlbertTokenizer", {"albert"},
     {{"[CLS]", 0}, {"[SEP]", 0}, {"<unk>", 0}, {"[SEP]", 0}, {"<pad>", 0}, {"[CLS]", 0}, {"[MASK]", OWN | LSTRIP}}},
    {LLAMA, "LlamaTokenizer", {"llama", "mistral", "mixtral"}, {{"<s>", OWN}, {"</s>", OWN}, {"<unk>", OWN}, {NULL, 0}, {NULL, OWN}, {NULL, 0}, {NULL, 0}}},
    {GEMMA, "GemmaTokenizer", {"gemma", "gemma2"}, {{"<bos>", OWN}, {"<eos>", OWN}, {"<unk>", OWN}, {NULL, 0}, {"<pad>", OWN}, {NULL, 0}, {NULL, 0}}},
};

enum { N_CLASSES = sizeof(classes) / sizeof(classes[0]) };

typedef struct loader {
    ha_tokenizer *tok;
    const ha_spm_model *model;
    const class_rules *rules;
    const ha_json *config, *map;    /* tokenizer_config.json, special_tokens_map.json; or NULL */
    double *scores;                 /* of each id, room for all that a class adds */
    size_t extra_ids;
    ha_error *err;
} loader;

/* ---- which class ---- */

static int
has_pieces(const ha_spm_model *model, const char *const *texts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i >= model->n || model->pieces[i].piece.length != strlen(texts[i]) || memcmp(model->pieces[i].piece.text, texts[i], strlen(texts[i])) != 0) {
            return 0;
        }
    }
    return 1;
}

static ha_status
class_of_name(const char *name, size_t length, const class_rules **out, ha_error *err)
{
    const size_t n = length > 4 && memcmp(name + length - 4, "Fast", 4) == 0 ? length - 4 : length;
    for (size_t i = 0; i < N_CLASSES; i++) {
        if (strlen(classes[i].name) == n && memcmp(classes[i].name, name, n) == 0) {
            *out = &classes[i];
            return HA_OK;
        }
    }
    return ha_fail(err, HA_ERR_FORMAT, "tokenizer_class '%.60s' is not supported for a sentencepiece model; reference=\"sentencepiece\" gives sentencepiece's own ids", name);
}

/* tokenizer_class, else that of config.json, else its model_type, else what the pieces alone can mean. */
static ha_status
find_class(const ha_spm_model *model, const ha_json *config, const ha_json *model_config, const class_rules **out, ha_error *err)
{
    static const char *const deberta[] = {"[PAD]", "[CLS]", "[SEP]", "[UNK]"}, *const gemma[] = {"<pad>", "<eos>", "<bos>", "<unk>"};
    static const char *const llama[] = {"<unk>", "<s>", "</s>"};
    const ha_json_node *names[] = {ha_conventions_member(config, "tokenizer_class"), ha_conventions_member(model_config, "tokenizer_class")};
    for (size_t i = 0; i < 2; i++) {
        if (names[i] != NULL && names[i]->type == HA_JSON_STRING) {
            return class_of_name(names[i]->string, names[i]->length, out, err);
        }
    }
    const ha_json_node *type = ha_conventions_member(model_config, "model_type");
    for (size_t i = 0; type != NULL && type->type == HA_JSON_STRING && i < N_CLASSES; i++) {
        for (size_t k = 0; k < 5 && classes[i].model_types[k] != NULL; k++) {
            if (strcmp(classes[i].model_types[k], type->string) == 0) {
                *out = &classes[i];
                return HA_OK;
            }
        }
    }
    const int bpe = model->kind == HA_SPM_BPE;
    *out = !bpe && has_pieces(model, deberta, 4) ? &classes[DEBERTA_V2] : bpe && has_pieces(model, gemma, 4) ? &classes[GEMMA]
           : bpe && has_pieces(model, llama, 3) ? &classes[LLAMA] : NULL;
    return *out != NULL ? HA_OK : ha_fail(err, HA_ERR_FORMAT, "nothing says which tokenizer transformers makes of this sentencepiece model: put the "
                                          "tokenizer_config.json that names its tokenizer_class beside it, or ask for reference=\"sentencepiece\"");
}

/* ---- vocabulary ---- */

static ha_status
add_token(loader *l, ha_spm_text text, double score)
{
    ha_vocab *vocab = &l->tok->vocab;
    if (ha_vocab_id(vocab, text.text, text.length) >= 0) {
        return ha_fail(l->err, HA_ERR_FORMAT, "piece '%.*s' stands twice", (int)(text.length < 80 ? text.length : 80), text.text);
    }
    l->scores[vocab->n_ids] = score;
    return ha_vocab_add(vocab, text.text, text.length, vocab->n_ids, SIZE_MAX, l->err);
}

static ha_status
add_text(loader *l, const char *text)
{
    return add_token(l, (ha_spm_text){text, strlen(text)}, 0);
}

/* ALBERT's pieces of a digit and a comma at their end cost 100 more. */
static ha_status
albert_score(const loader *l, ha_spm_piece p, double *score)
{
    const uint8_t *text = (const uint8_t *)p.piece.text;
    const size_t length = p.piece.length;
    *score = (double)p.score;
    if (length < 2 || text[length - 1] != ',') {
        return HA_OK;
    }
    size_t size;
    const uint32_t before = ha_utf8_decode(text + ha_utf8_back(text, length - 1), &size);
    if (before >= 0x80 && (ha_uc_flags(before) & HA_UC_NUMERIC)) {
        return ha_fail(l->err, HA_ERR_FORMAT, "piece '%.*s': the rule of AlbertTokenizer for digits of other scripts is not supported", (int)length, p.piece.text);
    }
    *score -= before >= '0' && before <= '9' ? 100 : 0;
    return HA_OK;
}

/* The text of a special token: that of the configuration, else the class's; length 0: none. `*node`: where options may stand. */
static ha_status
special_text(const loader *l, special_kind kind, ha_spm_text *out, const ha_json_node **node, const ha_json **json)
{
    const char *fallback = l->rules->specials[kind].text;
    *json = ha_conventions_member(l->map, special_keys[kind]) != NULL ? l->map : l->config;
    *node = ha_conventions_member(*json, special_keys[kind]);
    *out = (ha_spm_text){fallback, *node == NULL && fallback != NULL ? strlen(fallback) : 0};
    if (*node == NULL || (*node)->type == HA_JSON_NULL) {
        return HA_OK;
    }
    const ha_json_node *content = (*node)->type == HA_JSON_OBJECT ? ha_json_get(*json, *node, "content") : *node;
    if (content == NULL || content->type != HA_JSON_STRING || content->length == 0) {
        return ha_fail(l->err, HA_ERR_FORMAT, "\"%s\" of the configuration is neither a text nor an object with \"content\"", special_keys[kind]);
    }
    *out = (ha_spm_text){content->string, content->length};
    return HA_OK;
}

/* Gemma's first pieces take the names of its special tokens, whatever the file calls them. */
static ha_status
add_gemma_names(loader *l)
{
    static const special_kind first[3] = {PAD, EOS, BOS};
    for (int i = 0; i < 3; i++) {
        ha_spm_text text;
        const ha_json_node *node;
        const ha_json *json;
        TRY(special_text(l, first[i], &text, &node, &json));
        if (text.length == 0) {
            return ha_fail(l->err, HA_ERR_FORMAT, "GemmaTokenizer without %s", special_keys[first[i]]);
        }
        TRY(add_token(l, text, 0));
    }
    return HA_OK;
}

static ha_status
add_pieces(loader *l)
{
    static const char *const fairseq[] = {"<s>", "<pad>", "</s>", "<unk>"};
    const ha_spm_model *model = l->model;
    const class_kind kind = l->rules->kind;
    size_t first = kind == XLM_ROBERTA || kind == GEMMA ? 3 : 0;
    if (model->n < 4) {
        return ha_fail(l->err, HA_ERR_FORMAT, "a model of %zu pieces", model->n);
    }
    for (size_t i = 0; kind == XLM_ROBERTA && i < 4; i++) {
        TRY(add_text(l, fairseq[i]));
    }
    if (kind == GEMMA) {
        TRY(add_gemma_names(l));
    }
    const int tab_missing = kind == GEMMA && ha_spm_model_find(model, "\t", 1) < 0;
    for (size_t i = first; i < model->n; i++) {
        const ha_spm_piece p = model->pieces[i];
        double score = kind == LLAMA && i < 3 ? 0 : (double)p.score;
        if (kind == ALBERT) {
            TRY(albert_score(l, p, &score));
        }
        const int is_tab = tab_missing && ha_spm_byte(p.piece.text, p.piece.length) == '\t';
        TRY(is_tab ? add_text(l, "\t") : add_token(l, p.piece, score));
    }
    for (size_t i = l->extra_ids; i-- > 0;) {
        char text[32];
        snprintf(text, sizeof(text), "<extra_id_%zu>", i);
        TRY(add_text(l, text));
    }
    if (kind == XLM_ROBERTA) {
        TRY(add_text(l, "<mask>"));
    }
    l->tok->n_model_tokens = l->tok->vocab.n_tokens;
    l->tok->n_model_ids = l->tok->vocab.n_ids;
    return HA_OK;
}

/* ---- merges of a BPE model: every way to cut a piece in two, by the score of the piece, then the lengths of the parts ---- */

typedef struct merge { double score; uint32_t left_chars, right_chars; int32_t left, right, id; } merge;

static int
by_order(const void *a, const void *b)
{
    const merge *x = a, *y = b;
    if (x->score != y->score) {
        return x->score < y->score ? 1 : -1;
    }
    if (x->left_chars != y->left_chars) {
        return x->left_chars < y->left_chars ? 1 : -1;
    }
    if (x->right_chars != y->right_chars) {
        return x->right_chars < y->right_chars ? 1 : -1;
    }
    return (x->id > y->id) - (x->id < y->id);
}

typedef struct merge_list { merge *at; size_t n, capacity; } merge_list;

static ha_status
cut_piece(const loader *l, int32_t id, merge_list *out)
{
    const ha_vocab *vocab = &l->tok->vocab;
    size_t length;
    const char *text = ha_vocab_text(vocab, id, &length);
    if (length > MAX_BPE_PIECE) {
        return ha_fail(l->err, HA_ERR_FORMAT, "piece %d has %zu bytes, more than the %d that BPE pieces may have", (int)id, length, MAX_BPE_PIECE);
    }
    uint32_t n_chars = 0, chars = 0;
    for (size_t i = 0; i < length; i++) {
        n_chars += ((uint8_t)text[i] & 0xC0) != 0x80;
    }
    for (size_t i = 1; i < length; i++) {
        if (((uint8_t)text[i] & 0xC0) == 0x80) {
            continue;
        }
        chars++;
        const int32_t left = ha_vocab_id(vocab, text, i), right = left >= 0 ? ha_vocab_id(vocab, text + i, length - i) : -1;
        if (right < 0) {
            continue;
        }
        if (out->n == out->capacity) {
            const size_t capacity = out->capacity * 2 + 4096;
            merge *at = realloc(out->at, capacity * sizeof(*at));
            if (at == NULL) {
                return ha_fail(l->err, HA_ERR_NOMEM, "out of memory for %zu merges", capacity);
            }
            out->at = at;
            out->capacity = capacity;
        }
        out->at[out->n++] = (merge){l->scores[id], chars, n_chars - chars, left, right, id};
    }
    return HA_OK;
}

static ha_status
add_merges(const loader *l)
{
    merge_list list = {0};
    ha_status status = HA_OK;
    for (size_t id = 0; id < l->tok->n_model_ids && status == HA_OK; id++) {
        status = cut_piece(l, (int32_t)id, &list);
    }
    if (status == HA_OK && list.n > 0) {
        qsort(list.at, list.n, sizeof(*list.at), by_order);
    }
    if (status == HA_OK) {
        status = ha_bpe_reserve(&l->tok->bpe, list.n, l->err);
    }
    for (size_t i = 0; i < list.n && status == HA_OK; i++) {
        ha_bpe_add_merge(&l->tok->bpe, list.at[i].left, list.at[i].right, list.at[i].id);
    }
    free(list.at);
    return status;
}

static ha_status
build_model(loader *l)
{
    ha_tokenizer *tok = l->tok;
    const class_kind kind = l->rules->kind;
    const int falls_back = kind == LLAMA || kind == GEMMA;
    if (l->model->kind == HA_SPM_BPE) {
        const ha_spm_text unk = l->model->unk_piece;
        tok->model_kind = HA_MODEL_BPE;
        tok->bpe.fuse_unk = 1;
        tok->bpe.byte_fallback = falls_back;
        tok->bpe.unk_id = ha_vocab_id(&tok->vocab, unk.text, unk.length);
        if (tok->bpe.unk_id < 0) {
            return ha_fail(l->err, HA_ERR_FORMAT, "trainer_spec: unk_piece '%.*s' is no piece", (int)(unk.length < 80 ? unk.length : 80), unk.text);
        }
        TRY(tok->tables != NULL ? HA_OK : add_merges(l));
        return ha_bpe_read_characters(&tok->bpe, &tok->vocab, tok->n_model_tokens, (ha_affixes){0}, l->err);
    }
    tok->model_kind = HA_MODEL_UNIGRAM;
    tok->unigram.byte_fallback = falls_back;
    tok->unigram.unk_id = kind == XLM_ROBERTA || kind == GEMMA ? 3 : kind == LLAMA ? 0 : l->model->unk_id;
    if (tok->unigram.unk_id < 0 || (size_t)tok->unigram.unk_id >= tok->n_model_ids) {
        return ha_fail(l->err, HA_ERR_FORMAT, "trainer_spec: unk_id is %d, the model has %zu pieces", (int)tok->unigram.unk_id, tok->n_model_ids);
    }
    if (tok->tables != NULL) {
        return HA_OK;
    }
    tok->unigram.scores = l->scores;
    l->scores = NULL;
    return ha_unigram_build(&tok->vocab, &tok->unigram, l->err);
}

/* ---- normalizer, pre-tokenizer, decoder ---- */

static ha_status
get_bool(const loader *l, const char *key, int fallback, int *out)
{
    *out = fallback;
    return l->config != NULL ? ha_json_get_bool(l->config, ha_json_root(l->config), key, fallback, out, l->err) : HA_OK;
}

static ha_status
add_charsmap(const loader *l)
{
    const ha_spm_text map = l->model->normalizer.charsmap;
    ha_charsmap charsmap;
    if (map.length == 0) {
        return HA_OK;
    }
    TRY(ha_charsmap_parse((const uint8_t *)map.text, map.length, &charsmap, l->err));
    return ha_normalizer_add_precompiled(&l->tok->normalizer, charsmap, l->err);
}

static ha_status
add_replace(const loader *l, const char *from, const char *to)
{
    return ha_normalizer_add_replace(&l->tok->normalizer, HA_NORM_TEXT, from, strlen(from), to, strlen(to), l->err);
}

static ha_status
add_normalizer(const loader *l, int legacy, int prefix)
{
    ha_normalizer *norm = &l->tok->normalizer;
    const class_kind kind = l->rules->kind;
    int lower, keep_accents;
    TRY(get_bool(l, "do_lower_case", kind == ALBERT, &lower));
    TRY(get_bool(l, "keep_accents", 0, &keep_accents));
    if (kind == LLAMA || kind == GEMMA) {
        if (kind == LLAMA && legacy && prefix) {
            TRY(ha_normalizer_add_prepend(norm, SPACE, strlen(SPACE), l->err));
        }
        return kind == LLAMA && !legacy ? HA_OK : add_replace(l, " ", SPACE);
    }
    if (kind == ALBERT) {
        TRY(add_replace(l, "``", "\""));
        TRY(add_replace(l, "''", "\""));
        if (!keep_accents) {
            TRY(ha_normalizer_add(norm, HA_NORM_NFKD, l->err));
            TRY(ha_normalizer_add(norm, HA_NORM_STRIP_ACCENTS, l->err));
        }
    }
    if ((kind == ALBERT || kind == DEBERTA_V2) && lower) {
        TRY(ha_normalizer_add(norm, HA_NORM_LOWERCASE, l->err));
    }
    if (kind == DEBERTA_V2) {
        TRY(ha_normalizer_add_strip(norm, 1, 1, l->err));
    }
    TRY(add_charsmap(l));
    const int plain = kind == XLM_ROBERTA || kind == T5;
    if (plain) {
        TRY(ha_normalizer_add_strip(norm, 0, 1, l->err));
    }
    const char *to = plain ? SPACE : " ";
    return ha_normalizer_add_replace(norm, HA_NORM_TWO_SPACES, NULL, 0, to, strlen(to), l->err);
}

static ha_status
add_decoder(const loader *l, const ha_metaspace *metaspace, int prefix)
{
    ha_token_decoder *decoder = &l->tok->decoder;
    if (l->rules->kind != LLAMA && l->rules->kind != GEMMA) {
        return ha_token_decoder_add(decoder, (ha_decoder_step){.kind = HA_DECODER_METASPACE, .metaspace = *metaspace}, l->err);
    }
    return ha_token_decoder_add_fallback(decoder, l->rules->kind == LLAMA && prefix, l->err);
}

static ha_status
add_stages(const loader *l)
{
    const class_kind kind = l->rules->kind;
    ha_metaspace metaspace = {.sign = SPACE, .length = 3, .prepend = HA_PREPEND_ALWAYS, .split = kind != LLAMA};
    int by_punct, legacy = 1, prefix = 1;
    TRY(get_bool(l, "split_by_punct", 0, &by_punct));
    if (kind == LLAMA || kind == T5) {
        const ha_json_node *null = ha_conventions_member(l->config, "add_prefix_space");
        TRY(get_bool(l, "legacy", 1, &legacy));
        TRY(get_bool(l, "add_prefix_space", null == NULL, &prefix));
    }
    metaspace.prepend = !prefix ? HA_PREPEND_NEVER : legacy ? HA_PREPEND_ALWAYS : HA_PREPEND_FIRST;
    TRY(add_normalizer(l, legacy, prefix));
    if (kind == DEBERTA_V2 && by_punct) {
        TRY(ha_pre_tokenizer_add_step(&l->tok->pre, (ha_pre_step){.kind = HA_PRE_PUNCTUATION, .behavior = HA_SPLIT_ISOLATED}, l->err));
    }
    if (kind != GEMMA && !(kind == LLAMA && legacy)) {
        TRY(ha_pre_tokenizer_add_step(&l->tok->pre, (ha_pre_step){.kind = HA_PRE_METASPACE, .metaspace = metaspace}, l->err));
    }
    return add_decoder(l, &metaspace, prefix);
}

/* ---- added tokens and templates ---- */

static ha_status
add_typed_pieces(const loader *l)
{
    for (size_t i = 0; i < l->model->n; i++) {
        const ha_spm_piece p = l->model->pieces[i];
        const int turn = l->rules->kind == GEMMA && ((p.piece.length == 15 && memcmp(p.piece.text, "<start_of_turn>", 15) == 0)
                                                     || (p.piece.length == 13 && memcmp(p.piece.text, "<end_of_turn>", 13) == 0));
        ha_added_token t = {.length = p.piece.length, .special = p.type == HA_SPM_CONTROL || turn};
        if (p.type != HA_SPM_CONTROL && p.type != HA_SPM_USER_DEFINED) {
            continue;
        }
        t.id = ha_vocab_id(&l->tok->vocab, p.piece.text, p.piece.length);
        if (t.id < 0) {
            return ha_fail(l->err, HA_ERR_FORMAT, "piece '%.*s' of type %s has no place in the vocabulary of %s",
                           (int)(p.piece.length < 80 ? p.piece.length : 80), p.piece.text, p.type == HA_SPM_CONTROL ? "CONTROL" : "USER_DEFINED", l->rules->name);
        }
        TRY(ha_added_tokens_add(&l->tok->added, p.piece.text, t, l->err));
    }
    return HA_OK;
}

/* The options that "added_tokens_decoder" has for this text: 1 and *out. */
static int
in_table(const loader *l, ha_spm_text text, ha_added_token *out)
{
    if (ha_conventions_member(l->config, "added_tokens_decoder") == NULL) {
        return 0;
    }
    for (size_t i = 0; i < l->tok->added.n; i++) {
        const ha_added_token *t = &l->tok->added.at[i];
        if (t->length == text.length && memcmp(l->tok->added.text + t->content, text.text, text.length) == 0) {
            *out = *t;
            return 1;
        }
    }
    return 0;
}

/* An added token: its id in the vocabulary, or a new one at the end. One that is there already takes the new options when `replace` says so. */
static ha_status
add_added(ha_tokenizer *tok, const char *text, ha_added_token token, int replace, ha_error *err)
{
    token.id = ha_vocab_id(&tok->vocab, text, token.length);
    for (size_t i = 0; token.id >= 0 && i < tok->added.n; i++) {
        ha_added_token *there = &tok->added.at[i];
        if (there->id == token.id) {
            if (replace) {
                token.content = there->content;
                token.special |= there->special;
                *there = token;
            }
            return HA_OK;
        }
    }
    if (token.id < 0) {
        const ha_status status = ha_vocab_add(&tok->vocab, text, token.length, tok->vocab.n_ids, SIZE_MAX, err);
        if (status != HA_OK) {
            return status;
        }
        token.id = (int32_t)tok->vocab.n_ids - 1;
    }
    return ha_added_tokens_add(&tok->added, text, token, err);
}

static ha_status
add_special(const loader *l, ha_spm_text text, const ha_json_node *node, const ha_json *json, int flags)
{
    ha_added_token t = {.lstrip = (flags & LSTRIP) != 0, .normalized = (flags & NORMALIZED) != 0};
    int own = flags & OWN;
    if (in_table(l, text, &t)) {
        own = 1;
    } else if (node != NULL && node->type == HA_JSON_OBJECT) {
        TRY(ha_written_options((ha_written){json, node, text.text, text.length}, json == l->config, &t, l->err));
        own = 1;
    }
    t.special = 1;
    t.length = text.length;
    return add_added(l->tok, text.text, t, own, l->err);
}

static const ha_json_node *
additional_tokens(const loader *l, const ha_json **json)
{
    *json = ha_conventions_member(l->map, "additional_special_tokens") != NULL ? l->map : l->config;
    return ha_conventions_member(*json, "additional_special_tokens");
}

/* "additional_special_tokens", or T5's own. */
static ha_status
add_additional(const loader *l)
{
    const ha_json *json;
    const ha_json_node *list = additional_tokens(l, &json);
    size_t n_extra = 0;
    for (const ha_json_node *item = ha_json_first(json, list); item != NULL; item = ha_json_next(json, item)) {
        const ha_json_node *content = item->type == HA_JSON_OBJECT ? ha_json_get(json, item, "content") : item;
        if (content == NULL || content->type != HA_JSON_STRING || content->length == 0) {
            return ha_fail(l->err, HA_ERR_FORMAT, "\"additional_special_tokens\" must list texts or objects with \"content\"");
        }
        n_extra += strstr(content->string, "<extra_id_") != NULL;
        TRY(add_special(l, (ha_spm_text){content->string, content->length}, item, json, 0));
    }
    if (n_extra > 0 && l->extra_ids > 0 && n_extra != l->extra_ids) {
        return ha_fail(l->err, HA_ERR_FORMAT, "T5Tokenizer: %zu extra_ids, but %zu in \"additional_special_tokens\"", l->extra_ids, n_extra);
    }
    for (size_t i = 0; n_extra == 0 && i < l->extra_ids; i++) {
        char text[32];
        snprintf(text, sizeof(text), "<extra_id_%zu>", i);
        TRY(add_special(l, (ha_spm_text){text, strlen(text)}, NULL, NULL, 0));
    }
    return HA_OK;
}

static int32_t
id_of(const loader *l, const char *text)
{
    return ha_vocab_id(&l->tok->vocab, text, strlen(text));
}

static ha_status
add_template(const loader *l, const int32_t ids[N_SPECIALS])
{
    static const char *const ends[][2] = {{"[CLS]", "[SEP]"}, {"<s>", "</s>"}, {NULL, "</s>"}, {"[CLS]", "[SEP]"}};
    ha_post_processor *post = &l->tok->post;
    const class_kind kind = l->rules->kind;
    if (kind == LLAMA || kind == GEMMA) {
        int bos, eos;
        TRY(get_bool(l, "add_bos_token", 1, &bos));
        TRY(get_bool(l, "add_eos_token", 0, &eos));
        if ((bos && ids[BOS] < 0) || (eos && ids[EOS] < 0)) {
            return ha_fail(l->err, HA_ERR_FORMAT, "tokenizer_config.json: %s without a token of this kind", bos && ids[BOS] < 0 ? "add_bos_token" : "add_eos_token");
        }
        ha_post_processor_bos_eos(post, bos ? ids[BOS] : -1, eos ? ids[EOS] : -1, 1);
        return HA_OK;
    }
    const int32_t cls = ends[kind][0] != NULL ? id_of(l, ends[kind][0]) : -1, sep = id_of(l, ends[kind][1]);
    if (sep < 0 || (cls < 0 && kind != T5)) {
        return ha_fail(l->err, HA_ERR_FORMAT, "%s: '%s' is not in the vocabulary", l->rules->name, sep < 0 ? ends[kind][1] : ends[kind][0]);
    }
    if (kind == T5) {
        ha_post_processor_bos_eos(post, -1, sep, 0);
    } else {
        ha_post_processor_bert(post, cls, sep, kind == XLM_ROBERTA);
    }
    return HA_OK;
}

/* Whether the configuration names a text as a special token. */
static ha_status
is_named(const loader *l, ha_spm_text text, int *out)
{
    const ha_json_node *node;
    const ha_json *json;
    *out = 0;
    for (int i = 0; i < N_SPECIALS && !*out; i++) {
        ha_spm_text special;
        TRY(special_text(l, (special_kind)i, &special, &node, &json));
        *out = node != NULL && special.length == text.length && memcmp(special.text, text.text, text.length) == 0;
    }
    node = additional_tokens(l, &json);
    for (const ha_json_node *item = ha_json_first(json, node); item != NULL && !*out; item = ha_json_next(json, item)) {
        const ha_json_node *content = item->type == HA_JSON_OBJECT ? ha_json_get(json, item, "content") : item;
        *out = content != NULL && content->type == HA_JSON_STRING && content->length == text.length && memcmp(content->string, text.text, text.length) == 0;
    }
    return HA_OK;
}

/* What "added_tokens_decoder" or, in older folders, added_tokens.json lists. */
static ha_status
add_listed(const loader *l, const ha_listed *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const ha_written w = list[i].w;
        ha_added_token t = {.length = w.length};
        if (w.length == 0) {
            return ha_fail(l->err, HA_ERR_FORMAT, "tokenizer_config.json: an added token without text");
        }
        TRY(ha_listed_check(&list[i], &l->tok->vocab, l->err));
        if (w.node == NULL) {
            TRY(is_named(l, (ha_spm_text){w.text, w.length}, &t.special));
            t.normalized = !t.special;
        }
        TRY(ha_written_options(w, 1, &t, l->err));
        TRY(add_added(l->tok, w.text, t, 1, l->err));
    }
    return HA_OK;
}

static ha_status
add_tokens(const loader *l, const ha_listed *list, size_t n_listed)
{
    int32_t ids[N_SPECIALS];
    const ha_json_node *extra = ha_conventions_member(l->config, "extra_special_tokens");
    if (extra != NULL && extra->type != HA_JSON_NULL && extra->length > 0) {
        return ha_fail(l->err, HA_ERR_FORMAT, "tokenizer_config.json: \"extra_special_tokens\" is not supported");
    }
    TRY(add_typed_pieces(l));
    TRY(add_listed(l, list, n_listed));
    for (int i = 0; i < N_SPECIALS; i++) {
        ha_spm_text text;
        const ha_json_node *node;
        const ha_json *json;
        ids[i] = -1;
        TRY(special_text(l, (special_kind)i, &text, &node, &json));
        if (text.length > 0) {
            TRY(add_special(l, text, node, json, l->rules->specials[i].flags));
            ids[i] = ha_vocab_id(&l->tok->vocab, text.text, text.length);
        }
    }
    TRY(add_additional(l));
    l->tok->pad_id = ids[PAD];
    return add_template(l, ids);
}

/* ---- the file ---- */

static ha_status
convert(loader *l, const ha_conventions *c, const ha_listed *list, size_t n_listed)
{
    ha_tokenizer *tok = l->tok;
    TRY(find_class(l->model, c->config, c->model, &l->rules, l->err));
    if (l->rules->kind == T5) {
        l->extra_ids = 100;
        TRY(c->config == NULL ? HA_OK : ha_json_get_size(c->config, ha_json_root(c->config), "extra_ids", 100, 0, MAX_EXTRA_IDS, &l->extra_ids, l->err));
    }
    if (tok->tables == NULL) {
        l->scores = malloc((l->model->n + l->extra_ids + 8) * sizeof(*l->scores));
        TRY(l->scores != NULL ? add_pieces(l) : ha_fail(l->err, HA_ERR_NOMEM, "out of memory for %zu pieces", l->model->n));
    }
    TRY(build_model(l));
    if (tok->tables != NULL && tok->tables_kind != (int)tok->model_kind) {
        return ha_fail(l->err, HA_ERR_FORMAT, "the tables of another model");
    }
    TRY(add_stages(l));
    return add_tokens(l, list, n_listed);
}

static ha_status
load_converted(ha_tokenizer *tok, const ha_spm_model *model, const ha_conventions *c, ha_error *err)
{
    loader l = {.tok = tok, .model = model, .config = c->config, .map = c->map, .err = err};
    ha_listed *list = NULL;
    size_t n_listed = 0;
    ha_status status = ha_conventions_listed(c, &list, &n_listed, err);
    if (status == HA_OK) {
        status = convert(&l, c, list, n_listed);
    }
    free(l.scores);
    free(list);
    return status;
}

/* sentencepiece's own ids: the pieces as they are, no template. */
static ha_status
load_own(ha_tokenizer *tok, const ha_spm_model *model, ha_error *err)
{
    for (size_t i = 0; i < model->n; i++) {
        const ha_spm_text text = model->pieces[i].piece;
        if (ha_vocab_id(&tok->vocab, text.text, text.length) >= 0) {
            return ha_fail(err, HA_ERR_FORMAT, "piece '%.*s' stands twice", (int)(text.length < 80 ? text.length : 80), text.text);
        }
        TRY(ha_vocab_add(&tok->vocab, text.text, text.length, i, SIZE_MAX, err));
    }
    tok->n_model_tokens = tok->vocab.n_tokens;
    tok->n_model_ids = tok->vocab.n_ids;
    tok->model_kind = HA_MODEL_SENTENCEPIECE;
    ha_post_processor_none(&tok->post);
    TRY(ha_token_decoder_add_fallback(&tok->decoder, 0, err));
    return ha_sentencepiece_build(&tok->sentencepiece, model, &tok->vocab, err);
}

/* The file of tables: named by the model and by what says how it is converted. */
static ha_status
cache_path(const char *folder, const ha_map_file *file, const ha_conventions *c, char **out, ha_error *err)
{
    static const char format[] = "sentencepiece, converted 1";
    uint8_t source[sizeof(format) + 32 * 5] = {0};
    memcpy(source, format, sizeof(format));
    ha_sha256(file->data, file->size, source + sizeof(format));
    memcpy(source + sizeof(format) + 32, c->digests, sizeof(c->digests));
    return ha_tables_path(folder, source, sizeof(source), out, err);
}

static ha_status
load_parsed(ha_tokenizer *tok, const ha_spm_model *model, const ha_conventions *c, ha_error *err)
{
    TRY(c == NULL ? load_own(tok, model, err) : load_converted(tok, model, c, err));
    return ha_tokenizer_finish(tok, err);
}

/* The tables of the model from the cache, else from the model, and then into it. */
static ha_status
load_cached(ha_tokenizer *tok, const ha_spm_model *model, const ha_conventions *c, const char *cache, ha_error *err)
{
    ha_status status = ha_tables_read(cache, tok, NULL, 0, &tok->cache_note);
    if (status == HA_OK) {
        status = load_parsed(tok, model, c, err);
        if (status == HA_OK) {
            return HA_OK;
        }
        ha_tokenizer_clear(tok);        /* tables that are sound and yet not this model's: as if there were none */
        ha_fail(&tok->cache_note, HA_ERR_FORMAT, "%.200s: not used: %.250s", cache, err->message);
    } else if (status == HA_ERR_IO) {
        tok->cache_note.message[0] = '\0';
    }
    TRY(load_parsed(tok, model, c, err));
    ha_tables_write(cache, tok, NULL, 0, &tok->cache_note);
    return HA_OK;
}

static ha_status
load(ha_tokenizer *tok, const char *path, int own, ha_error *err)
{
    ha_map_file file;
    ha_spm_model model = {0};
    ha_conventions conventions = {0};
    ha_error cause;
    char *cache = NULL;
    ha_status status = ha_map_file_open(path, &file, err);
    if (status != HA_OK) {
        return status;
    }
    status = ha_spm_model_parse(file.data, file.size, &model, &cause);
    if (status == HA_OK && !own) {
        status = ha_conventions_open(path, &conventions, &cause);
    }
    if (status == HA_OK && !own && tok->cache_folder != NULL && file.size >= HA_TABLES_MIN_SOURCE) {
        status = cache_path(tok->cache_folder, &file, &conventions, &cache, &cause);
    }
    if (status == HA_OK) {
        const ha_conventions *c = own ? NULL : &conventions;
        status = cache != NULL ? load_cached(tok, &model, c, cache, &cause) : load_parsed(tok, &model, c, &cause);
    }
    if (status != HA_OK) {
        ha_fail(err, status, "%.200s: %.300s", path, cause.message);
    }
    free(cache);
    ha_conventions_close(&conventions);
    ha_spm_model_free(&model);
    ha_map_file_close(&file);
    return status;
}

ha_status
ha_tokenizer_load_spm(ha_tokenizer *tok, const char *path, ha_error *err)
{
    return load(tok, path, 0, err);
}

ha_status
ha_tokenizer_load_spm_own(ha_tokenizer *tok, const char *path, ha_error *err)
{
    return load(tok, path, 1, err);
}
