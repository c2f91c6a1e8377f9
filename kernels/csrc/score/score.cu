// kvb_window_score: scores of all tokens before a window, by the attention of the window's W tokens, the last ones.
//
// A warp has 64 keys in registers (32 for D = 256) and multiplies them with the queries of all heads of the group,
// which are in shared memory. A lane sums the probabilities of two of eight queries in their order, and the four lanes
// that share a key add their sums at the end of a head. So all keys are summed in the same order, and equal keys get
// equal scores. Pooling along tokens is a separate kernel, because a key's neighbours belong to other warps.
#include "score/launch.h"

namespace {

using kvb::kWarps;
using kvb::Prompt;
using kvb::QueryList;
using kvb::Tile;

constexpr int kPoolThreads = 256;

enum Group { kMean = 0, kMax = 1, kSum = 2 };
enum Pool { kNoPool = 0, kMaxPool = 1, kAvgPool = 2 };

// Scores of past keys before pooling, [U, N]. Grid: (parts of the keys, KV heads). All queries of the group are in the
// list. If they do not fit into shared memory, they are loaded in `stages`, once for each part of the keys.
template <typename T, int kDim>
__global__ void __launch_bounds__(kvb::kThreads, 2)
window_attention(Prompt<T> prompt, const float* lse, int64_t lse_head, int group_by, int stage_tiles, int stages,
                 float* score_UN) {
    KVB_DYNAMIC_SHARED(shared);
    constexpr int kPairs = Tile<kDim>::kKeyGroups / 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
    const int past = prompt.first();
    const QueryList list{0, prompt.group, 0, prompt.queries, (prompt.queries + 7) / 8};
    uint4* queries = reinterpret_cast<uint4*>(shared);
    float* lse2 = reinterpret_cast<float*>(queries + stage_tiles * Tile<kDim>::kChunks * 32);  // base 2
    const int head_0 = blockIdx.y * prompt.group;
    const T* q_GTD = prompt.q + head_0 * prompt.q_head;
    const T* k_TD = prompt.k + blockIdx.y * prompt.k_head;
    const auto load_stage = [&](int begin, int end) {
        kvb::load_queries<T, kDim>(queries, prompt, q_GTD, list, begin, end);
        for (int row = threadIdx.x; row < 8 * (end - begin); row += kvb::kThreads) {
            const int query = list.query_of(8 * begin + row);
            const int64_t head = head_0 + list.head_of(8 * begin + row);
            // rows without a query have probability 2^-inf, which is exactly 0
            lse2[row] = query < list.end ? lse[head * lse_head + query] * kvb::kLog2e : INFINITY;
        }
    };
    if (stages == 1) {
        load_stage(0, list.tiles());
        __syncthreads();
    }

    for (int begin = blockIdx.x * Tile<kDim>::kBlockKeys; begin < past; begin += gridDim.x * Tile<kDim>::kBlockKeys) {
        const int key = begin + warp * Tile<kDim>::kKeys;
        const bool working = key < past;  // the other warps only help to load
        typename Tile<kDim>::Keys keys;
        if (working) kvb::load_keys<T, kDim>(keys, k_TD, prompt.k_token, key, prompt.tokens);
        float of_head[kPairs][2], of_group[kPairs][2];  // keys 16 m + r, 16 m + 8 + r: this lane's, all lanes'
#pragma unroll
        for (int m = 0; m < kPairs; ++m) of_head[m][0] = of_head[m][1] = of_group[m][0] = of_group[m][1] = 0.f;
        int tile_of_head = 0, head = 0;
        for (int stage = 0; stage < stages; ++stage) {
            const int first = stage * stage_tiles, end = min(list.tiles(), first + stage_tiles);
            if (stages > 1) {
                __syncthreads();
                load_stage(first, end);
                __syncthreads();
            }
            if (!working) continue;
            for (int tile = 0; tile < end - first; ++tile) {
                float dots[kPairs][4];
                kvb::keys_by_queries<T, kDim>(dots, keys, queries + tile * Tile<kDim>::kChunks * 32);
                const float2 minus = *reinterpret_cast<const float2*>(lse2 + 8 * tile + 2 * c);
#pragma unroll
                for (int m = 0; m < kPairs; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        of_head[m][half] += kvb::exp2_fast(__fmaf_rn(dots[m][2 * half], prompt.scale, -minus.x)) +
                                            kvb::exp2_fast(__fmaf_rn(dots[m][2 * half + 1], prompt.scale, -minus.y));
                if (++tile_of_head < list.of_head) continue;
                tile_of_head = 0;
#pragma unroll
                for (int m = 0; m < kPairs; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float mean = kvb::quad_sum(of_head[m][half]) / float(prompt.queries);
                        float& all = of_group[m][half];
                        all = head == 0 ? mean : group_by == kMax ? kvb::max_or_nan(all, mean) : all + mean;
                        of_head[m][half] = 0.f;
                    }
                ++head;
            }
        }
        if (!working) continue;
#pragma unroll
        for (int m = 0; m < kPairs; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = key + 16 * m + 8 * half + r;
                if (c == m % 4 && at < past)  // the four lanes have the same value
                    score_UN[int64_t(blockIdx.y) * past + at] =
                        group_by == kMean ? of_group[m][half] / float(prompt.group) : of_group[m][half];
            }
    }
}

// Grid: (ceil(N / kPoolThreads), U). Beyond the ends of the row a maximum ignores elements, and an average counts
// zeros.
__global__ void __launch_bounds__(kPoolThreads)
pool_tokens(const float* score_UN, int past, int pool, int kernel_size, float* pooled_UN) {
    const int at = blockIdx.x * kPoolThreads + threadIdx.x;
    if (at >= past) return;
    const float* score_N = score_UN + int64_t(blockIdx.y) * past;
    const int begin = max(0, at - kernel_size / 2), end = min(past, at + kernel_size / 2 + 1);
    float all = score_N[begin];
    for (int i = begin + 1; i < end; ++i) all = pool == kMaxPool ? kvb::max_or_nan(all, score_N[i]) : all + score_N[i];
    pooled_UN[int64_t(blockIdx.y) * past + at] = pool == kMaxPool ? all : all / float(kernel_size);
}

// The workspace has the parts of the lse and the lse, if it is not given, then the scores before pooling. float32
// values of the parts; a block has at least 128 keys.
int64_t lse_scratch(int64_t heads, int64_t kv_heads, int64_t window, int64_t tokens) {
    return 2 * kvb::parts_of_head(kv_heads, kvb::divide_up(tokens, 128)) * heads * window;
}

}  // namespace

extern "C" int64_t kvb_window_score_workspace(int64_t heads, int64_t kv_heads, int64_t window, int64_t tokens,
                                              int has_lse, int pool) {
    const int64_t of_lse = has_lse ? 0 : lse_scratch(heads, kv_heads, window, tokens) + heads * window;
    return int64_t(sizeof(float)) * (of_lse + (pool == kNoPool ? 0 : kv_heads * (tokens - window)));
}

// calls.h has the arguments. Rows of q and k are aligned to 16 bytes.
extern "C" int kvb_window_score(const kvb::WindowScore* call, cudaStream_t stream) {
    const int64_t past = call->tokens - call->window, of_group = call->heads / call->kv_heads;
    if (call->kv_heads > kvb::kMostBlocks) return kvb::kTooLarge;
    if (call->group < 0 || call->group > 2 || call->pool < 0 || call->pool > 2) return kvb::kUnsupported;
    if (past == 0) return 0;
    const float* lse = static_cast<const float*>(call->lse.data);
    int64_t lse_head = call->lse.stride_0;
    float* scratch = static_cast<float*>(call->workspace);
    if (lse == nullptr) {
        const kvb::LseCall of_window{
            .q = call->q,
            .k = call->k,
            .heads = call->heads,
            .kv_heads = call->kv_heads,
            .queries = call->window,
            .tokens = call->tokens,
            .dim = call->dim,
            .scaling = call->scaling,
            .split = true,
            .dtype = call->dtype,
        };
        float* computed = scratch + lse_scratch(call->heads, call->kv_heads, call->window, call->tokens);
        if (const int error = kvb::launch_lse(of_window, computed, scratch, stream)) return error;
        lse = computed;
        lse_head = call->window;
        scratch = computed + call->heads * call->window;
    }
    const int error = kvb::for_dtype_and_dim(call->dtype, call->dim, [&](auto type, auto dim_tag) {
        using T = typename decltype(type)::type;
        constexpr int kDim = decltype(dim_tag)::value;
        const Prompt<T> prompt =
            kvb::prompt_of<T>(call->q, call->k, of_group, call->window, call->tokens, call->scaling);
        const int64_t tiles = of_group * kvb::divide_up(call->window, 8);
        const int64_t stages = kvb::divide_up(tiles, Tile<kDim>::kMaxTiles), stage_tiles = kvb::divide_up(tiles, stages);
        const int64_t bytes = stage_tiles * (Tile<kDim>::kChunks * 512 + 8 * int64_t(sizeof(float)));
        const int64_t parts = kvb::parts_of_head(call->kv_heads, kvb::divide_up(past, Tile<kDim>::kBlockKeys));
        if (const int not_allowed = kvb::allow_shared(window_attention<T, kDim>, bytes)) return not_allowed;
        const dim3 grid{unsigned(parts), unsigned(call->kv_heads)};
        KVB_LAUNCH((window_attention<T, kDim>), grid, kvb::kThreads, bytes, stream, prompt, lse, lse_head, call->group,
                   int(stage_tiles), int(stages), call->pool == kNoPool ? call->out : scratch);
        return int(cudaGetLastError());
    });
    if (error != 0 || call->pool == kNoPool) return error;
    const dim3 grid{unsigned(kvb::divide_up(past, kPoolThreads)), unsigned(call->kv_heads)};
    KVB_LAUNCH((pool_tokens), grid, kPoolThreads, 0, stream, scratch, int(past), call->pool, int(call->kernel_size),
               call->out);
    return int(cudaGetLastError());
}
