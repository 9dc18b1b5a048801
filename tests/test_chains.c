/* Chains of one prompt: each is what its stream draws alone, however many run beside it. */
#include <string.h>

#include "infer/chains.h"
#include "infer/model_file.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

enum { PROMPT = 18, MOST = 13, CONTEXT = 64, CHAINS = 5 };

static const int32_t prompt[PROMPT] = {5, 40, 7,  81, 9, 33, 120, 17, 64,
                                       3, 90, 11, 54, 8, 77, 21,  38, 2};

typedef struct {
    dms_device *dev;
    dms_model_file *file;
    int64_t vocab;
    float *logits; /* [CHAINS, V] */
} lab;

static lab lab_open(void)
{
    lab l = {.dev = rig_open_device(rig_device(), 1)};
    char path[1024];
    must(dms_model_file_open(&l.file, &(dms_model_file_options){.path = fixture(path, "tiny/llama"),
                                                                .device = l.dev,
                                                                .compute = DMS_COMPUTE_F32,
                                                                .positions = CONTEXT}));
    l.vocab = l.file->model->config.vocab;
    l.logits = malloc((size_t)(CHAINS * l.vocab) * sizeof(float));
    return l;
}

static void lab_close(lab *l)
{
    free(l->logits);
    dms_model_file_close(l->file);
    l->dev->close(l->dev);
}

typedef struct {
    int32_t end; /* ends a chain; -1: nothing does */
    int64_t most;
    int64_t context;
    sig_atomic_t stopped;
} limits;

static bool ends(const void *context, int32_t id)
{
    const limits *x = context;
    return id == x->end;
}

/* n chains in a session of their own; the caller frees them. */
static dms_cache_stats run(const lab *l, const limits *x, dms_chain *chains, int n)
{
    dms_session *s = NULL;
    dms_sampler *sampler = NULL;
    dms_cache_stats stats;
    const dms_sampler_options sampling = {.temperature = 1, .top_p = 1, .seed = 4};
    memset(chains, 0, (size_t)n * sizeof(*chains));
    must(dms_sampler_open(&sampler, &sampling, l->vocab));
    must(dms_session_open(&s, &(dms_session_options){.model = l->file->model,
                                                     .context = x->context,
                                                     .max_sequences = n,
                                                     .kv_dtype = DMS_F32}));
    dms_chains_options o = {.session = s,
                            .sampler = sampler,
                            .tokenizer = l->file->tokenizer,
                            .logits = l->logits,
                            .vocab = l->vocab,
                            .most = x->most,
                            .ends = ends,
                            .context = x,
                            .stopped = &x->stopped};
    must(dms_cache_admit(dms_session_cache(s), &o.sequence));
    must(dms_session_prefill(s, l->logits, o.sequence, prompt, PROMPT, 0));
    must(dms_chains_run(chains, n, &o));
    must(dms_cache_measure(&stats, dms_session_cache(s)));
    dms_sampler_close(sampler);
    dms_session_close(s);
    return stats;
}

/* What stream `stream` draws in a session of its own. */
static void draw_alone(const lab *l, const limits *x, uint32_t stream, dms_chain *want)
{
    dms_session *s = NULL;
    dms_sampler *sampler = NULL;
    int sequence = 0;
    const dms_sampler_options sampling = {.temperature = 1, .top_p = 1, .seed = 4};
    dms_decoder decoder = {.tokenizer = l->file->tokenizer, .skip_specials = true, .within = true};
    *want = (dms_chain){.open = true};
    must(dms_sampler_open(&sampler, &sampling, l->vocab));
    must(dms_session_open(&s, &(dms_session_options){.model = l->file->model,
                                                     .context = x->context,
                                                     .max_sequences = 1,
                                                     .kv_dtype = DMS_F32}));
    must(dms_cache_admit(dms_session_cache(s), &sequence));
    must(dms_session_prefill(s, l->logits, sequence, prompt, PROMPT, 0));
    for (int64_t seen = PROMPT; want->tokens < x->most; seen++) {
        must(dms_sampler_pick(sampler, &want->last, l->logits, stream, seen));
        want->tokens++;
        if (want->last == x->end) {
            want->ended = true;
            break;
        }
        must(dms_decoder_put(&decoder, &want->text, want->last));
        if (seen == x->context)
            break;
        must(dms_session_decode(s, l->logits, &(int32_t){sequence}, &want->last, 1));
    }
    must(dms_decoder_end(&decoder, &want->text));
    dms_sampler_close(sampler);
    dms_session_close(s);
}

static void expect_alone(const lab *l, const limits *x)
{
    dms_chain chains[CHAINS];
    run(l, x, chains, CHAINS);
    for (int i = 0; i < CHAINS; i++) {
        dms_chain want;
        draw_alone(l, x, (uint32_t)i, &want);
        cr_expect(chains[i].tokens == want.tokens && chains[i].ended == want.ended &&
                      chains[i].last == want.last,
                  "chain %d has %d tokens, expected %d", i, (int)chains[i].tokens,
                  (int)want.tokens);
        cr_expect(chains[i].text.n == want.text.n &&
                  !memcmp(chains[i].text.bytes, want.text.bytes, want.text.n));
        dms_chains_free(&want, 1);
    }
    dms_chains_free(chains, CHAINS);
}

Test(chains, are_what_their_streams_draw_alone)
{
    lab l = lab_open();
    limits x = {.end = -1, .most = MOST, .context = CONTEXT};
    dms_chain chains[CHAINS];
    expect_alone(&l, &x);
    run(&l, &x, chains, CHAINS);
    x.end = chains[1].last; /* ends some before others */
    dms_chains_free(chains, CHAINS);
    expect_alone(&l, &x);
    x = (limits){.end = -1, .most = MOST, .context = PROMPT + 3}; /* a context that fills up */
    expect_alone(&l, &x);
    lab_close(&l);
}

Test(chains, share_the_pages_of_their_prompt)
{
    lab l = lab_open();
    const limits x = {.end = -1, .most = MOST, .context = CONTEXT};
    const dms_config *c = &l.file->model->config;
    dms_chain chains[CHAINS];
    const dms_cache_stats s = run(&l, &x, chains, CHAINS);
    const int64_t heads = (int64_t)c->layers * c->kv_heads;
    cr_expect(s.tokens == CHAINS * (PROMPT + MOST - 1)); /* the last token is not fed */
    cr_expect(s.live_slots == heads * (16 + CHAINS * (PROMPT - 16 + MOST - 1)));
    cr_expect(s.dense_slots == s.live_slots);
    dms_chains_free(chains, CHAINS);
    lab_close(&l);
}

Test(chains, draw_nothing_where_nothing_is_wanted)
{
    lab l = lab_open();
    const limits none = {.end = -1, .context = CONTEXT};
    const limits stopped = {.end = -1, .most = MOST, .context = CONTEXT, .stopped = 1};
    dms_chain chains[CHAINS];
    run(&l, &none, chains, CHAINS);
    cr_expect(!chains[0].tokens && !chains[0].text.n && !chains[CHAINS - 1].tokens);
    run(&l, &stopped, chains, CHAINS);
    cr_expect(!chains[0].tokens && !chains[CHAINS - 1].tokens);
    dms_chains_free(chains, CHAINS);
    lab_close(&l);
}
