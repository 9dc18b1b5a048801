/* Conversion of published files: fields, prompts, shots, order of options, and what is refused. */
#include "tasks/convert.h"
#include "tasks/records.h"
#include "tests/files.h"

typedef struct {
    scratch s;
    dms_items *in;
    const dms_item *item; /* the one in hand */
    int64_t n;
} converted;

static const char *put(const scratch *s, const char *name, const char *text)
{
    const char *path = scratch_path(s, name);
    write_bytes(path, text, strlen(text));
    return path;
}

static converted convert_in(scratch s, dms_convert_options options)
{
    converted c = {.s = s};
    const char *path = scratch_path(&c.s, "out.jsonl");
    FILE *f = fopen(path, "wb");
    must(dms_convert(&c.n, f, &options));
    fclose(f);
    must(dms_items_open(&c.in, path, NULL));
    must(dms_items_next(c.in, &c.item));
    cr_assert_not_null(c.item);
    return c;
}

static converted convert(const char *benchmark, const char *name, const char *text)
{
    const scratch s = scratch_open();
    return convert_in(s,
                      (dms_convert_options){.benchmark = benchmark, .input = put(&s, name, text)});
}

static void next(converted *c)
{
    must(dms_items_next(c->in, &c->item));
}

static void finish(converted *c)
{
    next(c);
    cr_assert_null(c->item);
    dms_items_close(c->in);
    scratch_close(&c->s);
}

static void refuse(const char *benchmark, const char *name, const char *text, const char *message)
{
    scratch s = scratch_open();
    int64_t n;
    FILE *f = fopen(scratch_path(&s, "out.jsonl"), "wb");
    const dms_convert_options options = {.benchmark = benchmark, .input = put(&s, name, text)};
    const dms_status status = dms_convert(&n, f, &options);
    cr_assert(status == DMS_ERR_FORMAT || status == DMS_ERR_ARG, "%s", text);
    cr_assert_not_null(strstr(dms_error_text(), message), "%s", dms_error_text());
    fclose(f);
    scratch_close(&s);
}

Test(convert, mmlu_of_the_hub_becomes_letters_to_choose_from)
{
    converted c = convert("mmlu", "test.jsonl",
                          "{\"question\":\" Which? \",\"subject\":\"high_school_law\",\"choices\":"
                          "[\"w\",\"x\",\"y\",\"z\"],\"answer\":2}\n");
    cr_assert_eq(c.n, 1);
    cr_assert_eq(c.item->kind, DMS_ITEM_CHOICE);
    cr_assert_str_eq(c.item->group, "high_school_law");
    cr_assert_str_eq(c.item->prompt,
                     "The following are multiple choice questions (with answers) about high school "
                     "law.\n\nWhich?\nA. w\nB. x\nC. y\nD. z\nAnswer:");
    cr_assert_eq(c.item->n_texts, 4);
    cr_assert_str_eq(c.item->texts[3], "D");
    cr_assert_str_eq(c.item->delimiter, " ");
    cr_assert_eq(c.item->label, 2);
    cr_assert_eq(c.item->norm, DMS_NORM_NONE);
    finish(&c);
}

Test(convert, mmlu_of_its_authors_has_no_row_of_names)
{
    converted c = convert("mmlu", "high_school_law_test.csv",
                          "\"a \"\"b\"\",\nc\",1,2,3,4,B\r\nq2,5,6,7,8,D");
    cr_assert_eq(c.n, 2);
    cr_assert_str_eq(c.item->group, "high_school_law");
    cr_assert_not_null(
        strstr(c.item->prompt, "law.\n\na \"b\",\nc\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"));
    cr_assert_eq(c.item->label, 1);
    next(&c);
    cr_assert_eq(c.item->label, 3);
    finish(&c);
}

#define MMLU(question, subject, answer)                     \
    "{\"question\":\"" question "\",\"subject\":\"" subject \
    "\",\"choices\":[\"1\",\"2\",\"3\",\"4\"],\"answer\":" answer "}\n"

