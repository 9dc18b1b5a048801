#include "infer/stream.h"

#include <string.h>

#include "data/encode.h"
#include "data/shard.h"

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

typedef struct {
    dms_tokens *out;
    const dms_stream_options *options;
} destination;

static dms_status append(void *context, const int32_t *ids, int64_t n, bool *stop)
{
    destination *d = context;
    DMS_TRY(dms_tokens_reserve(d->out, n));
    if (n > 0)
        memcpy(d->out->ids + d->out->n, ids, (size_t)n * sizeof(*ids));
    d->out->n += n;
    *stop = is_full(d->out, d->options);
    return DMS_OK;
}

static dms_status read_document(destination *d, dms_corpus *corpus, const char *name,
                                dms_encoder *encoder)
{
    bool stop;
    const dms_stream_options *o = d->options;
    DMS_TRY(dms_encoder_run(encoder, corpus, name, &(dms_id_sink){append, d}));
    if (o->end_of_text < 0 || is_full(d->out, o))
        return DMS_OK;
    return append(d, &o->end_of_text, 1, &stop);
}

static dms_status read_text(dms_tokens *out, const char *path, const dms_stream_options *o)
{
    dms_corpus *corpus = NULL;
    dms_encoder encoder = {.tokenizer = o->tokenizer, .specials = true};
    destination d = {out, o};
    const char *name = NULL;
    dms_status status = DMS_OK;
    if (!o->tokenizer)
        return dms_fail(DMS_ERR_ARG, "%s is text, and there is no tokenizer", path);
    DMS_TRY(dms_corpus_open(&corpus, path));
    DMS_TRY_OR(done, dms_corpus_next(corpus, &name));
    while (name && !is_full(out, o)) {
        DMS_TRY_OR(done, read_document(&d, corpus, name, &encoder));
        DMS_TRY_OR(done, dms_corpus_next(corpus, &name));
    }
done:
    dms_encoder_free(&encoder);
    dms_corpus_close(corpus);
    return status;
}

dms_status dms_stream_read(dms_tokens *out, bool *foreign, const dms_stream_options *options)
{
    if (foreign)
        *foreign = false;
    for (int i = 0; i < options->n_paths && !is_full(out, options); i++) {
        const char *path = options->paths[i];
        DMS_TRY(dms_shard_recognise_any(path) ? read_shard(out, foreign, path, options)
                                              : read_text(out, path, options));
    }
    if (is_full(out, options))
        out->n = options->limit;
    return DMS_OK;
}
