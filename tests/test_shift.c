#include <math.h>

#include "checkpoints/source_reader.h"
#include "infer/session.h"
#include "kernels/visibility.h"
#include "model/dms.h"
#include "tests/files.h"
#include "tests/fixtures.h"

/* Models whose decisions govern their own token (FastDMS): key k is visible to query q exactly when
 * k <= q and (q - k <= w or a[k] == 0). */

enum { T = 64, WINDOW = 6, LAYERS = 2 };

static dms_model *open_model(dms_device *dev, const char *family, bool own, int64_t window)
{
    char path[1024], relative[64];
    dms_source *s;
    dms_model *m;
    snprintf(relative, sizeof(relative), "tiny/%s", family);
    must(dms_source_open(&s, fixture(path, relative)));
    dms_model_options o = {.device = dev, .matrix_type = DMS_F32, .positions = T};
    must(dms_config_parse(&o.config, dms_source_config(s)));
    o.gate = (dms_gate){.kind = DMS_GATE_NEURON,
                        .window = window,
                        .alpha_scale = 4,
                        .alpha_offset = 0.5f,
                        .tau = 0.1f,
                        .own = own};
    const dms_reader reader = dms_source_reader(s);
    must(dms_model_open(&m, &o));
    must(dms_model_allocate(m));
    must(dms_model_read(m, &reader, &(dms_read_options){0}));
    dms_source_close(s);
    return m;
}

static void make_ids(int32_t *ids, int64_t vocab)
{
    uint32_t seed = 9;
    for (int i = 0; i < T; i++)
        ids[i] = (int32_t)(roll(&seed) % (uint32_t)vocab);
}

/* The whole text at once: logits [T, V] (the caller frees them) and the logits z of all layers. */
static float *whole(const dms_model *m, const int32_t *ids, float *z)
{
    const dms_config *c = &m->config;
    rig r = {.dev = m->device};
    dms_tape *tape;
    must(dms_arena_open(&r.arena, r.dev, 64 << 20));
    int32_t positions[T];
    for (int i = 0; i < T; i++)
        positions[i] = i;
    const dms_tensor row = {.dtype = DMS_I32, .rank = 2, .shape = {1, T}};
    const dms_tensor id = rig_upload(&r, row, ids), at = rig_upload(&r, row, positions);
    const dms_tensor decisions = rig_empty(&r, rig_shape(c->layers, 1, c->kv_heads, T));
    const dms_tensor logits = rig_empty(&r, rig_shape(c->layers, 1, c->kv_heads, T));
    dms_tensor out = rig_empty(&r, rig_shape(T, c->vocab, 0, 0));
    dms_hard_context context = {m->gate.window, NULL, &decisions, &logits};
    const dms_pass pass = {.model = m,
                           .ids = &id,
                           .positions = &at,
                           .gated = true,
                           .attend = dms_attend_hard,
                           .context = &context};
    dms_pass run = pass;
    must(dms_tape_open(&tape, &(dms_tape_options){.device = m->device,
                                                  .keep_bytes = 16 << 20,
                                                  .scratch_bytes = 16 << 20,
                                                  .max_nodes = dms_transformer_nodes(m)}));
    run.tape = tape;
    dms_var *x = dms_transformer_forward(&run);
    must(dms_tape_status(tape));
    dms_tensor rows = x->value;
    rows.rank = 2;
    rows.shape[0] = T;
    rows.shape[1] = c->width;
    must(dms_linear(&out, &rows, &m->head->value, NULL, NULL));
    float *host = rig_read(&out), *all = rig_read(&logits);
    memcpy(z, all, (size_t)(c->layers * c->kv_heads * T) * sizeof(*z));
    free(all);
    dms_tape_close(tape);
    dms_arena_close(&r.arena);
    return host;
}

static dms_session *open_session(const dms_model *m, int sequences)
{
    dms_session *s;
    must(dms_session_open(
        &s, &(dms_session_options){
                .model = m, .context = T, .max_sequences = sequences, .kv_dtype = DMS_F32}));
    return s;
}

/* The gate's own decision sits where the law reads it only one token later: what the whole pass
 * decided by is the gate's logit of the token before. Layer 0 depends on no eviction. */
Test(shift, the_law_is_given_each_decision_one_token_late)
{
    dms_device *dev = rig_open_device(rig_device(), 1);
    dms_model *law = open_model(dev, "llama", false, T), *own = open_model(dev, "llama", true, T);
    int32_t ids[T];
    float *a = calloc(LAYERS * 8 * T, sizeof(*a)), *b = calloc(LAYERS * 8 * T, sizeof(*b));
    make_ids(ids, law->config.vocab);
    free(whole(law, ids, a));
    free(whole(own, ids, b));
    for (int g = 0; g < law->config.kv_heads; g++)
        for (int t = 1; t < T; t++)
            cr_expect_eq(b[g * T + t], a[g * T + t - 1], "head %d, token %d", g, t);
    free(a);
    free(b);
    dms_model_close(law);
    dms_model_close(own);
    dev->close(dev);
}

