// Ragged decode: merging the warps' results into the output, across CTAs if an item was split.
//
// Results are (O, m, l): O unnormalised, with probabilities relative to 2^m, and l their sum. Pieces of an item go to
// slots of the workspace, and a counter tells the CTA that arrives last to merge them. It merges in the order of the
// pieces, not of arrival, so that results are the same in every run. Many pieces are merged in two levels: first in
// groups whose size is about the square root of their number, each by a CTA, then the groups. The counters are zero
// again afterwards.
#pragma once
#include "decode/columns.h"
#include "decode/partition.h"

namespace kvb {

// The CTA's current work: units [cursor, cursor + units) of an item of `each` units.
struct Part {
    Cursor at;
    int each, units;
};

KVB_DEVICE float4 scaled_sum(float4 sum, float4 x, float by) {
    return make_float4(sum.x + by * x.x, sum.y + by * x.y, sum.z + by * x.z, sum.w + by * x.w);
}

template <typename T, typename F>
struct Merge {
    static constexpr int D = F::D, kSlotFloats = F::kSlotFloats, kInFlight = kvb::kInFlight<D>;

    const DecodeArguments& args;
    DecodeShared<F>& shared;
    const Part& part;

    KVB_DEVICE int all_columns() const { return item_columns<F>(args); }
    KVB_DEVICE int first_column() const { return part.at.block * all_columns(); }
    KVB_DEVICE int live_columns() const { return min(all_columns(), args.columns - first_column()); }

    KVB_DEVICE float* slot_values(int slot) const { return args.pieces + static_cast<int64_t>(slot) * kSlotFloats; }
    KVB_DEVICE float2* slot_sums(int slot) const {
        return reinterpret_cast<float2*>(slot_values(slot) + F::kMost * D);
    }

    // A CTA has at most two pieces of split items: one at the beginning of its range, and one that starts later.
    KVB_DEVICE int slot_of(int cta) const {
        if (shared.pieces > 0) return 2 * cta;
        return 2 * cta + (range_begin(cta, shared.total, shared.ctas) < part.at.item);
    }

    KVB_DEVICE void write_output(int column, int dim, float4 sum, float m, float l) const {
        const int index = first_column() + column, token = args.group.quotient(index);
        const int batch = args.kv_heads.quotient(part.at.lane), kv_head = part.at.lane - batch * args.kv_heads.by;
        const int query_head = kv_head * args.group.by + index - token * args.group.by;
        const float by = l == 0.f ? 0.f : 1.f / l;  // the sum is 0 if no key is seen
        const Strides& stride = args.out_stride;
        uint16_t* row = args.out + batch * stride.b + query_head * stride.h + token * stride.t;
        *reinterpret_cast<uint2*>(row + dim) =
            make_uint2(pack2<T>(sum.x * by, sum.y * by), pack2<T>(sum.z * by, sum.w * by));
        if (args.lse != nullptr && dim == 0) {
            const int64_t heads = static_cast<int64_t>(args.kv_heads.by) * args.group.by;
            args.lse[(batch * heads + query_head) * args.tokens + token] =
                l == 0.f ? -INFINITY : (m + log2f(l)) * kLn2;
        }
    }

    KVB_DEVICE void write_piece(int slot, int column, int dim, float4 sum, float m, float l) const {
        *reinterpret_cast<float4*>(slot_values(slot) + column * D + dim) = sum;
        if (dim == 0) slot_sums(slot)[column] = make_float2(m, l);
    }

    // Merge the warps' results from shared memory into the output or into `slot`.
    KVB_DEVICE void merge_warps(bool whole, int slot) const {
        for (int i = thread_of<F>(); i < live_columns() * (D / 4); i += kDecodeThreads) {
            const int column = i / (D / 4), dim = i % (D / 4) * 4;
            const int own = F::kWide ? column % F::kOwn : column, first = F::kWide ? column / F::kOwn : 0;
            const int step = 1 << sharers_log2<F>(args);
            float m = shared.m[first][own];
            for (int warp = first + step; warp < kDecodeWarps; warp += step) m = fmaxf(m, shared.m[warp][own]);
            float l = 0.f;
            float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
            for (int warp = first; warp < kDecodeWarps; warp += step) {
                const float by = exp2_fast(shared.m[warp][own] - m);
                l += by * shared.l[warp][own];
                sum = scaled_sum(sum, *reinterpret_cast<const float4*>(&shared.o[warp][own][dim]), by);
            }
            if (whole) write_output(column, dim, sum, m, l);
            else write_piece(slot, column, dim, sum, m, l);
        }
    }

    // True if this CTA is the last of `all` to arrive. It then sees everything that the others stored before: barriers
    // extend the order between the CTAs' first threads to all their threads.
    KVB_DEVICE bool last_to_arrive(int counter, int all) const {
        __syncthreads();  // every thread's stores come before the addition
        if (threadIdx.x == 0) {
            const bool last = add_acquire_release(args.counters + counter, 1) == all - 1;
            if (last) args.counters[counter] = 0;  // all CTAs have arrived
            shared.last = last;
        }
        __syncthreads();  // every thread's loads come after it
        return shared.last != 0;
    }

    // Some pieces of the item: those of CTAs cta, cta + step, ... All are the first of their CTA, except perhaps the
    // first of them.
    struct Pieces {
        int cta, step, number, first_slot;
        KVB_DEVICE int slot(int i) const { return i == 0 ? first_slot : 2 * (cta + i * step); }
    };

