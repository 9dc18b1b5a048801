/* AddressSanitizer as the emulation uses it; nothing in a build without it. */
#ifndef DMS_CUDA_EMU_ASAN_H
#define DMS_CUDA_EMU_ASAN_H

#include <stddef.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define DMS_EMU_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define DMS_EMU_ASAN 1
#endif

#ifdef DMS_EMU_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *bytes);
void __asan_poison_memory_region(const volatile void *at, size_t bytes);
void __asan_unpoison_memory_region(const volatile void *at, size_t bytes);
}
#else
#define __asan_poison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#define __asan_unpoison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#endif

#endif
