// Products of rows with a tile of other rows, in float32, which never leave the registers.

#pragma once

#include "cpu_vectors.hpp"

namespace {

constexpr int AT_ONCE = 4;  // rows: products, a tile's vectors and exponentials fit into the registers; 5 to 7 are slower
#if defined(__AVX512F__)
constexpr int VECS = 4;
#else
constexpr int VECS = 2;
#endif
constexpr int WIDTH = VECS * LANES;

// Write `count` rows [D] as columns of a tile [D, WIDTH], times `factor`. Columns past them are 0.
void transpose(float* tile, const float* rows, int64_t stride, int64_t count, int64_t dim, float factor) {
    for (int64_t j = 0; j < WIDTH; j++)
        for (int64_t d = 0; d < dim; d++) tile[d * WIDTH + j] = j < count ? rows[j * stride + d] * factor : 0;
}

// Pointers to rows [at, at + AT_ONCE), those past `end` being the first one again.
struct Rows {
    const float* row[AT_ONCE];
    int count;

    KVB_INLINE Rows(const float* x, int64_t stride, int64_t at, int64_t end)
        : count(static_cast<int>(end - at < AT_ONCE ? end - at : AT_ONCE)) {
        for (int i = 0; i < AT_ONCE; i++) row[i] = x + (i < count ? at + i : at) * stride;
    }
};

// The products of each row with each column of a tile.
KVB_INLINE void multiply(Vec (&product)[AT_ONCE][VECS], const Rows& rows, const float* tile, int64_t dim) {
    for (int i = 0; i < AT_ONCE; i++)
        for (int v = 0; v < VECS; v++) product[i][v] = Vec{};
    for (int64_t d = 0; d < dim; d++) {
        Vec column[VECS];
        for (int v = 0; v < VECS; v++) column[v] = load(tile + d * WIDTH + v * LANES);
        for (int i = 0; i < AT_ONCE; i++)
            for (int v = 0; v < VECS; v++) product[i][v] += rows.row[i][d] * column[v];
    }
}

}  // namespace
