#include "eval/task_set.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "eval/task_spec.h"
#include "eval/yaml_tree.h"

enum { MOST_PATHS = 256 };

typedef struct {
    json_t *tree; /* owned; strings of spec point into it */
    char name[64];
    dms_task_spec spec;
} entry;

struct dms_task_set {
    entry *entries;
    int n;
    const char **paths; /* [MOST_PATHS], of all entries */
    char *heldout;
    dms_tokenizer *tokenizer;
    char *chat_template; /* or NULL */
};

/* ---- opening -------------------------------------------------------------------------------- */

static dms_status copy_text(char **out, const char *text)
{
    if (!text)
        return DMS_OK;
    *out = strdup(text);
    return *out ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for the evaluation's tasks");
}

static dms_status read_model(dms_task_set *set, const char *path)
{
    dms_source *source = NULL;
    size_t length = 0;
    dms_status status = DMS_OK;
    DMS_TRY(dms_source_open(&source, path));
    const char *text = dms_source_tokenizer(source, &length);
    if (text)
        status = dms_tokenizer_open(&set->tokenizer, text, length, path);
    else
        status = dms_fail(DMS_ERR_ARG,
                          "%s has no tokenizer, which the tasks of eval read text with; put the "
                          "model's tokenizer.json there",
                          path);
    if (!status)
        status = copy_text(&set->chat_template, dms_source_chat_template(source));
    dms_source_close(source);
    return status;
}

static dms_status check_size(const dms_task_spec *spec, int64_t context)
{
    int64_t positions;
    DMS_TRY(dms_task_positions(&positions, spec));
    if (positions <= context)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "it takes %" PRId64 " tokens, the models are open for %" PRId64
                    ", which is data.context; lower its %s",
                    positions, context, dms_task_is_text(spec) ? "context" : "length");
}

static dms_status read_task(dms_task_set *set, dms_task_paths *paths, const dms_task_text *text,
                            const dms_task_set_options *o)
{
    entry *e = &set->entries[set->n++];
    const char *name = NULL;
    snprintf(e->name, sizeof(e->name), "%s", text->name);
    DMS_TRY(dms_yaml_parse(&e->tree, text->text, strlen(text->text), text->name));
    e->spec = dms_task_spec_defaults();
    e->spec.sequences = o->sequences;
    e->spec.context = e->spec.length = o->context;
    e->spec.seed = o->seed;
    DMS_TRY(dms_task_spec_read(&e->spec, &name, paths, e->tree, text->also));
    if (dms_task_is_text(&e->spec) && !e->spec.n_paths && set->heldout) {
        e->spec.paths = (const char *const *)&set->heldout;
        e->spec.n_paths = 1;
    }
    return check_size(&e->spec, o->context);
}

static dms_status read_tasks(dms_task_set *set, const dms_task_set_options *o)
{
    set->entries = calloc((size_t)o->n + 1, sizeof(*set->entries));
    set->paths = calloc(MOST_PATHS, sizeof(*set->paths));
    if (!set->entries || !set->paths)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the evaluation's tasks");
    DMS_TRY(copy_text(&set->heldout, o->heldout));
    dms_task_paths paths = {set->paths, 0, MOST_PATHS};
    for (int i = 0; i < o->n; i++) {
        const dms_status status = read_task(set, &paths, &o->tasks[i], o);
        if (status)
            dms_trail_note("task %s of eval", o->tasks[i].name);
        DMS_TRY(status);
    }
    return DMS_OK;
}

dms_status dms_task_set_open(dms_task_set **out, const dms_task_set_options *options)
{
    dms_task_set *set = calloc(1, sizeof(*set));
    if (!set)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the evaluation's tasks");
    dms_status status = read_tasks(set, options);
    if (!status)
        status = read_model(set, options->model);
    if (status) {
        dms_task_set_close(set);
        return status;
    }
    *out = set;
    return DMS_OK;
}

void dms_task_set_close(dms_task_set *set)
{
    if (!set)
        return;
    for (int i = 0; i < set->n; i++)
        json_decref(set->entries[i].tree);
    free(set->entries);
    free(set->paths);
    free(set->heldout);
    free(set->chat_template);
    dms_tokenizer_close(set->tokenizer);
    free(set);
}

/* ---- running -------------------------------------------------------------------------------- */

/* What a runner sees in place of opened files. */
typedef struct {
    dms_model_file file;
    dms_pair pair;
} borrowed;

static void borrow(borrowed *b, const dms_task_set *set, const dms_task_models *models)
{
    /* A runner reads the model only; dms_model_file owns its own, hence the type. */
    *b = (borrowed){.file = {.model = (dms_model *)models->student,
                             .tokenizer = set->tokenizer,
                             .chat_template = set->chat_template}};
    b->pair = (dms_pair){.student = &b->file, .teacher = models->teacher};
}

static dms_status named(const dms_task_set *set, int i, dms_status status)
{
    if (status)
        dms_trail_note("task %s of eval", set->entries[i].name);
    return status;
}

dms_status dms_task_set_check(dms_task_set *set, const dms_task_models *models)
{
    borrowed b;
    borrow(&b, set, models);
    for (int i = 0; i < set->n; i++)
        DMS_TRY(named(set, i, dms_runner_check(&set->entries[i].spec, &b.pair)));
    return DMS_OK;
}

double dms_task_set_cache_bytes(const dms_task_set *set, int i, const dms_model *model)
{
    const dms_task_spec *spec = &set->entries[i].spec;
    const dms_config *c = &model->config;
    int64_t positions = 0;
    if (dms_task_positions(&positions, spec) || !positions)
        positions = model->rope_table.shape[0];
    return 2.0 * c->layers * c->kv_heads * c->head_dim * (double)positions * (double)spec->batch *
           (double)dms_dtype_bytes(model->matrix_type);
}

dms_status dms_task_set_run(dms_result *out, dms_task_set *set, int i,
                            const dms_task_models *models)
{
    dms_runner *runner = NULL;
    dms_policy policy;
    borrowed b;
    borrow(&b, set, models);
    DMS_TRY(dms_policy_parse(&policy, "dms"));
    DMS_TRY(named(set, i, dms_runner_open(&runner, &set->entries[i].spec, &b.pair)));
    const dms_status status = dms_runner_run(out, runner, &policy, NULL);
    dms_runner_close(runner);
    out->policy = out->task = out->style = NULL;
    return named(set, i, status);
}
