/* Many prompts over one session: likelihoods, answers and costs, whatever runs beside them. */
#include "eval/jobs.h"
#include "tests/fixtures.h"
#include "tests/reference.h"

/* Logits of the fixtures' models are off by some 1e-6 a layer where sums are made in another order;
 * a likelihood adds up to 12 of them. */
#define TOLERANCE 1e-4

enum { V = 320, LAYERS = 2, GROUPS = 3, MOST = 32 };

typedef struct {
    dms_device *dev;
    reference ref;
    dms_model *student, *teacher;
    int32_t *ids; /* [B, T] */
} lab;

static lab lab_open(void)
{
    lab l = {0};
    char base[1024], file[1024];
    l.dev = rig_open_device(rig_device(), 1); /* too small to share */
    l.ref = reference_open(fixture(base, "tiny/llama"),
                           fixture(file, "tiny/llama/dms_adapter.safetensors"));
    l.ids = reference_read(&l.ref, "ids");
    l.student = reference_model(&l.ref, l.dev, "adapter");
    l.teacher = reference_model(&l.ref, l.dev, "");
    cr_assert(l.teacher->config.vocab == V && l.teacher->config.layers == LAYERS &&
              l.teacher->config.kv_heads == GROUPS && l.ref.T == MOST);
    return l;
}

static void lab_close(lab *l)
{
    dms_model_close(l->student);
    dms_model_close(l->teacher);
    reference_close(&l->ref);
    free(l->ids);
    l->dev->close(l->dev);
}

/* Logits after each of n tokens in one masked pass, [n, V]; the caller frees them. */
static float *masked_logits(const lab *l, const dms_model *m, const int32_t *text, int64_t n)
{
    const dms_config *c = &m->config;
    const dms_gate_kind gate = m->gate.kind;
    rig r = {.dev = l->dev};
    dms_tape *tape = NULL;
    int32_t at[MOST];
    must(dms_arena_open(&r.arena, l->dev, (size_t)16 << 20));
    for (int32_t i = 0; i < n; i++)
        at[i] = i;
    const dms_tensor ids = rig_upload(&r, rig_shape_i32(1, n), text),
                     positions = rig_upload(&r, rig_shape_i32(1, n), at);
    const dms_tensor d = rig_empty(&r, rig_shape(c->layers, 1, c->kv_heads, n));
    dms_tensor logits = rig_empty(&r, rig_shape(1, n, V, 0));
    must(dms_tape_open(&tape, &(dms_tape_options){.device = l->dev,
                                                  .max_nodes = dms_transformer_nodes(m),
                                                  .keep_bytes = (size_t)16 << 20,
                                                  .scratch_bytes = (size_t)16 << 20}));
    dms_hard_context hard = {m->gate.window, NULL, &d, NULL};
    dms_var *x = reference_forward(&(dms_pass){.tape = tape,
                                               .model = m,
                                               .ids = &ids,
                                               .positions = &positions,
                                               .gated = gate,
                                               .attend = gate ? dms_attend_hard : dms_attend_dense,
                                               .context = gate ? &hard : NULL});
    must(dms_linear(&logits, &x->value, &m->head->value, NULL, NULL));
    float *host = rig_read(&logits);
    dms_tape_close(tape);
    dms_arena_close(&r.arena);
    return host;
}

static double log_softmax(const float *logits, int32_t id)
{
    double sum = 0;
    for (int v = 0; v < V; v++)
        sum += exp((double)logits[v]);
    return (double)logits[id] - log(sum);
}

static int32_t largest(const float *logits)
{
    int32_t best = 0;
    for (int32_t v = 1; v < V; v++)
        best = logits[v] > logits[best] ? v : best;
    return best;
}

static dms_session *session_of(const dms_model *m, const char *policy, int sequences)
{
    dms_policy p;
    dms_session *s = NULL;
    must(dms_policy_parse(&p, policy));
    must(dms_session_open(&s, &(dms_session_options){.model = m,
                                                     .context = MOST,
                                                     .max_sequences = sequences,
                                                     .kv_dtype = DMS_F32,
                                                     .policy = &p,
                                                     .seed = 3}));
    return s;
}

/* What ends an answer: `end`, which does not belong to it, and `stop`, which does; -1: nothing. */
typedef struct {
    int32_t end, stop;
    int64_t finished;
} rule;

