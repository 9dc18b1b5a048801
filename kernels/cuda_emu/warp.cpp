/* How the lanes of a warp meet. */
#include "kernels/cuda_emu/warp.cuh"

#include "kernels/cuda_emu/report.h"

namespace emu
{

/* A collective with this mask that still gathers, or NULL. */
static collective *gathering(warp *w, uint32_t mask)
{
    for (uint32_t open = w->used & ~w->done; open; open &= open - 1) {
        collective *c = &w->open[__builtin_ctz(open)];
        if (c->mask == mask)
            return c;
    }
    return nullptr;
}

static collective *start(warp *w, uint32_t mask, const char *name, void (*finish)(collective *),
                         place at)
{
    const uint32_t unused = ~w->used & ((UINT32_C(1) << OPEN_COLLECTIVES) - 1);
    if (!(mask >> self->lane & 1))
        fault(cudaErrorLaunchFailure, at, "warp divergence", "%s: the mask 0x%08x lacks lane %d",
              name, mask, self->lane);
    if (!unused)
        fault(cudaErrorLaunchFailure, at, "warp divergence",
              "%s: the lanes wait in %d intrinsics with different masks", name, OPEN_COLLECTIVES);
    const int i = __builtin_ctz(unused);
    collective *c = &w->open[i];
    w->used |= UINT32_C(1) << i;
    w->done &= ~(UINT32_C(1) << i);
    c->name = name;
    c->finish = finish;
    c->at = at;
    c->mask = mask;
    c->arrived = 0;
    return c;
}

collective *collective_enter(uint32_t mask, const char *name, void (*finish)(collective *),
                             place at)
{
    warp *w = &running.warps[self->warp];
    collective *c = gathering(w, mask);
    if (!c)
        return start(w, mask, name, finish, at);
    const bool same = (c->name == name || !strcmp(c->name, name)) && c->at.line == at.line &&
                      (c->at.file == at.file || !strcmp(c->at.file, at.file));
    if (!same)
        fault(cudaErrorLaunchFailure, at, "warp divergence",
              "%s: other lanes of the mask 0x%08x wait in %s at %s:%d", name, mask, c->name,
              c->at.file, c->at.line);
    if (!(mask >> self->lane & 1))
        fault(cudaErrorLaunchFailure, at, "warp divergence", "%s: the mask 0x%08x lacks lane %d",
              name, mask, self->lane);
    return c;
}

static void complete(warp *w, int number, collective *c)
{
    if (c->finish)
        c->finish(c);
    w->done |= UINT32_C(1) << (c - w->open);
    c->left = c->arrived;
    set_ready(number, c->arrived);
}

void collective_arrive(collective *c)
{
    warp *w = &running.warps[self->warp];
    c->arrived |= UINT32_C(1) << self->lane;
    if (((c->arrived | w->exited) & c->mask) == c->mask) {
        complete(w, self->warp, c);
        return;
    }
    clear_ready(self->id);
    thread_wait(c->at);
}

void warp_exited(thread *t)
{
    warp *w = &running.warps[t->warp];
    w->exited |= UINT32_C(1) << t->lane;
    for (uint32_t open = w->used & ~w->done; open; open &= open - 1) {
        collective *c = &w->open[__builtin_ctz(open)];
        if (((c->arrived | w->exited) & c->mask) == c->mask)
            complete(w, t->warp, c);
    }
}

void inactive_lane(const collective *c, int lane)
{
    fault(cudaErrorLaunchFailure, c->at, "inactive lane read",
          "%s reads lane %d, which takes no part (lanes 0x%08x do)", c->name, lane, c->arrived);
}

void finish_ballot(collective *c)
{
    uint32_t result = 0;
    for (int i = 0; i < LANES; i++) {
        uint32_t mine = 0;
        if (c->arrived >> i & 1)
            slot_get(c, i, &mine);
        result |= mine << i;
    }
    for (int i = 0; i < LANES; i++)
        slot_put(c, i, result);
}

} // namespace emu
