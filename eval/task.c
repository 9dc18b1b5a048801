#include "eval/task.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "eval/entry.h"
#include "eval/jobs.h"
#include "eval/prompt.h"
#include "eval/verdict.h"
#include "tasks/pass.h"

/* Items, their prompts and their jobs: entry i has jobs [first_job[i], first_job[i + 1]). */
typedef struct {
    const dms_task_options *options;
    const dms_model *model;
    dms_prompt_style style;
    dms_entry *entries;
    int64_t n_entries, entry_room;
    dms_job *jobs;
    dms_tokens *prompts, *given; /* one a job; a further sample of an item borrows the first's */
    int64_t n_jobs, job_room;
    int64_t *first_job; /* [n_entries + 1] */
    int64_t context;    /* the longest prompt and answer */
    int64_t truncated;
    dms_session *session;
    dms_sandbox *sandbox; /* of code */
} task;

/* ---- from items to jobs --------------------------------------------------------------------- */

static dms_status grow(void **array, int64_t *room, int64_t wanted, size_t size)
{
    if (wanted <= *room)
        return DMS_OK;
    const int64_t to = wanted > 2 * *room ? wanted : 2 * *room;
    void *grown = realloc(*array, (size_t)to * size);
    if (!grown)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %" PRId64 " answers", to);
    memset((char *)grown + (size_t)*room * size, 0, (size_t)(to - *room) * size);
    *array = grown;
    *room = to;
    return DMS_OK;
}

static dms_status add_entry(task *t, const dms_item *item)
{
    int64_t entries = t->entry_room, firsts = t->entry_room;
    if (t->n_entries && item->kind != t->entries[0].item.kind)
        return dms_fail(DMS_ERR_ARG, "item %s is of kind %s, those before it of %s; run them apart",
                        item->id, dms_item_kind_name(item->kind),
                        dms_item_kind_name(t->entries[0].item.kind));
    if (item->kind == DMS_ITEM_CODE && !t->options->run_code)
        return dms_fail(DMS_ERR_ARG,
                        "item %s wants code that the model wrote to be run; "
                        "--allow-code-execution permits it",
                        item->id);
    DMS_TRY(grow((void **)&t->entries, &entries, t->n_entries + 2, sizeof(*t->entries)));
    DMS_TRY(grow((void **)&t->first_job, &firsts, t->n_entries + 2, sizeof(*t->first_job)));
    t->entry_room = firsts;
    DMS_TRY(dms_entry_open(&t->entries[t->n_entries], item));
    t->n_entries++;
    return DMS_OK;
}

static dms_status add_job(task *t, dms_job job)
{
    int64_t prompts = t->job_room, given = t->job_room;
    DMS_TRY(grow((void **)&t->prompts, &prompts, t->n_jobs + 1, sizeof(*t->prompts)));
    DMS_TRY(grow((void **)&t->given, &given, t->n_jobs + 1, sizeof(*t->given)));
    DMS_TRY(grow((void **)&t->jobs, &t->job_room, t->n_jobs + 1, sizeof(*t->jobs)));
    t->jobs[t->n_jobs++] = job;
    return DMS_OK;
}

static void note_length(task *t, int64_t tokens)
{
    t->context = tokens > t->context ? tokens : t->context;
}

static dms_status add_answers(task *t, const dms_item *item)
{
    const int64_t max_new = item->max_new_tokens ? item->max_new_tokens : t->options->max_new;
    const int64_t first = t->n_jobs;
    bool cut = false;
    for (int i = 0; i < t->options->samples; i++)
        DMS_TRY(add_job(t, (dms_job){.max_new = max_new, .stream = (uint32_t)t->n_jobs}));
    DMS_TRY(dms_prompt_write(&t->prompts[first], &cut, &t->style, item, max_new));
    t->truncated += cut;
    note_length(t, t->prompts[first].n + max_new);
    return DMS_OK;
}

static dms_status add_choices(task *t, const dms_item *item)
{
    bool cut = false;
    for (size_t i = 0; i < item->n_texts; i++) {
        const int64_t at = t->n_jobs;
        DMS_TRY(add_job(t, (dms_job){0}));
        DMS_TRY(dms_prompt_choice(&t->prompts[at], &t->given[at], &cut, &t->style, item, i));
        note_length(t, t->prompts[at].n + t->given[at].n);
    }
    t->truncated += cut;
    return DMS_OK;
}

/* Jobs borrow the tokens, which no longer move. */
static void point_jobs(task *t)
{
    for (int64_t i = 0; i < t->n_entries; i++)
        for (int64_t j = t->first_job[i]; j < t->first_job[i + 1]; j++) {
            const bool choice = t->entries[i].item.kind == DMS_ITEM_CHOICE;
            const dms_tokens *prompt = &t->prompts[choice ? j : t->first_job[i]];
            t->jobs[j].prompt = prompt->ids;
            t->jobs[j].n_prompt = prompt->n;
            t->jobs[j].given = choice ? t->given[j].ids : NULL;
            t->jobs[j].n_given = choice ? t->given[j].n : 0;
        }
}

static dms_status read_items(task *t, const dms_item_feed *feed)
{
    const dms_item *item;
    for (;;) {
        DMS_TRY(feed->next(feed->context, &item));
        if (!item)
            break;
        DMS_TRY(add_entry(t, item));
        DMS_TRY(item->kind == DMS_ITEM_CHOICE ? add_choices(t, item) : add_answers(t, item));
        t->first_job[t->n_entries] = t->n_jobs;
    }
    if (!t->n_entries)
        return dms_fail(DMS_ERR_ARG, "there are no items to run");
    point_jobs(t);
    return DMS_OK;
}