    // Load up to kInFlight of the pieces begin .. end - 1: all loads come before the first use.
    KVB_DEVICE void load_pieces(float4 (&loaded)[kInFlight], const Pieces& pieces, int begin, int end, int column,
                                int dim) const {
        const float* values = slot_values(2 * (pieces.cta + begin * pieces.step)) + column * D + dim;
        const int first = begin == 0 ? (pieces.first_slot - 2 * pieces.cta) * kSlotFloats : 0;
        const int step = 2 * pieces.step * kSlotFloats;
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            loaded[j] = make_float4(0.f, 0.f, 0.f, 0.f);
            if (begin + j < end)
                loaded[j] = __ldcg(reinterpret_cast<const float4*>(j == 0 ? values + first : values));
            values += step;
        }
    }

    // Merge into the output (slot < 0) or into a slot, which may be that of the first piece. If there are many pieces,
    // several threads share those of a position of the output.
    KVB_DEVICE void merge_pieces(const Pieces& pieces, int slot) const {
        const int thread = thread_of<F>(), all = live_columns() * (D / 4);
        const int shares = pieces.number > kInFlight ? max(1, kDecodeThreads / all) : 1;
        const int share = shares == 1 ? 0 : thread / all, position = thread - share * all;
        const int each = divide_up(pieces.number, shares), begin = share * each;
        const int end = min(begin + each, pieces.number);
        const bool takes_part = share < shares && position < all;
        float4 loaded[kInFlight] = {};  // the first of them before the barrier, together with the sums
        if (takes_part) load_pieces(loaded, pieces, begin, end, position / (D / 4), position % (D / 4) * 4);
        for (int i = thread; i < pieces.number * F::kMost; i += kDecodeThreads) {
            const int piece = i / F::kMost, column = i % F::kMost;
            if (column >= live_columns()) continue;
            const float2 sums = __ldcg(slot_sums(pieces.slot(piece)) + column);
            shared.merged.m[piece][column] = sums.x;
            shared.merged.l[piece][column] = sums.y;
        }
        __syncthreads();
#pragma unroll 1
        for (int first = 0; first < all; first += kDecodeThreads) {
            const int i = first + position, column = min(i / (D / 4), F::kMost - 1), dim = i % (D / 4) * 4;
            const bool active = takes_part && i < all;
            float m = kNothing, l = 0.f;
            float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
            if (active) {
                if (first > 0) load_pieces(loaded, pieces, begin, end, column, dim);
                for (int piece = 0; piece < pieces.number; ++piece) m = fmaxf(m, shared.merged.m[piece][column]);
                if (share == 0)
                    for (int piece = 0; piece < pieces.number; ++piece)
                        l += exp2_fast(shared.merged.m[piece][column] - m) * shared.merged.l[piece][column];
                sum = sum_pieces(loaded, pieces, begin, end, column, dim, m);
            }
            if (shares > 1) {
                float4* const others = shared.merged.shares;
                if (active && share > 0) others[(share - 1) * all + i] = sum;
                __syncthreads();
                for (int other = 1; active && share == 0 && other < shares; ++other)
                    sum = scaled_sum(sum, others[(other - 1) * all + i], 1.f);
            }
            if (!active || share > 0) continue;
            if (slot < 0) write_output(column, dim, sum, m, l);
            else write_piece(slot, column, dim, sum, m, l);
        }
    }

    // The sum of the pieces begin .. end - 1, the first kInFlight of which are loaded, relative to 2^m.
    KVB_DEVICE float4 sum_pieces(float4 (&loaded)[kInFlight], const Pieces& pieces, int begin, int end, int column,
                                 int dim, float m) const {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
        for (int next = begin; next < end; next += kInFlight) {
            if (next > begin) load_pieces(loaded, pieces, next, end, column, dim);
#pragma unroll
            for (int j = 0; j < kInFlight; ++j)
                if (next + j < end) sum = scaled_sum(sum, loaded[j], exp2_fast(shared.merged.m[next + j][column] - m));
        }
        return sum;
    }

    // Called by all threads, which take the same branches, when this CTA's piece of a split item is in its slot.
    KVB_DEVICE void merge_item() const {
        const int cta = static_cast<int>(blockIdx.x);
        int first = cta - shared.piece, number = shared.pieces;
        if (number == 0) {
            first = cta_of(part.at.item, shared.total, shared.ctas);
            number = cta_of(part.at.item + (part.each - 1) * kUnitCost, shared.total, shared.ctas) - first + 1;
        }
        int in_group = F::kWide ? kOneWideMerge : shared.pieces > 0 ? kMaxMerge : kOneMerge;
        if (number > in_group)
            while (in_group * in_group < number) ++in_group;
        const int groups = divide_up(number, in_group), group = (cta - first) / in_group;
        const int group_cta = first + group * in_group;
        const int group_slot = slot_of(group_cta);
        Pieces pieces{group_cta, 1, min(in_group, number - group * in_group), group_slot};
        int counter = kGroupCounters + group_slot, slot = groups == 1 ? -1 : group_slot;
#pragma unroll 1
        for (;;) {
            if (!last_to_arrive(counter, pieces.number)) return;
            merge_pieces(pieces, slot);
            if (slot < 0) return;
            pieces = Pieces{first, in_group, groups, slot_of(first)};
            counter = kItemCounters + first;
            slot = -1;
        }
    }
};

}  // namespace kvb
