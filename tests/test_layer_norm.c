/* LayerNorm against its definition in double. */
#include <math.h>
#include <stdlib.h>

#include "autograd/ad.h"
#include "tests/norms.h"
#include "tests/rig.h"

static const float eps = 1e-5f;
/* Everything one case needs. The stream of a real model is far from centred: x has mean 0.5. */
typedef struct {
    int64_t rows, dim;
    dms_tensor x, w, bias, y, stats, dy, dx, dw, dbias;
    float *hx, *hw, *hb, *hdy;
} lab;

static lab open_lab(rig *r, int64_t rows, int64_t dim)
{
    lab l = {.rows = rows, .dim = dim};
    l.x = rig_noise(r, rig_shape(rows, dim, 0, 0));
    l.w = rig_noise(r, rig_shape(dim, 0, 0, 0));
    l.hx = rig_read(&l.x);
    for (int64_t i = 0; i < rows * dim; i++)
        l.hx[i] += 0.5f;
    l.x = rig_upload(r, l.x, l.hx);
    l.bias = rig_noise(r, l.w);
    l.y = rig_empty(r, l.x);
    l.stats = rig_empty(r, rig_shape(2, rows, 0, 0));
    l.dy = rig_noise(r, l.x);
    l.dx = rig_noise(r, l.x);
    l.dw = rig_noise(r, l.w);
    l.dbias = rig_noise(r, l.w);
    l.hw = rig_read(&l.w);
    l.hb = rig_read(&l.bias);
    l.hdy = rig_read(&l.dy);
    return l;
}

static void close_lab(lab *l)
{
    free(l->hx);
    free(l->hw);
    free(l->hb);
    free(l->hdy);
}

/* The definition, written to be read and not to be fast. */
static void define_row(double *mean, double *rstd, const lab *l, int64_t row)
{
    const float *x = l->hx + row * l->dim;
    double sum = 0, square = 0;
    for (int64_t i = 0; i < l->dim; i++)
        sum += (double)x[i];
    *mean = sum / (double)l->dim;
    for (int64_t i = 0; i < l->dim; i++)
        square += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *rstd = 1 / sqrt(square / (double)l->dim + (double)eps);
}

ParameterizedTestParameters(layer_norm, follows_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, layer_norm, follows_its_definition)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(norm_shapes); s++) {
        lab l = open_lab(&r, norm_shapes[s].rows, norm_shapes[s].dim);
        float *want = malloc(dms_tensor_bytes(&l.y)), *stats = malloc(dms_tensor_bytes(&l.stats));
        for (int64_t row = 0; row < l.rows; row++) {
            double mean, rstd;
            define_row(&mean, &rstd, &l, row);
            stats[row] = (float)mean;
            stats[l.rows + row] = (float)rstd;
            for (int64_t i = 0; i < l.dim; i++)
                want[row * l.dim + i] =
                    (float)(((double)l.hx[row * l.dim + i] - mean) * rstd * (double)l.hw[i] +
                            (double)l.hb[i]);
        }
        must(dms_layer_norm(&l.y, &l.stats, &l.x, &l.w, &l.bias, eps));
        /* rows of 2 channels whose values nearly agree: rstd may be 100, times an ulp of x */
        rig_expect("y", &l.y, want, 1e-5f, 1e-5f);
        rig_expect("stats", &l.stats, stats, 3e-5f, 1e-6f);
        free(want);
        free(stats);
        close_lab(&l);
    }
    rig_close(&r);
}

/* dx = rstd*(g - mean(g) - n*mean(g*n)), dw = sum of dy*n, dbias = sum of dy, with g = dy*w and
 * n = (x - mean)*rstd; on top of what is there. */
static void define_gradient(float *dx, double *dw, double *dbias, const lab *l)
{
    for (int64_t row = 0; row < l->rows; row++) {
        const float *x = l->hx + row * l->dim, *up = l->hdy + row * l->dim;
        double mean, rstd, of_g = 0, of_gn = 0;
        define_row(&mean, &rstd, l, row);
        for (int64_t i = 0; i < l->dim; i++) {
            const double g = (double)up[i] * (double)l->hw[i];
            of_g += g / (double)l->dim;
            of_gn += g * ((double)x[i] - mean) * rstd / (double)l->dim;
        }
        for (int64_t i = 0; i < l->dim; i++) {
            const double n = ((double)x[i] - mean) * rstd, g = (double)up[i] * (double)l->hw[i];
            dx[row * l->dim + i] += (float)(rstd * (g - of_g - n * of_gn));
            dw[i] += (double)up[i] * n;
            dbias[i] += (double)up[i];
        }
    }
}

static float *summed(const dms_tensor *start, const double *sum)
{
    float *want = rig_read(start);
    for (int64_t i = 0; i < dms_count(start); i++)
        want[i] = (float)((double)want[i] + sum[i]);
    return want;
}

