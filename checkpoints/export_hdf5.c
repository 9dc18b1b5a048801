#include <stdlib.h>
#include <string.h>

#include "checkpoints/export.h"
#include "checkpoints/huggingface.h"
#include "checkpoints/source_build.h"

static dms_status put_text(dms_checkpoint_writer *w, const char *name, const char *text)
{
    return text ? dms_checkpoint_put_text(w, name, text, strlen(text)) : DMS_OK;
}

static dms_status put_config(dms_checkpoint_writer *w, const json_t *config)
{
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    if (!text)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the checkpoint's config");
    const dms_status status = put_text(w, "config", text);
    free(text);
    return status;
}

/* Where the model comes from, which only our own checkpoints know. */
static dms_status put_origin(dms_checkpoint_writer *w, const dms_checkpoint *c)
{
    static const char *const texts[] = {"teacher_path", "teacher_hash", "run_config"};
    const char *name;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        DMS_TRY(put_text(w, texts[i], dms_checkpoint_text(c, texts[i], NULL)));
    for (int i = 0; (name = dms_checkpoint_number_name(c, i)); i++) {
        int64_t n = 0;
        double x = 0;
        if (!strcmp(name, "version"))
            continue;
        if (dms_checkpoint_int(c, name, &n))
            DMS_TRY(dms_checkpoint_put_int(w, name, n));
        else if (dms_checkpoint_real(c, name, &x))
            DMS_TRY(dms_checkpoint_put_real(w, name, x));
    }
    return DMS_OK;
}

static dms_status put_texts(dms_checkpoint_writer *w, const dms_export *e, const json_t *config)
{
    size_t length = 0;
    const char *tokenizer = dms_source_tokenizer(e->source, &length);
    DMS_TRY(put_config(w, config));
    if (tokenizer)
        DMS_TRY(dms_checkpoint_put_text(w, "tokenizer", tokenizer, length));
    DMS_TRY(put_text(w, "chat_template", dms_source_chat_template(e->source)));
    for (int i = 0; i < DMS_HF_CARRIED; i++)
        DMS_TRY(put_text(w, dms_hf_carried[i], dms_source_text(e->source, dms_hf_carried[i])));
    return e->checkpoint ? put_origin(w, e->checkpoint) : DMS_OK;
}

static dms_status put_tensors(dms_checkpoint_writer *w, const dms_tensor_set *set)
{
    dms_status status = DMS_OK;
    void *buffer = dms_tensor_set_buffer(set);
    if (!buffer)
        return DMS_ERR_NOMEM;
    for (int64_t i = 0; i < set->count; i++) {
        DMS_TRY_OR(done, dms_tensor_set_fetch(set, i, buffer));
        DMS_TRY_OR(done, dms_checkpoint_put_entry(w, "weights", &set->entries[i], buffer));
    }
done:
    free(buffer);
    return status;
}

static dms_status check_written(const char *path, dms_export *e)
{
    dms_source *back = NULL;
    const dms_tensor_set set = dms_export_set(e);
    DMS_TRY(dms_source_open(&back, path));
    const dms_status status = dms_source_compare(back, &set);
    dms_source_close(back);
    return status;
}

dms_status dms_export_write_hdf5(dms_export *e, const dms_export_hdf5 *options)
{
    dms_checkpoint_writer *w = NULL;
    dms_status status = DMS_OK;
    const char *made;
    const dms_tensor_set set = dms_export_set(e);
    DMS_TRY(dms_path_check_target(options->path, options->force));
    DMS_TRY(dms_checkpoint_writer_open(&w, options->path));
    if (options->compress)
        dms_checkpoint_writer_compress(w);
    DMS_TRY_OR(failed, put_texts(w, e, options->config));
    DMS_TRY_OR(failed, put_tensors(w, &set));
    DMS_TRY_OR(failed, dms_checkpoint_writer_finish(&made, w));
    DMS_TRY_OR(failed, check_written(made, e));
    return dms_checkpoint_writer_commit(w);
failed:
    dms_checkpoint_writer_abort(w);
    return status;
}
