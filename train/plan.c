/* What a run will need: sizes, memory and arithmetic of one step. */
#include <time.h>

#include "train/trainer.h"

/* FLOP of one optimiser step: 2 a matrix weight and token for the teacher, the student and the
 * activation gradients each, 2 a trained matrix weight; attention 4*E a head and causal pair
 * forward (twice) and 10*E backward. */
static double flops_a_step(const dms_trainer_plan *p, const dms_model *m, int64_t n_matrix,
                           int64_t n_trained_matrix, int64_t context)
{
    const double pairs = (double)p->tokens_a_step * (double)(context + 1) / 2;
    const double a_pair = (4.0 + 4.0 + 10.0) * m->config.head_dim * m->config.heads;
    const double weights = 6.0 * (double)n_matrix + 2.0 * (double)n_trained_matrix;
    return (double)p->tokens_a_step * weights + pairs * a_pair * m->config.layers;
}

dms_trainer_plan dms_trainer_plan_of(const dms_trainer *t, size_t evaluation_bytes)
{
    const dms_recipe *r = dms_trainer_recipe(t);
    const dms_model *student = dms_trainer_student(t);
    dms_device *dev = dms_trainer_device(t);
    dms_trainer_plan p = {.compute = student->matrix_type,
                          .width = student->config.width,
                          .ffn = student->config.ffn,
                          .evaluation_bytes = evaluation_bytes,
                          .memory = {dev->dry_bytes, dev->workspace_bytes},
                          .free_bytes = dev->free_bytes(dev),
                          .tokens_a_step = r->run.batch * r->run.accumulate * r->data.context};
    int64_t n_matrix = 0, n_trained_matrix = 0;
    size_t value_bytes = 0;
    for (int i = 0; i < student->n_weights; i++) {
        const dms_var *w = student->weights[i].var;
        const int64_t n = dms_count(&w->value);
        const bool multiplied =
            w->value.rank == 2 && (w != &student->embedding || student->config.tied);
        p.n_weights += n;
        value_bytes += dms_tensor_bytes(&w->value);
        n_matrix += multiplied ? n : 0;
        if (w->wants_grad) {
            p.n_trained += n;
            n_trained_matrix += multiplied ? n : 0;
        }
    }
    p.weight_bytes = value_bytes;
    p.optimizer_bytes = dms_trainer_optimizer_bytes(t);
    p.activation_bytes = dms_trainer_activation_bytes(t);
    p.checkpoint_bytes = value_bytes + (size_t)p.n_trained * 3 * sizeof(float);
    p.flops_a_step = flops_a_step(&p, student, n_matrix, n_trained_matrix, r->data.context);
    return p;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The best of several products of `rows` tokens with a matrix like the layers' up projection. */
static dms_status time_products(double *best, dms_arena *arena, const dms_trainer_plan *p,
                                int64_t rows)
{
    enum { TRIES = 8 };
    dms_device *dev = arena->device;
    dms_tensor w = {.dtype = p->compute, .rank = 2, .shape = {p->ffn, p->width}};
    dms_tensor x = {.dtype = p->compute, .rank = 2, .shape = {rows, p->width}};
    dms_tensor y = {.dtype = DMS_F32, .rank = 2, .shape = {rows, p->ffn}};
    DMS_TRY(dms_arena_place(arena, &w));
    DMS_TRY(dms_arena_place(arena, &x));
    DMS_TRY(dms_arena_place(arena, &y));
    DMS_TRY(dev->zero(dev, w.data, dms_tensor_bytes(&w)));
    DMS_TRY(dev->zero(dev, x.data, dms_tensor_bytes(&x)));
    *best = 1e30;
    for (int i = 0; i < TRIES; i++) {
        float first;
        const double start = seconds_now();
        DMS_TRY(dms_linear(&y, &x, &w, NULL, NULL));
        DMS_TRY(dev->download(dev, &first, y.data, sizeof(first))); /* waits for the device */
        const double seconds = seconds_now() - start;
        *best = seconds < *best ? seconds : *best;
    }
    return DMS_OK;
}

dms_status dms_trainer_gemm_rate(double *flops_a_second, const dms_trainer_plan *plan,
                                 const dms_recipe *recipe)
{
    const int64_t rows = 1024, elements = rows * (plan->width + plan->ffn);
    const size_t bytes = (size_t)(elements + plan->width * plan->ffn) * sizeof(float) + 1024;
    dms_device *dev = NULL;
    dms_arena arena = {0};
    double best = 1;
    DMS_TRY(dms_trainer_open_device(&dev, recipe));
    dms_status status = dms_arena_open(&arena, dev, bytes);
    if (!status)
        status = time_products(&best, &arena, plan, rows);
    dms_arena_close(&arena);
    dev->close(dev);
    *flops_a_second = 2.0 * (double)rows * (double)plan->width * (double)plan->ffn / best;
    return status;
}

dms_status dms_trainer_plan_fits(const dms_trainer_plan *plan, const dms_recipe *recipe)
{
    const size_t all = plan->memory.bytes + plan->memory.workspace_bytes;
    /* For library handles and kernels that load later; assumed, not measured. */
    const size_t kept = plan->free_bytes / 50;
    if (!plan->free_bytes || all <= plan->free_bytes - kept)
        return DMS_OK;
    return dms_fail(DMS_ERR_NOMEM,
                    "the run needs %.2f GB of memory, %.2f GB are free, of which 2 %% are kept; "
                    "end what else takes memory, lower run.batch or data.context%s",
                    (double)all / 1e9, (double)plan->free_bytes / 1e9,
                    recipe->run.replay ? "" : ", or set run.replay: true");
}
