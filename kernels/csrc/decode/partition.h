// Ragged decode: the split of the work over CTAs. Everything follows from the lengths on the device. There are two ways.
//
// Little work: each CTA gets one piece of one item. Pieces have 1, 2, 4, ... units, the smallest number with which the
// grid suffices; an item that is not much longer than a piece stays whole. So the time is that of one piece and at most
// one merge, however uneven the lengths are.
//
// Much work: all units of all items, in order, are split into one range of even cost per CTA. So many CTAs share a long
// lane, and short lanes share a CTA. A unit belongs to the CTA in whose range it begins.
#pragma once
#include "decode/types.h"

namespace kvb {

// Where a CTA's range begins. The first `total % ctas` CTAs get 1 more than the others.
KVB_DEVICE int range_begin(int cta, int total, int ctas) {
    return total / ctas * cta + min(cta, total % ctas);
}

KVB_DEVICE int cta_of(int place, int total, int ctas) {
    const int few = total / ctas, longer = total % ctas, end_of_longer = longer * (few + 1);
    return place < end_of_longer ? place / (few + 1) : longer + (place - end_of_longer) / few;
}

// Pieces of an item of `units` units.
KVB_DEVICE int pieces_of(int units, int choice) {
    const int each = 1 << choice;
    return units <= each + kMergeUnits ? 1 : (units + each - 1) >> choice;
}

// The start of the next item, after an item at `at` that costs `cost`.
KVB_DEVICE Cursor after(const DecodeArguments& args, const Cursor& at, int cost) {
    const bool lane_done = at.block + 1 == args.blocks;
    const int next = at.item + cost + kStartCost;
    return Cursor{next, next, at.lane + lane_done, lane_done ? 0 : at.block + 1};
}

// With kAppend the length includes the new tokens, if the segment has room for them.
template <bool kAppend>
KVB_DEVICE Lane load_lane(const DecodeArguments& args, int lane) {
    Lane found;
    found.segment = args.segment[lane];
    found.start = args.start[found.segment];
    found.length = args.length[found.segment];
    const int next = kAppend ? args.start[found.segment + 1] : 0;
    found.old_length = found.length;
    if (kAppend && found.length + args.tokens <= next - found.start) found.length += args.tokens;
    return found;
}

template <bool kAppend, typename Shared>
KVB_DEVICE void fill_window(const DecodeArguments& args, Shared& shared, int lane) {
    for (int i = static_cast<int>(threadIdx.x); i < kWindow && lane + i < args.lanes; i += kDecodeThreads)
        shared.window[i] = load_lane<kAppend>(args, lane + i);
    if (threadIdx.x == 0) shared.window_lane = lane;
}

// How many CTAs share the work if each gets the same number of whole items. `ctas`, if items do not cost the same or that
// takes longer than `ctas` even ranges and a merge. `warp_longest` has costs.
template <typename Shared>
KVB_DEVICE int ctas_of_whole_items(const DecodeArguments& args, const Shared& shared, int total, int ctas) {
    const int items = args.lanes * args.blocks, of_cta = divide_up(items, static_cast<int>(gridDim.x));
    int most = 0;
    for (int warp = 0; warp < kDecodeWarps; ++warp) most = max(most, shared.warp_longest[warp]);
    most += kStartCost;
    const bool fits = items % of_cta == 0 && int64_t{most} * items == total &&
                      of_cta * most <= divide_up(total, ctas) + kMergeUnits * kUnitCost;
    return fits ? items / of_cta : ctas;
}

// Set the cursor to this CTA's first unit. It ends with a barrier.
template <bool kAppend, typename Shared>
KVB_DEVICE void find_work(const DecodeArguments& args, Shared& shared) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane_of_warp = thread % 32;
    const int cta = static_cast<int>(blockIdx.x), grid = static_cast<int>(gridDim.x);
    const bool in_window = args.lanes <= kWindow;  // then the window has all lanes
    // Each thread has a run of neighbouring lanes. It counts their pieces, for each choice of a piece's size, and units.
    const int run = divide_up(args.lanes, kDecodeThreads), first = thread * run, last = min(first + run, args.lanes);
    int counts[kChoices + 1] = {}, longest = 0;
    constexpr int kTogether = kWindow / kDecodeThreads;  // lanes that are loaded at the same time
    for (int lane = first; lane < last; lane += kTogether) {
        Lane found[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) found[j] = load_lane<kAppend>(args, min(lane + j, last - 1));
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            if (lane + j >= last) continue;
            if (in_window) shared.window[lane + j] = found[j];
            const int units = units_of(found[j]);
            longest = max(longest, kWholeItems ? cost_of(found[j]) : units);
            counts[kChoices] += (cost_of(found[j]) + kStartCost) * args.blocks;
#pragma unroll
            for (int choice = 0; choice < kChoices; ++choice) counts[choice] += pieces_of(units, choice) * args.blocks;
        }
    }
    longest = __reduce_max_sync(kFullWarp, longest);
    if (lane_of_warp == 0) shared.warp_longest[warp] = longest;
