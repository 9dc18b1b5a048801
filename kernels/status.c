#include "kernels/status.h"

#include <stdarg.h>
#include <stdio.h>

/* Text that is cut, never overrun. */
typedef struct {
    char text[2048];
    size_t used;
} trail;

/* With places in the source for us, without for people. */
static _Thread_local trail full, plain;

static void append_va(trail *t, const char *fmt, va_list ap)
{
    const size_t room = sizeof(t->text) - t->used;
    const int n = vsnprintf(t->text + t->used, room, fmt, ap);
    if (n > 0)
        t->used += (size_t)n < room ? (size_t)n : room - 1;
}

__attribute__((format(printf, 2, 3))) static void append(trail *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    append_va(t, fmt, ap);
    va_end(ap);
}

static const char *code_text(dms_status code)
{
    static const char *const texts[] = {
#define X(name, text) [DMS_##name] = text,
        DMS_STATUS_LIST(X)
#undef X
    };
    return texts[code];
}

void dms_fail_at(const char *file, int line, dms_status code, const char *fmt, ...)
{
    va_list ap;
    trail message = {.used = 0};
    va_start(ap, fmt);
    append_va(&message, fmt, ap); /* first: an argument may be the last failure's text */
    va_end(ap);
    full.used = plain.used = 0;
    append(&full, "%s:%d: %s [%s]", file, line, message.text, code_text(code));
    append(&plain, "%s", message.text);
}

void dms_trail_add(const char *file, int line)
{
    append(&full, " <- %s:%d", file, line);
}

void dms_trail_note(const char *fmt, ...)
{
    va_list ap;
    append(&full, " <- ");
    va_start(ap, fmt);
    append_va(&full, fmt, ap);
    va_end(ap);
    append(&plain, " (");
    va_start(ap, fmt);
    append_va(&plain, fmt, ap);
    va_end(ap);
    append(&plain, ")");
}

const char *dms_error_text(void)
{
    return full.text;
}

const char *dms_error_message(void)
{
    return plain.text;
}
