#include "eval/report_pareto.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/lines.h"
#include "eval/number.h"
#include "eval/plot.h"

enum { GROUP_FLAGS = JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(9), NOTE_SIZE = 256 };

typedef struct {
    const char *results;
    json_t *lines;    /* array */
    json_t *groups;   /* key of a group to {key of a line: line}, in the file's order */
    json_t *families; /* name to its index */
    dms_html_page *page;
} report;

/* What is plotted of one line. */
typedef struct {
    const json_t *line;
    json_int_t family;
    dms_plot_point point;
    char note[NOTE_SIZE];
} mark;

/* ---- groups --------------------------------------------------------------------------------- */

static bool is_result(const json_t *line)
{
    return *dms_line_text(line, "policy") && *dms_line_text(line, "task") &&
           json_is_object(json_object_get(line, "metrics"));
}

static bool is_dense(const json_t *line)
{
    return !strcmp(dms_line_text(line, "policy"), "dense");
}

/* The values of some keys as one text; the caller frees it. */
static char *key_of(const json_t *line, const char *const *keys, size_t n)
{
    json_t *values = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *value = json_object_get(line, keys[i]);
        json_array_append(values, value ? value : json_null());
    }
    char *text = values ? json_dumps(values, GROUP_FLAGS) : NULL;
    json_decref(values);
    return text;
}

/* The caller frees it. */
static char *family_name(const json_t *line)
{
    const char *policy = dms_line_text(line, "policy");
    return strndup(policy, strcspn(policy, ":"));
}

static bool add_family(report *r, const json_t *line)
{
    if (is_dense(line))
        return true;
    char *name = family_name(line);
    bool done = name != NULL;
    if (name && !json_object_get(r->families, name)) {
        /* 0 is kept for dms, so that it looks the same in every report */
        const json_int_t next = (json_int_t)json_object_size(r->families);
        const bool has_dms = json_object_get(r->families, "dms") != NULL;
        json_t *index = json_integer(!strcmp(name, "dms") ? 0 : next + !has_dms);
        done = !json_object_set_new(r->families, name, index);
    }
    free(name);
    return done;
}

/* -1: dense, which has none. */
static json_int_t family_of(const report *r, const json_t *line)
{
    char *name = is_dense(line) ? NULL : family_name(line);
    const json_int_t index = name ? json_integer_value(json_object_get(r->families, name)) : -1;
    free(name);
    return index;
}

static bool add_line(report *r, json_t *line)
{
    static const char *const of_group[] = {"task", "spec", "settings", "seed"};
    static const char *const of_line[] = {"policy", "model"};
    char *group_key = key_of(line, of_group, 4), *line_key = key_of(line, of_line, 2);
    json_t *group = group_key ? json_object_get(r->groups, group_key) : NULL;
    bool done = group_key && line_key;
    if (done && !group) {
        group = json_object();
        done = !json_object_set_new(r->groups, group_key, group);
    }
    done = done && !json_object_set(group, line_key, line) && add_family(r, line);
    free(group_key);
    free(line_key);
    return done;
}

static dms_status sort_lines(report *r)
{
    size_t i;
    json_t *line;
    r->groups = json_object();
    r->families = json_object();
    json_array_foreach(
        r->lines, i,
        line) if (is_result(line) &&
                  !add_line(r, line)) return dms_fail(DMS_ERR_NOMEM,
                                                      "no memory for the results of %s",
                                                      r->results);
    if (!json_object_size(r->groups))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s has no result to report, expected lines with policy, task and metrics",
                        r->results);
    return DMS_OK;
}

static const json_t *first_of(const json_t *group)
{
    return json_object_iter_value(json_object_iter((json_t *)group));
}

static const char *first_metric(const json_t *group)
{
    const json_t *metrics = json_object_get(first_of(group), "metrics");
    const char *name = json_object_iter_key(json_object_iter((json_t *)metrics));
    return name ? name : "";
}

static double metric(const json_t *line, const char *name, const char *part)
{
    return dms_line_number(json_object_get(json_object_get(line, "metrics"), name), part);
}

/* ---- figures -------------------------------------------------------------------------------- */

static int by_family_and_x(const void *a, const void *b)
{
    const mark *x = a, *y = b;
    if (x->family != y->family)
        return x->family < y->family ? -1 : 1;
    const double p = x->point.x, q = y->point.x;
    if (isnan(p) || isnan(q))
        return isnan(p) - isnan(q);
    return (p > q) - (p < q);
}

