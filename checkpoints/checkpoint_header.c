#include "checkpoints/checkpoint_header.h"

#include <string.h>

static const dms_file_type file_types[DMS_TENSOR_TYPES] = {DMS_FILE_BF16, DMS_FILE_F32,
                                                           DMS_FILE_F16, DMS_FILE_I32};

void dms_tensor_types_make(dms_tensor_types *types)
{
    for (int i = 0; i < DMS_TENSOR_TYPES; i++) {
        size_t n = sizeof(types->codes[i]);
        types->ids[i] = dms_hdf5_type(file_types[i]);
        const bool ok = H5Tencode(types->ids[i], types->codes[i], &n) >= 0 && n > 2;
        types->sizes[i] = ok && n <= sizeof(types->codes[i]) ? n - 2 : 0;
    }
}

void dms_tensor_types_drop(dms_tensor_types *types)
{
    for (int i = 0; i < DMS_TENSOR_TYPES; i++)
        dms_hdf5_drop(types->ids[i]);
}

bool dms_tensor_types_find(dms_file_type *out, const dms_tensor_types *types, hid_t set)
{
    const hid_t type = H5Dget_type(set);
    bool found = false;
    for (int i = 0; type >= 0 && !found && i < DMS_TENSOR_TYPES; i++) {
        found = H5Tequal(type, types->ids[i]) > 0;
        *out = file_types[i];
    }
    dms_hdf5_drop(type);
    return found;
}

/* ---- object headers ------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at;
    size_t size;
} span;

static span after(span s, size_t n)
{
    return (span){s.at + n, s.size - n};
}

/* Offsets and lengths are of 8 bytes and count from the start of the file. */
static bool is_plain_file(const dms_mapping *m)
{
    const uint8_t *superblock = m->bytes;
    return m->size >= 48 && superblock[8] >= 2 && superblock[8] <= 3 && superblock[9] == 8 &&
           superblock[10] == 8 && !dms_little_endian(superblock + 12, 8);
}

/* The messages of a header of version 2: signature, version, flags, four times (flag 0x20), two
 * limits (flag 0x10), the messages' size in 1, 2, 4 or 8 bytes, the messages. */
static bool find_messages(span *out, const dms_mapping *m, haddr_t address)
{
    enum { ATTRIBUTES_IN_ORDER = 4, LIMITS = 16, TIMES = 32 };
    if (!is_plain_file(m) || address > m->size || m->size - address < 6)
        return false;
    span s = {m->bytes + address, m->size - address};
    const int flags = s.at[5];
    const size_t width = (size_t)1 << (flags & 3);
    const size_t fixed = 6u + (flags & TIMES ? 16u : 0) + (flags & LIMITS ? 4u : 0);
    if (memcmp(s.at, "OHDR\2", 5) || flags & ATTRIBUTES_IN_ORDER || s.size < fixed + width)
        return false;
    const uint64_t size = dms_little_endian(s.at + fixed, (int)width);
    s = after(s, fixed + width);
    *out = (span){s.at, size};
    return size <= s.size;
}

/* What of a header has been seen. */
enum { SPACE = 1, TYPE = 2, LAYOUT = 4, CRC = 8, ALL = 15 };

/* Version 2, rank, flags, 1 (simple) or 0 (scalar), the dimensions. */
static int read_space(dms_dataset_header *h, span s)
{
    const int rank = s.size < 4 ? 5 : s.at[1];
    if (rank > 4 || s.at[0] != 2 || s.at[3] != (rank > 0) || s.size < 4 + 8 * (size_t)rank)
        return 0;
    h->rank = rank;
    for (int i = 0; i < rank; i++)
        h->shape[i] = dms_little_endian(s.at + 4 + 8 * i, 8);
    return SPACE;
}

/* The first byte has the class below and the version above: 1 to 3 write our types alike. */
static int read_type(dms_dataset_header *h, const dms_tensor_types *types, span s)
{
    for (int i = 0; i < DMS_TENSOR_TYPES; i++) {
        const size_t n = types->sizes[i];
        const uint8_t *code = types->codes[i] + 2;
        if (n && s.size == n && (s.at[0] & 15) == (code[0] & 15) && s.at[0] >> 4 <= 3 &&
            !memcmp(s.at + 1, code + 1, n - 1)) {
            h->type = file_types[i];
            return TYPE;
        }
    }
    return 0;
}

/* Version 3 or 4, class 1 (contiguous), address, size. */
static int read_layout(dms_dataset_header *h, span s)
{
    if (s.size < 18 || s.at[0] < 3 || s.at[0] > 4 || s.at[1] != 1)
        return 0;
    h->offset = dms_little_endian(s.at + 2, 8);
    return LAYOUT;
}

/* The attribute crc32 of version 3, a scalar u32; others do not matter. */
static int read_crc(dms_dataset_header *h, span s)
{
    static const uint8_t head[] = {3,   0,   6,   0,   12,  0, 4, 0, 0, /* sizes, ASCII */
                                   'c', 'r', 'c', '3', '2', 0,          /* name */
                                   16,  0,   0,   0,   4,   0, 0, 0,    /* 4 bytes, unsigned */
                                   0,   0,   32,  0,                    /* bits 0 to 31 */
                                   2,   0,   0,   0};                   /* scalar */
    if (s.size != sizeof(head) + 4 || memcmp(s.at, head, sizeof(head)))
        return 0;
    h->crc = (uint32_t)dms_little_endian(s.at + sizeof(head), 4);
    return CRC;
}

bool dms_dataset_header_read(dms_dataset_header *out, const dms_tensor_types *types,
                             const dms_mapping *m, haddr_t address)
{
    enum { M_SPACE = 1, M_TYPE = 3, M_EXTERNAL = 7, M_LAYOUT = 8, M_ATTRIBUTE = 12, M_MORE = 16 };
    enum { HEAD = 4, SHARED = 2 }; /* type, size in 2 bytes, flags */
    span s;
    int seen = 0;
    if (!find_messages(&s, m, address))
        return false;
    while (s.size >= HEAD) {
        const int type = s.at[0], flags = s.at[3];
        const span body = {s.at + HEAD, dms_little_endian(s.at + 1, 2)};
        if (body.size > s.size - HEAD || flags & SHARED || type == M_MORE || type == M_EXTERNAL)
            return false;
        seen |= type == M_SPACE       ? read_space(out, body)
                : type == M_TYPE      ? read_type(out, types, body)
                : type == M_LAYOUT    ? read_layout(out, body)
                : type == M_ATTRIBUTE ? read_crc(out, body)
                                      : 0;
        s = after(s, HEAD + body.size);
    }
    return seen == ALL;
}
