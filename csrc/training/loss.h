/* The loss of distillation (Lee et al. 2025, arXiv 2410.01524, section 3): for each row
 *     ce_weight * CE(hard label) + kl_weight * T^2 * KL(soft label at T || student at T).
 *
 * Everything is a function of the margin d = logit(unsafe) - logit(safe), for softmax over two labels is sigmoid(d);
 * a model of one label gives d itself.
 *     CE = -log sigmoid(+-d),   KL = q log(q / s) + (1 - q) log((1 - q) / (1 - s)),   s = sigmoid(d / T),
 * q the teacher's P(unsafe). At T != 1 both sides are softened and the term is scaled by T^2, which keeps its
 * gradient's size (Hinton et al. 2015, arXiv 1503.02531, section 2); T = 1 is the paper's setting. */
#ifndef HARMAUG_TRAINING_LOSS_H
#define HARMAUG_TRAINING_LOSS_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct ha_loss_config {
    double ce_weight, kl_weight;    /* >= 0, not both 0 */
    double temperature;             /* > 0 */
    size_t num_labels;              /* 1 or 2 */
    size_t unsafe_index;            /* of 2 labels: which one is unsafe; 0 for 1 label */
} ha_loss_config;

/* What n rows shall learn. A row may lack one of the two labels: the term that is left then carries the weight of both,
 * ce_weight + kl_weight, unless its own weight is 0: such a row adds nothing to the loss. */
typedef struct ha_targets {
    const int8_t *hard;             /* (n,): 0 safe, 1 unsafe, -1 none; NULL: no row has one */
    const float *soft;              /* (n,): P(unsafe) in [0, 1], NaN none; NULL: no row has one */
    const float *weight;            /* (n,): >= 0; NULL: 1 for each */
} ha_targets;

/* HA_ERR_VALUE for a configuration that is out of range. */
ha_status ha_loss_config_check(const ha_loss_config *config, ha_error *err);
/* HA_ERR_VALUE names the first row whose target is out of range; *total: the sum of the weights, which must be > 0. */
ha_status ha_targets_check(const ha_targets *targets, size_t n, double *total, ha_error *err);

/* Sum over rows of weight * loss, multiplied by scale (1 / total: the mean). logits, dlogits (n, num_labels);
 * dlogits is written: d (returned value) / d logits. Computed in float64. */
double ha_distill_loss(const ha_loss_config *config, const ha_targets *targets, size_t n, const float *logits,
                       double scale, float *dlogits);

#endif
