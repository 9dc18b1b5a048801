/* Marks small functions that host code and CUDA kernels share. */
#ifndef DMS_PORTABLE_H
#define DMS_PORTABLE_H

#ifdef __CUDACC__
#define DMS_INLINE static inline __host__ __device__
#else
#define DMS_INLINE static inline
#endif

#endif
