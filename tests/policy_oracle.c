#include "tests/policy_oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Two scores whose distance is below this part of them are equal in f32: products of up to 24
 * channels and sums over up to 192 tokens each add a few 1e-7. */
#define NEAR 2e-5

oracle oracle_open(const oracle_rule *rule, int layer, const int shape[3], double theta)
{
    oracle o = {
        .rule = *rule, .layer = layer, .groups = shape[0], .reps = shape[1], .dim = shape[2]};
    const size_t wide = (size_t)(ORACLE_TOKENS * o.groups * o.dim), units = (size_t)o.groups;
    o.q = calloc(wide * (size_t)o.reps, sizeof(double));
    o.k = calloc(wide, sizeof(double));
    o.v = calloc(wide, sizeof(double));
    o.score = calloc(units * ORACLE_TOKENS, sizeof(double));
    o.evicts = calloc(units * ORACLE_TOKENS, sizeof(bool));
    o.live = calloc(units * ORACLE_TOKENS, sizeof(bool));
    o.table = calloc((size_t)(ORACLE_TOKENS * o.dim), sizeof(double));
    for (int i = 0; i < ORACLE_TOKENS * o.dim; i++) {
        const int j = i % o.dim, half = o.dim / 2;
        const double angle = i / o.dim * pow(theta, -2.0 * (j % half) / o.dim);
        o.table[i] = j < half ? cos(angle) : sin(angle);
    }
    return o;
}

void oracle_close(oracle *o)
{
    free(o->q);
    free(o->k);
    free(o->v);
    free(o->score);
    free(o->evicts);
    free(o->live);
    free(o->table);
}

void oracle_turn(double *out, const double *x, const oracle *o, int position)
{
    const int half = o->dim / 2;
    const double *angles = o->table + position * o->dim;
    for (int i = 0; i < half; i++) {
        const double c = angles[i], s = angles[half + i];
        out[i] = x[i] * c - x[i + half] * s;
        out[i + half] = x[i + half] * c + x[i] * s;
    }
}

void oracle_enter(oracle *o, int ahead, const double *q, const double *k, const double *v,
                  const bool *evicts)
{
    const int t = o->tokens + ahead, wide = o->groups * o->dim;
    memcpy(o->q + t * wide * o->reps, q, (size_t)(wide * o->reps) * sizeof(double));
    memcpy(o->k + t * wide, k, (size_t)wide * sizeof(double));
    memcpy(o->v + t * wide, v, (size_t)wide * sizeof(double));
    for (int g = 0; g < o->groups; g++) {
        o->evicts[g * ORACLE_TOKENS + t] = evicts && evicts[g];
        o->live[g * ORACLE_TOKENS + t] = true;
    }
}

