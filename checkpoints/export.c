#include "checkpoints/export.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_reader.h"

static const struct {
    const char *name, *torch;
} types[] = {[DMS_EXPORT_BF16] = {"bf16", "bfloat16"},
             [DMS_EXPORT_F32] = {"f32", "float32"},
             [DMS_EXPORT_F16] = {"f16", "float16"},
             [DMS_EXPORT_STORED] = {"stored", NULL}};

dms_status dms_export_type_from_name(dms_export_type *out, const char *name)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (!strcmp(types[i].name, name)) {
            *out = (dms_export_type)i;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_ARG,
                    "type is \"%s\", expected bf16, f32, f16 or stored, and for gguf q8_0", name);
}

static dms_status open_parts(dms_export *e, const char *path)
{
    double dropped = 1;
    DMS_TRY(dms_source_open(&e->source, path));
    if (!dms_source_config(e->source))
        return dms_fail(DMS_ERR_ARG, "%s has no config, expected a model", path);
    if (dms_source_number(e->source, "dropped", &dropped) && dropped == 0)
        return dms_fail(DMS_ERR_ARG,
                        "%s is from before the end of the fade and evicts nothing yet, expected a "
                        "later checkpoint",
                        path);
    if (strcmp(dms_source_format(e->source), "dms") != 0)
        return DMS_OK;
    DMS_TRY(dms_checkpoint_open(&e->checkpoint, path));
    return dms_checkpoint_verify(e->checkpoint);
}

dms_status dms_export_open(dms_export **out, const char *path)
{
    dms_export *e = calloc(1, sizeof(*e));
    if (!e)
        return dms_fail(DMS_ERR_NOMEM, "no memory to export %s", path);
    const dms_status status = open_parts(e, path);
    if (status) {
        dms_export_close(e);
        return status;
    }
    *out = e;
    return DMS_OK;
}

void dms_export_close(dms_export *e)
{
    if (!e)
        return;
    free(e->entries);
    free(e->origins);
    dms_checkpoint_close(e->checkpoint);
    dms_source_close(e->source);
    free(e);
}

static bool is_left_out(const dms_export *e, const char *name, bool gate_only)
{
    if (gate_only)
        return !dms_layout_is_gate(name);
    return dms_layout_leaves_out(dms_source_config(e->source), name);
}

static void choose_type(dms_tensor_entry *entry, const dms_tensor_info *info, dms_export_type type)
{
    const dms_file_type stored = info->type;
    if (type == DMS_EXPORT_STORED) {
        entry->half = stored == DMS_FILE_F16;
        entry->dtype = stored == DMS_FILE_F32 || entry->half ? DMS_F32
                       : stored == DMS_FILE_I32              ? DMS_I32
                                                             : DMS_BF16;
        return;
    }
    const bool gate = dms_layout_is_gate(info->name);
    entry->half = type == DMS_EXPORT_F16 && !gate;
    entry->dtype = type == DMS_EXPORT_BF16 && !gate ? DMS_BF16 : DMS_F32;
}

/* The entry of that name; NULL where it is not in the list yet. */
static dms_export_origin *find_origin(const dms_export *e, const char *name)
{
    for (int64_t i = 0; i < e->count; i++)
        if (!strcmp(e->entries[i].name, name))
            return &e->origins[i];
    return NULL;
}

/* A tensor that a model folder has elsewhere: a new entry, or a part of one. */
static void add_placed(dms_export *e, const dms_tensor_info *info, const dms_layout_place *place,
                       dms_export_type type)
{
    dms_export_origin *known = find_origin(e, place->name);
    if (known) {
        known->parts[place->part] = info->name;
        return;
    }
    dms_tensor_entry *entry = &e->entries[e->count];
    dms_export_origin *origin = &e->origins[e->count++];
    origin->place = *place;
    origin->parts[place->part] = info->name;
    *entry = (dms_tensor_entry){.name = origin->place.name, .rank = info->rank};
    choose_type(entry, info, type);
    memcpy(entry->shape, info->shape, sizeof(entry->shape));
    entry->shape[0] *= place->parts;
    if (place->transposed) {
        entry->shape[1] = entry->shape[0];
        entry->shape[0] = info->shape[1];
    }
}

static void add_as_it_is(dms_export *e, const dms_tensor_info *info, dms_export_type type)
{
    dms_tensor_entry *entry = &e->entries[e->count];
    e->origins[e->count++].parts[0] = info->name;
    *entry = (dms_tensor_entry){.name = info->name, .rank = info->rank};
    choose_type(entry, info, type);
    memcpy(entry->shape, info->shape, sizeof(entry->shape));
}

