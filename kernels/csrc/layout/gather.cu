// kvb_ragged_gather copies the kept tokens of a dense prompt to the segments of an arena. kvb_ragged_relayout copies
// the live slots of an arena to another arena. Both move whole rows of K and V, 16 bytes at a time, without the host.
//
// Suffixes: U KV heads, T tokens of the prompt, D head dimension, S segments, S1 = S + 1, R slots of the (old) arena,
// M segments of the new one, Q its slots.
#include "calls.h"
#include "primitives_more.h"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
using PerWarp = int[kWarps];
constexpr int kChunk = 2048;  // tokens of a segment that one block reads
using Chunk = int[kChunk];

struct Rows {  // layout of the rows of K and V: bytes from one head to the next, and from one token to the next
    const char* k;
    const char* v;
    int64_t k_head, k_token, v_head, v_token;
};

struct GatherArguments {
    Rows from;
    int tokens, row_bytes;
    const unsigned char* keep_ST;
    const int *head_S, *start_S1;
    char *k_RD, *v_RD;
};

struct RelayoutArguments {
    const char *k_RD, *v_RD;
    int row_bytes;
    const int *start_S1, *length_S, *source_M, *start_M1;
    char *k_QD, *v_QD;
};

// Sum over the block, the same for all threads. `part_W` may be overwritten afterwards.
KVB_DEVICE int block_sum(int mine, int* part_W) {
    for (int step = 16; step > 0; step /= 2) mine += __shfl_xor_sync(kvb::kFullWarp, mine, step);
    if (threadIdx.x % 32 == 0) part_W[threadIdx.x / 32] = mine;
    __syncthreads();
    int sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += part_W[warp];
    __syncthreads();
    return sum;
}

// This thread's share of the number of set bytes in mask[0 .. end). Bytes are 0 or 1. Those before the first address
// that is a multiple of 16, and those after the last, are read one by one.
KVB_DEVICE int count_set(const unsigned char* mask, int end) {
    const int head = min(end, int(-reinterpret_cast<uintptr_t>(mask) & 15));
    const int pieces = (end - head) / 16, tail = head + 16 * pieces;
    int count = 0;
    for (int i = threadIdx.x; i < head; i += kThreads) count += mask[i];
    for (int i = threadIdx.x; i < pieces; i += kThreads) {
        const uint4 piece = kvb::load16(mask + head + 16 * int64_t(i));
        count += __popc(piece.x) + __popc(piece.y) + __popc(piece.z) + __popc(piece.w);
    }
    for (int i = tail + threadIdx.x; i < end; i += kThreads) count += mask[i];
    return count;
}

// Block (chunk, segment) copies the kept tokens of the chunk to the slots after those of earlier chunks.
__global__ void __launch_bounds__(kThreads)
gather(const GatherArguments args) {
    KVB_SHARED(Chunk, kept_of_chunk);
    KVB_SHARED(PerWarp, part_W);
    const int segment = blockIdx.y, begin = blockIdx.x * kChunk, end = min(args.tokens, begin + kChunk);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned char* keep_T = args.keep_ST + int64_t(segment) * args.tokens;
    const int first = args.start_S1[segment], capacity = args.start_S1[segment + 1] - first;
    const int before = block_sum(count_set(keep_T, begin), part_W);

    // Each warp lists the kept tokens of a range of the chunk, after those of the warps before it.
    constexpr int kRange = kChunk / kWarps;
    unsigned set[kRange / 32];
    int mine = 0;
    for (int i = 0; i < kRange / 32; ++i) {
        const int token = begin + warp * kRange + i * 32 + lane;
        set[i] = __ballot_sync(kvb::kFullWarp, token < end && keep_T[token] != 0);
        mine += __popc(set[i]);
    }
    if (lane == 0) part_W[warp] = mine;
    __syncthreads();
    int at = 0, kept = 0;
    for (int w = 0; w < kWarps; ++w) {
        at += w < warp ? part_W[w] : 0;
        kept += part_W[w];
    }
    for (int i = 0; i < kRange / 32; ++i) {
        const int token = begin + warp * kRange + i * 32 + lane;
        if (set[i] >> lane & 1) kept_of_chunk[at + __popc(set[i] & ((1u << lane) - 1))] = token;
        at += __popc(set[i]);
    }
    __syncthreads();

    kept = min(kept, capacity - before);  // a segment takes as many as it has room for
    const Rows& from = args.from;
    const int pieces = args.row_bytes / 16;
    const char* k_TD = from.k + args.head_S[segment] * from.k_head;
    const char* v_TD = from.v + args.head_S[segment] * from.v_head;
    const int64_t to = (int64_t(first) + before) * args.row_bytes;
    constexpr int kTogether = 4;  // loads in flight per thread; past the end, load the last piece again
    for (int begin_piece = threadIdx.x; begin_piece < kept * pieces; begin_piece += kTogether * kThreads) {
        uint4 k[kTogether], v[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            const int i = min(begin_piece + j * kThreads, kept * pieces - 1), offset = i % pieces * 16;
            const int64_t token = kept_of_chunk[i / pieces];
            k[j] = kvb::load16(k_TD + token * from.k_token + offset);
            v[j] = kvb::load16(v_TD + token * from.v_token + offset);
        }
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            const int i = begin_piece + j * kThreads;
            if (i >= kept * pieces) continue;
            kvb::store16(args.k_RD + to + int64_t(16) * i, k[j]);
            kvb::store16(args.v_RD + to + int64_t(16) * i, v[j]);
        }
    }
}

