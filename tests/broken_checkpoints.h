/* For tests of our HDF5 files: full disks, and files that something has changed. */
#ifndef DMS_TEST_BROKEN_CHECKPOINTS_H
#define DMS_TEST_BROKEN_CHECKPOINTS_H

#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>

#include "checkpoints/checkpoint.h"
#include "tests/files.h"

/* Opens and verifies a broken file; true when nobody noticed. */
static inline bool unnoticed(const char *path)
{
    dms_checkpoint *c;
    if (dms_checkpoint_open(&c, path))
        return false;
    const bool ok = dms_checkpoint_verify(c) == DMS_OK;
    dms_checkpoint_close(c);
    return ok;
}

/* a.h5 of the folder with one bit flipped, so many times: each is noticed. */
static inline void expect_flips_noticed(const scratch *dir, int times)
{
    size_t n;
    uint32_t seed = 3;
    char path[1024];
    snprintf(path, sizeof(path), "%s/flip", dir->folder);
    char *bytes = read_bytes(scratch_path(dir, "a.h5"), &n);
    for (int i = 0; i < times; i++) {
        const size_t at = roll(&seed) % n;
        const char bit = (char)(1 << roll(&seed) % 8);
        bytes[at] ^= bit;
        write_bytes(path, bytes, n);
        cr_expect_not(unnoticed(path), "a bit flipped at %zu of %zu nobody noticed", at, n);
        bytes[at] ^= bit;
    }
    free(bytes);
}

/* One save with files of at most so many bytes; a failure says what to do. What stands in `folder`
 * behind it is one file. */
static inline dms_status save_within(rlim_t limit, dms_status (*save)(const char *path),
                                     const char *folder)
{
    struct rlimit old;
    char path[1024];
    snprintf(path, sizeof(path), "%s/a.h5", folder);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){limit, old.rlim_max});
    const dms_status status = save(path);
    setrlimit(RLIMIT_FSIZE, &old);
    if (status) {
        cr_expect_eq(status, DMS_ERR_IO);
        cr_expect(strstr(dms_error_text(), "free some space"), "%s", dms_error_text());
    }
    cr_assert_eq(count_files(folder), 1, "a temporary is left");
    cr_assert_eq(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0, "a handle is left open");
    return status;
}

#endif
