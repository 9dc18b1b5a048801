/* Corpus: files, folders, gzip, and what damaged files do. */
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "data/buffer.h"
#include "data/corpus.h"
#include "tests/rig.h"

static char folder[] = "/tmp/dms-corpus-XXXXXX";

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static void make_folder(void)
{
    cr_assert(mkdtemp(folder));
}

static void drop_folder(void)
{
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(corpus, .init = make_folder, .fini = drop_folder);

static const char *in_folder(char *out, const char *name)
{
    snprintf(out, 256, "%s/%s", folder, name);
    return out;
}

static void put_plain(const char *name, const char *bytes, size_t n)
{
    char path[256];
    FILE *file = fopen(in_folder(path, name), "wb");
    cr_assert(file && fwrite(bytes, 1, n, file) == n);
    fclose(file);
}

static void put_gzip(const char *name, const char *bytes, size_t n)
{
    char path[256];
    gzFile file = gzopen(in_folder(path, name), "wb");
    cr_assert(file && gzwrite(file, bytes, (unsigned)n) == (int)n);
    gzclose(file);
}

/* Reads the document in hand in chunks of `chunk`, and adds it and a bar to out. */
static dms_status read_document(dms_corpus *c, dms_text *out, size_t chunk)
{
    for (size_t n = 1; n > 0;) {
        DMS_TRY(dms_text_reserve(out, chunk));
        DMS_TRY(dms_corpus_read(c, out->bytes + out->n, chunk, &n));
        cr_assert(n <= chunk);
        out->n += n;
    }
    return dms_text_append(out, "|", 1);
}

static dms_status read_all(const char *path, dms_text *out, size_t chunk)
{
    dms_corpus *c = NULL;
    const char *name;
    dms_status status = DMS_OK;
    out->n = 0;
    DMS_TRY(dms_corpus_open(&c, path));
    DMS_TRY_OR(done, dms_corpus_next(c, &name));
    while (name) {
        DMS_TRY_OR(done, read_document(c, out, chunk));
        DMS_TRY_OR(done, dms_corpus_next(c, &name));
    }
    status = dms_text_append(out, "", 1);
done:
    dms_corpus_close(c);
    return status;
}

Test(corpus, reads_a_folder_in_byte_order_of_names_plain_and_gzip)
{
    char path[256];
    dms_text got = {0};
    put_plain("b.txt", "two\0b", 5);
    put_gzip("a.txt", "one", 3); /* the content decides, not the name */
    put_plain("Z", "zero", 4);
    put_plain("c", "", 0);
    put_plain(".hidden", "no", 2);
    mkdir(in_folder(path, "deeper"), 0777);
    for (size_t chunk = 1; chunk < 8; chunk++) {
        must(read_all(folder, &got, chunk));
        cr_expect(got.n == 17 && memcmp(got.bytes, "zero|one|two\0b||", 17) == 0);
    }
    must(read_all(in_folder(path, "a.txt"), &got, 100));
    cr_expect_str_eq(got.bytes, "one|");
    dms_text_free(&got);
}

Test(corpus, reads_a_gzip_file_that_is_longer_than_its_buffers)
{
    char path[256];
    const size_t n = 1 << 20;
    char *zeros = calloc(n, 1);
    dms_text got = {0};
    cr_assert(zeros);
    put_gzip("zeros.gz", zeros, n);
    must(read_all(in_folder(path, "zeros.gz"), &got, 1000));
    cr_expect(got.n == n + 2 && memcmp(got.bytes, zeros, n) == 0);
    free(zeros);
    dms_text_free(&got);
}

/* What reading the first document gives, before the corpus moves on. */
static dms_status read_first(const char *path, dms_text *out)
{
    dms_corpus *c;
    const char *name;
    out->n = 0;
    must(dms_corpus_open(&c, path));
    must(dms_corpus_next(c, &name));
    const dms_status status = read_document(c, out, 512);
    dms_corpus_close(c);
    return status;
}

Test(corpus, reports_a_gzip_file_cut_short_or_damaged)
{
    char path[256], text[5000], packed[8000];
    dms_text got = {0};
    uint32_t noise = 1;
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)((noise = noise * 1664525u + 1013904223u) >> 24);
    put_gzip("x.gz", text, sizeof(text));
    FILE *file = fopen(in_folder(path, "x.gz"), "rb");
    cr_assert(file);
    const size_t n = fread(packed, 1, sizeof(packed), file);
    fclose(file);
    for (size_t kept = 20; kept < n; kept += 97) {
        put_plain("cut.gz", packed, kept);
        cr_expect_eq(read_first(in_folder(path, "cut.gz"), &got), DMS_ERR_FORMAT, "%zu", kept);
        cr_expect(strstr(dms_error_text(), "cut.gz") && strstr(dms_error_text(), "truncated"));
    }
    packed[n - 6] ^= 1; /* in the CRC */
    put_plain("bad.gz", packed, n);
    cr_expect_eq(read_first(in_folder(path, "bad.gz"), &got), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "corrupt"), "%s", dms_error_text());
    dms_text_free(&got);
}

