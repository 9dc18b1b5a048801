#include "tasks/records.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/jsonl.h"
#include "tasks/text.h"

enum { MAX_LINE_MIB = 256, MAX_ROW = 8 << 20, MAX_COLUMNS = 256 };

struct dms_records {
    char *path;
    gzFile file;
    dms_jsonl *lines; /* NULL: CSV */
    long long line;   /* of CSV: of the row in hand */
    long long breaks; /* line breaks read */
    json_t *columns;  /* of CSV: array of texts */
    json_t *row;
    char where[512];
};

static bool ends(const char *text, const char *tail)
{
    const size_t n = strlen(text), k = strlen(tail);
    return n > k && !strcmp(text + n - k, tail);
}

/* A field of a row, up to its comma or line break; *more: a field follows. At the end of the file
 * *found = false where no field begins. */
static dms_status read_field(dms_records *r, dms_text *field, bool *more, bool *found)
{
    bool quoted = false;
    field->n = 0;
    *more = false;
    for (;; *found = true) {
        const int c = gzgetc(r->file);
        if (c < 0 && !gzeof(r->file))
            return dms_gzip_failed(r->file, r->path);
        if (c < 0 && quoted)
            return dms_fail(DMS_ERR_FORMAT, "%s, line %lld: a quoted field does not end", r->path,
                            r->line);
        if (c < 0)
            return DMS_OK;
        if (c == 0 || field->n > MAX_ROW)
            return dms_fail(DMS_ERR_FORMAT, "%s, line %lld: %s, expected CSV", r->path, r->line,
                            c ? "a field of more than 8 MiB" : "a NUL character");
        r->breaks += c == '\n';
        if (c == '"') {
            /* Two within quotes are one that is meant. */
            const int next = quoted ? gzgetc(r->file) : 0;
            if (quoted && next != '"') {
                quoted = false;
                if (next >= 0)
                    gzungetc(next, r->file);
                continue;
            }
            if (!quoted && field->n == 0) {
                quoted = true;
                continue;
            }
        } else if (!quoted && (c == ',' || c == '\n')) {
            *found = true;
            *more = c == ',';
            return DMS_OK;
        } else if (!quoted && c == '\r') {
            continue;
        }
        const char byte = (char)c;
        DMS_TRY(dms_text_append(field, &byte, 1));
    }
}

/* The next row that is not empty, as an array of texts; NULL at the end. */
static dms_status read_row(dms_records *r, json_t **row)
{
    dms_status status = DMS_OK;
    dms_text field = {0};
    json_t *list = NULL;
    bool more, found;
    do {
        json_decref(list);
        list = json_array();
        found = false;
        r->line = r->breaks + 1;
        do {
            DMS_TRY_OR(failed, read_field(r, &field, &more, &found));
            if (json_array_append_new(list, json_stringn(field.n ? field.bytes : "", field.n))) {
                status = dms_fail(DMS_ERR_FORMAT, "%s, line %lld: a field is not UTF-8", r->path,
                                  r->line);
                goto failed;
            }
        } while (more && json_array_size(list) <= MAX_COLUMNS);
    } while (found && json_array_size(list) == 1 &&
             json_string_length(json_array_get(list, 0)) == 0);
    dms_text_free(&field);
    if (!found)
        json_decref(list);
    *row = found ? list : NULL;
    return DMS_OK;
failed:
    dms_text_free(&field);
    json_decref(list);
    return status;
}

static dms_status next_csv(dms_records *r, const json_t **record)
{
    json_t *row;
    DMS_TRY(read_row(r, &row));
    *record = NULL;
    if (!row)
        return DMS_OK;
    const size_t n = json_array_size(row), want = json_array_size(r->columns);
    dms_status status = DMS_OK;
    if (n != want)
        status = dms_fail(DMS_ERR_FORMAT, "%s, line %lld: has %zu fields, expected %zu", r->path,
                          r->line, n, want);
    r->row = json_object();
    for (size_t i = 0; i < n && !status; i++)
        if (json_object_set(r->row, json_string_value(json_array_get(r->columns, i)),
                            json_array_get(row, i)))
            status = dms_fail(DMS_ERR_NOMEM, "%s: no memory for a row", r->path);
    json_decref(row);
    *record = r->row;
    return status;
}