/* Every entry has all of its parts, each of the first one's shape. */
static dms_status check_parts(const dms_export *e)
{
    for (int64_t i = 0; i < e->count; i++) {
        const dms_export_origin *o = &e->origins[i];
        const dms_tensor_info *first = o->parts[0] ? dms_source_find(e->source, o->parts[0]) : NULL;
        for (int k = 0; k < (o->place.parts ? o->place.parts : 1); k++) {
            const dms_tensor_info *part =
                o->parts[k] ? dms_source_find(e->source, o->parts[k]) : NULL;
            if (!first || !part || part->rank != first->rank ||
                memcmp(part->shape, first->shape, sizeof(part->shape)) != 0)
                return dms_fail(DMS_ERR_FORMAT,
                                "tensor %s of the model's family has %d equal parts, part %d is "
                                "missing in the file or of another shape",
                                e->entries[i].name, o->place.parts, k + 1);
        }
    }
    return DMS_OK;
}

dms_status dms_export_list(dms_export *e, dms_export_type type, bool gate_only, bool outside)
{
    const int64_t n = dms_source_count(e->source);
    const json_t *config = outside ? dms_source_config(e->source) : NULL;
    if (outside && !gate_only)
        DMS_TRY(dms_source_expect_model(e->source));
    free(e->entries);
    free(e->origins);
    e->count = e->broken = 0;
    e->first_broken = NULL;
    e->entries = calloc((size_t)n + 1, sizeof(*e->entries));
    e->origins = calloc((size_t)n + 1, sizeof(*e->origins));
    if (!e->entries || !e->origins)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of %lld tensors", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        dms_layout_place place;
        const dms_tensor_info *info = dms_source_info(e->source, i);
        if (is_left_out(e, info->name, gate_only))
            continue;
        if (dms_layout_find(&place, config, info->name) && (info->rank == 1 || info->rank == 2) &&
            info->rank > place.transposed)
            add_placed(e, info, &place, type);
        else
            add_as_it_is(e, info, type);
    }
    return check_parts(e);
}

/* A tensor of the source, from its master where f32 is wanted of what is trained. */
static dms_status read_one(const dms_export *e, const char *name, void *dst, dms_dtype dtype)
{
    const dms_tensor_info *info = dms_source_find(e->source, name);
    int64_t n = 1;
    if (dtype != DMS_F32 || !e->checkpoint || !dms_checkpoint_find(e->checkpoint, "masters", name))
        return dms_source_read(e->source, name, dst, dtype);
    for (int i = 0; i < info->rank; i++)
        n *= info->shape[i];
    return dms_checkpoint_read(e->checkpoint, "masters", name, DMS_F32, n, dst);
}

static dms_status fetch_whole(const dms_export *e, int64_t i, void *dst)
{
    const dms_tensor_entry *entry = &e->entries[i];
    const dms_export_origin *o = &e->origins[i];
    dms_status status = DMS_OK;
    if (!o->place.parts)
        return read_one(e, o->parts[0], dst, entry->dtype);
    const dms_tensor_info *info = dms_source_find(e->source, o->parts[0]);
    const dms_layout_size size = {{info->shape[0], info->rank == 2 ? info->shape[1] : 1},
                                  dms_dtype_bytes(entry->dtype)};
    void *part = malloc((size_t)(size.shape[0] * size.shape[1]) * size.element_bytes + 1);
    if (!part)
        return dms_fail(DMS_ERR_NOMEM, "no memory for tensor %s", entry->name);
    for (int k = 0; k < o->place.parts && !status; k++) {
        dms_layout_place place = o->place;
        place.part = k;
        status = read_one(e, o->parts[k], part, entry->dtype);
        if (!status)
            dms_layout_put(dst, part, &place, &size);
    }
    free(part);
    return status;
}

static bool is_finite(const void *numbers, int64_t i, dms_dtype dtype)
{
    return dtype == DMS_F32    ? isfinite(((const float *)numbers)[i])
           : dtype == DMS_BF16 ? (((const uint16_t *)numbers)[i] & 0x7f80) != 0x7f80
                               : true;
}

/* Writers fetch a second time to compare: what is broken counts once. */
static dms_status fetch(void *context, int64_t i, void *dst)
{
    dms_export *e = context;
    const dms_tensor_entry *entry = &e->entries[i];
    const int64_t n = dms_tensor_entry_count(entry), before = e->broken;
    DMS_TRY(fetch_whole(e, i, dst));
    if (e->origins[i].fetched)
        return DMS_OK;
    e->origins[i].fetched = true;
    for (int64_t k = 0; k < n; k++)
        e->broken += !is_finite(dst, k, entry->dtype);
    if (e->broken > before && !e->first_broken)
        e->first_broken = entry->name;
    return DMS_OK;
}

dms_tensor_set dms_export_set(dms_export *e)
{
    return (dms_tensor_set){e->entries, e->count, fetch, e};
}

dms_status dms_export_note_type(json_t *config, dms_export_type type)
{
    const char *key = json_object_get(config, "dtype") ? "dtype" : "torch_dtype";
    if (types[type].torch && json_object_set_new(config, key, json_string(types[type].torch)))
        return dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys");
    return DMS_OK;
}
