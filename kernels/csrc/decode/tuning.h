// Ragged decode: sizes that were chosen by measurements on an H200, unless they say otherwise.
#pragma once

// Two choices are open: they depend on what runs before the kernel, and on how skewed the lengths are. They can be set
// on the compiler's command line; perf/gpu/variants.py compiles and times some values.

// Tiles of each warp that are fetched into the L2 cache while the previous kernel ends, after those that are loaded. With
// more than 2, what is fetched is more than the cache can hold.
#ifndef KVB_PREFETCHED_TILES
#define KVB_PREFETCHED_TILES 1
#endif

// Where all work is split evenly, the start of an item costs this many quarters of a unit.
#ifndef KVB_START_COST
#define KVB_START_COST 4
#endif

namespace kvb {

constexpr int kPrefetchedTiles = KVB_PREFETCHED_TILES, kStartCost = KVB_START_COST;

// Warps of a CTA. At large head dimensions there is one CTA on a multiprocessor: its pieces are as large, and as few, as
// they can be, wherever the device places it. 64 KB of loads are in flight then, twice of what the memory needs.
constexpr int kDecodeWarps = 8, kDecodeThreads = 32 * kDecodeWarps;

// Most units of a piece with which whole lanes are split one piece to a CTA, instead of all work being split evenly. See
// decode/partition.h.
constexpr int kPieceUnits = 8;

// Most pieces of a lane that consist of one unit. With more, the merge takes longer than a second unit of each piece.
constexpr int kSingleUnits = 16;

// A lane of this many units more than a piece stays whole: merging pieces takes about as long as reading these units.
constexpr int kMergeUnits = 2;

// Where all work is split evenly, up to this many pieces of an item are merged at once, more in two levels.
constexpr int kOneMerge = 32;

// The same for items of many columns, however the work is split: a piece of theirs is up to 8 times as large. Computed,
// not measured: a multiprocessor reads 8 such pieces in about the time of 64 small ones.
constexpr int kOneWideMerge = 8;

// Panels of 8 query columns that a warp of a wide kernel has, up to head dimension 128. Chosen by the registers.
constexpr int kWidePanels = 4;

// Loads in flight in a thread that merges. At head dimensions 64 and 256, registers are few.
template <int D> constexpr int kInFlight = D > 128 ? 8 : D > 64 ? 12 : 3;

}  // namespace kvb