static dms_status ends(void *context, const dms_job *job, int32_t id, bool *end, bool *keep)
{
    const rule *r = context;
    (void)job;
    *end = id == r->end || id == r->stop;
    *keep = id != r->end;
    return DMS_OK;
}

static void count_finished(void *context, int64_t done, int64_t total)
{
    rule *r = context;
    cr_expect(done == r->finished + 1 && done <= total);
    r->finished = done;
}

static dms_status try_jobs(dms_run_cost *cost, dms_session *s, int sequences, float temperature,
                           rule *until, dms_job *jobs, int64_t n)
{
    *cost = (dms_run_cost){0};
    until->finished = 0;
    const dms_jobs_options o = {.session = s,
                                .sequences = sequences,
                                .vocab = V,
                                .sampling = {.temperature = temperature, .top_p = 1, .seed = 11},
                                .ends = ends,
                                .progress = count_finished,
                                .context = until};
    return dms_jobs_run(cost, &o, jobs, n);
}

static void run_jobs(dms_run_cost *cost, dms_session *s, int sequences, float temperature,
                     rule *until, dms_job *jobs, int64_t n)
{
    must(try_jobs(cost, s, sequences, temperature, until, jobs, n));
    cr_expect(until->finished == n);
}

static void free_answers(dms_job *jobs, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        dms_tokens_free(&jobs[i].answer);
}

/* ---- likelihoods ---------------------------------------------------------------------------- */

/* Texts of the fixture, divided after 1, 4, 7, ... tokens, with 1 to 12 given tokens. */
static void weigh_all(const lab *l, const dms_model *m, const char *policy)
{
    enum { N = 9 };
    dms_job jobs[N] = {{0}};
    dms_run_cost cost;
    rule never = {-1, -1, 0};
    dms_session *s = session_of(m, policy, 4);
    for (int i = 0; i < N; i++) {
        const int32_t *text = l->ids + (i % 2) * MOST;
        jobs[i] = (dms_job){.prompt = text, .n_prompt = 1 + 3 * i / 2};
        jobs[i].given = text + jobs[i].n_prompt;
        jobs[i].n_given = 1 + i * 11 / (N - 1);
    }
    run_jobs(&cost, s, 4, 0, &never, jobs, N);
    for (int i = 0; i < N; i++) {
        const int64_t n = jobs[i].n_prompt;
        float *logits = masked_logits(l, m, jobs[i].prompt, n + jobs[i].n_given);
        double want = 0;
        bool greedy = true;
        for (int64_t k = 0; k < jobs[i].n_given; k++) {
            const float *row = logits + (n - 1 + k) * V;
            want += log_softmax(row, jobs[i].given[k]);
            greedy = greedy && largest(row) == jobs[i].given[k];
        }
        cr_expect(fabs(jobs[i].log_likelihood - want) <= TOLERANCE, "%s, job %d: %.9g, not %.9g",
                  policy, i, jobs[i].log_likelihood, want);
        cr_expect(jobs[i].greedy == greedy && !jobs[i].answer.n);
        free(logits);
    }
    dms_session_close(s);
}

Test(jobs, likelihoods_are_those_of_the_masked_pass)
{
    lab l = lab_open();
    weigh_all(&l, l.teacher, "dense");
    weigh_all(&l, l.student, "dms");
    lab_close(&l);
}

Test(jobs, a_continuation_is_greedy_where_each_token_is_the_most_probable)
{
    enum { P = 5, N = 6 };
    lab l = lab_open();
    int32_t text[P + N + 1], other[P + N];
    memcpy(text, l.ids, P * sizeof(*text));
    for (int64_t n = P; n < P + N; n++) {
        float *logits = masked_logits(&l, l.teacher, text, n);
        text[n] = largest(logits + (n - 1) * V);
        free(logits);
    }
    memcpy(other, text, sizeof(other));
    other[P + N - 1] = (other[P + N - 1] + 1) % V; /* the last token is another */
    dms_job jobs[] = {{.prompt = text, .n_prompt = P, .given = text + P, .n_given = N},
                      {.prompt = other, .n_prompt = P, .given = other + P, .n_given = N},
                      {.prompt = other, .n_prompt = P, .given = other + P, .n_given = N - 1}};
    dms_run_cost cost;
    rule never = {-1, -1, 0};
    dms_session *s = session_of(l.teacher, "dense", 2);
    run_jobs(&cost, s, 2, 0, &never, jobs, COUNT(jobs));
    cr_expect(jobs[0].greedy && !jobs[1].greedy && jobs[2].greedy);
    cr_expect(jobs[0].log_likelihood > jobs[1].log_likelihood);
    dms_session_close(s);
    lab_close(&l);
}

