#include "data/jsonl.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "data/buffer.h"
#include "data/keys.h"

enum { PART = 1 << 16, MAX_LINE = 8 << 20, MAX_MESSAGES = 1 << 20 };

struct dms_jsonl {
    gzFile file;
    const char *path;
    dms_text read; /* bytes read; the lines before `at` are done */
    size_t at;
    size_t longest; /* line, in bytes */
    bool ended;
    long long line;
    json_t *object; /* of the line in hand, or NULL */
    dms_message *messages;
    size_t n_messages;
};

bool dms_jsonl_recognise(const char *path)
{
    static const char *const tails[] = {".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"};
    const size_t n = strlen(path);
    for (size_t i = 0; i < sizeof(tails) / sizeof(*tails); i++) {
        const size_t tail = strlen(tails[i]);
        if (n > tail && !strcasecmp(path + n - tail, tails[i]))
            return true;
    }
    return false;
}

dms_status dms_jsonl_open(dms_jsonl **out, gzFile file, const char *path)
{
    dms_jsonl *j = calloc(1, sizeof(*j));
    if (!j)
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", path);
    j->file = file;
    j->path = path;
    j->longest = MAX_LINE;
    *out = j;
    return DMS_OK;
}

void dms_jsonl_limit(dms_jsonl *j, int mebibytes)
{
    j->longest = (size_t)mebibytes << 20;
}

static void drop_line(dms_jsonl *j)
{
    json_decref(j->object);
    free(j->messages);
    j->object = NULL;
    j->messages = NULL;
    j->n_messages = 0;
}

void dms_jsonl_close(dms_jsonl *j)
{
    if (!j)
        return;
    drop_line(j);
    dms_text_free(&j->read);
    free(j);
}

dms_status dms_gzip_failed(gzFile file, const char *path)
{
    int code;
    const char *message = gzerror(file, &code);
    if (code == Z_ERRNO)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    if (code == Z_MEM_ERROR)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory to unpack it", path);
    if (code == Z_BUF_ERROR)
        return dms_fail(DMS_ERR_FORMAT, "%s: the gzip file ends early; it is truncated", path);
    return dms_fail(DMS_ERR_FORMAT, "%s: the gzip file is corrupt (%s)", path, message);
}

static dms_status read_more(dms_jsonl *j)
{
    int code = Z_OK;
    DMS_TRY(dms_text_reserve(&j->read, PART));
    const int got = gzread(j->file, j->read.bytes + j->read.n, PART);
    if (got >= 0 && got < PART)
        gzerror(j->file, &code);
    if (got < 0 || code != Z_OK)
        return dms_gzip_failed(j->file, j->path);
    j->read.n += (size_t)got;
    j->ended = got == 0;
    return DMS_OK;
}

/* The next line without its end; *line = NULL after the last. */
static dms_status next_line(dms_jsonl *j, const char **line, size_t *n)
{
    const char *end = NULL;
    size_t searched = j->at;
    for (;;) {
        if (j->read.n > searched)
            end = memchr(j->read.bytes + searched, '\n', j->read.n - searched);
        if (end || j->ended)
            break;
        if (j->at > 0) { /* the lines before make room */
            j->read.n -= j->at;
            memmove(j->read.bytes, j->read.bytes + j->at, j->read.n);
            j->at = 0;
        }
        if (j->read.n > j->longest)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: line %lld is longer than %zu MiB, expected JSON Lines", j->path,
                            j->line + 1, j->longest >> 20);
        searched = j->read.n;
        DMS_TRY(read_more(j));
    }
    if (!j->line && j->read.n - j->at >= 3 && !memcmp(j->read.bytes + j->at, "\xef\xbb\xbf", 3))
        j->at += 3; /* a byte order mark, which some editors put before the first line */
    const size_t left = j->read.n - j->at;
    *line = left > 0 ? j->read.bytes + j->at : NULL;
    *n = end ? (size_t)(end - *line) : left;
    j->at += end ? *n + 1 : *n;
    j->line++;
    return DMS_OK;
}

static dms_status wrong(const dms_jsonl *j, const char *what, const json_t *found,
                        const char *expected)
{
    return dms_fail(DMS_ERR_FORMAT, "%s, line %lld: %s is %s, expected %s", j->path, j->line, what,
                    dms_key_type(found), expected);
}

