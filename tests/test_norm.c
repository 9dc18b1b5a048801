/* RMSNorm against its definition in double. */
#include <math.h>
#include <stdlib.h>

#include "autograd/ad.h"
#include "tests/rig.h"

static const float eps = 1e-5f;
/* One below, at and above 16 (channels summed in lanes) and 64 (rows of a partial sum); on a GPU
 * 32 (threads of a warp), 512 (the longest row of a warp), 1024 (of a block in one go), more
 * rows than its 512 partial sums take, of a warp (8 a sum) and of a block, and rows whose sum of
 * 48 KiB fits no block beside the kernel's own shared memory unless asked for. */
static const struct {
    int64_t rows, dim;
} shapes[] = {{1, 1},   {3, 31},   {5, 15},   {5, 16},   {5, 17},   {2, 257},   {63, 7},
              {64, 7},  {65, 7},   {9, 32},   {7, 64},   {3, 511},  {9, 512},   {3, 513},
              {2, 516}, {3, 1024}, {2, 1028}, {2, 2052}, {4101, 4}, {515, 516}, {1, 12288}};

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
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t size[2] = {shapes[s].rows, shapes[s].dim};
        dms_tensor x = rig_noise(&r, rig_shape(size[0], size[1], 0, 0)), y = rig_empty(&r, x);
        dms_tensor w = rig_noise(&r, rig_shape(size[1], 0, 0, 0));
        dms_tensor rstd = rig_empty(&r, rig_shape(size[0], 0, 0, 0));
        float *hx = rig_read(&x), *hw = rig_read(&w);
        float *want = malloc(dms_tensor_bytes(&y)), *scale = malloc(dms_tensor_bytes(&rstd));

        must(dms_rms_norm(&y, &rstd, &x, &w, eps));
        define(want, scale, hx, hw, size);
        rig_expect("y", &y, want, 1e-5f, 1e-7f);
        rig_expect("rstd", &rstd, scale, 1e-5f, 0);
        free(hx);
        free(hw);
        free(want);
        free(scale);
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
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t size[2] = {shapes[s].rows, shapes[s].dim};
        dms_tensor x = rig_noise(&r, rig_shape(size[0], size[1], 0, 0)), y = rig_empty(&r, x);
        dms_tensor w = rig_noise(&r, rig_shape(size[1], 0, 0, 0));
        dms_tensor rstd = rig_empty(&r, rig_shape(size[0], 0, 0, 0));
        dms_tensor dy = rig_noise(&r, x), dx = rig_noise(&r, x), dw = rig_noise(&r, w);
        float *hx = rig_read(&x), *hw = rig_read(&w), *hdy = rig_read(&dy);
        float *wanted_dx = rig_read(&dx), *wanted_dw = rig_read(&dw);
        double *exact_dw = malloc((size_t)size[1] * sizeof(double));

        must(dms_rms_norm(&y, &rstd, &x, &w, eps));
        must(dms_rms_norm_bwd(&dx, &dw, &dy, &x, &w, &rstd));
        for (int64_t i = 0; i < size[1]; i++)
            exact_dw[i] = (double)wanted_dw[i];
        define_gradient(wanted_dx, exact_dw, hdy, hx, hw, size);
        for (int64_t i = 0; i < size[1]; i++)
            wanted_dw[i] = (float)exact_dw[i];
        /* rows of one channel: both terms of dx nearly cancel, and rstd may be 100 */
        rig_expect("dx", &dx, wanted_dx, 1e-5f, 1e-4f);
        /* up to 65 rows summed in f32 one after the other, then such sums */
        rig_expect("dw", &dw, wanted_dw, 1e-5f, 5e-6f);
        must(dms_rms_norm_bwd(NULL, NULL, &dy, &x, &w, &rstd));
        free(hx);
        free(hw);
        free(hdy);
        free(wanted_dx);
        free(wanted_dw);
        free(exact_dw);
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
    for (size_t s = 0; s < COUNT(shapes); s++) {
        dms_tensor x = rig_noise(&r, rig_shape(shapes[s].rows, shapes[s].dim, 0, 0)), half = x;
        dms_tensor w = rig_noise(&r, rig_shape(shapes[s].dim, 0, 0, 0)), y = rig_empty(&r, x);
        dms_tensor rstd = rig_empty(&r, rig_shape(shapes[s].rows, 0, 0, 0)), same = rstd;
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
    const int64_t rows = 521, dim = 131; /* enough work for a team, shared unevenly */
    float *first[4] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        dms_tensor x = rig_noise(&r, rig_shape(rows, dim, 0, 0)), y = rig_empty(&r, x);
        dms_tensor w = rig_noise(&r, rig_shape(dim, 0, 0, 0)), dw = rig_zero(&r, w);
        dms_tensor rstd = rig_empty(&r, rig_shape(rows, 0, 0, 0));
        dms_tensor dy = rig_noise(&r, x), dx = rig_zero(&r, x);
        must(dms_rms_norm(&y, &rstd, &x, &w, eps));
        must(dms_rms_norm_bwd(&dx, &dw, &dy, &x, &w, &rstd));
        const dms_tensor *out[4] = {&y, &rstd, &dx, &dw};
        for (int i = 0; i < 4; i++) {
            float *got = rig_read(out[i]);
            if (!first[i]) {
                first[i] = got;
                continue;
            }
            cr_assert(!memcmp(got, first[i], dms_tensor_bytes(out[i])), "output %d", i);
            free(got);
        }
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
