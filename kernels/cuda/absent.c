/* Stands in for the whole folder in a build without the CUDA backend. */
#include "kernels/device.h"

dms_status dms_cuda_open(dms_device **out, dms_device_kind kind)
{
    (void)out;
    (void)kind;
    return dms_fail(DMS_ERR_NODEVICE,
                    "no CUDA device: this build has no CUDA backend; use --device "
                    "cpu");
}