#pragma unroll
    for (int choice = 0; choice <= kChoices; ++choice) {
        const int sum = __reduce_add_sync(kFullWarp, counts[choice]);
        if (lane_of_warp == choice) shared.warp_counts[warp][choice] = sum;
    }
    __syncthreads();
    // A lane of the warp for each choice: do all pieces fit into the grid, and those of the longest lane into one merge?
    bool fits = lane_of_warp < kChoices;
    if (fits) {
        int pieces = 0, most = 0;
        for (int other = 0; other < kDecodeWarps; ++other) {
            pieces += shared.warp_counts[other][lane_of_warp];
            most = max(most, shared.warp_longest[other]);
        }
        const int each = 1 << lane_of_warp;
        if (kWholeItems) most = divide_up(most, kUnitCost);
        fits = pieces <= grid && pieces_of(most, lane_of_warp) <= (each == 1 ? kSingleUnits : kMaxMerge);
    }
    const unsigned fitting = __ballot_sync(kFullWarp, fits);
    const int choice = fitting == 0 ? kChoices : __ffs(static_cast<int>(fitting)) - 1;
    int mine = counts[kChoices];  // pieces or costs of this thread's lanes
#pragma unroll
    for (int other = 0; other < kChoices; ++other) mine = choice == other ? counts[other] : mine;
    int total = 0, before = -mine;  // of all lanes, and of those before this thread's
    for (int other = 0; other < kDecodeWarps; ++other) {
        if (other < warp) before += shared.warp_counts[other][choice];
        total += shared.warp_counts[other][choice];
    }
    int up_to = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int others = __shfl_up_sync(kFullWarp, up_to, distance);
        if (lane_of_warp >= distance) up_to += others;
    }
    before += up_to;
    const bool split_evenly = choice == kChoices;
    int ctas = split_evenly ? min(grid, divide_up(total, kMinUnits * kUnitCost)) : total;
    if (kWholeItems && split_evenly) ctas = ctas_of_whole_items(args, shared, total, ctas);
    const int begin = cta >= ctas ? total : split_evenly ? range_begin(cta, total, ctas) : cta;
    if (thread == 0) {
        shared.total = total;
        shared.ctas = ctas;
        shared.window_lane = 0;
        if (split_evenly) shared.pieces = 0;
        if (split_evenly) shared.end = cta < ctas ? range_begin(cta + 1, total, ctas) : total;
        if (cta >= ctas) {  // nothing to do
            shared.cursor = Cursor{total, total, 0, 0};
            shared.end = total;
        }
    }
    if (begin >= before && begin < before + mine) {  // one thread's run contains it
        int lane = first, item = before, each = 0;
        Lane found;
        for (;; ++lane, item += each * args.blocks) {
            found = in_window ? shared.window[lane] : load_lane<kAppend>(args, lane);
            each = split_evenly ? cost_of(found) + kStartCost : pieces_of(units_of(found), choice);
            if (begin < item + each * args.blocks) break;
        }
        const int block = args.blocks == 1 ? 0 : (begin - item) / each;
        if (split_evenly) {
            const int first_of_item = item + block * each + kStartCost;
            const int unit = divide_up(max(begin - first_of_item, 0), kUnitCost);
            const Cursor at{first_of_item + unit * kUnitCost, first_of_item, lane, block};
            shared.cursor = unit < units_of(found) ? at : after(args, at, cost_of(found));
        } else {
            const int piece = begin - item - block * each, first_unit_of_piece = piece << choice;
            const int end = each == 1 ? units_of(found) : first_unit_of_piece + (1 << choice);
            shared.cursor = Cursor{first_unit_of_piece * kUnitCost, 0, lane, block};
            shared.end = min(end * kUnitCost, cost_of(found));
            shared.piece = piece;
            shared.pieces = each;
        }
    }
    __syncthreads();
    if (!in_window) {
        fill_window<kAppend>(args, shared, shared.cursor.lane);
        __syncthreads();
    }
}

// The lane at the cursor. `args` and the cursor are the same for all threads.
template <bool kAppend, typename Shared>
KVB_DEVICE Lane lane_at(const DecodeArguments& args, Shared& shared, int lane) {
    if (lane >= shared.window_lane + kWindow) {
        __syncthreads();  // no thread reads the old window any more
        fill_window<kAppend>(args, shared, lane);
        __syncthreads();
    }
    return shared.window[lane - shared.window_lane];
}

}  // namespace kvb
