#include "infer/bench_tokenize.h"

#include <inttypes.h>
#include <stdio.h>

#include "checkpoints/source.h"
#include "data/corpus.h"
#include "data/tokenizer.h"
#include "infer/bench_print.h"

static dms_status open_tokenizer(dms_tokenizer **out, const dms_source *source, const char *model)
{
    size_t length;
    const char *json = dms_source_tokenizer(source, &length);
    if (!json)
        return dms_fail(DMS_ERR_FORMAT, "%s: holds no tokenizer", model);
    return dms_tokenizer_open(out, json, length, model);
}

static dms_status encode_once(dms_sample *rate, dms_tokens *ids, dms_tokenizer *t, const char *text,
                              size_t n)
{
    ids->n = 0;
    const double start = dms_bench_now();
    DMS_TRY(dms_tokenizer_encode(t, ids, text, n, true));
    dms_sample_add(rate, (double)n / (dms_bench_now() - start));
    return DMS_OK;
}

dms_status dms_bench_tokenize(dms_sample *cold, dms_sample *warm, int64_t *tokens,
                              const char *model, const char *text, size_t n, int repetitions)
{
    dms_source *source;
    dms_tokenizer *t = NULL;
    dms_tokens ids = {0};
    dms_status status = DMS_OK;
    *cold = *warm = (dms_sample){0};
    DMS_TRY(dms_source_open(&source, model));
    DMS_TRY_OR(done, dms_tokens_reserve(&ids, (int64_t)n + 1));
    for (int64_t i = 0; i < ids.capacity; i++)
        ids.ids[i] = 0; /* memory that is there: only the tokenizer's is new */
    for (int i = 0; i < repetitions; i++) {
        dms_tokenizer_close(t);
        t = NULL;
        DMS_TRY_OR(done, open_tokenizer(&t, source, model));
        DMS_TRY_OR(done, encode_once(cold, &ids, t, text, n));
        DMS_TRY_OR(done, encode_once(warm, &ids, t, text, n));
    }
    *tokens = ids.n;
done:
    dms_tokens_free(&ids);
    dms_tokenizer_close(t);
    dms_source_close(source);
    return status;
}

/* The beginnings of all documents, one behind the other. */
static dms_status read_text(dms_text *out, const char *path)
{
    dms_corpus *c;
    const char *name;
    dms_status status = DMS_OK;
    DMS_TRY(dms_corpus_open(&c, path));
    DMS_TRY_OR(done, dms_text_reserve(out, DMS_BENCH_TEXT_BYTES));
    DMS_TRY_OR(done, dms_corpus_next(c, &name));
    while (name && out->n < DMS_BENCH_TEXT_BYTES) {
        size_t n;
        DMS_TRY_OR(done,
                   dms_corpus_read(c, out->bytes + out->n, DMS_BENCH_TEXT_BYTES - out->n, &n));
        out->n += n;
        if (n == 0)
            DMS_TRY_OR(done, dms_corpus_next(c, &name));
    }
    if (out->n == 0)
        status = dms_fail(DMS_ERR_ARG, "%s holds no text", path);
done:
    dms_corpus_close(c);
    return status;
}

static dms_status print_rates(const dms_bench_tokenizing_options *o, const char *kind,
                              const dms_text *text)
{
    dms_sample rates[2];
    int64_t tokens;
    DMS_TRY(dms_bench_tokenize(&rates[0], &rates[1], &tokens, o->model, text->bytes, text->n,
                               o->repetitions));
    for (int i = 0; i < 2; i++) {
        dms_bench_result r = {.bench = "tokenize", .unit = "MB/s", .scale = 1e6, .share = -1};
        snprintf(r.what, sizeof(r.what), "%s %s", kind, i ? "warm" : "cold");
        snprintf(r.note, sizeof(r.note), "%.1f MB are %" PRId64 " tokens", (double)text->n / 1e6,
                 tokens);
        DMS_TRY(dms_bench_print(&r, &rates[i], o->json));
    }
    return DMS_OK;
}

static dms_status bench_one(const dms_bench_tokenizing_options *o, const char *kind,
                            const char *path)
{
    dms_text text = {0};
    dms_status status = path ? read_text(&text, path) : DMS_OK;
    if (path && !status)
        status = print_rates(o, kind, &text);
    dms_text_free(&text);
    return status;
}

dms_status dms_bench_tokenizing(const dms_bench_tokenizing_options *o)
{
    DMS_TRY(bench_one(o, "prose", o->prose));
    return bench_one(o, "code", o->code);
}
