/* Cache policies around a whole model: what must not matter does not, and the masked scorer agrees.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/score.h"
#include "infer/session.h"
#include "tests/fixtures.h"
#include "tests/reference.h"

/* Logits of the fixtures' models are of order 1; sums in another order move them by some 1e-6 a
 * layer, as in the tests of sessions. */
#define TOLERANCE 1e-4f

typedef struct {
    dms_device *dev;
    reference ref;
    dms_model *model; /* the original: no gate */
    int32_t *ids;     /* [B, T] */
    int64_t vocab;
} lab;

static lab lab_open(void)
{
    lab l = {0};
    char base[1024], file[1024];
    l.dev = rig_open_device(rig_device(), 1); /* too small to share */
    l.ref = reference_open(fixture(base, "tiny/llama"),
                           fixture(file, "tiny/llama/dms_adapter.safetensors"));
    l.ids = reference_read(&l.ref, "ids");
    l.model = reference_model(&l.ref, l.dev, "");
    l.vocab = l.model->config.vocab;
    return l;
}

static void lab_close(lab *l)
{
    dms_model_close(l->model);
    reference_close(&l->ref);
    free(l->ids);
    l->dev->close(l->dev);
}

static dms_session *session_of(const lab *l, const char *name, int sequences)
{
    dms_policy policy;
    dms_session *s = NULL;
    must(dms_policy_parse(&policy, name));
    must(dms_session_open(&s, &(dms_session_options){.model = l->model,
                                                     .context = l->ref.T,
                                                     .max_sequences = sequences,
                                                     .kv_dtype = DMS_F32,
                                                     .policy = &policy,
                                                     .seed = 3}));
    return s;
}

/* How a session is fed: prompts of texts 0 .. texts - 1, in chunks, then decode steps of all. */
typedef struct {
    const char *policy;
    int texts;
    int64_t prompt, chunk; /* text b: prompt + 2*b tokens */
} plan;

/* Logits of text 0 from its prompt's end on: [T - prompt + 1, V]; the caller frees them. */
static float *run(const lab *l, const plan *p)
{
    dms_session *s = session_of(l, p->policy, p->texts);
    const int64_t T = l->ref.T;
    float *out = malloc((size_t)((T - p->prompt + 1) * l->vocab) * sizeof(float));
    float *step = malloc((size_t)(p->texts * l->vocab) * sizeof(float));
    int sequences[8];
    for (int b = 0; b < p->texts; b++) {
        must(dms_cache_admit(dms_session_cache(s), &sequences[b]));
        must(dms_session_prefill(s, b ? NULL : out, sequences[b], l->ids + b * T, p->prompt + 2 * b,
                                 p->chunk));
    }
    for (int64_t t = p->prompt; t < T; t++) {
        int32_t units[8], tokens[8];
        int n = 0;
        for (int b = p->texts - 1; b >= 0; b--)
            if (t + 2 * b < T) {
                units[n] = sequences[b];
                tokens[n++] = l->ids[b * T + t + 2 * b];
            }
        must(dms_session_decode(s, step, units, tokens, n)); /* text 0 is the last row */
        memcpy(out + (t - p->prompt + 1) * l->vocab, step + (n - 1) * l->vocab,
               (size_t)l->vocab * sizeof(float));
    }
    free(step);
    dms_session_close(s);
    return out;
}

/* Runs both plans and compares; returns the largest difference of two logits. */
static float difference(const lab *l, const plan *a, const plan *b)
{
    float *x = run(l, a), *y = run(l, b), worst = 0;
    for (int64_t i = 0; i < (l->ref.T - a->prompt + 1) * l->vocab; i++) {
        const float d = fabsf(x[i] - y[i]);
        worst = d > worst || isnan(d) ? d : worst;
    }
    free(x);
    free(y);
    return worst;
}

