/* For tests of dms-inspect: the program run in a folder of its own, its JSON and its messages. */
#ifndef DMS_TEST_INSPECT_H
#define DMS_TEST_INSPECT_H

#include <jansson.h>
#include <math.h>
#include <sys/wait.h>

#include "tests/files.h"
#include "tests/fixtures.h"

enum { DONE = 0, FAILED = 1, USAGE = 2 };

typedef struct {
    scratch dir;
    int code;
    char *out; /* of the last run */
    char err[4096];
    json_t *view; /* NULL where the output is no JSON */
} inspection;

static inline inspection inspection_open(void)
{
    return (inspection){.dir = scratch_open()};
}

static inline void inspection_close(inspection *i)
{
    free(i->out);
    json_decref(i->view);
    scratch_close(&i->dir);
}

/* A shell's command in the folder; $BIN: where programs are, $FIX: the fixtures. */
static inline int shell(inspection *i, const char *command)
{
    char line[4096], fixtures[1024];
    size_t n;
    snprintf(line, sizeof(line), "cd %s && BIN=%s FIX=%s && { %s ; } >out 2>err", i->dir.folder,
             DMS_BINARY_DIR, fixture(fixtures, "."), command);
    const int state = system(line);
    cr_assert(WIFEXITED(state), "%s was killed", command);
    free(i->out);
    i->out = read_bytes(scratch_path(&i->dir, "out"), &n);
    char *err = read_bytes(scratch_path(&i->dir, "err"), &n);
    snprintf(i->err, sizeof(i->err), "%s", err);
    free(err);
    return WEXITSTATUS(state);
}

/* dms-inspect with --json; the view, which the inspection owns. */
static inline json_t *inspect(inspection *i, int code, const char *arguments)
{
    char command[2048];
    json_error_t error;
    snprintf(command, sizeof(command), "$BIN/dms-inspect --json %s", arguments);
    i->code = shell(i, command);
    cr_assert_eq(i->code, code, "%s: exit code %d, expected %d: %s", arguments, i->code, code,
                 i->err);
    json_decref(i->view);
    i->view = json_loads(i->out, JSON_REJECT_DUPLICATES, &error);
    cr_assert(json_is_object(i->view), "%s: no JSON object: %s", arguments, error.text);
    return i->view;
}

/* The value at "key.key.key"; fails where there is none. */
static inline json_t *find(const json_t *view, const char *path)
{
    char key[128];
    json_t *value = (json_t *)(uintptr_t)view;
    for (const char *at = path; value && *at;) {
        const size_t n = strcspn(at, ".");
        snprintf(key, sizeof(key), "%.*s", (int)n, at);
        value = json_object_get(value, key);
        at += n + (at[n] == '.');
    }
    cr_assert_not_null(value, "no key %s", path);
    return value;
}

static inline void expect_number(const json_t *view, const char *path, double want)
{
    const json_t *value = find(view, path);
    cr_assert(json_is_number(value), "%s is no number", path);
    cr_assert_eq(json_number_value(value), want, "%s is %.17g, expected %.17g", path,
                 json_number_value(value), want);
}

static inline void expect_text(const json_t *view, const char *path, const char *want)
{
    const char *text = json_string_value(find(view, path));
    cr_assert(text && !strcmp(text, want), "%s is %s, expected %s", path, text ? text : "no text",
              want);
}

/* A part of a text; want NULL: the value is null. */
static inline void expect_part(const json_t *view, const char *path, const char *want)
{
    const json_t *value = find(view, path);
    const char *text = json_string_value(value);
    cr_assert(want ? text && strstr(text, want) : json_is_null(value), "%s is %s, expected %s",
              path, text ? text : "no text", want ? want : "null");
}

static inline void expect_true(const json_t *view, const char *path, bool want)
{
    cr_assert(want ? json_is_true(find(view, path)) : json_is_false(find(view, path)),
              "%s is not %s", path, want ? "true" : "false");
}

#endif
