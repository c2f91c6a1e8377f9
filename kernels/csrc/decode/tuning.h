// Ragged decode: sizes that were chosen by measurements on an H200.
#pragma once

// Two choices are open: at some skewed lengths another value may be faster. They can be set on the compiler's command
// line; perf/gpu/variants.py compiles and times some values.

// Most units of a piece with which whole lanes are split one piece to a CTA, instead of all work being split evenly; 0
// to split evenly always. See decode/partition.h.
#ifndef KVB_PIECE_UNITS
#define KVB_PIECE_UNITS 8
#endif

// Most pieces of a lane that consist of one unit. With more, the merge takes longer than a second unit of each piece.
#ifndef KVB_SINGLE_UNITS
#define KVB_SINGLE_UNITS 16
#endif

namespace kvb {

// A lane of this many units more than a piece stays whole: merging pieces takes about as long as reading these units.
constexpr int kMergeUnits = 2;

// Where all work is split evenly, up to this many pieces of an item are merged at once, more in two levels.
constexpr int kOneMerge = 16;

// Loads in flight in a thread that merges. At head dimension 64, registers are few.
template <int D> constexpr int kInFlight = D > 64 ? 12 : 8;

}  // namespace kvb
