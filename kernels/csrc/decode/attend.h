// Ragged decode: attention of panels of 8 query columns over a range of a lane's keys, by eight warps, in tiles of 16.
//
// Both products put keys or dims in the 16 rows and query columns in the 8 columns of the mma: S^T = K Q^T and O^T =
// V^T P^T. The order of the terms of a sum is free. So the contraction over D takes the dims in the order in which
// 16-byte loads deliver them (the same for K and Q), and the rows of O^T are dims in that order too. K and V therefore
// go from global memory straight into fragments, without shared memory. All panels of a warp use the same fragments.
//
// With r = lane / 4 and c = lane % 4 of a thread, [chunk] of 32 dims, [block] of 64 dims, and [p] of the warp's panels:
//   keys[half][chunk]     key r + 8 half, dims 32 chunk + 8 c .. + 7   (A of the first product)
//   query[chunk]          column r, the same dims                      (B of it); in shared memory for large D or panels
//   score[p][0..3]        key r: columns 2c, 2c + 1; key r + 8: the same (C of it)
//   values[i][block]      key 2c + i % 2 + 8 (i / 2), dims 64 block + 8 r .. + 7   (pairs are A of the second product)
//   acc[p][4 block + j]   dim 64 block + 8 r + 2j: columns 2c, 2c + 1; the next dim: the same (C of it)
#pragma once
#include "decode/columns.h"
#include "decode/rows.h"

namespace kvb {

// Probabilities are 2^(score - m). m is not the maximum but a reference that follows it: it moves only when a score
// exceeds it by 2^(kLead + kLazy), so that rescaling is rare. fp16 needs probabilities well above its smallest numbers.
constexpr float kLazy = 8.f;
template <typename T> constexpr float kLead = 0.f;
template <> constexpr float kLead<fp16> = 6.f;

template <typename T, typename F, bool kAppend>
struct Attention {
    using Shared = DecodeShared<F>;
    static constexpr int D = F::D;
    static constexpr bool kWide = F::kWide;
    static constexpr int kChunks = F::kChunks, kBlocks = (D + 63) / 64, kPanels = F::kPanels;
    static constexpr int kTwo = kPanels > 1 ? 2 : 1;  // panels that are computed, or left out, together
    static constexpr int kAll = 0x7fffffff;           // the end of what a column sees if it sees the whole tile

    uint4 query[F::kQueryIsShared ? 1 : kChunks];
    float acc[kPanels][4 * kBlocks][4];
    float m[kPanels][2], l[kPanels][2];  // of columns 2c and 2c + 1; until `finish`, l is the sum over this thread's keys
    Rows<D, kAppend, kWide> rows;

    // The tile that this warp begins with, and its first panel.
    static KVB_DEVICE int first_tile(const DecodeArguments& args, int begin) {
        return begin + (static_cast<int>(threadIdx.x) / 32 >> sharers_log2<F>(args)) * kTile;
    }
    static KVB_DEVICE int first_panel(const DecodeArguments& args) {
        const int sharer = static_cast<int>(threadIdx.x) / 32 & ((1 << sharers_log2<F>(args)) - 1);
        return kWide ? sharer * kPanels : 0;
    }

    // Keys between the tiles of a warp.
    static KVB_DEVICE int stride(const DecodeArguments& args) { return kUnit >> sharers_log2<F>(args); }

    KVB_DEVICE void reset() {
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
#pragma unroll
            for (int i = 0; i < 4 * kBlocks; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[p][i][j] = 0.f;
            m[p][0] = m[p][1] = kNothing;
            l[p][0] = l[p][1] = 0.f;
        }
    }

