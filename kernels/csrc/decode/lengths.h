// Ragged decode: advancing the lengths, once all CTAs have read those that they need.
#pragma once
#include "decode/partition.h"

namespace kvb {

// Tell the other CTAs that this one has read all lengths that it needs. One thread calls it, after a barrier, and
// passes the result to `advance_lengths`. Nothing waits for the result until then.
KVB_DEVICE unsigned arrive(const DecodeArguments& args) {
    unsigned* counter = reinterpret_cast<unsigned*>(args.counters + kGridCounter);
    return add_release(counter, args.launch << kCountBits | 1u);
}

// The last CTA to arrive advances the lengths. `before` is what the first thread got from `arrive`. Another launch with
// the same workspace is only noticed if its arrivals come between those of this one.
template <typename Shared>
KVB_DEVICE void advance_lengths(const DecodeArguments& args, Shared& shared, unsigned before) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned all = gridDim.x, others = before & kCountMask;
        shared.last = others == all - 1;
        if (shared.last) acquire();
        const bool alone = (((before >> kCountBits) + args.launch) & kLaunchMask) == ((all * args.launch) & kLaunchMask);
        if (others >= all || (shared.last && !alone)) atomicExch(args.status, kOverlap);
        if (shared.last) args.counters[kGridCounter] = 0;
    }
    __syncthreads();
    if (shared.last == 0) return;
    const bool in_window = args.lanes <= kWindow;  // the window has all lanes and is never refilled: no need to wait
    for (int number = static_cast<int>(threadIdx.x); number < args.lanes; number += kDecodeThreads) {
        const Lane lane = in_window ? shared.window[number] : load_lane<true>(args, number);
        if (lane.length > lane.old_length) args.length[lane.segment] = lane.length;
        else atomicCAS(args.status, 0, lane.segment + 1);
    }
}

}  // namespace kvb
