/* The name of a function by its address, from the symbol table of the module's own file: kernels
 * are static, so the dynamic table lacks them. */
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <map>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/cuda_emu/kernel.h"

namespace emu
{

static std::map<uintptr_t, std::string> names; /* by offset in the module */

static void read_table(const char *file, const Elf64_Shdr *sections, const Elf64_Shdr &table)
{
    const Elf64_Sym *symbols = reinterpret_cast<const Elf64_Sym *>(file + table.sh_offset);
    const char *strings = file + sections[table.sh_link].sh_offset;
    for (size_t i = 0; i < table.sh_size / sizeof(Elf64_Sym); i++) {
        if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC && symbols[i].st_value)
            names[symbols[i].st_value] = strings + symbols[i].st_name;
    }
}

static void read_symbols(const char *path)
{
    struct stat about;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about))
        return;
    const size_t bytes = static_cast<size_t>(about.st_size);
    void *all = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (all == MAP_FAILED)
        return;
    const char *file = static_cast<const char *>(all);
    const Elf64_Ehdr *header = reinterpret_cast<const Elf64_Ehdr *>(file);
    const Elf64_Shdr *sections = reinterpret_cast<const Elf64_Shdr *>(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type == SHT_SYMTAB)
            read_table(file, sections, sections[i]);
    }
    munmap(all, bytes);
}

std::string symbol_name(const void *address)
{
    static bool read;
    Dl_info module;
    if (!dladdr(address, &module))
        return "";
    if (!read)
        read_symbols(module.dli_fname);
    read = true;
    const auto found = names.find(reinterpret_cast<uintptr_t>(address) -
                                  reinterpret_cast<uintptr_t>(module.dli_fbase));
    if (found == names.end())
        return "";
    char *plain = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, nullptr);
    std::string name = plain ? plain : found->second;
    free(plain);
    /* A template's name comes with its result type: "void name<float>(...)". */
    const size_t space = name.find(' '), end = name.find_first_of("<(");
    return space < end ? name.substr(space + 1) : name;
}

} // namespace emu
