#include "infer/cache.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_SLOTS = 16 };

/* A sequence, and whom it was forked from. */
typedef struct {
    int64_t tokens; /* entered so far; -1: not admitted */
    int64_t lent;   /* of these, what a cache that evicts nothing would have borrowed */
    int lender;     /* whose pages it borrows; -1: nobody's */
    bool entering;  /* a pass has begun and was not committed */
    bool released;  /* but its pages are still lent */
} tenant;

struct dms_cache {
    dms_cache_options options;
    dms_paged paged;   /* its pointers are device memory that this cache owns */
    void **slab_table; /* host copy of paged.slabs: [max_slabs] */
    int slabs, max_slabs;
    int free_capacity; /* entries that paged.free_pages has memory for */
    tenant *sequences; /* [S] */
    int32_t *live;     /* [S*L*G], host copy, not below the device's while `known` */
    int64_t spare;     /* free pages at least, while `known` */
    bool known;
    int64_t dense_reads;
    int64_t dense_peak; /* the most tokens at one time of a cache that evicts nothing */
    size_t index_bytes, peak_bytes;
};

static const tenant nobody = {.tokens = -1, .lender = -1};

static int64_t unit_count(const dms_cache *c)
{
    return (int64_t)c->paged.sequences * c->paged.layers * c->paged.groups;
}

static dms_status check_options(const dms_cache_options *o)
{
    const int64_t units = (int64_t)o->max_sequences * o->layers * o->groups;
    if (o->layers < 1 || o->groups < 1 || o->head_dim < 1)
        return dms_fail(DMS_ERR_ARG,
                        "a cache of %d layers, %d heads of %d channels, expected 1 or "
                        "more of each",
                        o->layers, o->groups, o->head_dim);
    if (o->max_sequences < 1 || units > INT32_MAX)
        return dms_fail(DMS_ERR_ARG, "a cache for %d sequences, expected 1 to %" PRId64,
                        o->max_sequences, INT32_MAX / ((int64_t)o->layers * o->groups));
    if (o->window < 0 || o->context < 1 || o->context > INT32_MAX / 4)
        return dms_fail(DMS_ERR_ARG,
                        "window %" PRId64 " and context %" PRId64
                        ", expected 0 or more and 1 to %d",
                        o->window, o->context, INT32_MAX / 4);
    if (o->page_slots % 16 || o->page_slots < 0 || o->page_slots > 1024)
        return dms_fail(DMS_ERR_ARG, "a page of %d slots, expected a multiple of 16 up to 1024",
                        o->page_slots);
    if (o->dtype != DMS_F32 && o->dtype != DMS_BF16)
        return dms_fail(DMS_ERR_DTYPE, "the cache stores f32 or bf16 only");
    return DMS_OK;
}

static void lay_out(dms_cache *c)
{
    const dms_cache_options *o = &c->options;
    dms_paged *p = &c->paged;
    *p = (dms_paged){.device = o->device,
                     .dtype = o->dtype,
                     .sequences = o->max_sequences,
                     .layers = o->layers,
                     .groups = o->groups,
                     .head_dim = o->head_dim,
                     .page_slots = o->page_slots ? o->page_slots : PAGE_SLOTS,
                     .scored = o->scored,
                     .bounded = o->bounded,
                     .window = o->window};
    p->unit_pages = (int)((o->context + p->page_slots - 1) / p->page_slots);
    p->ring_entries = o->window < o->context ? o->window + 1 : o->context;
    const int64_t units = unit_count(c), heads = (int64_t)o->layers * o->groups;
    const size_t page = dms_page_bytes(p);
    const size_t wanted = o->slab_bytes ? o->slab_bytes / page : (size_t)heads;
    p->slab_pages = wanted < 1 ? 1 : wanted > (1 << 20) ? 1 << 20 : (int)wanted;
    const int64_t all = units * p->unit_pages, most = INT32_MAX - p->slab_pages;
    const int64_t pages = all < most ? all : most;
    c->max_slabs = (int)((pages + p->slab_pages - 1) / p->slab_pages);
}

static dms_status place(dms_cache *c, void *out, int64_t count, size_t size)
{
    void *memory = NULL;
    DMS_TRY(c->options.device->alloc(c->options.device, &memory, (size_t)count * size));
    memcpy(out, &memory, sizeof(memory));
    c->index_bytes += (size_t)count * size;
    return DMS_OK;
}

