#include "eval/page.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"
#include "data/utf8.h"
#include "eval/number.h"
#include "eval/page_style.h"

enum { MOST_COLUMNS = 64 };

struct dms_html_page {
    FILE *out; /* into bytes */
    char *bytes;
    size_t n;
    bool row_open;
    int columns, column;
    bool is_text[MOST_COLUMNS];
};

/* ---- the page ------------------------------------------------------------------------------- */

dms_status dms_page_open(dms_html_page **out, const char *title, const char *subtitle)
{
    dms_html_page *p = calloc(1, sizeof(*p));
    if (p)
        p->out = open_memstream(&p->bytes, &p->n);
    if (!p || !p->out) {
        free(p);
        return dms_fail(DMS_ERR_NOMEM, "no memory for a report");
    }
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
          p->out);
    dms_page_text(p, title);
    fprintf(p->out, "</title>\n<style>\n%s%s%s%s</style>\n</head>\n<body>\n<main>\n<h1>",
            dms_page_theme, dms_page_text_style, dms_page_figure_style, dms_page_table_style);
    dms_page_text(p, title);
    fputs("</h1>\n", p->out);
    if (subtitle)
        dms_page_paragraph(p, "sub", "%s", subtitle);
    *out = p;
    return DMS_OK;
}

void dms_page_close(dms_html_page *p)
{
    if (!p)
        return;
    if (p->out)
        fclose(p->out);
    free(p->bytes);
    free(p);
}

dms_status dms_page_write(dms_html_page *p, const char *path)
{
    fputs("</main>\n</body>\n</html>\n", p->out);
    const bool failed = ferror(p->out) != 0;
    const bool unfinished = fclose(p->out) != 0;
    p->out = NULL;
    if (failed || unfinished)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the report %s", path);
    return dms_file_write(path, p->bytes, p->n);
}

FILE *dms_page_out(dms_html_page *p)
{
    return p->out;
}

/* ---- text ----------------------------------------------------------------------------------- */

/* Controls; and marks, embeddings, overrides and isolates that turn the direction of what follows
 * them (Unicode 15, annex 9, section 2). */
static bool is_unwelcome(int32_t code)
{
    return (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7f && code < 0xa0) ||
           code == 0x200e || code == 0x200f || code == 0x61c ||
           (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) ||
           (code & 0xfffe) == 0xfffe;
}

static void put_code(FILE *out, const char *at, int k)
{
    switch (*at) {
    case '<':
        fputs("&lt;", out);
        return;
    case '>':
        fputs("&gt;", out);
        return;
    case '&':
        fputs("&amp;", out);
        return;
    case '"':
        fputs("&quot;", out);
        return;
    case '\'':
        fputs("&#39;", out);
        return;
    default:
        fwrite(at, 1, (size_t)k, out);
    }
}

static void put_text(dms_html_page *p, const char *text, size_t n, int64_t most)
{
    for (size_t i = 0; i < n;) {
        const int k = dms_utf8_step(text + i, n - i);
        const size_t length = k > 0 ? (size_t)k : k < 0 ? (size_t)-k : n - i;
        int ignored;
        if (most-- == 1 && i + length < n) {
            fputs("…", p->out);
            return;
        }
        if (k <= 0 || is_unwelcome(dms_utf8_code(text + i, &ignored)))
            fputs("\xef\xbf\xbd", p->out);
        else
            put_code(p->out, text + i, k);
        i += length;
    }
}

void dms_page_text_n(dms_html_page *p, const char *text, size_t n)
{
    put_text(p, text, n, INT64_MAX);
}

void dms_page_text(dms_html_page *p, const char *text)
{
    if (text)
        put_text(p, text, strlen(text), INT64_MAX);
}

void dms_page_text_cut(dms_html_page *p, const char *text, int most)
{
    if (text)
        put_text(p, text, strlen(text), most);
}

static void put_format(dms_html_page *p, const char *format, va_list values)
{
    char *text = NULL;
    if (vasprintf(&text, format, values) < 0)
        return;
    dms_page_text(p, text);
    free(text);
}

void dms_page_heading(dms_html_page *p, const char *text)
{
    fputs("<h2>", p->out);
    dms_page_text(p, text);
    fputs("</h2>\n", p->out);
}

void dms_page_subheading(dms_html_page *p, const char *text)
{
    fputs("<h3>", p->out);
    dms_page_text(p, text);
    fputs("</h3>\n", p->out);
}

void dms_page_paragraph(dms_html_page *p, const char *class, const char *format, ...)
{
    va_list values;
    fprintf(p->out, "<p class=\"%s\">", class ? class : "plain");
    va_start(values, format);
    put_format(p, format, values);
    va_end(values);
    fputs("</p>\n", p->out);
}

void dms_page_details_begin(dms_html_page *p, const char *summary)
{
    fputs("<details>\n<summary>", p->out);
    dms_page_text(p, summary);
    fputs("</summary>\n", p->out);
}

void dms_page_details_end(dms_html_page *p)
{
    fputs("</details>\n", p->out);
}

void dms_page_verbatim(dms_html_page *p, const char *name, const char *text)
{
    if (!text)
        return;
    if (name)
        dms_page_subheading(p, name);
    fputs("<pre class=\"wrap\">", p->out);
    dms_page_text(p, text);
    fputs("</pre>\n", p->out);
}