/* ---- running -------------------------------------------------------------------------------- */

static const dms_item *item_of(const task *t, const dms_job *job)
{
    const int64_t at = job - t->jobs;
    int64_t low = 0, high = t->n_entries;
    while (high - low > 1) { /* by bisection */
        const int64_t middle = (low + high) / 2;
        if (t->first_job[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return &t->entries[low].item;
}

static bool has_stop(const dms_item *item, const dms_text *text)
{
    const dms_span span = {text->bytes, text->n};
    for (size_t i = 0; i < item->n_stops; i++)
        if (dms_span_find(span, item->stops[i]) != SIZE_MAX)
            return true;
    return false;
}

/* A token of the model that ends texts or turns, or one that completes a stop text. */
static dms_status ends(void *context, const dms_job *job, int32_t id, bool *end, bool *keep)
{
    const task *t = context;
    const dms_item *item = item_of(t, job);
    enum { TAIL = 64 }; /* a stop text spans fewer tokens */
    int32_t tail[TAIL + 1];
    dms_text text = {0};
    dms_status status = DMS_OK;
    *end = dms_config_is_eos(&t->model->config, id) || (t->style.chat && id == t->style.chat->end);
    *keep = !*end;
    if (*end || !item->n_stops)
        return DMS_OK;
    const int64_t back = job->answer.n < TAIL ? job->answer.n : TAIL;
    if (back)
        memcpy(tail, job->answer.ids + job->answer.n - back, (size_t)back * sizeof(*tail));
    tail[back] = id;
    DMS_TRY_OR(done, dms_tokenizer_decode(t->style.tokenizer, &text, tail, back + 1, true));
    *end = has_stop(item, &text);
done:
    dms_text_free(&text);
    return status;
}

static void tell(void *context, int64_t done, int64_t total)
{
    const task *t = context;
    if (t->options->progress)
        t->options->progress(t->options->context, done, total);
}

static dms_status run_jobs(task *t, dms_task_result *out)
{
    const dms_task_options *o = t->options;
    const int64_t positions = t->model->rope_table.shape[0];
    const int64_t batch = o->batch < t->n_jobs ? o->batch : t->n_jobs;
    DMS_TRY(dms_session_open(
        &t->session,
        &(dms_session_options){.model = t->model,
                               .context = t->context < positions ? t->context : positions,
                               .max_sequences = (int)batch,
                               .kv_dtype = t->model->matrix_type,
                               .policy = o->policy,
                               .seed = o->seed}));
    const dms_jobs_options jobs = {.session = t->session,
                                   .sequences = (int)batch,
                                   .vocab = t->model->config.vocab,
                                   .sampling = o->sampling,
                                   .ends = ends,
                                   .progress = tell,
                                   .context = t};
    return dms_jobs_run(&out->cost, &jobs, t->jobs, t->n_jobs);
}

/* Before hours of answers are drawn that nobody can judge. */
static dms_status open_sandbox(task *t)
{
    const char *python;
    if (t->entries[0].item.kind != DMS_ITEM_CODE)
        return DMS_OK;
    DMS_TRY(dms_sandbox_open(&t->sandbox, t->options->run_code));
    return dms_sandbox_python(t->sandbox, &python);
}

static dms_status judge(task *t, dms_task_result *out)
{
    dms_verdicts verdicts = {.tokenizer = t->style.tokenizer,
                             .samples = t->options->samples,
                             .log = t->options->log,
                             .sandbox = t->sandbox};
    dms_status status = DMS_OK;
    for (int64_t i = 0; !status && i < t->n_entries; i++)
        status = dms_verdicts_add(&verdicts, &t->entries[i].item, t->jobs + t->first_job[i],
                                  t->first_job[i + 1] - t->first_job[i]);
    if (!status)
        status = dms_verdicts_metrics(out->metrics, &verdicts);
    out->n_metrics = verdicts.n;
    out->items = t->n_entries;
    out->truncated = t->truncated;
    dms_verdicts_close(&verdicts);
    return status;
}

static void close_task(task *t)
{
    dms_session_close(t->session);
    dms_sandbox_close(t->sandbox);
    for (int64_t i = 0; i < t->n_entries; i++)
        dms_entry_close(&t->entries[i]);
    for (int64_t i = 0; i < t->n_jobs; i++) {
        dms_tokens_free(&t->jobs[i].answer);
        dms_tokens_free(&t->prompts[i]);
        dms_tokens_free(&t->given[i]);
    }
    free(t->entries);
    free(t->first_job);
    free(t->jobs);
    free(t->prompts);
    free(t->given);
}

dms_status dms_task_run(dms_task_result *out, const dms_task_options *options,
                        const dms_item_feed *feed)
{
    const dms_pair *pair = options->pair;
    dms_tokenizer *tokenizer = pair->student->tokenizer;
    task t = {.options = options};
    dms_status status = DMS_OK;
    t.model = options->policy->kind == DMS_POLICY_DMS ? pair->student->model : pair->teacher;
    t.style = (dms_prompt_style){.tokenizer = tokenizer,
                                 .chat = options->chat,
                                 .begin = dms_tokenizer_begin_of_text(tokenizer),
                                 .longest = t.model->rope_table.shape[0]};
    *out = (dms_task_result){0};
    DMS_TRY_OR(done, read_items(&t, feed));
    DMS_TRY_OR(done, open_sandbox(&t));
    DMS_TRY_OR(done, run_jobs(&t, out));
    DMS_TRY_OR(done, judge(&t, out));
done:
    close_task(&t);
    return status;
}
