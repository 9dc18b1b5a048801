/* The report of a training run: its curves, where it evicts, its evaluations, its configuration. */
#ifndef DMS_REPORT_RUN_H
#define DMS_REPORT_RUN_H

#include "eval/page.h"

typedef struct {
    const char *folder; /* holds metrics.jsonl, and config.yaml unless origin.config is given */
    const char *title;  /* NULL: the folder's last name */
    /* Compression ratio reached by each KV head, [layers, kv_heads]; NULL: no map. */
    const float *ratios;
    int layers, kv_heads;
    const char *ratios_note; /* on which text; without ratios why there are none; NULL: nothing */
    /* A sample text: tokens as text, [n_tokens], of which `fractions` of all heads evict each, in
     * [0, 1] (anything else: not known); NULL: none. A token may be a part of a code point: it
     * shows as U+FFFD; join such tokens first. */
    const char *const *tokens;
    const float *fractions;
    int64_t n_tokens;
    dms_origin origin;
} dms_report_run;

/* Writes the page to `path`. DMS_ERR_ARG: sizes that do not go together; DMS_ERR_IO,
 * DMS_ERR_FORMAT: the log cannot be read, or holds no line of a run (a cut last line is passed
 * over, other lines that cannot be read are counted in the page; dms_run_log_read); DMS_ERR_NOMEM.
 */
dms_status dms_report_run_write(const char *path, const dms_report_run *report);

#endif
