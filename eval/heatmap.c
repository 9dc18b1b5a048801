#include "eval/heatmap.h"

#include <math.h>
#include <stdlib.h>

#include "eval/number.h"
#include "eval/scale.h"

enum { WIDTH = 1180, LEFT = 52, RIGHT = 112, TOP = 8 };

/* viridis at 0, 1/8, ..., 1 in sRGB. */
static const int viridis[9][3] = {{0x44, 0x01, 0x54}, {0x47, 0x2d, 0x7b}, {0x3b, 0x52, 0x8b},
                                  {0x2c, 0x72, 0x8e}, {0x21, 0x91, 0x8c}, {0x28, 0xae, 0x80},
                                  {0x5e, 0xc9, 0x62}, {0xad, 0xdc, 0x30}, {0xfd, 0xe7, 0x25}};

typedef struct {
    dms_html_page *page;
    FILE *out;
    const dms_heatmap *map;
    dms_scale scale;
    double cell_w, cell_h;
    bool is_empty;
} drawing;

static void color_at(int *rgb, double place)
{
    const double at = 8 * fmin(fmax(place, 0), 1);
    const int i = at >= 8 ? 7 : (int)at;
    for (int k = 0; k < 3; k++)
        rgb[k] = (int)lround(viridis[i][k] + (at - i) * (viridis[i + 1][k] - viridis[i][k]));
}

static void measure(drawing *d)
{
    const dms_heatmap *m = d->map;
    double low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < (int64_t)m->columns * m->rows; i++)
        if (dms_scale_takes(m->values[i], m->log)) {
            low = fmin(low, m->values[i]);
            high = fmax(high, m->values[i]);
        }
    d->is_empty = !(low <= high);
    d->scale = dms_scale_fit(low, high, m->log);
    if (high > low) { /* the ends themselves are the ends of the colours */
        d->scale.low = low;
        d->scale.high = high;
    }
    d->cell_w = fmin(56, (double)(WIDTH - LEFT - RIGHT) / m->columns);
    d->cell_h = fmin(26, fmax(5, 420.0 / m->rows));
}

/* A number that fits into a cell: at most 4 letters. */
static const char *cell_text(char *out, double x)
{
    return dms_number_short(out, x, fabs(x) >= 0.95 && fabs(x) < 100 ? 2 : 1);
}

static void draw_cell(const drawing *d, int column, int row)
{
    const double v = d->map->values[(int64_t)column * d->map->rows + row];
    const double x = LEFT + column * d->cell_w, y = TOP + row * d->cell_h;
    const bool shown = dms_scale_takes(v, d->map->log);
    char text[DMS_NUMBER_SIZE];
    int rgb[3];
    fprintf(d->out,
            "<g><rect class=\"cell%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"",
            shown ? "" : " none", x, y, d->cell_w, d->cell_h);
    if (shown) {
        color_at(rgb, dms_scale_place(&d->scale, v));
        fprintf(d->out, " fill=\"#%02x%02x%02x\"", rgb[0], rgb[1], rgb[2]);
    }
    fputs("/>", d->out);
    if (shown && d->cell_w >= 23 && d->cell_h >= 14) {
        /* luminance of sRGB, roughly; black wins from the middle of the scale on */
        const bool dark = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2] > 125;
        fprintf(d->out, "<text class=\"%s\" x=\"%.2f\" y=\"%.2f\" text-anchor=\"middle\">%s</text>",
                dark ? "dark" : "light", x + d->cell_w / 2, y + d->cell_h / 2 + 3.8,
                cell_text(text, v));
    }
    fputs("<title>", d->out);
    dms_page_text(d->page, d->map->column_name);
    fprintf(d->out, " %d, ", column);
    dms_page_text(d->page, d->map->row_name);
    fprintf(d->out, " %d: %s</title></g>\n", row, dms_number_exact(text, v));
}

