/* Keys of a view and how they are written; of inspect_text.c and inspect_tables.c only. */
#ifndef DMS_INSPECT_VIEW_H
#define DMS_INSPECT_VIEW_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/* Columns of the labels at the left, and of a line. */
enum { DMS_VIEW_MARGIN = 16, DMS_VIEW_WIDTH = 100 };

/* A key's value; NULL, 0 or false where it is absent or of another type. */
json_t *dms_view_at(const json_t *object, const char *key);
long long dms_view_int(const json_t *object, const char *key);
double dms_view_real(const json_t *object, const char *key);
bool dms_view_is(const json_t *object, const char *key, const char *text);

/* A string in printable ASCII, all else as \uXXXX, to `out` (NULL: nowhere); the columns it takes.
 */
int dms_view_text(FILE *out, const json_t *text);
void dms_view_string(FILE *out, const json_t *object, const char *key);
/* [576, 1536]; the columns it takes. */
int dms_view_shape(FILE *out, const json_t *shape);

/* Spaces; none for a number below 1. */
void dms_view_pad(FILE *out, int columns);
/* The label at the left, and a new line that stands under what follows it. */
void dms_view_label(FILE *out, const char *label);
void dms_view_go_on(FILE *out);

/* 97.9 MB: decimal units, three digits. Both return `text`. */
const char *dms_view_size_text(char text[32], double bytes);
void dms_view_size(FILE *out, const json_t *object, const char *key);
/* 134,515,008 */
const char *dms_view_count_text(char text[32], long long n);
void dms_view_count(FILE *out, const json_t *object, const char *key);
/* "" for 1, else "s". */
const char *dms_view_plural(long long n);

/* The two views that are tables. */
void dms_view_families(FILE *out, const json_t *view);
void dms_view_diff(FILE *out, const json_t *view);

#endif
