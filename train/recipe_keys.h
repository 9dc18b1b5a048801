/* The table of a recipe's keys: what the YAML file, the command line and the written copy share. */
#ifndef DMS_RECIPE_KEYS_H
#define DMS_RECIPE_KEYS_H

#include <stdbool.h>
#include <stddef.h>

#include "train/recipe.h"

typedef enum {
    DMS_KEY_TEXT,  /* char[DMS_PATH_SIZE] */
    DMS_KEY_PATHS, /* dms_paths */
    DMS_KEY_REALS, /* dms_weights, each in [low, high] */
    DMS_KEY_WHOLE, /* int64_t in [low, high] */
    DMS_KEY_REAL,  /* double in [low, high] */
    DMS_KEY_BOOL,  /* bool */
    DMS_KEY_CHOICE /* int, index into `choices` */
} dms_key_type;

typedef struct {
    const char *section, *key;
    dms_key_type type;
    size_t offset; /* of the field in dms_recipe */
    double low, high;
    const char *choices[5]; /* NULL ends them */
} dms_recipe_key;

/* Whether values are lists. */
static inline bool dms_recipe_key_is_list(const dms_recipe_key *key)
{
    return key->type == DMS_KEY_PATHS || key->type == DMS_KEY_REALS;
}

/* All keys in the order of the struct. */
const dms_recipe_key *dms_recipe_keys(size_t *n);
/* The key section.key, or NULL. */
const dms_recipe_key *dms_recipe_find(const char *section, const char *key);
/* DMS_ERR_ARG: "unknown key optim.lrr; the nearest is optim.lr". */
dms_status dms_recipe_unknown(const char *section, const char *key);
/* Empties a list. */
void dms_recipe_clear(dms_recipe *recipe, const dms_recipe_key *key);
/* Writes a value into the recipe; `append` adds to a list instead of replacing it. DMS_ERR_ARG
 * names the key, the value and what was expected. */
dms_status dms_recipe_assign(dms_recipe *recipe, const dms_recipe_key *key, const char *value,
                             bool append);

#endif
