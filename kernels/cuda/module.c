/* Opens the CUDA backend, a module of its own: users of the CPU load no CUDA library. */
#include "kernels/cuda/module.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The folder of the running program; false where the system does not say. */
static bool program_folder(char path[PATH_MAX])
{
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n <= 0)
        return false;
    path[n] = '\0';
    dirname(path);
    return true;
}

/* Beside the program, one folder up (tests), or where an installed program has it; DMS_MODULES
 * names another folder. False: there is no such file. */
static bool find_module(char path[2 * PATH_MAX], const char *name)
{
    static const char *const places[] = {".", "..", "../lib/dms"};
    const char *given = getenv("DMS_MODULES");
    char folder[PATH_MAX];
    if (given) {
        snprintf(path, 2 * PATH_MAX, "%s/%s", given, name);
        return access(path, F_OK) == 0;
    }
    if (!program_folder(folder))
        return false;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        snprintf(path, 2 * PATH_MAX, "%s/%s/%s", folder, places[i], name);
        if (access(path, F_OK) == 0)
            return true;
    }
    return false;
}

/* Without a driver no CUDA library is touched: they cost 0.15 s and 220 MB of mappings. */
static dms_status check_driver(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (!driver)
        return dms_fail(DMS_ERR_NODEVICE, "no CUDA device: this machine has no NVIDIA driver "
                                          "(libcuda.so.1); use --device cpu");
    dlclose(driver);
    return DMS_OK;
}

static void reach(uint64_t *end, uint64_t offset, uint64_t bytes)
{
    const uint64_t to = bytes > UINT64_MAX - offset ? UINT64_MAX : offset + bytes;
    *end = to > *end ? to : *end;
}

/* Where the segments and the tables of an ELF file end; 0: it is none. */
static uint64_t elf_end(int file)
{
    uint64_t end = 0;
    Elf64_Ehdr head;
    Elf64_Phdr segment;
    if (pread(file, &head, sizeof(head), 0) != (ssize_t)sizeof(head) ||
        memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64)
        return 0;
    reach(&end, head.e_shoff, (uint64_t)head.e_shnum * head.e_shentsize);
    reach(&end, head.e_phoff, head.e_phnum * sizeof(segment));
    for (uint64_t i = 0; i < head.e_phnum; i++) {
        const off_t at = (off_t)(head.e_phoff + i * sizeof(segment));
        if (pread(file, &segment, sizeof(segment), at) != (ssize_t)sizeof(segment))
            break; /* beyond the file, as `end` says */
        reach(&end, segment.p_offset, segment.p_filesz);
    }
    return end;
}

/* dlopen maps a file that was cut short and dies of it (SIGBUS); what is no ELF file it refuses. */
static dms_status check_whole(const char *path)
{
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (file < 0 || fstat(file, &info)) {
        const int error = errno;
        if (file >= 0)
            close(file);
        return dms_fail(DMS_ERR_DEVICE, "the CUDA backend %s cannot be read: %s; use --device cpu",
                        path, strerror(error));
    }
    const uint64_t end = elf_end(file);
    close(file);
    if (end > (uint64_t)info.st_size)
        return dms_fail(DMS_ERR_DEVICE,
                        "the CUDA backend %s is cut short: it has %lld bytes, its headers speak of "
                        "%" PRIu64 "; build or copy it again, or use --device cpu",
                        path, (long long)info.st_size, end);
    return DMS_OK;
}

dms_status dms_cuda_open(dms_device **out, dms_device_kind kind)
{
    const bool emulated = kind == DMS_CUDA_EMU;
    const char *name = emulated ? "libdms_cuda_emu.so" : "libdms_cuda.so";
    char path[2 * PATH_MAX];
    dms_cuda_module_open_fn *open_module = NULL;
    const dms_cuda_abi abi = dms_cuda_abi_of_this_build();
    if (!emulated)
        DMS_TRY(check_driver());
    if (!find_module(path, name))
        return dms_fail(
            DMS_ERR_NODEVICE,
            "no CUDA device: there is no %s %s; build it where the CUDA toolkit is, or use "
            "--device cpu",
            name,
            getenv("DMS_MODULES") ? "in the folder that DMS_MODULES names" : "beside this program");
    DMS_TRY(check_whole(path));
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* stays: kernels hold on to it */
    if (!module)
        return dms_fail(DMS_ERR_DEVICE, "the CUDA backend cannot be loaded: %s; use --device cpu",
                        dlerror());
    *(void **)&open_module = dlsym(module, "dms_cuda_module_open");
    if (!open_module)
        return dms_fail(DMS_ERR_DEVICE,
                        "the CUDA backend is of another version of dms.c: %s; use --device cpu",
                        dlerror());
    return open_module(out, &abi, emulated);
}