Test(policy_sessions, with_room_for_the_whole_text_every_policy_is_dense)
{
    static const char *const names[] = {"window:%d", "streaming:%d", "streaming-abs:%d",
                                        "tova:%d",   "h2o:%d",       "snapkv:%d:8",
                                        "quest:%d",  "random:1:%d"};
    lab l = lab_open();
    for (size_t i = 0; i < COUNT(names); i++) {
        char name[40];
        snprintf(name, sizeof(name), names[i], (int)(2 * l.ref.T + 32));
        const plan dense = {"dense", 1, 7, 0}, roomy = {name, 2, 7, 3};
        const float d = difference(&l, &dense, &roomy);
        cr_expect(d <= TOLERANCE, "%s is off by %g", name, (double)d);
    }
    lab_close(&l);
}

static const char *const tight[] = {
    "window:5", "streaming:7:2", "streaming-abs:7:2", "tova:6",   "tova:40%",  "h2o:6",
    "h2o:50%",  "snapkv:7:3",    "snapkv:50%:3",      "quest:16", "random:3:4"};

Test(policy_sessions, a_text_gives_the_same_alone_and_among_others)
{
    lab l = lab_open();
    for (size_t i = 0; i < COUNT(tight); i++) {
        const plan alone = {tight[i], 1, 13, 5}, among = {tight[i], 2, 13, 5};
        const float d = difference(&l, &alone, &among);
        cr_expect(d <= TOLERANCE, "%s is off by %g", tight[i], (double)d);
    }
    lab_close(&l);
}

/* But StreamingLLM's, whose definition cuts after each chunk: what a chunk sees is its matter. */
Test(policy_sessions, the_chunks_of_a_prompt_change_nothing)
{
    static const int64_t chunks[] = {1, 4, 12};
    lab l = lab_open();
    for (size_t i = 0; i < COUNT(tight); i++)
        for (size_t c = 0; c < COUNT(chunks) && strncmp(tight[i], "streaming", 9) != 0; c++) {
            const plan whole = {tight[i], 1, 13, 0}, parts = {tight[i], 1, 13, chunks[c]};
            const float d = difference(&l, &whole, &parts);
            cr_expect(d <= TOLERANCE, "%s in chunks of %d is off by %g", tight[i], (int)chunks[c],
                      (double)d);
        }
    lab_close(&l);
}

/* Every policy changes something, or the tests above compare dense with dense; but Quest's, which
 * reads all in the first two layers, and the fixture has two. */
Test(policy_sessions, a_tight_budget_is_not_dense)
{
    lab l = lab_open();
    for (size_t i = 0; i < COUNT(tight); i++) {
        const plan dense = {"dense", 1, 13, 0}, small = {tight[i], 1, 13, 0};
        const float d = difference(&l, &dense, &small);
        if (!strncmp(tight[i], "quest", 5) && l.model->config.layers <= 2)
            cr_expect(d <= TOLERANCE, "%s is off by %g", tight[i], (double)d);
        else
            cr_expect(d > TOLERANCE, "%s differs by %g only", tight[i], (double)d);
    }
    lab_close(&l);
}

/* ---- forks ---------------------------------------------------------------------------------- */

enum { CHAINS = 3 };

/* Tokens of chain i at position t: another text for each. */
static int32_t chain_token(const lab *l, int i, int64_t t)
{
    return l->ids[(i % l->ref.B) * l->ref.T + (t + 3 * i) % l->ref.T];
}

/* Logits of CHAINS chains, step by step, after a prompt of text 0: [steps, CHAINS, V]. */
static float *run_chains(const lab *l, dms_session *s, int64_t prompt, bool fork)
{
    const int64_t T = l->ref.T;
    float *out = malloc((size_t)((T - prompt) * CHAINS * l->vocab) * sizeof(float));
    int sequences[CHAINS];
    int32_t tokens[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        if (fork && i) { /* the second from the first, the third from the second */
            must(dms_session_fork(s, sequences[i - 1], &sequences[i]));
            continue;
        }
        must(dms_cache_admit(dms_session_cache(s), &sequences[i]));
        must(dms_session_prefill(s, NULL, sequences[i], l->ids, prompt - 2, 5));
        for (int64_t t = prompt - 2; t < prompt; t++) /* decided one by one */
            must(dms_session_decode(s, out, &sequences[i], l->ids + t, 1));
    }
    must(dms_cache_reset_peak(dms_session_cache(s)));
    for (int64_t t = prompt; t < T; t++) {
        for (int i = 0; i < CHAINS; i++)
            tokens[i] = chain_token(l, i, t);
        must(dms_session_decode(s, out + (t - prompt) * CHAINS * l->vocab, sequences, tokens,
                                CHAINS));
    }
    for (int i = 0; i < CHAINS; i++)
        must(dms_cache_release(dms_session_cache(s), sequences[i]));
    return out;
}

