// The attention weights of a step on a CPU, for decode policies that read them. The cache and the
// queries are float32 or bfloat16; the weights are float32.
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
#include "cpu_rows.hpp"

namespace {

template <int D, typename T>
void logits_of(const float* const* q, const T* k, int rows, int count, float (*score)[PIECE]) {
    int c = 0;
    for (; c + 4 <= count; c += 4) logits_of<D, 4>(q + c, k, nullptr, rows, score + c);
    switch (count - c) {
        case 3: logits_of<D, 3>(q + c, k, nullptr, rows, score + c); break;
        case 2: logits_of<D, 2>(q + c, k, nullptr, rows, score + c); break;
        case 1: logits_of<D, 1>(q + c, k, nullptr, rows, score + c); break;
    }
}

template <typename T>
bool logits_of(int dim, const float* const* q, const T* k, int rows, int count, float (*score)[PIECE]) {
    switch (dim) {
        case 16: logits_of<16>(q, k, rows, count, score); return true;
        case 32: logits_of<32>(q, k, rows, count, score); return true;
        case 64: logits_of<64>(q, k, rows, count, score); return true;
        case 80: logits_of<80>(q, k, rows, count, score); return true;
        case 96: logits_of<96>(q, k, rows, count, score); return true;
        case 128: logits_of<128>(q, k, rows, count, score); return true;
        case 256: logits_of<256>(q, k, rows, count, score); return true;
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

template <typename T>
void run(const kvb::DecodeWeights* call) {
    const int64_t dim = call->dim, width = call->width, tokens = call->tokens;
    const int64_t count = call->group * tokens;
    const int64_t blocks = (count + MAX_COLUMNS - 1) / MAX_COLUMNS;
    const float base2 = call->scaling * 1.4426950408889634f;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t n = 0; n < call->lanes; n++)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * MAX_COLUMNS;
            const int some = static_cast<int>(count - first < MAX_COLUMNS ? count - first : MAX_COLUMNS);
            const int64_t length = call->length[call->segment[n]];
            const T* k = static_cast<const T*>(call->k) + call->start[call->segment[n]] * dim;
            alignas(64) float scaled[MAX_COLUMNS * MAX_DIM], score[MAX_COLUMNS][PIECE];
            const float* columns[MAX_COLUMNS];
            for (int c = 0; c < some; c++) {
                const T* from = static_cast<const T*>(call->q) + (n * count + first + c) * dim;
                for (int d = 0; d < dim; d++)
                    scaled[c * dim + place_of<T>(d, call->dim / LANES)] = to_float(from[d]) * base2;
                columns[c] = scaled + c * dim;
            }
            float* out = call->out + (n * count + first) * width;
            for (int64_t slot = 0; slot < length; slot += PIECE) {
                const int rows = static_cast<int>(length - slot < PIECE ? length - slot : PIECE);
                logits_of(call->dim, columns, k + slot * dim, rows, some, score);
                for (int c = 0; c < some; c++)
                    std::memcpy(out + c * width + slot, score[c], sizeof(float) * rows);
            }
            for (int c = 0; c < some; c++)
                softmax(out + c * width, length - tokens + (first + c) % tokens + 1, width);
        }
}

}  // namespace

extern "C" int kvb_cpu_weights(const kvb::DecodeWeights* call, void*) {
    float none[1][PIECE];
    if (!logits_of<float>(call->dim, nullptr, nullptr, 0, 0, none)) return -1;
    for (int64_t n = 0; n < call->lanes; n++)
        if (call->length[call->segment[n]] > call->width) return -2;
    if (call->dtype == FLOAT32) run<float>(call);
    else if (call->dtype == BFLOAT16) run<Bfloat16>(call);
    else return -1;
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