Test(convert, shots_are_the_first_of_the_subject_in_order)
{
    const scratch s = scratch_open();
    const char *dev = put(&s, "dev.jsonl",
                          MMLU("a1", "a", "0") MMLU("b1", "b", "1") MMLU("a2", "a", "3")
                              MMLU("b2", "b", "2") MMLU("a3", "a", "1"));
    const char *test = put(&s, "test.jsonl", MMLU("q", "b", "0") MMLU("r", "a", "1"));
    converted c = convert_in(
        s, (dms_convert_options){.benchmark = "mmlu", .input = test, .shots = dev, .n_shots = 2});
    const char *options = "\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:";
    char want[1024];
    snprintf(
        want, sizeof(want),
        "The following are multiple choice questions (with answers) about b.\n\nb1%s B\n\nb2%s "
        "C\n\nq%s",
        options, options, options);
    cr_assert_str_eq(c.item->prompt, want);
    next(&c);
    snprintf(
        want, sizeof(want),
        "The following are multiple choice questions (with answers) about a.\n\na1%s A\n\na2%s "
        "D\n\nr%s",
        options, options, options);
    cr_assert_str_eq(c.item->prompt, want);
    finish(&c);
}

Test(convert, hellaswag_is_cleaned_as_lm_evaluation_harness_cleans_it)
{
    converted c = convert(
        "hellaswag", "val.jsonl",
        "{\"ind\":24,\"activity_label\":\"Home and Garden\",\"ctx_a\":\"[header] How to clean "
        "[title] "
        "Take a  mop. [step] Wet it.\",\"ctx_b\":\"THEN [x] \xC3\x89"
        "CLAIR\",\"ctx\":\"\",\"endings\":[\" wrings [it] out  [title] and [a\\nb] mops. \",\"x\","
        "\"y\",\"z\"],\"label\":3}\n"
        "{\"ind\":25,\"activity_label\":\"A\",\"ctx_a\":\"b\",\"ctx_b\":\"\",\"endings\":[\"x\","
        "\"y\"]"
        ",\"label\":\"1\"}\n");
    cr_assert_str_eq(c.item->id, "24");
    /* Both as the package's own preprocess gives them. */
    cr_assert_str_eq(c.item->prompt, "Home and Garden: How to clean. Take a mop. Wet it. Then "
                                     "\xC3\xA9"
                                     "clair");
    cr_assert_str_eq(c.item->texts[0], "wrings out . and [a\nb] mops.");
    cr_assert_eq(c.item->label, 3);
    cr_assert_eq(c.item->norm, DMS_NORM_CHAR);
    next(&c);
    cr_assert_str_eq(c.item->prompt, "A: b");
    cr_assert_eq(c.item->label, 1);
    finish(&c);
}

Test(convert, gsm8k_asks_with_solved_examples_and_stops_before_the_next_question)
{
    const scratch s = scratch_open();
    const char *train = put(&s, "train.jsonl",
                            "{\"question\":\"1+1?\",\"answer\":\"It is <<1+1=2>>2.\\n#### 2\"}\n");
    const char *test =
        put(&s, "test.jsonl", "{\"question\":\"2+2?\",\"answer\":\"4.\\n#### 4\"}\n");
    converted c = convert_in(
        s,
        (dms_convert_options){.benchmark = "gsm8k", .input = test, .shots = train, .n_shots = 1});
    cr_assert_str_eq(c.item->prompt, "Question: 1+1?\nAnswer: It is <<1+1=2>>2.\n#### 2\n\n"
                                     "Question: 2+2?\nAnswer:");
    cr_assert_str_eq(c.item->answer, "4.\n#### 4");
    cr_assert_eq(c.item->n_rules, 2);
    cr_assert_eq(c.item->rules[0].extractor, DMS_EXTRACT_GSM8K_STRICT);
    cr_assert_eq(c.item->rules[1].extractor, DMS_EXTRACT_GSM8K_FLEXIBLE);
    cr_assert_eq(c.item->n_stops, 1);
    cr_assert_str_eq(c.item->stops[0], "Question:");
    bool right;
    must(dms_answer_judge(&right, c.item->rules[0], dms_span_of(" so #### 4"),
                          dms_span_of(c.item->answer)));
    cr_assert(right);
    finish(&c);
}

Test(convert, aime_comes_under_several_names)
{
    converted c =
        convert("aime", "a.jsonl",
                "{\"ID\":\"2024-II-4\",\"Problem\":\"Find n.\",\"Solution\":\"s\",\"Answer\":"
                "33}\n{\"id\":60,\"problem\":\"Find m.\",\"answer\":\"025\",\"year\":\"2024\"}\n"
                "{\"problem\":\"Find k.\",\"solution\":\"It is \\\\boxed{7}.\"}\n");
    cr_assert_str_eq(c.item->id, "2024-II-4");
    cr_assert_str_eq(c.item->answer, "33");
    cr_assert_str_eq(c.item->messages[0].role, "user");
    cr_assert(!strncmp(c.item->messages[0].content, "Find n.\n\n", 9));
    cr_assert_not_null(strstr(c.item->messages[0].content, "\\boxed{}"));
    next(&c);
    cr_assert_str_eq(c.item->id, "60");
    cr_assert_str_eq(c.item->answer, "025");
    next(&c);
    cr_assert_str_eq(c.item->id, "2");
    cr_assert_str_eq(c.item->answer, "7");
    finish(&c);
}

