/* A map of numbers over rows and columns, such as KV heads and layers, drawn as SVG into a page. */
#ifndef DMS_HEATMAP_H
#define DMS_HEATMAP_H

#include "eval/page.h"

typedef struct {
    const char *title;   /* for those who hear the figure; not drawn */
    const float *values; /* [columns, rows]; what is not finite is an empty cell */
    int columns, rows;
    const char *column_name, *row_name; /* "layer", "KV head" */
    const char *value_name;             /* beside the colour scale, with its unit */
    bool log;                           /* colours by the logarithm; then values > 0 */
} dms_heatmap;

/* Each cell's colour is viridis (matplotlib's, CC0: equal steps look equal, also to colour-blind
 * people) from the least value to the greatest; its number is written into it where there is room,
 * and always in its tooltip. DMS_ERR_ARG without a row or a column, or with more than a million
 * cells. */
dms_status dms_heatmap_draw(dms_html_page *p, const dms_heatmap *map);

#endif
