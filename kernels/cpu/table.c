/* The op table of one instruction set. */
#include "kernels/cpu/isa.h"

const dms_op_table DMS_CPU(table) = {
#define X(name) .name = DMS_CPU(name),
    DMS_OP_LIST(X)
#undef X
};
