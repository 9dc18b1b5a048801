/* Plain causal attention in bf16 on a CUDA device: by cuDNN where it is installed. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/bf16.h"
#include "tests/rig.h"

typedef struct {
    int64_t batch, tokens, heads, groups, width;
} dense_case;

typedef struct {
    dense_case of;
    dms_tensor q, k, v, o, lse;
    dms_attention_in in;
} problem;

static const dense_case cases[] = {
    {1, 1, 1, 1, 64},   {2, 1, 3, 1, 128}, {2, 7, 3, 3, 64},   {1, 31, 3, 1, 96},
    {1, 64, 6, 2, 64},  {2, 65, 3, 1, 64}, {1, 65, 2, 2, 96},  {1, 127, 3, 1, 128},
    {1, 193, 3, 1, 64}, {2, 13, 9, 3, 8},  {1, 66, 1, 1, 256},
};

static rig open_cuda(void)
{
    if (rig_device() == DMS_CPU)
        cr_skip_test("the CPU has no cuDNN; DMS_TEST_DEVICE names another device");
    return rig_open(rig_device());
}

static void make(problem *p, rig *r, const dense_case *c)
{
    const dms_tensor q = rig_shape(c->batch, c->tokens, c->heads * c->width, 0);
    const dms_tensor k = rig_shape(c->batch, c->tokens, c->groups * c->width, 0);
    *p = (problem){
        .of = *c,
        .q = rig_noise(r, q),
        .k = rig_noise(r, k),
        .v = rig_noise(r, k),
        .o = rig_noise(r, q),
        .lse = rig_noise(r, rig_shape(c->batch, c->heads, c->tokens, 0)),
    };
    p->in = (dms_attention_in){
        .q = &p->q, .k = &p->k, .v = &p->v, .head_dim = (int)c->width, .bf16 = true};
}

/* What the op multiplies: operands rounded to bf16, but for widths that only our f32 kernel takes.
 */
static float *multiplied(const problem *p, const dms_tensor *t)
{
    float *x = rig_read(t);
    for (int64_t i = 0; i < dms_count(t) && p->of.width % 8 == 0; i++)
        x[i] = dms_bf16_to_f32(dms_bf16_from_f32(x[i]));
    return x;
}

/* Rows of one query and of the keys of its group. */
typedef struct {
    const float *q, *k, *v;
    int64_t keys, stride, width;
} row;

/* p[k]: the weights; returns the log-sum-exp. */
static double weights(double *p, const row *r)
{
    double max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < r->keys; k++) {
        p[k] = 0;
        for (int64_t e = 0; e < r->width; e++)
            p[k] += (double)r->q[e] * (double)r->k[k * r->stride + e];
        p[k] /= sqrt((double)r->width);
        max = p[k] > max ? p[k] : max;
    }
    for (int64_t k = 0; k < r->keys; k++)
        sum += exp(p[k] - max);
    for (int64_t k = 0; k < r->keys; k++)
        p[k] = exp(p[k] - max) / sum;
    return max + log(sum);
}

/* The operands are those that the device multiplies, so lse is f32: sums of up to 256 products of
 * size 1 err by some 1e-6. In o each weight is rounded to bf16, which is up to 2^-8 of it, and o
 * itself once more. */
static void expect_row(const problem *p, const row *r, const float *o, float lse)
{
    double *weight = malloc((size_t)r->keys * sizeof(double));
    const double want_lse = weights(weight, r);
    cr_assert(fabs((double)lse - want_lse) <= 1e-5, "lse is %g, expected %g, T = %lld", (double)lse,
              want_lse, (long long)p->of.tokens);
    for (int64_t e = 0; e < r->width; e++) {
        double want = 0, size = 0;
        for (int64_t k = 0; k < r->keys; k++) {
            const double term = weight[k] * (double)r->v[k * r->stride + e];
            want += term;
            size += fabs(term);
        }
        cr_assert(fabs((double)o[e] - want) <= ldexp(size + fabs(want), -8) + 1e-5,
                  "o of query %lld, channel %lld is %g, expected %g", (long long)(r->keys - 1),
                  (long long)e, (double)o[e], want);
    }
    free(weight);
}

