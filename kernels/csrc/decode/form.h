// Ragged decode: how many query columns share what is read of a tile of keys.
#pragma once
#include "common.h"
#include "decode/tuning.h"

namespace kvb {

constexpr int kColumns = 8;  // query columns (token, head of the group) of a panel: the columns of an mma

// A narrow kernel treats one panel at a time, a wide one several: a warp has up to `kPanels` of them in its registers. At
// head dimension 256 a second one does not fit. Besides, 2^log2 warps, the sharers, can have the same keys, each for
// panels of its own: the first to load a row leaves it in the L1 cache. The host chooses how many sharers a launch has;
// with more than the most, too few different bytes would be in flight.
template <int kDim, bool kIsWide>
struct Form {
    static constexpr int D = kDim;
    static constexpr bool kWide = kIsWide;
    static constexpr int kPanels = !kWide || D > 128 ? 1 : kWidePanels;
    static constexpr int kMostSharersLog2 = !kWide ? 0 : D > 128 ? 2 : 1;
    static constexpr int kOwn = kColumns * kPanels;           // columns of a warp
    static constexpr int kMost = kOwn << kMostSharersLog2;    // most columns of an item
    static constexpr int kChunks = (D + 31) / 32;             // see decode/attend.h
    static constexpr bool kQueryIsShared = kWide || D > 128;  // queries are in shared memory, not in registers

    // A piece in the workspace: the unnormalised output [kMost][D], then (reference exponent, sum) per column; floats.
    static constexpr int kSlotFloats = kMost * D + 2 * kMost;
};

// Floats of a slot that suffice for any number of query columns.
constexpr int most_slot_floats(int dim) {
    const int columns = dim > 128 ? Form<256, true>::kMost : Form<128, true>::kMost;
    return columns * dim + 2 * columns;
}

}  // namespace kvb
