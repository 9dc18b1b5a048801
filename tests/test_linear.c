/* Linear layers against their definition in double, at sizes around every tile. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"
#include "tests/rig.h"

typedef struct {
    int64_t rows, outputs, inputs;
} size3;

/* 8 and 9 rows: the last GEMV and the first GEMM; 64, 256: tiles; 128 rows: a part of a bias's sum.
 * CUDA's GEMV: 4, 8 and 16 outputs a block, 128 f32 or 256 bf16 weights a warp, in vectors of 4 or
 * 8. The rest: 1 and primes. */
static const size3 sizes[] = {
    {1, 1, 1},    {1, 7, 31},     {1, 5, 128},  {1, 577, 97},   {2, 3, 256},   {2, 4, 260},
    {2, 3, 32},   {3, 49, 33},    {3, 9, 264},  {4, 48, 64},    {4, 7, 255},   {5, 31, 1},
    {5, 17, 8},   {6, 65, 40},    {7, 47, 63},  {7, 16, 257},   {8, 15, 124},  {8, 192, 576},
    {9, 5, 7},    {9, 192, 576},  {31, 63, 65}, {64, 64, 64},   {65, 577, 31}, {128, 3, 576},
    {129, 33, 4}, {255, 65, 127}, {257, 1, 64}, {257, 576, 33}, {300, 601, 17}};

typedef struct {
    dms_tensor x, w, bias, residual, y, dy, dx, dw, dbias;
} layer;

/* Parts of a forward pass; IN_PLACE: y holds the residual. */
enum { BIAS = 1, RESIDUAL = 2, IN_PLACE = 4 };

static dms_tensor weight_shape(int64_t outputs, int64_t inputs, dms_dtype dtype)
{
    dms_tensor shape = rig_shape(outputs, inputs, 0, 0);
    shape.dtype = dtype;
    return shape;
}

/* Gradients start as noise, since the ops add to them. */
static layer make_layer(rig *r, size3 s, dms_dtype dtype)
{
    return (layer){.x = rig_noise(r, rig_shape(s.rows, s.inputs, 0, 0)),
                   .w = rig_noise(r, weight_shape(s.outputs, s.inputs, dtype)),
                   .bias = rig_noise(r, rig_shape(s.outputs, 0, 0, 0)),
                   .residual = rig_noise(r, rig_shape(s.rows, s.outputs, 0, 0)),
                   .y = rig_noise(r, rig_shape(s.rows, s.outputs, 0, 0)),
                   .dy = rig_noise(r, rig_shape(s.rows, s.outputs, 0, 0)),
                   .dx = rig_noise(r, rig_shape(s.rows, s.inputs, 0, 0)),
                   .dw = rig_noise(r, rig_shape(s.outputs, s.inputs, 0, 0)),
                   .dbias = rig_noise(r, rig_shape(s.outputs, 0, 0, 0))};
}

/* What the arithmetic sees of an activation: bf16 weights round it. */
static float *operand(const dms_tensor *t, dms_dtype dtype)
{
    float *host = rig_read(t);
    for (int64_t i = 0; dtype == DMS_BF16 && i < dms_count(t); i++)
        host[i] = dms_bf16_to_f32(dms_bf16_from_f32(host[i]));
    return host;
}

/* Operands and sums are f32 of numbers below 1: an error of a few units of 2^-24 times the square
 * root of the number of terms (at most 601), times their size. */
static const float relative = 1e-5f, absolute = 2e-5f;

