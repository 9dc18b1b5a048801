#include "infer/bench_print.h"

#include <jansson.h>
#include <stdio.h>

/* What a line of a sweep has besides; false: no memory. */
static bool add_point(json_t *line, const dms_bench_point *p)
{
    return !json_object_set_new(line, "fits", json_boolean(p->fits)) &&
           (!p->fits ||
            (!json_object_set_new(line, "weight_bytes", json_integer((json_int_t)p->weights)) &&
             !json_object_set_new(line, "kv_bytes", json_integer((json_int_t)p->kv)) &&
             !json_object_set_new(line, "kv_peak_bytes",
                                  json_integer((json_int_t)p->stats.peak_bytes)) &&
             !json_object_set_new(line, "cache_cr", json_real(dms_cache_ratio(&p->stats)))));
}

static dms_status print_json(const dms_bench_result *r, const dms_sample *s)
{
    json_t *line =
        !s->n ? json_pack("{ss ss ss}", "bench", r->bench, "case", r->what, "note", r->note)
              : json_pack("{ss ss sf sf sf si ss ss}", "bench", r->bench, "case", r->what, "mean",
                          dms_sample_mean(s) / r->scale, "deviation",
                          dms_sample_deviation(s) / r->scale, "best",
                          (r->least ? dms_sample_least(s) : dms_sample_best(s)) / r->scale, "n",
                          s->n, "unit", r->unit, "note", r->note);
    if (!line || (r->share >= 0 && json_object_set_new(line, "share", json_real(r->share))) ||
        (r->point && !add_point(line, r->point))) {
        json_decref(line);
        return dms_fail(DMS_ERR_NOMEM, "no memory for a JSON object, or a figure is not finite");
    }
    const int failed = json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(line);
    if (failed)
        return dms_fail(DMS_ERR_IO, "a JSON object could not be written to standard output");
    putchar('\n');
    return DMS_OK;
}

dms_status dms_bench_print(const dms_bench_result *r, const dms_sample *s, bool json)
{
    if (json) {
        DMS_TRY(print_json(r, s));
    } else {
        printf("%-8s %-30s", r->bench, r->what);
        if (s->n)
            printf(" %9.1f +- %6.1f %-8s", dms_sample_mean(s) / r->scale,
                   dms_sample_deviation(s) / r->scale, r->unit);
        if (r->share >= 0)
            printf(" %5.1f %%", 100 * r->share);
        printf("  %s\n", r->note);
    }
    fflush(stdout); /* a line is shown when it is known; main checks the stream */
    return DMS_OK;
}
