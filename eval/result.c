#include "eval/result.h"

#include <math.h>

/* What has no value is null. */
static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *metrics_of(const dms_result *r)
{
    json_t *all = json_object();
    for (int i = 0; i < r->n_metrics; i++)
        json_object_set_new(all, r->metrics[i].name,
                            json_pack("{so so}", "value", real(r->metrics[i].value), "error",
                                      real(r->metrics[i].error)));
    return all;
}

static double rate(int64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

static void add_cost(json_t *line, const dms_run_cost *c)
{
    const struct {
        const char *name;
        double value;
        bool whole;
    } all[] = {{"kv_reads", (double)c->kv_reads, true},
               {"dense_reads", (double)c->dense_reads, true},
               {"bound_reads", (double)c->bound_reads, true},
               {"read_ratio", dms_cost_read_ratio(c), false},
               {"total_read_ratio", dms_cost_total_read_ratio(c), false},
               {"kv_peak_tokens", c->kv_peak_tokens, false},
               {"dense_peak_tokens", c->dense_peak_tokens, false},
               {"peak_ratio", dms_cost_peak_ratio(c), false},
               {"kv_peak_bytes", c->kv_peak_bytes, true},
               {"kv_prefill_peak_tokens", c->kv_prefill_peak_tokens, false},
               {"kv_prefill_peak_bytes", c->kv_prefill_peak_bytes, true},
               {"prefill_tok_s", rate(c->prefilled, c->prefill_s), false},
               {"decode_tok_s", rate(c->decoded, c->decode_s), false},
               {"seconds", c->prefill_s + c->decode_s, false}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        json_object_set_new(line, all[i].name,
                            all[i].whole ? json_integer((json_int_t)all[i].value)
                                         : real(all[i].value));
}

dms_status dms_result_to_json(json_t **out, const dms_result *r)
{
    json_t *line =
        json_pack("{ss ss ss so ss sI sI}", "policy", r->policy, "model", r->model, "task", r->task,
                  "metrics", metrics_of(r), "better", r->lower ? "lower" : "higher", "items",
                  (json_int_t)r->items, "truncated", (json_int_t)r->truncated);
    if (!line)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a result, or a name that is not UTF-8");
    add_cost(line, &r->cost);
    json_object_set_new(line, "dtype", json_string(r->dtype));
    json_object_set_new(line, "device", json_string(r->device));
    json_object_set_new(line, "style", json_string(r->style));
    json_object_set_new(line, "seed", json_integer((json_int_t)r->seed));
    *out = line;
    return DMS_OK;
}

dms_status dms_result_print(FILE *file, const json_t *line)
{
    if (json_dumpf(line, file, JSON_COMPACT | JSON_REAL_PRECISION(9)) || fputc('\n', file) == EOF ||
        fflush(file))
        return dms_fail(DMS_ERR_IO, "a result could not be written");
    return DMS_OK;
}

int dms_result_metrics(dms_metric *out, const dms_scores *s, bool kld)
{
    const dms_metric kl = {"kl", s->kl_forward, s->kl_forward_se};
    const dms_metric nll = {"nll", s->nll, s->nll_se};
    int n = 0;
    out[n++] = kld ? kl : nll;
    out[n++] = kld ? nll : kl;
    out[n++] = (dms_metric){"top1", s->agreement, s->agreement_se};
    out[n++] = (dms_metric){"kl_median", s->kl_median, 0};
    out[n++] = (dms_metric){"kl_p99", s->kl_p99, 0};
    out[n++] = (dms_metric){"kl_max", s->kl_max, 0};
    return n;
}