static dms_status place_index(dms_cache *c)
{
    dms_device *dev = c->options.device;
    const int64_t units = unit_count(c);
    dms_paged *p = &c->paged;
    DMS_TRY(place(c, &p->slabs, c->max_slabs, sizeof(void *)));
    DMS_TRY(place(c, &p->unit_list, units * p->unit_pages, sizeof(int32_t)));
    DMS_TRY(place(c, &p->live, units, sizeof(int32_t)));
    DMS_TRY(place(c, &p->borrowed, units, sizeof(int32_t)));
    DMS_TRY(place(c, &p->ring, units * p->ring_entries, sizeof(int32_t)));
    DMS_TRY(place(c, &p->counters, DMS_PAGED_COUNTERS, sizeof(int64_t)));
    DMS_TRY(dev->zero(dev, p->live, (size_t)units * sizeof(int32_t)));
    DMS_TRY(dev->zero(dev, p->borrowed, (size_t)units * sizeof(int32_t)));
    return dev->zero(dev, p->counters, DMS_PAGED_COUNTERS * sizeof(int64_t));
}

dms_status dms_cache_open(dms_cache **out, const dms_cache_options *options)
{
    dms_status status = DMS_OK;
    DMS_TRY(check_options(options));
    dms_cache *c = calloc(1, sizeof(*c));
    if (!c)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a cache");
    c->options = *options;
    lay_out(c);
    c->slab_table = calloc((size_t)c->max_slabs, sizeof(*c->slab_table));
    c->sequences = malloc((size_t)options->max_sequences * sizeof(*c->sequences));
    c->live = malloc((size_t)unit_count(c) * sizeof(*c->live));
    if (!c->slab_table || !c->sequences || !c->live) {
        status = dms_fail(DMS_ERR_NOMEM, "no memory for a cache of %d sequences",
                          options->max_sequences);
        goto fail;
    }
    for (int i = 0; i < options->max_sequences; i++)
        c->sequences[i] = nobody;
    DMS_TRY_OR(fail, place_index(c));
    *out = c;
    return DMS_OK;
fail:
    dms_cache_close(c);
    return status;
}

void dms_cache_close(dms_cache *cache)
{
    if (!cache)
        return;
    dms_device *dev = cache->options.device;
    dms_paged *p = &cache->paged;
    for (int i = 0; i < cache->slabs; i++)
        dev->release(dev, cache->slab_table[i]);
    dev->release(dev, p->slabs);
    dev->release(dev, p->free_pages);
    dev->release(dev, p->unit_list);
    dev->release(dev, p->live);
    dev->release(dev, p->borrowed);
    dev->release(dev, p->ring);
    dev->release(dev, p->counters);
    free(cache->slab_table);
    free(cache->sequences);
    free(cache->live);
    free(cache);
}

static bool is_admitted(const dms_cache *c, int sequence)
{
    return sequence >= 0 && sequence < c->paged.sequences && c->sequences[sequence].tokens >= 0 &&
           !c->sequences[sequence].released;
}

static dms_status check_sequence(const dms_cache *c, int sequence)
{
    if (is_admitted(c, sequence))
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG, "the cache has no sequence %d; admit it first", sequence);
}

/* A number that no sequence has. */
static dms_status find_place(const dms_cache *c, int *sequence)
{
    for (int i = 0; i < c->paged.sequences; i++) {
        if (c->sequences[i].tokens >= 0)
            continue;
        *sequence = i;
        return DMS_OK;
    }
    return dms_fail(DMS_ERR_NOMEM, "all %d sequences of the cache are taken; release one first",
                    c->paged.sequences);
}

int dms_cache_vacant(const dms_cache *cache)
{
    int vacant = 0;
    for (int i = 0; i < cache->paged.sequences; i++)
        vacant += cache->sequences[i].tokens < 0;
    return vacant;
}

dms_status dms_cache_admit(dms_cache *cache, int *sequence)
{
    DMS_TRY(find_place(cache, sequence));
    cache->sequences[*sequence] = nobody;
    cache->sequences[*sequence].tokens = 0;
    return DMS_OK;
}

static bool lends(const dms_cache *c, int sequence)
{
    for (int i = 0; i < c->paged.sequences; i++)
        if (c->sequences[i].lender == sequence)
            return true;
    return false;
}

static bool borrows(const dms_cache *c)
{
    for (int i = 0; i < c->paged.sequences; i++)
        if (c->sequences[i].lender >= 0)
            return true;
    return false;
}

/* Those it borrowed from may have waited for this. */
dms_status dms_cache_release(dms_cache *cache, int sequence)
{
    DMS_TRY(check_sequence(cache, sequence));
    cache->sequences[sequence].released = true;
    while (sequence >= 0 && cache->sequences[sequence].released && !lends(cache, sequence)) {
        const int lender = cache->sequences[sequence].lender;
        cache->sequences[sequence] = nobody;
        DMS_TRY(dms_paged_drop(&cache->paged, sequence));
        sequence = lender;
    }
    return dms_cache_trim(cache);
}

