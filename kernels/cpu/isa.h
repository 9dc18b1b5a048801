/* Names of the CPU ops: every file beside this one but device.c and gemm.c is compiled once for
 * each instruction set, and DMS_CPU(NAME) carries that set in its name. */
#ifndef DMS_CPU_ISA_H
#define DMS_CPU_ISA_H

#include "kernels/ops.h"

#define DMS_CPU_PASTE_(isa, name) dms_cpu_##isa##_##name
#define DMS_CPU_PASTE(isa, name) DMS_CPU_PASTE_(isa, name)
/* A function or table of the instruction set being compiled (DMS_ISA: base, v3 or v4). */
#define DMS_CPU(name) DMS_CPU_PASTE(DMS_ISA, name)

/* Element-wise work on fewer elements than this is over before a team of threads has started: with
 * two threads of a Zen 4 the break-even lies between 4,096 and 16,384 (axpy, swiglu). */
enum { DMS_CPU_FORK = 1 << 14 };

#define X(name) dms_##name##_fn DMS_CPU(name);
DMS_OP_LIST(X)
#undef X

extern const dms_op_table DMS_CPU(table);

#endif
