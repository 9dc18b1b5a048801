#include "data/normalizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "data/keys.h"

static dms_status read_one(dms_normalizer *out, const json_t *json, const char *origin)
{
    const char *type;
    if (!json || json_is_null(json))
        return DMS_OK;
    if (!json_is_object(json))
        return dms_fail(DMS_ERR_FORMAT, "%s: normalizer is %s, expected an object or null", origin,
                        dms_key_type(json));
    DMS_TRY(dms_key_text(&type, json, "type", origin));
    if (!type || strcmp(type, "NFC") != 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: normalizer.type is \"%.64s\"; supported: NFC, "
                        "Sequence",
                        origin, type ? type : "missing");
    out->nfc = true;
    return DMS_OK;
}

dms_status dms_normalizer_read(dms_normalizer *out, const json_t *json, const char *origin)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    *out = (dms_normalizer){0};
    if (!type || strcmp(type, "Sequence") != 0)
        return read_one(out, json, origin);
    const json_t *list = json_object_get(json, "normalizers");
    if (!json_is_array(list))
        return dms_fail(DMS_ERR_FORMAT, "%s: normalizer.normalizers is %s, expected an array",
                        origin, dms_key_type(list));
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) DMS_TRY(read_one(out, entry, origin));
    return DMS_OK;
}

static dms_status apply_nfc(dms_text *out, const char *text, size_t n)
{
    utf8proc_uint8_t *composed = NULL;
    if (n > (size_t)1 << 30)
        return dms_fail(DMS_ERR_ARG,
                        "%zu bytes of text without an ASCII character, at most 1 GiB "
                        "can be normalised",
                        n);
    const utf8proc_ssize_t length =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &composed,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0)
        return dms_fail(DMS_ERR_NOMEM, "Unicode normalisation: %s", utf8proc_errmsg(length));
    const dms_status status = dms_text_append(out, (const char *)composed, (size_t)length);
    free(composed);
    return status;
}

static size_t ascii_length(const char *text, size_t n)
{
    size_t at = 0;
    for (uint64_t word; n - at >= sizeof(word); at += sizeof(word)) {
        memcpy(&word, text + at, sizeof(word));
        if (word & 0x8080808080808080u)
            break;
    }
    while (at < n && (uint8_t)text[at] < 0x80)
        at++;
    return at;
}

dms_status dms_normalizer_apply(const dms_normalizer *z, dms_text *out, const char *text, size_t n)
{
    if (!z->nfc)
        return dms_text_append(out, text, n);
    while (n > 0) {
        /* ASCII is in NFC, and an ASCII character composes with nothing before it, only with
         * marks after it: so each run of others is normalised with the one character before. */
        const size_t ascii = ascii_length(text, n);
        const size_t kept = ascii < n && ascii > 0 ? ascii - 1 : ascii;
        DMS_TRY(dms_text_append(out, text, kept));
        size_t end = ascii;
        while (end < n && (uint8_t)text[end] >= 0x80)
            end++;
        if (end > ascii)
            DMS_TRY(apply_nfc(out, text + kept, end - kept));
        text += end;
        n -= end;
    }
    return DMS_OK;
}
