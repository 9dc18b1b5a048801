/* Stands in for the whole folder in a build without the CUDA toolkit. */
#include "kernels/device.h"

dms_status dms_cuda_open(dms_device **out, int threads)
{
    (void)threads;
    *out = NULL;
    return dms_fail(DMS_ERR_NODEVICE, "this build has no CUDA backend; use --device cpu");
}