// Blocks (x, place) copy the live slots of segment source_M[place]; each block copies every gridDim.x-th piece.
__global__ void __launch_bounds__(kThreads)
relayout(const RelayoutArguments args) {
    const int *length_S = args.length_S, *start_M1 = args.start_M1;
    const int place = blockIdx.y, segment = args.source_M[place], row_bytes = args.row_bytes;
    const int64_t first = start_M1[place], live = min(length_S[segment], start_M1[place + 1] - start_M1[place]);
    const int64_t from = args.start_S1[segment] * int64_t(row_bytes), to = first * row_bytes;
    const int64_t stride = int64_t(gridDim.x) * kThreads * 16;
    for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 16; i < live * row_bytes; i += stride) {
        const uint4 k = kvb::load16(args.k_RD + from + i), v = kvb::load16(args.v_RD + from + i);
        kvb::store16(args.k_QD + to + i, k);
        kvb::store16(args.v_QD + to + i, v);
    }
}

constexpr int64_t kElement = 2;  // bytes

}  // namespace

// calls.h has the arguments. All rows of K and V are aligned to 16 bytes.
extern "C" int kvb_ragged_gather(const kvb::RaggedGather* call, cudaStream_t stream) {
    if (call->dtype < 0 || call->dtype > 1 || call->dim % 8 != 0) return kvb::kUnsupported;
    if (call->segments > kvb::kMostBlocks) return kvb::kTooLarge;
    if (call->tokens == 0 || call->segments == 0) return 0;
    const Rows from{
        .k = static_cast<const char*>(call->k.data),
        .v = static_cast<const char*>(call->v.data),
        .k_head = call->k.stride_0 * kElement,
        .k_token = call->k.stride_1 * kElement,
        .v_head = call->v.stride_0 * kElement,
        .v_token = call->v.stride_1 * kElement,
    };
    const GatherArguments args{
        .from = from,
        .tokens = int(call->tokens),
        .row_bytes = int(call->dim * kElement),
        .keep_ST = static_cast<const unsigned char*>(call->keep),
        .head_S = call->head,
        .start_S1 = call->start,
        .k_RD = static_cast<char*>(call->k_to),
        .v_RD = static_cast<char*>(call->v_to),
    };
    const dim3 grid(unsigned((call->tokens + kChunk - 1) / kChunk), unsigned(call->segments));
    KVB_LAUNCH((gather), grid, kThreads, 0, stream, args);
    return int(cudaGetLastError());
}

extern "C" int kvb_ragged_relayout(const kvb::RaggedRelayout* call, cudaStream_t stream) {
    constexpr int64_t kBlocks = 2048;  // enough to keep any GPU's memory busy
    if (call->dtype < 0 || call->dtype > 1 || call->dim % 8 != 0) return kvb::kUnsupported;
    if (call->places > kvb::kMostBlocks) return kvb::kTooLarge;
    if (call->places == 0) return 0;
    const int64_t of_place = (kBlocks + call->places - 1) / call->places;  // only the GPU knows the lengths
    const RelayoutArguments args{
        .k_RD = static_cast<const char*>(call->k),
        .v_RD = static_cast<const char*>(call->v),
        .row_bytes = int(call->dim * kElement),
        .start_S1 = call->start,
        .length_S = call->length,
        .source_M = call->source,
        .start_M1 = call->start_to,
        .k_QD = static_cast<char*>(call->k_to),
        .v_QD = static_cast<char*>(call->v_to),
    };
    const dim3 grid(unsigned(of_place < 64 ? of_place : 64), unsigned(call->places));
    KVB_LAUNCH((relayout), grid, kThreads, 0, stream, args);
    return int(cudaGetLastError());
}
