// Ragged decode: the rows of a tile of keys and values, in the registers of a warp. attend.h says which thread has which.
#pragma once
#include "decode/types.h"
#include "primitives_more.h"

namespace kvb {

KVB_DEVICE int thread_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }
KVB_DEVICE int thread_column() { return static_cast<int>(threadIdx.x) % 4; }

// Write the new rows among slots begin .. end - 1 to the buffers. All threads of the CTA call it.
template <int D>
KVB_DEVICE void copy_new_rows(const DecodeArguments& args, const Fresh& fresh, int begin, int end) {
    constexpr int kSteps = D / 8;  // of 16 bytes
    const int first = max(begin, fresh.slot), steps = (end - first) * kSteps;
    for (int i = thread_again(); i < steps; i += kDecodeThreads) {
        const int row = i / kSteps, dim = i % kSteps * 8, of_new = first - fresh.slot + row;
        const int64_t at = static_cast<int64_t>(first + row) * D + dim;
        store16(args.k + at, load_written(fresh.k + of_new * args.k_stride.t + dim));
        store16(args.v + at, load_written(fresh.v + of_new * args.v_stride.t + dim));
    }
}

template <int D, bool kAppend, bool kWide>
struct Rows {
    static constexpr int kChunks = (D + 31) / 32, kBlocks = (D + 63) / 64;

    uint4 keys[2][kChunks];
    uint4 values[4][kBlocks];

    // True if this thread's 8 dims exist in the last, incomplete chunk or block.
    static KVB_DEVICE bool has_chunk(int chunk) { return D % 32 == 0 || 32 * chunk + 8 * thread_column() < D; }
    static KVB_DEVICE bool has_block(int block) { return D % 64 == 0 || 64 * block + 8 * thread_row() < D; }

    // Warps of a wide kernel may have the same rows, so the first to load one leaves it in the L1 cache.
    static KVB_DEVICE uint4 load(const uint16_t* address) {
        return kWide ? load_written_near(address) : load_written(address);
    }

    KVB_DEVICE void load_keys(const DecodeArguments& args, const Fresh& fresh, int tile, int end) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int slot = min(tile + thread_row() + 8 * half, end - 1);
            const uint16_t* k_row = args.k + static_cast<int64_t>(slot) * D;
            if (kAppend && !kWide && slot >= fresh.slot) k_row = fresh.k + (slot - fresh.slot) * args.k_stride.t;
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                if (has_chunk(chunk)) keys[half][chunk] = load(k_row + 32 * chunk + 8 * thread_column());
                else keys[half][chunk] = make_uint4(0, 0, 0, 0);
            }
        }
    }

    // Fetch a tile's keys and values into the L2 cache, up to slot `end`.
    static KVB_DEVICE void prefetch_tile(const DecodeArguments& args, int tile, int end) {
        const int bytes = 2 * D * (min(tile + kTile, end) - tile);
        for (int byte = static_cast<int>(threadIdx.x) % 32 * 128; byte < bytes; byte += 32 * 128) {
            const int64_t at = static_cast<int64_t>(tile) * D + byte / 2;
            prefetch_to_l2(args.k + at);
            prefetch_to_l2(args.v + at);
        }
    }

    static KVB_DEVICE int value_key(int i) { return 2 * thread_column() + i % 2 + 8 * (i / 2); }

    // Keys that no column sees have probability 0, but 0 * NaN is NaN. So their rows are read from the last live slot.
    KVB_DEVICE void load_values(const DecodeArguments& args, const Fresh& fresh, int tile, int end) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int slot = min(tile + value_key(i), end - 1);
            const uint16_t* v_row = args.v + static_cast<int64_t>(slot) * D;
            if (kAppend && !kWide && slot >= fresh.slot) v_row = fresh.v + (slot - fresh.slot) * args.v_stride.t;
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                if (has_block(block)) values[i][block] = load(v_row + 64 * block + 8 * thread_row());
                else values[i][block] = make_uint4(0, 0, 0, 0);
            }
        }
    }

    KVB_DEVICE void load_both(const DecodeArguments& args, const Fresh& fresh, int tile, int end) {
        load_keys(args, fresh, tile, end);
        load_values(args, fresh, tile, end);
    }

    KVB_DEVICE void write_new_keys(uint16_t* buffer, int first_new, int tile, int end) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int slot = tile + thread_row() + 8 * half;
            if (slot < first_new || slot >= end) continue;
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk)
                if (has_chunk(chunk))
                    store16(buffer + static_cast<int64_t>(slot) * D + 32 * chunk + 8 * thread_column(),
                            keys[half][chunk]);
        }
    }

    KVB_DEVICE void write_new_values(uint16_t* buffer, int first_new, int tile, int end) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int slot = tile + value_key(i);
            if (slot < first_new || slot >= end) continue;
#pragma unroll
            for (int block = 0; block < kBlocks; ++block)
                if (has_block(block))
                    store16(buffer + static_cast<int64_t>(slot) * D + 64 * block + 8 * thread_row(),
                            values[i][block]);
        }
    }
};

}  // namespace kvb
