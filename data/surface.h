/* What the texts of a vocabulary's tokens stand for: the key decoder of a tokenizer.json. */
#ifndef DMS_SURFACE_H
#define DMS_SURFACE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* A value; its texts belong to the JSON it was read from. */
typedef struct {
    bool byte_level;       /* characters of data/bytelevel.h; nothing else then */
    const char *from, *to; /* Replace, or NULL; `to` is at most as long as `from` */
    size_t n_from, n_to;
    bool byte_fallback; /* "<0x0A>" is the byte 0x0A */
    char strip;         /* a text's first character loses this one, or 0 */
} dms_surface;

/* `json` is the key "decoder": ByteLevel, or a Sequence of Replace (of a text),
 * ByteFallback, Fuse, Strip (of one ASCII character at the start), each at most once and in this
 * order. Errors: DMS_ERR_FORMAT, naming what was found. */
dms_status dms_surface_read(dms_surface *out, const json_t *json, const char *origin);

/* Writes what a token's text stands for to out, at most n bytes, and returns how many. */
size_t dms_surface_of(const dms_surface *s, char *out, const char *text, size_t n);

DMS_END_C
#endif