Test(convert, math_500_keeps_its_subjects)
{
    converted c =
        convert("math500", "test.jsonl",
                "{\"problem\":\"p\",\"solution\":\"s\",\"answer\":\"\\\\frac12\",\"subject\":"
                "\"Algebra\",\"level\":2,\"unique_id\":\"test/algebra/1.json\"}\n");
    cr_assert_str_eq(c.item->id, "test/algebra/1.json");
    cr_assert_str_eq(c.item->group, "Algebra");
    cr_assert_str_eq(c.item->answer, "\\frac12");
    cr_assert_eq(c.item->rules[0].equality, DMS_EQUAL_MATH);
    cr_assert_eq(c.item->rules[1].equality, DMS_EQUAL_NUMBER);
    finish(&c);
}

#define GPQA                                                                                      \
    "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,\"Incorrect "        \
    "Answer 3\"\n"                                                                                \
    "r0,\"Which, \"\"really\"\"?\",right,wrong1,wrong2,wrong3\nr1,Q,right,wrong1,wrong2,wrong3\n" \
    "r2,Q,right,wrong1,wrong2,wrong3\nr3,Q,right,wrong1,wrong2,wrong3\n"                          \
    "r4,Q,right,wrong1,wrong2,wrong3\nr5,Q,right,wrong1,wrong2,wrong3\n"                          \
    "r6,Q,right,wrong1,wrong2,wrong3\nr7,Q,right,wrong1,wrong2,wrong3\n"

Test(convert, the_order_of_gpqas_options_is_drawn_from_the_seed_and_saved)
{
    char letters[3][9] = {""};
    static const uint64_t seeds[] = {1, 1, 2};
    for (int run = 0; run < 3; run++) {
        const scratch s = scratch_open();
        const char *path = put(&s, "gpqa_diamond.csv", GPQA);
        converted c = convert_in(
            s, (dms_convert_options){.benchmark = "gpqa", .input = path, .seed = seeds[run]});
        cr_assert_str_eq(c.item->id, "r0");
        cr_assert_not_null(strstr(c.item->messages[0].content, "\n\nWhich, \"really\"?\n\nA) "));
        for (int i = 0; c.item; i++) {
            char option[32];
            snprintf(option, sizeof(option), "%s) right", c.item->answer);
            cr_assert_not_null(strstr(c.item->messages[0].content, option));
            letters[run][i] = *c.item->answer;
            for (int w = 1; w < 4; w++) {
                snprintf(option, sizeof(option), ") wrong%d", w);
                cr_assert_not_null(strstr(c.item->messages[0].content, option));
            }
            next(&c);
        }
        dms_items_close(c.in);
        scratch_close(&c.s);
    }
    cr_assert_str_eq(letters[0], letters[1]);
    cr_assert_str_neq(letters[0], letters[2]);
    cr_assert_neq(strspn(letters[0], (char[]){letters[0][0], 0}), 8, "always %c", letters[0][0]);
}

Test(convert, gpqa_is_a_choice_of_letters_too)
{
    converted c = convert("gpqa_choice", "gpqa_diamond.csv",
                          "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect "
                          "Answer 3\nQ, right ,w,x,y\n");
    char option[16];
    cr_assert_eq(c.item->kind, DMS_ITEM_CHOICE);
    snprintf(option, sizeof(option), "%s right\n", c.item->texts[c.item->label]);
    cr_assert_not_null(strstr(c.item->prompt, option), "%s", c.item->prompt);
    finish(&c);
}

#define LCB(public, private, starter, metadata)                                                 \
    "{\"question_title\":\"t\",\"question_content\":\"Add.\",\"platform\":\"leetcode\","        \
    "\"question_id\":\"abc301_a\",\"starter_code\":\"" starter "\",\"difficulty\":\"easy\","    \
    "\"public_test_cases\":\"" public "\",\"private_test_cases\":\"" private "\",\"metadata\":" \
                                                                             "\"" metadata "\"}\n"
#define CASE(in, out)                                                                 \
    "[{\\\"input\\\":\\\"" in "\\\",\\\"output\\\":\\\"" out "\\\",\\\"testtype\\\":" \
    "\\\"stdin\\\"}]"
