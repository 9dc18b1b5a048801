/* RoPE, and what else happens to heads on the way to attention, against the definition in double.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "autograd/ad.h"
#include "tests/rig.h"

enum { POSITIONS = 40, WIDEST = 264 };

static dms_tensor rope_table(rig *r, int64_t width)
{
    float host[POSITIONS * WIDEST];
    for (int64_t p = 0; p < POSITIONS; p++)
        for (int64_t j = 0; j < width / 2; j++) {
            const double angle = (double)p * pow(100, -2.0 * (double)j / (double)width);
            host[p * width + j] = (float)cos(angle);
            host[p * width + width / 2 + j] = (float)sin(angle);
        }
    return rig_upload(r, rig_shape(POSITIONS, width, 0, 0), host);
}

/* Rows of x rotated by angles of their positions; the transpose where `sign` is -1. The borrowed
 * channel is multiplied by keep before the rotation and again after it, either way round. */
typedef struct {
    const int32_t *position;
    int64_t rows, heads, width;
    int every;
    double keep, sign;
} rotation;

static void define_rope(double *y, const float *x, const rotation *c)
{
    const int64_t width = c->width, half = width / 2;
    for (int64_t r = 0; r < c->rows * c->heads; r++, x += width, y += width) {
        const bool borrowed = c->every > 0 && r % c->heads % c->every == 0;
        const double keep = borrowed ? c->keep : 1;
        double in[WIDEST];
        for (int64_t i = 0; i < width; i++)
            in[i] = (double)x[i] * (i == width - 1 ? keep : 1);
        for (int64_t j = 0; j < half; j++) {
            const double angle = (double)c->position[r / c->heads] *
                                 pow(100, -2.0 * (double)j / (double)width) * c->sign;
            y[j] = in[j] * cos(angle) - in[j + half] * sin(angle);
            y[j + half] = in[j + half] * cos(angle) + in[j] * sin(angle);
        }
        y[width - 1] *= keep;
    }
}

/* Not in order, repeated, the first and the last of the table. */
static const int32_t positions[] = {17, 0, 3, 39, 39, 2, 11, 1};

/* y, y in place of x, and dx on top of what is there; noise in [-1, 1) and f32 sums of two. */
static void check_rope(rig *r, const rotation *shape, double keep)
{
    const int64_t rows = shape->rows, cols = shape->heads * shape->width, n = rows * cols;
    rotation c = *shape;
    c.keep = keep;
    const dms_tensor table = rope_table(r, c.width);
    const dms_tensor ids = rig_upload(r, rig_shape_i32(2, rows / 2), c.position);
    const dms_rope_spec spec = {
        .table = &table, .ids = &ids, .borrowed_every = c.every, .keep = (float)keep};
    dms_tensor x = rig_noise(r, rig_shape(2, rows / 2, cols, 0)), y = rig_empty(r, x);
    dms_tensor dx = rig_noise(r, x);
    float *hx = rig_read(&x), *want = rig_read(&y), *grad = rig_read(&dx);
    double *turned = malloc((size_t)n * sizeof(double));

    define_rope(turned, hx, &c);
    for (int64_t i = 0; i < n; i++)
        want[i] = (float)turned[i];
    c.sign = -1;
    define_rope(turned, hx, &c);
    for (int64_t i = 0; i < n; i++)
        grad[i] += (float)turned[i];
    must(dms_rope(&(dms_rope_out){.y = &y}, &x, &spec));
    must(dms_rope_bwd(&(dms_rope_grads){.dy = &x, .dx = &dx}, &spec));
    rig_expect("y", &y, want, 1e-6f, 1e-6f);
    rig_expect("dx", &dx, grad, 1e-6f, 1e-6f);
    must(dms_rope(&(dms_rope_out){.y = &x}, &x, &spec));
    rig_expect("y in place of x", &x, want, 1e-6f, 1e-6f);
    free(hx);
    free(want);
    free(grad);
    free(turned);
}

