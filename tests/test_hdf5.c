#include <fcntl.h>
#include <sys/wait.h>

#include "checkpoints/checkpoint_header.h"
#include "tests/broken_checkpoints.h"

static const char config[] = "{\"model_type\": \"llama\", \"hidden_size\": 4}";

/* Values name tensor and element, so that a mix-up shows. */
static float value(int tensor, int64_t i)
{
    return (float)tensor + (float)i / 64.0f;
}

static dms_status put_weights(dms_checkpoint_writer *w, int n, int64_t elements)
{
    dms_status status = DMS_OK;
    float *x = malloc((size_t)elements * sizeof(*x));
    for (int t = 0; t < n && !status; t++) {
        char name[64];
        snprintf(name, sizeof(name), "model.layers.%d.weight", t);
        for (int64_t i = 0; i < elements; i++)
            x[i] = value(t, i);
        status = dms_checkpoint_put_tensor(w, "weights", name, DMS_F32, 2,
                                           (int64_t[]){elements / 2, 2}, x);
    }
    free(x);
    return status;
}

/* A checkpoint of 20 tensors (more than HDF5 keeps in a compact group) and all kinds of content. */
static dms_status fill(dms_checkpoint_writer *w, int64_t elements)
{
    const uint16_t half[3] = {0x3f80, 0xc000, 0x7f80};
    const int32_t ids[2] = {-1, 7};
    DMS_TRY(put_weights(w, 20, elements));
    DMS_TRY(dms_checkpoint_put_tensor(w, "masters", "flat", DMS_BF16, 1, (int64_t[]){3}, half));
    DMS_TRY(dms_checkpoint_put_tensor(w, "adam_m", "ids", DMS_I32, 2, (int64_t[]){1, 2}, ids));
    DMS_TRY(dms_checkpoint_put_tensor(w, "adam_v", "none", DMS_F32, 1, (int64_t[]){0}, ids));
    DMS_TRY(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    DMS_TRY(dms_checkpoint_put_text(w, "tokenizer", "{\"a\": \"\xc4\xa0\"}", 11));
    DMS_TRY(dms_checkpoint_put_text(w, "teacher_hash", "abc", 3));
    DMS_TRY(dms_checkpoint_put_text(w, "run_config", "", 0));
    for (int i = 0; i < 12; i++) {
        char name[32];
        snprintf(name, sizeof(name), "extra_%d", i);
        DMS_TRY(dms_checkpoint_put_int(w, name, i));
    }
    DMS_TRY(dms_checkpoint_put_int(w, "step", (1ll << 60) + 1));
    return dms_checkpoint_put_real(w, "tau", 0.1);
}

static dms_status save(const char *path, int64_t elements)
{
    dms_checkpoint_writer *w;
    DMS_TRY(dms_checkpoint_writer_open(&w, path));
    const dms_status status = fill(w, elements);
    if (!status)
        return dms_checkpoint_writer_commit(w);
    dms_checkpoint_writer_abort(w);
    return status;
}

static void expect_saved(const char *path, int64_t elements)
{
    dms_checkpoint *c;
    int64_t step;
    double tau;
    size_t length;
    uint16_t half[3];
    must(dms_checkpoint_open(&c, path));
    must(dms_checkpoint_verify(c));
    cr_assert_eq(dms_checkpoint_count(c), 23);
    for (int t = 0; t < 20; t++) {
        const dms_checkpoint_tensor *x = dms_checkpoint_info(c, t);
        cr_assert_str_eq(x->group, "weights");
        cr_expect(x->rank == 2 && x->shape[0] == elements / 2 && x->shape[1] == 2);
        cr_expect_eq((uintptr_t)x->data % 64, 0);
        for (int64_t i = 0; i < elements; i++)
            cr_assert_eq(((const float *)x->data)[i], value(t, i), "%s[%lld]", x->name,
                         (long long)i);
    }
    must(dms_checkpoint_read(c, "masters", "flat", DMS_BF16, 3, half));
    cr_expect(half[0] == 0x3f80 && half[1] == 0xc000 && half[2] == 0x7f80);
    cr_expect_eq(dms_checkpoint_read(c, "masters", "flat", DMS_F32, 3, half), DMS_ERR_FORMAT);
    cr_expect_eq(dms_checkpoint_find(c, "adam_v", "none")->bytes, 0);
    cr_expect(dms_checkpoint_int(c, "step", &step) && step == (1ll << 60) + 1);
    cr_expect(dms_checkpoint_real(c, "tau", &tau) && tau == 0.1);
    cr_expect_not(dms_checkpoint_int(c, "tau", &step));
    cr_expect_str_eq(dms_checkpoint_text(c, "config", &length), config);
    cr_expect_eq(length, strlen(config));
    cr_expect_str_eq(dms_checkpoint_text(c, "run_config", &length), "");
    cr_expect_eq(length, 0);
    cr_expect_null(dms_checkpoint_text(c, "nope", NULL));
    dms_checkpoint_close(c);
}

Test(hdf5, reads_back_tensors_texts_and_numbers)
{
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 1000));
    expect_saved(scratch_path(&dir, "a.h5"), 1000);
    cr_expect_eq(count_files(dir.folder), 1);
    size_t n;
    free(read_bytes(scratch_path(&dir, "a.h5"), &n));
    cr_expect_lt(n, 20 * 4000 + 60000, "80,000 bytes of weights take %zu", n);
    must(save(scratch_path(&dir, "a.h5"), 2)); /* replaces */
    expect_saved(scratch_path(&dir, "a.h5"), 2);
    cr_expect_eq(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0, "a handle is left open");
    scratch_close(&dir);
}

