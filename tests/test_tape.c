/* The tape: sticky failure, roots, memory, and segments that are run again. */
#include <stdlib.h>

#include "autograd/ad.h"
#include "tests/rig.h"

static const float eps = 1e-5f;
enum { ROWS = 6, DIM = 64, TENSOR = ROWS * DIM * 4 /* bytes */ };
typedef enum { PLAIN, KEPT, REPLAYED, MODES } segments;

/* Layers behind a step outside them, whose result every layer reads again. Some layers have a step
 * more, so that gradients of two layers do not lie at the same places of the scratch memory. */
static dms_var *blocks(dms_tape *tape, dms_var *const in[2], segments mode, int layers)
{
    dms_var *outside = dms_ad_rms_norm(tape, in[0], in[1], eps), *x = outside;
    for (int i = 0; i < layers; i++) {
        if (mode != PLAIN)
            dms_tape_segment_begin(tape, mode == REPLAYED);
        dms_var *h = dms_ad_rms_norm(tape, x, in[1], eps);
        x = dms_ad_add(tape, x, dms_ad_swiglu(tape, h, outside));
        x = dms_ad_rms_norm(tape, x, in[1], eps);
        if (i % 3 == 1)
            x = dms_ad_rms_norm(tape, x, in[1], eps);
        if (mode != PLAIN)
            x = dms_tape_segment_end(tape, x);
    }
    return dms_ad_rms_norm(tape, x, in[1], eps);
}

static dms_tape_options roomy(const rig *r, bool recording)
{
    return (dms_tape_options){.device = r->dev,
                              .max_nodes = 128,
                              .keep_bytes = 1 << 20,
                              .scratch_bytes = 1 << 20,
                              .recording = recording};
}

static dms_tape *open_tape(const dms_tape_options *options)
{
    dms_tape *tape = NULL;
    must(dms_tape_open(&tape, options));
    return tape;
}

typedef struct {
    float *y, *dx, *dw;
    size_t keep, scratch;
} outcome;

/* The same numbers each time: the rig's generator starts over. */
static outcome run(rig *r, segments mode, int layers, const dms_tape_options *options)
{
    outcome o;
    r->seed = 7;
    const size_t mark = r->arena.used;
    dms_var x = rig_var(r, rig_shape(ROWS, DIM, 0, 0)), w = rig_var(r, rig_shape(DIM, 0, 0, 0));
    dms_tensor seed = rig_noise(r, x.value);
    dms_tape *tape = open_tape(options);
    dms_var *y = blocks(tape, (dms_var *[]){&x, &w}, mode, layers);
    must(dms_tape_status(tape));
    must(dms_tape_backward(tape, y, &seed));
    dms_tape_peak(tape, &o.keep, &o.scratch);
    o.y = options->measure ? NULL : rig_read(&y->value);
    o.dx = rig_read(&x.grad);
    o.dw = rig_read(&w.grad);
    dms_tape_close(tape);
    r->arena.used = mark;
    return o;
}

static void drop(outcome *o)
{
    free(o->y);
    free(o->dx);
    free(o->dw);
}

Test(tape, segments_give_the_same_bits_in_less_memory)
{
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    outcome o[MODES];
    for (int mode = 0; mode < MODES; mode++)
        o[mode] = run(&r, (segments)mode, 6, &options);
    for (int mode = KEPT; mode < MODES; mode++) {
        cr_assert(!memcmp(o[mode].y, o[PLAIN].y, TENSOR), "y of mode %d", mode);
        cr_assert(!memcmp(o[mode].dx, o[PLAIN].dx, TENSOR), "dx of mode %d", mode);
        cr_assert(!memcmp(o[mode].dw, o[PLAIN].dw, DIM * sizeof(float)), "dw of mode %d", mode);
        cr_assert(o[mode].keep + o[mode].scratch < o[mode - 1].keep + o[mode - 1].scratch,
                  "mode %d takes %zu + %zu bytes, the one before %zu + %zu", mode, o[mode].keep,
                  o[mode].scratch, o[mode - 1].keep, o[mode - 1].scratch);
    }
    cr_assert(o[PLAIN].scratch == 0);
    for (int mode = 0; mode < MODES; mode++)
        drop(&o[mode]);
    rig_close(&r);
}