static void check_forward(const layer *l, unsigned parts)
{
    const int64_t rows = l->x.shape[0], inputs = l->x.shape[1], outputs = l->w.shape[0];
    dms_tensor y = l->y;
    const dms_tensor *residual = parts & IN_PLACE ? &y : parts & RESIDUAL ? &l->residual : NULL;
    if (parts & IN_PLACE)
        must(dms_cast(&y, &l->residual));
    must(dms_linear(&y, &l->x, &l->w, parts & BIAS ? &l->bias : NULL, residual));
    float *x = operand(&l->x, l->w.dtype), *w = rig_read(&l->w), *bias = rig_read(&l->bias);
    float *below = rig_read(&l->residual), *want = malloc(dms_tensor_bytes(&y));
    for (int64_t n = 0; n < rows; n++)
        for (int64_t m = 0; m < outputs; m++) {
            double sum = parts & BIAS ? (double)bias[m] : 0;
            sum += residual ? (double)below[n * outputs + m] : 0;
            for (int64_t k = 0; k < inputs; k++)
                sum += (double)x[n * inputs + k] * (double)w[m * inputs + k];
            want[n * outputs + m] = (float)sum;
        }
    rig_expect("y", &y, want, relative, absolute);
    free(x);
    free(w);
    free(bias);
    free(below);
    free(want);
}

static void expect_sum(const char *what, const dms_tensor *got, const float *before, double *want)
{
    float *total = malloc(dms_tensor_bytes(got));
    for (int64_t i = 0; i < dms_count(got); i++)
        total[i] = (float)((double)before[i] + want[i]);
    rig_expect(what, got, total, relative, absolute);
    free(total);
    free(want);
}

static void check_backward(const layer *l)
{
    const int64_t rows = l->x.shape[0], inputs = l->x.shape[1], outputs = l->w.shape[0];
    dms_tensor dx = l->dx, dw = l->dw, dbias = l->dbias;
    float *x = operand(&l->x, l->w.dtype), *w = rig_read(&l->w);
    float *dy = operand(&l->dy, l->w.dtype), *plain = rig_read(&l->dy);
    float *dx0 = rig_read(&dx), *dw0 = rig_read(&dw), *dbias0 = rig_read(&dbias);
    double *to_x = calloc((size_t)(rows * inputs), sizeof(double));
    double *to_w = calloc((size_t)(outputs * inputs), sizeof(double));
    double *to_bias = calloc((size_t)outputs, sizeof(double));
    must(dms_linear_bwd(&(dms_linear_grads){&dx, &dw, &dbias}, &l->dy, &l->x, &l->w));
    for (int64_t n = 0; n < rows; n++)
        for (int64_t m = 0; m < outputs; m++) {
            const double up = (double)dy[n * outputs + m];
            to_bias[m] += (double)plain[n * outputs + m];
            for (int64_t k = 0; k < inputs; k++) {
                to_x[n * inputs + k] += up * (double)w[m * inputs + k];
                to_w[m * inputs + k] += up * (double)x[n * inputs + k];
            }
        }
    expect_sum("dx", &dx, dx0, to_x);
    expect_sum("dw", &dw, dw0, to_w);
    expect_sum("dbias", &dbias, dbias0, to_bias);
    float *used[] = {x, w, dy, plain, dx0, dw0, dbias0};
    for (size_t i = 0; i < COUNT(used); i++)
        free(used[i]);
}

static void check_all(rig *r, dms_dtype dtype)
{
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const size_t mark = r->arena.used;
        const layer l = make_layer(r, sizes[i], dtype);
        const unsigned bias = i % 2 ? BIAS : 0;
        check_forward(&l, bias);
        check_forward(&l, bias | RESIDUAL);
        check_forward(&l, (bias ^ BIAS) | RESIDUAL | IN_PLACE);
        check_backward(&l);
        r->arena.used = mark;
    }
}

ParameterizedTestParameters(linear, follows_its_definition_in_f32)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, linear, follows_its_definition_in_f32)
{
    rig r = rig_open(*kind);
    check_all(&r, DMS_F32);
    rig_close(&r);
}

ParameterizedTestParameters(linear, follows_its_definition_in_bf16)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, linear, follows_its_definition_in_bf16)
{
    rig r = rig_open(*kind);
    check_all(&r, DMS_BF16);
    rig_close(&r);
}

