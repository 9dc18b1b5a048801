/* Hostile files replayed: tests/fuzz/regressions/TARGET/ has what fuzzing found, one file a
 * finding, and what is known to break readers of its format. */
#include "tests/files.h"
#include "tests/fuzz/fuzz.h"

static const struct {
    const char *name;
    fuzz_target *run;
    int spare;
} targets[] = {
#define X(name, spare) {#name, fuzz_##name, spare},
    FUZZ_TARGETS(X)
#undef X
};

/* Runs a target on each file of its folder; returns how many there were. */
static int replay(size_t target)
{
    char folder[1024], path[2048];
    int count = 0;
    snprintf(folder, sizeof(folder), "%s/tests/fuzz/regressions/%s", DMS_SOURCE_DIR,
             targets[target].name);
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        size_t n = 0;
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
        cr_log_info("%s", path);
        char *bytes = read_bytes(path, &n);
        fuzz_run(targets[target].run, targets[target].spare, (const uint8_t *)bytes, n);
        free(bytes);
        count++;
    }
    if (dir)
        closedir(dir);
    return count;
}

/* A fault aborts the test, and the log names the file. */
Test(fuzz_regressions, hostile_files_stay_harmless)
{
    for (size_t i = 0; i < COUNT(targets); i++)
        cr_expect_gt(replay(i), 0, "tests/fuzz/regressions/%s has no files", targets[i].name);
}
