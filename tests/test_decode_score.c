/* Scoring over the freed cache: its figures are those of the definition and of the masked scorer.
 */
#include "eval/decode_score.h"
#include "tests/fixtures.h"
#include "tests/reference.h"

/* Log-probabilities of the fixtures' models are off by up to 3e-5 of the reference's. */
#define TOLERANCE 1e-4

enum { UNITS = 2 * 3, EOS = 2 };

typedef struct {
    dms_device *dev;
    reference ref;
    dms_model *student, *teacher;
    int32_t *ids, *next; /* [N, T] */
    int64_t N, T;
} lab;

static lab lab_open(void)
{
    lab l = {0};
    char base[1024], file[1024];
    l.dev = rig_open_device(rig_device(), 1); /* too small to share */
    l.ref = reference_open(fixture(base, "tiny/llama"),
                           fixture(file, "tiny/llama/dms_adapter.safetensors"));
    l.student = reference_model(&l.ref, l.dev, "adapter");
    l.teacher = reference_model(&l.ref, l.dev, "");
    cr_assert(l.teacher->config.layers * l.teacher->config.kv_heads == UNITS &&
              dms_config_is_eos(&l.teacher->config, EOS));
    l.ids = reference_read(&l.ref, "ids");
    l.next = malloc((size_t)(l.ref.B * l.ref.T) * sizeof(int32_t));
    l.N = l.ref.B;
    l.T = l.ref.T;
    for (int64_t i = 0; i < l.N * l.T; i++)
        l.next[i] = (i + 1) % l.T ? l.ids[i + 1] : -1;
    return l;
}

/* The same tokens as more, shorter contexts. */
static lab lab_short(int64_t T)
{
    lab l = lab_open();
    l.N = l.N * l.T / T;
    l.T = T;
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
    memcpy(ids, l->ids + first * l->T, (size_t)(n * l->T) * sizeof(*ids));
    memcpy(next, l->next + first * l->T, (size_t)(n * l->T) * sizeof(*next));
    return DMS_OK;
}

static dms_score_feed feed_of(lab *l)
{
    return (dms_score_feed){read_lab, NULL, l, l->N};
}

static dms_decode_scorer *scorer_of(lab *l, int64_t prompt, int batch)
{
    dms_decode_scorer *s = NULL;
    const dms_score_feed feed = feed_of(l);
    must(dms_decode_scorer_open(&s,
                                &(dms_decode_score_options){.student = l->student,
                                                            .teacher = l->teacher,
                                                            .context = l->T,
                                                            .prompt = prompt,
                                                            .sequences = l->N,
                                                            .batch = batch,
                                                            .kv_dtype = DMS_F32,
                                                            .seed = 3},
                                &feed));
    return s;
}

static void run(dms_scores *scores, dms_run_cost *cost, dms_decode_scorer *s, const char *policy)
{
    dms_policy p;
    must(dms_policy_parse(&p, policy));
    must(dms_decode_scorer_run(scores, cost, s, &p, NULL, NULL));
}

/* The same with a scorer of its own. */
static dms_scores score(lab *l, int64_t prompt, int batch, const char *policy, dms_run_cost *cost)
{
    dms_scores scores;
    dms_run_cost unused;
    dms_decode_scorer *s = scorer_of(l, prompt, batch);
    run(&scores, cost ? cost : &unused, s, policy);
    dms_decode_scorer_close(s);
    return scores;
}

static void expect_number(const char *what, double got, double want)
{
    cr_expect(fabs(got - want) <= TOLERANCE * fmax(1, fabs(want)), "%s is %.8g, expected %.8g",
              what, got, want);
}

static void expect_scores(const dms_scores *got, const dms_scores *want)
{
    cr_expect(got->counted == want->counted && got->predicted == want->predicted &&
                  got->sequences == want->sequences,
              "%d counted, %d predicted, expected %d, %d", (int)got->counted, (int)got->predicted,
              (int)want->counted, (int)want->predicted);
    expect_number("nll", got->nll, want->nll);
    expect_number("nll_teacher", got->nll_teacher, want->nll_teacher);
    expect_number("kl_forward", got->kl_forward, want->kl_forward);
    expect_number("kl_reverse", got->kl_reverse, want->kl_reverse);
    expect_number("kl_median", got->kl_median, want->kl_median);
    expect_number("kl_max", got->kl_max, want->kl_max);
    expect_number("agreement", got->agreement, want->agreement);
    expect_number("nll_se", got->nll_se, want->nll_se);
    expect_number("kl_forward_se", got->kl_forward_se, want->kl_forward_se);
    expect_number("agreement_se", got->agreement_se, want->agreement_se);
}