/* `fewer`: forks share pages, so there are fewer than apart. */
static void compare_chains(const lab *l, const char *name, dms_dtype kv, bool fewer)
{
    const int64_t prompt = 20;
    dms_policy policy;
    float *logits[2];
    dms_cache_stats stats[2];
    must(dms_policy_parse(&policy, name));
    for (int i = 0; i < 2; i++) {
        dms_session *s = NULL;
        must(dms_session_open(&s, &(dms_session_options){.model = l->model,
                                                         .context = l->ref.T,
                                                         .max_sequences = CHAINS,
                                                         .kv_dtype = kv,
                                                         .policy = &policy,
                                                         .slab_bytes = 1}));
        logits[i] = run_chains(l, s, prompt, i);
        must(dms_cache_measure(&stats[i], dms_session_cache(s)));
        dms_session_close(s);
    }
    cr_expect(!memcmp(logits[0], logits[1],
                      (size_t)((l->ref.T - prompt) * CHAINS * l->vocab) * sizeof(float)),
              "%s: chains that were forked differ from those that were not", name);
    /* of steps alone; the two tokens of each prompt that were stepped are read once by a fork */
    cr_expect(stats[1].kv_reads < stats[0].kv_reads && !stats[1].live_slots && !stats[1].slabs);
    cr_expect((stats[1].peak_slots < stats[0].peak_slots) == fewer, "%s: %d slots, apart %d", name,
              (int)stats[1].peak_slots, (int)stats[0].peak_slots);
    cr_expect((stats[1].peak_bytes < stats[0].peak_bytes) == fewer, "%s: %d bytes, apart %d", name,
              (int)stats[1].peak_bytes, (int)stats[0].peak_bytes);
    free(logits[0]);
    free(logits[1]);
}

Test(policy_sessions, chains_that_share_a_prompt_are_those_that_do_not)
{
    static const char *const copied[] = {"streaming:7:2", "streaming-abs:7:2", "tova:40%",
                                         "h2o:6",         "snapkv:7:3",        "tova:18",
                                         "h2o:18",        "streaming:19:2",    "snapkv:18:3"};
    lab l = lab_open();
    for (dms_dtype kv = DMS_F32; kv <= DMS_BF16; kv++) {
        compare_chains(&l, "dense", kv, true);
        compare_chains(&l, "quest:16", kv, true);
        compare_chains(&l, "window:5", kv, false);
        for (size_t i = 0; i < COUNT(copied); i++)
            compare_chains(&l, copied[i], kv, false);
    }
    lab_close(&l);
}

/* Both conventions of a gate; the other one remembers the decision of the last token. */
Test(policy_sessions, chains_of_a_gated_model_are_those_that_do_not_share)
{
    lab l = lab_open();
    dms_model_close(l.model);
    for (int own = 0; own < 2; own++) {
        l.model = reference_model(&l.ref, l.dev, "adapter");
        l.model->gate.own = own;
        compare_chains(&l, "dms", DMS_F32, false);
        compare_chains(&l, "dms", DMS_BF16, false);
        if (own)
            break;
        dms_model_close(l.model);
    }
    lab_close(&l);
}