static mark mark_of(const report *r, const json_t *line, const char *name, const char *cost)
{
    mark m = {.line = line, .family = family_of(r, line)};
    char value[DMS_NUMBER_SIZE], x[DMS_NUMBER_SIZE];
    m.point = (dms_plot_point){.x = dms_line_number(line, cost),
                               .y = metric(line, name, "value"),
                               .error = metric(line, name, "error")};
    snprintf(m.note, sizeof(m.note), "%.40s of %.80s: %.24s %s at %s",
             dms_line_text(line, "policy"), dms_line_text(line, "model"), name,
             dms_number_measure(value, m.point.y, m.point.error),
             dms_number_short(x, m.point.x, 3));
    return m;
}

/* Over a factor of 8 a linear axis would press most curves against one side. */
static bool wants_log(const mark *marks, int64_t n, bool of_y)
{
    double low = INFINITY, high = 0;
    for (int64_t i = 0; i < n; i++) {
        const double v = of_y ? marks[i].point.y : marks[i].point.x;
        if (!isfinite(v))
            continue;
        if (!(v > 0))
            return false;
        low = fmin(low, v);
        high = fmax(high, v);
    }
    return high > (of_y ? 8 : 4) * low;
}

static const char *long_name(const char *metric_name)
{
    static const char *const names[][2] = {
        {"kl", "KL from dense (nats/token)"},
        {"nll", "negative log-likelihood (nats/token)"},
        {"ppl", "perplexity per token"},
        {"top1", "top-1 agreement with dense"},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(metric_name, names[i][0]))
            return names[i][1];
    return metric_name;
}

typedef struct {
    const char *cost, *name; /* key, and the axis' name */
    const char *caption;
} figure;

static const figure figures[] = {
    {"total_read_ratio", "KV reads relative to a dense cache",
     "Quality against memory traffic: slots that decode steps read, and page bounds counted as "
     "slots, over those that a dense cache reads."},
    {"peak_ratio", "peak KV slots relative to a dense cache",
     "Quality against memory: the most slots alive at once during decode, over a dense cache's."},
};

/* Curves of sorted marks; the points of all lie in `points`. */
static int curves(dms_plot_series *series, dms_plot_point *points, const report *r, mark *marks,
                  int64_t n)
{
    int k = 0;
    for (int64_t i = 0; i < n; i++) {
        points[i] = marks[i].point;
        points[i].note = marks[i].note;
        if (i && marks[i].family == marks[i - 1].family) {
            series[k - 1].n++;
            continue;
        }
        const char *name = NULL;
        json_t *index;
        json_object_foreach(r->families, name,
                            index) if (json_integer_value(index) == marks[i].family) break;
        series[k++] = (dms_plot_series){.name = name,
                                        .points = points + i,
                                        .n = 1,
                                        .style = (int)marks[i].family,
                                        .emphasis = marks[i].family == 0};
    }
    return k;
}

static dms_status draw(const report *r, const dms_plot *plot, const char *caption)
{
    int64_t missing = 0;
    dms_page_figure_begin(r->page, false);
    DMS_TRY(dms_plot_draw(r->page, plot, &missing));
    if (missing)
        dms_page_figure_end(r->page, "%s Not shown: %lld without a finite value.", caption,
                            (long long)missing);
    else
        dms_page_figure_end(r->page, "%s", caption);
    return DMS_OK;
}

static dms_status draw_figure(const report *r, const json_t *group, const figure *f)
{
    const int64_t most = (int64_t)json_object_size(group);
    const char *name = first_metric(group), *key;
    const bool lower = !strcmp(dms_line_text(first_of(group), "better"), "lower");
    mark *marks = calloc((size_t)most, sizeof(*marks));
    dms_plot_point *points = calloc((size_t)most, sizeof(*points));
    dms_plot_series *series = calloc((size_t)most, sizeof(*series));
    char y_name[128];
    dms_status status = DMS_OK;
    double dense = NAN;
    int64_t n = 0;
    json_t *line;
    if (!marks || !points || !series) {
        status = dms_fail(DMS_ERR_NOMEM, "no memory for a figure of %lld points", (long long)most);
        goto done;
    }
    json_object_foreach((json_t *)group, key, line)
    {
        if (is_dense(line))
            dense = metric(line, name, "value");
        else
            marks[n++] = mark_of(r, line, name, f->cost);
    }
    qsort(marks, (size_t)n, sizeof(*marks), by_family_and_x);
    snprintf(y_name, sizeof(y_name), "%.80s, %s is better", long_name(name),
             lower ? "lower" : "higher");
    const bool log = wants_log(marks, n, false);
    const dms_plot plot = {.title = f->caption,
                           .x = {.name = f->name, .log = log, .to = log ? 0 : 1},
                           .y = {.name = y_name, .log = lower && wants_log(marks, n, true)},
                           .series = series,
                           .n_series = curves(series, points, r, marks, n),
                           .has_reference = isfinite(dense),
                           .reference = dense,
                           .reference_name = "dense",
                           .height = 400};
    status = draw(r, &plot, f->caption);
done:
    free(marks);
    free(points);
    free(series);
    return status;
}

