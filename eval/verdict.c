#include "eval/verdict.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static dms_status add_value(dms_verdicts *v, const dms_item *item, const char *name, double value)
{
    int i = 0;
    while (i < v->n && strcmp(v->names[i], name) != 0)
        i++;
    if (i == v->n)
        v->names[v->n++] = name;
    if (v->n_all == v->room) {
        const int64_t room = v->room ? 2 * v->room : 64;
        dms_verdict *all = realloc(v->all, (size_t)room * sizeof(*all));
        if (!all)
            return dms_fail(DMS_ERR_NOMEM, "no memory for the verdict on item %s", item->id);
        v->all = all;
        v->room = room;
    }
    v->all[v->n_all++] = (dms_verdict){i, item->group ? item->group : "", value};
    return DMS_OK;
}

/* `right` of an item's n answers. */
static dms_status add_samples(dms_verdicts *v, const dms_item *item, const char *name, int64_t n,
                              int64_t right)
{
    DMS_TRY(add_value(v, item, name, dms_pass_at(n, right, 1)));
    return n > 1 ? add_value(v, item, "pass@n", dms_pass_at(n, right, n)) : DMS_OK;
}

static dms_status log_line(const dms_verdicts *v, const dms_item *item, dms_span output,
                           double verdict)
{
    if (!v->log)
        return DMS_OK;
    json_t *line = json_pack("{ss ss% so}", "id", item->id, "output", output.bytes, output.n,
                             "verdict", isfinite(verdict) ? json_real(verdict) : json_null());
    if (!line)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a line of the log");
    const int failed = json_dumpf(line, v->log, JSON_COMPACT) || fputc('\n', v->log) == EOF;
    json_decref(line);
    return failed ? dms_fail(DMS_ERR_IO, "an answer could not be written to the log") : DMS_OK;
}

/* ---- choices -------------------------------------------------------------------------------- */

static dms_status judge_choice(dms_verdicts *v, const dms_item *item, const dms_job *jobs)
{
    const int64_t n = (int64_t)item->n_texts;
    double *likelihood = malloc((size_t)n * sizeof(*likelihood));
    int64_t *length = malloc((size_t)n * sizeof(*length));
    int64_t plain = 0, normed = 0;
    dms_status status = DMS_OK;
    if (!likelihood || !length) {
        status = dms_fail(DMS_ERR_NOMEM, "no memory for the choices of item %s", item->id);
        goto done;
    }
    for (int64_t i = 0; i < n; i++) {
        likelihood[i] = jobs[i].log_likelihood;
        length[i] = item->norm == DMS_NORM_TOKEN ? jobs[i].n_given
                                                 : dms_span_length(dms_span_of(item->texts[i]));
        DMS_TRY_OR(done, log_line(v, item, dms_span_of(item->texts[i]), likelihood[i]));
    }
    DMS_TRY_OR(done, dms_choice_pick(&plain, likelihood, NULL, n));
    DMS_TRY_OR(done, add_value(v, item, "acc", plain == (int64_t)item->label));
    if (item->norm == DMS_NORM_NONE)
        goto done;
    DMS_TRY_OR(done, dms_choice_pick(&normed, likelihood, length, n));
    DMS_TRY_OR(done, add_value(v, item, "acc_norm", normed == (int64_t)item->label));
done:
    free(likelihood);
    free(length);
    return status;
}

/* ---- drawn answers -------------------------------------------------------------------------- */

/* The answer's text as valid UTF-8 with a 0 behind it, cut at the first stop text. */
static dms_status output_of(dms_text *out, const dms_verdicts *v, const dms_item *item,
                            const dms_job *job)
{
    dms_text raw = {0}, store = {0};
    dms_span text = {0};
    dms_status status = DMS_OK;
    size_t end;
    DMS_TRY_OR(done,
               dms_tokenizer_decode(v->tokenizer, &raw, job->answer.ids, job->answer.n, true));
    DMS_TRY_OR(done, dms_span_valid(&text, &store, (dms_span){raw.bytes, raw.n}));
    end = text.n;
    for (size_t i = 0; i < item->n_stops; i++) {
        const size_t at = dms_span_find(text, item->stops[i]);
        end = at < end ? at : end;
    }
    DMS_TRY_OR(done, dms_text_append(out, text.bytes, end));
    DMS_TRY_OR(done, dms_text_end(out));
done:
    dms_text_free(&raw);
    dms_text_free(&store);
    return status;
}

static dms_status run_code(bool *right, const dms_verdicts *v, const dms_item *item,
                           dms_span output)
{
    dms_text code = {0};
    dms_code_result result = {.verdict = DMS_CODE_FAILED};
    bool found = false;
    dms_status status = dms_answer_extract(&code, &found, DMS_EXTRACT_CODE, output);
    if (!status && found)
        status = dms_code_judge(&result, v->sandbox, item, (dms_span){code.bytes, code.n});
    *right = result.verdict == DMS_CODE_PASSED;
    dms_text_free(&code);
    return status;
}

/* *score in [0, 1] of rule `rule` of the item. */
static dms_status judge_output(double *score, const dms_verdicts *v, const dms_item *item, int rule,
                               dms_span output)
{
    bool right = false;
    if (item->kind == DMS_ITEM_MATCH)
        return dms_match_score(score, item->match, output, item->texts, item->n_texts);
    if (item->kind == DMS_ITEM_CODE)
        DMS_TRY(run_code(&right, v, item, output));
    else
        DMS_TRY(dms_answer_judge(&right, item->rules[rule], output, dms_span_of(item->answer)));
    *score = right;
    return DMS_OK;
}