/* base64 of zlib of Python's pickle (protocols 4 and 2) of the text
 * [{"input": "[1]\n2", "output": "3", ...}, {"input": "x", "output": "y", ...}] */
#define PACKED_4                                                                                   \
    "eJxrYJlazQABPeXR1UqZeQWlJUpWCkrRhrExeUZKOgpK+aUlUDFjELcktbikpLIgFSSQVpqXXJKZn5eYo1Sro4CkuwJV" \
    "YyU+jbFT9AA3Syj/"
#define PACKED_2                                                                                   \
    "eJxrYIooZ2BgiK5WyswrKC1RslJQijaMjckzUtJRUMovLYGKGYO4JanFJSWVBakggbTSvOSSzPy8xBylWh0FJN0VqBor" \
    "8WmMLWTQAwC37ieW"
#define PACKED_LIST                                                                                \
    "eJxrYJlaxwABsVN6yqOrlTLzCkpLlKwUlKINY2PyjJR0FJTyS0ugYsYgbklqcUlJZUEqSCCtNC+5JDM/LzFHqVZHAUl3" \
    "BarGSnwaY6ck6gEA26QqVA=="

Test(convert, livecodebench_has_public_and_packed_private_tests)
{
    converted c = convert(
        "livecodebench", "test.jsonl",
        LCB(CASE("1 2", "3"), CASE("4 5", "9"), "", "{}")
            LCB(CASE("1", "2"), PACKED_4, "class Solution:", "{\\\"func_name\\\":\\\"add\\\"}")
                LCB(CASE("1", "2"), PACKED_2, "", "{}"));
    cr_assert_eq(c.item->kind, DMS_ITEM_CODE);
    cr_assert_str_eq(c.item->id, "abc301_a");
    cr_assert_null(c.item->function);
    cr_assert_eq(c.item->n_tests, 2);
    cr_assert_str_eq(c.item->tests[1].input, "4 5");
    cr_assert_eq(c.item->timeout, 6);
    cr_assert_not_null(strstr(c.item->messages[0].content, "Add."));
    next(&c);
    cr_assert_str_eq(c.item->function, "add");
    cr_assert_not_null(strstr(c.item->messages[0].content, "class Solution:\n```"));
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(c.item->n_tests, 3);
        cr_assert_str_eq(c.item->tests[1].input, "[1]\n2");
        cr_assert_str_eq(c.item->tests[2].output, "y");
        if (i == 0)
            next(&c);
    }
    finish(&c);
}

Test(convert, what_is_no_test_of_livecodebench_is_refused)
{
    refuse("livecodebench", "a.jsonl", LCB(CASE("1", "2"), "!", "", "{}"),
           "neither JSON nor base64");
    refuse("livecodebench", "a.jsonl", LCB(CASE("1", "2"), "AAAA", "", "{}"),
           "zlib stream is damaged");
    refuse("livecodebench", "a.jsonl", LCB(CASE("1", "2"), "eJxrYJlazQAB", "", "{}"), "ends early");
    refuse("livecodebench", "a.jsonl", LCB(CASE("1", "2"), PACKED_LIST, "", "{}"),
           "no pickle of one");
    refuse("livecodebench", "a.jsonl", LCB("[]", "[]", "", "{}"), "has no tests");
    refuse("livecodebench", "a.jsonl", LCB("[{}]", "[]", "", "{}"), "test 0: \"input\" is missing");
    refuse("livecodebench", "a.jsonl", LCB("7", "[]", "", "{}"), "line 1: \"public_test_cases\": ");
}

