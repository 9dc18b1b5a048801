#include "eval/report_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"
#include "eval/heatmap.h"
#include "eval/lines.h"
#include "eval/number.h"
#include "eval/plot.h"
#include "eval/run_log.h"

enum { MOST_ROWS = 2000, MOST_KEYS = 48 };

typedef struct {
    const dms_report_run *report;
    dms_html_page *page;
    dms_run_log log;
    dms_plot_point *raw, *mean, *other; /* [n_steps] each */
    dms_plot_point *held, *held_other;  /* [n_evals] each */
    int64_t half;                       /* a mean is over 2*half + 1 steps */
} writer;

/* ---- curves --------------------------------------------------------------------------------- */

static void curve(dms_plot_point *out, const writer *w, int field)
{
    for (int64_t i = 0; i < w->log.n_steps; i++)
        out[i] =
            (dms_plot_point){.x = (double)w->log.steps[i].step, .y = w->log.steps[i].values[field]};
}

/* Over the steps at most `half` to each side, as many as there are; missing ones are left out. */
static void smooth(dms_plot_point *out, const dms_plot_point *raw, int64_t n, int64_t half)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        int64_t count = 0;
        for (int64_t k = i > half ? i - half : 0; k <= i + half && k < n; k++)
            if (isfinite(raw[k].y)) {
                sum += raw[k].y;
                count++;
            }
        out[i] = (dms_plot_point){.x = raw[i].x, .y = count ? sum / (double)count : NAN};
    }
}

static void held_out(dms_plot_point *out, const writer *w, const char *key)
{
    for (int64_t i = 0; i < w->log.n_evals; i++) {
        const json_t *value = json_object_get(w->log.evals[i].values, key);
        out[i] = (dms_plot_point){.x = (double)w->log.evals[i].step,
                                  .y = json_is_number(value) ? json_number_value(value) : NAN};
    }
}

static bool any(const dms_plot_point *points, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (isfinite(points[i].y))
            return true;
    return false;
}

/* A log axis for what is above 0 and spans a factor of 30, a rare outlier on each side aside. */
static bool wants_log(const dms_plot_point *points, int64_t n)
{
    double low = INFINITY, high = 0;
    for (int64_t i = n / 50; i < n; i++)
        if (points[i].y > 0 && isfinite(points[i].y)) {
            low = fmin(low, points[i].y);
            high = fmax(high, points[i].y);
        }
    return high > 30 * low;
}

/* Draws one of the run's figures and says under it what is missing. */
static dms_status draw(writer *w, const dms_plot *plot, const char *caption)
{
    char mean[80] = "", left_out[96] = "";
    int64_t missing;
    dms_page_figure_begin(w->page, false);
    DMS_TRY(dms_plot_draw(w->page, plot, &missing));
    if (w->half && plot->n_series && plot->series[0].faint)
        snprintf(mean, sizeof(mean), " Pale: each step; bold: mean over %" PRId64 " steps.",
                 2 * w->half + 1);
    if (missing)
        snprintf(left_out, sizeof(left_out), " Not shown: %" PRId64 " not finite%s.", missing,
                 plot->y.log ? " or not above 0" : "");
    dms_page_figure_end(w->page, "%s%s%s", caption, mean, left_out);
    return DMS_OK;
}

/* A field's values, pale, and their mean, in the same colour. */
static void raw_and_mean(dms_plot_series *out, writer *w, int field, const char *name, int style)
{
    const int64_t n = w->log.n_steps;
    curve(w->raw, w, field);
    smooth(w->mean, w->raw, n, w->half);
    out[0] = (dms_plot_series){
        .points = w->raw, .n = w->half ? n : 0, .style = style, .faint = true, .plain = true};
    out[1] = (dms_plot_series){
        .name = name, .points = w->mean, .n = n, .style = style, .plain = true, .solid = true};
}

static dms_status draw_loss(writer *w)
{
    const int64_t n = w->log.n_steps;
    dms_plot_series series[4];
    raw_and_mean(series, w, DMS_RUN_KL, "KL", 1);
    curve(w->other, w, DMS_RUN_COMPRESS);
    held_out(w->held, w, "kl_forward");
    series[2] = (dms_plot_series){.name = "compression",
                                  .points = w->other,
                                  .n = n,
                                  .style = 2,
                                  .plain = true,
                                  .solid = true};
    series[3] = (dms_plot_series){
        .name = "KL, held out", .points = w->held, .n = w->log.n_evals, .style = 0, .bare = true};
    const dms_plot plot = {.title = "Loss by step",
                           .x = {.name = "step"},
                           .y = {.name = "loss", .log = wants_log(w->mean, n)},
                           .series = series,
                           .n_series = any(w->held, w->log.n_evals) ? 4 : 3};
    return draw(
        w, &plot,
        "The two parts of the loss: divergence from the teacher, and what is missing to the "
        "target's fraction of evictions.");
}

