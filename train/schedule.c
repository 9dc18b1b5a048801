#include "train/schedule.h"

#include "model/dms.h"

dms_stage dms_schedule_at(const dms_schedule *schedule, int64_t step)
{
    if (step < schedule->fade_steps)
        return (dms_stage){
            .fading = true, .keep = dms_fade_keep(step, schedule->fade_steps), .cr = 1};
    const double way = (double)(step - schedule->fade_steps) / (double)schedule->ramp_steps;
    const double cr = 1 + (schedule->cr - 1) * (way < 1 ? way : 1);
    return (dms_stage){.cr = cr, .target = (float)(1 - 1 / cr)};
}