static void expect_definition(const problem *p)
{
    const dense_case *c = &p->of;
    float *q = multiplied(p, &p->q), *k = multiplied(p, &p->k), *v = multiplied(p, &p->v);
    float *o = rig_read(&p->o), *lse = rig_read(&p->lse);
    const int64_t stride = c->groups * c->width;
    for (int64_t i = 0; i < c->batch * c->heads * c->tokens; i++) {
        const int64_t b = i / (c->heads * c->tokens), h = i / c->tokens % c->heads;
        const int64_t t = i % c->tokens, g = h / (c->heads / c->groups);
        const int64_t at = ((b * c->tokens + t) * c->heads + h) * c->width;
        const int64_t keys = b * c->tokens * stride + g * c->width;
        expect_row(p, &(row){q + at, k + keys, v + keys, t + 1, stride, c->width}, o + at, lse[i]);
    }
    free(q);
    free(k);
    free(v);
    free(o);
    free(lse);
}

static void check(rig *r, const dense_case *c)
{
    const size_t mark = r->arena.used;
    problem p;
    make(&p, r, c);
    must(dms_attention(&p.o, &p.lse, &p.in));
    expect_definition(&p);
    r->arena.used = mark;
}

Test(dense_attention, follows_its_definition)
{
    rig r = open_cuda();
    for (size_t i = 0; i < COUNT(cases); i++)
        check(&r, &cases[i]);
    rig_close(&r);
}

Test(dense_attention, is_recorded_and_replayed)
{
    rig r = open_cuda();
    dms_graph *graph = NULL;
    problem p;
    make(&p, &r, &(dense_case){2, 33, 3, 1, 64});
    must(dms_attention(&p.o, &p.lse, &p.in)); /* plans are not made while a graph is recorded */
    must(r.dev->record(r.dev));
    must(dms_attention(&p.o, &p.lse, &p.in));
    must(r.dev->recorded(r.dev, &graph));

    dms_tensor other = rig_noise(&r, p.q);
    float *values = rig_read(&other);
    must(r.dev->upload(r.dev, p.q.data, values, dms_tensor_bytes(&p.q)));
    must(r.dev->zero(r.dev, p.o.data, dms_tensor_bytes(&p.o)));
    must(r.dev->replay(r.dev, graph));
    expect_definition(&p);
    free(values);
    r.dev->forget(r.dev, graph);
    rig_close(&r);
}

/* ---- the stand-in for cuDNN ----------------------------------------------------------------- */

static rig open_emulated(void)
{
    if (rig_device() != DMS_CUDA_EMU)
        cr_skip_test("looks into the emulation; DMS_TEST_DEVICE=cuda_emu runs it");
    return rig_open(DMS_CUDA_EMU);
}

/* A function of the open module, called through a pointer of the right type. */
static void look_up(void *out, const char *name)
{
    void *module = dlopen(DMS_BINARY_DIR "/libdms_cuda_emu.so", RTLD_NOW | RTLD_NOLOAD);
    cr_assert(module, "%s", dlerror());
    *(void **)out = dlsym(module, name);
    cr_assert(*(void **)out, "%s", dlerror());
    dlclose(module);
}

static long plans(void)
{
    long (*count)(void) = NULL;
    look_up(&count, "dms_cudnn_emulated_plans");
    return count();
}

Test(dense_attention, makes_one_plan_for_each_shape)
{
    rig r = open_emulated();
    const dense_case one = {1, 9, 3, 1, 64}, two = {1, 10, 3, 1, 64};
    check(&r, &one);
    check(&r, &one);
    cr_assert_eq(plans(), 1);
    check(&r, &two);
    check(&r, &one);
    cr_assert_eq(plans(), 2);
    rig_close(&r);
}

