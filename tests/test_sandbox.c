/* The sandbox: what hostile programs try, and how programs are judged by their tests. */
#include <dirent.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

#include "tasks/code.h"
#include "tasks/long_decimal.h"
#include "tests/files.h"

/* One for all programs of a test. */
static dms_sandbox *box;
static const char *python;

static void open_box(void)
{
    must(dms_sandbox_open(&box, true));
    if (dms_sandbox_python(box, &python))
        cr_skip_test("[SKIP] there is no python3 to run");
}

static void close_box(void)
{
    dms_sandbox_close(box);
    box = NULL;
}

TestSuite(sandbox, .init = open_box, .fini = close_box);
TestSuite(code, .init = open_box, .fini = close_box);

static const dms_sandbox_limits usual = {
    .seconds = 20, .memory = (int64_t)1 << 30, .output = 1 << 20};

static dms_run run_limited(const char *program, const char *input, dms_sandbox_limits limits)
{
    const char *const argv[] = {python, "-I", "-B", "-c", program, NULL};
    dms_run run;
    must(dms_sandbox_run(box, &run, argv, dms_span_of(input), limits));
    must(dms_text_end(&run.output));
    must(dms_text_end(&run.errors));
    return run;
}

/* The program ends by itself and prints `want`. */
static void expect_output(const char *program, const char *want)
{
    dms_run run = run_limited(program, "", usual);
    cr_assert_eq(run.end, DMS_RUN_ENDED);
    cr_assert_str_eq(run.output.bytes, want, "%s: %s%s", program, run.output.bytes,
                     run.errors.bytes);
    dms_run_free(&run);
}

/* Every statement raises an error of that name, or a kind of it. All are tried in one program. */
static void expect_refusals(const char *const *statements, size_t n, const char *error)
{
    dms_text program = {0};
    must(dms_text_format(&program, "import os, sys, socket, signal, subprocess, resource\n"));
    for (size_t i = 0; i < n; i++)
        must(dms_text_format(&program,
                             "try:\n    %s\n    print('done:', %zu)\nexcept %s:\n    pass\n",
                             statements[i], i, error));
    must(dms_text_format(&program, "print('all')"));
    must(dms_text_end(&program));
    expect_output(program.bytes, "all\n");
    dms_text_free(&program);
}

#define EXPECT_REFUSALS(error, ...)                       \
    do {                                                  \
        static const char *const list_[] = {__VA_ARGS__}; \
        expect_refusals(list_, COUNT(list_), error);      \
    } while (0)

Test(sandbox, without_permission_nothing_is_opened)
{
    dms_sandbox *s;
    rig_expect_failure(dms_sandbox_open(&s, false), DMS_ERR_ARG, "--allow-code-execution");
}

Test(sandbox, a_program_reads_its_input_and_its_output_and_code_come_back)
{
    dms_run run = run_limited("import sys\nprint(sys.stdin.read()[::-1])\nsys.stderr.write('e')\n"
                              "sys.exit(7)",
                              "abc", usual);
    cr_assert_eq(run.end, DMS_RUN_ENDED);
    cr_assert_eq(run.code, 7);
    cr_assert_str_eq(run.output.bytes, "cba\n");
    cr_assert_str_eq(run.errors.bytes, "e");
    dms_run_free(&run);
}

Test(sandbox, a_fork_bomb_has_no_fork)
{
    EXPECT_REFUSALS("PermissionError", "os.fork()", "os.posix_spawn('/bin/true', ['true'], {})",
                    "subprocess.run(['true'])");
    expect_output("import os; print(os.system('true') != 0)", "True\n");
}

Test(sandbox, threads_may_be_made)
{
    expect_output(
        "import threading\nt = threading.Thread(target=print, args=('hello',))\nt.start()\n"
        "t.join()",
        "hello\n");
}

Test(sandbox, output_without_end_is_cut_off)
{
    dms_run run = run_limited("while True: print('x' * 1000)", "", usual);
    cr_assert_eq(run.end, DMS_RUN_TOO_MUCH);
    /* What one read brings may pass the limit. */
    cr_assert_leq(run.output.n, (size_t)usual.output + (1 << 16));
    dms_run_free(&run);
    run = run_limited("import sys\nwhile True: sys.stderr.write('x' * 1000)", "", usual);
    cr_assert_eq(run.end, DMS_RUN_TOO_MUCH);
    cr_assert_leq(run.errors.n, 4096);
    dms_run_free(&run);
}

