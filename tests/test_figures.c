/* The figures and the page of our reports, and the report of a run, read back. */
#include <jansson.h>
#include <math.h>

#include "data/utf8.h"
#include "eval/heatmap.h"
#include "eval/number.h"
#include "eval/plot.h"
#include "eval/report_run.h"
#include "eval/run_log.h"
#include "tests/files.h"

static const char hostile[] = "</title><script>alert('x')</script>\" onload=\"x & "
                              "<b>\x01\xff\xe2\x80\xae\xe2\x80\x8e\xc2\x85";

/* ---- a small reader of HTML ----------------------------------------------------------------- */

/* The end of a tag that begins at `at`, quotes minded. */
static const char *tag_end(const char *at)
{
    for (bool quoted = false; *at; at++) {
        if (*at == '"')
            quoted = !quoted;
        cr_assert(!quoted || *at != '<', "a quote is left open: %.60s", at);
        if (*at == '>' && !quoted)
            return at;
    }
    cr_assert_fail("a tag does not end");
    return at;
}

static void expect_entities(const char *from, const char *to)
{
    for (const char *at = from; at < to; at++)
        if (*at == '&')
            cr_assert(!strncmp(at, "&amp;", 5) || !strncmp(at, "&lt;", 4) ||
                          !strncmp(at, "&gt;", 4) || !strncmp(at, "&quot;", 6) ||
                          !strncmp(at, "&#39;", 5),
                      "a bare ampersand: %.20s", at);
}

/* Every tag is closed in order, nothing is bare, nothing comes from elsewhere. */
static void expect_well_formed(const char *html)
{
    static char stack[64][16];
    int depth = 0;
    for (const char *at = strchr(html, '<'); at; at = strchr(at, '<')) {
        const char *end = tag_end(at);
        char name[16] = "";
        sscanf(at + 1 + (at[1] == '/'), "%15[a-zA-Z0-9!]", name);
        expect_entities(at, end);
        if (at[1] == '/') {
            cr_assert(depth > 0 && !strcmp(stack[depth - 1], name), "</%s> closes <%s>", name,
                      depth ? stack[depth - 1] : "nothing");
            depth--;
        } else if (end[-1] != '/' && strcmp(name, "!DOCTYPE") && strcmp(name, "meta")) {
            cr_assert_lt(depth, 64);
            memcpy(stack[depth++], name, sizeof(name));
        }
        const char *next = strchr(end, '<');
        if (next)
            expect_entities(end, next);
        at = end;
    }
    cr_assert_eq(depth, 0, "<%s> is not closed", stack[depth ? depth - 1 : 0]);
    static const char *const foreign[] = {"http:", "https:",  "src=", "href=",   "<script",
                                          "<link", "@import", "url(", "<iframe", "onload=\""};
    for (size_t i = 0; i < COUNT(foreign); i++)
        cr_assert_null(strstr(html, foreign[i]), "%s in the page", foreign[i]);
    cr_assert_eq(dms_utf8_valid(html, strlen(html)), strlen(html));
}

/* The numbers that are shown stand in full in the cells. */
static void expect_number(const char *html, double x)
{
    char text[DMS_NUMBER_SIZE], cell[DMS_NUMBER_SIZE + 16];
    snprintf(cell, sizeof(cell), "data-value=\"%s\"", dms_number_exact(text, x));
    cr_assert_not_null(strstr(html, cell), "%s is missing", cell);
}

