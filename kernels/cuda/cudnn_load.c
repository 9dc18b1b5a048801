/* Loads cuDNN where it is installed. The emulated module has its own functions in place of this
 * file. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/cuda/cudnn.h"

static bool find(void *library, const char *name, void *out)
{
    void *found = dlsym(library, name);
    *(void **)out = found;
    return found != NULL;
}

const dms_cudnn *dms_cudnn_load(void)
{
    static dms_cudnn api;
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    bool complete = library != NULL;
#define X(name) complete = complete && find(library, "cudnn" #name, &api.name);
    DMS_CUDNN_LIST(X)
#undef X
    return complete ? &api : NULL;
}
