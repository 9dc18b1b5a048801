/* Folders that are replaced: processes are killed at each of their system calls (ptrace), and
 * system calls fail (seccomp), to see what is left. */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "checkpoints/model_folder.h"
#include "tests/files.h"

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static void expect_text(const scratch *s, const char *name, const char *expected)
{
    size_t n;
    char *text = read_bytes(scratch_path(s, name), &n);
    cr_expect_str_eq(text, expected, "%s is \"%s\", expected \"%s\"", name, text, expected);
    free(text);
}

/* A model whose files say `text`, written as exports do. */
static dms_status export_to(const char *folder, const char *text, bool force)
{
    char path[1100];
    dms_status status;
    dms_model_folder f = DMS_MODEL_FOLDER_NONE;
    DMS_TRY_OR(done, dms_model_folder_begin(&f, folder, force));
    snprintf(path, sizeof(path), "%s/config.json", f.made.path);
    DMS_TRY_OR(done, dms_file_write(path, text, strlen(text)));
    snprintf(path, sizeof(path), "%s/model.safetensors", f.made.path);
    DMS_TRY_OR(done, dms_file_write(path, text, strlen(text)));
    DMS_TRY_OR(done, dms_model_folder_commit(&f));
done:
    dms_model_folder_abort(&f);
    return status;
}

/* The old model, with files that no export writes. */
static void make_old(const scratch *s)
{
    scratch_path(s, "m");
    cr_assert_eq(mkdir(scratch_path(s, "m"), 0755), 0);
    write_text(scratch_path(s, "m/config.json"), "old");
    write_text(scratch_path(s, "m/model-00001-of-00002.safetensors"), "old");
    write_text(scratch_path(s, "m/vocab.json"), "old");
    write_text(scratch_path(s, "m/part.safetensors"), "old");
    write_text(scratch_path(s, "m/model.safetensors.index.json"),
               "{\"weight_map\": {\"a\": \"part.safetensors\", \"b\": \"README.md\"}}");
    write_text(scratch_path(s, "m/adapter_model.safetensors"), "mine");
    write_text(scratch_path(s, "m/README.md"), "mine");
    write_text(scratch_path(s, "m/.hidden"), "mine too");
    cr_assert_eq(symlink("nowhere", scratch_path(s, "m/link")), 0);
}

static void expect_own_files(const scratch *s)
{
    char where[16] = "";
    expect_text(s, "m/README.md", "mine");
    expect_text(s, "m/.hidden", "mine too");
    expect_text(s, "m/adapter_model.safetensors", "mine");
    cr_expect(readlink(scratch_path(s, "m/link"), where, 15) == 7 && !strcmp(where, "nowhere"));
}

Test(model_folder, replaces_what_exports_write_and_leaves_all_else)
{
    struct stat before, after;
    scratch s = scratch_open();
    make_old(&s);
    cr_assert_eq(chmod(scratch_path(&s, "m"), 0750), 0);
    cr_assert_eq(chmod(scratch_path(&s, "m/config.json"), 0640), 0);
    cr_assert_eq(stat(scratch_path(&s, "m/README.md"), &before), 0);
    cr_expect_eq(export_to(scratch_path(&s, "m"), "new", false), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "--force"), "%s", dms_error_text());
    must(export_to(scratch_path(&s, "m//"), "new", true));
    expect_text(&s, "m/config.json", "new");
    expect_text(&s, "m/model.safetensors", "new");
    expect_own_files(&s);
    cr_expect(!dms_path_exists(scratch_path(&s, "m/vocab.json")), "of the old tokenizer");
    cr_expect(!dms_path_exists(scratch_path(&s, "m/model-00001-of-00002.safetensors")));
    cr_expect(!dms_path_exists(scratch_path(&s, "m/part.safetensors")), "the index listed it");
    cr_expect(!dms_path_exists(scratch_path(&s, "m/model.safetensors.index.json")));
    cr_assert_eq(stat(scratch_path(&s, "m/config.json"), &after), 0);
    cr_expect_eq(after.st_mode & 0777, 0640);
    cr_assert_eq(stat(scratch_path(&s, "m/README.md"), &after), 0);
    cr_expect_eq(before.st_ino, after.st_ino, "not the same file any more");
    cr_assert_eq(stat(scratch_path(&s, "m"), &after), 0);
    cr_expect_eq(after.st_mode & 07777, 0750);
    cr_expect_eq(count_files(s.folder), 1);
    scratch_close(&s);
}

Test(model_folder, says_what_is_in_the_way_and_touches_nothing)
{
    scratch s = scratch_open();
    make_old(&s);
    cr_assert_eq(mkdir(scratch_path(&s, "m/inner"), 0755), 0);
    cr_expect_eq(export_to(scratch_path(&s, "m"), "new", true), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "it holds the folder inner"), "%s", dms_error_text());
    write_text(scratch_path(&s, "file"), "x");
    cr_expect_eq(export_to(scratch_path(&s, "file"), "new", true), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "it is no folder"), "%s", dms_error_text());
    cr_expect_eq(export_to(scratch_path(&s, "file/m"), "new", true), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "Not a directory"), "%s", dms_error_text());
    expect_text(&s, "m/config.json", "old");
    cr_expect_eq(count_files(s.folder), 2);
    scratch_close(&s);
}