Test(corpus, reports_what_is_not_there)
{
    char path[256];
    dms_corpus *c;
    cr_expect_eq(dms_corpus_open(&c, in_folder(path, "none")), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "none"));
    cr_expect_eq(dms_corpus_open(&c, folder), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "holds no files"));
    dms_corpus_close(NULL);
}

Test(corpus, a_shard_is_not_text_and_one_being_written_is_passed_over)
{
    const char *name = NULL;
    dms_corpus *c = NULL;
    put_plain("a.txt", "text", 4);
    put_plain("b.tok.partial", "\0\0\0\0", 4);
    must(dms_corpus_open(&c, folder));
    must(dms_corpus_next(c, &name));
    cr_assert(strstr(name, "a.txt"));
    must(dms_corpus_next(c, &name));
    cr_assert(!name);
    dms_corpus_close(c);
    put_plain("b.tok", "DMSTOKS1 and more", 17);
    must(dms_corpus_open(&c, folder));
    must(dms_corpus_next(c, &name));
    cr_assert_eq(dms_corpus_next(c, &name), DMS_ERR_ARG);
    cr_assert(strstr(dms_error_message(), "b.tok is a token shard"), "%s", dms_error_message());
    dms_corpus_close(c);
}

Test(corpus, a_pipe_gives_all_its_bytes)
{
    char path[256], text[16] = "";
    const char *name = NULL;
    dms_corpus *c = NULL;
    size_t n = 0;
    cr_assert(!mkfifo(in_folder(path, "pipe"), 0600));
    const pid_t writer = fork();
    if (!writer) {
        FILE *file = fopen(path, "wb");
        fputs("whole text", file);
        fclose(file);
        _exit(0);
    }
    must(dms_corpus_open(&c, path));
    must(dms_corpus_next(c, &name));
    must(dms_corpus_read(c, text, sizeof(text) - 1, &n));
    cr_assert(n == 10 && !strcmp(text, "whole text"), "%zu bytes: %s", n, text);
    dms_corpus_close(c);
}

Test(corpus, each_line_of_json_lines_is_a_document)
{
    static const char lines[] = "{\"text\": \"one\\nline\"}\r\n"
                                "\n"
                                "{\"id\": 7, \"text\": \"a\\u0000b\"}\n"
                                "  \n"
                                "{\"text\": \"\"}\n"
                                "{\"text\": \"\\u00e9 last\"}"; /* no newline at the end */
    char path[256];
    dms_text got = {0};
    put_plain("x.jsonl", lines, sizeof(lines) - 1);
    put_gzip("y.ndjson.gz", lines, sizeof(lines) - 1);
    put_plain("z.txt", "{\"text\": 1}", 11); /* the name decides */
    for (size_t chunk = 1; chunk < 12; chunk++) {
        must(read_all(in_folder(path, "x.jsonl"), &got, chunk));
        cr_expect(got.n == 23 && !memcmp(got.bytes, "one\nline|a\0b||\u00e9 last|", 22), "%.*s",
                  (int)got.n, got.bytes);
    }
    must(read_all(in_folder(path, "y.ndjson.gz"), &got, 100));
    cr_expect(got.n == 23 && !memcmp(got.bytes, "one\nline|a\0b||\u00e9 last|", 22));
    must(read_all(folder, &got, 100));
    cr_expect_eq(got.n, 22 + 22 + 12 + 1);
    dms_text_free(&got);
}

/* Some editors put a byte order mark before the first line; elsewhere it is none. */
Test(corpus, json_lines_may_begin_with_a_byte_order_mark)
{
    static const char good[] = "\xef\xbb\xbf{\"text\": \"\xef\xbb\xbf"
                               "a\"}\n{\"text\": \"b\"}\n",
                      bad[] = "{\"text\": \"a\"}\n\xef\xbb\xbf{\"text\": \"b\"}\n";
    char path[256];
    dms_text got = {0};
    put_plain("x.jsonl", good, sizeof(good) - 1);
    must(read_all(in_folder(path, "x.jsonl"), &got, 100));
    cr_expect(got.n == 8 && !memcmp(got.bytes,
                                    "\xef\xbb\xbf"
                                    "a|b|",
                                    7),
              "%.*s", (int)got.n, got.bytes);
    put_plain("x.jsonl", good, 3);
    must(read_all(in_folder(path, "x.jsonl"), &got, 100));
    cr_expect_eq(got.n, 1);
    put_plain("x.jsonl", bad, sizeof(bad) - 1);
    cr_expect_eq(read_all(in_folder(path, "x.jsonl"), &got, 100), DMS_ERR_FORMAT);
    dms_text_free(&got);
}

