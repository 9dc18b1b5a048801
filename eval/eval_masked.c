#include "eval/eval_masked.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "eval/contexts.h"
#include "eval/score.h"
#include "infer/session.h"

/* A run over the freed cache. */
typedef struct {
    bool known;
    double prefill_tok_s, decode_tok_s;
    dms_cache_stats stats;
} decode_report;

typedef struct {
    const dms_eval_arguments *args;
    dms_device *device;
    const dms_pair *pair;
    const dms_policy *policies;
    int n_policies;
    dms_contexts text;
    double predicted_bytes, predicted_words; /* of the text whose nll is summed */
    dms_scorer *scorer;
    decode_report dense, retrofitted; /* with --decode */
} app;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void feed_progress(void *context, int64_t done, int64_t total)
{
    const app *a = context;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%" PRId64 "/%" PRId64 " contexts%s", done, total,
                done == total ? "\r\x1b[K" : "");
    else if (done == total || done * 4 / total != (done - a->args->spec.batch) * 4 / total)
        fprintf(stderr, "dms-eval: %" PRId64 "/%" PRId64 " contexts\n", done, total);
}

/* ---- the freed cache ------------------------------------------------------------------------ */

/* The first context as a prompt, then the text's own tokens one by one. The first step is not
 * timed: it may still pack weights. */
static dms_status run_session(app *a, dms_session *session, float *logits, decode_report *out)
{
    const int64_t T = a->args->spec.context, n = a->args->decode;
    int sequence;
    DMS_TRY(dms_cache_admit(dms_session_cache(session), &sequence));
    const double start = now_s();
    DMS_TRY(dms_session_prefill(session, logits, sequence, a->text.stream.ids, T, 0));
    double begin = now_s();
    out->prefill_tok_s = (double)T / (begin - start);
    for (int64_t i = 0; i < n; i++) {
        const int32_t id = sequence, *token = &a->text.stream.ids[(T + i) % a->text.stream.n];
        DMS_TRY(dms_session_decode(session, logits, &id, token, 1));
        begin = i ? begin : now_s();
    }
    out->decode_tok_s = (double)(n - 1) / (now_s() - begin);
    out->known = true;
    return dms_cache_measure(&out->stats, dms_session_cache(session));
}

static dms_status decode_one(app *a, decode_report *out, const dms_model *model, bool dense)
{
    dms_session *session = NULL;
    dms_status status = DMS_OK;
    float *logits = malloc((size_t)model->config.vocab * sizeof(float));
    if (!logits)
        return dms_fail(DMS_ERR_NOMEM, "no memory for logits");
    const dms_session_options o = {.model = model,
                                   .context = a->args->spec.context + a->args->decode,
                                   .max_sequences = 1,
                                   .kv_dtype = model->matrix_type,
                                   .policy = dense ? &dms_policy_dense : NULL};
    DMS_TRY_OR(done, dms_session_open(&session, &o));
    DMS_TRY_OR(done, run_session(a, session, logits, out));
done:
    dms_session_close(session);
    free(logits);
    return status;
}

static dms_status decode(app *a)
{
    DMS_TRY(decode_one(a, &a->dense, a->pair->teacher, true));
    if (a->pair->student->model->gate.kind == DMS_GATE_NONE)
        return DMS_OK;
    return decode_one(a, &a->retrofitted, a->pair->student->model, false);
}

/* The run over the freed cache that belongs to a policy, NULL where there is none. */
static const decode_report *decode_of(const app *a, const dms_policy *p)
{
    const decode_report *r = p->kind == DMS_POLICY_DMS     ? &a->retrofitted
                             : p->kind == DMS_POLICY_DENSE ? &a->dense
                                                           : NULL;
    return r && r->known ? r : NULL;
}

/* What has no value (the decision CR of a policy that evicts always) is null. */
static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static dms_status print_json(const app *a, const dms_policy *p, const dms_score_report *r)
{
    const double total = r->scores.nll * (double)r->scores.predicted;
    const struct {
        const char *name;
        double value;
    } values[] = {{"window", (double)r->window},
                  {"context", (double)a->args->spec.context},
                  {"sequences", (double)r->scores.sequences},
                  {"counted", (double)r->scores.counted},
                  {"predicted", (double)r->scores.predicted},
                  {"nll", r->scores.nll},
                  {"nll_teacher", r->scores.nll_teacher},
                  {"perplexity", exp(r->scores.nll)},
                  {"word_perplexity", exp(total / a->predicted_words)},
                  {"byte_perplexity", exp(total / a->predicted_bytes)},
                  {"kl_teacher_student", r->scores.kl_forward},
                  {"kl_median", r->scores.kl_median},
                  {"kl_p90", r->scores.kl_p90},
                  {"kl_p99", r->scores.kl_p99},
                  {"kl_p999", r->scores.kl_p999},
                  {"kl_max", r->scores.kl_max},
                  {"kl_student_teacher", r->scores.kl_reverse},
                  {"top1", r->scores.agreement},
                  {"decision_cr", r->decision_cr},
                  {"cache_cr", r->cache_cr},
                  {"read_ratio", r->read_ratio}};
    json_t *line = json_pack("{ss}", "policy", p->name);
    const decode_report *run = decode_of(a, p);
    if (line && run) {
        json_object_set_new(line, "kv_peak_bytes", json_integer((json_int_t)run->stats.peak_bytes));
        json_object_set_new(line, "decoded_cache_cr", real(dms_cache_ratio(&run->stats)));
        json_object_set_new(line, "prefill_tok_s", real(run->prefill_tok_s));
        json_object_set_new(line, "decode_tok_s", real(run->decode_tok_s));
    }
    for (size_t i = 0; line && i < sizeof(values) / sizeof(values[0]); i++) {
        const double x = values[i].value;
        json_object_set_new(line, values[i].name, i < 5 ? json_integer((json_int_t)x) : real(x));
    }
    if (!line)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a JSON object");
    const int failed = json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    if (failed)
        return dms_fail(DMS_ERR_IO, "a JSON object could not be written to standard output");
    putchar('\n');
    return DMS_OK;
}