Test(linear, multiplies_bf16_weights_on_a_processor_without_bf16)
{
    rig r = rig_open(DMS_CPU);
    r.dev->has_bf16 = false;
    check_all(&r, DMS_BF16);
    rig_close(&r);
}

/* All that a layer computes of x, one after the other. */
static float *run_with(rig *r, const layer *l, const dms_tensor *x, size_t *bytes)
{
    dms_tensor y = rig_zero(r, l->y), dx = rig_zero(r, l->dx), dw = rig_zero(r, l->dw);
    must(dms_linear(&y, x, &l->w, &l->bias, &l->residual));
    must(dms_linear_bwd(&(dms_linear_grads){&dx, &dw, NULL}, &l->dy, x, &l->w));
    const dms_tensor *outputs[] = {&y, &dx, &dw};
    float *all = malloc(dms_tensor_bytes(&y) + dms_tensor_bytes(&dx) + dms_tensor_bytes(&dw));
    *bytes = 0;
    for (size_t i = 0; i < COUNT(outputs); i++) {
        const size_t more = dms_tensor_bytes(outputs[i]);
        must(r->dev->download(r->dev, (char *)all + *bytes, outputs[i]->data, more));
        *bytes += more;
    }
    return all;
}

static void check_bf16_activations(rig *r)
{
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const size_t mark = r->arena.used;
        size_t bytes = 0, again = 0;
        const layer l = make_layer(r, sizes[i], DMS_BF16);
        dms_tensor half = l.x;
        half.dtype = DMS_BF16;
        half = rig_empty(r, half);
        must(dms_cast(&half, &l.x));
        float *wide = run_with(r, &l, &l.x, &bytes), *narrow = run_with(r, &l, &half, &again);
        cr_assert(bytes == again && !memcmp(wide, narrow, bytes), "shape %zu", i);
        free(wide);
        free(narrow);
        r->arena.used = mark;
    }
}

ParameterizedTestParameters(linear, takes_bf16_activations_as_it_takes_those_it_rounds)
{
    return rig_devices();
}

/* To the bit: x rounded by the caller, and x rounded by the layer. */
ParameterizedTest(dms_device_kind *kind, linear, takes_bf16_activations_as_it_takes_those_it_rounds)
{
    rig r = rig_open(*kind);
    check_bf16_activations(&r);
    if (*kind == DMS_CPU) {
        r.dev->has_bf16 = false;
        check_bf16_activations(&r);
    }
    rig_close(&r);
}

ParameterizedTestParameters(linear, skips_gradients_that_nobody_wants)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, linear, skips_gradients_that_nobody_wants)
{
    rig r = rig_open(*kind);
    layer one = make_layer(&r, (size3){33, 65, 17}, DMS_BF16), all = one;
    must(dms_linear_bwd(&(dms_linear_grads){NULL, NULL, NULL}, &one.dy, &one.x, &one.w));
    float *dx = rig_read(&one.dx), *dw = rig_read(&one.dw);
    must(dms_linear_bwd(&(dms_linear_grads){&one.dx, NULL, NULL}, &one.dy, &one.x, &one.w));
    must(dms_linear_bwd(&(dms_linear_grads){NULL, &one.dw, NULL}, &one.dy, &one.x, &one.w));
    float *dx_alone = rig_read(&one.dx), *dw_alone = rig_read(&one.dw);
    must(r.dev->upload(r.dev, one.dx.data, dx, dms_tensor_bytes(&one.dx)));
    must(r.dev->upload(r.dev, one.dw.data, dw, dms_tensor_bytes(&one.dw)));
    must(
        dms_linear_bwd(&(dms_linear_grads){&all.dx, &all.dw, &all.dbias}, &one.dy, &one.x, &one.w));
    rig_expect("dx", &all.dx, dx_alone, 0, 0);
    rig_expect("dw", &all.dw, dw_alone, 0, 0);
    free(dx);
    free(dw);
    free(dx_alone);
    free(dw_alone);
    rig_close(&r);
}

