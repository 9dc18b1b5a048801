/* What a program and the CUDA module must agree on: the module's one entry. */
#ifndef DMS_CUDA_MODULE_H
#define DMS_CUDA_MODULE_H

#include "kernels/ops.h"

/* The ops in their order and the sizes of what both sides see: a module of another build would read
 * tables and structures wrongly. */
typedef struct {
    const char *ops;
    size_t device_bytes, tensor_bytes, paged_bytes;
} dms_cuda_abi;

static inline dms_cuda_abi dms_cuda_abi_of_this_build(void)
{
#define X(name) #name " "
    return (dms_cuda_abi){DMS_OP_LIST(X), sizeof(dms_device), sizeof(dms_tensor),
                          sizeof(dms_paged)};
#undef X
}

/* emulated: this build of the module runs on the CPU. DMS_ERR_NODEVICE where the machine has no
 * GPU; DMS_ERR_DEVICE where `program` differs from the module's own. */
typedef dms_status dms_cuda_module_open_fn(dms_device **out, const dms_cuda_abi *program,
                                           bool emulated);

#endif