/* ---- tables --------------------------------------------------------------------------------- */

static const struct {
    const char *key, *head;
    enum { PLAIN, BYTES, SECONDS } unit;
} columns[] = {
    {"read_ratio", "reads ratio", PLAIN},
    {"total_read_ratio", "with bounds", PLAIN},
    {"peak_ratio", "peak ratio", PLAIN},
    {"kv_reads", "KV reads", PLAIN},
    {"bound_reads", "bound reads", PLAIN},
    {"dense_reads", "dense reads", PLAIN},
    {"kv_peak_tokens", "peak tokens", PLAIN},
    {"dense_peak_tokens", "dense peak tokens", PLAIN},
    {"kv_peak_bytes", "peak bytes", BYTES},
    {"kv_prefill_peak_tokens", "prefill peak tokens", PLAIN},
    {"kv_prefill_peak_bytes", "prefill peak bytes", BYTES},
    {"prefill_tok_s", "prefill tok/s", PLAIN},
    {"decode_tok_s", "decode tok/s", PLAIN},
    {"seconds", "time", SECONDS},
    {"items", "items", PLAIN},
    {"truncated", "truncated", PLAIN},
};
enum { N_COLUMNS = sizeof(columns) / sizeof(columns[0]) };

static void put_cost(dms_html_page *p, const json_t *line, int i)
{
    const double x = dms_line_number(line, columns[i].key);
    char text[DMS_NUMBER_SIZE];
    if (columns[i].unit == BYTES)
        dms_page_cell_number(p, dms_number_bytes(text, x), x);
    else if (columns[i].unit == SECONDS)
        dms_page_cell_number(p, dms_number_seconds(text, x), x);
    else
        dms_page_cell_value(p, x);
}

static void put_row(dms_html_page *p, const json_t *line, const json_t *metrics)
{
    const char *name;
    json_t *ignored;
    dms_page_row(p);
    dms_page_cell(p, dms_line_text(line, "policy"));
    dms_page_cell(p, dms_line_text(line, "model"));
    json_object_foreach((json_t *)metrics, name, ignored)
        dms_page_cell_measure(p, metric(line, name, "value"), metric(line, name, "error"));
    for (int i = 0; i < N_COLUMNS; i++)
        put_cost(p, line, i);
}

/* Dense first, then family by family, from few reads to many. */
static dms_status put_rows(const report *r, const json_t *group, const json_t *metrics)
{
    mark *marks = calloc(json_object_size(group), sizeof(*marks));
    size_t n = 0;
    const char *key;
    json_t *line;
    if (!marks)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a table");
    json_object_foreach((json_t *)group, key, line) marks[n++] =
        mark_of(r, line, "", "total_read_ratio");
    qsort(marks, n, sizeof(*marks), by_family_and_x);
    for (size_t i = 0; i < n; i++)
        put_row(r->page, marks[i].line, metrics);
    free(marks);
    return DMS_OK;
}

static dms_status put_table(const report *r, const json_t *group)
{
    json_t *metrics = json_object(), *line, *ignored;
    const char *key, *name;
    dms_status status = DMS_OK;
    json_object_foreach((json_t *)group, key, line)
        json_object_foreach(json_object_get(line, "metrics"), name, ignored)
            json_object_set_new(metrics, name, json_null());
    const size_t n = 2 + json_object_size(metrics) + N_COLUMNS;
    const char **heads = calloc(n, sizeof(*heads));
    if (!metrics || !heads) {
        status = dms_fail(DMS_ERR_NOMEM, "no memory for a table");
        goto done;
    }
    size_t at = 0;
    heads[at++] = "<policy";
    heads[at++] = "<model";
    json_object_foreach(metrics, name, ignored) heads[at++] = name;
    for (int i = 0; i < N_COLUMNS; i++)
        heads[at++] = columns[i].head;
    dms_page_table_begin(r->page, heads, (int)at);
    status = put_rows(r, group, metrics);
    dms_page_table_end(r->page);
done:
    free(heads);
    json_decref(metrics);
    return status;
}

