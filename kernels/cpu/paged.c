/* The paged cache on the CPU: slots are taken, overwritten, closed up; pages come and go. */
#include "kernels/cpu/paged.h"

#include <string.h>

#include "kernels/bf16.h"
#include "kernels/cpu/workspace.h"
#include "kernels/visibility.h"

static dms_status take_page(const dms_paged *c, int64_t unit, int64_t index)
{
    if (!c->counters[DMS_PAGED_FREE])
        return dms_fail(DMS_ERR_NOMEM, "all %d pages are in use, pages are to be added before",
                        c->pages);
    const int32_t number = c->free_pages[--c->counters[DMS_PAGED_FREE]];
    int32_t *owner = dms_page_at(c, number).owner;
    owner[0] = (int32_t)unit;
    owner[1] = (int32_t)index;
    c->unit_list[unit * c->unit_pages + index] = number;
    return DMS_OK;
}

static void push_free(const dms_paged *c, int32_t number)
{
    dms_page_at(c, number).owner[0] = -1;
    c->free_pages[c->counters[DMS_PAGED_FREE]++] = number;
}

static void give_pages(const dms_paged *c, int64_t unit, int64_t from, int64_t to)
{
    for (int64_t i = to - 1; i >= from; i--)
        push_free(c, c->unit_list[unit * c->unit_pages + i]);
}

static void count_live(const dms_paged *c, int64_t change)
{
    c->counters[DMS_PAGED_LIVE] += change;
    if (c->counters[DMS_PAGED_LIVE] > c->counters[DMS_PAGED_PEAK])
        c->counters[DMS_PAGED_PEAK] = c->counters[DMS_PAGED_LIVE];
}

/* Column j of the keys and row j of the values. */
static void put_f32(const dms_paged *c, const dms_page *page, int64_t j, const float *k,
                    const float *v)
{
    const int64_t wide = dms_page_padded(c);
    float *keys = (float *)page->k + j, *values = (float *)page->v + j * wide;
    for (int64_t e = 0; e < c->head_dim; e++)
        keys[e * c->page_slots] = k[e];
    memcpy(values, v, (size_t)c->head_dim * sizeof(float));
    memset(values + c->head_dim, 0, (size_t)(wide - c->head_dim) * sizeof(float));
}

static void put_bf16(const dms_paged *c, const dms_page *page, int64_t j, const float *k,
                     const float *v)
{
    const int64_t wide = dms_page_padded(c);
    uint16_t *keys = (uint16_t *)page->k + j, *values = (uint16_t *)page->v + j * wide;
    for (int64_t e = 0; e < c->head_dim; e++)
        keys[e * c->page_slots] = dms_bf16_from_f32(k[e]);
    for (int64_t e = 0; e < c->head_dim; e++)
        values[e] = dms_bf16_from_f32(v[e]);
    memset(values + c->head_dim, 0, (size_t)(wide - c->head_dim) * sizeof(uint16_t));
}

/* Enters a token at `slot`, whose page exists. */
static void enter(const dms_paged *c, int64_t unit, int64_t slot, int32_t position,
                  const float *const kv[2])
{
    const dms_page page = page_of(c, unit, slot / c->page_slots);
    const int64_t j = slot % c->page_slots;
    (c->dtype == DMS_BF16 ? put_bf16 : put_f32)(c, &page, j, kv[0], kv[1]);
    page.at[j] = 2 * position;
    if (c->scored)
        page.score[j] = 0;
    *ring_of(c, unit, position) = (int32_t)slot;
}

/* The decision of the token at `position` governs the token before it. */
static void mark_previous(const dms_paged *c, int64_t unit, int32_t position, bool evicted)
{
    if (evicted && position > 0)
        *at_of(c, unit, *ring_of(c, unit, position - 1)) |= 1;
}

typedef struct {
    const dms_paged *c;
    const float *k, *v, *z; /* of this row and head; z NULL: never evicts */
    const int32_t *positions;
    int64_t unit, tokens, stride; /* stride: floats from one token's k to the next one's */
} incoming;

static incoming incoming_of(const dms_paged *c, const dms_paged_rows *rows,
                            const dms_tensor *const kvz[3], int64_t i)
{
    const int64_t b = i / c->groups, g = i % c->groups, tokens = dms_cols(rows->positions);
    const int64_t stride = (int64_t)c->groups * c->head_dim;
    const int64_t first = b * tokens * stride + g * c->head_dim;
    return (incoming){.c = c,
                      .k = (const float *)kvz[0]->data + first,
                      .v = (const float *)kvz[1]->data + first,
                      .z = kvz[2] ? (const float *)kvz[2]->data + i * tokens : NULL,
                      .positions = positions_of(rows, b),
                      .unit = unit_of(c, rows, b, g),
                      .tokens = tokens,
                      .stride = stride};
}

