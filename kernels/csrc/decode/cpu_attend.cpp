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
// This file is compiled with -fopenmp but linked without it, so that it uses the OpenMP runtime that torch has loaded.

#include "cpu_vectors.hpp"

namespace {

struct Columns {
    const float* q[MAX_COLUMNS];  // scaled by log2(e) * scaling, [D] each
    int64_t visible[MAX_COLUMNS];  // slots of the lane that the query sees
    int count;
};

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
