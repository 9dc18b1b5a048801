#include "data/loader.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "data/shard.h"
#include "data/shuffle.h"

/* Sequences of a block of a blend: shares are whole 1024ths. */
enum { BLOCK = 1024 };

/* Keeps the order of blocks apart from that of contexts. */
#define DOMAIN 0x424C454E44u

struct dms_loader {
    dms_shard **shards; /* [n_shards] */
    int64_t *starts;    /* [n_shards + 1] where each begins in the stream, then the stream's end */
    int64_t *places;    /* [n_shards + 1] of a blend: shard i has places[i] .. places[i + 1] - 1 */
    int n_shards;
    int ours;     /* the first shard that names its tokenizer, or -1 */
    char *notice; /* or NULL */
    int64_t vocab;
    int64_t context, sequences, contexts;
    uint64_t seed;
    bool shuffled;
};

static dms_status check_options(const dms_loader_options *o)
{
    /* 2^31 bounds keep step * sequences * context far from overflow. */
    if (o->n_shards < 1)
        return dms_fail(DMS_ERR_ARG, "no token shards are named");
    if (o->context < 1 || o->context > INT32_MAX)
        return dms_fail(DMS_ERR_ARG, "a context of %lld tokens, expected 1 to %d",
                        (long long)o->context, INT32_MAX);
    if (o->sequences < 1 || o->sequences > INT32_MAX)
        return dms_fail(DMS_ERR_ARG, "%lld sequences a step, expected 1 to %d",
                        (long long)o->sequences, INT32_MAX);
    for (int i = 0; o->weights && i < o->n_shards; i++)
        if (!(o->weights[i] > 0) || !isfinite(o->weights[i]))
            return dms_fail(DMS_ERR_ARG, "%s has the weight %g, expected a number above 0",
                            o->shards[i], o->weights[i]);
    if (o->weights && (!o->shuffled || o->n_shards > BLOCK))
        return dms_fail(DMS_ERR_ARG, "a blend by weights must be shuffled, of at most %d shards",
                        BLOCK);
    return DMS_OK;
}

static dms_status check_tokenizer(dms_loader *l, const dms_loader_options *o, int i)
{
    const dms_shard_info *info = dms_shard_get_info(l->shards[i]);
    if (info->foreign)
        return DMS_OK;
    if (l->ours < 0)
        l->ours = i;
    const dms_shard_info *first = dms_shard_get_info(l->shards[l->ours]);
    if (info->vocab == first->vocab && info->tokenizer_crc == first->tokenizer_crc)
        return DMS_OK;
    return dms_fail(DMS_ERR_FORMAT,
                    "%s was made by another tokenizer (%lld tokens, CRC %08x) "
                    "than %s (%lld tokens, CRC %08x); make both with the same model",
                    o->shards[i], (long long)info->vocab, info->tokenizer_crc, o->shards[l->ours],
                    (long long)first->vocab, first->tokenizer_crc);
}

static dms_status note_foreign(dms_loader *l, const char *path, const dms_shard_info *info)
{
    if (!info->foreign || l->notice)
        return DMS_OK;
    if (asprintf(&l->notice,
                 "%s (%s) names no tokenizer: its ids, up to %lld, are taken for those of the "
                 "model's own",
                 path, info->format, (long long)info->vocab - 1) >= 0)
        return DMS_OK;
    l->notice = NULL;
    return dms_fail(DMS_ERR_NOMEM, "no memory to open %s", path);
}

static dms_status open_shard(dms_loader *l, const dms_loader_options *o, int i)
{
    DMS_TRY(dms_shard_open(&l->shards[i], o->shards[i]));
    if (o->verify)
        DMS_TRY(dms_shard_verify(l->shards[i]));
    const dms_shard_info *info = dms_shard_get_info(l->shards[i]);
    DMS_TRY(check_tokenizer(l, o, i));
    DMS_TRY(note_foreign(l, o->shards[i], info));
    if (info->vocab > l->vocab)
        l->vocab = info->vocab;
    l->n_shards = i + 1;
    l->starts[i + 1] = l->starts[i] + info->n_tokens;
    return DMS_OK;
}

