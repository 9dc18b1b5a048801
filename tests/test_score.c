/* Scoring of text: policies, their cost, and the figures of a sweep. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_reader.h"
#include "eval/score.h"
#include "kernels/visibility.h"
#include "tests/fixtures.h"
#include "tests/reference.h"

/* ---- policies ------------------------------------------------------------------------------- */

Test(policy, names_say_who_decides)
{
    dms_policy p;
    must(dms_policy_parse(&p, "random:4:16"));
    cr_assert(p.kind == DMS_POLICY_RANDOM && p.ratio == 4 && p.window == 16);
    must(dms_policy_parse(&p, "random:2.5"));
    cr_assert(p.ratio == 2.5 && p.window == -1);
    must(dms_policy_parse(&p, "window:128"));
    cr_assert(p.kind == DMS_POLICY_WINDOW && p.size == 128);
    const char *bad[] = {"",         "dm",         "window:",    "window:0",   "window:9x",
                         "random:0", "random:0.5", "random:nan", "random:4:x", "random:inf",
                         "dmss",     "random:4:",  "window:-3",  "dense:4",    "random:4:-1"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        cr_expect(dms_policy_parse(&p, bad[i]) == DMS_ERR_ARG, "\"%s\" was taken", bad[i]);
        cr_expect(strstr(dms_error_text(), "window:N"));
    }
}

Test(policy, window_comes_from_the_policy_or_the_gate)
{
    dms_policy p;
    int64_t window;
    dms_gate gate = dms_gate_defaults();
    must(dms_policy_parse(&p, "random:4"));
    cr_expect(dms_policy_window(&window, &p, &gate) == DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "random:RATIO:WINDOW"));
    gate.kind = DMS_GATE_NEURON;
    must(dms_policy_window(&window, &p, &gate));
    cr_expect(window == 512);
    must(dms_policy_parse(&p, "window:64"));
    must(dms_policy_window(&window, &p, &gate));
    cr_expect(window == 63, "the last 64 keys, the token's own included: inclusive window 63");
}

Test(policy, random_decisions_belong_to_the_sequence_not_to_the_batch)
{
    dms_policy p;
    must(dms_policy_parse(&p, "random:4:0"));
    enum { L = 3, G = 2, T = 500 };
    static float both[L * 2 * G * T], second[L * G * T];
    dms_policy_decide(both, &p, &(dms_policy_shape){7, 10, L, 2, G, T});
    dms_policy_decide(second, &p, &(dms_policy_shape){7, 11, L, 1, G, T});
    double evicted = 0;
    for (int l = 0; l < L; l++)
        cr_expect(!memcmp(both + (2 * l + 1) * G * T, second + l * G * T, G * T * sizeof(float)));
    for (int i = 0; i < L * G * T; i++)
        evicted += second[i] > 0;
    /* 3,000 draws: four standard deviations are 0.032 */
    cr_expect(fabs(evicted / (L * G * T) - 0.75) < 0.032);
    dms_policy_decide(second, &p, &(dms_policy_shape){8, 11, L, 1, G, T});
    cr_expect(memcmp(both + G * T, second, G * T * sizeof(float)), "the seed has no effect");
}

Test(policy, counts_are_those_of_the_law)
{
    uint32_t seed = 5;
    for (int round = 0; round < 300; round++) {
        float d[40];
        const int64_t T = 1 + round % 40, window = round % 7 ? round % 11 : 50;
        double evicted = 0, live = 0, read = 0;
        for (int64_t t = 0; t < T; t++) {
            seed = seed * 1664525u + 1013904223u;
            d[t] = (float)(seed >> 31);
            evicted += (double)d[t];
        }
        for (int64_t q = 0; q < T; q++)
            for (int64_t k = 0; k <= q; k++) {
                const bool out = k + 1 < T && d[k + 1] > 0;
                read += dms_is_visible(q, k, window, out);
                live += q == T - 1 && dms_is_visible(q, k, window, out);
            }
        dms_kv_count sum = {0};
        dms_kv_count_add(&sum, d, T, window);
        cr_assert(sum.evicted == evicted && sum.live == live && sum.read == read,
                  "T %lld, window %lld: evicted %g, live %g, read %g, expected %g, %g, %g",
                  (long long)T, (long long)window, sum.evicted, sum.live, sum.read, evicted, live,
                  read);
        cr_assert(sum.read_dense == (double)(T * (T + 1) / 2));
    }
}