/* ---- the page ------------------------------------------------------------------------------- */

/* "no begin-of-text, prompt of 256; context 512; sequences 4": the caller frees it. */
static char *settings_of(const json_t *line)
{
    char *text = NULL;
    size_t n = 0;
    const char *key;
    json_t *value;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return NULL;
    fputs(dms_line_text(line, "style"), out);
    json_object_foreach(json_object_get(line, "spec"), key, value)
    {
        const char *string = json_string_value(value);
        if (!strcmp(key, "task") || !strcmp(key, "name"))
            continue;
        fprintf(out, "; %s ", key);
        if (string)
            fputs(string, out);
        else
            json_dumpf(value, out, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    }
    fclose(out);
    return text;
}

static dms_status put_group(const report *r, const json_t *group)
{
    const json_t *first = first_of(group);
    char *settings = settings_of(first);
    dms_page_heading(r->page, dms_line_text(first, "task"));
    dms_page_paragraph(r->page, "soft", "%s", settings ? settings : "");
    free(settings);
    dms_page_figures_begin(r->page);
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
        DMS_TRY(draw_figure(r, group, &figures[i]));
    dms_page_figures_end(r->page);
    dms_page_paragraph(r->page, "soft",
                       "Bars: one standard error to both sides. The table has every value in full "
                       "as a tooltip; ratios are to a dense cache, peaks are of decode, tokens "
                       "those of an average KV head.");
    return put_table(r, group);
}

/* "cpu, bf16; cuda, bf16": what the lines say; the caller frees it. */
static char *machines(const report *r)
{
    json_t *seen = json_object(), *line;
    char *text = NULL;
    size_t i, n = 0;
    const char *name;
    FILE *out = open_memstream(&text, &n);
    json_array_foreach(r->lines, i, line)
    {
        char one[128];
        const char *dtype = dms_line_text(line, "dtype");
        snprintf(one, sizeof(one), "%.60s%s%.60s", dms_line_text(line, "device"),
                 *dtype ? ", " : "", dtype);
        if (*one && is_result(line))
            json_object_set_new(seen, one, json_null());
    }
    i = 0;
    json_object_foreach(seen, name, line) if (out) fprintf(out, "%s%s", i++ ? "; " : "", name);
    json_decref(seen);
    if (out)
        fclose(out);
    return text;
}

static dms_status fill(const report *r, const char *config, const char *command)
{
    char date[DMS_DATE_SIZE];
    const char *key;
    json_t *group;
    json_object_foreach(r->groups, key, group) DMS_TRY(put_group(r, group));
    char *machine = machines(r);
    const dms_origin origin = {
        .command = command, .machine = machine, .date = dms_lines_date(date), .config = config};
    dms_page_origin(r->page, &origin);
    free(machine);
    return DMS_OK;
}

static dms_status write_page(report *r, const char *config, const char *command, const char *out)
{
    char subtitle[160];
    snprintf(subtitle, sizeof(subtitle),
             "Quality of a compressed KV cache against what it reads and what it holds, under one "
             "accounting; %zu task%s, %zu policies beside dense.",
             json_object_size(r->groups), json_object_size(r->groups) == 1 ? "" : "s",
             json_object_size(r->families));
    DMS_TRY(dms_page_open(&r->page, "Cache policies compared", subtitle));
    DMS_TRY(fill(r, config, command));
    return dms_page_write(r->page, out);
}

dms_status dms_report_pareto(const char *results, const char *config, const char *command,
                             const char *out)
{
    report r = {.results = results};
    dms_status status = dms_lines_read(&r.lines, results);
    if (!status)
        status = sort_lines(&r);
    if (!status)
        status = write_page(&r, config, command, out);
    dms_page_close(r.page);
    json_decref(r.lines);
    json_decref(r.groups);
    json_decref(r.families);
    return status;
}
