#include "eval/pair.h"

static dms_status open_one(dms_model_file **out, const dms_pair_options *o, const char *path,
                           bool original)
{
    return dms_model_file_open(out,
                               &(dms_model_file_options){.path = path,
                                                         .device = o->device,
                                                         .compute = o->compute,
                                                         .positions = o->positions,
                                                         .without_gate = original,
                                                         .shift_given = !original && o->shift >= 0,
                                                         .shift = o->shift,
                                                         .without_tokenizer = original});
}

static dms_status open_teacher(dms_pair *p, const dms_pair_options *o)
{
    const char *path = o->teacher ? o->teacher : p->student->teacher_path;
    if (!o->teacher && !dms_pair_is_gated(p))
        return DMS_OK;
    if (!path)
        return dms_fail(DMS_ERR_ARG,
                        "%s is retrofitted and does not say where its teacher is; name the "
                        "original model (--teacher MODEL)",
                        o->model);
    const dms_status status = open_one(&p->other, o, path, true);
    if (status && !o->teacher)
        dms_trail_note("the teacher's path is from %s; --teacher MODEL names another", o->model);
    return status;
}

dms_status dms_pair_open(dms_pair *out, const dms_pair_options *options)
{
    dms_pair p = {0};
    dms_status status = open_one(&p.student, options, options->model, false);
    if (!status)
        status = open_teacher(&p, options);
    if (status) {
        dms_pair_close(&p);
        return status;
    }
    p.teacher = p.other ? p.other->model : p.student->model;
    *out = p;
    return DMS_OK;
}

void dms_pair_close(dms_pair *pair)
{
    dms_model_file_close(pair->student);
    dms_model_file_close(pair->other);
    *pair = (dms_pair){0};
}
