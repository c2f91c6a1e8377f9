// What the kernels need beyond CUDA C++: PTX under nvcc, emulation under g++ (host/shim.h), same names and results.
//
//   KVB_LAUNCH((kernel<X>), grid, block, shared_bytes, stream, arguments...)   launch; then check cudaGetLastError()
//   KVB_LAUNCH_EARLY(...)                                      the same; may start before the stream's previous kernel ends
//   KVB_SHARED(Type, name);           static shared memory of a type without constructor, as a reference
//   KVB_DYNAMIC_SHARED(name);         unsigned char* name, 16-byte aligned (128 on the host)
//   KVB_ALLOW_SHARED((kernel<X>), n)  cudaError_t: needed before a launch with more than 48 KB of dynamic shared memory
//
// By hand on the host:
//   g++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared -Wno-unknown-pragmas -x c++ file.cu -o libfile.so
#pragma once
#include <stdint.h>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define KVB_DEVICE __device__ __forceinline__
#define KVB_BOTH __host__ __device__ __forceinline__
#define KVB_UNPAREN(...) __VA_ARGS__
#define KVB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    KVB_UNPAREN kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define KVB_LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, ...) \
    kvb::launch_early(KVB_UNPAREN kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define KVB_SHARED(Type, name) __shared__ Type name
#define KVB_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define KVB_ALLOW_SHARED(kernel, bytes) \
    cudaFuncSetAttribute(KVB_UNPAREN kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))
#else
#include "host/shim.h"
#define KVB_DEVICE inline
#define KVB_BOTH inline
#define KVB_UNPAREN(...) __VA_ARGS__
#define KVB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ((void)(stream), kvb_host::launch(grid, block, shared_bytes, [&] { KVB_UNPAREN kernel(__VA_ARGS__); }))
#define KVB_LAUNCH_EARLY KVB_LAUNCH
#define KVB_SHARED(Type, name) \
    static const char name##_site = 0; \
    Type& name = *static_cast<Type*>(kvb_host::shared_memory(&name##_site, sizeof(Type), false))
#define KVB_DYNAMIC_SHARED(name) \
    unsigned char* const name =     \
        static_cast<unsigned char*>(kvb_host::shared_memory(nullptr, kvb_host::block.dynamic_bytes, true))
#define KVB_ALLOW_SHARED(kernel, bytes) ((void)(bytes), cudaSuccess)
#endif

namespace kvb {

using bf16 = __nv_bfloat16;
using fp16 = __half;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

KVB_DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
KVB_DEVICE float to_float(fp16 x) { return __half2float(x); }
template <typename T> KVB_DEVICE T from_float(float x);
template <> KVB_DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }
template <> KVB_DEVICE fp16 from_float<fp16>(float x) { return __float2half(x); }

#ifdef __CUDACC__

// Load 16 bytes of read-only data that is used once: around L1, and L2 fetches the whole 128-byte line. Not for
// addresses that the same launch writes.
KVB_DEVICE uint4 load_stream(const void* address) {
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3},[%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(address));
    return r;
}

// Load 16 bytes through the ordinary path.
KVB_DEVICE uint4 load16(const void* address) { return *static_cast<const uint4*>(address); }
KVB_DEVICE void store16(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

// C += A B for a 16 x 8 tile over 16, fp32 accumulators. With r = lane / 4 and c = lane % 4, and pairs of neighbours in
// a register: a0 = A[r][2c, 2c+1], a1 = A[r+8][2c, ..], a2 = A[r][2c+8, ..], a3 = A[r+8][2c+8, ..]; b0 = B[2c,
// 2c+1][r], b1 = B[2c+8, ..][r]; c[0..1] = C[r][2c, 2c+1], c[2..3] = C[r+8][2c, 2c+1]. All lanes of the warp call it.
template <typename T>
KVB_DEVICE void mma16816(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1);
template <>
KVB_DEVICE void mma16816<bf16>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                               uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
KVB_DEVICE void mma16816<fp16>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                               uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Transpose an 8 x 8 matrix of 16-bit elements held as row lane / 4, columns 2 (lane % 4) and the next.
KVB_DEVICE uint32_t transpose8x8(uint32_t a) {
    uint32_t d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(d) : "r"(a));
    return d;
}

// Four bytes of the pair (b, a), selected by the four low nibbles of `selector`: 0..3 from a, 4..7 from b.
KVB_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// Round two floats to 16 bits and pack them into a register, `low` in the low half.
template <typename T> KVB_DEVICE uint32_t pack2(float low, float high);
template <> KVB_DEVICE uint32_t pack2<bf16>(float low, float high) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
template <> KVB_DEVICE uint32_t pack2<fp16>(float low, float high) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// 2^x to about 2 units in the last place; subnormals become 0.
KVB_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
    return y;
}

// Add to a counter of all CTAs, and return what it was. Of two CTAs that do so, the later one sees what the earlier one
// has stored or seen before. A barrier on either side extends this to all threads of the CTAs.
KVB_DEVICE int add_acquire_release(int* counter, int value) {
    int old;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0,[%1],%2;" : "=r"(old) : "l"(counter), "r"(value) : "memory");
    return old;
}