    // Attend to slots begin .. end - 1, of which the first tile and the queries are loaded. `of_thread` is 2c. In a wide
    // kernel, `at` and `lane` are in shared memory, and the new rows are in the buffers.
    KVB_DEVICE void run(const DecodeArguments& args, const Fresh& fresh, const Cursor& at, const Lane& lane,
                        Shared& shared, int begin, int end, int of_thread) {
        const int first = first_panel(args), column = first * kColumns + of_thread;
        const int live = divide_up(args.columns - at.block * item_columns<F>(args), kColumns);  // panels of the item
        const int seen_by_all = seen_end<F>(args, at, lane, 0);
        const int first0 = seen_end<F>(args, at, lane, column), first1 = seen_end<F>(args, at, lane, column + 1);
        reset();
        const auto has = [&](int p) { return p < kTwo || first + p < live; };  // the first panels always, without a test
        for (int tile = first_tile(args, begin); tile < end; tile += stride(args)) {
            if (F::kQueryIsShared) asm volatile("" ::: "memory");  // load the query again, not keep it in registers
            __syncwarp();  // lanes may have diverged while they loaded or wrote rows; the mma needs all of them
            const bool writes = kAppend && !kWide && fresh.writes && tile + kTile > fresh.slot;
            const bool masks = kWide && tile + kTile > seen_by_all;
            uint32_t p0[kPanels], p1[kPanels];
#pragma unroll
            for (int two = 0; two < kPanels; two += kTwo) {
                float score[kTwo][4];
                if (has(two)) score_panels(score, two, first, shared);
                if (two + kTwo == kPanels) {
                    if (writes) rows.write_new_keys(args.k, fresh.slot, tile, end);
                    if (tile + stride(args) < end) rows.load_keys(args, fresh, tile + stride(args), end);  // meanwhile
                }
                if (!has(two)) continue;
#pragma unroll
                for (int p = two; p < two + kTwo; ++p) {
                    const int key = tile + thread_row(), of_panel = column + p * kColumns;
                    const int sees0 = !kWide ? first0 : masks ? seen_end<F>(args, at, lane, of_panel) : kAll;
                    const int sees1 = !kWide ? first1 : masks ? seen_end<F>(args, at, lane, of_panel + 1) : kAll;
                    const uint2 pair = probabilities(p, score[p - two], key, sees0, sees1, args.scale_log2);
                    __syncwarp();
                    p0[p] = transpose8x8(pair.x);
                    p1[p] = transpose8x8(pair.y);
                }
            }
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                const uint4 a = rows.values[0][block], b = rows.values[1][block];
                const uint4 c = rows.values[2][block], d = rows.values[3][block];
                add_values(4 * block, a.x, b.x, c.x, d.x, p0, p1, has);
                add_values(4 * block + 1, a.y, b.y, c.y, d.y, p0, p1, has);
                add_values(4 * block + 2, a.z, b.z, c.z, d.z, p0, p1, has);
                add_values(4 * block + 3, a.w, b.w, c.w, d.w, p0, p1, has);
            }
            if (writes) rows.write_new_values(args.v, fresh.slot, tile, end);
            // This is at the end of the loop, so that no instruction that waits for the keys can be moved before it.
            if (tile + stride(args) < end) rows.load_values(args, fresh, tile + stride(args), end);
        }
    }

