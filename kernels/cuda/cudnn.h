/* The functions of cuDNN that we call, looked up at run time: cuDNN is optional. */
#ifndef DMS_CUDA_CUDNN_H
#define DMS_CUDA_CUDNN_H

#include <cudnn_graph.h>

#include "kernels/status.h"

DMS_BEGIN_C

#define DMS_CUDNN_LIST(X)       \
    X(GetVersion)               \
    X(GetErrorString)           \
    X(Create)                   \
    X(Destroy)                  \
    X(SetStream)                \
    X(BackendCreateDescriptor)  \
    X(BackendDestroyDescriptor) \
    X(BackendFinalize)          \
    X(BackendSetAttribute)      \
    X(BackendGetAttribute)      \
    X(BackendExecute)

/* Each field is cudnn<field> with the signature of its header. */
typedef struct {
#define X(name) __typeof__(cudnn##name) *name;
    DMS_CUDNN_LIST(X)
#undef X
} dms_cudnn;

/* The functions of libcudnn.so.9, which stays loaded until the process ends, or NULL where it is
 * not installed or lacks one of them. */
const dms_cudnn *dms_cudnn_load(void);

DMS_END_C
#endif
