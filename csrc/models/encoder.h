/* A bidirectional encoder with a sequence classification head: the student, and any guard of its kind.
 *
 * Two forms of one model. ha_encoder_params holds every weight in one float32 block, in the order of the checkpoint's names: what training
 * updates and what is saved. ha_encoder is the immutable inference form: packed weights, word embedding rows read from the mapping.
 * Batches are ragged: rows stand back to back without padding, so a row's logits cannot depend on its neighbours. */
#ifndef HARMAUG_MODELS_ENCODER_H
#define HARMAUG_MODELS_ENCODER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "kernels/kernels.h"

#define HA_MAX_LAYERS 512
#define HA_MAX_TOKENS 65536     /* of a row, where the architecture has no limit of its own: bounds what one call allocates */

typedef enum ha_encoder_family {
    HA_BERT, HA_ROBERTA, HA_ELECTRA, HA_DISTILBERT, HA_DEBERTA_V2, HA_MODERNBERT,
    HA_N_FAMILIES
} ha_encoder_family;

/* From config.json, names as there. The family tells the tensors' names; what is computed follows from the rest. */
typedef struct ha_encoder_config {
    char model_type[32];            /* "bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2", "modernbert" */
    const char *architecture;       /* transformers' class: "BertForSequenceClassification" */
    ha_encoder_family family;
    size_t vocab_size, embedding_size, hidden_size, n_layers, n_heads, head_dim, intermediate_size;
    size_t max_position_embeddings, type_vocab_size, num_labels;
    size_t max_tokens;              /* of a row: what the table of positions holds, HA_MAX_TOKENS without a table */
    float layer_norm_eps;
    ha_activation hidden_act, head_act;

    int quantized;                  /* its weights may be stored in rows of 8 or 4 bits (kernels/quantize.h): quantization_config */
    int absolute_positions;         /* a table of max_position_embeddings rows is added to the words */
    int32_t pad_id;                 /* RoBERTa: positions count from pad_id + 1, and tokens of this id stand at pad_id; -1: from 0 */
    int32_t padding_id;             /* pad_token_id: its word embedding, and with RoBERTa its position's, is not trained; -1: none */
    int project_first;              /* where embedding_size != hidden_size: the projection comes before the normalisation, and has no bias */
    int pre_norm;                   /* blocks normalise their input, not their output; a last normalisation follows the layers */
    int gated;                      /* feed forward: act(first half) * second half */
    int norm_bias, attention_bias, mlp_bias, head_bias;
    int head_norm;                  /* between the head's activation and the classifier */
    int mean_pooling;               /* the head reads the mean over the tokens, not the first token */
    int drop_head_input;            /* dropout before the head's first Linear too (RoBERTa, ELECTRA) */

    /* disentangled attention (He et al. 2021, arXiv 2006.03654 and 2111.09543) */
    size_t relative_span;           /* distances -span .. span - 1 have a row in the table of relative embeddings; 0: no such table */
    size_t position_buckets;        /* 0: a row for each distance */
    size_t max_relative_positions;
    int c2p, p2c, share_att_key, norm_rel_ebd;
    size_t conv_kernel_size, conv_groups;   /* 0: no convolution beside the first layer */
    ha_activation conv_act;

    /* rotary positions (Su et al. 2021, arXiv 2104.09864) and windows (Warner et al. 2024, arXiv 2412.13663) */
    double rope_theta[2];           /* of layers that see all tokens, of windowed ones; 0: positions are not rotary */
    size_t window;                  /* a token of a windowed layer sees those at most this far away */
    uint8_t windowed[HA_MAX_LAYERS];
} ha_encoder_config;

typedef struct ha_param {
    char name[96];                  /* as in a checkpoint of transformers' ...ForSequenceClassification: "bert.encoder.layer.0.…" */
    int ndim;
    size_t shape[3];                /* 1 past ndim */
    size_t offset, size;            /* elements within the block; size 0: this model has no such parameter */
} ha_param;

typedef struct ha_encoder_params {
    ha_encoder_config config;
    size_t count;
    ha_param *items;                /* by index of encoder_layout.h, those of size 0 included */
    size_t total;                   /* elements of the block */
    float *data;                    /* (total,) */
} ha_encoder_params;

/* A ragged batch. Row i is ids[offsets[i] .. offsets[i + 1]), 1 <= length <= max_tokens; type_ids NULL: all 0; a model
 * without token types does not read them. */
typedef struct ha_batch {
    size_t n_rows;
    const int64_t *offsets;         /* (n_rows + 1,), offsets[0] == 0 */
    const int32_t *ids;
    const uint8_t *type_ids;
} ha_batch;

/* Reads and checks config.json of a folder. An architecture or activation this library does not honour is HA_ERR_FORMAT by name. */
ha_status ha_encoder_config_read(const char *folder, ha_encoder_config *out, ha_error *err);

