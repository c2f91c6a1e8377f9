// Attention weights of a few queries over a tile of keys, from the log-sum-exp of the queries' logits.

#pragma once

#include "score/cpu_tile.hpp"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;  // a tile's keys are scaled by it: exponentials are those of base 2

KVB_INLINE Ints order() {
    Ints x;
    for (int j = 0; j < LANES; j++) x[j] = j;
    return x;
}

template <bool ALL, typename Use>
KVB_INLINE void weigh(const Rows& q, const float* lse, const float* tile, int64_t dim, int64_t ahead, Use use) {
    Vec logit[AT_ONCE][VECS];
    multiply(logit, q, tile, dim);
    for (int i = 0; i < q.count; i++)
        for (int v = 0; v < VECS; v++) {
            Vec weight = exp2_of(logit[i][v] - lse[i] * LOG2_E);
            if (!ALL) weight = order() + v * LANES <= static_cast<int32_t>(ahead + i) ? weight : Vec{};
            use(i, v, weight);
        }
}

// Call use(i, v, weights) for vector v of the weights of query i. It sees key j of the tile if j <= ahead + i.
template <typename Use>
KVB_INLINE void weigh(const Rows& q, const float* lse, const float* tile, int64_t dim, int64_t ahead, Use use) {
    if (ahead < WIDTH - 1)
        weigh<false>(q, lse, tile, dim, ahead, use);
    else
        weigh<true>(q, lse, tile, dim, ahead, use);
}

}  // namespace
