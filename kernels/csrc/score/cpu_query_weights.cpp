// The attention of the last queries of a prompt to all of its keys, on a CPU, in float32.
//
//   int kvb_cpu_query_weights(const QueryWeights* call, stream)
//
// Returns 0, or -1 if the dtype or `dim` is not supported.
//
// With the log-sum-exp of the logits, a weight is written once, as soon as its product is known.

#include "calls.h"
#include "score/cpu_weights.hpp"

extern "C" int kvb_cpu_query_weights(const kvb::QueryWeights* call, void*) {
    const int64_t tokens = call->tokens, queries = call->queries, dim = call->dim, group = call->heads / call->kv_heads;
    if (call->dtype != FLOAT32 || dim > MAX_DIM) return -1;
    const int64_t tiles = (tokens + WIDTH - 1) / WIDTH;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t u = 0; u < call->kv_heads; u++)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t first = t * WIDTH, keys = tokens - first < WIDTH ? tokens - first : WIDTH;
            const float* k = static_cast<const float*>(call->k.data) + u * call->k.stride_0;
            alignas(64) float tile[MAX_DIM * WIDTH], row[WIDTH];
            transpose(tile, k + first * call->k.stride_1, call->k.stride_1, keys, dim, call->scaling * LOG2_E);
            for (int64_t h = u * group; h < (u + 1) * group; h++) {
                const float* q = static_cast<const float*>(call->q.data) + h * call->q.stride_0;
                const float* lse = static_cast<const float*>(call->lse.data) + h * call->lse.stride_0;
                float* out = call->out + h * queries * tokens + first;
                for (int64_t at = 0; at < queries; at += AT_ONCE) {
                    const Rows rows(q, call->q.stride_1, at, queries);
                    const int64_t ahead = tokens - queries + at - first;  // the first of them sees keys up to this one
                    weigh(rows, lse + at, tile, dim, ahead, [&](int i, int v, Vec weight) {
                        store(row + v * LANES, weight);
                        if (v == VECS - 1) std::memcpy(out + (at + i) * tokens, row, sizeof(float) * keys);
                    });
                }
            }
        }
    return 0;
}