/* Reads a folder's weights. Names may lack the prefix, "bert." or another (a bare BertModel). layers (n_kept) picks encoder layers to keep, in that order (NULL: all).
 * new_head == 0: the classification head must be in the file. Otherwise the head is made new with num_labels = new_head: weights normal(0, 0.02)
 * drawn from `seed`, bias 0 (a pooler is taken from the file, or made likewise when it is absent). Missing, misshapen and unexpected
 * tensors are HA_ERR_FORMAT by name ("*.position_ids" and the tensors of pretraining heads are known and ignored). */
ha_status ha_encoder_params_read(const char *folder, const size_t *layers, size_t n_kept, size_t new_head, uint64_t seed,
                                 ha_encoder_params **out, ha_error *err);
ha_status ha_encoder_params_copy(const ha_encoder_params *params, ha_encoder_params **out, ha_error *err);
const ha_param *ha_encoder_params_find(const ha_encoder_params *params, const char *name);   /* NULL: none */
/* Writes model.safetensors (atomically); dtype of io/tensor_file.h as int: HA_F32, HA_F16; HA_BF16 and HA_I8 store what an encoder of that format has in it,
 * and the rest in float32, so that it gives the same logits again. HA_I8: rows of kernels/quantize.h, in a tensor of the weight's name and of shape (rows, bytes of a row);
 * words_in_4_bits: those of the word embeddings hold 4 bits an element. config.json has to say so, see ha_encoder_config.quantized. */
ha_status ha_encoder_params_write(const ha_encoder_params *params, const char *path, int dtype, int words_in_4_bits, ha_error *err);
void ha_encoder_params_free(ha_encoder_params *params);

/* -- inference -- */

typedef struct ha_encoder ha_encoder;

/* The storage that a dtype's name stands for; HA_ERR_VALUE names those that there are. */
ha_status ha_weight_format_named(const char *dtype, ha_weight_format *out, ha_error *err);
const char *ha_weight_format_name(ha_weight_format format);

ha_status ha_encoder_open(const char *folder, ha_weight_format format, ha_encoder **out, ha_error *err);
ha_status ha_encoder_from_params(const ha_encoder_params *params, ha_weight_format format, ha_encoder **out, ha_error *err);   /* copies what it needs */
/* The same through a cache folder, which exists: weights packed before are mapped, others are left there for the next time. note: why a file was not used or
 * could not be written, or "". Nothing else about the cache is an error. */
ha_status ha_encoder_open_cached(const char *folder, ha_weight_format format, const char *cache_folder, ha_encoder **out, ha_error *note, ha_error *err);
void ha_encoder_free(ha_encoder *encoder);
const ha_encoder_config *ha_encoder_config_of(const ha_encoder *encoder);
/* logits (n_rows, num_labels). Thread-safe: all run state is local to the call. HA_ERR_VALUE names a row that is empty, too long, or holds an id outside the vocabulary. */
ha_status ha_encoder_logits(const ha_encoder *encoder, const ha_batch *batch, float *logits, int n_threads, ha_error *err);

/* -- training: forward keeps activations on a tape, backward reads them. Deterministic, bit for bit, on any thread count -- */

typedef struct ha_tape ha_tape;     /* one arena, grown to the largest batch seen and reused */

/* Probabilities, in [0, 1); 0: off. They act where transformers' model of the family has its dropout layers: `hidden` on embeddings, relative positions,
 * what attention and feed forward add (DistilBERT: feed forward alone; ModernBERT: within it); `attention` on probabilities (ModernBERT: on attention's
 * output too); `classifier` in the head. Masks are drawn by counter from (seed, step, place). */
typedef struct ha_dropouts {
    float hidden, attention, classifier;
} ha_dropouts;

/* bf16: the operands of every Linear and of the convolution are rounded to bfloat16, in the forward pass and for both gradients, and their products summed
 * in float32 (see ha_gemm), after Kalamkar et al. 2019 (arXiv 1905.12322); everything else, what is passed on between them, the products within
 * attention, LayerNorm, softmax and the sums of bias gradients, stays float32. NULL: out of memory. */
ha_tape *ha_tape_new(int bf16);
void ha_tape_free(ha_tape *tape);
/* logits (n_rows, num_labels). */
ha_status ha_encoder_train_forward(const ha_encoder_params *params, const ha_batch *batch, const ha_dropouts *dropout, uint64_t seed, uint64_t step,
                                   ha_tape *tape, float *logits, int n_threads, ha_error *err);
/* Adds d loss / d params to grads (params->total,) given dlogits (n_rows, num_labels). The same params, batch and tape as the forward call before it.
 * wanted (params->count,): the gradients of the others need not be added, and mostly are not computed; NULL: all.
 * word_rows (vocab_size,) bytes: set to 1 for each word embedding row that the batch touches, or NULL. */
ha_status ha_encoder_train_backward(const ha_encoder_params *params, const ha_batch *batch, ha_tape *tape, const float *dlogits,
                                    float *grads, const uint8_t *wanted, uint8_t *word_rows, int n_threads, ha_error *err);

#endif
