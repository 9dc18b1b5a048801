#include "tasks/sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tasks/sandbox_filter.h"

enum { MAX_ERRORS = 4096, PART = 1 << 16, OPEN_FILES = 64, CLOSE_ON_EXEC = 4 /* close_range(2) */ };

struct dms_sandbox {
    char folder[256];
    char home[272], path[4096]; /* of the environment */
    char python[1024];          /* once it is known */
    dms_filter filter;
};

/* The ends of the pipes that the parent keeps, and what it knows. */
typedef struct {
    pid_t pid;
    int out, err, failure; /* -1: closed */
    struct timespec start;
    dms_sandbox_limits limits;
    int64_t read;
} child;

dms_status dms_sandbox_open(dms_sandbox **out, bool allowed)
{
    const char *tmp = getenv("TMPDIR"), *path = getenv("PATH");
    if (!allowed)
        return dms_fail(DMS_ERR_ARG, "judging this task runs code that a model wrote; "
                                     "--allow-code-execution allows it");
    dms_sandbox *s = calloc(1, sizeof(*s));
    if (!s)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a sandbox");
    if (!dms_filter_build(&s->filter)) {
        free(s);
        return dms_fail(DMS_ERR_DEVICE,
                        "code is run on x86-64 and arm64 only: its system calls cannot be filtered "
                        "here");
    }
    snprintf(s->folder, sizeof(s->folder), "%.200s/dms-code-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(s->folder)) {
        const dms_status status = dms_fail(DMS_ERR_IO, "%s: %s", s->folder, strerror(errno));
        free(s);
        return status;
    }
    snprintf(s->home, sizeof(s->home), "HOME=%s", s->folder);
    snprintf(s->path, sizeof(s->path), "PATH=%.4000s",
             path ? path : "/usr/local/bin:/usr/bin:/bin");
    *out = s;
    return DMS_OK;
}

void dms_sandbox_close(dms_sandbox *s)
{
    if (!s)
        return;
    DIR *dir = opendir(s->folder); /* the program cannot make folders in it */
    for (struct dirent *e; dir && (e = readdir(dir));)
        unlinkat(dirfd(dir), e->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(s->folder);
    free(s);
}

dms_status dms_sandbox_put(dms_sandbox *s, const char *name, dms_span bytes)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", s->folder, name);
    FILE *f = fopen(path, "wbe");
    if (!f)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    const bool wrote = bytes.n == 0 || fwrite(bytes.bytes, 1, bytes.n, f) == bytes.n;
    if (fclose(f) || !wrote)
        return dms_fail(DMS_ERR_IO, "%s: writing failed: %s", path, strerror(errno));
    return DMS_OK;
}

dms_status dms_sandbox_python(dms_sandbox *s, const char **out)
{
    static const char ask[] = "python3 -I -c 'import sys; print(sys.executable)' 2>/dev/null";
    *out = s->python;
    if (*s->python)
        return DMS_OK;
    FILE *f = popen(ask, "re");
    if (!f)
        return dms_fail(DMS_ERR_IO, "python3 cannot be asked for: %s", strerror(errno));
    const size_t n = fread(s->python, 1, sizeof(s->python) - 1, f);
    s->python[n] = 0;
    s->python[strcspn(s->python, "\n")] = 0;
    if (pclose(f) == 0 && *s->python == '/')
        return DMS_OK;
    *s->python = 0;
    return dms_fail(DMS_ERR_IO, "there is no python3 in PATH, expected Python 3 to run code with");
}

static bool limit(int resource, int64_t value)
{
    const struct rlimit l = {(rlim_t)value, (rlim_t)value};
    return setrlimit(resource, &l) == 0;
}

/* Between fork and exec: only what is safe there. Ends with the errno in the pipe. */
static _Noreturn void become(dms_sandbox *s, const char *const *argv, const int fds[4],
                             dms_sandbox_limits l)
{
    char lang[] = "LANG=C.UTF-8", threads[] = "OMP_NUM_THREADS=1";
    char *const env[] = {s->path, s->home, lang, threads, NULL};
    sigset_t none;
    int high[4]; /* away from the numbers that they are copied to */
    sigemptyset(&none);
    for (int i = 0; i < 4; i++)
        high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 10);
    const bool ready =
        setsid() >= 0 && chdir(s->folder) == 0 && sigprocmask(SIG_SETMASK, &none, NULL) == 0 &&
        signal(SIGPIPE, SIG_DFL) != SIG_ERR && dup2(high[0], 0) >= 0 && dup2(high[1], 1) >= 0 &&
        dup2(high[2], 2) >= 0 && syscall(SYS_close_range, 3u, ~0u, CLOSE_ON_EXEC) == 0 &&
        limit(RLIMIT_CPU, (int64_t)ceil(l.seconds)) && limit(RLIMIT_AS, l.memory) &&
        limit(RLIMIT_FSIZE, 0) && limit(RLIMIT_NOFILE, OPEN_FILES) && limit(RLIMIT_CORE, 0);
    /* The filter refuses sockets where these namespaces cannot be had. */
    if (ready && unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC))
        errno = 0;
    if (ready && dms_filter_apply(&s->filter))
        execvpe(argv[0], (char *const *)argv, env);
    const int error = errno;
    if (write(high[3], &error, sizeof(error)) < 0)
        _exit(126);
    _exit(127);
}

