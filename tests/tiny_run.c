#include "tests/tiny_run.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_reader.h"
#include "tests/fixtures.h"

float tiny_run_setting(const tiny_run *r, const char *name)
{
    const char *text = dms_source_text(r->steps, name);
    cr_assert(text, "the fixture's metadata has no %s", name);
    return strtof(text, NULL);
}

static dms_model_options options_of(const tiny_run *r, dms_dtype type)
{
    dms_model_options o = {.device = r->device, .matrix_type = type, .positions = r->context};
    must(dms_config_parse(&o.config, dms_source_config(r->model)));
    return o;
}

/* Rows that are apart are no tensors of the file. */
static bool is_file_weight(const dms_weight *w, const void *context)
{
    (void)context;
    return w->role != DMS_ROLE_GATE;
}

static void open_models(tiny_run *r, const tiny_options *t)
{
    const dms_reader reader = dms_source_reader(r->model);
    dms_model_options o = options_of(r, t->type);
    must(dms_model_open(&r->teacher, &o));
    must(dms_model_allocate(r->teacher));
    must(dms_model_read(r->teacher, &reader, &(dms_read_options){0}));
    o.gate = (dms_gate){.kind = DMS_GATE_NEURON,
                        .window = (int64_t)tiny_run_setting(r, "window"),
                        .alpha_scale = tiny_run_setting(r, "alpha_scale"),
                        .alpha_offset = tiny_run_setting(r, "alpha_offset"),
                        .tau = tiny_run_setting(r, "tau")};
    o.rows_apart = t->set == DMS_TRAIN_GATE;
    must(dms_model_open(&r->student, &o));
    must(dms_optimizer_open(&r->optimizer, r->student, t->set));
    must(dms_model_allocate(r->student));
    must(dms_model_read(r->student, &reader, &(dms_read_options){is_file_weight, NULL, true}));
    must(dms_optimizer_read(&r->optimizer, r->student, &reader));
}

tiny_run tiny_run_open(const tiny_options *t)
{
    return tiny_run_open_on(rig_device(), t);
}

tiny_run tiny_run_open_on(dms_device_kind kind, const tiny_options *t)
{
    tiny_run r = {0};
    char path[1024], relative[256];
    snprintf(relative, sizeof(relative), "tiny/%s", t->family);
    r.device = rig_open_device(kind, 2);
    must(dms_source_open(&r.model, fixture(path, relative)));
    snprintf(relative, sizeof(relative), "tiny/%s/steps_neuron.safetensors", t->family);
    must(dms_source_open(&r.steps, fixture(path, relative)));
    const dms_tensor_info *ids = dms_source_find(r.steps, "step0.mb0.ids");
    r.batch = ids->shape[0];
    r.context = ids->shape[1];
    open_models(&r, t);
    must(dms_objective_open(&r.objective, &(dms_objective_options){.student = r.student,
                                                                   .teacher = r.teacher,
                                                                   .batch = r.batch,
                                                                   .context = r.context,
                                                                   .replay = t->replay,
                                                                   .lambda = 1}));
    return r;
}

void tiny_run_close(tiny_run *r)
{
    dms_objective_close(r->objective);
    dms_model_close(r->student);
    dms_optimizer_close(&r->optimizer);
    dms_model_close(r->teacher);
    dms_source_close(r->model);
    dms_source_close(r->steps);
    r->device->close(r->device);
}

/* Reads a tensor of the steps file onto the device. */
static dms_tensor upload(tiny_run *r, dms_arena *arena, const char *name)
{
    const dms_tensor_info *info = dms_source_find(r->steps, name);
    dms_tensor t = {.dtype = DMS_F32, .rank = info->rank};
    memcpy(t.shape, info->shape, sizeof(t.shape));
    float *host = malloc((size_t)dms_count(&t) * sizeof(float));
    must(dms_arena_place(arena, &t));
    must(dms_source_read(r->steps, name, host, DMS_F32));
    must(r->device->upload(r->device, t.data, host, dms_tensor_bytes(&t)));
    free(host);
    return t;
}

static void micro_batch(tiny_run *r, dms_arena *arena, int step, int mb, float target,
                        dms_losses *losses)
{
    char name[64];
    int32_t ids[4096];
    snprintf(name, sizeof(name), "step%d.mb%d.noise", step, mb);
    const dms_tensor noise = upload(r, arena, name);
    snprintf(name, sizeof(name), "step%d.mb%d.ids", step, mb);
    must(dms_source_read(r->steps, name, ids, DMS_I32));
    const dms_micro_batch batch = {.ids = ids,
                                   .n_counted = 2 * r->batch * r->context,
                                   .n_sequences = 2 * r->batch,
                                   .stage = {.target = target},
                                   .injected = &noise};
    must(dms_objective_run(r->objective, &batch, losses));
}

static dms_adamw_spec adamw_of(const tiny_run *r, int64_t step)
{
    float beta2 = 0;
    const char *betas = dms_source_text(r->steps, "betas");
    dms_adamw_spec spec = {.lr = tiny_run_setting(r, "lr"),
                           .eps = tiny_run_setting(r, "eps"),
                           .clip = tiny_run_setting(r, "clip"),
                           .weight_decay = tiny_run_setting(r, "weight_decay"),
                           .step = step};
    cr_assert_eq(sscanf(betas, "%f,%f", &spec.beta1, &beta2), 2);
    spec.beta2 = beta2;
    return spec;
}

float tiny_run_step(tiny_run *r, const step_plan *plan, dms_losses *losses)
{
    dms_arena arena = {0};
    float norm = 0;
    must(dms_arena_open(&arena, r->device, 1 << 20));
    must(dms_optimizer_zero(&r->optimizer));
    for (int mb = 0; mb < 2; mb++)
        micro_batch(r, &arena, plan->batch, mb, plan->target, losses);
    must(dms_optimizer_norm(&norm, &r->optimizer));
    dms_adamw_spec spec = adamw_of(r, plan->update);
    spec.lr = plan->lr;
    must(dms_optimizer_step(&r->optimizer, &spec));
    dms_arena_close(&arena);
    return norm;
}
