#include "eval/run_log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"

const char *const dms_run_field_names[] = {
#define X(name, key) key,
    DMS_RUN_FIELDS(X)
#undef X
};

/* Room for one more: doubled when n is 0 or a power of two from 64 on. */
static dms_status grow(void **array, int64_t n, size_t size)
{
    if (n && (n < 64 || (n & (n - 1))))
        return DMS_OK;
    void *more = realloc(*array, (n ? 2 * (size_t)n : 64) * size);
    if (!more)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the lines of a run");
    *array = more;
    return DMS_OK;
}

static void drop(dms_run_eval *all, int64_t *n, int64_t step)
{
    while (*n && all[*n - 1].step >= step)
        json_decref(all[--*n].values);
}

static dms_status add_eval(dms_run_log *log, int64_t step, json_t *values)
{
    drop(log->evals, &log->n_evals, step);
    DMS_TRY(grow((void **)&log->evals, log->n_evals, sizeof(*log->evals)));
    log->evals[log->n_evals++] = (dms_run_eval){step, json_incref(values)};
    return DMS_OK;
}

/* After those of its step that have another name. */
static dms_status add_task(dms_run_log *log, int64_t step, json_t *line)
{
    const char *name = json_string_value(json_object_get(line, "task"));
    drop(log->tasks, &log->n_tasks, step + 1);
    for (int64_t i = log->n_tasks - 1; i >= 0 && log->tasks[i].step == step; i--)
        if (!strcmp(name, json_string_value(json_object_get(log->tasks[i].values, "task")))) {
            json_decref(log->tasks[i].values);
            log->tasks[i].values = json_incref(line);
            return DMS_OK;
        }
    DMS_TRY(grow((void **)&log->tasks, log->n_tasks, sizeof(*log->tasks)));
    log->tasks[log->n_tasks++] = (dms_run_eval){step, json_incref(line)};
    return DMS_OK;
}

static dms_status add_step(dms_run_log *log, int64_t step, const json_t *line)
{
    while (log->n_steps && log->steps[log->n_steps - 1].step >= step)
        log->n_steps--;
    drop(log->evals, &log->n_evals, step);
    drop(log->tasks, &log->n_tasks, step);
    DMS_TRY(grow((void **)&log->steps, log->n_steps, sizeof(*log->steps)));
    dms_run_step *s = &log->steps[log->n_steps++];
    s->step = step;
    for (int i = 0; i < DMS_RUN_N_FIELDS; i++) {
        const json_t *value = json_object_get(line, dms_run_field_names[i]);
        s->values[i] = json_is_number(value) ? json_number_value(value) : NAN;
    }
    return DMS_OK;
}

static dms_status add_line(dms_run_log *log, const char *line, size_t n, bool is_last)
{
    dms_status status = DMS_OK;
    json_t *tree = json_loadb(line, n, 0, NULL);
    const json_t *step = json_object_get(tree, "step");
    const json_int_t at = json_integer_value(step);
    json_t *eval = json_object_get(tree, "eval"), *task = json_object_get(tree, "task");
    if (!json_is_integer(step) || at < 0 || at == INT64_MAX || (eval && !json_is_object(eval)) ||
        (task && !json_is_string(task)))
        log->skipped += !is_last;
    else if (task)
        status = add_task(log, at, tree);
    else if (eval)
        status = add_eval(log, at, eval);
    else
        status = add_step(log, at, tree);
    json_decref(tree);
    return status;
}

static dms_status read_lines(dms_run_log *log, const char *text, size_t n)
{
    for (size_t at = 0; at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        const size_t length = end ? (size_t)(end - text) - at : n - at;
        if (length)
            DMS_TRY(add_line(log, text + at, length, at + length + (end != NULL) >= n));
        at += length + 1;
    }
    return DMS_OK;
}

dms_status dms_run_log_read(dms_run_log *out, const char *path)
{
    dms_run_log log = {0};
    dms_mapping file;
    DMS_TRY(dms_mapping_open(&file, path));
    dms_status status = read_lines(&log, (const char *)file.bytes, file.size);
    dms_mapping_close(&file);
    if (!status && !log.n_steps && !log.n_evals && !log.n_tasks)
        status =
            dms_fail(DMS_ERR_FORMAT,
                     "%s has no line of a step, expected JSON objects with \"step\"; is it the "
                     "log of a run?",
                     path);
    if (status)
        dms_run_log_close(&log);
    else
        *out = log;
    return status;
}

void dms_run_log_close(dms_run_log *log)
{
    drop(log->evals, &log->n_evals, -1);
    drop(log->tasks, &log->n_tasks, -1);
    free(log->steps);
    free(log->evals);
    free(log->tasks);
    *log = (dms_run_log){0};
}
