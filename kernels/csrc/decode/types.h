// Ragged decode: sizes, arguments, and the shared memory of a CTA. decode.cu has the overview.
#pragma once
#include "decode/form.h"

namespace kvb {

constexpr int kTile = 16;              // keys that a warp processes at once: the rows of an mma
constexpr int kUnit = kTile * kDecodeWarps;  // keys that a CTA processes at once: the unit of work
constexpr int kUnitCost = 4;  // the cost of a unit; work is split evenly by costs, between units
constexpr int kMinUnits = 2;           // fewer units are not worth a CTA: merging costs about as much
constexpr int kMaxCtas = 2048;
constexpr int kWindow = 256;  // lanes whose segments a CTA holds in shared memory
constexpr int kMaxMerge = 64;  // pieces in one merge: more than the square root of kMaxCtas
static_assert(kOneMerge <= kMaxMerge && kMaxMerge * kMaxMerge >= kMaxCtas);

// Counters at the beginning of the workspace, all zero between launches. They count arrivals at a group of pieces (by
// its first slot), at an item (by its first CTA), and of CTAs at the end of the launch.
constexpr int kGroupCounters = 0, kItemCounters = 2 * kMaxCtas, kGridCounter = 3 * kMaxCtas;
constexpr int64_t kCounterBytes = (int64_t{3} * kMaxCtas + 1) * 4 / 128 * 128 + 128;

// Choices of the size of a piece: choice n means 2^n units.
constexpr int kChoices = 4;
static_assert(1 << (kChoices - 1) == kPieceUnits);

// The grid counter counts CTAs in its low bits, and adds up their launch's number in the others. If two launches use
// a workspace at the same time, the sum may be wrong: it is if their arrivals mix.
constexpr int kCountBits = 12;
constexpr unsigned kCountMask = (1u << kCountBits) - 1, kLaunchMask = (1u << (32 - kCountBits)) - 1;
constexpr int kOverlap = -1;  // the status that says so
static_assert(kMaxCtas <= kCountMask);

struct Strides {
    int64_t b, h, t;  // in elements; of the head dimension: 1
};

// What a launch gets. Elements are moved as bits; only arithmetic depends on the 16-bit type.
struct DecodeArguments {
    const uint16_t* q;      // [B, H, T, D]
    const uint16_t* k_new;  // [B, U, T, D], like v_new: rows to append; null if nothing is appended
    const uint16_t* v_new;
    uint16_t* k;    // [R, D]
    uint16_t* v;    // [R, D]
    uint16_t* out;  // [B, H, T, D]
    Strides q_stride, k_stride, v_stride, out_stride;  // of k_new and v_new: k_stride, v_stride
    const int32_t* start;    // [S + 1], first slot of each segment
    int32_t* length;         // [S], live slots of each segment
    const int32_t* segment;  // [N], segment of each lane
    float* lse;              // [B, H, T] contiguous, or null
    int* counters;           // of the workspace: kCounterBytes bytes
    float* pieces;           // of the workspace: Form::kSlotFloats floats a slot, two slots a CTA
    int32_t* status;         // [1]; only if something is appended
    float scale_log2;        // scaling * log2(e): exponentials are powers of 2
    unsigned launch;         // number of the launch
    Divisor kv_heads, group;  // KV heads, and query heads per KV head
    bool settled;             // see calls.h
    int lanes, tokens;        // B * U, and T
    int columns, blocks;      // tokens * group, and the items that a lane's columns are split into
    int sharers_log2;         // of a wide kernel: the warps that share a tile
};

// A lane's segment: slots before `old_length` are in the buffers; those from there to `length` are being appended.
struct Lane {
    int segment, start, old_length, length;
};

// Position of a CTA in the work. An item is a (lane, block of panels) with all the lane's units.
struct Cursor {
    int unit;  // where the next unit begins, in costs of all units and items before it
    int item;  // where the first unit of its item begins
    int lane, block;
};

// New keys and values, which are not in the buffers yet. Slots count from the start of the buffers.
struct Fresh {
    const uint16_t* k;  // row of the first new token; null without appending
    const uint16_t* v;
    int slot;     // slot of the first new token
    bool writes;  // this CTA writes the rows that it reads into their slots
};

// A CTA's part of an item. Wide kernels keep it in shared memory while they attend, since they have few registers then.
struct Now {
    Cursor at;
    Lane lane;
};

template <typename F>
struct DecodeShared {
    static constexpr int kRow = (F::D + 63) / 64 * 64 + 4;  // padded against bank conflicts
    static constexpr int kQueries = F::kQueryIsShared ? (F::kMost / kColumns) * F::kChunks : 0;
    struct Merged {  // when the warps' results have been read
        float4 shares[kDecodeThreads];
        float m[kMaxMerge][F::kMost], l[kMaxMerge][F::kMost];
    };
    union {
        float o[kDecodeWarps][F::kOwn][kRow];
        Merged merged;
    };
    // Queries as the operands of a warp's lanes, [panel][chunk]. The last element is never used, it keeps the array from
    // being empty.
    uint4 query[kQueries + 1][32];
    float m[kDecodeWarps][F::kOwn], l[kDecodeWarps][F::kOwn];
    Lane window[kWindow];  // lanes from window_lane on
    int window_lane;
    Now now;
    Cursor cursor;
    int end;            // the units that begin before it are the CTA's
    int total, ctas;    // all costs, and the CTAs that share them
    int piece, pieces;  // the CTA's piece of its item, and their number; 0 if all work is split evenly
    int warp_counts[kDecodeWarps][kChoices + 1];  // pieces for each choice of their size, then units
    int warp_longest[kDecodeWarps];  // units of the longest lane; its cost with kWholeItems
    int last;
    unsigned before;  // see advance_lengths
};

// Units of a lane in each of its items; at least 1, so that some CTA writes the zeros of a lane that sees nothing.
KVB_DEVICE int units_of(const Lane& lane) { return max(1, divide_up(lane.length, kUnit)); }

// What an item costs, without its start: the last unit costs as much of a unit as it has keys.
KVB_DEVICE int cost_of(const Lane& lane) { return max(1, divide_up(lane.length, kUnit / kUnitCost)); }

}  // namespace kvb
