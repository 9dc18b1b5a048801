/* Figures of lines and points with two axes, drawn as SVG into a page. */
#ifndef DMS_PLOT_H
#define DMS_PLOT_H

#include "eval/page.h"
#include "eval/scale.h"

typedef struct {
    double x, y;
    double error;     /* standard error of y, drawn as a bar to both sides; 0 or NaN: none */
    const char *note; /* tooltip of its marker; NULL: the numbers */
} dms_plot_point;

typedef struct {
    const char *name;             /* NULL: no label */
    const dms_plot_point *points; /* [n], in the order in which the line connects them */
    int64_t n;
    int style;     /* >= 0: colour, marker and dash; 0 to 9 differ in all of them */
    bool emphasis; /* a thick solid line, drawn over the others */
    bool solid;    /* without its style's dash */
    bool faint;    /* thin and pale: the raw values behind a mean */
    bool bare;     /* no line, markers only */
    bool plain;    /* no markers, line only */
} dms_plot_series;

typedef struct {
    const char *name; /* what is measured, and its unit */
    bool log;
    bool reversed;
    double from, to; /* values that the axis must include; both 0: none */
} dms_plot_axis;

typedef struct {
    const char *title; /* for those who hear the figure; not drawn */
    dms_plot_axis x, y;
    const dms_plot_series *series; /* [n] */
    int n_series;
    bool has_reference; /* a dotted horizontal line */
    double reference;
    const char *reference_name;
    int width, height; /* in units of which 12 are a line of text; 0: 580 x 360 */
} dms_plot;

/* Draws the figure. Each named series has one label beside the figure's right edge, with its marker
 * and dash (so the labels are the legend), tied to the series' rightmost point and moved apart so
 * that none covers another. A line of more points than the figure is wide shows the lowest and the
 * highest of those that fall on the same place. Points without a place on the axes
 * (dms_scale_takes) are missing: a line goes on behind them; *missing, may be NULL, counts them. A
 * reference off the scale, such as 0 on a log axis, is drawn at the edge with an arrow. Nothing to
 * draw: an empty frame that says so. DMS_ERR_NOMEM. */
dms_status dms_plot_draw(dms_html_page *p, const dms_plot *plot, int64_t *missing);

/* The class of a style's colour is "c" and this number, 0 to 9; 0 is of style 0 alone. */
int dms_plot_color(int style);
/* A marker of a style at (x, y); its size is about 2*radius. */
void dms_plot_marker(FILE *out, int style, double x, double y, double radius);
/* The dash of a style, as stroke-dasharray's value. */
const char *dms_plot_dash(int style);

#endif