ParameterizedTestParameters(rope, follows_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, rope, follows_its_definition)
{
    static const rotation shapes[] = {{positions, 2, 1, 2, 0, 1, 1},
                                      {positions, 8, 6, 8, 2, 1, 1},
                                      {positions, 6, 5, 14, 1, 1, 1},
                                      {positions, 8, 3, 30, 3, 1, 1},
                                      {positions, 8, 4, 34, 4, 1, 1}};
    static const double keeps[] = {0, 0.4, 1};
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (size_t k = 0; k < COUNT(keeps); k++)
            check_rope(&r, &shapes[s], keeps[k]);
    rig_close(&r);
}

static dms_rope_spec gradient_spec;

static dms_var *rope(dms_tape *tape, dms_var **in)
{
    return dms_ad_rope(tape, in[0], NULL, &gradient_spec, NULL);
}

Test(rope, gradient_agrees_with_finite_differences)
{
    rig r = rig_open(rig_device());
    const dms_tensor table = rope_table(&r, 4);
    const dms_tensor ids = rig_upload(&r, rig_shape_i32(1, 3), positions);
    for (int i = 0; i < 3; i++) {
        dms_var x = rig_var(&r, rig_shape(1, 3, 3 * 4, 0));
        gradient_spec = (dms_rope_spec){.table = &table,
                                        .ids = &ids,
                                        .borrowed_every = i ? 2 : 0,
                                        .keep = i == 1 ? 0.4f : 0.0f};
        rig_expect_gradient(&r, rope, (dms_var *[]){&x}, 1, 1e-2f, 1e-3f);
    }
    rig_close(&r);
}

Test(rope, positions_outside_the_table_are_refused)
{
    static const int32_t bad[] = {-1, POSITIONS, INT32_MAX, INT32_MIN};
    rig r = rig_open(DMS_CPU);
    const dms_tensor table = rope_table(&r, 4);
    dms_tensor x = rig_noise(&r, rig_shape(1, 2, 8, 0)), y = rig_zero(&r, x);
    for (size_t i = 0; i < COUNT(bad); i++) {
        char text[80];
        const dms_tensor ids = rig_upload(&r, rig_shape_i32(1, 2), (int32_t[]){0, bad[i]});
        const dms_rope_spec spec = {.table = &table, .ids = &ids, .keep = 1};
        snprintf(text, sizeof(text), "position is %d, expected 0 to 39", bad[i]);
        rig_expect_failure(dms_rope(&(dms_rope_out){.y = &y}, &x, &spec), DMS_ERR_ARG, text);
        rig_expect_failure(dms_rope_bwd(&(dms_rope_grads){.dy = &x, .dx = &y}, &spec), DMS_ERR_ARG,
                           text);
    }
    rig_close(&r);
}

/* ---- with the norm and the logit ----------------------------------------------------------- */

static const float eps = 1e-5f;
static const dms_logit_spec logit_spec = {4.0f, 5.0f};

/* Heads [batch, tokens, heads*width]; what one run is about. */
typedef struct {
    int64_t batch, tokens, heads, width;
    int every;
    bool norm, logit;
    double keep;
} heads_case;

/* In double: n = the heads after the norm, [rows*heads, width], and rstd (1 without norm). */
static void define_norm(double *n, double *rstd, const float *x, const float *w,
                        const heads_case *c)
{
    const int64_t width = c->width, all = c->batch * c->tokens * c->heads;
    for (int64_t i = 0; i < all; i++) {
        double square = 0;
        for (int64_t j = i * width; j < (i + 1) * width; j++)
            square += (double)x[j] * (double)x[j];
        rstd[i] = c->norm ? 1 / sqrt(square / (double)width + (double)eps) : 1;
        for (int64_t j = 0; j < width; j++)
            n[i * width + j] = (double)x[i * width + j] * rstd[i] * (c->norm ? (double)w[j] : 1);
    }
}

static int64_t groups_of(const heads_case *c)
{
    return (c->heads + c->every - 1) / c->every;
}

