/* How an op checks its arguments and reaches its device: for the files that hold public ops. */
#ifndef DMS_OP_CHECKS_H
#define DMS_OP_CHECKS_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "kernels/ops.h"

/* The one place every op passes through: NVTX ranges, timing and "synchronise after each op" hook
 * in here and nowhere else. `shown` is the tensor whose shape a failure names; NULL: none. */
#define RUN_ON(dev, shown, op, ...) \
    leave((dev), (shown), #op, is_idle(dev) ? DMS_OK : (dev)->ops->op(__VA_ARGS__))
#define RUN(shown, op, ...) RUN_ON((shown)->device, shown, op, __VA_ARGS__)

/* In a dry run, ops of the GPU say what workspace they need, those of the CPU have nothing to say.
 */
static inline bool is_idle(const dms_device *dev)
{
    return dev->dry && dev->kind == DMS_CPU;
}

static inline const char *type_name(dms_dtype dtype)
{
    static const char *const names[] = {[DMS_F32] = "f32", [DMS_BF16] = "bf16", [DMS_I32] = "i32"};
    return names[dtype];
}

static inline void describe(char *out, size_t size, const dms_tensor *t)
{
    int n = snprintf(out, size, "[");
    for (int i = 0; i < t->rank; i++)
        n += snprintf(out + n, size - (size_t)n, i ? ", %" PRId64 : "%" PRId64, t->shape[i]);
    snprintf(out + n, size - (size_t)n, "] %s", type_name(t->dtype));
}

static inline dms_status leave(dms_device *dev, const dms_tensor *shown, const char *op,
                               dms_status status)
{
    char shape[112] = "";
    if (!status && dev->after_op)
        status = dev->after_op(dev);
    if (!status)
        return DMS_OK;
    if (shown)
        describe(shape, sizeof(shape), shown);
    dms_trail_note("%s%s%s on %s", op, shown ? " of " : "", shape, dev->name);
    return status;
}

static inline bool same_shape(const dms_tensor *a, const dms_tensor *b)
{
    bool same = a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++)
        same = a->shape[i] == b->shape[i];
    return same;
}

/* `t` has the shape and type of `want` and lives on its device. NULL is for optional arguments. */
static inline dms_status expect(const char *name, const dms_tensor *t, const dms_tensor *want)
{
    char got[112], wanted[112];
    if (!t || (same_shape(t, want) && t->dtype == want->dtype && t->device == want->device))
        return DMS_OK;
    describe(got, sizeof(got), t);
    describe(wanted, sizeof(wanted), want);
    return dms_fail(t->dtype == want->dtype ? DMS_ERR_SHAPE : DMS_ERR_DTYPE,
                    "%s is %s, expected %s%s", name, got, wanted,
                    t->device == want->device ? "" : " on the same device");
}

/* The same for a shape spelled out: n sizes of type int64_t. */
static inline dms_status expect_shape(const char *name, const dms_tensor *t, dms_device *dev,
                                      dms_dtype dtype, int rank, ...)
{
    dms_tensor want = {.device = dev, .dtype = dtype, .rank = rank};
    va_list sizes;
    va_start(sizes, rank);
    for (int i = 0; i < rank; i++)
        want.shape[i] = va_arg(sizes, int64_t);
    va_end(sizes);
    return expect(name, t, &want);
}

/* As many elements as `n`, in any shape. */
static inline dms_status expect_count(const char *name, const dms_tensor *t, dms_dtype dtype,
                                      int64_t n)
{
    char got[112];
    if (!t || (t->dtype == dtype && dms_count(t) == n))
        return DMS_OK;
    describe(got, sizeof(got), t);
    return dms_fail(DMS_ERR_SHAPE, "%s is %s, expected %" PRId64 " elements of %s", name, got, n,
                    type_name(dtype));
}

/* One of the two types that weights may have; `want` gives the shape. */
static inline dms_status expect_weight(const char *name, const dms_tensor *w, int64_t rows,
                                       int64_t cols)
{
    if (w->dtype != DMS_F32 && w->dtype != DMS_BF16)
        return dms_fail(DMS_ERR_DTYPE, "%s is %s, expected f32 or bf16", name, type_name(w->dtype));
    return expect_shape(name, w, w->device, w->dtype, 2, rows, cols);
}

/* Like x, but with another number of columns. */
static inline dms_tensor with_cols(const dms_tensor *x, int64_t cols)
{
    dms_tensor t = *x;
    t.dtype = DMS_F32;
    t.shape[t.rank - 1] = cols;
    return t;
}

/* One of the two types that an activation in front of a product may have. */
static inline dms_status expect_activation(const char *name, const dms_tensor *t,
                                           const dms_tensor *like)
{
    dms_tensor want = *like;
    if (t->dtype == DMS_BF16)
        want.dtype = DMS_BF16;
    return expect(name, t, &want);
}

static inline dms_status expect_rank3(const char *name, const dms_tensor *t)
{
    if (t->rank == 3)
        return DMS_OK;
    return dms_fail(DMS_ERR_SHAPE, "%s has %d dimensions, expected 3", name, t->rank);
}

#endif
