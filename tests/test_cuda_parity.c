/* The CUDA backend against the CPU: the same inputs on both, op by op. A family joins with a
 * function that runs its ops and hands over the results, and a line in the table. DMS_TEST_DEVICE
 * names the backend; with cpu there is nothing to compare. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/rng.h"
#include "tests/rig.h"

enum { MAX_RESULTS = 128 };

/* What a case left on one device, in the same order on every device, and how far it may be off:
 * |got - cpu| <= atol + rtol*|cpu|; with 0 and 0 values are equal. */
typedef struct {
    const char *what;
    dms_tensor tensor;
    float rtol, atol;
} result;

typedef struct {
    result at[MAX_RESULTS];
    int count;
} results;

static void give(results *out, const char *what, const dms_tensor *t, float rtol, float atol)
{
    cr_assert(out->count < MAX_RESULTS);
    out->at[out->count++] = (result){what, *t, rtol, atol};
}

static void give_exact(results *out, const char *what, const dms_tensor *t)
{
    give(out, what, t, 0, 0);
}

/* The device under test, which is not the CPU. */
static rig open_backend(void)
{
    if (rig_device() == DMS_CPU)
        cr_skip_test("DMS_TEST_DEVICE is cpu: there is no other device to compare with");
    return rig_open(rig_device());
}

/* Noise whose address is no multiple of 16 bytes where `shift` is 1: such data go element by
 * element. */
static dms_tensor noise_at(rig *r, int64_t n, int shift)
{
    dms_tensor t = rig_noise(r, rig_shape(n + shift, 0, 0, 0));
    t.data = (float *)t.data + shift;
    t.shape[0] = n;
    return t;
}

static dms_tensor upload_ids(rig *r, int64_t n, int32_t limit)
{
    dms_tensor shape = rig_shape(1, n, 0, 0);
    int32_t *host = malloc((size_t)n * sizeof(int32_t));
    for (int64_t i = 0; i < n; i++)
        host[i] = (int32_t)((rig_random(r) + 1.0f) / 2.0f * (float)limit);
    shape.dtype = DMS_I32;
    const dms_tensor ids = rig_upload(r, shape, host);
    free(host);
    return ids;
}

/* ---- pointwise, embedding, rope ----------------------------------------------------------- */

/* Around the 4 elements of one access, the 1024 of a block, and many blocks. */
static const int64_t sizes[] = {1, 3, 4, 5, 1023, 1024, 1025, 40009};

/* Numbers that differ in f32 may fall on two sides of a rounding to bf16. */
static const float one_bf16 = 0x1p-7f;

static void run_pointwise(rig *r, results *out)
{
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int shift = 0; shift < 2; shift++) {
            const int64_t n = sizes[s];
            dms_tensor a = noise_at(r, n, 0), b = noise_at(r, n, shift), y = noise_at(r, n, shift);
            dms_tensor scaled = noise_at(r, n, shift), swiglu = noise_at(r, n, shift);
            dms_tensor dgate = noise_at(r, n, 0), dup = noise_at(r, n, shift), half = a;
            half.dtype = DMS_BF16;
            half = rig_empty(r, half);
            must(dms_axpy(&scaled, -0.3f, &a));
            must(dms_swiglu(&swiglu, &a, &b));
            must(dms_swiglu(&half, &a, &b));
            must(dms_swiglu_bwd(&dgate, &dup, &y, &a, &b));
            give(out, "axpy", &scaled, 1e-6f, 1e-7f); /* one rounding more or less: FMA */
            give(out, "swiglu", &swiglu, 1e-6f, 0);
            give(out, "swiglu in bf16", &half, one_bf16, 0);
            give(out, "dgate", &dgate, 1e-6f, 1e-6f);
            give(out, "dup", &dup, 1e-6f, 1e-6f);
        }
}

static void run_cast(rig *r, results *out)
{
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int shift = 0; shift < 2; shift++) {
            const int64_t n = sizes[s];
            dms_tensor x = noise_at(r, n, shift), back = noise_at(r, n, shift), copy = x, half = x;
            half.dtype = DMS_BF16;
            half = rig_empty(r, half);
            copy = rig_empty(r, copy);
            must(dms_cast(&half, &x));
            must(dms_cast(&back, &half));
            must(dms_cast(&copy, &x));
            give_exact(out, "bf16", &half);
            give_exact(out, "f32 of bf16", &back);
            give_exact(out, "f32 of f32", &copy);
        }
}