/* Head i of all: the place of its logit in [B, G, T], or -1 where no channel is borrowed. */
static int64_t logit_place(const heads_case *c, int64_t i)
{
    const int64_t row = i / c->heads, h = i % c->heads;
    if (h % c->every)
        return -1;
    return (row / c->tokens * groups_of(c) + h / c->every) * c->tokens + row % c->tokens;
}

/* What u, the gradient of n, [rows*heads, width], adds to dx and dw. */
static void define_norm_gradient(double *dx, double *dw, const double *u, const float *x,
                                 const float *w, const heads_case *c)
{
    const int64_t width = c->width, all = c->batch * c->tokens * c->heads;
    double *n = malloc((size_t)(all * width) * sizeof(double));
    double *rstd = malloc((size_t)all * sizeof(double));
    define_norm(n, rstd, x, w, c);
    for (int64_t i = 0; i < all; i++) {
        double mean = 0;
        for (int64_t j = 0; j < width; j++)
            mean += u[i * width + j] * n[i * width + j] / (double)width;
        for (int64_t j = 0; j < width; j++) {
            const double up = u[i * width + j], m = (double)x[i * width + j] * rstd[i];
            dx[i * width + j] += c->norm ? rstd[i] * (up * (double)w[j] - m * mean) : up;
            dw[j] += c->norm ? up * m : 0;
        }
    }
    free(n);
    free(rstd);
}

/* The tensors of one run. */
typedef struct {
    dms_tensor table, ids, x, w, y, rstd, z, dy, dz, dx, dw;
    int32_t *position;
    dms_rope_spec spec;
} bench;

static void make_bench(bench *b, rig *r, const heads_case *c)
{
    const int64_t rows = c->batch * c->tokens;
    b->position = malloc((size_t)rows * sizeof(int32_t));
    for (int64_t t = 0; t < rows; t++)
        b->position[t] = (int32_t)((t * 7 + 39) % POSITIONS);
    b->table = rope_table(r, c->width);
    b->ids = rig_upload(r, rig_shape_i32(c->batch, c->tokens), b->position);
    b->x = rig_noise(r, rig_shape(c->batch, c->tokens, c->heads * c->width, 0));
    b->w = rig_noise(r, rig_shape(c->width, 0, 0, 0));
    b->rstd = rig_noise(r, rig_shape(rows * c->heads, 0, 0, 0));
    b->z = rig_noise(r, rig_shape(c->batch, groups_of(c), c->tokens, 0));
    b->y = rig_noise(r, b->x);
    b->dy = rig_noise(r, b->x);
    b->dz = rig_noise(r, b->z);
    b->dx = rig_noise(r, b->x);
    b->dw = rig_noise(r, b->w);
    b->spec = (dms_rope_spec){.table = &b->table,
                              .ids = &b->ids,
                              .borrowed_every = c->every,
                              .keep = (float)c->keep,
                              .norm = c->norm ? &b->w : NULL,
                              .eps = eps,
                              .logit = logit_spec};
}

/* Rounded to f32; the caller frees. */
static float *narrowed(const double *from, int64_t n)
{
    float *to = malloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        to[i] = (float)from[i];
    return to;
}

static float *narrowed_free(double *from, int64_t n)
{
    float *to = narrowed(from, n);
    free(from);
    return to;
}

static double *doubles(const dms_tensor *t)
{
    float *host = rig_read(t);
    double *out = malloc((size_t)dms_count(t) * sizeof(double));
    for (int64_t i = 0; i < dms_count(t); i++)
        out[i] = (double)host[i];
    free(host);
    return out;
}

/* y, rstd, z; then y in the place of x, which gives the same bits. A head's sum of squares in f32
 * is good to 1e-6; a logit is four times a channel. */
