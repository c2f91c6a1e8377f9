// kvb_row_lse, and the first pass of kvb_window_score: log-sum-exp of every query's causal logits.
//
// A block has the queries of some positions, of all query heads of a KV head, in shared memory, and goes through the
// keys that these may see; its warps take different keys. Each warp keeps the running maximum and sum of every query.
// They are merged in a fixed order: over the warps of a block, then over the blocks that share the keys of one head.
#include "score/launch.h"

namespace {

using kvb::kNothing;
using kvb::kWarps;
using kvb::Prompt;
using kvb::QueryList;
using kvb::Tile;

constexpr int kMerge = 128;  // threads of the merging kernel

// The largest base-2 logit so far, and the sum of 2^(logit - largest). kNothing replaces -infinity, because differences
// of infinities are NaN.
KVB_DEVICE float2 merge(float2 a, float2 b) {
    const float top = fmaxf(a.x, b.x);
    return make_float2(top, a.y * kvb::exp2_fast(a.x - top) + b.y * kvb::exp2_fast(b.x - top));
}

// Natural log-sum-exp.
KVB_DEVICE float lse_of(float2 state) { return (state.x + log2f(state.y)) * kvb::kLn2; }

// Grid: (parts of the keys, KV heads, query blocks x head blocks). With one part, the result goes to `lse`; otherwise
// largest and sum go to `part` [part, H, W].
template <typename T, int kDim>
__global__ void __launch_bounds__(kvb::kThreads, 2)
row_lse(Prompt<T> prompt, int of_head, int heads_here, float* lse, float2* part) {
    KVB_DYNAMIC_SHARED(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
    const int head_blocks = (prompt.group + heads_here - 1) / heads_here;
    QueryList list;
    list.head = blockIdx.z % head_blocks * heads_here;
    list.heads = min(heads_here, prompt.group - list.head);
    list.of_head = of_head;
    list.query = (gridDim.z - 1 - blockIdx.z) / head_blocks * 8 * of_head;  // late queries first: they see most keys
    list.end = min(prompt.queries, list.query + 8 * of_head);
    const int pairs = (list.tiles() + 1) / 2, rows = 16 * pairs;

    uint4* queries = reinterpret_cast<uint4*>(shared);
    float2* state_of_warps = reinterpret_cast<float2*>(queries + 2 * pairs * Tile<kDim>::kChunks * 32);
    float2* state = state_of_warps + warp * rows;
    const T* q_GTD = prompt.q + blockIdx.y * int64_t(prompt.group) * prompt.q_head;
    const T* k_TD = prompt.k + blockIdx.y * prompt.k_head;
    kvb::load_queries<T, kDim>(queries, prompt, q_GTD, list, 0, 2 * pairs);
    for (int row = lane; row < rows; row += 32) state[row] = make_float2(kNothing, 0.f);
    __syncthreads();

    const int seen = prompt.first() + list.end;  // number of keys that the last query sees
    for (int begin = blockIdx.x * Tile<kDim>::kBlockKeys; begin < seen; begin += gridDim.x * Tile<kDim>::kBlockKeys) {
        const int key = begin + warp * Tile<kDim>::kKeys;
        if (key >= seen) continue;
        typename Tile<kDim>::Keys keys;
        kvb::load_keys<T, kDim>(keys, k_TD, prompt.k_token, key, prompt.tokens);
        const bool all_visible = key + Tile<kDim>::kKeys - 1 <= prompt.first() + list.query;
        for (int pair = 0; pair < pairs; ++pair) {
            float logit[Tile<kDim>::kKeyGroups][4];
            kvb::queries_by_keys<T, kDim>(logit, queries + 2 * pair * Tile<kDim>::kChunks * 32, keys);
            float top[2] = {kNothing, kNothing};  // for queries r and r + 8 of the pair
            const int position[2] = {prompt.first() + list.query_of(16 * pair + r),
                                     prompt.first() + list.query_of(16 * pair + 8 + r)};
#pragma unroll
            for (int group = 0; group < Tile<kDim>::kKeyGroups; ++group)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& x = logit[group][i];
                    const bool visible = all_visible || key + 8 * group + 2 * c + i % 2 <= position[i / 2];
                    x = visible ? x * prompt.scale : -INFINITY;
                    top[i / 2] = fmaxf(top[i / 2], x);
                }
            float sum[2] = {0.f, 0.f};
#pragma unroll
            for (int half = 0; half < 2; ++half) top[half] = kvb::quad_max(top[half]);
#pragma unroll
            for (int group = 0; group < Tile<kDim>::kKeyGroups; ++group)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[i / 2] += kvb::exp2_fast(logit[group][i] - top[i / 2]);
#pragma unroll
            for (int half = 0; half < 2; ++half) sum[half] = kvb::quad_sum(sum[half]);
            if (c < 2) {  // lane (r, 0) merges query r, lane (r, 1) query r + 8
                float2& mine = state[16 * pair + 8 * c + r];
                mine = merge(mine, c == 0 ? make_float2(top[0], sum[0]) : make_float2(top[1], sum[1]));
            }
        }
    }
    __syncthreads();

    const int64_t heads = int64_t(gridDim.y) * prompt.group;
    for (int row = threadIdx.x; row < 8 * list.tiles(); row += kvb::kThreads) {
        const int query = list.query_of(row);
        if (query >= list.end) continue;
        float2 all = state_of_warps[row];
        for (int w = 1; w < kWarps; ++w) all = merge(all, state_of_warps[w * rows + row]);
        const int64_t at = (int64_t(blockIdx.y) * prompt.group + list.head_of(row)) * prompt.queries + query;
        if (part == nullptr)
            lse[at] = lse_of(all);
        else
            part[blockIdx.x * heads * prompt.queries + at] = all;
    }
}

__global__ void __launch_bounds__(kMerge) merge_parts(const float2* part, int parts, int count, float* lse) {
    const int i = blockIdx.x * kMerge + threadIdx.x;
    if (i >= count) return;
    float2 all = part[i];
    for (int p = 1; p < parts; ++p) all = merge(all, part[int64_t(p) * count + i]);
    lse[i] = lse_of(all);
}

}  // namespace

