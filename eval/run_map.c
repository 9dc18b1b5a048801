#include "eval/run_map.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"
#include "eval/contexts.h"
#include "eval/lines.h"
#include "eval/number.h"
#include "eval/report_run.h"
#include "eval/yaml_tree.h"
#include "infer/model_file.h"
#include "model/dms.h"

enum { MOST_CONTEXTS = 4, SAMPLE = 400 };

typedef struct {
    const dms_run_map_source *source;
    dms_device *device;
    dms_arena memory;
    dms_tape *tape;
    dms_tensor ids, positions; /* [1, T] */
    dms_tensor decisions;      /* [L, 1, G, T] */
    float *host;               /* the same */
    int32_t *order;            /* [T]: 0, 1, ... */
    int64_t *kept;             /* [L, G] */
} pass;

/* ---- the pass ------------------------------------------------------------------------------- */

static dms_status place_tensors(pass *p, dms_arena *arena)
{
    const dms_config *c = &p->source->model->config;
    const int64_t T = p->source->context;
    p->ids = p->positions = (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {1, T}};
    p->decisions =
        (dms_tensor){.dtype = DMS_F32, .rank = 4, .shape = {c->layers, 1, c->kv_heads, T}};
    DMS_TRY(dms_arena_place(arena, &p->ids));
    DMS_TRY(dms_arena_place(arena, &p->positions));
    return dms_arena_place(arena, &p->decisions);
}

static dms_status run_once(pass *p)
{
    dms_hard_context law = {.window = p->source->model->gate.window, .decisions = &p->decisions};
    const dms_pass all = {.tape = p->tape,
                          .model = p->source->model,
                          .ids = &p->ids,
                          .positions = &p->positions,
                          .gated = true,
                          .attend = dms_attend_hard,
                          .context = &law};
    dms_tape_reset(p->tape);
    dms_transformer_forward(&all);
    return dms_tape_status(p->tape);
}

static dms_status open_tape(pass *p)
{
    dms_tape_options options = {
        .device = p->device, .max_nodes = dms_transformer_nodes(p->source->model), .measure = true};
    DMS_TRY(dms_tape_open(&p->tape, &options));
    const dms_status status = run_once(p);
    dms_tape_peak(p->tape, &options.keep_bytes, &options.scratch_bytes);
    dms_tape_close(p->tape);
    p->tape = NULL;
    DMS_TRY(status);
    options.measure = false;
    return dms_tape_open(&p->tape, &options);
}

static dms_status check(const dms_run_map_source *s)
{
    const dms_model *m = s->model;
    if (m->gate.kind == DMS_GATE_NONE)
        return dms_fail(DMS_ERR_ARG, "the model has no gate: nothing is evicted");
    if (s->contexts < 1 || s->context < 2 || s->context > m->rope_table.shape[0])
        return dms_fail(DMS_ERR_ARG,
                        "%" PRId64 " contexts of %" PRId64 " tokens, expected at least one of 2 to "
                        "%" PRId64,
                        s->contexts, s->context, m->rope_table.shape[0]);
    for (int64_t i = 0; i < s->contexts * s->context; i++)
        if (s->ids[i] < 0 || s->ids[i] >= m->config.vocab)
            return dms_fail(DMS_ERR_ARG,
                            "the text has token %" PRId32 ", the model %" PRId64
                            " tokens: another tokenizer?",
                            s->ids[i], m->config.vocab);
    return DMS_OK;
}

static dms_status open_pass(pass *p)
{
    const int64_t T = p->source->context;
    const dms_config *c = &p->source->model->config;
    dms_arena measure = dms_arena_measure(p->device);
    DMS_TRY(place_tensors(p, &measure));
    DMS_TRY(dms_arena_open(&p->memory, p->device, measure.peak));
    DMS_TRY(place_tensors(p, &p->memory));
    p->host = malloc(dms_tensor_bytes(&p->decisions));
    p->order = malloc((size_t)T * sizeof(*p->order));
    p->kept = calloc((size_t)(c->layers * c->kv_heads), sizeof(*p->kept));
    if (!p->host || !p->order || !p->kept)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the decisions on %" PRId64 " tokens", T);
    for (int64_t t = 0; t < T; t++)
        p->order[t] = (int32_t)t;
    DMS_TRY(
        p->device->upload(p->device, p->positions.data, p->order, dms_tensor_bytes(&p->positions)));
    return open_tape(p);
}

static void close_pass(pass *p)
{
    dms_tape_close(p->tape);
    dms_arena_close(&p->memory);
    free(p->host);
    free(p->order);
    free(p->kept);
}