dms_status dms_records_next(dms_records *r, const json_t **record)
{
    json_decref(r->row);
    r->row = NULL;
    DMS_TRY(r->lines ? dms_jsonl_next_object(r->lines, record) : next_csv(r, record));
    snprintf(r->where, sizeof(r->where), "%.400s, line %lld", r->path,
             r->lines ? dms_jsonl_line(r->lines) : r->line);
    return DMS_OK;
}

const char *dms_records_where(const dms_records *r)
{
    return r->where;
}

void dms_records_close(dms_records *r)
{
    if (!r)
        return;
    dms_jsonl_close(r->lines);
    if (r->file)
        gzclose(r->file);
    json_decref(r->row);
    json_decref(r->columns);
    free(r->path);
    free(r);
}

/* Refuses what is no text of ours by its first bytes. */
static dms_status check_magic(const char *path, int fd)
{
    char magic[4] = "";
    if (pread(fd, magic, sizeof(magic), 0) < 0)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    if (!memcmp(magic, "PAR1", 4) || ends(path, ".parquet"))
        return dms_fail(DMS_ERR_ARG,
                        "%s: is Parquet, expected JSON Lines or CSV; in Python "
                        "pandas.read_parquet(PATH).to_json(\"NAME.jsonl\", orient=\"records\", "
                        "lines=True) converts it",
                        path);
    return DMS_OK;
}

static dms_status open_file(dms_records *r)
{
    const int fd = open(r->path, O_RDONLY | O_CLOEXEC);
    dms_status status = fd < 0 ? dms_fail(DMS_ERR_IO, "%s: %s", r->path, strerror(errno))
                               : check_magic(r->path, fd);
    if (!status && !(r->file = gzdopen(fd, "rb")))
        status = dms_fail(DMS_ERR_NOMEM, "no memory to read %s", r->path);
    if (status && fd >= 0)
        close(fd);
    return status;
}

/* The names of the columns: given, or the first row, which may begin with a byte order mark. */
static dms_status read_columns(dms_records *r, const char *const *columns)
{
    if (!columns) {
        DMS_TRY(read_row(r, &r->columns));
        const char *first = json_string_value(json_array_get(r->columns, 0));
        if (first && !strncmp(first, "\xEF\xBB\xBF", 3))
            json_array_set_new(r->columns, 0, json_string(first + 3));
        return DMS_OK;
    }
    r->columns = json_array();
    for (; *columns; columns++)
        if (json_array_append_new(r->columns, json_string(*columns)))
            return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", r->path);
    return DMS_OK;
}

dms_status dms_records_open(dms_records **out, const char *path, const char *const *columns)
{
    dms_status status = DMS_OK;
    const bool csv = ends(path, ".csv") || ends(path, ".csv.gz");
    dms_records *r = calloc(1, sizeof(*r));
    if (!r || !(r->path = strdup(path))) {
        free(r);
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", path);
    }
    DMS_TRY_OR(failed, open_file(r));
    if (csv) {
        DMS_TRY_OR(failed, read_columns(r, columns));
    } else if (dms_jsonl_recognise(path)) {
        DMS_TRY_OR(failed, dms_jsonl_open(&r->lines, r->file, r->path));
        dms_jsonl_limit(r->lines, MAX_LINE_MIB);
    } else {
        status = dms_fail(DMS_ERR_ARG,
                          "%s: expected a name that ends in .jsonl, .ndjson or .csv, or in one of "
                          "them and .gz",
                          path);
        goto failed;
    }
    *out = r;
    return DMS_OK;
failed:
    dms_records_close(r);
    return status;
}