/* The step rule of method.md section 4. */
static dms_status append_one(const incoming *in)
{
    const dms_paged *c = in->c;
    const int32_t position = in->positions[0];
    mark_previous(c, in->unit, position, in->z && in->z[0] > 0);
    /* The ring entry this token will take is that of the token window + 1 steps back. */
    int64_t slot = position > c->window ? *ring_of(c, in->unit, position) : -1;
    if (slot < 0 || !(*at_of(c, in->unit, slot) & 1)) {
        slot = c->live[in->unit];
        if (slot % c->page_slots == 0)
            DMS_TRY(take_page(c, in->unit, slot / c->page_slots));
        c->live[in->unit]++;
        count_live(c, 1);
    }
    enter(c, in->unit, slot, position, (const float *[]){in->k, in->v});
    return DMS_OK;
}

static dms_status take_pages(const incoming *in)
{
    const int64_t live = in->c->live[in->unit];
    const int64_t end = pages_for(in->c, live + in->tokens);
    for (int64_t i = pages_for(in->c, live); i < end; i++)
        DMS_TRY(take_page(in->c, in->unit, i));
    count_live(in->c, in->tokens);
    return DMS_OK;
}

static void append_chunk(const incoming *in)
{
    for (int64_t t = 0; t < in->tokens; t++) {
        const float *const kv[2] = {in->k + t * in->stride, in->v + t * in->stride};
        mark_previous(in->c, in->unit, in->positions[t], in->z && in->z[t] > 0);
        enter(in->c, in->unit, in->c->live[in->unit]++, in->positions[t], kv);
    }
}

dms_status DMS_CPU(paged_append)(const dms_paged *cache, const dms_paged_rows *rows,
                                 const dms_tensor *k, const dms_tensor *v, const dms_tensor *z)
{
    const dms_tensor *const kvz[3] = {k, v, z};
    const int64_t units = rows->sequences->shape[0] * cache->groups;
    const bool single = dms_cols(rows->positions) == 1;

    for (int64_t i = 0; i < units; i++) {
        const incoming in = incoming_of(cache, rows, kvz, i);
        DMS_TRY(single ? append_one(&in) : take_pages(&in));
    }
    if (single)
        return DMS_OK;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < units; i++) {
        const incoming in = incoming_of(cache, rows, kvz, i);
        append_chunk(&in);
    }
    return DMS_OK;
}

#define MOVE(type, c, to, j, from, i)                                          \
    do {                                                                       \
        const int64_t wide_ = dms_page_padded(c);                              \
        for (int64_t e_ = 0; e_ < (c)->head_dim; e_++)                         \
            ((type *)(to).k)[e_ * (c)->page_slots + (j)] =                     \
                ((const type *)(from).k)[e_ * (c)->page_slots + (i)];          \
        memcpy((type *)(to).v + (j)*wide_, (const type *)(from).v + (i)*wide_, \
               (size_t)wide_ * sizeof(type));                                  \
    } while (0)

/* Slot `from` takes the place of slot `to`; the ring follows while the token is in the window of
 * the query at `now`. */
static void move_slot(const dms_paged *c, int64_t unit, int64_t to, int64_t from, int64_t now)
{
    const dms_page into = page_of(c, unit, to / c->page_slots);
    const dms_page out = page_of(c, unit, from / c->page_slots);
    const int64_t j = to % c->page_slots, i = from % c->page_slots;
    if (c->dtype == DMS_BF16)
        MOVE(uint16_t, c, into, j, out, i);
    else
        MOVE(float, c, into, j, out, i);
    into.at[j] = out.at[i];
    if (c->scored)
        into.score[j] = out.score[i];
    if (!dms_is_late(now, out.at[i] >> 1, c->window))
        *ring_of(c, unit, out.at[i] >> 1) = (int32_t)to;
}

static bool is_expired(const dms_paged *c, int64_t unit, int64_t slot, int64_t now)
{
    const int32_t at = *at_of(c, unit, slot);
    return !dms_is_visible(now, at >> 1, c->window, at & 1);
}

/* Fills each hole with the last slot. */
static void close_up(const dms_paged *c, int64_t unit, int64_t now)
{
    int64_t live = c->live[unit];
    for (int64_t slot = 0; slot < live; slot++) {
        if (!is_expired(c, unit, slot, now))
            continue;
        do
            live--;
        while (live > slot && is_expired(c, unit, live, now));
        if (live > slot)
            move_slot(c, unit, slot, live, now);
    }
    c->live[unit] = (int32_t)live;
}

dms_status DMS_CPU(paged_compact)(const dms_paged *cache, const dms_paged_rows *rows)
{
    const int64_t units = rows->sequences->shape[0] * cache->groups;
    const int64_t tokens = dms_cols(rows->positions);
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, cache->device, (size_t)units * sizeof(int32_t)));
    int32_t *before = (int32_t *)work.base;