/* 1100 tokens of a vocabulary of 5: lists of equal tokens that are longer than the 256 threads of
 * a block; 70 tokens of 60: mostly single ones. */
static void run_embedding(rig *r, results *out)
{
    static const int64_t widths[] = {1, 4, 67, 1028};
    static const struct {
        int64_t tokens, vocab;
    } texts[] = {{1100, 5}, {70, 60}, {1, 1}};
    for (size_t s = 0; s < COUNT(widths); s++)
        for (size_t t = 0; t < COUNT(texts); t++) {
            dms_tensor w = rig_noise(r, rig_shape(texts[t].vocab, widths[s], 0, 0)), half = w;
            const dms_tensor ids = upload_ids(r, texts[t].tokens, (int32_t)texts[t].vocab);
            dms_tensor dy = rig_noise(r, rig_shape(1, texts[t].tokens, widths[s], 0));
            dms_tensor y = rig_empty(r, dy), from_half = rig_empty(r, dy), dw = rig_noise(r, w);
            half.dtype = DMS_BF16;
            half = rig_noise(r, half);
            must(dms_embedding(&y, &ids, &w));
            must(dms_embedding(&from_half, &ids, &half));
            must(dms_embedding_bwd(&dw, &dy, &ids));
            give_exact(out, "rows", &y);
            give_exact(out, "rows of bf16", &from_half);
            give_exact(out, "dw", &dw); /* the order of the tokens, on every device */
        }
}

static void run_rope(rig *r, results *out)
{
    static const struct {
        int64_t rows, heads, width;
        int every;
    } shapes[] = {{1, 1, 2, 0}, {7, 3, 6, 3}, {5, 6, 8, 2}, {3, 9, 64, 3}, {2, 20, 128, 5}};
    enum { POSITIONS = 11 };
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t cols = shapes[s].heads * shapes[s].width;
        const dms_tensor table = rig_noise(r, rig_shape(POSITIONS, shapes[s].width, 0, 0));
        const dms_tensor ids = upload_ids(r, shapes[s].rows, POSITIONS);
        const dms_rope_spec spec = {
            .table = &table, .ids = &ids, .borrowed_every = shapes[s].every, .keep = 0.4f};
        dms_tensor x = rig_noise(r, rig_shape(1, shapes[s].rows, cols, 0)), y = rig_empty(r, x);
        dms_tensor dx = rig_noise(r, x);
        must(dms_rope(&(dms_rope_out){.y = &y}, &x, &spec));
        must(dms_rope_bwd(&(dms_rope_grads){.dy = &x, .dx = &dx}, &spec));
        must(dms_rope(&(dms_rope_out){.y = &x}, &x, &spec));
        give(out, "y", &y, 1e-6f, 1e-6f);
        give(out, "dx", &dx, 1e-6f, 1e-6f);
        give(out, "y in place of x", &x, 1e-6f, 1e-6f);
    }
}

/* With the norm and the logits of the gate's neurons. */
static void run_heads(rig *r, results *out)
{
    static const struct {
        int64_t tokens, heads, width;
        int every;
    } shapes[] = {{1, 1, 2, 1},    {7, 3, 6, 3},   {3, 9, 64, 3},  {5, 4, 96, 1},
                  {2, 17, 128, 5}, {2, 3, 264, 3}, {521, 1, 12, 1}};
    enum { POSITIONS = 11 };
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t heads = shapes[s].heads, width = shapes[s].width, T = shapes[s].tokens;
        const int64_t G = (heads + shapes[s].every - 1) / shapes[s].every;
        const dms_tensor table = rig_noise(r, rig_shape(POSITIONS, width, 0, 0));
        const dms_tensor ids = upload_ids(r, 2 * T, POSITIONS);
        dms_tensor x = rig_noise(r, rig_shape(2, T, heads * width, 0)), y = rig_empty(r, x);
        dms_tensor z = rig_noise(r, rig_shape(2, G, T, 0)), dz = rig_noise(r, z);
        dms_tensor rstd = rig_empty(r, rig_shape(2 * T * heads, 0, 0, 0));
        dms_tensor w = rig_noise(r, rig_shape(width, 0, 0, 0)), dw = rig_noise(r, w);
        dms_tensor dy = rig_noise(r, x), dx = rig_noise(r, x), plain = rig_noise(r, x);
        dms_rope_spec spec = {&table, &ids, shapes[s].every, 0.4f, &w, 1e-5f, {4.0f, 5.0f}};
        must(dms_rope(&(dms_rope_out){&y, &rstd, &z}, &x, &spec));
        must(dms_rope_bwd(&(dms_rope_grads){&dy, &dz, &x, &rstd, &dx, &dw}, &spec));
        spec.norm = NULL;
        must(dms_rope_bwd(&(dms_rope_grads){.dy = &dy, .dz = &dz, .dx = &plain}, &spec));
        give(out, "y", &y, 1e-6f, 2e-6f);
        give(out, "rstd", &rstd, 1e-6f, 0);
        give(out, "z", &z, 1e-6f, 1e-5f);
        give(out, "dx", &dx, 2e-6f, 1e-5f);
        give(out, "dw", &dw, 2e-6f, 2e-5f); /* sums of up to 1042 heads, of terms up to 8 */
        give(out, "dx without norm", &plain, 1e-6f, 1e-6f);
    }
}