Test(hdf5, is_a_source_of_its_weights)
{
    dms_source *s;
    double tau;
    int64_t n;
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 6));
    must(dms_source_open(&s, scratch_path(&dir, "a.h5")));
    cr_expect_str_eq(dms_source_format(s), "dms");
    cr_expect_eq(dms_source_count(s), 20);
    cr_expect_eq(json_integer_value(json_object_get(dms_source_config(s), "hidden_size")), 4);
    cr_expect_str_eq(dms_source_tokenizer(s, NULL), "{\"a\": \"\xc4\xa0\"}");
    cr_expect_str_eq(dms_source_text(s, "teacher_hash"), "abc");
    cr_expect(dms_source_number(s, "tau", &tau) && tau == 0.1);
    float *x = read_f32(s, "model.layers.19.weight", &n);
    cr_expect(n == 6 && x[5] == value(19, 5));
    free(x);
    dms_source_close(s);
    scratch_close(&dir);
}

/* An ordinary HDF5 reader finds the same numbers and types. */
Test(hdf5, is_an_hdf5_file_for_everybody)
{
    float x[6];
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 6));
    const hid_t file = H5Fopen(scratch_path(&dir, "a.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    cr_assert(file >= 0);
    hid_t set = H5Dopen2(file, "/weights/model.layers.2.weight", H5P_DEFAULT);
    cr_assert(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0);
    for (int i = 0; i < 6; i++)
        cr_expect_eq(x[i], value(2, i));
    H5Dclose(set);
    set = H5Dopen2(file, "/masters/flat", H5P_DEFAULT);
    cr_assert(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0);
    cr_expect(x[0] == 1.0f && x[1] == -2.0f && x[2] > 3e38f, "HDF5 converts bf16 by its type");
    H5Dclose(set);
    H5Fclose(file);
    scratch_close(&dir);
}

/* 3.2 MB in all, so the limits fall before, inside and behind. */
enum { LARGE = 40000 };

static dms_status save_large(const char *path)
{
    return save(path, LARGE);
}

/* The disk is full at every possible moment: one status, no temporary, the old file whole, no
 * handle left, and the next save works. */
Test(hdf5, keeps_the_old_file_when_the_disk_is_full_and_saves_again_later)
{
    scratch dir = scratch_open();
    char path[1024];
    int failures = 0;
    snprintf(path, sizeof(path), "%s/a.h5", dir.folder);
    must(save(path, 10));
    for (rlim_t limit = 0; limit < 6000000; limit += 250007) {
        if (save_within(limit, save_large, dir.folder)) {
            failures++;
            expect_saved(path, 10);
        } else {
            expect_saved(path, LARGE);
            must(save(path, 10));
        }
    }
    cr_expect(failures > 10 && failures < 24, "%d of 24 limits were too small", failures);
    must(save(path, 12));
    expect_saved(path, 12);
    scratch_close(&dir);
}

Test(hdf5, abort_leaves_nothing_behind)
{
    scratch dir = scratch_open();
    dms_checkpoint_writer *w;
    must(dms_checkpoint_writer_open(&w, scratch_path(&dir, "a.h5")));
    must(fill(w, 100));
    cr_expect_eq(dms_checkpoint_put_text(w, "a/b", "", 0), DMS_ERR_ARG);
    cr_expect_eq(dms_checkpoint_put_int(w, "version", 2), DMS_ERR_ARG);
    dms_checkpoint_writer_abort(w);
    dms_checkpoint_writer_abort(NULL);
    cr_expect_eq(count_files(dir.folder), 0);
    cr_expect_eq(dms_checkpoint_writer_open(&w, scratch_path(&dir, "no/a.h5")), DMS_ERR_IO);
    scratch_close(&dir);
}

Test(hdf5, notices_a_cut_anywhere)
{
    size_t n;
    scratch dir = scratch_open();
    char path[1024];
    snprintf(path, sizeof(path), "%s/cut", dir.folder);
    must(save(scratch_path(&dir, "a.h5"), 40));
    char *bytes = read_bytes(scratch_path(&dir, "a.h5"), &n);
    for (size_t k = 0; k < n; k += 1 + n / 1500) {
        write_bytes(path, bytes, k);
        cr_expect_not(unnoticed(path), "cut to %zu of %zu bytes nobody noticed", k, n);
    }
    free(bytes);
    scratch_close(&dir);
}

Test(hdf5, notices_every_flipped_bit_of_data_and_structure)
{
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 40));
    expect_flips_noticed(&dir, 1500);
    scratch_close(&dir);
}