static dms_status check_size(const dms_loader *l, const dms_loader_options *o)
{
    if (l->contexts >= l->sequences)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "%s%s: %lld tokens, but one step of %lld sequences of %lld tokens "
                    "takes %lld; add text, or make the context or the step smaller",
                    o->shards[0], o->n_shards > 1 ? " and the other shards" : "",
                    (long long)dms_loader_tokens(l), (long long)l->sequences, (long long)l->context,
                    (long long)(l->sequences * l->context));
}

/* Contexts of shard i by itself. */
static int64_t shard_contexts(const dms_loader *l, int i)
{
    return (l->starts[i + 1] - l->starts[i]) / l->context;
}

/* The shard that is the farthest below what it should have of a block (sign 1), or the farthest
 * above and not at its last place (sign -1). `places` holds counts at 1 .. n. */
static int farthest(const int64_t *places, const dms_loader_options *o, double sum, int sign)
{
    int best = 0;
    double most = -INFINITY;
    for (int i = 0; i < o->n_shards; i++) {
        const double wanted = o->weights[i] / sum * BLOCK;
        const double by = sign * (wanted - (double)places[i + 1]);
        if (by > most && (sign > 0 || places[i + 1] > 1)) {
            most = by;
            best = i;
        }
    }
    return best;
}

static dms_status open_blend(dms_loader *l, const dms_loader_options *o)
{
    double sum = 0;
    int64_t given = 0;
    l->places = calloc((size_t)o->n_shards + 1, sizeof(*l->places));
    if (!l->places)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a blend of %d shards", o->n_shards);
    for (int i = 0; i < o->n_shards; i++)
        sum += o->weights[i] / o->n_shards;
    sum *= o->n_shards;
    l->contexts = 0;
    for (int i = 0; i < o->n_shards; i++) {
        const double wanted = floor(o->weights[i] / sum * BLOCK);
        l->places[i + 1] = wanted > 1 ? (int64_t)wanted : 1;
        given += l->places[i + 1];
        l->contexts += shard_contexts(l, i);
        if (shard_contexts(l, i) == 0)
            return dms_fail(DMS_ERR_ARG, "%s: %lld tokens, but one sequence takes %lld",
                            o->shards[i], (long long)(l->starts[i + 1] - l->starts[i]),
                            (long long)l->context);
    }
    for (; given < BLOCK; given++)
        l->places[farthest(l->places, o, sum, 1) + 1]++;
    for (; given > BLOCK; given--)
        l->places[farthest(l->places, o, sum, -1) + 1]--;
    for (int i = 0; i < o->n_shards; i++)
        l->places[i + 1] += l->places[i];
    return DMS_OK;
}

dms_status dms_loader_open(dms_loader **out, const dms_loader_options *o)
{
    dms_status status = DMS_OK;
    DMS_TRY(check_options(o));
    dms_loader *l = calloc(1, sizeof(*l));
    if (!l)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a loader");
    l->shards = calloc((size_t)o->n_shards, sizeof(*l->shards));
    l->starts = calloc((size_t)o->n_shards + 1, sizeof(*l->starts));
    if (!l->shards || !l->starts)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for %d shards", o->n_shards));
    l->ours = -1;
    l->context = o->context;
    l->sequences = o->sequences;
    l->seed = o->seed;
    l->shuffled = o->shuffled;
    for (int i = 0; i < o->n_shards; i++) {
        status = open_shard(l, o, i);
        if (status) {
            dms_shard_close(l->shards[i]); /* close frees those that were counted */
            goto failed;
        }
    }
    l->contexts = dms_loader_tokens(l) / l->context;
    if (o->weights)
        DMS_TRY_OR(failed, open_blend(l, o));
    DMS_TRY_OR(failed, check_size(l, o));
    *out = l;
    return DMS_OK;
failed:
    dms_loader_close(l);
    return status;
}

void dms_loader_close(dms_loader *l)
{
    if (!l)
        return;
    for (int i = 0; i < l->n_shards; i++)
        dms_shard_close(l->shards[i]);
    free(l->shards);
    free(l->starts);
    free(l->places);
    free(l->notice);
    free(l);
}