/* Names that a user might choose are not taken for ours. */
Test(model_folder, files_of_similar_names_survive_and_stale_ones_of_ours_do_not)
{
    static const char *const theirs[] = {
        "m.tmp", "m.dms-tmp", "m.dms-old", "m.dms-0123456.tmp", "m.dms-0123456g.tmp", "x.h5.tmp"};
    scratch s = scratch_open();
    for (size_t i = 0; i < COUNT(theirs); i++)
        write_text(scratch_path(&s, theirs[i]), "theirs");
    write_text(scratch_path(&s, "x.h5.dms-01234567.tmp"), "stale");
    cr_assert_eq(mkdir(scratch_path(&s, "m.dms-89abcdef.tmp"), 0755), 0);
    write_text(scratch_path(&s, "m.dms-89abcdef.tmp/config.json"), "stale");
    dms_temporary living;
    must(dms_temporary_create(&living, scratch_path(&s, "y"), false));
    must(export_to(scratch_path(&s, "m"), "new", false));
    cr_expect(dms_path_exists(living.path), "somebody is writing this");
    dms_temporary_abort(&living);
    for (size_t i = 0; i < COUNT(theirs); i++)
        expect_text(&s, theirs[i], "theirs");
    cr_expect_eq(count_files(s.folder), COUNT(theirs) + 1);
    scratch_close(&s);
}

/* ---- system calls that fail ------------------------------------------------------------------ */

/* From here on this process, and its children, get `error` from system call `number`, of which
 * argument `argument` is `value` (-1: whatever they are). */
static bool fail_call(int number, int argument, unsigned value, int error)
{
    const unsigned at = (unsigned)(argument < 0 ? 0 : argument);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, args) + 8 * at),
        BPF_JUMP(BPF_JMP | (argument < 0 ? BPF_JGE : BPF_JEQ) | BPF_K, argument < 0 ? 0 : value, 0,
                 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const struct sock_fprog program = {COUNT(code), code};
    return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
           !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static const char no_filter[] = "this system lets no test filter its system calls";

static bool fail_swaps(void)
{
    return fail_call(SYS_renameat2, 4, RENAME_EXCHANGE, EINVAL);
}

Test(model_folder, replaces_in_two_steps_where_the_file_system_cannot_swap)
{
    scratch s = scratch_open();
    make_old(&s);
    if (!fail_swaps())
        cr_skip_test("%s", no_filter);
    must(export_to(scratch_path(&s, "m"), "new", true));
    expect_text(&s, "m/config.json", "new");
    expect_own_files(&s);
    cr_expect_eq(count_files(s.folder), 1);
    scratch_close(&s);
}

Test(model_folder, copies_a_users_files_where_there_are_no_hard_links)
{
    struct stat before, after;
    scratch s = scratch_open();
    make_old(&s);
    cr_assert_eq(unlink(scratch_path(&s, "m/link")), 0);
    cr_assert_eq(chmod(scratch_path(&s, "m/README.md"), 0400), 0);
    cr_assert_eq(stat(scratch_path(&s, "m/README.md"), &before), 0);
    if (!fail_call(SYS_linkat, -1, 0, EPERM))
        cr_skip_test("%s", no_filter);
    must(export_to(scratch_path(&s, "m"), "new", true));
    expect_text(&s, "m/README.md", "mine");
    expect_text(&s, "m/.hidden", "mine too");
    cr_assert_eq(stat(scratch_path(&s, "m/README.md"), &after), 0);
    cr_expect(after.st_mode == before.st_mode && after.st_mtime == before.st_mtime);
    cr_assert_eq(symlink("nowhere", scratch_path(&s, "m/link")), 0);
    cr_expect_eq(export_to(scratch_path(&s, "m"), "newer", true), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "m/link cannot be kept"), "%s", dms_error_text());
    expect_text(&s, "m/config.json", "new");
    expect_text(&s, "m/README.md", "mine");
    cr_expect_eq(count_files(s.folder), 1);
    scratch_close(&s);
}

/* In a process of its own, which leaves the message in the file "said". */
static void export_without(const scratch *s, int call, int error)
{
    int state;
    const pid_t child = fork();
    if (!child) {
        if (!fail_call(call, -1, 0, error))
            _exit(77);
        const dms_status status = export_to(scratch_path(s, "m"), "new", true);
        write_text(scratch_path(s, "said"), dms_error_text());
        _exit(status == DMS_ERR_IO ? 0 : 1);
    }
    cr_assert_eq(waitpid(child, &state, 0), child);
    if (WIFEXITED(state) && WEXITSTATUS(state) == 77)
        cr_skip_test("%s", no_filter);
    cr_assert(WIFEXITED(state) && !WEXITSTATUS(state));
}

