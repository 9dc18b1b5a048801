#include "eval/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/number.h"

enum { LABEL_LETTERS = 22, LABEL_GAP = 17 };

typedef struct {
    double end;   /* y of the curve's rightmost point */
    double end_x; /* and x; NaN: no point to tie the label to */
    double at;    /* y of the label */
    int series;   /* -1: the reference */
} label;

typedef struct {
    dms_html_page *page;
    FILE *out;
    const dms_plot *plot;
    dms_scale x, y;
    double width, height, left, right, top, bottom; /* of the figure; of its frame */
    bool is_empty;
    label *labels;
    int n_labels;
} figure;

/* ---- ranges --------------------------------------------------------------------------------- */

typedef struct {
    double low, high;
} range;

static void stretch(range *r, double x, bool log)
{
    if (!dms_scale_takes(x, log))
        return;
    r->low = fmin(r->low, x);
    r->high = fmax(r->high, x);
}

static bool is_shown(const dms_plot *plot, const dms_plot_point *q)
{
    return dms_scale_takes(q->x, plot->x.log) && dms_scale_takes(q->y, plot->y.log);
}

static void include(range *r, const dms_plot_axis *axis)
{
    if (axis->from == 0 && axis->to == 0)
        return;
    stretch(r, axis->from, axis->log);
    stretch(r, axis->to, axis->log);
}

/* On a log axis a reference far from all points would flatten them: it stays off the scale. */
static bool is_near(const dms_plot *plot, const range *y)
{
    return !plot->y.log || (plot->reference >= y->low / 4 && plot->reference <= y->high * 4);
}

static int64_t measure(figure *f)
{
    range x = {INFINITY, -INFINITY}, y = x;
    int64_t missing = 0;
    for (int i = 0; i < f->plot->n_series; i++)
        for (int64_t k = 0; k < f->plot->series[i].n; k++) {
            const dms_plot_point *q = &f->plot->series[i].points[k];
            if (!is_shown(f->plot, q)) {
                missing++;
                continue;
            }
            stretch(&x, q->x, f->plot->x.log);
            stretch(&y, q->y, f->plot->y.log);
            /* On a log axis a bar that reaches far down would flatten all curves. */
            if (dms_scale_takes(q->error, false) && (!f->plot->y.log || q->error < q->y / 2)) {
                stretch(&y, q->y - q->error, f->plot->y.log);
                stretch(&y, q->y + q->error, f->plot->y.log);
            }
        }
    f->is_empty = !(x.low <= x.high);
    if (f->plot->has_reference && !f->is_empty && is_near(f->plot, &y))
        stretch(&y, f->plot->reference, f->plot->y.log);
    include(&x, &f->plot->x);
    include(&y, &f->plot->y);
    f->x = dms_scale_fit(x.low, x.high, f->plot->x.log);
    f->y = dms_scale_fit(y.low, y.high, f->plot->y.log);
    f->x.reversed = f->plot->x.reversed;
    f->y.reversed = f->plot->y.reversed;
    return missing;
}

static double x_of(const figure *f, double x)
{
    return f->left + dms_scale_place(&f->x, x) * (f->right - f->left);
}

static double y_of(const figure *f, double y)
{
    return f->bottom - dms_scale_place(&f->y, y) * (f->bottom - f->top);
}

static bool has_place(const figure *f, double y)
{
    const double place = dms_scale_place(&f->y, y);
    return place >= 0 && place <= 1;
}

/* ---- labels --------------------------------------------------------------------------------- */

static void add_label(figure *f, int series, double x, double y)
{
    f->labels[f->n_labels++] = (label){.end = y, .end_x = x, .at = y, .series = series};
}

/* The point of a series that lies farthest to the right, -1 for none. */
static int64_t rightmost(const figure *f, const dms_plot_series *s)
{
    int64_t at = -1;
    for (int64_t i = 0; i < s->n; i++)
        if (is_shown(f->plot, &s->points[i]) &&
            (at < 0 || x_of(f, s->points[i].x) >= x_of(f, s->points[at].x)))
            at = i;
    return at;
}

static void collect_labels(figure *f)
{
    for (int i = 0; i < f->plot->n_series; i++) {
        const dms_plot_series *s = &f->plot->series[i];
        const int64_t at = s->name ? rightmost(f, s) : -1;
        if (at >= 0)
            add_label(f, i, x_of(f, s->points[at].x), y_of(f, s->points[at].y));
        else if (s->name)
            add_label(f, i, NAN, f->bottom);
    }
    if (!f->plot->has_reference || f->is_empty)
        return;
    double y = y_of(f, f->plot->reference);
    y = isnan(y) ? f->bottom : fmin(fmax(y, f->top), f->bottom);
    add_label(f, -1, NAN, y);
}

