/* What dms-generate prints beside an answer: figures of a run, as a line or as a JSON object. */
#ifndef DMS_GENERATE_PRINT_H
#define DMS_GENERATE_PRINT_H

#include "infer/chains.h"

typedef struct {
    dms_cache *cache;
    int64_t prompt_tokens, new_tokens; /* of the last answer, or of all chains */
    double prefill_s, decode_s;
} dms_generate_figures;

/* Figures of a completion, one line to standard error. */
dms_status dms_generate_print(const dms_generate_figures *f);
/* The same with the text, or the n texts of chains where n > 1, to standard output. DMS_ERR_NOMEM,
 * DMS_ERR_IO. */
dms_status dms_generate_print_json(const dms_generate_figures *f, const dms_chain *texts, int n);
/* The texts of n chains, to standard output. */
void dms_generate_print_chains(const dms_chain *chains, int n);
/* What an answer of a chat left and read, one line to standard error; before: what the cache had
 * counted until then. */
dms_status dms_generate_print_turn(dms_cache *cache, const dms_cache_stats *before);
/* Live slots of a sequence layer by layer, to standard output. DMS_ERR_NOMEM. */
dms_status dms_generate_print_cache(dms_cache *cache, int sequence);

#endif
