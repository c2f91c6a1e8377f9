// kvb_select: the tokens that each KV head keeps, chosen without the host.
//
// Suffixes: U KV heads, N candidate tokens of each, P passes (one per digit), B bins, W warps. The order of tokens is:
// better score first, then (over a layer) the lower head, then the lower position. Sums are of integers, or serial, so
// the result is the same in every run.
//
// scope "head":   head_top_k, one block per head, finds the k-th best score digit by digit and marks what beats it.
// scope "layer":  layer_histogram, once per digit, finds the total-th best score of the layer in the same way.
//                 layer_counts computes how many each head keeps from how many of the best it holds. Then head_top_k.
#include "calls.h"
#include "select/apportion.h"
#include "select/radix.h"

namespace {

using kvb::kBins;
using kvb::kPasses;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
using PerWarp = int[kWarps];
using PerHead = int[kvb::kMaxHeads];

// The layer's threshold as far as it is known after each digit; the pass after that digit writes it.
struct Threshold {
    unsigned prefix;  // its leading digits
    int wanted;       // how many of the tokens that share them are among the best
};

// histogram_PUB[pass][head][digit] counts the tokens whose leading digits are those of the threshold.
__global__ void __launch_bounds__(kThreads, 1)
layer_histogram(const float* score_UN, int candidates, int total, int pass, int* histogram_PUB,
                Threshold* threshold_P) {
    KVB_SHARED(kvb::Bins, layer_bins);
    KVB_SHARED(kvb::Digit, found);
    KVB_SHARED(kvb::Bins, bins);
    const int head = blockIdx.x, heads = gridDim.x;
    Threshold threshold{0, total};
    if (pass > 0) {  // every block computes the digit of the pass before
        threshold = threshold_P[pass - 1];
        const int* before_UB = histogram_PUB + int64_t(pass - 1) * heads * kBins;
        for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
            int sum = 0;
            for (int h = 0; h < heads; ++h) sum += before_UB[h * kBins + bin];
            layer_bins[bin] = sum;
        }
        __syncthreads();
        const kvb::Digit digit = kvb::find_digit(layer_bins, threshold.wanted, found);
        threshold = {threshold.prefix << kvb::kDigitBits | digit.value, digit.wanted};
    }
    if (head == 0 && threadIdx.x == 0) threshold_P[pass] = threshold;
    kvb::count_digits<kThreads>(score_UN + int64_t(head) * candidates, candidates, threshold.prefix, pass, bins);
    int* mine_B = histogram_PUB + (int64_t(pass) * heads + head) * kBins;
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) mine_B[bin] = bins[bin];
}

// One block computes how many tokens each head keeps, from how many of the layer's best `total` it holds.
__global__ void __launch_bounds__(kThreads, 1)
layer_counts(const int* histogram_PUB, const Threshold* threshold_P, int heads, int candidates, int total, double floor,
             int* count_U) {
    KVB_SHARED(kvb::Bins, layer_bins);
    KVB_SHARED(kvb::Digit, found);
    KVB_SHARED(PerHead, above_U);
    KVB_SHARED(PerHead, tied_U);
    KVB_SHARED(kvb::Apportion, work);
    const int64_t pass_stride = int64_t(heads) * kBins;
    const Threshold threshold = threshold_P[kPasses - 1];
    const int* last_UB = histogram_PUB + (kPasses - 1) * pass_stride;
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
        int sum = 0;
        for (int h = 0; h < heads; ++h) sum += last_UB[h * kBins + bin];
        layer_bins[bin] = sum;
    }
    __syncthreads();
    const kvb::Digit last = kvb::find_digit(layer_bins, threshold.wanted, found);
    const unsigned key = threshold.prefix << kvb::kDigitBits | last.value;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int h = warp; h < heads; h += kWarps) {
        int above = 0;  // tokens of head h that are better than the threshold: those with a larger digit, in each pass
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const int* bins = histogram_PUB + pass * pass_stride + int64_t(h) * kBins;
            const int digit = int(kvb::digit_of(key, pass));
#pragma unroll
            for (int first = 0; first < kBins; first += 32) above += first + lane > digit ? bins[first + lane] : 0;
        }
        for (int step = 16; step > 0; step /= 2) above += __shfl_xor_sync(kvb::kFullWarp, above, step);
        if (lane == 0) {
            above_U[h] = above;
            tied_U[h] = last_UB[h * kBins + last.value];
        }
    }
    __syncthreads();
    const int head = threadIdx.x;
    if (head < heads) {  // tokens that tie with the threshold are among the best from head 0 on, until there are enough
        int left = last.wanted;
        for (int h = 0; h < head; ++h) left -= tied_U[h];
        const int held = above_U[head] + max(0, min(left, tied_U[head]));
        work.weight_U[head] = kvb::mixed_share(held, floor, total, heads);
    }
    __syncthreads();
    kvb::apportion(work, heads, total, candidates);
    if (head < heads) count_U[head] = work.count_U[head];
}

