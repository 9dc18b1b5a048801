/* Token shards and the loader: what is written is read, any batch at once, each context once. */
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/loader.h"
#include "data/shard.h"
#include "data/shuffle.h"
#include "tests/rig.h"

static char folder[] = "/tmp/dms-loader-XXXXXX";

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

TestSuite(shard, .init = make_folder, .fini = drop_folder);
TestSuite(loader, .init = make_folder, .fini = drop_folder);

/* A path that lives until the test ends. */
static const char *in_folder(const char *name)
{
    static char paths[16][256];
    static unsigned next;
    char *path = paths[next++ % COUNT(paths)];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

/* Token i of the whole stream of these tests. */
static int32_t token(int64_t i, int64_t vocab)
{
    return (int32_t)((uint64_t)i * 2654435761u % (uint64_t)vocab);
}

/* Tokens start .. start + n - 1 of the stream. */
static void put_shard(const char *path, int64_t start, int64_t n, int64_t vocab)
{
    dms_shard_writer *w;
    must(dms_shard_writer_open(&w, path, vocab, 42));
    for (int64_t i = 0; i < n; i++) {
        const int32_t id = token(start + i, vocab);
        must(dms_shard_writer_append(w, &id, 1));
    }
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
}

Test(shard, gives_back_what_was_written_in_two_or_four_bytes)
{
    static const int64_t vocabs[] = {1, 320, 65536, 65537, INT32_MAX};
    static const int64_t lengths[] = {0, 1, 16384, 50001};
    for (size_t v = 0; v < COUNT(vocabs); v++)
        for (size_t k = 0; k < COUNT(lengths); k++) {
            const int64_t n = lengths[k];
            const char *path = in_folder("x.tok");
            put_shard(path, 0, n, vocabs[v]);
            dms_shard *s;
            must(dms_shard_open(&s, path));
            must(dms_shard_verify(s));
            const dms_shard_info *info = dms_shard_get_info(s);
            cr_expect(info->n_tokens == n && info->vocab == vocabs[v] && info->tokenizer_crc == 42);
            int32_t *ids = calloc((size_t)n + 1, sizeof(*ids));
            cr_assert(ids);
            must(dms_shard_read(s, ids, 0, n));
            for (int64_t i = 0; i < n; i++)
                cr_assert_eq(ids[i], token(i, vocabs[v]));
            cr_expect_eq(dms_shard_read(s, ids, n, 1), DMS_ERR_ARG);
            cr_expect_eq(dms_shard_read(s, ids, -1, 1), DMS_ERR_ARG);
            free(ids);
            dms_shard_close(s);
        }
}

Test(shard, leaves_the_old_file_until_it_is_committed)
{
    const char *path = in_folder("x.tok");
    dms_shard_writer *w;
    dms_shard *s;
    put_shard(path, 0, 10, 100);
    must(dms_shard_writer_open(&w, path, 100, 0));
    cr_expect_eq(dms_shard_writer_append(w, (int32_t[]){1, 100}, 2), DMS_ERR_ARG);
    cr_expect_eq(dms_shard_writer_append(w, (int32_t[]){-1}, 1), DMS_ERR_ARG);
    dms_shard_writer_close(w);
    cr_expect_neq(access(in_folder("x.tok.partial"), F_OK), 0);
    must(dms_shard_open(&s, path));
    cr_expect_eq(dms_shard_get_info(s)->n_tokens, 10);
    dms_shard_close(s);
    cr_expect_eq(dms_shard_writer_open(&w, in_folder("none/x.tok"), 100, 0), DMS_ERR_IO);
    cr_expect_eq(dms_shard_writer_open(&w, path, 0, 0), DMS_ERR_ARG);
    dms_shard_writer_close(NULL);
}

Test(shard, reports_a_full_disk_and_keeps_nothing)
{
    const struct rlimit small = {4096, RLIM_INFINITY};
    static int32_t ids[10000];
    dms_shard_writer *w;
    must(dms_shard_writer_open(&w, in_folder("x.tok"), 100, 0));
    must(dms_shard_writer_append(w, ids, 10000));
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    cr_expect_eq(dms_shard_writer_commit(w), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "x.tok.partial: writing"), "%s", dms_error_text());
    dms_shard_writer_close(w);
    cr_expect_neq(access(in_folder("x.tok"), F_OK), 0);
    cr_expect_neq(access(in_folder("x.tok.partial"), F_OK), 0);
}