ParameterizedTestParameters(linear, accepts_no_rows)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, linear, accepts_no_rows)
{
    rig r = rig_open(*kind);
    layer l = make_layer(&r, (size3){1, 3, 5}, DMS_F32);
    float *before = rig_read(&l.dw);
    l.x.shape[0] = l.y.shape[0] = l.dy.shape[0] = l.dx.shape[0] = l.residual.shape[0] = 0;
    must(dms_linear(&l.y, &l.x, &l.w, &l.bias, &l.residual));
    must(dms_linear_bwd(&(dms_linear_grads){&l.dx, &l.dw, &l.dbias}, &l.dy, &l.x, &l.w));
    rig_expect("dw", &l.dw, before, 0, 0);
    free(before);
    rig_close(&r);
}

/* The same tensor, one element further into memory that is large enough. */
static dms_tensor moved(rig *r, dms_tensor shape)
{
    dms_tensor longer = shape;
    longer.rank = 1;
    longer.shape[0] = dms_count(&shape) + 1;
    const dms_tensor noise = rig_noise(r, longer);
    shape.device = noise.device;
    shape.data = (char *)noise.data + dms_dtype_bytes(shape.dtype);
    return shape;
}

ParameterizedTestParameters(linear, takes_tensors_at_any_address)
{
    return rig_devices();
}

/* Each tensor in turn, then all: vectors and the bias of a GEMM want 16 bytes. */
ParameterizedTest(dms_device_kind *kind, linear, takes_tensors_at_any_address)
{
    rig r = rig_open(*kind);
    static const size3 shapes[] = {{3, 8, 64}, {33, 8, 64}};
    for (size_t i = 0; i < 2 * COUNT(shapes); i++) {
        const dms_dtype dtype = i % 2 ? DMS_BF16 : DMS_F32;
        for (unsigned which = 0; which < 10; which++) {
            layer l = make_layer(&r, shapes[i / 2], dtype);
            dms_tensor *const all[] = {&l.x,  &l.w,  &l.bias, &l.residual, &l.y,
                                       &l.dy, &l.dx, &l.dw,   &l.dbias};
            for (size_t t = 0; t < COUNT(all); t++)
                if (which == t || which == COUNT(all))
                    *all[t] = moved(&r, *all[t]);
            check_forward(&l, BIAS);
            check_forward(&l, BIAS | RESIDUAL);
            check_backward(&l);
        }
    }
    rig_close(&r);
}

ParameterizedTestParameters(linear, multiplies_more_shapes_than_are_remembered)
{
    return rig_devices();
}

/* CUDA remembers 1024 products; the CPU, all: a few are enough there. */
ParameterizedTest(dms_device_kind *kind, linear, multiplies_more_shapes_than_are_remembered)
{
    rig r = rig_open(*kind);
    const layer first = make_layer(&r, (size3){10, 2, 3}, DMS_F32);
    for (int i = 0; i < (*kind == DMS_CPU ? 40 : 1200); i++) {
        const size_t mark = r.arena.used;
        const layer l = make_layer(&r, (size3){9 + i % 40, 1 + i / 40, 3}, DMS_F32);
        check_forward(&l, i % 3 ? BIAS : 0);
        check_forward(&first, 0);
        r.arena.used = mark;
    }
    rig_close(&r);
}

ParameterizedTestParameters(linear, sums_the_bias_gradient_of_many_rows)
{
    return rig_devices();
}

/* More rows than CUDA has chunks of 128. A thousand f32 partial sums below 500 are off by 500 *
 * 2^-24 each: 1e-3 when they add up as noise does. */