Test(sandbox, sleeping_and_spinning_end_with_the_time)
{
    static const char *const programs[] = {
        "import time; time.sleep(100)", "while True: pass",
        "import os, time; os.close(1); os.close(2); time.sleep(100)",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"};
    const dms_sandbox_limits limits = {.seconds = 1, .memory = usual.memory, .output = 1 << 20};
    for (size_t i = 0; i < COUNT(programs); i++) {
        struct timespec start, stop;
        clock_gettime(CLOCK_MONOTONIC, &start);
        dms_run run = run_limited(programs[i], "", limits);
        clock_gettime(CLOCK_MONOTONIC, &stop);
        cr_assert_eq(run.end, DMS_RUN_TOO_LONG, "%s", programs[i]);
        cr_assert_lt(stop.tv_sec - start.tv_sec, 60); /* not the 100 seconds of the program */
        dms_run_free(&run);
    }
}

Test(sandbox, memory_has_an_end)
{
    expect_output("try:\n    x = bytearray(1 << 31)\n    print('got it')\nexcept MemoryError:\n"
                  "    print('refused')",
                  "refused\n");
}

Test(sandbox, there_is_no_network)
{
    EXPECT_REFUSALS("PermissionError", "socket.socket()", "socket.socket(socket.AF_UNIX)",
                    "socket.create_connection(('127.0.0.1', 1))",
                    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)");
}

Test(sandbox, no_file_is_changed_within_the_folder_or_outside)
{
    scratch s = scratch_open();
    const char *victim = scratch_path(&s, "victim");
    static const char *const attempts[] = {"open('%s', 'w')",
                                           "open('%s', 'a')",
                                           "open('%s', 'r+')",
                                           "open('%s.new', 'x')",
                                           "os.remove('%s')",
                                           "os.rename('%s', '%s.2')",
                                           "os.truncate('%s', 0)",
                                           "os.chmod('%s', 0)",
                                           "os.link('%s', '%s.3')",
                                           "os.symlink('%s', '%s.4')",
                                           "os.mkdir('%s.d')",
                                           "os.utime('%s')",
                                           "os.chown('%s', 0, 0)",
                                           "os.mkfifo('%s.f')",
                                           "os.setxattr('%s', 'user.a', b'')",
                                           "open('here', 'w')",
                                           "os.mkdir('here')",
                                           "os.unlink('input')",
                                           "os.chroot('/')",
                                           "os.open('.', os.O_TMPFILE | os.O_RDWR)"};
    write_bytes(victim, "whole", 5);
    char texts[COUNT(attempts)][256];
    const char *statements[COUNT(attempts)];
    for (size_t i = 0; i < COUNT(attempts); i++) {
        snprintf(texts[i], sizeof(texts[i]), attempts[i], victim, victim);
        statements[i] = texts[i];
    }
    expect_refusals(statements, COUNT(attempts), "PermissionError");
    size_t n;
    char *text = read_bytes(victim, &n);
    cr_assert_str_eq(text, "whole");
    free(text);
    cr_assert_eq(count_files(s.folder), 1);
    scratch_close(&s);
}

Test(sandbox, other_processes_and_limits_are_out_of_reach)
{
    char kill_us[64];
    snprintf(kill_us, sizeof(kill_us), "os.kill(%d, signal.SIGKILL)", (int)getpid());
    const char *const statements[] = {kill_us, "os.kill(0, signal.SIGKILL)",
                                      "os.kill(-1, signal.SIGKILL)", "os.setsid()",
                                      "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))"};
    expect_refusals(statements, COUNT(statements), "(PermissionError, ValueError)");
    expect_output(
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "print(libc.unshare(0x10000000), libc.ptrace(0, 0, 0, 0), libc.shmget(0, 9, 0o1777), "
        "libc.syscall(452, -100, b'.', 0, 0))", /* fchmodat2 */
        "-1 -1 -1 -1\n");
    expect_output("import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: print('mine'))\n"
                  "os.kill(os.getpid(), signal.SIGUSR1)",
                  "mine\n"); /* its own are let through */
}

Test(sandbox, the_environment_and_open_files_of_the_parent_stay_with_it)
{
    setenv("DMS_SECRET", "secret", 1);
    FILE *f = fopen("/dev/null", "r"); /* without close-on-exec */
    expect_output(
        "import os\nprint('DMS_SECRET' in os.environ, sorted(os.listdir('/proc/self/fd'))[:4])",
        "False ['0', '1', '2', '3']\n"); /* 3 is the folder that is listed */
    fclose(f);
}

Test(sandbox, its_folder_is_gone_afterwards)
{
    const char *const argv[] = {python, "-c", "import os; print(os.getcwd(), end='')", NULL};
    dms_run run;
    struct stat st;
    must(dms_sandbox_run(box, &run, argv, dms_span_of(""), usual));
    must(dms_text_end(&run.output));
    cr_assert_eq(stat(run.output.bytes, &st), 0);
    close_box();
    cr_assert_eq(stat(run.output.bytes, &st), -1);
    dms_run_free(&run);
    dms_sandbox_close(NULL);
}

Test(sandbox, a_program_that_does_not_exist_is_named)
{
    const char *const argv[] = {"no-such-program", NULL};
    dms_run run;
    rig_expect_failure(dms_sandbox_run(box, &run, argv, dms_span_of(""), usual), DMS_ERR_IO,
                       "no-such-program cannot be run in a sandbox: No such file");
}

static dms_code_result judge(const char *code, const char *function, const dms_code_test *tests,
                             size_t n)
{
    dms_code_result result;
    const dms_item item = {.kind = DMS_ITEM_CODE,
                           .id = "i",
                           .tests = tests,
                           .n_tests = n,
                           .function = function,
                           .timeout = 2};
    must(dms_code_judge(&result, box, &item, dms_span_of(code)));
    return result;
}

Test(code, a_program_is_judged_by_its_output)
{
    static const dms_code_test sums[] = {{"1 2\n", "3\n"}, {"4 5", "9"}, {"1 1", "2"}};
    static const struct {
        const char *code;
        dms_code_verdict verdict;
        size_t test;
    } rows[] = {
        {"a, b = map(int, input().split())\nprint(a + b)", DMS_CODE_PASSED, 3},
        {"a, b = map(int, input().split())\nprint(a + b, end='')", DMS_CODE_PASSED, 3},
        {"a, b = map(int, input().split())\nprint(f'  {a + b}.0 \\n\\n')", DMS_CODE_PASSED, 3},
        {"a, b = map(int, input().split())\nprint(a * b + 1)", DMS_CODE_WRONG, 1},
        {"print(3)", DMS_CODE_WRONG, 1},
        {"print(3)\nprint()\nprint(3)", DMS_CODE_WRONG, 0},
        {"pass", DMS_CODE_WRONG, 0},
        {"import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit(1)", DMS_CODE_PASSED,
         3},
        {"print(sum(map(int, input().split())))\nexit()", DMS_CODE_PASSED, 3},
        {"if __name__ == '__main__':\n    print(sum(map(int, input().split())))", DMS_CODE_PASSED,
         3},
        {"print(sum(map(int, stdin.readline().split())))", DMS_CODE_PASSED,
         3}, /* from sys import * */
        {"c = Counter(); heappush([], 1); print(reduce(add, map(int, input().split())))",
         DMS_CODE_PASSED, 3},
        {"print(3)\nraise ValueError('no')", DMS_CODE_FAILED, 0},
        {"print(", DMS_CODE_FAILED, 0},
        {"import os\nos._exit(0)", DMS_CODE_WRONG, 0},
        {"import os, signal\nos.kill(os.getpid(), 9)", DMS_CODE_FAILED, 0},
        {"while True: pass", DMS_CODE_TOO_LONG, 0},
        {"while True: print('x' * 10000)", DMS_CODE_TOO_MUCH, 0},
        {"", DMS_CODE_FAILED, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const dms_code_result r = judge(rows[i].code, NULL, sums, 3);
        cr_expect_eq(r.verdict, rows[i].verdict, "%s: %d (%s)", rows[i].code, r.verdict, r.note);
        cr_expect_eq(r.test, rows[i].test, "%s: test %zu", rows[i].code, r.test);
    }
    cr_expect_str_eq(judge("raise ValueError('no')", NULL, sums, 3).note, "ValueError: no");
}

Test(code, a_function_is_judged_by_what_it_returns)
{
    static const dms_code_test tests[] = {{"[1, 2]\n3", "[1, 2, 3]"}, {"[]\n0", "[0]"}};
    static const struct {
        const char *code;
        dms_code_verdict verdict;
    } rows[] = {
        {"def f(a, b): return a + [b]", DMS_CODE_PASSED},
        {"class Solution:\n    def f(self, a, b): return a + [b]", DMS_CODE_PASSED},
        {"class Solution:\n    def f(self, a: List[int], b: int) -> List[int]:\n"
         "        print('debug'); return a + [b]",
         DMS_CODE_PASSED},
        {"def f(a, b): return tuple(a + [b])", DMS_CODE_PASSED},
        {"def f(a, b): return [float(x) for x in a + [b]]", DMS_CODE_PASSED},
        {"def f(a, b): return [[x] for x in a + [b]]", DMS_CODE_WRONG},
        {"def f(a, b): return set(a + [b])", DMS_CODE_WRONG},
        {"def f(a, b): return str(a + [b])", DMS_CODE_WRONG},
        {"def f(a, b): return None", DMS_CODE_WRONG},
        {"def f(a): return a", DMS_CODE_FAILED},
        {"def g(a, b): return a + [b]", DMS_CODE_FAILED},
        {"class Solution:\n    def g(self, a, b): return a + [b]", DMS_CODE_FAILED},
        {"def f(a, b): exit()", DMS_CODE_WRONG},
        {"def f(a, b):\n    while True: pass", DMS_CODE_TOO_LONG},
        {"def f(a, b):\n    class same:\n        def __eq__(self, o): return True\n    return "
         "same()",
         DMS_CODE_WRONG}, /* the comparison does not run the code */
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const dms_code_result r = judge(rows[i].code, "f", tests, 2);
        cr_expect_eq(r.verdict, rows[i].verdict, "%s: %d (%s)", rows[i].code, r.verdict, r.note);
    }
}

Test(code, values_are_compared_as_python_compares_them)
{
    static const struct {
        const char *value, *expected;
        bool same;
    } rows[] = {
        {"1", "1.0", true},
        {"True", "true", true},
        {"True", "1", true},
        {"None", "null", true},
        {"'a'", "\"a\"", true},
        {"'\\u00e9'", "\"\\u00e9\"", true},
        {"2**70", "1180591620717411303424", true},
        {"2**70", "1180591620717411303425", false},
        {"[(1, 2)]", "[[1, 2]]", false},
        {"((1, 2),)", "[[1, 2]]", false},
        {"{'a': 1}", "{\"a\": 1}", true},
        {"{1: 1}", "{\"1\": 1}", false},
        {"float('nan')", "NaN", false},
        {"0.1 + 0.2", "0.3", false},
        {"0.5", "0.50", true},
        {"[]", "{}", false},
        {"float('inf')", "Infinity", true},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char code[128];
        const dms_code_test test = {"0", rows[i].expected};
        snprintf(code, sizeof(code), "def f(a): return %s", rows[i].value);
        const dms_code_result r = judge(code, "f", &test, 1);
        cr_expect_eq(r.verdict, rows[i].same ? DMS_CODE_PASSED : DMS_CODE_WRONG, "%s and %s: %s",
                     rows[i].value, rows[i].expected, r.note);
    }
}

Test(code, lines_are_compared_without_white_space_then_as_numbers)
{
    static const struct {
        const char *output, *expected;
        bool same;
    } rows[] = {
        {"a\nb\n", "a\nb", true},
        {"a \n b", "a\nb", true},
        {"a\n\nb", "a\nb", false},
        {"a\n\nb", "a\n\nb", true},
        {"", "", true},
        {"\n", "", true},
        {"", "a", false},
        {"a", "", false},
        {"a\r\nb", "a\nb", true},
        {"1.0", "1", true},
        {"1 2", "1  2", true},
        {"1 2.50", "1.0 2.5", true},
        {"1 2", "1 2 3", false},
        {"1 2 3", "1 2", false},
        {"1e3", "1000", true},
        {"0.1", ".1", true},
        {"-0", "0", true},
        {"1.0000000001", "1", false},
        {"YES", "yes", false},
        {"a b", "a  b", false},
        {"1 a", "1.0 a", false},
        {"50000000000000000", "50000000000000001", false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        bool same;
        must(dms_code_same_output(&same, dms_span_of(rows[i].output),
                                  dms_span_of(rows[i].expected)));
        cr_expect_eq(same, rows[i].same, "\"%s\" and \"%s\"", rows[i].output, rows[i].expected);
    }
}

Test(code, decimals_are_equal_whatever_their_zeros)
{
    static const struct {
        const char *a, *b;
        int equal; /* -1: one is no number */
    } rows[] = {
        {"1", "1", 1},       {"1", "2", 0},           {"10", "1e1", 1},
        {"10", "1", 0},      {"100", "1E+2", 1},      {"0.010", "1e-2", 1},
        {"1.50", "1.5", 1},  {"15", "1.5", 0},        {"1.5e1", "15", 1},
        {"0", "0.000", 1},   {"0", "-0e9", 1},        {"0", "1", 0},
        {"-1", "1", 0},      {"+1", "1", 1},          {"01", "1", 1},
        {"1_000", "1e3", 1}, {"1.", "1", 1},          {".5", "0.5", 1},
        {".", "1", -1},      {"", "1", -1},           {"e5", "1", -1},
        {"1e", "1", -1},     {"1e+", "1", -1},        {"1.2.3", "1", -1},
        {"0x1", "1", -1},    {"inf", "Infinity", 1},  {"inf", "-inf", 0},
        {"nan", "nan", 0},   {"inf", "1", 0},         {"information", "1", -1},
        {"nan1", "1", 0},    {"1200.0", "1.2e3", 1},  {"1002", "12", 0},
        {"1.002", "1.2", 0}, {"100.5", "1005e-1", 1}, {"123_", "123", 1},
        {"1e99", "1e98", 0}, {"10e98", "1e99", 1},    {"-", "1", -1},
        {"1 ", "1", -1},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        bool equal = false;
        const bool numbers =
            dms_decimal_equal(&equal, dms_span_of(rows[i].a), dms_span_of(rows[i].b));
        cr_expect_eq(numbers ? equal : -1, rows[i].equal, "%s and %s", rows[i].a, rows[i].b);
    }
}
