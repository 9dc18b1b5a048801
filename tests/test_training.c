/* Whole optimiser steps against the reference run. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fixtures.h"
#include "tests/tiny_run.h"

/* What a flat buffer holds of one weight; the caller frees it. */
static float *read_part(const dms_tensor *flat, const struct dms_trained *t)
{
    float *host = malloc((size_t)t->count * sizeof(float));
    must(flat->device->download(flat->device, host, (const float *)flat->data + t->offset,
                                (size_t)t->count * sizeof(float)));
    return host;
}

/* Final weights within 5e-4: AdamW's first steps amplify rounding. */
static void expect_final_weights(const tiny_run *r)
{
    for (int i = 0; i < r->optimizer.n_trained; i++) {
        const struct dms_trained *t = &r->optimizer.trained[i];
        char name[128];
        snprintf(name, sizeof(name), "final.%s", t->weight->name);
        float *want = malloc((size_t)t->count * sizeof(float));
        must(dms_source_read(r->steps, name, want, DMS_F32));
        float *got = read_part(&r->optimizer.master, t);
        for (int64_t k = 0; k < t->count; k++)
            cr_assert(fabsf(got[k] - want[k]) <= 5e-4f, "%s[%lld] is %g, expected %g", name,
                      (long long)k, (double)got[k], (double)want[k]);
        free(want);
        free(got);
    }
}

static bool close_to(double got, double want, double rtol, double atol)
{
    return fabs(got - want) <= atol || fabs(got - want) <= rtol * fabs(want);
}

static void follow_reference(const char *family, bool replay)
{
    tiny_run r = tiny_run_open(&(tiny_options){family, DMS_F32, replay, DMS_TRAIN_ALL});
    float table[4][4]; /* kl, compress, gradient norm, target */
    must(dms_source_read(r.steps, "kl_compress_gradnorm_target", table, DMS_F32));
    for (int step = 0; step < 4; step++) {
        dms_losses losses = {0};
        const step_plan plan = {step, step + 1, table[step][3], tiny_run_setting(&r, "lr")};
        const float norm = tiny_run_step(&r, &plan, &losses);
        cr_assert(close_to(losses.kl, (double)table[step][0], 1e-4, 1e-6),
                  "%s step %d: kl is %.9g, expected %.9g", family, step, losses.kl,
                  (double)table[step][0]);
        cr_assert(close_to(losses.compress, (double)table[step][1], 1e-4, 1e-6),
                  "%s step %d: compress is %.9g, expected %.9g", family, step, losses.compress,
                  (double)table[step][1]);
        cr_assert(close_to((double)norm, (double)table[step][2], 1e-3, 0),
                  "%s step %d: gradient norm is %.9g, expected %.9g", family, step, (double)norm,
                  (double)table[step][2]);
    }
    expect_final_weights(&r);
    tiny_run_close(&r);
}

Test(training, follows_the_reference_for_four_steps)
{
    follow_reference("llama", false);
    follow_reference("qwen2", false);
}

Test(training, follows_the_reference_with_replayed_blocks)
{
    follow_reference("llama", true);
}

/* The gradient of a weight of the student, by its name in the file; the caller frees it. */
static float *gradient_of(const tiny_run *r, const char *name)
{
    for (int i = 0; i < r->optimizer.n_trained; i++)
        if (!strcmp(r->optimizer.trained[i].weight->name, name))
            return read_part(&r->optimizer.grad, &r->optimizer.trained[i]);
    cr_assert(false, "%s is not trained", name);
    return NULL;
}

/* train: gate with the neuron gate trains G rows of q_proj alone; their gradients are those that
 * the whole q_proj gets (1e-5 of the largest: another order of summation). */
static void compare_rows(const char *family, const char *whole_name, const char *rows_name)
{
    tiny_run whole = tiny_run_open(&(tiny_options){family, DMS_F32, false, DMS_TRAIN_ATTENTION});
    tiny_run rows = tiny_run_open(&(tiny_options){family, DMS_F32, false, DMS_TRAIN_GATE});
    const step_plan plan = {0, 1, 0.75f, 0};
    tiny_run_step(&whole, &plan, &(dms_losses){0});
    tiny_run_step(&rows, &plan, &(dms_losses){0});
    const dms_config *c = &rows.student->config;
    float *all = gradient_of(&whole, whole_name), *own = gradient_of(&rows, rows_name);
    const int64_t cols = strstr(rows_name, "bias") ? 1 : c->width;
    float *want = malloc((size_t)(c->kv_heads * cols) * sizeof(float)), largest = 0;
    dms_model_get_borrowed(want, all, c, (size_t)cols * sizeof(float));
    for (int64_t i = 0; i < c->kv_heads * cols; i++)
        largest = fmaxf(largest, fabsf(want[i]));
    cr_assert_gt(largest, 0);
    for (int64_t i = 0; i < c->kv_heads * cols; i++)
        cr_assert(fabsf(own[i] - want[i]) <= 1e-5f * largest, "%s[%lld] is %g, expected %g",
                  rows_name, (long long)i, (double)own[i], (double)want[i]);
    free(want);
    free(all);
    free(own);
    tiny_run_close(&whole);
    tiny_run_close(&rows);
}

Test(training, of_the_borrowed_rows_alone_has_the_gradients_of_the_whole)
{
    compare_rows("llama", "model.layers.0.self_attn.q_proj.weight",
                 "model.layers.0.self_attn.dms_rows.weight");
    compare_rows("qwen2", "model.layers.1.self_attn.q_proj.weight",
                 "model.layers.1.self_attn.dms_rows.weight");
    compare_rows("qwen2", "model.layers.1.self_attn.q_proj.bias",
                 "model.layers.1.self_attn.dms_rows.bias");
}

/* bf16 against f32 on the same inputs: the first loss within 2 %, and a run of 30 steps whose curve
 * stays within 5 %: the fixture's batches and noise over and over, at a learning rate where a
 * decision that flips does not set the two runs apart (the fixture's is ten times larger). */
Test(training, in_bf16_stays_near_f32)
{
    tiny_run exact = tiny_run_open(&(tiny_options){"llama", DMS_F32, false, DMS_TRAIN_ALL}),
             rounded = tiny_run_open(&(tiny_options){"llama", DMS_BF16, false, DMS_TRAIN_ALL});
    float table[4][4];
    must(dms_source_read(exact.steps, "kl_compress_gradnorm_target", table, DMS_F32));
    for (int step = 0; step < 30; step++) {
        dms_losses a = {0}, b = {0};
        const step_plan plan = {step % 4, step + 1, table[3][3], 1e-4f};
        tiny_run_step(&exact, &plan, &a);
        tiny_run_step(&rounded, &plan, &b);
        const double tolerance = step ? 0.05 : 0.02;
        const double want = a.kl + a.compress, got = b.kl + b.compress;
        cr_assert(fabs(got - want) <= tolerance * want, "step %d: loss is %g in bf16, %g in f32",
                  step, got, want);
    }
    tiny_run_close(&exact);
    tiny_run_close(&rounded);
}
