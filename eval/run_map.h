/* What a trained gate evicts: the ratio of every KV head, and which tokens of a text. */
#ifndef DMS_RUN_MAP_H
#define DMS_RUN_MAP_H

#include "data/tokenizer.h"
#include "model/model.h"

/* The beginning of a text. */
typedef struct {
    char **tokens;    /* [n] texts; a token that completes no character has an empty one */
    float *fractions; /* [n] of all heads, those that evict it; NaN: no decision governs it */
    int64_t n;
} dms_sample;

typedef struct {
    float *ratio; /* [layers, kv_heads]: governed tokens/those kept, at least one counted as kept */
    int layers, kv_heads;
    double reached;            /* of all heads together: 1/(1 - fraction evicted) */
    int64_t contexts, context; /* decided on */
    int64_t window;            /* of the law, tokens */
    dms_sample sample;         /* the first context's beginning */
} dms_run_map;

/* What the maps are made of; all borrowed. */
typedef struct {
    const dms_model *model; /* with a gate */
    const dms_tokenizer *tokenizer;
    const int32_t *ids;        /* [contexts, context] */
    int64_t contexts, context; /* >= 1, >= 2 */
    int64_t sample;            /* tokens of the sample, at most; >= 1 */
} dms_run_map_source;

/* Runs the contexts through hard decisions without noise, one at a time; the caller ends *out with
 * dms_run_map_close. A token is governed by the decision that follows it (kernels/visibility.h), so
 * the last of each context is not. DMS_ERR_ARG: no gate, ids that the model does not have, a
 * context that it is not open for; DMS_ERR_NOMEM; errors of the device. */
dms_status dms_run_map_make(dms_run_map *out, const dms_run_map_source *source);
/* The same for a run's folder: the checkpoint `latest`, on the device and in the arithmetic that
 * its config.yaml names, and the first contexts, at most four, of its data.heldout. DMS_ERR_ARG
 * where config.yaml names no held-out text; errors of opening the files. */
dms_status dms_run_map_open(dms_run_map *out, const char *folder);
void dms_run_map_close(dms_run_map *map);

enum { DMS_NOTICE_SIZE = 1024 };
/* Writes FOLDER/report.html (eval/report_run.h) with that map and sample. Where these cannot be
 * made, which the page says too, notice tells why; else it is "". command: what made the run, or
 * NULL. Errors: those of dms_report_run_write. */
dms_status dms_run_map_report(char notice[DMS_NOTICE_SIZE], const char *folder,
                              const char *command);

#endif
