#include "train/state.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/files.h"
#include "checkpoints/huggingface.h"
#include "kernels/bf16.h"

static dms_status path_in(char out[DMS_PATH_SIZE], const char *folder, const char *name)
{
    if (snprintf(out, DMS_PATH_SIZE, "%s/%s", folder, name) >= DMS_PATH_SIZE)
        return dms_fail(DMS_ERR_ARG, "run.folder %s is too long, expected under 480 characters",
                        folder);
    return DMS_OK;
}

void dms_state_arithmetic(char out[DMS_ARITHMETIC_SIZE], const dms_model *student)
{
    const dms_device *dev = student->device;
    const char *tf32 = getenv("DMS_TF32"); /* as in kernels/cuda/gemm.h */
    snprintf(out, DMS_ARITHMETIC_SIZE, "%s in %s%s", dev->name,
             student->matrix_type == DMS_BF16 ? "bf16" : "f32",
             dev->kind != DMS_CPU && tf32 && !strcmp(tf32, "1") ? ", TF32" : "");
}

/* config.json of the retrofitted model: the teacher's keys and the gate's. */
static dms_status put_config(dms_checkpoint_writer *w, const dms_state *s)
{
    dms_status status = DMS_OK;
    char *text = NULL;
    json_t *keys = json_deep_copy(dms_source_config(s->teacher));
    if (!keys)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the checkpoint's config");
    if (s->dropped || s->student->gate.kind == DMS_GATE_ADAPTER)
        DMS_TRY_OR(done, dms_gate_write(keys, &s->student->gate, s->cr));
    text = json_dumps(keys, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    if (!text)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for the checkpoint's config"));
    DMS_TRY_OR(done, dms_checkpoint_put_text(w, "config", text, strlen(text)));
done:
    json_decref(keys);
    free(text);
    return status;
}

static dms_status put_recipe(dms_checkpoint_writer *w, const dms_recipe *recipe)
{
    dms_status status = DMS_OK;
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the checkpoint's recipe");
    status = dms_recipe_write(recipe, out);
    if (fclose(out) && !status)
        status = dms_fail(DMS_ERR_NOMEM, "no memory for the checkpoint's recipe");
    if (!status)
        status = dms_checkpoint_put_text(w, "run_config", text, length);
    free(text);
    return status;
}

static dms_status put_texts(dms_checkpoint_writer *w, const dms_state *s, int64_t step)
{
    size_t length = 0;
    char arithmetic[DMS_ARITHMETIC_SIZE];
    const char *tokenizer = dms_source_tokenizer(s->teacher, &length);
    const char *template = dms_source_chat_template(s->teacher);
    char *absolute = realpath(s->recipe->model.path, NULL);
    const char *path = absolute ? absolute : s->recipe->model.path;
    const dms_status status = dms_checkpoint_put_text(w, "teacher_path", path, strlen(path));
    free(absolute);
    DMS_TRY(status);
    DMS_TRY(put_config(w, s));
    if (tokenizer)
        DMS_TRY(dms_checkpoint_put_text(w, "tokenizer", tokenizer, length));
    if (template)
        DMS_TRY(dms_checkpoint_put_text(w, "chat_template", template, strlen(template)));
    for (int i = 0; i < DMS_HF_CARRIED; i++) {
        const char *text = dms_source_text(s->teacher, dms_hf_carried[i]);
        if (text)
            DMS_TRY(dms_checkpoint_put_text(w, dms_hf_carried[i], text, strlen(text)));
    }
    DMS_TRY(dms_checkpoint_put_text(w, "teacher_hash", s->teacher_hash, strlen(s->teacher_hash)));
    DMS_TRY(put_recipe(w, s->recipe));
    dms_state_arithmetic(arithmetic, s->student);
    DMS_TRY(dms_checkpoint_put_text(w, "arithmetic", arithmetic, strlen(arithmetic)));
    DMS_TRY(dms_checkpoint_put_int(w, "shift", 1));
    DMS_TRY(dms_checkpoint_put_int(w, "dropped", s->dropped));
    return dms_checkpoint_put_int(w, "step", step);
}

static dms_status put_tensor(dms_checkpoint_writer *w, const char *group, const char *name,
                             const dms_tensor *t, void *staging)
{
    DMS_TRY(t->device->download(t->device, staging, t->data, dms_tensor_bytes(t)));
    return dms_checkpoint_put_tensor(w, group, name, t->dtype, t->rank, t->shape, staging);
}

/* The part of a flat buffer that belongs to a trained weight, in the weight's shape. */
static dms_tensor flat_view(const dms_tensor *flat, const struct dms_trained *t)
{
    dms_tensor view = t->weight->var->value;
    view.dtype = DMS_F32;
    view.data = (float *)flat->data + t->offset;
    return view;
}

static const char *const flat_groups[] = {"masters", "adam_m", "adam_v"};

static void flat_buffers(const dms_tensor *out[3], const dms_optimizer *o)
{
    out[0] = &o->master;
    out[1] = &o->m;
    out[2] = &o->v;
}

/* Where a weight of the student is trained; NULL where it is frozen. */
static const struct dms_trained *trained_as(const dms_optimizer *o, const dms_var *var)
{
    for (int i = 0; i < o->n_trained; i++)
        if (o->trained[i].weight->var == var)
            return &o->trained[i];
    return NULL;
}

/* q_proj (or its bias) of a layer whose borrowed rows are trained apart: a file has them in their
 * place. */
static dms_status put_with_rows(dms_checkpoint_writer *w, const dms_state *s, const dms_weight *row,
                                const dms_var *rows, void *staging)
{
    const dms_tensor *q = &row->var->value;
    const dms_tensor from = flat_view(&s->optimizer->master, trained_as(s->optimizer, rows));
    const int64_t cols = q->rank == 2 ? dms_cols(q) : 1, n = dms_count(&from);
    dms_status status = DMS_OK;
    float *exact = malloc((size_t)n * sizeof(float));
    uint16_t *rounded = malloc((size_t)n * sizeof(uint16_t));
    if (!exact || !rounded)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory to save %s", row->name));
    DMS_TRY_OR(done, from.device->download(from.device, exact, from.data, dms_tensor_bytes(&from)));
    DMS_TRY_OR(done, q->device->download(q->device, staging, q->data, dms_tensor_bytes(q)));
    for (int64_t i = 0; i < n; i++)
        rounded[i] = dms_bf16_from_f32(exact[i]);
    dms_model_put_borrowed(staging, q->dtype == DMS_BF16 ? (void *)rounded : exact,
                           &s->student->config, (size_t)cols * dms_dtype_bytes(q->dtype));
    status =
        dms_checkpoint_put_tensor(w, "weights", row->name, q->dtype, q->rank, q->shape, staging);
done:
    free(exact);
    free(rounded);
    return status;
}

/* One row of the weights' table, as a model file has it. */
static dms_status put_weight(dms_checkpoint_writer *w, const dms_state *s, const dms_weight *row,
                             void *staging)
{
    const dms_layer *l = row->layer < 0 ? NULL : &s->student->layers[row->layer];
    if (l && (row->var == &l->rows || row->var == &l->rows_bias))
        return DMS_OK;
    if (l && row->var == &l->q && l->rows.value.rank)
        return put_with_rows(w, s, row, &l->rows, staging);
    if (l && row->var == &l->q_bias && l->rows_bias.value.rank)
        return put_with_rows(w, s, row, &l->rows_bias, staging);
    return put_tensor(w, "weights", row->name, &row->var->value, staging);
}

static dms_status put_tensors(dms_checkpoint_writer *w, const dms_state *s, void *staging)
{
    const dms_tensor *flat[3];
    flat_buffers(flat, s->optimizer);
    for (int i = 0; i < s->student->n_weights; i++)
        DMS_TRY(put_weight(w, s, &s->student->weights[i], staging));
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < s->optimizer->n_trained; i++) {
            const struct dms_trained *t = &s->optimizer->trained[i];
            const dms_tensor view = flat_view(flat[b], t);
            DMS_TRY(put_tensor(w, flat_groups[b], t->weight->name, &view, staging));
        }
    return DMS_OK;
}