int oracle_live(const oracle *o, int g)
{
    int n = 0;
    for (int t = 0; t < o->tokens; t++)
        n += o->live[g * ORACLE_TOKENS + t];
    return n;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Whether query q of head g sees key k; what was dropped for good is not live. */
static bool sees(const oracle *o, int g, int q, int k)
{
    const oracle_rule *r = &o->rule;
    if (k > q)
        return false;
    if (r->kind == ORACLE_LAW)
        return q - k <= r->window || !o->evicts[g * ORACLE_TOKENS + k + 1];
    if (r->kind == ORACLE_STREAMING && !o->prefill)
        return k < r->sink || q - k < r->size - r->sink;
    return o->live[g * ORACLE_TOKENS + k];
}

/* Where RoPE puts a token: at its own position, or at its index in the cache. */
static int place(const oracle *o, int t)
{
    return o->rule.turned && t >= o->rule.sink ? t - o->dropped : t;
}

/* Probabilities of head h for query q over the keys that `read` has; 0 elsewhere. p: [q + 1] */
static void probabilities(double *p, const oracle *o, int h, int q, const bool *read)
{
    double turned[2][64], most = -INFINITY, sum = 0;
    const int g = h / o->reps, heads = o->groups * o->reps;
    oracle_turn(turned[0], o->q + (q * heads + h) * o->dim, o, place(o, q));
    for (int k = 0; k <= q; k++) {
        p[k] = 0;
        if (!read[k])
            continue;
        oracle_turn(turned[1], o->k + (k * o->groups + g) * o->dim, o, place(o, k));
        for (int e = 0; e < o->dim; e++)
            p[k] += turned[0][e] * turned[1][e];
        p[k] /= sqrt(o->dim);
        most = p[k] > most ? p[k] : most;
    }
    for (int k = 0; k <= q; k++)
        sum += p[k] = read[k] ? exp(p[k] - most) : 0;
    for (int k = 0; k <= q; k++)
        p[k] /= sum;
}

/* What one query of one head reads; counts it. */
static void reads(bool *read, oracle *o, const oracle_pass *pass, int g, int q)
{
    const bool chosen = o->rule.kind == ORACLE_QUEST && !pass->prefill;
    for (int k = 0; k <= q; k++) {
        read[k] = chosen ? pass->read[g * ORACLE_TOKENS + k] : sees(o, g, q, k);
        *(pass->prefill ? &o->visible : &o->reads) += read[k];
    }
}

static void attend(oracle *o, const oracle_pass *pass, int q, double *out)
{
    bool read[ORACLE_TOKENS];
    double p[ORACLE_TOKENS];
    for (int h = 0; h < o->groups * o->reps; h++) {
        const int g = h / o->reps;
        if (h % o->reps == 0)
            reads(read, o, pass, g, q);
        probabilities(p, o, h, q, read);
        for (int k = 0; k <= q; k++) {
            if (o->rule.kind == ORACLE_H2O)
                o->score[g * ORACLE_TOKENS + k] += p[k];
            for (int e = 0; e < o->dim; e++)
                out[h * o->dim + e] += p[k] * o->v[(k * o->groups + g) * o->dim + e];
        }
    }
}

/* The largest sum over channels that a key within the bounds of a page can have with q. */
static double page_bound(const oracle *o, int g, int h, int page, int tokens)
{
    const double *x = o->q + ((tokens - 1) * o->groups * o->reps + h) * o->dim;
    double q[64], k[64], low[64], high[64], sum = 0;
    oracle_turn(q, x, o, tokens - 1);
    for (int t = page * ORACLE_PAGE; t < (page + 1) * ORACLE_PAGE; t++) {
        oracle_turn(k, o->k + (t * o->groups + g) * o->dim, o, t);
        for (int e = 0; e < o->dim; e++) {
            low[e] = t % ORACLE_PAGE && low[e] < k[e] ? low[e] : k[e];
            high[e] = t % ORACLE_PAGE && high[e] > k[e] ? high[e] : k[e];
        }
    }
    for (int e = 0; e < o->dim; e++)
        sum += fmax(q[e] * low[e], q[e] * high[e]);
    return sum;
}

/* Whether `taken` are `best` of the n candidates, none of the others better by more than rounding.
 * must[i]: no candidate, to be taken; score NAN: neither. */
static const char *check_choice(oracle *o, const bool *taken, const double *score, int n, int best)
{
    int candidates = 0, chosen = 0;
    double worst = INFINITY, lost = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (score[i] == INFINITY && !taken[i])
            return "what is always kept is missing";
        if (isnan(score[i]) && taken[i])
            return "what was dropped before is there";
        if (!isfinite(score[i]))
            continue;
        candidates++;
        chosen += taken[i];
        if (taken[i])
            worst = fmin(worst, score[i]);
        else
            lost = fmax(lost, score[i]);
    }
    if (chosen != least(best, candidates))
        return "another number than the budget";
    if (lost <= worst)
        return NULL;
    o->close++;
    return lost - worst <= NEAR * fmax(fabs(lost), fabs(worst)) ? NULL
                                                                : "a worse one was preferred";
}

static const char *check_read(oracle *o, const oracle_pass *pass, int g)
{
    const int tokens = o->tokens + 1, pages = (tokens + ORACLE_PAGE - 1) / ORACLE_PAGE;
    const bool *read = pass->read + g * ORACLE_TOKENS;
    const int best = o->rule.size / ORACLE_PAGE - 1;
    const bool all = o->layer < ORACLE_DENSE_LAYERS || pages <= best + 1;
    bool taken[ORACLE_TOKENS];
    double score[ORACLE_TOKENS];
    for (int t = 0; t < tokens; t++)
        if (read[t] != read[t / ORACLE_PAGE * ORACLE_PAGE])
            return "a part of a page was read";
    for (int i = 0; i < pages; i++) {
        taken[i] = read[i * ORACLE_PAGE];
        score[i] = all || i == pages - 1 ? INFINITY : -INFINITY;
        for (int h = g * o->reps; h < (g + 1) * o->reps && score[i] < INFINITY; h++)
            score[i] = fmax(score[i], page_bound(o, g, h, i, tokens));
    }
    o->bounds += all ? 0 : pages - 1;
    return check_choice(o, taken, score, pages, best);
}

/* SnapKV: what the last `observed` queries of the prompt gave the keys before them, averaged over
 * neighbours. score: [G, tokens] */