static int count(const char *html, const char *what)
{
    int n = 0;
    for (const char *at = html; (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

typedef struct {
    scratch folder;
    dms_html_page *page;
    char *html;
} sheet;

static sheet sheet_open(const char *title)
{
    sheet s = {.folder = scratch_open()};
    must(dms_page_open(&s.page, title, NULL));
    return s;
}

static const char *sheet_read(sheet *s)
{
    must(dms_page_write(s->page, scratch_path(&s->folder, "page.html")));
    cr_assert_eq(count_files(s->folder.folder), 1, "the temporary is left");
    s->html = read_bytes(scratch_path(&s->folder, "page.html"), NULL);
    expect_well_formed(s->html);
    return s->html;
}

static void sheet_close(sheet *s)
{
    dms_page_close(s->page);
    free(s->html);
    scratch_close(&s->folder);
}

/* ---- numbers -------------------------------------------------------------------------------- */

Test(number, exact_text_reads_back_as_the_same_number)
{
    static const double some[] = {
        0, 0.1, 0.153882811, 1.0 / 3, 1e300, -5e-324, 16384, 0.00014999999999999999, 1073741824.0};
    char text[DMS_NUMBER_SIZE];
    for (size_t i = 0; i < COUNT(some); i++)
        cr_assert_eq(strtod(dms_number_exact(text, some[i]), NULL), some[i], "%s", text);
    cr_assert_str_eq(dms_number_exact(text, 0.153882811), "0.153882811");
    cr_assert_str_eq(dms_number_exact(text, NAN), "NaN");
}

Test(number, rounded_text_is_as_people_write_it)
{
    char t[DMS_NUMBER_SIZE];
    cr_assert_str_eq(dms_number_short(t, 0.153882811, 4), "0.1539");
    cr_assert_str_eq(dms_number_short(t, 1234567, 4), "1,234,567");
    cr_assert_str_eq(dms_number_short(t, -1234.56, 4), "-1,235");
    cr_assert_str_eq(dms_number_short(t, 0.5, 4), "0.5");
    cr_assert_str_eq(dms_number_short(t, 1.5e-7, 4), "1.5×10⁻⁷");
    cr_assert_str_eq(dms_number_short(t, 1e20, 4), "10²⁰");
    cr_assert_str_eq(dms_number_short(t, -INFINITY, 4), "-∞");
    cr_assert_str_eq(dms_number_measure(t, 0.153882811, 0.0021), "0.1539 ± 0.0021");
    cr_assert_str_eq(dms_number_measure(t, 12.345, 1.23), "12.3 ± 1.2");
    cr_assert_str_eq(dms_number_measure(t, 0.25, 0), "0.25");
    cr_assert_str_eq(dms_number_bytes(t, 1536), "1.5 KiB");
    cr_assert_str_eq(dms_number_seconds(t, 3723), "1 h 02 min");
    for (double x = 1e-300; x < 1e300; x *= 37) { /* never past its room */
        cr_assert_lt(strlen(dms_number_short(t, x, 15)), DMS_NUMBER_SIZE);
        cr_assert_lt(strlen(dms_number_measure(t, -x, x / 7)), DMS_NUMBER_SIZE);
        cr_assert_lt(strlen(dms_number_bytes(t, x)), DMS_NUMBER_SIZE);
        cr_assert_lt(strlen(dms_number_seconds(t, x)), DMS_NUMBER_SIZE);
    }
}

/* ---- scales --------------------------------------------------------------------------------- */

/* 1, 2 or 5 times a power of ten. */
static bool is_round(double x)
{
    const double m = x / pow(10, floor(log10(x) + 1e-9));
    return fabs(m - 1) < 1e-9 || fabs(m - 2) < 1e-9 || fabs(m - 5) < 1e-9;
}

Test(scale, linear_ticks_are_all_multiples_of_a_round_step_in_the_range)
{
    uint32_t seed = 1;
    for (int i = 0; i < 2000; i++) {
        double ticks[DMS_SCALE_TICKS];
        const double size = pow(10, roll(&seed) % 24 - 12.0);
        const double low = size * ((double)(roll(&seed) % 2000) - 1000);
        const dms_scale s = dms_scale_fit(low, low + size * (1 + roll(&seed) % 999), false);
        const int n = dms_scale_ticks(ticks, &s, 6);
        cr_assert(n >= 2 && n <= 8, "%d ticks", n);
        const double step = ticks[1] - ticks[0];
        cr_assert(is_round(step), "step %g", step);
        for (int k = 0; k < n; k++) {
            cr_assert(ticks[k] >= s.low - 1e-6 * step && ticks[k] <= s.high + 1e-6 * step);
            cr_assert_float_eq(ticks[k] / step, round(ticks[k] / step), 1e-5);
        }
        cr_assert(ticks[0] - step < s.low && ticks[n - 1] + step > s.high, "one is left out");
    }
}

Test(scale, log_ticks_are_round_numbers_in_the_range)
{
    uint32_t seed = 2;
    for (int i = 0; i < 2000; i++) {
        double ticks[DMS_SCALE_TICKS];
        const double low = pow(10, roll(&seed) % 300 - 150.0) * (1 + roll(&seed) % 9);
        const double factor = pow(10, 0.5 + roll(&seed) % 4000 / 100.0);
        const dms_scale s = dms_scale_fit(low, low * factor, true);
        const int n = dms_scale_ticks(ticks, &s, 6);
        cr_assert(n >= 1 && n <= 10, "%d ticks in %g to %g", n, s.low, s.high);
        for (int k = 0; k < n; k++) {
            cr_assert(is_round(ticks[k]), "%g", ticks[k]);
            cr_assert(ticks[k] >= s.low * (1 - 1e-9) && ticks[k] <= s.high * (1 + 1e-9));
            cr_assert(!k || ticks[k] > ticks[k - 1]);
        }
    }
}

Test(scale, places_are_linear_in_the_value_or_in_its_logarithm)
{
    const dms_scale linear = {.low = 2, .high = 4}, reversed = {2, 4, false, true};
    const dms_scale log = {.low = 0.01, .high = 100, .log = true};
    cr_assert_float_eq(dms_scale_place(&linear, 2.5), 0.25, 1e-12);
    cr_assert_float_eq(dms_scale_place(&reversed, 2.5), 0.75, 1e-12);
    cr_assert_float_eq(dms_scale_place(&log, 1), 0.5, 1e-12);
    cr_assert(isnan(dms_scale_place(&log, 0)) && isnan(dms_scale_place(&linear, INFINITY)));
    const dms_scale point = dms_scale_fit(3, 3, false);
    cr_assert(point.low < 3 && point.high > 3);
    const dms_scale nothing = dms_scale_fit(INFINITY, -INFINITY, true);
    cr_assert(nothing.low < nothing.high && isfinite(nothing.high));
}

Test(scale, ticks_of_one_axis_have_as_many_decimals)
{
    const dms_scale s = {.low = 0, .high = 0.2}, small = {.low = 0, .high = 1e-4};
    double ticks[DMS_SCALE_TICKS];
    char text[DMS_NUMBER_SIZE];
    int n = dms_scale_ticks(ticks, &s, 4);
    cr_assert_str_eq(dms_scale_text(text, &s, ticks, n, 1), "0.05");
    cr_assert_str_eq(dms_scale_text(text, &s, ticks, n, 2), "0.10");
    n = dms_scale_ticks(ticks, &small, 5);
    cr_assert_str_eq(dms_scale_text(text, &small, ticks, n, 1), "2×10⁻⁵");
    cr_assert_str_eq(dms_scale_text(text, &small, ticks, n, n - 1), "10×10⁻⁵");
}

/* ---- pages ---------------------------------------------------------------------------------- */

Test(page, texts_cannot_become_markup)
{
    static const char *const heads[] = {hostile, hostile};
    sheet s = sheet_open(hostile);
    dms_page_heading(s.page, hostile);
    dms_page_paragraph(s.page, NULL, "%s", hostile);
    dms_page_tile(s.page, hostile, hostile, hostile);
    dms_page_verbatim(s.page, hostile, hostile);
    dms_page_table_begin(s.page, heads, 2);
    dms_page_row(s.page);
    dms_page_cell(s.page, hostile);
    dms_page_cell_number(s.page, hostile, 1);
    dms_page_table_end(s.page);
    dms_page_details_begin(s.page, hostile);
    dms_page_details_end(s.page);
    dms_page_figure_begin(s.page, false);
    dms_page_figure_end(s.page, "%s", hostile);
    dms_page_origin(s.page, &(dms_origin){hostile, hostile, hostile, hostile, hostile});
    const char *html = sheet_read(&s);
    cr_assert_eq(count(html, "&lt;script&gt;alert(&#39;x&#39;)"), 20);
    cr_assert_null(strchr(html, '\x01'));
    cr_assert(!strstr(html, "\xe2\x80\xae") && !strstr(html, "\xe2\x80\x8e"),
              "a character that turns the text's direction");
    sheet_close(&s);
}

Test(page, numbers_stand_in_full_behind_their_rounding)
{
    static const char *const heads[] = {"a", "b", "c"};
    sheet s = sheet_open("numbers");
    dms_page_table_begin(s.page, heads, 3);
    dms_page_row(s.page);
    dms_page_cell_value(s.page, 0.153882811);
    dms_page_cell_value(s.page, NAN);
    dms_page_cell_measure(s.page, 0.153882811, 0.00212345);
    dms_page_table_end(s.page);
    const char *html = sheet_read(&s);
    cr_assert_not_null(strstr(html,
                              "<td data-value=\"0.153882811\" title=\"0.153882811\">0.1539</td>"
                              "<td title=\"no value\">–</td>"
                              "<td data-value=\"0.153882811\" data-error=\"0.00212345\" "
                              "title=\"0.153882811 ± 0.00212345\">0.1539 ± 0.0021</td>"));
    sheet_close(&s);
}

Test(page, a_folder_that_is_not_there_is_named)
{
    sheet s = sheet_open("nowhere");
    rig_expect_failure(dms_page_write(s.page, scratch_path(&s.folder, "no/page.html")), DMS_ERR_IO,
                       "no/page.html");
    sheet_close(&s);
}

/* ---- figures -------------------------------------------------------------------------------- */

/* What follows each `what` in order, as numbers. */
static int numbers_after(double *out, int most, const char *html, const char *what)
{
    int n = 0;
    for (const char *at = html; n < most && (at = strstr(at, what)); n++) {
        at += strlen(what);
        out[n] = strtod(at, NULL);
    }
    return n;
}

Test(plot, labels_never_cover_each_other_and_stay_within_the_figure)
{
    enum { N = 30 };
    static dms_plot_point points[N][2];
    dms_plot_series series[N];
    double y[N + 1];
    for (int i = 0; i < N; i++) {
        points[i][0] = (dms_plot_point){.x = 1, .y = i};
        points[i][1] = (dms_plot_point){.x = 2, .y = i % 3 ? 7 : 7 + i / 40.0};
        series[i] = (dms_plot_series){.name = hostile, .points = points[i], .n = 2, .style = i};
    }
    sheet s = sheet_open("labels");
    const dms_plot plot = {.title = hostile,
                           .x = {.name = hostile},
                           .y = {.name = hostile},
                           .series = series,
                           .n_series = N,
                           .has_reference = true,
                           .reference = 7,
                           .reference_name = hostile};
    must(dms_plot_draw(s.page, &plot, NULL));
    const char *html = sheet_read(&s);
    const char *box = strstr(html, "viewBox=\"0 0 ");
    double width, height;
    cr_assert_eq(sscanf(box, "viewBox=\"0 0 %lf %lf", &width, &height), 2);
    int n = 0;
    for (const char *at = box; (at = strstr(at, "<text class=\"name")); at++)
        cr_assert_eq(sscanf(strstr(at, " y=\""), " y=\"%lf", &y[n++]), 1);
    cr_assert_eq(n, N + 1);
    for (int i = 0; i < n; i++) {
        cr_assert(y[i] > 10 && y[i] < height, "label at %g of %g", y[i], height);
        cr_assert(!i || y[i] - y[i - 1] >= 16.8, "labels at %g and %g", y[i - 1], y[i]);
    }
    sheet_close(&s);
}

Test(plot, points_lie_where_the_scale_puts_them)
{
    const dms_plot_point points[] = {{1, 0.01, 0, NULL}, {10, 0.1, 0, NULL}, {100, 1, 0, NULL}};
    const dms_plot_series series = {.points = points, .n = 3, .style = 0};
    const dms_plot plot = {.x = {.name = "x", .log = true},
                           .y = {.name = "y", .log = true},
                           .series = &series,
                           .n_series = 1};
    double x[3], y[3];
    sheet s = sheet_open("points");
    must(dms_plot_draw(s.page, &plot, NULL));
    const char *html = sheet_read(&s);
    cr_assert_eq(numbers_after(x, 3, html, "cx=\""), 3);
    cr_assert_eq(numbers_after(y, 3, html, "cy=\""), 3);
    cr_assert_float_eq(x[1], (x[0] + x[2]) / 2, 0.11); /* written to a tenth */
    cr_assert_float_eq(y[1], (y[0] + y[2]) / 2, 0.11);
    cr_assert(x[0] < x[2] && y[0] > y[2]);
    sheet_close(&s);
}

Test(plot, values_without_a_place_are_missing_and_counted)
{
    static const double some[] = {NAN, INFINITY, -INFINITY, 1e300, -1e308, 0, -1, 2, 3};
    dms_plot_point points[COUNT(some)];
    for (size_t i = 0; i < COUNT(some); i++)
        points[i] = (dms_plot_point){(double)i, some[i], some[i], NULL};
    const dms_plot_series series = {.name = "s", .points = points, .n = COUNT(some)};
    for (int log = 0; log < 2; log++) {
        sheet s = sheet_open("missing");
        int64_t missing;
        const dms_plot plot = {.x = {.name = "x"},
                               .y = {.name = "y", .log = log},
                               .series = &series,
                               .n_series = 1,
                               .has_reference = true,
                               .reference = log ? 0 : NAN,
                               .reference_name = "r"};
        must(dms_plot_draw(s.page, &plot, &missing));
        cr_assert_eq(missing, log ? 7 : 5);
        const char *html = strstr(sheet_read(&s), "<svg");
        cr_assert_eq(count(html, "<circle"), log ? 3 : 5, "with the label's");
        cr_assert(!strstr(html, "nan") && !strstr(html, "inf"));
        sheet_close(&s);
    }
}

Test(plot, nothing_to_draw_says_so)
{
    const dms_plot_point point = {NAN, NAN, 0, NULL};
    const dms_plot_series series = {.name = "s", .points = &point, .n = 1};
    sheet s = sheet_open("empty");
    const dms_plot plot = {.series = &series, .n_series = 1};
    must(dms_plot_draw(s.page, &plot, NULL));
    must(dms_plot_draw(s.page, &(dms_plot){.title = "none"}, NULL));
    cr_assert_eq(count(sheet_read(&s), "no finite values"), 2);
    sheet_close(&s);
}

Test(plot, a_long_line_keeps_its_peaks_and_stays_small)
{
    enum { N = 200000 };
    dms_plot_point *points = calloc(N, sizeof(*points));
    cr_assert_not_null(points);
    for (int i = 0; i < N; i++)
        points[i] = (dms_plot_point){.x = i, .y = i == 77777 ? 10 : i % 2};
    const dms_plot_series series = {.points = points, .n = N, .plain = true};
    sheet s = sheet_open("long");
    must(dms_plot_draw(s.page, &(dms_plot){.series = &series, .n_series = 1}, NULL));
    const char *html = sheet_read(&s);
    cr_assert_lt(strlen(html), 100000);
    /* the peak is the figure's highest point: 4 % of the range below the top at 30 */
    double x, y, highest = 1e9;
    for (const char *at = strstr(html, "class=\"line"); (at = strpbrk(at, "ML\""));
         at += strcspn(at + 1, "ML\"") + 1)
        if (sscanf(at + 1, "%lf %lf", &x, &y) == 2 && *at != '"')
            highest = fmin(highest, y);
    cr_assert(highest > 30 && highest < 50, "highest at %g", highest);
    free(points);
    sheet_close(&s);
}

Test(heatmap, every_cell_has_its_number_and_the_ends_have_the_ends_of_the_colours)
{
    const float values[] = {1, 2.5f, 8, NAN, 4, INFINITY};
    sheet s = sheet_open("map");
    dms_heatmap map = {.title = hostile,
                       .values = values,
                       .columns = 3,
                       .rows = 2,
                       .column_name = "layer",
                       .row_name = "head",
                       .value_name = hostile,
                       .log = true};
    must(dms_heatmap_draw(s.page, &map));
    map.rows = 0;
    rig_expect_failure(dms_heatmap_draw(s.page, &map), DMS_ERR_ARG, "3 x 0 cells");
    const char *html = sheet_read(&s);
    cr_assert_not_null(strstr(html, "layer 0, head 1: 2.5<"));
    cr_assert_not_null(strstr(html, "layer 1, head 1: NaN<"));
    cr_assert_eq(count(html, "class=\"cell none\""), 2);
    cr_assert_eq(count(html, "class=\"cell\" "), 4);
    cr_assert_not_null(strstr(strstr(html, "class=\"cell\""), "fill=\"#440154\"/><text"));
    cr_assert_geq(count(html, "fill=\"#fde725\""), 2);
    sheet_close(&s);
}

/* ---- training runs -------------------------------------------------------------------------- */

static const char log_text[] =
    "{\"step\": 0, \"loss\": 0.5, \"kl\": 0.4375, \"compress\": 0, \"target\": 0, \"evicted\": 0, "
    "\"target_cr\": 1, \"cr\": 1, \"keep\": 1, \"lr\": 0.00015, \"grad_norm\": 1.25, "
    "\"tokens\": 1024, \"seconds\": 2.5}\n"
    "{\"step\": 1, \"loss\": 0.3, \"kl\": null, \"target_cr\": 2.1, \"cr\": 1.9, \"lr\": 0.0001, "
    "\"grad_norm\": 123.456789, \"tokens\": 1024, \"seconds\": 3.125}\n"
    "{\"step\": 1, \"eval\": {\"positions\": 16384, \"kl_forward\": 0.153882811, "
    "\"decision_cr\": 4.60653167, \"task\": {\"value\": 0.71, \"name\": \"<i>\"}}}\n"
    "\n"
    "{\"step\": 2, \"loss\": 0.2, \"cr\": 3.75}\n"
    "no JSON\n"
    "[1]\n"
    "{\"step\": 2, \"eval\": 3}\n"
    "{\"step\": 2, \"loss\": 0.25, \"cr\": 3.8125}\n"
    "{\"step\": 3, \"lo";

static void write_run(const scratch *s, const char *text)
{
    write_bytes(scratch_path(s, "metrics.jsonl"), text, strlen(text));
}

Test(run_log, a_cut_last_line_is_passed_over_and_a_repeated_step_replaces_the_first)
{
    scratch s = scratch_open();
    dms_run_log log;
    write_run(&s, log_text);
    must(dms_run_log_read(&log, scratch_path(&s, "metrics.jsonl")));
    cr_assert_eq(log.n_steps, 3);
    cr_assert_eq(log.n_evals, 1);
    cr_assert_eq(log.skipped, 3);
    cr_assert_eq(log.steps[2].step, 2);
    cr_assert_eq(log.steps[2].values[DMS_RUN_CR], 3.8125);
    cr_assert(isnan(log.steps[1].values[DMS_RUN_KL]));
    dms_run_log_close(&log);
    scratch_close(&s);
}

Test(run_log, a_run_that_went_back_loses_what_lay_behind)
{
    scratch s = scratch_open();
    dms_run_log log;
    char text[4096] = "";
    for (int i = 0; i < 30; i++)
        snprintf(text + strlen(text), 100, "{\"step\": %d, \"loss\": 1}\n", i);
    strcat(text, "{\"step\": 29, \"eval\": {}}\n{\"step\": 10, \"loss\": 2}\n"
                 "{\"step\": 11, \"loss\": 2}");
    write_run(&s, text);
    must(dms_run_log_read(&log, scratch_path(&s, "metrics.jsonl")));
    cr_assert_eq(log.n_steps, 12);
    cr_assert_eq(log.n_evals, 0);
    for (int i = 0; i < 12; i++)
        cr_assert(log.steps[i].step == i && log.steps[i].values[DMS_RUN_LOSS] == 1 + (i > 9));
    dms_run_log_close(&log);
    scratch_close(&s);
}

Test(report_run, every_number_of_the_log_stands_in_the_page)
{
    static const double numbers[] = {0.5,  0.4375,      0.00015,    1.25,   1024,       2.5,
                                     0.3,  2.1,         1.9,        0.0001, 123.456789, 3.125,
                                     0.25, 0.153882811, 4.60653167, 16384,  0.71,       3.8125};
    static const char *const tokens[] = {"Hello", "<b>&", "\n", "\xe2\x82", "x"};
    static const float fractions[] = {0.25f, 1, 0, NAN, -1};
    const float ratios[] = {1.5f, 2, 3.25f, NAN};
    scratch s = scratch_open();
    write_run(&s, log_text);
    write_bytes(scratch_path(&s, "config.yaml"), hostile, strlen(hostile));
    const dms_report_run report = {.folder = s.folder,
                                   .title = hostile,
                                   .ratios = ratios,
                                   .layers = 2,
                                   .kv_heads = 2,
                                   .ratios_note = hostile,
                                   .tokens = tokens,
                                   .fractions = fractions,
                                   .n_tokens = 5,
                                   .origin = {.command = hostile}};
    must(dms_report_run_write(scratch_path(&s, "report.html"), &report));
    char *html = read_bytes(scratch_path(&s, "report.html"), NULL);
    expect_well_formed(html);
    for (size_t i = 0; i < COUNT(numbers); i++)
        expect_number(html, numbers[i]);
    cr_assert_not_null(strstr(html, "3 lines of metrics.jsonl could not be read"));
    cr_assert_not_null(strstr(html, "title=\"0.25\">Hello</i>"));
    cr_assert_not_null(strstr(html, "&lt;b&gt;&amp;</i>"));
    cr_assert_not_null(strstr(html, "layer 1, KV head 0: 3.25<"));
    cr_assert_eq(count(html, "title=\"not known\""), 2);
    free(html);
    scratch_close(&s);
}

Test(report_run, what_is_not_there_is_left_out_or_refused)
{
    scratch s = scratch_open();
    const char *path = scratch_path(&s, "report.html");
    const dms_report_run report = {.folder = s.folder};
    rig_expect_failure(dms_report_run_write(path, &report), DMS_ERR_IO, "metrics.jsonl");
    write_run(&s, "");
    rig_expect_failure(dms_report_run_write(path, &report), DMS_ERR_FORMAT, "no line of a step");
    write_run(&s, "{\"step\": 5, \"eval\": {\"nll\": 1e400}}\n{\"step\": 5, \"eval\": {}}\n");
    must(dms_report_run_write(path, &report));
    write_run(&s, "{\"step\": 0, \"loss\": 1e300, \"cr\": -1e308, \"lr\": 1e-320}\n");
    must(dms_report_run_write(path, &report));
    char *html = read_bytes(path, NULL);
    expect_well_formed(html);
    expect_number(html, -1e308);
    free(html);
    const char *token = "x";
    const dms_report_run broken = {.folder = s.folder, .tokens = &token, .n_tokens = 1};
    rig_expect_failure(dms_report_run_write(path, &broken), DMS_ERR_ARG, "without fractions");
    scratch_close(&s);
}

Test(report_run, the_table_of_a_long_run_keeps_every_kth_step_and_the_last)
{
    scratch s = scratch_open();
    FILE *file = fopen(scratch_path(&s, "metrics.jsonl"), "w");
    for (int i = 0; i < 4500; i++)
        fprintf(file, "{\"step\": %d, \"loss\": %d.5}\n", i, i);
    fclose(file);
    const dms_report_run report = {.folder = s.folder};
    must(dms_report_run_write(scratch_path(&s, "report.html"), &report));
    char *html = read_bytes(scratch_path(&s, "report.html"), NULL);
    cr_assert_not_null(strstr(html, "One step in 3 of 4500"));
    expect_number(html, 3.5);
    expect_number(html, 4499.5);
    cr_assert_null(strstr(html, "data-value=\"4.5\""));
    free(html);
    scratch_close(&s);
}
