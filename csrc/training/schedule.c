#include "training/schedule.h"

#include <math.h>

double
ha_schedule_factor(ha_schedule schedule, uint64_t step, uint64_t warmup, uint64_t total)
{
    if (step < warmup) {
        return (double)step / (double)warmup;
    }
    if (schedule == HA_SCHEDULE_CONSTANT) {
        return 1;
    }
    const double span = total > warmup ? (double)(total - warmup) : 1;
    const double left = step < total ? (double)(total - step) / span : 0;
    return schedule == HA_SCHEDULE_LINEAR ? left : 0.5 * (1 + cos(3.14159265358979323846 * (1 - left)));
}
