/* Models that others store under other names, fused and transposed: read, trained, written back. */
#include <sys/wait.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/export.h"
#include "checkpoints/huggingface.h"
#include "checkpoints/layout.h"
#include "checkpoints/source_reader.h"
#include "model/model.h"
#include "tests/files.h"

#define GPT2 DMS_SOURCE_DIR "/tests/data/gpt2"

/* ---- parts ---------------------------------------------------------------------------------- */

/* Sizes around the 32 of a tile. */
Test(layout, parts_put_together_are_the_whole_and_taken_apart_the_parts)
{
    static const int64_t shapes[][2] = {{1, 1}, {5, 3}, {31, 33}, {32, 32}, {33, 31}, {70, 1}};
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (int transposed = 0; transposed <= 1; transposed++) {
            const dms_layout_size size = {{shapes[s][0], shapes[s][1]}, 4};
            const int64_t rows = size.shape[0], cols = size.shape[1], n = rows * cols;
            uint32_t *whole = malloc((size_t)(3 * n) * 4), *part = malloc((size_t)n * 4);
            for (int p = 0; p < 3; p++) {
                for (int64_t i = 0; i < n; i++)
                    part[i] = (uint32_t)(p * n + i);
                dms_layout_place place = {.part = p, .parts = 3, .transposed = transposed};
                dms_layout_put(whole, part, &place, &size);
            }
            /* element [o, i] of part p is row p*rows + o of their [out, in], transposed or not */
            for (int64_t o = 0; o < 3 * rows; o++)
                for (int64_t i = 0; i < cols; i++)
                    cr_assert_eq(whole[transposed ? i * 3 * rows + o : o * cols + i],
                                 (uint32_t)(o * cols + i));
            for (int p = 0; p < 3; p++) {
                dms_layout_place place = {.part = p, .parts = 3, .transposed = transposed};
                dms_layout_take(part, whole, &place, &size);
                for (int64_t i = 0; i < n; i++)
                    cr_assert_eq(part[i], (uint32_t)(p * n + i));
            }
            free(whole);
            free(part);
        }
}

Test(layout, only_families_of_other_names_have_places)
{
    json_t *gpt2 = json_pack("{s:s}", "model_type", "gpt2");
    json_t *llama = json_pack("{s:s}", "model_type", "llama");
    dms_layout_place place;
    const char *k = "model.layers.11.self_attn.k_proj.weight";
    cr_assert(dms_layout_find(&place, gpt2, k));
    cr_assert_str_eq(place.name, "transformer.h.11.attn.c_attn.weight");
    cr_assert_str_eq(place.bare, "h.11.attn.c_attn.weight");
    cr_assert(place.part == 1 && place.parts == 3 && place.transposed);
    cr_assert(!dms_layout_find(&place, llama, k) && !dms_layout_find(&place, NULL, k));
    cr_assert(!dms_layout_find(&place, gpt2, "lm_head.weight"));
    cr_assert(!dms_layout_find(&place, gpt2, "model.layers.x.self_attn.k_proj.weight"));
    cr_assert(!dms_layout_find(&place, gpt2, "transformer.h.0.attn.c_attn.weight"));
    json_decref(gpt2);
    json_decref(llama);
}

/* ---- models --------------------------------------------------------------------------------- */

/* A folder's tensors under other names or shapes: what `change` does to each entry. */
typedef struct {
    const dms_source *source;
    dms_tensor_entry entries[64];
    const char *names[64]; /* in the source */
} renamed;

static dms_status fetch_renamed(void *context, int64_t i, void *dst)
{
    const renamed *r = context;
    return dms_source_read(r->source, r->names[i], dst, r->entries[i].dtype);
}

static void write_changed(const char *folder, const dms_source *s,
                          void (*change)(dms_tensor_entry *entry))
{
    renamed r = {.source = s};
    const int64_t n = dms_source_count(s);
    for (int64_t i = 0; i < n; i++) {
        const dms_tensor_info *info = dms_source_info(s, i);
        r.names[i] = info->name;
        r.entries[i] = (dms_tensor_entry){.name = info->name, .dtype = DMS_F32, .rank = info->rank};
        memcpy(r.entries[i].shape, info->shape, sizeof(info->shape));
        change(&r.entries[i]);
    }
    must(dms_hf_write(folder, &(dms_hf_model){.config = dms_source_config(s),
                                              .tensors = {r.entries, n, fetch_renamed, &r}}));
}