/* ---- what it decided ------------------------------------------------------------------------ */

/* Decision t governs token t - 1. */
static void count_kept(pass *p)
{
    const int64_t T = p->source->context, units = dms_count(&p->decisions) / T;
    for (int64_t u = 0; u < units; u++)
        for (int64_t t = 1; t < T; t++)
            p->kept[u] += !(p->host[u * T + t] > 0);
}

/* What the id adds to the text, on the heap. */
static dms_status token_text(char **out, dms_decoder *decoder, int32_t id)
{
    dms_text text = {0};
    dms_status status = dms_decoder_put(decoder, &text, id);
    if (!status)
        status = dms_text_append(&text, "", 1);
    if (status)
        dms_text_free(&text);
    *out = text.bytes;
    return status;
}

static float fraction_of(const pass *p, int64_t t)
{
    const int64_t T = p->source->context, units = dms_count(&p->decisions) / T;
    int64_t evicted = 0;
    if (t + 1 == T)
        return NAN;
    for (int64_t u = 0; u < units; u++)
        evicted += p->host[u * T + t + 1] > 0;
    return (float)evicted / (float)units;
}

static dms_status take_sample(dms_sample *out, const pass *p)
{
    const dms_run_map_source *s = p->source;
    const int64_t n = s->context < s->sample ? s->context : s->sample;
    dms_decoder decoder = {.tokenizer = s->tokenizer, .within = true};
    out->tokens = calloc((size_t)n, sizeof(*out->tokens));
    out->fractions = calloc((size_t)n, sizeof(*out->fractions));
    if (!out->tokens || !out->fractions)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a sample of %" PRId64 " tokens", n);
    for (; out->n < n; out->n++) {
        DMS_TRY(token_text(&out->tokens[out->n], &decoder, s->ids[out->n]));
        out->fractions[out->n] = fraction_of(p, out->n);
    }
    return DMS_OK;
}

static dms_status run_all(dms_run_map *map, pass *p)
{
    const dms_run_map_source *s = p->source;
    for (int64_t i = 0; i < s->contexts; i++) {
        DMS_TRY(p->device->upload(p->device, p->ids.data, s->ids + i * s->context,
                                  dms_tensor_bytes(&p->ids)));
        DMS_TRY(run_once(p));
        DMS_TRY(p->device->download(p->device, p->host, p->decisions.data,
                                    dms_tensor_bytes(&p->decisions)));
        count_kept(p);
        if (!i)
            DMS_TRY(take_sample(&map->sample, p));
    }
    return DMS_OK;
}

static dms_status fill_map(dms_run_map *map, const pass *p)
{
    const int64_t units = (int64_t)map->layers * map->kv_heads;
    const int64_t governed = map->contexts * (map->context - 1);
    int64_t kept = 0;
    map->ratio = calloc((size_t)units, sizeof(*map->ratio));
    if (!map->ratio)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a map of %" PRId64 " heads", units);
    for (int64_t u = 0; u < units; u++) {
        map->ratio[u] = (float)governed / (float)(p->kept[u] ? p->kept[u] : 1);
        kept += p->kept[u];
    }
    map->reached = (double)(governed * units) / (double)(kept ? kept : 1);
    return DMS_OK;
}

dms_status dms_run_map_make(dms_run_map *out, const dms_run_map_source *source)
{
    DMS_TRY(check(source));
    pass p = {.source = source, .device = source->model->device};
    dms_run_map map = {.layers = source->model->config.layers,
                       .kv_heads = (int)source->model->config.kv_heads,
                       .contexts = source->contexts,
                       .context = source->context,
                       .window = source->model->gate.window};
    dms_status status = open_pass(&p);
    if (!status)
        status = run_all(&map, &p);
    if (!status)
        status = fill_map(&map, &p);
    close_pass(&p);
    if (status)
        dms_run_map_close(&map);
    else
        *out = map;
    return status;
}

void dms_run_map_close(dms_run_map *map)
{
    for (int64_t i = 0; i < map->sample.n; i++)
        free(map->sample.tokens[i]);
    free(map->sample.tokens);
    free(map->sample.fractions);
    free(map->ratio);
    *map = (dms_run_map){0};
}

/* ---- a run's folder ------------------------------------------------------------------------- */

typedef struct {
    json_t *tree;
    const char *heldout, *device;
    int64_t context;
    dms_compute compute;
    int threads;
} settings;

static const json_t *value_of(const json_t *tree, const char *section, const char *key)
{
    return json_object_get(json_object_get(tree, section), key);
}

static const char *text_of(const json_t *tree, const char *section, const char *key)
{
    const char *text = json_string_value(value_of(tree, section, key));
    return text && *text ? text : NULL;
}

