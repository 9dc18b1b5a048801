/* Integer atomics: fibers never interrupt each other, so plain reads and writes are atomic. There
 * are none on floating-point values: their result would depend on the order. */
#ifndef DMS_CUDA_EMU_ATOMICS_CUH
#define DMS_CUDA_EMU_ATOMICS_CUH

#define DMS_EMU_ATOMIC_(T, name, expression) \
    inline T name(T *at, T value)            \
    {                                        \
        const T old = *at;                   \
        *at = static_cast<T>(expression);    \
        return old;                          \
    }
#define DMS_EMU_ATOMICS_(T)                                  \
    DMS_EMU_ATOMIC_(T, atomicMax, old < value ? value : old) \
    DMS_EMU_ATOMIC_(T, atomicMin, value < old ? value : old) \
    DMS_EMU_ATOMIC_(T, atomicExch, value)                    \
    DMS_EMU_ATOMIC_(T, atomicAnd, old &value)                \
    DMS_EMU_ATOMIC_(T, atomicOr, old | value)                \
    DMS_EMU_ATOMIC_(T, atomicXor, old ^ value)               \
    inline T atomicCAS(T *at, T expected, T value)           \
    {                                                        \
        const T old = *at;                                   \
        *at = old == expected ? value : old;                 \
        return old;                                          \
    }

DMS_EMU_ATOMICS_(int)
DMS_EMU_ATOMICS_(unsigned)
DMS_EMU_ATOMICS_(unsigned long long)
DMS_EMU_ATOMIC_(int, atomicAdd, static_cast<unsigned>(old) + static_cast<unsigned>(value))
DMS_EMU_ATOMIC_(unsigned, atomicAdd, old + value)
DMS_EMU_ATOMIC_(unsigned long long, atomicAdd, old + value)
DMS_EMU_ATOMIC_(int, atomicSub, static_cast<unsigned>(old) - static_cast<unsigned>(value))
DMS_EMU_ATOMIC_(unsigned, atomicSub, old - value)
DMS_EMU_ATOMIC_(unsigned, atomicInc, old >= value ? 0 : old + 1)
DMS_EMU_ATOMIC_(unsigned, atomicDec, old == 0 || old > value ? value : old - 1)

#endif