static dms_model *open_model(dms_device *device, const dms_source *s)
{
    dms_model *m = NULL;
    dms_model_options o = {.device = device, .matrix_type = DMS_F32, .positions = 64};
    must(dms_config_parse(&o.config, dms_source_config(s)));
    o.gate = dms_gate_defaults();
    must(dms_model_open(&m, &o));
    return m;
}

static void read_model(dms_model *m, const dms_source *s)
{
    const dms_reader reader = dms_source_reader(s);
    must(dms_model_check(m, &reader, false));
    must(dms_model_allocate(m));
    must(dms_model_read(m, &reader, &(dms_read_options){0}));
}

static void strip_prefix(dms_tensor_entry *entry)
{
    entry->name += strlen("transformer.");
}

/* The Hub's gpt2 has "h.0.ln_1.weight". */
Test(layout, names_may_lack_their_prefix)
{
    scratch dir = scratch_open();
    dms_source *s = NULL, *bare = NULL;
    dms_device *device = rig_open_device(DMS_CPU, 1);
    must(dms_source_open(&s, GPT2));
    write_changed(scratch_path(&dir, "bare"), s, strip_prefix);
    must(dms_source_open(&bare, scratch_path(&dir, "bare")));
    cr_assert(dms_source_find(bare, "h.0.attn.c_attn.weight"));
    dms_model *a = open_model(device, s), *b = open_model(device, bare);
    read_model(a, s);
    read_model(b, bare);
    for (int i = 0; i < a->n_weights; i++) {
        const dms_tensor *x = &a->weights[i].var->value, *y = &b->weights[i].var->value;
        cr_assert(!memcmp(x->data, y->data, dms_tensor_bytes(x)), "%s", a->weights[i].name);
    }
    dms_model_close(a);
    dms_model_close(b);
    dms_source_close(s);
    dms_source_close(bare);
    device->close(device);
    scratch_close(&dir);
}

/* GPT-2 ties its head where the config says nothing; what is written is opened again. */
Test(layout, a_head_that_is_tied_and_differs_is_refused)
{
    scratch dir = scratch_open();
    dms_source *s = NULL;
    must(dms_source_open(&s, GPT2));
    renamed r = {.source = s, .names = {"transformer.wte.weight", "transformer.ln_f.weight"}};
    r.entries[0] = (dms_tensor_entry){
        .name = "transformer.wte.weight", .dtype = DMS_F32, .rank = 2, .shape = {288, 32, 1, 1}};
    r.entries[1] = (dms_tensor_entry){
        .name = "lm_head.weight", .dtype = DMS_F32, .rank = 1, .shape = {32, 1, 1, 1}};
    const dms_hf_model model = {.config = dms_source_config(s),
                                .tensors = {r.entries, 2, fetch_renamed, &r}};
    cr_assert_eq(dms_hf_write(scratch_path(&dir, "bad"), &model), DMS_ERR_FORMAT);
    cr_assert(strstr(dms_error_message(), "differs from transformer.wte.weight"), "%s",
              dms_error_message());
    dms_source_close(s);
    scratch_close(&dir);
}

/* Shapes that cannot hold ours, each with as many elements as the right one or fewer. */
static void narrow(dms_tensor_entry *entry)
{
    if (strstr(entry->name, "h.1.attn.c_attn.weight"))
        entry->shape[1]--;
}

static void flatten(dms_tensor_entry *entry)
{
    if (strstr(entry->name, "h.1.attn.c_attn.weight")) {
        entry->rank = 1;
        entry->shape[0] *= entry->shape[1];
        entry->shape[1] = 1;
    }
}

static void turn_round(dms_tensor_entry *entry)
{
    if (strstr(entry->name, "h.1.attn.c_attn.weight")) {
        entry->shape[0] = 96;
        entry->shape[1] = 32;
    }
}

