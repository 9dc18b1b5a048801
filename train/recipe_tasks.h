/* The list `eval` of a recipe's file, event by event. */
#ifndef DMS_RECIPE_TASKS_H
#define DMS_RECIPE_TASKS_H

#include <yaml.h>

#include "train/recipe.h"

typedef struct {
    dms_recipe *recipe;
    int at;     /* what is expected next */
    bool every; /* the task under way has that key already */
    char key[64];
    bool listed; /* the list under way has an element already */
} dms_recipe_tasks;

/* Begins: the recipe's tasks so far are dropped. */
void dms_recipe_tasks_begin(dms_recipe_tasks *r, dms_recipe *recipe);
/* Takes an event; *done where it was the list's last. DMS_ERR_ARG says what was found and
 * expected. */
dms_status dms_recipe_tasks_event(dms_recipe_tasks *r, const yaml_event_t *e, bool *done);

#endif