Test(corpus, names_a_line_by_its_file_and_number_and_gives_its_messages)
{
    char path[256], text[64];
    const char *name;
    size_t n;
    dms_corpus *c;
    static const char lines[] =
        "{\"text\": \"a\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, "
        "{\"role\": \"assistant\", \"content\": \"Ho\", \"reasoning_content\": \"hm\"}]}\n";
    put_plain("x.jsonl", lines, sizeof(lines) - 1);
    must(dms_corpus_open(&c, in_folder(path, "x.jsonl")));
    must(dms_corpus_next(c, &name));
    cr_expect_null(dms_corpus_messages(c, &n));
    must(dms_corpus_next(c, &name));
    cr_expect(name && strstr(name, "x.jsonl, line 3"));
    const dms_message *m = dms_corpus_messages(c, &n);
    cr_assert(m && n == 2);
    cr_expect(!strcmp(m[0].role, "user") && !strcmp(m[0].content, "Hi") && !m[0].reasoning);
    cr_expect(!strcmp(m[1].content, "Ho") && !strcmp(m[1].reasoning, "hm"));
    must(dms_corpus_read(c, text, sizeof(text), &n));
    cr_expect_eq(n, 0);
    must(dms_corpus_next(c, &name));
    cr_expect_null(name);
    dms_corpus_close(c);
}

Test(corpus, names_file_and_line_of_what_is_no_document)
{
#define MESSAGE(rest) "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, " rest "]}"
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"{\"text\": \"a\"", "line 2, column"},
        {"\xff", "line 2, column"},
        {"[1]", "line 2: it is an array, expected an object"},
        {"{\"content\": \"a\"}", "none of the keys \"text\" and \"messages\""},
        {"{\"text\": \"a\", \"messages\": []}", "both of the keys"},
        {"{\"text\": 7}", "\"text\" is a number, expected a string"},
        {"{\"messages\": {}}", "\"messages\" is an object, expected an array"},
        {"{\"messages\": []}", "\"messages\" is an array, expected an array of one message"},
        {MESSAGE("7"), "messages[1].role is missing"},
        {MESSAGE("{\"role\": \"tool\", \"content\": \"a\"}"), "messages[1].role is \"tool\""},
        {MESSAGE("{\"role\": \"user\"}"), "messages[1].content is missing, expected a string"},
        {MESSAGE("{\"role\": \"user\", \"content\": [\"a\"]}"), "messages[1].content is an array"},
        {MESSAGE("{\"role\": \"user\", \"content\": \"\\u0000\"}"), "holds a NUL character"},
        {MESSAGE("{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{}]}"),
         "messages[1] has tool_calls"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char path[256], text[512];
        dms_text got = {0};
        const int n = snprintf(text, sizeof(text), "{\"text\": \"good\"}\n%s\n", cases[i].line);
        put_plain("bad.jsonl", text, (size_t)n);
        cr_expect_eq(read_all(in_folder(path, "bad.jsonl"), &got, 100), DMS_ERR_FORMAT, "%s",
                     cases[i].line);
        cr_expect(strstr(dms_error_text(), "bad.jsonl, line 2") &&
                      strstr(dms_error_text(), cases[i].message),
                  "%s: %s", cases[i].line, dms_error_text());
        dms_text_free(&got);
    }
}

Test(corpus, reads_lines_longer_than_its_buffers_but_no_endless_one)
{
    char path[256];
    const size_t n = 9 << 20;
    char *text = malloc(n);
    dms_text got = {0};
    cr_assert(text);
    memset(text, 'x', n);
    memcpy(text, "{\"text\": \"", 10);
    memcpy(text + 200000, "\"}\n{\"text\": \"", 13);
    memcpy(text + 300000, "\"}\n", 3);
    put_plain("long.jsonl", text, 300003);
    must(read_all(in_folder(path, "long.jsonl"), &got, 1 << 20));
    cr_expect_eq(got.n, (200000 - 10 + 1) + (300000 - 200013 + 1) + 1);
    for (size_t end = 65534; end < 65540; end++) { /* it is read by 65536 bytes */
        memset(text, 'x', n);
        memcpy(text, "{\"text\": \"", 10);
        memcpy(text + end - 2, "\"}\n{\"text\": \"\"}", 15);
        put_plain("edge.jsonl", text, end + 13);
        must(read_all(in_folder(path, "edge.jsonl"), &got, 1 << 20));
        cr_expect_eq(got.n, end - 12 + 3);
    }
    memset(text, 'x', n);
    put_gzip("endless.jsonl", text, n);
    cr_expect_eq(read_all(in_folder(path, "endless.jsonl"), &got, 100), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "line 1 is longer than 8 MiB"), "%s", dms_error_text());
    free(text);
    dms_text_free(&got);
}

