#include "tests/broken_checkpoints.h"

static const char config[] = "{\"model_type\": \"llama\", \"hidden_size\": 4}";

/* Three tensors of noise that compress by less than 4, one that does not compress at all, one that
 * would compress by more, a small one. */
enum { NOISY = 40000 };

static void noise(void *out, size_t bytes, size_t element, bool hard)
{
    uint32_t seed = 11;
    uint8_t *x = out;
    for (size_t i = 0; i < bytes; i++)
        x[i] = (uint8_t)(hard || i % element < element - 1 ? roll(&seed) >> 12
                                                           : (roll(&seed) >> 12) % 3 + 60);
}

static const dms_tensor_entry noisy[] = {
    {"f32", DMS_F32, 2, {NOISY / 4, 4}, false},      {"f16", DMS_F32, 1, {NOISY}, true},
    {"bf16", DMS_BF16, 3, {2, NOISY / 2, 1}, false}, {"hard", DMS_F32, 1, {NOISY}, false},
    {"zero", DMS_F32, 2, {NOISY, 1}, false},         {"small", DMS_F32, 1, {8}, false}};

static void noisy_bytes(void *out, int i)
{
    const size_t bytes = dms_tensor_entry_bytes(&noisy[i]);
    memset(out, 0, bytes);
    if (i != 4)
        noise(out, bytes, bytes / (size_t)dms_tensor_entry_count(&noisy[i]), i == 3);
}

static dms_status save_compressed(const char *path)
{
    static uint8_t bytes[4 * NOISY];
    dms_checkpoint_writer *w;
    dms_status status = DMS_OK;
    DMS_TRY(dms_checkpoint_writer_open(&w, path));
    dms_checkpoint_writer_compress(w);
    status = dms_checkpoint_put_text(w, "config", config, strlen(config));
    for (int i = 0; !status && i < (int)COUNT(noisy); i++) {
        noisy_bytes(bytes, i);
        status = dms_checkpoint_put_entry(w, "weights", &noisy[i], bytes);
    }
    if (!status)
        return dms_checkpoint_writer_commit(w);
    dms_checkpoint_writer_abort(w);
    return status;
}

static void expect_compressed(const char *path)
{
    static uint8_t bytes[4 * NOISY];
    dms_checkpoint *c;
    must(dms_checkpoint_open(&c, path));
    must(dms_checkpoint_verify(c));
    cr_assert_eq(dms_checkpoint_count(c), (int64_t)COUNT(noisy));
    for (int i = 0; i < (int)COUNT(noisy); i++) {
        const dms_checkpoint_tensor *t = dms_checkpoint_find(c, "weights", noisy[i].name);
        noisy_bytes(bytes, i);
        cr_assert(t && t->bytes == dms_tensor_entry_bytes(&noisy[i]) && t->rank == noisy[i].rank);
        cr_expect_eq(t->type, noisy[i].half                ? DMS_FILE_F16
                              : noisy[i].dtype == DMS_BF16 ? DMS_FILE_BF16
                                                           : DMS_FILE_F32);
        cr_expect(!memcmp(t->data, bytes, t->bytes), "%s", t->name);
        cr_expect_eq((uintptr_t)t->data % 64, 0);
    }
    dms_checkpoint_close(c);
}

/* Layout and stored bytes of a dataset of the file, as HDF5 sees them. */
static H5D_layout_t layout_of(hid_t file, const char *name, double *ratio)
{
    const hid_t set = H5Dopen2(file, name, H5P_DEFAULT), how = H5Dget_create_plist(set);
    const hid_t space = H5Dget_space(set), type = H5Dget_type(set);
    const H5D_layout_t layout = H5Pget_layout(how);
    *ratio = (double)H5Sget_simple_extent_npoints(space) * (double)H5Tget_size(type) /
             (double)H5Dget_storage_size(set);
    H5Tclose(type);
    H5Sclose(space);
    H5Pclose(how);
    H5Dclose(set);
    return layout;
}

