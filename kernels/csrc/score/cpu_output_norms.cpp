// The L1 norms of a prompt's values times the output weights of each query head, on a CPU, in float32.
//
//   int kvb_cpu_output_norms(const OutputNorms* call, stream)
//   int64 kvb_cpu_output_norms_workspace(heads, outputs, dim)     bytes that `workspace` needs
//
// The first returns 0, or -1 if the dtype or `dim` is not supported.
//
// The weights are laid out as tiles first. Then tokens pass by them, and no product is written. A norm is taken in the order
// of the outputs: it does not depend on the number of threads.

#include "calls.h"
#include "score/cpu_tile.hpp"

namespace {

constexpr int BLOCK = 16 * AT_ONCE;  // tokens of a task: their norms stay in the cache while the tiles pass by

KVB_INLINE Vec size_of(Vec x) { return x < 0 ? -x : x; }

}  // namespace

extern "C" int kvb_cpu_output_norms(const kvb::OutputNorms* call, void*) {
    const int64_t tokens = call->tokens, dim = call->dim, group = call->heads / call->kv_heads;
    if (call->dtype != FLOAT32 || dim > MAX_DIM) return -1;
    const int64_t tiles = (call->outputs + WIDTH - 1) / WIDTH, blocks = (tokens + BLOCK - 1) / BLOCK;
    auto* packed = static_cast<float*>(call->workspace);  // [H, tiles, D, WIDTH]
#pragma omp parallel for collapse(2)
    for (int64_t h = 0; h < call->heads; h++)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t first = t * WIDTH, left = call->outputs - first;
            const float* w = static_cast<const float*>(call->w.data) + h * call->w.stride_0 + first * call->w.stride_1;
            transpose(packed + (h * tiles + t) * dim * WIDTH, w, call->w.stride_1, left < WIDTH ? left : WIDTH, dim, 1);
        }
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t h = 0; h < call->heads; h++)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t begin = b * BLOCK, end = tokens - begin < BLOCK ? tokens : begin + BLOCK;
            const float* v = static_cast<const float*>(call->v.data) + h / group * call->v.stride_0;
            alignas(64) float norm[BLOCK * LANES] = {};
            for (int64_t t = 0; t < tiles; t++)
                for (int64_t at = begin; at < end; at += AT_ONCE) {
                    const Rows rows(v, call->v.stride_1, at, end);
                    Vec out[AT_ONCE][VECS];
                    multiply(out, rows, packed + (h * tiles + t) * dim * WIDTH, dim);
                    for (int i = 0; i < rows.count; i++) {
                        float* to = norm + (at - begin + i) * LANES;
                        Vec size = size_of(out[i][0]);
                        for (int j = 1; j < VECS; j++) size += size_of(out[i][j]);
                        store(to, load(to) + size);
                    }
                }
            for (int64_t at = begin; at < end; at++) {
                float all = 0;
                for (int j = 0; j < LANES; j++) all += norm[(at - begin) * LANES + j];
                call->out[h * tokens + at] = all;
            }
        }
    return 0;
}

extern "C" int64_t kvb_cpu_output_norms_workspace(int64_t heads, int64_t outputs, int64_t dim) {
    return heads * ((outputs + WIDTH - 1) / WIDTH) * dim * WIDTH * static_cast<int64_t>(sizeof(float));
}
