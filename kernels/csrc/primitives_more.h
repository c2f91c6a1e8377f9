// What scoring, selecting, gathering and products need beyond primitives.h, under both compilers.
#pragma once
#include "common.h"

#ifndef __CUDACC__
namespace kvb_host __attribute__((visibility("hidden"))) {

inline void match_of_warp(Lane* const* warp, unsigned) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (warp[lane] == nullptr) continue;
        unsigned peers = 0;
        for (unsigned other = 0; other < kWarp; ++other)
            if (warp[other] != nullptr && warp[other]->in[0] == warp[lane]->in[0]) peers |= 1u << other;
        warp[lane]->out[0] = peers;
    }
}

}  // namespace kvb_host

// Lanes of the warp that hold the same value.
inline unsigned __match_any_sync(unsigned mask, unsigned value) {
    kvb_host::block.current->lane.in[0] = value;
    return kvb_host::meet(mask, kvb_host::match_of_warp)[0];
}
#endif

namespace kvb {

// The larger of the two; NaN if either is NaN.
KVB_DEVICE float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

// load_stream; 0 without loading if `there` is false. It has no branch, so that many loads follow one another.
// load_written and load_written_if are for bytes that a kernel of the stream may have written after this one had begun:
// they do not take the read-only path, and must come after wait_for_previous_kernel(). load_written goes around L1;
// load_written_near leaves the bytes there, for other warps of the block. prefetch_to_l2 requests the 128-byte line of an
// address and returns.
#ifdef __CUDACC__
#define KVB_LOAD_IF(load, clobbers)                                                                                  \
    uint4 r;                                                                                                         \
    asm volatile("{.reg .pred p; setp.ne.b32 p,%5,0; mov.b32 %0,0; mov.b32 %1,0; mov.b32 %2,0; mov.b32 %3,0; @p " load \
                 " {%0,%1,%2,%3},[%4];}"                                                                             \
                 : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w)                                                    \
                 : "l"(address), "r"(static_cast<int>(there)) : clobbers);                                           \
    return r
KVB_DEVICE uint4 load_stream_if(bool there, const void* address) {
    KVB_LOAD_IF("ld.global.nc.L1::no_allocate.L2::128B.v4.u32", );
}
KVB_DEVICE uint4 load_written_if(bool there, const void* address) { KVB_LOAD_IF("ld.global.v4.u32", "memory"); }
#undef KVB_LOAD_IF
KVB_DEVICE uint4 load_written(const void* address) {
    uint4 r;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3},[%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(address));
    return r;
}
KVB_DEVICE uint4 load_written_near(const void* address) {
    uint4 r;
    asm volatile("ld.global.L2::128B.v4.u32 {%0,%1,%2,%3},[%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(address));
    return r;
}
KVB_DEVICE int thread_again() {
    int thread;
    asm volatile("mov.u32 %0,%%tid.x;" : "=r"(thread));
    return thread;
}
KVB_DEVICE void prefetch_to_l2(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
#else
inline uint4 load_stream_if(bool there, const void* address) {
    return there ? load16(address) : make_uint4(0, 0, 0, 0);
}
inline uint4 load_written_if(bool there, const void* address) { return load_stream_if(there, address); }
inline int thread_again() { return static_cast<int>(threadIdx.x); }
inline uint4 load_written(const void* address) { return load16(address); }
inline uint4 load_written_near(const void* address) { return load16(address); }
inline void prefetch_to_l2(const void* address) { (void)*static_cast<const volatile char*>(address); }
#endif

// float64 arithmetic that rounds after every operation and is never fused.
#ifdef __CUDACC__
KVB_DEVICE double add_rn(double a, double b) { return __dadd_rn(a, b); }
KVB_DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
KVB_DEVICE double div_rn(double a, double b) { return __ddiv_rn(a, b); }
KVB_DEVICE double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
inline double add_rn(double a, double b) { return a + b; }
inline double mul_rn(double a, double b) { return a * b; }
inline double div_rn(double a, double b) { return a / b; }
inline double fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
#endif

}  // namespace kvb
