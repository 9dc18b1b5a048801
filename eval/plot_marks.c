#include <math.h>

#include "eval/plot.h"

/* Corners around (0, 0), as wide as a circle of radius 1 looks. */
typedef struct {
    int n;
    double at[12][2];
} shape;

static const shape shapes[10] = {
    {0, {{0, 0}}}, /* a circle */
    {4, {{-.89, -.89}, {.89, -.89}, {.89, .89}, {-.89, .89}}},
    {3, {{0, -1.25}, {1.15, .8}, {-1.15, .8}}},
    {4, {{0, -1.3}, {1.3, 0}, {0, 1.3}, {-1.3, 0}}},
    {3, {{0, 1.25}, {1.15, -.8}, {-1.15, -.8}}},
    {12,
     {{-.4, -1.2},
      {.4, -1.2},
      {.4, -.4},
      {1.2, -.4},
      {1.2, .4},
      {.4, .4},
      {.4, 1.2},
      {-.4, 1.2},
      {-.4, .4},
      {-1.2, .4},
      {-1.2, -.4},
      {-.4, -.4}}},
    {5, {{0, -1.15}, {1.1, -.36}, {.68, .93}, {-.68, .93}, {-1.1, -.36}}},
    {4, {{-1, -1}, {1, -1}, {-1, 1}, {1, 1}}}, /* an hourglass */
    {12,                                       /* a cross */
     {{0, -.55},
      {.6, -1.15},
      {1.15, -.6},
      {.55, 0},
      {1.15, .6},
      {.6, 1.15},
      {0, .55},
      {-.6, 1.15},
      {-1.15, .6},
      {-.55, 0},
      {-1.15, -.6},
      {-.6, -1.15}}},
    {3, {{-1.25, 0}, {.8, -1.15}, {.8, 1.15}}},
};

int dms_plot_color(int style)
{
    return style < 10 ? style : 1 + (style - 10) % 9;
}

void dms_plot_marker(FILE *out, int style, double x, double y, double radius)
{
    const shape *s = &shapes[(style + style / 10) % 10];
    if (!s->n) {
        fprintf(out, "<circle class=\"mark c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>",
                dms_plot_color(style), x, y, radius);
        return;
    }
    fprintf(out, "<path class=\"mark c%d\" d=\"", dms_plot_color(style));
    for (int i = 0; i < s->n; i++)
        fprintf(out, "%s%.1f %.1f", i ? "L" : "M", x + radius * s->at[i][0],
                y + radius * s->at[i][1]);
    fputs("Z\"/>", out);
}

const char *dms_plot_dash(int style)
{
    static const char *const dashes[] = {"none", "7 3", "2 2.5", "9 3 2 3"};
    return dashes[(style + style / 10) % 4];
}
