/* The report of policies: a page that is whole and harmless, with every number of its lines. And
 * the tasks in the report of a run. */
#include <ctype.h>

#include "data/utf8.h"
#include "eval/report_pareto.h"
#include "eval/report_run.h"
#include "tests/files.h"

static const char hostile[] = "<script src='http://x/'>\"&\x01\xff\xe2\x80\xae</td></svg>";

/* ---- what a page must be -------------------------------------------------------------------- */

typedef struct {
    char names[64][16];
    int n;
} tag_stack;

/* One tag, from behind its '<'; returns what follows its '>'. */
static const char *take_tag(tag_stack *s, const char *at)
{
    char name[16] = "";
    const bool closes = *at == '/';
    at += closes;
    for (int i = 0; i < 15 && (isalnum((unsigned char)*at) || *at == '!'); i++)
        name[i] = *at++;
    bool quoted = false;
    const char *end = at;
    for (; *end && (quoted || *end != '>'); end++) {
        cr_assert(*end != '<', "a '<' in a tag: %.60s", at);
        quoted = quoted != (*end == '"');
    }
    cr_assert(*end == '>', "a tag without an end: %.60s", at);
    if (closes) {
        cr_assert(s->n && !strcmp(s->names[s->n - 1], name), "</%s> closes %s", name,
                  s->n ? s->names[s->n - 1] : "nothing");
        s->n--;
    } else if (end[-1] != '/' && strcmp(name, "meta") && name[0] != '!') {
        cr_assert(s->n < 64);
        strcpy(s->names[s->n++], name);
    }
    return end + 1;
}

static void expect_balanced(const char *page)
{
    tag_stack s = {.n = 0};
    for (const char *at = page; *at;)
        at = *at == '<' ? take_tag(&s, at + 1) : at + 1;
    cr_assert_eq(s.n, 0, "%s is never closed", s.n ? s.names[s.n - 1] : "");
}

static int count(const char *text, const char *part)
{
    int n = 0;
    for (; (text = strstr(text, part)); text += strlen(part))
        n++;
    return n;
}

/* The page, after a check that it is well-formed and needs nothing from elsewhere. */
static char *read_page(const char *path)
{
    static const char *const never[] = {"<script", "<link",  "<img",  "<iframe", "@import", "url(",
                                        "<base",   "src=\"", "href=", "onload",  "<object"};
    size_t n;
    char *page = read_bytes(path, &n);
    expect_balanced(page);
    cr_assert_eq(dms_utf8_valid(page, n), n, "the page is not UTF-8");
    for (size_t i = 0; i < COUNT(never); i++)
        cr_assert_null(strcasestr(page, never[i]), "the page has %s", never[i]);
    cr_assert_null(strstr(page, "\xe2\x80\xae"), "a mark that turns the direction of writing");
    for (size_t i = 0; i < n; i++)
        cr_assert((unsigned char)page[i] >= 0x20 || page[i] == '\n', "a control character");
    return page;
}

/* ---- policies ------------------------------------------------------------------------------- */

