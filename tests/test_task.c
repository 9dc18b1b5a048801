/* Items of every kind on a tiny model: what is logged is what is judged, and what cannot run is
 * refused. */
#include <jansson.h>
#include <math.h>

#include "eval/prompt.h"
#include "eval/task.h"
#include "eval/verdict.h"
#include "tasks/pass.h"
#include "tests/files.h"
#include "tests/fixtures.h"

typedef struct {
    dms_device *dev;
    dms_pair pair;
} lab;

static lab lab_open(int64_t positions)
{
    lab l;
    char path[1024];
    must(dms_device_from_name(&l.dev, "cpu", 1));
    must(dms_pair_open(&l.pair, &(dms_pair_options){.model = fixture(path, "tiny/llama"),
                                                    .device = l.dev,
                                                    .compute = DMS_COMPUTE_F32,
                                                    .positions = positions,
                                                    .shift = -1}));
    return l;
}

static void lab_close(lab *l)
{
    dms_pair_close(&l->pair);
    l->dev->close(l->dev);
}

typedef struct {
    const dms_item *items;
    int n, done;
} list;

/* The item and its texts are gone with the next call, as a reader's are. */
static dms_status next_item(void *context, const dms_item **item)
{
    static dms_item hand;
    static char prompt[4096];
    list *l = context;
    *item = NULL;
    if (l->done == l->n)
        return DMS_OK;
    hand = l->items[l->done++];
    if (hand.prompt) {
        snprintf(prompt, sizeof(prompt), "%s", hand.prompt);
        hand.prompt = prompt;
    }
    *item = &hand;
    return DMS_OK;
}

/* What is the same in all runs; tests change it. */
static dms_task_options options_of(const lab *l)
{
    return (dms_task_options){.pair = &l->pair,
                              .policy = &dms_policy_dense,
                              .batch = 3,
                              .samples = 1,
                              .sampling = {.top_p = 1, .seed = 5},
                              .max_new = 6};
}

/* Runs the items; *log becomes an array of the logged lines, which the caller ends. */
static dms_status try_task(dms_task_result *r, json_t **log, dms_task_options o,
                           const dms_item *items, int n)
{
    list l = {items, n, 0};
    char line[8192];
    o.log = tmpfile();
    const dms_status status = dms_task_run(r, &o, &(dms_item_feed){next_item, &l});
    *log = json_array();
    rewind(o.log);
    while (fgets(line, sizeof(line), o.log))
        json_array_append_new(*log, json_loads(line, JSON_ALLOW_NUL, NULL));
    fclose(o.log);
    return status;
}

static dms_task_result run_task(json_t **log, dms_task_options o, const dms_item *items, int n)
{
    dms_task_result r;
    must(try_task(&r, log, o, items, n));
    cr_expect(r.items == n);
    return r;
}

/* What line i says was answered; it may have a 0 inside. */
static dms_span output_of(const json_t *log, size_t i)
{
    const json_t *text = json_object_get(json_array_get(log, i), "output");
    cr_assert(json_is_string(text));
    return (dms_span){json_string_value(text), json_string_length(text)};
}

/* The first `n` printable characters of ASCII in a row. */
static const char *piece_of(char *out, dms_span output, size_t n)
{
    size_t run = 0;
    for (size_t i = 0; i < output.n && run < n; i++)
        if (output.bytes[i] > ' ' && output.bytes[i] < 127)
            out[run++] = output.bytes[i];
        else
            run = 0;
    cr_assert(run == n, "an output without %zu characters in a row", n);
    out[n] = 0;
    return out;
}

static double verdict_of(const json_t *log, size_t i)
{
    return json_number_value(json_object_get(json_array_get(log, i), "verdict"));
}

static double metric(const dms_task_result *r, const char *name)
{
    for (int i = 0; i < r->n_metrics; i++)
        if (!strcmp(r->metrics[i].name, name))
            return r->metrics[i].value;
    cr_assert(false, "there is no metric %s", name);
    return 0;
}

/* sqrt(sum (x - mean)^2/(n - 1)/n) */
static double error_of(const double *x, int n)
{
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++)
        mean += x[i] / n;
    for (int i = 0; i < n; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    return sqrt(squares / (n - 1) / n);
}