static int by_end(const void *a, const void *b)
{
    const label *x = a, *y = b;
    const int order = (x->end > y->end) - (x->end < y->end);
    return order ? order : (x->series > y->series) - (x->series < y->series);
}

/* Least movement that keeps the order and a gap: labels that touch form a block, which sits where
 * its members' ends are on average. */
static void spread(figure *f)
{
    const int n = f->n_labels;
    qsort(f->labels, (size_t)n, sizeof(*f->labels), by_end);
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0, k; i < n; i = k) {
            double sum = f->labels[i].end;
            for (k = i + 1; k < n && f->labels[k].at < f->labels[k - 1].at + LABEL_GAP + 0.01; k++)
                sum += f->labels[k].end;
            const double first = sum / (k - i) - LABEL_GAP * (k - i - 1) / 2.0;
            for (int j = i; j < k && k > i + 1; j++) {
                const double to = first + LABEL_GAP * (j - i);
                moved = moved || fabs(to - f->labels[j].at) > 0.1;
                f->labels[j].at = to;
            }
        }
    }
    for (int i = 0; i < n; i++) { /* the frame's edges */
        const double least = i ? f->labels[i - 1].at + LABEL_GAP : f->top + 4;
        f->labels[i].at = fmax(f->labels[i].at, least);
    }
    for (int i = n - 1; i >= 0; i--) {
        const double most = i < n - 1 ? f->labels[i + 1].at - LABEL_GAP : f->bottom;
        f->labels[i].at = fmin(f->labels[i].at, most);
    }
}

static const char *dash_of(const dms_plot_series *s)
{
    return s->emphasis || s->solid || s->faint ? "none" : dms_plot_dash(s->style);
}

static void draw_label(const figure *f, const label *l)
{
    const dms_plot_series *s = l->series >= 0 ? &f->plot->series[l->series] : NULL;
    const double x = f->right + 24;
    const double from = isnan(l->end_x) ? f->right : l->end_x + 5;
    char number[DMS_NUMBER_SIZE];
    if (!isnan(l->end_x) || !s)
        fprintf(f->out, "<path class=\"lead\" d=\"M%.1f %.1fL%.1f %.1fL%.1f %.1f\"%s/>\n", from,
                l->end, fmax(f->right + 4, from), l->end, x - 3, l->at,
                from < f->right - 4 ? " stroke-dasharray=\"1 3\"" : "");
    fputs("<g>", f->out);
    if (s) {
        if (!s->bare)
            fprintf(f->out,
                    "<path class=\"line c%d%s\" stroke-dasharray=\"%s\" d=\"M%.1f %.1fh24\"/>",
                    dms_plot_color(s->style), s->emphasis ? " emphasis" : "", dash_of(s), x, l->at);
        if (!s->plain)
            dms_plot_marker(f->out, s->style, x + 12, l->at, s->emphasis ? 4.6 : 3.9);
    } else {
        fprintf(f->out, "<path class=\"ref\" d=\"M%.1f %.1fh24\"/>", x, l->at);
    }
    fprintf(f->out, "<text class=\"name%s\" x=\"%.1f\" y=\"%.1f\">",
            s && s->emphasis ? " strong" : "", x + 30, l->at + 4.2);
    dms_page_text_cut(f->page, s ? s->name : f->plot->reference_name, LABEL_LETTERS);
    if (!s) {
        fprintf(f->out, " %s", dms_number_short(number, f->plot->reference, 3));
        if (!has_place(f, f->plot->reference))
            fputs(f->plot->reference > f->y.low ? " ↑" : " ↓", f->out);
    }
    fputs("<title>", f->out);
    dms_page_text(f->page, s ? s->name : f->plot->reference_name);
    fputs("</title></text></g>\n", f->out);
}

/* ---- axes ----------------------------------------------------------------------------------- */

/* Letters that a text of ticks or names takes, at most. */
static int letters(const char *text)
{
    int n = 0;
    for (; text && *text; text++)
        n += (*text & 0xc0) != 0x80;
    return n;
}

static int widest_tick(const dms_scale *s, int wanted)
{
    double ticks[DMS_SCALE_TICKS];
    char text[DMS_NUMBER_SIZE];
    int widest = 0;
    const int n = dms_scale_ticks(ticks, s, wanted);
    for (int i = 0; i < n; i++) {
        const int k = letters(dms_scale_text(text, s, ticks, n, i));
        widest = k > widest ? k : widest;
    }
    return widest;
}