static void expect_said(const scratch *s, const char *part)
{
    size_t n;
    char *text = read_bytes(scratch_path(s, "said"), &n);
    cr_expect(strstr(text, part), "said %s, expected %s", text, part);
    free(text);
}

Test(model_folder, says_where_an_old_model_is_that_cannot_be_removed)
{
    scratch s = scratch_open();
    make_old(&s);
    export_without(&s, SYS_unlinkat, EACCES);
    expect_said(&s, "holds the new model, but the old one, now");
    expect_said(&s, "Permission denied");
    expect_text(&s, "m/config.json", "new");
    expect_own_files(&s);
    cr_expect_eq(count_files(s.folder), 3);
    must(export_to(scratch_path(&s, "m"), "newer", true));
    cr_expect_eq(count_files(s.folder), 2, "the next export removes it");
    scratch_close(&s);
}

/* Root may write everywhere: the answer to the question is what is tested. */
Test(model_folder, a_folder_that_is_read_only_is_left_alone)
{
    scratch s = scratch_open();
    make_old(&s);
#ifdef SYS_access
    export_without(&s, SYS_access, EACCES);
#else
    export_without(&s, SYS_faccessat, EACCES);
#endif
    expect_said(&s, "make it writable (chmod u+w)");
    expect_text(&s, "m/config.json", "old");
    cr_expect_eq(count_files(s.folder), 2);
    scratch_close(&s);
}

/* ---- processes that are killed --------------------------------------------------------------- */

/* Exports in a process that is killed where it enters or leaves a system call for the n-th time.
 * False: it ended before. */
static bool export_until(long n, const char *folder, bool swaps)
{
    int state;
    const pid_t child = fork();
    cr_assert_geq(child, 0);
    if (!child) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
            _exit(77);
        raise(SIGSTOP);
        if (!swaps && !fail_swaps())
            _exit(77);
        _exit(export_to(folder, "new", true) ? 1 : 0);
    }
    cr_assert_eq(waitpid(child, &state, 0), child);
    if (WIFEXITED(state))
        cr_skip_test("this system lets no test trace a process");
    for (long i = 0; i < n; i++) {
        cr_assert_eq(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
        cr_assert_eq(waitpid(child, &state, 0), child);
        if (WIFEXITED(state)) {
            if (WEXITSTATUS(state) == 77)
                cr_skip_test("%s", no_filter);
            cr_assert_eq(WEXITSTATUS(state), 0);
            return false;
        }
    }
    kill(child, SIGKILL);
    while (!WIFSIGNALED(state))
        cr_assert_eq(waitpid(child, &state, 0), child);
    return true;
}

/* Whatever the moment: a whole model under the name, or a message that names it; no file of the
 * user's is lost; and the next export finds its way and leaves nothing behind. */
static void kill_everywhere(bool swaps)
{
    int old = 0, new = 0, aside = 0;
    bool killed = true;
    for (long n = 1; killed; n++) {
        dms_mapping m;
        scratch s = scratch_open();
        make_old(&s);
        killed = export_until(n, scratch_path(&s, "m"), swaps);
        const dms_status status = dms_mapping_open(&m, scratch_path(&s, "m/config.json"));
        if (!status) {
            const bool is_new = !memcmp(m.bytes, "new", 3);
            is_new ? new ++ : old++;
            cr_expect(dms_path_exists(scratch_path(
                &s, is_new ? "m/model.safetensors" : "m/model-00001-of-00002.safetensors")));
            expect_own_files(&s);
            dms_mapping_close(&m);
        } else {
            aside++;
            cr_expect_eq(dms_mapping_open(&m, scratch_path(&s, "m")), DMS_ERR_IO);
            cr_expect(strstr(dms_error_text(), "an interrupted export has left the old one as"),
                      "%s", dms_error_text());
            cr_expect_eq(export_to(scratch_path(&s, "m"), "newer", false), DMS_ERR_IO);
            expect_text(&s, "m/config.json", "old"); /* it is back */
        }
        must(export_to(scratch_path(&s, "m"), "newer", true));
        expect_text(&s, "m/model.safetensors", "newer");
        expect_own_files(&s);
        cr_expect_eq(count_files(s.folder), 1, "killed at %ld: something is left", n);
        scratch_close(&s);
    }
    cr_expect(old > 20 && new > 5 && (swaps ? !aside : aside), "%d %d %d", old, new, aside);
}

Test(model_folder, killed_at_any_moment_there_is_the_old_model_or_the_new_one)
{
    kill_everywhere(true);
}

Test(model_folder, killed_without_swaps_the_old_model_is_found_and_put_back)
{
    kill_everywhere(false);
}
