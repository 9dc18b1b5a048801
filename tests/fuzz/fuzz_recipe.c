/* A YAML recipe, and each of its lines as an override of the command line. */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "train/recipe.h"

static void set_lines(dms_recipe *recipe, const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    if (!text)
        return;
    memcpy(text, data, size);
    text[size] = 0;
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));)
        (void)dms_recipe_set(recipe, line);
    free(text);
}

void fuzz_recipe(const uint8_t *data, size_t size)
{
    dms_recipe recipe = dms_recipe_defaults();
    FILE *nowhere = fopen("/dev/null", "w");
    if (!dms_recipe_parse(&recipe, (const char *)data, size, "fuzz"))
        (void)dms_recipe_check(&recipe);
    set_lines(&recipe, data, size);
    if (nowhere) {
        (void)dms_recipe_write(&recipe, nowhere);
        fclose(nowhere);
    }
}
