/* Linked with --wrap: the readers' mappings of files become blocks of exactly the file's size, so
 * that AddressSanitizer sees a read one byte beyond it. A mapping is readable to its page's end. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_BLOCKS = 64 };
static void *blocks[MOST_BLOCKS];

void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *p, size_t size);
int __wrap_munmap(void *p, size_t size);

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *p;
    for (int i = 0; fd >= 0 && i < MOST_BLOCKS; i++) {
        if (blocks[i])
            continue;
        if (posix_memalign(&p, 64, size))
            return MAP_FAILED;
        if (pread(fd, p, size, offset) != (ssize_t)size)
            abort();
        blocks[i] = p;
        return p;
    }
    return __real_mmap(at, size, protection, flags, fd, offset);
}

int __wrap_munmap(void *p, size_t size)
{
    for (int i = 0; i < MOST_BLOCKS; i++)
        if (blocks[i] == p) {
            blocks[i] = NULL;
            free(p);
            return 0;
        }
    return __real_munmap(p, size);
}
