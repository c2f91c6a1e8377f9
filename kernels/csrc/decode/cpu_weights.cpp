// The attention weights of a step on a CPU, in float32, for decode policies that read them.
//
//   int kvb_cpu_weights(const DecodeWeights* call, stream)
//
// Lane n reads segment s = segment[n], whose last T live slots hold the tokens of the queries: query t sees the first
// length[s] - T + t + 1 slots. Weights of the others are 0. Returns 0, -1 if the dtype or `dim` is not supported, or -2 if
// a segment is longer than `width`.
//
// A lane's result depends neither on the number of threads nor on the other lanes. Keys are read once for up to four
// queries, piece by piece, so that a piece is still in the cache for the next four.
//
// This file is compiled with -fopenmp but linked without it, so that it uses the OpenMP runtime that torch has loaded.

#include "cpu_pieces.hpp"

namespace {

// Logits of BLOCK queries over rows [0, rows) of keys, in base 2. scores[c] has room for rows up to a multiple of LANES.
template <int VECS, int BLOCK>
KVB_INLINE void logits_of(const float* const* q, const float* k, int rows, float* const* scores) {
    constexpr int D = VECS * LANES;
    for (int i = 0; i < rows; i += LANES)
        for (int c = 0; c < BLOCK; c++) {
            Vec product[LANES];
            for (int r = 0; r < LANES; r++) {
                const float* row = k + static_cast<int64_t>(i + r < rows ? i + r : rows - 1) * D;
                product[r] = load(row) * load(q[c]);
                for (int j = 1; j < VECS; j++) product[r] += load(row + j * LANES) * load(q[c] + j * LANES);
            }
            const Vec sum = sums(product);
            std::memcpy(scores[c] + i, &sum, sizeof(float) * (rows - i < LANES ? rows - i : LANES));
        }
}

template <int VECS>
void logits_of(const float* const* q, const float* k, int rows, float* const* scores, int count) {
    int c = 0;
    for (; c + 4 <= count; c += 4) logits_of<VECS, 4>(q + c, k, rows, scores + c);
    switch (count - c) {
        case 3: logits_of<VECS, 3>(q + c, k, rows, scores + c); break;
        case 2: logits_of<VECS, 2>(q + c, k, rows, scores + c); break;
        case 1: logits_of<VECS, 1>(q + c, k, rows, scores + c); break;
    }
}

bool logits_of(int dim, const float* const* q, const float* k, int rows, float* const* scores, int count) {
    switch (dim) {
        case 16: logits_of<1>(q, k, rows, scores, count); return true;
        case 32: logits_of<2>(q, k, rows, scores, count); return true;
        case 64: logits_of<4>(q, k, rows, scores, count); return true;
        case 80: logits_of<5>(q, k, rows, scores, count); return true;
        case 96: logits_of<6>(q, k, rows, scores, count); return true;
        case 128: logits_of<8>(q, k, rows, scores, count); return true;
        case 256: logits_of<16>(q, k, rows, scores, count); return true;
    }
    return false;
}

// Turn the first `live` of `width` logits into weights that add up to 1, and the others into 0.
void softmax(float* score, int64_t live, int64_t width) {
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < live; i++) top = score[i] > top ? score[i] : top;
    float part[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= live; i += LANES) {
        const Vec weight = exp2_of(load(score + i) - top);
        store(score + i, weight);
        store(part, load(part) + weight);
    }
    for (int64_t r = 0; i < live; i++, r++) part[r] += score[i] = exp2_of(score[i] - top);
    float total = 0;
    for (int r = 0; r < LANES; r++) total += part[r];
    for (int64_t j = 0; j < live; j++) score[j] /= total;
    for (int64_t j = live; j < width; j++) score[j] = 0;
}

}  // namespace

extern "C" int kvb_cpu_weights(const kvb::DecodeWeights* call, void*) {
    const float* none[1] = {nullptr};
    float* nowhere[1] = {nullptr};
    const int64_t dim = call->dim, width = call->width, tokens = call->tokens;
    if (call->dtype != FLOAT32 || dim > MAX_DIM || !logits_of(call->dim, none, nullptr, 0, nowhere, 0)) return -1;
    for (int64_t n = 0; n < call->lanes; n++)
        if (call->length[call->segment[n]] > width) return -2;
    const int64_t count = call->group * tokens;
    const int64_t blocks = (count + MAX_COLUMNS - 1) / MAX_COLUMNS;
    const float base2 = call->scaling * 1.4426950408889634f;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t n = 0; n < call->lanes; n++)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * MAX_COLUMNS;
            const int some = static_cast<int>(count - first < MAX_COLUMNS ? count - first : MAX_COLUMNS);
            const int64_t length = call->length[call->segment[n]];
            const float* k = static_cast<const float*>(call->k) + call->start[call->segment[n]] * dim;
            alignas(64) float scaled[MAX_COLUMNS * MAX_DIM];
            const float* columns[MAX_COLUMNS];
            float* scores[MAX_COLUMNS];
            for (int c = 0; c < some; c++) {
                const float* from = static_cast<const float*>(call->q) + (n * count + first + c) * dim;
                for (int64_t d = 0; d < dim; d++) scaled[c * dim + d] = from[d] * base2;
                columns[c] = scaled + c * dim;
            }
            float* out = call->out + (n * count + first) * width;
            for (int64_t slot = 0; slot < length; slot += PIECE) {
                const int rows = static_cast<int>(length - slot < PIECE ? length - slot : PIECE);
                for (int c = 0; c < some; c++) scores[c] = out + c * width + slot;
                logits_of(call->dim, columns, k + slot * dim, rows, scores, some);
            }
            for (int c = 0; c < some; c++)
                softmax(out + c * width, length - tokens + (first + c) % tokens + 1, width);
        }
    return 0;
}

//   int kvb_cpu_least(const Least* call, stream)
//
// Per head, the live column of the lowest worth; of equals, the one of the highest position. A head without live columns
// gets 0.
extern "C" int kvb_cpu_least(const kvb::Least* call, void*) {
    // Few heads are searched in less time than it takes to wake a thread.
#pragma omp parallel for schedule(static) if (call->heads * call->width > 65536)
    for (int64_t head = 0; head < call->heads; head++) {
        const float* w = call->worth + head * call->width;
        const int32_t* p = call->pos + head * call->width;
        const int64_t live = call->length[head];
        float least = std::numeric_limits<float>::infinity();
        for (int64_t c = 0; c < live; c++) least = w[c] < least ? w[c] : least;
        int64_t best = 0;
        int32_t latest = std::numeric_limits<int32_t>::min();
        for (int64_t c = 0; c < live; c++)
            if (w[c] == least && p[c] > latest) latest = p[c], best = c;
        call->column[head] = best;
    }
    return 0;
}