Test(convert, a_refusal_names_file_line_field_and_what_the_record_has)
{
    refuse("mmmlu", "a.jsonl", "", "no benchmark \"mmmlu\", expected mmlu");
    refuse("gsm8k", "a.jsonl", "{\"q\":1,\"answer\":\"1\"}\n",
           "a.jsonl, line 1: \"question\" is missing");
    refuse("gsm8k", "a.jsonl", "{\"q\":1,\"answer\":\"1\"}\n", "the record has: q, answer");
    refuse("gsm8k", "a.jsonl", "{\"question\":[],\"answer\":\"1\"}\n", "\"question\" is an array");
    refuse("mmlu", "a.jsonl", MMLU("q", "s", "4"), "\"answer\" is a number, expected 0 to 3");
    refuse("mmlu", "a_test.csv", "q,1,2,3,4\n", "line 1: has 5 fields, expected 6");
    refuse("mmlu", "a_test.csv", "q,1,2,3,4,E\n", "\"answer\" is E, expected 0 to 3 or A to D");
    refuse("mmlu", "a_test.csv", "q,1,2,3,4,A\n\"q,1,2,3,4,A\n",
           "line 2: a quoted field does not end");
    refuse("mmlu", "a_test.csv", "\xFF,1,2,3,4,A\n", "not UTF-8");
    refuse("hellaswag", "a.jsonl",
           "{\"activity_label\":\"A\",\"ctx_a\":\"b\",\"ctx_b\":\"\",\"endings\":[\"x\",\"y\"],"
           "\"label\":"
           "\"\"}",
           "the published test split has no labels");
    refuse("hellaswag", "a.jsonl",
           "{\"activity_label\":\"A\",\"ctx_a\":\"b\",\"ctx_b\":\"\",\"endings\":[\"x\",2],"
           "\"label\":0}",
           "\"endings\" is an array");
    refuse("gpqa", "a.csv", "Question,Correct Answer\nq,a\n", "\"Incorrect Answer");
    refuse("gsm8k", "a.parquet", "PAR1", "is Parquet, expected JSON Lines or CSV");
    refuse("gsm8k", "a.jsonl", "PAR1....", "is Parquet");
    refuse("gsm8k", "a.txt", "x", "expected a name that ends in .jsonl");
}

Test(convert, shots_that_are_missing_or_unwanted_are_refused)
{
    scratch s = scratch_open();
    int64_t n;
    FILE *f = fopen(scratch_path(&s, "out.jsonl"), "wb");
    const char *a = put(&s, "a.jsonl", MMLU("q", "law", "1"));
    dms_convert_options options = {.benchmark = "mmlu", .input = a, .shots = a};
    rig_expect_failure(dms_convert(&n, f, &options), DMS_ERR_ARG,
                       "has 1 examples of law, expected 5");
    options = (dms_convert_options){.benchmark = "math500", .input = a, .shots = a};
    rig_expect_failure(dms_convert(&n, f, &options), DMS_ERR_ARG, "asked without examples");
    options = (dms_convert_options){.benchmark = "mmlu", .input = a, .n_shots = 3};
    rig_expect_failure(dms_convert(&n, f, &options), DMS_ERR_ARG, "without a file of them");
    options = (dms_convert_options){.benchmark = "mmlu", .input = "/no/such.csv"};
    rig_expect_failure(dms_convert(&n, f, &options), DMS_ERR_IO, "/no/such.csv");
    fclose(f);
    scratch_close(&s);
}

Test(convert, rows_of_csv_are_read_as_rfc_4180_says)
{
    scratch s = scratch_open();
    dms_records *r;
    const json_t *row;
    const char *path = put(&s, "a.csv",
                           "\xEF\xBB\xBF"
                           "x,y\r\n1,\"a\r\nb\"\r\n\r\n,\"\"\n\"p\"\"q\",a\"b\"");
    static const char *const want[][2] = {{"1", "a\r\nb"}, {"", ""}, {"p\"q", "a\"b\""}};
    static const int lines[] = {2, 5, 6};
    must(dms_records_open(&r, path, NULL));
    for (int i = 0; i < 3; i++) {
        char where[32];
        must(dms_records_next(r, &row));
        cr_assert_str_eq(json_string_value(json_object_get(row, "x")), want[i][0]);
        cr_assert_str_eq(json_string_value(json_object_get(row, "y")), want[i][1]);
        snprintf(where, sizeof(where), ", line %d", lines[i]);
        cr_assert_not_null(strstr(dms_records_where(r), where), "%s", dms_records_where(r));
    }
    must(dms_records_next(r, &row));
    cr_assert_null(row);
    dms_records_close(r);
    scratch_close(&s);
}

Test(convert, a_mebibyte_of_brackets_takes_no_time)
{
    scratch s = scratch_open();
    FILE *f = fopen(scratch_path(&s, "a.jsonl"), "wb");
    for (int kind = 0; kind < 2; kind++) {
        fputs("{\"activity_label\":\"A\",\"ctx_b\":\"\",\"endings\":[\"x\",\"y\"],\"label\":0,"
              "\"ctx_a\":\"",
              f);
        for (int i = 0; i < 1 << 19; i++)
            fputs(kind ? "[]" : "[[", f);
        fputs("\"}\n", f);
    }
    fclose(f);
    converted c = convert_in(
        s, (dms_convert_options){.benchmark = "hellaswag", .input = scratch_path(&s, "a.jsonl")});
    cr_assert_eq(strlen(c.item->prompt), 3 + (1 << 20));
    next(&c);
    cr_assert_str_eq(c.item->prompt, "A: ");
    finish(&c);
}
