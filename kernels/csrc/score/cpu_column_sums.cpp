// The attention that every key of a prompt receives from all queries, on a CPU, in float32.
//
//   int kvb_cpu_column_sums(const ColumnSums* call, stream)
//
// Returns 0, or -1 if the dtype or `dim` is not supported.
//
// A tile of keys is transposed once, and all queries that see it pass by. Nothing of the size T x T is written. A key's sum
// is taken in the order of the queries: it does not depend on the number of threads.

#include "calls.h"
#include "score/cpu_weights.hpp"

namespace {

constexpr int BLOCK = 64 * AT_ONCE;  // queries whose weights are added before they meet a larger sum

}  // namespace

extern "C" int kvb_cpu_column_sums(const kvb::ColumnSums* call, void*) {
    const int64_t tokens = call->tokens, dim = call->dim, group = call->heads / call->kv_heads;
    if (call->dtype != FLOAT32 || dim > MAX_DIM) return -1;
    const int64_t tiles = (tokens + WIDTH - 1) / WIDTH;
    // The first tiles are seen by the most queries. They come first, so that the threads end together.
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t h = 0; h < call->heads; h++) {
            const int64_t first = t * WIDTH, keys = tokens - first < WIDTH ? tokens - first : WIDTH;
            const float* k = static_cast<const float*>(call->k.data) + h / group * call->k.stride_0;
            const float* q = static_cast<const float*>(call->q.data) + h * call->q.stride_0;
            const float* lse = static_cast<const float*>(call->lse.data) + h * call->lse.stride_0;
            alignas(64) float tile[MAX_DIM * WIDTH], part[WIDTH], sum[WIDTH] = {};
            transpose(tile, k + first * call->k.stride_1, call->k.stride_1, keys, dim, call->scaling * LOG2_E);
            for (int64_t block = first; block < tokens; block += BLOCK) {
                const int64_t end = tokens - block < BLOCK ? tokens : block + BLOCK;
                std::memset(part, 0, sizeof part);
                for (int64_t at = block; at < end; at += AT_ONCE) {
                    const Rows rows(q, call->q.stride_1, at, end);
                    weigh(rows, lse + at, tile, dim, at - first, [&](int, int v, Vec weight) {
                        store(part + v * LANES, load(part + v * LANES) + weight);
                    });
                }
                for (int j = 0; j < WIDTH; j++) sum[j] += part[j];
            }
            std::memcpy(call->out + h * tokens + first, sum, sizeof(float) * keys);
        }
    return 0;
}
