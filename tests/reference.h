/* A model's folder, and a file of what the reference computes with it. */
#ifndef DMS_TEST_REFERENCE_H
#define DMS_TEST_REFERENCE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/layout.h"
#include "checkpoints/source_reader.h"
#include "model/dms.h"
#include "tests/rig.h"

typedef struct {
    dms_source *base, *file;
    int64_t B, T; /* of the file's ids */
} reference;

static inline reference reference_open(const char *base, const char *file)
{
    reference f = {0};
    must(dms_source_open(&f.base, base));
    must(dms_source_open(&f.file, file));
    const dms_tensor_info *ids = dms_source_find(f.file, "ids");
    cr_assert(ids, "%s has no ids", file);
    f.B = ids->shape[0];
    f.T = ids->shape[1];
    return f;
}

static inline void reference_close(reference *f)
{
    dms_source_close(f->base);
    dms_source_close(f->file);
}

/* ---- numbers -------------------------------------------------------------------------------- */

/* A tensor of the file, f32 or i32; the caller frees it. */
static inline void *reference_read(const reference *f, const char *name)
{
    const dms_tensor_info *info = dms_source_find(f->file, name);
    cr_assert(info, "the reference has no %s", name);
    int64_t n = 1;
    for (int i = 0; i < info->rank; i++)
        n *= info->shape[i];
    void *host = malloc((size_t)n * sizeof(float));
    must(dms_source_read(f->file, name, host, info->type == DMS_FILE_I32 ? DMS_I32 : DMS_F32));
    return host;
}

static inline float reference_setting(const reference *f, const char *name)
{
    const char *text = dms_source_text(f->file, name);
    cr_assert(text, "the reference's metadata have no %s", name);
    return strtof(text, NULL);
}

static inline dms_tensor reference_upload(const reference *f, rig *r, dms_tensor shape,
                                          const char *name)
{
    void *host = reference_read(f, name);
    const dms_tensor t = rig_upload(r, shape, host);
    free(host);
    return t;
}

/* [B, T]: 0, 1, ... in each text. */
static inline dms_tensor reference_positions(const reference *f, rig *r)
{
    int32_t *position = malloc((size_t)(f->B * f->T) * sizeof(*position));
    for (int64_t i = 0; i < f->B * f->T; i++)
        position[i] = (int32_t)(i % f->T);
    const dms_tensor t = rig_upload(r, rig_shape_i32(f->B, f->T), position);
    free(position);
    return t;
}

/* |got - want| <= atol for each of n numbers. */
static inline void reference_expect(const reference *f, const char *name, const float *got,
                                    int64_t n, double atol)
{
    float *want = reference_read(f, name);
    double worst = 0;
    int64_t where = 0;
    for (int64_t i = 0; i < n; i++) {
        const double error = fabs((double)got[i] - (double)want[i]);
        if (!(error <= worst)) {
            worst = error;
            where = i;
        }
    }
    cr_expect(worst <= atol, "%s[%lld] is %.8g, expected %.8g: off by %.3g, at most %.3g", name,
              (long long)where, (double)got[where], (double)want[where], worst, atol);
    free(want);
}

static inline void reference_expect_tensor(const reference *f, const char *name,
                                           const dms_tensor *got, double atol)
{
    float *host = rig_read(got);
    reference_expect(f, name, host, dms_count(got), atol);
    free(host);
}

/* ---- the model ------------------------------------------------------------------------------ */

/* The file's own tensor (a gate's), by our name or by that of the folder's layout; or NULL. */
static inline const dms_tensor_info *reference_own(const reference *f, const char *name)
{
    dms_layout_place place;
    const dms_tensor_info *own = dms_source_find(f->file, name);
    if (!own && dms_layout_find(&place, dms_source_config(f->base), name))
        own = dms_source_find(f->file, place.name);
    return own;
}

static inline bool reference_find(const void *context, const char *name, int *rank, int64_t *shape)
{
    const reference *f = context;
    const dms_reader base = dms_source_reader(f->base);
    const dms_tensor_info *own = reference_own(f, name);
    if (!own)
        return base.find(base.context, name, rank, shape);
    *rank = own->rank;
    memcpy(shape, own->shape, sizeof(own->shape));
    return true;
}

static inline dms_status reference_fetch(const void *context, const char *name, void *dst,
                                         dms_dtype dtype)
{
    const reference *f = context;
    const dms_reader base = dms_source_reader(f->base);
    const dms_tensor_info *own = reference_own(f, name);
    return own ? dms_source_read(f->file, own->name, dst, dtype)
               : base.read(base.context, name, dst, dtype);
}

/* "": no gate. */
static inline dms_gate reference_gate(const reference *f, const char *gate)
{
    dms_gate g = dms_gate_defaults();
    if (!gate[0])
        return g;
    must(dms_gate_from_name(&g.kind, gate));
    g.window = (int64_t)reference_setting(f, "window");
    g.alpha_scale = reference_setting(f, "alpha_scale");
    g.alpha_offset = reference_setting(f, "alpha_offset");
    g.tau = dms_source_text(f->file, "tau") ? reference_setting(f, "tau") : g.tau;
    return g;
}

/* In f32, with the gate's tensors; the caller closes it. */
static inline dms_model *reference_model(const reference *f, dms_device *dev, const char *gate)
{
    dms_model *m = NULL;
    const dms_reader reader = {f, reference_find, reference_fetch};
    dms_model_options o = {.device = dev, .matrix_type = DMS_F32, .positions = f->T};
    must(dms_config_parse(&o.config, dms_source_config(f->base)));
    o.gate = reference_gate(f, gate);
    must(dms_model_open(&m, &o));
    must(dms_model_check(m, &reader, false));
    must(dms_model_allocate(m));
    must(dms_model_read(m, &reader, &(dms_read_options){0}));
    return m;
}

static inline dms_var *reference_forward(const dms_pass *pass)
{
    dms_var *x = dms_transformer_forward(pass);
    must(dms_tape_status(pass->tape));
    return x;
}

#endif
