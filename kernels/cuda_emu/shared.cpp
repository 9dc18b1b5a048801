/* Shared memory: filled with NaN before each block, guarded at the end of what was asked for. */
#include <link.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda_emu/asan.h"
#include "kernels/cuda_emu/kernel.h"

namespace emu
{

enum : size_t { PAGE = 4096, ROOM = SHARED_MOST + PAGE - SHARED_MOST % PAGE };

static unsigned char *room; /* ROOM bytes, then a page that nobody may touch */

unsigned char *shared_open(size_t bytes)
{
    if (!room) {
        void *all =
            mmap(nullptr, ROOM + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED)
            return nullptr;
        room = static_cast<unsigned char *>(all);
        mprotect(room + ROOM, PAGE, PROT_NONE);
    }
    /* Aligned to 16 bytes and no more, as the language promises. */
    unsigned char *shared = room + ROOM - (bytes + 15) / 16 * 16;
    __asan_poison_memory_region(room, ROOM);
    __asan_unpoison_memory_region(shared, bytes);
    memset(shared, 0xff, bytes);
    return shared;
}

bool shared_is_overrun(const void *address)
{
    const unsigned char *at = static_cast<const unsigned char *>(address);
    return room && at >= room + ROOM && at < room + ROOM + PAGE;
}

#ifdef DMS_EMU_ASAN

/* AddressSanitizer guards static arrays, but not thread-local ones: here they are plain statics,
 * whose place is not known. */
void static_shared_fill(const kernel_record *)
{
}

void static_shared_learn(kernel_record *)
{
}

#else

/* `static __shared__` arrays are this module's only thread-local storage (emu.cuh), so its
 * thread-local block is all of them. */
struct tls_block {
    unsigned char *first;
    size_t bytes;
};

static __thread unsigned char anchor = 0xff;

static int find_block(struct dl_phdr_info *info, size_t, void *out)
{
    tls_block *block = static_cast<tls_block *>(out);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &header = info->dlpi_phdr[i];
        unsigned char *data = static_cast<unsigned char *>(info->dlpi_tls_data);
        if (header.p_type == PT_TLS && data && &anchor >= data && &anchor < data + header.p_memsz) {
            *block = {data, header.p_memsz};
            return 1;
        }
    }
    return 0;
}

static const tls_block &static_shared()
{
    static tls_block block;
    static const unsigned char *of_thread;
    if (of_thread != &anchor) { /* each thread of the host has its own */
        dl_iterate_phdr(find_block, &block);
        of_thread = &anchor;
        memset(block.first, 0xff, block.bytes);
    }
    return block;
}

void static_shared_fill(const kernel_record *kernel)
{
    const tls_block &all = static_shared();
    if (kernel->touched_from < kernel->touched_to)
        memset(all.first + kernel->touched_from, 0xff, kernel->touched_to - kernel->touched_from);
}

void static_shared_learn(kernel_record *kernel)
{
    const tls_block &all = static_shared();
    size_t from = 0, to = all.bytes;
    uint64_t word;
    for (; from + 8 <= to && (memcpy(&word, all.first + from, 8), word == UINT64_MAX); from += 8)
        ;
    for (; to >= from + 8 && (memcpy(&word, all.first + to - 8, 8), word == UINT64_MAX); to -= 8)
        ;
    if (from + 8 > all.bytes)
        return;
    if (from < kernel->touched_from)
        kernel->touched_from = from;
    if (to > kernel->touched_to)
        kernel->touched_to = to;
}

#endif

} // namespace emu