// One block per head marks its best count_U[head] tokens. In scope "head" the count is the even part of `total`, which
// is written to count_U.
__global__ void __launch_bounds__(kThreads, 1)
head_top_k(const float* __restrict__ score_UN, int candidates, int total, bool even, int* count_U,
           unsigned char* __restrict__ keep_UN) {
    KVB_SHARED(kvb::Bins, bins);
    KVB_SHARED(kvb::Digit, found);
    KVB_SHARED(PerWarp, tied_W);
    const int head = blockIdx.x, heads = gridDim.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* score_N = score_UN + int64_t(head) * candidates;
    unsigned char* keep_N = keep_UN + int64_t(head) * candidates;
    const int count = even ? total / heads + (head < total % heads) : count_U[head];
    if (even && threadIdx.x == 0) count_U[head] = count;

    unsigned threshold = 0;
    int wanted = count;
    for (int pass = 0; pass < kPasses; ++pass) {
        kvb::count_digits<kThreads>(score_N, candidates, threshold, pass, bins);
        const kvb::Digit digit = kvb::find_digit(bins, wanted, found);
        threshold = threshold << kvb::kDigitBits | digit.value;
        wanted = digit.wanted;
    }
    // The first `wanted` of the tokens that tie with the threshold are kept. Each warp takes a range of positions; the
    // counts of all warps say how many tie before it.
    const int range = (candidates + kWarps * 32 - 1) / (kWarps * 32) * 32;
    const int begin = min(candidates, warp * range), end = min(candidates, begin + range);
    int tied = 0;
#pragma unroll 8
    for (int i = begin + lane; i < end; i += 32) tied += kvb::ordered(score_N[i]) == threshold;
    for (int step = 16; step > 0; step /= 2) tied += __shfl_xor_sync(kvb::kFullWarp, tied, step);
    if (lane == 0) tied_W[warp] = tied;
    __syncthreads();
    int before = 0;
    for (int w = 0; w < warp; ++w) before += tied_W[w];
    constexpr int kTogether = 8;  // loads in flight
    for (int first = begin; first < end; first += 32 * kTogether) {
        float score[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) score[j] = score_N[min(first + 32 * j + lane, end - 1)];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            const int i = first + 32 * j + lane;
            const unsigned key = kvb::ordered(score[j]);
            const unsigned ties = __ballot_sync(kvb::kFullWarp, i < end && key == threshold);
            const int rank = before + __popc(ties & ((1u << lane) - 1));
            if (i < end) keep_N[i] = count > 0 && (key > threshold || (key == threshold && rank < wanted));
            before += __popc(ties);
        }
    }
}

}  // namespace

extern "C" int64_t kvb_select_workspace(int64_t heads) {
    return kPasses * (int64_t(sizeof(Threshold)) + heads * kBins * int64_t(sizeof(int)));
}

// calls.h has the arguments. 0 <= total <= heads * candidates. The workspace is not used for scope 0.
extern "C" int kvb_select(const kvb::Select* call, cudaStream_t stream) {
    if (call->heads < 1 || call->heads > kvb::kMaxHeads || call->candidates < 0) return kvb::kTooLarge;
    if (call->heads * call->candidates > INT32_MAX) return kvb::kTooLarge;
    const int n = int(call->candidates), all = int(call->total), blocks = int(call->heads);
    if (call->scope == 1) {
        Threshold* threshold = static_cast<Threshold*>(call->workspace);
        int* histogram = reinterpret_cast<int*>(threshold + kPasses);
        for (int pass = 0; pass < kPasses; ++pass)
            KVB_LAUNCH((layer_histogram), blocks, kThreads, 0, stream, call->score, n, all, pass, histogram, threshold);
        KVB_LAUNCH((layer_counts), 1, kThreads, 0, stream, histogram, threshold, blocks, n, all, call->floor,
                   call->count);
    }
    KVB_LAUNCH((head_top_k), blocks, kThreads, 0, stream, call->score, n, all, call->scope == 0, call->count,
               static_cast<unsigned char*>(call->keep));
    return int(cudaGetLastError());
}
