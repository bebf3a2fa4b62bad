/* Activations under the names that config.json gives them. */
#ifndef HARMAUG_MODELS_ACTIVATION_H
#define HARMAUG_MODELS_ACTIVATION_H

#include "core/status.h"
#include "kernels/kernels.h"

/* transformers' ACT2FN (activations.py). HA_ERR_FORMAT naming `path`, `key` and the name. */
ha_status ha_activation_named(const char *path, const char *key, const char *name, ha_activation *out, ha_error *err);

#endif
