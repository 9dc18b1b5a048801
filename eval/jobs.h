/* Runs many prompts over one session, side by side: answers that are drawn, and continuations whose
 * likelihood is wanted. */
#ifndef DMS_JOBS_H
#define DMS_JOBS_H

#include "data/buffer.h"
#include "eval/cost.h"
#include "infer/sampler.h"
#include "infer/session.h"

typedef struct {
    const int32_t *prompt; /* [n_prompt], n_prompt >= 1, borrowed */
    int64_t n_prompt;
    const int32_t *given; /* [n_given], borrowed: its likelihood is wanted; NULL: an answer is */
    int64_t n_given;
    int64_t max_new; /* of an answer, >= 1 */
    uint32_t stream; /* of the sampler: chains of one prompt draw differently */
    /* results */
    dms_tokens answer;     /* owned by the job: dms_tokens_free */
    bool ended;            /* by such a token, not by max_new */
    double log_likelihood; /* of `given`, in nats */
    bool greedy;           /* every token of `given` was the most probable one */
} dms_job;

typedef struct {
    dms_session *session; /* empty, borrowed; all its sequences are used */
    int sequences;        /* how many that is */
    int64_t vocab;
    dms_sampler_options sampling;
    /* *end: the token `id` ends the answer so far; *keep: it belongs to it. */
    dms_status (*ends)(void *context, const dms_job *job, int32_t id, bool *end, bool *keep);
    void (*progress)(void *context, int64_t done, int64_t total); /* may be NULL */
    void *context;
} dms_jobs_options;

/* Runs n jobs in order, as many at once as there are sequences, and adds what they cost; peaks are
 * over all sequences at once. The prompt of consecutive jobs that have the same one is read once
 * and kept until the last of them begins; they are forked from it (dms_session_fork), where there
 * is more than one sequence. Jobs whose prompt and answer do not fit the session's context:
 * DMS_ERR_ARG before anything is run. Other errors: those of the session; DMS_ERR_NOMEM. Answers
 * made so far stay in the jobs. */
dms_status dms_jobs_run(dms_run_cost *cost, const dms_jobs_options *options, dms_job *jobs,
                        int64_t n);

#endif
