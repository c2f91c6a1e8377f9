// kvb_column_sums: the causal attention that every key receives from all queries.
//
// A block has some keys in registers and goes through the queries from the first of these keys on, in stages through
// shared memory. A lane sums the attention of two of eight queries, stage by stage, and the four lanes that share a key
// add their sums at the end. No other lane writes that key's sum. So there are no atomics, and the order is the same in
// every run.
#include "score/launch.h"

namespace {

using kvb::Prompt;
using kvb::QueryList;
using kvb::Tile;

constexpr int kStageTiles = 16;  // 128 queries; 64 KB of shared memory for D = 256
constexpr int kStageQueries = 8 * kStageTiles;

// Grid: (blocks of keys, H).
template <typename T, int kDim>
__global__ void __launch_bounds__(kvb::kThreads, 2)
key_sums(Prompt<T> prompt, const float* lse_HT, int64_t lse_head, float* sum_HT) {
    KVB_DYNAMIC_SHARED(shared);
    constexpr int kPairs = Tile<kDim>::kKeyGroups / 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
    uint4* queries = reinterpret_cast<uint4*>(shared);
    float* lse2 = reinterpret_cast<float*>(queries + kStageTiles * Tile<kDim>::kChunks * 32);  // base 2
    const T* q_TD = prompt.q + blockIdx.y * prompt.q_head;
    const float* lse_T = lse_HT + blockIdx.y * lse_head;
    const int begin = blockIdx.x * Tile<kDim>::kBlockKeys, key = begin + warp * Tile<kDim>::kKeys;
    typename Tile<kDim>::Keys keys;
    kvb::load_keys<T, kDim>(keys, prompt.k + int64_t(blockIdx.y) / prompt.group * prompt.k_head, prompt.k_token, key,
                            prompt.tokens);
    float sum[kPairs][2];  // for keys 16 m + r and 16 m + 8 + r, this lane's part
#pragma unroll
    for (int m = 0; m < kPairs; ++m) sum[m][0] = sum[m][1] = 0.f;

    for (int first = begin; first < prompt.tokens; first += kStageQueries) {
        const QueryList list{0, 1, first, min(prompt.tokens, first + kStageQueries), kStageTiles};
        __syncthreads();
        kvb::load_queries<T, kDim>(queries, prompt, q_TD, list, 0, kStageTiles);
        for (int row = threadIdx.x; row < kStageQueries; row += kvb::kThreads)  // no query: adds 2^-inf = 0
            lse2[row] = first + row < list.end ? lse_T[first + row] * kvb::kLog2e : INFINITY;
        __syncthreads();
        if (list.end <= key) continue;  // all queries come before the warp's keys
        const int tiles = (list.end - first + 7) / 8;
        float of_stage[kPairs][2];  // summed per stage: sums of many small numbers round less that way
#pragma unroll
        for (int m = 0; m < kPairs; ++m) of_stage[m][0] = of_stage[m][1] = 0.f;
        for (int tile = max(0, (key - first) / 8); tile < tiles; ++tile) {
            float dots[kPairs][4];
            kvb::keys_by_queries<T, kDim>(dots, keys, queries + tile * Tile<kDim>::kChunks * 32);
            const float2 minus = *reinterpret_cast<const float2*>(lse2 + 8 * tile + 2 * c);
            const int query = first + 8 * tile + 2 * c;
            const bool all_see = first + 8 * tile >= key + Tile<kDim>::kKeys - 1;
#pragma unroll
            for (int m = 0; m < kPairs; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int mine = key + 16 * m + 8 * half + r;
                    const float low = kvb::exp2_fast(__fmaf_rn(dots[m][2 * half], prompt.scale, -minus.x));
                    const float high = kvb::exp2_fast(__fmaf_rn(dots[m][2 * half + 1], prompt.scale, -minus.y));
                    of_stage[m][half] += (all_see || mine <= query ? low : 0.f) +
                                         (all_see || mine <= query + 1 ? high : 0.f);
                }
        }
#pragma unroll
        for (int m = 0; m < kPairs; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) sum[m][half] += of_stage[m][half];
    }
#pragma unroll
    for (int m = 0; m < kPairs; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float all = kvb::quad_sum(sum[m][half]);
            const int at = key + 16 * m + 8 * half + r;
            if (c == m % 4 && at < prompt.tokens) sum_HT[blockIdx.y * int64_t(prompt.tokens) + at] = all;
        }
}

}  // namespace

// calls.h has the arguments. Rows of q and k are aligned to 16 bytes.
extern "C" int kvb_column_sums(const kvb::ColumnSums* call, cudaStream_t stream) {
    if (call->heads > kvb::kMostBlocks) return kvb::kTooLarge;
    if (call->tokens == 0) return 0;
    return kvb::for_dtype_and_dim(call->dtype, call->dim, [&](auto type, auto dim_tag) {
        using T = typename decltype(type)::type;
        constexpr int kDim = decltype(dim_tag)::value;
        const Prompt<T> prompt = kvb::prompt_of<T>(call->q, call->k, call->heads / call->kv_heads, call->tokens,
                                                   call->tokens, call->scaling);
        constexpr int64_t kBytes =
            kStageTiles * (Tile<kDim>::kChunks * 512 + 8 * int64_t(sizeof(float)));
        if (const int error = kvb::allow_shared(key_sums<T, kDim>, kBytes)) return error;
        const dim3 grid{unsigned(kvb::divide_up(call->tokens, Tile<kDim>::kBlockKeys)), unsigned(call->heads)};
        KVB_LAUNCH((key_sums<T, kDim>), grid, kvb::kThreads, kBytes, stream, prompt,
                   static_cast<const float*>(call->lse.data), call->lse.stride_0, call->out);
        return int(cudaGetLastError());
    });
}
