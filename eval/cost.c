#include "eval/cost.h"

#include <time.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double dms_cost_read_ratio(const dms_run_cost *c)
{
    return c->dense_reads ? (double)c->kv_reads / (double)c->dense_reads : 1;
}

double dms_cost_total_read_ratio(const dms_run_cost *c)
{
    const double reads = (double)c->kv_reads + (double)c->bound_reads;
    return c->dense_reads ? reads / (double)c->dense_reads : 1;
}

double dms_cost_peak_ratio(const dms_run_cost *c)
{
    return c->dense_peak_tokens > 0 ? c->kv_peak_tokens / c->dense_peak_tokens : 1;
}

dms_status dms_cost_begin(double *start_s, dms_session *session)
{
    *start_s = now_s();
    return dms_cache_reset_peak(dms_session_cache(session));
}

static double greater(double a, double b)
{
    return a > b ? a : b;
}

dms_status dms_cost_end(dms_run_cost *c, double start_s, dms_session *session, bool decode)
{
    const dms_paged *paged = dms_cache_paged(dms_session_cache(session));
    dms_cache_stats stats;
    DMS_TRY(dms_cache_measure(&stats, dms_session_cache(session)));
    const double tokens = (double)stats.peak_slots / ((double)paged->layers * paged->groups);
    const double dense = (double)stats.dense_peak_slots / ((double)paged->layers * paged->groups);
    const double bytes = (double)stats.peak_bytes + (double)dms_session_policy_bytes(session);
    double *peak = decode ? &c->kv_peak_tokens : &c->kv_prefill_peak_tokens;
    double *peak_bytes = decode ? &c->kv_peak_bytes : &c->kv_prefill_peak_bytes;
    *peak = greater(*peak, tokens);
    if (decode)
        c->dense_peak_tokens = greater(c->dense_peak_tokens, dense);
    *peak_bytes = greater(*peak_bytes, bytes);
    *(decode ? &c->decode_s : &c->prefill_s) += now_s() - start_s;
    return DMS_OK;
}

dms_status dms_cost_reads(dms_run_cost *c, dms_session *session)
{
    dms_cache_stats stats;
    DMS_TRY(dms_cache_measure(&stats, dms_session_cache(session)));
    c->kv_reads = stats.kv_reads;
    c->dense_reads = stats.dense_reads;
    c->bound_reads = stats.bound_reads;
    return DMS_OK;
}
