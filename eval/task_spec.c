#include "eval/task_spec.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "kernels/nearest.h"

#define LARGEST 9000000000000000 /* whole numbers are exact in doubles up to here */

dms_status dms_value_text(const char **out, const json_t *value, const char *key)
{
    if (!json_is_string(value))
        return dms_fail(DMS_ERR_ARG, "%s is no text; quote it", key);
    *out = json_string_value(value);
    return DMS_OK;
}

dms_status dms_value_whole(int64_t *out, const json_t *value, const char *key, int64_t low)
{
    if (!json_is_integer(value) || json_integer_value(value) < low ||
        json_integer_value(value) > LARGEST)
        return dms_fail(DMS_ERR_ARG, "%s is no whole number from %" PRId64 " to 9e15", key, low);
    *out = json_integer_value(value);
    return DMS_OK;
}

static dms_status take_real(double *out, const json_t *value, const char *key)
{
    if (!json_is_number(value) || json_number_value(value) < 0)
        return dms_fail(DMS_ERR_ARG, "%s is no number from 0 on", key);
    *out = json_number_value(value);
    return DMS_OK;
}

dms_status dms_value_texts(const char **out, int *n, int most, const json_t *value, const char *key)
{
    const size_t count = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < count; i++) {
        if (*n == most)
            return dms_fail(DMS_ERR_ARG, "%s has more than %d entries", key, most);
        DMS_TRY(
            dms_value_text(&out[*n], json_is_array(value) ? json_array_get(value, i) : value, key));
        ++*n;
    }
    return DMS_OK;
}

typedef enum { TEXT, PATHS, WHOLE, REAL, FLAG, NAME } value_kind;

static const struct {
    const char *name;
    value_kind kind;
    size_t at;
    int64_t low;
} keys[] = {{"task", TEXT, offsetof(dms_task_spec, task), 0},
            {"name", NAME, 0, 0},
            {"text", PATHS, 0, 0},
            {"file", PATHS, 0, 0},
            {"context", WHOLE, offsetof(dms_task_spec, context), 2},
            {"prompt", WHOLE, offsetof(dms_task_spec, prompt), 1},
            {"sequences", WHOLE, offsetof(dms_task_spec, sequences), 0},
            {"length", WHOLE, offsetof(dms_task_spec, length), 1},
            {"essay", TEXT, offsetof(dms_task_spec, essay), 0},
            {"limit", WHOLE, offsetof(dms_task_spec, limit), 0},
            {"batch", WHOLE, offsetof(dms_task_spec, batch), 1},
            {"samples", WHOLE, offsetof(dms_task_spec, samples), 1},
            {"max_new", WHOLE, offsetof(dms_task_spec, max_new), 1},
            {"temperature", REAL, offsetof(dms_task_spec, temperature), 0},
            {"top_p", REAL, offsetof(dms_task_spec, top_p), 0},
            {"chat", FLAG, offsetof(dms_task_spec, chat), 0}};

enum { N_KEYS = sizeof(keys) / sizeof(keys[0]) };

static dms_status unknown(const char *key, const char *also)
{
    const char *names[N_KEYS + 1] = {NULL};
    for (int i = 0; i < N_KEYS; i++)
        names[i] = keys[i].name;
    names[N_KEYS] = also;
    return dms_fail(DMS_ERR_ARG, "a task has no key \"%.60s\"; the nearest known key is %s", key,
                    dms_nearest(key, names, also ? N_KEYS + 1 : N_KEYS));
}

static dms_status take_paths(dms_task_spec *spec, dms_task_paths *paths, const json_t *value,
                             const char *key)
{
    if (spec->n_paths)
        return dms_fail(DMS_ERR_ARG, "a task has both text and file, expected one of them");
    const int before = paths->n;
    spec->paths = paths->all + before;
    DMS_TRY(dms_value_texts(paths->all, &paths->n, paths->most, value, key));
    spec->n_paths = paths->n - before;
    return DMS_OK;
}

static dms_status take_value(dms_task_spec *spec, const char **name, dms_task_paths *paths, int key,
                             const json_t *value)
{
    void *at = (char *)spec + keys[key].at;
    switch (keys[key].kind) {
    case TEXT:
        return dms_value_text(at, value, keys[key].name);
    case WHOLE:
        return dms_value_whole(at, value, keys[key].name, keys[key].low);
    case REAL:
        return take_real(at, value, keys[key].name);
    case FLAG:
        if (!json_is_boolean(value))
            return dms_fail(DMS_ERR_ARG, "%s is neither true nor false", keys[key].name);
        *(bool *)at = json_is_true(value);
        return DMS_OK;
    case PATHS:
        return take_paths(spec, paths, value, keys[key].name);
    case NAME:
        return dms_value_text(name, value, keys[key].name);
    }
    return DMS_OK;
}

dms_status dms_task_spec_read(dms_task_spec *spec, const char **name, dms_task_paths *paths,
                              const json_t *tree, const char *also)
{
    const char *text;
    json_t *value;
    if (!json_is_object(tree))
        return dms_fail(DMS_ERR_ARG, "a task is no mapping, expected {task: kld, text: ..., ...}");
    json_object_foreach((json_t *)tree, text, value)
    {
        int key = 0;
        while (key < N_KEYS && strcmp(text, keys[key].name) != 0)
            key++;
        DMS_TRY(key < N_KEYS ? take_value(spec, name, paths, key, value) : unknown(text, also));
    }
    return DMS_OK;
}
