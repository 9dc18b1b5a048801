/* Opening a model ready to run, and reading text for it. */

#include "data/shard.h"
#include "infer/model_file.h"
#include "infer/stream.h"
#include "tests/files.h"
#include "tests/fixtures.h"

static dms_device *device(void)
{
    dms_device *dev;
    must(dms_device_from_name(&dev, "cpu", 2));
    return dev;
}

/* A copy of tiny/llama with another config.json; `edit` changes its keys. */
static const char *edited(const scratch *s, void (*edit)(json_t *keys), bool tokenizer)
{
    static const char *const files[] = {"model.safetensors", "tokenizer.json"};
    char from[1024], path[1024];
    for (int i = 0; i < 1 + tokenizer; i++) {
        size_t n;
        snprintf(path, sizeof(path), "tiny/llama/%s", files[i]);
        char *bytes = read_bytes(fixture(from, path), &n);
        write_bytes(scratch_path(s, files[i]), bytes, n);
        free(bytes);
    }
    json_t *keys = json_load_file(fixture(from, "tiny/llama/config.json"), 0, NULL);
    cr_assert_not_null(keys);
    if (edit)
        edit(keys);
    cr_assert_eq(json_dump_file(keys, scratch_path(s, "config.json"), 0), 0);
    json_decref(keys);
    return s->folder;
}

static void set(json_t *keys, const char *key, int64_t value)
{
    json_object_set_new(keys, key, json_integer(value));
}

static void make_neuron(json_t *keys)
{
    set(keys, "dms_window_size", 7);
    set(keys, "dms_cr", 4);
}

static void make_adapter(json_t *keys)
{
    set(keys, "dms_window_size", 7);
    json_object_set_new(keys, "dms_separate_alpha", json_true());
}

static void make_huge(json_t *keys)
{
    set(keys, "vocab_size", INT32_MAX);
    set(keys, "intermediate_size", INT32_MAX);
}

/* Status of opening, with what the message says; nothing stays open. */
static dms_status try_open(const char *path, int64_t positions, bool without_gate)
{
    dms_device *dev = device();
    dms_model_file *file = NULL;
    const dms_model_file_options o = {
        .path = path, .device = dev, .positions = positions, .without_gate = without_gate};
    const dms_status status = dms_model_file_open(&file, &o);
    cr_expect(!status || !file, "a failed open left something");
    dms_model_file_close(file);
    dev->close(dev);
    return status;
}

Test(model_file, opens_a_folder_ready_to_run)
{
    char path[1024];
    dms_device *dev = device();
    dms_model_file *f;
    must(dms_model_file_open(&f, &(dms_model_file_options){.path = fixture(path, "tiny/llama"),
                                                           .device = dev,
                                                           .compute = DMS_COMPUTE_F32}));
    cr_expect(f->tokenizer && f->model->matrix_type == DMS_F32);
    cr_expect(f->model->gate.kind == DMS_GATE_NONE && f->compression == 0);
    cr_expect_str_eq(f->format, "huggingface");
    cr_expect(f->model->rope_table.shape[0] == f->model->config.max_positions);
    for (int i = 0; i < f->model->n_weights; i++)
        cr_expect(f->model->weights[i].var->value.frozen);
    dms_model_file_close(f);
    dev->close(dev);
}

Test(model_file, takes_the_gate_from_the_config)
{
    scratch s = scratch_open();
    dms_device *dev = device();
    dms_model_file *f;
    dms_model_file_options o = {.path = edited(&s, make_neuron, true), .device = dev};
    must(dms_model_file_open(&f, &o));
    cr_expect(f->model->gate.kind == DMS_GATE_NEURON && f->model->gate.window == 7);
    cr_expect(f->compression == 4);
    dms_model_file_close(f);
    o.without_gate = true;
    must(dms_model_file_open(&f, &o));
    cr_expect(f->model->gate.kind == DMS_GATE_NONE);
    dms_model_file_close(f);
    dev->close(dev);
    scratch_close(&s);
}

Test(model_file, names_the_gate_tensor_that_is_missing)
{
    scratch s = scratch_open();
    edited(&s, make_adapter, true);
    cr_expect(try_open(s.folder, 0, false) == DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "model.layers.0.self_attn.dms_proj_alpha_norm.weight"), "%s",
              dms_error_text());
    cr_expect(strstr(dms_error_text(), "which its config asks for"));
    must(try_open(s.folder, 0, true));
    scratch_close(&s);
}