#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < units; i++) {
        const int64_t b = i / cache->groups, unit = unit_of(cache, rows, b, i % cache->groups);
        before[i] = cache->live[unit];
        close_up(cache, unit, positions_of(rows, b)[tokens - 1]);
    }
    for (int64_t i = 0; i < units; i++) {
        const int64_t unit = unit_of(cache, rows, i / cache->groups, i % cache->groups);
        give_pages(cache, unit, pages_for(cache, cache->live[unit]), pages_for(cache, before[i]));
        count_live(cache, cache->live[unit] - before[i]);
    }
    return DMS_OK;
}

dms_status DMS_CPU(paged_drop)(const dms_paged *cache, int sequence)
{
    const int64_t units = (int64_t)cache->layers * cache->groups, first = sequence * units;
    for (int64_t unit = first; unit < first + units; unit++) {
        const int64_t borrowed = cache->borrowed[unit];
        give_pages(cache, unit, borrowed, pages_for(cache, cache->live[unit]));
        count_live(cache, borrowed * cache->page_slots - cache->live[unit]);
        cache->live[unit] = cache->borrowed[unit] = 0;
    }
    return DMS_OK;
}

/* Pages at the head of a unit that are settled for a query at `last`. */
static int64_t settled_pages(const dms_paged *c, int64_t unit, int64_t last)
{
    int64_t slot = 0;
    for (; slot < c->live[unit]; slot++) {
        const int32_t at = *at_of(c, unit, slot);
        if (at & 1 || !dms_is_late(last, at >> 1, c->window))
            break;
    }
    return slot / c->page_slots;
}

dms_status DMS_CPU(paged_lend)(const dms_paged *cache, int from, int to, int last)
{
    const int64_t units = (int64_t)cache->layers * cache->groups;
    for (int64_t i = 0; i < units; i++) {
        const int64_t lender = from * units + i, unit = to * units + i;
        const int64_t count = settled_pages(cache, lender, last);
        memcpy(cache->unit_list + unit * cache->unit_pages,
               cache->unit_list + lender * cache->unit_pages, (size_t)count * sizeof(int32_t));
        cache->borrowed[unit] = (int32_t)count;
        cache->live[unit] = (int32_t)(count * cache->page_slots);
    }
    return DMS_OK;
}

/* What `unit` lacks of another one. */
static dms_status copy_unit(const dms_paged *c, int64_t other, int64_t unit)
{
    const int64_t lacking = c->live[other] - c->live[unit];
    const int64_t end = pages_for(c, c->live[other]);
    for (int64_t i = pages_for(c, c->live[unit]); i < end; i++) {
        DMS_TRY(take_page(c, unit, i));
        const dms_page page = page_of(c, unit, i);
        const int32_t owner[2] = {page.owner[0], page.owner[1]};
        memcpy(page.k, page_of(c, other, i).k, dms_page_bytes(c));
        memcpy(page.owner, owner, sizeof(owner));
    }
    memcpy(ring_of(c, unit, 0), ring_of(c, other, 0), (size_t)c->ring_entries * sizeof(int32_t));
    c->live[unit] = c->live[other];
    count_live(c, lacking);
    return DMS_OK;
}

dms_status DMS_CPU(paged_copy)(const dms_paged *cache, int from, int to)
{
    const int64_t units = (int64_t)cache->layers * cache->groups;
    for (int64_t i = 0; i < units; i++)
        DMS_TRY(copy_unit(cache, from * units + i, to * units + i));
    return DMS_OK;
}

dms_status DMS_CPU(paged_grow)(const dms_paged *cache, int first, int count)
{
    for (int number = first + count - 1; number >= first; number--)
        push_free(cache, number);
    return DMS_OK;
}

/* The next free page below `end`, from the stack's entry *next on. */
static int32_t next_hole(const dms_paged *c, int64_t *next, int32_t end)
{
    while (c->free_pages[*next] >= end)
        ++*next;
    return c->free_pages[(*next)++];
}

dms_status DMS_CPU(paged_pack)(const dms_paged *cache, int keep)
{
    const size_t bytes = dms_page_bytes(cache);
    const int32_t used = cache->pages - (int32_t)cache->counters[DMS_PAGED_FREE];
    int64_t next = 0;
    if (keep < used)
        return dms_fail(DMS_ERR_ARG, "%d pages are to be kept, %d are in use", keep, used);
    for (int32_t number = used; number < cache->pages; number++) {
        const dms_page page = dms_page_at(cache, number);
        if (page.owner[0] < 0)
            continue;
        const int32_t hole = next_hole(cache, &next, used);
        cache->unit_list[page.owner[0] * (int64_t)cache->unit_pages + page.owner[1]] = hole;
        memcpy(dms_page_at(cache, hole).k, page.k, bytes);
    }
    cache->counters[DMS_PAGED_FREE] = 0;
    return DMS_CPU(paged_grow)(cache, used, keep - used);
}
