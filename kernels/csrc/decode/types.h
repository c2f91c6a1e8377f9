// Ragged decode: sizes, arguments, and what a CTA keeps in shared memory. See decode.cu for the whole picture.
#pragma once
#include "primitives.h"

namespace kvb {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kTile = 16;              // keys a warp takes at once: the rows of an mma
constexpr int kUnit = kTile * kWarps;  // keys a CTA takes at once: what work is counted in
constexpr int kColumns = 8;            // query columns (token, head of the group) side by side: the columns of an mma
constexpr int kMinUnits = 2;           // fewer are not worth a CTA of their own: merging costs about as much
constexpr int kMaxCtas = 2048;
constexpr int kInFlight = 8;     // loads of a thread that merges
constexpr int kSmallMerge = 16;  // up to so many pieces of an item are merged at once, more in two levels
constexpr int kMaxMerge = 48;    // pieces in one merge: above the square root of kMaxCtas
constexpr float kNothing = -1e30f;  // a maximum over no keys; finite, so that no difference is NaN

// Counters in front of the workspace, all zero between launches: arrivals at a group of pieces (by its first slot), at
// an item (by its first CTA), and of CTAs at the end of the launch.
constexpr int kGroupCounters = 0, kItemCounters = 2 * kMaxCtas, kGridCounter = 3 * kMaxCtas;
constexpr int64_t kCounterBytes = (int64_t{3} * kMaxCtas + 1) * 4 / 128 * 128 + 128;

// A piece in the workspace: the unnormalised output [kColumns][D], then (reference exponent, sum) per column; floats.
constexpr int slot_floats(int dim) { return kColumns * dim + 2 * kColumns; }

struct Strides {
    int64_t b, h, t;  // in elements; of the head dimension: 1
};

// Elements are moved as bits; only arithmetic knows which 16-bit float they are.
struct DecodeArguments {
    const uint16_t* q;  // [B, H, T, D]
    const uint16_t* k_new;  // [B, U, T, D], as v_new: to be appended; null in a plain decode
    const uint16_t* v_new;
    uint16_t* k;  // [R, D]
    uint16_t* v;
    uint16_t* out;  // [B, H, T, D]
    Strides q_stride, k_stride, v_stride, out_stride;
    const int32_t* start;  // [S + 1]
    int32_t* length;       // [S]
    const int32_t* segment;  // [N]
    float* lse;              // [B, H, T] contiguous, or null
    int* counters;
    float* pieces;
    int32_t* status;
    float scale_log2;  // scaling * log2(e): exponents are of 2
    int lanes, kv_heads, group, tokens;
    int columns, blocks;  // tokens * group, and that in blocks of kColumns
};

// A lane's segment: slots before `old_length` are in the buffers, those up to `length` are to be appended.
struct Lane {
    int segment, start, old_length, length;
};

// Where a CTA is. An item is a (lane, block of columns) with all the lane's units; items follow one another.
struct Cursor {
    int unit;  // next unit, counted over all items
    int item;  // first unit of the item it lies in
    int lane, block;
};

// Where registers are short the query is in shared memory, as the operands of a warp's lanes.
template <int D> constexpr int kSharedQueryChunks = D > 128 ? D / 32 : 0;

template <int D>
struct DecodeShared {
    static constexpr int kRow = (D + 63) / 64 * 64 + 4;  // padded against bank conflicts
    float o[kWarps][kColumns][kRow];
    uint4 query[kSharedQueryChunks<D> + 1][32];  // the last one is never used: no array is empty
    float m[kWarps][kColumns], l[kWarps][kColumns];
    float merge_m[kMaxMerge][kColumns], merge_l[kMaxMerge][kColumns];
    Lane window[kThreads];  // lanes from window_lane on
    int window_lane;
    Cursor cursor;
    int end;          // the CTA's units end here
    int total, ctas;  // units in all, CTAs that share them
    int warp_units[kWarps];
    int last;
};

KVB_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }

// Units of a lane in each of its items; one at least, so that a lane that sees nothing has somebody to write its zeros.
KVB_DEVICE int units_of(const Lane& lane) { return max(1, divide_up(lane.length, kUnit)); }

}  // namespace kvb
