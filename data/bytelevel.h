/* The alphabet of byte-level BPE: one printable code point for each byte (Radford et al., GPT-2,
 * 2019). Bytes printable in Latin-1 stand for themselves, the other 68 are U+0100 on, in order. */
#ifndef DMS_BYTELEVEL_H
#define DMS_BYTELEVEL_H

#include <stdint.h>

/* The code point that stands for a byte. */
static inline int32_t dms_bytelevel_code(uint8_t byte)
{
    if (byte <= 0x20)
        return 0x100 + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return 0x121 + (byte - 0x7F);
    return byte == 0xAD ? 0x143 : byte;
}

/* The byte a code point stands for, or -1. */
static inline int dms_bytelevel_byte(int32_t code)
{
    if (code >= 0x100 && code <= 0x120)
        return code - 0x100;
    if (code >= 0x121 && code <= 0x142)
        return code - 0x121 + 0x7F;
    if (code == 0x143)
        return 0xAD;
    const int printable = (code > 0x20 && code < 0x7F) || (code > 0xA0 && code <= 0xFF);
    return printable && code != 0xAD ? code : -1;
}

#endif