static void check_forward(bench *b, const heads_case *c)
{
    const int64_t n = dms_count(&b->x), all = dms_count(&b->rstd);
    const rotation turn = {
        b->position, c->batch * c->tokens, c->heads, c->width, c->every, c->keep, 1};
    float *x = rig_read(&b->x), *w = rig_read(&b->w), *z = rig_read(&b->z);
    double *normed = malloc((size_t)n * sizeof(double)), *y = malloc((size_t)n * sizeof(double));
    double *rstd = malloc((size_t)all * sizeof(double));
    const dms_rope_out out = {&b->y, c->norm ? &b->rstd : NULL, c->logit ? &b->z : NULL};

    define_norm(normed, rstd, x, w, c);
    for (int64_t i = 0; i < all; i++)
        if (logit_place(c, i) >= 0)
            z[logit_place(c, i)] = (float)(4 * normed[(i + 1) * c->width - 1] - 5);
    float *rounded = narrowed(normed, n);
    define_rope(y, rounded, &turn);
    free(rounded);
    float *want_y = narrowed_free(y, n), *want_rstd = narrowed_free(rstd, all);
    must(dms_rope(&out, &b->x, &b->spec));
    rig_expect("y", &b->y, want_y, 1e-6f, 4e-6f);
    if (c->norm)
        rig_expect("rstd", &b->rstd, want_rstd, 1e-5f, 0);
    if (c->logit)
        rig_expect("z", &b->z, z, 1e-6f, 1e-5f);
    float *apart = rig_read(&b->y);
    must(dms_rope(&(dms_rope_out){.y = &b->x}, &b->x, &b->spec));
    rig_expect("y in place of x", &b->x, apart, 0, 0);
    must(b->x.device->upload(b->x.device, b->x.data, x, dms_tensor_bytes(&b->x)));
    free(x);
    free(w);
    free(z);
    free(normed);
    free(want_y);
    free(want_rstd);
    free(apart);
}

/* The gradient of y, of z or of both, on top of what is there. */
static void check_backward(bench *b, const heads_case *c, bool from_y, bool from_z)
{
    const int64_t n = dms_count(&b->x), all = dms_count(&b->rstd);
    const rotation back = {b->position, c->batch * c->tokens, c->heads, c->width, c->every, c->keep,
                           -1};
    float *x = rig_read(&b->x), *w = rig_read(&b->w), *dy = rig_read(&b->dy);
    float *dz = rig_read(&b->dz);
    double *u = calloc((size_t)n, sizeof(double)), *dx = doubles(&b->dx), *dw = doubles(&b->dw);
    const dms_rope_grads grads = {.dy = from_y ? &b->dy : NULL,
                                  .dz = from_z ? &b->dz : NULL,
                                  .x = c->norm ? &b->x : NULL,
                                  .rstd = c->norm ? &b->rstd : NULL,
                                  .dx = &b->dx,
                                  .dw = c->norm ? &b->dw : NULL};

    if (from_y)
        define_rope(u, dy, &back);
    for (int64_t i = 0; from_z && i < all; i++)
        if (logit_place(c, i) >= 0)
            u[(i + 1) * c->width - 1] += 4 * (double)dz[logit_place(c, i)];
    define_norm_gradient(dx, dw, u, x, w, c);
    float *want_dx = narrowed_free(dx, n), *want_dw = narrowed_free(dw, c->width);
    must(dms_rope_bwd(&grads, &b->spec));
    /* as in test_norm.c: terms that nearly cancel, and sums of many rows in f32 */
    rig_expect("dx", &b->dx, want_dx, 1e-5f, c->norm ? 1e-4f : 2e-6f);
    rig_expect("dw", &b->dw, want_dw, 1e-5f, 2e-5f);
    free(x);
    free(w);
    free(dy);
    free(dz);
    free(u);
    free(want_dx);
    free(want_dw);
}

