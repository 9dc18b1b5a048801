#include "data/shard_foreign.h"

#include <inttypes.h>
#include <string.h>

#include "data/shard_format.h"

#define NUMPY "\x93NUMPY"
enum { NUMPY_BYTES = sizeof(NUMPY) - 1, LLMC_HEADER = 4 * 256 };

/* llm.c's magics are dates. Those of its token files, and all that may be one of its files: as two
 * 16-bit ids they would begin with one that GPT-2's vocabulary does not have. */
enum { LLMC_FIRST = 20240101, LLMC_LAST = 20241231 };
static const struct {
    uint32_t magic, version;
    int id_bytes;
} llmc[] = {{20240520, 1, 2}, {20240801, 7, 4}};

static bool ends_in_bin(const char *path)
{
    const size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, ".bin");
}

static bool is_llmc(const uint8_t *bytes, size_t n, const char *path)
{
    const uint64_t magic = n >= 8 ? shard_get(bytes, 4) : 0;
    return magic >= LLMC_FIRST && magic <= LLMC_LAST &&
           (ends_in_bin(path) || shard_get(bytes + 4, 4) < 256);
}

/* What .bin may hold besides: PyTorch's archives and pickles, models. As nanoGPT's ids their bytes
 * would begin with one certain pair. */
static bool is_something_else(const uint8_t *bytes, size_t n)
{
    static const char starts[][5] = {"PK\3\4", "\x80\2\x8a\n", "GGUF", "\x89HDF"};
    for (size_t i = 0; n >= 4 && i < sizeof(starts) / sizeof(*starts); i++)
        if (!memcmp(bytes, starts[i], 4))
            return true;
    return false;
}

bool dms_shard_foreign_recognise(const uint8_t *bytes, size_t n, const char *path)
{
    if (n >= NUMPY_BYTES && !memcmp(bytes, NUMPY, NUMPY_BYTES))
        return true;
    return is_llmc(bytes, n, path) || (ends_in_bin(path) && !is_something_else(bytes, n));
}

/* ---- NumPy's header: a Python dictionary ---------------------------------------------------- */

typedef struct {
    const char *at, *end;
} cursor;

static void skip_spaces(cursor *c)
{
    while (c->at < c->end && strchr(" \t\n", *c->at) && *c->at)
        c->at++;
}

/* Whether `text` comes next, which is then passed over. */
static bool take(cursor *c, const char *text)
{
    const size_t n = strlen(text);
    skip_spaces(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, text, n) != 0)
        return false;
    c->at += n;
    return true;
}

/* A text in quotes without escapes; false for one that is no such text, or that has no room. */
static bool take_text(cursor *c, char out[32])
{
    size_t n = 0;
    skip_spaces(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"'))
        return false;
    for (const char quote = *c->at++; c->at < c->end && *c->at != quote; c->at++) {
        if (n == 31 || *c->at == '\\' || *c->at < ' ' || *c->at > '~')
            return false;
        out[n++] = *c->at;
    }
    out[n] = 0;
    return c->at++ < c->end;
}

static bool take_number(cursor *c, int64_t *out)
{
    skip_spaces(c);
    const char *start = c->at;
    for (*out = 0; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        if (*out > (INT64_MAX - 9) / 10)
            return false;
        *out = 10 * *out + *c->at - '0';
    }
    return c->at > start;
}

typedef struct {
    char descr[32];
    bool has_descr, has_order, has_shape, fortran, one_dimension;
    int64_t n;
} numpy_header;

/* (n,) is one dimension; more are passed over. */
static bool take_shape(cursor *c, numpy_header *h)
{
    int64_t other;
    int dimensions = 0;
    if (!take(c, "("))
        return false;
    while (!take(c, ")")) {
        if (!take_number(c, dimensions ? &other : &h->n))
            return false;
        dimensions++;
        if (!take(c, ",") && (dimensions == 1 || !take(c, ")")))
            return false; /* (n) is no tuple */
        if (c->at[-1] == ')')
            break;
    }
    h->has_shape = true;
    h->one_dimension = dimensions == 1;
    return true;
}

static bool take_key(cursor *c, numpy_header *h)
{
    char key[32];
    if (!take_text(c, key) || !take(c, ":"))
        return false;
    if (!strcmp(key, "descr"))
        return h->has_descr = take_text(c, h->descr);
    if (!strcmp(key, "shape"))
        return take_shape(c, h);
    if (strcmp(key, "fortran_order") != 0)
        return false;
    h->fortran = take(c, "True");
    return h->has_order = h->fortran || take(c, "False");
}

static bool parse_numpy(numpy_header *h, const uint8_t *text, size_t n)
{
    cursor c = {(const char *)text, (const char *)text + n};
    *h = (numpy_header){0};
    if (!take(&c, "{"))
        return false;
    while (!take(&c, "}"))
        if (!take_key(&c, h) || (!take(&c, ",") && (c.at == c.end || *c.at != '}')))
            return false;
    skip_spaces(&c);
    return c.at == c.end && h->has_descr && h->has_order && h->has_shape;
}

static const struct {
    const char *descr, *format;
    int id_bytes;
    bool is_signed;
} types[] = {{"<u2", "NumPy array of u16", 2, false},
             {"<u4", "NumPy array of u32", 4, false},
             {"<i4", "NumPy array of i32", 4, true},
             {"<i8", "NumPy array of i64", 8, true}};

static dms_status take_header(dms_shard_foreign *out, const numpy_header *h, const char *path)
{
    if (!h->one_dimension || h->fortran)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is a NumPy array of %s, expected one dimension in C order: save "
                        "a.ravel()",
                        path, h->fortran ? "Fortran's order" : "another number of dimensions");
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (!strcmp(h->descr, types[i].descr)) {
            out->format = types[i].format;
            out->id_bytes = types[i].id_bytes;
            out->is_signed = types[i].is_signed;
            out->n_tokens = h->n;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: is a NumPy array of type \"%s\"; token ids are read of <u2, <u4, <i4 and "
                    "<i8: save a.astype('<u4')",
                    path, h->descr);
}

