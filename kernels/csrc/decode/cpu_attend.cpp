// Append and attend on a CPU, in float32: the decode step of a ragged cache in one pass over its live slots.
//
//   int kvb_cpu_attend(q, q_strides, k_new, v_new, new_strides, k_RD, v_RD, start_S1, length_S, segment_N, out, scratch,
//                      batch, kv_heads, group, tokens, dim, scaling)
//   int64 kvb_cpu_scratch(length_S, segment_N, lanes, group, tokens, dim)        bytes that `scratch` needs
//
// q [B, H, T, D], k_new and v_new [B, U, T, D] (of equal strides) have strides {b, h, t} in elements; the last is 1.
// Lane n = b * U + u is segment s = segment_N[n]. Its new tokens go to slots start_S1[s] + length_S[s] and following,
// and length_S[s] grows by T. out is [B, T, H, D], contiguous; scratch is aligned to 64 bytes.
// Returns 0; -1 if `dim` or `group * tokens` is not supported; 1 + s if segment s has no room. If it does not return 0,
// nothing has changed.
//
// A lane is split into pieces of PIECE slots. Each piece is attended to on its own, and the results are merged in
// order. So the result of a lane depends neither on the number of threads nor on the other lanes of the call.
//
// This file is compiled with -fopenmp but linked without it, so that it uses the OpenMP runtime that torch has loaded.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int PIECE = 256;    // slots: keys of a piece are 64 KiB at D = 64
constexpr int MAX_COLUMNS = 64;  // queries of a lane: group x tokens
constexpr int MAX_DIM = 256;

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
constexpr int LANES = 16;

#define KVB_INLINE inline __attribute__((always_inline))

