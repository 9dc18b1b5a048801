/* After the first step a training step allocates nothing: malloc and its kin are interposed. */
#include <stdlib.h>

#include "tests/allocations.h"
#include "tests/fixtures.h"
#include "tests/tiny_run.h"

/* The micro-batches of a step, without the test's own reading of fixtures. */
static void run_step(tiny_run *r, const int32_t *ids, const dms_micro_batch *like)
{
    dms_micro_batch batch = *like;
    dms_losses losses = {0};
    float norm = 0;
    batch.ids = ids;
    must(dms_optimizer_zero(&r->optimizer));
    must(dms_objective_run(r->objective, &batch, &losses));
    must(dms_optimizer_norm(&norm, &r->optimizer));
    const dms_adamw_spec spec = {
        .lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .clip = 1, .step = 1};
    must(dms_optimizer_step(&r->optimizer, &spec));
}

static void expect_no_allocation(dms_dtype type, bool replay)
{
#ifdef __SANITIZE_ADDRESS__
    (void)type;
    (void)replay;
    (void)run_step;
    cr_skip_test("malloc belongs to AddressSanitizer in this build");
#else
    tiny_run r = tiny_run_open(&(tiny_options){"llama", type, replay, DMS_TRAIN_ALL});
    int32_t ids[4096];
    must(dms_source_read(r.steps, "step0.mb0.ids", ids, DMS_I32));
    const dms_micro_batch batch = {
        .n_counted = r.batch * r.context, .n_sequences = r.batch, .stage = {.target = 0.5f}};
    run_step(&r, ids, &batch);
    atomic_store(&allocations, 0);
    atomic_store(&counting, true);
    for (int i = 0; i < 3; i++)
        run_step(&r, ids, &batch);
    atomic_store(&counting, false);
    cr_assert_eq(atomic_load(&allocations), 0, "three steps allocated %ld times",
                 atomic_load(&allocations));
    tiny_run_close(&r);
#endif
}

Test(steady_state, of_f32_training_allocates_nothing)
{
    expect_no_allocation(DMS_F32, false);
}

Test(steady_state, of_bf16_training_with_replay_allocates_nothing)
{
    expect_no_allocation(DMS_BF16, true);
}
