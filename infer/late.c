#include "infer/late.h"

#include <stdlib.h>

#include "kernels/arena.h"

struct dms_late {
    dms_late_options options;
    dms_arena memory;
    dms_tensor last;                     /* [L*S, G]: 0 or 1 */
    dms_tensor decided, scratch, handed; /* [rows, G] */
};

static dms_status place(dms_late *l, dms_arena *arena)
{
    dms_tensor *const all[] = {&l->last, &l->decided, &l->scratch, &l->handed};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        DMS_TRY(dms_arena_place(arena, all[i]));
    return DMS_OK;
}

static dms_tensor matrix(const dms_late_options *o, int64_t rows)
{
    return (dms_tensor){
        .device = o->device, .dtype = DMS_F32, .rank = 2, .shape = {rows, o->groups}};
}

dms_status dms_late_open(dms_late **out, const dms_late_options *o)
{
    dms_status status = DMS_OK;
    dms_arena measure = dms_arena_measure(o->device);
    dms_late *l = calloc(1, sizeof(*l));
    if (!l)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the last decisions");
    l->options = *o;
    l->last = matrix(o, (int64_t)o->layers * o->sequences);
    l->decided = l->scratch = l->handed = matrix(o, o->rows);
    DMS_TRY_OR(failed, place(l, &measure));
    DMS_TRY_OR(failed, dms_arena_open(&l->memory, o->device, measure.peak));
    DMS_TRY_OR(failed, place(l, &l->memory));
    DMS_TRY_OR(failed, o->device->zero(o->device, l->last.data, dms_tensor_bytes(&l->last)));
    *out = l;
    return DMS_OK;
failed:
    dms_late_close(l);
    return status;
}

void dms_late_close(dms_late *late)
{
    if (!late)
        return;
    dms_arena_close(&late->memory);
    free(late);
}

/* The memory of `from`, from element `first` on, in another shape. */
static dms_tensor view(const dms_tensor *from, int64_t first, int rank, const int64_t *shape)
{
    dms_tensor t = *from;
    t.rank = rank;
    for (int i = 0; i < rank; i++)
        t.shape[i] = shape[i];
    t.data = (float *)from->data + first;
    return t;
}

static dms_status copy(const dms_tensor *to, int64_t at, const dms_tensor *from, int64_t first,
                       int64_t n)
{
    dms_tensor y = view(to, at, 1, &n);
    const dms_tensor x = view(from, first, 1, &n);
    return n ? dms_cast(&y, &x) : DMS_OK;
}

dms_status dms_late_fork(const dms_late *late, int from, int to)
{
    const int64_t S = late->options.sequences, G = late->options.groups;
    for (int64_t l = 0; l < late->options.layers; l++)
        DMS_TRY(copy(&late->last, (l * S + to) * G, &late->last, (l * S + from) * G, G));
    return DMS_OK;
}

/* Steps of one token: last[s] is handed on, and then becomes what was decided now. There is no op
 * that overwrites rows, so the difference is added: exact for 0 and 1. */
static dms_status step(const dms_late *l, const dms_tensor *last, const dms_tensor *sequences)
{
    const int64_t n = sequences->shape[0], groups = l->options.groups;
    const int64_t shape[] = {n, 1, groups};
    dms_tensor handed = view(&l->handed, 0, 3, shape), decided = view(&l->decided, 0, 3, shape);
    dms_tensor kept = *last;
    DMS_TRY(dms_embedding(&handed, sequences, last));
    DMS_TRY(dms_axpy(&decided, -1, &handed));
    return dms_embedding_bwd(&kept, &decided, sequences);
}

/* Chunks: each row moves on by one token; the first comes from before, the last is kept. */
static dms_status chunk(const dms_late *l, const dms_tensor *last, const int32_t *sequences,
                        int64_t n, int64_t tokens)
{
    const int64_t groups = l->options.groups;
    DMS_TRY(copy(&l->handed, 1, &l->decided, 0, n * groups * tokens - 1));
    for (int64_t i = 0; i < n; i++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t row = (i * groups + g) * tokens, kept = sequences[i] * groups + g;
            DMS_TRY(copy(&l->handed, row, last, kept, 1));
            DMS_TRY(copy(last, kept, &l->decided, row + tokens - 1, 1));
        }
    return DMS_OK;
}

dms_status dms_late_hand_on(dms_tensor *out, const dms_late *late, const dms_paged_rows *rows,
                            const int32_t *sequences, const dms_tensor *z)
{
    const int64_t S = late->options.sequences, G = late->options.groups;
    const int64_t n = z->shape[0], tokens = z->shape[2];
    const dms_tensor last = view(&late->last, rows->layer * S * G, 2, (int64_t[]){S, G});
    dms_tensor decided = view(&late->decided, 0, 3, z->shape);
    dms_tensor scratch = view(&late->scratch, 0, 3, z->shape);
    DMS_TRY(dms_gate_hard(&scratch, &decided, z));
    DMS_TRY(tokens == 1 ? step(late, &last, rows->sequences)
                        : chunk(late, &last, sequences, n, tokens));
    *out = view(&late->handed, 0, 3, z->shape);
    return DMS_OK;
}