static void print_head(const app *a, const dms_score_report *r)
{
    const dms_model *m = a->pair->student->model;
    printf("%" PRId64 " contexts of %" PRId64 " tokens, %" PRId64
           " counted, no begin-of-text; %s, weights %s; teacher nll %.4f\n",
           r->scores.sequences, a->args->spec.context, r->scores.counted, a->device->name,
           m->matrix_type == DMS_BF16 ? "bf16" : "f32", r->scores.nll_teacher);
    if (a->args->decode)
        printf("KV peak: bytes allocated for a prompt of one context and %" PRId64
               " decode steps, keys and values in %s\n",
               a->args->decode, m->matrix_type == DMS_BF16 ? "bf16" : "f32");
    printf("%-14s %6s %8s %8s %7s %11s %8s %6s  ", "policy", "window", "nll", "KL(t||s)", "top-1",
           "decision CR", "cache CR", "reads");
    if (a->args->decode)
        printf("%11s %12s\n", "KV peak", "decode tok/s");
    else if ((a->args->spec.task[0] == 'k'))
        printf("%8s %8s %8s %8s %8s %8s\n", "median", "p90", "p99", "p99.9", "max", "KL(s||t)");
    else
        printf("%9s %9s %9s\n", "ppl", "ppl/word", "ppl/byte");
}

static void print_row(const app *a, const dms_policy *p, const dms_score_report *r)
{
    const double total = r->scores.nll * (double)r->scores.predicted;
    char window[24] = "-";
    if (r->window >= 0)
        snprintf(window, sizeof(window), "%" PRId64, r->window);
    printf("%-14s %6s %8.4f %8.4f %7.4f %11.2f %8.2f %6.3f  ", p->name, window, r->scores.nll,
           r->scores.kl_forward, r->scores.agreement, r->decision_cr, r->cache_cr, r->read_ratio);
    const decode_report *run = decode_of(a, p);
    if (run)
        printf("%11zu %12.1f\n", run->stats.peak_bytes, run->decode_tok_s);
    else if (a->args->decode)
        printf("%11s %12s\n", "-", "-");
    else if ((a->args->spec.task[0] == 'k'))
        printf("%8.4f %8.4f %8.4f %8.4f %8.4f %8.4f\n", r->scores.kl_median, r->scores.kl_p90,
               r->scores.kl_p99, r->scores.kl_p999, r->scores.kl_max, r->scores.kl_reverse);
    else
        printf("%9.3f %9.4g %9.4f\n", exp(r->scores.nll), exp(total / a->predicted_words),
               exp(total / a->predicted_bytes));
}

static dms_status score(app *a)
{
    dms_score_feed feed = dms_contexts_feed(&a->text);
    feed.progress = feed_progress;
    DMS_TRY(dms_scorer_sweep(a->scorer, &feed));
    for (int i = 0; i < a->n_policies; i++) {
        const dms_score_report r = dms_scorer_report(a->scorer, i);
        if (a->args->json) {
            DMS_TRY(print_json(a, &a->policies[i], &r));
            continue;
        }
        if (!i)
            print_head(a, &r);
        print_row(a, &a->policies[i], &r);
    }
    return DMS_OK;
}

static dms_status open_app(app *a)
{
    const dms_task_spec *spec = &a->args->spec;
    const dms_model_file *m = a->pair->student;
    DMS_TRY(dms_contexts_open(&a->text, &(dms_contexts_options){.paths = spec->paths,
                                                                .n_paths = spec->n_paths,
                                                                .tokenizer = m->tokenizer,
                                                                .config = &m->model->config,
                                                                .context = spec->context,
                                                                .sequences = spec->sequences,
                                                                .beyond = a->args->decode}));
    if (a->text.foreign)
        fprintf(stderr, "dms-eval: a shard was made with another tokenizer file than the "
                        "model's; the figures only mean something if its ids are the same\n");
    const int64_t n = a->text.sequences;
    if (n < spec->sequences)
        fprintf(stderr, "dms-eval: the text has %" PRId64 " contexts, %" PRId64 " were asked for\n",
                n, spec->sequences);
    DMS_TRY(dms_contexts_measure(&a->predicted_bytes, &a->predicted_words, &a->text, m->tokenizer,
                                 &m->model->config, 0));
    return dms_scorer_open(&a->scorer,
                           &(dms_score_options){.student = m->model,
                                                .teacher = a->pair->teacher,
                                                .batch = spec->batch < n ? spec->batch : n,
                                                .context = spec->context,
                                                .sequences = n,
                                                .policies = a->policies,
                                                .n_policies = a->n_policies,
                                                .seed = spec->seed});
}

dms_status dms_eval_masked(const dms_eval_arguments *args, const dms_pair *pair,
                           const dms_policy *policies, int n_policies)
{
    app a = {.args = args,
             .device = pair->teacher->device,
             .pair = pair,
             .policies = policies,
             .n_policies = n_policies};
    dms_status status = open_app(&a);
    if (!status && args->decode)
        status = decode(&a);
    if (!status)
        status = score(&a);
    dms_scorer_close(a.scorer);
    dms_contexts_close(&a.text);
    return status;
}
