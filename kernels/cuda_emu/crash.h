/* Crashes of kernels, caught where the processor reports them. */
#ifndef DMS_CUDA_EMU_CRASH_H
#define DMS_CUDA_EMU_CRASH_H

namespace emu
{

/* From now on a kernel's invalid access is a fault by name, as on hardware; not under
 * AddressSanitizer, which tells more. May be called again. */
void crash_open();

} // namespace emu
#endif
