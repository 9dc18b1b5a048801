/* Token files of other tools: those that NumPy and the recipes of nanoGPT and llm.c write (made by
 * tests/token_files/make.py), and what is wrong with others. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/loader.h"
#include "data/shard.h"
#include "infer/describe.h"
#include "tests/files.h"

enum { N = 40 };

static int32_t id_of(int i)
{
    return i * 7919 % 50257;
}

static const char *made(const char *name)
{
    static char paths[4][1024];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/tests/token_files/%s", DMS_SOURCE_DIR, name);
    return path;
}

static const struct {
    const char *name, *format;
    int id_bytes;
} readable[] = {
    {"u2.npy", "NumPy array of u16", 2},        {"u4.npy", "NumPy array of u32", 4},
    {"i4.npy", "NumPy array of i32", 4},        {"i8.npy", "NumPy array of i64", 8},
    {"version2.npy", "NumPy array of u16", 2},  {"llmc.bin", "llm.c token file", 2},
    {"llmc_llama3.bin", "llm.c token file", 4}, {"nanogpt.bin", "16-bit ids without a header", 2}};

Test(shard_foreign, gives_the_ids_that_other_tools_wrote)
{
    for (size_t i = 0; i < COUNT(readable); i++) {
        dms_shard *s;
        int32_t ids[N], largest = 0;
        must(dms_shard_open(&s, made(readable[i].name)));
        must(dms_shard_verify(s));
        must(dms_shard_read(s, ids, 0, N));
        for (int k = 0; k < N; k++) {
            cr_expect_eq(ids[k], id_of(k), "%s: %d", readable[i].name, k);
            largest = id_of(k) > largest ? id_of(k) : largest;
        }
        must(dms_shard_read(s, ids, 7, 2));
        cr_expect(ids[0] == id_of(7) && ids[1] == id_of(8));
        cr_expect_eq(dms_shard_read(s, ids, N - 1, 2), DMS_ERR_ARG);
        const dms_shard_info *info = dms_shard_get_info(s);
        cr_expect(info->foreign && info->n_tokens == N && info->vocab == largest + 1 &&
                  !info->tokenizer_crc && info->id_bytes == readable[i].id_bytes);
        cr_expect_str_eq(info->format, readable[i].format);
        cr_expect(dms_shard_recognise_any(made(readable[i].name)));
        cr_expect_not(dms_shard_recognise(made(readable[i].name)), "it might be replaced");
        dms_shard_close(s);
    }
}

static void expect_refused(const char *path, const char *why)
{
    dms_shard *s = NULL;
    cr_expect_eq(dms_shard_open(&s, path), DMS_ERR_FORMAT, "%s", path);
    cr_expect(strstr(dms_error_message(), why) && strstr(dms_error_message(), path), "%s: %s", why,
              dms_error_message());
    cr_expect_null(s);
}

Test(shard_foreign, says_why_another_array_is_refused)
{
    expect_refused(made("matrix.npy"), "expected one dimension");
    expect_refused(made("fortran.npy"), "Fortran's order");
    expect_refused(made("f4.npy"), "type \"<f4\"");
    expect_refused(made("big_endian.npy"), "type \">u2\"");
    expect_refused(made("negative.npy"), "token 0 has id -7919");
}

/* A .npy of version 1.0 with this header and `n` bytes of data. */
static const char *put_npy(const scratch *s, const char *header, size_t n)
{
    static char bytes[4096];
    const size_t length = strlen(header);
    const char *path = scratch_path(s, "x.npy");
    memset(bytes, 0, sizeof(bytes));
    memcpy(bytes, "\x93NUMPY\1\0", 8);
    bytes[8] = (char)length;
    memcpy(bytes + 10, header, length);
    write_bytes(path, bytes, 10 + length + n);
    return path;
}

Test(shard_foreign, takes_a_numpy_header_written_otherwise_and_refuses_what_is_none)
{
    static const char *const good[] = {
        "{\"shape\":(4,),\"fortran_order\":False,\"descr\":\"<i4\"}",
        " {'descr' : '<u2' , 'shape': ( 8 , ) , 'fortran_order': False , }\n"};
    static const char *const bad[] = {
        "",
        "{",
        "{}",
        "{'descr': '<u2'}",
        "{'descr': '<u2', 'shape': (8), 'fortran_order': False}",
        "{'descr': [('a', '<u2')], 'shape': (8,), 'fortran_order': False}",
        "{'descr': '<u2', 'shape': (8,), 'fortran_order': 0}",
        "{'descr': '<u2', 'shape': (-8,), 'fortran_order': False}",
        "{'descr': '<u2', 'shape': (99999999999999999999,), 'fortran_order': False}",
        "{'descr': '<u2', 'shape': (8,), 'fortran_order': False} x",
        "{'descr': '<u2', 'shape': (8,), 'fortran_order': False, 'more': 1}",
        "{'descr': '<u2' 'shape': (8,), 'fortran_order': False}"};
    scratch s = scratch_open();
    dms_shard *shard;
    for (size_t i = 0; i < COUNT(good); i++) {
        must(dms_shard_open(&shard, put_npy(&s, good[i], 16)));
        dms_shard_close(shard);
    }
    for (size_t i = 0; i < COUNT(bad); i++)
        expect_refused(put_npy(&s, bad[i], 16), "its NumPy header is not {");
    expect_refused(put_npy(&s, good[0], 15), "holds 15 bytes of ids, expected 4 ids of 4 bytes");
    expect_refused(put_npy(&s, good[0], 20), "holds 20 bytes of ids");
    expect_refused(put_npy(&s,
                           "{'descr': '<i8', 'shape': (4611686018427387904,), "
                           "'fortran_order': False}",
                           0),
                   "holds 0 bytes of ids");
    expect_refused(put_npy(&s, "{'descr': '<u2', 'shape': (), 'fortran_order': False}", 2),
                   "expected one dimension");
    scratch_close(&s);
}