static dms_status read_numpy(dms_shard_foreign *out, const uint8_t *bytes, size_t n,
                             const char *path)
{
    numpy_header h;
    const int version = n > 7 ? bytes[6] : 0;
    if ((version != 1 && version != 2) || bytes[7] != 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is a NumPy file of version %d.%d, expected 1.0 or 2.0: save it again "
                        "with numpy.save",
                        path, version, n > 7 ? bytes[7] : 0);
    const size_t start = version == 1 ? 10 : 12;
    const uint64_t length = n < start ? 0 : shard_get(bytes + 8, (int)start - 8);
    if (n < start || length > n - start)
        return dms_fail(DMS_ERR_FORMAT, "%s: its NumPy header is longer than the file: %s", path,
                        "it is truncated or damaged");
    if (!parse_numpy(&h, bytes + start, (size_t)length))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: its NumPy header is not {'descr': text, 'fortran_order': bool, "
                        "'shape': (n,)}: save it again with numpy.save",
                        path);
    out->at = start + (size_t)length;
    return take_header(out, &h, path);
}

static dms_status read_llmc(dms_shard_foreign *out, const uint8_t *bytes, size_t n,
                            const char *path)
{
    const unsigned magic = (unsigned)shard_get(bytes, 4),
                   version = (unsigned)shard_get(bytes + 4, 4);
    size_t kind = 0;
    while (kind < sizeof(llmc) / sizeof(*llmc) &&
           (llmc[kind].magic != magic || llmc[kind].version != version))
        kind++;
    if (kind == sizeof(llmc) / sizeof(*llmc))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is an llm.c file of magic %u and version %u, expected one of tokens: "
                        "20240520 and 1 (16-bit ids) or 20240801 and 7 (32-bit ids)",
                        path, magic, version);
    if (n < LLMC_HEADER)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is an llm.c token file of %zu bytes, its header alone has %d; it is "
                        "truncated",
                        path, n, LLMC_HEADER);
    *out = (dms_shard_foreign){"llm.c token file", LLMC_HEADER, llmc[kind].id_bytes, false,
                               (int64_t)shard_get(bytes + 8, 4)};
    return DMS_OK;
}

dms_status dms_shard_foreign_read(dms_shard_foreign *out, const uint8_t *bytes, size_t n,
                                  const char *path)
{
    dms_shard_foreign f = {"16-bit ids without a header", 0, 2, false, (int64_t)(n / 2)};
    if (n >= NUMPY_BYTES && !memcmp(bytes, NUMPY, NUMPY_BYTES))
        DMS_TRY(read_numpy(&f, bytes, n, path));
    else if (is_llmc(bytes, n, path))
        DMS_TRY(read_llmc(&f, bytes, n, path));
    const size_t left = n - f.at, bytes_of_id = (size_t)f.id_bytes;
    if (left % bytes_of_id || left / bytes_of_id != (uint64_t)f.n_tokens)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: holds %zu bytes of ids, expected %" PRId64
                        " ids of %d bytes (%s); it is truncated or damaged",
                        path, left, f.n_tokens, f.id_bytes, f.format);
    *out = f;
    return DMS_OK;
}
