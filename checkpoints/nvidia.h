/* NVIDIA's layout of a DMS checkpoint: the keys of its config.json, out and back. */
#ifndef DMS_NVIDIA_H
#define DMS_NVIDIA_H

#include <jansson.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* A new config.json, which the caller drops, in the layout that NVIDIA's classes read (sources:
 * configuration_qwen3_dms.py of NVIDIA/Model-Optimizer experimental/dms; the config.json of
 * nvidia/Qwen3-8B-DMS-8x). The gate decides which one:
 *   adapter: the trainer's (Qwen3ConfigDMS, Qwen3ForCausalLMDMS): every key, no architectures;
 *   neuron: the released checkpoint's (Qwen3Config, Qwen3ForCausalLM): scale, offset, window, cr.
 * Other families get the same keys and class names made the same way, of which NVIDIA has no code.
 * auto_map only names the code; the code itself is never part of an export. The tensors are the
 * same as in a Hugging Face folder. Keys the config lacks take NVIDIA's values.
 * Errors: DMS_ERR_ARG (no gate; a decision that governs its own token; an adapter's window below 2,
 * as NVIDIA's must exceed a page of its cache; another family), DMS_ERR_NOMEM. */
dms_status dms_nvidia_config(json_t **out, const json_t *config);

/* The way back: without an auto_map that names such code, and with the family's architectures.
 * The dms_ keys stay. */
dms_status dms_plain_config(json_t **out, const json_t *config);

DMS_END_C
#endif