/* dx and dw each alone are what they are together, to the bit. */
static void check_parts(bench *b, rig *r, const heads_case *c)
{
    dms_tensor dx[2] = {rig_zero(r, b->x), rig_zero(r, b->x)};
    dms_tensor dw[2] = {rig_zero(r, b->w), rig_zero(r, b->w)};
    dms_rope_grads grads = {&b->dy, c->logit ? &b->dz : NULL, &b->x, &b->rstd, &dx[0], &dw[0]};
    must(dms_rope_bwd(&grads, &b->spec));
    grads.dx = &dx[1];
    grads.dw = NULL;
    must(dms_rope_bwd(&grads, &b->spec));
    grads.dx = NULL;
    grads.dw = &dw[1];
    must(dms_rope_bwd(&grads, &b->spec));
    grads.dw = NULL;
    must(dms_rope_bwd(&grads, &b->spec));
    float *together_dx = rig_read(&dx[0]), *together_dw = rig_read(&dw[0]);
    rig_expect("dx alone", &dx[1], together_dx, 0, 0);
    rig_expect("dw alone", &dw[1], together_dw, 0, 0);
    free(together_dx);
    free(together_dw);
}

/* Widths below, at and above a vector; 264 and 134 take a warp of a GPU more than once, four pairs
 * and one pair at a time; 17 heads of 128 are one more than a block takes; 1031 rows more than
 * there are partial sums of dw. */
static const heads_case cases[] = {
    {.batch = 1, .tokens = 1, .heads = 1, .width = 2, .every = 1},
    {.batch = 2, .tokens = 7, .heads = 3, .width = 2, .every = 3},
    {.batch = 2, .tokens = 5, .heads = 6, .width = 6, .every = 3},
    {.batch = 3, .tokens = 2, .heads = 5, .width = 14, .every = 3},
    {.batch = 1, .tokens = 13, .heads = 9, .width = 64, .every = 3},
    {.batch = 2, .tokens = 3, .heads = 4, .width = 96, .every = 1},
    {.batch = 1, .tokens = 11, .heads = 6, .width = 128, .every = 3},
    {.batch = 1, .tokens = 2, .heads = 17, .width = 128, .every = 1},
    {.batch = 1, .tokens = 5, .heads = 2, .width = 256, .every = 1},
    {.batch = 1, .tokens = 3, .heads = 3, .width = 264, .every = 3},
    {.batch = 2, .tokens = 2, .heads = 5, .width = 134, .every = 1},
    {.batch = 1, .tokens = 1031, .heads = 1, .width = 6, .every = 1},
};

ParameterizedTestParameters(rope, norm_logit_and_fade_follow_their_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, rope, norm_logit_and_fade_follow_their_definition)
{
    static const double keeps[] = {0, 0.5, 1};
    for (size_t i = 0; i < COUNT(cases); i++) {
        rig r = rig_open(*kind);
        const size_t mark = r.arena.used;
        for (int form = 0; form < 4 * (int)COUNT(keeps); form++) {
            heads_case c = cases[i];
            bench b;
            c.norm = form & 1;
            c.logit = form & 2;
            c.keep = keeps[form / 4];
            make_bench(&b, &r, &c);
            check_forward(&b, &c);
            check_backward(&b, &c, true, false);
            if (c.logit)
                check_backward(&b, &c, false, true);
            if (c.logit)
                check_backward(&b, &c, true, true);
            if (c.norm)
                check_parts(&b, &r, &c);
            free(b.position);
            r.arena.used = mark;
        }
        rig_close(&r);
    }
}

static dms_var *normed(dms_tape *tape, dms_var **in)
{
    return dms_ad_rope(tape, in[0], in[1], &gradient_spec, NULL);
}

static dms_var *logits(dms_tape *tape, dms_var **in)
{
    dms_var *z;
    dms_ad_rope(tape, in[0], in[1], &gradient_spec, &z);
    return z;
}

Test(rope, gradients_of_norm_and_logit_agree_with_finite_differences)
{
    rig r = rig_open(rig_device());
    const dms_tensor table = rope_table(&r, 4);
    const dms_tensor ids = rig_upload(&r, rig_shape_i32(1, 3), positions);
    gradient_spec = (dms_rope_spec){.table = &table,
                                    .ids = &ids,
                                    .borrowed_every = 2,
                                    .keep = 0.4f,
                                    .eps = eps,
                                    .logit = {2.0f, 1.0f}};
    for (int i = 0; i < 2; i++) {
        dms_var x = rig_var(&r, rig_shape(1, 3, 4 * 4, 0)), w = rig_var(&r, rig_shape(4, 0, 0, 0));
        rig_expect_gradient(&r, i ? logits : normed, (dms_var *[]){&x, &w}, 2, 1e-3f, 5e-3f);
    }
    rig_close(&r);
}

