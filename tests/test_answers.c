/* Answers: tables of outputs with the verdicts of the benchmarks' own rules, and where they end. */
#include <jansson.h>
#include <math.h>

#include "tasks/answer_math.h"
#include "tasks/items.h"
#include "tests/rig.h"

/* Every row of tests/answers/TASK.jsonl, at least 40. */
static void each_row(const char *task, void (*check)(const json_t *row))
{
    char path[512], line[4096];
    int n = 0;
    snprintf(path, sizeof(path), "%s/tests/answers/%s.jsonl", DMS_SOURCE_DIR, task);
    FILE *f = fopen(path, "r");
    cr_assert_not_null(f, "%s", path);
    for (; fgets(line, sizeof(line), f); n++) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL);
        cr_assert_not_null(row, "%s:%d", task, n + 1);
        check(row);
        json_decref(row);
    }
    fclose(f);
    cr_assert_geq(n, 40, "%s has %d rows", task, n);
}

static dms_span span_at(const json_t *row, const char *key)
{
    const json_t *text = json_object_get(row, key);
    cr_assert(json_is_string(text), "no %s", key);
    return (dms_span){json_string_value(text), json_string_length(text)};
}

static const char *shown(const json_t *row)
{
    static char text[4096];
    char *dump = json_dumps(row, 0);
    snprintf(text, sizeof(text), "%s", dump);
    free(dump);
    return text;
}

static void expect(const json_t *row, const char *verdict, dms_answer_rule rule)
{
    bool right;
    must(dms_answer_judge(&right, rule, span_at(row, "output"), span_at(row, "answer")));
    cr_expect_eq(right, json_is_true(json_object_get(row, verdict)), "%s of %s", verdict,
                 shown(row));
}

static void check_gsm8k(const json_t *row)
{
    expect(row, "strict", (dms_answer_rule){DMS_EXTRACT_GSM8K_STRICT, DMS_EQUAL_GSM8K});
    expect(row, "flexible", (dms_answer_rule){DMS_EXTRACT_GSM8K_FLEXIBLE, DMS_EQUAL_GSM8K});
}

Test(answers, gsm8k_is_judged_as_its_rule_does)
{
    each_row("gsm8k", check_gsm8k);
}

static void check_aime(const json_t *row)
{
    expect(row, "boxed", (dms_answer_rule){DMS_EXTRACT_BOXED_AFTER_THINKING, DMS_EQUAL_INTEGER});
    expect(row, "last", (dms_answer_rule){DMS_EXTRACT_LAST_INTEGER, DMS_EQUAL_INTEGER});
}

Test(answers, aime_is_judged_by_the_last_box_or_the_last_whole_number)
{
    each_row("aime", check_aime);
}

static void check_math(const json_t *row)
{
    expect(row, "string", (dms_answer_rule){DMS_EXTRACT_BOXED, DMS_EQUAL_MATH});
    expect(row, "number", (dms_answer_rule){DMS_EXTRACT_BOXED, DMS_EQUAL_NUMBER});
}

Test(answers, math_is_judged_by_the_string_rule_of_its_dataset_and_by_value)
{
    each_row("math", check_math);
}

static void check_gpqa(const json_t *row)
{
    expect(row, "right", (dms_answer_rule){DMS_EXTRACT_LETTER, DMS_EQUAL_TEXT});
}

Test(answers, gpqa_is_judged_by_the_first_answer_line)
{
    each_row("gpqa", check_gpqa);
}

static void check_ruler(const json_t *row)
{
    const json_t *outputs = json_object_get(row, "outputs");
    const char *references[16];
    const size_t n = json_array_size(outputs);
    double all, part;
    for (size_t i = 0; i < n; i++)
        references[i] = json_string_value(json_array_get(outputs, i));
    must(dms_match_score(&all, DMS_MATCH_ALL, span_at(row, "output"), references, n));
    must(dms_match_score(&part, DMS_MATCH_PART, span_at(row, "output"), references, n));
    cr_expect_float_eq(all, json_number_value(json_object_get(row, "all")), 1e-15, "%s",
                       shown(row));
    cr_expect_eq(part, json_number_value(json_object_get(row, "part")), "%s", shown(row));
}

Test(answers, ruler_is_scored_by_the_references_that_lie_in_the_output)
{
    each_row("ruler", check_ruler);
}

static void check_choice(const json_t *row)
{
    double ll[16];
    int64_t lengths[16], plain, normed;
    const json_t *choices = json_object_get(row, "choices");
    const int64_t n = (int64_t)json_array_size(choices);
    const json_int_t label = json_integer_value(json_object_get(row, "label"));
    for (int64_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(choices, (size_t)i));
        ll[i] = json_number_value(json_array_get(json_object_get(row, "ll"), (size_t)i));
        lengths[i] = dms_span_length(dms_span_of(text));
    }
    must(dms_choice_pick(&plain, ll, NULL, n));
    must(dms_choice_pick(&normed, ll, lengths, n));
    cr_expect_eq(plain == label, json_is_true(json_object_get(row, "acc")), "%s", shown(row));
    cr_expect_eq(normed == label, json_is_true(json_object_get(row, "acc_norm")), "%s", shown(row));
}

Test(answers, a_choice_is_picked_as_mmlu_and_hellaswag_pick_it)
{
    each_row("choice", check_choice);
}

static void check_code(const json_t *row)
{
    dms_text code = {0};
    bool found;
    must(dms_answer_extract(&code, &found, DMS_EXTRACT_CODE, span_at(row, "output")));
    cr_assert(found);
    cr_expect(dms_span_equal((dms_span){code.bytes, code.n}, span_at(row, "code")), "%s gave %.*s",
              shown(row), (int)code.n, code.bytes);
    dms_text_free(&code);
}

