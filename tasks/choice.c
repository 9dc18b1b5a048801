#include "tasks/choice.h"

#include <inttypes.h>
#include <math.h>

dms_status dms_choice_pick(int64_t *best, const double *log_likelihood, const int64_t *length,
                           int64_t n)
{
    double most = 0;
    if (n < 1)
        return dms_fail(DMS_ERR_ARG, "there are %" PRId64 " choices, expected one at least", n);
    for (int64_t i = 0; i < n; i++) {
        const double value = length ? log_likelihood[i] / (double)length[i] : log_likelihood[i];
        if (isnan(value))
            return dms_fail(DMS_ERR_NUMBER, "the log-likelihood of choice %" PRId64 " is NaN", i);
        if (i == 0 || value > most) {
            most = value;
            *best = i;
        }
    }
    return DMS_OK;
}

size_t dms_choice_context(dms_span context)
{
    return dms_span_strip_end(context).n;
}