KVB_INLINE Vec load(const float* from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
KVB_INLINE void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

struct Columns {
    const float* q[MAX_COLUMNS];  // scaled by log2(e) * scaling, [D] each
    int64_t visible[MAX_COLUMNS];  // slots of the lane that the query sees
    int count;
};

struct Partial {  // result of one query over one piece, in base 2
    float top, total;
};

// The sums of 16 vectors, in order. Each step adds pairs and halves the number of vectors.
KVB_INLINE Vec sums(Vec* x) {
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
    float top = tops[0];
    for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    Vec total{};
    for (int i = 0; i < padded; i += LANES) {
        const Vec weight = exp2_of(load(score + i) - top);
        total += weight;
        store(score + i, weight);
    }
    float all = 0;
    for (int i = 0; i < LANES; i++) all += total[i];
    return {top, all};
}

// Attend with BLOCK queries to rows [0, rows) of one piece. acc [BLOCK, D] is overwritten.
template <int VECS, int BLOCK>
KVB_INLINE void attend_block(const float* const* q, const int64_t* seen, const float* k, const float* v, int rows,
                             Partial* partial, float* acc) {
    constexpr int D = VECS * LANES;
    float score[BLOCK][PIECE];
    for (int i = 0; i < rows; i += LANES)
        for (int c = 0; c < BLOCK; c++) {
            Vec product[LANES];
            for (int r = 0; r < LANES; r++) {
                const float* row = k + static_cast<int64_t>(i + r < rows ? i + r : rows - 1) * D;
                product[r] = load(row) * load(q[c]);
                for (int j = 1; j < VECS; j++) product[r] += load(row + j * LANES) * load(q[c] + j * LANES);
            }
            store(score[c] + i, sums(product));
        }
    for (int c = 0; c < BLOCK; c++) {
        const int live = seen[c] < rows ? static_cast<int>(seen[c] < 0 ? 0 : seen[c]) : rows;
        partial[c] = soften(score[c], live);
        for (int i = live; i < rows; i++) score[c][i] = 0;
    }
    constexpr int WIDE = VECS % 2 == 0 ? 2 : 1;  // accumulators of a wider block would not fit into 16 registers
    for (int j = 0; j < VECS; j += WIDE) {
        Vec out[BLOCK][WIDE] = {};
        for (int i = 0; i < rows; i++)
            for (int w = 0; w < WIDE; w++) {
                const Vec row = load(v + static_cast<int64_t>(i) * D + (j + w) * LANES);
                for (int c = 0; c < BLOCK; c++) out[c][w] += row * score[c][i];
            }
        for (int c = 0; c < BLOCK; c++)
            for (int w = 0; w < WIDE; w++) store(acc + c * D + (j + w) * LANES, out[c][w]);
    }
}

template <int VECS>
KVB_INLINE void attend_piece(const Columns& columns, int64_t first, const float* k, const float* v, int rows,
                             Partial* partial, float* acc) {
    int64_t seen[MAX_COLUMNS];
    for (int c = 0; c < columns.count; c++) seen[c] = columns.visible[c] - first;
    int c = 0;
    for (; c + 4 <= columns.count; c += 4)
        attend_block<VECS, 4>(columns.q + c, seen + c, k, v, rows, partial + c, acc + c * VECS * LANES);
    float* rest = acc + c * VECS * LANES;
    switch (columns.count - c) {
        case 3: attend_block<VECS, 3>(columns.q + c, seen + c, k, v, rows, partial + c, rest); break;
        case 2: attend_block<VECS, 2>(columns.q + c, seen + c, k, v, rows, partial + c, rest); break;
        case 1: attend_block<VECS, 1>(columns.q + c, seen + c, k, v, rows, partial + c, rest); break;
    }
}

void attend(int dim, const Columns& columns, int64_t first, const float* k, const float* v, int rows,
            Partial* partial, float* acc) {
    switch (dim / LANES) {
        case 1: return attend_piece<1>(columns, first, k, v, rows, partial, acc);
        case 2: return attend_piece<2>(columns, first, k, v, rows, partial, acc);
        case 4: return attend_piece<4>(columns, first, k, v, rows, partial, acc);
        case 5: return attend_piece<5>(columns, first, k, v, rows, partial, acc);
        case 6: return attend_piece<6>(columns, first, k, v, rows, partial, acc);
        case 8: return attend_piece<8>(columns, first, k, v, rows, partial, acc);
        case 16: return attend_piece<16>(columns, first, k, v, rows, partial, acc);
    }
}

bool supported(int dim, int64_t columns) {
    const int vecs = dim / LANES;
    const bool known = vecs == 1 || vecs == 2 || (vecs >= 4 && vecs <= 6) || vecs == 8 || vecs == 16;
    return dim % LANES == 0 && known && columns >= 1 && columns <= MAX_COLUMNS;
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

extern "C" int64_t kvb_cpu_scratch(const int32_t* length_S, const int32_t* segment_N, int64_t lanes, int64_t group,
                                   int64_t tokens, int64_t dim) {
    int64_t pieces = 0;
    for (int64_t n = 0; n < lanes; n++) pieces += pieces_of(length_S[segment_N[n]] + tokens);
    const int64_t per_piece = sizeof(int64_t) + group * tokens * (sizeof(Partial) + sizeof(float) * dim);
    return pieces * per_piece + sizeof(int64_t) * (lanes + 1);
}

extern "C" int kvb_cpu_attend(const float* q, const int64_t* q_strides, const float* k_new, const float* v_new,
                              const int64_t* new_strides, float* k_RD, float* v_RD, const int32_t* start_S1,
                              int32_t* length_S, const int32_t* segment_N, float* out, void* scratch, int64_t batch,
                              int64_t kv_heads, int64_t group, int64_t tokens, int64_t dim, float scaling) {
    const int64_t lanes = batch * kv_heads, count = group * tokens;
    if (!supported(static_cast<int>(dim), count)) return -1;
    for (int64_t n = 0; n < lanes; n++) {
        const int32_t s = segment_N[n];
        if (length_S[s] + tokens > start_S1[s + 1] - start_S1[s]) return 1 + s;
    }
    // scratch: the first piece of each lane, the lane of each piece, and the result of each piece for each query
    int64_t* begin_N = static_cast<int64_t*>(scratch);
    int64_t pieces = 0;
    for (int64_t n = 0; n < lanes; n++) {
        begin_N[n] = pieces;
        length_S[segment_N[n]] += static_cast<int32_t>(tokens);
        pieces += pieces_of(length_S[segment_N[n]]);
    }
    begin_N[lanes] = pieces;
    int64_t* lane_P = begin_N + lanes + 1;
    for (int64_t n = 0; n < lanes; n++)
        for (int64_t p = begin_N[n]; p < begin_N[n + 1]; p++) lane_P[p] = n;
    Partial* partial_PC = reinterpret_cast<Partial*>(lane_P + pieces);
    float* acc_PCD = reinterpret_cast<float*>(partial_PC + pieces * count);
    const float base2 = scaling * 1.4426950408889634f;

#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++) {
            const int32_t s = segment_N[n];
            const int64_t slot = static_cast<int64_t>(start_S1[s]) + length_S[s] - tokens;
            for (int64_t t = 0; t < tokens; t++) {
                const int64_t from = n / kv_heads * new_strides[0] + n % kv_heads * new_strides[1] + t * new_strides[2];
                std::memcpy(k_RD + (slot + t) * dim, k_new + from, sizeof(float) * dim);
                std::memcpy(v_RD + (slot + t) * dim, v_new + from, sizeof(float) * dim);
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < pieces; p++) {
            const int64_t n = lane_P[p], first = (p - begin_N[n]) * PIECE, length = length_S[segment_N[n]];
            alignas(64) float scaled[MAX_COLUMNS * MAX_DIM];
            Columns columns;
            columns.count = static_cast<int>(count);
            for (int64_t c = 0; c < count; c++) {  // query c = g * T + t
                const int64_t g = c / tokens, t = c % tokens, head = n % kv_heads * group + g;
                const float* from = q + n / kv_heads * q_strides[0] + head * q_strides[1] + t * q_strides[2];
                for (int64_t d = 0; d < dim; d++) scaled[c * dim + d] = from[d] * base2;
                columns.q[c] = scaled + c * dim;
                columns.visible[c] = length - tokens + t + 1;
            }
            const int64_t slot = static_cast<int64_t>(start_S1[segment_N[n]]) + first, left = length - first;
            attend(static_cast<int>(dim), columns, first, k_RD + slot * dim, v_RD + slot * dim,
                   static_cast<int>(left < PIECE ? left : PIECE), partial_PC + p * count, acc_PCD + p * count * dim);
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++)
            for (int64_t c = 0; c < count; c++) {
                const int64_t p = begin_N[n], g = c / tokens, t = c % tokens;
                const int64_t row = n / kv_heads * tokens + t, head = n % kv_heads * group + g;
                combine(partial_PC + p * count + c, acc_PCD + (p * count + c) * dim, begin_N[n + 1] - p, count,
                        static_cast<int>(dim), out + (row * kv_heads * group + head) * dim);
            }
    }
    return 0;
}
