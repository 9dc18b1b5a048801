#include "checkpoints/inspect_view.h"

#include <stdint.h>
#include <string.h>

json_t *dms_view_at(const json_t *object, const char *key)
{
    return json_object_get(object, key);
}

long long dms_view_int(const json_t *object, const char *key)
{
    return json_integer_value(dms_view_at(object, key));
}

double dms_view_real(const json_t *object, const char *key)
{
    return json_number_value(dms_view_at(object, key));
}

bool dms_view_is(const json_t *object, const char *key, const char *text)
{
    const char *found = json_string_value(dms_view_at(object, key));
    return found && !strcmp(found, text);
}

/* One character of valid UTF-8, and how many bytes it has. */
static uint32_t character(const unsigned char *c, size_t *n)
{
    *n = *c < 0x80 ? 1 : *c < 0xe0 ? 2 : *c < 0xf0 ? 3 : 4;
    uint32_t code = *n == 1 ? *c : *c & (0x7fu >> *n);
    for (size_t i = 1; i < *n; i++)
        code = code << 6 | (c[i] & 0x3fu);
    return code;
}

int dms_view_text(FILE *out, const json_t *text)
{
    const char *c = json_string_value(text);
    const size_t length = json_string_length(text);
    int columns = 0;
    size_t n;
    for (size_t i = 0; c && i < length; i += n) {
        char shown[16];
        const uint32_t code = character((const unsigned char *)c + i, &n);
        const bool plain = code >= ' ' && code <= '~';
        columns += snprintf(shown, sizeof(shown), plain ? "%c" : "\\u%04X", (int)code);
        if (out)
            fputs(shown, out);
    }
    return columns;
}

void dms_view_string(FILE *out, const json_t *object, const char *key)
{
    dms_view_text(out, dms_view_at(object, key));
}

void dms_view_pad(FILE *out, int columns)
{
    fprintf(out, "%*s", columns > 0 ? columns : 0, "");
}

void dms_view_label(FILE *out, const char *label)
{
    fprintf(out, "%-*s", DMS_VIEW_MARGIN, label);
}

void dms_view_go_on(FILE *out)
{
    fputc('\n', out);
    dms_view_pad(out, DMS_VIEW_MARGIN);
}

const char *dms_view_size_text(char text[32], double bytes)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB", "PB", "EB"};
    int unit = 0;
    for (; bytes >= 999.5 && unit < 6; unit++)
        bytes /= 1000;
    const int decimals = !unit || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
    snprintf(text, 32, "%.*f %s", decimals, bytes, bytes == 1 && !unit ? "byte" : units[unit]);
    return text;
}

void dms_view_size(FILE *out, const json_t *object, const char *key)
{
    char text[32];
    fputs(dms_view_size_text(text, dms_view_real(object, key)), out);
}

const char *dms_view_count_text(char text[32], long long n)
{
    char digits[32];
    const int length = snprintf(digits, sizeof(digits), "%lld", n);
    int k = 0;
    for (int i = 0; i < length && k < 30; i++) {
        if (i && (length - i) % 3 == 0)
            text[k++] = ',';
        text[k++] = digits[i];
    }
    text[k] = 0;
    return text;
}

void dms_view_count(FILE *out, const json_t *object, const char *key)
{
    char text[32];
    fputs(dms_view_count_text(text, dms_view_int(object, key)), out);
}

const char *dms_view_plural(long long n)
{
    return n == 1 ? "" : "s";
}

int dms_view_shape(FILE *out, const json_t *shape)
{
    int columns = fprintf(out, "[");
    for (size_t i = 0; i < json_array_size(shape); i++)
        columns += fprintf(out, "%s%lld", i ? ", " : "",
                           (long long)json_integer_value(json_array_get(shape, i)));
    return columns + fprintf(out, "]");
}
