/* Items: the four kinds, RULER's own files, what is refused and how, and what is written. */
#include <zlib.h>

#include "tasks/items.h"
#include "tests/files.h"

static const dms_item *first(dms_items **r, const scratch *s, const char *text)
{
    const dms_item *item = NULL;
    const char *path = scratch_path(s, "items.jsonl");
    write_bytes(path, text, strlen(text));
    must(dms_items_open(r, path, NULL));
    must(dms_items_next(*r, &item));
    cr_assert_not_null(item);
    return item;
}

static void refuse(const char *text, const char *message)
{
    scratch s = scratch_open();
    dms_items *r;
    const dms_item *item = NULL;
    const char *path = scratch_path(&s, "items.jsonl");
    write_bytes(path, text, strlen(text));
    must(dms_items_open(&r, path, NULL));
    rig_expect_failure(dms_items_next(r, &item), DMS_ERR_FORMAT, message);
    cr_assert_not_null(strstr(dms_error_text(), "items.jsonl, line 1"), "%s", dms_error_text());
    dms_items_close(r);
    scratch_close(&s);
}

Test(items, a_line_of_rulers_own_file_is_read_as_it_is)
{
    scratch s = scratch_open();
    dms_items *r;
    const dms_item *item =
        first(&r, &s,
              "{\"index\": 7, \"input\": \"text\", \"outputs\": [\"1\", \"2\"], \"length\": 4012, "
              "\"length_w_model_temp\": 4012, \"answer_prefix\": \" They are\"}\n");
    cr_assert_eq(item->kind, DMS_ITEM_MATCH);
    cr_assert_str_eq(item->id, "7");
    cr_assert_str_eq(item->prompt, "text");
    cr_assert_str_eq(item->answer_prefix, " They are");
    cr_assert_eq(item->length, 4012);
    cr_assert_eq(item->n_texts, 2);
    cr_assert_str_eq(item->texts[1], "2");
    cr_assert_eq(item->match, DMS_MATCH_ALL);
    cr_assert_eq(item->max_new_tokens, 0);
    must(dms_items_next(r, &item));
    cr_assert_null(item);
    dms_items_close(r);
    scratch_close(&s);
}

Test(items, what_rulers_file_does_not_say_comes_from_the_defaults)
{
    scratch s = scratch_open();
    const char *text = "{\"index\": 0, \"input\": \"q\", \"output\": \"x\"}\n"
                       "{\"input\": \"q\", \"outputs\": [\"x\"], \"metric\": \"all\"}\n";
    const char *path = scratch_path(&s, "qa.jsonl");
    dms_items *r;
    const dms_item *item;
    write_bytes(path, text, strlen(text));
    must(dms_items_open(&r, path, &(dms_item_defaults){DMS_MATCH_PART, 32}));
    must(dms_items_next(r, &item));
    cr_assert_eq(item->match, DMS_MATCH_PART);
    cr_assert_eq(item->max_new_tokens, 32);
    cr_assert_str_eq(item->texts[0], "x");
    must(dms_items_next(r, &item));
    cr_assert_eq(item->match, DMS_MATCH_ALL);
    cr_assert_str_eq(item->id, "2"); /* its line */
    dms_items_close(r);
    scratch_close(&s);
}

Test(items, the_fields_of_each_other_kind_are_read)
{
    scratch s = scratch_open();
    dms_items *r;
    const dms_item *item = first(
        &r, &s,
        "{\"id\":\"a\",\"group\":\"law\",\"context\":\"Q\",\"choices\":[\"A\",\"B\"],\"label\":1,"
        "\"norm\":\"char\"}\n"
        "\r\n"
        "{\"id\":\"b\",\"messages\":[{\"role\":\"user\",\"content\":\"7?\"}],\"answer\":7,"
        "\"extractor\":\"boxed-after-thinking\",\"equality\":\"integer\","
        "\"also\":{\"extractor\":\"last-integer\",\"equality\":\"integer\"}}\n"
        "{\"id\":\"c\",\"prompt\":\"write\",\"tests\":[{\"input\":\"1\",\"output\":\"2\"}],"
        "\"timeout\":2.5,\"function\":\"f\"}");
    cr_assert_eq(item->kind, DMS_ITEM_CHOICE);
    cr_assert_str_eq(item->group, "law");
    cr_assert_eq(item->label, 1);
    cr_assert_eq(item->norm, DMS_NORM_CHAR);
    cr_assert_str_eq(item->delimiter, " ");
    must(dms_items_next(r, &item));
    cr_assert_eq(item->kind, DMS_ITEM_EXTRACT);
    cr_assert_str_eq(item->answer, "7");
    cr_assert_str_eq(item->messages[0].content, "7?");
    cr_assert_eq(item->n_rules, 2);
    cr_assert_eq(item->rules[0].extractor, DMS_EXTRACT_BOXED_AFTER_THINKING);
    cr_assert_eq(item->rules[1].extractor, DMS_EXTRACT_LAST_INTEGER);
    cr_assert_eq(item->rules[1].equality, DMS_EQUAL_INTEGER);
    must(dms_items_next(r, &item));
    cr_assert_eq(item->kind, DMS_ITEM_CODE);
    cr_assert_str_eq(item->function, "f");
    cr_assert_eq(item->timeout, 2.5);
    cr_assert_str_eq(item->tests[0].output, "2");
    dms_items_close(r);
    scratch_close(&s);
}

