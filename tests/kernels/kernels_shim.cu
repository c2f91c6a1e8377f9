// Kernels that try the host shim itself: threads, barriers, shared memory, warp operations, matrix products, atomics.
#include "primitives.h"

namespace kvb {

constexpr int kThreads = 64;
struct Exchange {
    int value[kThreads];
};

enum Mode { kAllWrite, kNobodyWrites, kOneLeaves, kOneWaitsForEver, kNoBarrier };

__global__ void reverse(int* out, int mode) {
    KVB_SHARED(Exchange, shared);
    const int thread = static_cast<int>(threadIdx.x);
    if (mode == kOneLeaves && thread == 3) return;
    if (mode == kOneWaitsForEver && thread == 3) __syncwarp();
    if (mode != kNobodyWrites) shared.value[thread] = thread + 100 * static_cast<int>(blockIdx.x);
    if (mode != kNoBarrier) __syncthreads();
    out[blockIdx.x * kThreads + threadIdx.x] = shared.value[kThreads - 1 - thread];
}

__global__ void order(int* out, int* next) {
    if (threadIdx.x == 0) out[blockIdx.x] = atomicAdd(next, 1);
}

__global__ void warp_operations(int* out) {
    const int lane = static_cast<int>(threadIdx.x);
    int row = 0;
    const auto put = [&](int value) { out[32 * row++ + lane] = value; };
    put(__shfl_xor_sync(kFullWarp, lane, 5));
    put(__shfl_up_sync(kFullWarp, lane, 3, 8));
    put(__shfl_down_sync(kFullWarp, lane, 3));
    put(static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0)));
    put(__all_sync(kFullWarp, lane < 32) + 2 * __any_sync(kFullWarp, lane == 40));
    put(__reduce_add_sync(kFullWarp, lane));
    put(lane < 16 ? __shfl_sync(0xffffu, lane, 15 - lane) : __shfl_sync(0xffff0000u, lane, 47 - lane));
    put(__syncthreads_count(lane < 7));
    put(static_cast<int>(__shfl_sync(kFullWarp, lane * 0x100000001LL, 9) >> 32));
}

template <typename T>
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* c, uint32_t* transposed) {
    const int lane = static_cast<int>(threadIdx.x), row = lane / 4, pair = lane % 4;
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2];
    mma16816<T>(sum, a[row * 8 + pair], a[(row + 8) * 8 + pair], a[row * 8 + pair + 4], a[(row + 8) * 8 + pair + 4],
                b[row * 8 + pair], b[row * 8 + pair + 4]);
    for (int i = 0; i < 4; ++i) c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = sum[i];
    transposed[lane] = transpose8x8(a[row * 8 + pair]);
}

__global__ void half_a_warp() {
    if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 20);
}

__global__ void different_operations() {
    if (threadIdx.x < 16) __syncwarp();
    else __any_sync(kFullWarp, 1);
}

__global__ void load(const char* from, uint4* to) { *to = load_stream(from); }

template <typename T>
__global__ void convert(const float* from, uint32_t* to, int pairs) {
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += static_cast<int>(blockDim.x))
        to[i] = pack2<T>(from[2 * i], from[2 * i + 1]);
}

}  // namespace kvb

using namespace kvb;
extern "C" {
void shim_reverse(int* out, int blocks, int mode) { KVB_LAUNCH((reverse), blocks, kThreads, 0, nullptr, out, mode); }
void shim_order(int* out, int* next, int blocks) { KVB_LAUNCH((order), blocks, kThreads, 0, nullptr, out, next); }
void shim_warp(int* out) { KVB_LAUNCH((warp_operations), 1, 32, 0, nullptr, out); }
void shim_multiply(const uint32_t* a, const uint32_t* b, float* c, uint32_t* transposed, int dtype) {
    if (dtype == 0) KVB_LAUNCH((multiply<bf16>), 1, 32, 0, nullptr, a, b, c, transposed);
    else KVB_LAUNCH((multiply<fp16>), 1, 32, 0, nullptr, a, b, c, transposed);
}
void shim_half_a_warp() { KVB_LAUNCH((half_a_warp), 1, 32, 0, nullptr); }
void shim_different_operations() { KVB_LAUNCH((different_operations), 1, 32, 0, nullptr); }
void shim_load(const char* from, void* to) { KVB_LAUNCH((load), 1, 1, 0, nullptr, from, static_cast<uint4*>(to)); }
void shim_too_many_threads(int* out) { KVB_LAUNCH((reverse), 1, 2048, 0, nullptr, out, 0); }
void shim_convert(const float* from, uint32_t* to, int pairs, int dtype) {
    if (dtype == 0) KVB_LAUNCH((convert<bf16>), 1, 32, 0, nullptr, from, to, pairs);
    else KVB_LAUNCH((convert<fp16>), 1, 32, 0, nullptr, from, to, pairs);
}
}