/* ---- kinds ---------------------------------------------------------------------------------- */

Test(task, matches_are_judged_by_what_is_logged)
{
    lab l = lab_open(64);
    json_t *log, *again;
    dms_task_options o = options_of(&l);
    o.max_new = 40; /* noise is hardly text */
    const char *const nothing[] = {"no such text"};
    dms_item items[] = {
        {.id = "a", .prompt = "one two", .answer_prefix = "", .texts = nothing, .n_texts = 1},
        {.id = "b", .prompt = "the", .answer_prefix = " answer", .texts = nothing, .n_texts = 1},
        {.id = "c", .prompt = "x", .answer_prefix = "", .texts = nothing, .n_texts = 1}};
    dms_task_result r = run_task(&log, o, items, 3);
    cr_expect(metric(&r, "match") == 0 && r.n_metrics == 1 && json_array_size(log) == 3);
    char a[8], b[8];
    const char *const first[] = {piece_of(a, output_of(log, 0), 2)};
    const char *const half[] = {"no such text", piece_of(b, output_of(log, 1), 2)};
    items[0].texts = first;
    items[1].texts = half;
    items[1].n_texts = 2;
    r = run_task(&again, o, items, 3);
    double all[3];
    for (size_t i = 0; i < 3; i++) {
        must(dms_match_score(&all[i], DMS_MATCH_ALL, output_of(again, i), items[i].texts,
                             items[i].n_texts));
        cr_expect(verdict_of(again, i) == all[i]);
        cr_expect(dms_span_equal(output_of(again, i), output_of(log, i)));
    }
    cr_expect(all[0] == 1 && all[1] == 0.5 && all[2] == 0);
    cr_expect(fabs(metric(&r, "match") - 0.5) < 1e-12);
    cr_expect(fabs(r.metrics[0].error - error_of(all, 3)) < 1e-12);
    json_decref(log);
    json_decref(again);
    lab_close(&l);
}

Test(task, choices_are_those_of_the_logged_likelihoods)
{
    enum { N = 4 };
    lab l = lab_open(64);
    json_t *log;
    const char *const texts[] = {"a", "the whole of it", "!", "é à"};
    dms_item items[N];
    for (int i = 0; i < N; i++)
        items[i] = (dms_item){.kind = DMS_ITEM_CHOICE,
                              .id = "i",
                              .prompt = i % 2 ? "Question: what? " : "So it is",
                              .delimiter = i < 2 ? " " : "",
                              .texts = texts,
                              .n_texts = COUNT(texts),
                              .norm = i < 3 ? DMS_NORM_CHAR : DMS_NORM_NONE,
                              .label = (size_t)i % COUNT(texts)};
    dms_task_result r = run_task(&log, options_of(&l), items, N);
    cr_assert(json_array_size(log) == N * COUNT(texts));
    double acc = 0, norm = 0;
    for (size_t i = 0; i < N; i++) {
        double likelihood[COUNT(texts)];
        int64_t best, length[COUNT(texts)];
        for (size_t k = 0; k < COUNT(texts); k++) {
            likelihood[k] = verdict_of(log, i * COUNT(texts) + k);
            length[k] = k == 3 ? 3 : (int64_t)strlen(texts[k]); /* characters, not bytes */
            cr_expect(likelihood[k] < 0);
            cr_expect(dms_span_equal(output_of(log, i * COUNT(texts) + k), dms_span_of(texts[k])));
        }
        must(dms_choice_pick(&best, likelihood, NULL, COUNT(texts)));
        acc += best == (int64_t)items[i].label;
        must(dms_choice_pick(&best, likelihood, length, COUNT(texts)));
        norm += i < 3 && best == (int64_t)items[i].label;
    }
    cr_expect(metric(&r, "acc") == acc / N && fabs(metric(&r, "acc_norm") - norm / 3) < 1e-12);
    cr_expect(r.n_metrics == 2 && !strcmp(r.metrics[0].name, "acc"));
    json_decref(log);
    lab_close(&l);
}

