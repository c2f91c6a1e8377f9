// Vectors of floats as wide as the registers of the CPU, and the steps of attention that the CPU kernels share.
//
// A lane is split into pieces of PIECE tokens. Each piece is attended to on its own, and the results are merged in
// order. So the result of a lane depends neither on the number of threads nor on the other lanes of the call.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int BFLOAT16 = 0, FLOAT32 = 2;  // the dtypes of calls.h
constexpr int PIECE = 256;    // slots: keys of a piece are 64 KiB at D = 64
constexpr int MAX_COLUMNS = 64;  // queries of a lane: group x tokens
constexpr int MAX_DIM = 256;

// g++ shuffles a vector that is wider than a register element by element, which is ten times slower.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

#define KVB_INLINE inline __attribute__((always_inline))

KVB_INLINE Vec load(const float* from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
KVB_INLINE void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

struct Partial {  // result of one query over one piece, in base 2
    float top, total;
};

// The sums of LANES vectors, in order. Each step adds pairs and halves the number of vectors.
KVB_INLINE Vec sums(Vec* x) {
#if defined(__AVX512F__)
    for (int i = 0; i < 8; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return __builtin_shufflevector(x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#elif defined(__AVX2__)
    for (int i = 0; i < 4; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    for (int i = 0; i < 2; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
               __builtin_shufflevector(x[i], x[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(x[0], x[1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(x[0], x[1], 1, 9, 3, 11, 5, 13, 7, 15);
#else
    for (int i = 0; i < 2; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + 2], 0, 1, 4, 5) + __builtin_shufflevector(x[i], x[i + 2], 2, 3, 6, 7);
    return __builtin_shufflevector(x[0], x[1], 0, 4, 2, 6) + __builtin_shufflevector(x[0], x[1], 1, 5, 3, 7);
#endif
}

// 2^x for x <= 0, to a few units in the last place. Results below 2^-126 become 0.
KVB_INLINE Vec exp2_of(Vec x) {
    x = x < -126.0f ? Vec{} - 127.0f : x;
    const Ints whole = __builtin_convertvector(x - 0.5f, Ints);  // truncates: the nearest integer, as x <= 0
    const Vec r = x - __builtin_convertvector(whole, Vec);
    Vec y = r * 1.5252734e-5f + 1.5403530e-4f;  // (ln 2)^n / n!, from n = 7 on
    y = y * r + 1.3333558e-3f;
    y = y * r + 9.6181291e-3f;
    y = y * r + 5.5504109e-2f;
    y = y * r + 2.4022651e-1f;
    y = y * r + 6.9314718e-1f;
    y = y * r + 1.0f;
    const Ints bits = (whole + 127) << 23;  // 0 for -127: the float is 0
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

KVB_INLINE float exp2_of(float x) { return exp2_of(Vec{} + x)[0]; }

KVB_INLINE float largest(Vec x) {
    float top = x[0];
    for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
    return top;
}

KVB_INLINE float sum(Vec x) {
    float all = 0;
    for (int i = 0; i < LANES; i++) all += x[i];
    return all;
}

// Turn the first `live` scores into weights, in place. The others, up to a multiple of LANES, become 0.
KVB_INLINE Partial soften(float* score, int live) {
    const float least = -std::numeric_limits<float>::infinity();
    const int padded = (live + LANES - 1) / LANES * LANES;
    for (int i = live; i < padded; i++) score[i] = least;
    Vec tops = Vec{} + least;
    for (int i = 0; i < padded; i += LANES) {
        const Vec x = load(score + i);
        tops = x > tops ? x : tops;
    }
    const float top = largest(tops);
    Vec total{};
    for (int i = 0; i < padded; i += LANES) {
        const Vec weight = exp2_of(load(score + i) - top);
        total += weight;
        store(score + i, weight);
    }
    return {top, sum(total)};
}

int64_t pieces_of(int64_t slots) { return (slots + PIECE - 1) / PIECE; }

// Merge one query's pieces, in order, into its output.
void combine(const Partial* partial, const float* acc, int64_t pieces, int64_t partial_stride, int dim, float* out) {
    float top = -std::numeric_limits<float>::infinity(), total = 0;
    for (int64_t p = 0; p < pieces; p++) top = std::fmax(top, partial[p * partial_stride].top);
    std::memset(out, 0, sizeof(float) * dim);
    for (int64_t p = 0; p < pieces; p++) {
        const Partial& piece = partial[p * partial_stride];
        if (piece.total == 0) continue;  // no slot of it is visible
        const float weight = exp2_of(piece.top - top);
        total += weight * piece.total;
        for (int d = 0; d < dim; d++) out[d] += weight * acc[p * partial_stride * dim + d];
    }
    for (int d = 0; d < dim; d++) out[d] /= total;
}

}  // namespace
