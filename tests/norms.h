/* Shapes for the tests of both norms. */
#ifndef DMS_TEST_NORMS_H
#define DMS_TEST_NORMS_H

#include <stdint.h>

/* One below, at and above 16 (channels summed in lanes) and 64 (rows of a partial sum); on a GPU
 * 32 (threads of a warp), 512 (the longest row of a warp), 1024 (of a block in one go), more
 * rows than its 512 partial sums take, of a warp (8 a sum) and of a block, and rows whose sum of
 * 48 KiB fits no block beside the kernel's own shared memory unless asked for. */
static const struct {
    int64_t rows, dim;
} norm_shapes[] = {{1, 1},    {1, 2},    {3, 31},    {5, 15},   {5, 16},   {5, 17},
                   {2, 257},  {63, 7},   {64, 7},    {65, 7},   {9, 32},   {7, 64},
                   {3, 511},  {9, 512},  {3, 513},   {2, 516},  {3, 1024}, {2, 1028},
                   {2, 2052}, {4101, 4}, {515, 516}, {1, 12288}};

#endif