    // The scores of kTwo panels from `two` on. Their sums are independent, so one is computed while the other waits.
    KVB_DEVICE void score_panels(float (&score)[kTwo][4], int two, int first, const Shared& shared) const {
#pragma unroll
        for (int p = 0; p < kTwo; ++p)
#pragma unroll
            for (int i = 0; i < 4; ++i) score[p][i] = 0.f;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            const uint4 k0 = rows.keys[0][chunk], k1 = rows.keys[1][chunk];
#pragma unroll
            for (int p = two; p < two + kTwo; ++p) {
                const uint4 q = F::kQueryIsShared ? shared.query[(first + p) * kChunks + chunk][threadIdx.x % 32]
                                                  : query[chunk];
                mma16816<T>(score[p - two], k0.x, k1.x, k0.y, k1.y, q.x, q.y);
                mma16816<T>(score[p - two], k0.z, k1.z, k0.w, k1.w, q.z, q.w);
            }
        }
    }

    // Add the products of two dims with all panels. Each of a .. d holds two neighbouring dims of a key, but an A fragment
    // needs two neighbouring keys of a dim. Row r of the tile is the lower dim, row r + 8 the upper dim.
    template <typename Has>
    KVB_DEVICE void add_values(int at, uint32_t a, uint32_t b, uint32_t c, uint32_t d, const uint32_t (&p0)[kPanels],
                               const uint32_t (&p1)[kPanels], Has has) {
        constexpr uint32_t kLower = 0x5410, kUpper = 0x7632;
        const uint32_t ab0 = byte_permute(a, b, kLower), ab1 = byte_permute(a, b, kUpper);
        const uint32_t cd0 = byte_permute(c, d, kLower), cd1 = byte_permute(c, d, kUpper);
#pragma unroll
        for (int p = 0; p < kPanels; ++p)
            if (has(p / kTwo * kTwo)) mma16816<T>(acc[p][at], ab0, ab1, cd0, cd1, p0[p], p1[p]);
    }

    // Probabilities of keys `key` (x) and key + 8 (y), with both columns in one register.
    KVB_DEVICE uint2 probabilities(int p, const float (&score)[4], int key, int sees0, int sees1, float scale_log2) {
        const float s00 = key < sees0 ? score[0] * scale_log2 : kNothing;
        const float s01 = key < sees1 ? score[1] * scale_log2 : kNothing;
        const float s10 = key + 8 < sees0 ? score[2] * scale_log2 : kNothing;
        const float s11 = key + 8 < sees1 ? score[3] * scale_log2 : kNothing;
        const float high0 = fmaxf(s00, s10), high1 = fmaxf(s01, s11);
        constexpr float kSlack = kLead<T> + kLazy;
        if (__any_sync(kFullWarp, high0 > m[p][0] + kSlack || high1 > m[p][1] + kSlack)) follow_maximum(p, high0, high1);
        const float p00 = key < sees0 ? exp2_fast(s00 - m[p][0]) : 0.f;
        const float p01 = key < sees1 ? exp2_fast(s01 - m[p][1]) : 0.f;
        const float p10 = key + 8 < sees0 ? exp2_fast(s10 - m[p][0]) : 0.f;
        const float p11 = key + 8 < sees1 ? exp2_fast(s11 - m[p][1]) : 0.f;
        l[p][0] += p00 + p10;
        l[p][1] += p01 + p11;
        return make_uint2(pack2<T>(p00, p01), pack2<T>(p10, p11));
    }

    KVB_DEVICE void follow_maximum(int p, float high0, float high1) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {  // the other keys of the same columns
            high0 = fmaxf(high0, __shfl_xor_sync(kFullWarp, high0, lanes));
            high1 = fmaxf(high1, __shfl_xor_sync(kFullWarp, high1, lanes));
        }
        const float new0 = fmaxf(m[p][0], high0 - kLead<T>), new1 = fmaxf(m[p][1], high1 - kLead<T>);
        const float shrink0 = exp2_fast(m[p][0] - new0), shrink1 = exp2_fast(m[p][1] - new1);
        m[p][0] = new0;
        m[p][1] = new1;
        l[p][0] *= shrink0;
        l[p][1] *= shrink1;
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; ++i) {
            acc[p][i][0] *= shrink0;
            acc[p][i][1] *= shrink1;
            acc[p][i][2] *= shrink0;
            acc[p][i][3] *= shrink1;
        }
    }

    // Write this warp's result to shared memory.
    KVB_DEVICE void finish(Shared& shared) {
        const int warp = thread_of<F>() / 32;
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
            const int column = p * kColumns + 2 * thread_column();
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) {
                l[p][0] += __shfl_xor_sync(kFullWarp, l[p][0], lanes);
                l[p][1] += __shfl_xor_sync(kFullWarp, l[p][1], lanes);
            }
            if (thread_row() == 0) {
                shared.m[warp][column] = m[p][0];
                shared.m[warp][column + 1] = m[p][1];
                shared.l[warp][column] = l[p][0];
                shared.l[warp][column + 1] = l[p][1];
            }
#pragma unroll
            for (int i = 0; i < 4 * kBlocks; i += 2) {
                const int dim = 64 * (i / 4) + 8 * thread_row() + 2 * (i % 4);
                *reinterpret_cast<float4*>(&shared.o[warp][column][dim]) =
                    make_float4(acc[p][i][0], acc[p][i][2], acc[p][i + 1][0], acc[p][i + 1][2]);
                *reinterpret_cast<float4*>(&shared.o[warp][column + 1][dim]) =
                    make_float4(acc[p][i][1], acc[p][i][3], acc[p][i + 1][1], acc[p][i + 1][3]);
            }
        }
    }
};

}  // namespace kvb
