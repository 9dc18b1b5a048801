/* Names of the CPU ops: every file beside this one but device.c is compiled once for each
 * instruction set, and DMS_CPU(NAME) carries that set in its name. */
#ifndef DMS_CPU_ISA_H
#define DMS_CPU_ISA_H

#include "kernels/ops.h"

#define DMS_CPU_PASTE_(isa, name) dms_cpu_##isa##_##name
#define DMS_CPU_PASTE(isa, name) DMS_CPU_PASTE_(isa, name)
/* A function or table of the instruction set being compiled (DMS_ISA: base, v3 or v4). */
#define DMS_CPU(name) DMS_CPU_PASTE(DMS_ISA, name)

#define X(name) dms_##name##_fn DMS_CPU(name);
DMS_OP_LIST(X)
#undef X

extern const dms_op_table DMS_CPU(table);

#endif
