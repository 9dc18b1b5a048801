/* Warp intrinsics: votes, shuffles and reductions of the lanes named by a mask. */
#ifndef DMS_CUDA_EMU_WARP_CUH
#define DMS_CUDA_EMU_WARP_CUH

#include <string.h>
#include <type_traits>

#include "kernels/cuda_emu/block.h"

namespace emu
{

/* The collective that the calling lane belongs to; its operand goes into slots. */
collective *collective_enter(uint32_t mask, const char *name, void (*finish)(collective *),
                             place at);
/* Returns when every lane of the mask that still runs has arrived. */
void collective_arrive(collective *c);
/* The calling lane has taken its result. */
inline void collective_leave(collective *c)
{
    c->left &= ~(UINT32_C(1) << self->lane);
    if (!c->left) {
        warp &w = running.warps[self->warp];
        w.used &= ~(UINT32_C(1) << (c - w.open));
    }
}

template <class T> inline void slot_put(collective *c, int lane, const T &value)
{
    memcpy(c->slots + static_cast<size_t>(lane) * sizeof(T), &value, sizeof(T));
}

template <class T> inline void slot_get(const collective *c, int lane, T *value)
{
    memcpy(value, c->slots + static_cast<size_t>(lane) * sizeof(T), sizeof(T));
}

[[noreturn]] void inactive_lane(const collective *c, int lane);

/* `value` of lane `source`; a source outside the warp yields the lane's own. */
template <class T> inline T shuffle(uint32_t mask, T value, int source, const char *name, place at)
{
    static_assert(sizeof(T) <= SLOT_BYTES && std::is_trivially_copyable<T>::value, "a plain value");
    collective *c = collective_enter(mask, name, nullptr, at);
    T result = value;
    slot_put(c, self->lane, value);
    collective_arrive(c);
    if (source >= 0 && source < LANES) {
        if (!(c->arrived >> source & 1))
            inactive_lane(c, source);
        slot_get(c, source, &result);
    }
    collective_leave(c);
    return result;
}

void finish_ballot(collective *c);
/* The lanes whose predicate is not 0. */
inline uint32_t ballot(uint32_t mask, int predicate, const char *name, place at)
{
    const uint32_t mine = predicate != 0;
    uint32_t result;
    collective *c = collective_enter(mask, name, finish_ballot, at);
    slot_put(c, self->lane, mine);
    collective_arrive(c);
    slot_get(c, self->lane, &result);
    collective_leave(c);
    return result;
}

/* op folds the values of the lanes that arrived, from lane 0 up. */
template <class T, class Op>
inline T reduce(uint32_t mask, T value, const char *name, place at, Op op)
{
    collective *c = collective_enter(mask, name, nullptr, at);
    slot_put(c, self->lane, value);
    collective_arrive(c);
    T result = value;
    bool first = true;
    for (uint32_t lanes = c->arrived; lanes; lanes &= lanes - 1) {
        T other;
        slot_get(c, __builtin_ctz(lanes), &other);
        result = first ? other : op(result, other);
        first = false;
    }
    collective_leave(c);
    return result;
}

} // namespace emu

/* The line of the kernel that calls the intrinsic. */
#define DMS_EMU_AT_ const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncwarp(unsigned mask = 0xffffffffu, DMS_EMU_AT_)
{
    emu::collective *c = emu::collective_enter(mask, "__syncwarp", nullptr, {file, line});
    emu::collective_arrive(c);
    emu::collective_leave(c);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, DMS_EMU_AT_)
{
    const int first = emu::self->lane & ~(width - 1);
    return emu::shuffle(mask, value, first + (lane & (width - 1)), "__shfl_sync", {file, line});
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, DMS_EMU_AT_)
{
    const int me = emu::self->lane, source = me ^ bits;
    const bool beyond = (source & ~(width - 1)) > (me & ~(width - 1));
    return emu::shuffle(mask, value, beyond ? -1 : source, "__shfl_xor_sync", {file, line});
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, DMS_EMU_AT_)
{
    const int me = emu::self->lane, step = static_cast<int>(delta);
    const bool beyond = (me & (width - 1)) + step >= width;
    return emu::shuffle(mask, value, beyond ? -1 : me + step, "__shfl_down_sync", {file, line});
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, DMS_EMU_AT_)
{
    const int me = emu::self->lane, step = static_cast<int>(delta);
    const bool beyond = (me & (width - 1)) < step;
    return emu::shuffle(mask, value, beyond ? -1 : me - step, "__shfl_up_sync", {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, DMS_EMU_AT_)
{
    return emu::ballot(mask, predicate, "__ballot_sync", {file, line});
}

inline int __any_sync(unsigned mask, int predicate, DMS_EMU_AT_)
{
    return emu::ballot(mask, predicate, "__any_sync", {file, line}) != 0;
}

inline int __all_sync(unsigned mask, int predicate, DMS_EMU_AT_)
{
    return emu::ballot(mask, !predicate, "__all_sync", {file, line}) == 0;
}

/* Which lanes run together is not defined; those that have not ended are. */
inline unsigned __activemask()
{
    return ~emu::running.warps[emu::self->warp].exited;
}

/* The lanes that hold the same value. */
template <class T> inline unsigned __match_any_sync(unsigned mask, T value, DMS_EMU_AT_)
{
    emu::collective *c = emu::collective_enter(mask, "__match_any_sync", nullptr, {file, line});
    unsigned same = 0;
    emu::slot_put(c, emu::self->lane, value);
    emu::collective_arrive(c);
    for (int i = 0; i < emu::LANES; i++) {
        T other;
        emu::slot_get(c, i, &other);
        if (c->arrived >> i & 1 && !memcmp(&other, &value, sizeof(T)))
            same |= 1u << i;
    }
    emu::collective_leave(c);
    return same;
}

/* T is int or unsigned, as on hardware. */
#define DMS_EMU_REDUCE_(name, expression)                                        \
    template <class T> inline T name(unsigned mask, T value, DMS_EMU_AT_)        \
    {                                                                            \
        static_assert(std::is_integral<T>::value && sizeof(T) == 4, "int");      \
        return emu::reduce(mask, value, #name, {file, line},                     \
                           [](T a, T b) { return static_cast<T>(expression); }); \
    }
DMS_EMU_REDUCE_(__reduce_add_sync, static_cast<unsigned>(a) + static_cast<unsigned>(b))
DMS_EMU_REDUCE_(__reduce_min_sync, a < b ? a : b)
DMS_EMU_REDUCE_(__reduce_max_sync, a < b ? b : a)
DMS_EMU_REDUCE_(__reduce_and_sync, a &b)
DMS_EMU_REDUCE_(__reduce_or_sync, a | b)
DMS_EMU_REDUCE_(__reduce_xor_sync, a ^ b)

#endif