Test(hdf5, names_the_tensor_whose_crc_is_wrong)
{
    size_t n;
    dms_checkpoint *c;
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 64));
    must(dms_checkpoint_open(&c, scratch_path(&dir, "a.h5")));
    char *bytes = read_bytes(scratch_path(&dir, "a.h5"), &n);
    const float first = value(5, 0), second = value(5, 1);
    char *at = NULL;
    for (size_t i = 0; i + 8 <= n && !at; i += 64)
        if (!memcmp(bytes + i, &first, 4) && !memcmp(bytes + i + 4, &second, 4))
            at = bytes + i;
    cr_assert_not_null(at);
    at[3] ^= 1;
    dms_checkpoint_close(c);
    write_bytes(scratch_path(&dir, "b.h5"), bytes, n);
    must(dms_checkpoint_open(&c, scratch_path(&dir, "b.h5")));
    cr_expect_eq(dms_checkpoint_verify(c), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "weights/model.layers.5.weight"), "%s", dms_error_text());
    dms_checkpoint_close(c);
    free(bytes);
    scratch_close(&dir);
}

/* Lets `edit` change the HDF5 part of a checkpoint and closes it with a right trailer: what a
 * program of another version, or someone hostile, could write. */
static void forge(const char *path, void (*edit)(hid_t file, const void *context),
                  const void *context)
{
    dms_mapping m;
    dms_extents extents = {0};
    uint64_t body = 0;
    must(dms_mapping_open(&m, path));
    must(dms_trailer_read(&extents, &m, path));
    for (int i = 7; i >= 0; i--)
        body = body << 8 | m.bytes[m.size - 32 + (size_t)i];
    dms_mapping_close(&m);
    cr_assert_eq(truncate(path, (off_t)body), 0);
    const hid_t access = dms_hdf5_access();
    const hid_t file = H5Fopen(path, H5F_ACC_RDWR, access);
    cr_assert(file >= 0);
    edit(file, context);
    cr_assert(H5Fclose(file) >= 0);
    H5Pclose(access);
    const int fd = open(path, O_RDWR);
    must(dms_trailer_write(fd, path, &extents));
    close(fd);
    free(extents.items);
}

