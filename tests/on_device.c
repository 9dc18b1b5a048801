/* on_device NAME PROGRAM ARGUMENTS: runs a program of tests on a device, or exits 77, which ctest
 * counts as skipped, with the reason, where NAME is cuda and the machine has no GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/device.h"

int main(int argc, char **argv)
{
    dms_device *dev = NULL;
    if (argc < 3) {
        fprintf(stderr, "on_device: expected a device and a program\n");
        return 2;
    }
    const dms_status status = dms_device_from_name(&dev, argv[1], 1);
    if (status) {
        printf("[SKIP] %s on %s: %s\n", argv[2], argv[1], dms_error_message());
        return status == DMS_ERR_NODEVICE && !strcmp(argv[1], "cuda") ? 77 : 1;
    }
    dev->close(dev);
    setenv("DMS_TEST_DEVICE", argv[1], 1);
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 1;
}