/* ---- tiles, figures ------------------------------------------------------------------------- */

void dms_page_tiles_begin(dms_html_page *p)
{
    fputs("<div class=\"tiles\">\n", p->out);
}

void dms_page_tile(dms_html_page *p, const char *value, const char *label, const char *note)
{
    fputs("<div class=\"tile\"><b>", p->out);
    dms_page_text(p, value);
    fputs("</b><span>", p->out);
    dms_page_text(p, label);
    fputs("</span>", p->out);
    if (note) {
        fputs("<span>", p->out);
        dms_page_text(p, note);
        fputs("</span>", p->out);
    }
    fputs("</div>\n", p->out);
}

void dms_page_tiles_end(dms_html_page *p)
{
    fputs("</div>\n", p->out);
}

void dms_page_figures_begin(dms_html_page *p)
{
    fputs("<div class=\"figures\">\n", p->out);
}

void dms_page_figures_end(dms_html_page *p)
{
    fputs("</div>\n", p->out);
}

void dms_page_figure_begin(dms_html_page *p, bool wide)
{
    fputs(wide ? "<figure class=\"wide\">\n" : "<figure>\n", p->out);
}

void dms_page_figure_end(dms_html_page *p, const char *format, ...)
{
    va_list values;
    fputs("<figcaption>", p->out);
    va_start(values, format);
    put_format(p, format, values);
    va_end(values);
    fputs("</figcaption>\n</figure>\n", p->out);
}

/* ---- tables --------------------------------------------------------------------------------- */

void dms_page_table_begin(dms_html_page *p, const char *const *heads, int n)
{
    fputs("<div class=\"scroll\"><table>\n<thead><tr>", p->out);
    p->row_open = false;
    p->columns = n < MOST_COLUMNS ? n : MOST_COLUMNS;
    for (int i = 0; i < n; i++) {
        const bool is_text = heads[i][0] == '<';
        if (i < MOST_COLUMNS)
            p->is_text[i] = is_text;
        fputs(is_text ? "<th class=\"text\">" : "<th>", p->out);
        dms_page_text(p, heads[i] + is_text);
        fputs("</th>", p->out);
    }
    fputs("</tr></thead>\n<tbody>\n", p->out);
}

void dms_page_row(dms_html_page *p)
{
    fputs(p->row_open ? "</tr>\n<tr>" : "<tr>", p->out);
    p->row_open = true;
    p->column = 0;
}

static bool next_is_text(dms_html_page *p)
{
    const int column = p->column++;
    return column < p->columns && p->is_text[column];
}

void dms_page_cell(dms_html_page *p, const char *text)
{
    fputs(next_is_text(p) ? "<td class=\"text\">" : "<td>", p->out);
    dms_page_text(p, text);
    fputs("</td>", p->out);
}

void dms_page_cell_number(dms_html_page *p, const char *text, double exact)
{
    char full[DMS_NUMBER_SIZE];
    if (isnan(exact)) {
        next_is_text(p);
        fputs("<td title=\"no value\">–</td>", p->out);
        return;
    }
    dms_number_exact(full, exact);
    fprintf(p->out, "<td%s data-value=\"%s\" title=\"%s\">",
            next_is_text(p) ? " class=\"text\"" : "", full, full);
    dms_page_text(p, text);
    fputs("</td>", p->out);
}

void dms_page_cell_value(dms_html_page *p, double exact)
{
    char text[DMS_NUMBER_SIZE];
    dms_page_cell_number(p, dms_number_short(text, exact, 4), exact);
}

void dms_page_cell_measure(dms_html_page *p, double value, double error)
{
    char text[DMS_NUMBER_SIZE], full[DMS_NUMBER_SIZE], deviation[DMS_NUMBER_SIZE];
    if (isnan(value) || !(error > 0)) {
        dms_page_cell_value(p, value);
        return;
    }
    dms_number_exact(full, value);
    dms_number_exact(deviation, error);
    next_is_text(p);
    fprintf(p->out, "<td data-value=\"%s\" data-error=\"%s\" title=\"%s ± %s\">%s</td>", full,
            deviation, full, deviation, dms_number_measure(text, value, error));
}

void dms_page_table_end(dms_html_page *p)
{
    fputs(p->row_open ? "</tr>\n</tbody>\n</table></div>\n" : "</tbody>\n</table></div>\n", p->out);
}

/* ---- origin --------------------------------------------------------------------------------- */

void dms_page_origin(dms_html_page *p, const dms_origin *origin)
{
    const struct {
        const char *name, *value;
    } all[] = {
        {"machine", origin->machine}, {"date", origin->date}, {"dms.c version", origin->version}};
    static const char *const heads[] = {"<what", "<value"};
    bool any = false;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        any = any || all[i].value;
    dms_page_heading(p, "How this was made");
    dms_page_verbatim(p, origin->command ? "Command" : NULL, origin->command);
    if (any)
        dms_page_table_begin(p, heads, 2);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (!all[i].value)
            continue;
        dms_page_row(p);
        dms_page_cell(p, all[i].name);
        dms_page_cell(p, all[i].value);
    }
    if (any)
        dms_page_table_end(p);
    dms_page_verbatim(p, "Resolved configuration", origin->config);
}