Test(layout, a_tensor_of_another_shape_is_refused_by_name)
{
    static void (*const changes[])(dms_tensor_entry *) = {narrow, flatten, turn_round};
    scratch dir = scratch_open();
    dms_source *s = NULL, *bad = NULL;
    dms_device *device = rig_open_device(DMS_CPU, 1);
    must(dms_source_open(&s, GPT2));
    for (size_t i = 0; i < COUNT(changes); i++) {
        char name[16], whole[32 * 96 * 4];
        snprintf(name, sizeof(name), "bad-%d", (int)i);
        write_changed(scratch_path(&dir, name), s, changes[i]);
        must(dms_source_open(&bad, scratch_path(&dir, name)));
        dms_model *m = open_model(device, bad);
        const dms_reader reader = dms_source_reader(bad);
        cr_assert_eq(dms_model_check(m, &reader, false), DMS_ERR_FORMAT);
        cr_assert(strstr(dms_error_message(), "model.layers.1.self_attn.q_proj.weight"), "%s",
                  dms_error_message());
        /* read without having been checked: a status, and nothing beyond the memory of its shape */
        (void)reader.read(bad, "model.layers.1.self_attn.q_proj.weight", whole, DMS_F32);
        dms_model_close(m);
        dms_source_close(bad);
    }
    dms_source_close(s);
    device->close(device);
    scratch_close(&dir);
}

/* ---- our checkpoints ------------------------------------------------------------------------ */

/* One with our names, as training writes it; `left_out`: a tensor that it lacks. */
static void write_checkpoint(const char *path, const dms_source *s, const char *left_out)
{
    dms_checkpoint_writer *w = NULL;
    dms_device *device = rig_open_device(DMS_CPU, 1);
    dms_model *m = open_model(device, s);
    char *config = json_dumps(dms_source_config(s), 0);
    read_model(m, s);
    must(dms_checkpoint_writer_open(&w, path));
    must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    for (int i = 0; i < m->n_weights; i++) {
        const dms_tensor *t = &m->weights[i].var->value;
        if (strcmp(m->weights[i].name, left_out) != 0)
            must(dms_checkpoint_put_tensor(w, "weights", m->weights[i].name, t->dtype, t->rank,
                                           t->shape, t->data));
    }
    must(dms_checkpoint_writer_commit(w));
    free(config);
    dms_model_close(m);
    device->close(device);
}

Test(layout, a_checkpoint_goes_out_with_the_names_and_bytes_it_came_in_with)
{
    scratch dir = scratch_open();
    dms_source *s = NULL, *back = NULL;
    dms_export *e = NULL;
    must(dms_source_open(&s, GPT2));
    write_checkpoint(scratch_path(&dir, "a.h5"), s, "");
    must(dms_export_open(&e, scratch_path(&dir, "a.h5")));
    must(dms_export_list(e, DMS_EXPORT_F16, false, true));
    must(dms_hf_write(scratch_path(&dir, "out"), &(dms_hf_model){.config = dms_source_config(s),
                                                                 .tensors = dms_export_set(e)}));
    must(dms_source_open(&back, scratch_path(&dir, "out")));
    cr_assert_eq(dms_source_count(back), dms_source_count(s));
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        size_t n, m;
        const char *name = dms_source_info(s, i)->name;
        const void *want = dms_source_stored(s, name, &n);
        const void *got = dms_source_stored(back, name, &m);
        cr_assert(got && n == m && !memcmp(got, want, n), "%s", name);
        cr_assert(!memcmp(dms_source_info(s, i)->shape, dms_source_find(back, name)->shape,
                          sizeof(int64_t[4])));
    }
    dms_export_close(e);
    dms_source_close(s);
    dms_source_close(back);
    scratch_close(&dir);
}

Test(layout, a_checkpoint_without_a_part_is_refused_by_name)
{
    scratch dir = scratch_open();
    dms_source *s = NULL;
    dms_export *e = NULL;
    must(dms_source_open(&s, GPT2));
    write_checkpoint(scratch_path(&dir, "a.h5"), s, "model.layers.1.self_attn.k_proj.bias");
    must(dms_export_open(&e, scratch_path(&dir, "a.h5")));
    cr_assert_eq(dms_export_list(e, DMS_EXPORT_F32, false, true), DMS_ERR_FORMAT);
    cr_assert(strstr(dms_error_message(), "transformer.h.1.attn.c_attn.bias") &&
                  strstr(dms_error_message(), "part 2"),
              "%s", dms_error_message());
    dms_export_close(e);
    dms_source_close(s);
    scratch_close(&dir);
}

/* ---- from folder to folder ------------------------------------------------------------------ */