/* The normalised answer of a sample for the vote, or NULL in *out. */
static dms_status vote_of(char **out, const dms_item *item, dms_span output)
{
    dms_text answer = {0}, normal = {0};
    bool found = false;
    dms_status status = DMS_OK;
    *out = NULL;
    DMS_TRY_OR(done, dms_answer_extract(&answer, &found, item->rules[0].extractor, output));
    if (!found)
        goto done;
    DMS_TRY_OR(done, dms_answer_normalise(&normal, item->rules[0].equality,
                                          (dms_span){answer.bytes, answer.n}));
    DMS_TRY_OR(done, dms_text_end(&normal));
    *out = normal.bytes;
    normal = (dms_text){0};
done:
    dms_text_free(&answer);
    dms_text_free(&normal);
    return status;
}

/* Outputs of an item's samples, with verdicts by its first rule and votes. */
typedef struct {
    dms_text *outputs; /* [n] */
    char **votes;      /* [n], of extracts */
    bool *right;       /* [n] */
    int64_t n;
} answers;

static void close_answers(answers *a)
{
    for (int64_t i = 0; a->outputs && a->votes && i < a->n; i++) {
        dms_text_free(&a->outputs[i]);
        free(a->votes[i]);
    }
    free(a->outputs);
    free(a->votes);
    free(a->right);
}

static dms_span span_of(const dms_text *t)
{
    return (dms_span){t->bytes, t->n};
}

static dms_status read_answers(answers *a, const dms_verdicts *v, const dms_item *item,
                               const dms_job *jobs)
{
    const size_t n = (size_t)a->n;
    a->outputs = calloc(n, sizeof(*a->outputs));
    a->votes = calloc(n, sizeof(*a->votes));
    a->right = calloc(n, sizeof(*a->right));
    if (!a->outputs || !a->votes || !a->right)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the answers to item %s", item->id);
    for (int64_t i = 0; i < a->n; i++) {
        DMS_TRY(output_of(&a->outputs[i], v, item, &jobs[i]));
        if (item->kind == DMS_ITEM_EXTRACT && a->n > 1)
            DMS_TRY(vote_of(&a->votes[i], item, span_of(&a->outputs[i])));
    }
    return DMS_OK;
}

/* Means over the samples by rule `rule`; match scores are fractions. */
static dms_status judge_rule(dms_verdicts *v, const dms_item *item, answers *a, int rule,
                             const char *name)
{
    double sum = 0;
    int64_t right = 0;
    for (int64_t i = 0; i < a->n; i++) {
        double score;
        DMS_TRY(judge_output(&score, v, item, rule, span_of(&a->outputs[i])));
        if (!rule) {
            a->right[i] = score >= 1;
            DMS_TRY(log_line(v, item, span_of(&a->outputs[i]), score));
        }
        sum += score;
        right += score >= 1;
    }
    if (item->kind == DMS_ITEM_MATCH || rule)
        return add_value(v, item, name, sum / (double)a->n);
    return add_samples(v, item, name, a->n, right);
}

static dms_status judge_answers(dms_verdicts *v, const dms_item *item, answers *a)
{
    static const char *const names[] = {
        [DMS_ITEM_MATCH] = "match", [DMS_ITEM_EXTRACT] = "exact", [DMS_ITEM_CODE] = "pass"};
    double majority;
    DMS_TRY(judge_rule(v, item, a, 0, names[item->kind]));
    for (int rule = 1; item->kind == DMS_ITEM_EXTRACT && rule < item->n_rules; rule++)
        DMS_TRY(judge_rule(v, item, a, rule, "flexible"));
    if (item->kind != DMS_ITEM_EXTRACT || a->n < 2)
        return DMS_OK;
    DMS_TRY(dms_majority(&majority, (const char *const *)a->votes, a->right, a->n));
    return add_value(v, item, "maj@n", majority);
}

dms_status dms_verdicts_add(dms_verdicts *v, const dms_item *item, const dms_job *jobs,
                            int64_t n_jobs)
{
    answers a = {.n = n_jobs};
    dms_status status;
    if (item->kind == DMS_ITEM_CHOICE)
        return judge_choice(v, item, jobs);
    status = read_answers(&a, v, item, jobs);
    if (!status)
        status = judge_answers(v, item, &a);
    close_answers(&a);
    return status;
}

static int by_metric_and_group(const void *a, const void *b)
{
    const dms_verdict *x = a, *y = b;
    return x->metric != y->metric ? x->metric - y->metric : strcmp(x->group, y->group);
}

/* The verdicts of one metric, in the order of their groups; means: as many as there are groups. */
static dms_pooled pool(dms_mean *means, const dms_verdict *all, int64_t n)
{
    int64_t groups = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!i || strcmp(all[i].group, all[i - 1].group) != 0)
            means[groups++] = (dms_mean){0};
        dms_mean_add(&means[groups - 1], all[i].value);
    }
    return dms_mean_pool(means, groups);
}

dms_status dms_verdicts_metrics(dms_metric *out, dms_verdicts *v)
{
    dms_mean *means = malloc((size_t)(v->n_all + 1) * sizeof(*means));
    if (!means)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the groups of %lld verdicts",
                        (long long)v->n_all);
    qsort(v->all, (size_t)v->n_all, sizeof(*v->all), by_metric_and_group);
    for (int64_t i = 0, end; i < v->n_all; i = end) {
        for (end = i; end < v->n_all && v->all[end].metric == v->all[i].metric;)
            end++;
        const dms_pooled p = pool(means, v->all + i, end - i);
        out[v->all[i].metric] = (dms_metric){v->names[v->all[i].metric], p.mean, p.error};
    }
    free(means);
    return DMS_OK;
}

void dms_verdicts_close(dms_verdicts *v)
{
    free(v->all);
    *v = (dms_verdicts){0};
}
