/* What a gate evicts, head by head and token by token, against the reference's decisions. */
#include <math.h>

#include "eval/run_map.h"
#include "tests/files.h"
#include "tests/fixtures.h"
#include "tests/reference.h"

typedef struct {
    dms_device *device;
    reference ref;
    dms_model *model;
    dms_tokenizer *tokenizer;
    int32_t *ids;     /* [B, T] */
    float *decisions; /* [L, B, G, T], 0 or 1: decision t governs token t - 1 */
} lab;

static lab lab_open(const char *gate)
{
    lab l = {.device = rig_open_device(rig_device(), 1)};
    char base[1024], file[1024], path[1024];
    size_t n;
    l.ref = reference_open(fixture(base, "tiny/llama"),
                           fixture(file, "tiny/llama/dms_adapter.safetensors"));
    l.model = reference_model(&l.ref, l.device, gate);
    l.ids = reference_read(&l.ref, "ids");
    l.decisions = reference_read(&l.ref, "hard_decision");
    char *json = read_bytes(fixture(path, "tiny/llama/tokenizer.json"), &n);
    must(dms_tokenizer_open(&l.tokenizer, json, n, path));
    free(json);
    return l;
}

static void lab_close(lab *l)
{
    free(l->ids);
    free(l->decisions);
    dms_tokenizer_close(l->tokenizer);
    dms_model_close(l->model);
    reference_close(&l->ref);
    l->device->close(l->device);
}

static dms_run_map_source source_of(const lab *l)
{
    return (dms_run_map_source){.model = l->model,
                                .tokenizer = l->tokenizer,
                                .ids = l->ids,
                                .contexts = l->ref.B,
                                .context = l->ref.T,
                                .sample = 1000};
}

static bool evicts(const lab *l, int64_t layer, int64_t b, int64_t head, int64_t token)
{
    const int64_t B = l->ref.B, T = l->ref.T, G = l->model->config.kv_heads;
    return l->decisions[((layer * B + b) * G + head) * T + token + 1] > 0;
}

Test(run_map, counts_for_each_head_the_tokens_that_the_reference_evicts)
{
    lab l = lab_open("adapter");
    dms_run_map map;
    const dms_run_map_source source = source_of(&l);
    const int64_t T = l.ref.T, governed = l.ref.B * (T - 1);
    int64_t all = 0, varied = 0;
    must(dms_run_map_make(&map, &source));
    cr_assert(map.layers == 2 && map.kv_heads == 3);
    for (int layer = 0; layer < map.layers; layer++)
        for (int head = 0; head < map.kv_heads; head++) {
            int64_t kept = 0;
            for (int64_t b = 0; b < l.ref.B; b++)
                for (int64_t t = 0; t < T - 1; t++)
                    kept += !evicts(&l, layer, b, head, t);
            const float want = (float)governed / (float)(kept ? kept : 1);
            cr_expect_float_eq(map.ratio[layer * map.kv_heads + head], want, 1e-6);
            all += kept;
            varied += kept > 0 && kept < governed;
        }
    cr_expect(varied > 0, "a reference that keeps or evicts all shows nothing");
    cr_expect_float_eq(map.reached, (double)(governed * 6) / (double)all, 1e-9);
    dms_run_map_close(&map);
    lab_close(&l);
}

Test(run_map, shades_each_token_by_the_heads_that_evict_it)
{
    lab l = lab_open("adapter");
    dms_run_map map;
    const dms_run_map_source source = source_of(&l);
    must(dms_run_map_make(&map, &source));
    cr_assert_eq(map.sample.n, l.ref.T);
    for (int64_t t = 0; t < l.ref.T - 1; t++) {
        int n = 0;
        for (int unit = 0; unit < 6; unit++)
            n += evicts(&l, unit / 3, 0, unit % 3, t);
        cr_expect_float_eq(map.sample.fractions[t], (float)n / 6, 1e-6);
    }
    cr_expect(isnan(map.sample.fractions[l.ref.T - 1]), "no decision governs the last token");
    dms_run_map_close(&map);
    lab_close(&l);
}

Test(run_map, texts_of_the_sample_make_the_text)
{
    lab l = lab_open("adapter");
    static const char text[] =
        "caf\xc3\xa9 na\xc3\xafve \xe2\x82\xac"; /* some take several tokens */
    dms_tokens ids = {0};
    dms_run_map map;
    dms_run_map_source source = source_of(&l);
    char got[256] = "";
    must(dms_tokenizer_encode(l.tokenizer, &ids, text, sizeof(text) - 1, false));
    cr_assert(ids.n >= 2 && ids.n <= l.ref.T);
    source.ids = ids.ids;
    source.contexts = 1;
    source.context = ids.n;
    must(dms_run_map_make(&map, &source));
    for (int64_t i = 0; i < map.sample.n; i++)
        strcat(got, map.sample.tokens[i]);
    cr_expect_str_eq(got, text);
    dms_run_map_close(&map);
    dms_tokens_free(&ids);
    lab_close(&l);
}

Test(run_map, refuses_what_it_cannot_run)
{
    lab l = lab_open("adapter");
    dms_run_map map;
    dms_run_map_source source = source_of(&l);
    source.context = l.ref.T + 1;
    rig_expect_failure(dms_run_map_make(&map, &source), DMS_ERR_ARG, "expected at least one of 2");
    source = source_of(&l);
    l.ids[3] = (int32_t)l.model->config.vocab;
    rig_expect_failure(dms_run_map_make(&map, &source), DMS_ERR_ARG, "another tokenizer?");
    lab_close(&l);
    l = lab_open("");
    source = source_of(&l);
    rig_expect_failure(dms_run_map_make(&map, &source), DMS_ERR_ARG, "no gate");
    lab_close(&l);
}

Test(run_map, a_folder_without_a_checkpoint_still_has_a_report)
{
    scratch s = scratch_open();
    char notice[DMS_NOTICE_SIZE];
    size_t n;
    static const char log[] = "{\"step\": 0, \"loss\": 1, \"kl\": 1, \"cr\": 1}\n";
    static const char config[] = "data:\n  heldout: \"absent.tok\"\n  context: 32\n";
    write_bytes(scratch_path(&s, "metrics.jsonl"), log, sizeof(log) - 1);
    write_bytes(scratch_path(&s, "config.yaml"), config, sizeof(config) - 1);
    must(dms_run_map_report(notice, s.folder, NULL));
    cr_expect(strstr(notice, "latest"), "it says what is missing: %s", notice);
    char *page = read_bytes(scratch_path(&s, "report.html"), &n);
    cr_expect(strstr(page, "No map of heads"));
    free(page);
    scratch_close(&s);
}
