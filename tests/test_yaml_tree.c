/* YAML documents as JSON values: types, nesting, and what is refused. */
#include <string.h>

#include "eval/yaml_tree.h"
#include "tests/files.h"

/* The tree of a document, which the caller ends. */
static dms_status read_text(json_t **out, const char *text, size_t n)
{
    scratch s = scratch_open();
    const char *path = scratch_path(&s, "file.yaml");
    write_bytes(path, text, n);
    *out = NULL;
    const dms_status status = dms_yaml_read(out, path);
    cr_expect(!status == !!*out);
    scratch_close(&s);
    return status;
}

Test(yaml_tree, values_have_their_types)
{
    static const struct {
        const char *yaml, *json;
    } all[] = {
        {"a: 1\nb: -7\nc: +3", "{\"a\":1,\"b\":-7,\"c\":3}"},
        {"[0.5, -1e3, .25, 1e-9]", "[0.5,-1000.0,0.25,1e-09]"},
        {"[true, false, null, ~, ]", "[true,false,null,null]"},
        {"a:\nb: ''", "{\"a\":null,\"b\":\"\"}"},
        {"['1', \"true\", 'null', '0.5']", "[\"1\",\"true\",\"null\",\"0.5\"]"},
        {"[yes, No, TRUE, 0x10, 1.2.3, inf, .inf, nan, e5, 5e, -, 25%, tova:64]",
         "[\"yes\",\"No\",\"TRUE\",\"0x10\",\"1.2.3\",\"inf\",\".inf\",\"nan\",\"e5\",\"5e\",\"-\","
         "\"25%\",\"tova:64\"]"},
        {"9223372036854775807", "9223372036854775807"},
        {"99999999999999999999", "1e+20"},
        {"[1e999, -1e999]", "[\"1e999\",\"-1e999\"]"},
        {"a: {b: [1, {c: d}], e: }\nf:\n- g\n- h: [[]]",
         "{\"a\":{\"b\":[1,{\"c\":\"d\"}],\"e\":null},\"f\":[\"g\",{\"h\":[[]]}]}"},
        {"1: a\ntrue: b\n? c\n: d", "{\"1\":\"a\",\"true\":\"b\",\"c\":\"d\"}"},
        {"# a comment\n---\na: >\n  two\n  lines\n...\nnot: read", "{\"a\":\"two lines\\n\"}"},
    };
    for (size_t i = 0; i < COUNT(all); i++) {
        json_t *tree, *want = json_loads(all[i].json, JSON_DECODE_ANY, NULL);
        cr_assert(want && !read_text(&tree, all[i].yaml, strlen(all[i].yaml)), "%s: %s",
                  all[i].yaml, dms_error_text());
        cr_expect(json_equal(tree, want), "%s is not %s", all[i].yaml, all[i].json);
        json_decref(tree);
        json_decref(want);
    }
}

static void expect_refused(const char *text, size_t n, const char *message)
{
    json_t *tree;
    rig_expect_failure(read_text(&tree, text, n), DMS_ERR_ARG, message);
    cr_expect(strstr(dms_error_text(), "file.yaml"), "the file is not named: %s", dms_error_text());
}

Test(yaml_tree, what_is_no_plain_tree_is_refused_with_its_line)
{
    static const struct {
        const char *yaml, *message;
    } all[] = {{"a: 1\nb: 2\na: 3", "line 3: a key is given twice"},
               {"a: &x 1\nb: *x", "line 2: a YAML alias"},
               {"- 1\n- {[1]: 2}", "line 2: a key is no plain text"},
               {"a:\n  ? {b: 1}\n  : 2", "line 2: a key is no plain text"},
               {"a: [1, 2", "line 2"},
               {"a: 1\n b: 2", "line 2"},
               {"a: \"\\0\"", "line 1: a zero byte"},
               {"a: \xff\xfe", "line"},
               {"", "is empty"},
               {"# nothing\n", "is empty"}};
    for (size_t i = 0; i < COUNT(all); i++)
        expect_refused(all[i].yaml, strlen(all[i].yaml), all[i].message);
}

Test(yaml_tree, is_64_levels_deep_at_most)
{
    char text[140];
    json_t *tree;
    int depth = 0;
    for (int i = 0; i < 64; i++) {
        text[i] = '[';
        text[64 + i] = ']';
    }
    must(read_text(&tree, text, 128));
    for (const json_t *at = tree; json_is_array(at); at = json_array_get(at, 0))
        depth++;
    cr_expect(depth == 64);
    json_decref(tree);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    expect_refused(text, 130, "more than 64 levels");
    memset(text, '[', sizeof(text)); /* and it is not even closed */
    expect_refused(text, sizeof(text), "more than 64 levels");
}

Test(yaml_tree, files_that_cannot_be_read_are_named)
{
    json_t *tree = NULL;
    rig_expect_failure(dms_yaml_read(&tree, "/no/such/file.yaml"), DMS_ERR_IO,
                       "/no/such/file.yaml");
    rig_expect_failure(dms_yaml_read(&tree, "/tmp"), DMS_ERR_ARG, "/tmp");
    cr_expect_null(tree);
}
