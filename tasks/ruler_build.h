/* How one prompt of a RULER-style task is built from a size and random draws. */
#ifndef DMS_RULER_BUILD_H
#define DMS_RULER_BUILD_H

#include "tasks/ruler_words.h"

/* Sentences of a haystack in order, again from the first after the last. */
typedef struct {
    const dms_span *sentences; /* NULL: made up from the seed */
    uint32_t n;
    uint64_t seed;
} dms_ruler_essay;
dms_status dms_ruler_essay_append(dms_text *out, const dms_ruler_essay *essay, uint32_t index);

typedef enum { DMS_HAY_NOISE, DMS_HAY_ESSAY, DMS_HAY_NEEDLES } dms_ruler_hay;

/* A row of RULER's settings (scripts/synthetic.yaml, data/synthetic/constants.py). */
typedef struct dms_ruler_task dms_ruler_task;

typedef struct {
    const dms_ruler_task *task;
    const dms_ruler_essay *essay;
    uint32_t size; /* of the haystack: sentences, needles, repeats of the noise, or words */
    bool is_short; /* the length is below 4,096 tokens: RULER then repeats words less often */
    uint32_t vocabulary;
    dms_draws *draws;
    /* Appended to. */
    dms_text *prompt, *prefix;
    dms_text *answers; /* with a 0 behind each */
} dms_ruler_build;

struct dms_ruler_task {
    const char *name;
    dms_status (*build)(const dms_ruler_build *b);
    int64_t new_tokens;
    uint32_t least, most; /* sizes */
    dms_ruler_hay hay;    /* from here on: needles */
    bool uuid_keys, uuid_values;
    uint32_t keys, values, queries; /* values a key */
};

dms_status dms_ruler_build_niah(const dms_ruler_build *b);
dms_status dms_ruler_build_vt(const dms_ruler_build *b);
dms_status dms_ruler_build_cwe(const dms_ruler_build *b);
dms_status dms_ruler_build_fwe(const dms_ruler_build *b);

#endif