/* A key of messages[i] that must be a text without 0. */
static dms_status read_key(const dms_jsonl *j, size_t i, const char *key, const char **out)
{
    char what[64];
    const json_t *message = json_array_get(json_object_get(j->object, "messages"), i);
    const json_t *value = json_object_get(message, key);
    snprintf(what, sizeof(what), "messages[%zu].%s", i, key);
    *out = json_string_value(value);
    if (!*out)
        return wrong(j, what, value, "a string");
    if (strlen(*out) != json_string_length(value))
        return dms_fail(DMS_ERR_FORMAT, "%s, line %lld: %s holds a NUL character", j->path, j->line,
                        what);
    return DMS_OK;
}

static dms_status read_message(dms_jsonl *j, size_t i)
{
    dms_message *m = &j->messages[i];
    const json_t *object = json_array_get(json_object_get(j->object, "messages"), i);
    const json_t *calls = json_object_get(object, "tool_calls");
    const json_t *reasoning = json_object_get(object, "reasoning_content");
    DMS_TRY(read_key(j, i, "role", &m->role));
    if (strcmp(m->role, "system") && strcmp(m->role, "user") && strcmp(m->role, "assistant"))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s, line %lld: messages[%zu].role is \"%.64s\", expected system, user or "
                        "assistant",
                        j->path, j->line, i, m->role);
    if (calls && !json_is_null(calls) && json_array_size(calls) > 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s, line %lld: messages[%zu] has tool_calls, expected plain messages",
                        j->path, j->line, i);
    if (reasoning && !json_is_null(reasoning))
        DMS_TRY(read_key(j, i, "reasoning_content", &m->reasoning));
    return read_key(j, i, "content", &m->content);
}

static dms_status read_messages(dms_jsonl *j, const json_t *list)
{
    const size_t n = json_array_size(list);
    if (n == 0 || n > MAX_MESSAGES)
        return wrong(j, "\"messages\"", list, "an array of one message to 2^20");
    j->messages = calloc(n, sizeof(*j->messages));
    if (!j->messages)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for the %zu messages of line %lld", j->path,
                        n, j->line);
    j->n_messages = n;
    for (size_t i = 0; i < n; i++)
        DMS_TRY(read_message(j, i));
    return DMS_OK;
}

static dms_status parse(dms_jsonl *j, const char *line, size_t n)
{
    json_error_t error;
    j->object = json_loadb(line, n, JSON_ALLOW_NUL, &error);
    if (!j->object)
        return dms_fail(DMS_ERR_FORMAT, "%s, line %lld, column %d: %s", j->path, j->line,
                        error.column, error.text);
    return DMS_OK;
}

/* The line in hand as a document or a conversation. */
static dms_status read_document(dms_jsonl *j)
{
    const json_t *text = json_object_get(j->object, "text");
    const json_t *messages = json_object_get(j->object, "messages");
    if (!json_is_object(j->object))
        return wrong(j, "it", j->object, "an object with \"text\" or \"messages\"");
    if (!text == !messages)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s, line %lld: has %s of the keys \"text\" and \"messages\", expected one",
                        j->path, j->line, text ? "both" : "none");
    if (messages)
        return read_messages(j, messages);
    return json_is_string(text) ? DMS_OK : wrong(j, "\"text\"", text, "a string");
}

static bool is_blank(const char *line, size_t n)
{
    while (n > 0 && strchr(" \t\r", line[n - 1]) && line[n - 1])
        n--;
    return n == 0;
}

static dms_status next_value(dms_jsonl *j, bool *found)
{
    const char *line;
    size_t n;
    drop_line(j);
    do
        DMS_TRY(next_line(j, &line, &n));
    while (line && is_blank(line, n));
    *found = line != NULL;
    return line ? parse(j, line, n) : DMS_OK;
}

dms_status dms_jsonl_next(dms_jsonl *j, bool *found)
{
    DMS_TRY(next_value(j, found));
    return *found ? read_document(j) : DMS_OK;
}

dms_status dms_jsonl_next_object(dms_jsonl *j, const json_t **object)
{
    bool found;
    DMS_TRY(next_value(j, &found));
    if (found && !json_is_object(j->object))
        return wrong(j, "it", j->object, "an object");
    *object = found ? j->object : NULL;
    return DMS_OK;
}

long long dms_jsonl_line(const dms_jsonl *j)
{
    return j->line;
}

const char *dms_jsonl_text(const dms_jsonl *j, size_t *n)
{
    const json_t *text = json_object_get(j->object, "text");
    *n = json_string_length(text);
    return json_string_value(text);
}

const dms_message *dms_jsonl_messages(const dms_jsonl *j, size_t *n)
{
    *n = j->n_messages;
    return j->messages;
}
