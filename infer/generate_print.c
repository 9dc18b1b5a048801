#include "infer/generate_print.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static double rate(int64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

static double mb(size_t bytes)
{
    return (double)bytes / 1e6;
}

static size_t dense_bytes(const dms_cache_stats *s)
{
    return (size_t)s->dense_slots * s->bytes_a_slot;
}

dms_status dms_generate_print(const dms_generate_figures *f)
{
    dms_cache_stats s;
    DMS_TRY(dms_cache_measure(&s, f->cache));
    fprintf(stderr,
            "%" PRId64 " tokens in at %.1f/s, %" PRId64 " out at %.1f/s; %" PRId64 " of %" PRId64
            " slots live, cache CR %.2f; kv %.2f MB at its peak, dense %.2f MB\n",
            f->prompt_tokens, rate(f->prompt_tokens, f->prefill_s), f->new_tokens,
            rate(f->new_tokens, f->decode_s), s.live_slots, s.dense_slots, dms_cache_ratio(&s),
            mb(s.peak_bytes + s.index_bytes), mb(dense_bytes(&s)));
    return DMS_OK;
}

/* A new object, or NULL. */
static json_t *figures_of(const dms_generate_figures *f, const dms_cache_stats *s)
{
    return json_pack(
        "{s:I, s:I, s:f, s:f, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:I}", "prompt_tokens",
        (json_int_t)f->prompt_tokens, "new_tokens", (json_int_t)f->new_tokens,
        "prefill_tokens_per_s", rate(f->prompt_tokens, f->prefill_s), "decode_tokens_per_s",
        rate(f->new_tokens, f->decode_s), "live_slots", (json_int_t)s->live_slots, "dense_slots",
        (json_int_t)s->dense_slots, "cache_cr", dms_cache_ratio(s), "kv_peak_bytes",
        (json_int_t)s->peak_bytes, "kv_index_bytes", (json_int_t)s->index_bytes, "dense_bytes",
        (json_int_t)dense_bytes(s), "kv_reads", (json_int_t)s->kv_reads, "dense_reads",
        (json_int_t)s->dense_reads);
}

static json_t *text_of(const dms_chain *c)
{
    return json_stringn(c->text.bytes ? c->text.bytes : "", c->text.n);
}

/* One text as "text", several as "samples", each with its number of tokens; before the figures. */
static json_t *result_of(const dms_generate_figures *f, const dms_cache_stats *s,
                         const dms_chain *texts, int n)
{
    json_t *out = json_object(), *samples = json_array(), *figures = figures_of(f, s);
    bool failed = !figures;
    for (int i = 0; i < n && n > 1; i++)
        failed |= json_array_append_new(samples,
                                        json_pack("{s:o, s:I}", "text", text_of(&texts[i]),
                                                  "new_tokens", (json_int_t)texts[i].tokens)) < 0;
    if (n > 1)
        failed |= json_object_set(out, "samples", samples) < 0;
    else
        failed |= json_object_set_new(out, "text", text_of(&texts[0])) < 0;
    failed = failed || json_object_update(out, figures) < 0;
    json_decref(samples);
    json_decref(figures);
    if (!failed)
        return out;
    json_decref(out);
    return NULL;
}

dms_status dms_generate_print_json(const dms_generate_figures *f, const dms_chain *texts, int n)
{
    dms_cache_stats s;
    DMS_TRY(dms_cache_measure(&s, f->cache));
    json_t *out = result_of(f, &s, texts, n);
    if (!out)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the JSON object");
    const int failed = json_dumpf(out, stdout, JSON_INDENT(2));
    json_decref(out);
    if (failed)
        return dms_fail(DMS_ERR_IO, "the JSON object could not be written to standard output");
    putchar('\n');
    return DMS_OK;
}

void dms_generate_print_chains(const dms_chain *chains, int n)
{
    for (int i = 0; i < n; i++) {
        printf("--- %d of %d, %" PRId64 " tokens\n", i + 1, n, chains[i].tokens);
        fwrite(chains[i].text.bytes, 1, chains[i].text.n, stdout);
        putchar('\n');
    }
}

dms_status dms_generate_print_turn(dms_cache *cache, const dms_cache_stats *before)
{
    dms_cache_stats s;
    DMS_TRY(dms_cache_measure(&s, cache));
    fprintf(stderr,
            "[%" PRId64 " of %" PRId64 " slots live, %.2f of %.2f MB; the answer read %" PRId64
            " of %" PRId64 " slots]\n",
            s.live_slots, s.dense_slots, mb(s.used_bytes), mb(dense_bytes(&s)),
            s.kv_reads - before->kv_reads, s.dense_reads - before->dense_reads);
    return DMS_OK;
}

dms_status dms_generate_print_cache(dms_cache *cache, int sequence)
{
    dms_cache_stats s;
    const int layers = dms_cache_paged(cache)->layers;
    dms_cache_layer *each = calloc((size_t)layers, sizeof(*each));
    if (!each)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %d layers", layers);
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_cache_measure(&s, cache));
    DMS_TRY_OR(done, dms_cache_measure_layers(each, cache, sequence));
    printf("layer   min    mean   max   live slots of a head, of %" PRId64 " tokens\n", s.tokens);
    for (int i = 0; i < layers; i++)
        printf("%5d %5d %7.1f %5d\n", i, (int)each[i].min, each[i].mean, (int)each[i].max);
    printf("%" PRId64 " of %" PRId64 " slots live, cache CR %.2f; %.2f MB in %" PRId64
           " pages, %.2f MB allocated (%.2f MB at the peak), index %.2f MB, dense %.2f MB\n",
           s.live_slots, s.dense_slots, dms_cache_ratio(&s), mb(s.used_bytes), s.pages,
           mb(s.allocated_bytes), mb(s.peak_bytes), mb(s.index_bytes), mb(dense_bytes(&s)));
done:
    free(each);
    return status;
}
