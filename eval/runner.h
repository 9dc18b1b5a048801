/* A task that is set up once and run under one policy after another, all scored the same way. */
#ifndef DMS_RUNNER_H
#define DMS_RUNNER_H

#include "eval/result.h"

/* What the user asked for; 0 and NULL where a field does not belong to the task. */
typedef struct {
    const char *task;         /* "ppl", "kld", a name of RULER's (tasks/ruler.h), or "items" */
    const char *const *paths; /* [n_paths]: text or shards; "items": one JSON Lines file */
    int n_paths;
    int64_t context, prompt, sequences; /* text: T; P, 0: T/2; contexts, 0: all */
    int64_t length;                     /* RULER: tokens of prompt and answer */
    const char *essay;                  /* RULER: path of the haystack's text, NULL: made */
    int64_t limit;                      /* items, the most; 0: all (RULER: 500, as there) */
    int64_t batch, samples, max_new;    /* defaults: 8, 1, 256 */
    double temperature, top_p;          /* 0: greedy; 1 */
    bool chat, run_code;
    uint64_t seed;
} dms_task_spec;

/* task "kld", P = T/2 when it runs, batch 8, samples 1, max_new 256, top_p 1. */
dms_task_spec dms_task_spec_defaults(void);
/* Whether the task scores text; else it runs items. */
bool dms_task_is_text(const dms_task_spec *spec);
/* Tokens that the models must be open for; 0: the task's items decide. DMS_ERR_ARG: an unknown task
 * or sizes that do not go together. */
dms_status dms_task_positions(int64_t *out, const dms_task_spec *spec);

typedef struct dms_runner dms_runner;

/* Reads the text and runs the teacher over it; items are read by each run. spec and pair are
 * borrowed. Errors: those of reading, scoring, and of a chat template that is not known. */
dms_status dms_runner_open(dms_runner **out, const dms_task_spec *spec, const dms_pair *pair);
/* Reads what the task reads, and runs nothing: weights need no values. DMS_ERR_ARG also for an
 * answer that no context has room for, and for code where the spec does not permit it. */
dms_status dms_runner_check(const dms_task_spec *spec, const dms_pair *pair);
/* NULL is legal. */
void dms_runner_close(dms_runner *r);

/* Who watches a run, and where answers are logged; all may be NULL. */
typedef struct {
    void (*progress)(void *context, int64_t done, int64_t total);
    void *context;
    FILE *log;
} dms_runner_watch;

/* One policy's result: policy, task, metrics, items, cost, style and seed are filled in, the rest
 * is the caller's. */
dms_status dms_runner_run(dms_result *out, dms_runner *r, const dms_policy *policy,
                          const dms_runner_watch *watch);

#endif