/* Enough work for a team, shared unevenly. */
Test(rope, has_the_same_bits_with_any_number_of_threads)
{
    enum { OUTPUTS = 5 };
    const heads_case c = {1, 263, 5, 66, 3, true, true, 0.4};
    float *first[OUTPUTS] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        bench b;
        make_bench(&b, &r, &c);
        must(dms_rope(&(dms_rope_out){&b.y, &b.rstd, &b.z}, &b.x, &b.spec));
        must(dms_rope_bwd(&(dms_rope_grads){&b.dy, &b.dz, &b.x, &b.rstd, &b.dx, &b.dw}, &b.spec));
        const dms_tensor *out[OUTPUTS] = {&b.y, &b.rstd, &b.z, &b.dx, &b.dw};
        rig_expect_bits(first, out, OUTPUTS);
        free(b.position);
        rig_close(&r);
    }
    for (int i = 0; i < OUTPUTS; i++)
        free(first[i]);
}

Test(rope, names_the_tensor_that_does_not_fit)
{
    rig r = rig_open(DMS_CPU);
    dms_tensor a = rig_noise(&r, rig_shape(2, 3, 4, 0)), b = rig_noise(&r, rig_shape(2, 3, 5, 0));
    dms_tensor table = rope_table(&r, 8), ids = rig_upload(&r, rig_shape_i32(2, 4), positions);
    const dms_tensor three = rig_noise(&r, rig_shape(3, 0, 0, 0));
    dms_rope_spec spec = {.table = &table, .ids = &ids, .keep = 1};
    dms_rope_out out = {.y = &a};
    dms_rope_grads grads = {.dy = &a, .dx = &a};
    rig_expect_failure(dms_rope(&out, &a, &spec), DMS_ERR_SHAPE,
                       "x has 4 channels, expected heads of 8");
    table = rope_table(&r, 2);
    rig_expect_failure(dms_rope(&out, &a, &spec), DMS_ERR_SHAPE,
                       "positions is [2, 4] i32, expected 6");
    rig_expect_failure(dms_rope_bwd(&grads, &spec), DMS_ERR_SHAPE,
                       "positions is [2, 4] i32, expected 6");
    ids = rig_upload(&r, rig_shape_i32(2, 3), positions);
    out.z = &b;
    rig_expect_failure(dms_rope(&out, &a, &spec), DMS_ERR_ARG,
                       "logits are asked for, but no channel");
    spec.borrowed_every = 2;
    rig_expect_failure(dms_rope(&out, &a, &spec), DMS_ERR_SHAPE,
                       "z is [2, 3, 5] f32, expected [2, 1, 3] f32");
    grads.dz = &b;
    rig_expect_failure(dms_rope_bwd(&grads, &spec), DMS_ERR_SHAPE,
                       "z is [2, 3, 5] f32, expected [2, 1, 3] f32");
    grads.dy = &b;
    rig_expect_failure(dms_rope_bwd(&grads, &spec), DMS_ERR_SHAPE,
                       "dy is [2, 3, 5] f32, expected [2, 3, 4] f32");
    spec.norm = &three;
    rig_expect_failure(dms_rope(&out, &a, &spec), DMS_ERR_SHAPE,
                       "norm is [3] f32, expected [2] f32");
    rig_expect_failure(dms_rope_bwd(&grads, &spec), DMS_ERR_ARG,
                       "the gradient of a norm wants norm, x and rstd, one is NULL");
    spec.norm = NULL;
    out = (dms_rope_out){.y = &a, .rstd = &b};
    rig_expect_failure(dms_rope(&out, &a, &spec), DMS_ERR_SHAPE,
                       "rstd is [2, 3, 5] f32, expected [12] f32");
    rig_close(&r);
}