int64_t dms_cache_tokens(const dms_cache *cache, int sequence)
{
    return is_admitted(cache, sequence) ? cache->sequences[sequence].tokens : -1;
}

bool dms_cache_is_whole(const dms_cache *cache, int sequence)
{
    return is_admitted(cache, sequence) && !cache->sequences[sequence].entering;
}

const dms_paged *dms_cache_paged(const dms_cache *cache)
{
    return &cache->paged;
}

static dms_status read_counters(int64_t out[DMS_PAGED_COUNTERS], const dms_cache *c)
{
    dms_device *dev = c->options.device;
    return dev->download(dev, out, c->paged.counters, DMS_PAGED_COUNTERS * sizeof(int64_t));
}

static size_t slab_bytes(const dms_cache *c)
{
    return (size_t)c->paged.slab_pages * dms_page_bytes(&c->paged);
}

/* Memory for the stack of free pages, its `used` entries kept. */
static dms_status grow_stack(dms_cache *c, int pages, int64_t used)
{
    dms_device *dev = c->options.device;
    dms_status status = DMS_OK;
    int32_t *host = NULL;
    void *grown = NULL;
    const int capacity = pages > 2 * c->free_capacity ? pages : 2 * c->free_capacity;
    if (pages <= c->free_capacity)
        return DMS_OK;
    DMS_TRY(dev->alloc(dev, &grown, (size_t)capacity * sizeof(int32_t)));
    host = malloc((size_t)(used + 1) * sizeof(int32_t));
    if (!host) {
        status = dms_fail(DMS_ERR_NOMEM, "no memory for %d pages", pages);
        goto fail;
    }
    if (used)
        DMS_TRY_OR(fail, dev->download(dev, host, c->paged.free_pages, (size_t)used * 4));
    DMS_TRY_OR(fail, dev->upload(dev, grown, host, (size_t)used * 4));
    free(host);
    dev->release(dev, c->paged.free_pages);
    c->index_bytes += (size_t)(capacity - c->free_capacity) * sizeof(int32_t);
    c->paged.free_pages = grown;
    c->free_capacity = capacity;
    return DMS_OK;
fail:
    free(host);
    dev->release(dev, grown);
    return status;
}

static dms_status add_slab(dms_cache *c, int64_t free_pages)
{
    dms_device *dev = c->options.device;
    const int first = c->paged.pages, count = c->paged.slab_pages;
    void *slab = NULL;
    if (c->slabs == c->max_slabs || first > INT32_MAX - count)
        return dms_fail(DMS_ERR_NOMEM, "the cache holds %d pages, its most; release a sequence",
                        first);
    DMS_TRY(grow_stack(c, first + count, free_pages));
    DMS_TRY(dev->alloc(dev, &slab, slab_bytes(c)));
    const dms_status status = dev->upload(dev, c->paged.slabs + c->slabs, &slab, sizeof(slab));
    if (status) {
        dev->release(dev, slab);
        return status;
    }
    c->slab_table[c->slabs++] = slab;
    c->paged.pages = first + count;
    if ((size_t)c->slabs * slab_bytes(c) > c->peak_bytes)
        c->peak_bytes = (size_t)c->slabs * slab_bytes(c);
    return dms_paged_grow(&c->paged, first, count);
}

/* New pages that `tokens` more slots of one unit can take, at most. */
static int64_t pages_more(const dms_cache *c, int64_t live, int64_t tokens)
{
    const int64_t slots = c->paged.page_slots;
    return (live + tokens + slots - 1) / slots - (live + slots - 1) / slots;
}

/* Counts `tokens` more slots in the units of one layer of a sequence, or of all layers where layer
 * is -1, as far as the host knows; returns the pages that this can take. */
static int64_t grow_units(dms_cache *c, int32_t sequence, int64_t tokens, int layer)
{
    const dms_paged *p = &c->paged;
    const int64_t first = ((int64_t)sequence * p->layers + (layer < 0 ? 0 : layer)) * p->groups;
    const int64_t end = first + (layer < 0 ? (int64_t)p->layers * p->groups : p->groups);
    int64_t pages = 0;
    for (int64_t u = first; u < end; u++) {
        pages += pages_more(c, c->live[u], tokens);
        c->live[u] += (int32_t)tokens;
    }
    return pages;
}