static dms_status draw_ratio(writer *w)
{
    const int64_t n = w->log.n_steps, n_evals = w->log.n_evals;
    curve(w->raw, w, DMS_RUN_CR);
    curve(w->other, w, DMS_RUN_TARGET_CR);
    held_out(w->held, w, "decision_cr");
    held_out(w->held_other, w, "cache_cr");
    const dms_plot_series series[] = {
        {.name = "reached", .points = w->raw, .n = n, .style = 1, .plain = true, .solid = true},
        {.name = "target", .points = w->other, .n = n, .style = 6, .plain = true},
        {.name = "held out, decisions", .points = w->held, .n = n_evals, .style = 0, .bare = true},
        {.name = "held out, cache",
         .points = w->held_other,
         .n = n_evals,
         .style = 3,
         .bare = true}};
    const bool evaluated = any(w->held, n_evals) || any(w->held_other, n_evals);
    const dms_plot plot = {.title = "Compression ratio by step",
                           .x = {.name = "step"},
                           .y = {.name = "compression ratio", .from = 1, .to = 1},
                           .series = series,
                           .n_series = evaluated ? 4 : 2};
    return draw(
        w, &plot,
        "Compression ratio 1/(1 - evicted) of the decisions in training, with noise, and its "
        "target; on held-out text of the decisions without noise, and of the cache, which "
        "also holds the window.");
}

static dms_status draw_rate(writer *w)
{
    curve(w->raw, w, DMS_RUN_LR);
    const dms_plot_series series = {
        .points = w->raw, .n = w->log.n_steps, .style = 2, .plain = true, .solid = true};
    const dms_plot plot = {.title = "Learning rate by step",
                           .x = {.name = "step"},
                           .y = {.name = "learning rate", .to = w->raw[0].y},
                           .series = &series,
                           .n_series = 1,
                           .height = 300};
    return draw(w, &plot, "Learning rate.");
}

static dms_status draw_norm(writer *w)
{
    dms_plot_series series[2];
    raw_and_mean(series, w, DMS_RUN_GRAD_NORM, NULL, 3);
    const dms_plot plot = {.title = "Gradient norm by step",
                           .x = {.name = "step"},
                           .y = {.name = "gradient norm", .log = wants_log(w->raw, w->log.n_steps)},
                           .series = series,
                           .n_series = 2,
                           .height = 300};
    return draw(w, &plot, "Norm of the gradient, before clipping.");
}

static dms_status write_curves(writer *w)
{
    if (!w->log.n_steps)
        return DMS_OK;
    dms_page_heading(w->page, "Training");
    dms_page_figures_begin(w->page);
    DMS_TRY(draw_loss(w));
    DMS_TRY(draw_ratio(w));
    DMS_TRY(draw_rate(w));
    DMS_TRY(draw_norm(w));
    dms_page_figures_end(w->page);
    return DMS_OK;
}

/* ---- where it evicts ------------------------------------------------------------------------ */

static dms_status write_map(writer *w)
{
    const dms_report_run *r = w->report;
    const dms_heatmap map = {.title = "Compression ratio of each KV head in each layer",
                             .values = r->ratios,
                             .columns = r->layers,
                             .rows = r->kv_heads,
                             .column_name = "layer",
                             .row_name = "KV head",
                             .value_name = "ratio",
                             .log = true};
    dms_page_heading(w->page, "Where it compresses");
    if (!r->ratios) {
        dms_page_paragraph(w->page, NULL, "%s", r->ratios_note);
        return DMS_OK;
    }
    dms_page_figure_begin(w->page, true);
    DMS_TRY(dms_heatmap_draw(w->page, &map));
    dms_page_figure_end(w->page,
                        "Compression ratio reached by each KV head of each layer; colours by its "
                        "logarithm.%s%s",
                        r->ratios_note ? " " : "", r->ratios_note ? r->ratios_note : "");
    return DMS_OK;
}

/* A line break of the text is a sign, and a second one in a row begins a new line: texts that are
 * broken by hand would be as long and thin as they are there. */
