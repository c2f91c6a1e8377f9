// Ragged decode: choices that only a measurement can settle. Every macro can be set on the compiler's command line;
// perf/gpu/variants.py compiles and times some combinations. What is written here is what ships.
#pragma once

// Start before the previous kernel of the stream has ended, and wait for it on the device (from compute capability 9.0
// on). The wait comes before the first access to memory, so only the launch itself overlaps.
#ifndef KVB_EARLY_LAUNCH
#define KVB_EARLY_LAUNCH 1
#endif

// Most units of a piece with which whole lanes are split one piece to a CTA, instead of all work being split evenly; 0
// to split evenly always. See decode/partition.h.
#ifndef KVB_PIECE_UNITS
#define KVB_PIECE_UNITS 8
#endif

// Fewest units of such a piece.
#ifndef KVB_FEWEST_UNITS
#define KVB_FEWEST_UNITS 1
#endif

// A lane of this many units more than a piece stays whole: merging pieces takes about as long as reading these units.
#ifndef KVB_MERGE_UNITS
#define KVB_MERGE_UNITS 3
#endif

// Up to this many pieces of an item are merged at once, more in two levels. At most 64.
#ifndef KVB_ONE_MERGE
#define KVB_ONE_MERGE 64
#endif

// Loads in flight in a thread that merges; 8 at head dimension 64, where registers are few.
#ifndef KVB_IN_FLIGHT
#define KVB_IN_FLIGHT 12
#endif

// Acquire-release atomics between CTAs; 0: relaxed ones between two full fences.
#ifndef KVB_ACQUIRE_RELEASE
#define KVB_ACQUIRE_RELEASE 1
#endif

// A CTA that appends tells the others that it has read the lengths as soon as it has; 0: when its work is done.
#ifndef KVB_EARLY_ARRIVAL
#define KVB_EARLY_ARRIVAL 1
#endif

// Load the start and length of segment n for lane n while its true segment is not known yet.
#ifndef KVB_GUESS_SEGMENT
#define KVB_GUESS_SEGMENT 1
#endif