/* ---- a sweep over a tiny model -------------------------------------------------------------- */

typedef struct {
    dms_device *dev;
    reference ref;
    dms_model *student, *teacher;
    int32_t *ids, *next; /* [B, T] */
} lab;

static lab lab_open(void)
{
    lab l = {0};
    char base[1024], file[1024];
    l.dev = rig_open_device(rig_device(), 1); /* too small to share */
    l.ref = reference_open(fixture(base, "tiny/llama"),
                           fixture(file, "tiny/llama/dms_adapter.safetensors"));
    l.ids = reference_read(&l.ref, "ids");
    l.next = malloc((size_t)(l.ref.B * l.ref.T) * sizeof(int32_t));
    for (int64_t i = 0; i < l.ref.B * l.ref.T; i++)
        l.next[i] = (i + 1) % l.ref.T ? l.ids[i + 1] : -1;
    l.student = reference_model(&l.ref, l.dev, "adapter");
    l.teacher = reference_model(&l.ref, l.dev, "");
    return l;
}

static void lab_close(lab *l)
{
    dms_model_close(l->student);
    dms_model_close(l->teacher);
    reference_close(&l->ref);
    free(l->ids);
    free(l->next);
    l->dev->close(l->dev);
}

static dms_status read_lab(void *context, int64_t first, int64_t n, int32_t *ids, int32_t *next)
{
    const lab *l = context;
    memcpy(ids, l->ids + first * l->ref.T, (size_t)(n * l->ref.T) * sizeof(*ids));
    memcpy(next, l->next + first * l->ref.T, (size_t)(n * l->ref.T) * sizeof(*next));
    return DMS_OK;
}

enum { N_POLICIES = 4 };
static const char *const policy_names[N_POLICIES] = {"dms", "dense", "window:99", "random:2:3"};

