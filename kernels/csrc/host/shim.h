// The part of CUDA C++ that the kernels use, for g++: types, built-in variables, intrinsics. Needs no CUDA headers.
//
// nvcc compiles a kernel file directly; `g++ -x c++` compiles it through this header. Only launches, shared memory and
// PTX go through macros and functions of primitives.h. host/block.h runs the threads.
#pragma once
#include <cmath>
#include <limits>
#include <type_traits>
#include "host/block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// 16-bit floats as bits. Conversions round to nearest even and make NaN canonical, as on the device.
struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };

inline uint32_t __float_as_uint(float x) { uint32_t u; std::memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(uint32_t u) { float x; std::memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int i) { return __uint_as_float(static_cast<uint32_t>(i)); }

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
    const uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
inline float __half2float(__half x) {
    const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = uint32_t{x.bits & 0x7fffu} << 13;
    if (rest >= 0x0f800000u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x007fffffu));  // infinity, NaN
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));  // other bias; exact
}
inline __half __float2half(float x) {
    const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u, u = __float_as_uint(x) & 0x7fffffffu;
    uint32_t half;
    if (u > 0x7f800000u) return {0x7fff};
    if (u >= 0x477ff000u) half = 0x7c00u;                                        // rounds to infinity
    else if (u < 0x38800000u) half = __float_as_uint(__uint_as_float(u) + 0.5f) - 0x3f000000u;  // subnormal: unit 2^-24
    else half = (u + 0xfffu + (u >> 13 & 1u) - 0x38000000u) >> 13;
    return {static_cast<uint16_t>(sign | half)};
}

#define threadIdx (kvb_host::block.current->index)
#define blockIdx (kvb_host::block.index)
#define blockDim (kvb_host::block.size)
#define gridDim (kvb_host::block.grid)
constexpr int warpSize = 32;

inline void __syncthreads() { kvb_host::block_barrier(0); }
inline int __syncthreads_count(int predicate) { return kvb_host::block_barrier(predicate); }
inline int __syncthreads_or(int predicate) { return kvb_host::block_barrier(predicate) != 0; }
inline int __syncthreads_and(int predicate) {
    const int yes = kvb_host::block_barrier(predicate);
    return yes == kvb_host::block.barrier_alive;
}

namespace kvb_host __attribute__((visibility("hidden"))) {

inline void only_meet(Lane* const*, unsigned) {}

template <int kWords>
void shuffle(Lane* const* warp, unsigned lanes) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (warp[lane] == nullptr) continue;
        const unsigned source = warp[lane]->in[2];
        if ((lanes >> source & 1) == 0) fail("lane %u shuffles from lane %u, which takes no part", lane, source);
        for (int word = 0; word < kWords; ++word) warp[lane]->out[word] = warp[source]->in[word];
    }
}

template <class T>
T shuffled(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Lane& me = block.current->lane;
    std::memcpy(me.in, &value, sizeof(T));
    me.in[2] = source;
    const uint32_t* out = meet(mask, shuffle<sizeof(T) / 4>);
    std::memcpy(&value, out, sizeof(T));
    return value;
}

inline unsigned lane_id() { return block.current->linear % kWarp; }

inline void ballot(Lane* const* warp, unsigned lanes) {
    unsigned yes = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (warp[lane] != nullptr && warp[lane]->in[0] != 0) yes |= 1u << lane;
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (warp[lane] != nullptr) {
            warp[lane]->out[0] = yes;
            warp[lane]->out[1] = yes == lanes;
        }
}

inline const uint32_t* vote(unsigned mask, bool predicate) {
    block.current->lane.in[0] = predicate;
    return meet(mask, ballot);
}

template <class T, class Op>
void reduce(Lane* const* warp, unsigned) {
    T result{};
    bool first = true;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (warp[lane] == nullptr) continue;
        const T value = static_cast<T>(warp[lane]->in[0]);
        result = first ? value : Op::of(result, value);
        first = false;
    }
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (warp[lane] != nullptr) warp[lane]->out[0] = static_cast<uint32_t>(result);
}

