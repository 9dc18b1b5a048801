#include "train/objective.h"

#include <stdlib.h>

struct dms_objective {
    dms_objective_options options;
    dms_device *device;
    dms_tape *student, *teacher;
    dms_arena memory; /* of the tensors below */
    dms_tensor ids, positions;
    dms_tensor weight;                   /* [B*T]: 1/n_counted where a token counts, else 0 */
    dms_tensor decisions;                /* [L, B, G, T] */
    dms_tensor compress, frac, pressure; /* [B] */
    dms_var *kl;                         /* of the current step, [B*T] */
    float *host;                         /* [B*T] */
    size_t bytes;                        /* of device memory that a step uses */
};

static dms_status place_inputs(dms_objective *o, dms_arena *arena)
{
    const dms_config *c = &o->options.student->config;
    const int64_t batch = o->options.batch, context = o->options.context;
    o->ids = o->positions = (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {batch, context}};
    o->weight = (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {batch * context}};
    o->decisions = (dms_tensor){
        .dtype = DMS_F32, .rank = 4, .shape = {c->layers, batch, c->kv_heads, context}};
    o->compress = o->frac = o->pressure =
        (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {batch}};
    dms_tensor *const all[] = {&o->ids,      &o->positions, &o->weight,  &o->decisions,
                               &o->compress, &o->frac,      &o->pressure};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        DMS_TRY(dms_arena_place(arena, all[i]));
    return DMS_OK;
}

/* Positions are 0..T-1 in every sequence. */
static dms_status upload_positions(dms_objective *o)
{
    const int64_t n = dms_count(&o->positions);
    int32_t *host = (int32_t *)o->host;
    for (int64_t i = 0; i < n; i++)
        host[i] = (int32_t)(i % o->options.context);
    return o->device->upload(o->device, o->positions.data, host, (size_t)n * sizeof(int32_t));
}

/* The teacher: the original model, gate off, channel intact. Returns its hidden states. */
static dms_var *run_teacher(dms_objective *o, dms_tape *tape)
{
    const dms_pass pass = {.tape = tape,
                           .model = o->options.teacher,
                           .ids = &o->ids,
                           .positions = &o->positions,
                           .replay = true,
                           .attend = dms_attend_dense};
    return dms_transformer_forward(&pass);
}

static void run_student(dms_objective *o, dms_tape *tape, const dms_tensor *teacher_x,
                        const dms_micro_batch *batch)
{
    const dms_objective_options *p = &o->options;
    dms_soft_context soft = {.noise = batch->noise,
                             .injected = batch->injected,
                             .decisions = &o->decisions,
                             .pressure = &o->pressure};
    const dms_pass pass = {.tape = tape,
                           .model = p->student,
                           .ids = &o->ids,
                           .positions = &o->positions,
                           .gated = true,
                           .keep = batch->stage.keep,
                           .replay = p->replay,
                           .attend = batch->stage.fading ? dms_attend_dense : dms_attend_soft,
                           .context = &soft};
    const dms_distill_spec spec = {.teacher_x = teacher_x,
                                   .teacher_w = &p->teacher->head->value,
                                   .weight = &o->weight,
                                   .direction = p->direction};
    o->kl = dms_ad_distill(tape, dms_transformer_forward(&pass), p->student->head, &spec);
}

static dms_tape_options tape_options(const dms_objective *o, bool recording, bool measure)
{
    return (dms_tape_options){.device = o->device,
                              .max_nodes = dms_transformer_nodes(o->options.student),
                              .recording = recording,
                              .measure = measure};
}

/* Walks one step on measuring tapes and opens real ones of that size. */
static dms_status open_tapes(dms_objective *o)
{
    dms_status status = DMS_OK;
    dms_tape_options student = tape_options(o, true, true), teacher = tape_options(o, false, true);
    dms_tape *measure_student = NULL, *measure_teacher = NULL;
    DMS_TRY_OR(done, dms_tape_open(&measure_student, &student));
    DMS_TRY_OR(done, dms_tape_open(&measure_teacher, &teacher));
    dms_var *hidden = run_teacher(o, measure_teacher);
    DMS_TRY_OR(done, dms_tape_status(measure_teacher));
    run_student(o, measure_student, &hidden->value, &(dms_micro_batch){0});
    DMS_TRY_OR(done, dms_tape_backward(measure_student, NULL, NULL));
    dms_tape_peak(measure_student, &student.keep_bytes, &student.scratch_bytes);
    dms_tape_peak(measure_teacher, &teacher.keep_bytes, &teacher.scratch_bytes);
    student.measure = teacher.measure = false;
    o->bytes = o->memory.size + student.keep_bytes + student.scratch_bytes + teacher.keep_bytes +
               teacher.scratch_bytes;
    DMS_TRY_OR(done, dms_tape_open(&o->student, &student));
    DMS_TRY_OR(done, dms_tape_open(&o->teacher, &teacher));
done:
    dms_tape_close(measure_student);
    dms_tape_close(measure_teacher);
    if (status == DMS_ERR_NOMEM)
        dms_trail_note("for a training step");
    return status;
}

