/* How programs (*_main.c) begin and end: output checked, one message on standard error, the exit
 * code. */
#ifndef DMS_PROGRAM_H
#define DMS_PROGRAM_H

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/status.h"

enum { DMS_EXIT_DONE, DMS_EXIT_FAILED, DMS_EXIT_USAGE };

/* Whole seeds up to here are exact in configuration files, whose numbers are doubles. */
#define DMS_MAX_SEED 9000000000000000

/* First of all: a file too large for the limit (ulimit -f) is then a failure of its write, which
 * has a message, and not the end. */
static inline void dms_program_begin(void)
{
    signal(SIGXFSZ, SIG_IGN);
}

/* Says the failure on standard error; with DMS_TRACE set, also where in the source it was. */
static inline void dms_program_complain(const char *program)
{
    fprintf(stderr, "%s: %s\n", program, dms_error_message());
    if (getenv("DMS_TRACE"))
        fprintf(stderr, "%s: %s\n", program, dms_error_text());
}

/* The exit code; buffered output that cannot be written is a failure too. */
static inline int dms_program_end(const char *program, dms_status status)
{
    const int flushed = fflush(stdout);
    if (!status && (flushed || ferror(stdout)))
        status = dms_fail(DMS_ERR_IO, "writing to standard output failed");
    if (status)
        dms_program_complain(program);
    return status ? DMS_EXIT_FAILED : DMS_EXIT_DONE;
}

/* The same for wrong usage. */
static inline int dms_program_refuse(const char *program)
{
    dms_program_complain(program);
    return DMS_EXIT_USAGE;
}

/* DMS_ERR_ARG that names the option which getopt_long has just returned '?' for. */
static inline dms_status dms_program_bad_option(char *const *argv)
{
    const char *last = argv[optind - 1];
    const char letter[] = {'-', (char)optopt, 0};
    return dms_fail(DMS_ERR_ARG,
                    "option %s is unknown, ambiguous, without its value or with one too many; see "
                    "--help",
                    strncmp(last, "--", 2) ? letter : last);
}

/* optarg as a whole number; DMS_ERR_ARG names the option. */
static inline dms_status dms_program_number(int64_t *out, const char *option, int64_t low,
                                            int64_t high)
{
    char *end;
    errno = 0;
    const long long n = strtoll(optarg, &end, 10);
    if (errno || end == optarg || *end || n < low || n > high)
        return dms_fail(DMS_ERR_ARG,
                        "%s is \"%s\", expected a whole number from %" PRId64 " to %" PRId64,
                        option, optarg, low, high);
    *out = n;
    return DMS_OK;
}

#endif
