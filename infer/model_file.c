#include "infer/model_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_reader.h"
#include "data/tokenizer.h"

enum { DEFAULT_POSITIONS = 8192 };

dms_status dms_compute_from_name(dms_compute *out, const char *name)
{
    static const char *const names[] = {"auto", "f32", "bf16"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, names[i])) {
            *out = (dms_compute)i;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_ARG, "dtype is \"%s\", expected auto, f32 or bf16", name);
}

/* The gate of the config's keys, if the file does not contradict it. */
static dms_status read_gate(dms_gate *out, const dms_source *source,
                            const dms_model_file_options *options)
{
    double shift = 1;
    int rank;
    int64_t shape[DMS_MAX_RANK];
    const dms_reader reader = dms_source_reader(source);
    *out = dms_gate_defaults();
    if (options->without_gate)
        return DMS_OK;
    DMS_TRY(dms_gate_parse(out, dms_source_config(source)));
    const bool known = dms_source_number(source, "shift", &shift) && shift == 1;
    if (shift != 1)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: decisions govern the token %g back, expected 1: another convention",
                        options->path, shift);
    if (known && options->shift_given && options->shift != 1)
        return dms_fail(DMS_ERR_ARG, "--dms-shift is 0, but %s was trained with 1", options->path);
    DMS_TRY(dms_gate_settle(out, options->shift_given ? options->shift : -1));
    if (out->kind != DMS_GATE_ADAPTER &&
        reader.find(source, "model.layers.0.self_attn.dms_proj_alpha.weight", &rank, shape))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s has tensors dms_proj_alpha but its config does not say "
                        "dms_separate_alpha: true with a dms_window_size",
                        options->path);
    return DMS_OK;
}

/* The model without memory: every weight is in the file, in its shape. */
static dms_status open_table(dms_model **out, const dms_source *source,
                             const dms_model_file_options *options)
{
    const bool fast = options->device && options->device->has_bf16;
    const bool bf16 =
        options->compute == DMS_COMPUTE_BF16 || (options->compute == DMS_COMPUTE_AUTO && fast);
    dms_model_options o = {.device = options->device,
                           .matrix_type = bf16 ? DMS_BF16 : DMS_F32,
                           .positions = options->positions};
    DMS_TRY(dms_config_parse(&o.config, dms_source_config(source)));
    DMS_TRY(read_gate(&o.gate, source, options));
    if (!o.positions)
        o.positions =
            o.config.max_positions < DEFAULT_POSITIONS ? o.config.max_positions : DEFAULT_POSITIONS;
    DMS_TRY(dms_model_open(out, &o));
    const dms_reader reader = dms_source_reader(source);
    return dms_model_check(*out, &reader, false);
}

static dms_status open_model(dms_model_file *f, const dms_source *source,
                             const dms_model_file_options *options)
{
    const dms_reader reader = dms_source_reader(source);
    DMS_TRY(open_table(&f->model, source, options));
    DMS_TRY(dms_model_allocate(f->model));
    return dms_model_read(f->model, &reader, &(dms_read_options){0});
}

static dms_status copy_text(char **out, const char *text)
{
    if (!text)
        return DMS_OK;
    *out = strdup(text);
    return *out ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for a text of the model file");
}

static dms_status copy_texts(dms_model_file *f, const dms_source *source)
{
    const json_t *ratio = json_object_get(dms_source_config(source), "dms_cr");
    f->compression = json_is_number(ratio) ? json_number_value(ratio) : 0;
    snprintf(f->format, sizeof(f->format), "%s", dms_source_format(source));
    DMS_TRY(copy_text(&f->chat_template, dms_source_chat_template(source)));
    DMS_TRY(copy_text(&f->generation_config, dms_source_text(source, "generation_config.json")));
    return copy_text(&f->teacher_path, dms_source_text(source, "teacher_path"));
}

static dms_status open_tokenizer(dms_model_file *f, const dms_source *source, const char *path)
{
    size_t length = 0;
    const char *text = dms_source_tokenizer(source, &length);
    if (!text)
        return dms_fail(DMS_ERR_FORMAT, "%s has no tokenizer; put the model's tokenizer.json there",
                        path);
    return dms_tokenizer_open(&f->tokenizer, text, length, path);
}

static dms_status expect_config(const dms_source *source, const dms_model_file_options *options)
{
    if (!dms_source_config(source))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s (%s) has no config, expected a Hugging Face folder with config.json, a "
                        "GGUF file or a checkpoint of dms-train",
                        options->path, dms_source_format(source));
    return dms_source_expect_model(source);
}

static dms_status fill(dms_model_file *f, const dms_source *source,
                       const dms_model_file_options *options)
{
    DMS_TRY(expect_config(source, options));
    DMS_TRY(copy_texts(f, source));
    if (!options->without_tokenizer)
        DMS_TRY(open_tokenizer(f, source, options->path));
    return open_model(f, source, options);
}

dms_status dms_model_file_open(dms_model_file **out, const dms_model_file_options *options)
{
    dms_source *source = NULL;
    DMS_TRY(dms_source_open(&source, options->path));
    dms_model_file *f = calloc(1, sizeof(*f));
    dms_status status = f ? fill(f, source, options)
                          : dms_fail(DMS_ERR_NOMEM, "no memory to open %s", options->path);
    dms_source_close(source);
    if (status) {
        dms_trail_note("model %s", options->path);
        dms_model_file_close(f);
        return status;
    }
    *out = f;
    return DMS_OK;
}

dms_status dms_model_file_check(const dms_source *source, const dms_model_file_options *options)
{
    dms_model *model = NULL;
    dms_status status = expect_config(source, options);
    if (!status)
        status = open_table(&model, source, options);
    dms_model_close(model);
    if (status)
        dms_trail_note("model %s", options->path);
    return status;
}

void dms_model_file_close(dms_model_file *file)
{
    if (!file)
        return;
    dms_model_close(file->model);
    if (file->tokenizer)
        dms_tokenizer_close(file->tokenizer);
    free(file->chat_template);
    free(file->generation_config);
    free(file->teacher_path);
    free(file);
}

const char *dms_model_file_limit(const dms_model_file *file)
{
    const dms_model *m = file->model;
    return m->rope_table.shape[0] < m->config.max_positions ? "--ctx N makes it longer"
                                                            : "it is the longest the model has";
}
