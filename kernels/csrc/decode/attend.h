// Ragged decode: attention of 8 query columns over a range of a lane's keys, by eight warps, 16 keys each.
//
// Both products put keys or dims in the 16 rows and query columns in the 8 columns of the mma: S^T = K Q^T and O^T =
// V^T P^T. The order of the terms of a sum is free. So the contraction over D takes the dims in the order in which
// 16-byte loads deliver them (the same for K and Q), and the rows of O^T are dims in that order too. K and V therefore
// go from global memory straight into fragments, without shared memory.
//
// With r = lane / 4 and c = lane % 4 of a thread, [chunk] of 32 dims and [block] of 64 dims:
//   keys[half][chunk]   key r + 8 half, dims 32 chunk + 8 c .. + 7   (A of the first product)
//   query[chunk]        column r, the same dims                      (B of it); in shared memory for large D
//   score[0..3]         key r: columns 2c, 2c + 1; key r + 8: the same (C of it)
//   values[i][block]    key 2c + i % 2 + 8 (i / 2), dims 64 block + 8 r .. + 7 (paired into A of the second product)
//   acc[4 block + j]    dim 64 block + 8 r + 2j: columns 2c, 2c + 1; the next dim: the same (C of it)
#pragma once
#include "decode/types.h"
#include "primitives_more.h"

namespace kvb {

// Probabilities are 2^(score - m). m is not the maximum but a reference that follows it: it moves only when a score
// exceeds it by 2^(kLead + kLazy), so that rescaling is rare. fp16 needs probabilities well above its smallest numbers.
constexpr float kLazy = 8.f;
template <typename T> constexpr float kLead = 0.f;
template <> constexpr float kLead<fp16> = 6.f;

// New keys and values, which are not in the buffers yet. Slots count from the start of the buffers.
struct Fresh {
    const uint16_t* k;  // row of the first new token; null without appending
    const uint16_t* v;
    int slot;     // slot of the first new token
    bool writes;  // this CTA writes the rows that it reads into their slots
};

template <typename T, int D, bool kAppend>
struct Attention {
    static constexpr int kChunks = (D + 31) / 32, kBlocks = (D + 63) / 64;

    static constexpr bool kQueryIsShared = kSharedQueryChunks<D> > 0;

    uint4 query[kQueryIsShared ? 1 : kChunks];
    float acc[4 * kBlocks][4];
    float m0, m1, l0, l1;  // for columns 2c and 2c + 1; until `finish`, l is the sum over this thread's keys
    uint4 keys[2][kChunks];
    uint4 values[4][kBlocks];

    static KVB_DEVICE int thread_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    static KVB_DEVICE int thread_column() { return static_cast<int>(threadIdx.x) % 4; }

    // True if this thread's 8 dims exist in the last, incomplete chunk or block.
    static KVB_DEVICE bool has_chunk(int chunk) { return D % 32 == 0 || 32 * chunk + 8 * thread_column() < D; }
    static KVB_DEVICE bool has_block(int block) { return D % 64 == 0 || 64 * block + 8 * thread_row() < D; }

    KVB_DEVICE void reset() {
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) acc[i][j] = 0.f;
        m0 = m1 = kNothing;
        l0 = l1 = 0.f;
    }

