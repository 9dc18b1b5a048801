#include "train/folder.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { ROOM = DMS_PATH_SIZE + 320 }; /* a folder's path and a name in it */

static bool is_there(const char *folder, const char *name)
{
    char path[ROOM];
    struct stat info;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return lstat(path, &info) == 0;
}

/* The number of *.h5 in checkpoints, and the name of one of them. */
static int count_checkpoints(const char *folder, char name[ROOM])
{
    char path[ROOM];
    int n = 0;
    snprintf(path, sizeof(path), "%s/checkpoints", folder);
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        const size_t length = strlen(entry->d_name);
        if (length <= 3 || strcmp(entry->d_name + length - 3, ".h5") != 0)
            continue;
        snprintf(name, ROOM, "checkpoints/%s", entry->d_name);
        n++;
    }
    closedir(dir);
    return n;
}

/* Whether the file has these bytes and no others. */
static bool file_is(const char *path, const char *text, size_t n)
{
    FILE *in = fopen(path, "rb");
    if (!in)
        return false;
    size_t at = 0;
    for (int c; (c = getc(in)) != EOF; at++)
        if (at == n || c != (unsigned char)text[at])
            break;
    const bool same = at == n && feof(in) && !ferror(in);
    fclose(in);
    return same;
}

/* Whether config.yaml is what a run of this recipe writes there. */
static dms_status says_the_same(bool *same, const dms_recipe *recipe)
{
    char path[ROOM], *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return dms_fail(DMS_ERR_NOMEM, "no memory to compare recipes");
    dms_status status = dms_recipe_write(recipe, out);
    if (fclose(out) && !status)
        status = dms_fail(DMS_ERR_NOMEM, "no memory to compare recipes");
    snprintf(path, sizeof(path), "%s/config.yaml", recipe->run.folder);
    *same = !status && file_is(path, text, n);
    free(text);
    return status;
}

dms_status dms_folder_check(const dms_recipe *recipe)
{
    const char *folder = recipe->run.folder;
    char checkpoint[ROOM];
    bool same;
    if (is_there(folder, "latest"))
        return DMS_OK;
    const int n = count_checkpoints(folder, checkpoint);
    const bool has_config = is_there(folder, "config.yaml");
    const char *found = has_config                          ? "config.yaml"
                        : is_there(folder, "metrics.jsonl") ? "metrics.jsonl"
                        : n                                 ? checkpoint
                                                            : NULL;
    if (n > 1)
        return dms_fail(DMS_ERR_ARG,
                        "run.folder %s holds %d checkpoints (%s) and no link latest to go on from: "
                        "link it to one of them, or give another run.folder to start anew",
                        folder, n, checkpoint);
    if (!found)
        return DMS_OK;
    DMS_TRY(says_the_same(&same, recipe));
    if (same)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "run.folder %s holds %s, which %s: the run would replace it; give another "
                    "run.folder, or move what that one holds elsewhere",
                    folder, found,
                    has_config ? "is not what a run of this recipe wrote" : "no run wrote");
}
