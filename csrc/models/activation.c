#include "models/activation.h"

#include <string.h>

ha_status
ha_activation_named(const char *path, const char *key, const char *name, ha_activation *out, ha_error *err)
{
    static const struct { const char *name; ha_activation value; } known[] = {
        {"gelu", HA_ACT_GELU}, {"gelu_python", HA_ACT_GELU}, {"gelu_new", HA_ACT_GELU_TANH}, {"gelu_fast", HA_ACT_GELU_TANH},
        {"gelu_pytorch_tanh", HA_ACT_GELU_TANH}, {"relu", HA_ACT_RELU}, {"silu", HA_ACT_SILU}, {"swish", HA_ACT_SILU}, {"tanh", HA_ACT_TANH},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i].name) == 0) {
            *out = known[i].value;
            return HA_OK;
        }
    }
    return ha_fail(err, HA_ERR_FORMAT, "%.300s: %s '%.60s' is not supported (supported: gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu, tanh)",
                   path, key, name);
}