static size_t slurp(const char *path, uint8_t *bytes, size_t room)
{
    FILE *file = fopen(path, "rb");
    cr_assert(file);
    const size_t n = fread(bytes, 1, room, file);
    fclose(file);
    return n;
}

static void spit(const char *path, const uint8_t *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    cr_assert(file && fwrite(bytes, 1, n, file) == n);
    fclose(file);
}

/* The first failure of open, verify and reading all of the shard. */
static dms_status read_whole(const char *path)
{
    dms_shard *s;
    int32_t ids[100];
    DMS_TRY(dms_shard_open(&s, path));
    dms_status status = dms_shard_verify(s);
    if (!status)
        status = dms_shard_read(s, ids, 0, dms_shard_get_info(s)->n_tokens);
    dms_shard_close(s);
    return status;
}

Test(shard, notices_each_damaged_bit_and_each_missing_byte)
{
    uint8_t bytes[300];
    const char *path = in_folder("x.tok"), *bad = in_folder("bad.tok");
    put_shard(path, 0, 100, 1000);
    const size_t n = slurp(path, bytes, sizeof(bytes));
    cr_assert_eq(n, 64 + 2 * 100);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        spit(bad, bytes, n);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_assert_eq(read_whole(bad), DMS_ERR_FORMAT, "bit %zu", bit);
        cr_assert(strstr(dms_error_text(), "bad.tok"));
    }
    for (size_t kept = 0; kept < n; kept++) {
        spit(bad, bytes, kept);
        cr_assert_eq(read_whole(bad), DMS_ERR_FORMAT, "%zu bytes", kept);
    }
    cr_expect_eq(read_whole(in_folder("none.tok")), DMS_ERR_IO);
    cr_expect_eq(read_whole(folder), DMS_ERR_FORMAT);
}

Test(shard, refuses_an_id_outside_the_vocabulary_when_it_is_read)
{
    uint8_t bytes[300];
    int32_t ids[100];
    dms_shard *s;
    const char *path = in_folder("x.tok");
    put_shard(path, 0, 100, 1000);
    const size_t n = slurp(path, bytes, sizeof(bytes));
    bytes[64 + 2 * 50 + 1] = 0xFF;
    spit(path, bytes, n);
    must(dms_shard_open(&s, path));
    must(dms_shard_read(s, ids, 0, 50));
    cr_expect_eq(dms_shard_read(s, ids, 0, 51), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "token 50 has id"), "%s", dms_error_text());
    dms_shard_close(s);
}

Test(shuffle, is_a_permutation_that_differs_by_seed_and_epoch)
{
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4096, 4097};
    for (size_t k = 0; k < COUNT(sizes); k++) {
        const int64_t n = sizes[k];
        char *seen = calloc((size_t)n, 1);
        int64_t kept = 0, as_seed = 0, as_epoch = 0;
        cr_assert(seen);
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = dms_shuffle(i, n, 1, 0);
            cr_assert(at >= 0 && at < n && !seen[at], "%lld of %lld", (long long)i, (long long)n);
            seen[at] = 1;
            kept += at == i;
            as_seed += at == dms_shuffle(i, n, 2, 0);
            as_epoch += at == dms_shuffle(i, n, 1, 1);
        }
        /* A random permutation keeps one place on average; 12 has a chance below 1e-8. */
        if (n >= 64)
            cr_expect(kept < 12 && as_seed < 12 && as_epoch < 12, "%lld", (long long)n);
        free(seen);
    }
    const int64_t huge = (int64_t)1 << 62;
    const int64_t at = dms_shuffle(huge - 1, huge, 9, 3);
    cr_expect(at >= 0 && at < huge);
}

/* 64 contexts come first about equally often over many epochs: chi-square with 63 degrees of
 * freedom, 130 has a chance below 1e-6. */