/* The number of every k-th row or column, so that they do not touch. */
static int every(double size, double needed)
{
    static const int steps[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000};
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        if (steps[i] * size >= needed)
            return steps[i];
    return 10000;
}

static void draw_names(const drawing *d)
{
    const dms_heatmap *m = d->map;
    const double bottom = TOP + m->rows * d->cell_h;
    for (int i = 0; i < m->columns; i += every(d->cell_w, 22))
        fprintf(d->out,
                "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>",
                LEFT + (i + .5) * d->cell_w, bottom + 15, i);
    for (int i = 0; i < m->rows; i += every(d->cell_h, 14))
        fprintf(d->out, "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d</text>",
                LEFT - 6, TOP + (i + .5) * d->cell_h + 4, i);
    fprintf(d->out, "\n<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">",
            LEFT + m->columns * d->cell_w / 2, bottom + 34);
    dms_page_text_cut(d->page, m->column_name, 40);
    fprintf(d->out,
            "</text><text transform=\"translate(14 %.1f) rotate(-90)\" text-anchor=\"middle\">",
            TOP + m->rows * d->cell_h / 2);
    dms_page_text_cut(d->page, m->row_name, 12);
    fputs("</text>\n", d->out);
}

static void draw_legend(const drawing *d)
{
    const double x = LEFT + d->map->columns * d->cell_w + 20;
    const double height = fmax(d->map->rows * d->cell_h, 96);
    double ticks[DMS_SCALE_TICKS];
    char text[DMS_NUMBER_SIZE];
    int rgb[3];
    for (int i = 0; i < 48; i++) {
        color_at(rgb, (47 - i) / 47.0);
        fprintf(d->out,
                "<rect x=\"%.1f\" y=\"%.2f\" width=\"12\" height=\"%.2f\" fill=\"#%02x%02x%02x\"/>",
                x, TOP + height * i / 48, height / 48 + .3, rgb[0], rgb[1], rgb[2]);
    }
    const int n = dms_scale_ticks(ticks, &d->scale, 4);
    for (int i = 0; i < n && !d->is_empty; i++) {
        const double y = TOP + height * (1 - dms_scale_place(&d->scale, ticks[i]));
        fprintf(d->out,
                "<path class=\"axis\" d=\"M%.1f %.1fh4\"/><text class=\"tick\" x=\"%.1f\" "
                "y=\"%.1f\">%s</text>",
                x + 12, y, x + 20, y + 4, dms_scale_text(text, &d->scale, ticks, n, i));
    }
    fprintf(d->out, "\n<text class=\"tick\" x=\"%.1f\" y=\"%.1f\">", x, TOP + height + 18);
    dms_page_text_cut(d->page, d->map->value_name, 16);
    fputs("</text>\n", d->out);
}

dms_status dms_heatmap_draw(dms_html_page *p, const dms_heatmap *map)
{
    if (map->columns < 1 || map->rows < 1 || (int64_t)map->columns * map->rows > 1000000)
        return dms_fail(DMS_ERR_ARG, "a map of %d x %d cells, expected 1 to a million cells",
                        map->columns, map->rows);
    drawing d = {.page = p, .out = dms_page_out(p), .map = map};
    measure(&d);
    const double width = LEFT + map->columns * d.cell_w + RIGHT;
    const double height = TOP + fmax(map->rows * d.cell_h, 96) + 44;
    fprintf(d.out,
            "<svg viewBox=\"0 0 %.0f %.0f\" style=\"max-width:%.0fpx;min-width:%.0fpx\" "
            "role=\"img\" aria-label=\"",
            width, height, width, fmin(width, 720));
    dms_page_text(p, map->title);
    fputs("\">\n", d.out);
    for (int c = 0; c < map->columns; c++)
        for (int r = 0; r < map->rows; r++)
            draw_cell(&d, c, r);
    draw_names(&d);
    draw_legend(&d);
    fputs("</svg>\n", d.out);
    return DMS_OK;
}
