/* RMSNorm against its definition in double. */
#include <math.h>
#include <stdlib.h>

#include "autograd/ad.h"
#include "tests/norms.h"
#include "tests/rig.h"

static const float eps = 1e-5f;
typedef struct {
    int64_t size[2]; /* rows, channels */
    dms_tensor x, w, y, rstd, dy, dx, dw;
    float *hx, *hw, *hdy;
} lab;

static lab open_lab(rig *r, int64_t rows, int64_t dim)
{
    lab l = {.size = {rows, dim}};
    l.x = rig_noise(r, rig_shape(rows, dim, 0, 0));
    l.w = rig_noise(r, rig_shape(dim, 0, 0, 0));
    l.y = rig_empty(r, l.x);
    l.rstd = rig_empty(r, rig_shape(rows, 0, 0, 0));
    l.dy = rig_noise(r, l.x);
    l.dx = rig_noise(r, l.x);
    l.dw = rig_noise(r, l.w);
    l.hx = rig_read(&l.x);
    l.hw = rig_read(&l.w);
    l.hdy = rig_read(&l.dy);
    return l;
}

static void close_lab(lab *l)
{
    free(l->hx);
    free(l->hw);
    free(l->hdy);
}

/* The definition, written to be read and not to be fast. */
static void define(float *y, float *rstd, const float *x, const float *w, const int64_t size[2])
{
    for (int64_t r = 0; r < size[0]; r++) {
        double sum = 0;
        for (int64_t i = 0; i < size[1]; i++)
            sum += (double)x[r * size[1] + i] * (double)x[r * size[1] + i];
        const double scale = 1 / sqrt(sum / (double)size[1] + (double)eps);
        rstd[r] = (float)scale;
        for (int64_t i = 0; i < size[1]; i++)
            y[r * size[1] + i] = (float)((double)x[r * size[1] + i] * scale * (double)w[i]);
    }
}

ParameterizedTestParameters(norm, follows_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, norm, follows_its_definition)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(norm_shapes); s++) {
        lab l = open_lab(&r, norm_shapes[s].rows, norm_shapes[s].dim);
        float *want = malloc(dms_tensor_bytes(&l.y)), *scale = malloc(dms_tensor_bytes(&l.rstd));

        must(dms_rms_norm(&l.y, &l.rstd, &l.x, &l.w, eps));
        define(want, scale, l.hx, l.hw, l.size);
        rig_expect("y", &l.y, want, 1e-5f, 1e-7f);
        rig_expect("rstd", &l.rstd, scale, 1e-5f, 0);
        free(want);
        free(scale);
        close_lab(&l);
    }
    rig_close(&r);
}

/* dx[i] = rstd*(w[i]dy[i] - n[i]*mean(w dy n)), dw[i] = sum over rows of dy[i]*n[i], n = x*rstd;
 * both on top of what is there. */
static void define_gradient(float *dx, double *dw, const float *dy, const float *x, const float *w,
                            const int64_t size[2])
{
    const int64_t rows = size[0], dim = size[1];
    for (int64_t r = 0; r < rows; r++) {
        double square = 0, mean = 0;
        for (int64_t i = r * dim; i < (r + 1) * dim; i++)
            square += (double)x[i] * (double)x[i];
        const double scale = 1 / sqrt(square / (double)dim + (double)eps);
        for (int64_t i = 0; i < dim; i++)
            mean += (double)w[i] * (double)dy[r * dim + i] * (double)x[r * dim + i] * scale /
                    (double)dim;
        for (int64_t i = 0; i < dim; i++) {
            const double up = (double)dy[r * dim + i], n = (double)x[r * dim + i] * scale;
            dx[r * dim + i] += (float)(scale * (up * (double)w[i] - n * mean));
            dw[i] += up * n;
        }
    }
}

ParameterizedTestParameters(norm, adds_the_gradient_of_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, norm, adds_the_gradient_of_its_definition)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(norm_shapes); s++) {
        lab l = open_lab(&r, norm_shapes[s].rows, norm_shapes[s].dim);
        const int64_t dim = l.size[1];
        float *wanted_dx = rig_read(&l.dx), *wanted_dw = rig_read(&l.dw);
        double *exact_dw = malloc((size_t)dim * sizeof(double));

        must(dms_rms_norm(&l.y, &l.rstd, &l.x, &l.w, eps));
        must(dms_rms_norm_bwd(&l.dx, &l.dw, &l.dy, &l.x, &l.w, &l.rstd));
        for (int64_t i = 0; i < dim; i++)
            exact_dw[i] = (double)wanted_dw[i];
        define_gradient(wanted_dx, exact_dw, l.hdy, l.hx, l.hw, l.size);
        for (int64_t i = 0; i < dim; i++)
            wanted_dw[i] = (float)exact_dw[i];
        /* rows of one channel: both terms of dx nearly cancel, and rstd may be 100 */
        rig_expect("dx", &l.dx, wanted_dx, 1e-5f, 1e-4f);
        /* up to 65 rows summed in f32 one after the other, then such sums */
        rig_expect("dw", &l.dw, wanted_dw, 1e-5f, 5e-6f);
        must(dms_rms_norm_bwd(NULL, NULL, &l.dy, &l.x, &l.w, &l.rstd));
        free(wanted_dx);
        free(wanted_dw);
        free(exact_dw);
        close_lab(&l);
    }
    rig_close(&r);
}

ParameterizedTestParameters(norm, refuses_rows_whose_sum_no_block_holds)
{
    return rig_devices();
}