Test(shuffle, favours_no_place)
{
    int count[64] = {0};
    double chi = 0;
    for (uint64_t epoch = 0; epoch < 6400; epoch++)
        count[dms_shuffle(0, 64, 5, epoch)]++;
    for (int i = 0; i < 64; i++)
        chi += (count[i] - 100.0) * (count[i] - 100.0) / 100.0;
    cr_expect(chi < 130, "chi-square %g", chi);
}

enum { T = 7, VOCAB = 5000 };

/* 201 tokens in four shards, one of them empty: 28 contexts of 7 tokens, 5 tokens left over. */
static dms_loader *open_stream(bool shuffled, int64_t sequences, uint64_t seed)
{
    static const int64_t lengths[] = {50, 0, 1, 150};
    const char *paths[COUNT(lengths)];
    int64_t start = 0;
    for (size_t i = 0; i < COUNT(lengths); i++) {
        char name[16];
        snprintf(name, sizeof(name), "%zu.tok", i);
        paths[i] = in_folder(name);
        put_shard(paths[i], start, lengths[i], VOCAB);
        start += lengths[i];
    }
    dms_loader *l;
    must(dms_loader_open(&l, &(dms_loader_options){.shards = paths,
                                                   .n_shards = COUNT(lengths),
                                                   .context = T,
                                                   .sequences = sequences,
                                                   .seed = seed,
                                                   .shuffled = shuffled,
                                                   .verify = true}));
    return l;
}

Test(loader, reads_the_stream_in_order_across_shards_with_the_tokens_that_follow)
{
    int32_t ids[4 * T], next[4 * T];
    dms_loader *l = open_stream(false, 4, 0);
    cr_expect_eq(dms_loader_tokens(l), 201);
    cr_expect_eq(dms_loader_contexts(l), 28);
    cr_expect_eq(dms_loader_vocab(l), VOCAB);
    cr_expect_eq(dms_loader_tokenizer_crc(l), 42);
    for (int64_t step = 0; step < 7; step++) {
        must(dms_loader_read(l, step, 0, 4, ids, next));
        for (int64_t i = 0; i < 4 * T; i++) {
            cr_expect_eq(ids[i], token(step * 4 * T + i, VOCAB));
            cr_expect_eq(next[i], token(step * 4 * T + i + 1, VOCAB));
        }
    }
    cr_expect_eq(dms_loader_read(l, 7, 0, 1, ids, next), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "the data has 28"), "%s", dms_error_text());
    dms_loader_close(l);
}

/* Ten tokens are two contexts; with an eleventh the last one has a next token after all. */
Test(loader, has_no_next_token_only_where_the_stream_ends)
{
    for (int n = 10; n <= 11; n++) {
        int32_t ids[10], next[10];
        const char *path = in_folder("x.tok");
        dms_loader *l;
        put_shard(path, 0, n, VOCAB);
        must(dms_loader_open(&l, &(dms_loader_options){&path, 1, 5, 2, 0, false, false, NULL}));
        must(dms_loader_read(l, 0, 0, 2, ids, next));
        for (int i = 0; i < 10; i++)
            cr_expect_eq(next[i], i + 1 < n ? token(i + 1, VOCAB) : -1);
        must(dms_loader_read(l, 0, 1, 1, ids, NULL));
        cr_expect_eq(ids[0], token(5, VOCAB));
        dms_loader_close(l);
    }
}

/* Index in the stream of a context by its first token, which is unique in it. */
static int64_t which(const int32_t *ids)
{
    for (int64_t c = 0; c < 28; c++)
        if (ids[0] == token(c * T, VOCAB))
            return c;
    cr_assert_fail("no context begins with %d", ids[0]);
    return -1;
}

Test(loader, shows_each_context_once_an_epoch_in_another_order)
{
    int32_t ids[4 * T];
    int64_t order[3][28], same = 0;
    dms_loader *l = open_stream(true, 4, 77);
    for (int64_t epoch = 0; epoch < 3; epoch++) {
        bool seen[28] = {false};
        for (int64_t i = 0; i < 28; i++) {
            must(dms_loader_read(l, epoch * 7 + i / 4, i % 4, 1, ids, NULL));
            order[epoch][i] = which(ids);
            cr_expect_not(seen[order[epoch][i]]);
            seen[order[epoch][i]] = true;
            for (int t = 0; t < T; t++)
                cr_expect_eq(ids[t], token(order[epoch][i] * T + t, VOCAB));
        }
    }
    for (int i = 0; i < 28; i++)
        same += order[0][i] == order[1][i];
    cr_expect(same < 12); /* one expected */
    dms_loader_close(l);
}

