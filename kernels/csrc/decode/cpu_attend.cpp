// Append and attend on a CPU: the decode step of a ragged cache in one pass over its live slots. The cache, the queries
// and the result are float32 or bfloat16; products and sums are float32.
//
//   int kvb_cpu_attend(const RaggedDecode* call, stream)
//   int64 kvb_cpu_workspace(length_S, segment_N, lanes, group, tokens, dim)      bytes that `workspace` needs
//
// Lane n = b * U + u is segment s = segment[n]. Its new tokens go to slots start[s] + length[s] and following, and
// length[s] grows by T. Returns 0, or -1 if the dtype, `dim` or `group * tokens` is not supported. If segment s has no
// room, the status becomes 1 + s and nothing else changes.
//
// This file is compiled with -fopenmp but linked without it, so that it uses the OpenMP runtime that torch has loaded.

#include <omp.h>

#include "cpu_pieces.hpp"
#include "cpu_rows.hpp"

namespace {

struct Columns {
    const float* q[MAX_COLUMNS];  // scaled by log2(e) * scaling, [D] each, in the order of `vector_of`
    int64_t visible[MAX_COLUMNS];  // slots of the lane that the query sees
    int count;
};

// The keys of a thread's next piece, whichever lane that is of; no rows if it does not know.
template <typename T>
struct Ahead {
    const T* k;
    int rows;
};

// Attend with BLOCK queries to rows [0, rows) of one piece. acc [BLOCK, D] is overwritten. While it works on keys, it
// requests the values of the same rows; while it works on values, it requests the keys that the thread needs next.
template <int D, int BLOCK, typename T>
KVB_INLINE void attend_block(const float* const* q, const int64_t* seen, const T* k, const T* v, Ahead<T> next, int rows,
                             Partial* partial, float* acc) {
    constexpr int VECS = D / LANES;
    alignas(64) float score[BLOCK][PIECE];
    logits_of<D, BLOCK>(q, k, v, rows, score);
    for (int c = 0; c < BLOCK; c++) {
        const int live = seen[c] < rows ? static_cast<int>(seen[c] < 0 ? 0 : seen[c]) : rows;
        partial[c] = soften(score[c], live);
        for (int i = live; i < rows; i++) score[c][i] = 0;
    }
    // Accumulators of a wider block would not fit into the registers, of which AVX-512 has 32 and others 16.
    constexpr int WIDE = VECS % 4 == 0 && LANES == 16 ? 4 : VECS % 2 == 0 ? 2 : 1, PASSES = VECS / WIDE;
    // Each pass over the values requests its part of the next keys, so that the memory has work in all of them.
    const T* wanted = next.k;
    for (int j = 0; j < VECS; j += WIDE) {
        Vec out[BLOCK][WIDE] = {};
        const T* const enough = next.k + static_cast<int64_t>(next.rows) * (j / WIDE + 1) / PASSES * D;
        for (int i = 0; i < rows; i++) {
            if (i % PASSES == 0 && wanted < enough) request<D>(wanted), wanted += D;
            for (int w = 0; w < WIDE; w++) {
                const Vec row = vector_of<VECS>(v + static_cast<int64_t>(i) * D + j * LANES, w);
                for (int c = 0; c < BLOCK; c++) out[c][w] += row * score[c][i];
            }
        }
        for (int c = 0; c < BLOCK; c++)
            if constexpr (WIDE == 1) store(acc + c * D + j * LANES, out[c][0]);
            else
                for (int w = 0; w < WIDE; w += 2) store_pair<T>(acc + c * D, j + w, out[c][w], out[c][w + 1]);
    }
}

template <int D, typename T>
KVB_INLINE void attend_piece(const Columns& columns, int64_t first, const T* k, const T* v, Ahead<T> next, int rows,
                             Partial* partial, float* acc) {
    int64_t seen[MAX_COLUMNS];
    for (int c = 0; c < columns.count; c++) seen[c] = columns.visible[c] - first;
    int c = 0;
    for (; c + 4 <= columns.count; c += 4)
        attend_block<D, 4>(columns.q + c, seen + c, k, v, next, rows, partial + c, acc + c * D);
    const float* const* q = columns.q + c;
    switch (columns.count - c) {
        case 3: attend_block<D, 3>(q, seen + c, k, v, next, rows, partial + c, acc + c * D); break;
        case 2: attend_block<D, 2>(q, seen + c, k, v, next, rows, partial + c, acc + c * D); break;
        case 1: attend_block<D, 1>(q, seen + c, k, v, next, rows, partial + c, acc + c * D); break;
    }
}

template <typename T>
void attend(int dim, const Columns& columns, int64_t first, const T* k, const T* v, Ahead<T> next, int rows,
            Partial* partial, float* acc) {
    switch (dim) {
        case 16: return attend_piece<16>(columns, first, k, v, next, rows, partial, acc);
        case 32: return attend_piece<32>(columns, first, k, v, next, rows, partial, acc);
        case 64: return attend_piece<64>(columns, first, k, v, next, rows, partial, acc);
        case 80: return attend_piece<80>(columns, first, k, v, next, rows, partial, acc);
        case 96: return attend_piece<96>(columns, first, k, v, next, rows, partial, acc);
        case 128: return attend_piece<128>(columns, first, k, v, next, rows, partial, acc);
        case 256: return attend_piece<256>(columns, first, k, v, next, rows, partial, acc);
    }
}

bool supported(int dim, int64_t columns) {
    const bool known = dim == 16 || dim == 32 || dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256;
    return known && columns >= 1;
}

template <typename T>
void run(const kvb::RaggedDecode* call) {
    const int64_t tokens = call->tokens, count = call->group * tokens, dim = call->dim, kv_heads = call->kv_heads;
    const int64_t lanes = call->batch * kv_heads;
    const Workspace work(call->workspace, lanes, count, dim, [&](int64_t n) {
        return call->length[call->segment[n]] += static_cast<int32_t>(tokens);
    });
    T *k = static_cast<T*>(call->k), *v = static_cast<T*>(call->v);
    const float base2 = call->scaling * 1.4426950408889634f;
    // Threads take turns on runs of pieces: a thread knows which keys it needs next, and no thread waits long at the end.
    const int64_t share = work.pieces / (8 * omp_get_max_threads()), chunk = share < 1 ? 1 : share < 8 ? share : 8;

#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++) {
            const int32_t s = call->segment[n];
            const int64_t slot = static_cast<int64_t>(call->start[s]) + call->length[s] - tokens;
            for (int64_t t = 0; t < tokens; t++) {
                const int64_t b = n / kv_heads, u = n % kv_heads;
                std::memcpy(k + (slot + t) * dim, row_of<T>(call->k_new, b, u, t), sizeof(T) * dim);
                std::memcpy(v + (slot + t) * dim, row_of<T>(call->v_new, b, u, t), sizeof(T) * dim);
            }
        }
#pragma omp for schedule(dynamic, chunk)
        for (int64_t p = 0; p < work.pieces; p++) {
            const int64_t n = work.lane[p], first = (p - work.begin[n]) * PIECE;
            const int64_t length = call->length[call->segment[n]];
            const int64_t slot = static_cast<int64_t>(call->start[call->segment[n]]) + first, left = length - first;
            const int rows = static_cast<int>(left < PIECE ? left : PIECE);
            Ahead<T> next{nullptr, 0};
            if ((p + 1) % chunk && p + 1 < work.pieces) {  // the next piece is this thread's
                const int64_t m = work.lane[p + 1], from = (p + 1 - work.begin[m]) * PIECE;
                const int32_t s = call->segment[m];
                const int64_t rest = call->length[s] - from;
                next.rows = static_cast<int>(rest < PIECE ? rest : PIECE);
                next.k = k + (static_cast<int64_t>(call->start[s]) + from) * dim;
            }
            for (int64_t begin = 0; begin < count; begin += MAX_COLUMNS) {
                alignas(64) float scaled[MAX_COLUMNS * MAX_DIM];
                Columns columns;
                columns.count = static_cast<int>(count - begin < MAX_COLUMNS ? count - begin : MAX_COLUMNS);
                for (int i = 0; i < columns.count; i++) {
                    const int64_t g = (begin + i) / tokens, t = (begin + i) % tokens;  // query c = g * T + t
                    const T* from = row_of<T>(call->q, n / kv_heads, n % kv_heads * call->group + g, t);
                    for (int d = 0; d < dim; d++)
                        scaled[i * dim + place_of<T>(d, call->dim / LANES)] = to_float(from[d]) * base2;
                    columns.q[i] = scaled + i * dim;
                    columns.visible[i] = length - tokens + t + 1;
                }
                const int64_t to = p * count + begin;
                attend(call->dim, columns, first, k + slot * dim, v + slot * dim, next, rows, work.partial + to,
                       work.acc + to * dim);
            }
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++)
            for (int64_t c = 0; c < count; c++) {
                float result[MAX_DIM];
                work.combine_into(result, n, c);
                T* out = row_of<T>(call->out, n / kv_heads, n % kv_heads * call->group + c / tokens, c % tokens);
                for (int64_t d = 0; d < dim; d++) convert(result[d], out + d);
            }
    }
}

}  // namespace

extern "C" int64_t kvb_cpu_workspace(const int32_t* length, const int32_t* segment, int64_t lanes, int64_t group,
                                     int64_t tokens, int64_t dim) {
    int64_t pieces = 0;
    for (int64_t n = 0; n < lanes; n++) pieces += pieces_of(length[segment[n]] + tokens);
    return Workspace::bytes(lanes, pieces, group * tokens, dim);
}

extern "C" int kvb_cpu_attend(const kvb::RaggedDecode* call, void*) {
    if (!supported(call->dim, call->group * call->tokens)) return -1;
    if (call->dtype != FLOAT32 && call->dtype != BFLOAT16) return -1;
    for (int n = 0; n < call->batch * call->kv_heads; n++) {
        const int32_t s = call->segment[n];
        if (call->length[s] + call->tokens > call->start[s + 1] - call->start[s]) return *call->status = 1 + s, 0;
    }
    if (call->dtype == FLOAT32) run<float>(call);
    else run<Bfloat16>(call);
    return 0;
}
