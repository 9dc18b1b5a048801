#include "infer/policy.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng.h"
#include "kernels/visibility.h"

enum { QUEST_PAGE = 16 };

const dms_policy dms_policy_dense = {.name = "dense", .kind = DMS_POLICY_DENSE, .window = -1};

const char dms_policy_forms[] =
    "  dms                    the retrofitted model's own decisions\n"
    "  dense                  everything is kept\n"
    "  window:N               the last N tokens\n"
    "  streaming:N[:SINK]     StreamingLLM: the first SINK (4) and the last, N in all, re-rotated\n"
    "  streaming-abs:N[:SINK] the same without re-rotation\n"
    "  tova:N                 TOVA: the N that the last query attends to most\n"
    "  h2o:N                  H2O: the last N/2, and those that received most attention\n"
    "  snapkv:N[:W]           SnapKV: N of the prompt, chosen by its last W (32) queries\n"
    "  quest:N                Quest: reads N tokens in pages of 16, keeps all\n"
    "  random:RATIO[:WINDOW]  each token evicted with probability 1 - 1/RATIO\n";

/* What follows a policy's name: up to three numbers between colons. */
static bool parse_int(int64_t *out, const char *text, int64_t low)
{
    char *end;
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    *out = n;
    return !errno && end != text && !*end && n >= low && n < INT32_MAX / 4;
}

/* "RATIO" or "RATIO:WINDOW". */
static bool parse_random(dms_policy *p, const char *text)
{
    char *end;
    p->ratio = strtod(text, &end);
    if (end == text || !(p->ratio >= 1) || !isfinite(p->ratio))
        return false;
    return !*end || (*end == ':' && parse_int(&p->window, end + 1, 0));
}

/* "N" or "P%", then, where `second` is not NULL, perhaps ":M". */
static bool parse_budget(dms_policy *p, const char *text, int64_t least, int64_t *second)
{
    char first[24];
    const size_t n = strcspn(text, ":");
    if (n >= sizeof(first) || (text[n] && !second))
        return false;
    memcpy(first, text, n);
    first[n] = 0;
    if (text[n] && !parse_int(second, text + n + 1, 0))
        return false;
    if (n < 2 || first[n - 1] != '%')
        return parse_int(&p->size, first, least);
    char *end;
    p->fraction = strtod(first, &end) / 100;
    return end == first + n - 1 && p->fraction > 0 && p->fraction <= 1;
}

static bool parse_streaming(dms_policy *p, const char *text)
{
    p->sink = 4;
    return parse_budget(p, text, 1, &p->sink) && (p->fraction > 0 || p->size > p->sink);
}

static bool parse_snapkv(dms_policy *p, const char *text)
{
    p->observed = 32;
    return parse_budget(p, text, 1, &p->observed) && p->observed >= 1 &&
           (p->fraction > 0 || p->size >= p->observed);
}

static const struct {
    const char *name;
    dms_policy_kind kind;
} kinds[] = {{"dms", DMS_POLICY_DMS},
             {"dense", DMS_POLICY_DENSE},
             {"window:", DMS_POLICY_WINDOW},
             {"random:", DMS_POLICY_RANDOM},
             {"streaming:", DMS_POLICY_STREAMING},
             {"streaming-abs:", DMS_POLICY_STREAMING},
             {"tova:", DMS_POLICY_TOVA},
             {"h2o:", DMS_POLICY_H2O},
             {"snapkv:", DMS_POLICY_SNAPKV},
             {"quest:", DMS_POLICY_QUEST}};

static bool parse_kind(dms_policy *p, const char *text)
{
    switch (p->kind) {
    case DMS_POLICY_RANDOM:
        return parse_random(p, text);
    case DMS_POLICY_STREAMING:
        return parse_streaming(p, text);
    case DMS_POLICY_SNAPKV:
        return parse_snapkv(p, text);
    case DMS_POLICY_WINDOW:
    case DMS_POLICY_TOVA:
        return parse_budget(p, text, 1, NULL);
    case DMS_POLICY_H2O:
        return parse_budget(p, text, 2, NULL);
    case DMS_POLICY_QUEST:
        return parse_budget(p, text, QUEST_PAGE, NULL);
    default:
        return !*text;
    }
}

static bool parse(dms_policy *p, const char *text)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const size_t n = strlen(kinds[i].name);
        if (strncmp(text, kinds[i].name, n) != 0)
            continue;
        p->kind = kinds[i].kind;
        p->turned = !strcmp(kinds[i].name, "streaming:");
        return parse_kind(p, text + n);
    }
    return false;
}

dms_status dms_policy_parse(dms_policy *out, const char *text)
{
    dms_policy p = {.window = -1};
    if (strlen(text) >= sizeof(p.name) || !parse(&p, text))
        return dms_fail(DMS_ERR_ARG,
                        "policy is \"%.60s\", expected one of\n%s  N: tokens, from 1 (h2o 2, quest "
                        "16, streaming SINK + 1, snapkv W), or a percentage of the prompt (25%%)",
                        text, dms_policy_forms);
    snprintf(p.name, sizeof(p.name), "%s", text);
    *out = p;
    return DMS_OK;
}

