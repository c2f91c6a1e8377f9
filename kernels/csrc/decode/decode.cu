// Attention of the newest tokens over a ragged KV cache, with or without appending them first, in one launch.
//
// A lane is a (row of the batch, KV head); its keys are a segment of the flat buffers. The query columns (token, head
// of the group) of a lane are processed 8 at a time: a (lane, block of 8 columns) is an item. Work is counted in units
// of 128 keys and split over the CTAs, whatever the lengths are (decode/partition.h). decode/attend.h is the inner loop,
// decode/merge.h merges the pieces of an item. decode/tuning.h has the choices that measurements settle. All of this
// follows from the lengths on the device. The host makes no plan and the grid is fixed, so a captured CUDA graph stays
// valid while lengths grow. The same inputs give the same bits.
//
// With `settled` the kernel starts before the stream's previous one ends. Until `wait_for_previous_kernel` it reads
// lengths, segments and rows that are in the buffers, which that kernel does not write, and writes nothing.
//
// C ABI. calls.h has the arguments. q, out, k_new and v_new have rows aligned to 16 bytes; k and v are aligned to 16
// bytes. dim: 64, 80, 96, 128, 256. Returns 0, a cudaError, or a code of common.h. No two lanes of a call share a
// segment. R and tokens * group / 8 * R / 8 must stay below 2^31 - 128.
//
//   int kvb_ragged_decode(const RaggedDecode* call, cudaStream_t stream);
//     Token t of T sees slots < length - T + t + 1. The output of a query that sees nothing is 0 (lse: -infinity).
//
//   int kvb_ragged_append_decode(const RaggedDecode* call, cudaStream_t stream);
//     Appends k_new and v_new at length, adds T to length, and decodes. A segment without room for T tokens keeps its
//     rows and length, its lanes' output is that of a decode without appending, and status becomes 1 + segment if it
//     was 0.
//
//   int64_t kvb_decode_workspace_bytes(int dim, int ctas);      enough for calls with at most this dim and ctas
//   int64_t kvb_decode_counter_bytes(void);                     the first bytes of it: must be zero before the first
//                                                               launch; every launch leaves them zero
//   int kvb_decode_ctas(int dim, int dtype, int append);        CTAs that fill the device; if negative, minus a cudaError
#include <atomic>
#include "calls.h"
#include "decode/attend.h"
#include "decode/merge.h"

namespace kvb {

// CTAs that a multiprocessor holds at once. This bounds their registers, and gives enough loads in flight for the
// multiprocessor's share of the memory bandwidth.
template <int D> constexpr int kResident = D > 64 ? 1 : 2;

// The query row of this thread's column, an operand of the first product; null if there is none.
KVB_DEVICE const uint16_t* query_row(const DecodeArguments& args, const Cursor& at, int column) {
    const int index = at.block * kColumns + column;
    if (index >= args.columns) return nullptr;
    const int batch = args.kv_heads.quotient(at.lane), token = args.group.quotient(index);
    const int head = (at.lane - batch * args.kv_heads.by) * args.group.by + index - token * args.group.by;
    return args.q + batch * args.q_stride.b + head * args.q_stride.h + token * args.q_stride.t;
}

// A column sees the lane's slots before this one.
KVB_DEVICE int sees(const DecodeArguments& args, const Lane& lane, int block, int column) {
    const int token = args.group.quotient(min(block * kColumns + column, args.columns - 1));
    return lane.length - args.tokens + token + 1;
}

template <bool kAppend>
KVB_DEVICE Fresh fresh_rows(const DecodeArguments& args, const Cursor& at, const Lane& lane) {
    if (!kAppend) return Fresh{nullptr, nullptr, 0, false};
    const int batch = args.kv_heads.quotient(at.lane), head = at.lane - batch * args.kv_heads.by;
    const bool writes = at.block == args.blocks - 1;  // the last token's block sees every new row, so it reads them all
    return Fresh{args.k_new + batch * args.k_stride.b + head * args.k_stride.h,
                 args.v_new + batch * args.v_stride.b + head * args.v_stride.h, lane.start + lane.old_length, writes};
}

// Tell the other CTAs that this one has read all lengths that it needs. One thread calls it, after a barrier, and
// passes the result to `advance_lengths`. Nothing waits for the result until then.
KVB_DEVICE unsigned arrive(const DecodeArguments& args) {
    unsigned* counter = reinterpret_cast<unsigned*>(args.counters + kGridCounter);
    return add_release(counter, args.launch << kCountBits | 1u);
}

// The last CTA to arrive advances the lengths. `before` is what the first thread got from `arrive`.
template <int D>
KVB_DEVICE void advance_lengths(const DecodeArguments& args, DecodeShared<D>& shared, unsigned before) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned all = gridDim.x, others = before & kCountMask;
        shared.last = others == all - 1;
        if (shared.last) acquire();
        const bool alone = (((before >> kCountBits) + args.launch) & kLaunchMask) == ((all * args.launch) & kLaunchMask);
        if (others >= all || (shared.last && !alone)) atomicExch(args.status, kOverlap);
        if (shared.last) args.counters[kGridCounter] = 0;
    }
    __syncthreads();
    if (shared.last == 0) return;
    const bool in_window = args.lanes <= kWindow;  // the window has all lanes and is never refilled: no need to wait
    for (int number = static_cast<int>(threadIdx.x); number < args.lanes; number += kDecodeThreads) {
        const Lane lane = in_window ? shared.window[number] : load_lane<true>(args, number);
        if (lane.length > lane.old_length) args.length[lane.segment] = lane.length;
        else atomicCAS(args.status, 0, lane.segment + 1);
    }
}