/* MMLU: the mean is that of all items, its error comes from what differs within the subjects. */
Test(task, errors_are_pooled_over_groups)
{
    enum { N = 7 };
    static const char *const groups[N] = {"law", "art", "law", "art", "law", "law", NULL};
    static const bool right[N] = {true, false, false, true, true, false, true};
    const char *const texts[] = {"x", "y"};
    dms_verdicts v = {.samples = 1};
    dms_metric m[DMS_MAX_METRICS];
    for (int i = 0; i < N; i++) {
        const dms_job jobs[] = {{.log_likelihood = -1}, {.log_likelihood = -2}};
        const dms_item item = {.kind = DMS_ITEM_CHOICE,
                               .id = "i",
                               .group = groups[i],
                               .texts = texts,
                               .n_texts = 2,
                               .label = right[i] ? 0 : 1};
        must(dms_verdicts_add(&v, &item, jobs, 2));
    }
    must(dms_verdicts_metrics(m, &v));
    cr_expect(v.n == 1 && fabs(m[0].value - 4.0 / N) < 1e-15);
    /* squares within law (2 of 4 right): 1, within art (1 of 2): 1/2, of the one without: 0 */
    cr_expect(fabs(m[0].error - sqrt(1.5 / (N - 3) / N)) < 1e-15, "%.17g", m[0].error);
    dms_verdicts_close(&v);
}

/* Answers of one token drawn from a model that says what it likes: of the samples some equal. */
Test(task, samples_are_counted_and_vote)
{
    enum { N = 3, SAMPLES = 12 };
    lab l = lab_open(64);
    json_t *log;
    dms_item items[N];
    dms_task_options o = options_of(&l);
    o.samples = SAMPLES;
    o.sampling.temperature = 0.7f;
    o.max_new = 1;
    for (int i = 0; i < N; i++)
        items[i] = (dms_item){.kind = DMS_ITEM_EXTRACT,
                              .id = "i",
                              .prompt = i ? "7 + 5 =" : "what",
                              .answer = "no",
                              .rules = {{DMS_EXTRACT_WHOLE, DMS_EQUAL_TEXT},
                                        {DMS_EXTRACT_LAST_INTEGER, DMS_EQUAL_INTEGER}},
                              .n_rules = 2};
    dms_task_result r = run_task(&log, o, items, N);
    cr_expect(metric(&r, "exact") == 0 && metric(&r, "pass@n") == 0 && metric(&r, "maj@n") == 0);
    char answers[N][256];
    for (int i = 0; i < N; i++) { /* what the item's first sample says; the last item's is wrong */
        const dms_span output = output_of(log, (size_t)(i * SAMPLES));
        cr_assert(strlen(output.bytes) == output.n);
        snprintf(answers[i], sizeof(answers[i]), "%s%s", output.bytes, i < 2 ? "" : "?");
        items[i].answer = answers[i];
    }
    json_decref(log);
    r = run_task(&log, o, items, N);
    double exact = 0, pass = 0, majority = 0, flexible = 0;
    int different = 0;
    for (size_t i = 0; i < N; i++) {
        const char *votes[SAMPLES];
        bool right[SAMPLES], any = false;
        double score;
        for (size_t k = 0; k < SAMPLES; k++) {
            const dms_span output = output_of(log, i * SAMPLES + k),
                           answer = dms_span_strip(dms_span_of(answers[i]));
            bool second;
            votes[k] = output.bytes;
            right[k] = dms_span_equal(dms_span_strip(output), answer);
            cr_expect(verdict_of(log, i * SAMPLES + k) == right[k]);
            must(dms_answer_judge(&second, items[i].rules[1], output, dms_span_of(answers[i])));
            exact += right[k];
            flexible += second;
            any = any || right[k];
            different += strcmp(votes[k], votes[0]) != 0;
        }
        pass += any;
        must(dms_majority(&score, votes, right, SAMPLES));
        majority += score;
    }
    cr_expect(different > 0 && exact > 0 && pass == 2, "%d, %g, %g", different, exact, pass);
    cr_expect(fabs(metric(&r, "exact") - exact / (N * SAMPLES)) < 1e-12);
    cr_expect(fabs(metric(&r, "flexible") - flexible / (N * SAMPLES)) < 1e-12);
    cr_expect(fabs(metric(&r, "pass@n") - pass / N) < 1e-12);
    cr_expect(fabs(metric(&r, "maj@n") - majority / N) < 1e-12);
    json_decref(log);
    lab_close(&l);
}

