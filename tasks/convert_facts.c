#include "tasks/convert_facts.h"

#include <ctype.h>
#include <string.h>
#include <utf8proc.h>

#include "data/keys.h"
#include "data/utf8.h"
#include "tasks/lcb.h"
#include "tasks/ruler_words.h"

/* Takes out what stands in brackets that close on their line. */
static void drop_brackets(dms_text *t)
{
    size_t kept = 0;
    for (size_t at = 0; at < t->n;) {
        size_t end = at + 1;
        bool closes = false;
        if (t->bytes[at] == '[') {
            while (end < t->n && t->bytes[end] != ']' && t->bytes[end] != '\n')
                end++;
            closes = end < t->n && t->bytes[end] == ']';
        }
        if (closes) {
            at = end + 1;
            continue;
        }
        memmove(t->bytes + kept, t->bytes + at, end - at);
        kept += end - at;
        at = end;
    }
    t->n = kept;
}

/* Text without white space at its ends, WikiHow's "[title]", (of HellaSwag) others in brackets, and
 * doubled blanks: what lm-evaluation-harness does to both benchmarks. */
static dms_status clean(dms_text *t, const char *text, bool brackets)
{
    const dms_span s = dms_span_strip(dms_span_of(text));
    t->n = 0;
    DMS_TRY(dms_text_append(t, s.bytes, s.n));
    DMS_TRY(dms_text_replace(t, " [title]", ". "));
    if (brackets)
        drop_brackets(t);
    return dms_text_replace(t, "  ", " ");
}

static dms_status no_memory(const dms_conversion *c)
{
    return dms_fail(DMS_ERR_NOMEM, "%s: no memory, or text that is not UTF-8", c->where);
}

/* Sets a field to a text. */
static dms_status set(const dms_conversion *c, const char *key, dms_span s)
{
    return json_object_set_new(c->fields, key, json_stringn(s.n ? s.bytes : "", s.n)) ? no_memory(c)
                                                                                      : DMS_OK;
}

static dms_status text_of(const char **out, const dms_conversion *c, const char *key)
{
    const json_t *value = json_object_get(c->record, key);
    *out = json_string_value(value);
    if (!*out || strlen(*out) != json_string_length(value))
        return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is %s, expected a string", c->where, key,
                        dms_key_type(value));
    return DMS_OK;
}

/* "choices" of the letters A to D, or (A) to (D). */
static dms_status set_letters(const dms_conversion *c, const char *format, int64_t label)
{
    json_t *list = json_array();
    for (int i = 0; i < 4; i++) {
        char letter[8];
        snprintf(letter, sizeof(letter), format, 'A' + i);
        json_array_append_new(list, json_string(letter));
    }
    if (json_object_set_new(c->fields, "choices", list) ||
        json_object_set_new(c->fields, "label", json_integer(label)))
        return no_memory(c);
    return DMS_OK;
}

/* "abstract_algebra" of the field "subject", or of the name .../abstract_algebra_test.csv. */
static dms_status set_subject(const dms_conversion *c)
{
    dms_status status = DMS_OK;
    dms_text name = {0};
    const char *subject = json_string_value(json_object_get(c->record, "subject"));
    const char *slash = strrchr(c->input, '/');
    dms_span s = dms_span_of(subject ? subject : slash ? slash + 1 : c->input);
    static const char *const tails[] = {"_test.csv", "_dev.csv", "_val.csv"};
    for (size_t i = 0; i < 3 && !subject; i++) {
        const size_t at = dms_span_find_last(s, tails[i]);
        if (at != SIZE_MAX)
            s.n = at;
    }
    DMS_TRY_OR(end, set(c, "subject", s));
    DMS_TRY_OR(end, dms_text_append(&name, s.bytes, s.n));
    DMS_TRY_OR(end, dms_text_replace(&name, "_", " "));
    DMS_TRY_OR(end, set(c, "subject in words", (dms_span){name.bytes, name.n}));
end:
    dms_text_free(&name);
    return status;
}