/* Where libhdf5 finds the header of a weight. */
static haddr_t header_of(hid_t file, const char *name)
{
    H5O_info_t info;
    const hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
    cr_assert(set >= 0 && H5Oget_info(set, &info) >= 0);
    H5Dclose(set);
    return info.addr;
}

/* A header, in memory that ends where the file is cut. */
static bool read_cut(const dms_mapping *m, size_t size, haddr_t address, size_t flip, uint8_t to)
{
    dms_dataset_header h;
    dms_tensor_types types;
    uint8_t *copy = malloc(size ? size : 1);
    cr_assert(copy);
    memcpy(copy, m->bytes, size);
    if (flip < size)
        copy[flip] = to;
    dms_tensor_types_make(&types);
    const bool ok = dms_dataset_header_read(&h, &types, &(dms_mapping){copy, size}, address);
    dms_tensor_types_drop(&types);
    free(copy);
    cr_assert(!ok || h.rank <= 4);
    return ok;
}

/* The sanitizer build sees a byte too many. */
Test(hdf5, reads_headers_without_libhdf5_and_believes_none)
{
    enum { HEADER = 280 };
    static const uint8_t bytes[] = {0, 1, 3, 16, 127, 255};
    dms_mapping m;
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 1000));
    const hid_t access = dms_hdf5_access();
    const hid_t file = H5Fopen(scratch_path(&dir, "a.h5"), H5F_ACC_RDONLY, access);
    const haddr_t at = header_of(file, "/weights/model.layers.0.weight");
    H5Fclose(file);
    H5Pclose(access);
    must(dms_mapping_open(&m, scratch_path(&dir, "a.h5")));
    cr_assert(m.size >= at + HEADER);
    cr_expect(read_cut(&m, m.size, at, SIZE_MAX, 0), "the plain header is not read");
    for (size_t i = 0; i < HEADER; i++) {
        cr_expect(!read_cut(&m, at + i, at, SIZE_MAX, 0) || i > 250, "cut at %zu", i);
        for (size_t k = 0; k < COUNT(bytes); k++)
            read_cut(&m, at + HEADER, at, at + i, bytes[k]);
    }
    cr_expect(!read_cut(&m, m.size, HADDR_UNDEF, SIZE_MAX, 0));
    cr_expect(!read_cut(&m, m.size, m.size, SIZE_MAX, 0));
    dms_mapping_close(&m);
    scratch_close(&dir);
}

static void set_version(hid_t file, const void *context)
{
    const hid_t attribute = H5Aopen(file, "version", H5P_DEFAULT);
    cr_assert(H5Awrite(attribute, H5T_NATIVE_INT32, context) >= 0);
    H5Aclose(attribute);
}

Test(hdf5, reads_version_1_and_refuses_later_ones_by_number)
{
    static const int32_t one = 1, three = 3, zero = 0;
    dms_checkpoint *c;
    scratch dir = scratch_open();
    must(save(scratch_path(&dir, "a.h5"), 1000));
    forge(scratch_path(&dir, "a.h5"), set_version, &one);
    expect_saved(scratch_path(&dir, "a.h5"), 1000);
    forge(scratch_path(&dir, "a.h5"), set_version, &three);
    cr_expect_eq(dms_checkpoint_open(&c, scratch_path(&dir, "a.h5")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "a.h5 is of version 3, this program reads 1 to 2"), "%s",
              dms_error_text());
    forge(scratch_path(&dir, "a.h5"), set_version, &zero);
    cr_expect_eq(dms_checkpoint_open(&c, scratch_path(&dir, "a.h5")), DMS_ERR_FORMAT);
    scratch_close(&dir);
}

