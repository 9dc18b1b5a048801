/* What each optimiser step asks for: the fade first, then a rising compression ratio. */
#ifndef DMS_SCHEDULE_H
#define DMS_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int64_t steps, fade_steps, ramp_steps;
    double cr; /* the ratio at the end of the ramp */
} dms_schedule;

typedef struct {
    bool fading;  /* stage 1: distillation alone, nothing is evicted */
    float keep;   /* factor of the borrowed channel */
    double cr;    /* CR(s) = 1 + (cr - 1)*min(1, s/ramp), s from the end of the fade */
    float target; /* 1 - 1/CR: fraction of tokens to evict */
} dms_stage;

/* method.md section 3. step: 0 for the first. */
dms_stage dms_schedule_at(const dms_schedule *schedule, int64_t step);

#endif
