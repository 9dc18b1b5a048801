/* An HTML page in one file: no script, nothing from elsewhere, light and dark by the reader's
 * choice.
 */
#ifndef DMS_PAGE_H
#define DMS_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "kernels/status.h"

typedef struct dms_html_page dms_html_page;

/* Begins a page in memory: head, style, title; subtitle may be NULL. Texts of all functions here
 * are escaped: < > & and quotes as entities; bytes that are not UTF-8, control characters other
 * than tab and line break, and characters that turn the writing direction become U+FFFD. Want of
 * memory is kept and told by dms_page_write. DMS_ERR_NOMEM. */
dms_status dms_page_open(dms_html_page **out, const char *title, const char *subtitle);
/* NULL is legal. */
void dms_page_close(dms_html_page *p);
/* Ends the page and writes it as PATH.tmp, renamed when complete. Once a page. DMS_ERR_IO,
 * DMS_ERR_NOMEM. */
dms_status dms_page_write(dms_html_page *p, const char *path);

/* For markup, which the caller answers for. */
FILE *dms_page_out(dms_html_page *p);
/* Escaped text, fit for content and for attributes; NULL is nothing. */
void dms_page_text(dms_html_page *p, const char *text);
void dms_page_text_n(dms_html_page *p, const char *text, size_t n);
/* At most `most` code points, the last one an ellipsis where text was cut. */
void dms_page_text_cut(dms_html_page *p, const char *text, int most);

void dms_page_heading(dms_html_page *p, const char *text);
void dms_page_subheading(dms_html_page *p, const char *text);
/* class: a class of the page's style, or NULL. */
void dms_page_paragraph(dms_html_page *p, const char *class, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Folds what lies between the two. */
void dms_page_details_begin(dms_html_page *p, const char *summary);
void dms_page_details_end(dms_html_page *p);
/* Text as it stands, line by line, under a name that may be NULL; NULL text: nothing. */
void dms_page_verbatim(dms_html_page *p, const char *name, const char *text);

/* Big numbers side by side. note: small print, may be NULL. */
void dms_page_tiles_begin(dms_html_page *p);
void dms_page_tile(dms_html_page *p, const char *value, const char *label, const char *note);
void dms_page_tiles_end(dms_html_page *p);

/* Figures side by side where there is room; one figure with its caption; a wide one has a row of
 * its own. */
void dms_page_figures_begin(dms_html_page *p);
void dms_page_figures_end(dms_html_page *p);
void dms_page_figure_begin(dms_html_page *p, bool wide);
/* Text of the caption, escaped. */
void dms_page_figure_end(dms_html_page *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A table: heads [n]; a head that begins with '<' is of a column of text, set left, without that
 * sign. Then rows of n cells. */
void dms_page_table_begin(dms_html_page *p, const char *const *heads, int n);
void dms_page_row(dms_html_page *p);
void dms_page_cell(dms_html_page *p, const char *text);
/* `text` is what is shown; `exact` goes in full into its data-value, and into its tooltip. */
void dms_page_cell_number(dms_html_page *p, const char *text, double exact);
/* Rounded to 4 digits (dms_number_short). NaN, which stands for a missing value, is a dash. */
void dms_page_cell_value(dms_html_page *p, double exact);
/* "0.1539 ± 0.0021", both in full as data-value and data-error. */
void dms_page_cell_measure(dms_html_page *p, double value, double error);
void dms_page_table_end(dms_html_page *p);

/* Where a report comes from; what is NULL is left out. */
typedef struct {
    const char *command, *machine, *date, *version;
    const char *config; /* the resolved configuration, whole */
} dms_origin;
void dms_page_origin(dms_html_page *p, const dms_origin *origin);

#endif