static const dms_code_test add_test = {"1 2\n", "3\n"};
static const dms_item code_item = {.kind = DMS_ITEM_CODE,
                                   .id = "sum",
                                   .prompt = "Add.",
                                   .tests = &add_test,
                                   .n_tests = 1,
                                   .timeout = 5};

Test(task, code_runs_where_it_is_permitted)
{
    lab l = lab_open(64);
    json_t *log;
    dms_task_result r;
    dms_task_options o = options_of(&l);
    rig_expect_failure(try_task(&r, &log, o, &code_item, 1), DMS_ERR_ARG, "--allow-code-execution");
    cr_expect(!json_array_size(log) && !r.cost.prefilled);
    json_decref(log);
    o.run_code = true;
    const dms_status status = try_task(&r, &log, o, &code_item, 1);
    if (status == DMS_ERR_IO || status == DMS_ERR_DEVICE)
        cr_skip("nothing to run code with: %s", dms_error_text());
    cr_assert_eq(status, DMS_OK);
    cr_expect(metric(&r, "pass") == 0 && json_array_size(log) == 1, "noise solves nothing");
    json_decref(log);
    lab_close(&l);
}

/* ---- texts ---------------------------------------------------------------------------------- */

Test(task, an_answer_ends_before_the_first_stop)
{
    lab l = lab_open(64);
    json_t *log, *cut;
    const char *const nothing[] = {"?"};
    dms_item item = {.id = "a", .prompt = "one", .max_new_tokens = 20};
    item.texts = nothing;
    item.n_texts = 1;
    const dms_task_result whole = run_task(&log, options_of(&l), &item, 1);
    const dms_span output = output_of(log, 0);
    char stop[4];
    piece_of(stop, output, 2);
    const char *const stops[] = {"not there", stop};
    item.stops = stops;
    item.n_stops = 2;
    const dms_task_result r = run_task(&cut, options_of(&l), &item, 1);
    const dms_span got = output_of(cut, 0);
    cr_expect(got.n == dms_span_find(output, stop) && !memcmp(got.bytes, output.bytes, got.n));
    cr_expect(r.cost.decoded < whole.cost.decoded, "%d of %d", (int)r.cost.decoded,
              (int)whole.cost.decoded);
    json_decref(log);
    json_decref(cut);
    lab_close(&l);
}

Test(task, prompts_lose_their_beginning_where_they_are_too_long)
{
    enum { LONGEST = 16 };
    lab l = lab_open(LONGEST);
    json_t *log;
    const char *const nothing[] = {"?"};
    dms_tokenizer *tokenizer = l.pair.student->tokenizer;
    const char *text = "alpha beta gamma delta epsilon zeta eta theta iota kappa";
    dms_item item = {.id = "a", .prompt = text, .texts = nothing, .n_texts = 1};
    const dms_prompt_style style = {tokenizer, NULL, -1, LONGEST};
    dms_tokens whole = {0}, prompt = {0};
    bool cut = false;
    must(dms_tokenizer_encode(tokenizer, &whole, text, strlen(text), true));
    cr_assert(whole.n > LONGEST);
    must(dms_prompt_write(&prompt, &cut, &style, &item, 6));
    cr_assert(cut && prompt.n == LONGEST - 6);
    cr_expect_arr_eq(prompt.ids, whole.ids + whole.n - prompt.n, (size_t)prompt.n * 4);
    dms_task_result r = run_task(&log, options_of(&l), &item, 1);
    cr_expect(r.truncated == 1 && r.cost.prefilled == LONGEST - 6);
    json_decref(log);
    rig_expect_failure(dms_prompt_write(&prompt, &cut, &style, &item, LONGEST), DMS_ERR_ARG,
                       "item a wants an answer of 16");
    dms_tokens_free(&prompt);
    item.kind = DMS_ITEM_CHOICE;
    item.delimiter = " ";
    r = run_task(&log, options_of(&l), &item, 1);
    cr_expect(r.truncated == 1 && r.cost.prefilled + r.cost.decoded <= LONGEST);
    json_decref(log);
    dms_tokens_free(&whole);
    lab_close(&l);
}