int64_t dms_policy_budget(const dms_policy *p, int64_t n)
{
    const int64_t least = p->kind == DMS_POLICY_H2O         ? 2
                          : p->kind == DMS_POLICY_QUEST     ? QUEST_PAGE
                          : p->kind == DMS_POLICY_STREAMING ? p->sink + 1
                                                            : 1;
    const int64_t part = (int64_t)llround(p->fraction * (double)n);
    if (p->fraction <= 0)
        return p->size;
    return part > least ? part : least;
}

void dms_policy_settle(dms_policy *p, int64_t n)
{
    p->size = dms_policy_budget(p, n);
    p->fraction = 0;
}

bool dms_policy_is_law(const dms_policy *p)
{
    return p->kind <= DMS_POLICY_RANDOM;
}

static dms_status check_window(const dms_policy *p, const dms_gate *gate)
{
    const bool gated = gate->kind != DMS_GATE_NONE;
    if (p->kind == DMS_POLICY_DMS && !gated)
        return dms_fail(DMS_ERR_ARG, "policy dms wants a retrofitted model, this one has no gate");
    if (p->kind == DMS_POLICY_RANDOM && p->window < 0 && !gated)
        return dms_fail(DMS_ERR_ARG,
                        "policy %s takes its window from the gate, and the model has none; "
                        "say random:RATIO:WINDOW",
                        p->name);
    if (p->fraction > 0 && (p->kind == DMS_POLICY_WINDOW || p->kind == DMS_POLICY_STREAMING))
        return dms_fail(DMS_ERR_ARG,
                        "policy %s takes a part of the prompt, and prompts differ in length here; "
                        "give its budget in tokens",
                        p->name);
    return DMS_OK;
}

dms_status dms_policy_window(int64_t *out, const dms_policy *p, const dms_gate *gate)
{
    DMS_TRY(check_window(p, gate));
    switch (p->kind) {
    case DMS_POLICY_DMS:
        *out = gate->window;
        return DMS_OK;
    case DMS_POLICY_RANDOM:
        *out = p->window >= 0 ? p->window : gate->window;
        return DMS_OK;
    case DMS_POLICY_WINDOW:
        *out = p->size - 1;
        return DMS_OK;
    case DMS_POLICY_STREAMING:
        *out = p->size - p->sink - 1;
        return DMS_OK;
    default: /* the ranked ones drop what they mark at once */
        *out = p->kind == DMS_POLICY_DENSE ? -1 : 0;
        return DMS_OK;
    }
}

float dms_policy_decision(const dms_policy *p, uint64_t seed, int64_t sequence, int64_t head,
                          int64_t t)
{
    if (p->kind != DMS_POLICY_RANDOM)
        return p->kind == DMS_POLICY_WINDOW ? 1.0f : -1.0f;
    const float evict = (float)(1.0 - 1.0 / p->ratio);
    const uint32_t x = dms_philox(seed, 0, (uint32_t)sequence, (uint32_t)head, (uint32_t)t);
    return dms_uniform(x) < evict ? 1.0f : -1.0f;
}

void dms_policy_decide(float *z, const dms_policy *p, const dms_policy_shape *shape)
{
    const int64_t heads = shape->kv_heads;
    for (int64_t l = 0; l < shape->layers; l++)
        for (int64_t b = 0; b < shape->batch; b++)
            for (int64_t g = 0; g < heads; g++)
                for (int64_t t = 0; t < shape->context; t++)
                    *z++ =
                        dms_policy_decision(p, shape->seed, shape->sequence + b, l * heads + g, t);
}

/* Key k is read by the queries k..T-1, or by the first window + 1 of them where it is evicted. */
void dms_kv_count_add(dms_kv_count *sum, const float *d, int64_t T, int64_t window)
{
    for (int64_t k = 0; k < T; k++) {
        const bool evicted = k + 1 < T && d[k + 1] > 0;
        const int64_t readers = T - k;
        sum->evicted += (double)d[k];
        sum->live += dms_is_visible(T - 1, k, window, evicted);
        sum->read += (double)(evicted && readers > window + 1 ? window + 1 : readers);
    }
    sum->decisions += (double)T;
    sum->seen += (double)T;
    sum->read_dense += (double)T * (double)(T + 1) / 2;
}

double dms_kv_decision_cr(const dms_kv_count *sum)
{
    return sum->decisions / (sum->decisions - sum->evicted);
}

double dms_kv_cache_cr(const dms_kv_count *sum)
{
    return sum->seen / sum->live;
}

double dms_kv_read_ratio(const dms_kv_count *sum)
{
    return sum->read / sum->read_dense;
}