ParameterizedTestParameters(layer_norm, adds_the_gradient_of_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, layer_norm, adds_the_gradient_of_its_definition)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(norm_shapes); s++) {
        lab l = open_lab(&r, norm_shapes[s].rows, norm_shapes[s].dim);
        double *dw = calloc((size_t)l.dim, sizeof(double));
        double *dbias = calloc((size_t)l.dim, sizeof(double));
        float *want_dx = rig_read(&l.dx);
        define_gradient(want_dx, dw, dbias, &l);
        float *want_dw = summed(&l.dw, dw), *want_dbias = summed(&l.dbias, dbias);
        must(dms_layer_norm(&l.y, &l.stats, &l.x, &l.w, &l.bias, eps));
        must(dms_layer_norm_bwd(&(dms_layer_norm_grads){&l.dx, &l.dw, NULL}, &l.dy, &l.x, &l.w,
                                &l.stats));
        must(dms_layer_norm_bwd(&(dms_layer_norm_grads){NULL, NULL, &l.dbias}, &l.dy, &l.x, &l.w,
                                &l.stats));
        /* all terms of dx nearly cancel in short rows, where rstd may be 100 */
        rig_expect("dx", &l.dx, want_dx, 1e-5f, 3e-4f);
        /* up to 65 rows summed in f32 one after the other, then such sums */
        rig_expect("dw", &l.dw, want_dw, 1e-5f, 1e-5f);
        rig_expect("dbias", &l.dbias, want_dbias, 1e-5f, 1e-5f);
        must(dms_layer_norm_bwd(&(dms_layer_norm_grads){0}, &l.dy, &l.x, &l.w, &l.stats));
        free(dw);
        free(dbias);
        free(want_dx);
        free(want_dw);
        free(want_dbias);
        close_lab(&l);
    }
    rig_close(&r);
}

ParameterizedTestParameters(layer_norm, rounds_what_it_computes_to_bf16)
{
    return rig_devices();
}

/* To the bit, as if its f32 were cast. */
ParameterizedTest(dms_device_kind *kind, layer_norm, rounds_what_it_computes_to_bf16)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(norm_shapes); s++) {
        lab l = open_lab(&r, norm_shapes[s].rows, norm_shapes[s].dim);
        dms_tensor half = l.y;
        half.dtype = DMS_BF16;
        dms_tensor cast = rig_empty(&r, half);
        half = rig_empty(&r, half);
        must(dms_layer_norm(&l.y, &l.stats, &l.x, &l.w, &l.bias, eps));
        must(dms_cast(&cast, &l.y));
        must(dms_layer_norm(&half, &l.stats, &l.x, &l.w, &l.bias, eps));
        float *want = rig_read(&cast);
        rig_expect("y", &half, want, 0, 0);
        free(want);
        close_lab(&l);
    }
    rig_close(&r);
}

static dms_var *layer_norm(dms_tape *tape, dms_var **in)
{
    return dms_ad_layer_norm(tape, in[0], in[1], in[2], eps, DMS_F32);
}

Test(layer_norm, gradient_agrees_with_finite_differences)
{
    rig r = rig_open(rig_device());
    dms_var x = rig_var(&r, rig_shape(2, 3, 5, 0)), w = rig_var(&r, rig_shape(5, 0, 0, 0));
    dms_var bias = rig_var(&r, w.value);
    rig_expect_gradient(&r, layer_norm, (dms_var *[]){&x, &w, &bias}, 3, 1e-3f, 2e-3f);
    rig_close(&r);
}

Test(layer_norm, has_the_same_bits_with_any_number_of_threads)
{
    float *first[5] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        lab l = open_lab(&r, 521, 131); /* enough work for a team, shared unevenly */
        must(dms_layer_norm(&l.y, &l.stats, &l.x, &l.w, &l.bias, eps));
        must(dms_layer_norm_bwd(&(dms_layer_norm_grads){&l.dx, &l.dw, &l.dbias}, &l.dy, &l.x, &l.w,
                                &l.stats));
        const dms_tensor *out[5] = {&l.y, &l.stats, &l.dx, &l.dw, &l.dbias};
        rig_expect_bits(first, out, 5);
        close_lab(&l);
        rig_close(&r);
    }
    for (int i = 0; i < 5; i++)
        free(first[i]);
}

Test(layer_norm, names_the_tensor_that_does_not_fit)
{
    rig r = rig_open(DMS_CPU);
    lab l = open_lab(&r, 2, 8), other = open_lab(&r, 2, 4);
    cr_assert(dms_layer_norm(&l.y, &l.stats, &l.x, &other.w, &l.bias, eps) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "w is [4] f32, expected [8] f32"), "%s", dms_error_text());
    cr_assert(dms_layer_norm(&l.y, &l.stats, &l.x, &l.w, &other.w, eps) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "bias is [4] f32, expected [8] f32"), "%s",
              dms_error_text());
    cr_assert(dms_layer_norm(&l.y, &l.w, &l.x, &l.w, &l.bias, eps) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "stats is [8] f32, expected [2, 2] f32"), "%s",
              dms_error_text());
    cr_assert(dms_layer_norm_bwd(&(dms_layer_norm_grads){&other.x, NULL, NULL}, &l.dy, &l.x, &l.w,
                                 &l.stats) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "dx is [2, 4] f32, expected [2, 8] f32"), "%s",
              dms_error_text());
    close_lab(&l);
    close_lab(&other);
    rig_close(&r);
}