static void shell(const scratch *dir, const char *command)
{
    char line[4096];
    size_t n;
    snprintf(line, sizeof(line), "cd %s && BIN=%s M=" GPT2 " && { %s ; } >out 2>err", dir->folder,
             DMS_BINARY_DIR, command);
    const int state = system(line);
    char *err = read_bytes(scratch_path(dir, "err"), &n);
    cr_assert(WIFEXITED(state) && !WEXITSTATUS(state), "%s: %s", command, err);
    free(err);
}

/* Both gates, trained, resumed, exported and opened: the base's tensors under the base's names,
 * bytes of the frozen ones equal, and the gate's own beside them. */
Test(layout, gpt2_is_retrofitted_and_exported)
{
    scratch dir = scratch_open();
    dms_source *s = NULL;
    must(dms_source_open(&s, GPT2));
    shell(&dir,
          "for i in 1 2 3 4 5 6; do echo 'It is a truth universally acknowledged that a single man"
          " in possession of a good fortune must be in want of a wife'; done >t.txt;"
          "$BIN/dms-tokenize $M -o t.tok t.txt;"
          "for g in neuron adapter; do"
          " t=all; [ $g = neuron ] || t=gate;"
          " printf 'model: {path: '$M'}\\ndata: {train: t.tok, context: 32}\\n"
          "dms: {gate: '$g', window: 4}\\nschedule: {steps: 4, ramp_steps: 2}\\n"
          "optim: {train: '$t', lr: 1e-3}\\ndevice: {kind: cpu}\\n"
          "run: {batch: 1, save_every: 2, folder: run-'$g'}\\n' >$g.yaml;"
          " $BIN/dms-train $g.yaml --threads 1 && $BIN/dms-train $g.yaml schedule.steps=4 &&"
          " $BIN/dms-export run-$g/latest --to hf --type f32 -o out-$g &&"
          " $BIN/dms-generate out-$g -p 'a truth' --tokens 8 || exit 1; done");
    for (int adapter = 0; adapter <= 1; adapter++) {
        dms_source *out = NULL;
        must(dms_source_open(&out, scratch_path(&dir, adapter ? "out-adapter" : "out-neuron")));
        cr_expect_eq(dms_source_count(out), dms_source_count(s) + (adapter ? 4 : 0));
        for (int64_t i = 0; i < dms_source_count(s); i++) {
            int64_t n, m;
            const char *name = dms_source_info(s, i)->name;
            float *x = read_f32(s, name, &n), *y = read_f32(out, name, &m);
            cr_assert_eq(n, m, "%s", name);
            if (adapter && dms_source_info(s, i)->rank == 1)
                cr_expect(!memcmp(x, y, (size_t)n * sizeof(float)), "%s is frozen", name);
            free(x);
            free(y);
        }
        dms_source_close(out);
    }
    dms_source_close(s);
    scratch_close(&dir);
}

Test(layout, leaves_out_what_is_no_weight)
{
    static const struct {
        const char *config, *name;
        bool out;
    } cases[] = {
        {"{\"model_type\": \"gpt2\"}", "h.0.attn.bias", true},
        {"{\"model_type\": \"gpt2\"}", "transformer.h.11.attn.masked_bias", true},
        {"{\"model_type\": \"gpt2\"}", "h.0.attn.c_attn.bias", false},
        {"{\"model_type\": \"gpt2\"}", "lm_head.weight", true}, /* tied by default */
        {"{\"model_type\": \"gpt2\", \"tie_word_embeddings\": false}", "lm_head.weight", false},
        {"{\"model_type\": \"llama\"}", "lm_head.weight", false},
        {"{\"model_type\": \"llama\", \"tie_word_embeddings\": true}", "lm_head.weight", true},
        {"{\"model_type\": \"llama\"}", "model.layers.0.self_attn.rotary_emb.inv_freq", true},
        {"{\"model_type\": \"qwen2\"}", "model.layers.0.self_attn.q_proj.bias", false}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        json_t *config = json_loads(cases[i].config, 0, NULL);
        cr_assert_eq(dms_layout_leaves_out(config, cases[i].name), cases[i].out, "%s of %s",
                     cases[i].name, cases[i].config);
        json_decref(config);
    }
    cr_assert(!dms_layout_leaves_out(NULL, "lm_head.weight"));
}
