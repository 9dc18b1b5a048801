#include "eval/lines.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

dms_status dms_lines_read(json_t **out, const char *path)
{
    FILE *file = fopen(path, "rb");
    json_t *all = json_array();
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    bool failed = !all;
    if (!file) {
        json_decref(all);
        return dms_fail(DMS_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    }
    while (!failed && (n = getline(&line, &room, file)) > 0) {
        json_t *object = json_loadb(line, (size_t)n, 0, NULL);
        if (json_is_object(object))
            failed = json_array_append_new(all, object) != 0;
        else
            json_decref(object);
    }
    free(line);
    const bool unread = ferror(file) != 0;
    fclose(file);
    if (failed || unread) {
        json_decref(all);
        return failed ? dms_fail(DMS_ERR_NOMEM, "no memory for the lines of %s", path)
                      : dms_fail(DMS_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    }
    *out = all;
    return DMS_OK;
}

double dms_line_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

const char *dms_line_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

const char *dms_lines_date(char out[DMS_DATE_SIZE])
{
    const time_t now = time(NULL);
    struct tm at;
    if (!gmtime_r(&now, &at) || !strftime(out, DMS_DATE_SIZE, "%Y-%m-%d %H:%M UTC", &at))
        out[0] = 0;
    return out;
}
