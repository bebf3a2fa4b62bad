/* Shared by trainer.c (steps) and trainer_state.c (files): the trainer's inside. */
#ifndef HARMAUG_TRAINING_TRAINER_IMPL_H
#define HARMAUG_TRAINING_TRAINER_IMPL_H

#include "training/lora.h"
#include "training/trainer.h"

#define HA_OWED 512

/* A piece of one parameter, or of the LoRA factors; of the word embedding it is whole rows. */
typedef struct chunk {
    int lora, trained, word;
    int cleared;            /* its gradient is added to by each part of a step; that of the LoRA factors is written anew */
    float decay, lr_scale;
    size_t offset, size;
} chunk;

typedef struct update {
    float lr, beta1, beta2, eps, correction1, correction2, grad_scale;
} update;

struct ha_trainer {
    ha_encoder_params *params;      /* borrowed */
    ha_trainer_config config;
    const ha_kernels *kernels;
    const ha_param *word;           /* the word embedding */
    uint8_t *trainable, *wanted;    /* (params->count,); wanted: their gradients, those of the matrices that LoRA adapts too */
    size_t n_trainable;
    float *grads, *m, *v;           /* (params->total,); grads are 0 between steps */
    uint8_t *touched, *seen;        /* (vocab_size,): by this step's rows; by any step's */
    float owed[HA_OWED];            /* factors by which the rows that are not `seen` have yet to be multiplied */
    size_t n_owed;
    ha_lora *lora;                  /* NULL: none */
    float *lora_m, *lora_v;
    chunk *chunks;
    double *partials;               /* (n_chunks,) */
    size_t n_chunks;
    ha_tape *tape;
    int64_t *offsets;               /* of a micro-batch */
    float *logits;                  /* (2, capacity, num_labels): logits, then their gradient */
    size_t capacity;
    uint64_t steps;
};

#endif