/* ---- scores --------------------------------------------------------------------------------- */

static int64_t largest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t v = 1; v < n; v++)
        best = x[v] > x[best] ? v : best;
    return best;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* sqrt(sum (x - mean)^2/(n - 1)/n) of two values */
static double error_of_two(double a, double b)
{
    const double mean = (a + b) / 2;
    return sqrt(((a - mean) * (a - mean) + (b - mean) * (b - mean)) / 1 / 2);
}

/* The figures from position `from` on by their definition, from the fixture's log-probabilities. */
static dms_scores by_definition(const lab *l, int64_t from)
{
    float *ls = reference_read(&l->ref, "hard_logprobs"),
          *lt = reference_read(&l->ref, "teacher_logprobs");
    const int64_t V = l->teacher->config.vocab;
    double *all = calloc((size_t)(l->N * l->T), sizeof(*all));
    double mean[2][3] = {{0}}; /* nll, KL, agreement of each sequence */
    dms_scores r = {.sequences = l->N};
    for (int64_t b = 0; b < l->N; b++) {
        double n = 0, p = 0;
        for (int64_t i = b * l->T + from; i < (b + 1) * l->T; i++) {
            const float *s = ls + i * V, *t = lt + i * V;
            double kl = 0;
            if (l->ids[i] == EOS)
                continue;
            for (int64_t v = 0; v < V; v++) {
                kl += exp((double)t[v]) * ((double)t[v] - (double)s[v]);
                r.kl_reverse += exp((double)s[v]) * ((double)s[v] - (double)t[v]);
            }
            all[r.counted++] = kl;
            mean[b][1] += kl;
            mean[b][2] += largest(s, V) == largest(t, V);
            n++;
            if (l->next[i] < 0)
                continue;
            mean[b][0] -= (double)s[l->next[i]];
            r.nll_teacher -= (double)t[l->next[i]];
            p++;
        }
        r.predicted += (int64_t)p;
        r.nll += mean[b][0];
        r.kl_forward += mean[b][1];
        r.agreement += mean[b][2];
        mean[b][0] /= fmax(1, p);
        mean[b][1] /= n;
        mean[b][2] /= n;
    }
    r.nll /= fmax(1, (double)r.predicted);
    r.nll_teacher /= fmax(1, (double)r.predicted);
    r.kl_forward /= (double)r.counted;
    r.kl_reverse /= (double)r.counted;
    r.agreement /= (double)r.counted;
    r.nll_se = error_of_two(mean[0][0], mean[1][0]);
    r.kl_forward_se = error_of_two(mean[0][1], mean[1][1]);
    r.agreement_se = error_of_two(mean[0][2], mean[1][2]);
    qsort(all, (size_t)r.counted, sizeof(*all), by_value);
    r.kl_median = all[(r.counted + 1) / 2 - 1];
    r.kl_max = all[r.counted - 1];
    free(ls);
    free(lt);
    free(all);
    return r;
}

Test(decode_score, figures_after_the_prompt_are_those_of_the_reference)
{
    lab l = lab_open();
    const int64_t prompts[] = {1, 9, 16, 31};
    bool inside = false; /* an end-of-text that is scored over */
    cr_assert(l.N == 2);
    for (size_t i = 0; i < COUNT(prompts); i++) {
        const dms_scores want = by_definition(&l, prompts[i]);
        const dms_scores got = score(&l, prompts[i], 2, "dms", NULL);
        expect_scores(&got, &want);
        inside = inside || want.counted < l.N * (l.T - prompts[i]);
        cr_expect(prompts[i] == 31 ? !got.predicted : got.nll_se > 0 && got.kl_forward > 0);
    }
    cr_expect(inside, "the fixture has no end-of-text after its prompts");
    lab_close(&l);
}