/* A fork decides for itself after the fork: two chains fed alike part. */
Test(policy_sessions, a_fork_of_a_random_policy_draws_for_itself)
{
    lab l = lab_open();
    dms_session *s = session_of(&l, "random:3:1", 2);
    float *out = malloc((size_t)(2 * l.vocab) * sizeof(float));
    int32_t both[2];
    bool part = false;
    must(dms_cache_admit(dms_session_cache(s), &both[0]));
    must(dms_session_prefill(s, NULL, both[0], l.ids, 8, 0));
    must(dms_session_fork(s, both[0], &both[1]));
    for (int64_t t = 8; t < l.ref.T; t++) {
        const int32_t same[2] = {l.ids[t], l.ids[t]};
        must(dms_session_decode(s, out, both, same, 2));
        const bool equal = !memcmp(out, out + l.vocab, (size_t)l.vocab * sizeof(float));
        part |= !equal;
        cr_expect(equal || t > 8); /* the first step's eviction comes after its window */
    }
    cr_expect(part);
    free(out);
    dms_session_close(s);
    lab_close(&l);
}

/* ---- beside the masked scorer --------------------------------------------------------------- */

static dms_score_report masked(lab *l, const char *name)
{
    dms_policy policy;
    dms_scorer *s = NULL;
    const int64_t n = l->ref.B * l->ref.T;
    int32_t *next = malloc((size_t)n * sizeof(*next));
    for (int64_t i = 0; i < n; i++)
        next[i] = (i + 1) % l->ref.T ? l->ids[i + 1] : -1;
    must(dms_policy_parse(&policy, name));
    must(dms_scorer_open(&s, &(dms_score_options){.student = l->model,
                                                  .teacher = l->model,
                                                  .batch = l->ref.B,
                                                  .context = l->ref.T,
                                                  .sequences = l->ref.B,
                                                  .policies = &policy,
                                                  .n_policies = 1,
                                                  .seed = 3}));
    must(dms_scorer_add(s, l->ids, next, l->ref.B));
    const dms_score_report report = dms_scorer_report(s, 0);
    dms_scorer_close(s);
    free(next);
    return report;
}

static double nll(const float *logits, int64_t n, int32_t token)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)logits[i]);
    return log(sum) - (double)logits[token];
}

/* All texts by decode steps from the first token on: the mean of the scored tokens. */
static double decoded(const lab *l, dms_session *s)
{
    const int64_t T = l->ref.T;
    const int n = (int)l->ref.B;
    float *logits = malloc((size_t)(n * l->vocab) * sizeof(float));
    double sum = 0;
    int sequences[8], counted = 0;
    int32_t units[8], tokens[8];
    for (int b = 0; b < n; b++) {
        must(dms_cache_admit(dms_session_cache(s), &sequences[b]));
        units[b] = sequences[b];
    }
    for (int64_t t = 0; t < T; t++) {
        for (int b = 0; b < n; b++)
            tokens[b] = l->ids[b * T + t];
        must(dms_session_decode(s, logits, units, tokens, n));
        for (int b = 0; b < n && t + 1 < T; b++) {
            if (dms_config_is_eos(&l->model->config, tokens[b]))
                continue;
            sum += nll(logits + b * l->vocab, l->vocab, l->ids[b * T + t + 1]);
            counted++;
        }
    }
    free(logits);
    return sum / counted;
}

Test(policy_sessions, decode_steps_score_and_read_what_the_masked_scorer_does)
{
    static const char *const names[] = {"dense", "window:5", "random:2:3", "random:4:0"};
    lab l = lab_open();
    for (size_t i = 0; i < COUNT(names); i++) {
        const dms_score_report want = masked(&l, names[i]);
        dms_session *s = session_of(&l, names[i], (int)l.ref.B);
        dms_cache_stats got;
        const double score = decoded(&l, s);
        must(dms_cache_measure(&got, dms_session_cache(s)));
        const double read = (double)got.kv_reads / (double)got.dense_reads;
        cr_expect(fabs(score - want.scores.nll) < 1e-5, "%s: nll %g, masked %g", names[i], score,
                  want.scores.nll);
        cr_expect(fabs(read - want.read_ratio) < 1e-12, "%s: read ratio %g, masked %g", names[i],
                  read, want.read_ratio);
        cr_expect(fabs(dms_cache_ratio(&got) - want.cache_cr) < 1e-9, "%s: cache CR %g, masked %g",
                  names[i], dms_cache_ratio(&got), want.cache_cr);
        dms_session_close(s);
    }
    lab_close(&l);
}