static const char lines[] =
    "{\"policy\":\"dense\",\"model\":\"m\",\"task\":\"kld\",\"metrics\":{\"kl\":{\"value\":0.0002,"
    "\"error\":0.00001}},\"better\":\"lower\",\"items\":4,\"total_read_ratio\":1.0,\"peak_ratio\":"
    "1."
    "0,\"device\":\"cpu\",\"dtype\":\"bf16\"}\n"
    "{\"policy\":\"tova:128\",\"model\":\"m\",\"task\":\"kld\",\"metrics\":{\"kl\":{\"value\":0."
    "104677071,\"error\":0.0117871821},\"nll\":{\"value\":3.59665701,\"error\":0.0}},\"better\":"
    "\"lower\",\"items\":4,\"truncated\":3,\"kv_reads\":11888641,\"dense_reads\":35435521,"
    "\"bound_reads\":17,\"read_ratio\":0.335500651,\"total_read_ratio\":0.335500652,"
    "\"kv_peak_tokens\":128.033333,\"dense_peak_tokens\":512.5,\"peak_ratio\":0.250065104,"
    "\"kv_peak_bytes\":3473409,\"kv_prefill_peak_tokens\":129.066667,\"kv_prefill_peak_bytes\":"
    "3183969,\"prefill_tok_s\":108.29068,\"decode_tok_s\":10.9899542,\"seconds\":102.632034}\n"
    "{\"policy\":\"tova:256\",\"model\":\"m\",\"task\":\"kld\",\"metrics\":{\"kl\":{\"value\":null,"
    "\"error\":null}},\"better\":\"lower\",\"total_read_ratio\":0.6,\"peak_ratio\":0.5}\n"
    "{\"policy\":\"dms\",\"model\":\"b\",\"task\":\"kld\",\"metrics\":{\"kl\":{\"value\":0.25,"
    "\"error\":0.1}},\"better\":\"lower\",\"total_read_ratio\":0.5,\"peak_ratio\":0.5}\n"
    "{\"policy\":\"dms\",\"model\":\"b\",\"task\":\"kld\",\"metrics\":{\"kl\":{\"value\":0.21875,"
    "\"error\":0.1}},\"better\":\"lower\",\"total_read_ratio\":0.5,\"peak_ratio\":0.5}\n"
    "{\"policy\":\"dms\",\"model\":\"a\",\"task\":\"kld\",\"metrics\":{\"kl\":{\"value\":0.9,"
    "\"error\":0.1}},\"better\":\"lower\",\"total_read_ratio\":0.2,\"peak_ratio\":0.3}\n"
    "{\"policy\":\"<b>:1\",\"model\":\"<i>&\\\"'\",\"task\":\"</h2>\\u202e\",\"metrics\":{\"<u>\":{"
    "\"value\":1e-300,\"error\":1e300}},\"better\":\"higher\",\"total_read_ratio\":-1,\"peak_"
    "ratio\":"
    "1e308,\"style\":\"<style>\",\"spec\":{\"<k>\":[1,\"</p>\"]}}\n"
    "[1, 2]\n{\"policy\":\"h2o:9\",\"model\":\"m\",\"task\":\"kld\",\"metr";

static char *report_lines(const scratch *s)
{
    char results[1024], out[1024];
    snprintf(results, sizeof(results), "%s/results.jsonl", s->folder);
    snprintf(out, sizeof(out), "%s/report.html", s->folder);
    write_bytes(results, lines, sizeof(lines) - 1);
    must(dms_report_pareto(results, hostile, "dms-eval pareto <x>.yaml", out));
    cr_assert_eq(count_files(s->folder), 2, "a temporary file is left");
    return read_page(out);
}

Test(report_pareto, has_every_number_of_every_line_in_its_table)
{
    static const char *const want[] = {
        "0.104677071", "0.0117871821", "3.59665701",  "4",           "3",
        "11888641",    "35435521",     "17",          "0.335500651", "0.335500652",
        "128.033333",  "512.5",        "0.250065104", "3473409",     "129.066667",
        "3183969",     "108.29068",    "10.9899542",  "102.632034",  "0.0002",
        "0.9",         "0.21875",      "1e-300",      "1e+300",      "1e+308"};
    scratch s = scratch_open();
    char *page = report_lines(&s);
    for (size_t i = 0; i < COUNT(want); i++) {
        char value[64], error[64];
        snprintf(value, sizeof(value), "data-value=\"%s\"", want[i]);
        snprintf(error, sizeof(error), "data-error=\"%s\"", want[i]);
        cr_expect(strstr(page, value) || strstr(page, error), "%s is not in the table", want[i]);
    }
    cr_expect(strstr(page, "cpu, bf16") && strstr(page, "dms-eval pareto &lt;x&gt;.yaml"));
    cr_expect(strstr(page, "&lt;script src=&#39;http://x/&#39;&gt;"), "the config");
    cr_expect(!strstr(page, "data-value=\"0.25\""), "of two lines for the same the last counts");
    cr_expect(!strstr(page, "h2o"), "a line that was cut off");
    free(page);
    scratch_close(&s);
}

Test(report_pareto, draws_a_curve_a_family_and_a_pair_of_figures_a_task)
{
    scratch s = scratch_open();
    char *page = report_lines(&s);
    cr_expect_eq(count(page, "<svg"), 4);
    cr_expect_eq(count(page, "<table>"), 3, "two tasks, and how it was made");
    cr_expect_eq(count(page, "class=\"line c0 emphasis\""), 4, "dms and its label, twice");
    cr_expect_eq(count(page, "<title>dms of a: kl 0.90 ± 0.10"), 2);
    cr_expect_eq(count(page, "<title>dms of b: kl 0.22 ± 0.10"), 2);
    cr_expect(strstr(page, "<title>dms of a") < strstr(page, "<title>dms of b"), "by their reads");
    cr_expect_eq(count(page, "<title>tova:128 of m"), 2);
    cr_expect_eq(count(page, "<title>tova:256 of m"), 0, "its value is null");
    cr_expect_eq(count(page, "Not shown: 1 without a finite value."), 3,
                 "in both figures of kld, and a peak ratio of 1e308");
    cr_expect(strstr(page, "dense 0.0002"));
    free(page);
    scratch_close(&s);
}