// The first half: what this CTA has done comes before the addition. `acquire` is the second half.
KVB_DEVICE unsigned add_release(unsigned* counter, unsigned value) {
    unsigned old;
    asm volatile("atom.release.gpu.global.add.u32 %0,[%1],%2;" : "=r"(old) : "l"(counter), "r"(value) : "memory");
    return old;
}
KVB_DEVICE void acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// A kernel that is launched by KVB_LAUNCH_EARLY calls this before it touches memory.
KVB_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The stream's next kernel may start as soon as all CTAs have called this.
KVB_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

KVB_DEVICE int high_product(int a, unsigned b) { return static_cast<int>(__umulhi(static_cast<unsigned>(a), b)); }

#else

inline uint4 load16(const void* address) {
    kvb_host::check_aligned(address, 16, "load");
    return *static_cast<const uint4*>(address);
}
inline uint4 load_stream(const void* address) { return load16(address); }
inline void store16(void* address, uint4 value) {
    kvb_host::check_aligned(address, 16, "store");
    *static_cast<uint4*>(address) = value;
}

inline uint16_t bits_of(bf16 x) { return x.bits; }
inline uint16_t bits_of(fp16 x) { return x.bits; }
template <typename T> inline uint32_t pack2(float low, float high) {
    return bits_of(from_float<T>(low)) | uint32_t{bits_of(from_float<T>(high))} << 16;
}
inline uint32_t half_of(uint32_t pair, int which) { return which == 0 ? pair & 0xffffu : pair >> 16; }

template <typename T>
inline void mma_of_warp(kvb_host::Lane* const* warp, unsigned lanes) {
    if (lanes != kFullWarp) kvb_host::fail("mma without the whole warp (lanes %#x)", lanes);
    float a[16][16], b[16][8];
    const auto value = [](uint32_t pair, int i) { return to_float(T{static_cast<uint16_t>(half_of(pair, i))}); };
    for (int lane = 0; lane < 32; ++lane) {
        const uint32_t* in = warp[lane]->in;
        const int r = lane / 4, c = lane % 4 * 2;
        for (int i = 0; i < 2; ++i) {
            a[r][c + i] = value(in[0], i);
            a[r + 8][c + i] = value(in[1], i);
            a[r][c + 8 + i] = value(in[2], i);
            a[r + 8][c + 8 + i] = value(in[3], i);
            b[c + i][r] = value(in[4], i);
            b[c + 8 + i][r] = value(in[5], i);
        }
    }
    for (int row = 0; row < 16; ++row) {
        float sum[8] = {};
        for (int k = 0; k < 16; ++k)
            for (int column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
        for (int column = 0; column < 8; ++column) {
            kvb_host::Lane& owner = *warp[row % 8 * 4 + column / 2];
            const int slot = row / 8 * 2 + column % 2;
            owner.out[slot] = __float_as_uint(__uint_as_float(owner.in[6 + slot]) + sum[column]);
        }
    }
}

template <typename T>
inline void mma16816(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    uint32_t* in = kvb_host::block.current->lane.in;
    const uint32_t operands[6] = {a0, a1, a2, a3, b0, b1};
    std::memcpy(in, operands, sizeof(operands));
    std::memcpy(in + 6, c, sizeof(c));
    std::memcpy(c, kvb_host::meet(kFullWarp, mma_of_warp<T>), sizeof(c));
}

inline void transpose_of_warp(kvb_host::Lane* const* warp, unsigned lanes) {
    if (lanes != kFullWarp) kvb_host::fail("movmatrix without the whole warp (lanes %#x)", lanes);
    for (int row = 0; row < 8; ++row)
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t out = 0;
            for (int i = 0; i < 2; ++i)  // element [row][column] of the result is [column][row] of the source
                out |= half_of(warp[(pair * 2 + i) * 4 + row / 2]->in[0], row % 2) << 16 * i;
            warp[row * 4 + pair]->out[0] = out;
        }
}

inline uint32_t transpose8x8(uint32_t a) {
    kvb_host::block.current->lane.in[0] = a;
    return kvb_host::meet(kFullWarp, transpose_of_warp)[0];
}

inline uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t pair = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(pair >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

inline float exp2_fast(float x) { return std::exp2(x); }

inline int add_acquire_release(int* counter, int value) { return atomicAdd(counter, value); }
inline unsigned add_release(unsigned* counter, unsigned value) { return atomicAdd(counter, value); }
inline void acquire() {}
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}
inline int high_product(int a, unsigned b) {
    return static_cast<int>(uint64_t{static_cast<unsigned>(a)} * b >> 32);
}

#endif

// Maximum and sum over the warp, in every lane.
KVB_DEVICE float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, lanes));
    return x;
}
KVB_DEVICE float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
    return x;
}

}  // namespace kvb

#include "device.h"
