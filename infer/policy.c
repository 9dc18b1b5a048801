#include "infer/policy.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng.h"
#include "kernels/visibility.h"

/* A whole number from `low` on, up to the end of the text. */
static bool parse_int(int64_t *out, const char *text, int64_t low)
{
    char *end;
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    *out = n;
    return !errno && end != text && !*end && n >= low && n < INT32_MAX;
}

/* "RATIO" or "RATIO:WINDOW". */
static bool parse_random(dms_policy *p, const char *text)
{
    char *end;
    p->kind = DMS_POLICY_RANDOM;
    p->ratio = strtod(text, &end);
    if (end == text || !(p->ratio >= 1) || !isfinite(p->ratio))
        return false;
    return !*end || (*end == ':' && parse_int(&p->window, end + 1, 0));
}

static bool parse(dms_policy *p, const char *text)
{
    if (!strcmp(text, "dms") || !strcmp(text, "dense")) {
        p->kind = text[1] == 'm' ? DMS_POLICY_DMS : DMS_POLICY_DENSE;
        return true;
    }
    if (!strncmp(text, "window:", 7)) {
        p->kind = DMS_POLICY_WINDOW;
        return parse_int(&p->size, text + 7, 1);
    }
    return !strncmp(text, "random:", 7) && parse_random(p, text + 7);
}

dms_status dms_policy_parse(dms_policy *out, const char *text)
{
    dms_policy p = {.window = -1};
    if (strlen(text) >= sizeof(p.name) || !parse(&p, text))
        return dms_fail(DMS_ERR_ARG,
                        "policy is \"%s\", expected dms, dense, window:N (N from 1), "
                        "random:RATIO or random:RATIO:WINDOW (RATIO from 1)",
                        text);
    snprintf(p.name, sizeof(p.name), "%s", text);
    *out = p;
    return DMS_OK;
}

dms_status dms_policy_window(int64_t *out, const dms_policy *p, const dms_gate *gate)
{
    const bool gated = gate->kind != DMS_GATE_NONE;
    if (p->kind == DMS_POLICY_DMS && !gated)
        return dms_fail(DMS_ERR_ARG, "policy dms wants a retrofitted model, this one has no gate");
    if (p->kind == DMS_POLICY_RANDOM && p->window < 0 && !gated)
        return dms_fail(DMS_ERR_ARG,
                        "policy %s takes its window from the gate, and the model has none; "
                        "say random:RATIO:WINDOW",
                        p->name);
    if (p->kind == DMS_POLICY_WINDOW)
        *out = p->size - 1;
    else if (p->kind == DMS_POLICY_DENSE || p->window >= 0)
        *out = p->window;
    else
        *out = gate->window;
    return DMS_OK;
}

void dms_policy_decide(float *z, const dms_policy *p, const dms_policy_shape *shape)
{
    const int64_t heads = shape->kv_heads;
    const float evict = (float)(1.0 - 1.0 / (p->kind == DMS_POLICY_RANDOM ? p->ratio : 1.0));
    for (int64_t l = 0; l < shape->layers; l++)
        for (int64_t b = 0; b < shape->batch; b++)
            for (int64_t g = 0; g < heads; g++)
                for (int64_t t = 0; t < shape->context; t++) {
                    const uint32_t x = dms_philox(shape->seed, 0, (uint32_t)(shape->sequence + b),
                                                  (uint32_t)(l * heads + g), (uint32_t)t);
                    const bool out = p->kind == DMS_POLICY_WINDOW || dms_uniform(x) < evict;
                    *z++ = out ? 1.0f : -1.0f;
                }
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
