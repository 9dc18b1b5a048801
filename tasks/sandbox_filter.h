/* The system calls that a sandboxed program may not make: a filter for the kernel (seccomp). */
#ifndef DMS_SANDBOX_FILTER_H
#define DMS_SANDBOX_FILTER_H

#include <linux/filter.h>
#include <stdbool.h>

enum { DMS_FILTER_MOST = 512 };

typedef struct {
    struct sock_filter code[DMS_FILTER_MOST];
    unsigned short n;
    unsigned short pids[8]; /* instructions that hold the child's own pid */
    int n_pids;
} dms_filter;

/* Refuses (EPERM, EACCES, or ENOSYS where a C library then takes another way): opening a file for
 * more than reading, and every other change of a file system; processes (threads are let through);
 * signals to others; sockets; limits; and what reaches into other processes or the kernel. Any
 * other call is let through. false on processors that it was not written for. */
bool dms_filter_build(dms_filter *f);
/* In the child, between fork and exec: for this process and what it becomes, for ever. Calls only
 * what is safe there. false with errno. */
bool dms_filter_apply(dms_filter *f);

#endif
