/* A test rig: one device, one arena, repeatable noise, and the checks that op tests are made of. */
#ifndef DMS_TEST_RIG_H
#define DMS_TEST_RIG_H

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "autograd/ad.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Fails the test with the error trail when `expr` does not return DMS_OK. */
#define must(expr) cr_assert((expr) == DMS_OK, "%s: %s", #expr, dms_error_text())

typedef struct {
    dms_device *dev;
    dms_arena arena;
    uint32_t seed;
} rig;

/* The device under test: DMS_TEST_DEVICE (cpu, cuda_emu or cuda), by default cpu. */
dms_device_kind rig_device(void);
const char *rig_device_name(void);
/* The same as the parameter of a test. */
struct criterion_test_params rig_devices(void);

/* The caller closes it. Skips the test, visibly, where the machine lacks a GPU. */
dms_device *rig_open_device(dms_device_kind kind, int threads);
/* The same with 64 MiB of arena. */
rig rig_open(dms_device_kind kind);
rig rig_open_threads(dms_device_kind kind, int threads);
void rig_close(rig *r);

/* Sizes of 0 end the shape: rig_shape(3, 4, 0, 0) is [3, 4]. */
dms_tensor rig_shape(int64_t a, int64_t b, int64_t c, int64_t d);
/* [batch, tokens] of i32. */
dms_tensor rig_shape_i32(int64_t batch, int64_t tokens);
/* Memory in the arena; contents undefined, or uniform noise in [-1, 1), or zero. */
dms_tensor rig_empty(rig *r, dms_tensor shape);
dms_tensor rig_noise(rig *r, dms_tensor shape);
dms_tensor rig_zero(rig *r, dms_tensor shape);
/* The host's values (as many as `shape` says, of its type) on the device. */
dms_tensor rig_upload(rig *r, dms_tensor shape, const void *host);
/* Noise that wants a gradient; the gradient starts at zero. */
dms_var rig_var(rig *r, dms_tensor shape);
/* A host copy of t as f32, whatever its storage type; the caller frees it. */
float *rig_read(const dms_tensor *t);
/* The next number of the rig's generator, in [-1, 1). */
float rig_random(rig *r);

/* The call failed with `want`, and its message has `text` in it. */
void rig_expect_failure(dms_status got, dms_status want, const char *text);
/* |got - want| <= atol + rtol*|want| for each element. */
void rig_expect(const char *what, const dms_tensor *got, const float *want, float rtol, float atol);
/* The n tensors have the same bits in every run: of the first run first[i] keeps them, and starts
 * as NULL; the caller frees first[0], ... */
void rig_expect_bits(float **first, const dms_tensor *const *out, int n);
/* Compares every gradient of build(in) with central differences. */
void rig_expect_gradient(rig *r, dms_var *(*build)(dms_tape *tape, dms_var **in), dms_var **in,
                         int n_in, float step, float rtol);

#endif