static void write_token(dms_html_page *p, const char *token, double fraction, int *breaks)
{
    char text[DMS_NUMBER_SIZE];
    const bool known = fraction >= 0 && fraction <= 1;
    if (!*token)
        return;
    fprintf(dms_page_out(p), "<i style=\"--f:%.3f\" title=\"%s\">", known ? fraction : 0,
            known ? dms_number_exact(text, fraction) : "not known");
    while (*token) {
        const size_t n = strcspn(token, "\n");
        dms_page_text_n(p, token, n);
        *breaks = n ? 0 : *breaks;
        token += n;
        if (*token) {
            fputs(*breaks == 1 ? "<em>↵</em>\n" : "<em>↵</em> ", dms_page_out(p));
            ++*breaks;
            token++;
        }
    }
    fputs("</i>", dms_page_out(p));
}

static void write_sample(writer *w)
{
    const dms_report_run *r = w->report;
    FILE *out = dms_page_out(w->page);
    dms_page_heading(w->page, "What it evicts");
    dms_page_paragraph(w->page, NULL,
                       "A sample text. The shade behind each token is the fraction of all KV heads "
                       "that evict it once it leaves the window.");
    fputs("<div class=\"scale\">kept by all ", out);
    for (int i = 0; i <= 4; i++)
        fprintf(out, "<i style=\"--f:%.2f\" title=\"%.2f\"></i>", i / 4.0, i / 4.0);
    fputs(" evicted by all</div>\n<div class=\"sample\">", out);
    int breaks = 0;
    for (int64_t i = 0; i < r->n_tokens; i++)
        write_token(w->page, r->tokens[i] ? r->tokens[i] : "", (double)r->fractions[i], &breaks);
    fputs("</div>\n", out);
}

/* ---- tables --------------------------------------------------------------------------------- */

/* The keys of evaluations, those of objects in objects with a dot between. */
typedef struct {
    char *all[MOST_KEYS];
    int n;
} keys;

static dms_status add_key(keys *k, const char *prefix, const char *name)
{
    char *key = NULL;
    if (asprintf(&key, "%s%s%s", prefix, *prefix ? "." : "", name) < 0)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the table of evaluations");
    for (int i = 0; i < k->n; i++)
        if (!strcmp(k->all[i], key)) {
            free(key);
            return DMS_OK;
        }
    if (k->n == MOST_KEYS)
        free(key);
    else
        k->all[k->n++] = key;
    return DMS_OK;
}

static dms_status add_keys(keys *k, json_t *object)
{
    const char *name, *inner;
    json_t *value, *part;
    json_object_foreach(object, name, value)
    {
        if (!json_is_object(value)) {
            DMS_TRY(add_key(k, "", name));
            continue;
        }
        json_object_foreach(value, inner, part) DMS_TRY(add_key(k, name, inner));
    }
    return DMS_OK;
}

static const json_t *find(const json_t *values, const char *key)
{
    const json_t *whole = json_object_get(values, key);
    const char *dot = strchr(key, '.');
    char name[256];
    if (whole || !dot || dot - key >= (long)sizeof(name))
        return whole;
    snprintf(name, sizeof(name), "%.*s", (int)(dot - key), key);
    return json_object_get(json_object_get(values, name), dot + 1);
}

static void write_eval(dms_html_page *p, const dms_run_eval *eval, const keys *k)
{
    dms_page_row(p);
    dms_page_cell_value(p, (double)eval->step);
    for (int i = 0; i < k->n; i++) {
        const json_t *value = find(eval->values, k->all[i]);
        if (json_is_string(value))
            dms_page_cell(p, json_string_value(value));
        else if (json_is_boolean(value))
            dms_page_cell(p, json_is_true(value) ? "yes" : "no");
        else
            dms_page_cell_value(p, json_is_number(value) ? json_number_value(value) : NAN);
    }
}

static dms_status write_evals(writer *w)
{
    keys k = {.n = 0};
    dms_status status = DMS_OK;
    const char *heads[MOST_KEYS + 1] = {"step"};
    if (!w->log.n_evals)
        return DMS_OK;
    for (int64_t i = 0; i < w->log.n_evals && !status; i++)
        status = add_keys(&k, w->log.evals[i].values);
    for (int i = 0; i < k.n; i++)
        heads[i + 1] = k.all[i] + strspn(k.all[i], "<");
    if (!status) {
        dms_page_heading(w->page, "Evaluation on held-out text");
        dms_page_table_begin(w->page, heads, k.n + 1);
        for (int64_t i = 0; i < w->log.n_evals; i++)
            write_eval(w->page, &w->log.evals[i], &k);
        dms_page_table_end(w->page);
    }
    for (int i = 0; i < k.n; i++)
        free(k.all[i]);
    return status;
}