static void *staging_for(const dms_model *model)
{
    int64_t most = 0;
    for (int i = 0; i < model->n_weights; i++) {
        const int64_t n = dms_count(&model->weights[i].var->value);
        most = n > most ? n : most;
    }
    return malloc((size_t)most * sizeof(float));
}

static dms_status write_file(const char *path, const dms_state *s, int64_t step)
{
    dms_status status = DMS_OK;
    dms_checkpoint_writer *w = NULL;
    void *staging = staging_for(s->student);
    if (!staging)
        return dms_fail(DMS_ERR_NOMEM, "no memory to save %s", path);
    DMS_TRY_OR(fail, dms_checkpoint_writer_open(&w, path));
    DMS_TRY_OR(fail, put_texts(w, s, step));
    DMS_TRY_OR(fail, put_tensors(w, s, staging));
    free(staging);
    return dms_checkpoint_writer_commit(w);
fail:
    dms_checkpoint_writer_abort(w);
    free(staging);
    return status;
}

/* `latest` is a link that is replaced whole, so that it always names a complete file. */
static dms_status point_latest(const char *folder, const char *target)
{
    char link[DMS_PATH_SIZE], temporary[DMS_PATH_SIZE];
    DMS_TRY(path_in(link, folder, "latest"));
    DMS_TRY(path_in(temporary, folder, "latest.tmp"));
    unlink(temporary);
    if (symlink(target, temporary) || rename(temporary, link))
        return dms_fail(DMS_ERR_IO, "%s cannot be made to point to %s: %s", link, target,
                        strerror(errno));
    return dms_folder_sync(folder);
}

