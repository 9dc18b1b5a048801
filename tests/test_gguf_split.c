/* GGUF models in several files: found by any part, and told from what is not whole. */
#include "checkpoints/gguf_put.h"
#include "tests/files.h"
#include "tests/fixtures.h"

enum { PARTS = 3 };

/* The tiny F32 model. */
typedef struct {
    dms_mapping map;
    dms_gguf_part part;
} whole_file;

static whole_file open_whole(void)
{
    static char path[1024];
    whole_file w;
    fixture(path, "gguf/tiny-F32.gguf");
    must(dms_mapping_open(&w.map, path));
    must(dms_gguf_part_read(&w.part, &w.map, path));
    return w;
}

static void close_whole(whole_file *w)
{
    dms_gguf_part_free(&w->part);
    dms_mapping_close(&w->map);
}

static void put_u16_key(dms_gguf_out *out, const char *key, uint16_t x)
{
    dms_gguf_put_string(out, key, strlen(key));
    dms_gguf_put_u32(out, GGUF_U16);
    dms_gguf_put(out, &x, sizeof(x));
    out->keys++;
}

/* What the split says of itself, which a test may falsify. */
typedef struct {
    int no, count;
    int32_t tensors;
} split_keys;

/* The tensors i of the whole with i % PARTS == no; part 0 has the metadata, as gguf-split does. */
static void write_part(const whole_file *w, const char *path, int no, split_keys keys)
{
    dms_gguf_out all = {0}, out = {0}, list = {0}, data = {0};
    uint64_t n = 0;
    put_u16_key(&out, "split.no", (uint16_t)keys.no);
    put_u16_key(&out, "split.count", (uint16_t)keys.count);
    dms_gguf_put_string(&out, "split.tensors.count", 19);
    dms_gguf_put_u32(&out, GGUF_I32);
    dms_gguf_put(&out, &keys.tensors, 4);
    out.keys++;
    for (uint64_t i = 0; no == 0 && i < w->part.meta.count; i++) {
        const dms_gguf_value *v = &w->part.meta.values[i];
        dms_gguf_put(&out, v->key.text - 8, (size_t)(v->end - (const uint8_t *)v->key.text) + 8);
        out.keys++;
    }
    for (uint64_t i = (uint64_t)no; i < w->part.n_tensors; i += PARTS, n++) {
        const dms_gguf_tensor *t = &w->part.tensors[i];
        dms_gguf_put_string(&list, t->name.text, t->name.length);
        dms_gguf_put_u32(&list, (uint32_t)t->rank);
        for (int k = t->rank; k-- > 0;)
            dms_gguf_put_u64(&list, (uint64_t)t->shape[k]);
        dms_gguf_put_u32(&list, dms_gguf_type_id(t->type));
        dms_gguf_put_u64(&list, data.n); /* sizes here are multiples of 32 */
        dms_gguf_put(&data, t->data, t->bytes);
    }
    dms_gguf_put(&all, "GGUF", 4);
    dms_gguf_put_u32(&all, 3);
    dms_gguf_put_u64(&all, n);
    dms_gguf_put_u64(&all, out.keys);
    dms_gguf_put(&all, out.bytes, out.n);
    dms_gguf_put(&all, list.bytes, list.n);
    while (all.n % 32)
        dms_gguf_put(&all, "", 1);
    dms_gguf_put(&all, data.bytes, data.n);
    cr_assert_not(all.failed || out.failed || list.failed || data.failed);
    write_bytes(path, all.bytes, all.n);
    dms_gguf_out_free(&all);
    dms_gguf_out_free(&out);
    dms_gguf_out_free(&list);
    dms_gguf_out_free(&data);
}

static const char *part_path(const scratch *dir, int no)
{
    char name[64];
    snprintf(name, sizeof(name), "m-%05d-of-%05d.gguf", no + 1, PARTS);
    return scratch_path(dir, name);
}

static scratch split(void)
{
    scratch dir = scratch_open();
    whole_file w = open_whole();
    for (int i = 0; i < PARTS; i++)
        write_part(&w, part_path(&dir, i), i, (split_keys){i, PARTS, (int32_t)w.part.n_tensors});
    close_whole(&w);
    return dir;
}

/* Opening by this part must fail with a message. */
static void refuses(const char *path, const char *says)
{
    dms_source *s;
    cr_expect(dms_source_open(&s, path) != DMS_OK);
    cr_expect(strstr(dms_error_text(), says), "%s does not say %s", dms_error_text(), says);
}

Test(gguf_split, a_model_opens_by_any_of_its_parts)
{
    char path[1024];
    dms_source *whole, *s;
    scratch dir = split();
    must(dms_source_open(&whole, fixture(path, "gguf/tiny-F32.gguf")));
    for (int i = 0; i < PARTS; i++) {
        must(dms_source_open(&s, part_path(&dir, i)));
        cr_expect_eq(dms_source_count(s), dms_source_count(whole));
        cr_expect(json_equal(dms_source_config(s), dms_source_config(whole)));
        for (int64_t k = 0; k < dms_source_count(whole); k++) {
            int64_t n;
            const char *name = dms_source_info(whole, k)->name;
            float *want = read_f32(whole, name, &n), *got = read_f32(s, name, &n);
            cr_expect(!memcmp(want, got, (size_t)n * 4), "%s differs", name);
            free(want);
            free(got);
        }
        dms_source_close(s);
    }
    dms_source_close(whole);
    scratch_close(&dir);
}

Test(gguf_split, a_missing_part_is_named)
{
    scratch dir = split();
    cr_assert_eq(unlink(part_path(&dir, 1)), 0);
    refuses(part_path(&dir, 0), "part 2 of 3 is missing");
    refuses(part_path(&dir, 2), "m-00002-of-00003.gguf; put all parts of the model into one");
    scratch_close(&dir);
}

Test(gguf_split, parts_that_do_not_belong_together_are_refused)
{
    scratch dir = split();
    whole_file w = open_whole();
    const int32_t all = (int32_t)w.part.n_tensors;
    write_part(&w, part_path(&dir, 1), 1, (split_keys){2, PARTS, all});
    refuses(part_path(&dir, 0), "says it is part 3 of 3, expected part 2 of 3");
    write_part(&w, part_path(&dir, 1), 1, (split_keys){1, 4, all});
    refuses(part_path(&dir, 0), "says it is part 2 of 4, expected part 2 of 3");
    refuses(part_path(&dir, 1), "ends with -00001-of-00004.gguf");
    write_part(&w, part_path(&dir, 1), 2, (split_keys){1, PARTS, all});
    refuses(part_path(&dir, 0), "appears twice");
    write_part(&w, part_path(&dir, 0), 0, (split_keys){0, PARTS, all + 1});
    write_part(&w, part_path(&dir, 1), 1, (split_keys){1, PARTS, all});
    refuses(part_path(&dir, 2), "the parts have 12 tensors, expected 13");
    write_bytes(part_path(&dir, 1), "nothing", 7);
    refuses(part_path(&dir, 0), "m-00002-of-00003.gguf is no GGUF file");
    close_whole(&w);
    scratch_close(&dir);
}

Test(gguf_split, a_part_under_another_name_says_what_it_is)
{
    scratch dir = split();
    cr_assert_eq(rename(part_path(&dir, 0), scratch_path(&dir, "renamed.gguf")), 0);
    refuses(scratch_path(&dir, "renamed.gguf"), "is one of 3 parts of a model");
    scratch_close(&dir);
}
