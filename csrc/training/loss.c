#include "training/loss.h"

#include <math.h>

/* log(1 + exp(x)) without overflow: -log sigmoid(-x). */
static double
softplus(double x)
{
    return (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
}

static double
sigmoid(double x)
{
    const double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

ha_status
ha_loss_config_check(const ha_loss_config *config, ha_error *err)
{
    if (!(config->ce_weight >= 0 && config->kl_weight >= 0 && config->ce_weight + config->kl_weight > 0 &&
          isfinite(config->ce_weight + config->kl_weight))) {
        return ha_fail(err, HA_ERR_VALUE,
                       "loss: ce_weight and kl_weight must be finite, >= 0 and not both 0, got %g and %g",
                       config->ce_weight, config->kl_weight);
    }
    if (!(config->temperature > 0 && isfinite(config->temperature))) {
        return ha_fail(err, HA_ERR_VALUE, "loss: temperature must be > 0, got %g", config->temperature);
    }
    if (config->num_labels < 1 || config->num_labels > 2 || config->unsafe_index >= config->num_labels) {
        return ha_fail(err, HA_ERR_VALUE,
                       "loss: a guard with 1 or 2 labels can be trained, got %zu labels with unsafe at index %zu",
                       config->num_labels, config->unsafe_index);
    }
    return HA_OK;
}

ha_status
ha_targets_check(const ha_targets *targets, size_t n, double *total, ha_error *err)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const int hard = targets->hard != NULL ? targets->hard[i] : -1;
        const float soft = targets->soft != NULL ? targets->soft[i] : NAN;
        const float weight = targets->weight != NULL ? targets->weight[i] : 1.0f;
        if (hard < -1 || hard > 1) {
            return ha_fail(err, HA_ERR_VALUE, "row %zu: hard label must be 0, 1 or -1 for none, got %d", i, hard);
        }
        if (!isnan(soft) && !(soft >= 0 && soft <= 1)) {
            return ha_fail(err, HA_ERR_VALUE, "row %zu: soft label must be in [0, 1], or NaN for none, got %g", i,
                           (double)soft);
        }
        if (hard < 0 && isnan(soft)) {
            return ha_fail(err, HA_ERR_VALUE, "row %zu: has neither a hard nor a soft label", i);
        }
        if (!(weight >= 0 && isfinite(weight))) {
            return ha_fail(err, HA_ERR_VALUE, "row %zu: weight must be finite and >= 0, got %g", i, (double)weight);
        }
        sum += weight;
    }
    if (!(sum > 0)) {
        return ha_fail(err, HA_ERR_VALUE, "the weights of %zu rows sum to 0", n);
    }
    *total = sum;
    return HA_OK;
}

/* T^2 KL of one row and its derivative by d. */
static double
kl_term(double q, double d, double temperature, double *grad)
{
    if (temperature != 1 && q > 0 && q < 1) {
        q = sigmoid(log(q / (1 - q)) / temperature);
    }
    const double x = d / temperature;
    *grad = temperature * (sigmoid(x) - q);
    const double entropy = (q > 0 ? q * log(q) : 0) + (q < 1 ? (1 - q) * log1p(-q) : 0);
    return temperature * temperature * (entropy + q * softplus(-x) + (1 - q) * softplus(x));
}

static double
row_loss(const ha_loss_config *config, int hard, double soft, double d, double *grad)
{
    const int has_soft = !isnan(soft), has_hard = hard >= 0;
    double ce_weight = has_hard ? config->ce_weight : 0, kl_weight = has_soft ? config->kl_weight : 0;
    if (!has_hard && kl_weight > 0) {
        kl_weight += config->ce_weight;
    }
    if (!has_soft && ce_weight > 0) {
        ce_weight += config->kl_weight;
    }
    double loss = 0;
    *grad = 0;
    if (ce_weight > 0) {
        loss += ce_weight * softplus(hard ? -d : d);
        *grad += ce_weight * (sigmoid(d) - hard);
    }
    if (kl_weight > 0) {
        double g;
        loss += kl_weight * kl_term(soft, d, config->temperature, &g);
        *grad += kl_weight * g;
    }
    return loss;
}

double
ha_distill_loss(const ha_loss_config *config, const ha_targets *targets, size_t n, const float *logits, double scale,
                float *dlogits)
{
    const size_t labels = config->num_labels, unsafe = config->unsafe_index;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const float *z = logits + i * labels;
        const double d = labels == 1 ? z[0] : (double)z[unsafe] - z[1 - unsafe];
        const double weight = scale * (targets->weight != NULL ? targets->weight[i] : 1.0f);
        double grad;
        sum += weight * row_loss(config, targets->hard != NULL ? targets->hard[i] : -1,
                                 targets->soft != NULL ? targets->soft[i] : NAN, d, &grad);
        dlogits[i * labels + unsafe] = (float)(weight * grad);
        if (labels == 2) {
            dlogits[i * labels + 1 - unsafe] = (float)(-weight * grad);
        }
    }
    return sum;
}