static int widest_label(const dms_plot *plot)
{
    int widest = plot->has_reference ? letters(plot->reference_name) + 8 : 0;
    bool any = plot->has_reference;
    for (int i = 0; i < plot->n_series; i++) {
        const int k = letters(plot->series[i].name);
        any = any || plot->series[i].name;
        widest = k > widest ? k : widest;
    }
    widest = widest < LABEL_LETTERS ? widest : LABEL_LETTERS;
    return any ? 62 + 7 * widest : 14;
}

static int count_labels(const dms_plot *plot)
{
    int n = plot->has_reference;
    for (int i = 0; i < plot->n_series; i++)
        n += plot->series[i].name != NULL;
    return n;
}

static void lay_out(figure *f)
{
    const double least = 80 + LABEL_GAP * (double)count_labels(f->plot);
    f->width = f->plot->width ? f->plot->width : 580;
    f->height = fmax(f->plot->height ? f->plot->height : 360, least);
    f->top = 30; /* below the name of the y axis */
    f->bottom = f->height - 48;
    f->left = 14 + 7.2 * widest_tick(&f->y, 6);
    f->right = f->width - widest_label(f->plot);
}

static void draw_minor(const figure *f, bool horizontal)
{
    const dms_scale *s = horizontal ? &f->x : &f->y;
    if (!s->log || s->high / s->low < 3 || s->high / s->low > 1e5)
        return;
    for (int k = (int)floor(log10(s->low)); k <= (int)ceil(log10(s->high)); k++)
        for (int m = 1; m < 10; m++) {
            const double v = m * pow(10, k);
            if (v < s->low || v > s->high)
                continue;
            if (horizontal)
                fprintf(f->out, "M%.1f %.1fv3", x_of(f, v), f->bottom);
            else
                fprintf(f->out, "M%.1f %.1fh-3", f->left, y_of(f, v));
        }
}

static void draw_ticks(const figure *f)
{
    double ticks[DMS_SCALE_TICKS];
    char text[DMS_NUMBER_SIZE];
    int n = dms_scale_ticks(ticks, &f->y, 6);
    for (int i = 0; i < n; i++) {
        const double y = y_of(f, ticks[i]);
        fprintf(f->out,
                "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text class=\"tick\" x=\"%.1f\" "
                "y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                f->left, y, f->right, f->left - 7, y + 4, dms_scale_text(text, &f->y, ticks, n, i));
    }
    n = dms_scale_ticks(ticks, &f->x, 7);
    for (int i = 0; i < n; i++) {
        const double x = x_of(f, ticks[i]);
        fprintf(f->out,
                "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/><text class=\"tick\" x=\"%.1f\" "
                "y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
                x, f->bottom, f->top, x, f->bottom + 18, dms_scale_text(text, &f->x, ticks, n, i));
    }
    fputs("<path class=\"axis\" d=\"", f->out);
    draw_minor(f, true);
    draw_minor(f, false);
    fprintf(f->out, "M%.1f %.1fV%.1fH%.1f\"/>\n", f->left, f->top, f->bottom, f->right);
}

static void draw_axes(const figure *f)
{
    const double middle = (f->top + f->bottom) / 2;
    if (!f->is_empty)
        draw_ticks(f);
    else
        fprintf(f->out,
                "<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/><text class=\"tick\" x=\"%.1f\" "
                "y=\"%.1f\" text-anchor=\"middle\">no finite values</text>\n",
                f->left, f->top, f->bottom, f->right, (f->left + f->right) / 2, middle);
    fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", (f->left + f->right) / 2,
            f->height - 8);
    dms_page_text_cut(f->page, f->plot->x.name, (int)(f->width / 7.2));
    fputs("</text>\n<text class=\"title\" x=\"2\" y=\"12\">", f->out);
    dms_page_text_cut(f->page, f->plot->y.name, (int)(f->width / 7.2));
    fputs("</text>\n", f->out);
}

/* ---- series --------------------------------------------------------------------------------- */

/* Points in one column of the figure become its lowest and its highest, in their order. */
typedef struct {
    double low, high;
    int64_t low_at, high_at;
    double x; /* of the column; NaN: none begun */
} column;

static void end_column(const figure *f, const column *c, bool *begun)
{
    const double first = c->low_at < c->high_at ? c->low : c->high;
    const double second = c->low_at < c->high_at ? c->high : c->low;
    if (isnan(c->x))
        return;
    fprintf(f->out, "%s%.1f %.1f", *begun ? "L" : "M", c->x, first);
    *begun = true;
    if (c->low_at != c->high_at)
        fprintf(f->out, "L%.1f %.1f", c->x, second);
}