/* A row a metric: tasks differ in what they measure. */
static void write_tasks(writer *w)
{
    static const char *const heads[] = {"step",  "<task",       "<metric",    "value",
                                        "items", "reads ratio", "peak ratio", "time"};
    static const char *const costs[] = {"items", "read_ratio", "peak_ratio"};
    dms_html_page *p = w->page;
    char text[DMS_NUMBER_SIZE];
    if (!w->log.n_tasks)
        return;
    dms_page_heading(p, "Tasks");
    dms_page_table_begin(p, heads, sizeof(heads) / sizeof(heads[0]));
    for (int64_t i = 0; i < w->log.n_tasks; i++) {
        json_t *line = w->log.tasks[i].values, *metric;
        const double seconds = dms_line_number(line, "seconds");
        const char *name;
        json_object_foreach(json_object_get(line, "metrics"), name, metric)
        {
            dms_page_row(p);
            dms_page_cell_value(p, (double)w->log.tasks[i].step);
            dms_page_cell(p, dms_line_text(line, "task"));
            dms_page_cell(p, name);
            dms_page_cell_measure(p, dms_line_number(metric, "value"),
                                  dms_line_number(metric, "error"));
            for (size_t k = 0; k < sizeof(costs) / sizeof(costs[0]); k++)
                dms_page_cell_value(p, dms_line_number(line, costs[k]));
            dms_page_cell_number(p, dms_number_seconds(text, seconds), seconds);
        }
    }
    dms_page_table_end(p);
}

/* Of a long run each k-th step and the last: the table stays below MOST_ROWS rows. */
static void write_steps(writer *w)
{
    const int64_t n = w->log.n_steps, every = (n + MOST_ROWS - 1) / MOST_ROWS;
    const char *heads[DMS_RUN_N_FIELDS + 1] = {"step"};
    char summary[128];
    if (!n)
        return;
    memcpy(heads + 1, dms_run_field_names, DMS_RUN_N_FIELDS * sizeof(*heads));
    if (every == 1)
        snprintf(summary, sizeof(summary), "All %" PRId64 " steps", n);
    else
        snprintf(summary, sizeof(summary),
                 "One step in %" PRId64 " of %" PRId64 "; metrics.jsonl has all", every, n);
    dms_page_details_begin(w->page, summary);
    dms_page_table_begin(w->page, heads, DMS_RUN_N_FIELDS + 1);
    for (int64_t i = 0; i < n; i++) {
        if (i % every && i != n - 1)
            continue;
        dms_page_row(w->page);
        dms_page_cell_value(w->page, (double)w->log.steps[i].step);
        for (int k = 0; k < DMS_RUN_N_FIELDS; k++)
            dms_page_cell_value(w->page, w->log.steps[i].values[k]);
    }
    dms_page_table_end(w->page);
    dms_page_details_end(w->page);
}

/* ---- the page ------------------------------------------------------------------------------- */

static double total(const writer *w, int field)
{
    double sum = 0;
    for (int64_t i = 0; i < w->log.n_steps; i++)
        if (isfinite(w->log.steps[i].values[field]))
            sum += w->log.steps[i].values[field];
    return sum;
}

/* The last evaluation that has the key. */
static double last_eval(const writer *w, const char *key)
{
    for (int64_t i = w->log.n_evals - 1; i >= 0; i--) {
        const json_t *value = json_object_get(w->log.evals[i].values, key);
        if (json_is_number(value))
            return json_number_value(value);
    }
    return NAN;
}

static void eval_tile(writer *w, const char *key, const char *name)
{
    char text[DMS_NUMBER_SIZE];
    const double x = last_eval(w, key);
    if (isfinite(x))
        dms_page_tile(w->page, dms_number_short(text, x, 3), name, "held out");
}

