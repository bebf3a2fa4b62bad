/* Whether to stop in the middle of a text: asked now and then by loops over what may be hundreds of megabytes. */
#ifndef HARMAUG_TOKENIZER_PULSE_H
#define HARMAUG_TOKENIZER_PULSE_H

#include <stdatomic.h>
#include <stddef.h>

#include "core/status.h"

enum { HA_BEAT = 1 << 16 };         /* units of work, a byte or a merge each, between two looks */

typedef struct ha_pulse {
    atomic_int *stop;               /* of all threads */
    int (*tick)(void *arg, size_t texts_done);      /* NULL: not this thread's to ask */
    void *tick_arg;
    size_t texts_done, work;
} ha_pulse;

/* Asks; NULL: never stops. */
static inline int
ha_pulse_stops(ha_pulse *pulse)
{
    if (pulse == NULL) {
        return 0;
    }
    if (pulse->tick != NULL && !*pulse->stop && pulse->tick(pulse->tick_arg, pulse->texts_done)) {
        *pulse->stop = 1;
    }
    return *pulse->stop;
}

/* Asks when enough work was done since: HA_ERR_VALUE to stop. */
static inline ha_status
ha_pulse_beat(ha_pulse *pulse, size_t work, ha_error *err)
{
    if (pulse == NULL || (pulse->work += work) < HA_BEAT) {
        return HA_OK;
    }
    pulse->work = 0;
    return ha_pulse_stops(pulse) ? ha_fail(err, HA_ERR_VALUE, "interrupted") : HA_OK;
}

#endif
