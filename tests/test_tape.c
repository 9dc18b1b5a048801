/* The tape: sticky failure, roots, memory, segments that are run again, steps with two outputs. */
#include <stdlib.h>

#include "autograd/ad.h"
#include "tests/rig.h"

static const float eps = 1e-5f;
enum { ROWS = 6, DIM = 64, TENSOR = ROWS * DIM * 4 /* bytes */ };
typedef enum { PLAIN, KEPT, REPLAYED, MODES } segments;

static dms_status add_forward(dms_node *n)
{
    DMS_TRY(dms_cast(&n->out->value, &n->in[0]->value));
    return dms_axpy(&n->out->value, 1.0f, &n->in[1]->value);
}

static dms_status add_backward(dms_node *n)
{
    for (int i = 0; i < 2; i++)
        if (dms_wanted_grad(n, i))
            DMS_TRY(dms_axpy(dms_wanted_grad(n, i), 1.0f, &n->out->grad));
    return DMS_OK;
}

/* a + b */
static dms_var *add(dms_tape *tape, dms_var *a, dms_var *b)
{
    static const dms_rule rule = {"add", add_forward, add_backward, false};
    dms_node *n = dms_tape_node(tape, &rule, 2, (dms_var *[]){a, b});
    return n ? dms_tape_run(tape, n, a->value) : NULL;
}

/* Layers behind a step outside them, whose result every layer reads again. Some layers have a step
 * more, so that gradients of two layers do not lie at the same places of the scratch memory. */