ParameterizedTest(dms_device_kind *kind, linear, sums_the_bias_gradient_of_many_rows)
{
    rig r = rig_open(*kind);
    layer l = make_layer(&r, (size3){(128 << 10) + 5, 2, 1}, DMS_F32);
    float *dy = rig_read(&l.dy), *before = rig_read(&l.dbias);
    must(dms_linear_bwd(&(dms_linear_grads){NULL, NULL, &l.dbias}, &l.dy, &l.x, &l.w));
    double sum[2] = {(double)before[0], (double)before[1]};
    for (int64_t i = 0; i < dms_count(&l.dy); i++)
        sum[i % 2] += (double)dy[i];
    rig_expect("dbias", &l.dbias, (float[]){(float)sum[0], (float)sum[1]}, 0, 1e-3f);
    free(dy);
    free(before);
    rig_close(&r);
}

ParameterizedTestParameters(linear, decodes_a_row_the_same_whatever_rows_come_with_it)
{
    return rig_devices();
}

/* To the bit on CUDA; the CPU splits its sums otherwise for a few rows. */
ParameterizedTest(dms_device_kind *kind, linear, decodes_a_row_the_same_whatever_rows_come_with_it)
{
    rig r = rig_open(*kind);
    const float rtol = *kind == DMS_CPU ? relative : 0, atol = *kind == DMS_CPU ? absolute : 0;
    for (int64_t inputs = 575; inputs <= 576; inputs++) {
        layer l = make_layer(&r, (size3){8, 19, inputs}, DMS_BF16), some = l;
        must(dms_linear(&l.y, &l.x, &l.w, &l.bias, NULL));
        float *all = rig_read(&l.y);
        for (int64_t rows = 1; rows < 8; rows++) {
            some.x.shape[0] = some.y.shape[0] = rows;
            must(dms_linear(&some.y, &some.x, &some.w, &some.bias, NULL));
            rig_expect("y", &some.y, all, rtol, atol);
        }
        free(all);
    }
    rig_close(&r);
}

static dms_var *with_all(dms_tape *tape, dms_var **in)
{
    return dms_ad_linear(tape, in[0], in[1], in[2], in[3]);
}

ParameterizedTestParameters(linear, has_the_gradient_of_finite_differences)
{
    return rig_devices();
}

/* A linear function: central differences are exact but for f32 sums, 1e-7 * sqrt(5) over a step
 * of 0.25. */
ParameterizedTest(dms_device_kind *kind, linear, has_the_gradient_of_finite_differences)
{
    rig r = rig_open(*kind);
    const int64_t rows[] = {3, 11};
    for (size_t i = 0; i < COUNT(rows); i++) {
        dms_var x = rig_var(&r, rig_shape(rows[i], 5, 0, 0));
        dms_var w = rig_var(&r, rig_shape(7, 5, 0, 0)), b = rig_var(&r, rig_shape(7, 0, 0, 0));
        dms_var residual = rig_var(&r, rig_shape(rows[i], 7, 0, 0));
        rig_expect_gradient(&r, with_all, (dms_var *[]){&x, &w, &b, &residual}, 4, 0.25f, 1e-4f);
    }
    rig_close(&r);
}

/* y, dx, dw of one layer, one after the other. */
static float *run_with_threads(int threads, size3 s, dms_dtype dtype, size_t *bytes)
{
    rig r = rig_open_threads(DMS_CPU, threads);
    layer l = make_layer(&r, s, dtype);
    must(dms_linear(&l.y, &l.x, &l.w, &l.bias, &l.residual));
    must(dms_linear_bwd(&(dms_linear_grads){&l.dx, &l.dw, &l.dbias}, &l.dy, &l.x, &l.w));
    const dms_tensor *outputs[] = {&l.y, &l.dx, &l.dw, &l.dbias};
    char *all = NULL;
    *bytes = 0;
    for (size_t i = 0; i < COUNT(outputs); i++) {
        const size_t more = dms_tensor_bytes(outputs[i]);
        all = realloc(all, *bytes + more);
        must(r.dev->download(r.dev, all + *bytes, outputs[i]->data, more));
        *bytes += more;
    }
    rig_close(&r);
    return (float *)(void *)all;
}