/* ---- answers -------------------------------------------------------------------------------- */

/* The answer to text `row`'s first n tokens, decoded alone. */
static void decode_alone(const lab *l, int32_t *answer, int row, int64_t n, int64_t max_new,
                         float temperature, uint32_t stream)
{
    dms_session *s = session_of(l->teacher, "dense", 1);
    dms_sampler *sampler = NULL;
    float logits[V];
    int sequence;
    must(dms_sampler_open(
        &sampler, &(dms_sampler_options){.temperature = temperature, .top_p = 1, .seed = 11}, V));
    must(dms_cache_admit(dms_session_cache(s), &sequence));
    must(dms_session_prefill(s, logits, sequence, l->ids + row * MOST, n, 0));
    for (int64_t i = 0; i < max_new; i++) {
        const int32_t of = sequence;
        must(dms_sampler_pick(sampler, &answer[i], logits, stream, n + i));
        if (i + 1 < max_new)
            must(dms_session_decode(s, logits, &of, &answer[i], 1));
    }
    dms_sampler_close(sampler);
    dms_session_close(s);
}

enum { CHATS = 7 };

/* Job i: of text i%2, 2 + i tokens of prompt and 3 + i of answer; every third one weighs. */
static void fill_jobs(const lab *l, dms_job jobs[CHATS])
{
    for (int i = 0; i < CHATS; i++) {
        const int32_t *text = l->ids + i % 2 * MOST;
        jobs[i] = (dms_job){
            .prompt = text, .n_prompt = 2 + i, .max_new = 3 + i, .stream = 100 + (uint32_t)i};
        if (i % 3 == 2) {
            jobs[i].given = text + 2 + i;
            jobs[i].n_given = 3 + i;
        }
    }
}

Test(jobs, answers_are_those_of_decoding_alone)
{
    lab l = lab_open();
    rule never = {-1, -1, 0};
    for (int warm = 0; warm < 2; warm++) {
        dms_job jobs[CHATS];
        dms_run_cost cost;
        fill_jobs(&l, jobs);
        dms_session *s = session_of(l.teacher, "dense", 3);
        run_jobs(&cost, s, 3, (float)warm, &never, jobs, CHATS);
        for (int i = 0; i < CHATS; i++) {
            int32_t want[16];
            if (jobs[i].given)
                continue;
            decode_alone(&l, want, i % 2, 2 + i, 3 + i, (float)warm, 100 + (uint32_t)i);
            cr_expect(jobs[i].answer.n == 3 + i && !jobs[i].ended, "job %d", i);
            cr_expect_arr_eq(jobs[i].answer.ids, want, (size_t)(3 + i) * sizeof(*want));
        }
        free_answers(jobs, CHATS);
        dms_session_close(s);
    }
    lab_close(&l);
}

/* Results of the jobs in another order, so many at once. */
static void expect_same(const lab *l, const dms_job *want, int sequences, bool reversed)
{
    dms_job jobs[CHATS], mixed[CHATS];
    dms_run_cost cost;
    rule never = {-1, -1, 0};
    fill_jobs(l, jobs);
    for (int i = 0; i < CHATS; i++)
        mixed[i] = jobs[reversed ? CHATS - 1 - i : i];
    dms_session *s = session_of(l->teacher, "dense", sequences);
    run_jobs(&cost, s, sequences, 1, &never, mixed, CHATS);
    for (int i = 0; i < CHATS; i++) {
        const dms_job *got = &mixed[reversed ? CHATS - 1 - i : i];
        cr_expect(fabs(got->log_likelihood - want[i].log_likelihood) <= TOLERANCE &&
                  got->greedy == want[i].greedy);
        cr_assert(got->answer.n == want[i].answer.n);
        if (got->answer.n)
            cr_expect_arr_eq(got->answer.ids, want[i].answer.ids,
                             (size_t)got->answer.n * sizeof(int32_t), "job %d of %d at once", i,
                             sequences);
    }
    free_answers(mixed, CHATS);
    dms_session_close(s);
}