Test(answers, code_lies_between_the_last_two_fence_lines)
{
    each_row("code", check_code);
}

Test(answers, votes_are_counted_on_one_form_of_equal_answers)
{
    static const struct {
        dms_equality equality;
        const char *answer, *form;
    } rows[] = {
        {DMS_EQUAL_INTEGER, " $0,073$", "73"},
        {DMS_EQUAL_INTEGER, "-00", "0"},
        {DMS_EQUAL_INTEGER, " about 7 ", "about 7"},
        {DMS_EQUAL_INTEGER, "-12", "-12"},
        {DMS_EQUAL_INTEGER, "-", "-"},
        {DMS_EQUAL_INTEGER, "", ""},
        {DMS_EQUAL_GSM8K, "$1,000.", "1000"},
        {DMS_EQUAL_GSM8K, "5.\n", "5\n"},
        {DMS_EQUAL_MATH, "\\dfrac12", "\\frac{1}{2}"},
        {DMS_EQUAL_MATH, "\\sqrt", "\\sqrt"},
        {DMS_EQUAL_NUMBER, "x = 1/2", "\\frac{1}{2}"},
        {DMS_EQUAL_TEXT, " A", " A"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        dms_text form = {0};
        must(dms_answer_normalise(&form, rows[i].equality, dms_span_of(rows[i].answer)));
        cr_expect(dms_span_equal((dms_span){form.bytes, form.n}, dms_span_of(rows[i].form)),
                  "%s gave %.*s", rows[i].answer, (int)form.n, form.bytes);
        dms_text_free(&form);
    }
}

Test(answers, bytes_that_are_no_text_are_judged_too)
{
    static const char noise[] = "\xFF\xFE \\boxed{5} Answer: A #### 5\n```\n\x80\n```";
    for (int e = 0; e < DMS_N_EXTRACTORS; e++)
        for (int q = 0; q < DMS_N_EQUALITIES; q++) {
            bool right;
            const dms_answer_rule rule = {(dms_extractor)e, (dms_equality)q};
            must(dms_answer_judge(&right, rule, (dms_span){noise, sizeof(noise) - 1},
                                  dms_span_of("\xFF")));
            must(dms_answer_judge(&right, rule, (dms_span){NULL, 0}, (dms_span){NULL, 0}));
        }
}

Test(answers, an_output_of_a_mebibyte_is_judged_in_little_time)
{
    static const char *const parts[] = {"5,", "\\frac", "{", "```\n",   "\\boxed{",
                                        "-",  "#### ",  "=", "Answer: "};
    for (size_t p = 0; p < COUNT(parts); p++) {
        dms_text long_one = {0};
        while (long_one.n < 1 << 20)
            must(dms_text_append(&long_one, parts[p], strlen(parts[p])));
        const dms_span s = {long_one.bytes, long_one.n};
        for (int e = 0; e < DMS_N_EXTRACTORS; e++) {
            bool right;
            must(dms_answer_judge(&right, (dms_answer_rule){(dms_extractor)e, DMS_EQUAL_NUMBER}, s,
                                  s));
        }
        dms_text_free(&long_one);
    }
}

Test(answers, a_number_is_decimal_or_a_fraction)
{
    static const struct {
        const char *text;
        double value; /* NAN: none */
    } rows[] = {
        {"5", 5},
        {"-5.25", -5.25},
        {"+5", 5},
        {"1,234.5", 1234.5},
        {"1,23", NAN},
        {",123", NAN},
        {"1234,567", NAN},
        {"1,234,567", 1234567},
        {"1.5.2", NAN},
        {".", NAN},
        {"", NAN},
        {"-", NAN},
        {"5.", 5},
        {".5", .5},
        {"1/4", .25},
        {"-1/4", -.25},
        {"1/-4", -.25},
        {"1/0", NAN},
        {"1/2/3", NAN},
        {"\\frac{1}{4}", .25},
        {"-\\frac{1}{4}", -.25},
        {"\\frac{-1}{4}", -.25},
        {"\\frac{1}{0}", NAN},
        {"2\\frac{1}{2}", NAN},
        {"\\frac{1}{4}x", NAN},
        {"\\frac{1}", NAN},
        {"\\frac{1}{", NAN},
        {"\\frac{x}{4}", NAN},
        {"1e5", NAN},
        {"inf", NAN},
        {"nan", NAN},
        {"0x10", NAN},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        double value = NAN;
        const bool found = dms_math_number(&value, dms_span_of(rows[i].text));
        cr_expect_eq(found, !isnan(rows[i].value), "%s", rows[i].text);
        cr_expect(!found || value == rows[i].value, "%s is %g", rows[i].text, value);
    }
}

Test(answers, a_choice_that_has_no_number_is_an_error)
{
    int64_t best;
    const double ll[] = {-1, NAN};
    const int64_t lengths[] = {1, 0};
    rig_expect_failure(dms_choice_pick(&best, ll, NULL, 2), DMS_ERR_NUMBER, "choice 1 is NaN");
    rig_expect_failure(dms_choice_pick(&best, ll, NULL, 0), DMS_ERR_ARG, "0 choices");
    must(dms_choice_pick(&best, (const double[]){-5, -1}, lengths, 2)); /* -5 against -infinity */
    cr_assert_eq(best, 0);
}

Test(answers, white_space_at_the_end_of_a_context_is_left_to_the_continuation)
{
    cr_assert_eq(dms_choice_context(dms_span_of("Answer:")), 7);
    cr_assert_eq(dms_choice_context(dms_span_of("Answer: \n")), 7);
    cr_assert_eq(dms_choice_context(dms_span_of("a\xC2\xA0")), 1);
    cr_assert_eq(dms_choice_context(dms_span_of(" ")), 0);
}