/* A replayed layer more costs its output and that output's gradient, whatever is inside it. */
Test(tape, a_replayed_segment_keeps_its_output_only)
{
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    outcome few = run(&r, REPLAYED, 2, &options), many = run(&r, REPLAYED, 9, &options);
    cr_assert(many.scratch == few.scratch, "%zu, %zu", many.scratch, few.scratch);
    cr_assert(many.keep == few.keep + 7 * 2 * TENSOR, "%zu, %zu", many.keep, few.keep);
    drop(&few);
    drop(&many);
    rig_close(&r);
}

static dms_var *replayed(dms_tape *tape, dms_var **in)
{
    return blocks(tape, in, REPLAYED, 2);
}

Test(tape, gradient_through_segments_agrees_with_finite_differences)
{
    rig r = rig_open(DMS_CPU);
    dms_var x = rig_var(&r, rig_shape(2, 5, 0, 0)), w = rig_var(&r, rig_shape(5, 0, 0, 0));
    for (int64_t i = 0; i < 5; i++) /* away from 0, where the norms' slopes are steep */
        ((float *)w.value.data)[i] += ((float *)w.value.data)[i] < 0 ? -1.0f : 1.0f;
    rig_expect_gradient(&r, replayed, (dms_var *[]){&x, &w}, 2, 1e-3f, 5e-3f);
    rig_close(&r);
}

Test(tape, measuring_predicts_the_bytes_of_a_run_and_runs_nothing)
{
    rig r = rig_open(DMS_CPU);
    for (int mode = 0; mode < MODES; mode++)
        for (int recording = 0; recording < 2; recording++) {
            dms_tape_options options = roomy(&r, recording);
            outcome real = run(&r, (segments)mode, 5, &options);
            options.measure = true;
            options.keep_bytes = options.scratch_bytes = 0;
            outcome plan = run(&r, (segments)mode, 5, &options);
            cr_assert(plan.keep == real.keep && plan.scratch == real.scratch,
                      "mode %d: planned %zu and %zu, used %zu and %zu", mode, plan.keep,
                      plan.scratch, real.keep, real.scratch);
            for (int i = 0; i < ROWS * DIM; i++)
                cr_assert(plan.dx[i] == 0);
            options.measure = false;
            options.keep_bytes = plan.keep;
            options.scratch_bytes = plan.scratch;
            outcome tight = run(&r, (segments)mode, 5, &options);
            cr_assert(!memcmp(tight.dx, real.dx, TENSOR));
            drop(&real);
            drop(&plan);
            drop(&tight);
        }
    rig_close(&r);
}

Test(tape, one_byte_less_than_planned_is_a_status)
{
    rig r = rig_open(DMS_CPU);
    dms_var x = rig_var(&r, rig_shape(ROWS, DIM, 0, 0)), w = rig_var(&r, rig_shape(DIM, 0, 0, 0));
    dms_tensor seed = rig_noise(&r, x.value);
    dms_tape_options options = roomy(&r, true);
    outcome o = run(&r, REPLAYED, 3, &options);
    for (int less = 0; less < 2; less++) {
        options.keep_bytes = o.keep - (less == 0);
        options.scratch_bytes = o.scratch - (less == 1);
        dms_tape *tape = open_tape(&options);
        dms_var *y = blocks(tape, (dms_var *[]){&x, &w}, REPLAYED, 3);
        cr_assert(dms_tape_backward(tape, y, &seed) == DMS_ERR_NOMEM);
        cr_assert(strstr(dms_error_message(), "is full"), "%s", dms_error_message());
        dms_tape_close(tape);
    }
    drop(&o);
    rig_close(&r);
}

/* Without recording a segment leaves its output and nothing else. */
Test(tape, without_recording_only_outputs_of_segments_remain)
{
    rig r = rig_open(DMS_CPU);
    const dms_tape_options teacher = roomy(&r, false), student = roomy(&r, true);
    outcome want = run(&r, PLAIN, 2, &student);
    for (int mode = KEPT; mode < MODES; mode++) {
        outcome few = run(&r, (segments)mode, 2, &teacher);
        outcome many = run(&r, (segments)mode, 9, &teacher);
        cr_assert(!memcmp(few.y, want.y, TENSOR));
        cr_assert(many.scratch == few.scratch && few.scratch > 0);
        cr_assert(many.keep == few.keep + 7 * TENSOR, "%zu, %zu", many.keep, few.keep);
        for (int i = 0; i < ROWS * DIM; i++)
            cr_assert(few.dx[i] == 0);
        drop(&few);
        drop(&many);
    }
    drop(&want);
    rig_close(&r);
}