Test(jobs, the_batch_and_the_order_change_nothing)
{
    lab l = lab_open();
    dms_job jobs[CHATS];
    dms_run_cost cost;
    rule never = {-1, -1, 0};
    fill_jobs(&l, jobs);
    dms_session *s = session_of(l.teacher, "dense", 1);
    run_jobs(&cost, s, 1, 1, &never, jobs, CHATS);
    for (int sequences = 1; sequences <= CHATS + 1; sequences += 3) {
        expect_same(&l, jobs, sequences, false);
        expect_same(&l, jobs, sequences, true);
    }
    free_answers(jobs, CHATS);
    dms_session_close(s);
    lab_close(&l);
}

/* Runs one job of 4 prompt tokens under the rule; the caller frees its answer. */
static dms_job run_one(const lab *l, rule until, int64_t max_new, dms_run_cost *cost)
{
    dms_job job = {.prompt = l->ids, .n_prompt = 4, .max_new = max_new};
    dms_session *s = session_of(l->teacher, "dense", 2);
    run_jobs(cost, s, 2, 0, &until, &job, 1);
    dms_session_close(s);
    return job;
}

Test(jobs, end_tokens_are_left_out_and_stops_are_kept)
{
    lab l = lab_open();
    dms_run_cost cost;
    int32_t alone[12];
    decode_alone(&l, alone, 0, 4, 12, 0, 0);
    int first = 1; /* of the answer, a token that was not there before */
    for (bool seen = true; seen; first += seen) {
        seen = false;
        for (int i = 0; i < first; i++)
            seen = seen || alone[i] == alone[first];
        cr_assert(first < 11);
    }
    dms_job job = run_one(&l, (rule){alone[first], -1, 0}, 12, &cost);
    cr_expect(job.ended && job.answer.n == first && cost.decoded == first);
    dms_tokens_free(&job.answer);
    job = run_one(&l, (rule){-1, alone[first], 0}, 12, &cost);
    cr_expect(job.ended && job.answer.n == first + 1 && job.answer.ids[first] == alone[first]);
    cr_expect(cost.decoded == first, "the stop was fed");
    dms_tokens_free(&job.answer);
    job = run_one(&l, (rule){-1, alone[first], 0}, first, &cost);
    cr_expect(!job.ended && job.answer.n == first && cost.decoded == first - 1);
    dms_tokens_free(&job.answer);
    lab_close(&l);
}

Test(jobs, that_end_with_their_prompt_decode_nothing)
{
    lab l = lab_open();
    dms_run_cost cost;
    int32_t alone[1];
    decode_alone(&l, alone, 0, 4, 1, 0, 0);
    rule at_once = {alone[0], -1, 0};
    dms_job jobs[] = {{.prompt = l.ids, .n_prompt = 4, .max_new = 9},
                      {.prompt = l.ids, .n_prompt = 31, .given = l.ids + 31, .n_given = 1},
                      {.prompt = l.ids, .n_prompt = 4, .max_new = 28},
                      {.prompt = l.ids, .n_prompt = 4, .max_new = 1}};
    dms_session *s = session_of(l.teacher, "dense", 1);
    run_jobs(&cost, s, 1, 0, &at_once, jobs, COUNT(jobs));
    cr_expect(jobs[0].ended && !jobs[0].answer.n && jobs[2].ended && jobs[3].ended);
    cr_expect(cost.prefilled == 4 + 31 + 4 + 4 && !cost.decoded && !cost.kv_reads);
    cr_expect(dms_cost_read_ratio(&cost) == 1 && dms_cost_peak_ratio(&cost) == 1);
    cr_expect(cost.kv_prefill_peak_tokens == 31 && cost.kv_peak_tokens == 0);
    dms_session_close(s);
    lab_close(&l);
}

Test(jobs, too_long_ones_are_refused_before_any_runs)
{
    lab l = lab_open();
    dms_run_cost cost;
    rule never = {-1, -1, 0};
    dms_job jobs[] = {{.prompt = l.ids, .n_prompt = 4, .max_new = 28},
                      {.prompt = l.ids, .n_prompt = 4, .max_new = 29}};
    dms_session *s = session_of(l.teacher, "dense", 2);
    rig_expect_failure(try_jobs(&cost, s, 2, 0, &never, jobs, 2), DMS_ERR_ARG, "item 1");
    cr_expect(!never.finished && !cost.prefilled && !jobs[0].answer.n);
    jobs[1] = (dms_job){.prompt = l.ids, .n_prompt = 30, .given = l.ids, .n_given = 3};
    rig_expect_failure(try_jobs(&cost, s, 2, 0, &never, jobs, 2), DMS_ERR_ARG,
                       "30 tokens and takes 3 more");
    jobs[1] = (dms_job){.prompt = l.ids, .n_prompt = 0, .max_new = 3};
    rig_expect_failure(try_jobs(&cost, s, 2, 0, &never, jobs, 2), DMS_ERR_ARG, "context of 32");
    jobs[1] = jobs[0];
    run_jobs(&cost, s, 2, 0, &never, jobs, 2); /* the session is as it was */
    free_answers(jobs, 2);
    dms_session_close(s);
    lab_close(&l);
}