static void write_tiles(writer *w)
{
    char text[DMS_NUMBER_SIZE], number[DMS_NUMBER_SIZE], note[DMS_NUMBER_SIZE + 16];
    const int64_t n = w->log.n_steps;
    dms_page_tiles_begin(w->page);
    if (n) {
        const dms_run_step *last = &w->log.steps[n - 1];
        dms_page_tile(w->page, dms_number_short(text, (double)last->step, 4), "last step", NULL);
        snprintf(note, sizeof(note), "target %s",
                 dms_number_short(number, last->values[DMS_RUN_TARGET_CR], 3));
        dms_page_tile(w->page, dms_number_short(text, last->values[DMS_RUN_CR], 3),
                      "compression ratio", note);
    }
    eval_tile(w, "decision_cr", "compression ratio");
    eval_tile(w, "read_ratio", "reads, fraction of dense");
    eval_tile(w, "kl_forward", "KL(teacher ‖ student), nats");
    eval_tile(w, "agreement", "top-1 agreement");
    if (n) {
        snprintf(note, sizeof(note), "%s tokens",
                 dms_number_short(number, total(w, DMS_RUN_TOKENS), 4));
        dms_page_tile(w->page, dms_number_seconds(text, total(w, DMS_RUN_SECONDS)), "time in steps",
                      note);
    }
    dms_page_tiles_end(w->page);
}

static dms_status write_body(writer *w)
{
    const dms_report_run *r = w->report;
    write_tiles(w);
    if (w->log.skipped)
        dms_page_paragraph(w->page, NULL,
                           "%" PRId64 " lines of metrics.jsonl could not be read and are left out.",
                           w->log.skipped);
    DMS_TRY(write_curves(w));
    if (r->ratios || r->ratios_note)
        DMS_TRY(write_map(w));
    if (r->tokens && r->n_tokens)
        write_sample(w);
    DMS_TRY(write_evals(w));
    write_tasks(w);
    write_steps(w);
    return DMS_OK;
}

static dms_status write_origin(writer *w)
{
    dms_origin origin = w->report->origin;
    char *config = NULL;
    if (!origin.config) {
        char *path = dms_path_join(w->report->folder, "config.yaml");
        const dms_status status = path ? dms_text_read(&config, NULL, path)
                                       : dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
        free(path);
        DMS_TRY(status);
        origin.config = config;
    }
    dms_page_origin(w->page, &origin);
    free(config);
    return DMS_OK;
}

static dms_status open_log(writer *w)
{
    char *path = dms_path_join(w->report->folder, "metrics.jsonl");
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const dms_status status = dms_run_log_read(&w->log, path);
    free(path);
    DMS_TRY(status);
    const size_t n = (size_t)w->log.n_steps + 1, n_evals = (size_t)w->log.n_evals + 1;
    w->raw = calloc(n, sizeof(*w->raw));
    w->mean = calloc(n, sizeof(*w->mean));
    w->other = calloc(n, sizeof(*w->other));
    w->held = calloc(n_evals, sizeof(*w->held));
    w->held_other = calloc(n_evals, sizeof(*w->held_other));
    if (!w->raw || !w->mean || !w->other || !w->held || !w->held_other)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the curves of a run");
    w->half = w->log.n_steps < 80 ? 0 : w->log.n_steps / 80 < 50 ? w->log.n_steps / 80 : 50;
    return DMS_OK;
}

static dms_status open_page(writer *w)
{
    const dms_report_run *r = w->report;
    const char *end = r->folder + strlen(r->folder);
    while (end > r->folder && end[-1] == '/')
        end--;
    const char *begin = end;
    while (begin > r->folder && begin[-1] != '/')
        begin--;
    char *name = strndup(begin, (size_t)(end - begin));
    if (!name)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the title of a report");
    const dms_status status =
        dms_page_open(&w->page, r->title ? r->title : name, "A training run of dms.c.");
    free(name);
    return status;
}

dms_status dms_report_run_write(const char *path, const dms_report_run *report)
{
    writer w = {.report = report};
    dms_status status;
    if (report->n_tokens < 0 || (report->tokens && !report->fractions))
        return dms_fail(DMS_ERR_ARG, "a sample of %" PRId64 " tokens %s fractions, expected both",
                        report->n_tokens, report->fractions ? "with" : "without");
    DMS_TRY_OR(done, open_log(&w));
    DMS_TRY_OR(done, open_page(&w));
    DMS_TRY_OR(done, write_body(&w));
    DMS_TRY_OR(done, write_origin(&w));
    DMS_TRY_OR(done, dms_page_write(w.page, path));
done:
    dms_page_close(w.page);
    dms_run_log_close(&w.log);
    free(w.raw);
    free(w.mean);
    free(w.other);
    free(w.held);
    free(w.held_other);
    return status;
}