Test(tape, is_used_again_without_growing_and_parameters_add_up)
{
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    outcome once = run(&r, REPLAYED, 3, &options);
    dms_tape *tape = open_tape(&options);
    r.seed = 7;
    dms_var x = rig_var(&r, rig_shape(ROWS, DIM, 0, 0)), w = rig_var(&r, rig_shape(DIM, 0, 0, 0));
    dms_tensor seed = rig_noise(&r, x.value);
    for (int step = 0; step < 2; step++) {
        dms_tape_reset(tape);
        dms_var *y = blocks(tape, (dms_var *[]){&x, &w}, REPLAYED, 3);
        must(dms_tape_backward(tape, y, &seed));
    }
    size_t keep, scratch;
    dms_tape_peak(tape, &keep, &scratch);
    cr_assert(keep == once.keep && scratch == once.scratch);
    for (int i = 0; i < ROWS * DIM; i++)
        once.dx[i] *= 2;
    rig_expect("dx of two steps", &x.grad, once.dx, 1e-5f, 1e-5f);
    dms_tape_close(tape);
    drop(&once);
    rig_close(&r);
}

Test(tape, frozen_inputs_cost_no_gradient_memory)
{
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    dms_tensor seed = rig_noise(&r, rig_shape(ROWS, DIM, 0, 0));
    size_t added[2];
    for (int wants = 0; wants < 2; wants++) {
        dms_tape *tape = open_tape(&options);
        size_t before, after, scratch;
        dms_var x = rig_var(&r, seed), w = rig_var(&r, rig_shape(DIM, 0, 0, 0)), frozen = w;
        x.wants_grad = wants;
        frozen.wants_grad = false;
        if (!wants)
            x.grad.data = NULL;
        dms_var *h = dms_ad_rms_norm(tape, &x, &frozen, eps);
        dms_var *y = dms_ad_rms_norm(tape, h, &w, eps);
        dms_tape_peak(tape, &before, &scratch);
        must(dms_tape_backward(tape, y, &seed));
        dms_tape_peak(tape, &after, &scratch);
        added[wants] = after - before;
        cr_assert(y->wants_grad && h->wants_grad == x.wants_grad);
        cr_assert((h->grad.data != NULL) == x.wants_grad);
        float *dw = rig_read(&w.grad);
        cr_assert(dw[0] != 0);
        free(dw);
        dms_tape_close(tape);
    }
    cr_assert(added[0] == 0 && added[1] == TENSOR, "%zu, %zu", added[0], added[1]);
    rig_close(&r);
}

/* ---- roots ------------------------------------------------------------------------------- */

static int walks;

/* loss = sum(x): the gradient is 1 everywhere. */
static dms_status sum_backward(dms_node *n)
{
    const dms_tensor *x = &n->in[0]->value;
    walks++;
    for (int64_t i = 0; i < dms_count(x); i++)
        ((float *)dms_wanted_grad(n, 0)->data)[i] += 1;
    return DMS_OK;
}

static const dms_rule sum_rule = {"sum", NULL, sum_backward, true};
static const dms_rule not_a_loss = {"no loss", NULL, sum_backward, false};

static dms_var *total(dms_tape *tape, const dms_rule *rule, dms_var *x)
{
    dms_node *n = dms_tape_node(tape, rule, 1, (dms_var *[]){x});
    return n ? dms_tape_run(tape, n, rig_shape(1, 0, 0, 0)) : NULL;
}

static void expect_all(const dms_tensor *t, float want)
{
    float *host = rig_read(t);
    for (int64_t i = 0; i < dms_count(t); i++)
        cr_assert(host[i] == want, "[%lld] is %g, expected %g", (long long)i, (double)host[i],
                  (double)want);
    free(host);
}

/* Two losses behind one variable that is used twice, and a seed beside them: d/dx of
 * sum(2x) + sum(x) + 4*x. */
Test(tape, every_loss_is_a_root_beside_the_seed)
{
    const float four[] = {4, 4, 4};
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    dms_tape *tape = open_tape(&options);
    dms_var x = rig_var(&r, rig_shape(3, 0, 0, 0)), zero = {.value = rig_zero(&r, x.value)};
    dms_tensor seed = rig_upload(&r, x.value, four);
    walks = 0;
    total(tape, &sum_rule, dms_ad_add(tape, &x, &x));
    total(tape, &sum_rule, &x);
    total(tape, &sum_rule, &zero); /* wants no gradient */
    total(tape, &not_a_loss, &x);  /* no gradient reaches it */
    dms_var *y = dms_ad_add(tape, &x, &zero);
    must(dms_tape_backward(tape, NULL, NULL));
    cr_assert(walks == 2, "%d", walks);
    expect_all(&x.grad, 3);
    must(r.dev->zero(r.dev, x.grad.data, dms_tensor_bytes(&x.grad)));
    dms_tape_reset(tape);
    total(tape, &sum_rule, dms_ad_add(tape, &x, &x));
    total(tape, &sum_rule, &x);
    y = dms_ad_add(tape, &x, &zero);
    must(dms_tape_backward(tape, y, &seed));
    expect_all(&x.grad, 7);
    dms_tape_close(tape);
    rig_close(&r);
}