Test(task, a_choice_begins_with_the_white_space_before_it)
{
    lab l = lab_open(64);
    dms_tokenizer *tokenizer = l.pair.student->tokenizer;
    const dms_prompt_style style = {tokenizer, NULL, -1, 64};
    const char *const texts[] = {"red", ""};
    dms_item item = {.kind = DMS_ITEM_CHOICE, .id = "a", .prompt = "It is \n ", .delimiter = ""};
    dms_tokens context = {0}, given = {0}, all = {0};
    dms_text text = {0};
    bool cut = false;
    item.texts = texts;
    item.n_texts = 2;
    must(dms_prompt_choice(&context, &given, &cut, &style, &item, 0));
    must(dms_tokenizer_decode(tokenizer, &text, context.ids, context.n, false));
    cr_expect(text.n == 5 && !memcmp(text.bytes, "It is", 5));
    text.n = 0;
    must(dms_tokenizer_decode(tokenizer, &text, given.ids, given.n, false));
    cr_expect(text.n == 6 && !memcmp(text.bytes, " \n red", 6) && !cut);
    must(dms_tokenizer_encode(tokenizer, &all, "It is \n red", 11, true));
    cr_expect(context.n + given.n == all.n);
    context.n = given.n = 0;
    item.prompt = ""; /* nothing to read: an end-of-text stands for it */
    must(dms_prompt_choice(&context, &given, &cut, &style, &item, 0));
    cr_expect(context.n == 1 && context.ids[0] == dms_tokenizer_end_of_text(tokenizer));
    rig_expect_failure(dms_prompt_choice(&context, &given, &cut, &style, &item, 1), DMS_ERR_ARG,
                       "both empty");
    context.n = 0;
    must(dms_prompt_write(&context, &cut, &style, &item, 3));
    cr_expect(context.n == 1 && context.ids[0] == dms_tokenizer_end_of_text(tokenizer));
    dms_tokens_free(&context);
    dms_tokens_free(&given);
    dms_tokens_free(&all);
    dms_text_free(&text);
    lab_close(&l);
}

/* ---- refusals ------------------------------------------------------------------------------- */

Test(task, refuses_what_it_cannot_run)
{
    lab l = lab_open(64);
    json_t *log;
    dms_task_result r;
    dms_task_options o = options_of(&l);
    const char *const texts[] = {"a", "b"};
    const dms_message turn = {.role = "user", .content = "Hello"};
    const dms_item match = {.id = "first", .prompt = "x", .texts = texts, .n_texts = 1};
    dms_item choice = {.kind = DMS_ITEM_CHOICE, .id = "second", .prompt = "x", .delimiter = " "};
    choice.texts = texts;
    choice.n_texts = 2;
    const dms_item mixed[] = {match, choice};
    rig_expect_failure(try_task(&r, &log, o, mixed, 2), DMS_ERR_ARG, "item second is of kind");
    json_decref(log);
    rig_expect_failure(try_task(&r, &log, o, mixed, 0), DMS_ERR_ARG, "no items");
    json_decref(log);
    const dms_item talk = {.kind = DMS_ITEM_EXTRACT,
                           .id = "talk",
                           .messages = &turn,
                           .n_messages = 1,
                           .answer = "x",
                           .n_rules = 1};
    rig_expect_failure(try_task(&r, &log, o, &talk, 1), DMS_ERR_ARG, "chat template");
    json_decref(log);
    dms_item endless = match;
    endless.max_new_tokens = 64;
    rig_expect_failure(try_task(&r, &log, o, &endless, 1), DMS_ERR_ARG, "longer context");
    json_decref(log);
    dms_policy dms;
    must(dms_policy_parse(&dms, "dms"));
    o.policy = &dms;
    rig_expect_failure(try_task(&r, &log, o, &match, 1), DMS_ERR_ARG, "no gate");
    json_decref(log);
    lab_close(&l);
}