Test(shard_foreign, notices_each_missing_byte)
{
    scratch s = scratch_open();
    for (size_t i = 0; i < COUNT(readable); i++) {
        size_t n;
        char *bytes = read_bytes(made(readable[i].name), &n);
        const char *path = scratch_path(&s, strstr(readable[i].name, ".npy") ? "x.npy" : "x.bin");
        const bool raw = !strcmp(readable[i].name, "nanogpt.bin");
        for (size_t kept = raw ? n - 1 : 0; kept < n; kept++) {
            dms_shard *shard;
            write_bytes(path, bytes, kept);
            /* Less than the magic of llm.c's is what nanoGPT's might be. */
            if (kept >= 8 || kept % 2 || strstr(path, ".npy"))
                cr_expect_eq(dms_shard_open(&shard, path), DMS_ERR_FORMAT, "%s: %zu",
                             readable[i].name, kept);
        }
        free(bytes);
    }
    scratch_close(&s);
}

Test(shard_foreign, refuses_models_and_other_versions_by_name)
{
    scratch s = scratch_open();
    const char *path = scratch_path(&s, "pytorch_model.bin");
    const uint32_t other[3] = {20240520, 7, 0};
    write_bytes(path, "PK\3\4 and so on", 14);
    expect_refused(path, "is not a token shard");
    cr_expect_not(dms_shard_recognise_any(path));
    write_bytes(path, other, sizeof(other));
    expect_refused(path, "llm.c file of magic 20240520 and version 7, expected one of tokens");
    write_bytes(path, (uint32_t[3]){20240801, 1 << 20, 0}, 12);
    expect_refused(path, "llm.c file of magic 20240801 and version 1048576");
    write_bytes(path, (uint32_t[3]){20240522, 1, 0}, 12); /* its multiple-choice questions */
    expect_refused(path, "llm.c file of magic 20240522 and version 1");
    write_bytes(path, "\x93NUMPY\3\0\1\0{", 11);
    expect_refused(path, "version 3.0, expected 1.0 or 2.0");
    write_bytes(path, "ab", 0);
    expect_refused(path, "empty");
    path = scratch_path(&s, "ids.u16");
    write_bytes(path, "abcdabcd", 8);
    expect_refused(path, "shorter than the header");
    scratch_close(&s);
}

Test(shard_foreign, are_described)
{
    json_t *view = json_object();
    must(dms_describe_shard(view, made("nanogpt.bin"), true));
    cr_expect_str_eq(json_string_value(json_object_get(view, "format")),
                     "16-bit ids without a header");
    cr_expect_eq(json_integer_value(json_object_get(view, "file_bytes")), 2 * N);
    cr_expect_eq(json_integer_value(json_object_get(view, "tokens")), N);
    cr_expect_eq(json_integer_value(json_object_get(view, "id_bytes")), 2);
    cr_expect(json_is_null(json_object_get(view, "tokenizer_crc32")));
    json_decref(view);
}

static void put_ours(const char *path, int64_t vocab, uint32_t crc)
{
    dms_shard_writer *w;
    must(dms_shard_writer_open(&w, path, vocab, crc));
    for (int i = 0; i < N; i++)
        must(dms_shard_writer_append(w, &(int32_t){i}, 1));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
}

Test(shard_foreign, are_loaded_beside_ours_with_a_notice_and_the_vocabulary_that_they_need)
{
    scratch s = scratch_open();
    const char *ours = scratch_path(&s, "x.tok"), *other = scratch_path(&s, "y.tok");
    const char *paths[] = {made("u2.npy"), ours, made("llmc.bin"), other};
    int32_t ids[10];
    dms_loader *l = NULL;
    put_ours(ours, 300, 42);
    put_ours(other, 300, 43);
    dms_loader_options o = {
        .shards = paths, .n_shards = 3, .context = 10, .sequences = 1, .verify = true};
    must(dms_loader_open(&l, &o));
    cr_expect_eq(dms_loader_tokens(l), 3 * N);
    cr_expect_gt(dms_loader_vocab(l), 40000);
    cr_expect_eq(dms_loader_tokenizer_crc(l), 42);
    cr_assert_not_null(dms_loader_notice(l));
    cr_expect(strstr(dms_loader_notice(l), "u2.npy (NumPy array of u16) names no tokenizer"), "%s",
              dms_loader_notice(l));
    must(dms_loader_read(l, 9, 0, 1, ids, NULL));
    for (int i = 0; i < 10; i++)
        cr_expect_eq(ids[i], id_of(10 + i));
    dms_loader_close(l);
    o.shards = paths + 1, o.n_shards = 1;
    must(dms_loader_open(&l, &o));
    cr_expect_null(dms_loader_notice(l));
    dms_loader_close(l);
    o.shards = paths, o.n_shards = 4;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_message(), "another tokenizer"), "%s", dms_error_message());
    scratch_close(&s);
}
