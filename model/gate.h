/* The gate of a retrofitted model: which parameterisation, and the constants of its law. */
#ifndef DMS_GATE_H
#define DMS_GATE_H

#include <jansson.h>

#include "model/config.h"

typedef enum { DMS_GATE_NONE, DMS_GATE_NEURON, DMS_GATE_ADAPTER } dms_gate_kind;

/* method.md section 1. */
typedef struct {
    dms_gate_kind kind;
    int64_t window;
    float alpha_scale, alpha_offset;
    float tau; /* of the relaxed decision; training only */
    bool own;  /* a decision governs its own token, not the one before: FastDMS (method.md 2) */
} dms_gate;

/* "none", "neuron", "adapter". */
const char *dms_gate_name(dms_gate_kind kind);
/* DMS_ERR_ARG for any other name. */
dms_status dms_gate_from_name(dms_gate_kind *out, const char *name);

/* No gate; window 512, scale 100, offset 5, tau 0.1. */
dms_gate dms_gate_defaults(void);

/* The gate that a config.json describes with NVIDIA's keys (method.md section 6) and ours,
 * dms_shift (1, what NVIDIA's keys imply, or 0: `own`). Absent and null keys take the defaults;
 * kind NONE where it has none that describes a gate. DMS_ERR_FORMAT names a key that is out of
 * range or asks for what we do not do. */
dms_status dms_gate_parse(dms_gate *out, const json_t *keys);
/* Settles which convention a model runs under, from what the user said: 0, 1, or -1: nothing. The
 * law's is the only one that runs unasked: DMS_ERR_ARG says how to ask for the other. */
dms_status dms_gate_settle(dms_gate *gate, int64_t shift);
/* Writes those keys, dms_cr included (the compression ratio it was trained for; 0: left out). */
dms_status dms_gate_write(json_t *keys, const dms_gate *gate, double cr);

#endif
