/* Dense causal attention by cuDNN, its plan made once a shape and remembered by the device. */
#include "kernels/cuda/dense.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dense_graph.h"
#include "kernels/cuda/gemm.h"

/* Training has one shape, evaluation a few. */
enum { PLANS = 16 };

/* Releases before it have known faults (frontend, sdpa_support_surface), or take no infinity as a
 * mask. */
enum { OLDEST_CUDNN = 91002 };

/* What fused engines take on all architectures from 8.0 on. */
enum { WIDTH_STEP = 8, MAX_WIDTH = 256 };

typedef struct {
    bool known, usable;
    bool recorded; /* a recorded graph runs it: it must stay */
    int64_t asked; /* when it was asked for last */
    dms_dense_graph graph;
} dense_plan;

struct dms_cuda_dense {
    const dms_cudnn *api; /* NULL: no cuDNN that can be used */
    cudnnHandle_t handle;
    int64_t clock;
    dense_plan plans[PLANS];
};

static bool open_library(dms_cuda_dense *dense, cudaStream_t stream)
{
    const dms_cudnn *api = dms_cudnn_load();
    if (!api || api->GetVersion() < OLDEST_CUDNN)
        return false;
    if (api->Create(&dense->handle) != CUDNN_STATUS_SUCCESS)
        return false;
    if (api->SetStream(dense->handle, stream) != CUDNN_STATUS_SUCCESS) {
        (void)api->Destroy(dense->handle);
        return false;
    }
    dense->api = api;
    return true;
}

/* The device's plans, or NULL without cuDNN: that is found out once. */
static dms_cuda_dense *dense_of(dms_cuda_device *cuda)
{
    if (!cuda->dense && !cuda->recording) {
        cuda->dense = calloc(1, sizeof(*cuda->dense));
        if (cuda->dense)
            (void)open_library(cuda->dense, cuda->stream);
    }
    return cuda->dense && cuda->dense->api ? cuda->dense : NULL;
}

void dms_cuda_dense_close(dms_cuda_dense *dense)
{
    if (!dense)
        return;
    for (int i = 0; i < PLANS; i++)
        if (dense->plans[i].known)
            dms_dense_graph_close(&dense->plans[i].graph);
    if (dense->api)
        (void)dense->api->Destroy(dense->handle);
    free(dense);
}

static dms_dense_shape shape_of(const dms_attention_in *in)
{
    return (dms_dense_shape){in->q->shape[0], in->q->shape[1], dms_cols(in->q) / in->head_dim,
                             dms_cols(in->k) / in->head_dim, in->head_dim};
}

/* The place of a new plan: a free one, or the one not asked for the longest; NULL where recorded
 * graphs hold them all. */
static dense_plan *free_place(dms_cuda_dense *dense)
{
    dense_plan *best = NULL;
    for (int i = 0; i < PLANS; i++) {
        dense_plan *p = &dense->plans[i];
        if (!p->known)
            return p;
        if (!p->recorded && (!best || p->asked < best->asked))
            best = p;
    }
    return best;
}

static dense_plan *make_plan(dms_cuda_device *cuda, const dms_dense_shape *shape)
{
    dms_cuda_dense *dense = cuda->dense;
    dense_plan *p = cuda->recording ? NULL : free_place(dense);
    if (!p)
        return NULL;
    if (p->known) {
        (void)cudaStreamSynchronize(cuda->stream); /* its kernel may still run */
        dms_dense_graph_close(&p->graph);
    }
    *p = (dense_plan){.known = true,
                      .graph = {.api = dense->api, .handle = dense->handle, .shape = *shape}};
    p->usable = dms_dense_graph_open(&p->graph) == CUDNN_STATUS_SUCCESS;
    if (!p->usable)
        dms_dense_graph_close(&p->graph);
    (void)cudaGetLastError(); /* a refusal is no failure of the next launch */
    return p;
}

/* NULL where cuDNN cannot serve the shape. */
static dense_plan *plan_of(dms_device *dev, const dms_attention_in *in)
{
    const dms_dense_shape shape = shape_of(in);
    dms_cuda_device *cuda = dms_cuda_of(dev);
    dms_cuda_dense *dense = dense_of(cuda);
    dense_plan *p = NULL;
    if (!dense)
        return NULL;
    for (int i = 0; i < PLANS && !p; i++)
        if (dense->plans[i].known && !memcmp(&dense->plans[i].graph.shape, &shape, sizeof(shape)))
            p = &dense->plans[i];
    if (!p)
        p = make_plan(cuda, &shape);
    if (p)
        p->asked = ++dense->clock;
    return p && p->usable ? p : NULL;
}

bool dms_cuda_dense_supports(dms_device *dev, const dms_attention_in *in)
{
    if (in->bias || !in->bf16 || in->head_dim % WIDTH_STEP || in->head_dim > MAX_WIDTH)
        return false;
    return dms_count(in->q) > 0 && plan_of(dev, in);
}

static dms_status failed(const dms_dense_graph *g, cudnnStatus_t status)
{
    const dms_dense_shape *s = &g->shape;
    return dms_fail(DMS_ERR_DEVICE,
                    "cuDNN: %s, in attention over [%" PRId64 ", %" PRId64 "] tokens with %" PRId64
                    " heads, %" PRId64 " KV heads of %" PRId64,
                    g->api->GetErrorString(status), s->batch, s->tokens, s->heads, s->groups,
                    s->width);
}

/* bf16 copies of the operands, o before it is widened, and what cuDNN asks for. */
typedef struct {
    char *q, *k, *v, *o, *workspace;
} parts;

static dms_status place(parts *out, dms_device *dev, const dms_attention_in *in,
                        int64_t workspace_bytes)
{
    const size_t q = dms_cuda_part((size_t)dms_count(in->q) * sizeof(uint16_t));
    const size_t k = dms_cuda_part((size_t)dms_count(in->k) * sizeof(uint16_t));
    void *base = NULL;
    DMS_TRY(dms_cuda_scratch(&base, dev, 2 * q + 2 * k + (size_t)workspace_bytes));
    out->q = base;
    out->o = out->q + q;
    out->k = out->o + q;
    out->v = out->k + k;
    out->workspace = out->v + k;
    DMS_TRY(dms_cuda_round(dev, out->q, in->q->data, dms_count(in->q)));
    DMS_TRY(dms_cuda_round(dev, out->k, in->k->data, dms_count(in->k)));
    return dms_cuda_round(dev, out->v, in->v->data, dms_count(in->v));
}

dms_status dms_cuda_dense_attention(dms_tensor *o, dms_tensor *lse, const dms_attention_in *in)
{
    dms_device *dev = in->q->device;
    dense_plan *p = plan_of(dev, in);
    parts at;
    float scale = 1.0f / sqrtf((float)in->head_dim), masked = -INFINITY;
    if (!p)
        return dms_fail(DMS_ERR_DEVICE, "cuDNN has no plan for this attention");
    DMS_TRY(place(&at, dev, in, p->graph.workspace_bytes));
    if (dev->dry)
        return DMS_OK;
    void *const pointers[] = {at.q, at.k, at.v, at.o, lse->data, &scale, &masked};
    const cudnnStatus_t status = dms_dense_graph_run(&p->graph, pointers, at.workspace);
    if (status != CUDNN_STATUS_SUCCESS)
        return failed(&p->graph, status);
    p->recorded |= dms_cuda_of(dev)->recording;
    dms_tensor rounded = *o;
    rounded.data = at.o;
    rounded.dtype = DMS_BF16;
    return dms_cuda_cast(o, &rounded);
}