/* On a GPU; a frozen weight has no such limit. */
ParameterizedTest(dms_device_kind *kind, norm, refuses_rows_whose_sum_no_block_holds)
{
    if (*kind == DMS_CPU)
        cr_skip_test("the CPU takes rows of any length");
    rig r = rig_open(*kind);
    const dms_tensor x = rig_noise(&r, rig_shape(1, 70000, 0, 0)), dy = rig_noise(&r, x);
    const dms_tensor w = rig_noise(&r, rig_shape(70000, 0, 0, 0));
    dms_tensor y = rig_empty(&r, x), rstd = rig_empty(&r, rig_shape(1, 0, 0, 0));
    dms_tensor dx = rig_zero(&r, x), dw = rig_zero(&r, w);
    must(dms_rms_norm(&y, &rstd, &x, &w, eps));
    cr_assert(dms_rms_norm_bwd(&dx, &dw, &dy, &x, &w, &rstd) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_message(), "D is 70000, expected at most") &&
                  strstr(dms_error_message(), "use --device cpu"),
              "%s", dms_error_message());
    must(dms_rms_norm_bwd(&dx, NULL, &dy, &x, &w, &rstd));
    rig_close(&r);
}

ParameterizedTestParameters(norm, rounds_what_it_computes_to_bf16)
{
    return rig_devices();
}

/* To the bit, as if its f32 were cast; rstd is the same. */
ParameterizedTest(dms_device_kind *kind, norm, rounds_what_it_computes_to_bf16)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(norm_shapes); s++) {
        dms_tensor x = rig_noise(&r, rig_shape(norm_shapes[s].rows, norm_shapes[s].dim, 0, 0)),
                   half = x;
        dms_tensor w = rig_noise(&r, rig_shape(norm_shapes[s].dim, 0, 0, 0)), y = rig_empty(&r, x);
        dms_tensor rstd = rig_empty(&r, rig_shape(norm_shapes[s].rows, 0, 0, 0)), same = rstd;
        half.dtype = DMS_BF16;
        dms_tensor cast = rig_empty(&r, half);
        half = rig_empty(&r, half);
        same = rig_empty(&r, same);
        must(dms_rms_norm(&y, &rstd, &x, &w, eps));
        must(dms_cast(&cast, &y));
        must(dms_rms_norm(&half, &same, &x, &w, eps));
        float *want = rig_read(&cast), *scale = rig_read(&rstd);
        rig_expect("y", &half, want, 0, 0);
        rig_expect("rstd", &same, scale, 0, 0);
        free(want);
        free(scale);
    }
    rig_close(&r);
}

static dms_var *norm(dms_tape *tape, dms_var **in)
{
    return dms_ad_rms_norm(tape, in[0], in[1], eps, DMS_F32);
}

/* The second shape is that of a query norm: several heads of 3 channels in a row. */
Test(norm, gradient_agrees_with_finite_differences)
{
    rig r = rig_open(rig_device());
    for (int64_t heads = 1; heads <= 4; heads += 3) {
        dms_var x = rig_var(&r, rig_shape(2, 3, 3 * heads, 0));
        dms_var w = rig_var(&r, rig_shape(3, 0, 0, 0));
        rig_expect_gradient(&r, norm, (dms_var *[]){&x, &w}, 2, 1e-3f, 2e-3f);
    }
    rig_close(&r);
}

Test(norm, has_the_same_bits_with_any_number_of_threads)
{
    float *first[4] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        lab l = open_lab(&r, 521, 131); /* enough work for a team, shared unevenly */
        must(dms_rms_norm(&l.y, &l.rstd, &l.x, &l.w, eps));
        must(dms_rms_norm_bwd(&l.dx, &l.dw, &l.dy, &l.x, &l.w, &l.rstd));
        const dms_tensor *out[4] = {&l.y, &l.rstd, &l.dx, &l.dw};
        rig_expect_bits(first, out, 4);
        close_lab(&l);
        rig_close(&r);
    }
    for (int i = 0; i < 4; i++)
        free(first[i]);
}

Test(norm, names_the_tensor_that_does_not_fit)
{
    rig r = rig_open(DMS_CPU);
    dms_tensor x = rig_noise(&r, rig_shape(2, 8, 0, 0)), y = x;
    dms_tensor w = rig_noise(&r, rig_shape(9, 0, 0, 0)), narrow = rig_shape(4, 0, 0, 0);
    dms_tensor rstd = rig_empty(&r, rig_shape(2, 0, 0, 0));
    cr_assert(dms_rms_norm(&y, &rstd, &x, &w, eps) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "w has 9 channels, expected a divisor of 8"), "%s",
              dms_error_text());
    narrow = rig_noise(&r, narrow);
    cr_assert(dms_rms_norm(&y, &rstd, &x, &narrow, eps) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "rstd is [2] f32, expected [4] f32"), "%s",
              dms_error_text());
    rstd = rig_empty(&r, rig_shape(4, 0, 0, 0));
    y.dtype = DMS_I32;
    cr_assert(dms_rms_norm(&y, &rstd, &x, &narrow, eps) == DMS_ERR_DTYPE);
    cr_assert(strstr(dms_error_text(), "y is [2, 8] i32, expected [2, 8] f32"), "%s",
              dms_error_text());
    w.dtype = DMS_BF16;
    cr_assert(dms_rms_norm(&y, &rstd, &x, &w, eps) == DMS_ERR_DTYPE);
    cr_assert(strstr(dms_error_text(), "w is [9] bf16, expected [9] f32"), "%s", dms_error_text());
    rig_close(&r);
}
