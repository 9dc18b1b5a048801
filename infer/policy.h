/* Eviction policies of scored text: who decides, under which window, and what it costs. */
#ifndef DMS_POLICY_H
#define DMS_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"
#include "model/gate.h"

typedef enum {
    DMS_POLICY_DMS,    /* the retrofitted model's own z */
    DMS_POLICY_DENSE,  /* nothing is evicted */
    DMS_POLICY_WINDOW, /* every token sees the last `size` keys, itself included */
    DMS_POLICY_RANDOM  /* each head evicts each token with probability 1 - 1/ratio */
} dms_policy_kind;

/* All but DMS evict the original model (gate off, channel intact): they need no training. */
typedef struct {
    char name[32]; /* as the user wrote it */
    dms_policy_kind kind;
    int64_t size;   /* of WINDOW, >= 1 */
    double ratio;   /* of RANDOM, >= 1 */
    int64_t window; /* of RANDOM: window of the law; -1: the gate's */
} dms_policy;

/* "dms", "dense", "window:N", "random:RATIO" or "random:RATIO:WINDOW". DMS_ERR_ARG names what is
 * wrong. */
dms_status dms_policy_parse(dms_policy *out, const char *text);

/* The window of the law of visibility that the policy runs under, -1 for dense. DMS_ERR_ARG for
 * "dms" without a gate, and for "random" where neither the policy nor the gate says. */
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