Test(items, what_is_written_is_read_as_the_same_item)
{
    static const char lines[] =
        "{\"id\":\"a\",\"kind\":\"multiple-choice\",\"group\":\"law\",\"context\":\"Q\","
        "\"choices\":"
        "[\"A\",\"B\"],\"label\":1,\"norm\":\"token\",\"delimiter\":\"\"}\n"
        "{\"id\":\"b\",\"kind\":\"generate-and-extract\",\"messages\":[{\"role\":\"user\","
        "\"content\":\"7\xC3\xA9\"}],\"answer\":\"7\",\"extractor\":\"boxed\",\"equality\":"
        "\"math\","
        "\"also\":{\"extractor\":\"boxed\",\"equality\":\"number\"},\"max_new_tokens\":9,\"stop\":["
        "\"Q:\"]}\n"
        "{\"id\":\"c\",\"kind\":\"code\",\"prompt\":\"p\",\"tests\":[{\"input\":\"1\",\"output\":"
        "\"2\"}],\"timeout\":6.0}\n"
        "{\"id\":\"d\",\"kind\":\"generate-and-match\",\"input\":\"i\",\"outputs\":[\"o\"],"
        "\"metric\":\"part\",\"length\":5,\"answer_prefix\":\" so\",\"max_new_tokens\":3}\n";
    scratch s = scratch_open();
    dms_items *r;
    const dms_item *item = first(&r, &s, lines);
    FILE *f = fopen(scratch_path(&s, "again.jsonl"), "wb");
    size_t n;
    while (item) {
        must(dms_item_write(f, item));
        must(dms_items_next(r, &item));
    }
    fclose(f);
    char *again = read_bytes(scratch_path(&s, "again.jsonl"), &n);
    cr_assert_eq(n, sizeof(lines) - 1, "%s", again);
    cr_assert_str_eq(again, lines);
    free(again);
    dms_items_close(r);
    scratch_close(&s);
}

Test(items, a_refusal_names_field_found_and_expected)
{
    refuse("[1]", "it is an array, expected an object");
    refuse("{\"a\": 1}", "has none of \"kind\"");
    refuse("{\"kind\": \"quiz\"}", "\"kind\" is \"quiz\", expected one of generate-and-match");
    refuse("{\"kind\": 3}", "\"kind\" is a number, expected a string");
    refuse("{\"outputs\": [\"x\"]}", "\"input\" is missing, expected a string");
    refuse("{\"input\": \"q\", \"outputs\": []}", "\"outputs\" is an array, expected an array of");
    refuse("{\"input\": \"q\", \"outputs\": [1]}", "\"outputs[0]\" is a number");
    refuse("{\"input\": \"q\", \"outputs\": [\"a\"], \"metric\": \"some\"}",
           "\"metric\" is \"some\", expected one of all, part");
    refuse("{\"input\": \"q\", \"outputs\": [\"a\"], \"length\": -1}", "\"length\" is a number");
    refuse("{\"context\": \"q\", \"choices\": [\"a\"], \"label\": 0}", "array of two strings");
    refuse("{\"context\": \"q\", \"choices\": [\"a\", \"b\"], \"label\": 2}",
           "\"label\" is 2, expected 0 to 1");
    refuse("{\"context\": \"q\", \"choices\": [\"a\", \"b\"]}", "\"label\" is missing");
    refuse("{\"prompt\": \"q\", \"answer\": \"a\"}", "\"extractor\" is missing");
    refuse("{\"prompt\": \"q\", \"answer\": \"a\", \"extractor\": \"x\"}", "expected one of whole");
    refuse("{\"prompt\": \"q\", \"answer\": \"a\", \"extractor\": \"boxed\"}",
           "\"equality\" is missing");
    refuse("{\"prompt\": \"q\", \"messages\": [], \"answer\": 1}", "expected one");
    refuse("{\"messages\": [{\"role\": \"u\", \"content\": \"\"}], \"answer\": 1}",
           "messages[0]: \"role\" is \"u\"");
    refuse("{\"prompt\": \"q\", \"tests\": []}", "\"tests\" is an array, expected an array of one");
    refuse("{\"prompt\": \"q\", \"tests\": [{\"input\": \"\"}]}",
           "tests[0]: \"output\" is missing");
    refuse("{\"prompt\": \"q\", \"tests\": [{}], \"timeout\": 0}", "\"timeout\" is a number");
    refuse("{\"prompt\": \"a\\u0000b\", \"tests\": [{}]}", "\"prompt\" holds a NUL");
    refuse("{\"id\": [], \"outputs\": 1}", "\"id\" is an array");
    refuse("{\"outputs\": [], \"stop\": [1]}", "\"stop[0]\" is a number");
    refuse("{\"input\"", "column");
}

Test(items, a_missing_file_and_a_folder_are_refused_by_name)
{
    dms_items *r;
    rig_expect_failure(dms_items_open(&r, "/tmp/no such file", NULL), DMS_ERR_IO, "no such file");
    rig_expect_failure(dms_items_open(&r, "/tmp", NULL), DMS_ERR_IO, "is a folder");
    dms_items_close(NULL);
}

Test(items, a_compressed_file_is_read_too)
{
    scratch s = scratch_open();
    const char *path = scratch_path(&s, "items.jsonl.gz");
    gzFile f = gzopen(path, "wb");
    cr_assert(f && gzputs(f, "{\"input\":\"q\",\"outputs\":[\"a\"]}\n") > 0);
    gzclose(f);
    dms_items *r;
    const dms_item *item;
    must(dms_items_open(&r, path, NULL));
    must(dms_items_next(r, &item));
    cr_assert_str_eq(item->prompt, "q");
    dms_items_close(r);
    scratch_close(&s);
}
