#include "data/packed.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/jsonl.h"

enum { START = 10, PART = 1 << 16 };

#define UTF16 "text in UTF-16 or UTF-32", "save it in UTF-8 (iconv -t utf-8)"

static const struct {
    const char *bytes;
    size_t n;
    const char *what, *remedy;
} starts[] = {
    {"\xff\xfe", 2, UTF16},
    {"\xfe\xff", 2, UTF16},
    {"\0\0\xfe\xff", 4, UTF16},
    {"\x28\xb5\x2f\xfd", 4, "a zstd file", "unpack it with unzstd, or pack it with gzip"},
    {"\xfd"
     "7zXZ\0",
     6, "an xz file", "unpack it with unxz, or pack it with gzip"},
    {"\x04\x22\x4d\x18", 4, "an lz4 file", "unpack it with unlz4, or pack it with gzip"},
    {"BZh", 3, "a bzip2 file", "unpack it with bunzip2, or pack it with gzip"},
    {"\x1f\x8b\x08", 3, "gzip within gzip", "unpack it once with gunzip"},
    {"PK\3\4", 4, "a zip file (or one built of it, as .docx and .npz)", "unpack it with unzip"},
    {"7z\xbc\xaf\x27\x1c", 6, "a 7z file", "unpack it with 7z x"},
    {"%PDF-", 5, "a PDF file", "make text of it with pdftotext"},
    {"\x93NUMPY", 6, "a NumPy file", "if it holds token ids, name it in data.train as it is"},
    {"\x89HDF\r\n\x1a\n", 8, "an HDF5 file", "name a text"},
    {"GGUF\3\0", 6, "a GGUF file", "name a text"},
    {"PAR1\x15", 5, "a Parquet file", "write its texts as JSON Lines, {\"text\": ...} a line"},
};

/* bzip2's three letters may begin a text: its level and its first block's magic follow. */
static bool begins(const unsigned char *bytes, size_t n, size_t kind)
{
    if (n < starts[kind].n || memcmp(bytes, starts[kind].bytes, starts[kind].n) != 0)
        return false;
    return memcmp(starts[kind].bytes, "BZh", 3) != 0 ||
           (n >= 10 && !memcmp(bytes + 4, "1AY&SY", 6));
}

dms_status dms_packed_check_start(gzFile file, const char *path)
{
    unsigned char bytes[START];
    const int n = gzread(file, bytes, START);
    /* What cannot be unpacked (n < 0) fails again where it is read. */
    for (size_t i = 0; i < sizeof(starts) / sizeof(*starts); i++)
        if (n > 0 && begins(bytes, (size_t)n, i))
            return dms_fail(DMS_ERR_FORMAT, "%s: is %s, expected text in UTF-8, plain or gzip: %s",
                            path, starts[i].what, starts[i].remedy);
    for (int i = n; i-- > 0;)
        if (gzungetc(bytes[i], file) < 0)
            return dms_gzip_failed(file, path);
    return DMS_OK;
}

/* A file of gzip members from its beginning. */
typedef struct {
    FILE *in;
    z_stream z;
    unsigned char bytes[PART], text[PART];
} members;

static bool fill(members *m)
{
    if (!m->z.avail_in) {
        m->z.next_in = m->bytes;
        m->z.avail_in = (unsigned)fread(m->bytes, 1, PART, m->in);
    }
    return m->z.avail_in > 0;
}

/* Unpacks a member; false where none begins here. */
static bool take_member(members *m)
{
    int code = Z_OK;
    if (inflateReset(&m->z) != Z_OK)
        return false;
    while (code == Z_OK && fill(m)) {
        m->z.next_out = m->text;
        m->z.avail_out = PART;
        code = inflate(&m->z, Z_NO_FLUSH);
    }
    return code == Z_STREAM_END;
}

/* Passes over zeros; whether that is all. */
static bool only_zeros(members *m)
{
    while (fill(m)) {
        if (*m->z.next_in)
            return false;
        m->z.next_in++;
        m->z.avail_in--;
    }
    return true;
}

static dms_status walk_members(members *m, const char *path)
{
    while (take_member(m)) {
        if (only_zeros(m))
            return ferror(m->in) ? dms_fail(DMS_ERR_IO, "%s: cannot be read", path) : DMS_OK;
        if (*m->z.next_in != 0x1f)
            break;
    }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: the gzip file is followed by what is none, near byte %lld: it is damaged, "
                    "or something was appended without packing it",
                    path, (long long)ftello(m->in) - (long long)m->z.avail_in);
}

/* Whether the file is one member of `size` bytes of text: its last four say so, which those of junk
 * or of a last member among several do not. */
static bool is_one_member(FILE *in, uint32_t size)
{
    unsigned char b[4] = {0};
    if (fseeko(in, -4, SEEK_END) || fread(b, 1, 4, in) != 4)
        return false;
    return (b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24) == size;
}

static dms_status check_members(FILE *in, const char *path)
{
    members *m = calloc(1, sizeof(*m));
    if (!m || inflateInit2(&m->z, 15 + 16) != Z_OK) {
        free(m);
        return dms_fail(DMS_ERR_NOMEM, "no memory to unpack %s", path);
    }
    m->in = in;
    rewind(in);
    const dms_status status = walk_members(m, path);
    inflateEnd(&m->z);
    free(m);
    return status;
}

dms_status dms_packed_check_end(gzFile file, const char *path)
{
    struct stat info;
    dms_status status = DMS_OK;
    if (gzdirect(file) || stat(path, &info) || !S_ISREG(info.st_mode))
        return DMS_OK;
    FILE *in = fopen(path, "rb");
    if (!in)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    if (!is_one_member(in, (uint32_t)gztell(file)))
        status = check_members(in, path);
    fclose(in);
    return status;
}