Test(linear, gives_the_same_bits_for_any_number_of_threads)
{
    static const size3 shapes[] = {{1, 577, 97}, {8, 97, 576}, {37, 192, 64}, {517, 320, 576}};
    for (size_t i = 0; i < 2 * COUNT(shapes); i++) {
        const dms_dtype dtype = i % 2 ? DMS_BF16 : DMS_F32;
        size_t bytes = 0, again = 0;
        float *one = run_with_threads(1, shapes[i / 2], dtype, &bytes);
        for (int threads = 2; threads <= 3; threads++) {
            float *many = run_with_threads(threads, shapes[i / 2], dtype, &again);
            cr_assert(bytes == again && memcmp(one, many, bytes) == 0, "shape %zu, %d threads",
                      i / 2, threads);
            free(many);
        }
        free(one);
    }
}

/* The same with a packed copy in the device's hands, which the upload must drop. */
static void check_upload(rig *r)
{
    layer l = make_layer(r, (size3){40, 65, 33}, DMS_BF16);
    l.w.frozen = true;
    for (int round = 0; round < 2; round++) {
        check_forward(&l, BIAS);
        check_forward(&l, 0);
        check_backward(&l);
        const dms_tensor other = rig_noise(r, l.w);
        uint16_t *host = malloc(dms_tensor_bytes(&l.w));
        must(r->dev->download(r->dev, host, other.data, dms_tensor_bytes(&l.w)));
        must(r->dev->upload(r->dev, l.w.data, host, dms_tensor_bytes(&l.w)));
        free(host);
    }
    check_forward(&l, 0);
}

ParameterizedTestParameters(linear, notices_that_a_frozen_weight_was_uploaded_again)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, linear, notices_that_a_frozen_weight_was_uploaded_again)
{
    rig r = rig_open(*kind);
    check_upload(&r);
    if (*kind == DMS_CPU) {
        r.dev->has_bf16 = false;
        check_upload(&r);
    }
    rig_close(&r);
}

ParameterizedTestParameters(linear, names_the_argument_of_the_wrong_shape)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, linear, names_the_argument_of_the_wrong_shape)
{
    rig r = rig_open(*kind);
    layer l = make_layer(&r, (size3){4, 3, 5}, DMS_F32);
    dms_tensor w = l.w, y = l.y, dw = l.dw, x = l.x, residual = l.residual;
    w.shape[1] = 6;
    cr_expect(dms_linear(&l.y, &l.x, &w, NULL, NULL) == DMS_ERR_SHAPE);
    cr_expect(strstr(dms_error_text(), "w is [3, 6] f32, expected [3, 5] f32"), "%s",
              dms_error_text());
    y.shape[0] = 5;
    cr_expect(dms_linear(&y, &l.x, &l.w, NULL, NULL) == DMS_ERR_SHAPE);
    cr_expect(strstr(dms_error_text(), "y is [5, 3] f32, expected [4, 3] f32"), "%s",
              dms_error_text());
    residual.shape[1] = 2;
    cr_expect(dms_linear(&l.y, &l.x, &l.w, NULL, &residual) == DMS_ERR_SHAPE);
    cr_expect(strstr(dms_error_text(), "residual is [4, 2] f32, expected [4, 3] f32"), "%s",
              dms_error_text());
    x.dtype = DMS_BF16;
    cr_expect(dms_linear(&l.y, &x, &l.w, NULL, NULL) == DMS_ERR_DTYPE);
    cr_expect(strstr(dms_error_text(), "x is bf16, expected f32 where w is f32"), "%s",
              dms_error_text());
    dw.dtype = DMS_BF16;
    cr_expect(dms_linear_bwd(&(dms_linear_grads){NULL, &dw, NULL}, &l.dy, &l.x, &l.w) ==
              DMS_ERR_DTYPE);
    cr_expect(strstr(dms_error_text(), "dw is [3, 5] bf16, expected [3, 5] f32"), "%s",
              dms_error_text());
    rig_close(&r);
}
