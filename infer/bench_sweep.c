#include "infer/bench_sweep.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

dms_status dms_bench_list_read(dms_bench_list *out, const char *option, const char *text,
                               int64_t most)
{
    const char *at = text;
    out->n = 0;
    for (;;) {
        char *end;
        errno = 0;
        const long long value = strtoll(at, &end, 10);
        const bool digits = at[0] >= '0' && at[0] <= '9';
        if (!digits || errno || value < 1 || value > most || (*end && *end != ',') ||
            out->n == DMS_MAX_BENCH_LIST)
            return dms_fail(DMS_ERR_ARG,
                            "%s is \"%s\", expected at most %d numbers from 1 to %" PRId64
                            " with commas between them",
                            option, text, DMS_MAX_BENCH_LIST, most);
        out->values[out->n++] = value;
        if (!*end)
            return DMS_OK;
        at = end + 1;
    }
}

/* Asks for the keys and values of a dense cache, whose size is known, before the prompts are
 * computed. */
static dms_status try_memory(const dms_bench_decode_options *o, int64_t tokens)
{
    const dms_config *c = &o->model->config;
    dms_device *dev = o->model->device;
    const size_t slot = 2 * (size_t)c->head_dim * dms_dtype_bytes(o->model->matrix_type);
    void *memory = NULL;
    DMS_TRY(dev->alloc(dev, &memory, (size_t)(o->batch * tokens * c->layers * c->kv_heads) * slot));
    dev->release(dev, memory);
    return DMS_OK;
}

dms_status dms_bench_sweep_point(dms_bench_point *out, const dms_bench_decode_options *options,
                                 int repetitions)
{
    dms_bench_decode_options o = *options;
    dms_status status = DMS_OK;
    o.once = true;
    *out = (dms_bench_point){.weights = (double)dms_bench_weight_bytes(o.model)};
    if (o.dense)
        status = try_memory(&o, dms_bench_decode_tokens(&o, repetitions));
    if (!status)
        status = dms_bench_decode(&out->rate, &out->stats, &o, repetitions);
    if (status == DMS_ERR_NOMEM)
        return DMS_OK;
    DMS_TRY(status);
    out->fits = true;
    out->kv = (double)out->stats.kv_reads * (double)out->stats.bytes_a_slot /
              (double)dms_bench_decode_steps(&o, repetitions);
    return DMS_OK;
}
