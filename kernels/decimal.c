#include "kernels/decimal.h"

#include <stdio.h>
#include <stdlib.h>

double dms_decimal(float x)
{
    char text[32];
    double y = (double)x;
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)x);
        y = strtod(text, NULL);
        if ((float)y == x)
            break;
    }
    return y;
}
