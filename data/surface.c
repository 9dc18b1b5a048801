#include "data/surface.h"

#include <stdint.h>
#include <string.h>

#include "data/bytelevel.h"
#include "data/keys.h"
#include "data/utf8.h"

/* The steps of a Sequence, in the order they must have; text is fused after the first two. */
typedef enum { REPLACE, BYTE_FALLBACK, FUSE, STRIP } step_kind;
static const char *const names[] = {"Replace", "ByteFallback", "Fuse", "Strip"};

static dms_status read_replace(dms_surface *s, const json_t *json, const char *origin)
{
    const json_t *from = json_object_get(json_object_get(json, "pattern"), "String");
    const json_t *to = json_object_get(json, "content");
    if (!json_string_length(from) || !json_is_string(to) ||
        json_string_length(to) > json_string_length(from))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: decoder Replace: expected a pattern.String and a content that is not "
                        "longer",
                        origin);
    s->from = json_string_value(from);
    s->n_from = json_string_length(from);
    s->to = json_string_value(to);
    s->n_to = json_string_length(to);
    return DMS_OK;
}

static dms_status read_strip(dms_surface *s, const json_t *json, const char *origin)
{
    const json_t *content = json_object_get(json, "content");
    const json_int_t start = json_integer_value(json_object_get(json, "start"));
    const json_int_t stop = json_integer_value(json_object_get(json, "stop"));
    if (json_string_length(content) != 1 || start < 0 || start > 1 || stop != 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: decoder Strip: supported: content of one character, start 0 or 1, "
                        "stop 0",
                        origin);
    s->strip = start ? *json_string_value(content) : 0;
    return DMS_OK;
}

/* `next`: the first step that may still come. */
static dms_status read_step(dms_surface *s, int *next, const json_t *json, const char *origin)
{
    const char *type;
    DMS_TRY(dms_key_text(&type, json, "type", origin));
    int kind = *next;
    while (kind <= STRIP && (!type || strcmp(type, names[kind]) != 0))
        kind++;
    if (kind > STRIP || (kind == STRIP && *next != STRIP))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: decoder has \"%.64s\" %s; supported: ByteLevel, or Replace, "
                        "ByteFallback, Fuse and Strip in this order",
                        origin, type ? type : "missing",
                        kind == STRIP ? "without Fuse before it" : "here");
    *next = kind + 1;
    if (kind == REPLACE)
        return read_replace(s, json, origin);
    s->byte_fallback |= kind == BYTE_FALLBACK;
    return kind == STRIP ? read_strip(s, json, origin) : DMS_OK;
}

dms_status dms_surface_read(dms_surface *out, const json_t *json, const char *origin)
{
    dms_surface s = {0};
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *list = json_object_get(json, "decoders");
    int next = REPLACE;
    if (type && !strcmp(type, "ByteLevel")) {
        s.byte_level = true;
    } else if (type && !strcmp(type, "Sequence") && json_is_array(list)) {
        size_t i;
        json_t *entry;
        json_array_foreach(list, i, entry) DMS_TRY(read_step(&s, &next, entry, origin));
    } else {
        /* HF tokenizers parts the tokens by spaces then, which no model's text has. */
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: decoder.type is \"%.64s\"; supported: ByteLevel, or a Sequence of "
                        "Replace, ByteFallback, Fuse and Strip",
                        origin, type ? type : "missing");
    }
    *out = s;
    return DMS_OK;
}

/* The bytes that the characters stand for; where one stands for none, all stay as they are. */
static size_t unmap(char *out, const char *text, size_t n)
{
    size_t used = 0;
    for (size_t at = 0; at < n;) {
        int length;
        const int byte = dms_bytelevel_byte(dms_utf8_code(text + at, &length));
        if (byte < 0) {
            memcpy(out, text, n);
            return n;
        }
        out[used++] = (char)byte;
        at += (size_t)length;
    }
    return used;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte of "<0x0A>", or -1. */
static int fallback_byte(const char *text, size_t n)
{
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    const int high = hex_value(text[3]), low = hex_value(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static size_t replace(const dms_surface *s, char *out, const char *text, size_t n)
{
    size_t used = 0;
    for (size_t at = 0; at < n;) {
        const bool found = s->from && n - at >= s->n_from && !memcmp(text + at, s->from, s->n_from);
        if (found)
            memcpy(out + used, s->to, s->n_to);
        else
            out[used] = text[at];
        used += found ? s->n_to : 1;
        at += found ? s->n_from : 1;
    }
    return used;
}

size_t dms_surface_of(const dms_surface *s, char *out, const char *text, size_t n)
{
    if (s->byte_level)
        return unmap(out, text, n);
    const size_t used = replace(s, out, text, n);
    const int byte = s->byte_fallback ? fallback_byte(out, used) : -1;
    if (byte < 0)
        return used;
    out[0] = (char)byte;
    return 1;
}