/* 2^31 tokens and 2^31 channels are 600 GB: refused before memory is asked for. */
Test(model_file, believes_the_tensors_not_the_config)
{
    scratch s = scratch_open();
    edited(&s, make_huge, true);
    cr_expect(try_open(s.folder, 0, false) == DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "model.embed_tokens.weight has shape [320, 72]"), "%s",
              dms_error_text());
    scratch_close(&s);
}

Test(model_file, says_what_is_not_there)
{
    scratch s = scratch_open();
    char path[1024];
    edited(&s, NULL, false);
    cr_expect(try_open(s.folder, 0, false) == DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "tokenizer.json"), "%s", dms_error_text());
    cr_expect(try_open(fixture(path, "tiny/llama/model.safetensors"), 0, false) == DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "no config"), "%s", dms_error_text());
    cr_expect(try_open("/nowhere/at all", 0, false) == DMS_ERR_IO);
    cr_expect(try_open(fixture(path, "tiny/llama"), 100000, false) == DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "100000 positions"), "%s", dms_error_text());
    scratch_close(&s);
}

Test(model_file, names_are_checked)
{
    dms_device *dev = NULL;
    dms_compute compute;
    cr_expect(dms_device_from_name(&dev, "tpu", 0) == DMS_ERR_ARG && !dev);
    cr_expect(dms_compute_from_name(&compute, "f16") == DMS_ERR_ARG);
    must(dms_compute_from_name(&compute, "bf16"));
    cr_expect(compute == DMS_COMPUTE_BF16);
}

/* ---- the stream of ids ---------------------------------------------------------------------- */

static dms_tokenizer *open_tokenizer(void)
{
    char path[1024];
    size_t n;
    dms_tokenizer *t;
    char *json = read_bytes(fixture(path, "tiny/llama/tokenizer.json"), &n);
    must(dms_tokenizer_open(&t, json, n, "tokenizer.json"));
    free(json);
    return t;
}

/* A text of several pieces; their ends, 65,536 bytes apart, fall on each byte of the word " in".
 * "1, " has no place to cut. */
static char *long_text(size_t *n, const char *word)
{
    *n = 390000;
    char *text = malloc(*n);
    for (size_t i = 0; i < *n; i++)
        text[i] = word[i % 3];
    return text;
}

static void expect_whole(const char *word)
{
    scratch s = scratch_open();
    dms_tokenizer *t = open_tokenizer();
    dms_tokens whole = {0}, stream = {0}, part = {0};
    size_t n;
    char *text = long_text(&n, word);
    const char *path = scratch_path(&s, "text.txt");
    write_bytes(path, text, n);
    must(dms_tokenizer_encode(t, &whole, text, n, true));
    dms_stream_options o = {&path, 1, t, 2, 0};
    must(dms_stream_read(&stream, NULL, &o));
    cr_assert(stream.n == whole.n + 1 && stream.ids[whole.n] == 2, "no end of text");
    cr_assert(!memcmp(stream.ids, whole.ids, (size_t)whole.n * sizeof(int32_t)));
    o.limit = 1000;
    must(dms_stream_read(&part, NULL, &o));
    cr_assert(part.n == 1000 && !memcmp(part.ids, whole.ids, 1000 * sizeof(int32_t)));
    dms_tokens_free(&whole);
    dms_tokens_free(&stream);
    dms_tokens_free(&part);
    dms_tokenizer_close(t);
    free(text);
    scratch_close(&s);
}

Test(stream, text_in_pieces_is_the_text_as_a_whole)
{
    expect_whole(" in");
    expect_whole("1, ");
}

Test(stream, shards_follow_one_another_and_foreign_ones_are_known)
{
    scratch s = scratch_open();
    dms_tokenizer *t = open_tokenizer();
    dms_tokens stream = {0};
    dms_shard_writer *w;
    bool foreign;
    const int32_t ids[] = {5, 6, 7, 8};
    const char *path = scratch_path(&s, "a.shard"), *twice[] = {path, path};
    must(dms_shard_writer_open(&w, path, 320, dms_tokenizer_crc(t) + 1));
    must(dms_shard_writer_append(w, ids, 4));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
    must(dms_stream_read(&stream, &foreign, &(dms_stream_options){twice, 2, t, 2, 7}));
    cr_expect(foreign && stream.n == 7 && stream.ids[4] == 5 && stream.ids[6] == 7);
    must(dms_stream_read(&stream, &foreign, &(dms_stream_options){twice, 1, NULL, 2, 0}));
    cr_expect(!foreign && stream.n == 11);
    dms_tokens_free(&stream);
    dms_tokenizer_close(t);
    scratch_close(&s);
}
