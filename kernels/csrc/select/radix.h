// Radix selection: the k-th largest of many float32, one 8-bit digit of its ordered bits at a time.
#pragma once
#include "primitives_more.h"

namespace kvb {

constexpr int kDigitBits = 8, kBins = 1 << kDigitBits, kPasses = 32 / kDigitBits;
using Bins = int[kBins];

// Bits whose unsigned order is the order of torch's sort: NaN is above all others, and -0 equals 0.
KVB_DEVICE unsigned ordered(float score) {
    if (score != score) return 0xffffffffu;
    const unsigned bits = score == 0.f ? 0u : __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Digit number `pass`, from the top.
KVB_DEVICE unsigned digit_of(unsigned key, int pass) { return key >> (32 - kDigitBits * (pass + 1)) & (kBins - 1); }

// Count digit `pass` of the scores whose earlier digits are `prefix`, in bins[kBins]; it ends with a barrier. Scores
// are close together, so most lanes of a warp hit the same few bins, and one lane adds for all lanes that hit its bin.
template <int kThreads>
KVB_DEVICE void count_digits(const float* score_N, int candidates, unsigned prefix, int pass, Bins& bins) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int kTogether = 8;  // loads in flight: their latency is most of the time
    for (int first = 32 * kTogether * warp; first < candidates; first += kThreads * kTogether) {
        float score[kTogether];  // loaded without a branch, because the next load would wait for it
#pragma unroll
        for (int j = 0; j < kTogether; ++j) score[j] = score_N[min(first + 32 * j + lane, candidates - 1)];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            const unsigned key = ordered(score[j]);
            const bool inside = first + 32 * j + lane < candidates;
            const bool counts = inside && (pass == 0 || key >> (32 - kDigitBits * pass) == prefix);
            const unsigned digit = counts ? digit_of(key, pass) : unsigned(kBins);
            const unsigned peers = __match_any_sync(kFullWarp, digit);
            if (counts && (peers & ((1u << lane) - 1)) == 0) atomicAdd(&bins[digit], __popc(peers));
        }
    }
    __syncthreads();
}

struct Digit {
    unsigned value;
    int wanted;  // how many of the scores with this digit are among the best, after all with a larger digit
};

// The digit of the wanted-th best score, from the counts of each digit; the same for all threads. It ends with a
// barrier, after which `bins` may be overwritten. If wanted is 0, the digit is the largest.
KVB_DEVICE Digit find_digit(const Bins& bins, int wanted, Digit& found) {
    constexpr int kOfLane = kBins / 32;
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x, top = kBins - 1 - lane * kOfLane;  // lane 0 has the largest digits
        int mine = 0;
        for (int j = 0; j < kOfLane; ++j) mine += bins[top - j];
        int upto = mine;  // inclusive sum over the lanes up to this one
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(kFullWarp, upto, step);
            if (lane >= step) upto += other;
        }
        int above = upto - mine;
        if (wanted <= 0) {
            if (lane == 0) found = {unsigned(kBins - 1), 0};
        } else if (above < wanted && wanted <= upto) {
            int j = 0;
            while (above + bins[top - j] < wanted) above += bins[top - j++];
            found = {unsigned(top - j), wanted - above};
        }
    }
    __syncthreads();
    const Digit digit = found;
    __syncthreads();  // before the result is written again
    return digit;
}

}  // namespace kvb