/* There is room for 16 plans; the shape that waited longest makes room. */
Test(dense_attention, forgets_the_shape_that_was_used_least_recently)
{
    rig r = open_emulated();
    for (int64_t t = 1; t <= 17; t++) {
        check(&r, &(dense_case){1, t, 1, 1, 8});
        check(&r, &(dense_case){1, 1, 1, 1, 8});
    }
    cr_assert_eq(plans(), 17);
    check(&r, &(dense_case){1, 17, 1, 1, 8});
    cr_assert_eq(plans(), 17);
    check(&r, &(dense_case){1, 2, 1, 1, 8});
    cr_assert_eq(plans(), 18);
    rig_close(&r);
}

Test(dense_attention, leaves_other_attention_to_our_kernels)
{
    rig r = open_emulated();
    check(&r, &(dense_case){1, 9, 3, 1, 12}); /* engines take multiples of 8 */
    problem p;
    make(&p, &r, &(dense_case){1, 9, 3, 1, 64});
    p.in.bf16 = false;
    must(dms_attention(&p.o, &p.lse, &p.in));
    dms_tensor bias = rig_noise(&r, rig_shape(1, 1, 9, 0));
    p.in.bf16 = true;
    p.in.bias = &bias;
    must(dms_attention(&p.o, &p.lse, &p.in));
    cr_assert_eq(plans(), 0);
    rig_close(&r);
}

Test(dense_attention, works_without_cudnn)
{
    must(setenv("DMS_CUDNN_EMULATED", "absent", 1) ? DMS_ERR_ARG : DMS_OK);
    rig r = open_emulated();
    check(&r, &(dense_case){2, 65, 3, 1, 64});
    cr_assert_eq(plans(), 0);
    rig_close(&r);
}

/* Numbers and types of cudnn_graph.h, which is no part of this test's include path. */
enum { TENSOR = 17, PAGED_LOAD = 35, MATMUL = 18, DATA_TYPE = 901, COMPUTE_TYPE = 1500 };
enum { TYPE_DATA_TYPE = 1, TYPE_INT64 = 3 };

typedef struct {
    int (*create)(int kind, void **out);
    int (*set)(void *d, int name, int type, int64_t count, const void *values);
    int (*finalize)(void *d);
    int (*destroy)(void *d);
} backend;

Test(dense_attention, emulated_cudnn_refuses_what_it_does_not_know)
{
    rig r = open_emulated();
    const int type = 0;
    const int64_t wide = 0;
    void *d = NULL;
    backend b;
    look_up(&b.create, "cudnnBackendCreateDescriptor");
    look_up(&b.set, "cudnnBackendSetAttribute");
    look_up(&b.finalize, "cudnnBackendFinalize");
    look_up(&b.destroy, "cudnnBackendDestroyDescriptor");

    cr_assert_eq(b.create(PAGED_LOAD, &d), 3000, "an unknown descriptor");
    cr_assert_eq(b.create(TENSOR, &d), 0);
    cr_assert_eq(b.set(d, COMPUTE_TYPE, TYPE_DATA_TYPE, 1, &type), 3000, "another's attribute");
    cr_assert_eq(b.set(d, DATA_TYPE, TYPE_INT64, 1, &wide), 2010, "another type");
    cr_assert_eq(b.set(d, DATA_TYPE, TYPE_DATA_TYPE, 2, &type), 2005, "too many values");
    cr_assert_eq(b.set(d, DATA_TYPE, TYPE_DATA_TYPE, 1, &type), 0);
    cr_assert_eq(b.finalize(d), 2000, "a tensor without dimensions");
    b.destroy(d);

    cr_assert_eq(b.create(MATMUL, &d), 0);
    cr_assert_eq(b.set(d, COMPUTE_TYPE, TYPE_DATA_TYPE, 1, &type), 0);
    cr_assert_eq(b.finalize(d), 0);
    cr_assert_eq(b.set(d, COMPUTE_TYPE, TYPE_DATA_TYPE, 1, &type), 2000, "after it is final");
    b.destroy(d);
    rig_close(&r);
}
