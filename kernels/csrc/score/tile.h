// Shared by the scoring kernels: keys in registers, queries in shared memory, and the products between them.
//
// A warp has 8 * kKeyGroups keys, loaded once, straight from global memory into the operands of mma.m16n8k16. For each
// 32 columns of D, lane (r, c) = (lane / 4, lane % 4) has the eight columns of key 8 * group + r that start at 8 * c,
// in four registers. mma expects columns 2c, 2c+1 and 2c+8, 2c+9 there. But a product over D may take its columns in
// any order, if keys and queries use the same one, and queries are in shared memory in the order of the same load. So
// registers x, y serve one mma and z, w the next, and both keys and queries can be operand A (two groups of 8) or B.
//
// Suffixes: H query heads, U KV heads, G = H / U, T tokens, D head dimension, W queries, N tokens before the window.
#pragma once
#include "primitives_more.h"

namespace kvb {

constexpr int kQueryBytes = 64 * 1024;  // of shared memory for queries: two blocks fit on a multiprocessor of 163 KB

template <int kDim>
struct Tile {
    static constexpr int kChunks = (kDim + 31) / 32;  // of 32 columns; columns beyond D are zero
    static constexpr int kKeyGroups = kDim <= 128 ? 8 : 4;
    static constexpr int kKeys = 8 * kKeyGroups, kBlockKeys = kWarps * kKeys;
    static constexpr int kMaxTiles = kQueryBytes / (kChunks * 512);  // tiles of 8 queries that a block holds
    using Keys = uint4[kKeyGroups][kChunks];
};

// Keys and queries of a prompt. The queries belong to the last `queries` tokens. Strides are in elements.
template <typename T>
struct Prompt {
    const T* q;
    const T* k;
    int64_t q_head, q_token, k_head, k_token;
    int group, queries, tokens;
    float scale;  // scaling of the logits, times log2(e): exponentials are powers of two

    KVB_DEVICE int first() const { return tokens - queries; }  // position of query 0
};

// Load keys from `first` on; beyond the last token, the last key again.
template <typename T, int kDim>
KVB_DEVICE void load_keys(typename Tile<kDim>::Keys& keys, const T* k_TD, int64_t k_token, int first, int tokens) {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int group = 0; group < Tile<kDim>::kKeyGroups; ++group) {
        const T* row = k_TD + min(first + 8 * group + r, tokens - 1) * k_token + 8 * c;
#pragma unroll
        for (int chunk = 0; chunk < Tile<kDim>::kChunks; ++chunk) {
            const bool inside = kDim % 32 == 0 || 32 * chunk + 8 * c < kDim;
            keys[group][chunk] = inside ? load_stream(row + 32 * chunk) : make_uint4(0, 0, 0, 0);
        }
    }
}

// Eight queries in a row are a tile; each of `heads` heads has `of_head` tiles here. Tile `number` of the list has the
// queries from 8 * (number % of_head) on of head number / of_head.
struct QueryList {
    int head, heads;      // first query head of the KV head's, and how many
    int query, end;       // first query of each head, and the end; queries beyond it are zero
    int of_head;          // tiles per head

    KVB_DEVICE int tiles() const { return heads * of_head; }
    KVB_DEVICE int head_of(int row) const { return head + row / 8 / of_head; }
    KVB_DEVICE int query_of(int row) const { return query + row / 8 % of_head * 8 + row % 8; }
};

// Load tiles [begin, end) of the list into shared memory, with all threads; the caller puts barriers around the call.
// `q_GTD` is the first query of the KV head's first query head. Rows of `head_of` beyond the list's heads are zero too.
template <typename T, int kDim>
KVB_DEVICE void load_queries(uint4* shared, const Prompt<T>& prompt, const T* q_GTD, const QueryList& list, int begin,
                             int end) {
    constexpr int kOfTile = Tile<kDim>::kChunks * 32;
    for (int i = threadIdx.x; i < (end - begin) * kOfTile; i += kThreads) {
        const int lane = i % 32, chunk = i % kOfTile / 32, row = (begin + i / kOfTile) * 8 + lane / 4;
        const int column = 32 * chunk + 8 * (lane % 4), query = list.query_of(row), head = list.head_of(row);
        const bool inside = query < list.end && head < list.head + list.heads && column < kDim;
        shared[i] = inside ? load16(q_GTD + head * prompt.q_head + query * prompt.q_token + column)
                           : make_uint4(0, 0, 0, 0);
    }
}

// Products of all keys of the warp (rows) with one tile of queries (columns): dots[m][0..1] are those of key
// 16 * m + r with queries 2c and 2c + 1, dots[m][2..3] those of key 16 * m + 8 + r. Each is the sum of two chains of
// mma, so that a warp has enough independent ones in flight.
template <typename T, int kDim>
KVB_DEVICE void keys_by_queries(float (&dots)[Tile<kDim>::kKeyGroups / 2][4], const typename Tile<kDim>::Keys& keys,
                                const uint4* tile) {
    constexpr int kPairs = Tile<kDim>::kKeyGroups / 2;
    const int lane = threadIdx.x % 32;
    float others[kPairs][4];
#pragma unroll
    for (int m = 0; m < kPairs; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) dots[m][i] = others[m][i] = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < Tile<kDim>::kChunks; ++chunk) {
        const uint4 query = tile[32 * chunk + lane];
#pragma unroll
        for (int m = 0; m < kPairs; ++m) {
            const uint4 &low = keys[2 * m][chunk], &high = keys[2 * m + 1][chunk];
            mma16816<T>(dots[m], low.x, high.x, low.y, high.y, query.x, query.y);
        }
#pragma unroll
        for (int m = 0; m < kPairs; ++m) {
            const uint4 &low = keys[2 * m][chunk], &high = keys[2 * m + 1][chunk];
            mma16816<T>(others[m], low.z, high.z, low.w, high.w, query.z, query.w);
        }
    }
#pragma unroll
    for (int m = 0; m < kPairs; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) dots[m][i] += others[m][i];
}

// Products of two tiles of queries (rows) with all keys of the warp (columns): dots[group][0..1] are those of query r
// with keys 8 * group + 2c and the next, dots[group][2..3] those of query 8 + r.
template <typename T, int kDim>
KVB_DEVICE void queries_by_keys(float (&dots)[Tile<kDim>::kKeyGroups][4], const uint4* tiles,
                                const typename Tile<kDim>::Keys& keys) {
    constexpr int kGroups = Tile<kDim>::kKeyGroups, kChunks = Tile<kDim>::kChunks;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
        dots[group][0] = dots[group][1] = dots[group][2] = dots[group][3] = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
        const uint4 low = tiles[32 * chunk + lane], high = tiles[32 * (kChunks + chunk) + lane];
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            const uint4& key = keys[group][chunk];
            mma16816<T>(dots[group], low.x, high.x, low.y, high.y, key.x, key.y);
        }
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            const uint4& key = keys[group][chunk];
            mma16816<T>(dots[group], low.z, high.z, low.w, high.w, key.z, key.w);
        }
    }
}

// Sum over the four lanes that share rows, in the same order and with the same result in all of them.
KVB_DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
}
KVB_DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
    return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

}  // namespace kvb
