#include "eval/runner.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/corpus.h"
#include "eval/contexts.h"
#include "eval/decode_score.h"
#include "tasks/ruler.h"

struct dms_runner {
    const dms_task_spec *spec;
    const dms_pair *pair;
    dms_contexts text;
    dms_decode_scorer *scorer; /* of text */
    dms_chat chat;             /* where spec->chat */
    dms_text essay;            /* of RULER */
    char style[96];
};

enum { RULER_ITEMS = 500, MOST = 1000000 }; /* items as RULER's own settings have it */

dms_task_spec dms_task_spec_defaults(void)
{
    return (dms_task_spec){.task = "kld",
                           .context = 512,
                           .sequences = 32,
                           .batch = 8,
                           .samples = 1,
                           .max_new = 256,
                           .top_p = 1};
}

bool dms_task_is_text(const dms_task_spec *spec)
{
    return !strcmp(spec->task, "ppl") || !strcmp(spec->task, "kld");
}

static bool is_ruler(const dms_task_spec *spec)
{
    dms_item_defaults unused;
    return strncmp(spec->task, "qa_", 3) != 0 && dms_ruler_defaults(&unused, spec->task);
}

static int64_t prompt_of(const dms_task_spec *spec)
{
    return spec->prompt ? spec->prompt : spec->context / 2;
}

dms_status dms_task_positions(int64_t *out, const dms_task_spec *spec)
{
    const bool text = dms_task_is_text(spec), ruler = is_ruler(spec);
    if (!text && !ruler && strcmp(spec->task, "items") != 0)
        return dms_fail(DMS_ERR_ARG,
                        "the task is \"%s\", expected ppl, kld, items, niah_single_1 to 3, "
                        "niah_multikey_1 to 3, niah_multivalue, niah_multiquery, vt, cwe or fwe",
                        spec->task);
    if (text && (spec->context < 2 || prompt_of(spec) >= spec->context))
        return dms_fail(DMS_ERR_ARG,
                        "task %s has contexts of %" PRId64 " tokens and prompts of %" PRId64
                        ", expected at least one token after the prompt",
                        spec->task, spec->context, prompt_of(spec));
    if (text ? spec->n_paths < 1 : spec->n_paths != !ruler)
        return dms_fail(DMS_ERR_ARG, "task %s has %d paths, expected %s", spec->task, spec->n_paths,
                        text    ? "at least one text"
                        : ruler ? "none: its items are made (--essay FILE is their haystack)"
                                : "one JSON Lines file");
    if (spec->batch > MOST || spec->samples > MOST)
        return dms_fail(DMS_ERR_ARG,
                        "task %s has a batch of %" PRId64 " and %" PRId64
                        " samples, expected at most %d",
                        spec->task, spec->batch, spec->samples, MOST);
    if (ruler && spec->length < 1)
        return dms_fail(DMS_ERR_ARG, "task %s wants a length in tokens", spec->task);
    *out = text ? spec->context : ruler ? spec->length : 0;
    return DMS_OK;
}

/* ---- text ----------------------------------------------------------------------------------- */

static dms_status read_contexts(dms_runner *r)
{
    const dms_task_spec *spec = r->spec;
    const dms_model_file *m = r->pair->student;
    return dms_contexts_open(&r->text, &(dms_contexts_options){.paths = spec->paths,
                                                               .n_paths = spec->n_paths,
                                                               .tokenizer = m->tokenizer,
                                                               .config = &m->model->config,
                                                               .context = spec->context,
                                                               .sequences = spec->sequences});
}

static dms_status open_text(dms_runner *r)
{
    const dms_task_spec *spec = r->spec;
    const dms_model_file *m = r->pair->student;
    DMS_TRY(read_contexts(r));
    const dms_score_feed feed = dms_contexts_feed(&r->text);
    snprintf(r->style, sizeof(r->style), "no begin-of-text, prompt of %" PRId64, prompt_of(spec));
    return dms_decode_scorer_open(
        &r->scorer,
        &(dms_decode_score_options){.student = m->model,
                                    .teacher = r->pair->teacher,
                                    .context = spec->context,
                                    .prompt = prompt_of(spec),
                                    .sequences = r->text.sequences,
                                    .batch = (int)spec->batch,
                                    .kv_dtype = r->pair->teacher->matrix_type,
                                    .seed = spec->seed},
        &feed);
}

