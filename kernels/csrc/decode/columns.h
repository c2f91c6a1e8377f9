// Ragged decode: the query columns of an item: their number, their queries, and the keys that they see.
#pragma once
#include "decode/types.h"
#include "primitives_more.h"

namespace kvb {

// The thread's number. Wide kernels have no registers left to keep what follows from it while they attend.
template <typename F>
KVB_DEVICE int thread_of() {
    return F::kWide ? thread_again() : static_cast<int>(threadIdx.x);
}

// Warps that have the same keys, as a power of 2.
template <typename F>
KVB_DEVICE int sharers_log2(const DecodeArguments& args) {
    return F::kWide ? args.sharers_log2 : 0;
}

// The columns of an item of this launch, except the last one of a lane, which may have fewer.
template <typename F>
KVB_DEVICE int item_columns(const DecodeArguments& args) {
    return F::kOwn << sharers_log2<F>(args);
}

// The query row of a column of the item, an operand of the first product; null if there is none.
template <typename F>
KVB_DEVICE const uint16_t* query_row(const DecodeArguments& args, const Cursor& at, int column) {
    const int index = at.block * item_columns<F>(args) + column;
    if (index >= args.columns) return nullptr;
    const int batch = args.kv_heads.quotient(at.lane), token = args.group.quotient(index);
    const int head = (at.lane - batch * args.kv_heads.by) * args.group.by + index - token * args.group.by;
    return args.q + batch * args.q_stride.b + head * args.q_stride.h + token * args.q_stride.t;
}

// A column of an item sees the lane's slots before this one; a later column sees no fewer.
template <typename F>
KVB_DEVICE int sees(const DecodeArguments& args, const Lane& lane, int block, int column) {
    const int token = args.group.quotient(min(block * item_columns<F>(args) + column, args.columns - 1));
    return lane.length - args.tokens + token + 1;
}

// The same as a slot of the buffers.
template <typename F>
KVB_DEVICE int seen_end(const DecodeArguments& args, const Cursor& at, const Lane& lane, int column) {
    return lane.start + sees<F>(args, lane, at.block, column);
}

}  // namespace kvb