/* ---- prompts that jobs share ---------------------------------------------------------------- */

enum { SHARED = 10 };

/* Six jobs with one prompt of 17 tokens, one with 5, three with 9; each has the tokens in memory of
 * its own. The fifth and the ninth weigh one token and three. */
static void fill_shared(const lab *l, int32_t prompts[SHARED][MOST], dms_job jobs[SHARED])
{
    for (int i = 0; i < SHARED; i++) {
        const int64_t n = i < 6 ? 17 : i < 7 ? 5 : 9;
        memcpy(prompts[i], l->ids + i / 6 * MOST, MOST * sizeof(int32_t));
        jobs[i] = (dms_job){
            .prompt = prompts[i], .n_prompt = n, .max_new = 2 + i * 5 % 11, .stream = (uint32_t)i};
        if (i == 4 || i == 8) {
            jobs[i].given = prompts[i] + n;
            jobs[i].n_given = i == 4 ? 1 : 3;
        }
    }
}

/* Beside `want`, which were run one by one. */
static void run_shared(const lab *l, const char *policy, int sequences, const dms_job *want)
{
    int32_t prompts[SHARED][MOST];
    dms_job jobs[SHARED];
    dms_run_cost cost;
    dms_cache_stats stats;
    rule never = {-1, -1, 0};
    fill_shared(l, prompts, jobs);
    const dms_model *m = strcmp(policy, "dms") ? l->teacher : l->student;
    dms_session *s = session_of(m, policy, sequences);
    run_jobs(&cost, s, sequences, 1, &never, jobs, SHARED);
    cr_expect(cost.prefilled == 17 + 5 + 9, "%d read with %d at once", (int)cost.prefilled,
              sequences);
    for (int i = 0; i < SHARED; i++) {
        cr_expect(fabs(jobs[i].log_likelihood - want[i].log_likelihood) <= TOLERANCE &&
                  jobs[i].greedy == want[i].greedy);
        cr_assert(jobs[i].answer.n == want[i].answer.n);
        if (jobs[i].answer.n)
            cr_expect_arr_eq(jobs[i].answer.ids, want[i].answer.ids,
                             (size_t)jobs[i].answer.n * sizeof(int32_t), "%s: job %d of %d at once",
                             policy, i, sequences);
    }
    must(dms_cache_measure(&stats, dms_session_cache(s)));
    cr_expect(!stats.live_slots && !stats.slabs);
    cr_expect(dms_cache_vacant(dms_session_cache(s)) == sequences);
    free_answers(jobs, SHARED);
    dms_session_close(s);
}

Test(jobs, with_one_prompt_read_it_once_and_answer_as_if_alone)
{
    static const char *const policies[] = {"dense", "dms", "window:5", "tova:4", "streaming:7:2"};
    lab l = lab_open();
    for (size_t i = 0; i < COUNT(policies); i++) {
        int32_t prompts[SHARED][MOST];
        dms_job jobs[SHARED];
        dms_run_cost cost;
        rule never = {-1, -1, 0};
        fill_shared(&l, prompts, jobs);
        const dms_model *m = strcmp(policies[i], "dms") ? l.teacher : l.student;
        dms_session *s = session_of(m, policies[i], 1);
        run_jobs(&cost, s, 1, 1, &never, jobs, SHARED);
        cr_expect(cost.prefilled == 6 * 17 + 5 + 3 * 9); /* one sequence cannot keep a prompt */
        for (int sequences = 2; sequences <= SHARED + 1; sequences += sequences > 3 ? 7 : 1)
            run_shared(&l, policies[i], sequences, jobs);
        free_answers(jobs, SHARED);
        dms_session_close(s);
    }
    lab_close(&l);
}

/* Three chains of two steps after 17 tokens, 16 of which are in memory once: 1 + 2 are not, in each
 * of them. Every chain reads all it sees. */