static int64_t grow_all(dms_cache *c, const int32_t *sequences, int n, int64_t tokens, int layer)
{
    int64_t pages = 0;
    for (int i = 0; i < n; i++)
        pages += grow_units(c, sequences[i], tokens, layer);
    return pages;
}

/* Reads how many slots are live and how many pages are free. */
static dms_status look(dms_cache *c)
{
    const dms_paged *p = &c->paged;
    int64_t counters[DMS_PAGED_COUNTERS];
    DMS_TRY(
        p->device->download(p->device, c->live, p->live, (size_t)unit_count(c) * sizeof(int32_t)));
    DMS_TRY(read_counters(counters, c));
    c->spare = counters[DMS_PAGED_FREE];
    return DMS_OK;
}

/* Slots in use are at most what they were at the last look and what was entered since, so pages are
 * too. While that bound fits into the pages that were free then, the device is not asked, and the
 * host runs ahead of it. */
static dms_status reserve(dms_cache *c, const int32_t *sequences, int n, int64_t tokens, int layer)
{
    if (c->known) {
        c->spare -= grow_all(c, sequences, n, tokens, layer);
        if (c->spare >= 0)
            return DMS_OK;
    }
    c->known = false;
    DMS_TRY(look(c));
    const int64_t wanted = grow_all(c, sequences, n, tokens, layer);
    for (; c->spare < wanted; c->spare += c->paged.slab_pages)
        DMS_TRY(add_slab(c, c->spare));
    c->spare -= wanted;
    c->known = true;
    return DMS_OK;
}

dms_status dms_cache_reserve(dms_cache *cache, const int32_t *sequences, int n, int64_t tokens,
                             int layer)
{
    for (int i = 0; i < n; i++)
        DMS_TRY(check_sequence(cache, sequences[i]));
    DMS_TRY(reserve(cache, sequences, n, tokens, layer));
    for (int i = 0; i < n; i++)
        cache->sequences[sequences[i]].entering = true;
    return DMS_OK;
}

/* Tokens of a cache that evicts nothing, once where they are lent. */
static int64_t dense_tokens(const dms_cache *c)
{
    int64_t tokens = 0;
    for (int i = 0; i < c->paged.sequences; i++)
        if (c->sequences[i].tokens > 0)
            tokens += c->sequences[i].tokens - c->sequences[i].lent;
    return tokens;
}

static void count_dense(dms_cache *c)
{
    const int64_t tokens = dense_tokens(c);
    c->dense_peak = tokens > c->dense_peak ? tokens : c->dense_peak;
}

dms_status dms_cache_commit(dms_cache *cache, const int32_t *sequences, int n, int64_t tokens,
                            bool decode)
{
    const int64_t heads = (int64_t)cache->paged.layers * cache->paged.groups;
    for (int i = 0; i < n; i++) {
        tenant *f = &cache->sequences[sequences[i]];
        f->tokens += tokens;
        f->entering = false;
        if (decode)
            cache->dense_reads += f->tokens * heads;
    }
    count_dense(cache);
    return DMS_OK;
}

/* Pages for what `to` lacks of `from`, added where there are too few; *lent: it has some. */
static dms_status reserve_copy(dms_cache *c, int from, int to, bool *lent)
{
    const int64_t units = (int64_t)c->paged.layers * c->paged.groups;
    int32_t *had = c->live + to * units;
    const int32_t *wanted = c->live + from * units;
    int64_t pages = 0;
    c->known = false;
    DMS_TRY(look(c));
    for (int64_t i = 0; i < units; i++) {
        *lent |= had[i] > 0;
        pages += pages_more(c, had[i], wanted[i] - had[i]);
        had[i] = wanted[i];
    }
    for (; c->spare < pages; c->spare += c->paged.slab_pages)
        DMS_TRY(add_slab(c, c->spare));
    c->spare -= pages;
    c->known = true;
    return DMS_OK;
}

/* Of `tokens` tokens all but the last are late under window 0, and full pages are lent. */
static int64_t dense_lent(const dms_cache *c, int64_t tokens)
{
    return tokens ? (tokens - 1) / c->paged.page_slots * c->paged.page_slots : 0;
}

