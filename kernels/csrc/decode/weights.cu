// The attention weights of a decode step, for policies that read them.
//
// C ABI. calls.h has the arguments; rows of q and k are aligned to 16 bytes (so dim is a multiple of 8). Returns 0, a
// cudaError, or a code of common.h.
//
//   int kvb_decode_weights(const DecodeWeights* call, cudaStream_t stream);
//     out is the softmax of the queries of lane n over the live slots of segment[n], and 0 from there to `width`. Query
//     t of T sees the first length - T + t + 1 slots.
#include <string.h>

#include "calls.h"
#include "common.h"

namespace kvb {

constexpr int kWeightThreads = 128, kMostWeightDim = 256;
using WeightQuery = float[kMostWeightDim];
using WeightParts = float[kWeightThreads];

template <typename T>
struct WeightArguments {
    const T *q, *k;
    const int32_t *start, *length, *segment;
    float* out;
    int group, tokens, dim, width;
    float scale;  // of the logits, times log2(e)
};

// The largest (or the sum) of a value of each thread, for all threads. It begins and ends with a barrier.
template <bool kSum>
KVB_DEVICE float over_threads(float value, WeightParts& parts) {
    __syncthreads();
    parts[threadIdx.x] = value;
    for (int half = kWeightThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) {
            const float other = parts[threadIdx.x + half];
            parts[threadIdx.x] = kSum ? parts[threadIdx.x] + other : fmaxf(parts[threadIdx.x], other);
        }
    }
    __syncthreads();
    return parts[0];
}

// One CTA per lane and query. A thread takes every kWeightThreads-th slot, in all three passes.
template <typename T>
__global__ void __launch_bounds__(kWeightThreads) decode_weights(const WeightArguments<T> args) {
    KVB_SHARED(WeightQuery, query);
    KVB_SHARED(WeightParts, parts);
    const int lane = static_cast<int>(blockIdx.x), column = static_cast<int>(blockIdx.y);
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t row = int64_t(lane) * args.group * args.tokens + column;
    for (int d = thread; d < args.dim; d += kWeightThreads) query[d] = to_float(args.q[row * args.dim + d]) * args.scale;
    __syncthreads();
    const int segment = args.segment[lane];
    const int seen = args.length[segment] - args.tokens + column % args.tokens + 1;
    const T* keys = args.k + int64_t(args.start[segment]) * args.dim;
    float* out = args.out + row * args.width;
    float top = kNothing;
    for (int slot = thread; slot < seen; slot += kWeightThreads) {
        const T* key = keys + int64_t(slot) * args.dim;
        float sum = 0.f;
        for (int d = 0; d < args.dim; d += 8) {
            const uint4 chunk = load16(key + d);
            T of_chunk[8];
            memcpy(of_chunk, &chunk, sizeof chunk);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += to_float(of_chunk[i]) * query[d + i];
        }
        out[slot] = sum;
        top = fmaxf(top, sum);
    }
    top = over_threads<false>(top, parts);
    float total = 0.f;
    for (int slot = thread; slot < seen; slot += kWeightThreads) {
        const float weight = exp2_fast(out[slot] - top);
        out[slot] = weight;
        total += weight;
    }
    total = over_threads<true>(total, parts);
    for (int slot = thread; slot < args.width; slot += kWeightThreads) out[slot] = slot < seen ? out[slot] / total : 0.f;
}

template <typename T>
int launch_weights(const DecodeWeights& call, cudaStream_t stream) {
    const WeightArguments<T> args{
        .q = static_cast<const T*>(call.q),
        .k = static_cast<const T*>(call.k),
        .start = call.start,
        .length = call.length,
        .segment = call.segment,
        .out = call.out,
        .group = call.group,
        .tokens = call.tokens,
        .dim = call.dim,
        .width = call.width,
        .scale = call.scaling * kLog2e,
    };
    const dim3 grid{unsigned(call.lanes), unsigned(call.group * call.tokens), 1u};
    KVB_LAUNCH((decode_weights<T>), grid, kWeightThreads, 0, stream, args);
    return int(cudaGetLastError());
}

}  // namespace kvb

extern "C" int kvb_decode_weights(const kvb::DecodeWeights* call, cudaStream_t stream) {
    using namespace kvb;
    if (call->dim < 8 || call->dim % 8 != 0 || call->dim > kMostWeightDim) return kUnsupported;
    if (call->dtype < 0 || call->dtype > 1) return kUnsupported;
    if (call->lanes < 1 || call->group < 1 || call->tokens < 1) return kTooLarge;
    if (int64_t(call->group) * call->tokens > kMostBlocks) return kTooLarge;
    return call->dtype == 0 ? launch_weights<bf16>(*call, stream) : launch_weights<fp16>(*call, stream);
}