// The end of the units of the item at `at` that begin before `end`, counted from the item's first.
KVB_DEVICE int last_unit(const Cursor& at, const Lane& lane, int end) {
    return min(divide_up(end - at.item, kUnitCost), units_of(lane));
}

// The slots of a lane that the CTA's part at `at` reads: the first of them, and the end.
KVB_DEVICE int2 part_slots(const DecodeArguments& args, const Cursor& at, const Lane& lane, int end) {
    return make_int2(lane.start + (at.unit - at.item) / kUnitCost * kUnit,
                     lane.start + min(sees(args, lane, at.block, kColumns - 1), last_unit(at, lane, end) * kUnit));
}

template <typename T, int D, bool kAppend>
KVB_DEVICE void start_part(const DecodeArguments& args, DecodeShared<D>& shared, Attention<T, D, kAppend>& attention,
                           const Cursor& at, const Lane& lane, int end, bool waits) {
    const int2 slots = part_slots(args, at, lane, end);
    attention.start(args, fresh_rows<kAppend>(args, at, lane), query_row(args, at, attention.thread_row()), shared,
                    slots.x, slots.y, waits);
}

template <typename T, int D, bool kAppend>
__global__ void __launch_bounds__(kDecodeThreads, kResident<D>) decode(const DecodeArguments args) {
    KVB_DYNAMIC_SHARED(memory);
    DecodeShared<D>& shared = *reinterpret_cast<DecodeShared<D>*>(memory);
    let_next_kernel_start();  // a product may read its weights where CTAs end, and waits for the others
    if (!args.settled) wait_for_previous_kernel();
    find_work<D, kAppend>(args, shared);
    Attention<T, D, kAppend> attention;
    Cursor at = shared.cursor;
    const int end = shared.end;
    const bool early = kAppend && args.lanes <= kWindow;  // no length is read again
    unsigned before = 0;
    Lane lane{};
    if (at.unit < end) {
        lane = lane_at<D, kAppend>(args, shared, at.lane);
        start_part<T, D, kAppend>(args, shared, attention, at, lane, end, args.settled);
    } else if (args.settled) {
        wait_for_previous_kernel();
    }
    if (early && threadIdx.x == 0) before = arrive(args);
    while (at.unit < end) {
        const int units = last_unit(at, lane, end) - (at.unit - at.item) / kUnitCost;
        const int column = 2 * attention.thread_column();
        const int2 slots = part_slots(args, at, lane, end);
        attention.run(args, fresh_rows<kAppend>(args, at, lane), shared, slots.x, slots.y,
                      lane.start + sees(args, lane, at.block, column),
                      lane.start + sees(args, lane, at.block, column + 1));
        attention.finish(shared);
        const Part part{at, units_of(lane), units};
        __syncthreads();  // the warps' results are there
        at = after(args, at, cost_of(lane));
        const auto start_next = [&] {
            if (at.unit >= end) return;
            if (at.lane != part.at.lane) lane = lane_at<D, kAppend>(args, shared, at.lane);
            start_part<T, D, kAppend>(args, shared, attention, at, lane, end, false);
        };
        // The next part's first rows are on their way while this one's results are merged, if registers suffice.
        if (D <= 128) start_next();
        const Merge<T, D> merge{args, shared, part};
        const bool whole = part.units == part.each;
        merge.merge_warps(whole, merge.slot_of(static_cast<int>(blockIdx.x)));
        if (!whole) merge.merge_item();
        __syncthreads();  // all have read the warps' results
        if (D > 128) start_next();
    }
    if (kAppend) {
        if (!early) __syncthreads();
        if (!early && threadIdx.x == 0) before = arrive(args);
        advance_lengths<D>(args, shared, before);
    }
}

