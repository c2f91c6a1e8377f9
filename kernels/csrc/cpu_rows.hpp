// Rows of a cache in float32 or bfloat16, as vectors of floats.
//
// A vector of 32-bit words of a bfloat16 row holds two vectors of elements. A shift gives those at even places as floats,
// and a mask those at odd places: fewer instructions than widening twice. So a row of an even number of vectors is read
// in this order: the even places of the first 2 * LANES elements, their odd places, and so on. `place_of` tells where an
// element of a query goes, and `store_pair` brings two vectors of a result back. Other rows are widened in their order.

#pragma once

#include <type_traits>

#include "cpu_vectors.hpp"

namespace {

struct Bfloat16 {
    uint16_t bits;
};

KVB_INLINE float to_float(float x) { return x; }
KVB_INLINE float to_float(Bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

KVB_INLINE void convert(float x, float* to) { *to = x; }
KVB_INLINE void convert(float x, Bfloat16* to) {  // to the nearest, of two equally near ones to the even one
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) bits |= 1u << 22;  // stays NaN when cut
    else bits += 0x7fff + ((bits >> 16) & 1);
    to->bits = static_cast<uint16_t>(bits >> 16);
}

KVB_INLINE Vec floats_of(Ints bits) {
    Vec x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Vector j of a row of VECS vectors.
template <int VECS>
KVB_INLINE Vec vector_of(const float* row, int j) {
    return load(row + j * LANES);
}
template <int VECS>
KVB_INLINE Vec vector_of(const Bfloat16* row, int j) {
    if constexpr (VECS % 2 == 0) {
        Ints words;
        std::memcpy(&words, row + (j & ~1) * LANES, sizeof words);
        return floats_of(j & 1 ? words & static_cast<int32_t>(0xffff0000) : words << 16);
    } else {
        typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
        Halves halves;
        std::memcpy(&halves, row + j * LANES, sizeof halves);
        return floats_of(__builtin_convertvector(halves, Ints) << 16);
    }
}

// Begin to load a row of D elements.
template <int D, typename T>
KVB_INLINE void request(const T* row) {
    for (int i = 0; i < D; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(row + i, 0, 3);
}

// Logits of BLOCK queries, which are in the order of `vector_of`, over rows [0, rows) of keys, into score [BLOCK, PIECE]; up
// to a multiple of LANES is written. Meanwhile the same rows of `ahead` are requested, if it is not null.
template <int D, int BLOCK, typename T, typename A>
KVB_INLINE void logits_of(const float* const* q, const T* k, A ahead, int rows, float (*score)[PIECE]) {
    // Part of a query is loaded once for TALL rows, as far as the registers of their sums reach.
    constexpr int VECS = D / LANES, TALL = LANES == 16 ? 4 : 1;
    for (int i = 0; i < rows; i += LANES) {
        Vec product[BLOCK][LANES];
        for (int r = 0; r < LANES; r += TALL) {
            const T* row[TALL];
            for (int s = 0; s < TALL; s++) {
                const int64_t at = i + r + s < rows ? i + r + s : rows - 1;
                if constexpr (!std::is_null_pointer_v<A>) request<D>(ahead + at * D);
                row[s] = k + at * D;
            }
            Vec sum[BLOCK][TALL] = {};
            for (int j = 0; j < VECS; j++) {
                Vec x[TALL];
                for (int s = 0; s < TALL; s++) x[s] = vector_of<VECS>(row[s], j);
                for (int c = 0; c < BLOCK; c++) {
                    const Vec y = load(q[c] + j * LANES);
                    for (int s = 0; s < TALL; s++) sum[c][s] += x[s] * y;
                }
            }
            for (int c = 0; c < BLOCK; c++)
                for (int s = 0; s < TALL; s++) product[c][r + s] = sum[c][s];
        }
        for (int c = 0; c < BLOCK; c++) store(score[c] + i, sums(product[c]));
    }
}

// The place that `vector_of` gives to element d of a row.
template <typename T>
int place_of(int d, int vecs) {
    if (sizeof(T) == sizeof(float) || vecs % 2) return d;
    return d / (2 * LANES) * (2 * LANES) + d % 2 * LANES + d % (2 * LANES) / 2;
}

// Write vectors j and j + 1, which are in the order of `vector_of`, in the order of the elements.
template <typename T>
KVB_INLINE void store_pair(float* row, int j, Vec a, Vec b) {
#if defined(__AVX512F__)
    const Vec low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const Vec high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
    const Vec low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    const Vec high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    const Vec low = __builtin_shufflevector(a, b, 0, 4, 1, 5), high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
    store(row + j * LANES, sizeof(T) == sizeof(float) ? a : low);
    store(row + (j + 1) * LANES, sizeof(T) == sizeof(float) ? b : high);
}

}  // namespace