Test(report_pareto, of_nothing_is_a_status)
{
    static const char *const empty[] = {"",           "\n",
                                        "{}\n",       "{\"policy\":\"dms\"",
                                        "null\n[]\n", "{\"policy\":\"dms\",\"task\":\"kld\"}\n"};
    scratch s = scratch_open();
    char results[1024], out[1024];
    snprintf(results, sizeof(results), "%s/results.jsonl", s.folder);
    snprintf(out, sizeof(out), "%s/report.html", s.folder);
    rig_expect_failure(dms_report_pareto(results, NULL, NULL, out), DMS_ERR_IO, "results.jsonl");
    for (size_t i = 0; i < COUNT(empty); i++) {
        write_bytes(results, empty[i], strlen(empty[i]));
        rig_expect_failure(dms_report_pareto(results, NULL, NULL, out), DMS_ERR_FORMAT,
                           "no result to report");
    }
    cr_expect(!dms_path_exists(out));
    scratch_close(&s);
}

Test(report_pareto, of_a_file_cut_at_any_byte_is_a_status_or_a_whole_page)
{
    scratch s = scratch_open();
    char results[1024], out[1024];
    snprintf(results, sizeof(results), "%s/results.jsonl", s.folder);
    snprintf(out, sizeof(out), "%s/report.html", s.folder);
    for (size_t n = 0; n < sizeof(lines); n += 37) {
        write_bytes(results, lines, n);
        if (!dms_report_pareto(results, NULL, NULL, out))
            free(read_page(out));
    }
    scratch_close(&s);
}

/* ---- tasks of a run ------------------------------------------------------------------------- */

Test(report_run, has_its_tasks_of_steps_that_came_again_the_last)
{
    static const char metrics[] =
        "{\"step\": 0, \"kl\": 0.5, \"cr\": null}\n{\"step\": 1, \"kl\": 0.8125}\n"
        "{\"step\": 1, \"task\": \"vt\", \"metrics\": {\"match\": {\"value\": 7.25, \"error\": "
        "0.5}}, \"items\": 3}\n"
        "{\"step\": 1, \"kl\": 0.4375}\n"
        "{\"step\": 1, \"task\": \"niah\", \"metrics\": {\"match\": {\"value\": 6.125, \"error\": "
        "0.5}}, \"items\": 3}\n"
        "{\"step\": 1, \"task\": \"niah\", \"metrics\": {\"match\": {\"value\": 88.25, \"error\": "
        "4.5}, \"<u>\": {\"value\": null, \"error\": null}}, \"items\": 40, \"read_ratio\": 0.375, "
        "\"peak_ratio\": 0.4375, \"seconds\": 7.5}\n"
        "{\"step\": 1, \"task\": \"<b>\", \"metrics\": {\"kl\": {\"value\": 0.03125}}}\n"
        "{\"step\": 2, \"lo";
    static const char *const want[] = {"data-value=\"88.25\" data-error=\"4.5\"",
                                       "data-value=\"40\"",
                                       "data-value=\"0.375\"",
                                       "data-value=\"0.4375\"",
                                       "data-value=\"7.5\"",
                                       "data-value=\"0.03125\"",
                                       "&lt;b&gt;",
                                       "&lt;u&gt;"};
    scratch s = scratch_open();
    const dms_report_run report = {.folder = s.folder};
    write_bytes(scratch_path(&s, "metrics.jsonl"), metrics, sizeof(metrics) - 1);
    must(dms_report_run_write(scratch_path(&s, "report.html"), &report));
    char *page = read_page(scratch_path(&s, "report.html"));
    for (size_t i = 0; i < COUNT(want); i++)
        cr_expect(strstr(page, want[i]), "%s is missing", want[i]);
    cr_expect(!strstr(page, "7.25"), "the run went back behind it");
    cr_expect(!strstr(page, "6.125"), "the same task at the same step");
    free(page);
    scratch_close(&s);
}