template <typename T, int D, bool kAppend>
int launch(const DecodeArguments& args, int ctas, cudaStream_t stream) {
    constexpr int kBytes = sizeof(DecodeShared<D>);
    if (kBytes > kMostUnasked) {
        if (const auto error = KVB_ALLOW_SHARED((decode<T, D, kAppend>), kBytes)) return static_cast<int>(error);
    }
    if (args.settled) KVB_LAUNCH_EARLY((decode<T, D, kAppend>), ctas, kDecodeThreads, kBytes, stream, args);
    else KVB_LAUNCH((decode<T, D, kAppend>), ctas, kDecodeThreads, kBytes, stream, args);
    return static_cast<int>(cudaGetLastError());
}

template <typename T, int D, bool kAppend>
int ctas_of() {
    constexpr int kBytes = sizeof(DecodeShared<D>);
    if (kBytes > kMostUnasked) {
        if (const auto error = KVB_ALLOW_SHARED((decode<T, D, kAppend>), kBytes)) return -static_cast<int>(error);
    }
    return resident_ctas(decode<T, D, kAppend>, kDecodeThreads, kBytes);
}

// Call `call` with the template arguments for a dtype and dim.
template <typename Call>
int dispatch(int dtype, int dim, Call call) {
#define KVB_CASE(D)                                                   \
    case D:                                                           \
        return dtype == 0   ? call.template operator()<bf16, D>()     \
               : dtype == 1 ? call.template operator()<fp16, D>()     \
                            : kUnsupported;
    switch (dim) {
        KVB_CASE(64)
        KVB_CASE(80)
        KVB_CASE(96)
        KVB_CASE(128)
        KVB_CASE(256)
        default: return kUnsupported;
    }
#undef KVB_CASE
}

struct Launch {
    const DecodeArguments& args;
    bool append;
    int ctas;
    cudaStream_t stream;
    template <typename T, int D> int operator()() const {
        return append ? launch<T, D, true>(args, ctas, stream) : launch<T, D, false>(args, ctas, stream);
    }
};

struct Resident {
    bool append;
    template <typename T, int D> int operator()() const {
        return append ? ctas_of<T, D, true>() : ctas_of<T, D, false>();
    }
};

uint16_t* bits(void* pointer) { return static_cast<uint16_t*>(pointer); }

Strides strides(const Tensor4& x) { return {x.stride_0, x.stride_1, x.stride_2}; }

int run(const RaggedDecode& call, bool append, cudaStream_t stream) {
    if (call.batch < 1 || call.kv_heads < 1 || call.group < 1 || call.tokens < 1) return kTooLarge;
    if (call.ctas < 1 || call.ctas > kMaxCtas) return kTooLarge;
    static std::atomic<unsigned> launches{0};
    const int columns = call.tokens * call.group;
    const DecodeArguments args{
        .q = bits(call.q.data),
        .k_new = append ? bits(call.k_new.data) : nullptr,
        .v_new = append ? bits(call.v_new.data) : nullptr,
        .k = bits(call.k),
        .v = bits(call.v),
        .out = bits(call.out.data),
        .q_stride = strides(call.q),
        .k_stride = strides(call.k_new),
        .v_stride = strides(call.v_new),
        .out_stride = strides(call.out),
        .start = call.start,
        .length = call.length,
        .segment = call.segment,
        .lse = call.lse,
        .counters = static_cast<int*>(call.workspace),
        .pieces = reinterpret_cast<float*>(static_cast<char*>(call.workspace) + kCounterBytes),
        .status = call.status,
        .scale_log2 = call.scaling * kLog2e,
        .launch = launches.fetch_add(1, std::memory_order_relaxed),
        .kv_heads = divisor(call.kv_heads),
        .group = divisor(call.group),
        .settled = call.settled != 0,
        .lanes = call.batch * call.kv_heads,
        .tokens = call.tokens,
        .columns = columns,
        .blocks = (columns + kColumns - 1) / kColumns,
    };
    return dispatch(call.dtype, call.dim, Launch{args, append, call.ctas, stream});
}

}  // namespace kvb

extern "C" int64_t kvb_decode_counter_bytes() { return kvb::kCounterBytes; }

extern "C" int64_t kvb_decode_workspace_bytes(int dim, int ctas) {
    if (dim < 1 || ctas < 1 || ctas > kvb::kMaxCtas) return kvb::kTooLarge;
    return kvb::kCounterBytes + int64_t{2} * ctas * kvb::slot_floats(dim) * 4;
}

extern "C" int kvb_decode_ctas(int dim, int dtype, int append) {
    const int ctas = kvb::dispatch(dtype, dim, kvb::Resident{append != 0});
    return ctas > kvb::kMaxCtas ? kvb::kMaxCtas : ctas;
}

extern "C" int kvb_ragged_decode(const kvb::RaggedDecode* call, cudaStream_t stream) {
    return kvb::run(*call, false, stream);
}

extern "C" int kvb_ragged_append_decode(const kvb::RaggedDecode* call, cudaStream_t stream) {
    if (call->k_new.data == nullptr || call->v_new.data == nullptr) return kvb::kUnsupported;
    return kvb::run(*call, true, stream);
}
