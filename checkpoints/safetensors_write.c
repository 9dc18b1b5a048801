#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"
#include "checkpoints/safetensors.h"

static json_t *entry_header(const dms_tensor_entry *e, size_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < e->rank; i++)
        json_array_append_new(shape, json_integer(e->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dms_file_type_name(dms_tensor_entry_type(e)),
                     "shape", shape, "data_offsets", (json_int_t)begin,
                     (json_int_t)(begin + dms_tensor_entry_bytes(e)));
}

/* The header's text, padded with spaces so that the data start at a multiple of 64 bytes. */
static dms_status make_header(char **out, size_t *length, const dms_tensor_set *set)
{
    size_t at = 0;
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    bool failed = !header;
    for (int64_t i = 0; !failed && i < set->count; i++) {
        failed = json_object_set_new(header, set->entries[i].name,
                                     entry_header(&set->entries[i], at)) != 0;
        at += dms_tensor_entry_bytes(&set->entries[i]);
    }
    char *text = failed ? NULL : json_dumps(header, JSON_COMPACT);
    json_decref(header);
    const size_t n = text ? strlen(text) : 0, padded = (n + 8 + 63) / 64 * 64 - 8;
    char *grown = text ? realloc(text, padded) : NULL;
    if (!grown) {
        free(text);
        return dms_fail(DMS_ERR_NOMEM, "no memory for a safetensors header");
    }
    memset(grown + n, ' ', padded - n);
    *out = grown;
    *length = padded;
    return DMS_OK;
}

static dms_status write_tensors(dms_outfile *f, const dms_tensor_set *set)
{
    dms_status status = DMS_OK;
    void *buffer = dms_tensor_set_buffer(set);
    if (!buffer)
        return DMS_ERR_NOMEM;
    for (int64_t i = 0; i < set->count; i++) {
        DMS_TRY_OR(done, dms_tensor_set_fetch(set, i, buffer));
        DMS_TRY_OR(done, dms_outfile_write(f, buffer, dms_tensor_entry_bytes(&set->entries[i])));
    }
done:
    free(buffer);
    return status;
}

dms_status dms_safetensors_write(const char *path, const dms_tensor_set *set)
{
    dms_status status;
    dms_outfile f = DMS_OUTFILE_NONE;
    char *header = NULL;
    size_t length;
    uint8_t prefix[8];
    if (set->count <= 0)
        return dms_fail(DMS_ERR_ARG, "%s: there is no tensor to write", path);
    DMS_TRY_OR(done, make_header(&header, &length, set));
    for (int i = 0; i < 8; i++)
        prefix[i] = (uint8_t)((uint64_t)length >> (8 * i));
    DMS_TRY_OR(done, dms_outfile_open(&f, path));
    DMS_TRY_OR(done, dms_outfile_write(&f, prefix, 8));
    DMS_TRY_OR(done, dms_outfile_write(&f, header, length));
    DMS_TRY_OR(done, write_tensors(&f, set));
    DMS_TRY_OR(done, dms_outfile_commit(&f));
done:
    dms_outfile_abort(&f);
    free(header);
    return status;
}

/* A run of tensors that shares one file. */
typedef struct {
    int64_t first, count;
} shard;

/* Fills shards (room for one a tensor) and returns how many. */
static int split(shard *shards, size_t *total, const dms_tensor_set *set, size_t limit)
{
    int n = 0;
    size_t used = 0;
    *total = 0;
    for (int64_t i = 0; i < set->count; i++) {
        const size_t bytes = dms_tensor_entry_bytes(&set->entries[i]);
        if (!n || (limit && used + bytes > limit)) {
            shards[n++] = (shard){i, 0};
            used = 0;
        }
        shards[n - 1].count++;
        used += bytes;
        *total += bytes;
    }
    return n;
}

/* Fetches tensor i of a shard. */
typedef struct {
    const dms_tensor_set *all;
    int64_t first;
} part;

static dms_status fetch_part(void *context, int64_t i, void *dst)
{
    const part *p = context;
    return p->all->fetch(p->all->context, p->first + i, dst);
}

static dms_status write_shard(const char *folder, const char *name, const dms_tensor_set *set,
                              shard s)
{
    part p = {set, s.first};
    const dms_tensor_set some = {set->entries + s.first, s.count, fetch_part, &p};
    char *path = dms_path_join(folder, name);
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const dms_status status = dms_safetensors_write(path, &some);
    free(path);
    return status;
}

static dms_status write_index(const char *folder, json_t *map, size_t total)
{
    dms_status status = DMS_ERR_NOMEM;
    json_t *index =
        json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *text = index ? json_dumps(index, JSON_INDENT(2)) : NULL;
    char *path = dms_path_join(folder, "model.safetensors.index.json");
    if (text && path)
        status = dms_file_write(path, text, strlen(text));
    else
        dms_fail(status, "no memory for the index of shards");
    free(text);
    free(path);
    json_decref(index);
    return status;
}

static dms_status write_several(const char *folder, const dms_tensor_set *set, const shard *shards,
                                int n, size_t total)
{
    dms_status status = DMS_OK;
    json_t *map = json_object();
    for (int k = 0; k < n; k++) {
        char name[64];
        snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", k + 1, n);
        DMS_TRY_OR(done, write_shard(folder, name, set, shards[k]));
        for (int64_t i = shards[k].first; i < shards[k].first + shards[k].count; i++)
            if (json_object_set_new(map, set->entries[i].name, json_string(name)))
                DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for the index of shards"));
    }
    DMS_TRY_OR(done, write_index(folder, map, total));
done:
    json_decref(map);
    return status;
}

dms_status dms_safetensors_write_shards(const char *folder, const dms_tensor_set *set,
                                        size_t shard_bytes)
{
    size_t total;
    if (set->count <= 0)
        return dms_fail(DMS_ERR_ARG, "%s: there is no tensor to write", folder);
    shard *shards = calloc((size_t)set->count, sizeof(*shards));
    if (!shards)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of shards");
    const int n = split(shards, &total, set, shard_bytes);
    const dms_status status = n == 1 ? write_shard(folder, "model.safetensors", set, shards[0])
                                     : write_several(folder, set, shards, n, total);
    free(shards);
    return status;
}