/* choices and the number of the right one, or the columns A to D and its letter. */
static dms_status prepare_mmlu(dms_conversion *c)
{
    static const char *const letters[] = {"A", "B", "C", "D"};
    const json_t *choices = json_object_get(c->record, "choices");
    const json_t *answer = json_object_get(c->record, "answer");
    const char *question, *text = json_string_value(answer);
    json_int_t label = json_is_integer(answer) ? json_integer_value(answer) : -1;
    if (text && strlen(text) == 1)
        label = *text >= 'A' && *text <= 'D' ? *text - 'A' : *text - '0';
    if (label < 0 || label > 3)
        return dms_fail(DMS_ERR_FORMAT, "%s: \"answer\" is %s, expected 0 to 3 or A to D", c->where,
                        text ? text : dms_key_type(answer));
    if (choices && json_array_size(choices) != 4)
        return dms_fail(DMS_ERR_FORMAT, "%s: \"choices\" is %s, expected an array of 4 strings",
                        c->where, dms_key_type(choices));
    for (size_t i = 0; i < 4 && choices; i++)
        if (json_object_set(c->fields, letters[i], json_array_get(choices, i)))
            return no_memory(c);
    DMS_TRY(text_of(&question, c, "question"));
    DMS_TRY(set(c, "question", dms_span_strip(dms_span_of(question))));
    DMS_TRY(set_subject(c));
    return set_letters(c, "%c", label);
}

/* Python's capitalize: the first letter as in a title, the others small. */
static dms_status capitalise(dms_text *out, const char *text)
{
    uint8_t first[4];
    int length;
    if (*text == 0)
        return DMS_OK;
    const int32_t code = utf8proc_totitle(dms_utf8_code(text, &length));
    const utf8proc_ssize_t n = utf8proc_encode_char(code, first);
    DMS_TRY(dms_text_append(out, (const char *)first, (size_t)n));
    return dms_text_lower(out, dms_span_of(text + length));
}

static dms_status set_context(const dms_conversion *c, dms_text *t, dms_text *cleaned)
{
    const char *label, *a, *b;
    DMS_TRY(text_of(&label, c, "activity_label"));
    DMS_TRY(text_of(&a, c, "ctx_a"));
    DMS_TRY(text_of(&b, c, "ctx_b"));
    DMS_TRY(dms_text_format(t, "%s: %s ", label, a));
    DMS_TRY(capitalise(t, b));
    DMS_TRY(dms_text_end(t));
    DMS_TRY(clean(cleaned, t->bytes, true));
    return set(c, "context", (dms_span){cleaned->bytes, cleaned->n});
}

static dms_status set_endings(const dms_conversion *c, dms_text *cleaned)
{
    const json_t *endings = json_object_get(c->record, "endings");
    json_t *list = json_array();
    if (json_object_set_new(c->fields, "choices", list))
        return no_memory(c);
    for (size_t i = 0; i < json_array_size(endings); i++) {
        const char *ending = json_string_value(json_array_get(endings, i));
        if (!ending)
            break;
        DMS_TRY(clean(cleaned, ending, true));
        if (json_array_append_new(list, json_stringn(cleaned->n ? cleaned->bytes : "", cleaned->n)))
            return no_memory(c);
    }
    if (json_array_size(list) < 2 || json_array_size(list) < json_array_size(endings))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: \"endings\" is %s, expected an array of two strings at least",
                        c->where, dms_key_type(endings));
    return DMS_OK;
}

static dms_status prepare_hellaswag(dms_conversion *c)
{
    const json_t *label = json_object_get(c->record, "label");
    const char *text = json_string_value(label);
    dms_status status = DMS_OK;
    dms_text joined = {0}, cleaned = {0};
    json_int_t right = json_is_integer(label) ? json_integer_value(label) : -1;
    if (text && text[0] >= '0' && text[0] <= '9' && text[1] == 0)
        right = text[0] - '0';
    DMS_TRY_OR(end, set_context(c, &joined, &cleaned));
    DMS_TRY_OR(end, set_endings(c, &cleaned));
    const size_t n = json_array_size(json_object_get(c->fields, "choices"));
    if (right < 0 || right >= (json_int_t)n)
        status = dms_fail(DMS_ERR_FORMAT,
                          "%s: \"label\" is %s, expected 0 to %zu; the published test split has no "
                          "labels, the validation split has",
                          c->where, text ? "no such number" : dms_key_type(label), n - 1);
    else if (json_object_set_new(c->fields, "label", json_integer(right)))
        status = no_memory(c);
end:
    dms_text_free(&joined);
    dms_text_free(&cleaned);
    return status;
}