static dms_status open_parts(dms_objective *o)
{
    dms_arena measure = dms_arena_measure(o->device);
    DMS_TRY(place_inputs(o, &measure));
    DMS_TRY(dms_arena_open(&o->memory, o->device, measure.peak));
    DMS_TRY(place_inputs(o, &o->memory));
    o->host = malloc(dms_tensor_bytes(&o->weight));
    if (!o->host)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the inputs of a step");
    DMS_TRY(upload_positions(o));
    return open_tapes(o);
}

dms_status dms_objective_open(dms_objective **out, const dms_objective_options *options)
{
    dms_objective *o = calloc(1, sizeof(*o));
    if (!o)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the objective");
    o->options = *options;
    o->device = options->student->device;
    const dms_status status = open_parts(o);
    if (status) {
        dms_objective_close(o);
        return status;
    }
    *out = o;
    return DMS_OK;
}

void dms_objective_close(dms_objective *o)
{
    if (!o)
        return;
    dms_tape_close(o->student);
    dms_tape_close(o->teacher);
    dms_arena_close(&o->memory);
    free(o->host);
    free(o);
}

size_t dms_objective_bytes(const dms_objective *o)
{
    return o->bytes;
}

int64_t dms_objective_counted(const dms_objective *o, const int32_t *ids, int64_t n)
{
    int64_t counted = 0;
    for (int64_t i = 0; i < n; i++)
        counted += !dms_config_is_eos(&o->options.student->config, ids[i]);
    return counted;
}

static dms_status upload_batch(dms_objective *o, const dms_micro_batch *batch)
{
    const int64_t n = dms_count(&o->ids);
    const float share = batch->n_counted ? 1.0f / (float)batch->n_counted : 0.0f;
    for (int64_t i = 0; i < n; i++)
        o->host[i] = dms_config_is_eos(&o->options.student->config, batch->ids[i]) ? 0 : share;
    DMS_TRY(o->device->upload(o->device, o->ids.data, batch->ids, dms_tensor_bytes(&o->ids)));
    return o->device->upload(o->device, o->weight.data, o->host, dms_tensor_bytes(&o->weight));
}

static dms_status compress(dms_objective *o, const dms_micro_batch *batch)
{
    const dms_compression_out out = {&o->compress, &o->frac, &o->pressure};
    return dms_compression(&out, &o->decisions, batch->stage.target,
                           o->options.lambda / (float)batch->n_sequences);
}

/* Sum of a small tensor, read back. */
static dms_status sum_of(double *out, dms_objective *o, const dms_tensor *t)
{
    DMS_TRY(o->device->download(o->device, o->host, t->data, dms_tensor_bytes(t)));
    *out = 0;
    for (int64_t i = 0; i < dms_count(t); i++)
        *out += (double)o->host[i];
    return DMS_OK;
}

static dms_status add_losses(dms_objective *o, const dms_micro_batch *batch, dms_losses *losses)
{
    double kl = 0, missed = 0, frac = 0;
    DMS_TRY(sum_of(&kl, o, &o->kl->value));
    if (!batch->stage.fading) {
        DMS_TRY(sum_of(&missed, o, &o->compress));
        DMS_TRY(sum_of(&frac, o, &o->frac));
    }
    losses->kl += batch->n_counted ? kl / (double)batch->n_counted : 0;
    losses->compress += missed / (double)batch->n_sequences;
    losses->evicted += frac / (double)batch->n_sequences;
    return DMS_OK;
}

dms_status dms_objective_run(dms_objective *o, const dms_micro_batch *batch, dms_losses *losses)
{
    dms_tape_reset(o->teacher);
    dms_tape_reset(o->student);
    DMS_TRY(upload_batch(o, batch));
    dms_var *hidden = run_teacher(o, o->teacher);
    DMS_TRY(dms_tape_status(o->teacher));
    run_student(o, o->student, &hidden->value, batch);
    DMS_TRY(dms_tape_status(o->student));
    if (!batch->stage.fading)
        DMS_TRY(compress(o, batch));
    DMS_TRY(dms_tape_backward(o->student, NULL, NULL));
    return add_losses(o, batch, losses);
}