static void sweep(lab *l, int64_t batch, dms_score_report out[N_POLICIES])
{
    dms_policy policies[N_POLICIES];
    dms_scorer *s;
    for (int i = 0; i < N_POLICIES; i++)
        must(dms_policy_parse(&policies[i], policy_names[i]));
    must(dms_scorer_open(&s, &(dms_score_options){.student = l->student,
                                                  .teacher = l->teacher,
                                                  .batch = batch,
                                                  .context = l->ref.T,
                                                  .sequences = l->ref.B,
                                                  .policies = policies,
                                                  .n_policies = N_POLICIES,
                                                  .seed = 3}));
    for (int64_t n = 1; n <= l->ref.B; n += l->ref.B - 1) /* a sweep forgets the one before */
        must(dms_scorer_sweep(s, &(dms_score_feed){read_lab, NULL, l, n}));
    for (int i = 0; i < N_POLICIES; i++)
        out[i] = dms_scorer_report(s, i);
    dms_scorer_close(s);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The figures of a text by their definition, from the fixture's log-probabilities. */
static dms_scores by_definition(const lab *l)
{
    float *ls = reference_read(&l->ref, "hard_logprobs"),
          *lt = reference_read(&l->ref, "teacher_logprobs");
    float *counted = reference_read(&l->ref, "counted");
    const int64_t V = l->student->config.vocab;
    double *kl = calloc((size_t)(l->ref.B * l->ref.T), sizeof(*kl));
    dms_scores r = {0};
    for (int64_t i = 0; i < l->ref.B * l->ref.T; i++) {
        if (counted[i] == 0)
            continue;
        const float *s = ls + i * V, *t = lt + i * V;
        int64_t best_s = 0, best_t = 0;
        for (int64_t v = 0; v < V; v++) {
            kl[r.counted] += exp((double)t[v]) * ((double)t[v] - (double)s[v]);
            r.kl_reverse += exp((double)s[v]) * ((double)s[v] - (double)t[v]);
            best_s = s[v] > s[best_s] ? v : best_s;
            best_t = t[v] > t[best_t] ? v : best_t;
        }
        r.kl_forward += kl[r.counted++];
        r.agreement += best_s == best_t;
        if (l->next[i] < 0)
            continue;
        r.predicted++;
        r.nll -= (double)s[l->next[i]];
        r.nll_teacher -= (double)t[l->next[i]];
    }
    r.nll /= (double)r.predicted;
    r.nll_teacher /= (double)r.predicted;
    r.kl_forward /= (double)r.counted;
    r.kl_reverse /= (double)r.counted;
    r.agreement /= (double)r.counted;
    qsort(kl, (size_t)r.counted, sizeof(*kl), by_value);
    r.kl_median = kl[(r.counted + 1) / 2 - 1];
    r.kl_max = kl[r.counted - 1];
    free(ls);
    free(lt);
    free(counted);
    free(kl);
    return r;
}

static void expect_number(const char *what, double got, double want)
{
    /* log-probabilities of the network may be off by 3e-5 */
    cr_expect(fabs(got - want) <= 1e-4 * fmax(1, fabs(want)), "%s is %.8g, expected %.8g", what,
              got, want);
}

Test(score, figures_are_those_of_the_reference)
{
    lab l = lab_open();
    dms_score_report got[N_POLICIES];
    const dms_scores want = by_definition(&l);
    sweep(&l, 2, got);
    cr_expect(got[0].scores.counted == want.counted && got[0].scores.predicted == want.predicted);
    cr_expect(got[0].scores.counted < l.ref.B * l.ref.T,
              "the fixture has end-of-text tokens inside");
    expect_number("nll", got[0].scores.nll, want.nll);
    expect_number("nll_teacher", got[0].scores.nll_teacher, want.nll_teacher);
    expect_number("kl_forward", got[0].scores.kl_forward, want.kl_forward);
    expect_number("kl_reverse", got[0].scores.kl_reverse, want.kl_reverse);
    expect_number("kl_median", got[0].scores.kl_median, want.kl_median);
    expect_number("kl_max", got[0].scores.kl_max, want.kl_max);
    expect_number("agreement", got[0].scores.agreement, want.agreement);
    cr_expect(got[0].scores.kl_p90 <= got[0].scores.kl_p99 &&
              got[0].scores.kl_p99 <= got[0].scores.kl_p999);
    lab_close(&l);
}

Test(score, ratios_are_those_of_the_reference_decisions)
{
    lab l = lab_open();
    dms_score_report got[N_POLICIES];
    dms_kv_count sum = {0};
    float *d = reference_read(&l.ref, "hard_decision");
    const dms_tensor_info *info = dms_source_find(l.ref.file, "hard_decision");
    for (int64_t i = 0; i < info->shape[0] * info->shape[1] * info->shape[2]; i++)
        dms_kv_count_add(&sum, d + i * l.ref.T, l.ref.T, l.student->gate.window);
    sweep(&l, 2, got);
    expect_number("decision CR", got[0].decision_cr, dms_kv_decision_cr(&sum));
    expect_number("cache CR", got[0].cache_cr, dms_kv_cache_cr(&sum));
    expect_number("read ratio", got[0].read_ratio, dms_kv_read_ratio(&sum));
    free(d);
    lab_close(&l);
}

Test(score, a_window_as_long_as_the_text_is_dense)
{
    lab l = lab_open();
    dms_score_report r[N_POLICIES];
    sweep(&l, 2, r);
    cr_expect(r[1].scores.kl_forward == 0 && r[1].scores.agreement == 1 &&
              r[1].scores.nll == r[1].scores.nll_teacher);
    cr_expect(r[1].decision_cr == 1 && r[1].cache_cr == 1 && r[1].read_ratio == 1);
    /* blocks of keys may be summed in another order under a mask */
    expect_number("nll", r[2].scores.nll, r[1].scores.nll);
    cr_expect(r[2].cache_cr == 1 && r[2].read_ratio == 1 && isinf(r[2].decision_cr));
    cr_expect(r[3].scores.kl_forward > 0 && r[3].cache_cr > 1 && r[3].read_ratio < 1);
    lab_close(&l);
}

Test(score, the_batch_changes_nothing)
{
    lab l = lab_open();
    dms_score_report one[N_POLICIES], three[N_POLICIES];
    sweep(&l, 1, one);
    sweep(&l, 3, three); /* the last row stays empty */
    for (int i = 0; i < N_POLICIES; i++) {
        cr_expect(one[i].scores.counted == three[i].scores.counted &&
                  one[i].scores.sequences == three[i].scores.sequences);
        expect_number(policy_names[i], three[i].scores.nll, one[i].scores.nll);
        expect_number(policy_names[i], three[i].scores.kl_forward, one[i].scores.kl_forward);
        expect_number(policy_names[i], three[i].cache_cr, one[i].cache_cr);
        expect_number(policy_names[i], three[i].read_ratio, one[i].read_ratio);
    }
    lab_close(&l);
}

Test(score, refuses_what_cannot_be_scored)
{
    lab l = lab_open();
    dms_policy p;
    dms_scorer *s = NULL;
    must(dms_policy_parse(&p, "dms"));
    dms_score_options o = {l.teacher, l.teacher, 1, l.ref.T, 2, &p, 1, 0};
    cr_expect(dms_scorer_open(&s, &o) == DMS_ERR_ARG && !s);
    cr_expect(strstr(dms_error_text(), "no gate"));
    o.student = l.student;
    o.context = l.ref.T + 1;
    cr_expect(dms_scorer_open(&s, &o) == DMS_ERR_ARG && strstr(dms_error_text(), "open for"));
    o.context = l.ref.T;
    must(dms_scorer_open(&s, &o));
    cr_expect(dms_scorer_add(s, l.ids, l.next, 2) == DMS_ERR_ARG, "two rows in a batch of one");
    l.ids[3] = (int32_t)l.student->config.vocab;
    cr_expect(dms_scorer_add(s, l.ids, l.next, 1) == DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "another tokenizer"));
    dms_scorer_close(s);
    lab_close(&l);
}

