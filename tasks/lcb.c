#include "tasks/lcb.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <zlib.h>

#include "data/keys.h"
#include "tasks/text.h"

enum { MAX_UNPACKED = 256 << 20 };

/* 0 to 63, or -1. */
static int base64_value(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

static dms_status read_base64(dms_text *out, const char *text, const char *where)
{
    uint32_t bits = 0;
    int n = 0;
    for (; *text && *text != '='; text++) {
        const int value = base64_value(*text);
        if (value < 0)
            return dms_fail(DMS_ERR_FORMAT, "%s: is neither JSON nor base64", where);
        bits = bits << 6 | (uint32_t)value;
        n += 6;
        if (n < 8)
            continue;
        n -= 8;
        const char byte = (char)(bits >> n & 0xFF);
        DMS_TRY(dms_text_append(out, &byte, 1));
    }
    return DMS_OK;
}

static dms_status inflate_all(dms_text *out, z_stream *z, const char *where)
{
    int code = Z_OK;
    while (code != Z_STREAM_END) {
        DMS_TRY(dms_text_reserve(out, 1 << 16));
        const size_t room = out->capacity - out->n;
        z->next_out = (Bytef *)out->bytes + out->n;
        z->avail_out = room > UINT32_MAX ? UINT32_MAX : (uInt)room;
        const uInt before = z->avail_out;
        code = inflate(z, Z_NO_FLUSH);
        out->n += before - z->avail_out;
        if ((code != Z_OK && code != Z_STREAM_END) || (code == Z_OK && before == z->avail_out))
            return dms_fail(DMS_ERR_FORMAT, "%s: the zlib stream is damaged or ends early", where);
        if (out->n > MAX_UNPACKED)
            return dms_fail(DMS_ERR_FORMAT, "%s: unpacks to more than %d MiB", where,
                            MAX_UNPACKED >> 20);
    }
    return DMS_OK;
}

static dms_status unpack(dms_text *out, const dms_text *packed, const char *where)
{
    z_stream z = {.next_in = (Bytef *)packed->bytes, .avail_in = (uInt)packed->n};
    if (packed->n > UINT32_MAX || inflateInit(&z) != Z_OK)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory to unpack it", where);
    const dms_status status = inflate_all(out, &z, where);
    inflateEnd(&z);
    return status;
}

/* The text of a pickle of one str: protocol, frame, one of the three opcodes for Unicode with their
 * length (little-endian), memo, stop; bytes = NULL where it is something else. */
static dms_span pickled(dms_span s)
{
    static const struct {
        char opcode;
        size_t width;
    } lengths[] = {{'X', 4}, {'\x8C', 1}, {'\x8D', 8}};
    if (s.n > 2 && s.bytes[0] == '\x80') /* PROTO */
        s = (dms_span){s.bytes + 2, s.n - 2};
    if (s.n > 9 && s.bytes[0] == '\x95') /* FRAME */
        s = (dms_span){s.bytes + 9, s.n - 9};
    for (size_t i = 0; i < 3; i++) {
        const size_t width = lengths[i].width;
        if (s.n < 1 + width || s.bytes[0] != lengths[i].opcode)
            continue;
        uint64_t n = 0;
        for (size_t b = width; b > 0; b--)
            n = n << 8 | (uint8_t)s.bytes[b];
        if (n <= s.n - 1 - width)
            return (dms_span){s.bytes + 1 + width, (size_t)n};
    }
    return (dms_span){0};
}

static dms_status append(json_t *tests, const json_t *list, const char *where)
{
    const size_t n = json_array_size(list);
    if (!json_is_array(list))
        return dms_fail(DMS_ERR_FORMAT, "%s: is %s, expected an array of tests", where,
                        dms_key_type(list));
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(list, i);
        json_t *input = json_object_get(one, "input"), *output = json_object_get(one, "output");
        if (!json_is_string(input) || !json_is_string(output))
            return dms_fail(DMS_ERR_FORMAT, "%s: test %zu: \"%s\" is %s, expected a string", where,
                            i, json_is_string(input) ? "output" : "input",
                            dms_key_type(json_is_string(input) ? output : input));
        if (json_array_append_new(tests, json_pack("{s:O, s:O}", "input", input, "output", output)))
            return dms_fail(DMS_ERR_NOMEM, "%s: no memory for %zu tests", where, n);
    }
    return DMS_OK;
}

static dms_status append_packed(json_t *tests, const char *text, const char *where)
{
    dms_status status = DMS_OK;
    dms_text packed = {0}, unpacked = {0};
    json_t *list = NULL;
    DMS_TRY_OR(end, read_base64(&packed, text, where));
    DMS_TRY_OR(end, unpack(&unpacked, &packed, where));
    const dms_span json = pickled((dms_span){unpacked.bytes, unpacked.n});
    if (!json.bytes) {
        status = dms_fail(DMS_ERR_FORMAT, "%s: is no pickle of one text", where);
        goto end;
    }
    json_error_t error;
    list = json_loadb(json.bytes, json.n, 0, &error);
    if (!list) {
        status = dms_fail(DMS_ERR_FORMAT, "%s: %s", where, error.text);
        goto end;
    }
    DMS_TRY_OR(end, append(tests, list, where));
end:
    json_decref(list);
    dms_text_free(&packed);
    dms_text_free(&unpacked);
    return status;
}

dms_status dms_lcb_tests(json_t *tests, const char *text, const char *where)
{
    json_t *list = json_loads(text, 0, NULL);
    if (!list)
        return append_packed(tests, text, where);
    const dms_status status = append(tests, list, where);
    json_decref(list);
    return status;
}
