/* Writing a GGUF file, and opening one with a gate, while each allocation fails in turn. */
#include "tests/failing_allocations.h"
#include "tests/fixtures.h"
#include "tests/gguf_models.h"

typedef struct {
    const char *path;
    const dms_gguf_model *model;
} writing;

static dms_status write_model(const writing *w)
{
    return dms_gguf_write(w->path, w->model);
}

static dms_status open_model(const writing *w)
{
    dms_source *s = NULL;
    const dms_status status = dms_source_open(&s, w->path);
    cr_assert(!status == !!s, "a failed open left something");
    dms_source_close(s);
    return status;
}

/* Runs it until no allocation is left to fail; `keeps`: the old file must survive each failure. */
static void fail_each(dms_status (*run)(const writing *w), const writing *w, bool keeps)
{
    size_t old_n = 0;
    char *old = read_bytes(w->path, &old_n);
    for (long n = 1;; n++) {
        allocations_begin(n);
        const dms_status status = run(w);
        allocations_end();
        cr_assert_eq(allocation.live, 0, "%ld blocks left after %ld", allocation.live, n);
        if (allocation.asked < n) {
            cr_assert_eq(status, DMS_OK, "%s", dms_error_text());
            cr_assert_gt(n, 20, "it allocates nothing");
            break;
        }
        cr_assert_neq(status, DMS_OK, "allocation %ld failed, and nobody noticed", n);
        cr_assert(status == DMS_ERR_NOMEM || allocation.jansson, "allocation %ld: %s", n,
                  dms_error_text());
        size_t now_n;
        char *now = read_bytes(w->path, &now_n);
        cr_assert(!keeps || (now_n == old_n && !memcmp(now, old, old_n)), "%ld", n);
        free(now);
    }
    free(old);
}

Test(gguf_allocations, of_writing_and_opening_a_gated_model_fail_one_by_one_without_a_trace)
{
    tensor_list l;
    scratch dir = {"/dev/shm/dms-test-XXXXXX"}; /* in memory where possible: every try syncs */
    dir = mkdtemp(dir.folder) ? dir : scratch_open();
    dms_source *from = open_fixture("tiny/qwen2");
    dms_gguf_model m = model_of(&l, from, DMS_FILE_F16);
    json_t *config = with_gate(m.config, false);
    m.config = config;
    m.force = true;
    const writing w = {scratch_path(&dir, "x.gguf"), &m};
    allocations_take_json();
    must(write_model(&w));
    fail_each(open_model, &w, true);
    m.type = DMS_FILE_BF16;
    fail_each(write_model, &w, true);
    cr_expect_eq(count_files(dir.folder), 1);
    dms_source_close(from);
    json_decref(config);
    scratch_close(&dir);
}