Test(decode_score, dense_is_the_teacher_within_rounding)
{
    lab l = lab_short(16);
    const dms_scores r = score(&l, 8, 3, "dense", NULL);
    /* logits off by d move a KL by some d^2; single precision leaves 1e-6 of it */
    cr_expect(fabs(r.kl_forward) <= 1e-5 && fabs(r.kl_reverse) <= 1e-5 && r.kl_max <= 1e-5);
    cr_expect(r.agreement == 1 && r.agreement_se == 0);
    cr_expect(fabs(r.nll - r.nll_teacher) <= 1e-5, "%.9g, %.9g", r.nll, r.nll_teacher);
    cr_expect(r.sequences == 4 && r.nll_se > 0);
    lab_close(&l);
}

/* Contexts begin with an end-of-text, which neither scorer counts: then a prompt of one token
 * leaves the same positions to both, under the same law. */
Test(decode_score, after_one_token_policies_of_the_law_are_those_of_the_masked_scorer)
{
    static const char *const names[] = {"dms", "dense", "window:5", "random:2:3"};
    enum { N = COUNT(names) };
    lab l = lab_short(16);
    dms_policy policies[N];
    dms_scorer *masked = NULL;
    for (int i = 0; i < N; i++)
        must(dms_policy_parse(&policies[i], names[i]));
    for (int64_t i = 0; i < l.N; i++)
        l.ids[i * l.T] = EOS;
    must(dms_scorer_open(&masked, &(dms_score_options){.student = l.student,
                                                       .teacher = l.teacher,
                                                       .batch = 2,
                                                       .context = l.T,
                                                       .sequences = l.N,
                                                       .policies = policies,
                                                       .n_policies = N,
                                                       .seed = 3}));
    const dms_score_feed feed = feed_of(&l);
    must(dms_scorer_sweep(masked, &feed));
    dms_decode_scorer *s = scorer_of(&l, 1, 3);
    for (int i = 0; i < N; i++) {
        dms_scores got;
        dms_run_cost cost;
        const dms_score_report want = dms_scorer_report(masked, i);
        run(&got, &cost, s, names[i]);
        expect_scores(&got, &want.scores);
        /* reads of the first token, its own in each head, are of the prompt here */
        const double all = (double)(UNITS * l.N) * (double)(l.T * (l.T + 1) / 2);
        const double first = (double)(UNITS * l.N);
        expect_number(names[i], ((double)cost.kv_reads + first) / all, want.read_ratio);
    }
    dms_decode_scorer_close(s);
    dms_scorer_close(masked);
    lab_close(&l);
}

Test(decode_score, the_batch_and_earlier_policies_change_nothing)
{
    static const char *const names[] = {"dms", "random:2:3", "tova:4", "h2o:6", "snapkv:5:2"};
    lab l = lab_short(16);
    dms_decode_scorer *one = scorer_of(&l, 8, 1), *three = scorer_of(&l, 8, 3);
    for (size_t i = 0; i < 2 * COUNT(names); i++) {
        dms_scores a, b;
        dms_run_cost x, y;
        run(&a, &x, one, names[i % COUNT(names)]);
        run(&b, &y, three, names[COUNT(names) - 1 - i % COUNT(names)]);
        run(&b, &y, three, names[i % COUNT(names)]);
        expect_scores(&b, &a);
        cr_expect(x.kv_reads == y.kv_reads && x.dense_reads == y.dense_reads);
        cr_expect(x.prefilled == 4 * 8 && y.prefilled == 4 * 8 && x.decoded == 4 * 8 &&
                  y.decoded == 4 * 8);
        /* of the first context of each batch: the greatest of four, and of two */
        cr_expect(x.kv_prefill_peak_tokens >= y.kv_prefill_peak_tokens, "%s: %g, %g",
                  names[i % COUNT(names)], x.kv_prefill_peak_tokens, y.kv_prefill_peak_tokens);
    }
    dms_decode_scorer_close(one);
    dms_decode_scorer_close(three);
    lab_close(&l);
}

/* ---- costs ---------------------------------------------------------------------------------- */

