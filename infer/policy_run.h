/* A cache policy at work in a session: five hooks, and one small file for each kind. */
#ifndef DMS_POLICY_RUN_H
#define DMS_POLICY_RUN_H

#include "infer/cache.h"
#include "infer/policy.h"
#include "model/model.h"

typedef struct dms_policy_run dms_policy_run;

/* One layer of a pass, between projection and output, as hooks see it. Tensors are on the device,
 * after RoPE. A decode step may be recorded and replayed: what changes from step to step, hooks
 * leave to the ops. */
typedef struct {
    const dms_paged *cache;
    const dms_paged_rows *rows;
    const dms_tensor *q, *k; /* [n, T, H*E], [n, T, G*E] */
    int64_t begin, end;      /* prefill, of one sequence: where its prompt begins and ends */
    int64_t last;            /* prefill: the position of the pass's last token */
} dms_policy_step;

static inline bool dms_policy_ends(const dms_policy_step *s)
{
    return s->rows->prefill && s->last == s->end - 1;
}

/* Each may be NULL. In the order of a step: */
typedef struct {
    /* The decision that the token at position t of a sequence (the policy's number of it, not the
     * cache's) makes on the one before it, > 0: evict. Without this hook the policy decides
     * nothing at entry. `head` is layer*G + g. */
    float (*decide)(const dms_policy_run *run, int64_t sequence, int64_t head, int64_t t,
                    bool prefill);
    /* After the tokens were entered. */
    dms_status (*enter)(dms_policy_run *run, const dms_policy_step *step);
    /* Which slots attention reads: *read begins as step->cache. */
    dms_status (*select)(dms_policy_run *run, const dms_policy_step *step, const dms_paged **read);
    /* Takes down the probabilities that it needs. */
    dms_status (*weigh)(dms_policy_run *run, const dms_policy_step *step);
    /* After attention: drops what is not kept. */
    dms_status (*evict)(dms_policy_run *run, const dms_policy_step *step);
    bool scored, bounded, turned; /* what it needs in the cache, and beside it */
    bool ranked;                  /* needs `last` and `best` */
} dms_policy_hooks;

/* The law of visibility: drops what has expired, where tokens came in chunks. */
dms_status dms_policy_evict_expired(dms_policy_run *run, const dms_policy_step *step);
/* Marks all but the first `first` tokens, the last run->last and the best run->best, and drops
 * them. */
dms_status dms_policy_keep(dms_policy_run *run, const dms_policy_step *step, int64_t first,
                           bool best);

extern const dms_policy_hooks dms_policy_law_hooks, dms_policy_decided_hooks,
    dms_policy_streaming_hooks, dms_policy_tova_hooks, dms_policy_h2o_hooks,
    dms_policy_snapkv_hooks, dms_policy_quest_hooks;

struct dms_policy_run {
    const dms_policy_hooks *hooks;
    dms_policy policy;
    const dms_model *model; /* borrowed */
    uint64_t seed;
    int sequences; /* S of the cache */
    dms_arena memory;
    dms_tensor z;          /* [L, rows*G], decisions of a pass, where the policy decides */
    dms_tensor last, best; /* [S], i32, where it ranks: dms_paged_kept */
    dms_tensor kept;       /* [S*L*G, sink, E], f32, where keys are turned */
    dms_tensor list, live; /* [S*L*G, unit_pages] and [S*L*G], i32: the read set of Quest */
    dms_paged chosen;      /* the cache as the read set */
    float *staged;         /* host copy of z */
    int32_t *budgets;      /* [2, S], host copies of last and best */
    int64_t *numbers;      /* [S], the policy's number of the cache's sequence */
    int64_t next_number;   /* sequences are numbered in the order they begin */
};

typedef struct {
    const dms_policy *policy;
    const dms_model *model; /* borrowed */
    const dms_cache *cache; /* borrowed; opened with dms_policy_prepare */
    int64_t rows;           /* the most tokens of one pass */
    uint64_t seed;          /* of RANDOM */
} dms_policy_run_options;

/* Sets window, scored, bounded and, for QUEST, the slots of a page. `o`: otherwise filled in.
 * DMS_ERR_ARG where the model or the cache cannot run the policy: see dms_policy_window; STREAMING
 * re-rotated without RoPE; QUEST with pages of another size, or with a fraction of the prompt. */
dms_status dms_policy_prepare(dms_cache_options *o, const dms_policy *p, const dms_model *model);

/* The caller ends it with dms_policy_run_close, where NULL is legal. DMS_ERR_NOMEM. */
dms_status dms_policy_run_open(dms_policy_run **out, const dms_policy_run_options *options);
void dms_policy_run_close(dms_policy_run *run);
/* Device memory that the policy holds beside the cache. */
size_t dms_policy_run_bytes(const dms_policy_run *run);

/* A prompt of `tokens` tokens is about to enter an empty sequence: settles its budget, numbers
 * it. */
dms_status dms_policy_run_begin(dms_policy_run *run, int sequence, int64_t tokens);

/* Whether sequences may share pages: no slot is marked, scored or turned after it was entered. */
bool dms_policy_run_shares(const dms_policy_run *run);
/* Sequence `to` was forked from `from`: it has the same budget, and a number of its own. */
dms_status dms_policy_run_fork(dms_policy_run *run, int from, int to);

/* Before a pass: decisions of its n rows of T tokens from positions first[i] on. No effect where
 * the policy has no `decide`. */
typedef struct {
    const int32_t *sequences; /* [n] */
    const int32_t *positions; /* [n, T] */
    int64_t n, tokens;
    bool prefill;
} dms_policy_pass;
dms_status dms_policy_run_decide(dms_policy_run *run, const dms_policy_pass *pass);
/* These decisions for one layer, a view [n, G, T] into run->z; false where it decides nothing. */
bool dms_policy_run_decisions(dms_tensor *z, const dms_policy_run *run, int layer, int64_t n,
                              int64_t tokens);

#endif