Test(loader, resumes_at_the_batch_it_stopped_before)
{
    enum { STEPS = 20, S = 6 };
    static int32_t ids[STEPS][S * T], next[STEPS][S * T], got[S * T], got_next[S * T];
    dms_loader *l = open_stream(true, S, 123);
    for (int64_t step = 0; step < STEPS; step++)
        must(dms_loader_read(l, step, 0, S, ids[step], next[step]));
    dms_loader_close(l);
    l = open_stream(true, S, 123);
    for (int64_t step = STEPS - 1; step >= 0; step -= 3) {
        /* in three micro-batches this time */
        for (int64_t m = 0; m < S; m += 2)
            must(dms_loader_read(l, step, m, 2, got + m * T, got_next + m * T));
        cr_expect_eq(memcmp(got, ids[step], sizeof(got)), 0);
        cr_expect_eq(memcmp(got_next, next[step], sizeof(got)), 0);
    }
    dms_loader_close(l);
    l = open_stream(true, S, 124);
    must(dms_loader_read(l, 0, 0, S, got, NULL));
    cr_expect_neq(memcmp(got, ids[0], sizeof(got)), 0, "the seed makes no difference");
    dms_loader_close(l);
}

Test(loader, says_how_much_data_a_step_needs)
{
    const char *path = in_folder("x.tok");
    dms_loader *l;
    put_shard(path, 0, 99, VOCAB);
    cr_expect_eq(dms_loader_open(&l, &(dms_loader_options){&path, 1, 10, 10, 0, true, false, NULL}),
                 DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(),
                     "x.tok: 99 tokens, but one step of 10 sequences of 10 tokens "
                     "takes 100; add text"),
              "%s", dms_error_text());
    must(dms_loader_open(&l, &(dms_loader_options){&path, 1, 10, 9, 0, true, false, NULL}));
    dms_loader_close(l);
}

Test(loader, refuses_wrong_options_and_shards_that_do_not_belong_together)
{
    const char *paths[] = {in_folder("a.tok"), in_folder("b.tok"), in_folder("none.tok")};
    const dms_loader_options good = {
        .shards = paths, .n_shards = 1, .context = 5, .sequences = 2, .shuffled = true};
    dms_loader_options o;
    dms_loader *l;
    int32_t ids[64];
    put_shard(paths[0], 0, 50, 100);
    put_shard(paths[1], 0, 50, 101);
    o = good, o.n_shards = 0;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_ARG);
    o = good, o.context = 0;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_ARG);
    o = good, o.sequences = INT64_MAX;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_ARG);
    o = good, o.n_shards = 2;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "another tokenizer"), "%s", dms_error_text());
    paths[1] = paths[2];
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_IO);
    must(dms_loader_open(&l, &good));
    cr_expect_eq(dms_loader_read(l, 0, 1, 2, ids, NULL), DMS_ERR_ARG);
    cr_expect_eq(dms_loader_read(l, -1, 0, 1, ids, NULL), DMS_ERR_ARG);
    cr_expect_eq(dms_loader_read(l, 0, INT64_MAX, 1, ids, NULL), DMS_ERR_ARG);
    dms_loader_close(l);
    dms_loader_close(NULL);
}

/* Three shards of 40, 100 and 12 contexts whose tokens tell the shard (id / 1000) and the context.
 */
static dms_loader *open_blend(const double *weights, uint64_t seed)
{
    static const int contexts[] = {40, 100, 12};
    const char *paths[] = {in_folder("a.tok"), in_folder("b.tok"), in_folder("c.tok")};
    dms_loader *l;
    for (int i = 0; i < 3; i++) {
        dms_shard_writer *w;
        must(dms_shard_writer_open(&w, paths[i], 4000, 42));
        for (int t = 0; t < 4 * contexts[i] + 3; t++)
            must(dms_shard_writer_append(w, &(int32_t){1000 * i + t}, 1));
        must(dms_shard_writer_commit(w));
        dms_shard_writer_close(w);
    }
    must(dms_loader_open(&l, &(dms_loader_options){.shards = paths,
                                                   .n_shards = 3,
                                                   .context = 4,
                                                   .sequences = 8,
                                                   .seed = seed,
                                                   .shuffled = true,
                                                   .weights = weights}));
    return l;
}

