/* The folder of a run: what a run that starts anew may not find there. */
#ifndef DMS_FOLDER_H
#define DMS_FOLDER_H

#include "train/recipe.h"

/* Whether a run may begin or go on in run.folder. One with `latest` is a run's. Without it, what a
 * run would replace there (config.yaml, metrics.jsonl, checkpoints/step-NNNNNN.h5) must be of this
 * recipe: config.yaml is to the byte the recipe as dms_recipe_write has it, and not more than one
 * checkpoint is there, as after a run that was killed before its first save was complete. Else
 * DMS_ERR_ARG: what was found, the remedy. Touches nothing. DMS_ERR_NOMEM. */
dms_status dms_folder_check(const dms_recipe *recipe);

#endif