static dms_status read_settings(settings *s, const char *path)
{
    DMS_TRY(dms_yaml_read(&s->tree, path));
    const char *compute = text_of(s->tree, "run", "compute");
    const json_int_t threads = json_integer_value(value_of(s->tree, "device", "threads"));
    s->heldout = text_of(s->tree, "data", "heldout");
    s->device = text_of(s->tree, "device", "kind");
    s->context = json_integer_value(value_of(s->tree, "data", "context"));
    s->threads = threads > 0 && threads <= 1024 ? (int)threads : 0;
    if (!s->heldout)
        return dms_fail(DMS_ERR_ARG, "%s names no held-out text (data.heldout)", path);
    if (s->context < 2 || s->context > 1 << 20)
        return dms_fail(DMS_ERR_ARG,
                        "data.context of %s is %" PRId64 ", expected a whole number from 2 to %d",
                        path, s->context, 1 << 20);
    return dms_compute_from_name(&s->compute, compute ? compute : "auto");
}

static dms_status read_and_make(dms_run_map *out, const settings *s, const dms_model_file *file)
{
    dms_contexts text = {0};
    DMS_TRY(dms_contexts_open(&text, &(dms_contexts_options){.paths = &s->heldout,
                                                             .n_paths = 1,
                                                             .tokenizer = file->tokenizer,
                                                             .config = &file->model->config,
                                                             .context = s->context,
                                                             .sequences = MOST_CONTEXTS}));
    const dms_run_map_source source = {.model = file->model,
                                       .tokenizer = file->tokenizer,
                                       .ids = text.stream.ids,
                                       .contexts = text.sequences,
                                       .context = s->context,
                                       .sample = SAMPLE};
    const dms_status status = dms_run_map_make(out, &source);
    dms_contexts_close(&text);
    return status;
}

static dms_status open_and_make(dms_run_map *out, const settings *s, const char *latest)
{
    dms_device *device = NULL;
    dms_model_file *file = NULL;
    DMS_TRY(dms_device_from_name(&device, s->device ? s->device : "auto", s->threads));
    dms_status status = dms_model_file_open(&file, &(dms_model_file_options){
                                                       .path = latest,
                                                       .device = device,
                                                       .compute = s->compute,
                                                       .positions = s->context,
                                                   });
    if (!status)
        status = read_and_make(out, s, file);
    dms_model_file_close(file);
    device->close(device);
    return status;
}

dms_status dms_run_map_open(dms_run_map *out, const char *folder)
{
    settings s = {0};
    char *config = dms_path_join(folder, "config.yaml");
    char *latest = dms_path_join(folder, "latest");
    dms_status status = config && latest ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory");
    if (!status)
        status = read_settings(&s, config);
    if (!status)
        status = open_and_make(out, &s, latest);
    json_decref(s.tree);
    free(config);
    free(latest);
    return status;
}

/* ---- its page ------------------------------------------------------------------------------- */

static void describe(char *out, size_t size, const dms_run_map *map)
{
    char ratio[DMS_NUMBER_SIZE];
    snprintf(out, size,
             "Held-out text, %" PRId64 " context%s of %" PRId64
             " tokens, decisions without noise; %s over all heads. What is evicted stays readable "
             "for %" PRId64 " tokens more.",
             map->contexts, map->contexts == 1 ? "" : "s", map->context,
             dms_number_short(ratio, map->reached, 3), map->window);
}

dms_status dms_run_map_report(char notice[DMS_NOTICE_SIZE], const char *folder, const char *command)
{
    char date[DMS_DATE_SIZE], about[DMS_NOTICE_SIZE + 64];
    dms_run_map map = {0};
    char *path = dms_path_join(folder, "report.html");
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    notice[0] = 0;
    if (dms_run_map_open(&map, folder)) {
        snprintf(notice, DMS_NOTICE_SIZE, "%s", dms_error_message());
        snprintf(about, sizeof(about), "No map of heads, and no sample: %s.", notice);
    } else {
        describe(about, sizeof(about), &map);
    }
    const dms_report_run report = {.folder = folder,
                                   .ratios = map.ratio,
                                   .layers = map.layers,
                                   .kv_heads = map.kv_heads,
                                   .ratios_note = about,
                                   .tokens = (const char *const *)map.sample.tokens,
                                   .fractions = map.sample.fractions,
                                   .n_tokens = map.sample.n,
                                   .origin = {.command = command, .date = dms_lines_date(date)}};
    const dms_status status = dms_report_run_write(path, &report);
    dms_run_map_close(&map);
    free(path);
    return status;
}
