/* Training of an encoder: loss, gradients over micro-batches, clipping by the global norm, AdamW.
 *
 * One step reads and writes each trainable weight once: the norm is taken over the gradients, then update and zeroing
 * of the gradient happen together, chunk by chunk while it is in cache. Most of a small guard is word embedding, and
 * most of its rows are in no batch: a row that no batch has touched yet has no gradient and no moments, so of AdamW
 * only its weight decay is left. It is put off until a batch holds the word, or ha_trainer_settle() is called, and then
 * made up factor by factor: weights equal those of the dense update, bit for bit. From its first batch on a row is
 * updated at each step, for its moments go on moving it.
 *
 * Deterministic: sums are taken per chunk and added in order, so that weights do not depend on the thread count, bit
 * for bit. */
#ifndef HARMAUG_TRAINING_TRAINER_H
#define HARMAUG_TRAINING_TRAINER_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "models/encoder.h"
#include "training/loss.h"

typedef struct ha_trainer_config {
    ha_loss_config loss;            /* num_labels is taken from the model */
    double beta1, beta2, eps;       /* torch's defaults: 0.9, 0.999, 1e-8 */
    double weight_decay;            /* of matrices, not of biases and LayerNorm (every 1-D parameter) */
    double clip_norm;               /* largest global gradient norm; 0: no clipping */
    int bf16;                       /* products of bfloat16, see ha_tape_new(); weights, gradients and moments are float32 */
    ha_dropouts dropout;
    uint64_t seed;                  /* of dropout masks and of LoRA's A */
    double layer_decay;             /* in (0, 1]: the learning rate of what stands d levels below the head (the last layer 1,
                                     * the embeddings n_layers + 1) is multiplied by layer_decay^d */
    size_t micro_tokens;            /* a step's rows are worked on in groups of about so many tokens; 0: all at once */
    int n_threads;                  /* <= 0: the library default */
    const char *const *frozen;      /* patterns of parameter names that are not trained; '*' stands for any text */
    size_t n_frozen;
    size_t lora_rank;               /* 0: no LoRA */
    float lora_alpha;
    const char *const *lora_targets;    /* module names, see ha_lora_matches */
    size_t n_lora_targets;
} ha_trainer_config;

typedef struct ha_step {
    double loss;                    /* weighted mean over the step's rows, before the update */
    double grad_norm;               /* before clipping */
    size_t n_tokens;
} ha_step;

typedef struct ha_trainer ha_trainer;

/* Trains `params` in place. params is borrowed and must outlive the trainer; nobody else writes it meanwhile, and
 * who reads it calls ha_trainer_settle() first. The configuration is copied. HA_ERR_VALUE: a value out of range, a
 * frozen pattern that matches nothing, nothing left to train. */
ha_status ha_trainer_new(ha_encoder_params *params, const ha_trainer_config *config, ha_trainer **out, ha_error *err);
void ha_trainer_free(ha_trainer *trainer);

/* One optimizer step over a batch. A failed step leaves weights and moments as they were: HA_ERR_VALUE for a loss or
 * gradient that is not finite (with the step's number), for a bad row, or for lr < 0. */
ha_status ha_trainer_step(ha_trainer *trainer, const ha_batch *batch, const ha_targets *targets, double lr,
                          ha_step *out, ha_error *err);

/* Brings every weight up to date: the rows of words that no batch held have decay outstanding. Saving does it too. */
void ha_trainer_settle(ha_trainer *trainer);

uint64_t ha_trainer_steps(const ha_trainer *trainer);       /* steps made */
size_t ha_trainer_trainable(const ha_trainer *trainer);     /* trained numbers */

/* Everything but the frozen weights and the step count, as safetensors (float32; "w.", "m." and "v." before each
 * trained parameter's name), atomically. A new trainer of the same configuration on the same initial parameters goes on
 * from there as if it had never stopped. With moments == 0 only the trained weights are written and read: enough to go
 * back to the best step. load: HA_ERR_FORMAT when the file does not fit; the trainer is then spoilt. */
ha_status ha_trainer_save(ha_trainer *trainer, const char *path, int moments, ha_error *err);
ha_status ha_trainer_load(ha_trainer *trainer, const char *path, uint64_t steps, int moments, ha_error *err);

/* Writes what was trained as a PEFT adapter's tensors: "base_model.model.<module>.lora_A.weight" and lora_B, and every
 * other trained parameter whole (the bias of an adapted module as "<module>.base_layer.bias"). dtype: HA_F32 or HA_F16
 * of io/tensor_file.h. HA_ERR_VALUE without LoRA. */
ha_status ha_trainer_save_adapter(ha_trainer *trainer, const char *path, int dtype, ha_error *err);

#endif