/* Contexts of 16 tokens after prompts of 8: steps read from 9 to 16 tokens of a dense cache. */
Test(decode_score, costs_are_those_counted_by_hand)
{
    enum { DENSE = 9 + 10 + 11 + 12 + 13 + 14 + 15 + 16 };
    lab l = lab_short(16);
    dms_run_cost c;
    cr_assert(l.N == 4);
    score(&l, 8, 3, "dense", &c);
    cr_expect(c.dense_reads == 4 * UNITS * DENSE && c.kv_reads == c.dense_reads);
    cr_expect(c.kv_peak_tokens == 16 && c.dense_peak_tokens == 16 && c.kv_prefill_peak_tokens == 8);
    cr_expect(dms_cost_read_ratio(&c) == 1 && dms_cost_peak_ratio(&c) == 1);
    score(&l, 8, 3, "window:5", &c);
    cr_expect(c.dense_reads == 4 * UNITS * DENSE && c.kv_reads == 4 * UNITS * 8 * 5);
    cr_expect(c.kv_peak_tokens == 5, "%g", c.kv_peak_tokens);
    cr_expect(fabs(dms_cost_peak_ratio(&c) - 5.0 / 16) < 1e-12);
    score(&l, 8, 3, "tova:50%", &c); /* half of the prompt stays, and the new one */
    cr_expect(c.kv_reads == 4 * UNITS * 8 * 5);
    cr_expect(c.kv_peak_tokens > 4 && c.kv_peak_tokens <= 5, "%g", c.kv_peak_tokens);
    /* the second layer's 8 slots, and 4 or 5 that the first one kept */
    cr_expect(c.kv_prefill_peak_tokens >= 6 && c.kv_prefill_peak_tokens <= 8);
    score(&l, 8, 3, "snapkv:6:2", &c); /* six stay of the prompt, then all do */
    cr_expect(c.kv_reads == 4 * UNITS * (7 + 8 + 9 + 10 + 11 + 12 + 13 + 14));
    cr_expect(c.kv_peak_tokens == 6 + 8, "%g", c.kv_peak_tokens);
    lab_close(&l);
}

Test(decode_score, bytes_are_those_of_the_pages_of_one_context)
{
    lab l = lab_short(16);
    dms_run_cost one, two;
    score(&l, 8, 1, "dense", &one);
    score(&l, 8, 2, "dense", &two);
    /* a page of 16 slots a layer and head */
    cr_expect(one.kv_peak_bytes >= UNITS * 16.0 * 2 * 8 * sizeof(float));
    cr_expect(two.kv_peak_bytes <= one.kv_peak_bytes &&
              two.kv_prefill_peak_bytes <= one.kv_prefill_peak_bytes);
    lab_close(&l);
}

/* ---- refusals ------------------------------------------------------------------------------- */

static dms_status try_open(lab *l, int64_t context, int64_t prompt, int64_t sequences)
{
    dms_decode_scorer *s = NULL;
    const dms_score_feed feed = feed_of(l);
    const dms_status status =
        dms_decode_scorer_open(&s,
                               &(dms_decode_score_options){.student = l->student,
                                                           .teacher = l->teacher,
                                                           .context = context,
                                                           .prompt = prompt,
                                                           .sequences = sequences,
                                                           .batch = 2,
                                                           .kv_dtype = DMS_F32},
                               &feed);
    cr_expect(status && !s);
    return status;
}

Test(decode_score, refuses_what_cannot_be_scored)
{
    lab l = lab_open();
    dms_scores scores;
    dms_run_cost cost;
    dms_policy p;
    rig_expect_failure(try_open(&l, 32, 32, 2), DMS_ERR_ARG, "prompt of 32 of 32");
    rig_expect_failure(try_open(&l, 32, 0, 2), DMS_ERR_ARG, "prompt of 0");
    l.T = 33;
    rig_expect_failure(try_open(&l, 33, 16, 1), DMS_ERR_ARG, "33");
    l.T = 32;
    l.ids[3] = (int32_t)l.teacher->config.vocab;
    rig_expect_failure(try_open(&l, 32, 16, 2), DMS_ERR_ARG, "another tokenizer");
    l.ids[3] = 5;
    dms_model *student = l.student;
    l.student = l.teacher;
    dms_decode_scorer *s = scorer_of(&l, 16, 2);
    must(dms_policy_parse(&p, "dms"));
    rig_expect_failure(dms_decode_scorer_run(&scores, &cost, s, &p, NULL, NULL), DMS_ERR_ARG,
                       "no gate");
    run(&scores, &cost, s, "dense"); /* it is still whole */
    cr_expect(scores.agreement == 1);
    dms_decode_scorer_close(s);
    l.student = student;
    lab_close(&l);
}
