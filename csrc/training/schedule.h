/* Learning-rate schedules: a factor per optimizer step, as transformers' get_linear_schedule_with_warmup and its
 * constant and cosine kin compute it. */
#ifndef HARMAUG_TRAINING_SCHEDULE_H
#define HARMAUG_TRAINING_SCHEDULE_H

#include <stdint.h>

typedef enum ha_schedule { HA_SCHEDULE_CONSTANT, HA_SCHEDULE_LINEAR, HA_SCHEDULE_COSINE } ha_schedule;

/* Factor of the learning rate for the update with 0-based index `step` of `total`: step / warmup while step < warmup
 * (the very first update of a warmed-up run has factor 0, as there), then 1, or a straight line or half a cosine down
 * to 0 at `total`. */
double ha_schedule_factor(ha_schedule schedule, uint64_t step, uint64_t warmup, uint64_t total);

#endif
