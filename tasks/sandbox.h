/* Runs a program that nobody has read: in a child with limits, without network, that can change no
 * file. */
#ifndef DMS_SANDBOX_H
#define DMS_SANDBOX_H

#include <stdbool.h>

#include "tasks/text.h"

typedef struct dms_sandbox dms_sandbox;

typedef struct {
    double seconds; /* of wall time, and of processor time (rounded up) */
    int64_t memory; /* bytes of address space */
    int64_t output; /* bytes of standard output and error together */
} dms_sandbox_limits;

typedef enum {
    DMS_RUN_ENDED,    /* by itself */
    DMS_RUN_TOO_LONG, /* either time */
    DMS_RUN_TOO_MUCH, /* output */
    DMS_RUN_KILLED,   /* by another signal */
} dms_run_end;

typedef struct {
    dms_run_end end;
    int code;        /* exit code, or the signal */
    dms_text output; /* what it wrote to standard output; the caller frees both */
    dms_text errors; /* the first 4 KiB of standard error */
} dms_run;

/* `allowed` is the user's word that such programs may run (--allow-code-execution); without it
 * nothing is opened. Makes a scratch folder of its own. Errors: DMS_ERR_ARG (not allowed),
 * DMS_ERR_DEVICE (no filter of system calls for this processor), DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_sandbox_open(dms_sandbox **out, bool allowed);
/* Removes the folder. NULL is legal. */
void dms_sandbox_close(dms_sandbox *s);

/* A file in the folder, which the program can read. `name` without '/'. */
dms_status dms_sandbox_put(dms_sandbox *s, const char *name, dms_span bytes);

/* The interpreter behind the user's `python3`, which may be a script that starts it. It belongs to
 * s. Errors: DMS_ERR_IO where there is none. */
dms_status dms_sandbox_python(dms_sandbox *s, const char **out);

/* Runs argv (NULL-terminated; found in PATH) in the folder, with `input` as standard input and an
 * environment of PATH, HOME and LANG, and waits. It runs under rlimits (processor time, address
 * space, open files, no core), a filter of system calls (tasks/sandbox_filter.h: no processes, no
 * sockets, no signals to others, files for reading only) and, where the kernel lets us, in a
 * network namespace of its own; its group is killed when the time is over. What it can do: read
 * what its user can read, and use its share of processor and memory. It is no defence against
 * faults of the kernel. *run is filled where DMS_OK comes back. Errors: DMS_ERR_IO (no such
 * program, or the kernel refuses a guard), DMS_ERR_NOMEM. */
dms_status dms_sandbox_run(dms_sandbox *s, dms_run *run, const char *const *argv, dms_span input,
                           dms_sandbox_limits limits);
void dms_run_free(dms_run *run);

#endif