/* The shard that holds position `at` of the stream (empty shards hold none). */
static int find_shard(const dms_loader *l, int64_t at)
{
    int low = 0, high = l->n_shards - 1;
    while (low < high) {
        const int middle = low + (high - low + 1) / 2;
        if (l->starts[middle] <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static dms_status read_stream(const dms_loader *l, int32_t *ids, int64_t at, int64_t n)
{
    for (int i = find_shard(l, at); n > 0; i++) {
        const int64_t left = l->starts[i + 1] - at;
        const int64_t part = n < left ? n : left;
        DMS_TRY(dms_shard_read(l->shards[i], ids, at - l->starts[i], part));
        ids += part;
        at += part;
        n -= part;
    }
    return DMS_OK;
}

/* The context at `at` of the stream that ends at `end`. */
static dms_status read_context(const dms_loader *l, int64_t at, int64_t end, int32_t *ids,
                               int32_t *next)
{
    const int64_t T = l->context;
    DMS_TRY(read_stream(l, ids, at, T));
    if (!next)
        return DMS_OK;
    for (int64_t t = 0; t + 1 < T; t++)
        next[t] = ids[t + 1];
    next[T - 1] = -1;
    return at + T < end ? read_stream(l, next + T - 1, at + T, 1) : DMS_OK;
}

/* Sequence q of all steps, of one stream. */
static dms_status read_one(const dms_loader *l, int64_t q, int32_t *ids, int32_t *next)
{
    const int64_t epoch = q / l->contexts, within = q % l->contexts;
    const int64_t context =
        l->shuffled ? dms_shuffle(within, l->contexts, l->seed, (uint64_t)epoch) : within;
    return read_context(l, context * l->context, dms_loader_tokens(l), ids, next);
}

/* Sequence q of all steps, of a blend. */
static dms_status read_blended(const dms_loader *l, int64_t q, int32_t *ids, int32_t *next)
{
    const int64_t block = q / BLOCK;
    const int64_t place = dms_shuffle(q % BLOCK, BLOCK, l->seed ^ DOMAIN, (uint64_t)block);
    int i = 0;
    while (l->places[i + 1] <= place)
        i++;
    const int64_t draw = block * (l->places[i + 1] - l->places[i]) + place - l->places[i];
    const int64_t n = shard_contexts(l, i);
    const uint64_t seed = l->seed + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
    const int64_t context = dms_shuffle(draw % n, n, seed, (uint64_t)(draw / n));
    return read_context(l, l->starts[i] + context * l->context, l->starts[i + 1], ids, next);
}

dms_status dms_loader_read(const dms_loader *l, int64_t step, int64_t first, int64_t n,
                           int32_t *ids, int32_t *next)
{
    if (step < 0 || step > INT32_MAX || first < 0 || n < 0 || first > l->sequences ||
        n > l->sequences - first)
        return dms_fail(DMS_ERR_ARG,
                        "%lld sequences from %lld of step %lld asked for; a step has "
                        "%lld",
                        (long long)n, (long long)first, (long long)step, (long long)l->sequences);
    const int64_t q = step * l->sequences + first;
    if (!l->shuffled && q + n > l->contexts)
        return dms_fail(DMS_ERR_ARG, "contexts %lld to %lld asked for; the data has %lld",
                        (long long)q, (long long)(q + n - 1), (long long)l->contexts);
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = i * l->context;
        DMS_TRY((l->places ? read_blended : read_one)(l, q + i, ids + at, next ? next + at : NULL));
    }
    return DMS_OK;
}

int64_t dms_loader_tokens(const dms_loader *l)
{
    return l->starts[l->n_shards];
}

int64_t dms_loader_contexts(const dms_loader *l)
{
    return l->contexts;
}

int64_t dms_loader_vocab(const dms_loader *l)
{
    return l->vocab;
}

uint32_t dms_loader_tokenizer_crc(const dms_loader *l)
{
    return l->ours < 0 ? 0 : dms_shard_get_info(l->shards[l->ours])->tokenizer_crc;
}

const char *dms_loader_notice(const dms_loader *l)
{
    return l->notice;
}