namespace kvb {

int launch_lse(const LseCall& call, float* lse, void* part, cudaStream_t stream) {
    return for_dtype_and_dim(call.dtype, call.dim, [&](auto type, auto dim) {
        using T = typename decltype(type)::type;
        constexpr int kDim = decltype(dim)::value;
        constexpr int64_t kMaxTiles = Tile<kDim>::kMaxTiles;
        const int64_t group = call.heads / call.kv_heads;
        const Prompt<T> prompt = prompt_of<T>(call.q, call.k, group, call.queries, call.tokens, call.scaling);
        const int64_t heads_here = group < kMaxTiles ? group : kMaxTiles;
        const int64_t most = kMaxTiles / heads_here, wanted = divide_up(call.queries, 8);
        const int64_t of_head = wanted < most ? wanted : most;
        const int64_t tiles = divide_up(heads_here * of_head, 2) * 2;
        const int64_t bytes = tiles * (Tile<kDim>::kChunks * 512 + 8 * kWarps * int64_t(sizeof(float2)));
        const int64_t parts =
            call.split ? parts_of_head(call.kv_heads, divide_up(call.tokens, Tile<kDim>::kBlockKeys)) : 1;
        const int64_t blocks = divide_up(call.queries, 8 * of_head) * divide_up(group, heads_here);
        if (blocks > kMostBlocks || call.kv_heads > kMostBlocks) return kTooLarge;
        if (const int error = allow_shared(row_lse<T, kDim>, bytes)) return error;
        const dim3 grid{unsigned(parts), unsigned(call.kv_heads), unsigned(blocks)};
        float2* const parts_at = parts > 1 ? static_cast<float2*>(part) : nullptr;
        KVB_LAUNCH((row_lse<T, kDim>), grid, kThreads, bytes, stream, prompt, int(of_head), int(heads_here), lse,
                   parts_at);
        if (parts > 1) {
            const int count = int(call.heads * call.queries);
            KVB_LAUNCH((merge_parts), unsigned(divide_up(count, kMerge)), kMerge, 0, stream, parts_at, int(parts), count,
                       lse);
        }
        return int(cudaGetLastError());
    });
}

}  // namespace kvb

// calls.h has the arguments. Rows of q and k are aligned to 16 bytes.
extern "C" int kvb_row_lse(const kvb::RowLse* call, cudaStream_t stream) {
    if (call->tokens == 0) return 0;
    const kvb::LseCall of_all{
        .q = call->q,
        .k = call->k,
        .heads = call->heads,
        .kv_heads = call->kv_heads,
        .queries = call->tokens,
        .tokens = call->tokens,
        .dim = call->dim,
        .scaling = call->scaling,
        .split = false,
        .dtype = call->dtype,
    };
    return kvb::launch_lse(of_all, call->lse, nullptr, stream);
}
