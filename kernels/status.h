/* Status codes and the error trail shared by every folder. */
#ifndef DMS_STATUS_H
#define DMS_STATUS_H

#ifdef __cplusplus
#define DMS_BEGIN_C extern "C" {
#define DMS_END_C }
#else
#define DMS_BEGIN_C
#define DMS_END_C
#endif

DMS_BEGIN_C

/* code, meaning. DMS_OK is 0, so `if (status)` reads as "if it failed". */
#define DMS_STATUS_LIST(X)                     \
    X(OK, "ok")                                \
    X(ERR_ARG, "invalid argument")             \
    X(ERR_SHAPE, "tensor shapes do not fit")   \
    X(ERR_DTYPE, "tensor type not supported")  \
    X(ERR_NOMEM, "out of memory")              \
    X(ERR_IO, "input/output failed")           \
    X(ERR_FORMAT, "file content is malformed") \
    X(ERR_DEVICE, "device call failed")        \
    X(ERR_NODEVICE, "no such device")          \
    X(ERR_INTERRUPTED, "interrupted")          \
    X(ERR_NUMBER, "a value is not finite")

typedef enum {
#define X(code, text) DMS_##code,
    DMS_STATUS_LIST(X)
#undef X
} dms_status;

/* Records message and origin in this thread's trail. */
void dms_fail_at(const char *file, int line, dms_status code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static inline dms_status dms_failed(dms_status code)
{
    return code;
}
/* Append a call site, or a remark, to the trail of the failure in flight. */
void dms_trail_add(const char *file, int line);
void dms_trail_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* "kernels/ops.c:31: y is [2, 8], expected [2, 9] <- train/step.c:88". Valid
 * until the next failure on this thread. */
const char *dms_error_text(void);
/* The same for people: message and remarks, without places in the source. */
const char *dms_error_message(void);

/* Its value is `code` itself, so that the compiler sees that a failed function did fail. */
#define dms_fail(code, ...) \
    dms_failed((dms_fail_at(__FILE__, __LINE__, (code), __VA_ARGS__), (code)))

/* For functions that own nothing yet: leave at once. */
#define DMS_TRY(expr)                          \
    do {                                       \
        dms_status try_status_ = (expr);       \
        if (try_status_) {                     \
            dms_trail_add(__FILE__, __LINE__); \
            return try_status_;                \
        }                                      \
    } while (0)

/* For functions that own something: fall to the one cleanup label. */
#define DMS_TRY_OR(label, expr)                \
    do {                                       \
        status = (expr);                       \
        if (status) {                          \
            dms_trail_add(__FILE__, __LINE__); \
            goto label;                        \
        }                                      \
    } while (0)

DMS_END_C
#endif
