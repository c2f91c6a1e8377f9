// Apportionment of a layer's budget over heads, in integers whose sum is exact. It works in float64 and in the order of
// operations of kvbench_kernels/ops/apportion.py, so that both round alike. All threads of one block call `apportion`.
#pragma once
#include "primitives_more.h"

namespace kvb {

constexpr int kMaxHeads = 512;

// In shared memory.
struct Apportion {
    double weight_U[kMaxHeads];  // in
    int count_U[kMaxHeads];      // out
    double share_U[kMaxHeads];
    int remainder_U[kMaxHeads];  // millionths
    bool full_U[kMaxHeads];
    double rest, mass;
    int open, missing;
};

// (1 - floor) * held + floor * total / heads. Every multiplication and addition is rounded: fused operations would give
// other results than the host.
KVB_DEVICE double mixed_share(int held, double floor, int total, int heads) {
    const double claimed = mul_rn(1.0 - floor, double(held));
    return add_rn(claimed, div_rn(mul_rn(floor, double(total)), double(heads)));
}

// Round x in [-1, 1] to the nearest millionth like Python's round(x, 6): by the exact value of x, halves to even.
KVB_DEVICE int millionths(double x) {
    const double near = mul_rn(x, 1e6), error = fma_rn(x, 1e6, -near);  // x * 1e6 is near + error exactly
    const double low = floor(near), half = low + 0.5;
    const int below = int(low);
    if (near != half) return below + (near > half);
    return error != 0.0 ? below + (error > 0.0) : below + (below & 1);
}

KVB_DEVICE void apportion(Apportion& work, int heads, int total, int limit) {
    const int head = threadIdx.x;
    if (head < heads) work.full_U[head] = false;
    if (head == 0) work.rest = double(total);
    __syncthreads();
    for (bool settled = false; !settled;) {
        if (head == 0) {  // a serial sum: its rounding depends on the order
            double mass = 0.0;
            int open = 0;
            for (int h = 0; h < heads; ++h)
                if (!work.full_U[h]) {
                    mass = add_rn(mass, work.weight_U[h]);
                    ++open;
                }
            work.mass = mass;
            work.open = open;
        }
        __syncthreads();
        bool fills = false;
        if (head < heads && !work.full_U[head]) {
            const double rest = work.rest;
            const double part = work.mass > 0.0 ? div_rn(mul_rn(rest, work.weight_U[head]), work.mass)
                                                : div_rn(rest, double(work.open));
            work.share_U[head] = part;
            fills = part >= double(limit);
        }
        if (fills) {
            work.full_U[head] = true;
            work.share_U[head] = double(limit);
        }
        settled = __syncthreads_count(fills) == 0;
        if (!settled && head == 0) {
            int full = 0;
            for (int h = 0; h < heads; ++h) full += work.full_U[h];
            work.rest = double(total) - double(limit) * double(full);
        }
        __syncthreads();
    }
    // The largest remainders get one more each; ties go to the lower head. 1e-6 absorbs rounding errors of integers.
    if (head < heads) {
        const double share = work.share_U[head], low = floor(add_rn(share, 1e-6));
        work.count_U[head] = int(low);
        work.remainder_U[head] = millionths(add_rn(share, -low));
    }
    __syncthreads();
    if (head == 0) {
        int sum = 0;
        for (int h = 0; h < heads; ++h) sum += work.count_U[h];
        work.missing = total - sum;
    }
    __syncthreads();
    if (head < heads) {
        const int mine = work.remainder_U[head];
        int before = 0;
        for (int h = 0; h < heads; ++h)
            before += work.remainder_U[h] > mine || (work.remainder_U[h] == mine && h < head);
        if (before < work.missing) ++work.count_U[head];
    }
    __syncthreads();
}

}  // namespace kvb