/* Which files stay whatever their age. */
typedef struct {
    dms_kept_fn *is_kept; /* or NULL */
    const void *context;
} kept_rule;

static int newest_first(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Steps of the checkpoints in a folder, newest first; their number, at most `room`. */
static int list_steps(int64_t *steps, int room, const char *folder)
{
    int n = 0;
    DIR *dir = opendir(folder);
    if (!dir)
        return 0;
    for (const struct dirent *entry; (entry = readdir(dir)) && n < room;) {
        int used = 0;
        if (sscanf(entry->d_name, "step-%" SCNd64 ".h5%n", &steps[n], &used) == 1 && used &&
            !entry->d_name[used])
            n++;
    }
    closedir(dir);
    qsort(steps, (size_t)n, sizeof(*steps), newest_first);
    return n;
}

/* Removes all files up to `newest` but the last `keep` and those that are kept for good. */
static void prune(const char *folder, int64_t newest, int64_t keep, const kept_rule *rule)
{
    enum { ROOM = 4096 };
    static int64_t steps[ROOM];
    char path[DMS_PATH_SIZE + 32];
    const int n = list_steps(steps, ROOM, folder);
    for (int i = 0, passed = 0; i < n; i++) {
        if (steps[i] > newest || passed++ < keep ||
            (rule->is_kept && rule->is_kept(rule->context, steps[i])))
            continue;
        snprintf(path, sizeof(path), "%s/step-%06" PRId64 ".h5", folder, steps[i]);
        unlink(path);
    }
}

dms_status dms_state_save(char path[DMS_PATH_SIZE], const dms_state *state, int64_t step,
                          dms_kept_fn *is_kept, const void *context)
{
    char folder[DMS_PATH_SIZE], name[64];
    DMS_TRY(path_in(folder, state->recipe->run.folder, "checkpoints"));
    snprintf(name, sizeof(name), "checkpoints/step-%06" PRId64 ".h5", step);
    DMS_TRY(path_in(path, state->recipe->run.folder, name));
    DMS_TRY(write_file(path, state, step));
    DMS_TRY(point_latest(state->recipe->run.folder, name));
    prune(folder, step, state->recipe->run.keep, &(kept_rule){is_kept, context});
    return DMS_OK;
}

static int64_t count_masters(const dms_checkpoint *c)
{
    int64_t n = 0;
    for (int64_t i = 0; i < dms_checkpoint_count(c); i++)
        n += !strcmp(dms_checkpoint_info(c, i)->group, "masters");
    return n;
}

static dms_status check_origin(const dms_checkpoint *c, const dms_state *s, const char *path)
{
    const char *hash = dms_checkpoint_text(c, "teacher_hash", NULL);
    if (!hash || strcmp(hash, s->teacher_hash) != 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s was trained from another model than %s; give the same model.path or "
                        "another run.folder",
                        path, s->recipe->model.path);
    if (count_masters(c) != s->optimizer->n_trained)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s trains %lld tensors, this recipe %d; give the same dms.gate and "
                        "optim.train or another run.folder",
                        path, (long long)count_masters(c), s->optimizer->n_trained);
    for (int i = 0; i < s->optimizer->n_trained; i++)
        if (!dms_checkpoint_find(c, "masters", s->optimizer->trained[i].weight->name))
            return dms_fail(DMS_ERR_FORMAT,
                            "%s does not train %s; give the same dms.gate and optim.train or "
                            "another run.folder",
                            path, s->optimizer->trained[i].weight->name);
    return DMS_OK;
}

