// Ragged decode: sizes that were chosen by measurements on an H200. Every macro can be set on the compiler's command line;
// perf/gpu/variants.py compiles and times some combinations.
#pragma once

// Most units of a piece with which whole lanes are split one piece to a CTA, instead of all work being split evenly; 0
// to split evenly always. See decode/partition.h.
#ifndef KVB_PIECE_UNITS
#define KVB_PIECE_UNITS 8
#endif

// A lane of this many units more than a piece stays whole: merging pieces takes about as long as reading these units.
#ifndef KVB_MERGE_UNITS
#define KVB_MERGE_UNITS 2
#endif

// Most pieces of a lane that consist of one unit. With more, the merge takes longer than a second unit of each piece.
#ifndef KVB_SINGLE_UNITS
#define KVB_SINGLE_UNITS 16
#endif

// Where all work is split evenly, up to this many pieces of an item are merged at once, more in two levels. At most 64.
#ifndef KVB_ONE_MERGE
#define KVB_ONE_MERGE 16
#endif

// Loads in flight in a thread that merges; 8 at head dimension 64, where registers are few.
#ifndef KVB_IN_FLIGHT
#define KVB_IN_FLIGHT 12
#endif
