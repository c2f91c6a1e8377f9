// Ragged decode: the split of the work over CTAs. All units of all items, in order, are split into one even range per
// CTA. So many CTAs share a long lane, and short lanes share a CTA. Everything follows from the lengths on the device.
#pragma once
#include "decode/types.h"

namespace kvb {

// The first `total % ctas` CTAs have one unit more than the others.
KVB_DEVICE int first_unit(int cta, int total, int ctas) {
    return total / ctas * cta + min(cta, total % ctas);
}

KVB_DEVICE int cta_of_unit(int unit, int total, int ctas) {
    const int few = total / ctas, longer = total % ctas, units_of_longer = longer * (few + 1);
    return unit < units_of_longer ? unit / (few + 1) : longer + (unit - units_of_longer) / few;
}

// With kAppend the length includes the new tokens, if the segment has room for them.
template <bool kAppend>
KVB_DEVICE Lane load_lane(const DecodeArguments& args, int lane) {
    Lane found;
    found.segment = args.segment[lane];
    found.start = args.start[found.segment];
    found.old_length = found.length = args.length[found.segment];
    if (kAppend && found.length + args.tokens <= args.start[found.segment + 1] - found.start)
        found.length += args.tokens;
    return found;
}

template <int D, bool kAppend>
KVB_DEVICE void fill_window(const DecodeArguments& args, DecodeShared<D>& shared, int lane) {
    const int thread = static_cast<int>(threadIdx.x);
    if (lane + thread < args.lanes) shared.window[thread] = load_lane<kAppend>(args, lane + thread);
    if (thread == 0) shared.window_lane = lane;
}

// Set the cursor to this CTA's first unit. It ends with a barrier.
template <int D, bool kAppend>
KVB_DEVICE void find_work(const DecodeArguments& args, DecodeShared<D>& shared) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane_of_warp = thread % 32;
    // A prefix sum over the lanes' units. Each thread has a run of neighbouring lanes, or one lane if there are few.
    const int run = divide_up(args.lanes, kThreads), first = thread * run, end = min(first + run, args.lanes);
    int units = 0;
    if (run == 1 && first < end) {
        shared.window[thread] = load_lane<kAppend>(args, first);
        units = units_of(shared.window[thread]) * args.blocks;
    }
    if (run > 1) {
        constexpr int kTogether = 4;  // lanes that are loaded at the same time: each load takes two latencies
        for (int lane = first; lane < end; lane += kTogether) {
            Lane found[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; ++j) found[j] = load_lane<kAppend>(args, min(lane + j, end - 1));
#pragma unroll
            for (int j = 0; j < kTogether; ++j) units += lane + j < end ? units_of(found[j]) * args.blocks : 0;
        }
    }
    int up_to = units;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(kFullWarp, up_to, distance);
        if (lane_of_warp >= distance) up_to += before;
    }
    if (lane_of_warp == 31) shared.warp_units[warp] = up_to;
    __syncthreads();
    int total = 0, before = up_to - units;
    for (int other = 0; other < kWarps; ++other) {
        if (other < warp) before += shared.warp_units[other];
        total += shared.warp_units[other];
    }
    const int cta = static_cast<int>(blockIdx.x);
    const int ctas = min(static_cast<int>(gridDim.x), divide_up(total, kMinUnits));
    const int begin = cta < ctas ? first_unit(cta, total, ctas) : total;
    if (thread == 0) {
        shared.total = total;
        shared.ctas = ctas;
        shared.end = cta < ctas ? first_unit(cta + 1, total, ctas) : total;
        shared.window_lane = 0;
        if (begin == total) shared.cursor = Cursor{total, total, 0, 0};  // nothing to do
    }
    if (begin >= before && begin < before + units) {  // one thread's run contains it
        int lane = first, item = before, each = 0;
        for (;; ++lane, item += each * args.blocks) {
            each = units_of(load_lane<kAppend>(args, lane));
            if (begin < item + each * args.blocks) break;
        }
        const int block = (begin - item) / each;
        shared.cursor = Cursor{begin, item + block * each, lane, block};
    }
    __syncthreads();
    if (run > 1) {
        fill_window<D, kAppend>(args, shared, shared.cursor.lane);
        __syncthreads();
    }
}

// The lane at the cursor. `args` and the cursor are the same for all threads.
template <int D, bool kAppend>
KVB_DEVICE Lane lane_at(const DecodeArguments& args, DecodeShared<D>& shared, int lane) {
    if (lane >= shared.window_lane + kThreads) {
        __syncthreads();  // no thread reads the old window any more
        fill_window<D, kAppend>(args, shared, lane);
        __syncthreads();
    }
    return shared.window[lane - shared.window_lane];
}

// Advance the cursor past the `units` units that end the CTA's part of an item. One thread calls it.
template <int D>
KVB_DEVICE void advance(const DecodeArguments& args, DecodeShared<D>& shared, const Cursor& at, int each, int units) {
    const bool lane_done = at.block + 1 == args.blocks;
    shared.cursor = Cursor{at.unit + units, at.item + each, at.lane + lane_done, lane_done ? 0 : at.block + 1};
}

}  // namespace kvb