/* AIME's published files have the answer as text, as a number, or in a box of the solution only. */
static dms_status prepare_aime(dms_conversion *c)
{
    dms_status status = DMS_OK;
    dms_text answer = {0};
    bool found;
    const char *solution = json_string_value(json_object_get(c->record, "solution"));
    if (json_object_get(c->record, "answer") || json_object_get(c->record, "Answer") || !solution)
        return DMS_OK;
    DMS_TRY_OR(end, dms_answer_extract(&answer, &found, DMS_EXTRACT_BOXED, dms_span_of(solution)));
    if (found)
        DMS_TRY_OR(end, set(c, "answer", (dms_span){answer.bytes, answer.n}));
end:
    dms_text_free(&answer);
    return status;
}

/* The options as A to D in an order drawn for the record, and which is right. */
static dms_status set_options(const dms_conversion *c, char *right)
{
    static const char *const keys[] = {"Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2",
                                       "Incorrect Answer 3"};
    dms_status status = DMS_OK;
    uint32_t order[4];
    dms_text cleaned = {0};
    dms_draws draws = {.key = c->seed, .stream = {(uint32_t)c->index, 0x47505141u /* "GPQA" */}};
    DMS_TRY(dms_draw_distinct(&draws, order, 4, 4));
    for (int i = 0; i < 4; i++) {
        const char letter[] = {(char)('A' + i), 0}, *text;
        DMS_TRY_OR(end, text_of(&text, c, keys[order[i]]));
        DMS_TRY_OR(end, clean(&cleaned, text, false));
        DMS_TRY_OR(end, set(c, letter, (dms_span){cleaned.bytes, cleaned.n}));
        if (order[i] == 0)
            *right = *letter;
    }
end:
    dms_text_free(&cleaned);
    return status;
}

static dms_status prepare_gpqa(dms_conversion *c)
{
    char right = 0;
    const char *question;
    DMS_TRY(text_of(&question, c, "Question"));
    DMS_TRY(set(c, "Question", dms_span_strip(dms_span_of(question))));
    DMS_TRY(set_options(c, &right));
    DMS_TRY(set_letters(c, "(%c)", right - 'A'));
    return set(c, "answer", (dms_span){&right, 1});
}

/* The tests that the authors show and those that they do not, and the function's name. */
static dms_status prepare_livecodebench(dms_conversion *c)
{
    static const char *const keys[] = {"public_test_cases", "private_test_cases"};
    json_t *tests = json_array();
    if (json_object_set_new(c->fields, "tests", tests))
        return no_memory(c);
    for (int i = 0; i < 2; i++) {
        char where[600];
        const char *text;
        snprintf(where, sizeof(where), "%s: \"%s\"", c->where, keys[i]);
        DMS_TRY(text_of(&text, c, keys[i]));
        DMS_TRY(dms_lcb_tests(tests, text, where));
    }
    const char *metadata, *starter, *question;
    DMS_TRY(text_of(&metadata, c, "metadata"));
    DMS_TRY(text_of(&starter, c, "starter_code"));
    DMS_TRY(text_of(&question, c, "question_content"));
    json_t *object = json_loads(metadata, 0, NULL);
    const char *name = json_string_value(json_object_get(object, "func_name"));
    dms_status status = name ? set(c, "function", dms_span_of(name)) : DMS_OK;
    json_decref(object);
    DMS_TRY(status);
    const bool has = *starter != 0;
    DMS_TRY(set(c, "how",
                dms_span_of(has ? "Complete this code:"
                                : "The program reads standard input and writes its answer "
                                  "to standard output. Put it where the comment stands:")));
    return set(c, "start", dms_span_of(has ? starter : "# the program"));
}