/* A dataset of compressed chunks that HDF5 would believe. */
static void add_bomb(hid_t file, const void *context)
{
    const hsize_t dims[1] = {*(const hsize_t *)context}, chunk[1] = {1 << 20};
    const hid_t how = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, dims, NULL);
    H5Pset_chunk(how, 1, chunk);
    H5Pset_shuffle(how);
    H5Pset_deflate(how, 9);
    const hid_t set =
        H5Dcreate2(file, "/weights/bomb", H5T_IEEE_F32LE, space, H5P_DEFAULT, how, H5P_DEFAULT);
    const hid_t one = H5Screate(H5S_SCALAR);
    const hid_t crc = H5Acreate2(set, "crc32", H5T_STD_U32LE, one, H5P_DEFAULT, H5P_DEFAULT);
    const uint32_t zero = 0;
    cr_assert(crc >= 0 && H5Awrite(crc, H5T_NATIVE_UINT32, &zero) >= 0);
    H5Aclose(crc);
    H5Sclose(one);
    H5Dclose(set);
    H5Sclose(space);
    H5Pclose(how);
}

Test(hdf5, inflates_no_more_than_the_file_justifies)
{
    static const hsize_t sizes[] = {1ull << 26, 1ull << 40, 1ull << 61, 1 << 20};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        dms_checkpoint *c;
        scratch dir = scratch_open();
        must(save(scratch_path(&dir, "a.h5"), 10));
        forge(scratch_path(&dir, "a.h5"), add_bomb, &sizes[i]);
        cr_expect_eq(dms_checkpoint_open(&c, scratch_path(&dir, "a.h5")), DMS_ERR_FORMAT);
        cr_expect(strstr(dms_error_text(), "bomb"), "%s", dms_error_text());
        scratch_close(&dir);
    }
}

Test(hdf5, refuses_another_hdf5_file_by_name)
{
    dms_source *s;
    scratch dir = scratch_open();
    const hid_t file =
        H5Fcreate(scratch_path(&dir, "x.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x.h5")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "x.h5") && strstr(dms_error_text(), "another HDF5 file"));
    scratch_close(&dir);
}

/* The exit code of dms-inspect with these arguments. */
static int inspect(const char *arguments)
{
    char command[2048];
    snprintf(command, sizeof(command), DMS_BINARY_DIR "/dms-inspect %s >/dev/null 2>&1", arguments);
    const int status = system(command);
    cr_assert(WIFEXITED(status), "dms-inspect %s crashed", arguments);
    return WEXITSTATUS(status);
}

Test(hdf5, dms_inspect_exits_0_when_fine_1_when_corrupt_2_when_misused)
{
    size_t n;
    char arguments[1024];
    scratch dir = scratch_open();
    if (access(DMS_BINARY_DIR "/dms-inspect", X_OK))
        cr_skip_test("dms-inspect has not been built");
    must(save(scratch_path(&dir, "a.h5"), 64));
    snprintf(arguments, sizeof(arguments), "%s --verify --tensors", scratch_path(&dir, "a.h5"));
    cr_expect_eq(inspect(arguments), 0);
    char *bytes = read_bytes(scratch_path(&dir, "a.h5"), &n);
    const float first[2] = {value(5, 0), value(5, 1)};
    char *at = memmem(bytes, n, first, sizeof(first));
    cr_assert_not_null(at);
    at[0] ^= 1;
    write_bytes(scratch_path(&dir, "a.h5"), bytes, n);
    cr_expect_eq(inspect(arguments), 1);
    cr_expect_eq(inspect("/no/such/file --json"), 1);
    cr_expect_eq(inspect(""), 2);
    cr_expect_eq(inspect("--nonsense x"), 2);
    cr_expect_eq(inspect("--help"), 0);
    free(bytes);
    scratch_close(&dir);
}
