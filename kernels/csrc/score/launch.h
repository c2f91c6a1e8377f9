// Host side of the scoring kernels: the template instance for a dtype and head dimension.
#pragma once
#include "calls.h"
#include "score/tile.h"

namespace kvb {

template <typename T>
struct TypeTag {
    using type = T;
};
template <int kValue>
struct DimTag {
    static constexpr int value = kValue;
};

template <typename T, typename F>
int for_dim(int64_t dim, F& f) {
    switch (dim) {
        case 64: return f(TypeTag<T>{}, DimTag<64>{});
        case 80: return f(TypeTag<T>{}, DimTag<80>{});
        case 96: return f(TypeTag<T>{}, DimTag<96>{});
        case 128: return f(TypeTag<T>{}, DimTag<128>{});
        case 256: return f(TypeTag<T>{}, DimTag<256>{});
        default: return kUnsupported;
    }
}

// Call f(TypeTag<T>, DimTag<D>) -> int; kUnsupported if there is no such kernel. dtype 0 is bf16, 1 fp16.
template <typename F>
int for_dtype_and_dim(int dtype, int64_t dim, F f) {
    if (dtype == 0) return for_dim<bf16>(dim, f);
    return dtype == 1 ? for_dim<fp16>(dim, f) : kUnsupported;
}

// What the kernels get: keys, and the queries of the last `queries` tokens.
template <typename T>
Prompt<T> prompt_of(const Tensor3& q, const Tensor3& k, int64_t group, int64_t queries, int64_t tokens, float scaling) {
    return Prompt<T>{
        .q = static_cast<const T*>(q.data),
        .k = static_cast<const T*>(k.data),
        .q_head = q.stride_0,
        .q_token = q.stride_1,
        .k_head = k.stride_0,
        .k_token = k.stride_1,
        .group = int(group),
        .queries = int(queries),
        .tokens = int(tokens),
        .scale = scaling * kLog2e,
    };
}

// Allow a launch more than 48 KB of shared memory. Returns a cudaError.
template <typename Kernel>
int allow_shared([[maybe_unused]] Kernel kernel, int64_t bytes) {
    return bytes <= 48 * 1024 ? 0 : int(KVB_ALLOW_SHARED((kernel), bytes));
}

// Blocks that share the keys of one KV head: two for each multiprocessor of a large GPU. This is a constant, so that
// sums over parts of the keys are split at the same places on every GPU.
inline int64_t parts_of_head(int64_t kv_heads, int64_t tiles) {
    const int64_t parts = divide_up(264, kv_heads);
    return parts < tiles ? parts : tiles;
}

// Log-sum-exp (natural) of the scaled logits of the last `queries` of `tokens` tokens, over the keys up to each query:
// lse[head * queries + query], fp32. With `split`, `part` is scratch of 8 * parts_of_head() * heads * queries bytes.
struct LseCall {
    Tensor3 q, k;  // [H, queries, D], [U, tokens, D]
    int64_t heads, kv_heads, queries, tokens, dim;
    float scaling;
    bool split;  // several blocks share the keys of one head, for few queries
    int dtype;
};
int launch_lse(const LseCall& call, float* lse, void* part, cudaStream_t stream);

}  // namespace kvb
