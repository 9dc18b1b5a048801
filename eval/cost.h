/* What a run over the freed cache cost, read from the cache and the clock (method.md section 5). */
#ifndef DMS_COST_H
#define DMS_COST_H

#include "infer/session.h"

/* Peaks are of decode, prefill's apart, over all sequences in the cache at one time: slots live at
 * once over layers and KV heads, and bytes allocated then (pages, and what the policy holds beside
 * them). The dense peak is the most those sequences would have if nothing was evicted: their text,
 * but what chains of one prompt would share counts once. */
typedef struct {
    int64_t kv_reads, dense_reads; /* slots read by decode steps, and by a dense cache's */
    int64_t bound_reads;           /* page bounds read, each as large as a slot */
    double kv_peak_tokens, kv_prefill_peak_tokens, dense_peak_tokens;
    double kv_peak_bytes, kv_prefill_peak_bytes;
    double prefill_s, decode_s;
    int64_t prefilled, decoded; /* tokens */
} dms_run_cost;

/* kv_reads/dense_reads, and with the bounds counted as reads; 1 where nothing was decoded. */
double dms_cost_read_ratio(const dms_run_cost *c);
double dms_cost_total_read_ratio(const dms_run_cost *c);
/* kv_peak_tokens/dense_peak_tokens; 1 where nothing was decoded. */
double dms_cost_peak_ratio(const dms_run_cost *c);

/* Begins a part of a run: the session's peaks are counted anew. */
dms_status dms_cost_begin(double *start_s, dms_session *session);
/* Ends it, as prefill or as decode: adds the seconds, raises the peak. Waits for the device. */
dms_status dms_cost_end(dms_run_cost *c, double start_s, dms_session *session, bool decode);
/* Takes the reads of all that the session ever decoded. */
dms_status dms_cost_reads(dms_run_cost *c, dms_session *session);

#endif
