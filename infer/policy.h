/* Cache policies by name: which tokens each keeps, under which budget. */
#ifndef DMS_POLICY_H
#define DMS_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"
#include "model/gate.h"

typedef enum {
    DMS_POLICY_DMS,       /* the retrofitted model's own z */
    DMS_POLICY_DENSE,     /* nothing is evicted */
    DMS_POLICY_WINDOW,    /* every token sees the last `size` keys, itself included */
    DMS_POLICY_RANDOM,    /* each head evicts each token with probability 1 - 1/ratio */
    DMS_POLICY_STREAMING, /* the first `sink` tokens and the last size - sink (StreamingLLM) */
    DMS_POLICY_TOVA,      /* the `size` tokens that the last query attends to most */
    DMS_POLICY_H2O,       /* the last size/2, and of the others those that received most */
    DMS_POLICY_SNAPKV,    /* of the prompt `size`, by its last `observed` queries; then all */
    DMS_POLICY_QUEST      /* keeps all; reads the pages that can matter most, `size` tokens */
} dms_policy_kind;

/* All but DMS evict the original model (gate off, channel intact): they need no training. */
typedef struct {
    char name[40]; /* as the user wrote it */
    dms_policy_kind kind;
    int64_t size;     /* the budget in tokens; 0 where it is a fraction */
    double fraction;  /* the budget as a fraction of the prompt, in (0, 1]; 0: in tokens */
    int64_t sink;     /* of STREAMING */
    bool turned;      /* of STREAMING: keys are re-rotated by their index in the cache */
    int64_t observed; /* of SNAPKV, >= 1 */
    double ratio;     /* of RANDOM, >= 1 */
    int64_t window;   /* of RANDOM: window of the law; -1: the gate's */
} dms_policy;

extern const dms_policy dms_policy_dense;

/* One of the forms that dms_policy_forms lists; N is a number of tokens or, with a percent sign, of
 * the prompt. DMS_ERR_ARG names what is wrong. */
dms_status dms_policy_parse(dms_policy *out, const char *text);
/* For help texts: one line a form, two spaces in front. */
extern const char dms_policy_forms[];

/* The budget for a prompt of n tokens, at least one token (H2O: two; QUEST: one page of 16;
 * STREAMING: one more than its sinks). 0 where the kind has none. */
int64_t dms_policy_budget(const dms_policy *p, int64_t n);
/* Turns a fraction into tokens: where all prompts have n tokens. */
void dms_policy_settle(dms_policy *p, int64_t n);

/* Whether the policy is a matter of decisions under the law of visibility alone (DMS, DENSE,
 * WINDOW, RANDOM), so that a masked pass over a whole text shows what it does. */
bool dms_policy_is_law(const dms_policy *p);

/* The window of the law of visibility that the policy runs under, -1 for dense. DMS_ERR_ARG for
 * "dms" without a gate, for "random" where neither the policy nor the gate says, and for WINDOW and
 * STREAMING where the budget is a fraction: their window is one of the whole cache. */
dms_status dms_policy_window(int64_t *out, const dms_policy *p, const dms_gate *gate);

/* Decisions of WINDOW and RANDOM as logits z (evict where z > 0): row b of z is the sequence
 * `sequence + b` of the whole text. Random: Philox, key seed, counter (0, sequence, layer*G + g,
 * t), so a sequence is evicted the same in any batch. z: host, [L, B, G, T]. */
typedef struct {
    uint64_t seed;
    int64_t sequence;
    int64_t layers, batch, kv_heads, context;
} dms_policy_shape;
void dms_policy_decide(float *z, const dms_policy *p, const dms_policy_shape *shape);
/* One of these decisions: 1 or -1. `head` is layer*G + g. */
float dms_policy_decision(const dms_policy *p, uint64_t seed, int64_t sequence, int64_t head,
                          int64_t t);

/* Sums over layers, KV heads and sequences, from which the ratios of method.md section 5 come. */
typedef struct {
    double evicted, decisions; /* decisions that evict, and all of them */
    double live, seen;         /* keys visible to the last query, and tokens */
    double read, read_dense;   /* visible keys of all queries, and without eviction */
} dms_kv_count;
/* Adds one head's text. d: [T], the decisions, 0 or 1: d[t] governs key t - 1. */
void dms_kv_count_add(dms_kv_count *sum, const float *d, int64_t T, int64_t window);
/* 1/(1 - fraction evicted); seen/live; read/read_dense. */
double dms_kv_decision_cr(const dms_kv_count *sum);
double dms_kv_cache_cr(const dms_kv_count *sum);
double dms_kv_read_ratio(const dms_kv_count *sum);

#endif