/* ---- norm --------------------------------------------------------------------------------- */

/* Both sides of 512, the longest row of a warp, in widths that are a multiple of 4 or not. */
static void run_norm(rig *r, results *out)
{
    static const int64_t shapes[][2] = {{1, 1},   {9, 64},  {3, 67},   {5, 511},
                                        {9, 512}, {4, 513}, {3, 1536}, {521, 12}};
    for (size_t s = 0; s < COUNT(shapes); s++) {
        dms_tensor x = rig_noise(r, rig_shape(shapes[s][0], shapes[s][1], 0, 0));
        dms_tensor w = rig_noise(r, rig_shape(shapes[s][1], 0, 0, 0)), dw = rig_noise(r, w);
        dms_tensor rstd = rig_empty(r, rig_shape(shapes[s][0], 0, 0, 0)), y = rig_empty(r, x);
        dms_tensor dy = rig_noise(r, x), dx = rig_noise(r, x), only_dx = rig_noise(r, x);
        dms_tensor only_dw = rig_noise(r, w);
        dms_tensor half = x;
        half.dtype = DMS_BF16;
        half = rig_empty(r, half);
        must(dms_rms_norm(&half, &rstd, &x, &w, 1e-5f));
        must(dms_rms_norm(&y, &rstd, &x, &w, 1e-5f));
        must(dms_rms_norm_bwd(&dx, &dw, &dy, &x, &w, &rstd));
        must(dms_rms_norm_bwd(&only_dx, NULL, &dy, &x, &w, &rstd));
        must(dms_rms_norm_bwd(NULL, &only_dw, &dy, &x, &w, &rstd));
        give(out, "y", &y, 1e-6f, 0);
        give(out, "y in bf16", &half, one_bf16, 0);
        give(out, "rstd", &rstd, 1e-6f, 0);
        give(out, "dx", &dx, 1e-6f, 2e-6f);
        give(out, "dx alone", &only_dx, 1e-6f, 2e-6f);
        give(out, "dw", &dw, 1e-6f, 5e-6f); /* sums of up to 521 rows */
        give(out, "dw alone", &only_dw, 1e-6f, 5e-6f);
    }
}

/* ---- gate, channels, compression ---------------------------------------------------------- */

static const int64_t gates[][3] = {{1, 1, 1}, {2, 3, 17}, {3, 2, 2}, {2, 5, 131}};