static double elapsed(const child *c)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - c->start.tv_sec) + 1e-9 * (double)(now.tv_nsec - c->start.tv_nsec);
}

static void drop(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Reads what is there; of standard error the rest is thrown away. */
static dms_status take(child *c, int *fd, dms_text *text, size_t most)
{
    char part[PART];
    const ssize_t n = read(*fd, part, sizeof(part));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return DMS_OK;
    if (n <= 0) {
        drop(fd);
        return DMS_OK;
    }
    c->read += n;
    const size_t room = most > text->n ? most - text->n : 0;
    return dms_text_append(text, part, (size_t)n < room ? (size_t)n : room);
}

/* Reads until both ends are closed or a limit is passed. */
static dms_status listen_to(child *c, dms_run *run)
{
    while (c->out >= 0 || c->err >= 0) {
        const double left = c->limits.seconds - elapsed(c);
        struct pollfd fds[] = {{.fd = c->out, .events = POLLIN}, {.fd = c->err, .events = POLLIN}};
        if (left <= 0) {
            run->end = DMS_RUN_TOO_LONG;
            return DMS_OK;
        }
        if (poll(fds, 2, (int)ceil(left * 1000)) < 0 && errno != EINTR)
            return dms_fail(DMS_ERR_IO, "waiting for a program failed: %s", strerror(errno));
        if (fds[0].revents)
            DMS_TRY(take(c, &c->out, &run->output, SIZE_MAX));
        if (fds[1].revents)
            DMS_TRY(take(c, &c->err, &run->errors, MAX_ERRORS));
        if (c->read > c->limits.output) {
            run->end = DMS_RUN_TOO_MUCH;
            return DMS_OK;
        }
    }
    return DMS_OK;
}

/* A program that closed its output may go on; it has until the limit. Leaves no zombie. */
static void end(child *c, dms_run *run, bool now)
{
    int how = 0;
    pid_t done = 0;
    while (!now && (done = waitpid(c->pid, &how, WNOHANG)) == 0) {
        if (elapsed(c) >= c->limits.seconds) {
            run->end = DMS_RUN_TOO_LONG;
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    if (done == 0) {
        kill(-c->pid, SIGKILL);
        kill(c->pid, SIGKILL);
        while (waitpid(c->pid, &how, 0) < 0 && errno == EINTR)
            continue;
    }
    if (run->end != DMS_RUN_ENDED)
        return;
    run->code = WIFEXITED(how) ? WEXITSTATUS(how) : WTERMSIG(how);
    if (WIFSIGNALED(how))
        run->end = run->code == SIGXCPU ? DMS_RUN_TOO_LONG : DMS_RUN_KILLED;
    /* At the hard limit of processor time the kernel kills. */
    if (run->end == DMS_RUN_KILLED && run->code == SIGKILL && elapsed(c) >= 0.9 * c->limits.seconds)
        run->end = DMS_RUN_TOO_LONG;
}

/* What the child could not do before it became the program: its errno, or nothing. */
static dms_status check_start(child *c, const char *program)
{
    int error = 0;
    ssize_t n;
    do
        n = read(c->failure, &error, sizeof(error));
    while (n < 0 && errno == EINTR);
    drop(&c->failure);
    if (n <= 0)
        return DMS_OK;
    return dms_fail(DMS_ERR_IO, "%s cannot be run in a sandbox: %s", program,
                    error ? strerror(error) : "the kernel refuses");
}

static dms_status start(dms_sandbox *s, child *c, const char *const *argv, int input)
{
    int out[2] = {-1, -1}, err[2] = {-1, -1}, failure[2] = {-1, -1};
    dms_status status = DMS_OK;
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || pipe2(failure, O_CLOEXEC))
        status = dms_fail(DMS_ERR_IO, "no pipe to a program: %s", strerror(errno));
    clock_gettime(CLOCK_MONOTONIC, &c->start);
    c->pid = status ? -1 : fork();
    if (!status && c->pid < 0)
        status = dms_fail(DMS_ERR_IO, "no process for a program: %s", strerror(errno));
    if (c->pid == 0)
        become(s, argv, (const int[]){input, out[1], err[1], failure[1]}, c->limits);
    c->out = out[0];
    c->err = err[0];
    c->failure = failure[0];
    drop(&out[1]);
    drop(&err[1]);
    drop(&failure[1]);
    return status;
}

dms_status dms_sandbox_run(dms_sandbox *s, dms_run *run, const char *const *argv, dms_span input,
                           dms_sandbox_limits limits)
{
    char path[512];
    dms_status status = DMS_OK;
    child c = {.pid = -1, .out = -1, .err = -1, .failure = -1, .limits = limits};
    *run = (dms_run){.end = DMS_RUN_ENDED};
    DMS_TRY(dms_sandbox_put(s, "input", input));
    snprintf(path, sizeof(path), "%s/input", s->folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    DMS_TRY_OR(stop, start(s, &c, argv, fd));
    DMS_TRY_OR(stop, check_start(&c, argv[0]));
    DMS_TRY_OR(stop, listen_to(&c, run));
stop:
    if (c.pid > 0)
        end(&c, run, status || run->end != DMS_RUN_ENDED);
    drop(&c.out);
    drop(&c.err);
    drop(&c.failure);
    drop(&fd);
    if (status)
        dms_run_free(run);
    return status;
}

void dms_run_free(dms_run *run)
{
    dms_text_free(&run->output);
    dms_text_free(&run->errors);
}
