/* For tests of file formats: a folder of their own, whole files in memory, and hostile variants. */
#ifndef DMS_TEST_FILES_H
#define DMS_TEST_FILES_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/files.h"
#include "checkpoints/source.h"
#include "tests/rig.h"

typedef struct {
    char folder[64];
} scratch;

static inline scratch scratch_open(void)
{
    scratch s = {"/tmp/dms-test-XXXXXX"};
    cr_assert_not_null(mkdtemp(s.folder));
    return s;
}

/* "FOLDER/name" in one of four buffers used in turn. */
static inline const char *scratch_path(const scratch *s, const char *name)
{
    static char paths[4][1024];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", s->folder, name);
    return path;
}

static inline void scratch_close(scratch *s)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", s->folder);
    cr_assert_eq(system(command), 0);
}

static inline int count_files(const char *folder)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));)
        n += e->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

static inline void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    cr_assert(f && fwrite(bytes, 1, n, f) == n);
    fclose(f);
}

static inline char *read_bytes(const char *path, size_t *n)
{
    char *text = NULL;
    must(dms_text_read(&text, n, path));
    cr_assert_not_null(text, "%s is missing", path);
    return text;
}

static inline int64_t element_count(const dms_tensor_info *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

/* The whole tensor as f32; the caller frees it. */
static inline float *read_f32(const dms_source *s, const char *name, int64_t *n)
{
    const dms_tensor_info *t = dms_source_find(s, name);
    cr_assert_not_null(t, "no tensor %s", name);
    float *x = malloc((size_t)element_count(t) * sizeof(*x) + 1);
    must(dms_source_read(s, name, x, DMS_F32));
    *n = element_count(t);
    return x;
}

/* Opens a possibly broken file and uses all of it: any status is right, a crash is not. Returns
 * whether it opened. */
static inline bool use_all(const char *path)
{
    dms_source *s;
    char hex[65];
    if (dms_source_open(&s, path)) {
        cr_assert(strlen(dms_error_text()) > 20, "no message");
        return false;
    }
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        if (t->type == DMS_FILE_OTHER)
            continue;
        void *x = malloc((size_t)element_count(t) * 4 + 1);
        const dms_status status =
            dms_source_read(s, t->name, x, t->type == DMS_FILE_I32 ? DMS_I32 : DMS_F32);
        cr_assert(status == DMS_OK || status == DMS_ERR_DTYPE);
        free(x);
    }
    must(dms_source_hash(s, hex));
    dms_source_close(s);
    return true;
}

/* Repeatable noise. */
static inline uint32_t roll(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

#endif