static const char *const mmlu_columns[] = {"question", "A", "B", "C", "D", "answer", NULL};

#define BOXED_PROMPT "\n\nThink step by step, then write the final answer within \\boxed{}."

/* Tokens: lm-evaluation-harness' default and its aime24; simple-evals; lcb_runner. */
static const dms_convert_facts all[] = {
    {.name = "mmlu",
     .kind = DMS_ITEM_CHOICE,
     .header = "The following are multiple choice questions (with answers) about "
               "{subject in words}.\n\n",
     .prompt = "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:",
     .group = "subject",
     .norm = DMS_NORM_NONE,
     .shots = 5,
     .columns = mmlu_columns,
     .prepare = prepare_mmlu},
    {.name = "hellaswag",
     .kind = DMS_ITEM_CHOICE,
     .id = "ind",
     .prompt = "{context}",
     .norm = DMS_NORM_CHAR,
     .shots = 10,
     .prepare = prepare_hellaswag},
    {.name = "gsm8k",
     .kind = DMS_ITEM_EXTRACT,
     .prompt = "Question: {question}\nAnswer:",
     .answer = "answer",
     .rules = {{DMS_EXTRACT_GSM8K_STRICT, DMS_EQUAL_GSM8K},
               {DMS_EXTRACT_GSM8K_FLEXIBLE, DMS_EQUAL_GSM8K}},
     .n_rules = 2,
     .max_new_tokens = 256,
     .stop = "Question:",
     .shots = 5},
    {.name = "aime",
     .kind = DMS_ITEM_EXTRACT,
     .id = "id|ID",
     .prompt = "{problem|Problem}" BOXED_PROMPT,
     .chat = true,
     .answer = "answer|Answer",
     .rules = {{DMS_EXTRACT_BOXED_AFTER_THINKING, DMS_EQUAL_INTEGER},
               {DMS_EXTRACT_LAST_INTEGER, DMS_EQUAL_INTEGER}},
     .n_rules = 2,
     .max_new_tokens = 32768,
     .prepare = prepare_aime},
    {.name = "math500",
     .kind = DMS_ITEM_EXTRACT,
     .id = "unique_id",
     .prompt = "{problem}" BOXED_PROMPT,
     .chat = true,
     .group = "subject",
     .answer = "answer",
     .rules = {{DMS_EXTRACT_BOXED, DMS_EQUAL_MATH}, {DMS_EXTRACT_BOXED, DMS_EQUAL_NUMBER}},
     .n_rules = 2,
     .max_new_tokens = 2048},
    {.name = "gpqa",
     .kind = DMS_ITEM_EXTRACT,
     .id = "Record ID",
     .prompt = "Choose the right option. Think step by step, then end with the line "
               "\"Answer: X\", where X is A, B, C or D.\n\n{Question}\n\n"
               "A) {A}\nB) {B}\nC) {C}\nD) {D}",
     .chat = true,
     .answer = "answer",
     .rules = {{DMS_EXTRACT_LETTER, DMS_EQUAL_TEXT}},
     .n_rules = 1,
     .max_new_tokens = 2048,
     .prepare = prepare_gpqa},
    {.name = "gpqa_choice",
     .kind = DMS_ITEM_CHOICE,
     .id = "Record ID",
     .prompt = "Question: {Question}\nChoices:\n(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}\nAnswer:",
     .norm = DMS_NORM_NONE,
     .prepare = prepare_gpqa},
    {.name = "livecodebench",
     .kind = DMS_ITEM_CODE,
     .id = "question_id",
     .prompt = "Write a Python program that solves the problem and passes all its tests.\n\n"
               "{question_content}\n\n{how}\n```python\n{start}\n```\n\n"
               "Give the whole program in one code block of that form.",
     .chat = true,
     .group = "difficulty",
     .max_new_tokens = 2000,
     .prepare = prepare_livecodebench},
};

const dms_convert_facts *dms_convert_find(const char *name)
{
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        if (!strcmp(name, all[i].name))
            return &all[i];
    return NULL;
}