static void observe(oracle *o)
{
    const int tokens = o->tokens, before = tokens - least(o->rule.observed, tokens);
    bool read[ORACLE_TOKENS];
    double p[ORACLE_TOKENS], sum[ORACLE_TOKENS];
    for (int g = 0; g < o->groups; g++) {
        memset(sum, 0, sizeof(sum));
        for (int q = before; q < tokens; q++)
            for (int h = g * o->reps; h < (g + 1) * o->reps; h++) {
                for (int k = 0; k <= q; k++)
                    read[k] = true;
                probabilities(p, o, h, q, read);
                for (int k = 0; k < before && k <= q; k++)
                    sum[k] += p[k] / o->reps;
            }
        for (int t = 0; t < before; t++) {
            double *score = &o->score[g * ORACLE_TOKENS + t];
            *score = 0;
            for (int j = t - ORACLE_POOL / 2; j <= t + ORACLE_POOL / 2; j++)
                *score += j >= 0 && j < before ? sum[j] / ORACLE_POOL : 0;
        }
    }
}

/* TOVA: the mean over all heads of what the last query gave. */
static void weigh_last(oracle *o)
{
    const int last = o->tokens - 1, heads = o->groups * o->reps;
    double p[ORACLE_TOKENS];
    memset(o->score, 0, (size_t)(o->groups * ORACLE_TOKENS) * sizeof(double));
    for (int h = 0; h < heads; h++) {
        probabilities(p, o, h, last, o->live + h / o->reps * ORACLE_TOKENS);
        for (int g = 0; g < o->groups; g++)
            for (int k = 0; k <= last; k++)
                o->score[g * ORACLE_TOKENS + k] += p[k] / heads;
    }
}

/* Whether kept is all of what a rule of visibility lets the last query see. */
static const char *check_law(oracle *o, const bool *kept, int g)
{
    o->prefill = false; /* a chunk sees more than is kept of it */
    for (int t = 0; t < o->tokens; t++) {
        if (sees(o, g, o->tokens - 1, t) != kept[t])
            return kept[t] ? "what has expired is there" : "what is visible is missing";
        o->live[g * ORACLE_TOKENS + t] = kept[t];
    }
    return NULL;
}

/* What a cut after the pass must keep: the last `recent`, and the best of the rest. */
static const char *check_cut(oracle *o, const bool *kept, int g, bool cuts)
{
    const oracle_rule *r = &o->rule;
    const int recent = r->kind == ORACLE_H2O      ? r->size / 2
                       : r->kind == ORACLE_SNAPKV ? least(r->observed, r->size)
                                                  : 0;
    const bool all = !cuts || oracle_live(o, g) <= r->size;
    double score[ORACLE_TOKENS];
    for (int t = 0; t < o->tokens; t++) {
        const bool keeps = all || t >= o->tokens - recent;
        bool *live = &o->live[g * ORACLE_TOKENS + t];
        score[t] = !*live ? NAN : keeps ? INFINITY : o->score[g * ORACLE_TOKENS + t];
    }
    const char *wrong = check_choice(o, kept, score, o->tokens, r->size - recent);
    memcpy(o->live + g * ORACLE_TOKENS, kept, (size_t)o->tokens * sizeof(bool));
    return wrong;
}

static const char *check_kept(oracle *o, const oracle_pass *pass)
{
    const oracle_kind kind = o->rule.kind;
    const bool after_prompt = !pass->prefill || pass->ends;
    const bool once = kind == ORACLE_SNAPKV && pass->ends && !o->cut;
    const bool cuts = once || ((kind == ORACLE_TOVA || kind == ORACLE_H2O) && after_prompt);
    const char *wrong = NULL;
    if (once)
        observe(o);
    o->cut = o->cut || once;
    if (kind == ORACLE_TOVA && after_prompt)
        weigh_last(o);
    for (int g = 0; g < o->groups && !wrong; g++) {
        const bool *kept = pass->kept + g * ORACLE_TOKENS;
        if (kind == ORACLE_TOVA && memcmp(kept, pass->kept, (size_t)o->tokens * sizeof(bool)))
            return "heads of one layer keep different tokens";
        wrong = kind <= ORACLE_STREAMING ? check_law(o, kept, g) : check_cut(o, kept, g, cuts);
    }
    return wrong;
}

const char *oracle_step(oracle *o, const oracle_pass *pass, double *out)
{
    const int wide = o->groups * o->reps * o->dim, size = o->rule.size;
    const char *wrong = NULL;
    o->prefill = pass->prefill;
    if (o->rule.kind == ORACLE_STREAMING && pass->prefill)
        o->dropped = o->tokens - oracle_live(o, 0);
    else if (o->rule.kind == ORACLE_STREAMING)
        o->dropped = o->tokens + 1 > size ? o->tokens + 1 - size : 0;
    if (o->rule.kind == ORACLE_QUEST && !pass->prefill)
        for (int g = 0; g < o->groups && !wrong; g++)
            wrong = check_read(o, pass, g);
    memset(out, 0, (size_t)(pass->count * wide) * sizeof(double));
    for (int i = 0; i < pass->count; i++)
        attend(o, pass, o->tokens + i, out + i * wide);
    o->tokens += pass->count;
    const char *kept = check_kept(o, pass);
    return wrong ? wrong : kept;
}
