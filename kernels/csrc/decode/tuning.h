// Ragged decode: sizes that were chosen by measurements on an H200, unless they say otherwise.
#pragma once

// Some choices can be set on the compiler's command line; perf/gpu/variants.py compiles and times some of their values.
// The first two depend on what runs before the kernel, and on how skewed the lengths are. The other three are new: no
// device has run them, so they are off. `scripts/gpu_suite --only tuning` times them and says which to turn on.

// Tiles of each warp that are fetched into the L2 cache while the previous kernel ends, after those that are loaded. With
// more than 2, what is fetched is more than the cache can hold.
#ifndef KVB_PREFETCHED_TILES
#define KVB_PREFETCHED_TILES 1
#endif

// Where all work is split evenly, the start of an item costs this many quarters of a unit.
#ifndef KVB_START_COST
#define KVB_START_COST 4
#endif

// 1: where all work is split evenly and all items cost the same, a CTA gets whole items, unless that takes longer than
// to split and to merge them.
#ifndef KVB_WHOLE_ITEMS
#define KVB_WHOLE_ITEMS 0
#endif

// 1: where a CTA begins a part of an item, each warp of a narrow kernel requests one more tile into the L2 cache. In a
// wide one, this takes more registers than there are.
#ifndef KVB_TILE_AHEAD
#define KVB_TILE_AHEAD 0
#endif

// Where all work is split evenly, up to this many pieces of an item are merged at once, more in two levels.
#ifndef KVB_ONE_MERGE
#define KVB_ONE_MERGE 32
#endif

namespace kvb {

constexpr int kPrefetchedTiles = KVB_PREFETCHED_TILES, kStartCost = KVB_START_COST, kOneMerge = KVB_ONE_MERGE;
constexpr bool kWholeItems = KVB_WHOLE_ITEMS != 0, kTileAhead = KVB_TILE_AHEAD != 0;

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

// kOneMerge of items of many columns, however the work is split: a piece of theirs is up to 8 times as large. Computed,
// not measured: a multiprocessor reads 8 such pieces in about the time of 64 small ones.
constexpr int kOneWideMerge = 8;

// Panels of 8 query columns that a warp of a wide kernel has, up to head dimension 128. Chosen by the registers.
constexpr int kWidePanels = 4;

// Loads in flight in a thread that merges. At head dimensions 64 and 256, registers are few.
template <int D> constexpr int kInFlight = D > 128 ? 8 : D > 64 ? 12 : 3;

}  // namespace kvb
