// Tensors of a call, and the memory in which its pieces leave their results.

#pragma once

#include "calls.h"
#include "cpu_vectors.hpp"

namespace {

// The row [D] of a tensor of four dimensions.
template <typename T>
T* row_of(const kvb::Tensor4& x, int64_t i, int64_t j, int64_t k) {
    return static_cast<T*>(x.data) + i * x.stride_0 + j * x.stride_1 + k * x.stride_2;
}

// The memory of a call: the first piece of each lane, the lane of each piece, and each piece's result for each query.
struct Workspace {
    int64_t pieces = 0, columns, dim;
    int64_t *begin, *lane;  // [lanes + 1], [pieces]
    Partial* partial;       // [pieces, columns]
    float* acc;             // [pieces, columns, dim]

    static int64_t bytes(int64_t lanes, int64_t pieces, int64_t columns, int64_t dim) {
        const int64_t per_piece = sizeof(int64_t) + columns * (sizeof(Partial) + sizeof(float) * dim);
        return pieces * per_piece + sizeof(int64_t) * (lanes + 1);
    }

    // tokens_of(n) returns the tokens of lane n; it is called once for each lane.
    template <typename TokensOf>
    Workspace(void* memory, int64_t lanes, int64_t columns, int64_t dim, TokensOf tokens_of)
        : columns(columns), dim(dim), begin(static_cast<int64_t*>(memory)), lane(begin + lanes + 1) {
        for (int64_t n = 0; n < lanes; n++) {
            begin[n] = pieces;
            for (int64_t left = pieces_of(tokens_of(n)); left > 0; left--) lane[pieces++] = n;
        }
        begin[lanes] = pieces;
        partial = reinterpret_cast<Partial*>(lane + pieces);
        acc = reinterpret_cast<float*>(partial + pieces * columns);
    }

    // Merge the pieces of lane n for query c, in order, into `out`.
    void combine_into(float* out, int64_t n, int64_t c) const {
        combine(partial + begin[n] * columns + c, acc + (begin[n] * columns + c) * dim, begin[n + 1] - begin[n],
                columns, static_cast<int>(dim), out);
    }
};

}  // namespace
