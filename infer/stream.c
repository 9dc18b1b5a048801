#include "infer/stream.h"

#include <stdio.h>
#include <string.h>

#include "data/corpus.h"
#include "data/shard.h"

enum { PIECE = 1 << 16 };

static bool is_shard(const char *path)
{
    char magic[8] = {0};
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    const size_t n = fread(magic, 1, sizeof(magic), f);
    fclose(f);
    return n == sizeof(magic) && !memcmp(magic, "DMSTOKS1", sizeof(magic));
}

static bool is_full(const dms_tokens *out, const dms_stream_options *o)
{
    return o->limit && out->n >= o->limit;
}

static dms_status read_shard(dms_tokens *out, bool *foreign, const char *path,
                             const dms_stream_options *o)
{
    dms_shard *shard = NULL;
    dms_status status = DMS_OK;
    DMS_TRY(dms_shard_open(&shard, path));
    const dms_shard_info *info = dms_shard_get_info(shard);
    const int64_t room = o->limit ? o->limit - out->n : info->n_tokens;
    const int64_t n = info->n_tokens < room ? info->n_tokens : room;
    if (foreign && o->tokenizer)
        *foreign |= info->tokenizer_crc != dms_tokenizer_crc(o->tokenizer);
    DMS_TRY_OR(done, dms_tokens_reserve(out, n));
    DMS_TRY_OR(done, dms_shard_read(shard, out->ids + out->n, 0, n));
    out->n += n;
done:
    dms_shard_close(shard);
    return status;
}

/* Takes the pending text's ids up to the last safe place to cut, or all at a document's end. */
static dms_status take(dms_tokens *out, dms_text *pending, bool all, const dms_stream_options *o)
{
    const size_t cut =
        all ? pending->n : dms_tokenizer_cut(o->tokenizer, pending->bytes, pending->n);
    if (!cut)
        return DMS_OK;
    DMS_TRY(dms_tokenizer_encode(o->tokenizer, out, pending->bytes, cut, true));
    memmove(pending->bytes, pending->bytes + cut, pending->n - cut);
    pending->n -= cut;
    return DMS_OK;
}

static dms_status read_document(dms_tokens *out, dms_corpus *corpus, dms_text *pending,
                                const dms_stream_options *o)
{
    size_t n = 1;
    pending->n = 0;
    while (n && !is_full(out, o)) {
        DMS_TRY(dms_text_reserve(pending, PIECE));
        DMS_TRY(dms_corpus_read(corpus, pending->bytes + pending->n, PIECE, &n));
        pending->n += n;
        DMS_TRY(take(out, pending, n == 0, o));
    }
    if (o->end_of_text < 0 || is_full(out, o))
        return DMS_OK;
    DMS_TRY(dms_tokens_reserve(out, 1));
    out->ids[out->n++] = o->end_of_text;
    return DMS_OK;
}

static dms_status read_text(dms_tokens *out, const char *path, const dms_stream_options *o)
{
    dms_corpus *corpus = NULL;
    dms_text pending = {0};
    const char *name = NULL;
    dms_status status = DMS_OK;
    if (!o->tokenizer)
        return dms_fail(DMS_ERR_ARG, "%s is text, and there is no tokenizer", path);
    DMS_TRY(dms_corpus_open(&corpus, path));
    DMS_TRY_OR(done, dms_corpus_next(corpus, &name));
    while (name && !is_full(out, o)) {
        DMS_TRY_OR(done, read_document(out, corpus, &pending, o));
        DMS_TRY_OR(done, dms_corpus_next(corpus, &name));
    }
done:
    dms_text_free(&pending);
    dms_corpus_close(corpus);
    return status;
}

dms_status dms_stream_read(dms_tokens *out, bool *foreign, const dms_stream_options *options)
{
    if (foreign)
        *foreign = false;
    for (int i = 0; i < options->n_paths && !is_full(out, options); i++) {
        const char *path = options->paths[i];
        DMS_TRY(is_shard(path) ? read_shard(out, foreign, path, options)
                               : read_text(out, path, options));
    }
    if (is_full(out, options))
        out->n = options->limit;
    return DMS_OK;
}