dms_status dms_cache_fork(dms_cache *cache, int from, bool share, int *sequence)
{
    dms_status status = DMS_OK;
    int to = -1;
    bool lent = false;
    DMS_TRY(check_sequence(cache, from));
    if (cache->sequences[from].entering)
        return dms_fail(DMS_ERR_ARG, "sequence %d failed half-way before; release it", from);
    DMS_TRY(find_place(cache, &to));
    const int64_t tokens = cache->sequences[from].tokens;
    if (share && tokens)
        DMS_TRY_OR(fail, dms_paged_lend(&cache->paged, from, to, (int)tokens - 1));
    DMS_TRY_OR(fail, reserve_copy(cache, from, to, &lent));
    DMS_TRY_OR(fail, dms_paged_copy(&cache->paged, from, to));
    cache->sequences[to] =
        (tenant){.tokens = tokens, .lent = dense_lent(cache, tokens), .lender = lent ? from : -1};
    count_dense(cache);
    *sequence = to;
    return DMS_OK;
fail:
    cache->known = false;
    dms_paged_drop(&cache->paged, to);
    return status;
}

dms_status dms_cache_trim(dms_cache *cache)
{
    int64_t counters[DMS_PAGED_COUNTERS];
    dms_paged *p = &cache->paged;
    if (borrows(cache))
        return DMS_OK;
    DMS_TRY(read_counters(counters, cache));
    const int64_t used = p->pages - counters[DMS_PAGED_FREE];
    const int keep = (int)((used + p->slab_pages - 1) / p->slab_pages);
    if (keep == cache->slabs)
        return DMS_OK;
    cache->known = false;
    DMS_TRY(dms_paged_pack(p, keep * p->slab_pages));
    while (cache->slabs > keep)
        p->device->release(p->device, cache->slab_table[--cache->slabs]);
    p->pages = keep * p->slab_pages;
    return DMS_OK;
}

dms_status dms_cache_measure(dms_cache_stats *out, const dms_cache *cache)
{
    const dms_paged *p = &cache->paged;
    const size_t one = dms_dtype_bytes(p->dtype);
    int64_t counters[DMS_PAGED_COUNTERS], tokens = 0;
    DMS_TRY(read_counters(counters, cache));
    for (int i = 0; i < p->sequences; i++)
        tokens += is_admitted(cache, i) ? cache->sequences[i].tokens : 0;
    const int64_t pages = p->pages - counters[DMS_PAGED_FREE];
    *out = (dms_cache_stats){
        .tokens = tokens,
        .live_slots = counters[DMS_PAGED_LIVE],
        .dense_slots = dense_tokens(cache) * p->layers * p->groups,
        .peak_slots = counters[DMS_PAGED_PEAK],
        .dense_peak_slots = cache->dense_peak * p->layers * p->groups,
        .kv_reads = counters[DMS_PAGED_READS],
        .dense_reads = cache->dense_reads,
        .bound_reads = counters[DMS_PAGED_BOUNDS],
        .prefill_reads = counters[DMS_PAGED_VISIBLE],
        .pages = pages,
        .slabs = cache->slabs,
        .used_bytes = (size_t)pages * dms_page_bytes(p),
        .allocated_bytes = (size_t)cache->slabs * slab_bytes(cache),
        .peak_bytes = cache->peak_bytes,
        .index_bytes = cache->index_bytes,
        .bytes_a_slot = 2 * (size_t)p->head_dim * one,
    };
    return DMS_OK;
}

dms_status dms_cache_reset_peak(dms_cache *cache)
{
    int64_t counters[DMS_PAGED_COUNTERS];
    dms_device *dev = cache->options.device;
    DMS_TRY(read_counters(counters, cache));
    cache->peak_bytes = (size_t)cache->slabs * slab_bytes(cache);
    cache->dense_peak = dense_tokens(cache);
    return dev->upload(dev, cache->paged.counters + DMS_PAGED_PEAK, counters + DMS_PAGED_LIVE,
                       sizeof(int64_t));
}

dms_status dms_cache_measure_layers(dms_cache_layer *layers, dms_cache *cache, int sequence)
{
    const dms_paged *p = &cache->paged;
    const int64_t units = (int64_t)p->layers * p->groups;
    DMS_TRY(check_sequence(cache, sequence));
    int32_t *all = cache->live + sequence * units; /* true counts are bounds as well */
    DMS_TRY(p->device->download(p->device, all, p->live + sequence * units,
                                (size_t)units * sizeof(int32_t)));
    for (int i = 0; i < p->layers; i++) {
        const int32_t *live = all + (int64_t)i * p->groups;
        int64_t sum = 0;
        layers[i] = (dms_cache_layer){live[0], live[0], 0};
        for (int g = 0; g < p->groups; g++) {
            layers[i].min = live[g] < layers[i].min ? live[g] : layers[i].min;
            layers[i].max = live[g] > layers[i].max ? live[g] : layers[i].max;
            sum += live[g];
        }
        layers[i].mean = (double)sum / p->groups;
    }
    return DMS_OK;
}
