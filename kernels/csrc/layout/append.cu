// Append new tokens to a ragged KV cache in place: keys and values in one launch. The time does not depend on the
// cache's lengths.
//
// C ABI. calls.h has the arguments; all rows are aligned to 16 bytes (so dim is a multiple of 8). Returns 0, a cudaError,
// or a code of common.h.
//
//   int kvb_ragged_append(const RaggedAppend* call, cudaStream_t stream);
//     Token t of lane n = b * kv_heads + u goes to slot start[s] + length[s] + t of s = segment[n]; then length[s] +=
//     T. No two lanes share a segment. A segment without room for all T keeps its rows and length, and status becomes
//     1 + s if it was 0.
#include "calls.h"
#include "common.h"

namespace kvb {

constexpr int kMostThreads = 512;

// New rows [B, U, T, D] and their destination. Elements are moved as bits.
struct Side {
    uint16_t* buffer;
    const uint16_t* fresh;
    int64_t stride_b, stride_u, stride_t;
};

struct AppendArguments {
    Side keys, values;
    const int32_t* start;
    int32_t* length;
    const int32_t* segment;
    int32_t* status;
    int kv_heads, tokens, dim;
};

// One CTA per lane.
__global__ void __launch_bounds__(kMostThreads) append(const AppendArguments args) {
    const int lane = static_cast<int>(blockIdx.x), batch = lane / args.kv_heads, head = lane % args.kv_heads;
    const int segment = args.segment[lane], first = args.start[segment], length = args.length[segment];
    const bool room = length + args.tokens <= args.start[segment + 1] - first;
    __syncthreads();  // all threads have read the length
    if (threadIdx.x == 0) {
        if (room) args.length[segment] = length + args.tokens;
        else atomicCAS(args.status, 0, segment + 1);
    }
    if (!room) return;
    const Side &k = args.keys, &v = args.values;
    const uint16_t* k_new = k.fresh + batch * k.stride_b + head * k.stride_u;
    const uint16_t* v_new = v.fresh + batch * v.stride_b + head * v.stride_u;
    const int64_t offset = (static_cast<int64_t>(first) + length) * args.dim;
    const int chunks = args.dim / 8;  // of 16 bytes in a row
    for (int i = static_cast<int>(threadIdx.x); i < args.tokens * chunks; i += static_cast<int>(blockDim.x)) {
        const int token = i / chunks, dim = i % chunks * 8;
        const uint4 key = load_stream(k_new + token * k.stride_t + dim);
        const uint4 value = load_stream(v_new + token * v.stride_t + dim);
        store16(k.buffer + offset + int64_t{8} * i, key);
        store16(v.buffer + offset + int64_t{8} * i, value);
    }
}

Side side(void* buffer, const Tensor4& fresh) {
    return Side{
        .buffer = static_cast<uint16_t*>(buffer),
        .fresh = static_cast<const uint16_t*>(fresh.data),
        .stride_b = fresh.stride_0,
        .stride_u = fresh.stride_1,
        .stride_t = fresh.stride_2,
    };
}

}  // namespace kvb

extern "C" int kvb_ragged_append(const kvb::RaggedAppend* call, cudaStream_t stream) {
    using namespace kvb;
    if (call->dim < 8 || call->dim % 8 != 0 || call->dtype < 0 || call->dtype > 1) return kUnsupported;
    if (call->batch < 1 || call->kv_heads < 1 || call->tokens < 1) return kTooLarge;
    const AppendArguments args{
        .keys = side(call->k, call->k_new),
        .values = side(call->v, call->v_new),
        .start = call->start,
        .length = call->length,
        .segment = call->segment,
        .status = call->status,
        .kv_heads = call->kv_heads,
        .tokens = call->tokens,
        .dim = call->dim,
    };
    const int64_t wanted = static_cast<int64_t>(call->tokens) * (call->dim / 8);
    const int threads = wanted >= kMostThreads ? kMostThreads : static_cast<int>((wanted + 31) / 32 * 32);
    KVB_LAUNCH((append), call->batch * call->kv_heads, threads, 0, stream, args);
    return static_cast<int>(cudaGetLastError());
}