static void run_gate(rig *r, results *out)
{
    for (size_t s = 0; s < COUNT(gates); s++) {
        const int64_t B = gates[s][0], G = gates[s][1], T = gates[s][2];
        const dms_logit_spec spec = {100.0f, 5.0f};
        dms_tensor y = rig_noise(r, rig_shape(B, T, G, 0)), dy = rig_noise(r, y);
        dms_tensor z = rig_noise(r, rig_shape(B, G, T, 0)), logit = rig_empty(r, z);
        dms_tensor bias = rig_empty(r, z), d = rig_empty(r, z), n = rig_noise(r, z);
        dms_tensor hard_bias = rig_empty(r, z), hard = rig_empty(r, z), drawn = rig_empty(r, z);
        dms_tensor d_drawn = rig_empty(r, z), dz_drawn = rig_noise(r, z);
        dms_tensor dbias = rig_noise(r, z), dz = rig_noise(r, z);
        dms_tensor pressure = rig_noise(r, rig_shape(B, 0, 0, 0));
        must(dms_eviction_logit(&logit, &y, &spec));
        must(dms_eviction_logit_bwd(&dy, &z, &spec));
        const dms_relaxed_gate gate = {.tau = 0.1f, .injected = &n};
        const dms_relaxed_gate drawing = {1.0f, NULL, {0x123456789abcdef0u, 7, 40, 5}};
        must(dms_gate_soft(&bias, &d, &z, &gate));
        must(dms_gate_soft_bwd(&dz, &dbias, &pressure, &z, &gate));
        must(dms_gate_soft(&drawn, &d_drawn, &z, &drawing));
        must(dms_gate_soft_bwd(&dz_drawn, &dbias, &pressure, &z, &drawing));
        must(dms_gate_hard(&hard_bias, &hard, &z));
        give(out, "logit", &logit, 1e-6f, 1e-5f); /* of terms up to 100 */
        give(out, "dy", &dy, 1e-6f, 1e-5f);
        give(out, "bias", &bias, 1e-6f, 1e-30f);
        give_exact(out, "d", &d);
        give(out, "dz", &dz, 1e-6f, 2e-6f);                     /* of terms up to 10 */
        give(out, "bias of drawn noise", &drawn, 1e-6f, 1e-6f); /* u = z + n, slope below 1 */
        give(out, "dz of drawn noise", &dz_drawn, 1e-6f, 2e-6f);
        give_exact(out, "hard bias", &hard_bias);
        give_exact(out, "hard d", &hard);
    }
}

static void run_channels(rig *r, results *out)
{
    static const struct {
        int64_t rows, cols, width, first, step;
    } shapes[] = {
        {1, 1, 1, 0, 1},   {5, 24, 3, 7, 8},       {5, 24, 2, 3, 8},           {3, 33, 4, 0, 9},
        {7, 12, 12, 0, 1}, {2, 1156, 2, 577, 578}, {4, 8, 1, 3, INT64_MAX / 2}};
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t first = shapes[s].first, step = shapes[s].step;
        dms_tensor x = rig_noise(r, rig_shape(shapes[s].rows, shapes[s].cols, 0, 0));
        dms_tensor channels = rig_noise(r, rig_shape(shapes[s].rows, shapes[s].width, 0, 0));
        dms_tensor y = rig_empty(r, x), dx = rig_noise(r, x), dy = rig_noise(r, x);
        dms_tensor taken = rig_noise(r, channels), only_taken = rig_noise(r, channels);
        must(dms_put_channels(&y, &x, &channels, first, step));
        must(dms_put_channels_bwd(&dx, &taken, &dy, first, step));
        must(dms_put_channels_bwd(NULL, &only_taken, &dy, first, step));
        give_exact(out, "y", &y);
        give_exact(out, "dx", &dx);
        give_exact(out, "dchannels", &taken);
        give_exact(out, "dchannels alone", &only_taken);
    }
}

static void run_compression(rig *r, results *out)
{
    static const int64_t shapes[][4] = {
        {1, 1, 1, 1}, {3, 2, 2, 37}, {2, 5, 3, 401}, {2, 300, 1, 2}};
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (int side = 0; side < 2; side++) {
            const int64_t *n = shapes[s];
            const dms_tensor flat = rig_shape(n[0] * n[1], n[2], n[3], 0);
            dms_tensor z = rig_noise(r, flat), bias = rig_empty(r, flat), d = rig_empty(r, flat);
            dms_tensor loss = rig_empty(r, rig_shape(n[1], 0, 0, 0)), frac = rig_empty(r, loss);
            dms_tensor pressure = rig_empty(r, loss);
            must(dms_gate_hard(&bias, &d, &z));
            d.rank = 4;
            memcpy(d.shape, n, sizeof(d.shape));
            must(dms_compression(&(dms_compression_out){&loss, &frac, &pressure}, &d,
                                 side ? 0.9f : 0.5f, 0.7f));
            give_exact(out, "frac", &frac);
            give_exact(out, "loss", &loss);
            give_exact(out, "pressure", &pressure);
        }
}

/* ---- adamw -------------------------------------------------------------------------------- */