static dms_var *blocks(dms_tape *tape, dms_var *const in[2], segments mode, int layers)
{
    dms_var *outside = dms_ad_rms_norm(tape, in[0], in[1], eps, DMS_F32), *x = outside;
    for (int i = 0; i < layers; i++) {
        if (mode != PLAIN)
            dms_tape_segment_begin(tape, mode == REPLAYED);
        dms_var *h = dms_ad_rms_norm(tape, x, in[1], eps, DMS_F32);
        x = add(tape, x, dms_ad_swiglu(tape, h, outside, DMS_F32));
        x = dms_ad_rms_norm(tape, x, in[1], eps, DMS_F32);
        if (i % 3 == 1)
            x = dms_ad_rms_norm(tape, x, in[1], eps, DMS_F32);
        if (mode != PLAIN)
            x = dms_tape_segment_end(tape, x);
    }
    return dms_ad_rms_norm(tape, x, in[1], eps, DMS_F32);
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

typedef dms_var *builder(dms_tape *tape, dms_var *const in[2], segments mode, int how);

/* The same numbers each time: the rig's generator starts over. */
static outcome run_built(rig *r, builder *build, segments mode, int how,
                         const dms_tape_options *options)
{
    outcome o;
    r->seed = 7;
    const size_t mark = r->arena.used;
    dms_var x = rig_var(r, rig_shape(ROWS, DIM, 0, 0)), w = rig_var(r, rig_shape(DIM, 0, 0, 0));
    dms_tensor seed = rig_noise(r, x.value);
    dms_tape *tape = open_tape(options);
    dms_var *y = build(tape, (dms_var *[]){&x, &w}, mode, how);
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

static outcome run(rig *r, segments mode, int layers, const dms_tape_options *options)
{
    return run_built(r, blocks, mode, layers, options);
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
        dms_var *h = dms_ad_rms_norm(tape, &x, &frozen, eps, DMS_F32);
        dms_var *y = dms_ad_rms_norm(tape, h, &w, eps, DMS_F32);
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
    total(tape, &sum_rule, add(tape, &x, &x));
    total(tape, &sum_rule, &x);
    total(tape, &sum_rule, &zero); /* wants no gradient */
    total(tape, &not_a_loss, &x);  /* no gradient reaches it */
    dms_var *y = add(tape, &x, &zero);
    must(dms_tape_backward(tape, NULL, NULL));
    cr_assert(walks == 2, "%d", walks);
    expect_all(&x.grad, 3);
    must(r.dev->zero(r.dev, x.grad.data, dms_tensor_bytes(&x.grad)));
    dms_tape_reset(tape);
    total(tape, &sum_rule, add(tape, &x, &x));
    total(tape, &sum_rule, &x);
    y = add(tape, &x, &zero);
    must(dms_tape_backward(tape, y, &seed));
    expect_all(&x.grad, 7);
    dms_tape_close(tape);
    rig_close(&r);
}

/* ---- two outputs -------------------------------------------------------------------------- */

/* out = 3x, side = 5x: each output, reached or not, adds its part. */
static dms_status times(const dms_tensor *y, const dms_tensor *x, float factor, bool add)
{
    float *to = y->data;
    for (int64_t i = 0; i < dms_count(x); i++)
        to[i] = (add ? to[i] : 0) + factor * ((const float *)x->data)[i];
    return DMS_OK;
}

static dms_status three_forward(dms_node *n)
{
    return times(&n->out->value, &n->in[0]->value, 3, false);
}

static dms_status three_backward(dms_node *n)
{
    return times(dms_wanted_grad(n, 0), &n->out->grad, 3, true);
}

static dms_status five_forward(dms_node *n)
{
    return times(&n->out->value, &n->in[0]->value, 5, false);
}

static dms_status five_backward(dms_node *n)
{
    return times(dms_wanted_grad(n, 0), &n->out->grad, 5, true);
}

static dms_status both_forward(dms_node *n)
{
    DMS_TRY(three_forward(n));
    return times(&n->side->value, &n->in[0]->value, 5, false);
}

/* In the order in which two steps would add. */
static dms_status both_backward(dms_node *n)
{
    const dms_tensor *dy = dms_reached_grad(n->out), *dz = dms_reached_grad(n->side);
    cr_assert(dy || dz);
    if (dz)
        DMS_TRY(times(dms_wanted_grad(n, 0), dz, 5, true));
    return dy ? times(dms_wanted_grad(n, 0), dy, 3, true) : DMS_OK;
}

static const dms_rule three_rule = {"three", three_forward, three_backward, false};
static const dms_rule five_rule = {"five", five_forward, five_backward, false};
static const dms_rule both_rule = {"both", both_forward, both_backward, false};

/* 3x and, in *z, 5x: by one step or by two. */
static dms_var *multiples(dms_tape *tape, dms_var *x, dms_var **z, bool one)
{
    dms_node *n = dms_tape_node(tape, one ? &both_rule : &three_rule, 1, &x);
    if (one && n)
        *z = dms_tape_side(tape, n, x->value);
    dms_var *y = n ? dms_tape_run(tape, n, x->value) : NULL;
    if (!one && (n = dms_tape_node(tape, &five_rule, 1, &x)))
        *z = dms_tape_run(tape, n, x->value);
    return y;
}

/* Layers of which one goes on with y, one with z, one with both, and all with the z of a step in
 * front of them, behind more steps than the layers have; the last step is outside too. */
static dms_var *forks(dms_tape *tape, dms_var *const in[2], segments mode, int one)
{
    dms_var *outside = NULL, *z = NULL, *x = in[0], *y;
    for (int i = 0; i < 16; i++)
        x = multiples(tape, in[0], &outside, one);
    for (int use = 0; use < 3; use++) {
        if (mode != PLAIN)
            dms_tape_segment_begin(tape, mode == REPLAYED);
        dms_var *h = dms_ad_rms_norm(tape, x, in[1], eps, DMS_F32);
        y = multiples(tape, h, &z, one);
        x = dms_ad_swiglu(tape, use == 1 ? z : y, use == 0 ? y : z, DMS_F32);
        x = dms_ad_swiglu(tape, x, outside, DMS_F32);
        if (mode != PLAIN)
            x = dms_tape_segment_end(tape, x);
    }
    y = multiples(tape, x, &z, one);
    return dms_ad_swiglu(tape, z, y, DMS_F32);
}

Test(tape, a_step_with_two_outputs_gives_the_gradient_of_two_steps)
{
    rig r = rig_open(DMS_CPU);
    dms_tape_options options = roomy(&r, true);
    outcome two = run_built(&r, forks, PLAIN, false, &options);
    cr_assert(two.dx[0] != 0 && two.dw[0] != 0);
    for (int mode = 0; mode < MODES; mode++) {
        options.measure = false;
        outcome one = run_built(&r, forks, (segments)mode, true, &options);
        options.measure = true;
        outcome plan = run_built(&r, forks, (segments)mode, true, &options);
        cr_assert(!memcmp(one.y, two.y, TENSOR), "y of mode %d", mode);
        cr_assert(!memcmp(one.dx, two.dx, TENSOR), "dx of mode %d", mode);
        cr_assert(!memcmp(one.dw, two.dw, DIM * sizeof(float)), "dw of mode %d", mode);
        cr_assert(mode != PLAIN || (one.keep == two.keep && one.scratch == two.scratch));
        cr_assert(plan.keep == one.keep && plan.scratch == one.scratch,
                  "mode %d: planned %zu and %zu, used %zu and %zu", mode, plan.keep, plan.scratch,
                  one.keep, one.scratch);
        drop(&one);
        drop(&plan);
    }
    drop(&two);
    rig_close(&r);
}

/* d/dx of 3x, 5x and both, from seeds and losses; nothing runs where neither is reached. */
Test(tape, either_output_of_a_step_is_a_way_back)
{
    static const float want[] = {0, 3, 5, 8};
    rig r = rig_open(DMS_CPU);
    const dms_tape_options options = roomy(&r, true);
    for (int from = 0; from < 4; from++) {
        dms_tape *tape = open_tape(&options);
        dms_var x = rig_var(&r, rig_shape(3, 0, 0, 0)), *z = NULL;
        dms_var *y = multiples(tape, &x, &z, true);
        if (from & 1)
            total(tape, &sum_rule, y);
        if (from & 2)
            total(tape, &sum_rule, z);
        cr_assert(y->wants_grad && z->wants_grad);
        must(dms_tape_backward(tape, NULL, NULL));
        expect_all(&x.grad, want[from]);
        cr_assert(!dms_reached_grad(y) == !(from & 1) && !dms_reached_grad(z) == !(from & 2));
        dms_tape_close(tape);
    }
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
    dms_var *y = dms_ad_rms_norm(tape, &x, &w, eps, DMS_F32);
    dms_tape_check(tape, DMS_OK);
    cr_assert(y && !dms_tape_status(tape));
    y = dms_ad_swiglu(tape, dms_ad_rms_norm(tape, y, &w, eps, DMS_F32), y, DMS_F32);
    cr_assert(!y && dms_tape_status(tape) == DMS_ERR_NOMEM);
    dms_tape_segment_begin(tape, true);
    y = dms_tape_segment_end(tape, add(tape, y, y));
    cr_assert(!y && !dms_tape_input(tape, x.value));
    dms_tape_check(tape, DMS_ERR_IO);
    cr_assert(dms_tape_status(tape) == DMS_ERR_NOMEM);
    cr_assert(dms_tape_backward(tape, NULL, NULL) == DMS_ERR_NOMEM);
    cr_assert(strstr(dms_error_message(), "arena of 3072 bytes is full"), "%s",
              dms_error_message());
    dms_tape_reset(tape);
    must(dms_tape_status(tape));
    cr_assert(dms_ad_rms_norm(tape, &x, &w, eps, DMS_F32));
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
    cr_assert(!add(tape, add(tape, &x, &x), add(tape, &x, &x)));
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
    cr_assert(!dms_ad_swiglu(tape, &x, &longer, DMS_F32));
    cr_assert(dms_tape_status(tape) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_message(), "up is [4] f32, expected [3] f32"), "%s",
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
