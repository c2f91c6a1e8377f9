// Append and attend on a CPU, in float32: the decode step of a ragged cache in one pass over its live slots.
//
//   int kvb_cpu_attend(const RaggedDecode* call, stream)
//   int64 kvb_cpu_workspace(length_S, segment_N, lanes, group, tokens, dim)      bytes that `workspace` needs
//
// Lane n = b * U + u is segment s = segment[n]. Its new tokens go to slots start[s] + length[s] and following, and
// length[s] grows by T. Returns 0, or -1 if the dtype, `dim` or `group * tokens` is not supported. If segment s has no
// room, the status becomes 1 + s and nothing else changes.
//
// This file is compiled with -fopenmp but linked without it, so that it uses the OpenMP runtime that torch has loaded.

#include "cpu_pieces.hpp"

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

extern "C" int64_t kvb_cpu_workspace(const int32_t* length, const int32_t* segment, int64_t lanes, int64_t group,
                                     int64_t tokens, int64_t dim) {
    int64_t pieces = 0;
    for (int64_t n = 0; n < lanes; n++) pieces += pieces_of(length[segment[n]] + tokens);
    return Workspace::bytes(lanes, pieces, group * tokens, dim);
}

extern "C" int kvb_cpu_attend(const kvb::RaggedDecode* call, void*) {
    const int64_t tokens = call->tokens, count = call->group * tokens, dim = call->dim, kv_heads = call->kv_heads;
    const int64_t lanes = call->batch * kv_heads;
    if (!supported(call->dim, count) || call->dtype != FLOAT32) return -1;
    for (int64_t n = 0; n < lanes; n++) {
        const int32_t s = call->segment[n];
        if (call->length[s] + tokens > call->start[s + 1] - call->start[s]) return *call->status = 1 + s, 0;
    }
    const Workspace work(call->workspace, lanes, count, dim, [&](int64_t n) {
        return call->length[call->segment[n]] += static_cast<int32_t>(tokens);
    });
    float *k = static_cast<float*>(call->k), *v = static_cast<float*>(call->v);
    const float base2 = call->scaling * 1.4426950408889634f;

#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++) {
            const int32_t s = call->segment[n];
            const int64_t slot = static_cast<int64_t>(call->start[s]) + call->length[s] - tokens;
            for (int64_t t = 0; t < tokens; t++) {
                const int64_t b = n / kv_heads, u = n % kv_heads;
                std::memcpy(k + (slot + t) * dim, row_of<float>(call->k_new, b, u, t), sizeof(float) * dim);
                std::memcpy(v + (slot + t) * dim, row_of<float>(call->v_new, b, u, t), sizeof(float) * dim);
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < work.pieces; p++) {
            const int64_t n = work.lane[p], first = (p - work.begin[n]) * PIECE;
            const int64_t length = call->length[call->segment[n]];
            alignas(64) float scaled[MAX_COLUMNS * MAX_DIM];
            Columns columns;
            columns.count = static_cast<int>(count);
            for (int64_t c = 0; c < count; c++) {  // query c = g * T + t
                const int64_t g = c / tokens, t = c % tokens;
                const float* from = row_of<float>(call->q, n / kv_heads, n % kv_heads * call->group + g, t);
                for (int64_t d = 0; d < dim; d++) scaled[c * dim + d] = from[d] * base2;
                columns.q[c] = scaled + c * dim;
                columns.visible[c] = length - tokens + t + 1;
            }
            const int64_t slot = static_cast<int64_t>(call->start[call->segment[n]]) + first, left = length - first;
            attend(call->dim, columns, first, k + slot * dim, v + slot * dim,
                   static_cast<int>(left < PIECE ? left : PIECE), work.partial + p * count, work.acc + p * count * dim);
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++)
            for (int64_t c = 0; c < count; c++)
                work.combine_into(row_of<float>(call->out, n / kv_heads, n % kv_heads * call->group + c / tokens,
                                                c % tokens), n, c);
    }
    return 0;
}