static void run_adamw(rig *r, results *out)
{
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int shift = 0; shift < 2; shift++) {
            const int64_t n = sizes[s];
            dms_adamw_spec spec = {.lr = 0.01f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .eps = 1e-8f,
                                   .weight_decay = 0.1f,
                                   .clip = shift ? 1.0f : 0.0f};
            dms_tensor w = noise_at(r, n, shift), g = noise_at(r, n, 0), copy = w;
            dms_tensor m = rig_zero(r, g), v = rig_zero(r, g);
            dms_tensor norm = rig_empty(r, rig_shape(1, 0, 0, 0));
            copy.dtype = DMS_BF16;
            copy = rig_zero(r, copy);
            for (spec.step = 1; spec.step <= 3; spec.step++) {
                must(dms_l2_norm(&norm, &g));
                must(dms_adamw(&(dms_adamw_state){&w, spec.step == 3 ? &copy : NULL, &m, &v}, &g,
                               &norm, &spec));
                must(dms_axpy(&g, -0.5f, &w));
            }
            give(out, "norm", &norm, 1e-6f, 0);
            give(out, "w", &w, 1e-6f, 1e-7f);
            give(out, "copy", &copy, 0x1p-7f, 1e-7f); /* a tie may fall to the other side */
            give(out, "m", &m, 1e-6f, 1e-7f);
            give(out, "v", &v, 2e-6f, 1e-8f);
        }
}

/* ---- all of them -------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(rig *r, results *out);
} families[] = {
    {"pointwise", run_pointwise}, {"cast", run_cast},
    {"embedding", run_embedding}, {"rope", run_rope},
    {"heads", run_heads},         {"norm", run_norm},
    {"gate", run_gate},           {"channels", run_channels},
    {"adamw", run_adamw},         {"compression", run_compression},
};

static void compare(const char *family, const result *got, const result *want)
{
    const int64_t n = dms_count(&want->tensor);
    float *left = rig_read(&got->tensor), *right = rig_read(&want->tensor);
    for (int64_t i = 0; i < n; i++)
        cr_assert(left[i] == right[i] ||
                      fabsf(left[i] - right[i]) <= want->atol + want->rtol * fabsf(right[i]),
                  "%s: %s[%lld of %lld] is %.9g on %s, %.9g on the CPU", family, want->what,
                  (long long)i, (long long)n, (double)left[i], got->tensor.device->name,
                  (double)right[i]);
    free(left);
    free(right);
}

ParameterizedTestParameters(cuda_parity, every_op_gives_what_it_gives_on_the_cpu)
{
    static int which[COUNT(families)];
    for (size_t i = 0; i < COUNT(families); i++)
        which[i] = (int)i;
    return cr_make_param_array(int, which, COUNT(families));
}

ParameterizedTest(int *which, cuda_parity, every_op_gives_what_it_gives_on_the_cpu)
{
    static results got, want;
    rig backend = open_backend(), cpu = rig_open(DMS_CPU);
    families[*which].run(&backend, &got);
    families[*which].run(&cpu, &want);
    cr_assert(got.count == want.count && want.count > 0);
    for (int i = 0; i < want.count; i++)
        compare(families[*which].name, &got.at[i], &want.at[i]);
    rig_close(&backend);
    rig_close(&cpu);
}

enum { LOGITS, RAMP, MIRRORED, BIAS, DECISIONS, GIVEN }; /* outputs of decide() */
static const int64_t decided[3] = {3, 5, 701};

static dms_noise_spec noise_of(int64_t step)
{
    return (dms_noise_spec){0xfeedfacecafebeefu, step, 3, 11};
}

/* Logits within +-2 of 0, drawn on either device alike, then bias and decisions. At a tau of
 * +-2^-40 and logits of 0, softplus is a ramp and the bias is the noise, to the bit: where that is
 * above 0 and where it is below. */
static void decide(rig *r, dms_tensor out[GIVEN], int64_t step)
{
    dms_relaxed_gate gate = {.noise = noise_of(step)};
    out[LOGITS] = rig_noise(r, rig_shape(decided[0], decided[1], decided[2], 0));
    for (int i = RAMP; i < GIVEN; i++)
        out[i] = rig_empty(r, out[LOGITS]);
    dms_tensor nil = rig_zero(r, out[LOGITS]);
    must(dms_axpy(&out[LOGITS], 1.0f, &out[LOGITS]));
    gate.tau = 0x1p-40f;
    must(dms_gate_soft(&out[RAMP], &out[DECISIONS], &nil, &gate));
    gate.tau = -0x1p-40f;
    must(dms_gate_soft(&out[MIRRORED], &out[DECISIONS], &nil, &gate));
    gate.tau = 0.1f;
    must(dms_gate_soft(&out[BIAS], &out[DECISIONS], &out[LOGITS], &gate));
}

