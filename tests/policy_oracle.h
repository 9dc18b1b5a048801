/* What a cache policy must keep, read and return, from its definition, in plain double precision.
 */
#ifndef DMS_TEST_POLICY_ORACLE_H
#define DMS_TEST_POLICY_ORACLE_H

#include <stdbool.h>

typedef enum {
    ORACLE_LAW,       /* visible: k <= q and (q - k <= window or the next decision keeps k) */
    ORACLE_STREAMING, /* the first `sink` and the last size - sink */
    ORACLE_TOVA,
    ORACLE_H2O,
    ORACLE_SNAPKV,
    ORACLE_QUEST
} oracle_kind;

enum { ORACLE_TOKENS = 192, ORACLE_PAGE = 16, ORACLE_DENSE_LAYERS = 2, ORACLE_POOL = 5 };

typedef struct {
    oracle_kind kind;
    int window;   /* of LAW; dense: as long as the text */
    int size;     /* the budget in tokens */
    int sink;     /* of STREAMING */
    bool turned;  /* of STREAMING: keys are numbered by their index in the cache */
    int observed; /* of SNAPKV */
} oracle_rule;

/* One sequence in one layer. Vectors are as they were before RoPE. */
typedef struct {
    oracle_rule rule;
    int layer, groups, reps, dim;
    double *table; /* of RoPE: [tokens, dim], cosines of p*theta^(-2i/dim), then sines */
    int tokens;    /* entered and attended */
    int dropped;   /* of STREAMING: tokens between the sinks and the others, when a pass begins */
    bool prefill;  /* the pass is one */
    bool cut;      /* of SNAPKV: once */
    double *q, *k, *v, *score;   /* [tokens, H or G, dim]; score: [G, tokens] */
    bool *evicts, *live;         /* [G, tokens]: decision of a token; kept */
    long reads, bounds, visible; /* of decode, of decode, of prefill */
    int close;                   /* choices that only rounding decided */
} oracle;

oracle oracle_open(const oracle_rule *rule, int layer, const int shape[3], double theta);
void oracle_close(oracle *o);

/* A pass of `count` tokens; `ends`: it ends the prompt. */
typedef struct {
    int count;
    bool prefill, ends;
    const bool *read; /* QUEST in a decode step, [G, tokens]: what the implementation read */
    const bool *kept; /* [G, tokens]: what it kept after the step */
} oracle_pass;

/* Vectors of the next token, before attention. q: [H, dim], k, v: [G, dim], evicts: [G] or NULL */
void oracle_enter(oracle *o, int ahead, const double *q, const double *k, const double *v,
                  const bool *evicts);
/* Attention of the tokens entered last. out: [count, H, dim]. Returns NULL, or what is wrong with
 * what the implementation read or kept; the oracle goes on with its choice. */
const char *oracle_step(oracle *o, const oracle_pass *pass, double *out);
/* Live slots of head g. */
int oracle_live(const oracle *o, int g);
/* x with RoPE at a position. */
void oracle_turn(double *out, const double *x, const oracle *o, int position);

#endif