/* Reading all of the file fails, and the message has both. */
static void expect_refused(const char *name, const char *what, const char *remedy)
{
    char path[256];
    dms_text got = {0};
    cr_expect_eq(read_all(in_folder(path, name), &got, 512), DMS_ERR_FORMAT, "%s", name);
    cr_expect(strstr(dms_error_message(), path) && strstr(dms_error_message(), what) &&
                  strstr(dms_error_message(), remedy),
              "%s: %s", name, dms_error_message());
    dms_text_free(&got);
}

Test(corpus, refuses_what_is_no_text_by_its_first_bytes)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *what, *remedy;
    } cases[] = {{"\xff\xfeh\0i\0", 6, "UTF-16", "iconv"},
                 {"\xfe\xff\0h\0i", 6, "UTF-16", "iconv"},
                 {"\0\0\xfe\xff\0\0\0h", 8, "UTF-32", "iconv"},
                 {"\x28\xb5\x2f\xfd....", 8, "zstd", "unzstd"},
                 {"PK\3\4....", 8, "zip", "unzip"},
                 {"%PDF-1.7 ...", 12, "PDF", "pdftotext"},
                 {"\x93NUMPY\1\0....", 12, "NumPy", "data.train"},
                 {"BZh91AY&SY...", 13, "bzip2", "bunzip2"},
                 {"\x1f\x8b\x08.......", 10, "gzip within gzip", "gunzip"}};
    static const char *const texts[] = {"B", "BZh9 is text", "PK", "%PDF",
                                        "\xef\xbb\xbf"
                                        "a"};
    char path[256];
    dms_text got = {0};
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (cases[i].bytes[0] != '\x1f') {
            put_plain("x", cases[i].bytes, cases[i].n);
            expect_refused("x", cases[i].what, cases[i].remedy);
        }
        put_gzip("x.jsonl.gz", cases[i].bytes, cases[i].n);
        expect_refused("x.jsonl.gz", cases[i].what, cases[i].remedy);
    }
    for (size_t i = 0; i < COUNT(texts); i++) {
        put_plain("x", texts[i], strlen(texts[i]));
        must(read_all(in_folder(path, "x"), &got, 2));
        cr_expect(!strncmp(got.bytes, texts[i], strlen(texts[i])), "%s", texts[i]);
    }
    dms_text_free(&got);
}

static void append(const char *name, const char *bytes, size_t n)
{
    char path[256];
    FILE *file = fopen(in_folder(path, name), "ab");
    cr_assert(file && fwrite(bytes, 1, n, file) == n);
    fclose(file);
}

Test(corpus, takes_several_gzip_members_and_refuses_what_else_follows_one)
{
    static char more[64];
    char path[256];
    dms_text got = {0};
    put_gzip("more", "two", 3);
    FILE *file = fopen(in_folder(path, "more"), "rb");
    const size_t n = fread(more, 1, sizeof(more), file);
    fclose(file);
    put_gzip("x", "one", 3);
    append("x", more, n);
    append("x", "\0\0\0\0\0", 5);
    must(read_all(in_folder(path, "x"), &got, 100));
    cr_expect_str_eq(got.bytes, "onetwo|");
    append("x", "junk", 4);
    expect_refused("x", "followed by what is none", "appended");
    put_gzip("y.jsonl", "{\"text\": \"a\"}\n", 14);
    append("y.jsonl", "{\"text\": \"b\"}\n", 14);
    expect_refused("y.jsonl", "followed by what is none", "appended");
    dms_text_free(&got);
}

Test(corpus, knows_json_lines_by_a_name_in_capitals)
{
    char path[256];
    dms_text got = {0};
    put_plain("X.JSONL", "{\"text\": \"a\"}\n{\"text\": \"b\"}", 27);
    must(read_all(in_folder(path, "X.JSONL"), &got, 100));
    cr_expect_str_eq(got.bytes, "a|b|");
    dms_text_free(&got);
}
