// The attention that every key of a prompt receives from all queries, on a CPU, in float32.
//
//   int kvb_cpu_column_sums(const ColumnSums* call, stream)
//
// Returns 0, or -1 if the dtype or `dim` is not supported.
//
// A tile of keys is transposed once, and all queries that see it pass by. Products, exponentials and sums stay in
// registers, so nothing of the size T x T is written. A key's sum is taken in the order of the queries: it does not depend
// on the number of threads.

#include "calls.h"
#include "cpu_vectors.hpp"

namespace {

constexpr int FLOAT32 = 2;  // the dtype of calls.h
constexpr int QUERIES = 4;  // at once: products, keys and exponentials fit into the registers; 5 to 7 are slower
#if defined(__AVX512F__)
constexpr int VECS = 4;
#else
constexpr int VECS = 2;
#endif
constexpr int KEYS = VECS * LANES;
constexpr int BLOCK = 64 * QUERIES;  // queries whose weights are added before they meet a larger sum

struct Tile {
    alignas(64) float k[MAX_DIM * KEYS];  // transposed, scaled for exponentials of base 2; 0 past the last key
    alignas(64) float part[KEYS];  // over the queries of a block
    alignas(64) float sum[KEYS];   // over the blocks before
};

constexpr float LOG2_E = 1.4426950408889634f;

void transpose(Tile& tile, const float* k, int64_t stride, int64_t keys, int64_t dim, float scaling) {
    for (int64_t j = 0; j < KEYS; j++)
        for (int64_t d = 0; d < dim; d++) tile.k[d * KEYS + j] = j < keys ? k[j * stride + d] * scaling : 0;
    std::memset(tile.sum, 0, sizeof tile.sum);
}

KVB_INLINE Ints order() {
    Ints x;
    for (int j = 0; j < LANES; j++) x[j] = j;
    return x;
}

// Add the weights that `count` of QUERIES queries give the keys. Key j is seen by query i if j <= ahead + i.
template <bool DIAGONAL>
KVB_INLINE void add_weights(Tile& tile, const float* const* q, const float* lse, int64_t dim, int count, int64_t ahead) {
    Vec product[QUERIES][VECS] = {};
    for (int64_t d = 0; d < dim; d++) {
        Vec keys[VECS];
        for (int v = 0; v < VECS; v++) keys[v] = load(tile.k + d * KEYS + v * LANES);
        for (int i = 0; i < QUERIES; i++)
            for (int v = 0; v < VECS; v++) product[i][v] += q[i][d] * keys[v];
    }
    for (int i = 0; i < count; i++)
        for (int v = 0; v < VECS; v++) {
            Vec weight = exp2_of(product[i][v] - lse[i] * LOG2_E);
            if (DIAGONAL) weight = order() + v * LANES <= static_cast<int32_t>(ahead + i) ? weight : Vec{};
            store(tile.part + v * LANES, load(tile.part + v * LANES) + weight);
        }
}

}  // namespace

extern "C" int kvb_cpu_column_sums(const kvb::ColumnSums* call, void*) {
    const int64_t tokens = call->tokens, dim = call->dim, group = call->heads / call->kv_heads;
    if (call->dtype != FLOAT32 || dim > MAX_DIM) return -1;
    const int64_t tiles = (tokens + KEYS - 1) / KEYS;
    // The first tiles are seen by the most queries. They come first, so that the threads end together.
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t h = 0; h < call->heads; h++) {
            const int64_t first = t * KEYS, keys = tokens - first < KEYS ? tokens - first : KEYS;
            const float* k = static_cast<const float*>(call->k.data) + h / group * call->k.stride_0;
            const float* q = static_cast<const float*>(call->q.data) + h * call->q.stride_0;
            const float* lse = static_cast<const float*>(call->lse.data) + h * call->lse.stride_0;
            Tile tile;
            transpose(tile, k + first * call->k.stride_1, call->k.stride_1, keys, dim, call->scaling * LOG2_E);
            for (int64_t block = first; block < tokens; block += BLOCK) {
                const int64_t end = tokens - block < BLOCK ? tokens : block + BLOCK;
                std::memset(tile.part, 0, sizeof tile.part);
                for (int64_t at = block; at < end; at += QUERIES) {
                    const float* rows[QUERIES];
                    const int count = static_cast<int>(end - at < QUERIES ? end - at : QUERIES);
                    for (int i = 0; i < QUERIES; i++) rows[i] = q + (i < count ? at + i : at) * call->q.stride_1;
                    if (at < first + KEYS)
                        add_weights<true>(tile, rows, lse + at, dim, count, at - first);
                    else
                        add_weights<false>(tile, rows, lse + at, dim, count, 0);
                }
                for (int j = 0; j < KEYS; j++) tile.sum[j] += tile.part[j];
            }
            std::memcpy(call->out + h * tokens + first, tile.sum, sizeof(float) * keys);
        }
    return 0;
}