static float noise_at_place(int64_t i, const dms_noise_spec *spec)
{
    const int64_t row = i / decided[2], b = row / decided[1], g = row % decided[1];
    return dms_logistic(dms_philox(spec->seed, (uint32_t)spec->step, (uint32_t)(spec->sequence + b),
                                   (uint32_t)(spec->layer * decided[1] + g),
                                   (uint32_t)(i % decided[2])));
}

/* The emulation has the CPU's logarithm: noise, bias and decisions have its bits. A GPU has its
 * own, within 1 unit in the last place: there a decision may only turn where |u| <= 1e-3. */
Test(cuda_parity, noise_and_decisions_are_those_of_the_cpu)
{
    rig backend = open_backend(), cpu = rig_open(DMS_CPU);
    const bool emulated = backend.dev->kind == DMS_CUDA_EMU;
    for (int64_t step = 0; step < 4; step++) {
        const dms_noise_spec spec = noise_of(step);
        dms_tensor left[GIVEN], right[GIVEN];
        float *got[GIVEN], *want[GIVEN];
        decide(&backend, left, step);
        decide(&cpu, right, step);
        for (int i = 0; i < GIVEN; i++) {
            got[i] = rig_read(&left[i]);
            want[i] = rig_read(&right[i]);
            if (emulated)
                cr_assert(!memcmp(got[i], want[i], dms_tensor_bytes(&right[i])), "output %d", i);
        }
        for (int64_t i = 0; i < dms_count(&right[LOGITS]); i++) {
            const float u = (want[LOGITS][i] + noise_at_place(i, &spec)) / 0.1f;
            cr_assert(fabsf(u) <= 1e-3f || got[DECISIONS][i] == want[DECISIONS][i],
                      "decision %lld, u = %g", (long long)i, (double)u);
        }
        for (int i = 0; i < GIVEN; i++) {
            free(got[i]);
            free(want[i]);
        }
    }
    rig_close(&backend);
    rig_close(&cpu);
}

/* The CPU refuses ids outside a table; a GPU cannot look before it leaps: it reads and writes
 * nothing outside, and shows it. */
Test(cuda_parity, ids_outside_a_table_give_nan_and_no_gradient)
{
    static const int32_t bad[] = {-1, 5, INT32_MAX, INT32_MIN};
    rig r = open_backend();
    for (int64_t dim = 6; dim <= 8; dim += 2)
        for (size_t i = 0; i < COUNT(bad); i++) {
            dms_tensor ids = rig_shape(1, 2, 0, 0), w = rig_noise(&r, rig_shape(5, dim, 0, 0));
            dms_tensor dw = rig_zero(&r, w), y = rig_empty(&r, rig_shape(1, 2, dim, 0));
            dms_tensor dy = rig_noise(&r, y), turned = rig_empty(&r, y);
            ids.dtype = DMS_I32;
            ids = rig_upload(&r, ids, (int32_t[]){bad[i], 4});
            must(dms_embedding(&y, &ids, &w));
            must(dms_embedding_bwd(&dw, &dy, &ids));
            must(dms_rope(&(dms_rope_out){.y = &turned}, &dy,
                          &(dms_rope_spec){.table = &w, .ids = &ids, .keep = 1.0f}));
            float *rows = rig_read(&y), *table = rig_read(&w), *grad = rig_read(&dw);
            float *up = rig_read(&dy), *out = rig_read(&turned);
            for (int64_t c = 0; c < dim; c++) {
                cr_assert(isnan(rows[c]) && isnan(out[c]) && !isnan(out[dim + c]));
                cr_assert(rows[dim + c] == table[4 * dim + c]);
                for (int64_t row = 0; row < 5; row++)
                    cr_assert(grad[row * dim + c] == (row == 4 ? up[dim + c] : 0.0f));
            }
            float *all[] = {rows, table, grad, up, out};
            for (size_t f = 0; f < COUNT(all); f++)
                free(all[f]);
        }
    rig_close(&r);
}