Test(hdf5_compressed, compresses_what_gains_by_it_and_reads_it_back)
{
    static float x[NOISY];
    static uint8_t bytes[4 * NOISY];
    double ratio;
    scratch dir = scratch_open();
    must(save_compressed(scratch_path(&dir, "a.h5")));
    expect_compressed(scratch_path(&dir, "a.h5"));
    const hid_t file = H5Fopen(scratch_path(&dir, "a.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    cr_expect_eq(layout_of(file, "/weights/f32", &ratio), H5D_CHUNKED);
    cr_expect(ratio > 1.2 && ratio < 4, "f32 shrinks by %g", ratio);
    cr_expect_eq(layout_of(file, "/weights/bf16", &ratio), H5D_CHUNKED);
    cr_expect_eq(layout_of(file, "/weights/f16", &ratio), H5D_CHUNKED);
    cr_expect_eq(layout_of(file, "/weights/hard", &ratio), H5D_CONTIGUOUS);
    cr_expect_eq(layout_of(file, "/weights/zero", &ratio), H5D_CONTIGUOUS, "no bombs");
    cr_expect_eq(layout_of(file, "/weights/small", &ratio), H5D_CONTIGUOUS);
    const hid_t set = H5Dopen2(file, "/weights/f32", H5P_DEFAULT);
    cr_assert(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0);
    noisy_bytes(bytes, 0);
    cr_expect(!memcmp(x, bytes, sizeof(x)), "libhdf5's filters give other numbers than ours");
    H5Dclose(set);
    H5Fclose(file);
    scratch_close(&dir);
}

/* Chunks of several rows, the last one not full. */
Test(hdf5_compressed, cuts_large_tensors_into_chunks)
{
    enum { ROWS = 2500, COLS = 1024 }; /* 10 MB: chunks of 1024 rows */
    const dms_tensor_entry entry = {"large", DMS_F32, 2, {ROWS, COLS}, false};
    scratch dir = scratch_open();
    dms_checkpoint_writer *w;
    dms_checkpoint *c;
    uint8_t *bytes = malloc(4 * ROWS * COLS);
    noise(bytes, 4 * ROWS * COLS, 4, false);
    must(dms_checkpoint_writer_open(&w, scratch_path(&dir, "a.h5")));
    dms_checkpoint_writer_compress(w);
    must(dms_checkpoint_put_entry(w, "weights", &entry, bytes));
    must(dms_checkpoint_writer_commit(w));
    must(dms_checkpoint_open(&c, scratch_path(&dir, "a.h5")));
    must(dms_checkpoint_verify(c));
    cr_expect(!memcmp(dms_checkpoint_info(c, 0)->data, bytes, 4 * ROWS * COLS));
    dms_checkpoint_close(c);
    const hid_t file = H5Fopen(scratch_path(&dir, "a.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    const hid_t set = H5Dopen2(file, "/weights/large", H5P_DEFAULT);
    hsize_t chunks = 0;
    uint8_t *read = malloc(4 * ROWS * COLS);
    const hid_t space = H5Dget_space(set);
    cr_expect(H5Dget_num_chunks(set, space, &chunks) >= 0 && chunks == 3);
    H5Sclose(space);
    cr_assert(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, read) >= 0);
    cr_expect(!memcmp(read, bytes, 4 * ROWS * COLS));
    H5Dclose(set);
    H5Fclose(file);
    free(read);
    free(bytes);
    scratch_close(&dir);
}

Test(hdf5_compressed, keeps_the_old_file_when_the_disk_is_full_while_compressing)
{
    scratch dir = scratch_open();
    char path[1024];
    int failures = 0;
    snprintf(path, sizeof(path), "%s/a.h5", dir.folder);
    must(save_compressed(path));
    for (rlim_t limit = 0; limit < 2000000; limit += 100003) {
        failures += save_within(limit, save_compressed, dir.folder) != DMS_OK;
        expect_compressed(path);
    }
    cr_expect(failures > 5 && failures < 20, "%d of 20 limits were too small", failures);
    scratch_close(&dir);
}

Test(hdf5_compressed, notices_flipped_bits_in_compressed_tensors_too)
{
    scratch dir = scratch_open();
    must(save_compressed(scratch_path(&dir, "a.h5")));
    expect_flips_noticed(&dir, 300);
    scratch_close(&dir);
}
