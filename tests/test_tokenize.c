/* dms-tokenize: from text, JSON Lines and conversations to the ids of one stream. */
#include "data/shard.h"
#include "infer/chat.h"
#include "tests/inspect.h"

static const char chatml[] =
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{{ '<|im_start|>assistant\\n' }}";

/* The tokenizer of the folder m; the caller closes it. */
static dms_tokenizer *open_tokenizer(const inspection *i)
{
    size_t n;
    dms_tokenizer *t = NULL;
    char *json = read_bytes(scratch_path(&i->dir, "m/tokenizer.json"), &n);
    must(dms_tokenizer_open(&t, json, n, "tokenizer.json"));
    free(json);
    return t;
}

static void add_text(dms_tokens *out, dms_tokenizer *t, const char *text, const char *end)
{
    must(dms_tokenizer_encode(t, out, text, strlen(text), true));
    must(dms_tokenizer_encode(t, out, end, strlen(end), true));
}

static void expect_shard(const inspection *i, const char *name, const dms_tokens *want)
{
    dms_shard *s = NULL;
    must(dms_shard_open(&s, scratch_path(&i->dir, name)));
    must(dms_shard_verify(s));
    const int64_t n = dms_shard_get_info(s)->n_tokens;
    cr_assert_eq(n, want->n, "%s has %lld tokens, expected %lld", name, (long long)n,
                 (long long)want->n);
    int32_t *ids = malloc((size_t)n * sizeof(*ids));
    must(dms_shard_read(s, ids, 0, n));
    cr_expect(!memcmp(ids, want->ids, (size_t)n * sizeof(*ids)), "%s has other ids", name);
    free(ids);
    dms_shard_close(s);
}

/* Documents follow one another, each with a token behind it, whichever file they are from. */
Test(tokenize, lines_and_conversations_are_documents_that_a_token_ends)
{
    static const dms_message messages[] = {{"user", "Hi", NULL}, {"assistant", "Good day.", NULL}};
    static const char *const ends[] = {"<|im_end|>", "<|endoftext|>"}; /* the model's; a given */
    inspection i = inspection_open();
    cr_assert_eq(shell(&i,
                       "cp -r $FIX/tiny/llama m; chmod -R u+w m; printf '%s' 'four' >d.txt;"
                       "printf '%s\\n' '{\"text\": \"one two\"}' '{\"messages\": "
                       "[{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
                       "\"content\": \"Good day.\"}]}' '{\"text\": \"three\\u00e9\"}' >c.jsonl"),
                 0, "%s", i.err);
    write_bytes(scratch_path(&i.dir, "m/chat_template.jinja"), chatml, strlen(chatml));
    cr_assert_eq(
        shell(&i, "$BIN/dms-tokenize m -o own.tok c.jsonl d.txt;"
                  "$BIN/dms-tokenize m -o given.tok --separator '<|endoftext|>' c.jsonl d.txt"),
        0, "%s", i.err);
    dms_tokenizer *t = open_tokenizer(&i);
    dms_chat chat;
    must(dms_chat_recognise(&chat, t, chatml));
    for (int k = 0; k < 2; k++) {
        dms_tokens want = {0};
        add_text(&want, t, "one two", ends[k]);
        must(dms_chat_render(&chat, &want, messages, COUNT(messages), false));
        add_text(&want, t, "", ends[k]);
        add_text(&want, t, "three\u00e9", ends[k]);
        add_text(&want, t, "four", ends[k]);
        expect_shard(&i, k ? "given.tok" : "own.tok", &want);
        dms_tokens_free(&want);
    }
    dms_tokenizer_close(t);
    inspection_close(&i);
}

Test(tokenize, a_conversation_in_a_format_nobody_knows_is_refused_by_its_template)
{
    inspection i = inspection_open();
    cr_assert_eq(
        shell(&i, "cp -r $FIX/tiny/llama m; chmod -R u+w m; printf '[INST]' >m/chat_template.jinja;"
                  "echo '{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}' >c.jsonl"),
        0);
    cr_expect_eq(shell(&i, "$BIN/dms-tokenize m -o x.tok c.jsonl"), FAILED);
    cr_expect(strstr(i.err, "no known format") && strstr(i.err, "[INST]"), "%s", i.err);
    cr_expect_eq(shell(&i, "test ! -e x.tok"), 0);
    inspection_close(&i);
}

Test(tokenize, decodes_the_ids_of_other_tools_with_a_note)
{
    inspection i = inspection_open();
    cr_assert_eq(shell(&i, "printf 'one two' >d.txt; $BIN/dms-tokenize $FIX/tiny/llama -o x.tok "
                           "d.txt && $BIN/dms-tokenize $FIX/tiny/llama --text 'one two' >ids"),
                 0, "%s", i.err);
    cr_assert_eq(shell(&i, "for n in $(cat ids); do printf \"\\\\$(printf %03o $((n % 256)))"
                           "\\\\$(printf %03o $((n / 256)))\"; done >y.bin;"
                           "$BIN/dms-tokenize $FIX/tiny/llama --decode y.bin"),
                 0, "%s", i.err);
    cr_expect_str_eq(i.out, "one two");
    cr_expect(strstr(i.err, "y.bin (16-bit ids without a header) names no tokenizer"), "%s", i.err);
    inspection_close(&i);
}

/* The signal of a file too large would end the program without a word. */
Test(tokenize, a_file_too_large_for_the_limit_is_a_failure_with_its_message)
{
    inspection i = inspection_open();
    cr_assert_eq(shell(&i, "for n in $(seq 9000); do printf 'word %d ' $n; done >d.txt"), 0);
    cr_expect_eq(shell(&i, "ulimit -f 8; $BIN/dms-tokenize $FIX/tiny/llama -o x.tok d.txt"),
                 FAILED);
    cr_expect(strstr(i.err, "x.tok"), "%s", i.err);
    inspection_close(&i);
}
