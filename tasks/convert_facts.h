/* What the benchmarks' files are made of, and what becomes of them: a row a benchmark. */
#ifndef DMS_CONVERT_FACTS_H
#define DMS_CONVERT_FACTS_H

#include <jansson.h>

#include "tasks/items.h"

/* One record on its way to an item. */
typedef struct {
    const json_t *record; /* as the file has it */
    json_t *fields;       /* what templates and the item are filled from */
    const char *where;    /* names the record */
    const char *input;    /* the file */
    int64_t index;        /* of the record, from 0 */
    uint64_t seed;
} dms_conversion;

/* Names of fields hold alternatives: "Problem|problem". Templates hold them in braces; {} is
 * itself.
 */
typedef struct {
    const char *name;
    dms_item_kind kind;
    const char *id;     /* field, or NULL: the number of the record */
    const char *prompt; /* template */
    bool chat;          /* the prompt is a user's message */
    const char *header; /* template before the shots, or NULL */
    const char *group;  /* field, or NULL */
    const char *answer; /* extract: field */
    dms_answer_rule rules[DMS_MAX_RULES];
    int n_rules;
    dms_norm norm;
    int64_t max_new_tokens;
    const char *stop;           /* or NULL */
    int shots;                  /* its own number; 0: it has none */
    const char *const *columns; /* of a CSV file without a row of names, or NULL */
    /* Adds to c->fields, which begins as a copy of the record: "choices" (array), "label", "tests",
     * "function", and what templates need; or NULL. */
    dms_status (*prepare)(dms_conversion *c);
} dms_convert_facts;

/* NULL where there is no such benchmark. */
const dms_convert_facts *dms_convert_find(const char *name);
/* The value of the first alternative that the object has and is not null, of text or a whole
 * number; *out is new. Errors: DMS_ERR_FORMAT with what there is instead. */
dms_status dms_convert_field(json_t **out, const dms_conversion *c, const json_t *object,
                             const char *names);

#endif
