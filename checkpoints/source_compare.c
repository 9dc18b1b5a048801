#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_build.h"

static dms_status compare(const dms_source *s, const dms_tensor_entry *e, const void *wanted)
{
    const size_t bytes = dms_tensor_entry_bytes(e);
    const dms_source_tensor *t = dms_source_entry(s, e->name);
    bool same = t && t->info.type == dms_tensor_entry_type(e) && t->info.rank == e->rank;
    for (int i = 0; same && i < e->rank; i++)
        same = t->info.shape[i] == e->shape[i];
    if (!same)
        return dms_fail(DMS_ERR_IO, "%s: tensor %s reads back %s", s->path, e->name,
                        t ? "in another type or shape than written" : "as missing");
    if (t->bytes != bytes || memcmp(t->data, wanted, bytes) != 0)
        return dms_fail(DMS_ERR_IO,
                        "%s: tensor %s reads back with other bytes than written: is the disk or "
                        "the memory faulty?",
                        s->path, e->name);
    return DMS_OK;
}

dms_status dms_source_compare(const dms_source *s, const dms_tensor_set *set)
{
    dms_status status = DMS_OK;
    if (s->n_tensors != set->count)
        return dms_fail(DMS_ERR_IO, "%s: %lld tensors read back, %lld were written", s->path,
                        (long long)s->n_tensors, (long long)set->count);
    void *wanted = dms_tensor_set_buffer(set);
    if (!wanted)
        return DMS_ERR_NOMEM;
    for (int64_t i = 0; i < set->count; i++) {
        DMS_TRY_OR(done, dms_tensor_set_fetch(set, i, wanted));
        DMS_TRY_OR(done, compare(s, &set->entries[i], wanted));
    }
done:
    free(wanted);
    return status;
}