/* ---- failure ----------------------------------------------------------------------------- */

Test(tape, reports_the_first_failure_and_then_stays_quiet)
{
    rig r = rig_open(DMS_CPU);
    dms_tape_options options = roomy(&r, true);
    options.keep_bytes = 2 * TENSOR;
    dms_tape *tape = open_tape(&options);
    dms_var x = rig_var(&r, rig_shape(ROWS, DIM, 0, 0)), w = rig_var(&r, rig_shape(DIM, 0, 0, 0));
    dms_var *y = dms_ad_rms_norm(tape, &x, &w, eps);
    dms_tape_check(tape, DMS_OK);
    cr_assert(y && !dms_tape_status(tape));
    y = dms_ad_swiglu(tape, dms_ad_rms_norm(tape, y, &w, eps), y);
    cr_assert(!y && dms_tape_status(tape) == DMS_ERR_NOMEM);
    dms_tape_segment_begin(tape, true);
    y = dms_tape_segment_end(tape, dms_ad_add(tape, y, y));
    cr_assert(!y && !dms_tape_input(tape, x.value));
    dms_tape_check(tape, DMS_ERR_IO);
    cr_assert(dms_tape_status(tape) == DMS_ERR_NOMEM);
    cr_assert(dms_tape_backward(tape, NULL, NULL) == DMS_ERR_NOMEM);
    cr_assert(strstr(dms_error_message(), "arena of 3072 bytes is full"), "%s",
              dms_error_message());
    dms_tape_reset(tape);
    must(dms_tape_status(tape));
    cr_assert(dms_ad_rms_norm(tape, &x, &w, eps));
    dms_tape_check(tape, DMS_ERR_IO);
    cr_assert(dms_tape_status(tape) == DMS_ERR_IO);
    dms_tape_close(tape);
    rig_close(&r);
}

Test(tape, refuses_more_steps_than_it_was_opened_for)
{
    rig r = rig_open(DMS_CPU);
    dms_tape_options options = roomy(&r, true);
    options.max_nodes = 2;
    dms_tape *tape = open_tape(&options);
    dms_var x = rig_var(&r, rig_shape(3, 0, 0, 0));
    cr_assert(!dms_ad_add(tape, dms_ad_add(tape, &x, &x), dms_ad_add(tape, &x, &x)));
    cr_assert(dms_tape_status(tape) == DMS_ERR_NOMEM);
    cr_assert(strstr(dms_error_message(), "add: tape holds 2 nodes"), "%s", dms_error_message());
    dms_tape_close(tape);
    rig_close(&r);
}

Test(tape, a_step_that_fails_names_its_op)
{
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    dms_tape *tape = open_tape(&options);
    dms_var x = rig_var(&r, rig_shape(3, 0, 0, 0)), longer = rig_var(&r, rig_shape(4, 0, 0, 0));
    cr_assert(!dms_ad_add(tape, &x, &longer));
    cr_assert(dms_tape_status(tape) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_message(), "b is [4] f32, expected [3] f32"), "%s",
              dms_error_message());
    dms_tape_close(tape);
    rig_close(&r);
}

static dms_status refuse(dms_node *n)
{
    return dms_fail(DMS_ERR_DEVICE, "%s does not go back", n->rule->name);
}

Test(tape, backward_passes_on_what_a_step_reports)
{
    static const dms_rule one_way = {"one way", NULL, refuse, true};
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    dms_tape *tape = open_tape(&options);
    dms_var x = rig_var(&r, rig_shape(3, 0, 0, 0));
    total(tape, &one_way, &x);
    cr_assert(dms_tape_backward(tape, NULL, NULL) == DMS_ERR_DEVICE);
    cr_assert(strstr(dms_error_message(), "one way does not go back"), "%s", dms_error_message());
    dms_tape_close(tape);
    rig_close(&r);
}
