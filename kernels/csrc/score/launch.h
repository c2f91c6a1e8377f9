// Host side of the scoring kernels: the template instance for a dtype and head dimension.
#pragma once
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
    const void* q;
    const void* k;
    int64_t q_head, q_token, k_head, k_token, heads, kv_heads, queries, tokens, dim;
    float scaling;
    bool split;  // several blocks share the keys of one head, for few queries
};
int launch_lse(const LseCall& call, float* lse, void* part, int dtype, cudaStream_t stream);

}  // namespace kvb