    // `q_row` is the query of this thread's column; null if there is none. All threads of the CTA call it.
    KVB_DEVICE void load_query(const uint16_t* q_row, DecodeShared<D>& shared) {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            if (kQueryIsShared && static_cast<int>(threadIdx.x) / 32 != chunk % kDecodeWarps) continue;
            uint4 loaded = make_uint4(0, 0, 0, 0);
            if (q_row != nullptr && has_chunk(chunk)) loaded = load_written(q_row + 32 * chunk + 8 * thread_column());
            if (kQueryIsShared) shared.query[chunk][threadIdx.x % 32] = loaded;
            else query[chunk] = loaded;
        }
        if (kQueryIsShared) __syncthreads();
    }

    KVB_DEVICE void load_keys(const DecodeArguments& args, const Fresh& fresh, int tile, int end) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int slot = min(tile + thread_row() + 8 * half, end - 1);
            const uint16_t* k_row = args.k + static_cast<int64_t>(slot) * D;
            if (kAppend && slot >= fresh.slot) k_row = fresh.k + (slot - fresh.slot) * args.k_stride.t;
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                if (has_chunk(chunk)) keys[half][chunk] = load_written(k_row + 32 * chunk + 8 * thread_column());
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

    KVB_DEVICE int value_key(int i) const { return 2 * thread_column() + i % 2 + 8 * (i / 2); }

    // Keys that no column sees have probability 0, but 0 * NaN is NaN. So their rows are read from the last live slot.
    KVB_DEVICE void load_values(const DecodeArguments& args, const Fresh& fresh, int tile, int end) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int slot = min(tile + value_key(i), end - 1);
            const uint16_t* v_row = args.v + static_cast<int64_t>(slot) * D;
            if (kAppend && slot >= fresh.slot) v_row = fresh.v + (slot - fresh.slot) * args.v_stride.t;
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                if (has_block(block)) values[i][block] = load_written(v_row + 64 * block + 8 * thread_row());
                else values[i][block] = make_uint4(0, 0, 0, 0);
            }
        }
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

    // Load the first tile of slots begin .. end - 1 and the query. All threads of the CTA call it, with the same range.
    // `waits`: the previous kernel of the stream may still run. It writes no rows that are in the buffers already, so
    // these are loaded before it ends; the query and new rows are not.
    KVB_DEVICE void start(const DecodeArguments& args, const Fresh& fresh, const uint16_t* q_row,
                          DecodeShared<D>& shared, int begin, int end, bool waits) {
        const int tile = begin + static_cast<int>(threadIdx.x) / 32 * kTile;
        const bool old = tile < end && (!kAppend || min(tile + kTile, end) <= fresh.slot);
        if (waits) {
            if (old) load_keys(args, fresh, tile, end);
            if (old) load_values(args, fresh, tile, end);
            const int in_buffers = kAppend ? min(end, fresh.slot) : end;
            for (int i = 1; i <= kPrefetchedTiles; ++i) prefetch_tile(args, tile + i * kUnit, in_buffers);
            wait_for_previous_kernel();
        }
        if (tile < end && !(waits && old)) load_keys(args, fresh, tile, end);
        load_query(q_row, shared);
        if (tile < end && !(waits && old)) load_values(args, fresh, tile, end);
    }

    // Attend to the range of `start`; columns 2c and 2c + 1 see the slots before sees0 and sees1.
    KVB_DEVICE void run(const DecodeArguments& args, const Fresh& fresh, DecodeShared<D>& shared, int begin, int end,
                        int sees0, int sees1) {
        reset();
        int tile = begin + static_cast<int>(threadIdx.x) / 32 * kTile;
        for (; tile < end; tile += kUnit) {
            if (kQueryIsShared) asm volatile("" ::: "memory");  // load the query again, not keep it in registers
            __syncwarp();  // lanes may have diverged while they loaded or wrote rows; the mma needs all of them
            float score[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                const uint4 k0 = keys[0][chunk], k1 = keys[1][chunk];
                const uint4 q = kQueryIsShared ? shared.query[chunk][threadIdx.x % 32] : query[chunk];
                mma16816<T>(score, k0.x, k1.x, k0.y, k1.y, q.x, q.y);
                mma16816<T>(score, k0.z, k1.z, k0.w, k1.w, q.z, q.w);
            }
            const bool writes = kAppend && fresh.writes && tile + kTile > fresh.slot;
            if (writes) write_new_keys(args.k, fresh.slot, tile, end);
            if (tile + kUnit < end) load_keys(args, fresh, tile + kUnit, end);  // overlaps with the rest of the iteration
            const uint2 p = probabilities(score, tile + thread_row(), sees0, sees1, args.scale_log2);
            __syncwarp();
            const uint32_t p0 = transpose8x8(p.x), p1 = transpose8x8(p.y);
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                const uint4 a = values[0][block], b = values[1][block], c = values[2][block], d = values[3][block];
                add_values(acc[4 * block], a.x, b.x, c.x, d.x, p0, p1);
                add_values(acc[4 * block + 1], a.y, b.y, c.y, d.y, p0, p1);
                add_values(acc[4 * block + 2], a.z, b.z, c.z, d.z, p0, p1);
                add_values(acc[4 * block + 3], a.w, b.w, c.w, d.w, p0, p1);
            }
            if (writes) write_new_values(args.v, fresh.slot, tile, end);
            // This is at the end of the loop, so that no instruction that waits for the keys can be moved before it.
            if (tile + kUnit < end) load_values(args, fresh, tile + kUnit, end);
        }
    }

    // Each argument holds two neighbouring dims of a key, but an A fragment needs two neighbouring keys of a dim. Row r
    // of the tile is the lower dim, row r + 8 the upper dim.
    static KVB_DEVICE void add_values(float (&sum)[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t p0,
                                      uint32_t p1) {
        constexpr uint32_t kLower = 0x5410, kUpper = 0x7632;
        mma16816<T>(sum, byte_permute(a, b, kLower), byte_permute(a, b, kUpper), byte_permute(c, d, kLower),
                    byte_permute(c, d, kUpper), p0, p1);
    }

    // Probabilities of keys `key` (x) and key + 8 (y), with both columns in one register.
    KVB_DEVICE uint2 probabilities(const float (&score)[4], int key, int sees0, int sees1, float scale_log2) {
        const float s00 = key < sees0 ? score[0] * scale_log2 : kNothing;
        const float s01 = key < sees1 ? score[1] * scale_log2 : kNothing;
        const float s10 = key + 8 < sees0 ? score[2] * scale_log2 : kNothing;
        const float s11 = key + 8 < sees1 ? score[3] * scale_log2 : kNothing;
        const float high0 = fmaxf(s00, s10), high1 = fmaxf(s01, s11);
        constexpr float kSlack = kLead<T> + kLazy;
        if (__any_sync(kFullWarp, high0 > m0 + kSlack || high1 > m1 + kSlack)) follow_maximum(high0, high1);
        const float p00 = key < sees0 ? exp2_fast(s00 - m0) : 0.f;
        const float p01 = key < sees1 ? exp2_fast(s01 - m1) : 0.f;
        const float p10 = key + 8 < sees0 ? exp2_fast(s10 - m0) : 0.f;
        const float p11 = key + 8 < sees1 ? exp2_fast(s11 - m1) : 0.f;
        l0 += p00 + p10;
        l1 += p01 + p11;
        return make_uint2(pack2<T>(p00, p01), pack2<T>(p10, p11));
    }

    KVB_DEVICE void follow_maximum(float high0, float high1) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {  // the other keys of the same columns
            high0 = fmaxf(high0, __shfl_xor_sync(kFullWarp, high0, lanes));
            high1 = fmaxf(high1, __shfl_xor_sync(kFullWarp, high1, lanes));
        }
        const float new0 = fmaxf(m0, high0 - kLead<T>), new1 = fmaxf(m1, high1 - kLead<T>);
        const float shrink0 = exp2_fast(m0 - new0), shrink1 = exp2_fast(m1 - new1);
        m0 = new0;
        m1 = new1;
        l0 *= shrink0;
        l1 *= shrink1;
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; ++i) {
            acc[i][0] *= shrink0;
            acc[i][1] *= shrink1;
            acc[i][2] *= shrink0;
            acc[i][3] *= shrink1;
        }
    }

    // Write this warp's result to shared memory.
    KVB_DEVICE void finish(DecodeShared<D>& shared) {
        const int warp = static_cast<int>(threadIdx.x) / 32, column = 2 * thread_column();
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
            l0 += __shfl_xor_sync(kFullWarp, l0, lanes);
            l1 += __shfl_xor_sync(kFullWarp, l1, lanes);
        }
        if (thread_row() == 0) {
            shared.m[warp][column] = m0;
            shared.m[warp][column + 1] = m1;
            shared.l[warp][column] = l0;
            shared.l[warp][column + 1] = l1;
        }
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; i += 2) {
            const int dim = 64 * (i / 4) + 8 * thread_row() + 2 * (i % 4);
            *reinterpret_cast<float4*>(&shared.o[warp][column][dim]) =
                make_float4(acc[i][0], acc[i][2], acc[i + 1][0], acc[i + 1][2]);
            *reinterpret_cast<float4*>(&shared.o[warp][column + 1][dim]) =
                make_float4(acc[i][1], acc[i][3], acc[i + 1][1], acc[i + 1][3]);
        }
    }
};

}  // namespace kvb
