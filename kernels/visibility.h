/* The law of visibility (method.md section 2), stated once for every attention kernel and the
 * cache. */
#ifndef DMS_VISIBILITY_H
#define DMS_VISIBILITY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/portable.h"

/* Key `key` has left the window of query `query`: only now does its eviction count. The window is
 * inclusive: a key stays readable for window + 1 queries, its own included. */
DMS_INLINE bool dms_is_late(int64_t query, int64_t key, int64_t window)
{
    return query - key > window;
}

/* Whether `query` sees `key`. `evicted` is the decision that governs the key: the one made at
 * token key + 1. */
DMS_INLINE bool dms_is_visible(int64_t query, int64_t key, int64_t window, bool evicted)
{
    return key <= query && !(evicted && dms_is_late(query, key, window));
}

#endif