Test(jobs, chains_cost_what_they_hold_and_read)
{
    lab l = lab_open();
    dms_run_cost c;
    rule never = {-1, -1, 0};
    dms_job jobs[3] = {{0}};
    for (uint32_t i = 0; i < 3; i++)
        jobs[i] = (dms_job){.prompt = l.ids, .n_prompt = 17, .max_new = 3, .stream = i};
    dms_session *s = session_of(l.teacher, "dense", 3);
    run_jobs(&c, s, 3, 1, &never, jobs, 3);
    cr_expect(c.prefilled == 17 && c.decoded == 6);
    cr_expect(c.dense_reads == LAYERS * GROUPS * 3 * (18 + 19) && c.kv_reads == c.dense_reads);
    cr_expect(c.kv_peak_tokens == 16 + 3 * 3, "%g", c.kv_peak_tokens);
    cr_expect(c.dense_peak_tokens == 16 + 3 * 3, "%g", c.dense_peak_tokens);
    cr_expect(c.kv_prefill_peak_tokens == 16 + 3 * 1, "%g", c.kv_prefill_peak_tokens);
    free_answers(jobs, 3);
    dms_session_close(s);
    lab_close(&l);
}

/* ---- costs ---------------------------------------------------------------------------------- */

/* Prompts of 5, 3 and 4 tokens with answers of 4, 2 and 3, two at once. The first token of an
 * answer comes with its prompt, so a job decodes one less than it answers:
 *   step 1: texts of 5 + 1 and 3 + 1 tokens; the second job is done, the third one's prompt is read
 *   step 2: texts of 5 + 2 and 4 + 1
 *   step 3: texts of 5 + 3 and 4 + 2; both are done */
static dms_run_cost run_three(const lab *l, const char *policy)
{
    dms_job jobs[] = {{.prompt = l->ids, .n_prompt = 5, .max_new = 4},
                      {.prompt = l->ids, .n_prompt = 3, .max_new = 2},
                      {.prompt = l->ids, .n_prompt = 4, .max_new = 3}};
    dms_run_cost cost;
    rule never = {-1, -1, 0};
    dms_session *s = session_of(l->teacher, policy, 2);
    run_jobs(&cost, s, 2, 0, &never, jobs, COUNT(jobs));
    free_answers(jobs, COUNT(jobs));
    dms_session_close(s);
    cr_expect(cost.prefilled == 5 + 3 + 4 && cost.decoded == 2 + 2 + 2);
    cr_expect(cost.dense_reads == LAYERS * GROUPS * (6 + 4 + 7 + 5 + 8 + 6));
    cr_expect(cost.dense_peak_tokens == 8 + 6);
    cr_expect(cost.prefill_s > 0 && cost.decode_s > 0);
    return cost;
}

Test(jobs, costs_are_those_counted_by_hand)
{
    lab l = lab_open();
    const double slot = 2 * 8 * sizeof(float); /* key and value of 8 channels */
    dms_run_cost c = run_three(&l, "dense");
    cr_expect(c.kv_reads == c.dense_reads && dms_cost_read_ratio(&c) == 1);
    cr_expect(c.kv_peak_tokens == 8 + 6 && dms_cost_peak_ratio(&c) == 1);
    cr_expect(c.kv_prefill_peak_tokens == 6 + 4, "%g", c.kv_prefill_peak_tokens);
    /* a page of 16 slots for each of two texts, layer and head at least */
    cr_expect(c.kv_peak_bytes >= 2 * 16 * LAYERS * GROUPS * slot && !c.bound_reads);
    c = run_three(&l, "window:4"); /* a token sees four keys, and four stay */
    cr_expect(c.kv_reads == LAYERS * GROUPS * 6 * 4, "%d", (int)c.kv_reads);
    cr_expect(fabs(dms_cost_read_ratio(&c) - 24.0 / 36) < 1e-12);
    cr_expect(c.kv_peak_tokens == 4 + 4, "%g", c.kv_peak_tokens);
    /* three stay, and the new one, which only the next one drops; layers cut one after the other */
    c = run_three(&l, "tova:3");
    cr_expect(c.kv_reads == LAYERS * GROUPS * 6 * 4, "%d", (int)c.kv_reads);
    cr_expect(c.kv_peak_tokens >= 7 && c.kv_peak_tokens <= 8, "%g", c.kv_peak_tokens);
    /* the first layer has 3 of the first text and 4 of the third, the second 3 and none */
    cr_expect(c.kv_prefill_peak_tokens >= 6.5 && c.kv_prefill_peak_tokens <= 8, "%g",
              c.kv_prefill_peak_tokens);
    lab_close(&l);
}
