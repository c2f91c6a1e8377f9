// Ragged decode: what a CTA loads before it can attend to its part of an item: the first tile, and the queries.
#pragma once
#include "decode/attend.h"

namespace kvb {

template <bool kAppend>
KVB_DEVICE Fresh fresh_rows(const DecodeArguments& args, const Cursor& at, const Lane& lane) {
    if (!kAppend) return Fresh{nullptr, nullptr, 0, false};
    const int batch = args.kv_heads.quotient(at.lane), head = at.lane - batch * args.kv_heads.by;
    const bool writes = at.block == args.blocks - 1;  // the last token's block sees every new row, so it reads them all
    return Fresh{args.k_new + batch * args.k_stride.b + head * args.k_stride.h,
                 args.v_new + batch * args.v_stride.b + head * args.v_stride.h, lane.start + lane.old_length, writes};
}

// The end of the units of the item at `at` that begin before `end`, counted from the item's first.
KVB_DEVICE int last_unit(const Cursor& at, const Lane& lane, int end) {
    return min(divide_up(end - at.item, kUnitCost), units_of(lane));
}

// The slots of a lane that the CTA's part at `at` reads: the first of them, and the end.
template <typename F>
KVB_DEVICE int2 part_slots(const DecodeArguments& args, const Cursor& at, const Lane& lane, int end) {
    const int last = item_columns<F>(args) - 1;
    return make_int2(lane.start + (at.unit - at.item) / kUnitCost * kUnit,
                     lane.start + min(sees<F>(args, lane, at.block, last), last_unit(at, lane, end) * kUnit));
}

// `q_row` is the query of this thread's column; null if there is none.
template <typename T, typename F, bool kAppend>
KVB_DEVICE void load_query(const uint16_t* q_row, DecodeShared<F>& shared, Attention<T, F, kAppend>& attention) {
#pragma unroll
    for (int chunk = 0; chunk < F::kChunks; ++chunk) {
        if (F::kQueryIsShared && static_cast<int>(threadIdx.x) / 32 != chunk % kDecodeWarps) continue;
        uint4 loaded = make_uint4(0, 0, 0, 0);
        if (q_row != nullptr && attention.rows.has_chunk(chunk))
            loaded = load_written(q_row + 32 * chunk + 8 * thread_column());
        if (F::kQueryIsShared) shared.query[chunk][threadIdx.x % 32] = loaded;
        else attention.query[chunk] = loaded;
    }
    if (F::kQueryIsShared) __syncthreads();
}

// Load the first tile and the query of the item's part in slots begin .. end - 1. All threads of the CTA call it.
// `waits`: the previous kernel of the stream may still run. It writes no rows that are in the buffers already, so these
// are loaded before it ends; the query and new rows are not.
template <typename T, typename F, bool kAppend>
KVB_DEVICE void start_narrow(const DecodeArguments& args, DecodeShared<F>& shared,
                             Attention<T, F, kAppend>& attention, const Cursor& at, const Lane& lane, int part_end,
                             bool waits) {
    const int2 slots = part_slots<F>(args, at, lane, part_end);
    const int begin = slots.x, end = slots.y;
    const Fresh fresh = fresh_rows<kAppend>(args, at, lane);
    const uint16_t* q_row = query_row<F>(args, at, thread_row());
    auto& rows = attention.rows;
    const int tile = attention.first_tile(args, begin);
    const bool old = tile < end && (!kAppend || min(tile + kTile, end) <= fresh.slot);
    const int in_buffers = kAppend ? min(end, fresh.slot) : end;
    if (waits) {
        if (old) rows.load_keys(args, fresh, tile, end);
        if (old) rows.load_values(args, fresh, tile, end);
        for (int i = 1; i <= kPrefetchedTiles; ++i) rows.prefetch_tile(args, tile + i * kUnit, in_buffers);
        wait_for_previous_kernel();
    }
    if (tile < end && !(waits && old)) rows.load_keys(args, fresh, tile, end);
    if (kTileAhead) rows.prefetch_tile(args, tile + (waits ? kPrefetchedTiles + 1 : 1) * kUnit, in_buffers);
    load_query(q_row, shared, attention);
    if (tile < end && !(waits && old)) rows.load_values(args, fresh, tile, end);
}

// The queries of several panels, from loading them to storing them for all warps.
template <typename F>
struct Queries {
    static constexpr int kLoads = divide_up(DecodeShared<F>::kQueries, kDecodeWarps);
    uint4 loaded[kLoads];

    KVB_DEVICE void load(const DecodeArguments& args, const Cursor& at) {
        const int thread = thread_again();
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int index = thread / 32 + i * kDecodeWarps;
            const int panel = index / F::kChunks, dim = index % F::kChunks * 32 + thread % 4 * 8;
            loaded[i] = make_uint4(0, 0, 0, 0);
            if (panel * kColumns >= item_columns<F>(args) || dim >= F::D) continue;
            const uint16_t* q_row = query_row<F>(args, at, panel * kColumns + thread % 32 / 4);
            if (q_row != nullptr) loaded[i] = load_written(q_row + dim);
        }
    }

    KVB_DEVICE void store(DecodeShared<F>& shared) const {
        const int thread = thread_again();
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int index = thread / 32 + i * kDecodeWarps;
            if (index < DecodeShared<F>::kQueries) shared.query[index][thread % 32] = loaded[i];
        }
        __syncthreads();
    }
};

// The same for several panels. New rows are written first, and then read from the buffers as all others are: to choose
// between two places for every row takes more registers than there are. CTAs that read the same new rows write the same
// bytes. All of them are read, since the last token's item sees them.
template <typename T, typename F, bool kAppend>
KVB_DEVICE void start_wide(const DecodeArguments& args, DecodeShared<F>& shared, Attention<T, F, kAppend>& attention,
                           const Cursor& at, const Lane& lane, int part_end, bool waits) {
    const int2 slots = part_slots<F>(args, at, lane, part_end);
    const int begin = slots.x, end = slots.y;
    const Fresh fresh = fresh_rows<kAppend>(args, at, lane);
    if (threadIdx.x == 0) shared.now = Now{at, lane};
    auto& rows = attention.rows;
    const int tile = attention.first_tile(args, begin);
    const bool old = tile < end && (!kAppend || min(tile + kTile, end) <= fresh.slot);
    if (old && waits) rows.load_both(args, fresh, tile, end);
    if (waits) {
        const int in_buffers = kAppend ? min(end, fresh.slot) : end;
        for (int i = 1; i <= kPrefetchedTiles; ++i)
            rows.prefetch_tile(args, tile + i * attention.stride(args), in_buffers);
        wait_for_previous_kernel();
    }
    Queries<F> queries;
    queries.load(args, at);
    if (old && !waits) rows.load_both(args, fresh, tile, end);
    if (kAppend && end > fresh.slot) {
        copy_new_rows<F::D>(args, fresh, begin, end);
        __syncthreads();  // the new rows are in the buffers
        if (tile < end && !old) rows.load_both(args, fresh, tile, end);
    }
    queries.store(shared);
}

}  // namespace kvb