template <class T, class Op>
T reduced(unsigned mask, T value) {
    static_assert(sizeof(T) == 4 && std::is_integral<T>::value, "warp reductions are for 32-bit integers");
    block.current->lane.in[0] = static_cast<uint32_t>(value);
    return static_cast<T>(meet(mask, reduce<T, Op>)[0]);
}
struct Add {
    template <class T> static T of(T a, T b) {  // unsigned, where wrapping around is defined
        return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
    }
};
struct Max {
    template <class T> static T of(T a, T b) { return a < b ? b : a; }
};
struct Min {
    template <class T> static T of(T a, T b) { return b < a ? b : a; }
};

}  // namespace kvb_host

inline void __syncwarp(unsigned mask = 0xffffffffu) { kvb_host::meet(mask, kvb_host::only_meet); }
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = kvb_host::lane_id(), w = static_cast<unsigned>(width);
    return kvb_host::shuffled(mask, value, lane / w * w + static_cast<unsigned>(source) % w);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const unsigned lane = kvb_host::lane_id(), other = lane ^ static_cast<unsigned>(lanes);
    const unsigned w = static_cast<unsigned>(width);
    return kvb_host::shuffled(mask, value, other / w <= lane / w ? other : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = kvb_host::lane_id(), w = static_cast<unsigned>(width);
    return kvb_host::shuffled(mask, value, lane % w >= delta ? lane - delta : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = kvb_host::lane_id(), w = static_cast<unsigned>(width);
    return kvb_host::shuffled(mask, value, lane % w + delta < w ? lane + delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return kvb_host::vote(mask, predicate != 0)[0]; }
inline int __any_sync(unsigned mask, int predicate) { return kvb_host::vote(mask, predicate != 0)[0] != 0; }
inline int __all_sync(unsigned mask, int predicate) { return kvb_host::vote(mask, predicate != 0)[1] != 0; }
template <class T> T __reduce_add_sync(unsigned mask, T x) { return kvb_host::reduced<T, kvb_host::Add>(mask, x); }
template <class T> T __reduce_max_sync(unsigned mask, T x) { return kvb_host::reduced<T, kvb_host::Max>(mask, x); }
template <class T> T __reduce_min_sync(unsigned mask, T x) { return kvb_host::reduced<T, kvb_host::Min>(mask, x); }

// One thread runs at a time, so ordinary code is atomic.
template <class T> using Same = std::common_type_t<T>;  // not deduced, so that atomicAdd(float*, 1) compiles
template <class T> T atomicAdd(T* at, Same<T> value) { const T old = *at; *at = old + value; return old; }
template <class T> T atomicMax(T* at, Same<T> value) { const T old = *at; if (old < value) *at = value; return old; }
template <class T> T atomicMin(T* at, Same<T> value) { const T old = *at; if (value < old) *at = value; return old; }
template <class T> T atomicOr(T* at, Same<T> value) { const T old = *at; *at = old | value; return old; }
template <class T> T atomicAnd(T* at, Same<T> value) { const T old = *at; *at = old & value; return old; }
template <class T> T atomicExch(T* at, Same<T> value) { const T old = *at; *at = value; return old; }
template <class T> T atomicCAS(T* at, Same<T> expected, Same<T> value) {
    const T old = *at;
    if (old == expected) *at = value;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T __ldg(const T* at) { kvb_host::check_aligned(at, sizeof(T), "load"); return *at; }
template <class T> T __ldcg(const T* at) { kvb_host::check_aligned(at, sizeof(T), "load"); return *at; }
template <class T> void __stcg(T* at, T value) { kvb_host::check_aligned(at, sizeof(T), "store"); *at = value; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
template <class T, class U> constexpr std::common_type_t<T, U> min(T a, U b) { return b < a ? b : a; }
template <class T, class U> constexpr std::common_type_t<T, U> max(T a, U b) { return a < b ? b : a; }