/* A checkpoint without its recipe is as good as one with the same. */
static dms_status check_recipe(const dms_checkpoint *c, dms_state *s, const char *path)
{
    size_t length = 0;
    dms_recipe before = dms_recipe_defaults();
    const char *text = dms_checkpoint_text(c, "run_config", &length);
    if (!text)
        return DMS_OK;
    DMS_TRY(dms_recipe_parse(&before, text, length, path));
    if (!dms_recipe_same_data(s->recipe, &before))
        dms_recipe_data_text(s->data_before, &before);
    return dms_recipe_continues(s->recipe, &before);
}

static dms_status read_buffers(const dms_checkpoint *c, const dms_state *s, void *staging)
{
    const dms_tensor *flat[3];
    flat_buffers(flat, s->optimizer);
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < s->optimizer->n_trained; i++) {
            const struct dms_trained *t = &s->optimizer->trained[i];
            const dms_tensor view = flat_view(flat[b], t);
            DMS_TRY(dms_checkpoint_read(c, flat_groups[b], t->weight->name, DMS_F32, t->count,
                                        staging));
            DMS_TRY(view.device->upload(view.device, view.data, staging, dms_tensor_bytes(&view)));
        }
    return dms_optimizer_refresh(s->optimizer);
}

static dms_status load_from(int64_t *step, const char *path, dms_state *s)
{
    dms_status status = DMS_OK;
    dms_checkpoint *c = NULL;
    int64_t saved = 0, dropped = 0;
    void *staging = staging_for(s->student);
    if (!staging)
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", path);
    DMS_TRY_OR(done, dms_checkpoint_open(&c, path));
    DMS_TRY_OR(done, dms_checkpoint_verify(c));
    DMS_TRY_OR(done, check_origin(c, s, path));
    DMS_TRY_OR(done, check_recipe(c, s, path));
    if (!dms_checkpoint_int(c, "step", &saved) || saved < 0)
        DMS_TRY_OR(
            done, dms_fail(DMS_ERR_FORMAT, "%s has no step, expected a training checkpoint", path));
    DMS_TRY_OR(done, read_buffers(c, s, staging));
    s->dropped = dms_checkpoint_int(c, "dropped", &dropped) && dropped;
    const char *before = dms_checkpoint_text(c, "arithmetic", NULL);
    snprintf(s->before, sizeof(s->before), "%s", before ? before : "");
    *step = saved;
done:
    dms_checkpoint_close(c);
    free(staging);
    return status;
}

dms_status dms_state_load(int64_t *step, dms_state *state)
{
    char link[DMS_PATH_SIZE];
    struct stat info;
    *step = 0;
    DMS_TRY(path_in(link, state->recipe->run.folder, "latest"));
    if (lstat(link, &info))
        return DMS_OK;
    const dms_status status = load_from(step, link, state);
    if (status)
        dms_trail_note("resuming %s; point the link to an older file in checkpoints, or give "
                       "another run.folder to start anew",
                       link);
    return status;
}