/* Live slots of layer 0 by the definition above; z: [G, T] of the gate itself. */
static void expect_live(dms_session *s, int sequence, const dms_model *m, const float *z, int n)
{
    dms_cache_layer found[16];
    int live = 0;
    for (int g = 0; g < m->config.kv_heads; g++)
        for (int k = 0; k < n; k++)
            live += !(dms_is_late(n - 1, k, m->gate.window) && z[g * T + k] > 0);
    must(dms_cache_measure_layers(found, dms_session_cache(s), sequence));
    cr_expect_float_eq(found[0].mean * m->config.kv_heads, live, 1e-6, "after %d tokens: %g, %d", n,
                       found[0].mean * m->config.kv_heads, live);
    cr_expect(n < 3 * WINDOW || live < n * m->config.kv_heads, "the test evicts nothing");
}

/* Prefill at any chunk, decoding, and two sequences at once: the same live slots as the definition
 * and the same logits as the whole text at once. */
Test(shift, chunks_and_steps_keep_what_the_definition_keeps)
{
    static const char *const families[] = {"llama", "qwen2", "qwen3"};
    static const int chunks[] = {1, 2, 5, 7, 33, 64};
    dms_device *dev = rig_open_device(rig_device(), 1);
    for (size_t f = 0; f < COUNT(families); f++) {
        dms_model *m = open_model(dev, families[f], true, WINDOW);
        dms_model *law = open_model(dev, families[f], false, T);
        const int64_t vocab = m->config.vocab;
        int32_t ids[T];
        float *z = calloc(LAYERS * 8 * T, sizeof(*z)), *own = calloc(LAYERS * 8 * T, sizeof(*own));
        float *got = malloc((size_t)vocab * 2 * sizeof(*got));
        make_ids(ids, vocab);
        free(whole(law, ids, z));
        float *want = whole(m, ids, own);
        for (size_t i = 0; i < COUNT(chunks); i++) {
            dms_session *s = open_session(m, 1);
            int sequence;
            must(dms_cache_admit(dms_session_cache(s), &sequence));
            for (int n = 0; n < T; n += chunks[i]) {
                const int count = T - n < chunks[i] ? T - n : chunks[i];
                must(dms_session_prefill(s, got, sequence, ids + n, count, 0));
                expect_live(s, sequence, m, z, n + count);
                for (int64_t v = 0; v < vocab; v++) /* sums of another order: 2e-4 */
                    cr_assert_float_eq(got[v], want[(n + count - 1) * vocab + v], 2e-4);
            }
            dms_session_close(s);
        }
        free(z);
        free(own);
        free(got);
        free(want);
        dms_model_close(m);
        dms_model_close(law);
    }
    dev->close(dev);
}

/* A sequence that took its place after another one's end, beside one that is further on. */
Test(shift, sequences_do_not_see_each_others_decisions)
{
    dms_device *dev = rig_open_device(rig_device(), 1);
    dms_model *m = open_model(dev, "llama", true, WINDOW);
    const int64_t vocab = m->config.vocab;
    int32_t ids[T];
    float *z = calloc(LAYERS * 8 * T, sizeof(*z)), *got = malloc((size_t)vocab * 2 * sizeof(*got));
    make_ids(ids, vocab);
    float *want = whole(m, ids, z);
    dms_session *s = open_session(m, 2);
    dms_cache *cache = dms_session_cache(s);
    int a, b;
    must(dms_cache_admit(cache, &a));
    must(dms_cache_admit(cache, &b));
    must(dms_session_prefill(s, NULL, a, ids, 30, 0));
    must(dms_session_prefill(s, NULL, b, ids, 11, 0));
    must(dms_cache_release(cache, a));
    must(dms_cache_admit(cache, &a));
    must(dms_session_prefill(s, NULL, a, ids, 20, 3));
    for (int i = 0; i < 40; i++) {
        const int32_t both[2] = {b, a}, next[2] = {ids[11 + i], ids[20 + i]};
        must(dms_session_decode(s, got, both, next, 2));
        for (int64_t v = 0; v < vocab; v++) {
            cr_assert_float_eq(got[v], want[(11 + i) * vocab + v], 2e-4, "step %d", i);
            cr_assert_float_eq(got[vocab + v], want[(20 + i) * vocab + v], 2e-4, "step %d", i);
        }
    }
    dms_session_close(s);
    free(z);
    free(got);
    free(want);
    dms_model_close(m);
    dev->close(dev);
}
