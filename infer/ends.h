/* The tokens that end an answer, beside those of the model's config. */
#ifndef DMS_ENDS_H
#define DMS_ENDS_H

#include "model/model.h"

typedef struct {
    int32_t ids[DMS_MAX_EOS];
    int n;
} dms_ends;

/* One more; not where id < 0 or there is no room. */
void dms_ends_add(dms_ends *ends, int32_t id);
/* Those of a generation_config.json (eos_token_id: a number or a list). text: NULL where there is
 * none; what cannot be read adds nothing. */
void dms_ends_add_generation(dms_ends *ends, const char *text);
/* Whether the token is one of them or of the config's. */
bool dms_ends_have(const dms_ends *ends, const dms_config *config, int32_t id);

#endif