static dms_status check_text(dms_runner *r)
{
    const int64_t vocab = r->pair->student->model->config.vocab;
    DMS_TRY(read_contexts(r));
    for (int64_t i = 0; i < r->text.stream.n; i++)
        if (r->text.stream.ids[i] >= vocab)
            return dms_fail(DMS_ERR_ARG,
                            "the text has token %d, the model's vocabulary %" PRId64
                            "; tokenise it again with this model",
                            r->text.stream.ids[i], vocab);
    return DMS_OK;
}

static dms_status run_text(dms_result *out, dms_runner *r, const dms_policy *policy,
                           const dms_runner_watch *watch)
{
    dms_scores scores;
    DMS_TRY(dms_decode_scorer_run(&scores, &out->cost, r->scorer, policy, watch->progress,
                                  watch->context));
    out->n_metrics = dms_result_metrics(out->metrics, &scores, r->spec->task[0] == 'k');
    out->lower = true;
    out->items = scores.sequences;
    return DMS_OK;
}

/* ---- items ---------------------------------------------------------------------------------- */

/* All documents of a path, one after the other. */
static dms_status read_essay(dms_text *out, const char *path)
{
    dms_corpus *corpus = NULL;
    const char *name;
    dms_status status = DMS_OK;
    DMS_TRY(dms_corpus_open(&corpus, path));
    for (;;) {
        size_t n = 1;
        DMS_TRY_OR(done, dms_corpus_next(corpus, &name));
        if (!name)
            break;
        while (n) {
            DMS_TRY_OR(done, dms_text_reserve(out, 1 << 16));
            DMS_TRY_OR(done, dms_corpus_read(corpus, out->bytes + out->n, 1 << 16, &n));
            out->n += n;
        }
    }
done:
    dms_corpus_close(corpus);
    return status;
}

static dms_status open_items(dms_runner *r)
{
    const dms_model_file *m = r->pair->student;
    const bool begun = dms_tokenizer_begin_of_text(m->tokenizer) >= 0;
    snprintf(r->style, sizeof(r->style), "plain text, %s begin-of-text", begun ? "with" : "no");
    if (r->spec->chat) {
        DMS_TRY(dms_chat_recognise(&r->chat, m->tokenizer, m->chat_template));
        snprintf(r->style, sizeof(r->style), "the model's chat template");
    }
    return r->spec->essay ? read_essay(&r->essay, r->spec->essay) : DMS_OK;
}

/* Items of a file, or made in RULER's style, up to the limit. */
typedef struct {
    dms_items *file;
    dms_ruler *ruler;
    int64_t done, limit; /* 0: no limit */
} source;

static dms_status next_item(void *context, const dms_item **item)
{
    source *s = context;
    *item = NULL;
    if (s->limit && s->done == s->limit)
        return DMS_OK;
    s->done++;
    return s->ruler ? dms_ruler_make(s->ruler, s->done - 1, item) : dms_items_next(s->file, item);
}

/* What a prompt costs in tokens, with what stands around it. */
static dms_status count_tokens(void *context, const char *text, size_t n, int64_t *tokens)
{
    const dms_runner *r = context;
    dms_tokens ids = {0};
    dms_text copy = {0};
    dms_status status = dms_text_append(&copy, text, n);
    if (!status)
        status = dms_text_end(&copy);
    const dms_message turn = {.role = "user", .content = copy.bytes};
    if (!status && r->spec->chat)
        status = dms_chat_render(&r->chat, &ids, &turn, 1, true);
    else if (!status)
        status = dms_tokenizer_encode(r->pair->student->tokenizer, &ids, text, n, true);
    const bool begun = dms_tokenizer_begin_of_text(r->pair->student->tokenizer) >= 0;
    *tokens = ids.n + (!r->spec->chat && begun);
    dms_tokens_free(&ids);
    dms_text_free(&copy);
    return status;
}

static dms_status open_source(source *s, dms_runner *r)
{
    const dms_task_spec *spec = r->spec;
    s->limit = spec->limit;
    if (!is_ruler(spec))
        return dms_items_open(&s->file, spec->paths[0], NULL);
    s->limit = spec->limit ? spec->limit : RULER_ITEMS;
    return dms_ruler_open(&s->ruler, &(dms_ruler_options){.task = spec->task,
                                                          .length = spec->length,
                                                          .seed = spec->seed,
                                                          .essay = r->essay.bytes,
                                                          .essay_n = r->essay.n,
                                                          .count = count_tokens,
                                                          .context = r});
}