/* ---- the op --------------------------------------------------------------------------------- */

/* More than a tile of the vocabulary, so that a place beyond it is memory of nobody. */
Test(score, of_a_next_token_outside_the_vocabulary_is_nan_and_touches_no_other)
{
    enum { N = 4, V = 517, D = 8 };
    static const int32_t next[N] = {V, V - 1, INT32_MAX, -1};
    rig r = rig_open(rig_device());
    dms_tensor ids = rig_shape(N, 0, 0, 0);
    const dms_tensor w = rig_noise(&r, rig_shape(V, D, 0, 0)),
                     x = rig_noise(&r, rig_shape(N, D, 0, 0));
    const dms_tensor weight = rig_upload(&r, ids, (float[N]){1, 1, 1, 1});
    dms_tensor student = rig_empty(&r, ids), teacher = student, kl = student;
    teacher = rig_empty(&r, ids);
    kl = rig_empty(&r, ids);
    ids.dtype = DMS_I32;
    ids = rig_upload(&r, ids, next);
    must(dms_score(
        &(dms_score_out){.nll = &student, .nll_teacher = &teacher, .kl_forward = &kl, .next = &ids},
        &(dms_distill_in){&x, &w, &x, &w, &weight}));
    const dms_tensor *all[] = {&student, &teacher, &kl};
    for (size_t i = 0; i < COUNT(all); i++) {
        float *got = rig_read(all[i]);
        for (int n = 0; n < N; n++)
            cr_assert(isnan(got[n]) == (i < 2 && next[n] >= V), "score %d of row %d is %g", (int)i,
                      n, (double)got[n]);
        free(got);
    }
    rig_close(&r);
}