static void draw_line(const figure *f, const dms_plot_series *s)
{
    const double step = s->n > 2 * (int64_t)f->width ? 0.5 : 0;
    column c = {.x = NAN};
    bool begun = false;
    fprintf(f->out, "<path class=\"line c%d%s%s\" stroke-dasharray=\"%s\" d=\"",
            dms_plot_color(s->style), s->emphasis ? " emphasis" : "", s->faint ? " faint" : "",
            dash_of(s));
    for (int64_t i = 0; i < s->n; i++) {
        if (!is_shown(f->plot, &s->points[i]))
            continue;
        const double x = x_of(f, s->points[i].x), y = y_of(f, s->points[i].y);
        if (isnan(c.x) || fabs(x - c.x) >= step) {
            end_column(f, &c, &begun);
            c = (column){y, y, i, i, x};
        }
        if (y < c.low) {
            c.low = y;
            c.low_at = i;
        }
        if (y > c.high) {
            c.high = y;
            c.high_at = i;
        }
    }
    end_column(f, &c, &begun);
    fputs("\"/>\n", f->out);
}

static void draw_bar(const figure *f, const dms_plot_series *s, const dms_plot_point *q)
{
    if (!(q->error > 0) || !dms_scale_takes(q->error, false))
        return;
    const double x = x_of(f, q->x);
    double high = y_of(f, q->y + q->error), low = y_of(f, q->y - q->error);
    low = isnan(low) ? f->bottom : fmin(low, f->bottom);
    high = isnan(high) ? f->top : fmax(high, f->top);
    fprintf(f->out, "<path class=\"bar c%d\" d=\"M%.1f %.1fh6m-3 0V%.1fm-3 0h6\"/>",
            dms_plot_color(s->style), x - 3, high, low);
}

static void draw_marks(const figure *f, const dms_plot_series *s)
{
    char x[DMS_NUMBER_SIZE], y[DMS_NUMBER_SIZE];
    for (int64_t i = 0; i < s->n; i++) {
        const dms_plot_point *q = &s->points[i];
        if (!is_shown(f->plot, q))
            continue;
        fputs("<g>", f->out);
        draw_bar(f, s, q);
        dms_plot_marker(f->out, s->style, x_of(f, q->x), y_of(f, q->y), s->emphasis ? 4.8 : 3.9);
        fputs("<title>", f->out);
        dms_page_text(f->page, q->note ? q->note : s->name);
        if (!q->note)
            fprintf(f->out, " (%s, %s)", dms_number_exact(x, q->x), dms_number_exact(y, q->y));
        fputs("</title></g>\n", f->out);
    }
}

/* Faint ones first, what is emphasised last. */
static void draw_series(const figure *f)
{
    for (int rank = 0; rank < 3; rank++)
        for (int i = 0; i < f->plot->n_series; i++) {
            const dms_plot_series *s = &f->plot->series[i];
            if ((s->faint ? 0 : s->emphasis ? 2 : 1) != rank)
                continue;
            if (!s->bare)
                draw_line(f, s);
            if (!s->plain)
                draw_marks(f, s);
        }
}

static void draw_reference(const figure *f)
{
    if (!f->plot->has_reference || f->is_empty)
        return;
    const double y = y_of(f, f->plot->reference);
    if (has_place(f, f->plot->reference))
        fprintf(f->out, "<path class=\"ref\" d=\"M%.1f %.1fH%.1f\"/>\n", f->left, y, f->right);
}

dms_status dms_plot_draw(dms_html_page *p, const dms_plot *plot, int64_t *missing)
{
    figure f = {.page = p, .out = dms_page_out(p), .plot = plot};
    f.labels = calloc((size_t)count_labels(plot) + 1, sizeof(*f.labels));
    if (!f.labels)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a figure's labels");
    const int64_t n = measure(&f);
    if (missing)
        *missing = n;
    lay_out(&f);
    fprintf(f.out, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", f.width, f.height);
    dms_page_text(p, plot->title);
    fputs("\">\n", f.out);
    draw_axes(&f);
    draw_reference(&f);
    collect_labels(&f);
    spread(&f);
    for (int i = 0; i < f.n_labels; i++)
        draw_label(&f, &f.labels[i]);
    draw_series(&f);
    fputs("</svg>\n", f.out);
    free(f.labels);
    return DMS_OK;
}