static dms_status check_item(const dms_runner *r, const dms_item *item)
{
    const int64_t answer = item->max_new_tokens ? item->max_new_tokens : r->spec->max_new;
    const int64_t positions = r->pair->student->model->rope_table.shape[0];
    if (item->kind == DMS_ITEM_CODE && !r->spec->run_code)
        return dms_fail(DMS_ERR_ARG,
                        "item %s wants code that the model wrote to be run, which is not done here",
                        item->id);
    if (item->kind == DMS_ITEM_CHOICE || answer < positions)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "item %s wants an answer of %" PRId64 " tokens, the model is open for %" PRId64
                    " in all; lower max_new or open a longer context",
                    item->id, answer, positions);
}

/* All items of a file, the first of made ones. */
static dms_status check_items(dms_runner *r)
{
    source from = {0};
    const dms_item *item = NULL;
    int64_t seen = 0;
    dms_status status = DMS_OK;
    DMS_TRY(open_items(r));
    DMS_TRY_OR(done, open_source(&from, r));
    do {
        DMS_TRY_OR(done, next_item(&from, &item));
        if (item)
            DMS_TRY_OR(done, check_item(r, item));
        seen += item != NULL;
    } while (item && !from.ruler);
    if (!seen)
        status = dms_fail(DMS_ERR_ARG, "there are no items to run");
done:
    dms_items_close(from.file);
    dms_ruler_close(from.ruler);
    return status;
}

static dms_status run_items(dms_result *out, dms_runner *r, const dms_policy *policy,
                            const dms_runner_watch *watch)
{
    const dms_task_spec *spec = r->spec;
    source from = {0};
    dms_task_result result;
    dms_status status = DMS_OK;
    dms_sampler_options sampling = dms_sampler_defaults();
    sampling.temperature = (float)spec->temperature;
    sampling.top_p = (float)spec->top_p;
    sampling.seed = spec->seed;
    DMS_TRY_OR(done, open_source(&from, r));
    DMS_TRY_OR(done, dms_task_run(&result,
                                  &(dms_task_options){.pair = r->pair,
                                                      .policy = policy,
                                                      .seed = spec->seed,
                                                      .chat = spec->chat ? &r->chat : NULL,
                                                      .batch = (int)spec->batch,
                                                      .samples = (int)spec->samples,
                                                      .sampling = sampling,
                                                      .max_new = spec->max_new,
                                                      .run_code = spec->run_code,
                                                      .log = watch->log,
                                                      .progress = watch->progress,
                                                      .context = watch->context},
                                  &(dms_item_feed){next_item, &from}));
    memcpy(out->metrics, result.metrics, sizeof(out->metrics));
    out->n_metrics = result.n_metrics;
    out->items = result.items;
    out->truncated = result.truncated;
    out->cost = result.cost;
done:
    dms_items_close(from.file);
    dms_ruler_close(from.ruler);
    return status;
}

/* ---- both ----------------------------------------------------------------------------------- */

dms_status dms_runner_open(dms_runner **out, const dms_task_spec *spec, const dms_pair *pair)
{
    dms_runner *r = calloc(1, sizeof(*r));
    if (!r)
        return dms_fail(DMS_ERR_NOMEM, "no memory for task %s", spec->task);
    r->spec = spec;
    r->pair = pair;
    const dms_status status = dms_task_is_text(spec) ? open_text(r) : open_items(r);
    if (status) {
        dms_runner_close(r);
        return status;
    }
    *out = r;
    return DMS_OK;
}

dms_status dms_runner_check(const dms_task_spec *spec, const dms_pair *pair)
{
    dms_runner r = {.spec = spec, .pair = pair};
    const dms_status status = dms_task_is_text(spec) ? check_text(&r) : check_items(&r);
    dms_contexts_close(&r.text);
    dms_text_free(&r.essay);
    return status;
}

void dms_runner_close(dms_runner *r)
{
    if (!r)
        return;
    dms_decode_scorer_close(r->scorer);
    dms_contexts_close(&r->text);
    dms_text_free(&r->essay);
    free(r);
}

dms_status dms_runner_run(dms_result *out, dms_runner *r, const dms_policy *policy,
                          const dms_runner_watch *watch)
{
    static const dms_runner_watch nobody;
    *out = (dms_result){
        .policy = policy->name, .task = r->spec->task, .style = r->style, .seed = r->spec->seed};
    return (r->scorer ? run_text : run_items)(out, r, policy, watch ? watch : &nobody);
}