Test(loader, blends_shards_by_weight_and_shows_each_context_of_a_shard_before_any_again)
{
    static const double weights[] = {1, 2, 5};
    dms_loader *l = open_blend(weights, 7);
    int drawn[3] = {0}, seen[3][100] = {{0}};
    cr_expect_eq(dms_loader_contexts(l), 152);
    for (int64_t step = 0; step < 256; step++) { /* two blocks of 1024 */
        int32_t ids[8 * 4], next[8 * 4];
        must(dms_loader_read(l, step, 0, 8, ids, next));
        for (int s = 0; s < 8; s++) {
            const int shard = ids[4 * s] / 1000, context = ids[4 * s] % 1000 / 4;
            drawn[shard]++;
            seen[shard][context]++;
            for (int t = 0; t < 4; t++)
                cr_assert_eq(next[4 * s + t],
                             ids[4 * s] + t + 1); /* three tokens follow the last */
        }
        if (step == 127)
            cr_expect(drawn[0] == 128 && drawn[1] == 256 && drawn[2] == 640, "%d %d %d", drawn[0],
                      drawn[1], drawn[2]);
    }
    cr_expect(drawn[0] == 256 && drawn[1] == 512 && drawn[2] == 1280);
    static const int n[] = {40, 100, 12};
    for (int i = 0; i < 3; i++)
        for (int c = 0; c < n[i]; c++)
            cr_expect(seen[i][c] == drawn[i] / n[i] || seen[i][c] == drawn[i] / n[i] + 1,
                      "shard %d, context %d: %d times", i, c, seen[i][c]);
    dms_loader_close(l);
}

Test(loader, blends_the_same_wherever_it_begins_and_otherwise_with_another_seed)
{
    static const double weights[] = {0.3, 0.3, 1e-6};
    dms_loader *l = open_blend(weights, 7), *again = open_blend(weights, 7);
    dms_loader *other = open_blend(weights, 8);
    int differs = 0, rare = 0;
    for (int64_t step = 200; step-- > 0;) { /* backwards, in parts */
        int32_t a[8 * 4], b[8 * 4], c[8 * 4];
        must(dms_loader_read(l, step, 0, 8, a, NULL));
        for (int64_t s = 0; s < 8; s += 2)
            must(dms_loader_read(again, step, s, 2, b + 4 * s, NULL));
        must(dms_loader_read(other, step, 0, 8, c, NULL));
        cr_assert(!memcmp(a, b, sizeof(a)), "step %lld", (long long)step);
        differs += memcmp(a, c, sizeof(a)) != 0;
        for (int s = 0; s < 8 && step < 128; s++)
            rare += a[4 * s] >= 2000;
    }
    cr_expect(differs > 190);
    cr_expect_eq(rare, 1, "a weight near 0 is one sequence of 1024, not %d", rare);
    dms_loader_close(l);
    dms_loader_close(again);
    dms_loader_close(other);
}

Test(loader, refuses_a_blend_that_cannot_be)
{
    const char *paths[] = {in_folder("a.tok"), in_folder("b.tok")};
    double weights[] = {1, 0};
    dms_loader_options o = {.shards = paths,
                            .n_shards = 2,
                            .context = 5,
                            .sequences = 2,
                            .shuffled = true,
                            .weights = weights};
    dms_loader *l;
    put_shard(paths[0], 0, 50, 100);
    put_shard(paths[1], 0, 4, 100);
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "b.tok has the weight 0"), "%s", dms_error_text());
    weights[1] = 1;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "b.tok: 4 tokens, but one"), "%s", dms_error_text());
    o.shuffled = false;
    cr_expect_eq(dms_loader_open(&l, &o), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "must be shuffled"), "%s", dms_error_text());
}
